"""The distillation methods and the trainers of the shipped teachers, listed by hand: no registration by side effect."""

from mmkd_lite.methods.base import Method, build
from mmkd_lite.methods.contrast import ImageTextContrast
from mmkd_lite.methods.distill_clip import DistillCLIP
from mmkd_lite.methods.image_finetuning import ImageFinetuning
from mmkd_lite.methods.masked_words import MaskedWords
from mmkd_lite.methods.memory_bank import MemoryBank
from mmkd_lite.methods.psd import ProgressiveSelfDistillation
from mmkd_lite.methods.quantised_targets import QuantisedTargets
from mmkd_lite.methods.quantiser import Quantiser
from mmkd_lite.methods.retrieval_finetuning import RetrievalFinetuning
from mmkd_lite.methods.self_supervised import MaskedFeatures, MaskedLatents
from mmkd_lite.methods.shared_layers import SharedLayers
from mmkd_lite.methods.shre import SHRe
from mmkd_lite.methods.soft_labels import SoftLabels
from mmkd_lite.methods.ssmke import SSMKE
from mmkd_lite.methods.stagewise import Stagewise
from mmkd_lite.methods.supervised import Supervised
from mmkd_lite.methods.text_student import TextStudent
from mmkd_lite.methods.unimodal import UnimodalImage, UnimodalText

METHODS: dict[str, type[Method]] = {
    "soft_labels": SoftLabels,
    "unimodal_image": UnimodalImage,
    "unimodal_text": UnimodalText,
    "text_student": TextStudent,
    "stagewise": Stagewise,
    "shre": SHRe,
    "contrast": ImageTextContrast,
    "shared_layers": SharedLayers,
    "ssmke": SSMKE,
    "quantiser": Quantiser,
    "quantised_targets": QuantisedTargets,
    "memory_bank": MemoryBank,
    "distill_clip": DistillCLIP,
    "psd": ProgressiveSelfDistillation,
    "retrieval_finetuning": RetrievalFinetuning,
    "image_finetuning": ImageFinetuning,
    "supervised": Supervised,
    "masked_words": MaskedWords,
    "masked_features": MaskedFeatures,
    "masked_latents": MaskedLatents,
}

__all__ = ["METHODS", "Method", "build"]
