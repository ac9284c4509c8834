"""README's second table: each training method with its source, file, notebook and committed result."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mmkd_lite.comparison import Comparison, file_stem
from mmkd_lite.methods import METHODS, Method
from mmkd_lite.results import mean_and_interval, read_results, results_table
from mmkd_lite.storage import read_json
from mmkd_lite.text_finetuning import score_text_tasks
from mmkd_lite.video_training import score_video

NOTEBOOK = re.compile(r"notebooks/(\d\d)_\w+\.ipynb")


def method_table(root: Path) -> str:
    """Return the Markdown table of all methods; source and notebook stand in each class' docstring.

    Args:
        root: The repository root.
    """
    folder = root / "data" / "results"
    rows = [
        method_row(name, kind, committed_result(name, kind, folder))
        for name, kind in METHODS.items()
    ]
    for name, trains, result, words in OUTSIDE:
        record = read_results(result, folder)
        rows.append(method_row(name, trains, words(record[0]["metrics"]) if record else "–"))
    return results_table(sorted(rows, key=lambda row: row["notebook"]))


def method_row(name: str, kind: Callable[..., Any], result: str) -> dict[str, str]:
    """Return one method's row; what trains a head of its own is a function and no `Method`.

    Raises:
        ValueError: The docstring does not say where it comes from or where it is derived.
    """
    words = " ".join(inspect.cleandoc(kind.__doc__ or "").split())
    _, found, rest = words.partition("Source: ")
    notebook = NOTEBOOK.search(rest)
    if not found or notebook is None:
        raise ValueError(f"the docstring of {kind.__name__} needs a source and a notebook")
    source = re.split(r"\.? (?:Derived|Shown|Used) (?:in|from)", rest)[0]
    module = kind.__module__.replace(".", "/")
    return {
        "method": f"`{name}`",
        "source": source,
        "file": f"`{module}.py`",
        "notebook": f"[{notebook[1]}]({notebook[0]})",
        "committed laptop result": result,
    }


def committed_result(name: str, kind: type[Method], folder: Path) -> str:
    """Return the main variant's result (the first one that was run): score with interval, and chance."""
    for variant in kind.variants:
        label = f"{name}:{variant}"
        stem = file_stem(label, "laptop", 0).removesuffix("0")
        records = read_results(f"{stem}*", folder)
        if records:
            return _headline(variant, Comparison("laptop", {label: records}), label)
    teachers = folder.parent / "teachers" / "manifest.json"
    for teacher, entry in (read_json(teachers) if teachers.exists() else {}).items():
        if entry["config"]["method"] == name:
            task, scores = next(iter(entry["scores"].items()))
            key, score = next(iter(scores.items()))
            majority = scores[f"{key}_majority"]
            what = f"{task} {key}".replace("_", " ")
            return f"teacher {teacher}: {what} {score:.1f} % (majority {majority:.1f} %, one run)"
    return "–"


def _text_result(metrics: dict[str, Any]) -> str:
    """Return the words for the shipped text teacher under a linear head."""
    task = "object accuracy"
    found = mean_and_interval(list(metrics["text"]["frozen"][task].values()))
    majority = metrics["levels"][task]["majority"]
    return f"text, frozen: {task} {found.text()} % (majority {majority:.1f} %, n = {found.n})"


def _video_result(metrics: dict[str, Any]) -> str:
    """Return the words for the first backbone and sampling that were run."""
    rows, names = metrics["rows"], ("backbone", "sampling", "temporal")
    alike = [row for row in rows if all(row[name] == rows[0][name] for name in names)]
    found = mean_and_interval([row["balanced_accuracy"] for row in alike])
    what = f"{rows[0]['backbone']}, {rows[0]['sampling']}"
    return f"{what}: balanced accuracy {found.text()} % (chance 50 %, n = {found.n})"


def _headline(variant: str, comparison: Comparison, label: str) -> str:
    """Return the words for one variant."""
    metrics: dict[str, Any] = comparison.records[label][0]["metrics"]
    for gallery, scores in metrics.items():
        if "mean_recall" in scores:
            chance = [value for key, value in scores.items() if key.startswith("chance_")]
            base, key = sum(chance) / len(chance), f"{gallery}.mean_recall"
            what = "mean recall"
            break
        if "accuracy" in scores:
            base, key = scores["majority"], f"{gallery}.accuracy"
            what = gallery.replace("_", " ")
            break
    else:
        return "–"
    found = mean_and_interval(list(comparison.values(label, key).values()))
    word = "chance" if what == "mean recall" else "majority"
    return f"{variant}: {what} {found.text()} % ({word} {base:.1f} %, n = {found.n})"


OUTSIDE = (
    ("text_finetuning", score_text_tasks, "text_towers", _text_result),
    ("video_training", score_video, "video_comparison", _video_result),
)
"""What trains a head of its own: name, function, result file, and what is told of it."""
