"""ATLAS v2.0 as it is published: find its scans, check them, and cut the slice that the paper evaluates.

ATLAS: Liew et al., A large, curated, open-source stroke neuroimaging dataset, Scientific Data 2022. Its volumes are
registered to MNI152NLin2009aSym, and lie in folders as BIDS has them:

    .../sub-r001s001/ses-1/anat/sub-r001s001_ses-1_space-MNI152NLin2009aSym_T1w.nii.gz
    .../sub-r001s001/ses-1/anat/sub-r001s001_ses-1_space-MNI152NLin2009aSym_label-L_desc-T1lesion_mask.nii.gz
"""

import csv
import io
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from thorad.errors import ThoradError
from thorad.io.atomic import write_atomic
from thorad.io.images import write_png8, write_png16
from thorad.io.template import MNI_2009A, Grid
from thorad.io.volume_header import import_nibabel, times

LAYOUT: Final = "**/sub-*/ses-*/anat/*_T1w.nii.gz, each with its *_mask.nii.gz beside it"


ORIGIN_TOLERANCE: Final = 2.0
"""mm: conventions differ by up to a voxel; what is off by more is another space."""


@dataclass(frozen=True)
class Scan:
    """One T1w volume and its lesions."""

    name: str
    """`sub-XXXX_ses-Y`."""
    subject: str
    image: Path
    masks: tuple[Path, ...]
    """One or more; a voxel is in the lesion if it is in any of them."""


@dataclass(frozen=True)
class AtlasFiles:
    """What was found."""

    scans: list[Scan]
    without_mask: list[Path]
    """Volumes without a mask beside them: the data set keeps those of its test part back."""
    without_image: list[Path]
    """Masks without a volume beside them."""


@dataclass(frozen=True)
class Slices:
    """What was cut."""

    table: Path
    """cases.csv with the columns image, mask and subject."""
    cut: int
    """Slices with a lesion."""
    without_lesion: list[str]
    """Scans whose lesions lie in other slices."""
    left_out: dict[str, str]
    """{scan: why it is of no use}."""


def find_scans(root: Path) -> AtlasFiles:
    """Find the volumes and their masks in a folder, by their names alone; none of them is opened."""
    volumes = [path for path in _below_anat(root, "_T1w") if path.is_file()]
    masks = [path for path in _below_anat(root, "_mask") if path.is_file()]
    of_volume: dict[tuple[Path, str], list[Path]] = {}
    for mask in masks:
        of_volume.setdefault((mask.parent, _entities(mask)), []).append(mask)
    scans: list[Scan] = []
    without_mask: list[Path] = []
    for volume in volumes:
        name = _entities(volume)
        its_masks = of_volume.pop((volume.parent, name), [])
        if its_masks:
            scans.append(Scan(name, name.partition("_")[0], volume, tuple(its_masks)))
        else:
            without_mask.append(volume)
    return AtlasFiles(scans, without_mask, sorted(mask for left in of_volume.values() for mask in left))


def check_scan(scan: Scan, grid: Grid = MNI_2009A) -> None:
    """Read the headers of a scan's files.

    Raises:
        ThoradError: unreadable, or not on the grid.
    """
    for path in (scan.image, *scan.masks):
        _on_grid(path, grid)


def cut_slices(
    scans: Sequence[Scan],
    out: Path,
    *,
    grid: Grid = MNI_2009A,
    on_progress: Callable[[int, int], None] | None = None,
) -> Slices:
    """Cut each scan's axial slice: out/images/*.png (16 bit), out/masks/*.png, and last out/cases.csv.

    Pictures are (y, x): anterior up, x ascending to the right, as everywhere in this project. Slices without a lesion
    are counted, not written: the paper evaluates slices with lesions.

    Args:
        scans: of `find_scans`.
        out: the folder.
        grid: that the volumes must have.
        on_progress: called with (scans done, scans in all).

    Raises:
        ThoradError: no slice with a lesion, two scans of one name, `out` can't be written. A single scan that is of no
            use is left out and named in the result.
    """
    twice = sorted({scan.name for scan in scans if sum(other.name == scan.name for other in scans) > 1})
    if twice:
        raise ThoradError(
            f"{len(twice)} scans are there more than once, {twice[0]} first. Keep one copy of the data set."
        )
    rows: list[dict[str, str]] = []
    without_lesion: list[str] = []
    left_out: dict[str, str] = {}
    for done, scan in enumerate(scans, start=1):
        try:
            lesion = np.any([_slice(mask, grid) != 0 for mask in scan.masks], axis=0)
            if lesion.any():
                image, mask = f"images/{scan.name}.png", f"masks/{scan.name}.png"
                write_png16(out / image, _scaled(_slice(scan.image, grid), scan.image))
                write_png8(out / mask, lesion.astype(np.float32))
                rows.append({"image": image, "mask": mask, "subject": scan.subject})
            else:
                without_lesion.append(scan.name)
        except ThoradError as error:
            left_out[scan.name] = str(error)
        if on_progress is not None:
            on_progress(done, len(scans))
    if not rows:
        why = next(iter(left_out.values()), "none has a lesion there")
        raise ThoradError(
            f"None of the {len(scans)} scans gives a slice k = {grid.axial_slice} with a lesion. The first: {why}"
        )
    text = io.StringIO()
    writer = csv.DictWriter(text, ["image", "mask", "subject"], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_atomic(out / "cases.csv", text.getvalue().encode())
    return Slices(out / "cases.csv", len(rows), without_lesion, left_out)


def _below_anat(root: Path, ending: str) -> list[Path]:
    found = [path for suffix in (".nii.gz", ".nii") for path in root.rglob(f"sub-*{ending}{suffix}")]
    return sorted(path for path in found if path.parent.name == "anat")


def _entities(path: Path) -> str:
    """`sub-XXXX_ses-Y` of a file's name, `sub-XXXX` of one without a session."""
    return "_".join(part for part in path.name.split("_") if part.startswith(("sub-", "ses-")))


def _on_grid(path: Path, grid: Grid) -> Any:
    """The volume, its axes right, anterior and superior, its voxels unread."""
    nibabel = import_nibabel()
    try:
        volume = nibabel.as_closest_canonical(nibabel.load(path))
        shape, affine = tuple(volume.shape), np.asarray(volume.affine, dtype=np.float64)
    except (nibabel.filebasedimages.ImageFileError, OSError, EOFError, ValueError, zlib.error) as error:
        raise ThoradError(f"{path}: not a NIfTI volume ({error}). Copy it again from where it came from.") from error
    near = np.allclose(affine[:3, :3], np.eye(3), atol=1e-3) and np.allclose(
        affine[:3, 3], grid.origin_mm, atol=ORIGIN_TOLERANCE
    )
    if shape != grid.shape or not near:
        raise ThoradError(
            f"{path}: a grid of {times(shape)} voxels of {times(np.linalg.norm(affine[:3, :3], axis=0))} mm from "
            f"{times(affine[:3, 3])} mm; expected {times(grid.shape)} of 1 x 1 x 1 mm from {times(grid.origin_mm)} "
            "mm, the grid of MNI152NLin2009aSym. Take the volumes that the data set has registered."
        )
    return volume


def _slice(path: Path, grid: Grid) -> NDArray[Any]:
    """(H, W): anterior up, x ascending to the right."""
    volume = _on_grid(path, grid)
    try:
        plane = np.asarray(volume.dataobj[:, :, grid.axial_slice])  # (x, y)
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise ThoradError(f"{path}: damaged ({error}). Copy it again from where it came from.") from error
    if not np.isfinite(plane).all():
        raise ThoradError(f"{path}: the slice k = {grid.axial_slice} holds NaN or infinity. Copy it again.")
    return plane.T[::-1]  # (y descending, x)


def _scaled(pixels: NDArray[Any], path: Path) -> NDArray[np.float64]:
    """In [0, 1]: its brightest pixel becomes 1; what lies below 0, as interpolation overshoots, becomes 0."""
    bright = np.clip(pixels.astype(np.float64), 0, None)
    if not bright.max() > bright.min():
        raise ThoradError(f"{path}: the slice is empty. Copy the file again from where it came from.")
    return np.asarray(bright / bright.max())
