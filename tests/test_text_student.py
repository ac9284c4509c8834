"""The text student: its targets by loops, what trains, what it scores with, the optimum of each target."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mmkd_lite.config import RunConfig, resolve
from mmkd_lite.evaluate import count_parameters
from mmkd_lite.methods import build
from mmkd_lite.methods.text_student import TextStudent
from tests.reference_losses import cosine_distance_loop, info_nce_loop, mean_squared_error_loop

TEACHER = {"teacher": "random-vit", "text.start": ""}
BATCH = 6


def tiny(overrides: dict | None = None) -> RunConfig:
    return resolve("text_student", "tiny", {**TEACHER, **(overrides or {})})


def a_batch(config: RunConfig) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    side = config.data.image_size
    tokens = torch.randint(5, 60, (BATCH, config.data.max_tokens), generator=generator)
    tokens[:, 9:] = 0
    return {
        "image": torch.rand(BATCH, 3, side, side, generator=generator, dtype=torch.float64),
        "tokens": tokens,
        "image_id": torch.tensor([0, 1, 2, 1, 3, 4]),  # one picture comes twice
    }


def by_loops(kind: str, predicted: Tensor, cls: Tensor, ids: Tensor) -> Tensor:
    unit = cls / cls.norm(dim=1, keepdim=True)
    if kind == "cosine":
        return cosine_distance_loop(predicted, cls)
    if kind.startswith("contrastive"):
        rows = predicted / predicted.norm(dim=1, keepdim=True)
        masked = {} if kind.endswith("unmasked") else {"query_id": ids, "key_id": ids}
        return info_nce_loop(rows, unit, 1 / 0.07, **masked)
    return mean_squared_error_loop(predicted, unit if kind == "normalised" else cls)


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("mse", {}),
        ("normalised", {"options.normalise": True}),
        ("cosine", {"options.target": "cosine"}),
        ("contrastive", {"options.target": "contrastive"}),
        ("contrastive unmasked", {"options.target": "contrastive", "options.mask_by_id": False}),
    ],
)
def test_the_loss_and_its_gradients_equal_the_loops(kind: str, options: dict) -> None:
    config = tiny(options)
    method = build(config).double().train()
    batch = a_batch(config)
    targets = method.targets(batch)
    terms = method.losses(batch, targets, 0.0)
    assert terms.keys() == config.weights.keys() == {"regression"}
    encoded = method.text_encoder(batch["tokens"])[:, 0]  # with its padding columns
    cls = method.teacher.features(batch["image"])
    wanted = by_loops(kind, method.head(encoded), cls, batch["image_id"])
    torch.testing.assert_close(terms["regression"], wanted, rtol=1e-6, atol=1e-12)
    learned = [method.text_encoder.token_embedding.weight, *method.head.parameters()]
    found, expected = (
        torch.cat([g.flatten() for g in torch.autograd.grad(value, learned, retain_graph=True)])
        for value in (terms["regression"], wanted)
    )
    assert expected.abs().max() > 1e-6
    assert (found - expected).norm() <= 1e-6 * expected.norm()


@pytest.mark.parametrize("variant", list(TextStudent.variants))
def test_every_variant_trains_its_text_tower_and_never_the_teacher(variant: str) -> None:
    chosen = {**TextStudent.variants[variant], "text.layers": 2}
    chosen["teacher"] = "random-" + str(chosen.get("teacher", "vit"))
    config = tiny(chosen)
    method = build(config).double().train()
    batch = a_batch(config)
    before = {name: value.clone() for name, value in method.teacher.state_dict().items()}
    sum(method.losses(batch, method.targets(batch), 0.0).values()).backward()
    free = {name: p for name, p in method.named_parameters() if p.requires_grad}
    assert not any("teacher" in name for name in [*free, *method.state_dict()])
    for name, parameter in free.items():
        if "attention.key.bias" not in name:
            assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name
    frozen = {name for name, p in method.named_parameters() if not p.requires_grad}
    assert ("text_encoder.token_embedding.weight" in frozen) == (variant == "frozen_embeddings")
    assert not any("transformer" in name or "head" in name for name in frozen)
    assert not any(module.training for module in method.teacher.modules())
    for name, value in method.teacher.state_dict().items():
        assert torch.equal(value, before[name]) and not value.requires_grad


def test_pictures_are_embedded_by_the_teacher_itself_and_captions_at_unit_length() -> None:
    config = tiny()
    method = build(config).double().eval()
    batch = a_batch(config)
    with torch.no_grad():
        image, text = method.encode_image(batch["image"]), method.encode_text(batch["tokens"])
        cls = method.targets(batch)["cls"]
        other = build(tiny()).double().eval()
        for parameter in other.parameters():  # another student, the same pictures
            parameter.add_(0.1)
        assert torch.equal(other.encode_image(batch["image"]), image)
        assert not torch.allclose(other.encode_text(batch["tokens"]), text)
        short = method.encode_text(batch["tokens"][:, :9])
    torch.testing.assert_close(image * cls.norm(dim=1, keepdim=True), cls)
    torch.testing.assert_close(text.norm(dim=1), torch.ones(BATCH, dtype=torch.float64))
    torch.testing.assert_close(short, text)


@pytest.mark.parametrize("kind", ["mse", "cosine", "contrastive"])
def test_one_caption_with_two_pictures_the_optimum_of_each_target(kind: str) -> None:
    """Pictures at +-60 degrees fit the caption, one at 0 does not; the student is the head's bias alone."""
    config = tiny({"options.target": kind})
    method = build(config).double()
    true = torch.tensor([[0.5, 0.75**0.5], [0.5, -(0.75**0.5)]], dtype=torch.float64)
    wrong = torch.tensor([[1.0, 0.0]], dtype=torch.float64)
    cls = torch.cat([true, wrong])
    guess = torch.tensor([-0.3, 0.2], dtype=torch.float64, requires_grad=True)
    fixed = 5 * wrong[0]  # the wrong picture's caption is already right
    method.predict = lambda tokens: torch.stack([guess, guess, fixed])
    batch = {"tokens": torch.zeros(3, 1), "image_id": torch.arange(3)}
    optimiser = torch.optim.Adam([guess], lr=0.05)
    for _ in range(400):
        optimiser.zero_grad()
        method.losses(batch, {"cls": cls}, 0.0)["regression"].backward()
        optimiser.step()
    direction = F.normalize(guess.detach(), dim=0)
    if kind == "mse":  # the conditional mean, half as long as what it averages
        torch.testing.assert_close(guess.detach(), true.mean(0), atol=1e-3, rtol=0)
    side = -1.0 if kind == "contrastive" else 1.0  # away from the wrong picture, or right at it
    torch.testing.assert_close(direction[0].item(), side, atol=1e-3, rtol=0)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"options.target": "l1"}, "must be one of: mse, cosine, contrastive"),
        ({"options.head": "mlp"}, "must be one of: linear, none"),
        ({"options.head": "none"}, "width 96 and the student's 32"),
        ({"options.scale": 200.0}, "must lie in"),
        ({"teacher": "random-text"}, "reads texts; use an image teacher"),
        ({"teacher": ""}, "needs an image teacher"),
    ],
)
def test_bad_settings_are_named(overrides: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build(tiny(overrides))


def test_without_a_head_the_cls_itself_is_compared() -> None:
    method = build(tiny({"options.head": "none", "text.width": 96}))
    assert count_parameters(method) == count_parameters(method.text_encoder)


def test_full_size_seven_layers_are_not_seven_twelfths_of_the_parameters() -> None:
    config = resolve(
        "text_student",
        "full",
        {"teacher": "timm-random:vit_base_patch16_224.dino", "text.start": ""},
    )
    with torch.device("meta"):
        method = build(config)
    embeddings = (30522 + 512 + 2) * 768 + 2 * 768
    layer = 12 * 768**2 + 13 * 768
    assert count_parameters(method.text_encoder) == embeddings + 7 * layer
    assert count_parameters(method, trainable=True) == 7 * layer + 768 * 768 + 768
