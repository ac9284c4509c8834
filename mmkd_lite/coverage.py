"""README's second table: each training method with its source, file, notebook and committed result."""

from __future__ import annotations

import inspect
import re
from pathlib import Path
from typing import Any

from mmkd_lite.comparison import Comparison, file_stem
from mmkd_lite.methods import METHODS, Method
from mmkd_lite.results import mean_and_interval, read_results, results_table

NOTEBOOK = re.compile(r"notebooks/(\d\d)_\w+\.ipynb")


def method_table(root: Path) -> str:
    """Return the Markdown table of all methods; source and notebook stand in each class' docstring.

    Args:
        root: The repository root.
    """
    rows = [method_row(name, kind, root) for name, kind in METHODS.items()]
    return results_table(sorted(rows, key=lambda row: row["notebook"]))


def method_row(name: str, kind: type[Method], root: Path) -> dict[str, str]:
    """Return one method's row.

    Raises:
        ValueError: The class does not say where it comes from or where it is derived.
    """
    words = " ".join(inspect.cleandoc(kind.__doc__ or "").split())
    _, found, rest = words.partition("Source: ")
    notebook = NOTEBOOK.search(rest)
    if not found or notebook is None:
        raise ValueError(f"the docstring of {kind.__name__} needs a source and a notebook")
    source = re.split(r"\.? (?:Derived|Shown|Used) (?:in|from)", rest)[0]
    module = kind.__module__.replace(".", "/")
    written = (root / notebook[0]).is_file()
    return {
        "method": f"`{name}`",
        "source": source,
        "file": f"`{module}.py`",
        "notebook": f"[{notebook[1]}]({notebook[0]})"
        if written
        else f"{notebook[1]}, to be written",
        "committed laptop result": committed_result(name, kind, root / "data" / "results"),
    }


def committed_result(name: str, kind: type[Method], folder: Path) -> str:
    """Return the main variant's result (the first one that was run): score with interval, and chance."""
    for variant in kind.variants:
        label = f"{name}:{variant}"
        stem = file_stem(label, "laptop", 0).removesuffix("0")
        records = read_results(f"{stem}*", folder)
        if records:
            return _headline(variant, Comparison("laptop", {label: records}), label)
    return "–"


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
