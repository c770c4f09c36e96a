"""Result folders as the viewer's pages take them: a summary, an index of the cases, the pictures of one case at a time.

The script is that of the report, thorad/assets/report/gallery.js; what a report holds at once comes here case by case.
"""

from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

from thorad.errors import ThoradError
from thorad.io.tables import counted
from thorad.results.folder import (
    CASE,
    OVERLAY,
    PLANES,
    REGISTRATION_PICTURE,
    RUN,
    CaseRecord,
    read_folder,
    read_pictures,
)
from thorad.results.gallery import by_score, case_entry, encode_picture, gallery_index, has_scan
from thorad.results.volume_page import write_volume_page

LARGEST_SIDE: Final = 1024  # px; larger pictures are reduced in the page, to keep its sliders responsive


class Results:
    """A result folder, read anew for every page.

    Args:
        path: the folder.
        display_name: what the page calls a case, given its name.
    """

    def __init__(self, path: Path, display_name: Callable[[str], str] = str) -> None:
        self.path, self._display_name = path, display_name
        self._cases: Mapping[str, CaseRecord] = {}
        self._modified: Mapping[Path, int] | None = None
        self._summary: Mapping[str, Any] = {}

    def summary(self) -> Mapping[str, Any]:
        """What a list of folders says of it, or why it can't be read; read again only when a file has changed."""
        modified = self._modification_times()
        if modified != self._modified:
            self._modified, self._summary = modified, self._summarise()
        return self._summary

    def index(self) -> dict[str, Any]:
        """What is known without opening the pictures.

        Raises:
            ThoradError: see `thorad.results.folder.read_folder`.
        """
        folder = read_folder(self.path)
        cases = by_score(folder.cases)
        done = [case for case in cases if case.done]
        self._cases = {case.name: case for case in cases}
        asked = ("model", "method", "noise", "steps", "seed", "thorad", "calibration")
        # A score is a mean of the highest values, which are seldom above twice of it.
        largest = max(folder.maximum, *(2 * (case.score or 0.0) for case in cases))
        entries = [
            {
                **case_entry(number, case, LARGEST_SIDE),
                "key": case.name,
                "name": self._display_name(case.name),
                "places": list(case.findings or ()),
                "registration": self.owns(case.folder / REGISTRATION_PICTURE),
            }
            for number, case in enumerate(cases)
        ]
        return {
            **gallery_index(folder, entries, largest=largest, scans=all(map(has_scan, done))),
            "volumes": [case.name for case in done if case.is_volume],
            "left_out": counted(folder.run.get("left_out") or {}),
            "run": {**{key: folder.options.get(key) for key in asked}, "status": folder.run.get("status")},
        }

    def pictures(self, name: str) -> list[dict[str, Any]]:
        """The pictures of a case of the last index: one of an image, one for each slice of a volume.

        Raises:
            ThoradError: no such case, or its pictures are damaged.
        """
        return [encode_picture(picture, LARGEST_SIDE) for picture in read_pictures(self._case(name))]

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
        with TemporaryDirectory(dir=folder) as temporary:
            return write_volume_page(self.path, name, Path(temporary) / PLANES).read_bytes()

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
        title = self.path.resolve().name
        try:
            folder = read_folder(self.path)
        except ThoradError as error:
            return {"title": title, "message": str(error)}
        return {
            **{key: folder.options.get(key) for key in ("model", "method", "noise")},
            "title": title,
            "cases": len(folder.cases),
            "failed": sum(case.status == "failed" for case in folder.cases),
            "refused": sum(case.status == "refused" for case in folder.cases),
        }


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
