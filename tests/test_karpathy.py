"""Reading Karpathy's JSON, and cutting squares out of pictures."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from mmkd_lite.data import karpathy

SIZES = [(60, 40), (40, 60), (50, 50), (33, 80)]


def smooth_picture(number, size):
    """A picture that JPEG keeps nearly unchanged and that no other one resembles."""
    width, height = size
    x, y = np.meshgrid(np.linspace(0, 1, width), np.linspace(0, 1, height))
    channels = [255 * x, 255 * y, np.full_like(x, 40 * number % 256)]
    return Image.fromarray(np.stack(channels, axis=-1).astype(np.uint8))


def test_crop_keeps_nine_tenths_of_the_area_and_mirrors_half_of_the_time():
    uniforms = np.random.default_rng(0).random((400, karpathy.CROP_DRAWS))
    for width, height in SIZES:
        boxes = np.array([karpathy._crop_box(height, width, u, (0.9, 1.0)) for u in uniforms])
        top, left, tall, wide = boxes.T
        assert (top >= 0).all() and (top + tall <= height).all()
        assert (left >= 0).all() and (left + wide <= width).all()
        if (width, height) == (50, 50):
            share = tall * wide / (width * height)
            assert 0.87 < share.min() < 0.92 and 0.98 < share.max() <= 1
        ratios = wide / tall
        assert ratios.min() > 0.72 and ratios.max() < 1.38
    picture = smooth_picture(0, (50, 50))  # its first channel grows from left to right
    left_to_right = [
        karpathy.random_square(picture, 16, u, (0.9, 1.0), 0.5)[0].float().diff().sum() > 0
        for u in uniforms
    ]
    assert 160 < sum(left_to_right) < 240


def test_random_square_equals_torchvisions_crop_of_the_same_box():
    picture = smooth_picture(1, (60, 40))
    uniforms = np.random.default_rng(1).random(karpathy.CROP_DRAWS)
    box = karpathy._crop_box(40, 60, uniforms, (0.5, 1.0))
    top, left, tall, wide = box
    cut = picture.crop((left, top, left + wide, top + tall))
    resized = cut.resize((24, 24), Image.Resampling.BICUBIC)
    expected = torch.from_numpy(np.array(resized)).permute(2, 0, 1)
    assert torch.equal(karpathy.random_square(picture, 24, uniforms, (0.5, 1.0), 0.0), expected)
    mirrored = karpathy.random_square(picture, 24, uniforms, (0.5, 1.0), 1.0)
    assert torch.equal(mirrored, expected.flip(-1))


def small_json():
    """Three training images, five and six captions, as Karpathy writes them."""
    images = []
    for number in range(4):
        sentences = [
            {"raw": f"dog {number} {k}", "tokens": ["dog"], "imgid": number, "sentid": 9 + k}
            for k in range(5 + number % 2)
        ]
        split = "train" if number else "val"
        image = {"filepath": "train2014", "filename": f"{number}.jpg", "split": split}
        images.append({**image, "imgid": number, "cocoid": 50 + number, "sentences": sentences})
    return {"images": images, "dataset": "coco"}


def write(folder, content):
    path = folder / "dataset_coco.json"
    path.write_text(json.dumps(content))
    return path


def test_entries_keep_ids_and_every_caption(tmp_path):
    content = small_json()
    del content["images"][1]["cocoid"]  # as in Flickr30k's
    del content["images"][1]["filepath"]
    content["images"][2]["sentences"][0] = {"tokens": ["a", "cat"], "sentid": 70}
    entries = karpathy.read_entries(write(tmp_path, content))
    assert {split: len(found) for split, found in entries.items()} == {"val": 1, "train": 3}
    first, second, third = entries["train"]
    assert (first.file, first.image_id, len(first.captions)) == ("1.jpg", 1, 6)
    assert second.captions[:2] == ("a cat", "dog 2 1") and second.caption_ids[:2] == (70, 10)
    assert (third.file, third.image_id) == ("train2014/3.jpg", 53)


def drop_images(content):
    content["images"] = []


def drop_field(field, number=0):
    def change(content):
        del content["images"][number][field]

    return change


def empty_caption(content):
    content["images"][3]["sentences"][1].update(raw="  ", tokens=[])


def caption_is_a_text(content):
    content["images"][0]["sentences"][0] = "a dog"


def no_ids(content):
    for field in ("cocoid", "imgid"):
        del content["images"][0][field]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (drop_images, "has no images"),
        (drop_field("split", 1), "image 1 lacks 'split'"),
        (drop_field("sentences", 2), "image 2 lacks 'sentences'"),
        (drop_field("filename"), "image 0 lacks 'filename'"),
        (no_ids, "lacks 'cocoid' and 'imgid'"),
        (empty_caption, r"image 3 .*has an empty caption, number 1"),
        (caption_is_a_text, "caption 0 is not an object"),
    ],
)
def test_incomplete_json_is_explained(tmp_path, change, message):
    content = small_json()
    assert len(karpathy.read_entries(write(tmp_path, content))["train"]) == 3
    change(content)
    with pytest.raises(ValueError, match=message):
        karpathy.read_entries(write(tmp_path, content))
