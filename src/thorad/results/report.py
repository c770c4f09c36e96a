"""A report of a result folder: one HTML file that opens from the disk and asks no network for anything.

The templates in thorad/assets/report hold its words and draw its charts; the pictures lie in it as PNG text, one block
for each case, as large as there is room.
"""

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

import numpy as np

from thorad.datasets.cases import Case
from thorad.errors import ThoradError
from thorad.evaluation.sizes import SIZE_GROUPS
from thorad.evaluation.tables import table_of
from thorad.io.atomic import write_atomic
from thorad.io.tables import counted
from thorad.pictures import Side
from thorad.records import model_title
from thorad.results.evaluation_gallery import evaluation_gallery, operating_point
from thorad.results.folder import (
    REPORT,
    RUN,
    CaseRecord,
    Pictures,
    ResultFolder,
    date_of,
    match_truth,
    method_title,
    read_folder,
    read_pictures,
)
from thorad.results.gallery import NO_PICTURES, by_score, case_entry, encode_case, gallery_index, registration_text
from thorad.results.methods_text import detection_text, evaluation_text
from thorad.results.page import LARGEST_PAGE, json_text, render
from thorad.results.truth import Measured, measure

SIDES: Final = (512, 384, 256, 192, 128)  # longest side of a page's pictures, px: the largest that fits
SAMPLE: Final = 12  # cases whose pictures tell how large a page will be
FEWEST_SCORES: Final = 10  # for a histogram of them alone
FEWEST_P_VALUES: Final = 20  # of which one is expected below 0.05 if all are healthy
MARGIN: Final = 0.97  # share of the page that the expected size may fill, for the sample is not all cases

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class ReportSummary:
    """What was written."""

    path: Path
    bytes: int
    cases: int
    side: int | None = None
    """Longest side of the pictures, px; None where they are as large as in the folder."""
    without_pictures: int = 0
    """Cases, the last in the page's order, whose pictures it doesn't hold."""


def write_report(
    results: Path,
    out: Path | None = None,
    *,
    truth: Path | None = None,
    bootstrap: int = 1000,
    seed: int = 0,
    side: Side | None = None,
    largest: int = LARGEST_PAGE,
    on_progress: Progress | None = None,
) -> ReportSummary:
    """Write the report of a folder that `thorad detect` or `thorad evaluate` has left.

    Args:
        results, out: the folder, and the HTML file; report.html in the folder where not given.
        truth: table with columns image and mask, as `thorad evaluate` takes it, of a folder of `thorad detect`.
        bootstrap, seed: resamples over subjects for the intervals, 0 for none, and their random seed.
        side: where slices have the patient's right at first; None: as in the run.
        largest: bytes that the pictures may have together.
        on_progress: called with (cases done, cases in all).

    Raises:
        ThoradError: no result folder, a damaged file, a truth that doesn't fit, or the page can't be written.
    """
    path = out or results / REPORT
    if (results / "metrics.json").is_file():
        if truth is not None:
            raise ThoradError(f"{results}: an evaluation knows its truth; leave --truth out.")
        return ReportSummary(path, _write(path, _evaluation_page(results)), cases=0)
    folder = read_folder(results)
    rows = match_truth(folder, truth) if truth else {}
    measured = measure(folder, rows, bootstrap=bootstrap, seed=seed)
    gallery = _PackedGallery(folder, path, rows, measured, side, largest, on_progress)
    size = _write(path, _detection_page(gallery, truth))
    return ReportSummary(path, size, len(folder.cases), gallery.side, gallery.without_pictures)


def _write(path: Path, page: str) -> int:
    content = page.encode("utf-8", "replace")
    write_atomic(path, content)
    return len(content)


def _detection_page(gallery: "_PackedGallery", truth: Path | None) -> str:
    folder, measured = gallery.folder, gallery.measured
    scores = _scores(folder, gallery.rows, {} if measured is None else measured.lesion_pixels)
    p_values = [case.p_value for case in folder.cases if case.p_value is not None and case.status == "ok"]
    shown = {"scores": scores, "p_values": p_values if len(p_values) >= FEWEST_P_VALUES else [], "measured": measured}
    return render(
        "report/detection.html",
        folder=folder,
        run={key: value for key, value in folder.run.items() if key != "healthy_scores"},
        truth=truth,
        summary=any(shown.values()),
        left_out=counted(folder.run.get("left_out") or {}),
        methods=detection_text(folder),
        gallery=gallery,
        **shown,
    )


def _scores(
    folder: ResultFolder, rows: Mapping[str, Case], lesion_pixels: Mapping[str, int]
) -> Mapping[str, Any] | None:
    """What the histograms of the scores show, warned cases apart; None where a few cases have nothing beside them.

    `lesion_pixels` is of the pictures: a mask in which nothing is marked is a healthy case's.
    """
    scored = [case for case in folder.cases if case.done and case.score is not None]
    if not scored or (len(scored) < FEWEST_SCORES and not folder.healthy_scores):
        return None
    done = {case.name: float(case.score or 0) for case in scored if case.status == "ok"}
    warned = [float(case.score or 0) for case in scored if case.status != "ok"]
    scores, others = list(done.values()) or warned, "cases without a known truth" if rows else "cases"
    sick = {name for name, row in rows.items() if row.mask is not None and lesion_pixels.get(name) != 0}
    groups: list[tuple[str, Sequence[float], bool]] = [
        ("healthy scans of the calibration", folder.healthy_scores, True),
        ("healthy cases", [done[name] for name in done if name in rows and name not in sick], True),
        ("cases with a lesion", [done[name] for name in done if name in sick], False),
        (others, [done[name] for name in done if name not in rows], False),
        ("warned cases", warned, False),
    ]
    everything = [*folder.healthy_scores, *scores, *warned]
    low, high = min(everything), max(everything)
    if high <= low:
        low, high = low - 0.5 * abs(low) - 1e-9, high + 0.5 * abs(high) + 1e-9
    return {
        "median": float(np.median(scores)),
        "lowest": min(scores),
        "highest": max(scores),
        "rows": [(label, each, float(np.median(each)), healthy) for label, each, healthy in groups if each],
        "range": (low, high),
    }


@dataclass
class _PackedGallery:
    """The cases for the page's script: an index, and a block of pictures for each, as many as `largest` bytes hold."""

    folder: ResultFolder
    out: Path
    rows: Mapping[str, Case]
    measured: Measured | None
    side_of_slices: Side | None
    largest: int
    on_progress: Progress | None

    def __post_init__(self) -> None:
        # Highest scores first, warned cases last: the first are read first, and keep their pictures where not all fit.
        self._cases = by_score(self.folder.cases)
        self._done = [case for case in self._cases if case.done]
        self.side: int | None = None
        self.blocks: list[str] = []
        self._side = SIDES[0]
        if self._done:
            self._pack()
        entries = [self._entry(number, case) for number, case in enumerate(self._cases)]
        dice_at = "" if self.measured is None else f"{self.measured.threshold:.3g}"
        self.index = gallery_index(
            self.folder, entries, truth=bool(self.rows), dice_at=dice_at, side=self.side_of_slices
        )

    @property
    def without_pictures(self) -> int:
        """Cases that have a result and no pictures in the page."""
        return len(self._done) - len(self.blocks)

    def _entry(self, number: int, case: CaseRecord) -> dict[str, Any]:
        entry = case_entry(number, case, self._side)
        if case.status == "refused" and (picture := registration_text(case)):
            entry["registration"] = f"data:image/png;base64,{picture}"
        page = self.folder.path / f"{case.name}.html"
        if case.is_volume and page.is_file():
            entry["page"] = quote(os.path.relpath(page, self.out.parent).replace(os.sep, "/"))
        if case in self._done[len(self.blocks) :]:
            entry |= NO_PICTURES
        if self.measured is not None:
            known = {"truth": self.measured.lesion_pixels, "size": self.measured.size, "dice": self.measured.dice}
            entry |= {key: figures.get(case.name) for key, figures in known.items()}
        return entry

    def _pack(self) -> None:
        """Fill the blocks, with pictures of the largest side with which all fit."""
        sample = [(case, read_pictures(case)) for case in self._done[:: max(1, len(self._done) // SAMPLE)]]
        longest = max(max(picture.shape) for _, pictures in sample for picture in pictures)
        whole = [longest] if longest <= SIDES[0] else []
        sides = [*whole, *(side for side in SIDES if side < longest)]
        for side in sides:
            if side != sides[-1]:  # at the last one as many cases as fit keep theirs
                expected = sum(len(self._block(case, pictures, side)) for case, pictures in sample) / len(sample)
                if expected * len(self._done) > MARGIN * self.largest:
                    continue
            self._fill(side)
            if not self.without_pictures:
                return

    def _fill(self, side: int) -> None:
        """Fill the blocks until the page is full."""
        self.blocks, self._side = [], side
        total, reduced = 0, False
        for number, case in enumerate(self._done, start=1):
            pictures = read_pictures(case)
            block = self._block(case, pictures, side)
            total += len(block)
            if total > self.largest:
                break
            reduced |= any(max(picture.shape) > side for picture in pictures)
            self.blocks.append(block)
            if self.on_progress:
                self.on_progress(number, len(self._done))
        self.side = side if reduced else None

    def _block(self, case: CaseRecord, pictures: Sequence[Pictures], side: int) -> str:
        encoded = encode_case(case, pictures, side, self.rows.get(case.name))
        if case.is_volume:
            encoded[0]["registration"] = registration_text(case)
        return json_text(encoded)


def _evaluation_page(folder: Path) -> str:
    try:
        results = json.loads((folder / "metrics.json").read_bytes())
        run_file = folder / RUN
        run = json.loads(run_file.read_bytes()) if run_file.is_file() else {}  # `thorad reproduce` writes none
        curves = {method_title(result): result["curves"] for result in results if result.get("curves")}
        return render(
            "report/evaluation.html",
            name=folder.resolve().name,
            results=results,
            titles=[method_title(result) for result in results],
            run=run,
            date=date_of(run),
            models="; ".join(dict.fromkeys(map(model_title, run.get("detectors") or results))),
            methods=evaluation_text(results, run),
            gallery=evaluation_gallery(folder, results, LARGEST_PAGE),
            points=[operating_point(result) for result in results],
            table=table_of(results),
            counts=[(name.replace("_", " "), count) for name, count in results[0]["counts"].items()],
            sizes=[_best_dice(results, size) for size in SIZE_GROUPS] if "best_dice" in results[0] else [],
            dice=[(title, curve["predicted_share"], curve["dice"]) for title, curve in curves.items()],
            precision=[(title, curve["recall"], curve["precision"]) for title, curve in curves.items()],
        )
    except (OSError, ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
        raise ThoradError(f"{folder}: not a whole folder of `thorad evaluate` ({error!r}). Evaluate again.") from error


def _best_dice(results: Sequence[Mapping[str, Any]], size: str) -> tuple[str, list[tuple[str, Any, Any]]]:
    """Heading of a size, and title, best Dice and its interval of each method."""
    lines = [(method_title(each), each["best_dice"][size], each["intervals"]["best_dice"][size]) for each in results]
    return f"{size} ({results[0]['counts'][size]} cases)", lines
