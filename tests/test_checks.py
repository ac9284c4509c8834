"""The assert helpers fail when they should, with a message that says where."""

import numpy as np
import pytest
import torch

from mmkd_lite.checks import attempt, close, expect, same


def test_same_is_exact_and_names_the_place():
    same(torch.tensor([1.0, float("nan")]), [1.0, float("nan")])
    same("word", "word")
    with pytest.raises(AssertionError, match=r"rows: 1 of 4 values differ, first at \(1, 0\)"):
        same([[1, 2], [3, 4]], [[1, 2], [5, 4]], "rows")
    with pytest.raises(AssertionError, match="1 of 1"):
        same(1.0, 1.0 + 1e-15)


def test_no_comparison_broadcasts():
    for compare in (same, close):
        with pytest.raises(AssertionError, match=r"shape \(2,\) instead of \(1, 2\)"):
            compare(np.ones(2), np.ones((1, 2)))


def test_close_measures_against_the_largest_entry():
    reference = torch.tensor([100.0, 0.0], requires_grad=True)
    close([100.0, 0.0009], reference)
    with pytest.raises(AssertionError, match=r"gradient: off by 0.0011 at \(1,\)"):
        close([100.0, 0.0011], reference, what="gradient")
    close([torch.tensor(1.0), torch.tensor(2.0)], [1.0, 2.0])


def test_close_refuses_what_is_not_finite():
    with pytest.raises(AssertionError, match="the result holds a value that is not finite"):
        close([float("nan")], [1.0])
    with pytest.raises(AssertionError, match="the reference holds"):
        close([1.0], [float("inf")])


def test_close_accepts_bfloat16_and_nothing_at_all():
    close(torch.tensor([1.5], dtype=torch.bfloat16), [1.5])
    close([], [])


def test_expect_gives_its_hint():
    expect(torch.tensor(True), "unused")
    with pytest.raises(AssertionError, match="divide by B"):
        expect(0, "divide by B")


def test_attempt_reports_instead_of_raising(capsys):
    def exercise_1(answer):
        expect(answer == 4, "count the rows")

    for answer in (None, 3, 4):
        attempt(exercise_1, answer)
    assert capsys.readouterr().out.splitlines() == [
        "Exercise 1: waiting for your answer.",
        "Exercise 1: not yet. count the rows",
        "Exercise 1: correct.",
    ]
