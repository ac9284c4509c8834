"""Exact ranks for cross-modal retrieval, streamed over tiles of the score matrix.

A recall counts *comparisons* of scores, so one rounding step in the wrong place can turn a tie
into a hit. Floating-point matrix products round differently for differently shaped tiles, which
would make a result depend on the chunk size and on the machine. Two ideas remove that:

1. *Exact scores.* Every coordinate is rounded to a multiple of ``2**-26``. A product of two such
   numbers is a multiple of ``2**-52``, and by Cauchy-Schwarz no partial sum of a dot product of
   (nearly) unit vectors exceeds 1.0021, so each fits the 53 bits of a float64: the sum is exact in
   any order, tile shape and thread count. It differs from the unrounded one by at most
   ``sqrt(D) * 2**-26``, below float32 score noise.
2. *Quick scores.* A float32 product decides every comparison whose margin is beyond its own error
   bound, about ``D * 2**-24``; only the few others are decided by the exact scores. The outcome is
   that of exact scores throughout, at the speed of float32.

Derived in notebooks/30_retrieval.ipynb.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

ArrayLike = Tensor | np.ndarray | Sequence[int] | Sequence[Sequence[float]]

GRID = 2.0**26  # steps per unit: products of two rounded coordinates are multiples of 2**-52
NORM_TOLERANCE = 1e-3
PAIRS_PER_BLOCK = 1024
DOUBTS_WORTH_A_TILE = 64  # with more than 1/64 of a tile in doubt, score all of it exactly


@dataclass(frozen=True)
class Ranks:
    """Where each query's best own candidate lands; 1 is first.

    Attributes:
        image_to_text: (N,) int64, rank of an image's best own caption among T captions.
        text_to_image: (T,) int64, rank of a caption's best own image among N images.
        captions_of_image: (N,) int64, how many candidates count as right for each image.
        images_of_caption: (T,) int64, how many candidates count as right for each caption.
    """

    image_to_text: np.ndarray
    text_to_image: np.ndarray
    captions_of_image: np.ndarray
    images_of_caption: np.ndarray


def retrieval_ranks(
    image: ArrayLike,
    text: ArrayLike,
    image_of_text: ArrayLike,
    *,
    chunk_size: int = 1024,
    relevance: ArrayLike | None = None,
) -> Ranks:
    """Rank the best own candidate of every query, in both directions.

    ``rank = 1 + #{foreign candidates whose score >= best own score}``: a tie counts against us.
    The T x N score matrix is never held; memory is a few tiles of ``chunk_size**2`` numbers.

    Args:
        image: (N, D) unit-norm image embeddings, torch or numpy; equal rows are allowed.
        text: (T, D) unit-norm caption embeddings.
        image_of_text: (T,) integers in [0, N): the image each caption was written for.
        chunk_size: Rows and columns of a tile, >= 1. It changes time and memory, never a rank.
        relevance: Optional (T, N) bool. Where given, *any* candidate marked true counts as own
            and ``image_of_text`` is only checked.

    Returns:
        A `Ranks` of numpy arrays.

    Raises:
        ValueError: Wrong shapes, NaN, rows without unit norm, an image without a caption.

    Source: seed 002, Table 1; rule of reference B7 with ties made strict.
    Derived in notebooks/30_retrieval.ipynb.
    """
    images, texts = _embeddings(image, "image"), _embeddings(text, "text")
    if images.shape[1] != texts.shape[1]:
        raise ValueError(
            f"image has width {images.shape[1]} and text {texts.shape[1]}; "
            "project both into one space first"
        )
    if isinstance(chunk_size, bool) or int(chunk_size) != chunk_size or chunk_size < 1:
        raise ValueError(f"chunk_size is {chunk_size!r}; give a whole number of at least 1")
    texts = texts.to(images.device)
    owner = _owners(image_of_text, len(texts), len(images))
    of_text, of_image = _own_pairs(owner, relevance, len(images))  # (P,), (P,)
    of_text, of_image = of_text.to(images.device), of_image.to(images.device)
    own = _pair_scores(images, texts, of_text, of_image)  # (P,)
    best_of_image = _best(own, of_image, len(images))  # (N,)
    best_of_text = _best(own, of_text, len(texts))  # (T,)
    for_image, for_text = _count_reaching(
        images, texts, (of_text, of_image), best_of_image, best_of_text, chunk_size
    )
    return Ranks(
        image_to_text=(1 + for_image).cpu().numpy(),
        text_to_image=(1 + for_text).cpu().numpy(),
        captions_of_image=torch.bincount(of_image, minlength=len(images)).cpu().numpy(),
        images_of_caption=torch.bincount(of_text, minlength=len(texts)).cpu().numpy(),
    )


def _count_reaching(
    images: Tensor,
    texts: Tensor,
    own: tuple[Tensor, Tensor],
    best_of_image: Tensor,
    best_of_text: Tensor,
    chunk_size: int,
) -> tuple[Tensor, Tensor]:
    """Count foreign candidates that reach the best own score, of images (N,) and texts (T,)."""
    of_text, of_image = own
    for_image = torch.zeros(len(images), dtype=torch.int64, device=images.device)
    for_text = torch.zeros(len(texts), dtype=torch.int64, device=images.device)
    scratch = _Scratch(chunk_size, len(texts), len(images), images.device)
    for t in range(0, len(texts), chunk_size):
        rows = slice(t, t + chunk_size)
        first, last = torch.searchsorted(of_text, torch.tensor([t, t + chunk_size]).to(of_text))
        for i in range(0, len(images), chunk_size):
            columns = slice(i, i + chunk_size)
            here = of_image[first:last] - i
            inside = (here >= 0) & (here < chunk_size)
            own_pairs = (of_text[first:last][inside] - t, here[inside])
            tile = _Tile(texts[rows], images[columns], own_pairs, scratch)
            for_text[rows] += tile.reaching(best_of_text[rows], of_rows=True)
            for_image[columns] += tile.reaching(best_of_image[columns], of_rows=False)
    return for_image, for_text


def _steps(rows: Tensor) -> Tensor:
    """Return every coordinate as a whole number of steps of 1 / GRID, in float64."""
    return (rows * GRID).round_().to(torch.float64)  # scaling by a power of two is exact


def _pair_scores(images: Tensor, texts: Tensor, of_text: Tensor, of_image: Tensor) -> Tensor:
    """Return the exact scores (P,) of P (caption, image) pairs, in bounded memory."""
    blocks = zip(of_text.split(PAIRS_PER_BLOCK), of_image.split(PAIRS_PER_BLOCK), strict=True)
    sums = [(_steps(texts[t]) * _steps(images[i])).sum(-1) for t, i in blocks]
    return torch.cat(sums) / GRID**2


def _best(own: Tensor, query: Tensor, queries: int) -> Tensor:
    """Return each query's best own score (Q,) from the scores (P,) of its pairs."""
    floor = torch.full((queries,), -torch.inf, dtype=torch.float64, device=own.device)
    return floor.scatter_reduce(0, query, own, "amax")


def _quick_error(width: int) -> float | None:
    """Bound the distance of a float32 score from the exact one; None where there is no bound.

    A sum of D products errs by at most ``D * 2**-24`` of the sum of their sizes, which
    Cauchy-Schwarz bounds by 1.0021; rounding to the grid and of the thresholds comes on top.
    """
    if torch.get_float32_matmul_precision() != "highest":
        return None
    return 1.01 * ((width + 8) * 2.0**-24 + math.sqrt(width) * 2.0**-26)


class _Scratch:
    """Memory that all tiles share: allocating it anew for each costs more than the arithmetic."""

    def __init__(self, chunk_size: int, texts: int, images: int, device: torch.device) -> None:
        size = min(chunk_size, texts) * min(chunk_size, images)
        self.scores = torch.empty(size, device=device)
        self.compared = torch.empty(size, device=device)


class _Tile:
    """Scores of some captions (rows) against some images (columns), own pairs left out."""

    def __init__(
        self, texts: Tensor, images: Tensor, own: tuple[Tensor, Tensor], scratch: _Scratch
    ) -> None:
        self.texts, self.images, self.own = texts, images, own
        shape = (len(texts), len(images))
        self.error = _quick_error(texts.shape[1])
        self.compared = scratch.compared[: shape[0] * shape[1]].view(shape)
        self.exact: Tensor | None = None
        if self.error is not None:
            self.quick = scratch.scores[: shape[0] * shape[1]].view(shape)
            torch.mm(texts.float(), images.float().T, out=self.quick)
            self.quick[own] = -torch.inf

    def reaching(self, best: Tensor, of_rows: bool) -> Tensor:
        """Count, for every row (or column), the foreign scores that reach its best own score."""
        if self.error is None:
            return self._exactly_reaching(best, of_rows)
        quick, compared = (t if of_rows else t.T for t in (self.quick, self.compared))
        low, high = (best - self.error).float()[:, None], (best + self.error).float()[:, None]
        surely = torch.ge(quick, high, out=compared).sum(1).to(torch.int64)
        maybe = torch.ge(quick, low, out=compared).sum(1).to(torch.int64)
        doubtful = int((maybe - surely).sum())
        if doubtful == 0:
            return surely
        if doubtful > quick.numel() // DOUBTS_WORTH_A_TILE:
            return self._exactly_reaching(best, of_rows)
        rows = (maybe > surely).nonzero()[:, 0]
        few = quick[rows]
        query, candidate = ((few >= low[rows]) & (few < high[rows])).nonzero(as_tuple=True)
        query = rows[query]
        of_text, of_image = (query, candidate) if of_rows else (candidate, query)
        scores = _pair_scores(self.images, self.texts, of_text, of_image)
        return surely.index_add_(0, query, (scores >= best[query]).to(torch.int64))

    def _exactly_reaching(self, best: Tensor, of_rows: bool) -> Tensor:
        if self.exact is None:
            self.exact = _steps(self.texts) @ _steps(self.images).T / GRID**2
            self.exact[self.own] = -torch.inf
        scores = self.exact if of_rows else self.exact.T
        return torch.count_nonzero(scores >= best[:, None], dim=1)


def _embeddings(rows: ArrayLike, name: str) -> Tensor:
    """Return rows as a (n, D) float tensor after checking shape, NaN and unit norm."""
    tensor = torch.as_tensor(rows).detach()
    if tensor.device.type not in ("cpu", "cuda"):  # the others lack float64
        tensor = tensor.cpu()
    if tensor.dim() != 2 or 0 in tensor.shape:
        raise ValueError(f"{name} has shape {tuple(tensor.shape)}; embeddings are (rows, width)")
    if not tensor.is_floating_point():
        raise ValueError(f"{name} holds {tensor.dtype}; embeddings are floating-point numbers")
    tensor = tensor if tensor.dtype == torch.float64 else tensor.float()
    finite = torch.isfinite(tensor).all(dim=1)
    if not bool(finite.all()):
        row = int((~finite).nonzero()[0])
        raise ValueError(f"{name} row {row} is not finite; look for a diverged or empty batch")
    norm = torch.linalg.vector_norm(tensor, dim=1)  # (n,)
    off = (norm - 1).abs() > NORM_TOLERANCE
    if bool(off.any()):
        row = int(off.nonzero()[0])
        raise ValueError(
            f"{name} row {row} has norm {float(norm[row]):.4f}, not 1; "
            "apply torch.nn.functional.normalize(x, dim=1) before scoring"
        )
    return tensor


def _owners(image_of_text: ArrayLike, texts: int, images: int) -> Tensor:
    """Return image_of_text as (T,) int64 after checking type, length, range and coverage."""
    owner = torch.as_tensor(image_of_text).cpu()
    if owner.is_floating_point() or owner.dtype == torch.bool:
        raise ValueError(f"image_of_text holds {owner.dtype}; give the integer row of each image")
    if tuple(owner.shape) != (texts,):
        raise ValueError(
            f"image_of_text has shape {tuple(owner.shape)} for {texts} texts; give one entry each"
        )
    owner = owner.to(torch.int64)
    outside = (owner < 0) | (owner >= images)
    if bool(outside.any()):
        row = int(outside.nonzero()[0])
        raise ValueError(
            f"image_of_text[{row}] is {int(owner[row])}, outside 0 to {images - 1}; "
            "it must be the row of the caption's image"
        )
    counts = torch.bincount(owner, minlength=images)
    if bool((counts == 0).any()):
        row = int((counts == 0).nonzero()[0])
        raise ValueError(
            f"image {row} has no caption in image_of_text; drop it from the gallery, "
            "since no answer to it could be right"
        )
    return owner


def _own_pairs(owner: Tensor, relevance: ArrayLike | None, images: int) -> tuple[Tensor, Tensor]:
    """List the (caption, image) pairs that count as right, by id or by truth."""
    if relevance is None:
        return torch.arange(len(owner)), owner
    truth = torch.as_tensor(relevance).cpu()
    if tuple(truth.shape) != (len(owner), images) or truth.dtype != torch.bool:
        raise ValueError(
            f"relevance is {truth.dtype} of shape {tuple(truth.shape)}; "
            f"give booleans of shape {(len(owner), images)}: caption by image"
        )
    for name, axis in (("image", 0), ("caption", 1)):
        empty = ~truth.any(dim=axis)
        if bool(empty.any()):
            row = int(empty.nonzero()[0])
            raise ValueError(
                f"relevance has nothing true of {name} {row}; drop it from the gallery"
            )
    of_text, of_image = truth.nonzero(as_tuple=True)
    return of_text, of_image
