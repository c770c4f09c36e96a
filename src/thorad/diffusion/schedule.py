"""The noise schedule of a diffusion model and the way between any two of its timesteps.

Ho, Jain, Abbeel: Denoising Diffusion Probabilistic Models, 2020 (DDPM), equations 2, 4, 7 and 15.
Song, Meng, Ermon: Denoising Diffusion Implicit Models, 2021 (DDIM), equations 12 and 16.

=================  =======================================  ===================
here               meaning                                  papers
=================  =======================================  ===================
``t``              timestep, 0 (least noise) ... T - 1      t - 1
``CLEAN`` (-1)     the noise-free end of the chain          0
``alpha_bar``      share of the image's power left at t     alpha-bar_t
``x_t``            the image noised to t                    x_t
``clean``          the estimate of the noise-free image     x-hat_0
``eps``            the noise in x_t, which is predicted     epsilon_theta
=================  =======================================  ===================
"""

from __future__ import annotations

import torch
from torch import Tensor

CLEAN = -1
"""The timestep after the last one: no noise is left."""


class Schedule:
    """Linear betas (DDPM, section 4): how much noise an image carries at each timestep.

    Args:
        timesteps: length of the chain.
        beta_start: variance added at timestep 0.
        beta_end: variance added at the last timestep.
    """

    def __init__(self, timesteps: int = 1000, beta_start: float = 1e-4, beta_end: float = 2e-2) -> None:
        self.timesteps = timesteps
        betas = torch.linspace(beta_start, beta_end, timesteps, dtype=torch.float64)
        # The 1 at the end answers for CLEAN: index -1.
        self.alpha_bar = torch.cat([torch.cumprod(1 - betas, 0), torch.ones(1, dtype=torch.float64)])

    def _alpha_bar(self, t: int | Tensor, like: Tensor) -> Tensor:
        # In float64 on the host: the square roots of small differences below lose digits otherwise.
        index = torch.as_tensor(t, device="cpu").reshape(-1)  # (1,) or (B,)
        if not bool(((index >= CLEAN) & (index < self.timesteps)).all()):
            raise ValueError(f"timesteps must lie in {CLEAN} ... {self.timesteps - 1}, got {t}")
        return self.alpha_bar[index].reshape(-1, *[1] * (like.ndim - 1))

    @staticmethod
    def _mix(weight_a: Tensor, a: Tensor, weight_b: Tensor, b: Tensor) -> Tensor:
        return weight_a.to(a) * a + weight_b.to(b) * b

    def add_noise(self, clean: Tensor, noise: Tensor, t: int | Tensor) -> Tensor:
        """DDPM equation 4: x_t = sqrt(alpha_bar) clean + sqrt(1 - alpha_bar) noise.

        Args:
            clean: images, (B, ...), in [-1, 1].
            noise: of the same shape.
            t: one timestep for all, or one for each image (B,).
        """
        alpha_bar = self._alpha_bar(t, clean)
        return self._mix(alpha_bar.sqrt(), clean, (1 - alpha_bar).sqrt(), noise)

    def predict_clean(self, x_t: Tensor, eps: Tensor, t: int | Tensor, *, clip: bool = True) -> Tensor:
        """DDPM equation 15: clean = (x_t - sqrt(1 - alpha_bar) eps) / sqrt(alpha_bar), clipped to [-1, 1]."""
        alpha_bar = self._alpha_bar(t, x_t)
        clean = self._mix(alpha_bar.rsqrt(), x_t, -((1 - alpha_bar) / alpha_bar).sqrt(), eps)
        return clean.clamp(-1, 1) if clip else clean

    def step(self, x_t: Tensor, clean: Tensor, t: int, t_next: int, noise: Tensor, *, eta: float = 1.0) -> Tensor:
        """Go from timestep t to any earlier one, given the clean estimate at t.

        DDIM equation 12 with sigma = eta * equation 16. ``eta=1`` between neighbours is DDPM's ancestral
        step (equation 7: posterior mean and variance); ``eta=0`` is the deterministic DDIM. The noise in
        x_t is the one that the (clipped) clean estimate implies.

        Args:
            x_t: images at t, (B, ...).
            clean: estimate of the noise-free images, (B, ...), in [-1, 1].
            t: where x_t is.
            t_next: where to go, ``CLEAN`` <= t_next < t.
            noise: fresh noise, (B, ...).
            eta: share of the noise that is drawn anew.
        """
        if not CLEAN <= t_next < t < self.timesteps:
            raise ValueError(f"a step goes from a timestep to an earlier one, got {t} -> {t_next}")
        here, there = self._alpha_bar(t, x_t), self._alpha_bar(t_next, x_t)
        variance = eta**2 * (1 - there) / (1 - here) * (1 - here / there)
        eps = self._mix((1 - here).rsqrt(), x_t, -(here / (1 - here)).sqrt(), clean)
        x_next = self._mix(there.sqrt(), clean, (1 - there - variance).clamp(min=0).sqrt(), eps)
        return x_next + variance.sqrt().to(noise) * noise

    def renoise(self, x_t: Tensor, t: int, t_next: int, noise: Tensor) -> Tensor:
        """Go from timestep t to any later one: x_next = sqrt(kept) x_t + sqrt(1 - kept) noise.

        ``kept`` is alpha_bar_next / alpha_bar. Between neighbours this is DDPM equation 2, where 1 - kept is beta;
        from ``CLEAN`` it is `add_noise`.

        Args:
            x_t: images at t, (B, ...).
            t: where x_t is, may be ``CLEAN``.
            t_next: where to go, t < t_next.
            noise: fresh noise, (B, ...).
        """
        if not CLEAN <= t < t_next < self.timesteps:
            raise ValueError(f"renoising goes from a timestep to a later one, got {t} -> {t_next}")
        kept = self._alpha_bar(t_next, x_t) / self._alpha_bar(t, x_t)
        return self._mix(kept.sqrt(), x_t, (1 - kept).sqrt(), noise)


def visited_timesteps(noise_level: int, steps: int | None, harmonise_at: tuple[int, ...] = ()) -> list[int]:
    """The timesteps a restoration visits, from the noise level down; after the last one comes ``CLEAN``.

    Args:
        noise_level: timestep T that the image is noised to.
        steps: how many evenly spaced timesteps to visit; None visits all, T ... 0.
        harmonise_at: timesteps that are visited in any case, each in 0 ... T.

    Returns:
        Timesteps in falling order, the first is T.
    """
    if noise_level < 0:
        raise ValueError(f"the noise level is {noise_level}, expected a timestep from 0 on")
    if any(not 0 <= t <= noise_level for t in harmonise_at):
        raise ValueError(f"harmonise_at {harmonise_at} must lie in 0 ... {noise_level} (the noise level)")
    if steps is None:
        return list(range(noise_level, -1, -1))
    if steps < 1:
        raise ValueError(f"steps must be 1 or more, or None for all; got {steps}")
    even = {round(noise_level * i / steps) for i in range(1, steps + 1)}
    return sorted(even.union(harmonise_at), reverse=True)
