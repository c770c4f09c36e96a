"""Find out what data set lies in a folder: the layouts of `DATASETS` in turn, and what they share."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path, PurePath

from thorad.datasets import DATASETS, OWN
from thorad.datasets.cases import Case
from thorad.datasets.contract import DataSet
from thorad.errors import ThoradError
from thorad.io.images import SUFFIXES, files_below
from thorad.io.volumes import VOLUME_SUFFIXES

IMAGE_SUFFIXES = tuple(sorted((*SUFFIXES, *VOLUME_SUFFIXES), key=len, reverse=True))
"""Of pictures and volumes, the longest first: .nii.gz before .gz."""


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
    if kind is None:  # other packages' layouts are the most special, so first; then thorad's own; the general ones last
        layouts = dict(sorted(DATASETS.items(), key=lambda entry: (entry[1].general, entry[0] in OWN)))
    else:
        layouts = {kind: DATASETS[kind]}
    if not folder.is_dir():
        what = "not a folder" if folder.exists() else "no such folder"
        raise ThoradError(f"{folder}: {what}. Name the folder that the data set lies in.")
    files, odd = _readable_names(folder)
    for name, layout in layouts.items():
        data_set = layout.find(folder, files)
        if data_set is not None:
            data_set = replace(data_set, odd=odd + data_set.odd, kind=name)
            data_set.odd.extend(_unrecognised(folder, files, data_set))
            data_set.odd.extend([] if kind else _other_layouts(folder, files, data_set))
            return data_set
    expected = DATASETS[kind].description if kind else f"files that end in {', '.join(IMAGE_SUFFIXES)}"
    raise ThoradError(
        f"{folder}: no {kind or 'image or volume'} in this folder or below; expected {expected}. Linked folders are "
        "not followed: name them themselves."
    )


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


def _other_layouts(folder: Path, files: Sequence[Path], data_set: DataSet) -> list[str]:
    """What a user should know where two data sets lie in one folder."""
    if DATASETS[data_set.kind].general:
        return []
    taken = {case.image for case in data_set.cases}
    second: list[str] = []
    for name, layout in DATASETS.items():
        other = None if layout.general or name == data_set.kind else layout.find(folder, files)
        more = [case.image for case in other.cases if case.image not in taken] if other else []
        if more:
            second.append(
                f"{shown(more[0], folder)}: one of {len(more)} that are laid out as {name}; --kind {name} takes them"
            )
    return second


def _unrecognised(folder: Path, files: Sequence[Path], data_set: DataSet) -> list[str]:
    """Volumes whose names mean nothing in any layout, where the others' do: they would be lost without a word."""
    if DATASETS[data_set.kind].recognises is None:
        return []
    known = [layout.recognises for layout in DATASETS.values() if layout.recognises is not None]
    taken = {path for case in data_set.cases for path in case.files}
    lost = [path for path in files if is_volume(path) and path not in taken]
    lost = [path for path in lost if not any(recognises(path.relative_to(folder)) for recognises in known)]
    layout = f"whose names mean nothing in the layout {data_set.kind}"
    return [f"{shown(lost[0], folder)}: one of {len(lost)} volumes {layout}"] if lost else []


def is_image(path: PurePath) -> bool:
    """By its name: a picture or a volume."""
    return path.name.lower().endswith(IMAGE_SUFFIXES)


def is_volume(path: PurePath) -> bool:
    """By its name."""
    return path.name.lower().endswith(VOLUME_SUFFIXES)


def stem_of(path: PurePath) -> str:
    """The name without an image's or a volume's suffix, .nii.gz as a whole."""
    lower = path.name.lower()
    return path.name[: len(path.name) - len(next(filter(lower.endswith, IMAGE_SUFFIXES), ""))]


def shown(path: Path, folder: Path) -> str:
    """A file as reports name it: relative to the data set's folder where it lies there."""
    return str(path.relative_to(folder) if path.is_relative_to(folder) else path)


def without_t1(subjects: Iterable[str], cases: Sequence[Case]) -> list[str]:
    """One line for each subject that has no case."""
    return [f"{subject}: no T1 volume" for subject in sorted(set(subjects) - {case.subject for case in cases})]


def without_mask(cases: Sequence[Case], folder: Path) -> list[str]:
    """One line for each case without a mask, if any case has one."""
    if not any(case.masks for case in cases):
        return []
    return [f"{shown(case.image, folder)}: no lesion mask, others have one" for case in cases if not case.masks]
