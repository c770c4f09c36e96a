from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from scipy.ndimage import gaussian_filter
from torch import Tensor

from thorad.diffusion.schedule import Schedule
from thorad.maps.anomaly_map import residual
from thorad.methods.contract import Step
from thorad.methods.thor import ThorOptions, thor
from thorad.methods.thor_plus import ThorPlusOptions, thor_plus

SCHEDULE = Schedule()
SHAPE = (1, 1, 32, 32)


def denoise(x_t: Tensor, t: int) -> Tensor:
    """The noise in x_t if healthy images are white noise of standard deviation 0.3 about 0.2: the best estimate."""
    alpha_bar = float(SCHEDULE.alpha_bar[t])
    gain = (1 - alpha_bar) ** 0.5 / (alpha_bar * 0.09 + 1 - alpha_bar)
    return gain * (x_t - alpha_bar**0.5 * 0.2)


def noise_of(seed: int, count: int = 1) -> tuple[torch.Generator, object]:
    generator = torch.Generator().manual_seed(seed)
    return generator, lambda: torch.randn(count, *SHAPE[1:], generator=generator)


def with_square(brightness: float) -> Tensor:
    image = torch.full(SHAPE, 0.2)
    image[..., 10:18, 10:18] += brightness
    return image


def run(image: Tensor, options: ThorPlusOptions, seed: int = 0, on_step: object = None) -> Tensor:
    _, noise = noise_of(seed)
    return thor_plus(denoise, image, SCHEDULE, noise, residual, options=options, on_step=on_step).anomaly_map  # type: ignore[arg-type]


def test_equals_the_formula_by_hand() -> None:
    """Two runs of THOR with the same noise, then the formula with NumPy and SciPy."""
    image = with_square(-0.8)
    spread = torch.rand(SHAPE[1:], generator=torch.Generator().manual_seed(5))
    options = ThorPlusOptions(steps=1, draws=2, standard_deviation=spread)
    steps: list[Step] = []
    _, noise = noise_of(3)
    one_draw = ThorOptions(options.noise_level, options.harmonise_at, 1)
    for _ in range(2):
        thor(denoise, image, SCHEDULE, noise, residual, options=one_draw, on_step=steps.append)  # type: ignore[arg-type]
    harmonised = [step for step in steps if step.anomaly_map is not None]
    assert len(harmonised) == 2 * len(options.harmonise_at)
    x = image.numpy()[0, 0]
    healthy = sum(step.clean.numpy()[0, 0] for step in steps if step.t == 50) / 2
    maps = [step.anomaly_map.numpy()[0, 0] for step in harmonised if step.anomaly_map is not None]
    size = abs(gaussian_filter(x - healthy, 0.7)) / 2
    share = len(maps) / sum(1 / one for one in maps)
    expected = size**0.75 * share**0.25 / (spread.numpy()[0] / 2 + 0.02)
    found = run(image, options, seed=3)
    torch.testing.assert_close(found[0, 0], torch.from_numpy(expected), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("brightness", [-0.7, 0.7])
def test_finds_dark_and_bright(brightness: float) -> None:
    found = run(with_square(brightness), ThorPlusOptions(steps=1, draws=2))[0, 0]
    inside = found[10:18, 10:18].mean()
    outside = (found.sum() - found[10:18, 10:18].sum()) / (32 * 32 - 64)
    assert inside > 2 * outside


def test_the_same_residual_counts_more_where_healthy_people_are_alike() -> None:
    image = with_square(-0.7)
    halves = torch.full(SHAPE[1:], 0.36)
    halves[..., 16:] = 0.16
    flat = run(image, ThorPlusOptions(steps=1, draws=1))  # spread 1
    uneven = run(image, ThorPlusOptions(steps=1, draws=1, standard_deviation=halves))
    ratio = (uneven / flat)[0, 0]
    torch.testing.assert_close(ratio[:, :16], torch.full((32, 16), 1.04 / 0.4), rtol=1e-4, atol=0)
    torch.testing.assert_close(ratio[:, 16:], torch.full((32, 16), 1.04 / 0.2), rtol=1e-4, atol=0)


def test_more_draws_make_a_steadier_map() -> None:
    """The variance between seeds falls with the number of draws, as a mean's does."""
    image = with_square(0.0)

    def variance(draws: int) -> float:
        options = ThorPlusOptions(steps=1, draws=draws, thor_share=0.0, blur_sigma=0.1)
        return float(torch.stack([run(image, options, seed) for seed in range(6)]).square().mean())

    assert variance(8) < 0.3 * variance(1)


def test_the_maps_of_its_halves_are_those_of_as_many_draws() -> None:
    image = with_square(-0.7)
    whole = ThorPlusOptions(steps=1, draws=5)
    _, noise = noise_of(4)
    found = thor_plus(denoise, image, SCHEDULE, noise, residual, options=whole)  # type: ignore[arg-type]
    _, noise = noise_of(4)
    for part, draws in zip(found.draw_maps, (2, 3), strict=True):
        alone = thor_plus(denoise, image, SCHEDULE, noise, residual, options=replace(whole, draws=draws))  # type: ignore[arg-type]
        assert torch.equal(part, alone.anomaly_map)


def test_one_image_gives_one_map_whatever_its_batch() -> None:
    first, second = with_square(-0.7), with_square(0.4).flip(-1)
    options = ThorPlusOptions(steps=1, draws=2)
    generators = [torch.Generator().manual_seed(seed) for seed in (0, 1)]

    def noise() -> Tensor:
        return torch.cat([torch.randn(SHAPE, generator=generator) for generator in generators])

    together = thor_plus(denoise, torch.cat([first, second]), SCHEDULE, noise, residual, options=options)
    torch.testing.assert_close(together.anomaly_map[:1], run(first, options, 0))
    torch.testing.assert_close(together.anomaly_map[1:], run(second, options, 1))


def test_calls_are_counted() -> None:
    options, calls = ThorPlusOptions(steps=1), 0

    def counted(x_t: Tensor, t: int) -> Tensor:
        nonlocal calls
        calls += 1
        return denoise(x_t, t)

    _, noise = noise_of(0)
    thor_plus(counted, with_square(0.5), SCHEDULE, noise, residual, options=options)  # type: ignore[arg-type]
    assert calls == options.network_calls() <= 40


def test_an_image_equal_to_its_estimate_gives_zero() -> None:
    image = torch.full(SHAPE, 0.5)

    def knows(x_t: Tensor, t: int) -> Tensor:
        alpha_bar = float(SCHEDULE.alpha_bar[t])
        return (x_t - alpha_bar**0.5 * image) / (1 - alpha_bar) ** 0.5

    _, noise = noise_of(0)
    found = thor_plus(knows, image, SCHEDULE, noise, residual, options=ThorPlusOptions(steps=1, draws=1))  # type: ignore[arg-type]
    assert torch.isfinite(found.anomaly_map).all()
    assert float(found.anomaly_map.max()) < 1e-3
