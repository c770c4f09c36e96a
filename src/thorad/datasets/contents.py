"""The files of cases, in archives as beside them, and which of them hold the same."""

import gzip
import hashlib
import os
import struct
import tarfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, Final

from thorad.datasets.cases import Case

CHUNK: Final = 2**20
"""bytes read at once."""


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
                pass  # cut short, as `find_data_set` says; what comes before that is there
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
