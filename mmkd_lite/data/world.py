"""Which content belongs to which split, and content as objects that a person can read.

Every combination of concepts and background belongs to one split by its hash, so the test scenes of
`composition` hold combinations that training never showed, of concepts that it did.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mmkd_lite.data.layout import (
    BACKGROUND_NAMES,
    RELATIONS,
    SIZES,
    Layout,
    content_hash,
    draw_layouts,
)

SPLITS = {"train": range(2, 8), "composition": range(0, 1), "validation": range(1, 2)}
_PARTS = 8  # a combination's hash modulo 8 decides its split
_MAX_ATTEMPTS = 400


@dataclass(frozen=True)
class SceneObject:
    """One object of a scene.

    Attributes:
        concept: Concept index.
        size: "small" or "large".
        centre: (x, y) of its centre as shares of the image's side, y downwards.
        diameter: Longer side as a share of the image's.
    """

    concept: int
    size: str
    centre: tuple[float, float]
    diameter: float


@dataclass(frozen=True)
class Scene:
    """What is in one picture.

    Attributes:
        objects: One to three objects.
        relations: For two objects or more: (a, relation, b), object a is `relation` of object b.
        background: Name of the background colour.
    """

    objects: tuple[SceneObject, ...]
    relations: tuple[tuple[int, str, int], ...]
    background: str


def scene_layouts(
    seed: int, split: str, indices: np.ndarray, pool: np.ndarray, sizes: str
) -> Layout:
    """Content of scenes: the first draw of each whose combination belongs to the split.

    Args:
        seed: Seed of the world.
        split: A key of `SPLITS`.
        indices: (B,) numbers of the scenes.
        pool: (n,) concept indices to draw from.
        sizes: "training" or "near", see `draw_layouts`.
    """
    parts = SPLITS[split]
    arrays: list[np.ndarray] = []
    waiting = np.arange(len(indices))
    for attempt in range(_MAX_ATTEMPTS):
        drawn = draw_layouts(seed, f"scenes:{split}:{attempt}", indices[waiting], pool, sizes=sizes)
        part = content_hash(drawn) % np.uint64(_PARTS)
        fits = (part >= parts.start) & (part < parts.stop)
        fields = list(vars(drawn).values())
        if not arrays:
            arrays = [np.zeros((len(indices), *f.shape[1:]), f.dtype) for f in fields]
        for array, field in zip(arrays, fields, strict=True):
            array[waiting[fits]] = field[fits]
        waiting = waiting[~fits]
        if not len(waiting):
            return Layout(*arrays)
    raise RuntimeError(f"no scene of split {split} found in {_MAX_ATTEMPTS} draws")


def describe(layout: Layout) -> Scene:
    """The first scene of a layout, readable."""
    count = int(layout.count[0])
    objects = tuple(
        SceneObject(
            concept=int(layout.concept[0, k]),
            size=SIZES[layout.large[0, k]],
            centre=(float(layout.centre[0, k, 0]), float(layout.centre[0, k, 1])),
            diameter=float(layout.diameter[0, k]),
        )
        for k in range(count)
    )
    relations = tuple(
        (a, RELATIONS[layout.relation[0, a, b]], b)
        for a in range(count)
        for b in range(a + 1, count)
    )
    return Scene(objects, relations, BACKGROUND_NAMES[layout.background[0]])


def meaning_keys(layout: Layout) -> np.ndarray:
    """(B, 16) integers, equal for two scenes exactly if they have equal meaning.

    Meaning is the objects with their sizes, their relations and the background; neither the
    order of the objects nor where exactly they stand.
    """
    order = np.argsort(np.where(layout.concept < 0, 1 << 30, layout.concept), axis=1)
    rows = np.arange(len(layout))[:, None]
    relation = layout.relation[rows[:, :, None], order[:, :, None], order[:, None, :]]
    return np.concatenate(
        [
            layout.concept[rows, order],
            layout.large[rows, order],
            relation.reshape(len(layout), -1),
            layout.background[:, None],
        ],
        axis=1,
    )
