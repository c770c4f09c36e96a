"""Run detectors over labelled cases and write what they found: `metrics.json`, `cases.csv` and `table.md`.

Everything is measured on the model's own grid (128x128 in the paper): images and masks take the same way there.
Shapes: N cases, S the grid's side, P pixels of the region, R bootstrap resamples.

Units: everything under `best_dice` (its intervals too) is in percent; every other metric is a fraction in [0, 1];
thresholds are in map units. What can't be computed (no healthy scans, no lesion of a size) is null, never NaN.
"""

import csv
import io
import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from thorad.data.images import case_names, read_image, read_mask, write_whole
from thorad.data.preprocess import mask_to_model_grid, to_model_input
from thorad.data.splits import Case, subject_of
from thorad.data.tables import listing
from thorad.errors import ThoradError
from thorad.evaluation import metrics
from thorad.evaluation.protocols import SIZE_GROUPS, lesion_weighted_average, paper_mix, size_group

FALSE_POSITIVE_RATES: Final = (0.01, 0.05)
"""Shares of healthy brain pixels that may exceed the two thresholds taken from healthy scans."""

Bools = NDArray[np.bool_]
Floats = NDArray[np.float64]
Progress = Callable[[int, int, str], None]
"""Called with (images done, images in all, method) after every batch, summed over the detectors."""


class MapDetector(Protocol):
    """What the evaluation needs of a detector."""

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


@dataclass(frozen=True)
class _Bench:
    """The readable cases on one model grid, lesion cases and healthy ones together."""

    names: list[str]
    files: list[str]
    subjects: list[str]
    images: torch.Tensor  # (N, 1, S, S) in [0, 1]
    truth: Bools  # (N, S, S)
    diseased: Bools  # (N,)
    groups: list[str | None]
    failures: list[dict[str, str]]


@dataclass(frozen=True)
class _Output:
    """What one detector gave for the bench."""

    maps: NDArray[np.float32]  # (N, S, S)
    scores: Floats  # (N,)
    cpu_seconds_per_case: float


def evaluate(
    cases: Sequence[Case],
    healthy: Sequence[Path],
    detectors: Sequence[MapDetector],
    out: Path,
    *,
    bootstrap: int = 1000,
    seed: int = 0,
    on_progress: Progress | None = None,
) -> list[dict[str, Any]]:
    """Measure detectors on labelled cases and write `metrics.json`, `cases.csv` and `table.md` into `out`.

    A case that can't be used (unreadable, its mask has another size or more than two values, or one of the detectors
    gives it a map that is not finite) is left out for every detector, so that all are compared on the same cases, and
    listed under `failures` of every result; the others go on.

    Args:
        cases: lesion cases with a mask, and healthy ones without.
        healthy: more healthy images. One that is also among `cases` without a mask is taken once.
        detectors: what to compare; all see the same cases and the same bootstrap resamples.
        out: folder for the three files, made if absent. Each file is written whole or not at all.
        bootstrap: resamples over subjects for the 95 % intervals; 0 for no intervals.
        seed: of the bootstrap.
        on_progress: see `Progress`.

    Returns:
        One result for each detector, as in `metrics.json`; see the module's head for the units.

    Raises:
        ThoradError: no lesion case can be used, one is among `healthy`, or `out` can't be written.
    """
    if not detectors:
        raise ThoradError("No method to evaluate was given; name at least one.")
    _check_writable(out)
    sizes = dict.fromkeys(detector.model_size for detector in detectors)
    benches = {size: _read_bench(cases, healthy, size) for size in sizes}
    total = sum(len(benches[detector.model_size].names) for detector in detectors)
    done = 0
    outputs: list[_Output] = []
    for detector in detectors:
        bench = benches[detector.model_size]
        outputs.append(_detect(detector, bench, done, total, on_progress))
        done += len(bench.names)
    failures = _not_finite(detectors, benches, outputs)
    results: list[dict[str, Any]] = []
    rows: list[dict[str, Any]] = []
    for detector, output in zip(detectors, outputs, strict=True):
        bench, output = _leave_out(failures, benches[detector.model_size], output)
        # Anew for each detector: all of them see the same resamples.
        weights = metrics.subject_resamples(bench.subjects, bootstrap, np.random.default_rng(seed))
        result, detector_rows = _measure(detector, bench, output, weights)
        results.append(result)
        rows.extend(detector_rows)
    write_whole(out / "cases.csv", _csv_text(rows).encode())
    write_whole(out / "table.md", markdown_table(results).encode())
    write_whole(out / "metrics.json", (json.dumps(results, indent=2, allow_nan=False) + "\n").encode())
    return results


def honest_floor_warning(results: Sequence[Mapping[str, Any]]) -> str | None:
    """Say so when a z-score, which needs no network, does as well as a network method on average best Dice.

    Args:
        results: what `evaluate` returned.

    Returns:
        One or more sentences for the user; None when every network method is above every z-score, or when one of the
        two kinds is missing.
    """
    averages = [(result, result["best_dice"]["average"]) for result in results]
    floors = [pair for pair in averages if str(pair[0]["method"]).startswith("zscore") and pair[1] is not None]
    if not floors:
        return None
    floor, floor_average = max(floors, key=lambda pair: float(pair[1]))
    beaten = [
        f"{_title(result)} ({average:.1f} %)"
        for result, average in averages
        if result["network_calls"] > 0 and average is not None and average <= floor_average
    ]
    if not beaten:
        return None
    return (
        f"{_title(floor)} needs no network and reaches {floor_average:.1f} % average best Dice here, at or above "
        f"{', '.join(beaten)}. On images like these such a method has not earned its cost: prefer the z-score, or "
        "train a model on more, or more similar, healthy images."
    )


def _read_bench(cases: Sequence[Case], healthy: Sequence[Path], size: int) -> _Bench:
    """Read every case onto the model's grid; keep out, and list, those that can't be used."""
    named = [*cases, *_healthy_cases(cases, healthy)]
    usable: list[Case] = []
    images: list[torch.Tensor] = []
    truths: list[Bools] = []
    failures: list[dict[str, str]] = []
    for case in named:
        try:
            image, truth = _read_case(case, size)
        except (ThoradError, OSError) as error:
            failures.append({"name": case.name, "image": str(case.image), "reason": str(error)})
            continue
        usable.append(case)
        images.append(image)
        truths.append(truth)
    diseased = np.asarray([case.mask is not None for case in usable], dtype=np.bool_)
    if not diseased.any():
        reasons = "".join(f"\n  {failure['name']}: {failure['reason']}" for failure in failures)
        raise ThoradError(
            f"None of the {len(named)} cases has a lesion mask that can be used, so there is nothing to measure. "
            f"Give a CSV with the columns image and mask.{reasons}"
        )
    return _Bench(
        names=[case.name for case in usable],
        files=[str(case.image) for case in usable],
        subjects=[case.subject for case in usable],
        images=torch.stack(images),
        truth=np.stack(truths),
        diseased=diseased,
        groups=[size_group(int(truth.sum()), size) for truth in truths],
        failures=failures,
    )


def _healthy_cases(cases: Sequence[Case], healthy: Sequence[Path]) -> list[Case]:
    """Make cases of healthy images, without those that are among the cases already, under names that are still free."""
    both = sorted({case.image.resolve() for case in cases if case.mask} & {path.resolve() for path in healthy})
    if both:
        raise ThoradError(
            f"{len(both)} images have a lesion mask and are among the healthy ones, too: "
            f"{listing(list(map(str, both)))}. Take them out of one of the two."
        )
    known = {case.image.resolve() for case in cases if case.mask is None}
    new = [path for path in healthy if path.resolve() not in known]
    taken = {case.name for case in cases}
    found: list[Case] = []
    for path, name in zip(new, case_names(new, [path.parent for path in new]), strict=True):
        while name in taken:
            name = f"healthy-{name}"
        taken.add(name)
        found.append(Case(image=path, mask=None, subject=subject_of(path), name=name))
    return found


def _read_case(case: Case, size: int) -> tuple[torch.Tensor, Bools]:
    """Read one image (1, S, S) and its lesions (S, S) on the model's grid."""
    pixels = read_image(case.image).pixels
    image, _ = to_model_input(pixels, size)
    if case.mask is None:
        return image, np.zeros((size, size), dtype=np.bool_)
    height, width = pixels.shape
    mask = read_mask(case.mask, (height, width))
    if not mask.any():
        raise ThoradError(f"{case.mask}: the mask marks no pixel. Leave the mask column empty for a healthy case.")
    return image, mask_to_model_grid(mask, size)


def _detect(detector: MapDetector, bench: _Bench, done: int, total: int, on_progress: Progress | None) -> _Output:
    maps: list[torch.Tensor] = []
    scores: list[torch.Tensor] = []
    cpu_seconds = 0.0
    for start in range(0, len(bench.names), detector.batch_size):
        batch = slice(start, start + detector.batch_size)
        before = time.process_time()
        batch_maps = detector.model_maps(bench.images[batch], bench.names[batch])  # (B, 1, S, S)
        batch_scores = detector.scores(batch_maps)  # (B,)
        cpu_seconds += time.process_time() - before
        maps.append(batch_maps.detach().float().cpu())
        scores.append(batch_scores.detach().double().cpu().reshape(-1))
        if on_progress is not None:
            on_progress(done + min(batch.stop, len(bench.names)), total, detector.method)
    return _Output(torch.cat(maps)[:, 0].numpy(), torch.cat(scores).numpy(), cpu_seconds / len(bench.names))


def _not_finite(
    detectors: Sequence[MapDetector], benches: Mapping[int, _Bench], outputs: Sequence[_Output]
) -> list[dict[str, str]]:
    """List the cases for which a detector gave NaN or infinity; an error where that leaves no lesion case."""
    broken_by: dict[str, list[str]] = {}  # case -> detectors
    files: dict[str, str] = {}
    lesions: set[str] = set()
    for detector, output in zip(detectors, outputs, strict=True):
        bench = benches[detector.model_size]
        title = _title({"method": detector.method, "noise": detector.noise})
        files |= zip(bench.names, bench.files, strict=True)
        lesions |= {name for name, diseased in zip(bench.names, bench.diseased, strict=True) if diseased}
        finite = np.isfinite(output.maps).all(axis=(1, 2)) & np.isfinite(output.scores)
        for index in np.flatnonzero(~finite):
            broken_by.setdefault(bench.names[index], []).append(title)
    if lesions <= broken_by.keys():
        titles = dict.fromkeys(title for found in broken_by.values() for title in found)
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


def _leave_out(failures: Sequence[dict[str, str]], bench: _Bench, output: _Output) -> tuple[_Bench, _Output]:
    """Take these cases out of a bench and what a detector gave for it, and list them among the bench's failures."""
    kept = np.flatnonzero(~np.isin(bench.names, [failure["name"] for failure in failures]))
    left = replace(
        bench,
        names=[bench.names[i] for i in kept],
        files=[bench.files[i] for i in kept],
        subjects=[bench.subjects[i] for i in kept],
        images=bench.images[kept],
        truth=bench.truth[kept],
        diseased=bench.diseased[kept],
        groups=[bench.groups[i] for i in kept],
        failures=[*bench.failures, *failures],
    )
    return left, replace(output, maps=output.maps[kept], scores=output.scores[kept])


def _measure(
    detector: MapDetector, bench: _Bench, output: _Output, weights: Floats
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Turn one detector's maps into its result and its rows of `cases.csv`."""
    region = np.asarray(detector.region, dtype=np.bool_)
    if not region.any():
        raise ThoradError(f"{detector.method}: the model's region is empty, so there is nothing to measure in.")
    ill, well = bench.diseased, ~bench.diseased
    values = output.maps[:, region]  # (N, P)
    truth = bench.truth[:, region]  # (N, P)
    missed = (bench.truth & ~region).sum(axis=(1, 2))  # (N,)
    # From the lesion cases alone, so that healthy scans, given or not, never change the best Dice.
    thresholds = metrics.tail_thresholds(values[ill], metrics.FINE_THRESHOLDS)
    fine = metrics.count_above(values, truth, thresholds, missed)
    step = (metrics.FINE_THRESHOLDS - 1) // (metrics.BEST_DICE_THRESHOLDS - 1)
    coarse = fine.every(step)

    groups = np.asarray([group or "" for group in bench.groups])
    members = {group: ill & (groups == group) for group in SIZE_GROUPS}
    pools = {**members, "pooled": ill}
    counts = np.asarray([member.sum() for member in members.values()], dtype=np.float64)  # (3,)
    resampled_counts = np.stack([weights[:, member].sum(axis=1) for member in members.values()], axis=-1)  # (R, 3)

    best = {name: metrics.best_of_counts(coarse.of(pool)) for name, pool in pools.items()}
    exact = {
        name: metrics.exact_best_dice(values[pool], truth[pool], int(missed[pool].sum()))
        for name, pool in pools.items()
    }
    resampled = {name: metrics.resampled_best_dice(coarse.of(pool), weights[:, pool]) for name, pool in pools.items()}

    best_of_case = np.nan_to_num(metrics.case_dice(coarse)).max(axis=1)  # (N,)

    keys = {f"{rate:g}": rate for rate in FALSE_POSITIVE_RATES}
    dice_at: dict[str, float | None] = dict.fromkeys(keys)
    mean_case_dice_at: dict[str, float | None] = dict.fromkeys(keys)
    threshold_at: dict[str, float] = {}
    dice_at_interval: dict[str, list[float] | None] = dict.fromkeys(keys)
    case_dice_at: dict[str, Floats] = {}
    for key, rate in keys.items() if well.any() else ():
        threshold_at[key] = metrics.threshold_at_fpr(values[well], rate)
        above = metrics.count_above(values, truth, [threshold_at[key]], missed)
        case_dice_at[key] = metrics.case_dice(above)[:, 0]
        defined = case_dice_at[key][ill & np.isfinite(case_dice_at[key])]
        dice_at[key] = float(metrics.pooled_dice(above.of(ill))[0, 0])
        mean_case_dice_at[key] = float(defined.mean()) if defined.size else None
        resampled_at = metrics.resampled_dice_at_fpr(
            fine.of(ill), fine.of(well), rate, weights[:, ill], weights[:, well]
        )
        dice_at_interval[key] = _interval(resampled_at)

    result: dict[str, Any] = {
        "method": detector.method,
        "noise": detector.noise,
        "steps": detector.steps,
        "best_dice": _with_averages({name: 100 * found.dice for name, found in best.items()}, counts),
        "auprc": metrics.average_precision(values[ill], truth[ill]),
        "auroc": metrics.auroc(values[ill], truth[ill]),
        "dice_at_fpr": dice_at,
        "image_auroc": metrics.auroc(output.scores, ill),
        "network_calls": detector.network_calls,
        "cpu_seconds_per_case": output.cpu_seconds_per_case,
        "mean_case_dice_at_fpr": mean_case_dice_at,
        "best_dice_exact": _with_averages({name: 100 * found.dice for name, found in exact.items()}, counts),
        "intervals": {
            "best_dice": {
                name: _interval(drawn)
                for name, drawn in _with_averages(
                    {name: 100 * drawn for name, drawn in resampled.items()}, resampled_counts
                ).items()
            },
            "auprc": _interval(metrics.resampled_average_precision(fine.of(ill), weights[:, ill])),
            "auroc": _interval(metrics.resampled_auroc(fine.of(ill), weights[:, ill])),
            "dice_at_fpr": dice_at_interval,
            "image_auroc": _interval(metrics.resampled_image_auroc(output.scores, ill, weights)),
        },
        "thresholds": {
            "best_dice": {name: found.threshold for name, found in best.items()},
            "best_dice_source": "the test labels: an upper bound",
            "dice_at_fpr": {key: threshold_at.get(key) for key in keys},
            "dice_at_fpr_source": f"the {int(well.sum())} healthy scans of this evaluation",
        },
        "counts": {
            "lesion_cases": int(ill.sum()),
            "healthy_cases": int(well.sum()),
            "subjects": len(set(bench.subjects)),
            **{name: int(member.sum()) for name, member in members.items()},
            "no_size_group": int((ill & (groups == "")).sum()),
            "lesion_pixels": int(bench.truth.sum()),
            "lesion_pixels_outside_region": int(missed.sum()),
            "region_pixels": int(region.sum()),
            "bootstrap_resamples": len(weights),
        },
        "failures": bench.failures,
    }
    rows = [
        {
            "method": detector.method,
            "noise": detector.noise,
            "steps": detector.steps,
            "name": bench.names[index],
            "subject": bench.subjects[index],
            "kind": "lesion" if diseased else "healthy",
            "size_group": bench.groups[index],
            "lesion_pixels": int(bench.truth[index].sum()),
            "score": float(output.scores[index]),
            **{
                f"dice_at_{key}": float(case_dice_at[key][index]) if diseased and key in case_dice_at else None
                for key in keys
            },
            "best_dice_percent": 100 * float(best_of_case[index]) if diseased else None,
            "average_precision": metrics.average_precision(values[index], truth[index]),
        }
        for index, diseased in enumerate(ill)
    ]
    return _without_nan(result), rows


def _with_averages(values: dict[str, Any], lesion_counts: Floats) -> dict[str, Any]:
    """Put the two averages beside the size groups; works for numbers and for (R,) resamples."""
    group_values = np.stack([np.asarray(values[group]) for group in SIZE_GROUPS], axis=-1)
    return {
        "average": lesion_weighted_average(group_values, lesion_counts),
        **values,
        "paper_mix": paper_mix(group_values),
    }


def _interval(resampled: Floats) -> list[float] | None:
    low, high = metrics.percentile_interval(resampled)
    return None if math.isnan(low) else [low, high]


def _without_nan(value: Any) -> Any:
    """Turn NaN into None and arrays of no dimension into numbers, all the way down."""
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_without_nan(item) for item in value]
    if isinstance(value, float | np.ndarray | np.floating):
        number = float(value)
        return number if math.isfinite(number) else None
    return value


def markdown_table(results: Sequence[Mapping[str, Any]]) -> str:
    """Write results as one Markdown table, with where every threshold comes from below it."""
    columns = (
        "Method",
        "Noise",
        "Steps",
        "Calls",
        "Small",
        "Medium",
        "Large",
        "Average [95 %]",
        "Paper mix",
        "Pooled",
        "AP",
        "AUROC",
        "Dice @ 1 % FP",
        "Dice @ 5 % FP",
        "Image AUROC",
        "CPU s/case",
    )
    lines = ["| " + " | ".join(columns) + " |", "|---|---|" + "---:|" * (len(columns) - 2)]
    for result in results:
        best, at = result["best_dice"], result["dice_at_fpr"]
        interval = result["intervals"]["best_dice"]["average"]
        average = _cell(best["average"], 1)
        if interval is not None:
            average += f" [{interval[0]:.1f}, {interval[1]:.1f}]"
        cells = [
            str(result["method"]),
            "-" if result["noise"] is None else str(result["noise"]),
            "-" if result["steps"] is None else str(result["steps"]),
            str(result["network_calls"]),
            *(_cell(best[group], 1) for group in SIZE_GROUPS),
            average,
            _cell(best["paper_mix"], 1),
            _cell(best["pooled"], 1),
            _cell(result["auprc"], 3),
            _cell(result["auroc"], 3),
            _cell(at["0.01"], 3),
            _cell(at["0.05"], 3),
            _cell(result["image_auroc"], 3),
            _cell(result["cpu_seconds_per_case"], 2),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    counts = results[0]["counts"]
    lines += [
        "",
        f"{counts['lesion_cases']} lesion cases ({counts['small']} small, {counts['medium']} medium, {counts['large']} "
        f"large, {counts['no_size_group']} too small for a group) and {counts['healthy_cases']} healthy scans of "
        f"{counts['subjects']} subjects.",
        "",
        "Small to Pooled: best Dice in percent over 101 thresholds. **Each picks its threshold on the test labels, so "
        "it is an upper bound**, comparable with the field's tables and with nothing a user can reach. Average weights "
        "the groups by this bench's lesion counts, paper mix by the paper's. Pooled counts every lesion pixel, those "
        "of lesions too small for a group too.",
        "",
        f"Dice @ 1 % and 5 % FP (0 to 1, pooled over the lesion cases): the threshold is the smallest that at most 1 % "
        f"or 5 % of the pixels exceed in the {counts['healthy_cases']} healthy scans of this evaluation; no lesion "
        "label is used. AP and AUROC (0 to 1) need no threshold; they pool the pixels inside the model's region. Dice "
        f"also counts the {counts['lesion_pixels_outside_region']} of {counts['lesion_pixels']} lesion pixels outside "
        "it, as missed. Intervals: 95 % percentile bootstrap over subjects, "
        f"{counts['bootstrap_resamples']} resamples. CPU seconds are summed over all threads; a dash is a value that "
        "can't be computed here.",
    ]
    failures = results[0]["failures"]
    if failures:
        lines += [
            "",
            f"Left out, because they could not be used: {', '.join(failure['name'] for failure in failures)}.",
        ]
    return "\n".join(lines) + "\n"


def _title(result: Mapping[str, Any]) -> str:
    return str(result["method"]) if result["noise"] is None else f"{result['method']} ({result['noise']})"


def _cell(value: float | None, decimals: int) -> str:
    return "-" if value is None else f"{value:.{decimals}f}"


def _csv_text(rows: Sequence[dict[str, Any]]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows({key: "" if value is None else value for key, value in _without_nan(row).items()} for row in rows)
    return text.getvalue()


def _check_writable(out: Path) -> None:
    """Fail before the detection, not hours later, when the results could not be written."""
    probe = out / ".probe"
    write_whole(probe, b"")
    probe.unlink()
