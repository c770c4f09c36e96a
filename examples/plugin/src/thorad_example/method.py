"""Restoration in one step: the mean of several clean estimates, each from noise of its own."""

from dataclasses import dataclass

import torch
from torch import Tensor

from thorad.diffusion.schedule import Schedule
from thorad.methods import Method, Request, Restoration, Step
from thorad.methods.contract import Compare, Denoise, Noise, OnStep


@dataclass(frozen=True)
class OneStepOptions:
    """How far to noise, and how often."""

    noise_level: int = 200
    """Timestep."""
    estimates: int = 4

    def network_calls(self) -> int:
        """Calls of the network for one image."""
        return self.estimates


def one_step(
    denoise: Denoise,
    image: Tensor,
    schedule: Schedule,
    noise: Noise,
    compare: Compare,
    *,
    options: OneStepOptions,
    on_step: OnStep | None = None,
) -> Restoration:
    """Noise the image, estimate the clean one, again and again, and compare with the mean."""
    t, estimates = options.noise_level, []
    for _ in range(options.estimates):
        x_t = schedule.add_noise(image, noise(), t)
        estimates.append(schedule.predict_clean(x_t, denoise(x_t, t), t))
        if on_step:
            on_step(Step(t, estimates[-1], None))
    healthy = torch.stack(estimates).mean(0)
    return Restoration(compare(image, healthy), pseudo_healthy=healthy)


def _options(request: Request) -> OneStepOptions:
    return OneStepOptions(request.noise_level or OneStepOptions.noise_level)


ONE_STEP = Method(
    name="one-step",
    title="One step",
    blurb="the mean of several clean estimates, each made in one step",
    paper="none: an example",
    restore=one_step,
    options=_options,
    noise_levels={"coarse": 200, "simplex": 200, "gaussian": 200},  # the first is the default
)
