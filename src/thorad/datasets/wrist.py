"""GRAZPEDWRI-DX as it is published, and the cases of the paper's wrist experiment.

Nagy et al., A pediatric wrist trauma X-ray dataset (GRAZPEDWRI-DX) for machine learning, Scientific Data 2022. Images
and annotations are found by their stems, wherever below the folder.

The paper's own split is not published. The choice here:

- Posteroanterior images only (projection 1), left and right as they are.
- Diseased: images with a box that is no `text`, the letters that mark the side.
- Healthy: images without such a box, of patients of whom no posteroanterior image has one and whose rows, of whatever
  projection, all leave `fracture_visible` and `metal` empty: the image after a fracture is not a healthy wrist's.
- By patient: a tenth of the healthy patients, drawn by a hash of their number, is for the test, the others are for
  training. All diseased images are for the test. No patient is on both sides.
"""

import hashlib
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from thorad.datasets.boxes import Box, read_boxes, voc_xml
from thorad.datasets.cases import Case
from thorad.datasets.contract import DataSet, Layout
from thorad.datasets.layouts import shown
from thorad.datasets.plain import header_of
from thorad.errors import ThoradError
from thorad.io.atomic import write_atomic
from thorad.io.shapes import shape_of
from thorad.io.tables import read_table, write_table

TABLES: Final = ("dataset.csv", "dataset.csv.gz")
EXPECTED: Final = (
    "dataset.csv or dataset.csv.gz, images_part1/*.png ... images_part4/*.png or images/*.png, and "
    "folder_structure/pascalvoc/*.xml or folder_structure/yolov5/labels/*.txt"
)

NAME: Final = re.compile(r"(\d{4})_\d{10}_\d{2}_WRI-[LR]\d_[FMO]\d{3}", re.IGNORECASE)
"""patient_time_study_side_sex-and-age."""

MARKER: Final = "text"  # the label of the letters that mark the side: no finding
POSTEROANTERIOR: Final = 1  # projection
TEST_TENTHS: Final = 1  # of ten healthy patients


@dataclass(frozen=True)
class WristImage:
    """One row of the data set's own table, as far as thorad uses it."""

    name: str  # the image's file name without its suffix (column filestem)
    subject: str  # patient (column patient_id), of up to 30 images
    study: int  # which of the patient's examinations (column study_number), from 1
    projection: int  # 1 posteroanterior, 2 lateral, 3 oblique
    fracture_visible: bool
    metal: bool


@dataclass(frozen=True)
class WristFiles:
    """The data set's files, matched by their stems."""

    rows: dict[str, WristImage]  # {stem: row} of the whole table
    with_both: dict[str, tuple[WristImage, Path, Path]]  # {stem: (row, image, annotation)}, of all projections
    rows_without_image: list[str]
    images_without_row: list[Path]
    without_annotation: list[str]  # rows with an image; whether they are healthy can't be known


@dataclass(frozen=True)
class WristCases:
    """The posteroanterior images, each on one side."""

    diseased: list[Case]
    healthy_test: list[Case]
    healthy_training: list[Case]
    findings: dict[str, list[Box]]  # {name: the boxes of a diseased image but for the letters}; px of its own grid
    unclear: list[str]  # without boxes, but of patients with boxes, a fracture or metal in other images or rows
    left_out: dict[str, str]  # {stem: why it can't be read}


def dataset_table(root: Path) -> Path | None:
    """The data set's own table, None where it isn't there."""
    return next((root / name for name in TABLES if (root / name).is_file()), None)


def read_dataset_table(path: Path) -> list[WristImage]:
    """Read the data set's own table, `dataset.csv` or `dataset.csv.gz`.

    Raises:
        ThoradError: it can't be read, lacks a column, holds a value that can't be, or names an image twice.
    """
    allowed = {"projection": ("1", "2", "3"), "fracture_visible": ("1", "0", ""), "metal": ("1", "0", "")}
    rows = read_table(path, ["filestem", "patient_id", "study_number", *allowed])
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
        fracture, metal = row["fracture_visible"] == "1", row["metal"] == "1"
        images.append(WristImage(name, row["patient_id"], int(study), int(row["projection"]), fracture, metal))
    return images


def find_grazpedwri(folder: Path, files: Sequence[Path]) -> DataSet | None:
    """The PNG images, with annotations of the same stems. Where the table is missing, names tell whose they are."""
    table = dataset_table(folder)
    if table is not None and not {"filestem", "patient_id"} <= set(header_of(table)):
        table = None
    images = [path for path in files if path.suffix.lower() == ".png"]
    if table is None and not any(NAME.fullmatch(path.stem) for path in images):
        return None
    rows = {row.name: row for row in read_dataset_table(table)} if table else {}
    annotations = _annotations(files)
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
    return DataSet(cases, missing, odd)


LAYOUT: Final = Layout(
    description="GRAZPEDWRI-DX: dataset.csv, PNG images and annotations of the same names",
    find=find_grazpedwri,
    annotations_are_findings=False,  # boxes also lie around the letters that tell the side
)


def find_wrist_files(root: Path) -> WristFiles:
    """Match rows, images and annotations by their stems; none of the images is opened.

    Raises:
        ThoradError: no table, one that can't be read, or no image with a row and an annotation.
    """
    table = dataset_table(root)
    if table is None:
        raise ThoradError(f"{root}: no {' or '.join(TABLES)} in this folder. Expected {EXPECTED}.")
    rows = {row.name: row for row in read_dataset_table(table)}
    images = _by_stem(root.rglob("*.png"))
    annotations = _annotations([*root.rglob("*.txt"), *root.rglob("*.xml")])
    known = [name for name in rows if name in images]
    files = WristFiles(
        rows=rows,
        with_both={name: (rows[name], images[name], annotations[name]) for name in known if name in annotations},
        rows_without_image=[name for name in rows if name not in images],
        images_without_row=[path for name, path in images.items() if name not in rows],
        without_annotation=[name for name in known if name not in annotations],
    )
    if not files.with_both:
        raise ThoradError(
            f"{root}: {len(rows)} rows, {len(images)} PNG images, of which {len(known)} have a row, and none of these "
            f"an annotation of the same stem. Expected {EXPECTED}."
        )
    return files


def sort_wrist_images(files: WristFiles, on_progress: Callable[[int, int], None] | None = None) -> WristCases:
    """Read the annotations of the posteroanterior images and say which image is what; see the module's docstring."""
    chosen = {name: files_of for name, files_of in files.with_both.items() if files_of[0].projection == POSTEROANTERIOR}
    findings: dict[str, list[Box]] = {}
    cases: list[Case] = []
    left_out: dict[str, str] = {}
    for done, (name, (row, image, annotation)) in enumerate(chosen.items(), start=1):
        try:
            boxes = [box for box in _boxes(annotation, *shape_of(image)) if box.label != MARKER]
        except ThoradError as error:
            left_out[name] = str(error)
        else:
            cases.append(Case(image, None, row.subject, name, boxes=annotation if boxes else None))
            findings |= {name: boxes} if boxes else {}
        if on_progress is not None:
            on_progress(done, len(chosen))
    patients = {case.subject for case in cases if case.has_finding}
    patients |= {row.subject for row in files.rows.values() if row.fracture_visible or row.metal}
    healthy = [case for case in cases if case.subject not in patients]
    return WristCases(
        diseased=[case for case in cases if case.has_finding],
        healthy_test=[case for case in healthy if is_test_patient(case.subject)],
        healthy_training=[case for case in healthy if not is_test_patient(case.subject)],
        findings=findings,
        unclear=[case.name for case in cases if not case.has_finding and case.subject in patients],
        left_out=left_out,
    )


def is_test_patient(subject: str) -> bool:
    """Whether a healthy patient's images are for the test: the same answer wherever and whenever it is asked."""
    return int(hashlib.sha256(subject.encode()).hexdigest(), 16) % 10 < TEST_TENTHS


def write_wrist_cases(cases: WristCases, out: Path) -> Path:
    """Write the boxes but for the letters (out/boxes/*.xml), out/train.csv with the healthy images for training, and
    out/cases.csv for the protocol `boxes`, with the diseased images and the healthy ones for the test.

    `elsewhere` is empty: what is found anywhere outside the boxes is false, also on the letters that mark the side.

    Returns:
        out/cases.csv, with the columns image, boxes, elsewhere, subject and kind.

    Raises:
        ThoradError: no diseased image or no healthy one for the test, or `out` can't be written.
    """
    if not cases.diseased or not cases.healthy_test:
        raise ThoradError(
            f"Found {len(cases.diseased)} posteroanterior images with boxes and {len(cases.healthy_test)} healthy ones "
            f"for the test ({len(cases.healthy_training)} for training); expected some of both. Is it the whole data "
            "set?"
        )
    rows: list[dict[str, str]] = []
    for case in [*cases.diseased, *cases.healthy_test]:
        row = {"image": str(case.image.resolve()), "subject": case.subject, "kind": "healthy"}
        findings = cases.findings.get(case.name)
        if findings:
            row |= {"boxes": f"boxes/{case.name}.xml", "kind": ";".join(sorted({box.label for box in findings}))}
            write_atomic(out / row["boxes"], voc_xml(findings, *shape_of(case.image)))
        rows.append(row)
    training = [{"image": str(case.image.resolve()), "subject": case.subject} for case in cases.healthy_training]
    write_table(out / "train.csv", ["image", "subject"], training)
    write_table(out / "cases.csv", ["image", "boxes", "elsewhere", "subject", "kind"], rows)
    return out / "cases.csv"


def _by_stem(paths: Iterable[Path]) -> dict[str, Path]:
    """The first of each stem, in the order of their paths."""
    return {path.stem: path for path in sorted(paths, reverse=True)}


def _annotations(files: Iterable[Path]) -> dict[str, Path]:
    """By their stems. The data set gives the same boxes twice; VOC has px, YOLO six digits of a fraction."""
    files = list(files)
    yolo, voc = (_by_stem(path for path in files if path.suffix.lower() == ending) for ending in (".txt", ".xml"))
    return yolo | voc


def _boxes(annotation: Path, height: int, width: int) -> list[Box]:
    """As `read_boxes`, but an annotation without a box is what it is for an image without a finding."""
    try:
        content = annotation.read_bytes()
    except OSError as error:
        raise ThoradError(f"{annotation}: can't be read ({error.strerror}). Check its permissions.") from error
    empty = b"<object>" not in content and b"</annotation>" in content
    if empty or (annotation.suffix.lower() == ".txt" and not content.strip()):
        return []
    return read_boxes(annotation, height, width)
