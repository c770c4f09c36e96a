"""Is one method better than another? Paired over subjects: the same bootstrap resamples, and a permutation test.

Shapes: N cases, R rows of weights, M permutations.

Every figure here is a function of weights (how often each case counts), so that a resample and a permutation are the
same thing, one row of a matrix product. For a pair of methods the weights are (R, 2N): over the first one's results of
all cases, then over the second one's.

The permutation test asks how often so large a difference comes about when, within each subject, it is left to chance
which of the two methods gave which result; it assumes nothing else. (Ernst, Permutation methods: a basis for exact
inference, Statistical Science 2004; Phipson and Smyth, Permutation p-values should never be zero, 2010.)

What is swapped are counts of pixels above the k-th threshold. That is fair between methods with different units,
because the thresholds are chosen by the share of the bench's pixels above them (`metrics.tail_thresholds`): threshold k
means the same share in both. It is as if every map's values were replaced by their rank among the bench's pixels, and
the maps of a subject then change places. Ranks are taken once, before the swapping.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from thorad.evaluation.metrics import BY_CASE, Floats, ThresholdCounts, percentile_interval

PERMUTATIONS: Final = 2000
"""Of the test; all of them are enumerated where there are no more. The smallest p-value is about 1 / 2001."""

ABOUT: Final = ("method", "noise", "steps", "model")  # what tells one detector's results from another's
REFERENCES: Final = ("thor", "published-thor")
"""The method that the others are compared with: the first of these that is among them."""

FLOOR: Final = "zscore"  # the method that needs no network; the others are compared with it, too
_ROUNDING: Final = 1e-9  # sums of the same counts in another order differ by less

Figures = Callable[[Floats], Mapping[str, Floats]]
"""Turns (R, 2N) weights into the (R,) values of each figure."""


def title(result: Mapping[str, Any]) -> str:
    """`thor (simplex)`, or the method alone where it draws no noise; and what was asked of it beside its defaults."""
    name = str(result["method"]) if result["noise"] is None else f"{result['method']} ({result['noise']})"
    asked = [f"{result['draws']} draws"] if result.get("draws", 1) > 1 else []
    return ", ".join([name, *asked, *([result["settings"]] if result.get("settings") else [])])


class Swaps(NamedTuple):
    """Who changes places in each permutation."""

    swapped: Floats  # (M, N) 1 where the two methods' results of a case change places, else 0
    exact: bool  # whether these are all there are, the one that swaps nothing among them


@dataclass(frozen=True)
class Sample:
    """One method's figures, ready to be compared."""

    about: dict[str, Any]  # method, noise, steps, model; draws and settings where they were asked for
    network_calls: int  # for one image
    figures: dict[str, float]  # as reported; NaN where undefined
    resampled: dict[str, Floats]  # (R,) of each figure, in the resamples that all methods share


def subject_swaps(subjects: Sequence[str], permutations: int, generator: np.random.Generator) -> Swaps:
    """Draw which subjects' results change places, each with probability one half; enumerate if few are possible."""
    unique, subject_of_case = np.unique(np.asarray(subjects), return_inverse=True)
    exact = 2**unique.size <= permutations
    if exact:
        drawn = np.arange(2**unique.size)[:, None] >> np.arange(unique.size) & 1
    else:
        drawn = generator.integers(0, 2, (permutations, unique.size))
    return Swaps(drawn[:, subject_of_case].astype(np.float64), exact)


def permutation_p_values(figures: Figures, swaps: Swaps) -> dict[str, float]:
    """Two-sided p-value of the difference between two methods, for each figure.

    It is the share of permutations whose difference is at least as large as the one without a swap, which counts as a
    permutation itself: (1 + count) / (1 + M), or count / M where the swaps are all there are. NaN without permutations,
    or where the figure is undefined.
    """
    none = np.zeros((1, swaps.swapped.shape[1]))
    swapped = np.vstack([none, swaps.swapped])
    kept = 1 - swapped
    first, second = figures(np.hstack([kept, swapped])), figures(np.hstack([swapped, kept]))
    return {name: _p_value(first[name] - second[name], swaps.exact) for name in first}


def _p_value(differences: Floats, exact: bool) -> float:
    """Of the difference without a swap and, behind it, the M permuted ones."""
    observed, permuted = abs(differences[0]), np.abs(differences[1:])
    if not np.isfinite(observed) or not permuted.size:
        return float("nan")
    # A permutation in which the figure is undefined counts against the method.
    reached = int((~(permuted < observed - _ROUNDING)).sum())
    return reached / permuted.size if exact else (1 + reached) / (1 + permuted.size)


def interval(resampled: ArrayLike) -> list[float] | None:
    """The 95 % percentile interval of (R,) resampled values; None where there are none."""
    low, high = percentile_interval(resampled)
    return None if np.isnan(low) else [low, high]


def paired_counts(first: ThresholdCounts, second: ThresholdCounts, area_ratio: float = 1.0) -> ThresholdCounts:
    """Put two methods' counts of the same N cases one behind the other: 2N cases whose thresholds agree by index.

    `area_ratio` is the area of the second one's pixels in the first one's, where their grids differ.
    """
    both = {name: np.concatenate([getattr(first, name), area_ratio * getattr(second, name)]) for name in BY_CASE}
    return replace(first, **both)


def weighted_means(values: Mapping[str, ArrayLike], weights: Floats) -> dict[str, Floats]:
    """Mean of each figure, (N,) and finite, in each row of weights (R, N): (R,), NaN where a row has no weight."""
    total = weights.sum(axis=1)
    return {
        name: np.where(total > 0, weights @ np.asarray(of_case, np.float64) / np.maximum(total, _ROUNDING), np.nan)
        for name, of_case in values.items()
    }


def paired_means(first: Mapping[str, ArrayLike], second: Mapping[str, ArrayLike]) -> Figures:
    """The figures of a pair of methods that are means over cases: (N,) values of each."""
    both = {name: np.append(first[name], second[name]) for name in first}
    return lambda weights: weighted_means(both, weights)


def references(about: Sequence[Mapping[str, Any]]) -> list[int]:
    """Which of the methods the others are compared with: THOR, else the first one; then the z-score."""
    methods = [result["method"] for result in about]
    first = next((methods.index(name) for name in REFERENCES if name in methods), 0)
    return list(dict.fromkeys([first, *([methods.index(FLOOR)] if FLOOR in methods else [])]))


def _other_draws(one: Sample, other: Sample) -> bool:
    """Whether two samples are of one method and differ in the number of draws alone."""
    first, second = ({key: value for key, value in each.about.items() if key != "draws"} for each in (one, other))
    return first == second and one.about != other.about


def versus(samples: Sequence[Sample], pair: Callable[[int, int], Figures], swaps: Swaps) -> list[list[dict[str, Any]]]:
    """Compare every method with the references.

    Args:
        samples: one for each method.
        pair: makes the figures of two methods, given their places among the samples.
        swaps: of the cases that the figures are over.

    Of a reference with several numbers of draws, each method is compared with the one nearest to it in network calls.

    Returns:
        For each method a list of {reference, metric, difference (method - reference, in the figure's own unit),
        interval (95 %, of the paired resamples), p_value (two-sided, not corrected for the number of comparisons)}.
    """
    compared: list[list[dict[str, Any]]] = [[] for _ in samples]
    for first in references([sample.about for sample in samples]):
        same = [first, *(index for index, sample in enumerate(samples) if _other_draws(sample, samples[first]))]
        for index, sample in enumerate(samples):
            if index in same:
                continue
            reference = min(same, key=lambda each: abs(samples[each].network_calls - sample.network_calls))
            base = samples[reference]
            p_values = permutation_p_values(pair(index, reference), swaps)
            compared[index] += [
                {
                    "reference": base.about,
                    "metric": metric,
                    "difference": value - base.figures[metric],
                    "interval": interval(sample.resampled[metric] - base.resampled[metric]),
                    "p_value": p_values[metric],
                }
                for metric, value in sample.figures.items()
            ]
    return compared
