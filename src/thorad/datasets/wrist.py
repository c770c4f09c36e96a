"""The cases of the paper's wrist experiment, from GRAZPEDWRI-DX as it is published.

The data set (`thorad.datasets.grazpedwri`) has a table, `dataset.csv` or `dataset.csv.gz`, images in `images_part1/` to
`images_part4/` or `images/`, and annotations in `folder_structure/pascalvoc/*.xml` or
`folder_structure/yolov5/labels/*.txt`. Images and annotations are found by their stems, wherever below the folder.

The paper's own split is not published. The choice here:

- Posteroanterior images only (projection 1), left and right as they are.
- Diseased: images with a box that is no `text`, the letters that mark the side.
- Healthy: images without such a box, of patients of whom no posteroanterior image has one and whose rows, of whatever
  projection, all leave `fracture_visible` and `metal` empty: the image after a fracture is not a healthy wrist's.
- By patient: a tenth of the healthy patients, drawn by a hash of their number, is for the test, the others are for
  training. All diseased images are for the test. No patient is on both sides.
"""

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from thorad.datasets.boxes import Box, read_boxes, voc_xml
from thorad.datasets.cases import Case
from thorad.datasets.grazpedwri import TABLES, WristImage, dataset_table, read_dataset_table
from thorad.errors import ThoradError
from thorad.io.atomic import write_atomic
from thorad.io.shapes import shape_of
from thorad.io.tables import write_table

EXPECTED: Final = (
    "dataset.csv or dataset.csv.gz, images_part1/*.png ... images_part4/*.png or images/*.png, and "
    "folder_structure/pascalvoc/*.xml or folder_structure/yolov5/labels/*.txt"
)

MARKER: Final = "text"
"""The label of the letters that mark the side: no finding."""

POSTEROANTERIOR: Final = 1

TEST_TENTHS: Final = 1
"""How many of ten healthy patients are for the test."""


@dataclass(frozen=True)
class WristFiles:
    """The data set's files, matched by their stems."""

    rows: dict[str, WristImage]
    """{stem: row} of the whole table."""
    with_both: dict[str, tuple[WristImage, Path, Path]]
    """{stem: (row, image, annotation)} of the images of all projections."""
    rows_without_image: list[str]
    images_without_row: list[Path]
    without_annotation: list[str]
    """Rows with an image. Whether they are healthy can't be known."""


@dataclass(frozen=True)
class WristCases:
    """The posteroanterior images, each on one side."""

    diseased: list[Case]
    healthy_test: list[Case]
    healthy_training: list[Case]
    findings: dict[str, list[Box]]
    """{name: the boxes of a diseased image but for the letters}; px of its own grid."""
    unclear: list[str]
    """Without boxes, but of patients with boxes, a fracture or metal in other images or rows."""
    left_out: dict[str, str]
    """{stem: why it can't be read}."""


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
    # The data set gives the same boxes twice; VOC has px, YOLO six digits of a share.
    annotations = _by_stem(root.rglob("*.txt")) | _by_stem(root.rglob("*.xml"))
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
    """Read the annotations of the posteroanterior images and say which image is what; see the module's docstring.

    Args:
        files: of `find_wrist_files`.
        on_progress: called with (images done, images in all).
    """
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
        findings = cases.findings.get(case.name, [])
        boxes = f"boxes/{case.name}.xml" if findings else ""
        if findings:
            write_atomic(out / boxes, voc_xml(findings, *shape_of(case.image)))
        kind = ";".join(sorted({box.label for box in findings})) or "healthy"
        row = {"image": str(case.image.resolve()), "boxes": boxes, "elsewhere": ""}
        rows.append(row | {"subject": case.subject, "kind": kind})
    training = [{"image": str(case.image.resolve()), "subject": case.subject} for case in cases.healthy_training]
    write_table(out / "train.csv", ["image", "subject"], training)
    write_table(out / "cases.csv", ["image", "boxes", "elsewhere", "subject", "kind"], rows)
    return out / "cases.csv"


def _by_stem(paths: Iterable[Path]) -> dict[str, Path]:
    """The first of each stem, in the order of their paths."""
    by_stem: dict[str, Path] = {}
    for path in sorted(paths):
        by_stem.setdefault(path.stem, path)
    return by_stem


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
