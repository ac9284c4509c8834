"""Figures that several notebooks need. Each function returns a Figure and draws nothing random.

The figures are made without pyplot, so that a notebook shows each once: as its cell's value.
"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""Okabe and Ito's colours, which readers with any colour vision tell apart."""


def bars(
    values: Mapping[str, Sequence[float] | float],
    *,
    title: str,
    label: str,
    groups: Sequence[str] = ("",),
    half_width: Mapping[str, Sequence[float] | float] | None = None,
    chance: Sequence[float] | float | None = None,
    chance_label: str = "chance",
) -> Figure:
    """Draw one bar a method and group, with its interval, its number and the chance level.

    Without groups the bars lie, each beside its name.

    Args:
        values: Method name to one value a group (or one number when there is one group).
        title: What the figure shows.
        label: Name and unit of the value axis.
        groups: Names under the groups of bars, such as "R@1", "R@5".
        half_width: Method name to the half width of its interval, shaped like `values`; nan for none.
        chance: Level that needs no learning, one for all groups or one a group.
        chance_label: What to call that level in the legend.

    Raises:
        ValueError: If a method has another number of values than there are groups.
    """
    if tuple(groups) == ("",):
        return _lying_bars(values, half_width or {}, chance, chance_label, title, label)
    figure, axes = _one_axes(title)
    width = 0.8 / max(1, len(values))
    half_width = half_width or {}
    for index, (name, row) in enumerate(values.items()):
        heights = _row(row, len(groups), name)
        errors = np.nan_to_num(_row(half_width.get(name, 0.0), len(groups), name, repeat=True))
        left = np.arange(len(groups)) - 0.4 + width * (index + 0.5)
        colour = COLOURS[index % len(COLOURS)]
        whiskers = errors if errors.any() else None
        axes.bar(left, heights, 0.92 * width, yerr=whiskers, capsize=3, color=colour, label=name)
        for x, height, error in zip(left, heights, errors, strict=True):
            _number(axes, height, (x, max(height, 0.0) + error), (0, 2), ha="center")
    if chance is not None:
        levels = _row(chance, len(groups), chance_label, repeat=True)
        ends = np.arange(len(groups))
        axes.hlines(levels, ends - 0.46, ends + 0.46, "black", "dashed", lw=1.2, label=chance_label)
    axes.set_xticks(range(len(groups)), groups)
    axes.set_ylabel(label)
    axes.margins(y=0.12)
    axes.grid(axis="x", visible=False)
    _legend_beside(axes, len(values) + (chance is not None))
    return figure


def _lying_bars(
    values: Mapping[str, Sequence[float] | float],
    half_width: Mapping[str, Sequence[float] | float],
    chance: Sequence[float] | float | None,
    chance_label: str,
    title: str,
    label: str,
) -> Figure:
    """Draw one horizontal bar a name, the first on top."""
    figure, axes = _one_axes(title, (7.0, 1.1 + 0.3 * len(values)))
    for place, (name, value) in enumerate(values.items()):
        length = _row(value, 1, name)[0]
        error = np.nan_to_num(_row(half_width.get(name, 0.0), 1, name)[0])
        axes.barh(place, length, 0.75, xerr=error or None, capsize=3, color=COLOURS[0])
        _number(axes, length, (max(length, 0.0) + error, place), (3, 0), va="center")
    if chance is not None:
        level = _row(chance, 1, chance_label)[0]
        axes.axvline(level, color="black", ls="dashed", lw=1.2, label=chance_label)
        axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0))
    axes.set_yticks(range(len(values)), list(values))
    axes.invert_yaxis()
    axes.set_xlabel(label)
    axes.margins(x=0.12)
    axes.grid(axis="y", visible=False)
    return figure


def learning_curves(
    rows: Sequence[Mapping[str, Any]] | Mapping[str, Sequence[Mapping[str, Any]]],
    terms: Sequence[str] = ("loss",),
    *,
    title: str = "Training",
    smooth: int = 1,
    label: str = "loss",
) -> Figure:
    """Draw logged values against the training step, one line a term (and a run).

    Args:
        rows: `run.metrics()`, or run name to its metrics; each row has "step" and some terms.
        terms: Which logged values to draw.
        title: What the figure shows.
        smooth: Number of steps in the running mean; 1 draws the raw values.
        label: Name of the value axis.

    Raises:
        ValueError: If no row holds a term; lists what the rows do hold.
    """
    runs = rows if isinstance(rows, Mapping) else {"": rows}
    figure, axes = _one_axes(title)
    for name, metrics in runs.items():
        for term in terms:
            points = [(row["step"], row[term]) for row in metrics if term in row]
            if not points:
                held = sorted({key for row in metrics for key in row})
                raise ValueError(f"no row holds {term!r}; the rows hold: {', '.join(held)}")
            steps, values = np.asarray(points, dtype=float).T
            axes.plot(*_running_mean(steps, values, smooth), label=" ".join((name, term)).strip())
    axes.set_xlabel("training step" + (f" (mean of {smooth})" if smooth > 1 else ""))
    axes.set_ylabel(label)
    if len(runs) * len(terms) > 1:
        axes.legend()
    return figure


def image_grid(
    images: Any,
    captions: Sequence[str] = (),
    *,
    columns: int = 6,
    title: str = "",
    size: float = 1.5,
    characters: int = 24,
) -> Figure:
    """Show pictures in rows, each with its caption below it.

    Args:
        images: (N, 3, H, W) or (N, H, W, 3), uint8 or float in [0, 1]; array or tensor.
        captions: One text a picture, wrapped here; fewer leave the last pictures bare.
        columns: Pictures in a row.
        title: What the figure shows.
        size: Side of a picture in inches.
        characters: Length of a caption line.
    """
    pictures = [_channels_last(image) for image in images]
    texts = [textwrap.fill(text, characters) for text in captions]
    lines = max((text.count("\n") + 1 for text in texts), default=0)
    columns = min(columns, len(pictures))
    rows = -(-len(pictures) // columns)
    height = rows * (size + 0.17 * lines + 0.1) + (0.3 if title else 0.0)
    figure = Figure(figsize=(columns * size * 1.12, height), layout="constrained")
    if title:
        figure.suptitle(title, fontsize=10)
    for index, axes in enumerate(np.atleast_1d(figure.subplots(rows, columns)).flat):
        axes.set_axis_off()
        if index < len(pictures):
            axes.imshow(pictures[index], interpolation="nearest")
        if index < len(texts):
            below = {"transform": axes.transAxes, "ha": "center", "va": "top"}
            axes.text(0.5, -0.04, texts[index], fontsize=7.5, **below)
    return figure


def heatmap(
    matrix: Any,
    *,
    title: str,
    rows: Sequence[str] = (),
    columns: Sequence[str] = (),
    row_label: str = "",
    column_label: str = "",
    form: str = "{:.2f}",
    limits: tuple[float, float] | None = None,
) -> Figure:
    """Draw a matrix in colour; the values stand in the cells while they are few enough to read.

    Args:
        matrix: (R, C) numbers; array or tensor.
        title: What the figure shows.
        rows: Names of the R rows.
        columns: Names of the C columns.
        row_label: What the rows are.
        column_label: What the columns are.
        form: Format of a written value.
        limits: Values at the ends of the colour scale; the matrix's own when left out.
    """
    values = np.asarray(matrix.detach().cpu() if hasattr(matrix, "detach") else matrix, dtype=float)
    low, high = limits or (float(np.nanmin(values)), float(np.nanmax(values)))
    figure, axes = _one_axes(title, (1.6 + 0.6 * values.shape[1], 1.2 + 0.42 * values.shape[0]))
    picture = axes.imshow(values, cmap="cividis", vmin=low, vmax=high, aspect="auto")
    figure.colorbar(picture, ax=axes)
    longest = max(map(len, columns), default=0)
    axes.set_xticks(range(len(columns)), columns, rotation=30 if longest > 6 else 0)
    axes.set_yticks(range(len(rows)), rows)
    axes.set_xlabel(column_label)
    axes.set_ylabel(row_label)
    axes.grid(visible=False)
    if values.size <= 150:
        for (row, column), value in np.ndenumerate(values):
            shade = "white" if value < (low + high) / 2 else "black"
            text = form.format(value)
            axes.text(column, row, text, ha="center", va="center", color=shade, fontsize=8)
    return figure


def _one_axes(title: str, size: tuple[float, float] | None = None) -> tuple[Figure, Axes]:
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots()
    axes.set_title(title)
    return figure, axes


def _number(
    axes: Axes, value: float, end: tuple[float, float], points: tuple[float, float], **where: Any
) -> None:
    """Write a bar's value beyond its end, some points away."""
    axes.annotate(f"{value:.3g}", end, points, textcoords="offset points", fontsize=8, **where)


def _row(
    value: Sequence[float] | float, length: int, name: str, repeat: bool = False
) -> np.ndarray:
    """Return one number a group."""
    row = np.atleast_1d(np.asarray(value, dtype=float))
    if repeat and row.size == 1:
        row = np.repeat(row, length)
    if row.shape != (length,):
        raise ValueError(f"{name!r} has {row.size} values for {length} groups; give one a group")
    return row


def _running_mean(
    steps: np.ndarray, values: np.ndarray, window: int
) -> tuple[np.ndarray, np.ndarray]:
    """Average over `window` consecutive values; the step is that of the last one."""
    window = max(1, min(window, len(values)))
    return steps[window - 1 :], np.convolve(values, np.full(window, 1.0 / window), mode="valid")


def _legend_beside(axes: Axes, entries: int) -> None:
    """Put a legend where no bar can hide behind it."""
    if entries > 1:
        axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0))


def _channels_last(image: Any) -> np.ndarray:
    """Return a picture as (H, W, 3) that `imshow` takes."""
    picture = np.asarray(image.detach().cpu() if hasattr(image, "detach") else image)
    picture = np.moveaxis(picture, 0, -1) if picture.shape[0] == 3 else picture
    return picture if picture.dtype == np.uint8 else np.clip(picture, 0.0, 1.0)
