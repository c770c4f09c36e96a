"""Which cases a user's inputs are, and that nothing of a DICOM file's patient gets out unasked."""

import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import SimpleITK

from test_io_dicom import AXIAL, DX, IDENTITY, base, blob, save, slices
from thorad.errors import ThoradError
from thorad.evaluation.runs import healthy_cases
from thorad.io.images import Image, write_png8
from thorad.io.scans import Scan, find_scans, patients_doubt, picture_files, read_picture, subjects_of
from thorad.io.tables import counted
from thorad.io.volumes import Volume, write_nifti

PATIENT = [value.split("^")[0] for value in IDENTITY.values()]


def scans_of(named: Mapping[str, Path]) -> dict[str, Scan]:
    """Pictures and volumes under names of a test's own."""
    return {name: Scan(name, path, str(path)) for name, path in named.items()}


def write_picture(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    PIL.Image.fromarray(np.arange(400, dtype=np.uint8).reshape(20, 20)).save(path)
    return path


def write_volume(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    voxels = blob((12, 13, 14)).astype(np.float32)
    write_nifti(path, voxels, Volume(voxels, np.diag([2.0, 2.0, 2.0, 1.0]), "x", "x"), "")
    return path


def write_series(folder: Path) -> list[Path]:
    return [save(dataset, folder / f"I{k}") for k, dataset in enumerate(slices(blob(), AXIAL))]


def test_a_mixed_folder(tmp_path: Path) -> None:
    write_picture(tmp_path / "in" / "b" / "picture.png")
    write_volume(tmp_path / "in" / "a" / "head.nii.gz")
    write_volume(tmp_path / "in" / "a" / "other.nii")
    write_series(tmp_path / "in" / "Mustermann_Erika" / "MR")
    save(base(DX, "DX", blob()[:, :, 0]), tmp_path / "in" / "hand.dcm")
    (tmp_path / "in" / "notes.txt").write_text("nothing to look at")
    (tmp_path / "in" / ".hidden.png").write_text("no")
    scans = find_scans([tmp_path / "in"])
    kinds = {name.partition("-")[0]: (type(scan.read()), scan.is_volume) for name, scan in scans.items()}
    assert kinds == {
        "a__head": (Volume, True),
        "a__other": (Volume, True),
        "b__picture": (Image, False),
        "dx": (Image, False),
        "mr": (Volume, True),
    }
    assert all(scan.read().name == name for name, scan in scans.items())


def test_nothing_tells_the_patient_unless_asked(tmp_path: Path) -> None:
    files = write_series(tmp_path / "Mustermann_PAT-4711")
    ((name, scan),) = find_scans([tmp_path]).items()
    assert scan.source == f"DICOM series {name}, 6 files"
    told = scan.redacted(f"{files[2]}: damaged, as {files[2].name} often is")
    assert not any(word in text for word in PATIENT for text in (name, scan.source, told))
    assert "damaged" in told
    ((same, scan),) = find_scans([tmp_path], keep_identity=True).items()
    assert same == name
    assert scan.source == str(tmp_path / "Mustermann_PAT-4711")
    assert str(files[2]) in scan.redacted(f"{files[2]}: damaged")


def test_a_series_is_one_case_wherever_its_files_are_named(tmp_path: Path) -> None:
    files = write_series(tmp_path / "a")
    one = find_scans([tmp_path / "a"])
    assert list(find_scans(files)) == list(find_scans([*reversed(files), tmp_path / "a"])) == list(one)
    assert len(one) == 1


def test_a_damaged_dicom_file_is_a_case_that_fails(tmp_path: Path) -> None:
    (tmp_path / "Mustermann.dcm").write_bytes(b"no DICOM at all")
    write_picture(tmp_path / "good.png")
    scans = find_scans([tmp_path])
    (bad,) = (scan for name, scan in scans.items() if name != "good")
    with pytest.raises(ThoradError, match=r"Mustermann\.dcm") as raised:
        bad.read()
    assert "Mustermann" not in bad.redacted(str(raised.value)) + bad.name + bad.source


def test_inputs_that_hold_nothing(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(ThoradError, match=r"no image in this folder or below. Expected DICOM files, or .*\.nii\.gz"):
        find_scans([tmp_path / "empty"])
    with pytest.raises(ThoradError, match="no such file or folder"):
        find_scans([tmp_path / "gone"])
    save(base("1.2.840.10008.5.1.4.1.1.88.11", "SR", blob()[:, :, 0]), tmp_path / "sr" / "report.dcm")
    with pytest.raises(ThoradError, match="only DICOM objects without a picture"):
        find_scans([tmp_path / "sr"])
    with pytest.raises(ThoradError, match="can't go into the images' own folder"):
        find_scans([tmp_path], leave_out=tmp_path)


def test_results_are_no_scans(tmp_path: Path) -> None:
    write_picture(tmp_path / "in" / "a.png")
    write_picture(tmp_path / "in" / "results" / "cases" / "a" / "overlay.png")
    assert list(find_scans([tmp_path / "in"], leave_out=tmp_path / "in" / "results")) == ["a"]


def test_a_table_and_a_file_by_itself(tmp_path: Path) -> None:
    write_volume(tmp_path / "x" / "head.nii.gz")
    (tmp_path / "list.csv").write_text("image\nx/head.nii.gz\n")
    assert list(find_scans([tmp_path / "list.csv"])) == ["x__head"]
    assert list(find_scans([tmp_path / "x" / "head.nii.gz"])) == ["head"]
    assert scans_of({"mine": tmp_path / "x" / "head.nii.gz"})["mine"].read().name == "mine"


def test_a_table_may_say_whom_its_images_show(tmp_path: Path) -> None:
    for name in ("a.png", "b.png", "c.png"):
        write_picture(tmp_path / name)
    (tmp_path / "healthy.csv").write_text("image,subject\na.png,P1\nb.png,P1\nc.png,\n")
    scans = find_scans([tmp_path / "healthy.csv"])
    assert [scan.subject for scan in scans.values()] == ["P1", "P1", "c"]
    told = {scan.path: scan.told_subject for scan in scans.values()}
    assert [case.subject for case in healthy_cases([], picture_files(scans), told)] == ["P1", "P1", "c"]


def test_folders_that_may_be_patients_are_told_where_each_image_counts_as_a_subject() -> None:
    def doubt(folders: int, images: int, subjects: int) -> str:
        paths = [Path(f"{number % folders}/{number}.png") for number in range(images)]
        return str(patients_doubt(paths, [str(number % subjects) for number in range(images)]))

    assert "12 images in 4 folders count as a subject each" in doubt(folders=4, images=12, subjects=12)
    assert doubt(folders=4, images=12, subjects=4) == "None"
    assert doubt(folders=12, images=12, subjects=12) == "None"
    assert doubt(folders=3, images=12, subjects=12) == "None", "images/, masks/ and healthy/"


def test_a_table_with_lesions_is_no_table_of_healthy_images(tmp_path: Path) -> None:
    for name in ("a.png", "b.png", "a-mask.png"):
        write_picture(tmp_path / name)
    table = tmp_path / "cases.csv"
    table.write_text("image,mask\na.png,a-mask.png\nb.png,\n")
    assert list(find_scans([table])) == ["a", "b"]
    with pytest.raises(ThoradError, match=r"cases\.csv: a mask or boxes are named for 1 of its 2 images.*: a\.png\."):
        find_scans([table], healthy=True)
    table.write_text("image,mask\na.png,\nb.png,\n")
    assert list(find_scans([table], healthy=True)) == ["a", "b"]


def test_patients_whose_files_have_one_name_are_several_subjects() -> None:
    paths = [Path("p1/T1.png"), Path("p2/T1.png"), Path("p3/other.png"), Path("sub-7/T1.png")]
    assert subjects_of(paths, ["p1__T1", "p2__T1", "p3__other", "x"]) == ["p1__T1", "p2__T1", "other", "sub-7"]


@pytest.mark.parametrize("ending", ["nhdr", "mhd"])
def test_voxels_beside_their_header_are_of_the_scan(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"head.{ending}"
    image = SimpleITK.GetImageFromArray(np.zeros((9, 10, 11), np.int16))
    SimpleITK.WriteImage(image, path)
    before = Scan("head", path, str(path))
    assert len(before.files) == before.state[0] == 2
    excerpt = before.excerpt
    SimpleITK.WriteImage(image + 1, path)
    assert not Scan("head", path, str(path)).is_as_it_was(before.state, path)
    assert Scan("head", path, str(path)).excerpt != excerpt


def test_slices_that_were_anonymised_to_one_instance_are_a_series(tmp_path: Path) -> None:
    datasets = slices(blob(), AXIAL)
    for number, dataset in enumerate(datasets):
        dataset.SOPInstanceUID = "1.2.3"
        save(dataset, tmp_path / "in" / f"{number}.dcm")
        save(dataset, tmp_path / "in" / f"copy-{number}.dcm")
    found = find_scans([tmp_path / "in"])
    (scan,) = found.values()
    assert scan.is_volume
    assert len(scan.files) == len(datasets)
    assert found.left_out == {"DICOM: a copy of another file": len(datasets)}


def test_a_slice_that_is_cut_short_is_told_and_not_passed_over(tmp_path: Path) -> None:
    """The end of a series would be missed by nobody else."""
    files = write_series(tmp_path)
    files[-1].write_bytes(files[-1].read_bytes()[:600])
    scans = find_scans([tmp_path])
    assert sorted(scan.problem is None for scan in scans.values()) == [False, True]
    (bad,) = (scan for scan in scans.values() if scan.problem)
    assert "cut short" in str(bad.problem) or "damaged" in str(bad.problem)


def test_a_slice_by_itself_is_not_its_series(tmp_path: Path) -> None:
    files = write_series(tmp_path)
    ((name, whole),) = find_scans([tmp_path]).items()
    ((same, slice_alone),) = find_scans([files[3]]).items()
    assert same == name
    assert slice_alone.source != whole.source


def test_pictures_for_a_comparison_with_the_truth(tmp_path: Path) -> None:
    write_volume(tmp_path / "a.nii.gz")
    with pytest.raises(ThoradError, match=r"a\.nii\.gz: 1 volumes and no picture\. .*thorad prepare"):
        picture_files(find_scans([tmp_path]))
    files = [write_picture(tmp_path / "b.png"), save(base(DX, "DX", blob()[:, :, 0]), tmp_path / "hand.dcm")]
    assert picture_files(find_scans([tmp_path])) == files
    assert [read_picture(path).name.partition("-")[0] for path in files] == ["b", "dx"]
    (tmp_path / "bad.dcm").write_bytes(b"no DICOM at all")
    with pytest.raises(ThoradError, match=r"bad\.dcm"):
        picture_files(find_scans([tmp_path]))


def test_what_is_left_out_is_counted_with_its_reason(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    write_png8(folder / "a.png", np.eye(20) * 0.5)
    write_png8(folder / "results" / "b.png", np.eye(20) * 0.5)
    (folder / ".git").mkdir()
    (tmp_path / "elsewhere").mkdir()
    (folder / "linked").symlink_to(tmp_path / "elsewhere")
    for name in (".hidden", "notes.txt", "NOTES.TXT", "x.tar.gz", "README", "IM.0001", "a.\x1b[31m"):
        (folder / name).write_text("x")
    picture = base(DX, "DX", np.arange(400, dtype=np.uint16).reshape(20, 20))
    save(picture, folder / "one.dcm")
    save(picture, folder / "two.dcm")
    save(base(DX, "PR", np.arange(400, dtype=np.uint16).reshape(20, 20), SOPInstanceUID="1.2.3"), folder / "three")
    os.mkfifo(folder / "pipe")
    found = find_scans([folder, folder / "a.png"], leave_out=folder / "results")
    assert len(found) == 2
    assert found.left_out == {
        **{"hidden": 1, "hidden folder": 1, "linked folder": 1, "the results' own folder": 1, "reached twice": 1},
        **{".txt": 2, ".gz": 1, "no suffix": 4},
        "DICOM: a copy of another file": 1,
        "DICOM: an object of modality PR, which goes with pictures": 1,
    }
    assert counted(found.left_out).startswith("Left out 14: no suffix (4), .txt (2), .gz (1), ")
    (tmp_path / "elsewhere" / "a.txt").write_text("x")
    with pytest.raises(ThoradError, match=r"no image in this folder.* Left out 1: \.txt \(1\)\."):
        find_scans([tmp_path / "elsewhere"])
