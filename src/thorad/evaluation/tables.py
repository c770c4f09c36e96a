"""Results as Markdown tables, one kind for each protocol, with where every threshold comes from below them."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

from thorad.evaluation.bench import ABOUT, ASKED, title
from thorad.evaluation.sizes import SIZE_GROUPS
from thorad.evaluation.statistics import references

Result = Mapping[str, Any]

TEXT_COLUMNS: Final = ("Method", "Noise", "Kind", "Model")
"""Columns that are no numbers."""


def lesion_table(results: Sequence[Result]) -> str:
    """The table of `brain-lesions`."""
    reference = _reference(results)
    columns = [
        *_method_columns(results),
        *("Small", "Medium", "Large", "Average [95 %]", "Paper mix"),
        *_versus_columns("Mix", reference),
        *("Pooled", "AP", "AUROC", "Dice @ 1 % FP", "Dice @ 5 % FP", "Image AUROC", "CPU s/case"),
    ]
    rows = [
        [
            *_method_cells(result, results),
            *(_cell(result["best_dice"][group], 1) for group in SIZE_GROUPS),
            _with_interval(result["best_dice"]["average"], result["intervals"]["best_dice"]["average"], 1),
            _cell(result["best_dice"]["paper_mix"], 1),
            *_versus_cells(result, "paper_mix", reference, 1),
            _cell(result["best_dice"]["pooled"], 1),
            _cell(result["auprc"], 3),
            _cell(result["auroc"], 3),
            _cell(result["dice_at_fpr"]["0.01"], 3),
            _cell(result["dice_at_fpr"]["0.05"], 3),
            _cell(result["image_auroc"], 3),
            _cell(result["cpu_seconds_per_case"], 2),
        ]
        for result in results
    ]
    counts = results[0]["counts"]
    return _markdown(
        columns,
        rows,
        f"{counts['lesion_cases']} lesion cases ({counts['small']} small, {counts['medium']} medium, {counts['large']} "
        f"large, {counts['no_size_group']} too small for a group) and {counts['healthy_cases']} healthy scans of "
        f"{counts['subjects']} subjects.",
        "Small to Pooled: best Dice in percent over 101 thresholds. **Each picks its threshold on the test labels, so "
        "it is an upper bound**, comparable with the field's tables and with nothing a user can reach. Average weights "
        "the groups by this bench's lesion counts, paper mix by the paper's. Pooled counts every lesion pixel, those "
        "of lesions too small for a group too.",
        f"Dice @ 1 % and 5 % FP (0 to 1, pooled over the lesion cases): the threshold is the smallest that at most 1 % "
        f"or 5 % of the pixels exceed in the {counts['healthy_cases']} healthy scans of this evaluation; no lesion "
        "label is used. AP and AUROC (0 to 1) need no threshold; they pool the pixels inside the model's region. Dice "
        f"also counts the {counts['lesion_pixels_outside_region']} of {counts['lesion_pixels']} lesion pixels outside "
        f"it, as missed. {_intervals(counts)}{_p_values(reference)} CPU seconds are summed over all threads; a dash is "
        "a value that can't be computed here.",
        *_floor_table(results, {"paper_mix": ("Mix", 1), "average": ("Average", 1), "auprc": ("AP", 3)}),
        *_asked_and_left_out(results),
    )


def volume_table(results: Sequence[Result]) -> str:
    """The table of `brain-volumes`."""
    reference = _reference(results)
    columns = [
        *_method_columns(results),
        *("Dice [95 %]", "SD"),
        *_versus_columns("Dice", reference),
        *("AUPRC [95 %]", "SD", "Threshold", "CPU s/slice"),
    ]
    rows = [
        [
            *_method_cells(result, results),
            _with_interval(result["mean_dice"], result["intervals"]["mean_dice"], 3),
            _cell(result["standard_deviation"]["mean_dice"], 3),
            *_versus_cells(result, "mean_dice", reference, 3),
            _with_interval(result["mean_auprc"], result["intervals"]["mean_auprc"], 3),
            _cell(result["standard_deviation"]["mean_auprc"], 3),
            f"{result['thresholds']['mean_dice']:.3g}",
            _cell(result["cpu_seconds_per_case"], 2),
        ]
        for result in results
    ]
    counts = results[0]["counts"]
    return _markdown(
        columns,
        rows,
        f"{counts['lesion_volumes']} volumes with lesions and {counts['healthy_volumes']} healthy ones, "
        f"{counts['slices']} slices of {counts['subjects']} subjects.",
        f"Dice and AUPRC (0 to 1): means and standard deviations (SD) over the volumes with lesions. Maps are "
        "median-filtered and cut to the eroded brain mask; components under 7 voxels are dropped before the Dice. "
        f"Threshold: {results[0]['thresholds']['mean_dice_source']}; no test label is used.",
        f"{_intervals(counts)}{_p_values(reference)} CPU seconds are summed over all threads.",
        *_floor_table(results, {"mean_dice": ("Dice", 3), "mean_auprc": ("AUPRC", 3)}),
        *_asked_and_left_out(results),
    )


def box_table(results: Sequence[Result]) -> str:
    """The table of `boxes`: one row for each method and kind."""
    reference = _reference(results)
    columns = [
        *_method_columns(results),
        *("Kind", "Boxes", "Recall [95 %]", "F1 [95 %]"),
        *_versus_columns("F1", reference),
        *("FROC", "FROC (IoU)", "Image AUROC", "CPU s/case"),
    ]
    rows: list[list[str]] = []
    for result in results:
        for kind, figures in result["kinds"].items():
            all_kinds = kind == "all"
            intervals = result["intervals"] if all_kinds else {"recall": None, "f1": None}
            rows.append(
                [
                    *_method_cells(result, results),
                    kind,
                    str(figures["boxes"]),
                    _with_interval(figures["recall"], intervals["recall"], 3),
                    _with_interval(figures["f1"], intervals["f1"], 3),
                    *_versus_cells(result if all_kinds else {"versus": []}, "f1", reference, 3),
                    _cell(figures["froc"]["mean"], 3),
                    _cell(figures["froc_iou"]["mean"], 3),
                    _cell(result["image_auroc"], 3) if all_kinds else "",
                    _cell(result["cpu_seconds_per_case"], 2) if all_kinds else "",
                ]
            )
    counts = results[0]["counts"]
    return _markdown(
        columns,
        rows,
        f"{counts['boxes']} boxes in {counts['images_with_boxes']} images, and {counts['healthy_images']} healthy "
        f"images, of {counts['subjects']} subjects.",
        f"Threshold: {results[0]['thresholds']['boxes_source']} exceed it; no box is used. Recall and F1 (0 to 1) by "
        "the rules of THOR's wrist experiment, means over the boxes: found is a box of which more than 10 % of the "
        "pixels exceed the threshold. FROC: mean sensitivity at 1/8, 1/4, 1/2, 1, 2, 4 and 8 false positives an image; "
        "a candidate hits a box with its peak, or (IoU) by an overlap of 0.1 or more.",
        f"{_intervals(counts)}{_p_values(reference)} CPU seconds are summed over all threads.",
        *_floor_table(results, {"recall": ("Recall", 3), "f1": ("F1", 3)}),
        *_asked_and_left_out(results),
    )


def _markdown(columns: Sequence[str], rows: Sequence[Sequence[str]], *paragraphs: str) -> str:
    return "\n\n".join([_rows(columns, rows), *paragraphs]) + "\n"


def _rows(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    aligned = "".join("---|" if column in TEXT_COLUMNS else "---:|" for column in columns)
    lines = ["| " + " | ".join(columns) + " |", "|" + aligned]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)])


def _method_columns(results: Sequence[Result]) -> list[str]:
    return ["Method", "Noise", *(["Model"] if _several_models(results) else []), "Steps", "Calls"]


def _method_cells(result: Result, results: Sequence[Result]) -> list[str]:
    return [
        str(result["method"]),
        "-" if result["noise"] is None else str(result["noise"]),
        *([str(result["model"])] if _several_models(results) else []),
        "-" if result["steps"] is None else str(result["steps"]),
        str(result["network_calls"]),
    ]


def _several_models(results: Sequence[Result]) -> bool:
    return len({result["model"] for result in results}) > 1


def _references(results: Sequence[Result]) -> list[Result]:
    """The methods that others are compared with, as they stand in `versus`; none where there is only one method."""
    if len(results) < 2:
        return []
    return [{key: results[index][key] for key in ABOUT} for index in references(results)]


def _reference(results: Sequence[Result]) -> Result | None:
    """The first of the references."""
    return next(iter(_references(results)), None)


def _floor_table(results: Sequence[Result], metrics: Mapping[str, tuple[str, int]]) -> list[str]:
    """A second table: the methods against the second reference, the z-score.

    Args:
        results: of all methods.
        metrics: metric -> its column and decimals.
    """
    if len(_references(results)) < 2:
        return []
    floor = _references(results)[1]
    columns = _method_columns(results)[:-2]
    for column, _ in metrics.values():
        columns += _versus_columns(column, floor)
    rows = [
        [
            *_method_cells(result, results)[:-2],
            *(
                cell
                for metric, (_, decimals) in metrics.items()
                for cell in _versus_cells(result, metric, floor, decimals)
            ),
        ]
        for result in results
        if any(entry["reference"] == floor for entry in result["versus"])
    ]
    return [_rows(columns, rows)]


def _versus_columns(figure: str, reference: Result | None) -> list[str]:
    return [] if reference is None else [f"{figure} - {title(reference)} [95 %]", "p"]


def _versus_cells(result: Result, metric: str, reference: Result | None, decimals: int) -> list[str]:
    if reference is None:
        return []
    for entry in result["versus"]:
        if entry["metric"] == metric and entry["reference"] == reference:
            difference = entry["difference"]
            signed = "-" if difference is None else f"{difference:+.{decimals}f}"
            return [_bracketed(signed, entry["interval"], decimals, "+"), _cell(entry["p_value"], 4)]
    return ["", ""]


def _with_interval(value: float | None, interval: Sequence[float] | None, decimals: int) -> str:
    return _bracketed(_cell(value, decimals), interval, decimals)


def _bracketed(text: str, interval: Sequence[float] | None, decimals: int, sign: str = "") -> str:
    if interval is None:
        return text
    return f"{text} [{interval[0]:{sign}.{decimals}f}, {interval[1]:{sign}.{decimals}f}]"


def _cell(value: float | None, decimals: int) -> str:
    return "-" if value is None else f"{value:.{decimals}f}"


def _intervals(counts: Result) -> str:
    return f"Intervals: 95 % percentile bootstrap over subjects, {counts['bootstrap_resamples']} resamples."


def _p_values(reference: Result | None) -> str:
    if reference is None:
        return ""
    return (
        f" Differences from {title(reference)}: the same resamples for both; p is two-sided, from a permutation test "
        "that swaps the two methods' results within subjects, and not corrected for the number of comparisons."
    )


def _asked_and_left_out(results: Sequence[Result]) -> list[str]:
    """What a user asked for that no column says, and the cases that could not be used."""
    asked = {(name, one[name]) for one in results for name in ASKED if name in one}
    told = [f"{name.replace('_', ' ').capitalize()}: {value}." for name, value in sorted(asked)]
    failures = results[0]["failures"]
    names = ", ".join(failure["name"] for failure in failures)
    return told + ([f"Left out, because they could not be used: {names}."] if failures else [])
