"""How the text teacher is made: predict hidden words of captions."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from mmkd_lite.config import RunConfig
from mmkd_lite.methods.base import Batch, Method
from mmkd_lite.models import without_padding_columns
from mmkd_lite.teachers import SHIPPED, Teacher


@dataclass(frozen=True)
class MaskedWordsOptions:
    """Settings of masked-word training.

    Attributes:
        masked: share of a caption's tokens that are hidden, in (0, 1); BERT uses 0.15.
    """

    masked: float = 0.25


class MaskedWords(Method):
    """Train a text encoder to predict hidden words from the rest of the caption.

    Every chosen token is replaced by [MASK]; the loss counts the chosen positions only.

    Source: Devlin et al. 2019, section 3.1, the teacher of seed 001's text tower. Shown in notebooks/05_teachers.ipynb.
    """

    Options = MaskedWordsOptions
    default_weights: ClassVar[dict[str, float]] = {"masked_words": 1.0}
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "laptop": {
            "image.start": "",
            "text.start": "",
            "train.batch_size": 128,
            "train.base_lr": 8e-3,
            "train.weight_decay": 0.05,
            "train.checkpoint_every": 200,
        },
    }

    model: Any

    def __init__(self, config: RunConfig, teacher: Teacher | None = None) -> None:
        super().__init__(config, None)
        self.model, _ = SHIPPED["text"]()

    @classmethod
    def open_data(cls, config: RunConfig) -> MaskedCaptions:
        """Return the stream of masked captions."""
        return MaskedCaptions(config)

    def losses(
        self, batch: Batch, targets: dict[str, Tensor], progress: float
    ) -> dict[str, Tensor]:
        """Return `masked_words`, the cross-entropy of the hidden tokens."""
        hidden = self.model.encoder(batch["tokens"])
        chosen = batch["chosen"]
        return {
            "masked_words": F.cross_entropy(
                self.model.predict(hidden[chosen]), batch["original"][chosen]
            )
        }


class MaskedCaptions:
    """Endless captions of scenes with every seen concept; a batch is a pure function of configuration and step."""

    size = None

    def __init__(self, config: RunConfig, split: str = "train") -> None:
        from mmkd_lite.data.emoji import concept_split
        from mmkd_lite.data.scenes import EmojiScenes
        from mmkd_lite.data.tokenizer import load_tokenizer

        every_seen = len(concept_split("seen"))
        self.config, self.tokenizer = config, load_tokenizer(config.data.tokenizer)
        self.scenes = EmojiScenes(dataclasses.replace(config.data, concepts=every_seen), split)

    def batch(self, step: int, batch_size: int, rank: int = 0, world: int = 1) -> Batch:
        """Return `tokens` with [MASK], `original` and `chosen`, each (B, M)."""
        first = (step * world + rank) * batch_size
        rows = range(first, first + batch_size)
        captions = [texts[i % 5] for i, texts in zip(rows, self.scenes.texts(rows), strict=True)]
        original = without_padding_columns(
            self.tokenizer.encode(captions, self.config.data.max_tokens)
        )
        return mask_words(
            original, self.config.options.masked, self.tokenizer, self.config.seed + first
        )


def mask_words(tokens: Tensor, share: float, tokenizer: Any, seed: int) -> Batch:
    """Hide a share of the tokens, at least one a caption; special tokens are never hidden.

    Args:
        tokens: (B, M) ids.
        share: in (0, 1).
        tokenizer: gives `pad_id`, `cls_id`, `sep_id` and `mask_id`.
        seed: of the choice.
    """
    generator = torch.Generator().manual_seed(seed)
    special = (
        (tokens == tokenizer.pad_id) | (tokens == tokenizer.cls_id) | (tokens == tokenizer.sep_id)
    )
    draw = torch.rand(tokens.shape, generator=generator).masked_fill(special, 2.0)
    chosen = (draw < share) | (draw == draw.min(dim=1, keepdim=True).values)
    chosen &= ~special
    return {
        "tokens": tokens.masked_fill(chosen, tokenizer.mask_id),
        "original": tokens,
        "chosen": chosen,
    }
