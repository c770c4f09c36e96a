"""Boxes around findings in X-rays: Pascal VOC XML, YOLO and plain text, and GRAZPEDWRI-DX's own table.

Coordinates are in px of the image's own grid: pixel i reaches from i to i + 1, so that right and bottom are exclusive.
GRAZPEDWRI-DX: Nagy et al., A pediatric wrist trauma X-ray dataset, Scientific Data 2022.
"""

import gzip
import math
import tempfile
import xml.etree.ElementTree as ET
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from thorad.errors import ThoradError
from thorad.io.tables import Row, read_table

if TYPE_CHECKING:
    from thorad.io.preprocess import Placement

GRAZPEDWRI_CLASSES = (
    "boneanomaly",
    "bonelesion",
    "foreignbody",
    "fracture",
    "metal",
    "periostealreaction",
    "pronatorsign",
    "softtissue",
    "text",
)
"""What the numbers 0 to 8 stand for in the data set's YOLO files."""

LARGEST_ANNOTATION = 2**20
"""bytes; thousands of boxes."""

LARGEST_TABLE = 2**28
"""bytes, unpacked; the data set's own table has 2 MB."""

BEYOND = 1.0
"""px that a box may reach beyond the image, and is cut to it: rounding, and VOC files that count pixels from 1."""


@dataclass(frozen=True)
class Box:
    """A rectangle around one finding; px, right and bottom exclusive."""

    label: str
    left: float
    top: float
    right: float
    bottom: float


@dataclass(frozen=True)
class WristImage:
    """One row of GRAZPEDWRI-DX's own table."""

    name: str
    """The image's file name without its suffix (column filestem)."""

    subject: str
    """Patient (column patient_id): one patient has up to 30 images, so splits go by it."""

    study: int
    """Which of the patient's examinations (column study_number), from 1."""

    age: float | None
    """Years."""

    sex: str
    """F, M or O (column gender)."""

    laterality: str
    """L or R."""

    projection: int
    """1 posteroanterior, 2 lateral, 3 oblique."""

    ao_classification: str
    """Of the fractures, separated by semicolons; empty for none."""

    fracture_visible: bool
    metal: bool
    cast: bool
    osteopenia: bool
    diagnosis_uncertain: bool
    initial_exam: bool

    pixel_spacing: float | None
    """mm."""


def read_boxes(
    path: Path, image_height: int, image_width: int, *, classes: Sequence[str] = GRAZPEDWRI_CLASSES
) -> list[Box]:
    """Read the boxes of one image.

    The formats: Pascal VOC in XML; text of `class centre_x centre_y width height` in shares of the image (YOLO) or of
    `class left top right bottom` in px, one box a line. A text in which no number is above 1 is YOLO.

    Args:
        path: an .xml or .txt file.
        image_height: of the image that they belong to, px.
        image_width: the same.
        classes: what a whole number stands for where a text gives one for the class.

    Raises:
        ThoradError: unreadable, not UTF-8, neither format, damaged, without a box, for an image of another size, boxes
            without area or outside the image.
    """
    text = _annotation(path)
    if path.suffix.lower() == ".xml" or text.lstrip().startswith("<"):
        boxes = _voc_boxes(path, text, image_height, image_width)
    else:
        boxes = _text_boxes(path, text, image_height, image_width, classes)
    if not boxes:
        raise ThoradError(f"{path}: no box; expected at least one. Leave the column empty for a healthy image.")
    return [_inside(path, number, box, image_height, image_width) for number, box in enumerate(boxes, start=1)]


def read_dataset_table(path: Path) -> list[WristImage]:
    """Read GRAZPEDWRI-DX's own table, `dataset.csv` or `dataset.csv.gz`.

    Raises:
        ThoradError: it can't be read, lacks a column, holds a value that can't be, or names an image twice.
    """
    flags = ("fracture_visible", "metal", "cast", "osteopenia", "diagnosis_uncertain", "initial_exam")
    columns = ("filestem", "patient_id", "study_number", "age", "gender", "laterality", "projection")
    rows = _read_packed_table(path, [*columns, "ao_classification", *flags, "pixel_spacing"])
    images: list[WristImage] = []
    first_line: dict[str, int] = {}
    for line, row in rows:
        if not row["filestem"] or not row["patient_id"]:
            raise ThoradError(f"{path}, line {line}: filestem or patient_id is empty. Name the image and its patient.")
        first = first_line.setdefault(row["filestem"], line)
        if first != line:
            raise ThoradError(f"{path}: {row['filestem']} stands in lines {first} and {line}. Keep one of them.")
        for column in flags:
            _expect(path, line, column, row[column], row[column] in ("", "0", "1"), "1, 0 or nothing")
        for column, allowed in {"projection": ("1", "2", "3"), "laterality": ("L", "R")}.items():
            _expect(path, line, column, row[column], row[column] in allowed, " or ".join(allowed))
        study = row["study_number"]
        _expect(path, line, "study_number", study, study.isascii() and study.isdigit(), "a whole number")
        images.append(
            WristImage(
                name=row["filestem"],
                subject=row["patient_id"],
                study=int(study),
                age=_number_or_nothing(path, line, "age", row["age"]),
                sex=row["gender"],
                laterality=row["laterality"],
                projection=int(row["projection"]),
                ao_classification=row["ao_classification"],
                fracture_visible=row["fracture_visible"] == "1",
                metal=row["metal"] == "1",
                cast=row["cast"] == "1",
                osteopenia=row["osteopenia"] == "1",
                diagnosis_uncertain=row["diagnosis_uncertain"] == "1",
                initial_exam=row["initial_exam"] == "1",
                pixel_spacing=_number_or_nothing(path, line, "pixel_spacing", row["pixel_spacing"]),
            )
        )
    return images


def boxes_to_model_grid(boxes: Sequence[Box], placement: "Placement") -> list[Box]:
    """Move boxes as `to_model_input` moves pixels: into the square, then to the model's grid; px there, not rounded."""
    zoom = placement.size / placement.side
    return [
        Box(
            label=box.label,
            left=(box.left + placement.left) * zoom,
            top=(box.top + placement.top) * zoom,
            right=(box.right + placement.left) * zoom,
            bottom=(box.bottom + placement.top) * zoom,
        )
        for box in boxes
    ]


def voc_xml(boxes: Sequence[Box], image_height: int, image_width: int) -> bytes:
    """The content of a Pascal VOC file, that `read_boxes` gives back as they are."""
    root = ET.Element("annotation")
    size = ET.SubElement(root, "size")
    for tag, length in {"width": image_width, "height": image_height, "depth": 1}.items():
        ET.SubElement(size, tag).text = str(length)
    for box in boxes:
        finding = ET.SubElement(root, "object")
        ET.SubElement(finding, "name").text = box.label
        bounds = ET.SubElement(finding, "bndbox")
        for tag, value in {"xmin": box.left, "ymin": box.top, "xmax": box.right, "ymax": box.bottom}.items():
            ET.SubElement(bounds, tag).text = repr(float(value)).removesuffix(".0")
    ET.indent(root)
    content: bytes = ET.tostring(root, encoding="utf-8", xml_declaration=True)
    return content + b"\n"


def _annotation(path: Path) -> str:
    if path.suffix.lower() not in (".xml", ".txt"):
        raise ThoradError(
            f"{path}: an unknown format of boxes; expected Pascal VOC (.xml), or YOLO or "
            "`class left top right bottom` (.txt). Convert it to one of these."
        )
    try:
        if path.stat().st_size > LARGEST_ANNOTATION:
            raise ThoradError(
                f"{path}: {path.stat().st_size / 2**20:.1f} MiB, more than the boxes of one image can need; expected "
                "1 MiB at most. Check that it is the right file."
            )
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ThoradError(f"{path}: not UTF-8 text ({error.reason}). Save the boxes as UTF-8.") from error
    except (OSError, ValueError) as error:
        raise ThoradError(f"{path}: can't be read ({error}). Check the path and its permissions.") from error


def _voc_boxes(path: Path, text: str, image_height: int, image_width: int) -> list[Box]:
    # Entities, by which a small file grows huge or reads other files, are declared in a document type only.
    if "<!DOCTYPE" in text:
        raise ThoradError(f"{path}: the XML has a document type; expected a plain Pascal VOC annotation. Remove it.")
    try:
        root = ET.fromstring(text)
    except ET.ParseError as error:
        raise ThoradError(f"{path}: damaged XML ({error}). Copy it again from where it came from.") from error
    if root.tag != "annotation":
        raise ThoradError(
            f"{path}: the XML holds <{root.tag}>; expected Pascal VOC, <annotation> with <object>s. Convert it."
        )
    for tag, expected in {"width": image_width, "height": image_height}.items():
        stated = (root.findtext(f"size/{tag}") or "").strip()
        if stated not in ("", "0") and _number(stated) != expected:
            raise ThoradError(
                f"{path}: made for an image of {tag} {stated} px, the image has {expected} px. "
                "Use the boxes of this image, on its own grid."
            )
    boxes: list[Box] = []
    for number, finding in enumerate(root.iter("object"), start=1):
        label = " ".join((finding.findtext("name") or "").split())
        edges: list[float] = []
        for tag in ("xmin", "ymin", "xmax", "ymax"):
            found = (finding.findtext(f"bndbox/{tag}") or "").strip()
            edge = _number(found)
            if edge is None or not label:
                raise ThoradError(
                    f"{path}, object {number}: found name {label!r} and {tag} {found!r}; expected a name, and a bndbox "
                    "of four numbers. Mend or remove the object."
                )
            edges.append(edge)
        boxes.append(Box(label, *edges))
    return boxes


def _text_boxes(path: Path, text: str, image_height: int, image_width: int, classes: Sequence[str]) -> list[Box]:
    found: list[tuple[str, list[float]]] = []
    for number, line in enumerate(text.splitlines(), start=1):
        cells = line.split()
        if not cells:
            continue
        values = [value for value in map(_number, cells[1:]) if value is not None]
        if len(cells) != 5 or len(values) != 4:
            raise ThoradError(
                f"{path}, line {number}: found {line.strip()[:80]!r}; expected `class centre_x centre_y width height` "
                "in shares of the image (YOLO) or `class left top right bottom` in px, separated by blanks."
            )
        label = cells[0]
        if label.isascii() and label.isdigit():
            if int(label) >= len(classes):
                raise ThoradError(
                    f"{path}, line {number}: class {label}; expected 0 to {len(classes) - 1} ({', '.join(classes)}). "
                    "Write the class's name instead of its number."
                )
            label = classes[int(label)]
        found.append((label, values))
    in_shares = all(value <= 1 for _, values in found for value in values)
    if not in_shares:
        return [Box(label, *values) for label, values in found]
    return [
        Box(
            label,
            left=(x - width / 2) * image_width,
            top=(y - height / 2) * image_height,
            right=(x + width / 2) * image_width,
            bottom=(y + height / 2) * image_height,
        )
        for label, (x, y, width, height) in found
    ]


def _inside(path: Path, number: int, box: Box, height: int, width: int) -> Box:
    """The box, cut to the image."""
    edges = f"left {box.left:g}, top {box.top:g}, right {box.right:g}, bottom {box.bottom:g}"
    if not (box.right > box.left and box.bottom > box.top):
        raise ThoradError(
            f"{path}, box {number} ({box.label}): {edges} px has no area; expected left < right and top < bottom. "
            "Mend or remove it."
        )
    cut = Box(box.label, max(box.left, 0), max(box.top, 0), min(box.right, width), min(box.bottom, height))
    beyond = max(-box.left, -box.top, box.right - width, box.bottom - height)
    if beyond > BEYOND or not (cut.right > cut.left and cut.bottom > cut.top):
        raise ThoradError(
            f"{path}, box {number} ({box.label}): {edges} px lies outside the image of {width} x {height} px; expected "
            f"0 to {width} and 0 to {height}. Check that the boxes belong to this image, unscaled."
        )
    return cut


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


def _number(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def _number_or_nothing(path: Path, line: int, column: str, cell: str) -> float | None:
    value = _number(cell) if cell else None
    _expect(path, line, column, cell, not cell or (value is not None and value >= 0), "a number or nothing")
    return value


def _expect(path: Path, line: int, column: str, found: str, allowed: bool, expected: str) -> None:
    if not allowed:
        raise ThoradError(f"{path}, line {line}: {column} is {found!r}; expected {expected}. Mend the cell.")
