"""DICOM in: the series among unsorted files, their volumes on the scanner's own grid, and X-rays.

Voxel axes of a volume: i along a row of the picture, j down its columns, k from slice to slice along their normal.
`slice_order` and `as_frames` lead back from there to the files and their rows and columns.

A case is named after a hash of its series' UID. Names and `source` never hold what the header says of the patient;
messages of errors name files as the user did, and `without_identity` takes that out. Whatever takes a data set may
raise what pydicom and its decoders raise: it is called within `reading`.
"""

import hashlib
import importlib
import io
import logging
import math
import os
import re
import struct
import zlib
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Final

import numpy as np
from numpy.typing import NDArray

from thorad.errors import ThoradError
from thorad.io.decode import check_sides, to_grey
from thorad.io.images import Image, check_values
from thorad.io.reading import COPY_AGAIN, LARGEST_FILE, check_file, one_error, reading_part
from thorad.io.tags import ScanTags, scan_tags
from thorad.io.text import printable
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

UNWINDOWED: Final = {"MR", "PT", "NM"}
"""Modalities whose single slices are read without their window, as volumes are: it was set for a reader's eye, and cuts
what is bright off."""

_DEFLATED: Final = b"1.2.840.10008.1.2.1.99"
_EXPLICIT: Final = b"1.2.840.10008.1.2.1"
_RUN_LENGTHS: Final = "1.2.840.10008.1.2.5"


@dataclass(frozen=True)
class Series:
    """Files that belong together: the slices of one stack, or a single file."""

    uid: str
    """Series Instance UID."""
    files: tuple[Path, ...]
    """Along the normal of the slices, ascending: `cross(row direction, column direction)` in DICOM's patient axes."""
    modality: str
    """As in the file, such as MR or DX; empty where the file has none."""
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
    """{file: what it is}, where that is no picture, a second copy, or a result of thorad; names no file or patient."""


@dataclass(frozen=True)
class _Header:
    """What grouping needs of one file; place in LPS: DICOM's axes, x to the left, y posterior, z superior; mm."""

    path: Path
    uid: str
    instance: str
    number: tuple[float, float]
    """Of the series, and of the instance in it; infinite where there is none."""
    modality: str
    shape: tuple[int, int]
    frames: int
    has_frame_positions: bool
    orientation: NDArray[np.float64]
    """(6,) where the column index and where the row index grows; NaN where the file doesn't say, as in `position`."""
    position: NDArray[np.float64]
    """(3,) of the centre of the first pixel."""

    @property
    def identity(self) -> tuple[object, ...]:
        """What two files of one instance have in common: its UID, and, as some anonymise all to one UID, its place."""
        return self.instance, self.number, *np.nan_to_num(self.position).tolist()

    @property
    def is_slice(self) -> bool:
        """Whether it is one picture that says where it lies."""
        return self.frames == 1 and bool(np.isfinite([*self.orientation, *self.position]).all())


@dataclass(frozen=True)
class _Plane:
    """One slice: frame (from 0) of a file, where it lies as in `_Header`, and what tells it from others there."""

    file: Path
    frame: int
    shape: tuple[int, int]
    orientation: NDArray[np.float64]
    position: NDArray[np.float64]
    spacing: tuple[float, float]
    """Distance of rows, of columns."""
    traits: dict[str, str]


def find_series(files: Sequence[Path]) -> SeriesFound:
    """Sort files into series; reads headers only.

    Files without a Series Instance UID are problems: nothing says what they belong to. A series whose slices differ in
    size or orientation (a localizer in three planes) becomes one stack for each. Pictures without a position (X-rays,
    also several in one series) stand for themselves. An instance that is there twice counts once. Files that aren't
    DICOM are problems: leave them out with `is_dicom`. A ThoradError where pydicom is not installed.
    """
    import_pydicom()
    problems: dict[Path, str] = {}
    skipped: dict[Path, str] = {}
    headers: dict[str, list[_Header]] = {}  # of each series
    instances: set[tuple[object, ...]] = set()
    for path in sorted(files):
        try:
            dataset = read_dataset(path, pixels=False)
            with reading(path):
                reason = _why_no_picture(dataset, path)
                header = None if reason else _header(dataset, path)
        except ThoradError as error:
            problems[path] = str(error)
            continue
        if header is None:
            skipped[path] = str(reason)
        elif header.identity in instances:
            skipped[path] = "a copy of another file"
        else:
            instances.add(header.identity)
            headers.setdefault(header.uid, []).append(header)
    stacks = [stack for of_series in headers.values() for stack in _series_of(of_series, problems)]
    return SeriesFound([series for _, series in sorted(stacks, key=lambda item: item[0])], problems, skipped)


def read_series(series: Series, name: str | None = None) -> Volume:
    """Read the slices of a stack, or an enhanced multi-frame file, as a volume on the scanner's own grid.

    The modality LUT or rescaling is applied, of each slice its own; windows are not. Padding takes the smallest value
    of the rest. The case id `name` is that of the series where not given.

    Raises:
        ThoradError: not a volume, missing tags or slices, several images at one position, slices that don't lie on a
            regular grid, a compression that can't be decoded, damaged files, too many voxels.
    """
    planes = _planes_of(series)
    affine = _affine(planes)
    stack = np.full((len(planes), *planes[0].shape), np.nan, np.float32)  # stays NaN where frames are missing
    padding = np.zeros(stack.shape, np.bool_)
    index_of = {(plane.file, plane.frame): index for index, plane in enumerate(planes)}
    tags: ScanTags | None = None
    for path in series.files:
        dataset = read_dataset(path, pixels=True)
        with reading(path):
            tags = tags or scan_tags(dataset)
            for frame, stored in enumerate(decoded_frames(dataset, path)):
                index = index_of[path, frame]
                grey = to_grey(stored, str(path))
                stack[index] = modality_values(grey, dataset, frame)
                padding[index] = padding_of(grey, dataset)
    if padding.any() and not padding.all():
        stack[padding] = stack[~padding].min()
    return Volume(
        voxels=as_frames(check_values(stack, str(series.files[0]))),
        affine=affine,
        source=f"DICOM series {series.name}",
        name=name or series.name,
        tags=tags,
    )


def read_radiograph(path: Path, name: str | None = None) -> Image:
    """Read one X-ray, or one slice by itself, the way it is to be looked at: as `displayed_values`.

    `spacing` comes from Pixel Spacing, or else Imager Pixel Spacing (in the detector's plane: anatomy is smaller), and
    is None where there is neither. The case id `name` is modality and a hash of the series' UID where not given.

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
        name = name or _name(text_of(dataset, "Modality"), uid)
        spacing, tags = _spacing(dataset), scan_tags(dataset)
    return Image(check_values(pixels, str(path)), f"DICOM series {name}", name, spacing, tags)


def slice_order(series: Series) -> list[tuple[Path, int]]:
    """Of each k of the volume, its file and the frame in it, from 0; errors as `read_series`."""
    return [(plane.file, plane.frame) for plane in _planes_of(series)]


def as_frames(voxels: NDArray[Any]) -> NDArray[Any]:
    """(I, J, K) of a volume as (K, rows, columns), the pictures of its slices; and back."""
    return voxels.transpose(2, 1, 0)


def without_identity(text: str, series: Series) -> str:
    """A message with the names of the series in place of its files' paths, which often hold the patient's name."""
    hidden = {str(form) for file in series.files for path in (file, file.parent) for form in (path, path.absolute())}
    hidden |= {file.name for file in series.files if not file.name.isdigit()}  # a bare number identifies nobody
    for path in sorted(hidden - {".", "/", ""}, key=len, reverse=True):
        text = text.replace(path, series.name)
    return text


def _why_no_picture(dataset: Any, path: Path) -> str | None:
    """What a data set is that isn't to be read as a scan; None where it is one."""
    sop_class = text_of(dataset, "SOPClassUID") or text_of(dataset.file_meta, "MediaStorageSOPClassUID")
    if sop_class in NOT_SCANS:
        return NOT_SCANS[sop_class]
    if text_of(dataset, "Manufacturer") == MANUFACTURER:
        return "a result of thorad"
    modality = text_of(dataset, "Modality")
    if modality in NOT_A_PICTURE:
        return f"an object of modality {modality}, which goes with pictures"
    if "Rows" not in dataset or "Columns" not in dataset:
        if sop_class.startswith(WITHOUT_PIXELS):
            return "an object without rows and columns, so no picture"
        # If it were passed over, nobody would notice that the end of a series is missing.
        raise ThoradError(f"{path}: cut short: no rows and columns. {COPY_AGAIN}")
    return None


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
        shape=rows_and_columns(dataset, path),
        frames=frame_count(dataset, path),
        has_frame_positions="PerFrameFunctionalGroupsSequence" in dataset,
        orientation=np.array(orientation if len(orientation) == 6 else [math.nan] * 6),
        position=np.array(position if len(position) == 3 else [math.nan] * 3),
    )


def _height(place: _Header | _Plane) -> float:
    """Along the normal of the slice, mm."""
    return float(np.cross(place.orientation[:3], place.orientation[3:]) @ place.position)


def _series_of(headers: list[_Header], problems: dict[Path, str]) -> Iterator[tuple[tuple[float, str], Series]]:
    """(what to sort by, series) of the stacks and pictures under one UID; adds slices without a place to `problems`."""
    placed = []
    for header in headers:
        if header.modality in CROSS_SECTIONS and header.frames == 1 and not header.is_slice and len(headers) > 1:
            problems[header.path] = (
                f"{header.path}: no {tag_name('ImagePositionPatient')} or {tag_name('ImageOrientationPatient')}, "
                f"without which a slice has no place among the other {len(headers) - 1} of its series. Export the "
                "series again, with all its tags."
            )
        else:
            placed.append(header)
    stacks = _stacks(placed)
    for stack in stacks:
        first = stack[0]
        name = _name(first.modality, first.uid)
        if len(stacks) > 1:
            name += "-" + hashlib.sha256(first.instance.encode()).hexdigest()[:8]
        yield (
            (first.number[0], name),
            Series(
                uid=first.uid,
                files=tuple(header.path for header in stack),
                modality=first.modality,
                slices=sum(header.frames for header in stack),
                is_volume=len(stack) > 1 or (first.frames > 1 and first.has_frame_positions),
                name=name,
            ),
        )


def _stacks(headers: list[_Header]) -> list[list[_Header]]:
    """Slices of one size and orientation together, along their normal; everything else by itself."""
    stacks: list[list[_Header]] = []
    for header in sorted(headers, key=lambda header: (header.number, header.instance)):
        for stack in stacks if header.is_slice else ():
            first = stack[0]
            if (
                first.is_slice
                and first.shape == header.shape
                and np.allclose(first.orientation, header.orientation, rtol=0, atol=ORIENTATION_TOLERANCE)
            ):
                stack.append(header)
                break
        else:
            stacks.append([header])
    # Ties stay in the order of their instance numbers.
    return [sorted(stack, key=_height) for stack in stacks]


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
            ("orientation", plane.orientation, first.orientation, ORIENTATION_TOLERANCE),
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
    return sorted(planes, key=_height)


def _planes_in(dataset: Any, path: Path) -> Iterator[_Plane]:
    shape, frames = rows_and_columns(dataset, path), frame_count(dataset, path)
    enhanced = "PerFrameFunctionalGroupsSequence" in dataset
    if enhanced and len(dataset.PerFrameFunctionalGroupsSequence) != frames:
        raise ThoradError(
            f"{path}: {frames} frames, but {tag_name('PerFrameFunctionalGroupsSequence')} has "
            f"{len(dataset.PerFrameFunctionalGroupsSequence)} items. {COPY_AGAIN}"
        )
    traits = {keyword: text_of(dataset, keyword) for keyword in _TELLING_APART if keyword in dataset}
    for frame in range(frames):
        place, turn, measures = (
            (frame_group(dataset, frame, keyword) if enhanced else dataset)
            for keyword in ("PlanePositionSequence", "PlaneOrientationSequence", "PixelMeasuresSequence")
        )
        position = required_numbers(place, "ImagePositionPatient", 3, path)
        orientation = np.array(required_numbers(turn, "ImageOrientationPatient", 6, path))
        row_distance, column_distance = required_numbers(measures, "PixelSpacing", 2, path)
        directions = orientation.reshape(2, 3)
        if (
            not np.allclose(directions @ directions.T, np.eye(2), rtol=0, atol=2 * ORIENTATION_TOLERANCE)
            or min(row_distance, column_distance) <= 0
        ):
            raise ThoradError(
                f"{path}: {tag_name('ImageOrientationPatient')} isn't two orthogonal unit vectors, or "
                f"{tag_name('PixelSpacing')} isn't above 0. Export the series again."
            )
        yield _Plane(path, frame, shape, orientation, np.array(position), (row_distance, column_distance), traits)


def _affine(planes: list[_Plane]) -> NDArray[np.float64]:
    """(4, 4) voxel index to RAS mm, of planes along their normal."""
    first = planes[0]
    between = _slice_step(planes)
    along_row, along_column = first.orientation.reshape(2, 3)
    cosine = float(between @ np.cross(along_row, along_column) / np.linalg.norm(between))
    tilt = math.degrees(math.acos(min(1.0, cosine)))
    if tilt > 1:
        raise ThoradError(
            f"{first.file}: the slices of this series are shifted against each other by {tilt:.1f} degrees from "
            "their normal (a tilted gantry); expected a right-angled grid. Resample it first."
        )
    affine = np.eye(4)
    affine[:3] = np.column_stack(
        [along_row * first.spacing[1], along_column * first.spacing[0], between, first.position]
    )
    affine[:2] *= -1  # LPS to RAS
    return affine


def _slice_step(planes: list[_Plane]) -> NDArray[np.float64]:
    """(3,) LPS mm from slice to slice."""
    path = planes[0].file
    steps = np.diff([_height(plane) for plane in planes])
    places = 1 + int((steps > 1e-3).sum())
    if places < len(planes):
        raise ThoradError(
            f"{path}: {len(planes)} images at {places} positions in this series, as of several echoes, times or "
            f"directions.{_differences(planes)} Expected one image at each position; put the files of one of them in "
            "a folder of their own."
        )
    step = float(np.median(steps))
    gaps = np.flatnonzero(steps > 1.5 * step)
    if gaps.size:
        lost = int((np.rint(steps[gaps] / step) - 1).sum())
        raise ThoradError(
            f"{path}: {lost} of {len(planes) + lost} slices of this series are missing. The first gap is between "
            f"{_where(planes[gaps[0]])} and {_where(planes[gaps[0] + 1])}: {steps[gaps[0]]:.2f} mm, others are "
            f"{step:.2f} mm apart. Copy the series again, with all its files."
        )
    positions = np.array([plane.position for plane in planes])
    off = np.linalg.norm(positions - np.linspace(positions[0], positions[-1], len(planes)), axis=1)
    if off.max() > POSITION_TOLERANCE * step:
        raise ThoradError(
            f"{path}: the slices of this series are {steps.min():.3f} to {steps.max():.3f} mm apart, and "
            f"{_where(planes[int(off.argmax())])} lies {off.max():.2f} mm beside a regular grid; expected even "
            "distances. Resample it to even slices first."
        )
    return np.asarray((positions[-1] - positions[0]) / len(steps))


def _where(plane: _Plane) -> str:
    what = f"frame {plane.frame + 1}" if plane.frame else str(plane.file.name)
    return f"{what} (at {_height(plane):.1f} mm)"


def _differences(planes: list[_Plane]) -> str:
    """What the images of a series differ in. Of values only numbers are shown: others may say anything."""
    different: list[str] = []
    for keyword in _TELLING_APART:
        values = sorted({plane.traits.get(keyword, "none") for plane in planes})
        if 1 < len(values) <= 16:
            numeric = all(re.fullmatch(r"none|[-+0-9.eE]+", value) for value in values)
            different.append(tag_name(keyword) + (f": {', '.join(values[:4])}" if numeric else ""))
    return f" They differ in {'; '.join(different[:3])}." if different else ""


def _spacing(dataset: Any) -> tuple[float, float] | None:
    for keyword in ("PixelSpacing", "ImagerPixelSpacing", "NominalScannedPixelSpacing"):
        numbers = numbers_of(dataset, keyword)
        if len(numbers) == 2 and all(0 < number < math.inf for number in numbers):
            return numbers[0], numbers[1]
    return None


def is_dicom(path: Path) -> bool:
    """Whether a file looks like DICOM: `DICM` at byte 128, or elements that a data set starts with.

    Reads 132 bytes. False for what can't be read.
    """
    try:
        if not path.is_file():  # a pipe would be waited for
            return False
        with path.open("rb") as file:
            head = file.read(132)
    except (OSError, ValueError):
        return False
    if head[128:] == b"DICM":
        return True
    # Without the preamble: group 0002 or 0008, an early element, and a VR or a short even length.
    if len(head) < 132 or head[:2] not in (b"\x02\0", b"\x08\0") or head[3] != 0 or head[2] > 0x18:
        return False
    if head[4:6] in (b"UL", b"OB", b"CS", b"UI", b"DA", b"TM", b"SH"):
        return True
    length = int(struct.unpack("<I", head[4:8])[0])
    return length % 2 == 0 and length <= 64 and head[8 + length : 10 + length] == head[:2]


def import_pydicom() -> Any:
    """The module pydicom; a ThoradError where it is not installed."""
    try:
        pydicom = importlib.import_module("pydicom")
    except ImportError as error:
        raise ThoradError("DICOM needs pydicom, which is not installed. pip install 'thorad[dicom]'") from error
    # They log values that they find odd, which may be the patient's name; the user gets one ThoradError instead. Set
    # here, for pydicom sets the level of its own log as it is imported.
    for library in ("pydicom", "openjpeg"):
        logging.getLogger(library).setLevel(logging.CRITICAL)
    return pydicom


def reading(path: Path) -> AbstractContextManager[None]:
    """One ThoradError for whatever pydicom and its decoders raise, without their words, and none of their warnings."""
    return one_error(path, "DICOM file", quoted=False)


class _BoundedReader(io.BufferedReader):
    """A file whose `read` asks for no more memory than is left of the file, whatever length an element claims."""

    def __init__(self, path: Path) -> None:
        super().__init__(io.FileIO(path))
        self._size = os.fstat(self.fileno()).st_size

    def read(self, size: int | None = -1) -> bytes:
        left = max(self._size - self.tell(), 0)
        return super().read(left if size is None or size < 0 else min(size, left))


def read_dataset(path: Path, *, pixels: bool) -> Any:
    """A file's elements as `pydicom.Dataset`, with its pixels or without. It holds the patient's identity.

    Raises:
        ThoradError: missing, unreadable, too large, not DICOM, damaged; pydicom is not installed.
    """
    pydicom = import_pydicom()
    with reading(path):
        check_file(path)
        if not is_dicom(path):
            raise ThoradError(f"{path}: not a DICOM file. Name a file or folder as the scanner or PACS exports it.")
        with reading_part("its list of elements"), _BoundedReader(path) as file:
            dataset = pydicom.dcmread(_inflated(file, path), stop_before_pixels=not pixels, force=True)
        if not len(dataset):
            raise ThoradError(f"{path}: no DICOM elements in this file. {COPY_AGAIN}")
        if "TransferSyntaxUID" not in dataset.file_meta:
            implicit, _ = dataset.original_encoding
            dataset.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2" if implicit else _EXPLICIT.decode()
        return dataset


def _inflated(file: BinaryIO, path: Path) -> BinaryIO:
    """The file from its start; where its data set is deflated, inflated with a bound, which pydicom doesn't know."""
    start = 132 if file.read(132)[128:] == b"DICM" else 0
    file.seek(start)
    deflated = False
    while (element := file.read(8))[:2] == b"\x02\0" and len(element) == 8:
        is_long = element[4:6] in (b"OB", b"OW", b"UN", b"UT", b"SQ")
        length = struct.unpack("<I", file.read(4))[0] if is_long else struct.unpack("<H", element[6:])[0]
        deflated |= file.read(length).rstrip(b"\0 ") == _DEFLATED
    end = file.tell() - len(element)
    file.seek(0)
    if not deflated:
        return file
    meta = file.read(end).replace(_DEFLATED, _EXPLICIT.ljust(len(_DEFLATED), b"\0"))
    inflating = zlib.decompressobj(-zlib.MAX_WBITS)
    content = inflating.decompress(file.read(), LARGEST_FILE)
    if inflating.unconsumed_tail:
        raise ThoradError(f"{path}: more than 1 GiB when inflated. Save it uncompressed, and fewer frames in a file.")
    return io.BytesIO(meta + content)


def tag_name(keyword: str) -> str:
    """`Image Position (Patient) (0020,0032)`."""
    from pydicom.datadict import dictionary_description, tag_for_keyword

    tag = tag_for_keyword(keyword) or 0
    return f"{dictionary_description(tag)} ({tag >> 16:04X},{tag & 0xFFFF:04X})"


def text_of(dataset: Any, keyword: str) -> str:
    """The element's text; empty where it is missing."""
    with reading_part(tag_name(keyword)):
        value = dataset.get(keyword)
        return "" if value is None else str(value).strip().strip("\0")


def numbers_of(dataset: Any, keyword: str) -> tuple[float, ...]:
    """The element's numbers; none where it is missing or empty."""
    with reading_part(tag_name(keyword)):
        value = dataset.get(keyword)
        if value is None or value == "":
            return ()
        return tuple(float(number) for number in (value if hasattr(value, "__iter__") else [value]))


def number_of(dataset: Any, keyword: str, default: float) -> float:
    """The element's first number; `default` where it is missing or empty."""
    return (*numbers_of(dataset, keyword), default)[0]


def required_numbers(dataset: Any, keyword: str, count: int, path: Path) -> tuple[float, ...]:
    """The element's numbers; a ThoradError where they aren't `count` finite ones, or there is no data set (None)."""
    numbers = () if dataset is None else numbers_of(dataset, keyword)
    if len(numbers) != count or not all(map(math.isfinite, numbers)):
        raise ThoradError(
            f"{path}: {len(numbers) or 'no'} values in {tag_name(keyword)}; expected {count} finite numbers. Export "
            "the series again, with all its tags."
        )
    return numbers


def frame_count(dataset: Any, path: Path) -> int:
    """Frames in a file, 1 where it doesn't say; a ThoradError where that can't be."""
    frames = number_of(dataset, "NumberOfFrames", 1)
    if not 1 <= frames <= LARGEST_VOLUME or frames != int(frames):
        raise ThoradError(f"{path}: {tag_name('NumberOfFrames')} is {frames:g}. {COPY_AGAIN}")
    return int(frames)


def rows_and_columns(dataset: Any, path: Path) -> tuple[int, int]:
    """Rows and columns; a ThoradError where they are missing or out of bounds."""
    rows, columns = (int(required_numbers(dataset, keyword, 1, path)[0]) for keyword in ("Rows", "Columns"))
    check_sides(rows, columns, str(path))
    return rows, columns


def frame_group(dataset: Any, frame: int, keyword: str) -> Any:
    """A functional group's item, of the frame or else of all frames; None where there is none."""
    holders = [dataset.PerFrameFunctionalGroupsSequence[frame]]
    holders += list(dataset.get("SharedFunctionalGroupsSequence") or [])[:1]
    return next((holder[keyword].value[0] for holder in holders if holder.get(keyword)), None)


def decoded_frames(dataset: Any, path: Path) -> Iterator[NDArray[Any]]:
    """The frames as stored, (rows, columns) or (rows, columns, 3), bounded before anything is decoded."""
    from pydicom.encaps import generate_frames
    from pydicom.pixels.decoders.base import get_decoder

    frames, (rows, columns) = frame_count(dataset, path), rows_and_columns(dataset, path)
    samples, bits = int(number_of(dataset, "SamplesPerPixel", 1)), int(number_of(dataset, "BitsAllocated", 0))
    palette = text_of(dataset, "PhotometricInterpretation") == "PALETTE COLOR"
    if samples not in (1, 3) or bits not in (8, 16, 32, 64) or palette:
        raise ThoradError(
            f"{path}: pixels of {samples} samples of {bits} bits{', colours of a palette' if palette else ''}; "
            "expected 1 or 3 of 8, 16 or 32. Save it in grey."
        )
    if frames * rows * columns * samples > LARGEST_VOLUME:
        raise ThoradError(
            f"{path}: {frames} frames of {columns} x {rows} px; expected {LARGEST_VOLUME} pixels at most. "
            "Save fewer frames in a file."
        )
    if not {"PixelData", "FloatPixelData", "DoubleFloatPixelData"} & set(dataset.dir()):
        raise ThoradError(f"{path}: no {tag_name('PixelData')}: a header without its picture. Export it again.")
    syntax = dataset.file_meta.TransferSyntaxUID
    with reading_part("its picture"):
        try:
            decoder = get_decoder(syntax)
            if not decoder.is_available:
                raise NotImplementedError
            if syntax.is_encapsulated and syntax != _RUN_LENGTHS:
                for encoded in generate_frames(dataset.PixelData, number_of_frames=frames):
                    _check_code_stream(encoded, (rows, columns, samples), path)
            for frame, _ in decoder.iter_array(dataset):
                yield frame
        except (RuntimeError, NotImplementedError) as error:
            compression = printable(f"{syntax.name} ({syntax})")
            raise ThoradError(
                f"{path}: its picture, compressed as {compression}, can't be decoded here: it is damaged, or of a rare "
                "kind. Copy it again, or decompress it first, for example with `gdcmconv --raw IN OUT`."
            ) from error


def _check_code_stream(encoded: bytes, shape: tuple[int, int, int], path: Path) -> None:
    """Refuse a JPEG or JPEG 2000 whose own header says another size: decoders follow that one, whatever it asks for."""
    found = None
    start = encoded.find(b"\xff\x4f\xff\x51", 0, 4096)  # not at 0 where a JP2 file is wrapped around it
    if 0 <= start <= len(encoded) - 42:
        right, bottom, left, top = struct.unpack(">4I", encoded[start + 8 : start + 24])
        found = (bottom - top, right - left, struct.unpack(">H", encoded[start + 40 : start + 42])[0])
    elif encoded[:2] == b"\xff\xd8":
        at = 2
        while at + 10 <= len(encoded) and encoded[at] == 0xFF:
            marker, length = encoded[at + 1], struct.unpack(">H", encoded[at + 2 : at + 4])[0]
            # Start of frame: of JPEG all of C0...CF but three, of JPEG-LS F7.
            if marker == 0xF7 or (0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC)):
                found = (*struct.unpack(">HH", encoded[at + 5 : at + 9]), encoded[at + 9])
                break
            at += 1 if marker == 0xFF else 2 + length
    if found != shape:
        raise ThoradError(
            f"{path}: the compressed picture isn't of the {shape[1]} x {shape[0]} px that its header says. {COPY_AGAIN}"
        )


def modality_values(stored: NDArray[Any], dataset: Any, frame: int) -> NDArray[Any]:
    """Stored values to those of the modality, by its LUT or linearly."""
    if dataset.get("ModalityLUTSequence"):
        return _looked_up(stored, dataset.ModalityLUTSequence[0], dataset)[0]
    holder = dataset
    if "PerFrameFunctionalGroupsSequence" in dataset:
        holder = frame_group(dataset, frame, "PixelValueTransformationSequence") or dataset
    slope, intercept = number_of(holder, "RescaleSlope", 1.0), number_of(holder, "RescaleIntercept", 0.0)
    return stored * np.float64(slope) + intercept


def displayed_values(stored: NDArray[Any], dataset: Any) -> NDArray[np.float32]:
    """Stored values as a picture that is to be looked at, bone bright, >= 0.

    The modality LUT or rescaling is applied; then the first VOI LUT, or else the first window (not for MR, PET and
    NM), whose range becomes 0...65535; MONOCHROME1 is inverted. Padding becomes the darkest value. Without LUT and
    window, values are as stored, shifted so that the smallest is 0 where there are negative ones.
    """
    padding = padding_of(stored, dataset)
    measured = ~padding | padding.all()
    values = _windowed(modality_values(stored, dataset, 0).astype(np.float64), dataset)
    if dataset.get("PhotometricInterpretation") == "MONOCHROME1":
        values = values[measured].max() - values
    lowest = float(values[measured].min())
    return np.asarray(np.where(padding, lowest, values) - min(lowest, 0), dtype=np.float32)


def _looked_up(values: NDArray[Any], item: Any, dataset: Any) -> tuple[NDArray[np.float64], int]:
    """Values through a LUT, and the bits of its entries. Values below its first and above its last take those."""
    entries, first, bits = (int(number) for number in item.LUTDescriptor)
    entries = entries % 2**16 or 2**16
    if first >= 2**15 and values.min() < 0:
        first -= 2**16  # the element is signed where the values may be
    data = item.LUTData
    if isinstance(data, bytes):
        order = ">" if dataset.original_encoding[1] is False else "<"
        table = np.frombuffer(data, np.uint8 if bits <= 8 and len(data) < 2 * entries else f"{order}u2")
    else:
        table = np.atleast_1d(np.asarray(data, dtype=np.int64))
    if not 8 <= bits <= 16 or len(table) < entries:
        raise ValueError(f"a table of {len(table)} entries of {bits} bits where {entries} are announced")
    index = np.clip(np.rint(values) - first, 0, entries - 1).astype(np.int64)
    return table[index].astype(np.float64), bits


def _windowed(values: NDArray[np.float64], dataset: Any) -> NDArray[np.float64]:
    """Values through the first VOI LUT or window (PS3.3 C.11.2.1), to 0...65535; as they are where there is none."""
    if text_of(dataset, "Modality") in UNWINDOWED:
        return values
    if dataset.get("VOILUTSequence"):
        looked_up, bits = _looked_up(values, dataset.VOILUTSequence[0], dataset)
        return np.asarray(looked_up * (65535 / (2**bits - 1)))
    centre, width = number_of(dataset, "WindowCenter", math.nan), number_of(dataset, "WindowWidth", math.nan)
    function = text_of(dataset, "VOILUTFunction").upper()
    if function not in ("SIGMOID", "LINEAR_EXACT"):
        centre, width = centre - 0.5, width - 1 + 1e-9  # so that the smallest width, 1, is a step
    if math.isnan(centre) or not width > 0:
        return values  # no window, or no width that the standard allows
    if function == "SIGMOID":
        return np.asarray(65535 / (1 + np.exp(-4 * (values - centre) / width)))
    return np.asarray(65535 * np.clip((values - centre) / width + 0.5, 0, 1))


def padding_of(stored: NDArray[Any], dataset: Any) -> NDArray[np.bool_]:
    """Where stored values say that nothing was measured."""
    value = number_of(dataset, "PixelPaddingValue", math.nan)
    limit = number_of(dataset, "PixelPaddingRangeLimit", value)
    return np.asarray((stored >= min(value, limit)) & (stored <= max(value, limit)))
