"""Evaluation: functions re-exported from files that bear other names."""

from mmkd_lite.evaluate.cost import count_parameters
from mmkd_lite.evaluate.embed import embed_images, embed_texts
from mmkd_lite.evaluate.granularity import attainable, nearest_hits
from mmkd_lite.evaluate.probe import ProbeResult, linear_probe
from mmkd_lite.evaluate.ranks import Ranks, retrieval_ranks
from mmkd_lite.evaluate.recall import (
    average_median_rank,
    chance_recall,
    folds_1k,
    one_caption_each,
    recall_interval,
    recall_intervals,
    retrieval,
    summarise,
)
from mmkd_lite.evaluate.zero_shot import zero_shot_accuracy, zero_shot_classifier

__all__ = [
    "ProbeResult",
    "Ranks",
    "attainable",
    "average_median_rank",
    "chance_recall",
    "count_parameters",
    "embed_images",
    "embed_texts",
    "folds_1k",
    "linear_probe",
    "nearest_hits",
    "one_caption_each",
    "recall_interval",
    "recall_intervals",
    "retrieval",
    "retrieval_ranks",
    "summarise",
    "zero_shot_accuracy",
    "zero_shot_classifier",
]
