"""Cases: images with the truth about them, and the tables that list them."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, Literal

from thorad.errors import ThoradError
from thorad.io.scans import scans_of_rows, subjects_of
from thorad.io.tables import Row, files_in_column, images_named_twice, read_table, refuse_images_named_twice

Truth = Literal["mask", "boxes"]
"""The column of a table of cases that says what is in an image."""

FILES_BESIDE: Final = ("mask", "boxes", "elsewhere", "healthy_image")
"""The columns of a table of cases that name a file which belongs to the image; a `Case` has them by the same names."""


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
    healthy_image: Path | None = None
    """The same image without its finding, where that is known (an implanted one)."""
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


@dataclass(frozen=True)
class TableOnDisk:
    """What can be used of a table that may be wrong, and what is wrong with it, one entry a file or row."""

    cases: list[Case]
    """Of the rows whose image is there; what they name beside it and is missing, they lack."""
    missing: list[str]
    """Files that rows name and that are not there, and rows that name no image."""
    missing_beside: list[str]
    """Those of `missing` that belong to an image which is there: without its mask it would look healthy."""
    named_twice: list[str]
    """Images that several rows name."""


def read_cases(table: Path, *, truth: Truth = "mask") -> list[Case]:
    """Read a table of cases: the columns `image` and, empty for a healthy image, `mask` or `boxes`.

    Paths are relative to the table's folder; images, masks and boxes are not read. Optional are `subject` (else the
    image's path gives it, `subject_of`), `volume` (else each image is one by itself) and `slice`, a whole number that
    orders the slices of a volume; beside `mask` also `healthy_image`, the same image without its lesion where that is
    known; beside `boxes` also `elsewhere`.

    Args:
        table: a CSV file.
        truth: the column that says what is in an image. The other one is ignored.

    Raises:
        ThoradError: the table can't be read, lacks a column, names a missing file, or names an image twice; a slice
            that is no whole number.
    """
    rows = read_table(table, ["image", truth])
    images = files_in_column(table, rows, "image")
    columns = ("mask", "healthy_image") if truth == "mask" else ("boxes", "elsewhere")
    for column in columns:
        files_in_column(table, [(line, row) for line, row in rows if row.get(column)], column)
    advice = "with all its lesions in one mask" if truth == "mask" else "with all its boxes in one file"
    refuse_images_named_twice(table, rows, images, f"Keep one row for each image, {advice}.")
    return _cases(table, rows, columns)


def cases_on_disk(table: Path) -> TableOnDisk:
    """The cases of a table whose images are there, and what is wrong: `read_cases` for tables that may be wrong.

    Raises:
        ThoradError: the table can't be read, or has no column image, it needs no other; a slice that is no whole
            number.
    """
    missing: list[str] = []
    missing_beside: list[str] = []
    rows = read_table(table, ["image"])
    for line, row in rows:
        if not row["image"]:
            missing.append(f"{table.name}, line {line}: no image is named")
        for column in ("image", *FILES_BESIDE):
            cell = row.get(column)
            # Path.is_file raises for names that are too long or hold a NUL; such a file is just not there.
            if cell and not os.path.isfile(table.parent / cell):  # noqa: PTH113
                missing.append(f"{table.name}, line {line}: {cell} is not there")
                row[column] = ""
                missing_beside += missing[-1:] if row["image"] else []
    rows = [(line, row) for line, row in rows if row["image"]]
    twice = images_named_twice(rows, [table.parent / row["image"] for _, row in rows])
    return TableOnDisk(
        cases=_cases(table, rows, FILES_BESIDE),
        missing=missing,
        missing_beside=missing_beside,
        named_twice=[f"{table.name}: {image} is named again" for image in twice],
    )


def _cases(table: Path, rows: Sequence[Row], columns: Sequence[str]) -> list[Case]:
    """What the rows say, in these columns of files and in those about the subject and the volume."""
    scans = scans_of_rows([table.parent / row["image"] for _, row in rows], table.parent)
    cases: list[Case] = []
    subjects = subjects_of([scan.path for scan in scans], [scan.name for scan in scans])
    for (line, row), scan, subject in zip(rows, scans, subjects, strict=True):
        files = {column: table.parent / row[column] if row.get(column) else None for column in columns}
        number = row.get("slice", "")
        try:
            slice_number = int(number) if number else None
        except ValueError as error:
            raise ThoradError(
                f"{table}, line {line}: the slice is {number!r}, expected a whole number. It orders the slices of a "
                "volume."
            ) from error
        cases.append(
            Case(
                image=scan.path,
                mask=files.get("mask"),
                subject=row.get("subject") or (scan.name if scan.is_dicom else subject),
                name=scan.name,
                volume=row.get("volume") or None,
                slice_number=slice_number,
                boxes=files.get("boxes"),
                elsewhere=files.get("elsewhere"),
                healthy_image=files.get("healthy_image"),
            )
        )
    return cases
