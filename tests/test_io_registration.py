import itertools
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import SimpleITK
from scipy import ndimage
from scipy.spatial.transform import Rotation

from thorad.errors import ThoradError
from thorad.io import registration
from thorad.io.registration import Registration, register, template_brain, to_simple_itk
from thorad.io.template import MNI_2009A, cut_axial
from thorad.io.volumes import Volume, read_volume


def moved_by(degrees: tuple[float, float, float], millimetres: tuple[float, float, float]) -> np.ndarray:
    """(4, 4): rotations about the axes to the right, anterior and superior, then a shift."""
    matrix = np.eye(4)
    matrix[:3, :3] = Rotation.from_euler("xyz", degrees, degrees=True).as_matrix()
    matrix[:3, 3] = millimetres
    return matrix


def brain_points() -> np.ndarray:
    """(n, 4): some thousand places in the template's brain, RAS mm, and ones."""
    brain, affine = template_brain()
    voxels = np.argwhere(brain > 0)[::50]
    return np.c_[voxels, np.ones(len(voxels))] @ affine.T


def disagreement(found: np.ndarray, expected: np.ndarray) -> tuple[float, float, float]:
    """Mean and 95th percentile of the distance in the brain, mm, and the angle between two maps to the template."""
    points = brain_points()
    error = found @ np.linalg.inv(expected)
    distance = np.linalg.norm((points @ error.T - points)[:, :3], axis=1)
    u, _, v = np.linalg.svd(error[:3, :3])
    return distance.mean(), np.percentile(distance, 95), np.rad2deg(Rotation.from_matrix(u @ v).magnitude())


def moved_head(head: Volume, move: np.ndarray) -> Volume:
    """The head elsewhere, on another grid: 2.2 x 2 x 1.8 mm, its axes stored left, superior, posterior."""
    centre = head.affine @ [*(np.array(head.voxels.shape) - 1) / 2, 1]
    grid = np.array([[-2.2, 0, 0, 0], [0, 0, -1.8, 0], [0, 2.0, 0, 0], [0, 0, 0, 1]])
    shape = (100, 120, 130)
    grid[:3, 3] = (move @ centre)[:3] - grid[:3, :3] @ (np.array(shape) - 1) / 2
    to_head = np.linalg.inv(head.affine) @ np.linalg.inv(move) @ grid
    voxels = ndimage.affine_transform(head.voxels, to_head, output_shape=shape, order=3)
    return Volume(voxels=voxels, affine=grid, source="moved.nii", name="moved")


@pytest.fixture(scope="module")
def template_as_head() -> Volume:
    voxels, affine = template_brain()
    return Volume(voxels=voxels, affine=affine, source="template.nii", name="template")


@pytest.fixture(scope="module")
def head(shared_data: Path) -> Volume:
    """Colin27 in 2 mm: means of eight voxels."""
    whole = read_volume(shared_data / "volumes" / "colin27_t1_1mm.nii.gz")
    even = whole.voxels[:180, :216, :180]
    voxels = even.reshape(90, 2, 108, 2, 90, 2).mean(axis=(1, 3, 5))
    affine = whole.affine @ np.diag([2.0, 2, 2, 1])
    affine[:3, 3] += whole.affine[:3, :3] @ [0.5, 0.5, 0.5]
    return replace(whole, voxels=voxels, affine=affine, header=None)


def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the last, slow level and most of the bias correction; docs/volumes.md has the figures with them."""
    monkeypatch.setattr(registration, "BIAS_ITERATIONS", (5, 5))
    monkeypatch.setattr(registration, "FINE_MM", ((4.0, 1.0),))


@pytest.fixture(scope="module")
def registered(head: Volume) -> Registration:
    with pytest.MonkeyPatch.context() as monkeypatch:
        quick(monkeypatch)
        return register(head)


ORIENTED = {
    "plain": np.diag([1.0, 2, 3, 1]),
    "flipped, left-handed": np.diag([-1.0, 2, 3, 1]),
    "permuted": np.array([[0, 0, 3.0, 5], [1, 0, 0, -7], [0, -2, 0, 9], [0, 0, 0, 1]]),
    "oblique": moved_by((20, -35, 50), (3, -4, 5)) @ np.diag([1.0, 2, 3, 1]),
    "sheared": np.array([[1, 0.2, 0, -3], [0, 2.0, 0.3, 4], [0.1, 0, 3, 5], [0, 0, 0, 1]]),
}


@pytest.mark.parametrize("affine", ORIENTED.values(), ids=ORIENTED)
def test_simple_itk_has_every_voxel_where_the_affine_puts_it(affine: np.ndarray) -> None:
    voxels = np.arange(4 * 5 * 6, dtype=np.float32).reshape(4, 5, 6)
    image = to_simple_itk(Volume(voxels=voxels, affine=affine, source="a", name="a"))
    for index in itertools.product((0, 3), (0, 4), (0, 2, 5)):
        x, y, z = (affine @ [*index, 1])[:3]
        np.testing.assert_allclose(image.TransformIndexToPhysicalPoint(index), (-x, -y, z), atol=1e-9)  # LPS
        assert image[index] == voxels[index]


def test_template_is_the_grid_of_the_slices(shared_data: Path) -> None:
    brain, affine = template_brain()
    assert brain.shape == (99, 117, 95)
    np.testing.assert_array_equal(affine[:3, 3], MNI_2009A.origin_mm)
    np.testing.assert_array_equal(affine[:3, :3], np.diag([2, 2, 2]))
    np.testing.assert_allclose(brain, brain[::-1], atol=1)  # symmetric


def test_recovers_where_the_template_was_moved_to(template_as_head: Volume) -> None:
    move = moved_by((12, -15, 20), (30, -20, 25)) @ np.diag([1.06, 0.95, 1.03, 1])
    found = register(moved_head(template_as_head, move))
    mean, most, angle = disagreement(found.to_template, np.linalg.inv(move))
    assert mean < 0.3
    assert most < 0.5
    assert angle < 0.3
    assert found.similarity > 0.93
    assert found.overlap > 0.98
    assert found.warning is not None
    assert "skull stripped" in found.warning


def test_real_head_comes_out_where_it_was_registered_before(head: Volume, registered: Registration) -> None:
    """Colin27 was registered to an older MNI template, linearly."""
    mean, most, angle = disagreement(registered.to_template, np.eye(4))
    assert mean < 3
    assert most < 5
    assert angle < 4
    assert registered.warning is None
    assert registered.similarity > 0.6
    assert registered.overlap > 0.9
    assert registered.volume.voxels.shape == head.voxels.shape


def test_moved_head_is_found_again(head: Volume, registered: Registration, monkeypatch: pytest.MonkeyPatch) -> None:
    """The paper's slice is the same, too."""
    quick(monkeypatch)
    move = moved_by((-20, 15, -20), (-25, 30, -30))
    moved = register(moved_head(head, move))
    mean, most, angle = disagreement(moved.to_template @ move, registered.to_template)
    assert mean < 1
    assert most < 1
    assert angle < 1
    one, other = (cut_axial(found.volume, found.to_template, [95])[0].ravel() for found in (registered, moved))
    assert np.corrcoef(one, other)[0, 1] > 0.98
    assert moved.warning is None


def known_pose(monkeypatch: pytest.MonkeyPatch, to_template: np.ndarray) -> None:
    """Skip the search: the registration ends with this transform."""
    quick(monkeypatch)
    lps = np.diag([-1, -1, 1, 1]) @ np.linalg.inv(to_template) @ np.diag([-1, -1, 1, 1])
    transform = SimpleITK.AffineTransform(lps[:3, :3].ravel().tolist(), lps[:3, 3].tolist())
    monkeypatch.setattr(registration, "_start", lambda image, template: None)
    monkeypatch.setattr(registration, "_register_affine", lambda start, image, template: transform)


def test_brain_alone_where_that_is_wanted(
    head: Volume, registered: Registration, monkeypatch: pytest.MonkeyPatch
) -> None:
    known_pose(monkeypatch, registered.to_template)
    stripped = register(head, skull=False)
    np.testing.assert_allclose(stripped.to_template, registered.to_template, atol=1e-9)
    inside, outside = brain_points(), np.array([[0, 110, 0, 1], [95, -20, 20, 1], [0, -20, 95, 1]])
    for points, share in ((inside, 1.0), (outside, 0.0)):
        index = (points @ np.linalg.inv(registered.to_template @ head.affine).T)[:, :3]
        kept = ndimage.map_coordinates((stripped.volume.voxels != 0).astype(float), index.T, order=0)
        assert abs(kept.mean() - share) < 0.06
    within = stripped.volume.voxels != 0
    np.testing.assert_array_equal(stripped.volume.voxels[within], registered.volume.voxels[within])
    assert stripped.warning is not None
    assert "skull was cut away" in stripped.warning


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        (moved_by((0, 0, 0), (0, 0, 10)), "registration failed"),
        (moved_by((20, 0, 0), (0, 0, 0)), "registration failed"),
        (moved_by((180, 0, 0), (0, 0, 0)), "registration failed"),
        (moved_by((0, 0, 0), (0, 0, 60)), "of the template's brain lies in the image"),
    ],
    ids=["1 cm too high", "nodding", "upside down", "half outside"],
)
def test_wrong_pose_is_told(
    head: Volume, registered: Registration, monkeypatch: pytest.MonkeyPatch, wrong: np.ndarray, told: str
) -> None:
    known_pose(monkeypatch, wrong @ registered.to_template)
    warning = register(head).warning
    assert warning is not None
    assert told in warning


def test_inverted_contrast_is_told(head: Volume, registered: Registration, monkeypatch: pytest.MonkeyPatch) -> None:
    known_pose(monkeypatch, registered.to_template)
    inverted = np.where(head.voxels > 15, 170 - np.minimum(head.voxels, 160), 0)
    found = register(replace(head, voxels=inverted))
    assert found.similarity < 0
    assert found.warning is not None
    assert "no T1w head" in found.warning


def test_same_bits_for_any_number_of_threads(head: Volume, monkeypatch: pytest.MonkeyPatch) -> None:
    """Seen without the guard: N4's field depends on the number of threads."""
    known_pose(monkeypatch, np.eye(4))
    before = SimpleITK.ProcessObject.GetGlobalDefaultNumberOfThreads()
    corrected = []
    try:
        for threads in (1, 3):
            SimpleITK.ProcessObject.SetGlobalDefaultNumberOfThreads(threads)
            corrected.append(register(head).volume.voxels)
            assert SimpleITK.ProcessObject.GetGlobalDefaultNumberOfThreads() == threads
    finally:
        SimpleITK.ProcessObject.SetGlobalDefaultNumberOfThreads(before)
    np.testing.assert_array_equal(*corrected)


def test_nothing_bright_is_refused() -> None:
    dark = Volume(voxels=-np.ones((9, 9, 9), np.float32), affine=np.eye(4), source="dark.nii", name="dark")
    with pytest.raises(ThoradError, match=r"dark\.nii: nearly no voxel is above 0"):
        register(dark)
