"""The Transformer of both towers and of the shared block (seed 001, eqs 16-17, Figure 2).

Conventions: sequences are (B, T, D) with batch B, tokens T and width D; a mask is (B, T) with True
for a real token and False for padding. Padding is never attended to; its own output rows mean
nothing.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmkd_lite.config import TowerConfig


def written_out_attention(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Return softmax(Q K' / sqrt(d)) V and the softmax, term by term.

    The package trains with PyTorch's fused kernel; this is the readable twin that tests compare it
    with and that pictures of attention are made from.

    Args:
        query: (..., T, d).
        key: (..., S, d).
        value: (..., S, d).
        mask: bool, broadcastable to (..., T, S); False forbids looking there.

    Returns:
        The mixed values (..., T, d) and the weights (..., T, S), whose rows sum to 1.

    Source: seed 001, eq. 16 (MHA "following the original Transformer").
    Derived in notebooks/03_transformer_block.ipynb.
    """
    scores = query @ key.transpose(-2, -1) / math.sqrt(query.shape[-1])  # (..., T, S)
    if mask is not None:
        scores = scores.masked_fill(~mask, float("-inf"))
    weights = scores.softmax(dim=-1)
    return weights @ value, weights


class MultiHeadAttention(nn.Module):
    """Self-attention in which each of `heads` slices of the width looks for itself.

    Args:
        width: D, divisible by `heads`.
        heads: number of heads; each has d = D / heads dimensions.
        dropout: probability of dropping an attention weight and an output element, in [0, 1).

    Raises:
        ValueError: `heads` does not divide `width`.

    Source: seed 001, eq. 16. Derived in notebooks/03_transformer_block.ipynb.
    """

    def __init__(self, width: int, heads: int, dropout: float = 0.0) -> None:
        super().__init__()
        if width % heads:
            raise ValueError(f"heads={heads} does not divide width={width}; choose a divisor")
        self.heads = heads
        self.dropout = dropout
        self.query_key_value = nn.Linear(width, 3 * width)
        self.output = nn.Linear(width, width)
        self.output_dropout = nn.Dropout(dropout)

    def forward(self, sequence: Tensor, mask: Tensor | None = None) -> Tensor:
        """Mix every token with the real tokens of its sequence.

        Args:
            sequence: (B, T, D).
            mask: (B, T) bool, True = real token; None means that all are real.

        Returns:
            (B, T, D).
        """
        query, key, value = self.split_heads(sequence)
        mixed = F.scaled_dot_product_attention(
            query,
            key,
            value,
            attn_mask=None if mask is None else mask[:, None, None, :],
            dropout_p=self.dropout if self.training else 0.0,
        )  # (B, heads, T, d)
        joined = mixed.transpose(1, 2).flatten(2)  # (B, T, D)
        return self.output_dropout(self.output(joined))

    def split_heads(self, sequence: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Project (B, T, D) to queries, keys and values, each (B, heads, T, d)."""
        batch, tokens, width = sequence.shape
        projected = self.query_key_value(sequence)  # (B, T, 3D)
        split = projected.view(batch, tokens, 3, self.heads, width // self.heads)
        query, key, value = split.permute(2, 0, 3, 1, 4)  # each (B, heads, T, d)
        return query, key, value

    def attention_weights(self, sequence: Tensor, mask: Tensor | None = None) -> Tensor:
        """Return who looks where, (B, heads, T, T), rows sum to 1; for pictures, not training."""
        query, key, value = self.split_heads(sequence)
        wide_mask = None if mask is None else mask[:, None, None, :]
        return written_out_attention(query, key, value, wide_mask)[1]


class FeedForward(nn.Module):
    """Linear, GELU, Linear, applied to every token alone (the FFN of eq. 17).

    Args:
        width: D.
        hidden: size between the two layers, usually 4 D.
        dropout: probability of dropping an output element.

    Source: seed 001, eq. 17, with the GELU that the thesis uses (errata E001-11).
    Derived in notebooks/03_transformer_block.ipynb.
    """

    def __init__(self, width: int, hidden: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.expand = nn.Linear(width, hidden)
        self.contract = nn.Linear(hidden, width)
        self.output_dropout = nn.Dropout(dropout)

    def forward(self, sequence: Tensor) -> Tensor:
        """Map (..., D) to (..., D)."""
        return self.after_expand(self.expand(sequence))

    def after_expand(self, pre_activation: Tensor) -> Tensor:
        """Finish the network from the output (..., hidden) of its first layer."""
        return self.output_dropout(self.contract(F.gelu(pre_activation)))


class _Block(nn.Module):
    """Parts that both orders of LayerNorm share; 12 D^2 + 13 D parameters when hidden = 4 D."""

    def __init__(
        self,
        width: int,
        heads: int,
        hidden: int,
        layer_norm_eps: float = 1e-6,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(width, eps=layer_norm_eps)
        self.attention = MultiHeadAttention(width, heads, dropout)
        self.feed_forward_norm = nn.LayerNorm(width, eps=layer_norm_eps)
        self.feed_forward = FeedForward(width, hidden, dropout)


class PreNormBlock(_Block):
    """H' = MHA(LN(H)) + H, then FFN(LN(H')) + H' (eqs 16-17; Figure 2b).

    The sum is never normalised, so a stack of these needs a LayerNorm at its end (errata E001-11).

    Source: seed 001, eqs 16-17. Derived in notebooks/03_transformer_block.ipynb.
    """

    def forward(self, sequence: Tensor, mask: Tensor | None = None) -> Tensor:
        """Map (B, T, D) and a (B, T) mask to (B, T, D)."""
        attended = self.attend(sequence, mask)
        return self.feed_forward(self.feed_forward_norm(attended)) + attended

    def attend(self, sequence: Tensor, mask: Tensor | None = None) -> Tensor:
        """Return H' of eq. 16, the first half of the block."""
        return self.attention(self.attention_norm(sequence), mask) + sequence


class PostNormBlock(_Block):
    """H' = LN(MHA(H) + H), then LN(FFN(H') + H') (Figure 2a; BERT).

    Source: seed 001, Figure 2a. Derived in notebooks/03_transformer_block.ipynb.
    """

    def forward(self, sequence: Tensor, mask: Tensor | None = None) -> Tensor:
        """Map (B, T, D) and a (B, T) mask to (B, T, D)."""
        attended = self.attention_norm(self.attention(sequence, mask) + sequence)
        return self.feed_forward_norm(self.feed_forward(attended) + attended)


class Transformer(nn.Module):
    """L blocks on top of each other; a pre-norm stack ends with a LayerNorm.

    Args:
        config: width, layers, heads, mlp_ratio, norm, layer_norm_eps and dropout are read.
        final_norm: whether a pre-norm stack ends with its LayerNorm; a post-norm one never has it.

    Raises:
        ValueError: `config.norm` is neither "pre" nor "post".

    Source: seed 001, eqs 10-12 and 16-17. Derived in notebooks/03_transformer_block.ipynb.
    """

    def __init__(self, config: TowerConfig, final_norm: bool = True) -> None:
        super().__init__()
        if config.norm not in ("pre", "post"):
            raise ValueError(f"norm={config.norm!r} is unknown; use 'pre' or 'post'")
        kind = PreNormBlock if config.norm == "pre" else PostNormBlock
        hidden = round(config.width * config.mlp_ratio)
        self.blocks = nn.ModuleList(
            kind(config.width, config.heads, hidden, config.layer_norm_eps, config.dropout)
            for _ in range(config.layers)
        )
        self.final_norm: nn.Module = nn.Identity()
        if config.norm == "pre" and final_norm:
            self.final_norm = nn.LayerNorm(config.width, eps=config.layer_norm_eps)

    def forward(self, sequence: Tensor, mask: Tensor | None = None) -> Tensor:
        """Map (B, T, D) to the output H_L (B, T, D)."""
        for block in self.blocks:
            sequence = block(sequence, mask)
        return self.final_norm(sequence)

    def hidden_states(self, sequence: Tensor, mask: Tensor | None = None) -> list[Tensor]:
        """Return [H_0, ..., H_L], each (B, T, D), numbered as in seed 001.

        H_0 is the input, H_l the output of block l and H_L the output of the whole Transformer, so
        the final LayerNorm of a pre-norm stack is included in H_L and in no other.
        """
        states = [sequence]
        for block in self.blocks:
            states.append(block(states[-1], mask))
        states[-1] = self.final_norm(states[-1])
        return states


def check_mask(mask: Tensor, tokens: Tensor) -> Tensor:
    """Return `mask` as bool after checking that it fits the tokens and that no row is all padding.

    Args:
        mask: (B, T), True or 1 = real token.
        tokens: (B, T), the token ids that the mask belongs to.

    Raises:
        ValueError: the shapes differ, or a row has no real token (the softmax over nothing is NaN).
    """
    if mask.shape != tokens.shape:
        raise ValueError(
            f"mask has shape {tuple(mask.shape)} but tokens have {tuple(tokens.shape)}; "
            "both must be (B, M)"
        )
    mask = mask.to(torch.bool)
    if torch.compiler.is_exporting():
        return mask  # an exported graph cannot depend on values
    has_token = mask.any(dim=1)
    if not bool(has_token.all()):
        row = int((~has_token).nonzero()[0])
        raise ValueError(
            f"every token of row {row} is padding, so there is nothing to attend to; "
            "drop the row, or give it at least [CLS]"
        )
    return mask
