"""Distil hidden states: every layer instance-normalised, averaged over layers, compared by squared error."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from mmkd_lite.losses.base import check_same_shape

EPS = 1e-5
"""Added to variances: PyTorch's default. The thesis' text prints 1e-8, its code uses this one."""


def instance_norm(states: Tensor, mask: Tensor | None = None, eps: float = EPS) -> Tensor:
    r"""Bring every channel of a sequence to mean 0 and variance 1 over its valid tokens.

    .. math:: \hat h_{btd} = \frac{h_{btd} - \mu_{bd}}{\sqrt{\sigma^2_{bd} + \epsilon}}

    Args:
        states: (B, T, D) hidden states of one layer.
        mask: (B, T) bool, False for padding, which takes no part in mean and variance and becomes 0.
        eps: Added to the variance (divided by the number of tokens, not by one less).

    Returns:
        (B, T, D).

    Raises:
        ValueError: Shapes that do not fit, or a sequence without a valid token.

    Source: methods.md 1 and 2. Derived in notebooks/10_unimodal_distillation.ipynb.
    """
    if mask is None:
        variance, mean = torch.var_mean(states, dim=1, correction=0, keepdim=True)
        return (states - mean) * (variance + eps).rsqrt()
    valid = _weights(states, mask)  # (B, T, 1)
    count = valid.sum(dim=1, keepdim=True)
    mean = (states * valid).sum(dim=1, keepdim=True) / count  # (B, 1, D)
    centred = (states - mean) * valid
    variance = centred.square().sum(dim=1, keepdim=True) / count
    return centred * (variance + eps).rsqrt()


def average_of_layers(
    states: Sequence[Tensor],
    mask: Tensor | None = None,
    layer_norm: bool = False,
    eps: float = EPS,
) -> Tensor:
    r"""Average the instance-normalised states of some layers.

    .. math:: Y = \frac1L \sum_{l=1}^{L} \mathrm{IN}(H_l)

    Args:
        states: L tensors (B, T, D), without the embedding output H_0 unless it should count.
        mask: (B, T) bool, False for padding.
        layer_norm: Normalise every token of the average over its D channels, without parameters, as
            the source does for images and not for texts.
        eps: Of both normalisations.

    Returns:
        (B, T, D).

    Raises:
        ValueError: No layer, or shapes that do not fit.

    Source: methods.md 1 and 2, errata ET-32. Derived in notebooks/10_unimodal_distillation.ipynb.
    """
    if not states:
        raise ValueError("the average of layers needs at least one layer")
    mean = torch.stack([instance_norm(layer, mask, eps) for layer in states]).mean(dim=0)
    return F.layer_norm(mean, mean.shape[-1:], eps=eps) if layer_norm else mean


def hidden_state_distillation(
    student: Tensor, teacher: Tensor, mask: Tensor | None = None
) -> Tensor:
    r"""Average the squared difference over valid tokens and channels.

    .. math:: L = \frac{1}{D \sum_{bt} m_{bt}} \sum_{bt} m_{bt} \| y^s_{bt} - y^t_{bt} \|^2

    The teacher's side is a constant: it receives no gradient. The printed 1/(M+2) counts padding as
    well; here a batch's valid tokens all weigh the same.

    Args:
        student: (B, T, D) from `average_of_layers`.
        teacher: Same shape.
        mask: (B, T) bool, False for tokens that do not count.

    Returns:
        A 0-d tensor, at least 0.

    Raises:
        ValueError: Shapes that do not fit, or nothing to average.

    Source: methods.md 1 and 2. Derived in notebooks/10_unimodal_distillation.ipynb.
    """
    check_same_shape(student, teacher, "student", "teacher")
    if student.numel() == 0 or not (student.is_floating_point() and teacher.is_floating_point()):
        raise ValueError(
            f"student and teacher must be floating point (B, T, D) and not empty, got {student.dtype} and "
            f"{teacher.dtype} of shape {tuple(student.shape)}"
        )
    if mask is None:
        return F.mse_loss(student, teacher.detach())
    valid = _weights(student, mask)
    squares = (student - teacher.detach()).square().mean(dim=-1, keepdim=True)  # (B, T, 1)
    return (squares * valid).sum() / valid.sum()


def _weights(states: Tensor, mask: Tensor) -> Tensor:
    """Return the mask as (B, T, 1) of the states' kind, after checking it."""
    if states.ndim != 3 or mask.shape != states.shape[:2]:
        raise ValueError(
            f"the mask must be (B, T) for states (B, T, D), got {tuple(mask.shape)} and "
            f"{tuple(states.shape)}"
        )
    if not bool(mask.any(dim=1).all()):
        raise ValueError("a sequence has no valid token: there is nothing to normalise or compare")
    return mask.to(states).unsqueeze(-1)
