"""Checkers of notebook 10, Unimodal distillation."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from mmkd_lite.checks import close, expect, same
from mmkd_lite.config import TowerConfig
from mmkd_lite.losses import kl_divergence
from mmkd_lite.losses.hidden_states import instance_norm
from mmkd_lite.models import ImageEncoder


def exercise_1(soft_gradient: Callable[[Tensor, Tensor, float], Tensor]) -> None:
    """`soft_gradient` is the gradient of T^2 KL with respect to the student's logits, without autograd."""
    student, teacher = torch.randn(2, 5, 7, generator=torch.Generator().manual_seed(0))
    for temperature in (1.0, 4.0):
        logits = student.clone().requires_grad_()
        kl_divergence(logits, teacher, temperature).backward()
        answer = soft_gradient(student, teacher, temperature)
        expect(
            answer.shape == student.shape, "one number for each logit, as many as the student has"
        )
        close(
            answer,
            logits.grad,
            atol=1e-6,
            what=f"T = {temperature:g}: a difference of two softmaxes, and which factor in front?",
        )


def exercise_2(masked_norm: Callable[[Tensor, Tensor], Tensor]) -> None:
    """`masked_norm` normalises each channel over valid tokens and leaves 0 at padding."""
    states = torch.randn(3, 6, 4, generator=torch.Generator().manual_seed(1)) * 3 + 1
    mask = torch.arange(6)[None] < torch.tensor([6, 4, 2])[:, None]
    states[~mask] = 1e3
    answer = masked_norm(states, mask)
    close(answer[~mask], torch.zeros(6, 4), what="padding becomes 0")
    close(
        answer, instance_norm(states, mask), rtol=1e-4, what="mean and variance over valid tokens"
    )


def exercise_3(image_parameters: Callable[[int, int, int, int], int]) -> None:
    """`image_parameters` counts an image encoder with fixed positions: width, layers, patch, ratio 4."""
    for width, layers, patch in ((16, 2, 8), (32, 3, 4)):
        tower = TowerConfig(width, layers, 4, patch=patch, positions="fixed", cls_position=False)
        expected = sum(p.numel() for p in ImageEncoder(tower, 16).parameters())
        same(
            image_parameters(width, layers, patch, 4),
            expected,
            what="blocks of 12 D^2 + 13 D, patch projection, [CLS], final LayerNorm",
        )
