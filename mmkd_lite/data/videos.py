"""Which frames of a video are looked at, how they are made square, and videos from a folder.

    labels.csv            clip,label   one line a clip; label 1 = accident
    clip-000/000.png ...  its frames as pictures, in the order of their names, or
    clip-000.npz          the same as one array "frames", (T, H, W, 3) uint8

A video file is turned into such a folder by any tool that writes its frames; no codec is needed here.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from mmkd_lite.data.clips import FRAMES, WINDOW, checked_frames

STRIDE = 14
LABELS = "labels.csv"
PICTURES = (".png", ".jpg", ".jpeg")


class Videos(Protocol):
    """What a set of labelled videos offers: `EmojiCrash`, `VideoFolder`."""

    length: int
    image_size: int

    def labels(self, indices: Sequence[int] | np.ndarray) -> np.ndarray:
        """(B,) int64, 1 for an accident."""

    def clips(
        self, indices: Sequence[int] | np.ndarray, frames: Sequence[int] | np.ndarray
    ) -> np.ndarray:
        """(B, F, 3, S, S) uint8, the frames asked for."""


# ---------------------------------------------------------------- frames


def by_stride(length: int = FRAMES, stride: int = STRIDE, wanted: int = 0) -> np.ndarray:
    """Return every `stride`-th frame from frame 0; where more are wanted, copies of the last frame follow.

    Every 14th of 100 frames gives 8 (0, 14, ..., 98), not 10; asked for 10, EVL's loader repeats frame 99.

    Args:
        length: Frames of the video.
        stride: >= 1.
        wanted: Number of frames; 0 takes what there is.

    Raises:
        ValueError: A number out of range.

    Source: seed 003, section 3.3.5, with errata E003-05. Derived in notebooks/35_video.ipynb.
    """
    if length < 1 or stride < 1 or wanted < 0:
        raise ValueError(f"length={length} and stride={stride} must be >= 1, wanted={wanted} >= 0")
    found = np.arange(0, length, stride)
    missing = max(wanted - len(found), 0)
    return np.append(found, np.full(missing, length - 1))[: wanted or None]


def last_frames(length: int = FRAMES, count: int = WINDOW) -> np.ndarray:
    """Return the last `count` frames.

    Raises:
        ValueError: More than there are, or none.
    """
    if not 1 <= count <= length:
        raise ValueError(f"cannot take the last {count} of {length} frames")
    return np.arange(length - count, length)


SAMPLINGS: dict[str, Callable[[int], np.ndarray]] = {
    "stride14": by_stride,
    "stride14_padded": lambda length: by_stride(length, wanted=10),
    "last10": last_frames,
}
"""Name -> the frames of a video of some length: the source's rule, the same as its loader may have padded it to the
10 frames it names (E003-05), and one that sees the whole accident window with as many frames."""


def sampled(name: str, length: int = FRAMES) -> np.ndarray:
    """Return the frames that a named sampling takes.

    Raises:
        ValueError: Unknown name.
    """
    if name not in SAMPLINGS:
        raise ValueError(f"unknown sampling {name!r}; valid: {', '.join(SAMPLINGS)}")
    return SAMPLINGS[name](length)


# ---------------------------------------------------------------- size


def shrink_and_pad(frames: Tensor, size: int) -> Tensor:
    """Scale pictures until the longer side is `size` and pad the shorter one with black; nothing is cut off.

    Args:
        frames: (N, 3, H, W) uint8.
        size: S in pixels; smaller pictures are enlarged.

    Returns:
        (N, 3, S, S) uint8; where the padding is odd, the bottom or right side has one line more.

    Raises:
        ValueError: Another type or shape.

    Source: seed 003, section 3.3.5. Derived in notebooks/35_video.ipynb.
    """
    if frames.ndim != 4 or frames.shape[1] != 3 or frames.dtype != torch.uint8 or 0 in frames.shape:
        raise ValueError(
            f"frames must be (N, 3, H, W) uint8, got {tuple(frames.shape)} {frames.dtype}; "
            "convert grey or transparent pictures to RGB first"
        )
    if size < 1:
        raise ValueError(f"size={size} must be at least 1 pixel")
    height, width = frames.shape[2:]
    scale = size / max(height, width)
    new = (max(round(height * scale), 1), max(round(width * scale), 1))
    if new != (height, width):
        scaled = F.interpolate(
            frames.float(), size=new, mode="bilinear", antialias=True, align_corners=False
        )
        frames = scaled.round().clamp(0, 255).to(torch.uint8)
    rows, columns = size - new[0], size - new[1]
    return F.pad(frames, (columns // 2, columns - columns // 2, rows // 2, rows - rows // 2))


# ---------------------------------------------------------------- folders


class VideoFolder:
    """Labelled videos in a folder, see the top of this file.

    Args:
        folder: Holds `labels.csv` and the clips.
        image_size: Side S that frames are shrunk and padded to.
        length: Frames that every clip must have.

    Raises:
        FileNotFoundError: No `labels.csv`, or a clip that it names is not there.
        ValueError: Rows or labels that cannot be read.

    Source: seed 003, section 3.3.1 (Aadv: 100 frames of 1280 x 720). Used in notebooks/35_video.ipynb.
    """

    def __init__(self, folder: str | Path, image_size: int, length: int = FRAMES) -> None:
        self.folder, self.image_size, self.length = Path(folder), image_size, length
        path = self.folder / LABELS
        if not path.exists():
            raise FileNotFoundError(
                f"no {LABELS} in {self.folder}: one line 'clip,label' for each clip"
            )
        with open(path, newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        self.names = [row.get("clip") or "" for row in rows]
        marks = [row.get("label") for row in rows]
        bad = [i for i, mark in enumerate(marks) if mark not in ("0", "1")]
        if not rows or bad or not all(self.names):
            line = bad[0] + 2 if bad else 1
            raise ValueError(
                f"{path} must have the columns clip and label (0 or 1) and a clip; see line {line}"
            )
        twice = len(self.names) - len(set(self.names))
        escaping = [n for n in self.names if Path(n).name != n or n in (".", "..")]
        if twice or escaping:
            raise ValueError(
                f"{path}: {twice} names occur twice; names with folders in them: {escaping[:3]}"
            )
        self._labels = np.array([int(mark or 0) for mark in marks], dtype=np.int64)

    def __len__(self) -> int:
        return len(self.names)

    def labels(self, indices: Sequence[int] | np.ndarray) -> np.ndarray:
        """(B,) int64, 1 for an accident."""
        return self._labels[np.asarray(indices, dtype=np.int64)]

    def clips(
        self,
        indices: Sequence[int] | np.ndarray,
        frames: Sequence[int] | np.ndarray = range(FRAMES),
    ) -> np.ndarray:
        """(B, F, 3, S, S) uint8: the frames asked for, shrunk and padded; of pictures only these are read.

        Raises:
            FileNotFoundError: A clip is not there.
            ValueError: A clip has another length, or frames of another kind than RGB; the message names it.
        """
        times = checked_frames(frames, self.length)
        return np.stack([self._clip(self.names[i], times) for i in np.asarray(indices).tolist()])

    def _clip(self, name: str, times: np.ndarray) -> np.ndarray:
        packed, folder = self.folder / f"{name}.npz", self.folder / name
        if packed.exists():
            with np.load(packed, allow_pickle=False) as arrays:
                if "frames" not in arrays:
                    raise ValueError(f"{packed} holds {list(arrays)}, not an array 'frames'")
                found = arrays["frames"]
            self._check_length(name, len(found) if found.ndim else 0)
            if found.ndim != 4 or found.shape[-1] != 3 or found.dtype != np.uint8:
                raise ValueError(
                    f"{packed}: frames must be (T, H, W, 3) uint8, got {found.shape} {found.dtype}"
                )
            pictures = list(found[times])
        elif folder.is_dir():
            files = sorted(p for p in folder.iterdir() if p.suffix.lower() in PICTURES)
            self._check_length(name, len(files))
            pictures = [_read_picture(files[t]) for t in times]
        else:
            raise FileNotFoundError(f"{LABELS} names {name}, but {folder} and {packed} are missing")
        shapes = {picture.shape for picture in pictures}
        if len(shapes) > 1:
            raise ValueError(f"the frames of clip {name} differ in size: {sorted(shapes)}")
        stacked = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2)
        return shrink_and_pad(stacked, self.image_size).numpy()

    def _check_length(self, name: str, found: int) -> None:
        if found != self.length:
            raise ValueError(f"clip {name} has {found} frames, expected {self.length}")


def _read_picture(path: Path) -> np.ndarray:
    """(H, W, 3) uint8."""
    with Image.open(path) as picture:
        if picture.mode != "RGB":
            raise ValueError(
                f"{path} has {len(picture.getbands())} channels ({picture.mode}), expected 3 (RGB)"
            )
        return np.asarray(picture)
