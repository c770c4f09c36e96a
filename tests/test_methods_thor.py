"""THOR with closed-form denoisers: what it calls, in which order, with which noise, and what it restores."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from thorad.diffusion.network import Denoiser
from thorad.diffusion.noise import gaussian_noise, simplex_noise
from thorad.diffusion.schedule import Schedule, visited_timesteps
from thorad.maps.anomaly_map import AnomalyMap, guidance_mask, residual
from thorad.maps.perceptual import load_perceptual_distance
from thorad.methods import METHODS, Request
from thorad.methods.contract import Denoise, Noise, Restoration, Step
from thorad.methods.ddpm import DdpmOptions, ddpm
from thorad.methods.thor import THOR_GAUSSIAN, ThorOptions, thor

SCHEDULE = Schedule()
CPU = torch.device("cpu")
SIZE = 64
DEVIATION = 0.01
"""Of the healthy images around their mean: small, so that the best denoiser takes away nearly all else."""

# The paper's chains in all their steps, and in few.
CHAINS = [
    pytest.param(ThorOptions(), id="simplex"),
    pytest.param(ThorOptions(steps=5), id="simplex-5"),
    pytest.param(ThorOptions(steps=5, finish=True), id="simplex-5-finished"),
    pytest.param(THOR_GAUSSIAN, id="gaussian"),
    pytest.param(replace(THOR_GAUSSIAN, steps=7), id="gaussian-7"),
]


def healthy_mean() -> Tensor:
    """A smooth image, (1, 1, SIZE, SIZE) in [-0.5, 0.5]."""
    ramp = torch.linspace(-1, 1, SIZE)
    return 0.25 * (ramp[:, None] + torch.sin(3 * ramp)[None])[None, None]


def exact_denoiser(mean: Tensor) -> Denoise:
    """The best prediction of Gaussian noise where healthy images are N(mean, DEVIATION²), pixel by pixel."""

    def denoise(x_t: Tensor, t: int) -> Tensor:
        a = float(SCHEDULE.alpha_bar[t])
        return math.sqrt(1 - a) * (x_t - math.sqrt(a) * mean) / (a * DEVIATION**2 + 1 - a)

    return denoise


def deviation_of_the_estimate(t: int) -> float:
    """Standard deviation of the exact denoiser's clean estimate at t, for the image `mean` noised to t."""
    a = float(SCHEDULE.alpha_bar[t])
    return DEVIATION**2 * math.sqrt(a * (1 - a)) / (a * DEVIATION**2 + 1 - a)


def gaussian(shape: tuple[int, ...] = (1, 1, SIZE, SIZE), seed: int = 0) -> Noise:
    generator = torch.Generator().manual_seed(seed)
    return lambda: torch.randn(shape, generator=generator)


# What it restores


@pytest.mark.parametrize("options", CHAINS)
def test_a_healthy_image_is_left_unchanged(options: ThorOptions) -> None:
    mean = healthy_mean()
    restored = thor(exact_denoiser(mean), mean, SCHEDULE, gaussian(), residual, options=options)
    last = 0 if options.finish and options.steps is None else min(options.harmonise_at)
    tolerance = 6 * deviation_of_the_estimate(last)  # of 4096 pixels none is further away
    assert tolerance < 0.01
    assert float((restored.pseudo_healthy - mean).abs().max()) < tolerance
    assert float(restored.anomaly_map.max()) < tolerance / 2  # the map is on the [0, 1] scale


def planted(mean: Tensor, depth: float = 0.5) -> tuple[Tensor, Tensor, Tensor]:
    """`mean` with a dark disc, the disc, and all that is more than two windows of the guidance mask (7 px) away."""
    rows, columns = torch.meshgrid(torch.arange(SIZE), torch.arange(SIZE), indexing="ij")
    distance = torch.hypot(rows - 24.0, columns - 30.0)[None, None]
    disc, far = distance < 6, distance > 6 + 2 * 7
    return torch.where(disc, mean - depth, mean), disc, far


@pytest.mark.parametrize("options", CHAINS)
def test_a_planted_blob_is_restored_and_the_rest_is_left(options: ThorOptions) -> None:
    mean = healthy_mean()
    image, disc, far = planted(mean)
    restored = thor(exact_denoiser(mean), image, SCHEDULE, gaussian(), residual, options=options)
    tolerance = 6 * deviation_of_the_estimate(min(options.harmonise_at))
    inside = (restored.pseudo_healthy - mean).abs()[disc]
    assert float(inside.max()) < 0.05 * 0.5  # of the blob's depth 0.5, 95 % and more are gone
    assert float((restored.pseudo_healthy - image).abs()[far].max()) < tolerance
    assert float(restored.anomaly_map[disc].min()) > 0.2  # half the depth, on the [0, 1] scale, is 0.25
    assert float(restored.anomaly_map[~disc].max()) < tolerance


def test_the_real_map_peaks_in_the_blob() -> None:
    """With the map of the paper, |x - x_rec| * LPIPS, as the detector has it."""
    mean = healthy_mean()
    image, disc, far = planted(mean)
    compare = AnomalyMap(load_perceptual_distance())
    restored = thor(exact_denoiser(mean), image, SCHEDULE, gaussian(), compare, options=ThorOptions(steps=5))
    assert bool(disc.flatten()[restored.anomaly_map.argmax()])
    assert float(restored.anomaly_map[disc].mean()) > 100 * float(restored.anomaly_map[far].mean())
    assert float((restored.pseudo_healthy - mean).abs()[disc].max()) < 0.05
    healthy = thor(exact_denoiser(mean), mean, SCHEDULE, gaussian(), compare, options=ThorOptions(steps=5))
    assert float(healthy.anomaly_map.max()) < 1e-2 * float(restored.anomaly_map.max())


def test_healthy_detail_that_the_network_does_not_know_survives_harmonisation() -> None:
    """What THOR is for. The detail differs from the mean by a tenth of the blob, so the mask there is about a tenth:
    nine tenths of the detail come back. DDPM with the same denoiser loses all of it.
    """
    mean = healthy_mean()
    stripes = 0.05 * torch.where(torch.arange(SIZE) % 8 < 4, 1.0, -1.0)
    image, disc, far = planted(mean)
    image = torch.where(disc, image, image + stripes)
    denoise = exact_denoiser(mean)
    by_thor = thor(denoise, image, SCHEDULE, gaussian(), residual, options=ThorOptions(steps=5)).pseudo_healthy
    by_ddpm = ddpm(denoise, image, SCHEDULE, gaussian(), residual, options=DdpmOptions(250, 5)).pseudo_healthy
    lost_by_thor, lost_by_ddpm = ((image - restored).abs()[far].mean() / 0.05 for restored in (by_thor, by_ddpm))
    assert lost_by_ddpm > 0.95
    assert lost_by_thor < 0.15
    assert float((by_thor - mean).abs()[disc].max()) < 0.05


# What it calls


class Recorder:
    """A noise source, a denoiser and a map that keep all they are asked for and give, in order."""

    def __init__(self, shape: tuple[int, ...] = (2, 1, 16, 16)) -> None:
        self.image = 0.3 * torch.randn(shape, generator=torch.Generator().manual_seed(5))
        self.log: list[str] = []
        self.draws: list[Tensor] = []
        self.states: list[tuple[int, Tensor]] = []
        self.compared: list[tuple[Tensor, Tensor, Tensor]] = []
        self.steps: list[Step] = []
        self._draw = gaussian(shape, seed=6)
        self._maps = torch.Generator().manual_seed(7)

    def noise(self) -> Tensor:
        self.log.append("noise")
        self.draws.append(self._draw())
        return self.draws[-1]

    def predict(self, x_t: Tensor, t: int) -> Tensor:
        return torch.tanh(x_t + t / 1000)

    def denoise(self, x_t: Tensor, t: int) -> Tensor:
        self.log.append(str(t))
        self.states.append((t, x_t))
        return self.predict(x_t, t)

    def compare(self, image: Tensor, reconstruction: Tensor) -> Tensor:
        """Nothing but chance, so that a map can only come from here."""
        self.log.append("map")
        anomaly_map = torch.rand(image.shape, generator=self._maps)
        self.compared.append((image, reconstruction, anomaly_map))
        return anomaly_map

    def run(self, options: ThorOptions) -> Restoration:
        return thor(
            self.denoise, self.image, SCHEDULE, self.noise, self.compare, options=options, on_step=self.steps.append
        )


SHORT = ThorOptions(noise_level=6, harmonise_at=(4, 2))


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (SHORT, "noise 6 noise 5 noise 4 map noise 4 noise 3 noise 2 map"),
        (
            replace(SHORT, finish=True),
            "noise 6 noise 5 noise 4 map noise 4 noise 3 noise 2 map noise 2 noise 1 noise 0",
        ),
        (replace(SHORT, steps=2), "noise 6 noise 4 map noise 4 noise 3 noise 2 map"),
        (replace(SHORT, steps=1), "noise 6 noise 4 map noise 4 noise 2 map"),
        (replace(SHORT, steps=1, finish=True), "noise 6 noise 4 map noise 4 noise 2 map noise 2"),
        (replace(SHORT, harmonise_at=(6,)), "noise 6 map"),
        (replace(SHORT, harmonise_at=(2, 6), steps=1), "noise 6 map noise 6 noise 2 map"),
        (ThorOptions(2, (0,), finish=True), "noise 2 noise 1 noise 0 map noise 0"),
    ],
)
def test_what_is_called_by_hand(options: ThorOptions, expected: str) -> None:
    """A number is a call of the network at that timestep; at a harmonised one a second follows, on fresh noise.

    Nothing is computed that the result doesn't use: no call after the last map, no noise for the step to clean.
    """
    recorder = Recorder()
    recorder.run(options)
    assert " ".join(recorder.log) == expected
    assert len(recorder.states) == options.network_calls()


def test_every_state_is_made_with_the_noise_drawn_just_before_it() -> None:
    """So no draw is used twice, and the initial one never again (which the published code does).

    Re-noising is at t, from the harmonised estimate, and the way on is from there.
    """
    recorder = Recorder()
    recorder.run(replace(SHORT, finish=True))
    (_, x_6), (_, x_5), (_, x_4), (_, again_4), (_, x_3), (_, x_2), (_, again_2), (_, x_1), (_, x_0) = recorder.states
    draws, image = recorder.draws, recorder.image
    assert len(draws) == 9

    def clean(x_t: Tensor, t: int) -> Tensor:
        return SCHEDULE.predict_clean(x_t, recorder.predict(x_t, t), t)

    def harmonised(x_t: Tensor, t: int, anomaly_map: Tensor) -> Tensor:
        may_change = guidance_mask(anomaly_map)
        return (may_change * clean(x_t, t) + (1 - may_change) * image).clamp(-1, 1)

    def step(x_t: Tensor, t: int, draw: Tensor) -> Tensor:
        return SCHEDULE.step(x_t, clean(x_t, t), t, t - 1, draw)

    (_, rec_4, map_4), (_, rec_2, map_2) = recorder.compared
    assert torch.equal(rec_4, clean(x_4, 4))
    assert torch.equal(rec_2, clean(x_2, 2))
    expected = [
        (x_6, SCHEDULE.add_noise(image, draws[0], 6)),
        (x_5, step(x_6, 6, draws[1])),
        (x_4, step(x_5, 5, draws[2])),
        (again_4, SCHEDULE.add_noise(harmonised(x_4, 4, map_4), draws[3], 4)),
        (x_3, step(again_4, 4, draws[4])),
        (x_2, step(x_3, 3, draws[5])),
        (again_2, SCHEDULE.add_noise(harmonised(x_2, 2, map_2), draws[6], 2)),
        (x_1, step(again_2, 2, draws[7])),
        (x_0, step(x_1, 1, draws[8])),
    ]
    for number, (found, wanted) in enumerate(expected):
        torch.testing.assert_close(found, wanted, atol=1e-6, rtol=0, msg=f"state {number}")


def test_the_pseudo_healthy_image_is_the_harmonised_one_or_the_end_of_the_chain() -> None:
    recorder = Recorder()
    restored = recorder.run(SHORT)
    _, clean, anomaly_map = recorder.compared[-1]
    may_change = guidance_mask(anomaly_map)
    torch.testing.assert_close(restored.pseudo_healthy, may_change * clean + (1 - may_change) * recorder.image)

    recorder = Recorder()
    restored = recorder.run(replace(SHORT, finish=True))
    t, x_t = recorder.states[-1]
    assert torch.equal(restored.pseudo_healthy, SCHEDULE.predict_clean(x_t, recorder.predict(x_t, t), t))
    assert float(restored.pseudo_healthy.abs().max()) <= 1


@pytest.mark.parametrize("options", CHAINS)
def test_the_map_is_the_harmonic_mean_of_exactly_the_harmonised_maps(options: ThorOptions) -> None:
    recorder = Recorder()
    restored = recorder.run(options)
    assert len(recorder.compared) == len(options.harmonise_at)
    assert all(image is recorder.image for image, _, _ in recorder.compared)
    total = sum(1 / anomaly_map.double() for _, _, anomaly_map in recorder.compared)
    assert isinstance(total, Tensor)
    torch.testing.assert_close(restored.anomaly_map.double(), len(recorder.compared) / total, atol=0, rtol=1e-5)


@pytest.mark.parametrize("options", [SHORT, ThorOptions(), ThorOptions(steps=5), replace(THOR_GAUSSIAN, steps=7)])
def test_finishing_the_chain_does_not_change_the_map(options: ThorOptions) -> None:
    stopped, finished = Recorder().run(options), Recorder().run(replace(options, finish=True))
    assert torch.equal(stopped.anomaly_map, finished.anomaly_map)
    assert not torch.equal(stopped.pseudo_healthy, finished.pseudo_healthy)


@pytest.mark.parametrize("finish", [False, True])
@pytest.mark.parametrize("chain", [ThorOptions(), THOR_GAUSSIAN])
@pytest.mark.parametrize("steps", [None, 100, 7, 5, 1])
def test_network_calls_and_steps_are_the_counted_ones(chain: ThorOptions, steps: int | None, finish: bool) -> None:
    options = replace(chain, steps=steps, finish=finish)
    recorder = Recorder(shape=(1, 1, 4, 4))
    recorder.run(options)
    assert len(recorder.states) == options.network_calls()
    asked = [t for t, _ in recorder.states]
    assert asked == sorted(asked, reverse=True)
    last = min(options.harmonise_at)
    # A picture of every timestep once, the estimate before harmonisation, and its map where there is one.
    visited = [t for t in visited_timesteps(options.noise_level, steps, options.harmonise_at) if finish or t >= last]
    assert [step.t for step in recorder.steps] == visited == sorted(set(asked), reverse=True)
    with_map = [step for step in recorder.steps if step.anomaly_map is not None]
    assert [step.t for step in with_map] == list(options.harmonise_at)
    for step, (_, reconstruction, anomaly_map) in zip(with_map, recorder.compared, strict=True):
        assert step.clean is reconstruction
        assert step.anomaly_map is anomaly_map


def test_harmonising_above_the_noise_level_is_refused() -> None:
    options = ThorOptions(noise_level=100)
    with pytest.raises(ValueError, match="noise level"):
        options.network_calls()
    with pytest.raises(ValueError, match="noise level"):
        Recorder().run(options)


# One image, any batch


@pytest.mark.parametrize("draw", [gaussian_noise, simplex_noise])
def test_an_images_result_does_not_depend_on_its_batch(draw: Callable[..., Tensor]) -> None:
    """With a real (untrained) network, the real map, and one generator an image: alone, in a batch, in other order."""
    network = Denoiser((64, 64), (False, True), 1, 64, patch=2)
    for weight in network.parameters():
        weight.data = 0.05 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(weight.numel()))
    network.eval().requires_grad_(False)
    compare = AnomalyMap(load_perceptual_distance())
    images = 2 * torch.rand(3, 1, 32, 32, generator=torch.Generator().manual_seed(1)) - 1
    options = ThorOptions(steps=5, finish=True)

    def restore(which: list[int]) -> tuple[Tensor, Tensor]:
        generators = [torch.Generator().manual_seed(i) for i in which]
        restored = thor(
            lambda x_t, t: network(x_t, torch.full((len(x_t),), t), torch.zeros(len(x_t), dtype=torch.long)),
            images[which],
            SCHEDULE,
            lambda: draw(generators, 32, 32, CPU),
            compare,
            options=options,
        )
        return restored.anomaly_map, restored.pseudo_healthy

    anomaly_map, pseudo_healthy = restore([0, 1, 2])
    assert anomaly_map.amax(dim=(1, 2, 3)).min() > 1e-3
    turned = [maps.flip(0) for maps in restore([2, 1, 0])]
    alone = [torch.cat(maps) for maps in zip(*(restore([i]) for i in range(3)), strict=True)]
    for other_map, other_image in (turned, alone):
        torch.testing.assert_close(other_map, anomaly_map, atol=1e-5, rtol=0)
        torch.testing.assert_close(other_image, pseudo_healthy, atol=1e-5, rtol=0)


# The paper's values


def test_the_papers_values() -> None:
    """Bercea et al., MICCAI 2024 (arXiv:2403.08464), experiments: noise to T = 350 with harmonisation at 300, 150 and
    50 for Gaussian noise, to T = 250 with harmonisation at 200, 150, 100 and 50 for simplex noise, over every timestep.
    """
    simplex = ThorOptions()
    assert (simplex.noise_level, simplex.harmonise_at, simplex.steps) == (250, (200, 150, 100, 50), None)
    gaussian_options = THOR_GAUSSIAN
    assert (gaussian_options.noise_level, gaussian_options.harmonise_at) == (350, (300, 150, 50))
    assert gaussian_options.steps is None
    for noise, paper in {"simplex": simplex, "gaussian": THOR_GAUSSIAN}.items():
        assert METHODS["thor"].options(Request("thor", noise, None, None, False, 128, 0)) == paper
        assert METHODS["thor"].noise_levels[noise] == paper.noise_level
    assert METHODS["thor"].restore is thor
    assert METHODS["thor"].perceptual


@pytest.mark.parametrize(
    ("options", "calls"),
    [
        (ThorOptions(), 201 + 3),  # 250 ... 50, and again at 200, 150 and 100; 50 is the end
        (ThorOptions(finish=True), 251 + 4),
        (ThorOptions(steps=5), 5 + 3),
        (ThorOptions(steps=5, finish=True), 5 + 4),
        (ThorOptions(steps=25), 21 + 3),  # every tenth timestep down to 50
        (THOR_GAUSSIAN, 301 + 2),
        (replace(THOR_GAUSSIAN, finish=True), 351 + 3),
        (replace(THOR_GAUSSIAN, steps=7), 7 + 2),
    ],
)
def test_network_calls_by_hand(options: ThorOptions, calls: int) -> None:
    assert options.network_calls() == calls


# Ablations: options of the one function


def ablation(image: Tensor, options: ThorOptions) -> tuple[Restoration, list[Step], list[int]]:
    """Restored with the same noise each time, its steps and its calls."""
    steps: list[Step] = []
    calls: list[int] = []
    exact = exact_denoiser(healthy_mean())

    def denoise(x_t: Tensor, t: int) -> Tensor:
        calls.append(t)
        return exact(x_t, t)

    return thor(denoise, image, SCHEDULE, gaussian(), residual, options=options, on_step=steps.append), steps, calls


@pytest.mark.parametrize(
    ("harmonise", "expected"),
    [
        ("guided", [250, 200, 200, 150, 150, 100, 100, 50]),
        ("renoised", [250, 200, 200, 150, 150, 100, 100, 50]),
        ("none", [250, 200, 150, 100, 50]),
    ],
)
def test_calls_without_harmonisation(harmonise: str, expected: list[int]) -> None:
    options = ThorOptions(steps=1, harmonise=harmonise)  # type: ignore[arg-type]
    _, steps, calls = ablation(healthy_mean(), options)
    visited = visited_timesteps(250, 1, options.harmonise_at)
    assert calls == [t for t in expected if t in visited]
    assert len(calls) == options.network_calls()
    assert [step.t for step in steps if step.anomaly_map is not None] == [200, 150, 100, 50]


def test_without_harmonisation_nothing_of_the_image_comes_back() -> None:
    """Detail that the network doesn't know: a harmonised restoration keeps most of it, the two others lose it all."""
    mean = healthy_mean()
    stripes = 0.05 * torch.where(torch.arange(SIZE) % 8 < 4, 1.0, -1.0)
    image, _, far = planted(mean + stripes)
    lost = {}
    for harmonise in ("guided", "renoised", "none"):
        options = ThorOptions(steps=5, harmonise=harmonise)  # type: ignore[arg-type]
        restored, _, _ = ablation(image, options)
        lost[harmonise] = float((restored.pseudo_healthy - image).abs()[far].mean())
    assert lost["guided"] < 0.02
    assert lost["renoised"] == pytest.approx(0.05, abs=0.005)
    assert lost["none"] == pytest.approx(0.05, abs=0.005)


def test_the_final_map_is_the_mean_that_was_asked_for() -> None:
    image, _, _ = planted(healthy_mean())
    made = {}
    for mean in ("harmonic", "arithmetic", "last"):
        restored, steps, _ = ablation(image, ThorOptions(steps=5, mean=mean))  # type: ignore[arg-type]
        maps = torch.stack([step.anomaly_map for step in steps if step.anomaly_map is not None])
        made[mean] = (restored.anomaly_map, maps)
    found, maps = made["harmonic"]
    torch.testing.assert_close(found, 4 / (1 / maps).sum(dim=0))
    found, maps = made["arithmetic"]
    torch.testing.assert_close(found, maps.sum(dim=0) / 4)
    found, maps = made["last"]
    torch.testing.assert_close(found, maps[-1])


def test_without_lpips_the_map_is_the_residual() -> None:
    mean = healthy_mean()
    image, _, _ = planted(mean)

    def twice(a: Tensor, b: Tensor) -> Tensor:
        return 2 * residual(a, b)

    def run(options: ThorOptions) -> Tensor:
        return thor(exact_denoiser(mean), image, SCHEDULE, gaussian(), twice, options=options).anomaly_map

    alone, _, _ = ablation(image, ThorOptions(steps=2))
    assert torch.equal(run(ThorOptions(steps=2, perceptual=False)), alone.anomaly_map)
    assert float(run(ThorOptions(steps=2)).max()) > 1.9 * float(alone.anomaly_map.max())


def test_the_window_is_that_of_the_guidance() -> None:
    image, _, _ = planted(healthy_mean())
    default, _, _ = ablation(image, ThorOptions(steps=2))
    same, _, _ = ablation(image, ThorOptions(steps=2, window=7))  # 13 px at 128 px are 7 at 64
    wide, _, _ = ablation(image, ThorOptions(steps=2, window=31))
    assert torch.equal(default.pseudo_healthy, same.pseudo_healthy)
    assert not torch.equal(default.pseudo_healthy, wide.pseudo_healthy)
