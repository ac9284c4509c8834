"""Memory banks: more negatives than the batch holds, from past outputs of the student or of a slow copy of it."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from mmkd_lite.config import RunConfig
from mmkd_lite.losses import info_nce
from mmkd_lite.losses.gather import world
from mmkd_lite.methods.base import Batch
from mmkd_lite.methods.shared_space import LAPTOP_PRESET, SharedSpaceMethod, SpaceOptions
from mmkd_lite.models import Bank
from mmkd_lite.teachers import Teacher

KINDS = ("none", "fifo", "decaying", "momentum")


@dataclass(frozen=True)
class MemoryBankOptions(SpaceOptions):
    """Settings of the memory bank, beside those of the shared space.

    Attributes:
        kind: what the banks hold. "fifo": past outputs of the student; "decaying": the same, weighted by
            gamma**age; "momentum": outputs of a slowly moving copy of the student, which also gives the
            keys; "none": there is no bank. The bank of a frozen teacher is `options.bank` of ssmke.
        bank_size: G, slots of each bank; a multiple of the batch of all processes.
        gamma: decay a step of "decaying", in [0, 1]; 1 is "fifo", 0 is "none".
        max_age: stored rows older than this many steps are left out; 0 sets no limit.
        momentum: m of "momentum", in [0, 1]; 1 keeps the first weights, 0 copies the student every step.
    """

    kind: str = "fifo"
    bank_size: int = 1024
    gamma: float = 0.5
    max_age: int = 0
    momentum: float = 0.995


class MemoryBank(SharedSpaceMethod):
    r"""Contrast a batch against itself and the last G embeddings of each modality (methods.md 8-10).

    .. math:: L = \tfrac12 \mathrm{InfoNCE}(V, W'; s \mid Q_w, b) + \tfrac12 \mathrm{InfoNCE}(W, V'; s \mid Q_v, b),
              \qquad b_g = a_g \log\gamma

    The keys `V'`, `W'` are the student's own outputs V, W with gradient, or the slow copy's without. The
    banks `Q_v`, `Q_w` hold the keys of the last steps; those of the current step enter after the update.

    Source: seed 002, "Contrastive Learning with Memory Bank" and "Decaying Memory Bank", empty there (E002-07);
    thesis, memory_bank.typ. Derived in notebooks/18_memory_banks.ipynb.
    """

    Options = MemoryBankOptions
    default_weights: ClassVar[dict[str, float]] = {"contrast": 1.0}
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "tiny": {"options.bank_size": 64},
        # Few steps ask for a copy that follows faster than the thesis' m = 0.995.
        "laptop": {**LAPTOP_PRESET, "options.momentum": 0.99},
        # Thesis: 65,536 slots a modality and m = 0.995; 7 epochs of 3,264,868 pairs, 2 GPUs with 256 each.
        "full": {"options.kind": "momentum", "options.bank_size": 65536, "train.steps": 44636},
    }
    variants: ClassVar[dict[str, dict[str, Any]]] = {
        "fifo": {"options.kind": "fifo"},
        "decaying": {"options.kind": "decaying"},
        "momentum": {"options.kind": "momentum"},
        "none_slow": {"options.kind": "none", "train.base_lr": 2e-3},
        "fifo_slow": {"options.kind": "fifo", "train.base_lr": 2e-3},
    }

    def __init__(self, config: RunConfig, teacher: Teacher | None) -> None:
        super().__init__(config, teacher)
        options: MemoryBankOptions = config.options
        _check(options)
        self.gamma = options.gamma if options.kind == "decaying" else 1.0
        self.slow_space: Any = None
        if options.kind == "momentum":
            self.slow_space = copy.deepcopy(self.space).requires_grad_(False)
        width = config.image.width
        if options.layout != "none":
            width = options.space_width or width
        names = () if options.kind == "none" else ("image", "text")
        banks = {name: Bank(options.bank_size, width) for name in names}
        for bank in banks.values():
            bank.check_arrivals(config.train.batch_size * world()[1])
        self.banks: Any = nn.ModuleDict(banks)

    def before_step(self, progress: float) -> None:
        """Move the slow copy towards the student, before both run."""
        if self.slow_space is not None:
            update_average(self.slow_space, self.space, self.config.options.momentum)

    def losses(
        self, batch: Batch, targets: dict[str, Tensor], progress: float
    ) -> dict[str, Tensor]:
        """Return `contrast`; the banks hold earlier steps only."""
        ids = batch["image_id"]
        if self.slow_space is None:
            image = self.space.encode_image(batch["image"])
            text = self.space.encode_text(batch["tokens"])
            self._arriving = image.contrast[0].detach(), text.contrast[0].detach(), ids
            return {"contrast": self.contrast(image, text, ids, **self._candidates())}
        with torch.no_grad():  # first, so that its activations are gone when the student's come
            image_key = self.slow_space.encode_image(batch["image"]).contrast[0]
            text_key = self.slow_space.encode_text(batch["tokens"]).contrast[0]
        self._arriving = image_key, text_key, ids
        of_image = self._against(
            self.space.encode_image(batch["image"]).contrast[0], text_key, ids, "text"
        )
        of_text = self._against(
            self.space.encode_text(batch["tokens"]).contrast[0], image_key, ids, "image"
        )
        return {"contrast": (of_image + of_text) / 2}

    def _candidates(self) -> dict[str, Tensor]:
        """Return the banks as `image_text_contrast` takes them."""
        found = {}
        for name, bank in self.banks.items():
            found[f"bank_{name}"] = bank.rows
            found[f"bank_bias_{name}"] = bank.bias(self.gamma, self.config.options.max_age)
            if self.config.options.mask_by_id:
                found["bank_id"] = bank.ids
        return found

    def _against(self, query: Tensor, key: Tensor, ids: Tensor, name: str) -> Tensor:
        """Return InfoNCE of queries (B, d) against keys (B, d) and the bank of the keys' modality."""
        bank, masked = self.banks[name], self.config.options.mask_by_id
        return info_nce(
            query,
            key,
            self.scales[0].value(),
            bank=bank.rows,
            bank_bias=bank.bias(self.gamma, self.config.options.max_age),
            query_id=ids if masked else None,
            key_id=ids if masked else None,
            bank_id=bank.ids if masked else None,
        )

    def after_step(self) -> None:
        """Clamp the scale and store the step's keys."""
        super().after_step()
        *rows, ids = self._arriving
        for name, arriving in zip(("image", "text"), rows, strict=True):
            if name in self.banks:
                self.banks[name].enqueue(arriving, ids)


@torch.no_grad()
def update_average(slow: nn.Module, fast: nn.Module, momentum: float) -> None:
    r"""Move every parameter of `slow` towards that of `fast`, and copy the buffers.

    .. math:: \theta_k \leftarrow m\, \theta_k + (1 - m)\, \theta_q

    Args:
        slow: the module that follows, of the same structure as `fast`.
        fast: the module that is trained; unchanged.
        momentum: m in [0, 1]; 1 leaves `slow` as it is, 0 makes it equal `fast`, both exactly.

    Source: thesis, memory_bank.typ; methods.md 10. Derived in notebooks/18_memory_banks.ipynb.
    """
    for parameter, ahead in zip(slow.parameters(), fast.parameters(), strict=True):
        parameter.lerp_(ahead, 1.0 - momentum)
    for buffer, current in zip(slow.buffers(), fast.buffers(), strict=True):
        buffer.copy_(current)


def _check(options: MemoryBankOptions) -> None:
    if options.kind not in KINDS:
        raise ValueError(
            f"options.kind={options.kind!r} is unknown; valid: {', '.join(KINDS)} "
            "(a frozen teacher's bank is options.bank of the method ssmke)"
        )
    if options.layout == "vlmo":
        raise ValueError("options.layout='vlmo' contrasts twice, a memory bank holds one output")
    for name in ("gamma", "momentum"):
        if not 0.0 <= getattr(options, name) <= 1.0:
            raise ValueError(f"options.{name}={getattr(options, name)} must lie in [0, 1]")
    if options.max_age < 0:
        raise ValueError(f"options.max_age={options.max_age} must be at least 0 (0: no limit)")
