"""Time the streaming contrast beside the plain one: `python tests/measure_contrast.py`.

Every measurement is a fresh process, so that its peak memory is its own; the two implementations
take turns, so that a machine that slows down slows both. Notebook 02 draws the file that this
writes.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil  # type: ignore[import-untyped]
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor

from mmkd_lite.losses.contrast import image_text_contrast
from mmkd_lite.storage import write_json

SCALE = 1 / 0.07
OUTPUT = Path(__file__).resolve().parents[1] / "data" / "results" / "streaming_contrast.json"
BYTES_PER_UNIT = 1 if sys.platform == "darwin" else 1024  # of ru_maxrss


def two_matrix_contrast(image: Tensor, text: Tensor, scale: Tensor | float) -> Tensor:
    """Compute the symmetric contrast the plain way, with one (B, B) matrix for each direction.

    Args:
        image: (B, D), rows of length 1.
        text: (B, D), rows of length 1.
        scale: The exponentiated logit scale.

    Returns:
        The same 0-d tensor as `image_text_contrast`.
    """
    own = torch.arange(len(image), device=image.device)
    to_text = F.cross_entropy(scale * image @ text.T, own)
    to_image = F.cross_entropy(scale * text @ image.T, own)
    return (to_text + to_image) / 2


IMPLEMENTATIONS: dict[str, Callable[..., Tensor]] = {
    "plain": two_matrix_contrast,
    "streaming": image_text_contrast,
}


def pairs(batch: int, width: int) -> list[Tensor]:
    """Return image (B, D), text (B, D) of cosine about 0.4, and scale: leaves with gradient.

    Made in place: memory that was freed before the measurement would be used again unseen.
    """
    generator = torch.Generator().manual_seed(0)
    image, text = (torch.empty(batch, width).normal_(generator=generator) for _ in range(2))
    image /= torch.linalg.vector_norm(image, dim=1, keepdim=True)
    text *= 2.2 / torch.linalg.vector_norm(text, dim=1, keepdim=True)
    text += image
    text /= torch.linalg.vector_norm(text, dim=1, keepdim=True)
    return [tensor.requires_grad_() for tensor in (image, text, torch.tensor(SCALE))]


def extra_memory(before: int) -> int:
    """Return how far this process' peak resident size lies above `before`, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * BYTES_PER_UNIT - before


def measure_here(name: str, batch: int, width: int, folder: Path) -> None:
    """Run one implementation forward and backward once; write figures and results into `folder`."""
    function = IMPLEMENTATIONS[name]
    warm_up = pairs(256, width)
    torch.autograd.backward(function(*warm_up))
    inputs = pairs(batch, width)
    memory = psutil.Process().memory_info().rss
    start, cpu_start = time.perf_counter(), time.process_time()
    value = function(*inputs)
    torch.autograd.backward(value)
    seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - cpu_start
    extra = extra_memory(memory)
    results = {"value": value.detach()}
    for key, tensor in zip(("image", "text", "scale"), inputs, strict=True):
        assert tensor.grad is not None
        results[key] = tensor.grad
    save_file(results, folder / f"{name}.safetensors")
    figures = {"seconds": seconds, "cpu_seconds": cpu_seconds, "extra_bytes": extra}
    figures["threads"] = torch.get_num_threads()
    (folder / f"{name}.json").write_text(json.dumps(figures))


def measure(name: str, batch: int, width: int, folder: Path) -> dict[str, Any]:
    """Run `measure_here` in a process of its own and return its figures."""
    command = [sys.executable, __file__, "--here", name]
    command += ["--batch", str(batch), "--width", str(width), "--output", str(folder)]
    subprocess.run(command, check=True)
    figures: dict[str, Any] = json.loads((folder / f"{name}.json").read_text())
    return figures


def deviations(folder: Path) -> dict[str, float]:
    """Return how far values and gradients of the two are apart, relative to the plain ones."""
    plain, streaming = (load_file(folder / f"{name}.safetensors") for name in IMPLEMENTATIONS)
    apart = {}
    for key, right in plain.items():
        difference = streaming[key].double() - right.double()
        apart[key] = float(difference.norm() / right.double().norm())
    value = apart.pop("value")
    return {"value_deviation": value, "gradient_deviation": max(apart.values())}


def compare(batch: int, width: int, repeats: int) -> dict[str, Any]:
    """Measure both in turns at one batch size: the best of the times, the worst of the memory."""
    row: dict[str, Any] = {"batch": batch}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        runs = [{kind: measure(kind, batch, width, folder) for kind in IMPLEMENTATIONS}
                for _ in range(repeats)]  # fmt: skip
        row |= deviations(folder)
    for kind in IMPLEMENTATIONS:
        for figure in ("seconds", "cpu_seconds"):
            row[f"{kind}_{figure}"] = min(run[kind][figure] for run in runs)
        row[f"{kind}_extra_bytes"] = max(run[kind]["extra_bytes"] for run in runs)
    row["speed_up"] = row["plain_seconds"] / row["streaming_seconds"]
    row["memory_ratio"] = row["plain_extra_bytes"] / max(row["streaming_extra_bytes"], 1)
    row["threads"] = runs[0]["plain"]["threads"]
    return row


def line(row: dict[str, Any]) -> str:
    """Return one row of `compare` as a line of text."""
    return (
        f"B={row['batch']:6d}"
        f"  plain {row['plain_seconds']:6.2f} s {row['plain_extra_bytes'] / 1e6:7.1f} MB"
        f"  tiles {row['streaming_seconds']:6.2f} s {row['streaming_extra_bytes'] / 1e6:6.1f} MB"
        f"  {row['speed_up']:.2f} times as fast, memory 1/{row['memory_ratio']:.1f}"
        f"  apart: value {row['value_deviation']:.0e}, gradient {row['gradient_deviation']:.0e}"
    )


def main() -> None:
    """Measure at the batch sizes asked for, print a table and write the JSON file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--batch", type=int, nargs="+", default=[2048, 4096, 8192, 16384])
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--output", type=Path, default=OUTPUT)
    parser.add_argument("--here", choices=tuple(IMPLEMENTATIONS), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.here:
        measure_here(options.here, options.batch[0], options.width, options.output)
        return
    rows = []
    for batch in options.batch:
        row = compare(batch, options.width, options.repeats)
        rows.append(row)
        print(line(row), flush=True)
    about = {"command": "python tests/measure_contrast.py", "torch": torch.__version__}
    about |= {"dtype": "float32", "width": options.width, "repeats": options.repeats}
    write_json(options.output, about | {"rows": rows})


if __name__ == "__main__":
    main()
