"""Accuracy by label granularity, and how much of a coarse score any grouping of the classes would give."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mmkd_lite.evaluate.zero_shot import first_alone


def accuracy_by_hierarchy(
    scores: Tensor, label: Tensor, group_of: Tensor, *, draws: int = 200, seed: int = 0
) -> dict[str, Any]:
    r"""Score the same answers on classes, on their groups, and on random groups of equal sizes.

    An answer counts for a group if the class that scores best lies in the right group. With C classes in groups of
    sizes :math:`s_g`, a wrong answer still falls into the right *random* group with probability

    .. math:: q = \sum_g \frac{s_g (s_g - 1)}{C (C - 1)}, \qquad
              \mathbb{E}[\text{random}] = a + (1 - a)\, q

    `grouped - random` is what the meaning of the groups adds; `random - accuracy` comes from fewer classes alone.

    Args:
        scores: (N, C) class scores; a tie for the first place counts as wrong on every level.
        label: (N,) class indices in [0, C).
        group_of: (C,) group of every class, 0 onwards, without a gap.
        draws: Random hierarchies behind the interval, >= 1.
        seed: Of the draws.

    Returns:
        In per cent: `accuracy`, `grouped`, `random` (exact mean over all hierarchies), `random_low` and
        `random_high` (central 95 % of the draws), `chance`, `chance_grouped` (a class drawn at random). Also
        `n`, `classes`, `groups`, and `hits` and `grouped_hits`, bool (N,).

    Raises:
        ValueError: Shapes that do not fit, NaN, labels out of range, fewer than two groups, or an empty group.

    Source: E003-09, seed 003 section 4.1 (coarse labels). Derived in notebooks/31_zero_shot.ipynb.
    """
    sizes = _checked(scores, label, group_of, draws)
    classes, best = scores.shape[1], scores.argmax(dim=1)
    tied = (scores == scores.amax(dim=1, keepdim=True)).sum(dim=1) > 1
    hits = first_alone(scores, label)
    grouped = (group_of[best] == group_of[label]) & ~tied
    q = float((sizes * (sizes - 1)).sum()) / (classes * (classes - 1))
    right, clear = float(hits.double().mean()), float((~tied).double().mean())
    generator = torch.Generator().manual_seed(seed)
    drawn = []
    for _ in range(draws):
        shuffled = group_of[torch.randperm(classes, generator=generator)]
        same = (shuffled[best] == shuffled[label]) & ~tied
        drawn.append(100 * float(same.double().mean()))
    ends = torch.tensor(drawn).double().quantile(torch.tensor([0.025, 0.975]).double())
    return {
        "accuracy": 100 * right,
        "grouped": 100 * float(grouped.double().mean()),
        "random": 100 * (right + (clear - right) * q),
        "random_low": float(ends[0]),
        "random_high": float(ends[1]),
        "chance": 100 / classes,
        "chance_grouped": 100 * float(sizes[group_of[label]].double().mean()) / classes,
        "n": len(label),
        "classes": classes,
        "groups": len(sizes),
        "hits": hits,
        "grouped_hits": grouped,
    }


def _checked(scores: Tensor, label: Tensor, group_of: Tensor, draws: int) -> Tensor:
    """Return the sizes of the groups (G,)."""
    if scores.ndim != 2 or label.shape != scores.shape[:1] or group_of.shape != scores.shape[1:]:
        raise ValueError(
            f"scores (N, C), label (N,) and group_of (C,) do not fit: {tuple(scores.shape)}, "
            f"{tuple(label.shape)}, {tuple(group_of.shape)}"
        )
    if not bool(torch.isfinite(scores).all()):
        raise ValueError("scores hold NaN or infinite numbers")
    if not len(label) or int(label.min()) < 0 or int(label.max()) >= scores.shape[1]:
        raise ValueError(f"labels must lie in [0, {scores.shape[1]}), N >= 1")
    if int(group_of.min()) < 0 or draws < 1:
        raise ValueError("groups are numbered from 0, and draws is at least 1")
    sizes = torch.bincount(group_of)
    if len(sizes) < 2 or bool((sizes == 0).any()):
        raise ValueError(
            f"a hierarchy needs two or more groups, none empty; sizes: {sizes.tolist()}"
        )
    return sizes
