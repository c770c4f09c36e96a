"""Unsupervised anomaly detection in medical images: diffusion models with temporal harmonisation (THOR).

The public names load on first use, so that `import thorad` and `thorad --help` never wait for torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING

from thorad.errors import ThoradError

if TYPE_CHECKING:
    from thorad.detector import Detector
    from thorad.recipe import Recipe
    from thorad.records import Detection, VolumeDetection
    from thorad.volume_detection import detect_volume

__version__ = "0.1.0"

__all__ = ["Detection", "Detector", "Recipe", "ThoradError", "VolumeDetection", "__version__", "detect_volume"]

_HOME = {
    "Detection": "thorad.records",
    "Detector": "thorad.detector",
    "Recipe": "thorad.recipe",
    "VolumeDetection": "thorad.records",
    "detect_volume": "thorad.volume_detection",
}


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module 'thorad' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
