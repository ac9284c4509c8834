"""Loss and gradient of 64 pairs against two banks of 65,536 x 512: prints seconds and memory as JSON."""

from __future__ import annotations

import json
import time

import torch
import torch.nn.functional as F

from mmkd_lite.losses import image_text_contrast
from mmkd_lite.models import Bank

PAIRS, SLOTS, WIDTH = 64, 65_536, 512


def megabytes(field: str) -> float:
    """Memory of this process: "VmRSS" now, "VmHWM" at most; `getrusage` would count its parent's as well."""
    with open("/proc/self/status", encoding="ascii") as file:
        found = next(line for line in file if line.startswith(field))
    return int(found.split()[1]) * 1024 / 1e6


def filled_bank(generator: torch.Generator) -> Bank:
    bank = Bank(SLOTS, WIDTH)
    for start in range(0, SLOTS, 4096):
        rows = F.normalize(torch.randn(4096, WIDTH, generator=generator), dim=-1)
        bank.enqueue(rows, torch.arange(start, start + 4096))
    return bank


def measure() -> dict[str, float]:
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(0)
    sides = torch.randn(2, PAIRS, WIDTH, generator=generator).requires_grad_()
    scale = torch.tensor(1 / 0.07, requires_grad=True)
    before = megabytes("VmRSS")
    banks = filled_bank(generator), filled_bank(generator)
    started = time.perf_counter()
    unit = F.normalize(sides, dim=-1)
    loss = image_text_contrast(
        unit[0],
        unit[1],
        scale,
        bank_image=banks[0].rows,
        bank_text=banks[1].rows,
        bank_bias_image=banks[0].bias(0.99),
        bank_bias_text=banks[1].bias(0.99),
        image_id=torch.arange(PAIRS),
        bank_id=banks[0].ids,
    )
    loss.backward()
    seconds = time.perf_counter() - started
    assert sides.grad is not None and scale.grad is not None
    return {
        "loss": loss.item(),
        "gradient_norm": sides.grad.norm().item(),
        "scale_gradient": scale.grad.item(),
        "filled": int((banks[0].age > 0).sum()),
        "banks_mb": 2 * banks[0].rows.nbytes / 1e6,
        "extra_mb": megabytes("VmHWM") - before,
        "seconds": seconds,
    }


if __name__ == "__main__":
    print(json.dumps(measure()))
