"""From a scan to the pictures that a model looks at: itself, or its axial slices in the template.

Every verb cuts here, so a slice has one name and one picture, and with it one noise, wherever it comes from.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from thorad.errors import ThoradError
from thorad.io.images import Image
from thorad.io.registration import register
from thorad.io.scans import Scan
from thorad.io.template import cut_axial
from thorad.io.volumes import Volume


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
            f"{scan.path}: {registration.warning}. Look at its overlay after `thorad prepare`, and give the slices "
            "from there if they are right."
        )
    return axial_images(registration.volume, registration.to_template, indices)


def axial_images(volume: Volume, to_template: NDArray[np.float64], indices: Sequence[int]) -> list[Image]:
    """Axial slices of a registered volume, as `cut_axial` makes them, named as their files of `thorad prepare` are.

    Raises:
        ThoradError: a slice that shows nothing.
    """
    images = []
    for index, pixels in zip(indices, cut_axial(volume, to_template, indices), strict=True):
        source = f"{volume.source}, slice {index} of the template"
        # As `case_names` makes it of <volume>/slice_095.png.
        images.append(
            Image(pixels, source, f"{volume.name}__{slice_name(index)}", spacing=(1.0, 1.0), tags=volume.tags)
        )
        _check_scale(images[-1], source)
    return images


def slice_name(index: int) -> str:
    """Of a slice in its volume: `slice_095`."""
    return f"slice_{index:03d}"


def _check_scale(image: Image, source: str) -> None:
    try:
        _ = image.scaled
    except ThoradError as error:
        raise ThoradError(f"{source}: {error}") from error
