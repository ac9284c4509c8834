"""The shared space: every layout by its parts, what trains what, frozen parts, sizes, clear errors."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mmkd_lite.config import RunConfig, resolve
from mmkd_lite.methods import build
from mmkd_lite.methods.shared_space import SharedSpaceMethod
from mmkd_lite.models.shared_space import LAYOUTS, Encoded, SharedSpace
from mmkd_lite.teachers import shipped_state
from tests.method_checks import random_pairs
from tests.reference_losses import image_text_contrast_loop

LAYERS = {layout: 0 if layout == "clip" else 1 for layout in LAYOUTS}


def tiny(layout: str = "none", overrides: dict | None = None) -> RunConfig:
    settings = {"options.layout": layout, "options.shared_layers": LAYERS.get(layout, 1)}
    return resolve("contrast", "tiny", {**settings, **(overrides or {})})


def a_batch(config: RunConfig, size: int = 5) -> dict[str, Tensor]:
    return random_pairs(config, [0, 1, 2, 1, 4][:size], torch.float64)


def by_parts(space: SharedSpace, batch: dict[str, Tensor], side: str) -> list[Tensor]:
    """What is contrasted, before it is normalised, written out for each layout."""
    if side == "image":
        sequence, mask = space.image_encoder(batch["image"]), None
    else:
        sequence, mask = space.text_encoder(batch["tokens"]), batch["tokens"] != 0
    weight = {name: part.linear.weight for name, part in space.projections.items()}
    own = sequence[:, 0] @ weight[side].T if side in weight else None
    if space.layout in ("clip", "flava"):
        return [own]
    shared = space.shared(sequence, mask).cls
    if space.layout == "none":
        return [shared]
    if space.layout == "single":
        return [shared @ weight["shared"].T]
    return [own, shared @ weight[f"shared_{side}"].T]


def trained(method: SharedSpaceMethod, value: Tensor) -> dict[str, Tensor]:
    names, tensors = zip(*method.named_parameters(), strict=True)
    found = torch.autograd.grad(value, tensors, retain_graph=True, allow_unused=True)
    return {n: g for n, g in zip(names, found, strict=True) if g is not None}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_value_and_every_gradient_equal_the_loop_over_the_parts(layout: str) -> None:
    config = tiny(layout)
    method = build(config).double()
    batch = a_batch(config)
    value = method.losses(batch, {}, 0.0)["contrast"]
    image, text = (by_parts(method.space, batch, side) for side in ("image", "text"))
    expected = sum(
        image_text_contrast_loop(
            F.normalize(v, dim=-1),
            F.normalize(w, dim=-1),
            s.log_scale.exp(),
            image_id=batch["image_id"],
        )
        for v, w, s in zip(image, text, method.scales, strict=True)
    ) / len(image)
    torch.testing.assert_close(value, expected, rtol=1e-6, atol=1e-9)
    found, wanted = trained(method, value), trained(method, expected)
    for name, gradient in wanted.items():
        scale = gradient.abs().max().clamp_min(1e-9)
        assert (found[name] - gradient).abs().max() <= 1e-6 * scale, name
    idle = {name for name, _ in method.named_parameters()} - set(found)
    inside = ("space.shared.", "space.inward.")
    assert all(name.startswith(inside) for name in idle)
    assert bool(idle) == (layout == "flava")  # alone, its contrast never reaches the shared layers


def test_flava_contrasts_what_clip_contrasts() -> None:
    flava, clip = (build(tiny(layout)).double() for layout in ("flava", "clip"))
    own = clip.state_dict()
    clip.load_state_dict({name: flava.state_dict()[name] for name in own})
    batch = a_batch(tiny())
    assert torch.equal(*(m.losses(batch, {}, 0.0)["contrast"] for m in (flava, clip)))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_outputs_are_what_the_table_says(layout: str) -> None:
    config = tiny(layout, {"options.space_width": 0 if layout == "none" else 12})
    space = build(config).double().eval().space
    batch = a_batch(config)
    both = space.encode_image(batch["image"]), space.encode_text(batch["tokens"])
    count = {"none": 0, "single": 1, "clip": 2, "flava": 2, "vlmo": 4}[layout]
    assert len(space.projections) == count and len(space.inward) == (2 if layout == "flava" else 0)
    for encoded in both:
        assert isinstance(encoded, Encoded) and len(encoded.contrast) == space.contrasts
        assert encoded.encoder.shape == encoded.shared.shape == (5, 32)
        for output in encoded.contrast:
            assert output.shape == (5, 32 if layout == "none" else 12)
            torch.testing.assert_close(output.norm(dim=1), torch.ones(5, dtype=torch.float64))
    assert torch.equal(both[0].encoder, both[0].shared) == (layout == "clip")
    wider = torch.cat([batch["tokens"], torch.zeros(5, 0, dtype=torch.int64)], dim=1)
    alone = space.encode_text(wider[:1, :4])  # the shortest caption without any padding
    torch.testing.assert_close(alone.contrast[-1], both[1].contrast[-1][:1])


def test_a_shared_layer_fed_cls_alone_has_linear_attention_and_no_need_of_the_mask() -> None:
    config = tiny("none", {"options.shared_input": "cls"})
    space = build(config).double().eval().space
    (block,) = space.shared.blocks
    first, second = torch.randn(2, 3, 1, 32, dtype=torch.float64).unbind()
    attention, zero = block.attention, torch.zeros(3, 1, 32, dtype=torch.float64)
    offset = attention(zero)
    mixed = attention(0.3 * first - 2.0 * second) - offset
    parts = 0.3 * (attention(first) - offset) - 2.0 * (attention(second) - offset)
    torch.testing.assert_close(mixed, parts)
    value = attention.query_key_value.weight[64:]
    matrix = attention.output.weight @ value
    torch.testing.assert_close(attention(first) - offset, first @ matrix.T)
    two = attention(torch.cat([first, second], dim=1))[:, :1]
    assert not torch.allclose(two, attention(first))  # with two tokens it is no longer that map
    batch = a_batch(config)
    encoded = space.encode_text(batch["tokens"])
    torch.testing.assert_close(encoded.shared, space.shared(encoded.encoder[:, None]).cls)
    whole = SharedSpace(space.image_encoder, space.text_encoder).double().eval()
    whole.load_state_dict(space.state_dict())
    assert not torch.allclose(whole.encode_text(batch["tokens"]).shared, encoded.shared)


def test_token_types_move_each_modality_by_its_own_embedding() -> None:
    plain, typed = (build(tiny("none", {"options.token_types": on})) for on in (False, True))
    space = typed.space
    space.load_state_dict(plain.space.state_dict(), strict=False)
    batch = a_batch(tiny())
    images = batch["image"].float()
    first = plain.space.encode_image(images).shared
    torch.testing.assert_close(space.encode_image(images).shared, first, atol=1e-4, rtol=0)
    with torch.no_grad():
        space.layer_scale.fill_(1.0)
        space.type_embedding.copy_(torch.tensor([[0.0], [3.0]]).expand(2, 32))
        space.type_embedding[1, :16] = -3.0
    assert torch.equal(space.encode_image(images).shared, first)
    moved = space.encode_text(batch["tokens"]).shared
    assert not torch.allclose(moved, plain.space.encode_text(batch["tokens"]).shared, atol=0.1)


def test_shared_layers_start_from_the_text_layers_that_follow() -> None:
    wide = {"image.width": 96, "text.width": 96, "options.shared_start": "text"}
    space = build(tiny("none", {**wide, "options.shared_layers": 2})).space
    state = shipped_state("text", "encoder.transformer.blocks.")
    for place, number in enumerate((2, 3)):  # the towers have layers 0 and 1
        for name, value in space.shared.blocks[place].state_dict().items():
            assert torch.equal(value, state[f"{number}.{name}"])


def test_frozen_embeddings_are_what_precedes_the_blocks() -> None:
    method = build(tiny("none", {"options.freeze_embeddings": True}))
    frozen = {n.split(".", 1)[1] for n, p in method.named_parameters() if not p.requires_grad}
    assert frozen == {
        "image_encoder.cls",
        "image_encoder.patch_projection.weight",
        "image_encoder.patch_projection.bias",
        "image_encoder.positions.table",
        "text_encoder.token_embedding.weight",
        "text_encoder.positions.table",
    }


def test_scales_are_one_a_contrast_fixed_or_learnable_and_clamped() -> None:
    fixed = build(tiny("vlmo", {"options.scale": 1.0, "options.scale_learnable": False}))
    assert [float(s.value()) for s in fixed.scales] == [1.0, 1.0]
    assert not any(p.requires_grad for p in fixed.scales.parameters())
    learnable = build(tiny("vlmo"))
    with torch.no_grad():
        learnable.scales[0].log_scale.fill_(9.0)
        learnable.scales[1].log_scale.fill_(-9.0)
    learnable.after_step()
    assert [round(s.value().item(), 3) for s in learnable.scales] == [100.0, 1.0]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"options.layout": "coca"}, "options.layout='coca' is unknown; valid: none, single"),
        ({"options.shared_input": "mean"}, "'mean' must be 'sequence' or 'cls'"),
        ({"options.layout": "clip"}, "shared_layers=1 does not go with options.layout='clip'"),
        ({"options.shared_layers": 0}, "shared_layers=0 does not go with options.layout='none'"),
        ({"text.width": 64}, "image.width=32, text.width=64"),
        ({"options.scale": 0.5}, "must lie in"),
        ({"options.shared_start": "text"}, "does not fit a shared block of width 32"),
        ({"options.shared_start": "bert"}, "no shipped teacher 'bert'"),
        (
            {"options.shared_start": "text", "options.shared_layers": 5, "image.width": 96,
             "text.width": 96},
            "'text' has no layer 6",
        ),
    ],
)  # fmt: skip
def test_bad_settings_are_named(overrides: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build(tiny("none", overrides))


def test_full_size_has_the_recomputed_sizes() -> None:
    count = lambda module: sum(p.numel() for p in module.parameters())  # noqa: E731
    shape = {"text.start": "", "data.vocab_size": 30522}
    sizes = {}
    with torch.device("meta"):
        for layout in LAYOUTS:
            options = {"options.layout": layout, "options.shared_layers": LAYERS[layout]}
            config = resolve("contrast", "full", {**shape, **options})
            sizes[layout] = count(SharedSpaceMethod(config, None).space)
    layer, projection = 12 * 768**2 + 13 * 768, 768**2
    assert round(layer / 1e6, 2) == 7.09
    towers = sizes["none"] - layer
    assert round(towers / 1e6, 1) == 43.1 + 66.4
    extra = {"single": layer + projection, "clip": 2 * projection}
    extra |= {"flava": layer + 4 * projection, "vlmo": layer + 4 * projection}
    assert {k: v - towers for k, v in sizes.items() if k != "none"} == extra
