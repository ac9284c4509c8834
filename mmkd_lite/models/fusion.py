"""What both modalities share after their towers: an MLP, a Transformer block, a contrast scale."""

from __future__ import annotations

import math
from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmkd_lite.models.initialise import initialise_weights
from mmkd_lite.models.transformer import PreNormBlock

INITIAL_SCALE = 1 / 0.07
MAXIMUM_SCALE = 100.0


class SharedMLP(nn.Module):
    """The shared encoder of Transformer SHRe: three layers, each of whose outputs is contrasted.

    h' = W1 x (pre-activation), h'' = W2 LN(GELU(h')), h''' = W3 LN(h'').

    Args:
        width: D of the [CLS] vectors (768 in the paper).
        hidden: size of h' (3072).
        out: size of h''', the teacher's number of classes (1000).
        layer_norm_eps: epsilon of both LayerNorms.

    Source: seed 000, Code 3; errata E000-04, E000-10. Derived in
    notebooks/15_transformer_shre.ipynb.
    """

    def __init__(self, width: int, hidden: int, out: int, layer_norm_eps: float = 1e-6) -> None:
        super().__init__()
        self.expand = nn.Linear(width, hidden)
        self.expand_norm = nn.LayerNorm(hidden, eps=layer_norm_eps)
        self.contract = nn.Linear(hidden, width)
        self.contract_norm = nn.LayerNorm(width, eps=layer_norm_eps)
        self.classify = nn.Linear(width, out)
        initialise_weights(self)

    def forward(self, cls: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return h' (B, hidden), h'' (B, width) and h''' (B, out) of [CLS] vectors (B, width)."""
        first = self.expand(cls)
        second = self.contract(self.expand_norm(F.gelu(first)))
        third = self.classify(self.contract_norm(second))
        return first, second, third


class SharedOutput(NamedTuple):
    """What `SharedTransformer` gives for one modality."""

    intermediate: Tensor  # (B, hidden): first FFN layer of the last block at [CLS], before GELU
    cls: Tensor  # (B, D): the [CLS] output, not normalised
    sequence: Tensor  # (B, T, D): the whole output


class SharedTransformer(nn.Module):
    """Pre-norm block(s) on whole sequences of either modality, read out at [CLS].

    It is fed full sequences, since attention over a lone [CLS] is only a linear map. There is no
    LayerNorm at the end: heads bring their own, and the contrast uses the raw, then
    L2-normalised vector.

    Args:
        width: D of both towers.
        heads: attention heads.
        mlp_ratio: hidden size divided by width.
        layers: number of shared blocks; one costs 12 D^2 + 13 D parameters.
        layer_norm_eps: epsilon of every LayerNorm.
        dropout: probability, in [0, 1).

    Raises:
        ValueError: `layers` is below 1.

    Source: seed 000, Code 4, with errata E000-04; seed 002 (shared layers). Derived in
    notebooks/15_transformer_shre.ipynb.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        mlp_ratio: float = 4.0,
        layers: int = 1,
        layer_norm_eps: float = 1e-6,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if layers < 1:
            raise ValueError(f"a shared Transformer needs at least one layer, got {layers}")
        hidden = round(width * mlp_ratio)
        self.blocks = nn.ModuleList(
            PreNormBlock(width, heads, hidden, layer_norm_eps, dropout) for _ in range(layers)
        )
        initialise_weights(self)

    def forward(self, sequence: Tensor, mask: Tensor | None = None) -> SharedOutput:
        """Run the shared block(s).

        Args:
            sequence: (B, T, D) output of a tower, [CLS] first.
            mask: (B, T), True = real token; needed for text, None for images.

        Returns:
            intermediate (B, hidden), cls (B, D) and sequence (B, T, D).
        """
        if mask is not None:
            mask = mask.to(torch.bool)
        for block in self.blocks[:-1]:
            sequence = block(sequence, mask)
        last = cast(PreNormBlock, self.blocks[-1])
        attended = last.attend(sequence, mask)
        expanded = last.feed_forward.expand(last.feed_forward_norm(attended))  # (B, T, hidden)
        sequence = last.feed_forward.after_expand(expanded) + attended
        return SharedOutput(expanded[:, 0], sequence[:, 0], sequence)


class Projection(nn.Module):
    """Linear map without bias from a tower's width to the contrast space.

    Args:
        width: D.
        out: size of the contrast space.

    Source: seed 002, section on image-text contrast (methods.md 5). Derived in
    notebooks/12_image_text_contrast.ipynb.
    """

    def __init__(self, width: int, out: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, out, bias=False)
        initialise_weights(self)

    def forward(self, vectors: Tensor) -> Tensor:
        """Map (..., width) to (..., out); the caller normalises."""
        return self.linear(vectors)


class ContrastScale(nn.Module):
    """Learnable factor of the cosine similarities (an inverse temperature), kept in [1, 100].

    The parameter is the logarithm; `value` is the only place where it is exponentiated. A clamp
    gives no gradient outside its range, nor (in PyTorch 2.14) on its border, where a scale would
    stay for ever; so here the gradient passes as if there were no clamp. Call `clamp_` after every
    optimiser step: it puts the parameter itself back.

    Args:
        initial: first value of the scale, in [1, 100].

    Raises:
        ValueError: `initial` is outside [1, 100].

    Source: seed 000, Code 3 with errata E000-10. Derived in notebooks/02_losses.ipynb.
    """

    def __init__(self, initial: float = INITIAL_SCALE) -> None:
        super().__init__()
        if not 1.0 <= initial <= MAXIMUM_SCALE:
            raise ValueError(f"initial scale {initial} must lie in [1, {MAXIMUM_SCALE:.0f}]")
        self.log_scale = nn.Parameter(torch.tensor(math.log(initial)))

    def value(self) -> Tensor:
        """Return the scale, a 0-d tensor in [1, 100] that carries gradient."""
        clamped = self.log_scale.clamp(0.0, math.log(MAXIMUM_SCALE))
        return (self.log_scale + (clamped - self.log_scale).detach()).exp()

    @torch.no_grad()
    def clamp_(self) -> None:
        """Move the parameter into its range; call after every optimiser step."""
        self.log_scale.clamp_(0.0, math.log(MAXIMUM_SCALE))
