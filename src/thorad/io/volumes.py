"""Volumes in, volumes out: NIfTI, NRRD and MetaImage (MHA) in, NIfTI out.

Voxels stay in the order of the file, on its own grid; `template` brings them to the model's slices and back. Whatever
can't be read is a ThoradError that names the file.
"""

import gzip
import io
import zlib
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Final, Protocol

import numpy as np
from numpy.typing import NDArray

from thorad.errors import ThoradError
from thorad.io.atomic import write_atomic
from thorad.io.images import case_names
from thorad.io.reading import COPY_AGAIN, one_error
from thorad.io.volume_header import HEADER_BYTES, Stored, import_nibabel, nifti_header, text_header

VOLUME_SUFFIXES: Final = (".nii", ".nii.gz", ".nrrd", ".nhdr", ".mha", ".mhd")
"""What a folder is searched for. A file given by itself is recognised by its content, whatever its suffix."""

PACKING: Final = 4
"""zlib's level for maps: the higher ones take several times as long for some per cent less."""

_LARGEST_DEFLATION: Final = 1032
"""What one byte of a packed file can become."""

_MOST_PADDING: Final = 2**20
"""bytes that may follow the voxels of a packed file."""

_GEOMETRY: Final = (
    *("qform_code", "sform_code", "xyzt_units", "srow_x", "srow_y", "srow_z"),
    *("quatern_b", "quatern_c", "quatern_d", "qoffset_x", "qoffset_y", "qoffset_z"),
)
"""Fields of a NIfTI header that say where the voxels lie, beside the first four of `pixdim`."""

_NO_EXTENSIONS: Final = bytes(4)
"""What follows a NIfTI header without extensions."""


@dataclass(frozen=True, eq=False)
class Volume:
    """One grey volume on its own grid."""

    voxels: NDArray[np.float32]
    """(I, J, K), in the order of the file, finite, any range, not constant."""

    affine: NDArray[np.float64]
    """(4, 4): voxel index to mm, where x is to the right, y anterior, z superior (RAS+)."""

    source: str
    """The file it came from, as the user named it."""

    name: str
    """Case id: unique in a run, safe as a file name."""

    header: Any = None
    """The NIfTI header it came with, which may name the patient; None for other kinds."""

    @property
    def spacing(self) -> tuple[float, float, float]:
        """Distance of neighbouring voxels along each axis, mm."""
        i, j, k = np.linalg.norm(self.affine[:3, :3], axis=0)
        return float(i), float(j), float(k)


def read_volume(path: Path, name: str | None = None) -> Volume:
    """Read one volume.

    NaN counts as 0: it is how preprocessed volumes mark what lies outside the brain. Infinity is refused. So is a
    volume that doesn't say how it lies in the scanner, since nothing else tells left from right.

    Args:
        path: a NIfTI-1 or NIfTI-2 file (packed or not), NRRD or MetaImage, recognised by its content.
        name: its case id; the file's name without its suffixes, made safe, where not given.

    Raises:
        ThoradError: missing, unreadable, damaged, not a volume, too small or large, several volumes, colours, complex
            numbers, infinity, constant, no orientation, an impossible affine; nibabel is not installed.
    """
    with one_error(path, "volume"):
        if not path.exists():
            raise ThoradError(f"{path}: no such file. Check the path.")
        if not path.is_file():
            raise ThoradError(f"{path}: not a file. Name the file of a volume.")
        with path.open("rb") as file:
            start = file.read(HEADER_BYTES)
            file.seek(0)
            if not start:
                raise ThoradError(f"{path}: the file is empty. {COPY_AGAIN}")
            if behind_text := text_header(start, path):
                stored, voxels = behind_text, _read_behind_text(behind_text)
            else:
                packed = start.startswith(b"\x1f\x8b")
                with gzip.GzipFile(fileobj=file) if packed else nullcontext(file) as unpacked:
                    stored = nifti_header(unpacked.read(540), path)
                    unpacked.seek(stored.offset)
                    left = path.stat().st_size - (0 if packed else stored.offset)
                    voxels = _read_voxels(unpacked, stored, left, packed)
    return Volume(voxels, stored.affine, str(path), name or case_names([path], [path.parent])[0], stored.header)


def write_nifti(path: Path, voxels: NDArray[Any], like: Volume, description: str) -> None:
    """Write a NIfTI file on a volume's grid, whole or not at all; the same bytes for the same voxels.

    Affine, codes and units are those of the volume's own header where it is NIfTI. Nothing else of that header is
    kept, since it may name the patient.

    Args:
        path: packed if it ends in `.gz`.
        voxels: (I, J, K) of `like`; bool and uint8 are written as uint8, everything else as float32.
        like: whose grid it is.
        description: for the header's field `descrip`, cut to 79 bytes.

    Raises:
        ThoradError: the disk or the permissions don't allow it, or nibabel is not installed.
    """
    if voxels.shape != like.voxels.shape:
        raise ValueError(f"expected voxels of shape {like.voxels.shape}, found {voxels.shape}")
    dtype = np.dtype("u1" if voxels.dtype in (np.bool_, np.uint8) else "<f4")
    buffer = io.BytesIO()
    # Neither a name nor a time in the head of what is packed: the same voxels are the same bytes.
    destination = (
        gzip.GzipFile(filename="", mode="wb", fileobj=buffer, compresslevel=PACKING, mtime=0)
        if path.name.lower().endswith(".gz")
        else nullcontext(buffer)
    )
    with destination as file:
        file.write(_header_like(like, dtype, description) + _NO_EXTENSIONS)
        for k in range(voxels.shape[2]):
            file.write(voxels[:, :, k].astype(dtype).tobytes(order="F"))
    write_atomic(path, buffer.getvalue())


class _Readable(Protocol):
    def read(self, size: int, /) -> bytes: ...


class _Inflated:
    """A zlib stream in a file, inflated only as far as it is read."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._stream = zlib.decompressobj()

    def read(self, size: int, /) -> bytes:
        """`size` bytes, fewer only where the stream ends, its checksum compared."""
        parts: list[bytes] = []
        while size > 0 and not self._stream.eof:
            packed = self._stream.unconsumed_tail or self._file.read(2**16)
            if not packed:
                raise EOFError("the packed voxels end too early")
            parts.append(self._stream.decompress(packed, size))
            size -= len(parts[-1])
        return b"".join(parts)


def _read_behind_text(stored: Stored) -> NDArray[np.float32]:
    """The voxels of an NRRD or MetaImage file, which alone are packed, behind the header or in a file beside it."""
    with stored.data.open("rb") as file:
        file.seek(stored.offset)
        source: _Readable = file
        if stored.packing == "gzip":
            source = gzip.GzipFile(fileobj=file)
        elif stored.packing == "zlib":
            source = _Inflated(file)
        left = stored.data.stat().st_size - stored.offset
        return _read_voxels(source, stored, left, packed=bool(stored.packing))


def _read_voxels(file: _Readable, stored: Stored, left: int, packed: bool) -> NDArray[np.float32]:
    """(I, J, K), finite and not constant, in bounded memory.

    Args:
        file: open where the voxels begin.
        stored: how they are stored there.
        left: bytes in the file, as they lie on the disk.
        packed: whether they can become more.
    """
    path = stored.data
    if stored.n_bytes > left * (_LARGEST_DEFLATION if packed else 1):
        raise ThoradError(f"{path}: incomplete: {left} bytes of voxels, {stored.n_bytes} expected. {COPY_AGAIN}")
    width, height, depth = stored.shape
    planes = np.empty((depth, height, width), dtype=np.float32)
    for plane in planes:
        content = file.read(width * height * stored.dtype.itemsize)
        values = np.frombuffer(content, stored.dtype).reshape(height, width)
        if (stored.slope, stored.intercept) != (1, 0):
            values = values * np.float64(stored.slope) + np.float64(stored.intercept)
        plane[:] = values
        plane[np.isnan(plane)] = 0
        if np.isinf(plane).any():
            raise ThoradError(
                f"{path}: voxels that are infinite or too large for float32. Replace them, for example by 0."
            )
    # The checksum stands at the end, and is compared when that is reached.
    if packed and len(file.read(_MOST_PADDING)) == _MOST_PADDING:
        raise ThoradError(f"{path}: holds far more voxels than its header says. Convert it again from DICOM.")
    if planes.min() == planes.max():
        raise ThoradError(
            f"{path}: every voxel is {planes[0, 0, 0]:g}. A constant volume shows nothing; check how it was exported."
        )
    return planes.transpose(2, 1, 0)


def _header_like(like: Volume, dtype: np.dtype[Any], description: str) -> bytes:
    """A NIfTI header on a volume's grid; a fresh one but for its geometry."""
    nibabel = import_nibabel()
    kind = nibabel.Nifti2Header if isinstance(like.header, nibabel.Nifti2Header) else nibabel.Nifti1Header
    header = kind(endianness="<")
    header.set_data_dtype(dtype)
    header.set_data_shape(like.voxels.shape)
    if like.header is None:
        header.set_xyzt_units("mm")
        header.set_qform(like.affine, code="scanner", strip_shears=True)
        header.set_sform(like.affine, code="scanner")
    else:
        for field in _GEOMETRY:
            header[field] = like.header[field]
        header["pixdim"][:4] = like.header["pixdim"][:4]
    header["vox_offset"] = header.sizeof_hdr + len(_NO_EXTENSIONS)
    header["scl_slope"], header["scl_inter"] = 1, 0
    header["descrip"] = description.encode()[:79].decode(errors="ignore").encode()
    return bytes(header.binaryblock)
