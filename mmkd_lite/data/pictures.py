"""EmojiPictures: one object a picture with fine and coarse labels; it stands for ImageNet & co.

The same engine draws pictures with one to three objects for training the teachers, whose labels
are then multi-hot, since teachers are applied to scenes later.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mmkd_lite.data.augment import augmented
from mmkd_lite.data.draws import uniforms
from mmkd_lite.data.emoji import concept_split, groups, labels, subgroups
from mmkd_lite.data.layout import Layout, draw_layouts
from mmkd_lite.data.prompts import template_set
from mmkd_lite.data.render import (
    SPRITE_SIZE,
    background_colours,
    channels_first,
    check_image_size,
    compose,
)
from mmkd_lite.data.shift import near_shift
from mmkd_lite.data.sprites import sprites

PLAIN_SHARE = 0.25
PICTURE_SPLITS = {"train": "seen", "composition": "seen", "concept": "unseen"}
TEMPLATES = template_set()
"""A class name with its article goes in, see `emoji.class_names(level, article=True)`."""


class EmojiPictures:
    """Labelled pictures of one split, drawn by one artist.

    Args:
        image_size: Side S in pixels.
        split: "train" and "composition" show seen concepts in different pictures, "concept"
            those that nothing is ever trained on.
        artist: "twemoji", "openmoji" or "noto"; concepts that the artist lacks are left out.
        shift: "none" or "near".
        seed: Seed of the pictures.
        objects: Fewest and most objects a picture.
        augment: Change colours, outlines, pose and background at random, for training; a quarter
            of the pictures stays as it is.
    """

    def __init__(
        self,
        image_size: int,
        split: str = "composition",
        artist: str = "twemoji",
        shift: str = "none",
        seed: int = 0,
        objects: tuple[int, int] = (1, 1),
        augment: bool = False,
    ) -> None:
        if split not in PICTURE_SPLITS:
            raise ValueError(f"unknown split {split!r}; choose one of {', '.join(PICTURE_SPLITS)}")
        if shift not in ("none", "near"):
            raise ValueError(f"shift is 'none' or 'near', got {shift!r}; far is another artist")
        check_image_size(image_size)
        self.image_size = image_size
        self.split = split
        self.artist = artist
        self.shift = shift
        self.seed = seed
        self.objects = objects
        self.augment = augment
        drawn = sprites(artist, SPRITE_SIZE)[1]
        self.pool = np.array([i for i in concept_split(PICTURE_SPLITS[split]) if drawn[i]])

    def layout(self, indices: Sequence[int] | np.ndarray) -> Layout:
        """Content of some pictures, as arrays."""
        rows = np.asarray(indices, dtype=np.int64)
        sizes = "near" if self.shift == "near" else "training"
        return draw_layouts(
            self.seed, self._stream, rows, self.pool, objects=self.objects, sizes=sizes
        )

    @property
    def _stream(self) -> str:
        return f"pictures:{self.split}"

    def draw(self, layout: Layout, indices: np.ndarray) -> np.ndarray:
        """(B, 3, S, S) uint8 pictures whose content is known."""
        size, seed, stream = self.image_size, self.seed, self._stream
        if self.augment:
            canvas = augmented(layout, size, self.artist, seed, stream, indices)
            plain = uniforms(seed, f"{stream}:plain", indices, 1)[:, 0] < PLAIN_SHARE
            if plain.any():
                rows = np.flatnonzero(plain)
                canvas[rows] = self._plain(layout.take(rows), indices[rows])
            return channels_first(canvas)
        if self.shift == "near":
            colours = background_colours(seed, stream, indices, layout.background)
            return channels_first(
                near_shift(layout, colours, self.artist, size, seed, stream, indices)
            )
        return channels_first(self._plain(layout, indices))

    def _plain(self, layout: Layout, indices: np.ndarray) -> np.ndarray:
        """(B, S, S, 3) pictures as the artist drew them."""
        colours = background_colours(self.seed, self._stream, indices, layout.background)
        return compose(layout, colours, self.artist, self.image_size, tuple(self.pool.tolist()))

    def batch(self, indices: Sequence[int] | np.ndarray) -> dict[str, np.ndarray]:
        """Pictures and labels.

        Args:
            indices: (B,) numbers of the pictures.

        Returns:
            `image` uint8 (B, 3, S, S). With one object a picture: `fine`, `coarse`, `concept`
            int64 (B,). With more: `fine` float32 (B, n_subgroups) and `coarse` (B, n_groups),
            multi-hot, and `concept` int64 (B, 3), -1 for no object.
        """
        rows = np.asarray(indices, dtype=np.int64)
        layout = self.layout(rows)
        image = self.draw(layout, rows)
        concept = layout.concept
        if self.objects == (1, 1):
            first = concept[:, 0]
            fine, coarse = labels("fine")[first], labels("coarse")[first]
            return {"image": image, "fine": fine, "coarse": coarse, "concept": first}
        return {
            "image": image,
            "fine": multi_hot(concept, labels("fine"), len(subgroups())),
            "coarse": multi_hot(concept, labels("coarse"), len(groups())),
            "concept": concept,
        }


def multi_hot(concept: np.ndarray, class_of: np.ndarray, classes: int) -> np.ndarray:
    """(B, classes) float32, 1 for each class that some object of the picture has.

    Args:
        concept: (B, 3) concept indices, -1 for no object.
        class_of: (n_concepts,) class id of each concept.
        classes: Number of classes.
    """
    hot = np.zeros((len(concept), classes), dtype=np.float32)
    picture, place = np.nonzero(concept >= 0)
    hot[picture, class_of[concept[picture, place]]] = 1.0
    return hot
