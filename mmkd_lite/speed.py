"""How fast this machine is, as a multiple of the one that the stated times were measured on."""

from __future__ import annotations

import os
import statistics
import time

NOMINAL_STEP_SECONDS = 0.031
"""Median seconds of a reference step on two idle cores of the machine that times are stated for."""

THREADS = 2
"""Threads for torch when `OMP_NUM_THREADS` is not set; stored outputs were made with two."""

STEPS = 20
"""Reference steps that are timed, after two to warm up."""


def use_threads() -> None:
    """Fix torch's number of threads, so that sums are split, and rounded, alike everywhere."""
    import torch

    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS") or THREADS))


def measure_speed(steps: int = STEPS) -> float:
    """Time reference training steps and return this machine's speed, 1.0 being nominal.

    The step never changes with the package: a two-block Transformer of width 96 over a batch of 128
    sequences of 17 tokens, forward, backward and AdamW, on the CPU.

    Args:
        steps: How many steps are timed; the median counts.
    """
    import torch
    from torch import nn

    use_threads()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        block = nn.TransformerEncoderLayer(96, 4, 384, dropout=0.0, batch_first=True)
        model = nn.TransformerEncoder(block, 2, enable_nested_tensor=False)
        tokens = torch.randn(128, 17, 96)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    seconds = []
    for _ in range(steps + 2):
        start = time.perf_counter()
        model(tokens).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        seconds.append(time.perf_counter() - start)
    return NOMINAL_STEP_SECONDS / statistics.median(seconds[2:])
