"""The parts of README.md that are made, not typed: the table of notebooks and the picture."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmkd_lite.comparison import ALL, comparison_tables, read_comparison
from mmkd_lite.coverage import method_table
from mmkd_lite.report import HEADLINE, title_of
from mmkd_lite.reproduce import find_notebooks
from mmkd_lite.results import mean_and_interval, read_results, results_table
from mmkd_lite.storage import write_atomic

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from PIL import Image

BEGIN = "<!-- {}:begin (python -m mmkd_lite refresh --readme) -->"
END = "<!-- {}:end -->"
PICTURE = "data/readme_picture.png"
COMPARISON = "data/results/comparison.md"
PICTURE_BYTES = 200_000
"""Largest size of the picture."""

SCENES = 12
"""Scenes in the picture."""

COMPARED = ("shre:both", "shre:contrast_only", "shre:kl_only")
"""Variants whose committed comparison the picture shows."""

RECALLS = ("composition.i2t_r1", "composition.i2t_r5", "composition.i2t_r10")


def write_table(root: Path) -> None:
    """Renew the tables of notebooks and of methods between their markers in README.md.

    Args:
        root: The repository root.

    Raises:
        ValueError: If README.md lacks a marker.
    """
    path = root / "README.md"
    text = path.read_text(encoding="utf-8")
    for name, table in (("notebooks", notebook_table), ("methods", method_table)):
        first, last = BEGIN.format(name), END.format(name)
        before, begin, rest = text.partition(first)
        _, end, after = rest.partition(last)
        if not (begin and end):
            raise ValueError(f"README.md lacks a marker; it needs the lines {first!r} and {last!r}")
        text = f"{before}{begin}\n{table(root)}\n{end}{after}"
    write_atomic(path, text)


def write_comparison(root: Path) -> None:
    """Renew data/results/comparison.md, the table of all methods; see `comparison.ALL`."""
    write_atomic(root / COMPARISON, comparison_page(root))


def comparison_page(root: Path) -> str:
    """Return the page that compares all methods, from the runs that are committed.

    Args:
        root: The repository root.
    """
    found = read_comparison(ALL, folder=root / "data" / "results", partial=True)
    return (
        "# All methods: same start, data and steps\n\n"
        "Laptop scale, per cent; 95 % intervals over seeds, in brackets. Differences are paired by seed and in mean "
        "recall; the smallest detectable effect is at 80 % power. `seconds` are the least of any seed, since machines "
        "had other work.\n"
        "Made from `compare/` by `python -m mmkd_lite refresh --readme`; runs by `python -m mmkd_lite compare all`.\n\n"
        f"{comparison_tables(found)}\n"
    )


def notebook_table(root: Path) -> str:
    """Return the Markdown table of all notebooks: idea, module, time, result at laptop scale."""
    recorded = {
        record["configuration"]["notebook"]: record["metrics"]
        for record in read_results("notebooks/*", root / "data" / "results")
    }
    notebooks = find_notebooks(root / "notebooks")
    return results_table([notebook_row(path, recorded.get(path.stem, {})) for path in notebooks])


def notebook_row(path: Path, metrics: Mapping[str, Any]) -> dict[str, str]:
    """Return a notebook's row; what it is about stands in its own first cell.

    Args:
        path: The notebook.
        metrics: What `refresh` recorded of it; empty before it was refreshed.
    """
    import nbformat

    cells = nbformat.read(path, as_version=4).cells
    paragraphs = [" ".join(part.split()) for part in cells[0].source.split("\n\n")[1:]]
    modules = re.findall(r"`(mmkd_lite/[\w/]+(?:\.py)?)`", cells[0].source)
    seconds = metrics.get("seconds_at_nominal_speed")
    return {
        "": f"[{path.name[:2]}](notebooks/{path.name})",
        "notebook": title_of(cells).partition(" · ")[2],
        "idea": paragraphs[0] if paragraphs else "",
        "module": ", ".join(f"`{module}`" for module in modules),
        "time": f"{seconds:.0f} s" if seconds else "–",
        "result at laptop scale": str(metrics.get(HEADLINE, "–")),
    }


def write_picture(root: Path) -> Path:
    """Draw README's picture: scenes with captions and, once compared, the methods' retrieval.

    Args:
        root: The repository root.

    Returns:
        The path of the picture.

    Raises:
        ValueError: If the picture would be larger than `PICTURE_BYTES`.
    """
    from PIL import Image

    from mmkd_lite.notebook import apply_figure_style

    apply_figure_style()
    parts = [_pixels(figure) for figure in (_scenes(), _comparison(root)) if figure is not None]
    width = max(part.width for part in parts)
    picture = Image.new("RGB", (width, sum(part.height for part in parts)), "white")
    top = 0
    for part in parts:
        picture.paste(part, ((width - part.width) // 2, top))
        top += part.height
    buffer = io.BytesIO()
    picture.quantize(128).save(buffer, "png", optimize=True)
    if buffer.tell() > PICTURE_BYTES:
        raise ValueError(
            f"the picture has {buffer.tell()} bytes; at most {PICTURE_BYTES} are meant"
        )
    return write_atomic(root / PICTURE, buffer.getvalue())


def _scenes() -> Figure:
    """Return six test scenes with one caption each."""
    from mmkd_lite.config import DataConfig
    from mmkd_lite.data.scenes import EmojiScenes
    from mmkd_lite.plotting import image_grid

    batch = EmojiScenes(DataConfig(image_size=128), "composition").batch(range(SCENES))
    return image_grid(batch["image"], [five[-1] for five in batch["captions"]], size=1.4)


def _comparison(root: Path) -> Figure | None:
    """Return the committed comparison at laptop scale as bars, None before there is one."""
    from mmkd_lite.plotting import bars

    try:
        found = read_comparison(COMPARED, folder=root / "data" / "results")
    except FileNotFoundError:
        return None
    cells = {
        label: [mean_and_interval(list(found.values(label, key).values())) for key in RECALLS]
        for label in COMPARED
    }
    chance = [key.replace(".", ".chance_") for key in RECALLS]
    seeds = len(found.records[COMPARED[0]])
    return bars(
        {label: [cell.mean for cell in row] for label, row in cells.items()},
        half_width={label: [cell.high - cell.mean for cell in row] for label, row in cells.items()},
        chance=[next(iter(found.values(COMPARED[0], key).values())) for key in chance],
        groups=("R@1", "R@5", "R@10"),
        label="per cent of pictures",
        title=f"Pictures that find a caption of theirs (mean of {seeds} seeds, 95 % intervals)",
    )


def _pixels(figure: Figure) -> Image.Image:
    """Render a figure."""
    from PIL import Image

    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=100, facecolor="white")
    return Image.open(buffer).convert("RGB")
