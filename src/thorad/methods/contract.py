"""What every method takes and gives.

A method is one function that reads like its paper:

    restore(denoise, image, schedule, noise, compare, *, options, on_step=None) -> Restoration

- ``denoise(x_t, t)``: the noise in x_t, (B, 1, H, W), t an int; any callable, so that a closed form can stand in.
- ``image``: (B, 1, H, W) in [-1, 1].
- ``schedule``: `thorad.diffusion.schedule.Schedule`.
- ``noise()``: fresh noise (B, 1, H, W), from one generator for each image.
- ``compare(image, reconstruction)``: the map between two images, (B, 1, H, W) >= 0.
- ``options``: the method's own frozen dataclass.
- ``on_step(Step)``: called with every intermediate picture; None is free.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

Denoise = Callable[[Tensor, int], Tensor]
Noise = Callable[[], Tensor]
Compare = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Restoration:
    """What a method makes of a batch of images."""

    anomaly_map: Tensor
    """(B, 1, H, W) >= 0: how far each pixel is from healthy."""
    pseudo_healthy: Tensor
    """(B, 1, H, W) in [-1, 1]: the image as the healthy anatomy would have it."""


@dataclass(frozen=True)
class Step:
    """One intermediate picture of a restoration."""

    t: int
    """Timestep."""
    clean: Tensor
    """(B, 1, H, W) in [-1, 1]: the clean estimate at t, before harmonisation."""
    anomaly_map: Tensor | None
    """(B, 1, H, W), at a harmonised step only."""


OnStep = Callable[[Step], None]
