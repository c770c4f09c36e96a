"""Volumes in, volumes out: NIfTI, NRRD and MetaImage (MHA) in, NIfTI out.

Voxels stay in the order of the file, on its own grid; `template` brings them to the model's slices and back. Headers
are checked before any voxel is read. Those of NRRD and MetaImage are read here and not by SimpleITK, whose MetaImage
reader hands damaged voxels on as if they were whole, and writes beyond its own memory where a header lies.
"""

import gzip
import importlib
import io
import logging
import math
import os
import re
import zlib
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import IO, Any, Final

import numpy as np
from numpy.typing import NDArray

from thorad.errors import ThoradError
from thorad.io.atomic import write_atomic
from thorad.io.images import case_names, check_values
from thorad.io.reading import COPY_AGAIN, check_file, one_error
from thorad.io.tags import ScanTags

VOLUME_SUFFIXES: Final = (".nii", ".nii.gz", ".nrrd", ".nhdr", ".mha", ".mhd")
"""What a folder is searched for. A file given by itself is recognised by its content, whatever its suffix."""

DETACHED_SUFFIXES: Final = (".nhdr", ".mhd")
"""Headers whose voxels are in a file beside them."""

SMALLEST_SIDE, LARGEST_SIDE = 8, 1024
"""voxels along each axis."""

LARGEST_VOLUME: Final = 2**28
"""voxels, 1 GiB as float32: 1024 slices of 512 x 512. Checked before anything is decompressed."""

SMALLEST_SPACING, LARGEST_SPACING = 0.05, 25.0
"""mm; what lies outside is in another unit, or damaged."""

FARTHEST: Final = 10_000.0
"""mm from the origin of space to the first voxel."""

FLATTEST: Final = 0.2
"""Volume of a voxel over the product of its edges: 1 for right angles, 0 where the axes lie in one plane."""

HEADER_BYTES: Final = 2**16
"""How much of a file is searched for its header."""

LARGEST_EXTENSIONS: Final = 2**26
"""bytes between a NIfTI file's header and its voxels."""

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

CONVERT_AGAIN: Final = "Convert it again from DICOM, or correct its header."

_AXES_TO_RAS: Final = {
    **dict.fromkeys(("left-posterior-superior", "lps"), (-1.0, -1.0, 1.0)),
    **dict.fromkeys(("left-anterior-superior", "las"), (-1.0, 1.0, 1.0)),
    **dict.fromkeys(("right-anterior-superior", "ras"), (1.0, 1.0, 1.0)),
}
"""Values of an NRRD file's `space` that tell left from right."""

_NRRD_TYPES: Final = {
    **dict.fromkeys(("signed char", "int8", "int8_t"), "i1"),
    **dict.fromkeys(("uchar", "unsigned char", "uint8", "uint8_t"), "u1"),
    **dict.fromkeys(("short", "short int", "signed short", "signed short int", "int16", "int16_t"), "i2"),
    **dict.fromkeys(("ushort", "unsigned short", "unsigned short int", "uint16", "uint16_t"), "u2"),
    **dict.fromkeys(("int", "signed int", "int32", "int32_t"), "i4"),
    **dict.fromkeys(("uint", "unsigned int", "uint32", "uint32_t"), "u4"),
    **dict.fromkeys(("longlong", "long long", "long long int", "signed long long", "int64", "int64_t"), "i8"),
    **dict.fromkeys(("ulonglong", "unsigned long long", "unsigned long long int", "uint64", "uint64_t"), "u8"),
    **{"float": "f4", "double": "f8"},
}

_META_TYPES: Final = {
    **{"met_char": "i1", "met_short": "i2", "met_int": "i4", "met_long": "i4", "met_long_long": "i8"},
    **{"met_uchar": "u1", "met_ushort": "u2", "met_uint": "u4", "met_ulong": "u4", "met_ulong_long": "u8"},
    **{"met_float": "f4", "met_double": "f8"},
}


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
    tags: ScanTags | None = None
    """Of DICOM."""

    @property
    def spacing(self) -> tuple[float, float, float]:
        """Distance of neighbouring voxels along each axis, mm."""
        i, j, k = np.linalg.norm(self.affine[:3, :3], axis=0)
        return float(i), float(j), float(k)

    @property
    def voxel_mm3(self) -> float:
        """Volume of a voxel, mm³; of a sheared grid less than the product of its spacing."""
        return float(abs(np.linalg.det(self.affine[:3, :3])))


@dataclass(frozen=True, eq=False)
class Stored:
    """How a file stores a volume, within bounds. A voxel is `slope * stored + intercept`."""

    shape: tuple[int, int, int]
    """(I, J, K); the first index changes fastest."""
    dtype: np.dtype[Any]
    affine: NDArray[np.float64]
    """(4, 4): voxel index to RAS mm."""
    data: Path
    """The file of the voxels: beside the header's where it is not the same."""
    offset: int
    """Bytes in `data` before the voxels, or before what is packed."""
    packing: str = ""
    """`gzip` or `zlib`."""
    packed_offset: int = 0
    """Unpacked bytes before the voxels, for NIfTI packs its header too."""
    slope: float = 1.0
    intercept: float = 0.0
    header: Any = None
    """Of NIfTI."""

    @property
    def n_bytes(self) -> int:
        """Of all voxels, unpacked."""
        return math.prod(self.shape) * self.dtype.itemsize


def read_volume(path: Path, name: str | None = None, *, constant: bool = False) -> Volume:
    """Read one volume.

    NaN counts as 0: it is how preprocessed volumes mark what lies outside the brain. Infinity is refused. So is a
    volume that doesn't say how it lies in the scanner, since nothing else tells left from right.

    Args:
        path: a NIfTI-1 or NIfTI-2 file (packed or not), NRRD or MetaImage, recognised by its content.
        name: its case id; the file's name without its suffixes, made safe, where not given.
        constant: whether all voxels may be alike, as of a mask in which nothing is marked.

    Raises:
        ThoradError: missing, unreadable, damaged, not a volume, too small or large, several volumes, colours, complex
            numbers, infinity, constant, no orientation, an impossible affine; nibabel is not installed.
    """
    with one_error(path, "volume"):
        check_file(path, largest=math.inf)
        with path.open("rb") as file:
            stored = read_header(path, file)
        voxels = _read_voxels(stored, constant=constant)
    return Volume(voxels, stored.affine, str(path), name or case_names([path], [path.parent])[0], stored.header)


def read_header(path: Path, file: IO[bytes]) -> Stored:
    """What a NIfTI, NRRD or MetaImage file, open at its start, says of its voxels; call it within `one_error`.

    Raises:
        ThoradError: not one grey volume within bounds, no orientation, voxels in several files or elsewhere; nibabel is
            not installed. Whatever else is raised means a damaged header.
    """
    start = file.read(HEADER_BYTES)
    if start.startswith(b"NRRD000"):
        return _nrrd_header(start, path)
    if re.match(rb"[A-Za-z]+ *= ", start) and re.search(rb"^NDims *=", start, re.MULTILINE):
        return _metaimage_header(start, path)
    packed = start.startswith(b"\x1f\x8b")
    if packed:
        file.seek(0)
        start = gzip.GzipFile(fileobj=file).read(540)
    return _nifti_header(start, path, packed)


def files_of_volume(path: Path) -> tuple[Path, ...]:
    """A header's file, and that of its voxels where there is another one; the first alone where it can't be read."""
    try:
        with one_error(path, "volume"), path.open("rb") as file:
            return tuple(dict.fromkeys((path, read_header(path, file).data)))
    except ThoradError:
        return (path,)  # reading it will say why


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


def import_nibabel() -> Any:
    """The module nibabel; a ThoradError where it is not installed."""
    try:
        nibabel = importlib.import_module("nibabel")
    except ImportError as error:
        raise ThoradError(
            "NIfTI volumes need nibabel, which is not installed. pip install 'thorad[volumes]'"
        ) from error
    # It logs what it finds odd in a header; the user gets one ThoradError instead.
    nibabel.imageglobals.logger.setLevel(logging.CRITICAL)
    return nibabel


def _nifti_fields(start: bytes, path: Path) -> Any:
    """`nibabel.Nifti1Header` or `Nifti2Header` of a file's first bytes, without extensions."""
    little = start[:4] in (b"\x5c\x01\0\0", b"\x1c\x02\0\0")
    size = int.from_bytes(start[:4], "little" if little else "big")
    is_first = size == 348 and start[344:348] == b"n+1\0"
    if not is_first and not (size == 540 and start[4:12] == b"n+2\0\r\n\x1a\n"):
        found = "not a volume"
        if size in (348, 540):
            found = "the header of a pair of files (.hdr and .img), or of Analyze 7.5"
        raise ThoradError(
            f"{path}: {found}. Expected NIfTI in one file, NRRD or MetaImage; convert it to one of these. "
            "A DICOM series is given as its folder."
        )
    nibabel = import_nibabel()
    kind = nibabel.Nifti1Header if is_first else nibabel.Nifti2Header
    header = kind(start[:size], endianness="<" if little else ">", check=False)
    if int(header["sform_code"]) <= 0:
        if int(header["qform_code"]) <= 0:
            raise _without_orientation("qform and sform code are 0", path)
        if not (header["pixdim"][1:4] > 0).all():  # nibabel would take 1 mm for it
            raise ThoradError(f"{path}: voxels of {times(header['pixdim'][1:4])} mm. {CONVERT_AGAIN}")
    header.check_fix()
    return header


def _nifti_header(start: bytes, path: Path, packed: bool) -> Stored:
    header = _nifti_fields(start, path)
    rank, *sides = (int(side) for side in header["dim"])
    offset = float(header["vox_offset"])
    if not 1 <= rank <= 7 or not header.sizeof_hdr <= offset <= LARGEST_EXTENSIONS:
        raise ThoradError(f"{path}: a damaged header: {rank} dimensions, voxels from byte {offset:g} on. {COPY_AGAIN}")
    shape = _checked_shape(sides[:rank], path)
    dtype: np.dtype[Any] = header.get_data_dtype()
    if dtype.kind not in "iuf" or dtype.itemsize > 8:
        raise ThoradError(
            f"{path}: voxels of {header.get_value_label('datatype')}; expected integers or floats of 64 bits at most. "
            "Save one grey volume, of complex numbers the magnitude."
        )
    affine = _checked_affine(np.asarray(header.get_best_affine(), dtype=np.float64), path)
    _check_sides(header, path)
    slope, intercept = header.get_slope_inter()
    return Stored(
        shape=shape,
        dtype=dtype,
        affine=affine,
        data=path,
        offset=0 if packed else int(offset),
        packing="gzip" if packed else "",
        packed_offset=int(offset),
        slope=1.0 if slope is None else slope,
        intercept=0.0 if intercept is None else intercept,
        header=header,
    )


def _check_sides(header: Any, path: Path) -> None:
    """Refuse a header whose two transforms, where both are valid, contradict each other about left and right."""
    if int(header["sform_code"]) <= 0 or int(header["qform_code"]) <= 0:
        return
    try:
        qform = header.get_qform()[:3, :3]
    except (ValueError, ArithmeticError):  # nibabel's errors of a header are ValueErrors: the sform is what counts
        return
    sform = header.get_sform()[:3, :3]
    across = int(np.abs(sform[0]).argmax())  # the voxels' axis that runs from side to side
    mirrored = np.linalg.det(sform) * np.linalg.det(qform) < 0
    if mirrored or sform[0, across] * qform[0, across] < 0:
        raise ThoradError(
            f"{path}: its sform and its qform disagree about which side is left. Find out which is right, as from the "
            "DICOM files, and set the code of the other to 0, or write both alike."
        )


def _nrrd_header(start: bytes, path: Path) -> Stored:
    end = re.search(rb"\r?\n\r?\n", start)
    fields = _fields(start[: end.start()] if end else start, ":")
    detached = fields.get("data file") or fields.get("datafile")
    if end is None and detached is None:
        raise ThoradError(f"{path}: incomplete: its header has no end. {COPY_AGAIN}")
    shape = _checked_shape([int(side) for side in _required(fields, "sizes", path).split()], path)
    directions = fields.get("space directions", "")
    axes = _AXES_TO_RAS.get(fields.get("space", "").lower())
    if axes is None or not directions:
        raise _without_orientation("no `space` of the body, or no `space directions`", path)
    vectors = re.findall(r"\(([^)]*)\)", directions)
    if len(vectors) != 3:
        raise ThoradError(f"{path}: {len(vectors)} axes in space, expected 3. Save one grey volume.")
    affine = np.eye(4)
    affine[:3, :3] = np.transpose([_numbers(vector) for vector in vectors])
    affine[:3, 3] = _numbers(fields.get("space origin", "0 0 0"))
    encoding = _required(fields, "encoding", path).lower()
    if encoding not in ("raw", "gzip", "gz") or any(
        fields.get(key, "0") != "0" for key in ("byte skip", "byteskip", "line skip", "lineskip")
    ):
        raise ThoradError(
            f"{path}: NRRD with encoding {encoding}, or bytes to skip; expected raw or gzip and none. Save it so."
        )
    return Stored(
        shape=shape,
        dtype=_dtype(_NRRD_TYPES, _required(fields, "type", path), fields.get("endian", "").lower(), path),
        affine=_checked_affine(np.diag([*axes, 1.0]) @ affine, path),
        offset=end.end() if end and detached is None else 0,
        data=path if detached is None else _beside(path, detached),
        packing="" if encoding == "raw" else "gzip",
    )


def _metaimage_header(start: bytes, path: Path) -> Stored:
    end = re.search(rb"^ElementDataFile *=.*?(\r?\n|$)", start, re.MULTILINE)
    if end is None:
        raise ThoradError(f"{path}: incomplete: its header has no end. {COPY_AGAIN}")
    fields = _fields(start[: end.end()], "=")
    shape = _checked_shape([int(side) for side in _required(fields, "dimsize", path).split()], path)
    channels = fields.get("elementnumberofchannels", "1")
    if channels != "1":
        raise ThoradError(f"{path}: {channels} numbers in each voxel; expected one. Save one grey volume.")
    matrix = fields.get("transformmatrix") or fields.get("rotation") or fields.get("orientation")
    if matrix is None:
        raise _without_orientation("no `TransformMatrix`", path)
    spacing = _numbers(fields.get("elementspacing") or _required(fields, "elementsize", path))
    affine = np.eye(4)
    affine[:3, :3] = np.reshape(_numbers(matrix), (3, 3)).T * spacing
    affine[:3, 3] = _numbers(fields.get("offset") or fields.get("position") or fields.get("origin") or "0 0 0")
    if fields.get("binarydata", "true").lower() != "true" or fields.get("headersize", "0") != "0":
        raise ThoradError(f"{path}: MetaImage as text, or with a HeaderSize; expected binary voxels. Save it so.")
    big = fields.get("binarydatabyteordermsb") or fields.get("elementbyteordermsb") or "false"
    data = fields["elementdatafile"]
    return Stored(
        shape=shape,
        dtype=_dtype(
            _META_TYPES, _required(fields, "elementtype", path), "big" if big.lower() == "true" else "little", path
        ),
        affine=_checked_affine(np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine, path),
        offset=end.end() if data.upper() == "LOCAL" else 0,
        data=path if data.upper() == "LOCAL" else _beside(path, data),
        packing="zlib" if fields.get("compresseddata", "false").lower() == "true" else "",
    )


def times(values: Any) -> str:
    """`10 x 12 x 14`."""
    return " x ".join(f"{value:g}" for value in values)


def _fields(text: bytes, separator: str) -> dict[str, str]:
    """Of lines `Key = value`; keys in small letters."""
    lines = text.decode("latin-1").splitlines()
    parts = (line.partition(separator) for line in lines if separator in line and not line.startswith("#"))
    return {key.strip().lower(): value.strip() for key, _, value in parts}


def _required(fields: dict[str, str], key: str, path: Path) -> str:
    if key not in fields:
        raise ThoradError(f"{path}: its header has no `{key}`. {COPY_AGAIN}")
    return fields[key]


def _numbers(text: str) -> list[float]:
    return [float(number) for number in re.split(r"[\s,]+", text.strip("() "))]


def _dtype(types: dict[str, str], name: str, endian: str, path: Path) -> np.dtype[Any]:
    if name.lower() not in types:
        raise ThoradError(f"{path}: voxels of type {name}; expected integers or floats. Save one grey volume.")
    dtype = np.dtype(types[name.lower()])
    if dtype.itemsize > 1 and endian not in ("little", "big"):
        raise ThoradError(f"{path}: its header doesn't say whether `endian` is little or big. Save it again.")
    return dtype.newbyteorder("<" if endian != "big" else ">")


def _beside(path: Path, name: str) -> Path:
    """The file of the voxels. A header could name any file of this machine: only one in the same folder is opened."""
    name = name.removeprefix("./")
    if PurePath(name).name != name or not (path.parent / name).is_file():
        raise ThoradError(
            f"{path}: its voxels are in {name!r}; expected one file in the same folder. Copy it there, or save header "
            "and voxels in one file (.nrrd or .mha)."
        )
    return path.parent / name


def _without_orientation(why: str, path: Path) -> ThoradError:
    return ThoradError(
        f"{path}: its header doesn't say how it lies in the scanner ({why}), so that left and right could be "
        "exchanged. Convert it again from DICOM, or set its orientation if you know it."
    )


def _checked_shape(sides: list[int], path: Path) -> tuple[int, int, int]:
    """(I, J, K) without further axes of length 1."""
    if any(side != 1 for side in sides[3:]):
        raise ThoradError(f"{path}: several volumes in one file ({times(sides)}); expected one. Save each by itself.")
    if len(sides) < 3 or min(sides[:3]) == 1:
        raise ThoradError(f"{path}: one slice ({times(sides)}). Give the whole volume, or save the slice as PNG.")
    i, j, k = sides[:3]
    if min(i, j, k) < SMALLEST_SIDE or max(i, j, k) > LARGEST_SIDE or i * j * k > LARGEST_VOLUME:
        raise ThoradError(
            f"{path}: {times((i, j, k))} voxels; expected {SMALLEST_SIDE} to {LARGEST_SIDE} along each axis and "
            f"{LARGEST_VOLUME} in all at most. Crop or resample it."
        )
    return i, j, k


def _checked_affine(affine: NDArray[np.float64], path: Path) -> NDArray[np.float64]:
    axes, origin = affine[:3, :3], affine[:3, 3]
    spacing = np.linalg.norm(axes, axis=0)
    in_range = spacing.min() >= SMALLEST_SPACING and spacing.max() <= LARGEST_SPACING and abs(origin).max() <= FARTHEST
    if not in_range or not abs(np.linalg.det(axes / spacing)) >= FLATTEST:
        raise ThoradError(
            f"{path}: an impossible affine: voxels of {times(spacing)} mm, the first at {times(origin)} mm; expected "
            f"{SMALLEST_SPACING:g} to {LARGEST_SPACING:g} mm, at most {FARTHEST:g} mm away, and axes that aren't in "
            f"one plane. Is its unit mm? {CONVERT_AGAIN}"
        )
    return affine


def _read_voxels(stored: Stored, *, constant: bool) -> NDArray[np.float32]:
    """(I, J, K), finite and, unless `constant`, not all alike; never more is unpacked than the header says."""
    path = stored.data
    with path.open("rb") as file:
        left = file.seek(0, os.SEEK_END) - stored.offset
        if stored.n_bytes > left * (_LARGEST_DEFLATION if stored.packing else 1):
            raise ThoradError(f"{path}: incomplete: {left} bytes of voxels, {stored.n_bytes} expected. {COPY_AGAIN}")
        file.seek(stored.offset)
        unpacked = _unpacked(file, stored)
        width, height, depth = stored.shape
        planes = np.empty((depth, height, width), dtype=np.float32)
        for plane in planes:
            values = np.frombuffer(unpacked.read(plane.size * stored.dtype.itemsize), stored.dtype)
            if (stored.slope, stored.intercept) != (1, 0):
                values = values * np.float64(stored.slope) + np.float64(stored.intercept)
            plane[:] = values.reshape(plane.shape)
            plane[np.isnan(plane)] = 0
        # The checksum stands at the end, and is compared when that is reached.
        if stored.packing and len(unpacked.read(_MOST_PADDING)) == _MOST_PADDING:
            raise ThoradError(f"{path}: holds far more voxels than its header says. {CONVERT_AGAIN}")
    return check_values(planes, str(path), constant=constant).transpose(2, 1, 0)


def _unpacked(file: IO[bytes], stored: Stored) -> IO[bytes] | gzip.GzipFile:
    if stored.packing == "gzip":
        stream = gzip.GzipFile(fileobj=file)
        stream.seek(stored.packed_offset)
        return stream
    if stored.packing == "zlib":
        inflating = zlib.decompressobj()
        content = inflating.decompress(file.read(), stored.n_bytes + _MOST_PADDING)
        if not inflating.eof and not inflating.unconsumed_tail:
            raise EOFError
        return io.BytesIO(content)
    return file


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
