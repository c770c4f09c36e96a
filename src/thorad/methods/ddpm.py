"""DDPM restoration, and AnoDDPM, which is the same with simplex noise.

Ho, Jain, Abbeel: Denoising Diffusion Probabilistic Models, 2020.
Wyatt, Leach, Schmon, Willcocks: AnoDDPM, CVPR workshops 2022.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from thorad.diffusion.schedule import CLEAN, Schedule, visited_timesteps
from thorad.methods.contract import Compare, Denoise, Method, Noise, OnStep, Request, Restoration, Step


@dataclass(frozen=True)
class DdpmOptions:
    """How far to noise and how many timesteps to visit on the way back."""

    noise_level: int = 350
    """Timestep T that the image is noised to: 350 for Gaussian noise, 250 for simplex (THOR paper, section 3)."""
    steps: int | None = None
    """Timesteps visited, evenly spaced; None visits all."""

    def network_calls(self) -> int:
        """Calls of the network for one image."""
        return len(visited_timesteps(self.noise_level, self.steps))


def ddpm(
    denoise: Denoise,
    image: Tensor,
    schedule: Schedule,
    noise: Noise,
    compare: Compare,
    *,
    options: DdpmOptions,
    on_step: OnStep | None = None,
) -> Restoration:
    """Noise the image to T, denoise it, and compare."""
    timesteps = visited_timesteps(options.noise_level, options.steps)
    x_t = schedule.add_noise(image, noise(), options.noise_level)
    clean = image
    for t, t_next in zip(timesteps, [*timesteps[1:], CLEAN], strict=True):
        clean = schedule.predict_clean(x_t, denoise(x_t, t), t)
        if on_step:
            on_step(Step(t, clean, None))
        if t_next != CLEAN:  # the step to CLEAN gives the clean estimate itself
            x_t = schedule.step(x_t, clean, t, t_next, noise())
    return Restoration(compare(image, clean), pseudo_healthy=clean)


def _options(level: int) -> Callable[[Request], DdpmOptions]:
    return lambda request: DdpmOptions(request.noise_level or level, request.steps)


DDPM = Method(
    name="ddpm",
    title="DDPM",
    blurb="noise the scan with Gaussian noise, denoise it, compare",
    paper="Ho, Jain, Abbeel, NeurIPS 2020",
    restore=ddpm,
    options=_options(350),
    noise_levels={"gaussian": 350},
    default_steps={"gaussian": 2},
)

ANODDPM = Method(
    name="anoddpm",
    title="AnoDDPM",
    blurb="DDPM with simplex noise, which hides structures of the size of a lesion",
    paper="Wyatt, Leach, Schmon, Willcocks, CVPR workshops 2022",
    restore=ddpm,
    options=_options(250),
    noise_levels={"simplex": 250},
    default_steps={"simplex": 2},
)
