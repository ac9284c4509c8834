"""The text encoder: token ids become vectors, then a Transformer reads them under a mask."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mmkd_lite.config import TowerConfig
from mmkd_lite.models.initialise import initialise_weights
from mmkd_lite.models.positions import Positions, sinusoid
from mmkd_lite.models.transformer import Transformer, check_mask


def without_padding_columns(tokens: Tensor, pad_id: int = 0) -> Tensor:
    """Cut the columns that are padding in every row: they cost time and change nothing.

    Args:
        tokens: int64 (B, M), padding last.
        pad_id: token id of padding.

    Returns:
        int64 (B, longest caption).
    """
    if torch.compiler.is_exporting():
        return tokens  # an exported graph cannot depend on values
    return tokens[:, : max(1, int((tokens != pad_id).sum(dim=1).max()))]


class TextEncoder(nn.Module):
    """Token, position and (optionally) token-type embeddings, then a Transformer (eqs 13-15).

    A post-norm tower is BERT: LayerNorm right after the embeddings and none at the end. A pre-norm
    tower has it the other way round. Weights are drawn from the global random state at
    construction; build inside `mmkd_lite.models.seeded(seed)` to get the same ones every time.

    Args:
        config: the tower; `patch` is not read.
        vocab_size: number of token ids.
        max_tokens: longest caption, [CLS] and [SEP] included.
        pad_id: token id of padding; its embedding is zero and gets no gradient.
        token_types: number of segments (2 for BERT); 0 leaves the token-type embedding out.
        final_norm: whether a pre-norm tower ends with its LayerNorm.

    Raises:
        ValueError: an option of `config` is unknown.

    Source: seed 001, eqs 13-15; errata E000-07 (the mask). Derived in
    notebooks/01_representations.ipynb.
    """

    def __init__(
        self,
        config: TowerConfig,
        vocab_size: int,
        max_tokens: int,
        pad_id: int = 0,
        token_types: int = 0,
        final_norm: bool = True,
    ) -> None:
        super().__init__()
        self.config = config
        self.max_tokens = max_tokens
        self.pad_id = pad_id
        self.token_embedding = nn.Embedding(vocab_size, config.width, padding_idx=pad_id)
        first = 0 if config.cls_position else 1
        coordinates = torch.arange(first, max_tokens)
        table = sinusoid(coordinates, config.width)  # (M or M-1, D)
        self.positions = Positions(table, config.positions, config.cls_position)
        self.type_embedding = nn.Embedding(token_types, config.width) if token_types else None
        post_norm = config.norm == "post"
        self.embedding_norm: nn.Module = (
            nn.LayerNorm(config.width, eps=config.layer_norm_eps) if post_norm else nn.Identity()
        )
        self.embedding_dropout = nn.Dropout(config.dropout)
        self.transformer = Transformer(config, final_norm)
        initialise_weights(self)

    def embed(self, tokens: Tensor, type_ids: Tensor | None = None) -> Tensor:
        """Return H_0, the input of the Transformer.

        Args:
            tokens: (B, M) int64, [CLS] first.
            type_ids: (B, M) int64 segment of each token; None means segment 0 throughout.

        Returns:
            (B, M, D).

        Raises:
            ValueError: the captions are longer than `max_tokens`, or type ids are given to an
                encoder without token types.
        """
        if tokens.ndim != 2 or tokens.shape[1] > self.max_tokens:
            raise ValueError(
                f"tokens must be (B, M) with M <= {self.max_tokens}, got {tuple(tokens.shape)}; "
                "truncate the captions or raise max_tokens"
            )
        sequence = self.positions(self.token_embedding(tokens))  # (B, M, D)
        if self.type_embedding is not None:
            segments = torch.zeros_like(tokens) if type_ids is None else type_ids
            sequence = sequence + self.type_embedding(segments)
        elif type_ids is not None:
            raise ValueError("this encoder has no token types; build it with token_types=2")
        return self.embedding_dropout(self.embedding_norm(sequence))

    def forward(
        self,
        tokens: Tensor,
        mask: Tensor | None = None,
        return_hidden: bool = False,
        type_ids: Tensor | None = None,
    ) -> Tensor | tuple[Tensor, list[Tensor]]:
        """Encode captions.

        Args:
            tokens: (B, M) int64 ids.
            mask: (B, M), True or 1 = real token; None means `tokens != pad_id`.
            return_hidden: also return [H_0, ..., H_L] (see `Transformer.hidden_states`).
            type_ids: (B, M) int64 segments, for pairs of sentences.

        Returns:
            H_L (B, M, D), [T_CLS] at index 0 (eq. 15 with l = L); rows at padding mean nothing.
            With `return_hidden` a pair of it and a list of L+1 tensors of that shape.

        Raises:
            ValueError: a row is all padding, or the shapes do not fit.
        """
        sequence = self.embed(tokens, type_ids)
        mask = check_mask(tokens != self.pad_id if mask is None else mask, tokens)
        if not return_hidden:
            return self.transformer(sequence, mask)
        states = self.transformer.hidden_states(sequence, mask)
        return states[-1], states
