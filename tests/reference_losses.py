"""Loop versions of every loss, in float64 and by the definition: the oracle of the loss tests.

Nothing here is vectorised and nothing comes from `torch.nn.functional`: sums are written as loops
over single numbers, so that autograd yields the gradient of exactly what is written.
"""

from __future__ import annotations

import torch
from torch import Tensor


def mean_squared_error_loop(prediction: Tensor, target: Tensor) -> Tensor:
    """Average (prediction - target)**2 over the B * d elements of two (B, d) tensors."""
    total, count = prediction.new_zeros(()), 0
    for predicted_row, target_row in zip(prediction, target, strict=True):
        for predicted, wanted in zip(predicted_row, target_row, strict=True):
            total = total + (predicted - wanted) ** 2
            count += 1
    return total / count


def softmax_loop(logits: Tensor) -> list[Tensor]:
    """Return the probabilities of one row of logits (C,)."""
    exponentials = [torch.exp(value) for value in logits]
    total = sum_of(exponentials)
    return [value / total for value in exponentials]


def kl_divergence_loop(student: Tensor, teacher: Tensor, temperature: float = 1.0) -> Tensor:
    """Sum p log(p / q) over classes, average over rows, multiply by the squared temperature."""
    rows = []
    for student_row, teacher_row in zip(student, teacher, strict=True):
        q = softmax_loop(student_row / temperature)
        p = softmax_loop(teacher_row.detach() / temperature)
        rows.append(sum_of([a * torch.log(a / b) for a, b in zip(p, q, strict=True)]))
    return sum_of(rows) / len(rows) * temperature**2


def cross_entropy_loop(logits: Tensor, target: Tensor) -> Tensor:
    """Average -log(probability of the correct class) over the rows of (B, C)."""
    rows = [
        -torch.log(softmax_loop(row)[int(index)]) for row, index in zip(logits, target, strict=True)
    ]
    return sum_of(rows) / len(rows)


def info_nce_loop(
    query: Tensor,
    key: Tensor,
    scale: Tensor | float,
    *,
    bank: Tensor | None = None,
    bank_weight: Tensor | None = None,
    query_id: Tensor | None = None,
    key_id: Tensor | None = None,
    bank_id: Tensor | None = None,
) -> Tensor:
    """InfoNCE, the denominator written out; `bank_weight` (G,) multiplies the bank's terms."""
    losses = []
    for i in range(len(query)):
        positive = torch.exp(scale * dot(query[i], key[i]))
        denominator = positive
        for j in range(len(key)):
            same = query_id is not None and key_id is not None and query_id[i] == key_id[j]
            if j != i and not same:
                denominator = denominator + torch.exp(scale * dot(query[i], key[j]))
        for g in range(0 if bank is None else len(bank)):
            same = query_id is not None and bank_id is not None and query_id[i] == bank_id[g]
            if not same:
                weight = 1.0 if bank_weight is None else bank_weight[g]
                denominator = denominator + weight * torch.exp(scale * dot(query[i], bank[g]))
        losses.append(-torch.log(positive / denominator))
    return sum_of(losses) / len(losses)


def image_text_contrast_loop(
    image: Tensor,
    text: Tensor,
    scale: Tensor | float,
    *,
    bank_image: Tensor | None = None,
    bank_text: Tensor | None = None,
    bank_weight_image: Tensor | None = None,
    bank_weight_text: Tensor | None = None,
    image_id: Tensor | None = None,
    bank_id: Tensor | None = None,
) -> Tensor:
    """The mean of `info_nce_loop` from images to texts and from texts to images."""
    ids = {"query_id": image_id, "key_id": image_id, "bank_id": bank_id}
    to_text = info_nce_loop(image, text, scale, bank=bank_text, bank_weight=bank_weight_text, **ids)
    to_image = info_nce_loop(
        text, image, scale, bank=bank_image, bank_weight=bank_weight_image, **ids
    )
    return (to_text + to_image) / 2


def dot(a: Tensor, b: Tensor) -> Tensor:
    """Inner product of two vectors."""
    return sum_of([x * y for x, y in zip(a, b, strict=True)])


def sum_of(values: list[Tensor]) -> Tensor:
    """Add up numbers one by one."""
    total = values[0]
    for value in values[1:]:
        total = total + value
    return total
