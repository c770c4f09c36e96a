"""Detection over files: in batches, one bad file never loses the others, a killed run resumes where it stopped."""

from __future__ import annotations

import json
import platform
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import datetime
from importlib.metadata import version
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import torch

from thorad.check import Check, RefusedError
from thorad.detector import Detector, OnStep
from thorad.errors import ThoradError
from thorad.evaluation.evaluate import baseline_warning
from thorad.executor import Executor, here, wait_for
from thorad.io.atomic import write_atomic
from thorad.io.images import Image
from thorad.io.scans import Scan, read_picture
from thorad.io.shards import Shard
from thorad.io.slices import images_of
from thorad.io.tables import listing
from thorad.io.volumes import Volume
from thorad.methods import METHODS
from thorad.pictures import Side
from thorad.records import Detection, VolumeDetection
from thorad.results.dicom import import_highdicom
from thorad.results.folder import CASE, REPORT, STEPS, CaseRecord
from thorad.results.writer import ResultWriter
from thorad.volume_detection import RefusedVolumeError, detect_volume

Progress = Callable[[int, int], None]
"""Called with (cases that have ended, however, and cases in all), first with those of an earlier run."""


class Verdict(NamedTuple):
    """How a score and a map compare with healthy ones."""

    p_value: float | None  # None where the model isn't calibrated
    finding_count: int | None  # None where there is no threshold
    draw_agreement: float | None  # None where there is no threshold or one draw


@dataclass
class RunSummary:
    """The cases of a run, or of its shard, and how they ended."""

    done: dict[str, float] = field(default_factory=dict)
    """{name: score}, the highest first, with those that an earlier run has done."""
    verdicts: dict[str, Verdict] = field(default_factory=dict)
    """Of all that are done."""
    failed: dict[str, str] = field(default_factory=dict)
    """{name: why}, as the results keep it: without paths of DICOM files, unless identity is kept."""
    refused: dict[str, str] = field(default_factory=dict)
    """{name: why the model can't judge it}, with those that an earlier run refused."""
    warned: dict[str, str] = field(default_factory=dict)
    """{name: why its result may mean less than it looks like}, of those in `done`."""
    pixels: dict[str, str] = field(default_factory=dict)
    """{name: digest of what was looked at}, of all that are done."""
    already_done: int = 0  # how many of `done` were there before this run
    seconds: float = 0.0  # wall time of this run

    def add(self, case: CaseRecord) -> None:
        """Note how a case ended."""
        reasons = {"warned": self.warned, "refused": self.refused, "failed": self.failed}
        if case.status in reasons:
            reasons[case.status][case.name] = case.message
        if case.done and case.score is not None:
            self.done[case.name] = case.score
            self.pixels |= {case.name: case.pixels_sha256} if case.pixels_sha256 else {}
            self.verdicts[case.name] = Verdict(case.p_value, case.finding_count, case.draw_agreement)

    def end(self, names: Sequence[str], seconds: float) -> None:
        """Put the cases in the run's order, whatever the order in which they ended; the highest score first."""
        self.seconds = seconds
        for cases in (self.done, self.verdicts, self.pixels, self.warned, self.refused, self.failed):
            found = dict[str, Any](cases)
            cases.clear()
            cases.update((name, found[name]) for name in names if name in found)
        self.done = dict(sorted(self.done.items(), key=lambda item: -item[1]))

    @property
    def tried(self) -> int:
        """Cases that have come to an end."""
        return len(self.done) + len(self.refused) + len(self.failed)


def open_results(
    detector: Detector,
    out: Path,
    shard: Shard | None = None,
    *,
    indices: Sequence[int] | None = None,
    left_out: Mapping[str, int] | None = None,
    side: Side = "neurological",
    command: str | None = None,
) -> ResultWriter:
    """The result folder of a detector's run, new or to be resumed; `indices` and `shard` as for `detect_files`.

    `left_out` is what there was in the inputs beside scans, of `thorad.io.scans.find_scans`; `side` as for
    `ResultWriter`; `command` is the command line, for the record.

    Raises:
        ThoradError: the folder can't be written, or holds the results of other options.
    """
    options = {**result_options(detector), "slices": None if indices is None else list(indices)}
    # The scores are what a case's score is compared with.
    scores = None if detector.calibration is None else list(detector.calibration.scores)
    made: dict[str, Any] = {"options": options, "method": _about_method(detector), "command": command}
    made["warnings"] = list(detector.warnings)
    run = {**made, "healthy_scores": scores, "left_out": dict(left_out or {}), **_software()}
    return ResultWriter(out, run, overlay_maximum=detector.overlay_maximum, shard=shard, side=side)


def result_options(detector: Detector) -> dict[str, Any]:
    """All of a detector that decides on its results, as run.json keeps it."""
    calibration, rate = detector.calibration, detector.false_positives
    options = {**detector.provenance(), "calibration": None, "threshold": detector.threshold}
    if calibration is not None:  # p-values are by it, even where masks begin elsewhere
        options["calibration"] = {
            "false_positives": rate,
            "threshold": None if rate is None else calibration.thresholds[rate],
            "scans": calibration.scans,
            "sha256": calibration.sha256,
        }
    return options


def refused_images(detectors: Sequence[Detector], images: Sequence[Path]) -> dict[str, dict[str, str]]:
    """{model: {image: why}} of the pictures that a detector would refuse; those that can't be read are left out."""
    models = {detector.model_name: detector for detector in detectors}
    refused: dict[str, dict[str, str]] = {name: {} for name in models}
    for path in images:
        with suppress(ThoradError):
            image = read_picture(path)
            for name, detector in models.items():
                if (check := detector.check(image)).refusals:
                    refused[name][str(path)] = check.message
    return {name: of_model for name, of_model in refused.items() if of_model}


def write_evaluation_run(
    detectors: Sequence[Detector],
    results: Sequence[Mapping[str, Any]],
    out: Path,
    seconds: float,
    refused: Mapping[str, Mapping[str, str]] = MappingProxyType({}),
    command: str | None = None,
) -> list[str]:
    """Write `out`/run.json: what made the figures of an evaluation, and what speaks against them, which it returns.

    `results` is of `thorad.evaluation.evaluate`, `refused` of `refused_images`.
    """
    made = [{**detector.provenance(), "about": _about_method(detector)} for detector in detectors]
    run: dict[str, Any] = {"detectors": made, "refused": dict(refused), "command": command}
    told = [*(warning for detector in detectors for warning in detector.warnings), baseline_warning(results)]
    run["warnings"] = warnings = list(dict.fromkeys(filter(None, told)))
    run |= {**_software(), "seconds": round(seconds, 1)}
    for of_the_last in (REPORT, "cost.png", "cost.svg"):  # which this run may not ask for
        (out / of_the_last).unlink(missing_ok=True)
    write_atomic(out / "run.json", (json.dumps(run, indent=2) + "\n").encode())
    return warnings


def _about_method(detector: Detector) -> dict[str, Any]:
    """What a report says of a method, and of the critic that it asks."""
    method = METHODS[detector.method]
    facts: dict[str, Any] = {"title": method.title, "paper": method.paper, "compare": method.compare}
    if method.critic:
        made = detector.model.own_critic.facts
        how = [f"{what} {made[what]}" for what in ("trained on", "validated on") if what in made]
        facts["critic"] = "; ".join([detector.model.critic_source, *how])
    return {**facts, "own_threshold": method.own_threshold}


def _software() -> dict[str, Any]:
    """When and with what it is made."""
    date = datetime.now().astimezone().isoformat(timespec="seconds")
    versions = {"python": platform.python_version(), **{name: version(name) for name in ("torch", "monai", "numpy")}}
    return {"date": date, "versions": versions, "platform": platform.platform()}


def detect_files(
    detector: Detector,
    scans: Mapping[str, Scan],
    results: ResultWriter,
    *,
    indices: Sequence[int] | None = None,
    keep_steps: bool = False,
    on_progress: Progress = lambda done, total: None,
    on_step: OnStep | None = None,
    executor: Executor = here,
) -> RunSummary:
    """Detect in files and write each case as soon as it is done: first the pictures, then the volumes.

    Args:
        scans: of `thorad.io.scans.find_scans`; also those of the other shards.
        results: where to, and the part of the cases (the shard) that this process does; what it has already isn't done
            again, unless its file was changed since.
        indices: of the slices of volumes to detect in; None: the model's own.
        keep_steps: keep the pictures of every step of the restorations.
        on_progress, on_step: see `Progress`, and `Detector.detect_batch`.
        executor: where it is done; the results are the same.

    Raises:
        ThoradError: the results can't be written, hold another file's case of the same name, need a library that is
            not installed, or the device's memory doesn't hold a batch. What is bad about one file is recorded in the
            results instead.
    """
    began = time.perf_counter()
    asked, scans = scans.keys(), results.shard.of(scans)
    summary = _done_before(scans, results, keep_steps and detector.network_calls > 0, detector.force)
    todo = [scan for name, scan in scans.items() if name not in summary.done.keys() | summary.refused.keys()]
    on_progress(summary.tried, len(scans))
    run = _Run(detector, results, indices, keep_steps, on_step)
    for case in executor(run, _batches(todo, detector.batch_size), run.lost):
        summary.add(case)
        on_progress(summary.tried, len(scans))
    wait_for(results.case_folder(scan.name) / CASE for scan in todo)
    summary.end(list(scans), time.perf_counter() - began)
    results.close(summary.seconds, asked)
    return summary


def _batches(scans: Sequence[Scan], size: int) -> Iterator[Sequence[Scan]]:
    """The pictures, so many at once, then the volumes, one by one."""
    if any(scan.series for scan in scans):
        import_highdicom()  # before the work rather than after it
    pictures = [scan for scan in scans if not scan.is_volume]
    yield from (pictures[start : start + size] for start in range(0, len(pictures), size))
    yield from ([scan] for scan in scans if scan.is_volume)


@dataclass(frozen=True)
class _Run:
    """Detects in a batch of scans and writes their cases, which it gives as they end; see `detect_files`."""

    detector: Detector
    results: ResultWriter
    indices: Sequence[int] | None
    keep_steps: bool
    on_step: OnStep | None

    def __call__(self, scans: Sequence[Scan]) -> Iterator[CaseRecord]:
        for scan in scans:
            _ = scan.state  # before it is read: what takes its place meanwhile isn't what was looked at
        try:
            if scans[0].is_volume:
                yield from map(self._detect_volume, scans)
            else:
                yield from self._detect_pictures(scans)
        except torch.OutOfMemoryError as error:
            raise ThoradError(
                f"the memory of {self.detector.device} doesn't hold {self.detector.batch_size} images at once. Choose "
                "a smaller --batch-size; what is done is kept."
            ) from error

    def lost(self, scan: Scan, reason: str) -> CaseRecord:
        """Record a case that no process survives."""
        return self._end(scan, ThoradError(reason))

    def _detect_pictures(self, scans: Sequence[Scan]) -> Iterator[CaseRecord]:
        images: list[Image] = []
        by_name = {scan.name: scan for scan in scans}
        for scan in scans:
            try:
                (image,) = images_of(scan, skull=False, indices=())
                check = self.detector.check(image)
                if check.refusals and not self.detector.force:  # now: it would hold up the others of its batch
                    raise RefusedError(scan.source, check)
                images.append(image)
            except ThoradError as error:
                yield self._end(scan, error)
        for name, found in self._detections(images):
            scan = by_name[name]
            if isinstance(found, ThoradError):
                yield self._end(scan, found)
            else:
                yield self._write(scan, replace(found, check=found.check + _picture_warnings(scan, self.detector)))

    def _detections(self, images: Sequence[Image]) -> Iterator[tuple[str, Detection | ThoradError]]:
        """Of a batch by name; where it fails, of its images one by one, so that only the bad ones are lost."""
        done: set[str] = set()
        try:
            for detection in self.detector.detect_batch(images, on_step=self.on_step, keep_steps=self.keep_steps):
                done.add(detection.name)
                yield detection.name, detection
        except ThoradError as error:
            if len(images) == 1:
                yield images[0].name, error
                return
            for image in [image for image in images if image.name not in done]:
                yield from self._detections([image])

    def _detect_volume(self, scan: Scan) -> CaseRecord:
        try:
            volume = scan.read()
            if not isinstance(volume, Volume):
                raise ThoradError(f"{scan.path}: a single picture, expected a volume.")
            detection = detect_volume(
                self.detector, volume, indices=self.indices, keep_steps=self.keep_steps, on_step=self.on_step
            )
        except ThoradError as error:
            return self._end(scan, error)
        return self._write(scan, detection)

    def _write(self, scan: Scan, result: Detection | VolumeDetection) -> CaseRecord:
        if isinstance(result, VolumeDetection):
            return self.results.write_volume(result, series=scan.series, state=scan.state)
        return self.results.write(result, series=scan.series, state=scan.state)

    def _end(self, scan: Scan, error: ThoradError) -> CaseRecord:
        """Record a case that has no result."""
        if isinstance(error, RefusedVolumeError):
            about = error.check, error.registration, error.indices
            return self.results.refuse(scan.name, scan.source, *about, state=scan.state)
        if isinstance(error, RefusedError):
            return self.results.refuse(scan.name, scan.source, error.check, state=scan.state)
        return self.results.fail(scan.name, scan.source, scan.redacted(str(error)))


def _picture_warnings(scan: Scan, detector: Detector) -> Check:
    """What a model for slices of heads can't know of a DICOM picture."""
    if scan.series is None or not detector.model.recipe.volume.template:
        return Check()
    return Check(warnings=("a slice by itself is taken as it lies: only a series can be registered to the template",))


def _done_before(scans: Mapping[str, Scan], results: ResultWriter, needs_steps: bool, force: bool) -> RunSummary:
    """The cases that need not be done again: with `force` those that were refused must, without it the forced ones.

    Two folders may hold files of one name: the result of one must not pass for the other's.
    """
    summary = RunSummary()
    others: list[str] = []
    for case in results.cases(scans):
        scan = scans.get(case.name)
        if scan is None:  # somebody gave the folder of another case this name
            continue
        if case.status != "failed" and not scan.comes_from(case.source):
            others.append(f"{case.name} (there {case.source}, now {scan.source})")
        elif (
            case.status != "failed" and scan.is_as_it_was(case.files, case.folder / CASE) and (force or not case.forced)
        ):
            has_steps = any(file.endswith(STEPS) for file in case.sizes)
            if (not force) if case.status == "refused" else results.is_whole(case) and (has_steps or not needs_steps):
                summary.add(case)
    if others:
        raise ThoradError(
            f"the folder holds results of other files under the same names: {listing(others)}. Choose another --out."
        )
    summary.already_done = len(summary.done)
    return summary
