"""The shape of any picture or volume by its header alone, and whether the file is as long as its header says."""

import gzip
import math
import os
from contextlib import nullcontext
from pathlib import Path
from typing import IO, Final

import PIL.Image

from thorad.errors import ThoradError
from thorad.io.decode import check_sides, kind_of, npy_header
from thorad.io.images import SUFFIXES
from thorad.io.reading import COPY_AGAIN, one_error
from thorad.io.volumes import Stored, read_header

_PICTURE_ENDS: Final = {"PNG": b"IEND", "JPEG": b"\xff\xd9"}
"""What stands in the last 4096 bytes of a picture that is whole; some programs write more behind it."""

_EXIF_ORIENTATION: Final = 0x0112


def shape_of(path: Path, file: IO[bytes] | None = None) -> tuple[int, ...]:
    """(height, width) of a picture, (I, J, K) of a volume; nothing of it is decoded.

    Args:
        path: a PNG, JPEG, TIFF, NPY, NIfTI, NRRD or MetaImage file, recognised by its content.
        file: its content, seekable, where it lies in an archive.

    Raises:
        ThoradError: missing, unreadable, empty, damaged, neither picture nor volume, sides of a picture out of bounds,
            a volume that `read_volume` refuses for its header, cut short as far as that can be seen without decoding.
    """
    with one_error(path, "file"), path.open("rb") if file is None else nullcontext(file) as opened:
        start = opened.read(16)
        opened.seek(0)
        if not start:
            raise ThoradError(f"{path}: the file is empty. {COPY_AGAIN}")
        kind = kind_of(start)
        if kind is None:
            if path.name.lower().endswith(SUFFIXES):
                raise ThoradError(f"{path}: not an image. Expected PNG, JPEG, TIFF or NPY; convert it to one of these.")
            stored = read_header(path, opened)
            _check_voxels(path, opened, stored)
            return stored.shape
        shape = _picture_shape(path, opened, kind)
        check_sides(*shape, str(path))
        return shape


def _picture_shape(path: Path, file: IO[bytes], kind: str) -> tuple[int, int]:
    if kind == "NPY":
        shape, dtype = npy_header(file, str(path))
        _check_length(path, _size(file), file.tell() + math.prod(shape) * dtype.itemsize)
        return shape[0], shape[1]
    if kind == "TIFF":
        import tifffile

        with tifffile.TiffFile(file) as tiff:
            height, width = tiff.pages.first.shape[:2]
        return height, width
    with PIL.Image.open(file, formats=("PNG", "JPEG")) as picture:
        width, height = picture.size
        lying = picture.getexif().get(_EXIF_ORIENTATION, 1) >= 5  # height and width are exchanged
        file.seek(max(0, _size(file) - 4096))
        if _PICTURE_ENDS[kind] not in file.read():
            raise EOFError
    return (width, height) if lying else (height, width)


def _check_voxels(path: Path, file: IO[bytes], stored: Stored) -> None:
    """Of packed voxels only those of NIfTI, whose last bytes are the size, unless the file is packed in blocks."""
    if not stored.packing:
        size = _size(file) if stored.data == path else stored.data.stat().st_size
        _check_length(stored.data, size, stored.offset + stored.n_bytes)
    elif stored.header is not None:
        expected = stored.packed_offset + stored.n_bytes
        file.seek(-4, os.SEEK_END)
        if int.from_bytes(file.read(4), "little") != expected % 2**32:
            file.seek(0)
            stream = gzip.GzipFile(fileobj=file)
            _check_length(path, sum(len(chunk) for chunk in iter(lambda: stream.read(2**20), b"")), expected)


def _size(file: IO[bytes]) -> int:
    """Bytes of the file, which is left where it was."""
    at = file.tell()
    size = file.seek(0, os.SEEK_END)
    file.seek(at)
    return size


def _check_length(path: Path, size: int, expected: int) -> None:
    if size < expected:
        raise ThoradError(f"{path}: cut short: {size} bytes, its header asks for {expected}. {COPY_AGAIN}")
