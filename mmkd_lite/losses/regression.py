"""Losses that compare vectors: the mean squared error and the cosine distance."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from mmkd_lite.losses.base import check_same_shape


def mean_squared_error(prediction: Tensor, target: Tensor) -> Tensor:
    r"""Average the squared difference over every element.

    .. math:: L = \frac{1}{B d} \sum_{i=1}^{B} \sum_{j=1}^{d} (\hat y_{ij} - y_{ij})^2

    This is `1/d` times the squared Euclidean distance, averaged over rows; the source equates the
    two (errata E001-04), so a loss weight taken from elsewhere may be off by the factor d. The
    target is a constant: it receives no gradient.

    Args:
        prediction: (B, d) or any shape, floating point.
        target: Same shape; nothing is broadcast.

    Returns:
        A 0-d tensor, at least 0.

    Raises:
        ValueError: If the shapes differ, a tensor is empty, or one is not floating point.

    Source: seed 001, eq. 1. Derived in notebooks/02_losses.ipynb.
    """
    check_same_shape(prediction, target, "prediction", "target")
    if not (prediction.is_floating_point() and target.is_floating_point()):
        raise ValueError(
            f"prediction and target must be floating point, got {prediction.dtype} and "
            f"{target.dtype}; call .float() on class numbers only if they are quantities"
        )
    if prediction.numel() == 0:
        raise ValueError(f"cannot average no elements: shape {tuple(prediction.shape)}")
    return F.mse_loss(prediction, target.detach())


def cosine_distance(prediction: Tensor, target: Tensor) -> Tensor:
    r"""Average one minus the cosine between rows; lengths do not matter.

    .. math:: L = \frac{1}{B} \sum_{i=1}^{B} \Big( 1 - \frac{\hat y_i \cdot y_i}{|\hat y_i|\,|y_i|} \Big)

    For unit rows this is half the squared distance, so `d/2` times their mean squared error. The
    target receives no gradient.

    Args:
        prediction: (B, d), floating point.
        target: (B, d).

    Returns:
        A 0-d tensor in [0, 2].

    Raises:
        ValueError: If the shapes differ, are not (B, d), or a tensor is empty or not floating point.

    Source: methods.md 4 and 14. Derived in notebooks/16_s_smke.ipynb.
    """
    check_same_shape(prediction, target, "prediction", "target")
    if prediction.ndim != 2 or prediction.numel() == 0 or not prediction.is_floating_point():
        raise ValueError(
            f"prediction must be floating point (B, d), got {prediction.dtype} {tuple(prediction.shape)}"
        )
    return (1 - F.cosine_similarity(prediction, target.detach(), dim=-1)).mean()
