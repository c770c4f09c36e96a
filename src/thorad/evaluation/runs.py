"""What all protocols share: run the detectors on the models' grids, measure each, compare them over subjects.

Everything is measured on the model's own grid (128x128 in the paper): images and truths take the same way there.
Shapes: N cases, S the grid's side.
"""

import hashlib
import io
import json
import time
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final, Generic, Literal, NamedTuple, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from thorad.datasets.cases import Case, Truth, read_cases
from thorad.errors import ThoradError
from thorad.evaluation.kept import KeptCase, keep_cases
from thorad.evaluation.metrics import Bools, Floats, subject_resamples
from thorad.evaluation.quality import Fidelity, fidelities, read_without_lesion, stored
from thorad.evaluation.statistics import ABOUT, Figures, Sample, Swaps, subject_swaps, title, versus
from thorad.executor import Executor, here
from thorad.io.atomic import write_atomic
from thorad.io.images import case_names, read_mask
from thorad.io.preprocess import mask_to_model_grid, to_model_input
from thorad.io.scans import read_picture, subjects_of
from thorad.io.tables import listing

Failure = dict[str, str]
"""`name`, `image` and `reason` of a case that can't be used."""

LARGEST_LESION: Final = 0.5
"""Share of a picture."""

Together = Callable[[Case], object]
"""What all cases that are measured or left out as one have in common."""

Progress = Callable[[int, int, str], None]
"""Called with (images done, images in all, method) after every image, summed over the detectors."""


class MapDetector(typing.Protocol):
    """What the evaluation needs of a detector, such as `thorad.Detector`; S is the side of its model's grid."""

    method: str
    noise: str | None  # None for a method that draws none
    steps: int | Literal["all"] | None  # of the reverse process; None for a method that has none
    network_calls: int  # for one image
    batch_size: int  # images in one call of `model_restorations`

    @property
    def model_name(self) -> str:
        """Name of the model."""

    @property
    def model_size(self) -> int:
        """S, px."""

    @property
    def region(self) -> Bools:
        """(S, S) pixels in which the model looks for anomalies."""

    def learned(self, images: Mapping[str, torch.Tensor]) -> list[str]:
        """The names of those (1, S, S) images in [0, 1] that its model is known to have been trained on."""

    def model_restorations(self, x: torch.Tensor, names: Sequence[str]) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Turn (B, 1, S, S) images in [0, 1] into as many anomaly maps and, if it makes some, pseudo-healthy images."""

    def scores(self, maps: torch.Tensor) -> torch.Tensor:
        """Turn (B, 1, S, S) maps into (B,) image scores."""

    def provenance(self) -> dict[str, Any]:
        """All that decides the maps; only asked for where maps are kept."""


TruthType = TypeVar("TruthType")
KeptType = TypeVar("KeptType")
Rows = list[dict[str, Any]]

Read = Callable[[Case, int], tuple[torch.Tensor, TruthType]]
"""Reads a case onto a grid of S x S px: (1, S, S) image in [0, 1], and the truth about it."""


@dataclass(frozen=True)
class DetectorRun(Generic[TruthType]):
    """What one detector made of the N cases that every detector could use."""

    detector: MapDetector
    region: Bools  # (S, S), not empty
    cases: list[Case]
    images: list[torch.Tensor]  # of each case, (1, S, S) in [0, 1]
    truths: list[TruthType]  # of each case, on the model's grid
    maps: NDArray[np.float32]  # (N, S, S)
    scores: Floats  # (N,)
    cpu_seconds_per_case: float
    failures: list[Failure]  # the cases that are left out
    validation: Set[str]  # names of the cases that are there to choose a threshold only
    quality: list[Mapping[str, Fidelity]]  # of each case's pseudo-healthy image; of none where it isn't measured

    @property
    def about(self) -> dict[str, Any]:
        """What a result says first: which detector this is."""
        return _about(self.detector)

    @property
    def diseased(self) -> Bools:
        """(N,) the cases with a finding."""
        return np.asarray([case.has_finding for case in self.cases], dtype=np.bool_)

    @property
    def subjects(self) -> list[str]:
        """Of the N cases."""
        return [case.subject for case in self.cases]


class _CachedMap(NamedTuple):
    """What a detector made of one image, as it is kept."""

    map: NDArray[np.float32]  # (S, S)
    score: Floats  # ()
    cpu_seconds: Floats  # ()
    healthy: NDArray[np.float16]  # (S, S) pseudo-healthy image in [0, 1], empty where there is none


Inputs = dict[tuple[str, int], tuple[torch.Tensor, TruthType]]
"""(case name, S) -> what `Read` gave."""


def run_detectors(
    cases: Sequence[Case],
    detectors: Sequence[MapDetector],
    read: Read[TruthType],
    truth_column: str,
    *,
    validation: Sequence[Case] = (),
    on_progress: Progress | None = None,
    keep: Path | None = None,
    executor: Executor = here,
    lesions: bool = False,
    together: Together | None = None,
) -> list[DetectorRun[TruthType]]:
    """Run the detectors, whose models may have different grids, over the cases and over those of a validation set.

    A case that can't be read, or for which any detector gives a map that is not finite, is left out for every one, so
    that all are compared on the same cases in the same order. A validation case whose name is taken gets a prefix.
    `truth_column`, of the user's table, is for errors; `lesions` says that truths are lesions, (S, S), beside which the
    pseudo-healthy images are measured; `together` what is left out with a case; for the others see `evaluate`.

    Raises ThoradError where a region is empty, or no case with a finding is left outside the validation set.
    """
    names = free_names([case.name for case in validation], {case.name for case in cases}, "validation")
    everything = [*cases, *map(lambda case, name: replace(case, name=name), validation, names)]
    needed = {case.name for case in cases if case.has_finding}
    inputs, failures = _read_all(everything, detectors, read, needed, truth_column)
    without = _read_without_lesions(everything, detectors, failures) if lesions else {}
    failures |= _parts_of_failed(everything, failures, together, names)
    usable = [case for case in everything if case.name not in failures]
    made = _make_maps(usable, detectors, inputs, failures, on_progress, keep, executor)
    _refuse_without(needed, failures, truth_column)
    failures |= _not_finite([case for case in usable if case.name not in failures], detectors, made, needed)
    failures |= _parts_of_failed(everything, failures, together, names)
    _refuse_without(needed, failures, truth_column)
    kept = [case for case in usable if case.name not in failures]
    quality = partial(_quality, inputs=inputs, without=without) if lesions else None
    return [
        _run_of(detector, kept, maps, inputs, list(failures.values()), set(names), quality)
        for detector, maps in zip(detectors, made, strict=True)
    ]


def _parts_of_failed(
    cases: Sequence[Case], failures: Mapping[str, Failure], together: Together | None, validation: Sequence[str]
) -> dict[str, Failure]:
    """The cases that can be used, but belong to one that can't: without it, they would be another thing."""
    if together is None:
        return {}
    reasons: dict[object, str] = {}
    for case in cases:
        if case.name in failures:
            reasons.setdefault((case.name in validation, together(case)), failures[case.name]["reason"])
    others = {case.name: (case, reasons.get((case.name in validation, together(case)))) for case in cases}
    return {
        name: _failure(case, f"of the same volume as: {reason}")
        for name, (case, reason) in others.items()
        if reason is not None and name not in failures
    }


def _run_of(
    detector: MapDetector,
    kept: list[Case],
    maps: Mapping[str, "_CachedMap"],
    inputs: Inputs[TruthType],
    failures: list[Failure],
    validation: Set[str],
    quality: Callable[[Case, MapDetector, Mapping[str, "_CachedMap"]], Mapping[str, Fidelity]] | None,
) -> DetectorRun[TruthType]:
    return DetectorRun(
        detector=detector,
        region=np.asarray(detector.region, dtype=np.bool_),
        cases=kept,
        images=[inputs[case.name, detector.model_size][0] for case in kept],
        truths=[inputs[case.name, detector.model_size][1] for case in kept],
        maps=np.stack([maps[case.name].map for case in kept]),
        scores=np.stack([maps[case.name].score for case in kept]),
        cpu_seconds_per_case=float(np.mean([one.cpu_seconds for one in maps.values()])),
        failures=failures,
        validation=validation,
        quality=[] if quality is None else [quality(case, detector, maps) for case in kept],
    )


def healthy_cases(
    cases: Sequence[Case], healthy: Sequence[Path], subjects: Mapping[Path, str] = MappingProxyType({})
) -> list[Case]:
    """Make cases of healthy images, without those that are among the cases already, under names that are still free.

    Whom one shows is said by `subjects`, else by its path.

    Raises:
        ThoradError: an image that has a finding is among the healthy ones.
    """
    files = {case.image.resolve(): case.has_finding for case in cases}
    both = sorted(path.resolve() for path in healthy if files.get(path.resolve()))
    if both:
        raise ThoradError(
            f"{len(both)} images are marked as diseased and are among the healthy ones, too: "
            f"{listing(list(map(str, both)))}. Take them out of one of the two."
        )
    new = [path for path in healthy if path.resolve() not in files]
    names = case_names(new, [path.parent for path in new])
    free = free_names(names, {case.name for case in cases}, "healthy")
    return [
        Case(path, None, subjects.get(path) or subject, name)
        for path, subject, name in zip(new, subjects_of(new, names), free, strict=True)
    ]


def free_names(names: Sequence[str], taken: set[str], prefix: str) -> list[str]:
    """Put a prefix before those names that are taken already."""
    used = set(taken)
    free: list[str] = []
    for name in names:
        while name in used:
            name = f"{prefix}-{name}"
        used.add(name)
        free.append(name)
    return free


def read_masked(case: Case, size: int) -> tuple[torch.Tensor, Bools]:
    """Read one image (1, S, S) and its lesions (S, S) on the model's grid.

    Raises:
        ThoradError: as `read_picture` and `read_mask`; the mask marks nothing.
    """
    pixels = read_picture(case.image).pixels
    image, _ = to_model_input(pixels, size)
    if case.mask is None:
        return image, np.zeros((size, size), dtype=np.bool_)
    mask = read_mask(case.mask, pixels.shape)
    if not mask.any():
        raise ThoradError(f"{case.mask}: the mask marks no pixel. Leave the mask column empty for a healthy case.")
    if mask.mean() > LARGEST_LESION:
        raise ThoradError(
            f"{case.mask}: the mask marks {100 * mask.mean():.0f} % of the picture. Is it inverted? Expected 0 outside "
            f"the lesion, and at most {100 * LARGEST_LESION:g} % in it."
        )
    return image, mask_to_model_grid(mask, size)


def _read_without_lesions(
    cases: Sequence[Case], detectors: Sequence[MapDetector], failures: dict[str, Failure]
) -> dict[tuple[str, int], torch.Tensor]:
    """{(case name, S): the image before its lesion} where that is known; notes in `failures` what can't be read."""
    found: dict[tuple[str, int], torch.Tensor] = {}
    for size in dict.fromkeys(detector.model_size for detector in detectors):
        for case in cases:
            try:
                without = None if case.name in failures else read_without_lesion(case, size)
            except (ThoradError, OSError) as error:
                failures[case.name] = _failure(case, str(error))
            else:
                found |= {} if without is None else {(case.name, size): without}
    return found


def _quality(
    case: Case,
    detector: MapDetector,
    maps: Mapping[str, _CachedMap],
    inputs: Inputs[Any],
    without: Mapping[tuple[str, int], torch.Tensor],
) -> Mapping[str, Fidelity]:
    """How true a case's pseudo-healthy image is; nothing where there is none."""
    if not maps[case.name].healthy.size:
        return {}
    at, region = (case.name, detector.model_size), np.asarray(detector.region, dtype=np.bool_)
    image, lesion = inputs[at]
    restored = torch.from_numpy(maps[case.name].healthy.astype(np.float32))[None]
    return fidelities(restored, image, lesion if case.has_finding else None, region, without.get(at))


def _read_all(
    cases: Sequence[Case],
    detectors: Sequence[MapDetector],
    read: Read[TruthType],
    needed: Set[str],
    truth_column: str,
) -> tuple[Inputs[TruthType], dict[str, Failure]]:
    """Read the cases onto each model's grid.

    An error where a region is empty, no needed case can be read, or a model was trained on one.
    """
    for detector in detectors:
        if not np.asarray(detector.region).any():
            raise ThoradError(f"{detector.method}: the model's region is empty, so there is nothing to measure in.")
    inputs: Inputs[TruthType] = {}
    failures: dict[str, Failure] = {}
    for size in dict.fromkeys(detector.model_size for detector in detectors):
        for case in cases:
            try:
                inputs[case.name, size] = read(case, size)
            except (ThoradError, OSError) as error:
                failures[case.name] = _failure(case, str(error))
    _refuse_without(needed, failures, truth_column)
    _refuse_learned(detectors, inputs)
    return inputs, failures


def _refuse_learned(detectors: Sequence[MapDetector], inputs: Inputs[TruthType]) -> None:
    """An error where a model has learned what it would be measured on: it finds less there than in scans to come."""
    for detector in detectors:
        images = {name: image for (name, size), (image, _) in inputs.items() if size == detector.model_size}
        if seen := detector.learned(images):
            raise ThoradError(
                f"Model {detector.model_name!r} was trained on {len(seen)} of these {len(images)} images: "
                f"{listing(seen)}. What is measured on them says nothing about other scans; give others."
            )


def _refuse_without(needed: Set[str], failures: Mapping[str, Failure], truth_column: str) -> None:
    """An error where no needed case is left."""
    if needed <= failures.keys():
        reasons = listing([f"{name}: {failure['reason']}" for name, failure in failures.items()])
        raise ThoradError(
            f"None of the cases to test has anything in the column {truth_column} that can be used: there is nothing "
            f"to measure. Give a CSV with the columns image and {truth_column}. {reasons}"
        )


def _make_maps(
    cases: Sequence[Case],
    detectors: Sequence[MapDetector],
    inputs: Inputs[TruthType],
    failures: dict[str, Failure],
    on_progress: Progress | None,
    keep: Path | None,
    executor: Executor,
) -> list[dict[str, _CachedMap]]:
    """{case name: map} of each detector; a case that no process survives is noted in `failures`."""
    made: list[dict[str, _CachedMap]] = []
    for number, detector in enumerate(detectors):
        made.append({})
        named = {case.name: inputs[case.name, detector.model_size][0] for case in cases if case.name not in failures}
        begun = len(cases) - len(named) + 1
        for count, (name, one) in enumerate(_maps_of(detector, named, keep, executor), start=begun):
            if isinstance(one, str):
                failures[name] = _failure(next(case for case in cases if case.name == name), one)
            else:
                made[-1][name] = one
            if on_progress is not None:
                on_progress(number * len(cases) + count, len(detectors) * len(cases), detector.method)
    return made


def _maps_of(
    detector: MapDetector, named: Mapping[str, torch.Tensor], keep: Path | None, executor: Executor
) -> Iterator[tuple[str, "_CachedMap | str"]]:
    """The map of each named image (1, S, S), kept by an earlier run or made and kept now, or why there is none.

    A kept map's file is named by a digest of the detector and the pixels.
    """
    files: dict[str, Path] = {}
    if keep is not None:
        files = {name: keep / file for name, file in zip(named, _map_files(detector, named.values()), strict=True)}
    missing = []
    for name, image in named.items():
        if name in files and (kept := _kept_map(files[name])) is not None:
            yield name, kept
        else:
            missing.append((name, image))
    size = detector.batch_size
    batches = [missing[start : start + size] for start in range(0, len(missing), size)]
    for name, one in executor(partial(_maps_of_batch, detector), batches, lambda item, reason: (item[0], reason)):
        if name in files and not isinstance(one, str):
            written = io.BytesIO()
            np.savez(written, **one._asdict())
            write_atomic(files[name], written.getvalue())
        yield name, one


def _kept_map(file: Path) -> _CachedMap | None:
    """What an earlier run has kept; None where there is nothing, or less, as earlier versions kept it."""
    if not file.is_file():
        return None
    with np.load(file, allow_pickle=False) as content:
        return _CachedMap(**content) if set(content) == set(_CachedMap._fields) else None


def _maps_of_batch(
    detector: MapDetector, batch: Sequence[tuple[str, torch.Tensor]]
) -> list[tuple[str, "_CachedMap | str"]]:
    """The maps of named images (1, S, S)."""
    names = [name for name, _ in batch]
    before = time.process_time()
    maps, restored = detector.model_restorations(torch.stack([image for _, image in batch]), names)
    scores = detector.scores(maps).detach().double().cpu()  # (B,)
    seconds = np.asarray((time.process_time() - before) / len(batch))
    healthy = stored(restored) or [np.empty(0, np.float16)] * len(batch)
    return [
        (name, _CachedMap(map[0].numpy(), score.numpy().reshape(()), seconds, kept))
        for name, map, score, kept in zip(names, maps.detach().float().cpu(), scores, healthy, strict=True)
    ]


def _map_files(detector: MapDetector, images: Iterable[torch.Tensor]) -> list[str]:
    """The name of the file that a detector's map of each image (1, S, S) is kept in."""
    provenance = json.dumps(detector.provenance(), sort_keys=True).encode()
    digests = [hashlib.sha256(provenance + b"\0" + image.numpy().tobytes()) for image in images]
    return [f"{digest.hexdigest()[:32]}.npz" for digest in digests]


def _not_finite(
    cases: Sequence[Case], detectors: Sequence[MapDetector], made: Sequence[Mapping[str, _CachedMap]], needed: Set[str]
) -> dict[str, Failure]:
    """The cases for which a detector gave NaN or infinity; an error where that leaves none of the needed ones."""
    broken: dict[str, Failure] = {}
    blamed: dict[str, None] = {}  # methods, each once
    for case in cases:
        titles = [
            title(_about(detector))
            for detector, maps in zip(detectors, made, strict=True)
            if not (np.isfinite(maps[case.name].map).all() and np.isfinite(maps[case.name].score))
        ]
        if titles:
            broken[case.name] = _failure(
                case,
                f"{', '.join(titles)} gave a map or score with NaN or infinity, so it is left out for every method. "
                "The model may be damaged or this image unlike those that it was trained on; look at both.",
            )
            blamed |= dict.fromkeys(titles)
    if needed & {case.name for case in cases} <= broken.keys():
        raise ThoradError(
            f"{', '.join(blamed)} gave a map or score with NaN or infinity, and no lesion case is left without. The "
            "model is damaged or was trained with other settings; check the model folder."
        )
    return broken


def _about(detector: MapDetector) -> dict[str, Any]:
    values = (detector.method, detector.noise, detector.steps, detector.model_name)
    noise_level, settings = getattr(detector, "noise_level", None), dict(getattr(detector, "settings", {}))
    draws = settings.pop("draws", getattr(detector, "draws", 1))  # its own, or of the detector
    words = [f"{name} {_in_words(value)}" for name, value in settings.items()]
    asked = {"noise_level": noise_level, "draws": draws if draws > 1 else None, "settings": ", ".join(words) or None}
    return dict(zip(ABOUT, values, strict=True)) | {name: value for name, value in asked.items() if value is not None}


def _in_words(value: object) -> str:
    if isinstance(value, list):
        return "/".join(map(str, value))
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _failure(case: Case, reason: str) -> Failure:
    return {"name": case.name, "image": str(case.image), "reason": reason}


class Resampling(NamedTuple):
    """How uncertainty is estimated; the same resamples and permutations for all detectors."""

    bootstrap: int  # resamples over subjects for the intervals; 0 for none
    permutations: int  # of the test between methods; 0 for none
    seed: int

    def weights(self, subjects: Sequence[str]) -> Floats:
        """(R, N) how often each of N cases counts in each resample, given their subjects."""
        return subject_resamples(subjects, self.bootstrap, np.random.default_rng(self.seed))

    def swaps(self, subjects: Sequence[str]) -> Swaps:
        """Which of N cases change places in each permutation, given their subjects."""
        return subject_swaps(subjects, self.permutations, np.random.default_rng([self.seed, 1]))


@dataclass(frozen=True)
class Measured(Generic[KeptType]):
    """One detector's figures, and what is needed to compare them with another's."""

    result: dict[str, Any]  # as in metrics.json, without `versus`
    rows: Rows  # of cases.csv
    subjects: list[str]  # of the N cases (boxes, volumes) that the compared figures are over
    sample: Sample  # the figures in which methods are compared
    kept: KeptType  # what `Protocol.pair` makes these figures of


@dataclass(frozen=True)
class Protocol(Generic[TruthType, KeptType]):
    """One way to measure."""

    truth: Truth  # the column of the user's table that says what is to be found
    read_truth: Read[TruthType]
    measure: Callable[[DetectorRun[TruthType], Resampling], Measured[KeptType]]  # one detector's figures
    pair: Callable[[KeptType, KeptType], Figures]  # the compared figures of two detectors
    headline: Callable[[Mapping[str, Any]], float | None]  # the one by which a result is judged, in percent
    headline_name: str
    outline: Callable[[TruthType, int], Bools]  # what a truth marks of a grid of that side, to look at: (S, S)
    lesions: bool = False  # whether truths are lesions, so that pseudo-healthy images are measured beside them
    together: Together | None = None
    prepared: Callable[[Sequence[Case]], list[Case]] = list
    """The cases as the protocol takes them."""
    check_validation: Callable[[Sequence[Case], Sequence[Case]], None] | None = None
    """Refuses (cases, validation cases) that don't go together; None: the protocol takes no validation cases."""

    def read(self, table: Path) -> list[Case]:
        """Read the user's table of cases."""
        return read_cases(table, truth=self.truth)

    def run(
        self,
        cases: Sequence[Case],
        healthy: Sequence[Path],
        detectors: Sequence[MapDetector],
        resampling: Resampling,
        *,
        validation: Sequence[Case] = (),
        on_progress: Progress | None = None,
        keep: Path | None = None,
        executor: Executor = here,
    ) -> tuple[Rows, Rows]:
        """The results and the rows of cases.csv; see `evaluate` for the arguments."""
        named, validation = self.prepared([*cases, *healthy_cases(cases, healthy)]), self.prepared(validation)
        if self.check_validation is not None:
            self.check_validation(named, validation)
        runs = run_detectors(
            named,
            detectors,
            self.read_truth,
            self.truth,
            validation=validation,
            on_progress=on_progress,
            keep=keep,
            executor=executor,
            lesions=self.lesions,
            together=self.together,
        )
        if keep is not None:
            keep_cases([self._kept(run) for run in runs], keep)
        measured = [self.measure(run, resampling) for run in runs]

        def pair(first: int, second: int) -> Figures:
            return self.pair(measured[first].kept, measured[second].kept)

        compared = versus([one.sample for one in measured], pair, resampling.swaps(measured[0].subjects))
        results = [one.result | {"versus": entries} for one, entries in zip(measured, compared, strict=True)]
        for one in measured:
            one.result["counts"]["subjects_with_findings"] = len(set(one.subjects))
        return results, [row for one in measured for row in one.rows]

    def _kept(self, run: DetectorRun[TruthType]) -> list[KeptCase]:
        """The cases as a detector saw them."""
        files = _map_files(run.detector, run.images)
        return [
            KeptCase(case.name, image[0].double().numpy(), self.outline(truth, image.shape[-1]), file)
            for case, image, truth, file in zip(run.cases, run.images, run.truths, files, strict=True)
        ]


def percent(fraction: float | None) -> float | None:
    """A headline that is kept as a fraction."""
    return None if fraction is None else 100 * fraction
