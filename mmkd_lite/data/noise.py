"""Captions that do not belong to their picture: the noise of collected pairs, in a known share.

`swap` puts another scene's caption in the place of the own one. `partial` tells of the own scene
with one object exchanged for another, so that the caption still shares the other objects (and,
where told, the background). Wrong captions are drawn again until they are false of the picture.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from typing import TYPE_CHECKING

import numpy as np

from mmkd_lite.data.captions import CAPTIONS_PER_IMAGE, Meaning, write_numbered
from mmkd_lite.data.draws import integers, pick, uniforms
from mmkd_lite.data.emoji import scene_concepts
from mmkd_lite.data.layout import Layout
from mmkd_lite.data.truth import is_true_of_own

if TYPE_CHECKING:
    from mmkd_lite.config import DataConfig

NOISE_KINDS = ("swap", "partial")
_SCENES = 1 << 40  # another scene is drawn among this many
_MAX_ATTEMPTS = 200
LayoutOf = Callable[[np.ndarray], Layout]


def make_wrong(
    texts: list[list[str]],
    meaning: Meaning,
    layout: Layout,
    indices: np.ndarray,
    layout_of: LayoutOf,
    config: DataConfig,
) -> np.ndarray:
    """Replace a share of the captions of training scenes, in place.

    Args:
        texts: B lists of five captions.
        meaning: Meanings of the 5 B captions.
        layout: Content of the B scenes.
        indices: (B,) numbers of the scenes.
        layout_of: Gives the content of scenes by number.
        config: `noise` is the share of captions, `noise_kind` "swap" or "partial".

    Returns:
        (B, 5) bool: True for captions that are as they were written.
    """
    if config.noise_kind not in NOISE_KINDS:
        raise ValueError(f"noise_kind is {' or '.join(NOISE_KINDS)}, got {config.noise_kind!r}")
    numbers = np.asarray(indices)[:, None] * CAPTIONS_PER_IMAGE + np.arange(CAPTIONS_PER_IMAGE)
    numbers = numbers.reshape(-1)  # (5 B,)
    chosen = uniforms(config.world_seed, "noise", numbers, 1)[:, 0] < config.noise
    waiting = np.flatnonzero(chosen)
    for attempt in range(_MAX_ATTEMPTS):
        if not len(waiting):
            break
        own = layout.take(waiting // CAPTIONS_PER_IMAGE)
        stream = f"noise:{config.noise_kind}:{attempt}"
        if config.noise_kind == "swap":
            told = integers(config.world_seed, stream, numbers[waiting], 1)[:, 0]
            told = (told % np.uint64(_SCENES)).astype(np.int64)
            other, told = layout_of(told), told * CAPTIONS_PER_IMAGE + attempt % CAPTIONS_PER_IMAGE
        else:
            other, told = _exchange_one(own, stream, numbers[waiting], config), numbers[waiting]
        lines, claims = write_numbered(
            other, config.world_seed, "scenes:train", told, config.vocabulary
        )
        false = ~is_true_of_own(claims, own)
        for position, line in zip(waiting[false], np.flatnonzero(false), strict=True):
            texts[position // CAPTIONS_PER_IMAGE][position % CAPTIONS_PER_IMAGE] = lines[line]
        for field in fields(Meaning):
            getattr(meaning, field.name)[waiting[false]] = getattr(claims, field.name)[false]
        waiting = waiting[~false]
    return ~chosen.reshape(-1, CAPTIONS_PER_IMAGE)


def _exchange_one(layout: Layout, stream: str, numbers: np.ndarray, config: DataConfig) -> Layout:
    """The layout with one of its first two objects exchanged for a concept it does not hold."""
    pool = np.array(scene_concepts(config.concepts))
    u = uniforms(config.world_seed, stream, numbers, 2)
    place = pick(u[:, 0], np.minimum(layout.count, 2))
    held = np.where(layout.concept < 0, len(pool), np.searchsorted(pool, layout.concept))
    new = pick(u[:, 1], len(pool) - layout.count)
    for taken in np.sort(held, axis=1).T:
        new = new + (new >= taken)
    concept = layout.concept.copy()
    concept[np.arange(len(layout)), place] = pool[new]
    return Layout(concept, *(getattr(layout, field.name) for field in fields(Layout)[1:]))
