"""What the training loop costs beyond the bare steps; a tool, not a test.

    python tests/measure_overhead.py [batch size] [repeats]

Trains Transformer SHRe at laptop scale for 2 and for 12 steps, by `fit` (metrics, checkpoint and
all) and by the barest loop that does the same arithmetic with the same deterministic kernels. The
two lengths separate what every step costs from what a run costs once. Takes the least of several
times, which other work disturbs least.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial

import torch

from mmkd_lite.config import RunConfig, resolve
from mmkd_lite.distiller import Distiller
from mmkd_lite.methods import build
from mmkd_lite.methods.base import Method
from mmkd_lite.optimizer import build_optimizer, learning_rate
from mmkd_lite.results import write_result
from mmkd_lite.seeding import deterministic
from mmkd_lite.train import fit

RUN_STEPS = 120
"""Steps of a run at laptop scale."""


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


def bare_run(config: RunConfig, method: Method, pairs: object) -> None:
    """Let the bare loop use the kernels that `fit` uses."""
    with deterministic():
        bare(config, method, pairs)


def timed(work: Callable[[], object]) -> tuple[float, float]:
    """Return the wall-clock and CPU seconds that `work` takes."""
    wall, processor = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - wall, time.process_time() - processor


def main(batch_size: int = 64, repeats: int = 4) -> None:
    """Measure, print and write `data/results/overhead.json`."""
    began = time.perf_counter()
    settings = {"teacher": "random-cnn", "image.start": "", "text.start": ""}
    settings |= {"train.batch_size": batch_size}
    pairs, clocks = None, ("wall-clock", "processor")
    least = {(name, steps): [1e9, 1e9] for name in ("bare", "fit") for steps in (2, 12)}
    for _ in range(repeats):
        for name, steps in least:
            with tempfile.TemporaryDirectory() as folder:
                chosen = {**settings, "train.steps": steps}
                config = resolve("shre", "laptop", chosen, out_dir=folder)
                method = build(config)
                pairs = pairs or type(method).open_data(config)
                work = partial(bare_run, config, method, pairs)
                if name == "fit":
                    work = partial(fit, config, method=method, pairs=pairs)
                least[name, steps] = [*map(min, least[name, steps], timed(work))]
    metrics, taken = {}, time.perf_counter() - began
    for number, clock in enumerate(clocks):
        step = {n: (least[n, 12][number] - least[n, 2][number]) / 10 for n in ("bare", "fit")}
        once = {n: least[n, 2][number] - 2 * step[n] for n in step}
        run = {n: once[n] + RUN_STEPS * step[n] for n in step}
        metrics[clock] = {
            "milliseconds_a_step_bare": 1e3 * step["bare"],
            "milliseconds_a_step_by_fit": 1e3 * step["fit"],
            "milliseconds_once_a_run": 1e3 * (once["fit"] - once["bare"]),
            "per_cent_more": 100 * (run["fit"] / run["bare"] - 1),
        }
        print(
            clock,
            *(f"{name.replace('_', ' ')} {x:.1f}" for name, x in metrics[clock].items()),
            sep=", ",
        )
    write_result(
        "overhead",
        configuration={
            "batch_size": batch_size, "repeats": repeats, "steps": RUN_STEPS, "threads": torch.get_num_threads()
        },
        metrics=metrics, seed=0, seconds=taken, command=f"python tests/measure_overhead.py {batch_size} {repeats}",
    )  # fmt: skip


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
