"""Splits of a data set: every subject in one part, the same parts for the same seed, written as tables.

Subjects are ordered by a hash of the seed and their name, and the order is cut at the fractions. So the counts are what
was asked for, and one subject more or less moves at most one other across each cut. (A threshold on the hash itself
would move none, but a tenth of 20 subjects could be anything from 0 to 5.) Subjects with and without findings are cut
separately, so that each part has its share of both.
"""

import hashlib
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from thorad.datasets import DATASETS
from thorad.datasets.cases import FILES_BESIDE, Case
from thorad.datasets.check import Contents, same_content
from thorad.datasets.contract import DataSet
from thorad.datasets.plain import PARTS
from thorad.errors import ThoradError
from thorad.io.atomic import write_atomic
from thorad.io.tables import listing, table_content


@dataclass(frozen=True)
class Split:
    """What was written."""

    tables: dict[str, Path]  # {train, val or test: its table}
    parts: dict[str, list[Case]]
    left_out: list[Case]  # patients without a mask: an empty cell would call them healthy


def parse_fractions(text: str) -> tuple[float, float, float]:
    """Read `0.8,0.1,0.1`; a ThoradError where it isn't three numbers."""
    try:
        train, val, test = map(float, text.split(","))
    except ValueError as error:
        raise ThoradError(f"the fractions are {text!r}; expected three numbers, as 0.8,0.1,0.1.") from error
    return train, val, test


def split_data_set(cases: Sequence[Case], fractions: tuple[float, float, float], seed: int) -> dict[str, list[Case]]:
    """Sort cases into train, val and test, subject by subject.

    Args:
        cases: of any order; it changes nothing.
        fractions: of the subjects, for train, val and test; each at least 0, together 1.
        seed: random seed for the order of subjects.

    Returns:
        {part: its cases, in the order given}, without parts of fraction 0. Counts are rounded once for the subjects
        with findings and once for those without.

    Raises:
        ThoradError: fractions that are none, or a part that would be empty.
    """
    if not (all(0 <= share <= 1 for share in fractions) and math.isclose(sum(fractions), 1, abs_tol=1e-6)):
        given = ", ".join(f"{share:g}" for share in fractions)
        raise ThoradError(f"the fractions are {given}; expected three from 0 to 1 whose sum is 1, as 0.8,0.1,0.1.")
    with_findings = {case.subject for case in cases if case.has_finding}
    part_of: dict[str, str] = {}
    for stratum in (with_findings, {case.subject for case in cases} - with_findings):
        ordered = sorted(stratum, key=lambda subject: hashlib.sha256(f"{seed}:{subject}".encode()).digest())
        cuts = [math.floor(len(ordered) * sum(fractions[: index + 1]) + 0.5) for index in range(2)]
        cuts.append(len(ordered))
        for rank, subject in enumerate(ordered):
            part_of[subject] = next(part for part, cut in zip(PARTS, cuts, strict=True) if rank < cut)
    wanted = [part for part, share in zip(PARTS, fractions, strict=True) if share > 0]
    parts = {part: [case for case in cases if part_of[case.subject] == part] for part in wanted}
    empty = [part for part in wanted if not parts[part]]
    if empty:
        raise ThoradError(
            f"{len(part_of)} subjects are too few: {' and '.join(empty)} would be empty. Give larger shares, or 0 for "
            "a part that is not needed."
        )
    return parts


def write_split(data_set: DataSet, out: Path, fractions: tuple[float, float, float], seed: int) -> Split:
    """Split a data set and write out/train.csv, val.csv and test.csv.

    The columns are image, mask (of data sets with masks; an empty cell: healthy), boxes (of tables with boxes) and
    subject, and those of elsewhere, healthy_image, volume and slice that the data set's own tables fill; paths are
    relative to the tables' folder. GRAZPEDWRI-DX gets image and subject only: its annotations hold the letters in the
    image, too, and `wrist.write_wrist_cases` makes tables of findings.

    Raises:
        ThoradError: as `split_data_set`; a mask or the like that the data set's table names and that is not there, an
            image that it names twice; images in an archive, several masks of an image; the same content under two
            subjects, a volume of several subjects; another split in `out`; the disk.
    """
    _refuse_rows_in_doubt(data_set)
    only_labelled = DATASETS[data_set.kind].patients_only and any(case.masks for case in data_set.cases)
    left_out = [case for case in data_set.cases if only_labelled and not case.masks]
    cases = [case for case in data_set.cases if case.masks or not only_labelled]
    _refuse_what_no_table_holds(cases)
    parts = split_data_set(cases, fractions, seed)
    _refuse_leaks(parts)
    columns = _columns(data_set)
    contents = {part: _table(of_part, columns, out) for part, of_part in parts.items()}
    tables = {part: out / f"{part}.csv" for part in PARTS}
    for part, table in tables.items():
        if table.exists() and (part not in contents or table.read_bytes() != contents[part]):
            raise ThoradError(f"{table}: another split is there already. Name another folder, or remove its tables.")
    for part, content in contents.items():
        write_atomic(tables[part], content)
    return Split({part: tables[part] for part in contents}, parts, left_out)


def _refuse_rows_in_doubt(data_set: DataSet) -> None:
    """What its case lacks of a row would be lost in the split, too: an image whose mask is gone reads as healthy."""
    if data_set.missing_beside:
        raise ThoradError(
            f"{len(data_set.missing_beside)} masks, boxes or other files that belong to an image are missing: "
            f"{listing(data_set.missing_beside)}. A split without them would call diseased images healthy, or "
            "lose what else they say. Put them where the table says, relative to its folder, or correct the table; "
            "empty the cell of a mask only if its image is healthy."
        )
    if data_set.named_twice:
        raise ThoradError(
            f"{len(data_set.named_twice)} images are in several rows of a table: {listing(data_set.named_twice)}. Keep "
            "one row for each image, with all its lesions in one mask, or all its boxes in one file."
        )


def _refuse_what_no_table_holds(cases: Sequence[Case]) -> None:
    packed = sorted({case.archive for case in cases if case.archive})
    if packed:
        raise ThoradError(
            f"{packed[0]}: images in an archive can't be named in a table. Unpack it: tar -xf {packed[0].name}"
        )
    several = [case.name for case in cases if len(case.masks) > 1]
    if several:
        raise ThoradError(
            f"{len(several)} cases have more than one mask: {listing(several)}. A table has one mask for each image: "
            "combine them."
        )


def _refuse_leaks(parts: dict[str, list[Case]]) -> None:
    """One image or volume under two subjects' names would be trained on and measured on."""
    parts_of: dict[str, set[str]] = {}
    for part, of_part in parts.items():
        for case in of_part:
            parts_of.setdefault(case.volume or "", set()).add(part)
    parted = [volume for volume, in_parts in parts_of.items() if volume and len(in_parts) > 1]
    if parted:
        raise ThoradError(
            f"{len(parted)} volumes have slices of several subjects, which this split would separate: "
            f"{listing(parted)}. Give every volume a name of its own in the column volume, and all its slices one "
            "subject in the column subject."
        )
    part_of = {case.image: part for part, of_part in parts.items() for case in of_part}
    with Contents() as contents:
        groups = same_content([case for of_part in parts.values() for case in of_part], contents)
    for group in groups:
        if len({part_of[case.image] for case in group}) > 1:
            raise ThoradError(
                f"{group[0].image} and {group[1].image}: the same content under the subjects "
                f"{' and '.join(sorted({case.subject for case in group}))}, which this split would separate. Keep one "
                "of them; `thorad data check` lists all."
            )


def _columns(data_set: DataSet) -> list[str]:
    """The columns of its tables: without volume and slice each slice would be evaluated as a volume of its own."""
    beside: list[str] = []
    if DATASETS[data_set.kind].annotations_are_findings:
        beside = [column for column in FILES_BESIDE if any(getattr(case, column) for case in data_set.cases)]
        if not {"mask", "boxes"} & set(beside):
            beside.insert(0, "mask")
    volumes = any(case.volume is not None for case in data_set.cases)
    slices = any(case.slice_number is not None for case in data_set.cases)
    return ["image", *beside, "subject", *["volume"] * volumes, *["slice"] * slices]


def _table(cases: Sequence[Case], columns: Sequence[str], out: Path) -> bytes:
    def cell(path: Path | None) -> str:
        # Links stay as they are named, but `..` from a linked folder leads elsewhere.
        return "" if path is None else Path(os.path.relpath(path.absolute(), os.path.realpath(out))).as_posix()

    rows: list[dict[str, object]] = []
    for case in cases:
        files = {column: cell(getattr(case, column)) for column in ("image", *FILES_BESIDE)}
        rows.append({**files, "subject": case.subject, "volume": case.volume, "slice": case.slice_number})
    return table_content(columns, rows)
