"""How an image and its reconstruction are compared: tensors in, tensors out, no files but the perceptual weights."""

from thorad.maps.anomaly_map import AnomalyMap, close_and_dilate, guidance_mask, harmonic_mean, residual
from thorad.maps.perceptual import PerceptualDistance, load_perceptual_distance

__all__ = [
    "AnomalyMap",
    "PerceptualDistance",
    "close_and_dilate",
    "guidance_mask",
    "harmonic_mean",
    "load_perceptual_distance",
    "residual",
]
