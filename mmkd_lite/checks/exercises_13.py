"""Checkers of notebook 13, separate and shared layers."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from mmkd_lite.checks import close, expect, same
from mmkd_lite.models import seeded
from mmkd_lite.models.transformer import MultiHeadAttention, PreNormBlock


def exercise_1(one_token: Callable[[MultiHeadAttention], tuple[Tensor, Tensor]]) -> None:
    """`one_token` returns (D, D) and (D,): what attention does to a sequence of a single token."""
    for width, heads in ((8, 2), (12, 3)):
        with seeded(width):
            attention = MultiHeadAttention(width, heads)
            torch.nn.init.normal_(attention.query_key_value.bias)
            torch.nn.init.normal_(attention.output.bias)
            token = torch.randn(5, width)
        matrix, offset = one_token(attention)
        expect(matrix.shape == (width, width), f"the matrix must be ({width}, {width})")
        answer = token @ matrix.T + offset
        hint = "softmax over one score is 1: only the value's rows of query_key_value remain"
        close(answer, attention(token[:, None])[:, 0], what=hint)


def exercise_2(added_parameters: Callable[[int, int, int], int]) -> None:
    """`added_parameters(width, own, shared)` counts `own` more layers a tower and `shared` more shared ones."""
    for width, own, shared in ((8, 1, 0), (8, 0, 1), (12, 2, 3)):
        block = PreNormBlock(width, 2, 4 * width, 1e-6, 0.0)
        layer = sum(p.numel() for p in block.parameters())
        what = "12 D^2 + 13 D a layer; a separate layer is there twice"
        same(added_parameters(width, own, shared), (2 * own + shared) * layer, what=what)


def exercise_3(cosine_gap: Callable[[Tensor, Tensor], float]) -> None:
    """`cosine_gap` is the mean cosine of matching rows minus that of all other pairs."""
    generator = torch.Generator().manual_seed(0)
    image, text = torch.randn(2, 6, 4, generator=generator).unbind()
    text = text + 1  # off centre: other pairs are not at 0
    cosine = F.cosine_similarity(image[:, None], text[None], dim=-1)
    other = cosine[~torch.eye(6, dtype=torch.bool)]
    close(cosine_gap(image, text), cosine.diagonal().mean() - other.mean(), what="the gap")
    close(
        cosine_gap(5 * image, text / 3),
        cosine_gap(image, text),
        what="lengths must not matter: normalise first",
    )
