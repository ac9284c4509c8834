"""A method, a teacher and pairs that train in milliseconds, with every kind of state."""

from __future__ import annotations

import os
import random
import signal
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmkd_lite.config import RunConfig, from_dict, resolve
from mmkd_lite.losses import image_text_contrast, mean_squared_error
from mmkd_lite.methods.base import Batch, Method
from mmkd_lite.train import Run, fit

WIDTH = 8
WEIGHTS = {"contrast": 1.0, "regression": 0.5, "noise": 0.1}
CHANGES = ("os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.truncate", "shutil.rmtree")


class ToyTeacher(nn.Module):
    """A teacher whose output and buffers would change if it were ever in training mode."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(12, WIDTH), nn.BatchNorm1d(WIDTH), nn.Dropout(0.5))

    def forward(self, images: Tensor) -> Tensor:
        return self.layers(images.flatten(1))


@dataclass(frozen=True)
class Switches:
    """What the toy does besides learning: make noise, fail, or die by SIGKILL."""

    dropout: float = 0.3
    noise: bool = True
    nan_at: int = -1
    die_in: str = ""
    die_at: int = -1


class ToyMethod(Method):
    """Two towers, a contrast, a regression, dropout, a momentum copy, a bank and its pointer."""

    def __init__(self, config: RunConfig, switches: Switches | None = None) -> None:
        self.switches = switches or Switches()
        with torch.random.fork_rng():
            torch.manual_seed(config.seed)
            super().__init__(config, ToyTeacher())
            self.image = nn.Linear(12, WIDTH)
            self.text = nn.Embedding(20, WIDTH)
            self.cls_token = nn.Parameter(torch.randn(1, 1, WIDTH))
            self.dropout = nn.Dropout(self.switches.dropout)
            self.log_scale = nn.Parameter(torch.tensor(1.0))
            self.unused = nn.Linear(2, 2)
            self.register_buffer("momentum", self.image.weight.detach().clone())
            self.register_buffer("bank", torch.zeros(6, WIDTH))
            self.register_buffer("pointer", torch.zeros((), dtype=torch.int64))
        self.calls: list[tuple[str, float]] = []
        self.teacher_modes: list[bool] = []
        self.steps = 0

    def _enter(self, where: str, number: float) -> None:
        self.calls.append((where, number))
        self.steps += where == "before_step"
        if (where, self.steps) == (self.switches.die_in, self.switches.die_at):
            os.kill(os.getpid(), signal.SIGKILL)

    def targets(self, batch: Batch) -> dict[str, Tensor]:
        self._enter("targets", float(torch.is_grad_enabled()))
        self.teacher_modes.append(self.teacher.training)
        return {"vector": self.teacher(batch["image"])}

    def before_step(self, progress: float) -> None:
        self._enter("before_step", progress)
        self.momentum.lerp_(self.image.weight, 0.1)

    def losses(
        self, batch: Batch, targets: dict[str, Tensor], progress: float
    ) -> dict[str, Tensor]:
        self._enter("losses", progress)
        image = self.dropout(self.image(batch["image"].flatten(1)))  # (B, D)
        text = self.text(batch["tokens"]).mean(1) + self.cls_token[0]  # (B, D)
        unit_image, unit_text = F.normalize(image, dim=-1), F.normalize(text, dim=-1)
        self.seen = unit_image.detach()
        past = 0.1 * self.bank.mean(0) if self.switches.noise else 0.0
        terms = {
            "contrast": image_text_contrast(unit_image, unit_text, self.log_scale.exp()),
            "regression": mean_squared_error(image, targets["vector"] + past),
        }
        if self.switches.noise:  # from all three global generators, as a careless method would
            noise = torch.rand(WIDTH) * float(np.random.rand()) * random.random()  # noqa: NPY002
            terms["noise"] = (image.mean(0) * noise).sum() + self.momentum.square().mean()
        if self.steps == self.switches.nan_at:
            terms["regression"] = terms["regression"] * float("nan")
        return terms

    def after_step(self) -> None:
        self._enter("after_step", 0.0)
        self.bank[int(self.pointer) % len(self.bank)] = self.seen[0]
        self.pointer += 1
        self.log_scale.clamp_(0.0, 4.6)


class ToyPairs:
    """Batches that are a pure function of the step; ranks share one global batch."""

    size = None

    def batch(self, step: int, batch_size: int, rank: int = 0, world: int = 1) -> Batch:
        generator = torch.Generator().manual_seed(1000 + step)
        rows = slice(rank * batch_size, (rank + 1) * batch_size)
        whole = world * batch_size
        return {
            "image": torch.rand(whole, 3, 2, 2, generator=generator)[rows],
            "tokens": torch.randint(0, 20, (whole, 5), generator=generator)[rows],
            "image_id": torch.arange(whole)[rows] + step * whole,
            "caption_id": torch.arange(whole)[rows] + step * whole,
        }


def toy_config(out_dir: Path | str, **settings: object) -> RunConfig:
    """Ten steps of eight pairs, a checkpoint every three; "__" in a setting stands for a dot."""
    overrides: dict[str, object] = {
        "train.steps": 10,
        "train.batch_size": 8,
        "train.checkpoint_every": 3,
        "train.base_lr": 0.5,
    }
    overrides |= {name.replace("__", "."): value for name, value in settings.items()}
    weights, seed = overrides.pop("weights", WEIGHTS), overrides.pop("seed", 0)
    config = resolve("shre", "tiny", overrides, out_dir=str(out_dir), seed=int(str(seed)))
    return replace(config, weights=weights)


def fit_toy(
    out_dir: Path | str,
    switches: Switches | None = None,
    *,
    resume: bool = True,
    **settings: object,
) -> tuple[Run, ToyMethod]:
    """Train the toy; return its run and the method."""
    config = toy_config(out_dir, **settings)
    method = ToyMethod(config, switches)
    return fit(config, resume=resume, method=method, pairs=ToyPairs()), method


def fit_and_die(
    out_dir: str, switches: Switches, file_event: int, settings: dict[str, object]
) -> None:
    """Train, for a process of its own; SIGKILL before the n-th change to a file of the run."""
    torch.set_num_threads(1)
    left = [file_event]

    def count(event: str, arguments: tuple[object, ...]) -> None:
        opened = event == "open" and str(arguments[1])[:1] in ("w", "x", "a")
        if (opened or event in CHANGES) and str(arguments[0]).startswith(out_dir):
            left[0] -= 1
            if left[0] == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    if file_event:
        sys.addaudithook(count)
    fit_toy(out_dir, switches, **settings)


def fit_in_process(values: dict[str, object], toy: bool) -> None:
    """Train what `values` describe, the toy or the real method, for a process of its own."""
    torch.set_num_threads(1)
    config = from_dict(values)
    injected = {"method": ToyMethod(config), "pairs": ToyPairs()} if toy else {}
    fit(config, **injected)


def train_as_rank(rank: int, port: int, folder: str) -> None:
    """Be one of two processes that train together: once quietly, once with noise and a failure."""
    torch.set_num_threads(1)
    places = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2}
    os.environ.update({name: str(value) for name, value in places.items()})
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), OMP_NUM_THREADS="1")
    weights = {"contrast": 1.0, "regression": 0.5}
    quiet = Switches(dropout=0.0, noise=False)
    fit_toy(f"{folder}/two", quiet, weights=weights, train__batch_size=4)
    try:  # fails on both ranks, so that neither waits for the other
        fit_toy(f"{folder}/noisy", Switches(nan_at=5), train__steps=6)
    except FloatingPointError:
        fit_toy(f"{folder}/noisy", train__steps=6)
    fit_toy(f"{folder}/whole", train__steps=6)
    torch.distributed.destroy_process_group()
