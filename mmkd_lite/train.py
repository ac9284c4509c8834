"""One plain training loop over accelerate, with exact resume.

Every step is a pure function of what a checkpoint holds: the batch and the learning rate depend
on the step alone, and the states of method, optimiser and random numbers are saved. On a CPU a
run that was killed at any moment and resumed therefore ends with the same bits as one that was
not, given the same number of threads and the same torch.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs
from accelerate.state import AcceleratorState
from filelock import FileLock, Timeout

from mmkd_lite.checkpoint import checkpoint_paths
from mmkd_lite.config import RunConfig, from_dict, to_dict
from mmkd_lite.loop import Training
from mmkd_lite.methods import METHODS, Method, build
from mmkd_lite.runs import Run, run_folder
from mmkd_lite.seeding import deterministic, seeded
from mmkd_lite.step_bar import duration
from mmkd_lite.storage import read_json, write_json
from mmkd_lite.target_cache import LIVE, CachedTargets

log = logging.getLogger(__name__)


def fit(
    config: RunConfig, *, resume: bool = True, method: Method | None = None, pairs: Any = None
) -> Run:
    """Train what `config` describes and return its run; a finished run is returned at once.

    Args:
        config: From `config.resolve`. With `out_dir` "" the folder is
            runs/<method>__<scale>__seed<k>__<hash of the settings>.
        resume: Go on from the newest checkpoint in the folder; False removes it and starts over.
        method: Train this one instead of building the one that the configuration names.
        pairs: Take batches from here: `batch(step, batch_size, rank, world)`, a pure function.

    Raises:
        ValueError: The folder holds a run with other settings, or the settings cannot work here.
        FloatingPointError: Loss or gradient became NaN or infinite; names the step and the terms.
        OSError: The folder cannot be written; checkpoints that are there stay as they are.
        KeyboardInterrupt: Ctrl-C; a checkpoint of the last whole step was written first.

    Used from notebook 05 on.
    """
    run = Run(run_folder(config), config)
    if resume:
        run.refuse_other_configuration()
        if run.finished:
            return run
    accelerator = open_accelerator(config)
    on_cpu = accelerator.device.type == "cpu"
    with _folder_for_one(run, accelerator), deterministic(on_cpu):
        _prepare_folder(run, accelerator, resume)
        method = build(config) if method is None else method
        pairs = METHODS[config.method].open_data(config) if pairs is None else pairs
        if config.train.targets != LIVE:
            pairs = CachedTargets(pairs, method.to(accelerator.device), config)
        with seeded(config.seed, accelerator.process_index):
            Training(run, accelerator, method, pairs).train()
    return run


def open_accelerator(config: RunConfig) -> Accelerator:
    """Return the accelerator for the configured device and precision.

    On a CPU the precision is always float32; "fp16" and "bf16" are for GPUs and noted in the log.

    Raises:
        ValueError: The device is not there.
    """
    wanted = torch.device(config.device).type
    precision = config.train.precision
    if wanted == "cpu" and precision != "no":
        log.warning("train.precision=%s has no effect on a CPU; float32 is used", precision)
        precision = "no"
    # Otherwise the first run in a Python process would fix the device of all that follow.
    AcceleratorState._reset_state(reset_partial_state=True)
    # A term of weight 0 leaves its own parameters without a gradient, which DDP must be told.
    handlers: list[Any] = [DistributedDataParallelKwargs(find_unused_parameters=True)]
    accelerator = Accelerator(
        cpu=wanted == "cpu", mixed_precision=precision, kwargs_handlers=handlers
    )
    if accelerator.device.type != wanted:
        raise ValueError(
            f"device={config.device!r} is not available here, only {accelerator.device.type!r}; "
            "use device='cpu'"
        )
    return accelerator


@contextlib.contextmanager
def _folder_for_one(run: Run, accelerator: Accelerator) -> Iterator[None]:
    """Make the folder and hold its lock, so that two processes never write one run."""
    if not accelerator.is_main_process:
        yield
        return
    lock = FileLock(run.dir / ".lock")
    try:
        run.dir.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=0)
    except Timeout:
        raise ValueError(
            f"another process is training in {run.dir}; wait for it or choose another out_dir"
        ) from None
    except OSError as error:
        raise OSError(
            error.errno,
            f"cannot write to the run's folder {run.dir} ({error}); choose another out_dir",
        ) from error
    try:
        yield
    finally:
        lock.release()


def _prepare_folder(run: Run, accelerator: Accelerator, resume: bool) -> None:
    """Write config.json; all processes wait until it is there."""
    if accelerator.is_main_process:
        if not resume:
            run.clear()
        if not (run.dir / "config.json").exists():
            write_json(run.dir / "config.json", to_dict(run.config))
    accelerator.wait_for_everyone()


def train_command(arguments: Sequence[str]) -> int:
    """Train as a configuration file says: `python -m mmkd_lite train --config FILE [--resume]`.

    Args:
        arguments: The words after `train`.

    Returns:
        0 when finished; 1 after a NaN, or where an unfinished run is met without --resume; 130
        after Ctrl-C.
    """
    parser = argparse.ArgumentParser(
        prog="python -m mmkd_lite train", description="Train one method."
    )
    parser.add_argument(
        "--config", required=True, help="a configuration, as the config.json of a run"
    )
    parser.add_argument("--resume", action="store_true", help="go on from the newest checkpoint")
    parser.add_argument(
        "--out-dir", default="", help="folder of the run; by default the configuration's"
    )
    options = parser.parse_args(list(arguments))
    values = read_json(options.config)
    config = from_dict({**values, "out_dir": options.out_dir or values.get("out_dir", "")})
    run = Run(run_folder(config), config)
    if not options.resume and checkpoint_paths(run.checkpoints) and not run.finished:
        print(
            f"{run.dir} holds an unfinished run; add --resume to go on, or choose --out-dir",
            file=sys.stderr,
        )
        return 1
    try:
        run = fit(config)
    except (FloatingPointError, KeyboardInterrupt) as stopped:
        print(f"{stopped or 'interrupted'} (add --resume to go on)", file=sys.stderr)
        return 130 if isinstance(stopped, KeyboardInterrupt) else 1
    last = run.metrics()[-1]
    print(f"{run.dir}: {last['step']} steps in {duration(run.seconds)}, loss {last['loss']:.4f}")
    return 0
