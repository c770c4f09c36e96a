"""A page for one volume of a result folder: three linked planes, the map over the scan, in one HTML file.

The page is made by the template in thorad/assets/volume_page and holds NiiVue (thorad/assets/niivue), which draws. It
opens from the disk and asks no network for anything.

What is embedded lies in the order nearest to right, anterior, superior, so that an index of the page is an index of
NiiVue. `to_source` leads from there to the voxels of the results.

Shapes: I, J, K the scan's own grid; P, Q, R the page's.
"""

import base64
import gzip
import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from thorad.errors import ThoradError
from thorad.io.atomic import write_atomic
from thorad.io.scans import find_scans
from thorad.io.tables import listing
from thorad.io.volumes import PACKING, Volume, import_nibabel, read_volume, times
from thorad.pictures import Side
from thorad.records import pixels_sha256
from thorad.results.folder import (
    CASE,
    VOLUME_JUDGED,
    VOLUME_MAP,
    VOLUME_MASK,
    VOLUME_PSEUDO_HEALTHY,
    CaseRecord,
    ResultFolder,
    match_truth,
    read_folder,
)
from thorad.results.gallery import finding_size, looking
from thorad.results.page import LARGEST_PAGE, asset, render

log = logging.getLogger("thorad.results")

MOST_VOXELS: Final = 40_000_000  # more is slow to draw, and too much for small graphics cards; heads of 1 mm have 7e6
LEAST_SIDE: Final = 16  # voxels; a smaller side shows nothing, so it is not reduced further
BRIGHTEST: Final = 98  # percentile of the scan's voxels that is white, as for the pictures beside the maps
NOT_LOOKED_AT: Final = -1.0  # in a page's map, where the result has NaN: NiiVue takes NaN for 0, a value of its own
NAME_IT: Final = "Name it with --scan to see it here."
SAME_PLACE_MM: Final = 0.01  # between two grids' voxels that count as one grid: headers store single precision


@dataclass(frozen=True, eq=False)
class _Grid:
    """The page's grid beside the result's."""

    shape: tuple[int, ...]
    """(I, J, K)."""
    affine: NDArray[np.float64]
    """(4, 4): voxel index of the result to mm (RAS+)."""
    factor: int = 1
    """So many voxels along each axis are one of the page."""

    @cached_property
    def orientation(self) -> NDArray[np.float64]:
        """(3, 2): for each axis, the anatomical axis nearest to it and 1 or -1, as nibabel has it."""
        return np.asarray(import_nibabel().io_orientation(self.affine))

    @cached_property
    def to_source(self) -> NDArray[np.float64]:
        """(4, 4): index of the page's grid to that of the result; the centre of a block, where it is reduced."""
        block = np.diag([self.factor] * 3 + [1.0])
        block[:3, 3] = (self.factor - 1) / 2
        return np.asarray(import_nibabel().orientations.inv_ornt_aff(self.orientation, self.shape) @ block)

    @property
    def page_shape(self) -> tuple[int, ...]:
        """(P, Q, R)."""
        return tuple(-(-self.shape[axis] // self.factor) for axis in np.argsort(self.orientation[:, 0]))

    def from_source(self, voxel: Sequence[int]) -> list[int]:
        """Index of the page's voxel that holds a voxel of the result."""
        return [round(index) for index in (np.linalg.inv(self.to_source) @ [*voxel, 1])[:3]]

    def blocks(self, voxels: NDArray[Any], outside: float) -> NDArray[Any]:
        """(P, Q, R, factor^3): the voxels of each of the page's, filled up with `outside` behind the last ones."""
        ordered = import_nibabel().apply_orientation(voxels, self.orientation)
        padded = np.pad(ordered, [(0, -side % self.factor) for side in ordered.shape], constant_values=outside)
        p, q, r = (side // self.factor for side in padded.shape)
        parts = padded.reshape(p, self.factor, q, self.factor, r, self.factor).transpose(0, 2, 4, 1, 3, 5)
        return parts.reshape(p, q, r, -1)

    def packed(self, voxels: NDArray[Any]) -> str:
        """A NIfTI file of voxels (P, Q, R), packed, as text."""
        image = import_nibabel().Nifti1Image(voxels, self.affine @ self.to_source)
        image.header.set_xyzt_units("mm")
        return _packed(image.to_bytes())


@dataclass(frozen=True, eq=False)
class _Volumes:
    """The volumes of one case, on the result's grid."""

    affine: NDArray[np.float64]
    anomaly_map: NDArray[np.float32]
    """(I, J, K), NaN where no slice was looked at."""
    scan: NDArray[np.float32] | None
    white: float
    """The scan's value that is white; 0 and below are black."""
    pseudo_healthy: NDArray[np.float32] | None
    """(I, J, K) in [0, 1], NaN as above."""
    mask: NDArray[np.bool_] | None
    judged: NDArray[np.bool_]
    """Where the model judges; where a slice was looked at in folders of versions that did not keep it."""
    truth: NDArray[np.bool_] | None = None


def volume_cases(results: Path) -> list[str]:
    """Names of the cases of a result folder that are volumes and did not fail, sorted.

    Raises:
        ThoradError: no result folder, no case in it, or a damaged file.
    """
    return [case.name for case in read_folder(results).cases if case.done and (case.folder / VOLUME_MAP).is_file()]


def write_volume_page(
    results: Path,
    case: str,
    out: Path,
    *,
    scan: Path | None = None,
    truth: Path | None = None,
    side: Side | None = None,
    largest: int = LARGEST_PAGE,
) -> Path:
    """Write the page of one volume of a folder of `thorad detect` to the file `out`.

    Values of the map are those of the result. Where the page would be larger than `largest`, blocks of 2 x 2 x 2
    voxels (or 3 x 3 x 3, ...) become one, with the highest value of the map and the mean of the scan in them; the page
    says so.

    Args:
        results, case, out: the folder, the name of a volume in it, and the HTML file.
        scan: the volume that was looked at (NIfTI, NRRD, MHA, or a folder or file of DICOM), for the folder holds none;
            None: the file that case.json names, if it is still there and the same, and else a page with the
            pseudo-healthy volume alone.
        truth: table with columns image and mask; the mask of the case's row, in the scan's space, is outlined.
        side: where the page has the patient's right at first; None: as in the run.
        largest: bytes that the page may have.

    Raises:
        ThoradError: no result folder, no such case, not a volume, a damaged file, a scan that can't be read or isn't
            the one that was looked at, a truth of other cases or without a mask for this one, a page that can't be
            written; nibabel is not installed.
    """
    folder = read_folder(results)
    record = folder.case(case)
    if not (record.folder / VOLUME_MAP).is_file():
        names = volume_cases(results)
        others = f"Its volumes are {listing(names)}." if names else "It holds no volume; see `thorad report`."
        raise ThoradError(f"{results}: the case {case} is a picture, not a volume. {others}")
    volumes, note = _read(record, scan)
    if note:
        log.warning("%s: its page has no scan. %s", case, note)
    lesions = None if truth is None else _lesions(folder, record, truth, volumes)
    factor = 1
    while True:
        grid = _Grid(volumes.anomaly_map.shape, volumes.affine, factor)
        if math.prod(grid.page_shape) <= MOST_VOXELS:
            page = _page(folder, record, replace(volumes, truth=lesions), grid, note, side or folder.side)
            if len(page) <= largest or min(grid.page_shape) < LEAST_SIDE:
                write_atomic(out, page)
                return out
        factor += 1


def _read(case: CaseRecord, scan: Path | None) -> tuple[_Volumes, str]:
    """The volumes, and why the scan is not among them, empty where it is."""
    path = case.folder / VOLUME_MAP
    anomaly_map, affine = _nifti(path)
    if not np.isfinite(anomaly_map).any():
        raise ThoradError(f"{path}: no voxel was looked at, so there is nothing to show. Detect again.")
    others = {}
    for name in (VOLUME_PSEUDO_HEALTHY, VOLUME_MASK, VOLUME_JUDGED):
        path = case.folder / name
        if path.is_file():
            others[name], where = _nifti(path)
            if others[name].shape != anomaly_map.shape or not _same(where, affine, anomaly_map.shape):
                raise ThoradError(f"{path}: on another grid than {VOLUME_MAP}. Detect again.")
    pseudo_healthy = others.get(VOLUME_PSEUDO_HEALTHY)
    mask = others[VOLUME_MASK] > 0 if VOLUME_MASK in others else None
    judged = others[VOLUME_JUDGED] > 0 if VOLUME_JUDGED in others else np.isfinite(anomaly_map)
    voxels, note = _scan(case, scan, anomaly_map.shape, affine)
    if voxels is None and pseudo_healthy is None:
        raise ThoradError(
            f"{case.folder}: neither the scan nor a pseudo-healthy volume to lay the map over. Name the scan's file."
        )
    white = 1.0 if voxels is None else float(np.percentile(np.clip(voxels, 0, None), BRIGHTEST))
    if voxels is not None and white <= 0:
        # Mostly air, or a scale of its own, such as z-scores.
        white = float(voxels.max()) if voxels.max() > 0 else 1.0
    return _Volumes(affine, anomaly_map, voxels, white, pseudo_healthy, mask, judged), note


def _scan(
    case: CaseRecord, scan: Path | None, shape: tuple[int, ...], affine: NDArray[np.float64]
) -> tuple[NDArray[np.float32] | None, str]:
    path = scan or Path(case.source)
    if scan is None and not path.exists():
        return None, f"The file it came from is not where it was, or was DICOM, whose place isn't kept. {NAME_IT}"
    try:
        volume = _volume(path, case)
    except ThoradError:
        if scan is not None:
            raise
        return None, f"The file it came from can't be read as a volume. {NAME_IT}"
    if volume.voxels.shape != shape or not _same(volume.affine, affine, shape):
        if scan is None:
            return None, "The file it came from is another one now: it lies on another grid than the map."
        raise ThoradError(
            f"{scan}: on another grid than the map of {case.name} ({times(volume.voxels.shape)} voxels, the map has "
            f"{times(shape)}). Give the very volume that was looked at."
        )
    # A grid alone tells no patient from another: a scanner's protocol gives all of them the same.
    if case.pixels_sha256 and pixels_sha256(volume.voxels) != case.pixels_sha256:
        if scan is None:
            return None, f"The file it came from is another one now: its voxels are others. {NAME_IT}"
        raise ThoradError(
            f"{scan}: not the volume that was looked at as {case.name}: its grid is the map's, but its voxels are "
            "others. Give the very volume that was looked at."
        )
    return volume.voxels, ""


def _volume(path: Path, case: CaseRecord) -> Volume:
    """The volume at a path, as `detect` finds it; of DICOM the series with the case's name, which is its own."""
    volumes = [scan for scan in find_scans([path]).values() if scan.is_volume]
    fitting = [scan for scan in volumes if scan.name == case.name or not (scan.is_dicom or len(volumes) > 1)]
    if not fitting:
        raise ThoradError(
            f"{path}: holds {listing([scan.name for scan in volumes]) or 'no volume'}, not the scan of {case.name}. "
            "Give its file, or the folder of its DICOM series."
        )
    volume = fitting[0].read()
    assert isinstance(volume, Volume)
    return volume


def _lesions(folder: ResultFolder, case: CaseRecord, table: Path, volumes: _Volumes) -> NDArray[np.bool_]:
    """(I, J, K): the lesions of the case's row of a table; nothing where that says that it is healthy."""
    row = match_truth(folder, table).get(case.name)
    if row is None:
        raise ThoradError(f"{table}: no row for the case {case.name}. Leave --truth out, or add it.")
    if row.mask is None:
        return np.zeros(volumes.anomaly_map.shape, np.bool_)
    from nibabel.processing import resample_from_to

    mask = read_volume(row.mask, constant=True)
    image = import_nibabel().Nifti1Image((mask.voxels > 0).astype(np.uint8), mask.affine)
    grid = (volumes.anomaly_map.shape, volumes.affine)
    return np.asarray(resample_from_to(image, grid, order=0).dataobj) > 0  # type: ignore[no-untyped-call]


def _nifti(path: Path) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
    """Voxels, NaN kept, and the affine."""
    nibabel = import_nibabel()
    try:
        image = nibabel.load(path)
        voxels = np.asarray(image.dataobj, np.float32)
    except Exception as error:  # parsers raise nearly anything on damaged files
        raise ThoradError(f"{path}: missing or damaged ({error}). Detect again.") from error
    if voxels.ndim != 3:
        raise ThoradError(f"{path}: {times(voxels.shape)} voxels; expected three axes. Detect again.")
    return voxels, np.asarray(image.affine, np.float64)


def _same(affine: NDArray[np.float64], other: NDArray[np.float64], shape: tuple[int, ...]) -> bool:
    """Whether two affines bring the grid's corners to one place."""
    corners = np.array([[i, j, k, 1] for i in (0, shape[0]) for j in (0, shape[1]) for k in (0, shape[2])])
    return bool(np.abs(corners @ (affine - other)[:3].T).max() <= SAME_PLACE_MM)


def _page(folder: ResultFolder, case: CaseRecord, volumes: _Volumes, grid: _Grid, note: str, side: Side) -> bytes:
    page = render(
        "volume_page/volume.html",
        case=case,
        folder=folder,
        note=note,
        percent=100 * volumes.judged.mean(),
        judged_is_kept=(case.folder / VOLUME_JUDGED).is_file(),
        factor=grid.factor,
        angle=_angle(volumes.affine),
        viewer=gzip.decompress(asset("niivue/niivue.umd.js.gz")).decode(),
        index={**_index(folder, case, volumes, grid), "side": side},
        volumes=_embedded(volumes, grid),
    )
    return page.encode("utf-8", "replace")


def _embedded(volumes: _Volumes, grid: _Grid) -> dict[str, str]:
    """{name: the volume on the page's grid, packed, as text}."""
    highest = grid.blocks(np.nan_to_num(volumes.anomaly_map, nan=NOT_LOOKED_AT), NOT_LOOKED_AT).max(axis=-1)
    embedded = {"map": grid.packed(highest)}
    if volumes.scan is not None:
        grey = grid.blocks(volumes.scan, 0).mean(axis=-1) / volumes.white
        embedded["scan"] = grid.packed(np.rint(255 * np.clip(grey, 0, 1)).astype(np.uint8))
    if volumes.pseudo_healthy is not None:
        # 0 where no slice was looked at, else 1...255 for [0, 1].
        parts = grid.blocks(volumes.pseudo_healthy, np.nan)
        count = np.isfinite(parts).sum(axis=-1)
        mean = np.nansum(parts, axis=-1) / np.maximum(count, 1)
        levels = np.where(count > 0, 1 + np.rint(254 * np.clip(mean, 0, 1)), 0)
        embedded["healthy"] = grid.packed(levels.astype(np.uint8))
    for name, mask in (("mask", volumes.mask), ("judged", volumes.judged), ("truth", volumes.truth)):
        if mask is not None:
            inside = grid.blocks(mask, 0).any(axis=-1)
            embedded[name] = _packed(np.packbits(inside.ravel("F")).tobytes())
    return embedded


def _index(folder: ResultFolder, case: CaseRecord, volumes: _Volumes, grid: _Grid) -> Mapping[str, Any]:
    """What the page's scripts need to know, beside the volumes."""
    highest = np.unravel_index(int(np.nanargmax(volumes.anomaly_map)), volumes.anomaly_map.shape)
    value = float(volumes.anomaly_map[highest])
    places = [{"label": "Highest value", **_place(highest, value, grid)}]
    try:
        for order, finding in enumerate(case.findings or (), start=1):
            place = _place(finding.peak_position, finding.peak, grid)
            places.append({"label": f"Finding {order}", "size": finding_size(finding), **place})
    except (KeyError, TypeError, ValueError) as error:
        raise ThoradError(f"{case.folder / CASE}: damaged ({error!r}). Delete it, and detect again.") from error
    return {
        "shape": grid.page_shape,
        "toSource": grid.to_source.tolist(),
        "affine": (grid.affine @ grid.to_source).tolist(),
        "factor": grid.factor,
        "white": volumes.white,
        **looking(folder, max(folder.maximum, 2 * (folder.threshold or 0), value)),
        "judged": True,
        "truth": volumes.truth is not None,
        "smooth": False,
        "notLookedAt": NOT_LOOKED_AT,
        "places": places,
    }


def _place(voxel: Sequence[Any], value: float, grid: _Grid) -> dict[str, Any]:
    index = [int(axis) for axis in voxel]
    return {"voxel": index, "index": grid.from_source(index), "value": value}


def _angle(affine: NDArray[np.float64]) -> float:
    """Largest angle between an axis of the grid and the anatomical axis nearest to it, degrees."""
    axes = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    return float(np.degrees(np.arccos(np.clip(np.abs(axes).max(axis=0).min(), 0, 1))))


def _packed(content: bytes) -> str:
    return base64.b64encode(gzip.compress(content, PACKING, mtime=0)).decode()
