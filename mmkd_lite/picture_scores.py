"""Classification scores of a student: zero-shot and linear probe on one-object pictures, fine and coarse."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from mmkd_lite.config import DataConfig, RunConfig
from mmkd_lite.data.emoji import class_names, labels, scene_concepts
from mmkd_lite.data.pictures import TEMPLATES, EmojiPictures
from mmkd_lite.data.tokenizer import load_tokenizer
from mmkd_lite.evaluate import embed_images, embed_texts, linear_probe
from mmkd_lite.evaluate.zero_shot import zero_shot_accuracy, zero_shot_classifier
from mmkd_lite.methods import Method

LEVELS = ("fine", "coarse")
PICTURES_A_CONCEPT = {"train": 10, "composition": 5}
"""How many pictures of each concept; one at the tiny scale."""


class Labelled(NamedTuple):
    """Pictures (N, 3, S, S) uint8, labels (N,) by level, renumbered over the classes that occur, concepts (N,)."""

    images: Tensor
    labels: dict[str, Tensor]
    names: dict[str, list[str]]
    concept: Tensor | None = None


def score_pictures(method: Method, config: RunConfig) -> dict[str, dict[str, Any]]:
    """Return zero-shot and probe accuracies of the student's image embedding, beside chance and majority.

    The pictures show one concept each, of those that occur in the scenes; probes are trained on
    other pictures of the same concepts.
    """
    train, test = labelled_pictures(config, "train"), labelled_pictures(config, "composition")
    train_x = embed_images(method.encode_image, train.images)
    test_x = embed_images(method.encode_image, test.images)
    tokenizer = load_tokenizer(config.data.tokenizer)

    def encode(sentences: list[str]) -> Tensor:
        tokens = tokenizer.encode(sentences, config.data.max_tokens)
        return embed_texts(method.encode_text, tokens)

    scores: dict[str, dict[str, Any]] = {}
    for level in LEVELS:
        classifier = zero_shot_classifier(encode, test.names[level], TEMPLATES)
        scores[f"zero_shot_{level}"] = zero_shot_accuracy(test_x, classifier, test.labels[level])
        scores[f"probe_{level}"] = probe_score(train_x, test_x, train, test, level)
    return scores


def probe_score(
    train_x: Tensor, test_x: Tensor, train: Labelled, test: Labelled, level: str
) -> dict[str, Any]:
    """Return the linear-probe accuracy of features, in per cent, with chance, majority and the C chosen."""
    found = linear_probe(train_x, train.labels[level], test_x, test.labels[level])
    return {
        "accuracy": found.accuracy,
        "chance": found.chance,
        "majority": found.majority,
        "n": len(test_x),
        "classes": len(found.classes),
        "inverse_regularisation": found.inverse_regularisation,
    }


def labelled_pictures(
    config: RunConfig, split: str, artist: str = "twemoji", shift: str = "none"
) -> Labelled:
    """Return one-object pictures of the concepts that scenes are made of.

    Args:
        config: Gives picture size, concepts and scale (fewer pictures at "tiny").
        split: "train" or "composition".
        artist: Who drew them; concepts that the artist lacks are left out.
        shift: "none" or "near".
    """
    count = 1 if config.scale == "tiny" else PICTURES_A_CONCEPT[split]
    return _pictures(config.data, split, artist, shift, count)


@functools.lru_cache(maxsize=4)
def _pictures(data: DataConfig, split: str, artist: str, shift: str, count: int) -> Labelled:
    source = EmojiPictures(data.image_size, split, artist, shift)
    wanted = np.intersect1d(scene_concepts(data.concepts), source.pool)
    shown: np.ndarray = np.empty(0, dtype=np.int64)
    while len(shown) == 0 or min((shown == concept).sum() for concept in wanted) < count:
        block = np.arange(len(shown), len(shown) + 8192)
        shown = np.concatenate([shown, source.layout(block).concept[:, 0]])
    rows = np.concatenate([np.flatnonzero(shown == concept)[:count] for concept in wanted])
    batch = source.batch(np.sort(rows))
    of_scene = {level: _classes(level, data.concepts) for level in LEVELS}
    numbered = {
        level: torch.as_tensor(np.searchsorted(of_scene[level], batch[level])) for level in LEVELS
    }
    names = {
        level: [class_names(level, article=True)[c] for c in of_scene[level]] for level in LEVELS
    }
    concept = torch.as_tensor(batch["concept"])
    return Labelled(torch.as_tensor(batch["image"]), numbered, names, concept)


def _classes(level: str, concepts: int) -> np.ndarray:
    """Return the sorted ids of the classes that the scenes' concepts belong to."""
    return np.unique(labels(level)[np.array(scene_concepts(concepts))])
