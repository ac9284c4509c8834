"""Frozen configuration tree, the three scales, and `resolve`, the only way to obtain a run's settings.

A scale is a preset, not a fork: `tiny`, `laptop` and `full` differ in numbers only. A method adds its own
presets (with the paper's recipe at `full`) in its module under `mmkd_lite/methods/`.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, is_dataclass, replace
from typing import Any, get_type_hints

SCALES = ("tiny", "laptop", "full")


@dataclass(frozen=True)
class DataConfig:
    """What the pictures and captions are.

    Attributes:
        source: "emoji" (drawn here) or "coco" (Karpathy JSON and JPEGs below `data_dir`).
        image_size: side of the square pictures, in pixels.
        concepts: number of emoji concepts that scenes are made of.
        world_seed: seed of the emoji world; independent of the run's seed.
        max_tokens: caption length limit, [CLS] and [SEP] included.
        vocabulary: caption preset of the emoji world ("default" or "no_groups").
        noise: share of training captions that are made wrong, in [0, 1].
        noise_kind: "swap" (another scene's caption) or "partial" (shares only some objects).
        gallery_images: pictures in the retrieval gallery.
        tokenizer: "emoji" or a transformers tokenizer name or folder.
        vocab_size: number of token ids; 0 asks the tokenizer.
    """

    source: str = "emoji"
    image_size: int = 48
    concepts: int = 200
    world_seed: int = 0
    max_tokens: int = 32
    vocabulary: str = "default"
    noise: float = 0.0
    noise_kind: str = "swap"
    gallery_images: int = 1000
    tokenizer: str = "emoji"
    vocab_size: int = 0


@dataclass(frozen=True)
class TowerConfig:
    """One Transformer encoder, for images or for text (seed 001, eqs 8-17).

    Attributes:
        width: D, size of a token's vector.
        layers: L, number of blocks.
        heads: attention heads; must divide `width`.
        mlp_ratio: hidden size of the feed-forward network divided by `width`.
        norm: "pre" (eqs 16-17) or "post" (Figure 2a, BERT).
        positions: "learned" or "fixed" (sinusoidal).
        cls_position: False gives [CLS] a zero position (eqs 9 and 14).
        patch: side of an image patch in pixels; unused by text.
        layer_norm_eps: epsilon of every LayerNorm.
        dropout: probability, in [0, 1).
        token_types: segments of a text (2 for BERT); text only.
        max_positions: length of the position table, 0 for `data.max_tokens`; text only.
        start: where the first weights come from, see `mmkd_lite.methods.towers.build_towers`.
    """

    width: int = 96
    layers: int = 3
    heads: int = 4
    mlp_ratio: float = 4.0
    norm: str = "pre"
    positions: str = "learned"
    cls_position: bool = True
    patch: int = 8
    layer_norm_eps: float = 1e-6
    dropout: float = 0.0
    token_types: int = 0
    max_positions: int = 0
    start: str = ""


@dataclass(frozen=True)
class TrainConfig:
    """How the one training loop runs.

    The learning rate that is used is `base_lr * batch_size * processes / 256`, the thesis' rule. `targets` is
    "live", "cached" or the folder of a cache, see `mmkd_lite/target_cache.py`.
    """

    batch_size: int = 256
    steps: int = 120
    base_lr: float = 1e-3
    warmup_fraction: float = 0.1
    weight_decay: float = 0.01
    betas: tuple[float, float] = (0.9, 0.98)
    eps: float = 1e-6
    clip_norm: float = 1.0
    precision: str = "no"
    checkpoint_every: int = 50
    log_every: int = 1
    workers: int = 0
    targets: str = "live"


@dataclass(frozen=True)
class RunConfig:
    """Everything that determines a run; `to_dict` of it is the run's `config.json`."""

    method: str
    scale: str
    seed: int = 0
    device: str = "cpu"
    out_dir: str = ""
    data_dir: str = ""
    teacher: str = ""
    data: DataConfig = field(default_factory=DataConfig)
    image: TowerConfig = field(default_factory=TowerConfig)
    text: TowerConfig = field(default_factory=TowerConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    options: Any = None
    weights: dict[str, float] = field(default_factory=dict)


_SCALE_PRESETS: dict[str, dict[str, Any]] = {
    "tiny": {
        "data.image_size": 32,
        "data.gallery_images": 64,
        "image.width": 32,
        "image.layers": 2,
        "text.width": 32,
        "text.layers": 2,
        "train.batch_size": 32,
        "train.steps": 8,
        "train.checkpoint_every": 4,
    },
    "laptop": {"image.start": "vit", "text.start": "text"},
    # Common defaults of the thesis (methods.md, conventions; claims ledger): ViT-B/16 geometry, BERT-base text.
    "full": {
        "data.source": "coco",
        "data.image_size": 224,
        "data.max_tokens": 64,
        "data.tokenizer": "bert-base-uncased",
        "data.vocab_size": 30522,
        "data.gallery_images": 5000,
        "image.width": 768,
        "image.layers": 6,
        "image.heads": 12,
        "image.patch": 16,
        "image.positions": "fixed",
        "image.cls_position": False,
        "text.width": 768,
        "text.layers": 6,
        "text.heads": 12,
        "text.norm": "post",
        "text.layer_norm_eps": 1e-12,
        "text.token_types": 2,
        "text.max_positions": 512,
        "text.start": "transformers:bert-base-uncased",
        "train.base_lr": 1e-4,
        "train.precision": "fp16",
        "train.checkpoint_every": 1000,
        "train.log_every": 50,
        "train.workers": 8,
    },
}


def resolve(
    method: str,
    scale: str = "laptop",
    overrides: str | Mapping[str, Any] = "",
    *,
    seed: int = 0,
    device: str = "cpu",
    out_dir: str = "",
    data_dir: str = "",
) -> RunConfig:
    """Return the frozen configuration of a run: scale preset, then method preset, then overrides.

    The environment variable `MMKD_SCALE`, where set, beats `scale`, so that one variable turns every
    notebook into a quick check.

    Args:
        method: a name in `mmkd_lite.methods.METHODS`.
        scale: "tiny", "laptop" or "full".
        overrides: dotted keys, as a mapping or as "train.steps=20,image.width=32".
        seed: seed of initial weights, data order and dropout.
        device: a torch device name.
        out_dir: folder of the run; "" lets `fit` choose one under `runs/`.
        data_dir: folder of real data; unused by the emoji world.

    Raises:
        ValueError: unknown method, scale or key (the valid ones are listed), or a value of the wrong type.

    Source: seed 000 and 001 for the shapes; presets cite their own. Used from notebook 00 on.
    """
    from mmkd_lite.methods import METHODS

    scale = effective_scale(scale)
    if method not in METHODS:
        raise ValueError(f"unknown method {method!r}; valid methods: {', '.join(METHODS)}")
    chosen = METHODS[method]
    config = RunConfig(
        method=method,
        scale=scale,
        seed=int(seed),
        device=device,
        out_dir=str(out_dir),
        data_dir=str(data_dir),
        teacher=chosen.default_teacher,
        options=chosen.Options(),
        weights=dict(chosen.default_weights),
    )
    for layer in (_SCALE_PRESETS[scale], chosen.presets.get(scale, {}), parse_overrides(overrides)):
        for key, value in layer.items():
            config = _with(config, key, value)
    check(config)
    return config


def effective_scale(scale: str) -> str:
    """Return the scale in force: `MMKD_SCALE` where it is set, else the argument.

    Raises:
        ValueError: the name is not one of `SCALES`.
    """
    scale = os.environ.get("MMKD_SCALE", "") or scale
    if scale not in SCALES:
        raise ValueError(f"unknown scale {scale!r}; valid scales: {', '.join(SCALES)}")
    return scale


def parse_overrides(overrides: str | Mapping[str, Any]) -> dict[str, Any]:
    """Turn "a.b=1,c=x" or a mapping into a dict of dotted keys.

    Values are read as JSON where they are JSON and as text elsewhere. A comma inside brackets or quotes
    does not separate entries.

    Raises:
        ValueError: an entry without "=".
    """
    if not isinstance(overrides, str):
        return dict(overrides)
    parsed: dict[str, Any] = {}
    for entry in _split_outside_brackets(overrides):
        key, equals, text = entry.partition("=")
        if not equals:
            raise ValueError(f"override {entry!r} has no '='; write key=value, e.g. train.steps=20")
        try:
            parsed[key.strip()] = json.loads(text)
        except json.JSONDecodeError:
            parsed[key.strip()] = text.strip()
    return parsed


def _split_outside_brackets(text: str) -> list[str]:
    entries, depth, quoted, start = [], 0, False, 0
    for position, character in enumerate(text):
        if character == '"':
            quoted = not quoted
        elif not quoted:
            depth += (character in "[{") - (character in "]}")
            if character == "," and depth == 0:
                entries.append(text[start:position])
                start = position + 1
    entries.append(text[start:])
    return [entry for entry in entries if entry.strip()]


def _with(node: Any, key: str, value: Any, path: str = "") -> Any:
    """Return a copy of the dataclass `node` in which the dotted `key` has `value`."""
    head, _, rest = key.partition(".")
    where = f"{path}.{head}" if path else head
    names = [f.name for f in fields(node)]
    if head not in names:
        raise ValueError(f"unknown setting {where!r}; valid here: {', '.join(names)}")
    current = getattr(node, head)
    if isinstance(current, dict) and rest:
        if rest not in current:
            raise ValueError(
                f"unknown loss {rest!r} in {where!r}; valid losses: {', '.join(current)}"
            )
        return replace(node, **{head: {**current, rest: _coerce(where, float, value)}})
    if is_dataclass(current):
        if not rest:
            raise ValueError(
                f"{where!r} is a group of settings; name one, e.g. {where}.{fields(current)[0].name}"
            )
        return replace(node, **{head: _with(current, rest, value, where)})
    if rest:
        raise ValueError(f"{where!r} is a single value and has no part {rest!r}")
    kind = dict if isinstance(current, dict) else _plain_type(type(node), head, current)
    return replace(node, **{head: _coerce(where, kind, value)})


def _plain_type(owner: type, name: str, current: Any) -> type:
    hint = get_type_hints(owner)[name]
    return hint if isinstance(hint, type) else type(current)


def _coerce(where: str, kind: Any, value: Any) -> Any:
    """Convert `value` to `kind` without guessing: no float where an int is due, no text where a number is due."""
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if kind is tuple and isinstance(value, (list, tuple)):
        return tuple(value)
    if kind is str and isinstance(value, (int, float)) and not isinstance(value, bool):
        return str(value)
    if isinstance(value, kind) and not (kind is int and isinstance(value, bool)):
        return dict(value) if kind is dict else value
    raise ValueError(f"{where} must be of type {kind.__name__}, got {value!r}")


def check(config: RunConfig) -> None:
    """Stop at once at settings that cannot work, naming the two values that clash.

    Raises:
        ValueError: see the message.
    """
    for side in ("image", "text"):
        tower: TowerConfig = getattr(config, side)
        if tower.width % tower.heads:
            raise ValueError(
                f"{side}.heads={tower.heads} does not divide {side}.width={tower.width}"
            )
        if tower.norm not in ("pre", "post"):
            raise ValueError(f"{side}.norm={tower.norm!r} must be 'pre' or 'post'")
        if tower.positions not in ("learned", "fixed"):
            raise ValueError(f"{side}.positions={tower.positions!r} must be 'learned' or 'fixed'")
        if min(tower.width, tower.layers, tower.heads, tower.patch) < 1:
            raise ValueError(f"{side}: width, layers, heads and patch must be at least 1")
    if config.data.image_size % config.image.patch:
        raise ValueError(
            f"data.image_size={config.data.image_size} is not divisible by image.patch={config.image.patch}"
        )
    if not 0.0 <= config.data.noise <= 1.0:
        raise ValueError(f"data.noise={config.data.noise} must lie in [0, 1]")
    if config.train.batch_size < 1 or config.train.steps < 1 or config.train.checkpoint_every < 1:
        raise ValueError(
            "train.batch_size, train.steps and train.checkpoint_every must be at least 1"
        )
    if config.train.precision not in ("no", "fp16", "bf16"):
        raise ValueError(
            f"train.precision={config.train.precision!r} must be 'no', 'fp16' or 'bf16'"
        )


def to_dict(config: RunConfig) -> dict[str, Any]:
    """Return the configuration as plain JSON values; the inverse of `from_dict`."""
    return json.loads(json.dumps(dataclasses.asdict(config)))


def from_dict(values: Mapping[str, Any]) -> RunConfig:
    """Rebuild the configuration that `to_dict` (or a run's `config.json`) describes.

    Raises:
        ValueError: unknown method, or fields that are missing or unknown, by name.
    """
    from mmkd_lite.methods import METHODS

    method = values.get("method")
    if method not in METHODS:
        raise ValueError(f"unknown method {method!r}; valid methods: {', '.join(METHODS)}")
    parts = {"data": DataConfig, "image": TowerConfig, "text": TowerConfig, "train": TrainConfig}
    rebuilt = dict(values)
    for name, kind in {**parts, "options": METHODS[method].Options}.items():
        rebuilt[name] = _from_plain(kind, rebuilt.get(name, {}), name)
    config = _from_plain(RunConfig, rebuilt, "config")
    check(config)
    return config


def _from_plain(kind: type, values: Mapping[str, Any], where: str) -> Any:
    known = {f.name: f for f in fields(kind)}
    unknown = sorted(set(values) - set(known))
    if unknown:
        raise ValueError(
            f"{where} has unknown settings: {', '.join(unknown)}; valid: {', '.join(known)}"
        )
    # Only a field without a default has the same value twice: MISSING.
    missing = [n for n, f in known.items() if n not in values and f.default is f.default_factory]
    if missing:
        raise ValueError(f"{where} lacks settings: {', '.join(missing)}")
    return kind(**{n: tuple(v) if isinstance(v, list) else v for n, v in values.items()})


def differing_fields(a: Mapping[str, Any], b: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Return the dotted names of the settings in which two `to_dict` trees differ."""
    differing: list[str] = []
    for key in sorted(set(a) | set(b)):
        left, right = a.get(key), b.get(key)
        if isinstance(left, Mapping) and isinstance(right, Mapping):
            differing += differing_fields(left, right, f"{prefix}{key}.")
        elif left != right:
            differing.append(f"{prefix}{key}")
    return differing
