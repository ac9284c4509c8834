"""S-SMKE: a self-supervised teacher's [CLS] of the picture is the target of picture *and* caption."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch.nn.functional as F
from torch import Tensor

from mmkd_lite.config import RunConfig
from mmkd_lite.losses import cosine_distance, info_nce, mean_squared_error
from mmkd_lite.losses.gather import world
from mmkd_lite.methods.base import Batch
from mmkd_lite.methods.shared_space import (
    LAPTOP_PRESET,
    SharedSpaceMethod,
    SpaceOptions,
    feature_width,
    regression_terms,
    target_head,
)
from mmkd_lite.models import Bank, ContrastScale
from mmkd_lite.models.fusion import INITIAL_SCALE
from mmkd_lite.teachers import Teacher


@dataclass(frozen=True)
class SSMKEOptions(SpaceOptions):
    """Settings of S-SMKE, beside those of the shared space.

    Attributes:
        target: "mse", "cosine", or "contrastive": find the own picture's target among all others.
        head: "separate" (LayerNorm and Linear between [CLS] and target) or "shared" (none).
        target_scale: first value of the contrastive target's scale, in [1, 100].
        target_scale_learnable: False keeps it, as the thesis' code does (ET-31).
        bank: G, number of past teacher vectors that are further negatives of the contrastive target;
            0 for none, else a multiple of the batch.
    """

    target: str = "mse"
    head: str = "separate"
    target_scale: float = INITIAL_SCALE
    target_scale_learnable: bool = False
    bank: int = 0


class SSMKE(SharedSpaceMethod):
    r"""Regress a frozen image model's [CLS] from both modalities, and contrast them (methods.md 11-13).

    .. math:: L = \tfrac12 d(g(h_v), t) + \tfrac12 d(g(h_w), t) + C(\tilde h_v, \tilde h_w; s)

    `h_v`, `h_w` are the shared [CLS] of picture and caption, `g` the head, `t` the teacher's [CLS] of the
    *picture*, `d` the mean squared error over its elements, the cosine distance, or for the contrastive
    target `InfoNCE(g(h), t; s_t)` in the direction student to teacher, with the bank as further columns.

    Source: thesis, S-SMKE, contrastive distillation and teacher ablation; seed 002, "Importance of the Teacher
    Model"; errata ET-22, ET-25, ET-31.
    Derived in notebooks/16_s_smke.ipynb.
    """

    Options = SSMKEOptions
    default_teacher = "bottleneck"
    default_weights: ClassVar[dict[str, float]] = {
        "regression_image": 0.5,
        "regression_text": 0.5,
        "contrast": 1.0,
    }
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "laptop": LAPTOP_PRESET,
        # Thesis: 7 epochs of 3,264,868 pairs, 2 GPUs with 256 pairs each. Its teacher, BEiTv2 without
        # finetuning, is not to be had from timm; DINO is the thesis' second-best self-supervised one.
        "full": {"teacher": "timm:vit_base_patch16_224.dino", "train.steps": 44636},
    }
    variants: ClassVar[dict[str, dict[str, Any]]] = {
        "mse": {},
        "contrastive": {"options.target": "contrastive"},
        "contrastive_bank": {"options.target": "contrastive", "options.bank": 4096},
        "no_teacher": {
            "teacher": "",
            "weights.regression_image": 0.0,
            "weights.regression_text": 0.0,
        },
        "latent_teacher": {"teacher": "latent"},
        "supervised_teacher": {"teacher": "vit"},
        "random_teacher": {"teacher": "random-bottleneck"},
        "shared_output": {"options.head": "shared"},
        "token_types": {"options.token_types": True},
    }

    def __init__(self, config: RunConfig, teacher: Teacher | None) -> None:
        super().__init__(config, teacher)
        options: SSMKEOptions = config.options
        _check(options)
        self.head: Any = None
        self.target_scale: Any = None
        self.bank: Any = None
        if teacher is None:
            return
        width = feature_width(teacher, config.data.image_size)
        self.head = target_head(config.image.width, width, options.head == "separate")
        if options.target == "contrastive":
            self.target_scale = ContrastScale(options.target_scale)
            self.target_scale.requires_grad_(options.target_scale_learnable)
        if options.bank:
            self.bank = Bank(options.bank, width)
            self.bank.check_arrivals(config.train.batch_size * world()[1])

    def targets(self, batch: Batch) -> dict[str, Tensor]:
        """Return the teacher's `cls` (B, D_t) of the pictures; nothing without a teacher."""
        return {} if self.teacher is None else {"cls": self.teacher.features(batch["image"])}

    def losses(
        self, batch: Batch, targets: dict[str, Tensor], progress: float
    ) -> dict[str, Tensor]:
        """Return `regression_image`, `regression_text` (0 without a teacher) and `contrast`."""
        image = self.space.encode_image(batch["image"])
        text = self.space.encode_text(batch["tokens"])
        contrast = {"contrast": self.contrast(image, text, batch["image_id"])}
        if self.head is None:
            nothing = contrast["contrast"].new_zeros(())
            return {"regression_image": nothing, "regression_text": nothing} | contrast
        predicted = self.head(image.shared), self.head(text.shared)
        kind, cls = self.config.options.target, targets["cls"]
        if kind != "contrastive":
            loss = mean_squared_error if kind == "mse" else cosine_distance
            return regression_terms(*predicted, cls, loss) | contrast
        key = F.normalize(cls, dim=-1)
        self._arriving = (key, batch["image_id"])
        ids = batch["image_id"] if self.config.options.mask_by_id else None
        return regression_terms(*predicted, key, self._find_target(ids)) | contrast

    def _find_target(self, ids: Tensor | None) -> Any:
        """Return the contrastive target as a function of predictions and unit targets, both (B, D_t)."""
        options: dict[str, Any] = {"query_id": ids, "key_id": ids}
        if self.bank is not None:
            options |= {"bank": self.bank.rows, "bank_bias": self.bank.bias()}
            options["bank_id"] = None if ids is None else self.bank.ids
        return lambda predicted, key: info_nce(
            F.normalize(predicted, dim=-1), key, self.target_scale.value(), **options
        )

    def after_step(self) -> None:
        """Clamp the scales; store this step's teacher vectors, which never go stale."""
        super().after_step()
        if self.target_scale is not None:
            self.target_scale.clamp_()
        if self.bank is not None:
            self.bank.enqueue(*self._arriving)


def _check(options: SSMKEOptions) -> None:
    if options.target not in ("mse", "cosine", "contrastive"):
        raise ValueError(
            f"options.target={options.target!r} must be 'mse', 'cosine' or 'contrastive'"
        )
    if options.head not in ("separate", "shared"):
        raise ValueError(f"options.head={options.head!r} must be 'separate' or 'shared'")
    if options.bank and options.target != "contrastive":
        raise ValueError(
            f"options.bank={options.bank} needs options.target='contrastive', not {options.target!r}"
        )
