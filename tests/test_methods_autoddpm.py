"""AutoDDPM against an implementation of its own in NumPy, with a closed-form denoiser, and by what it calls."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import pytest
import scipy.ndimage
import torch
from numpy.typing import NDArray
from torch import Tensor

from thorad.diffusion.noise import gaussian_noise
from thorad.diffusion.schedule import Schedule, visited_timesteps
from thorad.maps.anomaly_map import residual
from thorad.methods import METHODS
from thorad.methods.autoddpm import AutoDdpmOptions, autoddpm, mask_map
from thorad.methods.contract import Step
from thorad.methods.ddpm import DdpmOptions, ddpm

Pixels = NDArray[np.float64]

SCHEDULE = Schedule()
SIZE = 24
DEVIATION = 0.05
"""Of the healthy images around their mean."""

NEIGHBOUR = 0.2
"""Share of another pixel in the noise that is predicted, where the test is about every number."""

CHAINS = [
    pytest.param(AutoDdpmOptions(), id="all"),
    pytest.param(AutoDdpmOptions(steps=2, resample_steps=4), id="few"),
    pytest.param(AutoDdpmOptions(steps=3, resample_steps=1, resamplings=1, threshold=0.02), id="one"),
]


def healthy_mean() -> Tensor:
    ramp = torch.linspace(-1, 1, SIZE, dtype=torch.float64)
    return 0.25 * (ramp[:, None] + torch.sin(3 * ramp)[None])[None, None]


def planted(mean: Tensor, depth: float = 0.5) -> tuple[Tensor, Tensor]:
    """`mean` with a dark square of 16 px, 2.8 % of the image, and the square."""
    square = torch.zeros_like(mean, dtype=torch.bool)
    square[..., 8:12, 10:14] = True
    return torch.where(square, mean - depth, mean), square


class Source:
    """A closed-form denoiser (healthy images are N(mean, DEVIATION²)) and noise, with a record of both.

    With `neighbour` each pixel's estimate depends on another pixel too, as a network's does.
    """

    def __init__(self, shape: tuple[int, ...] = (1, 1, SIZE, SIZE), neighbour: float = 0.0) -> None:
        self.shape = shape
        self.neighbour = neighbour
        self.generator = torch.Generator().manual_seed(0)
        self.mean = healthy_mean()
        self.draws: list[Tensor] = []
        self.calls: list[int] = []

    def noise(self) -> Tensor:
        self.draws.append(torch.randn(self.shape, generator=self.generator, dtype=torch.float64))
        return self.draws[-1]

    def denoise(self, x_t: Tensor, t: int) -> Tensor:
        self.calls.append(t)
        a = float(SCHEDULE.alpha_bar[t])
        eps = math.sqrt(1 - a) * (x_t - math.sqrt(a) * self.mean) / (a * DEVIATION**2 + 1 - a)
        return eps + self.neighbour * x_t.roll((1, 2), (2, 3)) if self.neighbour else eps


def perceptual(a: Tensor, b: Tensor) -> Tensor:
    """Any distance of two images that isn't the residual."""
    return ((a - b) ** 2 + 0.1 * (a - b).abs()).sqrt()


def in_numpy(image: Pixels, mean: Pixels, draws: Iterator[Pixels], options: AutoDdpmOptions) -> tuple[Pixels, Pixels]:
    """The whole method for one image (H, W), written from the four steps of its description."""
    betas = np.linspace(1e-4, 2e-2, 1000)
    power = np.append(np.cumprod(1 - betas), 1.0)  # the last stands for the clean end, -1

    def noised(x: Pixels, t: int) -> Pixels:
        return np.sqrt(power[t]) * x + np.sqrt(1 - power[t]) * next(draws)

    def clean_estimate(x: Pixels, t: int) -> Pixels:
        """The mean of the healthy image given x_t, less what the neighbour says."""
        gain = np.sqrt(power[t]) * DEVIATION**2 / (power[t] * DEVIATION**2 + 1 - power[t])
        from_neighbour = NEIGHBOUR * np.sqrt(1 / power[t] - 1) * np.roll(x, (1, 2), (0, 1))
        return np.clip(mean + gain * (x - np.sqrt(power[t]) * mean) - from_neighbour, -1, 1)

    def reverse(x: Pixels, clean: Pixels, t: int, t_next: int) -> Pixels:
        """Gaussian posterior of the image at t_next, given x at t and the clean image."""
        between = power[t] / power[t_next]
        weight_clean = np.sqrt(power[t_next]) * (1 - between) / (1 - power[t])
        weight_x = np.sqrt(between) * (1 - power[t_next]) / (1 - power[t])
        variance = (1 - between) * (1 - power[t_next]) / (1 - power[t])
        return weight_clean * clean + weight_x * x + np.sqrt(variance) * next(draws)

    level, steps = options.noise_level, options.steps
    down = list(range(level, -1, -1)) if steps is None else [round(level * i / steps) for i in range(steps, 0, -1)]
    x = noised(image, level)
    for t, t_next in zip(down, [*down[1:], -1], strict=True):
        estimate = clean_estimate(x, t)
        x = estimate if t_next == -1 else reverse(x, estimate, t, t_next)
    reconstruction = x
    difference = np.abs(image - reconstruction) / 2
    change = image - reconstruction
    map_0 = np.sqrt(change**2 + 0.1 * np.abs(change)) * np.minimum(difference / np.percentile(difference, 95), 1)
    threshold = np.percentile(map_0, 95) if options.threshold is None else options.threshold
    mask = scipy.ndimage.binary_dilation(map_0 > threshold, np.ones((3, 3))).astype(float)

    level, steps = options.restart_at, options.resample_steps or options.restart_at
    down = [round(level * i / steps) for i in range(steps, 0, -1)]
    x = noised(reconstruction, level)  # all of it
    for t, t_next in zip(down, [*down[1:], -1], strict=True):
        for again in reversed(range(options.resamplings)):
            estimate = clean_estimate(x, t)
            known = image if t_next == -1 else noised(image, t_next)
            unknown = estimate if t_next == -1 else reverse(x, estimate, t, t_next)
            x = (1 - mask) * known + mask * unknown
            if again:
                kept = power[t] / power[t_next]
                x = np.sqrt(kept) * x + np.sqrt(1 - kept) * next(draws)
    return np.abs(image - x) / 2 * map_0, x


@pytest.mark.parametrize("options", CHAINS)
def test_equals_numpy(options: AutoDdpmOptions) -> None:
    source = Source(neighbour=NEIGHBOUR)
    image, _ = planted(source.mean)
    image = image + 0.1 * torch.rand(image.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    restored = autoddpm(source.denoise, image, SCHEDULE, source.noise, perceptual, options=options)
    draws = iter([draw[0, 0].numpy() for draw in source.draws])
    anomaly_map, final = in_numpy(image[0, 0].numpy(), source.mean[0, 0].numpy(), draws, options)
    assert next(draws, None) is None
    assert anomaly_map.max() > 0.01
    np.testing.assert_allclose(restored.pseudo_healthy[0, 0], final, atol=1e-9)
    np.testing.assert_allclose(restored.anomaly_map[0, 0], anomaly_map, atol=1e-9)


@pytest.mark.parametrize("options", CHAINS)
def test_calls_as_many_as_it_says(options: AutoDdpmOptions) -> None:
    source = Source()
    steps: list[Step] = []
    image, _ = planted(source.mean)
    autoddpm(source.denoise, image, SCHEDULE, source.noise, perceptual, options=options, on_step=steps.append)
    assert len(source.calls) == options.network_calls()
    once = [*visited_timesteps(options.noise_level, options.steps), *options.resampled()]
    assert [step.t for step in steps] == once
    five_times = [t for t in options.resampled() for _ in range(options.resamplings)]
    assert source.calls == [*visited_timesteps(options.noise_level, options.steps), *five_times]


def test_calls_of_the_published_values() -> None:
    assert AutoDdpmOptions().network_calls() == 201 + 50 * 5
    assert AutoDdpmOptions(steps=2, resample_steps=4).network_calls() == 2 + 4 * 5
    assert AutoDdpmOptions().resampled() == list(range(50, 0, -1))


@pytest.mark.parametrize("options", CHAINS)
def test_what_is_known_stays_and_what_is_masked_is_restored(options: AutoDdpmOptions) -> None:
    source = Source()
    image, square = planted(source.mean)
    restored = autoddpm(source.denoise, image, SCHEDULE, source.noise, perceptual, options=options)
    known = restored.pseudo_healthy == image
    assert bool((~known)[square].all())
    if options.threshold is None:  # a twentieth of the image is masked, and every masked pixel's eight neighbours
        assert 0.55 <= float(known.double().mean()) < 0.95
    assert float((restored.pseudo_healthy - source.mean).abs()[square].max()) < 0.1  # of a depth of 0.5
    assert float(restored.anomaly_map[known].max()) == 0
    assert float(restored.anomaly_map[square].min()) > 5 * float(restored.anomaly_map[~square].max())


def test_a_threshold_above_all_leaves_the_image() -> None:
    source = Source()
    image, _ = planted(source.mean)
    options = AutoDdpmOptions(steps=2, resample_steps=2, threshold=10.0)
    restored = autoddpm(source.denoise, image, SCHEDULE, source.noise, perceptual, options=options)
    assert torch.equal(restored.pseudo_healthy, image)
    assert float(restored.anomaly_map.max()) == 0


def test_a_perfect_reconstruction_has_a_map_of_zeros() -> None:
    """Its residual's percentile is 0 too: nothing is divided by it."""
    source = Source()
    image = torch.full((1, 1, SIZE, SIZE), -1.0, dtype=torch.float64)

    def denoise(x_t: Tensor, t: int) -> Tensor:
        return x_t + 1000  # so much noise that the clean estimate is clipped to -1

    options = AutoDdpmOptions(steps=2, resample_steps=2)
    restored = autoddpm(denoise, image, SCHEDULE, source.noise, perceptual, options=options)
    assert torch.equal(restored.pseudo_healthy, image)
    assert torch.equal(restored.anomaly_map, torch.zeros_like(image))


def test_one_image_is_the_same_alone_and_in_a_batch() -> None:
    source = Source()
    image, _ = planted(source.mean)
    images = torch.cat([image, source.mean, 0.5 * image]).float()
    source.mean = source.mean.float()
    options = AutoDdpmOptions(steps=2, resample_steps=3)

    def restore(names: list[str], x: Tensor) -> tuple[Tensor, Tensor]:
        generators = [torch.Generator().manual_seed(ord(name)) for name in names]

        def noise() -> Tensor:
            return gaussian_noise(generators, SIZE, SIZE, torch.device("cpu"))

        restored = autoddpm(source.denoise, x, SCHEDULE, noise, residual, options=options)
        return restored.anomaly_map, restored.pseudo_healthy

    together = restore(["a", "b", "c"], images)
    for i, name in enumerate("abc"):
        for alone, of_batch in zip(restore([name], images[i : i + 1]), together, strict=True):
            assert torch.equal(alone, of_batch[i : i + 1])


@pytest.mark.parametrize("wrong", [{"restart_at": 0}, {"resamplings": 0}])
def test_options_that_re_sample_nothing_are_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="1 or more"):
        AutoDdpmOptions(**wrong)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="steps must be 1 or more"):
        AutoDdpmOptions(resample_steps=0).network_calls()


def test_the_first_call_sees_all_of_the_reconstruction() -> None:
    """As in the public code, and not the scan with the reconstruction stitched in: a denoiser that gives back what it
    sees shows which. The image is far from the mean, the mask is empty."""
    source = Source()
    image = source.mean + 0.3
    seen: list[Tensor] = []

    def denoise(x_t: Tensor, t: int) -> Tensor:
        seen.append(x_t)
        return source.denoise(x_t, t)

    options = AutoDdpmOptions(steps=2, resample_steps=1, resamplings=1, threshold=10.0)
    autoddpm(denoise, image, SCHEDULE, source.noise, perceptual, options=options)
    noise = source.draws[len(source.draws) - 1]
    restart = float(SCHEDULE.alpha_bar[50])
    reconstruction = (seen[2] - math.sqrt(1 - restart) * noise) / math.sqrt(restart)
    assert float((reconstruction - source.mean).abs().mean()) < 0.05
    assert float((reconstruction - image).abs().mean()) > 0.25


def test_the_mask_map_by_hand() -> None:
    """LPIPS' stand-in times the residual, which is 1 from its 95th percentile on."""
    source, other = Source(neighbour=NEIGHBOUR), Source(neighbour=NEIGHBOUR)
    image, _ = planted(source.mean)
    options = DdpmOptions(200, 3)
    made = mask_map(source.denoise, image, SCHEDULE, source.noise, perceptual, options=options)
    rough = ddpm(other.denoise, image, SCHEDULE, other.noise, residual, options=options)
    scaled = (rough.anomaly_map / rough.anomaly_map.quantile(0.95)).clamp(max=1)
    torch.testing.assert_close(made.anomaly_map, perceptual(image, rough.pseudo_healthy) * scaled)
    assert torch.equal(made.pseudo_healthy, rough.pseudo_healthy)


def test_its_threshold_comes_from_the_map_of_its_mask() -> None:
    assert METHODS[METHODS["autoddpm"].threshold_from].restore is mask_map
    assert METHODS["autoddpm-mask"].default_draws == 1, "the mask is cut from the map of one draw"
