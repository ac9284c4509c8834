"""Two gloo processes under DistributedDataParallel give the loss and gradients of one process."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file

from tests.gloo import WORLD, run_both
from tests.two_processes import CASES, Towers, codebook, run


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Run both processes once; the folder holds what each of them found."""
    folder = tmp_path_factory.mktemp("processes")
    run_both("two_processes", folder)
    return folder


@pytest.mark.parametrize("case", CASES)
def test_two_processes_equal_one(folder, case):
    alone = run(Towers(), slice(None))
    ranks = [load_file(folder / f"{rank}.safetensors") for rank in range(WORLD)]
    mean_loss = sum(rank[f"{case}.loss"] for rank in ranks) / WORLD
    torch.testing.assert_close(mean_loss, alone[f"{case}.loss"], rtol=1e-12, atol=0)
    for parameter in ("image", "text", "log_scale"):
        expected = alone[f"{case}.{parameter}"]
        assert expected.abs().max() > 1e-3
        for rank in ranks:
            torch.testing.assert_close(rank[f"{case}.{parameter}"], expected, rtol=1e-9, atol=1e-13)


def test_codes_follow_the_vectors_of_all_processes(folder):
    alone = codebook(slice(None))
    for rank in range(WORLD):
        found = load_file(folder / f"codes-{rank}.safetensors")
        for name, value in alone.items():
            torch.testing.assert_close(found[name], value, rtol=1e-12, atol=1e-15)


def test_different_batch_sizes_are_refused_on_every_process(folder):
    for rank in range(WORLD):
        message = (folder / f"{rank}.txt").read_text()
        assert "rank 0: B=2" in message and "rank 1: B=3" in message
