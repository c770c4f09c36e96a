"""Volumes through the detector: on their own grid, with warnings where the model is asked for more than it knows."""

import csv
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter, map_coordinates

from test_cli import thorad_command
from test_io_dicom import save, slices
from thorad.calibration import Calibration
from thorad.check import RefusedError
from thorad.detector import Detector
from thorad.errors import ThoradError
from thorad.io.registration import Registration
from thorad.io.slices import axial_images
from thorad.io.template import MNI_2009A
from thorad.io.volumes import Volume, read_volume, write_nifti
from thorad.volume_detection import RefusedVolumeError, detect_volume

LESION_MM = (30.0, -18.0, 24.0)
"""In the white matter of the right hemisphere, template RAS."""


@pytest.fixture(scope="module")
def volume_model(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model, said to know slices 95 to 97 of the template."""
    folder = tmp_path_factory.mktemp("volumes") / "tiny"
    shutil.copytree(tiny_model, folder)
    recipe = (folder / "recipe.toml").read_text()
    before, _, after = recipe.partition("[network]")
    volume = '[volume]\ntemplate = "mni152-2009a"\nskull = true\naxial_slices = [95, 97]\n\n'
    before = before.partition("[volume]")[0]
    (folder / "recipe.toml").write_text(f"{before}{volume}[network]{after}")
    return folder


def head(spacing: float = 4.0) -> Volume:
    """A smooth blob on the template's own axes and origin."""
    shape = tuple(int(side / spacing) for side in MNI_2009A.shape)
    affine = np.diag([spacing, spacing, spacing, 1.0])
    affine[:3, 3] = MNI_2009A.origin_mm
    noise = np.random.default_rng(0).random(shape)
    return Volume((gaussian_filter(noise, 2) * 1000).astype(np.float32), affine, "head.nii", "head")


def in_place(volume: Volume, warning: str | None = None) -> Registration:
    return Registration(to_template=np.eye(4), overlap=1.0, similarity=1.0, warning=warning, volume=volume)


def test_maps_of_slices_lie_on_the_volumes_grid(volume_model: Path) -> None:
    volume = head()
    detector = Detector(volume_model, method="zscore", device="cpu")
    found = detect_volume(detector, volume, indices=[92, 96], registration=in_place(volume))
    assert found.indices == (92, 96)
    assert found.anomaly_map.shape == found.pseudo_healthy.shape == volume.voxels.shape
    for k, one in zip((23, 24), found.slices, strict=True):  # slices 92 and 96 of 1 mm are 23 and 24 of 4 mm
        # Rows of a picture go from anterior to posterior.
        np.testing.assert_allclose(
            found.anomaly_map[:, :, k], one.anomaly_map[::-1].T[::4, ::4][:49, :58], rtol=1e-5, atol=1e-5
        )
    assert np.isnan(found.anomaly_map[:, :, :22]).all()
    assert np.isnan(found.anomaly_map[:, :, 26:]).all()
    assert found.score == max(one.score for one in found.slices)
    assert found.network_calls == 0
    assert found.mask is None
    np.testing.assert_array_equal(found.judged, np.isfinite(found.anomaly_map))


def test_slices_are_the_models_own_unless_asked(volume_model: Path) -> None:
    volume = head()
    detector = Detector(volume_model, method="zscore", device="cpu")
    own = detect_volume(detector, volume, registration=in_place(volume))
    assert own.indices == (95, 96, 97)
    assert own.check.status == "ok"
    assert [one.name for one in own.slices] == [f"head__slice_0{index}" for index in (95, 96, 97)]
    other = detect_volume(detector, volume, indices=[97, 98, 98], registration=in_place(volume, "it fits badly"))
    assert other.check.warnings[0] == "it fits badly"
    assert other.check.warnings[1].startswith(
        "1 of the 2 slices are outside what model 'tiny' was trained on (slices 95 to 97)"
    )
    assert own.where == "slices 95 to 97 of MNI152"
    assert [f"head, slice {index}" in own._repr_html_() for index in (94, 95, 96, 97)] == [False, True, True, True]
    assert "Warning: it fits badly" in other._repr_html_()


def test_draws_agree_over_all_slices(volume_model: Path) -> None:
    volume = head()
    found = detect_volume(Detector(volume_model, threshold=0.03), volume, registration=in_place(volume))
    one, other = (np.stack([each.draw_masks[draw] for each in found.slices]) for draw in (0, 1))
    expected = 2 * (one & other).sum() / (one.sum() + other.sum())
    assert 0 < expected < 1
    assert found.draw_agreement == pytest.approx(expected)
    assert len({each.draw_agreement for each in found.slices}) == 3
    assert found.network_calls == 3 * 2 * 8
    assert f"draws agree {expected:.2f}" in repr(found)
    single = detect_volume(Detector(volume_model, threshold=0.03, draws=1), volume, registration=in_place(volume))
    assert single.draw_agreement is None


def test_nothing_outside_the_brain_counts(volume_model: Path) -> None:
    volume = head()
    detector = Detector(volume_model, method="zscore", device="cpu")
    whole = detect_volume(detector, volume, indices=[96], registration=in_place(volume))
    brain = np.indices(volume.voxels.shape)[0] < 24
    half = detect_volume(detector, volume, indices=[96], registration=replace(in_place(volume), brain=brain))
    assert np.nanmax(whole.anomaly_map[34:]) > 0
    np.testing.assert_array_equal(np.nan_to_num(half.anomaly_map[34:]), 0)  # 24 voxels, 4 mm, and a pixel of 7 mm
    assert [whole.judged[30:45, 20:40, 24].all(), half.judged[27:].any()] == [True, False]
    assert half.judged[4:23, 20:40, 24].all()
    assert not half.judged[np.isnan(half.anomaly_map)].any()
    inner = np.s_[4:20, 4:-4]  # not where the scan ends
    np.testing.assert_array_equal(half.anomaly_map[inner], whole.anomaly_map[inner])
    size = detector.model_size
    inside = detector.inside(
        replace(axial_images(in_place(volume), [96], skull=True)[0], brain=np.zeros((233, 197), dtype=bool))
    )
    assert not inside.any()
    assert inside.shape == (1, size, size)
    assert detector.scores(torch.ones(1, 1, size, size), inside[None]).tolist() == [0]
    none = detect_volume(detector, volume, indices=[96], registration=replace(in_place(volume), brain=brain & False))
    assert none.score == 0
    assert none.check.warnings[-1] == "the brain doesn't reach slice 96"


def test_what_cannot_be_looked_at_is_refused(tiny_model: Path, volume_model: Path) -> None:
    volume = head()
    detector = Detector(volume_model, method="zscore", device="cpu")
    with pytest.raises(ThoradError, match="expected indices from 0 to 188"):
        detect_volume(detector, volume, indices=[189], registration=in_place(volume))
    nothing = replace(volume, voxels=np.where(np.indices(volume.voxels.shape)[2] < 5, volume.voxels, 0))
    with pytest.raises(ThoradError, match=r"head\.nii, slice 95 of the template: The image is nearly empty"):
        detect_volume(detector, volume, indices=[95], registration=in_place(nothing))
    with pytest.raises(ThoradError, match="is for pictures, not for volumes"):
        detect_volume(Detector(tiny_model, method="zscore", device="cpu"), volume)


def test_a_failed_registration_is_refused_unless_forced(volume_model: Path) -> None:
    volume = head()
    failed = replace(in_place(volume, "it failed"), doubtful=True)
    with pytest.raises(RefusedVolumeError, match=r"head\.nii: refused: it failed") as refused:
        detect_volume(Detector(volume_model, method="zscore", device="cpu"), volume, registration=failed)
    assert refused.value.registration is failed
    forced = detect_volume(
        Detector(volume_model, method="zscore", device="cpu", force=True), volume, registration=failed
    )
    assert forced.check.refusals == ("it failed",)
    assert "Forced: it failed" in forced._repr_html_()


def test_a_ct_is_refused_before_it_is_registered(volume_model: Path) -> None:
    volume = head()
    ct = replace(volume, voxels=np.where(volume.voxels > 500, volume.voxels, -1000.0).astype(np.float32))
    with pytest.raises(RefusedError, match=r"head\.nii: refused: its values go from -1000 to .* Hounsfield"):
        detect_volume(Detector(volume_model, method="zscore", device="cpu"), ct)


def test_the_p_value_of_several_slices_is_bonferronis(volume_model: Path) -> None:
    volume = head()
    detector = Detector(volume_model, method="zscore", device="cpu")
    plain = detect_volume(detector, volume, registration=in_place(volume))
    scores = sorted(one.score for one in plain.slices)
    healthy = (*np.linspace(0, scores[-1] * 0.999, 95), *[scores[-1] * 2] * 4)  # 5 / 100 for the highest
    detector.calibration = Calibration({}, detector.model.sha256, {0.01: 0.05}, healthy, "0")
    detector.threshold = 0.05
    found = detect_volume(detector, volume, registration=in_place(volume))
    assert min(one.p_value or 1 for one in found.slices) == pytest.approx(0.05)
    assert found.p_value == pytest.approx(0.15)
    assert found.mask is not None
    np.testing.assert_array_equal(found.mask, np.nan_to_num(found.anomaly_map) > 0.05)
    assert found.findings is not None
    assert sum(finding.pixels for finding in found.findings) == found.mask.sum() > 0
    three_slices = found.findings[0].pixels * 4 * 4 * 3  # of which one plane of voxels of 4 mm takes all
    assert found.findings[0].volume_mm3 == pytest.approx(three_slices)


def oblique_scan(volume: Volume) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Colin27 with a lesion of 9 mm, as a scanner would have taken it with tilted slices of 0.9 x 1.1 x 2 mm.

    Returns:
        (I, J, K) voxels, (4, 4) affine, and the lesion's share of each voxel.
    """
    a, b = np.deg2rad(11), np.deg2rad(-8)
    about_x = np.array([[1, 0, 0], [0, np.cos(a), -np.sin(a)], [0, np.sin(a), np.cos(a)]])
    about_z = np.array([[np.cos(b), -np.sin(b), 0], [np.sin(b), np.cos(b), 0], [0, 0, 1]])
    shape, spacing = (190, 190, 90), np.array([-0.9, -1.1, 2.0])
    affine = np.eye(4)
    affine[:3, :3] = about_z @ about_x * spacing
    affine[:3, 3] = np.array([4.0, -22.0, 5.0]) - affine[:3, :3] @ (np.array(shape) / 2)
    grid = np.indices(volume.voxels.shape).reshape(3, -1)
    millimetres = volume.affine[:3, :3] @ grid + volume.affine[:3, 3:]
    distance = np.linalg.norm(millimetres - np.array(LESION_MM)[:, None], axis=0).reshape(volume.voxels.shape)
    lesion = np.clip(10 - distance, 0, 1)
    sick = volume.voxels * (1 - 0.6 * lesion)
    places = (
        np.linalg.inv(volume.affine)
        @ affine
        @ np.vstack([np.indices(shape).reshape(3, -1), np.ones((1, np.prod(shape)))])
    )
    voxels, share = (
        map_coordinates(values, places[:3], order=1, mode="constant").reshape(shape) for values in (sick, lesion)
    )
    return np.rint(voxels).astype(np.uint16), affine, share


def test_a_lesion_in_an_oblique_head_is_found_where_it_lies(shared_data: Path, tmp_path: Path) -> None:
    """NIfTI and DICOM of one scan in, maps on its own grid out, and nothing of the patient but in DICOM objects."""
    voxels, affine, lesion = oblique_scan(read_volume(shared_data / "volumes" / "colin27_t1_1mm.nii.gz"))
    nifti = tmp_path / "in" / "tilted.nii.gz"
    nifti.parent.mkdir()
    write_nifti(nifti, voxels.astype(np.float32), Volume(voxels.astype(np.float32), affine, "", ""), "")
    for number, dataset in enumerate(slices(voxels, affine)):
        save(dataset, tmp_path / "in" / "Mustermann" / f"{number:03d}.dcm")
    result = thorad_command(
        *(
            "detect",
            tmp_path / "in",
            "--out",
            tmp_path / "out",
            "--device",
            "cpu",
            "--method",
            "thor",
            "--threshold",
            "0.06",
            "--keep-steps",
        )
    )
    assert result.exit_code == 0, result.output
    with (tmp_path / "out" / "cases.csv").open(newline="") as file:
        cases = {row["name"]: row for row in csv.DictReader(file)}
    assert len(cases) == 2
    (series,) = (name for name in cases if name.startswith("mr-"))
    for name in cases:
        folder = tmp_path / "out" / "cases" / name
        anomaly_map = read_nifti(folder / "anomaly_map.nii.gz", affine)
        peak = np.unravel_index(np.nanargmax(anomaly_map), anomaly_map.shape)
        assert lesion[peak] > 0.5, f"{name}: the peak lies at {peak}"
        assert 0 < np.isfinite(anomaly_map).mean() < 0.05
        mask = read_nifti(folder / "mask.nii.gz", affine) > 0
        np.testing.assert_array_equal(mask, np.nan_to_num(anomaly_map) > 0.06)
        assert lesion[mask].mean() > 0.5
        case = json.loads((folder / "case.json").read_text())
        assert lesion[tuple(case["findings"][0]["peak_position"])] > 0.5
        assert (folder / "slices" / "095" / "steps.npz").is_file()
        assert case["message"] == ""
    check_dicom(tmp_path / "out" / "cases" / series / "dicom", tmp_path / "in" / "Mustermann")
    for path in (tmp_path / "out").rglob("*"):
        assert "Mustermann" not in str(path.relative_to(tmp_path))
        if path.is_file() and path.suffix != ".dcm":
            assert b"Mustermann" not in path.read_bytes(), path


def read_nifti(path: Path, affine: np.ndarray) -> np.ndarray:
    import nibabel

    image = nibabel.load(path)
    np.testing.assert_allclose(image.affine, affine, atol=1e-4)
    return np.asarray(image.dataobj)


def check_dicom(found: Path, source: Path) -> None:
    """The objects refer to the scan's own study and instances, and the segmentation's pixels are the mask's."""
    import highdicom
    import nibabel
    import pydicom

    headers = [pydicom.dcmread(path, stop_before_pixels=True) for path in source.iterdir()]
    instances = {header.SOPInstanceUID for header in headers}
    segmentation = highdicom.seg.segread(found / "segmentation.dcm")
    assert segmentation.StudyInstanceUID == headers[0].StudyInstanceUID
    assert segmentation.PatientID == headers[0].PatientID
    mask = np.asarray(nibabel.load(found.parent / "mask.nii.gz").dataobj)
    assert segmentation.pixel_array.sum() == (mask > 0).sum() > 0
    referenced = {uid for _, _, uid in segmentation.get_source_image_uids()}
    assert referenced <= instances
    captures = [pydicom.dcmread(path) for path in sorted((found / "overlay").iterdir())]
    assert {capture.SeriesInstanceUID for capture in captures}.isdisjoint({headers[0].SeriesInstanceUID})
    assert all(capture.pixel_array.shape == (190, 190, 3) for capture in captures)
