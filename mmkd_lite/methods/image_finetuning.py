"""Finetuning an image encoder on labelled pictures, or only a head upon it (seed 000, Code 1)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch.nn.functional as F
from torch import Tensor

from mmkd_lite.config import RunConfig
from mmkd_lite.data.mixing import Mixing, mix
from mmkd_lite.data.picture_folder import PictureFolder, class_names
from mmkd_lite.methods.base import Batch, Method
from mmkd_lite.methods.soft_labels import LabelledPictures
from mmkd_lite.methods.starts import open_start
from mmkd_lite.methods.towers import start_image_tower
from mmkd_lite.methods.unimodal import pooled
from mmkd_lite.models import ImageEncoder
from mmkd_lite.models.classifier import PooledClassifier
from mmkd_lite.models.evl import image_transformer
from mmkd_lite.teachers import Teacher


@dataclass(frozen=True)
class ImageFinetuningOptions(Mixing):
    """Settings of the finetuning, beside those of the mixing of pictures.

    Attributes:
        start: "" builds the encoder that `image` describes (`image.start` included); otherwise the encoder of
            that model, see `methods.starts.open_start`.
        frozen: train LayerNorm and head only.
        layer_decay: d in (0, 1]: each layer learns d times as fast as the one above it.
        pictures: how many labelled emoji pictures there are; 0 for endless ones.
    """

    start: str = ""
    frozen: bool = False
    layer_decay: float = 0.81
    pictures: int = 2048


def layer_rates(base: float, decay: float, layers: int) -> list[float]:
    r"""Return the learning rate of each layer, from the input (0) to the head (L + 1).

    .. math:: \eta_l = \eta\, d^{\,L + 1 - l}, \qquad l = 0, \dots, L + 1

    Layer 0 is everything before the first block: patch projection, [CLS] and positions.

    Args:
        base: The head's rate.
        decay: d, in (0, 1].
        layers: L, number of Transformer blocks.

    Returns:
        L + 2 rates.

    Raises:
        ValueError: d outside (0, 1], or no layer.

    Source: thesis, table of learning rates (base 1e-3, d = 0.81, L = 6). Derived in
    notebooks/32_probe_and_finetune.ipynb.
    """
    if not 0 < decay <= 1 or layers < 1:
        raise ValueError(
            f"layer_decay={decay} must lie in (0, 1] and layers={layers} be at least 1"
        )
    return [base * decay ** (layers + 1 - layer) for layer in range(layers + 2)]


class ImageFinetuning(Method):
    r"""Finetune an image encoder with a fresh head on labelled pictures; lower layers learn more slowly.

    .. math:: L = -\sum_c y_c \log \mathrm{softmax}\big(W\, LN(\tfrac1N \sum_{i=1}^{N} h_i)\big)_c

    over the N patches of the last layer, with labels y that mixup and cutmix have mixed.

    Source: seed 000, Code 1; thesis, image finetuning. Derived in notebooks/32_probe_and_finetune.ipynb.
    """

    Options = ImageFinetuningOptions
    default_weights: ClassVar[dict[str, float]] = {"cross_entropy": 1.0}
    scored_by = "classes"
    continues = True
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "tiny": {"options.pictures": 64},
        # Three times the rate of the thesis (3e-3 is used), a third of its 15 epochs.
        "laptop": {
            "text.start": "",
            "train.batch_size": 64,
            "train.steps": 160,
            "train.base_lr": 12e-3,
            "train.betas": (0.9, 0.999),
            "train.checkpoint_every": 80,
        },
        # 15 epochs of ImageNet's 1,281,167 pictures; CIFAR: layer_decay 0.75 and 2,925 steps.
        "full": {
            "data.source": "folder",
            "train.batch_size": 256,
            "train.steps": 75060,
            "train.base_lr": 1e-3,
            "train.betas": (0.9, 0.999),
            "train.eps": 1e-8,
        },
    }
    variants: ClassVar[dict[str, dict[str, Any]]] = {
        "finetuned": {},
        "head": {"options.frozen": True},
        "thesis_rate": {"train.base_lr": 4e-3},
        "no_decay": {"options.layer_decay": 1.0},
        "no_mixing": {
            "options.randaugment": "",
            "options.erase": 0.0,
            "options.mix_probability": 0.0,
            "options.label_smoothing": 0.0,
        },
        "distilled": {"options.start": "distill_clip:both"},
        "distilled_head": {"options.start": "distill_clip:both", "options.frozen": True},
        "random": {"image.start": ""},
        "random_head": {"image.start": "", "options.frozen": True},
    }

    def __init__(self, config: RunConfig, teacher: Teacher | None = None) -> None:
        super().__init__(config, None)
        options: ImageFinetuningOptions = config.options
        encoder = _encoder(config)
        classes = _class_count(config)
        self.model = PooledClassifier(encoder, classes, options.frozen)
        layers = encoder.config.layers
        scales = layer_rates(1.0, options.layer_decay, layers)
        below = ("patch_projection", "cls", "positions", "embedding_norm")
        blocks = {f"model.encoder.transformer.blocks.{i}.": scales[i + 1] for i in range(layers)}
        top = {"model.encoder.transformer.final_norm": scales[layers]}
        self.rate_scales = {f"model.encoder.{name}": scales[0] for name in below} | blocks | top

    @classmethod
    def open_data(cls, config: RunConfig) -> MixedPictures:
        """Return the stream of labelled training pictures."""
        return MixedPictures(config)

    def losses(
        self, batch: Batch, targets: dict[str, Tensor], progress: float
    ) -> dict[str, Tensor]:
        """Return `cross_entropy` between the mixed labels and the prediction."""
        return {"cross_entropy": F.cross_entropy(self.model(batch["image"]), batch["shares"])}

    def encode_image(self, images: Tensor) -> Tensor:
        """Map images (B, 3, H, W) in [0, 1] to unit vectors (B, D): the mean of their patches."""
        return F.normalize(self.model.features(images), dim=-1)

    def pooled(self, images: Tensor) -> Tensor:
        """Return (B, 2D): [CLS] beside the mean of the patches."""
        return pooled(self.model.encoder, images)

    def classify(self, images: Tensor) -> Tensor:
        """Return class logits (B, C) of images (B, 3, H, W) in [0, 1]."""
        return self.model(images)


class MixedPictures:
    """Endless labelled pictures, augmented and mixed: `batch` is a pure function of configuration and step."""

    size = None

    def __init__(self, config: RunConfig) -> None:
        self.source: Any = (
            PictureFolder(config.data_dir, "train", config.data.image_size, config.seed)
            if config.data.source == "folder"
            else LabelledPictures(config)
        )
        self.classes, self.how, self.seed = _class_count(config), config.options, config.seed

    def batch(self, step: int, batch_size: int, rank: int = 0, world: int = 1) -> Batch:
        """Return `image` (B, 3, S, S) in [0, 1] and `shares` (B, C), rows summing to 1."""
        drawn = self.source.batch(step, batch_size, rank, world)
        images, shares = mix(
            drawn["image"], drawn["label"], self.classes, self.how, self.seed, step, rank
        )
        return {"image": images, "shares": shares}


def _class_count(config: RunConfig) -> int:
    if config.data.source == "folder":
        return len(class_names(config.data_dir))
    from mmkd_lite.data.emoji import subgroups

    return len(subgroups())


def _encoder(config: RunConfig) -> ImageEncoder:
    if not config.options.start:
        encoder = ImageEncoder(config.image, config.data.image_size)
        start_image_tower(encoder, config.image.start)
        return encoder
    found = image_transformer(open_start(config.options.start, config).model)
    if not isinstance(found, ImageEncoder) or found.image_size != config.data.image_size:
        size = getattr(found, "image_size", "another kind of encoder")
        raise ValueError(
            f"options.start={config.options.start!r} reads pictures of {size}, data.image_size is "
            f"{config.data.image_size}; start from one of our image encoders of that size"
        )
    return found
