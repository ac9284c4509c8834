"""A first-in-first-out bank of embeddings: more negatives than the batch holds, at no forward pass."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from mmkd_lite.losses.base import check_unit_rows, check_vector
from mmkd_lite.losses.gather import check_equal_shapes, gather_rows, world


class Bank(nn.Module):
    """The last G embeddings that were enqueued, with the id and the age of each.

    All state is in buffers, hence in checkpoints. A bank starts empty and fills up: an empty slot has
    age 0 and the bias -inf. What the last `enqueue` stored has age 1, the current batch would have 0.
    With several processes each stores the rows of all of them, in rank order.

    Args:
        size: G, number of slots; a multiple of the rows (of all processes) that arrive in a step.
        width: D, size of an embedding.

    Attributes:
        rows: (G, D) unit vectors, zeros where empty.
        ids: (G,) int64, of the pictures; -1 where empty.
        age: (G,) int64, steps since the row was stored; 0 where empty.
        pointer: () int64, the slot that is written next, the oldest one.

    Raises:
        ValueError: `size` or `width` is below 1.

    Source: seed 002, "Contrastive Learning with Memory Bank" and "Decaying Memory Bank"; errata E002-07, ET-25.
    Derived in notebooks/18_memory_banks.ipynb.
    """

    rows: Tensor
    ids: Tensor
    age: Tensor
    pointer: Tensor

    def __init__(self, size: int, width: int) -> None:
        super().__init__()
        if size < 1 or width < 1:
            raise ValueError(f"a bank needs size={size} and width={width} to be at least 1")
        self.register_buffer("rows", torch.zeros(size, width))
        self.register_buffer("ids", torch.full((size,), -1))
        self.register_buffer("age", torch.zeros(size, dtype=torch.int64))
        self.register_buffer("pointer", torch.zeros((), dtype=torch.int64))

    def check_arrivals(self, count: int) -> None:
        """Stop unless whole steps fit: `count` rows a step must divide the number of slots.

        Raises:
            ValueError: the bank is smaller than the batch, or not a multiple of it.
        """
        size = len(self.rows)
        if count < 1 or size % count:
            raise ValueError(
                f"a bank of {size} slots must be a multiple of the {count} rows that arrive in a step "
                "(batch size times processes)"
            )

    @torch.no_grad()
    def enqueue(self, rows: Tensor, ids: Tensor) -> None:
        """Store a step's rows in place of the oldest ones; call it once a step, after the loss.

        Args:
            rows: (B, D) of this process, unit length; stored without gradient.
            ids: (B,) integers; candidates whose id equals the query's are no negatives.

        Raises:
            ValueError: another width, rows that are not of length 1, or a B that does not divide G.
        """
        if rows.ndim != 2 or rows.shape[1] != self.rows.shape[1]:
            raise ValueError(
                f"rows must be (B, {self.rows.shape[1]}) like the bank's, got {tuple(rows.shape)}"
            )
        check_unit_rows(rows, "rows")
        check_vector(ids, len(rows), "ids", "the batch")
        self.check_arrivals(len(rows) * world()[1])
        if world()[1] > 1:
            check_equal_shapes(rows, True)
            rows, ids = gather_rows(rows), gather_rows(ids)
        offsets = torch.arange(len(rows), device=self.pointer.device)
        slots = (self.pointer + offsets) % len(self.rows)
        self.age += self.age > 0
        self.rows[slots] = rows.to(self.rows.dtype)
        self.ids[slots], self.age[slots] = ids, 1
        self.pointer.add_(len(rows)).remainder_(len(self.rows))

    def bias(self, gamma: float = 1.0, max_age: int = 0) -> Tensor:
        r"""Return what is added to the logits of the slots, so that a row of age a weighs gamma**a.

        .. math:: b_g = a_g \log\gamma, \quad -\infty \text{ where empty or older than the limit}

        Args:
            gamma: decay a step in [0, 1]; 1 gives 0 for every filled slot, 0 gives -inf for all, which
                is no bank.
            max_age: rows older than this many steps are left out; 0 sets no limit.

        Returns:
            (G,), 0 or less.

        Raises:
            ValueError: `gamma` is outside [0, 1], or `max_age` below 0.
        """
        if not 0.0 <= gamma <= 1.0:
            raise ValueError(f"gamma={gamma} must lie in [0, 1]: 1 never forgets, 0 is no bank")
        if max_age < 0:
            raise ValueError(f"max_age={max_age} must be at least 0; 0 sets no limit")
        out = self.age == 0
        if max_age:
            out = out | (self.age > max_age)
        log_gamma = math.log(gamma) if gamma > 0 else -math.inf
        age = self.age.clamp(min=1).to(self.rows.dtype)  # 0 * -inf would be NaN
        return (age * log_gamma).masked_fill(out, -torch.inf)
