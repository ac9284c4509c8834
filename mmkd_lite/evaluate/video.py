"""Scores of a yes-no decision on videos: accuracy beside what it hides when one class is larger."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike

from mmkd_lite.evaluate.recall import recall_interval

METRICS = ("accuracy", "balanced_accuracy", "average_precision")


def average_precision(labels: ArrayLike, scores: ArrayLike) -> float:
    r"""Return the mean precision over the recalls that a ranking passes through, in per cent.

    .. math:: \mathrm{AP} = 100 \sum_k (R_k - R_{k-1}) P_k

    over the distinct scores from high to low, each a threshold: equal scores enter together. A ranking that
    knows nothing has the share of positives on average.

    Args:
        labels: (N,) 0 or 1, at least one 1.
        scores: (N,) larger means 1.

    Raises:
        ValueError: Shapes, labels or scores that do not fit.

    Derived in notebooks/35_video.ipynb.
    """
    truth, score = _checked(labels, scores)
    return 100 * float(_average_precisions(truth[None], score[None])[0])


def _average_precisions(truth: np.ndarray, score: np.ndarray) -> np.ndarray:
    """(R,) average precision, as a share, of R rows of (R, N) labels and scores."""
    order = np.argsort(-score, axis=1, kind="stable")
    truth, score = np.take_along_axis(truth, order, 1), np.take_along_axis(score, order, 1)
    hits = truth.cumsum(axis=1)  # (R, N)
    precision = hits / np.arange(1, truth.shape[1] + 1)
    last = np.append(score[:, 1:] != score[:, :-1], np.ones((len(score), 1), bool), axis=1)
    found = np.where(last, hits, 0)  # at the end of each run of equal scores
    before = np.maximum.accumulate(found, axis=1)
    gained = found - np.append(np.zeros((len(found), 1)), before[:, :-1], axis=1)
    return np.where(last, gained * precision, 0.0).sum(axis=1) / hits[:, -1]


def binary_scores(
    labels: ArrayLike,
    scores: ArrayLike,
    *,
    threshold: float = 0.0,
    level: float = 0.95,
    resamples: int = 1000,
    seed: int = 0,
) -> dict[str, Any]:
    """Score a yes-no decision; all numbers but the counts in per cent.

    Accuracy has a Wilson interval; balanced accuracy, the mean of both classes' recalls, Newcombe's
    combination of their two Wilson intervals; average precision a percentile bootstrap within each class.

    Args:
        labels: (N,) 0 or 1, both present.
        scores: (N,) one number a video; above `threshold` means 1.
        threshold: The decision's threshold.
        level: Coverage of the intervals, in (0, 1).
        resamples: Of the bootstrap.
        seed: Of the bootstrap.

    Returns:
        `accuracy`, `balanced_accuracy`, `average_precision`, `recall` and `specificity`, the first three also with
        "_low", "_high" and "_chance"; `majority` (accuracy of always naming the larger class),
        `predicted_positive` (share of videos called 1), `n` and `positives`.

    Raises:
        ValueError: Labels other than 0 and 1, a class that does not occur, scores that are not finite.

    Source: seed 003, section 4.4, with errata E003-06. Derived in notebooks/35_video.ipynb.
    """
    truth, score = _checked(labels, scores)
    said = score > threshold
    right = said == (truth == 1)
    recall, specificity = (100 * float(right[truth == label].mean()) for label in (1, 0))
    share = 100 * float(truth.mean())
    both = _newcombe(right[truth == 1], right[truth == 0], level)
    again = _bootstrap(truth, score, level, resamples, seed)
    values = {
        "accuracy": (100 * float(right.mean()), 50.0, wilson(right, level)),
        "balanced_accuracy": ((recall + specificity) / 2, 50.0, both),
        "average_precision": (average_precision(truth, score), share, again),
    }
    found: dict[str, Any] = {
        "recall": recall,
        "specificity": specificity,
        "majority": max(share, 100 - share),
        "predicted_positive": 100 * float(said.mean()),
        "n": len(truth),
        "positives": int(truth.sum()),
    }
    for name, (value, chance, (low, high)) in values.items():
        found |= {name: value, f"{name}_chance": chance}
        found |= {f"{name}_low": low, f"{name}_high": high}
    return found


def _newcombe(first: np.ndarray, second: np.ndarray, level: float) -> tuple[float, float]:
    """Interval of the mean of two independent shares: half the diagonal of both Wilson distances."""
    shares = [100 * float(part.mean()) for part in (first, second)]
    ends = [wilson(part, level) for part in (first, second)]
    below, above = (
        math.hypot(*(share - end[i] for share, end in zip(shares, ends, strict=True))) / 2
        for i in (0, 1)
    )
    return sum(shares) / 2 - below, sum(shares) / 2 + above


def wilson(right: ArrayLike, level: float = 0.95) -> tuple[float, float]:
    """Return the Wilson interval of a share of right answers, (N,) bool, in per cent."""
    ranks = np.where(np.asarray(right, dtype=bool), 1, 2)
    return recall_interval(ranks, 1, level=level)


def _bootstrap(
    truth: np.ndarray, score: np.ndarray, level: float, resamples: int, seed: int
) -> tuple[float, float]:
    """Percentile interval of the average precision, drawing again within each class."""
    if not 0 < level < 1 or resamples < 1:
        raise ValueError(
            f"level={level} must lie in (0, 1) and resamples={resamples} be at least 1"
        )
    generator = np.random.default_rng(seed)
    drawn = [
        members[generator.integers(len(members), size=(resamples, len(members)))]
        for members in (np.flatnonzero(truth == 1), np.flatnonzero(truth == 0))
    ]
    rows = np.concatenate(drawn, axis=1)  # (resamples, N)
    found = _average_precisions(truth[rows], score[rows])
    low, high = np.quantile(found, [0.5 - level / 2, 0.5 + level / 2])
    return 100 * float(low), 100 * float(high)


def _checked(labels: ArrayLike, scores: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """Return labels as int64 and scores as float64, both (N,)."""
    truth = np.asarray(torch.as_tensor(labels).cpu())
    score = np.asarray(torch.as_tensor(scores).detach().cpu().double())
    if truth.ndim != 1 or truth.shape != score.shape:
        raise ValueError(
            f"labels and scores must be (N,) each, got {truth.shape} and {score.shape}"
        )
    if not np.isin(truth, (0, 1)).all():
        raise ValueError(f"labels must be 0 or 1, got {np.unique(truth)[:5].tolist()}")
    if len(np.unique(truth)) < 2:
        raise ValueError(
            f"the {len(truth)} labels hold one class only ({truth[:1].tolist()}): balanced accuracy "
            "and average precision need both"
        )
    if not np.isfinite(score).all():
        raise ValueError(
            f"{int((~np.isfinite(score)).sum())} of {len(score)} scores are not finite"
        )
    return truth.astype(np.int64), score
