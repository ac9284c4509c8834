"""Opening what is evaluated: runs, checkpoints, teachers; refusing what does not fit."""

from __future__ import annotations

import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from mmkd_lite.checkpoint import checkpoint_paths
from mmkd_lite.storage import read_json, sha256_of_file, write_json
from mmkd_lite.subject import LacksTower, ancestors, open_subject, recorded_config
from tests.tiny_student import tiny_run, tiny_subject

TEXTS = ["a cat", "two dogs on a red background"]


def test_a_run_its_weights_and_its_last_checkpoint_are_one_model():
    run = tiny_run()
    images = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    subjects = [open_subject(path) for path in (
        run.dir, run.dir / "model.safetensors", checkpoint_paths(run.checkpoints)[0],
    )]  # fmt: skip
    for subject in subjects:
        assert torch.equal(subject.image_vectors(images), subjects[0].image_vectors(images))
        assert torch.equal(subject.text_vectors(TEXTS), subjects[0].text_vectors(TEXTS))
        assert not subject.model.training
    assert (
        subjects[0].checksum
        == subjects[1].checksum
        == sha256_of_file(run.dir / "model.safetensors")
    )


def test_a_teacher_is_fed_at_its_own_size_on_the_students_data():
    teacher = open_subject("clip", like=tiny_subject())
    images = torch.rand(2, 3, 32, 32)
    expected = teacher.model.model.encode_image(teacher.model.fit_size(images))
    assert torch.allclose(teacher.image_vectors(images), expected, atol=1e-6)
    assert teacher.data == tiny_subject().data


@pytest.mark.parametrize(
    ("name", "image", "text"),
    [("clip", True, True), ("vit", True, False), ("cnn", True, False), ("text", False, True)],
)
def test_towers_of_teachers(name, image, text):
    subject = open_subject(name, "tiny")
    assert (subject.has("image"), subject.has("text")) == (image, text)
    if image:
        assert len(subject.image_vectors(torch.rand(2, 3, 32, 32))) == 2
    else:
        with pytest.raises(LacksTower, match="text has no image tower"):
            subject.image_vectors(torch.rand(2, 3, 32, 32))
    if text:
        assert len(subject.text_vectors(TEXTS)) == 2


def test_a_checkpoint_of_another_architecture_is_refused(tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(tiny_run().dir, folder)
    config = read_json(folder / "config.json")
    config["options"]["space_width"] = 24
    write_json(folder / "config.json", config)
    with pytest.raises(
        ValueError, match=r"not those of the configured distill_clip.*size mismatch"
    ):
        open_subject(folder)
    weights = load_file(folder / "model.safetensors")
    weights.pop(next(iter(weights)))
    save_file(weights, folder / "model.safetensors")
    marker = read_json(folder / "finished.json")
    marker["model_sha256"] = sha256_of_file(folder / "model.safetensors")
    write_json(folder / "finished.json", marker)
    with pytest.raises(ValueError, match="another architecture"):
        open_subject(folder)


def test_damage_and_absence_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="holds no run"):
        open_subject(tmp_path)
    folder = tmp_path / "run"
    shutil.copytree(tiny_run().dir, folder)
    step = checkpoint_paths(folder / "checkpoints")[0]
    (step / "tensors.safetensors").write_bytes(b"cut")
    with pytest.raises(ValueError, match="cut short or altered"):
        open_subject(step)
    (folder / "finished.json").unlink()
    with pytest.raises(FileNotFoundError, match="not finished"):
        open_subject(folder)


def test_the_same_inputs_are_embedded_once_and_memory_is_bounded(monkeypatch):
    monkeypatch.setattr("mmkd_lite.subject.KEPT", 2)
    subject, calls = tiny_subject(), []
    encode = subject.model.encode_text
    monkeypatch.setattr(subject.model, "encode_text", lambda x: (calls.append(1), encode(x))[1])
    for text in ("a", "a", "b", "c", "c", "a"):
        subject.text_vectors([f"the letter {text}"])
    assert len(calls) == 4 and len(subject._embedded) == 2


def test_equal_inputs_may_have_equal_embeddings():
    assert len(tiny_subject().text_vectors(["a cat", "a cat"])) == 2


def test_the_line_of_descent_reaches_the_starts_of_the_teacher():
    assert recorded_config("clip")["image"]["start"] == "vit"
    assert ancestors(tiny_run().config) == ["clip", "vit", "text"]
    assert ancestors(
        {"teacher": "timm:resnet18", "image": {"start": ""}, "text": {"start": ""}}
    ) == ["timm:resnet18"]
