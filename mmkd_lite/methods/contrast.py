"""Image-text contrast alone: two towers, no teacher; where it is computed is a matter of options."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor

from mmkd_lite.methods.base import Batch
from mmkd_lite.methods.shared_space import LAPTOP_PRESET, SharedSpaceMethod, SpaceOptions


class ImageTextContrast(SharedSpaceMethod):
    r"""Contrast pictures and captions, and nothing else (seed 002; the baseline of every method).

    .. math:: L = \tfrac1K \sum_k C(\tilde h^k_v, \tilde h^k_w; s_k)

    K is 1, or 2 for the layout "vlmo".

    Source: seed 002, image-text contrast; methods.md 5. Derived in notebooks/12_image_text_contrast.ipynb.
    """

    Options = SpaceOptions
    default_weights: ClassVar[dict[str, float]] = {"contrast": 1.0}
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "laptop": LAPTOP_PRESET,
        "full": {"train.steps": 89273},
    }
    variants: ClassVar[dict[str, dict[str, Any]]] = {
        "none": {},
        "clip": {"options.layout": "clip", "options.shared_layers": 0},
    }

    def losses(
        self, batch: Batch, targets: dict[str, Tensor], progress: float
    ) -> dict[str, Tensor]:
        """Return `contrast`."""
        image = self.space.encode_image(batch["image"])
        text = self.space.encode_text(batch["tokens"])
        return {"contrast": self.contrast(image, text, batch["image_id"])}
