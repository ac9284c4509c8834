"""Checkers of notebook 01: sizes of a patch sequence, `unpatchify`, folding the position of [CLS]."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from mmkd_lite.checks import close, expect, same
from mmkd_lite.config import TowerConfig
from mmkd_lite.models import ImageEncoder, patchify


def exercise_1(answer: Callable[[int, int, int, int], tuple[int, int, int]]) -> None:
    """Check `sizes(height, width, patch, dimension)`.

    Args:
        answer: Returns the length of the sequence with [I_CLS], the numbers in a colour patch, and
            the parameters of projection, [I_CLS] and learned positions.
    """
    length, numbers, parameters = answer(224, 224, 16, 768)
    expect(length != 196, "count [I_CLS] too")
    expect(numbers != 256, "a pixel has three colours")
    expect((length, numbers) == (197, 768), "ViT-B/16 has 196 patches of 768 numbers, and [I_CLS]")
    config = TowerConfig(width=768, layers=1, heads=12, patch=16)
    with torch.device("meta"):
        encoder = ImageEncoder(config, image_size=224)
    right = sum(p.numel() for name, p in encoder.named_parameters() if "transformer" not in name)
    expect(parameters != right - 768, "a bias, or the [I_CLS], or its position is missing")
    expect(parameters == right, f"parameters: {right} for ViT-B/16, yours {parameters}")
    expect(
        tuple(answer(32, 48, 8, 10)) == (25, 192, 192 * 10 + 10 + 10 + 250),
        "try a picture that is not square: 32 x 48 pixels, patch 8, 10 dimensions",
    )


def exercise_2(answer: Callable[[Tensor, int, int, int], Tensor]) -> None:
    """Check `unpatchify(patches, patch, height, width)`, the inverse of `patchify`."""
    square = torch.arange(2.0 * 3 * 8 * 8).reshape(2, 3, 8, 8)
    same(answer(patchify(square, 4), 4, 8, 8), square, "a square picture")
    wide = torch.arange(2.0 * 3 * 4 * 12).reshape(2, 3, 4, 12)
    same(answer(patchify(wide, 2), 2, 4, 12), wide, "a picture of 4 x 12 pixels")


def exercise_3(answer: Callable[[Tensor, Tensor, int], tuple[Tensor, Tensor]]) -> None:
    """Check `fold(words, positions, cls_id)`: the same H_0 without a position for [CLS]."""
    generator = torch.Generator().manual_seed(0)
    words = torch.randn(9, 4, generator=generator)
    positions = torch.randn(6, 4, generator=generator)
    before, cls_id = words.clone(), 2
    tokens = torch.tensor([[cls_id, 5, 7, 8, 5, 3], [cls_id, 4, 4, 6, 3, 0]])
    new_words, new_positions = answer(words, positions, cls_id)
    same(words, before, "the given words must stay as they are (clone them)")
    expect(tuple(new_positions.shape) == (5, 4), "the new table has no row for [CLS]")
    zero = torch.zeros(1, 4)
    close(
        new_words[tokens] + torch.cat([zero, new_positions]),
        words[tokens] + positions,
        what="H_0 of two captions",
    )
