"""The model card: the fields of Table A.1, numbers from result files only, the leakage flag."""

from __future__ import annotations

import re

import pytest

from mmkd_lite import card, suite
from mmkd_lite.config import resolve, to_dict
from mmkd_lite.retention import TEACHER_NAME
from mmkd_lite.subject import description, open_subject
from tests.tiny_student import tiny_run, tiny_subject

FIELDS = (  # of seed 003, Table A.1
    "Model details", "Intended use", "Primary use", "Primary users", "Out of scope", "Factors", "Metrics",
    "Evaluation data", "Training data", "Quantitative analyses", "Ethical considerations", "batch_size",
    "base_lr", "weight_decay", "betas", "eps", "warmup_fraction", "steps",
)  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("card")
    student = tiny_subject()
    suite.evaluate(student, ["zero_shot", "look_alikes"], folder, say=lambda line: None)
    guide = open_subject("clip", like=student)
    suite.evaluate(guide, ["zero_shot"], folder, name=TEACHER_NAME, say=lambda line: None)
    return folder


def test_the_command_writes_a_card_with_every_field_and_every_number(folder, capsys):
    assert card.card_command([str(folder), "--name", "tiny student"]) == 0
    text = (folder / "README.md").read_text(encoding="utf-8")
    for field in FIELDS:
        assert field in text, f"the card lacks {field!r}"
    record = suite.read_result("evaluation", folder)
    for row in suite.rows_of(record):
        assert re.search(rf"\| {row['task']} \| {row['metric']} \| {row['value']:.1f} \|", text)
    assert "### Retention" in text and "Teacher: clip" in text
    assert f"{record['metrics']['parameters']:,}" in text


def test_the_metadata_is_what_the_hub_reads(folder):
    record = suite.read_result("evaluation", folder)
    found = card.model_card(record)
    read_back = type(found)(str(found))  # parses the metadata as the hub does
    results = read_back.data.to_dict()["model-index"][0]["results"]
    values = {m["value"] for entry in results for m in entry["metrics"]}
    assert len(results) == len({row["task"] for row in suite.rows_of(record)})
    assert values == {round(row["value"], 2) for row in suite.rows_of(record)}
    assert found.data.license == "mit" and "Retention" not in found.text


def test_data_of_student_and_teacher_and_the_leakage_flag():
    config = to_dict(resolve("distill_clip", "laptop"))
    rows = {row["model"]: row for row in card.lineage(config)}
    assert list(rows) == ["distill_clip", "clip", "vit", "text"]
    assert rows["distill_clip"]["role"] == "this model" and rows["clip"]["role"] == "teacher"
    assert [row["saw class labels"] for row in rows.values()] == ["no", "no", "yes", "no"]
    assert card.leakage(config).startswith("vit saw the fine class labels")
    text_only = {**config, "teacher": "text", "image": {**config["image"], "start": ""}}
    assert card.leakage(text_only) == ""
    assert "timm:x saw is not recorded" in card.leakage({**text_only, "teacher": "timm:x"})
    own = card.lineage({**config, "method": "timm:x"})[0]
    assert own["saw class labels"] == "unknown" and own["role"] == "this model"
    supervised = {**text_only, "method": "supervised"}
    assert card.leakage(supervised).startswith("supervised saw")


def test_an_evaluation_comes_first(tmp_path):
    with pytest.raises(FileNotFoundError, match="mmkd_lite evaluate"):
        card.card_command([str(tmp_path)])
    record = {"metrics": {"tasks": {}}, "configuration": {"subject": "x"}}
    with pytest.raises(ValueError, match="holds no row"):
        card.model_card(record)


def test_a_card_of_a_student_without_a_teacher_record(folder):
    record = suite.read_result("evaluation", folder)
    record["configuration"]["config"]["teacher"] = ""
    text = str(card.model_card(record, name="alone"))
    assert "| teacher | none |" in text and text.count("# alone") == 1
    assert tiny_run().config.teacher == "clip"


def test_a_teacher_is_described_by_how_it_was_made_itself():
    clip = open_subject("clip", like=tiny_subject())
    config = description(clip)
    assert config["method"] == "contrast" and config["teacher"] == ""
    assert config["data"] == to_dict(tiny_run().config)["data"]
    assert [row["model"] for row in card.lineage(config)] == ["contrast", "vit", "text"]
