"""Metrics of anomaly maps: numpy in, numbers out, undefined is NaN.

Shapes: N cases, P pixels of the model's region, K thresholds, R bootstrap resamples.

A pixel is predicted when its map value is *above* the threshold (`>`), so a constant map predicts nothing. All values
are fractions in [0, 1]. Everything a resample needs is kept as counts per case and threshold (`ThresholdCounts`): a
resample is then a weighted sum of counts, and a thousand of them cost one matrix product.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.metrics import average_precision_score, roc_auc_score

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]

BEST_DICE_THRESHOLDS: Final = 101  # thresholds over which the field takes the best Dice
FINE_THRESHOLDS: Final = 2001  # thresholds of the bootstrap. Every 20th of them is one of the 101


BY_CASE: Final = ("predicted", "true_positive", "pixels", "lesion", "missed")
"""Fields of `ThresholdCounts` whose first axis are the cases."""


class BestDice(NamedTuple):
    """The largest Dice in [0, 1] and the threshold that gives it (in map units)."""

    dice: float
    threshold: float


def dice(prediction: ArrayLike, truth: ArrayLike) -> float:
    """Dice = 2 |P and T| / (|P| + |T|) of two binary arrays of one shape, else ValueError; NaN when both are empty."""
    predicted, lesion = np.asarray(prediction, bool), np.asarray(truth, bool)
    if predicted.shape != lesion.shape:
        raise ValueError(f"prediction has the shape {predicted.shape}, truth {lesion.shape}")
    total = int(predicted.sum()) + int(lesion.sum())
    return 2 * int((predicted & lesion).sum()) / total if total else float("nan")


def threshold_at_fpr(healthy_values: ArrayLike, false_positive_rate: float) -> float:
    """The smallest threshold, in map units, that at most this share (in [0, 1)) of the healthy pixels exceeds."""
    return float(_exceeded_by(healthy_values, np.asarray([false_positive_rate]))[0])


def tail_thresholds(values: ArrayLike, count: int = BEST_DICE_THRESHOLDS) -> Floats:
    """Falling thresholds (count,) by the share of pixels above them: from 1e-4 to 1, evenly spaced in log.

    The field's 0, 0.01, ..., 1 assumes maps in [0, 1]; raw maps have a long tail and no upper limit. Shares do not
    change under any increasing function of the map, so methods with different units are treated alike, and
    neighbouring thresholds predict areas that differ by a tenth. Against the best of *all* thresholds, over seven
    sets of maps of real slices and each size group, these lost 0.26 Dice points at most and 0.06 on average; equal
    steps from 0 to the maximum lost 0.6 at most, but 23 once the maps were raised to the fourth power; plain quantiles
    lost up to 1.5. Thresholds repeat where many pixels share a value.
    """
    return _exceeded_by(values, np.geomspace(1e-4, 1.0, count))


def _exceeded_by(values: ArrayLike, shares: Floats) -> Floats:
    """For each share, the smallest threshold that at most this share of the values exceeds."""
    rising = np.sort(np.asarray(values).ravel())
    # The tiny addend keeps 0.29 * 100 from becoming 28 pixels.
    allowed = np.floor(shares * rising.size + 1e-9).astype(np.int64)
    return rising[np.maximum(rising.size - 1 - allowed, 0)].astype(np.float64)


@dataclass(frozen=True)
class ThresholdCounts:
    """Pixel counts of every case above every threshold: all that pooled metrics and their resamples need."""

    thresholds: Floats  # (K,) falling, in map units
    predicted: Floats  # (N, K) pixels above the threshold
    true_positive: Floats  # (N, K) lesion pixels above the threshold
    pixels: Floats  # (N,) pixels of the region
    lesion: Floats  # (N,) lesion pixels inside the region
    missed: Floats  # (N,) lesion pixels outside the region, which no threshold can find

    def of(self, cases: Bools) -> "ThresholdCounts":
        """Keep the cases where the (N,) mask is True."""
        return replace(self, **{name: getattr(self, name)[cases] for name in BY_CASE})

    def every(self, step: int) -> "ThresholdCounts":
        """Keep every `step`-th threshold, the first one included."""
        return replace(
            self,
            thresholds=self.thresholds[::step],
            predicted=self.predicted[:, ::step],
            true_positive=self.true_positive[:, ::step],
        )


def count_above(
    values: Sequence[NDArray[Any]] | NDArray[Any],
    truth: Sequence[Bools] | Bools,
    thresholds: ArrayLike,
    missed: ArrayLike | None = None,
) -> ThresholdCounts:
    """Count each case's pixels above each of the falling thresholds (K,).

    Args:
        values: N times (P,) map values inside the region; P may differ between cases.
        truth: N times (P,) lesion pixels.
        missed: (N,) lesion pixels outside the region; none by default.
    """
    falling = np.asarray(thresholds, np.float64)
    predicted = np.empty((len(values), falling.size))
    true_positive = np.empty_like(predicted)
    for index, (pixels, lesion) in enumerate(zip(values, truth, strict=True)):
        for counts, counted in ((predicted, pixels), (true_positive, pixels[lesion])):
            counts[index] = counted.size - np.searchsorted(np.sort(counted), falling, side="right")
    return ThresholdCounts(
        thresholds=falling,
        predicted=predicted,
        true_positive=true_positive,
        pixels=np.asarray([pixels.size for pixels in values], np.float64),
        lesion=np.asarray([lesion.sum() for lesion in truth], np.float64),
        missed=np.zeros(len(values)) if missed is None else np.asarray(missed, np.float64),
    )


def pooled_dice(counts: ThresholdCounts, weights: Floats | None = None) -> Floats:
    """Dice over all pixels of all cases together: (R, K), NaN where there is neither a prediction nor a lesion.

    `weights` (R, N) say how often each case counts in each resample; every case once by default (R = 1).
    """
    times = np.ones((1, len(counts.pixels))) if weights is None else weights
    total = times @ counts.predicted + (times @ (counts.lesion + counts.missed))[:, None]
    return _ratio(2 * (times @ counts.true_positive), total)


def case_dice(counts: ThresholdCounts) -> Floats:
    """Dice of each case alone, at each threshold: (N, K), NaN where a case has neither a prediction nor a lesion."""
    total = counts.predicted + (counts.lesion + counts.missed)[:, None]
    return _ratio(2 * counts.true_positive, total)


def best_of_counts(counts: ThresholdCounts) -> BestDice:
    """Find the best pooled Dice of these cases over the counts' thresholds; NaN where there is no lesion."""
    if not (counts.lesion + counts.missed).sum():
        return BestDice(float("nan"), float("nan"))
    values = pooled_dice(counts)[0]
    best = int(np.argmax(values))
    return BestDice(float(values[best]), float(counts.thresholds[best]))


def threshold_curves(counts: ThresholdCounts) -> dict[str, list[float]]:
    """Share of pixels predicted, Dice, precision (0 where nothing is predicted) and recall, pooled, by threshold."""
    predicted, right = counts.predicted.sum(axis=0), counts.true_positive.sum(axis=0)
    return {
        "predicted_share": (predicted / counts.pixels.sum()).tolist(),
        "dice": pooled_dice(counts)[0].tolist(),
        "precision": (right / np.maximum(predicted, 1)).tolist(),
        "recall": (right / (counts.lesion + counts.missed).sum()).tolist(),
    }


def exact_best_dice(values: ArrayLike, truth: ArrayLike, missed: int = 0) -> BestDice:
    """Find the best pooled Dice over *all* thresholds, by sorting; NaN without a lesion.

    `missed` are lesion pixels outside the region. The threshold is one of the values.
    """
    maps, lesions = np.asarray(values).ravel(), np.asarray(truth, bool).ravel()
    lesion_pixels = int(lesions.sum()) + missed
    if not lesion_pixels:
        return BestDice(float("nan"), float("nan"))
    order = np.argsort(maps)[::-1]
    falling = maps[order]
    # Position k stands for the threshold falling[k], which the positions before k exceed if their values differ.
    distinct = np.flatnonzero(np.append(True, falling[1:] != falling[:-1]))
    true_positive = np.append(0, np.cumsum(lesions[order]))[distinct]
    values_of_dice = 2 * true_positive / (distinct + lesion_pixels)
    best = int(np.argmax(values_of_dice))
    return BestDice(float(values_of_dice[best]), float(falling[distinct[best]]))


def average_precision(values: ArrayLike, truth: ArrayLike) -> float:
    """Average precision over pooled pixels, as scikit-learn defines it; NaN where there is no lesion."""
    lesions = np.asarray(truth, bool).ravel()
    return float(average_precision_score(lesions, np.asarray(values).ravel())) if lesions.any() else float("nan")


def auroc(values: ArrayLike, truth: ArrayLike) -> float:
    """Area under the ROC curve over pooled pixels or images; NaN where one of the two classes is absent."""
    positive = np.asarray(truth, bool).ravel()
    if positive.all() or not positive.any():
        return float("nan")
    return float(roc_auc_score(positive, np.asarray(values).ravel()))


def subject_resamples(subjects: Sequence[str], resamples: int, generator: np.random.Generator) -> Floats:
    """Draw as many subjects as there are, with replacement; all cases of a subject come and go together.

    Returns (R, N): how often each of the N cases counts in each resample.
    """
    unique, subject_of_case = np.unique(np.asarray(subjects), return_inverse=True)
    drawn = generator.multinomial(unique.size, np.full(unique.size, 1 / unique.size), size=resamples)
    return drawn[:, subject_of_case].astype(np.float64)


def percentile_interval(resampled: ArrayLike, coverage: float = 0.95) -> tuple[float, float]:
    """Take the percentile interval of R resampled values; undefined (NaN) ones are left out, (NaN, NaN) if all are."""
    values = np.asarray(resampled, np.float64)
    values = values[np.isfinite(values)]
    if not values.size:
        return float("nan"), float("nan")
    low, high = np.quantile(values, [(1 - coverage) / 2, (1 + coverage) / 2])
    return float(low), float(high)


def resampled_best_dice(counts: ThresholdCounts, weights: Floats) -> Floats:
    """Best pooled Dice of each resample, its threshold chosen anew: (R,), NaN where a resample holds no lesion."""
    best = np.nan_to_num(pooled_dice(counts, weights)).max(axis=1)
    lesion = weights @ (counts.lesion + counts.missed)
    return np.where(lesion > 0, best, np.nan)


def resampled_average_precision(counts: ThresholdCounts, weights: Floats) -> Floats:
    """Average precision of each resample from the counts: (R,), as close to exact as the thresholds are dense."""
    # The last step predicts every pixel.
    true_positive = np.column_stack([weights @ counts.true_positive, weights @ counts.lesion])
    predicted = np.column_stack([weights @ counts.predicted, weights @ counts.pixels])
    steps = np.diff(true_positive, prepend=0.0)
    return _ratio((steps * np.nan_to_num(_ratio(true_positive, predicted))).sum(axis=1), weights @ counts.lesion)


def resampled_auroc(counts: ThresholdCounts, weights: Floats) -> Floats:
    """Pixel AUROC of each resample from the counts, by the trapezoid rule: (R,)."""
    lesion, healthy = weights @ counts.lesion, weights @ (counts.pixels - counts.lesion)
    true_positive = np.column_stack([weights @ counts.true_positive, lesion])
    false_positive = np.column_stack([weights @ (counts.predicted - counts.true_positive), healthy])
    steps = np.diff(false_positive, prepend=0.0)
    heights = true_positive - np.diff(true_positive, prepend=0.0) / 2
    return _ratio((steps * heights).sum(axis=1), lesion * healthy)


def resampled_dice_at_fpr(
    diseased: ThresholdCounts,
    healthy: ThresholdCounts,
    false_positive_rate: float,
    diseased_weights: Floats,
    healthy_weights: Floats,
) -> Floats:
    """Pooled Dice of each resample at the threshold that the resample's own healthy scans give: (R,).

    The counts of N lesion cases and M healthy scans have the same thresholds, their weights (R, N) and (R, M) the same
    resamples.
    """
    pixels = healthy_weights @ healthy.pixels
    # Ever more pixels exceed the falling thresholds; where too many exceed even the first, nothing is predicted.
    allowed = (healthy_weights @ healthy.predicted <= false_positive_rate * pixels[:, None] + 1e-9).sum(axis=1)
    values = np.column_stack([np.zeros(len(pixels)), np.nan_to_num(pooled_dice(diseased, diseased_weights))])
    lesion = diseased_weights @ (diseased.lesion + diseased.missed)
    return np.where((pixels > 0) & (lesion > 0), values[np.arange(len(pixels)), allowed], np.nan)


def resampled_image_auroc(scores: ArrayLike, diseased: ArrayLike, weights: ArrayLike) -> Floats:
    """Image-level AUROC of each resample, of (N,) scores and (N,) labels: (R,), NaN where a resample lacks a class."""
    score, positive, times = np.asarray(scores, np.float64), np.asarray(diseased, bool), np.asarray(weights, np.float64)
    difference = score[positive][:, None] - score[~positive][None, :]
    ordered = (difference > 0) + 0.5 * (difference == 0)  # (diseased, healthy): a tie counts half
    of_diseased, of_healthy = times[:, positive], times[:, ~positive]
    return _ratio(((of_diseased @ ordered) * of_healthy).sum(axis=1), of_diseased.sum(axis=1) * of_healthy.sum(axis=1))


def _ratio(numerator: Floats, denominator: Floats) -> Floats:
    """Divide, with NaN where the denominator is zero."""
    undefined = np.full(numerator.shape, np.nan)
    return np.asarray(np.divide(numerator, denominator, out=undefined, where=denominator > 0))
