"""Checkers of notebook 00: the published table, recomputed; what a rounded percentage can be."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from mmkd_lite.checks import expect
from mmkd_lite.storage import read_json

TABLE = Path(__file__).parents[2] / "data" / "results" / "published_distillclip.json"


def published() -> dict[str, Any]:
    """Return seed 003's Table 5.1 as printed: accuracies of teacher and student, retention."""
    return dict(read_json(TABLE))


def exercise_1(answer: Mapping[str, float]) -> None:
    """Check the linear-probe rows whose printed retention is wrong.

    Args:
        answer: Data set to its right retention in per cent, for the wrong rows only.
    """
    right = {
        row["dataset"]: 100.0 * row["student"] / row["teacher"]
        for row in published()["rows"]["linear probe"]
    }
    unknown = set(answer) - set(right)
    expect(not unknown, f"no such data set: {', '.join(sorted(unknown))}")
    for name, value in answer.items():
        expect(abs(value - right[name]) < 0.006, f"{name}: divide the student by the teacher")
    wrong = {
        row["dataset"]
        for row in published()["rows"]["linear probe"]
        if abs(row["printed"] - right[row["dataset"]]) > 0.02
    }
    expect(set(answer) >= wrong, f"{len(wrong)} rows are wrong, yours are {len(answer)}")
    expect(set(answer) <= wrong, "a row of yours is printed correctly up to rounding")


def exercise_2(answer: float) -> None:
    """Check the average retention under distribution shift, from the two printed retentions."""
    printed = [row["printed"] for row in published()["rows"]["distribution shift"]]
    expect(abs(answer - 12.28) > 0.006, "this is the printed average; add the two rows yourself")
    expect(abs(answer - sum(printed) / len(printed)) < 0.006, "add the two rows and halve the sum")


def exercise_3(answer: Callable[[float, int], int | None]) -> None:
    """Check a function that finds how many of `count` items a printed percentage stands for.

    Args:
        answer: `hits(percent, count)`: the whole number whose share, rounded to two decimals, is
            `percent`; None if there is none.
    """
    cases = {(50.0, 4): 2, (33.33, 3): 1, (66.67, 3): 2, (64.59, 466): 301, (65.02, 466): 303}
    for (percent, count), hits in cases.items():
        found = answer(percent, count)
        expect(found == hits, f"{percent} % of {count} is {hits} items, yours: {found}")
    for percent, count in ((50.0, 3), (64.6, 466)):
        found = answer(percent, count)
        expect(found is None, f"no whole number of {count} gives {percent} %, yours: {found}")
