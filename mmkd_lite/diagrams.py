"""Drawings of how DistillCLIP works; no data but what is passed in, and nothing random."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch

from mmkd_lite.plotting import COLOURS

TEACHER, STUDENT, GREY = COLOURS[0], COLOURS[1], "#666666"


def distillation_scheme(teacher_width: int, student_width: int) -> Figure:
    """Draw seed 003's Figure 3.1 anew: two two-tower models, their three maps, and what is compared.

    Args:
        teacher_width: d_T.
        student_width: d_S.
    """
    figure = Figure(figsize=(8.6, 4.4), layout="constrained")
    axes = figure.subplots()
    axes.set_axis_off()
    axes.set(xlim=(0, 10), ylim=(-0.2, 5))
    for x, name in ((0.9, "B pictures"), (0.9, "B captions")):
        _box(axes, x, 4.2 if "pict" in name else 0.8, name, GREY, 1.3)
    rows = (
        ("teacher, frozen", TEACHER, 3.5, teacher_width),
        ("student", STUDENT, 1.5, student_width),
    )
    for name, colour, y, width in rows:
        axes.text(3.2, y + 0.78, name, ha="center", color=colour, weight="bold")
        for offset, letter, source in ((0.35, "v", 4.2), (-0.35, "w", 0.8)):
            _box(
                axes, 3.2, y + offset, "image tower" if letter == "v" else "text tower", colour, 1.5
            )
            _arrow(axes, (1.6, source), (2.4, y + offset))
            label = rf"$\tilde Z^{letter}_{name[0].upper()}$  B x {width}"
            axes.text(4.75, y + offset, label, ha="center", va="center")
        for x, pair in ((6.4, "vw"), (7.6, "vv"), (8.8, "ww")):
            _box(axes, x, y, rf"$S_{{{pair}}}$" + "\nB x B", colour, 0.9, 0.8)
        _arrow(axes, (5.5, y), (5.9, y))
    for x, name in ((6.4, "inter"), (7.6, "intra"), (8.8, "intra")):
        axes.annotate("", (x, 3.02), (x, 1.98), arrowprops={"arrowstyle": "<->", "lw": 1.6})
        axes.text(x + 0.1, 2.5, rf"$\|\cdot\|_F^2$ {name}", va="center", fontsize=8)
    axes.text(5.0, 0.1, "the maps have one size, whatever the widths", ha="center", color=GREY)
    return figure


def map_grid(
    teacher: Sequence[np.ndarray], student: Sequence[np.ndarray], names: Sequence[str], title: str
) -> Figure:
    """Show the maps of teacher (top) and student (bottom) on one colour scale.

    Args:
        teacher: Maps (B, B), cosines.
        student: As many maps of the same size.
        names: One a column.
        title: What the figure shows.
    """
    figure = Figure(figsize=(2.3 * len(names) + 0.8, 5.0), layout="constrained")
    figure.suptitle(title, fontsize=10)
    grid = figure.subplots(2, len(names), squeeze=False)
    for row, (who, maps) in enumerate((("teacher", teacher), ("student", student))):
        for axes, values, name in zip(grid[row], maps, names, strict=True):
            picture = axes.imshow(values, cmap="cividis", vmin=-0.5, vmax=1.0)
            axes.set(title=name if row == 0 else "", xticks=[], yticks=[])
            axes.grid(visible=False)
        grid[row, 0].set_ylabel(who)
    figure.colorbar(picture, ax=grid, label="cosine", shrink=0.7)
    return figure


def _box(
    axes: Axes, x: float, y: float, text: str, colour: str, width: float, high: float = 0.5
) -> None:
    corner = (x - width / 2, y - high / 2)
    shape = FancyBboxPatch(
        corner, width, high, boxstyle="round,pad=0.03", fc="white", ec=colour, lw=1.5
    )
    axes.add_patch(shape)
    axes.text(x, y, text, ha="center", va="center", fontsize=9)


def _arrow(axes: Axes, start: tuple[float, float], end: tuple[float, float]) -> None:
    axes.annotate("", end, start, arrowprops={"arrowstyle": "->", "color": GREY})
