"""Writing a result folder, new or of a run that resumes; `thorad.results.folder` says what is in it."""

import io
import json
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import Any, Final

import numpy as np

from thorad import __version__
from thorad.check import Check
from thorad.errors import ThoradError
from thorad.io.atomic import write_atomic
from thorad.io.dicom import Series, without_identity
from thorad.io.images import write_npy, write_png8
from thorad.io.registration import Registration
from thorad.io.registration_picture import registration_picture
from thorad.io.shards import Shard
from thorad.io.tables import listing, write_table
from thorad.io.template import MNI_2009A
from thorad.io.volumes import write_nifti
from thorad.pictures import Side, montage, overlay, template_slice, three_planes
from thorad.records import (
    Detection,
    Finding,
    StepPictures,
    VolumeDetection,
    current_options,
    model_title,
    pixels_sha256,
)
from thorad.results import folder as layout
from thorad.results.dicom import (
    DerivationInfo,
    overlay_pictures,
    write_parametric_map,
    write_secondary_capture,
    write_segmentation,
)
from thorad.results.folder import CaseRecord, read_case

COLUMNS: Final = (
    *("name", "source", "score", "p_value", "findings", "draw_agreement"),
    *("network_calls", "seconds", "status", "message"),
)
"""Of cases.csv, where `findings` is their number; case.json lists them."""


class ResultWriter:
    """Write the cases of one run, or of one that was interrupted and resumes.

    Every method raises a ThoradError where the disk or the permissions don't allow its files, or one is damaged.

    Args:
        out: the result folder; made if need be.
        run: goes to run.json. `run["options"]` holds all that decides on the results (method, seed, the model's hash);
            a folder is continued only with the same options. The rest (versions, date) may differ.
        overlay_maximum: value of the anomaly map that gets the strongest colour: one for the run, so cases compare.
        shard: the part of the run's cases that this process writes.
        side: where the picture of a volume's slices has the patient's right; run.json keeps it, for all other pages.

    Raises:
        ThoradError: the folder can't be written, or holds the results of other options.
    """

    def __init__(
        self,
        out: Path,
        run: dict[str, Any],
        *,
        overlay_maximum: float,
        shard: Shard | None = None,
        side: Side = "neurological",
    ) -> None:
        if overlay_maximum <= 0:
            raise ValueError(f"overlay_maximum must be above 0, found {overlay_maximum}")
        self._out = out
        self._overlay_maximum = overlay_maximum
        # As JSON gives it back: tuples are lists, paths are text.
        self._run: dict[str, Any] = json.loads(_json({**run, "overlay_maximum": overlay_maximum, "side": side}))
        self.shard, self._side = shard or Shard(), side
        self._began = datetime.now().astimezone()
        self._refuse_other_options()
        self._seconds_before = self._seconds().get(self._shard_file.name, 0.0)
        self._write_run(status="running")

    def cases(self, names: Iterable[str] | None = None) -> Iterator[CaseRecord]:
        """The cases that are there, with a result or without, by name; read one at a time, for there may be thousands.

        Only those of these names; None for all in the folder, those of other shards too.
        """
        for name in sorted((path.name for path in (self._out / "cases").glob("*")) if names is None else names):
            case = read_case(self.case_folder(name))
            if case is not None:
                yield case

    def is_whole(self, case: CaseRecord) -> bool:
        """Whether all files of a case are there in full length."""
        files = [(self.case_folder(case.name) / file, size) for file, size in case.sizes.items()]
        return bool(files) and all(file.is_file() and file.stat().st_size == size for file, size in files)

    def case_folder(self, name: str) -> Path:
        """Where the files of a case lie."""
        return self._out / "cases" / name

    def write(
        self, result: Detection, *, series: Series | None = None, state: tuple[int, int, int] | None = None
    ) -> CaseRecord:
        """Write the case of one picture; `result.check` becomes its status and message.

        Args:
            result: what was found.
            series: the DICOM file that the picture came from; its case gets DICOM objects, too.
            state: of its scan (`thorad.io.scans.Scan.state`), by which a resumed run sees that it is another one.

        Returns:
            Its record: warned also where the source doesn't allow the DICOM objects.
        """
        folder = self._clear(result.name)
        self._write_pictures(folder, result)
        return self._write_done(folder, result, series, spacing_mm=result.spacing, files=state)

    def write_volume(
        self, result: VolumeDetection, *, series: Series | None = None, state: tuple[int, int, int] | None = None
    ) -> CaseRecord:
        """Write the case of one volume, as `write`."""
        folder = self._clear(result.name)
        slices = list(zip(result.indices, result.slices, strict=True))
        for index, detection in slices:
            self._write_pictures(folder / "slices" / f"{index:03d}", detection)
        overlays = [
            template_slice(
                overlay(each.image, each.anomaly_map, self._overlay_maximum),
                layout.slice_height(index),
                self._overlay_maximum,
                self._side,
            )
            for index, each in slices
        ]
        write_png8(folder / layout.OVERLAY, montage(overlays))
        _write_volumes(folder, result)
        _write_registration(folder, result.registration, result.indices)
        scores = [{"index": index, "score": float(each.score), "p_value": each.p_value} for index, each in slices]
        return self._write_done(folder, result, series, slices=scores, files=state)

    def refuse(
        self,
        name: str,
        source: str,
        check: Check,
        registration: Registration | None = None,
        indices: Sequence[int] = (),
        state: tuple[int, int, int] | None = None,
    ) -> CaseRecord:
        """Record that the model can't judge a case, and why: no result, of an earlier try neither.

        Of a volume that got so far its registration is kept, with the indices of its slices.
        """
        folder = self._clear(name)
        if registration is not None:
            _write_registration(folder, registration, indices)
        content: dict[str, Any] = {"status": "refused", "message": check.message, "files": state}
        return self._write_case(folder, name=name, source=source, **content)

    def fail(self, name: str, source: str, message: str) -> CaseRecord:
        """Record that a case failed, and why. It is tried again when the run resumes."""
        return self._write_case(self._clear(name), name=name, source=source, status="failed", message=message)

    def _write_pictures(self, folder: Path, result: Detection) -> None:
        write_png8(folder / layout.SCAN, result.image)
        write_npy(folder / layout.MAP, result.anomaly_map.astype(np.float32))
        if result.spread is not None:
            write_npy(folder / layout.SPREAD, result.spread)
        write_png8(folder / layout.PSEUDO_HEALTHY, result.pseudo_healthy)
        write_png8(folder / layout.OVERLAY, overlay(result.image, result.anomaly_map, self._overlay_maximum))
        for name, where in ((layout.MASK, result.mask), (layout.JUDGED, result.judged)):
            if where is not None:
                write_png8(folder / name, np.where(where, 255, 0).astype(np.uint8))
        if result.steps:
            write_atomic(folder / layout.STEPS, _steps(result.steps))

    def _write_dicom(self, folder: Path, series: Series, result: Detection | VolumeDetection) -> Check:
        """Write the objects of a DICOM source; warns where some are missing, for the rest is still of use."""
        algorithm = f"{self._run['options']['method']}, {model_title(self._run['options'])}"
        check = result.check + Check(warnings=tuple(self._run.get("warnings", ())))
        reason = _message(check) if check.refusals else f"warning: {check.message}" if check.warnings else ""
        derivation = DerivationInfo(algorithm, __version__, self._began, reason)
        try:
            pictures = overlay_pictures(result.image, result.anomaly_map, self._overlay_maximum)
            write_secondary_capture(folder / "overlay", pictures, series, derivation, maximum=self._overlay_maximum)
            if isinstance(result, VolumeDetection):
                write_parametric_map(folder / "parametric_map.dcm", result.anomaly_map, series, derivation)
            if result.mask is not None:
                write_segmentation(folder / "segmentation.dcm", result.mask, series, derivation)
        except ThoradError as error:
            return Check(warnings=(f"some DICOM objects are missing: {without_identity(str(error), series)}",))
        return Check()

    def _write_done(
        self, folder: Path, result: Detection | VolumeDetection, series: Series | None, **more: Any
    ) -> CaseRecord:
        check = result.check
        if series is not None:
            check += self._write_dicom(folder / "dicom", series, result)
        return self._write_case(
            folder,
            name=result.name,
            source=result.source,
            score=float(result.score),
            p_value=result.p_value,
            findings=None if result.findings is None else [_finding(finding) for finding in result.findings],
            draw_agreement=result.draw_agreement,
            network_calls=int(result.network_calls),
            pixels_sha256=pixels_sha256(result.volume.voxels if isinstance(result, VolumeDetection) else result.image),
            seconds=float(result.seconds),
            status="warned" if check.reasons else "ok",
            message=_message(check),
            forced=bool(check.refusals),
            **more,
        )

    def _write_case(self, folder: Path, **content: Any) -> CaseRecord:
        """case.json, after all other files of the case."""
        files = sorted({file for pattern in layout.FILES_OF_A_CASE for file in folder.glob(pattern)})
        sizes = {file.relative_to(folder).as_posix(): file.stat().st_size for file in files}
        write_atomic(folder / layout.CASE, _json({**dict.fromkeys(COLUMNS), **content, "sizes": sizes}))
        case = read_case(folder)
        assert case is not None
        return case

    def close(self, seconds: float, asked: Collection[str] = ()) -> None:
        """Write cases.csv, from all cases in the folder, and the final run.json.

        Args:
            seconds: wall time of this run; run.json holds the sum with those of the runs it continues and of the
                other shards.
            asked: the names of all cases of the run, those of other shards too: it is finished when all are there.
        """
        write_atomic(self._shard_file, _json({"seconds": self._seconds_before + seconds}))
        # Two shards may end at once, and the first to read the cases may be the last to write the table. So whoever has
        # written checks whether another shard ended since it began to read.
        ended = None
        while ended != self._seconds():
            ended = self._seconds()
            self._write_table(set(asked))

    def _write_table(self, missing: set[str]) -> None:
        rows: list[dict[str, object]] = []
        counts = dict.fromkeys(layout.STATUSES, 0)
        for case in self.cases():
            rows.append({column: getattr(case, column) for column in COLUMNS} | {"findings": case.finding_count})
            counts[case.status] += 1
            missing.discard(case.name)
        write_table(self._out / layout.TABLE, COLUMNS, rows)
        self._write_run(status="running" if missing else "finished", cases=counts)

    def _refuse_other_options(self) -> None:
        """Compare with run.json of the run that is to resume, if there is one."""
        # Asked first: another shard, that starts at this moment, writes run.json before its first case.
        has_cases = (self._out / "cases").exists()
        options = self._options_before()
        if options is None and has_cases:
            raise ThoradError(
                f"{self._out}: holds cases, but no run.json says how they were made. Choose another --out."
            )
        if options is None:
            return
        wanted = current_options(self._run["options"]) | {name: self._run[name] for name in ("overlay_maximum", "side")}
        different = [
            f"{name} (there {options.get(name)!r}, now {wanted.get(name)!r})"
            for name in sorted(options.keys() | wanted.keys())
            if options.get(name) != wanted.get(name)
        ]
        if different:
            raise ThoradError(
                f"{self._out}: holds results of other options: {listing(different)}. "
                "Choose another --out, or the same options to resume it."
            )

    def _options_before(self) -> Mapping[str, Any] | None:
        """Options of the run in the folder; None where there is none."""
        path = self._out / layout.RUN
        try:
            before = json.loads(path.read_bytes())
            options = {**current_options(before["options"]), "overlay_maximum": before["overlay_maximum"]}
            return {**options, "side": before.get("side", self._side)}  # earlier versions did not keep it
        except FileNotFoundError:
            return None
        except NotADirectoryError as error:
            raise ThoradError(f"{self._out}: a file stands where a folder is needed. Choose another --out.") from error
        except OSError as error:
            raise ThoradError(f"{path}: can't be read ({error.strerror}). Choose another --out.") from error
        except (ValueError, KeyError, TypeError) as error:
            raise ThoradError(f"{path}: not the run.json of a result folder. Choose another --out.") from error

    @property
    def _shard_file(self) -> Path:
        return self._out / "shards" / f"{self.shard.index}-of-{self.shard.count}.json"

    def _seconds(self) -> dict[str, float]:
        """{file of a shard that has ended: its seconds}."""
        seconds = {}
        for path in sorted(self._shard_file.parent.glob("*-of-*.json")):
            try:
                seconds[path.name] = float(json.loads(path.read_bytes())["seconds"])
            except (OSError, ValueError, KeyError, TypeError) as error:
                raise ThoradError(f"{path}: damaged ({error}). Delete it; no result is lost.") from error
        return seconds

    def _write_run(self, **state: Any) -> None:
        seconds = sum(self._seconds().values())
        write_atomic(self._out / layout.RUN, _json({**self._run, **state, "seconds": seconds}))

    def _clear(self, name: str) -> Path:
        """The case's folder without what an interrupted or failed try has left; case.json goes first."""
        if not name or name.startswith(".") or Path(name).name != name:
            raise ValueError(f"a case's name must be usable as a folder's name, found {name!r}")
        folder = self.case_folder(name)
        try:
            (folder / layout.CASE).unlink(missing_ok=True)
            for file in [file for pattern in layout.FILES_OF_A_CASE for file in folder.glob(pattern)]:
                file.unlink(missing_ok=True)
        except OSError as error:
            raise ThoradError(f"{folder}: can't be written ({error.strerror}). Choose another --out.") from error
        return folder


def _write_volumes(folder: Path, result: VolumeDetection) -> None:
    """What was found on the volume's own grid."""
    where, volume = result.where, result.volume
    thorad = "FORCED: thorad" if result.check.refusals else "thorad"
    write_nifti(folder / layout.VOLUME_MAP, result.anomaly_map, volume, f"{thorad} anomaly map; NaN outside {where}")
    healthy = f"{thorad} pseudo-healthy; NaN outside {where}"
    write_nifti(folder / layout.VOLUME_PSEUDO_HEALTHY, result.pseudo_healthy, volume, healthy)
    if result.mask is not None:
        about = f"{thorad} mask; 0 also where not looked: outside {where}"
        write_nifti(folder / layout.VOLUME_MASK, result.mask.astype(np.uint8), volume, about)
    judged = f"{thorad}: 1 where the model judges, in {where}"
    write_nifti(folder / layout.VOLUME_JUDGED, result.judged, volume, judged)


def _write_registration(folder: Path, registration: Registration, indices: Sequence[int]) -> None:
    """How a volume lies in the template, in figures and to look at, in the plane of the middle one of its slices."""
    content = {
        "to_template": registration.to_template.tolist(),
        "overlap": registration.overlap,
        "similarity": registration.similarity,
        "slices": list(indices),
    }
    write_atomic(folder / layout.REGISTRATION, _json(content))
    middle = [indices[len(indices) // 2]] if indices else []
    picture = three_planes(registration_picture(registration, *middle), MNI_2009A.shape)
    write_png8(folder / layout.REGISTRATION_PICTURE, picture)


def _finding(finding: Finding) -> dict[str, Any]:
    content = asdict(finding)
    return content if finding.volume_mm3 is None else {"voxels": content.pop("pixels"), **content}


def _message(check: Check) -> str:
    return f"forced: {check.message}" if check.refusals else check.message


def _steps(steps: Sequence[StepPictures]) -> bytes:
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


def _json(content: Mapping[str, Any]) -> bytes:
    return (json.dumps(content, indent=2, default=str) + "\n").encode()
