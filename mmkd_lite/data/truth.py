"""Which captions are true of which scenes, decided from their content, never from their words.

A caption is true of a scene if its objects can be found there: different objects for different
mentions, each with the label and size that is told, standing as told, on the background that is
told. What a caption does not mention is free, so a short caption may be true of many scenes.
"""

from __future__ import annotations

from itertools import permutations

import numpy as np

from mmkd_lite.data.captions import Meaning
from mmkd_lite.data.emoji import labels
from mmkd_lite.data.layout import MAX_OBJECTS, Layout

_CHUNK = 256
_LEVEL_OFFSET = 4_096  # keys of the three levels do not meet


def is_true(meaning: Meaning, layout: Layout) -> np.ndarray:
    """Truth of T captions in N scenes.

    Args:
        meaning: What the captions claim.
        layout: What the scenes hold.

    Returns:
        (T, N) bool.
    """
    claims, facts = _claims(meaning), _facts(layout)
    truth = np.empty((len(meaning), len(layout)), dtype=bool)
    for start in range(0, len(meaning), _CHUNK):
        part = {name: array[..., start : start + _CHUNK, None] for name, array in claims.items()}
        truth[start : start + _CHUNK] = _holds(part, facts)
    return truth


def is_true_of_own(meaning: Meaning, layout: Layout) -> np.ndarray:
    """Truth of caption t in scene t: the diagonal of `is_true`, without the rest.

    Args:
        meaning: What T captions claim.
        layout: What T scenes hold.

    Returns:
        (T,) bool.
    """
    return _holds(_claims(meaning), _facts(layout))


def _claims(meaning: Meaning) -> dict[str, np.ndarray]:
    """Small arrays whose last axis is the caption; -1 stands for "not said"."""
    key = np.where(meaning.level < 0, -1, meaning.level * _LEVEL_OFFSET + meaning.label)
    return {
        "key": key.T.astype(np.int16),  # (3, T)
        "large": meaning.large.T.astype(np.int8),  # (3, T)
        "relation": meaning.relation.transpose(1, 2, 0).astype(np.int8),  # (3, 3, T)
        "background": meaning.background.astype(np.int8),  # (T,)
    }


def _facts(layout: Layout) -> dict[str, np.ndarray]:
    """Small arrays whose last axis is the scene; -2 where there is no object."""
    concept = layout.concept.T
    keys = [concept, labels("fine")[concept], labels("coarse")[concept]]
    keys = [np.where(concept < 0, -2, k * _LEVEL_OFFSET + key) for k, key in enumerate(keys)]
    return {
        "key": np.stack(keys).astype(np.int16),  # (3 levels, 3, N)
        "large": layout.large.T.astype(np.int8),
        "relation": layout.relation.transpose(1, 2, 0).astype(np.int8),
        "background": layout.background.astype(np.int8),
    }


def _holds(claims: dict[str, np.ndarray], facts: dict[str, np.ndarray]) -> np.ndarray:
    """Truth, elementwise over the broadcast last axes of claims and facts."""
    fits_background = (claims["background"] < 0) | (claims["background"] == facts["background"])
    answers = [
        [_answers(claims, facts, mention, place) for place in range(MAX_OBJECTS)]
        for mention in range(MAX_OBJECTS)
    ]
    stands: dict[tuple[int, int, int, int], np.ndarray] = {}
    for a, b in ((0, 1), (0, 2), (1, 2)):
        said = claims["relation"][a, b]
        for x, y in permutations(range(MAX_OBJECTS), 2):
            stands[a, b, x, y] = (said < 0) | (said == facts["relation"][x, y])
    found = np.zeros_like(fits_background)
    for x, y, z in permutations(range(MAX_OBJECTS)):
        fits = answers[0][x] & answers[1][y] & answers[2][z]
        found |= fits & stands[0, 1, x, y] & stands[0, 2, x, z] & stands[1, 2, y, z]
    return found & fits_background


def _answers(
    claims: dict[str, np.ndarray], facts: dict[str, np.ndarray], mention: int, place: int
) -> np.ndarray:
    """Whether the object at a place has the label and size of a mention; no mention, any does."""
    key, large = claims["key"][mention], claims["large"][mention]
    same_label = key < 0
    for level in range(len(facts["key"])):
        same_label = same_label | (key == facts["key"][level, place])
    return same_label & ((large < 0) | (large == facts["large"][place]))
