"""Multimodal knowledge distillation, small enough to read: the package the notebooks derive.

The rooms (`mmkd_lite.losses`, `mmkd_lite.models`, ...) are imported when they are first named, so
that `import mmkd_lite` and `python -m mmkd_lite --help` stay quick.
"""

from importlib import import_module
from types import ModuleType

__version__ = "0.1.0"

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
