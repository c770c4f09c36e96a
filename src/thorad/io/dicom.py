"""DICOM in: the series among unsorted files, their volumes on the scanner's own grid, and X-rays.

Voxel axes of a volume: i along a row of the picture, j down its columns, k from slice to slice along their normal.
`slice_order` and `as_frames` lead back from there to the files and their rows and columns.

A case is named after a hash of its series' UID. Names and `source` never hold what the header says of the patient;
messages of errors name files as the user did, and `without_identity` takes that out.
"""

import hashlib
import math
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from thorad.errors import ThoradError
from thorad.io.decode import to_grey
from thorad.io.dicom_file import (
    decoded_frames,
    displayed_values,
    frame_count,
    frame_group,
    import_pydicom,
    modality_values,
    number_of,
    numbers_of,
    padding_of,
    read_dataset,
    reading,
    required_numbers,
    rows_and_columns,
    tag_name,
    text_of,
)
from thorad.io.dicom_file import is_dicom as is_dicom
from thorad.io.images import Image
from thorad.io.volumes import LARGEST_VOLUME, Volume

MANUFACTURER: Final = "thorad"
"""Of every object that `thorad.results.dicom` writes; such objects are never read as scans."""

ORIENTATION_TOLERANCE: Final = 5e-3
"""What direction cosines may differ by between slices of one stack (0.3 degrees), or from unit and orthogonal ones."""

POSITION_TOLERANCE: Final = 0.05
"""Share of the slice distance by which a slice may lie beside its place on the regular grid."""

NOT_A_PICTURE: Final = {
    *("SEG", "SR", "PR", "KO", "REG", "FID", "RWV", "DOC", "PLAN", "ANN", "AU", "ECG", "HD"),
    *("RTSTRUCT", "RTDOSE", "RTPLAN", "RTRECORD"),
}
"""Modalities of objects that go with pictures, some of them with pixels of their own."""

NOT_SCANS: Final = {
    "1.2.840.10008.5.1.4.1.1.66.4": "a segmentation",
    "1.2.840.10008.5.1.4.1.1.66.7": "a label map segmentation",
    "1.2.840.10008.5.1.4.1.1.30": "a parametric map",
    "1.2.840.10008.1.3.10": "a DICOMDIR, a list of other files",
}
"""SOP classes that are passed over whatever their modality."""

WITHOUT_PIXELS: Final = tuple(
    f"1.2.840.10008.5.1.4.1.1.{number}"
    for number in ("4.2", "4.4", "9.", "11.", "66", "67", "68", "88.", "104.", "481.")
)
"""How the SOP classes of spectra, waveforms, presentation states, raw data, reports and documents begin."""

CROSS_SECTIONS: Final = {"MR", "CT", "PT"}
"""Modalities of which several files without a position are an error; those of others are pictures of their own."""

_TELLING_APART: Final = (
    *("EchoTime", "EchoNumbers", "InversionTime", "FlipAngle", "DiffusionBValue", "TemporalPositionIdentifier"),
    *("AcquisitionNumber", "TriggerTime", "ImageType"),
)
"""What images at one position usually differ by."""


@dataclass(frozen=True)
class Series:
    """Files that belong together: the slices of one stack, or a single file."""

    uid: str
    """Series Instance UID."""
    files: tuple[Path, ...]
    """Along the normal of the slices, ascending: `cross(row direction, column direction)` in DICOM's patient axes."""
    modality: str
    """As in the file, such as MR or DX; empty where the file has none."""
    description: str
    """Free text of the scanner's operator. May hold anything, the patient's name too: for a terminal, not for files."""
    slices: int
    """Slices or frames."""
    is_volume: bool
    """Several slices that say where they lie, for `read_series`; else a picture, for `read_radiograph`."""
    name: str
    """Case id without identity: modality and a hash of the UID, `mr-0a1b2c3d`. Where one series holds several stacks or
    pictures, `-` and a hash of the first instance's UID follow."""


@dataclass(frozen=True)
class SeriesFound:
    """What unsorted files hold."""

    series: list[Series]
    """In the order of their series numbers."""
    problems: dict[Path, str]
    """{file: why it can't be used}, though it should be a picture."""
    skipped: dict[Path, str]
    """{file: what it is}, where that is no picture, a second copy, or a result of thorad."""


@dataclass(frozen=True)
class _Plane:
    """One slice: where it is stored, where it lies. LPS: DICOM's axes, x to the left, y posterior, z superior; mm."""

    file: Path
    frame: int
    """From 0."""
    shape: tuple[int, int]
    """Rows, columns."""
    position: NDArray[np.float64]
    """(3,) LPS, of the centre of the first pixel."""
    along_row: NDArray[np.float64]
    """(3,) LPS, unit: where the column index grows."""
    along_column: NDArray[np.float64]
    """(3,) LPS, unit: where the row index grows."""
    spacing: tuple[float, float]
    """Distance of rows, of columns."""
    traits: dict[str, str]
    """What images at one position usually differ by."""

    @property
    def height(self) -> float:
        """Along the normal, mm."""
        return float(np.cross(self.along_row, self.along_column) @ self.position)


@dataclass(frozen=True)
class _Header:
    """What grouping needs of one file."""

    path: Path
    uid: str
    instance: str
    number: tuple[float, float]
    """Of the series, and of the instance in it; infinite where there is none."""
    modality: str
    description: str
    shape: tuple[int, int]
    frames: int
    has_frame_positions: bool
    orientation: tuple[float, ...] | None
    position: tuple[float, ...] | None

    @property
    def height(self) -> float:
        """Along the normal, mm; 0 where the file doesn't say."""
        if self.orientation is None or self.position is None:
            return 0.0
        return float(np.cross(self.orientation[:3], self.orientation[3:]) @ self.position)


def find_series(files: Sequence[Path]) -> SeriesFound:
    """Sort files into series; reads headers only.

    Files without a Series Instance UID are problems: nothing says what they belong to. A series whose slices differ in
    size or orientation (a localizer in three planes) becomes one stack for each. Pictures without a position (X-rays,
    also several in one series) stand for themselves. An instance that is there twice counts once.

    Args:
        files: any files; those that aren't DICOM are problems, so leave them out with `is_dicom`.

    Raises:
        ThoradError: pydicom is not installed.
    """
    import_pydicom()
    problems: dict[Path, str] = {}
    skipped: dict[Path, str] = {}
    headers: dict[str, list[_Header]] = {}  # of each series
    first_copy: dict[str, Path] = {}  # of each instance
    for path in sorted(files):
        try:
            header = _read_header(path)
        except ThoradError as error:
            problems[path] = str(error)
            continue
        if isinstance(header, str):
            skipped[path] = header
        elif header.instance in first_copy:
            skipped[path] = f"a copy of {first_copy[header.instance]}"
        else:
            first_copy[header.instance] = path
            headers.setdefault(header.uid, []).append(header)
    stacks = [stack for of_series in headers.values() for stack in _series_of(of_series, problems)]
    return SeriesFound([series for _, series in sorted(stacks, key=lambda item: item[0])], problems, skipped)


def read_series(series: Series, name: str | None = None, *, source: str | None = None) -> Volume:
    """Read the slices of a stack, or an enhanced multi-frame file, as a volume on the scanner's own grid.

    The modality LUT or rescaling is applied, of each slice its own; windows are not. Padding takes the smallest value
    of the rest.

    Args:
        series: of `find_series`, with `is_volume`.
        name: its case id; that of the series where not given.
        source: what results say of its origin; `DICOM series <name>`, which holds no identity, where not given.

    Raises:
        ThoradError: not a volume, missing tags or slices, several images at one position, slices that don't lie on a
            regular grid, a compression that can't be decoded, damaged files, too many voxels.
    """
    planes = _planes_of(series)
    affine = _affine(planes, series)
    stack, padding = _stack_of(planes)
    if not np.isfinite(stack).all():
        raise ThoradError(
            f"{series.files[0]}: values of this series are missing, or not finite when rescaled. Export it again."
        )
    if padding is not None and not padding.all():
        stack[padding] = stack[~padding].min()
    if stack.min() == stack.max():
        raise ThoradError(
            f"{series.files[0]}: every voxel of this series is {stack.min():g}. A constant image shows nothing; check "
            "how it was exported."
        )
    return Volume(
        voxels=stack.transpose(2, 1, 0),
        affine=affine,
        source=source if source is not None else f"DICOM series {series.name}",
        name=name or series.name,
    )


def read_radiograph(path: Path, name: str | None = None, *, source: str | None = None) -> Image:
    """Read one X-ray, or one slice by itself, the way it is to be looked at: as `displayed_values`.

    Args:
        path: a DICOM file of one frame.
        name: its case id; modality and a hash of the series' UID where not given.
        source: what results say of its origin; `DICOM series <name>`, which holds no identity, where not given.

    Returns:
        Its pixels are >= 0. `spacing` comes from Pixel Spacing, or else Imager Pixel Spacing (in the detector's plane:
        anatomy is smaller), and is None where there is neither.

    Raises:
        ThoradError: missing, damaged, not a picture, several frames, colours, constant, a compression that can't be
            decoded, sides out of bounds.
    """
    dataset = read_dataset(path, pixels=True)
    with reading(path):
        reason = _why_no_picture(dataset, path)
        if reason is not None:
            raise ThoradError(f"{path}: this is {reason}. Expected a DICOM picture; name the scan itself.")
        frames = frame_count(dataset, path)
        if frames != 1:
            raise ThoradError(f"{path}: {frames} frames; expected one picture. Save one frame as a file of its own.")
        stored = to_grey(next(iter(decoded_frames(dataset, path))), str(path))
        pixels = displayed_values(stored, dataset)
        uid = text_of(dataset, "SeriesInstanceUID") or text_of(dataset, "SOPInstanceUID") or pixels.tobytes().hex()
        own_name = _name(text_of(dataset, "Modality"), uid)
        spacing = _spacing(dataset)
    if not np.isfinite(pixels).all() or pixels.min() == pixels.max():
        raise ThoradError(
            f"{path}: every pixel is {pixels.flat[0]:g} after its window. A constant image shows nothing; check how it "
            "was exported."
        )
    return Image(
        pixels=pixels,
        source=source if source is not None else f"DICOM series {name or own_name}",
        name=name or own_name,
        spacing=spacing,
    )


def slice_order(series: Series) -> list[tuple[Path, int]]:
    """Of each k of the volume, its file and the frame in it, from 0.

    Raises:
        ThoradError: as `read_series`.
    """
    return [(plane.file, plane.frame) for plane in _planes_of(series)]


def as_frames(voxels: NDArray[Any]) -> NDArray[Any]:
    """(I, J, K) of a volume as (K, rows, columns), the pictures of its slices; the inverse of how they were stacked."""
    return voxels.transpose(2, 1, 0)


def without_identity(text: str, series: Series) -> str:
    """A message with the names of the series in place of its files' paths, which often hold the patient's name."""
    hidden = {str(form) for file in series.files for path in (file, file.parent) for form in (path, path.absolute())}
    hidden |= {file.name for file in series.files if not file.name.isdigit()}  # a bare number identifies nobody
    for path in sorted(hidden - {".", "/", ""}, key=len, reverse=True):
        text = text.replace(path, series.name)
    return text


def _why_no_picture(dataset: Any, path: Path) -> str | None:
    """What a data set is that isn't to be read as a scan; None where it is one.

    Raises:
        ThoradError: it should be a picture, but is cut short before it says of what size.
    """
    sop_class = text_of(dataset, "SOPClassUID") or text_of(dataset.file_meta, "MediaStorageSOPClassUID")
    known = NOT_SCANS.get(sop_class)
    if known is not None:
        return known
    if text_of(dataset, "Manufacturer") == MANUFACTURER:
        return "a result of thorad"
    modality = text_of(dataset, "Modality")
    if modality in NOT_A_PICTURE:
        return f"an object of modality {modality}, which goes with pictures"
    if "Rows" not in dataset or "Columns" not in dataset:
        if sop_class.startswith(WITHOUT_PIXELS):
            return "an object without rows and columns, so no picture"
        # If it were passed over, nobody would notice that the end of a series is missing.
        raise ThoradError(f"{path}: cut short: no rows and columns. Copy it again from where it came from.")
    return None


def _read_header(path: Path) -> _Header | str:
    """What grouping needs of a file; or what it is, where it is no picture."""
    dataset = read_dataset(path, pixels=False)
    with reading(path):
        return _why_no_picture(dataset, path) or _header(dataset, path)


def _header(dataset: Any, path: Path) -> _Header:
    uid = text_of(dataset, "SeriesInstanceUID")
    if not uid:
        raise ThoradError(
            f"{path}: no {tag_name('SeriesInstanceUID')}, so nothing says which files it belongs to. Export it again."
        )
    orientation, position = numbers_of(dataset, "ImageOrientationPatient"), numbers_of(dataset, "ImagePositionPatient")
    return _Header(
        path=path,
        uid=uid,
        instance=text_of(dataset, "SOPInstanceUID") or f"{path}",
        number=(number_of(dataset, "SeriesNumber", math.inf), number_of(dataset, "InstanceNumber", math.inf)),
        modality=text_of(dataset, "Modality"),
        description=text_of(dataset, "SeriesDescription"),
        shape=rows_and_columns(dataset, path),
        frames=frame_count(dataset, path),
        has_frame_positions="PerFrameFunctionalGroupsSequence" in dataset,
        orientation=orientation if orientation is not None and len(orientation) == 6 else None,
        position=position if position is not None and len(position) == 3 else None,
    )


def _lacks_position(header: _Header) -> bool:
    return (
        header.modality in CROSS_SECTIONS
        and header.frames == 1
        and (header.orientation is None or header.position is None)
    )


def _series_of(headers: list[_Header], problems: dict[Path, str]) -> Iterator[tuple[tuple[float, str], Series]]:
    """(what to sort by, series) of the stacks and pictures under one UID; adds slices without a place to `problems`."""
    lost = [header for header in headers if _lacks_position(header) and len(headers) > 1]
    for header in lost:
        missing = "ImagePositionPatient" if header.orientation else "ImageOrientationPatient"
        problems[header.path] = (
            f"{header.path}: no {tag_name(missing)}, without which a slice has no place among the other "
            f"{len(headers) - 1} of its series. Export the series again, with all its tags."
        )
    stacks = _stacks([header for header in headers if header not in lost])
    for stack in stacks:
        series = _series(stack, alone=len(stacks) == 1)
        yield (stack[0].number[0], series.name), series


def _stacks(headers: list[_Header]) -> list[list[_Header]]:
    """Slices of one size and orientation together, along their normal; everything else by itself."""
    stacks: list[list[_Header]] = []
    for header in sorted(headers, key=lambda header: (header.number, header.instance)):
        is_slice = header.frames == 1 and header.orientation is not None and header.position is not None
        for stack in stacks if is_slice else ():
            first = stack[0]
            if (
                first.frames == 1
                and first.position is not None
                and first.orientation is not None
                and header.orientation is not None
                and first.shape == header.shape
                and np.allclose(first.orientation, header.orientation, rtol=0, atol=ORIENTATION_TOLERANCE)
            ):
                stack.append(header)
                break
        else:
            stacks.append([header])
    # Ties stay in the order of their instance numbers.
    return [sorted(stack, key=lambda header: header.height) for stack in stacks]


def _series(stack: list[_Header], *, alone: bool) -> Series:
    first = stack[0]
    name = _name(first.modality, first.uid)
    if not alone:
        name += "-" + hashlib.sha256(first.instance.encode()).hexdigest()[:8]
    return Series(
        uid=first.uid,
        files=tuple(header.path for header in stack),
        modality=first.modality,
        description=first.description,
        slices=sum(header.frames for header in stack),
        is_volume=len(stack) > 1 or (first.frames > 1 and first.has_frame_positions),
        name=name,
    )


def _name(modality: str, uid: str) -> str:
    kind = re.sub("[^a-z0-9]", "", modality.lower())[:8] or "dicom"
    return f"{kind}-{hashlib.sha256(uid.encode()).hexdigest()[:8]}"


def _planes_of(series: Series) -> list[_Plane]:
    """All slices of a series along their normal, checked to be one stack."""
    if not series.is_volume:
        raise ThoradError(
            f"{series.files[0]}: one picture, or frames without positions; expected several slices of a volume. "
            "Name the whole series."
        )
    planes: list[_Plane] = []
    for path in series.files:
        dataset = read_dataset(path, pixels=False)
        with reading(path):
            planes += _planes_in(dataset, path)
    first = planes[0]
    for plane in planes:
        for what, own, others, tolerance in (
            ("size in pixels", plane.shape, first.shape, 0),
            ("pixel spacing", plane.spacing, first.spacing, 1e-3 * first.spacing[0]),
            ("row direction", plane.along_row, first.along_row, ORIENTATION_TOLERANCE),
            ("column direction", plane.along_column, first.along_column, ORIENTATION_TOLERANCE),
        ):
            if not np.allclose(own, others, rtol=0, atol=tolerance):
                raise ThoradError(
                    f"{plane.file}: its {what} is another than that of {first.file} in the same series. Expected "
                    "slices of one stack; put the files of one stack in a folder of their own."
                )
    if len(planes) * first.shape[0] * first.shape[1] > LARGEST_VOLUME:
        raise ThoradError(
            f"{first.file}: {len(planes)} slices of {first.shape[1]} x {first.shape[0]} px in this series; expected "
            f"{LARGEST_VOLUME} voxels at most. Leave slices out, or resample it."
        )
    planes.sort(key=lambda plane: plane.height)
    return planes


def _planes_in(dataset: Any, path: Path) -> Iterator[_Plane]:
    shape, frames = rows_and_columns(dataset, path), frame_count(dataset, path)
    enhanced = "PerFrameFunctionalGroupsSequence" in dataset
    if enhanced and len(dataset.PerFrameFunctionalGroupsSequence) != frames:
        raise ThoradError(
            f"{path}: {frames} frames, but {tag_name('PerFrameFunctionalGroupsSequence')} has "
            f"{len(dataset.PerFrameFunctionalGroupsSequence)} items. Copy the file again from where it came from."
        )
    for frame in range(frames):
        place, turn, measures = (
            (frame_group(dataset, frame, keyword) if enhanced else dataset)
            for keyword in ("PlanePositionSequence", "PlaneOrientationSequence", "PixelMeasuresSequence")
        )
        position = required_numbers(place, "ImagePositionPatient", 3, path, "where the slice lies")
        orientation = np.array(required_numbers(turn, "ImageOrientationPatient", 6, path, "how the slice lies"))
        row_distance, column_distance = required_numbers(measures, "PixelSpacing", 2, path, "the size of its pixels")
        along_row, along_column = orientation[:3], orientation[3:]
        lengths = along_row @ along_row, along_column @ along_column, 1 + along_row @ along_column
        if (
            not np.allclose(lengths, 1, rtol=0, atol=2 * ORIENTATION_TOLERANCE)
            or min(row_distance, column_distance) <= 0
        ):
            raise ThoradError(
                f"{path}: {tag_name('ImageOrientationPatient')} isn't two orthogonal unit vectors, or "
                f"{tag_name('PixelSpacing')} isn't above 0. Export the series again."
            )
        yield _Plane(
            file=path,
            frame=frame,
            shape=shape,
            position=np.array(position),
            along_row=along_row,
            along_column=along_column,
            spacing=(row_distance, column_distance),
            traits={keyword: text_of(dataset, keyword) for keyword in _TELLING_APART if keyword in dataset},
        )


def _stack_of(planes: list[_Plane]) -> tuple[NDArray[np.float32], NDArray[np.bool_] | None]:
    """(K, rows, columns) values of the modality, NaN where they are announced and not there; and where nothing was
    measured, None for nowhere.
    """
    shape = (len(planes), *planes[0].shape)
    stack = np.full(shape, np.nan, np.float32)
    padding: NDArray[np.bool_] | None = None
    index_of = {(plane.file, plane.frame): index for index, plane in enumerate(planes)}
    for path in dict.fromkeys(plane.file for plane in planes):
        dataset = read_dataset(path, pixels=True)
        with reading(path):
            for frame, stored in enumerate(decoded_frames(dataset, path)):
                index = index_of[path, frame]
                grey = to_grey(stored, str(path))
                stack[index] = modality_values(grey, dataset, frame)
                of_slice = padding_of(grey, dataset)
                if of_slice.any():
                    padding = np.zeros(shape, np.bool_) if padding is None else padding
                    padding[index] = of_slice
    return stack, padding


def _affine(planes: list[_Plane], series: Series) -> NDArray[np.float64]:
    """(4, 4) voxel index to RAS mm, of planes along their normal.

    Raises:
        ThoradError: several slices at one height, missing ones, or none on a regular grid.
    """
    between = _slice_step(planes, series)
    first = planes[0]
    normal = np.cross(first.along_row, first.along_column)
    tilt = math.degrees(math.acos(min(1.0, float(between @ normal) / float(np.linalg.norm(between)))))
    if tilt > 1:
        raise ThoradError(
            f"{series.files[0]}: the slices of this series are shifted against each other by {tilt:.1f} degrees from "
            "their normal (a tilted gantry); expected a right-angled grid. Resample it first."
        )
    affine = np.eye(4)
    affine[:3, 0] = first.along_row * first.spacing[1]
    affine[:3, 1] = first.along_column * first.spacing[0]
    affine[:3, 2] = between
    affine[:3, 3] = first.position
    affine[:2] *= -1  # LPS to RAS
    return affine


def _slice_step(planes: list[_Plane], series: Series) -> NDArray[np.float64]:
    """(3,) LPS mm from slice to slice.

    Raises:
        ThoradError: several slices at one height, missing ones, or uneven distances.
    """
    heights = np.array([plane.height for plane in planes])
    steps = np.diff(heights)
    distinct = steps[steps > 1e-3]
    if len(distinct) < len(steps):
        raise ThoradError(f"{series.files[0]}: {_several_at_one_place(planes, 1 + len(distinct))}")
    step = float(np.median(steps))
    gaps = [index for index in range(len(steps)) if steps[index] > 1.5 * step]
    if gaps:
        lost = sum(round(steps[index] / step) - 1 for index in gaps)
        before, after = planes[gaps[0]], planes[gaps[0] + 1]
        raise ThoradError(
            f"{series.files[0]}: {lost} of {len(planes) + lost} slices of this series are missing. The first gap is "
            f"between {_where(before)} and {_where(after)}: {steps[gaps[0]]:.2f} mm, others are {step:.2f} mm apart. "
            "Copy the series again, with all its files."
        )
    positions = np.array([plane.position for plane in planes])
    between = (positions[-1] - positions[0]) / len(steps)
    off = np.linalg.norm(positions - (positions[0] + np.arange(len(planes))[:, None] * between), axis=1)
    if off.max() > POSITION_TOLERANCE * step:
        raise ThoradError(
            f"{series.files[0]}: the slices of this series are {steps.min():.3f} to {steps.max():.3f} mm apart, and "
            f"{_where(planes[int(off.argmax())])} lies {off.max():.2f} mm beside a regular grid; expected even "
            "distances. Resample it to even slices first."
        )
    return np.asarray(between)


def _where(plane: _Plane) -> str:
    what = f"frame {plane.frame + 1}" if plane.frame else str(plane.file.name)
    return f"{what} (at {plane.height:.1f} mm)"


def _several_at_one_place(planes: list[_Plane], places: int) -> str:
    values = {keyword: Counter(plane.traits.get(keyword, "none") for plane in planes) for keyword in _TELLING_APART}
    different = [
        # Only numbers are shown: other values may say anything, and messages are kept with the results.
        f"{tag_name(keyword)}: {', '.join(sorted(counts)[:4])}"
        if all(re.fullmatch(r"none|[-+0-9.eE]+", value) for value in counts)
        else tag_name(keyword)
        for keyword, counts in values.items()
        if 1 < len(counts) <= 16
    ]
    by = f" They differ in {'; '.join(different[:3])}." if different else ""
    return (
        f"{len(planes)} images at {places} positions in this series, as of several echoes, times or directions.{by} "
        "Expected one image at each position; put the files of one of them in a folder of their own."
    )


def _spacing(dataset: Any) -> tuple[float, float] | None:
    for keyword in ("PixelSpacing", "ImagerPixelSpacing", "NominalScannedPixelSpacing"):
        numbers = numbers_of(dataset, keyword)
        if numbers is not None and len(numbers) == 2 and all(0 < number < math.inf for number in numbers):
            return numbers[0], numbers[1]
    return None
