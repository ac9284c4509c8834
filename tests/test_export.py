"""Emoji scenes go out as COCO and come back the same; an export is complete or absent."""

import errno
import json

import numpy as np
import pytest
import torch
from PIL import Image

from mmkd_lite import storage
from mmkd_lite.config import DataConfig
from mmkd_lite.data import commands, export, pairs
from mmkd_lite.data.scenes import EmojiScenes

WORLD = DataConfig(image_size=48, concepts=40)
COUNTS = {"train": 20, "restval": 5, "val": 4, "test": 8}


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "coco"
    export.export_coco(folder, WORLD, COUNTS, progress=False)
    return folder


@pytest.fixture
def opened(exported):
    config = DataConfig(source="coco", image_size=48)
    return pairs.CocoPairs(exported, config, seed=0, augment=False)


def test_json_has_the_layout_of_karpathys(exported):
    content = json.loads((exported / "dataset_coco.json").read_text())
    assert content["dataset"] == "coco" and len(content["images"]) == sum(COUNTS.values())
    splits = [image["split"] for image in content["images"]]
    assert {split: splits.count(split) for split in COUNTS} == COUNTS
    sentence_ids = []
    for image in content["images"]:
        folder = "train2014" if image["split"] == "train" else "val2014"
        assert image["filepath"] == folder
        assert image["filename"] == f"COCO_{folder}_{image['cocoid']:012d}.jpg"
        assert len(image["sentences"]) == 5
        assert image["sentids"] == [sentence["sentid"] for sentence in image["sentences"]]
        for sentence in image["sentences"]:
            assert set(sentence) == {"raw", "tokens", "imgid", "sentid"}
            assert sentence["imgid"] == image["imgid"] and sentence["raw"].strip()
            assert " ".join(sentence["tokens"]) in sentence["raw"].replace("-", " ").replace(
                ",", ""
            )
        sentence_ids += image["sentids"]
        with Image.open(exported / folder / image["filename"]) as picture:
            assert (picture.format, picture.mode, picture.size) == ("JPEG", "RGB", (48, 48))
    assert len(set(sentence_ids)) == len(sentence_ids)
    assert len({image["cocoid"] for image in content["images"]}) == len(content["images"])


def test_training_pairs_come_back_with_their_captions_and_pictures(opened):
    scenes = EmojiScenes(WORLD)
    assert opened.size == COUNTS["train"] + COUNTS["restval"]
    batch = opened.batch(0, opened.size)
    differences = []
    for row, image_id in enumerate(batch["image_id"].tolist()):
        index = image_id - 1
        number = int(batch["caption_id"][row]) - 5 * index
        caption = scenes.captions(index)[number]
        expected = opened.tokenizer.encode([caption], WORLD.max_tokens)[0]
        assert torch.equal(batch["tokens"][row], expected)
        drawn = scenes.image(index).astype(np.float64) / 255
        differences.append(np.abs(batch["image"][row].numpy() - drawn).mean())
    assert sorted(batch["image_id"].tolist()) == list(range(1, opened.size + 1))
    assert max(differences) < 0.02  # JPEG at quality 95; two different scenes differ by about 0.2


def test_gallery_comes_back_as_the_emoji_gallery(opened):
    emoji = pairs.EmojiPairs(WORLD).gallery(COUNTS["val"] + COUNTS["test"])
    splits = [opened.gallery(split="val"), opened.gallery(split="test")]
    assert [caption for gallery in splits for caption in gallery.captions] == list(emoji.captions)
    images = np.concatenate([np.asarray(gallery.images) for gallery in splits]).astype(float)
    difference = np.abs(images - np.asarray(emoji.images)).mean(axis=(1, 2, 3)) / 255
    assert difference.max() < 0.02


@pytest.mark.parametrize(
    ("images", "message"),
    [
        ({"train": 3, "dev": 1}, "unknown split dev; valid splits: train, restval, val, test"),
        ({"train": 0}, "not all 0"),
        ({"train": -1, "val": 5}, "must be >= 0"),
        ({}, "not all 0"),
    ],
)
def test_impossible_numbers_of_images_are_refused(tmp_path, images, message):
    with pytest.raises(ValueError, match=message):
        export.export_coco(tmp_path / "out", WORLD, images)
    assert not (tmp_path / "out").exists()


def test_a_folder_that_holds_something_is_left_alone(tmp_path):
    (tmp_path / "precious.txt").write_text("x")
    with pytest.raises(ValueError, match="holds something already"):
        export.export_coco(tmp_path, WORLD, {"train": 1})
    assert [path.name for path in tmp_path.iterdir()] == ["precious.txt"]


def test_no_space_left_leaves_nothing_behind(tmp_path, monkeypatch):
    write_jpeg = export._write_jpeg

    def full_disk(path, picture):
        if "000000000003" in path.name:
            raise OSError(errno.ENOSPC, "No space left on device")
        write_jpeg(path, picture)

    monkeypatch.setattr(export, "_write_jpeg", full_disk)
    with pytest.raises(OSError, match="no space left to write coco"):
        export.export_coco(tmp_path / "coco", WORLD, {"train": 4}, progress=False)
    assert list(tmp_path.iterdir()) == []


def test_export_command_reports_what_it_wrote(tmp_path, capsys):
    words = ["export", "--format", "coco", "--out", str(tmp_path / "coco"), "--image-size", "32"]
    words += ["--train", "3", "--restval", "0", "--val", "1", "--test", "2"]
    assert commands.main(words) == 0
    assert "3 train, 0 restval, 1 val, 2 test" in capsys.readouterr().out
    assert len(list((tmp_path / "coco").rglob("*.jpg"))) == 6


def test_tokenizer_command_writes_beside_the_committed_file(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(commands.tokenizer, "caption_corpus", lambda: ["a red apple", "a dog"])
    path = tmp_path / "tokenizer.json"
    before = storage.sha256_of_file(commands.tokenizer.EMOJI_FILE)
    assert commands.main(["tokenizer", "--out", str(path), "--size", "200"]) == 0
    assert storage.sha256_of_file(path) in capsys.readouterr().out
    assert storage.sha256_of_file(commands.tokenizer.EMOJI_FILE) == before


def test_build_command_prints_a_checksum_for_each_artist(capsys, monkeypatch):
    arrays = np.zeros((3, 4, 4, 4), np.uint8), np.array([True, False, True])

    def fake(artist):
        if artist == "noto":
            raise ModuleNotFoundError("install manimgx-fonts")
        return arrays

    monkeypatch.setattr(commands.sprites, "sprites", fake)
    assert commands.main(["build"]) == 0
    lines = capsys.readouterr().out.splitlines()
    checksum = storage.sha256_of_arrays({"pixels": arrays[0], "available": arrays[1]})
    assert [line.split()[0] for line in lines] == ["twemoji", "openmoji", "noto"]
    assert checksum in lines[0] and "2 concepts" in lines[0]
    assert "missing: install manimgx-fonts" in lines[2]
