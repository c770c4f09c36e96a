"""A result folder's cases as the gallery script takes them: an index of all, and the pictures of one case at a time.

The script is thorad/assets/report/gallery.js, the same for the report, which holds all pictures, and for the viewer,
which sends those of a case when they are looked at. Pictures are reduced, in 8 bits, the base64 text of PNG files.

Shapes: H, W a picture's own grid.
"""

from base64 import b64encode
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final

import numpy as np
import PIL.Image
from numpy.typing import NDArray

from thorad.datasets.cases import Case
from thorad.errors import ThoradError
from thorad.io.reading import one_error
from thorad.io.template import MNI_2009A
from thorad.io.text import printable
from thorad.io.volumes import read_header
from thorad.pictures import (
    COLOURS,
    Side,
    coded_map,
    grey_png,
    mask_png,
    png_text,
    reduced,
    reduced_colours,
    reduced_shape,
)
from thorad.results.folder import (
    JUDGED,
    OVERLAY,
    PSEUDO_HEALTHY,
    REGISTRATION_PICTURE,
    SCAN,
    STATUSES,
    STEPS,
    VOLUME_MAP,
    CaseRecord,
    FindingRecord,
    Pictures,
    ResultFolder,
    read_registration,
    slice_label,
    truth_of,
)

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

NO_PICTURES: Final[Mapping[str, Any]] = {
    **{"pictures": False, "slices": [], "steps": 0, "width": 1, "height": 1, "healthy": False, "mm": None}
}
"""What the index says of a case whose pictures can't be shown."""


def by_score(cases: Iterable[CaseRecord]) -> list[CaseRecord]:
    """By status, in the order of `STATUSES`; of each the highest scores first."""
    return sorted(cases, key=lambda case: (STATUSES.index(case.status), -(case.score or 0.0), case.name))


def gallery_index(
    folder: ResultFolder,
    entries: Sequence[Mapping[str, Any]],
    *,
    truth: bool,
    dice_at: str = "",
    side: Side | None = None,
) -> dict[str, Any]:
    """The index that the script starts from: one of `entries` for each case, as of `case_entry`.

    The threshold starts at the run's own; without one where the colours of overlay.png begin to show. The colours end
    at the highest value of the cases that are ok, the sliders at that of all.

    Args:
        folder: of `thorad detect`.
        entries: of all cases.
        truth: whether it is known of some cases.
        dice_at: the threshold of the entries' Dice, in words.
        side: where slices have the patient's right at first; None: as in the run.
    """
    done = [case for case in folder.cases if case.done]
    sound = [case for case in done if case.status == "ok"] or done
    return {
        "cases": entries,
        **looking(folder, _highest(folder, done)),
        "maximum": _highest(folder, sound),
        "scans": all(_have(SCAN, done)),
        "judged": any(_have(JUDGED, done)),
        "truth": truth,
        "diceAt": dice_at,
        "side": side or folder.side,
    }


def looking(folder: ResultFolder, largest: float) -> dict[str, Any]:
    """What the controls of `looking.js` start from; `largest` is the map value at which sliders and colours end."""
    own = (folder.run.get("method") or {}).get("own_threshold")  # maps that have one are probabilities
    return {
        "threshold": folder.threshold,
        "start": folder.maximum / 4 if folder.threshold is None else folder.threshold,
        "maximum": largest,
        "largest": largest,
        "unit": "map value (no unit)" if own is None else "probability",
        "colours": COLOUR_MAPS,
    }


def _highest(folder: ResultFolder, cases: Sequence[CaseRecord]) -> float:
    """About the highest map value, without reading the maps: of the findings; of a case without any twice its score, a
    mean of the highest values; never below the end of the overlays' colours, nor below twice the threshold.
    """
    highest = [max((one.peak for one in case.findings or ()), default=2 * (case.score or 0)) for case in cases]
    return max(folder.maximum, 2 * (folder.threshold or 0), *highest)


def case_entry(number: int, case: CaseRecord, side: int) -> dict[str, Any]:
    """What the index says of one case; `number` is unique in its page, `side` the longest of its pictures, px.

    Of the pictures only their size is read.
    """
    entry = {
        **{"id": number, "name": case.name, "status": case.status, "forced": case.forced, "score": case.score},
        **{"message": printable(case.message), "registration": None},
        **{"p_value": case.p_value, "findings": case.finding_count, "draw_agreement": case.draw_agreement},
        **{"truth": None, "size": None, "dice": None, "methods": None, "page": None, "places": []},
        **NO_PICTURES,
    }
    if not case.done:
        return entry
    folders = case.picture_folders
    _, first = folders[0]
    try:
        with PIL.Image.open(first / OVERLAY) as picture:
            entry["height"], entry["width"] = reduced_shape((picture.height, picture.width), side)
        if (first / STEPS).is_file():
            with np.load(first / STEPS, allow_pickle=False) as kept:
                entry["steps"] = len(kept["timesteps"])
    except Exception as error:  # parsers raise nearly anything on damaged files
        return entry | {"message": f"A picture is missing or damaged ({type(error).__name__}). Detect again."}
    entry |= {"pictures": True, "slices": [slice_label(index) for index, _ in folders], "mm": case.pixel_mm}
    entry |= {"places": _places(case)}
    return entry | {"healthy": (first / PSEUDO_HEALTHY).is_file()}


def _places(case: CaseRecord) -> list[dict[str, Any]]:
    """Each finding: how large and high it is, and which picture, row and column its peak is at, where that is known."""
    leads = _leads_to_pictures(case)
    places = []
    for finding in case.findings or ():
        position = finding.peak_position
        column, row, at = leads(position) if len(position) == 2 + case.is_volume else (None, None, None)
        place = {"slice": at, "row": row, "column": column}
        places.append({"peak": finding.peak, "size": finding_size(finding), **place})
    return places


def finding_size(finding: FindingRecord) -> str:
    """In words: its volume, area or pixels, what is known."""
    if finding.volume_mm3:
        return f"{finding.volume_mm3 / 1000:.2g} ml"
    return f"{finding.area_mm2:.3g} mm²" if finding.area_mm2 else f"{finding.pixels} px"


def _leads_to_pictures(case: CaseRecord) -> Callable[[Sequence[int]], tuple[int | None, int | None, int | None]]:
    """What gives the column, row and number of the picture of a place in the case's own grid."""
    if not case.is_volume:
        return lambda position: (int(position[1]), int(position[0]), 0)
    indices = np.array([index for index, _ in case.picture_folders])
    path = case.folder / VOLUME_MAP
    try:
        with one_error(path, "volume"), path.open("rb") as file:
            affine = read_header(path, file).affine
        to_grid = np.linalg.inv(MNI_2009A.affine) @ read_registration(case.folder) @ affine
    except ThoradError:  # the list still leads to the case
        return lambda position: (None, None, None)

    def lead(position: Sequence[int]) -> tuple[int, int, int]:
        x, y, k = (to_grid @ [*position, 1])[:3]
        return round(x), round(MNI_2009A.shape[1] - 1 - y), int(np.abs(indices - k).argmin())

    return lead


def _have(name: str, cases: Iterable[CaseRecord]) -> list[bool]:
    """Of each case, whether a picture was kept beside the map that older versions did not keep."""
    return [(case.picture_folders[0][1] / name).is_file() for case in cases]


def registration_text(case: CaseRecord) -> str | None:
    """The picture of a volume's registration, as of `png_text`; None where none was kept.

    Raises:
        ThoradError: it can't be read.
    """
    path = case.folder / REGISTRATION_PICTURE
    try:
        return b64encode(path.read_bytes()).decode() if path.is_file() else None
    except OSError as error:
        raise ThoradError(f"{path}: can't be read ({error.strerror}). Detect again.") from error


def encode_case(
    case: CaseRecord, pictures: Sequence[Pictures], side: int, row: Case | None = None
) -> list[dict[str, Any]]:
    """The pictures of a case, with the lesions of its row of a table, where there is one.

    Raises:
        ThoradError: as `truth_of`.
    """
    truths = truth_of(row, case, pictures) if row is not None and row.mask is not None else [None] * len(pictures)
    return [encode_picture(picture, side, truth) for picture, truth in zip(pictures, truths, strict=True)]


def encode_picture(picture: Pictures, side: int, truth: NDArray[np.bool_] | None = None) -> dict[str, Any]:
    """One image or slice, `side` px at its longest side at most, with the lesions (H, W) where they are known."""
    height, width = reduced_shape(picture.shape, side)
    return {
        "label": picture.label,
        "width": width,
        "height": height,
        "shrink": max(picture.shape) / max(height, width),
        **coded_map(reduced(picture.anomaly_map, side)),
        "scan": grey_png(picture.scan, side),
        "healthy": grey_png(picture.pseudo_healthy, side),
        "overlay": None if picture.scan is not None else png_text(reduced_colours(picture.overlay, (width, height))),
        "mask": None if picture.mask is None else mask_png(picture.mask, side),
        "judged": None if picture.judged is None else mask_png(picture.judged, side),
        "truth": None if truth is None else mask_png(truth, side),
        "steps": [
            {
                "t": step.timestep,
                "clean": grey_png(step.clean, side),
                **({} if step.anomaly_map is None else coded_map(reduced(step.anomaly_map, side))),
            }
            for step in picture.steps
        ],
    }
