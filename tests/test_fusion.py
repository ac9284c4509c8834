"""Shared MLP, shared Transformer, projection and contrast scale."""

import math

import pytest
import torch
from torch import nn

from mmkd_lite.config import TowerConfig
from mmkd_lite.models import (
    ContrastScale,
    ImageEncoder,
    PreNormBlock,
    Projection,
    SharedMLP,
    SharedTransformer,
    TextEncoder,
    seeded,
)
from tests.encoder_support import parameter_count, perturb

MASK = torch.tensor([[True] * 5, [True, True, True, False, False]])


def sequences(seed: int = 1) -> torch.Tensor:
    return torch.randn(2, 5, 16, generator=torch.Generator().manual_seed(seed))


def layer_norm(x: torch.Tensor, norm: nn.LayerNorm) -> torch.Tensor:
    centred = x - x.mean(-1, keepdim=True)
    variance = centred.square().mean(-1, keepdim=True)
    return centred / (variance + norm.eps).sqrt() * norm.weight + norm.bias


def test_shared_mlp_is_its_three_equations():
    with seeded(0):
        shared = perturb(SharedMLP(16, 40, 7))
    cls = sequences()[:, 0]
    first, second, third = shared(cls)
    weight = {name: p for name, p in shared.named_parameters()}
    expected = cls @ weight["expand.weight"].T + weight["expand.bias"]
    torch.testing.assert_close(first, expected)
    gelu = first * 0.5 * (1 + torch.erf(first / math.sqrt(2)))
    inner = layer_norm(gelu, shared.expand_norm)
    torch.testing.assert_close(
        second, inner @ weight["contract.weight"].T + weight["contract.bias"]
    )
    inner = layer_norm(second, shared.contract_norm)
    torch.testing.assert_close(third, inner @ weight["classify.weight"].T + weight["classify.bias"])
    assert [tuple(x.shape) for x in (first, second, third)] == [(2, 40), (2, 16), (2, 7)]


def test_transformer_shre_has_115_million_parameters():
    text = TowerConfig(768, 6, 12, norm="post", layer_norm_eps=1e-12)
    image = TowerConfig(768, 6, 12, patch=16, positions="fixed", cls_position=False)
    with torch.device("meta"):
        parts = [
            ImageEncoder(image, 224, final_norm=False),
            TextEncoder(text, 30_522, 512, token_types=2),
            SharedMLP(768, 3072, 1000),
        ]
    assert [round(parameter_count(part) / 1e6, 1) for part in parts] == [43.1, 66.4, 5.5]
    assert round(parameter_count(*parts) / 1e6, 1) == 115.0


def test_shared_transformer_is_one_pre_norm_block_read_at_cls():
    with seeded(0):
        shared = perturb(SharedTransformer(16, 4))
    block = shared.blocks[0]
    assert isinstance(block, PreNormBlock)
    output = shared(sequences(), MASK)
    torch.testing.assert_close(output.sequence, block(sequences(), MASK))
    torch.testing.assert_close(output.cls, output.sequence[:, 0])
    attended = block.attend(sequences(), MASK)
    inner = block.feed_forward.expand(layer_norm(attended, block.feed_forward_norm))
    torch.testing.assert_close(output.intermediate, inner[:, 0])
    assert output.intermediate.shape == (2, 64)
    assert (output.intermediate < 0).any(), "before the GELU, so negative values are common"


def test_shared_transformer_reads_the_whole_sequence_but_no_padding():
    with seeded(0):
        shared = perturb(SharedTransformer(16, 4, layers=2))
    changed = sequences()
    changed[1, 3:] = 5.0
    mask = MASK.long()  # 1 and 0 are as good as True and False
    torch.testing.assert_close(shared(sequences(), mask).cls, shared(changed, mask).cls)
    assert (shared(sequences()).cls[1] - shared(changed).cls[1]).abs().max() > 1e-3


def test_one_shared_layer_costs_7_09_million_parameters():
    with torch.device("meta"):
        shared = SharedTransformer(768, 12)
    assert parameter_count(shared) == 12 * 768**2 + 13 * 768 == 7_087_872


def test_shared_transformer_needs_a_layer():
    with pytest.raises(ValueError, match="got 0"):
        SharedTransformer(16, 4, layers=0)


def test_projection_is_linear_without_bias():
    projection = Projection(16, 6)
    x = sequences()[:, 0]
    assert (projection(torch.zeros(1, 16)) == 0).all()
    torch.testing.assert_close(projection(2 * x), 2 * projection(x))
    assert parameter_count(projection) == 96


def test_contrast_scale_starts_at_one_over_007_and_is_exponentiated_once():
    scale = ContrastScale()
    assert scale.value().item() == pytest.approx(1 / 0.07, rel=1e-6)
    assert scale.log_scale.item() == pytest.approx(math.log(1 / 0.07), rel=1e-6)
    scale.value().backward()
    assert float(scale.log_scale.grad) == pytest.approx(1 / 0.07, rel=1e-6)  # d exp(t) = exp(t)


@pytest.mark.parametrize(("start", "border"), [(9.0, 100.0), (-3.0, 1.0)])
def test_contrast_scale_is_clamped(start, border):
    scale = ContrastScale()
    with torch.no_grad():
        scale.log_scale.fill_(start)
    assert scale.value().item() == pytest.approx(border, rel=1e-6)
    scale.clamp_()
    assert scale.log_scale.item() == pytest.approx(math.log(border), rel=1e-6)
    assert scale.value().item() == pytest.approx(border, rel=1e-6)


@pytest.mark.parametrize("border", [1.0, 100.0])
def test_contrast_scale_can_leave_its_border_again(border):
    scale = ContrastScale(border)
    optimizer = torch.optim.SGD(scale.parameters(), lr=0.01)
    inward = -1.0 if border == 1.0 else 0.01
    (inward * scale.value()).backward()
    optimizer.step()
    scale.clamp_()
    assert 1.0 < scale.value().item() < 100.0


def test_contrast_scale_refuses_a_start_outside_its_range():
    with pytest.raises(ValueError, match=r"2\.659|0\.07"):
        ContrastScale(0.07)  # a temperature where a scale is due
