"""A report of a result folder: one HTML file that opens from the disk and asks no network for anything."""

from dataclasses import dataclass
from pathlib import Path

from thorad.errors import ThoradError
from thorad.io.atomic import write_atomic
from thorad.results.detection_report import detection_page
from thorad.results.evaluation_report import evaluation_page
from thorad.results.packed_gallery import PackedGallery, Progress
from thorad.results.page import LARGEST_PAGE
from thorad.results.reader import match_truth, read_folder
from thorad.results.truth import measure


@dataclass(frozen=True)
class ReportSummary:
    """What was written."""

    path: Path
    bytes: int
    cases: int
    side: int | None = None
    """Longest side of the pictures, px; None where they are as large as in the folder."""
    without_pictures: int = 0
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
        page = evaluation_page(results)
        write_atomic(path, page)
        return ReportSummary(path, len(page), cases=0)
    folder = read_folder(results)
    rows = match_truth(folder, truth) if truth else {}
    measured = measure(folder, rows, bootstrap=bootstrap, seed=seed)
    gallery = PackedGallery(folder, rows, measured, largest, on_progress)
    page = detection_page(folder, gallery, rows, measured, truth)
    write_atomic(path, page)
    return ReportSummary(path, len(page), len(folder.cases), gallery.side, gallery.without_pictures)
