"""GRAZPEDWRI-DX as it is published, and the cases of the paper's wrist experiment.

Nagy et al., A pediatric wrist trauma X-ray dataset (GRAZPEDWRI-DX) for machine learning, Scientific Data 2022. Images
and annotations are found by their stems, wherever below the folder.

The split is the paper's own, whose lists of file names thorad carries (`datasets.published`): healthy images for
training, validation and test, and those with each of six findings, all posteroanterior. A diseased image is listed once
for each finding that it has, and its boxes of these findings are what is to be found. The lists part images, not
patients, and not quite images either: `overlaps` counts what is on both sides. An image that is listed for a finding
and for the test's healthy ones counts as diseased here.
"""

import re
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple

from thorad.datasets.boxes import Box, read_boxes, voc_xml
from thorad.datasets.cases import Case
from thorad.datasets.contract import DataSet, Layout
from thorad.datasets.layouts import shown
from thorad.datasets.plain import header_of
from thorad.datasets.published import FINDINGS, NORMALS, wrist_split
from thorad.errors import ThoradError
from thorad.io.atomic import write_atomic
from thorad.io.shapes import shape_of
from thorad.io.tables import read_table, write_table

TABLES: Final = ("dataset.csv", "dataset.csv.gz")
EXPECTED: Final = (
    "images_part1/*.png ... images_part4/*.png or images/*.png, and folder_structure/pascalvoc/*.xml or "
    "folder_structure/yolov5/labels/*.txt"
)

NAME: Final = re.compile(r"(\d{4})_\d{10}_\d{2}_WRI-[LR]\d_[FMO]\d{3}", re.IGNORECASE)
"""patient_time_study_side_sex-and-age."""


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
class WristCases:
    """The images of the paper's experiment that are there."""

    diseased: list[Case]
    normal: dict[str, list[Case]]  # {part of `NORMALS`: healthy images}
    findings: dict[str, list[Box]]  # {name: the listed findings' boxes of a diseased image}; px of its own grid
    absent: dict[str, int]  # {part: how many of its listed images are not there}
    otherwise: dict[str, int]  # {finding: images with another number of its boxes than the lists have annotations}
    left_out: dict[str, str]  # {name: why a diseased image is of no use}


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


def find_wrist_cases(root: Path, on_progress: Callable[[int, int], None] | None = None) -> WristCases:
    """Find the images of the paper's lists by their names, and read the boxes of the diseased ones.

    Raises:
        ThoradError: none of the listed images is there.
    """
    split, images = wrist_split(), _by_stem(root.rglob("*.png"))
    annotations = _annotations([*root.rglob("*.txt"), *root.rglob("*.xml")])
    absent = {part: sum(name not in images for name in names) for part, names in split.items()}
    with_findings = {name for kind in FINDINGS for name in split[kind]}
    normal = {
        part: [
            Case(images[name], None, patient_of(name), name)
            for name in split[part]
            if name in images and not (part == "test" and name in with_findings)
        ]
        for part in NORMALS
    }
    listed = list(dict.fromkeys(name for kind in FINDINGS for name in split[kind] if name in images))
    if not listed and not any(normal.values()):
        raise ThoradError(
            f"{root}: {len(images)} PNG images, of which none is in the paper's lists. Expected {EXPECTED}."
        )
    found = WristCases([], normal, {}, absent, dict.fromkeys(FINDINGS, 0), {})
    for done, name in enumerate(listed, start=1):
        wanted = {kind: split[kind][name] for kind in FINDINGS if name in split[kind]}
        try:
            boxes = _listed_boxes(images[name], annotations.get(name), wanted)
        except ThoradError as error:
            found.left_out[name] = str(error)
        else:
            found.diseased.append(Case(images[name], None, patient_of(name), name, boxes=annotations[name]))
            found.findings[name] = boxes
            for kind, count in wanted.items():
                found.otherwise[kind] += sum(box.label == kind for box in boxes) != count
        if on_progress is not None:
            on_progress(done, len(listed))
    return found


def patient_of(name: str) -> str:
    """The patient's number, with which the data set's image names begin."""
    return str(int(name[:4]))


class Overlaps(NamedTuple):
    """What the paper's lists have on both sides."""

    patients: int  # with images for training, and for the test, healthy or not
    trained: int  # images for training that are listed for a finding, too
    tested: int  # images of the test's healthy ones that are listed for a finding, too


def overlaps() -> Overlaps:
    """Count it in the lists themselves, whatever is in a folder."""
    split = wrist_split()
    diseased = {name for kind in FINDINGS for name in split[kind]}
    tested = {patient_of(name) for name in diseased | split["test"].keys()}
    return Overlaps(
        len(tested & {patient_of(name) for name in split["train"]}),
        len(diseased & split["train"].keys()),
        len(diseased & split["test"].keys()),
    )


def _listed_boxes(image: Path, annotation: Path | None, wanted: Collection[str]) -> list[Box]:
    """An image's boxes of the findings that it is listed for; a ThoradError where there is none."""
    if annotation is None:
        raise ThoradError(f"{image}: no annotation of the same stem (.xml or .txt) below the folder.")
    boxes = read_boxes(annotation, *shape_of(image))
    kept = [box for box in boxes if box.label in wanted]
    if not kept:
        labels = ", ".join(sorted({box.label for box in boxes}))
        raise ThoradError(f"{annotation}: has boxes of {labels}; the paper's lists have {', '.join(wanted)}.")
    return kept


def write_wrist_cases(cases: WristCases, out: Path) -> Path:
    """Write the listed boxes (out/boxes/*.xml), out/train.csv and out/val.csv with the healthy images for training, and
    out/cases.csv for the protocol `boxes`, with the diseased images and the healthy ones for the test.

    `elsewhere` is empty: what is found anywhere outside the boxes is false, also on the letters that mark the side and
    on findings that the lists don't have (such as the pronator sign).

    Returns:
        out/cases.csv, with the columns image, boxes, elsewhere, subject and kind.

    Raises:
        ThoradError: no diseased image or no healthy one for the test, or `out` can't be written.
    """
    if not cases.diseased or not cases.normal["test"]:
        raise ThoradError(
            f"Found {len(cases.diseased)} of the paper's images with findings and {len(cases.normal['test'])} of its "
            f"healthy ones for the test ({len(cases.normal['train'])} for training); expected some of both. Is it the "
            "whole data set?"
        )
    rows: list[dict[str, str]] = []
    for case in [*cases.diseased, *cases.normal["test"]]:
        row = {"image": str(case.image.resolve()), "subject": case.subject, "kind": "healthy"}
        findings = cases.findings.get(case.name)
        if findings:
            row |= {"boxes": f"boxes/{case.name}.xml", "kind": ";".join(sorted({box.label for box in findings}))}
            write_atomic(out / row["boxes"], voc_xml(findings, *shape_of(case.image)))
        rows.append(row)
    for part, file in (("train", "train.csv"), ("validation", "val.csv")):
        healthy = [{"image": str(case.image.resolve()), "subject": case.subject} for case in cases.normal[part]]
        write_table(out / file, ["image", "subject"], healthy)
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
