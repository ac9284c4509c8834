"""Which share of a training step is spent on drawing data; a tool, not a test.

    python tests/measure_drawing.py

Reads the clocks of all finished laptop runs under `runs/` (or MMKD_RUNS) and writes
`data/results/drawing.json`: for each method the number of runs, and the least and largest share.
"""

from __future__ import annotations

from collections import defaultdict

from mmkd_lite.results import write_result
from mmkd_lite.runs import read_rows, runs_root


def main() -> None:
    """Measure, print and write."""
    shares = defaultdict(list)
    for path in sorted(runs_root().glob("*__laptop__*/timings.jsonl")):
        if (path.parent / "finished.json").exists():
            last = read_rows(path)[-1]
            method = path.parent.name.partition("__")[0]
            shares[method].append(100 * last["data_seconds"] / last["seconds"])
    rows = {
        method: {"runs": len(found), "least": min(found), "largest": max(found)}
        for method, found in sorted(shares.items())
    }
    for method, row in rows.items():
        print(f"{method:<22} {row['runs']:3d} runs, {row['least']:4.1f} to {row['largest']:4.1f} %")
    write_result(
        "drawing", configuration={"scale": "laptop"}, metrics=rows, seed=0, seconds=0.0,
        command="python tests/measure_drawing.py",
    )  # fmt: skip


if __name__ == "__main__":
    main()
