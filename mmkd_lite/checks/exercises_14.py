"""Checkers of notebook 14, stagewise unimodal distillation."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from mmkd_lite.checks import close, expect, same
from mmkd_lite.config import resolve
from mmkd_lite.methods import build
from mmkd_lite.optimizer import learning_rate


def exercise_1(optimum: Callable[[float], tuple[float, float]]) -> None:
    """`optimum(weight)` is where (w - 2)^2 + weight * [(w - m)^2 + (m - 1)^2] is smallest."""
    for weight in (0.5, 1.0, 6.0):
        w, m = (float(value) for value in optimum(weight))
        hint = f"weight {weight:g}: both slopes must be 0 there"
        close(2 * (m - w) + 2 * (m - 1), 0.0, atol=1e-6, what=f"{hint}, the one along m")
        close(2 * (w - 2) + 2 * weight * (w - m), 0.0, atol=1e-6, what=f"{hint}, the one along w")


def exercise_2(tower_rate: Callable[[int, int, float, float, float], float]) -> None:
    """`tower_rate(step, steps, peak, share, rate)` is the towers' learning rate at a step, from 0 on."""
    for steps, share, rate in ((40, 0.5, 0.1), (40, 0.25, 0.0), (30, 0.9, 1.0)):
        first = math.ceil(share * steps)
        for step in range(steps):
            expected = learning_rate(step, steps, 0.02) * (rate if step >= first else 1.0)
            stage = 2 if step >= first else 1
            close(
                tower_rate(step, steps, 0.02, share, rate),
                expected,
                what=f"step {step} of {steps}, in stage {stage}: one warm-up and one cosine for both stages",
            )


State = Mapping[str, Tensor]


def exercise_3(assemble: Callable[[State, State, State], State]) -> None:
    """`assemble(image, text, fresh)` is the state with which stage 2 begins, from two unimodal students'."""
    start = {"options.start": "random"}
    teachers = {"image": "random-vit", "text": "random-text"}
    students: dict[str, Any] = {
        side: build(resolve(f"unimodal_{side}", "tiny", {"teacher": name, **start}, seed=1))
        for side, name in teachers.items()
    }
    settings = {"teacher": teachers["image"], "options.text_teacher": teachers["text"]}
    method: Any = build(resolve("stagewise", "tiny", settings))
    fresh = {name: value.clone() for name, value in method.state_dict().items()}
    state = assemble(students["image"].state_dict(), students["text"].state_dict(), fresh)
    same(
        sorted(state), sorted(fresh), what="the names: those of the new model, no more and no less"
    )
    method.load_state_dict(dict(state))
    for side, student in students.items():
        tower = getattr(method.space, f"{side}_encoder").state_dict()
        for name, value in student.encoder.state_dict().items():
            hint = f"{side} tower, {name}: 'encoder.' becomes 'space.{side}_encoder.'"
            expect(torch.equal(tower[name], value), hint)
    rest = [name for name in fresh if "_encoder." not in name]
    kept = all(torch.equal(state[name], fresh[name]) for name in rest)
    expect(kept, "shared layers and scale start fresh: no student has them")
