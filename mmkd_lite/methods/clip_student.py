"""Build DistillCLIP's student, ours or transformers', and give it its first weights."""

from __future__ import annotations

from mmkd_lite.config import RunConfig
from mmkd_lite.data.tokenizer import load_tokenizer
from mmkd_lite.methods.towers import build_towers, vocabulary_size
from mmkd_lite.methods.unimodal import refuse_other
from mmkd_lite.models.clip import (
    OwnTowers,
    PublishedTowers,
    TwoTowers,
    clip_model,
    start_image,
    start_text,
)
from mmkd_lite.teachers import Teacher


def build_student(config: RunConfig, teacher: Teacher) -> TwoTowers:
    """Build the student's towers and give them their first weights.

    Raises:
        ValueError: unknown options, a teacher of other texts, or a start that does not fit the teacher.
        OSError: published weights that cannot be had here.
    """
    options = config.options
    vocabulary, length = teacher.model.text_limits
    refuse_other("the vocabulary size", vocabulary_size(config), vocabulary)
    if config.data.max_tokens > length:
        refuse_other("data.max_tokens", config.data.max_tokens, length)
    if options.text_start not in ("", "even"):
        raise ValueError(f"options.text_start={options.text_start!r} must be 'even' or ''")
    if options.text_start and config.text.start:
        raise ValueError(
            f"text.start={config.text.start!r} and options.text_start='even' both start the text tower; "
            "set one of them to ''"
        )
    student: TwoTowers
    if options.student == "own":
        student = OwnTowers(*build_towers(config), options.space_width)
    elif options.student == "transformers":
        student = _published_student(config)
    else:
        raise ValueError(f"options.student={options.student!r} must be 'own' or 'transformers'")
    if options.text_start:
        start_text(student, teacher.model.text_encoder, config.text.layers)
    return student


def _published_student(config: RunConfig) -> PublishedTowers:
    vocabulary, end = vocabulary_size(config), None
    if not config.data.vocab_size:  # not CLIP's own, whose last id ends a text
        end = load_tokenizer(config.data.tokenizer).sep_id
    clip = clip_model(
        config.image,
        config.text,
        config.options.space_width,
        config.data.image_size,
        vocabulary,
        config.data.max_tokens,
        end,
    )
    clip.logit_scale.requires_grad_(False)  # the method has its own
    student = PublishedTowers(clip)
    if config.image.start:
        start_image(student, config.image.start.removeprefix("timm:"))
    return student
