"""Progressive self-distillation: targets by loops, the limits, exact resume, two processes, finite data."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mmkd_lite.config import RunConfig, resolve
from mmkd_lite.data.pairs import RecycledEmojiPairs, open_pairs
from mmkd_lite.losses import (
    hard_bootstrapping,
    image_text_contrast,
    label_smoothing,
    soft_alignment,
)
from mmkd_lite.losses.soft_alignment import draw_aligned, soft_targets
from mmkd_lite.methods import METHODS, build
from mmkd_lite.methods.psd import ProgressiveSelfDistillation, aligned_share
from tests.method_checks import cut_and_resumed
from tests.reference_losses import image_text_contrast_loop, soft_alignment_loop

IDS = torch.tensor([3, 1, 2, 1, 5])
VARIANTS = ProgressiveSelfDistillation.variants


def inputs(size: int = 5) -> list[Tensor]:
    generator = torch.Generator().manual_seed(4)
    rows = torch.randn(2, size, 6, generator=generator, dtype=torch.float64)
    return [*F.normalize(rows, dim=-1).unbind(), torch.tensor(6.0, dtype=torch.float64)]


def drawn(seed: int = 2) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def value_and_gradients(function, *tensors: Tensor) -> list[Tensor]:
    leaves = [tensor.clone().requires_grad_() for tensor in tensors]
    value = function(*leaves)
    return [value.detach(), *torch.autograd.grad(value, leaves)]


def assert_equal_with_gradients(first, second, rtol: float = 1e-9) -> None:
    results = (value_and_gradients(f, *inputs()) for f in (first, second))
    for found, expected in zip(*results, strict=True):
        torch.testing.assert_close(found, expected, rtol=rtol, atol=1e-13)
    assert expected.abs().max() > 1e-4


@pytest.mark.parametrize("fraction", [0.0, 0.3, 0.6])
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"swapped": False, "mix": 0.7},
        {"target_temperature": 0.5, "keep_diagonal": False},
        {"image_id": IDS, "mix": 0.4, "target_temperature": 3.0},
        {"image_id": IDS, "keep_diagonal": False},
    ],
)
def test_loss_and_gradient_equal_the_loop(fraction: float, settings: dict) -> None:
    aligned = draw_aligned(5, fraction, drawn())
    assert int(aligned.sum()) == math.ceil(fraction * 5)
    plain = {
        {"target_temperature": "temperature", "image_id": "ids"}.get(name, name): value
        for name, value in settings.items()
    }
    assert_equal_with_gradients(
        lambda v, w, s: soft_alignment(
            v, w, s, aligned_fraction=fraction, generator=drawn(), **settings
        ),
        lambda v, w, s: soft_alignment_loop(v, w, s, aligned, **plain),
    )


@pytest.mark.parametrize("ids", [None, IDS])
def test_all_aligned_or_no_soft_part_is_the_plain_contrast(ids: Tensor | None) -> None:
    def contrast(v: Tensor, w: Tensor, s: Tensor) -> Tensor:
        return image_text_contrast(v, w, s, image_id=ids)

    everything = soft_alignment(*inputs(), aligned_fraction=1, image_id=ids)
    assert torch.equal(everything, contrast(*inputs()))
    for settings in (
        {"aligned_fraction": 0.99},  # rounds up to all five pairs, through the soft path
        {"aligned_fraction": 0.0, "mix": 0.0},
    ):
        assert_equal_with_gradients(
            lambda v, w, s, settings=settings: soft_alignment(v, w, s, image_id=ids, **settings),
            contrast,
        )
    for baseline in (label_smoothing, hard_bootstrapping):
        off = {"smoothing": 0.0} if baseline is label_smoothing else {"trust": 1.0}
        assert_equal_with_gradients(
            lambda v, w, s, f=baseline, off=off: f(v, w, s, image_id=ids, **off), contrast
        )


def test_targets_are_constant_distributions_even_where_nobody_picks_a_row() -> None:
    image, text, _ = inputs()
    logits = (100 * image @ text.T).float().requires_grad_()
    lonely = torch.full_like(logits, 0.0)
    lonely[2] = -500.0  # every caption gives picture 2 a probability of 0 in float32
    aligned = torch.tensor([True, False, False, True, False])
    for scores in (logits, lonely):
        for swapped in (True, False):
            for keep in (True, False):
                target = soft_targets(scores, aligned, swapped, keep_diagonal=keep)
                assert not target.requires_grad and bool(torch.isfinite(target).all())
                torch.testing.assert_close(target.sum(1), torch.ones(5))
                assert torch.equal(target[aligned], torch.eye(5)[aligned])
                assert keep or float(target.diagonal()[~aligned].sum()) == 0
    one_pair = soft_targets(torch.zeros(1, 1), torch.tensor([False]), keep_diagonal=False)
    assert float(one_pair) == 1.0
    sharp = soft_targets(1e4 * torch.eye(5), ~torch.ones(5, dtype=torch.bool))
    assert torch.equal(sharp, torch.eye(5))  # certain of every pair: one-hot, hence the contrast


def test_unswapped_soft_targets_teach_nothing_and_swapped_ones_do() -> None:
    def gradient(swapped: bool) -> float:
        found = value_and_gradients(
            lambda v, w, s: soft_alignment(v, w, s, aligned_fraction=0.0, swapped=swapped),
            *inputs(),
        )
        return max(float(part.abs().max()) for part in found[1:])

    assert gradient(swapped=False) < 1e-15
    assert gradient(swapped=True) > 1e-3


def test_symmetry_permutation_and_draw() -> None:
    image, text, scale = inputs()
    soft = {"aligned_fraction": 0.0, "image_id": IDS}
    value = soft_alignment(image, text, scale, **soft)
    torch.testing.assert_close(soft_alignment(text, image, scale, **soft), value)
    order = torch.tensor([3, 0, 4, 1, 2])
    moved = soft_alignment(
        image[order], text[order], scale, aligned_fraction=0.0, image_id=IDS[order]
    )
    torch.testing.assert_close(moved, value)
    assert int(draw_aligned(10, 0.7).sum()) == 7 and int(draw_aligned(100, 0.55).sum()) == 55
    assert not torch.equal(draw_aligned(50, 0.5, drawn(1)), draw_aligned(50, 0.5, drawn(2)))


def test_baselines_equal_their_definitions() -> None:
    def smooth(v: Tensor, w: Tensor, s: Tensor) -> Tensor:
        logits = s * v @ w.T
        rows = [logits.log_softmax(1), logits.T.log_softmax(1)]
        hard = image_text_contrast_loop(v, w, s)
        return 0.7 * hard - 0.3 * (rows[0].mean() + rows[1].mean()) / 2

    def bootstrap(v: Tensor, w: Tensor, s: Tensor) -> Tensor:
        logits = s * v @ w.T
        chosen = [-x.log_softmax(1).max(1).values.mean() for x in (logits, logits.T)]
        return 0.6 * image_text_contrast_loop(v, w, s) + 0.4 * sum(chosen) / 2

    assert_equal_with_gradients(lambda v, w, s: label_smoothing(v, w, s, smoothing=0.3), smooth)
    assert_equal_with_gradients(lambda v, w, s: hard_bootstrapping(v, w, s, trust=0.6), bootstrap)


def test_rivals_count_candidates_of_other_pictures_only() -> None:
    """Pictures 1 and 3 are the same, so each has four candidates and not five."""
    may = (IDS[:, None] != IDS[None]) | torch.eye(5, dtype=torch.bool)

    def log_probabilities(v: Tensor, w: Tensor, s: Tensor) -> list[Tensor]:
        logits = (s * v @ w.T).masked_fill(~may, -torch.inf)
        return [logits.log_softmax(1), logits.T.log_softmax(1)]

    def own(v: Tensor, w: Tensor, s: Tensor) -> Tensor:
        return image_text_contrast_loop(v, w, s, image_id=IDS)

    def smooth(v: Tensor, w: Tensor, s: Tensor) -> Tensor:
        rows = [torch.stack([r[m].mean() for r, m in zip(x, may, strict=True)]) for x in
                log_probabilities(v, w, s)]  # fmt: skip
        return 0.7 * own(v, w, s) - 0.3 * (rows[0].mean() + rows[1].mean()) / 2

    def bootstrap(v: Tensor, w: Tensor, s: Tensor) -> Tensor:
        chosen = [-x.max(1).values.mean() for x in log_probabilities(v, w, s)]
        return 0.6 * own(v, w, s) + 0.4 * sum(chosen) / 2

    ids = {"image_id": IDS}
    smoothed = lambda v, w, s: label_smoothing(v, w, s, smoothing=0.3, **ids)  # noqa: E731
    trusting = lambda v, w, s: hard_bootstrapping(v, w, s, trust=0.6, **ids)  # noqa: E731
    assert_equal_with_gradients(smoothed, smooth)
    assert_equal_with_gradients(trusting, bootstrap)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"aligned_fraction": 1.2}, r"aligned_fraction=1.2 must lie in \[0, 1\]"),
        ({"aligned_fraction": -0.1}, r"aligned_fraction=-0.1 must lie in \[0, 1\]"),
        ({"aligned_fraction": math.nan}, "aligned_fraction=nan"),
        ({"aligned_fraction": 1.0, "mix": 2.0}, r"mix=2.0 must lie in \[0, 1\]"),
        ({"aligned_fraction": 0.5, "target_temperature": 0.0}, "temperature must be"),
        ({"aligned_fraction": 0.5, "image_id": IDS[:3]}, "image_id"),
    ],
)
def test_bad_arguments_are_named(settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        soft_alignment(*inputs(), **settings)


# --- The method -------------------------------------------------------------------------------


def tiny(overrides: dict | None = None, **settings: object) -> RunConfig:
    chosen = {"image.start": "", "text.start": "", "train.batch_size": 6, **(overrides or {})}
    return resolve("psd", "tiny", chosen, **settings)


def a_batch(config: RunConfig) -> dict[str, Tensor]:
    return open_pairs(config).batch(0, config.train.batch_size)


def test_the_schedule_runs_from_four_fifths_to_one_fifth() -> None:
    shares = [aligned_share(step / 8) for step in range(9)]
    assert shares[0] == pytest.approx(0.8) and shares[-1] == pytest.approx(0.2)
    assert shares[4] == pytest.approx(0.5) and shares == sorted(shares, reverse=True)
    assert aligned_share(0.3, 1.0, 1.0) == 1.0


@pytest.mark.parametrize("variant", ["psd", "infonce", "label_smoothing", "bootstrapping"])
def test_every_objective_trains_every_parameter(variant: str) -> None:
    config = tiny(VARIANTS[variant])
    method = build(config).train()
    method.losses(a_batch(config), {}, 0.5)["contrast"].backward()
    for name, parameter in method.named_parameters():
        if "attention.key.bias" not in name:
            assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name
    assert method.teacher is None


def test_method_equals_the_loop_and_its_limits_equal_infonce() -> None:
    config = tiny()
    method = build(config).double()
    batch = {k: v.double() if v.is_floating_point() else v for k, v in a_batch(config).items()}
    rows = method.encode_image(batch["image"]), method.encode_text(batch["tokens"])
    scale = method.scales[0].value()
    aligned = draw_aligned(6, 0.5, method._generator(0.5))
    expected = soft_alignment_loop(*rows, scale, aligned, ids=batch["image_id"])
    torch.testing.assert_close(method.losses(batch, {}, 0.5)["contrast"], expected)
    infonce = image_text_contrast(*rows, scale, image_id=batch["image_id"])
    for overrides in (
        {"options.objective": "infonce"},
        {"options.aligned_first": 1.0, "options.aligned_last": 1.0},
    ):
        other = build(tiny(overrides)).double()
        assert torch.equal(other.losses(batch, {}, 0.5)["contrast"], infonce)


def test_the_aligned_set_depends_on_seed_and_step_only() -> None:
    method, other = build(tiny()), build(tiny(seed=1))
    sets = [draw_aligned(64, 0.5, method._generator(step / 8)) for step in range(8)]
    assert len({tuple(chosen.tolist()) for chosen in sets}) == 8
    torch.manual_seed(99)
    again = draw_aligned(64, 0.5, method._generator(3 / 8))
    assert torch.equal(again, sets[3])
    assert not torch.equal(draw_aligned(64, 0.5, other._generator(3 / 8)), sets[3])


def test_an_interrupted_run_ends_with_the_same_bits(tmp_path: Path) -> None:
    settings = {"train.steps": 5, "train.checkpoint_every": 2, "data.noise": 0.4}
    cut_and_resumed(*(tiny(settings, out_dir=str(tmp_path / name)) for name in ("whole", "cut")))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"options.objective": "soft"}, "valid: psd, infonce, label_smoothing, bootstrapping"),
        ({"options.aligned_last": -0.2}, r"options.aligned_last=-0.2 must lie in \[0, 1\]"),
        ({"options.aligned_first": 1.5}, r"options.aligned_first=1.5 must lie in \[0, 1\]"),
        ({"options.trust": 2.0}, "options.trust=2.0"),
        ({"options.target_temperature": 0.0}, "temperature must be"),
    ],
)
def test_bad_settings_are_named(overrides: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build(tiny(overrides))


# --- A share of the data ----------------------------------------------------------------------


def test_a_share_of_the_data_shows_each_pair_once_an_epoch_in_a_new_order() -> None:
    config = tiny({"options.scenes": 10, "data.noise": 0.5})
    pairs, fresh = METHODS["psd"].open_data(config), open_pairs(config)
    assert pairs.size == 10 and fresh.size is None
    shown = [pairs.batch(step, 5) for step in range(4)]
    epochs = [torch.cat([shown[k]["image_id"], shown[k + 1]["image_id"]]) for k in (0, 2)]
    assert all(sorted(epoch.tolist()) == list(range(10)) for epoch in epochs)
    assert not torch.equal(*epochs)
    whole = fresh.batch(0, 10)
    for batch in shown:  # the very pairs of the endless stream: picture, caption and its noise
        for name, values in batch.items():
            assert torch.equal(values, whole[name][batch["image_id"]])
    halves = [pairs.batch(1, 2, rank, 2)["image_id"] for rank in (0, 1)]
    assert torch.equal(torch.cat(halves), pairs.batch(1, 4)["image_id"])
    small = {s: RecycledEmojiPairs(config.data, scenes=s).batch(0, s) for s in (3, 10)}
    assert set(small[3]["caption_id"].tolist()) < set(small[10]["caption_id"].tolist())
    assert np.isin(VARIANTS["eighth"]["options.scenes"] * 8, [320 * 64]).all()


def test_a_share_of_other_data_is_refused() -> None:
    with pytest.raises(
        ValueError, match=r"options.scenes=10 needs data.source='emoji', not 'coco'"
    ):
        METHODS["psd"].open_data(tiny({"options.scenes": 10, "data.source": "coco"}))
    with pytest.raises(ValueError, match="scenes=-1 must be at least 1"):
        METHODS["psd"].open_data(tiny({"options.scenes": -1}))
