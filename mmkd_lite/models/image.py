"""The image encoder: a picture becomes a sequence of patch vectors, then a Transformer reads it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from mmkd_lite.config import TowerConfig
from mmkd_lite.models.initialise import initialise_weights
from mmkd_lite.models.positions import Positions, sinusoidal_grid
from mmkd_lite.models.transformer import Transformer

CHANNELS = 3
DEFAULT_MEAN = (0.5, 0.5, 0.5)
DEFAULT_STD = (0.5, 0.5, 0.5)


def patchify(images: Tensor, patch: int) -> Tensor:
    """Cut pictures into squares and lay each one out as a row of numbers.

    N = H W / P^2 patches in reading order; P is the side of a patch in pixels, and a patch has
    C P^2 numbers, colour by colour (errata E001-02, E001-03).

    Args:
        images: (B, C, H, W).
        patch: P, in pixels.

    Returns:
        (B, N, C * P * P).

    Raises:
        ValueError: a side of the pictures is not divisible by `patch`.

    Source: seed 001, section "Image Representation". Derived in notebooks/01_representations.ipynb.
    """
    batch, channels, height, width = images.shape
    if height % patch or width % patch:
        raise ValueError(
            f"image size {height} x {width} is not divisible by the patch size {patch}; "
            "resize the pictures or choose another patch"
        )
    rows, columns = height // patch, width // patch
    cut = images.reshape(batch, channels, rows, patch, columns, patch)
    return cut.permute(0, 2, 4, 1, 3, 5).reshape(batch, rows * columns, channels * patch * patch)


class ImageEncoder(nn.Module):
    """Vision Transformer without a head (eqs 8-12).

    Weights are drawn from the global random state at construction; build inside
    `mmkd_lite.models.seeded(seed)` to get the same weights every time.

    Args:
        config: the tower; `patch` is read here.
        image_size: side of the square pictures in pixels, divisible by `config.patch`.
        mean: three channel means of pictures in [0, 1]; None means 0.5 each.
        std: three channel standard deviations; None means 0.5 each.
        final_norm: whether a pre-norm tower ends with its LayerNorm.

    Raises:
        ValueError: `image_size` is not divisible by the patch, or an option is unknown.

    Source: seed 001, eqs 8-12. Derived in notebooks/01_representations.ipynb.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        config: TowerConfig,
        image_size: int,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        final_norm: bool = True,
    ) -> None:
        super().__init__()
        if image_size % config.patch:
            raise ValueError(
                f"image size {image_size} is not divisible by the patch size {config.patch}; "
                "change data.image_size or image.patch"
            )
        self.config = config
        self.image_size = image_size
        side = image_size // config.patch
        self.register_buffer("mean", _channel_values(mean or DEFAULT_MEAN))
        self.register_buffer("std", _channel_values(std or DEFAULT_STD))
        self.patch_projection = nn.Linear(CHANNELS * config.patch**2, config.width)
        self.cls = nn.Parameter(torch.empty(config.width))
        grid = sinusoidal_grid(side, side, config.width, config.cls_position)
        self.positions = Positions(grid, config.positions, config.cls_position)
        post_norm = config.norm == "post"
        self.embedding_norm: nn.Module = (
            nn.LayerNorm(config.width, eps=config.layer_norm_eps) if post_norm else nn.Identity()
        )
        self.embedding_dropout = nn.Dropout(config.dropout)
        self.transformer = Transformer(config, final_norm)
        initialise_weights(self)

    def embed(self, images: Tensor) -> Tensor:
        """Return H_0 = E + T, the input of the Transformer (eq. 11).

        Args:
            images: (B, 3, S, S) float in [0, 1].

        Returns:
            (B, 1+N, D), [I_CLS] first.

        Raises:
            ValueError: the pictures have another shape, or are integers.
        """
        expected = (CHANNELS, self.image_size, self.image_size)
        if images.ndim != 4 or tuple(images.shape[1:]) != expected:
            raise ValueError(f"images must be (B, {expected}), got {tuple(images.shape)}")
        if not images.is_floating_point():
            raise ValueError(f"images must be float in [0, 1], got {images.dtype}; divide by 255")
        normalised = (images - self.mean) / self.std
        patches = self.patch_projection(patchify(normalised, self.config.patch))  # (B, N, D)
        cls = self.cls.expand(len(patches), 1, -1)  # (B, 1, D)
        sequence = self.positions(torch.cat([cls, patches], dim=1))  # (B, 1+N, D)
        return self.embedding_dropout(self.embedding_norm(sequence))

    def forward(
        self, images: Tensor, return_hidden: bool = False
    ) -> Tensor | tuple[Tensor, list[Tensor]]:
        """Encode pictures.

        Args:
            images: (B, 3, S, S) float in [0, 1]; normalisation happens here.
            return_hidden: also return [H_0, ..., H_L] (see `Transformer.hidden_states`).

        Returns:
            H_L (B, 1+N, D), [I_CLS] at index 0 (eq. 12); with `return_hidden` a pair of it and a
            list of L+1 tensors of that shape.
        """
        sequence = self.embed(images)
        if not return_hidden:
            return self.transformer(sequence)
        states = self.transformer.hidden_states(sequence)
        return states[-1], states


def _channel_values(values: Sequence[float]) -> Tensor:
    if len(values) != CHANNELS:
        raise ValueError(f"mean and std need {CHANNELS} numbers, one a channel, got {len(values)}")
    return torch.tensor(values, dtype=torch.float32).view(CHANNELS, 1, 1)
