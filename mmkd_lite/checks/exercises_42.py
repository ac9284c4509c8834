"""Checkers of notebook 42, demo and model card."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from mmkd_lite.checks import close, expect


def exercise_1(lead: Callable[[Tensor, float], Tensor]) -> None:
    """`lead(scores, scale)` is by how much the best class's cosine leads every class (C,)."""
    generator = torch.Generator().manual_seed(0)
    for scale in (10.0, 100.0):
        cosine = (0.2 * torch.rand(5, generator=generator)).double()
        answer = lead((scale * cosine).softmax(dim=0), scale)
        close(
            answer, cosine.max() - cosine, 1e-4, "the lead: log of a ratio of bars over the scale"
        )


def exercise_2(corrected: Callable[[float, float, float], float | None]) -> None:
    """`corrected(student, teacher, chance)` is retention above chance in per cent, None at floor."""
    for student, teacher, chance in ((50.0, 100.0, 50.0), (30.0, 80.0, 10.0), (5.0, 60.0, 10.0)):
        answer: Any = corrected(student, teacher, chance)
        expect(answer is not None, "this teacher is above chance: there is something to retain")
        wanted = 100 * (student - chance) / (teacher - chance)
        close(answer, wanted, what=f"student {student}, teacher {teacher}, chance {chance}")
    for teacher in (10.0, 8.0):
        hint = f"a teacher of {teacher} at chance 10 has nothing to retain: return None"
        expect(corrected(12.0, teacher, 10.0) is None, hint)


def exercise_3(honest_scale: Callable[[Tensor, Tensor], float]) -> None:
    """`honest_scale(cosines, label)` makes the mean largest bar equal the share of right answers."""
    generator = torch.Generator().manual_seed(1)
    for noise in (0.1, 0.3):
        label = torch.arange(600) % 6
        cosines = noise * torch.randn(600, 6, generator=generator).double()
        cosines[torch.arange(600), label] += 0.15
        right = (cosines.argmax(dim=1) == label).double().mean()
        bars = (float(honest_scale(cosines, label)) * cosines).softmax(dim=1).amax(dim=1).mean()
        expect(
            abs(float(bars - right)) < 2e-3,
            f"at this scale the largest bar is {bars:.1%} on average, right are {right:.1%}",
        )
