"""The conventions of every loss, fixed once, and the checks of what goes in.

A loss here is a pure function of tensors that returns a 0-d tensor. There are no loss classes and
no registry; a method weighs and sums the terms it wants.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

UNIT_NORM_TOLERANCE = 1e-3
"""Largest allowed deviation of a row's length from 1, in float32 and float64."""

HALF_UNIT_NORM_TOLERANCE = 1e-2
"""The same for float16 and bfloat16, whose rounding alone moves a length by up to 4e-3."""


class Convention(NamedTuple):
    """One row of the table that notebook 02 prints."""

    name: str
    reduction: str
    temperature: str
    constant: str


CONVENTIONS = (
    Convention("mean_squared_error", "mean over every element", "none", "target"),
    Convention("cosine_distance", "mean over rows", "none", "target"),
    Convention(
        "kl_divergence",
        "sum over classes, mean over rows",
        "logits / T, value * T**2",
        "teacher_logits",
    ),
    Convention("cross_entropy", "mean over rows", "none", "target (class indices)"),
    Convention(
        "info_nce",
        "mean over queries",
        "scale = exp(log_scale), > 0",
        "nothing",
    ),
    Convention(
        "image_text_contrast",
        "mean over pairs and both directions",
        "scale = exp(log_scale), > 0",
        "nothing",
    ),
    Convention(
        "hidden_state_distillation", "mean over valid tokens and channels", "none", "teacher"
    ),
    Convention(
        "similarity_map_distillation",
        "sum (or mean) over map entries",
        "none",
        "teacher",
    ),
    Convention(
        "similarity_map_divergence",
        "mean over rows and directions",
        "each model's own scale",
        "teacher",
    ),
    Convention("feature_distillation", "mean over every element", "none", "teacher"),
    Convention(
        "relational_distillation",
        "mean over rows and directions",
        "each model's own scale",
        "teacher",
    ),
    Convention(
        "interactive_contrast",
        "mean over pairs and both directions",
        "the student's scale",
        "teacher",
    ),
    Convention(
        "affinity_mimicking",
        "mean over rows and directions",
        "one for both, or each its own",
        "teacher",
    ),
    Convention(
        "soft_alignment",
        "mean over pairs and both directions",
        "scale; target logits / T",
        "soft targets",
    ),
    Convention(
        "label_smoothing",
        "mean over pairs and both directions",
        "scale = exp(log_scale)",
        "nothing",
    ),
    Convention(
        "hard_bootstrapping",
        "mean over pairs and both directions",
        "scale = exp(log_scale)",
        "targets",
    ),
)
"""What is averaged, what is multiplied, and which argument never receives a gradient."""


def conventions_table() -> str:
    """Return the conventions of all losses as a table of plain text.

    Derived in notebooks/02_losses.ipynb, which prints it.
    """
    header = Convention("loss", "reduction", "temperature or scale", "treated as a constant")
    widths = [max(len(row[column]) for row in (header, *CONVENTIONS)) for column in range(4)]
    rule = tuple("-" * width for width in widths)
    lines = (
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in (header, rule, *CONVENTIONS)
    )
    return "\n".join(lines)


def check_logits(logits: Tensor, name: str) -> None:
    """Stop unless `logits` is a non-empty floating-point tensor (..., C).

    Raises:
        ValueError: wrong kind of number, no class axis, or no rows.
    """
    if not logits.is_floating_point():
        raise ValueError(
            f"{name} must be floating-point scores (..., C), got {logits.dtype}; "
            "are the two arguments swapped?"
        )
    if logits.ndim < 1 or logits.numel() == 0:
        raise ValueError(f"{name} must be (..., C) and not empty, got {tuple(logits.shape)}")


def check_same_shape(first: Tensor, second: Tensor, first_name: str, second_name: str) -> None:
    """Stop unless two tensors have one shape: broadcasting would silently average other pairs.

    Raises:
        ValueError: naming both shapes.
    """
    if first.shape != second.shape:
        raise ValueError(
            f"{first_name} and {second_name} must have the same shape, got "
            f"{tuple(first.shape)} and {tuple(second.shape)}"
        )


def check_temperature(temperature: float) -> None:
    """Stop unless the softening temperature is a finite positive number.

    Raises:
        ValueError: otherwise.
    """
    if not 0 < temperature < math.inf:
        raise ValueError(f"temperature must be a finite number > 0, got {temperature}")


def as_scale(scale: Tensor | float, like: Tensor) -> Tensor:
    """Return the logit scale as a 0-d tensor of `like`'s kind, gradient kept.

    Args:
        scale: The *exponentiated* scale, > 0; CLIP starts at 1 / 0.07 and clamps to at most 100.
        like: Tensor whose dtype and device the result has.

    Raises:
        ValueError: If the scale is not a single finite number > 0.
    """
    if isinstance(scale, Tensor) and scale.numel() != 1:
        raise ValueError(f"scale must be a single number, got shape {tuple(scale.shape)}")
    value = float(scale.detach() if isinstance(scale, Tensor) else scale)
    if not 0 < value < math.inf:
        raise ValueError(
            f"scale must be a finite number > 0, got {value}; pass exp(log_scale), not log_scale"
        )
    if isinstance(scale, Tensor):
        return scale.reshape(()).to(like)
    return torch.tensor(value, dtype=like.dtype, device=like.device)


def check_unit_rows(vectors: Tensor, name: str, ignore: Tensor | None = None) -> None:
    """Stop unless every row of (N, D) has length 1.

    Args:
        vectors: (N, D) embeddings.
        name: What they are, for the message.
        ignore: (N,) bool, rows that need only be finite, such as the empty slots of a bank.

    Raises:
        ValueError: naming the largest deviation and its row.
    """
    if vectors.ndim != 2 or not vectors.is_floating_point():
        raise ValueError(
            f"{name} must be a floating-point tensor (N, D), "
            f"got {vectors.dtype} of shape {tuple(vectors.shape)}"
        )
    if vectors.numel() == 0:
        return
    half = vectors.dtype in (torch.float16, torch.bfloat16)
    exact = torch.float32 if half else vectors.dtype
    norms = torch.linalg.vector_norm(vectors.detach(), dim=-1, dtype=exact)
    deviation = torch.nan_to_num((norms - 1).abs(), nan=math.inf, posinf=math.inf)  # (N,)
    if ignore is not None:
        deviation = deviation.masked_fill(ignore & deviation.isfinite(), 0)
    row = int(deviation.argmax())
    if float(deviation[row]) > (HALF_UNIT_NORM_TOLERANCE if half else UNIT_NORM_TOLERANCE):
        raise ValueError(
            f"{name} must have rows of length 1: row {row} has length {float(norms[row]):.4g}, max "
            f"deviation {float(deviation[row]):.4g}; use torch.nn.functional.normalize(x, dim=-1)"
        )


def check_pairs(
    first: Tensor, second: Tensor, first_name: str, second_name: str
) -> tuple[Tensor, Tensor]:
    """Check two sides of B pairs and return them in one dtype, float32 or float64.

    Args:
        first: (B, D), rows of length 1.
        second: (B, D), rows of length 1.
        first_name: What `first` is, for messages.
        second_name: What `second` is, for messages.

    Raises:
        ValueError: If B or D differ, B is 0, or a row is not of length 1.
    """
    check_same_shape(first, second, first_name, second_name)
    check_unit_rows(first, first_name)
    check_unit_rows(second, second_name)
    if first.numel() == 0:
        raise ValueError(f"{first_name} and {second_name} are empty: shape {tuple(first.shape)}")
    dtype = torch.promote_types(torch.promote_types(first.dtype, second.dtype), torch.float32)
    return first.to(dtype), second.to(dtype)


def check_same_width(bank: Tensor, batch: Tensor, name: str) -> None:
    """Stop unless `bank` is (G, D) with the width of the batch (B, D).

    Raises:
        ValueError: naming both shapes.
    """
    if bank.ndim != 2 or bank.shape[1] != batch.shape[1]:
        raise ValueError(
            f"{name} must be (G, {batch.shape[1]}) like the batch, got {tuple(bank.shape)}"
        )


def check_bias(bias: Tensor | None, name: str) -> None:
    """Stop unless the bias of a bank holds numbers or -inf.

    Raises:
        ValueError: at NaN and +inf, which would make the loss NaN.
    """
    if bias is not None and not bool((bias < torch.inf).all()):
        raise ValueError(f"the bias of {name} must be finite, or -inf for an empty slot")


def check_chunk_size(chunk_size: int | None) -> None:
    """Stop unless `chunk_size` is None or a whole number of at least 1.

    Raises:
        ValueError: otherwise.
    """
    if chunk_size is not None and (type(chunk_size) is not int or chunk_size < 1):
        raise ValueError(f"chunk_size must be a whole number >= 1 or None, got {chunk_size!r}")


def check_vector(values: Tensor | None, length: int, name: str, of: str) -> None:
    """Stop unless `values` is None or (length,): ids and biases come one a row.

    Raises:
        ValueError: naming the shape and what it should match.
    """
    if values is not None and tuple(values.shape) != (length,):
        raise ValueError(
            f"{name} must be ({length},), one entry a row of {of}, got {tuple(values.shape)}"
        )
