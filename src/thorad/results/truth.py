"""What the truth says about the maps of a result folder, on the images' own grids.

The figures are those of `thorad.evaluation.metrics`, over counts of pixels at thresholds.
Shapes: N cases, L of them with a lesion, K thresholds, R bootstrap resamples; H, W an image's own grid.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np
from numpy.typing import NDArray

from thorad.datasets.cases import Case as Labelled
from thorad.evaluation import metrics
from thorad.evaluation.metrics import Bools, Floats, ThresholdCounts
from thorad.evaluation.sizes import SIZE_GROUPS, size_group
from thorad.results.charts import Interval
from thorad.results.reader import ResultFolder, read_pictures, truth_of

SAMPLED = 2**16
"""Pixels of an image among which thresholds are chosen; all are measured."""

CURVE_STEP = (metrics.FINE_THRESHOLDS - 1) // (2 * (metrics.BEST_DICE_THRESHOLDS - 1))
"""Every so many of the fine thresholds is a point of the curves."""


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
    figures: Mapping[str, Interval]
    words: str
    """Where the figures come from."""
    dice: Mapping[str, float] = field(default_factory=dict)
    """Of the cases with a lesion, at `threshold`."""
    threshold: float = float("nan")
    """Of `dice`; NaN where no case has a lesion."""
    at_words: str = ""
    """That threshold, and where it comes from."""
    average_precision: Interval = Interval(None, None)  # noqa: RUF009 - frozen
    by_size: Mapping[str, OfSize] = field(default_factory=dict)
    curve: Curve | None = None
    """None where no case has a lesion."""


@dataclass(frozen=True)
class _Case:
    """One image of the folder whose truth is known."""

    name: str
    subject: str
    score: float
    anomaly_map: NDArray[np.float32]
    """(H, W)."""
    lesion: Bools
    """(H, W)."""


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
    cases = _known_cases(folder, rows)
    if not cases:
        return None
    lesion_pixels = {case.name: int(case.lesion.sum()) for case in cases}
    size = {case.name: size_group(lesion_pixels[case.name], max(case.lesion.shape)) for case in cases}
    diseased = np.asarray([case.lesion.any() for case in cases], np.bool_)
    weights = metrics.subject_resamples([case.subject for case in cases], bootstrap, np.random.default_rng(seed))
    words = f"Cases: {diseased.sum()} with a lesion, {(~diseased).sum()} healthy."
    if not diseased.any():
        return Measured(lesion_pixels, size, {"AUROC of the images": Interval(None, None)}, words)
    with_lesion = [case for case in cases if lesion_pixels[case.name]]
    fine = _counts(with_lesion, _thresholds(with_lesion))
    best = metrics.best_of_counts(fine)
    chosen = best.threshold if folder.threshold is None else folder.threshold
    at = _counts(with_lesion, [chosen])
    of_lesions = weights[:, diseased]
    average_precision = _estimate(partial(metrics.resampled_average_precision, fine), of_lesions)
    figures = {
        "average precision of the pixels": average_precision,
        f"best Dice, at {best.threshold:.3g} (chosen on this truth: an upper bound)": _best_dice(fine, of_lesions),
    }
    if folder.threshold is not None:
        figures[f"Dice at {chosen:.3g} (the run's threshold)"] = _best_dice(at, of_lesions)
    figures["AUROC of the images' scores"] = _image_auroc(cases, diseased, weights)
    words += (
        " Measured on the images' own grids, every pixel of them; pixels are pooled over the cases with a lesion. "
        f"Intervals: bootstrap over subjects, {bootstrap} resamples."
    )
    if folder.threshold is None:
        words += " Without a calibration, Dice of single cases is at the best threshold."
    return Measured(
        lesion_pixels=lesion_pixels,
        size=size,
        figures=figures,
        words=words,
        dice=dict(zip((case.name for case in with_lesion), metrics.case_dice(at)[:, 0].tolist(), strict=True)),
        threshold=chosen,
        at_words=f"at {chosen:.3g}" if folder.threshold is not None else f"at the best threshold, {chosen:.3g}",
        average_precision=average_precision,
        by_size=_by_size([size[case.name] for case in with_lesion], fine, at, of_lesions),
        curve=_curve(fine.every(CURVE_STEP)),
    )


def _known_cases(folder: ResultFolder, rows: Mapping[str, Labelled]) -> list[_Case]:
    cases: list[_Case] = []
    for case in folder.cases:
        if not case.done or case.name not in rows:
            continue
        picture, row = read_pictures(case)[0], rows[case.name]
        if picture.slice_index is None:
            height, width = picture.anomaly_map.shape
            lesion = truth_of(row, (height, width))
            cases.append(_Case(case.name, row.subject, float(case.score or 0.0), picture.anomaly_map, lesion))
    return cases


def _thresholds(cases: Sequence[_Case]) -> Floats:
    """(K,) fine thresholds, from a sample of the pixels."""
    maps = [case.anomaly_map.ravel() for case in cases]
    sampled = [values[:: max(1, values.size // SAMPLED)] for values in maps]
    return metrics.tail_thresholds(np.concatenate(sampled), metrics.FINE_THRESHOLDS)


def _counts(cases: Sequence[_Case], thresholds: Floats | Sequence[float]) -> ThresholdCounts:
    maps = [case.anomaly_map.ravel() for case in cases]
    return metrics.count_above(maps, [case.lesion.ravel() for case in cases], thresholds)


def _best_dice(counts: ThresholdCounts, weights: Floats) -> Interval:
    """Best Dice over the counts' thresholds, which may be a single one."""
    return _estimate(partial(metrics.resampled_best_dice, counts), weights)


def _estimate(figure: Callable[[Floats], Floats], weights: Floats) -> Interval:
    """A figure of all cases, each once, with its interval over (R, N) weights."""
    return _interval(figure(np.ones((1, weights.shape[1])))[0], figure(weights))


def _image_auroc(cases: Sequence[_Case], diseased: Bools, weights: Floats) -> Interval:
    scores = [case.score for case in cases]
    return _interval(metrics.auroc(scores, diseased), metrics.resampled_image_auroc(scores, diseased, weights))


def _by_size(
    sizes: Sequence[str | None], fine: ThresholdCounts, at: ThresholdCounts, weights: Floats
) -> dict[str, OfSize]:
    by_size = {}
    for group in SIZE_GROUPS:
        member = np.asarray([size == group for size in sizes], np.bool_)
        if member.any():
            best, at_threshold = (_best_dice(counts.of(member), weights[:, member]) for counts in (fine, at))
            by_size[group] = OfSize(int(member.sum()), best, at_threshold)
    return by_size


def _curve(counts: ThresholdCounts) -> Curve:
    """The curves where anything is predicted."""
    curves = metrics.threshold_curves(counts)
    some = counts.predicted.sum(axis=0) > 0
    kept = {name: np.asarray(curves[name])[some].tolist() for name in ("dice", "precision", "recall")}
    return Curve(thresholds=counts.thresholds[some].tolist(), **kept)


def _interval(value: float, resampled: Floats) -> Interval:
    ends = metrics.percentile_interval(resampled)
    return Interval(float(value) if np.isfinite(value) else None, ends if np.isfinite(ends).all() else None)
