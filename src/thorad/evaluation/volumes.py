"""The protocol `brain-volumes`: post-processed maps and means over volumes, as Behrendt et al. report them.

Patched diffusion models for unsupervised anomaly detection in brain MRI, MIDL 2023 (arXiv 2303.03758): median filter of
5, eroded brain mask, a threshold chosen on a validation set, components under 7 voxels dropped; then the mean of the
volumes' own Dice and AUPRC. The brain mask here is the model's region.

What the sources leave open, as it is here: sizes are voxels of the model's grid; the erosion takes 3 steps of 1 px in
each slice; voxels touch by faces, edges and corners; all voxels of the grid count for Dice and AUPRC, those outside the
eroded mask as 0. A volume of one slice is filtered in the plane.

Shapes: V volumes, D slices of a volume, S the grid's side.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from thorad.datasets.cases import Case
from thorad.errors import ThoradError
from thorad.evaluation import metrics, statistics
from thorad.evaluation.metrics import Bools, Floats
from thorad.evaluation.runs import DetectorRun, Measured, Protocol, Resampling, percent, read_masked
from thorad.evaluation.statistics import Sample, interval
from thorad.findings import components
from thorad.io.images import read_mask
from thorad.io.tables import listing

MEDIAN: Final = 5  # voxels of the median filter in each direction
EROSION: Final = 3  # steps of 1 px by which the brain mask is eroded in each slice
SMALLEST_COMPONENT: Final = 7  # voxels; smaller components are dropped
FALLBACK_RATE: Final = 0.01  # share of healthy voxels above the threshold where no validation set gives one
COMPARED: Final = {"mean_dice": "dice", "mean_auprc": "auprc"}
"""The figures in which methods are compared, each the mean of a column of cases.csv."""


@dataclass(frozen=True)
class Volume:
    """One post-processed volume."""

    name: str
    subject: str
    diseased: bool  # whether a slice of it has a lesion mask, even if the lesion is too small for the model's grid
    values: NDArray[np.float32]  # (D, S, S) map after the median filter, 0 outside the eroded mask
    lesion: Bools  # (D, S, S)


def post_process(maps: NDArray[np.float32], region: Bools) -> NDArray[np.float32]:
    """Median-filter a volume's maps (D, S, S), slices in order, and set them to 0 outside the eroded brain mask (S, S).

    What lies beyond the grid counts as outside.
    """
    # With mirrored edges a single slice gives the same in depth 5 and 1, but slower.
    depth = 1 if len(maps) == 1 else MEDIAN
    smooth = ndimage.median_filter(maps, size=(depth, MEDIAN, MEDIAN), mode="reflect")
    return np.where(erode(region), smooth, np.float32(0))


def erode(region: Bools) -> Bools:
    """Take `EROSION` steps of 1 px off an (S, S) mask."""
    return np.asarray(ndimage.binary_erosion(region, iterations=EROSION), dtype=np.bool_)


def drop_small(predicted: Bools) -> Bools:
    """Drop the components of a (D, S, S) prediction that have fewer than `SMALLEST_COMPONENT` voxels."""
    labels, sizes = components(predicted)
    return np.asarray(np.append(False, sizes >= SMALLEST_COMPONENT)[labels], dtype=np.bool_)


def volume_dice(volume: Volume, threshold: float) -> float:
    """Dice of one diseased volume at a threshold, small components dropped."""
    return float(np.nan_to_num(metrics.dice(drop_small(volume.values > threshold), volume.lesion)))


def volume_auprc(volume: Volume) -> float:
    """Average precision over the voxels of one diseased volume."""
    return float(np.nan_to_num(metrics.average_precision(volume.values, volume.lesion)))


def best_threshold(volumes: Sequence[Volume]) -> float:
    """Find the threshold with the best mean Dice over the volumes with lesions (one or more), among the field's 101."""
    diseased = [volume for volume in volumes if volume.diseased]
    values = np.concatenate([volume.values.ravel() for volume in diseased])
    thresholds = np.unique(metrics.tail_thresholds(values))[::-1]
    means = [np.mean([volume_dice(volume, threshold) for volume in diseased]) for threshold in thresholds]
    return float(thresholds[int(np.argmax(means))])


def measure(run: DetectorRun[Bools], resampling: Resampling) -> Measured[dict[str, Floats]]:
    """Turn one detector's maps into its result and its rows of `cases.csv`, one for each volume.

    The threshold has the best mean Dice on the validation set; without one, 1 % of the healthy scans' voxels exceed it.
    The test labels never choose it.
    """
    tested, validating = _volumes(run, validation=False), _volumes(run, validation=True)
    healthy = [volume for volume in tested if not volume.diseased]
    threshold, source = _threshold(validating, healthy, erode(run.region))
    rows = [_row(run, volume, threshold) for volume in tested]
    of_lesions = [row for row in rows if row["kind"] == "lesion"]
    false_voxels = [row["predicted_voxels"] for row in rows if row["kind"] == "healthy"]
    of_volume = {name: np.asarray([row[column] for row in of_lesions]) for name, column in COMPARED.items()}
    subjects = [row["subject"] for row in of_lesions]
    resampled = statistics.weighted_means(of_volume, resampling.weights(subjects))
    figures = {name: float(values.mean()) for name, values in of_volume.items()}
    result: dict[str, Any] = {
        **run.about,
        **figures,
        "standard_deviation": {name: float(values.std()) for name, values in of_volume.items()},
        "network_calls": run.detector.network_calls,
        "cpu_seconds_per_case": run.cpu_seconds_per_case,
        "intervals": {name: interval(values) for name, values in resampled.items()},
        "thresholds": {"mean_dice": threshold, "mean_dice_source": source},
        "counts": {
            "lesion_volumes": len(subjects),
            "healthy_volumes": len(healthy),
            "validation_volumes": len(validating),
            "slices": sum(len(volume.values) for volume in tested),
            "subjects": len({volume.subject for volume in tested}),
            "mean_false_voxels_in_healthy": float(np.mean(false_voxels)) if healthy else None,
            "bootstrap_resamples": resampling.bootstrap,
        },
        "failures": run.failures,
    }
    return Measured(
        result, rows, subjects, Sample(run.about, run.detector.network_calls, figures, resampled), kept=of_volume
    )


def _row(run: DetectorRun[Bools], volume: Volume, threshold: float) -> dict[str, Any]:
    return {
        **run.about,
        "name": volume.name,
        "subject": volume.subject,
        "kind": "lesion" if volume.diseased else "healthy",
        "slices": len(volume.values),
        "lesion_voxels": int(volume.lesion.sum()),
        "predicted_voxels": int(drop_small(volume.values > threshold).sum()),
        "dice": volume_dice(volume, threshold) if volume.diseased else None,
        "auprc": volume_auprc(volume) if volume.diseased else None,
    }


def check_validation(cases: Sequence[Case], validation: Sequence[Case]) -> None:
    """Refuse test and validation cases that don't go together.

    Raises:
        ThoradError: nothing to choose a threshold from, subjects in both, a volume of several subjects.
    """
    diseased = {_volume_of(case) for case in cases if case.has_finding}
    labelled = any(case.has_finding for case in validation)
    if not labelled and all(_volume_of(case) in diseased for case in cases):
        raise ThoradError(
            "The protocol brain-volumes needs a threshold that the test labels don't choose. Give labelled validation "
            "cases of other subjects (`--validation`), or healthy images (`--healthy`)."
        )
    shared = sorted({case.subject for case in cases if case.has_finding} & {case.subject for case in validation})
    if shared:
        raise ThoradError(
            f"{len(shared)} subjects appear in both the test and the validation cases: {listing(shared)}. A threshold "
            "that is chosen on a test subject says nothing; move all images of a subject to one side."
        )
    files = {case.image.resolve() for case in cases if case.has_finding}
    if both := sorted(str(case.image) for case in validation if case.image.resolve() in files):
        raise ThoradError(
            f"{len(both)} images are among both the test and the validation cases: {listing(both)}. A threshold that "
            "is chosen on a test image says nothing; take them out of one of the two."
        )
    for role in (cases, validation):
        _refuse_unclear_volumes(role)
    in_volumes = [{case.volume is not None for case in role if case.has_finding} for role in (cases, validation)]
    if in_volumes[1] and in_volumes[0] != in_volumes[1]:
        raise ThoradError(
            "The test cases are volumes and the validation cases single slices, or the other way round: a threshold of "
            "one doesn't fit the other. Give both the column volume, or neither."
        )


def _volume_of(case: Case) -> tuple[bool, str]:
    """What the slices of a volume have in common. (A volume may be called like a slice that is one by itself.)"""
    return case.volume is None, case.volume or case.name


def _without_empty_mask(case: Case) -> Case:
    """A slice of a volume as it says that it has no lesion: by no mask, or by one in which nothing is marked."""
    if case.mask is None or case.volume is None:
        return case
    try:
        return case if read_mask(case.mask).any() else replace(case, mask=None)
    except (ThoradError, OSError):
        return case  # reading it with its image will say why


def _refuse_unclear_volumes(cases: Sequence[Case]) -> None:
    """Raise where it isn't clear whose volumes these are, which slices they have, or in which order."""
    subjects: dict[str, set[str]] = {}
    for case in cases:
        if case.volume is not None:
            subjects.setdefault(case.volume, set()).add(case.subject)
    if mixed := [volume for volume, of_volume in subjects.items() if len(of_volume) > 1]:
        raise ThoradError(
            f"{len(mixed)} volumes have slices of several subjects: {listing(mixed)}. Give every volume a name of "
            "its own in the column volume, and all its slices one subject in the column subject."
        )
    of_volumes = {case.subject for case in cases if case.volume is not None}
    lesions_in_volumes = any(case.has_finding for case in cases if case.volume is not None)
    if alone := [
        case.name
        for case in cases
        if case.volume is None and (case.subject in of_volumes or (case.has_finding and lesions_in_volumes))
    ]:
        raise ThoradError(
            f"{len(alone)} images have no volume, others of their subject or with a mask have: {listing(alone)}. Fill "
            "in the column volume."
        )
    times = Counter((case.volume, case.slice_number) for case in cases if case.slice_number is not None and case.volume)
    if twice := [f"slice {number} of {volume}" for (volume, number), count in times.items() if count > 1]:
        raise ThoradError(f"{len(twice)} slices are in the table twice: {listing(twice)}. Correct the column slice.")


BRAIN_VOLUMES: Final = Protocol[Bools, dict[str, Floats]](
    truth="mask",
    read_truth=read_masked,
    measure=measure,
    pair=statistics.paired_means,
    headline=lambda result: percent(result["mean_dice"]),
    headline_name="mean Dice",
    outline=lambda lesions, side: lesions,
    together=_volume_of,
    prepared=lambda cases: [_without_empty_mask(case) for case in cases],
    check_validation=check_validation,
)


def _volumes(run: DetectorRun[Bools], *, validation: bool) -> list[Volume]:
    """Put the slices of each volume together, in the order of their slice numbers, then of the table."""
    members: dict[tuple[bool, str], list[int]] = {}
    for index, case in enumerate(run.cases):
        if (case.name in run.validation) == validation:
            members.setdefault(_volume_of(case), []).append(index)
    volumes: list[Volume] = []
    for (_, name), slices in members.items():
        slices.sort(key=lambda index: run.cases[index].slice_number or 0)
        volumes.append(
            Volume(
                name=name,
                subject=run.cases[slices[0]].subject,
                diseased=any(run.cases[index].has_finding for index in slices),
                values=post_process(run.maps[slices], run.region),
                lesion=np.stack([run.truths[index] for index in slices]),
            )
        )
    return volumes


def _threshold(validating: Sequence[Volume], healthy: Sequence[Volume], brain: Bools) -> tuple[float, str]:
    """The threshold and where it comes from."""
    labelled = sum(volume.diseased for volume in validating)
    if labelled:
        return best_threshold(validating), f"best mean Dice on {labelled} labelled validation volumes"
    if not healthy:
        raise ThoradError(
            "None of the validation cases or healthy images can be used, so there is no threshold. Look at the images "
            "and their masks, or give others."
        )
    values = np.concatenate([volume.values[:, brain].ravel() for volume in healthy])
    return (
        metrics.threshold_at_fpr(values, FALLBACK_RATE),
        f"{100 * FALLBACK_RATE:g} % of the voxels of {len(healthy)} healthy volumes (no validation labels available)",
    )
