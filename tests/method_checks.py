"""What the tests of several methods share: a batch of random pairs, and a run that is cut and goes on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from mmkd_lite.config import RunConfig
from mmkd_lite.methods import build
from mmkd_lite.runs import Run
from mmkd_lite.train import fit


def random_pairs(
    config: RunConfig, ids: Sequence[int], dtype: torch.dtype = torch.float32
) -> dict[str, Tensor]:
    """Pairs with these image ids; every caption is one token longer than the one before."""
    generator = torch.Generator().manual_seed(1)
    size, side = len(ids), config.data.image_size
    tokens = torch.randint(5, 60, (size, config.data.max_tokens), generator=generator)
    for row in range(size):
        tokens[row, 4 + row :] = 0
    return {
        "image": torch.rand(size, 3, side, side, generator=generator, dtype=dtype),
        "tokens": tokens,
        "image_id": torch.tensor(ids),
        "caption_id": torch.arange(size),
    }


def cut_and_resumed(whole: RunConfig, cut: RunConfig, fatal: int = 3, pairs: Any = None) -> Run:
    """Run `whole` through and `cut` with an interruption in step `fatal`; both must end with the same bytes.

    Args:
        whole: Never interrupted.
        cut: The same with another folder.
        fatal: After how many steps it is interrupted.
        pairs: Data in place of the configuration's own.

    Returns:
        The run that was cut and went on.
    """
    first = fit(whole, pairs=pairs)
    method, done = build(cut), []
    ordinary = method.after_step

    def dies() -> None:
        ordinary()
        done.append(1)
        if len(done) == fatal:
            raise InterruptedError

    method.after_step = dies  # type: ignore[method-assign]
    with pytest.raises(InterruptedError):
        fit(cut, method=method, pairs=pairs)
    again = fit(cut, pairs=pairs)
    assert len(done) == fatal  # the second run built a method of its own
    assert [row["step"] for row in again.metrics()] == list(range(1, whole.train.steps + 1))
    for name in ("metrics.jsonl", "model.safetensors"):
        assert (again.dir / name).read_bytes() == (first.dir / name).read_bytes()
    return again


def same_with_gradients(
    found: Mapping[str, Tensor], expected: Mapping[str, Tensor], parameters: Sequence[Tensor]
) -> None:
    """Both must hold the same terms, of the same value and of the same gradient for all parameters."""
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-9, atol=1e-12, msg=name)
        first, second = (
            torch.autograd.grad(term, parameters, retain_graph=True, materialize_grads=True)
            for term in (found[name], value)
        )
        largest = max(part.abs().max() for part in second)
        assert largest > 1e-6, name
        for a, b in zip(first, second, strict=True):
            assert (a - b).abs().max() <= 1e-7 * largest, name
