"""Self-supervised image teachers: what is hidden, the bottleneck, the moving average, exact resume."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from mmkd_lite.config import resolve
from mmkd_lite.methods import build
from mmkd_lite.methods.self_supervised import MaskedPictures, standardised
from mmkd_lite.models import patchify
from mmkd_lite.train import fit


def method(name: str, **overrides: Any) -> Any:
    settings = {"image.layers": 4, **{k.replace("__", "."): v for k, v in overrides.items()}}
    return build(resolve(name, "tiny", settings))


def batch_of(model: Any, rows: int = 4, step: int = 0) -> dict[str, Tensor]:
    return MaskedPictures(model.config).batch(step, rows)


def test_every_picture_hides_the_same_share_at_other_places() -> None:
    config = resolve("masked_latents", "tiny", {"options.masked": 0.6})
    data = MaskedPictures(config)
    batch = data.batch(3, 64)
    masked = batch["masked"]
    assert masked.shape == (64, 16) and bool((masked.sum(1) == round(0.6 * 16)).all())
    assert len({tuple(row.tolist()) for row in masked}) > 60
    assert 0.4 < float(masked.float().mean(0).min()) and float(masked.float().mean(0).max()) < 0.8
    assert batch["image"].dtype == torch.float32 and 0 <= float(batch["image"].min())
    assert float(batch["image"].max()) <= 1


def test_batches_are_a_pure_function_of_the_step_and_split_over_processes() -> None:
    data = MaskedPictures(resolve("masked_latents", "tiny"))
    whole, again = data.batch(2, 8), data.batch(2, 8)
    halves = [data.batch(2, 4, rank, 2) for rank in range(2)]
    for key, value in whole.items():
        assert torch.equal(value, again[key])
        assert torch.equal(value, torch.cat([half[key] for half in halves]))
    assert not torch.equal(whole["masked"], data.batch(3, 8)["masked"])


def test_hidden_patches_are_unseen_and_the_others_are_seen() -> None:
    model = method("masked_latents").eval()
    batch = batch_of(model)
    masked, images = batch["masked"], batch["image"].clone().requires_grad_()
    states = model.masked_states(images, masked)
    states[-1].square().sum().backward()
    assert images.grad is not None
    reached = patchify(images.grad, 8).abs().sum(-1)
    assert bool((reached[masked] == 0).all()) and bool((reached[~masked] > 0).all())
    unmasked = model.masked_states(batch["image"], torch.zeros_like(masked))[-1]
    assert torch.equal(unmasked, model.model.encoder(batch["image"]))


def test_each_hidden_patch_keeps_its_place() -> None:
    model = method("masked_features")
    batch = batch_of(model)
    states = model.masked_states(batch["image"], batch["masked"])[0]
    rows = model.model.encoder.positions.rows()
    for row, patch in batch["masked"].nonzero().tolist():
        assert torch.allclose(states[row, 1 + patch], model.mask + rows[1 + patch])


@pytest.mark.parametrize("early", [0, 1, 2])
def test_layers_after_the_early_one_reach_the_loss_through_cls_only(early: int) -> None:
    model = method("masked_features", options__early=early)
    batch = batch_of(model)
    through, decode = {"cls": True}, model.decode
    model.decode = lambda cls, patches: decode(cls if through["cls"] else cls.detach(), patches)

    def reached() -> list[bool]:
        model.zero_grad()
        model.losses(batch, model.targets(batch), 0.0)["features"].backward()
        grads = [b.attention.output.weight.grad for b in model.model.encoder.transformer.blocks]
        return [grad is not None and bool(grad.abs().sum() > 0) for grad in grads]

    assert reached() == [True] * 4
    through["cls"] = False
    assert reached() == [layer < early for layer in range(4)]


def test_the_decoder_sees_final_cls_and_early_patches_and_is_judged_on_hidden_patches_only() -> (
    None
):
    model = method("masked_features", options__early=1).eval()
    batch, seen = batch_of(model), []
    decode = model.decode
    model.decode = lambda cls, patches: seen.append((cls, patches)) or decode(cls, patches)
    targets = model.targets(batch)
    loss = model.losses(batch, targets, 0.0)["features"]
    states = model.masked_states(batch["image"], batch["masked"])
    cls, patches = seen[0]
    assert torch.equal(cls, states[4][:, 0]) and torch.equal(patches, states[1][:, 1:])
    guess, total, count = decode(cls, patches), 0.0, 0
    for row, patch in batch["masked"].nonzero().tolist():
        difference = guess[row, patch].double() - targets["patches"][row, patch].double()
        total, count = total + difference.square().sum().item(), count + difference.numel()
    assert loss.item() == pytest.approx(total / count, rel=1e-5)
    changed = torch.where(batch["masked"][:, :, None], targets["patches"], torch.tensor(99.0))
    assert torch.equal(model.losses(batch, {"patches": changed}, 0.0)["features"], loss)


def test_targets_come_from_the_frozen_teacher_or_from_the_pixels() -> None:
    own = method("masked_features")
    batch = batch_of(own)
    pixels = own.targets(batch)["patches"]
    assert pixels.shape == (4, 16, 3 * 8 * 8)
    assert float(pixels.mean(-1).abs().max()) < 1e-5 and float(pixels.var(-1).max()) < 1.1
    told = method("masked_features", teacher="random-clip", data__image_size=48)
    before = told.teacher.fingerprint()
    batch = batch_of(told)
    targets = told.targets(batch)["patches"]
    assert targets.shape == (4, 36, 96) and not targets.requires_grad
    state = told.teacher.model.image_encoder(batch["image"])[2, 1 + 5]
    expected = (state - state.mean()) / (state.var(correction=0) + 1e-5).sqrt()
    assert torch.allclose(targets[2, 5], expected, atol=1e-5)
    told.losses(batch, {"patches": targets}, 0.0)["features"].backward()
    assert told.teacher.fingerprint() == before and not told.teacher.training
    assert all(weight.grad is None for weight in told.teacher.parameters())
    assert not any("teacher" in name for name in told.state_dict())


def test_latent_targets_are_means_of_instance_normalised_layers() -> None:
    model = method("masked_latents", options__top=2)
    images = batch_of(model, 2)["image"]
    found = model.latents(images)
    _, states = model.ema.encoder(images, return_hidden=True)
    for row, patch, channel in ((0, 3, 5), (1, 15, 31)):
        total = 0.0
        for layer in (3, 4):
            column = states[layer][row, 1:, channel].double()
            variance = (column - column.mean()).square().mean()
            total += float((column[patch] - column.mean()) / (variance + 1e-5).sqrt())
        assert float(found[row, patch, channel]) == pytest.approx(total / 2, abs=1e-4)
    assert not found.requires_grad


def test_the_average_sees_the_whole_picture_and_gets_no_gradient() -> None:
    model = method("masked_latents")
    batch, given = batch_of(model), []
    original = model.latents
    model.latents = lambda images: given.append(images) or original(images)
    model.losses(batch, {}, 0.0)["latents"].backward()
    assert torch.equal(given[0], batch["image"])
    assert all(
        weight.grad is None and not weight.requires_grad for weight in model.ema.parameters()
    )
    own = [model.mask, *model.model.parameters(), *model.head.parameters()]
    assert all(weight.grad is not None and bool(weight.grad.abs().sum() > 0) for weight in own)


def test_the_average_follows_after_each_step_with_the_scheduled_decay() -> None:
    model = method("masked_latents", options__decay=[0.5, 0.9])
    name = "encoder.patch_projection.bias"
    mean, value = model.ema.get_parameter(name), model.model.get_parameter(name)
    start = value.detach().clone()
    assert torch.equal(mean, start)
    with torch.no_grad():
        model.before_step(0.0)
        assert torch.equal(mean, start)  # the first step: nothing has been learned yet
        value.add_(1.0)  # what an optimiser's step does
        assert torch.equal(mean, start)
        model.before_step(0.5)
    assert torch.allclose(mean, 0.7 * start + 0.3 * (start + 1.0))
    assert torch.equal(value, start + 1.0)


@pytest.mark.parametrize("name", ["masked_features", "masked_latents"])
def test_an_interrupted_run_ends_with_the_same_bits(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MMKD_SCALE", raising=False)
    settings = {"train.steps": 5, "train.checkpoint_every": 2, "train.batch_size": 8}

    def config(folder: str) -> Any:
        return resolve(name, "tiny", settings, out_dir=str(tmp_path / folder))

    whole = fit(config("whole"))
    stopped = build(config("stopped"))
    before, calls = stopped.before_step, []

    def die_at_the_fourth(progress: float) -> None:
        calls.append(progress)
        if len(calls) == 4:
            raise RuntimeError("killed")
        before(progress)

    stopped.before_step = die_at_the_fourth
    with pytest.raises(RuntimeError, match="killed"):
        fit(config("stopped"), method=stopped)
    resumed = fit(config("stopped"))
    for file in ("model.safetensors", "metrics.jsonl"):
        assert (resumed.dir / file).read_bytes() == (whole.dir / file).read_bytes()
    state = whole.load_method().state_dict()
    if name == "masked_latents":
        key = "encoder.transformer.blocks.0.feed_forward.expand.weight"
        assert not torch.equal(state[f"ema.{key}"], state[f"model.{key}"])


def test_settings_that_cannot_work_stop_at_once() -> None:
    with pytest.raises(ValueError, match=r"options.early=4 must lie in 0..image.layers-1=3"):
        method("masked_features", options__early=4)
    with pytest.raises(ValueError, match=r"options.top=5 must lie in 1..image.layers=4"):
        method("masked_latents", options__top=5)
    with pytest.raises(ValueError, match=r"options.decay=\(0.9, 1.5\) must be two numbers"):
        method("masked_latents", options__decay=[0.9, 1.5])
    for share in (0.0, 1.0, 0.01):
        with pytest.raises(ValueError, match=f"options.masked={share} hides"):
            MaskedPictures(resolve("masked_latents", "tiny", {"options.masked": share}))


def test_standardised_leaves_a_plain_patch_plain() -> None:
    plain = torch.full((1, 1, 12), 0.3) + 1e-4 * torch.randn(1, 1, 12)
    assert float(standardised(plain, -1, 2.5e-4).abs().max()) < 0.05
    values = torch.randn(3, 5, 7) * 4 + 2
    for dim in (1, 2):
        done = standardised(values, dim)
        assert torch.allclose(done.mean(dim), torch.zeros(()), atol=1e-5)
        assert torch.allclose(done.var(dim, correction=0), torch.ones(()), atol=1e-4)
