"""Memory banks: the queue, its limits, the four kinds, momentum, resume, two processes, full size."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import deque
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from mmkd_lite.config import resolve
from mmkd_lite.methods import build
from mmkd_lite.methods.memory_bank import MemoryBank, update_average
from mmkd_lite.models import Bank, seeded
from mmkd_lite.optimizer import parameter_groups
from mmkd_lite.train import fit
from tests import measure_bank
from tests.gloo import run_both
from tests.reference_losses import image_text_contrast_loop, info_nce_loop
from tests.two_banks import KINDS, ROWS, WORLD, pairs, settings, train

DOUBLE = torch.float64


def units(rows: int, width: int = 4, seed: int = 0) -> torch.Tensor:
    numbers = torch.randn(rows, width, generator=torch.Generator().manual_seed(seed), dtype=DOUBLE)
    return F.normalize(numbers, dim=-1)


def method_of(kind: str, **options: Any) -> Any:
    return build(settings(kind, **options)).double()


def loss_of(method: Any, step: int) -> torch.Tensor:
    return method.losses(pairs(step, slice(ROWS)), {}, 0.0)["contrast"]


def take_step(method: Any, step: int, rate: float = 0.1) -> float:
    """One plain gradient step; returns its loss."""
    method.before_step(0.0)
    loss = loss_of(method, step)
    trained = [p for p in method.parameters() if p.requires_grad]
    gradients = torch.autograd.grad(loss, trained, allow_unused=True)
    with torch.no_grad():
        for parameter, gradient in zip(trained, gradients, strict=True):
            if gradient is not None:
                parameter -= rate * gradient
        method.after_step()
    return loss.item()


# --- The queue ---------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [4, 6, 10])
def test_the_bank_is_a_queue_that_wraps_around(size: int) -> None:
    bank, queue = Bank(size, 4).double(), deque(maxlen=size)
    for step in range(8):
        rows, ids = units(2, seed=step), torch.tensor([2 * step, 2 * step + 1])
        bank.enqueue(rows, ids)
        queue = deque(((a + 1, i, r) for a, i, r in queue), maxlen=size)
        queue.extend((1, int(i), r) for i, r in zip(ids, rows, strict=True))
        filled = [
            (int(a), int(i), r) for a, i, r in zip(bank.age, bank.ids, bank.rows, strict=True) if a
        ]
        assert len(filled) == len(queue) == min(size, 2 * step + 2)
        by_id = sorted(filled, key=lambda slot: slot[1])
        for (age, number, row), (age_, number_, row_) in zip(by_id, queue, strict=True):
            assert (age, number) == (age_, number_) and torch.equal(row, row_)
        oldest = int(bank.pointer)  # written next
        assert not bank.age[oldest] or bank.age[oldest] == bank.age.max()


def test_the_bias_counts_steps_and_has_its_limits() -> None:
    bank = Bank(6, 4).double()
    for step in range(2):
        bank.enqueue(units(2, seed=step), torch.arange(2))
    weights = bank.bias(0.5).exp()
    assert torch.allclose(weights, torch.tensor([0.25, 0.25, 0.5, 0.5, 0, 0], dtype=DOUBLE))
    assert bank.bias(1.0).tolist() == [0, 0, 0, 0, -torch.inf, -torch.inf]
    assert bank.bias(0.0).tolist() == [-torch.inf] * 6
    assert bank.bias(1.0, max_age=1).exp().tolist() == [0, 0, 1, 1, 0, 0]
    assert torch.equal(bank.bias(1.0, max_age=2), bank.bias(1.0))
    assert Bank(3, 2).bias(1.0).tolist() == [-torch.inf] * 3


def test_a_bank_stores_no_gradient_and_survives_its_state_dict() -> None:
    bank, other = Bank(6, 4).double(), Bank(6, 4).double()
    rows = units(2).requires_grad_()
    bank.enqueue(rows, torch.arange(2))
    assert not bank.rows.requires_grad
    other.load_state_dict(bank.state_dict())
    for one in (bank, other):
        one.enqueue(units(2, seed=5), torch.arange(2) + 9)
    assert set(bank.state_dict()) == {"rows", "ids", "age", "pointer"}
    for name, value in bank.state_dict().items():
        assert torch.equal(value, other.state_dict()[name]), name


@pytest.mark.parametrize(
    ("action", "message"),
    [
        (lambda: Bank(0, 4), "size=0"),
        (lambda: Bank(2, 4).enqueue(units(4).float(), torch.arange(4)), "2 slots .* the 4 rows"),
        (lambda: Bank(6, 4).enqueue(units(4).float(), torch.arange(4)), "6 slots .* the 4 rows"),
        (lambda: Bank(6, 4).enqueue(units(2, 3).float(), torch.arange(2)), r"\(B, 4\).*\(2, 3\)"),
        (lambda: Bank(6, 4).enqueue(3 * units(2).float(), torch.arange(2)), "length 1"),
        (lambda: Bank(6, 4).enqueue(units(2).float(), torch.arange(3)), r"ids must be \(2,\)"),
        (lambda: Bank(6, 4).bias(1.5), r"gamma=1.5 must lie in \[0, 1\]"),
        (lambda: Bank(6, 4).bias(-0.1), "gamma=-0.1"),
        (lambda: Bank(6, 4).bias(float("nan")), "gamma=nan"),
        (lambda: Bank(6, 4).bias(1.0, max_age=-1), "max_age=-1"),
        (lambda: method_of("lifo"), "'lifo' is unknown; valid: none, fifo"),
        (lambda: method_of("fifo", options__gamma=2.0), "options.gamma=2.0"),
        (lambda: method_of("fifo", options__gamma=-0.1), r"gamma=-0.1 must lie in \[0, 1\]"),
        (lambda: method_of("momentum", options__momentum=1.1), "options.momentum=1.1"),
        (lambda: method_of("momentum", options__momentum=-0.1), r"=-0.1 must lie in \[0, 1\]"),
        (lambda: method_of("fifo", options__max_age=-1), "options.max_age=-1"),
        (lambda: method_of("fifo", options__layout="vlmo"), "vlmo"),
        (lambda: method_of("fifo", options__bank_size=6), "6 slots .* the 4 rows"),
        (lambda: method_of("fifo", options__bank_size=2), "2 slots .* the 4 rows"),
    ],
)
def test_bad_settings_are_named(action: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        action()


# --- The loss ----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["fifo", "decaying"])
@pytest.mark.parametrize("layout", ["none", "single"])
def test_value_and_gradient_equal_the_loop(kind: str, layout: str) -> None:
    method = method_of(kind, options__layout=layout, options__space_width=12, options__gamma=0.7)
    for step in range(3):
        take_step(method, step)
    batch = pairs(1, slice(ROWS))  # its pictures are in the bank
    bank = {name: method.banks[name] for name in ("image", "text")}
    weights = {
        f"bank_weight_{name}": (b.age > 0) * method.gamma ** b.age.double()
        for name, b in bank.items()
    }
    expected = image_text_contrast_loop(
        method.encode_image(batch["image"]),
        method.encode_text(batch["tokens"]),
        method.scales[0].value(),
        bank_image=bank["image"].rows,
        bank_text=bank["text"].rows,
        image_id=batch["image_id"],
        bank_id=bank["image"].ids,
        **weights,
    )
    value = loss_of(method, 1)
    trained = list(method.parameters())
    torch.testing.assert_close(value, expected, rtol=1e-9, atol=0)
    pair = [torch.autograd.grad(x, trained, allow_unused=True) for x in (value, expected)]
    for gradient, wanted in zip(*pair, strict=True):
        torch.testing.assert_close(gradient, wanted, rtol=1e-7, atol=1e-11)


def test_momentum_equals_the_loop_and_its_keys_carry_no_gradient() -> None:
    method = method_of("momentum", options__momentum=0.5)
    for step in range(2):
        take_step(method, step)
    batch = pairs(1, slice(ROWS))
    with torch.no_grad():
        keys = (
            method.slow_space.encode_image(batch["image"]).contrast[0],
            method.slow_space.encode_text(batch["tokens"]).contrast[0],
        )
    ids, scale = batch["image_id"], method.scales[0].value()
    image, text = method.encode_image(batch["image"]), method.encode_text(batch["tokens"])
    halves = []
    for query, key, name in ((image, keys[1], "text"), (text, keys[0], "image")):
        bank = method.banks[name]
        shared = {"query_id": ids, "key_id": ids, "bank_id": bank.ids}
        filled = (bank.age > 0).to(DOUBLE)
        halves.append(
            info_nce_loop(query, key, scale, bank=bank.rows, bank_weight=filled, **shared)
        )
    expected, value = (halves[0] + halves[1]) / 2, loss_of(method, 1)
    trained = [p for p in method.parameters() if p.requires_grad]
    torch.testing.assert_close(value, expected, rtol=1e-9, atol=0)
    pair = [torch.autograd.grad(x, trained, allow_unused=True) for x in (value, expected)]
    for gradient, wanted in zip(*pair, strict=True):
        torch.testing.assert_close(gradient, wanted, rtol=1e-7, atol=1e-11)


@pytest.mark.parametrize("kind", ["none", "fifo", "decaying"])
def test_an_empty_bank_is_the_plain_contrast_exactly(kind: str) -> None:
    method = method_of(kind)
    plain = resolve("contrast", "tiny", {"image.start": "", "text.start": ""})
    contrast = build(plain).double()
    value, expected = (loss_of(one, 0) for one in (method, contrast))
    assert torch.equal(value, expected)
    ours, theirs = dict(method.named_parameters()), dict(contrast.named_parameters())
    assert ours.keys() == theirs.keys()
    pair = [
        torch.autograd.grad(x, list(p.values())) for x, p in ((value, ours), (expected, theirs))
    ]
    assert all(torch.equal(a, b) for a, b in zip(*pair, strict=True))


def test_a_bank_that_repeats_the_batch_by_hand() -> None:
    """Other ids: every candidate counts twice. Own ids: all but the positive count twice."""
    batch = pairs(0, slice(ROWS)) | {"image_id": torch.arange(ROWS)}
    for ids, own in ((torch.arange(ROWS) + 50, 2), (torch.arange(ROWS), 1)):
        method = method_of("fifo")
        v, w = method.encode_image(batch["image"]), method.encode_text(batch["tokens"])
        for name, rows in (("image", v), ("text", w)):
            method.banks[name].enqueue(rows.detach(), ids)
        terms = (method.scales[0].value() * v @ w.T).exp()
        counts = torch.full((ROWS, ROWS), 2.0, dtype=DOUBLE).fill_diagonal_(own)
        rows, columns = (counts * terms).sum(1), (counts * terms).sum(0)
        by_hand = ((rows * columns).log() / 2 - terms.diagonal().log()).mean()
        torch.testing.assert_close(method.losses(batch, {}, 0.0)["contrast"], by_hand)


def test_decay_joins_no_bank_and_the_plain_bank_and_only_grows_between() -> None:
    """From one state with a full bank, whose rows another rate has made."""
    source = method_of("fifo")
    for step in range(6):
        take_step(source, step)

    def loss(kind: str, **options: Any) -> float:
        method = method_of(kind, **options)
        method.load_state_dict(source.state_dict(), strict=kind != "none")
        return loss_of(method, 7).item()

    values = [loss("decaying", options__gamma=gamma) for gamma in (0.0, 0.1, 0.5, 0.9, 1.0)]
    assert values == sorted(values) and len(set(values)) == 5
    assert values[0] == loss("none") and values[-1] == loss("fifo")
    limits = [loss("fifo", options__max_age=age) for age in (1, 2, 3, 4, 0)]
    assert limits == sorted(limits) and limits[-2] == limits[-1] and len(set(limits)) == 4


def test_the_same_picture_in_the_bank_is_no_negative() -> None:
    masked, unmasked = method_of("fifo"), method_of("fifo", options__mask_by_id=False)
    batch = pairs(0, slice(ROWS)) | {"image_id": torch.arange(ROWS)}
    losses = []
    for method, ids in ((masked, 0), (masked, 50), (unmasked, 0)):
        method.load_state_dict(masked.state_dict())
        for name in ("image", "text"):
            rows = units(ROWS, 32, seed=len(name))
            method.banks[name].age.zero_()
            method.banks[name].enqueue(rows, torch.arange(ROWS) + ids)
        losses.append(method.losses(batch, {}, 0.0)["contrast"].item())
    assert losses[0] < losses[1] == losses[2]


# --- Order, momentum and state -----------------------------------------------------------------


def test_the_order_of_a_step(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The copy moves, runs, the student runs, its weights change, and only then the bank fills."""
    config = resolve(
        "memory_bank", "tiny", {**_momentum(), "train.steps": 2}, out_dir=str(tmp_path)
    )
    method: Any = build(config)
    events: list[str] = []
    for name, space in (("slow", method.slow_space), ("student", method.space)):
        space.image_encoder.register_forward_hook(lambda *_, name=name: events.append(name))
        space.text_encoder.register_forward_hook(lambda *_, name=name: events.append(name))
    weight = next(p for p in method.space.shared.parameters() if p.ndim == 2)
    seen = [weight.detach().clone()]
    enqueue = Bank.enqueue

    def note_update(slow: Any, fast: Any, momentum: float) -> None:
        events.append("update")
        update_average(slow, fast, momentum)

    def note_enqueue(bank: Bank, rows: torch.Tensor, ids: torch.Tensor) -> None:
        assert not torch.equal(weight, seen[-1])  # the optimiser was here
        events.append("enqueue")
        enqueue(bank, rows, ids)
        if events[-2:] == ["enqueue"] * 2:
            seen.append(weight.detach().clone())

    monkeypatch.setattr("mmkd_lite.methods.memory_bank.update_average", note_update)
    monkeypatch.setattr(Bank, "enqueue", note_enqueue)
    fit(config, method=method)
    assert events == ["update", *["slow"] * 2, *["student"] * 2, *["enqueue"] * 2] * 2


def test_running_statistics_are_copied_and_not_averaged() -> None:
    slow, fast = torch.nn.BatchNorm1d(3), torch.nn.BatchNorm1d(3)
    fast(torch.arange(12.0).reshape(4, 3))
    update_average(slow, fast, 0.9)
    assert not torch.equal(fast.running_mean, torch.zeros(3))
    assert all(torch.equal(a, b) for a, b in zip(slow.buffers(), fast.buffers(), strict=True))


def _momentum(m: float = 0.9) -> dict[str, Any]:
    start = {"image.start": "", "text.start": "", "train.checkpoint_every": 2}
    return {"options.kind": "momentum", "options.momentum": m, **start}


def test_the_copy_is_an_average_of_the_weights_before_each_step() -> None:
    method = method_of("momentum", options__momentum=0.75)
    expected = {name: value.clone() for name, value in method.space.state_dict().items()}
    for step in range(3):
        student = {name: value.clone() for name, value in method.space.state_dict().items()}
        expected = {name: 0.75 * old + 0.25 * student[name] for name, old in expected.items()}
        take_step(method, step)
    for name, value in method.slow_space.state_dict().items():
        torch.testing.assert_close(value, expected[name], rtol=1e-12, atol=1e-14)


def test_momentum_1_keeps_the_copy_and_momentum_0_is_the_student() -> None:
    kept, student = (method_of("momentum", options__momentum=m) for m in (1.0, 0.0))
    plain, start = method_of("none"), kept.slow_space.state_dict()
    start = {name: value.clone() for name, value in start.items()}
    for step in range(2):
        take_step(kept, step)
        take_step(student, step)
    assert all(torch.equal(v, start[n]) for n, v in kept.slow_space.state_dict().items())
    assert any(not torch.equal(v, start[n]) for n, v in kept.space.state_dict().items())
    student.before_step(0.0)
    for name, value in student.slow_space.state_dict().items():
        assert torch.equal(value, student.space.state_dict()[name])
    for bank in student.banks.values():
        bank.age.zero_()
    plain.load_state_dict(student.state_dict(), strict=False)
    torch.testing.assert_close(loss_of(student, 5), loss_of(plain, 5), rtol=1e-12, atol=0)


@pytest.mark.parametrize("kind", ["fifo", "momentum"])
def test_what_is_trained_and_what_is_saved(kind: str) -> None:
    method = method_of(kind)
    take_step(method, 0)
    method.before_step(0.0)
    loss_of(method, 1).backward()
    trained = {name for group in parameter_groups(method, 0.1) for name in group["names"]}
    assert trained == {n for n, _ in method.named_parameters() if not n.startswith("slow_space.")}
    for name, parameter in method.named_parameters():
        got = parameter.grad is not None and bool(parameter.grad.abs().sum() > 0)
        assert got == (name in trained) or "key" in name, name
    state = method.state_dict()
    assert {"banks.image.rows", "banks.text.age", "banks.text.pointer"} <= state.keys()
    assert any(name.startswith("slow_space.") for name in state) == (kind == "momentum")
    other = build(settings(kind)).double()
    other.load_state_dict(state)
    assert [take_step(other, step) for step in (2, 3)] == [
        take_step(method, step) for step in (2, 3)
    ]


class _Cut(MemoryBank):
    """Stops before its sixth step, as Ctrl-C or a lost machine would."""

    steps_left = 5

    def before_step(self, progress: float) -> None:
        if self.steps_left == 0:
            raise RuntimeError("cut")
        self.steps_left -= 1
        super().before_step(progress)


@pytest.mark.parametrize("kind", ["decaying", "momentum"])
def test_a_cut_run_goes_on_exactly(kind: str, tmp_path: Path) -> None:
    changes = {**_momentum(), "options.kind": kind, "options.gamma": 0.8, "train.batch_size": 16}
    folders = [tmp_path / name for name in ("whole", "cut")]
    whole, cut = (resolve("memory_bank", "tiny", changes, out_dir=str(f)) for f in folders)
    fit(whole)
    with pytest.raises(RuntimeError, match="cut"):
        with seeded(cut.seed):
            method = _Cut(cut, None)
        fit(cut, method=method)
    fit(cut)
    for name in ("model.safetensors", "metrics.jsonl"):
        assert (folders[0] / name).read_bytes() == (folders[1] / name).read_bytes(), name
    state = load_file(folders[0] / "model.safetensors")
    assert (state["banks.image.age"] > 0).all()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run both processes once; the folder holds what each of them ended with."""
    folder = tmp_path_factory.mktemp("processes")
    run_both("two_banks", folder)
    return folder


@pytest.mark.parametrize("kind", KINDS)
def test_two_processes_equal_one(folder: Path, kind: str) -> None:
    alone, start = train(kind), build(settings(kind)).double().state_dict()
    assert (alone["bank.age" if kind == "frozen_teacher" else "banks.image.age"] > 0).all()
    assert not torch.equal(alone["scales.0.log_scale"], start["scales.0.log_scale"])
    for rank in range(WORLD):
        found = load_file(folder / f"{kind}-{rank}.safetensors")
        assert found.keys() == alone.keys()
        for name, value in alone.items():
            torch.testing.assert_close(found[name], value, rtol=1e-9, atol=1e-12, msg=name)


# --- Full size ---------------------------------------------------------------------------------


def test_a_bank_of_65536_rows_of_512_trains_in_little_memory() -> None:
    """The two banks take 268 MB; loss and gradient must not need as much again."""
    found = subprocess.run(
        [sys.executable, measure_bank.__file__], capture_output=True, text=True, check=True
    )
    result = json.loads(found.stdout)
    assert result["filled"] == 65_536 and result["banks_mb"] == pytest.approx(268.4, abs=0.1)
    assert all(torch.isfinite(torch.tensor(value)) for value in result.values())
    assert result["gradient_norm"] > 1e-3 and result["scale_gradient"] != 0
    assert 268 < result["extra_mb"] < 600


def test_full_size_is_the_papers_recipe() -> None:
    config = resolve("memory_bank", "full", {"text.start": ""})
    with torch.device("meta"):
        method: Any = build(config)
    assert config.options.momentum == 0.995
    sizes = [bank.rows.nbytes for bank in method.banks.values()]
    assert sizes == [65_536 * 768 * 4] * 2 and round(sizes[0] / 1e6) == 201
    count = [
        sum(p.numel() for p in space.parameters()) for space in (method.space, method.slow_space)
    ]
    assert count[0] == count[1] and not any(p.requires_grad for p in method.slow_space.parameters())
