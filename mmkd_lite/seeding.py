"""Random numbers that neither leak out of a run nor get lost in it.

A run has its own random state. It is set up from the run's seed, saved in every checkpoint, and the
caller's state is put back when the run ends, so that calling `fit` changes no later random draw.
"""

from __future__ import annotations

import contextlib
import math
import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor


@contextlib.contextmanager
def seeded(*seed: int) -> Iterator[None]:
    """Run a block with random states made from `seed`; put the former states back afterwards.

    Args:
        seed: One or more non-negative integers, as `(run seed, rank)`; each combination gives an
            independent stream.
    """
    before = random_state()
    number = int(np.random.SeedSequence(seed).generate_state(1)[0])
    torch.manual_seed(number)
    np.random.seed(number)  # noqa: NPY002, the global state is meant
    random.seed(number)
    try:
        yield
    finally:
        set_random_state(before)


def random_state() -> dict[str, Tensor]:
    """Random states of torch (CPU and, if in use, the current GPU), NumPy and Python as tensors."""
    legacy: Any = np.random.get_state(legacy=True)  # noqa: NPY002
    _, keys, position, has_normal, normal = legacy
    version, numbers, python_normal = random.getstate()
    state = {
        "torch": torch.get_rng_state(),
        "numpy": _exact([*keys.tolist(), position, has_normal, normal]),
        "python": _exact([version, *numbers, math.nan if python_normal is None else python_normal]),
    }
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def _exact(numbers: list[float]) -> Tensor:
    """Numbers as float64, which holds 32-bit integers and Python's floats without rounding."""
    return torch.tensor(numbers, dtype=torch.float64)


def set_random_state(state: dict[str, Tensor]) -> None:
    """Put back what `random_state` returned."""
    torch.set_rng_state(state["torch"])
    *keys, position, has_normal, normal = state["numpy"].tolist()
    numpy_keys = np.array(keys, dtype=np.uint32)
    legacy: Any = ("MT19937", numpy_keys, int(position), int(has_normal), normal)
    np.random.set_state(legacy)  # noqa: NPY002
    version, *numbers, python_normal = state["python"].tolist()
    waiting = None if math.isnan(python_normal) else python_normal
    random.setstate((int(version), tuple(int(number) for number in numbers), waiting))
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])


@contextlib.contextmanager
def deterministic(enabled: bool = True) -> Iterator[None]:
    """Let torch choose kernels that give the same bits every time; put the setting back afterwards.

    On a CPU with several threads this concerns the gradient of indexing, which otherwise adds in an
    order that depends on scheduling.

    Args:
        enabled: False leaves everything as it is.
    """
    if not enabled:
        yield
        return
    algorithms = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    debugging: Any = torch.utils.deterministic
    fill = debugging.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True, warn_only=True)
    debugging.fill_uninitialized_memory = False  # costs time and changes no result here
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(algorithms, warn_only=warn_only)
        debugging.fill_uninitialized_memory = fill
