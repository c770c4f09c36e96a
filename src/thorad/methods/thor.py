"""THOR: temporal harmonisation for optimal restoration.

Bercea, Wiestler, Rueckert, Schnabel: Diffusion Models with Implicit Guidance for Medical Anomaly Detection,
MICCAI 2024, arXiv:2403.08464.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from thorad.diffusion.schedule import CLEAN, Schedule, visited_timesteps
from thorad.maps.anomaly_map import guidance_mask, harmonic_mean, residual
from thorad.methods.contract import Compare, Denoise, Method, Noise, OnStep, Request, Restoration, Step

ABLATION = {"ablation": True}
"""Marks options that the paper has one value for. That value is left out of what calibrations are told apart by, so
that those made before there was a choice stay valid."""


@dataclass(frozen=True)
class ThorOptions:
    """The paper's values for simplex noise; `THOR_GAUSSIAN` holds those for Gaussian noise."""

    noise_level: int = 250
    """Timestep T that the image is noised to."""
    harmonise_at: tuple[int, ...] = (200, 150, 100, 50)
    """Timesteps at which the clean estimate is harmonised with the image; visited whatever `steps` says."""
    steps: int | None = None
    """Timesteps visited, evenly spaced; None visits all."""
    finish: bool = False
    """Go on below the last harmonised timestep to the end of the chain. Only `pseudo_healthy` gains by it."""
    harmonise: Literal["guided", "renoised", "none"] = field(default="guided", metadata=ABLATION)
    """"guided" is the paper's; "renoised" noises the clean estimate itself anew, with as many calls and nothing of the
    image; "none" goes on without: maps alone are made at these timesteps."""
    window: int | None = field(default=None, metadata=ABLATION)
    """Side of the guidance mask's morphology, px, odd; None is 13 at 128 px, as published."""
    perceptual: bool = field(default=True, metadata=ABLATION)
    """Whether the maps are the residual times LPIPS, or the residual alone."""
    mean: Literal["harmonic", "arithmetic", "last"] = field(default="harmonic", metadata=ABLATION)
    """What is made of the maps; "last" is the one at the last harmonised timestep."""

    def __post_init__(self) -> None:
        """Refuse what isn't a way to harmonise."""
        if self.window is not None and (self.window < 1 or self.window % 2 == 0):
            raise ValueError(f"window is {self.window}, expected a positive odd number of pixels")
        if not self.harmonise_at or len(set(self.harmonise_at)) < len(self.harmonise_at):
            raise ValueError(f"harmonise_at must hold one or more different timesteps, got {self.harmonise_at}")

    def network_calls(self) -> int:
        """Calls of the network for one image: one a timestep, a second one where harmonisation noises anew."""
        visited = visited_timesteps(self.noise_level, self.steps, self.harmonise_at)
        last = min(self.harmonise_at)
        anew = 0 if self.harmonise == "none" else len(self.harmonise_at)
        if self.finish:
            return len(visited) + anew
        return sum(t >= last for t in visited) + max(0, anew - 1)


THOR_GAUSSIAN = ThorOptions(noise_level=350, harmonise_at=(300, 150, 50))


@dataclass(frozen=True)
class Draw:
    """One way from noise back to the image."""

    maps: list[Tensor]
    """(B, 1, H, W) each, one for each harmonised timestep."""
    estimate: Tensor
    """(B, 1, H, W) in [-1, 1]: the clean estimate at the last harmonised timestep, before harmonisation."""
    pseudo_healthy: Tensor
    """(B, 1, H, W) in [-1, 1]: the harmonised estimate there or, with `finish`, the end of the chain."""


def draw(
    denoise: Denoise,
    image: Tensor,
    schedule: Schedule,
    noise: Noise,
    compare: Compare,
    *,
    options: ThorOptions,
    on_step: OnStep | None = None,
) -> Draw:
    """Noise the image to T and denoise it; at chosen timesteps only what differs from the image may change."""
    timesteps = visited_timesteps(options.noise_level, options.steps, options.harmonise_at)
    maps: list[Tensor] = []
    x_t = schedule.add_noise(image, noise(), options.noise_level)
    estimate = clean = image
    for t, t_next in zip(timesteps, [*timesteps[1:], CLEAN], strict=True):
        clean = schedule.predict_clean(x_t, denoise(x_t, t), t)
        anomaly_map = compare(image, clean) if t in options.harmonise_at else None
        if on_step:
            on_step(Step(t, clean, anomaly_map))
        if anomaly_map is not None:
            maps.append(anomaly_map)
            estimate = clean
            if options.harmonise == "guided":
                may_change = guidance_mask(anomaly_map, options.window)  # cd(m), (B, 1, H, W) in [0, 1]
                clean = (may_change * clean + (1 - may_change) * image).clamp(-1, 1)
            if t == min(options.harmonise_at) and not options.finish:
                break
            if options.harmonise != "none":
                x_t = schedule.add_noise(clean, noise(), t)
                clean = schedule.predict_clean(x_t, denoise(x_t, t), t)
        if t_next != CLEAN:  # the step to CLEAN gives the clean estimate itself
            x_t = schedule.step(x_t, clean, t, t_next, noise())
    return Draw(maps, estimate, pseudo_healthy=clean)


def thor(
    denoise: Denoise,
    image: Tensor,
    schedule: Schedule,
    noise: Noise,
    compare: Compare,
    *,
    options: ThorOptions,
    on_step: OnStep | None = None,
) -> Restoration:
    """One `draw`, and the harmonic mean of its maps (but for `options.mean`)."""
    compare = compare if options.perceptual else residual
    drawn = draw(denoise, image, schedule, noise, compare, options=options, on_step=on_step)
    maps = drawn.maps[-1:] if options.mean == "last" else drawn.maps
    final = torch.stack(maps).mean(dim=0) if options.mean == "arithmetic" else harmonic_mean(maps)
    return Restoration(final, drawn.pseudo_healthy)


def _options(request: Request) -> ThorOptions:
    paper = THOR_GAUSSIAN if request.noise == "gaussian" else ThorOptions()
    level, harmonise_at = request.level_and_harmonise_at(paper.noise_level, paper.harmonise_at)
    return ThorOptions(level, harmonise_at, request.steps, request.finish)


THOR = Method(
    name="thor",
    title="THOR",
    blurb="what differs from the clean estimate may change, all else is held to the scan",
    paper="Bercea, Wiestler, Rueckert, Schnabel, MICCAI 2024, arXiv:2403.08464",
    restore=thor,
    options=_options,
    noise_levels={"simplex": ThorOptions.noise_level, "gaussian": THOR_GAUSSIAN.noise_level},
    default_steps={"simplex": 1, "gaussian": 1},
    compare="anomaly_map",
    overlay_maximum=0.1,
    can_finish=True,
)
