"""What a threshold leaves of a map: a binary mask, and the places in it."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import label


@dataclass(frozen=True)
class Finding:
    """One 8-connected place above the threshold, on the image's own grid."""

    pixels: int
    area_mm2: float | None
    """None where the image's spacing isn't known."""
    peak: float
    """The map's highest value in it."""
    peak_position: tuple[int, int]
    """Row and column of that value; the first in reading order among equals."""
    mean: float
    """Of the map over its pixels."""


def findings_in(
    anomaly_map: NDArray[Any], mask: NDArray[np.bool_], spacing: tuple[float, float] | None = None
) -> tuple[Finding, ...]:
    """Describe the 8-connected components of a mask, the highest peak first; none is too small to be kept.

    Args:
        anomaly_map: (H, W).
        mask: (H, W).
        spacing: height and width of a pixel in mm, where known.
    """
    components, count = label(mask, structure=np.ones((3, 3), int))
    inside = np.flatnonzero(mask)
    component, values = components.ravel()[inside] - 1, np.asarray(anomaly_map, np.float64).ravel()[inside]
    pixels = np.bincount(component, minlength=count)
    sums = np.bincount(component, values, minlength=count)
    by_height = np.lexsort((inside, -values, component))
    highest = by_height[np.searchsorted(component[by_height], np.arange(count))]  # one pixel of each component
    found = [
        Finding(
            pixels=int(pixels[number]),
            area_mm2=None if spacing is None else float(pixels[number] * spacing[0] * spacing[1]),
            peak=float(values[pixel]),
            peak_position=(int(inside[pixel] // mask.shape[1]), int(inside[pixel] % mask.shape[1])),
            mean=float(sums[number] / pixels[number]),
        )
        for number, pixel in enumerate(highest)
    ]
    return tuple(sorted(found, key=lambda finding: -finding.peak))
