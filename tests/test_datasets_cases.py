from pathlib import Path

import numpy as np
import PIL.Image
import pytest

from test_io_dicom import AXIAL, DX, base, blob, save, slices
from thorad.datasets.cases import Case, read_cases
from thorad.errors import ThoradError
from thorad.io.scans import find_scans, subject_of


def scan(path: Path, seed: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    PIL.Image.fromarray(np.random.default_rng(seed).integers(0, 255, (20, 16)).astype(np.uint8)).save(path)


def mask(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    PIL.Image.fromarray(np.where(np.eye(20), 255, 0).astype(np.uint8)).save(path)


def refused(table: Path, content: str | bytes) -> str:
    """The message with which the table is refused: it names the file."""
    table.write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(ThoradError) as caught:
        read_cases(table)
    assert str(table) in str(caught.value)
    return str(caught.value)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    scan(tmp_path / "images" / "sub-A1_0.png")
    scan(tmp_path / "images" / "sub-A1_1.png")
    scan(tmp_path / "b.png")
    mask(tmp_path / "masks" / "sub-A1_0.png")
    return tmp_path


@pytest.mark.parametrize(
    ("name", "subject"),
    [
        ("sub-IXI173_0.png", "sub-IXI173"),
        ("sub-01_ses-2_T1w.nii.png", "sub-01"),
        ("sub-01.png", "sub-01"),
        ("scan_sub-01.png", "scan_sub-01"),
        ("0003_0662359226_01.png", "0003_0662359226_01"),
        ("sub-02/anat/T1.nii.gz", "sub-02"),
    ],
)
def test_subject_of(name: str, subject: str) -> None:
    assert subject_of(Path("any") / name) == subject


def test_cases(folder: Path) -> None:
    table = folder / "cases.csv"
    # With a byte order mark, blanks, a blank line and a column of the user's own, as spreadsheets leave them.
    table.write_text(
        "image, mask,subject,note\nimages/sub-A1_0.png,masks/sub-A1_0.png,,x\n\nb.png ,,patient 7,\n",
        encoding="utf-8-sig",
    )
    assert read_cases(table) == [
        Case(folder / "images/sub-A1_0.png", folder / "masks/sub-A1_0.png", "sub-A1", "images__sub-A1_0"),
        Case(folder / "b.png", None, "patient 7", "b"),
    ]
    assert list(find_scans([table])) == [case.name for case in read_cases(table)]


def test_dicom_rows_are_named_as_their_scans_are(folder: Path) -> None:
    """A path may tell the patient."""
    save(base(DX, "DX", blob()[:, :, 0]), folder / "Mustermann.dcm")
    for place, dataset in enumerate(slices(blob(), AXIAL)[:2]):
        save(dataset, folder / f"slice{place}.dcm")
    (folder / "bad.dcm").write_bytes(b"no DICOM at all")
    table = folder / "cases.csv"
    table.write_text("image,mask\nb.png,\nMustermann.dcm,\nbad.dcm,\n")
    cases = {case.name: case for case in read_cases(table)}
    assert cases.keys() == find_scans([table]).keys()
    assert cases.keys() == {case.subject for case in cases.values()}
    assert "Mustermann" not in "".join(cases)
    table.write_text("image,mask\nslice0.dcm,\nslice1.dcm,\n")
    assert [case.name for case in read_cases(table)] == ["slice0", "slice1"], "two cases, though one series"


def test_subject_column_is_optional(folder: Path) -> None:
    (folder / "cases.csv").write_text("image,mask\nimages/sub-A1_1.png,\n")
    assert read_cases(folder / "cases.csv")[0].subject == "sub-A1"


def test_the_bench(shared_data: Path) -> None:
    cases = read_cases(shared_data / "stroke-bench" / "cases.csv")
    assert len(cases) == 116
    assert len({case.subject for case in cases}) == 58
    assert len({case.name for case in cases}) == 116
    assert all(case.mask is not None and case.subject == subject_of(case.image) for case in cases)


def test_no_table(tmp_path: Path) -> None:
    with pytest.raises(ThoradError, match="can't be read"):
        read_cases(tmp_path / "nothing.csv")
    with pytest.raises(ThoradError, match="can't be read"):
        read_cases(tmp_path)


def test_columns_missing(folder: Path) -> None:
    table = folder / "cases.csv"
    assert "no column image in the first line; found file, mask." in refused(table, "file,mask\nb.png,\n")
    assert "no column image, mask in the first line; found nothing" in refused(table, "")
    assert "separated by semicolons" in refused(table, "image;mask\nb.png;\n")
    assert "names image more than once" in refused(table, "image,mask,image\nb.png,,b.png\n")
    assert "no row" in refused(table, "image,mask\n\n")


def test_rows_of_another_length(folder: Path) -> None:
    assert "line 3: found 3 cells, expected 2" in refused(folder / "cases.csv", "image,mask\nb.png,\nb,c.png,\n")


def test_files_missing(folder: Path) -> None:
    table = folder / "cases.csv"
    rows = "".join(f"gone{index}.png,\n" for index in range(8))
    message = refused(table, "image,mask\nb.png,\n" + rows)
    assert "8 of the 9 files in the column image can't be found: gone0.png (line 3), gone1.png (line 4)" in message
    assert "and 3 more" in message
    assert str(folder) in message
    message = refused(table, "image,mask\nb.png,masks/b.png\nimages/sub-A1_0.png,masks/sub-A1_0.png\n")
    assert "1 of the 2 files in the column mask can't be found: masks/b.png (line 2)" in message
    refused(table, f"image,mask\n{'x' * 5000},\n")
    refused(table, "image,mask\nb\0.png,\n")
    assert "column image is empty in line 2" in refused(table, "image,mask\n,masks/sub-A1_0.png\n")


def test_other_encodings(folder: Path) -> None:
    table = folder / "cases.csv"
    assert "not CSV in UTF-8" in refused(table, "image,mask\nschädel.png,\n".encode("latin-1"))
    assert "not CSV in UTF-8" in refused(table, "image,mask\nb.png,\n".encode("utf-16"))
    assert "not CSV in UTF-8" in refused(table, 'image,mask\n"b.png,\n')
    refused(table, bytes(range(256)) * 20)


def test_an_image_named_twice(folder: Path) -> None:
    message = refused(folder / "cases.csv", "image,mask\nb.png,\nimages/sub-A1_0.png,\nimages/../b.png,\n")
    assert "images/../b.png (lines 2 and 4)" in message


def test_cases_with_boxes(tmp_path: Path) -> None:
    for name in ("a/1.png", "b/1.png", "sub-07_x.png", "e.png"):
        scan(tmp_path / name)
    (tmp_path / "a.txt").write_text("fracture 1 2 3 4")
    table = tmp_path / "cases.csv"
    table.write_text(
        "image,boxes,elsewhere,subject,kind\na/1.png,a.txt,e.png,p1,x\nb/1.png,,,p1,\nsub-07_x.png,a.txt,,,\n",
    )
    assert read_cases(table, truth="boxes") == [
        Case(tmp_path / "a/1.png", None, "p1", "a__1", boxes=tmp_path / "a.txt", elsewhere=tmp_path / "e.png"),
        Case(tmp_path / "b/1.png", None, "p1", "b__1"),
        Case(tmp_path / "sub-07_x.png", None, "sub-07", "sub-07_x", boxes=tmp_path / "a.txt"),
    ]
    assert [case.has_finding for case in read_cases(table, truth="boxes")] == [True, False, True]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("image,mask\n1.png,\n", "no column boxes in the first line"),
        ("image,boxes\n1.png,2.txt\n", r"1 of the 1 files in the column boxes can't be found: 2\.txt \(line 2\)"),
        ("image,boxes,elsewhere\n1.png,,e.png\n", "files in the column elsewhere can't be found"),
        ("image,boxes\n1.png,\n./1.png,\n", r"1 images are named again: \./1\.png \(lines 2 and 3\)"),
        ("image,boxes\n,1.png\n", "the column image is empty in line 2"),
    ],
)
def test_tables_of_boxes_that_are_refused(tmp_path: Path, content: str, message: str) -> None:
    scan(tmp_path / "1.png")
    (tmp_path / "cases.csv").write_text(content)
    with pytest.raises(ThoradError, match=message):
        read_cases(tmp_path / "cases.csv", truth="boxes")
