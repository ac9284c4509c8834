"""Concepts: what an emoji depicts, once, whatever skin tone, gender or hair it is drawn with.

Unicode's `emoji-test.txt` (read from the package `emoji-data`, which is not imported) names every
emoji and files it under a group and a subgroup; these are the coarse and the fine label here.
Sequences that differ by skin tone, gender, hair, direction or by who is in a couple or family are
folded into one base concept, so that a variant can never sit on the other side of a split.
Left out are Component (parts, not pictures) and the country and subdivision flags: 261 emoji of
one subgroup, whose names say nothing about what is seen and which would outweigh all other labels.
"""

from __future__ import annotations

import importlib.util
import re
import unicodedata
from collections import Counter
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np

from mmkd_lite.data.draws import uniforms
from mmkd_lite.data.words import GROUP_WORDS, SUBGROUP_WORDS, is_plural, with_article

SPLIT_SEED = 20_001
UNSEEN_SHARE = 0.1
_SKIPPED_SUBGROUPS = ("country-flag", "subdivision-flag", "skin-tone", "hair-style")
_SKIN_TONES = {"1F3FB", "1F3FC", "1F3FD", "1F3FE", "1F3FF"}
_JOINED_VARIANTS = {"2640", "2642", "1F9B0", "1F9B1", "1F9B2", "1F9B3", "27A1"}
_NEUTRAL = {
    "1F468": "1F9D1", "1F469": "1F9D1", "1F466": "1F9D2", "1F467": "1F9D2",  # man, woman, boy, girl
    "1F474": "1F9D3", "1F475": "1F9D3",  # old man, old woman
}  # fmt: skip
_SAME_CONCEPT = {
    "1FAF1-200D-1FAF2": "1F91D",  # handshake of two skin tones
    "1F934": "1FAC5", "1F478": "1FAC5",  # prince, princess: person with crown
    "1F930": "1FAC4", "1FAC3": "1FAC4",  # pregnant woman, man: person
    "1F385": "1F9D1-200D-1F384", "1F936": "1F9D1-200D-1F384",  # Santa, Mrs. Claus: Mx Claus
    "1F57A": "1F483",  # man dancing, woman dancing
    "1F9D1-200D-1F430-200D-1F9D1": "1F46F", "1F9D1-200D-1FAEF-200D-1F9D1": "1F93C",
    "1F46D": "1F9D1-200D-1F91D-200D-1F9D1", "1F46B": "1F9D1-200D-1F91D-200D-1F9D1",
    "1F46C": "1F9D1-200D-1F91D-200D-1F9D1",  # holding hands
    "1F9D1-200D-2764-200D-1F48B-200D-1F9D1": "1F48F",  # kiss
    "1F9D1-200D-2764-200D-1F9D1": "1F491",  # couple with heart
}  # fmt: skip
_FAMILY = re.compile(r"(1F9D1-200D-)+1F9D2(-200D-1F9D2)?")
_RENAMED = {
    "1F471": "blond person", "1F9D4": "bearded person", "1F483": "dancer",
    "1F9D1-200D-1F37C": "person feeding baby",
}  # fmt: skip


@dataclass(frozen=True)
class Concept:
    """One thing that an emoji depicts.

    Attributes:
        index: Position in `concepts()`.
        code: Code points of the base emoji without variation selectors, as "1F9D1-200D-1F680".
        name: Unicode's name in lower-case ASCII letters, as "red apple".
        group: Coarse label, as "Food & Drink".
        subgroup: Fine label, as "food-fruit".
    """

    index: int
    code: str
    name: str
    group: str
    subgroup: str


def package_folder(module: str, pip_name: str, needed_for: str) -> Path:
    """Folder of an installed package, found without importing it.

    Raises:
        ModuleNotFoundError: The package is not installed; the message names the pip package.
    """
    spec = importlib.util.find_spec(module)
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError(
            f"{needed_for} need the package {pip_name}: pip install {pip_name}"
        )
    return Path(next(iter(spec.submodule_search_locations)))


def folded(code: str) -> str:
    """Code of the base concept of an emoji.

    Args:
        code: Code points in hexadecimal joined by "-", with or without variation selectors.

    Returns:
        The code without skin tone, gender, hair and direction, as "1F9D1-200D-1F680".
    """
    points = [p for p in code.split("-") if p != "FE0F" and p not in _SKIN_TONES]
    kept: list[str] = []
    for point in points:
        if point in _JOINED_VARIANTS and kept and kept[-1] == "200D":
            kept.pop()  # the joiner goes with the sign that it joined
        else:
            kept.append(_NEUTRAL.get(point, point))
    base = "-".join(kept)
    if _FAMILY.fullmatch(base):
        return "1F46A"
    return _SAME_CONCEPT.get(base, base)


def _plain_name(name: str) -> str:
    """A Unicode name in lower-case ASCII letters, digits and single spaces."""
    ascii_name = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode().lower()
    return " ".join(re.sub(r"[^a-z0-9#*!?+-]", " ", ascii_name.replace("'", "")).split())


@cache
def _unicode_rows() -> tuple[tuple[str, str, str, str, float], ...]:
    """Fully-qualified emoji: code without selectors, name, group, subgroup, version."""
    folder = package_folder("emoji_data", "emoji-data", "the names and groups of the concepts")
    group = subgroup = ""
    rows = []
    for line in (folder / "data" / "emoji-test.txt").read_text(encoding="utf-8").splitlines():
        if line.startswith("# group: "):
            group = line.removeprefix("# group: ")
        elif line.startswith("# subgroup: "):
            subgroup = line.removeprefix("# subgroup: ")
        elif found := re.match(r"([0-9A-F ]+?) *; fully-qualified *# \S+ E([\d.]+) (.*)", line):
            code = "-".join(p for p in found[1].split() if p != "FE0F")
            rows.append((code, found[3], group, subgroup, float(found[2])))
    return tuple(row for row in rows if row[3] not in _SKIPPED_SUBGROUPS)


@cache
def concepts() -> tuple[Concept, ...]:
    """All base concepts, in Unicode's order."""
    by_code = {row[0]: row for row in _unicode_rows()}
    bases = dict.fromkeys(folded(code) for code in by_code)
    return tuple(
        Concept(i, code, _RENAMED.get(code) or _plain_name(by_code[code][1]), *by_code[code][2:4])
        for i, code in enumerate(bases)
    )


@cache
def variants() -> dict[str, int]:
    """Concept index of every emoji, variants included, by its code without selectors."""
    index_of = {concept.code: concept.index for concept in concepts()}
    return {row[0]: index_of[folded(row[0])] for row in _unicode_rows()}


@cache
def groups() -> tuple[str, ...]:
    """Coarse labels; the position is the class id."""
    return tuple(dict.fromkeys(concept.group for concept in concepts()))


@cache
def subgroups() -> tuple[str, ...]:
    """Fine labels; the position is the class id."""
    return tuple(dict.fromkeys(concept.subgroup for concept in concepts()))


@cache
def _labels() -> tuple[np.ndarray, np.ndarray]:
    fine = np.array([subgroups().index(concept.subgroup) for concept in concepts()])
    coarse = np.array([groups().index(concept.group) for concept in concepts()])
    for array in (fine, coarse):
        array.setflags(write=False)
    return fine, coarse


def labels(level: str) -> np.ndarray:
    """Class id of every concept.

    Args:
        level: "fine" (subgroup) or "coarse" (group).

    Returns:
        (n_concepts,) int64, read-only.
    """
    if level not in ("fine", "coarse"):
        raise ValueError(f"level must be 'fine' or 'coarse', got {level!r}")
    return _labels()[level == "coarse"]


def class_names(level: str, article: bool = False) -> tuple[str, ...]:
    """Readable noun of every class, in the order of the class ids.

    Args:
        level: "fine", "coarse" or "concept".
        article: Put "a" or "an" before each.
    """
    if level == "concept":
        names = tuple(concept.name for concept in concepts())
    elif level == "fine":
        names = tuple(SUBGROUP_WORDS[subgroup] for subgroup in subgroups())
    elif level == "coarse":
        names = tuple(GROUP_WORDS[group] for group in groups())
    else:
        raise ValueError(f"level must be 'fine', 'coarse' or 'concept', got {level!r}")
    return tuple(with_article(name) for name in names) if article else names


def concept_split(name: str) -> np.ndarray:
    """Concepts of one side of the split by concept, stratified by subgroup.

    A tenth of each subgroup with at least five concepts, rounded, is "unseen": no teacher and
    no tower is ever trained on it. The split is one and the same for every world seed.

    Args:
        name: "seen" or "unseen".

    Returns:
        (n,) int64 concept indices, ascending.
    """
    if name not in ("seen", "unseen"):
        raise ValueError(f"split by concept is 'seen' or 'unseen', got {name!r}")
    return _concept_splits()[name]


@cache
def _concept_splits() -> dict[str, np.ndarray]:
    order = np.argsort(uniforms(SPLIT_SEED, "concepts", np.arange(len(concepts())), 1)[:, 0])
    unseen: list[int] = []
    for label in range(len(subgroups())):
        members = order[labels("fine")[order] == label]
        unseen.extend(members[: round(UNSEEN_SHARE * len(members))])
    chosen = np.array(sorted(unseen), dtype=np.int64)
    return {"unseen": chosen, "seen": np.setdiff1d(np.arange(len(concepts())), chosen)}


_UNFIT_WORDS = frozenset(
    # colours and the words that captions themselves use
    "red orange yellow green blue purple brown black white pink grey gray light dark gold silver "
    "left leftwards right rightwards up down top above below under over large small medium big and "
    "or on in of with no not without sign button face person people man woman symbol background "
    "picture "
    # names that are no countable noun, or not fit to be read aloud
    "middle mx mens womens zzz wood cooking cooked locked unlocked prohibited radioactive "
    "copyright registered soon spaghetti yarn dna soap cancer biohazard racing lacrosse "
    "bowling water butter salt rice bacon bread hockey tennis golf judo karate warning hugging "
    "cricket".split()
)
_NEWEST_VERSION = 16.0  # of Unicode emoji; the Noto font has nothing from here on
_UNFIT_SUBGROUPS = frozenset(
    "alphanum keycap punctuation math geometric av-symbol gender zodiac".split()
)


def _fit_for_scenes(concept: Concept, version: float) -> bool:
    """Whether all artists have it and its name is a short noun unlike other caption words."""
    words = concept.name.replace("-", " ").split()
    taken = {*GROUP_WORDS.values(), *SUBGROUP_WORDS.values()}
    return (
        len(words) <= 2
        and len(concept.name) <= 14
        and re.fullmatch(r"[a-z -]+", concept.name) is not None
        and not is_plural(concept.name)
        and re.search(r"oclock|thirty", concept.name) is None
        and not _UNFIT_WORDS & set(words)
        and concept.name not in taken
        and concept.subgroup not in _UNFIT_SUBGROUPS
        and version < _NEWEST_VERSION
    )


@cache
def scene_concepts(count: int = 200) -> tuple[int, ...]:
    """The fixed list of concepts that scenes are made of: seen ones, spread over subgroups.

    A subgroup gives concepts in proportion to the square root of its size, so that large ones do
    not crowd out small ones. Those with short plain names come first (about 620); whoever asks for
    more gets the other seen concepts too, with the names that Unicode gave them.

    Args:
        count: How many concepts; a shorter list is part of a longer one.

    Returns:
        Concept indices, ascending.

    Raises:
        ValueError: More concepts are asked for than are seen.
    """
    order = np.argsort(uniforms(SPLIT_SEED, "scenes", np.arange(len(concepts())), 1)[:, 0])
    seen = set(concept_split("seen").tolist())
    version = {row[0]: row[4] for row in _unicode_rows()}
    ordered = [concepts()[i] for i in order if i in seen]
    fitting = [c for c in ordered if _fit_for_scenes(c, version[c.code])]
    members = Counter(concept.subgroup for concept in fitting)
    turn: Counter[str] = Counter()
    ranked: list[tuple[float, int]] = []
    for concept in fitting:
        turn[concept.subgroup] += 1
        ranked.append((turn[concept.subgroup] / members[concept.subgroup] ** 0.5, concept.index))
    chosen = [index for _, index in sorted(ranked)]
    chosen += [concept.index for concept in ordered if concept.index not in set(chosen)]
    if not 3 <= count <= len(chosen):
        raise ValueError(f"scenes can use 3 to {len(chosen)} concepts, got {count}")
    return tuple(sorted(chosen[:count]))
