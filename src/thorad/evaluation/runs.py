"""From labelled cases and detectors to maps on the models' grids: where every protocol begins.

Everything is measured on the model's own grid (128x128 in the paper): images and truths take the same way there.
Shapes: N cases, S the grid's side.
"""

import hashlib
import io
import json
import time
from collections.abc import Callable, Sequence, Set
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from thorad.datasets.cases import Case, subject_of
from thorad.errors import ThoradError
from thorad.evaluation.statistics import ABOUT, ASKED, title
from thorad.io.atomic import write_atomic
from thorad.io.images import case_names, read_mask
from thorad.io.preprocess import mask_to_model_grid, to_model_input
from thorad.io.scans import read_picture
from thorad.io.tables import listing

Bools = NDArray[np.bool_]
Floats = NDArray[np.float64]
Failure = dict[str, str]
"""`name`, `image` and `reason` of a case that can't be used."""

Progress = Callable[[int, int, str], None]
"""Called with (images done, images in all, method) after every batch, summed over the detectors."""


class MapDetector(Protocol):
    """What the evaluation needs of a detector."""

    @property
    def model_name(self) -> str:
        """Name of the model."""

    @property
    def method(self) -> str:
        """Name of the method, such as `thor` or `zscore`."""

    @property
    def noise(self) -> str | None:
        """`gaussian`, `simplex`, or None for a method that draws none."""

    @property
    def steps(self) -> int | str | None:
        """Steps of the reverse process, `"all"`, or None for a method that has none."""

    @property
    def network_calls(self) -> int:
        """Network calls for one image."""

    @property
    def region(self) -> Bools:
        """(S, S) pixels in which the model looks for anomalies."""

    @property
    def model_size(self) -> int:
        """Side S of the model's grid, px."""

    @property
    def batch_size(self) -> int:
        """Images in one call of `model_maps`."""

    def model_maps(self, x: torch.Tensor, names: Sequence[str]) -> torch.Tensor:
        """Turn (B, 1, S, S) images in [0, 1] into (B, 1, S, S) anomaly maps."""

    def scores(self, maps: torch.Tensor) -> torch.Tensor:
        """Turn (B, 1, S, S) maps into (B,) image scores."""

    def provenance(self) -> dict[str, Any]:
        """All that decides the maps; only asked for where maps are kept."""


TruthType = TypeVar("TruthType")

Read = Callable[[Case, int], tuple[torch.Tensor, TruthType]]
"""Reads a case onto a grid of S x S px: (1, S, S) image in [0, 1], and the truth about it."""


@dataclass(frozen=True)
class LabelledSet(Generic[TruthType]):
    """The cases that can be used, on one model grid."""

    cases: list[Case]
    images: torch.Tensor
    """(N, 1, S, S) in [0, 1]."""
    truths: list[TruthType]
    """Of each case, on the model's grid."""
    failures: list[Failure]
    """The cases that can't be used."""

    def __len__(self) -> int:
        """The number N of cases."""
        return len(self.cases)


@dataclass(frozen=True)
class DetectorRun(Generic[TruthType]):
    """What one detector made of the cases that every detector could use."""

    detector: MapDetector
    region: Bools
    """(S, S), not empty."""
    labelled: LabelledSet[TruthType]
    maps: NDArray[np.float32]
    """(N, S, S)."""
    scores: Floats
    """(N,)."""
    cpu_seconds_per_case: float
    validation: Set[str] = frozenset()
    """Names of the cases that are there to choose a threshold only."""

    @property
    def about(self) -> dict[str, Any]:
        """What a result says first: which detector this is."""
        detector = self.detector
        values = (detector.method, detector.noise, detector.steps, detector.model_name)
        asked = {name: getattr(detector, name, None) for name in ASKED}
        return dict(zip(ABOUT, values, strict=True)) | {name: v for name, v in asked.items() if v is not None}

    def without(self, failures: list[Failure]) -> "DetectorRun[TruthType]":
        """The run without the cases that failed for some detector; these are listed as its failures."""
        lost = {failure["name"] for failure in failures}
        whole = self.labelled
        kept = [index for index, case in enumerate(whole.cases) if case.name not in lost]
        left = LabelledSet(
            cases=[whole.cases[index] for index in kept],
            images=whole.images[kept],
            truths=[whole.truths[index] for index in kept],
            failures=failures,
        )
        return replace(self, labelled=left, maps=self.maps[kept], scores=self.scores[kept])


def run_detectors(
    cases: Sequence[Case],
    detectors: Sequence[MapDetector],
    read: Read[TruthType],
    truth_column: str,
    *,
    validation: Sequence[Case] = (),
    on_progress: Progress | None = None,
    keep: Path | None = None,
) -> list[DetectorRun[TruthType]]:
    """Run the detectors over the cases, those of a validation set behind the others.

    A case that can't be read, or for which any detector gives a map that is not finite, is left out for every
    detector, so that all are compared on the same cases, and listed among the failures of each run.

    Args:
        cases: of which each has a name of its own.
        detectors: their models may have different grids and regions.
        read: reads a case onto a grid of S x S px: (1, S, S) image in [0, 1], and the truth.
        truth_column: the column of the user's table that holds the truth, for errors.
        validation: cases that are there to choose a threshold only; where one has the name of another case, its name
            gets a prefix.
        on_progress: see `Progress`.
        keep: folder where maps are kept, and taken from if the same detector has seen the same images before.

    Returns:
        One run of each detector, on the same cases in the same order.

    Raises:
        ThoradError: no case with a finding is left outside the validation set; a region is empty.
    """
    for detector in detectors:
        if not np.asarray(detector.region).any():
            raise ThoradError(f"{detector.method}: the model's region is empty, so there is nothing to measure in.")
    names = free_names([case.name for case in validation], {case.name for case in cases}, "validation")
    every_case = [*cases, *(replace(case, name=name) for case, name in zip(validation, names, strict=True))]
    needed = {case.name for case in cases if case.has_finding}
    labelled_sets = {
        size: _read_labelled_set(every_case, size, read, needed, truth_column)
        for size in dict.fromkeys(detector.model_size for detector in detectors)
    }
    total = sum(len(labelled_sets[detector.model_size]) for detector in detectors)
    done = 0
    runs: list[DetectorRun[TruthType]] = []
    for detector in detectors:
        labelled = labelled_sets[detector.model_size]
        runs.append(_run_detector(detector, labelled, done, total, on_progress, keep))
        done += len(labelled)
    failures = [
        *{failure["name"]: failure for labelled in labelled_sets.values() for failure in labelled.failures}.values(),
        *_not_finite(runs, needed),
    ]
    return [replace(run.without(failures), validation=frozenset(names)) for run in runs]


def healthy_cases(cases: Sequence[Case], healthy: Sequence[Path]) -> list[Case]:
    """Make cases of healthy images, without those that are among the cases already, under names that are still free.

    Args:
        cases: the table's.
        healthy: more healthy images.

    Raises:
        ThoradError: an image that is not healthy is among the healthy ones.
    """
    diseased = {case.image.resolve() for case in cases if case.has_finding}
    both = sorted(diseased & {path.resolve() for path in healthy})
    if both:
        raise ThoradError(
            f"{len(both)} images are marked as diseased and are among the healthy ones, too: "
            f"{listing(list(map(str, both)))}. Take them out of one of the two."
        )
    known = {case.image.resolve() for case in cases if not case.has_finding}
    new = [path for path in healthy if path.resolve() not in known]
    names = free_names(case_names(new, [path.parent for path in new]), {case.name for case in cases}, "healthy")
    return [
        Case(image=path, mask=None, subject=subject_of(path), name=name) for path, name in zip(new, names, strict=True)
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
    height, width = pixels.shape
    mask = read_mask(case.mask, (height, width))
    if not mask.any():
        raise ThoradError(f"{case.mask}: the mask marks no pixel. Leave the mask column empty for a healthy case.")
    return image, mask_to_model_grid(mask, size)


def _read_labelled_set(
    cases: Sequence[Case],
    size: int,
    read: Read[TruthType],
    needed: Set[str],
    truth_column: str,
) -> LabelledSet[TruthType]:
    """Read every case onto the model's grid; leave out, and list, those that can't be used.

    Without any of the needed cases it is an error.
    """
    usable: list[Case] = []
    images: list[torch.Tensor] = []
    truths: list[TruthType] = []
    failures: list[Failure] = []
    for case in cases:
        try:
            image, truth = read(case, size)
        except (ThoradError, OSError) as error:
            failures.append({"name": case.name, "image": str(case.image), "reason": str(error)})
            continue
        usable.append(case)
        images.append(image)
        truths.append(truth)
    if needed.isdisjoint(case.name for case in usable):
        reasons = "".join(f"\n  {failure['name']}: {failure['reason']}" for failure in failures)
        raise ThoradError(
            f"None of the {len(cases)} cases has anything in the column {truth_column} that can be used, so there is "
            f"nothing to measure. Give a CSV with the columns image and {truth_column}.{reasons}"
        )
    return LabelledSet(usable, torch.stack(images), truths, failures)


class _CachedMap(NamedTuple):
    """What a detector made of one image, as it is kept."""

    map: NDArray[np.float32]  # (S, S)
    score: Floats  # ()
    cpu_seconds: Floats  # ()


def _run_detector(
    detector: MapDetector,
    labelled: LabelledSet[TruthType],
    done: int,
    total: int,
    on_progress: Progress | None,
    keep: Path | None,
) -> DetectorRun[TruthType]:
    names = [case.name for case in labelled.cases]
    made: list[_CachedMap] = []
    for start in range(0, len(names), detector.batch_size):
        batch = slice(start, start + detector.batch_size)
        made += _maps_of_batch(detector, labelled.images[batch], names[batch], keep)
        if on_progress is not None:
            on_progress(done + min(batch.stop, len(names)), total, detector.method)
    return DetectorRun(
        detector=detector,
        region=np.asarray(detector.region, dtype=np.bool_),
        labelled=labelled,
        maps=np.stack([cached.map for cached in made]),
        scores=np.stack([cached.score for cached in made]),
        cpu_seconds_per_case=float(np.mean([cached.cpu_seconds for cached in made])),
    )


def _maps_of_batch(
    detector: MapDetector, images: torch.Tensor, names: Sequence[str], keep: Path | None
) -> list[_CachedMap]:
    """The maps of a batch: those that are kept, and the others made now, and kept."""
    files = [] if keep is None else _cache_files(detector, images, names, keep)
    made: dict[int, _CachedMap] = {}
    for index, file in enumerate(files):
        if file.is_file():
            with np.load(file, allow_pickle=False) as content:
                made[index] = _CachedMap(**content)
    missing = [index for index in range(len(names)) if index not in made]
    if missing:
        before = time.process_time()
        maps = detector.model_maps(images[missing], [names[index] for index in missing])  # (B, 1, S, S)
        scores = detector.scores(maps).detach().double().cpu()  # (B,)
        seconds = np.asarray((time.process_time() - before) / len(missing))
        for index, map, score in zip(missing, maps.detach().float().cpu(), scores, strict=True):
            made[index] = _CachedMap(map[0].numpy(), score.numpy().reshape(()), seconds)
            if files:
                written = io.BytesIO()
                np.savez(written, **made[index]._asdict())
                write_atomic(files[index], written.getvalue())
    return [made[index] for index in range(len(names))]


def _cache_files(detector: MapDetector, images: torch.Tensor, names: Sequence[str], keep: Path) -> list[Path]:
    """Where the map of each image is kept: a name that tells the detector, the case and the pixels."""
    provenance = json.dumps(detector.provenance(), sort_keys=True).encode()
    contents = (
        b"\0".join((provenance, name.encode(), image.numpy().tobytes()))
        for name, image in zip(names, images, strict=True)
    )
    return [keep / f"{hashlib.sha256(content).hexdigest()[:32]}.npz" for content in contents]


def _not_finite(runs: Sequence[DetectorRun[TruthType]], needed: Set[str]) -> list[Failure]:
    """List the cases for which a detector gave NaN or infinity; an error where that leaves none of the needed ones."""
    broken_by: dict[str, list[str]] = {}  # case -> detectors
    files: dict[str, str] = {}
    for run in runs:
        cases = run.labelled.cases
        files |= {case.name: str(case.image) for case in cases}
        finite = np.isfinite(run.maps).all(axis=(1, 2)) & np.isfinite(run.scores)
        for index in np.flatnonzero(~finite):
            broken_by.setdefault(cases[index].name, []).append(title(run.about))
    if needed & files.keys() <= broken_by.keys():
        titles = dict.fromkeys(title for broken in broken_by.values() for title in broken)
        raise ThoradError(
            f"{', '.join(titles)} gave a map or score with NaN or infinity, and no lesion case is left without. "
            "The model is damaged or was trained with other settings; check the model folder."
        )
    return [
        {
            "name": name,
            "image": files[name],
            "reason": f"{', '.join(titles)} gave a map or score with NaN or infinity, so it is left out for every "
            "method. The model may be damaged or this image unlike those that it was trained on; look at both.",
        }
        for name, titles in broken_by.items()
    ]
