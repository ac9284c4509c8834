"""Checkers of notebook 19, DistillCLIP."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from mmkd_lite.checks import close, expect
from mmkd_lite.embeddings import Embeddings
from mmkd_lite.losses import relational_distillation, similarity_map_distillation


def _numbers(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def _unit(raw: Tensor, scale: float = 1.0) -> Embeddings:
    image, text = F.normalize(raw, dim=-1)
    return Embeddings(image, text, scale)


def exercise_1(equation_3_1: Callable[[Tensor, Tensor, Tensor, Tensor], Any]) -> None:
    """`equation_3_1(v_S, w_S, v_T, w_T)` is the corrected eq. 3.1 of vectors of any length."""
    student, teacher = _numbers(2, 5, 3), _numbers(2, 5, 4, seed=1)
    expected = similarity_map_distillation(_unit(student), _unit(teacher), intra_weight=0.0)
    answer = equation_3_1(*student, *teacher)
    longer = equation_3_1(student[0], 3 * student[1], *teacher)
    close(longer, answer, rtol=1e-9, what="texts three times as long: a cosine does not see it")
    close(answer, expected, rtol=1e-9, what="squared Frobenius norm, summed over all entries")
    close(equation_3_1(*teacher, *teacher), 0.0, atol=1e-12, what="a student like its teacher")


def exercise_2(rank_floor: Callable[[Tensor, int], Any]) -> None:
    """`rank_floor(cosines, width)` bounds the map distance of every student of that width from below."""
    teacher = F.normalize(_numbers(12, 6), dim=-1)
    cosines = teacher @ teacher.T
    squares = torch.linalg.svdvals(cosines).square()
    for width in (1, 3, 6):
        close(
            rank_floor(cosines, width),
            squares[width:].sum(),
            atol=1e-9,
            what=f"what rank {width} cannot reach: the squares of the other singular values",
        )
    expect(float(rank_floor(cosines, 6)) < 1e-9, "a map of width 6 has rank 6: nothing is left")
    student = F.normalize(_numbers(12, 3, seed=1), dim=-1)
    distance = (student @ student.T - cosines).square().sum()
    expect(float(rank_floor(cosines, 3)) <= float(distance), "a bound lies below every student")


def exercise_3(crd: Callable[[Tensor, Tensor], Any]) -> None:
    """`crd(student_logits, teacher_logits)` is CLIP-KD's relational loss of two scaled image-text maps."""
    student, teacher = _unit(_numbers(2, 5, 3), 4.0), _unit(_numbers(2, 5, 7, seed=1), 9.0)
    answer = crd(student.logits(), teacher.logits())
    close(
        answer,
        relational_distillation(student, teacher),
        rtol=1e-8,
        what="KL(teacher || student), batchmean, over rows and over columns, averaged",
    )
    close(crd(teacher.logits(), teacher.logits()), 0.0, atol=1e-9, what="student = teacher")
