"""The cases of a report with their pictures, as large as the page has room for."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import numpy as np

from thorad.datasets.cases import Case
from thorad.results.gallery import NO_PICTURES, by_score, case_entry, encode_picture, gallery_index
from thorad.results.layout import CaseRecord
from thorad.results.page import json_text
from thorad.results.reader import Pictures, ResultFolder, read_pictures, truth_of
from thorad.results.truth import Measured

SIDES: Final = (512, 384, 256, 192, 128)
"""Longest side of a page's pictures, px: the largest that fits."""

SAMPLE: Final = 12
"""Cases whose pictures tell how large a page will be."""

MARGIN: Final = 0.97
"""Share of the page that the expected size may fill, for the sample is not all cases."""

Progress = Callable[[int, int], None]
"""Called with (cases done, cases in all)."""


class PackedGallery:
    """An index of the cases, and a block of pictures for each.

    Args:
        folder: of the cases.
        rows: {case name: row of the truth}, of some of them.
        measured: their maps against that truth.
        largest: bytes that the blocks may have together.
        on_progress: see `Progress`.

    Raises:
        ThoradError: a picture is missing or damaged.
    """

    def __init__(
        self,
        folder: ResultFolder,
        rows: Mapping[str, Case],
        measured: Measured | None,
        largest: int,
        on_progress: Progress | None,
    ) -> None:
        self._folder, self._rows, self._measured = folder, rows, measured
        self._on_progress = on_progress or (lambda done, total: None)
        # Highest scores first: these are read first, and keep their pictures where not all fit.
        self._cases = by_score(folder.cases)
        self._done = [case for case in self._cases if case.done]
        self.side: int | None = None
        """Longest side of the pictures, px; None where they are as large as in the folder."""
        self.scans = True
        """Whether every case has its scan."""
        self.blocks: list[str] = []
        """JSON of the pictures of each case that has them, in the order of the index."""
        self._side = SIDES[0]
        self._peaks: dict[str, list[float]] = {}  # highest map value in each picture of a case, as in `blocks`
        self._pack(largest)

    @property
    def index(self) -> dict[str, Any]:
        """Of all cases, as the page's script takes it."""
        peaks = [peak for of_case in self._peaks.values() for peak in of_case]
        return gallery_index(
            self._folder,
            [self._entry(number, case) for number, case in enumerate(self._cases)],
            largest=max([float(self._folder.run["overlay_maximum"]), *peaks]),
            scans=self.scans,
            dice_at="" if self._measured is None else f"{self._measured.threshold:.3g}",
        )

    @property
    def without_pictures(self) -> int:
        """Cases that did not fail and have no pictures in the page."""
        return len(self._done) - len(self.blocks)

    @property
    def note(self) -> str:
        """What a reader should know of the pictures."""
        size = (
            "Pictures are as large as the run left them"
            if self.side is None
            else f"Pictures are reduced to {self.side} px at their longest side, maps by the mean of the pixels, so "
            "that this file stays small: small peaks are lower here than in the folder"
        )
        sentences = [
            f"{size}; maps have 8 bits here, fine near 0 and coarse near a map's peak.",
            "Above the threshold the map lies over the scan, stronger with its value; below it the scan is as it is.",
        ]
        if self._rows:
            sentences.append("Dice at this threshold is of the pictures as they are here.")
        if not self.scans:
            sentences.append(
                "This folder is of a version that kept no scan: the overlay is shown as the run drew it, and opacity, "
                "colours and window don't change it. Detect again to have the scan."
            )
        if self.without_pictures:
            sentences.append(f"{self.without_pictures} cases with the lowest scores are listed without pictures.")
        return " ".join(sentences)

    def _entry(self, number: int, case: CaseRecord) -> dict[str, Any]:
        entry = case_entry(number, case, self._side)
        if case.name in self._peaks:
            entry["first"] = int(np.argmax(self._peaks[case.name]))
        else:
            entry |= NO_PICTURES
        if self._measured is not None:
            known = {"truth": self._measured.lesion_pixels, "size": self._measured.size, "dice": self._measured.dice}
            entry |= {key: figures.get(case.name) for key, figures in known.items()}
        return entry

    def _pack(self, largest: int) -> None:
        """Fill the blocks, with pictures of the largest side with which all fit."""
        sample = [(case, read_pictures(case)) for case in self._done[:: max(1, len(self._done) // SAMPLE)]]
        longest = max((max(picture.shape) for _, pictures in sample for picture in pictures), default=0)
        sides = [side for side in SIDES if side < longest]
        for side in (longest, *sides) if longest <= SIDES[0] else sides:
            if side != SIDES[-1]:
                expected = sum(len(self._block(case, pictures, side)) for case, pictures in sample) / len(sample)
                if expected * len(self._done) > MARGIN * largest:
                    continue
            self._fill(side, largest)
            if not self.without_pictures:
                return

    def _fill(self, side: int, largest: int) -> None:
        """Fill the blocks until the page is full."""
        self.blocks, self._peaks, self._side = [], {}, side
        total, reduced = 0, False
        for number, case in enumerate(self._done, start=1):
            pictures = read_pictures(case)
            block = self._block(case, pictures, side)
            total += len(block)
            if total > largest:
                break
            reduced |= any(max(picture.shape) > side for picture in pictures)
            self.blocks.append(block)
            self._peaks[case.name] = [float(picture.anomaly_map.max()) for picture in pictures]
            self.scans &= all(picture.scan is not None for picture in pictures)
            self._on_progress(number, len(self._done))
        self.side = side if reduced else None

    def _block(self, case: CaseRecord, pictures: Sequence[Pictures], side: int) -> str:
        encoded = []
        for picture in pictures:
            row = self._rows.get(case.name) if picture.slice_index is None else None
            truth = truth_of(row, picture.shape) if row is not None and row.mask is not None else None
            encoded.append(encode_picture(picture, side, truth))
        return json_text(encoded)
