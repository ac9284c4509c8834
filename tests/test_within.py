"""Retrieval within groups: hand-made cases, ties, chance."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from mmkd_lite.evaluate.within import retrieval_within_groups


def test_a_case_worked_by_hand() -> None:
    image = torch.eye(5)
    text = torch.eye(5)[[1, 0, 2, 3, 4]]  # the first two captions are exchanged, both in group 0
    score = retrieval_within_groups(image, text, np.array([0, 0, 1, 1, 2]))
    assert score["within_pairs"] == 4  # the pair of group 2 has no rival
    assert score["within_i2t_r1"] == score["within_t2i_r1"] == 50.0
    assert score["within_chance"] == 50.0


def test_knowing_only_the_class_scores_nothing_because_ties_count_against_us() -> None:
    classes = np.repeat(np.arange(4), 5)
    vectors = torch.eye(4)[classes]
    score = retrieval_within_groups(vectors, vectors, classes)
    assert score["within_i2t_r1"] == score["within_t2i_r1"] == 0.0
    assert score["within_chance"] == pytest.approx(20.0)


def test_random_vectors_are_at_chance() -> None:
    generator = torch.Generator().manual_seed(0)
    image, text = (F.normalize(torch.randn(3000, 8, generator=generator), dim=1) for _ in range(2))
    score = retrieval_within_groups(image, text, np.arange(3000) % 600)
    assert abs(score["within_i2t_r1"] - 20.0) < 3.0
    assert abs(score["within_t2i_r1"] - 20.0) < 3.0


def test_clear_errors() -> None:
    unit = torch.eye(3)
    with pytest.raises(ValueError, match="no group has two pairs"):
        retrieval_within_groups(unit, unit, np.arange(3))
    with pytest.raises(ValueError, match="row 0 has norm 2"):
        retrieval_within_groups(2 * unit, unit, np.zeros(3))
    with pytest.raises(ValueError, match="need N pairs"):
        retrieval_within_groups(unit, unit[:2], np.zeros(3))
