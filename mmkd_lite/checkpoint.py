"""Checkpoints that are whole or absent, and verified before they are used.

    checkpoints/step-00000050/tensors.safetensors   method, optimiser and random states
    checkpoints/step-00000050/state.json            everything that is not a tensor
    checkpoints/step-00000050/manifest.json         SHA-256 of the two files above

All three are written into a hidden folder beside, flushed to disk, and the folder is renamed: a
process killed at any moment leaves complete checkpoints and perhaps a hidden left-over.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load as tensors_from_bytes
from safetensors.torch import save as tensors_to_bytes
from torch import Tensor

from mmkd_lite.storage import read_json, sha256_of_bytes, sha256_of_file, write_atomic, write_json

TENSORS = "tensors.safetensors"
STATE = "state.json"
MANIFEST = "manifest.json"
UNFINISHED = ".unfinished-"
REMOVED = ".removed-"
NAME = re.compile(r"step-(\d{8,})")


class DamagedCheckpoint(Exception):
    """A checkpoint is there but is not what was written."""


@dataclass(frozen=True)
class Checkpoint:
    """A verified checkpoint: updates done, tensors by name, and everything else."""

    path: Path
    step: int
    tensors: dict[str, Tensor]
    state: dict[str, Any]


def plain_tensors(tensors: Mapping[str, Any]) -> dict[str, Tensor]:
    """Copies on the CPU that share no memory, which is what safetensors can store.

    Raises:
        ValueError: A value is not a tensor; the message names it.
    """
    for name, value in tensors.items():
        if not isinstance(value, Tensor):
            raise ValueError(
                f"state {name!r} is a {type(value).__name__}, not a tensor; "
                "keep a method's state in parameters and buffers"
            )
    return {name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()}


def save_tensors(path: Path, tensors: Mapping[str, Any]) -> str:
    """Write tensors to a safetensors file, whole or not at all; return its SHA-256.

    Raises:
        ValueError: A value is not a tensor.
        OSError: No space or no right to write.
    """
    content = tensors_to_bytes(plain_tensors(tensors))
    write_atomic(path, content)
    return sha256_of_bytes(content)


def save_checkpoint(
    folder: Path, step: int, tensors: Mapping[str, Any], state: Mapping[str, Any], keep: int = 2
) -> Path:
    """Write one checkpoint and then remove all but the newest `keep`.

    Args:
        folder: Where the checkpoints of one run live; made if need be.
        step: Updates done; gives the checkpoint its name.
        tensors: Tensors by name, on any device.
        state: JSON values.
        keep: How many checkpoints stay, at least 1.

    Raises:
        OSError: It could not be written (no space, no right); earlier checkpoints are untouched.
        ValueError: Something in it is neither a tensor nor a JSON value.
    """
    target = folder / f"step-{step:08d}"
    unfinished = folder / f"{UNFINISHED}{target.name}"
    try:
        remove_left_overs(folder)
        unfinished.mkdir(parents=True)
        checksums = {TENSORS: save_tensors(unfinished / TENSORS, tensors)}
        write_json(unfinished / STATE, {"step": step, **state})
        checksums[STATE] = sha256_of_file(unfinished / STATE)
        write_json(unfinished / MANIFEST, checksums)
        if target.exists():  # only a damaged one, which loading has passed over
            _remove(target)
        unfinished.rename(target)
        _flush_folder(folder)
    except OSError as error:
        shutil.rmtree(unfinished, ignore_errors=True)
        kept = checkpoint_paths(folder)
        rest = (
            f"the last good checkpoint is {kept[0]}" if kept else "there is no earlier checkpoint"
        )
        reason = error.strerror or error
        message = f"cannot write the checkpoint of step {step} in {folder}: {reason}; {rest}"
        raise OSError(error.errno, message) from error
    for old in checkpoint_paths(folder)[keep:]:
        _remove(old)
    return target


def checkpoint_paths(folder: Path) -> list[Path]:
    """Checkpoint folders of one run, the newest first; not verified."""
    if not folder.is_dir():
        return []
    found = [
        (int(match[1]), path) for path in folder.iterdir() if (match := NAME.fullmatch(path.name))
    ]
    return [path for _, path in sorted(found, reverse=True)]


def remove_left_overs(folder: Path) -> None:
    """Remove what a killed process left half written or half removed."""
    if folder.is_dir():
        for path in folder.iterdir():
            if path.name.startswith((UNFINISHED, REMOVED)):
                shutil.rmtree(path, ignore_errors=True)


def latest_checkpoint(folder: Path) -> Checkpoint | None:
    """Load the newest checkpoint that is whole; warn about each newer one that is not.

    Args:
        folder: Where the checkpoints of one run live.
    """
    for path in checkpoint_paths(folder):
        try:
            return load_checkpoint(path)
        except DamagedCheckpoint as damage:
            warnings.warn(f"passing over a damaged checkpoint: {damage}", stacklevel=2)
    return None


def load_checkpoint(path: Path) -> Checkpoint:
    """Load one checkpoint after checking it against its manifest.

    Raises:
        DamagedCheckpoint: A file is missing, cut short or altered.
    """
    try:
        checksums = read_json(path / MANIFEST)
        content = {name: (path / name).read_bytes() for name in (TENSORS, STATE)}
        altered = [name for name in content if sha256_of_bytes(content[name]) != checksums[name]]
        if altered:
            raise DamagedCheckpoint(f"{path}: {', '.join(altered)} cut short or altered")
        state = read_json(path / STATE)
        return Checkpoint(path, state.pop("step"), tensors_from_bytes(content[TENSORS]), state)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, SafetensorError) as error:
        raise DamagedCheckpoint(f"{path} cannot be read ({error})") from None


def _remove(path: Path) -> None:
    """Remove a folder so that no half of it keeps its name."""
    hidden = path.with_name(f"{REMOVED}{path.name}")
    shutil.rmtree(hidden, ignore_errors=True)
    path.rename(hidden)
    shutil.rmtree(hidden, ignore_errors=True)


def _flush_folder(folder: Path) -> None:
    """Force the new name to the disk (POSIX), so that it survives a power cut."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
