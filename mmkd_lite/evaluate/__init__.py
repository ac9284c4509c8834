"""Evaluation: functions re-exported from files that bear other names."""

from mmkd_lite.evaluate.calibration import (
    calibration_report,
    expected_calibration_error,
    fit_temperature,
    reliability,
)
from mmkd_lite.evaluate.cost import (
    Side,
    cost_table,
    count_flops,
    count_parameters,
    flops_by_operation,
)
from mmkd_lite.evaluate.embed import embed_images, embed_texts
from mmkd_lite.evaluate.granularity import attainable, nearest_hits
from mmkd_lite.evaluate.hierarchy import accuracy_by_hierarchy
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
from mmkd_lite.evaluate.robustness import (
    effective_robustness,
    implied_standard,
    subset_accuracy,
)
from mmkd_lite.evaluate.video import average_precision, binary_scores
from mmkd_lite.evaluate.zero_shot import (
    class_subset,
    zero_shot_accuracy,
    zero_shot_classifier,
    zero_shot_report,
)

__all__ = [
    "ProbeResult",
    "Ranks",
    "Side",
    "accuracy_by_hierarchy",
    "attainable",
    "average_median_rank",
    "average_precision",
    "binary_scores",
    "calibration_report",
    "chance_recall",
    "class_subset",
    "cost_table",
    "count_flops",
    "count_parameters",
    "effective_robustness",
    "embed_images",
    "embed_texts",
    "expected_calibration_error",
    "fit_temperature",
    "flops_by_operation",
    "folds_1k",
    "implied_standard",
    "linear_probe",
    "nearest_hits",
    "one_caption_each",
    "recall_interval",
    "recall_intervals",
    "reliability",
    "retrieval",
    "retrieval_ranks",
    "subset_accuracy",
    "summarise",
    "zero_shot_accuracy",
    "zero_shot_classifier",
    "zero_shot_report",
]
