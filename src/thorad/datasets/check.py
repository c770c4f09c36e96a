"""What is wrong with a data set: missing, damaged and repeated files, and subjects on both sides of a split.

Of an image only its head is read, and of a packed volume its last bytes; whole files are read only where two of them
may be the same.
"""

import gzip
import hashlib
import json
import os
import struct
import tarfile
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Final

from thorad.datasets.cases import Case, cases_on_disk
from thorad.datasets.layouts import find_data_set
from thorad.datasets.names import shown
from thorad.datasets.tables import part_of, split_tables
from thorad.errors import ThoradError
from thorad.io.atomic import write_atomic
from thorad.io.shapes import shape_of
from thorad.io.volume_header import import_nibabel

CHUNK: Final = 2**20
"""bytes read at once."""

NIFTI: Final = (".nii", ".nii.gz")


@dataclass(frozen=True)
class Report:
    """What a folder holds, and what is wrong with it: one entry for each thing found."""

    folder: str
    kind: str
    """A name in `DATASETS`."""
    subjects: int
    sessions: int
    """Visits of subjects; a subject without named ones has one."""
    images: int
    with_mask: int
    with_boxes: int
    """Images that have a file of boxes, which may be empty."""
    parts: dict[str, int]
    """{train, val or test: its images}, of the splits that the folder holds."""
    missing: list[str]
    unusable: list[str]
    """Empty, damaged or cut short; masks on another grid than their image."""
    duplicates: list[str]
    """Images of the same content, or of one name."""
    leaks: list[str]
    """Subjects and images that stand in two parts of a split."""
    odd: list[str]
    """What could not be placed."""

    @property
    def counts(self) -> dict[str, int]:
        """{what: how many}, for reading."""
        of_parts = {f"images in {part}": count for part, count in self.parts.items()}
        return {
            "subjects": self.subjects,
            "visits": self.sessions,
            "images": self.images,
            "with a lesion mask": self.with_mask,
            "with a file of boxes": self.with_boxes,
            **of_parts,
        }

    @property
    def problems(self) -> dict[str, list[str]]:
        """{heading: what was found under it}, without what is empty."""
        groups = {
            "missing": self.missing,
            "unusable": self.unusable,
            "twice": self.duplicates,
            "leaks between splits": self.leaks,
            "odd": self.odd,
        }
        return {heading: found for heading, found in groups.items() if found}

    def write(self, path: Path) -> None:
        """Write all of it as JSON.

        Raises:
            ThoradError: the file can't be written.
        """
        write_atomic(path, (json.dumps(asdict(self), indent=2, ensure_ascii=False) + "\n").encode())


def check_data_set(folder: Path, kind: str | None = None) -> Report:
    """Check a data set: names, then the heads of all images and masks, then for images that are the same.

    Args:
        folder: where it lies.
        kind: as `find_data_set` takes it.

    Raises:
        ThoradError: as `find_data_set`; volumes without the library that reads their heads.
    """
    found = find_data_set(folder, kind)
    cases = found.cases
    parts, not_there = _parts(folder, cases)
    in_parts = [case for of_part in parts.values() for case in of_part]
    everything = list({str(case.image): case for case in [*in_parts, *cases]}.values())
    _need_libraries(everything)
    with Contents() as contents:
        unusable, whole = _check_heads(everything, contents, folder)
        groups = same_content(whole, contents)
    part_names = {part: {str(case.image) for case in of_part} for part, of_part in parts.items()}
    duplicates: list[str] = []
    leaks = _shared_subjects(parts, folder)
    for group in groups:
        told = " = ".join(shown(case.image, folder) for case in group)
        standing = [part for part, names in part_names.items() if any(str(case.image) in names for case in group)]
        subjects = sorted({case.subject for case in group})
        if len(standing) > 1:
            leaks.append(f"{told}: the same content in {' and '.join(standing)}")
        elif len(subjects) > 1:
            duplicates.append(f"{told}: the same content under the subjects {', '.join(subjects)}")
        else:
            duplicates.append(f"{told}: the same content")
    same = [{str(case.image) for case in group} for group in groups]
    by_name: dict[str, list[Case]] = {}
    for case in cases:
        by_name.setdefault(case.name, []).append(case)
    for name, group in by_name.items():
        images = {str(case.image) for case in group}
        if len(images) > 1 and not any(images <= known for known in same):
            told = " and ".join(shown(case.image, folder) for case in group)
            duplicates.append(f"{told}: both are called {name}, with different content")
    return Report(
        folder=str(folder),
        kind=found.kind,
        subjects=len({case.subject for case in cases}),
        sessions=len({(case.subject, case.session) for case in cases}),
        images=len(cases),
        with_mask=sum(bool(case.masks) for case in cases),
        with_boxes=sum(case.boxes is not None for case in cases),
        parts={part: len(of_part) for part, of_part in parts.items()},
        missing=list(dict.fromkeys(found.missing + not_there)),
        unusable=unusable,
        duplicates=duplicates,
        leaks=leaks,
        odd=found.odd,
    )


class Contents:
    """Opens the files of cases, in tar archives as beside them; each archive once. A context manager."""

    def __init__(self) -> None:
        self._open = ExitStack()
        self._archives: dict[Path, tuple[tarfile.TarFile, dict[str, tarfile.TarInfo]]] = {}

    def __enter__(self) -> "Contents":
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()

    @contextmanager
    def open(self, path: Path, archive: Path | None = None) -> Iterator[tuple[IO[bytes], int]]:
        """Yields (the file, its size in bytes)."""
        if archive is None:
            with path.open("rb") as file:
                yield file, os.fstat(file.fileno()).st_size
            return
        if archive not in self._archives:
            tar = self._open.enter_context(tarfile.TarFile(archive))
            members: dict[str, tarfile.TarInfo] = {}
            try:
                for member in tar:
                    members[member.name] = member
            except tarfile.TarError:
                pass  # cut short, as `find_data_set` says; what stands before that is there
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
    groups: dict[tuple[int, int | str], list[Case]] = {}
    for size, of_size in by_size.items():
        for case, crc in of_size if len(of_size) > 1 else ():
            groups.setdefault((size, _crc(case, contents) if crc is None else crc), []).append(case)
    same: dict[str, list[Case]] = {}
    for group in groups.values():
        for case in group if len(group) > 1 else ():
            digest = hashlib.sha256()
            try:
                for chunk in _unpacked(case, contents):
                    digest.update(chunk)
            except (OSError, EOFError, zlib.error, tarfile.TarError):
                continue
            same.setdefault(digest.hexdigest(), []).append(case)
    return [group for group in same.values() if len(group) > 1]


def _crc(case: Case, contents: Contents) -> int:
    crc = 0
    for chunk in _unpacked(case, contents):
        crc = zlib.crc32(chunk, crc)
    return crc


def _unpacked(case: Case, contents: Contents) -> Iterator[bytes]:
    with contents.open(case.image, case.archive) as (file, _):
        stream = gzip.GzipFile(fileobj=file) if case.image.suffix.lower() == ".gz" else file
        while chunk := stream.read(CHUNK):
            yield chunk


# ---- splits


def _parts(folder: Path, cases: Sequence[Case]) -> tuple[dict[str, list[Case]], list[str]]:
    """({part: its cases}, what their tables name in vain), told by folders and by tables; without parts, nothing."""
    by_image = {os.path.realpath(case.image): case for case in cases}
    parts: dict[str, dict[str, Case]] = {"train": {}, "val": {}, "test": {}}
    missing: list[str] = []
    for part, tables in split_tables(folder).items():
        for table in tables:
            found, not_there = cases_on_disk(table)
            missing += not_there
            for case in found:
                real = os.path.realpath(case.image)
                parts[part][real] = by_image.get(real, case)
    for case in cases:
        folders = case.image.relative_to(folder).parts[:-1] if case.image.is_relative_to(folder) else ()
        named = next(filter(None, map(part_of, folders)), None)
        if named is not None:
            parts[named][os.path.realpath(case.image)] = case
    return {part: list(of_part.values()) for part, of_part in parts.items() if of_part}, missing


def _shared_subjects(parts: dict[str, list[Case]], folder: Path) -> list[str]:
    first: dict[str, dict[str, Case]] = {}
    for part, of_part in parts.items():
        for case in of_part:
            first.setdefault(case.subject, {}).setdefault(part, case)
    return [
        f"{subject}: in "
        + " and in ".join(f"{part} ({shown(case.image, folder)})" for part, case in of_subject.items())
        for subject, of_subject in first.items()
        if len(of_subject) > 1
    ]


# ---- heads


def _check_heads(cases: Iterable[Case], contents: Contents, folder: Path) -> tuple[list[str], list[Case]]:
    """(what is wrong with which file, the cases whose image can be read)."""
    unusable: list[str] = []
    whole: list[Case] = []
    for case in cases:
        shape = _shape(case.image, case.archive, contents, folder, unusable)
        if shape is not None:
            whole.append(case)
        for mask in case.masks:
            of_mask = _shape(mask, None, contents, folder, unusable)
            if shape is not None and of_mask is not None and of_mask != shape:
                unusable.append(f"{shown(mask, folder)}: a mask of {_times(of_mask)}, its image has {_times(shape)}")
    return unusable, whole


def _shape(
    path: Path, archive: Path | None, contents: Contents, folder: Path, unusable: list[str]
) -> tuple[int, ...] | None:
    """Of an image or a mask, by its header; None, and a line in `unusable`, where it can't be read."""
    try:
        with contents.open(path, archive) as (file, _):
            return shape_of(path, file)
    except ThoradError as error:
        unusable.append(f"{shown(path, folder)}: {str(error).removeprefix(f'{path}: ')}")
    except (OSError, tarfile.TarError) as error:
        unusable.append(f"{shown(path, folder)}: {error}")
    return None


def _need_libraries(cases: Iterable[Case]) -> None:
    """Refuse volumes whose heads nothing here can read, before anything is read."""
    if any(path.name.lower().endswith(NIFTI) for case in cases for path in (case.image, *case.masks)):
        import_nibabel()


def _times(shape: Iterable[int]) -> str:
    return " x ".join(map(str, shape))
