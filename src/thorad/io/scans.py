"""What a user's files and folders hold: pictures, volumes and DICOM series, each a case with a name.

A DICOM file says who was scanned, and so, often, do the names of its folders. A series is therefore named by its
modality and a hash of its UID, and results keep neither path nor description of it, unless that is asked for.
"""

import hashlib
import os
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from thorad.errors import ThoradError
from thorad.io.dicom import Series, find_series, is_dicom, read_radiograph, read_series, without_identity
from thorad.io.images import SUFFIXES, Image, case_names, files_of, read_image
from thorad.io.tables import counted, listing, read_table
from thorad.io.volumes import DETACHED_SUFFIXES, VOLUME_SUFFIXES, Volume, files_of_volume, read_volume

DICOM_SUFFIXES = (".dcm", ".dicom", ".ima")
"""A file that ends so should be DICOM: where it isn't, that is an error, not another kind of file."""

LEAST_FOLDERS, MOST_OF_A_PATIENT = 4, 200
"""Folders, and images in one of them, that may be patients'."""

EXCERPT_BYTES = 2**16
"""Of a file, at each of three places, that tell it from others of its size."""


@dataclass(frozen=True)
class Scan:
    """One case: a picture, a volume or a DICOM series."""

    name: str
    """Case id: unique in a run, safe as a file name."""
    path: Path
    """Its file; of a series with several, the first."""
    source: str
    """Where it comes from, as results keep it: the path; of DICOM the series' name, unless identity is kept."""
    series: Series | None = None
    """Of DICOM."""
    problem: str | None = None
    """Why it can't be read, where that is known already; names files, so it is for the screen."""
    told_subject: str = ""
    """What a table that names it says in its column `subject`."""

    @property
    def is_dicom(self) -> bool:
        """Whether it is DICOM, or should be."""
        return self.series is not None or self.problem is not None

    @property
    def is_volume(self) -> bool:
        """Whether it has slices, by the file's name or the series' headers."""
        if self.series is not None:
            return self.series.is_volume
        return self.path.name.lower().endswith(VOLUME_SUFFIXES)

    @cached_property
    def files(self) -> tuple[Path, ...]:
        """All its files: also that of the voxels, where a header has them beside it."""
        if self.series is not None:
            return self.series.files
        return (self.path,) if self.path.suffix.lower() not in DETACHED_SUFFIXES else files_of_volume(self.path)

    @cached_property
    def state(self) -> tuple[int, int, int]:
        """Number of its files, their bytes, and when the newest was changed, ns: another scan in its place differs.

        As it was when it was asked for first. Zeros where a file is gone: reading it says so.
        """
        try:
            found = [file.stat() for file in self.files]
        except OSError:
            return 0, 0, 0
        return len(found), sum(each.st_size for each in found), max(each.st_mtime_ns for each in found)

    @property
    def excerpt(self) -> str:
        """sha256 of the start, the middle and the end of each file: another image of the same size differs.

        Raises:
            OSError: a file can't be read.
        """
        digest = hashlib.sha256()
        for path in self.files:
            size = path.stat().st_size
            with path.open("rb") as file:
                for place in (0, size // 2, max(0, size - EXCERPT_BYTES)):
                    file.seek(place)
                    digest.update(file.read(EXCERPT_BYTES))
        return digest.hexdigest()

    def is_as_it_was(self, state: tuple[int, int, int] | None, made: Path) -> bool:
        """Whether its state is that of which a file was made; where that isn't known, whether it isn't newer."""
        return self.state[2] <= made.stat().st_mtime_ns if state is None else self.state == state

    @property
    def subject(self) -> str:
        """Whom it shows: as a table or `subject_of` tells, else the case's name; of DICOM no path may tell."""
        if self.told_subject:
            return self.told_subject
        return self.name if self.is_dicom else subject_of(self.path, self.name)

    def comes_from(self, source: str) -> bool:
        """Whether a result's source is this scan; a path may be written in several ways."""
        return source == self.source or os.path.realpath(source) == os.path.realpath(self.source)

    def redacted(self, message: str) -> str:
        """A message about it as results may keep it: without what may identify the patient, unless that is kept."""
        if self.source == str(self.path) or str(self.path.parent) == self.source:
            return message
        if self.series is not None:
            return without_identity(message, self.series)
        return message.replace(str(self.path), self.name)

    def read(self) -> Image | Volume:
        """Read it by `read_image`, `read_volume`, `read_series` or `read_radiograph`, with their errors."""
        if self.problem is not None:
            raise ThoradError(self.problem)
        found: Image | Volume
        if self.series is None:
            found = read_volume(self.path, self.name) if self.is_volume else read_image(self.path, self.name)
        elif self.is_volume:
            found = read_series(self.series, self.name)
        else:
            found = read_radiograph(self.path, self.name)
        return replace(found, source=self.source)


class Scans(dict[str, Scan]):
    """{case name: scan}, and what there was beside the scans.

    `left_out` is {why: how many} files and folders, without a file's or a patient's name: by the suffix of what is
    neither picture nor volume, by what a DICOM object is.
    """

    def __init__(self, scans: Iterable[Scan], left_out: Counter[str]) -> None:
        super().__init__((scan.name, scan) for scan in scans)
        self.left_out = left_out


def find_scans(
    inputs: Sequence[Path],
    *,
    leave_out: Path | None = None,
    keep_identity: bool = False,
    healthy: bool = False,
) -> Scans:
    """All cases that the inputs stand for, each under its name.

    A folder stands for the pictures, volumes and DICOM series in it and below, without hidden files and without
    following linked folders; a CSV for its column `image`, relative to the CSV (its column `subject`, where there is
    one, says whom they show); any other file for itself. DICOM files
    are recognised by their content and sorted into series wherever they lie. What is DICOM but no picture (reports,
    segmentations, thorad's own results) is passed over. All that is passed over is counted.

    Args:
        inputs: files, folders and CSV tables. A file reached twice counts once.
        leave_out: a folder that is passed over where it lies in an input folder: that of the results, whose pictures
            would be the next run's inputs.
        keep_identity: keep the paths of DICOM files as their sources; names stay.
        healthy: whether they must be healthy, so that a table of images with lesions is refused.

    Returns:
        {case name: scan}: pictures and volumes in the order of the inputs, then series. A name comes from the path
        below the given folder: `a/b.png` is `a__b`. Files that should be DICOM but can't be read are cases with a
        `problem`.

    Raises:
        ThoradError: an input is missing or unreadable, a folder holds nothing to look at or is `leave_out` itself, a
            CSV names missing files, or a mask or boxes of an image that must be healthy.
    """
    found: dict[str, tuple[Path, Path, bool]] = {}  # file, the folder that its name is relative to, whether DICOM
    left_out = Counter[str]()
    told: dict[str, str] = {}
    for given in inputs:
        files, folder = _scan_files(given, leave_out, left_out)
        for path, as_dicom in files.items():
            left_out["reached twice"] += os.path.realpath(path) in found
            found.setdefault(os.path.realpath(path), (path, folder, as_dicom))
        told |= _told_subjects(given, healthy)
    plain = {path: folder for path, folder, as_dicom in found.values() if not as_dicom}
    dicom = {path: folder for path, folder, as_dicom in found.values() if as_dicom}
    names = case_names(list(plain), list(plain.values()))
    scans = [Scan(name, path, str(path)) for name, path in zip(names, plain, strict=True)]
    if dicom:
        scans += _dicom_scans(dicom, keep_identity, left_out)
    if not scans:
        raise ThoradError(
            f"{inputs[0]}: only DICOM objects without a picture of their own, such as reports and segmentations. "
            f"{counted(+left_out)} Name the folder of the scan."
        )
    subjects = [told.get(os.path.realpath(scan.path), "") for scan in scans]
    return Scans(map(lambda scan, subject: replace(scan, told_subject=subject), scans, subjects), +left_out)


def _told_subjects(given: Path, healthy: bool) -> dict[str, str]:
    """{file: subject} of a table with such a column; an error where its images must be healthy and it marks some."""
    if given.suffix.lower() != ".csv":
        return {}
    rows = [row for _, row in read_table(given, ["image"])]
    marked = [row["image"] for row in rows if row.get("mask") or row.get("boxes")]
    if healthy and marked:
        raise ThoradError(
            f"{given}: a mask or boxes are named for {len(marked)} of its {len(rows)} images, so they aren't healthy: "
            f"{listing(marked)}. Give a table of the healthy ones alone."
        )
    return {os.path.realpath(given.parent / row["image"]): row["subject"] for row in rows if row.get("subject")}


def scans_of_rows(files: Sequence[Path], folder: Path) -> list[Scan]:
    """A scan for each file that a table in the folder names, under the name that `find_scans` gives it.

    Where several files of one series are named, each is a case by itself, called after its file.
    """
    dicom = {path: folder for path in files if _is_dicom_file(path)}
    found = _dicom_scans(dicom, keep_identity=False, left_out=Counter()) if dicom else []
    scans = {scan.path: scan for scan in found if len(scan.files) == 1}
    others = [path for path in files if path not in scans]
    names = case_names(others, [folder] * len(others))
    scans |= {path: Scan(name, path, str(path)) for name, path in zip(names, others, strict=True)}
    return [scans[path] for path in files]


def subject_of(path: Path, otherwise: str | None = None) -> str:
    """Whom a file shows: the BIDS entity `sub-XXXX` that its name, or that of a folder it is in, begins with.

    Args:
        path: the file.
        otherwise: the subject where there is no such entity; None for the stem of the file's name. Whoever has the
            case's name gives that: many patients' files are called T1.nii.gz.
    """
    below_subject = path.parts[-4:]  # BIDS: sub-XXXX/ses-Y/anat/file
    entities = (re.match(r"sub-[A-Za-z0-9]+", part) for part in reversed(below_subject))
    found = next(filter(None, entities), None)
    return found[0] if found else otherwise or path.stem.removesuffix(".nii")


def subjects_of(paths: Sequence[Path], names: Sequence[str]) -> list[str]:
    """Whom files show, as `subject_of`; where folders hold files of one name, that tells nobody, the case's name does.

    Args:
        paths: the files.
        names: of their cases.
    """
    alone = [subject_of(path) for path in paths]
    times = Counter(alone)
    return [
        subject_of(path, name if times[subject] > 1 else subject)
        for path, subject, name in zip(paths, alone, names, strict=True)
    ]


def patients_doubt(paths: Sequence[Path], subjects: Sequence[str]) -> str | None:
    """Say so where each image of a folder counts as a subject, though folders are as many as of patients; else None.

    That is: `LEAST_FOLDERS` or more with several images each; fewer are classes or parts of a split, as are large ones.
    """
    of_folder: dict[Path, list[str]] = {}
    for path, subject in zip(paths, subjects, strict=True):
        of_folder.setdefault(path.parent, []).append(subject)
    several = [found for found in of_folder.values() if 1 < len(found) == len(set(found)) <= MOST_OF_A_PATIENT]
    if len(several) < LEAST_FOLDERS:
        return None
    return (
        f"{sum(map(len, several))} images in {len(several)} folders count as a subject each. If a folder is a patient, "
        "intervals and p-values are too good: say in a table, in a column `subject`, whom an image shows."
    )


def picture_files(scans: Scans) -> list[Path]:
    """The files of the pictures among scans, for verbs that compare pictures with the truth about them.

    Volumes are counted in `scans.left_out`.

    Raises:
        ThoradError: there is none, or a DICOM file can't be read.
    """
    problems = [scan.problem for scan in scans.values() if scan.problem is not None]
    if problems:
        raise ThoradError(problems[0])
    files = [scan.path for scan in scans.values() if not scan.is_volume]
    if not files:
        raise ThoradError(
            f"{next(iter(scans.values())).path}: {len(scans)} volumes and no picture. Expected pictures: `thorad "
            "prepare` cuts volumes into slices."
        )
    if len(files) < len(scans):
        scans.left_out["volume where a picture is needed"] += len(scans) - len(files)
    return files


def read_picture(path: Path) -> Image:
    """Read one picture of any kind, as a table of cases names it, by `read_image` or `read_radiograph`."""
    return read_radiograph(path) if _is_dicom_file(path) else read_image(path)


def _scan_files(given: Path, leave_out: Path | None, left_out: Counter[str]) -> tuple[dict[Path, bool], Path]:
    """{file: whether it is DICOM} of one input, and the folder that names are relative to.

    Of a folder only what looks like a scan; what a user names one by one is taken as it is.
    """
    files, folder = files_of(given, leave_out, left_out)
    kinds = {path: _is_dicom_file(path) for path in files}
    if folder == given:
        others = [path for path, as_dicom in kinds.items() if not (as_dicom or _has_known_suffix(path))]
        left_out.update(_kind_of(path) for path in others)
        for path in others:
            del kinds[path]
    if not kinds:
        raise ThoradError(
            f"{given}: no image in this folder or below. Expected DICOM files, or files that end in "
            f"{', '.join((*SUFFIXES, *VOLUME_SUFFIXES))}. {counted(left_out)}".strip()
        )
    return kinds, folder


def _kind_of(path: Path) -> str:
    """The suffix of what is neither picture nor volume, where it looks like one: a number isn't."""
    return path.suffix.lower() if re.fullmatch(r"\.[A-Za-z]\w{0,9}", path.suffix, re.ASCII) else "no suffix"


def _has_known_suffix(path: Path) -> bool:
    return path.name.lower().endswith((*SUFFIXES, *VOLUME_SUFFIXES))


def _is_dicom_file(path: Path) -> bool:
    return path.name.lower().endswith(DICOM_SUFFIXES) or (not _has_known_suffix(path) and is_dicom(path))


def _dicom_scans(files: Mapping[Path, Path], keep_identity: bool, left_out: Counter[str]) -> list[Scan]:
    found = find_series(list(files))
    left_out.update(f"DICOM: {reason}" for reason in found.skipped.values())
    scans: list[Scan] = []
    for series in found.series:
        first, count = series.files[0], len(series.files)
        where = first if count == 1 else first.parent
        # The number of files tells a slice by itself from the series that it is of.
        hidden = f"DICOM series {series.name}, {count} {'file' if count == 1 else 'files'}"
        scans.append(Scan(series.name, first, str(where) if keep_identity else hidden, series))
    for path, problem in found.problems.items():
        relative = path.relative_to(files[path]) if path.is_relative_to(files[path]) else path
        name = f"dicom-{hashlib.sha256(os.fsencode(relative)).hexdigest()[:8]}"
        scans.append(Scan(name, path, str(path) if keep_identity else f"DICOM file {name}", problem=problem))
    return scans
