"""What `test_memory_bank.py` trains in two processes and in one: `-m tests.two_banks RANK FOLDER`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors.torch import save_file
from torch import Tensor

from mmkd_lite.config import RunConfig, resolve
from mmkd_lite.distiller import Distiller
from mmkd_lite.methods import build
from tests.gloo import WORLD, process_group

ROWS, STEPS = 4, 5
KINDS = ("fifo", "decaying", "momentum", "frozen_teacher")


def settings(kind: str, **options: Any) -> RunConfig:
    """Tiny, float64 after `.double()`, a bank of two steps; a frozen teacher's bank is S-SMKE's."""
    chosen: dict[str, Any] = {"image.start": "", "text.start": "", "train.batch_size": ROWS}
    if kind == "frozen_teacher":
        chosen |= {"teacher": "random-vit", "options.target": "contrastive", "options.bank": 16}
        return resolve("ssmke", "tiny", chosen)
    chosen |= {"options.kind": kind, "options.bank_size": 16, "options.momentum": 0.9}
    chosen |= {name.replace("__", "."): value for name, value in options.items()}
    return resolve("memory_bank", "tiny", chosen)


def pairs(step: int, rows: slice = slice(None), size: int = WORLD * ROWS) -> dict[str, Tensor]:
    """A batch that depends on the step alone; some pictures come again in it or in a later one."""
    generator = torch.Generator().manual_seed(100 + step)
    numbers = {
        "image": torch.rand(size, 3, 32, 32, generator=generator, dtype=torch.float64),
        "tokens": torch.randint(5, 60, (size, 6), generator=generator),
        "image_id": torch.randint(0, 30, (size,), generator=generator),
    }
    return {name: values[rows] for name, values in numbers.items()}


def train(kind: str, rows: slice = slice(None), steps: int = STEPS) -> dict[str, Tensor]:
    """Take plain gradient steps and return the whole state, banks and temperature included."""
    config = settings(kind)
    method = build(config).double()
    model: Any = Distiller(method, config.weights)
    if dist.is_initialized():
        model = torch.nn.parallel.DistributedDataParallel(model)
    optimizer = torch.optim.SGD([p for p in method.parameters() if p.requires_grad], lr=0.05)
    for step in range(steps):
        method.before_step(step / steps)
        loss, _ = model(pairs(step, rows), step / steps)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        method.after_step()
    return {name: value.contiguous() for name, value in method.state_dict().items()}


def main(rank: int, folder: Path) -> None:
    with process_group(rank, folder):
        for kind in KINDS:
            found = train(kind, slice(rank * ROWS, (rank + 1) * ROWS))
            save_file(found, folder / f"{kind}-{rank}.safetensors")


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]))
