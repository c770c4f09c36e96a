"""The honest floor: the distance of each pixel from the training set's mean, in its standard deviations.

It needs no network. A diffusion model that doesn't beat it has not earned its cost; so it is tuned as the rest is: the
image's quantiles are brought to the mean's, a pixel beside its place is no finding, and single pixels are smoothed
(docs/results.md has what each gives).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final

from torch import Tensor

from thorad.diffusion.schedule import Schedule
from thorad.maps.zscore import match_quantiles, tolerant_zscores
from thorad.methods.contract import Compare, Denoise, Method, Noise, OnStep, Request, Restoration

MOST_PX: Final = 50
"""Of tolerance and blur: more than that compares no place with itself."""


@dataclass(frozen=True)
class ZScoreOptions:
    """The training set's statistics, kept in the model folder."""

    mean: Tensor
    """(1, H, W) in [-1, 1]."""
    standard_deviation: Tensor
    """(1, H, W) on the same scale."""
    region: Tensor
    """(H, W) bool: where quantiles are matched."""
    two_sided: bool = False
    """Whether brighter than the mean counts as well. One-sided finds what is too dark (a stroke in T1w)."""
    tolerance: int = 1
    """px that the image may lie beside the mean."""
    blur_sigma: float = 1.0
    """px: standard deviation of the Gaussian that smooths the map."""

    def __post_init__(self) -> None:
        """Raise ValueError for what means nothing."""
        for name in ("tolerance", "blur_sigma"):
            if not 0 <= getattr(self, name) <= MOST_PX:
                raise ValueError(f"{name} is {getattr(self, name)}, expected 0 to {MOST_PX:g} px")

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
    mean, deviation = (options.mean.to(image) + 1) / 2, options.standard_deviation.to(image) / 2
    matched = match_quantiles((image + 1) / 2, mean, options.region.to(image.device))
    darker, brighter = tolerant_zscores(
        matched, mean, deviation, tolerance=options.tolerance, blur_sigma=options.blur_sigma
    )
    difference = darker + brighter if options.two_sided else darker
    return Restoration(difference, pseudo_healthy=options.mean.to(image).expand_as(image))


def _options(two_sided: bool) -> Callable[[Request], ZScoreOptions]:
    def of(request: Request) -> ZScoreOptions:
        assert request.statistics is not None, "a method with statistics=True always gets them"
        assert request.region is not None, "a method with statistics=True always gets the region, too"
        return ZScoreOptions(*request.statistics, region=request.region, two_sided=two_sided)

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
