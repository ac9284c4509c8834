"""Unimodal distillation: a student with half of its teacher's layers regresses the teacher's hidden states."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmkd_lite.config import RunConfig, TowerConfig
from mmkd_lite.losses import hidden_state_distillation
from mmkd_lite.losses.hidden_states import average_of_layers
from mmkd_lite.methods.base import Batch, Method
from mmkd_lite.methods.towers import start_image_tower, start_text_tower, vocabulary_size
from mmkd_lite.models import ImageEncoder, TextEncoder, copy_first_layers, initialise_weights
from mmkd_lite.models.clip import every_second_layer
from mmkd_lite.teachers import Teacher

STARTS = ("first_half", "every_second", "random")
TARGETS = ("mean", "cls")
PADDING = ("excluded", "counted")


@dataclass(frozen=True)
class UnimodalOptions:
    """Settings of unimodal distillation.

    Attributes:
        start: "first_half" of the teacher's layers, "every_second" of them (2, 4, ...), or "random".
        target: "mean" over layers of instance-normalised states of all tokens, or "cls" of the last layer.
        embedding_output: count the embedding output H_0 as a layer (errata ET-32).
        padding: "excluded", or "counted" as the printed 1/(M+2) does; texts only.
        adapter: map the student's states to the teacher's width by a trained linear layer.
        teacher_layers: with teacher="" the teacher is a tower like the student's, of so many layers ...
        teacher_start: ... with these weights: "", "timm:NAME" (images) or "transformers:NAME" (texts).
    """

    start: str = "first_half"
    target: str = "mean"
    embedding_output: bool = False
    padding: str = "excluded"
    adapter: bool = False
    teacher_layers: int = 0
    teacher_start: str = ""


class EncoderOnly(nn.Module):
    """An encoder without a head, behind the interface of the shipped teachers."""

    def __init__(self, encoder: ImageEncoder | TextEncoder) -> None:
        super().__init__()
        self.encoder = encoder

    def features(self, inputs: Tensor) -> Tensor:
        """Return [CLS] (B, D)."""
        return self.encoder(inputs)[:, 0]


class Unimodal(Method):
    """What images and texts have in common; `UnimodalImage` and `UnimodalText` are the methods.

    `encode` returns the last [CLS] at unit length; `pooled` is what probes are trained on.
    """

    Options = UnimodalOptions
    default_weights: ClassVar[dict[str, float]] = {"hidden_states": 1.0}
    side: ClassVar[str]
    entry: ClassVar[str]
    adapter: nn.Module | None
    teacher: Teacher

    def __init__(self, config: RunConfig, teacher: Teacher | None) -> None:
        options: UnimodalOptions = config.options
        _check_options(options)
        super().__init__(config, teacher or self._own_teacher(config))
        self.encoder = self._encoder(config, getattr(config, self.side))
        guide = self.teacher.model.encoder
        if not isinstance(guide, type(self.encoder)):
            raise ValueError(
                f"teacher {self.teacher.name!r} has no {self.side} encoder with hidden states; use e.g. "
                f"{self.default_teacher}"
            )
        self._check_same_inputs(guide)
        ours, theirs = self.encoder.config, guide.config
        self.adapter = None
        if options.adapter:
            self.adapter = nn.Linear(ours.width, theirs.width)
            initialise_weights(self.adapter)
        elif ours.width != theirs.width:
            raise ValueError(
                f"{self.side}.width={ours.width} but the teacher's width is {theirs.width}: use the same, or "
                "options.adapter=true with options.start=random"
            )
        if options.start != "random":
            self._start_from(guide)

    def _start_from(self, guide: ImageEncoder | TextEncoder) -> None:
        ours, theirs = self.encoder.config, guide.config
        if theirs.layers != 2 * ours.layers:
            raise ValueError(
                f"options.start={self.config.options.start!r} needs half of the teacher's layers, got {self.side}."
                f"layers={ours.layers} and a teacher of {theirs.layers}; halve these or use options.start=random"
            )
        if theirs.width != ours.width:
            raise ValueError(
                f"{self.side}.width={ours.width} cannot start from layers of width {theirs.width}; "
                "use options.start=random"
            )
        state = dict(guide.state_dict())
        if self.config.options.start == "every_second":
            state = every_second_layer(state, ours.layers)
        copy_first_layers(self.encoder, state, ours.layers)

    def _own_teacher(self, config: RunConfig) -> Teacher:
        layers, start = config.options.teacher_layers, config.options.teacher_start
        if layers < 1:
            raise ValueError(
                f"{config.method} needs a teacher: give one by name, or options.teacher_layers >= 1"
            )
        tower = dataclasses.replace(getattr(config, self.side), layers=layers)
        encoder = self._encoder(config, tower)
        (start_image_tower if self.side == "image" else start_text_tower)(encoder, start)
        name = start or f"random tower of {layers} layers"
        return Teacher(name, EncoderOnly(encoder), image_size=config.data.image_size)

    def _encoder(self, config: RunConfig, tower: TowerConfig) -> Any:
        raise NotImplementedError

    def _check_same_inputs(self, guide: Any) -> None:
        raise NotImplementedError

    def inputs(self, batch: Batch) -> tuple[Tensor, Tensor | None]:
        """Return what both encoders read, and which tokens count; None for all."""
        return batch[self.entry], None

    def summary(
        self, encoder: Any, inputs: Tensor, mask: Tensor | None, adapter: nn.Module | None = None
    ) -> Tensor:
        """Return what is compared: (B, T, D), or (B, 1, D) for target "cls"."""
        options: UnimodalOptions = self.config.options
        _, states = encoder(inputs, return_hidden=True)
        if adapter is not None:
            states = [adapter(state) for state in states]
        image = self.side == "image"
        if options.target == "cls":
            cls = states[-1][:, :1]
            return F.layer_norm(cls, cls.shape[-1:]) if image else cls
        kept = states if options.embedding_output else states[1:]
        return average_of_layers(kept, mask, layer_norm=image)

    def targets(self, batch: Batch) -> dict[str, Tensor]:
        """Return the teacher's side (B, T, D) for the same inputs."""
        return {"hidden": self.summary(self.teacher.model.encoder, *self.inputs(batch))}

    def losses(
        self, batch: Batch, targets: dict[str, Tensor], progress: float
    ) -> dict[str, Tensor]:
        """Return `hidden_states`, the squared error over the tokens that count."""
        inputs, mask = self.inputs(batch)
        student = self.summary(self.encoder, inputs, mask, self.adapter)
        mask = None if self.config.options.target == "cls" else mask
        return {"hidden_states": hidden_state_distillation(student, targets["hidden"], mask)}

    def pooled(self, inputs: Tensor) -> Tensor:
        """Return (B, 2D): the last layer's [CLS] beside the mean of its other valid tokens."""
        return pooled(self.encoder, inputs)


def pooled(encoder: ImageEncoder | TextEncoder, inputs: Tensor) -> Tensor:
    """Return (B, 2D): [CLS] beside the mean of the other valid tokens, for images or token ids."""
    states = encoder(inputs)
    assert isinstance(states, Tensor)
    weight = torch.ones_like(states[:, 1:, :1])
    if isinstance(encoder, TextEncoder):
        real: Tensor = inputs[:, 1:].ne(encoder.pad_id)
        weight = real.unsqueeze(-1).to(states)
    mean = (states[:, 1:] * weight).sum(dim=1) / weight.sum(dim=1)
    return torch.cat([states[:, 0], mean], dim=1)


class UnimodalImage(Unimodal):
    r"""Distil an image encoder into one with half of its layers, without labels or captions.

    .. math:: L = \mathrm{MSE}\Big(\mathrm{LN}\big(\tfrac1L \textstyle\sum_l \mathrm{IN}(H^s_l)\big),
              \mathrm{LN}\big(\tfrac1{L'} \sum_l \mathrm{IN}(H^t_l)\big)\Big)

    `IN` normalises each channel over the tokens, `LN` each token over the channels, without parameters.
    `H_L` includes the final LayerNorm, where an encoder has one.

    Source: methods.md 1 with errata ET-16, -32, -34. Derived in notebooks/10_unimodal_distillation.ipynb.
    """

    default_teacher = "vit"
    scored_by = "pictures"
    side, entry = "image", "image"
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "tiny": {"data.image_size": 48, "image.width": 96, "image.layers": 3, "image.start": ""},
        "laptop": {
            "image.start": "",
            "train.batch_size": 64,
            "train.steps": 200,
            "train.base_lr": 8e-3,
            "train.checkpoint_every": 100,
        },
        # Thesis, DistilData2Vec2: 10 epochs of ImageNet-1K in batches of 256, base lr 5e-4 (not the
        # table's 1e-4). The masked autoencoder has the same fixed positions as Data2Vec2.
        "full": {
            "teacher": "",
            "options.teacher_layers": 12,
            "options.teacher_start": "timm:vit_base_patch16_224.mae",
            "train.steps": 50040,
            "train.base_lr": 5e-4,
        },
    }
    variants: ClassVar[dict[str, dict[str, Any]]] = {
        "first_half": {},
        "every_second": {"options.start": "every_second"},
        "random": {"options.start": "random"},
        "cls_target": {"options.target": "cls"},
    }

    @classmethod
    def open_data(cls, config: RunConfig) -> Any:
        """Return emoji scenes drawn by the seed: a student that starts from its teacher has no other chance in it."""
        from mmkd_lite.data.pairs import RecycledEmojiPairs

        if config.data.source != "emoji":
            return super().open_data(config)
        # Far more than a laptop run sees, and no order too long to be drawn anew for every batch.
        scenes = min(8 * config.train.steps * config.train.batch_size, 2**20)
        return RecycledEmojiPairs(config.data, config.seed, scenes=scenes)

    def _encoder(self, config: RunConfig, tower: TowerConfig) -> ImageEncoder:
        return ImageEncoder(tower, config.data.image_size)

    def _check_same_inputs(self, guide: Any) -> None:
        config = self.config
        refuse_other("data.image_size", config.data.image_size, guide.image_size)
        refuse_other("image.patch", config.image.patch, guide.config.patch)

    def encode_image(self, images: Tensor) -> Tensor:
        """Map images (B, 3, H, W) in [0, 1] to the last [CLS] at unit length (B, D)."""
        return F.normalize(self.encoder(images)[:, 0], dim=-1)


class UnimodalText(Unimodal):
    r"""Distil a text encoder into one with half of its layers, over real tokens only.

    .. math:: L = \frac{1}{D \sum m} \sum_{bt} m_{bt} \Big\| \tfrac1L \sum_l \mathrm{IN}_m(H^s_l)_{bt} -
              \tfrac1{L'} \sum_l \mathrm{IN}_m(H^t_l)_{bt} \Big\|^2

    `m` is 1 for real tokens and 0 for padding; `IN_m` takes mean and variance over real tokens.

    Source: methods.md 2 with errata ET-07, -32; E000-07. Derived in notebooks/10_unimodal_distillation.ipynb.
    """

    default_teacher = "text"
    scored_by = "captions"
    side, entry = "text", "tokens"
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "tiny": {"text.width": 96, "text.layers": 3, "text.start": ""},
        "laptop": {**UnimodalImage.presets["laptop"], "text.start": ""},
        # Thesis, F-DistilBERT: one epoch of OpenWebText (13 M slices of 256 tokens) in batches of 256;
        # here BERT's 64-token captions of `data.source`, since this package reads no running text.
        "full": {
            "teacher": "",
            "text.start": "",
            "options.teacher_layers": 12,
            "options.teacher_start": "transformers:bert-base-uncased",
            "train.steps": 50781,
            "train.base_lr": 5e-4,
        },
    }
    variants: ClassVar[dict[str, dict[str, Any]]] = {
        "first_half": {},
        "every_second": {"options.start": "every_second"},
        "random": {"options.start": "random"},
        "padding": {"options.padding": "counted"},
        "short": {"data.max_tokens": 8, "text.max_positions": 32},
        "cls_target": {"options.target": "cls"},
    }

    def _encoder(self, config: RunConfig, tower: TowerConfig) -> TextEncoder:
        length = tower.max_positions or config.data.max_tokens
        return TextEncoder(tower, vocabulary_size(config), length, token_types=tower.token_types)

    def _check_same_inputs(self, guide: Any) -> None:
        known = guide.token_embedding.num_embeddings
        refuse_other("the vocabulary size", vocabulary_size(self.config), known)
        if self.config.data.max_tokens > guide.max_tokens:
            refuse_other("data.max_tokens", self.config.data.max_tokens, guide.max_tokens)

    def inputs(self, batch: Batch) -> tuple[Tensor, Tensor | None]:
        """Return token ids (B, M) and where they are real; padding counts where the option says so."""
        tokens = batch["tokens"]
        counted = self.config.options.padding == "counted"
        return tokens, None if counted else tokens != self.encoder.pad_id

    def encode_text(self, tokens: Tensor) -> Tensor:
        """Map token ids (B, M) to the last [CLS] at unit length (B, D)."""
        return F.normalize(self.encoder(tokens)[:, 0], dim=-1)


def refuse_other(name: str, ours: int, theirs: int) -> None:
    """Stop where student and teacher do not read the same inputs.

    Raises:
        ValueError: naming both values.
    """
    if ours != theirs:
        raise ValueError(
            f"{name} is {ours} for the student but {theirs} for the teacher: they must see the same inputs"
        )


def _check_options(options: UnimodalOptions) -> None:
    for name, valid in (("start", STARTS), ("target", TARGETS), ("padding", PADDING)):
        if getattr(options, name) not in valid:
            raise ValueError(
                f"options.{name}={getattr(options, name)!r} must be one of: {', '.join(valid)}"
            )
