"""EmojiGLUE, pairs of texts as tokens, and GLUE's files as exported by ourselves."""

import re
from dataclasses import replace

import numpy as np
import pytest

from mmkd_lite.config import DataConfig
from mmkd_lite.data import text_tasks
from mmkd_lite.data.emoji import class_names, labels, scene_concepts
from mmkd_lite.data.glue_files import GLUE, read_glue
from mmkd_lite.data.layout import Layout, content_hash
from mmkd_lite.data.text_tasks import (
    TextExamples,
    TextTask,
    emoji_glue,
    emoji_tasks,
    encode_examples,
    scene_similarity,
    spoiled,
)
from mmkd_lite.data.tokenizer import load_tokenizer
from mmkd_lite.data.truth import is_true_of_own
from mmkd_lite.evaluate.glue import METRICS
from tests.glue_writer import write_glue

DATA = DataConfig()
TASKS = emoji_tasks()
BINARY = TextTask("toy", ("no", "yes"), ("accuracy",))


@pytest.fixture(scope="module")
def made():
    """300 training and 300 test examples of each task."""
    return {
        (task, split): emoji_glue(task, DATA, split, range(300))
        for task in TASKS
        for split in ("train", "composition")
    }


@pytest.mark.parametrize("task", TASKS)
def test_an_example_depends_on_its_number_alone(made, task):
    whole = made[task, "composition"]
    rows = [17, 3, 250]
    part = emoji_glue(task, DATA, "composition", rows)
    assert part.first == [whole.first[i] for i in rows]
    assert part.labels.tolist() == whole.labels[rows].tolist()
    if part.second is not None:
        assert part.second == [whole.second[i] for i in rows]


@pytest.mark.parametrize("task", TASKS)
def test_splits_and_worlds_differ(made, task):
    test, train = made[task, "composition"], made[task, "train"]
    assert test.first != train.first
    other = emoji_glue(task, replace(DATA, world_seed=1), "composition", range(300))
    assert other.first != test.first


@pytest.mark.parametrize("task", TASKS)
def test_every_class_occurs_and_labels_are_of_their_type(made, task):
    for split in ("train", "composition"):
        examples = made[task, split]
        examples.check_every_class()
        assert examples.labels.dtype == (np.int64 if TASKS[task].classes else np.float64)
        assert set(TASKS[task].metrics) <= set(METRICS)


@pytest.mark.parametrize("task", TASKS)
def test_scenes_of_training_and_test_share_no_combination(task, monkeypatch):
    """Both scenes of a pair belong to the split by the hash of their combination."""
    kept = {}
    fit = text_tasks._World.first_fit

    def remembered(self, draw):
        layouts = fit(self, draw)
        kept.setdefault(self.split, []).extend(map(content_hash, layouts))
        return layouts

    monkeypatch.setattr(text_tasks._World, "first_fit", remembered)
    for split in ("train", "composition"):
        emoji_glue(task, DATA, split, range(200))
    train, test = (np.concatenate(kept[s]) for s in ("train", "composition"))
    assert (test % 8 == 0).all()
    assert ((train % 8 >= 2) & (train % 8 < 8)).all()
    assert not set(train.tolist()) & set(test.tolist())
    assert len(train) == 200 * (2 if TASKS[task].pair else 1)


def test_the_object_label_is_the_group_of_the_first_noun(made):
    examples = made["object", "composition"]
    names, fine, coarse = (class_names(x) for x in ("concept", "fine", "coarse"))
    groups_seen = [coarse[g] for g in text_tasks._groups_of(200)]
    group_of = {}
    for concept in scene_concepts(200):
        group = coarse[labels("coarse")[concept]]
        for word in (names[concept], fine[labels("fine")[concept]], group):
            group_of.setdefault(word, set()).add(group)
    checked = 0
    for text, label in zip(examples.first, examples.labels, strict=True):
        told = re.sub(r"^(there is |a picture of |we see )", "", text)
        told = re.sub(r"^(a|an) ", "", re.sub(r"^((?:a |an )?)(small |large )", r"\1", told))
        fitting = [word for word in group_of if told.startswith(word)]
        if fitting:
            assert groups_seen[label] in group_of[max(fitting, key=len)], (text, label)
            checked += 1
    assert checked > 280


def test_acceptable_is_unbalanced_and_mistakes_are_mistakes(made):
    labels_ = np.concatenate([made["acceptable", s].labels for s in ("train", "composition")])
    assert 0.75 < labels_.mean() < 0.85
    assert spoiled("a dog above an apple", 0.1, 0.0) == "an dog above an apple"
    assert spoiled("a dog above an apple", 0.1, 0.9) == "a dog above a apple"
    assert spoiled("a dog above an apple", 0.5, 0.0) == "dog a above an apple"
    assert spoiled("a dog above an apple", 0.9, 0.5) == "a dog above above an apple"
    assert spoiled("fries on red", 0.1, 0.0) == "fries fries on red"


def test_a_spoiled_caption_differs_from_every_caption_of_its_scene(made):
    for text in made["object", "train"].first[:200]:
        for kind in (0.1, 0.5, 0.9):
            assert spoiled(text, kind, 0.4) != text


def test_same_pairs_never_repeat_a_text_and_are_balanced(made):
    examples = made["same", "train"]
    assert all(a != b for a, b in zip(examples.first, examples.second, strict=True))
    assert 0.4 < examples.labels.mean() < 0.6


@pytest.mark.parametrize("split", ["train", "composition"])
def test_a_second_caption_is_true_of_the_first_scene_exactly_for_same_pairs(monkeypatch, split):
    """What the texts say, by their meanings: kept when the pair was accepted."""
    pairs, seen = text_tasks._World.pairs, {}

    def watched(self, plan, accept):
        def remembered(meaning, own, texts, places):
            fits = accept(meaning, own, texts, places)
            truth = is_true_of_own(meaning, own)
            seen.update(zip(places[fits].tolist(), truth[fits].tolist(), strict=True))
            return fits

        return pairs(self, plan, remembered)

    monkeypatch.setattr(text_tasks._World, "pairs", watched)
    examples = emoji_glue("same", DATA, split, range(200))
    assert [seen[i] for i in range(200)] == examples.labels.astype(bool).tolist()


@pytest.mark.parametrize("task", ["same", "similarity"])
def test_no_split_is_easier_than_another(made, task):
    """Changed scenes must not get lost where a split is small: then most test pairs were unchanged."""
    means = [made[task, split].labels.mean() for split in ("train", "composition")]
    spreads = [made[task, split].labels.std() for split in ("train", "composition")]
    assert abs(means[0] - means[1]) < 3 * spreads[0] * (2 / 300) ** 0.5
    assert spreads[0] == pytest.approx(spreads[1], rel=0.15)


def layout_of(concepts, background=0):
    count = len(concepts)
    concept = np.full((1, 3), -1)
    concept[0, :count] = concepts
    zeros = np.zeros((1, 3))
    return Layout(
        concept, zeros, zeros, np.zeros((1, 3, 2)), np.full((1, 3, 3), -1), np.array([background])
    )


def test_similarity_by_hand():
    fine, coarse = labels("fine"), labels("coarse")
    a = 0
    sibling = int(np.flatnonzero(fine == fine[a])[1])
    cousin = int(np.flatnonzero((coarse == coarse[a]) & (fine != fine[a]))[0])
    stranger, other = np.flatnonzero(coarse != coarse[a])[[0, -1]]
    assert coarse[stranger] != coarse[other]

    def similarity(x, y, same_background=True):
        return float(scene_similarity(layout_of(x), layout_of(y, int(not same_background)))[0])

    assert similarity([a], [a]) == 5
    assert similarity([a], [a], False) == 4
    assert similarity([a], [sibling]) == 3
    assert similarity([a], [cousin]) == 2
    assert similarity([a], [stranger], False) == 0
    assert similarity([a, stranger], [stranger, a]) == 5  # order does not matter
    assert similarity([a], [a, stranger]) == 3  # half of the larger scene
    assert similarity([a, stranger], [sibling, other]) == similarity(
        [sibling, other], [a, stranger]
    )


def test_similarities_spread_over_the_whole_range(made):
    values = made["similarity", "composition"].labels
    assert 0 <= values.min() < 1 and 4 < values.max() <= 5
    assert 1 < values.mean() < 4 and values.std() > 0.8


def test_tokens_of_a_pair():
    tokenizer = load_tokenizer()
    task = replace(BINARY, pair=True)
    examples = TextExamples(task, ["a dog", "a red car"], ["an apple", "a dog"], np.array([0, 1]))
    coded = encode_examples(examples, tokenizer, 12)
    apart = [tokenizer.encode([t], 12)[0] for t in ("a red car", "a dog")]
    a, b = (ids[ids != tokenizer.pad_id].tolist() for ids in apart)
    expected = a + b[1:]  # [CLS] a [SEP] b [SEP]
    assert coded["tokens"][1, : len(expected)].tolist() == expected
    assert (coded["tokens"][1, len(expected) :] == tokenizer.pad_id).all()
    assert coded["type_ids"][1].tolist() == [0] * len(a) + [1] * (len(b) - 1) + [0] * (
        12 - len(expected)
    )
    assert coded["cut"] == 0


def test_a_single_text_is_what_the_tokenizer_makes_of_it():
    tokenizer = load_tokenizer()
    texts = ["a small dog on red", "an apple"]
    coded = encode_examples(TextExamples(BINARY, texts, None, np.array([0, 1])), tokenizer, 10)
    assert coded["tokens"].tolist() == tokenizer.encode(texts, 10).tolist()
    assert not coded["type_ids"].any()


def test_long_pairs_lose_the_end_of_the_longer_text():
    tokenizer = load_tokenizer()
    task = replace(BINARY, pair=True)
    long, short = "a dog and a dog and a dog and a dog", "an apple"
    examples = TextExamples(task, [long], [short], np.array([0]))
    ids = encode_examples(examples, tokenizer, 9)["tokens"][0].tolist()
    whole = tokenizer.encode([long], 40)[0].tolist()
    end = tokenizer.encode([short], 40)[0].tolist()
    end = end[1 : end.index(tokenizer.sep_id)]
    kept = 9 - 3 - len(end)
    assert ids == [*whole[: 1 + kept], tokenizer.sep_id, *end, tokenizer.sep_id]
    assert encode_examples(examples, tokenizer, 9)["cut"] == 1
    with pytest.raises(ValueError, match="max_tokens >= 5"):
        encode_examples(examples, tokenizer, 4)


def test_few_pairs_of_the_world_are_cut_at_the_length_of_our_towers(made):
    for task in ("same", "similarity"):
        cut = encode_examples(made[task, "composition"], load_tokenizer(), 32)["cut"]
        assert cut < 0.1 * 300


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"first": [], "labels": np.empty(0, int)}, "no example"),
        ({"first": ["a"]}, "differ in number"),
        ({"first": ["a", " "]}, "example 1 is empty"),
        ({"labels": np.array([0, 2])}, "label 2 of example 1 must be 0 to 1"),
        ({"labels": np.array([-1, 0])}, "label -1 of example 0"),
        ({"labels": np.array([0.0, 1.0])}, "must be class ids"),
        ({"second": ["a", "b"]}, "needs one text"),
        ({"task": replace(BINARY, pair=True)}, "needs two texts"),
    ],
)
def test_bad_examples_are_refused(change, message):
    good = {"task": BINARY, "first": ["a", "b"], "second": None, "labels": np.array([0, 1])}
    TextExamples(**good)
    with pytest.raises(ValueError, match=message):
        TextExamples(**{**good, **change})


def test_bad_targets_of_regression_are_refused():
    task = TextTask("toy", (), ("pearson",))
    with pytest.raises(ValueError, match="must be finite"):
        TextExamples(task, ["a", "b"], None, np.array([0.0, np.nan]))
    with pytest.raises(ValueError, match="nothing to rank"):
        TextExamples(task, ["a", "b"], None, np.array([2.0, 2.0])).check_every_class()


def test_a_set_without_some_class_is_refused():
    with pytest.raises(ValueError, match="no example of: yes"):
        TextExamples(BINARY, ["a"], None, np.array([0])).check_every_class()


def test_unknown_names_and_empty_requests_are_refused():
    for task, split in (("sentiment", "train"), ("same", "test")):
        with pytest.raises(ValueError, match="tasks: object, acceptable, same, similarity"):
            emoji_glue(task, DATA, split, [0])
    with pytest.raises(ValueError, match="no example"):
        emoji_glue("same", DATA, "train", [])
    with pytest.raises(ValueError, match=">= 0"):
        emoji_glue("object", DATA, "train", [-1])


# ---------------------------------------------------------------- GLUE's files


def examples_for(preset, made, count=40):
    """Examples of the emoji world in the shape of one of GLUE's tasks."""
    source = made["same" if preset.task.pair else "acceptable", "train"]
    second = source.second[:count] if source.second else None
    classes = len(preset.task.classes)
    numbers = np.arange(count)
    values = numbers % classes if classes else np.round(numbers * 5 / count, 3)
    return TextExamples(preset.task, source.first[:count], second, values)


@pytest.mark.parametrize("name", GLUE)
def test_written_files_are_read_back(made, tmp_path, name):
    examples = examples_for(GLUE[name], made)
    for split in ("train", "dev"):
        path = write_glue(tmp_path, name, split, examples)
        assert path.parent.name == GLUE[name].folder
        found = read_glue(tmp_path, name, split)
        assert (found.first, found.second) == (examples.first, examples.second)
        assert found.labels.tolist() == examples.labels.tolist()
        assert found.labels.dtype == (np.int64 if GLUE[name].task.classes else np.float64)


def test_there_are_nine_tasks_with_glue_s_metrics():
    assert {name: preset.task.metrics for name, preset in GLUE.items()} == {
        "MNLI": ("accuracy",), "QNLI": ("accuracy",), "RTE": ("accuracy",), "WNLI": ("accuracy",),
        "SST-2": ("accuracy",), "CoLA": ("matthews",), "MRPC": ("f1", "accuracy"),
        "QQP": ("f1", "accuracy"), "STS-B": ("spearman", "pearson"),
    }  # fmt: skip


def test_layouts_are_those_that_glue_publishes(made, tmp_path):
    """First lines as in GLUE's archive; CoLA has none and MNLI's development set is called "matched"."""
    for name, stem, start in (
        ("CoLA", "dev", "0\t"),
        ("SST-2", "train", "sentence\tlabel\n"),
        ("RTE", "dev", "index\tsentence1\tsentence2\tlabel\n"),
        ("MRPC", "train", "Quality\t#1 ID\t#2 ID\t#1 String\t#2 String\n"),
    ):
        path = write_glue(tmp_path, name, stem, examples_for(GLUE[name], made))
        assert path.name == f"{stem}.tsv"
        assert path.read_text(encoding="utf-8").startswith(start)
    mnli = write_glue(tmp_path, "MNLI", "dev", examples_for(GLUE["MNLI"], made))
    assert mnli.name == "dev_matched.tsv"
    assert "\tentailment\n" in (tmp_path / "RTE" / "dev.tsv").read_text(encoding="utf-8")


def test_quotes_marks_and_line_ends_of_real_files(tmp_path):
    folder = tmp_path / "SST-2"
    folder.mkdir()
    content = '\ufeffsentence\tlabel\r\nan "odd\u2028 one \t1\r\nsaid "no" \t0\r\n'
    (folder / "train.tsv").write_bytes(content.encode())
    found = read_glue(tmp_path, "SST-2", "train")
    assert found.first == ['an "odd\u2028 one', 'said "no"']
    assert found.labels.tolist() == [1, 0]


def test_other_column_order_is_read_by_name(tmp_path):
    (tmp_path / "RTE").mkdir()
    text = "label\tindex\tsentence2\tsentence1\nentailment\t0\tsecond\tfirst\n"
    (tmp_path / "RTE" / "dev.tsv").write_text(text, encoding="utf-8")
    found = read_glue(tmp_path, "RTE")
    assert (found.first, found.second, found.labels.tolist()) == (["first"], ["second"], [0])


def test_a_few_broken_lines_are_passed_over_and_many_are_not(made, tmp_path):
    examples = examples_for(GLUE["QQP"], made, 200)
    path = write_glue(tmp_path, "QQP", "train", examples)
    text = path.read_text(encoding="utf-8")
    path.write_text(text + "200\tbroken line\n", encoding="utf-8")
    assert len(read_glue(tmp_path, "QQP", "train")) == 200
    path.write_text(text + "200\tbroken line\n" * 5, encoding="utf-8")
    with pytest.raises(ValueError, match="5 of 205 lines lack a text or have not 6 fields"):
        read_glue(tmp_path, "QQP", "train")


def test_missing_files_columns_and_wrong_labels_are_named(made, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"CoLA/train\.tsv"):
        read_glue(tmp_path, "CoLA", "train")
    with pytest.raises(ValueError, match="choose one of MNLI"):
        read_glue(tmp_path, "cola")
    with pytest.raises(ValueError, match="no labels of its test sets"):
        read_glue(tmp_path, "CoLA", "test")
    path = write_glue(tmp_path, "RTE", "dev", examples_for(GLUE["RTE"], made))
    text = path.read_text(encoding="utf-8")
    path.write_text(text.replace("sentence2", "hypothesis"), encoding="utf-8")
    with pytest.raises(ValueError, match="no column sentence2; its columns: index, sentence1, hyp"):
        read_glue(tmp_path, "RTE")
    path.write_text(text.replace("\tnot_entailment", "\tneutral", 1), encoding="utf-8")
    with pytest.raises(ValueError, match="line 3: label 'neutral' is none of entailment"):
        read_glue(tmp_path, "RTE")
    path.write_text("index\tsentence1\tsentence2\tlabel\n", encoding="utf-8")
    with pytest.raises(ValueError, match=r"lines lack a text|no example"):
        read_glue(tmp_path, "RTE")
    path = write_glue(tmp_path, "STS-B", "dev", examples_for(GLUE["STS-B"], made))
    for wrong, message in (("5.2", "does not lie in 0 to 5"), ("high", "not a number")):
        lines = path.read_text(encoding="utf-8").splitlines()
        lines[1] = "\t".join([*lines[1].split("\t")[:-1], wrong])
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
        with pytest.raises(ValueError, match=f"line 2: .*{message}"):
            read_glue(tmp_path, "STS-B")
