"""The linear probe: scikit-learn's optimum, a search on a validation split, clear errors."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from mmkd_lite.evaluate import linear_probe


def blobs(count: int, width: int = 24, classes: int = 5, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Overlapping classes on badly scaled, shifted and correlated axes."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(classes, width, generator=generator) * 0.6
    mixing = torch.randn(width, width, generator=generator) / width**0.5
    mixing = mixing * torch.logspace(-2, 1, width)
    label = torch.randint(0, classes, (count,), generator=generator)
    noise = torch.randn(count, width, generator=generator)
    return (centres[label] + noise) @ mixing + 3.0, label


def objective(x: Tensor, y: Tensor, weight: Tensor, bias: Tensor, c: float) -> float:
    logits = x.double() @ weight.double().T + bias.double()
    data = c * F.cross_entropy(logits, y, reduction="sum")
    return float(data + 0.5 * weight.double().square().sum())


@pytest.mark.parametrize("c", [1e-3, 1e-1, 10.0])
def test_the_optimum_is_scikit_learns_at_equal_c(c: float) -> None:
    x, y = blobs(900)
    test_x, test_y = blobs(1200)[0][900:], blobs(1200)[1][900:]
    ours = linear_probe(x, y, test_x, test_y, inverse_regularisation=c)
    theirs = LogisticRegression(C=c, max_iter=5000, tol=1e-8).fit(x.double().numpy(), y.numpy())
    reached = objective(x, y, ours.weight, ours.bias, c)
    wanted = objective(x, y, torch.tensor(theirs.coef_), torch.tensor(theirs.intercept_), c)
    assert reached == pytest.approx(wanted, rel=1e-4)
    accuracy = 100 * theirs.score(test_x.double().numpy(), test_y.numpy())
    assert ours.accuracy == pytest.approx(accuracy, abs=0.34)  # one of 300 examples


def test_separable_classes_are_told_apart_and_ids_may_be_any_integers() -> None:
    x = torch.tensor([[0.0], [1.0], [10.0], [11.0]])
    y = torch.tensor([7, 7, -3, -3])
    found = linear_probe(x, y, x, y, inverse_regularisation=100.0)
    assert found.accuracy == 100.0 and found.predictions.tolist() == [7, 7, -3, -3]
    assert found.chance == found.majority == 50.0 and found.classes.tolist() == [-3, 7]


def test_the_search_takes_the_best_c_of_the_validation_split() -> None:
    x, y = blobs(400)
    found = linear_probe(x, y, x, y, path=(1e-6, 1.0))
    assert set(found.validation) == {1e-6, 1.0}
    assert found.inverse_regularisation == 1.0 and found.validation[1.0] > found.validation[1e-6]
    again = linear_probe(x, y, x, y, path=(1e-6, 1.0))
    assert torch.equal(found.weight, again.weight)


def test_the_majority_class_stands_beside_the_accuracy() -> None:
    x, y = blobs(300)
    test_y = torch.tensor([0, 0, 0, 1])
    assert linear_probe(x, y, x[:4], test_y, inverse_regularisation=1.0).majority == 75.0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"train_x": torch.ones(300, 24)}, "train_x is constant"),
        ({"train_x": torch.full((300, 24), float("nan"))}, "NaN or infinite"),
        ({"train_y": torch.zeros(300, dtype=torch.long)}, "at least two classes"),
        ({"test_y": torch.full((300,), 9)}, r"without a training example: \[9\]"),
        ({"test_x": torch.rand(300, 3)}, "24 wide, test_x 3"),
        ({"train_y": torch.rand(300)}, "integer class ids"),
        ({"train_y": torch.zeros(3, dtype=torch.long)}, r"got \(300, 24\) and \(3,\)"),
        ({"inverse_regularisation": 0.0}, "must be a finite number > 0"),
        ({"validation_share": 1.0}, r"must lie in \(0, 1\)"),
    ],
)
def test_bad_input_is_named(change: dict, message: str) -> None:
    x, y = blobs(300)
    with pytest.raises(ValueError, match=message):
        linear_probe(**{"train_x": x, "train_y": y, "test_x": x, "test_y": y, **change})
