"""A model outside PyTorch: export to ONNX, run it with onnxruntime, store its weights in 8 bits."""

from __future__ import annotations

import importlib.util
import inspect
import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn

from mmkd_lite.evaluate.cost import check_runnable, run
from mmkd_lite.evaluate.embed import evaluation_mode
from mmkd_lite.storage import atomic_file

INPUT, OUTPUT = "inputs", "vectors"
EXPORTER = "onnxscript"
"""What PyTorch's exporter is built on."""


class OnnxModel:
    """An ONNX file as a function from a tensor to a tensor on the CPU, with as many threads as torch.

    Args:
        path: A file that `export_onnx` or `quantise_onnx` wrote.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is not an ONNX model that onnxruntime can run.
    """

    def __init__(self, path: str | Path) -> None:
        import onnxruntime

        self.path = Path(path)
        if not self.path.exists():
            raise FileNotFoundError(f"no ONNX model {self.path.name}; write it with export_onnx")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.log_severity_level = 3  # errors only
        try:
            self.session = onnxruntime.InferenceSession(
                self.path.as_posix(), options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # onnxruntime's own types, one for each way to be broken
            raise ValueError(f"{self.path.name} is not a readable ONNX model: {error}") from error

    def __call__(self, inputs: Tensor) -> Tensor:
        """Return the model's output.

        Raises:
            ValueError: Inputs of another shape or type than those it was exported with.
        """
        try:
            (found,) = self.session.run([OUTPUT], {INPUT: inputs.detach().cpu().numpy()})
        except Exception as error:
            raise ValueError(
                f"{self.path.name} does not run on {tuple(inputs.shape)} {inputs.dtype}: {error}"
            ) from error
        return torch.from_numpy(found)


def export_onnx(
    model: nn.Module, example: Tensor, path: str | Path, free: Sequence[int] = (0,)
) -> Path:
    """Write a model with one input and one output as an ONNX file, whole or not at all.

    Args:
        model: Exported in eval mode; of a two-tower model give `Side(model, "encode_image")`.
        example: An input of at least 2 rows.
        path: Ends in ".onnx".
        free: Dimensions of the input that may vary later.

    Returns:
        The path.

    Raises:
        ValueError: No module, or an example that it does not run on or that has a free dimension of size 1.

    Used in notebooks/36_size_and_speed.ipynb.
    """
    check_runnable(model, {INPUT: example})
    if importlib.util.find_spec(EXPORTER) is None:
        raise ValueError(f"the export needs {EXPORTER}: pip install -r requirements.txt")
    short = [axis for axis in free if example.shape[axis] < 2]
    if short:
        raise ValueError(f"example has size 1 in the free dimensions {short}; give at least 2")
    shapes = ({axis: torch.export.Dim.DYNAMIC for axis in free},)
    with evaluation_mode(model), atomic_file(path) as unfinished, _quiet():
        run(model, {next(iter(inspect.signature(model.forward).parameters)): example})
        program = torch.onnx.export(
            model,
            (example,),
            input_names=[INPUT],
            output_names=[OUTPUT],
            dynamic_shapes=shapes,
            dynamo=True,
            verbose=False,
        )
        assert program is not None
        for node in program.model.graph.all_nodes():
            node.metadata_props.clear()  # notes with folders of this machine, larger than small models
        program.save(unfinished)
    return Path(path)


def quantise_onnx(source: str | Path, target: str | Path) -> Path:
    """Write an ONNX model with its weights in 8 bits and activations quantised as they come.

    Each column of a weight matrix has its own step and zero, a table of embeddings one for all. Products of two
    activations, as in attention, stay in 32 bits, and so do norms and softmax. Weights are unsigned: signed ones
    overflow on some processors.

    Args:
        source: From `export_onnx`.
        target: Another path.

    Raises:
        FileNotFoundError: There is no source.

    Used in notebooks/36_size_and_speed.ipynb.
    """
    from onnxruntime.quantization import QuantType, quantize_dynamic

    if not Path(source).exists():
        raise FileNotFoundError(f"no ONNX model {Path(source).name}; write it with export_onnx")
    with atomic_file(target) as unfinished, _quiet():
        quantize_dynamic(Path(source), unfinished, per_channel=True, weight_type=QuantType.QUInt8)
    return Path(target)


def largest_deviation(a: Tensor, b: Tensor) -> float:
    """Return the largest absolute difference of two results of the same shape.

    Raises:
        ValueError: Shapes that differ, or numbers that are not finite.
    """
    if a.shape != b.shape or not len(a):
        raise ValueError(f"cannot compare results of shapes {tuple(a.shape)} and {tuple(b.shape)}")
    for name, values in (("first", a), ("second", b)):
        if not bool(torch.isfinite(values).all()):
            raise ValueError(f"the {name} result holds NaN or infinite numbers")
    return float((a.double() - b.double()).abs().max())


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep exporters from talking: neither their warnings nor their log concern the reader."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
