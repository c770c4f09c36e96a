"""pDDPM: restore one patch after the other from its clean surroundings.

Behrendt, Bhattacharya, Krüger, Opfer, Schlaefer: Patched Diffusion Models for Unsupervised Anomaly Detection in Brain
MRI, MIDL 2023, arXiv:2303.03758.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from thorad.diffusion.schedule import Schedule
from thorad.methods.contract import Compare, Denoise, Method, Noise, OnStep, Restoration, Step


@dataclass(frozen=True)
class PddpmOptions:
    """The paper's values: cells of half the image's side, each restored in one network call."""

    noise_level: int = 500
    """Timestep that a cell is noised to."""
    size: int = 128
    """Side of the image, px."""
    patch: int = 64
    """Side of a cell, px; the one that the network was trained with."""
    stride: int | None = None
    """Largest distance of neighbouring cells, px; below `patch` they overlap. None is `patch`."""

    def __post_init__(self) -> None:
        """Refuse cells that don't cover the image."""
        if not 0 < self.patch <= self.size:
            raise ValueError(f"patch is {self.patch} px, expected 1 ... {self.size} (the image's side)")
        if self.stride is not None and not 0 < self.stride <= self.patch:
            raise ValueError(f"stride is {self.stride} px, expected 1 ... {self.patch} (the patch)")

    def network_calls(self) -> int:
        """Calls of the network for one image: one a cell."""
        return len(self.places()) ** 2

    def places(self) -> list[int]:
        """Where cells begin along either side, px: from border to border, spread evenly."""
        last = self.size - self.patch
        gaps = math.ceil(last / (self.stride or self.patch))
        return [0] if gaps == 0 else [round(last * i / gaps) for i in range(gaps + 1)]


def pddpm(
    denoise: Denoise,
    image: Tensor,
    schedule: Schedule,
    noise: Noise,
    compare: Compare,
    *,
    options: PddpmOptions,
    on_step: OnStep | None = None,
) -> Restoration:
    """Noise one cell of the image, restore it in one call, and so on; the restored cells make the reconstruction.

    Unlike elsewhere `denoise` gives the clean image, not the noise: the network was trained so (a recipe with
    ``prediction = "clean"`` and `patch_noise`). Where cells overlap, their mean counts.
    """
    if image.shape[-2:] != (options.size, options.size):
        raise ValueError(f"images are {tuple(image.shape[-2:])} px, the options are for a side of {options.size}")
    restored, times = torch.zeros_like(image), torch.zeros_like(image)  # (B, 1, S, S)
    for row in options.places():
        for column in options.places():
            cell = (..., slice(row, row + options.patch), slice(column, column + options.patch))
            x_t = image.clone()
            x_t[cell] = schedule.add_noise(image, noise(), options.noise_level)[cell]
            restored[cell] += denoise(x_t, options.noise_level).clamp(-1, 1)[cell]
            times[cell] += 1
    clean = restored / times
    if on_step:
        on_step(Step(options.noise_level, clean, None))
    return Restoration(compare(image, clean), pseudo_healthy=clean)


PDDPM = Method(
    name="pddpm",
    title="pDDPM",
    blurb="restore one patch after the other from its clean surroundings; needs a model of its own (brain-t1-patched)",
    paper="Behrendt, Bhattacharya, Krüger, Opfer, Schlaefer, MIDL 2023, arXiv:2303.03758",
    restore=pddpm,
    options=lambda request: PddpmOptions(
        request.noise_level or PddpmOptions.noise_level, size=request.size, patch=request.patch_noise
    ),
    noise_levels={"simplex": PddpmOptions.noise_level},
    patched=True,
)
