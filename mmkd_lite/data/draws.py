"""Random numbers that are a pure function of (seed, stream, index, slot).

A picture must not depend on which pictures were drawn before it, on the batch it sits in, or on
the version of a generator. So numbers come from a hash of a counter (the SplitMix64 finaliser)
rather than from a generator with a state: row i of a stream is the same in every batch.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MIX = (
    (np.uint64(30), np.uint64(0xBF58476D1CE4E5B9)),
    (np.uint64(27), np.uint64(0x94D049BB133111EB)),
)
MAX_SLOTS = 4096


def _mix(x: np.ndarray) -> np.ndarray:
    """Scramble 64-bit counters: the finaliser of SplitMix64."""
    for shift, factor in _MIX:
        x = (x ^ (x >> shift)) * factor
    return x ^ (x >> np.uint64(31))


def stream_key(seed: int, stream: str) -> int:
    """64-bit key of a named stream.

    Args:
        seed: Any integer.
        stream: Name, as "scenes:train"; different names give unrelated numbers.
    """
    return int.from_bytes(hashlib.sha256(f"{seed}:{stream}".encode()).digest()[:8], "little")


def integers(seed: int, stream: str, indices: Sequence[int] | np.ndarray, slots: int) -> np.ndarray:
    """Random 64-bit integers.

    Args:
        seed: Any integer.
        stream: Name of the stream.
        indices: (B,) row numbers, each >= 0.
        slots: How many numbers a row gets, at most 4,096.

    Returns:
        (B, slots) uint64; row b depends on `indices[b]` alone.
    """
    rows: np.ndarray = np.asarray(indices, dtype=np.int64)
    if rows.ndim != 1 or (rows.size and rows.min() < 0):
        raise ValueError(f"indices must be one row of numbers >= 0, got shape {rows.shape}")
    if not 1 <= slots <= MAX_SLOTS:
        raise ValueError(f"slots must lie in 1..{MAX_SLOTS}, got {slots}")
    counters: np.ndarray = rows.astype(np.uint64)[:, None] * np.uint64(MAX_SLOTS)
    counters = counters + np.arange(slots, dtype=np.uint64)  # (B, slots)
    key = np.full(1, stream_key(seed, stream), dtype=np.uint64)
    return _mix(_mix(key + (counters + np.uint64(1)) * _GOLDEN) ^ key)


def uniforms(seed: int, stream: str, indices: Sequence[int] | np.ndarray, slots: int) -> np.ndarray:
    """Random numbers in [0, 1); arguments as `integers`.

    Returns:
        (B, slots) float64.
    """
    return (integers(seed, stream, indices, slots) >> np.uint64(11)) * 2.0**-53


def pick(uniform: np.ndarray, choices: int | np.ndarray) -> np.ndarray:
    """Turn numbers in [0, 1) into integers 0 .. choices-1 (int64), elementwise."""
    return np.floor(uniform * choices).astype(np.int64)
