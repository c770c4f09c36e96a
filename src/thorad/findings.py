"""What a threshold leaves of a map: the connected components of a binary mask.

Shapes: C components.
"""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from thorad.records import Finding


class Components(NamedTuple):
    """The connected components of a mask; pixels or voxels touch by faces, edges and corners."""

    labels: NDArray[np.int32]
    """As the mask: 1 ... C, 0 outside."""
    sizes: NDArray[np.int64]
    """(C,) pixels or voxels of each."""


def components(mask: NDArray[np.bool_]) -> Components:
    """Find the connected components of a mask of any number of axes."""
    labels, count = ndimage.label(mask, structure=np.ones([3] * mask.ndim, int))
    return Components(labels, np.bincount(labels.ravel(), minlength=count + 1)[1:])


def peak_pixels(labels: NDArray[np.int32], values: NDArray[Any]) -> NDArray[np.int64]:
    """The highest pixel of each component, of equally high ones the first: (C,) flat indices.

    Args:
        labels: of `components`.
        values: of the same shape; finite within the components.
    """
    inside = np.flatnonzero(labels)
    component = labels.ravel()[inside]
    by_height = np.lexsort((inside, -values.ravel()[inside], component))
    _, first = np.unique(component[by_height], return_index=True)
    return inside[by_height[first]]


def findings_in(
    anomaly_map: NDArray[Any],
    mask: NDArray[np.bool_],
    each_mm: float | None = None,
    share: NDArray[np.float64] | None = None,
) -> tuple[Finding, ...]:
    """Describe the connected components of a mask, the highest peak first; none is too small to be kept.

    Args:
        anomaly_map: (H, W) or (I, J, K); finite within the mask.
        mask: of the same shape.
        each_mm: area of a pixel, mm², or volume of a voxel, mm³, where known.
        share: (N,) of the mask's N voxels, in the order of `numpy.argwhere`: how much of each counts for the volume;
            None for all of it.
    """
    if not mask.any():
        return ()
    box = _box_around(mask)  # a volume of which a few slices were looked at is mostly empty, and may be large
    values, inside = np.asarray(anomaly_map[box], np.float64), mask[box]
    labels, sizes = components(inside)
    counted = sizes if share is None else np.bincount(labels[inside], share, minlength=sizes.size + 1)[1:]
    sums = np.bincount(labels[inside], values[inside], minlength=sizes.size + 1)[1:]
    corner = np.array([side.start for side in box])
    found = [
        Finding(
            pixels=int(size),
            area_mm2=None if each_mm is None or mask.ndim != 2 else float(size * each_mm),
            volume_mm3=None if each_mm is None or mask.ndim != 3 else float(volume * each_mm),
            peak=float(values.flat[peak]),
            peak_position=tuple((corner + np.unravel_index(peak, inside.shape)).tolist()),
            mean=float(total / size),
        )
        for size, volume, total, peak in zip(sizes, counted, sums, peak_pixels(labels, values), strict=True)
    ]
    return tuple(sorted(found, key=lambda finding: -finding.peak))


def _box_around(mask: NDArray[np.bool_]) -> tuple[slice, ...]:
    """The smallest that holds a mask which is not empty."""
    box = []
    for axis in range(mask.ndim):
        there = np.flatnonzero(mask.any(axis=tuple(other for other in range(mask.ndim) if other != axis)))
        box.append(slice(int(there[0]), int(there[-1]) + 1))
    return tuple(box)
