"""What a registration looks like: a file beside every volume's results, for people to look at."""

from dataclasses import replace
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from thorad.io.registration import Registration
from thorad.io.template import MNI_2009A, template_brain
from thorad.io.volumes import Volume

EXPECTED: Final = (255, 96, 0)
"""Outline of the template's brain."""
FOUND: Final = (0, 200, 255)
"""Outline of the subject's."""
CORONAL_MM, SAGITTAL_MM = -20.0, -4.0
"""Of the planes, in the template: through the brain stem, and beside the midline's furrow."""


def registration_picture(registration: Registration, axial_slice: int = MNI_2009A.axial_slice) -> NDArray[np.uint8]:
    """An axial, a coronal and a sagittal plane of a head in the template's space, the template's brain outlined in
    orange and the subject's own, where it was looked for, in blue.

    Args:
        registration: of `register`; a failed one shows that it failed.
        axial_slice: index of the axial plane in the template's grid.

    Returns:
        (233, 627, 3) uint8, 1 mm a px: anterior or superior up; x ascending, then y ascending, to the right.
    """
    template = Volume(*template_brain(), source="", name="")
    volume, brain = registration.volume, None
    if registration.brain is not None:
        brain = replace(volume, voxels=registration.brain.view(np.uint8))
    axial_mm = MNI_2009A.origin_mm[2] + axial_slice
    axes = [origin + np.arange(extent) for origin, extent in zip(MNI_2009A.origin_mm, MNI_2009A.shape, strict=True)]
    x, y, z = axes[0], axes[1][::-1], axes[2][::-1]
    planes: tuple[tuple[Any, ...], ...]
    planes = (x, y[:, None], axial_mm), (x, CORONAL_MM, z[:, None]), (SAGITTAL_MM, y[::-1], z[:, None])
    picture = np.zeros((len(y), len(x) + len(x) + len(y), 3), dtype=np.uint8)
    left = 0
    for plane in planes:
        points = np.stack(np.broadcast_arrays(*plane))  # (3, rows, columns)
        head = _sample(registration.volume, registration.to_template, points)
        if registration.bias is not None:
            head /= np.maximum(_sample(registration.bias, registration.to_template, points), 1e-3)
        inside = _sample(template, np.eye(4), points, order=0) > 0
        brightest = max(float(np.percentile(head[inside], 98)), 1e-30)  # a failed registration may show nothing
        rows, columns = head.shape
        tile = picture[:rows, left : left + columns]
        tile[:] = np.rint(np.clip(head / brightest, 0, 1) * 255)[..., None]
        tile[_outline(inside)] = EXPECTED
        if brain is not None:
            tile[_outline(_sample(brain, registration.to_template, points, order=0) > 0)] = FOUND
        left += columns
    return picture


def _outline(inside: NDArray[np.bool_]) -> NDArray[np.bool_]:
    return np.asarray(inside & ~ndimage.binary_erosion(inside))


def _sample(
    volume: Volume, to_template: NDArray[np.float64], points: NDArray[np.float64], order: int = 1
) -> NDArray[np.float32]:
    """Values at points (3, rows, columns) in the template's mm; 0 outside."""
    to_voxel = np.linalg.inv(to_template @ volume.affine)
    index = np.tensordot(to_voxel[:3, :3], points, axes=1) + to_voxel[:3, 3, None, None]
    return np.asarray(ndimage.map_coordinates(volume.voxels, index, order=order, mode="constant", output=np.float32))
