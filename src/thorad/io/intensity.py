"""An image's own scale to [0, 1]."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from thorad.errors import ThoradError

BRIGHTEST = 98
"""Percentile of an image's own pixels that becomes 1, as for the brain images of Bercea et al. (THOR, MICCAI 2024)."""

MOST_NEGATIVE = 0.05
"""Share of an image's pixels that may be below 0 and are cut to 0: what resampling overshoots. More are a scale of its
own (z-scores, Hounsfield units), whose 0 is not nothing."""


def scale(pixels: NDArray[Any]) -> NDArray[np.float32]:
    """clip(pixels / percentile98(pixels), 0, 1): (H, W) float32 on the image's own grid.

    Raises:
        ThoradError: more than 5 % of the pixels are negative, or the 98th percentile is 0, so that there is nothing to
            scale by.
    """
    negative = np.count_nonzero(pixels < 0) / pixels.size
    if negative > MOST_NEGATIVE:
        raise ThoradError(
            f"{100 * negative:.3g} % of the image's pixels are negative; expected pixels >= 0, where 0 is nothing. "
            "Shift or window it first, so that air is 0: a z-scored image back to intensities, CT to a window."
        )
    brightest = float(np.percentile(pixels, BRIGHTEST))
    if brightest <= 0:
        lit = pixels[pixels > 0]
        advice = "Is it a mask?" if lit.size and lit.min() == lit.max() else "Crop it to the anatomy."
        raise ThoradError(
            f"The image is nearly empty: only {100 * lit.size / pixels.size:.2g} % of its pixels are above 0, and the "
            f"{BRIGHTEST}th percentile, by which it would be scaled, is {brightest:g}. {advice}"
        )
    scaled = np.clip(pixels, 0, brightest)  # of floats, for the bounds are
    scaled /= brightest  # in place: a volume may take 400 MB
    return np.asarray(scaled, dtype=np.float32)
