"""Attention and blocks against loops and against torch's own modules."""

import math

import pytest
import torch
from torch import nn

from mmkd_lite.config import TowerConfig
from mmkd_lite.models.initialise import initialise_weights, seeded
from mmkd_lite.models.transformer import (
    FeedForward,
    MultiHeadAttention,
    PostNormBlock,
    PreNormBlock,
    Transformer,
    check_mask,
    written_out_attention,
)

WIDTH, HEADS, HIDDEN = 24, 4, 96
MASK = torch.tensor([[True] * 5, [True, True, True, False, False]])


def perturbed(module: nn.Module, seed: int = 0) -> nn.Module:
    """Give every parameter, LayerNorm and bias too, a value that no other test shares."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    return module.eval()


def sequences(seed: int = 1) -> torch.Tensor:
    return torch.randn(2, 5, WIDTH, generator=torch.Generator().manual_seed(seed))


def loop_attention(query, key, value, mask):
    mixed = torch.zeros_like(query)
    for batch in range(len(query)):
        for i in range(query.shape[1]):
            allowed = [j for j in range(key.shape[1]) if mask[batch, j]]
            scores = [float(query[batch, i] @ key[batch, j]) for j in allowed]
            powers = [math.exp(score / math.sqrt(query.shape[-1])) for score in scores]
            for j, power in zip(allowed, powers, strict=True):
                mixed[batch, i] += power / sum(powers) * value[batch, j]
    return mixed


def test_written_out_attention_is_the_loop():
    generator = torch.Generator().manual_seed(0)
    query, key, value = torch.randn(3, 2, 5, 6, dtype=torch.float64, generator=generator)
    mixed, weights = written_out_attention(query, key, value, MASK[:, None, :])
    torch.testing.assert_close(mixed, loop_attention(query, key, value, MASK))
    torch.testing.assert_close(weights.sum(-1), torch.ones(2, 5, dtype=torch.float64))
    assert (weights[1, :, 3:] == 0).all()


def torch_attention(ours: MultiHeadAttention) -> nn.MultiheadAttention:
    theirs = nn.MultiheadAttention(WIDTH, HEADS, batch_first=True)
    theirs.load_state_dict(
        {
            "in_proj_weight": ours.query_key_value.weight,
            "in_proj_bias": ours.query_key_value.bias,
            "out_proj.weight": ours.output.weight,
            "out_proj.bias": ours.output.bias,
        }
    )
    return theirs


def test_attention_is_torchs_in_value_gradient_and_weights():
    ours = perturbed(MultiHeadAttention(WIDTH, HEADS))
    theirs = torch_attention(ours)
    a, b = sequences().requires_grad_(), sequences().requires_grad_()
    out = ours(a, MASK)
    expected, weights = theirs(b, b, b, key_padding_mask=~MASK, average_attn_weights=False)
    torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(ours.attention_weights(a, MASK), weights, rtol=1e-5, atol=1e-6)
    direction = sequences(seed=2)
    (out * direction).sum().backward()
    (expected * direction).sum().backward()
    torch.testing.assert_close(a.grad, b.grad, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(
        ours.query_key_value.weight.grad, theirs.in_proj_weight.grad, rtol=1e-5, atol=1e-5
    )


def torch_block(ours: nn.Module, norm_first: bool) -> nn.TransformerEncoderLayer:
    theirs = nn.TransformerEncoderLayer(
        WIDTH, HEADS, HIDDEN, 0.0, "gelu", 1e-6, batch_first=True, norm_first=norm_first
    )
    theirs.self_attn = torch_attention(ours.attention)
    for own, other in (
        (ours.attention_norm, theirs.norm1),
        (ours.feed_forward_norm, theirs.norm2),
        (ours.feed_forward.expand, theirs.linear1),
        (ours.feed_forward.contract, theirs.linear2),
    ):
        other.load_state_dict(own.state_dict())
    return theirs.train()  # its evaluation shortcut uses another kernel


@pytest.mark.parametrize(("kind", "norm_first"), [(PreNormBlock, True), (PostNormBlock, False)])
def test_block_is_torchs_in_value_and_gradient(kind, norm_first):
    ours = perturbed(kind(WIDTH, HEADS, HIDDEN))
    theirs = torch_block(ours, norm_first)
    a, b = sequences().requires_grad_(), sequences().requires_grad_()
    out, expected = ours(a, MASK), theirs(b, src_key_padding_mask=~MASK)
    torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-5)
    (out * sequences(2)).sum().backward()
    (expected * sequences(2)).sum().backward()
    torch.testing.assert_close(a.grad, b.grad, rtol=1e-5, atol=1e-5)


def test_the_two_orders_of_layer_norm_differ():
    pre = perturbed(PreNormBlock(WIDTH, HEADS, HIDDEN))
    post = PostNormBlock(WIDTH, HEADS, HIDDEN)
    post.load_state_dict(pre.state_dict())
    assert (pre(sequences()) - post(sequences())).abs().max() > 0.1


def test_pre_norm_block_is_equations_16_and_17():
    block = perturbed(PreNormBlock(WIDTH, HEADS, HIDDEN))
    x = sequences()
    first = block.attention(block.attention_norm(x), MASK) + x
    second = block.feed_forward(block.feed_forward_norm(first)) + first
    torch.testing.assert_close(block.attend(x, MASK), first)
    torch.testing.assert_close(block(x, MASK), second)


@pytest.mark.parametrize("kind", [PreNormBlock, PostNormBlock])
@pytest.mark.parametrize("width", [8, 768])
def test_block_has_12_d_squared_plus_13_d_parameters(kind, width):
    with torch.device("meta"):
        block = kind(width, 4, 4 * width)
    assert sum(p.numel() for p in block.parameters()) == 12 * width**2 + 13 * width


def test_hidden_states_are_numbered_as_in_the_source():
    config = TowerConfig(width=WIDTH, layers=3, heads=HEADS)
    stack = perturbed(Transformer(config))
    x = sequences()
    states = stack.hidden_states(x, MASK)
    assert len(states) == config.layers + 1
    assert states[0] is x
    torch.testing.assert_close(states[1], stack.blocks[0](x, MASK))
    torch.testing.assert_close(states[-1], stack(x, MASK))
    last = stack.blocks[2](states[2], MASK)
    torch.testing.assert_close(states[-1], stack.final_norm(last))
    assert (states[-1] - last).abs().max() > 0.01


@pytest.mark.parametrize(
    ("norm", "final_norm", "expected"), [("pre", True, 2), ("pre", False, 0), ("post", True, 0)]
)
def test_only_a_pre_norm_stack_ends_with_a_layer_norm(norm, final_norm, expected):
    stack = Transformer(TowerConfig(width=WIDTH, layers=1, heads=HEADS, norm=norm), final_norm)
    assert len(list(stack.final_norm.parameters())) == expected


def test_padding_does_not_reach_real_tokens():
    config = TowerConfig(width=WIDTH, layers=2, heads=HEADS)
    stack = perturbed(Transformer(config))
    x = sequences()
    other = x.clone()
    other[1, 3:] = 7.0
    torch.testing.assert_close(stack(x, MASK)[MASK], stack(other, MASK)[MASK])
    assert (stack(x)[1, :3] - stack(other)[1, :3]).abs().max() > 0.01, "the mask is what protects"


def test_dropout_acts_in_training_only():
    config = TowerConfig(width=WIDTH, layers=1, heads=HEADS, dropout=0.5)
    stack = Transformer(config)
    initialise_weights(stack)
    stack.eval()
    torch.testing.assert_close(stack(sequences()), stack(sequences()), rtol=0, atol=0)
    stack.train()
    with seeded(0):
        first, second = stack(sequences()), stack(sequences())
    assert (first - second).abs().max() > 1e-3


def test_feed_forward_uses_the_exact_gelu():
    network = perturbed(FeedForward(WIDTH, HIDDEN))
    x = sequences()
    inner = network.expand(x)
    gelu = inner * 0.5 * (1 + torch.erf(inner / math.sqrt(2)))
    torch.testing.assert_close(network(x), network.contract(gelu))


def test_bad_options_are_named():
    with pytest.raises(ValueError, match="heads=5 does not divide width=24"):
        MultiHeadAttention(WIDTH, 5)
    with pytest.raises(ValueError, match="'middle'"):
        Transformer(TowerConfig(norm="middle"))


def test_check_mask_names_the_row_that_is_all_padding():
    tokens = torch.tensor([[2, 5, 3], [0, 0, 0]])
    with pytest.raises(ValueError, match="row 1 is padding"):
        check_mask(tokens != 0, tokens)
    with pytest.raises(ValueError, match=r"\(2, 2\)"):
        check_mask(torch.ones(2, 2), tokens)
    numbers = torch.tensor([[1, 1, 0], [1, 0, 0]])
    assert check_mask(numbers, tokens).dtype == torch.bool
