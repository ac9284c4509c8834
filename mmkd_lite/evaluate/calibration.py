"""Calibration: is a bar of 80 % right in 80 of 100 cases? And the temperature that makes it so."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

BINS = 15
WIDEST = 1e4
"""Temperatures are looked for between 1 / WIDEST and WIDEST."""


def reliability(confidence: Tensor, correct: Tensor, bins: int = BINS) -> list[dict[str, float]]:
    """Sort answers into bins of equal width by their confidence.

    Args:
        confidence: (N,) probabilities of the answers, in [0, 1].
        correct: (N,) whether they are right.
        bins: M, number of bins; bin m holds ((m - 1) / M, m / M], the first also 0.

    Returns:
        One row a bin that is not empty: `low` and `high` in [0, 1], `n`, mean `confidence` and `accuracy` in per cent.

    Raises:
        ValueError: Other shapes, values outside [0, 1] (NaN too), no answer, or no bin.

    Source: Guo et al. 2017, section 2. Derived in notebooks/31_zero_shot.ipynb.
    """
    if confidence.ndim != 1 or correct.shape != confidence.shape or not len(correct) or bins < 1:
        raise ValueError(
            f"confidence and correct must be (N,), N >= 1, in at least one bin; got "
            f"{tuple(confidence.shape)}, {tuple(correct.shape)}, {bins} bins"
        )
    sure, right = confidence.double(), correct.double()
    if not bool(((sure >= 0) & (sure <= 1)).all()):
        raise ValueError("confidences must lie in [0, 1]; they are probabilities, not scores")
    edges = torch.linspace(0, 1, bins + 1, dtype=torch.float64)
    place = torch.bucketize(sure, edges[1:-1].contiguous())  # (N,)
    count = torch.bincount(place, minlength=bins)
    sums = [torch.bincount(place, weights=x, minlength=bins) for x in (sure, right)]
    return [
        {
            "low": m / bins,
            "high": (m + 1) / bins,
            "n": int(count[m]),
            "confidence": 100 * float(sums[0][m] / count[m]),
            "accuracy": 100 * float(sums[1][m] / count[m]),
        }
        for m in count.nonzero()[:, 0].tolist()
    ]


def expected_calibration_error(confidence: Tensor, correct: Tensor, bins: int = BINS) -> float:
    r"""Return the ECE in per cent: the mean gap between confidence and accuracy, bin by bin.

    .. math:: \text{ECE} = \sum_{m=1}^{M} \frac{n_m}{N}\, \big| \text{acc}_m - \text{conf}_m \big|

    Above 0 even for a perfect forecaster: a bin of few answers misses its mean by chance.

    Args:
        confidence: (N,) in [0, 1].
        correct: (N,) whether the answer is right.
        bins: M.

    Raises:
        ValueError: As `reliability`.

    Source: Guo et al. 2017, eq. 3. Derived in notebooks/31_zero_shot.ipynb.
    """
    rows = reliability(confidence, correct, bins)
    return sum(row["n"] * abs(row["accuracy"] - row["confidence"]) for row in rows) / len(correct)


def calibration_report(
    scores: Tensor, label: Tensor, scale: float, *, bins: int = BINS
) -> dict[str, Any]:
    """Read scores as probabilities, softmax of `scale` times the scores, and say how far they can be believed.

    Args:
        scores: (N, C) cosines (or logits, with scale 1).
        label: (N,) class indices in [0, C).
        scale: Factor before the softmax, > 0; 1 / temperature.
        bins: Of the ECE.

    Returns:
        `ece`, `accuracy` and mean `confidence` of the best class in per cent; `nll`, the mean negative
        log-likelihood in nats; `scale`, `n`, `classes`; `bins` as `reliability`; `protocol`, which states the scale.

    Raises:
        ValueError: Shapes that do not fit, NaN, labels out of range, or a scale that is not above 0.

    Source: Guo et al. 2017; the scale as E003-17. Derived in notebooks/31_zero_shot.ipynb.
    """
    _check(scores, label)
    if not 0 < scale < float("inf"):
        raise ValueError(f"scale is {scale}; it multiplies the scores and must be above 0")
    logs = (scale * scores.double()).log_softmax(dim=1)
    best, answer = logs.max(dim=1)
    sure, right = best.exp(), answer == label
    return {
        "ece": expected_calibration_error(sure, right, bins),
        "accuracy": 100 * float(right.double().mean()),
        "confidence": 100 * float(sure.mean()),
        "nll": -float(logs.gather(1, label[:, None]).mean()),
        "scale": float(scale),
        "n": len(label),
        "classes": scores.shape[1],
        "bins": reliability(sure, right, bins),
        "protocol": f"calibration/top-label/scale={scale:.4g}/bins={bins}-equal-width/classes={scores.shape[1]}",
    }


def fit_temperature(logits: Tensor, label: Tensor) -> float:
    r"""Return the temperature T whose softmax of logits / T explains held-out labels best.

    .. math:: \min_T\; \frac1N \sum_i \Big( \log \sum_c e^{z_{ic} / T} - z_{i y_i} / T \Big)

    Convex in 1 / T, so bisection on its derivative finds the one minimum. The order of the classes, and so the
    accuracy, does not change. Logits that are scale times cosine have scale / T afterwards.

    Args:
        logits: (N, C), of pictures that the calibration is *not* measured on.
        label: (N,) class indices in [0, C).

    Returns:
        T > 0. An end of the range that is searched says that no temperature in it is best: the upper for scores that
        know nothing, the lower for scores that are never wrong.

    Raises:
        ValueError: Shapes that do not fit, NaN, labels out of range, or scores that do not differ between classes.

    Source: Guo et al. 2017, section 4.2. Derived in notebooks/31_zero_shot.ipynb.
    """
    _check(logits, label)
    z = logits.double()
    z = z - z.mean(dim=1, keepdim=True)
    if not bool((z.abs() > 1e-12).any()):
        raise ValueError("all classes have equal scores: every temperature is as good as another")
    own = z.gather(1, label[:, None]).mean()

    def slope(log_scale: float) -> float:
        weights = (z * 10.0**log_scale).softmax(dim=1)
        return float((weights * z).sum(dim=1).mean() - own)

    low, high = -torch.log10(torch.tensor(WIDEST)).item(), torch.log10(torch.tensor(WIDEST)).item()
    if slope(low) >= 0:
        return WIDEST
    if slope(high) <= 0:
        return 1 / WIDEST
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if slope(middle) < 0 else (low, middle)
    return 10.0 ** -((low + high) / 2)


def _check(scores: Tensor, label: Tensor) -> None:
    if scores.ndim != 2 or scores.shape[1] < 2 or label.shape != scores.shape[:1] or not len(label):
        raise ValueError(
            f"scores must be (N, C) with C >= 2 and label (N,), N >= 1; got {tuple(scores.shape)}, "
            f"{tuple(label.shape)}"
        )
    if not bool(torch.isfinite(scores).all()):
        raise ValueError("scores hold NaN or infinite numbers")
    if int(label.min()) < 0 or int(label.max()) >= scores.shape[1]:
        raise ValueError(f"labels must lie in [0, {scores.shape[1]})")
