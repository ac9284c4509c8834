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


def cosine_distance_loop(prediction: Tensor, target: Tensor) -> Tensor:
    """Average 1 - cosine over the rows of two (B, d) tensors."""
    rows = []
    for predicted, wanted in zip(prediction, target, strict=True):
        lengths = torch.sqrt(dot(predicted, predicted) * dot(wanted, wanted))
        rows.append(1 - dot(predicted, wanted) / lengths)
    return sum_of(rows) / len(rows)


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


def map_loop(left: Tensor, right: Tensor) -> list[list[Tensor]]:
    """Inner products of the rows of two matrices, one by one."""
    return [[dot(a, b) for b in right] for a in left]


def map_distance_loop(student: tuple, teacher: tuple, mean: bool = False) -> Tensor:
    """Squared differences of two maps, each given by its left and right rows, added up (or averaged)."""
    ours, theirs = map_loop(*student), map_loop(*teacher)
    terms = [(a - b.detach()) ** 2 for x, y in zip(ours, theirs) for a, b in zip(x, y)]  # noqa: B905
    return sum_of(terms) / (len(terms) if mean else 1)


def similarity_maps_loop(student, teacher, inter: float = 1, intra: float = 1, mean: bool = False):
    """Equation 3.3 of DistillCLIP; models are (image rows, text rows)."""
    (v, w), (a, b) = student, teacher
    within = map_distance_loop((v, v), (a, a), mean) + map_distance_loop((w, w), (b, b), mean)
    return inter * map_distance_loop((v, w), (a, b), mean) + intra * within


def map_rows_loop(left: Tensor, right: Tensor, scale, skip_own: bool = False) -> Tensor:
    """The scaled map (B, N), or (B, N - 1) without each row's own column."""
    rows = map_loop(left, right)
    kept = [[x for j, x in enumerate(r) if not (skip_own and j == i)] for i, r in enumerate(rows)]
    return torch.stack([torch.stack([scale * x for x in row]) for row in kept])


def map_divergence_loop(student, teacher, scales, pairs) -> Tensor:
    """Mean divergence of the named maps: `pairs` lists (rows, columns), 0 for images, 1 for texts."""
    total = [
        kl_divergence_loop(
            map_rows_loop(student[r], student[c], scales[0], r == c),
            map_rows_loop(teacher[r], teacher[c], scales[1], r == c),
        )
        for r, c in pairs
    ]
    return sum_of(total) / 2


def soft_cross_entropy_loop(logits: Tensor, teacher_logits: Tensor) -> Tensor:
    """Average -sum p log q over the rows."""
    rows = [
        sum_of([-p.detach() * torch.log(q) for p, q in zip(softmax_loop(t), softmax_loop(s))])  # noqa: B905
        for s, t in zip(logits, teacher_logits, strict=True)
    ]
    return sum_of(rows) / len(rows)


def soft_alignment_loop(
    image,
    text,
    scale,
    aligned,
    swapped=True,
    mix=1.0,
    temperature=1.0,
    keep_diagonal=True,
    ids=None,
) -> Tensor:
    """Both directions with targets written out; `aligned` (B,) bool, `ids` (B,) for masked candidates."""
    logits = [[scale * x for x in row] for row in map_loop(image, text)]
    size, terms = len(logits), []
    for s in (logits, list(zip(*logits, strict=True))):  # row i asks, column j answers
        may = [
            [i == j or ids is None or ids[i] != ids[j] for j in range(size)] for i in range(size)
        ]
        soft = [[may[i][j] and (keep_diagonal or i != j) for j in range(size)] for i in range(size)]
        e = [[torch.exp(x.detach() / temperature) for x in row] for row in s]
        for i in range(size):
            belief = [s[i][i].detach() * 0] * size
            for j in range(size):
                if soft[i][j]:
                    others = [e[k][j] for k in range(size) if soft[k][j]] if swapped else [1]
                    belief[j] = e[i][j] / sum_of(others)
            total = sum_of([torch.exp(s[i][j]) for j in range(size) if may[i][j]])
            for j in range(size):
                if may[i][j]:
                    own, share = float(i == j), belief[j] / sum_of(belief)
                    target = own if aligned[i] else (1 - mix) * own + mix * share
                    terms.append(-target * torch.log(torch.exp(s[i][j]) / total))
    return sum_of(terms) / (2 * size)


def instance_norm_loop(state: Tensor, valid: list[int], eps: float = 1e-5) -> dict[int, Tensor]:
    """Token -> vector (D,) of one sequence (T, D), each channel over the valid tokens."""
    columns = []
    for channel in range(state.shape[1]):
        values = [state[t, channel] for t in valid]
        mean = sum_of(values) / len(values)
        variance = sum_of([(v - mean) ** 2 for v in values]) / len(values)
        columns.append([(v - mean) / torch.sqrt(variance + eps) for v in values])
    return {t: torch.stack([column[k] for column in columns]) for k, t in enumerate(valid)}


def hidden_states_loop(student, teacher, mask=None, layer_norm: bool = False) -> Tensor:
    """Squared error between averages of instance-normalised layers, one token and channel at a time."""

    def average(normalised: list[dict[int, Tensor]], token: int) -> Tensor:
        mean = sum_of([layer[token] for layer in normalised]) / len(normalised)
        if not layer_norm:
            return mean
        centre = sum_of(list(mean)) / len(mean)
        variance = sum_of([(v - centre) ** 2 for v in mean]) / len(mean)
        return torch.stack([(v - centre) / torch.sqrt(variance + 1e-5) for v in mean])

    squares = []
    for row in range(student[0].shape[0]):
        tokens = range(student[0].shape[1])
        valid = [t for t in tokens if mask is None or bool(mask[row, t])]
        sides = [[instance_norm_loop(h[row], valid) for h in side] for side in (student, teacher)]
        for t in valid:
            ours, theirs = (average(side, t) for side in sides)
            squares += [(a - b.detach()) ** 2 for a, b in zip(ours, theirs, strict=True)]
    return sum_of(squares) / len(squares)
