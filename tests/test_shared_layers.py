"""Shared layers: regression of the teacher's [CLS] by loops, who trains what, decay, sizes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mmkd_lite.config import RunConfig, resolve
from mmkd_lite.distiller import Distiller
from mmkd_lite.methods import build
from mmkd_lite.methods.shared_layers import SharedLayers
from mmkd_lite.methods.shared_space import SharedSpaceMethod
from mmkd_lite.models import seeded
from mmkd_lite.optimizer import build_optimizer
from tests.reference_losses import image_text_contrast_loop, mean_squared_error_loop
from tests.test_shared_space import a_batch

WIDE = {"image.width": 96, "text.width": 96}


def tiny(overrides: dict | None = None) -> RunConfig:
    return resolve("shared_layers", "tiny", {"teacher": "random-vit", **(overrides or {})})


def variant(name: str) -> dict[str, Any]:
    """A variant's settings at a size that it can have here."""
    return SharedLayers.variants[name] | (WIDE if name in ("text_start", "no_head") else {})


def gradients(method: SharedLayers, value: Tensor) -> dict[str, Tensor]:
    names, tensors = zip(*method.named_parameters(), strict=True)
    found = torch.autograd.grad(value, tensors, retain_graph=True, allow_unused=True)
    return {n: g for n, g in zip(names, found, strict=True) if g is not None}


@pytest.mark.parametrize("name", ["base", "cls_only", "no_head", "single", "flava", "clip"])
def test_terms_and_gradients_equal_the_loops(name: str) -> None:
    config = tiny(variant(name))
    method = build(config).double()
    batch = a_batch(config)
    terms = method.losses(batch, method.targets(batch), 0.0)
    image = method.space.encode_image(batch["image"])
    text = method.space.encode_text(batch["tokens"])
    target = method.teacher.features(batch["image"])
    expected = {
        "regression_image": mean_squared_error_loop(method.head(image.shared), target),
        "regression_text": mean_squared_error_loop(method.head(text.shared), target),
        "contrast": image_text_contrast_loop(
            image.contrast[0], text.contrast[0], 1 / 0.07, image_id=batch["image_id"]
        ),
    }
    assert terms.keys() == expected.keys() == config.weights.keys()
    for term, value in expected.items():
        torch.testing.assert_close(terms[term], value, rtol=1e-6, atol=1e-9)
        found, wanted = gradients(method, terms[term]), gradients(method, value)
        wanted.pop("scales.0.log_scale", None)
        for part, gradient in wanted.items():
            largest = gradient.abs().max().clamp_min(1e-9)
            assert (found[part] - gradient).abs().max() <= 1e-6 * largest, (term, part)


@pytest.mark.parametrize("name", list(SharedLayers.variants))
def test_every_variant_trains_what_it_uses_and_never_the_teacher(name: str) -> None:
    config = tiny(variant(name))
    method = build(config).train()
    batch = {k: v.float() if v.is_floating_point() else v for k, v in a_batch(config).items()}
    before = {k: value.clone() for k, value in method.teacher.state_dict().items()}
    Distiller(method, config.weights).step_loss(batch, 0.0)[0].backward()
    unused = () if config.weights["contrast"] else ("scales.", "space.projections.")
    for part, parameter in method.named_parameters():
        if parameter.requires_grad and not part.startswith(unused):
            whole = parameter.grad is not None and bool(parameter.grad.abs().sum() > 0)
            assert whole, part
    optimizer = build_optimizer(method, config.train)
    names = {part for group in optimizer.param_groups for part in group["names"]}
    assert names == {n for n, p in method.named_parameters() if p.requires_grad}
    assert not any("teacher" in part for part in method.state_dict())
    assert not any(module.training for module in method.teacher.modules())
    for part, value in method.teacher.state_dict().items():
        assert torch.equal(value, before[part]) and not value.requires_grad


def test_only_distillation_reaches_flavas_shared_layers() -> None:
    config = tiny(variant("flava"))
    method = build(config).double()
    batch = a_batch(config)
    terms = method.losses(batch, method.targets(batch), 0.0)
    reached = {name: set(gradients(method, value)) for name, value in terms.items()}
    shared = {n for n, _ in method.named_parameters() if "space.shared." in n or "inward" in n}
    assert shared and shared <= reached["regression_image"] | reached["regression_text"]
    assert not shared & reached["contrast"]
    assert "space.projections.image.linear.weight" not in reached["regression_image"]


def test_retrieval_uses_the_space_that_was_trained() -> None:
    for name, contrasted in (("base", False), ("single", True)):
        config = tiny(variant(name))
        method = build(config).double().eval()
        images = a_batch(config)["image"]
        encoded = method.space.encode_image(images)
        wanted = encoded.contrast[-1] if contrasted else method.head(encoded.shared)
        torch.testing.assert_close(method.encode_image(images), F.normalize(wanted, dim=-1))


def test_decay_reaches_cls_and_token_embeddings_only_where_asked() -> None:
    embeddings = {"space.image_encoder.cls", "space.text_encoder.token_embedding.weight"}
    decayed = {}
    for name in ("base", "decay"):
        config = tiny(variant(name))
        method = build(config)
        groups = build_optimizer(Distiller(method, config.weights), config.train).param_groups
        names = {n for group in groups if group["weight_decay"] for n in group["names"]}
        decayed[name] = {n.removeprefix("method.") for n in names}
    assert decayed["decay"] - decayed["base"] == embeddings
    assert decayed["base"] < decayed["decay"]
    both = build(tiny(variant("decay") | variant("frozen")))
    groups = build_optimizer(both, tiny().train).param_groups
    assert not embeddings & {n for group in groups for n in group["names"]}


def test_a_layer_costs_7_09_million_wherever_it_is_put() -> None:
    shape = {"text.start": "", "teacher": ""}
    count = lambda module: sum(p.numel() for p in module.parameters())  # noqa: E731
    layers = {"5+1": (5, 1), "5+2": (5, 2), "6+1": (6, 1)}
    sizes = {}
    with torch.device("meta"):
        for name, (own, shared) in layers.items():
            change = {"image.layers": own, "text.layers": own, "options.shared_layers": shared}
            config = resolve("shared_layers", "full", {**shape, **change})
            sizes[name] = count(SharedSpaceMethod(config, None).space)
    layer = 12 * 768**2 + 13 * 768
    assert sizes["5+2"] - sizes["5+1"] == layer and round(layer / 1e6, 2) == 7.09
    assert sizes["6+1"] - sizes["5+1"] == 2 * layer  # one in each tower


def test_full_size_takes_a_step() -> None:
    settings = {"text.start": "", "image.layers": 1, "text.layers": 1, "data.vocab_size": 100}
    teacher = {
        "teacher": "timm-random:vit_tiny_patch16_224.augreg_in21k",
        "options.head": "separate",
    }
    config = resolve("shared_layers", "full", {**settings, **teacher})
    method = build(config)
    batch = {k: v.float() if v.is_floating_point() else v for k, v in a_batch(config, 2).items()}
    loss, terms = Distiller(method, config.weights).step_loss(batch, 0.0)
    loss.backward()
    assert method.head[1].out_features == 192 and all(map(torch.isfinite, terms.values()))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"teacher": ""}, "shared_layers needs an image teacher"),
        ({"teacher": "random-text"}, "reads texts; use an image teacher"),
        ({"options.head": "mlp"}, "options.head='mlp' must be 'separate' or 'shared'"),
        ({"options.head": "shared"}, "width 96 and the student's 32"),
    ],
)
def test_bad_settings_are_named(overrides: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message), seeded(0):
        build(tiny(overrides))
