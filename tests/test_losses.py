"""Mean squared error, KL divergence cross-entropy: against loops, in the limit, at bad input."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from mmkd_lite import losses
from mmkd_lite.losses import cross_entropy, kl_divergence, mean_squared_error
from tests.reference_losses import cross_entropy_loop, kl_divergence_loop, mean_squared_error_loop


def numbers(*shape: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def value_and_gradient(function, first, *others):
    first = first.clone().requires_grad_()
    value = function(first, *others)
    (gradient,) = torch.autograd.grad(value, first)
    return value.detach(), gradient


def assert_same(function, loop, first, *others):
    value, gradient = value_and_gradient(function, first, *others)
    expected, expected_gradient = value_and_gradient(loop, first, *others)
    torch.testing.assert_close(value, expected, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(gradient, expected_gradient, rtol=1e-10, atol=1e-14)


# --- Against the loop versions -----------------------------------------------------------------


def test_mean_squared_error_equals_the_loop():
    assert_same(mean_squared_error, mean_squared_error_loop, numbers(4, 3), numbers(4, 3, seed=1))


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
def test_kl_divergence_equals_the_loop(temperature):
    student, teacher = numbers(4, 6), 2 * numbers(4, 6, seed=1)
    assert_same(kl_divergence, kl_divergence_loop, student, teacher, temperature)


def test_cross_entropy_equals_the_loop():
    assert_same(cross_entropy, cross_entropy_loop, numbers(4, 5), torch.tensor([0, 4, 2, 2]))


def test_leading_axes_count_as_rows():
    student, teacher = numbers(2, 3, 5), numbers(2, 3, 5, seed=1)
    flat = kl_divergence(student.reshape(6, 5), teacher.reshape(6, 5))
    assert kl_divergence(student, teacher) == flat
    target = torch.tensor([[0, 1, 2], [3, 4, 0]])
    assert cross_entropy(student, target) == cross_entropy(student.reshape(6, 5), target.flatten())


# --- What the definitions promise --------------------------------------------------------------


def test_mean_squared_error_is_the_squared_distance_over_d():
    prediction, target = numbers(1, 8), numbers(1, 8, seed=1)
    squared_distance = torch.linalg.vector_norm(prediction - target) ** 2
    torch.testing.assert_close(mean_squared_error(prediction, target), squared_distance / 8)


def test_kl_is_zero_with_zero_gradient_where_student_equals_teacher():
    logits = 3 * numbers(4, 7)
    value, gradient = value_and_gradient(kl_divergence, logits, logits + 5.0, 2.0)
    assert abs(value) < 1e-14
    assert gradient.abs().max() < 1e-14


def test_kl_has_the_teacher_as_the_weighting_distribution():
    teacher, student = torch.tensor([[4.0, 0.0]]), torch.tensor([[0.0, 0.0]])
    p = 1 / (1 + math.exp(-4.0))
    by_hand = p * math.log(p / 0.5) + (1 - p) * math.log((1 - p) / 0.5)
    reverse = 0.5 * math.log(0.5 / p) + 0.5 * math.log(0.5 / (1 - p))
    assert kl_divergence(student, teacher).item() == pytest.approx(by_hand, rel=1e-6)
    assert abs(by_hand - reverse) > 0.3


def test_kl_times_squared_temperature_tends_to_half_the_mean_squared_centred_difference():
    student, teacher = numbers(5, 10), numbers(5, 10, seed=1)
    difference = student - teacher
    centred = difference - difference.mean(dim=1, keepdim=True)
    limit = 0.5 * (centred**2).mean()
    torch.testing.assert_close(kl_divergence(student, teacher, 1e4), limit, rtol=1e-3, atol=0)


def test_kl_sums_over_classes_and_averages_over_rows():
    student, teacher = numbers(4, 6), numbers(4, 6, seed=1)
    repeated = kl_divergence(student.repeat(3, 1), teacher.repeat(3, 1))
    torch.testing.assert_close(repeated, kl_divergence(student, teacher))
    pair = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]])
    split = tuple(torch.repeat_interleave(side, 10, dim=1) for side in pair)  # same shares, C = 20
    torch.testing.assert_close(kl_divergence(*split), kl_divergence(*pair))


def test_kl_and_soft_cross_entropy_differ_by_the_entropy_and_share_the_gradient():
    student, teacher = numbers(4, 6), numbers(4, 6, seed=1)
    p = teacher.softmax(dim=1)

    def soft_cross_entropy(logits):
        return F.cross_entropy(logits, p)

    value, gradient = value_and_gradient(kl_divergence, student, teacher)
    other, other_gradient = value_and_gradient(soft_cross_entropy, student)
    torch.testing.assert_close(other - value, -(p * p.log()).sum(dim=1).mean())
    torch.testing.assert_close(gradient, other_gradient)


def test_cross_entropy_is_kl_to_a_one_hot_teacher():
    logits, target = numbers(4, 5), torch.tensor([0, 4, 2, 2])
    nearly_one_hot = 1e3 * F.one_hot(target, 5).double()
    torch.testing.assert_close(cross_entropy(logits, target), kl_divergence(logits, nearly_one_hot))


def test_cross_entropy_of_equal_scores_is_log_of_the_number_of_classes():
    assert cross_entropy(torch.zeros(3, 7), torch.tensor([0, 3, 6])).item() == pytest.approx(
        math.log(7)
    )


@pytest.mark.parametrize("function", [mean_squared_error, kl_divergence])
def test_the_target_receives_no_gradient(function):
    student, teacher = numbers(3, 4).requires_grad_(), numbers(3, 4, seed=1).requires_grad_()
    function(student, teacher).backward()
    assert teacher.grad is None
    assert student.grad.abs().min() > 0


def test_rows_may_be_permuted_together():
    student, teacher, order = numbers(5, 4), numbers(5, 4, seed=1), torch.tensor([3, 0, 4, 1, 2])
    target = torch.tensor([0, 1, 2, 3, 0])
    for function, other in (
        (mean_squared_error, teacher),
        (kl_divergence, teacher),
        (cross_entropy, target),
    ):
        torch.testing.assert_close(function(student[order], other[order]), function(student, other))


@pytest.mark.parametrize("function", [mean_squared_error, kl_divergence])
def test_bfloat16_stays_finite_and_close(function):
    student, teacher = numbers(8, 16).float(), numbers(8, 16, seed=1).float()
    low = function(student.bfloat16(), teacher.bfloat16()).float()
    torch.testing.assert_close(low, function(student, teacher), rtol=0.03, atol=0)


def test_large_logits_do_not_overflow():
    student, teacher = torch.tensor([[1e4, 0.0]]), torch.tensor([[0.0, 1e4]])
    assert kl_divergence(student, teacher).item() == pytest.approx(1e4)
    assert cross_entropy(student, torch.tensor([1])).item() == pytest.approx(1e4)


# --- Bad input ---------------------------------------------------------------------------------


def test_shapes_are_never_broadcast():
    with pytest.raises(ValueError, match=r"same shape.*\(4,\).*\(4, 1\)"):
        mean_squared_error(torch.zeros(4), torch.zeros(4, 1))
    with pytest.raises(ValueError, match=r"same shape.*\(4, 3\).*\(1, 3\)"):
        kl_divergence(torch.zeros(4, 3), torch.zeros(1, 3))
    with pytest.raises(ValueError, match=r"\(4,\).*got \(3,\)"):
        cross_entropy(torch.zeros(4, 3), torch.zeros(3, dtype=torch.int64))


def test_swapped_arguments_of_cross_entropy_are_named():
    with pytest.raises(ValueError, match="swapped"):
        cross_entropy(torch.tensor([0, 1]), torch.zeros(2, 3))
    with pytest.raises(ValueError, match="class indices"):
        cross_entropy(torch.zeros(2, 3), torch.zeros(2))


@pytest.mark.parametrize("index", [-1, -100, 3])
def test_class_indices_out_of_range_are_refused(index):
    with pytest.raises(ValueError, match=r"\[0, 3\)"):
        cross_entropy(torch.zeros(2, 3), torch.tensor([0, index]))


@pytest.mark.parametrize("temperature", [0.0, -1.0, math.inf, math.nan])
def test_temperature_must_be_positive(temperature):
    with pytest.raises(ValueError, match="temperature"):
        kl_divergence(torch.zeros(2, 3), torch.zeros(2, 3), temperature)


def test_integers_and_empty_tensors_are_refused():
    with pytest.raises(ValueError, match="floating point"):
        mean_squared_error(torch.zeros(2), torch.zeros(2, dtype=torch.int64))
    with pytest.raises(ValueError, match="empty"):
        kl_divergence(torch.zeros(0, 3), torch.zeros(0, 3))
    with pytest.raises(ValueError, match="no elements"):
        mean_squared_error(torch.zeros(0, 3), torch.zeros(0, 3))


# --- The table ---------------------------------------------------------------------------------


def test_the_table_of_conventions_has_a_row_for_every_loss():
    table = losses.conventions_table()
    functions = [name for name in losses.__all__ if name != "conventions_table"]
    assert sorted(functions) == sorted(line.split()[0] for line in table.splitlines()[2:])
    assert max(len(line) for line in table.splitlines()) <= 120
