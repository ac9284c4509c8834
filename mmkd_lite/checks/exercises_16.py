"""Checkers of notebook 16, S-SMKE."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from mmkd_lite.checks import close, expect
from mmkd_lite.losses import info_nce


def exercise_1(caption_floor: Callable[[Tensor, Tensor], Tensor]) -> None:
    """`caption_floor` is the least mean squared error of a caption tower, from targets (N, D) and captions (N,)."""
    own = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))
    close(caption_floor(own, torch.arange(5)), 0.0, what="a caption a picture leaves no error")
    toy = torch.tensor([[1.0, 0.5], [1.0, -0.5], [-1.0, 0.5], [-1.0, -0.5]])
    close(caption_floor(toy, torch.tensor([0, 0, 1, 1])), 0.125, what="the toy of section 1")
    targets = torch.randn(7, 3, generator=torch.Generator().manual_seed(1))
    caption = torch.tensor([4, 0, 4, 9, 0, 4, 4])
    errors = [
        (targets[i] - targets[caption == caption[i]].mean(0)).square().sum() for i in range(7)
    ]
    answer = caption_floor(targets, caption)
    close(answer, sum(errors) / 21, what="the mean over all N x D entries, groups of unequal size")


def exercise_2(find_target: Callable[[Tensor, Tensor, float, Tensor, Tensor], Tensor]) -> None:
    """`find_target` is the contrastive target with a bank (G, D) of which only `filled` (G,) slots count."""
    generator = torch.Generator().manual_seed(2)
    predicted, target = torch.randn(2, 4, 5, generator=generator).unbind()
    rows = F.normalize(torch.randn(6, 5, generator=generator), dim=-1)
    units = F.normalize(predicted, dim=-1), F.normalize(target, dim=-1)
    for count in (6, 2, 0):
        filled = torch.arange(6) < count
        bank = torch.where(filled[:, None], rows, torch.zeros_like(rows))
        bias = torch.zeros(6).masked_fill(~filled, -torch.inf)
        expected = info_nce(*units, 7.0, bank=bank, bank_bias=bias)
        answer = find_target(predicted, target, 7.0, bank, filled)
        expect(
            bool(torch.isfinite(answer)),
            "not finite: mask the logits of empty slots, not the whole row",
        )
        close(answer, expected, what=f"B x (B + G) logits, {count} of 6 slots filled")


def exercise_3(agreement: Callable[[Sequence[float], Sequence[float]], float]) -> None:
    """`agreement` is the share of pairs that two lists put in the same order; a tie in either counts half."""
    cases = (
        ([1.0, 2.0, 3.0], [10.0, 20.0, 30.0], 1.0),
        ([1.0, 2.0, 3.0], [3.0, 2.0, 1.0], 0.0),
        ([1.0, 2.0, 3.0, 4.0], [2.0, 1.0, 3.0, 4.0], 5 / 6),
        ([1.0, 1.0, 2.0], [5.0, 6.0, 7.0], 5 / 6),
    )
    for teacher, student, expected in cases:
        answer = agreement(teacher, student)
        close(answer, expected, what=f"the share of {teacher} and {student}")
