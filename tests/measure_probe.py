"""Time of a whole search for C beside scikit-learn's: `python tests/measure_probe.py` (idle machine, 2 cores).

Both fit 13 values of C on four fifths of the training set, choose on the last fifth, and fit the winner again on all
of it. scikit-learn starts every fit anew, as linear-probe code usually calls it. Features are unit vectors whose
variance falls off as a power law, as embeddings have it.
"""

from __future__ import annotations

import argparse
import time

import torch
import torch.nn.functional as F
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from mmkd_lite.evaluate import linear_probe
from mmkd_lite.evaluate.probe import PATH
from mmkd_lite.results import results_table, write_result

EQUAL = (1e-3, 1e-1, 10.0)
"""Where both are fitted at equal C."""


def embeddings(count: int, width: int, classes: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Unit vectors (N, D) around class centres, and labels (N,)."""
    generator = torch.Generator().manual_seed(seed)
    spread = torch.arange(1, width + 1) ** -0.5
    centres = torch.randn(classes, width, generator=generator) * spread
    labels = torch.randint(classes, (count,), generator=generator)
    noise = torch.randn(count, width, generator=generator) * spread
    return F.normalize(0.25 * centres[labels] + noise + 0.5 * spread, dim=1), labels


def searched(x: Tensor, y: Tensor, test_x: Tensor, test_y: Tensor) -> tuple[float, float, float]:
    """Return scikit-learn's accuracy after the search, the C it chose, and the seconds it took."""
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    held, rest = order[: round(0.2 * len(x))], order[round(0.2 * len(x)) :]
    started = time.perf_counter()

    def fitted(c: float, rows: Tensor) -> LogisticRegression:
        return LogisticRegression(C=c, max_iter=1000).fit(x[rows].numpy(), y[rows].numpy())

    scores = {c: fitted(c, rest).score(x[held].numpy(), y[held].numpy()) for c in PATH}
    best = max(scores, key=lambda c: (scores[c], -c))
    accuracy = 100 * fitted(best, order).score(test_x.numpy(), test_y.numpy())
    return accuracy, best, time.perf_counter() - started


def main() -> None:
    """Measure, print a table and write `data/results/probe_benchmark.json`."""
    parser = argparse.ArgumentParser()
    for name, value in (
        ("train", 10000),
        ("test", 5000),
        ("width", 512),
        ("classes", 100),
        ("repeats", 2),
    ):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--out", default=None, help="folder of the result file")
    asked = parser.parse_args()
    torch.set_num_threads(2)
    x, y = embeddings(asked.train + asked.test, asked.width, asked.classes)
    parts = x[: asked.train], y[: asked.train], x[asked.train :], y[asked.train :]
    ours, theirs = [], []
    for _ in range(asked.repeats):
        started = time.perf_counter()
        found = linear_probe(*parts)
        ours.append((found.accuracy, found.inverse_regularisation, time.perf_counter() - started))
        theirs.append(searched(*parts))
    best = {
        "ours": min(ours, key=lambda run: run[2]),
        "scikit_learn": min(theirs, key=lambda run: run[2]),
    }
    equal_c = {}
    for c in EQUAL:
        model = LogisticRegression(C=c, max_iter=2000, tol=1e-5).fit(
            parts[0].numpy(), parts[1].numpy()
        )
        accuracy = linear_probe(*parts, inverse_regularisation=c).accuracy
        equal_c[f"{c:g}"] = [accuracy, 100 * model.score(parts[2].numpy(), parts[3].numpy())]
    rows = [
        dict(zip(("accuracy", "C", "seconds"), run, strict=True)) | {"search": name}
        for name, run in best.items()
    ]
    print(results_table(rows, ["search", "accuracy", "C", "seconds"], decimals=2))
    metrics = {
        **{
            name: dict(zip(("accuracy", "c", "seconds"), run, strict=True))
            for name, run in best.items()
        },
        "times_as_fast": best["scikit_learn"][2] / best["ours"][2],
        "accuracy_at_equal_c": equal_c,
        "largest_difference_at_equal_c": max(abs(a - b) for a, b in equal_c.values()),
        "chance": 100 / asked.classes,
    }
    print(f"{metrics['times_as_fast']:.1f} times as fast; at equal C at most "
          f"{metrics['largest_difference_at_equal_c']:.2f} points apart")  # fmt: skip
    write_result(
        "probe_benchmark", configuration=vars(asked) | {"threads": 2}, metrics=metrics, seed=0,
        seconds=sum(run[2] for run in ours + theirs), folder=asked.out, command="python tests/measure_probe.py",
    )  # fmt: skip


if __name__ == "__main__":
    main()
