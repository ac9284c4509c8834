"""Objectives of published peers: CLIP-KD's feature, relational and interactive ones, TinyCLIP's affinities.

They compare `Embeddings` of a student and a frozen teacher for the same pairs, like DistillCLIP's loss, so that
all of them can be tried at equal budget. The teacher is a constant in each. All of them are means over rows:
with several processes, DDP's average is the loss of one process with all the pairs.
"""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from mmkd_lite.embeddings import Embeddings
from mmkd_lite.losses.contrast import info_nce
from mmkd_lite.losses.regression import mean_squared_error
from mmkd_lite.losses.similarity_maps import check_same_pairs, map_divergence, scaled_map


def feature_distillation(student: Embeddings, teacher: Embeddings) -> Tensor:
    r"""Regress the teacher's embeddings, image on image and text on text ("FD" in CLIP-KD).

    .. math:: L = \frac{1}{B d} \sum_{m \in \{v, w\}} \| \tilde Z_S^m - \tilde Z_T^m \|_F^2

    The mean over all B * d elements is why CLIP-KD needs a weight of 2000. Unlike the maps, features must agree
    in width, and a rotation of the teacher changes the loss.

    Args:
        student: (B, d), projected to the teacher's width where its own differs.
        teacher: (B, d).

    Raises:
        ValueError: Another number of pairs or another width.

    Source: CLIP-KD, feature distillation; peers.md B3. Derived in notebooks/19_distillclip.ipynb.
    """
    _check_same_space(student, teacher)
    image = mean_squared_error(student.image, teacher.image)
    return image + mean_squared_error(student.text, teacher.text)


def relational_distillation(student: Embeddings, teacher: Embeddings) -> Tensor:
    r"""Match who resembles whom, as distributions ("CRD" in CLIP-KD, contrastive relational distillation).

    .. math:: L = \tfrac12 \big[ KL(P_{vw} \| Q_{vw}) + KL(P_{wv} \| Q_{wv}) \big]

    P and Q are row softmaxes of the cosine maps times each model's own scale. Not Tian et al.'s CRD.

    Args:
        student: (B, d_S) with its scale.
        teacher: (B, d_T) with its own.

    Raises:
        ValueError: Another number of pairs.

    Source: CLIP-KD; peers.md B2 and B3. Derived in notebooks/19_distillclip.ipynb.
    """
    check_same_pairs(student, teacher)
    to_text = map_divergence(student, teacher, "image", "text")
    return (to_text + map_divergence(student, teacher, "text", "image")) / 2


def interactive_contrast(
    student: Embeddings, teacher: Embeddings, *, image_id: Tensor | None = None
) -> Tensor:
    r"""Contrast the student's vectors with the *teacher's* of the other modality ("ICL" in CLIP-KD).

    .. math:: L = \tfrac12 \big[ \mathrm{InfoNCE}(\tilde Z_S^v, \tilde Z_T^w; s)
              + \mathrm{InfoNCE}(\tilde Z_S^w, \tilde Z_T^v; s) \big]

    The scale s is the student's. With student = teacher this is the image-text contrast.

    Args:
        student: (B, d), projected to the teacher's width where its own differs.
        teacher: (B, d).
        image_id: (B,) integers; pairs of equal id are not each other's negatives.

    Raises:
        ValueError: Another number of pairs or another width.

    Source: CLIP-KD; peers.md B3. Derived in notebooks/19_distillclip.ipynb.
    """
    _check_same_space(student, teacher)
    losses = [
        info_nce(query, key.detach(), student.scale, query_id=image_id, key_id=image_id)
        for query, key in ((student.image, teacher.text), (student.text, teacher.image))
    ]
    return (losses[0] + losses[1]) / 2


def affinity_mimicking(
    student: Embeddings, teacher: Embeddings, *, scale: float | None = None
) -> Tensor:
    r"""Cross-entropy of the student's affinities under the teacher's, both directions (TinyCLIP).

    .. math:: L = -\tfrac{1}{2B} \sum_{i,j} \big[ P_{vw,ij} \log Q_{vw,ij} + P_{wv,ij} \log Q_{wv,ij} \big]

    This is `relational_distillation` plus the teacher's entropy, which no parameter moves: equal gradients.

    Args:
        student: (B, d_S) with its scale.
        teacher: (B, d_T) with its own.
        scale: One fixed scale for both models (TinyCLIP offers 50); None takes each model's own.

    Returns:
        A 0-d tensor, at least the teacher's mean entropy.

    Raises:
        ValueError: Another number of pairs, or a scale that is not positive.

    Source: TinyCLIP; peers.md B4. Derived in notebooks/19_distillclip.ipynb.
    """
    if scale is not None:
        student, teacher = replace(student, scale=scale), replace(teacher, scale=scale)
    check_same_pairs(student, teacher)
    total = student.image.new_zeros(())
    for rows, columns in (("image", "text"), ("text", "image")):
        affinity = scaled_map(teacher, rows, columns).detach().softmax(-1)  # (B, N)
        total = (
            total - (affinity * scaled_map(student, rows, columns).log_softmax(-1)).sum(-1).mean()
        )
    return total / 2


def _check_same_space(student: Embeddings, teacher: Embeddings) -> None:
    check_same_pairs(student, teacher)
    if student.image.shape != teacher.image.shape:
        raise ValueError(
            f"student width {student.image.shape[1]} and teacher width {teacher.image.shape[1]} differ; "
            "project the student to the teacher's width first"
        )
