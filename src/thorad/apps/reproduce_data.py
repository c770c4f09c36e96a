"""The data of the THOR paper's tables: a bench that is prepared, or the data sets as they were published."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal, NamedTuple

from thorad.datasets import atlas, wrist
from thorad.datasets.cases import Case, Truth, read_cases
from thorad.errors import ThoradError
from thorad.io.scans import find_scans, picture_files
from thorad.io.tables import listing

Target = Literal["table1", "table2", "fig4"]
Progress = Callable[[int, int, str], None]
"""Called with (done, total, what of)."""

PREPARED_BRAIN: Final = "cases.csv with the columns image, mask and subject, and where there are some healthy/*.png"
PREPARED_WRIST: Final = "cases.csv with the columns image, boxes, elsewhere and subject, and healthy/*.png"


@dataclass(frozen=True)
class LayoutCheck:
    """What a folder holds."""

    found: list[str]  # what was found, and what of it will be used
    problems: list[str]  # what is wrong with single files; they would be left out


@dataclass(frozen=True)
class PaperData:
    """Data that are ready to be measured on."""

    cases: list[Case]
    healthy: list[Path]
    found: list[str]  # what was found, for the report
    failures: Mapping[str, str]  # {case: why it was left out}
    published: bool  # whether these are the paper's data


class _Published(NamedTuple):
    """A published data set."""

    truth: Truth  # which column the prepared bench has in its place
    check: Callable[[Path, Progress | None], LayoutCheck]
    load: Callable[[Path, Path, Progress | None], PaperData]  # (data, where what is cut or chosen goes, progress)


def check_layout(target: Target, data: Path, on_progress: Progress | None = None) -> LayoutCheck:
    """Say what a folder holds, a prepared bench or the published data set, without writing anything.

    Raises:
        ThoradError: neither layout.
    """
    data_set = DATA_SETS[target]
    prepared = _prepared(data, data_set.truth)
    return data_set.check(data, on_progress) if prepared is None else LayoutCheck(prepared.found, [])


def load_data(target: Target, data: Path, out: Path, on_progress: Progress | None = None) -> PaperData:
    """Read a prepared bench, or cut or choose the cases of the published data and put them into `out`.

    Raises:
        ThoradError: neither layout.
    """
    data_set = DATA_SETS[target]
    return _prepared(data, data_set.truth) or data_set.load(data, out, on_progress)


def _prepared(data: Path, truth: Truth) -> PaperData | None:
    """The data of a prepared bench; None where the folder is none."""
    if not data.is_dir():
        raise ThoradError(f"{data}: no such folder. Name the folder of the data set or of a prepared bench.")
    if not (data / "cases.csv").is_file():
        return None
    cases, healthy = read_cases(data / "cases.csv", truth=truth), _healthy_images(data)
    with_finding = sum(case.has_finding for case in cases)
    found = (
        f"Data: the prepared bench {data}: {with_finding} images with a finding and {len(cases) - with_finding} "
        f"without of {len({case.subject for case in cases})} subjects, and {len(healthy)} images in healthy/."
    )
    return PaperData(cases, healthy, [found], {}, published=False)


def _healthy_images(data: Path) -> list[Path]:
    return picture_files(find_scans([data / "healthy"])) if (data / "healthy").is_dir() else []


def _contents(data: Path) -> str:
    """What is at the top of a folder, for an error."""
    return listing(sorted(path.name for path in data.iterdir())) or "nothing"


def _find_atlas(data: Path) -> tuple[list[Case], str]:
    """The scans of ATLAS, and what was found."""
    files = atlas.find_atlas(data)
    if not files.cases:
        raise ThoradError(
            f"{data}: found {len(files.without_mask)} T1w volumes without a mask, {len(files.without_image)} masks "
            f"without a volume, and no cases.csv; at the top {_contents(data)}. Expected a prepared bench "
            f"({PREPARED_BRAIN}), or ATLAS v2.0 as published, unpacked ({atlas.EXPECTED})."
        )
    several = sum(len(case.masks) > 1 for case in files.cases)
    return files.cases, (
        f"Data: ATLAS v2.0 in {data}: {len(files.cases)} T1w volumes with a mask ({several} with several, of which the "
        f"union counts) of {len({case.subject for case in files.cases})} subjects, {len(files.without_mask)} without a "
        f"mask (left out), {len(files.without_image)} masks without a volume."
    )


def _check_atlas(data: Path, on_progress: Progress | None) -> LayoutCheck:
    cases, found = _find_atlas(data)
    problems: list[str] = []
    for done, case in enumerate(cases, start=1):
        try:
            atlas.check_headers(case)
        except ThoradError as error:
            problems.append(str(error))
        if on_progress is not None:
            on_progress(done, len(cases), "headers")
    good = len(cases) - len(problems)
    return LayoutCheck([found, f"{good} of {len(cases)} scans lie on the grid of MNI152NLin2009aSym."], problems)


def _load_atlas(data: Path, out: Path, on_progress: Progress | None) -> PaperData:
    cases, found = _find_atlas(data)
    slices = atlas.cut_slices(cases, out / "slices", on_progress=_named(on_progress, "slices"))
    cut = (
        f"{slices.cut} slices k = 95 with a lesion, {len(slices.without_lesion)} without (left out), "
        f"{len(slices.left_out)} unusable scans."
    )
    return PaperData(read_cases(slices.table), _healthy_images(data), [found, cut], slices.left_out, published=True)


def _sort_wrists(data: Path, on_progress: Progress | None) -> tuple[wrist.WristCases, list[str]]:
    """The images of GRAZPEDWRI-DX by what they are for, and what was found."""
    if wrist.dataset_table(data) is None:
        raise ThoradError(
            f"{data}: no cases.csv and no dataset.csv; at the top {_contents(data)}. Expected a prepared bench "
            f"({PREPARED_WRIST}), or GRAZPEDWRI-DX as published, unpacked ({wrist.EXPECTED})."
        )
    files = wrist.find_wrist_files(data)
    cases = wrist.sort_wrist_images(files, _named(on_progress, "annotations"))
    first = f", {listing(sorted(path.name for path in files.images_without_row))}" if files.images_without_row else ""
    return cases, [
        f"Data: GRAZPEDWRI-DX: {len(files.rows)} rows; {len(files.with_both)} with an image and an annotation, "
        f"{len(files.without_annotation)} with an image only (left out), {len(files.rows_without_image)} without an "
        f"image; {len(files.images_without_row)} images without a row{first}.",
        f"Posteroanterior images: {len(cases.diseased)} with boxes of "
        f"{len({case.subject for case in cases.diseased})} patients; healthy {len(cases.healthy_test)} for the test, "
        f"{len(cases.healthy_training)} for training, by patient; {len(cases.unclear)} without boxes of patients with "
        f"findings (left out); {len(cases.left_out)} unusable.",
    ]


def _check_wrists(data: Path, on_progress: Progress | None) -> LayoutCheck:
    cases, found = _sort_wrists(data, on_progress)
    return LayoutCheck(found, list(cases.left_out.values()))


def _load_wrists(data: Path, out: Path, on_progress: Progress | None) -> PaperData:
    chosen, found = _sort_wrists(data, on_progress)
    cases = read_cases(wrist.write_wrist_cases(chosen, out / "cases"), truth="boxes")
    training = (
        f"Healthy images for training are listed in {out / 'cases' / 'train.csv'}: a model trained on others may have "
        "seen the test's."
    )
    return PaperData(cases, [], [*found, training], chosen.left_out, published=True)


def _named(on_progress: Progress | None, name: str) -> Callable[[int, int], None] | None:
    return None if on_progress is None else lambda done, total: on_progress(done, total, name)


_ATLAS: Final = _Published("mask", _check_atlas, _load_atlas)
_GRAZPEDWRI: Final = _Published("boxes", _check_wrists, _load_wrists)
DATA_SETS: Final[Mapping[Target, _Published]] = {"table1": _ATLAS, "table2": _GRAZPEDWRI, "fig4": _ATLAS}
"""The paper's data for each target."""
