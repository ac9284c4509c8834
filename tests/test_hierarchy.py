"""Random hierarchies of equal size: every permutation counted, loops, ties, and bad input."""

from __future__ import annotations

import math
from itertools import permutations

import pytest
import torch
from torch import Tensor

from mmkd_lite.evaluate import accuracy_by_hierarchy

GROUP_OF = torch.tensor([0, 0, 0, 1, 1, 2])


def example(n: int = 40, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    label = torch.randint(6, (n,), generator=generator)
    scores = torch.randn(n, 6, generator=generator)
    scores[torch.arange(n), label] += 0.8
    return scores, label


def test_the_random_level_is_the_mean_over_every_hierarchy_of_these_sizes():
    scores, label = example()
    best, levels = scores.argmax(1), []
    for order in permutations(range(6)):
        shuffled = GROUP_OF[list(order)]
        levels.append(100 * float((shuffled[best] == shuffled[label]).double().mean()))
    found = accuracy_by_hierarchy(scores, label, GROUP_OF, draws=400)
    assert found["random"] == pytest.approx(sum(levels) / len(levels), abs=1e-9)
    ends = torch.tensor(levels).double().quantile(torch.tensor([0.025, 0.975]).double())
    assert found["random_low"] == pytest.approx(float(ends[0]), abs=3.0)
    assert found["random_high"] == pytest.approx(float(ends[1]), abs=3.0)


def test_levels_by_a_loop():
    scores, label = example(seed=1)
    found = accuracy_by_hierarchy(scores, label, GROUP_OF)
    right = grouped = guess = 0.0
    for row, own in zip(scores.tolist(), label.tolist(), strict=True):
        answer = max(range(6), key=row.__getitem__)
        right += answer == own
        grouped += GROUP_OF[answer] == GROUP_OF[own]
        guess += sum(GROUP_OF[c] == GROUP_OF[own] for c in range(6)) / 6
    assert found["accuracy"] == pytest.approx(100 * right / 40)
    assert found["grouped"] == pytest.approx(float(100 * grouped / 40))
    assert found["chance_grouped"] == pytest.approx(float(100 * guess / 40))
    assert found["hits"].sum() == right and found["grouped_hits"].sum() == grouped
    assert (found["n"], found["classes"], found["groups"]) == (40, 6, 3)


def test_a_model_that_errs_within_groups_only_is_told_from_one_that_errs_anywhere():
    label = torch.arange(6).repeat(20)
    neighbour = torch.tensor([1, 2, 0, 4, 3, 5])  # always within the group
    within = accuracy_by_hierarchy(torch.eye(6)[neighbour[label]], label, GROUP_OF)
    assert within["grouped"] == 100.0 and within["accuracy"] == pytest.approx(100 / 6)
    assert within["random"] == pytest.approx(100 * (1 + 5 * 8 / 30) / 6)
    far = torch.tensor([3, 4, 5, 0, 1, 2])  # never
    apart = accuracy_by_hierarchy(torch.eye(6)[far[label]], label, GROUP_OF)
    assert apart["grouped"] == 0.0 < apart["random"]


def test_equal_scores_are_wrong_on_every_level():
    found = accuracy_by_hierarchy(torch.ones(10, 6), torch.zeros(10, dtype=torch.int64), GROUP_OF)
    assert [found[key] for key in ("accuracy", "grouped", "random", "random_high")] == [0.0] * 4


def test_draws_depend_on_the_seed_only():
    scores, label = example()
    ends = [accuracy_by_hierarchy(scores, label, GROUP_OF, draws=20, seed=s) for s in (0, 0, 1)]
    assert ends[0]["random_low"] == ends[1]["random_low"]
    assert [e["random_low"] for e in ends[:2]] != [ends[2]["random_low"]] * 2 or (
        ends[0]["random_high"] != ends[2]["random_high"]
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"group_of": GROUP_OF[:5]}, "do not fit"),
        ({"label": torch.zeros(3, dtype=torch.int64)}, "do not fit"),
        ({"scores": torch.full((40, 6), math.nan)}, "NaN"),
        ({"label": torch.full((40,), 6)}, r"lie in \[0, 6\)"),
        ({"group_of": torch.zeros(6, dtype=torch.int64)}, "two or more groups"),
        ({"group_of": torch.tensor([0, 0, 0, 2, 2, 2])}, "none empty"),
        ({"group_of": GROUP_OF - 1}, "numbered from 0"),
        ({"draws": 0}, "at least 1"),
    ],
)
def test_bad_input_is_named(changes, message):
    scores, label = example()
    given = {"scores": scores, "label": label, "group_of": GROUP_OF, **changes}
    with pytest.raises(ValueError, match=message):
        accuracy_by_hierarchy(**given)
