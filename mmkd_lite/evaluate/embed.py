"""Run an encoder over many images or captions, in batches and without gradients."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor, nn

Encoder = Callable[[Tensor], Tensor]


def embed_images(
    encode_image: Encoder, images: Tensor | np.ndarray, batch_size: int = 256
) -> Tensor:
    """Encode a stack of images.

    Args:
        encode_image: Maps float images (B, 3, H, W) in [0, 1] to (B, D); a module or a method of
            one. Its module is put into eval mode and back.
        images: (N, 3, H, W) uint8 in [0, 255] (scaled batch by batch) or float in [0, 1].
        batch_size: Images a forward pass, >= 1.

    Returns:
        (N, D) float32 on the CPU.

    Raises:
        ValueError: No image, another rank than 4, or floats outside [0, 1].
    """
    stack = torch.as_tensor(images)
    if stack.dim() != 4 or len(stack) == 0:
        raise ValueError(f"images has shape {tuple(stack.shape)}; give (N, 3, H, W) with N >= 1")

    def prepare(batch: Tensor) -> Tensor:
        if batch.dtype == torch.uint8:
            return batch.float() / 255
        if not batch.is_floating_point() or batch.min() < 0 or batch.max() > 1:
            raise ValueError(
                f"images of type {batch.dtype} span {float(batch.min()):g} to "
                f"{float(batch.max()):g}; give uint8, or floats in [0, 1]"
            )
        return batch.float()

    return _embed(encode_image, stack, batch_size, prepare)


def embed_texts(encode_text: Encoder, tokens: Tensor | np.ndarray, batch_size: int = 256) -> Tensor:
    """Encode a stack of token ids.

    Args:
        encode_text: Maps int64 tokens (B, M), 0 = padding, to (B, D); a module or its method.
        tokens: (T, M) integer token ids.
        batch_size: Captions a forward pass, >= 1.

    Returns:
        (T, D) float32 on the CPU.

    Raises:
        ValueError: No caption, another rank than 2, or ids that are not integers.
    """
    stack = torch.as_tensor(tokens)
    if stack.dim() != 2 or len(stack) == 0 or stack.is_floating_point():
        raise ValueError(
            f"tokens is {stack.dtype} of shape {tuple(stack.shape)}; give integers (T, M), T >= 1"
        )
    return _embed(encode_text, stack, batch_size, lambda batch: batch.to(torch.int64))


@contextmanager
def evaluation_mode(module: nn.Module | None) -> Iterator[None]:
    """Put every submodule into eval mode and restore each one's own flag afterwards."""
    flags = [] if module is None else [(part, part.training) for part in module.modules()]
    try:
        if module is not None:
            module.eval()
        with torch.no_grad():
            yield
    finally:
        for part, training in flags:
            part.training = training


def _embed(encode: Encoder, rows: Tensor, batch_size: int, prepare: Encoder) -> Tensor:
    if batch_size < 1:
        raise ValueError(f"batch_size is {batch_size}; give at least 1")
    owner = encode if isinstance(encode, nn.Module) else getattr(encode, "__self__", None)
    module = owner if isinstance(owner, nn.Module) else None
    weight = None if module is None else next(module.parameters(), None)
    device = rows.device if weight is None else weight.device
    with evaluation_mode(module):
        parts = [encode(prepare(b).to(device)).float().cpu() for b in rows.split(batch_size)]
    return torch.cat(parts)
