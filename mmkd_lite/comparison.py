"""Read a committed comparison back: values by seed, tables with intervals, paired differences."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmkd_lite.results import (
    PairedDifference,
    mean_and_interval,
    paired_difference,
    read_results,
    results_table,
    smallest_detectable_effect,
)

FOLDER = "compare"
COLUMNS = {
    "i2t R@1": "i2t_r1",
    "t2i R@1": "t2i_r1",
    "mean recall": "mean_recall",
}

ALL = (
    "contrast:none",
    "contrast:clip",
    "shared_layers:base",
    "stagewise:two_stage_slow",
    "shre:both",
    "shre:shared_block",
    "text_student:mse",
    "text_student:contrastive",
    "ssmke:mse",
    "ssmke:contrastive",
    "quantised_targets:codes",
    "memory_bank:fifo",
    "memory_bank:momentum",
    "distill_clip:both",
    "distill_clip:feature_contrast",
    "psd:psd",
)
"""What `compare all` trains: every method with an image-text student, the same data and steps."""


def file_stem(label: str, scale: str, seed: int) -> str:
    """Return the name of one run's result: "compare/shre-kl_only__laptop__seed0"."""
    return f"{FOLDER}/{label.replace(':', '-')}__{scale}__seed{seed}"


@dataclass(frozen=True)
class Comparison:
    """Result records of several variants that ran from the same seeds.

    Attributes:
        scale: Scale of all runs.
        records: Variant label -> its result records, one a seed.
    """

    scale: str
    records: dict[str, list[dict[str, Any]]]

    def values(self, label: str, key: str) -> dict[int, float]:
        """Return one number by seed.

        Args:
            label: A variant such as "shre:kl_only".
            key: Dotted place in the metrics, as "composition.i2t_r1", or "seconds".

        Raises:
            ValueError: No such variant or number; the valid names are listed.
        """
        if label not in self.records:
            raise ValueError(f"no runs of {label!r}; there are: {', '.join(self.records)}")
        found = {}
        for record in self.records[label]:
            node: Any = {**record["metrics"], "seconds": record["seconds"]}
            for part in key.split("."):
                if not isinstance(node, dict) or part not in node:
                    known = ", ".join(node) if isinstance(node, dict) else "nothing below"
                    raise ValueError(f"no {part!r} on the way to {key!r}; there are: {known}")
                node = node[part]
            found[int(record["seed"])] = float(node)
        return found

    def difference(self, a: str, b: str, key: str) -> PairedDifference:
        """Return variant a minus variant b, paired by seed."""
        return paired_difference(self.values(a, key), self.values(b, key))

    def difference_of_keys(self, label: str, a: str, b: str) -> PairedDifference:
        """Return number a minus number b of one variant, paired by seed."""
        return paired_difference(self.values(label, a), self.values(label, b))

    @property
    def source(self) -> str:
        """What to print beside a figure: "committed, 5 seeds, python -m mmkd_lite compare ..."."""
        counts = [len(records) for records in self.records.values()]
        seeds, words = max(counts), " ".join(self.records)
        fewer = f"{min(counts)} to " * (min(counts) < seeds)
        return (
            f"committed, {fewer}{seeds} seed{'s' * (seeds != 1)}, "
            f"python -m mmkd_lite compare {words} --seeds {seeds} --scale {self.scale}"
        )


def read_comparison(
    variants: Sequence[str],
    scale: str = "laptop",
    folder: str | Path | None = None,
    *,
    partial: bool = False,
) -> Comparison:
    """Read the result files of some variants.

    Args:
        variants: Labels such as "shre:kl_only".
        scale: Scale of the runs.
        folder: Folder of result files, `data/results` by default.
        partial: Leave variants without a file out, as long as one has some.

    Raises:
        FileNotFoundError: A variant has no file; the message holds the command that makes them.
    """
    records: dict[str, list[dict[str, Any]]] = {}
    for label in variants:
        stem = file_stem(label, scale, 0).removesuffix("0")
        found = read_results(f"{stem}*", folder)
        if not found and partial and (records or label != variants[-1]):
            continue
        if not found:
            raise FileNotFoundError(
                f"no results of {label!r} at scale {scale}; make them with: python -m mmkd_lite "
                f"compare {' '.join(variants)} --scale {scale}"
            )
        records[label] = sorted(found, key=lambda record: int(record["seed"]))
    return Comparison(scale, records)


def score_rows(comparison: Comparison, gallery: str = "") -> list[dict[str, Any]]:
    """Return one row a variant: recalls with intervals on one gallery, and the least seconds of any seed.

    Args:
        comparison: From `compare` or `read_comparison`.
        gallery: A key of the metrics, as "far"; the first one by default. Students of one modality
            have none; their rows hold seeds and seconds, and `accuracy_rows` the rest.
    """
    gallery = gallery or next(iter(gallery_names(comparison)), "")
    rows = []
    for label, records in comparison.records.items():
        if not records:
            continue
        row: dict[str, Any] = {"variant": label, "seeds": len(records)}
        for name, key in COLUMNS.items() if gallery else ():
            values = comparison.values(label, f"{gallery}.{key}")
            row[name] = mean_and_interval(list(values.values()))
        row["seconds"] = min(comparison.values(label, "seconds").values())
        rows.append(row)
    return rows


def chance_row(comparison: Comparison, gallery: str = "") -> dict[str, Any]:
    """Return the row of a random ranking on the same gallery."""
    gallery = gallery or gallery_names(comparison)[0]
    scores = _first_record(comparison)["metrics"][gallery]
    chance = {key.removeprefix("chance_"): v for key, v in scores.items() if "chance_" in key}
    mean = sum(chance.values()) / len(chance)
    return {
        "variant": "chance",
        "i2t R@1": chance["i2t_r1"],
        "t2i R@1": chance["t2i_r1"],
        "mean recall": mean,
    }


def difference_rows(
    comparison: Comparison, key: str = "", baseline: str = ""
) -> list[dict[str, Any]]:
    """Return one row a variant: its difference to the baseline and what could have been seen.

    Args:
        comparison: From `compare` or `read_comparison`.
        key: Dotted metric; by default the mean recall on the first gallery or, of students of one
            modality, the first accuracy.
        baseline: A label; the first variant by default.
    """
    key = key or main_key(comparison)
    baseline = baseline or next(iter(comparison.records))
    rows = []
    for label, records in comparison.records.items():
        common = set(comparison.values(label, key)) & set(comparison.values(baseline, key))
        if label == baseline or not records or not common:
            continue
        found = comparison.difference(label, baseline, key)
        rows.append(
            {
                "variant": label,
                "compared with": baseline,
                "difference": found,
                "seeds": found.n,
                "verdict": found.verdict,
                "smallest detectable": smallest_detectable_effect(found.n, found.sd),
            }
        )
    return rows


def accuracy_rows(comparison: Comparison) -> list[dict[str, Any]]:
    """Return one row a variant: every accuracy with its interval and the parameters; then chance and majority.

    Scores that some record lacks are left out.
    """
    everything = [
        record["metrics"] for records in comparison.records.values() for record in records
    ]
    first = _first_record(comparison)["metrics"]
    names = [
        name
        for name, scores in first.items()
        if "accuracy" in scores and all(name in metrics for metrics in everything)
    ]
    if not names:
        return []
    rows: list[dict[str, Any]] = []
    for label, records in comparison.records.items():
        if records:
            row: dict[str, Any] = {"accuracy of": label}
            for name in names:
                values = comparison.values(label, f"{name}.accuracy")
                row[name.replace("_", " ")] = mean_and_interval(list(values.values()))
            row["parameters"] = records[0]["metrics"].get("model", {}).get("parameters")
            rows.append(row)
    for base in ("chance", "majority"):
        row = {name.replace("_", " "): first[name][base] for name in names}
        rows.append({"accuracy of": base, **row})
    return rows


def gallery_names(comparison: Comparison) -> list[str]:
    """Return the galleries that were scored, the usual one first."""
    metrics = _first_record(comparison)["metrics"]
    return [name for name, scores in metrics.items() if "mean_recall" in scores]


def main_key(comparison: Comparison) -> str:
    """Return the number that variants are compared by: a mean recall, else an accuracy.

    Raises:
        ValueError: The runs were scored by neither.
    """
    for key in ("mean_recall", "accuracy"):
        for name, scores in _first_record(comparison)["metrics"].items():
            if key in scores:
                return f"{name}.{key}"
    raise ValueError("the runs hold neither a mean recall nor an accuracy")


def comparison_tables(comparison: Comparison, kind: str = "markdown") -> str:
    """Lay out recalls, chance, every gallery's mean recall and the paired differences."""
    if not any(comparison.records.values()):
        return "no run finished"
    scores = score_rows(comparison)
    if gallery_names(comparison):
        scores.append(chance_row(comparison))
    shown = []
    for label, records in comparison.records.items():
        means = {
            name: mean_and_interval(list(comparison.values(label, f"{name}.mean_recall").values()))
            for name in gallery_names(comparison)
            if records
        }
        if gallery_names(comparison):
            shown.append({"mean recall on": label, **means})
    tables = [scores, shown, accuracy_rows(comparison), difference_rows(comparison)]
    return "\n\n".join(results_table(rows, kind=kind) for rows in tables if rows)


def _first_record(comparison: Comparison) -> dict[str, Any]:
    for records in comparison.records.values():
        if records:
            return records[0]
    raise ValueError("the comparison holds no finished run")
