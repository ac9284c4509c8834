"""Zero-shot classifiers: the prompt ensemble by hand, ties against us, and the scores of a student."""

from __future__ import annotations

import json
import math

import pytest
import torch
from sklearn.metrics import recall_score, top_k_accuracy_score
from torch import Tensor

from mmkd_lite.config import resolve
from mmkd_lite.data.emoji import scene_concepts
from mmkd_lite.data.pictures import TEMPLATES
from mmkd_lite.data.prompts import template_set, templates_hash
from mmkd_lite.evaluate import (
    class_subset,
    zero_shot_accuracy,
    zero_shot_classifier,
    zero_shot_report,
)
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


@pytest.mark.parametrize(
    ("vectors", "message"),
    [
        (torch.ones(3, 2), "3, 2.* for 2 sentences"),
        (torch.ones(2), "for 2 sentences"),
        (torch.tensor([[1.0, 0.0], [math.nan, 1.0]]), "NaN or infinite"),
        (torch.tensor([[1.0, 0.0], [0.0, 0.0]]), "length 0"),
    ],
)
def test_text_encoders_that_cannot_be_used_are_named(vectors: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        zero_shot_classifier(lambda sentences: vectors, ["a cat", "a dog"], ["{}"])


def test_bad_scores_are_named() -> None:
    good = torch.tensor([0, 1])
    with pytest.raises(ValueError, match="do not fit"):
        zero_shot_accuracy(torch.ones(2, 3), torch.eye(2), good)
    with pytest.raises(ValueError, match="NaN"):
        zero_shot_accuracy(torch.full((2, 2), torch.nan), torch.eye(2), good)
    with pytest.raises(ValueError, match=r"lie in \[0, 2\)"):
        zero_shot_accuracy(torch.eye(2), torch.eye(2), torch.tensor([0, 2]))


def test_templates_are_data_with_a_hash_that_any_change_changes(tmp_path) -> None:
    assert template_set() == TEMPLATES and len(TEMPLATES) == 7
    assert templates_hash() == templates_hash(TEMPLATES) == "7:7a1bad4a"
    others = [TEMPLATES[::-1], TEMPLATES[:-1], (*TEMPLATES[:-1], TEMPLATES[-1] + "."), ("{}",)]
    assert len({templates_hash(t) for t in [TEMPLATES, *others]}) == 5
    path = tmp_path / "own.json"
    path.write_text(json.dumps({"sets": {"mine": ["see {}"], "bad": ["{}", "no gap", "{} {}"]}}))
    assert template_set("mine", path) == ("see {}",)
    with pytest.raises(ValueError, match=r"not so: \['no gap', '\{\} \{\}'\]"):
        template_set("bad", path)
    with pytest.raises(ValueError, match=r"no template set 'none' in own.json; sets: mine, bad"):
        template_set("none", path)
    with pytest.raises(ValueError, match="a list of sentences, got one text"):
        zero_shot_classifier(encode, ["a cat", "a dog"], "{}")
    with pytest.raises(FileNotFoundError):
        template_set("mine", tmp_path / "absent.json")


def test_a_subset_is_chosen_before_the_arg_max() -> None:
    scores = torch.tensor([[0.9, 0.5, 0.1], [0.2, 0.1, 0.3], [0.1, 0.9, 0.5], [0.3, 0.4, 0.5]])
    label = torch.tensor([1, 0, 2, 2])
    kept, renumbered, rows = class_subset(scores, label, [2, 1])
    assert rows.tolist() == [0, 2, 3] and renumbered.tolist() == [1, 0, 0]
    torch.testing.assert_close(kept, torch.tensor([[0.1, 0.5], [0.5, 0.9], [0.5, 0.4]]))
    # Among all classes only the last picture is right; among two, the first is right as well.
    assert zero_shot_accuracy(scores, torch.eye(3), label)["accuracy"] == 25.0
    assert int((kept.argmax(1) == renumbered).sum()) == 2


@pytest.mark.parametrize(
    ("subset", "message"),
    [
        ([1], "two or more distinct"),
        ([], "two or more distinct"),
        ([0, 1, 0], "two or more distinct"),
        ([0, 3], r"classes \[3\], but there are 3"),
        ([-1, 0], r"classes \[-1\]"),
        ([0, 1], "no picture"),
    ],
)
def test_bad_subsets_are_named(subset, message) -> None:
    with pytest.raises(ValueError, match=message):
        class_subset(torch.eye(3), torch.tensor([2, 2, 2]), subset)


def _noisy(n: int = 120, classes: int = 7) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    text = torch.randn(classes, 5, generator=generator)
    label = torch.randint(classes - 1, (n,), generator=generator)  # the last class has no picture
    label[: n // 3] = 0
    return text[label] + 1.5 * torch.randn(n, 5, generator=generator), label, text


def test_the_report_agrees_with_scikit_learn_and_carries_its_protocol() -> None:
    image, label, text = _noisy()
    names = [f"a thing {i}" for i in range(7)]
    found = zero_shot_report(lambda s: text, image, label, names, ["{}"])
    scores = (image @ torch.nn.functional.normalize(text, dim=-1).T).numpy()
    top = top_k_accuracy_score(label.numpy(), scores, k=1, labels=range(7))
    assert found["accuracy"] == pytest.approx(100 * top) and 20 < 100 * top < 95
    balanced = recall_score(label, scores.argmax(1), labels=range(6), average="macro")
    assert found["mean_per_class"] == pytest.approx(100 * balanced)
    assert abs(found["mean_per_class"] - found["accuracy"]) > 0.5
    assert found["low"] < found["accuracy"] < found["high"]
    assert found["absent"] == 1 and found["n"] == 120 and found["hits"].sum() == round(120 * top)
    assert (
        found["protocol"] == f"zero-shot/classes=7/templates={templates_hash(['{}'])}/ties=against"
    )


def test_the_report_on_a_subset_is_that_of_a_world_without_the_other_classes() -> None:
    image, label, text = _noisy()
    names, subset = [f"a thing {i}" for i in range(7)], [4, 1, 2]
    found = zero_shot_report(lambda s: text, image, label, names, ["{}"], subset=subset)
    rows = torch.isin(label, torch.tensor(subset))
    place = torch.tensor([subset.index(int(c)) for c in label[rows]])
    alone = zero_shot_report(
        lambda s: text[subset], image[rows], place, [names[c] for c in subset], ["{}"]
    )
    assert "classes=3/of=7" in found["protocol"] and found["classes"] == 3
    for key in ("accuracy", "mean_per_class", "low", "high", "chance", "majority", "n", "absent"):
        assert found[key] == alone[key], key


def test_pictures_of_one_concept_widen_the_interval() -> None:
    image, label, text = _noisy()
    image = image[:12].repeat_interleave(10, dim=0)  # ten equal pictures of twelve concepts
    label, concept = label[:12].repeat_interleave(10), torch.arange(12).repeat_interleave(10)
    names = [f"a thing {i}" for i in range(7)]
    wide = zero_shot_report(lambda s: text, image, label, names, ["{}"], groups=concept)
    narrow = zero_shot_report(lambda s: text, image, label, names, ["{}"])
    assert wide["high"] - wide["low"] > 1.5 * (narrow["high"] - narrow["low"])


def test_collapsed_encoders_are_named_instead_of_scored() -> None:
    image, label, text = _noisy()
    names = [f"a thing {i}" for i in range(7)]
    with pytest.raises(ValueError, match="every picture has the same embedding"):
        zero_shot_report(lambda s: text, torch.ones_like(image), label, names, ["{}"])
    with pytest.raises(ValueError, match="every class has the same embedding"):
        zero_shot_report(lambda s: torch.ones_like(text), image, label, names, ["{}"])
    with pytest.raises(ValueError, match="NaN"):
        zero_shot_report(lambda s: text, image * math.nan, label, names, ["{}"])
    with pytest.raises(ValueError, match=r"lie in \[0, 7\)"):
        zero_shot_report(lambda s: text, image, label + 7, names, ["{}"])


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
