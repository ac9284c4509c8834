"""The short loop that fresh heads and finetuned towers share; the resumable one is `loop.py`."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from mmkd_lite.optimizer import learning_rate


def descend(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    gradient: Callable[[int], float],
    steps: int,
    peak: float,
    *,
    warmup_fraction: float = 0.1,
    clip_norm: float = 1.0,
    what: str = "",
) -> list[float]:
    """Take `steps` steps of an optimiser; warm-up, then half a cosine down to zero.

    Args:
        model: Whose gradient is clipped.
        optimizer: Its groups may carry a `rate_scale`, the factor of their learning rate.
        gradient: Told the step, adds its gradient and returns its loss.
        steps: Updates.
        peak: The highest learning rate.
        warmup_fraction: See `optimizer.learning_rate`.
        clip_norm: Largest norm of the gradient; 0 leaves it alone.
        what: Named where training fails.

    Returns:
        The loss of every step.

    Raises:
        ValueError: A loss that is not finite.
    """
    losses: list[float] = []
    for step in range(steps):
        rate = learning_rate(step, steps, peak, warmup_fraction)
        for group in optimizer.param_groups:
            group["lr"] = rate * group.get("rate_scale", 1.0)
        optimizer.zero_grad()
        losses.append(gradient(step))
        if not math.isfinite(losses[-1]):
            of = f" of {what}" if what else ""
            raise ValueError(
                f"the loss{of} is {losses[-1]} at step {step}; lower the learning rate ({peak:g})"
            )
        if clip_norm:
            nn.utils.clip_grad_norm_(model.parameters(), clip_norm)
        optimizer.step()
    return losses


def shuffled_rows(count: int, batch_size: int) -> Iterator[Tensor]:
    """Yield row numbers (B,) for ever, each of `count` once before any comes again (torch's random state)."""
    order = torch.empty(0, dtype=torch.int64)
    while True:
        while len(order) < batch_size:
            order = torch.cat([order, torch.randperm(count)])
        rows, order = order[:batch_size], order[batch_size:]
        yield rows
