"""The whole transfer suite for one checkpoint: `python -m mmkd_lite evaluate CKPT [--teacher TEACHER]`.

Every row carries its protocol (split, artist, labels, templates, rule), n, chance, majority and a 95 % interval over
the test items: pictures of one concept and captions of one picture count as one group. A row says nothing about other
seeds; `compare` does. Each finished task is written to `evaluation.json` at once, beside the checksum of the weights,
so that an interrupted run goes on where it stopped.
"""

from __future__ import annotations

import argparse
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mmkd_lite.config import SCALES, effective_scale
from mmkd_lite.data.look_alikes import look_alikes
from mmkd_lite.data.pictures import TEMPLATES
from mmkd_lite.data.prompts import templates_hash
from mmkd_lite.data.sprites import available_artists
from mmkd_lite.evaluate import (
    count_flops,
    count_parameters,
    linear_probe,
    recall_interval,
    recall_intervals,
    retrieval_ranks,
    summarise,
    zero_shot_classifier,
)
from mmkd_lite.evaluate.cost import Side
from mmkd_lite.evaluate.within import retrieval_within_groups
from mmkd_lite.evaluate.zero_shot import first_alone
from mmkd_lite.picture_scores import LEVELS, Labelled, labelled_pictures
from mmkd_lite.results import configuration_hash, read_result, results_table, write_result
from mmkd_lite.runs import runs_root
from mmkd_lite.scoring import galleries
from mmkd_lite.step_bar import duration
from mmkd_lite.storage import write_atomic
from mmkd_lite.subject import LacksTower, Subject, description, modules_of, open_subject

NAME = "evaluation"
ARTISTS = {
    "twemoji": {"artist": "twemoji", "shift": "none"},
    "near": {"artist": "twemoji", "shift": "near"},
    "openmoji": {"artist": "openmoji", "shift": "none"},
    "noto": {"artist": "noto", "shift": "none"},
}
"""Who drew the test pictures; "near" is Twemoji with hue, tilt, contrast and size outside the training range."""

COLUMNS = ("task", "metric", "value", "low", "high", "chance", "majority", "n")
RECALLS = ("i2t_r1", "t2i_r1", "i2t_r5", "t2i_r5")


@dataclass(frozen=True)
class Row:
    """One number with what is needed to read it; everything but n in per cent.

    Attributes:
        task: What was asked, as "zero-shot fine openmoji".
        metric: "accuracy", "i2t_r1", ...
        protocol: Split, artist, labels, templates' hash, rule.
        value: The score.
        n: Test items.
        chance: Score of a guess.
        majority: Score of always naming the commonest class; None where there are no classes.
        low: Lower end of the 95 % interval over test items.
        high: Upper end.
    """

    task: str
    metric: str
    protocol: str
    value: float
    n: int
    chance: float
    majority: float | None
    low: float
    high: float


def zero_shot(subject: Subject) -> list[Row]:
    """Name the class of one-object pictures among all classes, fine and coarse, for every artist."""
    subject.need("image", "text")
    rows = []
    for level in LEVELS:
        for artist, test in _test_sets(subject).items():
            classifier = zero_shot_classifier(subject.text_vectors, test.names[level], TEMPLATES)
            hits = first_alone(subject.image_vectors(test.images) @ classifier, test.labels[level])
            rule = f"templates={templates_hash()}/ties=against"
            rows.append(_class_row("zero-shot", rule, artist, level, test, hits))
    return rows


def probe(subject: Subject) -> list[Row]:
    """Fit a linear probe on Twemoji's training pictures, and score it on every artist's test pictures."""
    tests = _test_sets(subject)
    train = labelled_pictures(subject.config, "train")
    train_x, sizes = subject.image_vectors(train.images), [len(t.images) for t in tests.values()]
    test_x = torch.cat([subject.image_vectors(test.images) for test in tests.values()])
    rows = []
    for level in LEVELS:
        label = torch.cat([test.labels[level] for test in tests.values()])
        found = linear_probe(train_x, train.labels[level], test_x, label)
        right = (found.predictions == label).split(sizes)
        rule = f"probe=lbfgs/C={found.inverse_regularisation:g}/train={len(train_x)}"
        for (artist, test), hits in zip(tests.items(), right, strict=True):
            rows.append(_class_row("probe", rule, artist, level, test, hits))
    return rows


def find_pairs(subject: Subject) -> list[Row]:
    """Retrieve captions of pictures and pictures of captions: by id on every gallery, on the first by truth too."""
    subject.need("image", "text")
    rows: list[Row] = []
    for name, shown in galleries(subject.config).items():
        image, text = subject.image_vectors(shown.images), subject.text_vectors(shown.captions)
        owner = torch.as_tensor(shown.image_of_text)
        rules: dict[str, Any] = {"id": None} | ({} if rows else {"truth": shown.relevance})
        for rule, truth in rules.items():
            ranks = retrieval_ranks(image, text, owner, relevance=truth)
            found, ends = summarise(ranks), recall_intervals(ranks, owner)
            protocol = (
                f"retrieval/gallery={shown.name}/images={len(image)}/texts={len(text)}/"
                f"any-hit-by-{rule}/ties=against"
            )
            for key in RECALLS:
                n = len(image) if key.startswith("i2t") else len(text)
                chance = found[f"chance_{key}"]
                row = Row(
                    f"retrieval {name} by {rule}",
                    key,
                    protocol,
                    found[key],
                    n,
                    chance,
                    None,
                    *ends[key],
                )
                rows.append(row)
    return rows


def find_look_alikes(subject: Subject) -> list[Row]:
    """Tell one picture of each concept from those of its own subgroup only."""
    subject.need("image", "text")
    _need_emoji(subject)
    images, captions, group = look_alikes(subject.data)
    image, text = subject.image_vectors(images), subject.text_vectors(captions)
    found = retrieval_within_groups(image, text, group)
    n, rows = found["within_pairs"], []
    for key in ("i2t_r1", "t2i_r1"):
        value = found[f"within_{key}"]
        hits = torch.arange(n) < round(value * n / 100)
        ends = recall_interval(2 - hits.long(), 1)
        protocol = found["within_protocol"]
        rows.append(
            Row("look-alikes", key, protocol, value, n, found["within_chance"], None, *ends)
        )
    return rows


def text_tasks(subject: Subject) -> list[Row]:
    """Finetune the text tower on each task of EmojiGLUE."""
    from mmkd_lite.text_finetuning import score_text_tasks, text_tower

    subject.need("text")
    _need_emoji(subject)
    rows = score_text_tasks(_part(subject, text_tower), subject.config)
    return [Row(**{**row, "task": f"text {row['task']}"}) for row in rows]


def video(subject: Subject) -> list[Row]:
    """Train a video decoder on the frozen image tower and score it: accident or not."""
    from mmkd_lite.models.evl import FrameBackbone
    from mmkd_lite.video_training import LAPTOP, TINY, score_video

    subject.need("image")
    _need_emoji(subject)
    small: dict[str, Any] = {"recipe": TINY, "train_rows": 24, "test_rows": 24}
    settings = small if subject.config.scale == "tiny" else {"recipe": LAPTOP}
    backbone = _part(subject, lambda model: FrameBackbone(model, settings["recipe"].levels))
    return [Row(**row) for row in score_video(backbone, **settings)["rows"]]


def _part(subject: Subject, find: Callable[[Any], Any]) -> Any:
    """Return the tower that a task trains on; a model without one of that kind lacks it."""
    try:
        return find(modules_of(subject))
    except ValueError as error:
        raise LacksTower(f"{subject.name}: {error}") from None


TASKS: dict[str, Callable[[Subject], list[Row]]] = {
    "zero_shot": zero_shot,
    "probe": probe,
    "retrieval": find_pairs,
    "look_alikes": find_look_alikes,
    "text": text_tasks,
    "video": video,
}
"""Name -> what scores it."""


def evaluate(
    subject: Subject,
    tasks: Sequence[str] = (),
    folder: str | Path | None = None,
    *,
    name: str = NAME,
    again: bool = False,
    say: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Score a subject on tasks, keeping those that were scored before with the same weights and data.

    Args:
        subject: From `open_subject`.
        tasks: Keys of `TASKS`; all that the subject has the towers for when left out.
        folder: Where the result lies; the run's own folder by default.
        name: Of the result file.
        again: Score again what is there.
        say: Told about progress, one line a task.

    Returns:
        The result record; `metrics` holds "parameters", "flops" and "tasks": name -> "rows" (dicts as `Row`),
        "seconds", and "skipped", the reason why there are no rows.

    Raises:
        ValueError: Unknown task, embeddings that are constant or NaN, or a named task that the subject lacks a
            tower for.
    """
    unknown = [task for task in tasks if task not in TASKS]
    if unknown:
        raise ValueError(f"unknown tasks: {', '.join(unknown)}; valid: {', '.join(TASKS)}")
    where = Path(folder or subject.folder or record_folder(subject.name, subject.config.scale))
    configuration = {
        "subject": subject.name, "checkpoint": subject.checksum, "config": description(subject),
    }  # fmt: skip
    done = {} if again else finished_tasks(where, name, configuration)
    size = cost(subject)
    for task in tasks or TASKS:
        if task not in done:
            done[task] = _scored(subject, task, needed=bool(tasks), say=say)
        write_result(
            name, configuration=configuration, seed=subject.config.seed, folder=where,
            metrics={**size, "tasks": {key: done[key] for key in TASKS if key in done}},
            seconds=sum(entry["seconds"] for entry in done.values()),
            command=f"python -m mmkd_lite evaluate {subject.name}",
        )  # fmt: skip
    record = read_result(name, where)
    write_atomic(where / f"{name}.md", (table(rows_of(record), protocol=True) + "\n").encode())
    return record


def _scored(
    subject: Subject, task: str, needed: bool, say: Callable[[str], None]
) -> dict[str, Any]:
    """Score one task; where a tower is missing and the task was not named, say so instead."""
    started, rows, reason = time.perf_counter(), [], ""
    try:
        rows = [asdict(row) for row in TASKS[task](subject)]
    except LacksTower as lack:
        if needed:
            raise
        reason = str(lack)
    seconds = time.perf_counter() - started
    say(f"{subject.name}: {task}, {reason or f'{len(rows)} rows'} in {duration(seconds)}")
    return {"rows": rows, "seconds": seconds, "skipped": reason}


def cost(subject: Subject) -> dict[str, float]:
    """Return "parameters", and "flops" of embedding one picture and one caption of full length."""
    model, data, flops = modules_of(subject), subject.data, 0.0
    side = getattr(subject.model, "image_size", 0) or data.image_size
    inputs = {
        "image": torch.zeros(1, 3, side, side),
        "text": torch.ones(1, data.max_tokens, dtype=torch.int64),
    }
    for name in filter(subject.has, inputs):
        method = f"encode_{name}" if hasattr(model, f"encode_{name}") else "features"
        flops += count_flops(Side(model, method), {"inputs": inputs[name].to(subject.device)})
    return {"parameters": count_parameters(model), "flops": flops}


def finished_tasks(folder: Path, name: str, configuration: Mapping[str, Any]) -> dict[str, Any]:
    """Return the tasks of an earlier run of the same weights on the same data; {} if there is none."""
    try:
        record = read_result(name, folder)
    except FileNotFoundError:
        return {}
    same = record.get("configuration_hash") == configuration_hash(configuration)
    return dict(record["metrics"].get("tasks", {})) if same else {}


def rows_of(record: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the rows of all tasks in a result record."""
    return [row for task in record["metrics"]["tasks"].values() for row in task["rows"]]


def table(rows: Sequence[Mapping[str, Any]], protocol: bool = False, kind: str = "markdown") -> str:
    """Lay rows out as a table; all numbers but n in per cent."""
    if not rows:
        return "no rows"
    return results_table(rows, (*COLUMNS, "protocol") if protocol else COLUMNS, kind=kind)


def record_folder(which: str | Path, scale: str = "") -> Path:
    """Return where the results of a checkpoint lie: its own folder, or runs/teacher-NAME__SCALE for a teacher."""
    path = Path(which).expanduser()
    if path.exists():
        return path if path.is_dir() else path.parent
    slug = re.sub(r"[^\w.-]+", "-", str(which))
    return runs_root() / f"teacher-{slug}__{scale or effective_scale('laptop')}"


def _need_emoji(subject: Subject) -> None:
    if subject.data.source != "emoji":
        raise LacksTower(f"{subject.name} was trained on {subject.data.source}, not on emoji")


def _test_sets(subject: Subject) -> dict[str, Labelled]:
    """Return one-object pictures by artist; an artist who is not installed is left out."""
    _need_emoji(subject)
    return {
        name: labelled_pictures(subject.config, "composition", **how)
        for name, how in ARTISTS.items()
        if how["artist"] in available_artists()
    }


def _class_row(kind: str, rule: str, artist: str, level: str, test: Labelled, hits: Tensor) -> Row:
    """Return a row of classification; pictures of one concept are one group of the interval."""
    label, classes, how = test.labels[level], len(test.names[level]), ARTISTS[artist]
    occur = torch.unique(label)
    absent = f"/absent={classes - len(occur)}" if len(occur) < classes else ""
    low, high = recall_interval(2 - hits.long(), 1, test.concept)
    return Row(
        task=f"{kind} {level} {artist}",
        metric="accuracy",
        protocol=f"{kind}/pictures=composition/artist={how['artist']}/shift={how['shift']}/labels={level}/"
        f"classes={classes}{absent}/{rule}",
        value=100 * float(hits.double().mean()),
        n=len(label),
        chance=100 / classes,
        majority=100 * float(torch.bincount(label).max()) / len(label),
        low=low,
        high=high,
    )


def evaluate_command(arguments: Sequence[str]) -> int:
    """Run the suite: `python -m mmkd_lite evaluate CKPT [--tasks ...] [--teacher [TEACHER]]`.

    Args:
        arguments: The words after `evaluate`.
    """
    options = _parser().parse_args(list(arguments))
    subject = open_subject(options.checkpoint, options.scale)
    folder = Path(
        options.out or subject.folder or record_folder(subject.name, subject.config.scale)
    )
    rows = rows_of(evaluate(subject, options.tasks, folder, again=options.again))
    print(table(rows))
    if options.teacher is not None:
        from mmkd_lite.retention import compare_with_teacher

        print()
        print(compare_with_teacher(subject, options.teacher, options.tasks, folder, options.again))
    print(f"{len(rows)} rows; written: {NAME}.json and {NAME}.md")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m mmkd_lite evaluate", description="Score one checkpoint on every task."
    )
    add = parser.add_argument
    add("checkpoint", metavar="CKPT", help="a run's folder or checkpoint, or a teacher as clip")
    add("--tasks", nargs="+", default=(), metavar="TASK", help=f"some of: {', '.join(TASKS)}")
    add(
        "--teacher",
        nargs="?",
        const="",
        help="retention table too; without a name, its own teacher",
    )
    add("--out", default="", metavar="FOLDER", help="for the results; the run's folder by default")
    add("--scale", default="laptop", choices=SCALES, help="of the data a teacher is scored on")
    add("--again", action="store_true", help="score again what was scored before")
    return parser
