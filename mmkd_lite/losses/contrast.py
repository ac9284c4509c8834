"""Contrastive losses: tell the partner of a pair from the other candidates."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from mmkd_lite.losses.base import (
    as_scale,
    check_bias,
    check_chunk_size,
    check_pairs,
    check_same_width,
    check_unit_rows,
    check_vector,
)
from mmkd_lite.losses.gather import check_equal_shapes, other_rows, world
from mmkd_lite.losses.streaming import Plan, default_chunk, log_sum_exp


class _Candidates(NamedTuple):
    """Negatives beside the batch's own: rows (N, D), bias of their logits (N,), ids (N,)."""

    rows: Tensor
    bias: Tensor | None
    ids: Tensor | None


def info_nce(
    query: Tensor,
    key: Tensor,
    scale: Tensor | float,
    *,
    bank: Tensor | None = None,
    bank_bias: Tensor | None = None,
    query_id: Tensor | None = None,
    key_id: Tensor | None = None,
    bank_id: Tensor | None = None,
    chunk_size: int | None = None,
) -> Tensor:
    r"""Classify, for each query, which of the candidates is its partner; one direction.

    .. math:: L = \frac1B \sum_{i=1}^{B} \Big[ \log\Big( \sum_{j \in N_i} e^{s\, q_i \cdot k_j}
              + \sum_{g=1}^{G} e^{s\, q_i \cdot m_g + b_g} \Big) - s\, q_i \cdot k_i \Big]

    The positive of query i is key i. `N_i` holds i itself and every j whose id differs from i's: a
    candidate of equal id is neither positive nor negative, it is left out. With W > 1 processes in
    torch.distributed the keys of all of them are candidates; the mean of the W losses, and the
    gradients after DDP's averaging, are those of one process with all the queries.

    Args:
        query: (B, D), rows of length 1.
        key: (B, D), rows of length 1.
        scale: s > 0, the exponentiated logit scale; a number or a 0-d tensor.
        bank: (G, D) further candidates, rows of length 1 (slots of bias -inf excepted). The same on
            every process.
        bank_bias: (G,) added to the bank's logits: `age * log(gamma)` lets a slot decay, -inf marks
            an empty one. A bank of -inf only equals no bank, exactly.
        query_id: (B,) integers; goes with `key_id`, `bank_id` or both.
        key_id: (B,) integers.
        bank_id: (G,) integers.
        chunk_size: Side of a tile, >= 1; None chooses. Changes memory and time, not the result.

    Returns:
        A 0-d tensor, at least 0; 0 for B = 1 without a bank. Gradients reach query, key, scale and,
        where they require them, bank and bank_bias.

    Raises:
        ValueError: For shapes that do not match, rows that are not of length 1, a scale that is not
            positive, or ids without a counterpart.

    Source: seed 001, eq. 7 over the pairs of a batch; seed 002, memory bank; peers' decaying bank.
    Derived in notebooks/02_losses.ipynb.
    """
    query, key = check_pairs(query, key, "query", "key")
    check_chunk_size(chunk_size)
    for values, name in ((query_id, "query_id"), (key_id, "key_id")):
        check_vector(values, len(query), name, "the batch")
    if (query_id is None) != (key_id is None and bank_id is None):
        raise ValueError("ids are compared: pass query_id together with key_id, bank_id or both")
    if bank_id is not None and bank is None:
        raise ValueError("bank_id needs a bank")
    scale, chunk = as_scale(scale, query), chunk_size or default_chunk(query)
    own_id = None if key_id is None else query_id
    total, _, positive = log_sum_exp(
        query, key, scale, Plan(chunk, diagonal=True), left_id=own_id, right_id=key_id
    )
    extra = _from_bank(bank, bank_bias, bank_id, query, "bank")
    if world()[1] > 1:
        check_equal_shapes(key, key_id is not None)
        extra.append(_from_other_processes(key, key_id))
    total = _add_candidates(total, query, query_id, extra, scale, chunk)
    return (total - positive).mean()


def image_text_contrast(
    image: Tensor,
    text: Tensor,
    scale: Tensor | float,
    *,
    chunk_size: int | None = None,
    bank_image: Tensor | None = None,
    bank_text: Tensor | None = None,
    bank_bias_image: Tensor | None = None,
    bank_bias_text: Tensor | None = None,
    image_id: Tensor | None = None,
    bank_id: Tensor | None = None,
) -> Tensor:
    r"""Average `info_nce` over both directions, image to text and text to image.

    .. math:: L = \frac12 \big[ \mathrm{InfoNCE}(V, W; s) + \mathrm{InfoNCE}(W, V; s) \big]

    Both directions share the tiles of `s * V @ W.T`: one takes the log-sum-exp of its rows, the
    other of its columns. Ids, banks and processes work as in `info_nce`.

    Args:
        image: (B, D), rows of length 1.
        text: (B, D), rows of length 1; row i is the partner of image i.
        scale: s > 0, the exponentiated logit scale; a number or a 0-d tensor.
        chunk_size: Side of a tile, >= 1; None chooses. Changes memory and time, not the result.
        bank_image: (G, D) further images, candidates for text queries.
        bank_text: (H, D) further texts, candidates for image queries.
        bank_bias_image: (G,) added to the logits of `bank_image`; -inf marks an empty slot.
        bank_bias_text: (H,) added to the logits of `bank_text`; -inf marks an empty slot.
        image_id: (B,) integers, one a pair; pairs of equal id are not each other's negatives.
        bank_id: (G,) integers of the banks' slots, compared with `image_id`; with two banks G = H.

    Returns:
        A 0-d tensor, at least 0; 0 for B = 1 without banks, log B where all embeddings are equal.

    Raises:
        ValueError: As for `info_nce`.

    Source: seed 003, section 3.1; seed 000, `clip_loss` in Codes 3 and 4 with errata E000-10.
    Derived in notebooks/02_losses.ipynb.
    """
    image, text = check_pairs(image, text, "image", "text")
    check_chunk_size(chunk_size)
    check_vector(image_id, len(image), "image_id", "the batch")
    if bank_id is not None and image_id is None:
        raise ValueError("ids are compared: pass bank_id together with image_id")
    scale, chunk = as_scale(scale, image), chunk_size or default_chunk(image)
    more_texts = _from_bank(bank_text, bank_bias_text, bank_id, image, "bank_text")
    more_images = _from_bank(bank_image, bank_bias_image, bank_id, image, "bank_image")
    if bank_id is not None and not (more_texts or more_images):
        raise ValueError("bank_id needs a bank: pass bank_image, bank_text or both of them")
    plan = Plan(chunk, columns=True, diagonal=True)
    of_image, of_text, positive = log_sum_exp(
        image, text, scale, plan, left_id=image_id, right_id=image_id
    )
    if world()[1] > 1:
        check_equal_shapes(image, image_id is not None)
        more_texts.append(_from_other_processes(text, image_id))
        more_images.append(_from_other_processes(image, image_id))
    of_image = _add_candidates(of_image, image, image_id, more_texts, scale, chunk)
    of_text = _add_candidates(of_text, text, image_id, more_images, scale, chunk)
    return ((of_image + of_text) / 2 - positive).mean()


def _from_bank(
    bank: Tensor | None, bias: Tensor | None, ids: Tensor | None, batch: Tensor, name: str
) -> list[_Candidates]:
    """Check a bank and return it as candidates; an absent or empty one gives none."""
    if bank is None:
        if bias is not None:
            raise ValueError(f"a bias for {name} needs the {name} itself")
        return []
    check_same_width(bank, batch, name)
    check_vector(bias, len(bank), f"bias of {name}", name)
    check_vector(ids, len(bank), "bank_id", name)
    check_bias(bias, name)
    check_unit_rows(bank, name, ignore=None if bias is None else bias == -torch.inf)
    bias = None if bias is None else bias.to(batch.dtype)
    return [_Candidates(bank.to(batch.dtype), bias, ids)] if len(bank) else []


def _from_other_processes(rows: Tensor, ids: Tensor | None) -> _Candidates:
    """Return the rows of all other processes as candidates."""
    return _Candidates(other_rows(rows), None, None if ids is None else other_rows(ids))


def _add_candidates(
    total: Tensor,
    query: Tensor,
    query_id: Tensor | None,
    extra: list[_Candidates],
    scale: Tensor,
    chunk: int,
) -> Tensor:
    """Add candidates to the denominators (B,), which are kept as logarithms."""
    for rows, bias, ids in extra:
        more, _, _ = log_sum_exp(
            query,
            rows,
            scale,
            Plan(chunk),
            bias=bias,
            left_id=None if ids is None else query_id,
            right_id=ids,
        )
        total = torch.logaddexp(total, more)
    return total
