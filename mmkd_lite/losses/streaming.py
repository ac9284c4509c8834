"""Log-sum-exp of scaled cosine similarities, tile by tile: no matrix of all pairs ever exists.

Of the B x N logits `L = scale * left @ right.T` a contrast needs only the log-sum-exp of the rows,
perhaps of the columns, and the diagonal. The forward pass computes L in square tiles and keeps
these vectors. The backward pass computes every tile once more; with the vectors at hand the tile's
softmax, hence its share of every gradient, follows at once:

    G[i, j]  = row_gradient[i]    * exp(L[i, j] - row_lse[i])
             + column_gradient[j] * exp(L[i, j] - column_lse[j])
             + diagonal_gradient[i]  where i = j
    gradient of left = scale * G @ right,  gradient of right = scale * G.T @ left

That is four matrix products where the plain form of a symmetric loss takes six, on tiles that stay
near the processor. No exponent is above 0, so nothing overflows at any scale.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

CPU_CHUNK = 2048
"""Default side of a tile on a CPU: two float32 tiles of 16 MB.

Tiles of 4 MB are a little faster on idle cores and slower on shared ones, where the threads that
work on a tile wait for each other at its every operation.
"""

DEVICE_CHUNK = 4096
"""Default side of a tile elsewhere, where large products pay."""


@dataclass(frozen=True)
class Plan:
    """How the matrix is walked through.

    Attributes:
        chunk: Side of a tile, at least 1.
        columns: Also reduce over columns.
        diagonal: Row i and column i are a pair: return L[i, i], and never mask it.
    """

    chunk: int
    columns: bool = False
    diagonal: bool = False


class Reduced(NamedTuple):
    """What is kept of the matrix; a vector that was not asked for is empty."""

    rows: Tensor  # (B,)
    columns: Tensor  # (N,) or (0,)
    diagonal: Tensor  # (B,) or (0,)


class _Inputs(NamedTuple):
    """The tensors that define the matrix."""

    left: Tensor
    right: Tensor
    scale: Tensor
    bias: Tensor | None
    left_id: Tensor | None
    right_id: Tensor | None


def default_chunk(tensor: Tensor) -> int:
    """Return the side of a tile that suits the device of `tensor`."""
    return CPU_CHUNK if tensor.device.type == "cpu" else DEVICE_CHUNK


def log_sum_exp(
    left: Tensor,
    right: Tensor,
    scale: Tensor,
    plan: Plan,
    *,
    bias: Tensor | None = None,
    left_id: Tensor | None = None,
    right_id: Tensor | None = None,
) -> Reduced:
    r"""Return the log-sum-exp of rows and columns of `scale * left @ right.T + bias`.

    .. math:: r_i = \log \sum_j \exp(s\, l_i \cdot r_j + b_j), \quad
              c_j = \log \sum_i \exp(s\, l_i \cdot r_j + b_j), \quad d_i = s\, l_i \cdot r_i

    Args:
        left: (B, D), float32 or float64.
        right: (N, D), the same dtype; N = B where `plan.diagonal`.
        scale: 0-d, > 0, the same dtype.
        plan: Tile size, and which vectors are wanted.
        bias: (N,) added to every row; -inf removes a column.
        left_id: (B,) with `right_id` (N,): entries of equal id are removed, the diagonal excepted.
        right_id: See `left_id`.

    Returns:
        The three vectors. Differentiable once with respect to left, right, scale and bias. A row or
        column without entries has the value -inf and no gradient.

    Source: the denominator of seed 001, eq. 7, for all pairs of a batch.
    Derived in notebooks/02_losses.ipynb.
    """
    return Reduced(*_LogSumExp.apply(left, right, scale, bias, left_id, right_id, plan))


class _LogSumExp(torch.autograd.Function):
    """The differentiable operation behind `log_sum_exp`."""

    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
        inputs, plan = _Inputs(*arguments[:-1]), arguments[-1]
        left, right = inputs.left, inputs.right
        rows = left.new_full((len(left),), -torch.inf)
        columns = left.new_full((len(right) if plan.columns else 0,), -torch.inf)
        diagonal = left.new_empty(len(left) if plan.diagonal else 0)
        with torch.autocast(left.device.type, enabled=False):
            for top, side, logits, work in _tiles(inputs, plan):
                rows[top] = torch.logaddexp(rows[top], _reduce(logits, 1, work))
                if plan.columns:
                    columns[side] = torch.logaddexp(columns[side], _reduce(logits, 0, work))
                if plan.diagonal and top == side:
                    diagonal[top] = logits.diagonal()
        ctx.save_for_backward(*inputs, rows, columns)
        ctx.plan = plan
        return rows, columns, diagonal

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():  # set during backward by create_graph=True
            raise RuntimeError(
                "the streaming contrast has no second derivative: call backward or autograd.grad "
                "without create_graph=True"
            )
        *saved, rows, columns = ctx.saved_tensors
        inputs = _Inputs(*saved)
        left, right, scale, bias = inputs[:4]
        need_left, need_right, need_scale, need_bias = ctx.needs_input_grad[:4]
        grad_left = torch.zeros_like(left) if need_left or need_scale else None
        grad_right = torch.zeros_like(right) if need_right else None
        grad_bias = torch.zeros_like(bias) if need_bias and bias is not None else None
        factor = float(scale)
        with torch.autocast(left.device.type, enabled=False):
            for top, side, logits, work in _tiles(inputs, ctx.plan):
                weight = _weights(logits, work, top, side, (rows, columns), gradients)
                if grad_left is not None:
                    grad_left[top].addmm_(weight, right[side], alpha=factor)
                if grad_right is not None:
                    grad_right[side].addmm_(weight.T, left[top], alpha=factor)
                if grad_bias is not None:
                    grad_bias[side] += weight.sum(dim=0)
        grad_scale = None
        if need_scale and grad_left is not None:
            # L = scale * left . right, hence sum(G * L) / scale = sum(grad_left * left) / scale.
            per_row = torch.einsum("bd,bd->b", grad_left, left)
            grad_scale = per_row.sum() / factor
        return grad_left if need_left else None, grad_right, grad_scale, grad_bias, None, None, None


def _tiles(inputs: _Inputs, plan: Plan) -> Iterator[tuple[slice, slice, Tensor, Tensor]]:
    """Yield (rows, columns, logits, work space) of every tile; the next one overwrites both."""
    left, right, scale, bias, left_id, right_id = inputs
    factor = float(scale)
    size = min(plan.chunk, len(left)) * min(plan.chunk, len(right))
    buffer, second = left.new_empty(size), left.new_empty(size)
    for top in _slices(len(left), plan.chunk):
        for side in _slices(len(right), plan.chunk):
            shape = (top.stop - top.start, side.stop - side.start)
            logits = buffer[: shape[0] * shape[1]].view(shape)
            torch.addmm(logits, left[top], right[side].T, beta=0, alpha=factor, out=logits)
            if bias is not None:
                logits += bias[side]
            if left_id is not None and right_id is not None:
                equal = left_id[top, None] == right_id[None, side]
                if plan.diagonal and top == side:
                    equal.fill_diagonal_(False)
                logits.masked_fill_(equal, -torch.inf)
            yield top, side, logits, second[: logits.numel()].view(shape)


def _reduce(logits: Tensor, axis: int, work: Tensor) -> Tensor:
    """Return the log-sum-exp of a tile over one axis, without allocating a tile."""
    shift = _finite(logits.amax(dim=axis))
    torch.sub(logits, shift.unsqueeze(axis), out=work).exp_()
    return work.sum(dim=axis).log_().add_(shift)


def _weights(
    logits: Tensor,
    work: Tensor,
    top: slice,
    side: slice,
    sums: tuple[Tensor, Tensor],
    gradients: tuple[Tensor, ...],
) -> Tensor:
    """Return G of a tile, the gradient with respect to its logits, in `work`; uses up `logits`."""
    (rows, columns), (grad_rows, grad_columns, grad_diagonal) = sums, gradients
    torch.sub(logits, _finite(rows[top])[:, None], out=work).exp_()
    work *= grad_rows[top, None]
    if len(grad_columns):
        logits.sub_(_finite(columns[side])).exp_().mul_(grad_columns[side])
        work += logits
    if len(grad_diagonal) and top == side:
        work.diagonal().add_(grad_diagonal[top])
    return work


def _finite(maximum: Tensor) -> Tensor:
    """Replace -inf, the mark of "no entries", by 0: exp(-inf - 0) is 0, exp(-inf + inf) is not."""
    return maximum.masked_fill(maximum == -torch.inf, 0)


def _slices(length: int, chunk: int) -> Iterator[slice]:
    """Yield consecutive slices of at most `chunk` that cover `length`; the last may be shorter."""
    for start in range(0, length, chunk):
        yield slice(start, min(start + chunk, length))
