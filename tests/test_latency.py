"""Latency with a clock under control, and memory of layers small enough to add up by hand."""

from __future__ import annotations

import math

import pytest
import torch
from scipy import stats
from torch import nn

from mmkd_lite.evaluate import latency
from mmkd_lite.evaluate.latency import Latency, latency_ratio, measure_latency
from mmkd_lite.evaluate.memory import peak_memory


class Clock:
    """A clock that stands still but for what the timed calls add."""

    def __init__(self) -> None:
        self.now, self.calls = 0.0, []

    def call(self, name, *seconds):
        """Return a function that takes these seconds in turn, the last one for ever."""
        left = list(seconds)

        def work() -> None:
            self.calls.append(name)
            self.now += left.pop(0) if len(left) > 1 else left[0]

        return work


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(latency.time, "perf_counter", lambda: clock.now)
    return clock


def test_median_and_p95_of_the_rounds_without_the_warm_up(clock) -> None:
    seconds = [
        9.0,
        9.0,
        *(k / 1000 for k in range(1, 22)),
    ]  # two slow calls to warm up, then 1 to 21 ms
    found = measure_latency({"a": clock.call("a", *seconds)}, rounds=21, warmup=2, batch=4)["a"]
    assert len(found.milliseconds) == 21
    assert found.median == pytest.approx(11.0)
    assert found.p95 == pytest.approx(20.0)
    assert found.per_input == pytest.approx(11.0 / 4)


def test_rounds_take_turns(clock) -> None:
    calls = {name: clock.call(name, 0.001) for name in "abc"}
    measure_latency(calls, rounds=3, warmup=1)
    assert "".join(clock.calls) == "abc" + "abc" + "bca" + "cab"


def test_a_machine_that_slows_down_changes_no_ratio(clock) -> None:
    rounds = [0.001 * 1.3**k for k in range(12)]
    calls = {
        "a": clock.call("a", 0.001, *(2 * r for r in rounds)),
        "b": clock.call("b", 0.001, *rounds),
    }
    found = measure_latency(calls, rounds=12, warmup=1)
    ratio = latency_ratio(found["a"], found["b"])
    assert (ratio.median, ratio.low, ratio.high) == pytest.approx((2, 2, 2))
    assert ratio.text() == "2.00 [2.00, 2.00]"


def test_interval_of_the_ratio_is_the_sign_test() -> None:
    ratios = [0.5 + 0.1 * ((7 * k) % 20) for k in range(20)]  # 0.5 to 2.4, shuffled
    found = latency_ratio(Latency(tuple(3 * r for r in ratios)), Latency((3.0,) * 20))
    ordered = sorted(ratios)
    outside = max(k for k in range(10) if stats.binom.cdf(k, 20, 0.5) <= 0.025)
    assert outside == 5  # so many of 20 may lie beyond each end
    assert (found.low, found.high) == pytest.approx((ordered[5], ordered[-6]))
    assert found.median == pytest.approx((ordered[9] + ordered[10]) / 2)
    few = latency_ratio(Latency((1.0, 2.0)), Latency((1.0, 1.0)))
    assert math.isnan(few.low) and "too few" in few.text()


def test_calls_that_mean_nothing_are_refused() -> None:
    with pytest.raises(ValueError, match="0 calls"):
        measure_latency({})
    with pytest.raises(ValueError, match="0 rounds"):
        measure_latency({"a": lambda: None}, rounds=0)
    with pytest.raises(ValueError, match="'a' returns NaN"):
        measure_latency({"a": lambda: torch.tensor([1.0, math.nan])}, rounds=1)
    with pytest.raises(ValueError, match="1 rounds against 2"):
        latency_ratio(Latency((1.0,)), Latency((1.0, 2.0)))


def test_no_graph_is_built_while_the_clock_runs() -> None:
    layer, seen = nn.Linear(2, 2), []
    measure_latency({"a": lambda: seen.append(layer(torch.ones(1, 2)).requires_grad)}, rounds=1)
    assert not any(seen)


# ---------------------------------------------------------------- memory


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_peak_memory_of_three_layers_by_hand(device) -> None:
    with torch.device(device):
        model = nn.Sequential(nn.Linear(10, 20, bias=False), nn.ReLU(), nn.Linear(20, 5))
        inputs = {"input": torch.zeros(4, 10)}
    found = peak_memory(model, inputs)
    assert found.weights == 4 * (200 + 105)
    assert found.activations == 4 * (80 + 80)  # both sides of the ReLU; later 80 + 20
    assert found.peak == found.weights + found.activations


def test_work_in_place_and_views_cost_nothing() -> None:
    model = nn.Sequential(nn.Linear(10, 20), nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(20, 5))
    assert peak_memory(model, {"input": torch.zeros(4, 10)}).activations == 4 * (80 + 20)


def test_shared_weights_count_once_and_buffers_count() -> None:
    model = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 6), nn.BatchNorm1d(6))
    model[1].weight = model[0].weight
    statistics = 4 * (6 + 6) + 8  # running mean and variance, and an int64 counter
    found = peak_memory(model, {"input": torch.zeros(3, 6)})
    assert found.weights == 4 * (36 + 6 + 6 + 12) + statistics


def test_memory_grows_with_the_batch_and_refuses_what_does_not_fit() -> None:
    model = nn.Sequential(nn.Linear(10, 20), nn.GELU(), nn.Linear(20, 5))
    small, large = (peak_memory(model, {"input": torch.zeros(n, 10)}) for n in (4, 32))
    assert large.activations == 8 * small.activations
    assert large.weights == small.weights
    with pytest.raises(ValueError, match="Sequential does not run on"):
        peak_memory(model, {"input": torch.zeros(4, 11)})
    with pytest.raises(ValueError, match="no torch module"):
        peak_memory(torch.zeros, {"size": 3})
