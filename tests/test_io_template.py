import itertools
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from thorad.io.template import MNI_2009A, Grid, cut_axial, looked_at_share, paste_axial
from thorad.io.volumes import Volume, read_volume

GRID = Grid((48, 56, 40), (-24, -28, -18), axial_slice=20)
"""mm; the box that the pattern below fills."""

IDENTITY = np.eye(4)
MOVED = np.eye(4)
"""What a registration may find: turned, 8 % larger, sheared a little, shifted."""
MOVED[:3, :3] = 1.08 * Rotation.from_euler("zyx", (17, -9, 6), degrees=True).as_matrix()
MOVED[0, 1] += 0.04
MOVED[:3, 3] = (3.3, -5.1, 2.7)

ORIENTATIONS = [
    np.eye(3)[:, order] * signs
    for order in itertools.permutations(range(3))
    for signs in itertools.product((1, -1), repeat=3)
]
OBLIQUE = Rotation.from_euler("xyz", (25, -15, 35), degrees=True).as_matrix()
SPACINGS = [(1.0, 1.0, 1.0), (1.0, 1.0, 5.0), (0.5, 2.0, 1.0)]


def pattern(x: np.ndarray, y: np.ndarray, z: np.ndarray) -> np.ndarray:
    """Smooth, unlike its own mirror images: a bright blob right-anterior-superior, a weaker one to the left."""
    right = np.exp(-((x - 8) ** 2 + (y - 10) ** 2 + (z - 3) ** 2) / (2 * 6**2))
    left = np.exp(-((x + 9) ** 2 + (y + 4) ** 2 + (z - 1) ** 2) / (2 * 7**2))
    return 100 * right + 50 * left


def positions(volume: Volume, to_template: np.ndarray) -> np.ndarray:
    """(3, I, J, K): where each voxel's centre lies in the template, mm."""
    index = np.stack([*np.indices(volume.voxels.shape), np.ones(volume.voxels.shape)])
    return np.einsum("ab,bijk->aijk", to_template @ volume.affine, index)[:3]


def native_grid(axes: np.ndarray, spacing: tuple[float, float, float], to_template: np.ndarray) -> Volume:
    """A volume that holds the pattern, on a grid of these directions that covers 68 mm around the template's box."""
    linear = axes * spacing
    sides = np.ceil(68 / np.array(spacing)).astype(int)
    affine = np.eye(4)
    affine[:3, :3] = linear
    middle = np.linalg.inv(to_template) @ [0, 0, 2, 1]
    affine[:3, 3] = middle[:3] - linear @ ((sides - 1) / 2) + 0.3
    empty = Volume(np.zeros(sides, np.float32), affine, "made", "made")
    return Volume(pattern(*positions(empty, to_template)).astype(np.float32), affine, "made", "made")


def pictures_of_pattern(indices: list[int]) -> np.ndarray:
    """(n, H, W), as the models see slices: anterior up, the patient's right at the right edge."""
    rows, columns = np.indices((56, 48))
    return np.stack([pattern(columns - 24, 27 - rows, np.full((56, 48), k - 18)) for k in indices])


@pytest.mark.parametrize("spacing", SPACINGS, ids=str)
def test_there_and_back_on_every_orientation(spacing: tuple[float, float, float]) -> None:
    """Slices are the pattern at their pixels, and maps are the pattern at the voxels: sides and places are right."""
    indices = list(range(17, 25))
    expected = pictures_of_pattern(indices)
    linear = 100 / 6**2 / 8  # what linear interpolation over 1 mm misses of the pattern's top
    for axes in [*ORIENTATIONS, OBLIQUE, OBLIQUE * (-1, 1, 1)]:
        volume = native_grid(axes, spacing, MOVED)
        pictures = cut_axial(volume, MOVED, indices, GRID)
        np.testing.assert_allclose(pictures, expected, atol=1.3 * linear * np.square(spacing).sum())
        pasted = paste_axial(expected, indices, volume, MOVED, GRID)
        z = positions(volume, MOVED)[2]
        between = np.isfinite(pasted) & (z >= -1) & (z <= 6)
        np.testing.assert_allclose(pasted[between], volume.voxels[between], atol=3 * linear)
        assert np.count_nonzero(between) > 500 / np.prod(spacing)


@pytest.mark.parametrize("spacing", [*SPACINGS, (3.0, 1.0, 1.0)], ids=str)
def test_what_is_looked_at_of_the_voxels_that_slices_meet_is_the_slices_volume(
    spacing: tuple[float, float, float],
) -> None:
    """A disc of 15 mm in one slice or in three of 1 mm, whatever the voxels that they lie in."""
    rows, columns = np.indices((56, 48))
    disc = ((columns - 24) ** 2 + (rows - 27) ** 2 <= 15**2).astype(np.float32)
    for axes in (ORIENTATIONS[0], ORIENTATIONS[21], OBLIQUE):
        volume = native_grid(axes, spacing, MOVED)
        for indices in ([20], [19, 20, 21]):
            pasted = paste_axial(np.stack([disc] * len(indices)), indices, volume, MOVED, GRID)
            voxels = np.argwhere(np.nan_to_num(pasted) > 0.5)
            share = looked_at_share(voxels, indices, volume, MOVED, GRID)
            assert 0 <= share.min() <= share.max() <= 1 + 1e-9
            found_mm3 = share.sum() * np.prod(spacing) * np.linalg.det(MOVED[:3, :3])
            assert found_mm3 == pytest.approx(len(indices) * disc.sum(), rel=0.05)
            assert len(voxels) > 1.3 * share.sum() or len(indices) > 1  # the voxels by themselves are more


@pytest.mark.parametrize("spacing", SPACINGS, ids=str)
@pytest.mark.parametrize("axes", [ORIENTATIONS[0], ORIENTATIONS[21], OBLIQUE], ids=["RAS", "turned", "oblique"])
def test_a_finding_goes_back_to_where_it_came_from(axes: np.ndarray, spacing: tuple[float, float, float]) -> None:
    """Cut, keep what is bright, paste: the centre of mass is where it was, by less than half a voxel."""
    volume = native_grid(axes, spacing, MOVED)
    blob = pattern(*positions(volume, MOVED)) > 60
    drawn = Volume(blob.astype(np.float32), volume.affine, "made", "made")
    indices = list(range(GRID.shape[2]))
    pasted = paste_axial(cut_axial(drawn, MOVED, indices, GRID), indices, volume, MOVED, GRID)
    weights = np.nan_to_num(pasted)
    places = np.indices(blob.shape)
    before = [place[blob].mean() for place in places]
    after = [np.average(place, weights=weights) for place in places]
    np.testing.assert_allclose(after, before, atol=0.5)


@pytest.mark.parametrize("spacing", [*SPACINGS, (0.4, 0.4, 3.0)], ids=str)
@pytest.mark.parametrize("axes", [ORIENTATIONS[0], ORIENTATIONS[21], OBLIQUE], ids=["RAS", "turned", "oblique"])
def test_a_slice_pasted_has_no_holes_and_no_more(axes: np.ndarray, spacing: tuple[float, float, float]) -> None:
    """A voxel has a value just where one of its corners' heights says that the slab of 1 mm meets it."""
    volume = native_grid(axes, spacing, MOVED)
    large = Grid((400, 400, 40), (-200, -200, -18), 20)
    pasted = paste_axial(np.ones((1, 400, 400)), [20], volume, MOVED, large)
    to_template = MOVED @ volume.affine
    corners = [to_template[2, :3] @ corner for corner in itertools.product((-0.5, 0.5), repeat=3)]
    z = positions(volume, MOVED)[2] - 2  # the slice lies at z = 2 mm
    meets = (z + max(corners) > -0.5) & (z + min(corners) < 0.5)
    unsure = (np.abs(z + max(corners) + 0.5) < 0.01) | (np.abs(z + min(corners) - 0.5) < 0.01)
    np.testing.assert_array_equal(np.isfinite(pasted)[~unsure], meets[~unsure])
    # Every point of the slice that lies in the volume lies in a voxel with a value.
    points = np.stack([*np.random.default_rng(0).uniform(-40, 40, (2, 20000)), np.full(20000, 2.0), np.ones(20000)])
    voxels = np.rint(np.linalg.inv(to_template) @ points)[:3].astype(int)
    inside = ((voxels >= 0) & (voxels < np.array(pasted.shape)[:, None])).all(axis=0)
    assert np.count_nonzero(inside) > 5000
    assert np.isfinite(pasted[tuple(voxels[:, inside])]).all()


def volume_of(voxels: np.ndarray, origin: tuple[float, float, float], spacing: float = 1.0) -> Volume:
    affine = np.diag([spacing, spacing, spacing, 1.0])
    affine[:3, 3] = origin
    return Volume(voxels.astype(np.float32), affine, "made", "made")


def test_slice_by_hand(rng: np.random.Generator) -> None:
    """On the template's own grid: column x, row 55 - y, no interpolation at all; and back."""
    volume = volume_of(rng.uniform(1, 9, GRID.shape), GRID.origin_mm)
    (picture,) = cut_axial(volume, IDENTITY, [7], GRID)
    expected = [[volume.voxels[x, 55 - row, 7] for x in range(48)] for row in range(56)]
    np.testing.assert_array_equal(picture, np.array(expected))
    assert picture.dtype == np.float32
    pasted = paste_axial(picture[None], [7], volume, IDENTITY, GRID)
    np.testing.assert_array_equal(pasted[:, :, 7], volume.voxels[:, :, 7])
    assert np.isnan(np.delete(pasted, 7, axis=2)).all()


def test_nothing_outside_the_volume() -> None:
    """A volume of ones over voxels 10...19: its outer voxels reach half a voxel beyond their centres."""
    origin = GRID.origin_mm
    volume = volume_of(np.ones((5, 5, 5)), (origin[0] + 10.5, origin[1] + 20.5, origin[2] + 10.5), spacing=2)
    pictures = cut_axial(volume, IDENTITY, [9, 10, 19, 20], GRID)
    assert pictures[[0, 3]].max() == 0
    rows, columns = np.nonzero(pictures[1])
    assert (columns.min(), columns.max()) == (10, 19)
    assert (55 - rows.max(), 55 - rows.min()) == (20, 29)
    assert set(np.unique(pictures[1:3])) == {0, 1}


def test_values_between_slices() -> None:
    """Voxels of 0.25 mm along z: linear between neighbours, the nearest within reach beyond them; any order."""
    values = {8: 10.0, 9: 20.0, 12: 50.0}
    affine = np.diag([4.0, 4.0, 0.25, 1.0])
    affine[:3, 3] = (0, 0, GRID.origin_mm[2])
    volume = Volume(np.zeros((3, 3, 80), np.float32), affine, "made", "made")
    for indices in ([8, 9, 12], [12, 8, 9]):
        maps = np.stack([np.full((56, 48), values[k]) for k in indices])
        column = paste_axial(maps, indices, volume, IDENTITY, GRID)[1, 1]
        found = {k / 4: float(column[k]) for k in range(80) if np.isfinite(column[k])}
        expected = {7.5: 10, 7.75: 10, 8.0: 10, 8.25: 12.5, 8.5: 15, 8.75: 17.5, 9.0: 20, 9.25: 20, 9.5: 20}
        assert found == expected | {11.5: 50, 11.75: 50, 12.0: 50, 12.25: 50, 12.5: 50}
    thick = Volume(np.zeros((3, 3, 9), np.float32), affine @ np.diag([1, 1, 20, 1]), "made", "made")  # 5 mm
    column = paste_axial(maps, indices, thick, IDENTITY, GRID)[1, 1]
    # Centres at 0, 5, 10, 15, 20: 10 lies between 9 and 12, both within reach; 5 and 15 only touch 7.5 and 12.5.
    np.testing.assert_allclose(column[:5], [np.nan, np.nan, 30, np.nan, np.nan])


def test_nothing_beside_the_plane() -> None:
    """Voxels whose centres lie beside the template's plane get no value."""
    volume = volume_of(np.zeros((60, 70, 3)), (GRID.origin_mm[0] - 6, GRID.origin_mm[1] - 7, GRID.origin_mm[2] + 4))
    pasted = paste_axial(np.ones((1, 56, 48)), [5], volume, IDENTITY, GRID)
    x, y, z = np.nonzero(np.isfinite(pasted))
    assert (x.min(), x.max(), y.min(), y.max(), z.min(), z.max()) == (6, 53, 7, 62, 1, 1)


def test_far_away_volumes_share_nothing() -> None:
    volume = volume_of(np.ones((9, 9, 9)), (9000, -9000, 9000))
    assert not cut_axial(volume, IDENTITY, [0, 39], GRID).any()
    assert np.isnan(paste_axial(np.ones((1, 56, 48)), [5], volume, IDENTITY, GRID)).all()


def test_paste_needs_little_more_memory_than_its_result() -> None:
    volume = volume_of(np.zeros((160, 160, 160)), (-80, -80, -80))
    tracemalloc.start()
    try:
        pasted = paste_axial(np.ones((1, *MNI_2009A.shape[1::-1])), [95], volume, MOVED)
        assert tracemalloc.get_traced_memory()[1] < 1.5 * pasted.nbytes
    finally:
        tracemalloc.stop()


def test_real_head_in_its_template(shared_data: Path) -> None:
    """Colin lies in MNI space on its own grid of 1 mm, from (-90, -125, -71) mm: slice 95 is its plane 94."""
    volume = read_volume(shared_data / "volumes" / "colin27_t1_1mm.nii.gz")
    (picture,) = cut_axial(volume, IDENTITY, [95])
    assert picture.shape == (233, 197)
    np.testing.assert_array_equal(picture[:, 8:189][::-1][9:226].T, volume.voxels[:, :, 94])
    pasted = paste_axial(picture[None], [95], volume, IDENTITY)
    np.testing.assert_array_equal(pasted[:, :, 94], volume.voxels[:, :, 94])
    assert np.isnan(np.delete(pasted, 94, axis=2)).all()
