"""Finetuning for retrieval: the start is kept, all of it is trained, other pictures, exact resume, clear errors.

That two processes give the loss and gradients of one is shown of the loss in test_distributed.py.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from mmkd_lite.checkpoint import latest_checkpoint
from mmkd_lite.config import RunConfig, TowerConfig, resolve, to_dict
from mmkd_lite.data.pairs import CocoPairs, EmojiPairs, RedrawnEmojiPairs
from mmkd_lite.methods import METHODS, build
from mmkd_lite.methods.retrieval_finetuning import RetrievalFinetuning, first_scale
from mmkd_lite.models import clip as clips
from mmkd_lite.models.fusion import INITIAL_SCALE
from mmkd_lite.optimizer import build_optimizer
from mmkd_lite.scoring import evaluate_run
from mmkd_lite.storage import write_json
from mmkd_lite.subject import ancestors
from mmkd_lite.teachers import load_teacher
from mmkd_lite.train import fit
from tests.method_checks import cut_and_resumed, random_pairs
from tests.reference_losses import image_text_contrast_loop
from tests.test_pairs import coco_folder  # noqa: F401
from tests.tiny_student import tiny_run

VARIANTS = RetrievalFinetuning.variants
IDS = (3, 1, 2, 1, 5, 3)  # two pictures come twice


def tiny(overrides: dict | None = None, **settings: Any) -> RunConfig:
    chosen = {"train.batch_size": 6, **(overrides or {})}
    return resolve("retrieval_finetuning", "tiny", chosen, **settings)


def from_run(folder: Path, overrides: dict | None = None, **settings: Any) -> RunConfig:
    size = {"data.image_size": 32}  # what tiny runs of the other methods read
    return tiny({"options.start": str(folder), **size, **(overrides or {})}, **settings)


def trained(method: torch.nn.Module) -> set[str]:
    return {name for name, p in method.named_parameters() if p.requires_grad}


# --- Loss and start -----------------------------------------------------------------------------


@pytest.mark.parametrize("start", ["clip", "random-clip"])
def test_loss_and_every_gradient_equal_the_loop(start: str) -> None:
    config = tiny({"options.start": start})
    method = build(config).double()
    batch = random_pairs(config, IDS, torch.float64)
    parameters = [p for p in method.parameters() if p.requires_grad]
    rows = method.encode_image(batch["image"]), method.encode_text(batch["tokens"])
    expected = image_text_contrast_loop(*rows, method.scale.value(), image_id=batch["image_id"])
    terms = method.losses(batch, {}, 0.5)
    assert terms.keys() == config.weights.keys() == {"contrast"}
    torch.testing.assert_close(terms["contrast"], expected, rtol=1e-9, atol=0)
    found = torch.autograd.grad(terms["contrast"], parameters)
    for one, other in zip(found, torch.autograd.grad(expected, parameters), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-10)
    assert max(float(gradient.abs().max()) for gradient in found) > 1e-3


def test_step_0_is_the_start_itself() -> None:
    for name in ("clip", "random-clip"):
        config = tiny({"options.start": name}, seed=3)
        method, start = build(config).eval(), load_teacher(name, seed=3).model
        batch = random_pairs(config, IDS)
        assert torch.equal(method.encode_image(batch["image"]), start.encode_image(batch["image"]))
        assert torch.equal(method.encode_text(batch["tokens"]), start.encode_text(batch["tokens"]))
        assert method.scale.value().item() == pytest.approx(start.scale.item(), rel=1e-6)
    assert method.teacher is None and method.default_teacher == ""


def test_a_finished_run_goes_on(tmp_path: Path) -> None:
    start = tiny_run("distill_clip")
    config = from_run(start.dir, {"train.steps": 2}, out_dir=str(tmp_path))
    before, method = start.load_method(), build(config).eval()
    batch = random_pairs(config, IDS)
    assert torch.equal(method.encode_image(batch["image"]), before.encode_image(batch["image"]))
    assert torch.equal(method.encode_text(batch["tokens"]), before.encode_text(batch["tokens"]))
    assert not any("teacher" in name for name in method.state_dict())
    run = fit(config)
    after = run.load_method()
    assert not torch.equal(after.encode_image(batch["image"]), before.encode_image(batch["image"]))
    again = build(from_run(run.dir)).eval()  # and finetuned once more
    assert torch.equal(again.encode_text(batch["tokens"]), after.encode_text(batch["tokens"]))
    assert again.scale.value().item() == pytest.approx(after.scale.value().item(), rel=1e-6)


def test_a_published_model_is_a_start(tmp_path: Path) -> None:
    towers = TowerConfig(width=16, layers=1, heads=2, patch=16)
    model = clips.clip_model(towers, towers, 8, 48, 2000, 32, end_of_text=3)
    with torch.no_grad():
        model.logit_scale.fill_(math.log(100.001))  # CLIP's is a hair above 100
    model.save_pretrained(tmp_path / "clip")
    method = build(tiny({"options.start": f"transformers:{tmp_path / 'clip'}"}))
    assert method.scale.value().item() == pytest.approx(100.0)
    frozen = {name for name, p in method.named_parameters() if not p.requires_grad}
    assert frozen == {"student.clip.logit_scale"}


def test_the_scale_goes_on_where_the_start_left_it() -> None:
    settings = {"train.batch_size": 6, "image.start": "", "text.start": ""}
    two = {"options.target": "contrastive", "options.target_scale": 40.0, "options.scale": 20.0}
    other = build(resolve("ssmke", "tiny", {**settings, **two, "teacher": "random-vit"}))
    assert first_scale(other) == pytest.approx(20.0)  # not that of the target
    vlmo = build(resolve("contrast", "tiny", {**settings, "options.layout": "vlmo"}))
    with torch.no_grad():
        vlmo.scales[-1].log_scale.fill_(math.log(33.0))
    assert first_scale(vlmo) == pytest.approx(33.0)  # of the output that is embedded
    assert first_scale(build(resolve("distill_clip", "tiny"))) == INITIAL_SCALE  # it has none
    assert first_scale(torch.nn.Identity()) == INITIAL_SCALE


# --- What is trained ----------------------------------------------------------------------------


@pytest.mark.parametrize("variant", list(VARIANTS))
def test_every_variant_trains_all_that_is_used(variant: str) -> None:
    config = tiny(VARIANTS[variant])
    method = build(config).train()
    data = METHODS["retrieval_finetuning"].open_data(config)
    method.losses(data.batch(0, 6), {}, 0.0)["contrast"].backward()
    for name, parameter in method.named_parameters():
        if name == "student.log_scale":  # the method has its own
            assert not parameter.requires_grad and parameter.grad is None
        elif "attention.key.bias" not in name:
            assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name
    names = {n for g in build_optimizer(method, config.train).param_groups for n in g["names"]}
    assert names == trained(method) == set(dict(method.named_parameters())) - {"student.log_scale"}


def test_what_neither_pictures_nor_captions_pass_stays_frozen() -> None:
    run = tiny_run("distill_clip", "weights.feature=1.0,weights.contrast=1.0,train.steps=1")
    method = build(from_run(run.dir))
    names = set(dict(method.named_parameters()))
    heads = {name for name in names if name.startswith("student.adapters.")}
    assert heads and names - trained(method) == heads | {"student.scale.log_scale"}


def test_the_scale_is_clamped_after_each_step() -> None:
    method = build(tiny())
    with torch.no_grad():
        method.scale.log_scale.fill_(9.0)
    method.after_step()
    assert float(method.scale.log_scale.exp()) == pytest.approx(100.0)


def test_a_run_changes_all_it_trains_and_its_checkpoint_holds_it(tmp_path: Path) -> None:
    config = tiny({"train.steps": 2, "train.checkpoint_every": 2}, out_dir=str(tmp_path))
    method = build(config)
    before, names = {k: v.clone() for k, v in method.state_dict().items()}, trained(method)
    run = fit(config, method=method)
    after = load_file(run.dir / "model.safetensors")
    assert after.keys() == before.keys()
    assert {name for name in before if not torch.equal(before[name], after[name])} == names
    checkpoint = latest_checkpoint(run.checkpoints)
    assert checkpoint is not None
    moments = {
        name.removeprefix("optimizer/").removesuffix("/exp_avg")
        for name in checkpoint.tensors
        if name.endswith("/exp_avg")
    }
    assert {name.removeprefix("method.") for name in moments} == names
    for name, value in after.items():
        assert torch.equal(checkpoint.tensors[f"method/{name}"], value)
    for gallery in ("composition", "far"):
        assert 0 <= evaluate_run(run, gallery)["mean_recall"] <= 100


def test_an_interrupted_run_ends_with_the_same_bits(tmp_path: Path) -> None:
    settings = {"train.steps": 5, "train.checkpoint_every": 2, "options.smallest_crop": 0.5}
    cut_and_resumed(*(tiny(settings, out_dir=str(tmp_path / name)) for name in ("whole", "cut")))


# --- The pictures -------------------------------------------------------------------------------


def test_another_artist_draws_the_same_scenes_and_nothing_else_changes() -> None:
    config = tiny(seed=2)
    plain = EmojiPairs(config.data, 2)
    for artist, equal in (("twemoji", True), ("openmoji", False), ("noto", False)):
        data = RetrievalFinetuning.open_data(tiny({"options.artist": artist}, seed=2))
        for step in (0, 7):
            one, other = plain.batch(step, 4), data.batch(step, 4)
            assert torch.equal(one["image"], other["image"]) is equal
            for name in ("tokens", "image_id", "caption_id"):
                assert torch.equal(one[name], other[name])


def test_a_crop_is_a_pure_function_of_seed_and_scene() -> None:
    def stream(crop: float, seed: int = 0) -> RedrawnEmojiPairs:
        return RetrievalFinetuning.open_data(tiny({"options.smallest_crop": crop}, seed=seed))

    half, whole = stream(0.5), stream(1.0)
    batch = half.batch(1, 8)
    torch.manual_seed(5)
    again = stream(0.5).at(batch["image_id"].flip(0).numpy())  # another order, another object
    assert torch.equal(again["image"].flip(0), batch["image"])
    ranks = [half.batch(1, 4, rank, 2) for rank in (0, 1)]
    for name, values in batch.items():
        assert torch.equal(torch.cat([rank[name] for rank in ranks]), values)
        assert name == "image" or torch.equal(values, whole.batch(1, 8)[name])
    assert not torch.equal(batch["image"], whole.batch(1, 8)["image"])
    assert not torch.equal(batch["image"], stream(0.5, seed=1).batch(1, 8)["image"])
    assert batch["image"].shape == (8, 3, 48, 48) and batch["image"].dtype == torch.float32
    assert 0 <= float(batch["image"].min()) and float(batch["image"].max()) <= 1
    plain = EmojiPairs(tiny().data).scenes
    plain.artist = "openmoji"
    expected = torch.as_tensor(plain.batch(range(8, 16))["image"]) / 255
    assert torch.equal(whole.batch(1, 8)["image"], expected)  # 1 crops nothing


@pytest.mark.parametrize("axis", [-1, -2])
def test_a_crop_shows_at_least_the_smallest_share_the_right_way_round(axis: int) -> None:
    ramp = torch.linspace(40, 200, 48).round().to(torch.uint8).expand(3, 48, 48)
    picture = (ramp if axis == -1 else ramp.mT).numpy()
    data = RedrawnEmojiPairs(tiny().data, 0, "twemoji", 0.5)
    data.scenes.draw = lambda layout, rows: np.stack([picture] * len(rows))  # type: ignore[method-assign]
    shown = data.at(np.arange(40))["image"] * 255
    spans = (shown.amax((1, 2, 3)) - shown.amin((1, 2, 3))) / (200 - 40)
    narrowest = math.sqrt(0.5 * 3 / 4)  # half the area at a ratio of 3 to 4
    assert narrowest - 0.08 < float(spans.min()) < 0.9 and float(spans.max()) > 0.9
    ends = shown.select(axis, -1) - shown.select(axis, 0)
    assert bool((ends > 0).all())  # never mirrored


def test_real_pictures_take_the_crop_and_no_artist(coco_folder: Path) -> None:  # noqa: F811
    def stream(crop: float) -> Any:
        real = {"data.source": "coco", "options.artist": ""}
        settings = {**real, "options.smallest_crop": crop}
        return RetrievalFinetuning.open_data(tiny(settings, data_dir=str(coco_folder)))

    found, whole = stream(0.5), stream(1.0)
    assert isinstance(found, CocoPairs) and found.crop_scale == (0.5, 1.0) and found.augment
    centre = CocoPairs(coco_folder, tiny({"data.source": "coco"}).data, 0, augment=False)
    assert torch.equal(whole.batch(0, 4)["image"], centre.batch(0, 4)["image"])
    assert not torch.equal(found.batch(0, 4)["image"], centre.batch(0, 4)["image"])


# --- Recipes, descent and errors ----------------------------------------------------------------


def test_the_full_recipe_is_the_printed_one() -> None:
    config = resolve("retrieval_finetuning", "full")
    train, options = config.train, config.options
    assert train.batch_size == 1024
    assert train.base_lr * train.batch_size / 256 == pytest.approx(3e-5)
    assert train.steps * 1024 / 113287 == pytest.approx(5, abs=0.01)
    assert options.smallest_crop == 0.5 and config.data.source == "coco"
    with pytest.raises(ValueError, match=r"options\.start='' must be clip"):
        build(config)
    assert next(iter(VARIANTS)) == "finetuned"
    assert {resolve("retrieval_finetuning", "laptop", v).data for v in VARIANTS.values()} == {
        resolve("distill_clip", "laptop").data
    }


def test_the_line_of_descent_goes_through_the_start() -> None:
    assert ancestors(tiny()) == ["clip", "vit", "text"]
    assert ancestors(tiny(VARIANTS["scratch"])) == []
    assert ancestors(from_run(tiny_run("distill_clip").dir)) == ["clip", "vit", "text"]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"options.start": "clap"}, "options.start='clap' must be clip, random-clip"),
        ({"options.start": ""}, "options.start='' must be clip"),
        ({"options.start": "timm:resnet18"}, "options.start='timm:resnet18' must be clip"),
        ({"options.start": "vit"}, "options.start='vit' has no encode_image"),
        ({"options.start": "random-text"}, "options.start='random-text' has no encode_image"),
        ({"options.start": "transformers-random:giant"}, "has no 'giant'"),
        ({"data.image_size": 32}, "data.image_size is 32 here, .*'clip' was made for 48"),
        ({"data.max_tokens": 40}, "data.max_tokens is 40 here, .*'clip' was made for 32"),
        ({"data.vocab_size": 99}, "the vocabulary size is 99 here, .*'clip' was made for 2000"),
        (
            {"data.tokenizer": "bert", "data.vocab_size": 2000},
            "data.tokenizer is 'bert' here, .*'clip' was made for 'emoji'",
        ),
        ({"options.smallest_crop": 0.0}, r"options.smallest_crop=0.0 must lie in \(0, 1\]"),
        ({"options.smallest_crop": 1.2}, r"options.smallest_crop=1.2 must lie in \(0, 1\]"),
        ({"options.smallest_crop": math.nan}, "options.smallest_crop=nan must lie"),
        ({"options.artist": "picasso"}, "artist='picasso' .* valid: 'twemoji', 'openmoji', 'noto'"),
        ({"options.artist": ""}, "options.artist='' does not go with data.source='emoji'"),
        ({"data.source": "coco"}, "artist='openmoji' does not go with data.source='coco'"),
    ],
)
def test_bad_settings_are_named(overrides: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build(tiny(overrides))
    if set(overrides) & {"options.smallest_crop", "options.artist", "data.source"}:
        with pytest.raises(ValueError, match=message):
            RetrievalFinetuning.open_data(tiny(overrides))


def test_an_unknown_source_is_refused() -> None:
    with pytest.raises(ValueError, match=r"unknown data\.source 'imagenet'"):
        RetrievalFinetuning.open_data(tiny({"data.source": "imagenet", "options.artist": ""}))


def test_runs_that_cannot_be_a_start_are_named(tmp_path: Path) -> None:
    write_json(tmp_path / "half" / "config.json", to_dict(resolve("distill_clip", "tiny")))
    (tmp_path / "empty").mkdir()
    for name, message in (("half", "is not finished; call fit"), ("empty", "holds no run")):
        with pytest.raises(ValueError, match=f"must be clip.*{message}"):
            build(from_run(tmp_path / name))
    one_step = "train.steps=1,train.batch_size=4"
    for method, message in (
        ("text_student", "is its frozen teacher; finetuning needs two of its own"),
        ("unimodal_image", "has no encode_text"),
    ):
        with pytest.raises(ValueError, match=message):
            build(from_run(tiny_run(method, one_step).dir))
    run = tiny_run("distill_clip")
    for overrides, message in (
        ({"data.image_size": 48}, "data.image_size is 48 here, .* was made for 32"),
        ({"data.max_tokens": 33}, "data.max_tokens is 33 here, .* was made for 32"),
    ):
        with pytest.raises(ValueError, match=message):
            build(from_run(run.dir, overrides))
