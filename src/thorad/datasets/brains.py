"""How published data sets of heads lie on the disk: IXI, any BIDS, BraTS and what is laid out like it.

IXI: brain-development.org. BIDS: Gorgolewski et al., Scientific Data 2016. BraTS: Baid et al., arXiv 2107.02314, 2021.
"""

import re
import tarfile
from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from pathlib import Path, PurePath
from typing import Final

from thorad.datasets.cases import Case
from thorad.datasets.contract import DataSet, Layout
from thorad.datasets.layouts import is_volume, shown, stem_of, without_mask, without_t1

IXI_NAME: Final = re.compile(r"(IXI\d+)-([A-Z]+)-(\d+)-(T1|T2|PD|MRA|DTI-\d+)\.nii(?:\.gz)?", re.IGNORECASE)
"""subject-hospital-scan-contrast."""


def find_ixi(folder: Path, files: Sequence[Path]) -> DataSet | None:
    """The T1 volumes anywhere below the folder, and in its tar archives those that are not unpacked beside them."""
    volumes: list[tuple[Path, Path | None, re.Match[str]]] = [
        (path, None, named) for path in files if (named := IXI_NAME.fullmatch(path.name))
    ]
    unpacked = {path.name.casefold() for path, _, _ in volumes}
    odd: list[str] = []
    archives = [path for path in files if re.fullmatch(r"IXI.*\.tar", path.name, re.IGNORECASE)]
    for archive in archives:
        members, problem = _members(archive)
        odd += [f"{shown(archive, folder)}: {problem}"] if problem else []
        for member in members:
            named = IXI_NAME.fullmatch(PurePath(member).name)
            if named and named[0].casefold() not in unpacked:
                volumes.append((archive / member, archive, named))
    if not volumes and not archives:
        return None
    cases = [
        Case(path, None, named[1].upper(), "-".join(named.group(1, 2, 3)), session=named[3], archive=archive)
        for path, archive, named in volumes
        if named[4].upper() == "T1"
    ]
    return DataSet(cases, without_t1((named[1].upper() for _, _, named in volumes), cases), odd)


def _members(archive: Path) -> tuple[list[str], str | None]:
    """(names of the files in a tar, what is wrong with it)."""
    names: list[str] = []
    try:
        with tarfile.open(archive, "r:") as tar:
            for member in tar:
                if member.isfile():
                    names.append(member.name)
            with archive.open("rb") as file:
                file.seek(tar.offset)  # where it stopped: at the end mark, or at what it takes for the end
                if file.read(512) != bytes(512):
                    return names, f"damaged or cut short after {len(names)} files; copy it again"
    except (tarfile.TarError, OSError, EOFError, ValueError) as error:
        return names, f"damaged or no tar archive ({error}); {len(names)} files found. Copy it again"
    return names, None


IXI: Final = Layout(
    description="IXI: IXI002-Guys-0828-T1.nii.gz and its like, in folders or in IXI-T1.tar",
    find=find_ixi,
    recognises=lambda path: IXI_NAME.fullmatch(path.name) is not None,
)

BIDS_NAME: Final = re.compile(
    r"(?P<subject>sub-[a-z0-9]+)(?:_(?P<session>ses-[a-z0-9]+))?(?P<entities>(?:_[a-z]+-[a-z0-9+]+)*)"
    r"_(?P<suffix>T1w|mask|roi|dseg|T1w_label-lesion_roi)\.nii(?:\.gz)?",
    re.IGNORECASE,
)
NO_IMAGES: Final = {"derivatives", "sourcedata", "code"}
"""Folders of BIDS that may hold copies of the images; lesion masks are looked for in them, too."""


def match_t1w(
    folder: Path, files: Sequence[Path], mask: str, ignored: AbstractSet[str] = frozenset()
) -> tuple[list[Case], list[Path]]:
    """T1w volumes in anat/ with the masks of the same visit, run and acquisition, and masks without a volume.

    Args:
        folder: that of the data set.
        files: all below it.
        mask: a regular expression, found in the names of masks.
        ignored: folders that may hold copies of the volumes.
    """
    named = [(path, name) for path in files if (name := BIDS_NAME.fullmatch(path.name)) and path.parent.name == "anat"]
    masks: dict[tuple[str, str | None], list[tuple[Path, re.Match[str]]]] = {}
    for path, name in named:
        if name["suffix"].lower() != "t1w" and re.search(mask, path.name, re.IGNORECASE):
            masks.setdefault((name["subject"], name["session"]), []).append((path, name))
    cases: list[Case] = []
    for path, name in named:
        if name["suffix"].lower() == "t1w" and not ignored & set(path.relative_to(folder).parts):
            of_visit = masks.get((name["subject"], name["session"]), [])
            its_masks = [mask for mask, other in of_visit if _agree(name["entities"], other["entities"])]
            case_name = re.sub(r"_T1w$", "", stem_of(path), flags=re.IGNORECASE)
            cases.append(Case(path, None, name["subject"], case_name, session=name["session"]).with_masks(its_masks))
    taken = {mask for case in cases for mask in case.masks}
    return cases, sorted(mask for of_visit in masks.values() for mask, _ in of_visit if mask not in taken)


def find_bids(folder: Path, files: Sequence[Path]) -> DataSet | None:
    """The T1w volumes of sub-*/[ses-*/]anat/, with lesion masks beside them or in derivatives/."""
    cases, strays = match_t1w(folder, files, r"lesion|_label-L_", NO_IMAGES)
    if not cases:
        return None
    subjects = {part for path in files for part in path.relative_to(folder).parts[:-1] if part.startswith("sub-")}
    subjects |= {path.name for path in folder.glob("sub-*") if path.is_dir()} | _participants(folder)
    missing = without_t1(subjects, cases) + without_mask(cases, folder)
    misplaced = [case.image for case in cases if case.subject not in case.image.parts]
    return DataSet(
        cases,
        missing=missing + [f"{shown(mask, folder)}: no T1w volume" for mask in strays],
        odd=[f"{shown(image, folder)}: lies in another subject's folder" for image in misplaced],
    )


def is_of_bids(path: PurePath) -> bool:
    """Whether a file, relative to the data set's folder, is named as BIDS names subjects' files, or is a copy."""
    return (
        path.name.startswith("sub-") or BIDS_NAME.fullmatch(path.name) is not None or bool(NO_IMAGES & set(path.parts))
    )


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


BIDS: Final = Layout(
    description="BIDS: sub-*/[ses-*/]anat/*_T1w.nii.gz", find=find_bids, recognises=is_of_bids, patients_only=True
)

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


def find_brats(folder: Path, files: Sequence[Path]) -> DataSet | None:
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
    return DataSet(cases, missing + without_mask(cases, folder))


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


BRATS: Final = Layout(
    description="BraTS, MSLUB and the like: CASE/CASE-t1n.nii.gz or CASE/CASE_T1W.nii.gz, with CASE-seg.nii.gz",
    find=find_brats,
    recognises=is_of_brats,
    patients_only=True,
)
