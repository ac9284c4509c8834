"""A text student of a frozen image teacher: read a caption, name the teacher's vector of its picture."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from mmkd_lite.config import RunConfig
from mmkd_lite.losses import cosine_distance, info_nce, mean_squared_error
from mmkd_lite.methods.base import Batch, Method
from mmkd_lite.methods.shared_space import (
    LAPTOP_PRESET,
    feature_width,
    freeze_tower_embeddings,
    target_head,
)
from mmkd_lite.methods.towers import build_text_tower
from mmkd_lite.models import ContrastScale, initialise_weights, without_padding_columns
from mmkd_lite.models.fusion import INITIAL_SCALE
from mmkd_lite.teachers import Teacher

TARGETS = ("mse", "cosine", "contrastive")
HEADS = ("linear", "none")


@dataclass(frozen=True)
class TextStudentOptions:
    """Settings of the text student.

    Attributes:
        target: "mse", "cosine", or "contrastive": find the own picture's vector among all others.
        head: "linear" between the student's [CLS] and the target, "none" where both have one width.
        normalise: bring the teacher's vectors to unit length before the squared error; the other
            targets do not see lengths.
        scale: of the contrastive target, fixed, in [1, 100].
        freeze_embeddings: keep token embeddings and positions as they start.
        mask_by_id: captions of the same picture are not each other's negatives.
    """

    target: str = "mse"
    head: str = "linear"
    normalise: bool = False
    scale: float = INITIAL_SCALE
    freeze_embeddings: bool = False
    mask_by_id: bool = True


class TextStudent(Method):
    r"""Regress a frozen image model's [CLS] from the caption, and nothing else (seed 002, first design).

    .. math:: L = d(g(f(w)), t(v)), \quad d \in \{\mathrm{MSE}, 1 - \cos, \mathrm{InfoNCE}\}

    `f(w)` is the student's [CLS] (B, D) of the caption, `g` the head, `t(v)` (B, D_t) the teacher's
    [CLS] of the picture. The teacher is the image encoder as well: pictures are embedded by `t` as it
    is, neither centred nor projected, at unit length.

    Source: seed 002, Unimodal Student; methods.md 4. Derived in notebooks/11_text_student.ipynb.
    """

    Options = TextStudentOptions
    default_teacher = "vit"
    default_weights: ClassVar[dict[str, float]] = {"regression": 1.0}
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        # 4 layers under a teacher of 6, for the source's 7 under 12.
        "laptop": {**LAPTOP_PRESET, "image.start": "", "text.layers": 4},
        # Seed 002: 7 text layers, BEiT-2 teacher of 12. Head, data and optimiser are not given there: the
        # thesis' data are used, methods.md 4 for the rate. For teacher and text start see S-SMKE.
        "full": {
            "teacher": "timm:vit_base_patch16_224.dino",
            "text.layers": 7,
            "options.freeze_embeddings": True,
            "train.steps": 89273,
            "train.base_lr": 5e-4,
        },
    }
    variants: ClassVar[dict[str, dict[str, Any]]] = {
        "mse": {},
        "cosine": {"options.target": "cosine"},
        "contrastive": {"options.target": "contrastive"},
        "frozen_embeddings": {"options.freeze_embeddings": True},
        "deep": {"text.layers": 6},
        "shallow": {"text.layers": 2},
        "normalised": {"options.normalise": True},
        "bottleneck_mse": {"teacher": "bottleneck"},
        "bottleneck_contrastive": {"teacher": "bottleneck", "options.target": "contrastive"},
    }
    teacher: Teacher

    def __init__(self, config: RunConfig, teacher: Teacher | None) -> None:
        super().__init__(config, teacher)
        options: TextStudentOptions = config.options
        for name, valid in (("target", TARGETS), ("head", HEADS)):
            if getattr(options, name) not in valid:
                raise ValueError(
                    f"options.{name}={getattr(options, name)!r} must be one of: {', '.join(valid)}"
                )
        if teacher is None:
            raise ValueError("text_student needs an image teacher, e.g. teacher=vit")
        ContrastScale(options.scale)  # refuses what it could not hold
        self.text_encoder = build_text_tower(config)
        width = feature_width(teacher, config.data.image_size)
        if options.head == "none":
            self.head = target_head(config.text.width, width, separate=False)
        else:
            self.head = nn.Linear(config.text.width, width)
            initialise_weights(self.head)
        if options.freeze_embeddings:
            freeze_tower_embeddings(self.text_encoder)

    def predict(self, tokens: Tensor) -> Tensor:
        """Return what the student takes for the teacher's vector (B, D_t), at its own length."""
        tokens = without_padding_columns(tokens, self.text_encoder.pad_id)
        return self.head(self.text_encoder(tokens)[:, 0])

    def targets(self, batch: Batch) -> dict[str, Tensor]:
        """Return the teacher's `cls` (B, D_t) of the pictures."""
        return {"cls": self.teacher.features(batch["image"])}

    def losses(
        self, batch: Batch, targets: dict[str, Tensor], progress: float
    ) -> dict[str, Tensor]:
        """Return `regression`."""
        options: TextStudentOptions = self.config.options
        predicted, cls = self.predict(batch["tokens"]), targets["cls"]
        if options.target == "cosine":
            return {"regression": cosine_distance(predicted, cls)}
        unit = F.normalize(cls, dim=-1)
        if options.target == "mse":
            return {"regression": mean_squared_error(predicted, unit if options.normalise else cls)}
        ids = batch["image_id"] if options.mask_by_id else None
        query = F.normalize(predicted, dim=-1)
        return {"regression": info_nce(query, unit, options.scale, query_id=ids, key_id=ids)}

    def encode_image(self, images: Tensor) -> Tensor:
        """Map images (B, 3, H, W) in [0, 1] to the teacher's [CLS], at unit length."""
        return F.normalize(self.teacher.features(images), dim=-1)

    def encode_text(self, tokens: Tensor) -> Tensor:
        """Map token ids (B, M) to the prediction of that vector, at unit length."""
        return F.normalize(self.predict(tokens), dim=-1)
