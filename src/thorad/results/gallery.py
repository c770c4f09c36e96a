"""Pictures as a gallery's page takes them: reduced, in 8 bits, as the base64 text of PNG files.

Shapes: H, W a picture's own grid.
"""

from collections.abc import Mapping, Sequence
from typing import Final

from thorad.pictures import COLOURS

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
