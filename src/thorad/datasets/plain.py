"""Data sets that are listed in tables, as thorad writes them, and any other folder of images."""

import csv
import gzip
import os
import re
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from thorad.datasets.cases import Case, cases_on_disk
from thorad.datasets.contract import DataSet, Layout
from thorad.datasets.layouts import is_image, shown, stem_of
from thorad.io.images import case_names
from thorad.io.scans import subject_of, subjects_of

PARTS: Final = {"train": ("train", "training"), "val": ("val", "valid", "validation"), "test": ("test", "testing")}
"""{part of a split: what its folder or its table may be called}."""


def part_of(name: str) -> str | None:
    """`train`, `val` or `test` where a folder or a table is called so; None where not."""
    return next((part for part, names in PARTS.items() if name.casefold() in names), None)


def split_tables(folder: Path) -> dict[str, list[Path]]:
    """{part: its tables}: the CSV files right in the folder that are called so and have a column image."""
    tables: dict[str, list[Path]] = {}
    for table in sorted(folder.glob("*.[cC][sS][vV]")):
        part = part_of(table.stem)
        if part is not None and "image" in header_of(table):
            tables.setdefault(part, []).append(table)
    return tables


def find_tables(folder: Path, files: Sequence[Path]) -> DataSet | None:
    """The images that cases.csv and the tables of a split name, and those in healthy/."""
    tables = [table for of_part in split_tables(folder).values() for table in of_part]
    if "image" in header_of(folder / "cases.csv"):
        tables.insert(0, folder / "cases.csv")
    if not tables:
        return None
    cases: dict[str, Case] = {}
    read = [cases_on_disk(table) for table in tables]
    for of_table in read:
        for case in of_table.cases:
            cases.setdefault(os.path.realpath(case.image), case)
    for path in files:
        if path.relative_to(folder).parts[0] == "healthy" and is_image(path):
            cases.setdefault(os.path.realpath(path), Case(path, None, subject_of(path), stem_of(path)))
    return DataSet(
        list(cases.values()),
        missing=[entry for of_table in read for entry in of_table.missing],
        missing_beside=[entry for of_table in read for entry in of_table.missing_beside],
        named_twice=[entry for of_table in read for entry in of_table.named_twice],
    )


def header_of(table: Path) -> list[str]:
    """The cells of a table's first line, packed or not; none where it can't be read."""
    try:
        with (gzip.open if table.suffix.lower() == ".gz" else open)(table, "rb") as file:
            line = file.readline(2**16).decode("utf-8-sig")
        return [cell.strip() for cell in next(csv.reader([line]), [])]
    except (OSError, EOFError, zlib.error, UnicodeDecodeError, csv.Error):
        return []


TABLES: Final = Layout(
    description="tables: cases.csv, or train.csv, val.csv and test.csv, with a column image",
    find=find_tables,
    general=True,
)

MASK_STEM: Final = re.compile(r"(.+?)[-_.](?:seg|lesions?|gt|(?:lesions?[-_]?)?mask)", re.IGNORECASE)
"""Of a mask beside its image: the image's stem and an ending."""
IMAGE_FOLDERS: Final = {"images", "image", "imgs", "scans"}
MASK_FOLDERS: Final = {"masks", "mask", "labels", "segmentations"}
BOX_FOLDERS: Final = {"boxes", "annotations", "labels", "pascalvoc"}

Key = tuple[str, ...]
"""What an image shares with its masks and boxes: its folders but for those that tell the kind, and its stem."""


def find_in_folder(folder: Path, files: Sequence[Path]) -> DataSet | None:
    """Every image; x_mask.png or masks/x.png is the mask of x.png, boxes/x.xml holds its boxes."""
    images, masks, boxes = _sorted_by_kind(folder, files)
    if not images and not masks:
        return None
    names = case_names([path for path, _ in images], [folder] * len(images))
    subjects = subjects_of([path for path, _ in images], names)
    cases = [
        Case(path, None, subject, name, boxes=boxes.get(key)).with_masks(masks.get(key, ()))
        for (path, key), name, subject in zip(images, names, subjects, strict=True)
    ]
    keys = {key for _, key in images}
    with_masks = {key[:-1] for key in keys & masks.keys()}
    missing = [
        f"{shown(case.image, folder)}: no mask, others of its folder have one"
        for case, (_, key) in zip(cases, images, strict=True)
        if not case.masks and key[:-1] in with_masks
    ]
    strays = [mask for key, of_key in masks.items() if key not in keys for mask in of_key]
    strays += [
        path
        for key, path in boxes.items()
        if key not in keys and path.parent != folder and path.parent.name.casefold() in BOX_FOLDERS
    ]
    return DataSet(cases, missing + [f"{shown(path, folder)}: no image" for path in strays])


def _sorted_by_kind(
    folder: Path, files: Sequence[Path]
) -> tuple[list[tuple[Path, Key]], dict[Key, list[Path]], dict[Key, Path]]:
    """The images, the masks and the files of boxes."""
    images: list[tuple[Path, Key]] = []
    masks: dict[Key, list[Path]] = {}
    boxes: dict[Key, Path] = {}
    for path in files:
        folders = {part.casefold() for part in path.relative_to(folder).parts[:-1]}
        if path.suffix.lower() in (".txt", ".xml"):
            boxes[_key(path, folder, path.stem)] = path
        elif is_image(path):
            named = MASK_STEM.fullmatch(stem_of(path))
            if folders & MASK_FOLDERS or named:
                masks.setdefault(_key(path, folder, named[1] if named else stem_of(path)), []).append(path)
            else:
                images.append((path, _key(path, folder, stem_of(path))))
    return images, masks, boxes


def _key(path: Path, folder: Path, stem: str) -> Key:
    kinds = IMAGE_FOLDERS | MASK_FOLDERS | BOX_FOLDERS
    return (*(part for part in path.relative_to(folder).parts[:-1] if part.casefold() not in kinds), stem)


FOLDER: Final = Layout(description="a folder of images or volumes", find=find_in_folder, general=True)
