"""What a registration looks like: a file beside every volume's results, for people to look at."""

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from thorad.io.registration import Registration, template_brain
from thorad.io.template import MNI_2009A

OUTLINE: Final = (255, 96, 0)
CORONAL_MM, SAGITTAL_MM = -20.0, -4.0
"""Of the planes, in the template: through the brain stem, and beside the midline's furrow."""


def registration_picture(registration: Registration, axial_slice: int = MNI_2009A.axial_slice) -> NDArray[np.uint8]:
    """An axial, a coronal and a sagittal plane of a head in the template's space, the template's brain outlined.

    Args:
        registration: of `register`; a failed one shows that it failed.
        axial_slice: index of the axial plane in the template's grid.

    Returns:
        (233, 627, 3) uint8, 1 mm a px: anterior or superior up; x ascending, then y ascending, to the right.
    """
    brain, brain_affine = template_brain()
    axial_mm = MNI_2009A.origin_mm[2] + axial_slice
    axes = [origin + np.arange(extent) for origin, extent in zip(MNI_2009A.origin_mm, MNI_2009A.shape, strict=True)]
    x, y, z = axes[0], axes[1][::-1], axes[2][::-1]
    planes: tuple[tuple[Any, ...], ...]
    planes = (x, y[:, None], axial_mm), (x, CORONAL_MM, z[:, None]), (SAGITTAL_MM, y[::-1], z[:, None])
    picture = np.zeros((len(y), len(x) + len(x) + len(y), 3), dtype=np.uint8)
    left = 0
    for plane in planes:
        points = np.stack(np.broadcast_arrays(*plane))  # (3, rows, columns)
        head = _sample(registration.volume.voxels, registration.to_template @ registration.volume.affine, points)
        inside = _sample((brain > 0).astype(np.float32), brain_affine, points) > 0.5
        brightest = max(float(np.percentile(head[inside], 98)), 1e-30)  # a failed registration may show nothing
        rows, columns = head.shape
        tile = picture[:rows, left : left + columns]
        tile[:] = np.rint(np.clip(head / brightest, 0, 1) * 255)[..., None]
        tile[inside & ~ndimage.binary_erosion(inside)] = OUTLINE
        left += columns
    return picture


def _sample(
    voxels: NDArray[np.float32], affine: NDArray[np.float64], points: NDArray[np.float64]
) -> NDArray[np.float32]:
    """Trilinear, at points (3, rows, columns) in the mm that the affine leads to; 0 outside."""
    to_voxel = np.linalg.inv(affine)
    index = np.tensordot(to_voxel[:3, :3], points, axes=1) + to_voxel[:3, 3, None, None]
    return np.asarray(ndimage.map_coordinates(voxels, index, order=1, mode="constant", output=np.float32))
