"""Calibration over files: healthy scans in, thresholds and scores out, kept in the model's folder."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch

from thorad.apps.run import Progress
from thorad.calibration import Calibration, calibrate_maps, map_options, scans_needed, with_calibration
from thorad.check import RefusedError
from thorad.detector import Detector
from thorad.domain.pictures import PictureDomain
from thorad.errors import ThoradError
from thorad.io.atomic import write_atomic
from thorad.io.preprocess import to_model_grid
from thorad.io.scans import Scan, patients_doubt
from thorad.io.slices import images_of
from thorad.io.tables import listing
from thorad.methods import METHODS
from thorad.model import CALIBRATION, DOMAIN, copy_model, is_bundled, model_folder, own_folder
from thorad.training.domain import learn_domain


@dataclass(frozen=True)
class CalibrationSummary:
    """A calibration, and what became of the scans."""

    calibration: Calibration
    failed: Mapping[str, str]  # {name: why} of the scans that were left out
    warning: str | None  # what makes the p-values doubtful
    picture_domain: PictureDomain | None  # what the scans look like, where the model didn't know it and they are enough
    seconds: float  # wall time


def calibrate_files(
    detector: Detector, scans: Mapping[str, Scan], *, level: float = 0.05, on_progress: Progress | None = None
) -> CalibrationSummary:
    """Calibrate a detector on healthy scans that its model was not trained on.

    Args:
        detector: the model and the method.
        scans: {name: scan}, of `thorad.io.scans.find_scans`; of a volume the slices that the model was trained on.
        level: the smallest p-value that must be possible.
        on_progress: called with (scans done or failed, scans in all).

    Raises:
        ThoradError: fewer scans than the level needs can be used, scans that the model was trained on, the memory of
            the device doesn't hold a batch. A scan that can't be used is left out and told in the summary.
    """
    began = time.perf_counter()
    scans_needed(level)  # a level that makes no sense is refused before the work
    if not any(scan.is_volume for scan in scans.values()):
        _refuse_too_few(len(scans), level, {})
    failed: dict[str, str] = {}
    inputs = _model_inputs(detector, scans, failed)
    _refuse_too_few(len(inputs), level, failed)
    inside = torch.stack([each.inside for each in inputs.values()])
    maps = _maps(detector, {name: each.pixels for name, each in inputs.items()}, len(failed), on_progress) * inside
    finite = torch.isfinite(maps).flatten(1).all(dim=1).tolist()  # (N,)
    for (name, each), usable in zip(inputs.items(), finite, strict=True):
        if not usable:
            failed[name] = f"{each.scan.source}: the map is not finite. Is the model damaged?"
    used = maps[finite]
    _refuse_too_few(len(used), level, failed)
    calibration = calibrate_maps(
        used[:, 0].numpy(), detector.scores(used, inside[finite]).numpy(), detector.region, detector.provenance()
    )
    warning = _repeated_subjects([each.scan for name, each in inputs.items() if name not in failed])
    model, domain = detector.model, None
    if model.picture_domain is None:
        pictures = [each.pixels for name, each in inputs.items() if name not in failed]
        domain = learn_domain(pictures, model.recipe)
    return CalibrationSummary(calibration, failed, warning, domain, time.perf_counter() - began)


class _Input(NamedTuple):
    """A picture or slice as the model sees it."""

    pixels: torch.Tensor  # (1, S, S)
    inside: torch.Tensor  # (1, S, S), of `Detector.inside`
    scan: Scan


def _model_inputs(detector: Detector, scans: Mapping[str, Scan], failed: dict[str, str]) -> dict[str, _Input]:
    """{name: input} of each picture and slice; notes why a scan can't be used in `failed`."""
    section = detector.model.recipe.volume
    first, last = section.axial_slices
    indices = range(first, last + 1) if section.template else ()
    inputs: dict[str, _Input] = {}
    for scan in scans.values():
        try:
            of_scan = {}  # of a volume all slices or none: its others would move the thresholds, too
            for image in images_of(scan, skull=section.skull, indices=indices):
                if (check := detector.check(image)).refusals:
                    raise RefusedError(str(scan.path), check)
                pixels, _ = to_model_grid(image.scaled, detector.model_size)
                of_scan[image.name] = _Input(pixels, detector.inside(image), scan)
            inputs |= of_scan
        except ThoradError as error:
            failed[scan.name] = scan.redacted(str(error))
    _refuse_trained_on(detector, inputs)
    return inputs


def _refuse_trained_on(detector: Detector, inputs: Mapping[str, _Input]) -> None:
    """Raise where the model has learned some of them: it finds less in those than in healthy scans to come."""
    if seen := detector.learned({name: each.pixels for name, each in inputs.items()}):
        raise ThoradError(
            f"Model {detector.model_name!r} was trained on {len(seen)} of these {len(inputs)} images: {listing(seen)}. "
            "Thresholds from them would be too low, and p-values too small: give others."
        )


def _maps(
    detector: Detector, inputs: Mapping[str, torch.Tensor], failed: int, on_progress: Progress | None
) -> torch.Tensor:
    """(N, 1, S, S) maps of N named inputs."""
    report = on_progress or (lambda done, total: None)
    report(failed, failed + len(inputs))
    names = list(inputs)
    maps = []
    for start in range(0, len(names), detector.batch_size):
        batch = names[start : start + detector.batch_size]
        try:
            maps.append(detector.model_maps(torch.stack([inputs[name] for name in batch]), batch))
        except torch.OutOfMemoryError as error:
            raise ThoradError(
                f"the memory of {detector.device} doesn't hold {detector.batch_size} images at once. "
                "Choose a smaller --batch-size."
            ) from error
        report(failed + start + len(batch), failed + len(inputs))
    return torch.cat(maps)


def save_calibration(
    calibration: Calibration,
    model: str | Path,
    out: Path | None = None,
    *,
    picture_domain: PictureDomain | None = None,
) -> Path:
    """Add a calibration to a model's folder, or to a copy of it at `out`, and return that folder.

    An older calibration of the same options is replaced. So is what the model's pictures look like, where it is given.

    Raises:
        ThoradError: as `own_folder`; the calibration is another model's; a file can't be read or written.
    """
    source, folder = model_folder(model), own_folder(model, out)
    content = _content((folder if (folder / CALIBRATION).is_file() else source) / CALIBRATION)
    if content.get("weights_sha256") != calibration.model_sha256:
        raise ThoradError(
            f"{folder}: the calibration is of another model (weights of sha256 {calibration.model_sha256[:12]}..., "
            f"here {str(content.get('weights_sha256'))[:12]}...). Calibrate this one."
        )
    text = json.dumps(with_calibration(content, calibration, str(folder)), indent=2) + "\n"
    copy_model(source, folder)
    if picture_domain is not None:
        write_atomic(folder / DOMAIN, picture_domain.to_bytes())
    write_atomic(folder / CALIBRATION, text.encode())
    return folder


def calibrate_command(detector: Detector, model: str | Path) -> str:
    """The command that calibrates a model for a detector's options."""
    words = ["thorad calibrate HEALTHY", f"--model {model}"]
    for name, value in map_options(detector.provenance()).items():
        if value is None or value is False or name in ("settings_sha256", "critic_sha256"):
            continue
        if name == "draws" and value == METHODS[detector.method].default_draws:
            continue
        if name == "perceptual_weights_sha256" and detector.perceptual_weights is None:
            continue  # the model's own weights, which nobody has to give
        if name == "settings":
            words += [f"--set {key}={str(given).strip('[]').replace(' ', '')}" for key, given in value.items()]
            continue
        option = "--" + name.removesuffix("_sha256").replace("_", "-")
        words.append(option if value is True else f"{option} {'FILE' if name.endswith('_sha256') else value}")
    return " ".join([*words, "--out FOLDER"] if is_bundled(model_folder(model)) else words)


def _refuse_too_few(found: int, level: float, failed: Mapping[str, str]) -> None:
    needed = scans_needed(level)
    if found >= needed:
        return
    left_out = f" ({len(failed)} were left out: {listing(list(failed.values()))})" if failed else ""
    raise ThoradError(
        f"p-values down to {level:g} need {needed} healthy scans, found {found}{left_out}. "
        f"The smallest p-value of n scans is 1 / (n + 1): give {needed - found} more, or a higher --level."
    )


def _repeated_subjects(scans: list[Scan]) -> str | None:
    subjects = {scan.subject for scan in scans}
    if len(subjects) == len(scans):
        return patients_doubt([scan.path for scan in scans], [scan.subject for scan in scans])
    return (
        f"{len(scans)} scans of {len(subjects)} subjects: scans of one subject are not independent, so the p-values "
        "promise more than they hold. Keep one scan of each. "
        "(The subject is a table's, the leading sub-XXXX of the file's or a folder's name, or else the whole name.)"
    )


def _content(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_bytes())
        if isinstance(content, dict):
            return content
        reason = "not a model's calibration"
    except (OSError, ValueError) as error:
        reason = f"can't be read ({error})"
    raise ThoradError(f"{path}: {reason}. Take the folder from its source again.")
