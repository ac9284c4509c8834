"""Zero-shot classification: class names in sentences become the rows of a classifier."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def zero_shot_classifier(
    encode_text: Callable[[list[str]], Tensor], class_names: Sequence[str], templates: Sequence[str]
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
        ValueError: Fewer than two classes, a name that is empty or occurs twice, or a template
            without "{}".

    Source: seed 003, section 3.3.1 (CLIP's prompt ensemble). Derived in notebooks/31_zero_shot.ipynb.
    """
    names = [name.strip() for name in class_names]
    if len(names) < 2 or not all(names):
        raise ValueError(f"zero-shot classification needs two or more class names, got {names}")
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"class names occur twice: {', '.join(twice)}")
    broken = [template for template in templates if template.count("{}") != 1]
    if broken or not templates:
        raise ValueError(f"every template needs one '{{}}' for the class name; not so: {broken}")
    sentences = [template.replace("{}", name) for name in names for template in templates]
    vectors = F.normalize(encode_text(sentences).float(), dim=-1)  # (C * P, D)
    means = vectors.view(len(names), len(templates), -1).mean(dim=1)
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
    scores = image @ classifier
    own = scores.gather(1, label[:, None])
    others = scores.scatter(1, label[:, None], -torch.inf).amax(dim=1)
    return {
        "accuracy": 100 * float((own[:, 0] > others).double().mean()),
        "chance": 100 / classes,
        "majority": 100 * float(torch.bincount(label).max()) / len(label),
        "n": len(label),
        "classes": classes,
    }
