"""Result folders as the viewer's pages take them: a summary, an index of the cases, the pictures of one case at a time.

The script is that of the report, thorad/assets/report/gallery.js; what a report holds at once comes here case by case.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final
from urllib.parse import quote

from thorad.datasets.cases import Case
from thorad.errors import ThoradError
from thorad.records import model_title
from thorad.results.folder import (
    CASE,
    OVERLAY,
    PLANES,
    REGISTRATION_PICTURE,
    RUN,
    VOLUME_MAP,
    CaseRecord,
    ResultFolder,
    match_truth,
    read_folder,
    read_pictures,
)
from thorad.results.gallery import by_score, case_entry, encode_case, gallery_index
from thorad.results.volume_page import write_volume_page

LARGEST_SIDE: Final = 1024  # px; larger pictures are reduced in the page, to keep its sliders responsive


class Results:
    """A result folder, read anew for every page.

    Args:
        path: the folder.
        title: what pages call it.
        display_name: what the page calls a case, given its name.
        truth: table with columns image and mask, of which some rows may be of its cases.
    """

    def __init__(
        self, path: Path, title: str, display_name: Callable[[str], str] = str, truth: Path | None = None
    ) -> None:
        self.path, self.title, self._display_name, self._truth = path, title, display_name, truth
        self._cases: Mapping[str, CaseRecord] = {}
        self._rows: Mapping[str, Case] = {}
        self._modified: Mapping[Path, int] | None = None
        self._summary: Mapping[str, Any] = {}

    def summary(self) -> Mapping[str, Any]:
        """What a list of folders says of it, or why it can't be read; read again only when a file has changed."""
        modified = self._modification_times()
        if modified != self._modified:
            self._modified, self._summary = modified, self._summarise()
        return self._summary

    def read(self, address: str) -> tuple[ResultFolder, dict[str, Any]]:
        """The folder, and the index of its cases, made without opening the pictures; `address` is that of its page.

        Raises:
            ThoradError: see `thorad.results.folder.read_folder`.
        """
        folder = read_folder(self.path)
        cases = by_score(folder.cases)
        self._cases = {case.name: case for case in cases}
        with suppress(ThoradError):  # the table is of other results
            self._rows = match_truth(folder, self._truth) if self._truth else {}
        entries = [
            {
                **case_entry(number, case, LARGEST_SIDE),
                "key": case.name,
                "name": self._display_name(case.name),
                "registration": self._link(address, "registration", case, REGISTRATION_PICTURE),
                "page": self._link(address, "planes", case, VOLUME_MAP),
            }
            for number, case in enumerate(cases)
        ]
        return folder, {**gallery_index(folder, entries, truth=bool(self._rows)), "downloads": True}

    def _link(self, address: str, what: str, case: CaseRecord, file: str) -> str | None:
        """The address of something of a case, if its file is there."""
        return f"{address}/{what}/{quote(case.name, safe='')}" if self.owns(case.folder / file) else None

    def pictures(self, name: str) -> list[dict[str, Any]]:
        """The pictures of a case of the last index: one of an image, one for each slice of a volume.

        Raises:
            ThoradError: no such case, or its pictures are damaged.
        """
        case = self._case(name)
        return encode_case(case, read_pictures(case), LARGEST_SIDE, self._rows.get(name))

    def registration(self, name: str) -> Path:
        """The picture of the registration of a volume of the last index.

        Raises:
            ThoradError: no such case, or none was kept.
        """
        path = self._case(name).folder / REGISTRATION_PICTURE
        if not self.owns(path):
            raise ThoradError("there is no such picture.")
        return path

    def planes(self, name: str, folder: Path) -> bytes:
        """The HTML page of the three planes of a volume of the last index, with its scan where that is still at hand.

        `folder` holds the page while it is made.

        Raises:
            ThoradError: no such case, or no volume.
        """
        made = self._case(name).folder / PLANES
        if self.owns(made):
            return made.read_bytes()
        truth = self._truth if name in self._rows else None
        with TemporaryDirectory(dir=folder) as temporary:
            return write_volume_page(self.path, name, Path(temporary) / PLANES, truth=truth).read_bytes()

    def thumbnail(self) -> Path:
        """The overlay of the case with the highest score; of a volume that of the slice in the middle.

        Raises:
            ThoradError: nothing is done yet.
        """
        best = by_score(read_folder(self.path).cases)[0]
        if not best.done:
            raise ThoradError("no case is done.")
        folders = best.picture_folders
        return folders[len(folders) // 2][1] / OVERLAY

    def owns(self, file: Path) -> bool:
        """Whether it is a file of the folder: a link in it may lead anywhere on this machine."""
        return file.is_file() and file.resolve().is_relative_to(self.path.resolve())

    def _case(self, name: str) -> CaseRecord:
        if name not in self._cases:
            raise ThoradError("no such case.")
        return self._cases[name]

    def _modification_times(self) -> Mapping[Path, int]:
        """{file: ns}, of those that a summary is made of."""
        times = {}
        for file in (self.path / RUN, *(self.path / "cases").glob(f"*/{CASE}")):
            try:
                times[file] = file.stat().st_mtime_ns
            except OSError:  # being written
                continue
        return times

    def _summarise(self) -> dict[str, Any]:
        try:
            folder = read_folder(self.path)
        except ThoradError as error:
            return {"title": self.title, "message": str(error)}
        return {
            **{key: folder.options.get(key) for key in ("method", "noise")},
            "model": model_title(folder.options),
            "title": self.title,
            "cases": len(folder.cases),
            "failed": sum(case.status == "failed" for case in folder.cases),
            "refused": sum(case.status == "refused" for case in folder.cases),
        }


def folder_titles(paths: Sequence[Path]) -> list[str]:
    """The name of each folder, with as many of those above it as tell it from the others."""
    parts = [path.resolve().parts for path in paths]
    titles = []
    for own in parts:
        length = 1
        while length < len(own) and sum(other[-length:] == own[-length:] for other in parts) > 1:
            length += 1
        titles.append("/".join(own[-length:]))
    return titles


def result_folders(path: Path) -> list[Path]:
    """The result folders that a path stands for: itself, or those directly in it.

    Raises:
        ThoradError: there is none.
    """
    if (path / RUN).is_file():
        read_folder(path)
        return [path]
    try:
        inside = sorted(path.iterdir()) if path.is_dir() else []
    except OSError as error:
        raise ThoradError(f"{path}: can't be read ({error.strerror}). Check its permissions.") from error
    folders = [below for below in inside if _is_result_folder(below)]
    if not folders:
        raise ThoradError(
            f"{path}: neither a result folder nor a folder of result folders. Name a folder that `thorad detect` has "
            "written."
        )
    return folders


def _is_result_folder(path: Path) -> bool:
    with suppress(ThoradError):
        return bool(read_folder(path))
    return False
