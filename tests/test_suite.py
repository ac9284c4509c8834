"""The suite: every row against the scorers of `compare`, resuming, and what it refuses."""

from __future__ import annotations

import pytest
import torch

from mmkd_lite import suite
from mmkd_lite.config import resolve
from mmkd_lite.evaluate import recall_interval
from mmkd_lite.picture_scores import Labelled, score_pictures
from mmkd_lite.results import read_result
from mmkd_lite.scoring import score_method
from mmkd_lite.subject import LacksTower, open_subject
from tests.tiny_student import CHEAP, tiny_run, tiny_subject

KEYS = {"task", "metric", "protocol", "value", "n", "chance", "majority", "low", "high"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("evaluation")


@pytest.fixture(scope="module")
def record(folder):
    return suite.evaluate(tiny_subject(), CHEAP, folder, say=lambda line: None)


def test_there_are_at_least_14_rows_each_with_all_it_needs(record, folder):
    rows = suite.rows_of(record)
    assert len(rows) >= 14 and len({(row["task"], row["metric"]) for row in rows}) == len(rows)
    for row in rows:
        assert set(row) == KEYS and row["n"] > 0
        assert 0 <= row["low"] <= row["value"] <= row["high"] <= 100
        assert 0 < row["chance"] < 100
    names = {row["task"] for row in rows}
    for kind in ("zero-shot", "probe"):
        for level in ("fine", "coarse"):
            assert {f"{kind} {level} {artist}" for artist in suite.ARTISTS} <= names
    written = (folder / "evaluation.md").read_text(encoding="utf-8")
    assert written.count("\n") == len(rows) + 2 and suite.templates_hash() in written


def test_rows_equal_what_compare_scores(record):
    by_name = {(row["task"], row["metric"]): row for row in suite.rows_of(record)}
    subject = tiny_subject()
    pictures = score_pictures(subject.model, subject.config)
    for kind, name in (("zero-shot", "zero_shot"), ("probe", "probe")):
        for level in ("fine", "coarse"):
            ours, theirs = (
                by_name[f"{kind} {level} twemoji", "accuracy"],
                pictures[f"{name}_{level}"],
            )
            assert ours["value"] == pytest.approx(theirs["accuracy"])
            assert ours["chance"] == pytest.approx(theirs["chance"])
            assert ours["majority"] == pytest.approx(theirs["majority"])
            assert ours["n"] == theirs["n"]
    retrieval = score_method(subject.model, subject.config)
    names = {"composition": "composition by id", "composition_by_truth": "composition by truth",
             "near": "near by id", "far": "far by id"}  # fmt: skip
    for theirs, ours in names.items():
        for key in suite.RECALLS:
            row = by_name[f"retrieval {ours}", key]
            assert row["value"] == pytest.approx(retrieval[theirs][key])
            assert row["chance"] == pytest.approx(retrieval[theirs][f"chance_{key}"])
    for key in ("i2t_r1", "t2i_r1"):
        assert by_name["look-alikes", key]["value"] == retrieval["look_alikes"][f"within_{key}"]


def test_the_random_start_of_a_tower_is_near_chance_and_the_teacher_is_not(folder):
    teacher = open_subject("clip", like=tiny_subject())
    found = suite.evaluate(teacher, ["zero_shot"], folder, name="teacher", say=lambda line: None)
    value = {row["task"]: row["value"] - row["chance"] for row in suite.rows_of(found)}
    assert value["zero-shot fine twemoji"] > 10


def test_an_interrupted_evaluation_goes_on_where_it_stopped(tmp_path, monkeypatch, record):
    calls = []

    def counted(name):
        def score(subject):
            calls.append(name)
            if name == "retrieval" and calls.count(name) == 1:
                raise KeyboardInterrupt
            return suite.find_look_alikes(subject)

        return score

    monkeypatch.setattr(suite, "TASKS", {name: counted(name) for name in ("probe", "retrieval")})
    with pytest.raises(KeyboardInterrupt):
        suite.evaluate(tiny_subject(), folder=tmp_path)
    assert list(read_result("evaluation", tmp_path)["metrics"]["tasks"]) == ["probe"]
    suite.evaluate(tiny_subject(), folder=tmp_path)
    assert calls == ["probe", "retrieval", "retrieval"]
    other = tiny_subject()
    other.checksum = "of other weights"
    suite.evaluate(other, folder=tmp_path)
    assert calls[3:] == ["probe", "retrieval"]
    suite.evaluate(other, ["probe"], tmp_path, again=True)
    assert calls[5:] == ["probe"]


def test_embeddings_are_computed_once(monkeypatch, tmp_path):
    subject, seen = tiny_subject(), []
    encode = subject.model.encode_image
    monkeypatch.setattr(
        subject.model, "encode_image", lambda x: (seen.append(len(x)), encode(x))[1]
    )
    suite.evaluate(subject, ["zero_shot", "probe"], tmp_path, say=lambda line: None)
    assert seen[0] == 1, "one picture to count FLOPs"
    assert sum(seen[1:]) == 5 * 200, "four test sets and one training set of 200 pictures"


def test_tasks_without_their_tower_are_left_out_with_a_reason_or_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(suite, "TASKS", {k: suite.TASKS[k] for k in ("zero_shot", "probe")})
    subject = open_subject("vit", like=tiny_subject())
    found = suite.evaluate(subject, folder=tmp_path, say=lambda line: None)
    tasks = found["metrics"]["tasks"]
    assert tasks["zero_shot"] == {
        "rows": [], "seconds": tasks["zero_shot"]["seconds"], "skipped": "vit has no text tower",
    }  # fmt: skip
    assert len(tasks["probe"]["rows"]) == 8
    with pytest.raises(LacksTower, match=r"cnn: .* image"):
        suite.video(open_subject("cnn", like=subject))
    with pytest.raises(LacksTower, match="vit has no text tower"):
        suite.evaluate(subject, ["zero_shot"], tmp_path, again=True)


def test_unknown_tasks_are_answered_with_the_valid_ones(tmp_path):
    with pytest.raises(ValueError, match="unknown tasks: probes; valid: zero_shot, probe"):
        suite.evaluate(tiny_subject(), ["probes"], tmp_path)


def test_a_test_set_without_some_class_says_so():
    labels = {"fine": torch.tensor([0, 0, 2, 2])}
    test = Labelled(
        torch.zeros(4, 3, 2, 2), labels, {"fine": ["a", "b", "c"]}, torch.tensor([5, 5, 6, 7])
    )
    hits = torch.tensor([True, True, False, True])
    row = suite._class_row("probe", "rule", "noto", "fine", test, hits)
    assert "classes=3/absent=1/" in row.protocol and "artist=noto" in row.protocol
    assert (row.value, row.chance, row.majority) == (75.0, pytest.approx(100 / 3), 50.0)
    assert (row.low, row.high) == recall_interval(2 - hits.long(), 1, test.concept)


@pytest.mark.parametrize("bad", ["nan", "constant"])
def test_embeddings_that_say_nothing_stop_the_suite(tmp_path, monkeypatch, bad):
    subject = tiny_subject()
    value = float("nan") if bad == "nan" else 0.5
    monkeypatch.setattr(subject.model, "encode_image", lambda x: torch.full((len(x), 16), value))
    with pytest.raises(ValueError, match="NaN" if bad == "nan" else "collapsed"):
        suite.evaluate(subject, ["probe"], tmp_path)


def test_the_command_prints_the_table_and_the_retention(tmp_path, capsys):
    words = [str(tiny_run().dir), "--tasks", "look_alikes", "--teacher", "--out", str(tmp_path)]
    assert suite.evaluate_command(words) == 0
    printed = capsys.readouterr().out
    assert "| look-alikes | i2t_r1 |" in printed and "teacher clip, student" in printed
    assert "million parameters" in (tmp_path / "retention.md").read_text(encoding="utf-8")
    assert {path.name for path in tmp_path.glob("*.json")} == {
        "evaluation.json", "teacher_evaluation.json",
    }  # fmt: skip


def test_text_and_video_rows_have_the_same_shape(monkeypatch):
    subject = tiny_subject()
    for task in ("text", "video"):
        rows = suite.TASKS[task](subject)
        assert rows and all(isinstance(row, suite.Row) for row in rows)
        assert all(row.low <= row.value <= row.high for row in rows)


def test_cost_counts_the_method_without_its_teacher():
    subject = tiny_subject()
    found = suite.cost(subject)
    assert found["parameters"] == sum(p.numel() for p in subject.model.parameters())
    assert 0 < found["flops"] < suite.cost(open_subject("clip", like=subject))["flops"]
    assert resolve("distill_clip", "tiny").teacher == "clip"
