"""Training pictures that teach a classifier more than one artist's hand.

Teachers are trained on Twemoji only and tested on OpenMoji and Noto. What tells these apart is
known (black outlines, other hues, line art), so each is made at random here, from Twemoji's own
drawings: hues turned, colours swapped, washed out, posterised; outlines painted around the shape
and along its inner edges; line art; turned, flipped, squeezed; coloured gradients behind.

Everything is vectorised over all objects of one size, in float32; processors of different kinds
may differ by one step of 255 here (and only here).
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from PIL import Image

from mmkd_lite.data.draws import pick, uniforms
from mmkd_lite.data.layout import MAX_OBJECTS, Layout
from mmkd_lite.data.render import SPRITE_SIZE, placement, used_sizes
from mmkd_lite.data.sprites import sprites

LEVELS = (16, 24, 32, 48, 72)  # sides of the stored sprites that are sampled from
LINE_ART_SHARE, OUTLINE_SHARE, GRAY_SHARE, SWAP_SHARE = 0.12, 0.5, 0.12, 0.2
POSTERISE_SHARE, FLIP_SHARE, GRADIENT_SHARE = 0.2, 0.5, 0.4
MAX_ROTATION = 0.45  # radians
_SLOTS = 24
_LUMA = np.array([0.299, 0.587, 0.114], dtype=np.float32)
_PERMUTATIONS = np.array(
    [np.eye(3)[list(p)] for p in ((0, 1, 2), (0, 2, 1), (1, 0, 2), (1, 2, 0), (2, 0, 1), (2, 1, 0))]
)


def augmented(
    layout: Layout, image_size: int, artist: str, seed: int, stream: str, indices: np.ndarray
) -> np.ndarray:
    """Draw pictures with every object and every background changed at random.

    Args:
        layout: Content of B pictures.
        image_size: Side S in pixels.
        artist: Who drew the sprites.
        seed: Seed of the pictures.
        stream: Name of the stream of random numbers.
        indices: (B,) numbers of the pictures; each picture is a pure function of its number.

    Returns:
        (B, S, S, 3) uint8.
    """
    u = uniforms(seed, f"{stream}:augment", indices, MAX_OBJECTS * _SLOTS + 12)
    canvas = _backgrounds(u[:, -12:], image_size)
    pixels, corners = placement(layout, image_size)
    for place in range(MAX_OBJECTS):  # later objects lie over earlier ones
        own = u[:, place * _SLOTS : (place + 1) * _SLOTS].astype(np.float32)
        for side in used_sizes(layout, pixels):
            rows = np.flatnonzero((layout.concept[:, place] >= 0) & (pixels[:, place] == side))
            if len(rows):
                patches = _changed(layout.concept[rows, place], side, artist, own[rows])
                _paste(canvas, rows, corners[rows, place], patches)
    return (canvas * 255 + 0.5).astype(np.uint8)


def _paste(canvas: np.ndarray, rows: np.ndarray, corner: np.ndarray, patches: np.ndarray) -> None:
    """Put premultiplied patches (m, h, h, 4) over their pictures, in place."""
    side = patches.shape[1]
    for row, (x, y), patch in zip(rows.tolist(), corner.tolist(), patches, strict=True):
        region = canvas[row, y : y + side, x : x + side]
        region *= 1 - patch[..., 3:]
        region += patch[..., :3]


@lru_cache(maxsize=16)
def _stored(artist: str, side: int) -> np.ndarray:
    """(n * side * side,) uint32 straight RGBA sprites of all concepts at one stored side."""
    rgba = sprites(artist, SPRITE_SIZE)[0]
    reduced = np.empty((len(rgba), side, side, 4), dtype=np.uint8)
    for row, sprite in enumerate(rgba):
        image = Image.fromarray(sprite, "RGBA").convert("RGBa")
        image = image.resize((side, side), Image.Resampling.HAMMING).convert("RGBA")
        reduced[row] = np.asarray(image)
    return reduced.view(np.uint32).reshape(-1)


def _changed(concept: np.ndarray, side: int, artist: str, u: np.ndarray) -> np.ndarray:
    """(m, side, side, 4) float32 premultiplied patches in [0, 1] of changed objects."""
    patches = _turned(concept, side, artist, u[:, :6])
    colour, alpha = patches[..., :3], patches[..., 3]
    colour = _recoloured(colour, u[:, 6:16])
    edges = _edges(colour, alpha)
    outlined = u[:, 16] < OUTLINE_SHARE
    strength = np.where(outlined, 0.6 + 0.4 * u[:, 17], 0)[:, None, None].astype(np.float32)
    grown = _grown(alpha)
    thick = u[:, 18] < 0.4
    if thick.any():
        grown[thick] = _grown(grown[thick])
    inner = np.where(u[:, 19] < 0.6, strength[:, 0, 0], 0)[:, None, None]
    colour = colour * (alpha * (1 - inner * edges))[..., None]
    alpha = np.maximum(alpha, strength * grown)
    line_art = u[:, 20] < LINE_ART_SHARE
    if line_art.any():
        ink = np.maximum(edges, _grown(patches[..., 3]) - _shrunk(patches[..., 3]))[line_art]
        colour[line_art] = 0
        alpha[line_art] = np.clip(1.3 * ink, 0, 1)
    return np.concatenate([colour, alpha[..., None]], axis=-1)


def _turned(concept: np.ndarray, side: int, artist: str, u: np.ndarray) -> np.ndarray:
    """(m, side, side, 4) float32 straight RGBA sprites: turned, flipped, squeezed, one pixel in."""
    source = next((level for level in LEVELS if level >= side), LEVELS[-1])
    angle = (2 * u[:, 0] - 1) * MAX_ROTATION
    stretch = np.exp((2 * u[:, 1] - 1) * 0.15)
    zoom = source / max(side - 2, 1) * (1 + 0.15 * u[:, 2])
    flip = np.where(u[:, 3] < FLIP_SHARE, -1.0, 1.0)
    cosine, sine = np.cos(angle) * zoom, np.sin(angle) * zoom
    axis = np.arange(side, dtype=np.float32) - (side - 1) / 2
    across, down = axis, axis[:, None]
    x = (cosine * stretch * flip)[:, None, None] * across + (sine * flip)[:, None, None] * down
    y = (cosine / stretch)[:, None, None] * down - sine[:, None, None] * across
    middle = np.float32((source - 1) / 2 + 0.5)
    column, row = (x + middle).astype(np.int32), (y + middle).astype(np.int32)
    inside = (column >= 0) & (column < source) & (row >= 0) & (row < source)
    inside &= (x + middle >= 0) & (y + middle >= 0)
    table = _stored(artist, source)
    flat = np.where(inside, row * source + column, 0) + (concept * source * source)[:, None, None]
    packed = np.where(inside, table[flat], np.uint32(0))
    rgba = packed.view(np.uint8).reshape(*packed.shape, 4)
    return rgba.astype(np.float32) / np.float32(255)


def _recoloured(colour: np.ndarray, u: np.ndarray) -> np.ndarray:
    """Colours (m, h, h, 3) in [0, 1] with hue, saturation, contrast and brightness changed."""
    angle = (2 * u[:, 0] - 1) * np.where(u[:, 1] < 0.5, 0.5, np.pi)
    cosine, sine = np.cos(angle)[:, None, None], np.sin(angle)[:, None, None]
    mean = np.full((3, 3), 1 / 3)
    cross = np.array([[0, -1, 1], [1, 0, -1], [-1, 1, 0]]) / np.sqrt(3)
    matrix = cosine * (np.eye(3) - mean) + sine * cross + mean
    swap = np.where(u[:, 2] < SWAP_SHARE, pick(u[:, 3], 6), 0)
    saturation = np.where(u[:, 4] < GRAY_SHARE, 0.0, 0.5 + 1.2 * u[:, 5])[:, None, None]
    gray = np.tile(_LUMA, (3, 1))
    matrix = (saturation * np.eye(3) + (1 - saturation) * gray) @ _PERMUTATIONS[swap] @ matrix
    contrast, shift = 0.6 + 0.8 * u[:, 6], 0.5 + 0.5 * (u[:, 7] - 0.5)
    matrix = (matrix * contrast[:, None, None]).transpose(0, 2, 1).astype(np.float32)
    flat = colour.reshape(len(colour), -1, 3) @ matrix
    flat += (shift - 0.5 * contrast).astype(np.float32)[:, None, None]
    np.clip(flat, 0, 1, out=flat)
    coarse = u[:, 8] < POSTERISE_SHARE
    if coarse.any():
        steps = (2 + pick(u[coarse, 9], 3)).astype(np.float32)[:, None, None]
        flat[coarse] = np.rint(flat[coarse] * steps) / steps
    return flat.reshape(colour.shape)


def _edges(colour: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """(m, h, h) strength in [0, 1] of the edges of brightness inside each shape."""
    light = (colour @ _LUMA) * alpha + (1 - alpha)
    edges = np.zeros_like(light)
    edges[:, 1:] += np.abs(light[:, 1:] - light[:, :-1])
    edges[:, :, 1:] += np.abs(light[:, :, 1:] - light[:, :, :-1])
    return np.clip(3 * edges - 0.25, 0, 1)


def _grown(alpha: np.ndarray) -> np.ndarray:
    """Each value replaced by the largest of itself and its four neighbours."""
    grown = alpha.copy()
    np.maximum(grown[:, 1:], alpha[:, :-1], out=grown[:, 1:])
    np.maximum(grown[:, :-1], alpha[:, 1:], out=grown[:, :-1])
    np.maximum(grown[:, :, 1:], alpha[:, :, :-1], out=grown[:, :, 1:])
    np.maximum(grown[:, :, :-1], alpha[:, :, 1:], out=grown[:, :, :-1])
    return grown


def _shrunk(alpha: np.ndarray) -> np.ndarray:
    """Each value replaced by the smallest of itself and its four neighbours."""
    return 1 - _grown(1 - alpha)


def _backgrounds(u: np.ndarray, size: int) -> np.ndarray:
    """(B, S, S, 3) float32 backgrounds: one colour, or a linear gradient between two."""
    first = (0.25 + 0.75 * u[:, :3]).astype(np.float32)
    second = (0.25 + 0.75 * u[:, 3:6]).astype(np.float32)
    white = u[:, 9] < 0.15
    first[white] = 1.0
    angle = (2 * np.pi * u[:, 6]).astype(np.float32)
    axis = np.linspace(-0.5, 0.5, size, dtype=np.float32)
    ramp = np.cos(angle)[:, None, None] * axis + np.sin(angle)[:, None, None] * axis[:, None]
    ramp *= np.where(u[:, 7] < GRADIENT_SHARE, u[:, 8], 0).astype(np.float32)[:, None, None]
    mix = np.clip(ramp + 0.5, 0, 1) * (u[:, 7] < GRADIENT_SHARE)[:, None, None]
    return first[:, None, None] + mix[..., None] * (second - first)[:, None, None]
