"""Reading what a run left: the cases of a result folder and their pictures, one case at a time.

Shapes: H, W the image's own grid; S the model's grid.
"""

import json
import zipfile
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
from numpy.typing import NDArray

from thorad.datasets.cases import Case, read_cases
from thorad.errors import ThoradError
from thorad.io.images import read_mask
from thorad.io.tables import listing
from thorad.records import current_options
from thorad.results.layout import MAP, MASK, OVERLAY, PSEUDO_HEALTHY, RUN, SCAN, STEPS, CaseRecord, read_case

Bytes8 = NDArray[np.uint8]


@dataclass(frozen=True)
class StepPicture:
    """The restoration at one step: a harmonised one, where the method has such."""

    timestep: int
    clean: Bytes8
    """(S, S), on the model's grid: the image padded to a square, and resized."""
    anomaly_map: NDArray[np.float32] | None
    """(S, S); None where the method makes none on the way."""


@dataclass(frozen=True)
class Pictures:
    """The pictures of one image, or of one slice of a volume."""

    slice_index: int | None
    """In the template's grid; None for an image."""
    anomaly_map: NDArray[np.float32]
    """(H, W) >= 0."""
    scan: Bytes8 | None
    """(H, W); None in folders of versions that did not keep it."""
    overlay: Bytes8
    """(H, W, 3)."""
    pseudo_healthy: Bytes8 | None
    """(H, W); None where the method makes none."""
    mask: NDArray[np.bool_] | None
    """(H, W); None where the run has no threshold."""
    steps: tuple[StepPicture, ...]
    """In the order of the restoration; empty where the run kept none."""

    @property
    def shape(self) -> tuple[int, int]:
        """(H, W)."""
        return self.anomaly_map.shape[0], self.anomaly_map.shape[1]

    @property
    def label(self) -> str:
        """`slice 95` of a volume; empty for an image."""
        return slice_label(self.slice_index)


@dataclass(frozen=True)
class ResultFolder:
    """A result folder of `thorad detect`."""

    path: Path
    run: Mapping[str, Any]
    cases: tuple[CaseRecord, ...]
    """Sorted by name, failed ones too."""

    @property
    def threshold(self) -> float | None:
        """Where the run's masks begin, in map units; None without."""
        options = self.run["options"]
        threshold = options.get("threshold")
        if threshold is None:
            threshold = (options.get("calibration") or {}).get("threshold")
        return None if threshold is None else float(threshold)

    @property
    def healthy_scores(self) -> tuple[float, ...]:
        """Of the calibration's healthy scans; empty where run.json does not hold them."""
        return tuple(float(score) for score in self.run.get("healthy_scores") or ())

    def case(self, name: str) -> CaseRecord:
        """The case of this name.

        Raises:
            ThoradError: there is none, or it failed.
        """
        for case in self.cases:
            if case.name == name:
                if not case.done:
                    raise ThoradError(f"{self.path}: the case {name} failed: {case.message}")
                return case
        known = listing([case.name for case in self.cases])
        raise ThoradError(f"{self.path}: no case {name!r}. It holds {known}.")


def read_folder(path: Path) -> ResultFolder:
    """Read run.json and every case.json of a result folder.

    Raises:
        ThoradError: no result folder, no case in it, or a damaged file.
    """
    run = _json(path / RUN)
    if not (isinstance(run, dict) and {"options", "overlay_maximum"} <= run.keys()):
        raise ThoradError(f"{path / RUN}: not the run.json of a result folder. Name a folder of `thorad detect`.")
    folders = sorted((path / "cases").iterdir()) if (path / "cases").is_dir() else []
    cases = tuple(case for case in map(read_case, folders) if case is not None)
    if not cases:
        raise ThoradError(f"{path}: no case in it yet. Let `thorad detect` finish one first.")
    return ResultFolder(path, run, cases)


def read_pictures(case: CaseRecord) -> list[Pictures]:
    """The pictures of a case that did not fail: one of an image, one for each slice of a volume.

    Raises:
        ThoradError: a file is missing or damaged.
    """
    return [_pictures(folder, index) for index, folder in case.picture_folders]


def slice_label(index: int | None) -> str:
    """`slice 95`; empty for an image."""
    return "" if index is None else f"slice {index}"


def method_title(options: Mapping[str, Any]) -> str:
    """`thor (simplex)`: the method of a run or of an evaluation's result, with its noise where it draws any."""
    method, noise = current_options(options).get("method"), options.get("noise")
    return f"{method} ({noise})" if noise else str(method)


def match_truth(folder: ResultFolder, table: Path) -> dict[str, Case]:
    """Find the rows of an evaluation table that are about a folder's cases.

    By the image's file, else by the case's name, else by the file's name where the table has it once: results may have
    come from another machine.

    Returns:
        {case name: row}, of those cases only that the table knows.

    Raises:
        ThoradError: as `read_cases`; no row fits any case.
    """
    rows = read_cases(table)
    by_file = {row.image.resolve(): row for row in rows}
    by_name = {row.name: row for row in rows}
    times = Counter(row.image.name for row in rows)
    by_file_name = {row.image.name: row for row in rows if times[row.image.name] == 1}
    matched = {}
    for case in folder.cases:
        source = Path(case.source)
        row = by_file.get(source.resolve()) or by_name.get(case.name) or by_file_name.get(source.name)
        if row is not None:
            matched[case.name] = row
    if not matched:
        raise ThoradError(
            f"{table}: none of its {len(rows)} images is a case of {folder.path}, whose cases are "
            f"{listing([case.name for case in folder.cases])}. Give the table of the images that were detected in."
        )
    return matched


def truth_of(row: Case, shape: tuple[int, int]) -> NDArray[np.bool_]:
    """The lesions (H, W) of a row; nothing where it says that the image is healthy.

    Raises:
        ThoradError: as `read_mask`.
    """
    return np.zeros(shape, np.bool_) if row.mask is None else read_mask(row.mask, shape)


def _pictures(folder: Path, slice_index: int | None) -> Pictures:
    try:
        anomaly_map = np.load(folder / MAP, allow_pickle=False)
        mask = _picture(folder / MASK)
        overlay = _picture(folder / OVERLAY)
        if overlay is None or overlay.shape != (*anomaly_map.shape, 3):
            raise ThoradError(f"{folder / OVERLAY}: missing, or of another size than the map. Detect again.")
        return Pictures(
            slice_index=slice_index,
            anomaly_map=np.nan_to_num(anomaly_map.astype(np.float32), nan=0.0),
            scan=_picture(folder / SCAN),
            overlay=overlay,
            pseudo_healthy=_picture(folder / PSEUDO_HEALTHY),
            mask=None if mask is None else mask > 0,
            steps=_steps(folder / STEPS),
        )
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise ThoradError(f"{folder}: a picture is missing or damaged ({error}). Detect again.") from error


def _picture(path: Path) -> Bytes8 | None:
    if not path.is_file():
        return None
    with PIL.Image.open(path) as picture:
        return np.asarray(picture, np.uint8)


def _steps(path: Path) -> tuple[StepPicture, ...]:
    if not path.is_file():
        return ()
    with np.load(path, allow_pickle=False) as kept:
        times, clean, maps = kept["timesteps"], kept["clean"], kept["maps"]
    return tuple(
        StepPicture(int(time), picture, anomaly_map.astype(np.float32) if np.isfinite(anomaly_map).all() else None)
        for time, picture, anomaly_map in zip(times, clean, maps, strict=True)
    )


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_bytes())
    except FileNotFoundError as error:
        raise ThoradError(f"{path}: no such file. Name a folder of `thorad detect` or `thorad evaluate`.") from error
    except (OSError, ValueError) as error:
        raise ThoradError(f"{path}: can't be read ({error}). Was it copied whole?") from error
