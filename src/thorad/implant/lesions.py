"""Implant lesions in healthy images, and findings in healthy X-rays: something to look for where there are no labels.

Their places and looks are simulated. What is found among them says that a method works, not how well it does on
patients.
"""

from collections.abc import Iterator
from itertools import pairwise
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import distance_transform_edt, gaussian_filter, map_coordinates

from thorad.errors import ThoradError

IRREGULARITY = 0.3
"""Standard deviation of the outline about its ellipse, in radii."""

EDGE = 0.15
"""Standard deviation of the blur of the edge, in radii."""

CONTRAST = 0.2
"""By how much metal, a foreign body or a fracture must differ from what was there, on average over its mask."""

COVERED = 0.25
"""Share of a pixel that a drawn finding must cover for the pixel to be in its mask: wires are thinner than a pixel."""

LONG = 0.65
"""Least elongation of the bone about a finding that follows or crosses its axis: 1 - (short / long axis)^2."""

TRIES = 300
"""Places that are tried before an image is said to have none."""

Finding = tuple[NDArray[np.float32], NDArray[np.bool_]]
"""The image with a finding, (H, W) in [0, 1], and the finding's mask, (H, W)."""


def implant(
    image: NDArray[Any],
    generator: np.random.Generator,
    *,
    region: NDArray[np.bool_],
    kind: Literal["dark", "bright"] = "dark",
    radius_px: float,
    strength: float,
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Add one lesion with an irregular outline and a smooth edge, under which the image's own texture stays.

    The outline is where an ellipse plus a low-pass random field crosses a level. Only `generator` decides on place and
    shape.

    Args:
        image: (H, W) in [0, 1]; left as it is.
        generator: draws the place, the ellipse and the field.
        region: (H, W), where lesions may lie, such as the brain. Nothing outside it changes.
        kind: darker than the tissue, or brighter.
        radius_px: of the ellipse, in the mean over its two axes, px; at least 1.
        strength: how much darker or brighter its inside becomes, in (0, 1]. Pixels stay within [0, 1].

    Returns:
        The image with the lesion, (H, W) float32, and its mask: where the image changed by more than half the strength.

    Raises:
        ThoradError: sizes that differ, values out of bounds, or a region that has no place for such a lesion.
    """
    _check(image, region)
    if not (radius_px >= 1 and 0 < strength <= 1):
        raise ThoradError(
            f"Radius {radius_px:g} px, strength {strength:g}; expected at least 1 px, and above 0 up to 1."
        )
    change = -strength if kind == "dark" else strength
    healthy = image.astype(np.float32)

    # The centre: deep enough for most of the lesion to lie inside, and not black (or white) already.
    visible = np.abs(np.clip(healthy + change, 0, 1) - healthy) > strength / 2
    depth = distance_transform_edt(np.pad(region, 1))[1:-1, 1:-1]  # (H, W), px to the nearest pixel outside
    centres = np.argwhere((depth > radius_px) & visible)
    if not len(centres):
        raise ThoradError(
            f"The region of {np.count_nonzero(region)} px has no place for a {kind} lesion of radius {radius_px:g} px "
            f"and strength {strength:g}. Choose a smaller radius or strength, or a larger region."
        )
    row, column = centres[generator.integers(len(centres))]

    rows, columns = np.arange(image.shape[0])[:, None] - row, np.arange(image.shape[1])[None, :] - column
    angle, flatness = generator.uniform(0, np.pi), generator.uniform(1, 1.4)
    along = (rows * np.sin(angle) + columns * np.cos(angle)) / (radius_px * flatness)
    across = (rows * np.cos(angle) - columns * np.sin(angle)) / (radius_px / flatness)
    field = gaussian_filter(generator.standard_normal(image.shape), 0.5 * radius_px)
    field *= IRREGULARITY / field.std()
    # Less of the field towards the centre, so that the lesion is one and lies where it was put.
    distance = np.hypot(along, across)
    inside = distance + field * np.minimum(distance, 1) < 1
    # The blur reaches three standard deviations far: a margin keeps the edge smooth at the region's border too.
    inside &= (distance < 2) & (depth > 3 * EDGE * radius_px)
    profile = gaussian_filter(inside.astype(np.float32), EDGE * radius_px, truncate=3) * region  # (H, W) in [0, 1]

    diseased = np.clip(healthy + change * profile, 0, 1).astype(np.float32)
    mask = np.abs(diseased - healthy) > strength / 2
    return diseased, np.asarray(mask, dtype=np.bool_)


def implant_pins(
    image: NDArray[Any], generator: np.random.Generator, *, bone: NDArray[np.bool_], length_px: float, width_px: float
) -> Finding:
    """Drive one or two straight wires into a bone, at an acute angle to its axis: as bright as anything, sharp edges.

    Args:
        image: (H, W) in [0, 1]; left as it is.
        generator: draws the place, the angles and how many.
        bone: (H, W), where the bones are. At least half of the wires lies in it.
        length_px: of a wire, px.
        width_px: of a wire, px; at least 0.5.

    Raises:
        ThoradError: sizes that differ, values out of bounds, or no bone on which such wires would show.
    """
    _check(image, bone)
    for centre, axis, _ in _long_bones(image, generator, bone, image < 1 - CONTRAST):
        tilt = generator.choice([-1, 1]) * generator.uniform(0.2, 0.7)
        metal = np.zeros(image.shape)
        for wire in range(generator.integers(1, 3)):
            direction = _turned(axis, tilt + wire * generator.uniform(0.2, 0.5))
            along = generator.uniform(0.35, 0.65) * length_px
            metal = np.maximum(metal, _stroke(image.shape, centre, direction, -along, length_px - along, width_px))
        found = _brightened(image, metal)
        if found is not None and np.count_nonzero(bone & found[1]) >= 0.5 * np.count_nonzero(found[1]):
            return found
    raise _no_place("pins", f"{length_px:g} px long", bone)


def implant_plate(
    image: NDArray[Any], generator: np.random.Generator, *, bone: NDArray[np.bool_], length_px: float, width_px: float
) -> Finding:
    """Fix a plate along a bone, seen from its edge, with three to five screws across the bone.

    Args:
        image: (H, W) in [0, 1]; left as it is.
        generator: draws the place, the side and the number of screws.
        bone: (H, W), where the bones are.
        length_px: of the plate, px.
        width_px: of the plate, px; its screws have half of it.

    Raises:
        ThoradError: sizes that differ, values out of bounds, or no bone on which such a plate would show.
    """
    _check(image, bone)
    for centre, axis, depth in _long_bones(image, generator, bone, image < 1 - CONTRAST):
        across = _turned(axis, generator.choice([-1, 1]) * np.pi / 2)
        middle = centre + across * depth
        metal = _stroke(image.shape, middle, axis, -length_px / 2, length_px / 2, width_px)
        screws = int(generator.integers(3, 6))
        for at in np.linspace(-0.42, 0.42, screws) * length_px:
            screw = _stroke(image.shape, middle + axis * at, -across, 0, width_px / 2 + 2 * depth, width_px / 2)
            metal = np.maximum(metal, screw)
        found = _brightened(image, metal)
        if found is not None and np.count_nonzero(bone & found[1]) >= 0.5 * np.count_nonzero(found[1]):
            return found
    raise _no_place("a plate", f"{length_px:g} px long", bone)


def implant_fracture(
    image: NDArray[Any],
    generator: np.random.Generator,
    *,
    bone: NDArray[np.bool_],
    length_px: float,
    width_px: float,
    strength: float,
) -> Finding:
    """Break a bone: a thin, dark, jagged line across it, from one side to the other.

    Args:
        image: (H, W) in [0, 1]; left as it is.
        generator: draws the place, the angle and the line.
        bone: (H, W), where the bones are; the line ends half its width beyond.
        length_px: of the line at most, px, where the bone is wider.
        width_px: of the line, px; at least 0.5.
        strength: which share of the bone's brightness is gone in the line, in (0, 1].

    Raises:
        ThoradError: sizes that differ, values out of bounds, or no bone on which such a line would show.
    """
    _check(image, bone)
    if not 0 < strength <= 1:
        raise ThoradError(f"Strength {strength:g}; expected above 0 up to 1.")
    for centre, axis, depth in _long_bones(image, generator, bone, strength * image > CONTRAST):
        across = _turned(axis, np.pi / 2 + generator.uniform(-0.6, 0.6))
        reach = [_reach(bone, centre, side * across, length_px / 2) + width_px / 2 for side in (-1, 1)]
        corners = max(3, round(sum(reach) / (1.5 * width_px)))
        steps = np.linspace(-reach[0], reach[1], corners)
        aside = generator.normal(0, 0.4 * width_px, corners)
        points = centre + steps[:, None] * across + aside[:, None] * _turned(across, np.pi / 2)  # (corners, 2)
        line = np.zeros(image.shape)
        for start, end in pairwise(points):
            length = float(np.hypot(*(end - start)))
            line = np.maximum(line, _stroke(image.shape, start, (end - start) / length, 0, length, width_px))
        broken = (image * (1 - strength * line)).astype(np.float32)
        mask = line > COVERED
        if sum(reach) > max(2 * depth, 2.5 * width_px) and (image - broken)[mask].mean() > CONTRAST:
            return broken, np.asarray(mask, dtype=np.bool_)
    raise _no_place("a fracture", f"{width_px:g} px wide, strength {strength:g}", bone)


def implant_foreign_body(
    image: NDArray[Any], generator: np.random.Generator, *, region: NDArray[np.bool_], radius_px: float
) -> Finding:
    """Put a small, dense splinter into the tissue: bright, compact, angular, with a sharp edge.

    Args:
        image: (H, W) in [0, 1]; left as it is.
        generator: draws the place and the shape.
        region: (H, W), where it may lie, such as the soft tissue.
        radius_px: in the mean over its two axes, px; at least 0.5.

    Raises:
        ThoradError: sizes that differ, values out of bounds, or a region without a place for it.
    """
    _check(image, region)
    centres = np.argwhere(region & (image < 1 - 2 * CONTRAST))
    rows, columns = np.indices(image.shape)
    for row, column in generator.permutation(centres)[:TRIES]:
        angles = np.arange(5) * 2 * np.pi / 5 + generator.uniform(0, 2 * np.pi) + generator.uniform(-0.4, 0.4, 5)
        flatness, turn = generator.uniform(1, 1.5), generator.uniform(0, np.pi)
        y, x = rows - row, columns - column
        along = (y * np.sin(turn) + x * np.cos(turn)) / flatness
        across = (y * np.cos(turn) - x * np.sin(turn)) * flatness
        # A pentagon: as far as each of five edges lies from its centre.
        beyond = np.max([along * np.cos(angle) + across * np.sin(angle) for angle in angles], axis=0) - radius_px
        found = _brightened(image, np.clip(0.5 - beyond, 0, 1))
        if found is not None and region[found[1]].all():
            return found
    raise _no_place("a foreign body", f"of radius {radius_px:g} px", region)


def implant_swelling(
    image: NDArray[Any],
    generator: np.random.Generator,
    *,
    body: NDArray[np.bool_],
    bone: NDArray[np.bool_],
    radius_px: float,
    strength: float,
) -> Finding:
    """Swell the soft tissue beside a bone: the skin bulges outward, and the tissue is broadly, smoothly brighter.

    Args:
        image: (H, W) in [0, 1]; left as it is.
        generator: draws the place.
        body: (H, W), where the body is.
        bone: (H, W), where the bones are; they stay in their place.
        radius_px: of the swelling, px, where it has half its strength.
        strength: which share of the way to white its middle goes, in (0, 1].

    Raises:
        ThoradError: sizes that differ, values out of bounds, or no soft tissue at the skin.
    """
    _check(image, body)
    _check(image, bone)
    if not (radius_px >= 1 and 0 < strength <= 1):
        raise ThoradError(
            f"Radius {radius_px:g} px, strength {strength:g}; expected at least 1 px, and above 0 up to 1."
        )
    spread = radius_px / np.sqrt(2 * np.log(2))
    # At the skin, but not where the image's border cuts the body.
    depth = distance_transform_edt(np.pad(body, 1, mode="edge"))[1:-1, 1:-1]
    inner = np.zeros(image.shape, bool)
    margin = int(np.ceil(radius_px))
    inner[margin:-margin, margin:-margin] = True
    skin = np.argwhere(body & ~bone & inner & (depth <= max(1.5, radius_px / 3)) & (image < 1 - CONTRAST))
    slope = np.stack(np.gradient(gaussian_filter(body.astype(float), radius_px / 2)), axis=-1)  # (H, W, 2)
    positions = np.indices(image.shape).astype(np.float64)  # (2, H, W)
    # At a distance d from the bone, tissue comes from no nearer to it than 0.45 d: the bone stays where it is.
    apart = np.minimum(distance_transform_edt(np.pad(~bone, 1, constant_values=True))[1:-1, 1:-1] / radius_px, 1)
    soft = 1 - gaussian_filter(bone.astype(float), 0.2 * radius_px)
    for row, column in generator.permutation(skin)[:TRIES]:
        steepness = float(np.hypot(*slope[row, column]))
        if steepness < 0.3 / radius_px:
            continue
        outward = -slope[row, column] / steepness
        profile = np.exp(-((positions[0] - row) ** 2 + (positions[1] - column) ** 2) / (2 * spread**2))  # (H, W)
        bulge = generator.uniform(0.35, 0.55) * radius_px * profile * apart
        sources = positions - outward[:, None, None] * bulge
        moved = map_coordinates(image.astype(float), sources, order=1, mode="nearest")
        tissue = map_coordinates(body.astype(float), sources, order=1, mode="nearest")
        # Soft tissue fades into bone and air, and so does what is added to it.
        added = strength * profile * gaussian_filter(tissue, 0.5) * soft
        swollen = np.clip(moved + added * (1 - moved), 0, 1).astype(np.float32)
        mask = (profile > 0.5) & (tissue > 0.5)
        if mask.any() and np.abs(swollen - image)[mask].mean() > strength / 4:
            return swollen, np.asarray(mask, dtype=np.bool_)
    raise _no_place("a swelling", f"of radius {radius_px:g} px", body & ~bone)


def _check(image: NDArray[Any], region: NDArray[np.bool_]) -> None:
    if image.ndim != 2 or image.shape != region.shape:
        raise ThoradError(f"The image is {image.shape}, its region {region.shape}; expected one (height, width).")
    if not (image.min() >= 0 and image.max() <= 1):
        raise ThoradError(f"The image lies in {image.min():g}...{image.max():g}; expected [0, 1]. Scale it first.")


def _long_bones(
    image: NDArray[Any], generator: np.random.Generator, bone: NDArray[np.bool_], allowed: NDArray[np.bool_]
) -> Iterator[tuple[NDArray[np.float64], NDArray[np.float64], float]]:
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


def _turned(direction: NDArray[np.float64], angle: float) -> NDArray[np.float64]:
    """A (row, column) vector, turned by an angle in radians."""
    cosine, sine = np.cos(angle), np.sin(angle)
    return np.array([cosine * direction[0] - sine * direction[1], sine * direction[0] + cosine * direction[1]])


def _stroke(
    shape: tuple[int, ...],
    origin: NDArray[np.float64],
    direction: NDArray[np.float64],
    start: float,
    end: float,
    width: float,
) -> NDArray[np.float64]:
    """A straight bar from origin + start * direction to origin + end * direction: (H, W), the share of a pixel covered.

    Exact where an edge runs along the grid, else within a few per cent.
    """
    rows, columns = np.arange(shape[0])[:, None] - origin[0], np.arange(shape[1])[None, :] - origin[1]
    along = rows * direction[0] + columns * direction[1]
    across = rows * direction[1] - columns * direction[0]

    def covered(middle: NDArray[np.float64], low: float, high: float) -> NDArray[np.float64]:
        """Length of [low, high] within a pixel about each middle."""
        length: NDArray[np.float64] = np.minimum(middle + 0.5, high) - np.maximum(middle - 0.5, low)
        return np.clip(length, 0, 1)

    share: NDArray[np.float64] = covered(along, start, end) * covered(across, -width / 2, width / 2)
    return share


def _brightened(image: NDArray[Any], dense: NDArray[np.float64]) -> Finding | None:
    """The image where a share of each pixel is metal, that lets no ray through; None if it would hardly show."""
    mask = dense > COVERED
    bright = (image + dense * (1 - image)).astype(np.float32)
    if not mask.any() or (bright - image)[mask].mean() <= CONTRAST:
        return None
    return bright, np.asarray(mask, dtype=np.bool_)


def _reach(bone: NDArray[np.bool_], origin: NDArray[np.float64], direction: NDArray[np.float64], most: float) -> float:
    """How far one can go from a place within the bone, px, in quarter steps up to `most`."""
    distance = 0.0
    while distance < most:
        row, column = np.rint(origin + (distance + 0.25) * direction).astype(int)
        if not (0 <= row < bone.shape[0] and 0 <= column < bone.shape[1] and bone[row, column]):
            break
        distance += 0.25
    return distance


def _no_place(finding: str, measures: str, region: NDArray[np.bool_]) -> ThoradError:
    return ThoradError(
        f"The region of {np.count_nonzero(region)} px has no place where {finding} {measures} would show. "
        "Choose smaller measures, or another image."
    )
