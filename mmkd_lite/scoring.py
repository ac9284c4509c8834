"""What a trained two-tower student is scored on: retrieval on the named galleries of its data.

Real pictures (COCO, Flickr30k) have one gallery, "test". The emoji world has "composition" (seen
concepts, unseen scenes), "near" (another hue, tilt, contrast) and "far" (another artist).
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor

from mmkd_lite.config import DataConfig, RunConfig
from mmkd_lite.data.look_alikes import look_alikes
from mmkd_lite.data.pairs import Pairs, open_pairs
from mmkd_lite.data.scenes import Gallery, gallery
from mmkd_lite.data.sprites import available_artists
from mmkd_lite.data.tokenizer import load_tokenizer
from mmkd_lite.evaluate import (
    count_parameters,
    embed_images,
    embed_texts,
    one_caption_each,
    retrieval,
)
from mmkd_lite.evaluate.within import retrieval_within_groups
from mmkd_lite.methods import Method
from mmkd_lite.one_modality_scores import score_one_modality
from mmkd_lite.picture_scores import score_pictures
from mmkd_lite.runs import Run
from mmkd_lite.storage import sha256_of_arrays

KS = (1, 5, 10)
EMOJI_GALLERIES = {
    "composition": {"artist": "twemoji", "shift": "none"},
    "near": {"artist": "twemoji", "shift": "near"},
    "far": {"artist": "openmoji", "shift": "far"},
}


def score_run(run: Run) -> dict[str, dict[str, Any]]:
    """Score a finished run by what its method is `scored_by`, and count its parameters.

    Students of pairs are scored by retrieval on every gallery, and by classification of emoji pictures.
    """
    method = run.load_method()
    pairs = method.scored_by == "retrieval"
    scores = (score_method if pairs else score_one_modality)(method, run.config)
    scores["model"] = {
        "parameters": count_parameters(method),
        "trainable_parameters": count_parameters(method, trainable=True),
    }
    if pairs and run.config.data.source == "emoji":
        scores |= score_pictures(method, run.config)
    return scores


def evaluate_run(run: Run, name: str = "") -> dict[str, Any]:
    """Score a finished run on one gallery, the first of its data by default.

    Args:
        run: From `fit`.
        name: "composition", "near" or "far" for the emoji world, "test" for real pictures.

    Returns:
        What `mmkd_lite.evaluate.retrieval` returns.

    Raises:
        ValueError: No gallery of that name.
    """
    found = galleries(run.config)
    name = name or next(iter(found))
    if name not in found:
        raise ValueError(f"unknown gallery {name!r}; valid here: {', '.join(found)}")
    image, text = embed_gallery(run.load_method(), run.config, found[name])
    return retrieval(image, text, found[name].image_of_text, KS)


def score_method(method: Method, config: RunConfig) -> dict[str, dict[str, Any]]:
    """Score a student on every gallery of its data.

    Returns:
        Protocol name -> what `retrieval` returns: each gallery by id under its own name, and for
        the first one also "..._by_truth" (any true caption counts) and "..._one_caption". The emoji
        world adds "look_alikes".
    """
    scores: dict[str, dict[str, Any]] = {}
    first = True
    for name, shown in galleries(config).items():
        image, text = embed_gallery(method, config, shown)
        owner = torch.as_tensor(shown.image_of_text)
        scores[name] = retrieval(image, text, owner, KS)
        if first:
            truth = torch.as_tensor(shown.relevance)
            scores[f"{name}_by_truth"] = retrieval(image, text, owner, KS, relevance=truth)
            single = one_caption_each(owner)
            scores[f"{name}_one_caption"] = retrieval(image, text[single], owner[single], KS)
            first = False
    if config.data.source == "emoji":
        scores["look_alikes"] = score_look_alikes(method, config)
    return scores


def score_look_alikes(method: Method, config: RunConfig) -> dict[str, Any]:
    """Score one picture a concept among the concepts of its own subgroup; see `retrieval_within_groups`."""
    images, captions, subgroup = look_alikes(config.data)
    tokens = load_tokenizer(config.data.tokenizer).encode(captions, config.data.max_tokens)
    image = embed_images(method.encode_image, torch.as_tensor(images))
    return retrieval_within_groups(image, embed_texts(method.encode_text, tokens), subgroup)


def galleries(config: RunConfig) -> dict[str, Gallery]:
    """Return the galleries that a configuration is scored on, drawn once a process.

    A gallery whose artist is not installed is left out; a folder of labelled pictures has none.
    """
    if config.data.source == "folder":
        return {}
    if config.data.source == "emoji":
        return dict(_emoji_galleries(config.data))
    return {"test": open_pairs(config).gallery(config.data.gallery_images)}


def embed_gallery(method: Method, config: RunConfig, shown: Gallery) -> tuple[Tensor, Tensor]:
    """Embed a gallery's pictures (N, D) and captions (T, D), tokenised as in training."""
    pairs: Pairs = open_pairs(config)
    tokens = pairs.tokenizer.encode(shown.captions, config.data.max_tokens)  # (T, M)
    image = embed_images(method.encode_image, torch.as_tensor(shown.images))
    return image, embed_texts(method.encode_text, tokens)


def gallery_checksum(config: RunConfig) -> str:
    """Return the SHA-256 of everything that a configuration is scored on."""
    arrays = {}
    for name, shown in galleries(config).items():
        arrays[f"{name}/images"] = torch.as_tensor(shown.images).numpy()
        texts = "\n".join(shown.captions).encode()
        arrays[f"{name}/captions"] = torch.frombuffer(bytearray(texts), dtype=torch.uint8).numpy()
    return sha256_of_arrays(arrays)


@functools.lru_cache(maxsize=2)
def _emoji_galleries(data: DataConfig) -> dict[str, Gallery]:
    installed = available_artists()
    return {
        name: gallery(data, data.gallery_images, "composition", how["artist"], how["shift"])
        for name, how in EMOJI_GALLERIES.items()
        if how["artist"] in installed
    }
