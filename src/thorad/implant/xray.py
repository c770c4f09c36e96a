"""Implant findings in healthy X-rays of limbs: wires, plates, fractures, foreign bodies and swellings.

Places and looks are simulated. What is found among them says that a method works, not how well it does on patients. No
paper gives the constants below; they are this project's choice, of what the finding looks like in X-rays of hands.

Every function takes an `image`, (H, W) in [0, 1], that it leaves as it is, a `generator` that draws the place and the
shape, and masks, (H, W), of where the `body` and its `bone` are; lengths and radii are in px, widths at least 0.5. It
returns the image with the finding and the finding's mask. It raises a ThoradError where sizes differ, values are out of
bounds, or no place is left where the finding would show.
"""

from collections.abc import Iterator
from itertools import pairwise
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import distance_transform_edt, gaussian_filter, map_coordinates

from thorad.errors import ThoradError
from thorad.implant.lesions import Floats, Implanted, Mask, check_radius_and_strength, check_region, no_place

ADVICE: Final = "Choose smaller measures, or another image."
TRIES: Final = 300  # places, before an image is said to have none
CONTRAST: Final = 0.2  # least mean change over the mask of metal, a foreign body or a fracture
COVERED: Final = 0.25  # least share of a pixel in the mask that is covered: wires are thinner than a pixel
LONG: Final = 0.65  # least elongation of the bone about a place, 1 - (short / long axis)^2
IN_BONE: Final = 0.5  # least share of a metal's mask that lies in the bone

MOST_PINS: Final = 2
PIN_ANGLE: Final = (0.2, 0.7)  # radians between the first wire and the bone's axis, as wires cross a fracture
PIN_TURN: Final = (0.2, 0.5)  # radians between two wires
PIN_MIDDLE: Final = (0.35, 0.65)  # where along the wire the bone's middle lies, in lengths

SCREWS: Final = (3, 5)  # in a plate
SCREWS_REACH: Final = 0.42  # from the plate's middle to the outermost screw, in lengths
SCREW_WIDTH: Final = 0.5  # in plate widths

FRACTURE_TILT: Final = 0.6  # radians, at most, from a right angle to the bone
FRACTURE_STEP: Final = 1.5  # between corners of the line, in its widths
FRACTURE_JITTER: Final = 0.4  # standard deviation of the corners about a straight line, in widths
FRACTURE_LENGTH: Final = (2.0, 2.5)  # least length, in half thicknesses of the bone and in widths

BODY_EDGES: Final = 5  # of a foreign body
BODY_FLATTEST: Final = 1.5  # its axes are the radius times, and divided by, a number from 1 to this
BODY_JITTER: Final = 0.4  # radians, at most, by which its edges are turned from a regular polygon's

THINNEST_SKIN: Final = 1.5  # px under the surface, where a third of a swelling's radius is less
SKIN_BLUR: Final = 0.5  # standard deviation of the blur of the body by which outward is found, in radii
SKIN_SLOPE: Final = 0.3  # least slope of the blurred body, in 1 / radius: less is no surface
BULGE: Final = (0.35, 0.55)  # how far the skin moves outward, in radii
SOFT_BLUR: Final = 0.2  # standard deviation of the blur by which soft tissue fades into bone, in radii
SHOWN: Final = 0.25  # least mean change over the mask of a swelling, in strengths


def implant_pins(
    image: NDArray[Any], generator: np.random.Generator, *, bone: Mask, length_px: float, width_px: float
) -> Implanted:
    """Drive one or two straight wires into a bone, at an acute angle to its axis: white, with sharp edges."""
    check_region(image, bone)
    for centre, axis, _ in _long_bones(image, generator, bone, image < 1 - CONTRAST):
        tilt = generator.choice([-1, 1]) * generator.uniform(*PIN_ANGLE)
        metal = np.zeros(image.shape)
        for wire in range(generator.integers(1, MOST_PINS + 1)):
            direction = _turned(axis, tilt + wire * generator.uniform(*PIN_TURN))
            along = generator.uniform(*PIN_MIDDLE) * length_px
            metal = np.maximum(metal, _stroke(image.shape, centre, direction, -along, length_px - along, width_px))
        if implanted := _brightened(image, metal, bone, IN_BONE):
            return implanted
    raise no_place(f"where pins {length_px:g} px long would show", bone, ADVICE)


def implant_plate(
    image: NDArray[Any], generator: np.random.Generator, *, bone: Mask, length_px: float, width_px: float
) -> Implanted:
    """Fix a plate along a bone, seen from its edge, with three to five screws of half its width across the bone."""
    check_region(image, bone)
    for centre, axis, depth in _long_bones(image, generator, bone, image < 1 - CONTRAST):
        across = _turned(axis, generator.choice([-1, 1]) * np.pi / 2)
        middle = centre + across * depth
        metal = _stroke(image.shape, middle, axis, -length_px / 2, length_px / 2, width_px)
        screws = int(generator.integers(SCREWS[0], SCREWS[1] + 1))
        length, width = width_px / 2 + 2 * depth, SCREW_WIDTH * width_px
        for at in np.linspace(-SCREWS_REACH, SCREWS_REACH, screws) * length_px:
            metal = np.maximum(metal, _stroke(image.shape, middle + axis * at, -across, 0, length, width))
        if implanted := _brightened(image, metal, bone, IN_BONE):
            return implanted
    raise no_place(f"where a plate {length_px:g} px long would show", bone, ADVICE)


def implant_fracture(
    image: NDArray[Any],
    generator: np.random.Generator,
    *,
    bone: Mask,
    length_px: float,
    width_px: float,
    strength: float,
) -> Implanted:
    """Break a bone: a thin, dark, jagged line across it, from one side to the other.

    Args:
        bone: (H, W), where the bones are; the line ends half its width beyond.
        length_px: of the line at most, px, where the bone is wider.
        width_px: of the line, px; at least 0.5.
        strength: which share of the bone's brightness is gone in the line, in (0, 1].
    """
    check_region(image, bone)
    if not 0 < strength <= 1:
        raise ThoradError(f"Strength {strength:g}; expected above 0 up to 1.")
    for centre, axis, depth in _long_bones(image, generator, bone, strength * image > CONTRAST):
        across = _turned(axis, np.pi / 2 + generator.uniform(-FRACTURE_TILT, FRACTURE_TILT))
        reach = [_reach(bone, centre, side * across, length_px / 2) + width_px / 2 for side in (-1, 1)]
        line = _jagged_line(image.shape, generator, centre, across, reach, width_px)
        broken = (image * (1 - strength * line)).astype(np.float32)
        mask = line > COVERED
        shortest = max(FRACTURE_LENGTH[0] * depth, FRACTURE_LENGTH[1] * width_px)
        if sum(reach) > shortest and (image - broken)[mask].mean() > CONTRAST:
            return broken, np.asarray(mask, dtype=np.bool_)
    raise no_place(f"where a fracture {width_px:g} px wide, strength {strength:g} would show", bone, ADVICE)


def implant_foreign_body(
    image: NDArray[Any], generator: np.random.Generator, *, region: Mask, radius_px: float
) -> Implanted:
    """Put a small, dense splinter of a mean radius into a region: bright, compact, angular, with a sharp edge."""
    check_region(image, region)
    centres = np.argwhere(region & (image < 1 - 2 * CONTRAST))
    rows, columns = np.indices(image.shape)
    for row, column in generator.permutation(centres)[:TRIES]:
        regular = np.arange(BODY_EDGES) * 2 * np.pi / BODY_EDGES + generator.uniform(0, 2 * np.pi)
        angles = regular + generator.uniform(-BODY_JITTER, BODY_JITTER, BODY_EDGES)
        flatness, turn = generator.uniform(1, BODY_FLATTEST), generator.uniform(0, np.pi)
        y, x = rows - row, columns - column
        along = (y * np.sin(turn) + x * np.cos(turn)) / flatness
        across = (y * np.cos(turn) - x * np.sin(turn)) * flatness
        # How far a pixel lies beyond the farthest of the polygon's edges, each of which is a radius from the centre.
        beyond = np.max([along * np.cos(angle) + across * np.sin(angle) for angle in angles], axis=0) - radius_px
        if implanted := _brightened(image, np.clip(0.5 - beyond, 0, 1), region, 1):
            return implanted
    raise no_place(f"where a foreign body of radius {radius_px:g} px would show", region, ADVICE)


def implant_swelling(
    image: NDArray[Any], generator: np.random.Generator, *, body: Mask, bone: Mask, radius_px: float, strength: float
) -> Implanted:
    """Swell the soft tissue beside a bone: the skin bulges outward, and the tissue is broadly, smoothly brighter.

    Args:
        bone: (H, W), where the bones are; they stay in their place.
        radius_px: of the swelling, px, where it has half its strength.
        strength: which share of the way to white its middle goes, in (0, 1].
    """
    check_region(image, body)
    check_region(image, bone)
    check_radius_and_strength(radius_px, strength)
    spread = radius_px / np.sqrt(2 * np.log(2))
    slope = np.stack(np.gradient(gaussian_filter(body.astype(float), SKIN_BLUR * radius_px)), axis=-1)  # (H, W, 2)
    positions = np.indices(image.shape).astype(np.float64)  # (2, H, W)
    # At a distance d from the bone, tissue comes from no nearer to it than 0.45 d: the bone stays where it is.
    apart = np.minimum(distance_transform_edt(np.pad(~bone, 1, constant_values=True))[1:-1, 1:-1] / radius_px, 1)
    soft = 1 - gaussian_filter(bone.astype(float), SOFT_BLUR * radius_px)
    for row, column in generator.permutation(_skin(image, body, bone, radius_px))[:TRIES]:
        steepness = float(np.hypot(*slope[row, column]))
        if steepness < SKIN_SLOPE / radius_px:
            continue
        outward = -slope[row, column] / steepness
        profile = np.exp(-((positions[0] - row) ** 2 + (positions[1] - column) ** 2) / (2 * spread**2))  # (H, W)
        bulge = generator.uniform(*BULGE) * radius_px * profile * apart
        swollen, mask = _swollen(image, body, positions - outward[:, None, None] * bulge, profile, strength, soft)
        if mask.any() and np.abs(swollen - image)[mask].mean() > SHOWN * strength:
            return swollen, mask
    raise no_place(f"where a swelling of radius {radius_px:g} px would show", body & ~bone, ADVICE)


def _swollen(
    image: NDArray[Any], body: Mask, sources: Floats, profile: Floats, strength: float, soft: Floats
) -> Implanted:
    """Take every pixel from its source, (2, H, W), and brighten soft tissue by a profile, (H, W)."""
    moved = map_coordinates(image.astype(float), sources, order=1, mode="nearest")
    tissue = map_coordinates(body.astype(float), sources, order=1, mode="nearest")
    # Soft tissue fades into bone and air, and so does what is added to it.
    added = strength * profile * gaussian_filter(tissue, 0.5) * soft
    swollen = np.clip(moved + added * (1 - moved), 0, 1).astype(np.float32)
    return swollen, np.asarray((profile > 0.5) & (tissue > 0.5), dtype=np.bool_)


def _skin(image: NDArray[Any], body: Mask, bone: Mask, radius_px: float) -> NDArray[np.int64]:
    """Where a swelling may have its middle, (N, 2): at the skin, but not where the image's border cuts the body."""
    depth = distance_transform_edt(np.pad(body, 1, mode="edge"))[1:-1, 1:-1]
    inner = np.zeros(image.shape, bool)
    margin = int(np.ceil(radius_px))
    inner[margin:-margin, margin:-margin] = True
    near = depth <= max(THINNEST_SKIN, radius_px / 3)
    return np.argwhere(body & ~bone & inner & near & (image < 1 - CONTRAST))


def _long_bones(
    image: NDArray[Any], generator: np.random.Generator, bone: Mask, allowed: Mask
) -> Iterator[tuple[Floats, Floats, float]]:
    """Places in the middle of long bones, drawn at random: (row, column), the unit vector along the bone, its depth.

    The depth is that of the bone's middle under its surface, px: half its thickness.
    """
    depth = distance_transform_edt(np.pad(bone, 1))[1:-1, 1:-1]
    rows, columns = np.indices(bone.shape)
    for row, column in generator.permutation(np.argwhere(bone & allowed & (depth > 1)))[:TRIES]:
        half = float(depth[row, column])
        near = bone & ((rows - row) ** 2 + (columns - column) ** 2 <= (2 + 3 * half) ** 2)
        shares, axes = np.linalg.eigh(np.cov(np.argwhere(near), rowvar=False))
        if shares[0] <= (1 - LONG) * shares[1]:
            yield np.array([row, column], float), axes[:, 1], half


def _turned(direction: Floats, angle: float) -> Floats:
    """A (row, column) vector, turned by an angle in radians."""
    cosine, sine = np.cos(angle), np.sin(angle)
    return np.array([cosine * direction[0] - sine * direction[1], sine * direction[0] + cosine * direction[1]])


def _jagged_line(
    shape: tuple[int, ...],
    generator: np.random.Generator,
    centre: Floats,
    direction: Floats,
    reach: list[float],
    width: float,
) -> Floats:
    """A line through a place, as far as it reaches back and ahead: (H, W), the share of a pixel covered."""
    corners = max(3, round(sum(reach) / (FRACTURE_STEP * width)))
    steps = np.linspace(-reach[0], reach[1], corners)
    aside = generator.normal(0, FRACTURE_JITTER * width, corners)
    points = centre + steps[:, None] * direction + aside[:, None] * _turned(direction, np.pi / 2)  # (corners, 2)
    line = np.zeros(shape)
    for start, end in pairwise(points):
        length = float(np.hypot(*(end - start)))
        line = np.maximum(line, _stroke(shape, start, (end - start) / length, 0, length, width))
    return line


def _stroke(
    shape: tuple[int, ...], origin: Floats, direction: Floats, start: float, end: float, width: float
) -> Floats:
    """A straight bar from origin + start * direction to origin + end * direction: (H, W), the share of a pixel covered.

    Exact where an edge runs along the grid, else within a few per cent.
    """
    rows, columns = np.arange(shape[0])[:, None] - origin[0], np.arange(shape[1])[None, :] - origin[1]
    along = rows * direction[0] + columns * direction[1]
    across = rows * direction[1] - columns * direction[0]

    def covered(middle: Floats, low: float, high: float) -> Floats:
        """Length of [low, high] within a pixel about each middle."""
        length: Floats = np.minimum(middle + 0.5, high) - np.maximum(middle - 0.5, low)
        return np.clip(length, 0, 1)

    share: Floats = covered(along, start, end) * covered(across, -width / 2, width / 2)
    return share


def _brightened(image: NDArray[Any], dense: Floats, region: Mask, inside: float) -> Implanted | None:
    """The image where a share of each pixel is dense and lets no ray through.

    None if it would hardly show, or less than the share `inside` of it lies in the region.
    """
    mask = np.asarray(dense > COVERED, dtype=np.bool_)
    bright = (image + dense * (1 - image)).astype(np.float32)
    if not mask.any() or (bright - image)[mask].mean() <= CONTRAST or region[mask].mean() < inside:
        return None
    return bright, mask


def _reach(bone: Mask, origin: Floats, direction: Floats, most: float) -> float:
    """How far one can go from a place within the bone, px, in quarter steps up to `most`."""
    distance = 0.0
    while distance < most:
        row, column = np.rint(origin + (distance + 0.25) * direction).astype(int)
        if not (0 <= row < bone.shape[0] and 0 <= column < bone.shape[1] and bone[row, column]):
            break
        distance += 0.25
    return distance
