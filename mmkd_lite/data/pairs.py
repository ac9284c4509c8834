"""Image-caption pairs: batch number `step` is a pure function of (configuration, seed, step).

That is what makes a resumed run exact and a run on several processes equal to one on a single
process: nobody keeps a position, and rank r of W takes rows r*b .. r*b+b-1 of the global batch of
W*b rows. `EmojiPairs` draws scenes that never repeat; `CocoPairs` reads Karpathy's JSON and JPEGs.
"""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms.v2.functional import to_pil_image

from mmkd_lite.config import DataConfig, RunConfig
from mmkd_lite.data import draws, karpathy
from mmkd_lite.data.batches import Batch, as_batch, epoch_order, global_rows
from mmkd_lite.data.captions import CAPTIONS_PER_IMAGE
from mmkd_lite.data.coco import CocoPairs
from mmkd_lite.data.scenes import EmojiScenes, Gallery, gallery
from mmkd_lite.data.tokenizer import Tokenizer, load_tokenizer

__all__ = [
    "SOURCES",
    "CocoPairs",
    "EmojiPairs",
    "Pairs",
    "RecycledEmojiPairs",
    "RedrawnEmojiPairs",
    "loader",
    "open_pairs",
]
SOURCES = ("emoji", *karpathy.JSON_NAMES)


@runtime_checkable
class Pairs(Protocol):
    """What the training loop and the evaluation ask of a source of pairs.

    Attributes:
        size: Images in an epoch, or None where scenes never repeat.
        tokenizer: Turns the gallery's captions into ids just as the batches' were.
    """

    size: int | None
    tokenizer: Tokenizer

    def batch(self, step: int, batch_size: int, rank: int = 0, world: int = 1) -> Batch:
        """Rows of one process in the global batch of a step.

        Args:
            step: Number of the step, from 0.
            batch_size: B, rows of this process.
            rank: Number of this process.
            world: W, number of processes.

        Returns:
            "image" float32 (B, 3, H, W) in [0, 1], "tokens" int64 (B, M), "image_id" int64 (B,)
            and "caption_id" int64 (B,).
        """
        ...

    def gallery(self, images: int | None = None, split: str = "") -> Gallery:
        """Pictures and captions to retrieve from; "" is the source's usual test split."""
        ...


class EmojiPairs:
    """Fresh emoji scenes: position p of the stream is scene p of the split "train".

    The run's seed chooses which of a scene's captions is shown (and which are made wrong), not
    the scene: several seeds see the same pictures, so that cached teacher targets serve them all.
    """

    size: int | None = None

    def __init__(self, config: DataConfig, seed: int = 0, tokenizer: Tokenizer | None = None):
        """Open the world.

        Args:
            config: Size of pictures, vocabulary, noise and so on.
            seed: Seed of the run.
            tokenizer: Default is the one that `config` names.
        """
        self.config = config
        self.seed = seed
        self.tokenizer = tokenizer or load_tokenizer(config.tokenizer)
        self.scenes = EmojiScenes(config)

    def batch(self, step: int, batch_size: int, rank: int = 0, world: int = 1) -> Batch:
        """Rows of one process; see `Pairs.batch`."""
        return self.at(global_rows(step, batch_size, rank, world))

    def at(self, rows: np.ndarray) -> Batch:
        """The batch of some scenes of the split "train", by number (B,)."""
        drawn = self.scenes.batch(rows)
        choice = draws.uniforms(self.seed, "pairs:caption", rows, 1)[:, 0]
        numbers = draws.pick(choice, CAPTIONS_PER_IMAGE)  # (B,)
        texts = [captions[n] for captions, n in zip(drawn["captions"], numbers, strict=True)]
        tokens = self.tokenizer.encode(texts, self.config.max_tokens)
        caption_ids = rows * CAPTIONS_PER_IMAGE + numbers
        return as_batch(torch.as_tensor(drawn["image"]), tokens, rows, caption_ids)

    def gallery(
        self,
        images: int | None = None,
        split: str = "",
        *,
        artist: str = "twemoji",
        shift: str = "none",
        captions_per_image: int = CAPTIONS_PER_IMAGE,
    ) -> Gallery:
        """Scenes of a split without two of equal meaning; see `scenes.gallery`.

        Args:
            images: How many; default `config.gallery_images`.
            split: "composition" (also for ""), "validation" or "train".
            artist: Who drew the sprites.
            shift: "none", "near" or "far".
            captions_per_image: 1 to 5.
        """
        count = self.config.gallery_images if images is None else images
        split = split or "composition"
        return gallery(self.config, count, split, artist, shift, captions_per_image)


class RecycledEmojiPairs(EmojiPairs):
    """A fixed number of emoji pairs, shown epoch after epoch, each time in another order.

    Args:
        config: As for `EmojiPairs`.
        seed: Seed of the run; decides captions and orders.
        scenes: How many distinct scenes, at least 1; a smaller number is part of a larger one.
    """

    def __init__(self, config: DataConfig, seed: int = 0, *, scenes: int):
        super().__init__(config, seed)
        if scenes < 1:
            raise ValueError(f"scenes={scenes} must be at least 1")
        self.size: int = scenes

    def batch(self, step: int, batch_size: int, rank: int = 0, world: int = 1) -> Batch:
        """Rows of one process; see `Pairs.batch`."""
        positions = global_rows(step, batch_size, rank, world)
        orders = {e: epoch_order(self.seed, e, self.size) for e in set(positions // self.size)}
        return self.at(np.array([orders[p // self.size][p % self.size] for p in positions]))


class RedrawnEmojiPairs(EmojiPairs):
    """The scenes and captions of `EmojiPairs` in another artist's hand, perhaps cropped at random.

    A crop is a pure function of (seed, number of the scene). It is resized to the picture's size and never
    mirrored, since captions name left and right; what lies outside it may still be named.

    Args:
        config: As for `EmojiPairs`.
        seed: Seed of the run; decides captions and crops.
        artist: "twemoji", "openmoji" or "noto".
        smallest_crop: Smallest share of a picture's area in its crop, in (0, 1]; 1 crops nothing.
    """

    def __init__(self, config: DataConfig, seed: int, artist: str, smallest_crop: float = 1.0):
        super().__init__(config, seed)
        self.scenes = EmojiScenes(config, artist=artist)
        self.smallest_crop = smallest_crop

    def at(self, rows: np.ndarray) -> Batch:
        """The batch of some scenes; see `EmojiPairs.at`."""
        batch = super().at(rows)
        if self.smallest_crop < 1:
            shares = (self.smallest_crop, 1.0)
            uniforms = draws.uniforms(self.seed, "pairs:crop", rows, karpathy.CROP_DRAWS)
            pictures = batch["image"].mul(255).round().to(torch.uint8)
            cut = [
                karpathy.random_square(to_pil_image(picture), picture.shape[-1], u, shares, 0.0)
                for picture, u in zip(pictures, uniforms, strict=True)
            ]
            batch["image"] = torch.stack(cut).float().div_(255)
        return batch


def open_pairs(config: RunConfig) -> Pairs:
    """The pairs that a run trains on.

    Raises:
        ValueError: Unknown `data.source`; the valid ones are listed.
    """
    source = config.data.source
    if source == "emoji":
        return EmojiPairs(config.data, config.seed)
    if source in karpathy.JSON_NAMES:
        return CocoPairs(config.data_dir, config.data, config.seed)
    raise ValueError(f"unknown data.source {source!r}; valid sources: {', '.join(SOURCES)}")


class _Steps(Dataset[Batch]):
    """Makes the batch of a step, in whichever process asks."""

    def __init__(self, pairs: Pairs, batch_size: int, rank: int, world: int) -> None:
        self.pairs, self.shape = pairs, (batch_size, rank, world)

    def __getitem__(self, step: int) -> Batch:
        return self.pairs.batch(step, *self.shape)


def loader(
    pairs: Pairs,
    start_step: int,
    steps: int,
    workers: int = 0,
    *,
    batch_size: int,
    rank: int = 0,
    world: int = 1,
) -> DataLoader[Batch]:
    """Batches start_step .. steps-1 in order, made ahead of time by worker processes.

    Args:
        pairs: Their source.
        start_step: First step; larger than 0 when a run resumes.
        steps: Number of steps of the whole run.
        workers: Processes that make whole batches; 0 makes them when asked, in this process.
        batch_size: Rows of this process.
        rank: Number of this process.
        world: Number of processes.
    """
    return DataLoader(
        _Steps(pairs, batch_size, rank, world),
        batch_size=None,
        sampler=range(start_step, steps),
        num_workers=workers,
        generator=torch.Generator(),  # its own, so that the global generator is not advanced
    )
