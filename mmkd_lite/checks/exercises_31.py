"""Checkers of notebook 31: random hierarchies, means over classes, and bins of equal mass."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from mmkd_lite.checks import close, expect
from mmkd_lite.evaluate import accuracy_by_hierarchy


def exercise_1(expected_random: Callable[[float, Sequence[int]], float]) -> None:
    """`expected_random(accuracy, sizes)` is the mean accuracy, in per cent, over all groupings of these sizes."""
    close(expected_random(100.0, [3, 2, 1]), 100.0, what="what was right stays right")
    hint = "groups of one class forgive nothing"
    close(expected_random(40.0, [1, 1, 1, 1]), 40.0, what=hint)
    generator = torch.Generator().manual_seed(0)
    for sizes in ([2, 2], [5, 3, 2, 1], [10, 1, 1, 1, 1]):
        classes = sum(sizes)
        group_of = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))
        scores = torch.randn(64, classes, generator=generator)
        label = torch.randint(classes, (64,), generator=generator)
        found = accuracy_by_hierarchy(scores, label, group_of, draws=1)
        answer = expected_random(found["accuracy"], sizes)
        expect(
            answer >= found["accuracy"] - 1e-9,
            "fewer classes can only add right answers, on average",
        )
        close(
            answer,
            found["random"],
            what=f"sizes {sizes}: a wrong answer is another class; how often is it in the same group?",
        )


def exercise_2(mean_per_class: Callable[[Tensor, Tensor], float]) -> None:
    """`mean_per_class(predicted, label)` is the mean over classes of each class's accuracy, in per cent."""
    label = torch.tensor([0, 0, 0, 0, 0, 0, 0, 0, 1, 3])
    answer = mean_per_class(torch.zeros(10, dtype=torch.int64), label)
    expect(abs(answer - 80.0) > 1e-6, "that is the plain accuracy: every class counts alike here")
    expect(
        abs(answer - 25.0) > 1e-6, "class 2 has no picture; leave it out instead of scoring it 0"
    )
    close(answer, 100 / 3, what="always naming the commonest of three classes")
    close(mean_per_class(label, label), 100.0, what="all right")
    generator = torch.Generator().manual_seed(1)
    label, predicted = torch.randint(5, (2, 300), generator=generator)
    own = [float((predicted[label == c] == c).double().mean()) for c in range(5)]
    close(mean_per_class(predicted, label), 20 * sum(own), what="five classes")


def exercise_3(equal_mass_error: Callable[[Tensor, Tensor, int], float]) -> None:
    """`equal_mass_error(confidence, correct, bins)` is the ECE, in per cent, with as many answers in every bin."""
    sure = torch.tensor([0.91, 0.95, 0.1, 0.2])
    right = torch.tensor([True, True, False, True])
    both = (abs(0.15 - 0.5) + abs(0.93 - 1.0)) / 2
    close(
        equal_mass_error(sure, right, 2), 100 * both, what="two bins of two, sorted by confidence"
    )
    close(equal_mass_error(sure, right, 1), 100 * abs(0.54 - 0.75), what="one bin")
    generator = torch.Generator().manual_seed(2)
    sure = torch.rand(103, generator=generator).double() ** 0.2
    right = torch.rand(103, generator=generator) < sure
    parts = sure.argsort().tensor_split(10)
    gaps = [len(p) * abs(float(sure[p].mean() - right[p].double().mean())) for p in parts]
    hint = "103 answers in 10 bins: the first three hold 11, and weigh more"
    close(equal_mass_error(sure, right, 10), 100 * sum(gaps) / 103, what=hint)
