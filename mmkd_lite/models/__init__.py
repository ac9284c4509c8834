"""Encoders and shared parts; everything a method is assembled from."""

from mmkd_lite.models.bank import Bank
from mmkd_lite.models.convert import load_bert, load_timm_vit
from mmkd_lite.models.evl import EVLDecoder, FrameBackbone, FrameFeatures
from mmkd_lite.models.fusion import (
    ContrastScale,
    Projection,
    SharedMLP,
    SharedOutput,
    SharedTransformer,
)
from mmkd_lite.models.image import ImageEncoder, patchify
from mmkd_lite.models.initialise import (
    CopyReport,
    copy_first_layers,
    initialise_weights,
    seeded,
)
from mmkd_lite.models.quantizer import Codebook, ImageQuantizer
from mmkd_lite.models.shared_space import Encoded, SharedSpace
from mmkd_lite.models.text import TextEncoder, without_padding_columns
from mmkd_lite.models.transformer import (
    FeedForward,
    MultiHeadAttention,
    PostNormBlock,
    PreNormBlock,
    Transformer,
)

__all__ = [
    "Bank",
    "Codebook",
    "ContrastScale",
    "CopyReport",
    "EVLDecoder",
    "Encoded",
    "FeedForward",
    "FrameBackbone",
    "FrameFeatures",
    "ImageEncoder",
    "ImageQuantizer",
    "MultiHeadAttention",
    "PostNormBlock",
    "PreNormBlock",
    "Projection",
    "SharedMLP",
    "SharedOutput",
    "SharedSpace",
    "SharedTransformer",
    "TextEncoder",
    "Transformer",
    "copy_first_layers",
    "initialise_weights",
    "load_bert",
    "load_timm_vit",
    "patchify",
    "seeded",
    "without_padding_columns",
]
