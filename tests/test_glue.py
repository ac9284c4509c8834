"""GLUE's metrics against scikit-learn and scipy, by hand, and where they are not defined."""

import math

import numpy as np
import pytest
from scipy import stats
from sklearn import metrics as sk

from mmkd_lite.evaluate import glue


def labellings(classes, count=200):
    """Several pairs of predictions and targets, some hardly related, some equal."""
    rng = np.random.default_rng(classes)
    for agree in (0.0, 0.3, 0.9, 1.0):
        truth = rng.choice(classes, count, p=rng.dirichlet(np.ones(classes)))
        guess = np.where(rng.random(count) < agree, truth, rng.integers(0, classes, count))
        yield guess, truth


@pytest.mark.parametrize("classes", [2, 3, 5])
def test_class_metrics_are_those_of_scikit_learn(classes):
    for guess, truth in labellings(classes):
        assert glue.accuracy(guess, truth) == pytest.approx(100 * sk.accuracy_score(truth, guess))
        expected = 100 * sk.matthews_corrcoef(truth, guess)
        assert glue.matthews(guess, truth) == pytest.approx(expected, abs=1e-9)
        for positive in range(classes):
            wanted = 100 * sk.f1_score(truth == positive, guess == positive, zero_division=0)
            assert glue.f1(guess, truth, positive) == pytest.approx(wanted)


@pytest.mark.parametrize("levels", [2, 5, 10_000])
def test_correlations_are_those_of_scipy_ties_included(levels):
    rng = np.random.default_rng(levels)
    for noise in (0.1, 3.0):
        truth = rng.integers(0, levels, 300) / 7
        guess = np.round(truth + noise * rng.normal(size=300), 1)
        assert glue.pearson(guess, truth) == pytest.approx(100 * stats.pearsonr(guess, truth)[0])
        assert glue.spearman(guess, truth) == pytest.approx(100 * stats.spearmanr(guess, truth)[0])
        assert np.array_equal(glue.mean_ranks(guess), stats.rankdata(guess))


def test_by_hand():
    guess, truth = [1, 1, 0, 0, 1], [1, 0, 0, 1, 1]  # TP 2, FP 1, FN 1, TN 1
    assert glue.accuracy(guess, truth) == pytest.approx(60)
    assert glue.f1(guess, truth) == pytest.approx(100 * 4 / 6)
    assert glue.matthews(guess, truth) == pytest.approx(
        100 * (2 * 1 - 1 * 1) / math.sqrt(3 * 3 * 2 * 2)
    )
    assert glue.mean_ranks([5, 1, 5, 2]).tolist() == [3.5, 1, 3.5, 2]
    assert glue.spearman([1, 2, 3], [10, 20, 15]) == pytest.approx(50)


def test_correlations_ignore_scale_and_shift_however_small():
    rng = np.random.default_rng(0)
    truth = rng.random(50)
    for scale in (1e-200, 1e-9, 1e6):
        assert glue.pearson(scale * truth, truth) == pytest.approx(100)
    assert glue.spearman(np.exp(9 * truth), truth) == pytest.approx(100)
    assert glue.pearson(-truth, truth) == pytest.approx(-100)


def test_constant_predictions_have_a_stated_value():
    truth = np.array([0, 1, 1, 0, 1])
    for guess in (np.zeros(5, int), np.ones(5, int)):
        assert glue.matthews(guess, truth) == 0
    assert glue.f1(np.zeros(5, int), truth) == 0
    assert glue.f1(np.ones(5, int), truth) == pytest.approx(75)
    assert glue.f1(np.zeros(5, int), np.zeros(5, int)) == 0
    assert glue.matthews(np.zeros(5, int), np.zeros(5, int)) == 0
    for metric in ("pearson", "spearman"):
        assert glue.score(metric, np.full(5, 0.3), truth) == 0
        with pytest.raises(ValueError, match="no correlation with a constant"):
            glue.score(metric, truth, np.full(5, 0.3))


@pytest.mark.parametrize("metric", glue.METRICS)
def test_what_cannot_be_scored_is_refused(metric):
    for guess, truth in (([], []), ([1, 0], [1]), ([[1, 0]], [[1, 0]])):
        with pytest.raises(ValueError, match="two \\(N,\\) rows"):
            glue.score(metric, np.array(guess, int), np.array(truth, int))
    bad = np.array([0.0, math.nan, 1.0])
    with pytest.raises(ValueError, match=r"class ids|nan at place 1"):
        glue.score(metric, bad, np.array([0, 1, 1]))


def test_unknown_metric_and_negative_labels_are_refused():
    with pytest.raises(ValueError, match="accuracy, f1, matthews"):
        glue.score("bleu", [1], [1])
    with pytest.raises(ValueError, match="class ids"):
        glue.accuracy([-1, 0], [0, 0])


def test_batch_means_differ_from_the_score_of_the_set():
    guess, truth = np.array([1, 1, 0, 0, 1, 0]), np.array([1, 0, 0, 0, 1, 1])
    by_batch = [glue.f1(guess[i : i + 2], truth[i : i + 2]) for i in (0, 2, 4)]
    assert glue.batch_averaged("f1", guess, truth, 2) == pytest.approx(np.mean(by_batch))
    assert abs(np.mean(by_batch) - glue.f1(guess, truth)) > 5
    # Batches of equal size change nothing for accuracy; a smaller last one does.
    assert glue.batch_averaged("accuracy", guess, truth, 3) == glue.accuracy(guess, truth)
    assert glue.batch_averaged("accuracy", guess, truth, 4) == pytest.approx((75 + 50) / 2)
    assert glue.batch_averaged("f1", guess, truth, 6) == glue.f1(guess, truth)


def test_the_published_rte_score_is_a_batch_mean():
    truth = np.zeros(277, int)  # ET-03: 186 of 277 right, printed as 67.64
    for wrong in range(6):
        guess = np.zeros(277, int)
        guess[272 : 272 + wrong] = 1
        guess[: 91 - wrong] = 1
        assert glue.accuracy(guess, truth) == pytest.approx(67.15, abs=0.005)
        found = round(glue.batch_averaged("accuracy", guess, truth, 16), 2)
        assert (found == 67.64) == (wrong == 1)


def test_batch_means_name_the_batch_that_has_no_score():
    truth = np.array([0.0, 1.0, 2.0, 2.0, 3.0])
    with pytest.raises(ValueError, match="batch 1: all 2 targets"):
        glue.batch_averaged("spearman", truth, truth, 2)
    with pytest.raises(ValueError, match="at least 1"):
        glue.batch_averaged("spearman", truth, truth, 0)


@pytest.mark.parametrize("share", [0.1, 0.5, 0.8])
@pytest.mark.parametrize("metric", glue.METRICS)
def test_guess_levels_are_what_guessing_scores(metric, share):
    rng = np.random.default_rng(0)
    truth = (rng.random(100_000) < share).astype(int)
    chance, majority = glue.guess_levels(metric, truth, 2)
    assert chance == pytest.approx(glue.score(metric, rng.integers(0, 2, len(truth)), truth), abs=1)
    always = np.full(len(truth), int(share > 0.5 or truth.mean() > 0.5))
    assert majority == pytest.approx(glue.score(metric, always, truth))


@pytest.mark.parametrize("metric", glue.METRICS)
def test_intervals_hold_the_value_and_shrink_with_more_examples(metric):
    rng = np.random.default_rng(1)
    widths = []
    for count in (100, 1600):
        truth = rng.integers(0, 2, count)
        guess = np.where(rng.random(count) < 0.8, truth, 1 - truth)
        low, high = glue.metric_interval(metric, guess, truth, resamples=300)
        assert low < glue.score(metric, guess, truth) < high
        widths.append(high - low)
    assert 2.5 < widths[0] / widths[1] < 6


def test_intervals_cover_about_as_often_as_they_say():
    rng = np.random.default_rng(2)
    covered = 0
    for _ in range(100):
        truth = rng.normal(size=60)
        guess = truth + rng.normal(size=60)  # true correlation sqrt(1/2)
        low, high = glue.metric_interval("pearson", guess, truth, resamples=200)
        covered += low <= 100 / math.sqrt(2) <= high
    assert 85 <= covered <= 100


def test_an_interval_needs_targets_that_differ():
    with pytest.raises(ValueError, match="no correlation with a constant"):
        glue.metric_interval("pearson", [1.0, 2.0], [3.0, 3.0])
    with pytest.raises(ValueError, match="too small"):
        glue.metric_interval("f1", [1], [1])
