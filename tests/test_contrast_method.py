"""Image-text contrast as a method: limits, micro-batches, repeated pictures, what is trained."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from mmkd_lite.config import RunConfig, resolve
from mmkd_lite.data.pairs import open_pairs
from mmkd_lite.losses import image_text_contrast
from mmkd_lite.methods import build
from mmkd_lite.methods.contrast import ImageTextContrast
from mmkd_lite.optimizer import build_optimizer
from tests.method_checks import cut_and_resumed
from tests.reference_losses import image_text_contrast_loop
from tests.test_shared_space import a_batch

BATCH = 6


def tiny(overrides: dict | None = None, **settings: Any) -> RunConfig:
    chosen = {"train.batch_size": BATCH, **(overrides or {})}
    return resolve("contrast", "tiny", chosen, **settings)


def pairs_of(size: int = BATCH) -> dict[str, Tensor]:
    batch = a_batch(tiny(), 5)
    again = {name: torch.cat([value, value.flip(0)])[:size] for name, value in batch.items()}
    return {**again, "image_id": torch.arange(size)}


@pytest.mark.parametrize("variant", list(ImageTextContrast.variants))
def test_every_variant_trains_what_it_contrasts(variant: str) -> None:
    changes = {k: v for k, v in ImageTextContrast.variants[variant].items() if "train" not in k}
    changes |= {"options.micro_batch": 3} if variant == "micro_16" else {}
    method = build(tiny(changes)).double()
    terms = method.losses(pairs_of(), {}, 0.0)
    assert terms.keys() == method.default_weights.keys()
    terms["contrast"].backward()
    outside = ("space.shared.", "space.inward.") if variant == "flava" else ()
    for name, parameter in method.named_parameters():
        if parameter.requires_grad and not name.startswith(outside):
            assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name
    optimizer = build_optimizer(method, tiny().train)
    names = {name for group in optimizer.param_groups for name in group["names"]}
    assert names == {n for n, p in method.named_parameters() if p.requires_grad}
    fixed = {n for n, p in method.named_parameters() if not p.requires_grad}
    assert fixed == ({"scales.0.log_scale"} if variant in ("fixed", "scale_1") else set())


def test_batch_variants_see_equally_many_pairs() -> None:
    variants = ("none", "batch32", "batch128")
    trains = [
        resolve("contrast", "laptop", ImageTextContrast.variants[name]).train for name in variants
    ]
    assert len({train.steps * train.batch_size for train in trains}) == 1


def test_limits() -> None:
    method = build(tiny()).double()
    batch = pairs_of()
    value = method.losses(batch, {}, 0.0)["contrast"]
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    shuffled = {name: rows[order] for name, rows in batch.items()}
    torch.testing.assert_close(method.losses(shuffled, {}, 0.0)["contrast"], value)
    one = {name: rows[:1] for name, rows in batch.items()}
    assert float(method.losses(one, {}, 0.0)["contrast"].detach()) == pytest.approx(0.0, abs=1e-12)
    same = torch.nn.functional.normalize(torch.ones(BATCH, 4, dtype=torch.float64), dim=-1)
    assert float(image_text_contrast(same, same, 7.0)) == pytest.approx(math.log(BATCH))


def test_gradient_with_respect_to_the_similarities_is_probability_minus_identity() -> None:
    logits = torch.randn(4, 4, dtype=torch.float64, requires_grad=True)
    diagonal = torch.arange(4)
    loss = (
        torch.nn.functional.cross_entropy(logits, diagonal)
        + torch.nn.functional.cross_entropy(logits.T, diagonal)
    ) / 2
    (gradient,) = torch.autograd.grad(loss, logits)
    rows, columns = logits.softmax(1), logits.softmax(0)
    torch.testing.assert_close(gradient, (rows + columns - 2 * torch.eye(4)) / 8)


def test_micro_batches_give_what_accumulation_gives_and_no_more_negatives() -> None:
    whole, parts = build(tiny()).double(), build(tiny({"options.micro_batch": 3})).double()
    batch = pairs_of()
    for half in (slice(0, 3), slice(3, 6)):  # accumulation: two backward passes, one step
        share = {name: rows[half] for name, rows in batch.items()}
        (whole.losses(share, {}, 0.0)["contrast"] / 2).backward()
    accumulated = {name: p.grad.clone() for name, p in whole.named_parameters()}
    value = parts.losses(batch, {}, 0.0)["contrast"]
    value.backward()
    for name, parameter in parts.named_parameters():
        torch.testing.assert_close(parameter.grad, accumulated[name], rtol=1e-6, atol=1e-9)
    full = whole.losses(batch, {}, 0.0)["contrast"]
    assert float(full - value) > 0.3  # three candidates more for every query
    same = build(tiny({"options.micro_batch": BATCH})).double()
    assert float(same.losses(batch, {}, 0.0)["contrast"]) == pytest.approx(float(full), rel=1e-12)


@pytest.mark.parametrize("mask", [True, False])
def test_a_picture_that_occurs_twice_is_its_own_negative_only_without_the_mask(mask: bool) -> None:
    method = build(tiny({"options.mask_by_id": mask})).double()
    batch = pairs_of()
    batch["image_id"] = torch.tensor([0, 1, 2, 0, 4, 2])
    image = method.encode_image(batch["image"])
    text = method.encode_text(batch["tokens"])
    ids = batch["image_id"] if mask else None
    expected = image_text_contrast_loop(image, text, method.scales[0].value(), image_id=ids)
    found = method.losses(batch, {}, 0.0)["contrast"]
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-9)
    other = image_text_contrast_loop(
        image, text, method.scales[0].value(), image_id=None if mask else batch["image_id"]
    )
    assert abs(float(found - other)) > 1e-2


class EveryPictureTwice:
    """Pairs in which the second half of a batch repeats the pictures of the first."""

    def __init__(self, pairs: Any) -> None:
        self.pairs = pairs

    def batch(self, step: int, batch_size: int, rank: int = 0, world: int = 1) -> dict[str, Tensor]:
        half = self.pairs.batch(step, batch_size // 2, rank, world)
        return {name: torch.cat([rows, rows]) for name, rows in half.items()}


def test_it_trains_on_repeated_pictures_and_resumes_to_the_same_bytes(tmp_path: Path) -> None:
    settings = {"train.steps": 4, "train.checkpoint_every": 2, "options.layout": "vlmo"}
    whole, cut = (tiny(settings, out_dir=str(tmp_path / name)) for name in ("whole", "cut"))
    cut_and_resumed(whole, cut, pairs=EveryPictureTwice(open_pairs(cut)))


@pytest.mark.parametrize("size", [4, -2, 12])
def test_a_micro_batch_that_does_not_divide_is_refused(size: int) -> None:
    with pytest.raises(ValueError, match=rf"micro_batch={size} must divide train.batch_size=6"):
        build(tiny({"options.micro_batch": size}))
