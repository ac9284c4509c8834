"""Cross-modal retrieval: recalls, ranks, chance and intervals, under one named protocol.

Conventions, fixed here and nowhere else:

* A query is right when *any* of its own candidates is among the first k ("any-hit").
* Both directions: i2t ranks T captions for an image, t2i ranks N images for a caption.
* A tie counts against us, so embeddings that are all equal never score above chance.
* Recalls are per cent; ranks start at 1; medians are the mean of the two middle ranks.

Derived in notebooks/30_retrieval.ipynb.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from scipy.stats import norm

from mmkd_lite.evaluate.ranks import ArrayLike, Ranks, retrieval_ranks

DIRECTIONS = ("i2t", "t2i")


def retrieval(
    image: ArrayLike,
    text: ArrayLike,
    image_of_text: ArrayLike,
    ks: Sequence[int] = (1, 5, 10),
    chunk_size: int = 1024,
    relevance: ArrayLike | None = None,
) -> dict[str, Any]:
    """Score image-text retrieval in both directions.

    ``R@k = 100 * mean over queries of [rank of the best own candidate <= k]``.

    Args:
        image: (N, D) unit-norm image embeddings.
        text: (T, D) unit-norm caption embeddings; 1 to any number of captions an image.
        image_of_text: (T,) row in ``image`` that each caption belongs to.
        ks: Cut-offs, each >= 1; a cut-off beyond the number of candidates gives 100.
        chunk_size: Side of a score tile; changes memory and time, never a number.
        relevance: Optional (T, N) bool: which captions are true of which images. Then any true
            candidate counts ("by truth") instead of only the own one ("by id").

    Returns:
        ``protocol`` (str), ``n_images``, ``n_texts``, ``i2t_r1`` ... ``t2i_r10`` (per cent),
        ``mean_recall`` (of all recalls), ``i2t_median_rank``, ``t2i_median_rank`` and
        ``chance_i2t_r1`` ... (expected recall of a random ranking, per cent).

    Raises:
        ValueError: See `retrieval_ranks`; or a cut-off below 1.

    Source: seed 002, Tables 1-3; repaired per E002-01, chance per E002-02.
    Derived in notebooks/30_retrieval.ipynb.
    """
    cuts = _cutoffs(ks)
    ranks = retrieval_ranks(image, text, image_of_text, chunk_size=chunk_size, relevance=relevance)
    rule = "any-hit" if relevance is None else "any-hit-by-truth"
    return {"protocol": _protocol(rule, ranks, cuts), **summarise(ranks, cuts)}


def summarise(ranks: Ranks, ks: Sequence[int] = (1, 5, 10)) -> dict[str, Any]:
    """Turn ranks into recalls, medians and chance levels (all of `retrieval` but the name)."""
    n_images, n_texts = len(ranks.image_to_text), len(ranks.text_to_image)
    sides = {
        "i2t": (ranks.image_to_text, ranks.captions_of_image, n_texts),
        "t2i": (ranks.text_to_image, ranks.images_of_caption, n_images),
    }
    recalls, medians, chances = {}, {}, {}
    for direction, (found, positives, candidates) in sides.items():
        for k in ks:
            recalls[f"{direction}_r{k}"] = 100 * float(np.mean(found <= k))
            chances[f"chance_{direction}_r{k}"] = chance_recall(positives, candidates, k)
        medians[f"{direction}_median_rank"] = float(np.median(found))
    mean = float(np.mean(list(recalls.values())))
    sizes = {"n_images": n_images, "n_texts": n_texts}
    return {**sizes, **recalls, "mean_recall": mean, **medians, **chances}


def chance_recall(positives: ArrayLike, candidates: int, k: int) -> float:
    """Return the expected R@k of a uniformly random ranking, in per cent.

    ``1 - C(n - m, k) / C(n, k)`` for a query with m right answers among n candidates, averaged
    over the queries.

    Args:
        positives: (Q,) how many candidates are right for each query, each >= 1.
        candidates: Number of candidates n.
        k: Cut-off, >= 1.

    Source: E002-02 (seed 002, Table 1, row Data2Vec2).
    """
    counts, weights = np.unique(np.asarray(positives), return_counts=True)
    total = 0.0
    for m, weight in zip(counts.tolist(), weights.tolist(), strict=True):
        miss = math.prod(
            max(candidates - m - j, 0) / (candidates - j) for j in range(min(k, candidates))
        )
        total += weight * (1 - miss)
    return 100 * total / float(weights.sum())


def one_caption_each(image_of_text: ArrayLike, seed: int | None = None) -> np.ndarray:
    """Pick one caption an image: the first one, or a random one if a seed is given.

    Returns:
        (N,) int64 rows into the texts, in the order of the images 0 .. N-1.
    """
    owner = np.asarray(torch.as_tensor(image_of_text).cpu(), dtype=np.int64)
    order = np.arange(len(owner))
    if seed is not None:
        order = np.random.default_rng(seed).permutation(len(owner))
    _, first = np.unique(owner[order], return_index=True)
    return np.asarray(order[first])


def folds_1k(
    image: ArrayLike,
    text: ArrayLike,
    image_of_text: ArrayLike,
    ks: Sequence[int] = (1, 5, 10),
    folds: int = 5,
    fold_size: int = 1000,
) -> dict[str, Any]:
    """Average `retrieval` over consecutive folds of images with all their captions.

    This is the "COCO 1K" protocol. Its galleries are smaller, so its numbers are higher than
    those of the full gallery and must never share a column with them.

    Raises:
        ValueError: Fewer than ``folds * fold_size`` images.

    Source: seed 002 lists COCO 5K only; protocol (iii) of reference B7.
    """
    images, texts = torch.as_tensor(image), torch.as_tensor(text)
    owner = torch.as_tensor(image_of_text).cpu()
    _require_folds(len(images), folds, fold_size)
    scores = []
    for fold in range(folds):
        start = fold * fold_size
        inside = ((owner >= start) & (owner < start + fold_size)).nonzero()[:, 0]
        pictures = images[start : start + fold_size]
        scores.append(retrieval(pictures, texts[inside], owner[inside] - start, ks))
    numbers = [key for key in scores[0] if key != "protocol"]
    cuts = ",".join(map(str, _cutoffs(ks)))
    name = f"retrieval/any-hit/folds={folds}x{fold_size}/ks={cuts}/ties=against"
    return {"protocol": name, **{key: float(np.mean([s[key] for s in scores])) for key in numbers}}


def average_median_rank(
    image: ArrayLike,
    text: ArrayLike,
    image_of_text: ArrayLike,
    folds: int = 5,
    fold_size: int = 1000,
    seed: int = 0,
) -> dict[str, Any]:
    """Average the median rank over random disjoint folds, one caption an image.

    Args:
        image: (N, D) unit-norm image embeddings, N >= folds * fold_size.
        text: (T, D) unit-norm caption embeddings.
        image_of_text: (T,) row of each caption's image.
        folds: Number of folds.
        fold_size: Images in a fold.
        seed: Draws the folds and the caption of each image.

    Returns:
        ``protocol``, ``i2t_average_median_rank`` and ``t2i_average_median_rank``.

    Source: seed 002, remark on "See, Hear, and Read"; E002-12.
    """
    images, texts = torch.as_tensor(image), torch.as_tensor(text)
    _require_folds(len(images), folds, fold_size)
    caption = torch.from_numpy(one_caption_each(image_of_text, seed=seed))  # (N,)
    order = torch.from_numpy(np.random.default_rng(seed).permutation(len(images)))
    medians: dict[str, list[float]] = {direction: [] for direction in DIRECTIONS}
    for fold in range(folds):
        rows = order[fold * fold_size : (fold + 1) * fold_size]
        ranks = retrieval_ranks(images[rows], texts[caption[rows]], torch.arange(fold_size))
        medians["i2t"].append(float(np.median(ranks.image_to_text)))
        medians["t2i"].append(float(np.median(ranks.text_to_image)))
    name = f"average-median-rank/one-caption/folds={folds}x{fold_size}/seed={seed}/ties=against"
    averages = {f"{d}_average_median_rank": float(np.mean(medians[d])) for d in DIRECTIONS}
    return {"protocol": name, **averages}


def recall_interval(
    ranks: ArrayLike, k: int, groups: ArrayLike | None = None, level: float = 0.95
) -> tuple[float, float]:
    """Return a Wilson interval of one recall, widened when queries come in groups.

    Five captions of one picture succeed and fail together, so 25,000 captions are worth fewer
    independent queries. The number of queries is divided by the design effect (variance of the
    grouped mean over the binomial variance, never below 1); a recall of 0 or 100 counts groups.

    Args:
        ranks: (Q,) ranks, 1 is first.
        k: Cut-off.
        groups: Optional (Q,) group of every query, for example ``image_of_text`` for t2i.
        level: Coverage, in (0, 1).

    Returns:
        Lower and upper end, in per cent.
    """
    hits = np.asarray(ranks) <= k
    n, p = len(hits), float(np.mean(hits))
    effective = float(n)
    if groups is not None:
        label = np.unique(np.asarray(torch.as_tensor(groups).cpu()), return_inverse=True)[1]
        effective = _effective_queries(hits, label)
    z = float(norm.ppf(0.5 + level / 2))
    centre = (p + z * z / (2 * effective)) / (1 + z * z / effective)
    spread = math.sqrt(p * (1 - p) / effective + z * z / (4 * effective**2))
    half = z * spread / (1 + z * z / effective)
    return 100 * max(centre - half, 0.0), 100 * min(centre + half, 1.0)


def recall_intervals(
    ranks: Ranks, image_of_text: ArrayLike, ks: Sequence[int] = (1, 5, 10), level: float = 0.95
) -> dict[str, tuple[float, float]]:
    """Return `recall_interval` for every recall; t2i queries are grouped by image."""
    found = {}
    for k in _cutoffs(ks):
        found[f"i2t_r{k}"] = recall_interval(ranks.image_to_text, k, level=level)
        found[f"t2i_r{k}"] = recall_interval(ranks.text_to_image, k, image_of_text, level)
    return found


def _effective_queries(hits: np.ndarray, group: np.ndarray) -> float:
    """Return how many independent queries grouped hits are worth."""
    n, count = len(hits), int(group.max()) + 1
    p = float(np.mean(hits))
    if count < 2 or p in (0.0, 1.0):
        return float(count)
    sums = np.bincount(group, weights=hits - p, minlength=count)  # (G,)
    variance = count / (count - 1) * float(np.sum(sums**2)) / n**2
    return n / max(variance / (p * (1 - p) / n), 1.0)


def _cutoffs(ks: Sequence[int]) -> tuple[int, ...]:
    cuts = tuple(int(k) for k in ks)
    if not cuts or any(cut < 1 or cut != k for cut, k in zip(cuts, ks, strict=True)):
        raise ValueError(f"ks is {ks!r}; give whole cut-offs of at least 1, such as (1, 5, 10)")
    return cuts


def _protocol(rule: str, ranks: Ranks, ks: tuple[int, ...]) -> str:
    sizes = f"images={len(ranks.image_to_text)}/texts={len(ranks.text_to_image)}"
    return f"retrieval/{rule}/{sizes}/ks={','.join(map(str, ks))}/ties=against"


def _require_folds(images: int, folds: int, fold_size: int) -> None:
    if folds < 1 or fold_size < 1 or folds * fold_size > images:
        raise ValueError(
            f"{folds} folds of {fold_size} need {folds * fold_size} images, the gallery has "
            f"{images}; lower folds or fold_size (the name of the protocol then says so)"
        )
