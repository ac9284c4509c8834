"""Losses: pure functions on tensors, one file an objective; `base.py` fixes the conventions."""

from mmkd_lite.losses.base import conventions_table
from mmkd_lite.losses.contrast import image_text_contrast, info_nce
from mmkd_lite.losses.divergence import cross_entropy, kl_divergence
from mmkd_lite.losses.regression import mean_squared_error

__all__ = [
    "conventions_table",
    "cross_entropy",
    "image_text_contrast",
    "info_nce",
    "kl_divergence",
    "mean_squared_error",
]
