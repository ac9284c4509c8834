"""The retention table against Table 5.1, a bootstrap, and hand-made edges."""

from __future__ import annotations

import math

import numpy as np
import pytest

from mmkd_lite.evaluate import recall_interval
from mmkd_lite.retention import (
    FLOOR,
    ratio_interval,
    retention_rows,
    retention_table,
    size_rows,
)


def row(value, low, high, task="zero-shot fine twemoji", chance=10.0, n=200, metric="accuracy"):
    return {
        "task": task, "metric": metric, "value": value, "low": low, "high": high,
        "chance": chance, "n": n, "majority": 12.0, "protocol": "p",
    }  # fmt: skip


def test_retention_of_table_5_1_and_its_correction_by_hand():
    # CIFAR-10, CIFAR-100 and STL-10 of seed 003, Table 5.1, with chance 10, 1 and 10.
    printed = {
        "a": (89.83, 76.78, 10, 85.47),
        "b": (65.08, 29.35, 1, 45.1),
        "c": (97.13, 84.3, 10, 86.79),
    }
    teacher = [row(t, t - 1, t + 1, f"zero-shot {k}", c) for k, (t, _, c, _) in printed.items()]
    student = [row(s, s - 1, s + 1, f"zero-shot {k}", c) for k, (_, s, c, _) in printed.items()]
    rows = retention_rows(teacher, student)
    for found, (t, s, c, retained) in zip(rows[:3], printed.values(), strict=True):
        assert found["retention"] == pytest.approx(retained, abs=0.006)
        assert found["corrected"] == pytest.approx(100 * (s - c) / (t - c))
        assert found["low"] < found["retention"] < found["high"]
        assert found["corrected low"] < found["corrected"] < found["corrected high"]
    assert rows[3]["task"] == "average zero-shot" and rows[3]["metric"] == "3 of 3 rows"
    assert rows[3]["retention"] == pytest.approx(np.mean([r["retention"] for r in rows[:3]]))


def test_the_interval_of_a_ratio_agrees_with_a_bootstrap_of_independent_answers():
    generator = np.random.default_rng(0)
    n, p_student, p_teacher = 400, 0.35, 0.6
    student, teacher = (generator.random(n) < p for p in (p_student, p_teacher))
    ends = [recall_interval(2 - hits.astype(int), 1) for hits in (student, teacher)]
    s, t = 100 * student.mean(), 100 * teacher.mean()
    low, high = ratio_interval(s, ends[0], t, ends[1])
    drawn = [generator.binomial(n, p, 20_000) for p in (student.mean(), teacher.mean())]
    wanted = np.quantile(drawn[0] / drawn[1], [0.025, 0.975])
    assert low == pytest.approx(wanted[0], abs=0.015)
    assert high == pytest.approx(wanted[1], abs=0.015)


def test_the_interval_of_a_ratio_covers_the_truth():
    generator, hits, trials = np.random.default_rng(1), 0, 400
    for _ in range(trials):
        values, ends = [], []
        for p in (0.2, 0.5):
            right = generator.random(150) < p
            values.append(100 * right.mean())
            ends.append(recall_interval(2 - right.astype(int), 1))
        low, high = ratio_interval(values[0], ends[0], values[1], ends[1])
        hits += low <= 0.4 <= high
    assert 0.92 <= hits / trials <= 0.99


def test_a_student_of_zero_and_a_teacher_near_zero():
    low, high = ratio_interval(0.0, (0.0, 2.0), 50.0, (45.0, 55.0))
    assert low == 0.0 and 0.03 < high < 0.05
    assert ratio_interval(1.0, (0.5, 2.0), 1.0, (0.0, 3.0)) == (-math.inf, math.inf)
    with pytest.raises(ValueError, match="needs a teacher above 0"):
        ratio_interval(1.0, (0.0, 2.0), 0.0, (0.0, 1.0))


def test_a_teacher_at_chance_has_nothing_to_retain():
    rows = retention_rows([row(12.0, 8.0, 16.0)], [row(11.0, 8.0, 15.0)])
    assert rows[0]["remark"] == FLOOR and "corrected" not in rows[0]
    assert rows[0]["retention"] == pytest.approx(100 * 11 / 12)
    assert len(rows) == 1, "no average over rows at floor"
    zero = retention_rows([row(0.0, 0.0, 2.0)], [row(5.0, 3.0, 7.0)])
    assert "retention" not in zero[0]
    assert FLOOR in retention_table(zero)


def test_a_teacher_at_the_majority_class_has_nothing_to_retain_either():
    lazy = {**row(30.0, 25.0, 35.0), "majority": 25.5}
    found = retention_rows([lazy], [row(28.0, 24.0, 33.0)])
    assert found[0]["remark"] == FLOOR and "corrected" not in found[0]
    better = retention_rows([{**lazy, "low": 25.6}], [row(28.0, 24.0, 33.0)])
    assert "remark" not in better[0] and better[0]["corrected"] > 0


def test_other_data_and_no_common_task_are_refused():
    with pytest.raises(ValueError, match="scored on different data"):
        retention_rows([row(50.0, 45.0, 55.0, n=100)], [row(40.0, 35.0, 45.0, n=200)])
    with pytest.raises(ValueError, match="no task in common"):
        retention_rows([row(50.0, 45.0, 55.0, "a")], [row(40.0, 35.0, 45.0, "b")])


def test_sizes_of_table_4_5():
    rows = size_rows(
        {"parameters": 151.3e6, "flops": 14.8e9}, {"parameters": 66.1e6, "flops": 12.2e9}
    )
    assert [round(r["retention"], 2) for r in rows] == [43.69, 82.43]
