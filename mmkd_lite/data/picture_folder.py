"""Labelled pictures of one's own: ROOT/train/CLASS/*.jpg and ROOT/val/CLASS/*.jpg, as ImageNet comes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torchvision.datasets import ImageFolder
from torchvision.datasets.folder import find_classes

from mmkd_lite.data import draws
from mmkd_lite.data.batches import Batch, epoch_order, global_rows
from mmkd_lite.data.karpathy import CROP_DRAWS, centre_square, random_square, read_picture


class PictureFolder:
    """Pictures of one split; batch number `step` is a pure function of (seed, step).

    Args:
        root: Folder with one folder a split, which holds one folder a class.
        split: "train" or "val".
        image_size: Side of the square pictures.
        seed: Of the order, the crops and the mirroring.
        crop_scale: Smallest and largest share of a picture's area in a training picture.

    Attributes:
        classes: Names of the C classes, in the order of their numbers.
        labels: (N,) int64.

    Raises:
        ValueError: No root.
        FileNotFoundError: No such folder, or a class without pictures.
    """

    def __init__(
        self,
        root: str | Path,
        split: str,
        image_size: int,
        seed: int = 0,
        crop_scale: tuple[float, float] = (0.08, 1.0),
    ) -> None:
        folder = _folder(root, split)
        try:
            listed = ImageFolder(str(folder))
        except FileNotFoundError as error:
            raise _unusable(folder, error) from None
        self.paths = [Path(path) for path, _ in listed.samples]
        self.labels = torch.tensor([label for _, label in listed.samples])
        self.classes: list[str] = listed.classes
        self.image_size, self.seed, self.crop_scale = image_size, seed, crop_scale
        self.size = len(self.paths)

    def batch(self, step: int, batch_size: int, rank: int = 0, world: int = 1) -> Batch:
        """Return training pictures `image` (B, 3, S, S) in [0, 1] and `label` (B,)."""
        positions = global_rows(step, batch_size, rank, world)
        epochs, places = np.divmod(positions, self.size)
        rows = [int(epoch_order(self.seed, int(e), self.size)[p])
                for e, p in zip(epochs, places, strict=True)]  # fmt: skip
        numbers = draws.uniforms(self.seed, "pictures:crop", positions, CROP_DRAWS)
        cut = [
            random_square(read_picture(self.paths[row]), self.image_size, u, self.crop_scale, 0.5)
            for row, u in zip(rows, numbers, strict=True)
        ]
        return {"image": torch.stack(cut).float() / 255, "label": self.labels[rows]}

    def squares(self, rows: Sequence[int]) -> Tensor:
        """Return test pictures, uint8 (B, 3, S, S)."""
        return torch.stack(
            [centre_square(read_picture(self.paths[row]), self.image_size) for row in rows]
        )


def class_names(root: str | Path, split: str = "train") -> list[str]:
    """Return the names of the classes of a split; the pictures are not listed.

    Raises:
        ValueError: No root.
        FileNotFoundError: No such folder, or none with classes.
    """
    folder = _folder(root, split)
    try:
        return find_classes(str(folder))[0]
    except FileNotFoundError as error:
        raise _unusable(folder, error) from None


def _folder(root: str | Path, split: str) -> Path:
    if not str(root):
        raise ValueError("labelled pictures need a folder: set DATA_DIR (data_dir)")
    return Path(root).expanduser() / split


def _unusable(folder: Path, error: FileNotFoundError) -> FileNotFoundError:
    return FileNotFoundError(
        f"{folder} must hold one folder of pictures a class, as ImageNet does: {error}"
    )
