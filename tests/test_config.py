"""Configuration: presets, overrides, round trip and clear errors."""

from __future__ import annotations

import dataclasses
import json

import pytest

from mmkd_lite.config import (
    RunConfig,
    differing_fields,
    from_dict,
    parse_overrides,
    resolve,
    to_dict,
)


def test_presets_are_layered_scale_method_overrides() -> None:
    full = resolve("shre", "full")
    assert (full.image.width, full.image.layers, full.text.norm) == (768, 6, "post")
    assert full.teacher == "timm:resnet50.a1_in1k"
    assert full.train.steps == 89273
    changed = resolve("shre", "full", "train.steps=3,teacher=cnn")
    assert changed.train.steps == 3 and changed.teacher == "cnn"
    assert changed.image == full.image


def test_environment_beats_the_argument(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MMKD_SCALE", "tiny")
    assert resolve("shre", "laptop").scale == "tiny"
    assert resolve("shre", "laptop").image.width == 32


def test_round_trip_through_json() -> None:
    config = resolve(
        "shre", "laptop", {"options.fusion": "transformer", "options.contrast_layers": 1}, seed=3
    )
    assert from_dict(json.loads(json.dumps(to_dict(config)))) == config


def test_text_and_mapping_overrides_agree() -> None:
    text = resolve("shre", "laptop", "train.betas=[0.8, 0.9], weights.contrast=2,data.noise=0.4")
    mapping = resolve(
        "shre", "laptop", {"train.betas": (0.8, 0.9), "weights.contrast": 2.0, "data.noise": 0.4}
    )
    assert text == mapping
    assert text.train.betas == (0.8, 0.9) and text.weights["contrast"] == 2.0


def test_overrides_keep_commas_inside_brackets_and_quotes() -> None:
    assert parse_overrides('a=[1, 2],b="x,y",c=z') == {"a": [1, 2], "b": "x,y", "c": "z"}


def test_configuration_is_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        resolve("shre", "tiny").seed = 4  # type: ignore[misc]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("nothing", "tiny"), "unknown method 'nothing'; valid methods: soft_labels"),
        (("shre", "huge"), "unknown scale 'huge'; valid scales: tiny, laptop, full"),
        (
            ("shre", "tiny", "train.stepz=3"),
            "unknown setting 'train.stepz'; valid here: batch_size, steps",
        ),
        (("shre", "tiny", "train.steps"), "has no '='"),
        (("shre", "tiny", "train.steps=many"), "train.steps must be of type int"),
        (("shre", "tiny", "train.steps=2.5"), "train.steps must be of type int"),
        (("shre", "tiny", "train.steps=true"), "train.steps must be of type int"),
        (("shre", "tiny", "train=3"), "'train' is a group of settings"),
        (("shre", "tiny", "seed.x=3"), "'seed' is a single value"),
        (("shre", "tiny", "weights.kd=1"), "unknown loss 'kd'.*kl_image, kl_text, contrast"),
        (("shre", "tiny", "image.patch=7"), "image_size=32 is not divisible by image.patch=7"),
        (("shre", "tiny", "image.heads=5"), "image.heads=5 does not divide image.width=32"),
        (("shre", "tiny", "text.norm=middle"), "text.norm='middle' must be 'pre' or 'post'"),
        (("shre", "tiny", "data.noise=1.5"), r"data.noise=1.5 must lie in \[0, 1\]"),
        (("shre", "tiny", "train.steps=0"), "must be at least 1"),
        (("shre", "tiny", "train.precision=fp8"), "must be 'no', 'fp16' or 'bf16'"),
    ],
)
def test_bad_settings_are_named(arguments: tuple[str, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        resolve(*arguments)


def test_from_dict_names_unknown_and_missing_fields() -> None:
    values = to_dict(resolve("shre", "tiny"))
    with pytest.raises(ValueError, match="data has unknown settings: colour"):
        from_dict({**values, "data": {**values["data"], "colour": 1}})
    with pytest.raises(ValueError, match="config lacks settings: scale"):
        from_dict({key: value for key, value in values.items() if key != "scale"})
    with pytest.raises(ValueError, match="unknown method 'gone'"):
        from_dict({**values, "method": "gone"})


def test_differing_fields_are_dotted() -> None:
    a, b = (
        to_dict(resolve("shre", "tiny")),
        to_dict(resolve("shre", "tiny", "train.steps=9", seed=1)),
    )
    assert differing_fields(a, b) == ["seed", "train.steps"]
    assert differing_fields(a, a) == []


def test_every_preset_of_every_method_and_scale_resolves() -> None:
    from mmkd_lite.methods import METHODS

    for method, chosen in METHODS.items():
        for scale in ("tiny", "laptop", "full"):
            for variant in chosen.variants.values() or ({},):
                assert isinstance(resolve(method, scale, variant), RunConfig)
