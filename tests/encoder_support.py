"""What the tests of the encoders share."""

import torch
from torch import Tensor, nn


def perturb(model: nn.Module) -> nn.Module:
    """Move every parameter off its first value, so that a parity test can fail."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    return model


def parameter_count(*models: nn.Module) -> int:
    return sum(parameter.numel() for model in models for parameter in model.parameters())


def relative_error(value: Tensor, expected: Tensor) -> float:
    return float((value.detach() - expected.detach()).norm() / expected.detach().norm())


def compare_gradients(pairs: list[tuple[Tensor, Tensor]], tolerance: float) -> None:
    """Stop at the first pair of parameters whose gradients differ by more than `tolerance`."""
    for index, (own, other) in enumerate(pairs):
        assert own.grad is not None and other.grad is not None
        assert float(other.grad.norm()) > 0, f"pair {index} gets no gradient: a void test"
        error = relative_error(own.grad.flatten(), other.grad.flatten())
        assert error < tolerance, f"pair {index}, shape {tuple(own.shape)}: {error:.2e}"
