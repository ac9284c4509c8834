"""Captions with a meaning: what five writers say of a scene, and when that is true of another.

A writer looks at the scene and decides, independently of the others: how to name each object (its
name, its subgroup word or its group word), whether to tell its size, the background, the relation,
the third object, and from which side to tell the relation ("A left of B" = "B right of A"). The
decisions are kept as numbers beside the text (the *meaning*), so truth needs no reading.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mmkd_lite.data.draws import pick, uniforms
from mmkd_lite.data.emoji import class_names, groups, labels
from mmkd_lite.data.layout import (
    BACKGROUND_NAMES,
    INVERSE,
    MAX_OBJECTS,
    NO_RELATION,
    SIZES,
    Layout,
)
from mmkd_lite.data.words import with_article

CAPTIONS_PER_IMAGE = 5
LEVELS = ("name", "fine", "coarse")
DEFAULT_SHARES = (0.7, 0.2, 0.1)
_HELD_BACK = ("People & Body", "Animals & Nature", "Food & Drink", "Objects")
VOCABULARIES: dict[str, dict[str, tuple[float, float, float]]] = {
    "default": {},
    "no_groups": dict.fromkeys(_HELD_BACK, (1.0, 0.0, 0.0)),  # these never by a class word
    "no_names": dict.fromkeys(_HELD_BACK, (0.0, 0.6, 0.4)),  # these never by their own name
}
SIZE_SHARE, BACKGROUND_SHARE, RELATION_SHARE, THIRD_SHARE = 0.3, 0.6, 0.85, 0.75
_SLOTS = 16

RELATION_PHRASES = (
    ("to the left of", "left of"),
    ("to the right of", "right of"),
    ("above", "over"),
    ("below", "under"),
)
_THIRD_PHRASES = ("to the left of them", "to the right of them", "above them", "below them")
_BOTH_PHRASES = ("both left of", "both right of", "both above", "both below")
_OPENINGS = ("", "", "there is ", "a picture of ", "we see ")
_BACKGROUND_WORDINGS = 4
_BACKGROUND_PHRASES = [
    (
        f"on {with_article('background', name)}",
        f"on {name}",
        f"against {with_article('background', name)}",
        f"in front of {name}",
    )
    for name in BACKGROUND_NAMES
]


@dataclass(frozen=True)
class Meaning:
    """What some captions claim; rows are captions.

    Attributes:
        level: (T, 3) int64, how each object is named: 0 name, 1 fine, 2 coarse, -1 not mentioned.
        label: (T, 3) int64, concept index or class id at that level, -1 not mentioned.
        large: (T, 3) int64, 1 large, 0 small, -1 not said.
        relation: (T, 3, 3) int64, where object a is said to be as seen from b, -1 not said.
        background: (T,) int64 background index, -1 not said.
    """

    level: np.ndarray
    label: np.ndarray
    large: np.ndarray
    relation: np.ndarray
    background: np.ndarray

    def __len__(self) -> int:
        return len(self.background)

    def take(self, rows: np.ndarray) -> Meaning:
        """The meanings of some captions."""
        return Meaning(
            self.level[rows], self.label[rows], self.large[rows],
            self.relation[rows], self.background[rows],
        )  # fmt: skip


def level_shares(vocabulary: str) -> np.ndarray:
    """(n_groups, 3) probabilities of name, subgroup word and group word, by group of the object.

    Raises:
        ValueError: There is no such preset.
    """
    if vocabulary not in VOCABULARIES:
        raise ValueError(
            f"unknown vocabulary {vocabulary!r}; choose one of {', '.join(VOCABULARIES)}"
        )
    return np.array([VOCABULARIES[vocabulary].get(group, DEFAULT_SHARES) for group in groups()])


def write_captions(
    layout: Layout, seed: int, stream: str, indices: np.ndarray, vocabulary: str = "default"
) -> tuple[list[list[str]], Meaning]:
    """Five captions for each scene, and their meanings.

    Args:
        layout: Content of B scenes.
        seed: Seed of the world.
        stream: Name of the stream of random numbers.
        indices: (B,) numbers of the scenes; captions depend on nothing else.
        vocabulary: Preset of level shares, a key of `VOCABULARIES`.

    Returns:
        B lists of five captions, and the meanings of all 5 B captions in the same order.
    """
    told = np.repeat(np.arange(len(layout)), CAPTIONS_PER_IMAGE)
    numbers = np.asarray(indices)[told] * CAPTIONS_PER_IMAGE
    numbers = numbers + np.tile(np.arange(CAPTIONS_PER_IMAGE), len(layout))
    texts, meaning = write_numbered(layout.take(told), seed, stream, numbers, vocabulary)
    step = CAPTIONS_PER_IMAGE
    return [texts[i : i + step] for i in range(0, len(texts), step)], meaning


def write_numbered(
    layout: Layout, seed: int, stream: str, numbers: np.ndarray, vocabulary: str
) -> tuple[list[str], Meaning]:
    """One caption for each row of a layout.

    Args:
        layout: Content of T scenes, one for each caption.
        seed: Seed of the world.
        stream: Name of the stream of random numbers.
        numbers: (T,) numbers of the captions: 5 times the scene's number plus 0..4.
        vocabulary: Preset of level shares.
    """
    u = uniforms(seed, f"{stream}:captions", numbers, _SLOTS)
    meaning, style = _decide(layout, u, level_shares(vocabulary))
    return _write(meaning, style), meaning


def _decide(layout: Layout, u: np.ndarray, shares: np.ndarray) -> tuple[Meaning, np.ndarray]:
    """Meanings and style numbers (T, 3) of captions, one for each row of the layout."""
    mentioned = layout.concept >= 0
    mentioned = mentioned & ((np.arange(MAX_OBJECTS) < 2) | (u[:, :1] < THIRD_SHARE))
    swapped = (u[:, 1] < 0.5) & (layout.count > 1)  # tell it from the other side
    order = np.where(swapped[:, None], np.array([1, 0, 2]), np.arange(MAX_OBJECTS))
    rows = np.arange(len(layout))[:, None]
    concept = layout.concept[rows, order]
    coarse, fine = labels("coarse")[concept], labels("fine")[concept]
    edges = np.cumsum(shares, axis=1)[coarse]  # (T, 3, 3)
    level = np.minimum((u[:, 2:5, None] >= edges).sum(axis=2), 2)
    label = np.select([level == 0, level == 1], [concept, fine], coarse)
    sized = (u[:, 5:8] < SIZE_SHARE) & mentioned
    relation = layout.relation[rows[:, :, None], order[:, :, None], order[:, None, :]]
    said = mentioned[:, :, None] & mentioned[:, None, :] & (u[:, 8] < RELATION_SHARE)[:, None, None]
    meaning = Meaning(
        level=np.where(mentioned, level, -1),
        label=np.where(mentioned, label, -1),
        large=np.where(sized, layout.large[rows, order], -1),
        relation=np.where(said, relation, NO_RELATION),
        background=np.where(u[:, 9] < BACKGROUND_SHARE, layout.background, -1),
    )
    style = [pick(u[:, 10], len(_OPENINGS)), pick(u[:, 11], _BACKGROUND_WORDINGS)]
    return meaning, np.stack([*style, pick(u[:, 12], 2)], axis=1)


def _phrases() -> list[list[list[str]]]:
    """Noun phrases by level, label and size (last: not said)."""
    return [
        [[with_article(noun, size) for size in (*SIZES, "")] for noun in class_names(level)]
        for level in ("concept", "fine", "coarse")
    ]


_PHRASES = _phrases()


def _write(meaning: Meaning, style: np.ndarray) -> list[str]:
    """The text of each caption."""
    columns = zip(
        meaning.level.tolist(), meaning.label.tolist(), meaning.large.tolist(),
        meaning.relation.tolist(), meaning.background.tolist(), style.tolist(), strict=True,
    )  # fmt: skip
    return [
        _sentence(
            [
                _PHRASES[k][n][size]
                for k, n, size in zip(level, label, large, strict=True)
                if k >= 0
            ],
            relation,
            background,
            choice,
        )
        for level, label, large, relation, background, choice in columns
    ]


def _sentence(
    nouns: list[str], relation: list[list[int]], background: int, style: list[int]
) -> str:
    """One caption from its noun phrases, relations, background and style numbers."""
    opening, backdrop, wording = style
    text = nouns[0]
    if len(nouns) > 1:
        between, third = relation[0][1], relation[2][0]
        if between < 0:  # no relation is told
            text = (
                f"{nouns[0]}, {nouns[1]} and {nouns[2]}"
                if len(nouns) > 2
                else (f"{nouns[0]} and {nouns[1]}")
            )
        else:
            text = f"{nouns[0]} {RELATION_PHRASES[between][wording]} {nouns[1]}"
            if len(nouns) > 2 and wording:
                text = f"{text} and {nouns[2]} {_THIRD_PHRASES[third]}"
            elif len(nouns) > 2:
                text = f"{text}, {_BOTH_PHRASES[INVERSE[third]]} {nouns[2]}"
    text = _OPENINGS[opening] + text
    if background >= 0:
        text = f"{text} {_BACKGROUND_PHRASES[background][backdrop]}"
    return text
