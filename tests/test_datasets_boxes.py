from pathlib import Path

import numpy as np
import pytest

from thorad.datasets.boxes import (
    GRAZPEDWRI_CLASSES,
    Box,
    boxes_to_model_grid,
    read_boxes,
    voc_xml,
)
from thorad.errors import ThoradError
from thorad.io.preprocess import mask_to_model_grid, place

HEIGHT, WIDTH = 100, 80

VOC = """<?xml version="1.0" encoding="utf-8"?>
<annotation><size><width> 80 </width><height>100</height></size>
 <object><name> fracture
 </name><bndbox><xmax> 30 </xmax><xmin>10</xmin><ymax>60.5</ymax><ymin>20</ymin></bndbox></object>
 <object><name>metal</name><bndbox><xmin>0</xmin><ymin>0</ymin><xmax>80</xmax><ymax>100</ymax></bndbox></object>
</annotation>"""


def saved(folder: Path, name: str, content: str | bytes) -> Path:
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def test_voc(tmp_path: Path) -> None:
    assert read_boxes(saved(tmp_path, "a.xml", VOC), HEIGHT, WIDTH) == [
        Box("fracture", 10, 20, 30, 60.5),
        Box("metal", 0, 0, 80, 100),
    ]


def test_yolo(tmp_path: Path) -> None:
    """Numbers are the data set's classes; a name stays."""
    path = saved(tmp_path, "a.txt", "3 0.25 0.5 0.1 0.2\n\nown 0.5 0.5 1 1\n")
    boxes = read_boxes(path, HEIGHT, WIDTH)
    assert [box.label for box in boxes] == ["fracture", "own"]
    found = [(box.left, box.top, box.right, box.bottom) for box in boxes]
    np.testing.assert_allclose(found, [(16, 40, 24, 60), (0, 0, 80, 100)])
    assert read_boxes(path, HEIGHT, WIDTH, classes=["a", "b", "c", "d"])[0].label == "d"


def test_left_top_right_bottom(tmp_path: Path) -> None:
    content = "fracture 10 20 30 40\r\n4 0 0 1 1\r\n"
    path = saved(tmp_path, "a.txt", content.encode("utf-8-sig"))  # with a byte order mark
    assert read_boxes(path, HEIGHT, WIDTH) == [Box("fracture", 10, 20, 30, 40), Box("metal", 0, 0, 1, 1)]


def test_yolo_files_of_the_data_set_touch_the_border(tmp_path: Path) -> None:
    """Six decimals: the edge lands a little outside, and is cut."""
    box = read_boxes(saved(tmp_path, "a.txt", "8 0.900001 0.5 0.2 1.0"), HEIGHT, WIDTH)[0]
    assert box.right == WIDTH
    assert box.left == pytest.approx(64, abs=1e-3)
    assert (box.top, box.bottom) == (0, 100)


def test_voc_of_the_whole_image_counted_from_one(tmp_path: Path) -> None:
    path = saved(tmp_path, "a.txt", "text 1 1 81 101")
    assert read_boxes(path, HEIGHT, WIDTH) == [Box("text", 1, 1, 80, 100)]


def test_voc_written_is_voc_read(tmp_path: Path) -> None:
    boxes = [Box("metal", 1, 2, 30.25, 40), Box("a < b & c", 0.1, 0, 80, 100)]
    assert read_boxes(saved(tmp_path, "a.xml", voc_xml(boxes, HEIGHT, WIDTH)), HEIGHT, WIDTH) == boxes


BOMB = (
    '<?xml version="1.0"?><!DOCTYPE lolz [<!ENTITY a "ha"><!ENTITY b "&a;&a;&a;&a;">]>'
    "<annotation><object><name>&b;</name></object></annotation>"
)
OUTSIDER = (
    '<!DOCTYPE a [<!ENTITY x SYSTEM "file:///etc/hostname">]><annotation><object><name>&x;</name></object></annotation>'
)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.json", "{}", r"an unknown format of boxes; expected Pascal VOC \(\.xml\), or YOLO"),
        ("a.txt", "fracture 10 20 30 140", r"box 1 \(fracture\): .*bottom 140 px lies outside the image of 80 x 100"),
        ("a.txt", "fracture 10 20 30 40\nmetal -5 0 9 9", r"box 2 \(metal\): left -5"),
        ("a.txt", "text 80 0 80.9 9", "lies outside the image"),
        ("a.txt", "3 0.9 0.5 0.4 0.2", "right 88, bottom 60 px lies outside"),
        ("a.txt", "fracture 10 20 10 40", "has no area; expected left < right"),
        ("a.txt", "fracture 30 20 10 40", "has no area"),
        ("a.txt", "3 0.5 0.5 0 0.2", "has no area"),
        ("a.txt", "", "no box; expected at least one. Leave the column empty for a healthy image"),
        ("a.txt", "\n \n", "no box"),
        ("a.xml", "<annotation><size/></annotation>", "no box"),
        ("a.txt", "3 0.5 0.5 0.1 0.1 0.93", "line 1: found '3 0.5 0.5 0.1 0.1 0.93'; expected `class centre_x"),
        ("a.txt", "fracture,10,20,30,40", "separated by blanks"),
        ("a.txt", "fracture 10 20 thirty 40", "line 1: found"),
        ("a.txt", "fracture 10 20 nan 40", "line 1: found"),
        ("a.txt", "fracture 10 20 inf 40", "line 1: found"),
        ("a.txt", "9 0.5 0.5 0.1 0.1", "class 9; expected 0 to 8"),
        ("a.xml", VOC[:200], "damaged XML"),
        ("a.xml", "", "damaged XML"),
        ("a.xml", "<html/>", "holds <html>; expected Pascal VOC"),
        ("a.txt", "<html/>", "holds <html>"),
        ("a.xml", VOC.replace("> 80 <", "> 800 <"), "an image of width 800 px, the image has 80 px"),
        ("a.xml", VOC.replace("<xmin>10</xmin>", ""), r"object 1: found name 'fracture' and xmin ''"),
        ("a.xml", VOC.replace("60.5", "low"), "ymax 'low'"),
        ("a.xml", VOC.replace("metal", " "), "object 2: found name ''"),
        ("a.xml", BOMB, "has a document type"),
        ("a.xml", OUTSIDER, "has a document type"),
        ("a.xml", VOC.encode("utf-16"), "not UTF-8"),
        ("a.txt", b"fract\xfcr 1 2 3 4", "not UTF-8"),
        ("a.txt", "x 1 2 3 4\n" * 200_000, "1.9 MiB, more than"),
    ],
)
def test_what_is_refused(tmp_path: Path, name: str, content: str | bytes, message: str) -> None:
    path = saved(tmp_path, name, content)
    with pytest.raises(ThoradError, match=message) as caught:
        read_boxes(path, HEIGHT, WIDTH)
    assert str(path) in str(caught.value)


def test_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ThoradError, match=r"a\.txt: can't be read"):
        read_boxes(tmp_path / "a.txt", HEIGHT, WIDTH)


def test_deep_xml_is_no_danger(tmp_path: Path) -> None:
    path = saved(tmp_path, "a.xml", "<annotation>" + "<object>" * 50_000)
    with pytest.raises(ThoradError, match="damaged XML"):
        read_boxes(path, HEIGHT, WIDTH)


@pytest.mark.parametrize(("height", "width"), [(100, 80), (80, 100), (65, 64), (953, 720)])
@pytest.mark.parametrize("size", [64, 50])
def test_boxes_move_as_pixels_do(height: int, width: int, size: int, rng: np.random.Generator) -> None:
    """A painted rectangle, sent through the mask path, covers the pixels that the moved box more than half fills."""
    for _ in range(20):
        left, right = sorted(rng.choice(width + 1, 2, replace=False))
        top, bottom = sorted(rng.choice(height + 1, 2, replace=False))
        painted = np.zeros((height, width), bool)
        painted[top:bottom, left:right] = True
        moved = boxes_to_model_grid([Box("a", left, top, right, bottom)], place(height, width, size))[0]
        rows, columns = (
            np.clip(np.minimum(np.arange(size) + 1, high) - np.maximum(np.arange(size), low), 0, 1)
            for low, high in ((moved.top, moved.bottom), (moved.left, moved.right))
        )
        share = np.outer(rows, columns)
        clear = abs(share - 0.5) > 1e-9  # halves round either way
        np.testing.assert_array_equal(mask_to_model_grid(painted, size)[clear], (share > 0.5)[clear])
        area = (right - left) * (bottom - top) * (size / max(height, width)) ** 2
        assert share.sum() == pytest.approx(area)
        assert moved.label == "a"


def test_classes_are_the_data_sets_nine() -> None:
    assert GRAZPEDWRI_CLASSES[3] == "fracture"
    assert list(GRAZPEDWRI_CLASSES) == sorted(GRAZPEDWRI_CLASSES)
    assert len(GRAZPEDWRI_CLASSES) == 9
