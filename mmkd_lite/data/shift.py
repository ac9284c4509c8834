"""Pictures unlike the training pictures, and captions that do not belong to their picture.

`near` keeps the artist and changes hue, contrast, rotation and size to values outside the training
range (it stands for ImageNetV2); `far` is another artist's hand (ImageNet-A, ImageNet-Sketch).
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from PIL import Image

from mmkd_lite.data.draws import uniforms
from mmkd_lite.data.layout import MAX_OBJECTS, Layout
from mmkd_lite.data.render import SPRITE_SIZE, placement, put_over
from mmkd_lite.data.sprites import fit_square, sprites

SHIFTS = ("none", "near", "far")
NEAR_HUE_DEGREES = (8.0, 20.0)  # training: 0
NEAR_ROTATION_DEGREES = (6.0, 15.0)  # training: 0
NEAR_CONTRAST = (0.70, 0.85)  # training: 1


def _signed(u: np.ndarray, low: float, high: float) -> np.ndarray:
    """Numbers in [-high, -low] or [low, high], evenly, from uniforms."""
    magnitude = low + (high - low) * np.abs(2 * u - 1)
    return np.where(u < 0.5, -magnitude, magnitude)


@lru_cache(maxsize=64)
def hue_matrix(degrees: float) -> np.ndarray:
    """(3, 3) matrix that turns RGB colours about the gray axis by an angle, keeping the mean."""
    cosine, sine = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    mean = np.full((3, 3), 1 / 3)
    cross = np.array([[0, -1, 1], [1, 0, -1], [-1, 1, 0]]) / np.sqrt(3)
    return cosine * (np.eye(3) - mean) + sine * cross + mean


def near_shift(
    layout: Layout,
    colours: np.ndarray,
    artist: str,
    image_size: int,
    seed: int,
    stream: str,
    indices: np.ndarray,
) -> np.ndarray:
    """Draw scenes with objects of turned hue, tilted, in flat contrast.

    The hue of the background stays, since captions name it.

    Args:
        layout: Content of B scenes, drawn with sizes "near".
        colours: (B, 3) uint8 background colours.
        artist: Who drew the sprites.
        image_size: Side S in pixels.
        seed: Seed of the world.
        stream: Name of the stream of random numbers.
        indices: (B,) numbers of the scenes.

    Returns:
        (B, S, S, 3) uint8.
    """
    u = uniforms(seed, f"{stream}:near", indices, 2 + MAX_OBJECTS)
    hue = np.rint(_signed(u[:, 0], *NEAR_HUE_DEGREES))
    contrast = NEAR_CONTRAST[0] + (NEAR_CONTRAST[1] - NEAR_CONTRAST[0]) * u[:, 1]
    tilt = np.rint(_signed(u[:, 2:], *NEAR_ROTATION_DEGREES))
    canvas = np.empty((len(layout), image_size, image_size, 3), dtype=np.uint8)
    canvas[:] = colours[:, None, None, :]
    pixels, corner = placement(layout, image_size)
    for b, k in zip(*np.nonzero(layout.concept >= 0), strict=True):
        side = int(pixels[b, k])
        rgba = _tilted(artist, int(layout.concept[b, k]), side, float(tilt[b, k]), float(hue[b]))
        x, y = corner[b, k]
        patch = canvas[b, y : y + side, x : x + side]
        patch[:] = put_over(patch, rgba[..., :3], np.uint16(255) - rgba[..., 3:])
    middle = np.float32(127.5)
    flat = middle + contrast.astype(np.float32)[:, None, None, None] * (canvas - middle)
    return np.rint(flat).astype(np.uint8)


@lru_cache(maxsize=4096)
def _tilted(artist: str, concept: int, side: int, degrees: float, hue: float) -> np.ndarray:
    """(side, side, 4) uint16 premultiplied sprite, tilted and of turned hue, filling its square."""
    rgba = sprites(artist, SPRITE_SIZE)[0][concept]
    turned_hue = np.round(rgba[..., :3] @ hue_matrix(hue).T, 6)  # the same on every processor
    colour = np.clip(np.rint(turned_hue), 0, 255).astype(np.uint8)
    sprite = Image.fromarray(np.dstack([colour, rgba[..., 3]]), "RGBA").convert("RGBa")
    turned = sprite.rotate(degrees, Image.Resampling.BILINEAR, expand=True).convert("RGBA")
    fitted = fit_square(turned.crop(turned.getchannel("A").getbbox()), side).convert("RGBa")
    return np.frombuffer(fitted.tobytes(), np.uint8).reshape(side, side, 4).astype(np.uint16)
