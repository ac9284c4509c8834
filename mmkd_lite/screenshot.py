"""Take the picture of the demo's page that notebook 42 shows: part of `make refresh`."""

from __future__ import annotations

import io
import tempfile
from pathlib import Path

from PIL import Image

from mmkd_lite import demo
from mmkd_lite.browser import find_browser, open_page
from mmkd_lite.config import DataConfig, resolve
from mmkd_lite.data.emoji import class_names
from mmkd_lite.data.scenes import EmojiScenes
from mmkd_lite.storage import write_atomic
from mmkd_lite.train import fit

PICTURE = "data/demo.png"
LARGEST = 150_000
"""Largest size of the file in bytes."""

WIDTH, HEIGHT = 1100, 900
SCENE = 5
"""Which scene of the composition split is uploaded."""


def take_screenshot(root: Path, scale: str = "laptop") -> str:
    """Classify a scene and search the gallery in a headless browser, and store what the page shows.

    The student is notebook 19's; it is trained first where its run is not there.

    Args:
        root: The repository root.
        scale: Of the student.

    Returns:
        What was done, in words; without a browser the old picture stays.

    Raises:
        ValueError: The picture would be larger than `LARGEST`.
    """
    if not find_browser():
        return f"no Chromium or Chrome found: {PICTURE} stays as it was"
    run = fit(resolve("distill_clip", scale))
    app = demo.build_app(demo.subjects_for(str(run.dir)))
    try:
        content = reduced(photograph(demo.launch(app, block=False)))
    finally:
        app.close()
    if len(content) > LARGEST:
        raise ValueError(f"{PICTURE} would have {len(content)} bytes; at most {LARGEST} are meant")
    write_atomic(root / PICTURE, content)
    return f"written: {PICTURE}, {len(content)} bytes"


def photograph(address: str) -> bytes:
    """Use the page as a reader would, and return it as PNG."""
    scenes = EmojiScenes(DataConfig(image_size=192), "composition")
    known = class_names("concept", article=True)
    names = [known[shown.concept] for shown in scenes.scene(SCENE).objects]
    with tempfile.TemporaryDirectory() as folder, open_page(address, WIDTH, HEIGHT) as page:
        path = Path(folder) / "scene.png"
        Image.fromarray(scenes.image(SCENE).transpose(1, 2, 0)).save(path)
        page.wait("document.querySelector('#classify')")
        page.upload("#picture input[type=file]", path)
        page.wait("document.querySelector('#picture img')")
        page.type(
            "#classes textarea", ", ".join(dict.fromkeys([*names, *demo.CLASSES.split(", ")]))
        )
        page.run("document.querySelector('#classify').click()")
        page.wait("document.querySelectorAll('#scores0 dt').length > 2")
        page.run("document.querySelector('#search').click()")
        page.wait("document.querySelectorAll('#found0 img').length >= 4")
        page.wait("[...document.images].every(image => image.complete)")
        page.run("window.scrollTo(0, 0)")
        return page.picture()


def reduced(png: bytes) -> bytes:
    """Return a PNG with 128 colours."""
    buffer = io.BytesIO()
    Image.open(io.BytesIO(png)).convert("RGB").quantize(128).save(buffer, "png", optimize=True)
    return buffer.getvalue()
