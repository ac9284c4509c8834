"""`python -m mmkd_lite baselines`: small standard-trained classifiers, and how they fare under shift.

They see plain Twemoji pictures of one object and nothing else: no other artist, no augmentation, no captions. The line
through their accuracies is what effective robustness is measured against. The shipped teachers are scored beside them.
All share their first layers, so they are less independent than their number suggests.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mmkd_lite.config import RunConfig, effective_scale, resolve, to_dict
from mmkd_lite.data.emoji import groups, labels, scene_concepts, subgroups
from mmkd_lite.data.sprites import available_artists
from mmkd_lite.evaluate import count_parameters, embed_images
from mmkd_lite.evaluate.robustness import subset_accuracy
from mmkd_lite.methods.supervised import LabelledPictures
from mmkd_lite.picture_scores import LEVELS, Labelled, labelled_pictures
from mmkd_lite.results import read_result, results_table, write_result
from mmkd_lite.runs import run_folder, runs_root
from mmkd_lite.storage import sha256_of_arrays
from mmkd_lite.train import fit

NAME = "standard_baselines"
SETS: dict[str, dict[str, str]] = {
    "composition": {},
    "near": {"shift": "near"},
    "openmoji": {"artist": "openmoji"},
    "noto": {"artist": "noto"},
}
"""The standard test pictures, and three shifted sets of the same concepts; see `picture_scores.labelled_pictures`."""

TRAINING = {
    "options.backbone": "tower",
    "options.augmented": 0.0,
    "options.single": 1.0,
    "image.start": "vit",
    "train.batch_size": 64,
}
"""Plain pictures of one object; a tower starts from the first layers of `vit`, which saw plain pictures only, too."""

BASELINES: dict[str, dict[str, Any]] = {
    f"{layers} layer{'s' * (layers > 1)}, {steps} steps": {
        "image.layers": layers,
        "train.steps": steps,
    }
    for layers, steps in ((1, 60), (1, 240), (2, 120), (3, 120), (4, 160), (6, 160))
}
"""Name -> what sets it apart: layers of width 96, and steps of 64 pictures."""

HELD_OUT = {"image.layers": 2, "train.steps": 60}
"""A size that is not among `BASELINES`, for a model that the line has not seen."""


def recipe(settings: dict[str, Any], scale: str = "laptop", **where: Any) -> RunConfig:
    """Return the configuration of a standard classifier; "tiny" has a size of its own, and random first weights.

    Args:
        settings: One of `BASELINES`, or dotted settings like them.
        scale: "tiny" or "laptop".
        where: `seed`, `device`, `out_dir` of `config.resolve`; the folder's name begins with "standard" by default.
    """
    chosen = {**TRAINING, **settings}
    if effective_scale(scale) == "tiny":
        chosen = {key: value for key, value in chosen.items() if key.startswith("options.")}
    config = resolve("supervised", scale, chosen, **where)
    folder = runs_root() / run_folder(config).name.replace("supervised", "standard", 1)
    return config if config.out_dir else replace(config, out_dir=str(folder))


def standard_pictures(config: RunConfig) -> LabelledPictures:
    """Return the training pictures of a baseline, for `fit(config, pairs=...)`: the scenes' concepts only."""
    pictures = LabelledPictures(config)
    for kind in pictures.kinds:
        kind.pool = np.intersect1d(scene_concepts(config.data.concepts), kind.pool)
    return pictures


def test_sets(config: RunConfig) -> dict[str, Labelled]:
    """Return the test pictures by set; an artist who is not installed is left out."""
    return {
        name: labelled_pictures(config, "composition", **how)
        for name, how in SETS.items()
        if how.get("artist", "twemoji") in available_artists()
    }


def score_classifier(
    classify: Callable[[Tensor], Tensor], config: RunConfig
) -> dict[str, dict[str, Any]]:
    """Score a classifier of subgroups on every set whose artist is installed, fine and coarse.

    All sets show the concepts of the scenes, so the answer is chosen among their subgroups only, on each axis alike.
    The probability of a group is the sum over its subgroups.

    Args:
        classify: Maps images (B, 3, H, W) in [0, 1] to logits (B, C) over all subgroups.
        config: Gives picture size, concepts and scale.

    Returns:
        "<set>_<fine or coarse>" -> what `evaluate.robustness.subset_accuracy` returns.
    """
    occur = {k: np.unique(labels(k)[list(scene_concepts(config.data.concepts))]) for k in LEVELS}
    fine = torch.as_tensor(occur["fine"])
    group_of = torch.zeros(len(subgroups()), dtype=torch.int64)
    group_of[torch.tensor(labels("fine"))] = torch.tensor(labels("coarse"))
    scores = {}
    for name, shown in test_sets(config).items():
        share = embed_images(classify, shown.images).softmax(dim=1)  # (N, C)
        summed = torch.zeros(len(share), len(groups()))
        summed.index_add_(1, group_of[fine], share[:, fine])
        for level, score in (("fine", share), ("coarse", summed)):
            label = torch.as_tensor(occur[level])[shown.labels[level]]
            scores[f"{name}_{level}"] = subset_accuracy(
                score, label, occur[level].tolist(), shown.concept
            )
    return scores


def score_teachers(scale: str) -> dict[str, dict[str, Any]]:
    """Score the shipped teachers: `cnn` and `vit` by their classes, `clip` zero-shot, by probe and by retrieval."""
    from mmkd_lite.subject import open_subject
    from mmkd_lite.suite import find_pairs, probe, zero_shot
    from mmkd_lite.teachers import load_teacher

    clip = open_subject("clip", scale)
    found: dict[str, dict[str, Any]] = {
        name: score_classifier(load_teacher(name).class_logits, clip.config)
        for name in ("cnn", "vit")
    }
    for name, task in (("clip zero-shot", zero_shot), ("clip probe", probe)):
        found[name] = {}
        for row in task(clip):
            _, level, artist = row.task.split()
            key = f"{'composition' if artist == 'twemoji' else artist}_{level}"
            found[name][key] = {
                "accuracy": row.value, "low": row.low, "high": row.high, "chance": row.chance,
                "majority": row.majority, "n": row.n, "protocol": row.protocol,
            }  # fmt: skip
    found["clip retrieval"] = {}
    for row in find_pairs(clip):
        _, gallery, _, rule = row.task.split()
        if rule == "id":
            scores = {"value": row.value, "low": row.low, "high": row.high, "chance": row.chance}
            found["clip retrieval"].setdefault(gallery, {})[row.metric] = scores
    return found


def measure(scale: str, seed: int = 0, say: Callable[[str], None] = print) -> dict[str, Any]:
    """Train and score every baseline, then score the teachers; finished trainings are not repeated.

    Returns:
        "baselines": name -> "parameters", "steps", "seconds", "scores"; and "teachers": name -> scores.
    """
    baselines = {}
    for name, settings in BASELINES.items():
        config = recipe(settings, scale, seed=seed)
        run = fit(config, pairs=standard_pictures(config))
        trained: Any = run.load_method()
        scores = score_classifier(trained.model, config)
        baselines[name] = {
            "parameters": count_parameters(trained.model),
            "steps": config.train.steps,
            "seconds": round(run.seconds, 1),
            "scores": scores,
        }
        line = ", ".join(f"{key} {row['accuracy']:.1f}" for key, row in scores.items())
        say(f"{name} ({run.seconds:.0f} s): {line}")
    return {"baselines": baselines, "teachers": score_teachers(scale)}


def read_baselines(folder: str | Path | None = None) -> dict[str, Any]:
    """Return the committed metrics of `measure`.

    Raises:
        FileNotFoundError: There are none; the message names the command that makes them.
    """
    try:
        return read_result(NAME, folder)["metrics"]
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{error}; make it with: python -m mmkd_lite baselines") from None


def pairs(
    baselines: dict[str, Any], shifted: str, level: str = "fine"
) -> dict[str, tuple[float, float]]:
    """Return name -> (standard, shifted) accuracy of every baseline, in per cent.

    Args:
        baselines: "baselines" of `read_baselines`.
        shifted: A key of `SETS`.
        level: "fine" or "coarse".
    """

    def accuracy(entry: dict[str, Any], part: str) -> float:
        return float(entry["scores"][f"{part}_{level}"]["accuracy"])

    return {
        name: (accuracy(entry, "composition"), accuracy(entry, shifted))
        for name, entry in baselines.items()
    }


def baselines_command(arguments: Sequence[str]) -> int:
    """Train and score the standard baselines and write `data/results/standard_baselines.json`.

    Args:
        arguments: The words after `baselines`.
    """
    parser = argparse.ArgumentParser(
        prog="python -m mmkd_lite baselines",
        description="Train small standard classifiers and score them and the teachers under shift.",
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", default="", help="folder of the result; data/results by default")
    chosen = parser.parse_args(list(arguments))
    scale, started = effective_scale("laptop"), time.perf_counter()
    folder = chosen.out or (None if scale == "laptop" else runs_root() / f"{NAME}__{scale}")
    metrics = measure(scale, chosen.seed)
    configs = {
        name: {**to_dict(recipe(s, scale, seed=chosen.seed)), "out_dir": ""}
        for name, s in BASELINES.items()
    }
    shown = test_sets(recipe({}, scale))
    path = write_result(
        NAME,
        configuration=configs,
        metrics=metrics,
        seed=chosen.seed,
        seconds=time.perf_counter() - started,
        command=f"python -m mmkd_lite baselines --seed {chosen.seed}",
        data_checksum=sha256_of_arrays({name: part.images.numpy() for name, part in shown.items()}),
        folder=folder,
    )
    for level in LEVELS:
        rows: list[dict[str, Any]] = [
            {level: name, **{part: scores[f"{part}_{level}"]["accuracy"] for part in SETS}}
            for name, scores in (
                *((n, e["scores"]) for n, e in metrics["baselines"].items()),
                *((n, s) for n, s in metrics["teachers"].items() if n != "clip retrieval"),
            )
        ]
        print(results_table(rows))
    print(f"written: {path.name}")
    return 0
