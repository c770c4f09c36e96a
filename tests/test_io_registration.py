import itertools
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK
from scipy import ndimage
from scipy.spatial.transform import Rotation

from thorad.errors import ThoradError
from thorad.io import registration
from thorad.io.registration import Registration, register, to_simple_itk
from thorad.io.slices import cut_slices
from thorad.io.template import MNI_2009A, template_brain
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


@dataclass
class Registered:
    """A head's registration, and what its quality was measured on: brain, place of the scan, and transform."""

    registration: Registration
    stripped: Any
    brain: Any
    scanned: Any
    transform: Any
    template: Any

    def judged(self, wrong: np.ndarray, stripped: Any = None) -> tuple[bool, str | None]:
        """What is said where the registration were wrong by a map of the template's space, RAS mm."""
        to_native = np.linalg.inv(LPS @ wrong @ self.registration.to_template @ LPS)
        transform = SimpleITK.AffineTransform(to_native[:3, :3].ravel().tolist(), to_native[:3, 3].tolist())
        quality = registration._measure_quality(
            stripped or self.stripped, self.brain, self.scanned, transform, self.template
        )
        return registration._judge(quality, 0, stripped=False)


@pytest.fixture(scope="module")
def registered(head: Volume) -> Registered:
    seen: list[Any] = []
    measure = registration._measure_quality
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(registration, "_measure_quality", lambda *images: seen.extend(images) or measure(*images))
        return Registered(register(head), *seen)


LPS = np.diag([-1.0, -1, 1, 1])
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


def test_a_voxel_size_that_no_head_has_is_told(template_as_head: Volume) -> None:
    """Before a grid of millimetres fills the memory."""
    affine = template_as_head.affine @ np.diag([20.0, 20.0, 20.0, 1.0])
    with pytest.raises(ThoradError, match=r"it reaches over \d{4} mm: is its voxel size right\?"):
        register(replace(template_as_head, affine=affine))


def test_recovers_where_the_template_was_moved_to(template_as_head: Volume, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registration, "find_brain", lambda head: head > 20)
    monkeypatch.setattr(registration, "FINE_MM", ((4.0, 1.0),))  # the last, slow level: half of the time
    move = moved_by((12, -10, 14), (30, -20, 25)) @ np.diag([1.06, 0.95, 1.03, 1])
    found = register(moved_head(template_as_head, move))
    mean, most, angle = disagreement(found.to_template, np.linalg.inv(move))
    assert mean < 0.5
    assert most < 0.8
    assert angle < 0.3
    assert found.similarity > 0.9
    assert found.overlap > 0.97
    assert found.misfit < 0.5
    assert found.coverage == 1
    assert (
        found.warning == "out of the model's domain: the image is skull stripped, the model knows heads with the skull"
    )
    assert not found.doubtful


def test_real_head_comes_out_where_it_was_registered_before(head: Volume, registered: Registered) -> None:
    """Colin27 was registered to an older MNI template, linearly."""
    found = registered.registration
    mean, most, angle = disagreement(found.to_template, np.eye(4))
    assert mean < 3
    assert most < 5
    assert angle < 4
    assert found.warning is None
    assert found.similarity > 0.6
    assert found.overlap > 0.95
    assert found.misfit < 1.5
    assert found.brain is not None
    assert found.brain.shape == head.voxels.shape
    assert 1.8e6 < found.brain.sum() * 8 < 2.1e6  # mm3; Colin27 was enlarged
    brain, _ = ndimage.label(found.brain)
    assert brain.max() == 1
    np.testing.assert_array_equal(ndimage.binary_fill_holes(found.brain), found.brain)


def test_moved_head_is_found_again(head: Volume, registered: Registered, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lying on its side, and on another grid: the brain is looked for once more. The paper's slice is the same, too."""
    monkeypatch.setattr(registration, "FINE_MM", ((4.0, 1.0),))
    move = moved_by((-20, 15, -100), (-25, 30, -30))
    moved = register(moved_head(head, move))
    still = registered.registration
    mean, most, angle = disagreement(moved.to_template @ move, still.to_template)
    assert mean < 1
    assert most < 1.5
    assert angle < 1
    one, other = (cut_slices(found, [95], skull=True).ravel() for found in (still, moved))
    assert np.corrcoef(one, other)[0, 1] > 0.98
    assert moved.warning is not None
    assert moved.warning.startswith("the head lies turned by 10")
    assert not moved.doubtful


def test_brain_alone_where_that_is_wanted(registered: Registered) -> None:
    found = registered.registration
    whole, stripped = (cut_slices(found, [95], skull=skull)[0] for skull in (True, False))
    brain = stripped != 0
    np.testing.assert_array_equal(stripped[brain], whole[brain])
    template, _ = template_brain()
    expected = template[..., 47].T[::-1] > 0  # slice 94
    inside = brain[::2, ::2]
    assert 2 * (inside & expected).sum() / (inside.sum() + expected.sum()) > 0.95


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("sign", [-1, 1])
def test_half_a_centimetre_and_five_degrees_are_told(registered: Registered, axis: int, sign: int) -> None:
    centre = np.eye(4)
    centre[:3, 3] = brain_points()[:, :3].mean(axis=0)
    by = tuple(5.0 * sign * (np.arange(3) == axis))
    shifted, turned = moved_by((0, 0, 0), by), centre @ moved_by(by, (0, 0, 0)) @ np.linalg.inv(centre)
    for wrong in (shifted, turned):
        _, warning = registered.judged(wrong)
        assert warning is not None
        assert "registration" in warning
    assert registered.judged(np.eye(4)) == (False, None)


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        (moved_by((0, 0, 0), (0, 0, 15)), "registration failed"),
        (moved_by((20, 0, 0), (0, 0, 0)), "registration failed"),
        (moved_by((180, 0, 0), (0, 0, 0)), "registration failed"),
        (moved_by((0, 0, 0), (0, 0, 80)), "of the brain lies in the scan"),
    ],
    ids=["15 mm too high", "nodding", "upside down", "half outside"],
)
def test_wrong_pose_is_told(registered: Registered, wrong: np.ndarray, told: str) -> None:
    doubtful, warning = registered.judged(wrong)
    assert doubtful
    assert warning is not None
    assert told in warning


def test_inverted_contrast_is_told(registered: Registered) -> None:
    inverted = SimpleITK.Mask(170 - registered.stripped, registered.brain)
    doubtful, warning = registered.judged(np.eye(4), inverted)
    assert doubtful
    assert warning is not None
    assert "no T1w head" in warning


def test_same_bits_for_any_number_of_threads(template_as_head: Volume, monkeypatch: pytest.MonkeyPatch) -> None:
    """Seen without the guard: N4's field depends on the number of threads."""
    monkeypatch.setattr(registration, "find_brain", lambda head: head > 20)
    monkeypatch.setattr(registration, "FINE_MM", ((4.0, 1.0),))
    before = SimpleITK.ProcessObject.GetGlobalDefaultNumberOfThreads()
    found = []
    try:
        for threads in (1, 3):
            SimpleITK.ProcessObject.SetGlobalDefaultNumberOfThreads(threads)
            found.append(register(template_as_head))
            assert SimpleITK.ProcessObject.GetGlobalDefaultNumberOfThreads() == threads
    finally:
        SimpleITK.ProcessObject.SetGlobalDefaultNumberOfThreads(before)
    np.testing.assert_array_equal(*(one.to_template for one in found))
    np.testing.assert_array_equal(*(one.bias.voxels for one in found if one.bias))


def test_nothing_bright_is_refused() -> None:
    dark = Volume(voxels=-np.ones((9, 9, 9), np.float32), affine=np.eye(4), source="dark.nii", name="dark")
    with pytest.raises(ThoradError, match=r"dark\.nii: nearly no voxel is above 0"):
        register(dark)


def test_noise_is_doubtful(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where no brain is found, too."""
    monkeypatch.setattr(registration, "find_brain", lambda head: np.zeros(head.shape, dtype=bool))
    monkeypatch.setattr(registration, "FINE_MM", ((4.0, 1.0),))
    noise = np.random.default_rng(0).random((30, 36, 30), dtype=np.float32)
    found = register(Volume(voxels=noise, affine=np.diag([3.0, 3, 3, 1]), source="noise.nii", name="noise"))
    assert found.doubtful
    assert found.warning is not None
    assert "no T1w head" in found.warning


def test_a_few_slices_are_no_head() -> None:
    thin = Volume(voxels=np.ones((40, 40, 3), np.float32), affine=np.eye(4), source="thin.nii", name="thin")
    with pytest.raises(ThoradError, match=r"thin\.nii: only 3 slices or voxels along an axis"):
        register(thin)
