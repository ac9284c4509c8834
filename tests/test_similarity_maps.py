"""DistillCLIP's maps and the peers' objectives: loops, limit identities, refusals."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from mmkd_lite.embeddings import Embeddings
from mmkd_lite.losses import (
    affinity_mimicking,
    feature_distillation,
    image_text_contrast,
    interactive_contrast,
    relational_distillation,
    similarity_map_distillation,
    similarity_map_divergence,
)
from mmkd_lite.losses.similarity_maps import (
    inter_modal_distance,
    intra_modal_distance,
    map_distance,
    scaled_map,
)
from tests import reference_losses as loops

INTER, INTRA = ((0, 1), (1, 0)), ((0, 0), (1, 1))


def vectors(size: int, width: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(2, size, width, generator=generator, dtype=torch.float64)


def model(raw: torch.Tensor, scale: object = 1.0) -> Embeddings:
    return Embeddings(*F.normalize(raw, dim=-1), scale)


def orthogonal(width: int, seed: int) -> torch.Tensor:
    return torch.linalg.qr(vectors(width, width, seed)[0]).Q


def fd(s, t, scales):
    v, w = s
    mean = loops.mean_squared_error_loop
    return mean(v, t[0].detach()) + mean(w, t[1].detach())


def icl(s, t, scales):
    one = loops.info_nce_loop(s[0], t[1].detach(), scales[0])
    return (one + loops.info_nce_loop(s[1], t[0].detach(), scales[0])) / 2


def affinity(s, t, scales):
    rows = [
        loops.soft_cross_entropy_loop(
            loops.map_rows_loop(s[r], s[c], scales[0]), loops.map_rows_loop(t[r], t[c], scales[1])
        )
        for r, c in INTER
    ]
    return sum(rows) / 2


CASES = {
    "both": (
        similarity_map_distillation,
        lambda s, t, scales: loops.similarity_maps_loop(s, t),
    ),
    "weighted mean": (
        lambda s, t: similarity_map_distillation(
            s, t, inter_weight=0.3, intra_weight=1.7, reduction="mean"
        ),
        lambda s, t, scales: loops.similarity_maps_loop(s, t, 0.3, 1.7, mean=True),
    ),
    "divergence": (
        lambda s, t: similarity_map_divergence(s, t, inter_weight=2.0, intra_weight=0.5),
        lambda s, t, scales: (
            2.0 * loops.map_divergence_loop(s, t, scales, INTER)
            + 0.5 * loops.map_divergence_loop(s, t, scales, INTRA)
        ),
    ),
    "feature": (feature_distillation, fd),
    "relational": (
        relational_distillation,
        lambda s, t, scales: loops.map_divergence_loop(s, t, scales, INTER),
    ),
    "interactive": (interactive_contrast, icl),
    "affinity": (affinity_mimicking, affinity),
    "affinity at 50": (
        lambda s, t: affinity_mimicking(s, t, scale=50.0),
        lambda s, t, scales: affinity(s, t, (50.0, 50.0)),
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_value_and_gradient_equal_the_loops_and_the_teacher_gets_none(name: str) -> None:
    ours, loop = CASES[name]
    width = 6 if name in ("feature", "interactive") else 4
    found = []
    for by_loop in (False, True):
        raw, theirs = vectors(5, width, 0).requires_grad_(), vectors(5, 6, 1).requires_grad_()
        log_scale = torch.tensor(math.log(3.0), dtype=torch.float64, requires_grad=True)
        student, teacher = model(raw, log_scale.exp()), model(theirs, 7.0)
        if by_loop:
            rows = ((student.image, student.text), (teacher.image, teacher.text))
            value = loop(*rows, (student.scale, teacher.scale))
        else:
            value = ours(student, teacher)
        value.backward()
        if not by_loop:
            assert theirs.grad is None
        scale_gradient = torch.zeros(()) if log_scale.grad is None else log_scale.grad
        found.append((value.detach(), raw.grad, scale_gradient.double()))
    assert found[0][1].abs().max() > 1e-4
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


def test_a_student_that_is_the_teacher_has_no_loss_and_no_gradient() -> None:
    raw = vectors(6, 5, 3).requires_grad_()
    teacher = model(raw.detach(), 9.0)
    for loss in (
        similarity_map_distillation,
        similarity_map_divergence,
        relational_distillation,
        feature_distillation,
    ):
        value = loss(model(raw, 9.0), teacher)
        assert float(value.detach()) == pytest.approx(0.0, abs=1e-12)
        gradient = torch.autograd.grad(value, raw)[0]
        assert float(gradient.abs().max()) < 1e-12
    student = model(raw, 9.0)
    own = interactive_contrast(student, teacher)
    contrast = image_text_contrast(student.image, student.text, 9.0)
    assert float(own.detach()) == pytest.approx(float(contrast.detach()), rel=1e-12)
    entropy = sum(
        torch.distributions.Categorical(logits=scaled_map(teacher, a, b)).entropy().mean() / 2
        for a, b in (("image", "text"), ("text", "image"))
    )
    assert float(affinity_mimicking(student, teacher).detach()) == pytest.approx(float(entropy))


def test_affinity_is_relational_plus_a_constant() -> None:
    teacher, gaps, gradients = model(vectors(6, 8, 4), 5.0), [], []
    for seed in (5, 6):
        raw = vectors(6, 3, seed).requires_grad_()
        losses = [
            f(model(raw, 4.0), teacher) for f in (affinity_mimicking, relational_distillation)
        ]
        gaps.append(float(losses[0].detach() - losses[1].detach()))
        gradients.append([torch.autograd.grad(loss, raw)[0] for loss in losses])
    assert gaps[0] == pytest.approx(gaps[1], rel=1e-12) and gaps[0] > 0
    for pair in gradients:
        torch.testing.assert_close(*pair, rtol=1e-10, atol=1e-14)


def test_who_notices_a_rotation() -> None:
    """Both modalities turned alike: maps stay, features do not. One turned: only intra maps stay."""
    student, teacher = model(vectors(6, 5, 7), 4.0), model(vectors(6, 5, 8), 6.0)
    turn, other = orthogonal(5, 9), orthogonal(5, 10)
    alike = replace(student, image=student.image @ turn, text=student.text @ turn)
    apart = replace(student, image=student.image @ turn, text=student.text @ other)

    def change(loss, turned) -> float:
        return abs(float(loss(turned, teacher) - loss(student, teacher)))

    maps = (similarity_map_distillation, relational_distillation, affinity_mimicking)
    assert all(change(loss, alike) < 1e-12 for loss in (*maps, similarity_map_divergence))
    assert change(feature_distillation, alike) > 1e-3
    assert change(interactive_contrast, alike) > 1e-3
    assert change(intra_modal_distance, apart) < 1e-12
    assert change(inter_modal_distance, apart) > 1e-3
    assert change(similarity_map_distillation, apart) > 1e-3


def test_reductions_and_parts_add_up() -> None:
    student, teacher = model(vectors(6, 4, 11)), model(vectors(6, 9, 12))
    total = similarity_map_distillation(student, teacher)
    mean = similarity_map_distillation(student, teacher, reduction="mean")
    assert float(total) == pytest.approx(36 * float(mean), rel=1e-12)
    inter, intra = (f(student, teacher) for f in (inter_modal_distance, intra_modal_distance))
    assert float(total) == pytest.approx(float(inter + intra), rel=1e-12)
    only = similarity_map_distillation(student, teacher, inter_weight=0.0, intra_weight=2.0)
    assert float(only) == pytest.approx(2 * float(intra), rel=1e-12)


def test_joint_permutation_of_pairs_changes_nothing() -> None:
    student, teacher = model(vectors(6, 5, 13), 3.0), model(vectors(6, 5, 14), 8.0)
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    for ours, _ in CASES.values():
        shuffled = (
            replace(m, image=m.image[order], text=m.text[order]) for m in (student, teacher)
        )
        assert float(ours(*shuffled)) == pytest.approx(float(ours(student, teacher)), rel=1e-10)


def test_the_printed_equation_is_not_a_distance_of_cosines() -> None:
    """E003-07: without tildes on the texts, their lengths alone create a loss."""
    raw = vectors(4, 5, 15)
    image = F.normalize(raw[0], dim=-1)
    assert float(map_distance((image, 3 * raw[1]), (image, raw[1]))) > 1.0
    teacher = model(raw)
    assert float(similarity_map_distillation(model(raw * 3), teacher)) < 1e-20


def test_one_pair_and_half_precision_are_fine() -> None:
    one = model(vectors(1, 3, 16)), model(vectors(1, 4, 17))
    cosines = [float((m.image * m.text).sum()) for m in one]
    expected = (cosines[0] - cosines[1]) ** 2
    assert float(similarity_map_distillation(*one)) == pytest.approx(expected, rel=1e-9)
    with pytest.raises(ValueError, match="at least 2 pairs"):
        similarity_map_divergence(*one)
    wide, narrow = model(vectors(8, 64, 18).float()), model(vectors(8, 32, 19).float())
    with torch.autocast("cpu", torch.bfloat16):
        mixed = similarity_map_distillation(narrow, wide)
    assert mixed.dtype == torch.float32
    assert float(mixed) == float(similarity_map_distillation(narrow, wide))


def test_bad_input_is_named() -> None:
    student, teacher = model(vectors(4, 3, 20)), model(vectors(5, 3, 21))
    with pytest.raises(ValueError, match="same pairs, got 4 and 5"):
        similarity_map_distillation(student, teacher)
    with pytest.raises(ValueError, match="reduction='batchmean' is unknown; valid: sum, mean"):
        similarity_map_distillation(student, student, reduction="batchmean")
    wider = model(vectors(4, 6, 22))
    for loss in (feature_distillation, interactive_contrast):
        with pytest.raises(ValueError, match="student width 3 and teacher width 6 differ"):
            loss(student, wider)
    with pytest.raises(ValueError, match=r"positive|finite number"):
        affinity_mimicking(student, wider, scale=-1.0)
    raw = vectors(4, 3, 20)
    with pytest.raises(ValueError, match="text embeddings must have unit length"):
        Embeddings(F.normalize(raw[0], dim=-1), 2 * F.normalize(raw[1], dim=-1))
    with pytest.raises(ValueError, match="image embeddings must have unit length"):
        Embeddings(raw[0] * float("nan"), F.normalize(raw[1], dim=-1))
