"""An image as Python's users have it: a path, an array, a tensor, a PIL image; a volume by its path."""

from __future__ import annotations

from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import torch
from numpy.typing import NDArray

from thorad.errors import ThoradError
from thorad.io.decode import levels, to_grey
from thorad.io.images import Image, image_from_array
from thorad.io.scans import Scan, find_scans
from thorad.io.volumes import Volume

ImageLike = Image | NDArray[Any] | torch.Tensor | PIL.Image.Image | str | PathLike[str]

ACCEPTED = (
    "a path, a NumPy array, torch Tensor or MONAI MetaTensor of (H, W) or (1, H, W), a PIL image or a "
    "thorad.io.images.Image"
)


def as_image(image: ImageLike) -> Image:
    """One grey image of whatever holds one.

    Args:
        image: a path of a picture or a DICOM file; pixels (H, W) or (1, H, W), rows first, of any scale; a PIL image.
            MONAI's `LoadImage` reads pictures columns first; its MetaTensors say so and are turned, square ones, which
            can't say, are taken rows first.

    Returns:
        The image. Its name is the file's, that of a MetaTensor's file, or "image".

    Raises:
        ThoradError: another type, a path of several images or of a volume, a file that can't be read, pixels that are
            not a finite, varying picture.
    """
    if isinstance(image, Image):
        return image
    if isinstance(image, str | PathLike):
        return _read(Path(image))
    if isinstance(image, PIL.Image.Image):
        name = _name(str(getattr(image, "filename", "")))
        return image_from_array(to_grey(levels(image), f"the PIL image {name!r}"), name)
    if isinstance(image, torch.Tensor):
        values = image.detach().cpu()
        values = values.float() if values.is_floating_point() else values  # NumPy has no bfloat16
        meta, plane = getattr(image, "meta", {}), _plane(values.numpy())
        if {"width", "height"} <= meta.keys() and plane.shape != (meta["height"], meta["width"]):
            plane = plane.T  # MONAI's reader of pictures has columns first, unless it is told otherwise
        return image_from_array(plane, _name(str(meta.get("filename_or_obj", ""))))
    if isinstance(image, np.ndarray):
        return image_from_array(_plane(image))
    raise ThoradError(f"an image is a {type(image).__name__}; expected {ACCEPTED}.")


def as_volume(volume: Volume | str | PathLike[str]) -> Volume:
    """One volume of a path: a NIfTI, NRRD or MetaImage file, or the folder of one DICOM series.

    Raises:
        ThoradError: another type, a path of several scans or of a picture, a file that can't be read.
    """
    if isinstance(volume, Volume):
        return volume
    if not isinstance(volume, str | PathLike):
        raise ThoradError(
            f"a volume is a {type(volume).__name__}; expected a path or a thorad.io.volumes.Volume, which carries the "
            "affine that an array lacks."
        )
    scan = _only_scan(Path(volume)).read()
    if not isinstance(scan, Volume):
        raise ThoradError(f"{volume}: is a picture; expected a volume. Use Detector.detect for it.")
    return scan


def _only_scan(path: Path) -> Scan:
    scans = find_scans([path])
    if len(scans) > 1:
        raise ThoradError(f"{path}: holds {len(scans)} scans; expected the path of one.")
    return next(iter(scans.values()))


def _read(path: Path) -> Image:
    scan = _only_scan(path).read()
    if not isinstance(scan, Image):
        raise ThoradError(f"{path}: is a volume; expected one picture. Use thorad.detect_volume for it.")
    return scan


def _plane(array: NDArray[Any]) -> NDArray[Any]:
    """(H, W) of (1, H, W), as networks and MONAI have it; anything else as it is."""
    return array[0] if array.ndim == 3 and array.shape[0] == 1 else array


def _name(file: str) -> str:
    return Path(file).name.split(".")[0] or "image"
