"""Encoders with a prediction head: what the supervised teachers and the masked-word teacher are made of."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmkd_lite.config import TowerConfig
from mmkd_lite.models.image import ImageEncoder
from mmkd_lite.models.initialise import initialise_weights
from mmkd_lite.models.text import TextEncoder


class ImageClassifier(nn.Module):
    """Our image encoder with a linear head on [CLS].

    Args:
        tower: the encoder's configuration.
        image_size: side of the pictures in pixels.
        classes: number of classes C.

    Shape:
        - images: (B, 3, H, W) in [0, 1]
        - returns: class logits (B, C); `features` returns [CLS] (B, D)

    Source: seed 001, eqs 8-17, with the head of seed 000 Code 1. Used in notebooks/05_teachers.ipynb.
    """

    def __init__(self, tower: TowerConfig, image_size: int, classes: int) -> None:
        super().__init__()
        self.encoder = ImageEncoder(tower, image_size)
        self.head = nn.Linear(tower.width, classes)

    def features(self, images: Tensor) -> Tensor:
        """Return [CLS] (B, D)."""
        return self.encoder(images)[:, 0]

    def forward(self, images: Tensor) -> Tensor:
        """Return class logits (B, C)."""
        return self.head(self.features(images))


class PooledClassifier(nn.Module):
    """Our image encoder with the mean of its patches, LayerNorm and a linear head (Code 1).

    Args:
        encoder: the encoder; its [CLS] is dropped.
        classes: number of classes C.
        frozen: whether the encoder runs in eval mode and without a gradient.

    Shape:
        - images: (B, 3, H, W) in [0, 1]
        - returns: class logits (B, C)

    Source: seed 000, Code 1. Derived in notebooks/32_probe_and_finetune.ipynb.
    """

    def __init__(self, encoder: ImageEncoder, classes: int, frozen: bool = False) -> None:
        super().__init__()
        self.encoder, self.frozen = encoder, frozen
        self.norm = nn.LayerNorm(encoder.config.width, eps=encoder.config.layer_norm_eps)
        self.head = nn.Linear(encoder.config.width, classes)
        initialise_weights(self.head)
        encoder.requires_grad_(not frozen)

    def train(self, mode: bool = True) -> PooledClassifier:
        """Set the mode; a frozen encoder stays in eval mode."""
        super().train(mode)
        if self.frozen:
            self.encoder.eval()
        return self

    def features(self, images: Tensor) -> Tensor:
        """Return the mean of the patches (B, D)."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
            return self.encoder(images)[:, 1:].mean(dim=1)

    def forward(self, images: Tensor) -> Tensor:
        """Return class logits (B, C)."""
        return self.head(self.norm(self.features(images)))


class HeadlessImageModel(nn.Module):
    """Our image encoder alone, behind the interface of the classifiers: a self-supervised teacher.

    Args:
        tower: the encoder's configuration.
        image_size: side of the pictures in pixels.

    Shape:
        - images: (B, 3, H, W) in [0, 1]
        - returns: [CLS] (B, D), as `features` does

    Used in notebooks/05_teachers.ipynb.
    """

    def __init__(self, tower: TowerConfig, image_size: int) -> None:
        super().__init__()
        self.encoder = ImageEncoder(tower, image_size)

    def features(self, images: Tensor) -> Tensor:
        """Return [CLS] (B, D)."""
        return self.encoder(images)[:, 0]

    def forward(self, images: Tensor) -> Tensor:
        """Return [CLS] (B, D)."""
        return self.features(images)


class TimmClassifier(nn.Module):
    """A classifier from timm behind the same interface, with its own normalisation inside.

    Args:
        name: timm model name, e.g. "test_resnet" or "resnet50.a1_in1k".
        classes: number of classes C; 0 keeps the model's own.
        pretrained: load timm's published weights; needs the model hub.

    Raises:
        OSError: the pretrained weights cannot be had on this machine.
    """

    encoder: Any
    mean: Tensor
    std: Tensor

    def __init__(self, name: str, classes: int = 0, pretrained: bool = False) -> None:
        super().__init__()
        import timm

        try:
            settings: dict[str, Any] = {"num_classes": classes} if classes else {}
            self.encoder = timm.create_model(name, pretrained=pretrained, **settings)
        except Exception as error:
            if not pretrained:
                raise ValueError(f"timm cannot build {name!r}: {error}") from error
            raise OSError(
                f"the pretrained weights of timm's {name!r} cannot be downloaded here ({type(error).__name__}); "
                f"run once on a machine with access to the model hub, or use teacher=timm-random:{name} "
                "for the architecture with random weights"
            ) from error
        config: Any = self.encoder.pretrained_cfg
        self.register_buffer("mean", torch.tensor(config["mean"]).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(config["std"]).view(3, 1, 1), persistent=False)

    def features(self, images: Tensor) -> Tensor:
        """Return pooled features (B, D) before the classifier."""
        hidden = self.encoder.forward_features((images - self.mean) / self.std)
        return self.encoder.forward_head(hidden, pre_logits=True)

    def forward(self, images: Tensor) -> Tensor:
        """Return class logits (B, C)."""
        return self.encoder((images - self.mean) / self.std)


class MaskedWordModel(nn.Module):
    """Our text encoder with BERT's masked-word head; the output matrix is the token embedding.

    Args:
        tower: the encoder's configuration.
        vocab_size: number of token ids V.
        max_tokens: length limit.

    Shape:
        - tokens: (B, M) int64
        - returns: logits (B, M, V); `features` returns [CLS] (B, D)

    Source: seed 001, eqs 13-17; Devlin et al. 2019, section 3.1. Used in notebooks/05_teachers.ipynb.
    """

    def __init__(self, tower: TowerConfig, vocab_size: int, max_tokens: int) -> None:
        super().__init__()
        self.encoder = TextEncoder(tower, vocab_size, max_tokens)
        self.transform = nn.Sequential(
            nn.Linear(tower.width, tower.width),
            nn.GELU(),
            nn.LayerNorm(tower.width, eps=tower.layer_norm_eps),
        )
        self.bias = nn.Parameter(torch.zeros(vocab_size))

    def features(self, tokens: Tensor) -> Tensor:
        """Return [CLS] (B, D)."""
        return self.encoder(tokens)[:, 0]

    def forward(self, tokens: Tensor) -> Tensor:
        """Return logits over the vocabulary for every position (B, M, V)."""
        return self.predict(self.encoder(tokens))

    def predict(self, hidden: Tensor) -> Tensor:
        """Map hidden states (..., D) to vocabulary logits (..., V)."""
        return F.linear(self.transform(hidden), self.encoder.token_embedding.weight, self.bias)
