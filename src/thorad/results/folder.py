"""A result folder: its layout, which no other room knows, and reading it, one case at a time.

    run.json                      what was run: options, command, date, versions, seconds, how many cases have each
                                  status, and how many files of the inputs were left out and why; its status is
                                  "running" until every case that was asked for has been tried
    cases.csv                     one line a case; its status is ok, warned (the message says why), refused (the model
                                  can't judge it: no score, no map, nothing but the reason) or failed (can't be read)
    shards/<i>-of-<n>.json        seconds that each part of the run took; 1-of-1 where it was not split
    cases/<name>/case.json        what cases.csv is made of, and the score of each slice of a volume; written last, so a
                                  case that has it is complete
    cases/<name>/scan.png         8-bit: the image as the model saw it, on the input's own grid
    cases/<name>/anomaly_map.npy  (H, W) float32 on that grid, raw
    cases/<name>/spread.npy       (H, W) float32: the map's standard deviation between draws; where there are several
    cases/<name>/pseudo_healthy.png  8-bit
    cases/<name>/overlay.png      the image with the map over it, one colour scale for the whole run
    cases/<name>/mask.png         255 where that map is above the threshold; where the run has one
    cases/<name>/judged.png       255 where the model judges: elsewhere the map's 0 says nothing
    cases/<name>/steps.npz        where asked for: timesteps (n,), clean (n, S, S) uint8, maps (n, S, S) float16 of the
                                  harmonised steps, on the model's grid; without such steps of all, and maps of NaN

A volume has the same pictures for each slice k, in the template's plane, and beside them, on its own grid:

    cases/<name>/slices/<k>/      the pictures above
    cases/<name>/overlay.png      those of all slices, with the patient's sides, heights and the colours' scale
    cases/<name>/anomaly_map.nii.gz, pseudo_healthy.nii.gz  float32, NaN where no slice was looked at
    cases/<name>/mask.nii.gz, judged.nii.gz  1 inside, 0 elsewhere
    cases/<name>/registration.json  the matrix from the volume's mm to the template's, and how well it fits
    cases/<name>/registration.png  the volume in the template's planes, to look at; both also of a refused volume

DICOM has objects of its own study beside all this, which do hold the patient's name, as a PACS needs it:

    cases/<name>/dicom/segmentation.dcm  the mask; where the run has a threshold
    cases/<name>/dicom/parametric_map.dcm  the map's numbers, of a volume
    cases/<name>/dicom/overlay/   the map over the scan, as Secondary Capture

The viewer adds to a volume planes.html, a page of its three planes.

Every file is there whole or not at all, so a run that was killed resumes where it stopped. Several processes may write
into one folder at the same time, each the cases of its own shard.

Shapes: H, W the image's own grid; S the model's grid.
"""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, Final, Literal

import numpy as np
import PIL.Image
from numpy.typing import NDArray
from pydantic import AliasChoices, BaseModel, Field, TypeAdapter, ValidationError

from thorad.datasets.cases import Case, read_cases
from thorad.errors import ThoradError
from thorad.io.images import read_mask
from thorad.io.tables import listing
from thorad.io.template import MNI_2009A, cut_axial
from thorad.io.volumes import read_volume
from thorad.pictures import Side
from thorad.records import current_options, model_title, same_pixels

Bytes8 = NDArray[np.uint8]
Finite = Annotated[float, Field(allow_inf_nan=False)]

RUN, TABLE, CASE, REPORT = "run.json", "cases.csv", "case.json", "report.html"
SCAN, MAP, SPREAD, PSEUDO_HEALTHY = "scan.png", "anomaly_map.npy", "spread.npy", "pseudo_healthy.png"
OVERLAY, MASK, JUDGED, STEPS = "overlay.png", "mask.png", "judged.png", "steps.npz"
VOLUME_MAP, VOLUME_PSEUDO_HEALTHY = "anomaly_map.nii.gz", "pseudo_healthy.nii.gz"
VOLUME_MASK, VOLUME_JUDGED = "mask.nii.gz", "judged.nii.gz"
REGISTRATION, REGISTRATION_PICTURE, PLANES = "registration.json", "registration.png", "planes.html"
FILES_OF_A_CASE: Final = (
    *(SCAN, MAP, SPREAD, PSEUDO_HEALTHY, OVERLAY, MASK, JUDGED, STEPS),
    *("*.nii.gz", REGISTRATION, REGISTRATION_PICTURE, PLANES),
    *("slices/*/*", "dicom/*.dcm", "dicom/overlay/*.dcm"),
)
"""Patterns of all files that a case may have, beside case.json."""

STATUSES: Final = ("ok", "warned", "refused", "failed")
"""Of cases, in the order of lists of them."""


@dataclass(frozen=True)
class FindingRecord:
    """As `thorad.records.Finding`; what some versions did not keep may be missing."""

    pixels: Annotated[int, Field(validation_alias=AliasChoices("pixels", "voxels"))]
    peak: Finite
    area_mm2: Finite | None = None
    volume_mm3: Finite | None = None
    peak_position: tuple[int, ...] = ()


@dataclass(frozen=True)
class CaseRecord:
    """What case.json says; of a case that failed or was refused only name, source and message."""

    name: str
    source: str
    """The file it came from."""
    folder: Path
    status: Literal["ok", "warned", "refused", "failed"]
    message: str
    """Why it is not ok; empty where it is."""
    score: Finite | None
    p_value: Finite | None = None
    findings: Sequence[FindingRecord] | None = None
    """None where the run has no threshold."""
    draw_agreement: Finite | None = None
    """Mean Dice of the masks of every two draws; None without several draws or without a threshold."""
    network_calls: int | None = None
    seconds: Finite | None = None
    pixels_sha256: str = ""
    """Of what was looked at, which tells the same scan under another name; empty in folders of earlier versions."""
    files: tuple[int, int, int] | None = None
    """`thorad.io.scans.Scan.state` of its scan when it was done; None in folders of earlier versions."""
    sizes: Mapping[str, int] = field(default_factory=dict)
    """{file: bytes}."""
    spacing_mm: tuple[Finite, Finite] | None = None
    """Pixel height and width of a picture, where known."""
    forced: bool = False
    """Whether it has a result though the model can't judge it, because that was asked for."""

    @property
    def done(self) -> bool:
        """Whether it has a result."""
        return self.status in ("ok", "warned")

    @property
    def finding_count(self) -> int | None:
        """Number of findings; None where the run has no threshold."""
        return None if self.findings is None else len(self.findings)

    @property
    def is_volume(self) -> bool:
        """Whether it is a volume, of which each slice has pictures."""
        return (self.folder / "slices").is_dir()

    @property
    def pixel_mm(self) -> float | None:
        """Side of its pictures' square pixels, mm; None where it isn't known, or they are not square."""
        height, width = (1.0, 1.0) if self.is_volume else self.spacing_mm or (0.0, 1.0)  # slices of the template: 1 mm
        return height if abs(height - width) < 0.01 * width else None

    @property
    def picture_folders(self) -> list[tuple[int | None, Path]]:
        """Index and folder of each slice of a volume, ascending; (None, the case's own folder) for an image."""
        inside = sorted((self.folder / "slices").iterdir()) if self.is_volume else []
        return [(int(each.name), each) for each in inside if each.name.isdecimal()] or [(None, self.folder)]


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
    judged: NDArray[np.bool_] | None = None
    """(H, W): where the model judges; None in folders of versions that did not keep it."""
    label: str = ""
    """`slice 95, z = +23 mm` of a volume, the method of an evaluation; empty for an image."""

    @property
    def shape(self) -> tuple[int, int]:
        """(H, W)."""
        return self.anomaly_map.shape[0], self.anomaly_map.shape[1]


@dataclass(frozen=True)
class ResultFolder:
    """A result folder of `thorad detect`."""

    path: Path
    run: Mapping[str, Any]
    cases: tuple[CaseRecord, ...]
    """Sorted by name, those without a result too."""

    @property
    def options(self) -> Mapping[str, Any]:
        """What decided on the results: method, model, seed ..."""
        return current_options(self.run["options"])

    @property
    def maximum(self) -> float:
        """The map value from which on colours no longer change."""
        return float(self.run["overlay_maximum"])

    @property
    def threshold(self) -> float | None:
        """Where the run's masks begin, in map units; None without."""
        threshold = self.options.get("threshold")
        if threshold is None:
            threshold = (self.options.get("calibration") or {}).get("threshold")
        return None if threshold is None else float(threshold)

    @property
    def false_positives(self) -> float | None:
        """Share of the healthy pixels above the threshold; None where it isn't a calibration's."""
        share = (self.options.get("calibration") or {}).get("false_positives")
        return None if share is None or self.threshold is None else float(share)

    @property
    def calibrated(self) -> bool:
        """Whether its scores have p-values; earlier versions kept no calibration beside a threshold of the method's."""
        return bool(self.options.get("calibration")) or any(case.p_value is not None for case in self.cases)

    @property
    def healthy_scores(self) -> tuple[float, ...]:
        """Of the calibration's healthy scans; empty where run.json does not hold them."""
        return tuple(float(score) for score in self.run.get("healthy_scores") or ())

    @property
    def side(self) -> Side:
        """Where its pictures of slices have the patient's right."""
        return "radiological" if self.run.get("side") == "radiological" else "neurological"

    @property
    def warnings(self) -> tuple[str, ...]:
        """What all results of the run may mean less for."""
        return tuple(self.run.get("warnings") or ())

    @property
    def same_pixels(self) -> str:
        """Which cases show the same; empty where none do."""
        return same_pixels({case.name: case.pixels_sha256 for case in self.cases if case.pixels_sha256})

    @property
    def with_status(self) -> Mapping[str, Sequence[CaseRecord]]:
        """The cases of each of `STATUSES`, by name."""
        return {status: [case for case in self.cases if case.status == status] for status in STATUSES}

    @property
    def method(self) -> str:
        """`thor (simplex)`."""
        return method_title(self.options)

    @property
    def heading(self) -> str:
        """What pages of it are called: its method, and its cases' number, or the name of the only one."""
        only = self.cases[0].name if len(self.cases) == 1 else f"{len(self.cases)} cases"
        return f"{self.method} on {only}"

    @property
    def date(self) -> str:
        """When it was run, or last resumed: `26 November 2026, 19:57`; empty where run.json does not say."""
        return date_of(self.run)

    @property
    def subtitle(self) -> str:
        """When, with which model and version, and the folder's name."""
        model, version = model_title(self.options), self.options.get("thorad", "?")
        facts = [self.date, f"model {model}", f"thorad {version}", f"folder {self.path.resolve().name}"]
        return " · ".join(filter(None, facts))

    def case(self, name: str) -> CaseRecord:
        """The case of this name.

        Raises:
            ThoradError: there is none, or it has no result.
        """
        for case in self.cases:
            if case.name == name:
                if not case.done:
                    what = "was refused" if case.status == "refused" else "failed"
                    raise ThoradError(f"{self.path}: the case {name} {what}: {case.message}")
                return case
        known = listing([case.name for case in self.cases])
        raise ThoradError(f"{self.path}: no case {name!r}. It holds {known}.")


class _Calibration(BaseModel):
    false_positives: Finite | None
    threshold: Finite | None
    scans: Annotated[int, Field(ge=1)]


class _Options(BaseModel):
    threshold: Finite | None = None
    draws: int = 1
    slices: list[int] | None = None
    model_sha256: str | None = None
    calibration: _Calibration | None = None


class _Run(BaseModel):
    """What is read of run.json; whatever else is there is only shown."""

    options: _Options
    overlay_maximum: Annotated[float, Field(gt=0, allow_inf_nan=False)]
    healthy_scores: list[Finite] | None = None
    left_out: dict[str, int] | None = None
    warnings: list[str] | None = None
    method: dict[str, str | float | None] | None = None
    command: str | None = None
    seconds: Finite = 0.0


_CASE: Final = TypeAdapter(CaseRecord)


def read_folder(path: Path) -> ResultFolder:
    """Read run.json and every case.json of a result folder.

    Raises:
        ThoradError: no result folder, no case in it, or a damaged file.
    """
    file = path / RUN
    try:
        run = json.loads(file.read_bytes())
        _Run.model_validate(run)
    except FileNotFoundError as error:
        raise ThoradError(f"{file}: no such file. Name a folder of `thorad detect` or `thorad evaluate`.") from error
    except ValidationError as error:
        raise ThoradError(
            f"{file}: not the run.json of a result folder ({_problem(error)}). Name a folder of `thorad detect`."
        ) from error
    except (OSError, ValueError, RecursionError) as error:
        raise ThoradError(f"{file}: can't be read ({error}). Was it copied whole?") from error
    folders = sorted((path / "cases").iterdir()) if (path / "cases").is_dir() else []
    cases = tuple(case for case in map(read_case, folders) if case is not None)
    if not cases:
        raise ThoradError(f"{path}: no case in it yet. Let `thorad detect` finish one first.")
    return ResultFolder(path, run, cases)


def read_case(folder: Path) -> CaseRecord | None:
    """Read a case's record; None where there is none, or no longer: another shard may just be trying the case again.

    Raises:
        ThoradError: a damaged file.
    """
    path = folder / CASE
    try:
        case = _CASE.validate_python({**json.loads(path.read_bytes()), "folder": folder})
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError, TypeError, RecursionError) as error:
        problem = _problem(error) if isinstance(error, ValidationError) else error
        raise ThoradError(f"{path}: damaged ({problem}). Delete it, and detect again.") from error
    if case.done and case.score is None:
        raise ThoradError(f"{path}: damaged (a result without a score). Delete it, and detect again.")
    # Earlier versions had no other status for what came with a warning.
    return replace(case, status="warned") if case.status == "ok" and case.message else case


def _problem(error: ValidationError) -> str:
    first = error.errors()[0]
    return f"{'.'.join(map(str, first['loc'])) or 'the whole of it'}: {first['msg']}"


def read_pictures(case: CaseRecord) -> list[Pictures]:
    """The pictures of a case that has a result: one of an image, one for each slice of a volume.

    Raises:
        ThoradError: a file is missing or damaged.
    """
    return [_pictures(folder, index) for index, folder in case.picture_folders]


def slice_label(index: int | None) -> str:
    """`slice 95, z = +23 mm` of the template; empty for an image."""
    return "" if index is None else f"slice {index}, {slice_height(index)}"


def slice_height(index: int) -> str:
    """Of an axial slice of the template: `z = +23 mm`."""
    return f"z = {MNI_2009A.origin_mm[2] + index:+g} mm"


def method_title(options: Mapping[str, Any]) -> str:
    """`thor (simplex)`: the method of a run or of an evaluation's result, with its noise where it draws any."""
    method, noise = current_options(options).get("method"), options.get("noise")
    return f"{method} ({noise})" if noise else str(method)


def date_of(run: Mapping[str, Any]) -> str:
    """`26 November 2026, 19:57` of a run.json; empty where it does not say, as those of earlier versions."""
    try:
        began = datetime.fromisoformat(run["date"])
    except (KeyError, ValueError, TypeError):
        return ""
    return f"{began.day} {began:%B %Y, %H:%M}"


def match_truth(folder: ResultFolder, table: Path) -> dict[str, Case]:
    """{case name: row of an evaluation table}, of those of a folder's cases that the table knows.

    By the image's file. Where that fits no case the results come from another machine: then by the case's name, else by
    the file's where table and folder have it once. By a name alone a healthy scan could get another one's lesion.

    Raises:
        ThoradError: as `read_cases`; no row fits any case.
    """
    rows = read_cases(table)
    by_file = {row.image.resolve(): row for row in rows}
    by_name = {row.name: row for row in rows}
    times = Counter(row.image.name for row in rows)
    cases = Counter(Path(case.source).name for case in folder.cases)
    by_file_name = {row.image.name: row for row in rows if times[row.image.name] == cases[row.image.name] == 1}
    found = {case.name: by_file.get(Path(case.source).resolve()) for case in folder.cases}
    if not any(found.values()):
        found = {case.name: by_name.get(case.name) or by_file_name.get(Path(case.source).name) for case in folder.cases}
    matched = {name: row for name, row in found.items() if row is not None}
    if not matched:
        raise ThoradError(
            f"{table}: none of its {len(rows)} images is a case of {folder.path}, whose cases are "
            f"{listing([case.name for case in folder.cases])}. Give the table of the images that were detected in."
        )
    return matched


def truth_of(row: Case, case: CaseRecord, pictures: Sequence[Pictures]) -> list[NDArray[np.bool_]]:
    """The lesions (H, W) in each picture of a case; nothing where the row says that it is healthy.

    The mask of a volume lies in the scan's space, on any grid, and is cut as the scan was.

    Raises:
        ThoradError: as `read_mask`; the mask of a volume can't be read, or the case's registration is missing.
    """
    if row.mask is None:
        return [np.zeros(picture.shape, np.bool_) for picture in pictures]
    if not case.is_volume:
        return [read_mask(row.mask, pictures[0].shape)]
    mask = read_volume(row.mask, constant=True)
    binary = replace(mask, voxels=(mask.voxels > 0).astype(np.float32))
    indices = [picture.slice_index for picture in pictures if picture.slice_index is not None]
    return list(cut_axial(binary, read_registration(case.folder), indices) > 0.5)


def read_registration(folder: Path) -> NDArray[np.float64]:
    """(4, 4): a volume's mm to the template's.

    Raises:
        ThoradError: it is missing or damaged.
    """
    path = folder / REGISTRATION
    try:
        to_template = np.array(json.loads(path.read_bytes())["to_template"], np.float64)
        if to_template.shape != (4, 4) or not np.isfinite(to_template).all():
            raise ValueError("to_template is no matrix of 4 x 4 numbers")
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise ThoradError(f"{path}: missing or damaged ({error}). Detect again.") from error
    return to_template


def _pictures(folder: Path, slice_index: int | None) -> Pictures:
    try:
        anomaly_map = np.load(folder / MAP, allow_pickle=False)
        mask, judged = (_mask(folder / name) for name in (MASK, JUDGED))
        overlay = _picture(folder / OVERLAY)
        if overlay is None or overlay.shape != (*anomaly_map.shape, 3):
            raise ThoradError(f"{folder / OVERLAY}: missing, or of another size than the map. Detect again.")
        return Pictures(
            slice_index=slice_index,
            anomaly_map=np.nan_to_num(anomaly_map.astype(np.float32), nan=0.0),
            scan=_picture(folder / SCAN),
            overlay=overlay,
            pseudo_healthy=_picture(folder / PSEUDO_HEALTHY),
            mask=mask,
            judged=judged,
            steps=_steps(folder / STEPS),
            label=slice_label(slice_index),
        )
    except ThoradError:
        raise
    except Exception as error:  # parsers raise nearly anything on damaged files
        raise ThoradError(f"{folder}: a picture is missing or damaged ({error}). Detect again.") from error


def _picture(path: Path) -> Bytes8 | None:
    if not path.is_file():
        return None
    with PIL.Image.open(path) as picture:
        return np.asarray(picture, np.uint8)


def _mask(path: Path) -> NDArray[np.bool_] | None:
    picture = _picture(path)
    return None if picture is None else picture > 0


def _steps(path: Path) -> tuple[StepPicture, ...]:
    if not path.is_file():
        return ()
    with np.load(path, allow_pickle=False) as kept:
        times, clean, maps = kept["timesteps"], kept["clean"], kept["maps"]
    return tuple(
        StepPicture(int(time), picture, anomaly_map.astype(np.float32) if np.isfinite(anomaly_map).all() else None)
        for time, picture, anomaly_map in zip(times, clean, maps, strict=True)
    )
