"""`reproduce` on three small notebooks of its own: order, failure, resuming, reports."""

import json
import os

import nbformat
import pytest

from mmkd_lite import reproduce
from mmkd_lite.progress import Progress
from mmkd_lite.report import key_outputs, metric_rows, scoreboard
from mmkd_lite.reproduce import Plan, find_notebooks, point_latest, run, run_notebook, select

PARAMETERS = 'SCALE = "laptop"\nSEED = 0\nDEVICE = "cpu"\nOUT_DIR = ""\n'
GOOD = """
%matplotlib inline
import json, os, pathlib
assert "MMKD_SCALE" not in os.environ and SCALE == "tiny" and SEED == 3
figures = {"r1": {"value": 12.5, "chance": 0.5}, "claims": [{"id": "E1", "verdict": "shown"}]}
pathlib.Path(OUT_DIR, "metrics.json").write_text(json.dumps(figures))
from matplotlib.figure import Figure
figure = Figure(figsize=(1, 1))
_ = figure.subplots().plot([1, 2])
figure
"""
BAD = "raise RuntimeError('as intended')"
KEYS = {"scale", "seed", "commit", "versions", "speed", "seconds", "notebooks", "claims"}


def write_notebook(path, *sources):
    cells = [nbformat.v4.new_markdown_cell(f"# {path.name[:2]} · {path.stem[3:]}")]
    cells += [nbformat.v4.new_code_cell(source) for source in (PARAMETERS, *sources)]
    cells[1].metadata["tags"] = ["parameters"]
    metadata = {"kernelspec": {"name": "python3", "display_name": "p", "language": "python"}}
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=metadata), path)
    return path


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """One run of a notebook that works, one that fails and one that works, in this order."""
    folder = tmp_path_factory.mktemp("reproduce")
    (folder / "notebooks").mkdir()
    for name, source in (("01_good", GOOD), ("02_bad", BAD), ("10_later", "print('<here>')")):
        write_notebook(folder / "notebooks" / f"{name}.ipynb", source)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reproduce, "measure_speed", lambda: 0.5)
        patch.setattr(reproduce, "code_fingerprint", lambda root: "code")
        patch.setattr("mmkd_lite.data.commands.main", lambda arguments: 0)
        plan = Plan(
            folder / "runs" / "one",
            find_notebooks(folder / "notebooks"),
            {"SCALE": "tiny", "SEED": 3, "DEVICE": "cpu"},
        )
        plan.folder.mkdir(parents=True)
        status = run(plan)
    return plan, status, json.loads((plan.folder / "summary.json").read_text())


def test_a_failed_notebook_stops_neither_the_others_nor_the_report(finished):
    plan, status, summary = finished
    assert status == 1
    assert [entry["name"] for entry in summary["notebooks"]] == ["01_good", "02_bad", "10_later"]
    assert [entry["ok"] for entry in summary["notebooks"]] == [True, False, True]
    state = json.loads((plan.folder / "notebooks" / "02_bad.json").read_text())
    assert "RuntimeError: as intended" in state["error"]
    executed = nbformat.read(plan.folder / "notebooks" / "10_later.ipynb", as_version=4)
    assert executed.cells[-1].outputs[0].text == "<here>\n"


def test_the_summary_has_the_published_shape(finished):
    _, _, summary = finished
    assert set(summary) == KEYS
    assert summary["scale"] == "tiny" and summary["seed"] == 3 and summary["speed"] == 0.5
    assert {"python", "torch", "numpy"} <= set(summary["versions"])
    for entry in summary["notebooks"]:
        assert set(entry) == {"name", "ok", "seconds", "metrics"}
    assert summary["notebooks"][0]["metrics"] == {"r1": {"value": 12.5, "chance": 0.5}}
    assert summary["claims"] == [{"id": "E1", "verdict": "shown"}]
    assert summary["seconds"] == pytest.approx(
        sum(entry["seconds"] for entry in summary["notebooks"]), abs=0.06
    )


def test_the_page_stands_alone(finished):
    plan, _, _ = finished
    page = (plan.folder / "index.html").read_text(encoding="utf-8")
    assert "data:image/png;base64,iVBOR" in page
    assert "http" not in page and "<script" not in page and "<link" not in page
    assert "01 · good" in page and "FAILED" in page
    assert "12.5" in page and "chance" in page
    assert (plan.folder.parent / "latest" / "index.html").read_text(encoding="utf-8") == page


def test_what_ended_well_is_not_run_again_and_what_failed_is(finished, monkeypatch):
    plan, _, _ = finished
    ran = []
    monkeypatch.setattr(reproduce, "_execute", lambda source, *rest: ran.append(source.stem) or "")
    states = [run_notebook(plan, path, "code") for path in plan.notebooks]
    assert ran == ["02_bad"]
    assert states[0]["kept"] and states[0]["metrics"]["r1"]["value"] == 12.5


def test_other_sources_parameters_or_code_run_again_in_an_empty_folder(tmp_path, monkeypatch):
    ran = []

    def execute(source, target, parameters):
        ran.append(os.listdir(parameters["OUT_DIR"]))
        with open(os.path.join(parameters["OUT_DIR"], "checkpoint"), "w") as file:
            file.write("x")
        return ""

    monkeypatch.setattr(reproduce, "_execute", execute)
    path = write_notebook(tmp_path / "01_a.ipynb", "1")
    plan = Plan(tmp_path / "run", (path,), {"SEED": 0})
    run_notebook(plan, path, "code")
    run_notebook(plan, path, "code")
    assert len(ran) == 1
    run_notebook(plan, path, "other code")
    run_notebook(Plan(tmp_path / "run", (path,), {"SEED": 1}), path, "other code")
    write_notebook(path, "2")
    run_notebook(plan, path, "other code")
    assert ran == [[], [], [], []]
    run_notebook(Plan(plan.folder, (path,), {"SEED": 0}, again=True), path, "other code")
    assert ran == [[], [], [], [], []]


def test_an_interrupted_notebook_finds_its_own_checkpoint(tmp_path, monkeypatch):
    path = write_notebook(tmp_path / "01_a.ipynb", "1")
    plan = Plan(tmp_path / "run", (path,), {"SEED": 0})

    def interrupted(source, target, parameters):
        (tmp_path / "run" / "01" / "checkpoint").write_text("half way")
        raise KeyboardInterrupt

    monkeypatch.setattr(reproduce, "_execute", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run_notebook(plan, path, "code")
    found = []
    monkeypatch.setattr(
        reproduce, "_execute", lambda s, t, p: found.extend(os.listdir(p["OUT_DIR"])) or ""
    )
    assert run_notebook(plan, path, "code")["ok"]
    assert found == ["checkpoint"]


def test_the_code_fingerprint_follows_package_and_committed_data(tmp_path):
    files = [tmp_path / "mmkd_lite" / "a.py", tmp_path / "data" / "results" / "b" / "c.json"]
    files += [tmp_path / "data" / "tokenizer.json", tmp_path / "data" / "cache" / "big"]
    for file in files:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("1")
    seen = [reproduce.code_fingerprint(tmp_path)]
    for file in files:
        file.write_text("2")
        seen.append(reproduce.code_fingerprint(tmp_path))
    assert len(set(seen[:4])) == 4 and seen[3] == seen[4]


def test_outputs_do_not_change_a_fingerprint(tmp_path):
    path = write_notebook(tmp_path / "01_a.ipynb", "1")
    before = reproduce.notebook_fingerprint(path, {}, "code")
    notebook = nbformat.read(path, as_version=4)
    notebook.cells[1].outputs = [nbformat.v4.new_output("stream", text="1")]
    nbformat.write(notebook, path)
    assert reproduce.notebook_fingerprint(path, {}, "code") == before
    assert reproduce.notebook_fingerprint(path, {"SEED": 1}, "code") != before


def test_latest_works_where_links_are_not_allowed(tmp_path, monkeypatch):
    def refused(self, target, target_is_directory=False):
        raise OSError("no right to make links")

    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "index.html").write_text(f'<a href="notebooks/{name}.ipynb">')
    point_latest(tmp_path / "one")
    point_latest(tmp_path / "two")
    assert (tmp_path / "latest").resolve() == tmp_path / "two"
    monkeypatch.setattr("pathlib.Path.symlink_to", refused)
    point_latest(tmp_path / "one")
    assert (tmp_path / "latest" / "run.txt").read_text() == "one\n"
    page = (tmp_path / "latest" / "index.html").read_text()
    assert page == '<a href="../one/notebooks/one.ipynb">'


def test_notebooks_are_chosen_by_number_or_name_in_course_order(tmp_path):
    paths = [tmp_path / name for name in ("00_a.ipynb", "05_b.ipynb", "15_c.ipynb")]
    assert select(paths, []) == tuple(paths)
    assert select(paths, ["15_c.ipynb", "5"]) == (paths[1], paths[2])
    with pytest.raises(ValueError, match=r"'7'; valid names .*: 00_a, 05_b, 15_c"):
        select(paths, ["7"])


def test_the_time_left_follows_the_pace_so_far():
    progress = Progress([10.0, 20.0, 30.0])
    assert progress.seconds_left() == 60.0
    progress.taken.append(20.0)
    assert progress.seconds_left(elapsed=15.0) == 2 * 50.0 - 15.0
    progress.taken += [40.0, 60.0]
    assert progress.seconds_left() == 0.0
    progress.bar.close()


def test_metrics_become_rows_with_their_reference_values():
    metrics = {"r1": 1.23456, "group": {"r5": {"value": 2, "published": 61.0}}, "word": "shown"}
    assert metric_rows(metrics) == [
        ("r1", "1.235", "", "", ""),
        ("group.r5", "2", "", "", "61"),
        ("word", "shown", "", "", ""),
    ]


def test_the_scoreboard_gives_times_as_measured_and_at_nominal_speed(finished):
    _, _, summary = finished
    entry = {
        "name": "01_good",
        "ok": True,
        "seconds": 20.0,
        "metrics": {"r1": 3.0, "headline": "R@1 3 %"},
    }
    board = scoreboard({**summary, "seconds": 20.0, "notebooks": [entry]})
    assert [line.split() for line in board.splitlines() if line.startswith("01_good")] == [
        ["01_good", "ok", "20", "10", "R@1", "3", "%"]
    ]
    assert "1 of 1 notebooks ok" in board and "at nominal speed 10 s" in board


def test_tagged_cells_come_before_last_figures():
    def cell(name, tags=()):
        output = {"output_type": "display_data", "data": {"image/png": name}}
        return {"cell_type": "code", "source": "", "metadata": {"tags": tags}, "outputs": [output]}

    figures = [cell("AAAA"), cell("BBBB"), cell("CCCC")]
    assert [("BBBB" in part, "CCCC" in part) for part in key_outputs(figures)] == [
        (True, False),
        (False, True),
    ]
    parts = key_outputs([cell("AAAA", ["report"]), *figures])
    assert len(parts) == 1 and "AAAA" in parts[0]
