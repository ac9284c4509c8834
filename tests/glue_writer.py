"""Write files in GLUE's format, so that its reader is tested without the real data."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from mmkd_lite.data.glue_files import GLUE
from mmkd_lite.data.text_tasks import TextExamples


def write_glue(folder: Path, task: str, split: str, examples: TextExamples) -> Path:
    """Write examples (texts without tabs and line feeds) as TASK/SPLIT.tsv; "dev" is the task's own name for it."""
    preset = GLUE[task]
    sides: list[Sequence[str]] = [examples.first, *([examples.second] if examples.second else [])]
    rows = ["\t".join(preset.columns)] if preset.header else []
    for number, texts in enumerate(zip(*sides, strict=True)):
        label = examples.labels[number]
        told = preset.words[label] if preset.words else f"{label:.3f}"
        known = {**dict(zip(preset.texts, texts, strict=True)), preset.label: told}
        rows.append("\t".join(known.get(name, str(number)) for name in preset.columns))
    path = folder / preset.folder / f"{preset.dev if split == 'dev' else split}.tsv"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(rows) + "\n", encoding="utf-8")
    return path
