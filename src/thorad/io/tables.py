"""CSV tables: a user's, read with errors that name the file and the line to correct, and all that thorad writes."""

import csv
import gzip
import io
import os
import re
import zlib
from collections.abc import Iterable, Mapping, Sequence
from numbers import Number
from pathlib import Path

from thorad.errors import ThoradError
from thorad.io.atomic import write_atomic
from thorad.io.text import original, reversible

FORMULA = re.compile(r"'*[=+\-@]")
"""How a cell begins that a spreadsheet takes for a formula, or that an apostrophe keeps from it."""

NUMBER = re.compile(r"[+-]?[0-9]+(\.[0-9]*)?(e[+-]?[0-9]+)?")
"""What begins likewise and is none."""

SHOWN = 5
MOST_REASONS = 20
"""Of files that were left out: each is a kind of file, so there are few, and the rarest may matter most."""
"""How many offending entries an error message lists before it only counts the rest."""

Row = tuple[int, dict[str, str]]
"""The line a row ends on, and {column: cell}."""


def listing(entries: Sequence[str]) -> str:
    """The first few entries, and how many there are beside them: `a, b, c, d, e and 7 more`."""
    shown = ", ".join(entries[:SHOWN])
    return f"{shown} and {len(entries) - SHOWN} more" if len(entries) > SHOWN else shown


def counted(left_out: Mapping[str, int]) -> str:
    """The most frequent of {why files were left out: how many}: `Left out 9: .txt (7), hidden (2).`; empty for none."""
    if not left_out:
        return ""
    frequent = sorted(left_out, key=lambda reason: (-left_out[reason], reason))
    reasons = [f"{reason} ({left_out[reason]})" for reason in frequent[:MOST_REASONS]]
    more = f" and {len(frequent) - MOST_REASONS} more reasons" * (len(frequent) > MOST_REASONS)
    return f"Left out {sum(left_out.values())}: {', '.join(reasons)}{more}."


def read_table(path: Path, columns: Sequence[str]) -> list[Row]:
    """The rows of a comma-separated UTF-8 table with a header line that has these columns, others are kept too.

    The file may be packed, .csv.gz. Cells are without surrounding blanks, and as they were before `write_table` has
    written them; blank lines are left out.

    Raises:
        ThoradError: unreadable, not UTF-8, not a table, a column missing or named twice, a row of another length,
            no row.
    """
    rows: list[Row] = []
    opened = gzip.open if path.suffix.lower() == ".gz" else open
    try:
        with opened(path, "rt", newline="", encoding="utf-8-sig") as file:
            reader = csv.reader(file, strict=True)
            header = [cell.strip() for cell in next(reader, [])]
            _check_header(path, header, columns)
            for cells in reader:
                if not any(cell.strip() for cell in cells):
                    continue
                if len(cells) != len(header):
                    raise ThoradError(
                        f"{path}, line {reader.line_num}: found {len(cells)} cells, expected {len(header)} as in the "
                        "header. Put cells that hold a comma in double quotes."
                    )
                rows.append((reader.line_num, dict(zip(header, map(_read_cell, cells), strict=True))))
    except (UnicodeDecodeError, csv.Error) as error:
        raise ThoradError(f"{path}: not CSV in UTF-8 ({error}). Save it as comma-separated CSV in UTF-8.") from error
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise ThoradError(f"{path}: can't be unpacked ({error}). Copy it again from where it came from.") from error
    except OSError as error:
        raise ThoradError(f"{path}: can't be read ({error.strerror}). Check the path and its permissions.") from error
    if not rows:
        raise ThoradError(f"{path}: the table has a header but no row. Add one row for each image.")
    return rows


def write_table(path: Path, columns: Sequence[str], rows: Iterable[Mapping[str, object]]) -> None:
    r"""Write a comma-separated UTF-8 table with a header line, whole or not at all.

    Of the rows, {column: cell}, what is missing or None is an empty cell; what is no column is left out. Text that a
    spreadsheet would run as a formula gets an apostrophe before it; characters that act on a terminal are written out,
    as `\x1b`.
    """
    write_atomic(path, table_content(columns, rows))


def table_content(columns: Sequence[str], rows: Iterable[Mapping[str, object]]) -> bytes:
    """What `write_table` writes."""
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, restval="", extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows({column: _written_cell(cell) for column, cell in row.items()} for row in rows)
    return text.getvalue().encode()


def _written_cell(cell: object) -> object:
    """A number as it is; text as `_read_cell` takes it."""
    if cell is None or isinstance(cell, Number):
        return cell
    text = reversible(str(cell))
    return f"'{text}" if FORMULA.match(text) and not NUMBER.fullmatch(text) else text


def _read_cell(text: str) -> str:
    text = text.strip()
    return original(text[1:] if text.startswith("'") and FORMULA.match(text) else text)


def files_in_column(table: Path, rows: Sequence[Row], column: str) -> list[Path]:
    """The files that a column names, one for each row, relative to the table's folder.

    Raises:
        ThoradError: empty cells, or files that don't exist; lists the first few with their lines and counts all.
    """
    empty = [str(line) for line, row in rows if not row[column]]
    if empty:
        raise ThoradError(f"{table}: the column {column} is empty in line {listing(empty)}. Name a file in every row.")
    # Path.is_file raises for names that are too long or hold a NUL; such a file is just not there.
    missing = [
        f"{row[column]} (line {line})"
        for line, row in rows
        if not os.path.isfile(table.parent / row[column])  # noqa: PTH113
    ]
    if missing:
        raise ThoradError(
            f"{table}: {len(missing)} of the {len(rows)} files in the column {column} can't be found: "
            f"{listing(missing)}. Paths are relative to the table's folder, {table.parent}."
        )
    return [table.parent / row[column] for _, row in rows]


def images_named_twice(rows: Sequence[Row], images: Sequence[Path]) -> list[str]:
    """`a.png (lines 2 and 5)` for each row that names the image of an earlier one, however the path is written."""
    first_line: dict[Path, int] = {}
    twice: list[str] = []
    for (line, row), image in zip(rows, images, strict=True):
        first = first_line.setdefault(image.resolve(), line)
        if first != line:
            twice.append(f"{row['image']} (lines {first} and {line})")
    return twice


def refuse_images_named_twice(table: Path, rows: Sequence[Row], images: Sequence[Path], advice: str) -> None:
    """Refuse a table whose rows name one of their images twice, which would count twice.

    The error lists the first few with their lines, counts all, and gives the advice how to say it in one row.
    """
    twice = images_named_twice(rows, images)
    if twice:
        raise ThoradError(f"{table}: {len(twice)} images are named again: {listing(twice)}. {advice}")


def _check_header(path: Path, header: Sequence[str], columns: Sequence[str]) -> None:
    missing = [column for column in columns if column not in header]
    if missing:
        hint = " It looks separated by semicolons; save it comma-separated." if ";" in "".join(header) else ""
        raise ThoradError(
            f"{path}: no column {listing(missing)} in the first line; found {listing(header) or 'nothing'}. "
            f"Expected a header with {', '.join(columns)}.{hint}"
        )
    twice = sorted({column for column in header if header.count(column) > 1})
    if twice:
        raise ThoradError(f"{path}: the header names {listing(twice)} more than once. Keep one column of each name.")
