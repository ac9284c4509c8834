"""What `test_maps_distributed.py` runs in two processes and in one: `-m tests.two_processes_maps RANK FOLDER`."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import nn

from mmkd_lite import losses
from mmkd_lite.embeddings import Embeddings
from tests.gloo import WORLD, process_group
from tests.two_processes import IDS, ROWS, WIDTH, Towers

CASES = {
    "sum": losses.similarity_map_distillation,
    "mean": lambda s, t: losses.similarity_map_distillation(
        s, t, inter_weight=0.5, intra_weight=2.0, reduction="mean"
    ),
    "divergence": losses.similarity_map_divergence,
    "feature": losses.feature_distillation,
    "relational": losses.relational_distillation,
    "affinity": losses.affinity_mimicking,
    "interactive": losses.interactive_contrast,
}


def run(model, rows: slice) -> dict[str, torch.Tensor]:
    """Return the loss and all gradients of every case, computed from the given rows."""
    generator = torch.Generator().manual_seed(5)
    inputs = torch.randn(4, WORLD * ROWS, WIDTH, generator=generator, dtype=torch.float64)[:, rows]
    teacher, results = Embeddings(*F.normalize(inputs[2:], dim=-1), 5.0), {}
    for name, case in CASES.items():
        model.zero_grad(set_to_none=True)
        student = Embeddings(*model(inputs[0], inputs[1]))
        extra = {"image_id": IDS[rows]} if name == "interactive" else {}
        loss = case(student, teacher, **extra)
        (loss + 0 * student.scale).backward()  # DDP wants every parameter to take part
        results[f"{name}.loss"] = loss.detach()
        for parameter, values in getattr(model, "module", model).named_parameters():
            results[f"{name}.{parameter}"] = values.grad.clone()
    return results


def main(rank: int, folder: Path) -> None:
    with process_group(rank, folder):
        model = nn.parallel.DistributedDataParallel(Towers())
        save_file(run(model, slice(rank * ROWS, (rank + 1) * ROWS)), folder / f"{rank}.safetensors")
        uneven = Embeddings(*[F.normalize(torch.ones(2 + rank, WIDTH), dim=-1)] * 2)
        try:
            losses.similarity_map_distillation(uneven, uneven)
        except ValueError as error:
            (folder / f"{rank}.txt").write_text(str(error))


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]))
