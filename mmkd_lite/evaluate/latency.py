"""How long a call takes: median and 95th percentile of many runs, several calls measured in turn."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy import stats
from torch import Tensor


@dataclass(frozen=True)
class Latency:
    """The times of one call.

    Attributes:
        milliseconds: One time a round, in the order they were taken.
        batch: How many inputs a call had.
    """

    milliseconds: tuple[float, ...]
    batch: int = 1

    @property
    def median(self) -> float:
        """Half of the calls took longer, in milliseconds."""
        return float(np.median(self.milliseconds))

    @property
    def p95(self) -> float:
        """One call in twenty took longer, in milliseconds; needs 20 rounds to mean much."""
        return float(np.percentile(self.milliseconds, 95))

    @property
    def per_input(self) -> float:
        """Median milliseconds divided by the batch."""
        return self.median / self.batch


@dataclass(frozen=True)
class Ratio:
    """How many times as long one call took as another: median over rounds, with its interval.

    Attributes:
        median: Median of the ratios, round by round.
        low: Lower end of the interval; NaN for too few rounds.
        high: Upper end of the interval; NaN for too few rounds.
        rounds: How many ratios.
    """

    median: float
    low: float
    high: float
    rounds: int

    def text(self) -> str:
        """Spell it as "1.21 [1.15, 1.30]"."""
        if not np.isfinite(self.low + self.high):
            return f"{self.median:.2f} ({self.rounds} rounds: too few for an interval)"
        return f"{self.median:.2f} [{self.low:.2f}, {self.high:.2f}]"


@torch.no_grad()
def measure_latency(
    calls: Mapping[str, Callable[[], Any]],
    rounds: int = 20,
    warmup: int = 3,
    *,
    batch: int = 1,
    device: str = "cpu",
) -> dict[str, Latency]:
    """Time some calls in turn, without gradients.

    A round calls each once, starting with another one each time, so that a machine that slows down meanwhile slows
    all of them. The first calls of each, which allocate and tune, do not count.

    Args:
        calls: Name to a function without arguments; put models into eval mode before.
        rounds: Times each is timed, >= 1.
        warmup: Calls of each before, >= 1.
        batch: Inputs a call, for `Latency.per_input`.
        device: On "cuda" the clock waits for the device.

    Raises:
        ValueError: Nothing to time, rounds or warmup below 1, or a call whose result holds NaN.

    Used in notebooks/36_size_and_speed.ipynb.
    """
    if not calls or rounds < 1 or warmup < 1 or batch < 1:
        raise ValueError(
            f"{len(calls)} calls, {rounds} rounds, {warmup} to warm up, batch {batch}: give at least 1 of each"
        )
    for name, call in calls.items():
        for _ in range(warmup):
            found = call()
        if isinstance(found, Tensor) and not bool(torch.isfinite(found).all()):
            raise ValueError(
                f"{name!r} returns NaN or infinite numbers; its time would mean nothing"
            )
    wait = torch.cuda.synchronize if device.startswith("cuda") else lambda: None
    times: dict[str, list[float]] = {name: [] for name in calls}
    names = list(calls)
    for turn in range(rounds):
        first = turn % len(names)
        for name in names[first:] + names[:first]:
            wait()
            start = time.perf_counter()
            calls[name]()
            wait()
            times[name].append(1e3 * (time.perf_counter() - start))
    return {name: Latency(tuple(taken), batch) for name, taken in times.items()}


def latency_ratio(a: Latency, b: Latency, level: float = 0.95) -> Ratio:
    """Return how many times as long `a` took as `b`, paired by round.

    The interval is that of the sign test: it assumes no shape of the noise, only independent rounds.

    Raises:
        ValueError: The two were not measured in the same rounds.
    """
    if len(a.milliseconds) != len(b.milliseconds):
        raise ValueError(
            f"{len(a.milliseconds)} rounds against {len(b.milliseconds)}; measure both in one call"
        )
    ratios = np.divide(a.milliseconds, b.milliseconds)
    ends = stats.quantile_test(ratios, q=1.0, p=0.5).confidence_interval(level)
    return Ratio(float(np.median(ratios)), float(ends.low), float(ends.high), len(ratios))
