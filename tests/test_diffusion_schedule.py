"""The schedule against MONAI's schedulers, closed forms and hand-computed values."""

from __future__ import annotations

import itertools
import math
from fractions import Fraction

import pytest
import torch
from monai.networks.schedulers import DDIMScheduler, DDPMScheduler, NoiseSchedules
from torch import Tensor

from thorad.diffusion.schedule import CLEAN, Schedule, visited_timesteps

TOLERANCE = 1e-6
SHAPE = (3, 1, 16, 16)


@NoiseSchedules.add_def("linear_beta_float64", "DDPM's betas in double precision")
def linear_beta_float64(num_train_timesteps: int) -> Tensor:
    """MONAI's own table is float32: near t = 0 its 1 - alpha_bar is wrong in the fourth digit, so that a step differs
    by up to 3e-4. With this one, what differs is the formulas.
    """
    return torch.linspace(1e-4, 2e-2, num_train_timesteps, dtype=torch.float64)


def images(seed: int) -> Tensor:
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def monai(scheduler: type[DDPMScheduler] | type[DDIMScheduler], *, clip: bool) -> DDPMScheduler | DDIMScheduler:
    return scheduler(num_train_timesteps=1000, schedule="linear_beta_float64", clip_sample=clip)


def assert_near(ours: Tensor, theirs: Tensor) -> None:
    assert ours.dtype == theirs.dtype
    torch.testing.assert_close(ours, theirs, atol=TOLERANCE, rtol=0)


# MONAI's schedulers


def test_alpha_bar_equals_monais_own_table() -> None:
    theirs = DDPMScheduler(num_train_timesteps=1000, schedule="linear_beta").alphas_cumprod
    assert_near(Schedule().alpha_bar[:1000].float(), theirs)


def test_add_noise_equals_monai() -> None:
    clean, noise = images(0), images(1)
    scheduler = monai(DDPMScheduler, clip=True)
    for t in (0, 1, 50, 350, 999):
        theirs = scheduler.add_noise(clean, noise, torch.full((3,), t))
        assert_near(Schedule().add_noise(clean, noise, t), theirs)
    each = torch.tensor([0, 250, 999])
    assert_near(Schedule().add_noise(clean, noise, each), scheduler.add_noise(clean, noise, each))


@pytest.mark.parametrize("clip", [True, False])
@pytest.mark.parametrize("t", [0, 1, 2, 50, 350, 998, 999])
def test_ancestral_step_equals_monai(t: int, clip: bool) -> None:
    """From t to t - 1, from 1 to 0 and from 0 to the clean image, with the same noise."""
    x_t, eps, schedule = images(0), images(1), Schedule()
    x_next, clean = monai(DDPMScheduler, clip=clip).step(eps, t, x_t, generator=torch.Generator().manual_seed(7))
    ours = schedule.predict_clean(x_t, eps, t, clip=clip)
    assert_near(ours, clean)
    if clip:
        assert ours.abs().max() == 1  # this input does need clipping
    noise = torch.randn(SHAPE, generator=torch.Generator().manual_seed(7), dtype=x_t.dtype)
    assert_near(schedule.step(x_t, ours, t, t - 1, noise), x_next)


@pytest.mark.parametrize("t", [0, 1, 2, 50, 350, 999])
def test_float32_images_keep_their_digits(t: int) -> None:
    """Images are float32 in practice, the weights are not: near t = 0 they would lose four digits."""
    x_t, eps, noise, schedule = images(0), images(1), images(2), Schedule()
    exact = schedule.step(x_t, schedule.predict_clean(x_t, eps, t), t, t - 1, noise)
    x_t, eps, noise = x_t.float(), eps.float(), noise.float()
    ours = schedule.step(x_t, schedule.predict_clean(x_t, eps, t), t, t - 1, noise)
    assert ours.dtype == torch.float32
    torch.testing.assert_close(ours.double(), exact, atol=3e-6, rtol=0)


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("steps", [1000, 100, 10, 4])
def test_ddim_equals_monai(steps: int, eta: float) -> None:
    """Over whole chains from 999 to the clean image.

    MONAI steps by 1000 // steps from wherever it is asked to; the chain here follows that stride, for MONAI's own
    `timesteps` do not. Without clipping: MONAI clips the clean estimate but goes on with the noise predicted before
    that, while `Schedule.step` takes the noise which the clipped estimate implies.
    """
    scheduler, schedule = monai(DDIMScheduler, clip=False), Schedule()
    scheduler.set_timesteps(steps)
    stride = 1000 // steps
    x_t = theirs = images(0)
    generator_a, generator_b = torch.Generator().manual_seed(7), torch.Generator().manual_seed(7)
    for t in range(999, -1, -stride):
        eps = torch.tanh(x_t)  # any function stands in for a network
        theirs, clean = scheduler.step(torch.tanh(theirs), t, theirs, eta=eta, generator=generator_a)
        ours = schedule.predict_clean(x_t, eps, t, clip=False)
        assert_near(ours, clean)
        noise = torch.randn(SHAPE, generator=generator_b, dtype=x_t.dtype)
        x_t = schedule.step(x_t, ours, t, t - stride, noise, eta=eta)
        assert_near(x_t, theirs)
    assert t - stride == CLEAN


# Closed forms


def test_alpha_bar_by_hand() -> None:
    # betas 0.1, 0.2, 0.3: 0.9, 0.9 * 0.8, 0.9 * 0.8 * 0.7, and 1 for CLEAN
    assert Schedule(3, 0.1, 0.3).alpha_bar.tolist() == pytest.approx([0.9, 0.72, 0.504, 1.0], rel=1e-12)


@pytest.mark.parametrize("t", [0, 1, 50, 250, 350, 999])
def test_alpha_bar_exactly(t: int) -> None:
    first, last = Fraction(1, 10_000), Fraction(2, 100)
    exact = math.prod(1 - (first + (last - first) * i / 999) for i in range(t + 1))
    assert float(Schedule().alpha_bar[t]) == pytest.approx(float(exact), rel=1e-12)


def test_almost_nothing_of_the_image_is_left_at_the_end() -> None:
    """DDPM, section 4: the last latent's KL divergence from N(0, I) is about 1e-5 bits a dimension.

    For an image of unit power it is (alpha_bar + (1 - alpha_bar) - 1 - ln(1 - alpha_bar)) / 2 nats.
    """
    alpha_bar = float(Schedule().alpha_bar[999])
    bits = -math.log(1 - alpha_bar) / 2 / math.log(2)
    assert 1e-5 < bits < 5e-5


def coefficients(schedule: Schedule, t: int, t_next: int, eta: float) -> tuple[float, float, float]:
    """Of x_t, of the clean estimate and of the noise: the step is linear in all three."""
    units = torch.eye(3, dtype=torch.float64)
    x_next = schedule.step(units[0], units[1], t, t_next, units[2], eta=eta)
    return tuple(x_next.tolist())


@pytest.mark.parametrize("eta", [0.0, 1.0])
@pytest.mark.parametrize(("t", "s", "r"), [(2, 1, 0), (250, 100, 99), (350, 300, 50), (999, 500, 0), (9, 4, CLEAN)])
def test_two_steps_are_one_in_distribution(t: int, s: int, r: int, eta: float) -> None:
    """For a fixed clean image, t -> s -> r and t -> r have the same mean and variance given x_t.

    True of the two ends: eta = 1 is the posterior of a Markov chain, eta = 0 keeps the noise.
    """
    x_ts, clean_ts, noise_ts = coefficients(Schedule(), t, s, eta)
    x_sr, clean_sr, noise_sr = coefficients(Schedule(), s, r, eta)
    x_tr, clean_tr, noise_tr = coefficients(Schedule(), t, r, eta)
    assert x_sr * x_ts == pytest.approx(x_tr, abs=1e-12)
    assert clean_sr + x_sr * clean_ts == pytest.approx(clean_tr, abs=1e-12)
    assert noise_sr**2 + (x_sr * noise_ts) ** 2 == pytest.approx(noise_tr**2, abs=1e-12)


@pytest.mark.parametrize("eta", [0.0, 0.3, 1.0])
@pytest.mark.parametrize(("t", "t_next"), [(1, 0), (350, 349), (350, 50), (999, 0), (50, CLEAN)])
def test_a_step_arrives_with_the_power_of_its_timestep(t: int, t_next: int, eta: float) -> None:
    """DDIM, lemma 1: if x_t is the clean image noised to t, x_next is the same noised to t_next, for every eta."""
    alpha_bar = Schedule().alpha_bar.tolist()
    x, clean, noise = coefficients(Schedule(), t, t_next, eta)
    assert x * math.sqrt(alpha_bar[t]) + clean == pytest.approx(math.sqrt(alpha_bar[t_next]), abs=1e-12)
    assert x**2 * (1 - alpha_bar[t]) + noise**2 == pytest.approx(1 - alpha_bar[t_next], abs=1e-12)


@pytest.mark.parametrize("t", [1, 2, 50, 350, 999])
def test_step_between_neighbours_is_ddpms_posterior(t: int) -> None:
    """DDPM equation 7, written out with betas."""
    beta = [1e-4 + (2e-2 - 1e-4) * i / 999 for i in range(1000)]
    alpha_bar = [math.prod(1 - b for b in beta[: i + 1]) for i in range(t + 1)]
    x, clean, noise = coefficients(Schedule(), t, t - 1, 1.0)
    assert x == pytest.approx(math.sqrt(1 - beta[t]) * (1 - alpha_bar[t - 1]) / (1 - alpha_bar[t]), rel=1e-9)
    assert clean == pytest.approx(math.sqrt(alpha_bar[t - 1]) * beta[t] / (1 - alpha_bar[t]), rel=1e-9)
    assert noise**2 == pytest.approx((1 - alpha_bar[t - 1]) / (1 - alpha_bar[t]) * beta[t], rel=1e-9)


def test_predict_clean_inverts_add_noise() -> None:
    clean, noise, schedule = images(0).clamp(-1, 1), images(1), Schedule()
    for t in (0, 50, 350, 999):
        assert_near(schedule.predict_clean(schedule.add_noise(clean, noise, t), noise, t), clean)


def test_nothing_is_noisy_at_clean() -> None:
    clean, noise, schedule = images(0).clamp(-1, 1), images(1), Schedule()
    assert torch.equal(schedule.add_noise(clean, noise, CLEAN), clean)
    assert torch.equal(schedule.predict_clean(clean, noise, CLEAN), clean)
    assert torch.equal(schedule.step(noise, clean, 5, CLEAN, noise), clean)


def test_a_timestep_for_each_image() -> None:
    x, eps, schedule = images(0), images(1), Schedule()
    each = torch.tensor([0, 250, 999])
    for function in (schedule.add_noise, schedule.predict_clean):
        together = function(x, eps, each)
        for i, t in enumerate(each.tolist()):
            assert torch.equal(together[i : i + 1], function(x[i : i + 1], eps[i : i + 1], t))


@pytest.mark.parametrize("t", [CLEAN, 0, 49, 199, 998])
def test_renoising_by_one_timestep_by_hand(t: int) -> None:
    """DDPM equation 2: sqrt(1 - beta) x + sqrt(beta) eps."""
    x, eps = images(0), images(1)
    beta = 1e-4 + (t + 1) / 999 * (2e-2 - 1e-4)
    assert_near(Schedule().renoise(x, t, t + 1, eps), math.sqrt(1 - beta) * x + math.sqrt(beta) * eps)


def test_renoising_a_clean_image_is_adding_noise() -> None:
    x, eps = images(0), images(1)
    assert torch.equal(Schedule().renoise(x, CLEAN, 250, eps), Schedule().add_noise(x, eps, 250))


def test_renoising_in_two_jumps_or_timestep_by_timestep_is_one_jump() -> None:
    """What is left of the image multiplies, and the variance of all noise together is what one jump adds."""
    schedule, one, none = Schedule(), torch.ones(1, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)
    for chain in ([10, 100, 300], [*range(10, 301)]):
        kept, variance = one, none
        for t, t_next in itertools.pairwise(chain):
            kept = schedule.renoise(kept, t, t_next, none)
            variance = (
                schedule.renoise(none, t, t_next, one) ** 2 + schedule.renoise(one, t, t_next, none) ** 2 * variance
            )
        assert_near(kept, schedule.renoise(one, 10, 300, none))
        assert_near(variance, schedule.renoise(none, 10, 300, one) ** 2)


# Refusals


@pytest.mark.parametrize(("t", "t_next"), [(5, 5), (6, 5), (5, 1000), (-2, 5), (CLEAN, CLEAN)])
def test_renoising_that_does_not_go_up_is_refused(t: int, t_next: int) -> None:
    with pytest.raises(ValueError, match=f"{t} -> {t_next}"):
        Schedule().renoise(images(0), t, t_next, images(1))


@pytest.mark.parametrize(("t", "t_next"), [(5, 5), (5, 6), (1000, 5), (5, -2), (CLEAN, CLEAN)])
def test_a_step_that_does_not_go_down_is_refused(t: int, t_next: int) -> None:
    with pytest.raises(ValueError, match=f"{t} -> {t_next}"):
        Schedule().step(images(0), images(1), t, t_next, images(2))


@pytest.mark.parametrize("t", [1000, -2, torch.tensor([0, 1, 1000])])
def test_timesteps_off_the_chain_are_refused(t: int | Tensor) -> None:
    for function in (Schedule().add_noise, Schedule().predict_clean):
        with pytest.raises(ValueError, match=r"-1 \.\.\. 999"):
            function(images(0), images(1), t)


# Which timesteps are visited


@pytest.mark.parametrize(
    ("noise_level", "steps", "harmonise_at", "expected"),
    [
        (4, None, (), [4, 3, 2, 1, 0]),
        (4, None, (3, 1), [4, 3, 2, 1, 0]),
        (250, 5, (), [250, 200, 150, 100, 50]),
        (250, 5, (200, 150, 100, 50), [250, 200, 150, 100, 50]),
        (250, 3, (), [250, 167, 83]),  # 250/3, 500/3, 250 to the nearest
        (250, 3, (200, 50), [250, 200, 167, 83, 50]),
        (350, 7, (300, 150, 50), [350, 300, 250, 200, 150, 100, 50]),
        (350, 1, (), [350]),
        (350, 1, (300, 150, 50), [350, 300, 150, 50]),
        (350, 1, (350, 0), [350, 0]),
        (3, 100, (), [3, 2, 1, 0]),  # more steps than timesteps: each once
        (0, None, (), [0]),
        (0, 2, (), [0]),
    ],
)
def test_visited_timesteps_by_hand(
    noise_level: int, steps: int | None, harmonise_at: tuple[int, ...], expected: list[int]
) -> None:
    assert visited_timesteps(noise_level, steps, harmonise_at) == expected


@pytest.mark.parametrize("steps", [None, 5])
@pytest.mark.parametrize("harmonise_at", [(251,), (-1,), (200, 300)])
def test_harmonising_where_no_chain_passes_is_refused(steps: int | None, harmonise_at: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"harmonise_at .* 0 \.\.\. 250"):
        visited_timesteps(250, steps, harmonise_at)


@pytest.mark.parametrize("steps", [0, -3])
def test_no_steps_are_refused(steps: int) -> None:
    with pytest.raises(ValueError, match=f"got {steps}"):
        visited_timesteps(250, steps)
