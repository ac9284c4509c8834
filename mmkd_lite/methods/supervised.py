"""How the supervised image teachers are made: subgroup labels of pictures with one to three objects."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from mmkd_lite.config import RunConfig
from mmkd_lite.methods.base import Batch, Method
from mmkd_lite.methods.towers import start_image_tower
from mmkd_lite.models.classifier import ImageClassifier
from mmkd_lite.teachers import SHIPPED, Teacher


@dataclass(frozen=True)
class SupervisedOptions:
    """Settings of a supervised image teacher.

    Attributes:
        backbone: "cnn" (timm's test_resnet), "vit" (our image encoder, as the shipped teacher) or "tower" (our image
            encoder as the configuration's `image` says, `start` included).
        augmented: share of each batch whose objects are redrawn with outlines, other colours and flat shapes,
            so that the labels carry over to artists never seen; in [0, 1].
        single: share of the other pictures that hold one object only, an easier start for a Transformer.
    """

    backbone: str = "cnn"
    augmented: float = 0.5
    single: float = 0.0


class Supervised(Method):
    r"""Train a classifier on pictures of one to three objects, with equal mass on each object's subgroup.

    .. math:: L = -\sum_c p_c \log q_c, \qquad p_c = \frac{\#\{\text{objects of subgroup } c\}}{\#\{\text{objects}\}}

    Pictures hold up to three objects since SHRe applies the teacher to scenes. With one object this is eq. 7.

    Source: seed 001, eqs 4 and 7. Shown in notebooks/05_teachers.ipynb.
    """

    Options = SupervisedOptions
    default_weights: ClassVar[dict[str, float]] = {"cross_entropy": 1.0}
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "laptop": {
            "image.start": "",
            "text.start": "",
            "train.batch_size": 128,
            "train.base_lr": 8e-3,
            "train.weight_decay": 0.05,
            "train.checkpoint_every": 200,
        },
    }
    variants: ClassVar[dict[str, dict[str, Any]]] = {"cnn": {}, "vit": {"options.backbone": "vit"}}

    model: Any

    def __init__(self, config: RunConfig, teacher: Teacher | None = None) -> None:
        super().__init__(config, None)
        backbone = config.options.backbone
        if backbone not in ("cnn", "vit", "tower"):
            raise ValueError(f"options.backbone={backbone!r} must be 'cnn', 'vit' or 'tower'")
        self.model, self.classes = SHIPPED["vit" if backbone == "tower" else backbone]()
        if backbone == "tower":
            self.model = ImageClassifier(config.image, config.data.image_size, self.classes)
            start_image_tower(self.model.encoder, config.image.start)

    @classmethod
    def open_data(cls, config: RunConfig) -> LabelledPictures:
        """Return the stream of labelled training pictures."""
        return LabelledPictures(config)

    def losses(
        self, batch: Batch, targets: dict[str, Tensor], progress: float
    ) -> dict[str, Tensor]:
        """Return `cross_entropy` between the subgroup shares and the prediction."""
        return {"cross_entropy": F.cross_entropy(self.model(batch["image"]), batch["shares"])}


class LabelledPictures:
    """Endless training pictures: `batch(step, ...)` is a pure function of the configuration and the step."""

    size = None

    def __init__(self, config: RunConfig) -> None:
        from mmkd_lite.data.pictures import EmojiPictures

        options: SupervisedOptions = config.options
        for name in ("augmented", "single"):
            if not 0.0 <= getattr(options, name) <= 1.0:
                raise ValueError(f"options.{name}={getattr(options, name)} must lie in [0, 1]")
        single = options.augmented + (1 - options.augmented) * options.single
        self.bounds = (0.0, options.augmented, single, 1.0)
        self.kinds = [
            EmojiPictures(
                config.data.image_size, "train", seed=config.seed, objects=objects, augment=augment
            )
            for objects, augment in (((1, 3), True), ((1, 1), False), ((1, 3), False))
        ]

    def batch(self, step: int, batch_size: int, rank: int = 0, world: int = 1) -> Batch:
        """Return `image` (B, 3, S, S) in [0, 1] and `shares` (B, C), rows summing to 1."""
        first = (step * world + rank) * batch_size
        cuts = [first + round(bound * batch_size) for bound in self.bounds]
        spans = zip(self.kinds, cuts[:-1], cuts[1:], strict=True)
        parts = [kind.batch(range(start, stop)) for kind, start, stop in spans if stop > start]
        labels = torch.cat([_shares(part["fine"]) for part in parts])
        images = torch.cat([torch.as_tensor(part["image"]) for part in parts])
        return {"image": images.float() / 255, "shares": labels / labels.sum(dim=1, keepdim=True)}


def _shares(labels: np.ndarray) -> Tensor:
    """Return object counts (B, C) from class ids (B,) or from counts."""
    from mmkd_lite.data.emoji import subgroups

    given = torch.as_tensor(labels)
    return (F.one_hot(given, len(subgroups())) if given.ndim == 1 else given).float()
