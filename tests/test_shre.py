"""Transformer SHRe: corrected Code 3, full size, frozen teacher, clear errors."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mmkd_lite.config import RunConfig, resolve
from mmkd_lite.methods import METHODS, build
from mmkd_lite.methods.shre import SHRe
from tests.method_checks import random_pairs, same_with_gradients
from tests.reference_losses import image_text_contrast_loop, kl_divergence_loop


def tiny(overrides: dict | None = None) -> RunConfig:
    settings = {"teacher": "random-cnn", "image.start": "", "text.start": "", **(overrides or {})}
    return resolve("shre", "tiny", settings)


def a_batch(config: RunConfig, size: int = 6) -> dict[str, Tensor]:
    return random_pairs(config, range(size))


def outputs(method: SHRe, batch: dict[str, Tensor]) -> tuple[list, list]:
    """The contrasted outputs of both modalities and, last, their class logits."""
    image, text = method.image_encoder(batch["image"]), method.text_encoder(batch["tokens"])
    if method.config.options.fusion == "mlp":
        both = method.shared(image[:, 0]), method.shared(text[:, 0])
        return tuple([*layers, layers[2]] for layers in both)
    both = method.shared(image), method.shared(text, batch["tokens"] != 0)
    last = method.config.options.contrast_layers
    return tuple(
        [*[shared.intermediate, shared.cls][-last:], method.class_head(shared.cls)]
        for shared in both
    )


def code_3(method: SHRe, batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """Seed 000's Code 3 with every erratum corrected, one pair and one class at a time."""
    image, text = outputs(method, batch)
    teacher = method.teacher.class_logits(batch["image"])
    contrasts = [
        image_text_contrast_loop(
            F.normalize(v, dim=-1), F.normalize(w, dim=-1), scale.log_scale.exp()
        )
        for v, w, scale in zip(image[:-1], text[:-1], method.scales, strict=True)
    ]
    return {
        "kl_image": kl_divergence_loop(image[-1], teacher),
        "kl_text": kl_divergence_loop(text[-1], teacher),
        "contrast": sum(contrasts) / len(contrasts),
    }


@pytest.mark.parametrize("variant", ["both", "shared_block"])
def test_terms_and_gradients_equal_corrected_code_3_pair_by_pair(variant: str) -> None:
    method = build(tiny(SHRe.variants[variant])).double()
    batch = {k: v.double() if v.is_floating_point() else v for k, v in a_batch(tiny()).items()}
    terms = method.losses(batch, method.targets(batch), progress=0.0)
    expected = code_3(method, batch)
    assert expected.keys() == METHODS["shre"].default_weights.keys()
    same_with_gradients(terms, expected, list(method.parameters()))


def test_three_layers_with_the_same_vectors_are_one_plain_contrast() -> None:
    method = build(tiny()).double()
    vectors = torch.randn(2, 6, 5, generator=torch.Generator().manual_seed(0)).double()
    logits = torch.zeros(6, method.teacher.classes, dtype=torch.float64)
    method.shared_image = lambda images: ([vectors[0]] * 3, logits)
    method.shared_text = lambda tokens: ([vectors[1]] * 3, logits)
    batch = a_batch(tiny())
    terms = method.losses(batch, method.targets(batch), progress=0.0)
    image, text = F.normalize(vectors, dim=-1)
    plain = image_text_contrast_loop(image, text, method.scales[0].value())
    torch.testing.assert_close(terms["contrast"], plain, rtol=1e-12, atol=0)


@pytest.mark.parametrize("variant", list(SHRe.variants))
def test_every_variant_trains_every_parameter_it_uses_and_no_teacher(variant: str) -> None:
    config = tiny(SHRe.variants[variant])
    method = build(config)
    before = {name: value.clone() for name, value in method.teacher.state_dict().items()}
    batch = a_batch(config)
    terms = method.losses(batch, method.targets(batch), progress=0.0)
    sum(config.weights[name] * term for name, term in terms.items()).backward()
    idle = {
        name for name, p in method.named_parameters() if p.grad is None or not p.grad.abs().sum()
    }
    expected_idle = {f"scales.{k}.log_scale" for k in range(3)} if variant == "kl_only" else set()
    if variant == "contrast_only":
        expected_idle = set()
    unexpected = {name for name in idle - expected_idle if "key" not in name}
    assert not unexpected
    assert all(not p.requires_grad and p.grad is None for p in method.teacher.parameters())
    assert all(
        torch.equal(before[name], value) for name, value in method.teacher.state_dict().items()
    )


def test_teacher_is_outside_the_module_tree_and_stays_in_eval_mode() -> None:
    method = build(tiny()).train()
    assert not any("teacher" in name for name in method.state_dict())
    assert not any("teacher" in name for name, _ in method.named_parameters())
    assert not any(module.training for module in method.teacher.modules())
    assert next(method.double().teacher.parameters()).dtype == torch.float64


def test_build_is_deterministic_and_leaves_the_random_state_alone() -> None:
    torch.manual_seed(5)
    state = torch.get_rng_state()
    first, second, other = (
        build(tiny()),
        build(tiny()),
        build(resolve("shre", "tiny", "teacher=random-cnn", seed=1)),
    )
    assert torch.equal(torch.get_rng_state(), state)
    same = [torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True)]
    assert all(same)
    assert not torch.equal(first.shared.expand.weight, other.shared.expand.weight)


@pytest.mark.parametrize("fusion", ["mlp", "transformer"])
def test_padding_never_reaches_the_embedding(fusion: str) -> None:
    config = tiny({"options.fusion": fusion, "options.contrast_layers": 1})
    method = build(config).eval()
    tokens = a_batch(config)["tokens"]
    kept = tokens[:, :10]
    assert int((tokens[:, 10:] != 0).sum()) == 0
    assert torch.allclose(method.encode_text(tokens), method.encode_text(kept), atol=1e-6)


def test_embeddings_have_unit_length_and_scales_stay_in_bounds() -> None:
    config = tiny()
    method = build(config)
    batch = a_batch(config)
    for vectors in (method.encode_image(batch["image"]), method.encode_text(batch["tokens"])):
        assert torch.allclose(vectors.norm(dim=1), torch.ones(6), atol=1e-5)
    with torch.no_grad():
        method.scales[0].log_scale.fill_(9.0)
        method.scales[1].log_scale.fill_(-3.0)
    method.after_step()
    assert [round(s.value().item(), 3) for s in method.scales] == [100.0, 1.0, 14.286]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"options.fusion": "sum"}, "must be 'mlp' or 'transformer'"),
        ({"options.contrast_layers": 4}, "must be 1 to 3"),
        ({"options.fusion": "transformer", "options.contrast_layers": 3}, "must be 1 to 2"),
        ({"text.width": 64}, "image.width=32 must equal text.width=64"),
        ({"teacher": "random-text"}, "needs a teacher that predicts classes"),
        ({"teacher": "oracle"}, "unknown teacher 'oracle'; valid: cnn, vit, text"),
    ],
)
def test_bad_settings_are_named(overrides: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build(tiny(overrides))


def test_full_size_has_the_recomputed_115_million_parameters_and_takes_a_step() -> None:
    config = resolve("shre", "full", {"teacher": "timm-random:resnet50", "text.start": ""})
    method = build(config)
    count = lambda module: sum(p.numel() for p in module.parameters())  # noqa: E731
    assert round(count(method.image_encoder) / 1e6, 1) == 43.1
    assert round(count(method.text_encoder) / 1e6, 1) == 66.4
    assert round(count(method.shared) / 1e6, 1) == 5.5
    assert round(count(method) / 1e6, 1) == 115.0
    batch = a_batch(config, size=2)
    optimiser = torch.optim.SGD(method.parameters(), lr=1e-3)
    with torch.no_grad():
        targets = method.targets(batch)
    assert targets["class_logits"].shape == (2, 1000)
    before = method.shared.expand.weight.detach().clone()
    terms = method.losses(batch, targets, progress=0.0)
    sum(config.weights[name] * term for name, term in terms.items()).backward()
    optimiser.step()
    assert all(math.isfinite(float(term)) for term in terms.values())
    assert not torch.equal(before, method.shared.expand.weight)
