"""The data of the THOR paper's tables: a bench that is prepared, or the data sets as they were published."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal, NamedTuple

from thorad.datasets import atlas, wrist
from thorad.datasets.cases import Case, Truth, read_cases
from thorad.datasets.published import brain_split
from thorad.errors import ThoradError
from thorad.io.scans import find_scans, picture_files
from thorad.io.tables import listing

Target = Literal["table1", "table2", "fig4", "ablation"]
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
    load: Callable[[Path, Path, Progress | None, bool], PaperData]
    """(data, where what is cut or chosen goes, progress, whether to skip what has artefacts)"""


def check_layout(target: Target, data: Path, on_progress: Progress | None = None) -> LayoutCheck:
    """Say what a folder holds, a prepared bench or the published data set, without writing anything.

    Raises:
        ThoradError: neither layout.
    """
    data_set = DATA_SETS[target]
    prepared = _prepared(data, data_set.truth)
    return data_set.check(data, on_progress) if prepared is None else LayoutCheck(prepared.found, [])


def load_data(
    target: Target, data: Path, out: Path, on_progress: Progress | None = None, *, skip_artefacts: bool = False
) -> PaperData:
    """Read a prepared bench, or cut or choose the cases of the published data and put them into `out`.

    Args:
        skip_artefacts: leave out the 20 slices of ATLAS that the published evaluation leaves out.

    Raises:
        ThoradError: neither layout; artefacts to skip in other data than ATLAS as published.
    """
    data_set = DATA_SETS[target]
    prepared = _prepared(data, data_set.truth)
    if skip_artefacts and (prepared is not None or data_set is not _ATLAS):
        raise ThoradError(
            "the published list of slices with artefacts is of ATLAS v2.0 as published, not of these data."
        )
    return prepared or data_set.load(data, out, on_progress, skip_artefacts)


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


def _load_atlas(data: Path, out: Path, on_progress: Progress | None, skip_artefacts: bool) -> PaperData:
    cases, found = _find_atlas(data)
    skipped = ""
    if skip_artefacts:
        numbered, artefacts = atlas.published_numbers(cases), brain_split().atlas_artefacts
        cases = [case for number, case in numbered.items() if number not in artefacts]
        skipped = f"{len(artefacts)} scans left out for artefacts, as the published evaluation does. "
    slices = atlas.cut_slices(cases, out / "slices", on_progress=_named(on_progress, "slices"))
    cut = skipped + (
        f"{slices.cut} slices k = 95 with a lesion, {len(slices.without_lesion)} without (left out), "
        f"{len(slices.left_out)} unusable scans."
    )
    return PaperData(read_cases(slices.table), _healthy_images(data), [found, cut], slices.left_out, published=True)


def _find_wrists(data: Path, on_progress: Progress | None) -> tuple[wrist.WristCases, list[str]]:
    """The images of the paper's wrist experiment, and what was found."""
    if not any(data.rglob("*.png")):
        raise ThoradError(
            f"{data}: no cases.csv and no PNG image; at the top {_contents(data)}. Expected a prepared bench "
            f"({PREPARED_WRIST}), or GRAZPEDWRI-DX as published, unpacked ({wrist.EXPECTED})."
        )
    cases = wrist.find_wrist_cases(data, _named(on_progress, "annotations"))
    normal = ", ".join(f"{len(of_part)} for {part}" for part, of_part in cases.normal.items())
    absent = ", ".join(f"{count} of {part}" for part, count in cases.absent.items() if count)
    otherwise = ", ".join(f"{count} of {kind}" for kind, count in cases.otherwise.items() if count)
    return cases, [
        f"Data: GRAZPEDWRI-DX by the paper's lists: {len(cases.diseased)} images with findings of "
        f"{len({case.subject for case in cases.diseased})} patients; healthy {normal}; {len(cases.left_out)} unusable.",
        f"Listed, but not in the folder: {absent}." if absent else "All listed images are there.",
        *([f"Images with another number of boxes than the lists have annotations: {otherwise}."] if otherwise else []),
    ]


def _check_wrists(data: Path, on_progress: Progress | None) -> LayoutCheck:
    cases, found = _find_wrists(data, on_progress)
    return LayoutCheck(found, list(cases.left_out.values()))


def _load_wrists(data: Path, out: Path, on_progress: Progress | None, _: bool) -> PaperData:
    chosen, found = _find_wrists(data, on_progress)
    cases = read_cases(wrist.write_wrist_cases(chosen, out / "cases"), truth="boxes")
    both = wrist.overlaps()
    training = (
        f"The lists' healthy images for training and validation are in {out / 'cases' / 'train.csv'} and val.csv: a "
        f"model trained on others may have seen the test's. The lists overlap: {both.patients} patients have images "
        f"for training and for the test, {both.trained} images for training are listed for a finding, too, and so are "
        f"{both.tested} of the test's healthy ones, which count as diseased here."
    )
    return PaperData(cases, [], [*found, training], chosen.left_out, published=True)


def _named(on_progress: Progress | None, name: str) -> Callable[[int, int], None] | None:
    return None if on_progress is None else lambda done, total: on_progress(done, total, name)


_ATLAS: Final = _Published("mask", _check_atlas, _load_atlas)
_GRAZPEDWRI: Final = _Published("boxes", _check_wrists, _load_wrists)
DATA_SETS: Final[Mapping[Target, _Published]] = {
    "table1": _ATLAS,
    "table2": _GRAZPEDWRI,
    "fig4": _ATLAS,
    "ablation": _ATLAS,
}
"""The paper's data for each target."""
