"""Rules that every notebook keeps; whether it runs is nbval's part of `make test`."""

import re
from pathlib import Path

import nbformat
import pytest

from mmkd_lite.notebook import repository_root
from mmkd_lite.refresh import unfit_outputs
from mmkd_lite.reproduce import find_notebooks

ROOT = repository_root()
NOTEBOOKS = find_notebooks(ROOT / "notebooks")
SOLUTIONS = find_notebooks(ROOT / "notebooks" / "solutions")
PARAMETERS = """\
SCALE = "laptop"
SEED = 0
DEVICE = "cpu"
OUT_DIR = ""
DATA_DIR = ""
OVERRIDES = ""
"""
LONGEST_CELL = 25
WIDEST_LINE = 79
LONGEST_PROSE = 150
EXERCISES = 3


def named(paths):
    return pytest.mark.parametrize("path", paths, ids=lambda path: path.stem)


def cells_of(path: Path, kind: str = ""):
    cells = nbformat.read(path, as_version=4).cells
    return [cell for cell in cells if kind in ("", cell.cell_type)]


def prose_of(path: Path) -> str:
    return "\n".join(cell.source for cell in cells_of(path, "markdown"))


def test_there_are_notebooks():
    assert {path.name[:2] for path in NOTEBOOKS} >= {"00", "01", "02", "03", "04", "05", "15", "30"}


@named(NOTEBOOKS)
def test_the_parameters_cell_is_the_same_everywhere(path):
    tagged = [
        cell for cell in cells_of(path, "code") if "parameters" in cell.metadata.get("tags", [])
    ]
    assert [cell.source.strip() for cell in tagged] == [PARAMETERS.strip()]


@named(NOTEBOOKS + SOLUTIONS)
def test_code_cells_are_short_and_prose_stands_between_them(path):
    in_a_row = 0
    for number, cell in enumerate(cells_of(path)):
        in_a_row = in_a_row + 1 if cell.cell_type == "code" else 0
        assert in_a_row <= 2, f"cell {number}: third code cell in a row"
        if cell.cell_type == "code":
            lines = cell.source.splitlines()
            assert len(lines) <= LONGEST_CELL, f"cell {number}: {len(lines)} lines of code"
            wide = [line for line in lines if len(line) > WIDEST_LINE]
            assert not wide, f"cell {number}: line of {len(wide[0])} columns: {wide[0]}"


@named(NOTEBOOKS)
def test_prose_cells_are_not_walls_of_text(path):
    for number, cell in enumerate(cells_of(path)):
        if cell.cell_type == "markdown":
            words = [line for line in cell.source.splitlines() if not line.startswith(("|", "- "))]
            count = len(" ".join(words).split())
            assert count <= LONGEST_PROSE, f"cell {number}: {count} words in one cell"


@named(NOTEBOOKS + SOLUTIONS)
def test_outputs_are_stored_and_fit_to_store(path):
    notebook = nbformat.read(path, as_version=4)
    assert any(cell.get("outputs") for cell in notebook.cells)
    assert unfit_outputs(notebook) == []
    run = [cell.execution_count for cell in notebook.cells if cell.cell_type == "code"]
    assert run == list(range(1, len(run) + 1)), "stored outputs are not those of one whole run"


@named(NOTEBOOKS + SOLUTIONS)
def test_no_trace_of_a_machine_or_a_run_in_the_metadata(path):
    notebook = nbformat.read(path, as_version=4)
    assert set(notebook.metadata) <= {"kernelspec", "language_info"}
    assert notebook.metadata.kernelspec.name == "python3"
    assert all(set(cell.metadata) <= {"tags"} for cell in notebook.cells)


@named(NOTEBOOKS)
def test_it_opens_with_its_number_and_closes_with_what_a_reader_needs(path):
    first = cells_of(path)[0].source
    assert first.startswith(f"# {path.name[:2]} · ")
    prose = prose_of(path)
    for part in ("Summary", "Pitfalls", "References", "Picture credits"):
        assert re.search(rf"^#+ .*{part}|\*\*{part}", prose, re.M | re.I), (
            f"no part called {part!r}"
        )


@named(NOTEBOOKS)
def test_three_exercises_with_a_checker_each(path):
    number = path.name[:2]
    code = "\n".join(cell.source for cell in cells_of(path, "code"))
    called = set(re.findall(rf"exercises_{number}\.exercise_(\d)", code))
    assert called == {str(i + 1) for i in range(EXERCISES)}


@named(NOTEBOOKS)
def test_solutions_solve_every_exercise(path):
    number = path.name[:2]
    solutions = ROOT / "notebooks" / "solutions" / f"{number}_solutions.ipynb"
    assert solutions.exists()
    code = "\n".join(cell.source for cell in cells_of(solutions, "code"))
    for exercise in range(1, EXERCISES + 1):
        assert f"exercise_{exercise}(" in code or f".exercise_{exercise}," in code
    stored = "".join(o.get("text", "") for c in cells_of(solutions, "code") for o in c.outputs)
    assert "not yet" not in stored and "waiting for your answer" not in stored


@named(NOTEBOOKS)
def test_it_asserts_and_reports(path):
    code = "\n".join(cell.source for cell in cells_of(path, "code"))
    assert re.search(r"\bassert\b|\b(?:same|close|expect|assert_close)\(", code)
    assert "write_metrics(" in cells_of(path, "code")[-1].source


@named(NOTEBOOKS)
def test_readme_has_its_row(path):
    row = rf"^\| \[{path.name[:2]}\]\(notebooks/{re.escape(path.name)}\) \|"
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(re.findall(row, readme, re.M)) == 1
