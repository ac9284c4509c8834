"""Stagewise unimodal distillation: first each tower alone from its own teacher, then both by contrast."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor, nn

from mmkd_lite.config import RunConfig
from mmkd_lite.losses import hidden_state_distillation
from mmkd_lite.losses.hidden_states import average_of_layers
from mmkd_lite.methods.base import Batch
from mmkd_lite.methods.shared_space import LAPTOP_PRESET, SharedSpaceMethod, SpaceOptions
from mmkd_lite.methods.towers import build_towers, vocabulary_size
from mmkd_lite.methods.unimodal import refuse_other
from mmkd_lite.models import ImageEncoder, TextEncoder
from mmkd_lite.teachers import Teacher, load_teacher

TOWERS = ("space.image_encoder.", "space.text_encoder.")
OFF = {"weights.hidden_image": 0.0, "weights.hidden_text": 0.0}


@dataclass(frozen=True)
class StagewiseOptions(SpaceOptions):
    """Settings of stagewise distillation, beside those of the shared space.

    Attributes:
        stages: 2, or 1 to train all terms from the start to the end.
        stage_one: share of the steps in stage 1, in (0, 1); unused with one stage.
        tower_rate: learning rate of the towers in stage 2 as a share of the other layers', in [0, 1];
            0 freezes them.
        text_teacher: name of the text teacher; `teacher` is the image teacher.
        teacher_layers: with teacher="" both teachers are towers like the student's, of so many layers ...
        image_teacher_start: ... with these weights, "timm:NAME"; `text_teacher` is "transformers:NAME".
    """

    stages: int = 2
    stage_one: float = 0.5
    tower_rate: float = 0.0
    text_teacher: str = "text"
    teacher_layers: int = 0
    image_teacher_start: str = ""


class Guides(nn.Module):
    """The encoders of both teachers, behind the interface of one."""

    def __init__(self, image: ImageEncoder, text: TextEncoder) -> None:
        super().__init__()
        self.image, self.text = image, text

    def features(self, inputs: Tensor) -> Tensor:
        """Return [CLS] (B, D) of images or token ids."""
        return (self.image if inputs.ndim == 4 else self.text)(inputs)[:, 0]


class Stagewise(SharedSpaceMethod):
    r"""Distil the image tower and the text tower, then teach the two to meet (our definition).

    .. math:: L_1 = H_v + H_w, \qquad L_2 = C(\tilde h_v, \tilde h_w; s), \qquad
              L_{\text{one stage}} = H_v + H_w + C

    `H` is the hidden-state loss of notebook 10, `C` the contrast after the shared layers. Stage 1 leaves
    the shared layers alone. In stage 2 the towers stand still or follow at a smaller learning rate; a
    frozen tower gets no gradient, so neither weight decay nor Adam's momentum moves it. Both stages are
    parts of one run: one warm-up, one cosine.

    Source: a heading without text in seed 002 (errata E002-07), so this is methods.md 6.
    Derived in notebooks/14_stagewise.ipynb.
    """

    Options = StagewiseOptions
    default_teacher = "vit"
    default_weights: ClassVar[dict[str, float]] = {
        "hidden_image": 1.0,
        "hidden_text": 1.0,
        "contrast": 1.0,
    }
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "tiny": {
            "data.image_size": 48,
            "image.width": 96,
            "image.layers": 3,
            "text.width": 96,
            "text.layers": 3,
        },
        "laptop": LAPTOP_PRESET,
        # No source. Towers and teachers as in unimodal distillation, data and steps as in the thesis.
        "full": {
            "teacher": "",
            "image.start": "timm:vit_base_patch16_224.mae",
            "options.teacher_layers": 12,
            "options.image_teacher_start": "timm:vit_base_patch16_224.mae",
            "options.text_teacher": "transformers:bert-base-uncased",
            "train.steps": 89273,
        },
    }
    variants: ClassVar[dict[str, dict[str, Any]]] = {
        "two_stage_frozen": {},
        "two_stage_slow": {"options.tower_rate": 0.1},
        "two_stage_free": {"options.tower_rate": 1.0},
        "one_stage": {"options.stages": 1},
        "contrast_only": {"options.stages": 1, **OFF},
    }
    teacher: Teacher

    def __init__(self, config: RunConfig, teacher: Teacher | None) -> None:
        _check(config)
        super().__init__(config, None)
        object.__setattr__(self, "teacher", _both_teachers(config, teacher))
        self.stage = 1
        self.trained_towers = [
            parameter
            for tower in (self.space.image_encoder, self.space.text_encoder)
            for parameter in tower.parameters()
            if parameter.requires_grad
        ]
        self.rate_scales = dict.fromkeys(TOWERS, 1.0)

    def before_step(self, progress: float) -> None:
        """Enter the stage that `progress` lies in: who trains, and how fast."""
        two = self.config.options.stages == 2
        self.stage = 2 if two and progress >= self.config.options.stage_one else 1
        rate = self.config.options.tower_rate if self.stage == 2 else 1.0
        self.rate_scales = dict.fromkeys(TOWERS, rate)
        for parameter in self.trained_towers:
            parameter.requires_grad_(rate > 0)

    def targets(self, batch: Batch) -> dict[str, Tensor]:
        """Return the teachers' `image` (B, 1+N, D) and `text` (B, M, D); nothing where unused."""
        weights = self.config.weights
        if self.stage == 2 or not (weights["hidden_image"] or weights["hidden_text"]):
            return {}
        guides, tokens = self.teacher.model, batch["tokens"]
        pictures = guides.image(batch["image"], return_hidden=True)[1]
        captions = guides.text(tokens, return_hidden=True)[1]
        return {
            "image": _summary(pictures),
            "text": _summary(captions, tokens != self.space.text_encoder.pad_id),
        }

    def losses(
        self, batch: Batch, targets: dict[str, Tensor], progress: float
    ) -> dict[str, Tensor]:
        """Return `hidden_image`, `hidden_text` and `contrast`; 0 for a term of the other stage."""
        space, tokens = self.space, batch["tokens"]
        mask = tokens != space.text_encoder.pad_id
        nothing = batch["image"].new_zeros(())
        terms = {"hidden_image": nothing, "hidden_text": nothing, "contrast": nothing}
        if self.stage == 2 or not targets:  # a cache brings targets at every step
            encoded = space.encode_image(batch["image"]), space.encode_text(tokens)
            return terms | {"contrast": self.contrast(*encoded, batch["image_id"])}
        pictures = space.image_encoder(batch["image"], return_hidden=True)[1]
        captions = space.text_encoder(tokens, return_hidden=True)[1]
        image, text = _summary(pictures), _summary(captions, mask)
        terms["hidden_image"] = hidden_state_distillation(image, targets["image"])
        terms["hidden_text"] = hidden_state_distillation(text, targets["text"], mask)
        if self.config.options.stages == 1:
            encoded = (
                space.encode_sequence(pictures[-1], None, "image"),
                space.encode_sequence(captions[-1], mask, "text"),
            )
            terms["contrast"] = self.contrast(*encoded, batch["image_id"])
        return terms


def _summary(states: list[Tensor], mask: Tensor | None = None) -> Tensor:
    """Return (B, T, D), the mean over layers of instance-normalised states; images have no mask."""
    return average_of_layers(states[1:], mask, layer_norm=mask is None)


def _both_teachers(config: RunConfig, teacher: Teacher | None) -> Teacher:
    """Return both teachers as one, so that one fingerprint covers them.

    Raises:
        ValueError: A teacher of the wrong kind, or of other inputs or width than the student.
    """
    options: StagewiseOptions = config.options
    image: Any
    text: Any
    if teacher is None:
        layers, starts = options.teacher_layers, (options.image_teacher_start, options.text_teacher)
        towers = [
            dataclasses.replace(tower, layers=layers, start=start)
            for tower, start in zip((config.image, config.text), starts, strict=True)
        ]
        image, text = build_towers(dataclasses.replace(config, image=towers[0], text=towers[1]))
        names = starts
    else:
        second = load_teacher(options.text_teacher, seed=config.seed)
        image, text = (getattr(one.model, "encoder", None) for one in (teacher, second))
        names = (teacher.name, second.name)
    for found, kind, name in ((image, ImageEncoder, names[0]), (text, TextEncoder, names[1])):
        if not isinstance(found, kind):
            raise ValueError(f"teacher {name!r} has no {kind.__name__} with hidden states")
    refuse_other("data.image_size", config.data.image_size, image.image_size)
    refuse_other("image.patch", config.image.patch, image.config.patch)
    known = text.token_embedding.num_embeddings
    refuse_other("the vocabulary size", vocabulary_size(config), known)
    if config.data.max_tokens > text.max_tokens:
        refuse_other("data.max_tokens", config.data.max_tokens, text.max_tokens)
    for side, guide in (("image", image), ("text", text)):
        ours, theirs = getattr(config, side).width, guide.config.width
        if ours != theirs:
            raise ValueError(
                f"{side}.width={ours} but the teacher's is {theirs}: hidden states need one; set {side}.width={theirs}"
            )
    return Teacher("+".join(names), Guides(image, text), image_size=config.data.image_size)


def _check(config: RunConfig) -> None:
    options, weights = config.options, config.weights
    if options.stages not in (1, 2):
        raise ValueError(f"options.stages={options.stages} must be 1 or 2")
    if not 0.0 <= options.tower_rate <= 1.0:
        raise ValueError(f"options.tower_rate={options.tower_rate} must lie in [0, 1]")
    if options.stages == 1:
        return
    if not 0.0 < options.stage_one < 1.0:
        raise ValueError(f"options.stage_one={options.stage_one} must lie in (0, 1)")
    hidden = weights["hidden_image"], weights["hidden_text"]
    if not (any(hidden) and weights["contrast"]):
        raise ValueError(
            f"two stages need both a hidden-state term and the contrast, got the weights {hidden} and "
            f"{weights['contrast']}; use options.stages=1 to leave one out"
        )
