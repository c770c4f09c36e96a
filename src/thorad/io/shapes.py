"""The shape of any picture or volume by its header alone, and whether the file is as long as its header says."""

import gzip
import math
import os
import struct
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import IO, Any, Final

import PIL.Image

from thorad.errors import ThoradError
from thorad.io.decode import check_sides, kind_of, npy_header
from thorad.io.images import SUFFIXES
from thorad.io.reading import COPY_AGAIN, one_error
from thorad.io.volume_header import HEADER_BYTES, nifti_fields, text_header

_CHUNK: Final = 2**20
"""bytes inflated at once."""

_PICTURE_ENDS: Final = {"PNG": b"IEND", "JPEG": b"\xff\xd9"}
"""What stands in the last bytes of a picture that is whole."""

_END_BYTES: Final = 4096
"""How much of a picture is searched for its end; some programs write more behind it."""

_EXIF_ORIENTATION: Final = 0x0112
_LYING: Final = (5, 6, 7, 8)
"""Orientations in which height and width are exchanged."""


def shape_of(path: Path, file: IO[bytes] | None = None) -> tuple[int, ...]:
    """(height, width) of a picture, (I, J, K) of a volume; nothing of it is decoded.

    Args:
        path: a PNG, JPEG, TIFF, NPY, NIfTI, NRRD or MetaImage file, recognised by its content.
        file: its content, seekable, where it lies in an archive.

    Raises:
        ThoradError: missing, unreadable, empty, damaged, neither picture nor volume, several volumes, sides of a
            picture out of bounds, cut short as far as that can be seen without decoding; nibabel is not installed.
    """
    with one_error(path, "file"), path.open("rb") if file is None else nullcontext(file) as opened:
        return _shape(path, opened)


def _shape(path: Path, file: IO[bytes]) -> tuple[int, ...]:
    start = file.read(HEADER_BYTES)
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    if not start:
        raise ThoradError(f"{path}: the file is empty. {COPY_AGAIN}")
    kind = kind_of(start)
    if kind is not None:
        shape = _PICTURES[kind](path, file, size)
        check_sides(*shape, str(path))
        return shape
    if path.name.lower().endswith(SUFFIXES):
        raise ThoradError(f"{path}: not an image. Expected PNG, JPEG, TIFF or NPY; convert it to one of these.")
    if stored := text_header(start, path):
        if not stored.packing:
            found = size if stored.data == path else stored.data.stat().st_size
            _check_length(stored.data, found, stored.offset + stored.n_bytes)
        return stored.shape
    return _nifti_shape(path, file, size, packed=start.startswith(b"\x1f\x8b"))


def _picture_shape(path: Path, file: IO[bytes], size: int) -> tuple[int, int]:
    with PIL.Image.open(file, formats=("PNG", "JPEG")) as picture:
        width, height = picture.size
        lying = picture.getexif().get(_EXIF_ORIENTATION) in _LYING
        end = _PICTURE_ENDS[picture.format or "PNG"]
        file.seek(max(0, size - _END_BYTES))
        if end not in file.read():
            raise EOFError
    return (width, height) if lying else (height, width)


def _tiff_shape(path: Path, file: IO[bytes], size: int) -> tuple[int, int]:
    import tifffile

    with tifffile.TiffFile(file) as tiff:
        height, width = tiff.pages.first.shape[:2]
    return height, width


def _npy_shape(path: Path, file: IO[bytes], size: int) -> tuple[int, int]:
    shape, dtype = npy_header(file, str(path))
    _check_length(path, size, file.tell() + math.prod(shape) * dtype.itemsize)
    return shape[0], shape[1]


_PICTURES: Final[dict[str, Callable[[Path, IO[bytes], int], tuple[int, int]]]] = {
    "PNG": _picture_shape,
    "JPEG": _picture_shape,
    "TIFF": _tiff_shape,
    "NPY": _npy_shape,
}


def _nifti_shape(path: Path, file: IO[bytes], size: int, *, packed: bool) -> tuple[int, ...]:
    header: Any = nifti_fields((gzip.GzipFile(fileobj=file) if packed else file).read(540), path)
    shape = tuple(int(side) for side in header.get_data_shape())
    while len(shape) > 3 and shape[-1] == 1:
        shape = shape[:-1]
    if len(shape) != 3 or min(shape) < 1:
        raise ThoradError(f"{path}: {' x '.join(map(str, shape))} voxels, expected three dimensions. Save one volume.")
    first = int(header["vox_offset"]) or int(header.single_vox_offset)
    expected = first + math.prod(shape) * int(header.get_data_dtype().itemsize)
    _check_length(path, _unpacked_size(file, expected) if packed else size, expected)
    return shape


def _unpacked_size(file: IO[bytes], expected: int) -> int:
    file.seek(-4, os.SEEK_END)
    (size,) = struct.unpack("<I", file.read(4))
    if size == expected % 2**32:
        return expected
    # The last bytes are the size, unless the file is cut short or packed in blocks.
    file.seek(0)
    stream = gzip.GzipFile(fileobj=file)
    return sum(len(chunk) for chunk in iter(lambda: stream.read(_CHUNK), b""))


def _check_length(path: Path, size: int, expected: int) -> None:
    if size < expected:
        raise ThoradError(f"{path}: cut short: {size} bytes, its header asks for {expected}. {COPY_AGAIN}")
