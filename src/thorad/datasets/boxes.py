"""Boxes around findings in X-rays: Pascal VOC XML, YOLO and plain text.

Coordinates are in px of the image's own grid: pixel i reaches from i to i + 1, so that right and bottom are exclusive.
"""

import math
import xml.etree.ElementTree as ET
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from thorad.errors import ThoradError

if TYPE_CHECKING:
    from thorad.io.preprocess import Placement

GRAZPEDWRI_CLASSES = (
    *("boneanomaly", "bonelesion", "foreignbody", "fracture", "metal"),
    *("periostealreaction", "pronatorsign", "softtissue", "text"),
)
"""What the numbers 0 to 8 stand for in the YOLO files of GRAZPEDWRI-DX (Nagy et al., Scientific Data 2022)."""

LARGEST_ANNOTATION = 2**20  # bytes; thousands of boxes
BEYOND = 1.0  # px that a box may reach beyond the image, and is cut to it: rounding, and VOC that counts pixels from 1


@dataclass(frozen=True)
class Box:
    """A rectangle around one finding; px, right and bottom exclusive."""

    label: str
    left: float
    top: float
    right: float
    bottom: float


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


def boxes_to_model_grid(boxes: Sequence[Box], placement: "Placement") -> list[Box]:
    """Move boxes as `to_model_input` moves pixels: into the square, then to the model's grid; px there, not rounded."""
    zoom, x, y = placement.size / placement.side, placement.left, placement.top
    return [
        Box(b.label, (b.left + x) * zoom, (b.top + y) * zoom, (b.right + x) * zoom, (b.bottom + y) * zoom)
        for b in boxes
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
            stated = (finding.findtext(f"bndbox/{tag}") or "").strip()
            edge = _number(stated)
            if edge is None or not label:
                raise ThoradError(
                    f"{path}, object {number}: found name {label!r} and {tag} {stated!r}; expected a name, and a "
                    "bndbox of four numbers. Correct or remove the object."
                )
            edges.append(edge)
        boxes.append(Box(label, *edges))
    return boxes


def _text_boxes(path: Path, text: str, image_height: int, image_width: int, classes: Sequence[str]) -> list[Box]:
    rows: list[tuple[str, list[float]]] = []
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
        rows.append((label, values))
    in_shares = all(value <= 1 for _, values in rows for value in values)
    if not in_shares:
        return [Box(label, *values) for label, values in rows]
    return [
        Box(
            label,
            left=(x - width / 2) * image_width,
            top=(y - height / 2) * image_height,
            right=(x + width / 2) * image_width,
            bottom=(y + height / 2) * image_height,
        )
        for label, (x, y, width, height) in rows
    ]


def _inside(path: Path, number: int, box: Box, height: int, width: int) -> Box:
    """The box, cut to the image."""
    edges = f"left {box.left:g}, top {box.top:g}, right {box.right:g}, bottom {box.bottom:g}"
    if not (box.right > box.left and box.bottom > box.top):
        raise ThoradError(
            f"{path}, box {number} ({box.label}): {edges} px has no area; expected left < right and top < bottom. "
            "Correct or remove it."
        )
    cut = Box(box.label, max(box.left, 0), max(box.top, 0), min(box.right, width), min(box.bottom, height))
    beyond = max(-box.left, -box.top, box.right - width, box.bottom - height)
    if beyond > BEYOND or not (cut.right > cut.left and cut.bottom > cut.top):
        raise ThoradError(
            f"{path}, box {number} ({box.label}): {edges} px lies outside the image of {width} x {height} px; expected "
            f"0 to {width} and 0 to {height}. Check that the boxes belong to this image, unscaled."
        )
    return cut


def _number(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None
