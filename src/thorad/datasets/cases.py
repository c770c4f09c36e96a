"""Cases: images with the truth about them, and the tables that list them."""

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, Literal

from thorad.errors import ThoradError
from thorad.io.images import case_names
from thorad.io.tables import Row, files_in_column, read_table, refuse_images_named_twice

Truth = Literal["mask", "boxes"]
"""The column of a table of cases that says what is in an image."""


@dataclass(frozen=True)
class Case:
    """One image, a picture or a volume, and the files that hold the truth about it. None of them has been read."""

    image: Path

    mask: Path | None
    """Of lesions; None: a healthy image, or one whose findings are marked by boxes or not at all."""

    subject: str
    """Images of one subject are not independent: intervals are over subjects, and splits never share one."""

    name: str
    """Case id; of a table, the same that `thorad detect` gives the image when it reads that table."""

    volume: str | None = None
    """The volume that this slice is part of; None: it is a volume of its own."""

    slice_number: int | None = None
    """Its place in the volume; None: that of its row."""

    boxes: Path | None = None
    """Boxes around findings, in one of the forms that `boxes.read_boxes` reads."""

    elsewhere: Path | None = None
    """A mask of where a detection counts as a false one; None: everywhere outside the boxes."""

    other_masks: tuple[Path, ...] = ()
    """Where each lesion has a mask of its own: those beside `mask`. A voxel is in a lesion if it is in any of them."""

    session: str | None = None
    """Which of the subject's visits."""

    archive: Path | None = None
    """The tar that the image lies in, not unpacked; `image` is then the archive's path and the member's name."""

    @property
    def masks(self) -> tuple[Path, ...]:
        """All masks of lesions; none for a healthy image."""
        return () if self.mask is None else (self.mask, *self.other_masks)

    def with_masks(self, masks: Sequence[Path]) -> "Case":
        """The same image with these masks of lesions, of which there may be none."""
        return replace(self, mask=masks[0] if masks else None, other_masks=tuple(masks[1:]))

    @property
    def files(self) -> tuple[Path, ...]:
        """The image and its masks."""
        return (self.image, *self.masks)

    @property
    def has_finding(self) -> bool:
        """Whether a mask or boxes mark something in the image."""
        return self.mask is not None or self.boxes is not None


def subject_of(path: Path) -> str:
    """The subject that a file's name tells: its leading BIDS entity `sub-XXXX`, else the whole stem."""
    stem = path.stem.removesuffix(".nii")
    bids = re.match(r"sub-[A-Za-z0-9]+", stem)
    return bids[0] if bids else stem


def read_cases(table: Path, *, truth: Truth = "mask") -> list[Case]:
    """Read a table of cases: the columns `image` and, empty for a healthy image, `mask` or `boxes`.

    Paths are relative to the table's folder; images, masks and boxes are not read. Optional are `subject` (else the
    image's name gives it, `subject_of`), `volume` (else each image is one by itself) and `slice`, a whole number that
    orders the slices of a volume; beside `boxes` also `elsewhere`.

    Args:
        table: a CSV file.
        truth: the column that says what is in an image. The other one is ignored.

    Raises:
        ThoradError: the table can't be read, lacks a column, names a missing file, or names an image twice; a slice
            that is no whole number.
    """
    rows = read_table(table, ["image", truth])
    images = files_in_column(table, rows, "image")
    given = {column: _files_where_given(table, rows, column) for column in _COLUMNS_OF[truth]}
    advice = "with all its lesions in one mask" if truth == "mask" else "with all its boxes in one file"
    refuse_images_named_twice(table, rows, images, f"Keep one row for each image, {advice}.")
    names = case_names(images, [table.parent] * len(images))
    return [
        Case(
            image=image,
            mask=given["mask"].get(line) if truth == "mask" else None,
            subject=row.get("subject") or subject_of(image),
            name=name,
            volume=row.get("volume") or None,
            slice_number=_slice_number(table, line, row.get("slice", "")),
            boxes=given["boxes"].get(line) if truth == "boxes" else None,
            elsewhere=given["elsewhere"].get(line) if truth == "boxes" else None,
        )
        for (line, row), image, name in zip(rows, images, names, strict=True)
    ]


_COLUMNS_OF: Final[dict[Truth, tuple[str, ...]]] = {"mask": ("mask",), "boxes": ("boxes", "elsewhere")}


def _files_where_given(table: Path, rows: Sequence[Row], column: str) -> dict[int, Path]:
    """{line: file} of the rows in which the column is there and not empty."""
    given = [(line, row) for line, row in rows if row.get(column)]
    return dict(zip((line for line, _ in given), files_in_column(table, given, column), strict=True))


def cases_on_disk(table: Path) -> tuple[list[Case], list[str]]:
    """The cases of a table whose images are there: `read_cases` for tables that may be wrong.

    Only the column `image` must be there; `mask`, `boxes` and `subject` may.

    Returns:
        (cases whose image is there, what is missing).

    Raises:
        ThoradError: the table can't be read, or has no column image.
    """
    missing: list[str] = []

    def there(line: int, cell: str) -> Path | None:
        path = table.parent / cell
        # Path.is_file raises for names that are too long or hold a NUL; such a file is just not there.
        if cell and os.path.isfile(path):  # noqa: PTH113
            return path
        if cell:
            missing.append(f"{table.name}, line {line}: {cell} is not there")
        return None

    cases: list[Case] = []
    for line, row in read_table(table, ["image"]):
        image, mask, boxes = (there(line, row.get(column, "")) for column in ("image", "mask", "boxes"))
        if not row["image"]:
            missing.append(f"{table.name}, line {line}: no image is named")
        if image is not None:
            cases.append(Case(image, mask, row.get("subject") or subject_of(image), "", boxes=boxes))
    names = case_names([case.image for case in cases], [table.parent] * len(cases))
    return [replace(case, name=name) for case, name in zip(cases, names, strict=True)], missing


def _slice_number(table: Path, line: int, cell: str) -> int | None:
    try:
        return int(cell) if cell else None
    except ValueError as error:
        raise ThoradError(
            f"{table}, line {line}: the slice is {cell!r}, expected a whole number. It orders the slices of a volume."
        ) from error
