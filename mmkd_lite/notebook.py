"""What the first code cell of every notebook calls: `context = setup(SCALE, SEED, DEVICE, ...)`."""

from __future__ import annotations

import importlib.metadata
import platform
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mmkd_lite.config import effective_scale
from mmkd_lite.speed import use_threads

LIBRARIES = ("torch", "timm", "transformers", "numpy")
"""Whose versions are printed and recorded: the libraries that decide results."""

FIGURE_STYLE: dict[str, Any] = {
    "figure.figsize": (7.0, 3.6),
    "figure.dpi": 90,
    "savefig.dpi": 90,
    "figure.constrained_layout.use": True,
    "font.size": 10,
    "axes.titlesize": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.alpha": 0.25,
    "legend.frameon": False,
    "image.interpolation": "nearest",
}
"""Matplotlib settings shared by all notebooks and by the report."""


@dataclass(frozen=True)
class Context:
    """Where and how a notebook runs.

    Attributes:
        scale: "tiny", "laptop" or "full", after `MMKD_SCALE` had its say.
        seed: Seed of everything random in the notebook.
        device: A torch device name, such as "cpu" or "cuda".
        root: The repository root, whatever folder the notebook was started from.
        data_dir: Folder of a downloaded data set for full-scale runs, else None.
        out_dir: Where results go, else None: the notebook then writes no result file.
        overrides: Dotted settings such as "train.steps=20", handed to `config.resolve`.
    """

    scale: str
    seed: int
    device: str
    root: Path
    data_dir: Path | None
    out_dir: Path | None
    overrides: str


def repository_root() -> Path:
    """Return the folder that holds `mmkd_lite/`, `notebooks/` and `data/`."""
    return Path(__file__).resolve().parents[1]


def setup(
    scale: str = "laptop",
    seed: int = 0,
    device: str = "cpu",
    out_dir: str = "",
    data_dir: str = "",
    overrides: str = "",
    *,
    full_scale_needs: str = "",
) -> Context:
    """Prepare a notebook: scale, seeds, threads, figure style; print versions and device.

    Args:
        scale: The `SCALE` parameter; `MMKD_SCALE` beats it.
        seed: The `SEED` parameter, at least 0.
        device: The `DEVICE` parameter, a torch device name.
        out_dir: The `OUT_DIR` parameter; "" writes no results.
        data_dir: The `DATA_DIR` parameter; "" means no downloaded data.
        overrides: The `OVERRIDES` parameter, dotted settings separated by commas.
        full_scale_needs: Name of the loader this notebook still lacks at full scale; "" for a
            notebook that computes the same thing at every scale or has its full-scale path.

    Returns:
        The resolved settings. Later cells read these rather than the parameters.

    Raises:
        ValueError: If the scale is unknown, the device is absent, or full scale is asked of a
            notebook whose loader is missing.
    """
    chosen = effective_scale(scale)
    if chosen == "full" and full_scale_needs:
        raise ValueError(
            f"this notebook cannot run at SCALE=full yet: it lacks the {full_scale_needs}; "
            "use SCALE=laptop, or notebook 15, which reads COCO at full scale"
        )
    _seed_everything(seed)
    _prepare_torch(device)
    _show_figures_inline()
    apply_figure_style()
    print(versions_line())
    print(f"scale {chosen} · seed {seed} · device {device_line(device)}")
    return Context(
        scale=chosen,
        seed=seed,
        device=device,
        root=repository_root(),
        data_dir=Path(data_dir) if data_dir else None,
        out_dir=Path(out_dir) if out_dir else None,
        overrides=overrides,
    )


def apply_figure_style() -> None:
    """Set matplotlib's defaults to `FIGURE_STYLE` and to the colours of `plotting`."""
    from cycler import cycler
    from matplotlib import style

    from mmkd_lite.plotting import COLOURS

    style.use({**FIGURE_STYLE, "axes.prop_cycle": cycler(color=COLOURS)})


def versions() -> dict[str, str]:
    """Return the versions of Python, of this package and of `LIBRARIES`."""
    from mmkd_lite import __version__

    found = {"python": platform.python_version(), "mmkd_lite": __version__}
    return found | {name: importlib.metadata.version(name) for name in LIBRARIES}


def versions_line() -> str:
    """Return the versions as one line of text."""
    return " · ".join(f"{name} {version}" for name, version in versions().items())


def device_line(device: str) -> str:
    """Describe a device without naming the machine: kind, threads or GPU model."""
    import torch

    if device.startswith("cuda"):
        return f"{device} ({torch.cuda.get_device_name(device)})"
    count = torch.get_num_threads()
    return f"{device} ({count} thread{'s' * (count != 1)})" if device == "cpu" else device


def _show_figures_inline() -> None:
    """Let a notebook show figures that pyplot did not make; nothing to do outside a notebook."""
    from IPython import get_ipython

    shell = get_ipython()
    if shell is not None and hasattr(shell, "kernel"):
        shell.run_line_magic("matplotlib", "inline")


def _seed_everything(seed: int) -> None:
    """Seed the global generators; library code uses local ones, toy cells may use these."""
    import torch

    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002  (toy cells may use the global generator)
    torch.manual_seed(seed)


def _prepare_torch(device: str) -> None:
    """Check the device; fix the number of threads and how tensors are printed."""
    import torch

    if device.startswith("cuda") and not torch.cuda.is_available():
        raise ValueError(f"device {device!r} is not available here; use DEVICE=cpu")
    use_threads()
    torch.set_printoptions(precision=4, sci_mode=False)
    np.set_printoptions(precision=4, suppress=True)
