"""FLOPs against counts made by hand, by hooks and on paper; Table 4.5; what cannot be counted is refused."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmkd_lite.config import TowerConfig
from mmkd_lite.evaluate import (
    Side,
    cost_table,
    count_flops,
    count_parameters,
    flops_by_operation,
)
from mmkd_lite.evaluate.cost import OPAQUE
from mmkd_lite.models import clip
from mmkd_lite.models.transformer import Transformer, written_out_attention
from mmkd_lite.results import RESULTS_FOLDER
from mmkd_lite.storage import read_json

aten = torch.ops.aten
PRINTED = read_json(RESULTS_FOLDER / "published_cost.json")
SIZES = {  # width, layers, tokens, and what the embeddings cost: seed 003, Table B.1
    "teacher": {"image": (768, 12, 50), "text": (512, 12, 77), "patch": 32, "space": 512},
    "student": {"image": (384, 12, 197), "text": (512, 6, 77), "patch": 16, "space": 256},
}


class Call(nn.Module):
    """A function as a module."""

    def __init__(self, function) -> None:
        super().__init__()
        self.function = function

    def forward(self, *tensors: Tensor, **named: Tensor) -> Tensor:
        return self.function(*tensors, **named)


def flops_of(function, *tensors: Tensor) -> float:
    return count_flops(Call(lambda **named: function(*named.values())), dict(named(tensors)))


def named(tensors):
    return ((f"x{i}", tensor) for i, tensor in enumerate(tensors))


# ---------------------------------------------------------------- single layers, by hand


@pytest.mark.parametrize(
    ("layer", "shape", "expected"),
    [
        (nn.Linear(3, 2), (4, 3), 2 * 4 * 3 * 2),
        (nn.Linear(3, 2, bias=False), (5, 4, 3), 2 * 20 * 3 * 2),
        (nn.Conv2d(3, 5, 3, stride=2, padding=1), (2, 3, 8, 8), 2 * 2 * (4 * 4) * 5 * (3 * 9)),
        (nn.Conv2d(4, 8, 3, groups=2), (1, 4, 6, 6), 2 * (4 * 4) * 8 * (2 * 9)),
        (nn.Conv1d(3, 5, 2), (1, 3, 4), 2 * 3 * 5 * (3 * 2)),
        (nn.ConvTranspose2d(4, 8, 3), (1, 4, 6, 6), 2 * 36 * 4 * 8 * 9),
        (nn.LSTM(8, 16, batch_first=True), (2, 5, 8), 2 * 2 * 5 * 4 * 16 * (8 + 16)),
        (nn.GRU(8, 16, batch_first=True), (2, 5, 8), 2 * 2 * 5 * 3 * 16 * (8 + 16)),
        (nn.LayerNorm(7), (3, 7), 0),
        (nn.GELU(), (3, 7), 0),
        (nn.Softmax(dim=-1), (3, 7), 0),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else None,
)
def test_one_layer_costs_what_a_hand_count_says(layer, shape, expected) -> None:
    key = "hx" if isinstance(layer, nn.RNNBase) else "input"
    inputs = {"input" if key == "hx" else key: torch.randn(shape)}
    assert count_flops(layer, inputs) == expected


@pytest.mark.parametrize(
    ("function", "shapes", "expected"),
    [
        (torch.mv, [(3, 4), (4,)], 24),
        (torch.dot, [(5,), (5,)], 10),
        (torch.addmv, [(3,), (3, 4), (4,)], 24),
        (torch.addbmm, [(3, 5), (2, 3, 4), (2, 4, 5)], 2 * 2 * 3 * 4 * 5),
        (torch.baddbmm, [(2, 3, 5), (2, 3, 4), (2, 4, 5)], 2 * 2 * 3 * 4 * 5),
        (lambda a, b: a @ b, [(3, 4), (4,)], 24),
        (lambda a, b: torch.einsum("ij,kj->ik", a, b), [(3, 4), (5, 4)], 2 * 3 * 4 * 5),
        (lambda a, b: a + b, [(3, 4), (3, 4)], 0),
    ],
)
def test_products_of_vectors_and_batches(function, shapes, expected) -> None:
    assert flops_of(function, *map(torch.randn, shapes)) == expected


@pytest.mark.parametrize("wide", [16, 24])
@pytest.mark.parametrize("kind", ["fused", "masked", "causal", "written out"])
def test_attention_costs_the_same_by_any_kernel(kind, wide) -> None:
    query, key, value = (
        torch.randn(2, 4, 6, 16),
        torch.randn(2, 4, 9, 16),
        torch.randn(2, 4, 9, wide),
    )
    mask = torch.ones(6, 9, dtype=torch.bool)
    functions = {
        "fused": F.scaled_dot_product_attention,
        "masked": lambda q, k, v: F.scaled_dot_product_attention(q, k, v, attn_mask=mask),
        "causal": lambda q, k, v: F.scaled_dot_product_attention(q, k, v, is_causal=True),
        "written out": lambda q, k, v: written_out_attention(q, k, v)[0],
    }
    assert flops_of(functions[kind], query, key, value) == 2 * 2 * 4 * 6 * 9 * (16 + wide)


def block_flops(batch: int, tokens: int, width: int, ratio: float = 4) -> float:
    """On paper: four projections, two layers of the MLP, and the two products of attention."""
    return 2 * batch * (tokens * (4 + 2 * ratio) * width**2 + 2 * tokens**2 * width)


@pytest.mark.parametrize("training", [True, False])
def test_fused_layers_of_torch_are_seen(training) -> None:
    sequence = torch.randn(2, 7, 32)
    attention = nn.MultiheadAttention(32, 4, batch_first=True).train(training)
    inputs = {"query": sequence, "key": sequence, "value": sequence}
    expected = 2 * 2 * (7 * 4 * 32**2 + 2 * 49 * 32)
    assert count_flops(attention, inputs) == expected
    assert count_flops(attention, {**inputs, "need_weights": False}) == expected
    layer = nn.TransformerEncoderLayer(32, 4, 128, batch_first=True).train(training)
    assert count_flops(layer, {"src": sequence}) == block_flops(2, 7, 32)
    assert layer.training is attention.training is training
    assert torch.backends.mha.get_fastpath_enabled()


def test_our_transformer_with_and_without_a_mask() -> None:
    model = Transformer(TowerConfig(width=32, layers=3, heads=4, mlp_ratio=2.0))
    sequence, mask = torch.randn(2, 9, 32), torch.ones(2, 9, dtype=torch.bool)
    for inputs in ({"sequence": sequence}, {"sequence": sequence, "mask": mask}):
        assert count_flops(model, inputs) == 3 * block_flops(2, 9, 32, 2)


# ---------------------------------------------------------------- whole models


def small_clip():
    image = TowerConfig(width=64, layers=2, heads=4, patch=16)
    text = TowerConfig(width=32, layers=3, heads=2)
    return clip.clip_model(image, text, 24, image_size=64, vocabulary=100, length=12)


def clip_inputs(batch: int, size: int, length: int, device: str = "cpu") -> dict[str, Tensor]:
    return {
        "input_ids": torch.ones(batch, length, dtype=torch.int64, device=device),
        "pixel_values": torch.zeros(batch, 3, size, size, device=device),
    }


def flops_by_hooks(model: nn.Module, inputs: dict[str, Tensor]) -> float:
    """Linear and convolution layers counted from the shapes that pass through them; no attention products."""
    total = 0.0

    def see(layer: nn.Module, _: object, output: Tensor) -> None:
        nonlocal total
        total += 2 * output.numel() * layer.weight[0].numel()

    layers = [m for m in model.modules() if isinstance(m, nn.Linear | nn.Conv2d)]
    handles = [layer.register_forward_hook(see) for layer in layers]
    with torch.no_grad():
        model.eval()(**inputs)
    for handle in handles:
        handle.remove()
    return total


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_a_whole_clip_against_hooks_and_an_analytic_count(attention) -> None:
    model, inputs = small_clip(), clip_inputs(3, 64, 12)
    model.set_attn_implementation(attention)
    products = 2 * 3 * (2 * 2 * 17**2 * 64 + 3 * 2 * 12**2 * 32)
    logits = 2 * 3 * 3 * 24
    assert count_flops(model, inputs) == flops_by_hooks(model, inputs) + products + logits
    kinds = flops_by_operation(model, inputs)
    assert kinds["attention products"] == products
    assert kinds["convolution"] == 2 * 3 * 16 * 64 * 3 * 16**2
    assert sum(kinds.values()) == count_flops(model, inputs)


def analytic_parameters(which: str) -> int:
    size = SIZES[which]
    block = lambda d: 12 * d * d + 13 * d  # noqa: E731
    (d, layers, tokens), (e, depth, length) = size["image"], size["text"]
    image = layers * block(d) + 3 * size["patch"] ** 2 * d + d + tokens * d + 2 * 2 * d
    text = depth * block(e) + 49408 * e + length * e + 2 * e
    return image + text + size["space"] * (d + e) + 1


def analytic_flops(which: str, side: str) -> float:
    size = SIZES[which]
    width, layers, tokens = size[side]
    patches = 2 * (tokens - 1) * width * 3 * size["patch"] ** 2 if side == "image" else 0
    return patches + layers * block_flops(1, tokens, width) + 2 * width * size["space"]


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("which", ["teacher", "student"])
def test_table_4_5(which, attention) -> None:
    with torch.device("meta"):
        model = clip.build(which)
    model.set_attn_implementation(attention)
    printed = PRINTED["rows"][which]
    assert count_parameters(model) == analytic_parameters(which)
    assert round(count_parameters(model) / 1e6, 1) == printed["parameters"]["total"]
    sides = {side: analytic_flops(which, side) for side in ("image", "text")}
    counted = count_flops(model, clip_inputs(1, 224, 77, "meta"))
    assert counted == sum(sides.values()) + 2 * SIZES[which]["space"]
    assert round(counted / 1e9, 1) == printed["gflops"]["total"]
    for side, flops in sides.items():
        assert round(flops / 1e9, 1) == printed["gflops"][side]
    parts = {"image": model.vision_model, "text": model.text_model}
    off = {
        side: abs(count_parameters(part) / 1e6 - printed["parameters"][side])
        for side, part in parts.items()
    }
    misprinted = [side for side, gap in off.items() if gap > 0.1]  # 44.25 is printed as 44.2
    assert misprinted == (["text"] if which == "teacher" else [])  # E003-03


def test_table_by_module_adds_up() -> None:
    model, inputs = small_clip(), clip_inputs(2, 64, 12)
    rows = {row["module"]: row for row in cost_table(model, inputs, depth=3)}
    assert rows["total"]["flops"] == count_flops(model, inputs)
    assert rows["total"]["parameters"] == count_parameters(model)
    for key in ("flops", "parameters"):
        towers = sum(
            row[key] for name, row in rows.items() if name.count(".") == 0 and name != "total"
        )
        rest = {"flops": 2 * 2 * 2 * 24, "parameters": 1}[key]  # the map of cosines, the scale
        assert towers + rest == rows["total"][key]
    layers = rows["text_model.encoder.layers"]
    assert layers["flops"] == 3 * block_flops(2, 12, 32)  # a list is never called itself
    assert layers["parameters"] == 3 * (12 * 32**2 + 13 * 32)
    assert [row["module"] for row in cost_table(model, inputs, depth=0)] == ["total"]


def test_a_layer_used_twice_costs_twice_and_is_stored_once() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(self.layer(x))

    rows = cost_table(Twice(), {"x": torch.randn(3, 4)})
    assert [row["flops"] for row in rows] == [2 * 2 * 3 * 16] * 2
    assert rows[0]["parameters"] == 20


def test_one_side_of_a_two_tower_model() -> None:
    model = clip.PublishedTowers(small_clip())
    images, tokens = torch.zeros(2, 3, 64, 64), torch.ones(2, 12, dtype=torch.int64)
    sides = [
        count_flops(Side(model, "encode_image"), {"inputs": images}),
        count_flops(Side(model, "encode_text"), {"inputs": tokens}),
    ]
    assert sum(sides) + 2 * 2 * 2 * 24 == count_flops(model.clip, clip_inputs(2, 64, 12))
    with pytest.raises(ValueError, match="has no method 'encode_sound'"):
        Side(model, "encode_sound")


def test_counting_leaves_the_model_as_it_was() -> None:
    model = nn.Sequential(nn.BatchNorm1d(3), nn.Dropout(0.5), nn.Linear(3, 2)).train()
    model[1].eval()
    mean = model[0].running_mean.clone()
    count_flops(model, {"input": torch.randn(4, 3)})
    assert [part.training for part in model] == [True, False, True]
    torch.testing.assert_close(model[0].running_mean, mean)
    assert all(parameter.grad is None for parameter in model.parameters())


# ---------------------------------------------------------------- errors


def test_what_does_not_fit_is_said() -> None:
    layer = nn.Linear(3, 2)
    with pytest.raises(ValueError, match="a function is no torch module"):
        count_flops(lambda x: x, {"x": torch.zeros(1)})
    with pytest.raises(ValueError, match="a dict is no torch module"):
        count_parameters(dict(layer.state_dict()))
    with pytest.raises(ValueError, match="inputs is a Tensor; give a dict"):
        count_flops(layer, torch.zeros(1, 3))
    with pytest.raises(
        ValueError, match=r"Linear does not run on \[input \(1, 4\) float32 on cpu\]"
    ):
        count_flops(layer, {"input": torch.zeros(1, 4)})
    with pytest.raises(ValueError, match=r"does not run on \[x \(1, 3\)"):
        count_flops(layer, {"x": torch.zeros(1, 3)})


def test_kernels_that_hide_their_products_are_refused() -> None:
    inputs = {"input1": torch.zeros(1, 4), "input2": torch.zeros(1, 4)}
    with pytest.raises(ValueError, match="cannot be counted"):
        count_flops(nn.Bilinear(4, 4, 3), inputs)
    assert aten._trilinear in OPAQUE
