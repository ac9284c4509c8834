"""From content to pixels: sprites at a few fixed sizes, put on backgrounds with integer arithmetic.

`over` is Porter and Duff's: out = colour + under * (1 - alpha), with premultiplied colour, in whole
numbers with exact rounding, so that the same content gives the same bytes on every machine.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from PIL import Image

from mmkd_lite.data.draws import pick, uniforms
from mmkd_lite.data.layout import BACKGROUNDS, Layout
from mmkd_lite.data.sprites import sprites

SPRITE_SIZE = 72
BACKGROUND_JITTER = 8  # each colour channel moves by at most this many of 255 steps
_BACKGROUND_TABLE = np.array(list(BACKGROUNDS.values()), dtype=np.int64)


def check_image_size(image_size: int) -> None:
    """Refuse sizes at which nothing could be recognised or sprites would be blown up too far."""
    if not 16 <= image_size <= 512:
        raise ValueError(f"image_size must lie in 16..512 pixels, got {image_size}")


def placement(layout: Layout, image_size: int) -> tuple[np.ndarray, np.ndarray]:
    """Pixels that each object covers, moved inside the image where rounding left it.

    Returns:
        (B, 3) int64 sides, and (B, 3, 2) int64 (x, y) of the top left pixels.
    """
    side = np.maximum(np.floor(layout.diameter * image_size + 0.5).astype(np.int64), 2)
    corner = np.floor(layout.centre * image_size - side[..., None] / 2 + 0.5).astype(np.int64)
    return side, np.clip(corner, 0, (image_size - side)[..., None])


@lru_cache(maxsize=512)
def scaled_sprites(
    artist: str, pixels: int, pool: tuple[int, ...]
) -> tuple[np.ndarray, np.ndarray]:
    """Premultiplied sprites of some concepts at one size.

    Args:
        artist: Name of the artist.
        pixels: Side of the sprites.
        pool: Concept indices.

    Returns:
        uint16 colour (n, pixels, pixels, 3), premultiplied, and uint16 255 - alpha (..., 1).
    """
    rgba, available = sprites(artist, SPRITE_SIZE)
    missing = [index for index in pool if not available[index]]
    if missing:
        raise ValueError(
            f"{artist} has no drawing of {len(missing)} of the {len(pool)} concepts asked for, "
            f"the first is concept {missing[0]}; leave these out"
        )
    scaled = np.empty((len(pool), pixels, pixels, 4), dtype=np.uint8)
    for row, index in enumerate(pool):
        premultiplied = Image.fromarray(rgba[index], "RGBA").convert("RGBa")
        scaled[row] = _raw(premultiplied.resize((pixels, pixels), Image.Resampling.HAMMING))
    return scaled[..., :3].astype(np.uint16), 255 - scaled[..., 3:].astype(np.uint16)


def _raw(premultiplied: Image.Image) -> np.ndarray:
    """Bytes of an RGBa image as (h, w, 4)."""
    width, height = premultiplied.size
    return np.frombuffer(premultiplied.tobytes(), np.uint8).reshape(height, width, 4)


def put_over(patch: np.ndarray, colour: np.ndarray, inverse_alpha: np.ndarray) -> np.ndarray:
    """Premultiplied colour over a patch: colour + round(patch * (255 - alpha) / 255), as uint8."""
    product = patch * inverse_alpha + np.uint16(128)  # at most 65,153: fits 16 bits
    return (colour + ((product + (product >> 8)) >> 8)).astype(np.uint8)


def background_colours(
    seed: int, stream: str, indices: np.ndarray, background: np.ndarray
) -> np.ndarray:
    """(B, 3) uint8 colours of named backgrounds, each moved by a little of its own."""
    u = uniforms(seed, f"{stream}:jitter", indices, 3)
    moved = _BACKGROUND_TABLE[background] + pick(u, 2 * BACKGROUND_JITTER + 1) - BACKGROUND_JITTER
    return np.clip(moved, 0, 255).astype(np.uint8)


def compose(
    layout: Layout, colours: np.ndarray, artist: str, image_size: int, pool: tuple[int, ...]
) -> np.ndarray:
    """Draw scenes.

    Args:
        layout: Content of B scenes.
        colours: (B, 3) uint8 background colours.
        artist: Who drew the sprites.
        image_size: Side S in pixels.
        pool: Concepts that may occur, ascending.

    Returns:
        (B, S, S, 3) uint8.
    """
    size = image_size
    canvas = np.empty((len(layout), size, size, 3), dtype=np.uint8)
    canvas[:] = colours[:, None, None, :]
    rows = np.searchsorted(np.array(pool), layout.concept)
    pixels, corner = placement(layout, size)
    banks = {side: scaled_sprites(artist, side, pool) for side in used_sizes(layout, pixels)}
    exists = layout.concept >= 0
    for b, k in zip(*(axis.tolist() for axis in np.nonzero(exists)), strict=True):
        side = int(pixels[b, k])
        x, y = corner[b, k]
        colour, inverse = banks[side]
        patch = canvas[b, y : y + side, x : x + side]
        patch[:] = put_over(patch, colour[rows[b, k]], inverse[rows[b, k]])
    return canvas


def used_sizes(layout: Layout, pixels: np.ndarray) -> list[int]:
    """Sprite sizes in pixels that occur among the objects of a layout."""
    return np.unique(pixels[layout.concept >= 0]).tolist()


def channels_first(canvas: np.ndarray) -> np.ndarray:
    """(B, S, S, 3) to contiguous (B, 3, S, S)."""
    return np.ascontiguousarray(canvas.transpose(0, 3, 1, 2))
