"""Checkers of notebook 36: where attention overtakes, when a smaller model costs more, and 8 bits."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from mmkd_lite.checks import close, expect


def exercise_1(tokens_of_equal_cost: Callable[[int, float], float]) -> None:
    """`tokens_of_equal_cost(D, ratio)` is the T at which attention's two products cost as much as all else."""
    for width, ratio in ((384, 4.0), (512, 4.0), (96, 2.0), (64, 0.0)):
        tokens = float(tokens_of_equal_cost(width, ratio))
        products, rest = 2 * tokens**2 * width, tokens * (4 + 2 * ratio) * width**2
        expect(
            abs(products - rest) < 1e-6 * max(rest, 1),
            f"at width {width}, ratio {ratio:g} and T = {tokens:g} the products need {products:.3g} "
            f"multiply-adds and the matrices {rest:.3g}; set 2 T T D equal to T (4 + 2 ratio) D D",
        )


def exercise_2(pictures_until_equal: Callable[[float, float, float, float, int], float]) -> None:
    """`pictures_until_equal(image_T, image_S, text_T, text_S, texts)` is where total costs meet, or infinity."""
    expect(
        pictures_until_equal(8.0, 9.0, 6.0, 3.0, 10) == 30,
        "each of the 10 texts saves 3, each picture costs 1 more: 30 pictures use the saving up",
    )
    expect(
        pictures_until_equal(9.0, 8.0, 6.0, 3.0, 10) == math.inf,
        "a student that is cheaper on both sides stays cheaper: answer math.inf",
    )
    expect(
        pictures_until_equal(9.0, 9.0, 6.0, 3.0, 10) == math.inf,
        "equal pictures never use the saving up: answer math.inf",
    )
    expect(
        pictures_until_equal(8.0, 9.0, 6.0, 3.0, 0) == 0,
        "without texts there is no saving to use up",
    )
    close(pictures_until_equal(8.8, 9.2, 6.0, 3.0, 80000), 3.0 / 0.4 * 80000, what="pictures")


def exercise_3(round_trip: Callable[[Tensor], Tensor]) -> None:
    """`round_trip(weight)` stores each row of a matrix in signed 8 bits, symmetric about 0, and reads it back."""
    steps = torch.tensor([[-127.0, 0.0, 64.0, 127.0], [0.5, -1.0, 0.25, 0.0]])
    back = round_trip(steps.clone())
    expect(back.dtype == torch.float32, f"read it back as float32, not {back.dtype}")
    close(back[0], steps[0], what="a row that is made of whole steps")
    zero = round_trip(torch.zeros(1, 3))
    expect(bool(torch.isfinite(zero).all()), "a row of zeros has scale 0: do not divide by it")
    close(zero, torch.zeros(1, 3), what="a row of zeros")
    weight = torch.randn(5, 40, generator=torch.Generator().manual_seed(0))
    weight *= torch.tensor([[1e-3], [1.0], [10.0], [1e3], [1.0]])
    back = round_trip(weight.clone())
    scale = weight.abs().amax(dim=1, keepdim=True) / 127
    error = (back - weight).abs() / scale
    expect(
        bool((error <= 0.5 + 1e-3).all()),
        f"off by {float(error.max()):.2f} steps; each row has a scale of its own, round to the nearest step",
    )
    values = max(
        len(torch.unique((row / step).round())) for row, step in zip(back, scale, strict=True)
    )
    expect(
        float(((back / scale) - (back / scale).round()).abs().max()) < 1e-3, "not on whole steps"
    )
    expect(values <= 255, f"a row has {values} different values; 8 bits have no room for them")
