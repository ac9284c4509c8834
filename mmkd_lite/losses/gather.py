"""Rows of all processes in one tensor, with gradients that flow back to the process they came from.

Why the gradients: with W processes, each computes the loss of its own B queries against all W * B
candidates. The candidate of process r takes part in W losses. `gather_rows` sends the gradient of
each of them home and adds them up; DistributedDataParallel then divides by W, and what remains is
exactly the gradient of one process with the whole batch. Gathered without gradients, the rows of
other processes would count as constants and the sum would point elsewhere.
"""

from __future__ import annotations

from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor


def world() -> tuple[int, int]:
    """Return (rank, number of processes); (0, 1) where torch.distributed is not in use."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


class _GatherRows(torch.autograd.Function):
    """All-gather whose backward pass sums over processes and keeps the own rows."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        rank, processes = world()
        ctx.own = slice(rank * len(rows), (rank + 1) * len(rows))
        parts = [torch.empty_like(rows) for _ in range(processes)]
        dist.all_gather(parts, rows.contiguous())
        return torch.cat(parts)  # (W * B, ...)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        total = gradients[0].contiguous().clone()
        dist.all_reduce(total)  # a sum, over processes
        return total[ctx.own]


def gather_rows(rows: Tensor) -> Tensor:
    """Stack the rows of all processes in rank order.

    Args:
        rows: (B, ...), the same shape on every process (`check_equal_shapes`).

    Returns:
        (W * B, ...). A gradient that arrives here is summed over all processes and goes back to the
        process whose row it is.

    Source: hidden in `clip_loss` of seed 000, Codes 3 and 4.
    Derived in notebooks/02_losses.ipynb.
    """
    return cast(Tensor, _GatherRows.apply(rows))


def other_rows(rows: Tensor) -> Tensor:
    """Stack the rows of all processes but this one; gradients flow as in `gather_rows`.

    Args:
        rows: (B, ...), the same shape on every process.

    Returns:
        ((W - 1) * B, ...), in rank order.
    """
    rank, _ = world()
    everything, size = gather_rows(rows), len(rows)
    return torch.cat([everything[: rank * size], everything[(rank + 1) * size :]])


def check_equal_shapes(rows: Tensor, has_ids: bool) -> None:
    """Stop on *every* process unless all bring equal shapes, instead of hanging in the gather.

    Args:
        rows: (B, D) of this process.
        has_ids: Whether this process passes ids.

    Raises:
        ValueError: listing the shapes by rank.
    """
    mine = torch.tensor([*rows.shape, int(has_ids)], device=rows.device)
    parts = [torch.empty_like(mine) for _ in range(world()[1])]
    dist.all_gather(parts, mine)
    found = [tuple(part.tolist()) for part in parts]
    if len(set(found)) > 1:
        listed = ", ".join(
            f"rank {rank}: B={batch}, D={width}, ids={bool(ids)}"
            for rank, (batch, width, ids) in enumerate(found)
        )
        raise ValueError(
            f"every process must bring the same batch size, width and kind of ids ({listed}); "
            "drop the last incomplete batch"
        )
