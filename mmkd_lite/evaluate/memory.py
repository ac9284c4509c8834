"""How much memory one forward pass needs, counted tensor by tensor: the same on every machine."""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from torch import Tensor, UntypedStorage, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from mmkd_lite.evaluate.cost import check_runnable, run
from mmkd_lite.evaluate.embed import evaluation_mode


class Memory(NamedTuple):
    """Bytes of the weights (parameters and buffers) and of the most activations alive at once."""

    weights: int
    activations: int

    @property
    def peak(self) -> int:
        """Both together, in bytes."""
        return self.weights + self.activations


class _Live(TorchDispatchMode):
    """Adds up the storages that operations make, for as long as they live."""

    def __init__(self, known: Iterable[UntypedStorage]) -> None:
        super().__init__()
        self.now = self.peak = 0
        self.alive = {storage._cdata for storage in known}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        for made in tree_leaves(result):
            if isinstance(made, Tensor) and made.untyped_storage()._cdata not in self.alive:
                storage = made.untyped_storage()
                self.alive.add(storage._cdata)
                weakref.finalize(storage, self._free, storage._cdata, storage.nbytes())
                self.now += storage.nbytes()
        self.peak = max(self.peak, self.now)
        return result

    def _free(self, address: int, size: int) -> None:
        self.alive.discard(address)
        self.now -= size


def peak_memory(model: nn.Module, inputs: Mapping[str, Any]) -> Memory:
    """Return the bytes that a forward pass in eval mode needs, without gradients.

    Every tensor that an operation returns counts until its last user lets go of it. Given inputs do not count, nor
    does what a kernel allocates for itself, nor the libraries' own memory.

    Args:
        model: Any module, on any device; on "meta" nothing is computed.
        inputs: Argument names of its `forward` to values.

    Raises:
        ValueError: No module, or inputs that it does not run on.

    Used in notebooks/36_size_and_speed.ipynb.
    """
    check_runnable(model, inputs)
    tensors = [*model.parameters(), *model.buffers()]
    weights = {tensor.untyped_storage()._cdata: tensor.untyped_storage() for tensor in tensors}
    given = [value.untyped_storage() for value in inputs.values() if isinstance(value, Tensor)]
    live = _Live([*weights.values(), *given])
    with evaluation_mode(model), live:
        run(model, inputs)
    return Memory(sum(storage.nbytes() for storage in weights.values()), live.peak)
