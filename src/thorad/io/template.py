"""The template's grid, slices of it out of a volume, and maps of slices back into the volume.

Shapes: I, J, K the volume's own grid; n slices; H, W the template's axial plane. Pictures of slices are (y, x) with
anterior up and x ascending to the right, as the models were trained.
"""

import gzip
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from thorad.io.volumes import Volume


@dataclass(frozen=True)
class Grid:
    """A grid of voxels of 1 mm whose axes are those of the body: right, anterior, superior."""

    shape: tuple[int, int, int]
    origin_mm: tuple[float, float, float]
    """Of the centre of the first voxel."""
    axial_slice: int
    """Index of the slice to cut."""

    @property
    def affine(self) -> NDArray[np.float64]:
        """(4, 4): voxel index to RAS mm."""
        affine = np.eye(4)
        affine[:3, 3] = self.origin_mm
        return affine


MNI_2009A: Final = Grid((197, 233, 189), (-98, -134, -72), axial_slice=95)
"""MNI152NLin2009aSym; its slice 95 lies at z = +23 mm."""

TEMPLATE: Final = "mni152-2009a-t1-brain-2mm.nii.gz"
"""The bundled template's brain, of 2 mm: every second voxel of `MNI_2009A`."""
NIFTI_HEADER: Final = 352
"""Bytes."""

TOUCH: Final = 1e-3
"""mm of a slice's slab that a voxel must share to take its values: neighbours that only touch share none."""


def cut_axial(
    volume: Volume, to_template: NDArray[np.float64], indices: Sequence[int], grid: Grid = MNI_2009A
) -> NDArray[np.float32]:
    """Axial slices of the template's grid, trilinear between the volume's voxels.

    Args:
        volume: any grid.
        to_template: (4, 4), the volume's RAS mm to the template's.
        indices: of the slices in the template's grid.
        grid: the template's.

    Returns:
        (n, H, W), in the volume's own units; 0 outside the volume, which ends half a voxel beyond its outer voxels'
        centres.
    """
    pictures = np.zeros((len(indices), grid.shape[1], grid.shape[0]), dtype=np.float32)
    last = np.array(volume.voxels.shape)[:, None, None] - 1
    for picture, position in zip(pictures, _positions(volume, to_template, indices, grid), strict=True):
        inside = _within(position, last)
        picture[inside] = _linear(volume.voxels, np.clip(position, 0, last)[:, inside])
    return pictures


def template_brain() -> tuple[NDArray[np.float32], NDArray[np.float64]]:
    """The template's T1w brain: (99, 117, 95) in [0, 255], 0 outside the brain; and its (4, 4) voxel to RAS mm.

    Its file is read without the libraries for volumes, as models may be trained without them.
    """
    content = (resources.files("thorad") / "assets" / "templates" / TEMPLATE).read_bytes()
    stored = np.frombuffer(gzip.decompress(content), np.uint8, offset=NIFTI_HEADER)
    shape = tuple(-(-side // 2) for side in MNI_2009A.shape)
    return stored.reshape(shape, order="F").astype(np.float32), MNI_2009A.affine @ np.diag([2.0, 2.0, 2.0, 1.0])


def cut_template(indices: Sequence[int]) -> NDArray[np.float32]:
    """(n, H, W): axial slices of the template's own brain, as `cut_axial` gives them."""
    return cut_axial(Volume(*template_brain(), source="", name=""), np.eye(4), indices)


def reach_axial(
    volume: Volume, to_template: NDArray[np.float64], indices: Sequence[int], grid: Grid = MNI_2009A
) -> NDArray[np.bool_]:
    """(n, H, W): where `cut_axial` finds something of the volume."""
    last = np.array(volume.voxels.shape)[:, None, None] - 1
    return np.stack([_within(position, last) for position in _positions(volume, to_template, indices, grid)])


def _positions(
    volume: Volume, to_template: NDArray[np.float64], indices: Sequence[int], grid: Grid
) -> Iterator[NDArray[np.float64]]:
    """Of each slice's pixels in the volume, in voxels: (3, H, W)."""
    voxel_of = np.linalg.inv(_to_grid(volume, to_template, grid))  # template voxel -> native voxel
    x, y = np.arange(grid.shape[0]), np.arange(grid.shape[1])[::-1, None]  # (W), (H, 1): y descending
    for k in indices:
        yield np.stack([row[0] * x + row[1] * y + (row[2] * k + row[3]) for row in voxel_of[:3]])


def _within(position: NDArray[np.float64], last: NDArray[np.int64]) -> NDArray[np.bool_]:
    return np.asarray(((position >= -0.5) & (position <= last + 0.5)).all(axis=0))


def paste_axial(
    maps: NDArray[Any],
    indices: Sequence[int],
    volume: Volume,
    to_template: NDArray[np.float64],
    grid: Grid = MNI_2009A,
) -> NDArray[np.float32]:
    """Bring maps of axial slices to a volume's own grid: the way back of `cut_axial`.

    A voxel takes a slice's value, bilinear in the plane, if the slice's slab, 1 mm thick, meets the voxel's own extent
    along the template's z: so grids of thick or oblique slices get no holes. Between neighbouring slices, or where the
    slabs above and below both meet the voxel, its value is linear in between.

    Args:
        maps: (n, H, W).
        indices: of the slices in the template's grid, each once.
        volume: its grid alone counts.
        to_template: (4, 4), the volume's RAS mm to the template's.

    Returns:
        (I, J, K), NaN in voxels that no slice meets.
    """
    order = np.argsort(indices)
    heights = np.asarray(indices, dtype=np.float64)[order]  # (n), ascending
    stack = np.asarray(maps, dtype=np.float32)[order]
    to_grid = _to_grid(volume, to_template, grid)
    reach = 0.5 + 0.5 * np.abs(to_grid[2, :3]).sum() - TOUCH  # of a slab and a voxel, from centre to centre
    pasted: NDArray[np.float32] = np.full(volume.voxels.shape, np.nan, dtype=np.float32)
    rows, columns = np.arange(pasted.shape[0])[:, None], np.arange(pasted.shape[1])
    last = np.array(stack.shape)[:, None] - 1
    for k in range(pasted.shape[2]):  # a plane at a time: the positions of all voxels at once take six times the volume
        z = to_grid[2, 0] * rows + to_grid[2, 1] * columns + (to_grid[2, 2] * k + to_grid[2, 3])  # (I, J)
        i, j = np.nonzero((z > heights[0] - reach) & (z < heights[-1] + reach))
        x, y = (row[0] * i + row[1] * j + (row[2] * k + row[3]) for row in to_grid[:2])
        position, met = _among(heights, z[i, j], reach)
        met &= (x >= -0.5) & (x <= grid.shape[0] - 0.5) & (y >= -0.5) & (y <= grid.shape[1] - 0.5)
        places = np.stack([position, grid.shape[1] - 1 - y, x])[:, met]
        pasted[i[met], j[met], k] = _linear(stack, np.clip(places, 0, last))
    return pasted


def looked_at_share(
    voxels: NDArray[np.int64],
    indices: Sequence[int],
    volume: Volume,
    to_template: NDArray[np.float64],
    grid: Grid = MNI_2009A,
) -> NDArray[np.float64]:
    """How much of each voxel lies in slabs of slices, each 1 mm thick, by its extent along the template's z.

    Args:
        voxels: (N, 3) of the volume, N of them.
        indices, volume, to_template, grid: as `paste_axial`.

    Returns:
        (N,) in [0, 1].
    """
    z_row = _to_grid(volume, to_template, grid)[2]
    extent = np.abs(z_row[:3]).sum()
    z = voxels @ z_row[:3] + z_row[3]
    share = np.zeros(len(voxels))
    for height in set(indices):
        low, high = np.maximum(z - extent / 2, height - 0.5), np.minimum(z + extent / 2, height + 0.5)
        share += np.clip(high - low, 0, None) / extent
    return share


def _to_grid(volume: Volume, to_template: NDArray[np.float64], grid: Grid) -> NDArray[np.float64]:
    """(4, 4): native voxel index to the template's."""
    return np.asarray(np.linalg.inv(grid.affine) @ to_template @ volume.affine)


def _among(
    heights: NDArray[np.float64], z: NDArray[np.float64], reach: float
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Where each z takes its value among ascending slices, as a fractional index, and whether a slice is in reach."""
    position = np.interp(z, heights, np.arange(len(heights)))
    nearest = np.rint(position)
    below = heights[np.floor(position).astype(np.intp)]
    above = heights[np.ceil(position).astype(np.intp)]
    between = (above - below <= 1) | (np.maximum(np.abs(z - below), np.abs(above - z)) < reach)
    met = np.abs(heights[nearest.astype(np.intp)] - z) < reach
    return np.where(between, position, nearest), met


def _linear(array: NDArray[np.float32], position: NDArray[np.float64]) -> NDArray[np.float32]:
    return np.asarray(ndimage.map_coordinates(array, position, order=1, mode="nearest", output=np.float32))
