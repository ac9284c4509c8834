"""One number for the whole world: equal checksums mean equal sprites, pictures and captions."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import numpy as np

from mmkd_lite.data.render import SPRITE_SIZE
from mmkd_lite.data.scenes import EmojiScenes
from mmkd_lite.data.sprites import sprites
from mmkd_lite.storage import sha256_of_arrays

if TYPE_CHECKING:
    from mmkd_lite.config import DataConfig

_SCENES = 256


def world_checksum(
    config: DataConfig, artists: tuple[str, ...] = ("twemoji", "openmoji", "noto")
) -> str:
    """SHA-256 over all sprites and the first 256 scenes of two splits and of the near shift.

    The same configuration gives the same value with the same wheels on x86_64.

    Args:
        config: The world.
        artists: Whose drawings to include.

    Returns:
        64 hexadecimal digits.
    """
    digest = hashlib.sha256()
    for artist in artists:
        rgba, available = sprites(artist, SPRITE_SIZE)
        digest.update(sha256_of_arrays({"rgba": rgba, "available": available}).encode())
        for split, shift in (("train", "none"), ("composition", "none"), ("composition", "near")):
            drawn = EmojiScenes(config, split, artist, shift).batch(np.arange(_SCENES))
            digest.update(sha256_of_arrays({"image": drawn["image"]}).encode())
            for captions in drawn["captions"]:
                digest.update("\n".join(captions).encode())
    return digest.hexdigest()
