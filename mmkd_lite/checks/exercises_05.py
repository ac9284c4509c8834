"""Checkers of notebook 05, teachers."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from mmkd_lite.checks import close, expect, same


def exercise_1(soften: Callable[[Tensor, float], Tensor]) -> None:
    """`soften(logits, temperature)` is the class distribution at a temperature."""
    logits = torch.tensor([[2.0, 0.0, -1.0], [0.5, 0.5, 3.0]])
    close(soften(logits, 1.0), logits.softmax(-1), what="temperature 1")
    close(
        soften(logits, 4.0),
        (logits / 4).softmax(-1),
        what="temperature 4 (divide the logits, then softmax)",
    )
    flat = soften(logits, 1e4)
    expect(
        float((flat - 1 / 3).abs().max()) < 1e-3,
        "a very high temperature should make all classes equal",
    )


def exercise_2(coarse: Callable[[Tensor, Tensor, int], Tensor]) -> None:
    """`coarse(share, group_of_class, groups)` sums subgroup probabilities within each group."""
    share = torch.tensor([[0.4, 0.3, 0.3], [0.1, 0.2, 0.7]])
    group = torch.tensor([0, 1, 1])
    answer = coarse(share, group, 2)
    close(answer, torch.tensor([[0.4, 0.6], [0.1, 0.9]]), what="sum the classes of each group")
    expect(
        int(answer[0].argmax()) == 1,
        "row 0: two small subgroups together outweigh the likeliest one",
    )


def exercise_3(every_second: Callable[[int, int], Sequence[int]]) -> None:
    """`every_second(layers, teacher_layers)` ends with the teacher's last layer."""
    same(list(every_second(3, 6)), [1, 3, 5], what="3 of 6 layers, counted from 0")
    same(list(every_second(6, 12)), [1, 3, 5, 7, 9, 11], what="6 of 12 layers")
