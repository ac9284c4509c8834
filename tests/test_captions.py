"""Captions, their truth, and the noise that makes them wrong."""

import dataclasses
import itertools

import numpy as np
import pytest

from mmkd_lite.config import DataConfig
from mmkd_lite.data import captions as grammar
from mmkd_lite.data.emoji import concepts, groups, labels
from mmkd_lite.data.layout import BACKGROUND_NAMES, RELATIONS, Layout
from mmkd_lite.data.scenes import EmojiScenes
from mmkd_lite.data.truth import is_true, is_true_of_own
from mmkd_lite.data.world import SceneObject, describe

CONFIG = DataConfig()


@pytest.fixture(scope="module")
def told():
    """600 scenes of the test split with captions and meanings."""
    return EmojiScenes(CONFIG, "composition").batch(np.arange(600))


def loop_truth(meaning, t, scene):
    """One caption, one scene, in plain words: try to find its objects."""
    if meaning.background[t] >= 0 and BACKGROUND_NAMES[meaning.background[t]] != scene.background:
        return False
    stands = {}
    for a, relation, b in scene.relations:
        stands[a, b] = RELATIONS.index(relation)
        stands[b, a] = [1, 0, 3, 2][RELATIONS.index(relation)]
    mentions = [k for k in range(3) if meaning.level[t, k] >= 0]
    for found in itertools.permutations(range(len(scene.objects)), len(mentions)):
        place = dict(zip(mentions, found, strict=True))
        if not all(answers(meaning, t, k, scene.objects[place[k]]) for k in mentions):
            continue
        claims = [(a, b) for a in mentions for b in mentions if meaning.relation[t, a, b] >= 0]
        if all(stands[place[a], place[b]] == meaning.relation[t, a, b] for a, b in claims):
            return True
    return False


def answers(meaning, t, k, thing: SceneObject):
    """Whether an object has the label and size of mention k."""
    concept = thing.concept
    label = [concept, labels("fine")[concept], labels("coarse")[concept]][meaning.level[t, k]]
    size = meaning.large[t, k]
    return label == meaning.label[t, k] and (size < 0 or ["small", "large"][size] == thing.size)


def test_truth_equals_the_loop(told):
    layout, meaning = told["layout"], told["meaning"]
    truth = is_true(meaning, layout)
    scenes = [describe(layout.take(np.array([n]))) for n in range(len(layout))]
    drawn = np.random.default_rng(0)
    pairs = np.concatenate(
        [
            np.argwhere(truth)[:2500],  # what is true
            np.stack([drawn.integers(0, 3000, 2500), drawn.integers(0, 600, 2500)], axis=1),
        ]
    )
    expected = np.array([loop_truth(meaning, t, scenes[n]) for t, n in pairs])
    np.testing.assert_array_equal(truth[pairs[:, 0], pairs[:, 1]], expected)
    assert 0.3 < expected.mean() < 0.7


def test_own_captions_are_true(told):
    own = np.repeat(np.arange(600), 5)
    assert is_true_of_own(told["meaning"], told["layout"].take(own)).all()
    assert is_true(told["meaning"], told["layout"])[np.arange(3000), own].all()


def test_one_wrong_fact_makes_a_caption_false(told):
    """Change one told fact at a time: background, size, relation, object."""
    meaning, own = told["meaning"], told["layout"].take(np.repeat(np.arange(600), 5))
    said = meaning.background >= 0
    changed = dataclasses.replace(meaning, background=(meaning.background + 1) % 10)
    assert not is_true_of_own(changed.take(said), own.take(said)).any()
    named = (meaning.level[:, 0] == 0) & (own.count == 1)
    sized = named & (meaning.large[:, 0] >= 0)
    changed = dataclasses.replace(meaning, large=1 - meaning.large)
    assert sized.sum() > 50 and not is_true_of_own(changed.take(sized), own.take(sized)).any()
    changed = dataclasses.replace(meaning, label=meaning.label + 1)
    assert not is_true_of_own(changed.take(named), own.take(named)).any()
    both = (meaning.level[:, :2] == 0).all(axis=1) & (meaning.relation[:, 0, 1] >= 0)
    turned = dataclasses.replace(meaning, relation=meaning.relation.transpose(0, 2, 1))
    assert both.sum() > 300 and not is_true_of_own(turned.take(both), own.take(both)).any()


def test_a_caption_is_read_as_it_is_meant(told):
    """Words and meaning agree: names, sizes, backgrounds and relations are found in the text."""
    texts = [text for five in told["captions"] for text in five]
    meaning = told["meaning"]
    for t, text in enumerate(texts):
        background = meaning.background[t]
        told_names = [
            name for name in BACKGROUND_NAMES if f" {name}" in f" {text}".replace(",", "")
        ]
        assert told_names == ([] if background < 0 else [BACKGROUND_NAMES[background]])
        assert text.count("small") == int((meaning.large[t] == 0).sum())
        assert text.count("large") == int((meaning.large[t] == 1).sum())
        position = -1
        for level, label in zip(meaning.level[t], meaning.label[t], strict=True):
            if level == 0:
                position = text.index(concepts()[label].name, position + 1)
        if meaning.relation[t, 0, 1] >= 0:
            words = grammar.RELATION_PHRASES[meaning.relation[t, 0, 1]]
            assert any(f" {word} " in text for word in words)


def test_inverted_captions_say_the_same():
    """ "A left of B" and "B right of A" are both written, and both are true."""
    scenes = EmojiScenes(CONFIG, "train")
    batch = scenes.batch(np.arange(400))
    pairs = np.flatnonzero(batch["layout"].count == 2)
    relation = batch["meaning"].relation.reshape(400, 5, 3, 3)[pairs, :, 0, 1]
    inverse = np.array([1, 0, 3, 2])
    both_sides = 0
    for own in relation:
        told = set(own[own >= 0].tolist())
        assert len({min(r, inverse[r]) for r in told}) <= 1  # one axis
        both_sides += len(told) == 2
    assert both_sides > 0.7 * len(pairs)


def test_shares_are_as_stated(told):
    meaning, own = told["meaning"], told["layout"].take(np.repeat(np.arange(600), 5))
    levels = meaning.level[meaning.level >= 0]
    np.testing.assert_allclose(
        np.bincount(levels) / len(levels), grammar.DEFAULT_SHARES, atol=0.025
    )
    assert abs((meaning.background >= 0).mean() - grammar.BACKGROUND_SHARE) < 0.03
    related = (meaning.relation >= 0).any(axis=(1, 2))[own.count > 1]
    assert abs(related.mean() - grammar.RELATION_SHARE) < 0.03
    third = (meaning.level[:, 2] >= 0)[own.count == 3]
    assert abs(third.mean() - grammar.THIRD_SHARE) < 0.05


@pytest.mark.parametrize(("vocabulary", "absent"), [("no_groups", [1, 2]), ("no_names", [0])])
def test_presets_hold_words_back_for_some_groups(vocabulary, absent):
    config = dataclasses.replace(CONFIG, vocabulary=vocabulary)
    batch = EmojiScenes(config).batch(np.arange(800))
    held_back = [groups().index(group) for group in grammar.VOCABULARIES[vocabulary]]
    own = batch["layout"].take(np.repeat(np.arange(800), 5))
    single = own.count == 1
    group = labels("coarse")[own.concept[single, 0]]
    level = batch["meaning"].level[single, 0]
    touched = np.isin(group, held_back)
    assert touched.sum() > 200 and not np.isin(level[touched], absent).any()
    assert np.isin(level[~touched], absent).any()


def test_five_captions_differ_in_what_they_omit(told):
    per_image = (told["meaning"].background >= 0).reshape(600, 5)
    mixed = (per_image.any(axis=1) & ~per_image.all(axis=1)).mean()
    assert mixed > 0.8
    assert np.mean([len(set(five)) for five in told["captions"]]) > 4.3


def test_captions_fit_into_32_tokens():
    from mmkd_lite.data.tokenizer import load_tokenizer

    texts = [text for five in EmojiScenes(CONFIG).texts(np.arange(4000)) for text in five]
    tokens = load_tokenizer().encode(texts, 64)
    assert int((tokens != 0).sum(dim=1).max()) <= CONFIG.max_tokens


@pytest.mark.parametrize("kind", ["swap", "partial"])
@pytest.mark.parametrize("share", [0.1, 0.5, 1.0])
def test_noise_makes_the_stated_share_wrong(kind, share):
    config = dataclasses.replace(CONFIG, noise=share, noise_kind=kind)
    noisy = EmojiScenes(config).batch(np.arange(600))
    clean = EmojiScenes(CONFIG).batch(np.arange(600))
    assert abs((1 - noisy["clean"].mean()) - share) < 0.025
    own = noisy["layout"].take(np.repeat(np.arange(600), 5))
    np.testing.assert_array_equal(is_true_of_own(noisy["meaning"], own), noisy["clean"].reshape(-1))
    for before, after, kept in zip(
        clean["captions"], noisy["captions"], noisy["clean"], strict=True
    ):
        same = [a == b for a, b in zip(before, after, strict=True)]
        assert all(same[k] for k in range(5) if kept[k])
    np.testing.assert_array_equal(noisy["image"], clean["image"])
    assert clean["clean"].all()


def test_noise_is_a_pure_function_of_the_scene():
    config = dataclasses.replace(CONFIG, noise=0.5)
    scenes = EmojiScenes(config)
    assert scenes.texts([5, 9, 2])[1] == scenes.texts([9])[0]
    assert EmojiScenes(config, "composition").batch([0, 1])["clean"].all()


def test_partial_noise_shares_the_other_object_and_swap_does_not():
    shared = {}
    for kind in ("swap", "partial"):
        config = dataclasses.replace(CONFIG, noise=1.0, noise_kind=kind)
        batch = EmojiScenes(config).batch(np.arange(600))
        own = batch["layout"].take(np.repeat(np.arange(600), 5))
        named = (batch["meaning"].level == 0).all(axis=1, where=batch["meaning"].level >= 0)
        rows = np.flatnonzero((own.count == 2) & named)
        common = [np.isin(batch["meaning"].label[t, :2], own.concept[t, :2]).sum() for t in rows]
        shared[kind] = np.mean(common)
        assert max(common) <= (1 if kind == "partial" else 2)
    assert shared["partial"] > 0.95 and shared["swap"] < 0.1


def test_unknown_noise_is_refused():
    config = dataclasses.replace(CONFIG, noise=0.5, noise_kind="loud")
    with pytest.raises(ValueError, match="swap or partial"):
        EmojiScenes(config).batch([0])


def test_truth_by_hand():
    """A zebra above a small dog on red."""
    index = {concept.name: concept.index for concept in concepts()}
    layout = Layout(
        concept=np.array([[index["zebra"], index["dog"], -1]]),
        large=np.array([[1, 0, -1]]),
        diameter=np.zeros((1, 3)),
        centre=np.zeros((1, 3, 2)),
        relation=np.array([[[-1, 2, -1], [3, -1, -1], [-1, -1, -1]]]),
        background=np.array([BACKGROUND_NAMES.index("red")]),
    )
    mammal = labels("fine")[index["dog"]]

    def claim(level, label, relation=-1, large=(-1, -1, -1), background=-1):
        said = np.full((1, 3, 3), -1)
        said[0, 0, 1] = relation
        return grammar.Meaning(
            np.array([level]), np.array([label]), np.array([large]), said, np.array([background])
        )

    zebra, dog = index["zebra"], index["dog"]
    cases = [
        (claim([0, -1, -1], [dog, -1, -1]), True),
        (claim([0, 0, -1], [zebra, dog, -1], 2), True),
        (claim([0, 0, -1], [dog, zebra, -1], 3), True),  # "a dog below a zebra"
        (claim([0, 0, -1], [dog, zebra, -1], 2), False),
        (claim([0, 0, -1], [dog, dog, -1]), False),  # there is only one
        (claim([1, 1, -1], [mammal, mammal, -1]), True),  # two mammals
        (claim([1, 1, 1], [mammal, mammal, mammal]), False),
        (claim([1, 0, -1], [mammal, zebra, -1], 2), False),  # "a mammal above a zebra"
        (claim([1, -1, -1], [mammal, -1, -1], large=(0, -1, -1)), True),
        (claim([0, -1, -1], [zebra, -1, -1], large=(0, -1, -1)), False),
        (claim([0, -1, -1], [zebra, -1, -1], background=0), False),
    ]
    for meaning, expected in cases:
        assert is_true(meaning, layout).tolist() == [[expected]]
