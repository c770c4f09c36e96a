"""The protocol `brain-lesions`: pooled best Dice by lesion size, as Bercea et al. report it, and honest figures beside.

Best Dice pools the pixels of all cases of a size group and takes the best of 101 thresholds on the test labels: an
upper bound. Beside it stand figures whose threshold comes from healthy scans, or that need none.

Shapes: N cases, L of them with a lesion, P pixels of the region, S the grid's side, R bootstrap resamples or
permutations.
"""

from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from thorad.evaluation import metrics, statistics
from thorad.evaluation.metrics import Bools, Floats
from thorad.evaluation.quality import summary
from thorad.evaluation.runs import DetectorRun, Measured, Protocol, Resampling, Rows, read_masked
from thorad.evaluation.sizes import SIZE_GROUPS, lesion_weighted_average, paper_mix, size_group
from thorad.evaluation.statistics import Figures, Sample, interval

FALSE_POSITIVE_RATES: Final = {"0.01": 0.01, "0.05": 0.05}
"""Shares of healthy brain pixels that may exceed the two thresholds taken from healthy scans, as results name them."""

COMPARED: Final = ("paper_mix", "average", "auprc")  # the figures in which methods are compared
COARSE: Final = (metrics.FINE_THRESHOLDS - 1) // (metrics.BEST_DICE_THRESHOLDS - 1)
"""Every so many of the fine thresholds is one of those that the best Dice is taken over."""


class PooledCounts(NamedTuple):
    """What is left of a detector's maps of L lesion cases."""

    counts: metrics.ThresholdCounts  # at the fine thresholds
    groups: NDArray[np.str_]  # (L,) size group, empty for none
    grid_pixels: int  # of the whole grid, S x S


class _Maps:
    """A detector's maps and the truth, inside the region."""

    def __init__(self, run: DetectorRun[Bools]) -> None:
        lesions = np.stack(run.truths)  # (N, S, S)
        self.values, self.truth = run.maps[:, run.region], lesions[:, run.region]  # (N, P)
        self.missed = (lesions & ~run.region).sum(axis=(1, 2))  # (N,) lesion pixels outside the region
        self.lesion_pixels = lesions.sum(axis=(1, 2))  # (N,) inside and outside
        self.diseased = run.diseased
        groups = [size_group(int(pixels), len(run.region)) or "" for pixels in self.lesion_pixels]
        self.groups = np.asarray(groups)  # (N,) size group, empty for none
        members = {group: self.diseased & (self.groups == group) for group in SIZE_GROUPS}
        self.pools: dict[str, Bools] = {**members, "pooled": self.diseased}  # (N,) each
        # From the lesion cases alone, so that healthy scans, given or not, never change the best Dice.
        thresholds = metrics.tail_thresholds(self.values[self.diseased], metrics.FINE_THRESHOLDS)
        self.fine = metrics.count_above(self.values, self.truth, thresholds, self.missed)


def measure(run: DetectorRun[Bools], resampling: Resampling) -> Measured[PooledCounts]:
    """Turn one detector's maps into its result and its rows of `cases.csv`."""
    maps, diseased = _Maps(run), run.diseased
    weights = resampling.weights(run.subjects)
    of_lesions = maps.fine.of(diseased)
    resampled = _resampled(of_lesions, maps.groups[diseased], weights[:, diseased])
    best = {name: metrics.best_of_counts(maps.fine.every(COARSE).of(pool)) for name, pool in maps.pools.items()}
    exact = {
        name: metrics.exact_best_dice(maps.values[pool], maps.truth[pool], int(maps.missed[pool].sum()))
        for name, pool in maps.pools.items()
    }
    best_dice = _percent_with_averages(best, maps)
    auprc = metrics.average_precision(maps.values[diseased], maps.truth[diseased])
    quality, quality_intervals = summary(run.quality, weights)
    at_rate = {key: _at_rate(maps, rate, weights) for key, rate in FALSE_POSITIVE_RATES.items()}
    result: dict[str, Any] = {
        **run.about,
        "best_dice": best_dice,
        "auprc": auprc,
        "auroc": metrics.auroc(maps.values[diseased], maps.truth[diseased]),
        "dice_at_fpr": {key: at["dice"] for key, at in at_rate.items()},
        "image_auroc": metrics.auroc(run.scores, diseased),
        "network_calls": run.detector.network_calls,
        "cpu_seconds_per_case": run.cpu_seconds_per_case,
        "mean_case_dice_at_fpr": {key: at["mean_case_dice"] for key, at in at_rate.items()},
        "best_dice_exact": _percent_with_averages(exact, maps),
        "intervals": {
            "best_dice": {name: interval(resampled[name]) for name in best_dice},
            "auprc": interval(resampled["auprc"]),
            "auroc": interval(metrics.resampled_auroc(of_lesions, weights[:, diseased])),
            "dice_at_fpr": {key: at["interval"] for key, at in at_rate.items()},
            "image_auroc": interval(metrics.resampled_image_auroc(run.scores, diseased, weights)),
            "quality": quality_intervals,
        },
        "quality": quality,
        "thresholds": {
            "best_dice": {name: one.threshold for name, one in best.items()},
            "best_dice_source": "the test labels: an upper bound",
            "dice_at_fpr": {key: at["threshold"] for key, at in at_rate.items()},
            "dice_at_fpr_source": f"the {int((~diseased).sum())} healthy scans of this evaluation",
        },
        "curves": metrics.threshold_curves(of_lesions.every(COARSE)),
        "counts": {**_counts(maps, run.subjects), "bootstrap_resamples": resampling.bootstrap},
        "failures": run.failures,
    }
    figures = {name: float({**best_dice, "auprc": auprc}[name]) for name in COMPARED}
    return Measured(
        result=result,
        rows=_rows(run, maps, {key: at["case_dice"] for key, at in at_rate.items()}),
        subjects=[case.subject for case in run.cases if case.has_finding],
        sample=Sample(run.about, run.detector.network_calls, figures, {name: resampled[name] for name in COMPARED}),
        kept=PooledCounts(of_lesions, maps.groups[diseased], run.region.size),
    )


def pair(first: PooledCounts, second: PooledCounts) -> Figures:
    """The compared figures of two detectors, whose grids may differ."""
    counts = statistics.paired_counts(first.counts, second.counts, first.grid_pixels / second.grid_pixels)
    groups = np.append(first.groups, second.groups)
    return lambda weights: _resampled(counts, groups, weights)


BRAIN_LESIONS: Final = Protocol[Bools, PooledCounts](
    truth="mask",
    read_truth=read_masked,
    lesions=True,
    measure=measure,
    pair=pair,
    headline=lambda result: result["best_dice"]["average"],
    headline_name="average best Dice",
    outline=lambda lesions, side: lesions,
)


def _resampled(counts: metrics.ThresholdCounts, groups: NDArray[np.str_], weights: Floats) -> dict[str, Floats]:
    """Best Dice in percent (each group's, pooled and the averages) and AP for each row of weights (R, L)."""
    coarse = counts.every(COARSE)
    of_group = {group: groups == group for group in SIZE_GROUPS}
    best = {
        group: 100 * metrics.resampled_best_dice(coarse.of(member), weights[:, member])
        for group, member in of_group.items()
    }
    best["pooled"] = 100 * metrics.resampled_best_dice(coarse, weights)
    lesions = np.stack([weights[:, member].sum(axis=1) for member in of_group.values()], axis=-1)  # (R, 3)
    return {**_with_averages(best, lesions), "auprc": metrics.resampled_average_precision(counts, weights)}


def _at_rate(maps: _Maps, rate: float, weights: Floats) -> dict[str, Any]:
    """Figures at the threshold that a share of the healthy scans' pixels exceeds; None without healthy scans."""
    diseased, healthy = maps.diseased, ~maps.diseased
    if not healthy.any():
        return dict.fromkeys(("threshold", "dice", "mean_case_dice", "case_dice", "interval"))
    threshold = metrics.threshold_at_fpr(maps.values[healthy], rate)
    above = metrics.count_above(maps.values, maps.truth, [threshold], maps.missed)
    case_dice = metrics.case_dice(above)[:, 0]  # (N,)
    defined = case_dice[diseased & np.isfinite(case_dice)]
    resampled = metrics.resampled_dice_at_fpr(
        maps.fine.of(diseased), maps.fine.of(healthy), rate, weights[:, diseased], weights[:, healthy]
    )
    return {
        "threshold": threshold,
        "dice": float(metrics.pooled_dice(above.of(diseased))[0, 0]),
        "mean_case_dice": float(defined.mean()) if defined.size else None,
        "case_dice": case_dice,
        "interval": interval(resampled),
    }


def _percent_with_averages(best: dict[str, metrics.BestDice], maps: _Maps) -> dict[str, Any]:
    counts = np.asarray([maps.pools[group].sum() for group in SIZE_GROUPS], dtype=np.float64)  # (3,)
    return _with_averages({name: 100 * one.dice for name, one in best.items()}, counts)


def _with_averages(values: dict[str, Any], lesion_counts: Floats) -> dict[str, Any]:
    """Put the two averages beside the size groups; works for numbers and for (R,) resamples."""
    group_values = np.stack([np.asarray(values[group]) for group in SIZE_GROUPS], axis=-1)
    return {
        "average": lesion_weighted_average(group_values, lesion_counts),
        **values,
        "paper_mix": paper_mix(group_values),
    }


def _counts(maps: _Maps, subjects: list[str]) -> dict[str, int]:
    return {
        "lesion_cases": int(maps.diseased.sum()),
        "healthy_cases": int((~maps.diseased).sum()),
        "subjects": len(set(subjects)),
        **{group: int(maps.pools[group].sum()) for group in SIZE_GROUPS},
        "no_size_group": int((maps.diseased & (maps.groups == "")).sum()),
        "lesion_pixels": int(maps.lesion_pixels.sum()),
        "lesion_pixels_outside_region": int(maps.missed.sum()),
        "region_pixels": maps.values.shape[1],
    }


def _rows(run: DetectorRun[Bools], maps: _Maps, case_dice: dict[str, Floats | None]) -> Rows:
    best_of_case = np.nan_to_num(metrics.case_dice(maps.fine.every(COARSE))).max(axis=1)  # (N,)
    return [
        {
            **run.about,
            "name": case.name,
            "subject": case.subject,
            "kind": "lesion" if diseased else "healthy",
            "size_group": maps.groups[index] if diseased else None,
            "lesion_pixels": int(maps.lesion_pixels[index]),
            "score": float(run.scores[index]),
            **{
                f"dice_at_{key}": float(dice[index]) if diseased and dice is not None else None
                for key, dice in case_dice.items()
            },
            "best_dice_percent": 100 * float(best_of_case[index]) if diseased else None,
            "average_precision": metrics.average_precision(maps.values[index], maps.truth[index]),
        }
        for index, (case, diseased) in enumerate(zip(run.cases, maps.diseased, strict=True))
    ]
