"""`python -m mmkd_lite refresh`: run notebooks again, store their outputs, renew README's table.

What is stored depends on the notebook alone: no timings, no random cell ids, no machine's paths. A
notebook that fails or writes to stderr is refused and its file stays as it was.
"""

from __future__ import annotations

import argparse
import copy
import hashlib
import re
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mmkd_lite.notebook import repository_root
from mmkd_lite.reproduce import (
    KERNEL_ARGUMENTS,
    expected_seconds,
    find_notebooks,
    kernel_environment,
    select,
)
from mmkd_lite.storage import write_atomic

SCALE = "laptop"
"""Stored outputs are made at this scale, on the CPU, with seed 0."""

SHOWS_DEMO = "42_"
"""The notebook that shows `data/demo.png`, which is taken just before it runs."""

MACHINE_PATH = re.compile(r"(?<![\w.])/(?:work|tmp|root|farm|home|Users)/[\w.+-]+")


def refresh_command(arguments: Sequence[str]) -> int:
    """Refresh the notebooks that the command line names, their solutions, and README's table.

    Args:
        arguments: The words after `python -m mmkd_lite refresh`.

    Raises:
        ValueError: If a notebook is unknown, fails, or leaves an output that must not be stored.
    """
    options = _parser().parse_args(arguments)
    from mmkd_lite import readme

    root = repository_root()
    if options.picture:
        print(f"written: {readme.write_picture(root).relative_to(root)}")
    if options.screenshot:
        from mmkd_lite.screenshot import take_screenshot

        print(take_screenshot(root))
    if not (options.picture or options.readme or options.screenshot):
        _refresh_all(root, select(find_notebooks(root / "notebooks"), options.names))
    if not (options.picture or options.screenshot):
        readme.write_table(root)
        readme.write_comparison(root)
        print(f"written: the tables of README.md, {readme.COMPARISON}")
    return 0


def _refresh_all(root: Path, notebooks: Sequence[Path]) -> None:
    """Refresh notebooks and their solutions; record each notebook's time and scores."""
    from mmkd_lite.progress import Progress
    from mmkd_lite.results import write_result
    from mmkd_lite.screenshot import take_screenshot
    from mmkd_lite.speed import measure_speed

    speed = measure_speed()
    expected = [expected_seconds(path, SCALE) / speed for path in notebooks]
    with Progress(expected) as progress, kernel_environment():
        for path in notebooks:
            if path.name.startswith(SHOWS_DEMO):
                progress.say(take_screenshot(root))
            with progress.item(path.stem):
                seconds, metrics = refresh(path)
                for solutions in root.glob(f"notebooks/solutions/{path.name[:2]}_*.ipynb"):
                    refresh(solutions)
            write_result(
                f"notebooks/{path.stem}",
                configuration={"notebook": path.stem, "scale": SCALE},
                metrics={**metrics, "seconds_at_nominal_speed": round(seconds * speed, 1)},
                seed=0,
                seconds=seconds,
                command=f"python -m mmkd_lite refresh {path.stem}",
            )
            progress.say(f"{path.stem:<32} {seconds:6.1f} s")


def refresh(path: Path) -> tuple[float, dict[str, Any]]:
    """Run one notebook in place with its default parameters.

    Args:
        path: The notebook; it is overwritten only if it ran and every output may be stored.

    Returns:
        The seconds it took, kernel start included, and the metrics it reported.

    Raises:
        ValueError: If a cell fails or leaves an output that must not be stored; names the cell.
    """
    import nbformat
    from nbclient import NotebookClient
    from nbclient.exceptions import CellExecutionError

    from mmkd_lite.results import read_metrics

    notebook = nbformat.read(path, as_version=4)
    with tempfile.TemporaryDirectory() as out_dir:
        executed = with_out_dir(notebook, out_dir)
        where = {"metadata": {"path": str(path.parent)}}
        client = NotebookClient(
            executed,
            timeout=None,
            kernel_name="python3",
            resources=where,
            extra_arguments=KERNEL_ARGUMENTS,
        )
        start = time.perf_counter()
        try:
            client.execute()
        except CellExecutionError as error:
            raise ValueError(f"{path.name} failed and was left as it was:\n{error}") from None
        seconds = time.perf_counter() - start
        metrics = read_metrics(out_dir)
    for cell, run in zip(notebook.cells, executed.cells, strict=True):
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = run.outputs, run.execution_count
    normalise(notebook)
    if problems := unfit_outputs(notebook):
        raise ValueError(f"{path.name} was left as it was: {'; '.join(problems)}")
    write_atomic(path, nbformat.writes(notebook) + "\n")
    return seconds, metrics


def with_out_dir(notebook: Any, out_dir: str) -> Any:
    """Return a copy whose parameters cell sets `OUT_DIR`, so that the notebook reports metrics."""
    changed = copy.deepcopy(notebook)
    for cell in changed.cells:
        if "parameters" in cell.metadata.get("tags", []):
            cell.source = cell.source.replace('OUT_DIR = ""', f"OUT_DIR = {out_dir!r}")
    return changed


def normalise(notebook: Any) -> None:
    """Remove from a notebook, in place, what differs between two runs or two editors.

    Args:
        notebook: An `nbformat` notebook, version 4.
    """
    notebook.nbformat, notebook.nbformat_minor = 4, 5
    notebook.metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    seen: dict[str, int] = {}
    for cell in notebook.cells:
        digest = hashlib.sha256(cell.source.encode()).hexdigest()[:12]
        seen[digest] = seen.get(digest, 0) + 1
        cell["id"] = digest if seen[digest] == 1 else f"{digest}-{seen[digest]}"
        tags = cell.metadata.get("tags", [])
        cell.metadata = {"tags": tags} if tags else {}
        if cell.cell_type == "code":
            cell.outputs = _joined(cell.outputs)


def _joined(outputs: Sequence[Any]) -> list[Any]:
    """Join neighbouring pieces of one stream, whose borders depend on timing."""
    joined: list[Any] = []
    for output in outputs:
        output.pop("transient", None)
        last = joined[-1] if joined else None
        if last and output.output_type == last.output_type == "stream" and output.name == last.name:
            last.text += output.text
        else:
            joined.append(output)
    return joined


def unfit_outputs(notebook: Mapping[str, Any]) -> list[str]:
    """Return what must not be stored: errors, stderr, machine paths; one line each."""
    problems = []
    for number, cell in enumerate(notebook["cells"]):
        for output in cell.get("outputs", []):
            text = "".join(output.get("text", "")) or "".join(
                output.get("data", {}).get("text/plain", "")
            )
            if output["output_type"] == "error":
                problems.append(f"cell {number}: {output['ename']}: {output['evalue']}")
            elif output.get("name") == "stderr":
                problems.append(f"cell {number} writes to stderr: {text[:80]!r}")
            elif found := MACHINE_PATH.search(text):
                problems.append(f"cell {number} shows a machine path: {found.group()}")
    return problems


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m mmkd_lite refresh",
        description="Run notebooks at laptop scale, store their outputs, renew README's table.",
    )
    parser.add_argument("names", nargs="*", metavar="NN", help="numbers or names; all if left out")
    parser.add_argument("--readme", action="store_true", help="renew only README's table")
    parser.add_argument("--picture", action="store_true", help="draw only README's picture")
    parser.add_argument("--screenshot", action="store_true", help="take only the demo's picture")
    return parser
