"""EmojiGLUE: four tasks of understanding captions, made from the content of scenes; it stands for GLUE.

"object" (as SST-2) asks for the group of the object that a caption tells first; "same" (as QQP) whether
two captions tell of one scene; "similarity" (as STS-B) how alike two scenes are, 0 to 5; "acceptable"
(as CoLA) whether a caption is well formed, which four of five are. Example i of a split is a pure
function of (world seed, split, i), and both scenes of a pair belong to the split.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import permutations
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mmkd_lite.config import DataConfig
from mmkd_lite.data.captions import Meaning, write_numbered
from mmkd_lite.data.draws import pick, uniforms
from mmkd_lite.data.emoji import groups, labels, scene_concepts
from mmkd_lite.data.layout import BACKGROUND_NAMES, MAX_OBJECTS, Layout, content_hash, draw_layouts
from mmkd_lite.data.tokenizer import Tokenizer
from mmkd_lite.data.truth import is_true_of_own
from mmkd_lite.data.words import GROUP_WORDS
from mmkd_lite.data.world import SPLITS

KINDS = ("classification", "regression")
HIGHEST = 5.0
ACCEPTABLE_SHARE = 0.8
SAME_SHARE = 0.5
KEPT_SHARE = 0.5
"""How often a part of a scene (an object, the background) stays as it is in the other scene of a pair."""

_PARTS = 8  # as in world.py: a combination's hash modulo 8 decides its split
_ATTEMPTS = 2000


@dataclass(frozen=True)
class TextTask:
    """What is asked of a text or of a pair of texts.

    Attributes:
        name: As "same", or "MRPC".
        classes: Names of the classes, by class id; () for regression.
        metrics: Keys of `evaluate.glue.METRICS`, the main one first.
        pair: Whether an example has two texts.
    """

    name: str
    classes: tuple[str, ...]
    metrics: tuple[str, ...]
    pair: bool = False

    @property
    def kind(self) -> str:
        """Kind of answer: "classification" or "regression"."""
        return KINDS[not self.classes]


@dataclass(frozen=True)
class TextExamples:
    """Labelled texts of one task.

    Attributes:
        task: What is asked.
        first: N texts.
        second: N texts, None for a task of single texts.
        labels: (N,) int64 class ids, or float64 targets.
        name: Where they come from, as "emoji/composition".

    Raises:
        ValueError: No example, lists of different lengths, an empty text, a second text where none is
            due, labels outside the classes, or targets that are not finite.
    """

    task: TextTask
    first: list[str]
    second: list[str] | None
    labels: np.ndarray
    name: str = ""

    def __len__(self) -> int:
        return len(self.labels)

    def __post_init__(self) -> None:
        """Refuse what cannot be trained on or scored."""
        where = f"task {self.task.name!r}{f' ({self.name})' if self.name else ''}"
        if not self.first:
            raise ValueError(f"{where} has no example")
        if (self.second is not None) != self.task.pair:
            raise ValueError(f"{where} needs {'two texts' if self.task.pair else 'one text'} each")
        sides = [self.first] if self.second is None else [self.first, self.second]
        if any(len(texts) != len(self.labels) for texts in sides):
            sizes = [*map(len, sides), len(self.labels)]
            raise ValueError(f"{where}: texts and labels differ in number: {sizes}")
        for texts in sides:
            empty = next((i for i, text in enumerate(texts) if not text.strip()), None)
            if empty is not None:
                raise ValueError(f"{where}: the text of example {empty} is empty")
        self._check_labels(where)

    def _check_labels(self, where: str) -> None:
        values, classes = np.asarray(self.labels), len(self.task.classes)
        if self.task.kind == "regression":
            good = np.isfinite(values.astype(float))
        elif values.dtype.kind not in "iu":
            raise ValueError(f"{where}: labels must be class ids, got {values.dtype}")
        else:
            good = (values >= 0) & (values < classes)
        if not good.all():
            row = int(np.flatnonzero(~good)[0])
            allowed = f"0 to {classes - 1}" if classes else "finite"
            raise ValueError(f"{where}: label {values[row]} of example {row} must be {allowed}")

    def check_every_class(self) -> None:
        """Refuse a set in which a class, or any spread of the targets, is missing.

        Raises:
            ValueError: The missing classes are named.
        """
        where = f"{self.name or 'the set'} of task {self.task.name!r}"
        if self.task.kind == "regression":
            if np.ptp(self.labels) == 0:
                raise ValueError(f"{where}: all targets are {self.labels[0]:g}; nothing to rank")
            return
        missing = sorted(set(range(len(self.task.classes))) - set(self.labels.tolist()))
        if missing:
            names = ", ".join(self.task.classes[label] for label in missing)
            raise ValueError(f"{where} has no example of: {names}; give more examples")


def _groups_of(concepts: int) -> np.ndarray:
    """Sorted group ids of the concepts that scenes are made of."""
    return np.unique(labels("coarse")[np.array(scene_concepts(concepts))])


def emoji_tasks(concepts: int = 200) -> dict[str, TextTask]:
    """The tasks of EmojiGLUE by name.

    Args:
        concepts: As `DataConfig.concepts`; decides which groups occur.
    """
    words = tuple(GROUP_WORDS[groups()[group]] for group in _groups_of(concepts))
    return {
        "object": TextTask("object", words, ("accuracy",)),
        "acceptable": TextTask("acceptable", ("no", "yes"), ("matthews", "f1", "accuracy")),
        "same": TextTask("same", ("different", "same"), ("f1", "accuracy"), pair=True),
        "similarity": TextTask("similarity", (), ("spearman", "pearson"), pair=True),
    }


def emoji_glue(
    task: str, config: DataConfig, split: str, indices: Sequence[int] | np.ndarray
) -> TextExamples:
    """Examples of an EmojiGLUE task.

    Args:
        task: "object", "acceptable", "same" or "similarity".
        config: The world (`world_seed`, `concepts`, `vocabulary`).
        split: "train", "validation" or "composition" (the test scenes).
        indices: Numbers of the examples, each >= 0.

    Raises:
        ValueError: Unknown task or split, no index, or one below 0.

    Source: seed 000, Code 2; the tasks are ours. Derived in notebooks/33_text_understanding.ipynb.
    """
    known = emoji_tasks(config.concepts)
    if task not in known or split not in SPLITS:
        raise ValueError(
            f"unknown task {task!r} or split {split!r}; tasks: {', '.join(known)}; "
            f"splits: {', '.join(SPLITS)}"
        )
    rows = np.asarray(indices, dtype=np.int64)
    if not len(rows):
        raise ValueError(f"task {task!r} was asked for no example; give one index or more")
    world = _World(task, config, split, rows)
    first, second, targets = _MAKERS[task](world)
    return TextExamples(known[task], first, second, targets, f"emoji/{split}")


Made = tuple[list[str], list[str] | None, np.ndarray]
Draw = Callable[[int, np.ndarray], tuple[np.ndarray, tuple[Layout, ...]]]
Accept = Callable[[Meaning, Layout, np.ndarray, np.ndarray], np.ndarray]


class _World:
    """Scenes of one task and split, and their captions."""

    def __init__(self, task: str, config: DataConfig, split: str, rows: np.ndarray) -> None:
        self.config, self.split, self.rows = config, split, rows
        self.stream = f"text_tasks:{task}:{split}"
        self.pool = np.array(scene_concepts(config.concepts))

    def uniforms(self, name: str, slots: int, rows: np.ndarray | None = None) -> np.ndarray:
        """(B, slots) numbers in [0, 1) for examples of these numbers, all by default."""
        rows = self.rows if rows is None else rows
        return uniforms(self.config.world_seed, f"{self.stream}:{name}", rows, slots)

    def captions(self, layout: Layout, name: str, rows: np.ndarray) -> tuple[list[str], Meaning]:
        """One caption for each scene; `rows` are the numbers of the examples."""
        seed, vocabulary = self.config.world_seed, self.config.vocabulary
        return write_numbered(layout, seed, f"{self.stream}:{name}", rows, vocabulary)

    def draw(self, attempt: int, rows: np.ndarray) -> Layout:
        """Scenes of one or two objects, of whatever split: a pair of captions must fit a short tower."""
        stream = f"{self.stream}:scene:{attempt}"
        return draw_layouts(self.config.world_seed, stream, rows, self.pool, objects=(1, 2))

    def belongs(self, layout: Layout) -> np.ndarray:
        """(B,) bool, whether scenes are of this split."""
        part, mine = content_hash(layout) % np.uint64(_PARTS), SPLITS[self.split]
        return (part >= mine.start) & (part < mine.stop)

    def scenes(self) -> Layout:
        """A scene for each example."""

        def draw(attempt: int, waiting: np.ndarray) -> tuple[np.ndarray, tuple[Layout, ...]]:
            drawn = self.draw(attempt, self.rows[waiting])
            fits = self.belongs(drawn)
            return waiting[fits], (drawn.take(fits),)

        return self.first_fit(draw)[0]

    def pairs(
        self, plan: np.ndarray, accept: Accept
    ) -> tuple[list[str], list[str], Layout, Layout]:
        """Two scenes and a caption of each, for each example.

        What changes is planned before any scene is drawn, and both scenes are drawn until both
        belong to the split. So the share of unchanged pairs is the same in every split.

        Args:
            plan: (N, 3) bool: whether the first object, the second and the background change. In a
                scene of one object, it changes if either was to.
            accept: Maps the second scene's meanings, the first scenes, (W, 2) texts and (W,) places
                to (W,) bool.
        """
        told: np.ndarray = np.empty((len(plan), 2), dtype=object)

        def draw(attempt: int, waiting: np.ndarray) -> tuple[np.ndarray, tuple[Layout, ...]]:
            own = self.draw(attempt, self.rows[waiting])
            fits = self.belongs(own)
            own, places = own.take(fits), waiting[fits]
            other = self.edited(
                own, plan[places], self.uniforms(f"edit:{attempt}", 5, self.rows[places])
            )
            fits = self.belongs(other) & _no_twins(other)
            own, other, places = own.take(fits), other.take(fits), places[fits]
            first, _ = self.captions(own, f"first:{attempt}", self.rows[places])
            second, meaning = self.captions(other, f"second:{attempt}", self.rows[places])
            texts = np.array([first, second], dtype=object).reshape(2, -1).T
            fits = accept(meaning, own, texts, places)
            told[places[fits]] = texts[fits]
            return places[fits], (own.take(fits), other.take(fits))

        own, other = self.first_fit(draw)
        return told[:, 0].tolist(), told[:, 1].tolist(), own, other

    def first_fit(self, draw: Draw) -> list[Layout]:
        """For each example the first of its draws that fits.

        Args:
            draw: Maps an attempt's number and the places that still wait to the places that are
                settled and their scenes, once or more.
        """
        settled: list[np.ndarray] = []
        found: list[tuple[Layout, ...]] = []
        waiting = np.arange(len(self.rows))
        for attempt in range(_ATTEMPTS):
            places, layouts = draw(attempt, waiting)
            settled.append(places)
            found.append(layouts)
            waiting = np.setdiff1d(waiting, places)
            if not len(waiting):
                order = np.concatenate(settled).argsort()
                return [_joined(parts).take(order) for parts in zip(*found, strict=True)]
        raise RuntimeError(f"{self.stream}: {len(waiting)} examples found no scene that fits")

    def edited(self, layout: Layout, plan: np.ndarray, u: np.ndarray) -> Layout:
        """Scenes with some objects exchanged, half of them within their subgroup, or another background.

        Args:
            layout: B scenes of one or two objects.
            plan: (B, 3) bool, see `pairs`.
            u: (B, 5) random numbers.
        """
        concept, fine = layout.concept.copy(), labels("fine")
        changes = plan[:, :2] | ((layout.count == 1) & plan[:, :2].any(axis=1))[:, None]
        for row, place in np.argwhere(changes & (layout.concept[:, :2] >= 0)):
            old = layout.concept[row, place]
            choice = self.pool[(fine[self.pool] == fine[old]) & (self.pool != old)]
            if u[row, place] < 0.5 or not len(choice):
                choice = self.pool[self.pool != old]
            concept[row, place] = choice[int(u[row, 2 + place] * len(choice))]
        colours = len(BACKGROUND_NAMES)
        other = (layout.background + 1 + pick(u[:, 4], colours - 1)) % colours
        background = np.where(plan[:, 2], other, layout.background)
        return Layout(
            concept, layout.large, layout.diameter, layout.centre, layout.relation, background
        )


def _object(world: _World) -> Made:
    texts, meaning = world.captions(world.scenes(), "first", world.rows)
    fine, coarse = labels("fine"), labels("coarse")
    of_subgroup = np.zeros(fine.max() + 1, dtype=np.int64)
    of_subgroup[fine] = coarse
    level, label = meaning.level[:, 0], meaning.label[:, 0]
    by_name, by_subgroup = coarse[label % len(coarse)], of_subgroup[label % len(of_subgroup)]
    group = np.select([level == 0, level == 1], [by_name, by_subgroup], label)
    return texts, None, np.searchsorted(_groups_of(world.config.concepts), group)


def _acceptable(world: _World) -> Made:
    texts, _ = world.captions(world.scenes(), "first", world.rows)
    u = world.uniforms("mistake", 3)
    good = u[:, 0] < ACCEPTABLE_SHARE
    told = [
        text if fine else spoiled(text, draw[1], draw[2])
        for text, fine, draw in zip(texts, good, u, strict=True)
    ]
    return told, None, good.astype(np.int64)


def spoiled(text: str, kind: float, place: float) -> str:
    """A caption with one mistake of grammar.

    Args:
        text: A caption.
        kind: In [0, 1), chooses: "a" for "an" or the reverse, an article behind its noun, or a word
            said twice. A caption without an article gets the last.
        place: In [0, 1), chooses the article or the word.
    """
    words = text.split()
    articles = [i for i, word in enumerate(words[:-1]) if word in ("a", "an")]
    if kind < 2 / 3 and articles:
        at = articles[int(place * len(articles))]
        if kind < 1 / 3:
            words[at] = "an" if words[at] == "a" else "a"
        else:
            words[at : at + 2] = words[at + 1], words[at]
    else:
        at = int(place * len(words))
        words.insert(at, words[at])
    return " ".join(words)


def _same(world: _World) -> Made:
    u = world.uniforms("plan", 5)
    same = u[:, 0] < SAME_SHARE
    plan = u[:, 1:4] >= KEPT_SHARE
    none = np.flatnonzero(~plan[:, :2].any(axis=1))
    plan[none, pick(u[none, 4], 2)] = True  # one object surely changes
    plan &= ~same[:, None]

    def accept(meaning: Meaning, own: Layout, texts: np.ndarray, places: np.ndarray) -> np.ndarray:
        """The texts differ, and that of another scene is not true of the first."""
        return (texts[:, 0] != texts[:, 1]) & (same[places] | ~is_true_of_own(meaning, own))

    first, second, _, _ = world.pairs(plan, accept)
    return first, second, same.astype(np.int64)


def _similarity(world: _World) -> Made:
    plan = world.uniforms("plan", 3) >= KEPT_SHARE
    first, second, a, b = world.pairs(plan, lambda m, own, texts, places: places >= 0)
    return first, second, scene_similarity(a, b)


_MAKERS: dict[str, Callable[[_World], Made]] = {
    "object": _object,
    "acceptable": _acceptable,
    "same": _same,
    "similarity": _similarity,
}


def scene_similarity(a: Layout, b: Layout) -> np.ndarray:
    r"""How alike scenes are, from 0 to 5.

    Each object of one scene is paired with one of the other so that the credits sum to the most: 1
    for the same concept, 1/2 for the same subgroup, 1/4 for the same group. With the sum over the
    larger number of objects, and :math:`b = 1` where the backgrounds agree, the similarity is

    .. math:: 4 \cdot \frac{\text{credits}}{\max(n_a, n_b)} + b

    Args:
        a: B scenes.
        b: B scenes.

    Returns:
        (B,) float64; the same for (a, b) and (b, a).
    """
    there = (a.concept >= 0)[:, :, None] & (b.concept >= 0)[:, None, :]  # (B, 3, 3)
    equal = [
        key[a.concept][:, :, None] == key[b.concept][:, None, :]
        for key in (np.arange(len(labels("fine"))), labels("fine"), labels("coarse"))
    ]
    credit = np.where(there, np.select(equal, [1.0, 0.5, 0.25]), 0.0)
    places = np.arange(MAX_OBJECTS)
    best = np.max([credit[:, places, p].sum(axis=1) for p in permutations(places)], axis=0)
    share = best / np.maximum(a.count, b.count)
    return (HIGHEST - 1) * share + (a.background == b.background)


def _joined(parts: Sequence[Layout]) -> Layout:
    """The scenes of several layouts in one."""
    return Layout(
        *(np.concatenate(fields) for fields in zip(*(vars(p).values() for p in parts), strict=True))
    )


def _no_twins(layout: Layout) -> np.ndarray:
    """(B,) bool, whether no concept stands in a scene twice."""
    ordered = np.sort(layout.concept, axis=1)
    return ~((ordered[:, 1:] == ordered[:, :-1]) & (ordered[:, 1:] >= 0)).any(axis=1)


def encode_examples(
    examples: TextExamples, tokenizer: Tokenizer, max_tokens: int
) -> dict[str, Any]:
    """Token ids of examples: `[CLS] a [SEP]`, or `[CLS] a [SEP] b [SEP]` with segments 0 and 1.

    A pair that is too long loses words at the end of the longer text until it fits.

    Args:
        examples: N examples.
        tokenizer: One that pads with a token of its own (not CLIP's).
        max_tokens: M, special tokens included; at least 5 for pairs.

    Returns:
        `tokens` and `type_ids`, int64 (N, M), and `cut`, the number of examples that lost words.

    Raises:
        ValueError: `max_tokens` is too small, or the tokenizer pads with [SEP].

    Source: seed 000, Code 2 with errata E000-07. Derived in notebooks/33_text_understanding.ipynb.
    """
    if tokenizer.pad_id == tokenizer.sep_id or max_tokens < 5:
        raise ValueError(
            f"pairs need a tokenizer whose padding is not [SEP], and max_tokens >= 5 (got {max_tokens})"
        )
    sides = [_pieces(texts, tokenizer) for texts in (examples.first, examples.second) if texts]
    tokens = torch.full((len(examples), max_tokens), tokenizer.pad_id, dtype=torch.int64)
    type_ids, cut = torch.zeros_like(tokens), 0
    for row, parts in enumerate(zip(*sides, strict=True)):
        room = max_tokens - 1 - len(parts)
        cut += sum(map(len, parts)) > room
        shorter = _fit(parts, room)
        ids = [tokenizer.cls_id, *(x for part in shorter for x in (*part, tokenizer.sep_id))]
        tokens[row, : len(ids)] = torch.tensor(ids)
        type_ids[row, len(shorter[0]) + 2 : len(ids)] = 1
    return {"tokens": tokens, "type_ids": type_ids, "cut": cut}


def _pieces(texts: Sequence[str], tokenizer: Tokenizer) -> list[list[int]]:
    """Ids of each text without special tokens."""
    found: list[list[int]] = []
    for text in texts:
        ids: Tensor = tokenizer.encode([text], 2 + 4 * len(text))[0]
        found.append(ids[1 : int((ids != tokenizer.pad_id).sum()) - 1].tolist())
    return found


def _fit(parts: Sequence[list[int]], room: int) -> list[list[int]]:
    """Parts of which the longest lost its end, again and again, until all fit."""
    sizes = [len(part) for part in parts]
    while sum(sizes) > room:
        sizes[int(np.argmax(sizes))] -= 1
    return [part[:size] for part, size in zip(parts, sizes, strict=True)]
