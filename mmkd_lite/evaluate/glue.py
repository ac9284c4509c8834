"""GLUE's metrics over a whole set of predictions, what a guess would score, and batch means to warn of.

Everything is in per cent, correlations included. F1, Matthews and the correlations are not means over
examples, so a mean over batches is another number (errata E000-08); `batch_averaged` computes it on
purpose, for comparison.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike

from mmkd_lite.evaluate.recall import recall_interval

Metric = Callable[[ArrayLike, ArrayLike], float]


def accuracy(predictions: ArrayLike, targets: ArrayLike) -> float:
    """Return the share of right answers in per cent.

    Args:
        predictions: (N,) integer class ids.
        targets: (N,) integer class ids.

    Raises:
        ValueError: Nothing to score, different lengths, or labels that are no class ids.
    """
    guess, truth = _classes(predictions, targets)
    return 100 * float((guess == truth).mean())


def f1(predictions: ArrayLike, targets: ArrayLike, positive: int = 1) -> float:
    r"""Return F1 of one class in per cent: the harmonic mean of its precision and its recall.

    .. math:: F_1 = 100 \cdot \frac{2\,TP}{2\,TP + FP + FN}

    Where no example is positive and none was called so, the fraction is 0/0; the value is then 0, as
    in scikit-learn. F1 depends on which class is called positive, and true negatives do not count.

    Args:
        predictions: (N,) integer class ids.
        targets: (N,) integer class ids.
        positive: The class that counts.

    Raises:
        ValueError: As `accuracy`.
    """
    guess, truth = _classes(predictions, targets)
    hits = int(((guess == positive) & (truth == positive)).sum())
    called = int((guess == positive).sum() + (truth == positive).sum())
    return 200 * hits / called if called else 0.0


def matthews(predictions: ArrayLike, targets: ArrayLike) -> float:
    r"""Return Matthews' correlation of two labellings, times 100: 0 for any guess that ignores the input.

    With :math:`c` right answers of :math:`N`, :math:`p_k` times predicted and :math:`t_k` times true,

    .. math:: 100 \cdot \frac{cN - \sum_k p_k t_k}
              {\sqrt{N^2 - \sum_k p_k^2}\,\sqrt{N^2 - \sum_k t_k^2}}

    Where predictions or targets are all of one class the fraction is 0/0; the value is then 0.

    Args:
        predictions: (N,) integer class ids, of any number of classes.
        targets: (N,) integer class ids.

    Raises:
        ValueError: As `accuracy`.

    Source: Matthews 1975; Gorodkin 2004 for more than two classes. Derived in
    notebooks/33_text_understanding.ipynb.
    """
    guess, truth = _classes(predictions, targets)
    count, classes = len(truth), int(max(guess.max(), truth.max())) + 1
    predicted = np.bincount(guess, minlength=classes).astype(float)
    true = np.bincount(truth, minlength=classes).astype(float)
    spread = (count**2 - predicted @ predicted) * (count**2 - true @ true)
    right = float((guess == truth).sum())
    return 100 * (right * count - float(predicted @ true)) / math.sqrt(spread) if spread else 0.0


def pearson(predictions: ArrayLike, targets: ArrayLike) -> float:
    r"""Return the linear correlation times 100, in [-100, 100].

    .. math:: 100 \cdot \frac{\sum_i (x_i - \bar x)(y_i - \bar y)}{\|x - \bar x\|\,\|y - \bar y\|}

    Constant predictions say nothing about the order: the value is then 0. Constant targets leave
    nothing to predict: an error.

    Args:
        predictions: (N,) finite numbers.
        targets: (N,) finite numbers, not all equal.

    Raises:
        ValueError: Nothing to score, different lengths, a number that is not finite, or constant targets.
    """
    return _correlation(*_numbers(predictions, targets))


def spearman(predictions: ArrayLike, targets: ArrayLike) -> float:
    """Return the correlation of the ranks times 100; equal values share their mean rank.

    Conventions, arguments and errors as `pearson`.
    """
    guess, truth = _numbers(predictions, targets)
    return _correlation(mean_ranks(guess), mean_ranks(truth))


def mean_ranks(values: ArrayLike) -> np.ndarray:
    """Return the ranks 1 .. N of (N,) numbers; equal ones share the mean of the places they take."""
    numbers = np.asarray(values, dtype=float)
    _, group, size = np.unique(numbers, return_inverse=True, return_counts=True)
    last = np.cumsum(size)  # the last place that each group of equal values takes
    return (last - (size - 1) / 2)[group]


METRICS: dict[str, Metric] = {
    "accuracy": accuracy,
    "f1": f1,
    "matthews": matthews,
    "pearson": pearson,
    "spearman": spearman,
}


def score(metric: str, predictions: ArrayLike, targets: ArrayLike) -> float:
    """Return one metric of `METRICS` over the whole set, in per cent.

    Raises:
        ValueError: Unknown metric, or as the metric itself.
    """
    if metric not in METRICS:
        raise ValueError(f"unknown metric {metric!r}; choose one of {', '.join(METRICS)}")
    return METRICS[metric](predictions, targets)


def batch_averaged(
    metric: str, predictions: ArrayLike, targets: ArrayLike, batch_size: int
) -> float:
    """Return the unweighted mean of a metric over consecutive batches: what *not* to report.

    The last batch may be smaller and counts as much as any other. This is seed 000, Code 2 as it was
    published; even for accuracy it differs from the score of the set where the last batch is smaller.

    Args:
        metric: A key of `METRICS`.
        predictions: (N,) predictions, in the order of the batches.
        targets: (N,) targets.
        batch_size: Examples a batch, >= 1.

    Raises:
        ValueError: As `score`, with the batch named (a correlation over a batch of one example has none).

    Source: seed 000, Code 2 with errata E000-08. Derived in notebooks/33_text_understanding.ipynb.
    """
    guess, truth = np.asarray(predictions), np.asarray(targets)
    if batch_size < 1:
        raise ValueError(f"batch_size is {batch_size}; give at least 1")
    score(metric, guess, truth)  # refuses what no batch may hold
    values = []
    for start in range(0, len(truth), batch_size):
        part = slice(start, start + batch_size)
        try:
            values.append(score(metric, guess[part], truth[part]))
        except ValueError as error:
            raise ValueError(f"batch {start // batch_size}: {error}") from error
    return float(np.mean(values))


def guess_levels(metric: str, targets: ArrayLike, classes: int) -> tuple[float, float]:
    """Return what guessing scores: by a fair die over the classes (expected), and the commonest class.

    For F1 the expectation is that of large sets, :math:`2q/(q + 1/C)/C` with a share :math:`q` of
    positives. Correlations, Matthews' included, are 0 for both.

    Args:
        metric: A key of `METRICS`.
        targets: (N,) the targets of the test set.
        classes: C; not read for correlations.

    Returns:
        Chance and majority in per cent.
    """
    if metric in ("accuracy", "f1"):
        truth = np.asarray(targets)
        commonest = np.full(len(truth), np.bincount(truth).argmax())
        share = float((truth == 1).mean())
        chance = 1 / classes if metric == "accuracy" else 2 * share / (share * classes + 1)
        return 100 * chance, score(metric, commonest, truth)
    return 0.0, 0.0


def metric_interval(
    metric: str,
    predictions: ArrayLike,
    targets: ArrayLike,
    *,
    level: float = 0.95,
    resamples: int = 1000,
    seed: int = 0,
) -> tuple[float, float]:
    """Return an interval of one test score: about other test examples, not about other seeds.

    Wilson's for accuracy; for the others the percentiles of the score over sets drawn with
    replacement from the examples. Draws without any spread in the targets are left out.

    Args:
        metric: A key of `METRICS`.
        predictions: (N,) predictions.
        targets: (N,) targets.
        level: Coverage, in (0, 1).
        resamples: How many sets are drawn.
        seed: Of the draws.

    Returns:
        Lower and upper end, in per cent.
    """
    guess, truth = np.asarray(predictions), np.asarray(targets)
    score(metric, guess, truth)  # refuses what cannot be scored
    if metric == "accuracy":
        return recall_interval(np.where(guess == truth, 1, 2), 1, level=level)
    rows = np.random.default_rng(seed).integers(0, len(truth), (resamples, len(truth)))
    values = [score(metric, guess[r], truth[r]) for r in rows if np.ptp(truth[r]) > 0]
    if not values:
        raise ValueError("no resampled set has targets that differ; the test set is too small")
    low, high = np.quantile(values, [0.5 - level / 2, 0.5 + level / 2])
    return float(low), float(high)


def _correlation(x: np.ndarray, y: np.ndarray) -> float:
    if np.ptp(y) == 0:
        raise ValueError(
            f"all {len(y)} targets are {y[0]:g}: there is no correlation with a constant; "
            "score a larger set"
        )
    if np.ptp(x) == 0:
        return 0.0
    x, y = x - x.mean(), y - y.mean()
    x, y = x / np.abs(x).max(), y / np.abs(y).max()  # tiny numbers must not underflow when squared
    return 100 * float(np.clip(x @ y / (np.linalg.norm(x) * np.linalg.norm(y)), -1, 1))


def _classes(predictions: ArrayLike, targets: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    guess, truth = np.asarray(predictions), np.asarray(targets)
    _check_shapes(guess, truth)
    for name, labels in (("predictions", guess), ("targets", truth)):
        if labels.dtype.kind not in "iub" or labels.min() < 0:
            raise ValueError(f"{name} must be class ids 0, 1, ..., got {labels.dtype} {labels[:5]}")
    return guess.astype(np.int64), truth.astype(np.int64)


def _numbers(predictions: ArrayLike, targets: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    guess, truth = np.asarray(predictions, dtype=float), np.asarray(targets, dtype=float)
    _check_shapes(guess, truth)
    for name, numbers in (("predictions", guess), ("targets", truth)):
        if not np.isfinite(numbers).all():
            where = int(np.flatnonzero(~np.isfinite(numbers))[0])
            raise ValueError(
                f"{name} hold {numbers[where]} at place {where}; did training diverge?"
            )
    return guess, truth


def _check_shapes(guess: np.ndarray, truth: np.ndarray) -> None:
    if guess.ndim != 1 or guess.shape != truth.shape or not len(truth):
        raise ValueError(
            f"predictions and targets must be two (N,) rows with N >= 1, got {guess.shape} and "
            f"{truth.shape}"
        )
