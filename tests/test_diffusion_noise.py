"""The noise against the published generator (the `opensimplex` package, as AnoDDPM and THOR use it) and by itself."""

from __future__ import annotations

import time
from collections.abc import Callable
from itertools import pairwise

import numpy as np
import opensimplex
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from thorad.diffusion import NOISES, noise
from thorad.diffusion.noise import case_generator, gaussian_noise, simplex_noise
from thorad.recipe import ImageSection, Recipe, parse_recipe

CPU = torch.device("cpu")
SIZE = 128
Array = NDArray[np.float64]

# `radial_spectrum` of 300 maps made with opensimplex 0.4.5.1, too slow to make here: for each map a new random seed and
# z in 0 ... 1000 px, sum of 0.8**i * noise3array(px / w, px / w, [z / w]) with w = 64 / 2**i, i < 6, px = 0 ... 127.
PUBLISHED_RADIAL_SPECTRUM = np.array([0.08828, 0.07069, 0.03466, 0.02000, 0.01175, 0.00453])
# Three standard errors of 120 of our maps, 2 % for the lattice, and in the lowest ring 15 %: our longest waves, which
# one map hardly holds, are that much stronger.
RADIAL_TOLERANCE = np.array([0.35, 0.14, 0.07, 0.05, 0.04, 0.04])


def generators(count: int, seed: int = 0) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(1000 * seed + i) for i in range(count)]


@pytest.fixture(scope="module")
def maps() -> Array:
    """120 maps of simplex noise, (120, SIZE, SIZE)."""
    return simplex_noise(generators(120), SIZE, SIZE, CPU)[:, 0].double().numpy()


def published_noise(lines: int) -> Array:
    """Rows of SIZE px of the published noise, each from a lattice and a place of its own, (lines, SIZE).

    AnoDDPM (github.com/Julian-Wyatt/AnoDDPM, simplex.py): 6 octaves of 3-D OpenSimplex, persistence 0.8, wavelength 64.
    The package takes 16 microseconds a pixel and octave; rows hold more independent places than whole maps.
    """
    rng = np.random.default_rng(0)
    rows = []
    for _ in range(lines):
        lattice = opensimplex.OpenSimplex(int(rng.integers(2**31)))
        x, y, z = rng.random(3) * 1000
        octaves = (
            0.8**i * lattice.noise3array((x + np.arange(SIZE)) / w, np.array([y / w]), np.array([z / w]))[0, 0]
            for i, w in enumerate((64, 32, 16, 8, 4, 2))
        )
        rows.append(sum(octaves))
    return np.array(rows)


def rms(values: Array) -> float:
    return float(np.sqrt(np.mean(values**2)))


def kurtosis(values: Array) -> float:
    return float(np.mean(values**4) / np.mean(values**2) ** 2)


def band_sums(power: Array, frequency: Array, edges: list[int]) -> Array:
    """Sums of a spectrum (N, ...) over bands of frequency (...), mean over N."""
    mean = power.mean(axis=0)
    bands = pairwise(edges)
    return np.array([mean[(frequency >= low) & (frequency < high)].sum() for low, high in bands])


def row_spectrum(rows: Array) -> Array:
    """Power in octaves of cycles a row: 1-2, 2-4 ... 32-64; rows are (N, SIZE)."""
    power = np.abs(np.fft.rfft(rows * np.hanning(SIZE), axis=-1)) ** 2
    return band_sums(power, np.fft.rfftfreq(SIZE, 1 / SIZE), [1, 2, 4, 8, 16, 32, 65])


def radial_spectrum(maps: Array) -> Array:
    """Power in rings of cycles in SIZE px: 1-2, 2-4 ... 16-32, 32 up to the corners; maps are (N, SIZE, SIZE)."""
    window = np.outer(np.hanning(SIZE), np.hanning(SIZE))
    window /= np.sqrt(np.mean(window**2))
    power = np.abs(np.fft.fft2(maps * window)) ** 2 / SIZE**4
    frequency = np.fft.fftfreq(SIZE, 1 / SIZE)
    return band_sums(power, np.hypot(frequency[:, None], frequency), [1, 2, 4, 8, 16, 32, 91])


# Simplex noise: the published statistics


def test_moments_are_the_published_ones(maps: Array) -> None:
    assert rms(maps) == pytest.approx(0.507, rel=0.03)  # the design's figure for the published generator
    assert abs(maps.mean()) < 0.04  # 120 maps whose own means spread by 0.13: three standard errors


def test_values_are_distributed_as_the_package_has_them(maps: Array) -> None:
    theirs = published_noise(120)
    assert rms(maps) == pytest.approx(rms(theirs), rel=0.08)  # three standard errors of theirs
    assert kurtosis(maps) == pytest.approx(kurtosis(theirs), rel=0.1)  # 2.8: flatter than a normal distribution's 3
    ours, theirs_by_band = row_spectrum(maps.reshape(-1, SIZE)), row_spectrum(theirs)
    # Three standard errors of 120 of their rows, more rows for shorter waves.
    tolerance = np.array([0.25, 0.2, 0.16, 0.12, 0.08, 0.07])
    assert (np.abs(ours / theirs_by_band - 1) < tolerance).all(), ours / theirs_by_band


def test_the_radial_spectrum_is_the_published_one(maps: Array) -> None:
    ratio = radial_spectrum(maps) / PUBLISHED_RADIAL_SPECTRUM
    assert (np.abs(ratio - 1) < RADIAL_TOLERANCE).all(), ratio


def test_rows_and_columns_are_alike(maps: Array) -> None:
    rows = row_spectrum(maps.reshape(-1, SIZE))
    columns = row_spectrum(maps.transpose(0, 2, 1).reshape(-1, SIZE))
    np.testing.assert_allclose(rows[:2], columns[:2], rtol=0.2)  # few long waves fit in a map
    np.testing.assert_allclose(rows[2:], columns[2:], rtol=0.05)


# Simplex noise: nothing that a network could learn by place


def test_every_place_of_a_map_is_alike(maps: Array) -> None:
    by_quarter = (maps**2).reshape(-1, 2, SIZE // 2, 2, SIZE // 2).mean(axis=(0, 2, 4))
    np.testing.assert_allclose(by_quarter, 0.507**2, rtol=0.2)
    for axis in (1, 2):  # a seam would be one row or column over which the noise jumps more than over all others
        jumps = (np.diff(maps, axis=axis) ** 2).mean(axis=(0, 3 - axis))
        np.testing.assert_allclose(jumps, jumps.mean(), rtol=0.12)


@pytest.mark.parametrize("size", [64, 256])
def test_waves_scale_with_the_image(size: int) -> None:
    """A recipe's noise is one picture at any size; at 128 px it is the published one."""

    def drawn(side: int) -> Tensor:
        recipe = Recipe(name="any", image=ImageSection(size=side))
        return recipe.draw_noise("simplex")(generators(2), side, side, CPU)

    small, large = sorted((drawn(128), drawn(size)), key=lambda maps: maps.shape[-1])
    torch.testing.assert_close(large[..., ::2, ::2], small, rtol=0, atol=1e-5)
    torch.testing.assert_close(drawn(128), simplex_noise(generators(2), 128, 128, CPU), rtol=0, atol=0)


def test_an_earlier_models_waves_stay_as_it_was_trained() -> None:
    """Its recipe says nothing of waves, which were 64 px at any size; a recipe that a user writes means the default."""
    text = Recipe(name="earlier", image=ImageSection(size=64)).to_toml().replace("simplex_wavelength = 0.5\n", "")
    earlier = parse_recipe(text, "model", written_out=True)
    torch.testing.assert_close(
        earlier.draw_noise("simplex")(generators(2), 64, 64, CPU),
        simplex_noise(generators(2), 64, 64, CPU),
        rtol=0,
        atol=0,
    )
    assert parse_recipe(text, "recipe").noise.simplex_wavelength == 0.5


def test_nothing_repeats() -> None:
    """Of one large map without its long waves, no shifted copy is like the map itself."""
    size = 512
    large = simplex_noise(generators(1, seed=3), size, size, CPU)[0, 0].double().numpy()
    spectrum = np.fft.fft2(large * np.outer(np.hanning(size), np.hanning(size)))
    frequency = np.fft.fftfreq(size, 1 / size)
    spectrum[np.hypot(frequency[:, None], frequency) < size / 32] = 0  # waves of 32 px and more
    correlation = np.fft.ifft2(np.abs(spectrum) ** 2).real
    correlation /= correlation[0, 0]
    shift = np.hypot(frequency[:, None], frequency)  # px: the axes are as long as those of the spectrum
    assert np.abs(correlation[shift > 48]).max() < 0.12  # chance gives 0.08, a repeated map 0.5 and more


def test_the_noise_is_continuous(monkeypatch: pytest.MonkeyPatch) -> None:
    """One octave of 200 px waves over some six cells of the lattice: no jump where two of its simplices meet."""
    monkeypatch.setattr(noise, "OCTAVES", 1)
    wave = simplex_noise(generators(2), 600, 600, CPU, wavelength=200.0)
    assert wave.std() > 0.2
    for axis in (2, 3):
        assert wave.diff(dim=axis).abs().max() < 0.02  # the steepest slope is 0.015 a px; a wrong corner jumps by 0.1


# All noise


@pytest.mark.parametrize("draw", NOISES.values(), ids=NOISES)
def test_every_image_of_a_batch_has_noise_of_its_own(draw: Callable[..., Tensor]) -> None:
    batch = draw(generators(6), 64, 64, CPU).flatten(1)
    others = torch.corrcoef(batch) - torch.eye(6)
    assert others.abs().max() < 0.7  # maps of few long waves are somewhat alike by chance
    assert others.abs().mean() < 0.3


@pytest.mark.parametrize("draw", NOISES.values(), ids=NOISES)
def test_an_images_noise_is_the_same_alone_and_in_any_batch(draw: Callable[..., Tensor]) -> None:
    batch = draw(generators(4), 40, 56, CPU)
    assert (batch.shape, batch.dtype) == ((4, 1, 40, 56), torch.float32)
    for i in range(4):
        assert torch.equal(draw([generators(4)[i]], 40, 56, CPU), batch[i : i + 1])
    assert torch.equal(draw(generators(4)[::-1], 40, 56, CPU), batch.flip(0))


@pytest.mark.parametrize("draw", NOISES.values(), ids=NOISES)
def test_a_generator_goes_on_to_other_noise_and_no_other_generator_is_touched(draw: Callable[..., Tensor]) -> None:
    before = torch.get_rng_state()
    case = generators(1)
    first, second = draw(case, 64, 64, CPU), draw(case, 64, 64, CPU)
    assert not torch.equal(first, second)
    again = generators(1)
    assert torch.equal(draw(again, 64, 64, CPU), first)
    assert torch.equal(draw(again, 64, 64, CPU), second)
    assert torch.equal(torch.get_rng_state(), before)


def test_an_accelerators_way_to_draw_a_batch_gives_the_same_maps(monkeypatch: pytest.MonkeyPatch) -> None:
    """All maps at once there, one by one on a CPU; here both on the CPU."""
    calls = []

    def recorded(*arguments: object) -> Tensor:
        calls.append(arguments)
        return fractal_slices(*arguments)

    fractal_slices = noise._fractal_slices
    monkeypatch.setattr(noise, "_fractal_slices", recorded)
    maps = simplex_noise(generators(3), 40, 56, CPU)
    seeds, depths = ([value for call in calls for value in call[i]] for i in (0, 1))
    assert len(seeds) == len(depths) == 3
    assert torch.equal(fractal_slices(seeds, depths, 40, 56, CPU, 64.0)[:, None], maps)


def test_simplex_waves_are_measured_in_pixels() -> None:
    """A smaller map is the corner of a larger one: the waves do not stretch with the image."""
    assert torch.equal(
        simplex_noise(generators(1), 48, 40, CPU), simplex_noise(generators(1), SIZE, SIZE, CPU)[..., :48, :40]
    )


def test_gaussian_moments() -> None:
    values = gaussian_noise(generators(64), SIZE, SIZE, CPU)
    count = values.numel()
    # Four standard errors of each.
    assert float(values.mean()) == pytest.approx(0, abs=4 * (1 / count) ** 0.5)
    assert float(values.var()) == pytest.approx(1, abs=4 * (2 / count) ** 0.5)
    assert float((values**4).mean()) == pytest.approx(3, abs=4 * (96 / count) ** 0.5)
    for neighbour in (values.roll(1, 2), values.roll(1, 3), values.roll(1, 0)):
        assert float((values * neighbour).mean()) == pytest.approx(0, abs=4 * (1 / count) ** 0.5)


def first_number(seed: int, content: Tensor) -> float:
    return float(torch.rand((), generator=case_generator(seed, content)))


def test_a_cases_generator_depends_on_the_seed_and_the_content_only() -> None:
    pictures = torch.rand(4, 1, 40, 40, generator=torch.Generator().manual_seed(0))
    alone = first_number(0, pictures[0])
    torch.manual_seed(1)
    torch.rand(10)
    assert first_number(0, pictures[0].clone()) == alone
    others = [*pictures, pictures[0].flip(1), pictures[0].flip(2), pictures[0].mT, torch.zeros(1, 40, 40)]
    assert len({first_number(seed, picture) for seed in (0, 1, -1, 2**70) for picture in others}) == 4 * len(others)


def test_a_cases_generator_forgives_a_floats_last_digits_only() -> None:
    """What rounds elsewhere on another processor; one grey value of 256 over a block is another picture."""
    generator = torch.Generator().manual_seed(0)
    pictures = torch.rand(50, 1, 128, 128, generator=generator)
    shaken = pictures + 1e-7 * (2 * torch.rand(pictures.shape, generator=generator) - 1)
    assert (shaken != pictures).float().mean() > 0.5
    same = [first_number(0, one) == first_number(0, other) for one, other in zip(pictures, shaken, strict=True)]
    assert all(same)
    pictures[:, :, 16:32, 48:64] += 1.01 / 256
    assert not any(first_number(0, one) == first_number(0, other) for one, other in zip(pictures, shaken, strict=True))


def test_a_map_is_drawn_in_no_time() -> None:
    """A training step of the smallest network takes some 0.15 s an image on one core."""
    seconds = []
    for _ in range(5):
        start = time.perf_counter()
        simplex_noise(generators(1), SIZE, SIZE, CPU)
        seconds.append(time.perf_counter() - start)
    assert min(seconds) < 0.15
