"""Multimodal knowledge distillation, small enough to read: the package the notebooks derive.

The rooms (`mmkd_lite.losses`, `mmkd_lite.models`, ...) are imported when they are first named, so
that `import mmkd_lite` and `python -m mmkd_lite --help` stay quick.
"""

import warnings
from importlib import import_module
from types import ModuleType

__version__ = "0.1.0"

# Libraries ask tqdm for a notebook's progress widget; plain text is meant, and no warning is needed.
warnings.filterwarnings("ignore", message="IProgress not found")

ROOMS = (
    "checks",
    "config",
    "data",
    "distiller",
    "embeddings",
    "evaluate",
    "losses",
    "methods",
    "models",
    "plotting",
    "results",
    "teachers",
    "train",
)


def __getattr__(name: str) -> ModuleType:
    """Import a room of the package at its first use."""
    if name in ROOMS:
        return import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
