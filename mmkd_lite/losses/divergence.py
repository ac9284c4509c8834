"""Losses that compare distributions over classes: Kullback-Leibler divergence and cross-entropy."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from mmkd_lite.losses.base import check_logits, check_same_shape, check_temperature


def kl_divergence(
    student_logits: Tensor, teacher_logits: Tensor, temperature: float = 1.0
) -> Tensor:
    r"""Measure how far the student's class distribution is from the teacher's.

    .. math:: L = \frac{T^2}{B} \sum_{i=1}^{B} \sum_{j=1}^{C} p_{ij} \log \frac{p_{ij}}{q_{ij}},
              \quad p = \mathrm{softmax}(t / T), \quad q = \mathrm{softmax}(s / T)

    The sum runs over classes and the mean over rows ("batchmean"); dividing by C as well would make
    the weight of the term depend on the number of classes. The factor `T**2` is always there and
    keeps the size of the gradient as T grows. The student comes first. The teacher is a constant:
    it receives no gradient, even if its logits require one.

    Args:
        student_logits: (B, C) raw scores; further leading axes count as rows.
        teacher_logits: Same shape.
        temperature: T > 0, applied to both sides.

    Returns:
        A 0-d tensor, at least 0, and 0 where the two distributions agree.

    Raises:
        ValueError: If the shapes differ, the logits are empty or integers, or T is not positive.

    Source: seed 001, eqs 2-3; seed 000, Code 3 with errata E000-01 and E000-02.
    Derived in notebooks/02_losses.ipynb.
    """
    check_logits(student_logits, "student_logits")
    check_logits(teacher_logits, "teacher_logits")
    check_same_shape(student_logits, teacher_logits, "student_logits", "teacher_logits")
    check_temperature(temperature)
    classes = student_logits.shape[-1]
    student = F.log_softmax(student_logits.reshape(-1, classes) / temperature, dim=-1)  # (B, C)
    teacher = F.log_softmax(teacher_logits.detach().reshape(-1, classes) / temperature, dim=-1)
    divergence = F.kl_div(student, teacher, reduction="batchmean", log_target=True)
    return divergence * temperature**2


def cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    r"""Average the negative log-probability of the correct class.

    .. math:: L = -\frac{1}{B} \sum_{i=1}^{B} \log
              \frac{\exp(x_{i y_i})}{\sum_{j=1}^{C} \exp(x_{ij})}

    The form with class indices is the one-hot case of the cross-entropy, where the entropy of the
    target is 0 and cross-entropy and KL are the same number. For soft targets use `kl_divergence`,
    which has the gradient of the soft cross-entropy.

    Args:
        logits: (B, C) raw scores; further leading axes count as rows.
        target: (B,) class indices in [0, C), an integer tensor shaped like the leading axes.

    Returns:
        A 0-d tensor, at least 0.

    Raises:
        ValueError: If the arguments look swapped, the shapes do not match, or an index is out of
            range.

    Source: seed 001, eqs 4-7; seed 000, Code 4 with errata E000-03.
    Derived in notebooks/02_losses.ipynb.
    """
    check_logits(logits, "logits")
    if target.is_floating_point() or target.dtype in (
        torch.bool,
        torch.complex64,
        torch.complex128,
    ):
        raise ValueError(
            f"target must hold class indices (int64), got {target.dtype}; "
            "for probabilities use kl_divergence"
        )
    if target.shape != logits.shape[:-1]:
        raise ValueError(
            f"target must have the shape of logits without its last axis, "
            f"{tuple(logits.shape[:-1])}, got {tuple(target.shape)}"
        )
    classes = logits.shape[-1]
    smallest, largest = (int(bound) for bound in torch.aminmax(target))
    if smallest < 0 or largest >= classes:
        raise ValueError(f"class indices must lie in [0, {classes}), got {smallest} to {largest}")
    return F.cross_entropy(logits.reshape(-1, classes), target.reshape(-1).long())
