"""The loop: what it writes, what it refuses, and that it is the plain loop it claims to be."""

from __future__ import annotations

import errno
import json
import logging
import os
import random
import shutil
import signal
import socket
import sys
import threading
import time
from dataclasses import replace
from io import StringIO
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.multiprocessing as multiprocessing
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from safetensors.torch import load_file

sys.path.insert(0, str(Path(__file__).parent))

from toy_training import Switches, ToyMethod, ToyPairs, fit_toy, toy_config, train_as_rank

import mmkd_lite.checkpoint
from mmkd_lite.config import to_dict
from mmkd_lite.distiller import Distiller
from mmkd_lite.optimizer import learning_rate, parameter_groups
from mmkd_lite.runs import Run, run_folder
from mmkd_lite.seeding import random_state, seeded
from mmkd_lite.step_bar import StepBar, duration
from mmkd_lite.train import fit, train_command


@pytest.fixture(autouse=True)
def surroundings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("MMKD_SCALE", raising=False)
    monkeypatch.setenv("MMKD_RUNS", str(tmp_path / "runs"))


def bytes_of(run: Run) -> tuple[bytes, bytes]:
    weights, metrics = run.dir / "model.safetensors", run.dir / "metrics.jsonl"
    return weights.read_bytes(), metrics.read_bytes()


def test_fit_equals_a_loop_written_out(tmp_path: Path) -> None:
    quiet = Switches(dropout=0.0, noise=False)
    weights = {"contrast": 1.0, "regression": 0.5}
    run, _ = fit_toy(tmp_path, quiet, weights=weights, train__clip_norm=0.3)
    config = toy_config(tmp_path, weights=weights, train__clip_norm=0.3)
    method, pairs, train = ToyMethod(config, quiet), ToyPairs(), config.train
    distiller = Distiller(method, weights).train()
    groups = parameter_groups(distiller, train.weight_decay)
    optimizer = torch.optim.AdamW(groups, betas=train.betas, eps=train.eps)
    for step, row in enumerate(run.metrics()):
        rate = learning_rate(step, 10, 0.5 * 8 / 256, 0.1)
        for group in optimizer.param_groups:
            group["lr"] = rate
        with torch.no_grad():
            method.before_step(step / 10)
        loss, terms = distiller.step_loss(pairs.batch(step, 8), step / 10)
        optimizer.zero_grad()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(distiller.parameters(), 0.3)
        optimizer.step()
        with torch.no_grad():
            method.after_step()
        expected = {name: term.item() for name, term in terms.items()}
        expected |= {"step": step + 1, "loss": loss.item(), "learning_rate": rate}
        assert row == pytest.approx({**expected, "gradient_norm": norm.item()}, rel=1e-4)
        assert norm > 0.3  # so that clipping matters
    for name, value in run.load_method(ToyMethod(config, quiet)).state_dict().items():
        torch.testing.assert_close(value, method.state_dict()[name], rtol=1e-4, atol=1e-6)


def test_run_folder_holds_what_it_promises(tmp_path: Path) -> None:
    run, method = fit_toy(tmp_path)
    names = {path.name for path in run.dir.iterdir()}
    promised = {"config.json", "metrics.jsonl", "timings.jsonl", "checkpoints", "finished.json"}
    assert names - {".lock"} == promised | {"model.safetensors"}
    assert json.loads((run.dir / "config.json").read_text()) == to_dict(run.config)
    assert [row["step"] for row in run.metrics()] == list(range(1, 11))
    keys = ["step", "loss", "contrast", "regression", "noise", "gradient_norm", "learning_rate"]
    assert list(run.metrics()[0]) == keys
    assert [p.name for p in sorted(run.checkpoints.iterdir())] == ["step-00000009", "step-00000010"]
    assert run.finished and run.seconds > 0
    state = load_file(run.dir / "model.safetensors")
    assert set(state) == set(method.state_dict())  # buffers too, the teacher not
    assert {"bank", "pointer", "momentum"} <= set(state)
    reopened = Run.open(run.dir)
    assert reopened.config == run.config and reopened.metrics() == run.metrics()


def test_same_seed_gives_the_same_bytes_and_another_seed_does_not(tmp_path: Path) -> None:
    first, second = (bytes_of(fit_toy(tmp_path / name)[0]) for name in "ab")
    assert first == second
    assert bytes_of(fit_toy(tmp_path / "c", seed=1)[0]) != first


def test_global_random_states_are_left_alone(tmp_path: Path) -> None:
    torch.rand(3), np.random.rand(), random.gauss(0, 1)  # noqa: NPY002
    before = random_state()
    fit_toy(tmp_path)
    for name, state in random_state().items():
        assert torch.equal(state, before[name]) or torch.isnan(state).any(), name
    with seeded(1, 2):
        inside = torch.rand(2)
    with seeded(1, 3):
        assert not torch.equal(inside, torch.rand(2))
    with seeded(1, 2):
        assert torch.equal(inside, torch.rand(2))
    assert not torch.are_deterministic_algorithms_enabled()


def test_hooks_are_called_in_order_with_progress(tmp_path: Path) -> None:
    _, method = fit_toy(tmp_path)
    assert len(method.calls) == 40
    for step in range(10):
        names, numbers = zip(*method.calls[4 * step : 4 * step + 4], strict=True)
        assert names == ("before_step", "targets", "losses", "after_step")
        assert numbers == (step / 10, 0.0, step / 10, 0.0)
    assert method.teacher_modes == [False] * 10


def test_folder_is_named_after_the_settings_that_matter() -> None:
    config = toy_config("")
    name = run_folder(config).name
    assert name.startswith("shre__tiny__seed0__") and len(name.split("__")[-1]) == 8
    same = replace(config, train=replace(config.train, checkpoint_every=7, workers=1))
    other = replace(config, train=replace(config.train, base_lr=0.25))
    assert run_folder(same).name == name != run_folder(other).name
    run = fit(config, method=ToyMethod(config), pairs=ToyPairs())
    assert run.dir.name == name and run.dir.parent.name == "runs"


def test_a_finished_run_is_returned_without_training(tmp_path: Path) -> None:
    first, _ = fit_toy(tmp_path)
    again, method = fit_toy(tmp_path)
    assert method.calls == [] and bytes_of(again) == bytes_of(first)
    over, method = fit_toy(tmp_path, resume=False)
    assert len(method.calls) == 40 and bytes_of(over) == bytes_of(first)


def test_an_altered_model_is_made_again_from_the_checkpoint(tmp_path: Path) -> None:
    run, _ = fit_toy(tmp_path)
    expected = bytes_of(run)
    weights = run.dir / "model.safetensors"
    weights.write_bytes(expected[0][:-1] + b"\1")
    with pytest.warns(UserWarning, match="missing or altered"):
        again, method = fit_toy(tmp_path)
    assert bytes_of(again) == expected and method.calls == []


def test_other_settings_in_the_same_folder_are_refused_by_name(tmp_path: Path) -> None:
    run, _ = fit_toy(tmp_path)
    before = bytes_of(run)
    with pytest.raises(ValueError, match=r"train\.base_lr, train\.steps.*another out_dir"):
        fit_toy(tmp_path, train__steps=12, train__base_lr=0.1)
    (tmp_path / "config.json").unlink()  # the checkpoint itself still knows
    (tmp_path / "finished.json").unlink()
    with pytest.raises(ValueError, match=r"train\.base_lr"):
        fit_toy(tmp_path, train__base_lr=0.1)
    other = to_dict(toy_config(tmp_path, train__base_lr=0.1))
    (tmp_path / "config.json").write_text(json.dumps(other))
    with pytest.raises(ValueError, match=r"train\.base_lr"):
        fit_toy(tmp_path, train__base_lr=0.1)
    (tmp_path / "config.json").unlink()
    assert bytes_of(run) == before
    moved, method = fit_toy(shutil.move(tmp_path, tmp_path.with_name("moved")))
    assert method.calls == [] and bytes_of(moved) == before


def test_nan_stops_the_run_and_names_step_terms_and_checkpoint(tmp_path: Path) -> None:
    config = toy_config(tmp_path)
    method = ToyMethod(config, Switches(nan_at=8))
    with pytest.raises(FloatingPointError) as caught:
        fit(config, method=method, pairs=ToyPairs())
    assert all(torch.isfinite(value).all() for value in method.state_dict().values())
    message = str(caught.value)
    assert "step 8 " in message and "regression=nan" in message and "contrast=2." in message
    assert "step-00000006" in message
    saved = load_file(tmp_path / "checkpoints" / "step-00000006" / "tensors.safetensors")
    assert all(torch.isfinite(value).all() for name, value in saved.items() if "random" not in name)
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5, 6, 7]
    assert run_is_whole(tmp_path)  # without the fault the run goes on from there


def run_is_whole(folder: Path) -> bool:
    again, _ = fit_toy(folder)
    whole, _ = fit_toy(folder.with_name(folder.name + "-whole"))
    return bytes_of(again) == bytes_of(whole)


def test_nan_before_the_first_checkpoint_says_that_there_is_none(tmp_path: Path) -> None:
    with pytest.raises(FloatingPointError, match=r"step 1 .*there is no checkpoint yet"):
        fit_toy(tmp_path, Switches(nan_at=1))


def test_an_infinite_gradient_does_not_reach_the_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = ToyMethod.losses

    def losses(self: ToyMethod, *arguments: object) -> dict[str, torch.Tensor]:
        terms = root(self, *arguments)
        zero = self.log_scale.abs() * 0.0
        return {**terms, "contrast": terms["contrast"] + zero.sqrt()}  # 0, with slope infinity

    monkeypatch.setattr(ToyMethod, "losses", losses)
    with pytest.raises(FloatingPointError, match=r"gradient_norm=(nan|inf)"):
        fit_toy(tmp_path)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_run_between_two_steps_with_a_checkpoint(
    number: signal.Signals, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = ToyMethod.losses

    def losses(self: ToyMethod, *arguments: object) -> dict[str, torch.Tensor]:
        if self.steps == 5:
            signal.raise_signal(number)
        return root(self, *arguments)

    handlers = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(ToyMethod, "losses", losses)
    with pytest.raises(KeyboardInterrupt, match=r"after step 5 of 10;.*step-00000005"):
        fit_toy(tmp_path)
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == handlers
    monkeypatch.setattr(ToyMethod, "losses", root)
    _, method = fit_toy(tmp_path / "fresh")
    again, resumed = fit_toy(tmp_path)
    assert len(method.calls) == 40 and len(resumed.calls) == 20
    assert bytes_of(again) == bytes_of(Run.open(tmp_path / "fresh"))


def test_a_second_ctrl_c_ends_at_once_and_the_run_stays_resumable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = ToyMethod.losses

    def losses(self: ToyMethod, *arguments: object) -> dict[str, torch.Tensor]:
        if self.steps == 5:
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)
        return root(self, *arguments)

    monkeypatch.setattr(ToyMethod, "losses", losses)
    with pytest.raises(KeyboardInterrupt):
        fit_toy(tmp_path)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-00000003"]
    monkeypatch.setattr(ToyMethod, "losses", root)
    assert run_is_whole(tmp_path)


def test_fit_works_in_a_thread_where_signals_cannot_be_handled(tmp_path: Path) -> None:
    thread = threading.Thread(target=fit_toy, args=(tmp_path,))
    thread.start()
    thread.join()
    assert Run.open(tmp_path).finished


@pytest.mark.parametrize("failing", ["tensors.safetensors", "manifest.json"])
def test_no_space_left_is_a_clear_error_and_keeps_the_older_checkpoint(
    failing: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, content: object) -> None:
        if "step-00000006" in str(path) and path.name == failing:
            path.write_bytes(b"half")
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return (tensors if failing == "tensors.safetensors" else values)(path, content)

    tensors, values = mmkd_lite.checkpoint.write_atomic, mmkd_lite.checkpoint.write_json
    name = "write_atomic" if failing == "tensors.safetensors" else "write_json"
    monkeypatch.setattr(mmkd_lite.checkpoint, name, full)
    with pytest.raises(OSError, match=r"step 6 .*No space left.*step-00000003") as caught:
        fit_toy(tmp_path)
    assert caught.value.errno == errno.ENOSPC
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-00000003"]
    monkeypatch.undo()
    monkeypatch.delenv("MMKD_SCALE", raising=False)
    assert run_is_whole(tmp_path)


def test_a_folder_that_cannot_be_written_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(OSError, match=r"cannot write to the run's folder .*another out_dir"):
        fit_toy(tmp_path / "file" / "run")


def test_two_processes_cannot_train_in_one_folder(tmp_path: Path) -> None:
    class Nested(ToyPairs):
        def batch(self, *arguments: int, **options: int) -> dict[str, torch.Tensor]:
            fit(toy_config(tmp_path), method=ToyMethod(toy_config(tmp_path)), pairs=ToyPairs())
            raise AssertionError("the second run was not refused")

    config = toy_config(tmp_path)
    with pytest.raises(ValueError, match="another process is training"):
        fit(config, method=ToyMethod(config), pairs=Nested())


def test_state_that_is_no_tensor_is_refused_by_name(tmp_path: Path) -> None:
    class Careless(ToyMethod):
        def get_extra_state(self) -> dict[str, int]:
            return {"epoch": 3}

    config = toy_config(tmp_path)
    method = Careless(config)
    with pytest.raises(ValueError, match=r"_extra_state' is a dict.*parameters and buffers"):
        fit(config, method=method, pairs=ToyPairs())


def test_mixed_precision_is_for_gpus(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        run, method = fit_toy(tmp_path, train__precision="bf16")
    assert "precision=bf16 has no effect on a CPU" in caplog.text
    assert method.seen.dtype == torch.float32 and run.finished


def test_a_device_that_is_not_there_is_refused(tmp_path: Path) -> None:
    missing = "xpu" if torch.cuda.is_available() else "cuda"
    config = replace(toy_config(tmp_path), device=missing)
    with pytest.raises(ValueError, match=f"device='{missing}' is not available"):
        fit(config, method=ToyMethod(config), pairs=ToyPairs())
    assert fit_toy(tmp_path)[0].finished  # and the refusal does not stick to the Python process


def test_an_accelerator_made_before_does_not_decide(tmp_path: Path) -> None:
    AcceleratorState._reset_state(reset_partial_state=True)  # other tests made one, too
    earlier = Accelerator(cpu=True, mixed_precision="bf16")
    assert earlier.mixed_precision == "bf16"
    run, method = fit_toy(tmp_path)
    assert method.seen.dtype == torch.float32 and run.finished


def test_log_every_thins_the_metrics_but_keeps_the_last_step(tmp_path: Path) -> None:
    run, _ = fit_toy(tmp_path, train__log_every=4)
    assert [row["step"] for row in run.metrics()] == [4, 8, 10]


def test_worker_processes_change_nothing(tmp_path: Path) -> None:
    alone, _ = fit_toy(tmp_path / "alone")
    helped, _ = fit_toy(tmp_path / "helped", train__workers=1)
    assert bytes_of(alone) == bytes_of(helped)


def test_load_method_wants_a_finished_run(tmp_path: Path) -> None:
    with pytest.raises(FloatingPointError):
        fit_toy(tmp_path, Switches(nan_at=5))
    with pytest.raises(FileNotFoundError, match="not finished"):
        Run.open(tmp_path).load_method()
    with pytest.raises(FileNotFoundError, match="holds no run"):
        Run.open(tmp_path / "nowhere")
    run, method = fit_toy(tmp_path)
    loaded = run.load_method(ToyMethod(run.config))
    assert not loaded.training
    for name, value in loaded.state_dict().items():
        assert torch.equal(value, method.state_dict()[name]), name


def test_overhead_of_the_loop_is_small(tmp_path: Path) -> None:
    """The processor's time, since test machines are busy; measure_overhead.py gives the figure."""
    config = toy_config(tmp_path, train__steps=60, train__checkpoint_every=50)
    method, pairs = ToyMethod(config), ToyPairs()
    plain = Distiller(ToyMethod(config), config.weights).train()
    bare = -time.process_time()
    for step in range(60):
        plain(pairs.batch(step, 8), step / 60)[0].backward()
    bare += (now := time.process_time())
    whole = -now
    fit(config, method=method, pairs=pairs)
    whole += time.process_time()
    assert (whole - bare) / 60 < 0.02  # 20 ms a step, where a step at laptop scale takes 300


def test_two_processes_equal_one(tmp_path: Path) -> None:
    quiet = Switches(dropout=0.0, noise=False)
    one, _ = fit_toy(tmp_path / "one", quiet, weights={"contrast": 1.0, "regression": 0.5})
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    multiprocessing.spawn(train_as_rank, args=(port, str(tmp_path)), nprocs=2)
    two = Run.open(tmp_path / "two")
    assert two.finished
    trained, start = load_file(one.dir / "model.safetensors"), ToyMethod(one.config).state_dict()
    for name, value in load_file(two.dir / "model.safetensors").items():
        torch.testing.assert_close(value, trained[name], rtol=1e-4, atol=1e-6)
        assert name.startswith("unused") or not torch.equal(value, start[name]), name
    for row, expected in zip(two.metrics(), one.metrics(), strict=True):
        assert row == pytest.approx(expected, rel=1e-4)
    noisy, whole = Run.open(tmp_path / "noisy"), Run.open(tmp_path / "whole")
    assert bytes_of(noisy) == bytes_of(whole)  # resumed with each rank's own random state
    saved = load_file(noisy.checkpoints / "step-00000006" / "tensors.safetensors")
    assert not torch.equal(saved["random/0/torch"], saved["random/1/torch"])
    with pytest.raises(ValueError, match="by 2 processes, this run has 1"):
        (tmp_path / "noisy" / "finished.json").unlink()
        fit_toy(tmp_path / "noisy", train__steps=6)


def test_command_line_trains_refuses_and_resumes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = toy_config(tmp_path / "run")
    (tmp_path / "config.json").write_text(json.dumps(to_dict(config)))
    faulty = [Switches(nan_at=5), Switches(), Switches()]
    monkeypatch.setattr("mmkd_lite.train.build", lambda config: ToyMethod(config, faulty.pop(0)))
    monkeypatch.setattr(
        "mmkd_lite.train.METHODS", {"shre": type("Toy", (), {"open_data": lambda _: ToyPairs()})}
    )
    arguments = ["--config", str(tmp_path / "config.json")]
    assert train_command(arguments) == 1
    assert "step 5 gave" in capsys.readouterr().err
    assert train_command(arguments) == 1
    assert "add --resume" in capsys.readouterr().err
    assert train_command([*arguments, "--resume"]) == 0
    assert "10 steps in" in capsys.readouterr().out
    assert train_command(arguments) == 0  # finished: nothing is lost by asking again
    assert len(faulty) == 1


class Screen(StringIO):
    def isatty(self) -> bool:
        return True


def test_bar_is_silent_without_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MMKD_PROGRESS", raising=False)
    log = StringIO()
    with StepBar(3, "toy", stream=log) as bar:
        bar.update(3)
    assert log.getvalue() == ""
    monkeypatch.setenv("MMKD_PROGRESS", "1")
    with StepBar(3, "toy", stream=log) as bar:
        bar.update(1)
        bar.update(3, "loss 1.5")
    assert log.getvalue().count("\n") == 1 and "3/3" in log.getvalue()
    hidden = Screen()
    with StepBar(3, "toy", stream=hidden, silent=True) as bar:
        bar.update(3)
    assert hidden.getvalue() == ""


def test_bar_tells_the_time_left_from_its_own_steps() -> None:
    screen = Screen()
    with StepBar(100, "toy", done=40, stream=screen) as bar:
        bar.done = 50
        line = bar.line(20.0, "loss 1.5")
        bar.update(100)
    assert line == "toy [##########..........] 50/100  20s, 1m40s left  loss 1.5"
    assert screen.getvalue().startswith("\rtoy [####") and screen.getvalue().endswith("\n")
    assert (
        StepBar(5, "toy", stream=StringIO()).line(3.0)
        == "toy [....................] 0/5  3s, ? left"
    )


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0s"), (59.6, "1m00s"), (185, "3m05s"), (7620, "2h07m")]
)
def test_durations_are_short(seconds: float, text: str) -> None:
    assert duration(seconds) == text
