"""The distillation methods and the trainers of the shipped teachers, listed by hand: no registration by side effect."""

from mmkd_lite.methods.base import Method, build
from mmkd_lite.methods.contrast import ImageTextContrast
from mmkd_lite.methods.masked_words import MaskedWords
from mmkd_lite.methods.shre import SHRe
from mmkd_lite.methods.supervised import Supervised

METHODS: dict[str, type[Method]] = {
    "shre": SHRe,
    "contrast": ImageTextContrast,
    "supervised": Supervised,
    "masked_words": MaskedWords,
}

__all__ = ["METHODS", "Method", "build"]
