"""AdamW with and without decay, the learning-rate schedule, and the optimiser's state by name."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from mmkd_lite.config import TrainConfig

# A parameter whose own name (the part after the last dot) holds one of these is a vector that is
# looked up or put in place, not a matrix that is multiplied with: it is not decayed in any shape.
NOT_DECAYED = ("cls", "token", "position", "embedding", "table", "scale")


def learning_rate(step: int, steps: int, peak: float, warmup_fraction: float = 0.1) -> float:
    r"""Linear warm-up, then half a cosine down to zero; a pure function of the step.

    .. math:: \eta_s = \eta \frac{s + 1}{w} \; (s < w), \qquad
              \eta_s = \frac{\eta}{2} \Big(1 + \cos \pi \frac{s - w}{S - w}\Big) \; (s \ge w)

    Args:
        step: s, updates done so far, 0 to `steps` - 1.
        steps: S, updates of the whole run.
        peak: The highest rate.
        warmup_fraction: w / S, in [0, 1]; w is rounded to a whole number of steps.

    Raises:
        ValueError: `step` or `warmup_fraction` is out of range.
    """
    if not 0 <= step < steps:
        raise ValueError(f"step {step} is outside a run of {steps} steps; use 0 to {steps - 1}")
    if not 0.0 <= warmup_fraction <= 1.0:
        raise ValueError(f"train.warmup_fraction={warmup_fraction} must lie in [0, 1]")
    warmup = round(warmup_fraction * steps)
    if step < warmup:
        return peak * (step + 1) / warmup
    return peak * 0.5 * (1.0 + math.cos(math.pi * (step - warmup) / (steps - warmup)))


def is_decayed(
    name: str, parameter: Tensor, owner: nn.Module, decay_embeddings: bool = False
) -> bool:
    """Tell whether weight decay applies to a parameter: only to matrices that multiply something.

    Biases, norms and log scales (at most one dimension), lookup tables (`nn.Embedding`) and
    parameters named after a class token, a position or an embedding are left alone.

    Args:
        name: Name of the parameter within `owner`.
        parameter: The parameter itself, of any shape.
        owner: The module that holds it.
        decay_embeddings: Decay lookup tables and class tokens all the same; see notebook 13.
    """
    if isinstance(owner, nn.Embedding) or "cls" in name:
        return decay_embeddings
    if parameter.ndim <= 1:
        return False
    return not any(word in name for word in NOT_DECAYED)


def parameter_groups(module: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Split the trainable parameters of `module` in those that decay and those that do not.

    Args:
        module: Any module; frozen parameters are left out, shared ones appear once. Where it or a
            part of it (a `Method`) has a true `decay_embeddings`, lookup tables and class tokens decay.
        weight_decay: Decay of the first group; the second has 0.

    Returns:
        Groups for a torch optimiser with the keys `params`, `names` (in the same order),
        `weight_decay` and `part`: the entry of the method's `rate_scales` that the names begin with,
        "" for none. A group without parameters is left out.

    Raises:
        ValueError: Nothing in `module` can be trained.
    """
    embeddings = any(getattr(part, "decay_embeddings", False) for part in module.modules())
    parts = {
        f"{path}.{start}".lstrip("."): start
        for path, owner in module.named_modules()
        for start in getattr(owner, "rate_scales", ())
    }
    groups: dict[tuple[bool, str], dict[str, nn.Parameter]] = {}
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            owner_name, _, own_name = name.rpartition(".")
            owner = module.get_submodule(owner_name)
            decays = is_decayed(own_name, parameter, owner, embeddings)
            part = next((own for start, own in parts.items() if name.startswith(start)), "")
            groups.setdefault((decays, part), {})[name] = parameter
    if not groups:
        raise ValueError(
            f"{type(module).__name__} has no trainable parameter; nothing can be trained"
        )
    return [
        {
            "params": list(group.values()),
            "names": list(group),
            "weight_decay": weight_decay if decays else 0.0,
            "part": part,
        }
        for (decays, part), group in sorted(groups.items(), key=lambda item: not item[0][0])
    ]


def build_optimizer(module: nn.Module, train: TrainConfig) -> torch.optim.AdamW:
    """AdamW over the groups of `module`; the learning rate is set before every step.

    Args:
        module: Already on the device where it is trained.
        train: Gives betas, eps and weight decay.
    """
    return torch.optim.AdamW(
        parameter_groups(module, train.weight_decay),
        lr=train.base_lr,
        betas=train.betas,
        eps=train.eps,
        fused=True,  # one call for all tensors: at width 96 five times as fast as one by one
    )


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """State of the optimiser as "<parameter>/<quantity>" -> tensor, for a checkpoint."""
    return {
        f"{name}/{quantity}": value
        for name, parameter in _by_name(optimizer).items()
        for quantity, value in optimizer.state.get(parameter, {}).items()
    }


def load_optimizer_tensors(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    """Put back what `optimizer_tensors` returned.

    Raises:
        ValueError: The state belongs to a parameter that the optimiser does not have.
    """
    parameters = _by_name(optimizer)
    optimizer.state.clear()
    for key, value in tensors.items():
        name, _, quantity = key.rpartition("/")
        if name not in parameters:
            raise ValueError(
                f"the checkpoint has optimiser state for {name!r}, which is not being trained"
            )
        parameter = parameters[name]
        optimizer.state[parameter][quantity] = value.to(parameter.device, copy=True)


def _by_name(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    return {
        name: parameter
        for group in optimizer.param_groups
        for name, parameter in zip(group["names"], group["params"], strict=True)
    }
