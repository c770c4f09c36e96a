"""THOR+: how far a scan is from its own pseudo-healthy images, in standard deviations of healthy anatomy.

This project's own step beyond THOR; docs/method.md has the reasons and what each part gives. A z-score compares a scan
with the population's mean, THOR with one draw of the person's own healthy image. THOR+ compares it with the mean of
several draws of the person's own healthy image and divides by how much healthy people differ there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from thorad.diffusion.schedule import Schedule
from thorad.maps.anomaly_map import gaussian_blur, harmonic_mean
from thorad.methods.contract import Compare, Denoise, Method, Noise, OnStep, Request, Restoration
from thorad.methods.thor import THOR, Draw, ThorOptions, draw


@dataclass(frozen=True)
class ThorPlusOptions:
    """How THOR is drawn and how often, and the training images' spread."""

    noise_level: int = 200
    """Timestep T that the image is noised to."""
    harmonise_at: tuple[int, ...] = (200, 100, 50)
    """Timesteps at which the clean estimate is harmonised with the image."""
    steps: int | None = None
    """Timesteps visited, evenly spaced; None visits all."""
    draws: int = 8
    """How often THOR runs, each time with fresh noise."""
    blur_sigma: float = 0.7
    """Standard deviation in px of the Gaussian that smooths the residual before its size is taken."""
    thor_share: float = 0.25
    """Exponent of THOR's own map in the product; the residual has the rest."""
    standard_deviation: Tensor | None = None
    """(1, H, W), of the training images on the [-1, 1] scale, kept in the model folder; None: the same everywhere."""
    smallest_deviation: float = 0.04
    """Added to every standard deviation, on the [-1, 1] scale, for nothing is infinitely unlikely where all training
    images are black."""

    def __post_init__(self) -> None:
        """Raise ValueError for what means nothing."""
        if self.draws < 1 or self.blur_sigma < 0 or self.smallest_deviation <= 0 or not 0 <= self.thor_share <= 1:
            raise ValueError(
                f"found draws {self.draws}, blur_sigma {self.blur_sigma}, smallest_deviation {self.smallest_deviation} "
                f"and thor_share {self.thor_share}, expected 1 or more, not below 0, above 0, and from 0 to 1"
            )

    def network_calls(self) -> int:
        """Calls of the network for one image."""
        return self.draws * ThorOptions(self.noise_level, self.harmonise_at, self.steps).network_calls()


def thor_plus(
    denoise: Denoise,
    image: Tensor,
    schedule: Schedule,
    noise: Noise,
    compare: Compare,
    *,
    options: ThorPlusOptions,
    on_step: OnStep | None = None,
) -> Restoration:
    """Draw THOR several times; what all draws find, over what healthy people differ by.

    The pseudo-healthy image is the mean, over the draws, of the clean estimate at the last harmonised timestep. Of two
    draws and more, `draw_maps` are what the first and the second half of them find.
    """
    one_draw = ThorOptions(options.noise_level, options.harmonise_at, options.steps)
    draws = [
        draw(denoise, image, schedule, noise, compare, options=one_draw, on_step=on_step) for _ in range(options.draws)
    ]
    half = len(draws) // 2
    parts = [draws[:half], draws[half:]] if half else []
    return Restoration(
        _map(image, draws, options), _estimate(draws), tuple(_map(image, part, options) for part in parts)
    )


def _map(image: Tensor, draws: Sequence[Draw], options: ThorPlusOptions) -> Tensor:
    # Signed until here: what the draws disagree about cancels, as does what varies from pixel to pixel.
    residual = gaussian_blur(image - _estimate(draws), options.blur_sigma).abs() / 2  # on the [0, 1] scale
    maps = [anomaly_map for one in draws for anomaly_map in one.maps]
    difference = residual ** (1 - options.thor_share) * harmonic_mean(maps) ** options.thor_share
    spread = torch.ones_like(image[0]) if options.standard_deviation is None else options.standard_deviation.to(image)
    return difference / ((spread + options.smallest_deviation) / 2)


def _estimate(draws: Sequence[Draw]) -> Tensor:
    return torch.stack([one.estimate for one in draws]).mean(dim=0)


def _options(request: Request) -> ThorPlusOptions:
    assert request.statistics is not None, "a method with statistics=True always gets them"
    level, harmonise_at = request.level_and_harmonise_at(ThorPlusOptions.noise_level, ThorPlusOptions.harmonise_at)
    return ThorPlusOptions(level, harmonise_at, request.steps, standard_deviation=request.statistics[1])


THOR_PLUS = Method(
    name="thor+",
    title="THOR+",
    blurb="eight draws of THOR over how much healthy people differ there: 40 calls; for registered images",
    paper="this project",
    restore=thor_plus,
    options=_options,
    noise_levels={"simplex": ThorPlusOptions.noise_level},
    default_steps={"simplex": 1},
    compare="anomaly_map",
    overlay_maximum=3.0,
    own_step_maximum=THOR.overlay_maximum,
    statistics=True,
    draws_itself=True,
)
