"""Linear probe: multinomial logistic regression on frozen embeddings, with its regularisation chosen."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

Vectors = Tensor | np.ndarray
PATH = tuple(10.0**power for power in np.arange(-3.0, 3.01, 0.5))
"""Inverse strengths C that the search tries, weakest model first: 13 points from 1e-3 to 1,000."""


@dataclass(frozen=True)
class ProbeResult:
    """What `linear_probe` found.

    Attributes:
        accuracy: Top-1 on the test set, in per cent.
        inverse_regularisation: The C that was used.
        validation: C -> top-1 on the validation split, in per cent; empty where C was given.
        chance: 100 / number of classes, in per cent.
        majority: Accuracy of always naming the test set's commonest class, in per cent.
        predictions: (N,) predicted class ids.
        weight: (C, D) and `bias` (C,) of the classifier on the raw features; rows follow `classes`.
        bias: See `weight`.
        classes: (C,) class ids that occur in training.
    """

    accuracy: float
    inverse_regularisation: float
    validation: dict[float, float]
    chance: float
    majority: float
    predictions: Tensor
    weight: Tensor
    bias: Tensor
    classes: Tensor


def linear_probe(
    train_x: Vectors,
    train_y: Vectors,
    test_x: Vectors,
    test_y: Vectors,
    *,
    inverse_regularisation: float | None = None,
    path: Sequence[float] = PATH,
    validation_share: float = 0.2,
    seed: int = 0,
) -> ProbeResult:
    r"""Fit a linear classifier on frozen features and score it.

    .. math:: \min_{W, b}\; C \sum_{i=1}^{N} -\log \mathrm{softmax}(W x_i + b)_{y_i} + \tfrac12 \|W\|^2

    C is searched on a split of the training set, from strong to weak regularisation with each fit
    starting from the last one, and the winner (the smallest at a tie) is fitted again on all of it.

    Args:
        train_x: (N, D) features; nothing is normalised here.
        train_y: (N,) integer class ids.
        test_x: (M, D).
        test_y: (M,) class ids, all of which must occur in `train_y`.
        inverse_regularisation: C > 0; None searches `path`.
        path: Values of C to try.
        validation_share: Share of the training set that is held out by the search, in (0, 1).
        seed: Of that split.

    Raises:
        ValueError: Shapes that do not fit, features that are constant or not finite, fewer than two
            classes, test classes without a training example, C or the share out of range.

    Source: seed 003, section 3.3.1; objective as in scikit-learn. Derived in notebooks/32_probe_and_finetune.ipynb.
    """
    x, y, held_x, held_y, classes = _checked(train_x, train_y, test_x, test_y)
    curve: dict[float, float] = {}
    chosen = inverse_regularisation
    if chosen is None:
        curve = _search(x, y, len(classes), sorted(path), validation_share, seed)
        chosen = max(curve, key=lambda c: (curve[c], -c))
    if not 0 < chosen < float("inf"):
        raise ValueError(f"inverse_regularisation={chosen} must be a finite number > 0")
    solver = _Solver(x, y, len(classes))
    weight, bias = solver.fit(chosen)
    predicted = (held_x @ weight.T + bias).argmax(dim=1)
    return ProbeResult(
        accuracy=100 * float((predicted == held_y).double().mean()),
        inverse_regularisation=float(chosen),
        validation=curve,
        chance=100 / len(classes),
        majority=100 * float(torch.bincount(held_y).max()) / len(held_y),
        predictions=classes[predicted.cpu()],
        weight=weight.cpu(),
        bias=bias.cpu(),
        classes=classes,
    )


def _search(
    x: Tensor, y: Tensor, classes: int, path: Sequence[float], share: float, seed: int
) -> dict[float, float]:
    """Return C -> validation accuracy; the path is walked from strong to weak regularisation."""
    if not 0.0 < share < 1.0 or not path or min(path) <= 0:
        raise ValueError(f"validation_share={share} must lie in (0, 1) and every C above 0")
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed)).to(x.device)
    held = max(1, round(share * len(x)))
    test, rest = order[:held], order[held:]
    if not len(rest):
        raise ValueError(f"{len(x)} examples are too few for a validation split; pass C")
    solver = _Solver(x[rest], y[rest], classes)
    curve = {}
    for c in path:
        weight, bias = solver.fit(c)
        right = (x[test] @ weight.T + bias).argmax(dim=1) == y[test]
        curve[float(c)] = 100 * float(right.double().mean())
    return curve


class _Solver:
    """L-BFGS in coordinates in which the problem is round.

    Centring is absorbed by the intercept and a rotation to principal axes leaves the penalty as it
    is; along axis j, with variance v_j, the curvature is about C N v_j / K + 1. Dividing the
    coordinate by its square root makes all curvatures alike. The optimum stays that of the raw problem.
    """

    def __init__(self, x: Tensor, y: Tensor, classes: int) -> None:
        self.mean = x.mean(dim=0)
        centred = x - self.mean
        variance, self.axes = torch.linalg.eigh((centred.T @ centred / len(x)).double())
        self.axes = self.axes.to(x)  # (D, D), columns are the principal axes
        self.variance = variance.clamp_min(0).to(x)
        self.rotated, self.y, self.classes = centred @ self.axes, y, classes
        self.start = x.new_zeros(classes, x.shape[1] + 1)  # of the last fit, in rotated coordinates

    def fit(self, c: float, iterations: int = 300) -> tuple[Tensor, Tensor]:
        """Return weight (K, D) and bias (K,) for raw features, starting from the last fit."""
        scale = (c * len(self.y) * self.variance / self.classes + 1).rsqrt()  # (D,)
        bias_scale = (c * len(self.y) / self.classes + 1) ** -0.5
        unit = torch.cat([scale, scale.new_tensor([bias_scale])])
        scaled = torch.cat([self.rotated, self.rotated.new_ones(len(self.y), 1)], dim=1) * unit
        solution = (self.start / unit).requires_grad_()
        optimizer = torch.optim.LBFGS(
            [solution],
            max_iter=iterations,
            history_size=10,
            tolerance_grad=1e-5 * max(1.0, c) ** 0.5,
            tolerance_change=1e-9,
            line_search_fn="strong_wolfe",
        )

        def closure() -> Tensor:
            optimizer.zero_grad()
            data = c * F.cross_entropy(scaled @ solution.T, self.y, reduction="sum")
            loss = data + 0.5 * (solution[:, :-1] * scale).square().sum()
            loss.backward()
            return loss

        optimizer.step(closure)
        self.start = solution.detach() * unit
        weight = self.start[:, :-1] @ self.axes.T
        return weight, self.start[:, -1] - weight @ self.mean


def _checked(
    train_x: Vectors, train_y: Vectors, test_x: Vectors, test_y: Vectors
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return features and labels as tensors, labels renumbered to 0..K-1, and the class ids."""
    x, held_x = torch.as_tensor(train_x).float(), torch.as_tensor(test_x).float()
    y, held_y = torch.as_tensor(train_y), torch.as_tensor(test_y)
    for features, labels, name in ((x, y, "train"), (held_x, held_y, "test")):
        if features.ndim != 2 or labels.shape != features.shape[:1] or not len(labels):
            raise ValueError(
                f"{name}_x must be (N, D) and {name}_y (N,), N >= 1; got "
                f"{tuple(features.shape)} and {tuple(labels.shape)}"
            )
        if labels.is_floating_point():
            raise ValueError(f"{name}_y must hold integer class ids, got {labels.dtype}")
        if not bool(torch.isfinite(features).all()):
            raise ValueError(f"{name}_x holds NaN or infinite features")
    if x.shape[1] != held_x.shape[1]:
        raise ValueError(f"train_x is {x.shape[1]} wide, test_x {held_x.shape[1]}")
    if float((x - x[:1]).abs().max()) == 0:
        raise ValueError("train_x is constant: every example has the same features")
    classes = torch.unique(y.cpu())
    if len(classes) < 2:
        raise ValueError(f"a probe needs at least two classes, train_y holds {len(classes)}")
    unseen = sorted(set(held_y.tolist()) - set(classes.tolist()))
    if unseen:
        raise ValueError(f"test classes without a training example: {unseen[:10]}")
    number = {int(label): place for place, label in enumerate(classes.tolist())}
    renumbered = [torch.tensor([number[int(v)] for v in part.tolist()]) for part in (y, held_y)]
    return x, renumbered[0].to(x.device), held_x, renumbered[1].to(x.device), classes
