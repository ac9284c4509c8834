"""Two-tower models that meet only in their projections: ours, and transformers' CLIP at full size."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmkd_lite.config import TowerConfig
from mmkd_lite.models.fusion import INITIAL_SCALE, Projection
from mmkd_lite.models.image import ImageEncoder
from mmkd_lite.models.initialise import copy_first_layers
from mmkd_lite.models.text import TextEncoder, without_padding_columns

IMAGE_SIZE, VOCABULARY, LENGTH = 224, 49408, 77
MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)
TABLE_B1: dict[str, tuple[TowerConfig, TowerConfig, int]] = {
    "teacher": (
        TowerConfig(width=768, layers=12, heads=12, patch=32),
        TowerConfig(width=512, layers=12, heads=8),
        512,
    ),
    "student": (
        TowerConfig(width=384, layers=12, heads=6, patch=16),
        TowerConfig(width=512, layers=6, heads=8),
        256,
    ),
}
"""Image tower, text tower and projection size; the student's column as reconstructed in errata E003-15."""
LAYER_NAME = re.compile(r"^(.*\b(?:blocks|layers)\.)(\d+)(\..+)$")


class TwoTowers(nn.Module):
    """Base: subclasses give `image_vectors` and `text_vectors`, raw vectors (B, d) in the common space."""

    text_encoder: Any

    def image_vectors(self, images: Tensor) -> Tensor:
        """Map images (B, 3, H, W) in [0, 1] to vectors (B, d), not normalised."""
        raise NotImplementedError

    def text_vectors(self, tokens: Tensor) -> Tensor:
        """Map token ids (B, M) to vectors (B, d), not normalised."""
        raise NotImplementedError

    def features(self, inputs: Tensor) -> Tensor:
        """Return the raw vectors (B, d) of images or of token ids."""
        return self.image_vectors(inputs) if inputs.ndim == 4 else self.text_vectors(inputs)

    def encode_image(self, images: Tensor) -> Tensor:
        """Map images (B, 3, H, W) in [0, 1] to unit vectors (B, d)."""
        return unit(self.image_vectors(images))

    def encode_text(self, tokens: Tensor) -> Tensor:
        """Map token ids (B, M) to unit vectors (B, d)."""
        return unit(self.text_vectors(tokens))


class OwnTowers(TwoTowers):
    """Our two encoders, of any widths, with one projection each.

    Args:
        image_encoder: Read out at [CLS].
        text_encoder: Read out at [CLS].
        space_width: d, size of the common space.

    Source: seed 003, section 3.1; seed 002 (CLIP's two projections). Used in notebooks/19_distillclip.ipynb.
    """

    def __init__(
        self, image_encoder: ImageEncoder, text_encoder: TextEncoder, space_width: int
    ) -> None:
        super().__init__()
        self.image_encoder, self.text_encoder = image_encoder, text_encoder
        self.image_projection = Projection(image_encoder.config.width, space_width)
        self.text_projection = Projection(text_encoder.config.width, space_width)

    @property
    def text_limits(self) -> tuple[int, int]:
        """Number of token ids and longest text."""
        text = self.text_encoder
        return text.token_embedding.num_embeddings, text.max_tokens

    def image_vectors(self, images: Tensor) -> Tensor:
        """Project [CLS] of the image tower."""
        return self.image_projection(self.image_encoder(images)[:, 0])

    def text_vectors(self, tokens: Tensor) -> Tensor:
        """Project [CLS] of the text tower."""
        pad = self.text_encoder.pad_id
        return self.text_projection(self.text_encoder(without_padding_columns(tokens, pad))[:, 0])


class ScaledTowers(OwnTowers):
    """Our two towers with the scale they were contrasted at: the shipped `clip` teacher."""

    def __init__(
        self, image_encoder: ImageEncoder, text_encoder: TextEncoder, space_width: int
    ) -> None:
        super().__init__(image_encoder, text_encoder, space_width)
        self.log_scale = nn.Parameter(torch.tensor(math.log(INITIAL_SCALE)))

    @property
    def scale(self) -> Tensor:
        """The exponentiated logit scale."""
        return self.log_scale.exp()


class PublishedTowers(TwoTowers):
    """A `transformers.CLIPModel` behind the same interface, with CLIP's normalisation of pixels inside.

    Its text tower is causal and read out at the end-of-text token, not at [CLS] (errata E003-14), so padding
    after that token changes nothing.

    Args:
        clip: The CLIPModel.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, clip: Any) -> None:
        super().__init__()
        self.clip = clip
        self.image_size: int = clip.config.vision_config.image_size
        self.register_buffer("mean", torch.tensor(MEAN).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(STD).view(3, 1, 1), persistent=False)

    @property
    def text_encoder(self) -> Any:
        """The text transformer without its projection."""
        return self.clip.text_model

    @property
    def text_limits(self) -> tuple[int, int]:
        """Number of token ids and longest text."""
        config = self.clip.config.text_config
        return config.vocab_size, config.max_position_embeddings

    @property
    def scale(self) -> Tensor:
        """The exponentiated logit scale."""
        return self.clip.logit_scale.exp()

    def image_vectors(self, images: Tensor) -> Tensor:
        """Project the image transformer's pooled [CLS]."""
        pixels = (images - self.mean) / self.std
        return self.clip.visual_projection(self.clip.vision_model(pixels).pooler_output)

    def text_vectors(self, tokens: Tensor) -> Tensor:
        """Project the text transformer's output at the end of the text."""
        return self.clip.text_projection(self.clip.text_model(tokens).pooler_output)


def unit(vectors: Tensor) -> Tensor:
    """Return rows of length 1, in float32 at least: half precision would miss it by more than losses allow."""
    return F.normalize(vectors.to(torch.promote_types(vectors.dtype, torch.float32)), dim=-1)


def build(which: str) -> Any:
    """Return a `transformers.CLIPModel` of Table B.1 with random weights.

    Args:
        which: "teacher" (ViT-B/32, 151.3 M parameters) or "student" (ViT-S/16 and 6 text layers, 66.1 M).

    Raises:
        ValueError: Another name.

    Source: seed 003, Table B.1 with errata E003-03 and E003-15. Derived in notebooks/19_distillclip.ipynb.
    """
    if which not in TABLE_B1:
        raise ValueError(f"Table B.1 has no {which!r}; valid: {', '.join(TABLE_B1)}")
    return clip_model(*TABLE_B1[which])


def clip_model(
    image: TowerConfig,
    text: TowerConfig,
    space_width: int,
    image_size: int = IMAGE_SIZE,
    vocabulary: int = VOCABULARY,
    length: int = LENGTH,
    end_of_text: int | None = None,
) -> Any:
    """Return a `transformers.CLIPModel` of any size with random weights.

    Args:
        image: Width, layers, heads, ratio and patch are read.
        text: Width, layers, heads and ratio are read.
        space_width: d.
        image_size: Side of the pictures in pixels.
        vocabulary: Number of token ids.
        length: Longest text.
        end_of_text: Id at whose first place a text is read out; the last id, as in CLIP, by default.
    """
    from transformers import CLIPConfig, CLIPModel

    def shared(tower: TowerConfig) -> dict[str, Any]:
        return {
            "hidden_size": tower.width,
            "intermediate_size": round(tower.width * tower.mlp_ratio),
            "num_hidden_layers": tower.layers,
            "num_attention_heads": tower.heads,
            "projection_dim": space_width,
        }

    end = vocabulary - 1 if end_of_text is None else end_of_text
    words = {"vocab_size": vocabulary, "max_position_embeddings": length, "eos_token_id": end}
    pixels = {"image_size": image_size, "patch_size": image.patch}
    config = CLIPConfig(
        text_config=shared(text) | words,
        vision_config=shared(image) | pixels,
        projection_dim=space_width,
    )
    return CLIPModel(config)


def load_published(name: str) -> PublishedTowers:
    """Return a published CLIP by hub name or folder.

    Raises:
        OSError: The weights cannot be had here.
    """
    from transformers import CLIPModel

    try:
        return PublishedTowers(CLIPModel.from_pretrained(name))
    except (OSError, ValueError) as error:
        raise OSError(
            f"the weights of {name!r} cannot be loaded here; run once with access to the model hub, pass a folder "
            "with its files (teacher=transformers:FOLDER), or use random ones (teacher=transformers-random:teacher)"
        ) from error


def every_second_layer(state: Mapping[str, Tensor], layers: int) -> dict[str, Tensor]:
    """Keep layers 2, 4, ..., 2 * `layers` (counted from 1) of a tower's weights, as layers 1 to `layers`.

    What is not in a layer is kept. The last kept layer is the teacher's last, so its final norm still fits.

    Raises:
        ValueError: The tower has not exactly twice as many layers.

    Source: seed 003, section 3.2.3 with errata E003-12. Derived in notebooks/19_distillclip.ipynb.
    """
    found = {name: LAYER_NAME.match(name) for name in state}
    depth = max((int(match[2]) + 1 for match in found.values() if match), default=0)
    if depth != 2 * layers:
        raise ValueError(
            f"layer i from the teacher's layer 2i needs a teacher of {2 * layers} layers for text.layers={layers}; "
            f"it has {depth}: set text.layers to half of that, or options.text_start='' for random layers"
        )
    kept = {}
    for name, match in found.items():
        if match is None:
            kept[name] = state[name]
        elif int(match[2]) % 2:  # 1, 3, ... counted from 0
            kept[f"{match[1]}{int(match[2]) // 2}{match[3]}"] = state[name]
    return kept


def start_text(student: TwoTowers, teacher: nn.Module, layers: int) -> None:
    """Give the student's text tower every second layer of the teacher's, and its embeddings.

    Raises:
        ValueError: Depths or widths that do not fit.
    """
    kept = every_second_layer(teacher.state_dict(), layers)
    if isinstance(student, PublishedTowers):
        student.text_encoder.load_state_dict(kept)
    else:
        copy_first_layers(student.text_encoder, kept, layers)


def start_image(student: PublishedTowers, name: str) -> None:
    """Give CLIP's image tower the weights of a timm ViT; see `load_timm_into_clip`.

    Raises:
        OSError: The weights cannot be had here.
    """
    from mmkd_lite.models.classifier import TimmClassifier

    load_timm_into_clip(
        student.clip.vision_model, TimmClassifier(name, pretrained=True).encoder.state_dict()
    )


@torch.no_grad()
def load_timm_into_clip(vision: Any, state: Mapping[str, Tensor]) -> None:
    """Copy a timm ViT of the same shape into transformers' CLIP image tower.

    CLIP has no bias in its patch embedding; timm's is added to the patch positions, which is the same. CLIP's
    LayerNorm before the blocks has no counterpart and stays as it is, and CLIP approximates GELU: the start is
    close to timm's function, not equal.

    Source: seed 003, section 3.2.3 (ImageNet-21k start). Used in notebooks/19_distillclip.ipynb.
    """
    positions = state["pos_embed"][0].clone()  # (1+N, D)
    positions[1:] += state["patch_embed.proj.bias"]
    ours = {
        "embeddings.class_embedding": state["cls_token"].flatten(),
        "embeddings.patch_embedding.weight": state["patch_embed.proj.weight"],
        "embeddings.position_embedding.weight": positions,
    }
    names = {
        "norm1": "layer_norm1",
        "attn.proj": "self_attn.out_proj",
        "norm2": "layer_norm2",
        "mlp.fc1": "mlp.fc1",
        "mlp.fc2": "mlp.fc2",
    }
    for kind in ("weight", "bias"):
        ours[f"post_layernorm.{kind}"] = state[f"norm.{kind}"]
        for layer in range(len(vision.encoder.layers)):
            to, of = f"encoder.layers.{layer}", f"blocks.{layer}"
            for theirs, name in names.items():
                ours[f"{to}.{name}.{kind}"] = state[f"{of}.{theirs}.{kind}"]
            parts = state[f"{of}.attn.qkv.{kind}"].chunk(3)
            for part, values in zip("qkv", parts, strict=True):
                ours[f"{to}.self_attn.{part}_proj.{kind}"] = values
    vision.load_state_dict({**vision.state_dict(), **ours})
