"""Separate and shared self-attention: layers of each modality, then layers of both, and a teacher's [CLS]."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch.nn.functional as F
from torch import Tensor

from mmkd_lite.config import RunConfig
from mmkd_lite.methods.base import Batch
from mmkd_lite.methods.shared_space import (
    LAPTOP_PRESET,
    SharedSpaceMethod,
    SpaceOptions,
    feature_width,
    regression_terms,
    target_head,
)
from mmkd_lite.models import Encoded
from mmkd_lite.teachers import Teacher


@dataclass(frozen=True)
class SharedLayersOptions(SpaceOptions):
    """Settings of the shared layers, beside those of the shared space.

    Attributes:
        head: "separate" (LayerNorm and Linear between [CLS] and target) or "shared" (none, as in the
            source; needs the teacher's width).
        decay_embeddings: let weight decay reach both [CLS] and the token embeddings.
    """

    head: str = "separate"
    decay_embeddings: bool = False


class SharedLayers(SharedSpaceMethod):
    r"""Layers of each modality, then shared ones; both regress a frozen image model's [CLS].

    .. math:: L = \tfrac12 \mathrm{MSE}(g(h_v), t) + \tfrac12 \mathrm{MSE}(g(h_w), t)
              + \lambda\, C(\tilde h_v, \tilde h_w; s)

    `h_v`, `h_w` are the shared [CLS] of picture and caption, `g` the head, `t` the teacher's [CLS] of
    the *picture*; lambda is 0 unless a variant contrasts. Without contrast the space of retrieval is
    `g(h)`, at unit length; with it, the last contrasted output.

    Source: seed 002, Separate Self-Attention; methods.md 7. Derived in notebooks/13_shared_layers.ipynb.
    """

    Options = SharedLayersOptions
    default_teacher = "vit"
    default_weights: ClassVar[dict[str, float]] = {
        "regression_image": 0.5,
        "regression_text": 0.5,
        "contrast": 0.0,
    }
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "laptop": {**LAPTOP_PRESET, "image.layers": 2, "text.layers": 2},
        # Seed 002: 5 + 1 layers, frozen embeddings, no head. Data and optimiser are not given there:
        # the thesis' are used. For the teacher see S-SMKE. The source feeds the shared layer [CLS] alone.
        "full": {
            "teacher": "timm:vit_base_patch16_224.dino",
            "image.layers": 5,
            "text.layers": 5,
            "options.freeze_embeddings": True,
            "options.head": "shared",
            "train.steps": 89273,
        },
    }
    variants: ClassVar[dict[str, dict[str, Any]]] = {
        "base": {},
        "one_more_specific": {"image.layers": 3, "text.layers": 3},
        "one_more_shared": {"options.shared_layers": 2},
        "cls_only": {"options.shared_input": "cls"},
        "text_start": {"options.shared_start": "text"},
        "frozen": {"options.freeze_embeddings": True},
        "decay": {"options.decay_embeddings": True},
        "no_head": {"options.head": "shared"},
        "single": {"options.layout": "single", "weights.contrast": 1.0},
        "clip": {"options.layout": "clip", "options.shared_layers": 0, "weights.contrast": 1.0},
        "flava": {"options.layout": "flava", "weights.contrast": 1.0},
        "vlmo": {"options.layout": "vlmo", "weights.contrast": 1.0},
    }

    def __init__(self, config: RunConfig, teacher: Teacher | None) -> None:
        super().__init__(config, teacher)
        options: SharedLayersOptions = config.options
        if teacher is None:
            raise ValueError("shared_layers needs an image teacher, e.g. teacher=vit")
        if options.head not in ("separate", "shared"):
            raise ValueError(f"options.head={options.head!r} must be 'separate' or 'shared'")
        width = feature_width(teacher, config.data.image_size)
        self.head: Any = target_head(config.image.width, width, options.head == "separate")
        self.decay_embeddings = options.decay_embeddings

    def targets(self, batch: Batch) -> dict[str, Tensor]:
        """Return the teacher's `cls` (B, D_t) of the pictures."""
        assert self.teacher is not None
        return {"cls": self.teacher.features(batch["image"])}

    def losses(
        self, batch: Batch, targets: dict[str, Tensor], progress: float
    ) -> dict[str, Tensor]:
        """Return `regression_image`, `regression_text` and `contrast`."""
        image = self.space.encode_image(batch["image"])
        text = self.space.encode_text(batch["tokens"])
        predicted = self.head(image.shared), self.head(text.shared)
        contrast = {"contrast": self.contrast(image, text, batch["image_id"])}
        return regression_terms(*predicted, targets["cls"]) | contrast

    def encode_image(self, images: Tensor) -> Tensor:
        """Map images (B, 3, H, W) in [0, 1] to the space of retrieval, at unit length."""
        return self._retrieval(self.space.encode_image(images))

    def encode_text(self, tokens: Tensor) -> Tensor:
        """Map token ids (B, M) to the space of retrieval, at unit length."""
        return self._retrieval(self.space.encode_text(tokens))

    def _retrieval(self, encoded: Encoded) -> Tensor:
        if self.config.weights["contrast"]:
            return encoded.contrast[-1]
        return F.normalize(self.head(encoded.shared), dim=-1)
