"""What cached teacher targets save; a tool, not a test.

    python tests/measure_cache.py [steps]

Three runs of Transformer SHRe on the same stream: without a teacher (targets of noise), with cached
targets, and with a live teacher whose forward pass takes at least three times the student's image
tower's. The runs take turns; the least of several times is shown, which other work disturbs least.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from mmkd_lite.config import TowerConfig, resolve
from mmkd_lite.methods import build
from mmkd_lite.models import seeded
from mmkd_lite.models.classifier import ImageClassifier
from mmkd_lite.results import write_result
from mmkd_lite.teachers import Teacher
from mmkd_lite.train import fit

CLASSES = 96
REPEATS = 3


def seconds(work: Callable[[], object]) -> float:
    """Return the wall-clock seconds that `work` takes."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def slow_teacher(student: Any, images: Tensor) -> tuple[Teacher, float]:
    """Return a random teacher at least three times as slow as the student's image tower, and the ratio."""
    with torch.no_grad():
        student(images)
        wanted = min(seconds(lambda: student(images)) for _ in range(5))
        for layers in range(6, 60, 2):
            with seeded(0):
                tower = TowerConfig(width=96, layers=layers, heads=4, patch=8)
                teacher = Teacher(
                    "slow", ImageClassifier(tower, images.shape[-1], CLASSES), CLASSES
                )
            taken = min(seconds(lambda asked=teacher: asked.class_logits(images)) for _ in range(5))
            if taken >= 3 * wanted:
                return teacher, taken / wanted
    raise RuntimeError("no teacher was slow enough")


def main(steps: int = 30) -> None:
    """Measure, print and write `data/results/cache.json`."""
    began = time.perf_counter()
    config = resolve("shre", "laptop", {"train.steps": steps})
    pairs = type(build(config)).open_data(config)
    images = pairs.batch(0, config.train.batch_size)["image"]
    teacher, ratio = slow_teacher(build(config).image_encoder, images)
    least = dict.fromkeys(("without", "cached", "live"), 1e9)
    for _ in range(REPEATS):
        for name in least:
            with tempfile.TemporaryDirectory() as folder:
                targets = "cached" if name == "cached" else "live"
                chosen = resolve(
                    "shre",
                    "laptop",
                    {"train.steps": steps, "train.targets": targets},
                    out_dir=folder,
                )
                method = build(chosen, teacher)
                if name == "without":
                    noise = torch.randn(config.train.batch_size, CLASSES)
                    method.targets = lambda batch, noise=noise: {"class_logits": noise}
                run = fit(chosen, method=method, pairs=pairs)
                least[name] = min(least[name], run.seconds)
    print(f"teacher takes {ratio:.1f} times the image tower; {steps} steps, seconds: {least}")
    ratios = {
        "teacher / student's image tower": ratio,
        "cached / without a teacher": least["cached"] / least["without"],
        "live / cached": least["live"] / least["cached"],
    }
    print(*(f"{name} {value:.3f}" for name, value in ratios.items()), sep="\n")
    write_result(
        "cache", configuration={"steps": steps, "threads": torch.get_num_threads()}, metrics=ratios,
        seed=0, seconds=time.perf_counter() - began, command=f"python tests/measure_cache.py {steps}",
    )  # fmt: skip


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
