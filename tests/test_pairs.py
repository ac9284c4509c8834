"""Pairs: pure functions of the step, rank slices, epochs, Karpathy's JSON, and bad data."""

import json
import random
import re
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import v2

from mmkd_lite.config import DataConfig, RunConfig
from mmkd_lite.data import pairs
from mmkd_lite.data.scenes import EmojiScenes

EMOJI = DataConfig(image_size=32, concepts=30)
COCO = DataConfig(source="coco", image_size=32, max_tokens=12)
SIZES = [(60, 40), (40, 60), (50, 50), (33, 80)]
KEYS = {"image", "tokens", "image_id", "caption_id"}


def smooth_picture(number, size):
    """A picture that JPEG keeps nearly unchanged and that no other one resembles."""
    width, height = size
    x, y = np.meshgrid(np.linspace(0, 1, width), np.linspace(0, 1, height))
    channels = [255 * x, 255 * y, np.full_like(x, 40 * number % 256)]
    return Image.fromarray(np.stack(channels, axis=-1).astype(np.uint8))


def karpathy_image(number, split, captions, source="coco"):
    folder = "train2014" if split == "train" else "val2014"
    sentences = [
        {"raw": text, "tokens": text.split(), "imgid": number, "sentid": 100 * number + k}
        for k, text in enumerate(captions)
    ]
    image = {"imgid": number, "split": split, "sentences": sentences}
    if source == "coco":
        name = f"COCO_{folder}_{number + 500:012d}.jpg"
        return {**image, "filepath": folder, "filename": name, "cocoid": number + 500}
    return {**image, "filename": f"{number + 500}.jpg"}


def write_dataset(root, source="coco"):
    """Seven images, five to seven captions each: 3 train, 2 restval, 1 val, 1 test."""
    splits = ["train", "restval", "test", "train", "val", "restval", "train"]
    images = [
        karpathy_image(n, split, [f"dog {n} {'x' * k}" for k in range(5 + n % 3)], source)
        for n, split in enumerate(splits)
    ]
    pictures = root if source == "coco" else root / "flickr30k-images"
    for n, image in enumerate(images):
        path = pictures / image.get("filepath", "") / image["filename"]
        path.parent.mkdir(parents=True, exist_ok=True)
        smooth_picture(n, SIZES[n % len(SIZES)]).save(path, quality=95, subsampling=0)
    name = root / f"dataset_{source}.json"
    name.write_text(json.dumps({"images": images, "dataset": source}))
    return images


@pytest.fixture
def coco_folder(tmp_path):
    write_dataset(tmp_path)
    return tmp_path


def open_source(source, folder, seed=3):
    if source == "emoji":
        return pairs.EmojiPairs(EMOJI, seed)
    return pairs.CocoPairs(folder, COCO, seed)


def same(one, two):
    return all(torch.equal(one[key], two[key]) for key in KEYS)


@pytest.mark.parametrize("source", ["emoji", "coco"])
def test_batch_has_the_agreed_form(source, coco_folder):
    opened = open_source(source, coco_folder)
    assert isinstance(opened, pairs.Pairs)
    batch = opened.batch(0, 4)
    assert set(batch) == KEYS
    length = opened.config.max_tokens
    assert batch["image"].shape == (4, 3, 32, 32) and batch["image"].dtype == torch.float32
    assert 0 <= batch["image"].min() and 0.5 < batch["image"].max() <= 1
    assert batch["tokens"].shape == (4, length) and batch["tokens"].dtype == torch.int64
    assert batch["image_id"].dtype == batch["caption_id"].dtype == torch.int64
    assert (batch["tokens"][:, 0] == opened.tokenizer.cls_id).all()


@pytest.mark.parametrize("source", ["emoji", "coco"])
def test_batch_is_a_pure_function_of_seed_and_step(source, coco_folder):
    one, two = (open_source(source, coco_folder) for _ in range(2))
    torch.manual_seed(1)
    random.seed(1)
    forward = [one.batch(step, 3) for step in range(4)]
    torch.manual_seed(2)
    random.seed(2)
    backward = [two.batch(step, 3) for step in reversed(range(4))][::-1]
    assert all(same(a, b) for a, b in zip(forward, backward, strict=True))
    assert not same(forward[0], forward[1])
    other_seed = open_source(source, coco_folder, seed=4)
    assert any(not same(other_seed.batch(step, 3), forward[step]) for step in range(4))


@pytest.mark.parametrize("source", ["emoji", "coco"])
def test_rank_slices_make_up_the_global_batch(source, coco_folder):
    opened = open_source(source, coco_folder)
    for step in (0, 2):
        whole = opened.batch(step, 6)
        slices = [opened.batch(step, 2, rank, 3) for rank in range(3)]
        assert same(whole, {key: torch.cat([part[key] for part in slices]) for key in KEYS})


def test_emoji_pairs_never_repeat_and_show_the_scenes_own_captions():
    opened = pairs.EmojiPairs(EMOJI, seed=0)
    ids = torch.cat([opened.batch(step, 8)["image_id"] for step in range(3)])
    assert ids.tolist() == list(range(24))
    scenes = EmojiScenes(EMOJI)
    batch = opened.batch(2, 8)
    for row in range(8):
        index = int(batch["image_id"][row])
        number = int(batch["caption_id"][row]) - 5 * index
        expected = opened.tokenizer.encode([scenes.captions(index)[number]], EMOJI.max_tokens)
        assert torch.equal(batch["tokens"][row], expected[0])
        picture = torch.from_numpy(scenes.image(index).copy()).float() / 255
        assert torch.equal(batch["image"][row], picture)


def test_emoji_pairs_choose_each_of_the_five_captions_equally_often():
    batch = pairs.EmojiPairs(EMOJI, seed=0).batch(0, 1000)
    counts = torch.bincount(batch["caption_id"] % 5, minlength=5)
    assert counts.min() > 150 and counts.max() < 250  # 200 each, standard deviation 12.6


def test_epoch_shows_each_image_once_and_five_epochs_each_caption(coco_folder):
    opened = pairs.CocoPairs(coco_folder, COCO, seed=0, augment=False)
    assert opened.size == 5  # train and restval
    stream = [opened.batch(step, 2) for step in range(15)]
    ids = torch.cat([batch["image_id"] for batch in stream]).reshape(6, 5)
    assert all(sorted(epoch.tolist()) == [500, 501, 503, 505, 506] for epoch in ids)
    assert len({tuple(epoch.tolist()) for epoch in ids}) > 1
    captions = torch.cat([batch["caption_id"] for batch in stream])
    image_with_five = captions[ids.flatten() == 503]  # five captions, 300 to 304
    assert sorted(image_with_five[:5].tolist()) == [300, 301, 302, 303, 304]
    image_with_six = captions[ids.flatten() == 501]
    assert sorted(image_with_six.tolist()) == [100, 101, 102, 103, 104, 105]


def test_training_picture_is_the_named_file_with_its_captions(coco_folder):
    images = {
        i["cocoid"]: i
        for i in json.loads((coco_folder / "dataset_coco.json").read_text())["images"]
    }
    opened = pairs.CocoPairs(coco_folder, COCO, seed=0, augment=False)
    batch = opened.batch(0, 5)
    for row, image_id in enumerate(batch["image_id"].tolist()):
        image = images[image_id]
        picture = Image.open(coco_folder / image["filepath"] / image["filename"])
        # Oracle: torchvision's own pipeline.
        interpolation = v2.InterpolationMode.BICUBIC
        expected = v2.Compose([v2.Resize(32, interpolation), v2.CenterCrop(32), v2.PILToTensor()])
        assert torch.equal((batch["image"][row] * 255).round().byte(), expected(picture))
        texts = {s["sentid"]: s["raw"] for s in image["sentences"]}
        text = texts[int(batch["caption_id"][row])]
        assert torch.equal(batch["tokens"][row], opened.tokenizer.encode([text], 12)[0])


def test_gallery_keeps_every_caption_of_the_test_split(coco_folder):
    opened = pairs.CocoPairs(coco_folder, COCO, seed=0)
    gallery = opened.gallery()
    assert tuple(gallery.images.shape) == (1, 3, 32, 32)
    assert np.asarray(gallery.images).dtype == np.uint8
    assert gallery.captions == [f"dog 2 {'x' * k}".strip() for k in range(7)]
    assert np.asarray(gallery.image_of_text).tolist() == [0] * 7
    assert np.asarray(gallery.relevance).tolist() == [[True]] * 7
    train = opened.gallery(4, split="train")
    assert np.asarray(train.image_of_text).tolist() == [0] * 5 + [1] * 5 + [2] * 5 + [3] * 6
    assert len(opened.gallery(split="val").captions) == 6
    with pytest.raises(ValueError, match="has 1 images, asked for 2"):
        opened.gallery(2)


def test_flickr_layout_has_no_folders_and_no_coco_ids(tmp_path):
    write_dataset(tmp_path, "flickr30k")
    config = DataConfig(source="flickr30k", image_size=32)
    opened = pairs.CocoPairs(tmp_path, config, seed=0)
    assert sorted(opened.batch(0, 5)["image_id"].tolist()) == [0, 1, 3, 5, 6]
    assert len(opened.gallery().captions) == 7


def test_gray_and_cmyk_jpegs_become_rgb(coco_folder):
    files = sorted((coco_folder / "train2014").iterdir())
    for path, mode in zip(files, ("L", "CMYK"), strict=False):
        Image.open(path).convert(mode).save(path)
    assert pairs.CocoPairs(coco_folder, COCO).batch(0, 5)["image"].shape == (5, 3, 32, 32)


def test_swapped_captions_come_in_the_stated_share(coco_folder):
    config = DataConfig(source="coco", image_size=32, noise=0.4)
    opened = pairs.CocoPairs(coco_folder, config, seed=0)
    shown = [opened._caption(row, epoch)[1] // 100 for row in range(5) for epoch in range(200)]
    own = [opened._train[row].image_id - 500 for row in range(5) for _ in range(200)]
    share = np.mean(np.array(shown) != np.array(own))
    assert abs(share - 0.4) < 0.05  # 1,000 draws, standard deviation 0.015
    with pytest.raises(ValueError, match="noise_kind=swap"):
        pairs.CocoPairs(coco_folder, DataConfig(source="coco", noise=0.4, noise_kind="partial"))


@pytest.mark.parametrize("workers", [0, 2])
def test_loader_gives_the_steps_in_order_and_leaves_the_global_generator_alone(workers):
    opened = pairs.EmojiPairs(EMOJI, seed=1)
    before = torch.get_rng_state()
    loaded = list(pairs.loader(opened, 2, 5, workers, batch_size=4, rank=1, world=2))
    assert torch.equal(torch.get_rng_state(), before)
    assert len(loaded) == 3
    for step, batch in enumerate(loaded, start=2):
        assert same(batch, opened.batch(step, 4, rank=1, world=2))


def test_open_pairs_follows_the_configuration(coco_folder):
    def run(**data):
        return RunConfig("shre", "tiny", 5, data_dir=str(coco_folder), data=DataConfig(**data))

    emoji = pairs.open_pairs(run(image_size=32, concepts=30))
    assert isinstance(emoji, pairs.EmojiPairs) and emoji.seed == 5
    coco = pairs.open_pairs(run(source="coco", image_size=32))
    assert isinstance(coco, pairs.CocoPairs) and (coco.seed, coco.size) == (5, 5)
    with pytest.raises(ValueError, match=r"unknown data.source 'imagenet'.*emoji, coco, flickr30k"):
        pairs.open_pairs(run(source="imagenet"))


def test_a_json_without_training_images_is_explained(coco_folder):
    path = coco_folder / "dataset_coco.json"
    path.write_text(re.sub('"(train|restval|val)"', '"test"', path.read_text()))
    with pytest.raises(ValueError, match=r"no image in split 'train'.*test \(7\)"):
        pairs.CocoPairs(coco_folder, COCO)


def test_a_missing_picture_folder_is_noticed_at_once(coco_folder):
    shutil.rmtree(coco_folder / "val2014")  # holds "restval", which training needs
    with pytest.raises(FileNotFoundError, match=r"val2014/.* is missing below .*val2014.zip"):
        pairs.CocoPairs(coco_folder, COCO)


def test_missing_or_broken_files_are_named(coco_folder, tmp_path):
    with pytest.raises(ValueError, match="set DATA_DIR"):
        pairs.CocoPairs("", COCO)
    with pytest.raises(FileNotFoundError, match=r"absent does not exist"):
        pairs.CocoPairs(tmp_path / "absent", COCO)
    opened = pairs.CocoPairs(coco_folder, COCO)
    first = sorted((coco_folder / "train2014").iterdir())[0]
    first.write_bytes(first.read_bytes()[:300])
    with pytest.raises(ValueError, match=rf"picture .*{first.name} is damaged"):
        opened.batch(0, 5)
    first.write_bytes(b"not a picture")
    with pytest.raises(ValueError, match=rf"picture .*{first.name} is damaged"):
        opened.batch(0, 5)
    first.unlink()
    with pytest.raises(FileNotFoundError, match=rf"picture .*{first.name} is missing"):
        opened.batch(0, 5)
    with pytest.raises(FileNotFoundError, match=r"train2014/.* is missing below"):
        pairs.CocoPairs(coco_folder, COCO)
    with pytest.raises(ValueError, match="no image in split 'dev'"):
        opened.gallery(split="dev")
    json_path = coco_folder / "dataset_coco.json"
    json_path.write_text(json_path.read_text()[:-20])
    with pytest.raises(ValueError, match=r"dataset_coco.json is not valid JSON"):
        pairs.CocoPairs(coco_folder, COCO)
    json_path.unlink()
    with pytest.raises(FileNotFoundError, match=r"no dataset_coco.json in .*data export"):
        pairs.CocoPairs(coco_folder, COCO)
