"""Unsupervised anomaly detection in medical images: diffusion models with temporal harmonisation (THOR).

The public names load on first use, so that `import thorad` and `thorad --help` never wait for torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING

from thorad.errors import ThoradError

if TYPE_CHECKING:
    from thorad.check import Check, RefusedError
    from thorad.detector import Detector
    from thorad.extend import register_dataset, register_engine, register_method, register_network, register_noise
    from thorad.methods import METHODS, Method
    from thorad.recipe import Recipe, load_recipe
    from thorad.records import Detection, Finding, VolumeDetection
    from thorad.training.fit import fit
    from thorad.volume_detection import detect_volume

__version__ = "0.1.0"

_HOME = {
    "METHODS": "thorad.methods",
    "Check": "thorad.check",
    "Detection": "thorad.records",
    "Detector": "thorad.detector",
    "Finding": "thorad.records",
    "Method": "thorad.methods",
    "Recipe": "thorad.recipe",
    "RefusedError": "thorad.check",
    "VolumeDetection": "thorad.records",
    "detect_volume": "thorad.volume_detection",
    "fit": "thorad.training.fit",
    "load_recipe": "thorad.recipe",
    "register_dataset": "thorad.extend",
    "register_engine": "thorad.extend",
    "register_method": "thorad.extend",
    "register_network": "thorad.extend",
    "register_noise": "thorad.extend",
}

__all__ = [
    "METHODS",
    "Check",
    "Detection",
    "Detector",
    "Finding",
    "Method",
    "Recipe",
    "RefusedError",
    "ThoradError",
    "VolumeDetection",
    "__version__",
    "detect_volume",
    "fit",
    "load_recipe",
    "register_dataset",
    "register_engine",
    "register_method",
    "register_network",
    "register_noise",
]


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module 'thorad' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
