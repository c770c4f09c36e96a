"""pDDPM against an implementation of its own in NumPy, and by what its network sees."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from thorad.diffusion.noise import simplex_noise
from thorad.diffusion.schedule import Schedule
from thorad.maps.anomaly_map import residual
from thorad.methods.contract import Step
from thorad.methods.pddpm import PddpmOptions, pddpm

SCHEDULE = Schedule()
SIZE = 16
GRIDS = [
    pytest.param(PddpmOptions(size=16, patch=8), id="2x2"),
    pytest.param(PddpmOptions(size=16, patch=8, stride=3), id="overlapping"),
    pytest.param(PddpmOptions(noise_level=100, size=16, patch=16), id="whole"),
]


class Source:
    """A denoiser that looks at the whole image, and noise, with a record of both."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.shape = shape
        self.generator = torch.Generator().manual_seed(0)
        self.draws: list[Tensor] = []
        self.seen: list[tuple[Tensor, int]] = []

    def noise(self) -> Tensor:
        self.draws.append(torch.randn(self.shape, generator=self.generator, dtype=torch.float64))
        return self.draws[-1]

    def denoise(self, x_t: Tensor, t: int) -> Tensor:
        """No neighbourhood is the same for two cells, and some estimates lie outside [-1, 1]."""
        self.seen.append((x_t.clone(), t))
        return 1.5 * torch.tanh(x_t + x_t.roll((3, 5), (2, 3)) + x_t.mean((1, 2, 3), keepdim=True))


def an_image(batch: int = 1) -> Tensor:
    return torch.rand(batch, 1, SIZE, SIZE, generator=torch.Generator().manual_seed(1), dtype=torch.float64) * 2 - 1


@pytest.mark.parametrize("options", GRIDS)
def test_equals_numpy(options: PddpmOptions) -> None:
    image = an_image()
    source = Source(image.shape)
    restored = pddpm(source.denoise, image, SCHEDULE, source.noise, residual, options=options)

    power = np.cumprod(1 - np.linspace(1e-4, 2e-2, 1000))[options.noise_level]
    x, draws = image[0, 0].numpy(), iter(source.draws)
    begins = {None: [0, 8] if options.patch == 8 else [0], 3: [0, 3, 5, 8]}[options.stride]
    total, times = np.zeros((SIZE, SIZE)), np.zeros((SIZE, SIZE))
    for row in begins:
        for column in begins:
            inside = np.zeros((SIZE, SIZE))
            inside[row : row + options.patch, column : column + options.patch] = 1
            noise = next(draws)[0, 0].numpy()
            x_t = inside * (np.sqrt(power) * x + np.sqrt(1 - power) * noise) + (1 - inside) * x
            estimate = 1.5 * np.tanh(x_t + np.roll(np.roll(x_t, 3, 0), 5, 1) + x_t.mean())
            total += inside * np.clip(estimate, -1, 1)
            times += inside
    assert next(draws, None) is None
    np.testing.assert_allclose(restored.pseudo_healthy[0, 0], total / times, atol=1e-9)
    np.testing.assert_allclose(restored.anomaly_map[0, 0], np.abs(x - total / times) / 2, atol=1e-9)


def test_the_network_sees_one_noised_cell_in_the_clean_image() -> None:
    image = an_image(2)
    source = Source(image.shape)
    before = image.clone()
    steps: list[Step] = []
    options = PddpmOptions(size=16, patch=8)
    restored = pddpm(source.denoise, image, SCHEDULE, source.noise, residual, options=options, on_step=steps.append)
    assert torch.equal(image, before)
    cells = [(slice(r, r + 8), slice(c, c + 8)) for r in (0, 8) for c in (0, 8)]
    for (rows, columns), (x_t, t), draw in zip(cells, source.seen, source.draws, strict=True):
        assert t == 500
        inside = torch.zeros(SIZE, SIZE, dtype=torch.bool)
        inside[rows, columns] = True
        assert torch.equal(x_t[..., ~inside], image[..., ~inside])
        assert torch.equal(x_t[..., inside], SCHEDULE.add_noise(image, draw, 500)[..., inside])
    assert [(step.t, step.anomaly_map) for step in steps] == [(500, None)]
    assert torch.equal(steps[0].clean, restored.pseudo_healthy)


def test_a_cell_restored_from_its_surroundings_loses_the_lesion_and_keeps_the_rest() -> None:
    """A denoiser that knows healthy images to be ramps and reads the ramp's height off the clean pixels: exact."""
    ramp = torch.linspace(-0.5, 0.5, SIZE, dtype=torch.float64).expand(1, 1, SIZE, SIZE)
    heights = torch.tensor([0.0, 0.3], dtype=torch.float64).reshape(2, 1, 1, 1)
    image = ramp + heights
    lesion = image.clone()
    lesion[..., 2:5, 2:5] -= 0.4
    source = Source(image.shape)

    def denoise(x_t: Tensor, t: int) -> Tensor:
        return ramp + (x_t - ramp).flatten(1).median(1).values.reshape(2, 1, 1, 1)

    restored = pddpm(denoise, lesion, SCHEDULE, source.noise, residual, options=PddpmOptions(size=16, patch=8))
    torch.testing.assert_close(restored.pseudo_healthy, image, atol=0.05, rtol=0)
    assert float(restored.anomaly_map[..., 2:5, 2:5].min()) > 0.17
    assert float(restored.anomaly_map[..., 6:, 6:].max()) < 0.03


@pytest.mark.parametrize(
    ("options", "places", "calls"),
    [
        (PddpmOptions(), [0, 64], 4),
        (PddpmOptions(stride=32), [0, 32, 64], 9),
        (PddpmOptions(stride=63), [0, 32, 64], 9),  # spread evenly
        (PddpmOptions(stride=16), [0, 16, 32, 48, 64], 25),
        (PddpmOptions(patch=32), [0, 32, 64, 96], 16),
        (PddpmOptions(patch=128), [0], 1),
        (PddpmOptions(size=96, patch=48), [0, 48], 4),  # the paper's
        (PddpmOptions(size=100, patch=48), [0, 26, 52], 9),
    ],
)
def test_cells_by_hand(options: PddpmOptions, places: list[int], calls: int) -> None:
    assert options.places() == places
    assert options.network_calls() == calls


@pytest.mark.parametrize("options", GRIDS)
def test_calls_as_many_as_it_says(options: PddpmOptions) -> None:
    source = Source((1, 1, SIZE, SIZE))
    pddpm(source.denoise, an_image(), SCHEDULE, source.noise, residual, options=options)
    assert len(source.seen) == options.network_calls()


def test_one_image_is_the_same_alone_and_in_a_batch() -> None:
    images = an_image(3).float()
    options = PddpmOptions(size=16, patch=8, stride=4)

    def restore(names: list[str], x: Tensor) -> tuple[Tensor, Tensor]:
        generators = [torch.Generator().manual_seed(ord(name)) for name in names]

        def noise() -> Tensor:
            return simplex_noise(generators, SIZE, SIZE, torch.device("cpu"))

        restored = pddpm(lambda x_t, t: torch.tanh(x_t), x, SCHEDULE, noise, residual, options=options)
        return restored.anomaly_map, restored.pseudo_healthy

    together = restore(["a", "b", "c"], images)
    for i, name in enumerate("abc"):
        for alone, of_batch in zip(restore([name], images[i : i + 1]), together, strict=True):
            assert torch.equal(alone, of_batch[i : i + 1])


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"patch": 0}, "patch is 0 px, expected 1"),
        ({"patch": 129}, r"expected 1 \.\.\. 128"),
        ({"stride": 65}, r"stride is 65 px, expected 1 \.\.\. 64"),
        ({"stride": 0}, "stride is 0 px"),
    ],
)
def test_cells_that_do_not_cover_the_image_are_refused(wrong: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PddpmOptions(**wrong)


def test_an_image_of_another_size_is_refused() -> None:
    source = Source((1, 1, SIZE, SIZE))
    with pytest.raises(ValueError, match=r"\(16, 16\) px, the options are for a side of 128"):
        pddpm(source.denoise, an_image(), SCHEDULE, source.noise, residual, options=PddpmOptions())
