"""One picture of every scene concept: the gallery in which only look-alikes are compared."""

from __future__ import annotations

import numpy as np

from mmkd_lite.config import DataConfig
from mmkd_lite.data.emoji import class_names, labels, scene_concepts
from mmkd_lite.data.scenes import EmojiScenes
from mmkd_lite.data.words import with_article


def look_alikes(
    config: DataConfig, split: str = "composition"
) -> tuple[np.ndarray, list[str], np.ndarray]:
    """Return the first one-object scene of each concept, the captions "a NAME", and the subgroups.

    Returns:
        uint8 (N, 3, S, S), N captions, and (N,) subgroup ids; N is `config.concepts`, or fewer where a concept
        does not stand alone in the first 40 scenes per concept.

    Used in notebooks/15_transformer_shre.ipynb.
    """
    scenes = EmojiScenes(config, split)
    rows = np.arange(40 * config.concepts)
    layout = scenes.layout(rows)
    alone = layout.concept[:, 1] < 0
    first: dict[int, int] = {}
    for row in rows[alone]:
        first.setdefault(int(layout.concept[row, 0]), int(row))
    concepts = [concept for concept in sorted(scene_concepts(config.concepts)) if concept in first]
    names = class_names("concept")
    images = scenes.batch([first[concept] for concept in concepts])["image"]
    return images, [with_article(names[concept]) for concept in concepts], labels("fine")[concepts]
