"""Finetuning a text tower on a task of understanding: pooler, dropout, head (seed 000, Code 2).

`score_text_tasks` puts a tower through EmojiGLUE and returns one row a task and metric;
`python -m mmkd_lite.text_finetuning` compares the shipped towers over several seeds.
"""

from __future__ import annotations

import argparse
import copy
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from itertools import product
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mmkd_lite.config import RunConfig, TrainConfig, resolve
from mmkd_lite.data.glue_files import GLUE, read_glue
from mmkd_lite.data.text_tasks import TextExamples, TextTask, emoji_glue, encode_examples
from mmkd_lite.data.tokenizer import load_tokenizer
from mmkd_lite.evaluate.embed import evaluation_mode
from mmkd_lite.evaluate.glue import guess_levels, metric_interval, score
from mmkd_lite.losses import cross_entropy, mean_squared_error
from mmkd_lite.models import TextEncoder, initialise_weights, without_padding_columns
from mmkd_lite.optimizer import build_optimizer
from mmkd_lite.results import plain, read_result, write_result
from mmkd_lite.runs import runs_root
from mmkd_lite.seeding import seeded
from mmkd_lite.short_training import descend, shuffled_rows
from mmkd_lite.teachers import load_teacher

LONGEST = 256
"""Tokens of an example at most, as in the thesis, where the tower could read more."""

TASKS = ("object", "acceptable", "same", "similarity")


@dataclass(frozen=True)
class Recipe:
    """How a tower is finetuned on a task; the defaults are those of Code 2.

    Attributes:
        steps: Updates.
        batch_size: Examples a step.
        rate: Peak learning rate; warm-up over a tenth of the steps, then half a cosine.
        frozen: Train pooler and head only, on the [CLS] that the tower gives.
        joined: Read a pair as one sequence, as Code 2 does; else each text alone, with the pooler on
            their two [CLS] vectors u, v as (u, v, |u - v|, u v).
        dropout: Between pooler and head.
        weight_decay: Of matrices.
        train: Training examples.
        test: Test examples.
    """

    steps: int = 200
    batch_size: int = 32
    rate: float = 5e-4
    frozen: bool = False
    joined: bool = True
    dropout: float = 0.1
    weight_decay: float = 0.1
    train: int = 4000
    test: int = 1000

    def text(self) -> str:
        """The recipe as the protocol of a row names it."""
        tower = "frozen tower" if self.frozen else "finetuned tower"
        pairs = "one sequence" if self.joined else "two"
        return (
            f"{tower}, a pair is {pairs}, {self.steps} steps of {self.batch_size}, "
            f"{self.train} training examples"
        )


FROZEN = Recipe(
    steps=800, batch_size=64, rate=2e-3, frozen=True, joined=False, weight_decay=0.01, train=2000
)
"""What the suite scores towers with: half a minute on two cores for all four tasks."""

FINETUNED = Recipe(steps=150, rate=2e-3)
"""Code 2 as it stands, every weight of the tower included."""

PROTOCOLS = {"frozen": FROZEN, "finetuned": FINETUNED}
RESULT = "text_towers"

RECIPES: dict[str, Recipe] = {
    "tiny": replace(FROZEN, steps=20, train=400, test=400),
    "laptop": FROZEN,
}


class TextModel(nn.Module):
    """A text tower with BERT's pooler, dropout and a linear head on [CLS].

    Args:
        encoder: The tower; padding is masked, and it gets segments where it knows token types.
        task: Classification gets a logit a class, regression one number.
        dropout: Probability between pooler and head.
        joined: Whether a pair comes as one sequence.

    Shape:
        - inputs: one pair (tokens, type_ids) of int64 (B, M); two where a pair of texts is not joined
        - returns: logits (B, C), or predictions (B,) for regression

    Source: seed 000, Code 2 with errata E000-06 (squeeze) and E000-07 (mask, token types). The
    pooler starts from random weights: our towers, unlike BERT, have none. Derived in
    notebooks/33_text_understanding.ipynb.
    """

    centre: Tensor
    spread: Tensor

    def __init__(
        self, encoder: TextEncoder, task: TextTask, dropout: float = 0.1, joined: bool = True
    ) -> None:
        super().__init__()
        width = encoder.config.width
        self.encoder, self.task, self.joined = encoder, task, joined or not task.pair
        self.pooler = nn.Linear(width * (1 if self.joined else 4), width)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(width, max(1, len(task.classes)))
        initialise_weights(nn.ModuleList([self.pooler, self.head]))
        self.register_buffer("centre", torch.tensor(0.0))  # of the targets, for regression
        self.register_buffer("spread", torch.tensor(1.0))

    def cls(self, tokens: Tensor, type_ids: Tensor) -> Tensor:
        """Return [CLS] (B, D) of one sequence each."""
        tokens = without_padding_columns(tokens, self.encoder.pad_id)
        types = type_ids[:, : tokens.shape[1]] if self.encoder.type_embedding is not None else None
        return self.encoder(tokens, type_ids=types)[:, 0]

    def summary(self, *vectors: Tensor) -> Tensor:
        """Join the [CLS] vectors (B, D) of an example: one stays as it is, two become (B, 4D)."""
        if len(vectors) == 1:
            return vectors[0]
        u, v = vectors
        return torch.cat([u, v, (u - v).abs(), u * v], dim=1)

    def answer(self, summary: Tensor) -> Tensor:
        """Map summaries (B, D or 4D) to logits (B, C), or to predictions (B,)."""
        output = self.head(self.dropout(torch.tanh(self.pooler(summary))))
        if self.task.kind == "regression":
            return self.centre + self.spread * output.squeeze(-1)
        return output

    def forward(self, *inputs: tuple[Tensor, Tensor]) -> Tensor:
        """Return logits (B, C), or predictions (B,)."""
        return self.answer(self.summary(*(self.cls(*part) for part in inputs)))

    def loss(self, output: Tensor, targets: Tensor) -> Tensor:
        """Cross-entropy of logits, or the mean squared error of predictions."""
        if self.task.kind == "regression":
            return mean_squared_error(output, targets.to(output))
        return cross_entropy(output, targets)


def finetune(
    encoder: TextEncoder,
    examples: TextExamples,
    recipe: Recipe,
    *,
    seed: int = 0,
    tokenizer: str = "emoji",
) -> tuple[TextModel, list[float]]:
    """Train a copy of a tower, with a fresh pooler and head, on labelled texts.

    Args:
        encoder: Stays as it is.
        examples: Training set with every class.
        recipe: Steps, rate, frozen or not.
        seed: Of the first weights of the head, the order and dropout.
        tokenizer: As `DataConfig.tokenizer`.

    Returns:
        The model in eval mode, and the loss of every step.

    Raises:
        ValueError: A class without an example, or a loss that is not finite.
    """
    examples.check_every_class()
    device = next(encoder.parameters()).device
    inputs = _inputs(examples, encoder, tokenizer, recipe.joined)
    targets = torch.as_tensor(examples.labels, device=device)
    with seeded(seed):
        own = copy.deepcopy(encoder)
        model = TextModel(own, examples.task, recipe.dropout, recipe.joined).to(device)
        if examples.task.kind == "regression":
            targets = targets.float()
            model.centre.fill_(float(targets.mean()))
            model.spread.fill_(float(targets.std()))
        model.encoder.requires_grad_(not recipe.frozen)
        features = _embed(model, inputs) if recipe.frozen else None
        losses = _train(model, inputs, features, targets, recipe)
    return model.eval(), losses


def predict(model: TextModel, examples: TextExamples, tokenizer: str = "emoji") -> np.ndarray:
    """Return class ids (N,) int64, or numbers (N,) float64, one an example."""
    inputs = _inputs(examples, model.encoder, tokenizer, model.joined)
    with evaluation_mode(model):
        output = model.answer(_embed(model, inputs))
    if model.task.kind == "regression":
        return output.double().cpu().numpy()
    return output.argmax(dim=1).cpu().numpy()


def score_rows(
    predictions: np.ndarray, examples: TextExamples, protocol: str
) -> list[dict[str, Any]]:
    """Return one row a metric of the task, over the whole set.

    Returns:
        Rows with `task`, `metric`, `protocol`, `value`, `n`, `chance`, `majority`, `low` and `high`;
        all values in per cent, intervals over test examples (95 %).

    Raises:
        ValueError: A class, or the spread of the targets, is missing from the test set.
    """
    examples.check_every_class()
    task, truth = examples.task, examples.labels
    rows = []
    for metric in task.metrics:
        chance, majority = guess_levels(metric, truth, len(task.classes))
        low, high = metric_interval(metric, predictions, truth)
        value = score(metric, predictions, truth)
        rows.append({
            "task": task.name, "metric": metric, "protocol": protocol, "value": value,
            "n": len(truth), "chance": chance, "majority": majority, "low": low, "high": high,
        })  # fmt: skip
    return rows


def score_text_tasks(
    text_encoder: nn.Module,
    config: RunConfig,
    seed: int = 0,
    *,
    tasks: Sequence[str] = TASKS,
    recipe: Recipe | None = None,
) -> list[dict[str, Any]]:
    """Finetune a text tower on each task and score it on scenes that training did not show.

    Args:
        text_encoder: A `TextEncoder`, or a model that holds exactly one (teachers aside). Copied, not changed.
        config: Gives the world, the tokenizer and the scale; with `data_dir` at full scale, GLUE's folder.
        seed: Of the head, the order of training examples and dropout.
        tasks: Names of EmojiGLUE tasks; at full scale keys of `GLUE`.
        recipe: Default is that of the scale; at full scale the thesis' for each task.

    Returns:
        Rows as `score_rows` returns them.

    Raises:
        ValueError: Unknown task, no text tower, or more than one.
        FileNotFoundError: A file of GLUE is missing at full scale.

    Source: seed 000, Code 2. Derived in notebooks/33_text_understanding.ipynb.
    """
    encoder = text_tower(text_encoder)
    full = config.scale == "full"
    if full and tuple(tasks) == TASKS:
        tasks = tuple(GLUE)
    rows = []
    for name in tasks:
        if full:
            parts = [read_glue(config.data_dir, name, split) for split in ("train", "dev")]
            used = recipe or glue_recipe(name, len(parts[0]))
        else:
            used = recipe or RECIPES[config.scale]
            parts = [
                emoji_glue(name, config.data, split, range(count))
                for split, count in (("train", used.train), ("composition", used.test))
            ]
        model, _ = finetune(encoder, parts[0], used, seed=seed, tokenizer=config.data.tokenizer)
        guesses = predict(model, parts[1], config.data.tokenizer)
        protocol = f"{parts[1].name}, [CLS] pooler and head, {used.text()}, whole set"
        rows += score_rows(guesses, parts[1], protocol)
    return rows


def glue_recipe(task: str, examples: int) -> Recipe:
    """Return the thesis' settings for a task of GLUE with that many training examples."""
    preset = GLUE[task]
    steps = -(-examples // preset.batch_size) * preset.epochs
    return Recipe(steps=steps, batch_size=preset.batch_size, rate=preset.rate, train=examples)


def text_tower(model: nn.Module) -> TextEncoder:
    """Return the one text tower of a model; teachers and momentum copies do not count.

    Raises:
        ValueError: There is none, or several.
    """
    found = {
        name: part
        for name, part in model.named_modules()
        if isinstance(part, TextEncoder) and not any(w in name for w in ("teacher", "momentum"))
    }
    if len(found) != 1:
        names = ", ".join(found) or "none"
        raise ValueError(
            f"{type(model).__name__} must hold one text tower, it holds: {names}; pass the tower itself"
        )
    return next(iter(found.values()))


def _inputs(
    examples: TextExamples, encoder: TextEncoder, tokenizer: str, joined: bool
) -> list[tuple[Tensor, Tensor]]:
    """Tokens and segments (N, M) on the tower's device: of the examples, or of each text of a pair."""
    device, parts = next(encoder.parameters()).device, [examples]
    if examples.second is not None and not joined:
        alone = replace(examples.task, pair=False)
        sides = (examples.first, examples.second)
        parts = [TextExamples(alone, texts, None, examples.labels) for texts in sides]
    longest = min(encoder.max_tokens, LONGEST)
    coded = [encode_examples(p, load_tokenizer(tokenizer), longest) for p in parts]
    return [(c["tokens"].to(device), c["type_ids"].to(device)) for c in coded]


def _embed(model: TextModel, inputs: list[tuple[Tensor, Tensor]], batch_size: int = 256) -> Tensor:
    """Summaries (N, D or 4D) of all examples, without a gradient; texts of like length share a batch."""
    vectors = []
    for tokens, types in inputs:
        order = (tokens != model.encoder.pad_id).sum(dim=1).argsort()
        with evaluation_mode(model):
            parts = [model.cls(tokens[rows], types[rows]) for rows in order.split(batch_size)]
        vectors.append(torch.cat(parts)[order.argsort()])
    return model.summary(*vectors)


def _train(
    model: TextModel,
    inputs: list[tuple[Tensor, Tensor]],
    features: Tensor | None,
    targets: Tensor,
    recipe: Recipe,
) -> list[float]:
    settings = TrainConfig(base_lr=recipe.rate, weight_decay=recipe.weight_decay)
    optimizer = build_optimizer(model, settings)
    model.train()
    rows_of = shuffled_rows(len(targets), recipe.batch_size)

    def gradient(step: int) -> float:
        rows = next(rows_of)
        output = (
            model(*((tokens[rows], types[rows]) for tokens, types in inputs))
            if features is None
            else model.answer(features[rows])
        )
        loss = model.loss(output, targets[rows])
        loss.backward()
        return float(loss.detach())

    return descend(
        model, optimizer, gradient, recipe.steps, recipe.rate,
        clip_norm=settings.clip_norm, what=f"task {model.task.name!r}",
    )  # fmt: skip


def compare_towers(
    towers: Sequence[str],
    seeds: Sequence[int],
    protocols: Sequence[str] = tuple(PROTOCOLS),
    *,
    scale: str = "laptop",
    folder: str | None = None,
) -> dict[str, Any]:
    """Score teachers' text towers under both protocols, adding to what `text_towers.json` holds.

    Args:
        towers: Names for `load_teacher`; "random-..." draws other weights for every seed.
        seeds: Seeds of head and order.
        protocols: Keys of `PROTOCOLS`.
        scale: "tiny" or "laptop".
        folder: Of the result file; `data/results` by default.

    Returns:
        The metrics of the file: tower -> protocol -> "task metric" -> seed -> per cent, and under
        "levels" chance, majority and n of each.
    """
    config = resolve("contrast", scale)
    recipes = {name: PROTOCOLS[name] for name in protocols}
    if config.scale == "tiny":
        recipes = {k: replace(r, steps=20, train=400, test=400) for k, r in recipes.items()}
    settings = {"protocols": plain({k: asdict(r) for k, r in PROTOCOLS.items()}), "scale": scale}
    try:
        before = read_result(RESULT, folder)
    except FileNotFoundError:
        before = {"configuration": settings, "metrics": {"levels": {}}, "seconds": 0.0}
    metrics = before["metrics"] if before["configuration"] == settings else {"levels": {}}
    for seed, (protocol, recipe), tower in product(seeds, recipes.items(), towers):
        scores = metrics.setdefault(tower, {}).setdefault(protocol, {})
        if scores and all(str(seed) in values for values in scores.values()):
            continue
        started = time.perf_counter()
        rows = score_text_tasks(load_teacher(tower, seed=seed).model, config, seed, recipe=recipe)
        for row in rows:
            name = f"{row['task']} {row['metric']}"
            scores.setdefault(name, {})[str(seed)] = row["value"]
            metrics["levels"][name] = {key: row[key] for key in ("chance", "majority", "n")}
        before["seconds"] += time.perf_counter() - started
        write_result(
            RESULT, configuration=settings, metrics=metrics, seed=min(seeds), folder=folder,
            seconds=before["seconds"], command="python -m mmkd_lite.text_finetuning",
        )  # fmt: skip
    return metrics


def main(arguments: Sequence[str] | None = None) -> int:
    """Compare the shipped text towers and a random one; what is done already is kept."""
    parser = argparse.ArgumentParser(prog="python -m mmkd_lite.text_finetuning")
    parser.add_argument("--towers", nargs="+", default=["text", "clip", "random-clip"])
    parser.add_argument("--protocols", nargs="+", choices=tuple(PROTOCOLS), default=[*PROTOCOLS])
    parser.add_argument("--seeds", type=int, default=3, help="how many, from 0")
    parser.add_argument("--scale", choices=("tiny", "laptop"), default="laptop")
    parser.add_argument("--out", default=None, help="folder of the result file")
    asked = parser.parse_args(arguments)
    seeds, folder = range(asked.seeds), asked.out
    if folder is None and asked.scale != "laptop":  # what is committed is of laptop scale
        folder = str(runs_root() / f"{RESULT}__{asked.scale}")
    compare_towers(asked.towers, seeds, asked.protocols, scale=asked.scale, folder=folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
