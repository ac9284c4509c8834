"""Exact resume: killed by SIGKILL at any moment and started again, a run ends the same."""

from __future__ import annotations

import multiprocessing
import random
import resource
import shutil
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))

from toy_training import Switches, fit_and_die, fit_in_process, fit_toy, toy_config

from mmkd_lite.checkpoint import (
    DamagedCheckpoint,
    checkpoint_paths,
    latest_checkpoint,
    load_checkpoint,
    save_checkpoint,
)
from mmkd_lite.config import RunConfig, resolve, to_dict
from mmkd_lite.runs import Run
from mmkd_lite.train import fit

SEED = 20_240  # of the moments of death; another number gives other moments
FACTS = ("model.safetensors", "metrics.jsonl")


@pytest.fixture(autouse=True)
def surroundings(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.delenv("MMKD_SCALE", raising=False)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def processes() -> multiprocessing.context.ForkServerContext:
    """Start processes that have imported everything, so that each costs a tenth of a second."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["timm", "mmkd_lite.data.pairs", "toy_training"])
    return context


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """Return what the uninterrupted run writes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MMKD_SCALE", raising=False)
        run, _ = fit_toy(tmp_path_factory.mktemp("whole"))
    return {name: (run.dir / name).read_bytes() for name in FACTS}


def facts(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in FACTS}


def dies(
    processes: multiprocessing.context.ForkServerContext,
    folder: Path,
    switches: Switches | None = None,
    file_event: int = 0,
    **settings: object,
) -> bool:
    """Train in a new process; tell whether it was killed (else it must have ended well)."""
    arguments = (str(folder), switches or Switches(), file_event, settings)
    process = processes.Process(target=fit_and_die, args=arguments)
    process.start()
    process.join(60)
    assert process.exitcode in (0, -signal.SIGKILL)
    return process.exitcode != 0


@pytest.mark.parametrize("where", ["before_step", "targets", "losses", "after_step"])
def test_killed_within_a_step(
    where: str, processes: multiprocessing.context.ForkServerContext, tmp_path: Path, expected: dict
) -> None:
    # One step after a resume at 3 is step 4, two after it step 5: death strikes in both lives.
    for life in (4, 2):
        assert dies(processes, tmp_path, Switches(die_in=where, die_at=life))
        assert not (tmp_path / "finished.json").exists()
    fit_toy(tmp_path)
    assert facts(tmp_path) == expected


def test_killed_before_changes_to_files_one_after_another(
    processes: multiprocessing.context.ForkServerContext, tmp_path: Path, expected: dict
) -> None:
    """Death before the n-th write, rename or removal, n drawn from all that a whole run makes."""
    moments = random.Random(SEED).sample(range(1, 85), 24)
    deaths = 0
    for moment in moments:
        folder = tmp_path / str(moment)
        deaths += dies(processes, folder, file_event=moment)
        fit_toy(folder)
        assert facts(folder) == expected, f"killed before file change {moment}"
        hidden = [p.name for p in (folder / "checkpoints").iterdir() if p.name.startswith(".")]
        assert not hidden, f"killed before file change {moment}: {hidden} left over"
        shutil.rmtree(folder)
    assert deaths >= 20


def test_killed_at_random_moments_again_and_again(
    processes: multiprocessing.context.ForkServerContext, tmp_path: Path
) -> None:
    """A parent that kills without asking: 200 steps need several lives to end."""
    settings = {"train__steps": 200, "train__checkpoint_every": 7}
    whole, _ = fit_toy(tmp_path / "whole", **settings)
    config = toy_config(tmp_path / "killed", **settings)
    moments, lives = random.Random(SEED), 0
    while not Run(Path(config.out_dir), config).finished and lives < 25:
        kill_after_a_checkpoint(processes, config, moments.uniform(0.0, 0.15), toy=True)
        lives += 1
    assert lives > 2
    fit_toy(tmp_path / "killed", **settings)
    assert facts(tmp_path / "killed") == facts(whole.dir)


def kill_after_a_checkpoint(
    processes: multiprocessing.context.ForkServerContext,
    config: RunConfig,
    seconds: float,
    toy: bool = False,
) -> None:
    """Train in a new process; SIGKILL it some time after its first checkpoint."""
    folder = Path(config.out_dir) / "checkpoints"
    before = checkpoint_paths(folder)[:1]
    process = processes.Process(target=fit_in_process, args=(to_dict(config), toy))
    process.start()
    deadline = time.monotonic() + 30
    while process.is_alive() and checkpoint_paths(folder)[:1] == before:
        assert time.monotonic() < deadline, "no checkpoint within 30 seconds"
        time.sleep(0.01)
    time.sleep(seconds)
    process.kill()
    process.join()
    assert process.exitcode in (0, -signal.SIGKILL)


def killed_at_step_8(processes: multiprocessing.context.ForkServerContext, folder: Path) -> None:
    """Leave a run that died in step 8 with checkpoints 3 and 6."""
    assert dies(processes, folder, Switches(die_in="losses", die_at=8))
    names = [path.name for path in checkpoint_paths(folder / "checkpoints")]
    assert names == ["step-00000006", "step-00000003"]


@pytest.mark.parametrize("name", ["tensors.safetensors", "state.json", "manifest.json"])
@pytest.mark.parametrize("damage", ["cut", "altered", "missing"])
def test_a_damaged_checkpoint_is_passed_over_with_a_warning(
    name: str,
    damage: str,
    processes: multiprocessing.context.ForkServerContext,
    tmp_path_factory: pytest.TempPathFactory,
    tmp_path: Path,
    expected: dict,
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(template(processes, tmp_path_factory), folder)
    victim = folder / "checkpoints" / "step-00000006" / name
    content = victim.read_bytes()
    altered = content[:40] + bytes([content[40] ^ 1]) + content[41:]
    if damage == "missing":
        victim.unlink()
    else:
        victim.write_bytes(content[: len(content) // 2] if damage == "cut" else altered)
    with pytest.warns(UserWarning, match=r"damaged checkpoint.*step-00000006"):
        _, method = fit_toy(folder)
    assert len(method.calls) == 4 * 7  # from step 3
    assert facts(folder) == expected


_templates: dict[str, Path] = {}


def template(
    processes: multiprocessing.context.ForkServerContext, factory: pytest.TempPathFactory
) -> Path:
    if "killed" not in _templates:
        _templates["killed"] = factory.mktemp("template") / "run"
        killed_at_step_8(processes, _templates["killed"])
    return _templates["killed"]


def test_with_every_checkpoint_damaged_the_run_starts_over(
    processes: multiprocessing.context.ForkServerContext,
    tmp_path_factory: pytest.TempPathFactory,
    tmp_path: Path,
    expected: dict,
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(template(processes, tmp_path_factory), folder)
    for path in checkpoint_paths(folder / "checkpoints"):
        (path / "state.json").write_text("{}")
    with pytest.warns(UserWarning, match="damaged checkpoint"):
        _, method = fit_toy(folder)
    assert len(method.calls) == 4 * 10 and facts(folder) == expected


def test_a_torn_last_line_of_the_metrics_is_cut_off(
    processes: multiprocessing.context.ForkServerContext,
    tmp_path_factory: pytest.TempPathFactory,
    tmp_path: Path,
    expected: dict,
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(template(processes, tmp_path_factory), folder)
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"step": 8, "lo')
    run = Run(folder, toy_config(folder))
    assert [row["step"] for row in run.metrics()] == [1, 2, 3, 4, 5, 6, 7]
    fit_toy(folder)
    assert facts(folder) == expected


def test_lost_metrics_are_reported(
    processes: multiprocessing.context.ForkServerContext,
    tmp_path_factory: pytest.TempPathFactory,
    tmp_path: Path,
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(template(processes, tmp_path_factory), folder)
    (folder / "metrics.jsonl").write_text("")
    with pytest.warns(UserWarning, match=r"metrics\.jsonl lost lines"):
        run, _ = fit_toy(folder)
    assert [row["step"] for row in run.metrics()] == [7, 8, 9, 10]


def test_a_checkpoint_of_another_configuration_is_refused_by_name(
    processes: multiprocessing.context.ForkServerContext,
    tmp_path_factory: pytest.TempPathFactory,
    tmp_path: Path,
    expected: dict,
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(template(processes, tmp_path_factory), folder)
    with pytest.raises(ValueError, match=r"namely train\.weight_decay, weights\.noise\."):
        weights = {"contrast": 1.0, "regression": 0.5, "noise": 0.2}
        fit_toy(folder, train__weight_decay=0.5, weights=weights)
    fit_toy(folder, train__checkpoint_every=2)  # changes no bit, so it is allowed
    assert facts(folder) == expected


def test_other_threads_are_warned_about(
    processes: multiprocessing.context.ForkServerContext,
    tmp_path_factory: pytest.TempPathFactory,
    tmp_path: Path,
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(template(processes, tmp_path_factory), folder)
    torch.set_num_threads(2)
    with pytest.warns(UserWarning, match="threads 1 -> 2: the result may differ in the last bits"):
        fit_toy(folder)


def test_a_disk_that_really_refuses_more_bytes(tmp_path: Path, expected: dict) -> None:
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (3000, limit[1]))
        with pytest.raises(OSError, match=r"cannot write the checkpoint of step 3 "):
            fit_toy(tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
        signal.signal(signal.SIGXFSZ, before)
    assert list((tmp_path / "checkpoints").iterdir()) == []
    fit_toy(tmp_path)
    assert facts(tmp_path) == expected


def test_checkpoints_go_round_and_the_newest_two_stay(tmp_path: Path) -> None:
    tensors = {"a/b": torch.arange(6.0).reshape(2, 3).T, "c": torch.tensor(3, dtype=torch.uint8)}
    shared = torch.ones(4)
    for step in (5, 10, 100_000_000):
        everything = {**tensors, "first": shared[:2], "second": shared}
        save_checkpoint(tmp_path, step, everything, {"note": [step, 0.1]})
    names = [path.name for path in checkpoint_paths(tmp_path)]
    assert names == ["step-100000000", "step-00000010"]
    checkpoint = latest_checkpoint(tmp_path)
    assert checkpoint is not None and checkpoint.step == 100_000_000
    assert checkpoint.state == {"note": [100_000_000, 0.1]}
    for name, value in tensors.items():
        assert torch.equal(checkpoint.tensors[name], value)
        assert checkpoint.tensors[name].dtype == value.dtype
    assert torch.equal(checkpoint.tensors["first"], torch.ones(2))
    with pytest.raises(DamagedCheckpoint, match="cannot be read"):
        load_checkpoint(tmp_path / "step-00000099")
    assert latest_checkpoint(tmp_path / "nowhere") is None
    save_checkpoint(tmp_path, 10, tensors, {"note": "again"})  # the same step once more
    assert load_checkpoint(tmp_path / "step-00000010").state == {"note": "again"}
    with pytest.raises(ValueError, match="'bad' is a list"):
        save_checkpoint(tmp_path, 11, {"bad": [1]}, {})
    assert [path.name for path in checkpoint_paths(tmp_path)] == names


def test_the_real_method_resumes_exactly(
    processes: multiprocessing.context.ForkServerContext, tmp_path: Path
) -> None:
    """Transformer SHRe on emoji scenes, dropout on, killed again and again."""
    settings = {
        "teacher": "random-cnn",
        "train.batch_size": 8,
        "train.steps": 24,
        "train.checkpoint_every": 2,
        "image.dropout": 0.1,
        "text.dropout": 0.1,
    }
    whole = fit(resolve("shre", "tiny", settings, out_dir=str(tmp_path / "whole")))
    config = resolve("shre", "tiny", settings, out_dir=str(tmp_path / "killed"))
    moments, lives = random.Random(SEED), 0
    while not Run(Path(config.out_dir), config).finished and lives < 20:
        kill_after_a_checkpoint(processes, config, moments.uniform(0.0, 0.12))
        lives += 1
    assert lives > 2
    resumed = fit(config)
    assert facts(resumed.dir) == facts(whole.dir)
    assert [row["step"] for row in resumed.metrics()] == list(range(1, 25))
