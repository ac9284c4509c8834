"""Training pictures made harder: RandAugment, erasing, mixup and cutmix, all from timm."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torchvision.transforms.functional import pil_to_tensor, to_pil_image

from mmkd_lite.seeding import seeded


@dataclass(frozen=True)
class Mixing:
    """What is done to a batch; the defaults are the thesis' (BEiTv2's and Data2Vec2's).

    Attributes:
        randaugment: timm's description, "" for none; two operations of magnitude 9 +- 0.5.
        erase: Probability that a rectangle of a picture becomes noise.
        mix_probability: That a batch is mixed with itself in reverse order.
        mixup: alpha of the Beta distribution of mixup's share.
        cutmix: The same of cutmix.
        switch_probability: Of cutmix, where a batch is mixed.
        label_smoothing: Share of the label that is spread over all classes.
    """

    randaugment: str = "rand-m9-mstd0.5-inc1"
    erase: float = 0.25
    mix_probability: float = 0.9
    mixup: float = 0.8
    cutmix: float = 1.0
    switch_probability: float = 0.5
    label_smoothing: float = 0.1


def mix(
    images: Tensor, labels: Tensor, classes: int, how: Mixing, *seed: int
) -> tuple[Tensor, Tensor]:
    r"""Change a batch at random; a pure function of its arguments.

    Mixup and cutmix take picture i and picture B-1-i, with one share for the whole batch:

    .. math:: y_i = \lambda\, e(c_i) + (1 - \lambda)\, e(c_{B-1-i}), \qquad e(c) = (1 - s)\,\mathbf 1_c + s / C

    with smoothing s; :math:`\lambda` is drawn for mixup, and the share of pixels that stay for cutmix.

    Args:
        images: (B, 3, S, S) in [0, 1]; left as they are.
        labels: (B,) class ids.
        classes: C.
        how: What is done.
        seed: Numbers that the randomness is made from, such as run's seed, step and rank.

    Returns:
        Images (B, 3, S, S) and shares (B, C), whose rows sum to 1.

    Raises:
        ValueError: A batch of odd size that is to be mixed.

    Source: seed 000, Code 1 and methods.md 19-20. Derived in notebooks/32_probe_and_finetune.ipynb.
    """
    from timm.data.auto_augment import rand_augment_transform
    from timm.data.mixup import Mixup, mixup_target
    from timm.data.random_erasing import RandomErasing

    if how.mix_probability and len(images) % 2:
        raise ValueError(f"pictures are mixed in pairs: the batch of {len(images)} must be even")
    with seeded(*seed):
        images = images.clone()
        if how.randaugment:
            change = rand_augment_transform(how.randaugment, {})
            changed = [pil_to_tensor(change(to_pil_image(picture))) for picture in images]
            images = torch.stack(changed).to(images) / 255
        if how.mix_probability:
            mixer = Mixup(
                how.mixup, how.cutmix, None, how.mix_probability, how.switch_probability,
                label_smoothing=how.label_smoothing, num_classes=classes,
            )  # fmt: skip
            images, shares = mixer(images, labels)
        else:
            shares = mixup_target(labels, classes, smoothing=how.label_smoothing)
        if how.erase:
            RandomErasing(how.erase, mode="pixel", max_count=1, device="cpu")(images)
    return images.clamp(0, 1), shares
