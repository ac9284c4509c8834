"""Two towers, optional shared layers, and the place where pictures and captions are contrasted."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmkd_lite.models.fusion import Projection, SharedTransformer
from mmkd_lite.models.image import ImageEncoder
from mmkd_lite.models.initialise import EMBEDDING_STD
from mmkd_lite.models.text import TextEncoder, without_padding_columns

LAYOUTS = ("none", "single", "clip", "flava", "vlmo")
LAYER_SCALE = 1e-5


class Encoded(NamedTuple):
    """What `SharedSpace` gives for one modality."""

    encoder: Tensor  # (B, D): [CLS] of the tower, not normalised
    shared: Tensor  # (B, D): [CLS] after the shared layers; the tower's where there are none
    contrast: tuple[Tensor, ...]  # unit vectors (B, d), one a contrast; the last one retrieves
    intermediate: Tensor | None = None  # (B, 4D): of the last shared block at [CLS], before GELU


class SharedSpace(nn.Module):
    """Two towers that meet: which layers are shared, and which outputs are contrasted.

    | layout | shared layers | contrasted |
    |---|---|---|
    | none | at least 1 | [CLS] after the shared layers, as it is |
    | single | at least 1 | one projection after the shared layers, the same for both modalities |
    | clip | none | two projections, one on each tower |
    | flava | at least 1, behind two projections of the sequences | two projections, one on each tower |
    | vlmo | at least 1 | two projections on the towers, and two after the shared layers |

    Args:
        image_encoder: Tower of width D.
        text_encoder: Tower of the same width.
        layout: A name in the table.
        shared_layers: Number of shared pre-norm blocks.
        shared_input: "sequence", or "cls" to feed [CLS] alone (attention is then a linear map).
        token_types: Add a modality embedding, times LayerScale, to what enters the shared layers.
        space_width: d, size of the projections; 0 means D.

    Raises:
        ValueError: Towers of different width, an unknown option, or a layout with too few layers.

    Source: seed 002, "Separate Self-Attention" and its options; methods.md 5, 7 and 11.
    Derived in notebooks/12_image_text_contrast.ipynb and notebooks/13_shared_layers.ipynb.
    """

    def __init__(
        self,
        image_encoder: ImageEncoder,
        text_encoder: TextEncoder,
        layout: str = "none",
        shared_layers: int = 1,
        shared_input: str = "sequence",
        token_types: bool = False,
        space_width: int = 0,
    ) -> None:
        super().__init__()
        width = image_encoder.config.width
        _check(width, text_encoder.config.width, layout, shared_layers, shared_input)
        self.image_encoder, self.text_encoder = image_encoder, text_encoder
        self.layout, self.shared_input = layout, shared_input
        self.shared = (
            SharedTransformer(width, image_encoder.config.heads, layers=shared_layers)
            if shared_layers
            else None
        )
        out = space_width or width
        names = {
            "none": (),
            "single": ("shared",),
            "clip": ("image", "text"),
            "flava": ("image", "text"),
            "vlmo": ("image", "text", "shared_image", "shared_text"),
        }[layout]
        self.projections = nn.ModuleDict({name: Projection(width, out) for name in names})
        inward = ("image", "text") if layout == "flava" else ()
        self.inward = nn.ModuleDict({name: Projection(width, width) for name in inward})
        self.type_embedding: nn.Parameter | None = None
        if token_types:
            self.type_embedding = nn.Parameter(torch.empty(2, width))
            nn.init.trunc_normal_(self.type_embedding, std=EMBEDDING_STD)
            self.layer_scale = nn.Parameter(torch.full((width,), LAYER_SCALE))

    @property
    def contrasts(self) -> int:
        """How many outputs are contrasted, each with its own scale."""
        return 2 if self.layout == "vlmo" else 1

    def encode_image(self, images: Tensor) -> Encoded:
        """Encode images (B, 3, H, W) in [0, 1]."""
        return self.encode_sequence(self.image_encoder(images), None, "image")

    def encode_text(self, tokens: Tensor) -> Encoded:
        """Encode token ids (B, M); padding is never attended to."""
        pad = self.text_encoder.pad_id
        tokens = without_padding_columns(tokens, pad)
        return self.encode_sequence(self.text_encoder(tokens), tokens != pad, "text")

    def encode_sequence(self, sequence: Tensor, mask: Tensor | None, side: str) -> Encoded:
        """Go on from a tower's output (B, T, D) and its mask (B, T); `side` is "image" or "text"."""
        cls = sequence[:, 0]
        shared, intermediate = self._share(sequence, mask, side)
        outputs = {
            "none": lambda: [shared],
            "single": lambda: [self.projections["shared"](shared)],
            "clip": lambda: [self.projections[side](cls)],
            "flava": lambda: [self.projections[side](cls)],
            "vlmo": lambda: [
                self.projections[side](cls),
                self.projections[f"shared_{side}"](shared),
            ],
        }[self.layout]()
        contrast = tuple(F.normalize(output, dim=-1) for output in outputs)
        return Encoded(cls, shared, contrast, intermediate)

    def _share(
        self, sequence: Tensor, mask: Tensor | None, side: str
    ) -> tuple[Tensor, Tensor | None]:
        """Return [CLS] (B, D) after the shared layers, and the last block's intermediate there."""
        if self.shared is None:
            return sequence[:, 0], None
        if self.shared_input == "cls":
            sequence, mask = sequence[:, :1], None
        if self.inward:
            sequence = self.inward[side](sequence)
        if self.type_embedding is not None:
            kind = self.type_embedding[("image", "text").index(side)]
            sequence = sequence + self.layer_scale * kind
        output = self.shared(sequence, mask)
        return output.cls, output.intermediate


def _check(image_width: int, text_width: int, layout: str, layers: int, shared_input: str) -> None:
    if image_width != text_width:
        raise ValueError(
            f"shared layers need towers of one width: image.width={image_width}, text.width={text_width}"
        )
    if layout not in LAYOUTS:
        raise ValueError(f"options.layout={layout!r} is unknown; valid: {', '.join(LAYOUTS)}")
    if shared_input not in ("sequence", "cls"):
        raise ValueError(f"options.shared_input={shared_input!r} must be 'sequence' or 'cls'")
    if layers < 0 or (layout == "clip") != (layers == 0):
        raise ValueError(
            f"options.shared_layers={layers} does not go with options.layout={layout!r}: "
            "clip has 0 shared layers, every other layout at least 1"
        )
