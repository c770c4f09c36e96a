import shutil
from pathlib import Path

import numpy as np
import PIL.Image
import pytest

from thorad.datasets.boxes import Box, read_boxes, voc_xml
from thorad.datasets.cases import read_cases
from thorad.datasets.wrist import (
    find_wrist_files,
    is_test_patient,
    sort_wrist_images,
    write_wrist_cases,
)
from thorad.errors import ThoradError
from thorad.io.scans import find_scans
from thorad.io.tables import read_table

HEIGHT, WIDTH = 60, 40
HEADER = (
    "filestem,patient_id,study_number,timehash,gender,age,laterality,projection,initial_exam,ao_classification,cast,"
    "diagnosis_uncertain,osteopenia,fracture_visible,metal,pixel_spacing,device_manufacturer"
)
LETTER = Box("text", 2, 2, 8, 8)
FRACTURE = Box("fracture", 10, 20, 30, 45)


class Tree:
    """A small data set in the published layout."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.rows: list[str] = []

    def add(
        self,
        stem: str,
        patient: str,
        boxes: list[Box] | None,
        *,
        projection: int = 1,
        fracture: str = "",
        metal: str = "",
        row: bool = True,
        image: bool = True,
        folder: str = "images_part1",
    ) -> None:
        if row:
            self.rows.append(f"{stem},{patient},1,12,M,14.1,L,{projection},1,,,,,{fracture},{metal},0.144,Siemens")
        if image:
            pixels = np.random.default_rng(len(self.rows)).integers(0, 60_000, (HEIGHT, WIDTH)).astype(np.uint16)
            (self.root / folder).mkdir(parents=True, exist_ok=True)
            PIL.Image.fromarray(pixels).save(self.root / folder / f"{stem}.png")
        if boxes is not None:
            path = self.root / "folder_structure" / "pascalvoc" / f"{stem}.xml"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(voc_xml(boxes, HEIGHT, WIDTH))

    def write_table(self) -> None:
        (self.root / "dataset.csv").write_text("\n".join([HEADER, *self.rows]) + "\n")


TEST_PATIENT = next(str(number) for number in range(1000, 2000) if is_test_patient(str(number)))
TRAINING_PATIENT = next(str(number) for number in range(1000, 2000) if not is_test_patient(str(number)))


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    made = Tree(tmp_path / "grazped")
    made.add("0001_fracture", "1", [LETTER, FRACTURE, Box("metal", 0, 0, 5, 5)], fracture="1")
    made.add("0001_other_side", "1", [LETTER], folder="images_part2")
    made.add("0001_lateral", "1", [FRACTURE], projection=2)
    made.add("0002_says_the_table", "2", [LETTER], metal="1")
    made.add("0003_fracture_in_the_lateral_one", "3", [])
    made.add("0003_lateral", "3", [], projection=2, fracture="1")
    made.add("0004_healthy", TEST_PATIENT, [LETTER])
    made.add("0005_healthy", TRAINING_PATIENT, [])
    made.add("0006_annotation_missing", "6", None)
    made.add("0007_image_missing", "7", [FRACTURE], image=False)
    made.add("0008_row_missing", "8", [FRACTURE], row=False, folder="images_part4")
    made.add("0009_box_outside", "9", [Box("fracture", 10, 20, 300, 400)])
    made.write_table()
    return made.root


def test_sorts_images(tree: Path) -> None:
    files = find_wrist_files(tree)
    assert files.rows_without_image == ["0007_image_missing"]
    assert [path.name for path in files.images_without_row] == ["0008_row_missing.png"]
    assert files.without_annotation == ["0006_annotation_missing"]
    assert len(files.with_both) == 9
    found = sort_wrist_images(files)
    assert [case.name for case in found.diseased] == ["0001_fracture"]
    assert {box.label for box in found.findings["0001_fracture"]} == {"fracture", "metal"}
    assert [case.name for case in found.healthy_test] == ["0004_healthy"]
    assert [case.name for case in found.healthy_training] == ["0005_healthy"]
    assert found.unclear == ["0001_other_side", "0002_says_the_table", "0003_fracture_in_the_lateral_one"]
    assert list(found.left_out) == ["0009_box_outside"]
    assert "lies outside the image of 40 x 60 px" in found.left_out["0009_box_outside"]


def test_yolo_says_the_same(tree: Path) -> None:
    """The other form of the annotations; an empty file is an image without any box."""
    before = sort_wrist_images(find_wrist_files(tree))
    labels = tree / "folder_structure" / "yolov5" / "labels"
    labels.mkdir(parents=True)
    (labels / "0001_fracture.txt").write_text(
        f"8 {5 / WIDTH} {5 / HEIGHT} {6 / WIDTH} {6 / HEIGHT}\n3 {20 / WIDTH} {32.5 / HEIGHT} {20 / WIDTH} "
        f"{25 / HEIGHT}\n4 {2.5 / WIDTH} {2.5 / HEIGHT} {5 / WIDTH} {5 / HEIGHT}\n"
    )
    (labels / "0004_healthy.txt").write_text(f"8 {5 / WIDTH} {5 / HEIGHT} {6 / WIDTH} {6 / HEIGHT}\n")
    (labels / "0005_healthy.txt").write_text("")
    shutil.rmtree(tree / "folder_structure" / "pascalvoc")
    after = sort_wrist_images(find_wrist_files(tree))
    assert [case.name for case in after.diseased] == ["0001_fracture"]
    for ours, theirs in zip(after.findings["0001_fracture"], before.findings["0001_fracture"], strict=True):
        assert ours.label == theirs.label
        np.testing.assert_allclose(
            (ours.left, ours.top, ours.right, ours.bottom),
            (theirs.left, theirs.top, theirs.right, theirs.bottom),
            atol=1e-6,
        )
    assert (after.healthy_test, after.healthy_training) == (before.healthy_test, before.healthy_training)


def test_written_cases_are_read_back(tree: Path, tmp_path: Path) -> None:
    table = write_wrist_cases(sort_wrist_images(find_wrist_files(tree)), tmp_path / "out")
    diseased, healthy = read_cases(table, truth="boxes")
    assert (diseased.subject, healthy.subject) == ("1", TEST_PATIENT)
    assert diseased.image.samefile(tree / "images_part1" / "0001_fracture.png")
    assert diseased.elsewhere is healthy.elsewhere is healthy.boxes is None
    assert diseased.boxes is not None
    assert read_boxes(diseased.boxes, HEIGHT, WIDTH) == [FRACTURE, Box("metal", 0, 0, 5, 5)]
    assert [row["kind"] for _, row in read_table(table, ["kind"])] == ["fracture;metal", "healthy"]
    assert [scan.path.name for scan in find_scans([tmp_path / "out" / "train.csv"]).values()] == ["0005_healthy.png"]


def test_a_tenth_of_the_patients_is_for_the_test() -> None:
    share = np.mean([is_test_patient(str(number)) for number in range(6000)])
    assert share == pytest.approx(0.1, abs=3 * np.sqrt(0.09 / 6000))


def test_layout_errors(tree: Path, tmp_path: Path) -> None:
    with pytest.raises(ThoradError, match=r"no dataset\.csv or dataset\.csv\.gz .* Expected dataset\.csv"):
        find_wrist_files(tmp_path)
    damaged = tree / "images_part1" / "0001_fracture.png"
    damaged.write_bytes(b"not a PNG")
    found = sort_wrist_images(find_wrist_files(tree))
    assert str(damaged) in found.left_out["0001_fracture"]
    with pytest.raises(ThoradError, match="Found 0 posteroanterior images with boxes and 1 healthy ones"):
        write_wrist_cases(found, tmp_path / "out")
    shutil.rmtree(tree / "folder_structure")
    with pytest.raises(ThoradError, match="none of these an annotation of the same stem"):
        find_wrist_files(tree)


def test_the_real_table_and_images(shared_data: Path) -> None:
    files = find_wrist_files(shared_data / "wrist")
    assert len(files.rows) == 20_327
    assert set(files.with_both) == {"0003_0662359226_01_WRI-R1_M011", "5791_0288377040_02_WRI-R1_F009"}
    assert files.without_annotation == ["3799_0949300875_03_WRI-L1_M010"]
    assert len(files.rows_without_image) == 20_324
    assert len(files.images_without_row) == 4
    found = sort_wrist_images(files)
    assert [(case.subject, [box.label for box in found.findings[case.name]]) for case in found.diseased] == [
        ("3", ["fracture", "fracture"]),
        ("5791", ["fracture", "fracture"]),
    ]
    assert not found.left_out
