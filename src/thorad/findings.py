"""What a threshold leaves of a map: a binary mask, and the places in it."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import label

from thorad.records import Finding


def findings_in(
    anomaly_map: NDArray[Any], mask: NDArray[np.bool_], spacing: Sequence[float] | None = None
) -> tuple[Finding, ...]:
    """Describe the connected components of a mask, the highest peak first; none is too small to be kept.

    Args:
        anomaly_map: (H, W) or (I, J, K); finite within the mask.
        mask: of the same shape.
        spacing: of the pixels or voxels along each axis, mm, where known.
    """
    components, count = label(mask, structure=np.ones([3] * mask.ndim, int))
    inside = np.flatnonzero(mask)
    component, values = components.ravel()[inside] - 1, np.asarray(anomaly_map, np.float64).ravel()[inside]
    pixels = np.bincount(component, minlength=count)
    sums = np.bincount(component, values, minlength=count)
    by_height = np.lexsort((inside, -values, component))
    highest = by_height[np.searchsorted(component[by_height], np.arange(count))]  # one pixel of each component
    each_mm = None if spacing is None else math.prod(spacing)
    found = [
        Finding(
            pixels=int(pixels[number]),
            area_mm2=None if each_mm is None or mask.ndim != 2 else float(pixels[number] * each_mm),
            volume_mm3=None if each_mm is None or mask.ndim != 3 else float(pixels[number] * each_mm),
            peak=float(values[pixel]),
            peak_position=tuple(int(index) for index in np.unravel_index(inside[pixel], mask.shape)),
            mean=float(sums[number] / pixels[number]),
        )
        for number, pixel in enumerate(highest)
    ]
    return tuple(sorted(found, key=lambda finding: -finding.peak))
