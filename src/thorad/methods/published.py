"""THOR and DDPM as the published implementation computes them, its accidents included: the methods `published-...`.

github ci-ber/THOR_DDPM, February 2026, commit bf807c0. With the same weights and the same noise these functions give
its maps, whatever one thinks of them; `thorad.methods.thor` and `thorad.methods.ddpm` follow the papers. Every accident
is named where it happens. AnoDDPM is `published_ddpm` with simplex noise.

What the published code mixes up between the images of a batch (one simplex map for all, a blur across the batch) is not
here: every image gets what it gets there in a batch of one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from thorad.diffusion.schedule import Schedule
from thorad.maps.anomaly_map import close_and_dilate, gaussian_blur, harmonic_mean
from thorad.methods.contract import Compare, Denoise, Method, Noise, OnStep, Request, Restoration, Step

WINDOW = 13
"""px, of the closing and the dilation, whatever the image's size."""

HIGHEST = 0.999
"""What the final map is clipped to."""


@dataclass(frozen=True)
class PublishedDdpmOptions:
    """All timesteps are visited."""

    noise_level: int = 350
    """Timestep T that the image is noised to: 350 for Gaussian noise, 250 for simplex."""

    def network_calls(self) -> int:
        """Calls of the network for one image."""
        return self.noise_level + 1


@dataclass(frozen=True)
class PublishedThorOptions:
    """The paper's values for simplex noise; `PUBLISHED_THOR_GAUSSIAN` holds those for Gaussian noise."""

    noise_level: int = 250
    """Timestep T that the image is noised to; all timesteps from there to 0 are visited."""
    harmonise_at: tuple[int, ...] = (200, 150, 100, 50)
    """Timesteps at which the clean estimate is harmonised with the image."""
    map_every: int = 50
    """Every timestep that this divides has a map in the harmonic mean, too."""

    def __post_init__(self) -> None:
        """Refuse what would be passed over in silence."""
        if any(not 0 < t <= self.noise_level for t in self.harmonise_at):
            raise ValueError(f"harmonise_at {self.harmonise_at} must lie in 1 ... {self.noise_level} (the noise level)")
        if self.map_every < 1:
            raise ValueError(f"map_every is {self.map_every}, expected 1 or more")

    def network_calls(self) -> int:
        """Calls of the network for one image."""
        return self.noise_level + 1


PUBLISHED_THOR_GAUSSIAN = PublishedThorOptions(noise_level=350, harmonise_at=(300, 150, 50))


@dataclass(frozen=True)
class PublishedMap:
    """The published map of an image against its clean estimate: what `published_thor` takes as `compare`."""

    perceptual: Callable[[Tensor, Tensor], Tensor]
    """S: two (B, 1, H, W) in [-1, 1] -> (B, 1, H, W) >= 0; normally a `PerceptualDistance`."""

    def __call__(self, image: Tensor, clean: Tensor) -> Tensor:
        """The map of two (B, 1, H, W) in [-1, 1]: (B, 1, H, W) in [0, 1)."""
        image, clean = _to_unit(image), _to_unit(clean)
        # Accident: LPIPS gets [-3, 1], because [0, 1] is stretched to [-1, 1] twice.
        perceptual = self.perceptual(4 * image - 3, 4 * clean - 3)
        anomaly_map = (image - clean).abs() * gaussian_blur(perceptual, sigma=2).clamp(0, 1)
        # Accident: each map is divided by its own maximum, so that a healthy image's map peaks as high as a sick one's.
        return anomaly_map / (anomaly_map.amax(dim=(1, 2, 3), keepdim=True) + 1e-8)


def published_thor(
    denoise: Denoise,
    image: Tensor,
    schedule: Schedule,
    noise: Noise,
    compare: Compare,
    *,
    options: PublishedThorOptions,
    on_step: OnStep | None = None,
) -> Restoration:
    """THOR's published loop; `compare` is a `PublishedMap`. `noise()` is asked once, then once a step with t > 0."""
    chain = PublishedSchedule(schedule)
    maps: list[Tensor] = []
    first_noise = noise()
    x_t = chain.add_noise(image, first_noise, options.noise_level)
    for t in range(options.noise_level, -1, -1):
        clean = chain.predict_clean(x_t, denoise(x_t, t), t)
        x_t = chain.previous(x_t, clean, t, noise)  # is at t - 1 now
        # Accident: the steps that were meant for pictures enter the harmonic mean beside the harmonised ones.
        with_map = t % options.map_every == 0 or t in options.harmonise_at
        anomaly_map = compare(image, clean) if with_map else None
        if on_step:
            on_step(Step(t, clean, anomaly_map))
        if anomaly_map is not None:
            maps.append(anomaly_map)
            if t in options.harmonise_at:
                harmonised = published_harmonise(image, clean, anomaly_map)
                # Accident: the first noise again, at t, although the next step is t - 1.
                x_t = chain.add_noise(harmonised, first_noise, t)
    return Restoration(harmonic_mean(maps).clamp(0, HIGHEST), pseudo_healthy=x_t)


def published_ddpm(
    denoise: Denoise,
    image: Tensor,
    schedule: Schedule,
    noise: Noise,
    compare: Compare,
    *,
    options: PublishedDdpmOptions,
    on_step: OnStep | None = None,
) -> Restoration:
    """DDPM's published loop; `compare` is `thorad.maps.anomaly_map.residual`."""
    chain = PublishedSchedule(schedule)
    x_t = chain.add_noise(image, noise(), options.noise_level)
    for t in range(options.noise_level, -1, -1):
        clean = chain.predict_clean(x_t, denoise(x_t, t), t)
        x_t = chain.previous(x_t, clean, t, noise)
        if on_step:
            on_step(Step(t, clean, None))
    return Restoration(compare(image, x_t), pseudo_healthy=x_t)


def published_harmonise(image: Tensor, clean: Tensor, anomaly_map: Tensor) -> Tensor:
    """The clean estimate where the map is high, the image where it is low; all (B, 1, H, W).

    Args:
        image: in [-1, 1].
        clean: the clean estimate, in [-1, 1].
        anomaly_map: in [0, 1].
    """
    # Accident: the region is the mean of dilation and map, so that it follows the map's own grain.
    region = (close_and_dilate(anomaly_map, WINDOW) + anomaly_map) / 2
    # Accident: the data are in [-1, 1]; all that is darker than mid-grey becomes mid-grey.
    return (region * clean + (1 - region) * image).clamp(0, 1)


class PublishedSchedule(Schedule):
    """A schedule, computed in float32 from the betas on.

    Accident: near t = 0 that leaves 1 - alpha_bar three digits, so that the last step, for one, returns 0.99983 of the
    clean estimate. With float64 coefficients the maps move by 5e-4.
    """

    def __init__(self, schedule: Schedule) -> None:
        self.timesteps = schedule.timesteps
        self.betas = (1 - schedule.alpha_bar / schedule.alpha_bar.roll(1))[:-1].float()  # alpha_bar[-1] is 1
        self.alpha_bar = torch.cat([(1 - self.betas).cumprod(0), torch.ones(1)])

    def previous(self, x_t: Tensor, clean: Tensor, t: int, noise: Noise) -> Tensor:
        """DDPM equation 7 from t to t - 1 with the small fixed variance.

        Args:
            x_t: images at t, (B, 1, H, W).
            clean: their clean estimate, in [-1, 1].
            t: timestep.
            noise: asked for noise where t > 0.
        """
        beta, here, there = self.betas[t], self.alpha_bar[t], self.alpha_bar[t - 1]
        mean = there.sqrt() * beta / (1 - here) * clean + (1 - beta).sqrt() * (1 - there) / (1 - here) * x_t
        variance = (1 - there) / (1 - here) * beta
        return mean + variance.sqrt() * noise() if t > 0 else mean


def _to_unit(x: Tensor) -> Tensor:
    return ((x + 1) / 2).clamp(0, 1)


def _thor_options(request: Request) -> PublishedThorOptions:
    paper = PUBLISHED_THOR_GAUSSIAN if request.noise == "gaussian" else PublishedThorOptions()
    return PublishedThorOptions(*request.level_and_harmonise_at(paper.noise_level, paper.harmonise_at))


def _ddpm_options(level: int) -> Callable[[Request], PublishedDdpmOptions]:
    return lambda request: PublishedDdpmOptions(request.noise_level or level)


PUBLISHED_THOR = Method(
    name="published-thor",
    title="THOR (published code)",
    blurb="the published implementation's every step, accidents included",
    paper="github ci-ber/THOR_DDPM, February 2026",
    restore=published_thor,
    options=_thor_options,
    noise_levels={"simplex": PublishedThorOptions.noise_level, "gaussian": PUBLISHED_THOR_GAUSSIAN.noise_level},
    compare="published_map",
    overlay_maximum=1.0,
    published=True,
    compared=False,
)

PUBLISHED_ANODDPM = Method(
    name="published-anoddpm",
    title="AnoDDPM (published code)",
    blurb="AnoDDPM as THOR's published implementation runs it",
    paper="github ci-ber/THOR_DDPM, February 2026",
    restore=published_ddpm,
    options=_ddpm_options(250),
    noise_levels={"simplex": 250},
    published=True,
    compared=False,
)

PUBLISHED_DDPM = replace(
    PUBLISHED_ANODDPM,
    name="published-ddpm",
    title="DDPM (published code)",
    blurb="DDPM as THOR's published implementation runs it",
    options=_ddpm_options(350),
    noise_levels={"gaussian": 350},
)
