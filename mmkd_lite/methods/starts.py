"""Trained models that finetuning starts from: shipped teachers, finished runs, runs of a comparison."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from mmkd_lite.config import RunConfig, resolve
from mmkd_lite.teachers import SHIPPED, load_teacher

PUBLISHED = ("transformers:", "transformers-random:")


class Start(NamedTuple):
    """A trained model, the side of the pictures it reads, and its run's configuration (None for a teacher)."""

    model: Any
    image_size: int
    config: RunConfig | None


def open_start(start: str, config: RunConfig) -> Start:
    """Load the model that `options.start` names; all its parameters may be trained.

    Args:
        start: A shipped teacher ("clip", "random-clip"), "transformers:NAME" or "transformers-random:NAME", the
            folder of a finished run, or "method:variant": the run of that comparison with the same scale and seed.
        config: Of the run that starts there.

    Raises:
        ValueError: Unknown name, or a run that is missing or not finished.
        OSError: Published weights that cannot be had here.
    """
    from mmkd_lite.runs import Run

    if start.removeprefix("random-") in SHIPPED or start.startswith(PUBLISHED):
        teacher = load_teacher(start, seed=config.seed)
        return Start(teacher.model.requires_grad_(True), teacher.image_size, None)
    try:
        run = Run.open(_folder(start, config))
        return Start(run.load_method(), run.config.data.image_size, run.config)
    except FileNotFoundError as error:
        label = _labelled(start, config)
        hint = f"; make it: fit(resolve(*{label}, seed={config.seed}))" if label else ""
        raise ValueError(
            f"options.start={start!r} must be clip, random-clip or another teacher, transformers:NAME, the folder of "
            f"a finished run, or the method:variant of one with this scale and seed: {error}{hint}"
        ) from error


def _folder(start: str, config: RunConfig) -> Path:
    from mmkd_lite.runs import run_folder

    label = _labelled(start, config)
    if label is None:
        return Path(start).expanduser()
    return run_folder(resolve(*label, seed=config.seed))


def _labelled(start: str, config: RunConfig) -> tuple[str, str, dict[str, Any]] | None:
    """Return method, scale and changes of "method:variant"; None for anything else."""
    from mmkd_lite.methods import METHODS

    method, _, variant = start.partition(":")
    variants = METHODS[method].variants if method in METHODS else {}
    return (method, config.scale, variants[variant]) if variant in variants else None
