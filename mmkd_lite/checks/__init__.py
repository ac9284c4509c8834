"""Assertions for notebooks, and the helpers that the exercise checkers are written with.

`exercises_NN` holds the checkers of notebook NN: `exercise_1(answer)` raises `AssertionError` with
a hint when the answer is wrong and returns nothing when it is right. A notebook calls them through
`attempt`, so that an exercise left open does not stop it; the solutions call them directly.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

__all__ = ["attempt", "close", "expect", "same"]


def expect(condition: Any, hint: str) -> None:
    """Fail with a hint unless the condition holds.

    Args:
        condition: Anything with a truth value; one-element arrays and tensors included.
        hint: What to look at, in words for the reader.

    Raises:
        AssertionError: If the condition is false; the hint is the message.
    """
    if not bool(condition):
        raise AssertionError(hint)


def same(actual: Any, expected: Any, what: str = "the values") -> None:
    """Assert exact equality of shape and of every value (NaN equals NaN).

    Args:
        actual: Number, string, sequence, array or tensor.
        expected: The same kind of thing, of the same shape.
        what: Name of the compared quantity for the message.

    Raises:
        AssertionError: If shape or any value differs; names the first position that does.
    """
    left, right = _array(actual), _array(expected)
    _same_shape(left, right, what)
    if left.dtype.kind in "fc" and right.dtype.kind in "fc":
        different = ~((left == right) | (np.isnan(left) & np.isnan(right)))
    else:
        different = np.asarray(left != right)
    if different.any():
        place = tuple(int(i) for i in np.argwhere(different)[0])
        raise AssertionError(
            f"{what}: {int(different.sum())} of {different.size} values differ, first at {place}: "
            f"{left[place]} instead of {right[place]}"
        )


def close(
    actual: Any,
    expected: Any,
    rtol: float = 1e-5,
    what: str = "the values",
    *,
    atol: float = 1e-8,
) -> None:
    r"""Assert that two results agree relative to their largest entry.

    .. math:: \max_i |a_i - e_i| \le \text{atol} + \text{rtol} \cdot \max_i |e_i|

    The bound is on the whole array, not entry by entry: a gradient entry of 1e-9 beside others of
    size 1 may carry the rounding error of those.

    Args:
        actual: Number, sequence, array or tensor (detached here).
        expected: The reference, of the same shape.
        rtol: Largest relative deviation, as a fraction of the largest reference entry.
        what: Name of the compared quantity for the message.
        atol: Largest absolute deviation on top, for references that are zero.

    Raises:
        AssertionError: If a shape differs, a value is not finite, or the deviation is too large.
    """
    left, right = _array(actual).astype(np.float64), _array(expected).astype(np.float64)
    _same_shape(left, right, what)
    for name, values in (("result", left), ("reference", right)):
        expect(np.isfinite(values).all(), f"{what}: the {name} holds a value that is not finite")
    if left.size == 0:
        return
    deviation = float(np.abs(left - right).max())
    bound = atol + rtol * float(np.abs(right).max())
    if deviation > bound:
        place = tuple(int(i) for i in np.unravel_index(np.abs(left - right).argmax(), left.shape))
        raise AssertionError(
            f"{what}: off by {deviation:.3g} at {place} ({left[place]:.6g} instead of "
            f"{right[place]:.6g}); allowed is {bound:.3g}"
        )


def attempt(checker: Callable[[Any], None], answer: Any) -> None:
    """Run an exercise checker and print its verdict instead of raising it.

    Args:
        checker: A function such as `exercises_02.exercise_1`.
        answer: The reader's answer; `None` means "not tried yet".
    """
    name = checker.__name__.replace("_", " ").capitalize()
    if answer is None:
        print(f"{name}: waiting for your answer.")
        return
    try:
        checker(answer)
    except AssertionError as error:
        print(f"{name}: not yet. {error}")
    else:
        print(f"{name}: correct.")


def _array(value: Any) -> np.ndarray:
    """Turn a number, sequence, array or tensor into a NumPy array, outside any graph."""
    if hasattr(value, "detach"):
        value = value.detach().cpu()
        value = value.float() if str(value.dtype) == "torch.bfloat16" else value
        return np.asarray(value.numpy())
    if isinstance(value, (list, tuple)) and any(hasattr(item, "detach") for item in value):
        return np.stack([_array(item) for item in value])
    return np.asarray(value)


def _same_shape(left: np.ndarray, right: np.ndarray, what: str) -> None:
    """Refuse to broadcast: a missing axis is a mistake, not a convenience."""
    expect(
        left.shape == right.shape,
        f"{what}: shape {left.shape} instead of {right.shape}",
    )
