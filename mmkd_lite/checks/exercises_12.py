"""Checkers of notebook 12, image-text contrast."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmkd_lite.checks import close, expect
from mmkd_lite.losses import image_text_contrast


def exercise_1(similarity_gradient: Callable[[Tensor], Tensor]) -> None:
    """`similarity_gradient` is the derivative of the symmetric contrast with respect to its logits (B, B)."""
    generator = torch.Generator().manual_seed(0)
    for size in (2, 5):
        logits = torch.randn(size, size, generator=generator).requires_grad_()
        own = torch.arange(size)
        loss = (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)) / 2
        (expected,) = torch.autograd.grad(loss, logits)
        answer = similarity_gradient(logits.detach())
        expect(
            abs(float(answer.sum())) < 1e-5, "its entries sum to 0: softmax minus identity, twice"
        )
        close(answer, expected, what="row softmax + column softmax - 2 I, divided by 2 B")


def exercise_2(by_id: Callable[[Tensor, Tensor, Tensor, float], Tensor]) -> None:
    """`by_id` is the symmetric contrast in which pairs of one picture are not each other's negatives."""
    generator = torch.Generator().manual_seed(1)
    image, text = F.normalize(torch.randn(2, 6, 4, generator=generator), dim=-1).unbind()
    for ids in (torch.arange(6), torch.tensor([0, 1, 0, 2, 1, 0]), torch.zeros(6)):
        expected = image_text_contrast(image, text, 8.0, image_id=ids)
        close(by_id(image, text, ids, 8.0), expected, what=f"the loss for ids {ids.tolist()}")


class _Counted(nn.Linear):
    """A linear tower that remembers how many rows it held a graph for at once."""

    largest = 0

    def forward(self, rows: Tensor) -> Tensor:
        if torch.is_grad_enabled():
            self.largest = max(self.largest, len(rows))
        return super().forward(rows)


def exercise_3(
    cached_backward: Callable[[nn.Module, Tensor, Callable[[Tensor], Tensor], int], None],
) -> None:
    """`cached_backward` gives the gradient of the whole batch, with a graph for `size` rows at a time."""
    generator = torch.Generator().manual_seed(2)
    images, text = torch.randn(8, 5, generator=generator), torch.randn(8, 3, generator=generator)

    def loss(embedded: Tensor) -> Tensor:
        sides = F.normalize(embedded, dim=-1), F.normalize(text, dim=-1)
        return image_text_contrast(*sides, 5.0)

    tower = _Counted(5, 3)
    loss(tower(images)).backward()
    expected = [p.grad.clone() for p in tower.parameters() if p.grad is not None]
    tower.zero_grad()
    tower.largest = 0
    cached_backward(tower, images, loss, 2)
    expect(tower.largest == 2, f"the tower held a graph for {tower.largest} rows, allowed are 2")
    for parameter, gradient in zip(tower.parameters(), expected, strict=True):
        expect(parameter.grad is not None, "a parameter got no gradient")
        close(parameter.grad, gradient, what="the gradient of the whole batch")
