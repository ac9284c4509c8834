"""Calibration against scikit-learn, scipy, loops and cases that can be done by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax
from sklearn.calibration import calibration_curve
from torch import Tensor

from mmkd_lite.evaluate import (
    calibration_report,
    expected_calibration_error,
    fit_temperature,
    reliability,
)


def answers(n: int = 500, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    sure = torch.rand(n, generator=generator, dtype=torch.float64)
    return sure, torch.rand(n, generator=generator) < sure**2  # overconfident


def scored(n: int = 300, classes: int = 6, scale: float = 1.0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(n, classes, generator=generator, dtype=torch.float64)
    label = torch.distributions.Categorical(logits=2.0 * logits).sample()
    return scale * logits, label


@pytest.mark.parametrize("bins", [1, 5, 15, 40])
def test_bins_and_error_agree_with_scikit_learn(bins):
    sure, right = answers()
    sure[:6] = torch.tensor([0.0, 0.2, 0.4, 0.6, 0.8, 1.0]).double()  # on the edges
    rows = reliability(sure, right, bins)
    accuracy, confidence = calibration_curve(right.numpy(), sure.numpy(), n_bins=bins)
    np.testing.assert_allclose([r["accuracy"] for r in rows], 100 * accuracy, atol=1e-9)
    np.testing.assert_allclose([r["confidence"] for r in rows], 100 * confidence, atol=1e-9)
    count = np.array([r["n"] for r in rows])
    expected = 100 * float(count @ np.abs(accuracy - confidence)) / count.sum()
    assert expected_calibration_error(sure, right, bins) == pytest.approx(expected)
    assert count.sum() == 500


def test_error_by_a_loop():
    sure, right = answers(n=60, seed=3)
    total = 0.0
    for m in range(15):
        inside = [i for i in range(60) if m / 15 < float(sure[i]) <= (m + 1) / 15]
        if inside:
            mean = sum(float(sure[i]) for i in inside) / len(inside)
            hits = sum(bool(right[i]) for i in inside) / len(inside)
            total += len(inside) / 60 * abs(hits - mean)
    assert expected_calibration_error(sure, right) == pytest.approx(100 * total)


def test_error_by_hand():
    sure = torch.tensor([0.9, 0.9, 0.9, 0.9, 0.3, 0.3])
    right = torch.tensor([True, True, False, True, False, True])
    # four of confidence 90 % and accuracy 75 %, two of 30 % and 50 %
    assert expected_calibration_error(sure, right, 10) == pytest.approx((4 * 15 + 2 * 20) / 6)


def test_the_scale_changes_what_is_believed_and_not_what_is_right():
    cosines, label = scored(scale=0.1)
    found = {scale: calibration_report(cosines, label, scale) for scale in (1.0, 20.0, 200.0)}
    assert len({round(f["accuracy"], 9) for f in found.values()}) == 1
    assert found[1.0]["confidence"] < found[20.0]["confidence"] < found[200.0]["confidence"]
    assert found[20.0]["ece"] < min(found[1.0]["ece"], found[200.0]["ece"])  # 20 is the truth
    for scale, row in found.items():
        assert f"scale={scale:g}/" in row["protocol"] and row["scale"] == scale
        logs = log_softmax(scale * cosines.numpy(), axis=1)
        assert row["nll"] == pytest.approx(-logs[np.arange(300), label.numpy()].mean())


def test_the_temperature_is_the_one_that_scipy_finds():
    for scale in (0.02, 1.0, 50.0):
        logits, label = scored(scale=scale)

        def loss(log_t, logits=logits, label=label):
            logs = log_softmax(logits.numpy() / 10**log_t, axis=1)
            return -logs[np.arange(300), label.numpy()].mean()

        found = fit_temperature(logits, label)
        best = minimize_scalar(loss, bounds=(-3, 3), method="bounded", options={"xatol": 1e-10})
        assert found == pytest.approx(10**best.x, rel=1e-5)
        assert found == pytest.approx(scale / 2, rel=0.3)  # the labels were drawn so
        assert loss(math.log10(found)) < min(loss(math.log10(found) + d) for d in (-0.01, 0.01))


def test_temperatures_at_the_ends_of_the_range():
    logits, label = scored()
    assert fit_temperature(torch.eye(3), torch.arange(3)) == 1e-4  # never wrong
    assert fit_temperature(-torch.eye(3), torch.arange(3)) == 1e4  # worse than guessing
    assert 1e-4 < fit_temperature(logits, label) < 1e4
    with pytest.raises(ValueError, match="equal scores"):
        fit_temperature(torch.ones(4, 3), torch.zeros(4, dtype=torch.int64))


@pytest.mark.parametrize(
    ("scores", "label", "scale", "message"),
    [
        (torch.ones(3, 1), torch.zeros(3, dtype=torch.int64), 1.0, "C >= 2"),
        (torch.ones(0, 2), torch.zeros(0, dtype=torch.int64), 1.0, "N >= 1"),
        (torch.eye(2), torch.zeros(3, dtype=torch.int64), 1.0, "got"),
        (torch.eye(2) * math.nan, torch.arange(2), 1.0, "NaN"),
        (torch.eye(2), torch.tensor([0, 2]), 1.0, r"lie in \[0, 2\)"),
        (torch.eye(2), torch.arange(2), 0.0, "above 0"),
        (torch.eye(2), torch.arange(2), math.nan, "above 0"),
    ],
)
def test_bad_scores_are_named(scores, label, scale, message):
    with pytest.raises(ValueError, match=message):
        calibration_report(scores, label, scale)
    if scale == 1.0:
        with pytest.raises(ValueError, match=message):
            fit_temperature(scores, label)


@pytest.mark.parametrize(
    ("sure", "bins", "message"),
    [
        ([0.5, 1.2], 15, "probabilities, not scores"),
        ([0.5, math.nan], 15, "probabilities"),
        ([0.5, 0.5, 0.5], 15, "must be"),
        ([0.5, 0.5], 0, "at least one bin"),
    ],
)
def test_bad_confidences_are_named(sure, bins, message):
    with pytest.raises(ValueError, match=message):
        expected_calibration_error(torch.tensor(sure), torch.tensor([True, False]), bins)
