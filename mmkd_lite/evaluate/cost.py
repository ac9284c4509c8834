"""What a model costs: its parameters."""

from __future__ import annotations

from torch import nn


def count_parameters(model: nn.Module, trainable: bool = False) -> int:
    """Count the numbers in a model's parameters; a shared one counts once, buffers do not.

    Args:
        model: Any module.
        trainable: Count only those that require a gradient.

    Source: seed 003, Table 4.5. Derived in notebooks/36_size_and_speed.ipynb.
    """
    return sum(p.numel() for p in model.parameters() if p.requires_grad or not trainable)
