"""Shipped teachers: recorded scores, refusal of altered files, frozen, copied layers."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from mmkd_lite import teachers
from mmkd_lite.config import resolve
from mmkd_lite.methods import build
from mmkd_lite.methods.masked_words import mask_words
from mmkd_lite.methods.supervised import LabelledPictures
from mmkd_lite.methods.towers import build_towers
from mmkd_lite.storage import read_json, write_json
from mmkd_lite.teacher_training import RECIPES, recipe, score, teacher_state, teachers_command
from mmkd_lite.teachers import SHIPPED, TEACHERS_FOLDER, load_teacher, manifest, shipped_state


@pytest.mark.parametrize("name", list(SHIPPED))
def test_recorded_scores_are_those_of_the_committed_weights(name: str) -> None:
    again, recorded = score(load_teacher(name)), manifest()[name]["scores"]
    assert again.keys() == recorded.keys()
    for row, values in recorded.items():
        assert again[row] == pytest.approx(values, abs=0.3), row  # kernels round differently


def test_image_teachers_reach_the_aims_and_beat_the_majority() -> None:
    scores = manifest()["cnn"]["scores"]
    assert scores["composition"]["fine"] >= 85 and scores["composition"]["coarse"] >= 90
    assert scores["far_openmoji"]["coarse"] >= 40
    for name in ("cnn", "vit"):
        row = manifest()[name]["scores"]["composition"]
        assert row["fine"] > 3 * row["fine_majority"]
    text = manifest()["text"]["scores"]["composition"]
    assert text["masked_word"] > 2 * text["masked_word_majority"]


def test_the_two_towers_retrieve_and_the_bottleneck_aggregates() -> None:
    clip = manifest()["clip"]["scores"]["composition"]
    for side in ("i2t", "t2i"):
        assert clip[f"{side}_r1"] > 50 * clip[f"chance_{side}_r1"]
    for name in ("bottleneck", "latent"):
        rows = manifest()[name]["scores"]
        assert set(rows) == {"cls", "patches"}
        assert set(rows["cls"]) == {"fine", "fine_majority", "coarse", "coarse_majority"}
    aggregated = manifest()["bottleneck"]["scores"]["cls"]
    assert aggregated["fine"] > 2 * aggregated["fine_majority"]


def test_all_teachers_fit_in_eight_megabytes() -> None:
    assert sum(path.stat().st_size for path in TEACHERS_FOLDER.glob("*.safetensors")) < 8e6
    assert (
        {path.stem for path in TEACHERS_FOLDER.glob("*.safetensors")}
        == set(manifest())
        == set(RECIPES)
    )


def test_an_altered_or_missing_file_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "teachers"
    shutil.copytree(TEACHERS_FOLDER, folder)
    path = folder / "cnn.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"cnn\.safetensors is missing or is not the file"):
        shipped_state("cnn", folder=folder)
    path.unlink()
    with pytest.raises(ValueError, match="git checkout data/teachers"):
        shipped_state("cnn", folder=folder)
    with pytest.raises(ValueError, match="no shipped teacher 'gone'; shipped: cnn"):
        shipped_state("gone", folder=folder)
    with pytest.raises(FileNotFoundError, match="python -m mmkd_lite teachers"):
        manifest(tmp_path / "empty")


def test_a_file_that_matches_its_checksum_but_is_no_safetensors_is_refused(tmp_path: Path) -> None:
    record = dict(read_json(TEACHERS_FOLDER / "manifest.json")["cnn"])
    (tmp_path / "cnn.safetensors").write_bytes(b"not tensors")
    record["sha256"] = teachers.sha256_of_file(tmp_path / "cnn.safetensors")
    write_json(tmp_path / "manifest.json", {"cnn": record})
    with pytest.raises(ValueError, match="cannot be read"):
        shipped_state("cnn", folder=tmp_path)


def test_teachers_are_frozen_and_identified() -> None:
    cnn = load_teacher("cnn").train()
    images = torch.rand(3, 3, 48, 48, requires_grad=True)
    assert not cnn.class_logits(images).requires_grad
    assert not any(module.training for module in cnn.modules())
    assert (
        cnn.fingerprint() == load_teacher("cnn").fingerprint() != load_teacher("vit").fingerprint()
    )
    first, second = load_teacher("random-cnn", seed=1), load_teacher("random-cnn", seed=1)
    assert first.fingerprint() == second.fingerprint()
    assert first.fingerprint() != load_teacher("random-cnn", seed=2).fingerprint()


def test_pictures_of_another_size_are_resized_to_the_teachers_own() -> None:
    cnn = load_teacher("cnn")
    flat = torch.full((1, 3, 96, 96), 0.4)
    small = torch.full((1, 3, cnn.image_size, cnn.image_size), 0.4)
    assert torch.allclose(cnn.class_logits(flat), cnn.class_logits(small), atol=1e-5)
    assert load_teacher("vit").features(flat).shape == (1, 96)


def test_a_teacher_without_classes_says_so() -> None:
    with pytest.raises(ValueError, match="'text' predicts no classes"):
        load_teacher("text").class_logits(torch.rand(1, 3, 48, 48))
    with pytest.raises(ValueError, match="unknown teacher 'nobody'; valid: cnn, vit, text"):
        load_teacher("nobody")
    with pytest.raises(ValueError, match="timm cannot build"):
        load_teacher("timm-random:no_such_network")


def test_published_weights_fail_clearly_without_a_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    import timm

    def offline(*_: object, **__: object) -> None:
        raise ConnectionError("no network")

    monkeypatch.setattr(timm, "create_model", offline)
    with pytest.raises(OSError, match=r"teacher=timm-random:resnet50\.a1_in1k"):
        load_teacher("timm:resnet50.a1_in1k")


def test_students_start_from_the_first_layers() -> None:
    config = resolve("shre", "laptop", {"image.layers": 2, "text.layers": 1})
    image, text = build_towers(config)
    for tower, name in ((image, "vit"), (text, "text")):
        state = shipped_state(name, "encoder.")
        for key, value in tower.state_dict().items():
            if "final_norm" not in key:
                assert torch.equal(value, state[key]), key


def test_a_start_of_another_width_is_refused() -> None:
    with pytest.raises(ValueError, match="same width"):
        build_towers(resolve("shre", "laptop", {"image.width": 64}))


@pytest.mark.parametrize("name", ["bottleneck", "latent"])
def test_self_supervised_teachers_give_cls_and_first_layers(name: str) -> None:
    teacher, images = load_teacher(name), torch.rand(2, 3, 64, 64)
    assert teacher.features(images).shape == (2, 96)
    states = teacher.model.encoder(teacher.fit_size(images))
    assert states.shape == (2, 37, 96) and torch.equal(teacher.features(images), states[:, 0])
    with pytest.raises(ValueError, match="predicts no classes"):
        teacher.class_logits(images)
    state = shipped_state(name, "encoder.")
    image, _ = build_towers(resolve("shre", "laptop", {"image.start": name}))
    kept = {key: value for key, value in image.state_dict().items() if "final_norm" not in key}
    assert len(image.transformer.blocks) == 3
    assert all(torch.equal(value, state[key]) for key, value in kept.items())
    random = [load_teacher(f"random-{name}", seed=seed).fingerprint() for seed in (0, 0, 1)]
    assert random[0] == random[1] and len({*random, teacher.fingerprint()}) == 3


def test_the_two_tower_teacher_embeds_both_sides_at_unit_length() -> None:
    clip, tokens = (
        load_teacher("clip").train(),
        torch.tensor([[2, 7, 8, 3, 0, 0], [2, 9, 3, 0, 0, 0]]),
    )
    model = clip.model
    image, text = model.encode_image(torch.rand(2, 3, 48, 48)), model.encode_text(tokens)
    assert image.shape == text.shape == (2, 96)
    for vectors in (image, text):
        assert torch.allclose(vectors.norm(dim=1), torch.ones(2), atol=1e-5)
    assert torch.allclose(
        model.encode_text(tokens[:, :4]), text, atol=1e-5
    )  # padding changes nothing
    assert clip.features(tokens).shape == (2, 96) and not clip.features(tokens).requires_grad
    assert 1.0 <= float(model.scale) <= 101.0
    assert len(model.image_encoder.transformer.blocks) == 3
    assert len(model.text_encoder.transformer.blocks) == 4
    assert not any(weight.requires_grad for weight in clip.parameters())
    assert load_teacher("random-clip").fingerprint() != clip.fingerprint()


def test_the_stored_two_towers_compute_what_the_trained_method_computes() -> None:
    method = build(recipe("clip", overrides={"image.start": "", "text.start": ""})).eval()
    model = load_teacher("random-clip").model
    model.load_state_dict(teacher_state(method))
    images, tokens = torch.rand(2, 3, 48, 48), torch.tensor([[2, 7, 8, 3], [2, 9, 3, 0]])
    with torch.no_grad():
        assert torch.allclose(model.encode_image(images), method.encode_image(images), atol=1e-6)
        assert torch.allclose(model.encode_text(tokens), method.encode_text(tokens), atol=1e-6)
        assert torch.allclose(model.scale, method.scales[0].value())


def test_labelled_pictures_are_a_pure_function_of_the_step_with_shares_summing_to_one() -> None:
    data = LabelledPictures(recipe("cnn", 0, {"train.steps": 2}))
    first, second = data.batch(3, 8), data.batch(3, 8)
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert torch.allclose(first["shares"].sum(1), torch.ones(8))
    halves = [data.batch(3, 4, rank, 2)["image"].shape for rank in range(2)]
    assert halves == [(4, 3, 48, 48)] * 2
    with pytest.raises(ValueError, match=r"options.augmented=2.0 must lie in \[0, 1\]"):
        LabelledPictures(recipe("cnn", 0, {"options.augmented": 2.0}))


def test_masked_words_hide_no_special_token_and_at_least_one_word() -> None:
    class Ids:
        pad_id, cls_id, sep_id, mask_id = 0, 2, 3, 4

    tokens = torch.tensor([[2, 10, 11, 12, 3, 0], [2, 13, 3, 0, 0, 0]]).repeat(50, 1)
    batch = mask_words(tokens, 0.25, Ids, seed=1)
    hidden = batch["chosen"]
    assert bool((tokens[hidden] >= 10).all()) and bool(hidden.any(1).all())
    assert bool((batch["tokens"][hidden] == 4).all())
    assert torch.equal(batch["tokens"][~hidden], tokens[~hidden])
    assert torch.equal(batch["original"], tokens)
    assert 0.25 < float(hidden[::2].float().sum()) / 150 < 0.6


def test_unknown_names_are_listed() -> None:
    with pytest.raises(ValueError, match="unknown teacher 'x'; valid: cnn, vit, text"):
        teachers_command(["x"])
