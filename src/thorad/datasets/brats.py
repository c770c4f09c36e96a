"""BraTS (Baid et al. 2021), MSLUB and the like: a case's contrasts and its lesion mask lie in one folder."""

import re
from collections.abc import Sequence
from pathlib import Path, PurePath
from typing import Final

from thorad.datasets.cases import Case
from thorad.datasets.contract import Holdings, Layout
from thorad.datasets.names import is_volume, shown, stem_of, without_mask

CONTRAST: Final = re.compile(
    r"(?:(?P<case>.+)[-_])?(?P<contrast>t1|t1n|t1w|t1ce|t1c|t1gd|t1wks|t2|t2w|t2f|flair|pd)", re.IGNORECASE
)
T1: Final = ("t1", "t1n", "t1w")
"""T1 without contrast medium."""
LESIONS: Final = re.compile(
    r"(?:(?P<case>.+?)[-_])?(?:seg|segm|gt|consensus_gt|lesions?|(?:lesions?[-_]?)?mask|lesions?[-_]?seg)",
    re.IGNORECASE,
)
BRAIN_MASK: Final = re.compile(r"brain[-_]?mask$", re.IGNORECASE)
BRATS_NAME: Final = re.compile(r"(BraTS-[A-Za-z]+-\d+)-(\d+)")
STUDY: Final = re.compile(r"(?:study|visit|time)\d+", re.IGNORECASE)


def find_brats(folder: Path, files: Sequence[Path]) -> Holdings | None:
    """The T1 volume of each case, with the lesion masks of its folder, both recognised by the ends of their names."""
    by_folder: dict[Path, list[Path]] = {}
    for path in filter(is_volume, files):
        by_folder.setdefault(path.parent, []).append(path)
    cases: list[Case] = []
    labels: set[str] = set()
    masks_alone: list[Path] = []
    for where, volumes in by_folder.items():
        contrasts = [(path, name) for path in volumes if (name := CONTRAST.fullmatch(stem_of(path)))]
        masks = {path: name["case"] for path in volumes if (name := _lesion_mask(path))}
        of_folder = {None, where.name, *masks.values()}
        if not any(name["case"] in of_folder or STUDY.fullmatch(name["case"]) for _, name in contrasts):
            continue
        labels |= {_identity(name["case"], where)[0] for _, name in contrasts}
        plain = [(path, name["case"]) for path, name in contrasts if name["contrast"].lower() in T1]
        for path, case in plain:
            its_masks = [mask for mask, of in masks.items() if of == case or len(plain) == 1]
            label, subject, session = _identity(case, where)
            cases.append(Case(path, None, subject, label, session=session).with_masks(its_masks))
        if not plain:
            masks_alone += masks
    if not labels:
        return None
    missing = [f"{label}: no T1 volume" for label in sorted(labels - {case.name for case in cases})]
    missing += [f"{shown(mask, folder)}: no T1 volume beside it" for mask in masks_alone]
    return Holdings(cases, missing + without_mask(cases, folder))


def is_of_brats(path: PurePath) -> bool:
    """Whether a volume is named after a contrast, lesions or a brain."""
    stem = stem_of(path)
    return any(map(bool, (CONTRAST.fullmatch(stem), LESIONS.fullmatch(stem), BRAIN_MASK.search(stem))))


def _lesion_mask(path: Path) -> re.Match[str] | None:
    """What the name of a lesion mask says; None for other files, brain masks among them."""
    return None if BRAIN_MASK.search(stem_of(path)) else LESIONS.fullmatch(stem_of(path))


def _identity(case: str | None, where: Path) -> tuple[str, str, str | None]:
    """(name, subject, session) of a case that lies in a folder."""
    if case is not None and STUDY.fullmatch(case):
        return f"{where.name}_{case}", where.name, case
    label = case or where.name
    brats = BRATS_NAME.fullmatch(label)
    return (label, brats[1], brats[2]) if brats else (label, label, None)


LAYOUT: Final = Layout(
    description="BraTS, MSLUB and the like: CASE/CASE-t1n.nii.gz or CASE/CASE_T1W.nii.gz, with CASE-seg.nii.gz",
    find=find_brats,
    recognises=is_of_brats,
    patients_only=True,
)
