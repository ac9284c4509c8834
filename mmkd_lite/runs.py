"""The folder of a run: where it is, what lies in it, and reading it back.

    config.json          the configuration (`config.from_dict` rebuilds it)
    metrics.jsonl        one line a logged step: step, loss, terms, learning_rate, gradient_norm
    timings.jsonl        step, seconds so far, seconds spent waiting for data
    checkpoints/         see `checkpoint.py`
    model.safetensors    the method's state, once training is over
    finished.json        written last; says that the run is complete

metrics.jsonl and model.safetensors are the same bytes whether or not a CPU run was interrupted;
everything that depends on the clock is in the other files.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from safetensors.torch import load_file

from mmkd_lite.checkpoint import checkpoint_paths
from mmkd_lite.config import RunConfig, differing_fields, from_dict, to_dict
from mmkd_lite.methods import Method, build
from mmkd_lite.storage import canonical_json, read_json, sha256_of_bytes, sha256_of_file

# Settings that change where and how a run works but not one bit of its result.
WITHOUT_EFFECT = (
    "out_dir",
    "data_dir",
    "train.workers",
    "train.checkpoint_every",
    "train.targets",
)
FILES = ("finished.json", "model.safetensors", "config.json", "metrics.jsonl", "timings.jsonl")


def runs_root() -> Path:
    """Folder of all runs: the environment variable MMKD_RUNS, else `runs` of the project."""
    chosen = os.environ.get("MMKD_RUNS", "")
    return Path(chosen).expanduser() if chosen else Path(__file__).parents[1] / "runs"


def effective_settings(config: RunConfig | Mapping[str, Any]) -> dict[str, Any]:
    """The configuration as a tree without the settings that do not change the result."""
    settings = to_dict(config) if isinstance(config, RunConfig) else json.loads(json.dumps(config))
    for field in WITHOUT_EFFECT:
        *parents, name = field.split(".")
        node = settings
        for parent in parents:
            node = node.get(parent, {})
        node.pop(name, None)
    return settings


def run_folder(config: RunConfig) -> Path:
    """Folder of the run that `config` describes: `out_dir`, or one named after the settings."""
    if config.out_dir:
        return Path(config.out_dir).expanduser()
    short_hash = sha256_of_bytes(canonical_json(effective_settings(config)).encode())[:8]
    return runs_root() / f"{config.method}__{config.scale}__seed{config.seed}__{short_hash}"


@dataclass(frozen=True)
class Run:
    """A run's folder and configuration; everything else is read from the folder.

    Attributes:
        dir: The folder.
        config: What was run.
    """

    dir: Path
    config: RunConfig

    @classmethod
    def open(cls, folder: str | Path) -> Run:
        """Open the run in a folder.

        Raises:
            FileNotFoundError: There is no run.
        """
        path = Path(folder)
        if not (path / "config.json").exists():
            raise FileNotFoundError(
                f"{path} holds no run (no config.json); start one with fit(config)"
            )
        return cls(path, from_dict(read_json(path / "config.json")))

    @property
    def checkpoints(self) -> Path:
        """Folder of the checkpoints."""
        return self.dir / "checkpoints"

    @property
    def finished(self) -> bool:
        """Whether training is over and the final weights are the ones that were written."""
        marker, weights = self.dir / "finished.json", self.dir / "model.safetensors"
        if not marker.exists():
            return False
        if weights.exists() and sha256_of_file(weights) == read_json(marker)["model_sha256"]:
            return True
        warnings.warn(
            f"{weights} is missing or altered; it is made again from a checkpoint", stacklevel=2
        )
        return False

    @property
    def seconds(self) -> float:
        """Seconds of training so far, interruptions not counted."""
        rows = read_rows(self.dir / "timings.jsonl")
        return float(rows[-1]["seconds"]) if rows else 0.0

    def metrics(self) -> list[dict[str, Any]]:
        """The logged steps in order: step, loss, every term, learning_rate, gradient_norm."""
        return read_rows(self.dir / "metrics.jsonl")

    def load_method(self, method: Method | None = None) -> Method:
        """Return the method with its trained weights, in eval mode.

        Args:
            method: Put the weights into this one instead of building one from the configuration.

        Raises:
            FileNotFoundError: Training is not over.
        """
        if not self.finished:
            raise FileNotFoundError(
                f"the run in {self.dir} is not finished; call fit(config) to complete it"
            )
        method = build(self.config) if method is None else method
        method.load_state_dict(load_file(self.dir / "model.safetensors"))
        return method.eval()

    def refuse_other_configuration(self, written: Mapping[str, Any] | None = None) -> None:
        """Check that what lies in the folder belongs to this configuration.

        Args:
            written: The settings found there; by default those in config.json or a checkpoint.

        Raises:
            ValueError: They differ; the message names the fields.
        """
        written = self._written_settings() if written is None else written
        if written is not None:
            differing = differing_fields(
                effective_settings(written), effective_settings(self.config)
            )
            if differing:
                raise ValueError(
                    f"{self.dir} holds a run with other settings, namely {', '.join(differing)}. "
                    "Choose another out_dir, or start over with fit(config, resume=False)"
                )

    def _written_settings(self) -> dict[str, Any] | None:
        if (self.dir / "config.json").exists():
            return read_json(self.dir / "config.json")
        for path in checkpoint_paths(self.checkpoints):
            with contextlib.suppress(ValueError, OSError, KeyError):
                return read_json(path / "state.json")["config"]
        return None

    def clear(self) -> None:
        """Remove what an earlier run left in the folder, and nothing else."""
        for name in FILES:
            (self.dir / name).unlink(missing_ok=True)
        shutil.rmtree(self.checkpoints, ignore_errors=True)

    def last_checkpoint(self) -> str:
        """Say in words where the newest checkpoint is."""
        paths = checkpoint_paths(self.checkpoints)
        return f"the last good checkpoint is {paths[0]}" if paths else "there is no checkpoint yet"


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Rows of a JSON-lines file; an unfinished last line and a missing file count as nothing."""
    if not path.exists():
        return []
    whole, _, _ = path.read_text(encoding="utf-8").rpartition("\n")
    return [json.loads(line) for line in whole.splitlines()]


class JsonLines:
    """A JSON-lines file that is appended to, cut back first to what a checkpoint vouches for.

    Args:
        path: The file; made if need be.
        keep: Number of bytes to keep.
    """

    def __init__(self, path: Path, keep: int = 0) -> None:
        path.touch()
        if path.stat().st_size < keep:
            warnings.warn(
                f"{path} lost lines that were written before the checkpoint", stacklevel=2
            )
        else:
            os.truncate(path, keep)
        self.path = path
        self.file = path.open("ab", buffering=0)

    def __enter__(self) -> JsonLines:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.file.close()

    def append(self, row: Mapping[str, Any]) -> None:
        """Add one row; other processes see it at once.

        Raises:
            OSError: No space left.
        """
        try:
            self.file.write((json.dumps(row, allow_nan=False) + "\n").encode())
        except OSError as error:
            message = f"cannot write {self.path}: {error.strerror}; make room and call fit again"
            raise OSError(error.errno, message) from error

    def size(self) -> int:
        """Force the rows to the disk and return the length of the file in bytes."""
        os.fsync(self.file.fileno())
        return os.fstat(self.file.fileno()).st_size
