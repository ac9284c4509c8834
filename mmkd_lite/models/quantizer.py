"""Vector quantisation of a teacher's [CLS]: a codebook of unit vectors, and the model around it."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmkd_lite.losses.base import check_unit_rows
from mmkd_lite.losses.gather import gather_rows, world
from mmkd_lite.models.fusion import SharedTransformer
from mmkd_lite.models.initialise import EMBEDDING_STD, initialise_weights

STARTS = ("kmeans", "random")


class Quantized(NamedTuple):
    """What `Codebook` makes of B vectors."""

    unit: Tensor  # (B, S): the vectors themselves, at unit length
    vectors: Tensor  # (B, S): their codes; the gradient passes straight on to `unit`
    index: Tensor  # type: ignore[assignment]  # (B,): which codes


class Codebook(nn.Module):
    r"""J unit vectors that follow the means of what is assigned to them; no gradient trains them.

    .. math:: m = \arg\max_j \tilde z \cdot q_j, \qquad
              q_j \leftarrow \frac{d\, q_j + (1 - d)\, \bar z_j}{\|d\, q_j + (1 - d)\, \bar z_j\|}

    `\bar z_j` is the normalised mean of the batch's unit vectors with code j; a code without any keeps
    its value. For unit vectors the largest cosine and the smallest distance choose the same code.

    Args:
        codes: J.
        width: S, size of a code.
        decay: d in [0, 1); 0 jumps to the batch mean.
        revive_after: a code that was idle for this many updates is put on one of the batch's worst
            represented vectors; 0 leaves dead codes where they are, as the thesis does.

    Attributes:
        vectors: (J, S) the codes.
        idle: (J,) int64, updates since a code was last used.
        started: () bool, whether `start` was called.

    Raises:
        ValueError: a number is out of range.

    Source: methods.md 14 with erratum ET-21 (an arg-min of the cosine as printed). Derived in
    notebooks/17_quantised_targets.ipynb.
    """

    vectors: Tensor
    idle: Tensor
    started: Tensor

    def __init__(self, codes: int, width: int, decay: float = 0.99, revive_after: int = 0) -> None:
        super().__init__()
        if min(codes, width) < 1 or revive_after < 0:
            raise ValueError(
                f"codes={codes} and width={width} must be at least 1, revive_after={revive_after} at least 0"
            )
        if not 0.0 <= decay < 1.0:
            raise ValueError(f"decay={decay} must lie in [0, 1): 1 would never move a code")
        self.decay, self.revive_after = decay, revive_after
        self.register_buffer("vectors", F.normalize(torch.randn(codes, width), dim=-1))
        self.register_buffer("idle", torch.zeros(codes, dtype=torch.int64))
        self.register_buffer("started", torch.tensor(False))

    @torch.no_grad()
    def start(self, vectors: Tensor, how: str = "kmeans", seed: int = 0) -> None:
        """Give the codes their first values: centres of k-means, or random directions.

        Args:
            vectors: (N, S) of the data, N at least J.
            how: "kmeans" or "random"; "random" keeps the directions drawn at construction.
            seed: of the first centres.

        Raises:
            ValueError: fewer vectors than codes, or an unknown way.
        """
        if how not in STARTS:
            raise ValueError(f"start={how!r} must be one of: {', '.join(STARTS)}")
        if len(vectors) < len(self.vectors):
            raise ValueError(
                f"a codebook of {len(self.vectors)} codes is larger than the data, {len(vectors)} vectors"
            )
        if how == "kmeans":
            unit = F.normalize(vectors, dim=-1)
            self.vectors.copy_(spherical_k_means(unit, len(self.vectors), seed=seed))
        self.started.fill_(True)

    def nearest(self, vectors: Tensor) -> Tensor:
        """Return the index (B,) of the code with the largest cosine to each of (B, S)."""
        return (vectors @ self.vectors.T).argmax(dim=-1)

    def forward(self, vectors: Tensor) -> Quantized:
        """Quantise (B, S); the codes' gradient goes to the vectors as if they were equal."""
        unit = F.normalize(vectors, dim=-1)
        index = self.nearest(unit)
        return Quantized(unit, unit + (self.vectors[index] - unit).detach(), index)

    @torch.no_grad()
    def update(self, unit: Tensor, index: Tensor) -> None:
        """Move the codes towards the means of their vectors; of all processes' vectors, if several.

        Args:
            unit: (B, S), rows of length 1.
            index: (B,), their codes.
        """
        check_unit_rows(unit, "unit")
        if world()[1] > 1:
            unit, index = gather_rows(unit), gather_rows(index)
        sums = torch.zeros_like(self.vectors).index_add_(0, index, unit.to(self.vectors.dtype))
        used = torch.bincount(index, minlength=len(self.vectors)) > 0
        mean = F.normalize(sums, dim=-1)
        moved = F.normalize(self.decay * self.vectors + (1 - self.decay) * mean, dim=-1)
        self.vectors.copy_(torch.where(used[:, None], moved, self.vectors))
        self.idle.copy_(torch.where(used, 0, self.idle + 1))
        if self.revive_after:
            self._revive(unit)

    def _revive(self, unit: Tensor) -> None:
        """Put codes that were idle too long on the vectors that are farthest from their own code."""
        dead = (self.idle > self.revive_after).nonzero()[:, 0][: len(unit)]
        fit = (unit @ self.vectors.T).amax(dim=-1)
        self.vectors[dead] = unit[fit.argsort()[: len(dead)]].to(self.vectors.dtype)
        self.idle[dead] = 0


class ImageQuantizer(nn.Module):
    r"""Squeeze a [CLS] through one of J codes, and restore it with a glimpse of the picture.

    A two-layer tanh network maps the [CLS] h to S numbers, the codebook replaces them by a code, a
    linear map brings the code back to width D. As [CLS] before the teacher's patch vectors, most of them
    hidden by a mask token, it passes one Transformer layer, whose [CLS] is the reconstruction.

    Args:
        width: D of the teacher's vectors.
        codebook: gives J and S.
        heads: of the decoder's attention.
        masked: share of each picture's patches that are hidden, in [0, 1].
        decoder_layers: 0 reconstructs from the code alone.

    Source: methods.md 14; ET-21 (the down-projection is a two-layer tanh network). Derived in
    notebooks/17_quantised_targets.ipynb.
    """

    def __init__(
        self,
        width: int,
        codebook: Codebook,
        heads: int = 4,
        masked: float = 0.9,
        decoder_layers: int = 1,
    ) -> None:
        super().__init__()
        if not 0.0 <= masked <= 1.0:
            raise ValueError(f"masked={masked} must lie in [0, 1]")
        code_width = codebook.vectors.shape[1]
        self.codebook, self.masked = codebook, masked
        self.down = nn.Sequential(nn.Linear(width, width), nn.Tanh(), nn.Linear(width, code_width))
        self.up = nn.Linear(code_width, width)
        self.decoder: SharedTransformer | None = None
        for part in (self.down, self.up):
            initialise_weights(part)
        if decoder_layers:
            self.mask_token = nn.Parameter(torch.empty(width))
            nn.init.trunc_normal_(self.mask_token, std=EMBEDDING_STD)
            self.decoder = SharedTransformer(width, heads, layers=decoder_layers)

    def codes(self, cls: Tensor) -> Tensor:
        """Return the code index (B,) of teacher vectors (B, D): the class target of S-SMKE on codes."""
        return self.codebook.nearest(F.normalize(self.down(cls), dim=-1))

    def forward(self, cls: Tensor, patches: Tensor | None = None) -> tuple[Tensor, Quantized]:
        """Return the reconstructed [CLS] (B, D), and what the codebook made of it.

        Args:
            cls: (B, D).
            patches: (B, N, D), the teacher's patch vectors; needed with a decoder.
        """
        quantized = self.codebook(self.down(cls))
        restored = self.up(quantized.vectors)
        if self.decoder is None:
            return restored, quantized
        if patches is None:
            raise ValueError("a quantiser with decoder layers needs the teacher's patch vectors")
        hidden = hide(patches, self.masked, self.mask_token)
        return self.decoder(torch.cat([restored[:, None], hidden], dim=1)).cls, quantized


def hide(patches: Tensor, share: float, token: Tensor) -> Tensor:
    """Replace the same number of patches (B, N, D) of every picture by a token (D,), at random."""
    count = round(share * patches.shape[1])
    order = torch.rand(patches.shape[:2], device=patches.device).argsort(dim=1)
    return torch.where((order < count)[..., None], token, patches)


@torch.no_grad()
def spherical_k_means(unit: Tensor, clusters: int, iterations: int = 10, seed: int = 0) -> Tensor:
    """Return unit centres (J, S) of unit vectors (N, S), by cosine; empty clusters keep their centre."""
    generator = torch.Generator().manual_seed(seed)
    centres = unit[torch.randperm(len(unit), generator=generator)[:clusters].to(unit.device)]
    for _ in range(iterations):
        index = (unit @ centres.T).argmax(dim=-1)
        sums = torch.zeros_like(centres).index_add_(0, index, unit)
        used = torch.bincount(index, minlength=clusters) > 0
        centres = torch.where(used[:, None], F.normalize(sums, dim=-1), centres)
    return centres


def usage(index: Tensor, codes: int) -> Tensor:
    """Return the share of J codes that occur among the indices (N,), in [0, 1]."""
    return (torch.bincount(index, minlength=codes) > 0).float().mean()


def perplexity(index: Tensor, codes: int) -> Tensor:
    r"""Return `exp(-sum_j p_j log p_j)` of the codes' shares: 1 if one is used, J if all equally."""
    share = torch.bincount(index, minlength=codes) / len(index)
    return torch.special.entr(share).sum().exp()
