"""How the self-supervised image teachers are made: pictures with hidden patches, and no labels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmkd_lite.config import RunConfig
from mmkd_lite.data import draws
from mmkd_lite.data.batches import global_rows
from mmkd_lite.losses import mean_squared_error
from mmkd_lite.methods.base import Batch, Method
from mmkd_lite.models import PreNormBlock, initialise_weights, patchify
from mmkd_lite.models.classifier import HeadlessImageModel
from mmkd_lite.models.initialise import EMBEDDING_STD
from mmkd_lite.teachers import Teacher

PRESET: dict[str, Any] = {
    "image.start": "",
    "text.start": "",
    "image.layers": 4,
    "train.batch_size": 128,
    "train.base_lr": 8e-3,
    "train.weight_decay": 0.05,
    "train.checkpoint_every": 100,
}
PIXEL_VARIANCE_FLOOR = 2.5e-4
"""Added to the variance of a patch, so that the rounding noise of a plain one is not blown up."""


@dataclass(frozen=True)
class MaskedFeaturesOptions:
    """Settings of masked feature regression.

    Attributes:
        masked: share of each picture's patches that are hidden, in (0, 1).
        early: which layer's patch states the decoder sees, 0 (the embeddings) to `image.layers` - 1.
    """

    masked: float = 0.6
    early: int = 1


@dataclass(frozen=True)
class MaskedLatentsOptions:
    """Settings of masked latent regression.

    Attributes:
        masked: share of each picture's patches that are hidden, in (0, 1).
        top: how many of the last layers the target averages.
        decay: first and last decay of the moving average; linear in between.
    """

    masked: float = 0.6
    top: int = 3
    decay: tuple[float, float] = (0.99, 0.999)


class MaskedPatches(Method):
    """Base: an image encoder whose input has some patch embeddings replaced by one learned vector."""

    presets: ClassVar[dict[str, dict[str, Any]]] = {"laptop": PRESET}

    def __init__(self, config: RunConfig, teacher: Teacher | None = None) -> None:
        super().__init__(config, teacher)
        self.model = HeadlessImageModel(config.image, config.data.image_size)
        self.mask = nn.Parameter(torch.empty(config.image.width))
        nn.init.trunc_normal_(self.mask, std=EMBEDDING_STD)

    @classmethod
    def open_data(cls, config: RunConfig) -> MaskedPictures:
        """Return the stream of pictures and of what to hide."""
        return MaskedPictures(config)

    def masked_states(self, images: Tensor, masked: Tensor) -> list[Tensor]:
        """Return [H_0, ..., H_L], each (B, 1+N, D), of images (B, 3, S, S) of which `masked` (B, N) is hidden."""
        encoder = self.model.encoder
        seen = encoder.embed(images)  # (B, 1+N, D)
        blank = encoder.embedding_norm(encoder.positions(self.mask.expand(1, seen.shape[1], -1)))
        hidden = F.pad(masked, (1, 0))[:, :, None]  # (B, 1+N, 1), [CLS] is never hidden
        return encoder.transformer.hidden_states(torch.where(hidden, blank, seen))

    def encode_image(self, images: Tensor) -> Tensor:
        """Map images (B, 3, H, W) in [0, 1] to [CLS] at unit length."""
        return F.normalize(self.model.features(images), dim=-1)


class MaskedFeatures(MaskedPatches):
    r"""Reconstruct hidden patches from the final [CLS] and *early* patch states: [CLS] is a bottleneck.

    .. math:: L = \frac{1}{|M| P} \sum_{n \in M} \| g([h^L_{cls}; h^l_1, \dots, h^l_N])_n - \bar x_n \|^2

    `g` is one block and a linear map, l the early layer, `x_n` what a frozen teacher makes of patch n (BEiTv2's
    visual tokens come from CLIP) or, without a teacher, its pixels; the P numbers are brought to mean 0 and
    variance 1. What the layers after l find out can reach the loss through [CLS] only, so [CLS] has to
    aggregate the picture.

    Source: Peng et al. 2022 (BEiTv2), sections 2.3 and 2.4, with features in place of visual tokens. Shown in
    notebooks/05_teachers.ipynb.
    """

    Options = MaskedFeaturesOptions
    default_weights: ClassVar[dict[str, float]] = {"features": 1.0}

    def __init__(self, config: RunConfig, teacher: Teacher | None = None) -> None:
        super().__init__(config, teacher)
        tower, early = config.image, config.options.early
        if not 0 <= early < tower.layers:
            raise ValueError(
                f"options.early={early} must lie in 0..image.layers-1={tower.layers - 1}"
            )
        hidden = round(tower.width * tower.mlp_ratio)
        side = config.data.image_size
        size = self.patch_values(torch.zeros(1, 3, side, side)).shape[-1]
        self.decoder = nn.Sequential(
            PreNormBlock(tower.width, tower.heads, hidden, tower.layer_norm_eps),
            nn.LayerNorm(tower.width, eps=tower.layer_norm_eps),
            nn.Linear(tower.width, size),
        )
        initialise_weights(self.decoder)

    @torch.no_grad()
    def patch_values(self, images: Tensor) -> Tensor:
        """Return the target (B, N, P) of every patch of whole images (B, 3, S, S)."""
        if self.teacher is None:
            pixels = patchify(images, self.config.image.patch)
            return standardised(pixels, -1, PIXEL_VARIANCE_FLOOR)
        model = self.teacher.model
        encoder = getattr(model, "image_encoder", None) or model.encoder
        return standardised(encoder(self.teacher.fit_size(images))[:, 1:], -1)

    def targets(self, batch: Batch) -> dict[str, Tensor]:
        """Return `patches` (B, N, P)."""
        return {"patches": self.patch_values(batch["image"])}

    def losses(
        self, batch: Batch, targets: dict[str, Tensor], progress: float
    ) -> dict[str, Tensor]:
        """Return `features`, the squared error at the hidden patches."""
        masked = batch["masked"]
        states = self.masked_states(batch["image"], masked)
        guess = self.decode(states[-1][:, 0], states[self.config.options.early][:, 1:])
        return {"features": mean_squared_error(guess[masked], targets["patches"][masked])}

    def decode(self, cls: Tensor, patches: Tensor) -> Tensor:
        """Return the guess for all patches (B, N, P) from [CLS] (B, D) and patch states (B, N, D)."""
        return self.decoder(torch.cat([cls[:, None], patches], dim=1))[:, 1:]


class MaskedLatents(MaskedPatches):
    r"""Predict, at the hidden patches, what a moving average of the encoder makes of the whole picture.

    .. math:: L = \frac{1}{|M| D} \sum_{n \in M} \| g(h^L_n) - y_n \|^2, \qquad
        y = \frac1K \sum_{l=L-K+1}^{L} \mathrm{IN}(\bar h^l)

    `IN` brings each channel to mean 0 and variance 1 over the patches of a picture. The average follows the
    encoder after each step, `ema <- d ema + (1 - d) encoder`. [CLS] has no objective of its own.

    Source: Baevski et al. 2022 (data2vec 2.0), sections 3.1 and 3.2. Shown in notebooks/05_teachers.ipynb.
    """

    Options = MaskedLatentsOptions
    presets: ClassVar[dict[str, dict[str, Any]]] = {"tiny": {"options.top": 1}, "laptop": PRESET}
    default_weights: ClassVar[dict[str, float]] = {"latents": 1.0}

    def __init__(self, config: RunConfig, teacher: Teacher | None = None) -> None:
        super().__init__(config, None)
        options, width = config.options, config.image.width
        if not 1 <= options.top <= config.image.layers:
            raise ValueError(
                f"options.top={options.top} must lie in 1..image.layers={config.image.layers}"
            )
        if not all(0.0 <= decay <= 1.0 for decay in options.decay):
            raise ValueError(f"options.decay={options.decay} must be two numbers in [0, 1]")
        self.head = nn.Sequential(
            nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width)
        )
        initialise_weights(self.head)
        self.ema = HeadlessImageModel(config.image, config.data.image_size)
        self.ema.load_state_dict(self.model.state_dict())
        self.ema.requires_grad_(False)

    def before_step(self, progress: float) -> None:
        """Let the average follow the encoder; at the very first step both are equal."""
        first, last = self.config.options.decay
        decay = first + (last - first) * progress
        for mean, value in zip(self.ema.parameters(), self.model.parameters(), strict=True):
            mean.lerp_(value, 1 - decay)

    @torch.no_grad()
    def latents(self, images: Tensor) -> Tensor:
        """Return the target (B, N, D) of every patch of whole images (B, 3, S, S)."""
        _, states = self.ema.eval().encoder(images, return_hidden=True)
        top = [standardised(state[:, 1:], 1) for state in states[-self.config.options.top :]]
        return torch.stack(top).mean(0)

    def losses(
        self, batch: Batch, targets: dict[str, Tensor], progress: float
    ) -> dict[str, Tensor]:
        """Return `latents`, the squared error at the hidden patches."""
        masked = batch["masked"]
        guess = self.head(self.masked_states(batch["image"], masked)[-1][:, 1:][masked])
        return {"latents": mean_squared_error(guess, self.latents(batch["image"])[masked])}


def standardised(values: Tensor, dim: int, floor: float = 1e-5) -> Tensor:
    """Return `values` at mean 0 and variance 1 along `dim`; `floor` is added to the variance."""
    variance, mean = torch.var_mean(values, dim=dim, correction=0, keepdim=True)
    return (values - mean) * (variance + floor).rsqrt()


class MaskedPictures:
    """Endless training pictures of one to three objects; a batch is a pure function of configuration and step."""

    size = None

    def __init__(self, config: RunConfig, split: str = "train") -> None:
        from mmkd_lite.data.pictures import EmojiPictures

        share = config.options.masked
        self.patches = (config.data.image_size // config.image.patch) ** 2
        self.hidden = round(share * self.patches)
        if not 0 < self.hidden < self.patches:
            raise ValueError(
                f"options.masked={share} hides {self.hidden} of {self.patches} patches; it must leave "
                "some hidden and some not"
            )
        self.seed = config.seed
        self.pictures = EmojiPictures(
            config.data.image_size, split, seed=config.seed, objects=(1, 3)
        )

    def batch(self, step: int, batch_size: int, rank: int = 0, world: int = 1) -> Batch:
        """Return `image` (B, 3, S, S) in [0, 1] and `masked` (B, N), True at an equal number of patches a row."""
        rows = global_rows(step, batch_size, rank, world)
        draw = torch.as_tensor(draws.uniforms(self.seed, "masked:patches", rows, self.patches))
        masked = torch.zeros(draw.shape, dtype=torch.bool)
        masked.scatter_(1, draw.argsort(dim=1)[:, : self.hidden], True)
        return {
            "image": torch.as_tensor(self.pictures.batch(rows)["image"]).float() / 255,
            "masked": masked,
        }
