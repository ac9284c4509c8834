"""Effective robustness: planted lines, SciPy as the independent fit, published constants, and bad input."""

import math

import numpy as np
import pytest
import torch
from scipy.special import expit as scipy_expit
from scipy.special import logit as scipy_logit
from scipy.stats import linregress

from mmkd_lite import standard_baselines
from mmkd_lite.evaluate import effective_robustness, implied_standard, subset_accuracy
from mmkd_lite.evaluate.robustness import (
    PUBLISHED_FITS,
    KneeFit,
    LogitFit,
    away_from_ends,
    expit,
    logit,
    logit_fit,
)
from mmkd_lite.notebook import repository_root
from mmkd_lite.results import RESULTS_FOLDER
from mmkd_lite.storage import read_json


def planted(slope=0.8, intercept=-0.5, standard=(20.0, 40.0, 55.0, 70.0, 90.0)):
    """Baselines that lie on a line exactly."""
    curve = scipy_expit(slope * scipy_logit(np.array(standard) / 100) + intercept)
    return list(zip(standard, (100 * curve).tolist(), strict=True))


def noisy(n=30, seed=0, noise=0.2):
    numbers = np.random.default_rng(seed)
    x = numbers.uniform(-1.0, 2.0, n)
    y = 0.9 * x - 0.6 + noise * numbers.standard_normal(n)
    return np.stack([100 * scipy_expit(x), 100 * scipy_expit(y)], axis=1)


def test_a_case_by_hand():
    """Odds 1 and 4 against odds 1/2 and 2: slope 1, so every standard odds are halved."""
    line = [(50.0, 100 / 3), (80.0, 200 / 3)]
    found = effective_robustness(200 / 3, 60.0, line)  # odds 2 -> odds 1 -> 50 %
    assert found.expected == pytest.approx(50.0)
    assert found.value == pytest.approx(10.0)
    assert not found.extrapolated and found.warning == ""
    assert math.isnan(found.low) and math.isnan(found.high)  # two models leave no doubt to measure
    assert implied_standard(60.0, line).value == pytest.approx(75.0)  # odds 3/2 -> odds 3


def test_a_planted_line_is_recovered_and_a_planted_gain_too():
    baselines = planted()
    fit = logit_fit(*np.array(baselines).T)
    assert (fit.slope, fit.intercept) == (pytest.approx(0.8), pytest.approx(-0.5))
    assert (fit.low, fit.high, fit.n) == (20.0, 90.0, 5)
    for standard, shifted in planted(standard=(25.0, 62.0)):
        found = effective_robustness(standard, shifted + 7.0, baselines)
        assert found.value == pytest.approx(7.0)
        assert found.low == pytest.approx(7.0) and found.high == pytest.approx(7.0)
        assert implied_standard(shifted, baselines).value == pytest.approx(standard)


def test_it_agrees_with_scipy():
    table = noisy()
    expected = linregress(scipy_logit(table[:, 0] / 100), scipy_logit(table[:, 1] / 100))
    fit = logit_fit(table[:, 0], table[:, 1])
    assert fit.slope == pytest.approx(expected.slope, rel=1e-10)
    assert fit.intercept == pytest.approx(expected.intercept, rel=1e-10)
    line = 100 * scipy_expit(expected.intercept + expected.slope * scipy_logit(0.61))
    assert effective_robustness(61.0, 50.0, table).value == pytest.approx(50.0 - line, rel=1e-9)
    back = 100 * scipy_expit((scipy_logit(0.3) - expected.intercept) / expected.slope)
    assert implied_standard(30.0, torch.tensor(table).numpy()).value == pytest.approx(back)


def test_logit_and_expit_are_scipys():
    for accuracy in (0.01, 6.17, 50.0, 99.99):
        assert logit(accuracy) == pytest.approx(scipy_logit(accuracy / 100))
        assert expit(logit(accuracy)) == pytest.approx(accuracy)
    assert expit(-2000.0) == 0.0 and expit(2000.0) == 100.0


def test_the_interval_is_that_of_a_bootstrap_written_as_a_loop():
    table, numbers = noisy(12), np.random.default_rng(3)
    values, implied = [], []
    for rows in numbers.integers(len(table), size=(200, len(table))):
        x, y = scipy_logit(table[rows].T / 100)
        line = linregress(x, y)
        values.append(40 - 100 * scipy_expit(line.intercept + line.slope * scipy_logit(0.6)))
        implied.append(100 * scipy_expit((scipy_logit(0.4) - line.intercept) / line.slope))
    for found, expected in (
        (effective_robustness(60, 40, table, level=0.9, resamples=200, seed=3), values),
        (implied_standard(40, table, level=0.9, resamples=200, seed=3), implied),
    ):
        assert found.low == pytest.approx(np.quantile(expected, 0.05))
        assert found.high == pytest.approx(np.quantile(expected, 0.95))
        assert found.low < found.value < found.high


def test_the_interval_covers_the_truth_about_as_often_as_it_says():
    truth = 100 * scipy_expit(0.9 * scipy_logit(0.6) - 0.6)
    hits = 0
    for seed in range(100):
        found = effective_robustness(60.0, truth, noisy(25, seed), resamples=300)
        hits += found.low <= 0 <= found.high
    assert 85 <= hits <= 99


def test_extrapolation_is_flagged_with_the_fitted_range():
    baselines = planted()
    for standard, outside in ((20.0, False), (90.0, False), (19.9, True), (90.1, True)):
        assert effective_robustness(standard, 30.0, baselines).extrapolated is outside
    found = effective_robustness(95.0, 30.0, baselines)
    assert "extrapolated, fitted 20.0 to 90.0 %" in found.text()
    assert implied_standard(5.0, baselines).extrapolated
    assert "fitted" not in implied_standard(40.0, baselines).text()


def test_published_lines_give_the_numbers_of_the_errata():
    """E003-18: about 7.9 % from 6.17 % on ImageNetV2; about 92 %, and 0.22 % at 20 %, on ImageNet-A."""
    second, hard = PUBLISHED_FITS["imagenet_v2"], PUBLISHED_FITS["imagenet_a"]
    assert second.predict(76.13) == pytest.approx(64.0, abs=0.1)  # ResNet-50
    assert implied_standard(6.17, second).value == pytest.approx(7.9, abs=0.05)
    assert implied_standard(6.17, second).extrapolated
    assert implied_standard(4.55, hard).value == pytest.approx(92.0, abs=0.05)
    assert hard.predict(20.0) == pytest.approx(0.22, abs=0.01)
    assert math.isnan(effective_robustness(63.32, 55.92, second).low)


def test_a_knee_has_two_sides_and_a_gap():
    below, above = LogitFit(1.0, -1.0, 30, 59, 5), LogitFit(2.0, 0.0, 62, 90, 5)
    fit = KneeFit(60.0, below, above)
    assert fit.predict(50.0) == below.predict(50.0)
    assert fit.predict(60.0) == above.predict(60.0)
    assert fit.invert(below.predict(45.0)) == pytest.approx(45.0)
    assert fit.invert(above.predict(80.0)) == pytest.approx(80.0)
    gap = (below.predict(60.0) + above.predict(60.0)) / 2
    assert fit.invert(gap) == 60.0
    assert fit.covers(40.0) and fit.covers(70.0) and not fit.covers(60.0) and not fit.covers(95.0)
    assert "30.0 to 59.0 and 62.0 to 90.0" in effective_robustness(95, 50, fit).text()


def test_the_published_table_holds_the_ranges_and_gives_about_the_same_line():
    table = read_json(RESULTS_FOLDER / "published_robustness.json")["imagenet models"]
    rows = np.array(table["rows"], dtype=object)
    standard, second, subset, hard = rows[:, 1:].astype(float).T
    fit = logit_fit(standard, second)
    quoted = PUBLISHED_FITS["imagenet_v2"]
    assert (round(fit.low, 1), round(fit.high, 1), fit.n) == (quoted.low, quoted.high, quoted.n)
    for accuracy in (57, 70, 83):
        assert fit.predict(accuracy) == pytest.approx(quoted.predict(accuracy), abs=1.0)
    knee = PUBLISHED_FITS["imagenet_a"]
    for side, part in ((knee.below, subset < knee.knee), (knee.above, subset > knee.knee)):
        fit = logit_fit(subset[part], hard[part])
        assert (round(fit.low, 1), round(fit.high, 1), fit.n) == (side.low, side.high, side.n)


@pytest.mark.parametrize(
    ("baselines", "message"),
    [
        ([(50.0, 40.0)], "a line has 2 parameters; 1 baseline"),
        ([], "0 baseline"),
        ([(50.0, 40.0), (50.0, 45.0)], "all baselines have the standard accuracy 50"),
        ([(50.0, 40.0), (100.0, 45.0)], "standard accuracy of baseline 1 is 100.0"),
        ([(50.0, 0.0), (60.0, 45.0)], "shifted accuracy of baseline 0 is 0.0"),
        ([(50.0, 40.0), (60.0, math.nan)], "shifted accuracy of baseline 1 is nan"),
        ([(50.0, 40.0), (60.0,)], r"baseline 1 has 1 numbers; each needs \(standard, shifted\)"),
        ([(0.5, 0.4), (0.6, 0.5)], "look like shares"),
        ([(0.0, 0.4), (1.0, 0.5)], "strictly between 0 and 100"),
    ],
)
def test_baselines_that_fix_no_line_are_refused(baselines, message):
    for call in (effective_robustness, lambda _, shifted, b: implied_standard(shifted, b)):
        with pytest.raises(ValueError, match=message):
            call(55.0, 40.0, baselines)


@pytest.mark.parametrize("bad", [0.0, 100.0, -1.0, 101.0, math.nan, math.inf])
def test_accuracies_without_a_logit_are_refused(bad):
    with pytest.raises(ValueError, match="strictly between 0 and 100"):
        effective_robustness(bad, 40.0, planted())
    with pytest.raises(ValueError, match="strictly between 0 and 100"):
        effective_robustness(40.0, bad, planted())
    with pytest.raises(ValueError, match="strictly between 0 and 100"):
        implied_standard(bad, planted())


def test_other_bad_input_is_refused():
    with pytest.raises(ValueError, match="3 standard and 2 shifted"):
        logit_fit([20, 30, 40], [10, 20])
    with pytest.raises(ValueError, match="level"):
        effective_robustness(50, 40, planted(), level=1.0)
    with pytest.raises(ValueError, match="at floor"):
        implied_standard(40.0, planted(slope=-0.2))
    for accuracy, n in ((101.0, 10), (50.0, 0), (math.nan, 10)):
        with pytest.raises(ValueError, match="must lie in"):
            away_from_ends(accuracy, n)


def test_a_line_that_may_not_rise_implies_anything():
    numbers = np.random.default_rng(0)
    flat = np.stack([np.linspace(20, 80, 8), 10 + numbers.uniform(0, 0.5, 8)], axis=1)
    flat[-1, 1] += 0.3
    found = implied_standard(10.4, flat)
    assert found.low < 5 and found.high > 95


def test_half_an_item_off_the_ends():
    assert away_from_ends(0.0, 200) == 0.25
    assert away_from_ends(100.0, 200) == 99.75
    assert away_from_ends(42.0, 200) == 42.0


def test_subset_accuracy_by_hand():
    scores = torch.tensor(
        [[3.0, 2.0, 1.0, 0.0], [0.0, 1.0, 3.0, 9.0], [2.0, 2.0, 0.0, 1.0], [0.0, 1.0, 2.0, 0.0]]
    )
    label = torch.tensor([0, 2, 0, 3])
    found = subset_accuracy(scores, label, [0, 1, 2])
    # Row 1's best score is of a class outside; row 2 is a tie; row 3 shows a class outside.
    assert (found["n"], found["classes"]) == (3, 3)
    assert found["accuracy"] == pytest.approx(200 / 3)
    assert found["chance"] == pytest.approx(100 / 3)
    assert found["majority"] == pytest.approx(200 / 3)
    assert found["low"] < found["accuracy"] < found["high"]
    whole = subset_accuracy(scores, label, range(4))
    assert whole["accuracy"] == 25.0
    other = subset_accuracy(scores, label, [2, 0, 1])  # the order of classes does not matter
    assert other["accuracy"] == found["accuracy"]


def test_grouped_items_widen_the_interval():
    label = torch.arange(200) % 2
    right = (torch.arange(200) // 20) % 2 == 0  # ten groups that succeed or fail together
    scores = torch.nn.functional.one_hot(torch.where(right, label, 1 - label), 2).float()
    alone = subset_accuracy(scores, label, [0, 1])
    grouped = subset_accuracy(scores, label, [0, 1], torch.arange(200) // 20)
    assert grouped["accuracy"] == alone["accuracy"] == 50.0
    assert grouped["high"] - grouped["low"] > 2 * (alone["high"] - alone["low"])


def test_subset_accuracy_refuses_bad_input():
    scores, label = torch.eye(3), torch.arange(3)
    for bad, match in (
        ((scores, label[:2], [0, 1]), "do not fit"),
        ((scores, label + 1, [0, 1]), "labels must lie in"),
        ((scores, label - 1, [0, 1]), "labels must lie in"),
        ((scores * torch.nan, label, [0, 1]), "NaN"),
        ((scores, label, [0]), "two or more"),
        ((scores, label, [0, 0]), "distinct"),
        ((scores, label, [0, 3]), "3"),
        ((scores, torch.zeros(3, dtype=torch.int64), [1, 2]), "no picture"),
    ):
        with pytest.raises(ValueError, match=match):
            subset_accuracy(*bad)


def test_a_recipe_is_plain_and_of_the_size_that_it_says(monkeypatch):
    monkeypatch.delenv("MMKD_SCALE", raising=False)
    for settings in (*standard_baselines.BASELINES.values(), standard_baselines.HELD_OUT):
        config = standard_baselines.recipe(settings)
        assert (config.options.augmented, config.options.single) == (0.0, 1.0)
        assert config.train.steps == settings["train.steps"]
        if "image.width" in settings:
            assert config.options.backbone == "tower"
            assert config.image.width == settings["image.width"]
    assert standard_baselines.HELD_OUT not in standard_baselines.BASELINES.values()
    tiny = standard_baselines.recipe(standard_baselines.HELD_OUT, "tiny")
    assert tiny.train.steps == 8


def test_a_classifier_is_scored_on_the_same_classes_everywhere(monkeypatch):
    """One that knows nothing but the commonest class has the majority's accuracy on every set."""
    monkeypatch.setenv("MMKD_SCALE", "tiny")
    config = standard_baselines.recipe({}, "tiny")
    count = standard_baselines.test_sets(config)["composition"].labels["fine"]
    from mmkd_lite.data.emoji import labels, scene_concepts, subgroups

    occur = np.unique(labels("fine")[list(scene_concepts(config.data.concepts))])
    common = int(occur[int(torch.bincount(count).argmax())])
    unseen = next(c for c in range(len(subgroups())) if c not in occur)

    def classify(images):
        logits = torch.zeros(len(images), len(subgroups()))
        logits[:, common], logits[:, unseen] = 5.0, 9.0  # the unseen class must not count
        return logits

    scores = standard_baselines.score_classifier(classify, config)
    assert len(scores) == 8
    for name in standard_baselines.SETS:
        fine = scores[f"{name}_fine"]
        assert fine["accuracy"] == fine["majority"]
        assert fine["classes"] == len(occur)
        assert scores[f"{name}_coarse"]["classes"] == 9


def test_the_committed_baselines_are_whole():
    found = standard_baselines.read_baselines()
    assert list(found["baselines"]) == list(standard_baselines.BASELINES)
    assert set(found["teachers"]) == {
        "cnn",
        "vit",
        "clip zero-shot",
        "clip probe",
        "clip retrieval",
    }
    for level in ("fine", "coarse"):
        for shifted in ("near", "openmoji", "noto"):
            table = standard_baselines.pairs(found["baselines"], shifted, level)
            logit_fit(*np.array(list(table.values())).T)
    everyone = [entry["scores"] for entry in found["baselines"].values()]
    everyone += [found["teachers"][name] for name in ("cnn", "vit", "clip zero-shot", "clip probe")]
    for scores in everyone:
        assert len(scores) == 8
        for row in scores.values():
            assert row["low"] <= row["accuracy"] <= row["high"]
            assert row["n"] == 1000 and row["chance"] < row["majority"]
    with pytest.raises(FileNotFoundError, match="python -m mmkd_lite baselines"):
        standard_baselines.read_baselines(repository_root() / "tests")
