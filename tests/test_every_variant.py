"""Every variant of every method takes two steps: all it trains is trained and saved, its teacher stays as it was."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from mmkd_lite.config import RunConfig, resolve
from mmkd_lite.distiller import Distiller
from mmkd_lite.methods import METHODS, Method, build
from mmkd_lite.optimizer import build_optimizer, optimizer_tensors
from tests.method_checks import cut_and_resumed

CASES = [(name, row) for name, method in METHODS.items() for row in method.variants or ("",)]
AS_WIDE_AS_THE_TEACHER = {"image.width": 96, "text.width": 96}
SHIPPED = {"options.start": "clip", "data.image_size": 48}  # for a run that is not here
FITTING: Mapping[tuple[str, str], dict[str, Any]] = {
    ("shared_layers", "text_start"): {**AS_WIDE_AS_THE_TEACHER, "text.layers": 3},
    ("shared_layers", "no_head"): AS_WIDE_AS_THE_TEACHER,
    ("ssmke", "shared_output"): AS_WIDE_AS_THE_TEACHER,
    ("supervised", "vit"): {"data.image_size": 48},
    ("image_finetuning", "distilled"): SHIPPED,
    ("image_finetuning", "distilled_head"): SHIPPED,
}
"""What a variant needs beside the tiny preset."""

REGRESSION_ONLY = ("base", "one_more_specific", "one_more_shared", "cls_only", "text_start")
REGRESSION_ONLY += ("frozen", "decay", "no_head")
IDLE: Mapping[tuple[str, str], tuple[str, ...]] = {
    ("shre", "kl_only"): ("scales.",),  # the contrast has weight 0
    **{("shared_layers", row): ("scales.",) for row in REGRESSION_ONLY},  # here too
    ("contrast", "flava"): ("space.inward.", "space.shared."),  # behind the contrast, for a KD term
    ("distill_clip", "affinity"): ("scale.",),  # 50 for both models
}
"""Starts of the names that no term of a variant reaches."""


def tiny(name: str, variant: str) -> RunConfig:
    chosen = {**METHODS[name].variants.get(variant, {}), **FITTING.get((name, variant), {})}
    return resolve(name, "tiny", {**chosen, "train.batch_size": 16})


def two_steps(config: RunConfig, method: Method) -> tuple[torch.optim.Optimizer, set[str]]:
    """Take two steps: branches that start at zero have a gradient from the second on, first stages before it.

    Returns:
        The optimiser, and the names of all parameters that had a gradient.
    """
    distiller = Distiller(method, config.weights).train()
    optimizer = build_optimizer(distiller, config.train)
    data, reached = METHODS[config.method].open_data(config), set()
    for step in range(2):
        optimizer.zero_grad()
        with torch.no_grad():
            method.before_step(step / 2)
        distiller(data.batch(step, 16, 0, 1), step / 2)[0].backward()
        reached |= {
            key for key, p in method.named_parameters() if p.grad is not None and p.grad.any()
        }
        optimizer.step()
        with torch.no_grad():
            method.after_step()
    return optimizer, reached


@pytest.mark.parametrize(("name", "variant"), CASES)
def test_all_that_is_trained_is_reached_optimised_and_saved(name: str, variant: str) -> None:
    config = tiny(name, variant)
    method = build(config)
    trained = {key for key, p in method.named_parameters() if p.requires_grad}
    optimizer, reached = two_steps(config, method)
    idle = {key for key in trained if key.startswith(IDLE.get((name, variant), ()))}
    assert reached == trained - idle
    optimised = {key for group in optimizer.param_groups for key in group["names"]}
    assert optimised == {f"method.{key}" for key in trained}
    moments = {key.rpartition("/")[0] for key in optimizer_tensors(optimizer)}
    assert moments >= {f"method.{key}" for key in reached}
    assert trained <= method.state_dict().keys()


WITH_TEACHER = [(name, row) for name, row in CASES if tiny(name, row).teacher]


@pytest.mark.parametrize(("name", "variant"), WITH_TEACHER)
def test_the_teacher_stays_as_it_was(name: str, variant: str) -> None:
    config = tiny(name, variant)
    method = build(config)
    teacher = method.teacher
    assert teacher is not None
    before = {key: value.clone() for key, value in teacher.state_dict().items()}
    two_steps(config, method)
    assert all(torch.equal(before[key], value) for key, value in teacher.state_dict().items())
    assert all(p.grad is None and not p.requires_grad for p in teacher.parameters())
    assert not any(module.training for module in teacher.modules())
    theirs = {id(p) for p in teacher.parameters()}
    assert not theirs & {id(p) for p in method.parameters()}


RESUMED = [("soft_labels", "soft"), ("text_student", "contrastive"), ("shared_layers", "flava")]
RESUMED += [("distill_clip", "feature_contrast"), ("shre", "both")]


@pytest.mark.parametrize(("name", "variant"), RESUMED)
def test_an_interrupted_run_ends_with_the_same_bits(
    name: str, variant: str, tmp_path: Path
) -> None:
    """The methods with state of their own (banks, codes, stages) do this in files of their own."""
    settings = METHODS[name].variants[variant] | {"train.steps": 5, "train.checkpoint_every": 2}
    settings |= {"train.batch_size": 8}
    folders = (str(tmp_path / folder) for folder in ("whole", "cut"))
    cut_and_resumed(*(resolve(name, "tiny", settings, out_dir=folder) for folder in folders))
