"""What `test_distributed.py` runs in two processes and in one: `-m tests.two_processes RANK FOLDER`."""

from __future__ import annotations

import math
import sys
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import nn

from mmkd_lite.losses import (
    hard_bootstrapping,
    image_text_contrast,
    info_nce,
    label_smoothing,
    soft_alignment,
)
from mmkd_lite.models.quantizer import Codebook
from tests.gloo import WORLD, process_group

ROWS, WIDTH, BANK = 3, 6, 4
IDS = torch.tensor([4, 1, 2, 1, 4, 3])  # equal ids both within and across processes


class Towers(nn.Module):
    """Two linear towers with a learnable scale, stored as its logarithm."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(3)
        numbers = torch.randn(2, WIDTH, WIDTH, generator=generator, dtype=torch.float64)
        self.image, self.text = nn.Parameter(numbers[0]), nn.Parameter(numbers[1])
        self.log_scale = nn.Parameter(torch.tensor(math.log(7.0), dtype=torch.float64))

    def forward(self, image, text):
        sides = image @ self.image, text @ self.text
        return *(F.normalize(side, dim=-1) for side in sides), self.log_scale.exp()


def data() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(5)
    numbers = torch.randn(2, WORLD * ROWS, WIDTH, generator=generator, dtype=torch.float64)
    bank = torch.randn(2, BANK, WIDTH, generator=generator, dtype=torch.float64)
    return {"inputs": numbers, "bank": F.normalize(bank, dim=-1)}


def contrast(image, text, scale, ids, bank):
    return image_text_contrast(image, text, scale, chunk_size=2)


def contrast_with_everything(image, text, scale, ids, bank):
    bias = torch.tensor([0.0, -0.5, -torch.inf, -2.0], dtype=torch.float64)
    return image_text_contrast(
        image, text, scale, bank_image=bank[0], bank_text=bank[1], bank_bias_text=bias,
        image_id=ids, bank_id=torch.tensor([1, 8, 9, 4]), chunk_size=2,
    )  # fmt: skip


def one_direction(image, text, scale, ids, bank):
    return info_nce(text, image, scale, bank=bank[0], query_id=ids, key_id=ids)


def soft_targets(image, text, scale, ids, bank):
    """Each process brings a generator of its own; the aligned set of rank 0 counts."""
    generator = torch.Generator().manual_seed(int(ids[0]))
    return soft_alignment(
        image, text, scale, aligned_fraction=0.5, generator=generator, image_id=ids
    )


def smoothed(image, text, scale, ids, bank):
    return label_smoothing(image, text, scale, smoothing=0.2, image_id=ids)


def bootstrapped(image, text, scale, ids, bank):
    return hard_bootstrapping(image, text, scale, trust=0.6, image_id=ids)


CASES = {
    case.__name__: case
    for case in (
        contrast,
        contrast_with_everything,
        one_direction,
        soft_targets,
        smoothed,
        bootstrapped,
    )
}


def codebook(rows: slice) -> dict[str, torch.Tensor]:
    """Return a codebook after three updates, in which codes move, idle and come back to life."""
    generator = torch.Generator().manual_seed(8)
    codes = Codebook(5, WIDTH, decay=0.7, revive_after=1).double()
    codes.vectors.copy_(F.normalize(torch.randn(5, WIDTH, generator=generator).double(), dim=-1))
    for _ in range(3):
        vectors = torch.randn(WORLD * ROWS, WIDTH, generator=generator, dtype=torch.float64)
        unit = F.normalize(vectors, dim=-1)[rows]
        codes.update(unit, codes.nearest(unit))
    return dict(codes.state_dict())


def run(model, rows: slice) -> dict[str, torch.Tensor]:
    """Return the loss and all gradients of every case, computed from the given rows."""
    pairs, bank, results = data()["inputs"][:, rows], data()["bank"], {}
    for name, case in CASES.items():
        model.zero_grad(set_to_none=True)
        loss = case(*model(pairs[0], pairs[1]), IDS[rows], bank)
        loss.backward()
        results[f"{name}.loss"] = loss.detach()
        for parameter, values in getattr(model, "module", model).named_parameters():
            assert values.grad is not None
            results[f"{name}.{parameter}"] = values.grad.clone()
    return results


def refusal(rank: int) -> str:
    """Return the error of processes that bring different batch sizes."""
    rows = F.normalize(torch.ones(2 + rank, WIDTH), dim=-1)
    try:
        image_text_contrast(rows, rows, 7.0)
    except ValueError as error:
        return str(error)
    return "no error"


def main(rank: int, folder: Path) -> None:
    with process_group(rank, folder):
        model = nn.parallel.DistributedDataParallel(Towers())
        rows = slice(rank * ROWS, (rank + 1) * ROWS)
        save_file(run(model, rows), folder / f"{rank}.safetensors")
        save_file(codebook(rows), folder / f"codes-{rank}.safetensors")
        (folder / f"{rank}.txt").write_text(refusal(rank))


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]))
