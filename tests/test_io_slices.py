"""The pictures of a scan: a slice has one name wherever it is cut, and what can't be looked at is refused."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from test_io_dicom import DX, base, blob, save
from test_volume_detection import head, in_place
from thorad.errors import ThoradError
from thorad.io import slices
from thorad.io.images import write_png16
from thorad.io.scans import Scan, find_scans, read_picture
from thorad.io.slices import axial_images, cut_slices, images_of, slice_name
from thorad.io.volumes import Volume, write_nifti


@pytest.fixture
def volume_scan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Scan:
    """A volume that registers to where it lies already."""
    volume = head()
    write_nifti(tmp_path / "in" / "head.nii.gz", volume.voxels, volume, "")
    monkeypatch.setattr(slices, "register", lambda volume, *, skull: in_place(volume))
    return find_scans([tmp_path / "in"])["head"]


def test_pictures_give_themselves(tmp_path: Path) -> None:
    write_png16(tmp_path / "a.png", np.linspace(0, 1, 400).reshape(20, 20))
    save(base(DX, "DX", blob()[:, :, 0]), tmp_path / "hand.dcm")
    for name, scan in find_scans([tmp_path]).items():
        (image,) = images_of(scan, skull=True, indices=())
        assert image.name == name
        np.testing.assert_array_equal(image.pixels, read_picture(scan.path).pixels)


def test_slices_are_named_as_their_files_are(volume_scan: Scan, tmp_path: Path) -> None:
    images = images_of(volume_scan, skull=True, indices=[92, 96])
    for index, image in zip((92, 96), images, strict=True):
        write_png16(tmp_path / "out" / "head" / f"{slice_name(index)}.png", image.pixels / image.pixels.max())
    assert [image.name for image in images] == list(find_scans([tmp_path / "out"]))
    assert [image.spacing for image in images] == [(1.0, 1.0)] * 2
    assert images[0].source == f"{volume_scan.path}, slice 92 of the template"


def test_a_volume_for_a_model_of_pictures(volume_scan: Scan) -> None:
    with pytest.raises(ThoradError, match=r"head\.nii\.gz: a volume, but the model is for pictures"):
        images_of(volume_scan, skull=True, indices=())


def test_a_doubtful_registration_is_no_reference(volume_scan: Scan, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(volume: Volume, *, skull: bool) -> object:
        return replace(in_place(volume, "the registration failed"), doubtful=True)

    monkeypatch.setattr(slices, "register", failing)
    with pytest.raises(ThoradError, match=r"head\.nii\.gz: the registration failed\. .*thorad prepare"):
        images_of(volume_scan, skull=True, indices=[95])


def test_what_shows_nothing_is_named(tmp_path: Path) -> None:
    volume = head()
    with pytest.raises(ThoradError, match=r"head\.nii, slice 188 of the template: The image is nearly empty"):
        axial_images(
            in_place(replace(volume, voxels=volume.voxels * (np.arange(volume.voxels.shape[2]) < 9))), [188], skull=True
        )
    dark = np.zeros((20, 20))
    dark[0, 0] = 1
    write_png16(tmp_path / "dark.png", dark)
    with pytest.raises(ThoradError, match=r"dark\.png: The image is nearly empty"):
        images_of(find_scans([tmp_path])["dark"], skull=True, indices=())


def test_an_anomaly_counts_in_the_brain_and_where_the_scan_reaches() -> None:
    volume = head()
    ones = np.ones_like(volume.voxels)
    brain = np.zeros(ones.shape, dtype=bool)
    brain[10:40, 15:45, 10:] = True
    (image,) = axial_images(replace(in_place(volume), brain=brain), [92], skull=True)
    assert image.brain is not None
    rows, columns = np.nonzero(image.brain)  # of 1 mm, rows from anterior to posterior
    # Half a voxel of 4 mm beyond the outer ones' centres, and 4 mm more.
    np.testing.assert_allclose([columns.min(), columns.max()], [4 * 10 - 6, 4 * 39 + 6], atol=1)
    np.testing.assert_allclose([232 - rows.max(), 232 - rows.min()], [4 * 15 - 6, 4 * 44 + 6], atol=1)
    (all_of_it,) = axial_images(replace(in_place(volume), brain=ones > 0), [92], skull=True)
    assert all_of_it.brain is not None
    _, columns = np.nonzero(all_of_it.brain)
    last = 4 * (ones.shape[0] - 1)
    np.testing.assert_allclose([columns.min(), columns.max()], [2, last + 2 - 3], atol=1)  # not at the scan's end


def test_slices_are_bias_corrected() -> None:
    volume = head()
    bias = Volume(np.full((3, 3, 3), 2.0, np.float32), np.diag([150.0, 150, 150, 1]), "", "")
    bias.affine[:3, 3] = -150
    plain = cut_slices(in_place(volume), [92], skull=True)
    np.testing.assert_allclose(cut_slices(replace(in_place(volume), bias=bias), [92], skull=True), plain / 2)
