"""The EVL decoder against loops in float64, its neutral start, and the backbone that never changes."""

import math

import pytest
import torch
import torch.nn.functional as F

from mmkd_lite.config import TowerConfig
from mmkd_lite.models import ImageEncoder, seeded
from mmkd_lite.models.clip import MEAN, STD, OwnTowers, PublishedTowers, clip_model
from mmkd_lite.models.evl import (
    CrossAttentionBlock,
    EVLDecoder,
    FrameBackbone,
    FrameFeatures,
    TemporalMixing,
    decoder_for,
    looks,
)
from mmkd_lite.models.text import TextEncoder
from mmkd_lite.teachers import Teacher, load_teacher
from tests.encoder_support import compare_gradients, perturb

TOWER = TowerConfig(width=16, layers=3, heads=2, patch=8)
T, G = 4, 2  # frames, patches a side of 16 pixels


@pytest.fixture
def encoder():
    with seeded(0):
        return perturb(ImageEncoder(TOWER, 16)).double()


def videos(batch=3, frames=T, size=16, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(batch, frames, 3, size, size, generator=generator, dtype=torch.float64)


# ---------------------------------------------------------------- the backbone


def attention_by_loops(encoder, frames, level):
    """(T-1, P, P) twice: how frame t looks at t-1 and at t+1, from the block's own weights."""
    states = encoder(frames, return_hidden=True)[1]
    block = encoder.transformer.blocks[level]
    entering = states[level]
    normed = block.attention_norm(entering) if TOWER.norm == "pre" else entering
    width, heads = TOWER.width, TOWER.heads
    d = width // heads
    weight, bias = block.attention.query_key_value.weight, block.attention.query_key_value.bias
    q = normed @ weight[:width].T + bias[:width]
    k = normed @ weight[width : 2 * width].T + bias[width : 2 * width]
    patches = normed.shape[1] - 1
    found = torch.zeros(2, len(frames) - 1, patches, patches, dtype=torch.float64)
    for which, step in enumerate((-1, 1)):
        for row, t in enumerate(range(1, len(frames)) if step < 0 else range(len(frames) - 1)):
            for i in range(patches):
                for h in range(heads):
                    part = slice(h * d, (h + 1) * d)
                    scores = [
                        float(q[t, 1 + i, part] @ k[t + step, 1 + j, part]) / math.sqrt(d)
                        for j in range(patches)
                    ]
                    total = sum(math.exp(s) for s in scores)
                    for j in range(patches):
                        found[which, row, i, j] += math.exp(scores[j]) / total / heads
    return found


def test_features_are_the_encoders_own_states_and_its_attention_between_frames(encoder):
    shown = videos()
    found = FrameBackbone(encoder, levels=2).features(shown)
    assert found.hidden.shape == (2, 3, T, 1 + G * G, 16) and len(found) == 3
    with torch.no_grad():
        states = encoder(shown.flatten(0, 1), return_hidden=True)[1]
        for level, own in enumerate((2, 3)):
            assert torch.equal(found.hidden[level].flatten(0, 1), states[own])
        for video in range(2):
            loops = attention_by_loops(encoder, shown[video], 1)
            torch.testing.assert_close(found.previous[0, video], loops[0], rtol=0, atol=1e-12)
            torch.testing.assert_close(found.following[0, video], loops[1], rtol=0, atol=1e-12)
    rows = found.previous.sum(dim=-1)
    torch.testing.assert_close(rows, torch.ones_like(rows))


def test_a_post_norm_encoder_asks_with_its_block_input():
    tower = TowerConfig(width=16, layers=2, heads=2, patch=8, norm="post")
    with seeded(1):
        model = perturb(ImageEncoder(tower, 16)).double()
    shown = videos(1)
    found = FrameBackbone(model).features(shown)
    entering = model.embed(shown[0])
    q, k, _ = model.transformer.blocks[0].attention.split_heads(entering)
    expected = looks(q[1:, :, 1:], k[:-1, :, 1:])
    torch.testing.assert_close(found.previous[0, 0], expected.detach())


def test_clip_vision_models_serve_as_backbone():
    tower = TowerConfig(width=16, layers=3, heads=2, patch=8)
    with seeded(2):
        clip = clip_model(tower, tower, 8, image_size=16, vocabulary=50, length=8).double().eval()
    perturb(clip)
    towers = PublishedTowers(clip).double()
    shown = videos(2)
    found = FrameBackbone(Teacher("clip", towers), levels=2).features(shown)
    vision = clip.vision_model
    assert torch.equal(found.hidden, FrameBackbone(vision, 2).features(shown).hidden)
    mean, std = (torch.tensor(v, dtype=torch.float64).view(3, 1, 1) for v in (MEAN, STD))
    pixels = (shown.flatten(0, 1) - mean) / std
    with torch.no_grad():
        states = vision(pixels, output_hidden_states=True).hidden_states
        torch.testing.assert_close(found.hidden[1].flatten(0, 1), states[3])
        layer = vision.encoder.layers[1]
        normed = layer.layer_norm1(states[1])[:, 1:]
        q, k = layer.self_attn.q_proj(normed), layer.self_attn.k_proj(normed)
        first, second = (
            (q[1, :, part] @ k[0, :, part].T / math.sqrt(8)).softmax(dim=-1)
            for part in (slice(0, 8), slice(8, 16))
        )
        expected = (first + second) / 2
    torch.testing.assert_close(found.previous[0, 0, 0], expected)


def test_models_with_one_image_tower_are_opened_and_others_named(encoder):
    with seeded(0):
        text = TextEncoder(TOWER, 50, 8)
    assert FrameBackbone(OwnTowers(encoder, text, 8)).encoder is encoder
    for teacher in ("clip", "vit", "bottleneck"):
        backbone = FrameBackbone(load_teacher(teacher))
        assert (backbone.width, backbone.grid, backbone.image_size) == (96, 6, 48)
        assert backbone.levels == (3 if teacher == "clip" else 4)
    with pytest.raises(ValueError, match=r"TimmClassifier.* 0 image Transformers"):
        FrameBackbone(load_teacher("random-cnn").model)
    both = torch.nn.ModuleList([encoder, ImageEncoder(TOWER, 16)])
    with pytest.raises(ValueError, match=r"2 image Transformers \(0, 1\)"):
        FrameBackbone(both)
    with pytest.raises(ValueError, match="levels=0"):
        FrameBackbone(encoder, 0)


@pytest.mark.parametrize(
    "shape", [(2, 4, 3, 16, 24), (2, 4, 1, 16, 16), (4, 3, 16, 16), (2, 0, 3, 16, 16)]
)
def test_videos_of_another_shape_are_refused_with_theirs(encoder, shape):
    with pytest.raises(ValueError, match=r"must be \(B, T, 3, 16, 16\)") as error:
        FrameBackbone(encoder).features(torch.zeros(shape))
    assert str(shape) in str(error.value)


def test_bytes_and_floats_mean_the_same_pictures(encoder):
    pixels = (255 * videos(1)).to(torch.uint8)
    backbone = FrameBackbone(encoder.float())
    assert torch.equal(
        backbone.features(pixels).hidden, backbone.features(pixels.float() / 255).hidden
    )


def test_the_backbone_never_changes_and_is_in_eval_mode_while_it_reads():
    with seeded(0):
        model = ImageEncoder(TowerConfig(width=16, layers=2, heads=2, patch=8, dropout=0.5), 16)
    model.train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    backbone = FrameBackbone(model)
    shown = videos(6).float()
    features = backbone.features(shown)
    assert model.training and all(part.training for part in model.modules())
    assert torch.equal(features.hidden, backbone.features(shown).hidden)  # dropout was off
    assert not features.hidden.requires_grad
    decoder = decoder_for(backbone, T)
    held = {id(p) for p in decoder.parameters()}
    assert not held & {id(p) for p in model.parameters()}
    optimizer = torch.optim.AdamW(decoder.parameters(), lr=0.1)
    for _ in range(3):
        F.cross_entropy(decoder(features), torch.arange(6) % 2).backward()
        optimizer.step()
    assert all(p.grad is None for p in model.parameters())
    after = model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(value, after[name]) for name, value in before.items())


# ---------------------------------------------------------------- temporal parts


def mixing_by_loops(hidden, previous, following, part):
    """What `TemporalMixing` adds, one number of one patch of one frame at a time."""
    batch, frames, tokens, width = hidden.shape
    rows = []
    for b in range(batch):
        for t in range(frames):
            for n in range(tokens):
                value = hidden[b, t, n] + part.positions[t]
                for s in (-1, 0, 1):
                    if 0 <= t + s < frames:
                        value = value + part.kernel[1 + s] * hidden[b, t + s, n]
                for j in range(tokens - 1 if n else 0):
                    down = (n - 1) // G - j // G + G - 1
                    right = (n - 1) % G - j % G + G - 1
                    place = down * (2 * G - 1) + right
                    if t > 0:
                        value = value + previous[b, t - 1, n - 1, j] * part.previous_table[place]
                    if t < frames - 1:
                        value = value + following[b, t, n - 1, j] * part.following_table[place]
                rows.append(value)
    return torch.stack(rows).view(batch, frames, tokens, width)


def test_temporal_mixing_equals_loops_with_gradient(encoder):
    features = FrameBackbone(encoder, 1).features(videos(2))
    torch.manual_seed(0)
    part = perturb(TemporalMixing(16, T, G)).double()
    twin = TemporalMixing(16, T, G).double()
    twin.load_state_dict(part.state_dict())
    target = torch.randn(2, T, 1 + G * G, 16, dtype=torch.float64)
    inputs = [features.hidden[0], features.previous[0], features.following[0]]
    own = [x.clone().requires_grad_() for x in inputs]
    other = [x.clone().requires_grad_() for x in inputs]
    fast, slow = part(*own), mixing_by_loops(*other, twin)
    torch.testing.assert_close(fast, slow, rtol=0, atol=1e-12)
    (fast * target).sum().backward()
    (slow * target).sum().backward()
    pairs = list(zip([*own, *part.parameters()], [*other, *twin.parameters()], strict=True))
    assert len(pairs) == 7
    compare_gradients(pairs, 1e-12)


def test_the_depthwise_convolution_is_torchs():
    torch.manual_seed(0)
    part = TemporalMixing(16, T, G)
    torch.nn.init.normal_(part.kernel)
    hidden = torch.randn(2, T, 5, 16)
    none = torch.zeros(2, T - 1, 4, 4)
    lines = hidden.permute(0, 2, 3, 1).reshape(-1, 16, T)
    expected = F.conv1d(lines, part.kernel.T[:, None], padding=1, groups=16)
    expected = expected.view(2, 5, 16, T).permute(0, 3, 1, 2)
    torch.testing.assert_close(part(hidden, none, none) - hidden, expected, rtol=1e-5, atol=1e-6)


def test_one_query_needs_no_keys():
    torch.manual_seed(0)
    block = perturb(CrossAttentionBlock(16, 4, 0.0)).double()
    plain = torch.nn.MultiheadAttention(16, 4, batch_first=True).double()
    with torch.no_grad():
        plain.in_proj_weight.copy_(
            torch.cat([block.query.weight, block.key.weight, block.value.weight])
        )
        noise = torch.randn(16, dtype=torch.float64)  # a bias of the keys changes nothing
        plain.in_proj_bias.copy_(torch.cat([block.query.bias, noise, block.value.bias]))
        plain.out_proj.load_state_dict(block.output.state_dict())
    state = torch.randn(3, 16, dtype=torch.float64, requires_grad=True)
    source = torch.randn(3, 7, 16, dtype=torch.float64, requires_grad=True)
    tokens = block.source_norm(source)
    attended = plain(block.query_norm(state)[:, None], tokens, tokens)[0][:, 0]
    expected = state + attended
    expected = expected + block.mlp(block.mlp_norm(expected))
    found = block(state, source)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    weight = torch.randn(3, 16, dtype=torch.float64)
    own = torch.autograd.grad((found * weight).sum(), [state, source, block.query.weight])
    other = torch.autograd.grad((expected * weight).sum(), [state, source, plain.in_proj_weight])
    for a, b in zip(own[:2], other[:2], strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12)


# ---------------------------------------------------------------- the decoder


def test_a_fresh_decoder_equals_one_without_temporal_parts(encoder):
    backbone = FrameBackbone(encoder)
    features = backbone.features(videos(5))
    with seeded(3):
        temporal = decoder_for(backbone, T).double().eval()
    with seeded(3):
        plain = decoder_for(backbone, T, temporal=False).double().eval()
    assert len(temporal.mixing) == 3 and not plain.mixing
    assert torch.equal(temporal(features), plain(features))
    assert temporal(features).std() > 0.01
    for part in temporal.mixing:
        assert all(not p.any() for p in part.parameters())


def test_order_of_frames_counts_only_once_the_temporal_parts_have_moved(encoder):
    backbone = FrameBackbone(encoder)
    shown = videos(5)
    order = [2, 0, 3, 1]
    straight, shuffled = backbone.features(shown), backbone.features(shown[:, order])
    with seeded(3):
        decoder = decoder_for(backbone, T).double().eval()
    torch.testing.assert_close(decoder(straight), decoder(shuffled), rtol=0, atol=1e-12)
    for name in ("kernel", "positions", "previous_table", "following_table"):
        with seeded(3):
            moved = decoder_for(backbone, T).double().eval()
        torch.manual_seed(0)
        torch.nn.init.normal_(getattr(moved.mixing[0], name))
        change = (moved(straight) - moved(shuffled)).abs().max()
        assert change > 1e-3, f"{name} ignores the order of the frames"


def test_every_temporal_part_gets_a_gradient_from_the_start(encoder):
    backbone = FrameBackbone(encoder)
    decoder = decoder_for(backbone, T, dropout=0.0).double()
    loss = F.cross_entropy(decoder(backbone.features(videos(4))), torch.arange(4) % 2)
    loss.backward()
    for name, parameter in decoder.named_parameters():
        assert parameter.grad is not None and parameter.grad.any(), name


def test_a_single_frame_is_a_video_too(encoder):
    backbone = FrameBackbone(encoder)
    features = backbone.features(videos(2, frames=1))
    assert features.previous.shape[2] == 0
    assert decoder_for(backbone, 1).double()(features).shape == (2, 2)


def test_features_can_be_cut_joined_and_moved(encoder):
    backbone = FrameBackbone(encoder)
    whole = backbone.features(videos(5))
    parts = [whole.take(slice(0, 2)), whole.take(torch.tensor([2, 3, 4]))]
    joined = FrameFeatures.join(parts)
    for name in ("hidden", "previous", "following"):
        assert torch.equal(getattr(joined, name), getattr(whole, name))
    assert whole.to("cpu", torch.float16).previous.dtype == torch.float16


def test_what_does_not_fit_is_named(encoder):
    backbone = FrameBackbone(encoder)
    decoder = decoder_for(backbone, T).double()
    with pytest.raises(ValueError, match=r"\(3, 5, 5, 16\).*\(3, 4, 5, 16\)"):
        decoder(backbone.features(videos(2, frames=5)))
    with pytest.raises(ValueError, match="classes=1"):
        EVLDecoder(16, 2, T, G, 1, classes=1)
    with pytest.raises(ValueError, match=r"dropout=1\.0"):
        EVLDecoder(16, 2, T, G, 1, dropout=1.0)
    with pytest.raises(ValueError, match="heads=3"):
        EVLDecoder(16, 3, T, G, 1)
