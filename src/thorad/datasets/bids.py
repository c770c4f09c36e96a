"""Any data set in BIDS (Gorgolewski et al., Scientific Data 2016): T1w volumes in `anat` folders, with lesion masks."""

import re
from collections.abc import Sequence
from pathlib import Path, PurePath
from typing import Final

from thorad.datasets.cases import Case
from thorad.datasets.contract import Holdings, Layout
from thorad.datasets.names import shown, without_mask, without_t1

NAME: Final = re.compile(
    r"(?P<subject>sub-[a-z0-9]+)(?:_(?P<session>ses-[a-z0-9]+))?(?P<entities>(?:_[a-z]+-[a-z0-9+]+)*)"
    r"_(?P<suffix>T1w|mask|roi|dseg|T1w_label-lesion_roi)\.nii(?:\.gz)?",
    re.IGNORECASE,
)
NO_IMAGES: Final = {"derivatives", "sourcedata", "code"}
"""Folders of BIDS that may hold copies of the images; lesion masks are looked for in them, too."""


def find_bids(folder: Path, files: Sequence[Path]) -> Holdings | None:
    """The T1w volumes of sub-*/[ses-*/]anat/, with lesion masks beside them or in derivatives/."""
    named = [(path, name) for path in files if (name := NAME.fullmatch(path.name)) and path.parent.name == "anat"]
    images = [
        (path, name)
        for path, name in named
        if name["suffix"].lower() == "t1w" and not NO_IMAGES & set(path.relative_to(folder).parts)
    ]
    if not images:
        return None
    masks: dict[tuple[str, str | None], list[tuple[Path, re.Match[str]]]] = {}
    for path, name in named:
        if name["suffix"].lower() != "t1w" and re.search(r"lesion|_label-L_", path.name, re.IGNORECASE):
            masks.setdefault((name["subject"], name["session"]), []).append((path, name))
    cases: list[Case] = []
    for path, name in images:
        of_visit = masks.get((name["subject"], name["session"]), [])
        its_masks = [mask for mask, other in of_visit if _agree(name["entities"], other["entities"])]
        case_name = re.sub(r"_T1w\.nii(\.gz)?$", "", path.name, flags=re.IGNORECASE)
        cases.append(Case(path, None, name["subject"], case_name, session=name["session"]).with_masks(its_masks))
    subjects = {part for path in files for part in path.relative_to(folder).parts[:-1] if part.startswith("sub-")}
    subjects |= {path.name for path in folder.glob("sub-*") if path.is_dir()} | _participants(folder)
    taken = {mask for case in cases for mask in case.masks}
    strays = [mask for of_visit in masks.values() for mask, _ in of_visit if mask not in taken]
    return Holdings(
        cases,
        missing=[
            *without_t1(subjects, cases),
            *without_mask(cases, folder),
            *(f"{shown(mask, folder)}: no T1w volume" for mask in strays),
        ],
        odd=[
            f"{shown(case.image, folder)}: lies in another subject's folder"
            for case in cases
            if case.subject not in case.image.parts
        ],
    )


def is_of_bids(path: PurePath) -> bool:
    """Whether a file, relative to the data set's folder, is named as BIDS names subjects' files, or is a copy."""
    return path.name.startswith("sub-") or NAME.fullmatch(path.name) is not None or bool(NO_IMAGES & set(path.parts))


def _participants(folder: Path) -> set[str]:
    """The subjects that a BIDS data set's own list names."""
    try:
        lines = (folder / "participants.tsv").read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError):
        return set()
    return {cell for line in lines if (cell := line.partition("\t")[0]).startswith("sub-")}


def _agree(entities: str, others: str) -> bool:
    """Whether a mask's run and acquisition, where it names them, are those of the image."""
    own = set(entities.split("_"))
    return all(entity in own for entity in others.split("_") if entity.startswith(("run-", "acq-")))


LAYOUT: Final = Layout(
    description="BIDS: sub-*/[ses-*/]anat/*_T1w.nii.gz", find=find_bids, recognises=is_of_bids, patients_only=True
)
