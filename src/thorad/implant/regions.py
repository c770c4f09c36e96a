"""Where the body and its bones are in an X-ray of a limb, as brightness tells it."""

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import distance_transform_edt, gaussian_filter, label

from thorad.errors import ThoradError
from thorad.implant.lesions import Mask

UNIT: Final = 1 / 64  # of the shorter side: what findings and margins are measured in, so that they grow with the image
SMALLEST_BODY: Final = 0.08  # least share of an image that a body has; less is a marker
OTSU_SHARE: Final = 0.7  # of Otsu's threshold, which lies between flesh and bone: what is above is body
BORDER: Final = 2  # units that belong to nothing: there the plate's edge shines
THICKEST: Final = 1.2  # greatest thickness of a body, in shorter sides, where 1 of the area is allowed
BONE_SPREAD: Final = 4  # units: standard deviation of the Gaussian mean that bone is brighter than
BONE_CONTRAST: Final = 0.02  # by how much


def body_region(image: NDArray[Any], *, most: float) -> Mask:
    """The largest connected bright part of an X-ray: a hand on a dark ground.

    Bright is above a share of Otsu's threshold (IEEE Trans. SMC 9, 1979) of the slightly blurred image.

    Args:
        image: (H, W) in [0, 1].
        most: share of the image that the region may have; its greatest thickness may be `THICKEST` of that in shares
            of the shorter side.

    Raises:
        ThoradError: its share of the image is not that of a limb, as where the exposed field is bright all over.
    """
    unit = UNIT * min(image.shape)
    smooth = gaussian_filter(image.astype(float), 0.5 * unit)
    bright = smooth > OTSU_SHARE * otsu_threshold(smooth)
    border = max(1, round(BORDER * unit))
    inner = np.zeros(image.shape, dtype=np.bool_)
    inner[border:-border, border:-border] = True
    parts, _ = label(bright & inner)
    sizes = np.bincount(parts.ravel())
    sizes[0] = 0
    body = np.asarray(parts == sizes.argmax(), dtype=np.bool_) & bool(sizes.any())
    share = np.count_nonzero(body) / body.size
    thickness = 2 * float(distance_transform_edt(np.pad(body, 1)).max()) / min(image.shape)
    if not (SMALLEST_BODY <= share <= most and thickness <= THICKEST * most):
        raise ThoradError(
            f"The largest bright part is {100 * share:.0f} % of the image and {100 * thickness:.0f} % of its side "
            f"thick; expected {100 * SMALLEST_BODY:.0f} to {100 * most:.0f} % and at most "
            f"{100 * THICKEST * most:.0f} %, as of a limb on a dark ground. Crop the image to its exposed field, allow "
            "the body a larger share (`--body-share`), or leave the image out. In anything but X-rays implant lesions: "
            "`--findings dark,bright`."
        )
    return body


def bone_region(image: NDArray[Any], body: Mask) -> Mask:
    """Where the body is brighter than its Gaussian mean: (H, W)."""
    spread = BONE_SPREAD * UNIT * min(image.shape)
    weight = gaussian_filter(body.astype(float), spread)
    mean = gaussian_filter(np.where(body, image, 0).astype(float), spread) / np.maximum(weight, 1e-6)
    return np.asarray(body & (image > mean + BONE_CONTRAST), dtype=np.bool_)


def otsu_threshold(image: NDArray[Any], levels: int = 256) -> float:
    """The threshold that parts an image in [0, 1] with the largest variance between its two classes (Otsu 1979)."""
    counts, edges = np.histogram(image, bins=levels, range=(0, 1))
    middles = (edges[1:] + edges[:-1]) / 2
    below = np.cumsum(counts)[:-1].astype(float)
    above = counts.sum() - below
    sums = np.cumsum(counts * middles)
    mean_below = sums[:-1] / np.maximum(below, 1)
    mean_above = (sums[-1] - sums[:-1]) / np.maximum(above, 1)
    return float(edges[1 + np.argmax(below * above * (mean_below - mean_above) ** 2)])
