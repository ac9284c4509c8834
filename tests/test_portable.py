"""ONNX files give the values of the torch model; 8-bit files those of a product written out in NumPy."""

from __future__ import annotations

import math

import numpy as np
import onnx
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from mmkd_lite.config import TowerConfig
from mmkd_lite.evaluate import Side
from mmkd_lite.evaluate.portable import OnnxModel, export_onnx, largest_deviation, quantise_onnx
from mmkd_lite.models import ImageEncoder, TextEncoder, clip, seeded

TOWER = TowerConfig(width=32, layers=2, heads=4, patch=8)


def towers() -> clip.OwnTowers:
    with seeded(0):
        model = clip.OwnTowers(ImageEncoder(TOWER, 24), TextEncoder(TOWER, 60, 12), 16)
        with torch.no_grad():
            for parameter in model.parameters():  # biases and norms start at 0 and 1
                parameter += 0.1 * torch.randn_like(parameter)
    return model.train()


def pictures(count: int) -> torch.Tensor:
    return torch.rand(count, 3, 24, 24, generator=torch.Generator().manual_seed(count))


def captions(count: int, length: int) -> torch.Tensor:
    tokens = torch.randint(2, 60, (count, length), generator=torch.Generator().manual_seed(count))
    tokens[0, length // 2 :] = 0  # padding
    return tokens


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """The model, and its two sides as files."""
    folder, model = tmp_path_factory.mktemp("onnx"), towers()
    image, text = Side(model, "encode_image"), Side(model, "encode_text")
    return {
        "model": model,
        "image": export_onnx(image, pictures(2), folder / "image.onnx"),
        "text": export_onnx(text, captions(2, 12), folder / "text.onnx", free=(0, 1)),
    }


def test_files_are_valid_whole_and_leave_the_model_as_it_was(exported) -> None:
    for side in ("image", "text"):
        onnx.checker.check_model(exported[side].as_posix(), full_check=True)
        assert b".py" not in exported[side].read_bytes()  # no trace of folders
    assert sorted(path.name for path in exported["image"].parent.iterdir()) == [
        "image.onnx",
        "text.onnx",
    ]
    assert all(part.training for part in exported["model"].modules())


@torch.no_grad()
def test_parity_at_other_batches_and_lengths(exported) -> None:
    model, image = exported["model"].eval(), OnnxModel(exported["image"])
    for count in (1, 2, 5):
        assert largest_deviation(image(pictures(count)), model.encode_image(pictures(count))) < 1e-5
    text = OnnxModel(exported["text"])
    for count, length in ((1, 12), (3, 7), (5, 12)):
        tokens = captions(count, length)
        assert largest_deviation(text(tokens), model.encode_text(tokens)) < 1e-5
    model.train()


def test_8_bit_files_are_smaller_and_point_the_same_way(exported, tmp_path) -> None:
    small = quantise_onnx(exported["image"], tmp_path / "small.onnx")
    assert small.stat().st_size < 0.6 * exported["image"].stat().st_size
    before, after = OnnxModel(exported["image"])(pictures(6)), OnnxModel(small)(pictures(6))
    assert largest_deviation(before, after) > 1e-5  # it did something
    assert float(F.cosine_similarity(before, after).min()) > 0.98


def test_an_8_bit_layer_is_the_product_written_out(tmp_path) -> None:
    generator = torch.Generator().manual_seed(3)
    layer = nn.Linear(40, 7, bias=False)
    with torch.no_grad():
        layer.weight.copy_(
            torch.randn(7, 40, generator=generator) * torch.logspace(-2, 1, 7)[:, None]
        )
    rows = torch.randn(5, 3, 40, generator=generator)
    path = export_onnx(layer, rows, tmp_path / "layer.onnx")
    found = OnnxModel(quantise_onnx(path, tmp_path / "layer8.onnx"))(rows).numpy()

    def steps(values: np.ndarray, axis=None):
        """Whole steps from 0 to 255 between the least and the greatest value, 0 among them."""
        low = np.minimum(values.min(axis=axis, keepdims=True), 0)
        high = np.maximum(values.max(axis=axis, keepdims=True), 0)
        scale = (high - low) / 255
        zero = np.round(-low / scale)
        return (np.clip(np.round(values / scale) + zero, 0, 255) - zero) * scale

    expected = steps(rows.numpy()) @ steps(layer.weight.detach().numpy().T, axis=0)
    np.testing.assert_allclose(found, expected, atol=2e-3 * np.abs(expected).max())
    exact = (rows @ layer.weight.detach().T).numpy()
    assert np.abs(found - expected).mean() < 0.3 * np.abs(found - exact).mean()


def test_what_is_missing_broken_or_does_not_fit_is_said(exported, tmp_path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no ONNX model none\.onnx"):
        OnnxModel(tmp_path / "none.onnx")
    with pytest.raises(FileNotFoundError, match=r"no ONNX model none\.onnx"):
        quantise_onnx(tmp_path / "none.onnx", tmp_path / "small.onnx")
    (tmp_path / "broken.onnx").write_bytes(b"not a model")
    with pytest.raises(ValueError, match=r"broken\.onnx is not a readable ONNX model"):
        OnnxModel(tmp_path / "broken.onnx")
    with pytest.raises(ValueError, match=r"does not run on \(1, 3, 25, 25\)"):
        OnnxModel(exported["image"])(torch.zeros(1, 3, 25, 25))
    with pytest.raises(ValueError, match="no torch module"):
        export_onnx(torch.relu, pictures(2), tmp_path / "x.onnx")
    with pytest.raises(ValueError, match=r"size 1 in the free dimensions \[0\]"):
        export_onnx(nn.Flatten(), pictures(1), tmp_path / "x.onnx")
    with pytest.raises(ValueError, match="does not run on"):
        export_onnx(nn.Linear(3, 2), torch.zeros(2, 4), tmp_path / "x.onnx")
    assert not list(tmp_path.glob("*x.onnx*"))


def test_deviation_refuses_nan_and_other_shapes() -> None:
    assert largest_deviation(torch.tensor([1.0, 2.0]), torch.tensor([1.0, 1.5])) == 0.5
    with pytest.raises(ValueError, match="the second result holds NaN"):
        largest_deviation(torch.ones(2), torch.tensor([1.0, math.nan]))
    with pytest.raises(ValueError, match="shapes"):
        largest_deviation(torch.ones(2), torch.ones(2, 1))
