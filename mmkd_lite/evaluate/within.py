"""Retrieval among look-alikes: candidates are only those that share the query's group."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from mmkd_lite.embeddings import check_unit_norm


def retrieval_within_groups(image: Tensor, text: Tensor, group: np.ndarray) -> dict[str, Any]:
    """Score R@1 when every candidate has the query's own class: what class labels cannot explain.

    A model that knows classes but not instances is at chance here, however good its ordinary recall. Groups of
    one pair are left out. A tie counts against us.

    Args:
        image: (N, D), unit rows.
        text: (N, D), unit rows; row i describes picture i.
        group: (N,) class of each pair.

    Returns:
        `within_i2t_r1`, `within_t2i_r1` and `within_chance` in per cent, `within_pairs` that were scored, and
        the protocol string.

    Raises:
        ValueError: shapes differ, rows are not of unit length, or no group has two pairs.

    Source: course plan, "retrieval within a subgroup as the diagnosis" of seed 000's Code 3. Derived in
    notebooks/15_transformer_shre.ipynb.
    """
    if image.shape != text.shape or len(group) != len(image):
        raise ValueError(
            f"need N pairs, got {tuple(image.shape)}, {tuple(text.shape)} and {len(group)} groups"
        )
    check_unit_norm(image, "image")
    check_unit_norm(text, "text")
    labels = torch.as_tensor(np.asarray(group))
    same = labels[:, None] == labels[None]  # (N, N)
    scored = same.sum(1) > 1
    if not bool(scored.any()):
        raise ValueError("no group has two pairs: there is nothing to tell apart")
    rivals = same & ~torch.eye(len(labels), dtype=torch.bool)
    scores = image @ text.T  # (N, N)
    own = scores.diagonal()
    image_right = ~((scores >= own[:, None]) & rivals).any(1)
    text_right = ~((scores >= own[None]) & rivals).any(0)
    pairs = int(scored.sum())
    return {
        "within_protocol": f"retrieval/within-group/pairs={pairs}/k=1/ties=against",
        "within_i2t_r1": 100 * float(image_right[scored].float().mean()),
        "within_t2i_r1": 100 * float(text_right[scored].float().mean()),
        "within_chance": 100 * float((1 / same.sum(1)[scored]).mean()),
        "within_pairs": pairs,
    }
