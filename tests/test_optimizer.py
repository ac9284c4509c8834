"""Schedule, decay groups, and the optimiser's state by name."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from mmkd_lite.config import TrainConfig, resolve
from mmkd_lite.models import ContrastScale, ImageEncoder, SharedMLP, TextEncoder
from mmkd_lite.optimizer import (
    build_optimizer,
    learning_rate,
    load_optimizer_tensors,
    optimizer_tensors,
    parameter_groups,
)


def test_schedule_equals_torchs_own_warm_up_and_cosine() -> None:
    steps, warmup = 40, 8
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(()))], lr=3e-3)
    ramp = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: (step + 1) / warmup)
    expected = []
    for _ in range(warmup):
        expected.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        ramp.step()
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(()))], lr=3e-3)
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps - warmup)
    for _ in range(steps - warmup):
        expected.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        cosine.step()
    ours = [learning_rate(step, steps, 3e-3, 0.2) for step in range(steps)]
    assert ours == pytest.approx(expected, rel=1e-9)
    assert max(ours) == 3e-3 and ours[-1] < 1e-4


@pytest.mark.parametrize(("steps", "fraction"), [(1, 0.1), (3, 0.0), (3, 1.0), (5, 0.1)])
def test_schedule_is_positive_and_bounded_for_short_runs(steps: int, fraction: float) -> None:
    rates = [learning_rate(step, steps, 1.0, fraction) for step in range(steps)]
    assert all(0.0 < rate <= 1.0 for rate in rates)
    assert max(rates) == 1.0


def test_schedule_refuses_impossible_arguments() -> None:
    with pytest.raises(ValueError, match="step 4 is outside a run of 4 steps"):
        learning_rate(4, 4, 1.0)
    with pytest.raises(ValueError, match=r"warmup_fraction=1\.5"):
        learning_rate(0, 4, 1.0, 1.5)


def student() -> nn.ModuleDict:
    config = resolve("shre", "tiny", {"data.vocab_size": 50})
    width = config.image.width
    return nn.ModuleDict(
        {
            "image": ImageEncoder(config.image, config.data.image_size),
            "text": TextEncoder(config.text, 50, 16, token_types=2),
            "shared": SharedMLP(width, 4 * width, 10),
            "scale": ContrastScale(),
        }
    )


def test_only_matrices_that_multiply_are_decayed() -> None:
    model = student()
    decayed, kept = parameter_groups(model, 0.05)
    assert (decayed["weight_decay"], kept["weight_decay"]) == (0.05, 0.0)
    multiplying = {
        f"{name}.weight"
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | nn.Conv2d)
    }
    assert set(decayed["names"]) == multiplying
    # Everything else: biases, norms, class tokens, positions, token and type embeddings, scales.
    assert set(decayed["names"]) | set(kept["names"]) == {n for n, _ in model.named_parameters()}
    assert not set(decayed["names"]) & set(kept["names"])
    assert len(decayed["params"]) == len(decayed["names"]) > 10


@pytest.mark.parametrize(
    ("name", "shape", "decays"),
    [
        ("weight", (4, 4), True),
        ("patches", (4, 3, 2, 2), True),
        ("cls_token", (1, 1, 4), False),
        ("position_embedding", (1, 9, 4), False),
        ("token_type_embedding", (2, 4), False),
        ("mask_token", (1, 4), False),
        ("layer_scale", (1, 4), False),
        ("bias", (4,), False),
        ("log_scale", (), False),
    ],
)
def test_names_and_shapes_decide(name: str, shape: tuple[int, ...], decays: bool) -> None:
    module = nn.Module()
    module.register_parameter(name, nn.Parameter(torch.zeros(shape)))
    (group,) = parameter_groups(nn.Sequential(module), 0.1)
    assert group["names"] == [f"0.{name}"]
    assert group["weight_decay"] == (0.1 if decays else 0.0)


def test_frozen_parameters_are_left_out_and_shared_ones_appear_once() -> None:
    first, second = nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False)
    second.weight = first.weight
    frozen = nn.Linear(2, 2).requires_grad_(False)
    (group,) = parameter_groups(nn.ModuleList([first, second, frozen]), 0.1)
    assert group["names"] == ["0.weight"]
    with pytest.raises(ValueError, match="Linear has no trainable parameter"):
        parameter_groups(frozen, 0.1)


def test_decay_shrinks_weights_and_nothing_else() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.LayerNorm(3))
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer = build_optimizer(model, TrainConfig(weight_decay=0.5, base_lr=0.1))
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    for name, parameter in model.named_parameters():
        factor = 1 - 0.1 * 0.5 if name == "0.weight" else 1.0
        torch.testing.assert_close(parameter.detach(), before[name] * factor)


def test_fused_adamw_equals_the_plain_rule() -> None:
    train = TrainConfig(weight_decay=0.0, base_lr=0.01, betas=(0.9, 0.98), eps=1e-6)
    weight = nn.Parameter(torch.tensor([[1.0, -2.0]]))
    module = nn.Module()
    module.register_parameter("weight", weight)
    optimizer = build_optimizer(module, train)
    expected, mean, square = torch.tensor([[1.0, -2.0]]), 0.0, 0.0
    for step in range(1, 6):
        gradient = torch.tensor([[0.5 * step, -1.0]])
        weight.grad = gradient.clone()
        optimizer.step()
        mean = 0.9 * mean + 0.1 * gradient
        square = 0.98 * square + 0.02 * gradient**2
        corrected = (square / (1 - 0.98**step)) ** 0.5 + 1e-6
        expected = expected - 0.01 * mean / (1 - 0.9**step) / corrected
    torch.testing.assert_close(weight.detach(), expected)


def test_state_goes_round_by_name_and_continues_alike() -> None:
    def grown(steps: int, state: dict[str, torch.Tensor] | None, model: nn.Module) -> None:
        optimizer = build_optimizer(model, TrainConfig(base_lr=0.1))
        if state is not None:
            load_optimizer_tensors(optimizer, state)
        for step in range(steps):
            for number, parameter in enumerate(model.parameters()):
                parameter.grad = torch.full_like(parameter, math.sin(number + step))
            optimizer.step()
        model.state = optimizer_tensors(optimizer)

    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 2), nn.LayerNorm(2))
    grown(3, None, model)
    copy = nn.Sequential(nn.Linear(3, 2), nn.LayerNorm(2))
    copy.load_state_dict(model.state_dict())
    state = {name: value.clone() for name, value in model.state.items()}
    assert set(state) == {
        f"{name}/{quantity}"
        for name, _ in model.named_parameters()
        for quantity in ("step", "exp_avg", "exp_avg_sq")
    }
    grown(2, state, model)
    grown(2, state, copy)
    for name, value in model.state_dict().items():
        assert torch.equal(value, copy.state_dict()[name]), name
    forgetful = nn.Sequential(nn.Linear(3, 2), nn.LayerNorm(2))
    with pytest.raises(ValueError, match=r"optimiser state for 'other\.weight'"):
        grown(0, {"other.weight/step": torch.ones(())}, forgetful)
