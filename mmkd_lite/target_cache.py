"""Teacher targets computed once: batches that bring their targets, so that the teacher need not run.

`train.targets` chooses: "live" asks the teacher at every step, "cached" computes the targets of all
steps first and keeps them in the cache, and a folder names a cache made earlier. A cache belongs to
one teacher, one stream of pictures and one way of asking; any other is refused.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from mmkd_lite.config import RunConfig, differing_fields, to_dict
from mmkd_lite.data.batches import Batch, global_rows
from mmkd_lite.methods.base import TARGET, Method
from mmkd_lite.storage import cache_root, load_cached, load_or_build

LIVE, CACHED = "live", "cached"
CHUNK = 256
LARGEST = 8 * 2**30
"""Largest cache in bytes; it is held in memory."""


class CachedTargets:
    """A source of pairs whose batches also hold the teacher's targets, under "target:NAME".

    Row p of the cache belongs to position p of the stream, so it serves every batch size. Targets
    are kept in float32, as the teacher gave them.

    Args:
        pairs: The stream; its batches must be a pure function of the position.
        method: Gives `targets` and the teacher; both are used only if there is no cache yet.
        config: Of the run; `train.targets` is "cached" or the folder of an earlier cache.

    Raises:
        ValueError: The method has no targets, the cache would be too large, or the folder's cache was
            made with another teacher, stream or setting (the fields are named).
        FileNotFoundError: The folder holds no cache.

    Source: torchdistill's and CLIP-KD's practice of storing teacher outputs. Used in notebooks/05_teachers.ipynb.
    """

    def __init__(self, pairs: Any, method: Method, config: RunConfig) -> None:
        self.pairs = pairs
        rows = config.train.steps * config.train.batch_size * _processes()
        identity = {**target_identity(pairs, method, config), "rows": rows}
        if config.train.targets == CACHED:
            arrays = load_or_build("targets", identity, lambda: _compute(pairs, method, rows))
        else:
            arrays = _from_folder(Path(config.train.targets).expanduser(), identity)
        self.targets = {f"{TARGET}{name}": torch.as_tensor(a) for name, a in arrays.items()}

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["pairs"], name)

    def batch(self, step: int, batch_size: int, rank: int = 0, world: int = 1) -> Batch:
        """Return the pairs' batch with its targets."""
        rows = torch.as_tensor(global_rows(step, batch_size, rank, world))
        batch: Batch = self.pairs.batch(step, batch_size, rank, world)
        return batch | {name: values[rows] for name, values in self.targets.items()}


def target_identity(pairs: Any, method: Method, config: RunConfig) -> dict[str, Any]:
    """Return everything that decides the targets: teacher, method's options, pictures, augmentation.

    Raises:
        ValueError: The method has no teacher.
    """
    if method.teacher is None:
        raise ValueError(
            f"method {config.method!r} has no teacher whose targets could be cached; use train.targets=live"
        )
    stream = getattr(pairs, "pairs", pairs)
    augmentation = {
        name: list(value) if isinstance(value := getattr(stream, name), tuple) else value
        for name in ("augment", "crop_scale", "flip")
        if hasattr(stream, name)
    }
    return {
        "teacher": method.teacher.fingerprint(),
        "method": config.method,
        "options": to_dict(config)["options"],
        "data": dataclasses.asdict(config.data),
        "split": getattr(stream, "split", "train"),
        "stream": type(stream).__name__,
        "stream_seed": int(getattr(stream, "seed", 0)),
        "augmentation": augmentation,
    }


def cache_folders() -> list[Path]:
    """Return the folders of all target caches, for `train.targets=FOLDER`."""
    return sorted(path.parent for path in (cache_root() / "targets").glob("*/manifest.json"))


def _processes() -> int:
    from mmkd_lite.losses.gather import world

    return world()[1]


@torch.no_grad()
def _compute(pairs: Any, method: Method, rows: int) -> dict[str, np.ndarray]:
    """Ask the teacher for the first `rows` positions of the stream."""
    device = next(method.parameters()).device
    parts: dict[str, list[Tensor]] = {}
    for step in tqdm(range(-(-rows // CHUNK)), "teacher targets", disable=None):
        batch = {k: v.to(device) for k, v in pairs.batch(step, CHUNK).items()}
        targets = method.targets(batch)
        if not targets:
            raise ValueError(f"{type(method).__name__} has no targets; use train.targets=live")
        _refuse_huge(targets, rows)
        for name, value in targets.items():
            parts.setdefault(name, []).append(value.float().cpu())
    return {name: torch.cat(values)[:rows].numpy() for name, values in parts.items()}


def _refuse_huge(targets: Mapping[str, Tensor], rows: int) -> None:
    size = sum(4 * value[0].numel() for value in targets.values()) * rows
    if size > LARGEST:
        raise ValueError(
            f"the targets of {rows} pictures would take {size / 2**30:.1f} GiB of memory, more than "
            f"{LARGEST / 2**30:.0f}; use train.targets=live or fewer steps"
        )


def _from_folder(folder: Path, identity: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Load the cache in a folder after checking that it is the one that is wanted."""
    arrays, made_with = load_cached(folder)
    enough = made_with.get("rows", 0) >= identity["rows"]
    wanted = {**identity, "rows": made_with.get("rows")} if enough else identity
    differing = differing_fields(made_with, wanted)
    if differing:
        raise ValueError(
            f"the targets in {folder} were made with other settings ({', '.join(differing)}); "
            "use train.targets=cached to make the right ones"
        )
    return arrays
