"""DistillCLIP: terms, first weights, Table B.1's sizes, frozen teacher, published models, clear errors."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mmkd_lite.config import TowerConfig, resolve
from mmkd_lite.embeddings import Embeddings
from mmkd_lite.losses import similarity_map_distillation
from mmkd_lite.methods import build
from mmkd_lite.methods.distill_clip import DistillCLIP
from mmkd_lite.models import ImageEncoder, TextEncoder, seeded
from mmkd_lite.models import clip as clips
from mmkd_lite.teachers import Teacher, load_teacher
from tests import reference_losses as loops
from tests.method_checks import random_pairs, same_with_gradients
from tests.reference_losses import map_distance_loop, similarity_maps_loop

SIZES = {"image.width": 16, "text.width": 24, "text.layers": 2, "options.space_width": 8}
TOWER = TowerConfig(width=24, layers=4)


def toy_teacher(layers: int = 4) -> Teacher:
    """Two towers of other widths and depths, with a scale: what `load_teacher("clip")` gives."""
    with seeded(7):
        towers = clips.OwnTowers(
            ImageEncoder(dataclasses.replace(TOWER, layers=1), 48),
            TextEncoder(dataclasses.replace(TOWER, layers=layers), 2000, 32),
            12,
        )
    towers.scale = 20.0
    return Teacher("toy", towers, image_size=48)


def tiny(overrides: dict | None = None):
    return resolve("distill_clip", "tiny", {"teacher": "", **SIZES, **(overrides or {})})


def a_batch(config, size: int = 6) -> dict[str, Tensor]:
    return random_pairs(config, range(size))


def both_sides(method, batch):
    targets = method.targets(batch)
    student = method.encode_image(batch["image"]), method.encode_text(batch["tokens"])
    return student, (targets["image"], targets["text"])


def test_terms_equal_the_loops_and_the_public_loss() -> None:
    config = tiny()
    method = build(config, toy_teacher()).double()
    batch = {k: v.double() if v.is_floating_point() else v for k, v in a_batch(config).items()}
    terms = method.losses(batch, method.targets(batch), progress=0.0)
    student, teacher = both_sides(method, batch)
    expected = similarity_maps_loop(student, teacher)
    assert float((terms["inter"] + terms["intra"]).detach()) == pytest.approx(
        float(expected), rel=1e-9
    )
    public = similarity_map_distillation(Embeddings(*student), Embeddings(*teacher))
    assert float(public) == pytest.approx(float(expected), rel=1e-9)
    assert terms.keys() == DistillCLIP.default_weights.keys()
    assert all(float(terms[name]) == 0 for name in terms if name not in ("inter", "intra"))


INTER, INTRA = ((0, 1), (1, 0)), ((0, 0), (1, 1))


def terms_by_loops(method: DistillCLIP, batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """All eight terms, an entry at a time; the teacher's scale is 20, TinyCLIP's 50."""
    student, teacher = both_sides(method, batch)
    scale, ids = method.scale.value(), batch["image_id"]
    wide = [
        F.normalize(adapter(side), dim=-1)
        for adapter, side in zip(method.adapters, student, strict=True)
    ]

    def divergence(pairs: tuple) -> Tensor:
        return loops.map_divergence_loop(student, teacher, (scale, 20.0), pairs)

    def affinity(rows: int, columns: int) -> Tensor:
        ours, theirs = (loops.map_rows_loop(x[rows], x[columns], 50) for x in (student, teacher))
        return loops.soft_cross_entropy_loop(ours, theirs)

    def interactive(query: int) -> Tensor:
        other = teacher[1 - query]
        return loops.info_nce_loop(wide[query], other, scale, query_id=ids, key_id=ids)

    return {
        "inter": map_distance_loop(student, teacher),
        "intra": similarity_maps_loop(student, teacher, inter=0),
        "contrast": loops.image_text_contrast_loop(*student, scale, image_id=ids),
        "map_kl": divergence(INTER + INTRA),
        "feature": sum(map(loops.mean_squared_error_loop, wide, teacher)),
        "relational": divergence(INTER),
        "interactive": (interactive(0) + interactive(1)) / 2,
        "affinity": (affinity(0, 1) + affinity(1, 0)) / 2,
    }


def test_every_term_and_its_gradient_equal_the_loops() -> None:
    config = tiny({f"weights.{name}": 1.0 for name in DistillCLIP.default_weights})
    method = build(config, toy_teacher()).double()
    batch = {k: v.double() if v.is_floating_point() else v for k, v in a_batch(config).items()}
    batch["image_id"][3] = batch["image_id"][1]  # one picture twice
    found = method.losses(batch, method.targets(batch), progress=0.0)
    expected = terms_by_loops(method, batch)
    same_with_gradients(found, expected, list(method.parameters()))


def test_as_printed_compares_texts_of_any_length() -> None:
    config = tiny(DistillCLIP.variants["as_printed"])
    method = build(config, toy_teacher())
    batch = a_batch(config)
    targets = method.targets(batch)
    found = method.losses(batch, targets, progress=0.0)["inter"]
    raw = method.towers.text_vectors(batch["tokens"])
    theirs = method.teacher.model.text_vectors(batch["tokens"])
    expected = map_distance_loop(
        (method.encode_image(batch["image"]), raw), (targets["image"], theirs)
    )
    assert float(found) == pytest.approx(float(expected), rel=1e-4)


@pytest.mark.parametrize("variant", list(DistillCLIP.variants))
def test_every_variant_trains_all_it_has_and_no_teacher(variant: str) -> None:
    config = tiny(DistillCLIP.variants[variant])
    method = build(config, toy_teacher()).train()
    before = {name: value.clone() for name, value in method.teacher.state_dict().items()}
    batch = a_batch(config)
    terms = method.losses(batch, method.targets(batch), progress=0.0)
    assert {name for name, term in terms.items() if term} == {
        name for name, weight in config.weights.items() if weight
    }
    sum(config.weights[name] * term for name, term in terms.items()).backward()
    idle = {
        name for name, p in method.named_parameters() if p.grad is None or not p.grad.abs().sum()
    }
    own_scale = {"affinity": {"scale.log_scale"}}.get(variant, set())  # 50 for both models
    assert {name for name in idle if "key" not in name} == own_scale
    assert all(p.grad is None and not p.requires_grad for p in method.teacher.parameters())
    assert not any(module.training for module in method.teacher.modules())
    assert all(torch.equal(before[k], v) for k, v in method.teacher.state_dict().items())
    assert not any("teacher" in name for name in method.state_dict())
    method.after_step()


def test_text_layer_i_starts_from_the_teachers_layer_2i() -> None:
    teacher = toy_teacher()
    method = build(tiny(), teacher)
    theirs, ours = teacher.model.text_encoder.transformer, method.towers.text_encoder.transformer
    for number in (1, 2):
        pairs = zip(
            ours.blocks[number - 1].parameters(),
            theirs.blocks[2 * number - 1].parameters(),
            strict=True,
        )
        assert all(torch.equal(a, b) for a, b in pairs)
    assert torch.equal(ours.final_norm.weight, theirs.final_norm.weight)
    free = build(tiny({"options.text_start": ""}), teacher)
    embedding = lambda m: m.text_encoder.token_embedding.weight  # noqa: E731
    assert torch.equal(embedding(method.towers), embedding(teacher.model))
    assert not torch.equal(embedding(free.towers), embedding(teacher.model))


def test_the_state_survives_a_round_trip_and_the_build_is_deterministic() -> None:
    config = tiny({**DistillCLIP.variants["feature"], "weights.contrast": 1.0})
    first, second = build(config, toy_teacher()), build(config, toy_teacher())
    assert first.state_dict().keys() >= {"scale.log_scale", "adapters.0.linear.weight"}
    for name, value in first.state_dict().items():
        assert torch.equal(value, second.state_dict()[name]), name
    with torch.no_grad():
        first.scale.log_scale.fill_(9.0)
    first.after_step()
    assert float(first.scale.value()) == pytest.approx(100.0)
    second.load_state_dict(first.state_dict())
    assert float(second.scale.value()) == pytest.approx(100.0)


@pytest.mark.parametrize(("which", "count"), [("teacher", 151_277_313), ("student", 66_147_073)])
def test_table_b1_is_counted(which: str, count: int) -> None:
    with torch.device("meta"):
        model = clips.build(which)
    assert sum(p.numel() for p in model.parameters()) == count
    text = sum(p.numel() for p in model.text_model.parameters())
    assert round(text / 1e6, 1) == {"teacher": 63.2, "student": 44.3}[which]  # E003-03


def test_full_preset_is_table_b1_and_the_printed_recipe() -> None:
    config = resolve("distill_clip", "full")
    image, text, width = clips.TABLE_B1["student"]
    for ours, table in ((config.image, image), (config.text, text)):
        assert (ours.width, ours.layers, ours.heads) == (table.width, table.layers, table.heads)
    assert config.image.patch == image.patch and config.options.space_width == width
    train = config.train
    assert train.base_lr * train.batch_size / 256 == pytest.approx(3e-5)
    assert round(train.warmup_fraction * train.steps) == 10_000
    assert (train.batch_size, train.steps, train.weight_decay) == (84, 33_513, 0.1)
    assert (train.betas, train.eps) == ((0.9, 0.98), 1e-6)


SMALL_FULL = {
    "image.width": 32,
    "image.heads": 2,
    "image.layers": 2,
    "image.start": "",
    "text.width": 24,
    "text.heads": 2,
    "text.layers": 2,
    "options.space_width": 8,
    "data.tokenizer": "emoji",
    "data.vocab_size": 0,
    "data.image_size": 32,
    "data.max_tokens": 20,
}


def test_the_transformers_student_learns_from_a_clip_in_a_folder(tmp_path) -> None:
    with seeded(0):
        published = clips.clip_model(
            TowerConfig(width=32, layers=1, heads=2, patch=16),
            TowerConfig(width=24, layers=4, heads=2),
            12, image_size=48, vocabulary=2000, length=20, end_of_text=3,
        )  # fmt: skip
    published.save_pretrained(tmp_path)
    config = resolve("distill_clip", "full", {**SMALL_FULL, "teacher": f"transformers:{tmp_path}"})
    method = build(config)
    assert method.teacher.image_size == 48
    batch = a_batch(config)
    batch["tokens"][:, 4] = 3  # an end of text
    terms = method.losses(batch, method.targets(batch), progress=0.0)
    (terms["inter"] + terms["intra"]).backward()
    assert all(
        p.grad is not None and p.grad.abs().sum() > 0
        for name, p in method.named_parameters()
        if p.requires_grad and "k_proj.bias" not in name
    )
    ours = method.towers.clip.text_model.encoder.layers[0].mlp.fc1.weight
    assert torch.equal(ours, method.teacher.model.clip.text_model.encoder.layers[1].mlp.fc1.weight)
    with torch.no_grad():
        expected = method.teacher.model.clip(
            input_ids=batch["tokens"],
            pixel_values=(method.teacher.fit_size(batch["image"]) - method.teacher.model.mean)
            / method.teacher.model.std,
        )
    targets = method.targets(batch)
    torch.testing.assert_close(targets["image"], expected.image_embeds, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(targets["text"], expected.text_embeds, rtol=1e-4, atol=1e-5)
    later = batch["tokens"].clone()
    later[:, 6:] = 9  # after the end of the text
    torch.testing.assert_close(method.encode_text(later), method.encode_text(batch["tokens"]))


def test_timm_weights_give_timms_function_but_for_the_extra_norm() -> None:
    import timm

    with seeded(3):
        vit = timm.create_model("vit_tiny_patch16_224", num_classes=0).eval()
        model = clips.clip_model(
            TowerConfig(width=192, layers=12, heads=3, patch=16), TowerConfig(24, 1, 2), 8
        )
    for p in vit.parameters():  # timm starts biases at 0, which would hide a missing one
        torch.nn.init.normal_(p, std=0.05)
    clips.load_timm_into_clip(model.vision_model, vit.state_dict())
    model.vision_model.pre_layrnorm = torch.nn.Identity()
    for layer in model.vision_model.encoder.layers:
        layer.mlp.activation_fn = torch.nn.GELU()
        layer.layer_norm1.eps = layer.layer_norm2.eps = 1e-6
    model.vision_model.post_layernorm.eps = 1e-6
    images = torch.randn(2, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(
            model.eval().vision_model(images).pooler_output, vit(images), rtol=1e-3, atol=1e-4
        )


@pytest.mark.parametrize(
    ("overrides", "layers", "message"),
    [
        ({"options.reduction": "max"}, 4, "reduction='max' is unknown; valid: sum, mean"),
        ({"options.student": "mine"}, 4, "must be 'own' or 'transformers'"),
        ({"options.text_start": "first"}, 4, "must be 'even' or ''"),
        ({"text.start": "text"}, 4, "both start the text tower"),
        ({}, 5, "needs a teacher of 4 layers for text.layers=2; it has 5"),
        (
            {"text.width": 32},
            4,
            r"shape \(2000, 24\) in the teacher but \(2000, 32\) in the student",
        ),
        (
            {"data.vocab_size": 99},
            4,
            "vocabulary size is 99 for the student but 2000 for the teacher",
        ),
        (
            {"data.max_tokens": 40},
            4,
            "data.max_tokens is 40 for the student but 32 for the teacher",
        ),
    ],
)
def test_bad_settings_are_named(overrides: dict, layers: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build(tiny(overrides), toy_teacher(layers))


def test_teachers_that_cannot_be_used_or_had_are_named(monkeypatch) -> None:
    with pytest.raises(ValueError, match=r"two towers, e\.g\. teacher=clip"):
        build(tiny({"teacher": "random-vit"}))
    with pytest.raises(OSError, match="pass a folder with its files"):
        load_teacher("transformers:nobody/no-such-clip")
    with pytest.raises(ValueError, match=r"has no .giant.; valid: teacher, student"):
        load_teacher("transformers-random:giant")
    assert math.isclose(float(toy_teacher().model.scale), 20.0)
