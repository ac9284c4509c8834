"""Transformer SHRe: a supervised image teacher's class distribution as the target of pictures *and* captions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmkd_lite.config import RunConfig
from mmkd_lite.losses import image_text_contrast, kl_divergence
from mmkd_lite.methods.base import Batch, Method
from mmkd_lite.methods.towers import build_towers
from mmkd_lite.models import ContrastScale, SharedMLP, SharedTransformer, without_padding_columns
from mmkd_lite.teachers import Teacher


@dataclass(frozen=True)
class SHReOptions:
    """Settings of Transformer SHRe.

    Attributes:
        fusion: "mlp", the shared 3-layer MLP on [CLS]; "transformer", one shared block on whole sequences.
        hidden_ratio: hidden size of the shared part divided by the width.
        contrast_layers: how many outputs of the shared part are contrasted, counted from the last;
            at most 3 for "mlp" and 2 for "transformer" (its [CLS], and the feed-forward activation before it).
        temperature: of the KL terms; the thesis uses 1.
    """

    fusion: str = "mlp"
    hidden_ratio: int = 4
    contrast_layers: int = 3
    temperature: float = 1.0


class SHRe(Method):
    r"""Distil a classifier into a shared image-text space (seed 000, Code 3, corrected).

    .. math:: L = \tfrac12 KL(p_t \| q_v) + \tfrac12 KL(p_t \| q_w) + \tfrac1K \sum_k C(h^k_v, h^k_w; s_k)

    `p_t` is the teacher's class distribution for the *image*; `q_v`, `q_w` are the student's for image and
    caption; `C` is the symmetric contrast of the k-th shared output with its own learnable scale.

    Source: seed 000 Code 3 with errata E000-01, -02, -05, -07, -10. Derived in notebooks/15_transformer_shre.ipynb.
    """

    Options = SHReOptions
    default_teacher = "cnn"
    default_weights: ClassVar[dict[str, float]] = {"kl_image": 0.5, "kl_text": 0.5, "contrast": 1.0}
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        # Chosen so that the live run takes at most 40 s on two idle cores; small batches, many steps.
        "laptop": {
            "train.batch_size": 64,
            "train.steps": 320,
            "train.base_lr": 2e-2,
            "train.checkpoint_every": 80,
        },
        # Thesis, Transformer SHRe: 7 epochs of 3,264,868 pairs in batches of 256, ResNet-50-A1 as teacher.
        "full": {"teacher": "timm:resnet50.a1_in1k", "train.steps": 89273},
    }
    variants: ClassVar[dict[str, dict[str, Any]]] = {
        "both": {},
        "contrast_only": {"weights.kl_image": 0.0, "weights.kl_text": 0.0},
        "kl_only": {"weights.contrast": 0.0},
        "one_layer": {"options.contrast_layers": 1},
        "shared_block": {"options.fusion": "transformer", "options.contrast_layers": 1},
    }

    def __init__(self, config: RunConfig, teacher: Teacher | None) -> None:
        super().__init__(config, teacher)
        options: SHReOptions = config.options
        if teacher is None or not teacher.classes:
            raise ValueError("shre needs a teacher that predicts classes, e.g. teacher=cnn")
        if config.image.width != config.text.width:
            raise ValueError(
                f"shre shares layers between the towers: image.width={config.image.width} must equal "
                f"text.width={config.text.width}"
            )
        width = config.image.width
        self.image_encoder, self.text_encoder = build_towers(config)
        self.shared: Any
        if options.fusion == "mlp":
            self.shared, outputs = (
                SharedMLP(width, options.hidden_ratio * width, teacher.classes),
                3,
            )
        elif options.fusion == "transformer":
            self.shared = SharedTransformer(width, config.image.heads, options.hidden_ratio)
            outputs = 2
            self.class_head: Any = nn.Sequential(
                nn.LayerNorm(width), nn.Linear(width, teacher.classes)
            )
        else:
            raise ValueError(f"options.fusion={options.fusion!r} must be 'mlp' or 'transformer'")
        if not 1 <= options.contrast_layers <= outputs:
            raise ValueError(
                f"options.contrast_layers={options.contrast_layers} must be 1 to {outputs} "
                f"for fusion={options.fusion!r}"
            )
        self.scales: Any = nn.ModuleList(ContrastScale() for _ in range(options.contrast_layers))

    def targets(self, batch: Batch) -> dict[str, Tensor]:
        """Return the teacher's class logits (B, C) for the images."""
        assert self.teacher is not None
        return {"class_logits": self.teacher.class_logits(batch["image"])}

    def losses(
        self, batch: Batch, targets: dict[str, Tensor], progress: float
    ) -> dict[str, Tensor]:
        """Return `kl_image`, `kl_text` and `contrast` (the mean over the contrasted layers)."""
        image_layers, image_logits = self.shared_image(batch["image"])
        text_layers, text_logits = self.shared_text(batch["tokens"])
        contrasts = [
            image_text_contrast(
                F.normalize(image, dim=-1),
                F.normalize(text, dim=-1),
                scale.value(),
                image_id=batch["image_id"],
            )
            for image, text, scale in zip(image_layers, text_layers, self.scales, strict=True)
        ]
        teacher, temperature = targets["class_logits"], self.config.options.temperature
        return {
            "kl_image": kl_divergence(image_logits, teacher, temperature),
            "kl_text": kl_divergence(text_logits, teacher, temperature),
            "contrast": torch.stack(contrasts).mean(),
        }

    def after_step(self) -> None:
        """Keep every contrast scale within [1, 100]."""
        for scale in self.scales:
            scale.clamp_()

    def encode_image(self, images: Tensor) -> Tensor:
        """Map images (B, 3, H, W) in [0, 1] to the last contrasted output, at unit length."""
        return F.normalize(self.shared_image(images)[0][-1], dim=-1)

    def encode_text(self, tokens: Tensor) -> Tensor:
        """Map token ids (B, M) to the last contrasted output, at unit length."""
        return F.normalize(self.shared_text(tokens)[0][-1], dim=-1)

    def shared_image(self, images: Tensor) -> tuple[list[Tensor], Tensor]:
        """Return the contrasted outputs, each (B, D_k), and the class logits (B, C) of images."""
        return self._share(self.image_encoder(images), None)

    def shared_text(self, tokens: Tensor) -> tuple[list[Tensor], Tensor]:
        """Return the contrasted outputs, each (B, D_k), and the class logits (B, C) of captions."""
        tokens = without_padding_columns(tokens, self.text_encoder.pad_id)
        return self._share(self.text_encoder(tokens), tokens != self.text_encoder.pad_id)

    def _share(self, sequence: Tensor, mask: Tensor | None) -> tuple[list[Tensor], Tensor]:
        last = self.config.options.contrast_layers
        if self.config.options.fusion == "mlp":
            outputs = self.shared(sequence[:, 0])
            return list(outputs)[-last:], outputs[-1]
        shared = self.shared(sequence, mask)
        return [shared.intermediate, shared.cls][-last:], self.class_head(shared.cls)
