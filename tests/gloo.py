"""Two gloo processes on one machine: how tests start them, and how their scripts meet and part."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
import torch.distributed as dist

WORLD = 2


def run_both(script: str, folder: Path) -> None:
    """Run `python -m tests.SCRIPT RANK FOLDER` in two processes and wait until both have ended well."""
    command = [sys.executable, "-m", f"tests.{script}"]
    root = Path(__file__).parents[1]
    processes = [
        subprocess.Popen([*command, str(rank), str(folder)], cwd=root) for rank in range(WORLD)
    ]
    try:
        assert [process.wait(timeout=240) for process in processes] == [0] * WORLD
    finally:
        for process in processes:
            process.kill()


@contextmanager
def process_group(rank: int, folder: Path) -> Iterator[None]:
    """Join the group that meets in `folder`; leave it when both are done."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{folder}/meeting", rank=rank, world_size=WORLD)
    yield
    dist.barrier()  # who leaves while the other still talks to it makes that one abort
    dist.destroy_process_group()
