"""What is wrong with a data set: missing, damaged and repeated files, and subjects on both sides of a split.

Of an image only its header is read, and of a packed volume its last bytes; whole files are read only where two of them
may be the same.
"""

import gzip
import hashlib
import os
import struct
import tarfile
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from thorad.datasets.cases import Case, cases_on_disk
from thorad.datasets.layouts import find_data_set, shown
from thorad.datasets.plain import PARTS, part_of, split_tables
from thorad.errors import ThoradError
from thorad.io.scans import subject_of
from thorad.io.shapes import shape_of
from thorad.io.volumes import import_nibabel, times


@dataclass(frozen=True)
class Report:
    """What a folder holds, and what is wrong with it: one entry for each thing found."""

    folder: str
    kind: str  # a name in `DATASETS`
    subjects: int
    sessions: int  # visits of subjects; a subject without named ones has one
    images: int
    with_mask: int
    with_boxes: int  # images that have a file of boxes, which may be empty
    parts: dict[str, int]  # {train, val or test: its images}, of the splits that the folder holds
    missing: list[str]
    unusable: list[str]  # empty, damaged or cut short; masks on another grid than their image
    duplicates: list[str]  # images of the same content, of one name, or in several rows of a table
    leaks: list[str]  # subjects and images that appear in two parts of a split
    odd: list[str]  # what fits nowhere in the layout
    doubts: list[str]  # file names in two parts of a split that may be one patient's, or not; no problem

    @property
    def counts(self) -> dict[str, int]:
        """{what: how many}, for reading."""
        named = {"subjects": self.subjects, "visits": self.sessions, "images": self.images}
        named |= {"with a lesion mask": self.with_mask, "with a file of boxes": self.with_boxes}
        return named | {f"images in {part}": count for part, count in self.parts.items()}

    @property
    def problems(self) -> dict[str, list[str]]:
        """{heading: its entries}, without empty ones."""
        groups = {"missing": self.missing, "unusable": self.unusable, "twice": self.duplicates}
        groups |= {"leaks between splits": self.leaks, "odd": self.odd}
        return {heading: entries for heading, entries in groups.items() if entries}


class Contents(ExitStack):
    """Opens the files of cases, in tar archives as beside them; each archive once. A context manager."""

    def __init__(self) -> None:
        super().__init__()
        self._archives: dict[Path, tuple[tarfile.TarFile, dict[str, tarfile.TarInfo]]] = {}

    @contextmanager
    def open(self, path: Path, archive: Path | None = None) -> Iterator[tuple[IO[bytes], int]]:
        """Yields (the file, its size in bytes)."""
        if archive is None:
            with path.open("rb") as file:
                yield file, os.fstat(file.fileno()).st_size
            return
        if archive not in self._archives:
            tar = self.enter_context(tarfile.TarFile(archive))
            members: dict[str, tarfile.TarInfo] = {}
            with suppress(tarfile.TarError):  # cut short, as `find_data_set` says; what comes before that is there
                for member in tar:
                    members[member.name] = member
            self._archives[archive] = tar, members
        tar, members = self._archives[archive]
        member = members[path.relative_to(archive).as_posix()]
        opened = tar.extractfile(member)
        if opened is None:
            raise OSError(f"{path}: no file")
        with opened:
            yield opened, member.size


def same_content(cases: Sequence[Case], contents: Contents) -> list[list[Case]]:
    """The groups of images that hold the same bytes, packed or not.

    Files are compared by size, then by CRC-32 (which a packed file ends with), then by SHA-256: what differs in size is
    not read. Damaged files equal none.
    """
    by_size: dict[int, list[tuple[Case, int | None]]] = {}
    for case in cases:
        try:
            with contents.open(case.image, case.archive) as (file, size):
                crc: int | None = None
                if case.image.suffix.lower() == ".gz":
                    file.seek(-8, os.SEEK_END)
                    crc, size = struct.unpack("<II", file.read(8))
        except (OSError, tarfile.TarError):
            continue
        if size:
            by_size.setdefault(size % 2**32, []).append((case, crc))
    by_crc: dict[tuple[int, int], list[Case]] = {}
    for size, of_size in by_size.items():
        for case, crc in of_size if len(of_size) > 1 else ():
            by_crc.setdefault((size, _digest(case, contents)[0] if crc is None else crc), []).append(case)
    same: dict[str, list[Case]] = {}
    for of_crc in by_crc.values():
        for case in of_crc if len(of_crc) > 1 else ():
            with suppress(OSError, EOFError, zlib.error, tarfile.TarError):
                same.setdefault(_digest(case, contents)[1], []).append(case)
    return [group for group in same.values() if len(group) > 1]


def _digest(case: Case, contents: Contents) -> tuple[int, str]:
    """(CRC-32, SHA-256) of an image, unpacked."""
    crc, sha256 = 0, hashlib.sha256()
    with contents.open(case.image, case.archive) as (file, _):
        stream = gzip.GzipFile(fileobj=file) if case.image.suffix.lower() == ".gz" else file
        while chunk := stream.read(2**20):
            crc = zlib.crc32(chunk, crc)
            sha256.update(chunk)
    return crc, sha256.hexdigest()


def check_data_set(folder: Path, kind: str | None = None) -> Report:
    """Check a data set: names, then the headers of all images and masks, then images that are the same.

    Raises:
        ThoradError: as `find_data_set`, which takes the same; volumes without the library that reads their headers.
    """
    data_set = find_data_set(folder, kind)
    cases = data_set.cases
    parts, not_there, twice = _parts(folder, cases)
    everything = {str(case.image): case for case in [*(case for part in parts.values() for case in part), *cases]}
    if any(path.name.lower().endswith((".nii", ".nii.gz")) for case in everything.values() for path in case.files):
        import_nibabel()  # refused here, before anything is read
    with Contents() as contents:
        unusable, whole = _check_headers(everything.values(), contents, folder)
        groups = same_content(whole, contents)
    repeated = _repeated_content(groups, parts, folder)
    return Report(
        folder=str(folder),
        kind=data_set.kind,
        subjects=len({case.subject for case in cases}),
        sessions=len({(case.subject, case.session) for case in cases}),
        images=len(cases),
        with_mask=sum(bool(case.masks) for case in cases),
        with_boxes=sum(case.boxes is not None for case in cases),
        parts={part: len(of_part) for part, of_part in parts.items()},
        missing=list(dict.fromkeys(data_set.missing + not_there)),
        unusable=unusable,
        duplicates=[
            *dict.fromkeys(data_set.named_twice + twice),
            *repeated["within"],
            *_repeated_names(cases, groups, folder),
        ],
        leaks=[*_shared_subjects(parts, folder), *repeated["across"]],
        odd=data_set.odd,
        doubts=_shared_names(parts, folder),
    )


def _check_headers(cases: Iterable[Case], contents: Contents, folder: Path) -> tuple[list[str], list[Case]]:
    """(what is wrong with which file, the cases whose image can be read)."""
    unusable: list[str] = []

    def shape(path: Path, archive: Path | None = None) -> tuple[int, ...] | None:
        try:
            with contents.open(path, archive) as (file, _):
                return shape_of(path, file)
        except (ThoradError, OSError, tarfile.TarError) as error:
            unusable.append(f"{shown(path, folder)}: {str(error).removeprefix(f'{path}: ')}")
            return None

    whole: list[Case] = []
    for case in cases:
        of_image = shape(case.image, case.archive)
        whole += [case] if of_image else []
        for mask in case.masks:
            of_mask = shape(mask)
            if of_image and of_mask and of_mask != of_image:
                unusable.append(f"{shown(mask, folder)}: a mask of {times(of_mask)}, its image has {times(of_image)}")
    return unusable, whole


def _parts(folder: Path, cases: Sequence[Case]) -> tuple[dict[str, list[Case]], list[str], list[str]]:
    """({part: its cases} by folders and tables, what its tables name that is missing, and what they name twice)."""
    by_image = {os.path.realpath(case.image): case for case in cases}
    parts: dict[str, dict[str, Case]] = {part: {} for part in PARTS}
    missing: list[str] = []
    twice: list[str] = []
    for part, tables in split_tables(folder).items():
        for table in tables:
            of_table = cases_on_disk(table)
            missing += of_table.missing
            twice += of_table.named_twice
            for case in of_table.cases:
                real = os.path.realpath(case.image)
                parts[part][real] = by_image.get(real, case)
    for case in cases:
        folders = case.image.relative_to(folder).parts[:-1] if case.image.is_relative_to(folder) else ()
        named = next(filter(None, map(part_of, folders)), None)
        if named is not None:
            parts[named][os.path.realpath(case.image)] = case
    return {part: list(of_part.values()) for part, of_part in parts.items() if of_part}, missing, twice


def _repeated_content(
    groups: Sequence[Sequence[Case]], parts: dict[str, list[Case]], folder: Path
) -> dict[str, list[str]]:
    """{`across` or `within` the parts of a split: a line for each group of images of the same content}."""
    lines: dict[str, list[str]] = {"across": [], "within": []}
    images_of = {part: {str(case.image) for case in of_part} for part, of_part in parts.items()}
    for group in groups:
        same = f"{' = '.join(shown(case.image, folder) for case in group)}: the same content"
        in_parts = [part for part, images in images_of.items() if any(str(case.image) in images for case in group)]
        subjects = sorted({case.subject for case in group})
        if len(in_parts) > 1:
            lines["across"].append(f"{same} in {' and '.join(in_parts)}")
        else:
            lines["within"].append(f"{same} under the subjects {', '.join(subjects)}" if len(subjects) > 1 else same)
    return lines


def _repeated_names(cases: Sequence[Case], groups: Sequence[Sequence[Case]], folder: Path) -> list[str]:
    """A line for each name under which there are images of different content."""
    same = [{str(case.image) for case in group} for group in groups]
    by_name: dict[str, list[Case]] = {}
    for case in cases:
        by_name.setdefault(case.name, []).append(case)
    lines: list[str] = []
    for name, called_so in by_name.items():
        images = {str(case.image) for case in called_so}
        if len(images) > 1 and not any(images <= known for known in same):
            both = " and ".join(shown(case.image, folder) for case in called_so)
            lines.append(f"{both}: both are called {name}, with different content")
    return lines


def _shared_subjects(parts: dict[str, list[Case]], folder: Path) -> list[str]:
    places: dict[str, dict[str, str]] = {}  # {subject: {part: its first image there}}
    for part, of_part in parts.items():
        for case in of_part:
            places.setdefault(case.subject, {}).setdefault(part, f"{part} ({shown(case.image, folder)})")
    return [f"{subject}: in {' and in '.join(of.values())}" for subject, of in places.items() if len(of) > 1]


def _shared_names(parts: dict[str, list[Case]], folder: Path) -> list[str]:
    """A line for each file name in two parts that only their folders make two subjects: one patient's, or `001.png`.

    Where a part has several files of one name (p1/T1.png, p2/T1.png), folders tell the patients: those count, too, but
    for the parts' own.
    """
    unnamed = {part: [case for case in of_part if case.subject == case.name] for part, of_part in parts.items()}
    repeated = {
        name
        for of_part in unnamed.values()
        for name, times in Counter(subject_of(case.image) for case in of_part).items()
        if times > 1
    }
    places: dict[str, dict[str, Case]] = {}  # {file name: {part: its first image there}}
    for part, of_part in unnamed.items():
        for case in of_part:
            name = subject_of(case.image)
            if name in repeated:
                *folders, stem = case.name.split("__")
                name = "__".join([*(each for each in folders if part_of(each) is None), stem])
            places.setdefault(name, {}).setdefault(part, case)
    return [
        f"{' and '.join(shown(case.image, folder) for case in of.values())}: the same file name in {' and '.join(of)}; "
        "if it is one patient, that is a leak"
        for of in places.values()
        if len({case.subject for case in of.values()}) > 1
    ]
