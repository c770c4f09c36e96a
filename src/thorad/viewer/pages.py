"""Result folders as the page's script takes them: an index of the cases, and the pictures of one case at a time.

The script is that of the report, thorad/assets/report/gallery.js; what a report holds at once comes here case by case.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

import numpy as np
import PIL.Image

from thorad.errors import ThoradError
from thorad.pictures import coded_map, grey_png, mask_png, png_text, reduced, reduced_colours, reduced_shape
from thorad.results.gallery import COLOUR_MAPS
from thorad.results.layout import OVERLAY, PSEUDO_HEALTHY, SCAN, STEPS, CaseRecord
from thorad.results.reader import Pictures, read_folder, read_pictures
from thorad.results.volume_page import write_volume_page

LARGEST_SIDE: Final = 1024
"""px; larger pictures are reduced in the page, for its sliders must keep up."""

PLANES: Final = "planes.html"
"""Of a volume's case: its page of three planes, which holds the scan."""

Told = Callable[[str], str]
"""What a case's name is shown as."""


class Results:
    """A result folder, read anew for every page."""

    def __init__(self, path: Path, told: Told = str) -> None:
        self.path, self._told = path, told
        self._cases: Mapping[str, CaseRecord] = {}

    def index(self) -> dict[str, Any]:
        """What is known without opening the pictures.

        Raises:
            ThoradError: see `thorad.results.reader.read_folder`.
        """
        folder = read_folder(self.path)
        # Highest scores first, failed ones last, as in the report.
        cases = sorted(folder.cases, key=lambda case: (-np.inf if case.score is None else -case.score, case.name))
        cases.sort(key=lambda case: case.status != "ok")
        self._cases = {case.name: case for case in cases}
        maximum = float(folder.run["overlay_maximum"])
        options = folder.run["options"]
        return {
            "cases": [self._about(number, case) for number, case in enumerate(cases)],
            "threshold": folder.threshold,
            "maximum": maximum,
            # Of the sliders. A score is a mean of the highest values, which are seldom above twice of it.
            "largest": max(maximum, *(2 * (case.score or 0.0) for case in cases)),
            "colours": COLOUR_MAPS,
            "scans": all(_first_picture(case, SCAN).is_file() for case in cases if case.status == "ok"),
            "diceAt": "",
            "volumes": [case.name for case in cases if case.status == "ok" and _slice_folders(case)],
            "run": {
                "model": options.get("model"),
                "method": options.get("method"),
                "noise": options.get("noise"),
                "steps": options.get("steps"),
                "seed": options.get("seed"),
                "thorad": options.get("thorad"),
                "calibration": options.get("calibration"),
                "status": folder.run.get("status"),
            },
        }

    def pictures(self, name: str) -> list[dict[str, Any]]:
        """The pictures of a case of the last index: one of an image, one for each slice of a volume.

        Raises:
            ThoradError: no such case, or its pictures are damaged.
        """
        case = self._cases.get(name)
        if case is None or case.status != "ok":
            raise ThoradError("no such case.")
        return [_coded(one) for one in read_pictures(case)]

    def planes(self, name: str, folder: Path) -> bytes:
        """The HTML page of a volume's three planes, with its scan where that is still at hand.

        Args:
            name: of a case of the last index.
            folder: for the page while it is made.

        Raises:
            ThoradError: no such case, or no volume.
        """
        case = self._cases.get(name)
        if case is None or case.status != "ok":
            raise ThoradError("no such case.")
        made = case.folder / PLANES
        if made.is_file():
            return made.read_bytes()
        with TemporaryDirectory(dir=folder) as temporary:
            return write_volume_page(self.path, name, Path(temporary) / PLANES).read_bytes()

    def thumbnail(self) -> Path:
        """The overlay of the case with the highest score; of a volume that of the slice in the middle.

        Raises:
            ThoradError: nothing is done yet.
        """
        folder = read_folder(self.path)
        done = [case for case in folder.cases if case.status == "ok"]
        if not done:
            raise ThoradError("no case is done.")
        case = max(done, key=lambda case: case.score or 0.0)
        slices = _slice_folders(case)
        return (slices[len(slices) // 2] if slices else case.folder) / OVERLAY

    def _about(self, number: int, case: CaseRecord) -> dict[str, Any]:
        about: dict[str, Any] = {
            "id": number,
            "key": case.name,
            "name": self._told(case.name),
            "status": case.status,
            "message": case.message,
            "score": case.score,
            "p_value": case.p_value,
            "findings": None if case.findings is None else len(case.findings),
            "places": [] if case.findings is None else list(case.findings),
            **{"truth": None, "size": None, "dice": None},
        }
        return {**about, **(_about_pictures(case) if case.status == "ok" else _NO_PICTURES)}


_NO_PICTURES = {"pictures": False, "slices": [], "first": 0, "steps": 0, "width": 1, "height": 1, "healthy": False}


def summary(path: Path) -> dict[str, Any]:
    """What a list of folders says of one.

    Raises:
        ThoradError: see `thorad.results.reader.read_folder`.
    """
    folder = read_folder(path)
    options = folder.run["options"]
    failed = sum(case.status != "ok" for case in folder.cases)
    told = {"model": options.get("model"), "method": options.get("method"), "noise": options.get("noise")}
    return {**told, "title": path.resolve().name, "cases": len(folder.cases), "failed": failed}


def result_folders(path: Path) -> list[Path]:
    """The result folders that a path stands for: itself, or those directly in it.

    Raises:
        ThoradError: none.
    """
    if (path / "run.json").is_file():
        read_folder(path)
        return [path]
    found: list[Path] = []
    try:
        inside = sorted(path.iterdir()) if path.is_dir() else []
    except OSError as error:
        raise ThoradError(f"{path}: can't be read ({error.strerror}). Check its permissions.") from error
    for below in inside:
        try:
            read_folder(below)
        except ThoradError:
            continue
        found.append(below)
    if not found:
        raise ThoradError(
            f"{path}: neither a result folder nor a folder of such. Name a folder that `thorad detect` has written."
        )
    return found


def _slice_folders(case: CaseRecord) -> list[Path]:
    slices = case.folder / "slices"
    return sorted(slices.iterdir()) if slices.is_dir() else []


def _first_picture(case: CaseRecord, file: str) -> Path:
    return next(iter(_slice_folders(case)), case.folder) / file


def _about_pictures(case: CaseRecord) -> dict[str, Any]:
    slices = _slice_folders(case)
    overlay, steps = _first_picture(case, OVERLAY), _first_picture(case, STEPS)
    try:
        with PIL.Image.open(overlay) as picture:
            height, width = reduced_shape((picture.height, picture.width), LARGEST_SIDE)
        count = 0
        if steps.is_file():
            with np.load(steps, allow_pickle=False) as kept:
                count = len(kept["timesteps"])
    except (OSError, ValueError, KeyError) as error:
        return {**_NO_PICTURES, "message": f"A picture is missing or damaged ({type(error).__name__}). Detect again."}
    return {
        "pictures": True,
        "slices": [f"slice {int(folder.name)}" for folder in slices] or [""],
        # The script goes to the slice with the highest value as soon as it has the maps.
        "first": 0,
        "steps": count,
        "width": width,
        "height": height,
        "healthy": _first_picture(case, PSEUDO_HEALTHY).is_file(),
    }


def _coded(one: Pictures) -> dict[str, Any]:
    height, width = reduced_shape(one.anomaly_map.shape, LARGEST_SIDE)
    return {
        "label": one.label,
        "width": width,
        "height": height,
        "shrink": max(one.anomaly_map.shape) / max(height, width),
        **coded_map(reduced(one.anomaly_map, LARGEST_SIDE)),
        "scan": grey_png(one.scan, LARGEST_SIDE),
        "healthy": grey_png(one.pseudo_healthy, LARGEST_SIDE),
        "overlay": None if one.scan is not None else png_text(reduced_colours(one.overlay, (width, height))),
        "mask": None if one.mask is None else mask_png(one.mask, LARGEST_SIDE),
        "truth": None,
        "steps": [
            {
                "t": step.timestep,
                "clean": grey_png(step.clean, LARGEST_SIDE),
                **({} if step.anomaly_map is None else coded_map(step.anomaly_map)),
            }
            for step in one.steps
        ],
    }
