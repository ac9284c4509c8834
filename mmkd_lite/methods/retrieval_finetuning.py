"""Finetune a trained two-tower model for retrieval: contrast alone, on other pictures, at a low rate."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from mmkd_lite.config import RunConfig
from mmkd_lite.data import karpathy
from mmkd_lite.data.coco import CocoPairs
from mmkd_lite.data.pairs import RedrawnEmojiPairs
from mmkd_lite.data.sprites import ARTISTS
from mmkd_lite.losses import image_text_contrast
from mmkd_lite.methods.base import Batch, Method
from mmkd_lite.methods.starts import open_start
from mmkd_lite.methods.towers import vocabulary_size
from mmkd_lite.models import ContrastScale
from mmkd_lite.models.fusion import INITIAL_SCALE, MAXIMUM_SCALE
from mmkd_lite.teachers import Teacher


@dataclass(frozen=True)
class RetrievalFinetuningOptions:
    """Settings of the finetuning.

    Attributes:
        start: what is finetuned, see `methods.starts.open_start`; it needs both towers.
        artist: who draws the emoji scenes; "" with real pictures.
        smallest_crop: smallest share of a picture's area in a random crop, in (0, 1]; with 1 emoji
            pictures stay whole and real ones are centre squares, as in evaluation.
    """

    start: str = "clip"
    artist: str = "openmoji"
    smallest_crop: float = 1.0


class RetrievalFinetuning(Method):
    r"""Go on with the contrast alone, from a model that is trained already, on the data of the retrieval task.

    .. math:: L = C(h_v, h_w; s)

    `h_v`, `h_w` (B, D) are the start's own outputs, `s` a scale that begins at the start's. Everything
    that a picture or a caption passes through is trained, the rest (teachers' heads, banks, the start's
    scale) is frozen. The towers are the start's: `image.*` and `text.*` of the configuration are not read.

    Source: seed 002, Table 2, rows "Finetune", with errata E002-05; methods.md 22.
    Derived in notebooks/32_probe_and_finetune.ipynb.
    """

    Options = RetrievalFinetuningOptions
    default_weights: ClassVar[dict[str, float]] = {"contrast": 1.0}
    continues = True
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "tiny": {"data.image_size": 48},  # the shipped model's
        # A tenth of the other methods' rate (5e-4 is used), not tuned. No crops: of a scene of 48 pixels
        # they would cut away objects that the caption names.
        "laptop": {
            "image.start": "",
            "text.start": "",
            "train.batch_size": 64,
            "train.steps": 100,
            "train.base_lr": 2e-3,
        },
        # Thesis: 5 epochs of 113,287 pictures in batches of 1,024, rate 3e-5, crops of half the area or
        # more. options.start has to be given: a finished run at full scale.
        "full": {
            "text.start": "",
            "options.start": "",
            "options.artist": "",
            "options.smallest_crop": 0.5,
            "train.batch_size": 1024,
            "train.steps": 553,  # 5 * 113287 / 1024
            "train.base_lr": 3e-5 * 256 / 1024,
        },
    }
    variants: ClassVar[dict[str, dict[str, Any]]] = {
        "finetuned": {},
        "scratch": {"options.start": "random-clip"},
        "source": {"options.artist": "twemoji"},
    }

    def __init__(self, config: RunConfig, teacher: Teacher | None) -> None:
        super().__init__(config, teacher)
        _check(config)
        self.student: Any = two_towers(config)
        _train_what_is_used(self.student, config)
        self.scale = ContrastScale(first_scale(self.student))

    @classmethod
    def open_data(cls, config: RunConfig) -> Any:
        """Return the stream of pairs, drawn by `options.artist` and cropped."""
        _check(config)
        data, seed, crop = config.data, config.seed, config.options.smallest_crop
        if data.source == "emoji":
            return RedrawnEmojiPairs(data, seed, config.options.artist, crop)
        if data.source not in karpathy.JSON_NAMES:
            return super().open_data(config)  # refuses it
        shares = (crop, 1.0)
        return CocoPairs(config.data_dir, data, seed, augment=crop < 1, crop_scale=shares)

    def losses(
        self, batch: Batch, targets: dict[str, Tensor], progress: float
    ) -> dict[str, Tensor]:
        """Return `contrast`; pairs of the same picture are not each other's negatives."""
        image, text = self.encode_image(batch["image"]), self.encode_text(batch["tokens"])
        value = image_text_contrast(image, text, self.scale.value(), image_id=batch["image_id"])
        return {"contrast": value}

    def after_step(self) -> None:
        """Keep the scale within [1, 100]."""
        self.scale.clamp_()

    def encode_image(self, images: Tensor) -> Tensor:
        """Map images (B, 3, H, W) in [0, 1] to unit vectors (B, D), as the start does."""
        return self.student.encode_image(images)

    def encode_text(self, tokens: Tensor) -> Tensor:
        """Map token ids (B, M) to unit vectors (B, D), as the start does."""
        return self.student.encode_text(tokens)


def two_towers(config: RunConfig) -> Any:
    """Return the model that `options.start` names, with `encode_image` and `encode_text`.

    Raises:
        ValueError: a start that cannot be opened, a missing tower, or a model that reads other pictures or
            texts than `config.data` describes.
    """
    name, data = config.options.start, config.data
    model, size, made = open_start(name, config)
    if made is None:
        tokenizer = data.tokenizer if ":" in name else "emoji"
        words, length = getattr(model, "text_limits", (0, 0))
    else:
        tokenizer, words, length = (
            made.data.tokenizer,
            vocabulary_size(made),
            made.data.max_tokens,
        )
    for side in ("encode_image", "encode_text"):
        if getattr(type(model), side, None) in (None, getattr(Method, side)):
            raise ValueError(
                f"options.start={name!r} has no {side}: finetuning needs both towers, as in 'clip' or "
                "in a run of 'contrast'"
            )
    for field, ours, theirs in (
        ("data.image_size", data.image_size, size),
        ("data.tokenizer", data.tokenizer, tokenizer),
        ("the vocabulary size", vocabulary_size(config), words),
        ("data.max_tokens", data.max_tokens, min(data.max_tokens, length)),
    ):
        if ours != theirs:
            raise ValueError(
                f"{field} is {ours!r} here, but options.start={name!r} was made for {theirs!r}; set "
                "the data to that, or choose another start"
            )
    return model


def first_scale(model: Any) -> float:
    """Return the contrast scale that a model's last output was trained at, or CLIP's first one."""
    found = model.scales[-1] if hasattr(model, "scales") else getattr(model, "scale", None)
    value = found.value() if isinstance(found, ContrastScale) else found
    return INITIAL_SCALE if value is None else min(max(float(value), 1.0), MAXIMUM_SCALE)


def _train_what_is_used(model: Any, config: RunConfig) -> None:
    """Let gradients reach the parameters that pictures or captions pass through, and no others."""
    side, length = config.data.image_size, config.data.max_tokens
    model.requires_grad_(True)
    with torch.enable_grad():
        image = model.encode_image(torch.zeros(1, 3, side, side))
        text = model.encode_text(torch.ones(1, length, dtype=torch.int64))
    if not (image.requires_grad and text.requires_grad):
        raise ValueError(
            f"a tower of options.start={config.options.start!r} is its frozen teacher; finetuning "
            "needs two of its own"
        )
    (image.sum() + text.sum()).backward()
    for parameter in model.parameters():
        parameter.requires_grad_(parameter.grad is not None)
        parameter.grad = None


def _check(config: RunConfig) -> None:
    """Stop at options that cannot work."""
    options, source = config.options, config.data.source
    if not 0 < options.smallest_crop <= 1:
        raise ValueError(f"options.smallest_crop={options.smallest_crop} must lie in (0, 1]")
    valid = ARTISTS if source == "emoji" else ("",)
    if options.artist not in valid:
        raise ValueError(
            f"options.artist={options.artist!r} does not go with data.source={source!r}; valid: "
            + ", ".join(map(repr, valid))
        )
