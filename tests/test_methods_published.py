"""The preset `published`: its accidents one by one; tests/test_published_checkpoint.py compares whole runs."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import ndimage
from torch import Tensor

from thorad.diffusion.schedule import Schedule
from thorad.maps.anomaly_map import residual
from thorad.methods.contract import Step
from thorad.methods.published import (
    HIGHEST,
    PUBLISHED_THOR_GAUSSIAN,
    PublishedDdpmOptions,
    PublishedMap,
    PublishedSchedule,
    PublishedThorOptions,
    published_ddpm,
    published_harmonise,
    published_thor,
)

SCHEDULE = Schedule()
CHAIN = PublishedSchedule(SCHEDULE)


def picture(seed: int = 0, batch: int = 1) -> Tensor:
    """(B, 1, 24, 24) in [-1, 1]."""
    return torch.rand(batch, 1, 24, 24, generator=torch.Generator().manual_seed(seed)) * 2 - 1


class Noise:
    """Gaussian noise that remembers what it gave."""

    def __init__(self, batch: int = 1) -> None:
        self.generator = torch.Generator().manual_seed(7)
        self.batch = batch
        self.given: list[Tensor] = []

    def __call__(self) -> Tensor:
        self.given.append(torch.randn(self.batch, 1, 24, 24, generator=self.generator))
        return self.given[-1]


def test_the_papers_values_and_their_calls() -> None:
    assert PublishedThorOptions() == PublishedThorOptions(250, (200, 150, 100, 50), 50)
    assert PublishedThorOptions(350, (300, 150, 50), 50) == PUBLISHED_THOR_GAUSSIAN
    assert PUBLISHED_THOR_GAUSSIAN.network_calls() == 351  # as the published code's cost was measured
    assert PublishedDdpmOptions().network_calls() == 351


@pytest.mark.parametrize("harmonise_at", [(0,), (251,), (100, -1)])
def test_steps_that_would_never_be_harmonised_are_refused(harmonise_at: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"must lie in 1 \.\.\. 250"):
        PublishedThorOptions(harmonise_at=harmonise_at)
    with pytest.raises(ValueError, match="map_every"):
        replace(PublishedThorOptions(), map_every=0)


# ---- the map


def test_the_map_by_hand() -> None:
    """|x - x_rec| on [0, 1], times the blurred distance within [0, 1], over its own maximum + 1e-8."""
    image, clean = picture(0), picture(1)
    seen = []

    def distance(a: Tensor, b: Tensor) -> Tensor:
        seen.append((a, b))
        return 1.5 * (a - b).abs() / 4  # above 1 in places

    found = PublishedMap(distance)(image, clean)
    torch.testing.assert_close(seen[0][0], 4 * ((image + 1) / 2) - 3)  # [-1, 1] stretched once more: [-3, 1]
    assert float(torch.cat(seen[0]).min()) < -2.9
    a, b = (image.numpy() + 1) / 2, (clean.numpy() + 1) / 2
    blurred = ndimage.gaussian_filter(1.5 * np.abs(a - b), sigma=2)  # over all four axes, as published
    expected = np.abs(a - b) * blurred.clip(0, 1)
    np.testing.assert_allclose(found, expected / (expected.max() + 1e-8), atol=1e-6)


def test_the_distance_is_cut_at_one() -> None:
    image, clean = torch.full((1, 1, 8, 8), -1.0), torch.full((1, 1, 8, 8), -1.0)
    clean[..., :4], clean[..., 4:] = 1.0, 0.0
    cut = PublishedMap(lambda a, b: torch.full_like(a, 3.0))(image, clean)
    torch.testing.assert_close(cut[0, 0, 0], torch.tensor([1.0] * 4 + [0.5] * 4))


def test_every_map_peaks_at_one_whatever_its_batch_and_an_unchanged_image_gives_zero() -> None:
    image, clean = picture(0, batch=3), picture(1, batch=3)
    clean[1] = image[1] + 0.01 * (clean[1] - image[1])
    clean[2] = image[2]
    together = PublishedMap(lambda a, b: (a - b).abs())(image, clean)
    torch.testing.assert_close(together.amax((1, 2, 3)), torch.tensor([1.0, 1.0, 0.0]), rtol=0, atol=1e-3)
    for i in range(3):
        alone = PublishedMap(lambda a, b: (a - b).abs())(image[i : i + 1], clean[i : i + 1])
        torch.testing.assert_close(together[i : i + 1], alone)


# ---- harmonisation


def test_harmonisation_by_hand() -> None:
    image, clean = picture(0), picture(1)
    anomaly_map = (picture(2) + 1) / 2
    square = anomaly_map.numpy()
    dilated = ndimage.grey_dilation(ndimage.grey_closing(square, size=(1, 1, 13, 13)), size=(1, 1, 13, 13))
    region = (dilated + square) / 2
    expected = (region * clean.numpy() + (1 - region) * image.numpy()).clip(0, 1)
    np.testing.assert_allclose(published_harmonise(image, clean, anomaly_map), expected, atol=1e-6)


def test_the_background_turns_mid_grey() -> None:
    black = torch.full((1, 1, 24, 24), -1.0)
    assert float(published_harmonise(black, black, torch.zeros_like(black)).abs().max()) == 0.0  # 0 of [-1, 1]


# ---- the step


@pytest.mark.parametrize("t", [1, 20, 250, 999])
def test_a_step_is_the_ancestral_one_up_to_float32(t: int) -> None:
    """The independent form: DDIM equation 12 with eta = 1, in float64."""
    x_t, clean, noise = picture(0), picture(1), Noise()
    found = CHAIN.previous(x_t, clean, t, noise)
    assert len(noise.given) == 1
    exact = SCHEDULE.step(x_t.double(), clean.double(), t, t - 1, noise.given[0].double())
    torch.testing.assert_close(found.double(), exact, rtol=0, atol=3e-4 if t == 1 else 2e-5)


def test_the_last_step_draws_no_noise_and_loses_a_six_thousandth() -> None:
    """0.9998341: float32(1e-4) / (1 - float32(0.9999)), which pictures of the published code end at (0.99991703)."""
    noise, clean = Noise(), picture(1)
    last = CHAIN.previous(picture(0), clean, 0, noise)
    assert not noise.given
    factor = float(np.float32(1e-4) / (np.float32(1) - np.float32(0.9999)))
    assert (factor + 1) / 2 == pytest.approx(0.99991703, abs=1e-8)
    torch.testing.assert_close(last, clean * factor)


# ---- the loops


def test_thor_maps_the_fiftieth_steps_too_and_noises_with_the_first_noise() -> None:
    options = PublishedThorOptions(noise_level=12, harmonise_at=(8, 3), map_every=5)
    image, noise = picture(0), Noise()
    visited: list[tuple[int, Tensor]] = []
    steps: list[Step] = []

    def denoise(x_t: Tensor, t: int) -> Tensor:
        visited.append((t, x_t))
        return 0.5 * x_t

    compare = PublishedMap(lambda a, b: (a - b).abs())
    found = published_thor(denoise, image, SCHEDULE, noise, compare, options=options, on_step=steps.append)
    assert [t for t, _ in visited] == list(range(12, -1, -1))
    assert len(noise.given) == 13  # the first, then one for each of 12 ... 1
    assert [step.t for step in steps if step.anomaly_map is not None] == [10, 8, 5, 3, 0]
    for step, (t, x_next) in zip(steps, visited[1:], strict=False):
        if step.t in options.harmonise_at:
            assert step.anomaly_map is not None
            harmonised = published_harmonise(image, step.clean, step.anomaly_map)
            assert t == step.t - 1  # told t - 1, noised to t, with the first noise
            torch.testing.assert_close(x_next, CHAIN.add_noise(harmonised, noise.given[0], step.t))
    maps = torch.stack([step.anomaly_map for step in steps if step.anomaly_map is not None])
    expected = (5 / (1 / maps).sum(0)).clamp(0, 0.999)
    torch.testing.assert_close(found.anomaly_map, expected)
    torch.testing.assert_close(found.pseudo_healthy, steps[-1].clean * 0.9998341)


def test_the_final_map_is_cut_below_one() -> None:
    ones = lambda image, clean: torch.ones_like(image)  # noqa: E731
    options = PublishedThorOptions(noise_level=2, harmonise_at=(1,))
    found = published_thor(lambda x_t, t: x_t, picture(), SCHEDULE, Noise(), ones, options=options)
    assert float(found.anomaly_map.min()) == float(found.anomaly_map.max()) == pytest.approx(HIGHEST)


def test_ddpm_of_an_exact_denoiser_restores_the_mean() -> None:
    """Healthy images are N(mean, 0.01²): the best noise prediction is known, and takes away what doesn't belong."""
    mean = 0.5 * picture(3)
    image = mean.clone()
    image[..., 8:12, 8:12] += 0.4

    def denoise(x_t: Tensor, t: int) -> Tensor:
        a = float(SCHEDULE.alpha_bar[t])
        return math.sqrt(1 - a) * (x_t - math.sqrt(a) * mean) / (a * 0.01**2 + 1 - a)

    options = PublishedDdpmOptions(noise_level=120)
    steps: list[Step] = []
    found = published_ddpm(denoise, image, SCHEDULE, Noise(), residual, options=options, on_step=steps.append)
    assert len(steps) == options.network_calls() == 121
    assert float((found.pseudo_healthy - mean).abs().max()) < 0.06
    torch.testing.assert_close(found.anomaly_map, (image - found.pseudo_healthy).abs() / 2)
    assert float(found.anomaly_map[..., 8:12, 8:12].min()) > 0.15


def test_an_image_gets_the_same_in_any_batch() -> None:
    image = picture(0, batch=2)
    options = PublishedThorOptions(noise_level=6, harmonise_at=(4, 2), map_every=3)
    compare = PublishedMap(lambda a, b: (a - b).abs())
    drawn = [torch.randn(2, 1, 24, 24, generator=torch.Generator().manual_seed(i)) for i in range(7)]

    def restored(part: slice) -> Tensor:
        noises = iter(drawn)
        return published_thor(
            lambda x_t, t: 0.5 * x_t, image[part], SCHEDULE, lambda: next(noises)[part], compare, options=options
        ).anomaly_map

    torch.testing.assert_close(restored(slice(2))[1:], restored(slice(1, 2)))
