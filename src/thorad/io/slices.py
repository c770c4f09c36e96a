"""From a scan to the pictures that a model looks at: itself, or its axial slices in the template.

Every verb cuts here, so a slice has one name and one picture, and with it one noise, wherever it comes from.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from thorad.errors import ThoradError
from thorad.io.images import Image
from thorad.io.registration import Registration, register
from thorad.io.scans import Scan
from thorad.io.template import MNI_2009A, cut_axial, reach_axial

BEYOND_MM: Final = 4.0
"""How far beyond the brain that was found an anomaly still counts: a lesion at the surface may look like fluid."""
EDGE_MM: Final = 3.0
"""So far from where the scan ends none counts: the picture is smoothed on the model's grid."""


def images_of(scan: Scan, *, skull: bool, indices: Sequence[int]) -> list[Image]:
    """The pictures of a scan that a model looks at, all of them with something to scale by.

    A volume is registered, which takes some 20 s; where slices are needed again and again, `thorad prepare` keeps them.

    Args:
        scan: of `thorad.io.scans.find_scans`.
        skull: of a volume: whether the slices show the head or the brain alone.
        indices: of a volume's slices, in the template's grid; none for a model that is for pictures.

    Returns:
        A picture itself; of a volume or series one picture for each index, as `axial_images` names them.

    Raises:
        ThoradError: it can't be read, registered or scaled; the registration is doubtful; a volume where there are no
            indices.
    """
    if scan.is_volume and not indices:
        raise ThoradError(f"{scan.path}: a volume, but the model is for pictures. Choose a model for volumes.")
    found = scan.read()
    if isinstance(found, Image):
        _check_scale(found, str(scan.path))
        return [found]
    registration = register(found, skull=skull)
    if registration.doubtful:
        raise ThoradError(
            f"{scan.path}: {registration.warning}. Look at its picture after `thorad prepare`, and give the slices "
            "from there if they are right."
        )
    return axial_images(registration, indices, skull=skull)


def axial_images(registration: Registration, indices: Sequence[int], *, skull: bool) -> list[Image]:
    """Axial slices of a registered volume, as `cut_slices` makes them, named as their files of `thorad prepare` are.

    Raises:
        ThoradError: a slice that shows nothing.
    """
    volume, images = registration.volume, []
    slices = cut_slices(registration, indices, skull=skull)
    brains = [None] * len(indices) if registration.brain is None else brain_slices(registration, indices)
    for index, pixels, brain in zip(indices, slices, brains, strict=True):
        source = f"{volume.source}, slice {index} of the template"
        # As `case_names` makes it of <volume>/slice_095.png.
        name = f"{volume.name}__{slice_name(index)}"
        images.append(Image(pixels, source, name, spacing=(1.0, 1.0), tags=volume.tags, brain=brain))
        _check_scale(images[-1], source)
    return images


def cut_slices(registration: Registration, indices: Sequence[int], *, skull: bool) -> NDArray[np.float32]:
    """(n, H, W): axial slices of a registered volume on the template's grid, bias corrected, in the volume's units.

    Without the skull, what lies outside the subject's brain is 0.
    """
    slices = cut_axial(registration.volume, registration.to_template, indices)
    if registration.bias is not None:
        field = cut_axial(registration.bias, registration.to_template, indices)
        slices = np.divide(slices, field, out=slices, where=field > 0)
    return slices if skull else slices * _cut_brain(registration, indices)


def brain_slices(registration: Registration, indices: Sequence[int]) -> NDArray[np.bool_]:
    """(n, H, W): where an anomaly counts in these slices: `Image.brain`."""
    brains = _cut_brain(registration, indices)
    scans = reach_axial(registration.volume, registration.to_template, indices)
    return np.stack([_around(brain) & _within(scan) for brain, scan in zip(brains, scans, strict=True)])


def _around(brain: NDArray[np.bool_]) -> NDArray[np.bool_]:
    return np.asarray(ndimage.distance_transform_edt(~brain) <= BEYOND_MM) if brain.any() else brain


def _within(scan: NDArray[np.bool_]) -> NDArray[np.bool_]:
    return np.asarray(ndimage.distance_transform_edt(np.pad(scan, 1))[1:-1, 1:-1] > EDGE_MM)


def _cut_brain(registration: Registration, indices: Sequence[int]) -> NDArray[np.bool_]:
    if registration.brain is None:
        return np.ones((len(indices), *MNI_2009A.shape[1::-1]), dtype=np.bool_)
    volume = replace(registration.volume, voxels=registration.brain.view(np.uint8))
    return cut_axial(volume, registration.to_template, indices) > 0.5


def slice_name(index: int) -> str:
    """Of a slice in its volume: `slice_095`."""
    return f"slice_{index:03d}"


def _check_scale(image: Image, source: str) -> None:
    try:
        _ = image.scaled
    except ThoradError as error:
        raise ThoradError(f"{source}: {error}") from error
