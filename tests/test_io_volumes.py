import gzip
import itertools
import os
import sys
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import SimpleITK

from thorad.errors import ThoradError
from thorad.io.volumes import LARGEST_VOLUME, Volume, read_volume, write_nifti

SHAPE = (9, 11, 13)
# Oblique, 1 x 2 x 0.5 mm, left-handed: as a scanner stores it.
TURN = SimpleITK.Euler3DTransform((0, 0, 0), 0.2, -0.3, 0.4)
DIRECTIONS = np.reshape(TURN.GetMatrix(), (3, 3)) * (-1, 1, 1)
SPACING = (1.0, 2.0, 0.5)
ORIGIN = (5.5, -6.25, 70.0)
OBLIQUE = np.block([[DIRECTIONS * SPACING, np.reshape(ORIGIN, (3, 1))], [np.zeros((1, 3)), np.ones((1, 1))]])
LPS = np.diag([-1.0, -1.0, 1.0, 1.0])


@pytest.fixture
def voxels(rng: np.random.Generator) -> np.ndarray:
    return rng.integers(0, 900, SHAPE).astype(np.int16)


def save_nifti(path: Path, voxels: np.ndarray, affine: np.ndarray = OBLIQUE, **fields: Any) -> Path:
    """A NIfTI-1 file whose header has these fields set last, so that they may be nonsense."""
    header = nibabel.Nifti1Header()
    header.set_data_dtype(voxels.dtype)
    header.set_data_shape(voxels.shape)
    header.set_sform(affine, code="scanner")
    header.set_qform(affine, code="scanner", strip_shears=True)
    header.set_xyzt_units("mm")
    header["vox_offset"] = 352
    header["scl_slope"] = 1
    for field, value in fields.items():
        header[field] = value
    content = header.binaryblock + bytes(4) + voxels.tobytes(order="F")
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return path


def itk_image(voxels: np.ndarray) -> SimpleITK.Image:
    """On the grid `OBLIQUE`."""
    image = SimpleITK.GetImageFromArray(np.ascontiguousarray(voxels.transpose(2, 1, 0)))
    image.SetDirection((LPS[:3, :3] @ DIRECTIONS).ravel().tolist())
    image.SetSpacing(SPACING)
    image.SetOrigin((-ORIGIN[0], -ORIGIN[1], ORIGIN[2]))
    return image


def edited(path: Path, before: bytes, after: bytes) -> Path:
    content = path.read_bytes()
    assert content.count(before) == 1
    path.write_bytes(content.replace(before, after))
    return path


# --- NIfTI in ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
@pytest.mark.parametrize("kind", [nibabel.Nifti1Image, nibabel.Nifti2Image])
@pytest.mark.parametrize("dtype", ["u1", "i1", "i2", ">u2", "i4", "u4", "i8", "u8", "f4", ">f8"])
def test_every_type_and_byte_order(tmp_path: Path, voxels: np.ndarray, dtype: str, kind: Any, ending: str) -> None:
    stored = (voxels % 100).astype(dtype)
    header = kind.header_class(endianness=">" if dtype.startswith(">") else "<")
    nibabel.save(kind(stored, OBLIQUE, header, dtype=stored.dtype), tmp_path / f"head{ending}")
    volume = read_volume(tmp_path / f"head{ending}")
    np.testing.assert_array_equal(volume.voxels, stored)
    np.testing.assert_allclose(volume.affine, OBLIQUE, atol=1e-6 * 70)
    assert volume.voxels.dtype == np.float32
    assert (volume.name, volume.source) == ("head", str(tmp_path / f"head{ending}"))
    assert volume.spacing == pytest.approx(SPACING, rel=1e-6)


def test_slope_and_intercept_in_full_precision(tmp_path: Path, voxels: np.ndarray) -> None:
    volume = read_volume(save_nifti(tmp_path / "a.nii", voxels, scl_slope=0.25, scl_inter=-7))
    np.testing.assert_array_equal(volume.voxels, voxels * 0.25 - 7)
    unscaled = read_volume(save_nifti(tmp_path / "b.nii", voxels, scl_slope=0, scl_inter=-7))  # 0: no scale at all
    np.testing.assert_array_equal(unscaled.voxels, voxels)


@pytest.mark.parametrize("codes", list(itertools.permutations("RAS")) + list(itertools.permutations("LPI")))
def test_voxels_stay_in_the_order_of_the_file(tmp_path: Path, voxels: np.ndarray, codes: tuple[str, ...]) -> None:
    """Whatever the orientation, voxel (i, j, k) is the file's, and its place is the affine's."""
    axes = {"R": (1, 0, 0), "L": (-1, 0, 0), "A": (0, 1, 0), "P": (0, -1, 0), "S": (0, 0, 1), "I": (0, 0, -1)}
    affine = np.eye(4)
    affine[:3, :3] = np.transpose([axes[code] for code in codes])
    volume = read_volume(save_nifti(tmp_path / "a.nii.gz", voxels, affine))
    np.testing.assert_array_equal(volume.voxels, voxels)
    assert nibabel.aff2axcodes(volume.affine) == codes


def test_sform_goes_before_qform(tmp_path: Path, voxels: np.ndarray) -> None:
    moved = OBLIQUE + np.array([[0, 0, 0, 7.0]] + 3 * [[0] * 4])
    path = save_nifti(tmp_path / "a.nii", voxels, srow_x=moved[0])
    np.testing.assert_allclose(read_volume(path).affine, moved, atol=1e-5)
    path = save_nifti(tmp_path / "b.nii", voxels, srow_x=(-1, 0, 0, 0), sform_code=0)
    np.testing.assert_allclose(read_volume(path).affine, OBLIQUE, atol=1e-5)


@pytest.mark.parametrize("turned", [False, True])
def test_an_sform_and_a_qform_that_disagree_about_left_are_refused(
    tmp_path: Path, voxels: np.ndarray, turned: bool
) -> None:
    """Mirrored, or turned by 180 degrees about the vertical axis."""
    rows = {"srow_x": (-2, 0, 0, 0), "srow_y": (0, -2 if turned else 2, 0, 0), "srow_z": (0, 0, 2, 0)}
    path = save_nifti(tmp_path / "a.nii", voxels, np.diag([2, 2, 2, 1]), **rows)
    with pytest.raises(ThoradError, match=r"a\.nii: its sform and its qform disagree about which side is left"):
        read_volume(path)
    path = save_nifti(tmp_path / "b.nii", voxels, np.diag([2, 2, 2, 1]), **rows, qform_code=0)
    assert read_volume(path).affine[0, 0] == -2


def test_a_mask_may_be_empty_and_a_scan_may_not(tmp_path: Path, voxels: np.ndarray) -> None:
    path = save_nifti(tmp_path / "a.nii", np.zeros_like(voxels))
    assert not read_volume(path, constant=True).voxels.any()
    with pytest.raises(ThoradError, match="every voxel is 0"):
        read_volume(path)


def test_a_voxel_of_a_sheared_grid(tmp_path: Path, voxels: np.ndarray) -> None:
    sheared = np.array([[1, 1, 0, 0], [0, 1, 0, 0], [0, 0, 2, 0], [0, 0, 0, 1.0]])
    volume = read_volume(save_nifti(tmp_path / "a.nii", voxels, sheared, qform_code=0))
    assert volume.voxel_mm3 == pytest.approx(2), "not 1 x 1.41 x 2 mm"


def test_one_volume_of_four_dimensions(tmp_path: Path, voxels: np.ndarray) -> None:
    volume = read_volume(save_nifti(tmp_path / "a.nii", voxels[..., None]))
    np.testing.assert_array_equal(volume.voxels, voxels)


def test_kind_is_told_by_content_not_by_name(tmp_path: Path, voxels: np.ndarray) -> None:
    save_nifti(tmp_path / "a.nii.gz", voxels).rename(tmp_path / "a.mha")
    save_nifti(tmp_path / "b.nii", voxels).rename(tmp_path / "b.nii.gz")
    for name in ("a.mha", "b.nii.gz"):
        np.testing.assert_array_equal(read_volume(tmp_path / name).voxels, voxels)


def test_extensions_are_passed_over(tmp_path: Path, voxels: np.ndarray) -> None:
    image = nibabel.Nifti1Image(voxels, OBLIQUE)
    image.header.extensions.append(nibabel.nifti1.Nifti1Extension("comment", b"x" * 5000))
    nibabel.save(image, tmp_path / "a.nii.gz")
    np.testing.assert_array_equal(read_volume(tmp_path / "a.nii.gz").voxels, voxels)


def test_packed_in_several_members(tmp_path: Path, voxels: np.ndarray) -> None:
    """As programs write it that pack on several cores."""
    content = save_nifti(tmp_path / "a.nii", voxels).read_bytes()
    (tmp_path / "a.nii.gz").write_bytes(gzip.compress(content[:700]) + gzip.compress(content[700:]))
    np.testing.assert_array_equal(read_volume(tmp_path / "a.nii.gz").voxels, voxels)


def test_nan_counts_as_nothing(tmp_path: Path, voxels: np.ndarray) -> None:
    stored = voxels.astype(np.float32)
    stored[:, :2] = np.nan
    expected = np.where(np.isnan(stored), 0, stored)
    np.testing.assert_array_equal(read_volume(save_nifti(tmp_path / "a.nii", stored)).voxels, expected)


def test_real_volumes_as_nibabel_reads_them(shared_data: Path) -> None:
    for path in sorted((shared_data / "volumes").glob("*t1*.nii.gz")):
        volume = read_volume(path)
        expected = nibabel.load(path)
        np.testing.assert_array_equal(volume.voxels, np.asarray(expected.dataobj, dtype=np.float32))
        np.testing.assert_array_equal(volume.affine, expected.affine)


# --- NRRD and MetaImage in ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("packed", [False, True], ids=["raw", "packed"])
@pytest.mark.parametrize("ending", ["nrrd", "nhdr", "mha", "mhd"])
@pytest.mark.parametrize("dtype", ["u1", "i2", "u2", "i4", "f4", "f8"])
def test_nrrd_and_metaimage_of_simpleitk(
    tmp_path: Path, voxels: np.ndarray, dtype: str, ending: str, packed: bool
) -> None:
    stored = (voxels % 100).astype(dtype)
    SimpleITK.WriteImage(itk_image(stored), tmp_path / f"head.{ending}", packed)
    volume = read_volume(tmp_path / f"head.{ending}")
    np.testing.assert_array_equal(volume.voxels, stored)
    np.testing.assert_allclose(volume.affine, OBLIQUE, atol=1e-12)
    assert (volume.name, volume.header) == ("head", None)


@pytest.mark.parametrize("space", ["right-anterior-superior", "LAS", "left-posterior-superior"])
@pytest.mark.parametrize("endian", ["little", "big"])
def test_nrrd_by_hand_in_every_space(tmp_path: Path, voxels: np.ndarray, space: str, endian: str) -> None:
    """SimpleITK reads the same from it."""
    header = (
        f"NRRD0005\r\n# by hand\r\ntype: signed short int\r\ndimension: 3\r\nspace: {space}\r\nsizes: 9 11 13\r\n"
        "space directions: (0,1.5,0) (-1,0,0) (0,0,2)\r\nkinds: domain domain domain\r\nspace origin: (3,4,5)\r\n"
        f"encoding: raw\r\nendian: {endian}\r\nnote:=of: nothing\r\n\r\n"
    )
    content = voxels.astype("<i2" if endian == "little" else ">i2").tobytes(order="F")
    (tmp_path / "a.nrrd").write_bytes(header.encode() + content)
    volume = read_volume(tmp_path / "a.nrrd")
    image = SimpleITK.ReadImage(tmp_path / "a.nrrd")
    np.testing.assert_array_equal(volume.voxels, voxels)
    np.testing.assert_array_equal(SimpleITK.GetArrayFromImage(image).transpose(2, 1, 0), voxels)
    x = 1 if space.startswith("right") else -1
    y = -1 if "posterior" in space else 1
    np.testing.assert_array_equal(
        volume.affine, [[0, -x, 0, 3 * x], [1.5 * y, 0, 0, 4 * y], [0, 0, 2, 5], [0, 0, 0, 1]]
    )
    for index in ((0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1)):
        point = np.array([*image.TransformIndexToPhysicalPoint(index), 1])
        np.testing.assert_allclose(volume.affine @ [*index, 1], LPS @ point)


REFUSED_TEXTS = [
    ("nrrd", b"space: left-posterior-superior", b"space: scanner-xyz", "doesn't say how it lies in the scanner"),
    ("nrrd", b"space directions:", b"directionless:", "doesn't say how it lies in the scanner"),
    ("nrrd", b"sizes: 9 11 13", b"sizes: 9 11 4 13", "several volumes in one file"),
    ("nrrd", b"sizes: 9 11 13", b"sizes: 9 11 1300", "9 x 11 x 1300 voxels; expected 8 to 1024"),
    ("nrrd", b"sizes: 9 11 13", b"sizes: 9 11 14", "incomplete: 2574 bytes of voxels, 2772 expected"),
    ("nrrd", b"sizes: 9 11 13", b"sizes: 9 eleven 13", "damaged"),
    ("nrrd", b"type: short", b"type: block", "voxels of type block"),
    ("nrrd", b"encoding: raw", b"encoding: hex", "expected raw or gzip"),
    ("nrrd", b"encoding: raw", b"encoding: raw\nbyte skip: -1", "bytes to skip"),
    ("nrrd", b"endian: little\n", b"", "`endian`"),
    ("nrrd", b"type: short\n", b"", "has no `type`"),
    ("nrrd", b"encoding: raw", b"encoding: gzip", "damaged"),
    ("nhdr", b"data file: a.raw", b"data file: ../../secret.raw", "expected one file in the same folder"),
    ("nhdr", b"data file: a.raw", b"data file: a%03d.raw 1 9 1", "expected one file in the same folder"),
    ("mhd", b"ElementDataFile = a.raw", b"ElementDataFile = /a.raw", "expected one file in the same folder"),
    ("mhd", b"ElementDataFile = a.raw", b"ElementDataFile = LIST", "expected one file in the same folder"),
    ("mha", b"TransformMatrix", b"NoMatrix", "doesn't say how it lies in the scanner"),
    ("mha", b"DimSize = 9 11 13", b"DimSize = 9 11 14", "incomplete: 2574 bytes of voxels, 2772 expected"),
    ("mha", b"ElementSpacing = 1 2 0.5", b"ElementSpacing = 1 0 0.5", "voxels of 1 x 0 x 0.5 mm"),
    ("mha", b"ElementType = MET_SHORT", b"ElementType = MET_SHORT_ARRAY", "voxels of type MET_SHORT_ARRAY"),
    ("mha", b"ElementType = MET_SHORT", b"ElementNumberOfChannels = 3\nElementType = MET_SHORT", "3 numbers in each"),
    ("mha", b"BinaryData = True", b"BinaryData = False", "expected binary voxels"),
    ("mha", b"ElementDataFile = LOCAL", b"Element = LOCAL", "its header has no end"),
]


@pytest.mark.parametrize(("ending", "before", "after", "message"), REFUSED_TEXTS)
def test_refused_text_headers(
    tmp_path: Path, voxels: np.ndarray, ending: str, before: bytes, after: bytes, message: str
) -> None:
    SimpleITK.WriteImage(itk_image(voxels), tmp_path / f"a.{ending}", False)
    (tmp_path / "a%03d.raw 1 9 1").mkdir()
    path = edited(tmp_path / f"a.{ending}", before, after)
    with pytest.raises(ThoradError, match=message) as caught:
        read_volume(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("ending", ["nrrd", "mha", "nii.gz"])
def test_every_damaged_byte_of_packed_voxels_is_seen(tmp_path: Path, voxels: np.ndarray, ending: str) -> None:
    """SimpleITK's own reader hands damaged MHA voxels on as if they were whole."""
    path = tmp_path / f"a.{ending}"
    SimpleITK.WriteImage(itk_image(voxels), path, True)
    content = path.read_bytes()
    for at in range(len(content) - 800, len(content) - 12, 7):
        path.write_bytes(content[:at] + bytes([content[at] ^ 4]) + content[at + 1 :])
        with pytest.raises(ThoradError, match=r"damaged|more voxels"):
            read_volume(path)


# --- refused ----------------------------------------------------------------------------------------------------------

REFUSED_FIELDS = [
    ({"dim": (4, 9, 11, 13, 2, 1, 1, 1)}, r"several volumes in one file \(9 x 11 x 13 x 2\)"),
    ({"dim": (2, 9, 143, 1, 1, 1, 1, 1)}, "one slice"),
    ({"dim": (3, 99, 13, 1, 1, 1, 1, 1)}, "one slice"),
    ({"dim": (3, 9, 143, 4, 1, 1, 1, 1)}, "9 x 143 x 4 voxels; expected 8 to 1024"),
    ({"dim": (3, 9, 11, 2000, 1, 1, 1, 1)}, "9 x 11 x 2000 voxels; expected 8 to 1024"),
    ({"dim": (3, 1024, 1024, 257, 1, 1, 1, 1)}, f"expected .* {LARGEST_VOLUME} in all"),
    ({"dim": (3, 9, -11, 13, 1, 1, 1, 1)}, "9 x -11 x 13 voxels"),
    ({"dim": (3, 9, 11, 14, 1, 1, 1, 1)}, "incomplete: 2574 bytes of voxels, 2772 expected"),
    ({"dim": (0, 9, 11, 13, 1, 1, 1, 1)}, "damaged header: 0 dimensions"),
    ({"datatype": 128, "bitpix": 24}, "voxels of RGB"),
    ({"datatype": 32, "bitpix": 64}, "voxels of complex64.*magnitude"),
    ({"datatype": 77}, "damaged"),
    ({"vox_offset": 1e30}, r"voxels from byte 1e\+30"),
    ({"vox_offset": np.nan}, "voxels from byte nan"),
    ({"vox_offset": 2e6}, "incomplete"),
    ({"sform_code": 0, "qform_code": 0}, "doesn't say how it lies in the scanner"),
    ({"sform_code": 0, "pixdim": (1, 1, 0, 1, 1, 1, 1, 1)}, "voxels of 1 x 0 x 1 mm"),
    ({"srow_y": (0, 0, 0, 0), "srow_x": (0, 0, 0, 0), "srow_z": (0, 0, 0, 0)}, "voxels of 0 x 0 x 0 mm"),
    ({"srow_y": OBLIQUE[0], "srow_z": OBLIQUE[0]}, "axes that aren't in one plane"),
    ({"srow_x": (np.nan, 0, 0, 0)}, "impossible affine: voxels of nan"),
    ({"srow_x": (1000, 0, 0, 0)}, "voxels of 1000 x .* Is its unit mm"),
    ({"srow_x": (*OBLIQUE[0][:3], 1e8)}, r"the first at 1e\+08"),
    ({"sform_code": 0, "quatern_b": 5}, "damaged"),
    ({"scl_slope": 1e38}, "infinite or too large for float32"),
    ({"magic": b"ni1"}, r"a pair of files"),
    ({"magic": b""}, r"a pair of files"),
    ({"sizeof_hdr": 123}, "not a volume. Expected NIfTI"),
]


@pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
@pytest.mark.parametrize(("fields", "message"), REFUSED_FIELDS)
def test_refused_headers(tmp_path: Path, voxels: np.ndarray, fields: dict[str, Any], message: str, ending: str) -> None:
    path = save_nifti(tmp_path / f"a{ending}", voxels, **fields)
    if ending == ".nii.gz" and "incomplete" in message:
        message = "incomplete"  # only found out where the stream ends
    with pytest.raises(ThoradError, match=message) as caught:
        read_volume(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("value", "message"), [(5, "every voxel is 5"), (np.inf, "infinite"), (1e300, "too large"), (np.nan, "every voxel")]
)
def test_refused_voxels(tmp_path: Path, value: float, message: str) -> None:
    stored = np.full(SHAPE, value)
    if value == np.inf:
        stored[1:] = 1
    with pytest.raises(ThoradError, match=message):
        read_volume(save_nifti(tmp_path / "a.nii", stored))


@pytest.mark.parametrize(
    "content", [b"", b"\x89PNG\r\n\x1a\n" + bytes(500), gzip.compress(b"a text", mtime=0), b"MGH" * 200]
)
def test_refused_files(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.nii").write_bytes(content)
    with pytest.raises(ThoradError, match=r"a\.nii: (the file is empty|not a volume)"):
        read_volume(tmp_path / "a.nii")


def test_no_such_file_and_folders(tmp_path: Path) -> None:
    with pytest.raises(ThoradError, match="no such file"):
        read_volume(tmp_path / "a.nii")
    with pytest.raises(ThoradError, match="not a file"):
        read_volume(tmp_path)
    os.mkfifo(tmp_path / "pipe.nii")
    with pytest.raises(ThoradError, match="not a file"):
        read_volume(tmp_path / "pipe.nii")
    with pytest.raises(ThoradError, match="can't be read"):
        read_volume(tmp_path / ("x" * 5000))


def test_a_bomb_is_not_inflated(tmp_path: Path, voxels: np.ndarray) -> None:
    """64 MB of zeros behind a small header, and a header that asks for more than its file can hold."""
    import tracemalloc

    content = save_nifti(tmp_path / "a.nii", voxels).read_bytes()
    bomb = gzip.compress(content + bytes(2**26), compresslevel=1)
    (tmp_path / "bomb.nii.gz").write_bytes(bomb)
    empty = save_nifti(tmp_path / "b.nii", voxels, dim=(3, 1024, 1024, 256, 1, 1, 1, 1)).read_bytes()
    (tmp_path / "empty.nii.gz").write_bytes(gzip.compress(empty))
    tracemalloc.start()
    try:
        with pytest.raises(ThoradError, match="holds far more voxels than its header says"):
            read_volume(tmp_path / "bomb.nii.gz")
        with pytest.raises(ThoradError, match="incomplete"):
            read_volume(tmp_path / "empty.nii.gz")
        assert tracemalloc.get_traced_memory()[1] < 2**23
    finally:
        tracemalloc.stop()


def test_without_nibabel(tmp_path: Path, voxels: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    SimpleITK.WriteImage(itk_image(voxels), tmp_path / "a.nrrd")
    path = save_nifti(tmp_path / "a.nii", voxels)
    monkeypatch.setitem(sys.modules, "nibabel", None)
    with pytest.raises(ThoradError, match=r"nibabel, which is not installed. pip install 'thorad\[volumes\]'"):
        read_volume(path)
    assert read_volume(tmp_path / "a.nrrd").voxels.shape == SHAPE


# --- NIfTI out --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
@pytest.mark.parametrize("kind", [nibabel.Nifti1Image, nibabel.Nifti2Image])
def test_maps_lie_on_the_input_s_own_grid(tmp_path: Path, voxels: np.ndarray, ending: str, kind: Any) -> None:
    image = kind(voxels, OBLIQUE)
    image.set_sform(OBLIQUE, code="aligned")
    image.set_qform(OBLIQUE, code="scanner")
    image.header.set_xyzt_units("mm", "sec")
    nibabel.save(image, tmp_path / f"head{ending}")
    volume = read_volume(tmp_path / f"head{ending}")
    result = np.where(voxels > 400, voxels / 7, np.nan)
    write_nifti(tmp_path / f"map{ending}", result, volume, "an anomaly map")
    before, after = nibabel.load(tmp_path / f"head{ending}"), nibabel.load(tmp_path / f"map{ending}")
    assert type(after) is kind
    np.testing.assert_array_equal(after.affine, before.affine)
    for field in ("qform_code", "sform_code", "xyzt_units", "pixdim", "quatern_b", "quatern_c", "qoffset_x", "srow_y"):
        np.testing.assert_array_equal(after.header[field], before.header[field])
    assert after.get_data_dtype() == np.float32
    np.testing.assert_array_equal(np.asarray(after.dataobj), result.astype(np.float32))
    assert after.header["descrip"].item() == b"an anomaly map"


def test_slope_is_not_applied_twice(tmp_path: Path, voxels: np.ndarray) -> None:
    volume = read_volume(save_nifti(tmp_path / "a.nii", voxels, scl_slope=0.25, scl_inter=-7))
    write_nifti(tmp_path / "b.nii", volume.voxels, volume, "")
    np.testing.assert_array_equal(read_volume(tmp_path / "b.nii").voxels, volume.voxels)


def test_masks_are_bytes(tmp_path: Path, voxels: np.ndarray) -> None:
    volume = read_volume(save_nifti(tmp_path / "a.nii", voxels))
    write_nifti(tmp_path / "mask.nii.gz", voxels > 400, volume, "a mask")
    mask = nibabel.load(tmp_path / "mask.nii.gz")
    assert mask.get_data_dtype() == np.uint8
    np.testing.assert_array_equal(np.asarray(mask.dataobj), voxels > 400)


def test_nothing_of_the_patient_is_handed_on(tmp_path: Path, voxels: np.ndarray) -> None:
    """Every byte of the header that isn't geometry, and the extensions, hold a name; the map's file doesn't."""
    image = nibabel.Nifti1Image(voxels, OBLIQUE)
    for field, value in {
        "descrip": b"DOE^JANE; born 1970",
        "aux_file": b"DOE^JANE",
        "intent_name": b"DOE^JANE",
        "db_name": b"DOE^JANE",
        "data_type": b"DOE^JANE",
    }.items():
        image.header[field] = value
    image.header.extensions.append(nibabel.nifti1.Nifti1Extension("comment", b"DOE^JANE"))
    nibabel.save(image, tmp_path / "a.nii")
    assert (tmp_path / "a.nii").read_bytes().count(b"DOE^JANE") == 6
    volume = read_volume(tmp_path / "a.nii")
    write_nifti(tmp_path / "DOE.nii.gz", volume.voxels, volume, "a map")
    packed = (tmp_path / "DOE.nii.gz").read_bytes()
    assert b"DOE" not in packed
    assert b"DOE" not in gzip.decompress(packed)
    assert not nibabel.load(tmp_path / "DOE.nii.gz").header.extensions


def test_the_same_voxels_are_the_same_bytes(tmp_path: Path, voxels: np.ndarray) -> None:
    volume = read_volume(save_nifti(tmp_path / "a.nii", voxels))
    written = []
    for name, order in (("b", "C"), ("c", "F")):
        write_nifti(tmp_path / f"{name}.nii.gz", np.array(voxels, order=order), volume, "x")
        written.append((tmp_path / f"{name}.nii.gz").read_bytes())
    assert written[0] == written[1]
    assert written[0][4:8] == bytes(4)  # the time of day


def test_volumes_of_other_kinds_get_a_fresh_header(tmp_path: Path, voxels: np.ndarray) -> None:
    """SimpleITK, which wrote the input, finds the output's voxels at the same places."""
    image = itk_image(voxels)
    SimpleITK.WriteImage(image, tmp_path / "a.nrrd")
    volume = read_volume(tmp_path / "a.nrrd")
    write_nifti(tmp_path / "map.nii.gz", volume.voxels, volume, "a map")
    written = SimpleITK.ReadImage(tmp_path / "map.nii.gz")
    for index in ((0, 0, 0), (8, 10, 12), (3, 0, 7)):
        place = image.TransformIndexToPhysicalPoint(index)
        np.testing.assert_allclose(written.TransformIndexToPhysicalPoint(index), place, atol=1e-4)
    header = nibabel.load(tmp_path / "map.nii.gz").header
    assert (int(header["sform_code"]), int(header["qform_code"]), header.get_xyzt_units()[0]) == (1, 1, "mm")


def test_description_is_cut_to_what_fits(tmp_path: Path, voxels: np.ndarray) -> None:
    volume = read_volume(save_nifti(tmp_path / "a.nii", voxels))
    write_nifti(tmp_path / "b.nii", voxels, volume, "a" * 78 + "é")
    assert nibabel.load(tmp_path / "b.nii").header["descrip"].item() == b"a" * 78


def test_written_whole_or_not_at_all(tmp_path: Path, voxels: np.ndarray) -> None:
    volume = read_volume(save_nifti(tmp_path / "a.nii", voxels))
    with pytest.raises(ThoradError, match="can't be written"):
        write_nifti(tmp_path / "a.nii" / "b.nii", voxels, volume, "")
    with pytest.raises(ValueError, match=r"expected voxels of shape \(9, 11, 13\)"):
        write_nifti(tmp_path / "b.nii", voxels[1:], volume, "")
    assert [path.name for path in tmp_path.iterdir()] == ["a.nii"]


def test_spacing_of_a_volume() -> None:
    volume = Volume(np.zeros(SHAPE, np.float32), OBLIQUE, "made", "made")
    assert volume.spacing == pytest.approx(SPACING)


def test_zlib_stream_is_read_in_pieces(tmp_path: Path) -> None:
    """Packed MetaImage voxels of more than one read of the file."""
    stored = np.random.default_rng(3).integers(0, 60000, (64, 64, 32)).astype(np.uint16)
    SimpleITK.WriteImage(SimpleITK.GetImageFromArray(stored.transpose(2, 1, 0)), tmp_path / "a.mha", True)
    assert (tmp_path / "a.mha").stat().st_size > 3 * 2**16
    np.testing.assert_array_equal(read_volume(tmp_path / "a.mha").voxels, stored)
