"""Lesion size groups and their averages, as the field reports them for brain slices (Bercea et al.).

Sizes are lesion pixels of one slice on the 128x128 model grid. On another grid the limits scale with the pixel area.
"""

from collections.abc import Mapping
from typing import Final

import numpy as np
from numpy.typing import NDArray

REFERENCE_GRID: Final = 128  # side of the grid, in px, on which the limits of `SIZE_GROUPS` are counted
SIZE_GROUPS: Final[Mapping[str, tuple[float, float]]] = {
    "small": (3.0, 71.0),
    "medium": (71.0, 570.0),
    "large": (570.0, np.inf),
}
"""Group -> (more than, at most) lesion pixels at 128x128."""

PAPER_MIX: Final = (0.4706, 0.3812, 0.1471)
"""The paper's share of small, medium and large lesions.

It is not printed there: least squares on the six published rows (average, small, medium, large) gives it and
reproduces every published average to 0.004 points. The shares sum to 0.9989 and are normalised where they are used.
"""


def size_group(lesion_pixels: int, grid_size: int = REFERENCE_GRID) -> str | None:
    """Name the size group of a lesion of `lesion_pixels` px on a grid of `grid_size` x `grid_size` px.

    A lesion of 3 px or fewer (at 128x128) belongs to no group: None. It still counts in everything that is pooled.
    """
    scale = (grid_size / REFERENCE_GRID) ** 2
    for group, (more_than, at_most) in SIZE_GROUPS.items():
        if more_than * scale < lesion_pixels <= at_most * scale:
            return group
    return None


def lesion_weighted_average(
    group_values: NDArray[np.float64], lesion_counts: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Average small, medium and large, each weighted with its number of lesion cases in this bench.

    Values and counts are (..., 3), in the order of `SIZE_GROUPS`. Absent groups (NaN, or a count of 0) are left out;
    NaN if all are absent.
    """
    present = np.isfinite(group_values) & (lesion_counts > 0)
    weights = np.where(present, lesion_counts, 0.0)
    total = weights.sum(axis=-1)
    weighted = (weights * np.where(present, group_values, 0.0)).sum(axis=-1)
    return np.where(total > 0, weighted / np.maximum(total, 1e-12), np.nan)


def paper_mix(group_values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Average small, medium and large with the paper's own mix of sizes, `PAPER_MIX`.

    Benches differ in their mix, and the average moves with it; this one compares with the published averages. Values
    are (..., 3), in the order of `SIZE_GROUPS`; NaN where any group is absent.
    """
    weights = np.asarray(PAPER_MIX)
    return np.asarray(group_values @ (weights / weights.sum()))
