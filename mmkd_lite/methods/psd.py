"""Progressive self-distillation: the model's own soft alignments replace a growing part of the pairs."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from mmkd_lite.config import RunConfig
from mmkd_lite.losses import (
    hard_bootstrapping,
    image_text_contrast,
    label_smoothing,
    soft_alignment,
)
from mmkd_lite.losses.base import check_temperature
from mmkd_lite.losses.soft_alignment import check_share
from mmkd_lite.methods.base import Batch
from mmkd_lite.methods.shared_space import LAPTOP_PRESET, SharedSpaceMethod, SpaceOptions
from mmkd_lite.teachers import Teacher

OBJECTIVES = ("psd", "infonce", "label_smoothing", "bootstrapping")
LAPTOP_PAIRS = LAPTOP_PRESET["train.steps"] * LAPTOP_PRESET["train.batch_size"]


@dataclass(frozen=True)
class PSDOptions(SpaceOptions):
    """Settings of progressive self-distillation, beside those of the shared space.

    Attributes:
        objective: "psd", or a baseline on the same towers: "infonce", "label_smoothing", "bootstrapping".
        aligned_first: share of pairs that are trusted in the first step, in [0, 1].
        aligned_last: the same at the end.
        swapped: soft targets come from the other direction; False: from the same row, where they teach nothing.
        mix: weight of the soft target beside the stated pair, in [0, 1].
        target_temperature: divides the logits that targets are made from.
        keep_diagonal: whether a soft target may hold the stated pair.
        smoothing: epsilon of "label_smoothing".
        trust: beta of "bootstrapping".
        scenes: distinct scenes, shown again in another order when all were seen; 0 for fresh ones (emoji only).
    """

    objective: str = "psd"
    aligned_first: float = 0.8
    aligned_last: float = 0.2
    swapped: bool = True
    mix: float = 1.0
    target_temperature: float = 1.0
    keep_diagonal: bool = True
    smoothing: float = 0.1
    trust: float = 0.8
    scenes: int = 0


def _variants() -> dict[str, dict[str, Any]]:
    """Every objective with 0, 20 and 40 % of captions wrong; half, a quarter and an eighth of the data."""
    found: dict[str, dict[str, Any]] = {name: {"options.objective": name} for name in OBJECTIVES}
    for percent in (20, 40):  # noise is part of the data: one comparison a level
        for name in OBJECTIVES:
            label = "" if name == "psd" else f"{name}_"
            found[f"{label}noise{percent}"] = {**found[name], "data.noise": percent / 100}
    found["unswapped_noise40"] = {**found["noise40"], "options.swapped": False}
    for share, parts in (("half", 2), ("quarter", 4), ("eighth", 8)):
        scenes = {"options.scenes": LAPTOP_PAIRS // parts}
        found |= {share: scenes, f"infonce_{share}": {**found["infonce"], **scenes}}
    return found


class ProgressiveSelfDistillation(SharedSpaceMethod):
    r"""Trust fewer and fewer stated pairs; for the others, what captions say of pictures teaches the pictures.

    .. math:: L_t = \mathrm{soft\_alignment}(V, W; s, \rho_t), \qquad
              \rho_t = \rho_1 + (\rho_0 - \rho_1) \tfrac12 (1 + \cos \pi t)

    `t` runs from 0 to 1. There is no teacher beside the student itself. A reconstruction of ours from the
    abstract: partition, swap, schedule and temperature are unverified against the paper.

    Source: seed 004 with errata E004-01 to -08; methods.md 16.
    Derived in notebooks/20_progressive_self_distillation.ipynb.
    """

    Options = PSDOptions
    default_weights: ClassVar[dict[str, float]] = {"contrast": 1.0}
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "laptop": LAPTOP_PRESET,
        # The paper's numbers were not at hand: the steps of the thesis' models, as for "contrast".
        "full": {"train.steps": 89273},
    }
    variants: ClassVar[dict[str, dict[str, Any]]] = _variants()

    def __init__(self, config: RunConfig, teacher: Teacher | None) -> None:
        super().__init__(config, teacher)
        options: PSDOptions = config.options
        if options.objective not in OBJECTIVES:
            raise ValueError(
                f"options.objective={options.objective!r} is unknown; valid: {', '.join(OBJECTIVES)}"
            )
        for name in ("aligned_first", "aligned_last", "mix", "smoothing", "trust"):
            check_share(getattr(options, name), f"options.{name}")
        check_temperature(options.target_temperature)

    @classmethod
    def open_data(cls, config: RunConfig) -> Any:
        """Return the stream of pairs, finite with `options.scenes`."""
        from mmkd_lite.data.pairs import RecycledEmojiPairs

        if not config.options.scenes:
            return super().open_data(config)
        if config.data.source != "emoji":
            raise ValueError(
                f"options.scenes={config.options.scenes} needs data.source='emoji', not {config.data.source!r}"
            )
        return RecycledEmojiPairs(config.data, config.seed, scenes=config.options.scenes)

    def losses(
        self, batch: Batch, targets: dict[str, Tensor], progress: float
    ) -> dict[str, Tensor]:
        """Return `contrast`, the mean over the contrasted outputs."""
        image = self.space.encode_image(batch["image"]).contrast
        text = self.space.encode_text(batch["tokens"]).contrast
        ids = batch["image_id"] if self.config.options.mask_by_id else None
        terms = [
            self._objective(v, w, scale.value(), ids, progress)
            for v, w, scale in zip(image, text, self.scales, strict=True)
        ]
        return {"contrast": torch.stack(terms).mean()}

    def _objective(
        self, image: Tensor, text: Tensor, scale: Tensor, ids: Tensor | None, progress: float
    ) -> Tensor:
        options: PSDOptions = self.config.options
        if options.objective == "infonce":
            return image_text_contrast(image, text, scale, image_id=ids)
        if options.objective == "label_smoothing":
            return label_smoothing(image, text, scale, smoothing=options.smoothing, image_id=ids)
        if options.objective == "bootstrapping":
            return hard_bootstrapping(image, text, scale, trust=options.trust, image_id=ids)
        return soft_alignment(
            image,
            text,
            scale,
            aligned_fraction=aligned_share(progress, options.aligned_first, options.aligned_last),
            generator=self._generator(progress),
            swapped=options.swapped,
            mix=options.mix,
            target_temperature=options.target_temperature,
            keep_diagonal=options.keep_diagonal,
            image_id=ids,
        )

    def _generator(self, progress: float) -> torch.Generator:
        """Return what draws the aligned set: a function of seed and step, equal on every process."""
        step = round(progress * self.config.train.steps)
        number = np.random.SeedSequence((self.config.seed, step)).generate_state(1)[0]
        return torch.Generator().manual_seed(int(number))


def aligned_share(progress: float, first: float = 0.8, last: float = 0.2) -> float:
    """Return the trusted share of a batch: from `first` to `last` along half a cosine.

    Args:
        progress: in [0, 1]; a pure function of it, so that a resumed run needs no state.
        first: share at progress 0.
        last: share at progress 1.

    Source: methods.md 16 (reconstruction); errata E004-03. Derived in notebooks/20_progressive_self_distillation.ipynb.
    """
    return last + (first - last) * (1 + math.cos(math.pi * progress)) / 2
