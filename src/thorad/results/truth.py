"""What the truth says about the maps of a result folder, on the images' own grids.

The figures are those of `thorad.evaluation.metrics`, over counts of pixels at thresholds.
Shapes: N cases, L of them with a lesion, K thresholds, R bootstrap resamples; H, W an image's own grid.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from thorad.datasets.cases import Case as Labelled
from thorad.evaluation import metrics
from thorad.evaluation.metrics import Bools, Floats, ThresholdCounts
from thorad.evaluation.sizes import SIZE_GROUPS, size_group
from thorad.evaluation.tables import FEW_SUBJECTS, FEW_SUBJECTS_TELL
from thorad.results.charts import Interval
from thorad.results.folder import ResultFolder, read_pictures, truth_of

SAMPLED = 2**16
"""Pixels of an image among which thresholds are chosen; all are measured."""

CURVE_STEP = (metrics.FINE_THRESHOLDS - 1) // (2 * (metrics.BEST_DICE_THRESHOLDS - 1))
"""Every so many of the fine thresholds is a point of the curves."""


@dataclass(frozen=True)
class Measured:
    """Figures of one folder; those of single cases are by their name."""

    lesion_pixels: Mapping[str, int]  # 0: healthy
    size: Mapping[str, str | None]
    figures: Mapping[str, Interval]
    words: str  # where the figures come from
    dice: Mapping[str, float] = field(default_factory=dict)  # of the cases with a lesion, at `threshold`
    threshold: float = float("nan")  # NaN where no case has a lesion
    at_words: str = ""  # that threshold, and where it comes from
    average_precision: Interval = Interval(None, None)  # noqa: RUF009 - frozen
    by_size: Mapping[str, Mapping[str, Any]] = field(
        default_factory=dict
    )  # {size: {cases, best: Interval, at: Interval}}
    # falling thresholds, dice, precision and recall, pooled; None where no threshold above 0 predicts anything
    curve: Mapping[str, list[float]] | None = None


class _Case(NamedTuple):
    """One image of the folder whose truth is known."""

    name: str
    subject: str
    score: float
    anomaly_map: NDArray[np.float32]  # (H, W)
    lesion: Bools  # (H, W)


def measure(folder: ResultFolder, rows: Mapping[str, Labelled], *, bootstrap: int, seed: int) -> Measured | None:
    """Measure a folder's maps against the truth; None where no image among the cases has a known one.

    Args:
        folder: of `thorad detect`.
        rows: {case name: row of the truth}, of some of its cases. Volumes are passed over.
        bootstrap: resamples over subjects for the intervals; 0 for none.
        seed: of the bootstrap.

    Raises:
        ThoradError: a mask that can't be read or lies on another grid, a damaged picture.
    """
    cases = _known_cases(folder, rows)
    if not cases:
        return None
    lesion_pixels = {case.name: int(case.lesion.sum()) for case in cases}
    size = {case.name: size_group(lesion_pixels[case.name], max(case.lesion.shape)) for case in cases}
    diseased = np.asarray([case.lesion.any() for case in cases], np.bool_)
    words = f"Cases: {diseased.sum()} with a lesion, {(~diseased).sum()} healthy."
    if not diseased.any():
        return Measured(lesion_pixels, size, {"AUROC of the images": Interval(None, None)}, words)
    words += (
        " Measured on the images' own grids, every pixel of them; pixels are pooled over the cases with a lesion. "
        f"Intervals: bootstrap over subjects, {bootstrap} resamples."
    )
    if (subjects := len({case.subject for case in cases if case.lesion.any()})) < FEW_SUBJECTS:
        words += f" Few subjects: {subjects} with a lesion. {FEW_SUBJECTS_TELL}"
    weights = metrics.subject_resamples([case.subject for case in cases], bootstrap, np.random.default_rng(seed))
    scores = [case.score for case in cases]
    auroc = _interval(metrics.auroc(scores, diseased), metrics.resampled_image_auroc(scores, diseased, weights))
    measured = Measured(lesion_pixels, size, {"AUROC of the images' scores": auroc}, words)
    with_lesion = [case for case in cases if lesion_pixels[case.name]]
    return _with_pixels(measured, with_lesion, weights[:, diseased], folder.threshold)


def _with_pixels(measured: Measured, cases: Sequence[_Case], weights: Floats, run_threshold: float | None) -> Measured:
    """Add the figures of the pixels of the cases with a lesion."""
    fine = _counts(cases, _thresholds(cases))
    best = metrics.best_of_counts(fine)
    average_precision = _estimate(partial(metrics.resampled_average_precision, fine), weights)
    figures = {
        "average precision of the pixels": average_precision,
        f"best Dice, at {best.threshold:.3g} (chosen on this truth: an upper bound)": _best_dice(fine, weights),
    }
    if run_threshold is None:
        threshold, at_words = best.threshold, f"at the best threshold, {best.threshold:.3g}"
        words = measured.words + " Without a calibration, Dice of single cases is at the best threshold."
        at = _counts(cases, [threshold])
    else:
        threshold, at_words, words = run_threshold, f"at {run_threshold:.3g}", measured.words
        at = _counts(cases, [threshold])
        figures[f"Dice at {threshold:.3g} (the run's threshold)"] = _best_dice(at, weights)
    return replace(
        measured,
        figures={**figures, **measured.figures},
        words=words,
        dice=dict(zip((case.name for case in cases), metrics.case_dice(at)[:, 0].tolist(), strict=True)),
        threshold=threshold,
        at_words=at_words,
        average_precision=average_precision,
        by_size=_by_size([measured.size[case.name] for case in cases], fine, at, weights),
        curve=_curve(fine.every(CURVE_STEP)),
    )


def _known_cases(folder: ResultFolder, rows: Mapping[str, Labelled]) -> list[_Case]:
    known = [
        (case, rows[case.name], read_pictures(case))
        for case in folder.cases
        if case.done and case.name in rows and not case.is_volume
    ]
    return [
        _Case(
            case.name,
            row.subject,
            float(case.score or 0.0),
            pictures[0].anomaly_map,
            truth_of(row, case, pictures)[0],
        )
        for case, row, pictures in known
    ]


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


def _by_size(
    sizes: Sequence[str | None], fine: ThresholdCounts, at: ThresholdCounts, weights: Floats
) -> dict[str, Mapping[str, Any]]:
    members = {group: np.asarray([size == group for size in sizes], np.bool_) for group in SIZE_GROUPS}
    return {
        group: {
            "cases": int(member.sum()),
            "best": _best_dice(fine.of(member), weights[:, member]),
            "at": _best_dice(at.of(member), weights[:, member]),
        }
        for group, member in members.items()
        if member.any()
    }


def _curve(counts: ThresholdCounts) -> dict[str, list[float]] | None:
    """The curves where anything is predicted; None where only the threshold 0 predicts, for an axis needs a length."""
    some = counts.predicted.sum(axis=0) > 0
    if not (counts.thresholds[some] > 0).any():
        return None
    curves = {"thresholds": counts.thresholds, **metrics.threshold_curves(counts)}
    return {name: np.asarray(values)[some].tolist() for name, values in curves.items()}


def _interval(value: float, resampled: Floats) -> Interval:
    ends = metrics.percentile_interval(resampled)
    return Interval(float(value) if np.isfinite(value) else None, ends if np.isfinite(ends).all() else None)
