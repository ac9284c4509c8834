"""What every distillation method is: towers, a frozen teacher, targets and named loss terms."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, ClassVar

from torch import Tensor, nn

from mmkd_lite.config import RunConfig
from mmkd_lite.models import seeded
from mmkd_lite.teachers import Teacher, load_teacher

Batch = dict[str, Tensor]
TARGET = "target:"
"""Prefix of what a batch brings instead of the teacher; see `mmkd_lite/target_cache.py`."""


class Method(nn.Module):
    """A student with its objective; one module per method, see `mmkd_lite/methods/`.

    The teacher is held outside the module tree: it is not in `state_dict()`, not in the optimiser, and stays
    frozen and in eval mode whatever mode the student is in. It still follows `.to(device)`.

    Class attributes:
        Options: frozen dataclass of the method's own settings.
        default_teacher: name for `load_teacher`; "" for methods without one.
        default_weights: weight of each loss term that `losses` returns.
        presets: scale -> dotted settings; "full" is the paper's recipe.
        variants: name -> dotted overrides, the rows of the method's comparison.
        scored_by: "retrieval", or what a student of one modality is scored by: "pictures", "captions" or
            "classes"; see `mmkd_lite/one_modality_scores.py`.
        rate_scales: start of parameter names -> factor of their learning rate; an instance may set its
            own in `__init__` and change the factors (not the names) in `before_step`.
        continues: whether training goes on from the trained model that `options.start` names.
        decay_embeddings: whether weight decay reaches lookup tables and [CLS]; may be set by an instance.

    Source: the shape of seed 000's Codes 3 and 4. Used from notebook 15 on.
    """

    Options: ClassVar[type]
    default_teacher: ClassVar[str] = ""
    default_weights: ClassVar[dict[str, float]] = {}
    presets: ClassVar[dict[str, dict[str, Any]]] = {}
    variants: ClassVar[dict[str, dict[str, Any]]] = {}
    rate_scales: Mapping[str, float] = MappingProxyType({})
    decay_embeddings: bool = False
    continues: ClassVar[bool] = False
    scored_by: ClassVar[str] = "retrieval"
    teacher: Teacher | None

    def __init__(self, config: RunConfig, teacher: Teacher | None) -> None:
        super().__init__()
        self.config = config
        object.__setattr__(self, "teacher", teacher)

    @classmethod
    def open_data(cls, config: RunConfig) -> Any:
        """Return the stream of training batches that `config.data` describes; see `mmkd_lite.data.pairs`."""
        from mmkd_lite.data.pairs import open_pairs

        return open_pairs(config)

    def targets(self, batch: Batch) -> dict[str, Tensor]:
        """Return the teacher's part for a batch; called without gradient, and the one thing a cache stores."""
        return {}

    def before_step(self, progress: float) -> None:
        """Do what comes before the forward pass: schedules, momentum updates. `progress` runs from 0 to 1."""

    def losses(
        self, batch: Batch, targets: dict[str, Tensor], progress: float
    ) -> dict[str, Tensor]:
        """Return the unweighted loss terms by name, each a 0-d tensor."""
        raise NotImplementedError(
            f"{type(self).__name__} must define losses(batch, targets, progress)"
        )

    def after_step(self) -> None:
        """Do what comes after the optimiser's step: clamp scales, enqueue, update codebooks."""

    def encode_image(self, images: Tensor) -> Tensor:
        """Map images (B, 3, H, W) in [0, 1] to unit vectors (B, D)."""
        raise NotImplementedError(f"{type(self).__name__} has no image tower")

    def encode_text(self, tokens: Tensor) -> Tensor:
        """Map token ids (B, M) to unit vectors (B, D)."""
        raise NotImplementedError(f"{type(self).__name__} has no text tower")

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> Method:
        if self.teacher is not None:
            self.teacher._apply(fn)
        return super()._apply(fn, recurse)


def build(config: RunConfig, teacher: Teacher | None = None) -> Method:
    """Build the method that `config` names, with seeded initial weights and its frozen teacher.

    The global random state is left as it was: two calls with one configuration give equal weights.

    Args:
        config: from `resolve` or `from_dict`.
        teacher: used instead of the one that `config.teacher` names.

    Raises:
        ValueError: unknown teacher, or a teacher that the method cannot use.
    """
    from mmkd_lite.methods import METHODS

    if teacher is None and config.teacher:
        teacher = load_teacher(config.teacher, seed=config.seed)
    with seeded(config.seed):
        return METHODS[config.method](config, teacher)
