"""A report of a result folder: one HTML file that opens from the disk and asks no network for anything.

The page is put together from thorad/assets/report: report.html, gallery.html, report.css, page.js and gallery.js. All
text of the results is escaped; the page's content security policy allows its own script and style only, by their hash.

Shapes: H, W an image's own grid.
"""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from importlib import resources
from pathlib import Path
from string import Template
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from thorad import __version__
from thorad.datasets.cases import Case as Labelled
from thorad.errors import ThoradError
from thorad.io.atomic import write_atomic
from thorad.results import charts
from thorad.results.gallery import NO_PICTURES, by_score, case_entry, encode_picture, gallery_index
from thorad.results.layout import CaseRecord
from thorad.results.page import LARGEST_PAGE, json_text, script_hash
from thorad.results.reader import Pictures, ResultFolder, match_truth, read_folder, read_pictures, truth_of
from thorad.results.truth import Measured, measure

SIDES: Final = (512, 384, 256, 192, 128)
"""Longest side of a page's pictures, px: the largest that fits."""

SAMPLE: Final = 12
"""Cases whose pictures tell how large a page will be."""

Progress = Callable[[int, int], None]
"""Called with (cases done, cases in all)."""


@dataclass(frozen=True)
class ReportSummary:
    """What was written."""

    path: Path
    bytes: int
    cases: int
    side: int | None
    """Longest side of the pictures, px; None where they are as large as in the folder."""
    without_pictures: int
    """Cases, of those with the lowest scores, whose pictures the page doesn't hold."""


def write_report(
    results: Path,
    out: Path | None = None,
    *,
    truth: Path | None = None,
    bootstrap: int = 1000,
    seed: int = 0,
    largest: int = LARGEST_PAGE,
    on_progress: Progress | None = None,
) -> ReportSummary:
    """Write the report of a folder that `thorad detect` or `thorad evaluate` has left.

    Args:
        results: the folder.
        out: the HTML file; report.html in the folder where not given.
        truth: table with columns image and mask, as `thorad evaluate` takes it, of a folder of `thorad detect`.
        bootstrap: resamples over subjects for the intervals; 0 for none.
        seed: of the bootstrap.
        largest: bytes that the page may have.
        on_progress: see `Progress`.

    Raises:
        ThoradError: no result folder, a damaged file, a truth that doesn't fit, or the page can't be written.
    """
    path = out or results / "report.html"
    if (results / "metrics.json").is_file():
        if truth is not None:
            raise ThoradError(f"{results}: an evaluation knows its truth; leave --truth out.")
        return _write_evaluation(results, path)
    folder = read_folder(results)
    rows = match_truth(folder, truth) if truth else {}
    measured = measure(folder, rows, bootstrap=bootstrap, seed=seed)
    gallery = _Gallery(folder, rows, measured, largest, on_progress)
    sections = [
        _section("run", "What was run", _run(folder, gallery, truth, measured)),
        _section("summary", "Summary", _summary(folder, rows, measured)),
        Template(_asset("gallery.html")).substitute(note=escape(gallery.note)),
    ]
    options = folder.run["options"]
    page = _page(
        heading=f"{_method(options)} on {_counted(len(folder.cases), 'case')}",
        subtitle=f"model {options.get('model')} · {results.resolve().name} · thorad {options.get('thorad', '?')}",
        sections=sections,
        navigation={"run": "Run", "summary": "Summary", "gallery": "Cases"},
        script=_asset("page.js") + _asset("gallery.js"),
        index=gallery.index,
        pictures=gallery.blocks,
    )
    write_atomic(path, page)
    return ReportSummary(path, len(page), len(folder.cases), gallery.side, gallery.without_pictures)


def _page(
    *,
    heading: str,
    subtitle: str,
    sections: Sequence[str],
    navigation: Mapping[str, str],
    script: str,
    index: Mapping[str, Any],
    pictures: Sequence[str] = (),
) -> bytes:
    style = _asset("report.css")
    return (
        Template(_asset("report.html"))
        .substitute(
            version=escape(__version__),
            title=escape(f"thorad: {heading}"),
            heading=escape(heading),
            subtitle=escape(subtitle),
            style=style,
            style_hash=script_hash(style),
            script=script,
            script_hash=script_hash(script),
            navigation="".join(f'<a href="#{anchor}">{escape(text)}</a>' for anchor, text in navigation.items()),
            sections="\n".join(sections),
            index=json_text(index),
            pictures="\n".join(pictures),
        )
        .encode("utf-8", "replace")
    )


# --------------------------------------------------------------------------------------------------- gallery


class _Gallery:
    """The cases of a page as its script takes them: an index, and a block of pictures for each."""

    def __init__(
        self,
        folder: ResultFolder,
        rows: Mapping[str, Labelled],
        measured: Measured | None,
        largest: int,
        on_progress: Progress | None,
    ) -> None:
        self._folder, self._rows = folder, rows
        # Highest scores first: these are read first, and keep their pictures where not all fit.
        self._cases = by_score(folder.cases)
        self._on_progress = on_progress or (lambda done, total: None)
        self.side: int | None = None
        self.scans = True
        self.blocks: list[str] = []
        self._side = SIDES[0]
        self._first: dict[str, int] = {}  # number of the picture with the map's peak, of cases that have pictures
        self._largest_value = float(folder.run["overlay_maximum"])
        self._encode(largest)
        self.index = gallery_index(
            folder,
            [self._entry(number, case, measured) for number, case in enumerate(self._cases)],
            largest=self._largest_value,
            scans=self.scans,
            dice_at="" if measured is None else f"{measured.threshold:.3g}",
        )

    @property
    def without_pictures(self) -> int:
        """Cases that did not fail and have no pictures in the page."""
        return sum(case.done for case in self._cases) - len(self.blocks)

    @property
    def note(self) -> str:
        """What a reader should know of the pictures."""
        size = (
            "Pictures are as large as the run left them"
            if self.side is None
            else f"Pictures are reduced to {self.side} px at their longest side, maps by the mean of the pixels, so "
            "that this file stays small: small peaks are lower here than in the folder"
        )
        said = [
            f"{size}; maps have 8 bits here, fine near 0 and coarse near a map's peak.",
            "Above the threshold the map lies over the scan, stronger with its value; below it the scan is as it is.",
        ]
        if self._rows:
            said.append("Dice at this threshold is of the pictures as they are here.")
        if not self.scans:
            said.append(
                "This folder is of a version that kept no scan: the overlay is shown as the run drew it, and opacity, "
                "colours and window don't change it. Detect again to have the scan."
            )
        if self.without_pictures:
            said.append(f"{self.without_pictures} cases with the lowest scores are listed without pictures.")
        return " ".join(said)

    def _encode(self, largest: int) -> None:
        """Fill `blocks`, with pictures of the largest side with which all fit."""
        done = [case for case in self._cases if case.done]
        sample = done[:: max(1, len(done) // SAMPLE)]
        sampled = [(case, read_pictures(case)) for case in sample]
        longest = max((max(one.anomaly_map.shape) for _, found in sampled for one in found), default=0)
        sides = [side for side in SIDES if side < longest]
        for side in (longest, *sides) if longest <= SIDES[0] else sides:
            if side != SIDES[-1]:
                expected = sum(len(self._block(0, case, found, side)) for case, found in sampled) / len(sampled)
                if expected * len(done) > 0.97 * largest:
                    continue
            self._encode_all(done, side, largest)
            if len(self.blocks) == len(done):
                return

    def _encode_all(self, done: Sequence[CaseRecord], side: int, largest: int) -> None:
        """Fill `blocks` until the page is full."""
        self.blocks, self._first, self._side = [], {}, side
        self._largest_value = float(self._folder.run["overlay_maximum"])
        total, reduced = 0, False
        for number, case in enumerate(done):
            pictures = read_pictures(case)
            block = self._block(number, case, pictures, side)
            total += len(block)
            if total > largest:
                break
            reduced |= any(max(one.anomaly_map.shape) > side for one in pictures)
            self.blocks.append(block)
            self._first[case.name] = int(np.argmax([one.anomaly_map.max() for one in pictures]))
            self._largest_value = max(self._largest_value, *(float(one.anomaly_map.max()) for one in pictures))
            self.scans &= all(one.scan is not None for one in pictures)
            self._on_progress(number + 1, len(done))
        self.side = side if reduced else None

    def _block(self, number: int, case: CaseRecord, pictures: Sequence[Pictures], side: int) -> str:
        coded = json_text([self._encoded(case, one, side) for one in pictures])
        return f'<script type="application/json" id="case-{number}">{coded}</script>'

    def _entry(self, number: int, case: CaseRecord, measured: Measured | None) -> dict[str, Any]:
        entry = case_entry(number, case, self._side)
        if case.name in self._first:
            entry["first"] = self._first[case.name]
        else:
            entry |= NO_PICTURES
        if measured is not None:
            known = {"truth": measured.lesion_pixels, "size": measured.size, "dice": measured.dice}
            entry |= {key: figures.get(case.name) for key, figures in known.items()}
        return entry

    def _encoded(self, case: CaseRecord, picture: Pictures, side: int) -> dict[str, Any]:
        row = self._rows.get(case.name) if picture.slice_index is None else None
        truth = truth_of(row, picture.shape) if row is not None and row.mask is not None else None
        return encode_picture(picture, side, truth)


# --------------------------------------------------------------------------------------------------- what was run


def _run(folder: ResultFolder, gallery: _Gallery, truth: Path | None, measured: Measured | None) -> str:
    run, options = folder.run, folder.run["options"]
    failed = [case for case in folder.cases if not case.done]
    calibration = options.get("calibration")
    facts = {
        "method": _method(options),
        "model": str(options.get("model")),
        "steps": _told(options.get("steps")),
        "noise level": _told(options.get("noise_level")),
        "preset": _told(options.get("preset")),
        "seed": _told(options.get("seed")),
        "calibration": "none"
        if not calibration
        else f"{calibration['scans']} healthy scans; p at least {1 / (calibration['scans'] + 1):.2g}",
        "threshold": "none"
        if folder.threshold is None
        else f"{folder.threshold:.4g}"
        + (f", which {100 * calibration['false_positives']:g} % of healthy pixels exceed" if calibration else ""),
        "truth": "none given"
        if truth is None
        else f"{truth.name}: {_counted(len(measured.lesion_pixels) if measured else 0, 'case')}",
        "cases": f"{len(folder.cases) - len(failed)} done, {len(failed)} failed",
        "time": f"{run.get('seconds', 0):.0f} s",
        "ran on": f"{options.get('device')}, {options.get('precision')}",
    }
    facts = {name: value for name, value in facts.items() if value != "-"}
    warnings = []
    if run.get("status") == "running":
        warnings.append("The run isn't finished: only the cases that are done are here.")
    if failed:
        warnings.append(f"{_counted(len(failed), 'case')} failed; the reasons are below.")
    if not calibration:
        warnings.append(
            "Not calibrated: no p-values, and scores mean nothing by themselves. `thorad calibrate` on own healthy "
            "scans of the same scanner makes thresholds and p-values."
        )
    warned = [case for case in folder.cases if case.done and case.message]
    if warned:
        warnings.append(f"{_counted(len(warned), 'case')} came with a warning, which stands with it.")
    if not gallery.scans:
        warnings.append("The folder was made by a version that kept no scans: overlays are shown as the run drew them.")
    measured_cases = 0 if measured is None else len(measured.lesion_pixels)
    if truth is not None and measured_cases < len(folder.cases) - len(failed):
        warnings.append(
            f"The truth is known of {measured_cases} of the {len(folder.cases) - len(failed)} cases: the others are "
            "not in its table, or are volumes, whose slices lie on another grid. Figures leave them out."
        )
    reasons = ""
    if failed:
        lines = "".join(
            f'<tr><td>{escape(case.name)}</td><td class="message">{escape(case.message)}</td></tr>' for case in failed
        )
        reasons = f'<h3>Failed</h3><table><tr><th>case</th><th class="text">reason</th></tr>{lines}</table>'
    everything = {key: value for key, value in run.items() if key != "healthy_scores"}
    return (
        "".join(f'<p class="warning">{_marked(warning)}</p>' for warning in warnings)
        + _definitions(facts)
        + reasons
        + "<details><summary>All options and versions</summary>"
        + f"<pre>{escape(json.dumps(everything, indent=2, default=str))}</pre></details>"
    )


def _method(options: Mapping[str, Any]) -> str:
    noise = options.get("noise")
    return f"{options.get('method')} ({noise})" if noise else str(options.get("method"))


def _definitions(facts: Mapping[str, str]) -> str:
    """Pairs in two columns where there is room."""
    pairs = [f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in facts.items()]
    half = (len(pairs) + 1) // 2
    columns = "".join(f'<dl class="facts">{"".join(part)}</dl>' for part in (pairs[:half], pairs[half:]))
    return f'<div class="columns">{columns}</div>'


# --------------------------------------------------------------------------------------------------- summary


def _summary(folder: ResultFolder, rows: Mapping[str, Labelled], measured: Measured | None) -> str:
    done = [case for case in folder.cases if case.done and case.score is not None]
    if not done:
        return "<p>No case was done.</p>"
    parts = [_figure("Scores", _scores(folder, done, rows), _score_words(folder, done))]
    p_values = np.asarray([case.p_value for case in done if case.p_value is not None])
    if p_values.size:
        parts.append(
            _figure(
                "p-values",
                _p_table(p_values),
                "A p-value is the rank of a case's score among the healthy "
                "scans' scores: if all cases were healthy, at most this many would be expected below each level.",
            )
        )
    if measured is not None:
        parts.append(_figure("Against the truth", _truth_table(measured), measured.words))
        if measured.curve is not None:
            curve = measured.curve
            parts.append(
                _figure(
                    "Dice against the threshold",
                    charts.curves(
                        [charts.Line("pooled", curve.thresholds, curve.dice)],
                        title=f"Dice against the threshold; the best is {max(curve.dice):.2f}",
                        x_label="threshold, map units (spaced by square roots)",
                        y_label="Dice",
                        x_range=(0.0, max(curve.thresholds)),
                        root=True,
                        marker="threshold-marker",
                    ),
                    "Pooled over the cases with a lesion. The upright line is the threshold that is set below.",
                )
            )
            parts.append(
                _figure(
                    "Precision and recall",
                    charts.curves(
                        [charts.Line("pooled", curve.recall, curve.precision)],
                        title=f"Precision against recall; average precision {measured.average_precision.value:.2f}",
                        x_label="recall (share of lesion pixels found)",
                        y_label="precision",
                        x_range=(0.0, 1.0),
                    ),
                    "Of pixels, pooled over the cases with a lesion.",
                )
            )
        if measured.by_size:
            parts.append(
                _figure(
                    "By lesion size",
                    _size_table(measured),
                    "Lesion sizes as the field counts them: more than 3, 71 and 570 px of a grid of 128 x 128.",
                )
            )
    return f'<div class="columns">{"".join(parts)}</div>'


def _scores(folder: ResultFolder, done: Sequence[CaseRecord], rows: Mapping[str, Labelled]) -> str:
    ill = {name for name, row in rows.items() if row.mask is not None}

    def scores(fits: Callable[[str], bool]) -> list[float]:
        return [float(case.score or 0.0) for case in done if fits(case.name)]

    named = [
        ("healthy scans of the calibration", list(folder.healthy_scores), True),
        ("healthy cases", scores(lambda name: name in rows and name not in ill), True),
        ("cases with a lesion", scores(lambda name: name in ill), False),
        ("cases without a known truth" if rows else "cases", scores(lambda name: name not in rows), False),
    ]
    return charts.histograms(named, title="Histograms of the scores", x_label="score")


def _score_words(folder: ResultFolder, done: Sequence[CaseRecord]) -> str:
    scores = [float(case.score or 0.0) for case in done]
    said = f"Median {np.median(scores):.4g}, from {min(scores):.4g} to {max(scores):.4g}. Dashed: the medians."
    if folder.run["options"].get("calibration") and not folder.healthy_scores:
        said += " This run.json does not hold the healthy scans' scores, so they are not drawn."
    return said


def _p_table(p_values: NDArray[np.float64]) -> str:
    lines = "".join(
        f"<tr><td>p ≤ {level:g}</td><td>{np.count_nonzero(p_values <= level)} of {p_values.size}</td>"
        f"<td>{level * p_values.size:.3g}</td></tr>"
        for level in (0.01, 0.05, 0.1, 0.25)
    )
    return f"<table><tr><th></th><th>cases</th><th>if all were healthy</th></tr>{lines}</table>"


def _truth_table(measured: Measured) -> str:
    lines = "".join(f"<tr><td>{escape(name)}</td>{_cell(one)}</tr>" for name, one in measured.figures.items())
    return f"<table><tr><th></th><th>value [95 %]</th></tr>{lines}</table>"


def _size_table(measured: Measured) -> str:
    lines = "".join(
        f"<tr><td>{escape(size)}</td><td>{one.cases}</td>{_cell(one.best)}{_cell(one.at)}</tr>"
        for size, one in measured.by_size.items()
    )
    return (
        "<table><tr><th>lesions</th><th>cases</th><th>best Dice [95 %]</th>"
        f"<th>Dice {escape(measured.at_words)} [95 %]</th></tr>{lines}</table>"
    )


def _cell(one: charts.Interval) -> str:
    if one.value is None:
        return "<td>–</td>"
    ends = "" if one.ends is None else f" [{one.ends[0]:.3f}, {one.ends[1]:.3f}]"
    return f'<td class="value">{one.value:.3f}{ends}</td>'


# --------------------------------------------------------------------------------------------------- evaluations


def _write_evaluation(results: Path, path: Path) -> ReportSummary:
    try:
        found = json.loads((results / "metrics.json").read_bytes())
        table = (results / "table.md").read_text(encoding="utf-8")
        told = results / "run.json"
        run = json.loads(told.read_bytes()) if told.is_file() else {}  # `thorad reproduce` writes none
        protocol, counts = found[0]["protocol"], found[0]["counts"]
    except (OSError, ValueError, KeyError, IndexError, TypeError) as error:
        raise ThoradError(f"{results}: not a whole folder of `thorad evaluate` ({error!r}). Evaluate again.") from error
    failures = found[0].get("failures", [])
    facts = {
        "protocol": protocol,
        "methods": ", ".join(_method(one) for one in found),
        "models": ", ".join(dict.fromkeys(str(one.get("model")) for one in found)),
        **{name.replace("_", " "): str(value) for name, value in counts.items()},
        **({"time": f"{run['seconds']:.0f} s"} if "seconds" in run else {}),
    }
    lines = "".join(
        f'<tr><td>{escape(one["name"])}</td><td class="message">{escape(one["reason"])}</td></tr>' for one in failures
    )
    warned = (
        f'<p class="warning">{_counted(len(failures), "case")} could not be used and are left out for every method.</p>'
        f'<table><tr><th>case</th><th class="text">reason</th></tr>{lines}</table>'
        if failures
        else ""
    )
    details = (
        "<details><summary>All options and versions</summary>"
        f"<pre>{escape(json.dumps(run, indent=2, default=str))}</pre></details>"
    )
    figures = [
        *([_evaluation_sizes(found)] if "best_dice" in found[0] else []),
        *_evaluation_curves(found),
    ]
    cases = (
        "<p>An evaluation measures on the model's grid and keeps no pictures. To look at the cases: "
        "<code>thorad detect CASES.csv --out DIR</code>, then <code>thorad report DIR --truth CASES.csv</code>.</p>"
    )
    sections = [
        _section("run", "What was run", warned + _definitions(facts) + details),
        _section("summary", "Results", markdown_html(table) + f'<div class="columns">{"".join(figures)}</div>'),
        _section("gallery", "Cases", cases),
    ]
    page = _page(
        heading=f"Evaluation of {_counted(len(found), 'method')}",
        subtitle=f"protocol {protocol} · {results.resolve().name}",
        sections=sections,
        navigation={"run": "Run", "summary": "Results"},
        script=_asset("page.js"),
        index={},
    )
    write_atomic(path, page)
    return ReportSummary(path, len(page), 0, None, 0)


def _evaluation_sizes(found: Sequence[Mapping[str, Any]]) -> str:
    groups = []
    for size in ("small", "medium", "large"):
        lines = [
            (_method(one), charts.Interval(one["best_dice"][size], one["intervals"]["best_dice"][size]))
            for one in found
        ]
        groups.append((f"{size} ({found[0]['counts'][size]} cases)", lines))
    chart = charts.intervals(groups, title="Best Dice by lesion size and method", x_label="best Dice, %", high=100)
    return _figure(
        "By lesion size", chart, "Each threshold is chosen on the test labels: an upper bound. 95 % intervals."
    )


def _evaluation_curves(found: Sequence[Mapping[str, Any]]) -> list[str]:
    """The two charts over thresholds, where metrics.json holds their points."""
    # What can't be computed is null there.
    curves = {
        _method(one): {
            name: [np.nan if value is None else value for value in line] for name, line in one["curves"].items()
        }
        for one in found
        if one.get("curves")
    }
    if not curves:
        return []
    dice = charts.curves(
        [charts.Line(name, one["predicted_share"], one["dice"]) for name, one in curves.items()],
        title="Dice against the share of pixels above the threshold, by method",
        x_label="share of pixels above the threshold (spaced by square roots)",
        y_label="Dice",
        x_range=(0.0, 1.0),
        root=True,
    )
    precision = charts.curves(
        [charts.Line(name, one["recall"], one["precision"]) for name, one in curves.items()],
        title="Precision against recall, by method",
        x_label="recall",
        y_label="precision",
        x_range=(0.0, 1.0),
    )
    return [
        _figure(
            "Dice against the threshold", dice, "Thresholds as shares of pixels, for methods differ in their units."
        ),
        _figure("Precision and recall", precision, "Of pixels, pooled over the cases with a lesion."),
    ]


def markdown_html(text: str) -> str:
    """The HTML of what `thorad.evaluation.tables` writes: paragraphs, tables, bold words."""
    parts = []
    for block in re.split(r"\n\s*\n", text.strip()):
        lines = block.splitlines()
        if lines[0].startswith("|"):
            heads, *rows = [[_marked(cell.strip()) for cell in line.strip().strip("|").split("|")] for line in lines]
            head = "".join(f"<th>{cell}</th>" for cell in heads)
            body = "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>" for row in rows[1:])
            parts.append(f'<div class="scroll"><table><tr>{head}</tr>{body}</table></div>')
        else:
            parts.append(f'<p class="note">{_marked(" ".join(lines))}</p>')
    return "".join(parts)


def _marked(text: str) -> str:
    """Text, escaped, in which **words** are bold and `words` are code."""
    return re.sub(r"`(.+?)`", r"<code>\1</code>", re.sub(r"\*\*(.+?)\*\*", r"<strong>\1</strong>", escape(text)))


# --------------------------------------------------------------------------------------------------- pieces


def _section(anchor: str, title: str, content: str) -> str:
    return f'<section id="{anchor}"><h2>{escape(title)}</h2>\n{content}\n</section>'


def _figure(title: str, content: str, words: str) -> str:
    return f"<figure><h3>{escape(title)}</h3>{content}<figcaption>{escape(words)}</figcaption></figure>"


def _told(value: Any) -> str:
    return "-" if value is None else str(value)


def _counted(count: int, what: str) -> str:
    return f"{count} {what}" if count == 1 else f"{count} {what}s"


def _asset(name: str) -> str:
    return (resources.files("thorad") / "assets" / "report" / name).read_text(encoding="utf-8")
