"""How true pseudo-healthy images are: to healthy scans, to the tissue outside a lesion, and to what was before it.

MAE, SSIM and LPIPS, as the published evaluation of THOR has them, but inside the model's region only; LPIPS is that of
the maps, on SqueezeNet (there: AlexNet). SSIM: Wang, Bovik, Sheikh, Simoncelli, IEEE TIP 2004, Gaussian window of 11 px
(MONAI).

Shapes: S the model's grid's side; N cases; R rows of weights.
"""

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any, Final, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from thorad.datasets.cases import Case
from thorad.errors import ThoradError
from thorad.evaluation.metrics import Bools, Floats
from thorad.evaluation.statistics import interval, weighted_means
from thorad.evaluation.tables import PLACES
from thorad.io.intensity import BRIGHTEST
from thorad.io.preprocess import to_model_grid
from thorad.io.scans import read_picture
from thorad.maps.perceptual import PerceptualDistance, load_perceptual_distance

WINDOW: Final = 11  # px, of SSIM
SMALLEST_PERCEPTUAL: Final = 17  # px: nothing is left of a smaller image in SqueezeNet


class Fidelity(NamedTuple):
    """Of one image, means over pixels; NaN where there is none."""

    mae: float  # mean absolute difference, of images in [0, 1]
    ssim: float  # 1 for equal images
    lpips: float  # 0 for equal images


def fidelity(restored: Tensor, reference: Tensor, where: Bools) -> Fidelity:
    """Compare a pseudo-healthy image with a reference, (1, S, S) in [0, 1] each, on the pixels `where`, (S, S)."""
    if not where.any():
        return Fidelity(*[float("nan")] * 3)
    difference = (restored - reference).abs()[0]
    maps = [difference, _ssim(restored[None], reference[None])[0, 0]]
    if min(where.shape) >= SMALLEST_PERCEPTUAL:
        with torch.inference_mode():
            maps.append(_perceptual()(2 * restored[None] - 1, 2 * reference[None] - 1)[0, 0])
    means = [float(each.double().numpy()[where].mean()) for each in maps]
    return Fidelity(*means, *[float("nan")] * (3 - len(means)))


def fidelities(
    restored: Tensor, image: Tensor, lesion: Bools | None, region: Bools, without: Tensor | None
) -> dict[str, Fidelity]:
    """{place of `PLACES`: fidelity} of one case.

    Args:
        restored: the pseudo-healthy image, (1, S, S) in [0, 1].
        image: the scan, the same.
        lesion: (S, S), where none is marked if it is too small for this grid; None for a healthy scan.
        region: (S, S), the model's.
        without: the scan as it was before its lesion, where that is known.
    """
    if lesion is None:
        return {"healthy": fidelity(restored, image, region)}
    found = {"outside": fidelity(restored, image, region & ~lesion)}
    return (
        found
        if without is None or not lesion.any()
        else found | {"inside": fidelity(restored, without, region & lesion)}
    )


def read_without_lesion(case: Case, size: int) -> Tensor | None:
    """The image that `case` was before its lesion, (1, S, S), on the scale of the case's own; None where unknown.

    Raises:
        ThoradError: it can't be read, or has another size than the case's image.
    """
    if case.healthy_image is None:
        return None
    pixels, before = read_picture(case.image).pixels, read_picture(case.healthy_image).pixels
    if pixels.shape != before.shape:
        raise ThoradError(
            f"{case.healthy_image}: {before.shape[1]} x {before.shape[0]} px, but its image with the lesion has "
            f"{pixels.shape[1]} x {pixels.shape[0]}. Give both on one grid."
        )
    scaled = np.clip(before / np.percentile(pixels, BRIGHTEST), 0, 1)
    return to_model_grid(scaled.astype(np.float32), size)[0]


def summary(of_cases: Sequence[Mapping[str, Fidelity]], weights: Floats) -> tuple[dict[str, Any], dict[str, Any]]:
    """Means over the cases, and their 95 % intervals over the resamples `weights`, (R, N).

    Returns:
        ({place: {images, mae, ssim, lpips}}, {place: {mae, ssim, lpips}}), without places that no case has.
    """
    means: dict[str, Any] = {}
    intervals: dict[str, Any] = {}
    for place in PLACES:
        of_place = [(index, case[place]) for index, case in enumerate(of_cases) if place in case]
        finite = [(index, one) for index, one in of_place if np.isfinite(one.mae)]
        if not finite:
            continue
        values = {name: np.asarray([getattr(one, name) for _, one in finite]) for name in Fidelity._fields}
        resampled = weighted_means(values, weights[:, [index for index, _ in finite]])
        means[place] = {"images": len(finite), **{name: float(each.mean()) for name, each in values.items()}}
        intervals[place] = {name: interval(resampled[name]) for name in values}
    return means, intervals


@cache
def _perceptual() -> PerceptualDistance:
    return load_perceptual_distance()


def _ssim(one: Tensor, other: Tensor) -> Tensor:
    """The map of SSIM, (1, 1, S, S), of images (1, 1, S, S), which go on beyond their borders as they end there."""
    from monai.metrics.regression import compute_ssim_and_cs

    half = WINDOW // 2
    a, b = (F.pad(each.float(), [half] * 4, mode="replicate") for each in (one, other))
    ssim, _ = compute_ssim_and_cs(a, b, 2, kernel_size=[WINDOW] * 2, kernel_sigma=[1.5] * 2, data_range=1.0)
    return ssim


def stored(restored: Tensor | None) -> list[NDArray[np.float16]] | None:
    """Pseudo-healthy images (B, 1, S, S) as they are kept, (S, S) each; fidelity is measured on these."""
    return None if restored is None else list(restored[:, 0].half().cpu().numpy())
