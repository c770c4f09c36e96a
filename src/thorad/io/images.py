"""Image files in, image files out: PNG, JPEG, TIFF and NPY, 8 and 16 bit, grey or colours that are grey.

Pixels stay as stored; `preprocess` scales them. Whatever can't be read is a ThoradError that names the file.
"""

import hashlib
import io
import os
import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePath
from typing import Any, Final

import numpy as np
import PIL.Image
from numpy.typing import NDArray

from thorad.errors import ThoradError
from thorad.io.atomic import write_atomic
from thorad.io.decode import check_array, decode, to_grey
from thorad.io.intensity import scale
from thorad.io.reading import check_file, one_error
from thorad.io.tables import files_in_column, read_table
from thorad.io.tags import ScanTags

SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".npy")
"""What a folder is searched for. A file given by itself is recognised by its content, whatever its suffix."""


@dataclass(frozen=True, eq=False)
class Image:
    """One grey image, as stored in its file."""

    pixels: NDArray[np.float32]
    """(H, W), finite, any range, not constant."""
    source: str
    """The file it came from, as the user named it."""
    name: str
    """Case id: unique in a run, safe as a file name."""
    spacing: tuple[float, float] | None = None
    """Pixel height and width in mm, where known. None for the formats here: their resolution tags speak of printing."""
    tags: ScanTags | None = None
    """Of DICOM, and of the volume that it is a slice of."""
    brain: NDArray[np.bool_] | None = None
    """(H, W): where an anomaly counts, of a slice of a registered volume: in and closely around the subject's brain, as
    far as the scan reaches. None: not known, everywhere."""

    @property
    def pixel_mm2(self) -> float | None:
        """Area of a pixel, mm², where known."""
        return None if self.spacing is None else self.spacing[0] * self.spacing[1]

    @cached_property
    def scaled(self) -> NDArray[np.float32]:
        """(H, W) in [0, 1], as the model sees it: `thorad.io.intensity.scale`, which says what it refuses."""
        return scale(self.pixels)


def read_image(path: Path, name: str | None = None) -> Image:
    """Read a PNG, JPEG, TIFF or NPY file, recognised by its content, as `decode` does.

    The case id `name` is the file's stem, made safe, where not given.

    Raises:
        ThoradError: missing, unreadable, damaged, not an image, too small or large, many pages, colours, NaN, constant.
    """
    pixels = check_values(decode(_content(path), str(path)), str(path))
    return Image(pixels=pixels, source=str(path), name=name or _safe_name(PurePath(path.name)))


def image_from_array(array: NDArray[Any], name: str = "image") -> Image:
    """Check an array, (H, W) or grey (H, W, 3), of bools, integers or floats, as `read_image` checks a file's content.

    Raises:
        ThoradError: a shape, type or values that can't be an image.
    """
    source = f"the array {name!r}"
    check_array(array.shape, array.dtype, source)
    return Image(pixels=check_values(np.array(to_grey(array, source)), source), source=source, name=name)


def read_mask(path: Path, shape: tuple[int, int] | None = None) -> NDArray[np.bool_]:
    """Read a lesion mask: 0 outside, one other value inside.

    Args:
        path: a PNG, TIFF or NPY file. (JPEG blurs the two values into many.)
        shape: (H, W) of the image it belongs to, checked where given.

    Returns:
        (H, W), True in the lesion; may be all False.

    Raises:
        ThoradError: as `read_image`; more than two values; another size than the image.
    """
    pixels = decode(_content(path), str(path))
    if shape is not None and pixels.shape != shape:
        raise ThoradError(
            f"{path}: the mask is {pixels.shape[1]} x {pixels.shape[0]} px, its image {shape[1]} x {shape[0]} px. "
            "A mask must lie on its image's own grid; resample it with nearest neighbours."
        )
    inside = np.asarray(pixels != 0, dtype=np.bool_)
    values = np.unique(pixels[inside])
    if values.size > 1 or not np.isfinite(values).all():
        raise ThoradError(
            f"{path}: found {values.size} values beside 0, from {values[0]} to {values[-1]}; expected a mask of 0 and "
            "one other value. Threshold it, and save it without loss (PNG, not JPEG)."
        )
    return inside


MOST_LABELS: Final = 15
"""Values of a mask or segmentation. Scans of 4 bits have 16; of 3,600 real pictures at hand none has fewer than 103."""


def looks_like_mask(pixels: NDArray[Any]) -> bool:
    """Whether an image has few values only, as masks and segmentations have and scans have not."""
    some = pixels.flat[:: max(1, pixels.size // 4096)]  # nearly always enough, and quick
    return all(np.unique(values).size <= MOST_LABELS for values in (some, pixels))


def files_of(given: Path, leave_out: Path | None, left_out: Counter[str]) -> tuple[list[Path], Path]:
    """The files that one input stands for, of any kind: all below a folder, those that a CSV names, or itself.

    What a folder holds beside them is counted in `left_out`, as `files_below` does.

    Returns:
        The files, and the folder that their names are relative to: `given` itself where that is a folder.

    Raises:
        ThoradError: missing or unreadable, a CSV that names missing files, or as `files_below`.
    """
    with one_error(given, "path"):
        if not given.exists():
            raise ThoradError(f"{given}: no such file or folder. Check the path.")
    if given.is_dir():
        return files_below(given, leave_out, left_out), given
    if given.suffix.lower() == ".csv":
        return files_in_column(given, read_table(given, ["image"]), "image"), given.parent
    return [given], given.parent


def files_below(folder: Path, leave_out: Path | None = None, left_out: Counter[str] | None = None) -> list[Path]:
    """All files in a folder and below but those in `leave_out`, sorted, without hidden ones and linked folders.

    Args:
        folder: the folder.
        leave_out: a folder that is passed over.
        left_out: {why: how many} files and folders are passed over, which is added to.

    Raises:
        ThoradError: a folder can't be read, or `folder` is `leave_out` itself.
    """
    counts = Counter[str]() if left_out is None else left_out
    results = os.path.realpath(leave_out) if leave_out is not None else None
    if os.path.realpath(folder) == results:
        raise ThoradError(f"{folder}: the results can't go into the images' own folder. Name another one for them.")

    def refuse(error: OSError) -> None:
        raise ThoradError(
            f"{error.filename}: the folder can't be read ({error.strerror}). Check its permissions."
        ) from error

    def why_not(path: Path) -> str | None:
        if path.name.startswith("."):
            return "hidden folder"
        if os.path.realpath(path) == results:
            return "the results' own folder"
        return "linked folder" if path.is_symlink() else None

    found: list[Path] = []
    for where, folders, files in os.walk(folder, onerror=refuse):
        reasons = {name: why_not(Path(where, name)) for name in folders}
        folders[:] = [name for name in folders if reasons[name] is None]
        shown = [Path(where, name) for name in files if not name.startswith(".")]
        counts.update(filter(None, [*reasons.values(), *["hidden"] * (len(files) - len(shown))]))
        found += shown
    return sorted(found, key=lambda path: path.parts)


def case_names(paths: Sequence[Path], folders: Sequence[Path]) -> list[str]:
    """Name cases after their files: unique (whatever the case of letters) and safe as file names.

    Where several files would get one name, each of them gets a hash of its path behind it, so that no name depends on
    the order. `folders` are those that the names of `paths`, all different, are relative to.
    """
    plain = [
        _safe_name(path.relative_to(folder) if path.is_relative_to(folder) else PurePath(path.name))
        for path, folder in zip(paths, folders, strict=True)
    ]
    counts = Counter(name.casefold() for name in plain)
    taken = {name for name, count in counts.items() if count == 1}
    names: list[str] = []
    for path, name in zip(paths, plain, strict=True):
        unique = name
        if counts[name.casefold()] > 1:
            digest = hashlib.sha256(os.fsencode(path.as_posix())).hexdigest()
            # Eight digits are enough unless another file is called just so.
            candidates = (f"{name}-{digest[:length]}" for length in range(8, len(digest) + 1))
            unique = next(candidate for candidate in candidates if candidate.casefold() not in taken)
            taken.add(unique.casefold())
        names.append(unique)
    return names


def write_png8(path: Path, pixels: NDArray[Any]) -> None:
    """Write an 8-bit PNG of (H, W) floats, where [0, 1] becomes 0...255 rounded; or of uint8, (H, W) or (H, W, 3)."""
    if pixels.dtype != np.uint8:
        pixels = np.rint(np.clip(pixels, 0, 1) * 255).astype(np.uint8)
    _write_png(path, pixels)


def write_png16(path: Path, pixels: NDArray[np.floating[Any]]) -> None:
    """Write a 16-bit grey PNG of (H, W) floats, where [0, 1] becomes 0...65535 rounded."""
    _write_png(path, np.rint(np.clip(pixels, 0, 1) * 65535.0).astype(np.uint16))


def _write_png(path: Path, pixels: NDArray[Any]) -> None:
    buffer = io.BytesIO()
    PIL.Image.fromarray(pixels).save(buffer, "PNG")
    write_atomic(path, buffer.getvalue())


def write_npy(path: Path, array: NDArray[Any]) -> None:
    """Write a NumPy file, whole or not at all."""
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    write_atomic(path, buffer.getvalue())


def _safe_name(relative: PurePath) -> str:
    """`a/b c.png` -> `a__b_c`: letters, digits, `_`, `-`, `+` and inner dots; no longer than file systems allow."""
    plain = relative.with_suffix("")
    plain = plain.with_suffix("") if relative.name.lower().endswith(".nii.gz") else plain
    parts = [part for part in plain.parts if part not in ("..", relative.anchor)]
    name = unicodedata.normalize("NFC", "__".join(parts))
    name = re.sub(r"[^\w.+-]", "_", name).strip(".-")
    if len(name.encode()) > 180:
        digest = hashlib.sha256(name.encode()).hexdigest()[:8]
        name = name.encode()[-160:].decode(errors="ignore").lstrip(".-") + f"-{digest}"
    return name or "image"


def _content(path: Path) -> bytes:
    with one_error(path, "image"):
        check_file(path)
        return path.read_bytes()


def check_values(values: NDArray[Any], source: str, *, constant: bool = False) -> NDArray[np.float32]:
    """The pixels of an image or voxels of a volume as float32.

    Raises:
        ThoradError: they aren't finite or, unless `constant`, are all alike.
    """
    what = "pixel" if values.ndim == 2 else "voxel"
    with np.errstate(over="ignore"):
        checked = values.astype(np.float32, copy=False)
    bad = int(np.count_nonzero(~np.isfinite(checked)))
    if bad:
        raise ThoradError(
            f"{source}: {bad} {what}s are NaN, infinite or too large for float32. Replace them, for example by 0."
        )
    if not constant and checked.min() == checked.max():
        raise ThoradError(
            f"{source}: every {what} is {checked.flat[0]:g}. A constant image shows nothing; check how it was exported."
        )
    return checked
