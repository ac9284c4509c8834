"""Checkers of notebook 03: size of a stack, causal attention, who brings the variance."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from mmkd_lite.checks import close, expect
from mmkd_lite.config import TowerConfig
from mmkd_lite.models import Transformer


def exercise_1(answer: Callable[[int, int, str], int]) -> None:
    """Check `parameters(width, layers, norm)` against stacks of the package."""
    for width, layers, norm in ((8, 1, "post"), (8, 1, "pre"), (96, 3, "pre"), (768, 12, "post")):
        with torch.device("meta"):
            stack = Transformer(TowerConfig(width=width, layers=layers, norm=norm))
        right = sum(parameter.numel() for parameter in stack.parameters())
        found = answer(width, layers, norm)
        what = f"width {width}, {layers} layers, {norm}-norm"
        expect(found != right - 2 * width, f"{what}: the LayerNorm at the end is missing")
        expect(found != right + 2 * width, f"{what}: this stack has no LayerNorm at its end")
        expect(found == right, f"{what}: {right:,} parameters, yours {found:,}")


def exercise_2(answer: Callable[[Tensor], Tensor]) -> None:
    """Check `causal_weights(scores)`: rows sum to 1 and nobody looks ahead."""
    scores = torch.randn(5, 5, generator=torch.Generator().manual_seed(0))
    weights = answer(scores)
    expect(weights.shape == (5, 5), "the weights have the shape of the scores, (T, T)")
    expect(bool((weights.triu(1) == 0).all()), "a token looks ahead: above the diagonal must be 0")
    close(weights.sum(dim=1), torch.ones(5), what="sums of the rows (mask before the softmax)")
    for i in range(5):
        right = torch.softmax(scores[i, : i + 1], dim=0)
        close(weights[i, : i + 1], right, what=f"row {i}, a softmax over {i + 1} tokens")


def exercise_3(answer: Callable[[int, float], float]) -> None:
    """Check `share(block, added)`: the block's part of the variance of its output."""
    expect(abs(answer(1, 0.5) - 1.0) > 1e-9, "the input brings variance 1 as well")
    expect(
        abs(answer(1, 0.5) - 0.25 / 1.5) > 1e-9 and abs(answer(1, 0.5) - 0.5 / 1.5) > 1e-9,
        "a block has two sublayers and both add",
    )
    for block, added in ((1, 0.5), (2, 0.5), (32, 0.5), (10, 0.1)):
        right = 2 * added / (1 + 2 * added * block)
        found = answer(block, added)
        expect(
            abs(found - right) < 1e-9,
            f"block {block}, added {added}: {right:.4f}, yours {found:.4f}; variances add up",
        )
