"""What `reproduce` shows: the scoreboard on the terminal and the page `runs/<name>/index.html`."""

from __future__ import annotations

import html
import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mmkd_lite.results import results_table
from mmkd_lite.storage import write_atomic

COLUMNS = ("value", "chance", "committed", "published")
"""What a metric may come with; a bare number is its value."""

TAG = "report"
"""Cells with this tag go into the page; a notebook without any shows its last figures."""

LAST_FIGURES = 2

HEADLINE = "headline"
"""Metric that is one short text: the notebook's result in README's table and on the scoreboard."""

NOTEBOOK_HEADER = ("notebook", "verdict", "seconds", "at nominal speed", "result")

STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
table { border-collapse: collapse; margin: 1rem 0; }
th, td { padding: .2rem .8rem; text-align: right; border-bottom: 1px solid #ddd; }
th:first-child, td:first-child { text-align: left; }
img { max-width: 100%; }
pre { overflow-x: auto; }
.failed { color: #b00020; font-weight: bold; }
"""

Row = tuple[str, ...]


def metric_rows(metrics: Mapping[str, Any]) -> list[Row]:
    """Return one row a metric: its name and the text of each of `COLUMNS`.

    Args:
        metrics: Name to a number, a text, or a mapping with some of `COLUMNS`; other mappings are
            groups of metrics and give "group.name".
    """
    rows: list[Row] = []
    for name, value in metrics.items():
        if name == HEADLINE:
            continue
        if isinstance(value, Mapping) and not set(value) & set(COLUMNS):
            rows += [(f"{name}.{row[0]}", *row[1:]) for row in metric_rows(value)]
        elif isinstance(value, Mapping):
            rows.append((name, *(_text(value.get(column)) for column in COLUMNS)))
        else:
            rows.append((name, _text(value), "", "", ""))
    return rows


def scoreboard(summary: Mapping[str, Any]) -> str:
    """Return the tables that end a run on the terminal: the notebooks, then their metrics.

    Args:
        summary: The content of `summary.json`.
    """
    scores = [
        (entry["name"][:2], *row)
        for entry in summary["notebooks"]
        for row in metric_rows(entry["metrics"])
    ]
    parts = [_text_table(NOTEBOOK_HEADER, _notebook_rows(summary), left={0, 4})]
    if scores:
        parts.append(_text_table(("", "metric", *COLUMNS), scores, left={0, 1}))
    return "\n\n".join(["", *parts, closing_line(summary)])


def closing_line(summary: Mapping[str, Any]) -> str:
    """Return one sentence: how many notebooks ended well, in what time."""
    good = sum(entry["ok"] for entry in summary["notebooks"])
    seconds = summary["seconds"]
    return (
        f"{good} of {len(summary['notebooks'])} notebooks ok at scale {summary['scale']}, "
        f"seed {summary['seed']}, in {seconds:.0f} s; at nominal speed "
        f"{seconds * summary['speed']:.0f} s (this machine runs at {summary['speed']:.2f} of it)"
    )


def write_index(folder: Path, summary: Mapping[str, Any]) -> None:
    """Write the run's page, with its figures embedded.

    Args:
        folder: `runs/<name>`, with the executed notebooks below it.
        summary: The content of `summary.json`.
    """
    facts = " · ".join(f"{name} {version}" for name, version in summary["versions"].items())
    commit = f" · commit {summary['commit'][:12]}" if summary["commit"] else ""
    body = [
        "<h1>mmkd_lite: reproduced</h1>",
        f"<p>{html.escape(closing_line(summary))}.</p><p>{html.escape(facts + commit)}</p>",
        _html_table(NOTEBOOK_HEADER, _notebook_rows(summary)),
    ]
    for entry in summary["notebooks"]:
        body += _section(folder, entry)
    page = (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f"<title>mmkd_lite: reproduced</title><style>{STYLE}</style></head><body>\n"
        + "\n".join(body)
        + "\n</body></html>\n"
    )
    write_atomic(folder / "index.html", page)


def _section(folder: Path, entry: Mapping[str, Any]) -> Iterator[str]:
    """Yield the parts of a notebook's section: heading, metrics, figures and tables."""
    notebook = folder / "notebooks" / f"{entry['name']}.ipynb"
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"] if notebook.exists() else []
    yield f'<h2 id="{entry["name"]}">{html.escape(title_of(cells) or entry["name"])}</h2>'
    yield f'<p><a href="notebooks/{entry["name"]}.ipynb">executed notebook</a></p>'
    if not entry["ok"]:
        yield '<p class="failed">failed: the executed notebook shows where</p>'
    if rows := metric_rows(entry["metrics"]):
        yield _html_table(("metric", *COLUMNS), rows)
    yield from key_outputs(cells)


def title_of(cells: Sequence[Mapping[str, Any]]) -> str:
    """Return the text of a notebook's first heading, "" if it has none."""
    for cell in cells:
        for line in "".join(cell["source"]).splitlines():
            if cell["cell_type"] == "markdown" and line.startswith("# "):
                return line.removeprefix("# ").strip()
    return ""


def key_outputs(cells: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return, as HTML, the outputs of the cells tagged `report`, or else the last figures."""
    tagged = [cell for cell in cells if TAG in cell["metadata"].get("tags", [])]
    if tagged:
        return [part for cell in tagged for part in _outputs(cell)]
    figures = [part for cell in cells for part in _outputs(cell) if part.startswith("<img")]
    return figures[-LAST_FIGURES:]


def _outputs(cell: Mapping[str, Any]) -> Iterator[str]:
    """Yield a cell's outputs as HTML: figures embedded, tables as they are, text preformatted."""
    for output in cell.get("outputs", []):
        data = output.get("data", {})
        if "image/png" in data:
            picture = "".join(data["image/png"]).replace("\n", "")
            yield f'<img alt="figure" src="data:image/png;base64,{picture}">'
        elif "text/html" in data:
            yield "".join(data["text/html"])
        elif text := "".join(output.get("text", data.get("text/plain", ""))):
            yield f"<pre>{html.escape(text)}</pre>"


def _notebook_rows(summary: Mapping[str, Any]) -> list[Row]:
    return [
        (
            entry["name"],
            "ok" if entry["ok"] else "FAILED",
            f"{entry['seconds']:.0f}",
            f"{entry['seconds'] * summary['speed']:.0f}",
            str(entry["metrics"].get(HEADLINE, "")),
        )
        for entry in summary["notebooks"]
    ]


def _text(value: Any) -> str:
    """Write a metric's value: four significant digits, nothing for what is not there."""
    if value is None:
        return ""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return str(value)
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _text_table(header: Row, rows: Sequence[Row], left: Collection[int]) -> str:
    """Align columns: those in `left` to the left, the others to the right."""
    table = [header, *rows]
    widths = [max(len(row[i]) for row in table) for i in range(len(header))]
    lines = [
        "  ".join(
            cell.ljust(width) if i in left else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in table
    ]
    return "\n".join([lines[0], "-" * (sum(widths) + 2 * (len(widths) - 1)), *lines[1:]])


def _html_table(header: Row, rows: Sequence[Row]) -> str:
    return results_table([dict(zip(header, row, strict=True)) for row in rows], header, kind="html")
