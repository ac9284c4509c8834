"""What the training loop costs beyond the bare steps; a tool, not a test.

    python tests/measure_overhead.py [steps] [repeats]

Trains Transformer SHRe at laptop scale, alternately by `fit` (metrics, checkpoints and all) and by
the barest loop that does the same arithmetic, and prints the medians of wall-clock and CPU time.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from collections.abc import Callable

import torch

from mmkd_lite.config import RunConfig, resolve
from mmkd_lite.distiller import Distiller
from mmkd_lite.methods import build
from mmkd_lite.methods.base import Method
from mmkd_lite.optimizer import build_optimizer, learning_rate
from mmkd_lite.train import fit


def bare(config: RunConfig, method: Method, pairs: object) -> None:
    """Run the same steps and nothing else."""
    train = config.train
    distiller = Distiller(method, config.weights).train()
    optimizer = build_optimizer(distiller, train)
    for step in range(train.steps):
        optimizer.param_groups[0]["lr"] = learning_rate(step, train.steps, train.base_lr)
        optimizer.param_groups[1]["lr"] = optimizer.param_groups[0]["lr"]
        method.before_step(step / train.steps)
        loss, _ = distiller(pairs.batch(step, train.batch_size), step / train.steps)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(distiller.parameters(), train.clip_norm)
        optimizer.step()
        optimizer.zero_grad()
        with torch.no_grad():
            method.after_step()


def timed(work: Callable[[], object]) -> tuple[float, float]:
    """Return the wall-clock and CPU seconds that `work` takes."""
    wall, processor = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - wall, time.process_time() - processor


def main(steps: int = 20, repeats: int = 3) -> None:
    """Measure and print."""
    settings = {"teacher": "random-cnn", "image.start": "", "text.start": "", "train.steps": steps}
    config = resolve("shre", "laptop", settings)
    pairs = type(build(config)).open_data(config)
    bare(resolve("shre", "laptop", {**settings, "train.steps": 2}), build(config), pairs)
    figures: dict[str, list[tuple[float, float]]] = {"bare": [], "fit": []}
    for _ in range(repeats):
        for name in figures:
            method = build(config)
            with tempfile.TemporaryDirectory() as folder:
                chosen = resolve("shre", "laptop", settings, out_dir=folder)
                work = {
                    "bare": lambda method=method: bare(config, method, pairs),
                    "fit": lambda method=method, chosen=chosen: fit(
                        chosen, method=method, pairs=pairs
                    ),
                }[name]
                figures[name].append(timed(work))
    for number, clock in enumerate(("wall-clock", "CPU")):
        plain, whole = (
            statistics.median(row[number] for row in figures[name]) for name in ("bare", "fit")
        )
        print(
            f"{clock}: bare {plain / steps * 1e3:.0f} ms a step, fit {whole / steps * 1e3:.0f} ms, "
            f"overhead {100 * (whole / plain - 1):.1f} %"
        )


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
