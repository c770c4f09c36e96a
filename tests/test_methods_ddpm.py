"""DDPM with the exact denoiser of a Gaussian, for which every step is known in closed form."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from thorad.diffusion.schedule import CLEAN, Schedule, visited_timesteps
from thorad.maps.anomaly_map import residual
from thorad.methods import METHODS, Request
from thorad.methods.contract import Step
from thorad.methods.ddpm import DdpmOptions, ddpm

SCHEDULE = Schedule()
SHAPE = (1, 1, 300, 300)
PIXELS = math.prod(SHAPE)
MEAN, DEVIATION = 0.1, 0.2  # -1 and 1 are 4.5 deviations away: clipping hardly ever bites


def exact_denoiser(t_list: list[int] | None = None) -> Callable[[Tensor, int], Tensor]:
    """The best prediction of the noise where each pixel is N(MEAN, DEVIATION²); keeps the timesteps it's asked for."""

    def denoise(x_t: Tensor, t: int) -> Tensor:
        if t_list is not None:
            t_list.append(t)
        a = float(SCHEDULE.alpha_bar[t])
        return math.sqrt(1 - a) * (x_t - math.sqrt(a) * MEAN) / (a * DEVIATION**2 + 1 - a)

    return denoise


def gaussian(seed: int, shape: tuple[int, ...] = SHAPE) -> Callable[[], Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return lambda: torch.randn(shape, generator=generator)


def sampled_moments(timesteps: list[int]) -> tuple[float, float]:
    """Mean and variance that the sampler must end with: all is linear in x_t, so both follow by recursion.

    clean = MEAN + gain (x_t - sqrt(alpha_bar) MEAN), the best estimate there is, and x_next by DDPM's equation 7
    between any two timesteps: b clean + c x_t + sqrt(fresh) noise.
    """
    alpha_bar = SCHEDULE.alpha_bar.tolist()
    here = alpha_bar[timesteps[0]]
    mean, variance = math.sqrt(here) * MEAN, here * DEVIATION**2 + 1 - here
    for t, t_next in zip(timesteps, [*timesteps[1:], CLEAN], strict=True):
        here, there = alpha_bar[t], 1.0 if t_next == CLEAN else alpha_bar[t_next]
        gain = DEVIATION**2 * math.sqrt(here) / (here * DEVIATION**2 + 1 - here)
        b = math.sqrt(there) * (1 - here / there) / (1 - here)
        c = math.sqrt(here / there) * (1 - there) / (1 - here)
        fresh = (1 - there) / (1 - here) * (1 - here / there)
        mean = b * (MEAN + gain * (mean - math.sqrt(here) * MEAN)) + c * mean
        variance = (b * gain + c) ** 2 * variance + fresh
    return mean, variance


@pytest.mark.parametrize("steps", [None, 100, 10, 3])
def test_sampling_from_noise_gives_the_mean_and_the_variance(steps: int | None) -> None:
    """From T = 999, where nothing of the image is left; the noise level's power is the image's own."""
    image = MEAN + DEVIATION * gaussian(1)()
    options = DdpmOptions(noise_level=999, steps=steps)
    sample = ddpm(exact_denoiser(), image, SCHEDULE, gaussian(2), residual, options=options).pseudo_healthy
    assert abs(float(torch.corrcoef(torch.stack([sample.flatten(), image.flatten()]))[0, 1])) < 0.02
    mean, variance = sampled_moments(visited_timesteps(999, steps))
    # Four standard errors of a mean and of a variance.
    assert float(sample.mean()) == pytest.approx(mean, abs=4 * math.sqrt(variance / PIXELS))
    assert float(sample.var()) == pytest.approx(variance, rel=4 * math.sqrt(2 / PIXELS))


def test_all_steps_sample_the_distribution_itself_and_few_steps_a_narrower_one() -> None:
    """What is missing is the spread around the clean estimate, which every step takes for the image itself."""
    mean, variance = sampled_moments(visited_timesteps(999, None))
    assert mean == pytest.approx(MEAN, abs=1e-6)
    assert math.sqrt(variance) == pytest.approx(DEVIATION, rel=0.02)
    spread = [math.sqrt(sampled_moments(visited_timesteps(999, steps))[1]) for steps in (3, 10, 100, 999)]
    assert spread == sorted(spread)
    assert spread[0] < 0.5 * DEVIATION


def test_restoration_moves_towards_the_mean_by_a_known_share() -> None:
    """One call from T: clean = m + gain (x_T - sqrt(alpha_bar) m), for an image far off the mean."""
    image = torch.full(SHAPE, MEAN + 0.5)
    restored = ddpm(
        exact_denoiser(), image, SCHEDULE, gaussian(2), residual, options=DdpmOptions(noise_level=350, steps=1)
    )
    a = float(SCHEDULE.alpha_bar[350])
    gain = DEVIATION**2 * math.sqrt(a) / (a * DEVIATION**2 + 1 - a)
    expected = MEAN + gain * math.sqrt(a) * 0.5
    deviation = gain * math.sqrt(1 - a)
    assert float(restored.pseudo_healthy.mean()) == pytest.approx(expected, abs=4 * deviation / math.sqrt(PIXELS))
    assert float(restored.pseudo_healthy.std()) == pytest.approx(deviation, rel=0.01)
    assert torch.equal(restored.anomaly_map, residual(image, restored.pseudo_healthy))


@pytest.mark.parametrize(
    ("options", "calls"),
    [
        (DdpmOptions(), 351),  # the published code: 350 ... 0
        (DdpmOptions(noise_level=250), 251),
        (DdpmOptions(noise_level=350, steps=7), 7),
        (DdpmOptions(noise_level=250, steps=5), 5),
        (DdpmOptions(noise_level=250, steps=1), 1),
        (DdpmOptions(noise_level=3, steps=50), 4),
        (DdpmOptions(noise_level=0), 1),
    ],
)
def test_network_calls_are_the_counted_ones(options: DdpmOptions, calls: int) -> None:
    asked: list[int] = []
    seen: list[Step] = []
    shape = (2, 1, 4, 4)
    ddpm(
        exact_denoiser(asked),
        torch.zeros(shape),
        SCHEDULE,
        gaussian(0, shape),
        residual,
        options=options,
        on_step=seen.append,
    )
    assert len(asked) == options.network_calls() == calls
    assert asked == visited_timesteps(options.noise_level, options.steps)
    assert [step.t for step in seen] == asked
    assert all(step.anomaly_map is None and step.clean.shape == shape for step in seen)


def test_every_step_has_noise_of_its_own_and_the_last_has_none() -> None:
    """x_T with the first draw, every later x_t with the next; the clean estimate at the last timestep is the result."""
    shape = (1, 1, 4, 4)
    draws: list[Tensor] = []
    states: list[tuple[int, Tensor]] = []
    draw, eps = gaussian(3, shape), exact_denoiser()

    def noise() -> Tensor:
        draws.append(draw())
        return draws[-1]

    def denoise(x_t: Tensor, t: int) -> Tensor:
        states.append((t, x_t))
        return eps(x_t, t)

    image = torch.full(shape, 0.4)
    restored = ddpm(denoise, image, SCHEDULE, noise, residual, options=DdpmOptions(noise_level=300, steps=4))
    assert [t for t, _ in states] == [300, 225, 150, 75]
    assert len(draws) == 4
    assert torch.equal(states[0][1], SCHEDULE.add_noise(image, draws[0], 300))
    for (t, x_t), (t_next, x_next), drawn in zip(states, states[1:], draws[1:], strict=False):
        clean = SCHEDULE.predict_clean(x_t, eps(x_t, t), t)
        assert torch.equal(x_next, SCHEDULE.step(x_t, clean, t, t_next, drawn))
    t, x_t = states[-1]
    assert torch.equal(restored.pseudo_healthy, SCHEDULE.predict_clean(x_t, eps(x_t, t), t))


def test_the_papers_noise_levels() -> None:
    """Of the paper's comparison (arXiv:2403.08464): Gaussian noise from 350, simplex noise from 250, all steps."""
    for name, noise, level in (("ddpm", "gaussian", 350), ("anoddpm", "simplex", 250)):
        assert METHODS[name].noise_levels == {noise: level}
        options = METHODS[name].options(Request(name, noise, None, None, False, 128, 0))
        assert options == DdpmOptions(noise_level=level, steps=None)
    assert METHODS["anoddpm"].restore is METHODS["ddpm"].restore is ddpm
    assert not METHODS["ddpm"].perceptual
    assert not METHODS["anoddpm"].perceptual
