"""Checkers of notebook 20, progressive self-distillation."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from mmkd_lite.checks import close, expect


def exercise_1(gradient: Callable[[Tensor, Tensor], Tensor]) -> None:
    """`gradient` is (softmax - target) / B, and zero where the target is the prediction."""
    logits, raw = torch.randn(2, 4, 6, generator=torch.Generator().manual_seed(0)).unbind()
    target, leaf = raw.softmax(-1), logits.clone().requires_grad_()
    (expected,) = torch.autograd.grad(F.cross_entropy(leaf, target), leaf)
    close(gradient(logits, target), expected, what="softmax minus target, divided by the rows")
    found = gradient(logits, logits.softmax(-1))
    close(found, torch.zeros(4, 6), atol=1e-7, what="the prediction as its own target")


def exercise_2(penalty: Callable[[Tensor, float], Tensor]) -> None:
    """`penalty` is minus alpha times the mean entropy of the predictions."""
    undecided, sure = torch.zeros(3, 4), 9.0 * torch.eye(4)[:3]
    expect(
        bool(penalty(undecided, 0.5) < penalty(sure, 0.5)),
        "a sure prediction must cost more than an undecided one: mind the sign",
    )
    close(penalty(undecided, 0.5), -0.5 * torch.tensor(4.0).log(), what="four equal candidates")
    wide = torch.tensor([[300.0, 0.0]])
    expect(bool(torch.isfinite(penalty(wide, 1.0))), "0 * log 0: use log_softmax")


def exercise_3(attention: Callable[[Tensor], Tensor]) -> None:
    """`attention` looks backwards only, so that the first row never changes with the caption."""
    first, second = torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(0)).unbind()
    second = torch.cat([first[:1], second[1:]])  # two captions with one start token
    for tokens in (first, second):
        x = tokens[None]
        expected = F.scaled_dot_product_attention(x, x, x, is_causal=True)[0]
        close(attention(tokens), expected, what="each token sees itself and earlier ones")
    close(attention(first)[0], attention(second)[0], what="row 0 of two captions")
