"""Where a process stands in the endless stream of pairs, and what it makes of its rows."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from mmkd_lite.data import draws

Batch = dict[str, Tensor]


def global_rows(step: int, batch_size: int, rank: int = 0, world: int = 1) -> np.ndarray:
    """Positions in the endless stream of pairs that one process reads at one step.

    Returns:
        (batch_size,) int64: step*B*W + rank*B + 0..B-1.

    Raises:
        ValueError: A negative step, an empty batch, or a rank outside 0..world-1.
    """
    if step < 0 or batch_size < 1 or not 0 <= rank < world:
        raise ValueError(
            f"need step >= 0, batch_size >= 1 and 0 <= rank < world, got step={step}, "
            f"batch_size={batch_size}, rank={rank}, world={world}"
        )
    return step * batch_size * world + rank * batch_size + np.arange(batch_size)


@lru_cache(maxsize=2)  # a batch may straddle two epochs
def epoch_order(seed: int, epoch: int, size: int) -> np.ndarray:
    """Order in which an epoch shows its images.

    Returns:
        (size,) int64, a permutation of 0..size-1; read-only.
    """
    order = np.argsort(draws.integers(seed, f"pairs:epoch:{epoch}", np.arange(size), 1)[:, 0])
    order.setflags(write=False)
    return order


def as_batch(
    images: Tensor,
    tokens: Tensor,
    image_ids: Sequence[int] | np.ndarray,
    caption_ids: Sequence[int] | np.ndarray,
) -> Batch:
    """The batch that every source gives; pictures go from 0..255 to [0, 1].

    Args:
        images: uint8 (B, 3, H, W).
        tokens: int64 (B, M).
        image_ids: B numbers.
        caption_ids: B numbers.
    """
    return {
        "image": images.to(torch.float32).div_(255),  # (B, 3, H, W)
        "tokens": tokens,  # (B, M)
        "image_id": torch.as_tensor(np.asarray(image_ids, dtype=np.int64)),  # (B,)
        "caption_id": torch.as_tensor(np.asarray(caption_ids, dtype=np.int64)),  # (B,)
    }
