"""The nine tasks of GLUE: their metrics, the thesis' settings, and a reader of the published TSV files.

Nothing is downloaded. `read_glue` reads a folder as GLUE's own archive unpacks it ("CoLA/train.tsv" and
so on). GLUE keeps the labels of its test sets to itself: scores are those of the development sets, as in
the thesis.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mmkd_lite.data.text_tasks import TextExamples, TextTask

MOST_BROKEN = 0.01
"""Largest share of lines with too few fields that is passed over; QQP's own file has a few."""


@dataclass(frozen=True)
class GluePreset:
    """One task of GLUE: its question, its files, and how the thesis finetuned on it.

    Attributes:
        task: What is asked; the metrics are GLUE's, the thesis' first.
        folder: Folder of the task in GLUE's archive.
        columns: Header of `train.tsv`; without `header` the columns are there but not their names.
        texts: Names of the columns with the texts.
        label: Name of the column with the label.
        words: What the file writes for each class, by class id; () for numbers.
        header: Whether the files begin with a line of names.
        dev: Stem of the development file.
        epochs: Passes over the training set.
        batch_size: Examples a step.
        rate: Peak learning rate.
    """

    task: TextTask
    folder: str
    columns: tuple[str, ...]
    texts: tuple[str, ...]
    label: str
    words: tuple[str, ...]
    epochs: int
    batch_size: int
    rate: float
    header: bool = True
    dev: str = "dev"


def _preset(
    name: str,
    classes: str,
    metrics: str,
    columns: str,
    texts: str,
    label: str,
    recipe: tuple[int, int, float],
    *,
    folder: str = "",
    words: str | None = None,
    header: bool = True,
    dev: str = "dev",
) -> GluePreset:
    fields = tuple(texts.split("|"))
    task = TextTask(name, tuple(classes.split()), tuple(metrics.split()), pair=len(fields) == 2)
    written = tuple((classes if words is None else words).split())
    return GluePreset(
        task,
        folder or name,
        tuple(columns.split("|")),
        fields,
        label,
        written,
        *recipe,
        header,
        dev,
    )


_MNLI = (
    "index|promptID|pairID|genre|sentence1_binary_parse|sentence2_binary_parse|sentence1_parse|"
    "sentence2_parse|sentence1|sentence2|label1|gold_label"
)
_STSB = "index|genre|filename|year|old_index|source1|source2|sentence1|sentence2|score"
_TWO = "index|sentence1|sentence2|label"

GLUE: dict[str, GluePreset] = {
    preset.task.name: preset
    for preset in (
        _preset("MNLI", "entailment neutral contradiction", "accuracy", _MNLI,
                "sentence1|sentence2", "gold_label", (10, 64, 2e-5), dev="dev_matched"),
        _preset("QNLI", "entailment not_entailment", "accuracy", "index|question|sentence|label",
                "question|sentence", "label", (10, 32, 2e-5)),
        _preset("RTE", "entailment not_entailment", "accuracy", _TWO,
                "sentence1|sentence2", "label", (20, 16, 2e-5)),
        _preset("MRPC", "different same", "f1 accuracy", "Quality|#1 ID|#2 ID|#1 String|#2 String",
                "#1 String|#2 String", "Quality", (20, 16, 2e-5), words="0 1"),
        _preset("QQP", "different same", "f1 accuracy",
                "id|qid1|qid2|question1|question2|is_duplicate",
                "question1|question2", "is_duplicate", (10, 128, 2e-5), words="0 1"),
        _preset("STS-B", "", "spearman pearson", _STSB, "sentence1|sentence2", "score",
                (20, 16, 4e-5)),
        _preset("CoLA", "unacceptable acceptable", "matthews", "source|label|mark|sentence",
                "sentence", "label", (20, 16, 1e-5), words="0 1", header=False),
        _preset("SST-2", "negative positive", "accuracy", "sentence|label", "sentence", "label",
                (10, 32, 2e-5), words="0 1"),
        _preset("WNLI", "other referent", "accuracy", _TWO, "sentence1|sentence2", "label",
                (20, 8, 1e-5), words="0 1"),
    )
}  # fmt: skip
"""Presets by task. Epochs, batch sizes and rates: the thesis, appendix on hyperparameters (its MRPC has
two classes, ET-17, and CoLA is scored by Matthews, ET-18)."""


def read_glue(folder: str | Path, task: str, split: str = "dev") -> TextExamples:
    """Read one file of GLUE.

    Args:
        folder: Where GLUE's archive was unpacked; holds "CoLA", "SST-2" and so on.
        task: A key of `GLUE`.
        split: "train" or "dev"; another stem of a labelled file, as "dev_mismatched", is read as it is.

    Raises:
        ValueError: Unknown task, a column that is missing, a label that is none, too many broken lines,
            or a file without examples.
        FileNotFoundError: The file is not there.

    Source: GLUE's data format (Wang et al. 2019). Derived in notebooks/33_text_understanding.ipynb.
    """
    preset = _known(task)
    path = Path(folder).expanduser() / preset.folder / f"{_stem(preset, split)}.tsv"
    if not path.is_file():
        raise FileNotFoundError(
            f"no {path}: unpack GLUE's {task} there. The archives are linked from gluebenchmark.com; "
            f"the folder given must hold {preset.folder}/train.tsv and {preset.folder}/dev.tsv"
        )
    # One example a line: a quotation mark is a letter here, and lines end with a line feed only.
    content = path.read_bytes().decode("utf-8-sig").replace("\r\n", "\n")
    lines = content.rstrip("\n").split("\n")
    columns = lines.pop(0).split("\t") if preset.header else list(preset.columns)
    missing = sorted({*preset.texts, preset.label} - set(columns))
    if missing:
        raise ValueError(
            f"{path} has no column {', '.join(missing)}; its columns: {', '.join(columns)}"
        )
    needed = [columns.index(name) for name in (*preset.texts, preset.label)]
    whole: list[list[str]] = []
    targets: list[float] = []
    for number, line in enumerate(lines, 2 if preset.header else 1):
        fields = line.split("\t")
        cells = [fields[i].strip() for i in needed] if len(fields) == len(columns) else [""]
        if all(cells):
            whole.append(cells)
            targets.append(_target(preset, cells[-1], f"{path}, line {number}"))
    if len(lines) - len(whole) > MOST_BROKEN * len(lines):
        raise ValueError(
            f"{path}: {len(lines) - len(whole)} of {len(lines)} lines lack a text or have not "
            f"{len(columns)} fields; is it the file that GLUE publishes?"
        )
    second = [cells[1] for cells in whole] if preset.task.pair else None
    kind = np.int64 if preset.task.classes else np.float64
    first = [cells[0] for cells in whole]
    return TextExamples(preset.task, first, second, np.array(targets, kind), f"GLUE/{split}")


def _known(task: str) -> GluePreset:
    if task not in GLUE:
        raise ValueError(f"unknown GLUE task {task!r}; choose one of {', '.join(GLUE)}")
    return GLUE[task]


def _stem(preset: GluePreset, split: str) -> str:
    if split == "test":
        raise ValueError("GLUE publishes no labels of its test sets; read split='dev'")
    return preset.dev if split == "dev" else split


def _target(preset: GluePreset, word: str, where: str) -> float:
    """Class id or number of a label as the file writes it."""
    if preset.words:
        if word not in preset.words:
            raise ValueError(f"{where}: label {word!r} is none of {', '.join(preset.words)}")
        return preset.words.index(word)
    try:
        value = float(word)
    except ValueError:
        raise ValueError(f"{where}: {word!r} is not a number") from None
    if not 0 <= value <= 5:
        raise ValueError(f"{where}: the similarity {word} does not lie in 0 to 5")
    return value
