"""Zero-shot classifiers: the prompt ensemble by hand, ties against us, and the scores of a student."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from mmkd_lite.config import resolve
from mmkd_lite.data.emoji import scene_concepts
from mmkd_lite.evaluate import zero_shot_accuracy, zero_shot_classifier
from mmkd_lite.methods import build
from mmkd_lite.picture_scores import labelled_pictures, score_pictures

VECTORS = {
    "a cat": [2.0, 0.0],
    "see a cat": [0.0, 0.5],
    "a dog": [0.0, 3.0],
    "see a dog": [0.0, 1.0],
}


def encode(sentences: list[str]) -> Tensor:
    return torch.tensor([VECTORS[sentence] for sentence in sentences])


def test_each_prompt_counts_alike_whatever_its_length() -> None:
    found = zero_shot_classifier(encode, ["a cat", "a dog"], ["{}", "see {}"])
    half = 0.5**0.5
    torch.testing.assert_close(found, torch.tensor([[half, 0.0], [half, 1.0]]))


def test_a_template_given_twice_changes_nothing() -> None:
    once = zero_shot_classifier(encode, ["a cat", "a dog"], ["{}"])
    twice = zero_shot_classifier(encode, ["a cat", "a dog"], ["{}", "{}"])
    torch.testing.assert_close(once, twice)


def test_accuracy_by_hand_with_a_tie_against_us() -> None:
    image = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0], [1.0, 0.0]])
    found = zero_shot_accuracy(image, torch.eye(2), torch.tensor([0, 1, 0, 1]))
    assert found == {"accuracy": 50.0, "chance": 50.0, "majority": 50.0, "n": 4, "classes": 2}


def test_equal_embeddings_never_score() -> None:
    found = zero_shot_accuracy(torch.ones(5, 3), torch.ones(3, 4), torch.zeros(5, dtype=torch.long))
    assert found["accuracy"] == 0.0 and found["majority"] == 100.0


@pytest.mark.parametrize(
    ("names", "templates", "message"),
    [
        (["a cat"], ["{}"], "two or more class names"),
        (["a cat", " "], ["{}"], "two or more class names"),
        (["a cat", "a dog", "a cat"], ["{}"], "occur twice: a cat"),
        (["a cat", "a dog"], ["see"], "every template needs one"),
        (["a cat", "a dog"], [], "every template needs one"),
    ],
)
def test_bad_class_lists_and_templates_are_named(names, templates, message) -> None:
    with pytest.raises(ValueError, match=message):
        zero_shot_classifier(encode, names, templates)


def test_bad_scores_are_named() -> None:
    good = torch.tensor([0, 1])
    with pytest.raises(ValueError, match="do not fit"):
        zero_shot_accuracy(torch.ones(2, 3), torch.eye(2), good)
    with pytest.raises(ValueError, match="NaN"):
        zero_shot_accuracy(torch.full((2, 2), torch.nan), torch.eye(2), good)
    with pytest.raises(ValueError, match=r"lie in \[0, 2\)"):
        zero_shot_accuracy(torch.eye(2), torch.eye(2), torch.tensor([0, 2]))


def test_pictures_show_only_what_scenes_show_and_labels_fit_their_names() -> None:
    config = resolve("contrast", "tiny")
    found = labelled_pictures(config, "composition")
    assert found.images.shape == (200, 3, 32, 32) and found.images.dtype == torch.uint8
    for level in ("fine", "coarse"):
        assert int(found.labels[level].max()) < len(found.names[level]) <= len(scene_concepts())
    train = labelled_pictures(config, "train")
    assert not torch.equal(found.images, train.images)


def test_a_student_is_scored_beside_chance_and_majority() -> None:
    config = resolve("contrast", "tiny")
    scores = score_pictures(build(config), config)
    kinds, levels = ("zero_shot", "probe"), ("fine", "coarse")
    assert set(scores) == {f"{kind}_{level}" for kind in kinds for level in levels}
    for row in scores.values():
        assert 0 <= row["accuracy"] <= 100 and row["n"] == 200
        assert row["chance"] == pytest.approx(100 / row["classes"])
