"""The loop itself: what one step does, and what a checkpoint holds of it."""

from __future__ import annotations

import contextlib
import math
import time
import warnings
from collections.abc import Iterator
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

import mmkd_lite
from mmkd_lite.checkpoint import Checkpoint, latest_checkpoint, save_checkpoint, save_tensors
from mmkd_lite.config import to_dict
from mmkd_lite.data.pairs import loader
from mmkd_lite.distiller import Distiller
from mmkd_lite.methods.base import Batch, Method
from mmkd_lite.optimizer import (
    build_optimizer,
    learning_rate,
    load_optimizer_tensors,
    optimizer_tensors,
)
from mmkd_lite.runs import JsonLines, Run
from mmkd_lite.seeding import random_state, set_random_state
from mmkd_lite.signals import StopRequest
from mmkd_lite.step_bar import StepBar
from mmkd_lite.storage import write_json

REFERENCE_BATCH = 256
"""Examples a step for which `train.base_lr` is stated."""


class Training:
    """The state of one training run and the steps that change it."""

    def __init__(self, run: Run, accelerator: Accelerator, method: Method, pairs: Any) -> None:
        self.run, self.accelerator, self.pairs = run, accelerator, pairs
        self.config, self.settings = run.config, run.config.train
        self.steps, self.main = self.settings.steps, accelerator.is_main_process
        self.method = method.to(accelerator.device)
        distiller = Distiller(self.method, self.config.weights).train()
        self.optimizer = build_optimizer(distiller, self.settings)
        self.model, self.stepper = accelerator.prepare(distiller, self.optimizer)
        self.trained = [p for group in self.optimizer.param_groups for p in group["params"]]
        examples = self.settings.batch_size * accelerator.num_processes
        self.peak_rate = self.settings.base_lr * examples / REFERENCE_BATCH
        self.done, self.seconds_before, self.data_seconds = 0, 0.0, 0.0
        self.stop = StopRequest()

    def train(self) -> None:
        """Run from the newest checkpoint, or from the start, to the end."""
        sizes = self.restore()
        with contextlib.ExitStack() as stack:
            stack.enter_context(self.stop)
            if self.main:
                metrics = JsonLines(self.run.dir / "metrics.jsonl", sizes[0])
                timings = JsonLines(self.run.dir / "timings.jsonl", sizes[1])
                self.metrics, self.timings = map(stack.enter_context, (metrics, timings))
            bar = StepBar(self.steps, self.config.method, self.done, silent=not self.main)
            self.loop(stack.enter_context(bar))
        self.finish()

    def loop(self, bar: StepBar) -> None:
        """Do the steps that are left; a request to stop is met between two steps."""
        self.started = time.perf_counter()
        batches = self.batches()
        while self.done < self.steps:
            row, stop = self.step(next(batches))
            bar.update(self.done, f"loss {row['loss']:.3f}")
            last = self.done == self.steps
            if self.main and (last or self.done % self.settings.log_every == 0):
                self.record(row)
            if stop or last or self.done % self.settings.checkpoint_every == 0:
                self.save()
            if stop and not last:
                raise KeyboardInterrupt(
                    f"stopped after step {self.done} of {self.steps}; "
                    f"{self.run.last_checkpoint()}; the same call goes on from there"
                )

    def batches(self) -> Iterator[Batch]:
        """Give this process' share of each batch that is left, on the device."""
        made = iter(
            loader(
                self.pairs,
                self.done,
                self.steps,
                self.settings.workers,
                batch_size=self.settings.batch_size,
                rank=self.accelerator.process_index,
                world=self.accelerator.num_processes,
            )
        )
        while True:
            started = time.perf_counter()
            batch = next(made)
            batch = {name: tensor.to(self.accelerator.device) for name, tensor in batch.items()}
            self.data_seconds += time.perf_counter() - started
            yield batch

    def step(self, batch: Batch) -> tuple[dict[str, Any], bool]:
        """Do one update; return its row of metrics and whether some process asks to stop."""
        progress = self.done / self.steps
        rate = learning_rate(self.done, self.steps, self.peak_rate, self.settings.warmup_fraction)
        with torch.no_grad():
            self.method.before_step(progress)
        for group in self.optimizer.param_groups:
            group["lr"] = rate * self.method.rate_scales.get(group["part"], 1.0)
        loss, terms = self.model(batch, progress)
        self.accelerator.backward(loss)
        norm = self.accelerator.clip_grad_norm_(self.trained, self.settings.clip_norm or math.inf)
        row = self.read(loss, terms, norm)
        self.refuse_non_finite(row)
        self.stepper.step()
        self.stepper.zero_grad()
        with torch.no_grad():
            self.method.after_step()
        self.done += 1
        stop = row.pop("stop") > 0
        finite = {name: value if math.isfinite(value) else None for name, value in row.items()}
        return {"step": self.done, **finite, "learning_rate": rate}, stop

    def read(self, loss: Tensor, terms: dict[str, Tensor], norm: Tensor) -> dict[str, float]:
        """Fetch the numbers of this step, averaged over processes, in one transfer."""
        names = ["loss", *terms, "gradient_norm", "stop"]
        stop = torch.tensor(float(self.stop.requested), device=loss.device)
        tensors = (loss, *terms.values(), norm, stop)
        values = torch.stack([tensor.detach().float().to(loss.device) for tensor in tensors])
        if self.accelerator.num_processes > 1:
            values = self.accelerator.reduce(values, reduction="mean")
        return dict(zip(names, values.tolist(), strict=True))

    def refuse_non_finite(self, row: dict[str, float]) -> None:
        """Stop before a NaN reaches the weights.

        With fp16 an infinite gradient is no failure: the scaler skips that step and scales less.
        """
        scaled = self.accelerator.scaler is not None
        if math.isfinite(row["loss"]) and (scaled or math.isfinite(row["gradient_norm"])):
            return
        values = ", ".join(f"{name}={value:.6g}" for name, value in row.items() if name != "stop")
        raise FloatingPointError(
            f"step {self.done + 1} gave a loss or gradient that is not finite ({values}); "
            f"{self.run.last_checkpoint()}. Try a lower train.base_lr or look at that step's batch"
        )

    def seconds(self) -> float:
        """Seconds of training, those before an interruption included."""
        return self.seconds_before + time.perf_counter() - self.started

    def record(self, row: dict[str, Any]) -> None:
        """Append a row to metrics.jsonl and its time to timings.jsonl."""
        self.metrics.append(row)
        times = {"seconds": round(self.seconds(), 4), "data_seconds": round(self.data_seconds, 4)}
        self.timings.append({"step": self.done, **times})

    def save(self) -> None:
        """Write a checkpoint; every process must call this."""
        tensors = {f"method/{name}": value for name, value in self.method.state_dict().items()}
        moments = optimizer_tensors(self.optimizer)
        tensors |= {f"optimizer/{name}": value for name, value in moments.items()}
        for name, value in random_state().items():
            states = self.accelerator.gather(value[None].to(self.accelerator.device)).cpu()
            tensors |= {f"random/{rank}/{name}": state for rank, state in enumerate(states)}
        if self.main:
            scaler = self.accelerator.scaler
            state = {
                "config": to_dict(self.config),
                "setting": self.setting(),
                "scaler": None if scaler is None else scaler.state_dict(),
                "sizes": [self.metrics.size(), self.timings.size()],
                "seconds": self.seconds(),
                "data_seconds": self.data_seconds,
            }
            save_checkpoint(self.run.checkpoints, self.done, tensors, state)
        self.accelerator.wait_for_everyone()

    def setting(self) -> dict[str, Any]:
        """What must be equal for a resumed run to give the same bits, besides the configuration."""
        return {
            "processes": self.accelerator.num_processes,
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
            "mmkd_lite": mmkd_lite.__version__,
        }

    def restore(self) -> tuple[int, int]:
        """Load the newest whole checkpoint; return the lengths that the two logs had then."""
        checkpoint = latest_checkpoint(self.run.checkpoints)
        if checkpoint is None:
            return 0, 0
        self.check_setting(checkpoint)
        rank = self.accelerator.process_index
        self.method.load_state_dict(_below("method/", checkpoint.tensors))
        load_optimizer_tensors(self.optimizer, _below("optimizer/", checkpoint.tensors))
        if self.accelerator.scaler is not None:
            self.accelerator.scaler.load_state_dict(checkpoint.state["scaler"])
        set_random_state(_below(f"random/{rank}/", checkpoint.tensors))
        self.done = checkpoint.step
        self.seconds_before = checkpoint.state["seconds"]
        self.data_seconds = checkpoint.state["data_seconds"]
        metrics, timings = checkpoint.state["sizes"]
        return metrics, timings

    def check_setting(self, checkpoint: Checkpoint) -> None:
        """Refuse a checkpoint of other settings; warn where it can go on, but not bit by bit."""
        self.run.refuse_other_configuration(checkpoint.state["config"])
        then, now = checkpoint.state["setting"], self.setting()
        if then["processes"] != now["processes"]:
            raise ValueError(
                f"{checkpoint.path} was written by {then['processes']} processes, this run has "
                f"{now['processes']}; start as many, or start over with fit(config, resume=False)"
            )
        differing = [
            f"{name} {then[name]} -> {now[name]}" for name in now if then.get(name) != now[name]
        ]
        if differing:
            changes = ", ".join(differing)
            warnings.warn(
                f"resuming with {changes}: the result may differ in the last bits", stacklevel=2
            )

    def finish(self) -> None:
        """Write the method's state, then the marker that the run is complete."""
        if self.main:
            checksum = save_tensors(self.run.dir / "model.safetensors", self.method.state_dict())
            marker = {"steps": self.done, "seconds": self.seconds(), "model_sha256": checksum}
            write_json(self.run.dir / "finished.json", {**marker, **self.setting()})
        self.accelerator.wait_for_everyone()


def _below(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Tensors whose names begin with `prefix`, without it."""
    return {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}
