"""Scores of students of one modality, which retrieval does not apply to: probes, or their own classes.

"pictures": linear probes of [CLS] and of averaged patches, on one-object pictures. "captions": the
same of tokens, where the label is the class of the object that a caption tells first. "classes": the
classifier's own accuracy and, where it has `pooled`, probes of its encoder.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mmkd_lite.config import DataConfig, RunConfig
from mmkd_lite.data.emoji import concepts, groups, labels, subgroups
from mmkd_lite.data.picture_folder import PictureFolder, class_names
from mmkd_lite.data.pictures import EmojiPictures
from mmkd_lite.data.scenes import EmojiScenes
from mmkd_lite.data.sprites import available_artists
from mmkd_lite.data.tokenizer import load_tokenizer
from mmkd_lite.evaluate import embed_images, embed_texts, linear_probe
from mmkd_lite.methods import Method
from mmkd_lite.picture_scores import LEVELS, labelled_pictures

GALLERIES: dict[str, dict[str, Any]] = {
    "composition": {"artist": "twemoji", "shift": "none"},
    "near": {"artist": "twemoji", "shift": "near"},
    "far": {"artist": "openmoji", "shift": "none"},
}
VIEWS = ("mean", "cls")
CAPTIONS = {"train": 3000, "composition": 1500}
"""Captions of a probe, one a scene; a twentieth at the tiny scale."""

CLASSIFIED = 1000
"""Pictures a gallery that a classifier is scored on."""


def score_one_modality(method: Method, config: RunConfig) -> dict[str, dict[str, Any]]:
    """Score a student as its class says in `scored_by`.

    Returns:
        Name -> accuracy in per cent with `chance`, `majority` and `n`. Probes are named
        "<gallery>_<fine or coarse>_<mean or cls>", classifiers "<gallery>_<fine or coarse>".

    Raises:
        ValueError: Unknown `scored_by`, or data that hold no labels.
    """
    if config.data.source == "folder" and method.scored_by == "classes":
        return classify_folder(method, config)
    if config.data.source != "emoji":
        raise ValueError(f"data.source={config.data.source!r} holds no labels to score with")
    ways = {"pictures": probe_pictures, "captions": probe_captions, "classes": classify_pictures}
    if method.scored_by not in ways:
        raise ValueError(
            f"scored_by={method.scored_by!r} of {type(method).__name__} must be one of: {', '.join(ways)}"
        )
    scores = ways[method.scored_by](method, config)
    if method.scored_by == "classes" and hasattr(method, "pooled"):
        scores |= probe_labelled(method, config)
    return scores


def probe_pictures(method: Any, config: RunConfig) -> dict[str, dict[str, Any]]:
    """Probe `method.pooled` on pictures of the scenes' concepts, on every gallery whose artist is installed."""
    train = labelled_pictures(config, "train")
    tests = {
        name: labelled_pictures(config, "composition", **how)
        for name, how in GALLERIES.items()
        if how["artist"] in available_artists()
    }
    train_x = _views(embed_images(method.pooled, train.images))
    test_x = _views(embed_images(method.pooled, torch.cat([t.images for t in tests.values()])))
    test_y = {k: torch.cat([t.labels[k] for t in tests.values()]) for k in LEVELS}
    sizes = {name: len(test.images) for name, test in tests.items()}
    return _probes(train_x, train.labels, test_x, test_y, sizes)


def probe_captions(method: Any, config: RunConfig) -> dict[str, dict[str, Any]]:
    """Probe `method.pooled` on captions that name their first object; the label is its class.

    Captions are as long as the student has positions for, also where it was trained on shorter ones.
    """
    longest = config.text.max_positions or config.data.max_tokens
    parts = {split: labelled_captions(config, split) for split in CAPTIONS}
    tokenizer = load_tokenizer(config.data.tokenizer)
    views = {
        split: _views(embed_texts(method.pooled, tokenizer.encode(texts, longest)))
        for split, (texts, _) in parts.items()
    }
    size = {"composition": len(parts["composition"][0])}
    train_y, test_y = parts["train"][1], parts["composition"][1]
    return _probes(views["train"], train_y, views["composition"], test_y, size)


def classify_pictures(method: Any, config: RunConfig) -> dict[str, dict[str, Any]]:
    """Score `method.classify` over subgroups; the probability of a group is the sum over its subgroups."""
    count = 100 if config.scale == "tiny" else CLASSIFIED
    group_of = torch.zeros(len(subgroups()), dtype=torch.int64)
    fine, coarse = torch.tensor(labels("fine")), torch.tensor(labels("coarse"))
    group_of[fine] = coarse
    scores = {}
    for name, how in GALLERIES.items():
        if how["artist"] not in available_artists():
            continue
        shown = EmojiPictures(config.data.image_size, "composition", **how).batch(range(count))
        share = embed_images(method.classify, torch.as_tensor(shown["image"])).softmax(dim=1)
        summed = torch.zeros(count, len(groups())).index_add_(1, group_of, share)
        for level, probability in (("fine", share), ("coarse", summed)):
            truth = torch.as_tensor(shown[level])
            scores[f"{name}_{level}"] = accuracy(
                probability.argmax(dim=1), truth, probability.shape[1]
            )
    return scores


def probe_labelled(method: Any, config: RunConfig) -> dict[str, dict[str, Any]]:
    """Probe `method.pooled` on the labelled pictures that a classifier was trained on: the optimum for a linear head.

    Returns:
        "probe_<fine or coarse>_<mean or cls>" -> accuracy on the test pictures of `classify_pictures`.
    """
    count = 100 if config.scale == "tiny" else CLASSIFIED
    sizes = {"train": config.options.pictures or 2048, "composition": count}
    shown = {k: EmojiPictures(config.data.image_size, k).batch(range(n)) for k, n in sizes.items()}
    views = {k: _views(embed_images(method.pooled, v["image"])) for k, v in shown.items()}
    label = {k: {at: torch.as_tensor(v[at]) for at in LEVELS} for k, v in shown.items()}
    return _probes(
        views["train"], label["train"], views["composition"], label["composition"], {"probe": count}
    )


def classify_folder(method: Any, config: RunConfig) -> dict[str, dict[str, Any]]:
    """Score `method.classify` on the pictures below `data_dir`/val, 256 at a time.

    Raises:
        ValueError: Other classes than those of `data_dir`/train.
    """
    shown = PictureFolder(config.data_dir, "val", config.data.image_size)
    if shown.classes != (trained := class_names(config.data_dir)):
        other = sorted(set(shown.classes) ^ set(trained))
        raise ValueError(f"train and val of {config.data_dir} differ in the classes {other[:10]}")
    guesses = [
        embed_images(method.classify, shown.squares(rows.tolist())).argmax(dim=1)
        for rows in torch.arange(shown.size).split(256)
    ]
    return {"val": accuracy(torch.cat(guesses), shown.labels, len(shown.classes))}


def labelled_captions(config: RunConfig, split: str) -> tuple[list[str], dict[str, Tensor]]:
    """Return captions, one a scene, and the fine and coarse class of the object each tells first.

    Captions that call it by its group word only are left out: they do not hold the fine class.
    """
    count = CAPTIONS[split] // (20 if config.scale == "tiny" else 1)
    texts, fine, coarse = _captions(config.data, split, count)
    return list(texts), {"fine": torch.as_tensor(fine), "coarse": torch.as_tensor(coarse)}


@functools.lru_cache(maxsize=4)
def _captions(
    data: DataConfig, split: str, count: int
) -> tuple[tuple[str, ...], np.ndarray, np.ndarray]:
    scenes = EmojiScenes(data, split)
    rows = np.arange(2 * count)
    told, meaning, _ = scenes.tell(scenes.layout(rows), rows)
    first = 5 * rows + rows % 5  # one caption a scene, all five writers in turn
    level, label = meaning.level[first, 0], meaning.label[first, 0]
    fine = np.where(level == 0, labels("fine")[np.minimum(label, len(concepts()) - 1)], label)
    kept = np.flatnonzero(level != 2)
    group_of = np.zeros(len(subgroups()), dtype=np.int64)
    group_of[labels("fine")] = labels("coarse")
    known = np.isin(fine[kept], labels("fine")[np.array(scenes.pool)])
    kept = kept[known][:count]
    return tuple(told[i][i % 5] for i in kept), fine[kept], group_of[fine[kept]]


def _views(both: Tensor) -> dict[str, Tensor]:
    """Split what `pooled` returns (N, 2D) into [CLS] and the mean of the rest, each (N, D)."""
    cls, mean = both.chunk(2, dim=1)
    return {"mean": mean, "cls": cls}


def _probes(
    train_x: dict[str, Tensor],
    train_y: dict[str, Tensor],
    test_x: dict[str, Tensor],
    test_y: dict[str, Tensor],
    sizes: dict[str, int],
) -> dict[str, dict[str, Any]]:
    """Fit one probe for each level and view, and score it on every gallery; the coarse one on the first only."""
    scores = {}
    for level in LEVELS:
        for view in VIEWS:
            seen = torch.isin(test_y[level], train_y[level])
            truth = torch.where(seen, test_y[level], train_y[level][0])  # never right where unseen
            found = linear_probe(train_x[view], train_y[level], test_x[view], truth)
            guesses = torch.where(seen, found.predictions, -1).split(list(sizes.values()))
            truths = test_y[level].split(list(sizes.values()))
            for name, guess, label in zip(sizes, guesses, truths, strict=True):
                if level == "fine" or name == next(iter(sizes)):
                    scores[f"{name}_{level}_{view}"] = accuracy(guess, label, len(found.classes))
    return dict(sorted(scores.items(), key=lambda item: list(sizes).index(item[0].split("_")[0])))


def accuracy(guess: Tensor, truth: Tensor, classes: int) -> dict[str, Any]:
    """Return the share of right guesses (N,) in per cent, beside chance and the commonest class."""
    return {
        "accuracy": 100 * float((guess == truth).double().mean()),
        "chance": 100 / classes,
        "majority": 100 * float(torch.bincount(truth).max()) / len(truth),
        "n": len(truth),
        "classes": classes,
    }
