"""Make a set of images for evaluation: findings implanted in healthy images, with boxes or masks, and a table of cases.

Where nobody has drawn labels, it shows whether a method sees what was put there. It does not show how well a method
does on patients: places and looks are simulated.
"""

import os
import shutil
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import binary_erosion

from thorad.datasets.boxes import Box, voc_xml
from thorad.errors import ThoradError
from thorad.implant.lesions import Implanted, Mask, implant_lesion
from thorad.implant.regions import UNIT, body_region, bone_region
from thorad.implant.xray import implant_foreign_body, implant_fracture, implant_pins, implant_plate, implant_swelling
from thorad.io.atomic import write_atomic
from thorad.io.images import case_names, write_png8
from thorad.io.scans import Scan, Scans, find_scans, patients_doubt, subjects_of
from thorad.io.slices import images_of
from thorad.io.tables import listing, write_table

XRAY_KINDS: Final = ("pins", "plate", "fracture", "foreign-body", "swelling")
LESION_KINDS: Final = ("dark", "bright")

BOX_LABELS: Final[dict[str, str]] = {
    "pins": "metal",
    "plate": "metal",
    "fracture": "fracture",
    "foreign-body": "foreignbody",
    "swelling": "softtissue",
}
"""What each kind is called in GRAZPEDWRI-DX, and so in the boxes."""

SMALLEST_SIDE: Final = 48  # px; below this a fracture is thinner than what a pixel shows
BOX_MARGIN: Final = 1  # units between a finding and its box, as people draw them
ELSEWHERE_MARGIN: Final = 2  # units about a box that count neither as found nor as false: maps are blurred
SMALLEST_RADIUS: Final = 2  # of lesions, in 128 parts of the image's shorter side
LARGEST_TO_SMALLEST: Final = 4.5  # radii are drawn evenly on a logarithmic scale
STRENGTHS: Final = (0.2, 0.5)  # of lesions, in 98th percentiles
SHOWN: Final = 0.6  # least share of its ellipse's area that a lesion's mask has: in white tissue a bright one is cut
TRIES: Final = 100  # lesions, before an image is said to have no place for one

XRAY_README: Final = f"""\
Each diseased image holds one finding. `boxes` (Pascal VOC) names it as GRAZPEDWRI-DX does:
{", ".join(f"{kind} is {label}" for kind, label in BOX_LABELS.items())}.
A box keeps {BOX_MARGIN}/64 of the image's shorter side about the finding. `elsewhere` is the body, found by its
brightness, but for the box and {ELSEWHERE_MARGIN}/64 about it."""


@dataclass(frozen=True)
class ImplantedSet:
    """A set of images with implanted findings, as it was written."""

    table: Path  # cases.csv
    counts: dict[str, int]  # {kind: cases}, `healthy` among them
    left_out: dict[Path, str]  # {image: why it is of no use}
    no_images: Mapping[str, int]  # {why: how many} other files the inputs hold, as `Scans.left_out`
    doubt: str | None = None  # whether images that count as subjects may be of one patient


Files = dict[str, NDArray[Any] | bytes]
"""{column of cases.csv: what its file holds}: pixels in [0, 1], a mask, or the XML of boxes."""
Pixels = NDArray[np.float32]
Diseased = Callable[[Pixels, str, np.random.Generator], Files]


@dataclass(frozen=True)
class _SetKind:
    """How the cases of a set are made of healthy images, (H, W) in [0, 1], and what README.md says of them."""

    columns: tuple[str, ...]
    kinds: tuple[str, ...]
    diseased: Diseased
    healthy: Callable[[Pixels], Files]
    readme: str


def make_xray_set(
    inputs: Sequence[Path],
    out: Path,
    *,
    seed: int,
    kinds: Sequence[str] = XRAY_KINDS,
    healthy_share: float = 0.25,
    body_share: float = 0.4,
) -> ImplantedSet:
    """Implant one finding each in healthy X-rays of a hand, a wrist or another limb.

    Writes images/*.png, boxes/*.xml (Pascal VOC), elsewhere/*.png (the body but for the boxes and a margin),
    healthy/*.png (other, untouched subjects), cases.csv (image, boxes, elsewhere, subject, kind) and README.md. Pixels
    are scaled by the 98th percentile, as the model sees them. The same images and seed give the same bytes.

    Args:
        inputs: healthy X-rays in which bone is bright: files (DICOM, too), folders and tables with a column image.
        out: a folder that isn't there yet, or is empty.
        seed: random seed for everything that is drawn.
        kinds: of XRAY_KINDS; each gets about as many cases.
        healthy_share: of the subjects, in [0, 1), stays without a finding.
        body_share: the most that a body can fill of an image, as 0.4 for a hand, 0.8 for a wrist. Images in which more
            is bright are left out.

    Raises:
        ThoradError: no image is of use, an option is out of bounds, `out` is taken. Single images are left out instead.
    """

    def diseased(pixels: Pixels, kind: str, generator: np.random.Generator) -> Files:
        body = body_region(pixels, most=body_share)
        image, mask = _xray_finding(pixels, body, kind, generator)
        box = _box_around(mask, BOX_LABELS[kind])
        return {"image": image, "boxes": voc_xml([box], *mask.shape), "elsewhere": body & ~_about(box, mask.shape)}

    def healthy(pixels: Pixels) -> Files:
        return {"image": pixels, "elsewhere": body_region(pixels, most=body_share)}

    kind_of_set = _SetKind(("image", "boxes", "elsewhere"), XRAY_KINDS, diseased, healthy, XRAY_README)
    return _make(kind_of_set, inputs, out, kinds, healthy_share, seed)


def make_lesion_set(
    inputs: Sequence[Path],
    out: Path,
    *,
    seed: int,
    region: Mask | None = None,
    kinds: Sequence[str] = LESION_KINDS,
    healthy_share: float = 0.25,
) -> ImplantedSet:
    """Implant one lesion each in healthy images of any kind: as `make_xray_set`, with masks/*.png instead of boxes.

    Radii are 2 to 9 of 128 parts of the image's shorter side, small ones as often as large ones; the strength is 0.2
    to 0.5 of the 98th percentile. cases.csv has the columns image, mask, healthy_image (the same without its lesion),
    subject and kind.

    Args:
        inputs: healthy images, on one grid where a region is given.
        out: as of `make_xray_set`, and so are the others and the errors.
        seed: the same.
        region: (H, W), where lesions may lie, such as the brain; None for what is well inside the bright part of each
            image.
        kinds: of LESION_KINDS.
        healthy_share: the same.
    """

    def diseased(pixels: Pixels, kind: str, generator: np.random.Generator) -> Files:
        sixteenth = max(1, min(pixels.shape) // 16)
        inner = binary_erosion(body_region(pixels, most=1.0), iterations=sixteenth) if region is None else region
        image, mask = _lesion(pixels, inner, kind, generator)
        return {"image": image, "mask": mask, "healthy_image": pixels}

    readme = (
        "Each diseased image holds one lesion; `mask` is where it changed by more than half its strength, "
        "`healthy_image` the image before."
    )
    kind_of_set = _SetKind(
        ("image", "mask", "healthy_image"), LESION_KINDS, diseased, lambda pixels: {"image": pixels}, readme
    )
    return _make(kind_of_set, inputs, out, kinds, healthy_share, seed)


def _lesion(pixels: Pixels, region: Mask, kind: str, generator: np.random.Generator) -> Implanted:
    """One lesion of a size, a strength and a place that the generator draws, of which most shows."""
    sign: Literal["dark", "bright"] = "dark" if kind == "dark" else "bright"
    reason = f"No {kind} lesion shows in full: its places are white or black already."
    for _ in range(TRIES):
        smallest = min(pixels.shape) / 128 * SMALLEST_RADIUS
        radius = max(1.0, smallest * LARGEST_TO_SMALLEST ** generator.uniform())
        strength = generator.uniform(*STRENGTHS)
        try:
            image, mask = implant_lesion(
                pixels, generator, region=region, kind=sign, radius_px=radius, strength=strength
            )
        except ThoradError as error:  # a smaller one may have a place
            reason = str(error)
            continue
        if np.count_nonzero(mask) >= SHOWN * np.pi * radius**2:
            return image, mask
    raise ThoradError(reason)


def _xray_finding(pixels: Pixels, body: Mask, kind: str, generator: np.random.Generator) -> Implanted:
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


def _box_around(mask: Mask, name: str) -> Box:
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


def _about(box: Box, shape: tuple[int, ...]) -> Mask:
    """The box and the margin that belongs to nothing, as a mask."""
    margin = round(ELSEWHERE_MARGIN * UNIT * min(shape))
    about = np.zeros(shape, dtype=np.bool_)
    rows = slice(max(int(box.top) - margin, 0), int(box.bottom) + margin)
    about[rows, max(int(box.left) - margin, 0) : int(box.right) + margin] = True
    return about


def _make(
    kind_of_set: _SetKind, inputs: Sequence[Path], out: Path, kinds: Sequence[str], healthy_share: float, seed: int
) -> ImplantedSet:
    """Write a set beside its place, and move it there when it is whole."""
    out = out.absolute()
    _check_options(kinds, kind_of_set.kinds, healthy_share, seed, out)
    scans = find_scans(inputs, healthy=True) if inputs else Scans([], Counter())
    sources = _sources(list(scans.values()))
    part = out.with_name(f".{out.name}.{os.getpid()}.part")
    try:
        made = ImplantedSet(part / "cases.csv", dict.fromkeys([*kinds, "healthy"], 0), {}, scans.left_out)
        rows = _write_cases(kind_of_set, sources, made, healthy_share, seed)
        if not any(made.counts[kind] for kind in kinds):
            reason = next(iter(made.left_out.values()), "no image was given")
            raise ThoradError(f"Nothing could be implanted in the {len(sources)} images. The first: {reason}")
        write_table(made.table, [*kind_of_set.columns, "subject", "kind"], rows)
        write_atomic(part / "README.md", _readme(kind_of_set, made, seed).encode())
        try:
            os.replace(part, out)
        except OSError as error:
            raise ThoradError(f"{out}: can't be written ({error.strerror}). Name another folder.") from error
    finally:
        shutil.rmtree(part, ignore_errors=True)
    doubt = patients_doubt([scan.path for _, _, scan in sources], [subject for subject, _, _ in sources])
    return replace(made, table=out / "cases.csv", doubt=doubt)


def _sources(scans: Sequence[Scan]) -> list[tuple[str, str, Scan]]:
    """(subject, name, scan) of healthy images. The name, which decides on the random numbers, is the file's alone."""
    files = [scan for scan in scans if not scan.is_dicom]  # a DICOM file's name may say who was scanned
    paths = [scan.path for scan in files]
    names = case_names(paths, [path.parent for path in paths])
    by_path = zip(subjects_of(paths, names), names, files, strict=True)
    sources = [(scan.told_subject or subject, name, scan) for subject, name, scan in by_path]
    return sources + [(scan.subject, scan.name, scan) for scan in scans if scan.is_dicom]


def _write_cases(
    kind_of_set: _SetKind, sources: Sequence[tuple[str, str, Scan]], made: ImplantedSet, healthy_share: float, seed: int
) -> list[dict[str, str]]:
    """Write the files of all cases, count them, and give the rows of the table by the cases' names."""
    subjects = sorted({subject for subject, _, _ in sources})
    order = [subjects[index] for index in np.random.default_rng(seed).permutation(len(subjects))]
    rank = {subject: place for place, subject in enumerate(order)}
    untouched = set(order[: round(healthy_share * len(subjects))])
    rows: dict[str, dict[str, str]] = {}
    # In the order that the seed draws, so that no kind gets all images of one scanner.
    for subject, name, scan in sorted(sources, key=lambda source: (rank[source[0]], source[1])):
        try:
            pixels = _pixels(scan)
            if subject in untouched:
                kind, files = "healthy", kind_of_set.healthy(pixels)
            else:
                kind, files = _rarest_that_fits(pixels, made.counts, f"{seed}/{name}", kind_of_set.diseased)
        except ThoradError as error:
            made.left_out[scan.path] = str(error) if str(scan.path) in str(error) else f"{scan.path}: {error}"
            continue
        made.counts[kind] += 1
        rows[name] = _write_case(made.table.parent, name, kind, files) | {"subject": subject, "kind": kind}
    return [rows[name] for name in sorted(rows)]


def _rarest_that_fits(pixels: Pixels, counts: Mapping[str, int], seed: str, diseased: Diseased) -> tuple[str, Files]:
    """Implant the kind that has the fewest cases so far, or the next one that the image has a place for.

    Each case and kind has its own random numbers, from the seed as text, whatever other images there are.
    """
    refusals: list[ThoradError] = []
    for kind in sorted(counts.keys() - {"healthy"}, key=lambda kind: (counts[kind], kind)):
        try:
            generator = np.random.default_rng(list(sha256(f"{seed}/{kind}".encode()).digest()))
            return kind, diseased(pixels, kind, generator)
        except ThoradError as error:
            refusals.append(error)
    raise refusals[0]


def _pixels(scan: Scan) -> Pixels:
    """(H, W) in [0, 1]."""
    if scan.is_volume:
        raise ThoradError(f"{scan.path}: a volume; expected pictures. `thorad prepare` cuts slices of it.")
    (image,) = images_of(scan, skull=False, indices=())
    height, width = image.pixels.shape
    if min(height, width) < SMALLEST_SIDE:
        raise ThoradError(
            f"{scan.path}: the image is {width} x {height} px; expected sides of {SMALLEST_SIDE} px at "
            "least, so that thin findings can be seen. Use larger images."
        )
    return image.scaled


def _write_case(folder: Path, name: str, kind: str, files: Files) -> dict[str, str]:
    """Write a case's files: {column: its path in the table}."""
    row: dict[str, str] = {}
    folders = {"image": "healthy" if kind == "healthy" else "images", "mask": "masks", "healthy_image": "without"}
    for column, content in files.items():
        relative = f"{folders.get(column, column)}/{name}{'.xml' if isinstance(content, bytes) else '.png'}"
        if isinstance(content, bytes):
            write_atomic(folder / relative, content)
        else:
            write_png8(folder / relative, content.astype(np.float32))
        row[column] = relative
    return row


def _readme(kind_of_set: _SetKind, made: ImplantedSet, seed: int) -> str:
    left_out = f"{len(made.left_out)} of the given images were of no use and are left out.\n\n" if made.left_out else ""
    counts = "\n".join(f"- {kind}: {count}" for kind, count in made.counts.items())
    return f"""# Implanted findings

Made by thorad {version("thorad")} from healthy images, seed {seed}. **The findings' places and looks are
simulated.** What is found here says that a method sees such changes, not how well it does on patients.

Cases, one image each:

{counts}

{left_out}`cases.csv` has the columns {", ".join([*kind_of_set.columns, "subject", "kind"])}; paths are relative to it.
Healthy images are of other subjects than diseased ones, as the column subject has them.
Pixels are divided by the image's own 98th percentile, clipped
to [0, 1] and stored in 8 bits.

{kind_of_set.readme}

Source and licence of the healthy images: *to be filled in before this set is passed on.*
"""


def _check_options(kinds: Sequence[str], known: Sequence[str], healthy_share: float, seed: int, out: Path) -> None:
    unknown = [kind for kind in kinds if kind not in known]
    if unknown or not kinds:
        raise ThoradError(f"Findings {listing(unknown) or 'none'}; expected some of {', '.join(known)}.")
    if not 0 <= healthy_share < 1:
        raise ThoradError(f"A healthy share of {healthy_share:g}; expected 0 up to, but without, 1.")
    if seed < 0:
        raise ThoradError(f"Seed {seed}; expected 0 or more.")
    try:
        taken = out.exists() and (not out.is_dir() or any(out.iterdir()))
    except OSError as error:
        raise ThoradError(f"{out}: can't be read ({error.strerror}). Check the path and its permissions.") from error
    if taken:
        raise ThoradError(f"{out}: already there and not an empty folder. Name a new folder.")
