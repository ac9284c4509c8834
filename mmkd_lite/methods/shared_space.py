"""What the methods with a shared image-text space have in common: the space, its scales, the contrast."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from mmkd_lite.config import RunConfig
from mmkd_lite.losses import image_text_contrast, mean_squared_error
from mmkd_lite.methods.base import Method
from mmkd_lite.methods.towers import build_towers
from mmkd_lite.models import ContrastScale, Encoded, SharedSpace, initialise_weights
from mmkd_lite.models.classifier import MaskedWordModel
from mmkd_lite.models.fusion import INITIAL_SCALE
from mmkd_lite.teachers import Teacher, shipped_state


@dataclass(frozen=True)
class SpaceOptions:
    """Settings of the shared space; see `mmkd_lite.models.SharedSpace`.

    Attributes:
        layout: "none", "single", "clip", "flava" or "vlmo".
        shared_layers: blocks that both modalities share; 0 for "clip".
        shared_input: "sequence", or "cls" to feed [CLS] alone.
        shared_start: "" for random first weights of the shared blocks, "text" for the text teacher's
            layers that follow the tower's own.
        token_types: add a modality embedding with LayerScale before the shared blocks.
        space_width: size of the projections; 0 means the towers' width.
        scale: first value of the contrast scale, in [1, 100].
        scale_learnable: False keeps that value.
        freeze_embeddings: keep patch and token embeddings, positions and [CLS] as they start.
        mask_by_id: pairs of the same picture are not each other's negatives.
    """

    layout: str = "none"
    shared_layers: int = 1
    shared_input: str = "sequence"
    shared_start: str = ""
    token_types: bool = False
    space_width: int = 0
    scale: float = INITIAL_SCALE
    scale_learnable: bool = True
    freeze_embeddings: bool = False
    mask_by_id: bool = True


LAPTOP_PRESET: dict[str, Any] = {
    "train.batch_size": 64,
    "train.steps": 320,
    "train.base_lr": 2e-2,
    "train.checkpoint_every": 80,
}
"""Equal to Transformer SHRe's, so that the methods can be compared."""


class SharedSpaceMethod(Method):
    """Base of methods whose student is a `SharedSpace`; adds nothing but the student.

    A subclass' `Options` derive from `SpaceOptions`. Source: methods.md 5, 7 and 11.
    """

    Options = SpaceOptions

    def __init__(self, config: RunConfig, teacher: Teacher | None) -> None:
        super().__init__(config, teacher)
        options: SpaceOptions = config.options
        self.space = SharedSpace(
            *build_towers(config),
            options.layout,
            options.shared_layers,
            options.shared_input,
            options.token_types,
            options.space_width,
        )
        self.scales: Any = nn.ModuleList(
            ContrastScale(options.scale) for _ in range(self.space.contrasts)
        )
        self.scales.requires_grad_(options.scale_learnable)
        if options.shared_start:
            self._start_shared(options.shared_start, config.text.layers)
        if options.freeze_embeddings:
            freeze_embeddings(self.space)

    def _start_shared(self, start: str, first: int) -> None:
        """Give the shared blocks the layers of a shipped text teacher that follow the tower's."""
        state = shipped_state(start, "encoder.transformer.blocks.")
        for number, block in enumerate(
            self.space.shared.blocks if self.space.shared else (), first
        ):
            prefix = f"{number}."
            own = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
            if not own:
                raise ValueError(
                    f"options.shared_start={start!r} has no layer {number}; use fewer layers"
                )
            try:
                block.load_state_dict(own)
            except RuntimeError as error:
                raise ValueError(
                    f"options.shared_start={start!r} does not fit a shared block of width "
                    f"{self.config.text.width}: {error}"
                ) from error

    def contrast(self, image: Encoded, text: Encoded, image_id: Tensor, **banks: Any) -> Tensor:
        """Return the mean over the contrasted outputs of the symmetric contrast, a 0-d tensor."""
        ids = image_id if self.config.options.mask_by_id else None
        losses = [
            image_text_contrast(v, w, scale.value(), image_id=ids, **banks)
            for v, w, scale in zip(image.contrast, text.contrast, self.scales, strict=True)
        ]
        return torch.stack(losses).mean()

    def after_step(self) -> None:
        """Keep every contrast scale within [1, 100]."""
        for scale in self.scales:
            scale.clamp_()

    def encode_image(self, images: Tensor) -> Tensor:
        """Map images (B, 3, H, W) in [0, 1] to the last contrasted output, at unit length."""
        return self.space.encode_image(images).contrast[-1]

    def encode_text(self, tokens: Tensor) -> Tensor:
        """Map token ids (B, M) to the last contrasted output, at unit length."""
        return self.space.encode_text(tokens).contrast[-1]


def freeze_embeddings(space: SharedSpace) -> None:
    """Stop the gradient of what comes before both towers' blocks."""
    for tower in (space.image_encoder, space.text_encoder):
        freeze_tower_embeddings(tower)


def freeze_tower_embeddings(tower: nn.Module) -> None:
    """Stop the gradient of what comes before one tower's blocks."""
    for name, parameter in tower.named_parameters():
        if not name.startswith("transformer."):
            parameter.requires_grad_(False)


def feature_width(teacher: Teacher, image_size: int) -> int:
    """Return the size of the vector that an image teacher gives a picture.

    Raises:
        ValueError: the teacher reads texts.
    """
    if isinstance(teacher.model, MaskedWordModel):
        raise ValueError(f"teacher {teacher.name!r} reads texts; use an image teacher, e.g. vit")
    device = next(teacher.parameters()).device
    return teacher.features(torch.zeros(1, 3, image_size, image_size, device=device)).shape[-1]


def target_head(width: int, target_width: int, separate: bool = True) -> nn.Module:
    """Return what lies between a student's [CLS] (B, D) and the teacher's (B, D_t).

    Args:
        width: D of the student.
        target_width: D_t of the teacher.
        separate: LayerNorm and Linear, so that the contrast keeps a space of its own; False regresses
            the [CLS] itself.

    Raises:
        ValueError: no separate head, and widths that differ.
    """
    if separate:
        head = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, target_width))
        initialise_weights(head)
        return head
    if width != target_width:
        raise ValueError(
            f"the teacher's vectors have width {target_width} and the student's {width}; without a "
            "separate head they must agree"
        )
    return nn.Identity()


def regression_terms(
    image: Tensor,
    text: Tensor,
    target: Tensor,
    loss: Callable[[Tensor, Tensor], Tensor] = mean_squared_error,
) -> dict[str, Tensor]:
    r"""Return how far both modalities are from the teacher's vector of the *picture*.

    .. math:: L_v = d(\hat h_v, t), \quad L_w = d(\hat h_w, t)

    Args:
        image: (B, D_t), the student's prediction from the picture.
        text: (B, D_t), from the caption.
        target: (B, D_t), the frozen teacher's [CLS] of the picture; a constant.
        loss: d, such as `mean_squared_error` (mean over D_t, not sum) or `cosine_distance`.

    Source: methods.md 7 and 11. Derived in notebooks/16_s_smke.ipynb.
    """
    return {"regression_image": loss(image, target), "regression_text": loss(text, target)}
