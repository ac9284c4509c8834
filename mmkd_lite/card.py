"""A Hugging Face model card from result files: `python -m mmkd_lite card CKPT` (fields of seed 003, Table A.1).

Every number comes from `evaluation.json` (and `teacher_evaluation.json`) or from the manifest of the shipped teachers.
The card names the data of the student and of every model its weights or targets come from, and raises a leakage flag
where one of them was trained on the class labels that the evaluation asks for.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mmkd_lite.methods import METHODS
from mmkd_lite.results import read_result, results_table
from mmkd_lite.retention import TEACHER_NAME, retention_rows, retention_table, size_rows
from mmkd_lite.storage import write_atomic
from mmkd_lite.subject import ancestors, recorded_config
from mmkd_lite.suite import NAME, record_folder, rows_of, table

LABELLED = ("supervised", "soft_labels", "image_finetuning")
"""Methods that are trained on class labels."""

DATA = {
    **dict.fromkeys(LABELLED, "emoji pictures with class labels (fine, 96 subgroups)"),
    **dict.fromkeys(("masked_words", "unimodal_text"), "emoji captions, no labels"),
    **dict.fromkeys(
        ("masked_features", "masked_latents", "quantiser", "unimodal_image"),
        "emoji pictures, no labels",
    ),
}
PAIRS = "EmojiScenes, split `train`: pictures with five captions each; captions contain class words"
HYPERPARAMETERS = (
    "batch_size",
    "steps",
    "base_lr",
    "warmup_fraction",
    "weight_decay",
    "betas",
    "eps",
    "clip_norm",
)
LIMITS = """\
Trained on drawings of emoji, not on photographs, in English words of a vocabulary of 2,000 pieces. Emoji of people,
flags and religions carry the choices of their artists and of Unicode, which this model repeats. Skin tone and gender
variants of an emoji are folded into one concept, so nothing is measured about them. Scores on one artist do not carry
over to another; see the rows by artist."""


def training_data(config: Mapping[str, Any]) -> tuple[str, str]:
    """Return in words what a configuration trains on, and whether that holds class labels: yes, no or unknown."""
    method = config.get("method")
    if method not in METHODS and method not in DATA:
        return "published weights; see their own card", "unknown"
    if config["data"]["source"] == "folder":
        return "a folder of pictures with class labels", "yes"
    if config["data"]["source"] != "emoji":
        return f"{config['data']['source']}, pictures with captions", "no"
    return DATA.get(method, PAIRS), "yes" if method in LABELLED else "no"


def lineage(config: Mapping[str, Any]) -> list[dict[str, str]]:
    """Return the data of a model and of every model it learns or starts from.

    Args:
        config: A run's configuration as JSON.

    Returns:
        Rows with "model", "role", "trained on" and "saw class labels": "yes", "no" or "unknown".
    """
    made = {config["method"]: config} | {
        name: recorded_config(name) for name in ancestors(dict(config))
    }
    rows = []
    for name, settings in made.items():
        role = "teacher" if name == config.get("teacher") else "source of weights or targets"
        trained, seen = training_data(settings)
        if settings is config:
            role = "this model"
        rows.append({"model": name, "role": role, "trained on": trained, "saw class labels": seen})
    return rows


def leakage(config: Mapping[str, Any]) -> str:
    """Return the leakage flag: which models on the way to this one saw the labels that are asked for, "" if none."""
    seen = [row["model"] for row in lineage(config) if row["saw class labels"] == "yes"]
    unknown = [row["model"] for row in lineage(config) if row["saw class labels"] == "unknown"]
    parts = []
    if seen:
        parts.append(
            f"{', '.join(seen)} saw the fine class labels of seen concepts in training; zero-shot and probe rows are "
            "therefore not free of label supervision, and the coarse labels follow from the fine ones"
        )
    if unknown:
        parts.append(f"what {', '.join(unknown)} saw is not recorded here")
    return "; ".join(parts)


def model_card(
    evaluation: Mapping[str, Any], teacher: Mapping[str, Any] | None = None, name: str = ""
) -> Any:
    """Return the card of a checkpoint.

    Args:
        evaluation: Record of `suite.evaluate`.
        teacher: The teacher's record on the same data, for the retention table.
        name: Title; the subject's own name by default.

    Returns:
        A `huggingface_hub.ModelCard`; `str(card)` is its Markdown with the metadata on top.

    Raises:
        ValueError: The record holds no row.
    """
    from huggingface_hub import EvalResult, ModelCard, ModelCardData

    rows = rows_of(evaluation)
    if not rows:
        raise ValueError(
            "the evaluation holds no row: score the checkpoint on at least one task first"
        )
    title = name or evaluation["configuration"]["subject"]
    results = [
        EvalResult(
            task_type=str(row["task"]).split()[0], dataset_type="emoji", dataset_name=row["task"],
            dataset_config=row["task"], metric_type=row["metric"], metric_value=round(row["value"], 2),
            metric_name=row["protocol"],
        )
        for row in rows
    ]  # fmt: skip
    data = ModelCardData(
        language="en", license="mit", library_name="mmkd-lite", model_name=title, eval_results=results,
        tags=["knowledge-distillation", "vision-language", "emoji"],
    )  # fmt: skip
    return ModelCard(f"---\n{data.to_yaml()}\n---\n\n{_body(title, evaluation, teacher)}")


def _body(title: str, record: Mapping[str, Any], teacher: Mapping[str, Any] | None) -> str:
    config = record["configuration"]["config"]
    rows, flag = rows_of(record), leakage(config)
    parts = {
        "Model details": _details(record, config),
        "Intended use": "**Primary use**: teaching and research on knowledge distillation.\n\n"
        "**Primary users**: students, lecturers and researchers.\n\n"
        "**Out of scope**: any use in the wild; pictures that are not emoji.",
        "Factors": "Artist (Twemoji, OpenMoji, Noto), shift (hue, tilt, contrast, size), fine or coarse labels.",
        "Metrics": "Accuracy and recall in per cent, beside chance and the commonest class. Intervals are over test "
        f"items (95 %); this is one run (seed {record['seed']}), so nothing here is about other seeds.",
        "Evaluation data": "\n".join(
            f"- `{p}`" for p in dict.fromkeys(row["protocol"] for row in rows)
        ),
        "Training data": results_table(lineage(config))
        + f"\n\n**Leakage flag**: {f'yes. {flag}.' if flag else 'none found.'}",
        "Quantitative analyses": _numbers(record, teacher),
        "Ethical considerations": LIMITS,
        "Licences": "Code and weights: MIT. Pictures: Twemoji (CC BY 4.0), OpenMoji (CC BY-SA 4.0), Noto Emoji (OFL).",
    }
    return (
        f"# {title}\n\n"
        + "\n\n".join(f"## {head}\n\n{text}" for head, text in parts.items())
        + "\n"
    )


def _details(record: Mapping[str, Any], config: Mapping[str, Any]) -> str:
    """Return what the model is and how it was trained, as tables."""
    metrics = record["metrics"]
    towers = [
        {"tower": side, **{k: config[side][k] for k in ("layers", "width", "heads", "start")}}
        for side in ("image", "text")
    ]
    facts = {
        "method": config["method"], "teacher": config["teacher"] or "none", "scale": config["scale"],
        "seed": config["seed"], "picture side in pixels": config["data"]["image_size"],
        "longest text in tokens": config["data"]["max_tokens"],
        "parameters": f"{metrics['parameters']:,}", "FLOPs of one pair": f"{metrics['flops']:,.0f}",
        "loss weights": ", ".join(f"{k} {v:g}" for k, v in config["weights"].items() if v) or "none",
        **{name: config["train"][name] for name in HYPERPARAMETERS},
        "commit": record["commit"][:12] or "none", "SHA-256 of the weights": record["configuration"]["checkpoint"],
    }  # fmt: skip
    listed = results_table([{"setting": k, "value": str(v)} for k, v in facts.items()])
    command = f"`{record['command']}`"
    return f"{listed}\n\n{results_table(towers)}\n\nScores made by {command}."


def _numbers(record: Mapping[str, Any], teacher: Mapping[str, Any] | None) -> str:
    text = table(rows_of(record))
    skipped = {k: t["skipped"] for k, t in record["metrics"]["tasks"].items() if t.get("skipped")}
    text += "".join(f"\n\nNot scored: {task} ({reason})." for task, reason in skipped.items())
    if teacher is not None:
        rows = size_rows(teacher["metrics"], record["metrics"])
        rows += retention_rows(rows_of(teacher), rows_of(record))
        text += f"\n\n### Retention\n\nTeacher: {teacher['configuration']['subject']}\n\n{retention_table(rows)}"
    return text


def card_command(arguments: Sequence[str]) -> int:
    """Write a card: `python -m mmkd_lite card CKPT [--out FILE]`.

    Args:
        arguments: The words after `card`.

    Raises:
        FileNotFoundError: The checkpoint was not evaluated yet.
    """
    parser = argparse.ArgumentParser(
        prog="python -m mmkd_lite card", description="Write the model card of what was evaluated."
    )
    add = parser.add_argument
    add("checkpoint", metavar="CKPT", help="what was evaluated, or a folder with evaluation.json")
    add("--out", default="", metavar="FILE", help="README.md beside evaluation.json by default")
    add("--name", default="", help="title of the card")
    options = parser.parse_args(list(arguments))
    folder = record_folder(options.checkpoint)
    if not (folder / f"{NAME}.json").exists():
        raise FileNotFoundError(
            f"{options.checkpoint} has no {NAME}.json yet; make it with: "
            f"python -m mmkd_lite evaluate {options.checkpoint}"
        )
    guide = (
        read_result(TEACHER_NAME, folder) if (folder / f"{TEACHER_NAME}.json").exists() else None
    )
    card = model_card(read_result(NAME, folder), guide, options.name)
    path = Path(options.out) if options.out else folder / "README.md"
    write_atomic(path, str(card).encode())
    print(f"written: {path}")
    return 0
