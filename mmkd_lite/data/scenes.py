"""EmojiScenes: an endless supply of pictures with five captions each; it stands for COCO.

Scene i of a split is a pure function of (world seed, split, i) and of nothing else; the image size,
the artist and the vocabulary of the captions change how it is shown and told, not what it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from mmkd_lite.data.captions import CAPTIONS_PER_IMAGE, Meaning, level_shares, write_captions
from mmkd_lite.data.emoji import scene_concepts
from mmkd_lite.data.layout import Layout
from mmkd_lite.data.noise import make_wrong
from mmkd_lite.data.render import background_colours, channels_first, check_image_size, compose
from mmkd_lite.data.shift import SHIFTS, near_shift
from mmkd_lite.data.truth import is_true
from mmkd_lite.data.world import SPLITS, Scene, describe, meaning_keys, scene_layouts

if TYPE_CHECKING:
    from mmkd_lite.config import DataConfig


class EmojiScenes:
    """Scenes of one split, drawn by one artist.

    Args:
        config: What the world looks like (`image_size`, `concepts`, `world_seed`, `vocabulary`).
        split: "train", "composition" or "validation".
        artist: "twemoji", "openmoji" or "noto".
        shift: "none"; "near" for hue, contrast, rotation and size outside the training range;
            "far" for another artist's hand (OpenMoji, unless `artist` already is not Twemoji).
    """

    def __init__(
        self, config: DataConfig, split: str = "train", artist: str = "twemoji", shift: str = "none"
    ) -> None:
        if split not in SPLITS:
            raise ValueError(f"unknown split {split!r}; choose one of {', '.join(SPLITS)}")
        if shift not in SHIFTS:
            raise ValueError(f"unknown shift {shift!r}; choose one of {', '.join(SHIFTS)}")
        check_image_size(config.image_size)
        level_shares(config.vocabulary)  # refuses an unknown preset now, not at the first batch
        self.config = config
        self.split = split
        self.shift = shift
        self.artist = "openmoji" if shift == "far" and artist == "twemoji" else artist
        self.pool = scene_concepts(config.concepts)

    def layout(self, indices: Sequence[int] | np.ndarray) -> Layout:
        """Content of some scenes, as arrays."""
        sizes = "near" if self.shift == "near" else "training"
        rows = np.asarray(indices, dtype=np.int64)
        return scene_layouts(self.config.world_seed, self.split, rows, np.array(self.pool), sizes)

    def scene(self, index: int) -> Scene:
        """Content of one scene, readable."""
        return describe(self.layout([index]))

    def image(self, index: int) -> np.ndarray:
        """(3, S, S) uint8 picture of one scene."""
        return self.draw(self.layout([index]), np.array([index]))[0]

    def captions(self, index: int) -> tuple[str, ...]:
        """The five captions of one scene."""
        return tuple(self.texts([index])[0])

    def texts(self, indices: Sequence[int] | np.ndarray) -> list[list[str]]:
        """The captions of some scenes, without drawing them."""
        rows = np.asarray(indices, dtype=np.int64)
        return self.tell(self.layout(rows), rows)[0]

    def draw(self, layout: Layout, indices: np.ndarray) -> np.ndarray:
        """(B, 3, S, S) uint8 pictures of scenes whose content is known."""
        seed, stream = self.config.world_seed, f"scenes:{self.split}"
        colours = background_colours(seed, stream, indices, layout.background)
        if self.shift == "near":
            canvas = near_shift(
                layout, colours, self.artist, self.config.image_size, seed, stream, indices
            )
        else:
            canvas = compose(layout, colours, self.artist, self.config.image_size, self.pool)
        return channels_first(canvas)

    def tell(
        self, layout: Layout, indices: np.ndarray
    ) -> tuple[list[list[str]], Meaning, np.ndarray]:
        """Captions, meanings and clean flags of scenes whose content is known.

        Noise (`config.noise`) is made in the training split only.

        Returns:
            B lists of five captions, the 5 B meanings, and (B, 5) bool, False for a wrong caption.
        """
        config, stream = self.config, f"scenes:{self.split}"
        texts, meaning = write_captions(
            layout, config.world_seed, stream, indices, config.vocabulary
        )
        clean = np.ones((len(layout), CAPTIONS_PER_IMAGE), dtype=bool)
        if config.noise > 0 and self.split == "train":
            clean = make_wrong(texts, meaning, layout, indices, self.layout, config)
        return texts, meaning, clean

    def batch(self, indices: Sequence[int] | np.ndarray) -> dict[str, Any]:
        """Pictures and captions of some scenes.

        Args:
            indices: (B,) numbers of the scenes.

        Returns:
            `image` uint8 (B, 3, S, S), `captions` B lists of five, `image_id` int64 (B,), `clean`
            bool (B, 5), `layout` and `meaning` (of the 5 B captions as they read).
        """
        rows = np.asarray(indices, dtype=np.int64)
        layout = self.layout(rows)
        captions, meaning, clean = self.tell(layout, rows)
        return {
            "image": self.draw(layout, rows),
            "captions": captions,
            "image_id": rows,
            "clean": clean,
            "layout": layout,
            "meaning": meaning,
        }

    def true_of(self, meaning: Meaning, layout: Layout) -> np.ndarray:
        """(T, N) bool: which captions are true of which scenes; see `truth.is_true`."""
        return is_true(meaning, layout)


@dataclass
class Gallery:
    """What retrieval is scored on.

    Attributes:
        images: uint8 (N, 3, S, S).
        captions: T captions, those of image 0 first.
        image_of_text: int64 (T,) row of the image that each caption was written for.
        relevance: bool (T, N), which captions are true of which images; where None is given,
            the own image only.
        name: Split, artist and shift, as "composition/twemoji".
        layout: Content of the images, where known.
        meaning: Meanings of the captions, where known.
    """

    images: Any
    captions: list[str]
    image_of_text: Any
    relevance: np.ndarray | None
    name: str
    layout: Layout | None = None
    meaning: Meaning | None = None

    def __post_init__(self) -> None:
        """Fill in truth by id where no other truth is known."""
        if self.relevance is None:
            owner = np.asarray(self.image_of_text)
            self.relevance = owner[:, None] == np.arange(len(self.images))


def gallery(
    config: DataConfig,
    images: int = 1000,
    split: str = "composition",
    artist: str = "twemoji",
    shift: str = "none",
    captions_per_image: int = CAPTIONS_PER_IMAGE,
) -> Gallery:
    """The first scenes of a split of which no two have equal meaning, with truth.

    Args:
        config: The world; its noise is not applied here.
        images: N, how many scenes.
        split: "composition", "validation" or "train".
        artist: Who drew the sprites.
        shift: "none", "near" or "far".
        captions_per_image: 1 to 5.

    Raises:
        ValueError: A number outside its range, or the world has fewer scenes of that split.
    """
    if images < 1 or not 1 <= captions_per_image <= CAPTIONS_PER_IMAGE:
        raise ValueError(
            f"a gallery needs images >= 1 and 1 to {CAPTIONS_PER_IMAGE} captions per image, "
            f"got {images} and {captions_per_image}"
        )
    scenes = EmojiScenes(config, split, artist, shift)
    rows = _without_twins(scenes, images)
    layout = scenes.layout(rows)
    texts, meaning = write_captions(
        layout, config.world_seed, f"scenes:{split}", rows, config.vocabulary
    )
    kept = np.arange(images * CAPTIONS_PER_IMAGE).reshape(images, -1)[:, :captions_per_image]
    meaning = meaning.take(kept.reshape(-1))
    suffix = "" if shift == "none" else f"/{shift}"
    return Gallery(
        images=np.concatenate(
            [scenes.draw(layout.take(part), rows[part]) for part in _parts(images, 512)]
        ),
        captions=[text for own in texts for text in own[:captions_per_image]],
        image_of_text=np.repeat(np.arange(images), captions_per_image),
        relevance=is_true(meaning, layout),
        name=f"{split}/{scenes.artist}{suffix}",
        layout=layout,
        meaning=meaning,
    )


def _parts(count: int, size: int) -> list[np.ndarray]:
    """0 .. count-1 in consecutive parts."""
    return [np.arange(start, min(start + size, count)) for start in range(0, count, size)]


def _without_twins(scenes: EmojiScenes, images: int) -> np.ndarray:
    """Numbers of the first scenes that differ in meaning from all before them."""
    rows, tried = np.arange(0), 0
    while len(rows) < images:
        start = len(rows)
        tried = 2 * max(tried, images)
        candidates = np.arange(tried)
        keys = meaning_keys(scenes.layout(candidates))
        rows = np.sort(np.unique(keys, axis=0, return_index=True)[1])
        if len(rows) == start:
            raise ValueError(
                f"the split {scenes.split} has only {start} scenes of different meaning with "
                f"{scenes.config.concepts} concepts; ask for fewer than {images} images"
            )
    return rows[:images]
