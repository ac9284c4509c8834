r"""Effective robustness: how far a model lies above the line that standard-trained models follow under a shift.

Accuracies of many models on a standard and on a shifted test set lie close to a straight line once both are
turned into logits. All accuracies here are per cent, strictly between 0 and 100.

Derived in notebooks/34_distribution_shift.ipynb.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike

from mmkd_lite.evaluate.recall import recall_interval
from mmkd_lite.evaluate.zero_shot import class_subset, first_alone

Span = tuple[float, float]


@dataclass(frozen=True)
class LogitFit:
    r"""A line in logit space: logit(shifted) = slope * logit(standard) + intercept.

    Attributes:
        slope: w.
        intercept: c.
        low: Lowest standard accuracy that was fitted, per cent.
        high: Highest.
        n: Number of models fitted.
    """

    slope: float
    intercept: float
    low: float
    high: float
    n: int

    def predict(self, standard: float) -> float:
        """Return the shifted accuracy expected of a standard model, in per cent."""
        return expit(self.slope * logit(standard) + self.intercept)

    def invert(self, shifted: float) -> float:
        """Return the standard accuracy at which the line reaches a shifted accuracy, in per cent.

        Raises:
            ValueError: The line does not rise.
        """
        if self.slope <= 0:
            raise ValueError(
                f"the line falls or is flat (slope {self.slope:.3g}): a shifted accuracy does not tell the "
                "standard one. Are the baselines at floor on the shifted set?"
            )
        return expit((logit(shifted) - self.intercept) / self.slope)

    def covers(self, standard: float) -> bool:
        """Tell whether a standard accuracy lies between those that were fitted."""
        return self.low <= standard <= self.high


@dataclass(frozen=True)
class KneeFit:
    """Two lines that meet, or fail to, at a knee: for a test set that was selected against one model.

    Attributes:
        knee: Standard accuracy of that model, per cent; from there on `above` counts.
        below: Line of weaker models.
        above: Line of stronger models.
    """

    knee: float
    below: LogitFit
    above: LogitFit

    def predict(self, standard: float) -> float:
        """Return the shifted accuracy expected of a standard model, in per cent."""
        return (self.above if standard >= self.knee else self.below).predict(standard)

    def invert(self, shifted: float) -> float:
        """Return the standard accuracy that reaches a shifted accuracy; the knee for values in the gap."""
        if (weaker := self.below.invert(shifted)) < self.knee:
            return weaker
        return max(self.above.invert(shifted), self.knee)

    def covers(self, standard: float) -> bool:
        """Tell whether a standard accuracy lies between those that were fitted."""
        return self.below.covers(standard) or self.above.covers(standard)


PUBLISHED_FITS: dict[str, LogitFit | KneeFit] = {
    "imagenet_v2": LogitFit(0.911, -0.481, 56.6, 83.4, 47),
    "imagenet_a": KneeFit(
        91.86, LogitFit(0.689, -5.140, 76.2, 91.7, 23), LogitFit(2.956, -10.277, 92.3, 96.3, 23)
    ),
}
"""Third-party lines through convolutional networks trained on ImageNet-1k alone, in the manner of Taori et al. 2020.

From github.com/TrungDavidNguyen/RSA_EffectiveRobustness; ranges and counts are those of its table of accuracies,
kept in `data/results/published_robustness.json`. ImageNetV2 (matched frequency) has ImageNet accuracy as its standard
axis; ImageNet-A accuracy on its own 200 classes, with a knee at ResNet-50, the model it was selected against.
"""

Baselines = Sequence[Span] | np.ndarray | LogitFit | KneeFit


@dataclass(frozen=True)
class FromLine:
    """A number read off a line, in per cent.

    Attributes:
        value: The number.
        low: Lower end of its interval over baselines; NaN for a published line or fewer than 3 baselines.
        high: Upper end.
        fit: The line.
        extrapolated: The standard accuracy lies outside the fitted range.
    """

    value: float
    low: float
    high: float
    fit: LogitFit | KneeFit
    extrapolated: bool

    def text(self) -> str:
        """Spell value, interval, and a warning where the line is extrapolated."""
        ends = "" if math.isnan(self.low) else f" [{self.low:.1f}, {self.high:.1f}]"
        return f"{self.value:.1f}{ends}" + (f" ({self.warning})" if self.extrapolated else "")

    @property
    def warning(self) -> str:
        """Say which standard accuracies were fitted if this one was not among them, else nothing."""
        parts = [self.fit] if isinstance(self.fit, LogitFit) else [self.fit.below, self.fit.above]
        spans = " and ".join(f"{part.low:.1f} to {part.high:.1f}" for part in parts)
        return f"extrapolated, fitted {spans} %" if self.extrapolated else ""


@dataclass(frozen=True)
class EffectiveRobustness(FromLine):
    """Points above the line.

    Attributes:
        standard: Accuracy on the standard set.
        shifted: Accuracy on the shifted set.
        expected: What the line says of a standard model of that standard accuracy.
    """

    standard: float
    shifted: float
    expected: float


def effective_robustness(
    standard: float,
    shifted: float,
    baselines: Baselines,
    *,
    level: float = 0.95,
    resamples: int = 1000,
    seed: int = 0,
) -> EffectiveRobustness:
    r"""Return a model's shifted accuracy minus what standard-trained models of its standard accuracy get.

    .. math:: \rho = a_{shift} - \beta(a_{std}), \qquad
              \mathrm{logit}\,\beta(a) = w \,\mathrm{logit}\,a + c

    with w, c by least squares over the baselines. The interval is a percentile bootstrap over baselines: it holds
    the doubt about the line, not that about the model's own two accuracies.

    Args:
        standard: Accuracy on the standard set, per cent.
        shifted: Accuracy on the shifted set, over the same classes.
        baselines: (standard, shifted) of each standard-trained model, per cent; or a line, as of `PUBLISHED_FITS`.
        level: Coverage of the interval, in (0, 1).
        resamples: Of the bootstrap.
        seed: Of the bootstrap.

    Raises:
        ValueError: Accuracies that are NaN or not strictly between 0 and 100, fewer baselines than the two
            parameters of a line, or all with the same standard accuracy.

    Source: Taori et al. 2020; E003-18. Derived in notebooks/34_distribution_shift.ipynb.
    """
    fit, slopes, intercepts = _lines(baselines, resamples, seed)
    _check(shifted, "the shifted accuracy")
    expected = fit.predict(standard)
    drawn = shifted - _expit(slopes * logit(standard) + intercepts)
    low, high = _ends(drawn, drawn, level)
    return EffectiveRobustness(
        shifted - expected, low, high, fit, not fit.covers(standard), standard, shifted, expected
    )


def implied_standard(
    shifted: float,
    baselines: Baselines,
    *,
    level: float = 0.95,
    resamples: int = 1000,
    seed: int = 0,
) -> FromLine:
    r"""Return the standard accuracy of a standard-trained model that reaches a shifted accuracy.

    .. math:: \beta^{-1}(a) = \mathrm{expit}\big((\mathrm{logit}\,a - c) / w\big)

    A model with this standard accuracy has effective robustness 0; with less it is robust, with more it is not.
    A bootstrapped line that does not rise allows any standard accuracy.

    Args:
        shifted: Accuracy on the shifted set, per cent.
        baselines: As for `effective_robustness`.
        level: Coverage of the interval, in (0, 1).
        resamples: Of the bootstrap.
        seed: Of the bootstrap.

    Raises:
        ValueError: As `effective_robustness`, or a line that does not rise.

    Source: E003-18. Derived in notebooks/34_distribution_shift.ipynb.
    """
    fit, slopes, intercepts = _lines(baselines, resamples, seed)
    value = fit.invert(shifted)
    rises = slopes > 0
    drawn = _expit((logit(shifted) - intercepts) / np.where(rises, slopes, 1.0))
    low, high = _ends(np.where(rises, drawn, 0.0), np.where(rises, drawn, 100.0), level)
    return FromLine(value, low, high, fit, not fit.covers(value))


def logit_fit(standard: ArrayLike, shifted: ArrayLike) -> LogitFit:
    """Fit a line through the logits of two accuracies of each model.

    Args:
        standard: (M,) accuracies on the standard set, per cent.
        shifted: (M,) accuracies of the same models on the shifted set.

    Raises:
        ValueError: As `effective_robustness`, or different numbers of accuracies.
    """
    x, y = (np.asarray(values, dtype=float).reshape(-1) for values in (standard, shifted))
    if x.shape != y.shape:
        raise ValueError(
            f"{len(x)} standard and {len(y)} shifted accuracies: every model needs one of each"
        )
    if len(x) < 2:
        raise ValueError(f"a line has 2 parameters; {len(x)} baseline(s) cannot fix it, give more")
    for name, values in (("standard", x), ("shifted", y)):
        for index, value in enumerate(values.tolist()):
            _check(value, f"the {name} accuracy of baseline {index}")
    if max(x.max(), y.max()) <= 1:
        raise ValueError("no accuracy is above 1: these look like shares, multiply them by 100")
    slope, intercept = (
        float(found[0]) for found in _least_squares(_logit(x)[None], _logit(y)[None])
    )
    if math.isnan(slope):
        raise ValueError(
            f"all baselines have the standard accuracy {x[0]:g} %: no line runs through them; "
            "add models of other sizes"
        )
    return LogitFit(slope, intercept, float(x.min()), float(x.max()), len(x))


def away_from_ends(accuracy: float, n: int) -> float:
    """Return an accuracy moved by at most half an item off 0 and 100 %, so that it has a logit.

    Args:
        accuracy: Per cent, in [0, 100].
        n: Test items, >= 1.
    """
    if n < 1 or not 0 <= accuracy <= 100:
        raise ValueError(f"accuracy {accuracy} must lie in [0, 100], and n {n} be at least 1")
    return min(max(accuracy, 50 / n), 100 - 50 / n)


def subset_accuracy(
    scores: ArrayLike, label: ArrayLike, classes: Sequence[int], groups: ArrayLike | None = None
) -> dict[str, Any]:
    """Score a classifier on the items of some classes, choosing among these classes only.

    A shifted set that holds 200 of 1,000 classes is easier, so its standard axis must be restricted alike. A tie
    counts against us.

    Args:
        scores: (N, C) one score a class.
        label: (N,) class indices in [0, C).
        classes: Two or more different classes.
        groups: (N,) items that succeed or fail together, for the interval.

    Returns:
        `accuracy` with its 95 % interval `low`, `high`, `chance` and `majority`, in per cent; `n` and `classes`.

    Raises:
        ValueError: Shapes that do not fit, scores that are NaN, or as `zero_shot.class_subset`.

    Source: seed 003, section 3.3.4 (ImageNet-A has 200 classes). Derived in notebooks/34_distribution_shift.ipynb.
    """
    score, truth = torch.as_tensor(scores), torch.as_tensor(label)
    if score.ndim != 2 or truth.shape != score.shape[:1]:
        raise ValueError(
            f"scores (N, C) and label (N,) do not fit: {tuple(score.shape)}, {tuple(truth.shape)}"
        )
    if not len(truth) or int(truth.min()) < 0 or int(truth.max()) >= score.shape[1]:
        raise ValueError(f"labels must lie in [0, {score.shape[1]}), N >= 1")
    if bool(score.isnan().any()):
        raise ValueError("scores hold NaN; the model did not train")
    among, own, rows = class_subset(score.double(), truth, classes)  # (M, c), (M,), (M,)
    hits = first_alone(among, own)
    low, high = recall_interval(
        2 - hits.long(), 1, None if groups is None else torch.as_tensor(groups)[rows]
    )
    return {
        "accuracy": 100 * float(hits.double().mean()),
        "low": low,
        "high": high,
        "chance": 100 / among.shape[1],
        "majority": 100 * float(torch.bincount(own).max()) / len(own),
        "n": len(own),
        "classes": among.shape[1],
    }


def logit(accuracy: float) -> float:
    """Return log(a / (100 - a)) of an accuracy in per cent.

    Raises:
        ValueError: NaN, or not strictly between 0 and 100.
    """
    _check(accuracy, "the accuracy")
    return math.log(accuracy / (100 - accuracy))


def expit(value: float) -> float:
    """Return the accuracy in per cent whose logit this is."""
    return float(_expit(np.float64(value)))


def _logit(accuracy: np.ndarray) -> np.ndarray:
    return np.log(accuracy / (100 - accuracy))


def _expit(value: np.ndarray | np.float64) -> np.ndarray:
    return 50 * (1 + np.tanh(value / 2))  # = 100 / (1 + exp(-value)), without overflow


def _check(accuracy: float, what: str) -> None:
    if not 0 < accuracy < 100:
        raise ValueError(
            f"{what} is {accuracy}: a logit needs per cent strictly between 0 and 100. Leave a model without a hit "
            "or without an error out, or move it by half an item with away_from_ends(accuracy, n)"
        )


def _lines(
    baselines: Baselines, resamples: int, seed: int
) -> tuple[LogitFit | KneeFit, np.ndarray, np.ndarray]:
    """Return the line, and slopes and intercepts of bootstrapped ones; none of a published line."""
    if isinstance(baselines, LogitFit | KneeFit):
        return baselines, np.empty(0), np.empty(0)
    pairs = [tuple(np.asarray(pair, dtype=float).reshape(-1).tolist()) for pair in baselines]
    odd = [index for index, pair in enumerate(pairs) if len(pair) != 2]
    if odd:
        raise ValueError(
            f"baseline {odd[0]} has {len(pairs[odd[0]])} numbers; each needs (standard, shifted)"
        )
    table = np.array(pairs).reshape(-1, 2)
    fit = logit_fit(table[:, 0], table[:, 1])
    if len(table) < 3:
        return fit, np.empty(0), np.empty(0)
    rows = np.random.default_rng(seed).integers(len(table), size=(resamples, len(table)))
    slopes, intercepts = _least_squares(*(_logit(table[:, k])[rows] for k in (0, 1)))
    found = np.isfinite(slopes)
    return fit, slopes[found], intercepts[found]


def _least_squares(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return slopes and intercepts of R lines through (R, M) points; NaN where all x of a row are equal."""
    centre = x.mean(axis=1, keepdims=True)
    spread = ((x - centre) ** 2).sum(axis=1)
    spread = np.where(np.ptp(x, axis=1) > 1e-12, spread, np.nan)
    slope = ((x - centre) * y).sum(axis=1) / spread
    return slope, y.mean(axis=1) - slope * centre[:, 0]


def _ends(low: np.ndarray, high: np.ndarray, level: float) -> Span:
    """Return the percentile interval of bootstrapped lower and upper ends."""
    if not 0 < level < 1:
        raise ValueError(f"level is {level}; give a coverage in (0, 1)")
    if not len(low):
        return math.nan, math.nan
    return float(np.quantile(low, 0.5 - level / 2)), float(np.quantile(high, 0.5 + level / 2))
