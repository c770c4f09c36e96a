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
