"""Losses: pure functions on tensors, one file an objective; `base.py` fixes the conventions."""

from mmkd_lite.losses.base import conventions_table
from mmkd_lite.losses.contrast import image_text_contrast, info_nce
from mmkd_lite.losses.divergence import cross_entropy, kl_divergence
from mmkd_lite.losses.hidden_states import hidden_state_distillation
from mmkd_lite.losses.peers import (
    affinity_mimicking,
    feature_distillation,
    interactive_contrast,
    relational_distillation,
)
from mmkd_lite.losses.regression import cosine_distance, mean_squared_error
from mmkd_lite.losses.similarity_maps import (
    similarity_map_distillation,
    similarity_map_divergence,
)
from mmkd_lite.losses.soft_alignment import hard_bootstrapping, label_smoothing, soft_alignment

__all__ = [
    "affinity_mimicking",
    "conventions_table",
    "cosine_distance",
    "cross_entropy",
    "feature_distillation",
    "hard_bootstrapping",
    "hidden_state_distillation",
    "image_text_contrast",
    "info_nce",
    "interactive_contrast",
    "kl_divergence",
    "label_smoothing",
    "mean_squared_error",
    "relational_distillation",
    "similarity_map_distillation",
    "similarity_map_divergence",
    "soft_alignment",
]
