"""Classic distillation: a classifier learns from labels and from its teacher's softened class distribution."""

from __future__ import annotations

import functools
import itertools
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from mmkd_lite.config import RunConfig
from mmkd_lite.data.batches import epoch_order, global_rows
from mmkd_lite.data.emoji import subgroups
from mmkd_lite.losses import cross_entropy, kl_divergence
from mmkd_lite.methods.base import Batch, Method
from mmkd_lite.models import initialise_weights
from mmkd_lite.teachers import Teacher


@dataclass(frozen=True)
class SoftLabelsOptions:
    """Settings of classic distillation.

    Attributes:
        temperature: T > 0, softens teacher and student alike; the term is multiplied by T^2.
        pictures: how many labelled pictures there are, shown again and again; 0 for endless ones.
        channels: of the student's first convolution; the next two have 2 and 4 times as many.
    """

    temperature: float = 1.0
    pictures: int = 2048
    channels: int = 24


class SmallConvNet(nn.Sequential):
    """Three strided convolutions, mean over places, linear head.

    Args:
        channels: of the first convolution, divisible by 8.
        classes: number of classes C.

    Shape:
        - images: (B, 3, H, W) in [0, 1]
        - returns: class logits (B, C)
    """

    def __init__(self, channels: int, classes: int) -> None:
        sizes = [3, channels, 2 * channels, 4 * channels]
        layers: list[nn.Module] = []
        for before, after in itertools.pairwise(sizes):
            layers += [nn.Conv2d(before, after, 3, 2, 1), nn.GroupNorm(8, after), nn.GELU()]
        head = nn.Linear(sizes[-1], classes)
        initialise_weights(head)
        super().__init__(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), head)


class SoftLabels(Method):
    r"""Train a small classifier on labels and on a large one's class distribution.

    .. math:: L = (1 - a)\, CE(y, z) + a\, T^2\, KL(\mathrm{softmax}(t / T) \,\|\, \mathrm{softmax}(z / T))

    `a` is the weight of "soft", 1 - a that of "hard". The labels are subgroups of one-object pictures.

    Source: seed 003, chapter II; Hinton et al. 2015. Derived in notebooks/10_unimodal_distillation.ipynb.
    """

    Options = SoftLabelsOptions
    default_teacher = "cnn"
    default_weights: ClassVar[dict[str, float]] = {"hard": 0.1, "soft": 0.9}
    scored_by = "classes"
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "tiny": {"options.pictures": 64, "options.channels": 8},
        "laptop": {
            "train.batch_size": 64,
            "train.steps": 320,
            "train.base_lr": 2e-2,
            "train.checkpoint_every": 160,
        },
    }
    variants: ClassVar[dict[str, dict[str, Any]]] = {
        "soft": {},
        "hard": {"weights.hard": 1.0, "weights.soft": 0.0},
        "soft_t4": {"options.temperature": 4.0},
    }

    def __init__(self, config: RunConfig, teacher: Teacher | None) -> None:
        super().__init__(config, teacher)
        options: SoftLabelsOptions = config.options
        if teacher is None or not teacher.classes:
            raise ValueError("soft_labels needs a teacher that predicts classes, e.g. teacher=cnn")
        if config.data.source == "emoji" and teacher.classes != len(subgroups()):
            raise ValueError(
                f"teacher {teacher.name!r} has {teacher.classes} classes but the pictures have "
                f"{len(subgroups())}: soft and hard labels need the same ones, e.g. teacher=cnn"
            )
        if not options.temperature > 0:
            raise ValueError(f"options.temperature={options.temperature} must be > 0")
        if options.channels < 8 or options.channels % 8:
            raise ValueError(f"options.channels={options.channels} must be a multiple of 8")
        self.student = SmallConvNet(options.channels, teacher.classes)

    @classmethod
    def open_data(cls, config: RunConfig) -> LabelledPictures:
        """Return the stream of labelled one-object pictures."""
        return LabelledPictures(config)

    def targets(self, batch: Batch) -> dict[str, Tensor]:
        """Return the teacher's class logits (B, C)."""
        assert self.teacher is not None
        return {"class_logits": self.teacher.class_logits(batch["image"])}

    def losses(
        self, batch: Batch, targets: dict[str, Tensor], progress: float
    ) -> dict[str, Tensor]:
        """Return `hard`, the cross-entropy with the labels, and `soft`, the divergence times T^2."""
        logits, teacher = self.student(batch["image"]), targets["class_logits"]
        return {
            "hard": cross_entropy(logits, batch["label"]),
            "soft": kl_divergence(logits, teacher, self.config.options.temperature),
        }

    def classify(self, images: Tensor) -> Tensor:
        """Return class logits (B, C) of images (B, 3, H, W) in [0, 1]."""
        return self.student(images)


class LabelledPictures:
    """One-object pictures with their subgroup: the first `options.pictures` ones, in a new order each epoch."""

    size = None

    def __init__(self, config: RunConfig) -> None:
        if config.data.source != "emoji":
            raise ValueError(
                f"{config.method} has no labelled pictures of data.source={config.data.source!r}"
            )
        if config.options.pictures < 0:
            raise ValueError(f"options.pictures={config.options.pictures} must be at least 0")
        self.pictures, self.seed = config.options.pictures, config.seed
        self.image_size = config.data.image_size

    def batch(self, step: int, batch_size: int, rank: int = 0, world: int = 1) -> Batch:
        """Return `image` (B, 3, S, S) in [0, 1] and `label` (B,)."""
        rows = global_rows(step, batch_size, rank, world)
        if not self.pictures:
            images, labels = _draw(self.image_size, rows)
        else:
            epochs, places = divmod(rows, self.pictures)
            known, names = _first(self.image_size, self.pictures)
            order = [
                epoch_order(self.seed, int(epoch), self.pictures)[place]
                for epoch, place in zip(epochs, places, strict=True)
            ]
            images, labels = known[order], names[order]
        return {"image": images.float() / 255, "label": labels}


def _draw(image_size: int, rows: Any) -> tuple[Tensor, Tensor]:
    from mmkd_lite.data.pictures import EmojiPictures

    drawn = EmojiPictures(image_size, "train").batch(rows)
    return torch.as_tensor(drawn["image"]), torch.as_tensor(drawn["fine"])


@functools.lru_cache(maxsize=2)
def _first(image_size: int, count: int) -> tuple[Tensor, Tensor]:
    return _draw(image_size, range(count))
