"""Stored outputs depend on the notebook alone; README's table is made from what was recorded."""

import json

import nbformat
import pytest

from mmkd_lite import readme
from mmkd_lite.comparison import ALL, file_stem
from mmkd_lite.notebook import repository_root
from mmkd_lite.refresh import normalise, refresh, unfit_outputs, with_out_dir
from mmkd_lite.results import write_result

PARAMETERS = 'SCALE = "laptop"\nOUT_DIR = ""'
REPORTS = """\
import json, pathlib
print("one", flush=True)
print("two")
if OUT_DIR:
    pathlib.Path(OUT_DIR, "metrics.json").write_text(json.dumps({"r1": 2.0}))
"""


def notebook_of(*sources):
    cells = [nbformat.v4.new_markdown_cell("# 01 · Toy\n\nAn idea\nin a line.\n\n`mmkd_lite/a.py`")]
    cells += [nbformat.v4.new_code_cell(source) for source in (PARAMETERS, *sources)]
    cells[1].metadata["tags"] = ["parameters"]
    return nbformat.v4.new_notebook(cells=cells)


def stored(path, *sources):
    path.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(notebook_of(*sources), path)
    return path


def test_two_refreshes_store_the_same_bytes_and_keep_the_parameters(tmp_path):
    path = stored(tmp_path / "01_toy.ipynb", REPORTS)
    seconds, metrics = refresh(path)
    first = path.read_bytes()
    assert seconds > 0 and metrics == {"r1": 2.0}
    notebook = nbformat.read(path, as_version=4)
    assert notebook.cells[1].source == PARAMETERS
    assert [output.text for output in notebook.cells[2].outputs] == ["one\ntwo\n"]
    assert [cell.execution_count for cell in notebook.cells[1:]] == [1, 2]
    refresh(path)
    assert path.read_bytes() == first


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("raise RuntimeError('as intended')", "failed and was left as it was(.|\n)*as intended"),
        ("import sys; print('!', file=sys.stderr)", "cell 2 writes to stderr"),
        ("print('/' + 'tmp/x')", "cell 2 shows a machine path: /t"),
    ],
)
def test_what_must_not_be_stored_leaves_the_file_alone(tmp_path, source, message):
    path = stored(tmp_path / "01_toy.ipynb", source)
    before = path.read_bytes()
    with pytest.raises(ValueError, match=message):
        refresh(path)
    assert path.read_bytes() == before


def test_normalise_removes_what_differs_between_runs():
    notebook = notebook_of("1", "1")
    notebook.metadata["papermill"] = {"duration": 3}
    for cell in notebook.cells:
        cell.metadata["execution"] = {"iopub.execute_input": "now"}
    other = json.loads(json.dumps(notebook))
    normalise(notebook)
    normalise(other := nbformat.from_dict(other))
    assert notebook == other
    assert set(notebook.metadata) == {"kernelspec", "language_info"}
    ids = [cell["id"] for cell in notebook.cells]
    assert len(set(ids)) == len(ids) == 4
    assert [dict(cell.metadata) for cell in notebook.cells] == [
        {},
        {"tags": ["parameters"]},
        {},
        {},
    ]
    nbformat.validate(notebook)


def test_out_dir_is_set_in_the_parameters_cell_of_a_copy():
    notebook = notebook_of('print(OUT_DIR == "")\nOUT_DIR = ""')
    changed = with_out_dir(notebook, "somewhere")
    assert changed.cells[1].source.endswith("OUT_DIR = 'somewhere'")
    assert changed.cells[2].source == notebook.cells[2].source
    assert notebook.cells[1].source == PARAMETERS


def test_unfit_outputs_looks_into_values_too():
    notebook = notebook_of("p")
    value = nbformat.v4.new_output("execute_result", {"text/plain": "'/home/me/x'"})
    notebook.cells[2].outputs = [value]
    assert unfit_outputs(notebook) == ["cell 2 shows a machine path: /home/me"]


def test_the_table_is_made_from_first_cells_and_recorded_results(tmp_path):
    stored(tmp_path / "notebooks" / "01_toy.ipynb")
    stored(tmp_path / "notebooks" / "15_new.ipynb")
    record = {
        "configuration": {"notebook": "01_toy"},
        "metrics": {"headline": "R@1 2 %", "seconds_at_nominal_speed": 12.4},
    }
    (tmp_path / "data" / "results" / "notebooks").mkdir(parents=True)
    (tmp_path / "data" / "results" / "notebooks" / "01_toy.json").write_text(json.dumps(record))
    blocks = [
        f"{readme.BEGIN}\nold\n{readme.END}\n".format(name, name)
        for name in ("notebooks", "methods")
    ]
    (tmp_path / "README.md").write_text(f"before\n{blocks[0]}between\n{blocks[1]}after\n")
    readme.write_table(tmp_path)
    lines = (tmp_path / "README.md").read_text(encoding="utf-8").splitlines()
    assert (lines[0], lines[-1]) == ("before", "after") and "old" not in lines
    assert (
        "| [01](notebooks/01_toy.ipynb) | Toy | An idea in a line. | `mmkd_lite/a.py` | 12 s | "
        "R@1 2 % |"
    ) in lines
    assert any(line.startswith("| [15]") and line.endswith("| – | – |") for line in lines)


def test_a_readme_without_markers_is_refused(tmp_path):
    (tmp_path / "README.md").write_text("no table here")
    with pytest.raises(ValueError, match=r"README\.md lacks a marker"):
        readme.write_table(tmp_path)


def test_the_committed_table_is_the_one_that_the_command_makes():
    root = repository_root()
    assert readme.notebook_table(root) in (root / "README.md").read_text(encoding="utf-8")


def test_the_picture_is_small():
    picture = repository_root() / readme.PICTURE
    assert picture.read_bytes()[:4] == b"\x89PNG"
    assert picture.stat().st_size < readme.PICTURE_BYTES


def test_the_picture_shows_the_committed_comparison_with_its_intervals(tmp_path):
    assert readme._comparison(tmp_path) is None
    for level, label in enumerate(readme.COMPARED, 1):
        for seed in range(5):
            recalls = {f"i2t_r{k}": 10.0 * level + k + seed for k in (1, 5, 10)}
            chances = {f"chance_i2t_r{k}": 0.1 * k for k in (1, 5, 10)}
            write_result(
                file_stem(label, "laptop", seed),
                configuration={},
                metrics={"composition": recalls | chances},
                seed=seed,
                seconds=1.0,
                folder=tmp_path / "data" / "results",
            )
    axes = readme._comparison(tmp_path).axes[0]
    heights = sorted(bar.get_height() for bar in axes.patches)
    assert heights == [10.0 * level + k + 2 for level in (1, 2, 3) for k in (1, 5, 10)]
    assert "5 seeds" in axes.get_title()


def test_the_committed_methods_are_the_ones_that_the_command_writes():
    root = repository_root()
    assert readme.method_table(root) in (root / "README.md").read_text(encoding="utf-8")


def test_the_committed_comparison_is_the_one_that_the_command_writes():
    root = repository_root()
    page = readme.comparison_page(root)
    assert page == (root / readme.COMPARISON).read_text(encoding="utf-8")
    assert all(f"| {label} |" in page for label in ALL)
