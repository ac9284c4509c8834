"""Frozen teachers with their own input size, labels and fingerprint: shipped ones and any timm classifier.

The shipped teachers lie under `data/teachers/` as half-precision safetensors beside `manifest.json` (checksum,
configuration, seed, command and measured scores). `python -m mmkd_lite teachers` makes them.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from mmkd_lite.config import TowerConfig
from mmkd_lite.models import ImageEncoder, TextEncoder, seeded
from mmkd_lite.models.classifier import (
    HeadlessImageModel,
    ImageClassifier,
    MaskedWordModel,
    TimmClassifier,
)
from mmkd_lite.storage import read_json, sha256_of_arrays, sha256_of_file

TEACHERS_FOLDER = Path(__file__).parents[1] / "data" / "teachers"
IMAGE_SIZE = 48
MAX_TOKENS = 32
TOWER = TowerConfig(width=96, layers=6, heads=4, patch=8)


class Teacher(nn.Module):
    """A frozen model with its own input size; never in training mode, never with a gradient.

    Args:
        name: how `load_teacher` was asked for it.
        model: maps its input to logits, with a method `features`.
        classes: number of classes C of `class_logits`; 0 for a teacher without classes.
        image_size: pictures of another size are resized to this; 0 takes them as they come.

    Derived in notebooks/05_teachers.ipynb.
    """

    model: Any

    def __init__(self, name: str, model: nn.Module, classes: int = 0, image_size: int = 0) -> None:
        super().__init__()
        self.name, self.model, self.classes, self.image_size = name, model, classes, image_size
        self.requires_grad_(False)
        self.eval()

    def train(self, mode: bool = True) -> Teacher:
        """Stay in eval mode, whatever is asked."""
        return super().train(False)

    @torch.no_grad()
    def class_logits(self, images: Tensor) -> Tensor:
        """Return class logits (B, C) of images (B, 3, H, W) in [0, 1].

        Raises:
            ValueError: the teacher has no classes.
        """
        if not self.classes:
            raise ValueError(
                f"teacher {self.name!r} predicts no classes; use one of: cnn, vit, timm:NAME"
            )
        return self.model(self.fit_size(images))

    @torch.no_grad()
    def features(self, inputs: Tensor) -> Tensor:
        """Return one vector an input (B, D): [CLS] or pooled features of images, [CLS] of token ids."""
        return self.model.features(self.fit_size(inputs) if inputs.ndim == 4 else inputs)

    def fit_size(self, images: Tensor) -> Tensor:
        """Resize images to the teacher's own size where they differ (bilinear, antialiased)."""
        if not self.image_size or images.shape[-1] == self.image_size:
            return images
        size = (self.image_size, self.image_size)
        return F.interpolate(
            images, size=size, mode="bilinear", antialias=True, align_corners=False
        )

    def fingerprint(self) -> str:
        """Return the SHA-256 of the weights, the class count and the input size: the key of cached targets."""
        state = {name: tensor.cpu().numpy() for name, tensor in self.model.state_dict().items()}
        return f"{sha256_of_arrays(state)}-{self.classes}-{self.image_size}"


def _cnn() -> tuple[nn.Module, int]:
    from mmkd_lite.data.emoji import subgroups

    return TimmClassifier("test_resnet", len(subgroups())), len(subgroups())


def _vit() -> tuple[nn.Module, int]:
    from mmkd_lite.data.emoji import subgroups

    return ImageClassifier(TOWER, IMAGE_SIZE, len(subgroups())), len(subgroups())


def _text() -> tuple[nn.Module, int]:
    from mmkd_lite.data.tokenizer import load_tokenizer

    return MaskedWordModel(TOWER, load_tokenizer().vocab_size, MAX_TOKENS), 0


def _self_supervised() -> tuple[nn.Module, int]:
    return HeadlessImageModel(dataclasses.replace(TOWER, layers=4), IMAGE_SIZE), 0


def _clip() -> tuple[nn.Module, int]:
    from mmkd_lite.data.tokenizer import load_tokenizer
    from mmkd_lite.models.clip import ScaledTowers

    image = ImageEncoder(dataclasses.replace(TOWER, layers=3), IMAGE_SIZE)
    tower = dataclasses.replace(TOWER, layers=4)
    text = TextEncoder(tower, load_tokenizer().vocab_size, MAX_TOKENS)
    return ScaledTowers(image, text, TOWER.width), 0


SHIPPED: dict[str, Callable[[], tuple[nn.Module, int]]] = {
    "cnn": _cnn,
    "vit": _vit,
    "text": _text,
    "clip": _clip,
    "bottleneck": _self_supervised,
    "latent": _self_supervised,
}


def load_teacher(name: str, *, seed: int = 0) -> Teacher:
    """Return a frozen teacher by name.

    Args:
        name: "cnn", "vit", "text", "clip", "bottleneck" or "latent" (shipped); "random-cnn" and so on (the same
            architecture, random weights); "timm:NAME" (published weights) or "timm-random:NAME" (random
            weights); for CLIP "transformers:NAME" (a hub name or a folder) or "transformers-random:teacher".
        seed: of the random weights.

    Raises:
        ValueError: unknown name (the valid ones are listed), or a shipped file that is not the recorded one.
        OSError: published weights that cannot be had here.
    """
    if name in SHIPPED:
        model, classes = SHIPPED[name]()
        model.load_state_dict(shipped_state(name))
        return Teacher(name, model, classes, IMAGE_SIZE)
    with seeded(seed):
        if name.removeprefix("random-") in SHIPPED:
            model, classes = SHIPPED[name.removeprefix("random-")]()
            return Teacher(name, model, classes, IMAGE_SIZE)
        kind, _, architecture = name.partition(":")
        if kind in ("timm", "timm-random") and architecture:
            timm_model = TimmClassifier(architecture, pretrained=kind == "timm")
            return Teacher(name, timm_model, timm_model.encoder.num_classes)
        if kind in ("transformers", "transformers-random") and architecture:
            from mmkd_lite.models.clip import PublishedTowers, build, load_published

            published = kind == "transformers"
            clip = (
                load_published(architecture) if published else PublishedTowers(build(architecture))
            )
            return Teacher(name, clip, image_size=clip.image_size)
    raise ValueError(
        f"unknown teacher {name!r}; valid: {', '.join(SHIPPED)}, random-NAME for one of these with "
        "random weights, timm:NAME, timm-random:NAME, transformers:NAME, transformers-random:teacher"
    )


@functools.cache
def manifest(folder: Path = TEACHERS_FOLDER) -> dict[str, Any]:
    """Return what is recorded of each shipped teacher: sha256, configuration, seed, command, scores.

    Raises:
        FileNotFoundError: no teacher is shipped in `folder`.
    """
    path = folder / "manifest.json"
    if not path.exists():
        raise FileNotFoundError(
            f"no shipped teachers in {folder.name}/; make them with: python -m mmkd_lite teachers"
        )
    return read_json(path)


def shipped_state(name: str, prefix: str = "", folder: Path = TEACHERS_FOLDER) -> dict[str, Tensor]:
    """Return a shipped teacher's weights in float32; with `prefix`, only those below it, without the prefix.

    Raises:
        ValueError: unknown name, or a file whose checksum is not the recorded one.
    """
    recorded = manifest(folder)
    if name not in recorded:
        raise ValueError(f"no shipped teacher {name!r}; shipped: {', '.join(recorded)}")
    path = folder / f"{name}.safetensors"
    if not path.exists() or sha256_of_file(path) != recorded[name]["sha256"]:
        raise ValueError(
            f"data/teachers/{path.name} is missing or is not the file that manifest.json records: restore it with "
            f"`git checkout data/teachers`, or make it again with `python -m mmkd_lite teachers {name}`"
        )
    try:
        state = load_file(path)
    except SafetensorError as error:
        raise ValueError(f"data/teachers/{path.name} cannot be read: {error}") from error
    return {
        key.removeprefix(prefix): value.float() if value.is_floating_point() else value
        for key, value in state.items()
        if key.startswith(prefix)
    }
