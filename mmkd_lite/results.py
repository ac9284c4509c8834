"""Results on disk and the statistics that read them: JSON in; intervals, verdicts and tables out.

Every number that a notebook calls "committed" comes from a file under `data/results/`, written by
`write_result` together with the configuration, seed, versions and command that made it.
"""

from __future__ import annotations

import functools
import html
import math
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mmkd_lite.intervals import (
    NOT_SHOWN,
    SHOWN,
    UNCLEAR,
    Interval,
    PairedDifference,
    mean_and_interval,
    paired_difference,
    smallest_detectable_effect,
    verdict,
)
from mmkd_lite.storage import canonical_json, read_json, sha256_of_bytes, write_json

RESULTS_FOLDER = Path(__file__).resolve().parents[1] / "data" / "results"

__all__ = [
    "NOT_SHOWN",
    "SHOWN",
    "UNCLEAR",
    "Interval",
    "PairedDifference",
    "cell_text",
    "commit",
    "configuration_hash",
    "mean_and_interval",
    "paired_difference",
    "plain",
    "read_metrics",
    "read_result",
    "read_results",
    "readme_row",
    "results_table",
    "smallest_detectable_effect",
    "verdict",
    "write_metrics",
    "write_result",
]

# ---------------------------------------------------------------- files


def write_result(
    name: str,
    *,
    configuration: Mapping[str, Any],
    metrics: Mapping[str, Any],
    seed: int,
    seconds: float,
    device: str = "cpu",
    command: str = "",
    data_checksum: str = "",
    folder: str | Path | None = None,
) -> Path:
    """Write one result file, whole or not at all.

    Args:
        name: File name without suffix; may name a subfolder, as "compare/shre__laptop__seed0".
        configuration: Everything that decides the numbers, as plain JSON values.
        metrics: The numbers; nesting and numpy or torch scalars are fine, NaN becomes null.
        seed: Seed of the run.
        seconds: Wall-clock seconds.
        device: Kind of device, never a machine's name.
        command: Command that makes the file again.
        data_checksum: SHA-256 of the data scored on.
        folder: Where to write; `data/results` by default.

    Returns:
        Path of the file.

    Raises:
        ValueError: A name with characters that some file system refuses.
    """
    allowed = all(letter.isalnum() or letter in "-_./" for letter in name)
    if not name or not allowed or ".." in name or name.startswith("/"):
        raise ValueError(f"result name {name!r}; use letters, digits, '-', '_', '.' and '/'")
    from mmkd_lite.notebook import versions

    record = {
        "name": name,
        "command": command,
        "commit": commit(),
        "versions": versions(),
        "device": device,
        "seed": int(seed),
        "seconds": round(float(seconds), 2),
        "data_checksum": data_checksum,
        "configuration_hash": configuration_hash(configuration),
        "configuration": plain(configuration),
        "metrics": plain(metrics),
    }
    return write_json(Path(folder or RESULTS_FOLDER) / f"{name}.json", record)


def read_result(name: str, folder: str | Path | None = None) -> dict[str, Any]:
    """Read one result file.

    Raises:
        FileNotFoundError: There is none of that name; the message lists those beside it.
        ValueError: The file is not a result.
    """
    path = Path(folder or RESULTS_FOLDER) / f"{name}.json"
    if not path.exists():
        beside = ", ".join(sorted(p.stem for p in path.parent.glob("*.json"))) or "none"
        raise FileNotFoundError(f"no result {name!r}; results beside it: {beside}")
    record = read_json(path)
    if not isinstance(record, dict) or not {"metrics", "configuration"} <= set(record):
        raise ValueError(f"{path.name} is not a result: it lacks metrics or configuration")
    return record


def read_results(pattern: str = "*", folder: str | Path | None = None) -> list[dict[str, Any]]:
    """Read every result whose name fits a pattern such as "compare/shre*__laptop__*", by name."""
    root = Path(folder or RESULTS_FOLDER)
    names = sorted(p.relative_to(root).with_suffix("") for p in root.glob(f"{pattern}.json"))
    return [read_result(name.as_posix(), root) for name in names]


def write_metrics(out_dir: str | Path | None, metrics: Mapping[str, Any]) -> Path | None:
    """Write a notebook's key figures to `out_dir/metrics.json`; do nothing for "" or None."""
    if not out_dir:
        return None
    return write_json(Path(out_dir) / "metrics.json", plain(metrics))


def read_metrics(out_dir: str | Path) -> dict[str, Any]:
    """Read what `write_metrics` wrote; an empty dict where a notebook wrote nothing."""
    path = Path(out_dir) / "metrics.json"
    return read_json(path) if path.exists() else {}


def configuration_hash(configuration: Mapping[str, Any]) -> str:
    """Return the SHA-256 that names a configuration."""
    return sha256_of_bytes(canonical_json(plain(configuration)).encode())


@functools.cache
def commit() -> str:
    """Return the commit of the source tree, or "" outside a repository."""
    words = ["git", "rev-parse", "HEAD"]
    try:
        done = subprocess.run(words, cwd=RESULTS_FOLDER.parents[1], capture_output=True, text=True)
    except OSError:
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def plain(value: Any) -> Any:
    """Return a value as JSON can hold it: numpy and torch scalars as numbers, NaN as None."""
    if isinstance(value, Mapping):
        return {str(key): plain(entry) for key, entry in value.items()}
    if hasattr(value, "tolist"):  # numpy and torch
        return plain(value.tolist())
    if isinstance(value, list | tuple):
        return [plain(entry) for entry in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if value is None or isinstance(value, str | int | float):
        return value
    return str(value)


# ---------------------------------------------------------------- tables


def results_table(
    rows: Sequence[Mapping[str, Any]],
    columns: Sequence[str] | None = None,
    *,
    decimals: int = 1,
    kind: str = "markdown",
) -> str:
    """Lay rows out as a Markdown or HTML table.

    Args:
        rows: One mapping a row; a missing or None or NaN cell is shown as an en dash.
        columns: Which keys, in order; those of all rows in order of appearance by default.
        decimals: Decimal places of floats and intervals; ints and text stay as they are.
        kind: "markdown" or "html".

    Raises:
        ValueError: Unknown kind, or a column that no row has.
    """
    keys = list(columns) if columns else list(dict.fromkeys(key for row in rows for key in row))
    absent = [key for key in keys if not any(key in row for row in rows)]
    if absent and rows:
        raise ValueError(f"no row has the columns {', '.join(absent)}")
    body = [[cell_text(row.get(key), decimals) for key in keys] for row in rows]
    if kind == "markdown":
        cells = [[row[key] for row in rows if row.get(key) is not None] for key in keys]
        number = [c != [] and all(isinstance(x, int | float | Interval) for x in c) for c in cells]
        rule = "|" + "|".join("--:" if right else "---" for right in number) + "|"
        return "\n".join([readme_row(keys), rule, *map(readme_row, body)])
    if kind == "html":
        head = "".join(f"<th>{html.escape(key)}</th>" for key in keys)
        lines = ["".join(f"<td>{html.escape(cell)}</td>" for cell in row) for row in body]
        inner = "\n".join(f"<tr>{line}</tr>" for line in [head, *lines])
        return f"<table>\n{inner}\n</table>"
    raise ValueError(f"kind is {kind!r}; valid kinds: markdown, html")


def readme_row(cells: Sequence[Any], decimals: int = 1) -> str:
    """Return one Markdown table row; bars inside a cell are escaped."""
    texts = [cell_text(cell, decimals).replace("|", "\\|").replace("\n", " ") for cell in cells]
    return "| " + " | ".join(texts) + " |"


def cell_text(value: Any, decimals: int = 1) -> str:
    """Spell one cell: intervals with their ends, floats rounded, nothing as an en dash."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "–"
    if isinstance(value, Interval):
        return value.text(decimals)
    if isinstance(value, float):
        return f"{value:.{decimals}f}"
    return str(value)
