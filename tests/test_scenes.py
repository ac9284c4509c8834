"""Scenes and galleries: what is shown, which split it belongs to, and that it never changes."""

import dataclasses

import numpy as np
import pytest

from mmkd_lite.config import DataConfig
from mmkd_lite.data import layout as layouts
from mmkd_lite.data.checksum import world_checksum
from mmkd_lite.data.emoji import scene_concepts
from mmkd_lite.data.render import put_over
from mmkd_lite.data.scenes import EmojiScenes, gallery
from mmkd_lite.data.world import meaning_keys

CONFIG = DataConfig()
CHECKSUM = "1956fad467423c7259ada238d002735648ca8b619f09640ffe4a6be5c062c423"


@pytest.fixture(scope="module")
def many():
    """Content of 4,000 training scenes."""
    return EmojiScenes(CONFIG).layout(np.arange(4000))


@pytest.fixture(scope="module")
def test_gallery():
    return gallery(CONFIG, 1000)


def test_world_checksum_is_pinned():
    """Fails where a wheel or an edit changes any byte; if that was meant, pin the new value."""
    assert world_checksum(CONFIG) == CHECKSUM


def test_a_scene_depends_on_its_number_alone():
    scenes = EmojiScenes(CONFIG, "composition")
    batch = scenes.batch([7, 3, 1_000_000])
    again = EmojiScenes(CONFIG, "composition").batch([1_000_000, 7])
    np.testing.assert_array_equal(batch["image"][[2, 0]], again["image"])
    assert [batch["captions"][2], batch["captions"][0]] == again["captions"]
    np.testing.assert_array_equal(scenes.image(7), batch["image"][0])
    assert list(scenes.captions(3)) == batch["captions"][1] == scenes.texts([3])[0]
    assert not np.array_equal(batch["image"][0], batch["image"][1])


def test_meaning_depends_on_neither_size_nor_artist_nor_vocabulary():
    plain = EmojiScenes(CONFIG)
    others = [
        EmojiScenes(dataclasses.replace(CONFIG, image_size=224), artist="noto"),
        EmojiScenes(dataclasses.replace(CONFIG, vocabulary="no_groups"), shift="far"),
    ]
    for other in others:
        assert [other.scene(i) for i in range(20)] == [plain.scene(i) for i in range(20)]
    assert others[1].artist == "openmoji"
    reseeded = EmojiScenes(dataclasses.replace(CONFIG, world_seed=1))
    assert reseeded.scene(0) != plain.scene(0)


@pytest.mark.parametrize("size", [32, 48, 64, 224])
def test_any_image_size(size):
    image = EmojiScenes(dataclasses.replace(CONFIG, image_size=size)).batch(range(8))["image"]
    assert image.shape == (8, 3, size, size) and image.dtype == np.uint8
    assert image.flags.c_contiguous


def test_sizes_are_visibly_different_and_inside_the_picture(many):
    exists = many.concept >= 0
    small, large = many.diameter[many.large == 0], many.diameter[many.large == 1]
    assert small.max() < large.min() - 0.05
    np.testing.assert_array_equal(exists, many.large >= 0)
    edge = many.diameter[..., None] / 2
    inside = (many.centre >= edge - 1e-9) & (many.centre <= 1 - edge + 1e-9)
    assert inside[exists].all()


def test_relations_are_visibly_true(many):
    """Centres are apart along the told axis, by more than across it: checked pair by pair."""
    for row in np.flatnonzero(many.count > 1)[:1500]:
        count = many.count[row]
        for a in range(count):
            for b in range(count):
                if a == b:
                    assert many.relation[row, a, b] == layouts.NO_RELATION
                    continue
                dx, dy = many.centre[row, a] - many.centre[row, b]
                name = layouts.RELATIONS[many.relation[row, a, b]]
                along, across = (dx, dy) if name in ("left", "right") else (dy, dx)
                assert np.sign(along) == (-1 if name in ("left", "above") else 1)
                assert abs(along) >= 0.28 and abs(along) >= 1.25 * abs(across)
                assert layouts.INVERSE[many.relation[row, a, b]] == many.relation[row, b, a]


def test_pixels_show_the_relation():
    """The drawn objects themselves, found by difference from the background, stand as told."""
    scenes = EmojiScenes(CONFIG)
    layout = scenes.layout(np.arange(300))
    images = scenes.draw(layout, np.arange(300)).astype(int)
    for row in np.flatnonzero(layout.count == 2)[:60]:
        alone = []
        for kept in (0, 1):
            concept = np.where(np.arange(3) == kept, layout.concept[row], -1)
            only = dataclasses.replace(layout.take(np.array([row])), concept=concept[None])
            drawn = scenes.draw(only, np.array([row]))[0].astype(int)
            ys, xs = np.nonzero(np.abs(drawn - drawn[:, :1, :1]).sum(axis=0) > 0)
            empty = len(xs) == 0
            assert not empty
            alone.append(((xs.min() + xs.max()) / 2, (ys.min() + ys.max()) / 2))
        dx, dy = np.subtract(alone[0], alone[1])
        name = layouts.RELATIONS[layout.relation[row, 0, 1]]
        sign = {"left": -dx, "right": dx, "above": -dy, "below": dy}[name]
        assert sign > 0.15 * images.shape[-1]


def test_scenes_hold_different_concepts_of_the_fixed_list(many):
    shares = np.bincount(many.count, minlength=4)[1:] / len(many)
    np.testing.assert_allclose(shares, layouts.COUNT_SHARES, atol=0.04)
    for row in many.concept:
        shown = row[row >= 0].tolist()
        assert len(set(shown)) == len(shown)
    assert set(many.concept[many.concept >= 0].tolist()) == set(scene_concepts(200))


def test_combinations_never_straddle_splits():
    seen = {}
    for split in ("train", "composition", "validation"):
        layout = EmojiScenes(CONFIG, split).layout(np.arange(6000))
        content = np.concatenate([np.sort(layout.concept), layout.background[:, None]], axis=1)
        seen[split] = {tuple(row) for row in content.tolist()}
    assert not seen["train"] & seen["composition"]
    assert not seen["train"] & seen["validation"]
    assert not seen["validation"] & seen["composition"]


def test_gallery_has_no_twins_and_own_captions_are_true(test_gallery):
    keys = meaning_keys(test_gallery.layout)
    assert len(np.unique(keys, axis=0)) == len(test_gallery.images) == 1000
    assert len(test_gallery.captions) == 5000 and test_gallery.name == "composition/twemoji"
    own = test_gallery.relevance[np.arange(5000), test_gallery.image_of_text]
    assert own.all()
    others = test_gallery.relevance.sum(axis=1) - 1
    assert others.max() > 20 and np.median(others) < 5  # short captions are true of many


def test_gallery_is_made_of_scenes_in_order(test_gallery):
    smaller = gallery(CONFIG, 50, captions_per_image=2)
    np.testing.assert_array_equal(smaller.images, test_gallery.images[:50])
    assert smaller.captions[:4] == [*test_gallery.captions[:2], *test_gallery.captions[5:7]]
    np.testing.assert_array_equal(smaller.relevance[2:4], test_gallery.relevance[5:7, :50])


def test_twins_are_recognised_whatever_the_order_of_objects(many):
    swapped = np.array([1, 0, 2])
    pairs = many.take(np.flatnonzero(many.count >= 2)[:200])
    turned = dataclasses.replace(
        pairs,
        concept=pairs.concept[:, swapped],
        large=pairs.large[:, swapped],
        relation=pairs.relation[:, swapped][:, :, swapped],
        centre=pairs.centre * 0.5,
    )
    np.testing.assert_array_equal(meaning_keys(turned), meaning_keys(pairs))
    other = dataclasses.replace(pairs, background=(pairs.background + 1) % 10)
    assert (meaning_keys(other) != meaning_keys(pairs)).any(axis=1).all()


def test_gallery_refuses_what_the_world_does_not_have():
    tiny = dataclasses.replace(CONFIG, concepts=3)
    with pytest.raises(ValueError, match="scenes of different meaning"):
        gallery(tiny, 5000)
    with pytest.raises(ValueError, match="1 to 5 captions"):
        gallery(CONFIG, 10, captions_per_image=6)


@pytest.mark.parametrize("name", ["split", "shift", "artist", "size", "vocabulary"])
def test_bad_names_are_refused_with_the_valid_ones(name):
    config, options = CONFIG, {name: "nonsense"}
    if name in ("size", "vocabulary"):
        change = {"image_size": 5} if name == "size" else {"vocabulary": "nonsense"}
        config, options = dataclasses.replace(CONFIG, **change), {}
    expected = {
        "split": "train, composition, validation",
        "shift": "none, near, far",
        "artist": "twemoji, openmoji, noto",
        "size": "16",
        "vocabulary": "default, no_groups, no_names",
    }
    with pytest.raises(ValueError, match=expected[name]):
        EmojiScenes(config, **options).batch([0])


def test_put_over_rounds_exactly():
    patch, inverse = (a.reshape(-1, 1) for a in np.meshgrid(np.arange(256), np.arange(256)))
    exact = np.floor(patch * inverse / 255 + 0.5)
    blended = put_over(
        patch.astype(np.uint8), np.uint16(0) * patch.astype(np.uint16), inverse.astype(np.uint16)
    )
    np.testing.assert_array_equal(blended, exact)


def test_near_shift_leaves_training_sizes_but_not_the_background_name():
    near = EmojiScenes(CONFIG, "composition", shift="near")
    plain = EmojiScenes(CONFIG, "composition")
    rows = np.arange(200)
    moved, usual = near.layout(rows), plain.layout(rows)
    np.testing.assert_array_equal(meaning_keys(moved), meaning_keys(usual))
    for count in (1, 2, 3):
        new, old = moved.take(moved.count == count), usual.take(usual.count == count)
        assert new.diameter[new.large == 0].max() < old.diameter[old.large == 0].min()
        assert new.diameter[new.large == 1].min() > old.diameter[old.large == 1].max()
    assert near.texts(rows) == plain.texts(rows)
    middle = {}
    for name, scenes, layout in (("near", near, moved), ("plain", plain, usual)):
        image = scenes.draw(layout, rows).astype(float)
        middle[name] = np.median(image.reshape(200, 3, -1), axis=2)
        middle[name] -= middle[name].mean(axis=1, keepdims=True)
    strength = {name: np.linalg.norm(value, axis=1) for name, value in middle.items()}
    small = usual.large[:, 0] == 0  # the background fills the middle of the colours
    judged = (usual.count == 1) & small & (strength["plain"] > 30)
    product = (middle["near"] * middle["plain"]).sum(axis=1)[judged]
    cosine = product / (strength["near"] * strength["plain"])[judged]
    assert judged.sum() > 15 and cosine.min() > 0.95  # the same hue
    assert (strength["near"] / strength["plain"])[judged].max() < 0.9  # and flatter
