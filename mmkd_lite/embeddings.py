"""`Embeddings`: the output of a two-tower model, the one interface between models, losses and evaluation."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

UNIT_NORM_TOLERANCE = 1e-3


@dataclass(frozen=True)
class Embeddings:
    """Image and text vectors of a batch of pairs, with the scale of their cosine similarities.

    Attributes:
        image: (B, D), rows of unit length.
        text: (B, D), rows of unit length; row i belongs to image i.
        scale: the *exponentiated* logit scale, a positive number or 0-d tensor.

    Raises:
        ValueError: the shapes differ, a row is not of unit length, or the scale is not positive.

    Source: seed 003 section 3.1 (CLIP's two towers). Derived in notebooks/02_losses.ipynb.
    """

    image: Tensor
    text: Tensor
    scale: Tensor | float = 1.0

    def __post_init__(self) -> None:
        if self.image.ndim != 2 or self.image.shape != self.text.shape:
            raise ValueError(
                "image and text embeddings must both be (B, D), got "
                f"{tuple(self.image.shape)} and {tuple(self.text.shape)}"
            )
        check_unit_norm(self.image, "image")
        check_unit_norm(self.text, "text")
        scale = float(self.scale.detach() if isinstance(self.scale, Tensor) else self.scale)
        if not scale > 0:
            raise ValueError(f"scale must be positive, got {scale}; pass exp(log_scale)")

    def logits(self) -> Tensor:
        """Return scaled cosine similarities (B, B): rows are images, columns are texts."""
        return self.scale * self.image @ self.text.T


def check_unit_norm(vectors: Tensor, name: str) -> None:
    """Stop unless every row has unit length to within `UNIT_NORM_TOLERANCE`.

    Args:
        vectors: (B, D).
        name: what the vectors are, for the message.

    Raises:
        ValueError: naming the worst row and its norm.
    """
    if vectors.numel() == 0:
        raise ValueError(f"{name} embeddings are empty: shape {tuple(vectors.shape)}")
    norms = vectors.detach().norm(dim=-1)
    deviation = (norms - 1).abs()
    if not bool((deviation <= UNIT_NORM_TOLERANCE).all()):  # also catches NaN
        row = int(torch.nan_to_num(deviation, nan=float("inf")).argmax())
        raise ValueError(
            f"{name} embeddings must have unit length, row {row} has norm {float(norms[row]):.4f}; "
            "apply torch.nn.functional.normalize(x, dim=-1) first"
        )
