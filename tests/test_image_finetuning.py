"""Image finetuning: Code 1's forward, layer-wise rates, mixed pictures, folders of pictures, starts."""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from timm.optim import param_groups_layer_decay

from mmkd_lite.card import training_data
from mmkd_lite.compare import compare
from mmkd_lite.config import RunConfig, from_dict, resolve, to_dict
from mmkd_lite.data.mixing import Mixing, mix
from mmkd_lite.data.picture_folder import PictureFolder
from mmkd_lite.methods import METHODS, build
from mmkd_lite.methods.image_finetuning import ImageFinetuning, MixedPictures, layer_rates
from mmkd_lite.methods.starts import open_start
from mmkd_lite.models import ImageEncoder
from mmkd_lite.models.classifier import PooledClassifier
from mmkd_lite.models.evl import image_transformer
from mmkd_lite.one_modality_scores import score_one_modality
from mmkd_lite.optimizer import build_optimizer, learning_rate
from mmkd_lite.subject import ancestors, open_subject
from mmkd_lite.train import fit
from tests.method_checks import cut_and_resumed

PLAIN = {
    "options.randaugment": "",
    "options.erase": 0.0,
    "options.mix_probability": 0.0,
    "options.label_smoothing": 0.0,
}


def tiny(overrides: dict[str, Any] | None = None, **settings: Any) -> RunConfig:
    return resolve(
        "image_finetuning", "tiny", {"train.batch_size": 8, **(overrides or {})}, **settings
    )


def pictures(config: RunConfig, size: int = 8) -> dict[str, torch.Tensor]:
    return MixedPictures(config).batch(0, size)


# The head of Code 1


def test_the_forward_is_code_1_written_out() -> None:
    method: Any = build(tiny()).double()
    model, images = method.model, torch.rand(3, 3, 32, 32, dtype=torch.float64)
    with torch.no_grad():  # weights that a forgotten norm or head would show
        for parameter in (*model.norm.parameters(), *model.head.parameters()):
            parameter.add_(0.3 * torch.randn_like(parameter))
    rows = []
    for states in model.encoder(images):
        mean = sum(states[1:]) / (len(states) - 1)
        centred = mean - mean.mean()
        normed = centred / (centred.square().mean() + model.norm.eps).sqrt()
        rows.append(
            model.head.weight @ (normed * model.norm.weight + model.norm.bias) + model.head.bias
        )
    torch.testing.assert_close(model(images), torch.stack(rows))


def test_the_loss_and_its_gradient_equal_the_loop() -> None:
    method: Any = build(tiny()).double()
    batch = pictures(tiny())
    images, shares = batch["image"].double(), batch["shares"].double()
    loss = method.losses({"image": images, "shares": shares}, {}, 0.0)["cross_entropy"]
    loss.backward()
    found = [p.grad.clone() for p in method.parameters()]
    method.zero_grad()
    logits = method.model(images)
    by_hand = torch.zeros((), dtype=torch.float64)
    for row, share in zip(logits, shares, strict=True):
        for value, mass in zip(row, share, strict=True):
            by_hand = by_hand - mass * (value - row.exp().sum().log()) / len(logits)
    torch.testing.assert_close(loss, by_hand)
    by_hand.backward()
    for gradient, parameter in zip(found, method.parameters(), strict=True):
        torch.testing.assert_close(gradient, parameter.grad)


def test_a_frozen_encoder_stays_in_eval_mode_without_a_gradient_and_out_of_the_optimiser() -> None:
    method: Any = build(tiny({"options.frozen": True, "image.dropout": 0.5}))
    method.train()
    assert method.model.training and not any(m.training for m in method.model.encoder.modules())
    before = {k: v.clone() for k, v in method.model.encoder.state_dict().items()}
    optimizer = build_optimizer(method, tiny().train)
    names = {name for group in optimizer.param_groups for name in group["names"]}
    assert names == {"model.norm.weight", "model.norm.bias", "model.head.weight", "model.head.bias"}
    for _ in range(2):
        method.losses(pictures(tiny()), {}, 0.0)["cross_entropy"].backward()
        optimizer.step()
    assert all(p.grad is None for p in method.model.encoder.parameters())
    for name, value in method.model.encoder.state_dict().items():
        assert torch.equal(value, before[name])


# Layer-wise rates


def test_the_thesis_table_of_rates() -> None:
    printed = [
        "2.3e-04",
        "2.8e-04",
        "3.5e-04",
        "4.3e-04",
        "5.3e-04",
        "6.6e-04",
        "8.1e-04",
        "1.0e-03",
    ]
    assert [f"{rate:.1e}" for rate in layer_rates(1e-3, 0.81, 6)] == printed
    exact = [f"{rate:.1e}" for rate in layer_rates(1e-3, math.sqrt(0.65), 6)]
    assert exact != printed  # so the table was computed with the rounded 0.81


@pytest.mark.parametrize("decay", [0.0, -0.5, 1.01, math.nan])
def test_a_decay_outside_the_interval_is_refused(decay: float) -> None:
    with pytest.raises(ValueError, match=r"must lie in \(0, 1\]"):
        layer_rates(1e-3, decay, 3)


def test_every_parameter_has_the_rate_of_its_layer_also_beyond_nine_layers() -> None:
    config = tiny({"image.layers": 11, "options.layer_decay": 0.5})
    method: Any = build(config)
    rate_of = {
        name: method.rate_scales.get(group["part"], 1.0)
        for group in build_optimizer(method, config.train).param_groups
        for name in group["names"]
    }
    assert rate_of.keys() == dict(method.named_parameters()).keys()
    for name, rate in rate_of.items():
        layer = 0
        if ".blocks." in name:
            layer = int(name.split(".blocks.")[1].split(".")[0]) + 1
        elif "final_norm" in name:
            layer = 11
        elif not name.startswith("model.encoder"):
            layer = 12
        assert rate == 0.5 ** (12 - layer), name


def test_rates_agree_with_timms_where_the_layers_are_named_alike() -> None:
    import timm

    vit = timm.create_model("vit_tiny_patch16_224", depth=3, num_classes=4)
    theirs = {}
    for group in param_groups_layer_decay(vit, layer_decay=0.81):
        for parameter in group["params"]:
            theirs[id(parameter)] = group["lr_scale"]
    named = {name: theirs[id(parameter)] for name, parameter in vit.named_parameters()}
    wanted = [named[k] for k in ("cls_token", "blocks.0.attn.qkv.weight", "blocks.1.attn.qkv.weight",
                                 "blocks.2.attn.qkv.weight", "head.weight")]  # fmt: skip
    assert layer_rates(1.0, 0.81, 3) == pytest.approx(wanted)


def test_a_step_of_training_moves_lower_layers_less(tmp_path: Path) -> None:
    change = {"train.steps": 1, "train.checkpoint_every": 1, "options.layer_decay": 0.25}
    config = tiny({**change, "train.weight_decay": 0.0}, out_dir=str(tmp_path))
    before = build(config).state_dict()
    after = fit(config).load_method().state_dict()
    peak = learning_rate(0, 1, config.train.base_lr * 8 / 256, config.train.warmup_fraction)
    for layer, name in enumerate(("blocks.0.", "blocks.1.")):
        key = f"model.encoder.transformer.{name}attention.output.weight"
        moved = float((after[key] - before[key]).abs().max())
        # Adam's first step is the rate itself wherever the gradient is far above epsilon
        assert moved == pytest.approx(peak * 0.25 ** (2 - layer), rel=0.02)


# Mixed pictures


def test_mixed_labels_are_the_equation_with_the_share_of_the_pixels() -> None:
    images = torch.stack([torch.full((3, 8, 8), value / 8) for value in range(8)])
    labels = torch.tensor([0, 1, 2, 3, 4, 0, 1, 2])
    how = Mixing("", 0.0, 1.0, 0.8, 1.0, 0.5, 0.1)
    kinds = set()
    for seed in range(12):
        mixed, shares = mix(images, labels, 5, how, seed)
        plain = F.one_hot(labels, 5) * 0.9 + 0.1 / 5
        kept = float(
            (shares[0] - plain[7])[0] / (plain[0] - plain[7])[0]
        )  # lambda, read off the labels
        torch.testing.assert_close(shares, kept * plain + (1 - kept) * plain.flip(0))
        assert kept * 0 + (1 - kept) * 7 / 8 == pytest.approx(float(mixed[0].mean()), abs=1e-5)
        kinds.add(len(mixed[0].unique()) <= 2 and 0 in mixed[0])
    assert kinds == {True, False}  # cutmix keeps pixels whole, mixup blends


def test_mixing_is_a_pure_function_and_leaves_its_input_and_the_random_state_alone() -> None:
    images, labels = torch.rand(4, 3, 16, 16), torch.tensor([0, 1, 1, 0])
    before, state = images.clone(), torch.get_rng_state()
    first = mix(images, labels, 2, Mixing(), 1, 2, 3)
    again = mix(images, labels, 2, Mixing(), 1, 2, 3)
    other = mix(images, labels, 2, Mixing(), 1, 3, 3)
    assert torch.equal(images, before) and torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first[0], other[0])
    assert 0 <= float(first[0].min()) and float(first[0].max()) <= 1
    torch.testing.assert_close(first[1].sum(dim=1), torch.ones(4))


def test_without_mixing_pictures_and_labels_stay_what_they_are() -> None:
    images, labels = torch.rand(3, 3, 16, 16), torch.tensor([0, 1, 1])
    shown, shares = mix(images, labels, 2, Mixing("", 0.0, 0.0, 0.8, 1.0, 0.5, 0.0), 0)
    assert torch.equal(shown, images) and torch.equal(shares, F.one_hot(labels, 2).float())
    smooth = mix(images, labels, 2, Mixing("", 0.0, 0.0, 0.8, 1.0, 0.5, 0.1), 0)[1]
    torch.testing.assert_close(smooth, torch.tensor([[0.95, 0.05], [0.05, 0.95], [0.05, 0.95]]))


def test_an_odd_batch_cannot_be_mixed() -> None:
    with pytest.raises(ValueError, match="the batch of 3 must be even"):
        mix(torch.rand(3, 3, 8, 8), torch.tensor([0, 1, 1]), 2, Mixing(), 0)


# Training


def test_resumed_equals_uninterrupted(tmp_path: Path) -> None:
    change = {"train.steps": 6, "train.checkpoint_every": 2}
    whole = tiny(change, out_dir=str(tmp_path / "whole"))
    cut_and_resumed(whole, tiny(change, out_dir=str(tmp_path / "cut")))


def test_finetuning_learns_a_handful_of_pictures(tmp_path: Path) -> None:
    change = {**PLAIN, "options.pictures": 8, "train.steps": 80, "train.base_lr": 0.1}
    run = fit(tiny(change, out_dir=str(tmp_path)))
    losses = [row["loss"] for row in run.metrics()]
    assert losses[-1] < 0.1 * losses[0]


def test_options_survive_the_file() -> None:
    config = tiny({"options.mix_probability": 0.3, "options.start": "clip"})
    assert from_dict(to_dict(config)) == config


@pytest.mark.parametrize("variant", [v for v in ImageFinetuning.variants if "distilled" not in v])
def test_every_variant_is_trained_and_scored(
    variant: str, tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.setenv("MMKD_RUNS", str(tmp_path))
    change = "train.steps=1,train.batch_size=8,train.checkpoint_every=1"
    found = compare([f"image_finetuning:{variant}"], [0], "tiny", change, out=tmp_path, say=str)
    metrics = found.records[f"image_finetuning:{variant}"][0]["metrics"]
    assert {"composition_fine", "near_fine", "probe_fine_cls", "probe_fine_mean"} <= metrics.keys()
    assert metrics["composition_fine"]["n"] == 100


# Starts


def test_a_start_is_the_encoder_of_a_teacher_or_of_a_finished_run(
    tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.setenv("MMKD_RUNS", str(tmp_path))
    change = {"data.image_size": 48, "options.start": "clip"}
    ours: Any = build(tiny(change)).model.encoder
    theirs = image_transformer(open_start("clip", tiny()).model)
    for name, value in theirs.state_dict().items():
        assert torch.equal(ours.state_dict()[name], value)
    assert all(p.requires_grad for p in ours.parameters())
    run = fit(resolve("contrast", "tiny", "train.steps=2,train.batch_size=8", seed=3))
    trained: Any = run.load_method()
    found: Any = build(tiny({"options.start": str(run.dir)})).model.encoder
    assert torch.equal(found.cls, trained.space.image_encoder.cls)


def test_the_run_of_a_comparison_is_found_by_its_label_and_seed(
    tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.setenv("MMKD_RUNS", str(tmp_path))
    with pytest.raises(ValueError, match=r"fit\(resolve\(\*\('contrast', 'tiny', .*seed=4\)\)"):
        open_start("contrast:single", tiny(seed=4))
    change = {"options.layout": "single"}
    run = fit(resolve("contrast", "tiny", change, seed=4))
    found = open_start("contrast:single", tiny(seed=4)).model.state_dict()
    for name, value in run.load_method().state_dict().items():
        assert torch.equal(found[name], value)


@pytest.mark.parametrize(
    ("start", "words"),
    [
        ("nonsense", "options.start='nonsense' must be clip"),
        ("text", "holds 0 image Transformers"),
        ("clip", "reads pictures of 48, data.image_size is 32"),
    ],
)
def test_what_cannot_be_started_from_is_refused(start: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        build(tiny({"options.start": start}))


# Folders of pictures


def a_folder(root: Path, splits: tuple[str, ...] = ("train", "val")) -> Path:
    """Three classes of plain colours as JPEGs, each with pictures of several sizes."""
    colours = {"blue": (10, 20, 230), "green": (10, 220, 30), "red": (230, 10, 20)}
    for split, (name, colour) in itertools.product(splits, colours.items()):
        (root / split / name).mkdir(parents=True)
        for number in range(4):
            noise = np.random.default_rng(number).integers(-9, 9, (40 + number, 50, 3))
            pixels = np.clip(np.array(colour) + noise, 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(root / split / name / f"{number}.jpg", quality=95)
    return root


def test_a_folder_is_learned_and_scored(tmp_path: Path) -> None:
    root = a_folder(tmp_path / "pictures")
    change = {"data.source": "folder", "train.steps": 30, "train.base_lr": 0.1, **PLAIN}
    run = fit(tiny(change, out_dir=str(tmp_path / "run"), data_dir=str(root)))
    scores = score_one_modality(run.load_method(), run.config)
    assert scores["val"]["n"] == 12 and scores["val"]["classes"] == 3
    assert scores["val"]["chance"] == scores["val"]["majority"] == pytest.approx(100 / 3)
    assert scores["val"]["accuracy"] == 100.0


def test_batches_of_a_folder_are_pure_and_two_processes_share_one_batch(tmp_path: Path) -> None:
    shown = PictureFolder(a_folder(tmp_path), "train", 32, seed=1)
    whole = shown.batch(3, 8)
    parts = [shown.batch(3, 4, rank, 2) for rank in range(2)]
    for name, value in whole.items():
        assert torch.equal(value, torch.cat([part[name] for part in parts]))
    seen = torch.cat([shown.batch(step, 4)["label"] for step in range(3)])
    assert seen.bincount().tolist() == [4, 4, 4]  # an epoch shows each picture once
    assert shown.squares([0, 11]).shape == (2, 3, 32, 32)


def test_folders_that_cannot_be_used_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="set DATA_DIR"):
        PictureFolder("", "train", 32)
    with pytest.raises(FileNotFoundError, match="must hold one folder of pictures a class"):
        PictureFolder(tmp_path / "nothing", "train", 32)
    root = a_folder(tmp_path / "pictures")
    (root / "val" / "red").rename(root / "val" / "pink")
    config = tiny({"data.source": "folder"}, data_dir=str(root))
    with pytest.raises(ValueError, match=r"differ in the classes \['pink', 'red'\]"):
        score_one_modality(build(config), config)
    (root / "train" / "red" / "0.jpg").write_bytes(b"not a picture")
    with pytest.raises(ValueError, match="is damaged"):
        for step in range(3):
            PictureFolder(root, "train", 32).batch(step, 4)


def test_the_line_of_descent_goes_through_the_start() -> None:
    assert ancestors(tiny({"image.start": "vit"})) == ["vit"]
    assert ancestors(tiny({"options.start": "distill_clip:both"})) == ancestors(
        resolve("distill_clip", "tiny")
    )
    assert "vit" in ancestors(tiny({"options.start": "clip"}))
    random = ancestors(tiny({"options.start": "ssmke:random_teacher"}))
    assert random == ancestors(
        resolve("ssmke", "tiny", METHODS["ssmke"].variants["random_teacher"])
    )
    assert random != ancestors(resolve("ssmke", "tiny"))


def test_a_finetuned_tower_is_a_subject_of_the_suite_and_its_card_says_that_it_saw_labels(
    tmp_path: Path,
) -> None:
    run = fit(tiny({"train.steps": 1}, out_dir=str(tmp_path / "run")))
    subject = open_subject(run.dir)
    assert subject.has("image") and not subject.has("text")
    vectors = subject.image_vectors(torch.rand(4, 3, 32, 32))
    torch.testing.assert_close(vectors.norm(dim=1), torch.ones(4))
    assert training_data(to_dict(run.config)) == (
        "emoji pictures with class labels (fine, 96 subgroups)",
        "yes",
    )
    folder = to_dict(tiny({"data.source": "folder"}))
    assert training_data(folder) == ("a folder of pictures with class labels", "yes")


def test_pictures_without_labels_are_refused() -> None:
    with pytest.raises(ValueError, match=r"has no labelled pictures of .*'coco'"):
        MixedPictures(tiny({"data.source": "coco"}))


def test_an_encoder_of_another_shape_fits_the_head() -> None:
    encoder = ImageEncoder(tiny({"image.width": 16}).image, 32)
    assert PooledClassifier(encoder, 7)(torch.rand(2, 3, 32, 32)).shape == (2, 7)
