"""Checkers of notebook 02: a weight without its reduction, a running log-sum-exp, three suspects."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from mmkd_lite.checks import expect

Contrast = Callable[[Tensor, Tensor, Tensor], Tensor]
VERDICTS = ("right", "scale", "direction")


def exercise_1(answer: float) -> None:
    """Check the weight of the squared distance that equals 2000 times the mean over D = 512."""
    expect(abs(answer - 2000 * 512) > 1, "the mean is the smaller number: divide, do not multiply")
    expect(abs(answer - 2000) > 1, "2000 belongs to the mean over the 512 elements, not to the sum")
    expect(
        abs(answer - 2000 / 512) < 0.01, "the squared distance is 512 times the mean over elements"
    )


def exercise_2(answer: Callable[[Sequence[Sequence[float]]], float]) -> None:
    """Check a log-sum-exp that sees its numbers in chunks, one after the other.

    Args:
        answer: `running(chunks)`: chunks of numbers to the log of the sum of their exponentials.
    """
    cases = (
        ([[0.0, 0.0], [0.0]], math.log(3), "three zeros give log 3"),
        ([[1.0], [3.0, 2.0]], 3.4076059644443806, "the order of the chunks must not matter"),
        ([[3.0, 2.0], [1.0]], 3.4076059644443806, "a smaller maximum may follow a larger one"),
        (
            [[1000.0], [1000.0]],
            1000 + math.log(2),
            "exp(1000) overflows: subtract the maximum first",
        ),
        (
            [[-1000.0], [-1000.0]],
            -1000 + math.log(2),
            "exp(-1000) is 0: subtract the maximum first",
        ),
        ([[-math.inf], [2.0]], 2.0, "-inf is an empty slot and adds nothing"),
    )
    for chunks, right, hint in cases:
        found = float(answer(chunks))
        expect(abs(found - right) < 1e-6, f"{hint}; yours for {chunks} is {found}")


def suspects() -> dict[str, Contrast]:
    """Return three symmetric contrasts of (image, text, log_scale); not all of them are right."""
    return {"A": _suspect_a, "B": _suspect_b, "C": _suspect_c}


def _suspect_a(image: Tensor, text: Tensor, log_scale: Tensor) -> Tensor:
    logits = log_scale.exp() * image @ text.T
    own = torch.arange(len(image))
    return (
        F.nll_loss(logits.softmax(1).log(), own) + F.nll_loss(logits.softmax(1).T.log(), own)
    ) / 2


def _suspect_b(image: Tensor, text: Tensor, log_scale: Tensor) -> Tensor:
    logits = log_scale.exp() * image @ text.T
    own = torch.arange(len(image))
    return (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)) / 2


def _suspect_c(image: Tensor, text: Tensor, log_scale: Tensor) -> Tensor:
    logits = log_scale * image @ text.T
    own = torch.arange(len(image))
    return (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)) / 2


def exercise_3(answer: Mapping[str, str]) -> None:
    """Check the verdicts on the three suspects.

    Args:
        answer: Suspect to "right", "scale" (its scale is wrong) or "direction" (one direction is).
    """
    expect(set(answer) == set("ABC"), "answer with a dict that has the keys A, B and C")
    for name, verdict in answer.items():
        expect(verdict in VERDICTS, f"{name}: {verdict!r} is not one of {', '.join(VERDICTS)}")
    expect(answer["C"] == "scale", "C: how does the loss of equal pairs depend on log_scale?")
    expect(answer["A"] == "direction", "A: what happens when you swap image and text?")
    expect(answer["B"] == "right", "B: compare with image_text_contrast")
