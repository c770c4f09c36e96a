"""How far an image is from the mean of healthy ones, in their standard deviations: what needs no network.

Shapes: B images on a grid of side S, in [0, 1]; so are mean and deviation.
"""

from __future__ import annotations

import itertools
from typing import Final

import torch
from torch import Tensor

from thorad.maps.anomaly_map import gaussian_blur

QUANTILES: Final = (0.02, 0.1, 0.25, 0.5, 0.75, 0.9, 0.98)
"""Of an image's values in the region, brought to those of the mean image: what another scanner's contrast changes."""
SMALLEST_STEP: Final = 0.02
"""Between neighbouring quantiles: a flat image is not stretched without end."""
SMALLEST_DEVIATION: Final = 0.05
"""Added to every standard deviation: where all training images are black, any noise would be infinitely unlikely
otherwise."""

FINER_THAN: Final = 8.0
"""px of a grid of 128 x 128: standard deviation of the Gaussian beyond which a mean image's detail is counted."""
ALIGNED: Final = 0.1
"""Share of detail below which training images don't lie on one another. Chosen on IXI's slices, which have 0.55, 0.21
if each is moved by 2 px and 2 degrees, 0.07 by 4 px and 4 degrees, and hand X-rays, which have 0.04."""


def detail_share(mean: Tensor, deviation: Tensor) -> float:
    """How far training images lie on one another: the mean's fine detail, over it and what varies, in [0, 1].

    Where images don't, their mean is a blur, and its spread tells where the object may lie rather than how much
    healthy anatomy differs.

    Args:
        mean: (1, S, S), of any scale.
        deviation: (1, S, S), of the same.
    """
    detail = mean - gaussian_blur(mean[None], FINER_THAN * mean.shape[-1] / 128)[0]
    power = float((detail**2).mean())
    varies = float((deviation**2).mean())
    return power / (power + varies) if power + varies > 0 else 1.0


def match_quantiles(image: Tensor, mean: Tensor, region: Tensor) -> Tensor:
    """Bring each image's quantiles in the region to the mean image's, linearly in between and beyond.

    Args:
        image: (B, 1, S, S).
        mean: (1, S, S).
        region: (S, S) bool.

    Returns:
        (B, 1, S, S) in [-0.5, 1.5].
    """
    at = torch.tensor(QUANTILES).to(image)
    own = torch.quantile(image[:, 0, region], at, dim=1).T.contiguous()  # (B, Q)
    wanted = torch.quantile(mean[0, region].to(image), at).expand_as(own)
    own = own + 1e-4 * torch.arange(len(at)).to(image)  # ascending also where an image is flat
    values = image.flatten(1).contiguous()
    above = torch.searchsorted(own, values).clamp(1, len(at) - 1)
    low, high = own.gather(1, above - 1), own.gather(1, above)
    low_wanted, high_wanted = wanted.gather(1, above - 1), wanted.gather(1, above)
    share = (values - low) / (high - low).clamp(min=SMALLEST_STEP)
    return (low_wanted + share * (high_wanted - low_wanted)).view_as(image).clamp(-0.5, 1.5)


def tolerant_zscores(
    image: Tensor, mean: Tensor, deviation: Tensor, *, tolerance: int, blur_sigma: float
) -> tuple[Tensor, Tensor]:
    """How many deviations each pixel is darker, and brighter, than the mean everywhere around it.

    A scan is never laid on the mean to the pixel; what is dark only against one neighbour of its place lies beside it.

    Args:
        image: (B, 1, S, S), its quantiles matched.
        mean: (1, S, S).
        deviation: (1, S, S).
        tolerance: px that the image may lie beside the mean.
        blur_sigma: px, standard deviation of the Gaussian that smooths the result.

    Returns:
        (B, 1, S, S) >= 0 each.
    """
    lowest, highest = torch.full_like(image, torch.inf), torch.full_like(image, -torch.inf)
    steps = range(-tolerance, tolerance + 1)
    for shift in itertools.product(steps, steps):
        darker = (mean.roll(shift, (1, 2)) - image) / (deviation.roll(shift, (1, 2)) + SMALLEST_DEVIATION)
        lowest, highest = torch.minimum(lowest, darker), torch.maximum(highest, darker)
    return gaussian_blur(lowest.clamp(min=0), blur_sigma), gaussian_blur((-highest).clamp(min=0), blur_sigma)
