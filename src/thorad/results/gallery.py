"""Pictures as a gallery's page takes them: reduced, in 8 bits, as the base64 text of PNG files.

Shapes: H, W a picture's own grid.
"""

import base64
import io
from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
import PIL.Image
from numpy.typing import NDArray

from thorad.results.writer import COLOURS

COLOUR_MAPS: Final[Mapping[str, Sequence[tuple[int, ...]]]] = {
    "plasma (upper part)": [tuple(int(level) for level in colour) for colour in COLOURS],
    "viridis": [
        *((68, 1, 84), (71, 45, 123), (59, 82, 139), (44, 114, 142), (33, 145, 140)),
        *((40, 174, 128), (94, 201, 98), (173, 220, 48), (253, 231, 37)),
    ],
    "cividis": [
        *((0, 34, 78), (26, 56, 111), (67, 78, 108), (97, 101, 111), (125, 124, 120)),
        *((155, 148, 118), (188, 174, 108), (222, 201, 88), (254, 232, 56)),
    ],
    "inferno": [
        *((0, 0, 4), (33, 12, 74), (87, 16, 110), (138, 34, 106), (188, 55, 84)),
        *((228, 90, 49), (249, 142, 9), (249, 203, 53), (252, 255, 164)),
    ],
}
"""Even in lightness and readable by colour-blind people; the first is the default and that of overlay.png.

Source: matplotlib's colour maps (CC0), every eighth of their range; cividis is J. Nuñez, C. Anderton and R. Renslow's.
"""


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
