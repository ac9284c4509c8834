"""COCO and Flickr30k as a source of pairs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from mmkd_lite.config import DataConfig
from mmkd_lite.data import draws, karpathy
from mmkd_lite.data.batches import Batch, as_batch, epoch_order, global_rows
from mmkd_lite.data.scenes import Gallery
from mmkd_lite.data.tokenizer import Tokenizer, load_tokenizer


class CocoPairs:
    """COCO or Flickr30k in Karpathy's splits; training reads "train" and "restval".

    An epoch shows each image once, in an order drawn from (seed, epoch). Its caption moves on by
    one every epoch, so that five epochs show each of five captions once.
    """

    def __init__(
        self,
        data_dir: str | Path,
        config: DataConfig,
        seed: int = 0,
        tokenizer: Tokenizer | None = None,
        *,
        augment: bool = True,
        crop_scale: tuple[float, float] = (0.9, 1.0),
        flip: float = 0.5,
    ):
        """Read the JSON and look for the pictures.

        Args:
            data_dir: Folder with the JSON and the picture folders.
            config: `source` ("coco" or "flickr30k"), `image_size`, `max_tokens`, noise.
            seed: Seed of the run: order, captions, crops.
            tokenizer: Default is the one that `config` names.
            augment: False: centre squares instead of random ones.
            crop_scale: Smallest and largest share of a picture's area in a random square.
            flip: Probability of mirroring.

        Raises:
            FileNotFoundError: The folder, the JSON or the pictures are missing.
            ValueError: The JSON is broken, or names no training image.
        """
        self.folder = _data_folder(data_dir, config.source)
        self.config, self.seed = config, seed
        self.augment, self.crop_scale, self.flip = augment, crop_scale, flip
        if config.noise and config.noise_kind != "swap":
            raise ValueError(
                f"data.noise_kind={config.noise_kind!r} needs the emoji world, which knows what a "
                f"caption means; real pairs can only be swapped: data.noise_kind=swap"
            )
        self.tokenizer = tokenizer or load_tokenizer(config.tokenizer)
        self._json = self.folder / karpathy.JSON_NAMES[config.source]
        self._splits = karpathy.read_entries(self._json)
        self._train = [e for name in karpathy.TRAIN_SPLITS for e in self._splits.get(name, [])]
        self._pictures = karpathy.picture_folder(self.folder, self._entries("train"))
        self.size: int | None = len(self._train)

    def _entries(self, split: str) -> list[karpathy.Entry]:
        """Images of a split; "train" includes "restval"."""
        entries = self._train if split == "train" else self._splits.get(split, [])
        if not entries:
            raise ValueError(
                f"{self._json} has no image in split {split!r}; it has "
                + ", ".join(f"{name} ({len(found)})" for name, found in self._splits.items())
            )
        return entries

    def batch(self, step: int, batch_size: int, rank: int = 0, world: int = 1) -> Batch:
        """Rows of one process; see `pairs.Pairs.batch`."""
        positions = global_rows(step, batch_size, rank, world)
        epochs, places = np.divmod(positions, len(self._train))
        orders = {int(e): epoch_order(self.seed, int(e), len(self._train)) for e in set(epochs)}
        rows = [int(orders[int(e)][p]) for e, p in zip(epochs, places, strict=True)]
        shown = [self._caption(row, int(e)) for row, e in zip(rows, epochs, strict=True)]
        tokens = self.tokenizer.encode([text for text, _ in shown], self.config.max_tokens)
        crops = draws.uniforms(self.seed, "pairs:crop", positions, karpathy.CROP_DRAWS)
        images = torch.stack([self._picture(r, crop) for r, crop in zip(rows, crops, strict=True)])
        image_ids = [self._train[row].image_id for row in rows]
        return as_batch(images, tokens, image_ids, [caption_id for _, caption_id in shown])

    def _caption(self, row: int, epoch: int) -> tuple[str, int]:
        """Text and id of the caption that an image shows in an epoch."""
        if self.config.noise:
            chance, other = draws.uniforms(self.seed, f"pairs:noise:{epoch}", [row], 2)[0]
            if chance < self.config.noise:  # wrong on purpose: another image's caption
                row = (row + 1 + int(other * (len(self._train) - 1))) % len(self._train)
        entry = self._train[row]
        start = int(draws.integers(self.seed, "pairs:caption", [row], 1)[0, 0] % 2**32)
        number = (start + epoch) % len(entry.captions)
        return entry.captions[number], entry.caption_ids[number]

    def _picture(self, row: int, uniforms: np.ndarray) -> Tensor:
        """Training picture of an image, uint8 (3, S, S)."""
        picture = karpathy.read_picture(self._pictures / self._train[row].file)
        size = self.config.image_size
        if not self.augment:
            return karpathy.centre_square(picture, size)
        return karpathy.random_square(picture, size, uniforms, self.crop_scale, self.flip)

    def gallery(self, images: int | None = None, split: str = "") -> Gallery:
        """The first images of a split with all their captions, as centre squares.

        Args:
            images: How many; default all (5,000 of COCO, 1,000 of Flickr30k).
            split: "test" (also for ""), "val" or "train".

        Raises:
            ValueError: The split has no image, or fewer than asked for.
        """
        split = split or "test"
        entries = self._entries(split)
        if images is not None and not 1 <= images <= len(entries):
            raise ValueError(f"split {split!r} has {len(entries)} images, asked for {images}")
        entries = entries[:images]
        counts = [len(entry.captions) for entry in entries]
        return Gallery(
            images=karpathy.centre_squares(self._pictures, entries, self.config.image_size).numpy(),
            captions=[caption for entry in entries for caption in entry.captions],
            image_of_text=np.repeat(np.arange(len(entries)), counts),
            relevance=None,  # the own captions
            name=f"{self.config.source}/{split}",
        )


def _data_folder(data_dir: str | Path, source: str) -> Path:
    """The folder of real data, checked to be there."""
    if not str(data_dir):
        raise ValueError(f"data.source={source!r} needs a folder: set DATA_DIR (data_dir)")
    folder = Path(data_dir).expanduser()
    if not folder.is_dir():
        raise FileNotFoundError(f"the data folder {folder} does not exist; set DATA_DIR (data_dir)")
    return folder
