"""EmojiCrash: 100-frame clips in which two vehicles pass each other or collide; it stands for the dashcam set.

Two vehicles run about in a square and bounce off its sides. Their paths are laid backwards from one moment
among the last 10 frames at which they pass closely, in opposite directions. In a clip without an accident they
pass; in one with an accident they swerve into each other and a collision sign shows for a few frames, after
which both are back on their paths. The label changes those frames and nothing else, so that no frame before
the window, and no set of them, can tell the classes apart.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import numpy as np

from mmkd_lite.data.draws import pick, uniforms
from mmkd_lite.data.emoji import concepts
from mmkd_lite.data.layout import BACKGROUND_NAMES, MAX_OBJECTS, NO_RELATION, SMALL, Layout
from mmkd_lite.data.render import background_colours, channels_first, check_image_size, compose

FRAMES = 100
WINDOW = 10  # an accident happens within the last 10 frames
VISIBLE = 3  # frames that a collision lasts
BLOCK, CRASHES = 20, 7  # of every 20 clips 7 crash: 35 %
CLIP_SPLITS = ("train", "validation", "test")
VEHICLES = (
    "bus", "trolleybus", "minibus", "fire engine", "taxi", "sport utility vehicle", "pickup truck",
    "delivery truck", "articulated lorry", "tractor", "racing car", "motorcycle", "motor scooter",
    "auto rickshaw",
)  # fmt: skip
"""Concepts of the seen split, so that the shipped teachers have met each of them."""
SIGN = "collision"
SIGN_DIAMETER = 0.33
_SPEED = (0.006, 0.014)  # of the side, a frame
_MISS, _HIT = 1.1, 0.55  # distance of the centres at the meeting, in sums of both radii
_MEETING = (0.42, 0.58)


@cache
def _named(name: str) -> int:
    return next(concept.index for concept in concepts() if concept.name == name)


class EmojiCrash:
    """Clips of one split, endless; clip i is a pure function of (seed, split, i).

    Args:
        image_size: Side S in pixels.
        split: "train", "validation" or "test"; of every 20 clips 7 crash in each (35 %, as in the source's
            test set; errata E003-06 gives 35.4 % for its training set).
        artist: Who drew the sprites.
        seed: Seed of the world.
        visible: v, how many frames a collision lasts, 1 to 10.

    Raises:
        ValueError: Unknown split, or a size or `visible` out of range.

    Source: seed 003, section 3.3.1 (Aadv). Derived in notebooks/35_video.ipynb.
    """

    length = FRAMES

    def __init__(
        self,
        image_size: int = 48,
        split: str = "train",
        artist: str = "twemoji",
        seed: int = 0,
        visible: int = VISIBLE,
    ) -> None:
        if split not in CLIP_SPLITS:
            raise ValueError(f"unknown split {split!r}; choose one of {', '.join(CLIP_SPLITS)}")
        if not 1 <= visible <= WINDOW:
            raise ValueError(f"a collision lasts visible = 1 to {WINDOW} frames, got {visible}")
        check_image_size(image_size)
        self.image_size, self.split, self.artist = image_size, split, artist
        self.seed, self.visible = seed, visible
        self.vehicles = np.array(sorted(map(_named, VEHICLES)))
        self.pool = tuple(sorted([*self.vehicles.tolist(), _named(SIGN)]))
        self._stream = f"clips:{split}"

    def labels(self, indices: Sequence[int] | np.ndarray) -> np.ndarray:
        """(B,) int64, 1 for a clip with an accident."""
        rows = np.asarray(indices, dtype=np.int64)
        own_block = (rows // BLOCK * BLOCK)[:, None] + np.arange(BLOCK)  # (B, 20)
        drawn = uniforms(self.seed, f"{self._stream}:label", own_block.reshape(-1), 1)
        drawn = drawn.reshape(own_block.shape)
        own = np.take_along_axis(drawn, (rows % BLOCK)[:, None], axis=1)
        return ((drawn < own).sum(axis=1) < CRASHES).astype(np.int64)

    def contact(self, indices: Sequence[int] | np.ndarray) -> np.ndarray:
        """(B,) first frame of the meeting, 90 to 100 - v; clips without an accident have one too."""
        u = self._draws(indices)[:, 9]
        return FRAMES - WINDOW + pick(u, WINDOW - self.visible + 1)

    def share_seen(self, frames: Sequence[int] | np.ndarray) -> float:
        """Share, in [0, 1], of accidents whose collision shows in at least one of these frames.

        Any other accident looks like none, so a perfect reader of the frames has this recall.
        """
        times = checked_frames(frames, FRAMES)
        first = np.arange(FRAMES - WINDOW, FRAMES - self.visible + 1)[:, None]  # all are as likely
        return float(((times >= first) & (times < first + self.visible)).any(axis=1).mean())

    def layout(
        self,
        indices: Sequence[int] | np.ndarray,
        frames: Sequence[int] | np.ndarray,
        crash: Sequence[int] | np.ndarray | None = None,
    ) -> Layout:
        """Content of some frames of some clips.

        Args:
            indices: (B,) numbers of the clips.
            frames: (F,) numbers of the frames, 0 to 99; repetitions are fine.
            crash: (B,) labels to use in place of the clips' own: the same clip had it gone otherwise.

        Returns:
            Content of B F pictures, clip by clip.

        Raises:
            ValueError: A frame that no clip has.
        """
        times = checked_frames(frames, FRAMES)
        u = self._draws(indices)
        happens = self.labels(indices) if crash is None else np.asarray(crash)
        first = self.contact(indices)[:, None]
        shown = (
            (times >= first) & (times < first + self.visible) & (happens[:, None] == 1)
        )  # (B, F)
        diameter = np.array(SMALL)[pick(u[:, 2:4], len(SMALL))]  # (B, 2)
        centre = self._paths(u, diameter, times - (first + (self.visible - 1) / 2), shown)
        first_vehicle = pick(u[:, 0], len(self.vehicles))
        other = pick(u[:, 1], len(self.vehicles) - 1)
        pair = np.stack([first_vehicle, other + (other >= first_vehicle)], axis=1)  # (B, 2)
        count = len(times)
        sign = np.where(shown, _named(SIGN), -1).reshape(-1, 1)
        concept = np.concatenate([np.repeat(self.vehicles[pair], count, axis=0), sign], axis=1)
        widths = np.concatenate(
            [np.repeat(diameter, count, axis=0), np.where(sign >= 0, SIGN_DIAMETER, 0.0)], axis=1
        )
        return Layout(
            concept=concept,
            large=np.where(concept >= 0, 0, -1),
            diameter=widths,
            centre=centre.reshape(-1, MAX_OBJECTS, 2),
            relation=np.full((len(concept), MAX_OBJECTS, MAX_OBJECTS), NO_RELATION),
            background=np.repeat(pick(u[:, 10], len(BACKGROUND_NAMES)), count),
        )

    def clips(
        self,
        indices: Sequence[int] | np.ndarray,
        frames: Sequence[int] | np.ndarray = range(FRAMES),
        crash: Sequence[int] | np.ndarray | None = None,
    ) -> np.ndarray:
        """(B, F, 3, S, S) uint8: the frames asked for, and only those are drawn; see `layout`."""
        rows = np.asarray(indices, dtype=np.int64)
        layout = self.layout(rows, frames, crash)
        count = len(layout) // max(len(rows), 1)
        colours = background_colours(self.seed, self._stream, rows, layout.background[::count])
        canvas = compose(
            layout, np.repeat(colours, count, axis=0), self.artist, self.image_size, self.pool
        )
        return channels_first(canvas).reshape(len(rows), count, 3, *canvas.shape[1:3])

    def _draws(self, indices: Sequence[int] | np.ndarray) -> np.ndarray:
        return uniforms(self.seed, self._stream, indices, 11)

    def _paths(
        self, u: np.ndarray, diameter: np.ndarray, time: np.ndarray, shown: np.ndarray
    ) -> np.ndarray:
        """(B, F, 3, 2) centres of both vehicles and of the sign.

        Args:
            u: (B, 11) random numbers.
            diameter: (B, 2).
            time: (B, F) frames since the middle of the meeting.
            shown: (B, F) bool, where the two collide.
        """
        low, high = _MEETING
        meeting = low + (high - low) * u[:, None, 4:6]  # (B, 1, 2)
        angle = 2 * np.pi * u[:, 6]
        across = np.stack([np.cos(angle), np.sin(angle)], axis=1)[:, None]  # (B, 1, 2)
        along = np.stack([-np.sin(angle), np.cos(angle)], axis=1)[:, None]
        speed = _SPEED[0] + (_SPEED[1] - _SPEED[0]) * u[:, 7:9]
        apart = diameter.mean(axis=1)[:, None, None] / 2  # half the sum of both radii
        half = apart * np.where(shown, _HIT, _MISS)[..., None]  # (B, F, 1)
        centres = [
            _folded(
                meeting + sign * (half * across + along * (speed[:, k, None] * time)[..., None]),
                diameter[:, k, None, None] / 2,
            )
            for k, sign in enumerate((-1, 1))
        ]
        return np.stack([*centres, np.broadcast_to(meeting, centres[0].shape)], axis=2)


def _folded(position: np.ndarray, margin: np.ndarray) -> np.ndarray:
    """Positions after bouncing off both sides, so that they lie in [margin, 1 - margin]."""
    room = 1 - 2 * margin
    return margin + room - np.abs((position - margin) % (2 * room) - room)


def checked_frames(frames: Sequence[int] | np.ndarray, length: int) -> np.ndarray:
    """Return frame numbers as an array.

    Raises:
        ValueError: None at all, or one outside 0 to `length` - 1.
    """
    times = np.asarray(frames, dtype=np.int64)
    if times.ndim != 1 or not len(times) or times.min() < 0 or times.max() >= length:
        raise ValueError(
            f"frames must be one or more numbers of 0..{length - 1}, got {times.tolist()}"
        )
    return times
