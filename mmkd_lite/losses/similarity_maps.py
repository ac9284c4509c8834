"""Losses that compare a student's similarity maps with a teacher's: DistillCLIP and its KL form.

A map holds the similarities of all pairs of a batch: image-text, image-image or text-text. It is (B, B)
whatever the width of the embeddings, so student and teacher need no common width. With W processes every map
is N x N, N = W * B: each process computes the rows of its own pairs against the columns of all, gathered with
gradients. The mean of the W losses, and the gradients after DDP's averaging, are those of one process.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mmkd_lite.embeddings import Embeddings
from mmkd_lite.losses.base import as_scale
from mmkd_lite.losses.divergence import kl_divergence
from mmkd_lite.losses.gather import check_equal_shapes, gather_rows, world

REDUCTIONS = ("sum", "mean")


def similarity_map_distillation(
    student: Embeddings,
    teacher: Embeddings,
    *,
    inter_weight: float = 1.0,
    intra_weight: float = 1.0,
    reduction: str = "sum",
) -> Tensor:
    r"""Match the student's cosine maps to the teacher's, between and within modalities.

    .. math:: L = \lambda_{inter} \| \tilde Z_T^v \tilde Z_T^{w\top} - \tilde Z_S^v \tilde Z_S^{w\top} \|_F^2
              + \lambda_{intra} \sum_{m \in \{v, w\}}
                \| \tilde Z_T^m \tilde Z_T^{m\top} - \tilde Z_S^m \tilde Z_S^{m\top} \|_F^2

    The logit scales play no part: these are cosines. "sum" is the source's squared Frobenius norm, N^2 terms a
    map; "mean" divides each norm by N^2. The teacher is a constant. The diagonal of the maps within a modality
    is 1 on both sides and contributes nothing.

    Args:
        student: Image and text vectors (B, d_S).
        teacher: Image and text vectors (B, d_T) of the same pairs; d_T may differ from d_S.
        inter_weight: lambda_inter, of the image-text map.
        intra_weight: lambda_intra, of the image-image and the text-text map.
        reduction: "sum" or "mean".

    Returns:
        A 0-d tensor, at least 0, and 0 where the maps agree.

    Raises:
        ValueError: Another number of pairs, an unknown reduction, or processes with unequal batches. Rows that
            are not of length 1 are refused by `Embeddings`.

    Source: seed 003, eqs 3.1-3.3 with errata E003-07, -08 and -10. Derived in notebooks/19_distillclip.ipynb.
    """
    inter = inter_modal_distance(student, teacher, reduction)
    return inter_weight * inter + intra_weight * intra_modal_distance(student, teacher, reduction)


def inter_modal_distance(
    student: Embeddings, teacher: Embeddings, reduction: str = "sum"
) -> Tensor:
    """Return eq. 3.1 alone, the distance of the image-text maps; see `similarity_map_distillation`."""
    check_same_pairs(student, teacher)
    return map_distance((student.image, student.text), (teacher.image, teacher.text), reduction)


def intra_modal_distance(
    student: Embeddings, teacher: Embeddings, reduction: str = "sum"
) -> Tensor:
    """Return eq. 3.2 alone, the distance within images plus that within texts."""
    check_same_pairs(student, teacher)
    image = map_distance((student.image,) * 2, (teacher.image,) * 2, reduction)
    return image + map_distance((student.text,) * 2, (teacher.text,) * 2, reduction)


def map_distance(
    student: tuple[Tensor, Tensor], teacher: tuple[Tensor, Tensor], reduction: str = "sum"
) -> Tensor:
    r"""Return the squared Frobenius norm of the difference of two maps, `left @ right.T` each.

    Nothing is normalised here and no length is checked: that is how eq. 3.1 reads as printed.

    Args:
        student: Left and right factor, (B, d_S) each.
        teacher: Left and right factor, (B, d_T) each; constants.
        reduction: "sum" or "mean" over the N x N entries.

    Raises:
        ValueError: Unknown reduction.
    """
    if reduction not in REDUCTIONS:
        raise ValueError(f"reduction={reduction!r} is unknown; valid: {', '.join(REDUCTIONS)}")
    difference = similarity(*student) - similarity(*teacher).detach()  # (B, N)
    squares = difference.square()
    return squares.mean() if reduction == "mean" else squares.sum() * world()[1]


def similarity_map_divergence(
    student: Embeddings,
    teacher: Embeddings,
    *,
    inter_weight: float = 1.0,
    intra_weight: float = 1.0,
) -> Tensor:
    r"""Match the scaled maps as distributions: an extension of DistillCLIP, not the source's loss.

    .. math:: L = \tfrac{\lambda_{inter}}{2} \big[ KL(P_{vw} \| Q_{vw}) + KL(P_{wv} \| Q_{wv}) \big]
              + \tfrac{\lambda_{intra}}{2} \big[ KL(P_{vv} \| Q_{vv}) + KL(P_{ww} \| Q_{ww}) \big]

    P (teacher) and Q (student) are softmaxes over the rows of the cosine maps times each model's own scale;
    the divergence is averaged over rows. Within a modality the diagonal is left out: at scale 100 it would take
    all of a row's mass.

    Args:
        student: Image and text vectors (B, d_S) with their scale.
        teacher: Image and text vectors (B, d_T) with their scale; constants.
        inter_weight: lambda_inter.
        intra_weight: lambda_intra.

    Returns:
        A 0-d tensor, at least 0.

    Raises:
        ValueError: Another number of pairs, or a single pair (nothing is left without the diagonal).

    Source: ours; after CLIP-KD and TinyCLIP, methods.md 15. Derived in notebooks/19_distillclip.ipynb.
    """
    check_same_pairs(student, teacher)

    def divergence(rows: str, columns: str) -> Tensor:
        return map_divergence(student, teacher, rows, columns)

    inter = divergence("image", "text") + divergence("text", "image")
    intra = divergence("image", "image") + divergence("text", "text")
    return (inter_weight * inter + intra_weight * intra) / 2


def map_divergence(student: Embeddings, teacher: Embeddings, rows: str, columns: str) -> Tensor:
    """Return KL(teacher || student) over the rows of one scaled map, its diagonal left out within a modality.

    Args:
        student: (B, d_S) with its scale.
        teacher: (B, d_T) with its scale; a constant.
        rows: "image" or "text".
        columns: "image" or "text".
    """
    ours, theirs = (scaled_map(model, rows, columns) for model in (student, teacher))
    if rows == columns:
        ours, theirs = _without_own(ours), _without_own(theirs)
    return kl_divergence(ours, theirs)


def scaled_map(model: Embeddings, rows: str, columns: str) -> Tensor:
    """Return the own rows (B, N) of a map, cosines times the model's scale."""
    left, right = getattr(model, rows), getattr(model, columns)
    return as_scale(model.scale, left) * similarity(left, right)


def similarity(left: Tensor, right: Tensor) -> Tensor:
    """Return the inner products (B, N) of the own rows of `left` with the rows of `right` of all processes.

    In float32 at least, also under autocast: the differences of cosines that are squared later are small.
    """
    with torch.autocast(left.device.type, enabled=False):
        dtype = torch.promote_types(left.dtype, torch.float32)
        right = right.to(dtype)
        return left.to(dtype) @ (gather_rows(right) if world()[1] > 1 else right).T


def check_same_pairs(student: Embeddings, teacher: Embeddings) -> None:
    """Stop unless both models saw equally many pairs, here and on every process.

    Raises:
        ValueError: naming the numbers.
    """
    if len(student.image) != len(teacher.image):
        raise ValueError(
            f"student and teacher must embed the same pairs, got {len(student.image)} and {len(teacher.image)}"
        )
    if world()[1] > 1:
        check_equal_shapes(student.image, False)


def _without_own(logits: Tensor) -> Tensor:
    """Return (B, N - 1): each row without the column of its own pair."""
    rows, columns = logits.shape
    if columns < 2:
        raise ValueError("maps within a modality need at least 2 pairs to compare, got 1")
    own = world()[0] * rows + torch.arange(rows, device=logits.device)
    other = torch.arange(columns, device=logits.device) != own[:, None]  # (B, N)
    return logits[other].view(rows, columns - 1)
