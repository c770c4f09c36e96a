import sys
from pathlib import Path

import nibabel
import numpy as np
import PIL.Image
import pytest

from thorad.datasets.atlas import check_headers, cut_slices, find_atlas
from thorad.datasets.cases import read_cases
from thorad.errors import ThoradError
from thorad.io.images import read_image, read_mask
from thorad.io.template import MNI_2009A, Grid

GRID = Grid((12, 14, 10), (-6, -7, -5), axial_slice=6)


def write_volume(path: Path, voxels: np.ndarray, grid: Grid = GRID, flipped: bool = False) -> Path:
    """A volume of right-anterior-superior voxels; flipped, as left-anterior-superior is stored: the same scan."""
    affine = np.eye(4)
    affine[:3, 3] = grid.origin_mm
    if flipped:
        affine[0, 0] = -1
        affine[0, 3] += voxels.shape[0] - 1
        voxels = voxels[::-1]
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(voxels, affine), path)
    return path


def write_scan(
    root: Path, subject: str, lesions: list[np.ndarray], image: np.ndarray | None = None, flipped: bool = False
) -> Path:
    """As ATLAS v2.0 names them."""
    folder = root / "Training" / subject[4:8].upper() / subject / "ses-1" / "anat"
    stem = f"{subject}_ses-1_space-MNI152NLin2009aSym"
    if image is None:
        image = np.random.default_rng(0).integers(0, 900, GRID.shape).astype(np.int16)
    for number, lesion in enumerate(lesions):
        extra = "" if number == 0 else f"{number}"
        write_volume(folder / f"{stem}_label-L_desc-T1lesion{extra}_mask.nii.gz", lesion, flipped=flipped)
    return write_volume(folder / f"{stem}_T1w.nii.gz", image, flipped=flipped)


def lesion_at(*voxels: tuple[int, int, int]) -> np.ndarray:
    lesion = np.zeros(GRID.shape, np.uint8)
    for voxel in voxels:
        lesion[voxel] = 1
    return lesion


def test_finds_volumes_by_name(tmp_path: Path) -> None:
    write_scan(tmp_path, "sub-r001s001", [lesion_at((1, 1, 6))])
    write_scan(tmp_path, "sub-r001s002", [lesion_at((1, 1, 6)), lesion_at((2, 2, 6))])
    hidden = write_scan(tmp_path, "sub-r002s001", [])
    stray = tmp_path / "sub-r003s001/ses-1/anat/sub-r003s001_ses-1_label-L_desc-T1lesion_mask.nii.gz"
    write_volume(stray, lesion_at())
    write_volume(tmp_path / "derivatives" / "sub-r009s001_ses-1_T1w.nii.gz", lesion_at())  # not in an anat folder
    found = find_atlas(tmp_path)
    assert [(case.name, case.subject, len(case.masks)) for case in found.cases] == [
        ("sub-r001s001_ses-1", "sub-r001s001", 1),
        ("sub-r001s002_ses-1", "sub-r001s002", 2),
    ]
    assert [case.image for case in found.without_mask] == [hidden]
    assert found.without_image == [stray]


@pytest.mark.parametrize("flipped", [False, True], ids=["RAS", "LAS"])
def test_slice_is_anterior_up_with_all_bits(tmp_path: Path, flipped: bool) -> None:
    """Voxel (x, y, k) lies in column x and in row 13 - y, whichever way the file stores it."""
    rng = np.random.default_rng(1)
    image = rng.integers(0, 3000, GRID.shape).astype(np.int16)
    write_scan(tmp_path / "data", "sub-r001s001", [lesion_at((2, 3, 6)), lesion_at((9, 11, 6))], image, flipped)
    made = cut_slices(find_atlas(tmp_path / "data").cases, tmp_path / "out", grid=GRID)
    assert (made.cut, made.without_lesion, made.left_out) == (1, [], {})
    (case,) = read_cases(made.table)
    assert case.subject == "sub-r001s001"
    assert case.mask is not None
    with PIL.Image.open(case.image) as opened:
        assert opened.mode == "I;16"
        assert opened.size == (12, 14)  # width, height
    pixels = read_image(case.image).pixels
    expected = np.array([[image[x, 13 - row, 6] for x in range(12)] for row in range(14)])
    np.testing.assert_allclose(pixels * expected.max() / 65535, expected, atol=0.5 * 3000 / 65535)
    mask = read_mask(case.mask, (14, 12))
    assert list(zip(*np.nonzero(mask), strict=True)) == [(13 - 11, 9), (13 - 3, 2)]


def test_slices_as_the_development_data_lie(shared_data: Path) -> None:
    """The grid's slice 95 is what the other slices of this project are: 197 wide, 233 high, z = +23 mm."""
    with PIL.Image.open(next((shared_data / "ixi" / "val").glob("*.png"))) as opened:
        assert opened.size == MNI_2009A.shape[:2]
    assert MNI_2009A.origin_mm[2] + MNI_2009A.axial_slice == 23


def test_one_bad_scan_loses_no_other(tmp_path: Path) -> None:
    data = tmp_path / "data"
    write_scan(data, "sub-r001s001", [lesion_at((5, 5, 6))])
    write_scan(data, "sub-r001s002", [lesion_at((5, 5, 2))])  # the lesion lies in another slice
    write_scan(data, "sub-r001s003", [lesion_at((5, 5, 6))], np.zeros((12, 14, 11), np.int16))
    damaged = write_scan(data, "sub-r001s004", [lesion_at((5, 5, 6))])
    damaged.write_bytes(damaged.read_bytes()[:60])
    write_scan(data, "sub-r001s005", [lesion_at((5, 5, 6))], np.full(GRID.shape, np.nan, np.float32))
    write_scan(data, "sub-r001s006", [lesion_at((5, 5, 6))], np.zeros(GRID.shape, np.int16))
    no_volume = write_scan(data, "sub-r001s007", [lesion_at((5, 5, 6))])
    no_volume.write_bytes(b"not NIfTI")
    counted: list[tuple[int, int]] = []
    found = find_atlas(data).cases
    made = cut_slices(found, tmp_path / "out", grid=GRID, on_progress=lambda done, total: counted.append((done, total)))
    assert made.cut == 1
    assert made.without_lesion == ["sub-r001s002_ses-1"]
    assert set(made.left_out) == {f"sub-r001s00{number}_ses-1" for number in (3, 4, 5, 6, 7)}
    assert "12 x 14 x 11 voxels" in made.left_out["sub-r001s003_ses-1"]
    assert "12 x 14 x 10" in made.left_out["sub-r001s003_ses-1"]
    assert "NaN" in made.left_out["sub-r001s005_ses-1"]
    assert "empty" in made.left_out["sub-r001s006_ses-1"]
    for number in (4, 7):
        assert str(found[number - 1].image) in made.left_out[f"sub-r001s00{number}_ses-1"]
    assert counted == [(done, 7) for done in range(1, 8)]
    assert sorted(path.name for path in (tmp_path / "out" / "images").iterdir()) == ["sub-r001s001_ses-1.png"]


def test_other_grids_are_refused(tmp_path: Path) -> None:
    """The true grid passes, also when its origin is given a voxel apart; another space, spacing or mask doesn't."""
    zeros = np.zeros(MNI_2009A.shape, np.uint8)
    good = write_volume(tmp_path / "sub-a" / "ses-1" / "anat" / "sub-a_ses-1_T1w.nii.gz", zeros, MNI_2009A)
    near = Grid(MNI_2009A.shape, (-98.5, -134.5, -72.5), 95)
    write_volume(good.with_name("sub-a_ses-1_mask.nii.gz"), zeros, near)
    (scan,) = find_atlas(tmp_path).cases
    check_headers(scan)
    with pytest.raises(ThoradError, match=r"from -98 x -134 x -72 mm; expected 12 x 14 x 10"):
        check_headers(scan, GRID)
    elsewhere = Grid(GRID.shape, (-6, -7, 0), 6)
    write_scan(tmp_path / "small", "sub-r001s001", [lesion_at((1, 1, 6))])
    (small,) = find_atlas(tmp_path / "small").cases
    write_volume(small.masks[0], lesion_at((1, 1, 6)), elsewhere)
    with pytest.raises(ThoradError, match=r"mask\.nii\.gz: a grid of .* from -6 x -7 x 0 mm; expected"):
        check_headers(small, GRID)


def test_nothing_to_cut(tmp_path: Path) -> None:
    write_scan(tmp_path / "data", "sub-r001s001", [lesion_at((1, 1, 2))])
    scans = find_atlas(tmp_path / "data").cases
    with pytest.raises(ThoradError, match="None of the 1 scans gives a slice k = 6 with a lesion"):
        cut_slices(scans, tmp_path / "out", grid=GRID)
    with pytest.raises(ThoradError, match="1 scans are there more than once: sub-r001s001_ses-1"):
        cut_slices([*scans, *scans], tmp_path / "out", grid=GRID)
    assert not (tmp_path / "out").exists()
    assert find_atlas(tmp_path / "out").cases == []


def test_without_nibabel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_scan(tmp_path, "sub-r001s001", [lesion_at((1, 1, 6))])
    (scan,) = find_atlas(tmp_path).cases
    monkeypatch.setitem(sys.modules, "nibabel", None)
    with pytest.raises(ThoradError, match=r"pip install 'thorad\[volumes\]'"):
        check_headers(scan, GRID)
