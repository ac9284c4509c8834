"""What a model costs: its parameters, and the floating-point operations of one forward pass, by module."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from mmkd_lite.evaluate.embed import evaluation_mode

aten = torch.ops.aten
OPAQUE = (
    aten._native_multi_head_attention,
    aten._transformer_encoder_layer_fwd,
    aten._trilinear,
    aten.mkldnn_rnn_layer,
    aten._cudnn_rnn,
    torch.ops.quantized.linear,
    torch.ops.quantized.linear_dynamic,
    torch.ops.quantized.conv2d,
)
"""Kernels that hide products in one call: counted as nothing they would be a silent lie, so they are refused."""


class Side(nn.Module):
    """One method of a model as a module of its own, so that it can be counted, timed and exported.

    Args:
        model: The model that holds the weights.
        method: Name of a method with one tensor as argument, such as "encode_image".

    Raises:
        ValueError: The model has no such method.

    Used in notebooks/36_size_and_speed.ipynb.
    """

    def __init__(self, model: nn.Module, method: str) -> None:
        super().__init__()
        if not callable(getattr(model, method, None)):
            raise ValueError(f"{type(model).__name__} has no method {method!r}")
        self.model, self.method = model, method

    def forward(self, inputs: Tensor) -> Tensor:
        """Call the method."""
        return getattr(self.model, self.method)(inputs)


def count_parameters(model: nn.Module, trainable: bool = False) -> int:
    """Count the numbers in a model's parameters; a shared one counts once, buffers do not.

    Args:
        model: Any module.
        trainable: Count only those that require a gradient.

    Raises:
        ValueError: No module.

    Source: seed 003, Table 4.5. Derived in notebooks/36_size_and_speed.ipynb.
    """
    check_runnable(model, {})
    return sum(p.numel() for p in model.parameters() if p.requires_grad or not trainable)


def count_flops(model: nn.Module, inputs: Mapping[str, Any]) -> float:
    r"""Count the floating-point operations of one forward pass in eval mode: 2 x multiply-adds.

    Counted are matrix products, convolutions and both products of attention, with or without a mask and whichever
    kernel computes them. Not counted, as in Table 4.5: additions of biases, norms, softmax, activations, look-ups.

    .. math:: (a \times b)(b \times c) \to 2abc, \qquad
              \text{attention} \to 2 \cdot h \, T S (d_{key} + d_{value})

    PyTorch's counter is the base. It misses the fused attention of CPUs, fused Transformer and recurrent layers and
    matrix-vector products; those are added here or computed by kernels that it sees.

    Args:
        model: Any module, on any device; on "meta" nothing is computed.
        inputs: Argument names of its `forward` to values, on the model's device. The batch counts.

    Raises:
        ValueError: No module, inputs that it does not run on, or a kernel that cannot be counted.

    Source: seed 003, Table 4.5. Derived in notebooks/36_size_and_speed.ipynb.
    """
    return float(sum(flops_by_operation(model, inputs).values()))


def flops_by_operation(model: nn.Module, inputs: Mapping[str, Any]) -> dict[str, float]:
    """Return the FLOPs of one forward pass by kind: "linear", "convolution" and "attention products".

    Attention that is written out appears as batched products (`bmm`), which are counted under "attention products".

    Args:
        model: See `count_flops`.
        inputs: See `count_flops`.

    Raises:
        ValueError: See `count_flops`.
    """
    kinds = {"linear": 0.0, "convolution": 0.0, "attention products": 0.0}
    for operation, flops in _count(model, inputs).get("Global", {}).items():
        name = str(operation)
        inner = "attention" in name or "bmm" in name
        kind = "convolution" if "conv" in name else "attention products" if inner else "linear"
        kinds[kind] += flops
    return kinds


def cost_table(model: nn.Module, inputs: Mapping[str, Any], depth: int = 1) -> list[dict[str, Any]]:
    """Return parameters and FLOPs of a model and of its modules, in the order of their definition.

    Args:
        model: See `count_flops`.
        inputs: See `count_flops`.
        depth: How deep modules are listed; 0 is the whole model alone.

    Returns:
        Rows with "module" (dotted name, "total" for the whole), "parameters" and "flops". A module's row holds
        those of its children; what a module does outside its children is the rest.

    Raises:
        ValueError: See `count_flops`.
    """
    counted, root = _count(model, inputs), type(model).__name__

    def flops(name: str, module: nn.Module) -> float:
        path = f"{root}.{name}" if name else root
        if path in counted:
            return float(sum(counted[path].values()))
        below = ((f"{name}.{child}".lstrip("."), part) for child, part in module.named_children())
        return sum(flops(child, part) for child, part in below)  # never called itself: a list

    return [
        {
            "module": name or "total",
            "parameters": count_parameters(module),
            "flops": flops(name, module),
        }
        for name, module in model.named_modules()
        if not name or name.count(".") < depth
    ]


def _count(model: nn.Module, inputs: Mapping[str, Any]) -> dict[str, dict[Any, int]]:
    """Run the model once; return FLOPs by path of module and by kernel, the whole under "Global"."""
    check_runnable(model, inputs)
    counter = FlopCounterMode(display=False, custom_mapping=_formulas())
    with evaluation_mode(model), _visible_kernels(), counter:
        run(model, inputs)
    return counter.get_flop_counts()


def check_runnable(model: nn.Module, inputs: Mapping[str, Any]) -> None:
    """Refuse what is no module, and inputs without argument names.

    Raises:
        ValueError: Either is of another type.
    """
    if not isinstance(model, nn.Module):
        raise ValueError(
            f"a {type(model).__name__} is no torch module; for one method of a model give "
            "Side(model, 'encode_image')"
        )
    if not isinstance(inputs, Mapping):
        raise ValueError(
            f"inputs is a {type(inputs).__name__}; give a dict of the arguments of forward, as "
            "{'inputs': images}"
        )


def run(model: nn.Module, inputs: Mapping[str, Any]) -> Any:
    """Call the model and say what was given where it does not fit.

    Raises:
        ValueError: The model does not run on these inputs.
    """
    try:
        return model(**inputs)
    except (TypeError, RuntimeError, IndexError, AttributeError) as error:
        given = ", ".join(
            f"{name} {tuple(value.shape)} {str(value.dtype).removeprefix('torch.')} on {value.device}"
            if isinstance(value, Tensor)
            else f"{name} {type(value).__name__}"
            for name, value in inputs.items()
        )
        raise ValueError(
            f"{type(model).__name__} does not run on [{given}]: {str(error).strip().splitlines()[0]}"
        ) from error


def _formulas() -> dict[Any, Any]:
    """Return FLOPs from shapes for kernels that PyTorch's counter does not know."""

    def attention(
        query: Sequence[int], key: Sequence[int], value: Sequence[int], *_: Any, **__: Any
    ) -> int:
        return 2 * math.prod(query[:-1]) * key[-2] * (query[-1] + value[-1])

    def refuse(*_: Any, **__: Any) -> int:
        raise ValueError(
            "it uses a fused or quantised kernel whose products cannot be counted; count the plain model"
        )

    return {
        aten._scaled_dot_product_flash_attention_for_cpu: attention,
        aten._scaled_dot_product_flash_attention: attention,
        aten._scaled_dot_product_efficient_attention: attention,
        aten._scaled_dot_product_cudnn_attention: attention,
        aten._scaled_dot_product_fused_attention_overrideable: attention,
        aten.mv: lambda matrix, vector, **_: 2 * math.prod(matrix),
        aten.addmv: lambda start, matrix, vector, **_: 2 * math.prod(matrix),
        aten.dot: lambda a, b, **_: 2 * math.prod(a),
        aten.vdot: lambda a, b, **_: 2 * math.prod(a),
        aten.addbmm: lambda start, a, b, **_: 2 * math.prod(a) * b[-1],
        **dict.fromkeys(OPAQUE, refuse),
    }


@contextmanager
def _visible_kernels() -> Iterator[None]:
    """Turn off fused layers of which the counter would see one opaque call; values stay the same."""
    fast = torch.backends.mha.get_fastpath_enabled()
    libraries: tuple[Any, ...] = (torch.backends.mkldnn, torch.backends.cudnn)
    before = [library.enabled for library in libraries]
    try:
        torch.backends.mha.set_fastpath_enabled(False)
        for library in libraries:
            library.enabled = False
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
        for library, enabled in zip(libraries, before, strict=True):
            library.enabled = enabled
