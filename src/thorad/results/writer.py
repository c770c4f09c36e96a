"""The layout of a result folder, which no other module knows.

    run.json                      what was run: options, versions, seconds, how many cases are done and failed; its
                                  status is "running" until every case that was asked for is done or failed
    cases.csv                     one line a case
    shards/<i>-of-<n>.json        seconds that each part of the run took; 1-of-1 where it was not split
    cases/<name>/case.json        what cases.csv is made of, and the score of each slice of a volume; written last, so a
                                  case that has it is complete
    cases/<name>/scan.png         8-bit: the image as the model saw it, on the input's own grid
    cases/<name>/anomaly_map.npy  (H, W) float32 on that grid, raw
    cases/<name>/pseudo_healthy.png  8-bit, where the method makes one
    cases/<name>/overlay.png      the image with the map over it, one colour scale for the whole run
    cases/<name>/mask.png         255 where that map is above the threshold; where the run has one
    cases/<name>/steps.npz        where asked for: timesteps (n,), clean (n, S, S) uint8, maps (n, S, S) float16 of the
                                  harmonised steps, on the model's grid; without such steps of all, and maps of NaN

A volume has the same pictures for each slice k, in the template's plane, and beside them, on its own grid:

    cases/<name>/slices/<k>/      the pictures above
    cases/<name>/overlay.png      those of all slices
    cases/<name>/anomaly_map.nii.gz, pseudo_healthy.nii.gz  float32, NaN where no slice was looked at; mask.nii.gz
    cases/<name>/registration.json  the matrix from the volume's mm to the template's, and how well it fits

DICOM has objects of its own study beside all this, which do hold the patient's name, as a PACS needs it:

    cases/<name>/dicom/segmentation.dcm  the mask; where the run has a threshold
    cases/<name>/dicom/parametric_map.dcm  the map's numbers, of a volume
    cases/<name>/dicom/overlay/   the map over the scan, as Secondary Capture

Every file is there whole or not at all, so a run that was killed goes on where it stopped. Several processes may write
into one folder at the same time, each the cases of its own shard.
"""

import io
import json
import os
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from thorad import __version__
from thorad.errors import ThoradError
from thorad.io.atomic import write_atomic
from thorad.io.dicom import Series, without_identity
from thorad.io.images import write_npy, write_png8
from thorad.io.shards import Shard
from thorad.io.tables import listing, write_table
from thorad.io.volumes import Volume, write_nifti
from thorad.pictures import montage, overlay

COLUMNS = ("name", "source", "score", "p_value", "findings", "network_calls", "seconds", "status", "message")
"""Of cases.csv, where `findings` is their number; case.json lists them, each as `thorad.findings` has it."""

SCAN, MAP, PSEUDO_HEALTHY = "scan.png", "anomaly_map.npy", "pseudo_healthy.png"
OVERLAY, MASK, STEPS = "overlay.png", "mask.png", "steps.npz"
OF_A_CASE = (
    *(SCAN, MAP, PSEUDO_HEALTHY, OVERLAY, MASK, STEPS, "*.nii.gz", "registration.json"),
    *("slices/*/*", "dicom/*.dcm", "dicom/overlay/*.dcm"),
)
"""All files that a case may have, beside case.json."""


class Judged(Protocol):
    """What is said of any case, as `thorad.Detection` has it."""

    @property
    def name(self) -> str:
        """Case id: the name of its folder."""

    @property
    def source(self) -> str:
        """The file it came from."""

    @property
    def score(self) -> float:
        """Of the whole image."""

    @property
    def network_calls(self) -> int:
        """Spent on this case."""

    @property
    def seconds(self) -> float:
        """Spent on this case."""

    @property
    def p_value(self) -> float | None:
        """Of the score among healthy scans, or None without a calibration."""

    @property
    def findings(self) -> Sequence[Any] | None:
        """The mask's components, as dataclasses, or None."""


class Result(Judged, Protocol):
    """What one picture leaves."""

    @property
    def image(self) -> NDArray[Any]:
        """(H, W) in [0, 1]."""

    @property
    def anomaly_map(self) -> NDArray[np.float32]:
        """(H, W) >= 0, on the image's own grid."""

    @property
    def pseudo_healthy(self) -> NDArray[Any] | None:
        """(H, W) in [0, 1], or None."""

    @property
    def mask(self) -> NDArray[np.bool_] | None:
        """(H, W), the map above the threshold, or None."""

    @property
    def steps(self) -> Sequence[Any]:
        """With timestep, clean (S, S) in [0, 1] and anomaly_map (S, S) or None; empty where nobody asked for them."""


class VolumeResult(Judged, Protocol):
    """What one volume leaves, as `thorad.volume_detection.VolumeDetection` has it."""

    @property
    def volume(self) -> Volume:
        """As it was read."""

    @property
    def image(self) -> NDArray[Any]:
        """(I, J, K) in [0, 1], to look at."""

    @property
    def indices(self) -> Sequence[int]:
        """Of the slices that were looked at."""

    @property
    def slices(self) -> Sequence[Result]:
        """One for each of them."""

    @property
    def anomaly_map(self) -> NDArray[np.float32]:
        """(I, J, K), NaN where no slice was looked at."""

    @property
    def pseudo_healthy(self) -> NDArray[np.float32]:
        """(I, J, K) in [0, 1], NaN as above."""

    @property
    def mask(self) -> NDArray[np.bool_] | None:
        """(I, J, K), or None."""

    @property
    def where(self) -> str:
        """The slices, in few words, for headers."""

    @property
    def warnings(self) -> Sequence[str]:
        """Why the result may mean less than it looks like."""

    @property
    def registration(self) -> Any:
        """With to_template (4, 4), overlap, similarity and warning."""


@dataclass(frozen=True, slots=True)
class Case:
    """What the folder says of a case: its line of cases.csv. Of one that failed only name, source and message."""

    name: str
    source: str
    score: float | None
    p_value: float | None
    findings: int | None
    network_calls: int | None
    seconds: float | None
    status: str
    """ok or failed."""
    message: str
    sizes: Mapping[str, int]
    """{file: bytes}."""


class ResultWriter:
    """Write the cases of one run, or of one that was interrupted and goes on.

    Args:
        out: the result folder; made if need be.
        run: goes to run.json. `run["options"]` holds all that decides on the results (method, seed, the model's hash);
            a folder is continued only with the same options. The rest (versions, date) may differ.
        overlay_maximum: value of the anomaly map that gets the strongest colour: one for the run, so cases compare.
        shard: the part of the run's cases that this process writes.

    Raises:
        ThoradError: the folder can't be written, or holds the results of other options.
    """

    def __init__(self, out: Path, run: dict[str, Any], *, overlay_maximum: float, shard: Shard | None = None) -> None:
        if overlay_maximum <= 0:
            raise ValueError(f"overlay_maximum must be above 0, found {overlay_maximum}")
        self._out = out
        self._overlay_maximum = overlay_maximum
        # As JSON gives it back: tuples are lists, paths are text.
        self._run: dict[str, Any] = json.loads(_json({**run, "overlay_maximum": overlay_maximum}))
        self.shard = shard or Shard()
        self._began = datetime.now().astimezone()
        self._refuse_other_options()
        self._seconds_before = self._seconds().get(self._shard_file.name, 0.0)
        self._write_run(status="running")

    def cases(self, names: Iterable[str] | None = None) -> Iterator[Case]:
        """The cases that are there, done or failed, sorted by name; read one at a time, for there may be thousands.

        Args:
            names: only these; None for all in the folder, those of other shards too.

        Raises:
            ThoradError: a damaged case.json.
        """
        for name in sorted(self._names() if names is None else names):
            case = self._read_case(name)
            if case is not None:
                yield case

    def is_whole(self, case: Case) -> bool:
        """Whether all files of a case are there in full length."""
        folder = self.case_folder(case.name)
        return all(
            (folder / file).is_file() and (folder / file).stat().st_size == size for file, size in case.sizes.items()
        )

    def is_stale(self, name: str, files: Sequence[Path]) -> bool:
        """Whether one of a case's files was changed after the case was done."""
        case = self.case_folder(name) / "case.json"
        return case.is_file() and any(file.stat().st_mtime > case.stat().st_mtime for file in files)

    def case_folder(self, name: str) -> Path:
        """Where the files of a case lie."""
        return self._out / "cases" / name

    def write(self, result: Result, *, series: Series | None = None, warnings: Sequence[str] = ()) -> list[str]:
        """Write the case of one picture.

        Args:
            result: what was found.
            series: the DICOM file that the picture came from; its case gets DICOM objects, too.
            warnings: why the result may mean less than it looks like; they become the case's message.

        Returns:
            The warnings, and why DICOM objects are missing, where the source doesn't allow them.

        Raises:
            ThoradError: the disk or the permissions don't allow it.
        """
        folder = self._clear(result.name)
        self._write_pictures(folder, result)
        told = list(warnings)
        if series is not None:
            told += self._write_dicom(folder / "dicom", series, result)
        self._write_done(folder, result, told)
        return told

    def write_volume(self, result: VolumeResult, *, series: Series | None = None) -> list[str]:
        """Write the case of one volume; its warnings become its message.

        Args:
            result: what was found.
            series: the DICOM series that the volume came from; its case gets DICOM objects, too.

        Returns:
            As `write`.

        Raises:
            ThoradError: as `write`.
        """
        folder = self._clear(result.name)
        overlays = []
        for index, one in zip(result.indices, result.slices, strict=True):
            self._write_pictures(folder / "slices" / f"{index:03d}", one)
            overlays.append(overlay(one.image, one.anomaly_map, self._overlay_maximum))
        write_png8(folder / OVERLAY, montage(overlays))
        where, volume = result.where, result.volume
        write_nifti(
            folder / "anomaly_map.nii.gz", result.anomaly_map, volume, f"thorad anomaly map; NaN outside {where}"
        )
        healthy = f"thorad pseudo-healthy; NaN outside {where}"
        write_nifti(folder / "pseudo_healthy.nii.gz", result.pseudo_healthy, volume, healthy)
        if result.mask is not None:
            mask = result.mask.astype(np.uint8)
            write_nifti(folder / "mask.nii.gz", mask, volume, f"thorad mask; 0 also where not looked: outside {where}")
        registration = result.registration
        content = {
            "to_template": registration.to_template.tolist(),
            "overlap": registration.overlap,
            "similarity": registration.similarity,
            "slices": list(result.indices),
        }
        write_atomic(folder / "registration.json", _json(content))
        told = list(result.warnings)
        if series is not None:
            told += self._write_dicom(folder / "dicom", series, result)
        slices = [
            {"index": index, "score": float(one.score), "p_value": one.p_value}
            for index, one in zip(result.indices, result.slices, strict=True)
        ]
        self._write_done(folder, result, told, slices=slices)
        return told

    def _write_pictures(self, folder: Path, result: Result) -> None:
        write_png8(folder / SCAN, result.image)
        write_npy(folder / MAP, result.anomaly_map.astype(np.float32))
        if result.pseudo_healthy is not None:
            write_png8(folder / PSEUDO_HEALTHY, result.pseudo_healthy)
        write_png8(folder / OVERLAY, overlay(result.image, result.anomaly_map, self._overlay_maximum))
        if result.mask is not None:
            write_png8(folder / MASK, np.where(result.mask, 255, 0).astype(np.uint8))
        if result.steps:
            write_atomic(folder / STEPS, _steps(result.steps))

    def _write_dicom(self, folder: Path, series: Series, result: Result | VolumeResult) -> list[str]:
        """Write the DICOM objects; returns why not, where the source doesn't allow them: the rest is still of use."""
        from thorad.results.dicom import (  # it takes its colours from here
            Making,
            overlay_pictures,
            write_parametric_map,
            write_secondary_capture,
            write_segmentation,
        )

        options, anomaly_map = self._run["options"], result.anomaly_map
        making = Making(
            "thorad anomaly map, research use only",
            f"{options['method']}, {options['model']}",
            __version__,
            self._began,
        )
        try:
            pictures = overlay_pictures(result.image, anomaly_map, self._overlay_maximum)
            write_secondary_capture(folder / "overlay", pictures, series, making)
            if anomaly_map.ndim == 3:
                write_parametric_map(folder / "parametric_map.dcm", anomaly_map, series, making)
            if result.mask is not None:
                write_segmentation(folder / "segmentation.dcm", result.mask, series, making)
        except ThoradError as error:
            return [f"Some DICOM objects are missing: {without_identity(str(error), series)}"]
        return []

    def _write_done(self, folder: Path, result: Judged, warnings: Sequence[str], **more: Any) -> None:
        files = sorted({file for pattern in OF_A_CASE for file in folder.glob(pattern)})
        self._write_case(
            folder,
            name=result.name,
            source=result.source,
            score=float(result.score),
            p_value=result.p_value,
            findings=None if result.findings is None else [asdict(finding) for finding in result.findings],
            network_calls=int(result.network_calls),
            seconds=float(result.seconds),
            status="ok",
            message=" ".join(warnings),
            sizes={file.relative_to(folder).as_posix(): file.stat().st_size for file in files},
            **more,
        )

    def fail(self, name: str, source: str, message: str) -> None:
        """Record that a case failed, and why. It is tried again when the run goes on.

        Raises:
            ThoradError: the disk or the permissions don't allow it.
        """
        self._write_case(
            self._clear(name),
            name=name,
            source=source,
            score=None,
            p_value=None,
            findings=None,
            network_calls=None,
            seconds=None,
            status="failed",
            message=message,
            sizes={},
        )

    def close(self, seconds: float, asked: Collection[str] = ()) -> None:
        """Write cases.csv, from all cases in the folder, and the final run.json.

        Args:
            seconds: wall time of this run; run.json holds the sum with those of the runs it continues and of the
                other shards.
            asked: the names of all cases of the run, those of other shards too: it is finished when all are there.

        Raises:
            ThoradError: the disk or the permissions don't allow it.
        """
        write_atomic(self._shard_file, _json({"seconds": self._seconds_before + seconds}))
        # Two shards may end at once, and the one that read the cases first may write the table last. So whoever has
        # written looks whether another one ended since it began to read.
        ended = None
        while ended != self._seconds():
            ended = self._seconds()
            self._write_table(set(asked))

    def _write_table(self, missing: set[str]) -> None:
        rows: list[dict[str, object]] = []
        counts = {"ok": 0, "failed": 0}
        for case in self.cases():
            rows.append({column: getattr(case, column) for column in COLUMNS})
            counts[case.status] += 1
            missing.discard(case.name)
        write_table(self._out / "cases.csv", COLUMNS, rows)
        self._write_run(status="running" if missing else "finished", cases=counts)

    def _refuse_other_options(self) -> None:
        """Compare with run.json of the run that is to go on, if there is one."""
        path = self._out / "run.json"
        # Asked first: another shard, that starts at this moment, writes run.json before its first case.
        has_cases = (self._out / "cases").exists()
        try:
            before = json.loads(path.read_bytes())
            options = {**before["options"], "overlay_maximum": before["overlay_maximum"]}
        except FileNotFoundError:
            if has_cases:
                raise ThoradError(
                    f"{self._out}: has a folder cases, but no run.json says how they were made. Choose another --out."
                ) from None
            return
        except NotADirectoryError as error:
            raise ThoradError(f"{self._out}: a file stands where a folder is needed. Choose another --out.") from error
        except OSError as error:
            raise ThoradError(f"{path}: can't be read ({error.strerror}). Choose another --out.") from error
        except (ValueError, KeyError, TypeError) as error:
            raise ThoradError(f"{path}: not the run.json of a result folder. Choose another --out.") from error
        wanted = {**self._run["options"], "overlay_maximum": self._run["overlay_maximum"]}
        different = [
            f"{name} (there {options.get(name)!r}, now {wanted.get(name)!r})"
            for name in sorted(options.keys() | wanted.keys())
            if options.get(name) != wanted.get(name)
        ]
        if different:
            raise ThoradError(
                f"{self._out}: holds results of other options: {listing(different)}. "
                "Choose another --out, or the same options to go on with it."
            )

    @property
    def _shard_file(self) -> Path:
        return self._out / "shards" / f"{self.shard.index}-of-{self.shard.count}.json"

    def _seconds(self) -> dict[str, float]:
        """{file of a shard that has ended: its seconds}."""
        found = {}
        for path in sorted(self._shard_file.parent.glob("*-of-*.json")):
            try:
                found[path.name] = float(json.loads(path.read_bytes())["seconds"])
            except (OSError, ValueError, KeyError, TypeError) as error:
                raise ThoradError(f"{path}: damaged ({error}). Delete it; no result is lost.") from error
        return found

    def _write_run(self, **state: Any) -> None:
        write_atomic(self._out / "run.json", _json({**self._run, **state, "seconds": sum(self._seconds().values())}))

    def _clear(self, name: str) -> Path:
        """The case's folder without what an interrupted or failed try has left; case.json goes first."""
        if not name or name.startswith(".") or Path(name).name != name:
            raise ValueError(f"a case's name must be usable as a folder's name, found {name!r}")
        folder = self.case_folder(name)
        try:
            (folder / "case.json").unlink(missing_ok=True)
            for file in [file for pattern in OF_A_CASE for file in folder.glob(pattern)]:
                file.unlink(missing_ok=True)
        except OSError as error:
            raise ThoradError(f"{folder}: can't be written ({error.strerror}). Choose another --out.") from error
        return folder

    def _write_case(self, folder: Path, **case: Any) -> None:
        write_atomic(folder / "case.json", _json(case))

    def _names(self) -> list[str]:
        try:
            return os.listdir(self._out / "cases")  # noqa: PTH208 - names, not paths
        except FileNotFoundError:
            return []

    def _read_case(self, name: str) -> Case | None:
        """None where there is no case.json, or no longer: the case's own shard may just be trying it again."""
        path = self.case_folder(name) / "case.json"
        try:
            # Results that were written before there were calibrations have neither of the two.
            case = {"p_value": None, "findings": None, **json.loads(path.read_bytes())}
            case["findings"] = None if case["findings"] is None else len(case["findings"])
            return Case(**{key: case[key] for key in (*COLUMNS, "sizes")})
        except (FileNotFoundError, NotADirectoryError):
            return None
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ThoradError(f"{path}: damaged ({error}). Delete it, and the case is done again.") from error


def _steps(steps: Sequence[Any]) -> bytes:
    kept = [step for step in steps if step.anomaly_map is not None] or list(steps)
    maps = [np.full_like(step.clean, np.nan) if step.anomaly_map is None else step.anomaly_map for step in kept]
    content = io.BytesIO()
    np.savez_compressed(
        content,
        timesteps=np.array([step.timestep for step in kept]),
        clean=np.stack([np.rint(np.clip(step.clean, 0, 1) * 255).astype(np.uint8) for step in kept]),
        maps=np.stack(maps).astype(np.float16),
    )
    return content.getvalue()


def _json(content: dict[str, Any]) -> bytes:
    return (json.dumps(content, indent=2, default=str) + "\n").encode()
