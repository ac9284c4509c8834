"""Checkers of notebook 33, text understanding."""

from __future__ import annotations

from collections.abc import Callable, Collection

import numpy as np
import torch
from torch import Tensor

from mmkd_lite.checks import close, expect, same
from mmkd_lite.evaluate.glue import METRICS, batch_averaged


def exercise_1(right_answers: Callable[[float, int, int], Collection[int]]) -> None:
    """`right_answers` lists how many of n answers can have been right, from a printed mean of batch accuracies."""
    found = right_answers(67.64, 277, 16)
    same(sorted(found), [186], "RTE, 67.64 printed, 277 examples in batches of 16")
    guess, truth = np.zeros(20, int), np.zeros(20, int)
    for wrong in ((), (0, 1, 19), (16, 17, 18, 19), tuple(range(20))):
        guess[:] = 0
        guess[list(wrong)] = 1
        printed = round(batch_averaged("accuracy", guess, truth, 8), 2)
        found = right_answers(printed, 20, 8)
        expect(
            20 - len(wrong) in found,
            f"{20 - len(wrong)} of 20 right can print as {printed}, but is not in your answer {sorted(found)}",
        )
    expect(
        not right_answers(67.64, 272, 16), "272 examples in 17 full batches cannot print as 67.64"
    )
    wide = right_answers(56.25, 16, 8)
    same(sorted(wide), [9], "16 examples in two full batches: the mean of batches is the accuracy")


def exercise_2(regression_loss: Callable[[Tensor, Tensor], Tensor]) -> None:
    """`regression_loss` is the mean squared error of head outputs (B, 1) and targets (B,), for any B >= 1."""
    generator = torch.Generator().manual_seed(0)
    for size in (5, 2, 1):
        output = torch.randn(size, 1, generator=generator).requires_grad_()
        target = torch.randint(0, 6, (size,), generator=generator)
        loss = regression_loss(output, target)
        expect(loss.shape == (), f"the loss of a batch of {size} has shape {tuple(loss.shape)}")
        wanted = sum((output[i, 0] - float(target[i])) ** 2 for i in range(size)) / size
        close(loss, wanted, what=f"the loss of a batch of {size}")
        (gradient,) = torch.autograd.grad(loss, output)
        close(gradient[:, 0], 2 * (output[:, 0] - target) / size, what="its gradient")
    try:
        regression_loss(torch.zeros(3, 1), torch.zeros(2))
    except (ValueError, RuntimeError):
        return
    expect(False, "three outputs and two targets must be an error, not a broadcast")


def exercise_3(always_yes: Callable[[float], tuple[float, float, float]]) -> None:
    """`always_yes(q)` is accuracy, F1 and Matthews, in per cent, of saying yes where a share q is yes."""
    for share in (0.5, 0.8, 0.95):
        truth = (np.arange(1000) < 1000 * share).astype(int)
        answer = always_yes(share)
        expect(len(answer) == 3, "give three numbers: accuracy, F1, Matthews")
        for value, name in zip(answer, ("accuracy", "f1", "matthews"), strict=True):
            wanted = METRICS[name](np.ones(1000, int), truth)
            close(value, wanted, what=f"{name} where {share:.0%} are yes", atol=1e-6)
