"""IXI (brain-development.org): volumes of healthy people by T1, T2, PD, MRA and DTI, in folders or archives."""

import re
import tarfile
from collections.abc import Sequence
from pathlib import Path, PurePath
from typing import Final

from thorad.datasets.cases import Case
from thorad.datasets.contract import Holdings, Layout
from thorad.datasets.names import shown, without_t1

NAME: Final = re.compile(r"(IXI\d+)-([A-Z]+)-(\d+)-(T1|T2|PD|MRA|DTI-\d+)\.nii(?:\.gz)?", re.IGNORECASE)
"""subject-hospital-scan-contrast."""


def find_ixi(folder: Path, files: Sequence[Path]) -> Holdings | None:
    """The T1 volumes anywhere below the folder, and in its tar archives those that are not unpacked beside them."""
    volumes: list[tuple[Path, Path | None, re.Match[str]]] = [
        (path, None, named) for path in files if (named := NAME.fullmatch(path.name))
    ]
    unpacked = {path.name.casefold() for path, _, _ in volumes}
    odd: list[str] = []
    archives = [path for path in files if re.fullmatch(r"IXI.*\.tar", path.name, re.IGNORECASE)]
    for archive in archives:
        members, problem = _members(archive)
        odd += [f"{shown(archive, folder)}: {problem}"] if problem else []
        for member in members:
            named = NAME.fullmatch(PurePath(member).name)
            if named and named[0].casefold() not in unpacked:
                volumes.append((archive / member, archive, named))
    if not volumes and not archives:
        return None
    cases = [
        Case(path, None, named[1].upper(), "-".join(named.group(1, 2, 3)), session=named[3], archive=archive)
        for path, archive, named in volumes
        if named[4].upper() == "T1"
    ]
    return Holdings(cases, without_t1((named[1].upper() for _, _, named in volumes), cases), odd)


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


LAYOUT: Final = Layout(
    description="IXI: IXI002-Guys-0828-T1.nii.gz and its like, in folders or in IXI-T1.tar",
    find=find_ixi,
    recognises=lambda path: NAME.fullmatch(path.name) is not None,
)
