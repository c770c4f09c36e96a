"""AutoDDPM: mask, stitch, re-sample.

Bercea, Neumayr, Rueckert, Schnabel: Mask, Stitch, and Re-Sample: Enhancing Robustness and Generalizability in Anomaly
Detection through Automatic Diffusion Models, 2023, arXiv:2305.19643.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional as F

from thorad.diffusion.schedule import CLEAN, Schedule, visited_timesteps
from thorad.maps.anomaly_map import residual
from thorad.methods.contract import Compare, Denoise, Method, Noise, OnStep, Restoration, Step
from thorad.methods.ddpm import DdpmOptions, ddpm

PERCENTILE = 0.95
"""Quantile of an image's residual that counts as 1, and of its map that is the threshold where none is given."""

PUBLISHED_THRESHOLD = 0.13
"""Of the public configuration (github ci-ber/autoDDPM, autoddpm.yaml), for its own network: what at most 5 % of the
healthy pixels exceed there. Its README asks for one of one's own for every data set."""


@dataclass(frozen=True)
class AutoDdpmOptions:
    """The values of the published code."""

    noise_level: int = 200
    """Timestep that the image is noised to for the mask."""
    restart_at: int = 50
    """Timestep that the reconstruction is noised to."""
    resamplings: int = 5
    """Times that each timestep of the re-sampling is gone through."""
    steps: int | None = None
    """Timesteps visited for the mask, evenly spaced; None visits all."""
    resample_steps: int | None = None
    """Timesteps visited from `restart_at` on, evenly spaced; None visits all, `restart_at` ... 1."""
    threshold: float | None = None
    """Value of `mask_map` above which a pixel is masked: what 5 % of the healthy pixels exceed. None: the 95th
    percentile of the image's own map, as the public code has it where no threshold is set."""

    def __post_init__(self) -> None:
        """Refuse what isn't a re-sampling."""
        if self.restart_at < 1 or self.resamplings < 1:
            raise ValueError(f"restart_at {self.restart_at} and resamplings {self.resamplings} must be 1 or more")

    def network_calls(self) -> int:
        """Calls of the network for one image: one a timestep for the mask, `resamplings` a timestep afterwards."""
        return len(visited_timesteps(self.noise_level, self.steps)) + self.resamplings * len(self.resampled())

    def resampled(self) -> list[int]:
        """Timesteps of the re-sampling in falling order. The paper's t = 0 is the clean end of the chain."""
        steps = self.restart_at if self.resample_steps is None else self.resample_steps
        return visited_timesteps(self.restart_at, steps)


def mask_map(
    denoise: Denoise,
    image: Tensor,
    schedule: Schedule,
    noise: Noise,
    compare: Compare,
    *,
    options: DdpmOptions,
    on_step: OnStep | None = None,
) -> Restoration:
    """What DDPM changes: the map that AutoDDPM's mask is cut from, and DDPM's reconstruction x_rec.

    `compare` is the perceptual distance alone, unblurred; the residual is taken here.
    """
    rough = ddpm(denoise, image, schedule, noise, residual, options=options, on_step=on_step)
    scaled = (rough.anomaly_map / _positive(_percentile(rough.anomaly_map))).clamp(max=1)
    return Restoration(compare(image, rough.pseudo_healthy) * scaled, rough.pseudo_healthy)


def autoddpm(
    denoise: Denoise,
    image: Tensor,
    schedule: Schedule,
    noise: Noise,
    compare: Compare,
    *,
    options: AutoDdpmOptions,
    on_step: OnStep | None = None,
) -> Restoration:
    """Mask what DDPM changes, noise its reconstruction, and re-sample the seams to the image, which is kept elsewhere.

    `compare` is as for `mask_map`.
    """
    # Mask
    whole = DdpmOptions(options.noise_level, options.steps)
    rough = mask_map(denoise, image, schedule, noise, compare, options=whole, on_step=on_step)
    first_map = rough.anomaly_map  # (B, 1, H, W)
    threshold = _percentile(first_map) if options.threshold is None else options.threshold
    mask = F.max_pool2d((first_map > threshold).float(), 3, stride=1, padding=1) > 0  # (B, 1, H, W), 3 x 3 dilation

    # Stitch: the first call sees all of x_rec, noised, as in the public code; the image joins it after the call
    x_t = schedule.add_noise(rough.pseudo_healthy, noise(), options.restart_at)

    # Re-sample
    timesteps = options.resampled()
    for t, t_next in zip(timesteps, [*timesteps[1:], CLEAN], strict=True):
        for time in range(options.resamplings):
            clean = schedule.predict_clean(x_t, denoise(x_t, t), t)
            known, unknown = image, clean
            if t_next != CLEAN:
                known = schedule.add_noise(image, noise(), t_next)
                unknown = schedule.step(x_t, clean, t, t_next, noise())
            stitched = torch.where(mask, unknown, known)  # at t_next
            if time < options.resamplings - 1:
                x_t = schedule.renoise(stitched, t_next, t, noise())
        x_t = stitched
        if on_step:
            on_step(Step(t, torch.where(mask, clean, image), None))
    return Restoration(residual(image, stitched) * first_map, pseudo_healthy=stitched)


def _percentile(maps: Tensor) -> Tensor:
    """Each image's own 95th percentile, (B, 1, 1, 1)."""
    return maps.flatten(1).quantile(PERCENTILE, dim=1).view(-1, 1, 1, 1)


def _positive(divisor: Tensor) -> Tensor:
    return torch.where(divisor > 0, divisor, 1.0)


AUTODDPM = Method(
    name="autoddpm",
    title="AutoDDPM",
    blurb="mask what changed, stitch the scan around it, and sample the rest again",
    paper="Bercea, Neumayr, Rueckert, Schnabel, 2023, arXiv:2305.19643",
    restore=autoddpm,
    options=lambda request: AutoDdpmOptions(
        noise_level=request.noise_level or AutoDdpmOptions.noise_level,
        steps=request.steps,
        resample_steps=request.steps,
    ),
    noise_levels={"gaussian": AutoDdpmOptions.noise_level},
    default_steps={"gaussian": 4},
    compare="perceptual",
    overlay_maximum=0.05,
    threshold_from="autoddpm-mask",
)

AUTODDPM_MASK = replace(
    AUTODDPM,
    name="autoddpm-mask",
    title="AutoDDPM's mask",
    blurb="the map that AutoDDPM's mask is cut from: calibrate it on healthy scans, and AutoDDPM takes its threshold",
    restore=mask_map,
    options=lambda request: DdpmOptions(request.noise_level or AutoDdpmOptions.noise_level, request.steps),
    overlay_maximum=0.3,
    threshold_from="",
    one_draw=True,
    compared=False,
)
