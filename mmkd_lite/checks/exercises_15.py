"""Checkers of notebook 15, Transformer SHRe."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from mmkd_lite.checks import close, expect, same
from mmkd_lite.losses import kl_divergence
from mmkd_lite.models import SharedMLP, SharedTransformer


def exercise_1(code_3: Callable[[Tensor, Tensor, Tensor], Tensor]) -> None:
    """`code_3` is half the divergence of the image plus half that of the text, teacher first."""
    teacher, image, text = torch.randn(3, 4, 6, generator=torch.Generator().manual_seed(0)).unbind()
    expected = kl_divergence(image, teacher) / 2 + kl_divergence(text, teacher) / 2
    answer = code_3(teacher, image, text)
    expect(
        bool(torch.isfinite(answer)),
        "NaN or infinite: the prediction must be log-probabilities, and come first",
    )
    close(
        answer,
        expected,
        what="sum over classes, mean over the batch ('batchmean'), KL(teacher || student)",
    )
    close(code_3(teacher, teacher, teacher), 0.0, atol=1e-6, what="a perfect student")


def exercise_2(within: Callable[[Tensor, Tensor], float]) -> None:
    """`within` scores a query among the captions of its own group only."""
    scores = torch.tensor([[0.9, 0.2, 1.0], [0.8, 0.7, 0.0], [0.0, 0.0, 0.1]])
    same(
        within(scores, torch.tensor([0, 0, 1])),
        50.0,
        what="row 0 is right in its group, row 1 is not",
    )
    same(
        within(torch.ones(4, 4), torch.tensor([0, 0, 1, 1])),
        0.0,
        what="ties count against the query",
    )


def exercise_3(shared_parameters: Callable[[int, int], tuple[int, int]]) -> None:
    """`shared_parameters` counts the shared MLP, and the shared block with its LayerNorm and linear head."""

    def count(*modules: nn.Module) -> int:
        return sum(p.numel() for module in modules for p in module.parameters())

    for width, classes in ((8, 5), (48, 10)):
        block = count(SharedTransformer(width, 2), nn.LayerNorm(width), nn.Linear(width, classes))
        mlp, transformer = shared_parameters(width, classes)
        same(
            mlp,
            count(SharedMLP(width, 4 * width, classes)),
            what="the MLP: three linear layers, two LayerNorms",
        )
        same(transformer, block, what="the block: 12 D^2 + 13 D, plus LayerNorm and linear head")
