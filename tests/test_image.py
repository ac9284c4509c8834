"""The image encoder: patches against loops, the whole of it against timm's ViT-B/16."""

import pytest
import timm
import torch
from timm.models.vision_transformer import VisionTransformer

from mmkd_lite.config import TowerConfig
from mmkd_lite.models import ImageEncoder, load_timm_vit, patchify, seeded
from tests.encoder_support import compare_gradients, parameter_count, perturb, relative_error

BASE = TowerConfig(width=768, layers=12, heads=12, patch=16)
SMALL = TowerConfig(width=32, layers=3, heads=4, patch=8)
NO_NORMALISATION = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}


def build(config: TowerConfig = SMALL, image_size: int = 32, **options) -> ImageEncoder:
    with seeded(0):
        encoder = ImageEncoder(config, image_size, **options)
        return perturb(encoder).eval()


def pictures(count: int = 2, size: int = 32, seed: int = 0) -> torch.Tensor:
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(seed))


def test_patchify_is_the_loop():
    images, patch = pictures(2, 12), 4
    rows = []
    for top in range(0, 12, patch):
        for left in range(0, 12, patch):
            square = images[:, :, top : top + patch, left : left + patch]
            numbers = [square[:, c, y, x] for c in range(3) for y in range(4) for x in range(4)]
            rows.append(torch.stack(numbers, dim=1))
    torch.testing.assert_close(patchify(images, patch), torch.stack(rows, dim=1), rtol=0, atol=0)


def test_vit_base_has_196_patches_of_768_numbers():
    assert patchify(torch.zeros(1, 3, 224, 224), 16).shape == (1, 196, 768)


def test_image_size_must_be_divisible_by_the_patch():
    with pytest.raises(ValueError, match=r"30.*patch size 8"):
        ImageEncoder(SMALL, 30)
    with pytest.raises(ValueError, match=r"32 x 30.*patch size 8"):
        patchify(torch.zeros(1, 3, 32, 30), 8)


def test_wrong_pictures_are_refused():
    encoder = build()
    with pytest.raises(ValueError, match=r"\(1, 3, 40, 40\)"):
        encoder(torch.zeros(1, 3, 40, 40))
    with pytest.raises(ValueError, match="divide by 255"):
        encoder(torch.zeros(1, 3, 32, 32, dtype=torch.uint8))
    with pytest.raises(ValueError, match="3 numbers"):
        ImageEncoder(SMALL, 32, mean=(0.5,))


def test_normalisation_happens_inside():
    mean, std = (0.1, 0.2, 0.3), (0.4, 0.5, 0.6)
    inside = build(mean=mean, std=std)
    outside = build(**NO_NORMALISATION)
    images = pictures()
    column = [torch.tensor(values).view(3, 1, 1) for values in (mean, std)]
    torch.testing.assert_close(inside(images), outside((images - column[0]) / column[1]))


def test_input_of_the_transformer_is_equation_11():
    encoder = build(**NO_NORMALISATION)
    images = pictures()
    patches = encoder.patch_projection(patchify(images, 8))
    cls = encoder.cls.expand(2, 1, 32)
    expected = torch.cat([cls, patches], dim=1) + encoder.positions.table
    states = encoder(images, return_hidden=True)[1]
    torch.testing.assert_close(states[0], expected)
    assert len(states) == 4


def test_hidden_states_end_with_the_output():
    encoder = build()
    output, states = encoder(pictures(), return_hidden=True)
    torch.testing.assert_close(output, encoder(pictures()))
    torch.testing.assert_close(states[-1], output)


def shuffled_patches(images: torch.Tensor, patch: int) -> torch.Tensor:
    side = images.shape[-1] // patch
    order = torch.randperm(side * side, generator=torch.Generator().manual_seed(3))
    squares = images.unfold(2, patch, patch).unfold(3, patch, patch).flatten(2, 3)[:, :, order]
    grid = squares.unflatten(2, (side, side)).permute(0, 1, 2, 4, 3, 5)
    return grid.reshape(images.shape)


def test_without_positions_cls_does_not_see_the_order_of_patches():
    encoder = build()
    images, shuffled = pictures(), shuffled_patches(pictures(), 8)
    with_positions = (encoder(images) - encoder(shuffled))[:, 0].abs().max()
    with torch.no_grad():
        encoder.positions.table.zero_()
    without = (encoder(images) - encoder(shuffled))[:, 0].abs().max()
    assert without < 1e-5 < 1e-2 < with_positions


def test_zero_position_of_cls_is_a_learned_one_folded_into_cls():
    full = build()
    zero = build(TowerConfig(width=32, layers=3, heads=4, patch=8, cls_position=False))
    state = full.state_dict()
    state["cls"] = state["cls"] + state["positions.table"][0]
    state["positions.table"] = state["positions.table"][1:]
    zero.load_state_dict(state)
    torch.testing.assert_close(zero(pictures()), full(pictures()))


def test_fixed_positions_are_not_trained():
    encoder = build(TowerConfig(width=32, layers=1, heads=4, patch=8, positions="fixed"))
    assert "positions.table" not in dict(encoder.named_parameters())
    assert encoder(pictures()).shape == (2, 17, 32)


def test_parameter_counts_of_the_source():
    with torch.device("meta"):
        base = ImageEncoder(BASE, 224)
        student = ImageEncoder(
            TowerConfig(768, 6, 12, patch=16, positions="fixed", cls_position=False),
            224,
            final_norm=False,
        )
    assert parameter_count(base) == 85_798_656  # timm's vit_base_patch16_224 without its head
    assert parameter_count(student) == 43_118_592  # "43.1 M"


def test_equal_seeds_give_equal_weights_and_leave_the_global_state_alone():
    torch.random.manual_seed(5)
    before = torch.random.get_rng_state()
    states = [build().state_dict() for _ in range(2)]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert torch.equal(before, torch.random.get_rng_state())


def test_base_model_equals_timm_in_value_and_gradient():
    with seeded(1):
        theirs = perturb(timm.create_model("vit_base_patch16_224", pretrained=False)).eval()
    with seeded(2):
        ours = ImageEncoder(BASE, 224, **NO_NORMALISATION).eval()
    generator = torch.Generator().manual_seed(3)
    images = torch.randn(2, 3, 224, 224, generator=generator)
    direction = torch.randn(2, 197, 768, generator=generator)
    expected = theirs.forward_features(images)
    with torch.no_grad():
        assert relative_error(ours(images), expected) > 0.1, "equal before copying: a void test"
    load_timm_vit(ours, theirs.state_dict())
    output = ours(images)
    assert relative_error(output, expected) < 1e-5
    torch.testing.assert_close(output, expected, rtol=1e-5, atol=1e-5)
    (output * direction).mean().backward()
    (expected * direction).mean().backward()
    pairs = [
        (ours.cls, theirs.cls_token),
        (ours.positions.table, theirs.pos_embed),
        (ours.patch_projection.weight, theirs.patch_embed.proj.weight),
        (ours.transformer.final_norm.bias, theirs.norm.bias),
    ]
    for own, other in zip(ours.transformer.blocks, theirs.blocks, strict=True):
        pairs += [
            (own.attention_norm.weight, other.norm1.weight),
            (own.attention.query_key_value.weight, other.attn.qkv.weight),
            (own.attention.query_key_value.bias, other.attn.qkv.bias),
            (own.attention.output.weight, other.attn.proj.weight),
            (own.feed_forward_norm.bias, other.norm2.bias),
            (own.feed_forward.expand.weight, other.mlp.fc1.weight),
            (own.feed_forward.contract.weight, other.mlp.fc2.weight),
        ]
    compare_gradients(pairs, tolerance=1e-5)


def small_timm() -> VisionTransformer:
    with seeded(4):
        model = VisionTransformer(
            img_size=32, patch_size=8, embed_dim=32, depth=3, num_heads=4, num_classes=0
        )
        return perturb(model).eval()


def test_first_blocks_and_folded_cls_position_come_from_timm():
    theirs = small_timm()
    config = TowerConfig(width=32, layers=2, heads=4, patch=8, cls_position=False)
    ours = build(config, final_norm=False, **NO_NORMALISATION)
    load_timm_vit(ours, theirs.state_dict())
    expected = theirs.get_intermediate_layers(pictures(), n=[1], return_prefix_tokens=True)[0]
    output = ours(pictures())
    torch.testing.assert_close(output[:, 1:], expected[0], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(output[:, :1], expected[1], rtol=1e-5, atol=1e-5)


def test_weights_of_another_model_are_refused_by_name():
    state = small_timm().state_dict()
    with pytest.raises(ValueError, match="positions='learned'"):
        load_timm_vit(build(TowerConfig(32, 3, 4, patch=8, positions="fixed")), state)
    with pytest.raises(ValueError, match=r"blocks\.3\.norm1"):
        load_timm_vit(build(TowerConfig(32, 4, 4, patch=8)), state)
    with pytest.raises(ValueError, match=r"positions\.table.*\(17, 32\)"):
        load_timm_vit(build(TowerConfig(32, 3, 4, patch=8), image_size=48), state)
