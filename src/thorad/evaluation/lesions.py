"""The protocol `brain-lesions`: pooled best Dice by lesion size, as Bercea et al. report it, and honest figures beside.

Shapes: N cases, L of them with a lesion, P pixels of the region, R bootstrap resamples or permutations.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from thorad.datasets.cases import Case
from thorad.evaluation import metrics, statistics
from thorad.evaluation.bench import (
    Bools,
    Floats,
    Found,
    MapDetector,
    Progress,
    find_all,
    has_lesion,
    healthy_cases,
    healthy_slice,
    read_masked,
)
from thorad.evaluation.sizes import SIZE_GROUPS, lesion_weighted_average, paper_mix, size_group
from thorad.evaluation.statistics import Figures, Sample, interval

FALSE_POSITIVE_RATES: Final = (0.01, 0.05)
"""Shares of healthy brain pixels that may exceed the two thresholds taken from healthy scans."""

COMPARED: Final = ("paper_mix", "average", "auprc")
"""The figures in which methods are compared."""

COARSE: Final = (metrics.FINE_THRESHOLDS - 1) // (metrics.BEST_DICE_THRESHOLDS - 1)
"""Every so many of the fine thresholds is one of those that the best Dice is taken over."""


@dataclass(frozen=True)
class _Measured:
    """One detector's figures, and what is left of its maps to compare it with others."""

    result: dict[str, Any]
    rows: list[dict[str, Any]]
    counts: metrics.ThresholdCounts
    """Of the L lesion cases, at the fine thresholds."""
    groups: NDArray[np.str_]
    """(L,) size group, empty for none."""
    sample: Sample


def brain_lesions(
    cases: Sequence[Case],
    healthy: Sequence[Path],
    detectors: Sequence[MapDetector],
    *,
    bootstrap: int,
    permutations: int,
    seed: int,
    on_progress: Progress | None = None,
    keep: Path | None = None,
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Measure detectors on slices whose lesions are known: Bercea et al.'s protocol.

    Best Dice pools the pixels of all cases of a size group and takes the best of 101 thresholds on the test labels: an
    upper bound. Beside it figures whose threshold comes from healthy scans, or that need none.

    Returns:
        The results, and the rows of `cases.csv`.
    """
    named = [*cases, *healthy_cases(cases, healthy, lambda case: case.mask is None, healthy_slice)]
    found = find_all(named, detectors, read_masked, has_lesion, "mask", on_progress, keep)
    subjects = [case.subject for case in found[0].bench.cases]
    # The same for all detectors.
    weights = metrics.subject_resamples(subjects, bootstrap, np.random.default_rng(seed))
    measured = [_measure(one, weights) for one in found]
    ill = [case.subject for case in found[0].bench.cases if has_lesion(case)]
    swaps = statistics.subject_swaps(ill, permutations, np.random.default_rng([seed, 1]))

    def pair(first: int, second: int) -> Figures:
        return _paired(measured[first], measured[second], found[first].region.size / found[second].region.size)

    compared = statistics.versus([one.sample for one in measured], pair, swaps)
    results = [one.result | {"versus": versus} for one, versus in zip(measured, compared, strict=True)]
    return results, [row for one in measured for row in one.rows]


def _paired(first: _Measured, second: _Measured, area_ratio: float) -> Figures:
    counts = statistics.paired_counts(first.counts, second.counts, area_ratio)
    groups = np.append(first.groups, second.groups)
    return lambda weights: _resampled(counts, groups, weights)


def _resampled(counts: metrics.ThresholdCounts, groups: NDArray[np.str_], weights: Floats) -> dict[str, Floats]:
    """Best Dice in percent (each group's, pooled and the averages) and AP for each row of weights (R, L)."""
    coarse = counts.every(COARSE)
    members = [groups == group for group in SIZE_GROUPS]
    best = {
        group: 100 * metrics.resampled_best_dice(coarse.of(member), weights[:, member])
        for group, member in zip(SIZE_GROUPS, members, strict=True)
    }
    best["pooled"] = 100 * metrics.resampled_best_dice(coarse, weights)
    lesions = np.stack([weights[:, member].sum(axis=1) for member in members], axis=-1)  # (R, 3)
    return {**_with_averages(best, lesions), "auprc": metrics.resampled_average_precision(counts, weights)}


def _measure(found: Found[Case, Bools], weights: Floats) -> _Measured:
    """Turn one detector's maps into its result and its rows of `cases.csv`."""
    region, bench = found.region, found.bench
    lesions = np.stack(bench.truths)  # (N, S, S)
    ill = np.asarray([has_lesion(case) for case in bench.cases], dtype=np.bool_)
    well = ~ill
    values = found.maps[:, region]  # (N, P)
    truth = lesions[:, region]  # (N, P)
    missed = (lesions & ~region).sum(axis=(1, 2))  # (N,)
    # From the lesion cases alone, so that healthy scans, given or not, never change the best Dice.
    thresholds = metrics.tail_thresholds(values[ill], metrics.FINE_THRESHOLDS)
    fine = metrics.count_above(values, truth, thresholds, missed)
    coarse = fine.every(COARSE)

    groups = np.asarray([size_group(int(lesion.sum()), len(region)) or "" for lesion in lesions])
    members = {group: ill & (groups == group) for group in SIZE_GROUPS}
    pools = {**members, "pooled": ill}
    counts = np.asarray([member.sum() for member in members.values()], dtype=np.float64)  # (3,)
    best = {name: metrics.best_of_counts(coarse.of(pool)) for name, pool in pools.items()}
    exact = {
        name: metrics.exact_best_dice(values[pool], truth[pool], int(missed[pool].sum()))
        for name, pool in pools.items()
    }
    best_dice = _with_averages({name: 100 * one.dice for name, one in best.items()}, counts)
    resampled = _resampled(fine.of(ill), groups[ill], weights[:, ill])
    auprc = metrics.average_precision(values[ill], truth[ill])

    keys = {f"{rate:g}": rate for rate in FALSE_POSITIVE_RATES}
    dice_at: dict[str, float | None] = dict.fromkeys(keys)
    mean_case_dice_at: dict[str, float | None] = dict.fromkeys(keys)
    threshold_at: dict[str, float | None] = dict.fromkeys(keys)
    dice_at_interval: dict[str, list[float] | None] = dict.fromkeys(keys)
    case_dice_at: dict[str, Floats] = {}
    for key, rate in keys.items() if well.any() else ():
        threshold = metrics.threshold_at_fpr(values[well], rate)
        above = metrics.count_above(values, truth, [threshold], missed)
        case_dice_at[key] = metrics.case_dice(above)[:, 0]
        defined = case_dice_at[key][ill & np.isfinite(case_dice_at[key])]
        threshold_at[key] = threshold
        dice_at[key] = float(metrics.pooled_dice(above.of(ill))[0, 0])
        mean_case_dice_at[key] = float(defined.mean()) if defined.size else None
        dice_at_interval[key] = interval(
            metrics.resampled_dice_at_fpr(fine.of(ill), fine.of(well), rate, weights[:, ill], weights[:, well])
        )

    result: dict[str, Any] = {
        **found.about,
        "best_dice": best_dice,
        "auprc": auprc,
        "auroc": metrics.auroc(values[ill], truth[ill]),
        "dice_at_fpr": dice_at,
        "image_auroc": metrics.auroc(found.scores, ill),
        "network_calls": found.detector.network_calls,
        "cpu_seconds_per_case": found.cpu_seconds_per_case,
        "mean_case_dice_at_fpr": mean_case_dice_at,
        "best_dice_exact": _with_averages({name: 100 * one.dice for name, one in exact.items()}, counts),
        "intervals": {
            "best_dice": {name: interval(resampled[name]) for name in best_dice},
            "auprc": interval(resampled["auprc"]),
            "auroc": interval(metrics.resampled_auroc(fine.of(ill), weights[:, ill])),
            "dice_at_fpr": dice_at_interval,
            "image_auroc": interval(metrics.resampled_image_auroc(found.scores, ill, weights)),
        },
        "thresholds": {
            "best_dice": {name: one.threshold for name, one in best.items()},
            "best_dice_source": "the test labels: an upper bound",
            "dice_at_fpr": threshold_at,
            "dice_at_fpr_source": f"the {int(well.sum())} healthy scans of this evaluation",
        },
        "curves": _curves(coarse.of(ill)),
        "counts": {
            "lesion_cases": int(ill.sum()),
            "healthy_cases": int(well.sum()),
            "subjects": len({case.subject for case in bench.cases}),
            **{name: int(member.sum()) for name, member in members.items()},
            "no_size_group": int((ill & (groups == "")).sum()),
            "lesion_pixels": int(lesions.sum()),
            "lesion_pixels_outside_region": int(missed.sum()),
            "region_pixels": int(region.sum()),
            "bootstrap_resamples": len(weights),
        },
        "failures": bench.failures,
    }
    best_of_case = np.nan_to_num(metrics.case_dice(coarse)).max(axis=1)  # (N,)
    rows = [
        {
            **found.about,
            "name": case.name,
            "subject": case.subject,
            "kind": "lesion" if ill[index] else "healthy",
            "size_group": groups[index] if ill[index] else None,
            "lesion_pixels": int(lesions[index].sum()),
            "score": float(found.scores[index]),
            **{
                f"dice_at_{key}": float(case_dice_at[key][index]) if ill[index] and key in case_dice_at else None
                for key in keys
            },
            "best_dice_percent": 100 * float(best_of_case[index]) if ill[index] else None,
            "average_precision": metrics.average_precision(values[index], truth[index]),
        }
        for index, case in enumerate(bench.cases)
    ]
    figures = {name: float({**best_dice, "auprc": auprc}[name]) for name in COMPARED}
    sample = Sample(found.about, figures, {name: resampled[name] for name in COMPARED})
    return _Measured(result, rows, fine.of(ill), groups[ill], sample)


def _curves(counts: metrics.ThresholdCounts) -> dict[str, list[float]]:
    """Precision, recall and Dice at the coarse thresholds, falling; for a report."""
    predicted, right = counts.predicted.sum(axis=0), counts.true_positive.sum(axis=0)
    return {
        "predicted_share": (predicted / counts.pixels.sum()).tolist(),
        "dice": metrics.pooled_dice(counts)[0].tolist(),
        "precision": (right / np.maximum(predicted, 1)).tolist(),
        "recall": (right / (counts.lesion + counts.missed).sum()).tolist(),
    }


def _with_averages(values: dict[str, Any], lesion_counts: Floats) -> dict[str, Any]:
    """Put the two averages beside the size groups; works for numbers and for (R,) resamples."""
    group_values = np.stack([np.asarray(values[group]) for group in SIZE_GROUPS], axis=-1)
    return {
        "average": lesion_weighted_average(group_values, lesion_counts),
        **values,
        "paper_mix": paper_mix(group_values),
    }
