"""Build a student's two encoders and give them their first weights."""

from __future__ import annotations

from mmkd_lite.config import RunConfig
from mmkd_lite.models import ImageEncoder, TextEncoder, copy_first_layers, load_bert, load_timm_vit
from mmkd_lite.teachers import shipped_state


def build_towers(config: RunConfig) -> tuple[ImageEncoder, TextEncoder]:
    """Build the image and the text encoder; `start` gives them the first layers of a trained model.

    `image.start` and `text.start` are "" (random weights), the name of a shipped teacher, or
    "timm:NAME" for images and "transformers:NAME" (a hub name or a folder) for texts.

    Raises:
        ValueError: unknown start, or a model of another shape.
        OSError: published weights that cannot be had here.

    Source: methods.md, common defaults ("first 6 teacher blocks"). Used from notebook 15 on.
    """
    image = ImageEncoder(config.image, config.data.image_size)
    text = _text_tower(config)
    start_image_tower(image, config.image.start)
    start_text_tower(text, config.text.start)
    return image, text


def build_text_tower(config: RunConfig) -> TextEncoder:
    """Build the text encoder alone; see `build_towers`."""
    text = _text_tower(config)
    start_text_tower(text, config.text.start)
    return text


def _text_tower(config: RunConfig) -> TextEncoder:
    length = config.text.max_positions or config.data.max_tokens
    return TextEncoder(
        config.text, vocabulary_size(config), length, token_types=config.text.token_types
    )


def start_image_tower(encoder: ImageEncoder, start: str) -> None:
    """Give an image encoder its first weights; see `build_towers`."""
    if start.startswith("timm:"):
        from mmkd_lite.models.classifier import TimmClassifier

        published = TimmClassifier(start.removeprefix("timm:"), pretrained=True)
        load_timm_vit(encoder, published.encoder.state_dict())
    elif start:
        copy_first_layers(encoder, shipped_state(start, "encoder."), encoder.config.layers)


def start_text_tower(encoder: TextEncoder, start: str) -> None:
    """Give a text encoder its first weights; see `build_towers`."""
    if start.startswith("transformers:"):
        from transformers import BertModel

        name = start.removeprefix("transformers:")
        try:
            published = BertModel.from_pretrained(name)
        except OSError as error:
            raise OSError(
                f"the weights of {name!r} cannot be loaded here; run once with access to the model hub, pass a "
                "folder with its files (text.start=transformers:FOLDER), or start from random weights (text.start=)"
            ) from error
        load_bert(encoder, published.state_dict())
    elif start:
        copy_first_layers(encoder, shipped_state(start, "encoder."), encoder.config.layers)


def vocabulary_size(config: RunConfig) -> int:
    """Return `data.vocab_size`, or the tokenizer's where it is 0."""
    if config.data.vocab_size:
        return config.data.vocab_size
    from mmkd_lite.data.tokenizer import load_tokenizer

    return load_tokenizer(config.data.tokenizer).vocab_size
