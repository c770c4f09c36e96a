import shutil
from pathlib import Path

import numpy as np
import PIL.Image
import pytest

from thorad.datasets.boxes import Box, read_boxes, voc_xml
from thorad.datasets.cases import read_cases
from thorad.datasets.published import wrist_split
from thorad.datasets.wrist import find_wrist_cases, patient_of, write_wrist_cases
from thorad.errors import ThoradError
from thorad.io.scans import find_scans
from thorad.io.tables import read_table

HEIGHT, WIDTH = 60, 40
LETTER = Box("text", 2, 2, 8, 8)
FRACTURE = Box("fracture", 10, 20, 30, 45)
METAL = Box("metal", 0, 0, 5, 5)
SIGN = Box("pronatorsign", 20, 2, 30, 12)


def listed(*parts: str, annotations: int | None = None) -> list[str]:
    """Images that are in these of the paper's lists and in no other."""
    split = wrist_split()
    return sorted(
        name
        for name in split[parts[0]]
        if all((name in names) == (part in parts) for part, names in split.items())
        and (annotations is None or {split[part][name] for part in parts} - {0} == {annotations})
    )


BROKEN = listed("fracture", annotations=1)[0]
TWICE = listed("fracture", annotations=2)[0]
BOTH = listed("fracture", "metal", annotations=1)[0]
OUTSIDE, SIGN_ONLY, BARE = listed("metal", annotations=1)[:3]
HEALTHY_TOO = listed("softtissue", "test", annotations=1)[0]
TEST, TRAIN, VALIDATION = listed("test")[0], listed("train")[0], listed("validation")[0]


def add(root: Path, name: str, boxes: list[Box] | None, folder: str = "images_part1") -> None:
    """An image in the published layout, with its annotation unless that is None."""
    pixels = np.random.default_rng(len(name)).integers(0, 60_000, (HEIGHT, WIDTH)).astype(np.uint16)
    (root / folder).mkdir(parents=True, exist_ok=True)
    PIL.Image.fromarray(pixels).save(root / folder / f"{name}.png")
    if boxes is not None:
        path = root / "folder_structure" / "pascalvoc" / f"{name}.xml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(voc_xml(boxes, HEIGHT, WIDTH))


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    root = tmp_path / "grazped"
    add(root, BROKEN, [LETTER, FRACTURE, METAL, SIGN])
    add(root, TWICE, [FRACTURE], folder="images_part2")
    add(root, BOTH, [FRACTURE, METAL])
    add(root, OUTSIDE, [Box("metal", 10, 20, 300, 400)])
    add(root, SIGN_ONLY, [SIGN, LETTER])
    add(root, BARE, None)
    add(root, TEST, [LETTER])
    add(root, TRAIN, None, folder="images_part4")
    add(root, VALIDATION, [])
    add(root, HEALTHY_TOO, [Box("softtissue", 5, 5, 20, 20)])
    add(root, "0000_0000000000_01_WRI-L1_M014", [FRACTURE])  # in no list
    return root


def test_finds_what_the_lists_have(tree: Path) -> None:
    found = find_wrist_cases(tree)
    assert {case.name: case.subject for case in found.diseased} == {
        name: patient_of(name) for name in (BROKEN, TWICE, BOTH, HEALTHY_TOO)
    }
    assert found.findings[BROKEN] == [FRACTURE], "the list has it for its fracture alone"
    assert found.findings[BOTH] == [FRACTURE, METAL]
    assert {part: [case.name for case in cases] for part, cases in found.normal.items()} == {
        "train": [TRAIN],
        "validation": [VALIDATION],
        "test": [TEST],
    }, "what is listed for a finding, too, is not healthy"
    assert found.otherwise == {**dict.fromkeys(found.otherwise, 0), "fracture": 1}, "of two annotations one is a box"
    assert found.absent["train"] == 1599
    assert found.absent["fracture"] == 6553 - 3
    assert list(found.left_out) == sorted([OUTSIDE, SIGN_ONLY, BARE])
    assert "lies outside the image of 40 x 60 px" in found.left_out[OUTSIDE]
    assert "has boxes of pronatorsign, text; the paper's lists have metal" in found.left_out[SIGN_ONLY]
    assert "no annotation of the same stem" in found.left_out[BARE]


def test_yolo_says_the_same(tree: Path) -> None:
    """The other form of the annotations."""
    before = find_wrist_cases(tree)
    labels = tree / "folder_structure" / "yolov5" / "labels"
    labels.mkdir(parents=True)
    (labels / f"{BOTH}.txt").write_text(
        f"3 {20 / WIDTH} {32.5 / HEIGHT} {20 / WIDTH} {25 / HEIGHT}\n4 {2.5 / WIDTH} {2.5 / HEIGHT} {5 / WIDTH} "
        f"{5 / HEIGHT}\n"
    )
    shutil.rmtree(tree / "folder_structure" / "pascalvoc")
    after = find_wrist_cases(tree)
    assert [case.name for case in after.diseased] == [BOTH]
    for ours, theirs in zip(after.findings[BOTH], before.findings[BOTH], strict=True):
        assert ours.label == theirs.label
        np.testing.assert_allclose(
            (ours.left, ours.top, ours.right, ours.bottom),
            (theirs.left, theirs.top, theirs.right, theirs.bottom),
            atol=1e-6,
        )
    assert after.normal == before.normal, "a healthy image needs no annotation"


def test_written_cases_are_read_back(tree: Path, tmp_path: Path) -> None:
    table = write_wrist_cases(find_wrist_cases(tree), tmp_path / "out")
    *diseased, healthy = read_cases(table, truth="boxes")
    assert healthy.subject == patient_of(TEST)
    assert healthy.boxes is healthy.elsewhere is None
    assert {case.image.stem for case in diseased} == {BROKEN, TWICE, BOTH, HEALTHY_TOO}
    (broken,) = (case for case in diseased if case.image.stem == BROKEN)
    assert broken.boxes is not None
    assert read_boxes(broken.boxes, HEIGHT, WIDTH) == [FRACTURE]
    kinds = {Path(row["image"]).stem: row["kind"] for _, row in read_table(table, ["image", "kind"])}
    assert (kinds[BOTH], kinds[TEST]) == ("fracture;metal", "healthy")
    for file, name in (("train.csv", TRAIN), ("val.csv", VALIDATION)):
        assert [scan.path.stem for scan in find_scans([tmp_path / "out" / file]).values()] == [name]


def test_layout_errors(tree: Path, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    add(tmp_path / "other", "x", [FRACTURE])
    with pytest.raises(ThoradError, match=r"1 PNG images, of which none is in the paper's lists"):
        find_wrist_cases(tmp_path / "other")
    shutil.rmtree(tree / "folder_structure")
    found = find_wrist_cases(tree)
    assert len(found.left_out) == 7
    with pytest.raises(ThoradError, match="Found 0 of the paper's images with findings and 1 of its healthy ones"):
        write_wrist_cases(found, tmp_path / "out")


def test_the_real_images(shared_data: Path) -> None:
    found = find_wrist_cases(shared_data / "wrist")
    assert [(case.subject, [box.label for box in found.findings[case.name]]) for case in found.diseased] == [
        ("3", ["fracture", "fracture"]),
        ("5791", ["fracture", "fracture"]),
    ]
    assert set(found.otherwise.values()) == {0}, "as many boxes as the lists have annotations"
    assert list(found.left_out) == ["3799_0949300875_03_WRI-L1_M010"], "its annotation is not at hand"
