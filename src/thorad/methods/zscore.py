"""The honest floor: the distance of each pixel from the training set's mean, in its standard deviations.

It needs no network. A diffusion model that doesn't beat it has not earned its cost.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from thorad.diffusion.schedule import Schedule
from thorad.methods.contract import Compare, Denoise, Noise, OnStep, Restoration

SMALLEST_DEVIATION = 0.1
"""Added to every standard deviation, on the [-1, 1] scale: where all training images are black, any noise would be
infinitely unlikely otherwise."""


@dataclass(frozen=True)
class ZScoreOptions:
    """The training set's statistics, kept in the model folder."""

    mean: Tensor
    """(1, H, W) in [-1, 1]."""
    standard_deviation: Tensor
    """(1, H, W) on the same scale."""
    two_sided: bool = False
    """Whether brighter than the mean counts as well. One-sided finds what is too dark (a stroke in T1w)."""

    def network_calls(self) -> int:
        """None: this method needs no network."""
        return 0


def zscore(
    denoise: Denoise | None,
    image: Tensor,
    schedule: Schedule | None,
    noise: Noise | None,
    compare: Compare | None,
    *,
    options: ZScoreOptions,
    on_step: OnStep | None = None,
) -> Restoration:
    """How many standard deviations each pixel is darker than the mean, or with `two_sided` away from it."""
    difference = options.mean.to(image) - image
    difference = difference.abs() if options.two_sided else difference.clamp(min=0)
    deviation = options.standard_deviation.to(image) + SMALLEST_DEVIATION
    return Restoration(difference / deviation, pseudo_healthy=options.mean.to(image).expand_as(image))
