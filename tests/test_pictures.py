"""Labelled pictures: labels, splits, shifts and the augmentation for teachers."""

import numpy as np
import pytest

from mmkd_lite.data.augment import augmented
from mmkd_lite.data.emoji import concept_split, groups, labels, subgroups
from mmkd_lite.data.pictures import EmojiPictures, multi_hot


@pytest.mark.parametrize("split", ["train", "composition", "concept"])
def test_labels_belong_to_the_concept_and_the_split(split):
    batch = EmojiPictures(48, split).batch(np.arange(500))
    assert batch["image"].shape == (500, 3, 48, 48) and batch["image"].dtype == np.uint8
    np.testing.assert_array_equal(batch["fine"], labels("fine")[batch["concept"]])
    np.testing.assert_array_equal(batch["coarse"], labels("coarse")[batch["concept"]])
    allowed = concept_split("unseen" if split == "concept" else "seen")
    assert np.isin(batch["concept"], allowed).all()


def test_several_objects_give_several_labels():
    pictures = EmojiPictures(64, "train", objects=(1, 3))
    batch = pictures.batch(np.arange(300))
    assert batch["fine"].shape == (300, len(subgroups()))
    assert batch["coarse"].shape == (300, len(groups()))
    for row in range(300):
        shown = batch["concept"][row][batch["concept"][row] >= 0]
        assert set(np.flatnonzero(batch["fine"][row])) == set(labels("fine")[shown])
    assert set((batch["concept"] >= 0).sum(axis=1)) == {1, 2, 3}


def test_multi_hot_counts_a_shared_label_once():
    hot = multi_hot(np.array([[0, 2, -1], [1, -1, -1]]), np.array([1, 0, 1]), 3)
    assert hot.tolist() == [[0, 1, 0], [1, 0, 0]]


@pytest.mark.parametrize("options", [{}, {"shift": "near"}, {"augment": True, "objects": (1, 3)}])
def test_a_picture_depends_on_its_number_alone(options):
    pictures = EmojiPictures(64, "train", **options)
    batch = pictures.batch([4, 900_000, 11])
    np.testing.assert_array_equal(pictures.batch([11, 4])["image"], batch["image"][[2, 0]])
    other = EmojiPictures(64, "train", seed=1, **options).batch([4, 900_000, 11])
    assert not np.array_equal(other["image"], batch["image"])


def test_splits_show_different_pictures_of_the_same_concepts():
    train = EmojiPictures(64, "train").batch(np.arange(64))
    composition = EmojiPictures(64, "composition").batch(np.arange(64))
    assert not np.array_equal(train["image"], composition["image"])
    assert not np.array_equal(train["concept"], composition["concept"])


def test_concepts_that_the_artist_lacks_are_left_out():
    lacking = set(EmojiPictures(64).pool.tolist()) - set(EmojiPictures(64, artist="noto").pool)
    assert 5 < len(lacking) < 30


def test_augmentation_leaves_a_quarter_plain_and_widens_the_rest():
    rows = np.arange(400)
    plain = EmojiPictures(64, "train").batch(rows)["image"]
    changed = EmojiPictures(64, "train", augment=True).batch(rows)["image"]
    same = (plain == changed).all(axis=(1, 2, 3))
    assert abs(same.mean() - 0.25) < 0.06
    ink = {name: (image.max(axis=1) < 40).mean() for name, image in (("p", plain), ("c", changed))}
    assert ink["c"] > 1.5 * ink["p"]  # outlines and line art add black


def test_augmentation_is_the_same_in_any_batch_of_sizes():
    pictures = EmojiPictures(32, "train", objects=(2, 3))
    layout = pictures.layout(np.arange(40))
    whole = augmented(layout, 32, "twemoji", 0, "s", np.arange(40))
    part = augmented(layout.take(np.array([7])), 32, "twemoji", 0, "s", np.array([7]))
    assert np.abs(whole[7].astype(int) - part[0]).max() <= 1
    assert whole.shape == (40, 32, 32, 3)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"split": "test"}, "train, composition, concept"),
        ({"shift": "far"}, "another artist"),
        ({"objects": (0, 2)}, "1 <= low"),
        ({"image_size": 8}, "16"),
    ],
)
def test_bad_options_are_refused(options, expected):
    with pytest.raises(ValueError, match=expected):
        EmojiPictures(**({"image_size": 64} | options)).batch([0])
