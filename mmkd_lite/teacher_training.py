"""`python -m mmkd_lite teachers`: train, score and ship the teachers under `data/teachers/`."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock
from safetensors.torch import save
from torch import Tensor

from mmkd_lite.config import RunConfig, resolve, to_dict
from mmkd_lite.models.classifier import HeadlessImageModel
from mmkd_lite.storage import read_json, sha256_of_file, write_atomic, write_json
from mmkd_lite.teachers import IMAGE_SIZE, TEACHERS_FOLDER, Teacher, load_teacher, manifest

RECIPES: dict[str, tuple[str, dict[str, Any]]] = {
    "cnn": ("supervised", {"options.backbone": "cnn", "train.steps": 6000}),
    "vit": (
        "supervised",
        {
            "options.backbone": "vit",
            "options.augmented": 0.0,
            "options.single": 0.5,
            "train.steps": 3000,
            "train.base_lr": 4e-3,
        },
    ),
    "text": ("masked_words", {"train.steps": 3000}),
    "clip": (
        "contrast",
        {
            "options.layout": "clip",
            "options.shared_layers": 0,
            "image.layers": 3,
            "text.layers": 4,
            "train.batch_size": 128,
            "train.steps": 1500,
            "train.base_lr": 8e-3,
            "train.weight_decay": 0.05,
            "train.checkpoint_every": 100,
        },
    ),
}
# What `clip` makes of a patch is the target, as BEiTv2's visual tokens come from CLIP. So captions are behind
# `bottleneck` and, since `clip` starts from `vit`, labels too; `latent` has seen pictures only.
RECIPES["bottleneck"] = ("masked_features", {"teacher": "clip", "train.steps": 1500})
RECIPES["latent"] = ("masked_latents", {"train.steps": 1500})
PICTURES = 2000
"""Pictures per row of the score table."""

SHIFTS = {
    "composition": {"split": "composition", "artist": "twemoji"},
    "concept": {"split": "concept", "artist": "twemoji"},
    "near": {"split": "composition", "artist": "twemoji", "shift": "near"},
    "far_openmoji": {"split": "composition", "artist": "openmoji"},
    "far_noto": {"split": "composition", "artist": "noto"},
}


def recipe(
    name: str, seed: int = 0, overrides: dict[str, Any] | None = None, out_dir: str = ""
) -> RunConfig:
    """Return the training configuration of a shipped teacher, with overrides for shorter runs.

    Raises:
        ValueError: unknown name; the valid ones are listed.
    """
    if name not in RECIPES:
        raise ValueError(f"unknown teacher {name!r}; valid: {', '.join(RECIPES)}")
    method, settings = RECIPES[name]
    return resolve(
        method,
        "laptop",
        {"data.image_size": IMAGE_SIZE, **settings, **(overrides or {})},
        seed=seed,
        out_dir=out_dir,
    )


def train_teacher(name: str, seed: int = 0, folder: Path = TEACHERS_FOLDER) -> dict[str, Any]:
    """Train (or resume) one teacher, store it in half precision, score the stored file and record both.

    Returns:
        The record in `manifest.json`.
    """
    from mmkd_lite.train import fit

    config = recipe(name, seed)
    run = fit(config)
    trained: Any = run.load_method()
    state = {key: _half(value) for key, value in teacher_state(trained).items()}
    path = folder / f"{name}.safetensors"
    write_atomic(path, save(state))
    record = {
        "sha256": sha256_of_file(path),
        "bytes": path.stat().st_size,
        "command": f"python -m mmkd_lite teachers {name} --seed {seed}",
        "seed": seed,
        "seconds": round(run.seconds, 1),
        "config": to_dict(config),
    }
    _record(name, record, folder)
    return score_teacher(name, folder)


def teacher_state(trained: Any) -> dict[str, Tensor]:
    """Return the weights of the part that is shipped: the model, or the two towers with their scale."""
    if not hasattr(trained, "space"):
        return trained.model.state_dict()
    renamed = {"scales.0.log_scale": "log_scale"}
    state = {}
    for key, value in trained.state_dict().items():
        key = renamed.get(key, key.removeprefix("space."))
        found = re.fullmatch(r"projections\.(image|text)\.(.+)", key)
        state[f"{found[1]}_projection.{found[2]}" if found else key] = value
    return state


def score_teacher(name: str, folder: Path = TEACHERS_FOLDER) -> dict[str, Any]:
    """Score the stored file of a teacher and put the scores into `manifest.json`.

    Returns:
        The teacher's record.
    """
    scores = score(load_teacher(name))
    return _record(name, {**manifest(folder)[name], "scores": scores}, folder)


def _record(name: str, record: dict[str, Any], folder: Path) -> dict[str, Any]:
    path = folder / "manifest.json"
    with FileLock(folder / ".manifest.lock"):
        known = read_json(path) if path.exists() else {}
        write_json(path, {**known, name: record})
    manifest.cache_clear()
    return record


def _half(value: Tensor) -> Tensor:
    return value.half().contiguous() if value.is_floating_point() else value.contiguous()


def score(teacher: Teacher, pictures: int = PICTURES) -> dict[str, dict[str, float]]:
    """Measure a teacher: accuracies under the named splits and shifts, or masked-word accuracy; in per cent."""
    if teacher.classes:
        return {
            name: classifier_score(teacher, pictures, **shift) for name, shift in SHIFTS.items()
        }
    if hasattr(teacher.model, "encode_text"):
        return {"composition": retrieval_score(teacher)}
    if isinstance(teacher.model, HeadlessImageModel):
        return probe_scores(teacher)
    return {"composition": masked_word_score(teacher, pictures)}


def retrieval_score(teacher: Teacher) -> dict[str, float]:
    """Return recalls of a two-tower teacher on the gallery of unseen scenes, in per cent, beside chance."""
    from mmkd_lite.data.scenes import gallery
    from mmkd_lite.data.tokenizer import load_tokenizer
    from mmkd_lite.evaluate import embed_images, embed_texts, retrieval

    data = recipe("clip").data
    shown = gallery(data, data.gallery_images, "composition")
    tokens = load_tokenizer().encode(shown.captions, data.max_tokens)
    image = embed_images(teacher.model.encode_image, torch.as_tensor(shown.images))
    text = embed_texts(teacher.model.encode_text, tokens)
    found = retrieval(image, text, torch.as_tensor(shown.image_of_text))
    return {key: value for key, value in found.items() if "_r" in key and key != "protocol"}


def probe_scores(teacher: Teacher) -> dict[str, dict[str, float]]:
    """Return linear-probe accuracies of [CLS] and of the mean patch, fine and coarse, in per cent."""
    from mmkd_lite.evaluate import embed_images
    from mmkd_lite.picture_scores import LEVELS, labelled_pictures, probe_score

    config = recipe("latent")
    train, test = (labelled_pictures(config, split) for split in ("train", "composition"))
    encoder = teacher.model.encoder
    pools: dict[str, Callable[[Tensor], Tensor]] = {
        "cls": lambda images: encoder(images)[:, 0],
        "patches": lambda images: encoder(images)[:, 1:].mean(dim=1),
    }
    scores: dict[str, dict[str, float]] = {}
    for pool, encode in pools.items():
        features = [embed_images(encode, part.images) for part in (train, test)]
        row: dict[str, float] = {}
        for level in LEVELS:
            found = probe_score(features[0], features[1], train, test, level)
            row |= {level: found["accuracy"], f"{level}_majority": found["majority"]}
        scores[pool] = row
    return scores


def classifier_score(
    teacher: Teacher, pictures: int, split: str, artist: str, shift: str = "none"
) -> dict[str, float]:
    """Return fine and coarse top-1 accuracy on one-object pictures, each beside its majority class, in per cent.

    The coarse prediction is the group with the largest summed subgroup probability.
    """
    from mmkd_lite.data.emoji import labels
    from mmkd_lite.data.pictures import EmojiPictures

    data = EmojiPictures(IMAGE_SIZE, split, artist=artist, shift=shift)
    fine_hits, coarse_hits, fine_labels, coarse_labels = 0, 0, [], []
    to_group = torch.zeros(teacher.classes, int(labels("coarse").max()) + 1)  # (C, groups)
    to_group[torch.tensor(labels("fine")), torch.tensor(labels("coarse"))] = 1.0
    for first in range(0, pictures, 250):
        drawn = data.batch(range(first, min(first + 250, pictures)))
        logits = teacher.class_logits(torch.as_tensor(drawn["image"]).float() / 255)
        fine, coarse = torch.as_tensor(drawn["fine"]), torch.as_tensor(drawn["coarse"])
        fine_hits += int((logits.argmax(1) == fine).sum())
        coarse_hits += int(((logits.softmax(1) @ to_group).argmax(1) == coarse).sum())
        fine_labels.append(fine)
        coarse_labels.append(coarse)
    return {
        "fine": 100 * fine_hits / pictures,
        "fine_majority": _majority(torch.cat(fine_labels)),
        "coarse": 100 * coarse_hits / pictures,
        "coarse_majority": _majority(torch.cat(coarse_labels)),
        "pictures": pictures,
    }


def _majority(labels: Tensor) -> float:
    return 100 * float(np.bincount(labels.numpy()).max()) / len(labels)


def masked_word_score(teacher: Teacher, captions: int) -> dict[str, float]:
    """Return the share of hidden words of held-out captions that are guessed, in per cent."""
    from mmkd_lite.methods.masked_words import MaskedCaptions

    data = MaskedCaptions(recipe("text"), split="composition")
    right, words = 0, []
    for step in range(captions // 250):
        batch = data.batch(step, 250)
        chosen, original = batch["chosen"], batch["original"]
        with torch.no_grad():
            hidden = teacher.model.encoder(batch["tokens"])
            guessed = teacher.model.predict(hidden[chosen]).argmax(-1)
        right += int((guessed == original[chosen]).sum())
        words.append(original[chosen])
    hidden_words = torch.cat(words)
    return {
        "masked_word": 100 * right / len(hidden_words),
        "masked_word_majority": _majority(hidden_words),
        "captions": captions,
    }


def teachers_command(arguments: Sequence[str]) -> int:
    """Train the named teachers (all when none is named), store them and print their scores."""
    parser = argparse.ArgumentParser(
        prog="python -m mmkd_lite teachers",
        description="Train, score and store the shipped teachers; an interrupted training goes on where it was.",
    )
    parser.add_argument(
        "names", nargs="*", help=f"some of: {', '.join(RECIPES)}; all when left out"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--score", action="store_true", help="only score the stored files again")
    chosen = parser.parse_args(arguments)
    for name in chosen.names or list(RECIPES):
        record = score_teacher(name) if chosen.score else train_teacher(name, chosen.seed)
        print(f"{name}: {record['bytes'] / 1e6:.2f} MB, {record['seconds']:.0f} s of training")
        for row, values in record["scores"].items():
            print(
                f"   {row:<14}" + "  ".join(f"{key} {value:.1f}" for key, value in values.items())
            )
    return 0
