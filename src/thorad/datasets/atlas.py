"""ATLAS v2.0 as it is published: find its scans, check them, and cut the slice that the paper evaluates.

ATLAS: Liew et al., A large, curated, open-source stroke neuroimaging dataset, Scientific Data 2022. Its volumes are
registered to MNI152NLin2009aSym, and lie in folders as BIDS has them:

    .../sub-r001s001/ses-1/anat/sub-r001s001_ses-1_space-MNI152NLin2009aSym_T1w.nii.gz
    .../sub-r001s001/ses-1/anat/sub-r001s001_ses-1_space-MNI152NLin2009aSym_label-L_desc-T1lesion_mask.nii.gz
"""

import zlib
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from thorad.datasets.brains import is_of_bids, match_t1w
from thorad.datasets.cases import Case
from thorad.datasets.contract import DataSet, Layout
from thorad.datasets.layouts import shown
from thorad.datasets.published import ATLAS_SCANS
from thorad.errors import ThoradError
from thorad.io.images import write_png8, write_png16
from thorad.io.tables import listing, write_table
from thorad.io.template import MNI_2009A, Grid
from thorad.io.volumes import import_nibabel, times

EXPECTED: Final = "**/sub-*/ses-*/anat/*_T1w.nii.gz, each with its *_mask.nii.gz beside it"

ORIGIN_TOLERANCE: Final = 2.0  # mm: conventions differ by up to a voxel; what is off by more is another space


class AtlasFiles(NamedTuple):
    """T1w volumes, named `sub-XXXX_ses-Y`, with masks and without (the data set keeps some back), and masks alone."""

    cases: list[Case]
    without_mask: list[Case]
    without_image: list[Path]


@dataclass(frozen=True)
class Slices:
    """What was cut."""

    table: Path  # cases.csv with the columns image, mask and subject
    cut: int  # slices with a lesion
    without_lesion: list[str]  # scans whose lesions lie in other slices
    left_out: dict[str, str]  # {scan: why it is of no use}


def find_atlas(root: Path, files: Sequence[Path] | None = None) -> AtlasFiles:
    """Find the volumes and their masks in a folder, by their names alone; none of them is opened."""
    files = sorted(root.rglob("sub-*.nii*")) if files is None else files
    found, strays = match_t1w(root, files, r"_mask\.nii")
    cases = [replace(case, name="_".join(filter(None, (case.subject, case.session)))) for case in found]
    return AtlasFiles([case for case in cases if case.masks], [case for case in cases if not case.masks], strays)


def find_layout(folder: Path, files: Sequence[Path]) -> DataSet | None:
    """`find_atlas`, where masks have the names that only this data set gives them."""
    if not any("_desc-t1lesion" in path.name.lower() for path in files):
        return None
    cases, without_mask, without_image = find_atlas(folder, files)
    if not cases:
        return None
    kept_back = "no lesion mask (the data set keeps those of its test part back)"
    missing = [f"{shown(case.image, folder)}: {kept_back}" for case in without_mask]
    missing += [f"{shown(mask, folder)}: no T1w volume beside it" for mask in without_image]
    return DataSet(sorted([*cases, *without_mask], key=lambda case: case.image.parts), missing)


def check_headers(case: Case, grid: Grid = MNI_2009A) -> None:
    """Read the headers of a volume and its masks; a ThoradError where one is unreadable, or not on the grid."""
    for path in case.files:
        _on_grid(path, grid)


def cut_slices(
    cases: Sequence[Case], out: Path, *, grid: Grid = MNI_2009A, on_progress: Callable[[int, int], None] | None = None
) -> Slices:
    """Cut the axial slice of cases with masks: out/images/*.png (16 bit), out/masks/*.png, and last out/cases.csv.

    Pictures are (y, x): anterior up, x ascending to the right, as everywhere in this project. Slices without a lesion
    are counted, not written: the paper evaluates slices with lesions. `on_progress` is called with (done, in all).

    Raises:
        ThoradError: no slice with a lesion, two scans of one name, `out` can't be written. A single scan that is of no
            use is left out and named in the result.
    """
    twice = sorted({case.name for case in cases if sum(other.name == case.name for other in cases) > 1})
    if twice:
        raise ThoradError(
            f"{len(twice)} scans are there more than once: {listing(twice)}. Keep one copy of the data set."
        )
    rows: list[dict[str, str]] = []
    without_lesion: list[str] = []
    left_out: dict[str, str] = {}
    for done, case in enumerate(cases, start=1):
        try:
            row = _cut_slice(case, out, grid)
            rows += [row] if row else []
            without_lesion += [] if row else [case.name]
        except ThoradError as error:
            left_out[case.name] = str(error)
        if on_progress is not None:
            on_progress(done, len(cases))
    if not rows:
        why = next(iter(left_out.values()), "none has a lesion there")
        raise ThoradError(
            f"None of the {len(cases)} scans gives a slice k = {grid.axial_slice} with a lesion. The first: {why}"
        )
    write_table(out / "cases.csv", ["image", "mask", "subject"], rows)
    return Slices(out / "cases.csv", len(rows), without_lesion, left_out)


def published_numbers(cases: Sequence[Case]) -> dict[int, Case]:
    """{number in the paper's lists: scan}, of scans with masks.

    The published code numbers the slices and keeps back which scan each is; here they are numbered in the order of the
    scans' names, from 0. `cut_training_slices` finds out whether that holds.

    Raises:
        ThoradError: not as many scans as the lists count.
    """
    if len(cases) != ATLAS_SCANS:
        raise ThoradError(
            f"Found {len(cases)} T1w volumes of ATLAS with a mask; the paper's lists number {ATLAS_SCANS} of them, so "
            "their numbers mean nothing here. Give the whole training part of ATLAS v2.0, unpacked."
        )
    return dict(enumerate(sorted(cases, key=lambda case: case.name)))


def cut_training_slices(
    cases: Sequence[Case],
    numbers: Collection[int],
    out: Path,
    *,
    grid: Grid = MNI_2009A,
    on_progress: Callable[[int, int], None] | None = None,
) -> list[tuple[Path, str]]:
    """Cut the paper's training slices, which have no lesion, of `published_numbers` into out/*.png (16 bit).

    Returns:
        (picture, subject) of each.

    Raises:
        ThoradError: as `published_numbers`; a listed slice has a lesion after all, so that the order of the scans is
            not that of the lists (nothing is returned then: a model would learn lesions); a scan that can't be read.
    """
    of_number = published_numbers(cases)
    made: list[tuple[Path, str]] = []
    diseased: list[str] = []
    for number in sorted(numbers):
        case, picture = of_number[number], out / f"{of_number[number].name}.png"
        if _lesion(case, grid).any():
            diseased.append(f"{case.name} (Atlas_train_{number})")
        else:
            write_png16(picture, _scaled(_slice(case.image, grid), case.image))
            made.append((picture, case.subject))
        if on_progress is not None:
            on_progress(len(made) + len(diseased), len(numbers))
    if diseased:
        raise ThoradError(
            f"{len(diseased)} of the {len(numbers)} slices that the paper's list calls free of lesions have one: "
            f"{listing(diseased)}. The scans are numbered here in the order of their names, which is then not the "
            "published one (or these are other masks): train on slices whose masks are empty instead."
        )
    return made


def _lesion(case: Case, grid: Grid) -> NDArray[np.bool_]:
    return np.asarray(np.any([_slice(mask, grid) != 0 for mask in case.masks], axis=0))


def _cut_slice(case: Case, out: Path, grid: Grid) -> dict[str, str] | None:
    """Write the picture and the mask of one slice, and give its row; None where it has no lesion."""
    lesion = _lesion(case, grid)
    if not lesion.any():
        return None
    image, mask = f"images/{case.name}.png", f"masks/{case.name}.png"
    write_png16(out / image, _scaled(_slice(case.image, grid), case.image))
    write_png8(out / mask, lesion.astype(np.float32))
    return {"image": image, "mask": mask, "subject": case.subject}


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


LAYOUT: Final = Layout(
    description="ATLAS v2.0: sub-*/ses-*/anat/*_T1w.nii.gz with *_desc-T1lesion_mask.nii.gz",
    find=find_layout,
    recognises=is_of_bids,
    patients_only=True,
)
