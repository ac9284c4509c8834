"""S-SMKE on codes: the index of the picture's code is the class of picture *and* caption (Code 4)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from mmkd_lite.config import RunConfig
from mmkd_lite.losses import cross_entropy
from mmkd_lite.methods.base import Batch
from mmkd_lite.methods.quantiser import (
    QuantiserOptions,
    build_quantizer,
    fit_quantizer,
    pictures,
    quantizer_of_run,
    teacher_vectors,
)
from mmkd_lite.methods.shared_space import (
    LAPTOP_PRESET,
    SharedSpaceMethod,
    SpaceOptions,
    target_head,
)
from mmkd_lite.models import ContrastScale, Encoded, seeded
from mmkd_lite.models.quantizer import ImageQuantizer
from mmkd_lite.teachers import Teacher


@dataclass(frozen=True)
class QuantisedTargetsOptions(SpaceOptions, QuantiserOptions):
    """Settings of S-SMKE on codes, beside those of the shared space and of the quantiser.

    Attributes:
        contrast_layers: 2 contrasts the shared block's feed-forward activation as well, as Code 4 does.
        quantiser_run: folder of a finished run of the method "quantiser"; "" fits one before training.
        fit_images: pictures that it is fitted on.
        fit_steps: steps of that fit.
        fit_batch: vectors a step.
        fit_rate: learning rate of that fit.
    """

    start_images: int = 2048
    contrast_layers: int = 2
    quantiser_run: str = ""
    fit_images: int = 2048
    fit_steps: int = 200
    fit_batch: int = 128
    fit_rate: float = 1e-3


class QuantisedTargets(SharedSpaceMethod):
    r"""Predict a frozen image quantiser's code from both modalities (seed 000, Code 4, corrected).

    .. math:: L = \tfrac12 CE(g(h_v), m) + \tfrac12 CE(g(h_w), m) + \tfrac1K \sum_k C(h^k_v, h^k_w; s_k)

    `m` is the index of the *picture's* code, `g` a LayerNorm and a linear layer with J outputs on the shared
    [CLS]. The quantiser is fitted once, before the first step, from the seed alone; it is frozen and lies
    in the state, so a resumed run does not fit it again. Accuracies are reported with weight 0.

    Source: seed 000 Code 4 with errata E000-03, -04, -05, -07, -09, -10, -13; methods.md 14.
    Derived in notebooks/17_quantised_targets.ipynb.
    """

    Options = QuantisedTargetsOptions  # type: ignore[assignment]
    default_teacher = "bottleneck"
    default_weights: ClassVar[dict[str, float]] = {
        "codes_image": 0.5,
        "codes_text": 0.5,
        "contrast": 1.0,
        "accuracy_image": 0.0,
        "accuracy_text": 0.0,
    }
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "tiny": {
            "options.codes": 16,
            "options.start_images": 64,
            "options.fit_images": 64,
            "options.fit_steps": 4,
            "options.fit_batch": 32,
        },
        "laptop": LAPTOP_PRESET,
        # Thesis: J = 1024; a quantiser trained at length comes from options.quantiser_run.
        "full": {
            "teacher": "timm:vit_base_patch16_224.dino",
            "train.steps": 44636,
            "options.codes": 1024,
            "options.code_width": 16,
        },
    }
    variants: ClassVar[dict[str, dict[str, Any]]] = {
        "codes": {"options.contrast_layers": 1},
        "code_4": {},
        "revived": {"options.contrast_layers": 1, "options.revive_after": 20},
        "few_codes": {"options.contrast_layers": 1, "options.codes": 32},
    }

    def __init__(self, config: RunConfig, teacher: Teacher | None) -> None:
        super().__init__(config, teacher)
        options: QuantisedTargetsOptions = config.options
        if teacher is None:
            raise ValueError("quantised_targets needs an image teacher whose vectors are quantised")
        if options.contrast_layers not in (1, 2) or self.space.contrasts != 1:
            raise ValueError(
                f"options.contrast_layers={options.contrast_layers} must be 1 or 2, and "
                f"options.layout={options.layout!r} have a single contrast"
            )
        if options.codes > options.fit_images:
            raise ValueError(
                f"a codebook of options.codes={options.codes} is larger than the data, "
                f"options.fit_images={options.fit_images}"
            )
        scales = [ContrastScale(options.scale) for _ in range(options.contrast_layers)]
        self.scales = torch.nn.ModuleList(scales).requires_grad_(options.scale_learnable)
        self.head = target_head(config.image.width, options.codes)
        self.quantizer = build_quantizer(config, teacher).requires_grad_(False)

    def targets(self, batch: Batch) -> dict[str, Tensor]:
        """Return the picture's `code` (B,); prepares the quantiser when first called."""
        assert self.teacher is not None
        if not self.quantizer.codebook.started:
            self.quantizer.load_state_dict(self._prepared().state_dict())
        return {"code": self.quantizer.codes(self.teacher.features(batch["image"]))}

    def losses(
        self, batch: Batch, targets: dict[str, Tensor], progress: float
    ) -> dict[str, Tensor]:
        """Return `codes_image`, `codes_text`, `contrast` and the two accuracies."""
        code = targets["code"].long()
        image = self._layers(self.space.encode_image(batch["image"]))
        text = self._layers(self.space.encode_text(batch["tokens"]))
        of_image, of_text = self.head(image.shared), self.head(text.shared)
        return {
            "codes_image": cross_entropy(of_image, code),
            "codes_text": cross_entropy(of_text, code),
            "contrast": self.contrast(image, text, batch["image_id"]),
            "accuracy_image": (of_image.argmax(-1) == code).float().mean(),
            "accuracy_text": (of_text.argmax(-1) == code).float().mean(),
        }

    def _layers(self, encoded: Encoded) -> Encoded:
        """Put the feed-forward activation before the contrasted output, where two are asked for."""
        if self.config.options.contrast_layers == 1:
            return encoded
        assert encoded.intermediate is not None
        first = F.normalize(encoded.intermediate, dim=-1)
        return encoded._replace(contrast=(first, *encoded.contrast))

    def _prepared(self) -> ImageQuantizer:
        """Return a trained quantiser: that of a run, or one fitted here."""
        options: QuantisedTargetsOptions = self.config.options
        if options.quantiser_run:
            return quantizer_of_run(options.quantiser_run, self.config)
        assert self.teacher is not None
        device = next(self.quantizer.parameters()).device
        parts = [
            teacher_vectors(self.teacher, images, self.quantizer)
            for images in pictures(self.config, options.fit_images, device)
        ]
        vectors = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
        with seeded(self.config.seed), torch.enable_grad():
            return fit_quantizer(
                build_quantizer(self.config, self.teacher).to(device), vectors, self.config
            )
