"""Weights, checks and the frozen teacher."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parent))

from toy_training import Switches, ToyMethod, ToyPairs, toy_config

from mmkd_lite.distiller import Distiller, check_batch

QUIET = Switches(dropout=0.0, noise=False)


@pytest.fixture(autouse=True)
def no_scale_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MMKD_SCALE", raising=False)


def toy(**weights: float) -> Distiller:
    return Distiller(ToyMethod(toy_config(""), QUIET), weights).train()


def gradient(distiller: Distiller) -> Tensor:
    loss, _ = distiller(ToyPairs().batch(0, 8), 0.0)
    distiller.zero_grad()
    loss.backward()
    return distiller.method.image.weight.grad.clone()


def test_terms_are_weighted_and_summed() -> None:
    loss, terms = toy(contrast=2.0, regression=0.25).step_loss(ToyPairs().batch(0, 8), 0.0)
    expected = 2.0 * terms["contrast"] + 0.25 * terms["regression"]
    torch.testing.assert_close(loss.detach(), expected)
    assert loss.requires_grad and not any(term.requires_grad for term in terms.values())


def test_gradient_is_linear_in_the_weights() -> None:
    one = gradient(toy(contrast=1.0, regression=0.0))
    other = gradient(toy(contrast=0.0, regression=1.0))
    both = gradient(toy(contrast=0.7, regression=3.0))
    assert one.abs().max() > 0 and other.abs().max() > 0
    torch.testing.assert_close(both, 0.7 * one + 3.0 * other)


def test_a_term_of_weight_zero_is_reported_but_not_in_the_graph() -> None:
    distiller = toy(contrast=0.0, regression=1.0)
    loss, terms = distiller(ToyPairs().batch(0, 8), 0.0)
    assert terms["contrast"] > 0
    loss.backward()
    assert distiller.method.text.weight.grad is None  # only the contrast reads the text tower
    assert distiller.method.image.weight.grad is not None


def test_a_term_of_weight_zero_may_be_infinite() -> None:
    distiller = Distiller(
        ToyMethod(toy_config(""), Switches(dropout=0.0, noise=False, nan_at=0)),
        {"contrast": 1.0, "regression": 0.0},
    )
    loss, terms = distiller(ToyPairs().batch(0, 8), 0.0)
    assert torch.isfinite(loss) and torch.isnan(terms["regression"])


def test_terms_without_a_weight_count_once() -> None:
    loss, terms = toy().step_loss(ToyPairs().batch(0, 8), 0.0)
    torch.testing.assert_close(loss.detach(), terms["contrast"] + terms["regression"])


def test_unknown_weights_are_refused_with_the_known_names() -> None:
    with pytest.raises(ValueError, match=r"typo; ToyMethod has: contrast, regression"):
        toy(typo=1.0).step_loss(ToyPairs().batch(0, 8), 0.0)


@pytest.mark.parametrize("weights", [{"contrast": float("nan")}, {"contrast": 0.0}])
def test_weights_that_train_nothing_are_refused(weights: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="contrast"):
        toy(**weights)


@pytest.mark.parametrize(
    ("terms", "message"),
    [
        ({"pixels": torch.ones(3, requires_grad=True)}, r"'pixels' must be one number.*\(3,\)"),
        ({"loss": torch.ones((), requires_grad=True)}, "other names than loss"),
        ({"pixels": torch.ones(())}, "no trainable parameter influences pixels"),
    ],
)
def test_unusable_terms_are_refused(
    terms: dict[str, Tensor], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    distiller = toy()
    monkeypatch.setattr(distiller.method, "losses", lambda *arguments: terms)
    with pytest.raises(ValueError, match=message):
        distiller(ToyPairs().batch(0, 8), 0.0)


def test_batches_of_unequal_or_zero_size_are_refused() -> None:
    batch = ToyPairs().batch(0, 8)
    check_batch(batch)
    with pytest.raises(ValueError, match="'tokens': 7"):
        toy()({**batch, "tokens": batch["tokens"][:7]}, 0.0)
    with pytest.raises(ValueError, match="non-zero"):
        check_batch({name: tensor[:0] for name, tensor in batch.items()})
    with pytest.raises(ValueError, match="first dimension"):
        check_batch({"image": torch.ones(())})


def test_teacher_stays_in_eval_mode_and_without_gradient() -> None:
    distiller = toy(contrast=1.0)
    method = distiller.method
    before = {name: value.clone() for name, value in method.teacher.state_dict().items()}
    for _ in range(2):
        method.teacher.train()  # somebody's mistake
        distiller.train()
        distiller(ToyPairs().batch(0, 8), 0.5)[0].backward()
    assert method.teacher_modes == [False, False]
    assert [number for name, number in method.calls if name == "targets"] == [0.0, 0.0]
    assert method.training
    assert all(parameter.grad is None for parameter in method.teacher.parameters())
    for name, value in method.teacher.state_dict().items():  # BatchNorm's statistics included
        assert torch.equal(value, before[name]), name
    owned = {id(parameter) for parameter in distiller.parameters()}
    assert not owned & {id(parameter) for parameter in method.teacher.parameters()}
    assert not any("teacher" in name or "layers" in name for name in distiller.state_dict())


def test_a_method_without_a_teacher_works() -> None:
    method = ToyMethod(toy_config(""), QUIET)
    method.targets = lambda batch: {"vector": torch.zeros(8, 8)}
    object.__setattr__(method, "teacher", None)
    loss, _ = Distiller(method, {}).train()(ToyPairs().batch(0, 8), 0.0)
    assert isinstance(method, nn.Module) and loss.requires_grad
