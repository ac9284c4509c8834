"""How the image quantiser is made: squeeze a teacher's [CLS] through one of J codes and restore it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from mmkd_lite.config import RunConfig
from mmkd_lite.losses import cosine_distance, mean_squared_error
from mmkd_lite.methods.base import Batch, Method
from mmkd_lite.methods.shared_space import feature_width
from mmkd_lite.models.classifier import TimmClassifier
from mmkd_lite.models.quantizer import STARTS, Codebook, ImageQuantizer, Quantized, perplexity
from mmkd_lite.teachers import Teacher

CHUNK = 256


@dataclass(frozen=True)
class QuantiserOptions:
    """Settings of the quantiser; see `mmkd_lite.models.quantizer`.

    Attributes:
        codes: J, number of codes.
        code_width: S, size of a code.
        decay: of the codes' moving average, in [0, 1).
        start: "kmeans" or "random" first codes.
        start_images: pictures whose vectors k-means sees; at least J.
        revive_after: updates after which an idle code is moved; 0 never.
        masked: share of patches hidden from the decoder, in [0, 1].
        decoder_layers: 1 in the thesis; 0 reconstructs from the code alone.
    """

    codes: int = 128
    code_width: int = 8
    decay: float = 0.99
    start: str = "kmeans"
    start_images: int = 1024
    revive_after: int = 0
    masked: float = 0.9
    decoder_layers: int = 1


class Quantiser(Method):
    r"""Train the image quantiser on pictures alone (thesis, image vector quantisation).

    .. math:: L = 1 - \cos(\hat h, h) + \| \tilde z - \mathrm{sg}[q_m] \|_2^2

    `h` is the frozen teacher's [CLS], `z` its image under the down-projection, `q_m` the nearest code and
    `\hat h` the reconstruction. The codes follow by a moving average after each step. Reported beside the
    loss, with weight 0: the share of codes used in the last 10 steps (all count as used at the start), and
    the perplexity of the batch.

    Source: methods.md 14; errata ET-21. Derived in notebooks/17_quantised_targets.ipynb.
    """

    Options = QuantiserOptions
    default_teacher = "bottleneck"
    default_weights: ClassVar[dict[str, float]] = {
        "reconstruction": 1.0,
        "commitment": 1.0,
        "usage": 0.0,
        "perplexity": 0.0,
    }
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "tiny": {"options.codes": 16, "options.start_images": 64},
        "laptop": {
            "image.start": "",
            "text.start": "",
            "train.batch_size": 128,
            "train.steps": 200,
            "train.base_lr": 2e-3,
        },
        # Thesis: ImageNet-1K, 10 epochs, 512 pictures in all, lr 1e-3; ours reads the pictures of the pairs.
        "full": {
            "teacher": "timm:vit_base_patch16_224.dino",
            "text.start": "",
            "options.codes": 1024,
            "options.code_width": 16,
            "options.start_images": 8192,
            "train.steps": 25020,
            "train.base_lr": 5e-4,
        },
    }
    variants: ClassVar[dict[str, dict[str, Any]]] = {
        "kmeans": {},
        "wide_random": {"options.code_width": 32, "options.start": "random"},
    }

    def __init__(self, config: RunConfig, teacher: Teacher | None) -> None:
        super().__init__(config, teacher)
        if teacher is None:
            raise ValueError("quantiser needs an image teacher whose vectors it quantises")
        self.quantizer = build_quantizer(config, teacher)

    def targets(self, batch: Batch) -> dict[str, Tensor]:
        """Return the teacher's `cls` (B, D) and, with a decoder, its `patches` (B, N, D)."""
        return teacher_vectors(self.teacher, batch["image"], self.quantizer)

    def losses(
        self, batch: Batch, targets: dict[str, Tensor], progress: float
    ) -> dict[str, Tensor]:
        """Return `reconstruction`, `commitment`, `usage` and `perplexity`."""
        codebook = self.quantizer.codebook
        if not codebook.started:
            options: QuantiserOptions = self.config.options
            images = pictures(self.config, options.start_images, targets["cls"].device)
            cls = torch.cat([self.teacher.features(part) for part in images])  # type: ignore[union-attr]
            start_codes(self.quantizer, cls, self.config)
        terms, quantized = quantizer_terms(self.quantizer, targets["cls"], targets.get("patches"))
        self._assigned = quantized.unit.detach(), quantized.index
        return terms | {
            "usage": (codebook.idle < 10).float().mean(),
            "perplexity": perplexity(quantized.index, len(codebook.vectors)),
        }

    def after_step(self) -> None:
        """Move the codes."""
        self.quantizer.codebook.update(*self._assigned)


def build_quantizer(config: RunConfig, teacher: Teacher) -> ImageQuantizer:
    """Build the quantiser that the options describe, for the teacher's width.

    Raises:
        ValueError: a bad option, or a codebook larger than the data it starts from.
    """
    options = config.options
    if options.start not in STARTS:
        raise ValueError(f"options.start={options.start!r} must be one of: {', '.join(STARTS)}")
    if options.codes > options.start_images:
        raise ValueError(
            f"a codebook of options.codes={options.codes} is larger than the data it starts from, "
            f"options.start_images={options.start_images}; lower the first or raise the second"
        )
    codebook = Codebook(options.codes, options.code_width, options.decay, options.revive_after)
    width = feature_width(teacher, config.data.image_size)
    layers = options.decoder_layers
    return ImageQuantizer(width, codebook, config.image.heads, options.masked, layers)


@torch.no_grad()
def start_codes(quantizer: ImageQuantizer, cls: Tensor, config: RunConfig) -> None:
    """Give the codes their first values from teacher vectors (N, D)."""
    quantizer.codebook.start(quantizer.down(cls), config.options.start, config.seed)


def quantizer_terms(
    quantizer: ImageQuantizer, cls: Tensor, patches: Tensor | None
) -> tuple[dict[str, Tensor], Quantized]:
    """Return `reconstruction` and `commitment` (summed over S, averaged over rows), and the codes."""
    restored, quantized = quantizer(cls, patches)
    codes = quantizer.codebook.vectors[quantized.index]
    commitment = codes.shape[1] * mean_squared_error(quantized.unit, codes)
    terms = {"reconstruction": cosine_distance(restored, cls), "commitment": commitment}
    return terms, quantized


def teacher_vectors(
    teacher: Teacher | None, images: Tensor, quantizer: ImageQuantizer
) -> dict[str, Tensor]:
    """Return what a frozen teacher says of pictures: `cls` (B, D), and `patches` (B, N, D) for a decoder.

    Raises:
        ValueError: a decoder, and a teacher that has no patch vectors.
    """
    assert teacher is not None
    if quantizer.decoder is None:
        return {"cls": teacher.features(images)}
    model, images = teacher.model, teacher.fit_size(images)
    if isinstance(model, TimmClassifier):
        sequence = model.encoder.forward_features((images - model.mean) / model.std)
        first = getattr(model.encoder, "num_prefix_tokens", 0)
    else:
        sequence, first = model.encoder(images), 1
    if sequence.ndim != 3:
        raise ValueError(
            f"teacher {teacher.name!r} has no patch vectors; use options.decoder_layers=0"
        )
    timm = isinstance(model, TimmClassifier)
    cls = model.encoder.forward_head(sequence, pre_logits=True) if timm else sequence[:, 0]
    return {"cls": cls, "patches": sequence[:, first:]}


def pictures(config: RunConfig, count: int, device: torch.device) -> Iterator[Tensor]:
    """Give the first `count` pictures of the training stream in batches (b, 3, H, W)."""
    from mmkd_lite.data.pairs import open_pairs

    pairs = open_pairs(config)
    for step in range(-(-count // CHUNK)):
        yield pairs.batch(step, min(CHUNK, count))["image"][: count - step * CHUNK].to(device)


def fit_quantizer(
    quantizer: ImageQuantizer, vectors: dict[str, Tensor], config: RunConfig
) -> ImageQuantizer:
    """Train a quantiser on teacher vectors that are at hand: `cls` (N, D) and, for a decoder, `patches`.

    Random numbers come from the global state; the caller seeds it. Returns the same quantiser.
    """
    options = config.options
    start_codes(quantizer, vectors["cls"], config)
    optimizer = torch.optim.AdamW(quantizer.parameters(), options.fit_rate, weight_decay=0.01)
    for _ in range(options.fit_steps):
        rows = torch.randint(len(vectors["cls"]), (options.fit_batch,))
        batch = {name: values[rows.to(values.device)] for name, values in vectors.items()}
        terms, quantized = quantizer_terms(quantizer, batch["cls"], batch.get("patches"))
        optimizer.zero_grad()
        (terms["reconstruction"] + terms["commitment"]).backward()
        optimizer.step()
        quantizer.codebook.update(quantized.unit.detach(), quantized.index)
    return quantizer


def quantizer_of_run(folder: str, config: RunConfig) -> ImageQuantizer:
    """Return the quantiser of a finished run of the method "quantiser".

    Raises:
        ValueError: it belongs to another teacher or has another shape than `config` asks for.
        FileNotFoundError: no finished run.
    """
    from mmkd_lite.runs import Run

    run = Run.open(folder)
    for name in ("teacher", "options.codes", "options.code_width", "options.decoder_layers"):
        theirs, ours = run.config, config
        for part in name.split("."):
            theirs, ours = getattr(theirs, part), getattr(ours, part)
        if theirs != ours:
            raise ValueError(
                f"the quantiser in {folder} has {name}={theirs!r}, this run asks for {ours!r}: set {name}={theirs!r}"
            )
    quantizer = run.load_method().quantizer
    assert isinstance(quantizer, ImageQuantizer)
    return quantizer
