"""Checkers of notebook 32, linear probe and finetuning."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import torch
import torch.nn.functional as F

from mmkd_lite.checks import close, expect, same
from mmkd_lite.evaluate import linear_probe


def exercise_1(to_c: Callable[[float, int], float]) -> None:
    """`to_c` turns the weight decay of the mean loss into the C of the summed one."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(40, 3, generator=generator)
    y = (x[:, 0] + torch.randn(40, generator=generator) > 0).long()
    for decay in (0.01, 0.5):
        c = to_c(decay, len(x))
        found = linear_probe(x, y, x, y, inverse_regularisation=c)
        weight, bias = found.weight.requires_grad_(), found.bias
        loss = F.cross_entropy(x @ weight.T + bias, y) + decay / 2 * weight.square().sum()
        (left,) = torch.autograd.grad(loss, weight)
        expect(
            float(left.norm()) < 1e-3,
            f"with C = {c:g} the mean loss at weight decay {decay:g} has a gradient of {float(left.norm()):.2g}: "
            "divide the summed objective by C N and compare the penalties",
        )


def exercise_2(rates_from_lowest: Callable[[float, float, int], list[float]]) -> None:
    """`rates_from_lowest` are L + 2 rates in geometric steps from the lowest to the base."""
    for base, lowest, layers in ((1e-3, 1e-5, 6), (1.0, 0.25, 1), (1e-3, 1e-3, 12)):
        rates = list(rates_from_lowest(base, lowest, layers))
        same(len(rates), layers + 2, "the number of rates")
        close([rates[0], rates[-1]], [lowest, base], what="the lowest and the highest rate")
        steps = [upper / lower for lower, upper in itertools.pairwise(rates)]
        close(steps, [steps[0]] * len(steps), what="the factor from layer to layer")


def exercise_3(share_of_start: Callable[[float, float, float], float]) -> None:
    """`share_of_start` is what the start had of the student's gain over a random encoder, kept in [0, 1]."""
    for accuracies, wanted in (
        ((10.0, 40.0, 50.0), 0.75),
        ((10.0, 10.0, 50.0), 0.0),
        ((10.0, 60.0, 50.0), 1.0),
        ((10.0, 30.0, 10.0), 0.0),
        ((10.0, 5.0, 50.0), 0.0),
    ):
        answer = share_of_start(*accuracies)
        expect(0 <= answer <= 1, f"{answer} for {accuracies} lies outside [0, 1]")
        close(answer, wanted, what=f"the share for random, start, student = {accuracies}")
