"""Zero-shot classification: class names in sentences become the rows of a classifier."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from mmkd_lite.data.prompts import check_templates, templates_hash
from mmkd_lite.evaluate.recall import recall_interval

TextEncoder = Callable[[list[str]], Tensor]


def zero_shot_classifier(
    encode_text: TextEncoder, class_names: Sequence[str], templates: Sequence[str]
) -> Tensor:
    r"""Turn class names into a linear classifier: normalise, average over templates, normalise.

    .. math:: w_c = \frac{m_c}{\|m_c\|}, \qquad
              m_c = \frac1P \sum_{p=1}^{P} \frac{f(s_{pc})}{\|f(s_{pc})\|}

    Args:
        encode_text: Maps n sentences to (n, D); any length of vectors.
        class_names: C distinct names.
        templates: P sentences with one "{}" each.

    Returns:
        (D, C), columns of length 1: `image @ classifier` are the class scores.

    Raises:
        ValueError: Fewer than two classes, a name that is empty or occurs twice, a template without "{}", or
            an encoder that gives another number of vectors, NaN or vectors of length 0.

    Source: seed 003, section 3.3.2 (CLIP's prompt ensemble). Derived in notebooks/31_zero_shot.ipynb.
    """
    names = [name.strip() for name in class_names]
    if len(names) < 2 or not all(names):
        raise ValueError(f"zero-shot classification needs two or more class names, got {names}")
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"class names occur twice: {', '.join(twice)}")
    templates = check_templates(templates)
    sentences = [template.replace("{}", name) for name in names for template in templates]
    vectors = encode_text(sentences).float()  # (C * P, D)
    if vectors.ndim != 2 or len(vectors) != len(sentences):
        raise ValueError(
            f"encode_text gave shape {tuple(vectors.shape)} for {len(sentences)} sentences; give (n, D)"
        )
    lengths = vectors.norm(dim=-1)
    if not bool(torch.isfinite(lengths).all()) or not bool((lengths > 0).all()):
        raise ValueError("text embeddings hold NaN or infinite numbers, or vectors of length 0")
    means = F.normalize(vectors, dim=-1).view(len(names), len(templates), -1).mean(dim=1)
    return F.normalize(means, dim=-1).T


def zero_shot_accuracy(image: Tensor, classifier: Tensor, label: Tensor) -> dict[str, Any]:
    """Score a classifier on embedded pictures; a tie counts against us.

    Args:
        image: (N, D) embeddings of any length.
        classifier: (D, C) from `zero_shot_classifier`.
        label: (N,) class indices in [0, C).

    Returns:
        `accuracy`, `chance` and `majority` in per cent, `n` and `classes`.

    Raises:
        ValueError: Shapes that do not fit, NaN, or a label outside [0, C).
    """
    classes = classifier.shape[1]
    if image.ndim != 2 or image.shape[1] != classifier.shape[0] or label.shape != image.shape[:1]:
        raise ValueError(
            f"image (N, D), classifier (D, C) and label (N,) do not fit: {tuple(image.shape)}, "
            f"{tuple(classifier.shape)}, {tuple(label.shape)}"
        )
    if not bool(torch.isfinite(image).all() and torch.isfinite(classifier).all()):
        raise ValueError("embeddings hold NaN or infinite numbers")
    if not len(label) or int(label.min()) < 0 or int(label.max()) >= classes:
        raise ValueError(f"labels must lie in [0, {classes}), N >= 1")
    return {
        "accuracy": 100 * float(first_alone(image @ classifier, label).double().mean()),
        "chance": 100 / classes,
        "majority": 100 * float(torch.bincount(label).max()) / len(label),
        "n": len(label),
        "classes": classes,
    }


def first_alone(scores: Tensor, label: Tensor) -> Tensor:
    """Tell for each row of scores (N, C) whether its label's score beats all others: bool (N,)."""
    own = scores.gather(1, label[:, None])
    return own[:, 0] > scores.scatter(1, label[:, None], -torch.inf).amax(dim=1)


def class_subset(
    scores: Tensor, label: Tensor, subset: Sequence[int]
) -> tuple[Tensor, Tensor, Tensor]:
    """Ask among some classes only: drop the others' scores *before* the arg-max, and their pictures.

    Args:
        scores: (N, C) class scores.
        label: (N,) class indices.
        subset: c distinct class indices, c >= 2.

    Returns:
        Scores (n, c), labels (n,) as positions in `subset`, and the rows (n,) that were kept.

    Raises:
        ValueError: A subset that is too small, holds a class twice or one outside [0, C), or has no picture.

    Source: seed 003, section 3.3.1 (ImageNet-A's 200 of 1,000 classes). Derived in notebooks/31_zero_shot.ipynb.
    """
    chosen, classes = [int(c) for c in subset], scores.shape[1]
    if len(chosen) < 2 or len(set(chosen)) < len(chosen):
        raise ValueError(f"a subset needs two or more distinct classes, got {chosen}")
    outside = [c for c in chosen if not 0 <= c < classes]
    if outside:
        raise ValueError(f"the subset names classes {outside}, but there are {classes}: 0 onwards")
    place = torch.full((classes,), -1, dtype=torch.int64)
    place[chosen] = torch.arange(len(chosen))
    rows = (place[label] >= 0).nonzero()[:, 0]
    if not len(rows):
        raise ValueError("no picture has a label in the subset")
    return scores[rows][:, chosen], place[label[rows]], rows


def zero_shot_report(
    encode_text: TextEncoder,
    image: Tensor,
    label: Tensor,
    class_names: Sequence[str],
    templates: Sequence[str],
    *,
    subset: Sequence[int] | None = None,
    groups: Tensor | None = None,
) -> dict[str, Any]:
    """Classify pictures by name, with the protocol and everything needed to read the number.

    Args:
        encode_text: As in `zero_shot_classifier`.
        image: (N, D) embeddings.
        label: (N,) class indices.
        class_names: C distinct names.
        templates: P sentences with one "{}" each.
        subset: Ask among these classes only, see `class_subset`.
        groups: (N,) what pictures have in common (their concept), for the interval.

    Returns:
        As `zero_shot_accuracy`; `mean_per_class` (mean over the classes that occur), `low` and `high` (95 %
        over pictures) in per cent; `absent` (classes without a picture); `protocol`; `hits` (n,) bool.

    Raises:
        ValueError: As the functions above; also pictures, or classes, that all have one and the same embedding.

    Source: seed 003, section 3.3.2; mean per class as E003-13. Derived in notebooks/31_zero_shot.ipynb.
    """
    classifier = zero_shot_classifier(encode_text, class_names, templates)
    zero_shot_accuracy(image, classifier, label)  # checks
    for what, rows in (("picture", image), ("class", classifier.T)):
        if len(rows) > 1 and bool((rows == rows[:1]).all()):
            raise ValueError(f"every {what} has the same embedding: the encoder has collapsed")
    scores, chosen = image @ classifier, list(range(len(class_names)) if subset is None else subset)
    scores, label, rows = class_subset(scores, label, chosen)
    hits, count = first_alone(scores, label), torch.bincount(label, minlength=len(chosen))
    right = torch.bincount(label, weights=hits.double(), minlength=len(chosen))
    low, high = recall_interval(2 - hits.long(), 1, None if groups is None else groups[rows])
    part = "" if subset is None else f"/of={len(class_names)}"
    return {
        "accuracy": 100 * float(hits.double().mean()),
        "mean_per_class": 100 * float((right / count)[count > 0].mean()),
        "low": low,
        "high": high,
        "chance": 100 / len(chosen),
        "majority": 100 * float(count.max()) / len(label),
        "n": len(label),
        "classes": len(chosen),
        "absent": int((count == 0).sum()),
        "protocol": f"zero-shot/classes={len(chosen)}{part}/templates={templates_hash(templates)}/ties=against",
        "hits": hits,
    }
