"""Emoji scenes written as if they were COCO: Karpathy's JSON and JPEGs in COCO's own folders.

Every loader of real pairs can so be run and tested without the real data.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tqdm import tqdm

from mmkd_lite import storage
from mmkd_lite.config import DataConfig
from mmkd_lite.data.karpathy import JSON_NAMES
from mmkd_lite.data.scenes import EmojiScenes, gallery

SPLITS = ("train", "restval", "val", "test")
JPEG_QUALITY = 95
CHUNK = 256
Drawn = tuple[str, np.ndarray, Sequence[str]]  # split, picture uint8 (3, S, S), captions


def export_coco(
    folder: str | Path,
    config: DataConfig,
    images: Mapping[str, int],
    *,
    progress: bool = True,
) -> Path:
    """Write scenes as `dataset_coco.json` and JPEGs below `train2014` and `val2014`.

    "train" and "restval" are scenes of the split "train"; "val" and "test" are scenes of the
    split "composition", no two of equal meaning. As in COCO, all but "train" lie in `val2014`.
    The export is made beside `folder` and renamed: `folder` is complete or absent.

    Args:
        folder: Where to; must not exist or be empty.
        config: The emoji world.
        images: Number of images of each split, as {"train": 64, "val": 16, "test": 16}.
        progress: Show a progress bar.

    Returns:
        The path of the JSON.

    Raises:
        ValueError: An unknown split, no images, or a folder that holds something.
        OSError: No space left; nothing is left behind.
    """
    folder = Path(folder).expanduser()
    _check(folder, images)
    partial = folder.with_name(f".{folder.name}{storage.TEMPORARY}")
    shutil.rmtree(partial, ignore_errors=True)  # of an export that was killed
    try:
        records = []
        drawn = tqdm(
            _drawn(config, images), "export", sum(images.values()), disable=not progress, unit="img"
        )
        for number, (split, picture, captions) in enumerate(drawn):
            records.append(_record(number, split, captions))
            _write_jpeg(partial / records[-1]["filepath"] / records[-1]["filename"], picture)
        storage.write_json(partial / JSON_NAMES["coco"], {"images": records, "dataset": "coco"})
        if folder.exists():
            folder.rmdir()  # empty; a rename onto it fails on some systems
        partial.replace(folder)
    except OSError as error:
        raise storage.explained(error, folder) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return folder / JSON_NAMES["coco"]


def _check(folder: Path, images: Mapping[str, int]) -> None:
    """Refuse what cannot be exported before anything is drawn."""
    unknown = sorted(set(images) - set(SPLITS))
    if unknown:
        raise ValueError(f"unknown split {', '.join(unknown)}; valid splits: {', '.join(SPLITS)}")
    if min(images.values(), default=0) < 0 or not sum(images.values()):
        raise ValueError(f"numbers of images must be >= 0 and not all 0, got {dict(images)}")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"{folder} holds something already; choose a new folder or remove it")


def _drawn(config: DataConfig, images: Mapping[str, int]) -> Iterator[Drawn]:
    """Pictures and captions of all splits, in the order of `SPLITS`."""
    scenes = EmojiScenes(config)
    start = 0
    for split in SPLITS[:2]:
        stop = start + images.get(split, 0)
        for first in range(start, stop, CHUNK):
            batch = scenes.batch(np.arange(first, min(first + CHUNK, stop)))
            for picture, captions in zip(batch["image"], batch["captions"], strict=True):
                yield split, np.asarray(picture), captions
        start = stop
    counts = [images.get(split, 0) for split in SPLITS[2:]]
    if not sum(counts):
        return
    held_out = gallery(config, sum(counts), "composition")
    captions_of: list[list[str]] = [[] for _ in range(sum(counts))]
    for caption, row in zip(held_out.captions, held_out.image_of_text, strict=True):
        captions_of[int(row)].append(caption)
    splits = [split for split, count in zip(SPLITS[2:], counts, strict=True) for _ in range(count)]
    yield from zip(splits, np.asarray(held_out.images), captions_of, strict=True)


def _record(number: int, split: str, captions: Sequence[str]) -> dict[str, Any]:
    """One image as Karpathy's JSON describes it; ids of captions count within the export."""
    folder = "train2014" if split == "train" else "val2014"
    image_id = number + 1  # so that it differs from `imgid`, as in COCO
    first = number * len(captions)
    return {
        "filepath": folder,
        "sentids": [first + k for k in range(len(captions))],
        "filename": f"COCO_{folder}_{image_id:012d}.jpg",
        "imgid": number,
        "split": split,
        "sentences": [
            {
                "tokens": re.findall(r"[a-z0-9]+", caption.lower()),
                "raw": caption,
                "imgid": number,
                "sentid": first + k,
            }
            for k, caption in enumerate(captions)
        ],
        "cocoid": image_id,
    }


def _write_jpeg(path: Path, picture: np.ndarray) -> None:
    """Write a uint8 (3, S, S) picture; full colour resolution, since sprites are small."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(np.ascontiguousarray(picture.transpose(1, 2, 0)))
    image.save(path, "JPEG", quality=JPEG_QUALITY, subsampling=0)
