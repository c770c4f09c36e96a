"""The honest floor: the distance of each pixel from the training set's mean, in its standard deviations.

It needs no network. A diffusion model that doesn't beat it has not earned its cost.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from torch import Tensor

from thorad.diffusion.schedule import Schedule
from thorad.methods.contract import Compare, Denoise, Method, Noise, OnStep, Request, Restoration

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


def _options(two_sided: bool) -> Callable[[Request], ZScoreOptions]:
    def of(request: Request) -> ZScoreOptions:
        assert request.statistics is not None, "a method with statistics=True always gets them"
        return ZScoreOptions(*request.statistics, two_sided=two_sided)

    return of


ZSCORE = Method(
    name="zscore",
    title="z-score",
    blurb="how much darker than the healthy mean, in standard deviations; needs no network: the honest floor",
    paper="",
    restore=zscore,
    options=_options(two_sided=False),
    overlay_maximum=5.0,
    statistics=True,
)

ZSCORE_TWO_SIDED = replace(
    ZSCORE,
    name="zscore-two-sided",
    title="z-score, two-sided",
    blurb="the same where brighter than the mean counts as well",
    options=_options(two_sided=True),
    compared=False,
)
