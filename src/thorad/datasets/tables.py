"""Data sets listed in tables: cases.csv, or the train.csv, val.csv and test.csv of a split, as thorad writes them."""

import csv
import gzip
import os
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from thorad.datasets.cases import Case, cases_on_disk, subject_of
from thorad.datasets.contract import Holdings, Layout
from thorad.datasets.names import is_image, stem_of

PARTS: Final = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation"),
    "test": ("test", "testing"),
}
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


def find_tables(folder: Path, files: Sequence[Path]) -> Holdings | None:
    """The images that cases.csv and the tables of a split name, and those in healthy/."""
    tables = [table for of_part in split_tables(folder).values() for table in of_part]
    if "image" in header_of(folder / "cases.csv"):
        tables.insert(0, folder / "cases.csv")
    if not tables:
        return None
    cases: dict[str, Case] = {}
    missing: list[str] = []
    for table in tables:
        of_table, not_there = cases_on_disk(table)
        missing += not_there
        for case in of_table:
            cases.setdefault(os.path.realpath(case.image), case)
    for path in files:
        if path.relative_to(folder).parts[0] == "healthy" and is_image(path):
            cases.setdefault(os.path.realpath(path), Case(path, None, subject_of(path), stem_of(path)))
    return Holdings(list(cases.values()), missing)


def header_of(table: Path) -> list[str]:
    """The cells of a table's first line, packed or not; none where it can't be read."""
    try:
        with (gzip.open if table.suffix.lower() == ".gz" else open)(table, "rb") as file:
            line = file.readline(2**16).decode("utf-8-sig")
        return [cell.strip() for cell in next(csv.reader([line]), [])]
    except (OSError, EOFError, zlib.error, UnicodeDecodeError, csv.Error):
        return []


LAYOUT: Final = Layout(
    description="tables: cases.csv, or train.csv, val.csv and test.csv, with a column image",
    find=find_tables,
    general=True,
)
