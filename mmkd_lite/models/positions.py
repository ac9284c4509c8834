"""Positional encodings: learned or fixed, with or without one for [CLS] (seed 001, eqs 9, 14)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

WAVELENGTH_BASE = 10_000.0


def sinusoid(coordinates: Tensor, width: int) -> Tensor:
    """Return [sin(x w_0), ..., sin(x w_k), cos(x w_0), ..., cos(x w_k)] for every coordinate x.

    The frequencies w_i = 10000^(-2i / width) are those of the original Transformer. It interleaves
    sines and cosines; here they are two halves, the same up to the order of the columns.

    Args:
        coordinates: (T,) positions, any real numbers.
        width: even number of columns.

    Returns:
        (T, width) float32, every element in [-1, 1].

    Raises:
        ValueError: `width` is odd.

    Source: seed 001, section "Image Representation" ("a sinusoidal positional encoding [1]").
    Derived in notebooks/01_representations.ipynb.
    """
    if width % 2:
        raise ValueError(f"sinusoidal positions need an even width, got {width}")
    exponents = torch.arange(width // 2, dtype=torch.float64) / (width // 2)  # (width/2,)
    angles = coordinates.double()[:, None] * WAVELENGTH_BASE**-exponents  # (T, width/2)
    return torch.cat([angles.sin(), angles.cos()], dim=1).float()


def sinusoidal_grid(rows: int, columns: int, width: int, cls_position: bool = False) -> Tensor:
    """Return one sinusoid a patch: half of the width says the column, half the row.

    Args:
        rows: patches from top to bottom.
        columns: patches from left to right.
        width: D, divisible by 4.
        cls_position: put a row for [CLS] in front, at (-1, -1), a place just outside the picture.

    Returns:
        (rows * columns, width), one more row with `cls_position`; patches in reading order.

    Raises:
        ValueError: `width` is not divisible by 4.

    Source: seed 001, eq. 9, fixed case; two axes, as Data2Vec2-style image models have it.
    Derived in notebooks/01_representations.ipynb.
    """
    if width % 4:
        raise ValueError(f"fixed positions on a grid need a width divisible by 4, got {width}")
    row, column = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
    places = torch.stack([column.flatten(), row.flatten()])  # (2, N)
    if cls_position:
        places = F.pad(places, (1, 0), value=-1)  # (2, 1+N)
    return torch.cat([sinusoid(axis, width // 2) for axis in places], dim=1)  # (N or 1+N, D)


class Positions(nn.Module):
    """Add a positional encoding to a sequence that starts with [CLS].

    Args:
        fixed: the sinusoidal table, (T, D), one row a position that has an encoding.
        kind: "learned" (the table is a parameter that starts as noise) or "fixed" (a constant).
        cls_position: whether the table's first row is for [CLS]; if not, [CLS] gets zero.

    Raises:
        ValueError: `kind` is neither "learned" nor "fixed".

    Source: seed 001, eqs 9, 11 and 14; errata E001-10. Derived in
    notebooks/01_representations.ipynb.
    """

    table: Tensor

    def __init__(self, fixed: Tensor, kind: str, cls_position: bool) -> None:
        super().__init__()
        if kind not in ("learned", "fixed"):
            raise ValueError(f"positions={kind!r} is unknown; use 'learned' or 'fixed'")
        self.cls_position = cls_position
        if kind == "learned":
            self.table = nn.Parameter(torch.empty_like(fixed))
        else:
            self.register_buffer("table", fixed, persistent=False)

    def forward(self, sequence: Tensor) -> Tensor:
        """Return `sequence` (B, T, D) plus the first T encodings."""
        return sequence + self.rows()[: sequence.shape[1]]

    def rows(self) -> Tensor:
        """Return all encodings, that of [CLS] (zero where it has none) first."""
        return self.table if self.cls_position else F.pad(self.table, (0, 0, 1, 0))
