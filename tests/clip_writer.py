"""Write videos in the form that `VideoFolder` reads, so that it is tested without real ones."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from mmkd_lite.data.videos import LABELS, Videos


def export_clips(
    videos: Videos, indices: Sequence[int], folder: Path, packed: bool = False
) -> Path:
    """Write some videos and `labels.csv`: a folder of PNG files a clip, or (packed) one npz."""
    lines = ["clip,label"]
    for index, label in zip(indices, videos.labels(indices).tolist(), strict=True):
        name = f"clip-{index:05d}"
        frames = videos.clips([index], range(videos.length))[0].transpose(0, 2, 3, 1)
        (folder if packed else folder / name).mkdir(parents=True, exist_ok=True)
        if packed:
            np.savez_compressed(folder / f"{name}.npz", frames=frames)
        for time, frame in enumerate([] if packed else frames):
            Image.fromarray(np.ascontiguousarray(frame)).save(folder / name / f"{time:03d}.png")
        lines.append(f"{name},{label}")
    (folder / LABELS).write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder
