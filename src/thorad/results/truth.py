"""What the truth says about the maps of a result folder, on the images' own grids.

Shapes: N cases with a lesion, K thresholds.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from thorad.datasets.cases import Case as Labelled
from thorad.evaluation import metrics
from thorad.evaluation.sizes import SIZE_GROUPS, size_group
from thorad.results.charts import Interval
from thorad.results.reader import ResultFolder, read_pictures, truth_of

SAMPLED = 2**16
"""Pixels of an image among which thresholds are chosen; all are measured."""


@dataclass(frozen=True)
class Curve:
    """Pooled over the cases with a lesion, at falling thresholds."""

    thresholds: list[float]
    dice: list[float]
    precision: list[float]
    recall: list[float]


@dataclass(frozen=True)
class OfSize:
    """Figures of the lesions of one size."""

    cases: int
    best: Interval
    at: Interval


@dataclass(frozen=True)
class Measured:
    """Figures of one folder; those of single cases are by their name."""

    lesion_pixels: Mapping[str, int]
    """0: healthy."""
    size: Mapping[str, str | None]
    dice: Mapping[str, float]
    """Of the cases with a lesion, at `threshold`."""
    threshold: float
    """Of `dice`; NaN where no case has a lesion."""
    at_words: str
    """That threshold, and where it comes from."""
    figures: Mapping[str, Interval]
    average_precision: Interval
    by_size: Mapping[str, OfSize]
    curve: Curve | None
    """None where no case has a lesion."""
    words: str
    """Where the figures come from."""


def measure(folder: ResultFolder, rows: Mapping[str, Labelled], *, bootstrap: int, seed: int) -> Measured | None:
    """Measure a folder's maps against the truth.

    Args:
        folder: of `thorad detect`.
        rows: {case name: row of the truth}, of some of its cases. Volumes are passed over.
        bootstrap: resamples over subjects for the intervals; 0 for none.
        seed: of the bootstrap.

    Returns:
        None where no image among the cases has a known truth.

    Raises:
        ThoradError: a mask that can't be read or lies on another grid, a damaged picture.
    """
    maps: dict[str, NDArray[np.float32]] = {}
    truths: dict[str, NDArray[np.bool_]] = {}
    scores: dict[str, float] = {}
    for case in folder.cases:
        if not case.done or case.name not in rows:
            continue
        pictures = read_pictures(case)
        if pictures[0].slice_index is not None:
            continue
        found = pictures[0].anomaly_map
        maps[case.name] = found
        truths[case.name] = truth_of(rows[case.name], (found.shape[0], found.shape[1]))
        scores[case.name] = float(case.score or 0.0)
    names = list(maps)
    pixels = {name: int(truths[name].sum()) for name in names}
    size = {name: size_group(pixels[name], max(maps[name].shape)) for name in names}
    if not names:
        return None
    ill = np.asarray([pixels[name] > 0 for name in names], np.bool_)
    lesion_names = [name for name in names if pixels[name]]
    subjects = [rows[name].subject for name in names]
    weights = metrics.subject_resamples(subjects, bootstrap, np.random.default_rng(seed))
    of_images = [scores[name] for name in names]
    auroc = Interval(
        _number(metrics.auroc(of_images, ill)), _ends(metrics.resampled_image_auroc(of_images, ill, weights))
    )
    said = f"Cases: {len(lesion_names)} with a lesion, {len(names) - len(lesion_names)} healthy."
    if not lesion_names:
        none = Interval(None, None)
        return Measured(pixels, size, {}, float("nan"), "", {"AUROC of the images": none}, none, {}, None, said)

    sampled = [maps[name].ravel()[:: max(1, maps[name].size // SAMPLED)] for name in lesion_names]
    thresholds = metrics.tail_thresholds(np.concatenate(sampled), metrics.FINE_THRESHOLDS)
    fine = _counts(maps, truths, lesion_names, thresholds)
    best = metrics.best_of_counts(fine)
    chosen = best.threshold if folder.threshold is None else folder.threshold
    at = _counts(maps, truths, lesion_names, np.asarray([chosen]))
    of_ill = weights[:, ill]
    once = np.ones((1, len(lesion_names)))
    precision_area = Interval(
        float(metrics.resampled_average_precision(fine, once)[0]),
        _ends(metrics.resampled_average_precision(fine, of_ill)),
    )

    def interval_of(counts: metrics.ThresholdCounts, times: NDArray[np.float64]) -> Interval:
        value = metrics.resampled_best_dice(counts, np.ones((1, len(counts.pixels))))
        return Interval(_number(value[0]), _ends(metrics.resampled_best_dice(counts, times)))

    at_words = f"at {chosen:.3g}" if folder.threshold is not None else f"at the best threshold, {chosen:.3g}"
    figures = {
        "average precision of the pixels": precision_area,
        f"best Dice, at {best.threshold:.3g} (chosen on this truth: an upper bound)": interval_of(fine, of_ill),
        **({f"Dice {at_words} (the run's threshold)": interval_of(at, of_ill)} if folder.threshold is not None else {}),
        "AUROC of the images' scores": auroc,
    }
    groups = np.asarray([size[name] or "" for name in lesion_names])
    by_size = {}
    for group in SIZE_GROUPS:
        member = groups == group
        if member.any():
            by_size[group] = OfSize(
                int(member.sum()),
                interval_of(fine.of(member), of_ill[:, member]),
                interval_of(at.of(member), of_ill[:, member]),
            )
    coarse = fine.every((metrics.FINE_THRESHOLDS - 1) // (2 * (metrics.BEST_DICE_THRESHOLDS - 1)))
    predicted, right = coarse.predicted.sum(axis=0), coarse.true_positive.sum(axis=0)
    some = predicted > 0
    curve = Curve(
        thresholds=coarse.thresholds[some].tolist(),
        dice=metrics.pooled_dice(coarse)[0][some].tolist(),
        precision=(right[some] / predicted[some]).tolist(),
        recall=(right[some] / coarse.lesion.sum()).tolist(),
    )
    return Measured(
        lesion_pixels=pixels,
        size=size,
        dice=dict(zip(lesion_names, metrics.case_dice(at)[:, 0].tolist(), strict=True)),
        threshold=chosen,
        at_words=at_words,
        figures=figures,
        average_precision=precision_area,
        by_size=by_size,
        curve=curve,
        words=f"{said} Measured on the images' own grids, every pixel of them; pixels are pooled over the cases with a "
        f"lesion. Intervals: bootstrap over subjects, {bootstrap} resamples."
        + (
            ""
            if folder.threshold is not None
            else " Without a calibration, Dice of single cases is at the best threshold."
        ),
    )


def _counts(
    maps: Mapping[str, NDArray[np.float32]],
    truths: Mapping[str, NDArray[np.bool_]],
    names: list[str],
    thresholds: NDArray[np.float64],
) -> metrics.ThresholdCounts:
    """Counts of cases that may differ in size."""
    each = [metrics.count_above(maps[name].reshape(1, -1), truths[name].reshape(1, -1), thresholds) for name in names]
    return metrics.ThresholdCounts(
        thresholds=thresholds,
        **{
            field: np.concatenate([getattr(one, field) for one in each])
            for field in ("predicted", "true_positive", "pixels", "lesion", "missed")
        },
    )


def _ends(resampled: NDArray[np.float64]) -> tuple[float, float] | None:
    low, high = metrics.percentile_interval(resampled)
    return (low, high) if np.isfinite([low, high]).all() else None


def _number(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None
