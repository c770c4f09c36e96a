"""Headers of NIfTI, NRRD and MetaImage files: what a file says of its voxels, checked before any voxel is read.

NRRD and MetaImage headers are read here and not by SimpleITK, whose MetaImage reader hands damaged voxels on as if
they were whole, and writes beyond its own memory where a header lies.
"""

import importlib
import logging
import math
import re
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from thorad.errors import ThoradError
from thorad.io.reading import COPY_AGAIN

SMALLEST_SIDE: Final = 8
LARGEST_SIDE: Final = 1024
"""voxels along each axis."""

LARGEST_VOLUME: Final = 2**28
"""voxels, 1 GiB as float32: 1024 slices of 512 x 512. Checked before anything is decompressed."""

SMALLEST_SPACING: Final = 0.05
LARGEST_SPACING: Final = 25.0
"""mm; what lies outside is in another unit, or damaged."""

FARTHEST: Final = 10_000.0
"""mm from the origin of space to the first voxel."""

FLATTEST: Final = 0.2
"""Volume of a voxel over the product of its edges: 1 for right angles, 0 where the axes lie in one plane."""

HEADER_BYTES: Final = 2**16
"""How much of a file is searched for its header."""

LARGEST_EXTENSIONS: Final = 2**26
"""bytes between a NIfTI file's header and its voxels."""

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
class Stored:
    """How a file stores a volume."""

    shape: tuple[int, int, int]
    """(I, J, K); the first index changes fastest."""
    dtype: np.dtype[Any]
    """Of one voxel, with its byte order."""
    affine: NDArray[np.float64]
    """(4, 4): voxel index to RAS mm; regular, spacing and place within what a scanner does."""
    offset: int
    """Bytes before the first voxel; in `data`, and before it is unpacked."""
    data: Path
    """The file of the voxels: beside the header's where it is not the same."""
    packing: str = ""
    """`gzip` or `zlib`, of the voxels alone."""
    slope: float = 1.0
    intercept: float = 0.0
    """A voxel is `slope * stored + intercept`."""
    header: Any = None
    """Of NIfTI."""

    @property
    def n_bytes(self) -> int:
        """Of all voxels, unpacked."""
        return math.prod(self.shape) * self.dtype.itemsize


def import_nibabel() -> Any:
    """The module nibabel.

    Raises:
        ThoradError: it is not installed.
    """
    try:
        nibabel = importlib.import_module("nibabel")
    except ImportError as error:
        raise ThoradError(
            "NIfTI volumes need nibabel, which is not installed. pip install 'thorad[volumes]'"
        ) from error
    # It logs what it finds odd in a header; the user gets one ThoradError instead.
    nibabel.imageglobals.logger.setLevel(logging.CRITICAL)
    return nibabel


def nifti_fields(start: bytes, path: Path) -> Any:
    """`nibabel.Nifti1Header` or `Nifti2Header` of the unpacked file's first 540 bytes, without extensions.

    Raises:
        ThoradError: not NIfTI in one file, no voxel size, nibabel is not installed; nibabel raises others.
    """
    little = start[:4] in (b"\x5c\x01\0\0", b"\x1c\x02\0\0")
    size = int.from_bytes(start[:4], "little" if little else "big")
    is_first = size == 348 and start[344:348] == b"n+1\0"
    if not is_first and not (size == 540 and start[4:12] == b"n+2\0\r\n\x1a\n"):
        if size in (348, 540):
            raise ThoradError(
                f"{path}: the header of a pair of files (.hdr and .img), or of Analyze 7.5. Save it as one NIfTI file, "
                ".nii or .nii.gz."
            )
        raise ThoradError(
            f"{path}: not a volume. Expected NIfTI, NRRD or MetaImage; convert it to one of these. "
            "A DICOM series is given as its folder."
        )
    nibabel = import_nibabel()
    kind = nibabel.Nifti1Header if is_first else nibabel.Nifti2Header
    header = kind(start[:size], endianness="<" if little else ">", check=False)
    if int(header["sform_code"]) <= 0 and not (header["pixdim"][1:4] > 0).all():
        # nibabel would take 1 mm for it.
        raise ThoradError(f"{path}: voxels of {times(header['pixdim'][1:4])} mm. {CONVERT_AGAIN}")
    header.check_fix()
    return header


def nifti_header(start: bytes, path: Path) -> Stored:
    """Of the unpacked file's first 540 bytes.

    Raises:
        ThoradError: as `nifti_fields`; damaged, not one grey volume within bounds, no orientation.
    """
    header = nifti_fields(start, path)
    rank, *sides = (int(side) for side in header["dim"])
    if not 1 <= rank <= 7:
        raise ThoradError(f"{path}: a damaged header: {rank} dimensions. {COPY_AGAIN}")
    shape = _checked_shape(sides[:rank], path)
    dtype: np.dtype[Any] = header.get_data_dtype()
    if dtype.kind not in "iuf" or dtype.itemsize > 8:
        raise ThoradError(
            f"{path}: voxels of {header.get_value_label('datatype')}; expected integers or floats of 64 bits at most. "
            "Save one grey volume, of complex numbers the magnitude."
        )
    if int(header["sform_code"]) <= 0 and int(header["qform_code"]) <= 0:
        raise _without_orientation("qform and sform code are 0", path)
    offset = float(header["vox_offset"])
    if not header.sizeof_hdr <= offset <= LARGEST_EXTENSIONS:
        raise ThoradError(f"{path}: a damaged header: voxels from byte {offset:g} on. Copy it again.")
    slope, intercept = header.get_slope_inter()
    return Stored(
        shape=shape,
        dtype=dtype,
        affine=_checked_affine(np.asarray(header.get_best_affine(), dtype=np.float64), path),
        offset=int(offset),
        data=path,
        slope=1.0 if slope is None else slope,
        intercept=0.0 if intercept is None else intercept,
        header=header,
    )


def text_header(start: bytes, path: Path) -> Stored | None:
    """Of the first `HEADER_BYTES` bytes of an NRRD or MetaImage file; None where it is neither.

    Raises:
        ThoradError: damaged, not one grey volume within bounds, no orientation, voxels in several files or elsewhere.
    """
    if start.startswith(b"NRRD000"):
        return _nrrd_header(start, path)
    if re.match(rb"[A-Za-z]+ *= ", start) and re.search(rb"^NDims *=", start, re.MULTILINE):
        return _metaimage_header(start, path)
    return None


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
    if not np.isfinite(affine).all():
        raise ThoradError(f"{path}: its affine holds NaN or infinity. {CONVERT_AGAIN}")
    axes, origin = affine[:3, :3], affine[:3, 3]
    spacing = np.linalg.norm(axes, axis=0)
    if spacing.min() < SMALLEST_SPACING or spacing.max() > LARGEST_SPACING:
        raise ThoradError(
            f"{path}: voxels of {times(spacing)} mm; expected {SMALLEST_SPACING:g} to {LARGEST_SPACING:g} mm. "
            "Is its unit mm? Correct its header."
        )
    if abs(np.linalg.det(axes / spacing)) < FLATTEST:
        raise ThoradError(f"{path}: its affine is singular: its axes lie in one plane. {CONVERT_AGAIN}")
    if np.abs(origin).max() > FARTHEST:
        raise ThoradError(
            f"{path}: its first voxel lies at {times(origin)} mm, which no scanner reaches. {CONVERT_AGAIN}"
        )
    return affine
