"""One DICOM file: opened within bounds, its elements, and its pixels as values; `dicom` makes volumes and pictures.

Every function that takes a data set may raise what pydicom and its decoders raise: call it within `reading`.
"""

import importlib
import io
import logging
import math
import os
import struct
import zlib
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, BinaryIO, Final

import numpy as np
from numpy.typing import NDArray

from thorad.errors import ThoradError
from thorad.io.decode import check_sides
from thorad.io.images import LARGEST_FILE
from thorad.io.reading import COPY_AGAIN, one_error
from thorad.io.volumes import LARGEST_VOLUME

UNWINDOWED: Final = {"MR", "PT", "NM"}
"""Modalities whose single slices are read without their window, as volumes are: it was set for a reader's eye, and cuts
what is bright off."""

_DEFLATED: Final = b"1.2.840.10008.1.2.1.99"
_EXPLICIT: Final = b"1.2.840.10008.1.2.1"
_RUN_LENGTHS: Final = "1.2.840.10008.1.2.5"


def is_dicom(path: Path) -> bool:
    """Whether a file looks like DICOM: `DICM` at byte 128, or elements that a data set starts with.

    Reads 132 bytes. False for what can't be read.
    """
    try:
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
    """The module pydicom.

    Raises:
        ThoradError: it is not installed.
    """
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
    try:
        if not path.is_file():
            raise ThoradError(f"{path}: no such file. Check the path.")
        size = path.stat().st_size
        if size > LARGEST_FILE:
            raise ThoradError(f"{path}: {size / 2**30:.1f} GiB; expected 1 GiB at most. Save fewer frames in a file.")
        if not is_dicom(path):
            raise ThoradError(f"{path}: not a DICOM file. Name a file or folder as the scanner or PACS exports it.")
        with _BoundedReader(path) as file, reading(path):
            dataset = pydicom.dcmread(_inflated(file, path), stop_before_pixels=not pixels, force=True)
            if not len(dataset):
                raise ThoradError(f"{path}: no DICOM elements in this file. {COPY_AGAIN}")
            if "TransferSyntaxUID" not in dataset.file_meta:
                implicit, _ = dataset.original_encoding
                dataset.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2" if implicit else _EXPLICIT.decode()
            return dataset
    except (OSError, ValueError) as error:
        raise ThoradError(f"{path}: can't be read ({error}). Check the path and its permissions.") from error


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
    value = dataset.get(keyword)
    return "" if value is None else str(value).strip().strip("\0")


def numbers_of(dataset: Any, keyword: str) -> tuple[float, ...] | None:
    """The element's numbers; None where it is missing or empty."""
    value = dataset.get(keyword)
    if value is None or value == "":
        return None
    numbers = tuple(float(number) for number in (value if hasattr(value, "__iter__") else [value]))
    return numbers or None


def number_of(dataset: Any, keyword: str, default: float) -> float:
    """The element's first number; `default` where it is missing or empty."""
    numbers = numbers_of(dataset, keyword)
    return default if numbers is None else numbers[0]


def required_numbers(dataset: Any, keyword: str, count: int, path: Path, purpose: str) -> tuple[float, ...]:
    """The element's numbers, `count` finite ones.

    Raises:
        ThoradError: there are none, others, or there is no data set (None), with `purpose`: what they are for.
    """
    numbers = numbers_of(dataset, keyword) if dataset is not None else None
    if numbers is None or len(numbers) != count or not all(map(math.isfinite, numbers)):
        found = "no" if numbers is None else f"{len(numbers)} values or odd ones in"
        raise ThoradError(
            f"{path}: {found} {tag_name(keyword)}; expected {purpose}. Export the series again, with all its tags."
        )
    return numbers


def frame_count(dataset: Any, path: Path) -> int:
    """Frames in a file, 1 where it doesn't say.

    Raises:
        ThoradError: not a number that can be.
    """
    frames = number_of(dataset, "NumberOfFrames", 1)
    if not 1 <= frames <= LARGEST_VOLUME or frames != int(frames):
        raise ThoradError(f"{path}: {tag_name('NumberOfFrames')} is {frames:g}. {COPY_AGAIN}")
    return int(frames)


def rows_and_columns(dataset: Any, path: Path) -> tuple[int, int]:
    """Rows and columns.

    Raises:
        ThoradError: missing, or out of bounds.
    """
    rows, columns = (
        int(required_numbers(dataset, keyword, 1, path, "the picture's size")[0]) for keyword in ("Rows", "Columns")
    )
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

    frames, samples = frame_count(dataset, path), int(number_of(dataset, "SamplesPerPixel", 1))
    rows, columns = rows_and_columns(dataset, path)
    _check_pixels(dataset, samples, path)
    if frames * rows * columns * samples > LARGEST_VOLUME:
        raise ThoradError(
            f"{path}: {frames} frames of {columns} x {rows} px; expected {LARGEST_VOLUME} pixels at most. "
            "Save fewer frames in a file."
        )
    syntax = dataset.file_meta.TransferSyntaxUID
    decoder = _decoder(syntax, path)
    if not {"PixelData", "FloatPixelData", "DoubleFloatPixelData"} & set(dataset.dir()):
        raise ThoradError(f"{path}: no {tag_name('PixelData')}: a header without its picture. Export it again.")
    if syntax.is_encapsulated and syntax != _RUN_LENGTHS:
        for encoded in generate_frames(dataset.PixelData, number_of_frames=frames):
            _check_code_stream(encoded, (rows, columns), samples, path)
    try:
        for frame, _ in decoder.iter_array(dataset):
            yield frame
    except (RuntimeError, NotImplementedError) as error:  # of the decoders, where those of pydicom are others
        raise ThoradError(
            f"{path}: its picture, compressed as {syntax.name}, can't be decoded here: it is damaged, or of a rare "
            "kind. Copy it again, or decompress it first, for example with `gdcmconv --raw IN OUT`."
        ) from error


def _check_pixels(dataset: Any, samples: int, path: Path) -> None:
    bits = int(number_of(dataset, "BitsAllocated", 0))
    if samples not in (1, 3) or bits not in (8, 16, 32, 64):
        raise ThoradError(
            f"{path}: pixels of {samples} samples of {bits} bits; expected 1 or 3 of 8, 16 or 32. Save it in grey."
        )
    if text_of(dataset, "PhotometricInterpretation") == "PALETTE COLOR":
        raise ThoradError(f"{path}: a picture in colours of a palette; expected grey. Save it in grey.")


def _decoder(syntax: Any, path: Path) -> Any:
    from pydicom.pixels.decoders.base import get_decoder

    try:
        decoder = get_decoder(syntax)
        available = bool(decoder.is_available)
    except NotImplementedError:
        available = False
    if not available:
        raise ThoradError(
            f"{path}: compressed as {syntax.name} ({syntax}), which can't be decoded here. Decompress it first, for "
            "example with `gdcmconv --raw IN OUT` or `dcmdjpeg IN OUT`."
        )
    return decoder


def _check_code_stream(encoded: bytes, shape: tuple[int, int], samples: int, path: Path) -> None:
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
    if found != (*shape, samples):
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
    values = _windowed(modality_values(stored, dataset, 0).astype(np.float64), dataset)
    if dataset.get("PhotometricInterpretation") == "MONOCHROME1":
        values = _measured(values, padding).max() - values
    lowest = float(_measured(values, padding).min())
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
    """Values through the first VOI LUT or window, to 0...65535; as they are where there is none."""
    if text_of(dataset, "Modality") in UNWINDOWED:
        return values
    if dataset.get("VOILUTSequence"):
        looked_up, bits = _looked_up(values, dataset.VOILUTSequence[0], dataset)
        return np.asarray(looked_up * (65535 / (2**bits - 1)))
    from pydicom.pixels.processing import apply_windowing

    centre, width = numbers_of(dataset, "WindowCenter"), numbers_of(dataset, "WindowWidth")
    if centre is None or width is None:
        return values
    function = text_of(dataset, "VOILUTFunction").upper()
    function = function if function in ("SIGMOID", "LINEAR_EXACT") else "LINEAR"
    if width[0] < 1 and (function == "LINEAR" or width[0] <= 0):
        return values  # no width that the standard allows
    # 16 unsigned bits without rescaling: pydicom's output range is then 0...65535, whatever the picture's own is.
    window = import_pydicom().Dataset()
    window.BitsStored, window.PixelRepresentation, window.PhotometricInterpretation = 16, 0, "MONOCHROME2"
    window.WindowCenter, window.WindowWidth = dataset["WindowCenter"].value, dataset["WindowWidth"].value
    window.VOILUTFunction = function
    return np.asarray(apply_windowing(values, window))


def padding_of(stored: NDArray[Any], dataset: Any) -> NDArray[np.bool_]:
    """Where stored values say that nothing was measured."""
    value = numbers_of(dataset, "PixelPaddingValue")
    if value is None:
        return np.zeros(stored.shape, np.bool_)
    limit = number_of(dataset, "PixelPaddingRangeLimit", value[0])
    return np.asarray((stored >= min(value[0], limit)) & (stored <= max(value[0], limit)))


def _measured(values: NDArray[np.float64], padding: NDArray[np.bool_]) -> NDArray[np.float64]:
    """The values that were measured; all, where that is said of none."""
    return values if padding.all() else values[~padding]
