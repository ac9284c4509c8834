"""Checkers of notebook 11, a text student of a frozen image teacher."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from mmkd_lite.checks import close, expect
from mmkd_lite.losses import cosine_distance


def _numbers(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def exercise_1(optimum: Callable[[Tensor, Tensor], Any]) -> None:
    """`optimum(vectors, truth)` gives every caption's best prediction (T, D) and the loss it leaves (T,)."""
    vectors = _numbers(6, 4)
    truth = torch.tensor([[1, 1, 0, 0, 0, 0], [0, 0, 1, 0, 0, 0], [1, 0, 1, 1, 0, 1]]).bool()
    best, left = optimum(vectors, truth)
    for row, true in enumerate(truth):
        own = vectors[true]
        close(best[row], own.mean(0), what=f"caption {row}: the mean of its {len(own)} pictures")
        spread = (own - own.mean(0)).square().mean()
        close(left[row], spread, atol=1e-12, what=f"caption {row}: mean over pictures and elements")
    expect(float(left[1]) < 1e-12, "a caption with one picture can be met exactly")


def exercise_2(cosine_gradient: Callable[[Tensor, Tensor], Tensor]) -> None:
    """`cosine_gradient(prediction, target)` is the derivative of the cosine distance by the prediction."""
    prediction, target = 3 * _numbers(5, 4), _numbers(5, 4, seed=1)
    leaf = prediction.clone().requires_grad_()
    (expected,) = torch.autograd.grad(cosine_distance(leaf, target), leaf)
    answer = cosine_gradient(prediction, target)
    expect(
        (answer * prediction).sum(1).abs().max() < 1e-9,
        "it stands at a right angle to the prediction: the cosine says nothing about lengths",
    )
    close(answer, expected, what="divide by the length of the prediction and by B")


def exercise_3(best_length: Callable[[Tensor, Tensor], Any]) -> None:
    """`best_length(direction, targets)`: how long the vector along `direction` must be for the least MSE."""
    direction, targets = F.normalize(_numbers(4), dim=0), _numbers(7, 4, seed=1) + 1
    answer = float(best_length(direction, targets))
    close(answer, (targets @ direction).mean(), what="the mean of the targets' projections")
    apart = torch.stack([direction, -direction])
    close(float(best_length(direction, apart)), 0.0, atol=1e-12, what="two opposite targets")
    close(float(best_length(direction, 5 * direction[None])), 5.0, what="one target")
