"""Pooler, dropout and head on a text tower: Code 2 as it should be, and its scores."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from mmkd_lite import text_finetuning
from mmkd_lite.config import TowerConfig, resolve
from mmkd_lite.data.glue_files import GLUE
from mmkd_lite.data.text_tasks import TextExamples, TextTask, emoji_glue
from mmkd_lite.data.tokenizer import load_tokenizer
from mmkd_lite.models import TextEncoder, seeded
from mmkd_lite.results import read_result
from mmkd_lite.text_finetuning import (
    RECIPES,
    TASKS,
    Recipe,
    TextModel,
    finetune,
    glue_recipe,
    predict,
    score_rows,
    score_text_tasks,
    text_tower,
)
from tests.glue_writer import write_glue

WORDS = TextTask("toy", ("no", "yes"), ("accuracy",))
PAIRS = TextTask("pairs", ("different", "same"), ("f1", "accuracy"), pair=True)
NUMBERS = TextTask("numbers", (), ("spearman", "pearson"))
FAST = Recipe(steps=4, batch_size=8, train=400, test=400)


def tower(width=16, layers=1, token_types=0, seed=0):
    with seeded(seed):
        config = TowerConfig(width=width, layers=layers, heads=2)
        return TextEncoder(config, load_tokenizer().vocab_size, 32, token_types=token_types)


def toy(task, count=120):
    """Texts whose answer is a word: "red" is yes, or the number of dogs."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, count)
    texts = [f"a {'dog' if x else 'cat'} on a {'red' if y else 'blue'} background"
             for x, y in zip(rng.integers(0, 2, count), labels, strict=True)]  # fmt: skip
    second = ["a dog on red"] * count if task.pair else None
    return TextExamples(task, texts, second, labels if task.classes else 2.0 * labels + 1)


def inputs_of(examples, model):
    return text_finetuning._inputs(examples, model.encoder, "emoji", model.joined)


def test_forward_is_cls_pooler_dropout_head_by_loops():
    torch.manual_seed(0)
    model = TextModel(tower(), WORDS).double().eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.2)
    (part,) = inputs_of(toy(WORDS, 3), model)
    output = model(part)
    hidden = model.encoder(*part[:1])
    for row in range(3):
        cls = hidden[row, 0]
        pooler = zip(model.pooler.weight, model.pooler.bias, strict=True)
        pooled = [torch.tanh(w @ cls + b) for w, b in pooler]
        logits = [sum(w * p for w, p in zip(ws, pooled, strict=True)) + b
                  for ws, b in zip(model.head.weight, model.head.bias, strict=True)]  # fmt: skip
        assert torch.allclose(output[row], torch.stack(logits))
    target = torch.tensor([0, 1, 1])
    expected = -sum(output[i].log_softmax(0)[t] for i, t in enumerate(target)) / 3
    loss = model.loss(output, target)
    assert torch.allclose(loss, expected)
    weights = list(model.parameters())
    ours = torch.autograd.grad(loss, weights, retain_graph=True, allow_unused=True)
    theirs = torch.autograd.grad(expected, weights, allow_unused=True)
    for a, b in zip(ours, theirs, strict=True):
        assert (a is None) == (b is None) and (a is None or torch.allclose(a, b))


def test_a_batch_of_one_is_no_special_case_in_regression():
    model = TextModel(tower(), NUMBERS).eval()
    (part,) = inputs_of(toy(NUMBERS, 5), model)
    whole = model(part)
    assert whole.shape == (5,)
    alone = model(tuple(x[:1] for x in part))
    assert alone.shape == (1,)  # E000-06: squeeze() without -1 gives ()
    assert torch.allclose(alone, whole[:1], atol=1e-6)
    with pytest.raises(ValueError):
        model.loss(torch.zeros(5), torch.zeros(5, 1))


def test_padding_does_not_change_the_answer():
    model = TextModel(tower(), WORDS).eval()
    ((tokens, types),) = inputs_of(toy(WORDS, 4), model)
    length = int((tokens != 0).sum(1).max())
    assert length < tokens.shape[1]
    cut = model((tokens[:, :length], types[:, :length]))
    assert torch.allclose(model((tokens, types)), cut, atol=1e-6)


def test_segments_reach_a_tower_with_token_types_and_no_other():
    examples = toy(PAIRS, 4)
    for token_types in (0, 2):
        model = TextModel(tower(token_types=token_types), PAIRS).eval()
        ((tokens, types),) = inputs_of(examples, model)
        assert types.sum() > 0
        changed = not torch.allclose(model((tokens, types)), model((tokens, 0 * types)))
        assert changed == bool(token_types)


def test_texts_read_alone_are_combined_as_stated():
    model = TextModel(tower(), PAIRS, joined=False).eval()
    examples = toy(PAIRS, 4)
    parts = inputs_of(examples, model)
    assert len(parts) == 2 and model.pooler.in_features == 4 * 16
    u, v = (model.encoder(tokens)[:, 0] for tokens, _ in parts)
    expected = torch.cat([u, v, (u - v).abs(), u * v], dim=1)
    assert torch.allclose(model(*parts), model.answer(expected), atol=1e-6)
    assert TextModel(tower(), WORDS, joined=False).pooler.in_features == 16


@pytest.mark.parametrize("task", [WORDS, NUMBERS], ids=["classes", "numbers"])
def test_finetuning_learns_what_a_word_decides(task):
    examples = toy(task)
    recipe = Recipe(steps=60, batch_size=16, rate=5e-3)
    model, losses = finetune(tower(), examples, recipe)
    assert len(losses) == 60 and losses[-1] < 0.3 * losses[0]
    rows = score_rows(predict(model, examples), examples, "")
    assert rows[-1]["value"] > 95  # accuracy, or Pearson
    assert not model.training


@pytest.mark.parametrize("frozen", [False, True])
def test_the_given_tower_stays_as_it_is_and_frozen_means_frozen(frozen):
    encoder = tower()
    before = {k: v.clone() for k, v in encoder.state_dict().items()}
    recipe = replace(FAST, frozen=frozen)
    model, _ = finetune(encoder, toy(WORDS), recipe)
    assert all(torch.equal(v, before[k]) for k, v in encoder.state_dict().items())
    assert all(p.requires_grad for p in encoder.parameters())
    after = model.encoder.state_dict()
    moved = [k for k in after if not torch.equal(after[k], before[k])]
    assert bool(moved) != frozen


def test_cached_features_are_those_of_the_tower():
    model = TextModel(tower(), PAIRS, joined=False).eval()
    parts = inputs_of(toy(PAIRS, 40), model)
    whole = model.summary(*(model.cls(*part) for part in parts))
    assert torch.allclose(text_finetuning._embed(model, parts, batch_size=7), whole, atol=1e-5)


def test_a_seed_decides_everything_and_leaves_no_trace():
    torch.manual_seed(5)
    before = torch.get_rng_state()
    examples = toy(WORDS)
    runs = [finetune(tower(), examples, FAST, seed=seed)[1] for seed in (0, 0, 1)]
    assert runs[0] == runs[1] != runs[2]
    assert torch.equal(torch.get_rng_state(), before)


def test_scores_have_the_keys_that_the_suite_reads():
    config = resolve("contrast", "tiny")
    rows = score_text_tasks(tower(), config, recipe=FAST)
    keys = ["task", "metric", "protocol", "value", "n", "chance", "majority", "low", "high"]
    assert all(list(row) == keys for row in rows)
    assert list(dict.fromkeys(row["task"] for row in rows)) == list(TASKS)
    for row in rows:
        assert row["n"] == 400 and "emoji/composition" in row["protocol"]
        assert row["low"] <= row["value"] <= row["high"]
    assert {r["metric"] for r in rows} == {"accuracy", "f1", "matthews", "pearson", "spearman"}
    assert rows == score_text_tasks(tower(), config, recipe=FAST)


@pytest.mark.parametrize("scale", RECIPES)
def test_every_class_occurs_in_what_a_recipe_asks_for(scale):
    recipe, data = RECIPES[scale], resolve("contrast", scale).data
    for split, count in (("train", recipe.train), ("composition", recipe.test)):
        emoji_glue("object", data, split, range(count)).check_every_class()


def test_scores_beyond_the_whole_set_are_refused():
    few = TextExamples(WORDS, ["a", "b"], None, np.array([1, 1]))
    with pytest.raises(ValueError, match="no example of: no"):
        score_rows(np.array([1, 1]), few, "")
    with pytest.raises(ValueError, match="no example of: no"):
        finetune(tower(), few, FAST)


def test_a_loss_that_is_not_finite_stops_the_run():
    with pytest.raises(ValueError, match="lower the learning rate"):
        finetune(tower(), toy(NUMBERS), Recipe(steps=50, rate=1e30, batch_size=8))


def test_towers_are_compared_seed_by_seed_and_what_is_done_is_kept(tmp_path, monkeypatch):
    scored = []

    def fast(model, config, seed, *, recipe):
        scored.append((seed, recipe.frozen))
        row = {"task": "same", "metric": "f1", "value": 50.0 + seed}
        return [row | {"chance": 48.0, "majority": 0.0, "n": 400}]

    monkeypatch.setattr(text_finetuning, "score_text_tasks", fast)
    ask = ["--towers", "random-clip", "--scale", "tiny", "--out", str(tmp_path), "--seeds"]
    assert text_finetuning.main([*ask, "1"]) == 0
    assert text_finetuning.main([*ask, "2"]) == 0
    assert scored == [(0, True), (0, False), (1, True), (1, False)]
    found = read_result("text_towers", tmp_path)["metrics"]
    assert found["random-clip"]["frozen"] == {"same f1": {"0": 50.0, "1": 51.0}}
    assert found["levels"] == {"same f1": {"chance": 48.0, "majority": 0.0, "n": 400}}


def test_unknown_tasks_are_named():
    with pytest.raises(ValueError, match="tasks: object"):
        score_text_tasks(tower(), resolve("contrast", "tiny"), tasks=("sentiment",))


def test_the_tower_is_found_in_a_model_and_ambiguity_is_refused():
    holder = nn.Module()
    holder.text_encoder = tower()
    holder.teacher = nn.ModuleDict({"encoder": tower()})
    assert text_tower(holder) is holder.text_encoder
    assert text_tower(holder.text_encoder) is holder.text_encoder
    holder.other = tower()
    with pytest.raises(ValueError, match="holds: text_encoder, other"):
        text_tower(holder)
    with pytest.raises(ValueError, match="holds: none"):
        text_tower(nn.Linear(2, 2))


def test_real_glue_is_read_and_scored_at_full_scale(tmp_path, monkeypatch):
    """The same code path on files in GLUE's format, with a small tower and few steps."""
    source = emoji_glue("same", resolve("contrast", "tiny").data, "train", range(60))
    for name in ("RTE", "STS-B"):
        task = GLUE[name].task
        labels = source.labels if task.classes else 2.5 * source.labels + np.arange(60) / 60
        examples = TextExamples(task, source.first, source.second, labels)
        for split in ("train", "dev"):
            write_glue(tmp_path, name, split, examples)
    monkeypatch.delenv("MMKD_SCALE", raising=False)
    config = resolve("contrast", "full", {"data.tokenizer": "emoji"}, data_dir=str(tmp_path))
    rows = score_text_tasks(tower(), config, tasks=("RTE", "STS-B"), recipe=FAST)
    assert [(r["task"], r["metric"]) for r in rows] == [
        ("RTE", "accuracy"), ("STS-B", "spearman"), ("STS-B", "pearson")]  # fmt: skip
    assert all("GLUE/dev" in row["protocol"] for row in rows)
    with pytest.raises(FileNotFoundError, match=r"MNLI/train\.tsv"):
        score_text_tasks(tower(), config)


def test_the_thesis_settings():
    assert glue_recipe("RTE", 2490) == Recipe(steps=156 * 20, batch_size=16, rate=2e-5, train=2490)
    assert (glue_recipe("CoLA", 8551).rate, glue_recipe("STS-B", 5749).rate) == (1e-5, 4e-5)
