"""Pictures that people look at: the map over the scan, reduced and as the text of PNG files.

Shapes: H, W a picture's own grid.
"""

import base64
import io
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import PIL.Image
import PIL.ImageDraw
import PIL.ImageFont
from numpy.typing import NDArray

COLOURS = np.array([(126, 3, 168), (204, 71, 120), (248, 149, 64), (240, 249, 33)], dtype=np.float32)
"""Violet to yellow: the upper part of plasma, which rises evenly in lightness and reads the same without red or green.

Source: S. van der Walt and N. Smith, matplotlib colour maps (CC0).
"""

MONTAGE_COLUMNS = 6

SMALLEST_ANNOTATED = 96
"""px"""

Side = Literal["neurological", "radiological"]
"""Where pictures of axial slices have the patient's right: on their right, or on their left."""


def overlay(image: NDArray[Any], anomaly_map: NDArray[Any], maximum: float) -> NDArray[np.uint8]:
    """Lay the map in colours over the image in grey; the higher the map, the less of the image shows.

    Args:
        image: (H, W) in [0, 1].
        anomaly_map: (H, W); 0 and below leave the image as it is, `maximum` and above hide it.
        maximum: value of the strongest colour, above 0.

    Returns:
        (H, W, 3) uint8.
    """
    height = np.clip(anomaly_map / maximum, 0, 1).astype(np.float32)  # (H, W)
    grey = (1 - height) * 255 * np.clip(image, 0, 1)
    blended = np.empty((*height.shape, 3), np.uint8)
    for channel, levels in enumerate(COLOURS.T):
        colour = np.interp(height, np.linspace(0, 1, len(levels)), levels)
        blended[..., channel] = np.rint(height * colour + grey)
    return blended


def annotated(
    picture: NDArray[np.uint8], edges: tuple[str, str, str, str], words: str = "", maximum: float | None = None
) -> NDArray[np.uint8]:
    """A copy of an overlay that says which side is which, where it lies and what its colours mean.

    Args:
        picture: (H, W, 3), as of `overlay`; one with a side below `SMALLEST_ANNOTATED` has no room and stays as it is.
        edges: letters for left, right, top and bottom; empty where the side isn't known.
        words: for the lower left corner.
        maximum: value of the strongest colour, for the scale in the lower right corner; None for none.
    """
    rows, columns = picture.shape[:2]
    if min(rows, columns) < SMALLEST_ANNOTATED:
        return picture
    size = max(10, min(rows, columns) // 24)  # px, of the letters
    gap, width, height = size // 3, size // 2, 5 * size
    marked = picture.copy()
    if maximum is not None:
        scale = overlay(np.zeros((height, width)), np.linspace(1, 0, height)[:, None].repeat(width, 1), 1.0)
        marked[rows - gap - height : rows - gap, columns - gap - width : columns - gap] = scale
    image = PIL.Image.fromarray(marked)
    draw, font = PIL.ImageDraw.Draw(image), PIL.ImageFont.load_default(size)
    left, right, top, bottom = edges
    beside = columns - 2 * gap - width
    # Words that would reach the lower edge's letter stand above it.
    above = size + gap if font.getlength(words) > columns // 2 - size else 0
    for place, anchor, text in (
        ((gap, rows // 2), "lm", left),
        ((columns - gap, rows // 2), "rm", right),
        ((columns // 2, gap), "ma", top),
        ((columns // 2, rows - gap), "md", bottom),
        ((gap, rows - gap - above), "ld", words),
        ((beside, rows - gap - height), "ra", "" if maximum is None else f"{maximum:g}"),
        ((beside, rows - gap), "rd", "" if maximum is None else "0"),
    ):
        draw.text(place, text, "white", font, anchor=anchor, stroke_width=max(1, size // 10), stroke_fill="black")
    return np.asarray(image)


def template_slice(picture: NDArray[np.uint8], words: str, maximum: float, side: Side) -> NDArray[np.uint8]:
    """`annotated`, of a slice in the template's plane (anterior up, x to the patient's right), as the side has it."""
    if side == "radiological":
        return annotated(np.ascontiguousarray(picture[:, ::-1]), ("R", "L", "A", "P"), words, maximum)
    return annotated(picture, ("L", "R", "A", "P"), words, maximum)


def three_planes(picture: NDArray[np.uint8], shape: tuple[int, int, int]) -> NDArray[np.uint8]:
    """A copy of a picture of a volume's axial, coronal and sagittal plane, side by side, with letters for the sides.

    Args:
        picture: (y, x + x + y, 3); anterior or superior up, and right, right and anterior on the right.
        shape: (x, y, z) of the volume, px.
    """
    x, y, z = shape
    lettered = picture.copy()
    for left, width, height, letters in ((0, x, y, "LRAP"), (x, x, z, "LRSI"), (2 * x, y, z, "PASI")):
        tile = lettered[:height, left : left + width]
        tile[:] = annotated(tile, (letters[0], letters[1], letters[2], letters[3]))
    return lettered


def montage(pictures: Sequence[NDArray[np.uint8]]) -> NDArray[np.uint8]:
    """Pictures (H, W, 3) of one size side by side, in rows of MONTAGE_COLUMNS."""
    columns = min(len(pictures), MONTAGE_COLUMNS)
    empty = [np.zeros_like(pictures[0])] * (-len(pictures) % columns)
    full = [*pictures, *empty]
    rows = [np.concatenate(full[start : start + columns], axis=1) for start in range(0, len(full), columns)]
    return np.concatenate(rows, axis=0)


def reduced_shape(shape: Sequence[int], side: int) -> tuple[int, int]:
    """(H, W) with the longest side `side` at most."""
    share = min(1.0, side / max(shape))
    return max(1, round(shape[0] * share)), max(1, round(shape[1] * share))


def reduced(values: NDArray[Any], side: int) -> NDArray[np.float32]:
    """Means over the pixels that become one."""
    height, width = reduced_shape(values.shape, side)
    picture = PIL.Image.fromarray(np.ascontiguousarray(values, np.float32))
    if picture.size != (width, height):
        picture = picture.resize((width, height), PIL.Image.Resampling.BOX)
    return np.asarray(picture)


def reduced_colours(picture: NDArray[np.uint8], size: tuple[int, int]) -> NDArray[np.uint8]:
    """(H, W, 3) to a size of (width, height)."""
    return np.asarray(PIL.Image.fromarray(picture).resize(size, PIL.Image.Resampling.BOX))


def coded_map(anomaly_map: NDArray[np.float32]) -> dict[str, Any]:
    """A map's `map_levels` and the maximum that they belong to."""
    return {"map": png_text(map_levels(anomaly_map)), "maximum": float(anomaly_map.max())}


def map_levels(anomaly_map: NDArray[np.float32]) -> NDArray[np.uint8]:
    """8 bits of a map by its own maximum: value = maximum * (level / 255)^2, so that small values are told apart."""
    maximum = float(anomaly_map.max())
    if maximum <= 0:
        return np.zeros(anomaly_map.shape, np.uint8)
    levels: NDArray[np.uint8] = np.rint(255 * np.sqrt(np.clip(anomaly_map / maximum, 0, 1))).astype(np.uint8)
    return levels


def grey_png(picture: NDArray[np.uint8] | None, side: int) -> str | None:
    """(H, W), its longest side `side` at most; None for None."""
    return None if picture is None else png_text(np.rint(reduced(picture, side)).astype(np.uint8))


def mask_png(mask: NDArray[np.bool_], side: int) -> str:
    """(H, W) likewise; a pixel belongs to it if half of what it stands for does."""
    return png_text(reduced(mask, side) >= 0.5)


def png_text(pixels: NDArray[Any]) -> str:
    """Base64 of a PNG file: 8 bits, 1 bit for a mask."""
    buffer = io.BytesIO()
    PIL.Image.fromarray(pixels).save(buffer, "PNG", compress_level=6)
    return base64.b64encode(buffer.getvalue()).decode()
