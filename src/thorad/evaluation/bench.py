"""From labelled cases and detectors to maps on the models' grids: where every protocol begins.

Everything is measured on the model's own grid (128x128 in the paper): images and truths take the same way there.
Shapes: N cases, S the grid's side.
"""

import hashlib
import io
import json
import time
from collections.abc import Callable, Sequence
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
from thorad.io.images import case_names, read_image, read_mask
from thorad.io.preprocess import mask_to_model_grid, to_model_input
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


class LabelledCase(Protocol):
    """What a bench needs of a case; its truth is the protocol's matter."""

    @property
    def image(self) -> Path:
        """The image file."""

    @property
    def subject(self) -> str:
        """Cases of one subject are not independent."""

    @property
    def name(self) -> str:
        """Case id, unique among the cases."""


CaseType = TypeVar("CaseType", bound=LabelledCase)
TruthType = TypeVar("TruthType")


@dataclass(frozen=True)
class Bench(Generic[CaseType, TruthType]):
    """The cases on one model grid that can be used."""

    cases: list[CaseType]
    images: torch.Tensor
    """(N, 1, S, S) in [0, 1]."""
    truths: list[TruthType]
    """Of each case, on the model's grid."""
    failures: list[Failure]


@dataclass(frozen=True)
class Found(Generic[CaseType, TruthType]):
    """What one detector found in the cases that every detector could use."""

    detector: MapDetector
    region: Bools
    """(S, S), not empty."""
    bench: Bench[CaseType, TruthType]
    maps: NDArray[np.float32]
    """(N, S, S)."""
    scores: Floats
    """(N,)."""
    cpu_seconds_per_case: float

    @property
    def about(self) -> dict[str, Any]:
        """What a result says first: which detector this is."""
        detector = self.detector
        values = (detector.method, detector.noise, detector.steps, detector.model_name)
        asked = {name: getattr(detector, name, None) for name in ASKED}
        return dict(zip(ABOUT, values, strict=True)) | {name: one for name, one in asked.items() if one is not None}


def find_all(
    cases: Sequence[CaseType],
    detectors: Sequence[MapDetector],
    read: Callable[[CaseType, int], tuple[torch.Tensor, TruthType]],
    counts: Callable[[CaseType], bool],
    labels: str,
    on_progress: Progress | None = None,
    keep: Path | None = None,
) -> list[Found[CaseType, TruthType]]:
    """Run the detectors over the cases.

    A case that can't be read, or for which any detector gives a map that is not finite, is left out for every
    detector, so that all are compared on the same cases, and listed among the failures of each bench.

    Args:
        cases: of which each has a name of its own.
        detectors: their models may have different grids and regions.
        read: reads a case onto a grid of S x S px: (1, S, S) image in [0, 1], and the truth.
        counts: whether a case has something to be found, without any of which there is nothing to measure.
        labels: the column of the user's table that holds the truth, for errors.
        on_progress: see `Progress`.
        keep: folder where maps are kept, and taken from if the same detector has seen the same images before.

    Returns:
        What each detector found, on the same cases in the same order.

    Raises:
        ThoradError: no case that counts is left; a region is empty.
    """
    for detector in detectors:
        if not np.asarray(detector.region).any():
            raise ThoradError(f"{detector.method}: the model's region is empty, so there is nothing to measure in.")
    benches = {
        size: _read_bench(cases, size, read, counts, labels)
        for size in dict.fromkeys(detector.model_size for detector in detectors)
    }
    total = sum(len(benches[detector.model_size].cases) for detector in detectors)
    done = 0
    found: list[Found[CaseType, TruthType]] = []
    for detector in detectors:
        bench = benches[detector.model_size]
        found.append(_detect(detector, bench, done, total, on_progress, keep))
        done += len(bench.cases)
    failures = [
        *{failure["name"]: failure for bench in benches.values() for failure in bench.failures}.values(),
        *_not_finite(found, counts),
    ]
    return [_leave_out(failures, one) for one in found]


def healthy_cases(
    cases: Sequence[CaseType],
    healthy: Sequence[Path],
    is_healthy: Callable[[CaseType], bool],
    make: Callable[[Path, str, str], CaseType],
) -> list[CaseType]:
    """Make cases of healthy images, without those that are among the cases already, under names that are still free.

    Args:
        cases: the table's.
        healthy: more healthy images.
        is_healthy: whether one of the table's cases is healthy.
        make: makes a healthy case of a file, its subject and a name.

    Raises:
        ThoradError: an image that is not healthy is among the healthy ones.
    """
    ill = {case.image.resolve() for case in cases if not is_healthy(case)}
    both = sorted(ill & {path.resolve() for path in healthy})
    if both:
        raise ThoradError(
            f"{len(both)} images are marked as diseased and are among the healthy ones, too: "
            f"{listing(list(map(str, both)))}. Take them out of one of the two."
        )
    known = {case.image.resolve() for case in cases if is_healthy(case)}
    new = [path for path in healthy if path.resolve() not in known]
    names = free_names(case_names(new, [path.parent for path in new]), {case.name for case in cases}, "healthy")
    return [make(path, subject_of(path), name) for path, name in zip(new, names, strict=True)]


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


def healthy_slice(image: Path, subject: str, name: str) -> Case:
    """A case without a lesion."""
    return Case(image=image, mask=None, subject=subject, name=name)


def has_lesion(case: Case) -> bool:
    """Whether a case has a lesion mask."""
    return case.mask is not None


def read_masked(case: Case, size: int) -> tuple[torch.Tensor, Bools]:
    """Read one image (1, S, S) and its lesions (S, S) on the model's grid.

    Raises:
        ThoradError: as `read_image` and `read_mask`; the mask marks nothing.
    """
    pixels = read_image(case.image).pixels
    image, _ = to_model_input(pixels, size)
    if case.mask is None:
        return image, np.zeros((size, size), dtype=np.bool_)
    height, width = pixels.shape
    mask = read_mask(case.mask, (height, width))
    if not mask.any():
        raise ThoradError(f"{case.mask}: the mask marks no pixel. Leave the mask column empty for a healthy case.")
    return image, mask_to_model_grid(mask, size)


def _read_bench(
    cases: Sequence[CaseType],
    size: int,
    read: Callable[[CaseType, int], tuple[torch.Tensor, TruthType]],
    counts: Callable[[CaseType], bool],
    labels: str,
) -> Bench[CaseType, TruthType]:
    """Read every case onto the model's grid; keep out, and list, those that can't be used."""
    usable: list[CaseType] = []
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
    if not any(map(counts, usable)):
        reasons = "".join(f"\n  {failure['name']}: {failure['reason']}" for failure in failures)
        raise ThoradError(
            f"None of the {len(cases)} cases has anything in the column {labels} that can be used, so there is "
            f"nothing to measure. Give a CSV with the columns image and {labels}.{reasons}"
        )
    return Bench(usable, torch.stack(images), truths, failures)


def _detect(
    detector: MapDetector,
    bench: Bench[CaseType, TruthType],
    done: int,
    total: int,
    on_progress: Progress | None,
    keep: Path | None,
) -> Found[CaseType, TruthType]:
    names = [case.name for case in bench.cases]
    seen: list[_Seen] = []
    for start in range(0, len(names), detector.batch_size):
        batch = slice(start, start + detector.batch_size)
        seen += _see(detector, bench.images[batch], names[batch], keep)
        if on_progress is not None:
            on_progress(done + min(batch.stop, len(names)), total, detector.method)
    return Found(
        detector=detector,
        region=np.asarray(detector.region, dtype=np.bool_),
        bench=bench,
        maps=np.stack([one.map for one in seen]),
        scores=np.stack([one.score for one in seen]),
        cpu_seconds_per_case=float(np.mean([one.cpu_seconds for one in seen])),
    )


class _Seen(NamedTuple):
    """What a detector found in one image."""

    map: NDArray[np.float32]  # (S, S)
    score: Floats  # ()
    cpu_seconds: Floats  # ()


def _see(detector: MapDetector, images: torch.Tensor, names: Sequence[str], keep: Path | None) -> list[_Seen]:
    """What a detector finds in a batch, without the images that it is known to have seen before."""
    seen: dict[int, _Seen] = {}
    files: list[Path] = []
    if keep is not None:
        provenance = json.dumps(detector.provenance(), sort_keys=True).encode()
        for index, name in enumerate(names):
            everything = b"\0".join((provenance, name.encode(), images[index].numpy().tobytes()))
            files.append(keep / f"{hashlib.sha256(everything).hexdigest()[:32]}.npz")
            if files[index].is_file():
                with np.load(files[index], allow_pickle=False) as kept:
                    seen[index] = _Seen(**kept)
    todo = [index for index in range(len(names)) if index not in seen]
    if todo:
        before = time.process_time()
        maps = detector.model_maps(images[todo], [names[index] for index in todo])  # (B, 1, S, S)
        scores = detector.scores(maps)  # (B,)
        seconds = np.asarray((time.process_time() - before) / len(todo))
        for index, map, score in zip(todo, maps.detach().float().cpu(), scores.detach().double().cpu(), strict=True):
            seen[index] = _Seen(map[0].numpy(), score.numpy().reshape(()), seconds)
            if keep is not None:
                content = io.BytesIO()
                np.savez(content, **seen[index]._asdict())
                write_atomic(files[index], content.getvalue())
    return [seen[index] for index in range(len(names))]


def _not_finite(found: Sequence[Found[CaseType, TruthType]], counts: Callable[[CaseType], bool]) -> list[Failure]:
    """List the cases for which a detector gave NaN or infinity; an error where that leaves nothing to measure."""
    broken_by: dict[str, list[str]] = {}  # case -> detectors
    files: dict[str, str] = {}
    needed: set[str] = set()
    for one in found:
        files |= {case.name: str(case.image) for case in one.bench.cases}
        needed |= {case.name for case in one.bench.cases if counts(case)}
        finite = np.isfinite(one.maps).all(axis=(1, 2)) & np.isfinite(one.scores)
        for index in np.flatnonzero(~finite):
            broken_by.setdefault(one.bench.cases[index].name, []).append(title(one.about))
    if needed <= broken_by.keys():
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


def _leave_out(failures: list[Failure], found: Found[CaseType, TruthType]) -> Found[CaseType, TruthType]:
    """Take these cases out of what a detector found, and list them."""
    lost = {failure["name"] for failure in failures}
    bench = found.bench
    kept = [index for index, case in enumerate(bench.cases) if case.name not in lost]
    left = Bench(
        cases=[bench.cases[index] for index in kept],
        images=bench.images[kept],
        truths=[bench.truths[index] for index in kept],
        failures=failures,
    )
    return replace(found, bench=left, maps=found.maps[kept], scores=found.scores[kept])
