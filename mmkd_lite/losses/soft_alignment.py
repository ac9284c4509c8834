"""Contrast with soft targets, for pairs of which some do not belong together.

Progressive self-distillation (PSD) and its two plain rivals, label smoothing and hard bootstrapping. Targets
need the whole matrix of the batch at once, so nothing is streamed: meant for B up to a few thousand. With
several processes each one works on the matrix of all of them, from one aligned set; the mean of the losses
and the gradients after DDP's averaging are those of one process with all the pairs.
"""

from __future__ import annotations

import math

import torch
import torch.distributed as dist
from torch import Tensor

from mmkd_lite.losses.base import as_scale, check_pairs, check_temperature, check_vector
from mmkd_lite.losses.contrast import image_text_contrast
from mmkd_lite.losses.gather import check_equal_shapes, gather_rows, world


def soft_alignment(
    image: Tensor,
    text: Tensor,
    scale: Tensor | float,
    *,
    aligned_fraction: float,
    generator: torch.Generator | None = None,
    swapped: bool = True,
    mix: float = 1.0,
    target_temperature: float = 1.0,
    keep_diagonal: bool = True,
    image_id: Tensor | None = None,
) -> Tensor:
    r"""Contrast a random part of the batch against its pairs, the rest against the model's own beliefs.

    .. math:: L = \tfrac{1}{2B} \sum_i \big[ CE(q_i, S_{i\cdot}) + CE(q'_i, S_{\cdot i}) \big],
              \qquad S = s V W^\top

    For the aligned set A of `ceil(aligned_fraction * B)` pairs `q_i = q'_i = e_i`; the other targets come from
    `soft_targets`. With `aligned_fraction` 1 this is `image_text_contrast`, and with `mix` 0 too.

    Args:
        image: (B, D), rows of length 1.
        text: (B, D), rows of length 1; row i is the stated partner of image i.
        scale: s > 0, the exponentiated logit scale; a number or a 0-d tensor.
        aligned_fraction: in [0, 1].
        generator: draws A; the global one by default. With several processes the set of rank 0 counts.
        swapped: take the targets from the other direction; False gives soft rows a gradient of zero (E004-01).
        mix: weight of the soft target beside `e_i` outside A, in [0, 1].
        target_temperature: divides the logits that the targets are made from; > 0.
        keep_diagonal: whether a soft target may hold the stated pair.
        image_id: (B,) integers; pairs of equal id are no candidates of each other.

    Returns:
        A 0-d tensor, at least 0. The targets are constants.

    Raises:
        ValueError: As for `image_text_contrast`; a fraction or mix outside [0, 1].

    Source: seed 004 with errata E004-01, -02, -05, -07. A reconstruction of ours: the paper's method section
    was not at hand (methods.md 16). Derived in notebooks/20_progressive_self_distillation.ipynb.
    """
    check_share(aligned_fraction, "aligned_fraction")
    if aligned_fraction == 1:
        check_share(mix, "mix")
        check_temperature(target_temperature)
        return image_text_contrast(image, text, scale, image_id=image_id)
    logits, allowed = _whole_matrix(image, text, scale, image_id)
    aligned = draw_aligned(len(logits), aligned_fraction, generator).to(logits.device)
    if world()[1] > 1:
        dist.broadcast(aligned, 0)
    to_text, to_image = (
        soft_targets(rows, aligned, swapped, mix, target_temperature, keep_diagonal, allowed)
        for rows in (logits, logits.T)
    )
    return _cross_entropies(logits, to_text, to_image, allowed)


def label_smoothing(
    image: Tensor,
    text: Tensor,
    scale: Tensor | float,
    *,
    smoothing: float = 0.1,
    image_id: Tensor | None = None,
) -> Tensor:
    r"""Contrast with targets that give a fixed share to all candidates alike.

    .. math:: q_{ij} = (1 - \epsilon)\, \delta_{ij} + \epsilon / B

    Args:
        image: (B, D), rows of length 1.
        text: (B, D), rows of length 1.
        scale: s > 0.
        smoothing: epsilon in [0, 1]; 0 is `image_text_contrast`.
        image_id: (B,) integers; a pair of equal id is no candidate, and B counts candidates only.

    Raises:
        ValueError: As for `image_text_contrast`; smoothing outside [0, 1].

    Source: Szegedy et al. 2016; required as a baseline by methods.md 16.
    Derived in notebooks/20_progressive_self_distillation.ipynb.
    """
    check_share(smoothing, "smoothing")
    logits, allowed = _whole_matrix(image, text, scale, image_id)
    uniform = allowed.to(logits) / allowed.sum(1, keepdim=True)
    target = (1 - smoothing) * _one_hot(logits) + smoothing * uniform
    return _cross_entropies(logits, target, target, allowed)


def hard_bootstrapping(
    image: Tensor,
    text: Tensor,
    scale: Tensor | float,
    *,
    trust: float = 0.8,
    image_id: Tensor | None = None,
) -> Tensor:
    r"""Contrast with targets that give a fixed share to the model's own first choice.

    .. math:: q_i = \beta\, e_i + (1 - \beta)\, e_{\arg\max_j S_{ij}}

    Args:
        image: (B, D), rows of length 1.
        text: (B, D), rows of length 1.
        scale: s > 0.
        trust: beta in [0, 1]; 1 is `image_text_contrast`.
        image_id: (B,) integers; a pair of equal id is no candidate.

    Raises:
        ValueError: As for `image_text_contrast`; trust outside [0, 1].

    Source: Reed et al. 2015, hard bootstrapping (beta 0.8); required as a baseline by methods.md 16.
    Derived in notebooks/20_progressive_self_distillation.ipynb.
    """
    check_share(trust, "trust")
    logits, allowed = _whole_matrix(image, text, scale, image_id)
    own = _one_hot(logits)
    to_text, to_image = (
        trust * own + (1 - trust) * own[rows.argmax(1)] for rows in (logits, logits.T)
    )
    return _cross_entropies(logits, to_text, to_image, allowed)


@torch.no_grad()
def soft_targets(
    logits: Tensor,
    aligned: Tensor,
    swapped: bool = True,
    mix: float = 1.0,
    temperature: float = 1.0,
    keep_diagonal: bool = True,
    allowed: Tensor | None = None,
) -> Tensor:
    r"""Return the target of each row of logits: a pair, or what the model believes.

    .. math:: q_{ij} \propto \frac{\exp(S_{ij} / T)}{\sum_k \exp(S_{kj} / T)} \quad \text{(swapped)},
              \qquad q_{ij} \propto \exp(S_{ij} / T) \quad \text{(not swapped)}

    Swapped: the probability that candidate j, asked in *its* direction, picks i; renormalised over j. Computed
    from logarithms, so that a row which nobody picks still sums to 1.

    Args:
        logits: S (B, B), own pair on the diagonal; for the other direction pass the transpose.
        aligned: (B,) bool, rows that get `e_i`.
        swapped: see above.
        mix: lambda in [0, 1]; a row outside A gets `(1 - lambda) e_i + lambda q_i`.
        temperature: T > 0.
        keep_diagonal: False gives the stated pair no share; a row without another candidate gets `e_i`.
        allowed: (B, B) bool, symmetric, candidates; all by default.

    Returns:
        (B, B), rows sum to 1, without gradient.

    Raises:
        ValueError: mix outside [0, 1] or a temperature that is not positive.
    """
    check_share(mix, "mix")
    check_temperature(temperature)
    own = _one_hot(logits)
    possible = torch.ones_like(own, dtype=torch.bool) if allowed is None else allowed
    if not keep_diagonal:
        possible = possible & (own == 0)
    lowest = torch.finfo(logits.dtype).min
    scores = (logits / temperature).masked_fill(~possible, lowest)
    if swapped:
        scores = scores.log_softmax(0).masked_fill(~possible, lowest)
    soft = (1 - mix) * own + mix * scores.softmax(1)
    hard = aligned | ~possible.any(1)
    return torch.where(hard[:, None], own, soft)


def draw_aligned(count: int, fraction: float, generator: torch.Generator | None = None) -> Tensor:
    """Choose `ceil(fraction * count)` of `count` pairs at random.

    Returns:
        (count,) bool.

    Raises:
        ValueError: The fraction is outside [0, 1].
    """
    check_share(fraction, "aligned_fraction")
    device = "cpu" if generator is None else generator.device
    order = torch.randperm(count, generator=generator, device=device)
    return order < math.ceil(round(fraction * count, 9))


def check_share(value: float, name: str) -> None:
    """Stop unless `value` lies in [0, 1].

    Raises:
        ValueError: otherwise.
    """
    if not 0 <= value <= 1:
        raise ValueError(f"{name}={value} must lie in [0, 1]")


def _whole_matrix(
    image: Tensor, text: Tensor, scale: Tensor | float, image_id: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Return the logits of the pairs of all processes, (B, B), and which entries are candidates."""
    image, text = check_pairs(image, text, "image", "text")
    check_vector(image_id, len(image), "image_id", "the batch")
    scale = as_scale(scale, image)
    if world()[1] > 1:
        check_equal_shapes(image, image_id is not None)
        image, text = gather_rows(image), gather_rows(text)
        image_id = None if image_id is None else gather_rows(image_id)
    logits = scale * image @ text.T
    allowed = torch.ones_like(logits, dtype=torch.bool)
    if image_id is not None:
        allowed = (image_id[:, None] != image_id) | (_one_hot(logits) == 1)
    return logits.masked_fill(~allowed, -torch.inf), allowed


def _one_hot(logits: Tensor) -> Tensor:
    return torch.eye(len(logits), dtype=logits.dtype, device=logits.device)


def _cross_entropies(logits: Tensor, to_text: Tensor, to_image: Tensor, allowed: Tensor) -> Tensor:
    """Average the soft cross-entropy of both directions; `to_image` has one row a caption."""
    rows = logits.log_softmax(1).masked_fill(~allowed, 0.0)
    columns = logits.T.log_softmax(1).masked_fill(~allowed, 0.0)
    return -((to_text * rows).sum() + (to_image * columns).sum()) / (2 * len(logits))
