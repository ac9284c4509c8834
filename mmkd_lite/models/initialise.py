"""First weights: random ones, drawn the same way everywhere, or the first layers of a teacher."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

EMBEDDING_STD = 0.02
BLOCK_NAME = re.compile(r"^transformer\.blocks\.(\d+)\.")
FINAL_NORM_PREFIX = "transformer.final_norm."
POSITION_TABLE = "positions.table"
TOKEN_TABLE = "token_embedding.weight"


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Build models with weights that depend on `seed` alone; the outer random state is untouched.

    Example:
        with seeded(0):
            encoder = ImageEncoder(config, image_size=64)
    """
    with torch.random.fork_rng(devices=[]):
        torch.random.manual_seed(seed)
        yield


def initialise_weights(module: nn.Module, generator: torch.Generator | None = None) -> None:
    """Draw every weight from a normal that is cut at two standard deviations; biases are 0.

    The standard deviation is 1/sqrt(inputs) for linear layers, so that signals keep their size at
    any width, and 0.02 for embeddings, positions and [CLS]. BERT and ViT use 0.02 throughout, which
    suits a width of 768 but makes towers of width 96 start slowly.

    LayerNorm starts as the identity; the embedding of padding is 0. The order of drawing is that of
    `named_modules`, so equal architecture and equal random state give equal bytes on CPU.

    Args:
        module: any module of `mmkd_lite.models`; changed in place.
        generator: source of randomness; None means the global random state (see `seeded`).

    Source: LeCun et al. 1998, section 4.6; no seed document gives a rule. Derived in
    notebooks/03_transformer_block.ipynb.
    """
    for child in module.modules():
        if isinstance(child, nn.LayerNorm):
            nn.init.ones_(child.weight)
            nn.init.zeros_(child.bias)
            continue
        for name, parameter in child.named_parameters(recurse=False):
            if name == "bias":
                nn.init.zeros_(parameter)
            else:
                std = child.in_features**-0.5 if isinstance(child, nn.Linear) else EMBEDDING_STD
                _draw(parameter, std, generator)
        if isinstance(child, nn.Embedding) and child.padding_idx is not None:
            with torch.no_grad():
                child.weight[child.padding_idx].zero_()


def _draw(parameter: Tensor, std: float, generator: torch.Generator | None) -> None:
    nn.init.trunc_normal_(parameter, std=std, a=-2 * std, b=2 * std, generator=generator)


@dataclass(frozen=True)
class CopyReport:
    """What `copy_first_layers` did, by parameter name of the student."""

    copied: tuple[str, ...]
    cut: tuple[str, ...]  # position tables of which only the first rows were taken
    fresh: tuple[str, ...]  # left as they were initialised

    def __str__(self) -> str:
        return (
            f"copied {len(self.copied)} tensors ({len(self.cut)} cut to length), "
            f"{len(self.fresh)} left fresh"
        )


def copy_first_layers(
    student: nn.Module, teacher_state: Mapping[str, Tensor], layers: int, prefix: str = ""
) -> CopyReport:
    """Start an encoder from the embeddings and the first blocks of a trained one.

    Everything before the blocks ([CLS], positions, token or patch embedding, normalisation of the
    input) and blocks 0 .. layers-1 are copied. The final LayerNorm belongs to the teacher's last
    block: it is copied only when student and teacher both end after `layers` blocks. Of a longer
    table of text positions the first rows are taken.

    Args:
        student: an `ImageEncoder` or `TextEncoder`; changed in place.
        teacher_state: `state_dict` of an encoder of the same class, same width and vocabulary.
        layers: how many blocks to copy, 0 .. the smaller of both depths.
        prefix: what the teacher's names start with, e.g. "encoder.".

    Returns:
        The names that were copied, cut and left fresh.

    Raises:
        ValueError: too few blocks, a name that the teacher lacks, or shapes that differ. Nothing is
            changed in that case.

    Source: seed 002 and methods.md 1-3 ("first 6 teacher blocks + CLS + patch projection +
    positions"). Derived in notebooks/05_teachers.ipynb.
    """
    source = {k[len(prefix) :]: v for k, v in teacher_state.items() if k.startswith(prefix)}
    own = student.state_dict()
    depth, teacher_depth = _depth(own), _depth(source)
    if not 0 <= layers <= min(depth, teacher_depth):
        raise ValueError(
            f"cannot copy {layers} blocks: the student has {depth}, the teacher {teacher_depth}"
        )
    same_end = layers == depth == teacher_depth
    wanted = [name for name in own if _is_wanted(name, layers, same_end)]
    missing = [name for name in wanted if name not in source]
    if missing:
        raise ValueError(
            f"the teacher's weights lack {', '.join(missing[:5])}; it must be an encoder of the "
            "same class, norm and kind of positions"
        )
    sequential = TOKEN_TABLE in own
    chosen = {name: _fit(name, source[name], own[name], sequential) for name in wanted}
    cut = tuple(name for name in wanted if chosen[name].shape != source[name].shape)
    student.load_state_dict({**own, **chosen})
    return CopyReport(tuple(wanted), cut, tuple(name for name in own if name not in chosen))


def _depth(names: Mapping[str, Tensor]) -> int:
    numbers = [int(found.group(1)) for found in map(BLOCK_NAME.match, names) if found]
    return max(numbers, default=-1) + 1


def _is_wanted(name: str, layers: int, same_end: bool) -> bool:
    block = BLOCK_NAME.match(name)
    if block:
        return int(block.group(1)) < layers
    return same_end or not name.startswith(FINAL_NORM_PREFIX)


def _fit(name: str, source: Tensor, own: Tensor, sequential: bool) -> Tensor:
    """Return what the student takes of a tensor; a text's positions may be cut, a grid's not."""
    longer = source.shape[1:] == own.shape[1:] and len(source) > len(own)
    if sequential and name == POSITION_TABLE and longer:
        return source[: len(own)]
    if source.shape != own.shape:
        raise ValueError(
            f"{name} has shape {tuple(source.shape)} in the teacher but {tuple(own.shape)} in the "
            "student; give both the same width, vocabulary, patch and picture size"
        )
    return source
