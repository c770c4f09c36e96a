"""The page of a folder of `thorad detect`: what was run, figures, and every case to look at."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from thorad.datasets.cases import Case
from thorad.results import charts
from thorad.results.charts import Panel
from thorad.results.layout import CaseRecord
from thorad.results.packed_gallery import PackedGallery
from thorad.results.page import counted, json_text, render_page
from thorad.results.reader import ResultFolder, method_title
from thorad.results.truth import Curve, Measured
from thorad.table import Table


def detection_page(
    folder: ResultFolder,
    gallery: PackedGallery,
    rows: Mapping[str, Case],
    measured: Measured | None,
    truth: Path | None,
) -> bytes:
    """The file of the page.

    Args:
        folder: what the run left.
        gallery: its cases, with their pictures.
        rows: {case name: row of the truth}, of some of them.
        measured: their maps against that truth; None where no image has one.
        truth: the table of those rows, if there is one.
    """
    options = folder.run["options"]
    failed = [(case.name, case.message) for case in folder.cases if not case.done]
    everything = {key: value for key, value in folder.run.items() if key != "healthy_scores"}
    return render_page(
        "report/detection.html",
        heading=f"{method_title(options)} on {counted(len(folder.cases), 'case')}",
        subtitle=f"model {options.get('model')} · {folder.path.resolve().name} · thorad {options.get('thorad', '?')}",
        navigation={"run": "Run", "summary": "Summary", "gallery": "Cases"},
        warnings=_warnings(folder, gallery, measured, truth),
        facts=_facts(folder, measured, truth),
        failures=Table(("case", "reason"), failed, text_columns=frozenset({"reason"})) if failed else None,
        options=json.dumps(everything, indent=2, default=str),
        panels=_panels(folder, rows, measured),
        note=gallery.note,
        index=json_text(gallery.index),
        blocks=gallery.blocks,
    )


# --------------------------------------------------------------------------------------------------- what was run


def _facts(folder: ResultFolder, measured: Measured | None, truth: Path | None) -> dict[str, str]:
    run, options = folder.run, folder.run["options"]
    done = sum(case.done for case in folder.cases)
    asked = {"steps": "steps", "noise level": "noise_level", "seed": "seed"}
    return {
        "method": method_title(options),
        "model": str(options.get("model")),
        **{name: str(options[key]) for name, key in asked.items() if options.get(key) is not None},
        **_calibration_facts(folder),
        "truth": f"{truth.name}: {counted(_known(measured), 'case')}" if truth else "none given",
        "cases": f"{done} done, {len(folder.cases) - done} failed",
        "time": f"{run.get('seconds', 0):.0f} s",
        "ran on": f"{options.get('device')}, {options.get('precision')}",
    }


def _calibration_facts(folder: ResultFolder) -> dict[str, str]:
    threshold = "none" if folder.threshold is None else f"{folder.threshold:.4g}"
    calibration = folder.run["options"].get("calibration")
    if not calibration:
        return {"calibration": "none", "threshold": threshold}
    scans = calibration["scans"]
    if folder.threshold is not None:
        threshold += f", which {100 * calibration['false_positives']:g} % of healthy pixels exceed"
    return {"calibration": f"{scans} healthy scans; p at least {1 / (scans + 1):.2g}", "threshold": threshold}


def _warnings(folder: ResultFolder, gallery: PackedGallery, measured: Measured | None, truth: Path | None) -> list[str]:
    done = [case for case in folder.cases if case.done]
    failed, warned = len(folder.cases) - len(done), sum(bool(case.message) for case in done)
    warnings = []
    if folder.run.get("status") == "running":
        warnings.append("The run isn't finished: only the cases that are done are here.")
    if failed:
        warnings.append(f"{counted(failed, 'case')} failed; the reasons are below.")
    if not folder.run["options"].get("calibration"):
        warnings.append(
            "Not calibrated: no p-values, and scores mean nothing by themselves. `thorad calibrate` on own healthy "
            "scans of the same scanner makes thresholds and p-values."
        )
    if warned:
        warnings.append(f"{counted(warned, 'case')} came with a warning, which stands with it.")
    if not gallery.scans:
        warnings.append("The folder was made by a version that kept no scans: overlays are shown as the run drew them.")
    if truth is not None and _known(measured) < len(done):
        warnings.append(
            f"The truth is known of {_known(measured)} of the {len(done)} cases: the others are "
            "not in its table, or are volumes, whose slices lie on another grid. Figures leave them out."
        )
    return warnings


def _known(measured: Measured | None) -> int:
    """Cases with a known truth."""
    return 0 if measured is None else len(measured.lesion_pixels)


# --------------------------------------------------------------------------------------------------- summary


def _panels(folder: ResultFolder, rows: Mapping[str, Case], measured: Measured | None) -> list[Panel]:
    done = [case for case in folder.cases if case.done and case.score is not None]
    if not done:
        return []
    panels = [Panel("Scores", _score_histograms(folder, done, rows), _score_words(folder, done))]
    p_values = [case.p_value for case in done if case.p_value is not None]
    if p_values:
        words = (
            "A p-value is the rank of a case's score among the healthy scans' scores: if all cases were healthy, at "
            "most this many would be expected below each level."
        )
        panels.append(Panel("p-values", _p_table(p_values), words))
    if measured is not None:
        figures = [(name, interval.text) for name, interval in measured.figures.items()]
        panels.append(Panel("Against the truth", Table(("", "value [95 %]"), figures), measured.words))
        if measured.curve is not None:
            panels += _curve_panels(measured.curve, measured.average_precision)
        if measured.by_size:
            words = "Lesion sizes as the field counts them: more than 3, 71 and 570 px of a grid of 128 x 128."
            panels.append(Panel("By lesion size", _size_table(measured), words))
    return panels


def _score_histograms(folder: ResultFolder, done: Sequence[CaseRecord], rows: Mapping[str, Case]) -> charts.Histograms:
    diseased = {name for name, row in rows.items() if row.mask is not None}

    def scores(belongs: Callable[[str], bool]) -> list[float]:
        return [float(case.score or 0.0) for case in done if belongs(case.name)]

    samples = [
        charts.Sample("healthy scans of the calibration", folder.healthy_scores, True),
        charts.Sample("healthy cases", scores(lambda name: name in rows and name not in diseased), True),
        charts.Sample("cases with a lesion", scores(lambda name: name in diseased), False),
        charts.Sample("cases without a known truth" if rows else "cases", scores(lambda name: name not in rows), False),
    ]
    return charts.Histograms("Histograms of the scores", "score", [sample for sample in samples if sample.values])


def _score_words(folder: ResultFolder, done: Sequence[CaseRecord]) -> str:
    scores = [float(case.score or 0.0) for case in done]
    words = f"Median {np.median(scores):.4g}, from {min(scores):.4g} to {max(scores):.4g}. Dashed: the medians."
    if folder.run["options"].get("calibration") and not folder.healthy_scores:
        words += " This run.json does not hold the healthy scans' scores, so they are not drawn."
    return words


def _p_table(p_values: Sequence[float]) -> Table:
    rows = [
        (f"p ≤ {level:g}", f"{sum(p <= level for p in p_values)} of {len(p_values)}", f"{level * len(p_values):.3g}")
        for level in (0.01, 0.05, 0.1, 0.25)
    ]
    return Table(("", "cases", "if all were healthy"), rows)


def _curve_panels(curve: Curve, average_precision: charts.Interval) -> list[Panel]:
    dice = charts.Curves(
        title=f"Dice against the threshold; the best is {max(curve.dice):.2f}",
        x_label="threshold, map units (spaced by square roots)",
        y_label="Dice",
        lines=[charts.Line("pooled", curve.thresholds, curve.dice)],
        x_maximum=max(curve.thresholds),
        square_root=True,
        marker="threshold-marker",
    )
    precision = charts.Curves(
        title=f"Precision against recall; average precision {average_precision.value:.2f}",
        x_label="recall (share of lesion pixels found)",
        y_label="precision",
        lines=[charts.Line("pooled", curve.recall, curve.precision)],
        x_maximum=1.0,
    )
    marker = "Pooled over the cases with a lesion. The upright line is the threshold that is set below."
    return [
        Panel("Dice against the threshold", dice, marker),
        Panel("Precision and recall", precision, "Of pixels, pooled over the cases with a lesion."),
    ]


def _size_table(measured: Measured) -> Table:
    columns = ("lesions", "cases", "best Dice [95 %]", f"Dice {measured.at_words} [95 %]")
    rows = [(size, str(each.cases), each.best.text, each.at.text) for size, each in measured.by_size.items()]
    return Table(columns, rows)
