"""The distiller: a method's loss terms, weighted and summed, with the teacher kept frozen."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from mmkd_lite.methods.base import TARGET, Batch, Method

RESERVED = frozenset({"step", "loss", "gradient_norm", "learning_rate", "stop"})
"""Names that a row of metrics uses itself."""


class Distiller(nn.Module):
    r"""Turn a method's named terms into the one number that is minimised.

    .. math:: L = \sum_k w_k L_k

    A term of weight 0 is reported but takes no part in the gradient; a term without a weight counts
    once. `forward` is `step_loss`, so that distributed training can wrap this module.

    Args:
        method: Student, objective and frozen teacher.
        weights: Weight of each term, by name; finite numbers.

    Raises:
        ValueError: A weight is not finite, or every weight is 0.

    Source: the training step of seed 000's Codes 3 and 4. Used from notebook 15 on.
    """

    def __init__(self, method: Method, weights: Mapping[str, float]) -> None:
        super().__init__()
        broken = [name for name, weight in weights.items() if not math.isfinite(weight)]
        if broken:
            raise ValueError(f"weights must be finite numbers; not so: {', '.join(broken)}")
        if weights and not any(weights.values()):
            raise ValueError(f"every weight is 0 ({', '.join(weights)}): nothing would be trained")
        self.method = method
        self.weights = dict(weights)

    def train(self, mode: bool = True) -> Distiller:
        """Set the student's mode; the teacher stays in eval mode."""
        super().train(mode)
        self._freeze_teacher()
        return self

    def _freeze_teacher(self) -> None:
        teacher = self.method.teacher
        if isinstance(teacher, nn.Module) and teacher.training:
            teacher.eval()

    def forward(self, batch: Batch, progress: float) -> tuple[Tensor, dict[str, Tensor]]:
        """Do `step_loss`."""
        return self.step_loss(batch, progress)

    def step_loss(self, batch: Batch, progress: float) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the weighted sum, with gradient, and every term, without.

        Args:
            batch: Tensors of first dimension B: `image` (B, 3, H, W), `tokens` (B, M), ids (B,);
                "target:NAME" tensors, where present, are used instead of asking the teacher.
            progress: Share of the run that is done, in [0, 1].

        Raises:
            ValueError: Tensors of different B, a weight for a term that the method does not have, a
                term that is not a single number, or terms that no trainable parameter influences.
        """
        check_batch(batch)
        self._freeze_teacher()
        targets = {k.removeprefix(TARGET): v for k, v in batch.items() if k.startswith(TARGET)}
        batch = {k: v for k, v in batch.items() if not k.startswith(TARGET)}
        if not targets:
            with torch.no_grad():
                targets = self.method.targets(batch)
        terms = self.method.losses(batch, targets, progress)
        self._check_terms(terms)
        weighted = [
            weight * term
            for name, term in terms.items()
            if (weight := self.weights.get(name, 1.0)) != 0.0
        ]
        total = torch.stack(weighted).sum()  # ()
        if torch.is_grad_enabled() and not total.requires_grad:
            raise ValueError(
                f"no trainable parameter influences {', '.join(terms)}; is the student frozen?"
            )
        return total, {name: term.detach() for name, term in terms.items()}

    def _check_terms(self, terms: Mapping[str, Tensor]) -> None:
        unknown = sorted(set(self.weights) - set(terms))
        if unknown:
            raise ValueError(
                f"unknown loss terms in weights: {', '.join(unknown)}; "
                f"{type(self.method).__name__} has: {', '.join(terms)}"
            )
        reserved = sorted(set(terms) & RESERVED)
        if reserved:
            raise ValueError(f"loss terms need other names than {', '.join(reserved)}")
        for name, term in terms.items():
            if term.ndim != 0:
                raise ValueError(
                    f"loss term {name!r} must be one number, got shape {tuple(term.shape)}; "
                    "reduce it over the batch in the method"
                )


def check_batch(batch: Batch) -> None:
    """Check that all tensors of a batch describe the same examples.

    Raises:
        ValueError: Empty, or first dimensions differ; the message lists them.
    """
    sizes = {name: (tensor.shape[0] if tensor.ndim else None) for name, tensor in batch.items()}
    if len(set(sizes.values())) != 1 or None in sizes.values() or 0 in sizes.values():
        raise ValueError(f"a batch needs tensors of one non-zero first dimension, got {sizes}")
