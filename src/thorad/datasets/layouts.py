"""Find out what data set lies in a folder: the layouts of `DATASETS`, tried in turn."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from thorad.datasets import DATASETS, OWN
from thorad.datasets.cases import Case
from thorad.datasets.contract import Holdings, Layout
from thorad.datasets.names import IMAGE_SUFFIXES, is_volume, shown
from thorad.errors import ThoradError
from thorad.io.images import files_below


@dataclass(frozen=True)
class DataSet:
    """What a folder holds, by the names of its files."""

    kind: str
    """A name in `DATASETS`."""
    cases: list[Case]
    missing: list[str]
    """What the names of other files say should be there, one entry a thing."""
    odd: list[str]
    """What fits nowhere: broken links, damaged archives, a second layout."""


def find_data_set(folder: Path, kind: str | None = None) -> DataSet:
    """Find out what data set a folder holds.

    Hidden files are passed over, and linked folders are not followed.

    Args:
        folder: where it lies.
        kind: a name in `DATASETS`, where the files' names leave room for several; None for the first that fits.

    Raises:
        ThoradError: no folder, an unknown kind or one that does not fit, no image, or a table of the data set that
            can't be read.
    """
    asked = {kind: DATASETS[kind]} if kind is not None else _in_order()
    if not folder.is_dir():
        what = "not a folder" if folder.exists() else "no such folder"
        raise ThoradError(f"{folder}: {what}. Name the folder that the data set lies in.")
    files, odd = _readable_names(folder)
    for name, layout in asked.items():
        found = layout.find(folder, files)
        if found is not None:
            odd += [*found.odd, *_unrecognised(folder, files, found, name)]
            odd += _other_layouts(folder, files, found, name) if kind is None else []
            return DataSet(name, found.cases, found.missing, odd)
    expected = DATASETS[kind].description if kind else f"files that end in {', '.join(IMAGE_SUFFIXES)}"
    raise ThoradError(
        f"{folder}: no {kind or 'image or volume'} in this folder or below; expected {expected}. Linked folders are "
        "not followed: name them themselves."
    )


def _in_order() -> dict[str, Layout]:
    """All layouts: those of other packages, whose data sets are the most special, thorad's own, the general ones."""
    layouts = dict(DATASETS)
    return dict(sorted(layouts.items(), key=lambda entry: (entry[1].general, entry[0] in OWN)))


def _readable_names(folder: Path) -> tuple[list[Path], list[str]]:
    """(files, what is wrong with others): links to nothing, and names that no table could hold."""
    files: list[Path] = []
    odd: list[str] = []
    for path in files_below(folder):
        name = shown(path, folder)
        if re.search(r"[\x00-\x1f\x7f\ud800-\udfff]", name):
            odd.append(f"{name!a}: a name that no table can hold; rename it")
        elif path.is_symlink() and not path.exists():
            odd.append(f"{name}: a link to nothing")
        else:
            files.append(path)
    return files, odd


def _other_layouts(folder: Path, files: Sequence[Path], found: Holdings, kind: str) -> list[str]:
    """What a user should know where two data sets lie in one folder."""
    if DATASETS[kind].general:
        return []
    taken = {case.image for case in found.cases}
    second: list[str] = []
    for name, layout in DATASETS.items():
        other = None if layout.general or name == kind else layout.find(folder, files)
        more = [case.image for case in other.cases if case.image not in taken] if other else []
        if more:
            second.append(
                f"{shown(more[0], folder)}: one of {len(more)} that are laid out as {name}; --kind {name} takes them"
            )
    return second


def _unrecognised(folder: Path, files: Sequence[Path], found: Holdings, kind: str) -> list[str]:
    """Volumes whose names mean nothing in any layout, where the others' do: they would be lost without a word."""
    if DATASETS[kind].recognises is None:
        return []
    known = [layout.recognises for layout in DATASETS.values() if layout.recognises is not None]
    taken = {path for case in found.cases for path in (case.image, *case.masks)}
    lost = [
        path
        for path in files
        if is_volume(path)
        and path not in taken
        and not any(recognises(path.relative_to(folder)) for recognises in known)
    ]
    if not lost:
        return []
    return [f"{shown(lost[0], folder)}: one of {len(lost)} volumes whose names mean nothing in the layout {kind}"]
