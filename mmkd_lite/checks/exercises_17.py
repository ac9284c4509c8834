"""Checkers of notebook 17, quantised image targets."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmkd_lite.checks import close, expect
from mmkd_lite.losses import image_text_contrast
from mmkd_lite.models.quantizer import Codebook


def exercise_1(best_guess: Callable[[Tensor, Tensor], float]) -> None:
    """`best_guess` is the accuracy of the best rule that names a code from a property alone."""
    generator = torch.Generator().manual_seed(0)
    code = torch.randint(3, (40,), generator=generator)
    known = (code + torch.randint(3, (40,), generator=generator) // 2) % 4
    rules = torch.tensor(list(product(range(3), repeat=4)))
    expected = (rules[:, known] == code).float().mean(1).max()
    close(best_guess(code, known), expected, what="the best of all rules from 4 values to 3 codes")
    close(best_guess(code, torch.zeros(40).long()), code.bincount().max() / 40, what="no knowledge")
    close(best_guess(code, torch.arange(40)), 1.0, what="a property that names the picture")


def exercise_2(revived: Callable[[Tensor, Tensor, Tensor, int], Tensor]) -> None:
    """`revived` puts codes idle for too long on the vectors that are farthest from every code."""
    generator = torch.Generator().manual_seed(1)
    for size in (8, 2):
        unit = F.normalize(torch.randn(size, 3, generator=generator), dim=-1)
        book = Codebook(6, 3, revive_after=4)
        book.idle.copy_(torch.tensor([0, 9, 3, 7, 4, 5]))
        before, idle = book.vectors.clone(), book.idle.clone()
        book.update(unit, book.nearest(unit))
        start, waited = _before_revival(before, idle, unit)
        given = start.clone()
        found = revived(start, waited, unit, 4)
        expect(torch.equal(start, given), "return new codes, leave the given ones as they are")
        close(found, book.vectors, what=f"the codes after a batch of {size}")


def _before_revival(codes: Tensor, idle: Tensor, unit: Tensor) -> tuple[Tensor, Tensor]:
    """Return codes and idle counts after the moving average, before any revival."""
    book = Codebook(*codes.shape)
    book.vectors.copy_(codes)
    book.idle.copy_(idle)
    book.update(unit, book.nearest(unit))
    return book.vectors.clone(), book.idle.clone()


class _Quantiser(nn.Module):
    """Answers as the published one does (E000-09): a dictionary, not a tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.codes = nn.Parameter(torch.randn(5, 4))

    def quantize_image(self, images: Tensor) -> dict[str, Tensor]:
        scores = images.mean((2, 3)) @ self.codes[:, :3].T
        return {"encoding_scores": scores, "embed_ind": scores.argmax(1)}


class _Text(nn.Module):
    """Embeds tokens (B, M); attends to those that the mask (B, M) keeps."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.mix = nn.Embedding(9, 4), _Shared()

    def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        return self.mix(self.embed(tokens), mask)[1]


class _Image(nn.Module):
    """Maps images (B, 3, H, W) to a sequence (B, H W, 4)."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(3, 4)

    def forward(self, images: Tensor) -> Tensor:
        return self.embed(images.flatten(2).mT)


class _Shared(nn.Module):
    """Returns two layers of a sequence (B, T, 4): (B, T, 8) and (B, T, 4)."""

    def __init__(self) -> None:
        super().__init__()
        self.expand, self.contract = nn.Linear(4, 8), nn.Linear(8, 4)

    def forward(self, sequence: Tensor, mask: Tensor | None = None) -> list[Tensor]:
        keep = torch.ones(sequence.shape[:2]) if mask is None else mask.float()
        mean = (keep[..., None] * sequence).sum(1) / keep.sum(1, keepdim=True)
        hidden = self.expand(sequence + mean[:, None])
        return [hidden, self.contract(F.gelu(hidden))]


def exercise_3(code_4: Callable[..., Tensor]) -> None:
    """`code_4` is the listing of seed 000 without its errors; the scales are 10 and 20."""
    torch.manual_seed(2)
    vq, image_encoder, text_encoder, shared = _Quantiser(), _Image(), _Text(), _Shared()
    head = nn.Linear(4, 5)
    images, tokens = torch.randn(6, 3, 2, 2), torch.randint(1, 9, (6, 7))
    tokens[::2, 4:] = 0
    parts: list[Any] = [vq, image_encoder, text_encoder, shared, head, (10.0, 20.0)]
    found = code_4(*parts, images, tokens)
    mask = tokens != 0
    image = [layer[:, 0] for layer in shared(image_encoder(images))]
    text = [layer[:, 0] for layer in shared(text_encoder(tokens, mask), mask)]
    code = vq.quantize_image(images)["embed_ind"]
    expected: Any = sum(F.cross_entropy(head(side[1]), code) for side in (image, text)) / 2
    for v, w, scale in zip(image, text, (10.0, 20.0), strict=True):
        sides = F.normalize(v, dim=-1), F.normalize(w, dim=-1)
        expected = expected + image_text_contrast(*sides, scale) / 2
    expect(torch.is_tensor(found) and found.ndim == 0, "return one number, a 0-d tensor")
    padded = torch.cat([tokens, torch.zeros(6, 3).long()], 1)
    close(code_4(*parts, images, padded), found, what="the loss with more padding (E000-07)")
    close(found, expected, what="half of both cross-entropies plus half of both contrasts")
    found.backward()
    expect(vq.codes.grad is None, "the quantiser must get no gradient")
