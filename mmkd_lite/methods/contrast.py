"""Image-text contrast alone: two towers, no teacher; where it is computed is a matter of options."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from mmkd_lite.config import RunConfig
from mmkd_lite.methods.base import Batch
from mmkd_lite.methods.shared_space import LAPTOP_PRESET, SharedSpaceMethod, SpaceOptions
from mmkd_lite.models import Encoded
from mmkd_lite.teachers import Teacher


@dataclass(frozen=True)
class ContrastOptions(SpaceOptions):
    """Settings of the contrast, beside those of the shared space.

    Attributes:
        micro_batch: pairs that are contrasted with each other; 0 means the whole batch. A divisor of
            it gives what gradient accumulation gives: as many pairs a step, but fewer negatives.
    """

    micro_batch: int = 0


class ImageTextContrast(SharedSpaceMethod):
    r"""Contrast pictures and captions, and nothing else (seed 002; the baseline of every method).

    .. math:: L = \tfrac1K \sum_k C(\tilde h^k_v, \tilde h^k_w; s_k)

    K is 1, or 2 for the layout "vlmo". With the layout "flava" the contrast does not reach the shared
    layers: alone it trains what "clip" trains.

    Source: seed 002, image-text contrast; methods.md 5. Derived in notebooks/12_image_text_contrast.ipynb.
    """

    Options = ContrastOptions
    default_weights: ClassVar[dict[str, float]] = {"contrast": 1.0}
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "laptop": LAPTOP_PRESET,
        # Thesis, ablation without a teacher: the steps and batches of its other models.
        "full": {"train.steps": 89273},
    }
    variants: ClassVar[dict[str, dict[str, Any]]] = {
        "none": {},
        "single": {"options.layout": "single"},
        "clip": {"options.layout": "clip", "options.shared_layers": 0},
        "flava": {"options.layout": "flava"},
        "vlmo": {"options.layout": "vlmo"},
        "fixed": {"options.scale_learnable": False},
        "scale_1": {"options.scale": 1.0, "options.scale_learnable": False},
        "micro_16": {"options.micro_batch": 16},
        # Equal samples: compare each of these in a call of its own.
        "batch32": {"train.batch_size": 32, "train.steps": 640},
        "batch128": {"train.batch_size": 128, "train.steps": 160},
    }

    def __init__(self, config: RunConfig, teacher: Teacher | None) -> None:
        super().__init__(config, teacher)
        part, batch = config.options.micro_batch, config.train.batch_size
        if part < 0 or (part and batch % part):
            raise ValueError(
                f"options.micro_batch={part} must divide train.batch_size={batch}, or be 0"
            )

    def losses(
        self, batch: Batch, targets: dict[str, Tensor], progress: float
    ) -> dict[str, Tensor]:
        """Return `contrast`, the mean over micro-batches."""
        image = self.space.encode_image(batch["image"])
        text = self.space.encode_text(batch["tokens"])
        ids, size = batch["image_id"], self.config.options.micro_batch or len(batch["image_id"])
        parts = [slice(first, first + size) for first in range(0, len(ids), size)]
        terms = [self.contrast(_rows(image, r), _rows(text, r), ids[r]) for r in parts]
        return {"contrast": torch.stack(terms).mean()}


def _rows(encoded: Encoded, rows: slice) -> Encoded:
    return encoded._replace(contrast=tuple(output[rows] for output in encoded.contrast))
