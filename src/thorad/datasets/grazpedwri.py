"""GRAZPEDWRI-DX as it is published: its own table of images, and its cases.

Nagy et al., A pediatric wrist trauma X-ray dataset (GRAZPEDWRI-DX) for machine learning, Scientific Data 2022.
"""

import gzip
import re
import tempfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from thorad.datasets.cases import Case
from thorad.datasets.contract import Holdings, Layout
from thorad.datasets.names import shown
from thorad.datasets.tables import header_of
from thorad.errors import ThoradError
from thorad.io.tables import Row, read_table

TABLES: Final = ("dataset.csv", "dataset.csv.gz")
"""What the data set's own table is called."""

LARGEST_TABLE: Final = 2**28
"""bytes, unpacked; the data set's own table has 2 MB."""

NAME: Final = re.compile(r"(\d{4})_\d{10}_\d{2}_WRI-[LR]\d_[FMO]\d{3}", re.IGNORECASE)
"""patient_time_study_side_sex-and-age."""


@dataclass(frozen=True)
class WristImage:
    """One row of the data set's own table, as far as thorad uses it."""

    name: str
    """The image's file name without its suffix (column filestem)."""

    subject: str
    """Patient (column patient_id): one patient has up to 30 images, so splits go by it."""

    study: int
    """Which of the patient's examinations (column study_number), from 1."""

    projection: int
    """1 posteroanterior, 2 lateral, 3 oblique."""

    fracture_visible: bool
    metal: bool


def dataset_table(root: Path) -> Path | None:
    """The data set's own table, None where it isn't there."""
    return next((root / name for name in TABLES if (root / name).is_file()), None)


def read_dataset_table(path: Path) -> list[WristImage]:
    """Read the data set's own table, `dataset.csv` or `dataset.csv.gz`.

    Raises:
        ThoradError: it can't be read, lacks a column, holds a value that can't be, or names an image twice.
    """
    allowed = {"projection": ("1", "2", "3"), "fracture_visible": ("1", "0", ""), "metal": ("1", "0", "")}
    rows = _read_packed_table(path, ["filestem", "patient_id", "study_number", *allowed])
    images: list[WristImage] = []
    first_line: dict[str, int] = {}
    for line, row in rows:
        name, study = row["filestem"], row["study_number"]
        if not name or not row["patient_id"]:
            raise ThoradError(f"{path}, line {line}: filestem or patient_id is empty. Name the image and its patient.")
        first = first_line.setdefault(name, line)
        if first != line:
            raise ThoradError(f"{path}: {name} appears in lines {first} and {line}. Keep one of them.")
        for column, values in allowed.items():
            if row[column] not in values:
                expected = " or ".join(value or "nothing" for value in values)
                raise ThoradError(f"{path}, line {line}: {column} is {row[column]!r}; expected {expected}. Correct it.")
        if not (study.isascii() and study.isdigit()):
            raise ThoradError(f"{path}, line {line}: study_number is {study!r}; expected a whole number. Correct it.")
        images.append(
            WristImage(
                name=name,
                subject=row["patient_id"],
                study=int(study),
                projection=int(row["projection"]),
                fracture_visible=row["fracture_visible"] == "1",
                metal=row["metal"] == "1",
            )
        )
    return images


def find_grazpedwri(folder: Path, files: Sequence[Path]) -> Holdings | None:
    """The PNG images, with annotations of the same stems. Where the table is missing, names tell whose they are."""
    table = dataset_table(folder)
    if table is not None and not {"filestem", "patient_id"} <= set(header_of(table)):
        table = None
    images = [path for path in files if path.suffix.lower() == ".png"]
    if table is None and not any(NAME.fullmatch(path.stem) for path in images):
        return None
    rows = {row.name: row for row in read_dataset_table(table)} if table else {}
    annotations = {path.stem: path for ending in (".txt", ".xml") for path in files if path.suffix.lower() == ending}
    cases: list[Case] = []
    for image in images:
        row, named = rows.get(image.stem), NAME.fullmatch(image.stem)
        if row is not None or named is not None:
            subject = row.subject if row else str(int(named[1])) if named else image.stem
            session = str(row.study) if row else None
            cases.append(Case(image, None, subject, image.stem, boxes=annotations.get(image.stem), session=session))
    missing = [] if table else ["dataset.csv: patients are taken from the images' names instead"]
    if any(case.boxes for case in cases):
        missing += [f"{shown(case.image, folder)}: no annotation" for case in cases if case.boxes is None]
    stems = {image.stem for image in images}
    missing += [f"{name}: a row in dataset.csv, but no image" for name in rows if name not in stems]
    strays = [path for stem, path in annotations.items() if stem not in stems | rows.keys()]
    missing += [f"{shown(path, folder)}: no image" for path in strays if NAME.fullmatch(path.stem)]
    without_row = [image for image in images if table and image.stem not in rows]
    odd = [f"{shown(image, folder)}: no row in {table.name}" for image in without_row if table]
    return Holdings(cases, missing, odd)


def _read_packed_table(path: Path, columns: Sequence[str]) -> list[Row]:
    if path.suffix.lower() != ".gz":
        return read_table(path, columns)
    try:
        with gzip.open(path) as file:
            content = file.read(LARGEST_TABLE + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise ThoradError(f"{path}: can't be unpacked ({error}). Copy it again from where it came from.") from error
    if len(content) > LARGEST_TABLE:
        raise ThoradError(f"{path}: more than {LARGEST_TABLE >> 20} MiB unpacked. Check that it is the right file.")
    with tempfile.TemporaryDirectory() as folder:
        unpacked = Path(folder) / "dataset.csv"
        unpacked.write_bytes(content)
        try:
            return read_table(unpacked, columns)
        except ThoradError as error:
            raise ThoradError(str(error).replace(str(unpacked), str(path))) from error


LAYOUT: Final = Layout(
    description="GRAZPEDWRI-DX: dataset.csv, PNG images and annotations of the same names",
    find=find_grazpedwri,
    annotations_are_findings=False,  # boxes also lie around the letters that tell the side
)
