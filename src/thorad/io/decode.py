"""Decode PNG, JPEG, TIFF and NPY bytes to grey pixels as stored; `images` makes named images of them."""

import io
import logging
from collections.abc import Callable
from typing import IO, Any

import numpy as np
import PIL.Image
import PIL.ImageOps
from numpy.typing import NDArray

from thorad.errors import ThoradError
from thorad.io.reading import COPY_AGAIN, one_error

SMALLEST_SIDE = 8
"""px; below this there is no anatomy to look at."""

LARGEST_SIDE = 8192
"""px; the square that an image is padded to then has 64 megapixels at most. Checked before anything is decoded."""

GREY_TOLERANCE = 2
"""Levels that the channels of one pixel may differ by and still be grey: JPEG's colour conversion rounds."""

# tifffile logs what it finds odd in a file; the user gets one ThoradError instead.
logging.getLogger("tifffile").setLevel(logging.CRITICAL)


def decode(content: bytes, source: str) -> NDArray[Any]:
    """Read an image file's content, recognised by its first bytes.

    Transparent pixels count as black. Orientation tags are followed, as viewers do. `source` names it in errors.

    Returns:
        (H, W), of the file's own type; float32 where transparency was applied. May hold NaN and may be constant.

    Raises:
        ThoradError: damaged, not an image, many pages, colours, or sides out of bounds.
    """
    kind = kind_of(content)
    if kind is None:
        raise ThoradError(f"{source}: not an image. Expected PNG, JPEG, TIFF or NPY; convert it to one of these.")
    with one_error(source, f"{kind} file"):
        try:
            return _READERS[kind](content, source)
        except PIL.Image.DecompressionBombError as error:
            raise ThoradError(
                f"{source}: {error}. Expected sides of {LARGEST_SIDE} px at most; crop or shrink it."
            ) from error


def kind_of(start: bytes) -> str | None:
    """`PNG`, `JPEG`, `TIFF` or `NPY`, by the first bytes of a file; None for anything else."""
    return next((kind for signature, kind in _SIGNATURES.items() if start.startswith(signature)), None)


def check_sides(height: int, width: int, source: str) -> None:
    """Refuse an image with a side that is not within SMALLEST_SIDE...LARGEST_SIDE, from its header alone."""
    if min(height, width) < SMALLEST_SIDE or max(height, width) > LARGEST_SIDE:
        raise ThoradError(
            f"{source}: the image is {width} x {height} px; expected sides of {SMALLEST_SIDE} to {LARGEST_SIDE} px. "
            "Use a larger image, or crop or shrink it."
        )


def check_type(dtype: np.dtype[Any], source: str) -> None:
    """Refuse pixels that are no real numbers, as the complex ones of a raw MR image."""
    if dtype.kind not in "buif":
        raise ThoradError(
            f"{source}: pixels of {dtype}; expected bools, integers or floats. "
            "Save real numbers, of a complex image its magnitude."
        )


def check_array(shape: tuple[int, ...], dtype: np.dtype[Any], source: str) -> None:
    """Refuse an array that can't be a grey image, (H, W) or (H, W, 3), from its shape and type alone."""
    check_type(dtype, source)
    if len(shape) != 2 and not (len(shape) == 3 and shape[2] == 3):
        raise ThoradError(
            f"{source}: an array of shape {shape}; expected (height, width). "
            "Save each slice of a volume or stack as its own image."
        )
    check_sides(shape[0], shape[1], source)


def to_grey(array: NDArray[Any], source: str) -> NDArray[Any]:
    """(H, W) as it is; (H, W, C) of grey and alpha (C = 2), RGB (3) or RGBA (4) to (H, W) where the colours are grey.

    Raises:
        ThoradError: the channels of a pixel differ by more than GREY_TOLERANCE.
    """
    if array.ndim == 2:
        return array
    colours = array
    if array.shape[2] in (2, 4):
        colours, alpha = array[..., :-1], array[..., -1:]
        opaque = np.iinfo(array.dtype).max
        if not (alpha == opaque).all():
            colours = colours * (alpha.astype(np.float32) / opaque)
    if not np.isfinite(colours).all():
        return colours[..., 0]  # refused for that, with a better message than one about colours
    spread = float((colours.max(axis=2).astype(np.float64) - colours.min(axis=2)).max())
    # Floats are not rounded to levels; a tolerance of 2 would call any image in [0, 1] grey.
    if spread > (GREY_TOLERANCE if array.dtype.kind in "ui" else 0):
        raise ThoradError(
            f"{source}: a colour image (the channels of a pixel differ by up to {spread:g}); expected grey. "
            "Save it in grey, without coloured marks or colour maps."
        )
    return colours[..., colours.shape[2] // 2]


def _decode_with_pillow(content: bytes, source: str) -> NDArray[Any]:
    PIL.Image.open(io.BytesIO(content), formats=("PNG", "JPEG")).verify()  # checksums, which decoding skips
    with PIL.Image.open(io.BytesIO(content), formats=("PNG", "JPEG")) as picture:
        check_sides(picture.height, picture.width, source)
        pages = getattr(picture, "n_frames", 1)
        if pages > 1:
            raise ThoradError(f"{source}: {pages} pictures in one file; expected one. Save each as its own file.")
        if picture.format == "PNG" and content[24] == 16 and picture.mode in ("LA", "RGB", "RGBA"):
            # Of each of its values Pillow keeps the high byte only.
            raise ThoradError(
                f"{source}: a PNG of 16 bits with colours or transparency; expected one grey channel. Save it as "
                "16-bit grey, or with 8 bits a channel."
            )
        return to_grey(levels(PIL.ImageOps.exif_transpose(picture)), source)


def levels(picture: PIL.Image.Image) -> NDArray[Any]:
    """(H, W) or (H, W, C): palettes, bits and other colour spaces brought to grey, RGB or RGBA levels."""
    if picture.mode == "1":
        return np.asarray(picture.convert("L"))
    if picture.mode in ("L", "LA", "RGB", "RGBA") or picture.mode.startswith(("I", "F")):
        return np.asarray(picture)
    transparent = picture.mode == "PA" or "transparency" in picture.info
    return np.asarray(picture.convert("RGBA" if transparent else "RGB"))


def _decode_tiff(content: bytes, source: str) -> NDArray[Any]:
    import tifffile

    with tifffile.TiffFile(io.BytesIO(content)) as file:
        if len(file.pages) != 1:
            raise ThoradError(f"{source}: a TIFF of {len(file.pages)} pages; expected one. Save each as its own image.")
        page = file.pages.first
        _check_tiff(page, source)
        inverted = page.photometric == tifffile.PHOTOMETRIC.MINISWHITE
        turned = "Orientation" in page.tags and page.tags["Orientation"].value not in (0, 1)
        stored_whole = page.compression == tifffile.COMPRESSION.NONE and page.bitspersample >= 8
        if page.photometric in _PLAIN_TIFF and stored_whole and not turned:
            pixels = page.asarray()
            pixels = np.moveaxis(pixels, 0, -1) if page.axes.startswith("S") else pixels
            if inverted and pixels.ndim == 2 and pixels.dtype.kind == "u":
                pixels = np.iinfo(pixels.dtype).max - pixels
            return to_grey(pixels, source)
        bits, samples, dtype = page.bitspersample, page.samplesperpixel, page.dtype
    # Compressed files go to Pillow: tifffile alone lacks LZW, and libtiff never inflates beyond what the header says.
    # What Pillow would shorten to 8 bits is refused.
    if bits > 8 and not (samples == 1 and (dtype == np.uint16 or (dtype == np.float32 and not inverted))):
        raise ThoradError(
            f"{source}: a compressed or turned TIFF of {dtype}, {samples} channels. Save it uncompressed."
        )
    with PIL.Image.open(io.BytesIO(content), formats=("TIFF",)) as picture:
        check_sides(picture.height, picture.width, source)
        picture.load()  # turns it as its orientation tag says
        pixels = to_grey(levels(picture), source)
    return 65535 - pixels if inverted and bits > 8 else pixels  # 8 bits Pillow has inverted already


_PLAIN_TIFF = (0, 1, 2)
"""Values of the tag PhotometricInterpretation with which tifffile alone reads a page: white is 0, black is 0, RGB."""


def _check_tiff(page: Any, source: str) -> None:
    """Refuse a `tifffile.TiffPage` by its tags alone: its size, its type, planes behind each other, huge tiles."""
    check_sides(page.imagelength, page.imagewidth, source)
    if page.dtype is not None:
        check_type(page.dtype, source)
    planes = page.imagedepth * (1 if page.photometric == 2 or page.extrasamples else page.samplesperpixel)
    if page.photometric in _PLAIN_TIFF and (planes > 1 or page.samplesperpixel > 4):
        raise ThoradError(f"{source}: a TIFF of several planes; expected one. Save each as its own image.")
    if page.is_tiled and max(page.tilewidth, page.tilelength) > LARGEST_SIDE:
        raise ThoradError(f"{source}: a TIFF with tiles above {LARGEST_SIDE} px. Save it without tiles.")


def npy_header(file: IO[bytes], source: str) -> tuple[tuple[int, ...], np.dtype[Any]]:
    """Shape and type of the array in an NPY file, as `check_array` allows; the file is left where the array begins."""
    version = np.lib.format.read_magic(file)
    header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, dtype = header(file)
    check_array(shape, dtype, source)
    return shape, dtype


def _decode_npy(content: bytes, source: str) -> NDArray[Any]:
    file = io.BytesIO(content)
    shape, dtype = npy_header(file, source)
    found, expected = len(content) - file.tell(), int(np.prod(shape)) * dtype.itemsize
    if found < expected:
        raise ThoradError(f"{source}: the NPY file is incomplete: {found} of {expected} bytes. {COPY_AGAIN}")
    return to_grey(np.load(io.BytesIO(content), allow_pickle=False), source)


_SIGNATURES = {
    b"\x89PNG\r\n\x1a\n": "PNG",
    b"\xff\xd8\xff": "JPEG",
    b"II*\0": "TIFF",
    b"MM\0*": "TIFF",
    b"II+\0": "TIFF",
    b"MM\0+": "TIFF",
    b"\x93NUMPY": "NPY",
}

_READERS: dict[str, Callable[[bytes, str], NDArray[Any]]] = {
    "PNG": _decode_with_pillow,
    "JPEG": _decode_with_pillow,
    "TIFF": _decode_tiff,
    "NPY": _decode_npy,
}
