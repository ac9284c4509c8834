"""The thin full-scale slice: notebook 15 with papermill at SCALE=full on scenes exported as COCO."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from mmkd_lite.config import DataConfig
from mmkd_lite.data.export import export_coco

ROOT = Path(__file__).parents[1]
SMALL = {
    "image.width": 48,
    "image.heads": 4,
    "image.layers": 1,
    "text.width": 48,
    "text.heads": 4,
    "text.layers": 1,
    "text.start": '""',
    "data.tokenizer": "emoji",
    "data.vocab_size": 0,
    "data.gallery_images": 20,
    "teacher": "timm-random:resnet50",
    "train.steps": 2,
    "train.batch_size": 6,
    "train.workers": 0,
}
"""Only widths, lengths and weights that cannot be had here are replaced; sizes of pictures stay."""


def papermill(notebook: str, out: Path, parameters: dict[str, str]) -> subprocess.CompletedProcess:
    words = [
        sys.executable,
        "-m",
        "papermill",
        f"notebooks/{notebook}.ipynb",
        str(out / "out.ipynb"),
    ]
    for name, value in parameters.items():
        words += ["-r", name, value]
    environment = {k: v for k, v in os.environ.items() if k != "MMKD_SCALE"}
    return subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, text=True)


@pytest.mark.slow
def test_notebook_15_runs_at_full_scale_on_coco_files(tmp_path: Path) -> None:
    export_coco(
        tmp_path / "coco",
        DataConfig(image_size=96),
        {"train": 24, "restval": 6, "val": 4, "test": 20},
    )
    done = papermill(
        "15_transformer_shre",
        tmp_path,
        {
            "SCALE": "full",
            "DATA_DIR": str(tmp_path / "coco"),
            "OUT_DIR": str(tmp_path / "run"),
            "OVERRIDES": ",".join(f"{key}={value}" for key, value in SMALL.items()),
        },
    )
    assert done.returncode == 0, done.stderr[-3000:]
    config = json.loads((tmp_path / "run" / "run" / "config.json").read_text())
    assert config["scale"] == "full" and config["data"]["source"] == "coco"
    assert config["data"]["image_size"] == 224 and config["image"]["patch"] == 16
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert 0 <= metrics["i2t_r1"]["value"] <= 100
    assert metrics["i2t_r1"]["chance"] == pytest.approx(5.0)  # 1 of 20 pictures


def test_other_notebooks_name_the_loader_they_lack(tmp_path: Path) -> None:
    done = papermill("05_teachers", tmp_path, {"SCALE": "full"})
    assert done.returncode != 0
    assert "ImageNet folder loader" in done.stderr + done.stdout
