"""Results: files, intervals against scipy and simulation, verdicts, tables."""

import json
import math

import numpy as np
import pytest
import torch
from scipy import stats

from mmkd_lite import results


def write(folder, name="toy", **changes):
    record = {
        "configuration": {"method": "toy", "train": {"steps": 3}},
        "metrics": {"recall": np.float32(12.5), "loss": float("nan"), "per": torch.tensor([1, 2])},
        "seed": 4,
        "seconds": 1.23456,
        "command": "python -m mmkd_lite toy",
        "data_checksum": "ab",
        **changes,
    }
    return results.write_result(name, folder=folder, **record)


# ---------------------------------------------------------------- files


def test_a_result_holds_what_made_it(tmp_path):
    path = write(tmp_path, "compare/toy__tiny__seed4")
    assert path == tmp_path / "compare" / "toy__tiny__seed4.json"
    text = path.read_text(encoding="utf-8")
    assert "NaN" not in text and str(tmp_path) not in text
    record = results.read_result("compare/toy__tiny__seed4", tmp_path)
    assert record["metrics"] == {"recall": 12.5, "loss": None, "per": [1, 2]}
    assert record["seed"] == 4 and record["seconds"] == 1.23
    assert record["device"] == "cpu" and record["data_checksum"] == "ab"
    assert {"python", "torch", "numpy"} <= set(record["versions"])
    assert record["configuration_hash"] == results.configuration_hash(record["configuration"])


def test_hash_sees_every_setting_and_no_order():
    first = results.configuration_hash({"a": 1, "b": {"c": 2.0, "d": "x"}})
    assert first == results.configuration_hash({"b": {"d": "x", "c": 2.0}, "a": 1})
    assert first != results.configuration_hash({"a": 1, "b": {"c": 2.0, "d": "y"}})


def test_results_are_read_by_pattern_in_order(tmp_path):
    for name in ("compare/b", "compare/a", "other"):
        write(tmp_path, name)
    assert [r["name"] for r in results.read_results("compare/*", tmp_path)] == [
        "compare/a",
        "compare/b",
    ]
    assert len(results.read_results("*", tmp_path)) == 1
    assert results.read_results("nothing*", tmp_path) == []


def test_missing_and_broken_results_say_so(tmp_path):
    write(tmp_path, "toy")
    with pytest.raises(FileNotFoundError, match="no result 'other'; results beside it: toy"):
        results.read_result("other", tmp_path)
    (tmp_path / "half.json").write_text('{"metrics": {')
    with pytest.raises(ValueError, match=r"half\.json"):
        results.read_result("half", tmp_path)
    (tmp_path / "list.json").write_text('{"metrics": {}}')
    with pytest.raises(ValueError, match="lacks metrics or configuration"):
        results.read_result("list", tmp_path)
    for name in ("", "../x", "/x", "a b", "shre:kl"):
        with pytest.raises(ValueError, match="result name"):
            write(tmp_path, name)


def test_notebook_metrics_go_nowhere_without_a_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert results.write_metrics("", {"x": 1}) is None
    assert results.write_metrics(None, {"x": 1}) is None
    assert list(tmp_path.iterdir()) == []
    results.write_metrics(tmp_path / "run", {"x": np.int64(3), "y": math.inf, "z": "shown"})
    assert results.read_metrics(tmp_path / "run") == {"x": 3, "y": None, "z": "shown"}
    assert results.read_metrics(tmp_path / "absent") == {}


def test_plain_keeps_truth_values_and_numbers_apart():
    got = json.dumps(results.plain({"a": True, "b": np.bool_(False), "c": (1, 2.5), 3: None}))
    assert got == '{"a": true, "b": false, "c": [1, 2.5], "3": null}'


# ---------------------------------------------------------------- statistics


def test_interval_equals_scipy():
    values = [3.0, 4.5, 2.0, 5.5, 4.0]
    got = results.mean_and_interval(values, level=0.9)
    want = stats.ttest_1samp(values, 0).confidence_interval(0.9)
    assert (got.low, got.high) == pytest.approx((want.low, want.high))
    assert got.mean == pytest.approx(3.8) and got.sd == pytest.approx(np.std(values, ddof=1))
    assert got.n == 5 and results.mean_and_interval(values).low < got.low


def test_interval_of_one_run_and_of_none():
    single = results.mean_and_interval([7.25])
    assert single.mean == 7.25 and math.isnan(single.low) and single.text() == "7.2 (1 run)"
    assert results.mean_and_interval([1.0, 1.0]).text(2) == "1.00 [1.00, 1.00]"
    for values in ([], [1.0, math.nan]):
        with pytest.raises(ValueError, match="finite numbers"):
            results.mean_and_interval(values)


def test_paired_difference_equals_scipy_and_sees_more():
    seeds = np.array([10.0, 20.0, 30.0, 40.0, 50.0])
    a, b = seeds + np.array([1.0, 1.2, 0.9, 1.1, 1.3]), seeds
    got = results.paired_difference(a.tolist(), b.tolist())
    want = stats.ttest_rel(a, b).confidence_interval(0.95)
    assert (got.low, got.high) == pytest.approx((want.low, want.high))
    assert got.verdict == "higher"
    assert results.paired_difference(b.tolist(), a.tolist()).verdict == "lower"
    assert results.paired_difference([1.0, 2.0], [2.0, 1.0]).verdict == "no difference detectable"
    assert results.paired_difference([5.0], [1.0]).verdict == "no difference detectable"


def test_paired_difference_pairs_by_seed():
    got = results.paired_difference({0: 5.0, 2: 7.0, 3: 1.0}, {2: 6.0, 0: 4.5, 9: 0.0})
    assert got.n == 2 and got.mean == pytest.approx(0.75)
    for a, b in (([1.0], [1.0, 2.0]), ({0: 1.0}, {1: 1.0})):
        with pytest.raises(ValueError, match="same seeds"):
            results.paired_difference(a, b)


def test_smallest_detectable_effect_by_simulation():
    n, sd = 5, 2.0
    effect = results.smallest_detectable_effect(n, sd)
    rng = np.random.default_rng(0)
    draws = rng.normal(effect, sd, size=(20_000, n))
    noticed = (stats.ttest_1samp(draws, 0, axis=1).pvalue < 0.05) & (draws.mean(axis=1) > 0)
    assert np.mean(noticed) == pytest.approx(0.8, abs=0.01)
    for more, fewer in ((3, 2), (n, 3), (20, n), (1000, 20)):
        smaller = results.smallest_detectable_effect(more, sd)
        assert smaller < results.smallest_detectable_effect(fewer, sd)
    assert results.smallest_detectable_effect(n, 2 * sd) == pytest.approx(2 * effect)
    assert results.smallest_detectable_effect(1, sd) == math.inf


@pytest.mark.parametrize(
    ("low", "high", "sign", "relevant", "want"),
    [
        (0.5, 2.0, 1, 0.0, "shown"),
        (0.5, 2.0, -1, 0.0, "not shown"),
        (-2.0, -0.5, -1, 0.0, "shown"),
        (-2.0, -0.5, 1, 0.0, "not shown"),
        (-0.5, 2.0, 1, 0.0, "unclear at this scale"),
        (-0.5, 0.4, 1, 1.0, "not shown"),
        (-0.5, 0.4, -1, 1.0, "not shown"),
        (-0.5, 1.4, 1, 1.0, "unclear at this scale"),
        (0.1, 0.4, 1, 1.0, "not shown"),
        (math.nan, math.nan, 1, 0.0, "unclear at this scale"),
    ],
)
def test_verdicts(low, high, sign, relevant, want):
    difference = results.PairedDifference((low + high) / 2, low, high, 1.0, 5)
    assert results.verdict(difference, sign, relevant) == want


def test_verdict_refuses_a_sign_that_is_none():
    with pytest.raises(ValueError, match="must be 1 or -1"):
        results.verdict(results.mean_and_interval([1.0, 2.0]), 0)


# ---------------------------------------------------------------- tables


ROWS = [
    {"method": "a|b", "R@1": 12.345, "n": 5},
    {"method": "<c>", "R@1": results.mean_and_interval([1.0, 2.0]), "extra": None},
]


def test_markdown_table():
    assert results.results_table(ROWS).splitlines() == [
        "| method | R@1 | n | extra |",
        "|---|--:|--:|---|",
        "| a\\|b | 12.3 | 5 | – |",
        "| <c> | 1.5 [-4.9, 7.9] | – | – |",
    ]
    assert results.results_table(ROWS, ["n", "method"], decimals=0).startswith("| n | method |")


def test_html_table_escapes():
    got = results.results_table(ROWS, ["method"], kind="html")
    assert "<td>&lt;c&gt;</td>" in got and got.count("<tr>") == 3


def test_table_refuses_unknown_kinds_and_columns():
    with pytest.raises(ValueError, match="valid kinds: markdown, html"):
        results.results_table(ROWS, kind="latex")
    with pytest.raises(ValueError, match="no row has the columns recal"):
        results.results_table(ROWS, ["recal"])


def test_readme_row():
    assert results.readme_row(["30", 1.25, None, "a\nb"], decimals=2) == "| 30 | 1.25 | – | a b |"
