"""EVL: a small Transformer decoder that reads a video from the frozen features of an image encoder.

The image encoder sees each frame alone and is never changed. `FrameBackbone` takes the outputs, queries and keys
of its last levels; since these are frozen, so is who looks where between neighbouring frames, and all of it is
computed once. `EVLDecoder` adds what is temporal (all of it zero at the start) and reads with one [CLS] query.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmkd_lite.models.clip import MEAN, STD
from mmkd_lite.models.image import ImageEncoder
from mmkd_lite.models.initialise import initialise_weights
from mmkd_lite.models.transformer import PreNormBlock


@dataclass(frozen=True)
class FrameFeatures:
    """What a frozen backbone says about B videos of T frames, on n levels.

    Attributes:
        hidden: (n, B, T, L, C), the outputs of the last n levels; L = 1 + P tokens, [CLS] first.
        previous: (n, B, T-1, P, P): how patches of frame t look at patches of frame t-1, for t = 1 .. T-1; softmax
            of q k' / sqrt(d) over the P keys, mean over heads, so rows sum to 1. [CLS] takes no part.
        following: (n, B, T-1, P, P): how frame t looks at frame t+1, for t = 0 .. T-2.
    """

    hidden: Tensor
    previous: Tensor
    following: Tensor

    def __len__(self) -> int:
        return self.hidden.shape[1]

    def take(self, rows: Tensor | slice) -> FrameFeatures:
        """Return the features of some videos."""
        return FrameFeatures(*(getattr(self, f.name)[:, rows] for f in fields(self)))

    def to(self, *where: Any) -> FrameFeatures:
        """Return the features on another device or of another type."""
        return FrameFeatures(*(getattr(self, f.name).to(*where) for f in fields(self)))

    @staticmethod
    def join(parts: Sequence[FrameFeatures]) -> FrameFeatures:
        """Return the features of several batches as one."""
        names = [field.name for field in fields(FrameFeatures)]
        return FrameFeatures(*(torch.cat([getattr(p, n) for p in parts], dim=1) for n in names))


class FrameBackbone:
    """A frozen image Transformer that yields hidden states by level; no `nn.Module`, so that no optimiser finds it.

    Args:
        model: One of our `ImageEncoder`s, a transformers CLIP vision model, or anything that holds exactly one
            of these: a shipped teacher, a two-tower model, a trained method.
        levels: n, how many of the last levels are read (EVL: 4); fewer where the encoder has fewer.

    Attributes:
        width: C.
        heads: Heads of the encoder.
        image_size: Side of its pictures.
        grid: Patches a side; P is its square.
        levels: n.

    Raises:
        ValueError: `model` holds no such encoder, or several.

    Source: seed 003, section 3.3.5 (EVL). Derived in notebooks/35_video.ipynb.
    """

    def __init__(self, model: nn.Module, levels: int = 4) -> None:
        if levels < 1:
            raise ValueError(f"levels={levels} must be at least 1")
        self.encoder: Any = image_transformer(model)
        own = isinstance(self.encoder, ImageEncoder)
        config = self.encoder.config
        self.width: int = config.width if own else config.hidden_size
        self.heads: int = config.heads if own else config.num_attention_heads
        self.image_size: int = self.encoder.image_size if own else config.image_size
        self.grid: int = self.image_size // (config.patch if own else config.patch_size)
        self._states = self._own_states if own else self._clip_states
        self.levels = min(levels, config.layers if own else config.num_hidden_layers)

    @torch.no_grad()
    def features(self, videos: Tensor) -> FrameFeatures:
        """Return the features of some videos; the encoder runs in eval mode and without gradients.

        Args:
            videos: (B, T, 3, S, S), uint8 or float in [0, 1].

        Raises:
            ValueError: Another shape, other channels or another size than the encoder's.
        """
        size = (3, self.image_size, self.image_size)
        if videos.ndim != 5 or tuple(videos.shape[2:]) != size or 0 in videos.shape:
            raise ValueError(
                f"videos must be (B, T, {', '.join(map(str, size))}) for this encoder, got "
                f"{tuple(videos.shape)}; `shrink_and_pad` fits other sizes"
            )
        weight = next(self.encoder.parameters())
        frames = videos.flatten(0, 1).to(weight.device)
        frames = frames / 255 if frames.dtype == torch.uint8 else frames
        flags = {part: part.training for part in self.encoder.modules()}
        self.encoder.eval()
        try:
            hidden, query, key = self._states(frames.to(weight.dtype))
        finally:
            for part, training in flags.items():
                part.training = training
        batch, length = videos.shape[:2]

        def by_video(states: list[Tensor]) -> Tensor:
            chosen = torch.stack(states[-self.levels :])  # (n, B T, ...)
            return chosen.unflatten(1, (batch, length))

        q, k = by_video(query)[..., 1:, :], by_video(key)[..., 1:, :]  # (n, B, T, h, P, d)
        return FrameFeatures(
            by_video(hidden), looks(q[:, :, 1:], k[:, :, :-1]), looks(q[:, :, :-1], k[:, :, 1:])
        )

    def _own_states(self, frames: Tensor) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        """Outputs, queries and keys of every block of our encoder."""
        states = self.encoder(frames, return_hidden=True)[1]
        query, key = [], []
        for block, entering in zip(self.encoder.transformer.blocks, states[:-1], strict=True):
            normed = entering
            if isinstance(block, PreNormBlock):
                normed = block.attention_norm(entering)
            q, k, _ = block.attention.split_heads(normed)
            query.append(q)
            key.append(k)
        return states[1:], query, key

    def _clip_states(self, frames: Tensor) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        """The same of a CLIP vision model, whose pixels are normalised as CLIP's."""
        mean, std = (frames.new_tensor(values).view(3, 1, 1) for values in (MEAN, STD))
        found = self.encoder((frames - mean) / std, output_hidden_states=True).hidden_states
        query: list[Tensor] = []
        key: list[Tensor] = []
        for layer, entering in zip(self.encoder.encoder.layers, found[:-1], strict=True):
            normed = layer.layer_norm1(entering)
            for part, states in ((layer.self_attn.q_proj, query), (layer.self_attn.k_proj, key)):
                states.append(part(normed).unflatten(-1, (self.heads, -1)).transpose(1, 2))
        return list(found[1:]), query, key


def image_transformer(model: nn.Module) -> Any:
    """Return the one image Transformer inside a model."""
    found = {
        name: part
        for name, part in model.named_modules()
        if isinstance(part, ImageEncoder) or type(part).__name__ == "CLIPVisionModel"
    }
    if len(found) != 1:
        raise ValueError(
            f"{type(model).__name__} holds {len(found)} image Transformers ({', '.join(found) or 'none'}); "
            "pass an ImageEncoder, a CLIP vision model or a model with exactly one of these"
        )
    return next(iter(found.values()))


def looks(query: Tensor, key: Tensor) -> Tensor:
    """Return the mean over heads of softmax(q k' / sqrt(d)), (..., P, P), from (..., h, P, d) each."""
    scores = query @ key.transpose(-2, -1) / math.sqrt(query.shape[-1])
    return scores.softmax(dim=-1).mean(dim=-3)


class TemporalMixing(nn.Module):
    r"""Add to each frame what its neighbours say; a fresh one adds exactly nothing.

    .. math:: y_t = f_t + \sum_{s=-1}^{1} w_s \odot f_{t+s} + p_t + \Big[\sum_j A^-_{t,ij} u^-_{i-j} +
              \sum_j A^+_{t,ij} u^+_{i-j}\Big]_i

    w (3, C) is a depthwise convolution over time with zeros outside the clip, p (T, C) the temporal positions
    (which hold the convolution's bias), A the attention to the frame before and after, and u two tables with a
    vector for each of the (2 g - 1)^2 offsets between patches i and j. [CLS] gets no attention term, and the
    first and the last frame get one of the two.

    Args:
        width: C.
        frames: T.
        grid: g, patches a side.

    Source: seed 003, section 3.3.5; EVL. Derived in notebooks/35_video.ipynb.
    """

    offset: Tensor

    def __init__(self, width: int, frames: int, grid: int) -> None:
        super().__init__()
        self.kernel = nn.Parameter(torch.zeros(3, width))
        self.positions = nn.Parameter(torch.zeros(frames, width))
        self.previous_table = nn.Parameter(torch.zeros((2 * grid - 1) ** 2, width))
        self.following_table = nn.Parameter(torch.zeros((2 * grid - 1) ** 2, width))
        row, column = torch.arange(grid**2) // grid, torch.arange(grid**2) % grid
        down, right = (place[:, None] - place + grid - 1 for place in (row, column))  # (P, P) each
        self.register_buffer("offset", down * (2 * grid - 1) + right, persistent=False)

    def forward(self, hidden: Tensor, previous: Tensor, following: Tensor) -> Tensor:
        """Map (B, T, L, C) and two (B, T-1, P, P) to (B, T, L, C)."""
        now = hidden * (1 + self.kernel[1]) + self.positions[:, None]
        past = hidden[:, :-1] * self.kernel[0] + self._attended(previous, self.previous_table)
        future = hidden[:, 1:] * self.kernel[2] + self._attended(following, self.following_table)
        return now + F.pad(past, (0, 0, 0, 0, 1, 0)) + F.pad(future, (0, 0, 0, 0, 0, 1))

    def _attended(self, weights: Tensor, table: Tensor) -> Tensor:
        """(B, T-1, L, C): the table's vectors weighted by (B, T-1, P, P); zero for [CLS]."""
        spread = F.embedding(self.offset, table)  # (P, P, C)
        return F.pad(torch.einsum("btij,ijc->btic", weights, spread), (0, 0, 1, 0))


class CrossAttentionBlock(nn.Module):
    r"""Pre-norm: x + MHA(LN x, LN y, LN y), then x + MLP(LN x); there is no self-attention, for one query needs none.

    Nor does one query need a key or value for each of the S tokens. Per head, with u = W_k' q and weights a:

    .. math:: q \cdot (W_k y_s) = u \cdot y_s, \qquad \sum_s a_s (W_v y_s + b_v) = W_v \sum_s a_s y_s + b_v

    so the two large products over tokens become h C numbers a token instead of 2 C^2. A bias of the keys would
    add the same to every score, which the softmax ignores: there is none.

    Args:
        width: C.
        heads: h, a divisor of C.
        dropout: Inside the MLP, after its GELU.

    Source: seed 003, section 3.3.5; EVL. Derived in notebooks/35_video.ipynb.
    """

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        if width % heads:
            raise ValueError(f"heads={heads} does not divide width={width}; choose a divisor")
        self.heads = heads
        self.query_norm, self.source_norm, self.mlp_norm = (nn.LayerNorm(width) for _ in range(3))
        self.query, self.key = nn.Linear(width, width), nn.Linear(width, width, bias=False)
        self.value, self.output = nn.Linear(width, width), nn.Linear(width, width)
        self.mlp = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(), nn.Dropout(dropout), nn.Linear(4 * width, width)
        )

    def forward(self, state: Tensor, source: Tensor) -> Tensor:
        """Map (B, C), reading (B, S, C), to (B, C)."""
        tokens = self.source_norm(source)
        query = self.query(self.query_norm(state)).unflatten(-1, (self.heads, -1))  # (B, h, d)
        key, value = (part.weight.unflatten(0, (self.heads, -1)) for part in (self.key, self.value))
        asked = torch.einsum("bhd,hdc->bhc", query, key) / math.sqrt(query.shape[-1])
        weights = (asked @ tokens.transpose(1, 2)).softmax(dim=-1)  # (B, h, S)
        mixed = torch.einsum("bhc,hdc->bhd", weights @ tokens, value).flatten(1) + self.value.bias
        state = state + self.output(mixed)
        return state + self.mlp(self.mlp_norm(state))


class EVLDecoder(nn.Module):
    """Classify a video from a backbone's features: a learnable [CLS] reads one level after the other.

    Args:
        width: C of the backbone.
        heads: Heads of the cross-attention.
        frames: T.
        grid: Patches a side.
        levels: n, one decoder layer a level.
        classes: Number of classes.
        dropout: Before the classifier and inside the MLPs.
        temporal: False leaves the temporal parts out: a bag of frames.

    Raises:
        ValueError: A number out of range.

    Source: seed 003, section 3.3.5; EVL (Lin et al. 2022). Derived in notebooks/35_video.ipynb.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        frames: int,
        grid: int,
        levels: int,
        classes: int = 2,
        dropout: float = 0.5,
        temporal: bool = True,
    ) -> None:
        super().__init__()
        if min(width, heads, frames, grid, levels) < 1 or classes < 2 or not 0 <= dropout < 1:
            raise ValueError(
                f"a decoder needs sizes of at least 1, classes >= 2 and dropout in [0, 1), got width={width}, "
                f"heads={heads}, frames={frames}, grid={grid}, levels={levels}, classes={classes}, dropout={dropout}"
            )
        self.expected = (levels, frames, 1 + grid**2, width)
        self.cls = nn.Parameter(torch.empty(width))
        self.blocks = nn.ModuleList(
            CrossAttentionBlock(width, heads, dropout) for _ in range(levels)
        )
        self.norm, self.dropout = nn.LayerNorm(width), nn.Dropout(dropout)
        self.head = nn.Linear(width, classes)
        initialise_weights(self)
        count = levels if temporal else 0  # after the draw: with and without them, equal weights
        self.mixing = nn.ModuleList(TemporalMixing(width, frames, grid) for _ in range(count))

    def forward(self, features: FrameFeatures) -> Tensor:
        """Return class logits (B, classes).

        Raises:
            ValueError: Features of other levels, frames, tokens or width than the decoder was built for.
        """
        n, _, *rest = features.hidden.shape
        if (n, *rest) != self.expected:
            raise ValueError(
                f"features have (levels, frames, tokens, width) = {(n, *rest)}, the decoder was built for "
                f"{self.expected}; use as many frames as it was trained with"
            )
        state = self.cls.expand(len(features), -1)
        for level, block in enumerate(self.blocks):
            source = features.hidden[level]
            if self.mixing:
                looked = features.previous[level], features.following[level]
                source = self.mixing[level](source, *looked)
            state = block(state, source.flatten(1, 2))
        return self.head(self.dropout(self.norm(state)))


def decoder_for(
    backbone: FrameBackbone, frames: int, dropout: float = 0.5, temporal: bool = True
) -> EVLDecoder:
    """Return a fresh decoder that fits a backbone."""
    sizes = (backbone.width, backbone.heads, frames, backbone.grid, backbone.levels)
    return EVLDecoder(*sizes, dropout=dropout, temporal=temporal)
