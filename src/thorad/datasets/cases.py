"""Which images belong together: cases for evaluation; training and validation images that share no subject."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from thorad.errors import ThoradError
from thorad.io.images import case_names, find_images, read_image
from thorad.io.tables import files_in_column, listing, read_table, refuse_images_named_twice


@dataclass(frozen=True)
class Case:
    """One image with the truth about it."""

    image: Path
    mask: Path | None
    """None: a healthy image."""

    subject: str
    """Images of one subject are not independent: intervals are over subjects, and splits never share one."""

    name: str
    """Case id, the same that `thorad detect` gives the image when it reads the same table."""

    volume: str | None = None
    """The volume that this slice is part of; None: it is a volume of its own."""

    slice_number: int | None = None
    """Its place in the volume; None: that of its row."""


def subject_of(path: Path) -> str:
    """The subject that a file's name tells: its leading BIDS entity `sub-XXXX`, else the whole stem."""
    stem = path.stem.removesuffix(".nii")
    bids = re.match(r"sub-[A-Za-z0-9]+", stem)
    return bids[0] if bids else stem


def read_cases(table: Path) -> list[Case]:
    """Read an evaluation table: columns `image`, `mask` (empty for a healthy image).

    Paths are relative to the table's folder. Optional are `subject` (else the image's name tells it, `subject_of`),
    `volume` (else each image is one by itself) and `slice`, a whole number that orders the slices of a volume.

    Raises:
        ThoradError: the table can't be read, lacks a column, names a missing file, or names an image twice; a slice
            that is no whole number.
    """
    rows = read_table(table, ["image", "mask"])
    images = files_in_column(table, rows, "image")
    with_mask = [(line, row) for line, row in rows if row["mask"]]
    masks = dict(zip((line for line, _ in with_mask), files_in_column(table, with_mask, "mask"), strict=True))
    refuse_images_named_twice(table, rows, images, "Keep one row for each image, with all its lesions in one mask.")
    names = case_names(images, [table.parent] * len(images))
    return [
        Case(
            image=image,
            mask=masks.get(line),
            subject=row.get("subject") or subject_of(image),
            name=name,
            volume=row.get("volume") or None,
            slice_number=_slice_number(table, line, row.get("slice", "")),
        )
        for (line, row), image, name in zip(rows, images, names, strict=True)
    ]


def _slice_number(table: Path, line: int, cell: str) -> int | None:
    try:
        return int(cell) if cell else None
    except ValueError as error:
        raise ThoradError(
            f"{table}, line {line}: the slice is {cell!r}, expected a whole number. It orders the slices of a volume."
        ) from error


def training_images(
    train: Path, validation: Path | None, *, leave_out: Path | None = None
) -> tuple[list[Path], list[Path]]:
    """The images to train on and to validate on.

    Every one of them is opened, so that training doesn't stop at a damaged file hours later.

    Args:
        train: a folder, or a table with a column `image`, of healthy images.
        validation: the same, of other subjects; None for none.
        leave_out: the training's own folder, whose pictures are no images to train on.

    Returns:
        (training images, validation images), the latter empty for None.

    Raises:
        ThoradError: nothing there, an image that can't be read, masks among them, a subject that stands in both.
    """
    training = find_images([train], leave_out=leave_out)
    _refuse_masks(train, training)
    if validation is None:
        return training, []
    validating = find_images([validation], leave_out=leave_out)
    _refuse_masks(validation, validating)
    shared = sorted({subject_of(path) for path in training} & {subject_of(path) for path in validating})
    if shared:
        raise ThoradError(
            f"{len(shared)} subjects stand in both {train} and {validation}: {listing(shared)}. What is measured on a "
            "subject that was trained on says nothing; move all images of a subject to one side. "
            "(The subject is the file name's leading sub-XXXX, else the whole name.)"
        )
    return training, validating


def _refuse_masks(given: Path, paths: Sequence[Path]) -> None:
    """Masks in a training folder are a mistake that no loss curve shows."""
    masks: list[str] = []
    for path in paths:
        pixels = read_image(path).pixels
        if ((pixels == pixels.min()) | (pixels == pixels.max())).all():
            masks.append(path.name)
    if masks:
        raise ThoradError(
            f"{given}: {len(masks)} of {len(paths)} images have only two values and look like masks: {listing(masks)}. "
            "Training takes healthy images only; move masks to another folder."
        )
