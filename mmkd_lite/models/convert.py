"""Read the weights of timm's ViT and of transformers' BERT into our encoders."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from mmkd_lite.models.image import ImageEncoder
from mmkd_lite.models.text import TextEncoder

TIMM_BLOCK = {
    "norm1": "attention_norm",
    "attn.qkv": "attention.query_key_value",
    "attn.proj": "attention.output",
    "norm2": "feed_forward_norm",
    "mlp.fc1": "feed_forward.expand",
    "mlp.fc2": "feed_forward.contract",
}
BERT_BLOCK = {
    "attention.output.dense": "attention.output",
    "attention.output.LayerNorm": "attention_norm",
    "intermediate.dense": "feed_forward.expand",
    "output.dense": "feed_forward.contract",
    "output.LayerNorm": "feed_forward_norm",
}


def load_timm_vit(encoder: ImageEncoder, state: Mapping[str, Tensor]) -> None:
    """Copy a timm Vision Transformer, e.g. `vit_base_patch16_224`, or its first blocks.

    The classification head is ignored. If our encoder has no position for [CLS] (eq. 9), timm's is
    added to the [CLS] vector: both only ever occur as their sum. With as many blocks as timm's
    model the final LayerNorm is timm's; with fewer it stays as it is, since it belongs to the last
    block.

    Args:
        encoder: pre-norm, with learned positions, or with fixed ones equal to timm's; changed in place.
        state: `state_dict` of the timm model.

    Raises:
        ValueError: the encoder is of another kind, or a tensor is missing or of another shape.

    Source: seed 001, "Image Representation" (ViT-B/16); errata E001-10.
    Derived in notebooks/01_representations.ipynb.
    """
    config = encoder.config
    positions = _get(state, "pos_embed")[0]  # (1+N, D)
    table = encoder.positions.table
    fixed = positions[-len(table) :]
    same = fixed.shape == table.shape and torch.allclose(fixed, table, atol=1e-3)
    if config.norm != "pre" or (config.positions == "fixed" and not same):
        raise ValueError(
            "timm's ViT needs an encoder with norm='pre' and positions='learned'; 'fixed' will do where the "
            "given ones are the sinusoids, as those of masked autoencoders"
        )
    cls = _get(state, "cls_token").flatten()  # (D,)
    kernel = _get(state, "patch_embed.proj.weight")  # (D, 3, P, P)
    ours = {
        "cls": cls if config.cls_position else cls + positions[0],
        "positions.table": positions if config.cls_position else positions[1:],
        "patch_projection.weight": kernel.flatten(1),  # (D, 3 P P), colour by colour as patchify
        "patch_projection.bias": _get(state, "patch_embed.proj.bias"),
    }
    if config.positions == "fixed":
        del ours["positions.table"]
    for layer in range(config.layers):
        ours |= _renamed(state, f"blocks.{layer}.", TIMM_BLOCK, layer)
    if f"blocks.{config.layers}.norm1.weight" not in state:
        for kind in ("weight", "bias"):
            ours[f"transformer.final_norm.{kind}"] = _get(state, f"norm.{kind}")
    _load(encoder, ours)


def load_bert(encoder: TextEncoder, state: Mapping[str, Tensor], cls_id: int | None = None) -> None:
    """Copy a transformers `BertModel`, or its first blocks.

    The pooler is ignored. The encoder's position table may be shorter than BERT's. If our encoder
    has no position for [CLS] (eq. 14), BERT's first one is added to the embedding of the token
    [CLS].

    Args:
        encoder: post-norm, with learned positions and two token types; changed in place.
        state: `state_dict` of the BertModel.
        cls_id: token id of [CLS]; needed only without a position for it.

    Raises:
        ValueError: the encoder is of another kind, or a tensor is missing or of another shape.

    Source: seed 001, "Text Representation"; errata E001-10, E001-11.
    Derived in notebooks/01_representations.ipynb.
    """
    config = encoder.config
    if config.norm != "post" or config.positions != "learned":
        raise ValueError("BERT needs an encoder with norm='post' and positions='learned'")
    words = _get(state, "embeddings.word_embeddings.weight")  # (V, D)
    positions = _get(state, "embeddings.position_embeddings.weight")[: encoder.max_tokens]  # (M, D)
    if not config.cls_position:
        if cls_id is None:
            raise ValueError("an encoder without a position for [CLS] needs cls_id, e.g. 101")
        words = words.clone()
        words[cls_id] += positions[0]
        positions = positions[1:]
    ours = {
        "token_embedding.weight": words,
        "positions.table": positions,
        "type_embedding.weight": _get(state, "embeddings.token_type_embeddings.weight"),
        "embedding_norm.weight": _get(state, "embeddings.LayerNorm.weight"),
        "embedding_norm.bias": _get(state, "embeddings.LayerNorm.bias"),
    }
    for layer in range(config.layers):
        prefix = f"encoder.layer.{layer}."
        ours |= _renamed(state, prefix, BERT_BLOCK, layer)
        for kind in ("weight", "bias"):
            parts = [
                _get(state, f"{prefix}attention.self.{part}.{kind}")
                for part in ("query", "key", "value")
            ]
            ours[f"transformer.blocks.{layer}.attention.query_key_value.{kind}"] = torch.cat(parts)
    _load(encoder, ours)


def _renamed(
    state: Mapping[str, Tensor], prefix: str, names: Mapping[str, str], layer: int
) -> dict[str, Tensor]:
    return {
        f"transformer.blocks.{layer}.{own}.{kind}": _get(state, f"{prefix}{theirs}.{kind}")
        for theirs, own in names.items()
        for kind in ("weight", "bias")
    }


def _get(state: Mapping[str, Tensor], name: str) -> Tensor:
    if name not in state:
        raise ValueError(f"the given weights lack {name!r}; is it another model, or too shallow?")
    return state[name]


def _load(encoder: ImageEncoder | TextEncoder, ours: Mapping[str, Tensor]) -> None:
    own = encoder.state_dict()
    for name, tensor in ours.items():
        if name not in own or own[name].shape != tensor.shape:
            shape = tuple(own[name].shape) if name in own else "absent"
            raise ValueError(
                f"{name} has shape {tuple(tensor.shape)} in the given weights, but in the encoder "
                f"{shape}; build that with the same width, patch, picture size and vocabulary"
            )
    encoder.load_state_dict({**own, **ours})
