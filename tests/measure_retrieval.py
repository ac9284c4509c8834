"""Time and memory of `retrieval` beside the one-hot rule: `python tests/measure_retrieval.py`.

The one-hot rule is the one that public benchmarks use: hold the whole T x N score matrix and the
T x N matrix of right pairs, take the top k, spread them into a (batch, k, candidates) one-hot
tensor of int64 and divide the hits by the number of right answers. It is written anew here.
Each rule runs in a process of its own, so that neither inherits the other's memory.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from typing import Any

import psutil  # type: ignore[import-untyped]
import torch
from torch import Tensor

from mmkd_lite.evaluate.recall import retrieval
from mmkd_lite.results import results_table, write_result

RULES = ("streamed", "one_hot")
KS = (1, 5, 10)
ONE_HOT_BATCH = 64


def one_hot_rule(image: Tensor, text: Tensor, image_of_text: Tensor) -> dict[str, float]:
    """Return the recalls by the plain rule: full matrices, top k, one-hot, hits over positives.

    Args:
        image: (N, D) unit-norm embeddings.
        text: (T, D) unit-norm embeddings.
        image_of_text: (T,) row of each caption's image.
    """
    scores = text @ image.T  # (T, N)
    right = torch.zeros(scores.shape, dtype=torch.bool)
    right[torch.arange(len(text)), image_of_text] = True
    found = {}
    for k in KS:
        found[f"t2i_r{k}"] = _one_hot_recall(scores, right, k)
        found[f"i2t_r{k}"] = _one_hot_recall(scores.T, right.T, k)
    return found


def _one_hot_recall(scores: Tensor, right: Tensor, k: int) -> float:
    hits = []
    for start in range(0, len(scores), ONE_HOT_BATCH):
        rows = slice(start, start + ONE_HOT_BATCH)
        top = scores[rows].topk(k, dim=1).indices  # (b, k)
        chosen = torch.nn.functional.one_hot(top, scores.shape[1])  # (b, k, candidates)
        true_positives = (chosen * right[rows, None]).sum(dim=(1, 2))  # (b,)
        hits.append(true_positives / right[rows].sum(dim=1) > 0)
    return 100 * float(torch.cat(hits).double().mean())


def shared_embeddings(
    images: int, captions: int, width: int, seed: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Return random image and caption embeddings with some agreement, and the image of each."""
    generator = torch.Generator().manual_seed(seed)
    owner = torch.arange(images).repeat_interleave(captions)
    image = torch.randn(images, width, generator=generator)
    text = torch.randn(len(owner), width, generator=generator)
    text.mul_(5.0).add_(image[owner])
    for rows in (image, text):
        rows.div_(rows.norm(dim=1, keepdim=True))
    return image, text, owner


def measure(rule: str, images: int, captions: int, width: int, seed: int) -> dict[str, Any]:
    """Run one rule in this process; return recalls, time and extra peak memory in MB."""
    image, text, owner = shared_embeddings(images, captions, width, seed)
    retrieval(image[:64], text[: 64 * captions], owner[: 64 * captions])  # warm the libraries up
    process = psutil.Process()
    before, peak, done = process.memory_info().rss, [0], threading.Event()

    def watch() -> None:
        while not done.wait(0.002):
            peak[0] = max(peak[0], process.memory_info().rss)

    watcher = threading.Thread(target=watch)
    watcher.start()
    started, worked = time.perf_counter(), time.process_time()
    scores = (retrieval if rule == "streamed" else one_hot_rule)(image, text, owner)
    seconds, cpu_seconds = time.perf_counter() - started, time.process_time() - worked
    done.set()
    watcher.join()
    recalls = {f"{d}_r{k}": scores[f"{d}_r{k}"] for d in ("i2t", "t2i") for k in KS}
    return {
        "seconds": seconds,
        "cpu_seconds": cpu_seconds,  # of all threads; what a busy machine disturbs least
        "extra_mb": (peak[0] - before) / 1e6,
        "recalls": recalls,
    }


def benchmark(
    images: int, captions: int, width: int, seed: int, threads: int, repeats: int = 2
) -> dict[str, Any]:
    """Run both rules in turn, each time in a fresh process, and compare their fastest runs."""
    sizes = [str(value) for value in (images, captions, width, seed, threads)]
    runs: dict[str, list[dict[str, Any]]] = {rule: [] for rule in RULES}
    for _ in range(repeats):
        for rule in RULES:
            words = [sys.executable, __file__, "--child", rule, *sizes]
            done = subprocess.run(words, capture_output=True, text=True, check=True)
            runs[rule].append(json.loads(done.stdout.splitlines()[-1]))
    found: dict[str, Any] = {rule: min(runs[rule], key=lambda r: r["seconds"]) for rule in RULES}
    ours, theirs = found["streamed"], found["one_hot"]
    return {
        **found,
        "largest_difference": max(
            abs(value - theirs["recalls"][key]) for key, value in ours["recalls"].items()
        ),
        "times_as_fast": theirs["seconds"] / ours["seconds"],
        "cpu_ratio": theirs["cpu_seconds"] / ours["cpu_seconds"],
        "memory_ratio": theirs["extra_mb"] / max(ours["extra_mb"], 1e-9),
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark, print a table and write `data/results/retrieval_benchmark.json`."""
    parser = argparse.ArgumentParser(prog="python tests/measure_retrieval.py")
    parser.add_argument("--images", type=int, default=5000)
    parser.add_argument("--captions", type=int, default=5, help="captions an image")
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=2, help="runs of each; the fastest counts")
    parser.add_argument("--out", default=None, help="folder of the result file")
    parser.add_argument("--child", nargs=6, help=argparse.SUPPRESS)
    asked = parser.parse_args(arguments)
    if asked.child:
        rule, *sizes = asked.child
        *shape, threads = map(int, sizes)
        torch.set_num_threads(threads)
        print(json.dumps(measure(rule, *shape)))
        return 0
    names = ("images", "captions", "width", "seed", "threads", "repeats")
    sizes = {name: getattr(asked, name) for name in names}
    found = benchmark(**sizes)
    rows = [{"rule": rule, **found[rule], **found[rule]["recalls"]} for rule in RULES]
    print(results_table(rows, ["rule", "seconds", "cpu_seconds", "extra_mb", "t2i_r1"], decimals=2))
    print(
        f"largest difference {found['largest_difference']:.1e} points, "
        f"{found['times_as_fast']:.0f} times as fast, {found['memory_ratio']:.0f} times less memory"
    )
    write_result(
        "retrieval_benchmark",
        configuration={**sizes, "ks": KS, "one_hot_batch": ONE_HOT_BATCH},
        metrics=found,
        seed=asked.seed,
        seconds=sum(found[rule]["seconds"] for rule in RULES),
        command="python tests/measure_retrieval.py",
        folder=asked.out,
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
