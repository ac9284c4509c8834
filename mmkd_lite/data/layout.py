"""What is where: the structured content of scenes, for many scenes at once.

Lengths are shares of the image's side, so that content does not depend on the image size. One
object stands anywhere; two stand side by side or one above the other; three are a pair and a third
object on one side of both. A pair's relation is its dominant axis, and by construction the offset
along it is at least 1.25 times the offset across it: what a caption says can be seen.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np

from mmkd_lite.data.draws import integers, pick, uniforms

RELATIONS = ("left", "right", "above", "below")  # "a is left of b"
INVERSE = (1, 0, 3, 2)  # "a left of b" = "b right of a"
NO_RELATION = -1
SIZES = ("small", "large")
MAX_OBJECTS = 3
SMALL = (0.30, 0.33, 0.36, 0.39)
LARGE = ((0.57, 0.61, 0.65, 0.69), (0.48, 0.51, 0.54, 0.57), (0.45, 0.47, 0.49, 0.51))
NEAR_SMALL = (0.22, 0.24, 0.25, 0.27)  # outside the range above: the near shift
NEAR_LARGE = ((0.76, 0.80, 0.84, 0.88), (0.59, 0.61, 0.63, 0.65), (0.53, 0.54, 0.55, 0.56))
COUNT_SHARES = (0.30, 0.45, 0.25)
BACKGROUNDS: dict[str, tuple[int, int, int]] = {
    "white": (248, 248, 248),
    "gray": (160, 160, 164),
    "red": (222, 84, 78),
    "orange": (246, 162, 62),
    "yellow": (250, 228, 104),
    "green": (112, 186, 96),
    "turquoise": (92, 206, 200),
    "blue": (98, 146, 232),
    "purple": (160, 112, 212),
    "pink": (248, 170, 204),
}
BACKGROUND_NAMES = tuple(BACKGROUNDS)
_SLOTS = 24


@dataclass(frozen=True)
class Layout:
    """The content of B scenes; an object that is not there has concept -1.

    Attributes:
        concept: (B, 3) int64 concept indices.
        large: (B, 3) int64, 1 for a large object, 0 for a small one, -1 for none.
        diameter: (B, 3) float64, longer side of the object as a share of the image's side.
        centre: (B, 3, 2) float64, x to the right and y down as shares of the side.
        relation: (B, 3, 3) int64; [:, a, b] says where a is as seen from b (`RELATIONS`), -1 none.
        background: (B,) int64 index into `BACKGROUND_NAMES`.
    """

    concept: np.ndarray
    large: np.ndarray
    diameter: np.ndarray
    centre: np.ndarray
    relation: np.ndarray
    background: np.ndarray

    def __len__(self) -> int:
        return len(self.background)

    @property
    def count(self) -> np.ndarray:
        """(B,) number of objects."""
        return (self.concept >= 0).sum(axis=1)

    def take(self, rows: np.ndarray) -> Layout:
        """The layout of some rows."""
        return Layout(*(getattr(self, field.name)[rows] for field in fields(self)))


def draw_layouts(
    seed: int,
    stream: str,
    indices: np.ndarray,
    pool: np.ndarray,
    *,
    objects: tuple[int, int] = (1, MAX_OBJECTS),
    sizes: str = "training",
) -> Layout:
    """Draw the content of scenes; row b is a pure function of (seed, stream, indices[b]).

    Args:
        seed: Seed of the world.
        stream: Name of the stream of random numbers.
        indices: (B,) numbers of the scenes.
        pool: (n,) concept indices to draw from, at least three of them.
        objects: Fewest and most objects a scene.
        sizes: "training", or "near" for diameters outside the training range.
    """
    low, high = objects
    if not 1 <= low <= high <= MAX_OBJECTS:
        raise ValueError(f"objects must be two numbers 1 <= low <= high <= 3, got {objects}")
    if len(pool) < MAX_OBJECTS:
        raise ValueError(f"scenes need at least three concepts to draw from, got {len(pool)}")
    u = uniforms(seed, stream, indices, _SLOTS)
    count = _draw_count(u[:, 0], low, high)
    exists = np.arange(MAX_OBJECTS) < count[:, None]  # (B, 3)
    concept = np.where(exists, pool[_distinct(u[:, 1:4], len(pool))], -1)
    large = pick(u[:, 4:7], 2)
    small_sizes, large_sizes = (SMALL, LARGE) if sizes == "training" else (NEAR_SMALL, NEAR_LARGE)
    level = pick(u[:, 7:10], len(SMALL))
    diameter = np.where(
        large, np.array(large_sizes)[count[:, None] - 1, level], np.array(small_sizes)[level]
    )
    centre = _place(count, diameter, u[:, 10:19])
    relation = np.where(exists[:, :, None] & exists[:, None, :], _relations(centre), NO_RELATION)
    return Layout(
        concept=concept,
        large=np.where(exists, large, -1),
        diameter=np.where(exists, diameter, 0.0),
        centre=np.where(exists[:, :, None], centre, 0.0),
        relation=relation,
        background=pick(u[:, 19], len(BACKGROUND_NAMES)),
    )


def _draw_count(u: np.ndarray, low: int, high: int) -> np.ndarray:
    """(B,) number of objects, in proportion to `COUNT_SHARES` within low..high."""
    shares = np.array(COUNT_SHARES[low - 1 : high])
    edges = np.cumsum(shares / shares.sum())[:-1]
    return low + np.searchsorted(edges, u, side="right")


def _distinct(u: np.ndarray, n: int) -> np.ndarray:
    """(B, 3) different integers below n from (B, 3) uniforms."""
    first = pick(u[:, 0], n)
    second = pick(u[:, 1], n - 1)
    second = second + (second >= first)
    third = pick(u[:, 2], n - 2)
    for taken in np.sort(np.stack([first, second], axis=1), axis=1).T:
        third = third + (third >= taken)
    return np.stack([first, second, third], axis=1)


def _place(count: np.ndarray, d: np.ndarray, u: np.ndarray) -> np.ndarray:
    """(B, 3, 2) centres for diameters (B, 3); u (B, 9) decides.

    Everything is laid out along a main and a cross axis and then turned: a pair lies along the
    main axis; a third object lies on one side of both, across it.
    """
    main = np.zeros_like(d)
    cross = np.zeros_like(d)
    slack = 1.0 - d[:, 0] - d[:, 1]
    room = np.maximum(slack, 0.0) * np.where(count == 3, 0.3, 1.0)
    main[:, 0] = d[:, 0] / 2 + room * np.minimum(u[:, 0], u[:, 1])
    main[:, 1] = 1 - d[:, 1] / 2 - room * (1 - np.maximum(u[:, 0], u[:, 1]))
    gap = main[:, 1] - main[:, 0]
    half = d / 2
    cross[:, 0] = half[:, 0] + (1 - d[:, 0]) * u[:, 2]
    shifted = cross[:, 0] + (u[:, 3] - 0.5) * gap
    cross[:, 1] = np.clip(shifted, half[:, 1], 1 - half[:, 1])
    three = count == 3
    band = 1.0 - np.maximum(d[:, 0], d[:, 1]) - d[:, 2]
    wiggle = np.clip(band / 2, 0.0, 0.08)
    for k in range(2):
        cross[:, k] = np.where(three, half[:, k] + wiggle * u[:, 2 + k], cross[:, k])
    cross[:, 2] = 1 - half[:, 2] - wiggle * u[:, 4]
    main[:, 2] = np.clip((main[:, 0] + main[:, 1]) / 2 + 0.08 * (u[:, 5] - 0.5), half[:, 2], None)
    main[:, 2] = np.minimum(main[:, 2], 1 - half[:, 2])
    single = count == 1
    main[:, 0] = np.where(single, half[:, 0] + (1 - d[:, 0]) * u[:, 0], main[:, 0])
    cross = np.where((three & (u[:, 6] < 0.5))[:, None], 1 - cross, cross)
    main = np.where((u[:, 7] < 0.5)[:, None], 1 - main, main)
    upright = (u[:, 8] < 0.5)[:, None]
    return np.stack([np.where(upright, cross, main), np.where(upright, main, cross)], axis=-1)


def _relations(centre: np.ndarray) -> np.ndarray:
    """(B, 3, 3) where object a is as seen from b: the axis of the larger offset decides."""
    offset = centre[:, :, None, :] - centre[:, None, :, :]  # (B, a, b, xy)
    dx, dy = offset[..., 0], offset[..., 1]
    across = np.where(dx < 0, 0, 1)
    along = np.where(dy < 0, 2, 3)
    relation = np.where(np.abs(dx) > np.abs(dy), across, along)
    relation[:, np.arange(MAX_OBJECTS), np.arange(MAX_OBJECTS)] = NO_RELATION
    return relation


def content_hash(layout: Layout) -> np.ndarray:
    """(B,) uint64 that depends on which concepts stand on which background, and on nothing else.

    It assigns every such combination to one split, so that a combination seen in training is
    never met in a test scene.
    """
    ordered = np.sort(layout.concept, axis=1) + 1
    number = layout.background.astype(np.int64)
    for k in range(MAX_OBJECTS):
        number = number * 4_093 + ordered[:, k]
    return integers(0, "content", number, 1)[:, 0]
