"""Stagewise distillation: both stages by loops, what each stage moves, limits, exact resume, clear errors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor

from mmkd_lite.checkpoint import checkpoint_paths, load_checkpoint
from mmkd_lite.config import RunConfig, resolve
from mmkd_lite.evaluate import count_parameters
from mmkd_lite.methods import build
from mmkd_lite.methods.stagewise import TOWERS, Stagewise
from mmkd_lite.optimizer import build_optimizer
from mmkd_lite.train import fit
from tests.method_checks import cut_and_resumed, random_pairs
from tests.reference_losses import hidden_states_loop, image_text_contrast_loop

RANDOM = {
    "teacher": "random-vit",
    "options.text_teacher": "random-text",
    "image.start": "",
    "text.start": "",
    "train.batch_size": 4,
}
SHORT = {"train.steps": 6, "train.checkpoint_every": 1}
SMALL = {
    "teacher": "",
    "options.text_teacher": "",
    "options.teacher_layers": 3,
    "data.image_size": 16,
    "image.width": 16,
    "image.layers": 2,
    "text.width": 16,
    "text.layers": 2,
}
"""Own teachers of random weights, small enough for loops over tokens and channels."""

VARIANTS = Stagewise.variants
ONE, SLOW = VARIANTS["one_stage"], VARIANTS["two_stage_slow"]
SHARED = "space.shared."


def tiny(overrides: dict | None = None, **settings: Any) -> RunConfig:
    return resolve("stagewise", "tiny", {**RANDOM, **(overrides or {})}, **settings)


def a_batch(config: RunConfig, size: int = 4) -> dict[str, Tensor]:
    return random_pairs(config, [0, 1, 2, 1][:size], torch.float64)


def perturbed(config: RunConfig) -> Stagewise:
    """A method in float64 whose biases and norms are no longer 0 and 1."""
    method = build(config).double()
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for module in (method, method.teacher):
            for parameter in module.parameters():
                noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
                parameter.add_(0.05 * noise)
    return method


def hidden(encoder: Any, inputs: Tensor) -> list[Tensor]:
    return encoder(inputs, return_hidden=True)[1][1:]


def by_loops(method: Stagewise, batch: dict[str, Tensor], stage: int) -> dict[str, Tensor]:
    """Every term from the parts of the method, one token, one channel, one pair at a time."""
    space, guides, tokens = method.space, method.teacher.model, batch["tokens"]
    mask = tokens != 0
    terms = dict.fromkeys(method.default_weights, torch.zeros((), dtype=torch.float64))
    stages = method.config.options.stages
    if stage == 1:
        # Gradients are asked of the student alone, so a graph through the teacher does no harm.
        ours, theirs = (hidden(e, batch["image"]) for e in (space.image_encoder, guides.image))
        terms["hidden_image"] = hidden_states_loop(ours, theirs, None, layer_norm=True)
        ours, theirs = (hidden(e, tokens) for e in (space.text_encoder, guides.text))
        terms["hidden_text"] = hidden_states_loop(ours, theirs, mask)
    if stage == 2 or stages == 1:
        image = space.shared(space.image_encoder(batch["image"])).cls
        text = space.shared(space.text_encoder(tokens), mask).cls
        sides = [rows / rows.norm(dim=1, keepdim=True) for rows in (image, text)]
        scale = method.scales[0].log_scale.exp()
        terms["contrast"] = image_text_contrast_loop(*sides, scale, image_id=batch["image_id"])
    return terms


def gradients(method: Stagewise, total: Tensor) -> dict[str, Tensor | None]:
    names, tensors = zip(*method.named_parameters(), strict=True)
    needed = [t for t in tensors if t.requires_grad]
    found = iter(torch.autograd.grad(total, needed, allow_unused=True))
    return {
        name: next(found) if tensor.requires_grad else None
        for name, tensor in zip(names, tensors, strict=True)
    }


# ---------------------------------------------------------------- values and gradients


@pytest.mark.parametrize(
    ("settings", "progress"),
    [({}, 0.0), ({}, 0.5), (SLOW, 0.5), (ONE, 0.0), (ONE, 0.9)],
    ids=["stage 1", "stage 2 frozen", "stage 2 slow", "one stage", "one stage, late"],
)
def test_terms_and_every_gradient_equal_the_loops(settings: dict, progress: float) -> None:
    config = tiny({**settings, **SMALL})
    method, batch = perturbed(config), a_batch(config, 3)
    batch["tokens"] = batch["tokens"][:, :8]
    method.before_step(progress)
    two = config.options.stages == 2
    assert method.stage == (2 if two and progress >= 0.5 else 1)
    with torch.no_grad():
        targets = method.targets(batch)
    terms = method.losses(batch, targets, progress)
    expected = by_loops(method, batch, method.stage)
    assert terms.keys() == expected.keys() == config.weights.keys()
    for name, value in terms.items():
        torch.testing.assert_close(value, expected[name], rtol=1e-6, atol=1e-10)
    found = gradients(method, sum(terms.values()))
    wanted = gradients(method, sum(expected.values()))
    largest = max(float(g.abs().max()) for g in wanted.values() if g is not None)
    for name, gradient in wanted.items():
        assert (found[name] is None) == (gradient is None), name
        if gradient is not None:
            assert (found[name] - gradient).abs().max() <= 1e-6 * largest, name


def test_the_weights_of_the_terms_count() -> None:
    config = tiny({**ONE, "weights.hidden_text": 0.0})
    method, batch = perturbed(config), a_batch(config)
    terms = method.losses(batch, method.targets(batch), 0.0)
    assert terms["hidden_text"].item() > 0  # measured, but the distiller weighs it with 0
    off = perturbed(tiny(VARIANTS["contrast_only"]))
    assert off.targets(batch) == {}  # and with both at 0 no teacher is asked


# ---------------------------------------------------------------- what each stage trains


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_variant_trains_what_its_stage_says_and_never_the_teacher(variant: str) -> None:
    config = tiny(VARIANTS[variant])
    method = build(config).double().train()
    teacher = {k: v.clone() for k, v in method.teacher.state_dict().items()}
    assert len(teacher) > 100 and {k.split(".")[1] for k in teacher} == {"image", "text"}
    names = {name for name, _ in method.named_parameters()}
    towers = {name for name in names if name.startswith(TOWERS)}
    optimised = {n for g in build_optimizer(method, config.train).param_groups for n in g["names"]}
    assert optimised == names == towers | {n for n in names if n.startswith((SHARED, "scales."))}
    batch = a_batch(config)
    for progress in (0.0, 0.6):
        method.before_step(progress)
        method.zero_grad()
        with torch.no_grad():
            targets = method.targets(batch)
        terms = method.losses(batch, targets, progress)
        sum(config.weights[name] * term for name, term in terms.items()).backward()
        reached = {n for n, p in method.named_parameters() if p.grad is not None and p.grad.any()}
        reached |= {n for n in names if "key.bias" in n}
        stage = method.stage
        if config.options.stages == 1:
            expected = names
        elif stage == 1:
            expected = towers
        else:
            expected = names - towers if variant == "two_stage_frozen" else names
        assert expected <= reached | {n for n in expected if "query_key_value.bias" in n}
        assert reached - {n for n in names if "key.bias" in n} <= expected
    assert not any(module.training for module in method.teacher.modules())
    for name, value in method.teacher.state_dict().items():
        assert torch.equal(value, teacher[name]), name
    assert all(p.grad is None and not p.requires_grad for p in method.teacher.parameters())
    assert not any("teacher" in name or "guide" in name for name in method.state_dict())


def steps_of(run: Any) -> dict[int, dict[str, Tensor]]:
    """The method's tensors after each step that has a checkpoint."""
    found = (load_checkpoint(path) for path in checkpoint_paths(run.checkpoints))
    return {c.step: c.tensors for c in found}


def moved(a: dict[str, Tensor], b: dict[str, Tensor], prefix: str | tuple[str, ...]) -> set[str]:
    own = {f"method/{p}" for p in ((prefix,) if isinstance(prefix, str) else prefix)}
    return {k for k in a if k.startswith(tuple(own)) and not torch.equal(a[k], b[k])}


def test_stage_two_leaves_frozen_towers_and_their_moments_bit_equal(tmp_path, monkeypatch) -> None:
    keep_all(monkeypatch)
    run = fit(tiny({**SHORT, "train.weight_decay": 0.1}, out_dir=str(tmp_path)))
    after = steps_of(run)
    assert not moved(after[1], after[3], (SHARED, "scales."))  # stage 1 leaves the rest alone
    assert moved(after[2], after[3], TOWERS)
    assert not moved(after[3], after[6], TOWERS)
    assert moved(after[3], after[4], SHARED)
    own = tuple(f"optimizer/method.{name}" for name in TOWERS)
    moments = [k for k in after[3] if k.startswith(own)]
    assert moments and all(torch.equal(after[3][k], after[6][k]) for k in moments)
    rows = run.metrics()
    assert [row["contrast"] > 0 for row in rows] == [False] * 3 + [True] * 3
    for name in ("hidden_image", "hidden_text"):
        assert [row[name] > 0 for row in rows] == [True] * 3 + [False] * 3


def test_towers_follow_at_their_share_of_the_learning_rate(tmp_path, monkeypatch) -> None:
    keep_all(monkeypatch)
    size = {}
    for rate in (0.1, 0.2, 1.0):
        folder = tmp_path / str(rate)
        settings = {**SHORT, "options.tower_rate": rate, "train.weight_decay": 0.0}
        after = steps_of(fit(tiny(settings, out_dir=str(folder))))
        towers = [k for k in after[3] if k.startswith(tuple(f"method/{t}" for t in TOWERS))]
        size[rate] = sum(float((after[4][k] - after[3][k]).square().sum()) for k in towers) ** 0.5
    # All three enter stage 2 with the same weights and moments: the first step is proportional.
    assert size[0.2] == pytest.approx(2 * size[0.1], rel=1e-3)
    assert size[1.0] == pytest.approx(10 * size[0.1], rel=1e-3)


def keep_all(monkeypatch: pytest.MonkeyPatch) -> None:
    from mmkd_lite import loop

    ordinary = loop.save_checkpoint
    monkeypatch.setattr(loop, "save_checkpoint", lambda *args: ordinary(*args, keep=99))


# ---------------------------------------------------------------- limits


def test_contrast_only_is_the_contrast_method_bit_by_bit(tmp_path: Path) -> None:
    settings = {**VARIANTS["contrast_only"], "train.steps": 3}
    run = fit(tiny(settings, out_dir=str(tmp_path / "stagewise")))
    keys = ("image.start", "text.start", "train.batch_size")
    sizes = {k: v for k, v in Stagewise.presets["tiny"].items()}
    same = {**sizes, **{k: RANDOM[k] for k in keys}, "train.steps": 3}
    other = fit(resolve("contrast", "tiny", same, out_dir=str(tmp_path / "contrast")))
    ours, theirs = (load_file(r.dir / "model.safetensors") for r in (run, other))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[k], theirs[k]) for k in ours)


@pytest.mark.parametrize("side", ["image", "text"])
def test_stage_one_is_unimodal_distillation_of_each_side(side: str) -> None:
    method = build(tiny()).double()
    batch = a_batch(tiny())
    terms = method.losses(batch, method.targets(batch), 0.0)
    chosen = {"teacher": f"random-{'vit' if side == 'image' else 'text'}"}
    alone = build(resolve(f"unimodal_{side}", "tiny", {**chosen, "options.start": "random"}))
    alone.double().encoder.load_state_dict(getattr(method.space, f"{side}_encoder").state_dict())
    expected = alone.losses(batch, alone.targets(batch), 0.0)["hidden_states"]
    torch.testing.assert_close(terms[f"hidden_{side}"], expected)


def test_two_stages_at_full_rate_with_all_in_stage_one_agree_with_one_stage_on_its_terms() -> None:
    batch = a_batch(tiny())
    one, two = build(tiny(ONE)).double(), build(tiny()).double()
    first = two.losses(batch, two.targets(batch), 0.0)
    two.before_step(0.5)
    second = two.losses(batch, two.targets(batch), 0.5)
    together = one.losses(batch, one.targets(batch), 0.0)
    for name, value in together.items():
        source = second if name == "contrast" else first
        torch.testing.assert_close(source[name], value, rtol=1e-6, atol=1e-9)
    assert two.targets(batch) == {}  # stage 2 asks no teacher


def test_a_student_that_is_its_teachers_has_nothing_to_learn_in_stage_one() -> None:
    method = build(tiny({"image.layers": 6, "text.layers": 6})).double()
    for side in ("image", "text"):
        state = getattr(method.teacher.model, side).state_dict()
        getattr(method.space, f"{side}_encoder").load_state_dict(state)
    batch = a_batch(tiny())
    terms = method.losses(batch, method.targets(batch), 0.0)
    for name in ("hidden_image", "hidden_text"):
        assert float(terms[name].detach()) == pytest.approx(0.0, abs=1e-15)


@pytest.mark.parametrize(
    ("share", "progress", "stage"),
    [(0.5, 0.499, 1), (0.5, 0.5, 2), (0.25, 0.25, 2), (0.9, 0.5, 1), (0.9, 0.99, 2)],
)
def test_the_stage_depends_on_progress_alone(share: float, progress: float, stage: int) -> None:
    method = build(tiny({"options.stage_one": share}))
    for before in (0.99, 0.0):  # whatever came before, as after a resume
        method.before_step(before)
        method.before_step(progress)
        assert method.stage == stage
        assert {p.requires_grad for p in method.trained_towers} == {stage == 1}
        assert method.rate_scales == dict.fromkeys(TOWERS, 1.0 if stage == 1 else 0.0)


def test_frozen_embeddings_stay_frozen_in_both_stages() -> None:
    method = build(tiny({**SLOW, "options.freeze_embeddings": True}))
    for progress in (0.0, 0.7):
        method.before_step(progress)
        for tower in (method.space.image_encoder, method.space.text_encoder):
            for name, parameter in tower.named_parameters():
                assert parameter.requires_grad == name.startswith("transformer."), name


def test_padding_takes_no_part_in_either_term() -> None:
    method, batch = build(tiny(ONE)).double(), a_batch(tiny())
    longer = {**batch, "tokens": F.pad(batch["tokens"][:, :10], (0, 6))}
    shorter = {**batch, "tokens": batch["tokens"][:, :10]}
    first, second = (method.losses(b, method.targets(b), 0.0) for b in (longer, shorter))
    for name, value in first.items():
        torch.testing.assert_close(value, second[name])


# ---------------------------------------------------------------- runs


@pytest.mark.parametrize("variant", ["two_stage_frozen", "two_stage_slow"])
@pytest.mark.parametrize("fatal", [3, 5])  # the boundary lies after step 3 of 6
def test_a_run_cut_on_either_side_of_the_boundary_ends_with_the_same_bits(
    variant: str, fatal: int, tmp_path: Path
) -> None:
    settings = {**VARIANTS[variant], "train.steps": 6, "train.checkpoint_every": 2}
    whole, config = (tiny(settings, out_dir=str(tmp_path / name)) for name in ("whole", "cut"))
    again = cut_and_resumed(whole, config, fatal)
    saved = load_checkpoint(checkpoint_paths(again.checkpoints)[0]).tensors
    assert {f"method/{k}" for k in build(config).state_dict()} <= set(saved)


def test_cached_targets_give_the_live_curve_in_both_stages(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("MMKD_CACHE", str(tmp_path / "cache"))
    settings = {"train.steps": 4}
    live = fit(tiny(settings, out_dir=str(tmp_path / "live"))).metrics()
    settings |= {"train.targets": "cached"}
    cached = fit(tiny(settings, out_dir=str(tmp_path / "cached"))).metrics()
    for row, other in zip(live, cached, strict=True):
        for term in ("loss", "hidden_image", "hidden_text", "contrast"):
            assert other[term] == pytest.approx(row[term], rel=1e-4), (row["step"], term)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"options.stages": 3}, "options.stages=3 must be 1 or 2"),
        ({"options.stage_one": 0.0}, r"options.stage_one=0.0 must lie in \(0, 1\)"),
        ({"options.stage_one": 1.0}, r"options.stage_one=1.0 must lie in \(0, 1\)"),
        ({"options.tower_rate": 1.5}, r"options.tower_rate=1.5 must lie in \[0, 1\]"),
        ({"options.tower_rate": -0.1}, r"options.tower_rate=-0.1 must lie in \[0, 1\]"),
        ({"weights.contrast": 0.0}, "two stages need both .* use options.stages=1"),
        ({"weights.hidden_image": 0.0, "weights.hidden_text": 0.0}, "two stages need both"),
        ({"teacher": "random-text"}, "no ImageEncoder with hidden states"),
        ({"teacher": "random-cnn"}, "no ImageEncoder with hidden states"),
        ({"options.text_teacher": "random-vit"}, "no TextEncoder with hidden states"),
        ({"image.width": 64, "text.width": 64}, "image.width=64 but the teacher's is 96"),
        ({"data.image_size": 32}, "data.image_size is 32 .* 48 for the teacher"),
        ({"image.patch": 16}, "image.patch is 16 .* 8 for the teacher"),
        ({"data.vocab_size": 99}, "vocabulary size is 99 for the student but"),
        ({"data.max_tokens": 40}, "data.max_tokens is 40 .* 32 for the teacher"),
    ],
)
def test_bad_settings_are_named(overrides: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build(tiny(overrides))


def test_full_size_is_the_unimodal_students_and_one_shared_layer() -> None:
    settings = {
        "image.start": "",
        "text.start": "",
        "options.image_teacher_start": "",
        "options.text_teacher": "",
    }
    config = resolve("stagewise", "full", settings)
    with torch.device("meta"):
        method = build(config)
    guides = method.teacher.model
    counts = [
        count_parameters(part)
        for part in (
            method.space.image_encoder,
            method.space.text_encoder,
            method.space.shared,
            guides.image,
            guides.text,
        )
    ]
    assert [round(count / 1e6, 1) for count in counts] == [43.1, 66.4, 7.1, 85.6, 108.9]
    assert config.train.steps == 89273
