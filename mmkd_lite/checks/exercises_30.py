"""Checkers of notebook 30: impossible cells, ties, and what wrong ids do to a cut-off."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

from mmkd_lite.checks import expect
from mmkd_lite.evaluate import attainable
from mmkd_lite.storage import read_json

TABLE = Path(__file__).parents[2] / "data" / "results" / "published_retrieval.json"


def published() -> dict[str, Any]:
    """Return seed 002's Table 1 as printed: columns, rows, and the queries behind each column."""
    return dict(read_json(TABLE))


def impossible_cells() -> set[tuple[str, str]]:
    """Return the (row, column) names of the cells that no whole number of hits can give."""
    table = published()
    return {
        (name, column)
        for name, row in table["rows"].items()
        for column, cell in zip(table["columns"], row, strict=True)
        if not attainable(cell, table["queries"][column.split(" R@")[0]])
    }


def exercise_1(answer: Collection[tuple[str, str]]) -> None:
    """Check the set of impossible cells, each a pair of row and column name."""
    cells, right = {tuple(cell) for cell in answer}, impossible_cells()
    wrong = sorted(cells - right)
    expect(not wrong, f"{wrong[:1]} is possible; mind the number of queries of its column")
    coco = [cell for cell in cells if cell[1].startswith("coco")]
    expect(not coco, "COCO's 25,010 captions make steps of 0.004: two decimals prove nothing")
    expect(cells == right, f"{len(right)} cells are impossible, you found {len(cells)}")


def exercise_2(answer: Callable[[Sequence[float], Collection[int]], tuple[int, int]]) -> None:
    """Check a function that gives the best and the worst rank of the first right answer."""
    cases = [
        (([0.9, 0.5, 0.1], {0}), (1, 1), "no tie: both are the plain rank"),
        (([0.5, 0.5, 0.5, 0.5], {2}), (1, 4), "all equal: first at best, last at worst"),
        (([0.5, 0.5, 0.5, 0.5], {2, 3}), (1, 3), "a tie between two right answers costs nothing"),
        (([0.9, 0.7, 0.7, 0.1], {3, 2}), (2, 3), "only the best right answer counts"),
        (([0.2, 0.9, 0.2, 0.9, 0.2], {0, 4}), (3, 4), "strictly better ones are always before"),
    ]
    for (scores, own), ranks, hint in cases:
        found = tuple(answer(scores, own))
        expect(
            found == ranks, f"{hint}: {scores} with own {sorted(own)} gives {ranks}, not {found}"
        )


def exercise_3(answer: Callable[[int, int], int]) -> None:
    """Check the cut-off with wrong ids that shows the true R@k, for m captions an image."""
    expect(answer(1, 5) == 5, "k = 1, m = 5 is the notebook's own case")
    expect(answer(1, 1) == 1, "with one caption an image the bug changes nothing")
    expect(answer(2, 5) == 10, "the second-best picture has five copies too")
    for k in (1, 3, 10):
        for m in (2, 4, 7):
            expect(answer(k, m) == k * m, f"count the copies at ranks 1 to {k} for m = {m}")
