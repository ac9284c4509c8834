"""`python -m mmkd_lite reproduce`: run the notebooks in order, collect scores, report.

    runs/<name>/notebooks/15_shre.ipynb   the executed copy
    runs/<name>/notebooks/15_shre.json    what came of it, and the fingerprint of what it came from
    runs/<name>/15/                       OUT_DIR of notebook 15, with its metrics.json
    runs/<name>/summary.json, index.html  the whole run; runs/latest leads to the newest

A notebook whose fingerprint is unchanged and that ended well is not run again, so an interrupted
run goes on where it stopped.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from mmkd_lite.config import SCALES
from mmkd_lite.notebook import repository_root, versions
from mmkd_lite.progress import Progress
from mmkd_lite.report import scoreboard, write_index
from mmkd_lite.results import commit, read_metrics
from mmkd_lite.speed import measure_speed
from mmkd_lite.storage import read_json, sha256_of_file, write_json

NOMINAL_SECONDS = {range(0, 5): 30, range(5, 6): 60, range(10, 21): 75, range(30, 37): 45}
"""Stated seconds of a notebook at laptop scale and nominal speed, by number; 20 for the others."""

SHARE_OF_LAPTOP = {"tiny": 0.3, "laptop": 1.0, "full": 200.0}
"""First guess of a notebook's time at each scale; the time left is corrected as notebooks end."""

KERNEL_ARGUMENTS = ["--log-level=ERROR"]
"""A kernel's own warnings would break the progress bar; what cells write is not affected."""


@dataclass(frozen=True)
class Plan:
    """One run of the notebooks.

    Attributes:
        folder: `runs/<name>`.
        notebooks: The notebooks to run, in order.
        parameters: Injected into every notebook, `OUT_DIR` excepted.
        again: Run notebooks again that already ended well.
    """

    folder: Path
    notebooks: tuple[Path, ...]
    parameters: Mapping[str, Any]
    again: bool = False


def reproduce_command(arguments: Sequence[str]) -> int:
    """Run the notebooks that the command line asks for; return 1 if any failed.

    Args:
        arguments: The words after `python -m mmkd_lite reproduce`.

    Raises:
        ValueError: If a notebook is unknown (the valid ones are listed), or if the run is already
            under way in another process.
    """
    options = _parser().parse_args(arguments)
    from mmkd_lite.runs import runs_root  # brings torch, which --help must not wait for

    chosen = select(find_notebooks(repository_root() / "notebooks"), options.only)
    parameters = {"SCALE": options.scale, "SEED": options.seed, "DEVICE": options.device}
    if options.data_dir:
        parameters["DATA_DIR"] = str(Path(options.data_dir).resolve())
    numbers = "-".join(path.name[:2] for path in chosen) if options.only else "all"
    name = options.name or f"{options.scale}-seed{options.seed}-{numbers}"
    plan = Plan(runs_root() / name, chosen, parameters, options.again)
    plan.folder.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(plan.folder / ".lock", timeout=0):
            return run(plan)
    except Timeout:
        raise ValueError(f"the run {name!r} is under way in another process; use --name") from None


def run(plan: Plan) -> int:
    """Measure the speed, build the data, run every notebook, print the scoreboard.

    Args:
        plan: What to run and where.

    Returns:
        0 when every notebook ended well, else 1.
    """
    from mmkd_lite.data import commands

    speed = measure_speed()
    print(f"this machine runs at {speed:.2f} of nominal speed")
    commands.main(["build"])
    code = code_fingerprint(repository_root())
    expected = [expected_seconds(path, plan.parameters["SCALE"]) / speed for path in plan.notebooks]
    states: list[dict[str, Any]] = []
    with Progress(expected) as progress, kernel_environment():
        for path in plan.notebooks:
            with progress.item(path.stem):
                states.append(run_notebook(plan, path, code))
            progress.say(_state_line(states[-1]))
            summary = summarise(plan, states, speed)
            write_json(plan.folder / "summary.json", summary)
            write_index(plan.folder, summary)
            point_latest(plan.folder)
    print(scoreboard(summary))
    for state in states:
        if not state["ok"]:
            print(f"FAILED {state['name']}: {state['error']}")
    print(f"report: {plan.folder.parent.name}/latest/index.html")
    return 0 if all(state["ok"] for state in states) else 1


def run_notebook(plan: Plan, path: Path, code: str) -> dict[str, Any]:
    """Run one notebook unless it already ended well from the same sources; return its state.

    Args:
        plan: The run it belongs to.
        path: The notebook.
        code: Fingerprint of everything the notebooks import and read.

    Returns:
        "name", "ok", "seconds", "metrics", "error", "fingerprint" and, if it was not run again,
        "kept": True.
    """
    state_file = plan.folder / "notebooks" / f"{path.stem}.json"
    fingerprint = notebook_fingerprint(path, plan.parameters, code)
    before = read_json(state_file) if state_file.exists() else {}
    out_dir = plan.folder / path.name[:2]
    unchanged = before.get("fingerprint") == fingerprint and not plan.again
    if unchanged and before["ok"]:
        return {**before, "kept": True}
    if not unchanged and out_dir.exists():  # a checkpoint of other sources must not be resumed
        shutil.rmtree(out_dir)
    out_dir.mkdir(parents=True, exist_ok=True)
    state = {"name": path.stem, "fingerprint": fingerprint, "ok": False, "error": "interrupted"}
    write_json(state_file, {**state, "seconds": 0.0, "metrics": {}})
    start = time.perf_counter()
    parameters = {**plan.parameters, "OUT_DIR": str(out_dir)}
    error = _execute(path, state_file.with_suffix(".ipynb"), parameters)
    state |= {
        "ok": not error,
        "error": error,
        "seconds": round(time.perf_counter() - start, 1),
        "metrics": read_metrics(out_dir),
    }
    write_json(state_file, state)
    return state


def _execute(source: Path, target: Path, parameters: Mapping[str, Any]) -> str:
    """Run a notebook with papermill; return "" or one line that says what went wrong."""
    import papermill

    try:
        papermill.execute_notebook(
            source,
            target,
            dict(parameters),
            cwd=source.parent,
            progress_bar=False,
            extra_arguments=KERNEL_ARGUMENTS,
        )
    except papermill.PapermillExecutionError as error:
        return f"cell {error.exec_count}: {error.ename}: {error.evalue}".splitlines()[0]
    except Exception as error:  # a dead kernel or an unreadable notebook must not stop the others
        return f"{type(error).__name__}: {error}".splitlines()[0]
    return ""


def find_notebooks(folder: Path) -> tuple[Path, ...]:
    """Return the numbered notebooks of a folder, in order."""
    return tuple(sorted(folder.glob("[0-9][0-9]_*.ipynb")))


def select(notebooks: Sequence[Path], names: Sequence[str]) -> tuple[Path, ...]:
    """Return the notebooks that are asked for by number or by name, in course order.

    Args:
        notebooks: All notebooks.
        names: Numbers such as "15" or "5", or names such as "15_shre"; empty asks for all.

    Raises:
        ValueError: If a name fits none; lists the valid ones.
    """
    wanted = set()
    for name in names:
        plain = name.removesuffix(".ipynb")
        fits = [p for p in notebooks if p.stem == plain or p.name[:2] == plain.zfill(2)]
        if not fits:
            valid = ", ".join(path.stem for path in notebooks)
            raise ValueError(f"unknown notebook {name!r}; valid names (or their numbers): {valid}")
        wanted.update(fits)
    return tuple(path for path in notebooks if not names or path in wanted)


def expected_seconds(notebook: Path, scale: str) -> float:
    """Return the stated seconds of a notebook at a scale and nominal speed."""
    number = int(notebook.name[:2])
    laptop = next((seconds for span, seconds in NOMINAL_SECONDS.items() if number in span), 20)
    return laptop * SHARE_OF_LAPTOP[scale]


def code_fingerprint(root: Path) -> str:
    """Return a SHA-256 over the package and the committed data that notebooks read."""
    files = sorted((root / "mmkd_lite").rglob("*.py"))
    for part in ("tokenizer.json", "teachers", "results"):
        files += sorted(path for path in (root / "data").glob(f"{part}/**/*") if path.is_file())
        files += [root / "data" / part] if (root / "data" / part).is_file() else []
    digests = {path.relative_to(root).as_posix(): sha256_of_file(path) for path in files}
    return _sha256({"files": digests, "versions": versions()})


def notebook_fingerprint(notebook: Path, parameters: Mapping[str, Any], code: str) -> str:
    """Return a SHA-256 over a notebook's cells (not its outputs), its parameters and the code."""
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    sources = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    return _sha256({"cells": sources, "parameters": dict(parameters), "code": code})


def summarise(plan: Plan, states: Sequence[Mapping[str, Any]], speed: float) -> dict[str, Any]:
    """Return the content of `summary.json`."""
    notebooks, claims = [], []
    for state in states:
        metrics = dict(state["metrics"])
        claims += metrics.pop("claims", [])
        entry = {key: state[key] for key in ("name", "ok", "seconds")}
        notebooks.append({**entry, "metrics": metrics})
    return {
        "scale": plan.parameters["SCALE"],
        "seed": plan.parameters["SEED"],
        "commit": commit(),
        "versions": versions(),
        "speed": round(speed, 3),
        "seconds": round(sum(state["seconds"] for state in states), 1),
        "notebooks": notebooks,
        "claims": claims,
    }


def point_latest(folder: Path) -> None:
    """Make `runs/latest` lead to a run: a link, or a copied index where links are not allowed."""
    latest = folder.parent / "latest"
    temporary = folder.parent / ".latest"
    temporary.unlink(missing_ok=True)
    try:
        temporary.symlink_to(folder.name, target_is_directory=True)
        os.replace(temporary, latest)
    except OSError:
        if latest.is_symlink():
            latest.unlink()
        latest.mkdir(exist_ok=True)
        page = (folder / "index.html").read_text(encoding="utf-8")
        page = page.replace('href="notebooks/', f'href="../{folder.name}/notebooks/')
        (latest / "index.html").write_text(page, encoding="utf-8")
        (latest / "run.txt").write_text(folder.name + "\n", encoding="utf-8")


@contextmanager
def kernel_environment() -> Iterator[None]:
    """Let kernels find this package and this environment, and no `MMKD_SCALE`; undo that after."""
    before = dict(os.environ)
    path = filter(None, (str(repository_root()), os.environ.get("PYTHONPATH", "")))
    os.environ["PYTHONPATH"] = os.pathsep.join(path)
    os.environ["JUPYTER_PREFER_ENV_PATH"] = "1"
    os.environ["PYDEVD_DISABLE_FILE_VALIDATION"] = "1"
    os.environ.pop("MMKD_SCALE", None)  # the injected SCALE counts
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def _state_line(state: Mapping[str, Any]) -> str:
    verdict = "ok" if state["ok"] else "FAILED"
    kept = " (kept from before)" if state.get("kept") else ""
    return f"{state['name']:<32} {verdict:<6} {state['seconds']:6.1f} s{kept}"


def _sha256(value: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m mmkd_lite reproduce",
        description="Run the notebooks in order and report their scores.",
    )
    scale = os.environ.get("MMKD_SCALE") or "laptop"
    parser.add_argument("--scale", default=scale, choices=SCALES, help=f"default {scale}")
    parser.add_argument("--only", nargs="+", default=[], metavar="NN", help="numbers or names")
    parser.add_argument("--seed", type=int, default=0, help="default 0")
    parser.add_argument("--device", default="cpu", help="a torch device, default cpu")
    parser.add_argument("--data-dir", default="", help="folder of a real data set, for full scale")
    parser.add_argument("--name", default="", help="folder under runs/")
    parser.add_argument("--again", action="store_true", help="run also what already ended well")
    return parser
