"""Data sets as they lie on the disk: which images are whose, and what is known about them.

One function for each layout, `(folder, its files) -> DataSet`, or None where the files are named otherwise. They are
tried in the order of `LAYOUTS`, the most specific first. Names alone decide: no image is opened, only the tables that
some data sets come with, and of a tar the list of its members.
"""

import csv
import gzip
import os
import re
import tarfile
import zlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePath
from typing import Final

from thorad.datasets.atlas import find_atlas
from thorad.datasets.boxes import read_dataset_table
from thorad.datasets.cases import Case, cases_on_disk, subject_of
from thorad.datasets.wrist import dataset_table
from thorad.errors import ThoradError
from thorad.io.images import SUFFIXES, case_names, files_below
from thorad.io.volumes import VOLUME_SUFFIXES

PARTS: Final = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation"),
    "test": ("test", "testing"),
}
"""{part of a split: what its folder or its table may be called}."""


@dataclass(frozen=True)
class DataSet:
    """What a folder holds, by the names of its files."""

    kind: str
    """A key of `LAYOUTS`."""
    cases: list[Case]
    missing: list[str]
    """What the names of other files say should be there, one entry a thing."""
    odd: list[str]
    """What can't be placed: links to nothing, damaged archives, a second layout."""


Layout = Callable[[Path, Sequence[Path]], DataSet | None]


def find_data_set(folder: Path, kind: str | None = None) -> DataSet:
    """Find out what data set a folder holds.

    Hidden files are passed over, and linked folders are not followed.

    Args:
        folder: where it lies.
        kind: a key of `LAYOUTS`, where the names leave room for several; None for the first that fits.

    Raises:
        ThoradError: no folder, an unknown kind or one that does not fit, no image, or a table of the data set that
            can't be read.
    """
    if kind is not None and kind not in LAYOUTS:
        raise ThoradError(f"the kind of data set is {kind!r}, expected one of {', '.join(LAYOUTS)}.")
    if not folder.is_dir():
        what = "not a folder" if folder.exists() else "no such folder"
        raise ThoradError(f"{folder}: {what}. Name the folder that the data set lies in.")
    files, odd = _readable_names(folder)
    for name, (layout, _) in LAYOUTS.items():
        if kind in (None, name) and (found := layout(folder, files)) is not None:
            seconds = [] if kind else _other_layouts(folder, files, found)
            return replace(found, odd=odd + found.odd + _without_place(folder, files, found) + seconds)
    expected = LAYOUTS[kind][1] if kind else f"files that end in {', '.join((*SUFFIXES, *VOLUME_SUFFIXES))}"
    raise ThoradError(
        f"{folder}: no {kind or 'image or volume'} in this folder or below; expected {expected}. Linked folders are "
        "not followed: name them themselves."
    )


def part_of(name: str) -> str | None:
    """`train`, `val` or `test` where a folder or a table is called so; None where not."""
    return next((part for part, names in PARTS.items() if name.casefold() in names), None)


def split_tables(folder: Path) -> dict[str, list[Path]]:
    """{part: its tables}: the CSV files right in the folder that are called so and have a column image."""
    found: dict[str, list[Path]] = {}
    for table in sorted(folder.glob("*.[cC][sS][vV]")):
        part = part_of(table.stem)
        if part is not None and "image" in _header(table):
            found.setdefault(part, []).append(table)
    return found


# ---- one function for each layout


WRIST_NAME: Final = re.compile(r"(\d{4})_\d{10}_\d{2}_WRI-[LR]\d_[FMO]\d{3}", re.IGNORECASE)
"""patient_time_study_side_sex-and-age."""


def _grazpedwri(folder: Path, files: Sequence[Path]) -> DataSet | None:
    """GRAZPEDWRI-DX: PNG, annotations of the same stems, dataset.csv. Without the table names tell whose they are."""
    table = dataset_table(folder)
    if table is not None and not {"filestem", "patient_id"} <= set(_header(table)):
        table = None
    images = [path for path in files if path.suffix.lower() == ".png"]
    if table is None and not any(WRIST_NAME.fullmatch(path.stem) for path in images):
        return None
    rows = {row.name: row for row in read_dataset_table(table)} if table else {}
    annotations = {path.stem: path for path in files if path.suffix.lower() == ".txt"}
    annotations |= {path.stem: path for path in files if path.suffix.lower() == ".xml"}
    cases: list[Case] = []
    missing = [] if table else ["dataset.csv: patients are told by the names of the images instead"]
    odd: list[str] = []
    for image in images:
        row, named = rows.get(image.stem), WRIST_NAME.fullmatch(image.stem)
        if table and row is None:
            odd.append(f"{_told(image, folder)}: no row in {table.name}")
        if row is not None or named is not None:
            subject = row.subject if row else str(int(named[1])) if named else image.stem
            boxes = annotations.get(image.stem)
            cases.append(Case(image, None, subject, image.stem, boxes=boxes, session=str(row.study) if row else None))
    if any(case.boxes for case in cases):
        missing += [f"{_told(case.image, folder)}: no annotation" for case in cases if case.boxes is None]
    stems = {image.stem for image in images}
    missing += [f"{name}: a row in dataset.csv, but no image" for name in rows if name not in stems]
    strays = [path for stem, path in annotations.items() if stem not in stems | rows.keys()]
    missing += [f"{_told(path, folder)}: no image" for path in strays if WRIST_NAME.fullmatch(path.stem)]
    return DataSet("grazpedwri", cases, missing, odd)


IXI_NAME: Final = re.compile(r"(IXI\d+)-([A-Z]+)-(\d+)-(T1|T2|PD|MRA|DTI-\d+)\.nii(?:\.gz)?", re.IGNORECASE)
"""subject-hospital-scan-kind."""


def _ixi(folder: Path, files: Sequence[Path]) -> DataSet | None:
    """IXI: volumes anywhere below the folder, and in its tar archives what is not unpacked beside them."""
    found: list[tuple[Path, Path | None, re.Match[str]]] = [
        (path, None, named) for path in files if (named := IXI_NAME.fullmatch(path.name))
    ]
    unpacked = {path.name.casefold() for path, _, _ in found}
    odd: list[str] = []
    archives = [path for path in files if re.fullmatch(r"IXI.*\.tar", path.name, re.IGNORECASE)]
    for archive in archives:
        members, problem = _members(archive)
        odd += [f"{_told(archive, folder)}: {problem}"] if problem else []
        for member in members:
            named = IXI_NAME.fullmatch(PurePath(member).name)
            if named and named[0].casefold() not in unpacked:
                found.append((archive / member, archive, named))
    if not found and not archives:
        return None
    cases = [
        Case(path, None, named[1].upper(), "-".join(named.group(1, 2, 3)), session=named[3], archive=archive)
        for path, archive, named in found
        if named[4].upper() == "T1"
    ]
    subjects = {named[1].upper() for _, _, named in found}
    return DataSet("ixi", cases, _without_t1(subjects, cases), odd)


def _atlas(folder: Path, files: Sequence[Path]) -> DataSet | None:
    """ATLAS v2.0: BIDS, and masks whose names only this data set has."""
    if not any("_desc-t1lesion" in path.name.lower() for path in files):
        return None
    found = find_atlas(folder)
    if not found.cases:
        return None
    missing = [
        f"{_told(case.image, folder)}: no lesion mask (the data set keeps those of its test part back)"
        for case in found.without_mask
    ]
    missing += [f"{_told(mask, folder)}: no T1w volume beside it" for mask in found.without_image]
    cases = sorted([*found.cases, *found.without_mask], key=lambda case: case.image.parts)
    return DataSet("atlas", cases, missing, [])


BIDS_NAME: Final = re.compile(
    r"(?P<subject>sub-[a-z0-9]+)(?:_(?P<session>ses-[a-z0-9]+))?(?P<more>(?:_[a-z]+-[a-z0-9+]+)*)"
    r"_(?P<what>T1w|mask|roi|dseg|T1w_label-lesion_roi)\.nii(?:\.gz)?",
    re.IGNORECASE,
)
NO_IMAGES_OF_BIDS: Final = {"derivatives", "sourcedata", "code"}
"""Folders of BIDS that may hold copies of the images; lesion masks are looked for in them, too."""


def _bids(folder: Path, files: Sequence[Path]) -> DataSet | None:
    """Any BIDS data set: sub-*/[ses-*/]anat/*_T1w.nii.gz, with lesion masks beside them or in derivatives/."""
    named = [(path, name) for path in files if (name := BIDS_NAME.fullmatch(path.name)) and path.parent.name == "anat"]
    images = [
        (path, name)
        for path, name in named
        if name["what"].lower() == "t1w" and not NO_IMAGES_OF_BIDS & set(path.relative_to(folder).parts)
    ]
    if not images:
        return None
    masks: dict[tuple[str, str | None], list[tuple[Path, re.Match[str]]]] = {}
    for path, name in named:
        if name["what"].lower() != "t1w" and re.search(r"lesion|_label-L_", path.name, re.IGNORECASE):
            masks.setdefault((name["subject"], name["session"]), []).append((path, name))
    cases: list[Case] = []
    odd: list[str] = []
    for path, name in images:
        of_visit = masks.get((name["subject"], name["session"]), [])
        its_masks = tuple(mask for mask, other in of_visit if _agree(name["more"], other["more"]))
        case_name = re.sub(r"_T1w\.nii(\.gz)?$", "", path.name, flags=re.IGNORECASE)
        cases.append(Case(path, None, name["subject"], case_name, session=name["session"]).with_masks(its_masks))
        if name["subject"] not in path.parts:
            odd.append(f"{_told(path, folder)}: lies in another subject's folder")
    subjects = {part for path in files for part in path.relative_to(folder).parts[:-1] if part.startswith("sub-")}
    subjects |= {path.name for path in folder.glob("sub-*") if path.is_dir()} | _participants(folder)
    taken = {mask for case in cases for mask in case.masks}
    missing = _without_t1(subjects, cases) + _without_mask(cases, folder)
    missing += [
        f"{_told(m, folder)}: no T1w volume" for of_visit in masks.values() for m, _ in of_visit if m not in taken
    ]
    return DataSet("bids", cases, missing, odd)


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


def _brats(folder: Path, files: Sequence[Path]) -> DataSet | None:
    """BraTS, MSLUB and the like: contrasts and lesion mask of a case in one folder, told by the ends of their names."""
    by_folder: dict[Path, list[Path]] = {}
    for path in files:
        if path.name.lower().endswith(VOLUME_SUFFIXES):
            by_folder.setdefault(path.parent, []).append(path)
    cases: list[Case] = []
    labels: set[str] = set()
    missing: list[str] = []
    for where, volumes in by_folder.items():
        contrasts = [(path, name) for path in volumes if (name := CONTRAST.fullmatch(_stem(path)))]
        masks = {
            path: name["case"]
            for path in volumes
            if (name := LESIONS.fullmatch(_stem(path))) and not BRAIN_MASK.search(_stem(path))
        }
        of_folder = {None, where.name, *masks.values()}
        if not any(name["case"] in of_folder or STUDY.fullmatch(name["case"]) for _, name in contrasts):
            continue
        plain = [(path, name["case"]) for path, name in contrasts if name["contrast"].lower() in T1]
        labels |= {_case_of(name["case"], where)[0] for _, name in contrasts}
        for path, case in plain:
            its_masks = tuple(mask for mask, of in masks.items() if of == case or len(plain) == 1)
            label, subject, session = _case_of(case, where)
            cases.append(Case(path, None, subject, label, session=session).with_masks(its_masks))
        if contrasts and not plain:
            missing += [f"{_told(mask, folder)}: no T1 volume beside it" for mask in masks]
    if not labels:
        return None
    without_t1 = sorted(labels - {case.name for case in cases})
    missing = [f"{label}: no T1 volume" for label in without_t1] + missing
    return DataSet("brats", cases, missing + _without_mask(cases, folder), [])


def _tables(folder: Path, files: Sequence[Path]) -> DataSet | None:
    """Tables as thorad writes and reads them: cases.csv and healthy/, or train.csv, val.csv and test.csv."""
    tables = [table for of_part in split_tables(folder).values() for table in of_part]
    if "image" in _header(folder / "cases.csv"):
        tables.insert(0, folder / "cases.csv")
    if not tables:
        return None
    cases: dict[str, Case] = {}
    missing: list[str] = []
    for table in tables:
        found, not_there = cases_on_disk(table)
        missing += not_there
        for case in found:
            cases.setdefault(os.path.realpath(case.image), case)
    healthy = [path for path in files if path.relative_to(folder).parts[0] == "healthy" and _is_image(path)]
    for path in healthy:
        cases.setdefault(os.path.realpath(path), Case(path, None, subject_of(path), _stem(path)))
    return DataSet("tables", list(cases.values()), missing, [])


IMAGE_FOLDERS: Final = {"images", "image", "imgs", "scans"}
MASK_FOLDERS: Final = {"masks", "mask", "labels", "segmentations"}
BOX_FOLDERS: Final = {"boxes", "annotations", "labels", "pascalvoc"}


def _folder(folder: Path, files: Sequence[Path]) -> DataSet | None:
    """Any other folder: an image is a case; x_mask.png or masks/x.png is the mask of x.png, boxes/x.xml its boxes."""
    images: list[tuple[Path, tuple[str, ...]]] = []
    masks: dict[tuple[str, ...], list[Path]] = {}
    boxes: dict[tuple[str, ...], Path] = {}
    for path in files:
        where = {part.casefold() for part in path.relative_to(folder).parts[:-1]}
        if path.suffix.lower() in (".txt", ".xml"):
            boxes[_key(path, folder, path.stem)] = path
        elif _is_image(path):
            named = re.fullmatch(r"(.+?)[-_.](?:seg|lesions?|gt|(?:lesions?[-_]?)?mask)", _stem(path), re.IGNORECASE)
            if where & MASK_FOLDERS or named:
                masks.setdefault(_key(path, folder, named[1] if named else _stem(path)), []).append(path)
            else:
                images.append((path, _key(path, folder, _stem(path))))
    if not images and not masks:
        return None
    names = case_names([path for path, _ in images], [folder] * len(images))
    cases = [
        Case(path, None, subject_of(path), name, boxes=boxes.get(key)).with_masks(masks.get(key, ()))
        for (path, key), name in zip(images, names, strict=True)
    ]
    keys = {key for _, key in images}
    with_masks = {key[:-1] for key in keys & masks.keys()}
    missing = [
        f"{_told(case.image, folder)}: no mask, others of its folder have one"
        for case, (_, key) in zip(cases, images, strict=True)
        if not case.masks and key[:-1] in with_masks
    ]
    missing += [f"{_told(mask, folder)}: no image" for key, of in masks.items() if key not in keys for mask in of]
    missing += [
        f"{_told(path, folder)}: no image"
        for key, path in boxes.items()
        if key not in keys and path.parent != folder and path.parent.name.casefold() in BOX_FOLDERS
    ]
    return DataSet("folder", cases, missing, [])


LAYOUTS: Final[dict[str, tuple[Layout, str]]] = {
    "grazpedwri": (_grazpedwri, "GRAZPEDWRI-DX: dataset.csv, PNG images and annotations of the same names"),
    "ixi": (_ixi, "IXI: IXI002-Guys-0828-T1.nii.gz and its like, in folders or in IXI-T1.tar"),
    "atlas": (_atlas, "ATLAS v2.0: sub-*/ses-*/anat/*_T1w.nii.gz with *_desc-T1lesion_mask.nii.gz"),
    "bids": (_bids, "BIDS: sub-*/[ses-*/]anat/*_T1w.nii.gz"),
    "brats": (_brats, "BraTS, MSLUB and the like: CASE/CASE-t1n.nii.gz or CASE/CASE_T1W.nii.gz, with CASE-seg.nii.gz"),
    "tables": (_tables, "tables: cases.csv, or train.csv, val.csv and test.csv, with a column image"),
    "folder": (_folder, "a folder of images or volumes"),
}
"""{kind: (its function, what it looks like)}, the most specific first."""


# ---- what several of them need


def _readable_names(folder: Path) -> tuple[list[Path], list[str]]:
    """(files, what is wrong with others): links to nothing, and names that no table could hold."""
    files: list[Path] = []
    odd: list[str] = []
    for path in files_below(folder):
        told = _told(path, folder)
        if re.search(r"[\x00-\x1f\x7f\ud800-\udfff]", told):
            odd.append(f"{told!a}: a name that no table can hold; rename it")
        elif path.is_symlink() and not path.exists():
            odd.append(f"{told}: a link to nothing")
        else:
            files.append(path)
    return files, odd


def _other_layouts(folder: Path, files: Sequence[Path], found: DataSet) -> list[str]:
    """What a user should know where two data sets lie in one folder."""
    taken = {case.image for case in found.cases}
    told: list[str] = []
    for kind, (layout, _) in LAYOUTS.items():
        if kind in (found.kind, "tables", "folder") or found.kind in ("tables", "folder"):
            continue
        other = layout(folder, files)
        more = [case.image for case in other.cases if case.image not in taken] if other else []
        if more:
            told.append(
                f"{_told(more[0], folder)}: one of {len(more)} that are laid out as {kind}; --kind {kind} takes them"
            )
    return told


def _without_place(folder: Path, files: Sequence[Path], found: DataSet) -> list[str]:
    """Volumes whose names mean nothing in any layout, where the others' do: they would be lost without a word."""
    if found.kind in ("grazpedwri", "tables", "folder"):
        return []
    taken = {path for case in found.cases for path in (case.image, *case.masks)}
    lost = [
        path
        for path in files
        if path.name.lower().endswith(VOLUME_SUFFIXES)
        and path not in taken
        and not path.name.startswith("sub-")
        and not NO_IMAGES_OF_BIDS & set(path.relative_to(folder).parts)
        and not any(known.fullmatch(path.name) for known in (IXI_NAME, BIDS_NAME))
        and not any(known.fullmatch(_stem(path)) for known in (CONTRAST, LESIONS))
        and not BRAIN_MASK.search(_stem(path))
    ]
    return (
        [f"{_told(lost[0], folder)}: one of {len(lost)} volumes whose names say nothing to {found.kind}"]
        if lost
        else []
    )


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


def _header(table: Path) -> list[str]:
    """The cells of a table's first line, packed or not; none where it can't be read."""
    try:
        with (gzip.open if table.suffix.lower() == ".gz" else open)(table, "rb") as file:
            line = file.readline(2**16).decode("utf-8-sig")
        return [cell.strip() for cell in next(csv.reader([line]), [])]
    except (OSError, EOFError, zlib.error, UnicodeDecodeError, csv.Error):
        return []


def _participants(folder: Path) -> set[str]:
    """The subjects that a BIDS data set's own list names."""
    try:
        lines = (folder / "participants.tsv").read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError):
        return set()
    return {cell for line in lines if (cell := line.partition("\t")[0]).startswith("sub-")}


def _without_t1(subjects: Iterable[str], cases: Sequence[Case]) -> list[str]:
    return [f"{subject}: no T1 volume" for subject in sorted(set(subjects) - {case.subject for case in cases})]


def _without_mask(cases: Sequence[Case], folder: Path) -> list[str]:
    if not any(case.masks for case in cases):
        return []
    return [f"{_told(case.image, folder)}: no lesion mask, others have one" for case in cases if not case.masks]


def _agree(entities: str, others: str) -> bool:
    """Whether a mask's run and acquisition, where it names them, are those of the image."""
    own = set(entities.split("_"))
    return all(entity in own for entity in others.split("_") if entity.startswith(("run-", "acq-")))


def _case_of(case: str | None, where: Path) -> tuple[str, str, str | None]:
    """(name, subject, session) of a case that lies in a folder."""
    if case is not None and STUDY.fullmatch(case):
        return f"{where.name}_{case}", where.name, case
    label = case or where.name
    brats = BRATS_NAME.fullmatch(label)
    return (label, brats[1], brats[2]) if brats else (label, label, None)


def _key(path: Path, folder: Path, stem: str) -> tuple[str, ...]:
    """What an image shares with its mask and boxes: its stem, and its folders but for those that tell the kind."""
    kinds = IMAGE_FOLDERS | MASK_FOLDERS | BOX_FOLDERS
    return (*(part for part in path.relative_to(folder).parts[:-1] if part.casefold() not in kinds), stem)


def _is_image(path: Path) -> bool:
    return path.name.lower().endswith((*SUFFIXES, *VOLUME_SUFFIXES))


def _stem(path: Path) -> str:
    """The name without an image's or a volume's suffix, .nii.gz as a whole."""
    lower = path.name.lower()
    ending = next(
        (end for end in sorted((*SUFFIXES, *VOLUME_SUFFIXES), key=len, reverse=True) if lower.endswith(end)), ""
    )
    return path.name[: len(path.name) - len(ending)]


def _told(path: Path, folder: Path) -> str:
    """A file as reports name it."""
    return str(path.relative_to(folder) if path.is_relative_to(folder) else path)
