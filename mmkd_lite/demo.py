"""A local web page that shows a checkpoint at work: `python -m mmkd_lite demo CKPT` (seed 003, Appendix C).

A picture, classes separated by commas and prompts separated by semicolons give class scores; beside it the nearest
captions and pictures of a gallery; student and teacher side by side. The page listens on this machine only, sends
nothing anywhere, and answers what it cannot use with a message. What people type is shown as text, never as HTML.
"""

from __future__ import annotations

import argparse
import os
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from mmkd_lite.config import SCALES
from mmkd_lite.data.scenes import gallery
from mmkd_lite.data.tokenizer import load_tokenizer
from mmkd_lite.evaluate import zero_shot_classifier
from mmkd_lite.subject import Subject, open_subject

SCALE = 100.0
"""What cosines are multiplied by before the softmax: e^4.6052, the scale of the source's teacher."""

ADDRESS = "127.0.0.1"
MAX_CLASSES, MAX_PROMPTS, MAX_CHARACTERS = 100, 50, 200
MAX_BYTES, MAX_PIXELS, MAX_SIDE_RATIO = 10_000_000, 25_000_000, 50
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP")
GALLERY, SHOWN = 200, 4
CLASSES = "an animal, a food, a vehicle, a face"
PROMPTS = "{}; a picture of {}; there is {}"
CREDIT = (
    "Pictures of the gallery are put together from Twemoji (c) Twitter, Inc. and other contributors, CC BY 4.0, "
    "changed. Scores are cosines times 100, then a softmax."
)


def parse_classes(text: str) -> list[str]:
    """Read class names separated by commas; empty ones between two commas are left out.

    Raises:
        ValueError: Fewer than two, too many, too long, or the same twice.
    """
    names = _parts(text, ",", "class", MAX_CLASSES)
    if len(names) < 2:
        raise ValueError("give at least two classes, separated by commas: cat, dog")
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"classes occur twice: {', '.join(twice)}")
    return names


def parse_prompts(text: str) -> list[str]:
    """Read prompts separated by semicolons, each with one {} where the class goes.

    Raises:
        ValueError: None, too many, too long, or one without exactly one {}.
    """
    prompts = _parts(text, ";", "prompt", MAX_PROMPTS)
    if not prompts:
        raise ValueError("give at least one prompt with {} where the class goes: a picture of {}")
    broken = [prompt for prompt in prompts if prompt.count("{}") != 1]
    if broken:
        raise ValueError(f"every prompt needs one {{}} where the class goes; not so: {broken[0]}")
    return prompts


def _parts(text: str, separator: str, what: str, most: int) -> list[str]:
    found = [
        " ".join(part.split())
        for part in str(text or "")[: 10 * most * MAX_CHARACTERS].split(separator)
    ]
    found = [part for part in found if part]
    if len(found) > most:
        raise ValueError(f"at most {most} are read, {len(found)} were given (one {what} too many)")
    if any(len(part) > MAX_CHARACTERS for part in found):
        raise ValueError(f"a {what} may have {MAX_CHARACTERS} characters; one is longer")
    return found


def read_picture(path: str | Path | None) -> Image.Image:
    """Read an uploaded picture; its size is checked before its pixels are unpacked.

    Returns:
        RGB, upright; transparency becomes white.

    Raises:
        ValueError: No picture, too large, or not one of `FORMATS`.
    """
    if not path:
        raise ValueError("choose a picture first")
    file = Path(path)
    if file.stat().st_size > MAX_BYTES:
        raise ValueError(f"the file is larger than {MAX_BYTES // 10**6} MB")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter(
                "ignore"
            )  # Pillow's own warning of large pictures: ours is an answer
            with Image.open(file, formats=FORMATS) as opened:
                width, height = opened.size
                if width * height > MAX_PIXELS or max(width, height) > MAX_SIDE_RATIO * min(
                    width, height
                ):
                    raise ValueError(
                        f"a picture of {width} x {height} pixels is too large or too thin"
                    )
                rgba = ImageOps.exif_transpose(opened).convert("RGBA")
    except (UnidentifiedImageError, Image.DecompressionBombError, OSError, SyntaxError) as error:
        kind = (
            "too large"
            if isinstance(error, Image.DecompressionBombError)
            else "damaged or no picture"
        )
        raise ValueError(f"this file is {kind}; use {', '.join(FORMATS)}") from None
    white = Image.new("RGBA", rgba.size, "white")
    return Image.alpha_composite(white, rgba).convert("RGB")


def pixels(picture: Image.Image, size: int) -> Tensor:
    """Return the middle square of a picture as uint8 (1, 3, size, size)."""
    square = ImageOps.fit(picture, (size, size), Image.Resampling.BICUBIC)
    return torch.from_numpy(np.asarray(square).copy()).permute(2, 0, 1)[None]


def class_scores(
    subject: Subject, picture: Image.Image, classes: Sequence[str], prompts: Sequence[str]
) -> dict[str, float]:
    r"""Return the probability of every class: softmax over classes of 100 times the cosine.

    .. math:: p_c = \mathrm{softmax}_c\big(100 \cos(v, w_c)\big), \quad w_c \text{ from } `zero\_shot\_classifier`

    Args:
        subject: With both towers.
        picture: RGB, any size.
        classes: C distinct names, C >= 2.
        prompts: Sentences with one {} each.

    Raises:
        ValueError: Bad names or prompts, or a model without both towers.

    Source: seed 003, Appendix C and section 3.3.2. Derived in notebooks/42_demo_and_model_card.ipynb.
    """
    subject.need("image", "text")
    image = subject.image_vectors(pixels(picture, subject.data.image_size))  # (1, D)
    classifier = zero_shot_classifier(subject.text_vectors, classes, prompts)  # (D, C)
    cosine = torch.nn.functional.normalize(image, dim=-1) @ classifier
    return dict(zip(classes, (SCALE * cosine[0]).softmax(dim=0).tolist(), strict=True))


def unknown_words(subject: Subject, classes: Sequence[str]) -> str:
    """Return a remark on classes that the vocabulary lacks, "" if it knows all."""
    tokenizer = load_tokenizer(subject.data.tokenizer)
    tokens = tokenizer.encode(classes, subject.data.max_tokens)
    unknown = [
        name for name, row in zip(classes, tokens, strict=True) if tokenizer.unknown_id in row
    ]
    return f"not in the model's vocabulary: {', '.join(unknown)}" if unknown else ""


class Shelf:
    """Gallery pictures with one caption each, and a subject's embeddings of both."""

    def __init__(self, subject: Subject, images: int = GALLERY) -> None:
        self.subject = subject
        shown = gallery(subject.data, images, captions_per_image=1)
        self.images, self.captions = shown.images, shown.captions
        self.image_vectors = subject.image_vectors(shown.images)
        self.text_vectors = subject.text_vectors(shown.captions)

    def captions_of(self, picture: Image.Image) -> list[str]:
        """Return the captions nearest to a picture, the nearest first."""
        image = self.subject.image_vectors(pixels(picture, self.subject.data.image_size))
        return [self.captions[i] for i in (self.text_vectors @ image[0]).topk(SHOWN).indices]

    def pictures_of(self, text: str) -> list[tuple[np.ndarray, str]]:
        """Return the pictures nearest to a text, (H, W, 3) uint8, each with its own caption."""
        words = _parts(text, "\n", "text", 1)
        if not words:
            raise ValueError("type a text to search for")
        best = (self.image_vectors @ self.subject.text_vectors(words)[0]).topk(SHOWN).indices
        large = self.images[best].transpose(0, 2, 3, 1).repeat(3, axis=1).repeat(3, axis=2)
        return [(picture, self.captions[i]) for picture, i in zip(large, best, strict=True)]


def answers(
    shelves: Sequence[Shelf],
) -> tuple[Callable[..., tuple[Any, ...]], Callable[..., tuple[Any, ...]]]:
    """Return the page's two functions; each ends with a message, "" when all went well.

    Returns:
        `classify(path, classes, prompts)` -> scores and nearest captions of every model, message;
        `search(text)` -> pictures of every model, message.
    """

    def classify(path: str | None, classes: str, prompts: str) -> tuple[Any, ...]:
        try:
            names, sentences = parse_classes(classes), parse_prompts(prompts)
            picture = read_picture(path)
            scores = [class_scores(s.subject, picture, names, sentences) for s in shelves]
            near = ["\n".join(shelf.captions_of(picture)) for shelf in shelves]
            return (*scores, *near, unknown_words(shelves[0].subject, names))
        except (ValueError, OSError, MemoryError) as error:
            return (*[None] * len(shelves), *[""] * len(shelves), str(error))

    def search(text: str) -> tuple[Any, ...]:
        try:
            return (*(shelf.pictures_of(text) for shelf in shelves), "")
        except ValueError as error:
            return (*[None] * len(shelves), str(error))

    return classify, search


def build_app(subjects: Sequence[Subject]) -> Any:
    """Return the Gradio app for one model, or for several side by side.

    Raises:
        ValueError: A subject without both towers, or trained on other data than emoji.
    """
    for subject in subjects:
        subject.need("image", "text")
        if subject.data.source != "emoji":
            raise ValueError(f"{subject.name}: the demo's gallery is made of emoji scenes")
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    import gradio as gr

    classify, search = answers([Shelf(subject) for subject in subjects])

    def each(kind: Any, label: str, key: str, **settings: Any) -> list[Any]:
        """One component a model."""
        names = enumerate(subject.name.partition("__")[0] for subject in subjects)
        return [kind(label=f"{label}: {n}", elem_id=f"{key}{i}", **settings) for i, n in names]

    with gr.Blocks(analytics_enabled=False, title="mmkd-lite", delete_cache=(3600, 3600)) as app:
        gr.Markdown("# Zero-shot classification and retrieval")
        with gr.Row():
            with gr.Column():
                picture = gr.Image(
                    type="filepath", sources=["upload"], height=220, elem_id="picture"
                )
                picture.preprocess = _path  # read_picture opens it, with limits
                classes = gr.Textbox(CLASSES, label="Classes, by commas", elem_id="classes")
                prompts = gr.Textbox(PROMPTS, label="Prompts, by semicolons", elem_id="prompts")
                submit = gr.Button("Classify", variant="primary", elem_id="classify")
            labels = each(gr.Label, "Class scores", "scores", num_top_classes=10)
        with gr.Row():
            near = each(gr.Textbox, "Nearest captions", "near", lines=SHOWN)
        message = gr.Textbox(label="Message", elem_id="message", interactive=False)
        text = gr.Textbox("a cat on a blue background", label="Search", elem_id="query")
        find = gr.Button("Search the gallery", elem_id="search")
        with gr.Row():
            found = each(gr.Gallery, "Nearest pictures", "found", columns=SHOWN, height=190)
        gr.Textbox(CREDIT, show_label=False, interactive=False)
        shared: dict[str, Any] = {"api_visibility": "private", "concurrency_limit": 1}
        submit.click(classify, [picture, classes, prompts], [*labels, *near, message], **shared)
        find.click(search, [text], [*found, message], **shared)
    return app.queue(max_size=16)


def _path(given: Any) -> str | None:
    """Return where Gradio put an upload, unopened."""
    return given.path if given else None


def launch(app: Any, port: int | None = None, block: bool = True) -> str:
    """Serve the app on this machine only and return its address.

    Args:
        app: From `build_app`.
        port: A free one by default.
        block: Serve until Ctrl-C.
    """
    import gradio as gr

    theme = gr.themes.Default(font=("sans-serif",), font_mono=("monospace",))  # nothing to fetch
    _, address, _ = app.launch(
        server_name=ADDRESS, server_port=port, share=False, inbrowser=False, quiet=True, ssr_mode=False,
        prevent_thread_lock=True, max_file_size=MAX_BYTES, footer_links=[], enable_monitoring=False,
        theme=theme, _frontend=False,  # no probe with a time limit that a busy machine misses
    )  # fmt: skip
    if block:
        print(f"open {address} in a browser; Ctrl-C ends it")
        app.block_thread()
    return str(address)


def demo_command(arguments: Sequence[str]) -> int:
    """Start the demo: `python -m mmkd_lite demo CKPT [--teacher TEACHER] [--port PORT]`.

    Args:
        arguments: The words after `demo`.
    """
    parser = argparse.ArgumentParser(
        prog="python -m mmkd_lite demo",
        description="Show a checkpoint at work, on this machine only.",
    )
    add = parser.add_argument
    add(
        "checkpoint", metavar="CKPT", help="a run's folder or checkpoint, or a teacher such as clip"
    )
    add("--teacher", help="shown beside it: the run's own by default, or none")
    add("--port", type=int, help="a free one by default")
    add("--scale", default="laptop", choices=SCALES, help="of a teacher's gallery")
    options = parser.parse_args(list(arguments))
    subjects = subjects_for(options.checkpoint, options.teacher, options.scale)
    launch(build_app(subjects), options.port)
    return 0


def subjects_for(
    checkpoint: str, teacher: str | None = None, scale: str = "laptop"
) -> list[Subject]:
    """Return the checkpoint and, where it has both towers, its teacher on the same data.

    Args:
        checkpoint: As `open_subject` takes it.
        teacher: Another one; "none" for no teacher; None for the run's own.
        scale: Of a teacher's gallery.
    """
    subject = open_subject(checkpoint, scale)
    name = (subject.config.teacher if subject.folder else "") if teacher is None else teacher
    if name in ("", "none"):
        return [subject]
    guide = open_subject(name, like=subject)
    both = guide.has("image") and guide.has("text")
    return [subject, guide] if both or teacher else [subject]
