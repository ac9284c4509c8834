"""Checkers of notebook 04: leaks between variants, false negatives, balanced accuracy."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import numpy as np

from mmkd_lite.checks import expect
from mmkd_lite.data.emoji import variants


def exercise_1(answer: Callable[[list[int], float], float]) -> None:
    """Check the expected share of test emoji that have a variant in training.

    Args:
        answer: `leak(sizes, share)`: family sizes, and the probability with which each single
            emoji goes to the test set, give the expected share of test emoji with at least one
            variant of the same concept in training.
    """
    expect(abs(answer([1, 1, 1], 0.2)) < 1e-12, "an emoji without variants cannot leak")
    two = answer([2], 0.2)
    expect(abs(two - 0.8) < 1e-9, "of two variants, one in test: the other is in training for 1-p")
    three = answer([3], 0.5)
    expect(abs(three - 0.75) < 1e-9, "it leaks unless *all* other variants are in the test set")
    mixed = answer([1, 3], 0.5)
    expect(abs(mixed - 0.5625) < 1e-9, "weigh a family by how many emoji it has, not once each")
    sizes = list(Counter(variants().values()).values())
    expect(abs(answer(sizes, 0.2) - 0.6506) < 0.0001, "try it on the family sizes of all emoji")


def exercise_2(answer: Callable[[np.ndarray, np.ndarray], float]) -> None:
    """Check the mean number of false negatives a caption has.

    Args:
        answer: `false_negatives(relevance, image_of_text)` from truth (T, N) and the own image of
            each caption (T,): images other than the own one of which a caption is true, averaged
            over captions.
    """
    relevance = np.array([[1, 0, 1], [1, 0, 0], [1, 1, 1], [0, 0, 1]], dtype=bool)
    own = np.array([0, 0, 1, 2])
    found = answer(relevance, own)
    expect(abs(found - 1.75) > 1e-9, "the own image is no false negative: leave it out")
    expect(abs(found - 0.75) < 1e-9, f"1 + 0 + 2 + 0 over four captions is 0.75, yours: {found}")
    generator = np.random.default_rng(0)
    relevance, own = generator.random((50, 20)) < 0.3, generator.integers(0, 20, 50)
    relevance[np.arange(50), own] = True
    expected = (relevance.sum() - 50) / 50
    expect(abs(answer(relevance, own) - expected) < 1e-9, "wrong for a larger random table")


def exercise_3(answer: Callable[[np.ndarray, np.ndarray], float]) -> None:
    """Check the balanced accuracy.

    Args:
        answer: `balanced(predicted, label)`: per cent right within each class, averaged over the
            classes that occur among the labels.
    """
    label = np.array([0, 0, 0, 0, 0, 0, 1, 1, 2, 2])
    majority = np.zeros(10, dtype=int)
    found = answer(majority, label)
    expect(abs(found - 60) > 1e-9, "this is plain accuracy: average over classes, not pictures")
    expect(abs(found - 100 / 3) < 1e-9, "always answering one of three classes gives 100/3")
    predicted = np.array([0, 0, 0, 1, 1, 5, 1, 0, 2, 2])
    found = answer(predicted, label)
    expect(abs(found - 200 / 3) < 1e-9, "classes that are only predicted do not count")
