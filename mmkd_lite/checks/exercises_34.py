"""Checkers of notebook 34: a line inverted, another axis, and a line that does not know chance."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
from scipy.stats import linregress, norm

from mmkd_lite.checks import close, expect

MODELS = ((30.0, 14.0), (45.0, 27.0), (60.0, 35.0), (75.0, 55.0), (88.0, 71.0))
"""Standard and shifted accuracy of five made-up models, per cent."""


def exercise_1(implied: Callable[[float, float, float], float]) -> None:
    """`implied(shifted, w, c)` is the standard accuracy at which a line in logits reaches a shifted one."""
    close(implied(50.0, 0.8, 0.0), 50.0, what="logit 0 on a line through the origin")
    close(implied(80.0, 1.0, 0.0), 80.0, what="the diagonal")
    got = float(implied(100 / 3, 1.0, -math.log(2)))
    expect(
        abs(got - 50) < 1e-6,
        f"{got:.2f}: the line halves the odds, so shifted odds of 1/2 come from odds of 1; undo c, then w",
    )
    close(implied(6.17, 0.911, -0.481), 7.867, rtol=1e-3, what="DistillCLIP on ImageNetV2")


def exercise_2(
    robustness: Callable[[float, float, Sequence[tuple[float, float]]], float],
) -> None:
    """`robustness(standard, shifted, baselines)` is effective robustness with probits instead of logits."""
    x, y = norm.ppf(np.array(MODELS).T / 100)
    line = linregress(x, y)
    for standard, shifted in ((50.0, 40.0), (8.0, 6.0)):
        expected = shifted - 100 * norm.cdf(line.intercept + line.slope * norm.ppf(standard / 100))
        by_logit = _by_logit(standard, shifted)
        got = float(robustness(standard, shifted, MODELS))
        expect(
            abs(got - by_logit) > 1e-6,
            "that is still the logit's answer; put scipy.stats.norm.ppf in its place, and norm.cdf for the way back",
        )
        close(got, expected, rtol=1e-6, what=f"standard {standard:g}, shifted {shifted:g}")


def _by_logit(standard: float, shifted: float) -> float:
    from mmkd_lite.evaluate import effective_robustness

    return effective_robustness(standard, shifted, MODELS, resamples=1).value


def exercise_3(above_chance: Callable[[float, int], float]) -> None:
    """`above_chance(accuracy, classes)` is the logit of what lies above chance; NaN at or below chance."""
    for classes in (2, 10, 200):
        chance = 100 / classes
        for share in (0.1, 0.5, 0.9):
            accuracy = chance + share * (100 - chance)
            close(
                above_chance(accuracy, classes),
                math.log(share / (1 - share)),
                what=f"{accuracy:.2f} % of {classes} classes",
            )
        for accuracy in (chance, chance / 2):
            expect(
                math.isnan(above_chance(accuracy, classes)),
                f"{accuracy:.2f} % of {classes} classes is not above chance ({chance:.2f} %): answer math.nan",
            )
