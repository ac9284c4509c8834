"""Checkers of notebook 18, memory banks."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from mmkd_lite.checks import close, same
from mmkd_lite.models import Bank


def exercise_1(staleness: Callable[[Tensor, Tensor, Tensor], dict[int, float]]) -> None:
    """`staleness` averages the cosine of stored and fresh rows by age, empty slots left out."""
    numbers = torch.randn(2, 5, 3, generator=torch.Generator().manual_seed(0))
    stored, fresh = F.normalize(numbers, dim=-1).unbind()
    age = torch.tensor([2, 2, 1, 0, 1])
    found = staleness(stored, fresh, age)
    same(sorted(found), [1, 2], what="the ages; age 0 marks an empty slot")
    cosine = (stored * fresh).sum(-1)
    expected = [float(cosine[age == a].mean()) for a in (1, 2)]
    close([found[1], found[2]], expected, what="mean cosine by age")


def exercise_2(effective_negatives: Callable[[int, int, float], float]) -> None:
    """`effective_negatives` counts a row of age a as gamma**a, and the batch's own in full."""
    for batch, slots, gamma in ((2, 6, 0.5), (4, 8, 1.0), (3, 9, 0.9), (4, 8, 0.0)):
        bank = Bank(slots, 2)
        for _ in range(slots // batch):
            bank.enqueue(torch.eye(2)[torch.zeros(batch, dtype=torch.int64)], torch.arange(batch))
        expected = batch - 1 + float(bank.bias(gamma).exp().sum())
        what = f"batch {batch}, {slots} slots, gamma {gamma}: the newest row has age 1"
        close(effective_negatives(batch, slots, gamma), expected, what=what)


def exercise_3(mean_age: Callable[[float], float]) -> None:
    """`mean_age` is how old, in steps, the student's weights in a slow copy are on average."""
    for momentum in (0.0, 0.5, 0.9, 0.99):
        shares = [(1 - momentum) * momentum**age for age in range(5000)]
        expected = sum(age * share for age, share in enumerate(shares))
        what = f"m = {momentum}: the weights of age a have the share (1 - m) m**a"
        close(mean_age(momentum), expected, what=what, atol=1e-6)
