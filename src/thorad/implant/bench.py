"""Make a bench: findings implanted in healthy images, with boxes or masks around them and a table of the cases.

It says whether a method sees what was put there, where nobody has drawn labels. It does not say how well a method does
on patients: places and looks are simulated.
"""

import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import binary_erosion, distance_transform_edt, gaussian_filter, label

from thorad.datasets.boxes import Box, voc_xml
from thorad.datasets.cases import subject_of
from thorad.errors import ThoradError
from thorad.implant.lesions import (
    Finding,
    implant,
    implant_foreign_body,
    implant_fracture,
    implant_pins,
    implant_plate,
    implant_swelling,
)
from thorad.io.atomic import write_atomic
from thorad.io.images import case_names, read_image, write_png8
from thorad.io.intensity import scale
from thorad.io.tables import listing, write_table

XRAY_KINDS = ("pins", "plate", "fracture", "foreign-body", "swelling")
LESION_KINDS = ("dark", "bright")


BOX_LABELS: dict[str, str] = {
    "pins": "metal",
    "plate": "metal",
    "fracture": "fracture",
    "foreign-body": "foreignbody",
    "swelling": "softtissue",
}
"""What each kind is called in GRAZPEDWRI-DX, and so in the boxes."""

UNIT = 1 / 64
"""Of the image's shorter side: what the measures of findings and margins count in, so that they grow with it."""

SMALLEST_SIDE = 48
"""px; below this a fracture is thinner than what a pixel shows."""

SMALLEST_BODY = 0.08
"""Least share of an image that a body region must have; less is a marker."""

BOX_MARGIN = 1
"""units between a finding and its box, as people draw them."""

SHOWN = 0.6
"""Share of its ellipse's area that a lesion's mask must have: where tissue is white already, a bright lesion is cut."""

TRIES = 100
"""Lesions that are drawn before an image is said to have no place for one."""

ELSEWHERE_MARGIN = 2
"""units about a box that count neither as found nor as false: maps are blurred."""


@dataclass(frozen=True)
class Bench:
    """What was made."""

    table: Path
    """cases.csv."""

    counts: dict[str, int]
    """{kind: cases}, `healthy` among them."""

    left_out: dict[Path, str]
    """{image: why it is of no use}."""


Files = dict[str, NDArray[Any] | bytes]
"""{column of cases.csv: what its file holds}: pixels in [0, 1], a mask, or the XML of boxes."""


def make_box_bench(
    images: Sequence[Path],
    out: Path,
    *,
    seed: int,
    kinds: Sequence[str] = XRAY_KINDS,
    healthy_share: float = 0.25,
    body_share: float = 0.4,
) -> Bench:
    """Implant one finding each in healthy X-rays of a hand, a wrist or another limb.

    Writes images/*.png, boxes/*.xml (Pascal VOC), elsewhere/*.png (the body but for the boxes and a margin),
    healthy/*.png (other, untouched subjects), cases.csv (image, boxes, elsewhere, subject, kind) and README.md. Pixels
    are scaled by the 98th percentile, as the model sees them. The same images and seed give the same bytes.

    Args:
        images: healthy X-rays in which bone is bright.
        out: a folder that isn't there yet, or is empty.
        seed: decides on everything.
        kinds: of XRAY_KINDS; each gets about as many cases.
        healthy_share: of the subjects, in [0, 1), stays without a finding.
        body_share: of an image, the most that the body can fill: 0.4 for a whole hand, 0.8 for a wrist. Images in which
            more is bright, as where the exposed field is, are left out.

    Raises:
        ThoradError: no image is of use, an option is out of bounds, or `out` is taken. A single image that is of no
            use is left out, and named in the result.
    """

    def diseased(pixels: NDArray[np.float32], kind: str, generator: np.random.Generator) -> Files:
        body = body_region(pixels, most=body_share)
        image, mask = _xray_finding(pixels, body, kind, generator)
        box = _box_around(mask, BOX_LABELS[kind])
        boxes = voc_xml([box], *mask.shape)
        return {"image": image, "boxes": boxes, "elsewhere": body & ~_about(box, mask.shape)}

    def healthy(pixels: NDArray[np.float32]) -> Files:
        return {"image": pixels, "elsewhere": body_region(pixels, most=body_share)}

    what = (
        "Each diseased image holds one finding. `boxes` (Pascal VOC) names it as GRAZPEDWRI-DX does: "
        f"{', '.join(f'{kind} is {BOX_LABELS[kind]}' for kind in XRAY_KINDS)}. A box keeps {BOX_MARGIN}/64 of the "
        "image's shorter side about the finding. `elsewhere` is the body, found by its brightness, but for the box and "
        f"{ELSEWHERE_MARGIN}/64 about it."
    )
    return _make(
        images, out, ("image", "boxes", "elsewhere"), kinds, XRAY_KINDS, healthy_share, seed, diseased, healthy, what
    )


def make_lesion_bench(
    images: Sequence[Path],
    out: Path,
    *,
    seed: int,
    region: NDArray[np.bool_] | None = None,
    kinds: Sequence[str] = LESION_KINDS,
    healthy_share: float = 0.25,
) -> Bench:
    """Implant one lesion each in healthy images of any kind: as `make_box_bench`, with masks/*.png instead of boxes.

    Radii are 2 to 9 of 128 parts of the image's shorter side, small ones as often as large ones; the strength is 0.2
    to 0.5 of the 98th percentile. cases.csv has the columns image, mask, subject and kind.

    Args:
        images: healthy images, on one grid where a region is given.
        out: a folder that isn't there yet, or is empty.
        seed: decides on everything.
        region: (H, W), where lesions may lie, such as the brain; None for what is well inside the bright part of each
            image.
        kinds: of LESION_KINDS; each gets about as many cases.
        healthy_share: of the subjects, in [0, 1), stays without a lesion.

    Raises:
        ThoradError: as `make_box_bench`.
    """

    def diseased(pixels: NDArray[np.float32], kind: str, generator: np.random.Generator) -> Files:
        side = min(pixels.shape)
        places = region
        if places is None:
            bright = body_region(pixels, most=1.0)
            places = np.asarray(binary_erosion(bright, iterations=max(1, side // 16)), dtype=np.bool_)
        for _ in range(TRIES):
            radius = max(1.0, side / 128 * 2 * 4.5 ** generator.uniform())
            strength = generator.uniform(0.2, 0.5)
            sign: Literal["dark", "bright"] = "dark" if kind == "dark" else "bright"
            image, mask = implant(pixels, generator, region=places, kind=sign, radius_px=radius, strength=strength)
            if np.count_nonzero(mask) >= SHOWN * np.pi * radius**2:
                break
        else:
            raise ThoradError(f"No {kind} lesion shows in full: its places are white or black already.")
        return {"image": image, "mask": mask}

    what = "Each diseased image holds one lesion; `mask` is where it changed the image by more than half its strength."
    return _make(
        images, out, ("image", "mask"), kinds, LESION_KINDS, healthy_share, seed, diseased, lambda p: {"image": p}, what
    )


def body_region(image: NDArray[Any], *, most: float) -> NDArray[np.bool_]:
    """The largest connected bright part of an X-ray: a hand on a dark ground.

    Bright is above 0.7 of Otsu's threshold (IEEE Trans. SMC 9, 1979) of the slightly blurred image. The outermost two
    units belong to nothing: there the plate's edge shines.

    Args:
        image: (H, W) in [0, 1].
        most: share of the image that the region may have; its greatest thickness may be 1.2 of it in shares of the
            shorter side.

    Raises:
        ThoradError: its share of the image is not that of a limb, as where the exposed field is bright all over.
    """
    unit = UNIT * min(image.shape)
    smooth = gaussian_filter(image.astype(float), 0.5 * unit)
    bright = smooth > 0.7 * otsu_threshold(smooth)
    border = max(1, round(2 * unit))
    inner = np.zeros(image.shape, dtype=np.bool_)
    inner[border:-border, border:-border] = True
    parts, _ = label(bright & inner)
    sizes = np.bincount(parts.ravel())
    sizes[0] = 0
    body = np.asarray(parts == sizes.argmax(), dtype=np.bool_) & bool(sizes.any())
    share = np.count_nonzero(body) / body.size
    thickness = 2 * float(distance_transform_edt(np.pad(body, 1)).max()) / min(image.shape)
    if not (SMALLEST_BODY <= share <= most and thickness <= 1.2 * most):
        raise ThoradError(
            f"The largest bright part is {100 * share:.0f} % of the image and {100 * thickness:.0f} % of its side "
            f"thick; expected {100 * SMALLEST_BODY:.0f} to {100 * most:.0f} % and at most {120 * most:.0f} %, as of a "
            "limb on a dark ground. Crop the image to its exposed field, allow the body a larger share, or leave the "
            "image out."
        )
    return body


def bone_region(image: NDArray[Any], body: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Where the body is brighter than the body about it (Gaussian mean over 4 units): (H, W)."""
    spread = 4 * UNIT * min(image.shape)
    weight = gaussian_filter(body.astype(float), spread)
    mean = gaussian_filter(np.where(body, image, 0).astype(float), spread) / np.maximum(weight, 1e-6)
    return np.asarray(body & (image > mean + 0.02), dtype=np.bool_)


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


def _xray_finding(
    pixels: NDArray[np.float32], body: NDArray[np.bool_], kind: str, generator: np.random.Generator
) -> Finding:
    """One finding of a kind, of a size and a place that the generator draws."""
    bone = bone_region(pixels, body)
    unit = UNIT * min(pixels.shape)

    def draw(low: float, high: float) -> float:
        return float(generator.uniform(low, high))

    if kind == "pins":
        length, width = draw(11, 20) * unit, draw(0.9, 1.5) * unit
        return implant_pins(pixels, generator, bone=bone, length_px=length, width_px=width)
    if kind == "plate":
        length, width = draw(9, 15) * unit, draw(1.3, 1.9) * unit
        return implant_plate(pixels, generator, bone=bone, length_px=length, width_px=width)
    if kind == "fracture":
        width, strength = draw(0.9, 1.4) * unit, draw(0.4, 0.65)
        return implant_fracture(pixels, generator, bone=bone, length_px=16 * unit, width_px=width, strength=strength)
    if kind == "foreign-body":
        return implant_foreign_body(pixels, generator, region=body, radius_px=draw(0.9, 1.6) * unit)
    radius, strength = draw(3.5, 6) * unit, draw(0.25, 0.45)
    return implant_swelling(pixels, generator, body=body, bone=bone, radius_px=radius, strength=strength)


def _box_around(mask: NDArray[np.bool_], name: str) -> Box:
    """The smallest box around a mask, with the margin, within the image; whole px."""
    margin = round(BOX_MARGIN * UNIT * min(mask.shape))
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return Box(
        label=name,
        left=max(int(columns[0]) - margin, 0),
        top=max(int(rows[0]) - margin, 0),
        right=min(int(columns[-1]) + 1 + margin, mask.shape[1]),
        bottom=min(int(rows[-1]) + 1 + margin, mask.shape[0]),
    )


def _about(box: Box, shape: tuple[int, ...]) -> NDArray[np.bool_]:
    """The box and the margin that belongs to nothing, as a mask."""
    margin = round(ELSEWHERE_MARGIN * UNIT * min(shape))
    about = np.zeros(shape, dtype=np.bool_)
    about[
        max(int(box.top) - margin, 0) : int(box.bottom) + margin,
        max(int(box.left) - margin, 0) : int(box.right) + margin,
    ] = True
    return about


def _make(
    images: Sequence[Path],
    out: Path,
    columns: Sequence[str],
    kinds: Sequence[str],
    known: Sequence[str],
    healthy_share: float,
    seed: int,
    diseased: Callable[[NDArray[np.float32], str, np.random.Generator], Files],
    healthy: Callable[[NDArray[np.float32]], Files],
    what: str,
) -> Bench:
    """Write a bench beside its place, and move it there when it is whole."""
    _check_options(kinds, known, healthy_share, seed)
    out = out.absolute()
    _check_free(out)
    names = case_names(images, [path.parent for path in images])
    subjects = sorted({subject_of(path) for path in images})
    order = np.random.default_rng(seed).permutation(len(subjects))
    untouched = {subjects[index] for index in order[: round(healthy_share * len(subjects))]}
    rank = {subjects[index]: place for place, index in enumerate(order)}
    counts = dict.fromkeys([*kinds, "healthy"], 0)
    rows: dict[str, dict[str, str]] = {}
    left_out: dict[Path, str] = {}
    part = out.with_name(f".{out.name}.{os.getpid()}.part")
    try:
        # In the order that the seed draws, so that no kind gets all images of one scanner.
        for path, name in sorted(
            zip(images, names, strict=True), key=lambda case: (rank[subject_of(case[0])], case[1])
        ):
            subject = subject_of(path)
            try:
                pixels = _pixels(path)
                if subject in untouched:
                    kind, files = "healthy", healthy(pixels)
                else:
                    kind, files = _rarest_that_fits(pixels, counts, f"{seed}/{name}", diseased)
            except ThoradError as error:
                left_out[path] = str(error) if str(path) in str(error) else f"{path}: {error}"
                continue
            counts[kind] += 1
            rows[name] = _write_case(part, name, kind, files) | {"subject": subject, "kind": kind}
        if not any(counts[kind] for kind in kinds):
            reason = next(iter(left_out.values()), "no image was given")
            raise ThoradError(f"Nothing could be implanted in the {len(images)} images. The first: {reason}")
        write_table(part / "cases.csv", [*columns, "subject", "kind"], [rows[name] for name in sorted(rows)])
        write_atomic(part / "README.md", _readme(columns, counts, left_out, seed, what).encode())
        try:
            os.replace(part, out)
        except OSError as error:
            raise ThoradError(f"{out}: can't be written ({error.strerror}). Name another folder.") from error
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return Bench(out / "cases.csv", counts, left_out)


def _rarest_that_fits(
    pixels: NDArray[np.float32],
    counts: dict[str, int],
    seed: str,
    diseased: Callable[[NDArray[np.float32], str, np.random.Generator], Files],
) -> tuple[str, Files]:
    """Implant the kind that has the fewest cases yet, or the next one that the image has a place for.

    Each case and kind has its own random numbers, from the seed in words, whatever images stand beside it.
    """
    refusals: list[ThoradError] = []
    for kind in sorted(counts.keys() - {"healthy"}, key=lambda kind: (counts[kind], kind)):
        try:
            return kind, diseased(pixels, kind, _generator(f"{seed}/{kind}"))
        except ThoradError as error:
            refusals.append(error)
    raise refusals[0]


def _pixels(path: Path) -> NDArray[np.float32]:
    pixels = scale(read_image(path).pixels)
    if min(pixels.shape) < SMALLEST_SIDE:
        raise ThoradError(
            f"{path}: the image is {pixels.shape[1]} x {pixels.shape[0]} px; expected sides of {SMALLEST_SIDE} px at "
            "least, so that thin findings can be seen. Use larger images."
        )
    return pixels


def _generator(seed: str) -> np.random.Generator:
    return np.random.default_rng(list(sha256(seed.encode()).digest()))


def _write_case(folder: Path, name: str, kind: str, files: Files) -> dict[str, str]:
    """Write a case's files: {column: its path in the table}."""
    row: dict[str, str] = {}
    folders = {"image": "healthy" if kind == "healthy" else "images", "boxes": "boxes", "mask": "masks"}
    for column, content in files.items():
        relative = f"{folders.get(column, column)}/{name}{'.xml' if isinstance(content, bytes) else '.png'}"
        if isinstance(content, bytes):
            write_atomic(folder / relative, content)
        else:
            write_png8(folder / relative, content.astype(np.float32))
        row[column] = relative
    return row


def _readme(columns: Sequence[str], counts: dict[str, int], left_out: dict[Path, str], seed: int, what: str) -> str:
    lines = [
        "# A bench of implanted findings",
        "",
        f"Made by thorad {version('thorad')} from healthy images, seed {seed}. **The findings' places and looks are "
        "simulated.** What is found here says that a method sees such changes, not how well it does on patients.",
        "",
        "Cases, one image each:",
        "",
        *(f"- {kind}: {count}" for kind, count in counts.items()),
        "",
        *([f"{len(left_out)} of the given images were of no use and are left out.", ""] if left_out else []),
        f"`cases.csv` has the columns {', '.join([*columns, 'subject', 'kind'])}; paths are relative to it. Healthy "
        "images are of other subjects than diseased ones. Pixels are divided by the image's own 98th percentile, "
        "clipped to [0, 1] and stored in 8 bits.",
        "",
        what,
        "",
        "Source and licence of the healthy images: *to be filled in before this bench is passed on.*",
    ]
    return "\n".join(lines) + "\n"


def _check_options(kinds: Sequence[str], known: Sequence[str], healthy_share: float, seed: int) -> None:
    unknown = [kind for kind in kinds if kind not in known]
    if unknown or not kinds:
        raise ThoradError(f"Findings {listing(unknown) or 'none'}; expected some of {', '.join(known)}.")
    if not 0 <= healthy_share < 1:
        raise ThoradError(f"A healthy share of {healthy_share:g}; expected 0 up to, but without, 1.")
    if seed < 0:
        raise ThoradError(f"Seed {seed}; expected 0 or more.")


def _check_free(out: Path) -> None:
    try:
        taken = out.exists() and (not out.is_dir() or any(out.iterdir()))
    except OSError as error:
        raise ThoradError(f"{out}: can't be read ({error.strerror}). Check the path and its permissions.") from error
    if taken:
        raise ThoradError(f"{out}: already there and not an empty folder. Name a new folder for the bench.")
