"""DistillCLIP: a small two-tower student matches the similarity maps of a large one; peers' objectives beside it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from mmkd_lite.config import RunConfig
from mmkd_lite.embeddings import Embeddings
from mmkd_lite.losses import (
    affinity_mimicking,
    feature_distillation,
    image_text_contrast,
    interactive_contrast,
    relational_distillation,
    similarity_map_divergence,
)
from mmkd_lite.losses.similarity_maps import REDUCTIONS, intra_modal_distance, map_distance
from mmkd_lite.methods.base import Batch, Method
from mmkd_lite.methods.clip_student import build_student
from mmkd_lite.methods.shared_space import LAPTOP_PRESET
from mmkd_lite.models import ContrastScale, Projection
from mmkd_lite.models.clip import unit
from mmkd_lite.models.fusion import INITIAL_SCALE
from mmkd_lite.teachers import Teacher

SCALED = ("contrast", "map_kl", "relational", "interactive", "affinity")
SAME_WIDTH = ("feature", "interactive")
FIRST_WEIGHTS = {"inter": 1.0, "intra": 1.0}
OFF = {"weights.inter": 0.0, "weights.intra": 0.0}
PUBLISHED = "openai/clip-vit-base-patch32"


@dataclass(frozen=True)
class DistillCLIPOptions:
    """Settings of DistillCLIP.

    Attributes:
        student: "own", our encoders; "transformers", a CLIPModel of the same configuration.
        space_width: d_S, size of the student's embeddings; the teacher's may differ.
        text_start: "even", text layer i starts from the teacher's layer 2i (counted from 1); "" does not.
        reduction: "sum" or "mean" over the entries of a map.
        normalise_text: False leaves the text factors of eq. 3.1 as they are, as printed (E003-07).
        affinity_scale: fixed scale of both models in affinity mimicking; 0 takes each model's own.
        scale: first value of the student's scale, in [1, 100].
        mask_by_id: pairs of the same picture are not each other's negatives.
    """

    student: str = "own"
    space_width: int = 48
    text_start: str = "even"
    reduction: str = "sum"
    normalise_text: bool = True
    affinity_scale: float = 50.0
    scale: float = INITIAL_SCALE
    mask_by_id: bool = True


class DistillCLIP(Method):
    r"""Distil a two-tower model into a smaller one through maps, which know no width (seed 003, eqs 3.1-3.3).

    .. math:: L = \sum_k w_k L_k, \quad
              k \in \{inter, intra, contrast, map\_kl, feature, relational, interactive, affinity\}

    The source has the first two, at weight 1. A term of weight 0 is not computed and reported as 0.

    Source: seed 003, section 3.2, with errata E003-07, -08, -10 and -12; the last four terms are CLIP-KD's and
    TinyCLIP's (peers.md B2-B4). Derived in notebooks/19_distillclip.ipynb.
    """

    Options = DistillCLIPOptions
    default_teacher = "clip"
    default_weights: ClassVar[dict[str, float]] = {
        **FIRST_WEIGHTS,
        "contrast": 0.0,
        "map_kl": 0.0,
        "feature": 0.0,
        "relational": 0.0,
        "interactive": 0.0,
        "affinity": 0.0,
    }
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "tiny": {"image.start": "", "text.start": "", "text.width": 96, "options.space_width": 16},
        # As in the source, the image tower is half as wide and the text tower half as deep as the teacher's.
        "laptop": {
            **LAPTOP_PRESET,
            "image.start": "",
            "text.start": "",
            "image.width": 48,
            "text.layers": 2,
        },
        # Seed 003, section 3.2.3 and Table B.1: one epoch of 2.8 M pairs in batches of 84, peak rate 3e-5
        # (our rate is base_lr * batch / 256), 10,000 steps of warm-up.
        "full": {
            "teacher": f"transformers:{PUBLISHED}",
            "options.student": "transformers",
            "options.space_width": 256,
            "image.width": 384,
            "image.layers": 12,
            "image.heads": 6,
            "image.start": "timm:vit_small_patch16_224.augreg_in21k",
            "text.width": 512,
            "text.heads": 8,
            "text.start": "",
            "data.tokenizer": PUBLISHED,
            "data.vocab_size": 49408,
            "data.max_tokens": 77,
            "train.batch_size": 84,
            "train.steps": 33513,
            "train.base_lr": 3e-5 * 256 / 84,
            "train.warmup_fraction": 10000 / 33513,
            "train.weight_decay": 0.1,
        },
    }
    variants: ClassVar[dict[str, dict[str, Any]]] = {
        "both": {},
        "inter": {"weights.intra": 0.0},
        "intra": {"weights.inter": 0.0},
        "both_contrast": {"weights.contrast": 64.0},  # b, so that all three are sums over the pairs
        "mean": {"options.reduction": "mean"},
        "kl": {**OFF, "weights.map_kl": 1.0},
        "feature": {**OFF, "weights.feature": 2000.0},  # CLIP-KD's weight
        "relational": {**OFF, "weights.relational": 1.0},
        "interactive": {**OFF, "weights.interactive": 1.0},
        "affinity": {**OFF, "weights.affinity": 1.0},
        # As CLIP-KD has them, beside the contrast.
        "feature_contrast": {**OFF, "weights.contrast": 1.0, "weights.feature": 2000.0},
        "relational_contrast": {**OFF, "weights.contrast": 1.0, "weights.relational": 1.0},
        "interactive_contrast": {**OFF, "weights.contrast": 1.0, "weights.interactive": 1.0},
        "as_printed": {"options.normalise_text": False},
        "contrast_only": {**OFF, "weights.contrast": 1.0},  # the same student and start, no teacher
        # Other captions: compare it in a call of its own.
        "no_groups": {"data.vocabulary": "no_groups"},
    }

    def __init__(self, config: RunConfig, teacher: Teacher | None) -> None:
        super().__init__(config, teacher)
        options: DistillCLIPOptions = config.options
        if teacher is None or not hasattr(teacher.model, "encode_text"):
            raise ValueError("distill_clip needs a teacher with two towers, e.g. teacher=clip")
        if options.reduction not in REDUCTIONS:
            raise ValueError(
                f"options.reduction={options.reduction!r} is unknown; valid: {', '.join(REDUCTIONS)}"
            )
        self.towers = build_student(config, teacher)
        on = {name for name, weight in config.weights.items() if weight}
        self.scale = ContrastScale(options.scale) if on & set(SCALED) else None
        self.teacher_scale = float(teacher.model.scale)
        width = targets_width(teacher, config)
        apart = on & set(SAME_WIDTH) and width != options.space_width
        self.adapters = nn.ModuleList(
            Projection(options.space_width, width) for _ in range(2 if apart else 0)
        )

    def targets(self, batch: Batch) -> dict[str, Tensor]:
        """Return the teacher's unit vectors of pictures and captions, (B, d_T) each."""
        assert self.teacher is not None
        model = self.teacher.model
        targets = {
            "image": model.encode_image(self.teacher.fit_size(batch["image"])),
            "text": model.encode_text(batch["tokens"]),
        }
        if not self.config.options.normalise_text:
            targets["text_length"] = model.text_vectors(batch["tokens"]).norm(dim=-1)
        return targets

    def losses(
        self, batch: Batch, targets: dict[str, Tensor], progress: float
    ) -> dict[str, Tensor]:
        """Return all terms by name; those of weight 0 are 0."""
        text = self.towers.text_vectors(batch["tokens"])
        scale = 1.0 if self.scale is None else self.scale.value()
        student = Embeddings(self.towers.encode_image(batch["image"]), unit(text), scale)
        teacher = Embeddings(targets["image"], targets["text"], self.teacher_scale)
        texts = (student.text, teacher.text)
        if not self.config.options.normalise_text:
            texts = (text, teacher.text * targets["text_length"][:, None])
        terms = self._terms(student, teacher, texts, batch["image_id"])
        weights, zero = self.config.weights, student.image.new_zeros(())
        return {name: term() if weights[name] else zero for name, term in terms.items()}

    def _terms(
        self, student: Embeddings, teacher: Embeddings, texts: tuple[Tensor, Tensor], ids: Tensor
    ) -> dict[str, Callable[[], Tensor]]:
        """Return how each term is computed."""
        options: DistillCLIPOptions = self.config.options
        image_id = ids if options.mask_by_id else None
        pairs = ((student.image, texts[0]), (teacher.image, texts[1]))
        image, text, scale = student.image, student.text, student.scale
        return {
            "inter": lambda: map_distance(*pairs, options.reduction),
            "intra": lambda: intra_modal_distance(student, teacher, options.reduction),
            "contrast": lambda: image_text_contrast(image, text, scale, image_id=image_id),
            "map_kl": lambda: similarity_map_divergence(student, teacher),
            "feature": lambda: feature_distillation(self._adapt(student), teacher),
            "relational": lambda: relational_distillation(student, teacher),
            "interactive": lambda: interactive_contrast(
                self._adapt(student), teacher, image_id=image_id
            ),
            "affinity": lambda: affinity_mimicking(
                student, teacher, scale=options.affinity_scale or None
            ),
        }

    def _adapt(self, student: Embeddings) -> Embeddings:
        """Return the student's vectors in the teacher's width, at unit length."""
        if not self.adapters:
            return student
        image, text = self.adapters
        return replace(student, image=unit(image(student.image)), text=unit(text(student.text)))

    def after_step(self) -> None:
        """Keep the scale within [1, 100]."""
        if self.scale is not None:
            self.scale.clamp_()

    def encode_image(self, images: Tensor) -> Tensor:
        """Map images (B, 3, H, W) in [0, 1] to unit vectors (B, d_S)."""
        return self.towers.encode_image(images)

    def encode_text(self, tokens: Tensor) -> Tensor:
        """Map token ids (B, M) to unit vectors (B, d_S)."""
        return self.towers.encode_text(tokens)


def targets_width(teacher: Teacher, config: RunConfig) -> int:
    """Return d_T, the size of the teacher's embeddings."""
    side = teacher.image_size or config.data.image_size
    device = next(teacher.parameters()).device
    with torch.no_grad():
        return teacher.model.encode_image(torch.zeros(1, 3, side, side, device=device)).shape[-1]
