"""Detection over files: in batches, one bad file never loses the others, a killed run goes on where it stopped."""

from __future__ import annotations

import json
import os
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from thorad.data.images import Image, read_image, write_whole
from thorad.data.preprocess import scale
from thorad.data.tables import listing
from thorad.detector import Detector
from thorad.errors import ThoradError
from thorad.results.writer import ResultWriter

Progress = Callable[[int, int], None]
"""Called with (cases done or failed, cases in all), first with those that an earlier run has done."""


@dataclass(frozen=True)
class RunSummary:
    """What became of the cases."""

    done: Mapping[str, float]
    """{name: score}, the highest first, with those that an earlier run has done."""
    judged: Mapping[str, tuple[float, int]]
    """{name: (p-value, number of findings)} of those cases, where the model is calibrated; else empty."""
    failed: Mapping[str, str]
    """{name: why}."""
    already_done: int
    """How many of `done` were there before this run."""
    seconds: float
    """Wall time of this run."""


def open_results(detector: Detector, out: Path) -> ResultWriter:
    """The result folder of a detector's run, new or to be continued.

    Raises:
        ThoradError: the folder can't be written, or holds the results of other options.
    """
    run = {"options": {**detector.provenance(), "calibration": _calibration(detector)}, **_software()}
    return ResultWriter(out, run, overlay_maximum=detector.overlay_maximum)


def write_evaluation_run(detectors: Sequence[Detector], out: Path, seconds: float) -> None:
    """Write `out`/run.json: what made the figures of an evaluation."""
    run = {"detectors": [detector.provenance() for detector in detectors], **_software(), "seconds": round(seconds, 1)}
    write_whole(out / "run.json", (json.dumps(run, indent=2) + "\n").encode())


def _calibration(detector: Detector) -> dict[str, Any] | None:
    """What decides the p-values and masks, as run.json keeps it."""
    calibration, rate = detector.calibration, detector.false_positives
    if calibration is None or rate is None:
        return None
    return {
        "false_positives": rate,
        "threshold": calibration.thresholds[rate],
        "scans": calibration.scans,
        "sha256": calibration.sha256,
    }


def _software() -> dict[str, Any]:
    versions = {"python": platform.python_version(), **{name: version(name) for name in ("torch", "monai", "numpy")}}
    return {"versions": versions, "platform": platform.platform()}


def detect_files(
    detector: Detector, named: Mapping[str, Path], results: ResultWriter, *, on_progress: Progress | None = None
) -> RunSummary:
    """Detect in files and write each case as soon as it is done.

    Args:
        detector: the model and the method.
        named: {case name: file}, of `thorad.data.images.named_images`.
        results: where to; what it has already isn't done again, unless its file was changed since.
        on_progress: see `Progress`.

    Raises:
        ThoradError: the results can't be written, hold another file's case of the same name, or the device's memory
            doesn't hold a batch. What is bad about one file is recorded in the results instead.
    """
    began = time.perf_counter()
    _refuse_other_files(named, results)
    before = {name for name in results.done_cases() & named.keys() if not results.is_stale(name, named[name])}
    failed: dict[str, str] = {}
    report = on_progress or (lambda done, total: None)
    report(len(before), len(named))
    finished = len(before)
    todo = [name for name in named if name not in before]
    for start in range(0, len(todo), detector.batch_size):
        batch = todo[start : start + detector.batch_size]
        images = []
        for name in batch:
            try:
                images.append(read_scan(named[name], name))
            except ThoradError as error:
                failed[name] = str(error)
                results.fail(name, str(named[name]), str(error))
        finished += len(batch) - len(images)
        try:
            for detection in detector.detect_batch(images):
                if np.isfinite(detection.anomaly_map).all():
                    results.write(detection)
                else:
                    failed[detection.name] = f"{detection.source}: the map is not finite. Is the model damaged?"
                    results.fail(detection.name, detection.source, failed[detection.name])
                finished += 1
                report(finished, len(named))
        except torch.OutOfMemoryError as error:
            raise ThoradError(
                f"the memory of {detector.device} doesn't hold {detector.batch_size} images at once. "
                "Choose a smaller --batch-size; what is done is kept."
            ) from error
        report(finished, len(named))
    seconds = time.perf_counter() - began
    results.close(seconds)
    done = {name: score for name, score in results.scores().items() if name in named}
    judged = {name: found for name, found in results.judged().items() if name in named}
    return RunSummary(done, judged, failed, already_done=len(before), seconds=seconds)


def _refuse_other_files(named: Mapping[str, Path], results: ResultWriter) -> None:
    """Two folders may hold files of one name: the result of one must not pass for the other's."""
    others = [
        f"{name} (there {source}, now {named[name]})"
        for name, source in sorted(results.sources().items())
        if name in named and os.path.realpath(source) != os.path.realpath(named[name])
    ]
    if others:
        raise ThoradError(
            f"the folder holds results of other files under the same names: {listing(others)}. Choose another --out."
        )


def read_scan(path: Path, name: str) -> Image:
    """Read an image that the detector takes; whatever is bad about it is told with the file's name.

    Raises:
        ThoradError: as `thorad.data.images.read_image` and `thorad.data.preprocess.scale`.
    """
    image = read_image(path, name)
    try:
        scale(image.pixels)
    except ThoradError as error:
        raise ThoradError(f"{path}: {error}") from error
    return image
