"""Cached teacher targets: the live curve, no teacher call, and no use of another teacher's cache."""

from __future__ import annotations

import pytest
import torch

from mmkd_lite.config import RunConfig, resolve
from mmkd_lite.data.pairs import open_pairs
from mmkd_lite.methods import build
from mmkd_lite.target_cache import CachedTargets, cache_folders, target_identity
from mmkd_lite.train import fit

SETTINGS = {"teacher": "random-cnn", "train.steps": 4, "train.batch_size": 8}


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("MMKD_CACHE", str(tmp_path / "cache"))


def tiny(tmp_path, name: str, seed: int = 0, **overrides) -> RunConfig:
    settings = {**SETTINGS, **{k.replace("__", "."): v for k, v in overrides.items()}}
    return resolve("shre", "tiny", settings, seed=seed, out_dir=str(tmp_path / name))


def never(*_: object) -> None:
    raise AssertionError("the teacher was asked")


def test_a_cached_run_has_the_live_curve_and_never_asks_the_teacher(tmp_path, monkeypatch):
    live = fit(tiny(tmp_path, "live")).metrics()
    fit(tiny(tmp_path, "first", train__targets="cached"))
    config = tiny(tmp_path, "second", train__targets="cached")
    method = build(config)
    monkeypatch.setattr(method, "targets", never)
    cached = fit(config, method=method).metrics()
    for row, other in zip(live, cached, strict=True):
        for term in ("loss", "kl_image", "kl_text", "contrast"):
            assert other[term] == pytest.approx(row[term], rel=1e-4), (row["step"], term)


def test_a_cache_serves_other_seeds_and_batch_sizes_of_the_same_stream(tmp_path):
    fit(tiny(tmp_path, "first", train__targets="cached"))
    fit(tiny(tmp_path, "second", train__targets="cached", train__steps=2, train__batch_size=16))
    config = tiny(tmp_path, "third", seed=1, train__targets="cached")
    assert (
        target_identity(open_pairs(config), build(tiny(tmp_path, "x")), config)["stream_seed"] == 1
    )
    assert len(cache_folders()) == 1


def test_rows_belong_to_positions_of_the_stream(tmp_path):
    config = tiny(tmp_path, "run", train__targets="cached")
    method, pairs = build(config), open_pairs(config)
    batch = CachedTargets(pairs, method, config).batch(2, 8)
    plain = pairs.batch(2, 8)
    assert torch.equal(batch["image"], plain["image"])
    expected = method.targets(plain)["class_logits"]
    torch.testing.assert_close(batch["target:class_logits"], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"teacher": "random-vit"}, "teacher"),
        ({"data__image_size": 48}, "data.image_size"),
        ({"data__world_seed": 3}, "data.world_seed"),
        ({"train__steps": 5}, "rows"),
        ({"options__temperature": 2.0}, "options.temperature"),
    ],
)
def test_another_cache_is_refused_by_name(tmp_path, change, field):
    fit(tiny(tmp_path, "first", train__targets="cached"))
    (folder,) = cache_folders()
    config = tiny(tmp_path, "second", train__targets=str(folder), **change)
    with pytest.raises(ValueError, match=f"made with other settings.*{field}"):
        fit(config)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [("flip", 0.5, r"augmentation\.flip"), ("split", "validation", "split")],
)
def test_another_augmentation_or_split_is_refused(tmp_path, name, value, message):
    config = tiny(tmp_path, "run", train__targets="cached")
    method, pairs = build(config), open_pairs(config)
    CachedTargets(pairs, method, config)
    (folder,) = cache_folders()
    setattr(pairs, name, value)
    chosen = tiny(tmp_path, "run", train__targets=str(folder))
    with pytest.raises(ValueError, match=message):
        CachedTargets(pairs, method, chosen)


def test_a_longer_cache_of_the_same_stream_is_taken_from_its_folder(tmp_path):
    fit(tiny(tmp_path, "first", train__targets="cached"))
    (folder,) = cache_folders()
    run = fit(tiny(tmp_path, "second", train__targets=str(folder), train__steps=2))
    assert run.finished


def test_methods_without_a_teacher_and_empty_folders_are_named(tmp_path):
    config = resolve("contrast", "tiny", "train.targets=cached", out_dir=str(tmp_path / "run"))
    with pytest.raises(ValueError, match="'contrast' has no teacher"):
        fit(config)
    with pytest.raises(FileNotFoundError, match="holds no cached arrays"):
        fit(tiny(tmp_path, "other", train__targets=str(tmp_path)))


def test_a_cache_that_would_not_fit_into_memory_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("mmkd_lite.target_cache.LARGEST", 100)
    with pytest.raises(ValueError, match="GiB of memory"):
        fit(tiny(tmp_path, "run", train__targets="cached"))
