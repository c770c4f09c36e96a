"""Implant lesions in healthy images: something to look for where there are no labels.

Places and looks are simulated. What is found among them says that a method works, not how well it does on patients. No
paper gives the constants below; they are this project's choice, for what looks like a lesion.
"""

from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import distance_transform_edt, gaussian_filter

from thorad.errors import ThoradError

FLATTEST: Final = 1.4  # the ellipse's axes are the radius times, and divided by, a number from 1 to this
IRREGULARITY: Final = 0.3  # standard deviation of the outline about its ellipse, in radii
OUTLINE_BLUR: Final = 0.5  # standard deviation of the Gaussian that makes the outline's bays, in radii
FARTHEST: Final = 2  # radii from the centre, beyond which nothing belongs to the lesion
EDGE: Final = 0.15  # standard deviation of the blur of the edge, in radii
BLUR_REACH: Final = 3  # how far that blur reaches, in standard deviations

Mask = NDArray[np.bool_]
Floats = NDArray[np.float64]
Implanted = tuple[NDArray[np.float32], Mask]
"""The image with a finding, (H, W) in [0, 1], and the finding's mask, (H, W)."""


def implant_lesion(
    image: NDArray[Any],
    generator: np.random.Generator,
    *,
    region: Mask,
    kind: Literal["dark", "bright"] = "dark",
    radius_px: float,
    strength: float,
) -> Implanted:
    """Add one lesion with an irregular outline and a smooth edge, under which the image's own texture stays.

    Args:
        image: (H, W) in [0, 1]; left as it is, and so are pixels outside the region.
        generator: draws the place, the ellipse and the random field that bends its outline.
        region: (H, W), where lesions may lie, such as the brain.
        kind: darker than the tissue, or brighter.
        radius_px: mean of the ellipse's two, px; at least 1.
        strength: how much darker or brighter its inside becomes, in (0, 1]. Pixels stay within [0, 1].

    Returns:
        The image with the lesion, and its mask: where the image changed by more than half the strength.

    Raises:
        ThoradError: sizes that differ, values out of bounds, or a region that has no place for such a lesion.
    """
    check_region(image, region)
    check_radius_and_strength(radius_px, strength)
    change = -strength if kind == "dark" else strength
    healthy = image.astype(np.float32)
    depth = distance_transform_edt(np.pad(region, 1))[1:-1, 1:-1]  # (H, W), px to the nearest pixel outside
    # The centre: deep enough for most of the lesion to lie inside, and not black (or white) already.
    visible = np.abs(np.clip(healthy + change, 0, 1) - healthy) > strength / 2
    centres = np.argwhere((depth > radius_px) & visible)
    if not len(centres):
        place = f"for a {kind} lesion of radius {radius_px:g} px and strength {strength:g}"
        raise no_place(place, region, "Choose a smaller radius or strength, or a larger region.")
    row, column = centres[generator.integers(len(centres))]
    # A margin of the blur's reach keeps the edge smooth at the region's border too.
    inside = _irregular_ellipse(generator, image.shape, row, column, radius_px)
    inside &= depth > BLUR_REACH * EDGE * radius_px
    blurred = gaussian_filter(inside.astype(np.float32), EDGE * radius_px, truncate=BLUR_REACH)
    diseased = np.clip(healthy + change * (blurred * region), 0, 1).astype(np.float32)
    mask = np.abs(diseased - healthy) > strength / 2
    return diseased, np.asarray(mask, dtype=np.bool_)


def check_region(image: NDArray[Any], region: Mask) -> None:
    """Refuse an image and a region that are not of one size, and an image outside [0, 1], by a ThoradError."""
    if image.ndim != 2 or image.shape != region.shape:
        raise ThoradError(f"The image is {image.shape}, its region {region.shape}; expected one (height, width).")
    if not (image.min() >= 0 and image.max() <= 1):
        raise ThoradError(f"The image lies in {image.min():g}...{image.max():g}; expected [0, 1]. Scale it first.")


def no_place(place: str, region: Mask, advice: str) -> ThoradError:
    """The error that a region lacks a place `for` a finding, or `where` it would show."""
    return ThoradError(f"The region of {np.count_nonzero(region)} px has no place {place}. {advice}")


def check_radius_and_strength(radius_px: float, strength: float) -> None:
    """Refuse a radius below 1 px and a strength outside (0, 1], by a ThoradError."""
    if not (radius_px >= 1 and 0 < strength <= 1):
        raise ThoradError(
            f"Radius {radius_px:g} px, strength {strength:g}; expected at least 1 px, and above 0 up to 1."
        )


def _irregular_ellipse(
    generator: np.random.Generator, shape: tuple[int, ...], row: int, column: int, radius_px: float
) -> Mask:
    """(H, W): the inside of an ellipse about a centre whose outline a random field moves in and out."""
    rows, columns = np.arange(shape[0])[:, None] - row, np.arange(shape[1])[None, :] - column
    angle, flatness = generator.uniform(0, np.pi), generator.uniform(1, FLATTEST)
    along = (rows * np.sin(angle) + columns * np.cos(angle)) / (radius_px * flatness)
    across = (rows * np.cos(angle) - columns * np.sin(angle)) / (radius_px / flatness)
    field = gaussian_filter(generator.standard_normal(shape), OUTLINE_BLUR * radius_px)
    field *= IRREGULARITY / field.std()
    # Less of the field towards the centre, so that the lesion is one and lies where it was put.
    distance = np.hypot(along, across)
    inside = (distance + field * np.minimum(distance, 1) < 1) & (distance < FARTHEST)
    return np.asarray(inside, dtype=np.bool_)
