"""How training images are varied: shape as in the paper, intensity for other scanners.

Shapes: (B, C, S, S) in [0, 1], on any device; all channels of an image are varied alike. Every random number comes from
the generator given, on the host, so that they are the same on every device.
"""

from __future__ import annotations

import math
from typing import Final

import torch
from torch import Tensor
from torch.nn import functional

from thorad.recipe import AugmentationSection

RISES: Final = 6
"""Straight pieces of a random curve of brightness."""
SMALLEST_RISE: Final = 0.1
"""Of a piece, before all are scaled to rise from 0 to 1; the largest is 1.1: no contrast vanishes."""


def augment(x: Tensor, options: AugmentationSection, generator: torch.Generator) -> Tensor:
    """Vary each image of a batch on its own."""
    return vary_intensity(vary_shape(x, options, generator), options, generator)


def _uniform(like: Tensor, low: float, high: float, generator: torch.Generator) -> Tensor:
    """(B, 1, 1, 1): a number for each image."""
    return torch.rand(len(like), 1, 1, 1, generator=generator).to(like.device) * (high - low) + low


def _smooth_field(channels: int, like: Tensor, knots: int, generator: torch.Generator) -> Tensor:
    """(B, channels, S, S): normal numbers at knots x knots places, cubic between them."""
    at_knots = torch.randn(len(like), channels, knots, knots, generator=generator).to(like.device)
    return functional.interpolate(at_knots, size=like.shape[-2:], mode="bicubic", align_corners=True)


def vary_shape(x: Tensor, options: AugmentationSection, generator: torch.Generator) -> Tensor:
    """Rotate, resize, shift, mirror and warp each image; what comes in from outside is 0."""
    angle = _uniform(x, -options.rotation, options.rotation, generator) * math.pi / 180
    size = _uniform(x, 1 - options.scale, 1 + options.scale, generator)
    # affine_grid's unit is half the image's side.
    shift_x = 2 * _uniform(x, -options.shift, options.shift, generator)
    shift_y = 2 * _uniform(x, -options.shift, options.shift, generator)
    mirror = 1 - 2 * (_uniform(x, 0, 1, generator) < options.flip).float()
    cosine, sine = angle.cos() / size, angle.sin() / size
    rows = [torch.cat([mirror * cosine, -sine, shift_x], 3), torch.cat([mirror * sine, cosine, shift_y], 3)]
    grid = functional.affine_grid(torch.cat(rows, 2)[:, 0], list(x.shape), align_corners=False)  # (B, S, S, 2)
    if options.warp > 0:
        grid = grid + options.warp * _smooth_field(2, x, 5, generator).permute(0, 2, 3, 1)
    return functional.grid_sample(x, grid, mode="bilinear", padding_mode="zeros", align_corners=False)


def vary_intensity(x: Tensor, options: AugmentationSection, generator: torch.Generator) -> Tensor:
    """Give some of the images another gamma, curve, bias field, contrast and noise."""
    if options.intensity == 0:
        return x
    chosen = _uniform(x, 0, 1, generator) < options.intensity
    gamma = _uniform(x, -options.gamma, options.gamma, generator).exp()
    bias_field = (options.bias_field * _smooth_field(1, x, 3, generator)).exp()
    contrast = _uniform(x, 1 - options.contrast, 1 + options.contrast, generator)
    grain = torch.randn(len(x), 1, *x.shape[2:], generator=generator).to(x.device)
    grain = grain * _uniform(x, 0, options.noise, generator)
    varied = x.clamp(min=0).pow(gamma)
    if options.curve > 0:
        varied = _bent(varied, options.curve, generator)
    varied = varied * bias_field * contrast + grain
    return torch.where(chosen, varied, x).clamp(0, 1)


def _bent(x: Tensor, largest: float, generator: torch.Generator) -> Tensor:
    """Brightness in [0, 1] along a curve of each image's own, which rises from 0 to 1 in `RISES` straight pieces."""
    rises = torch.rand(len(x), RISES, generator=generator).to(x) + SMALLEST_RISE
    heights = functional.pad(rises.cumsum(dim=1) / rises.sum(dim=1, keepdim=True), (1, 0))  # (B, RISES + 1)
    place = x.clamp(0, 1).flatten(1) * RISES
    piece = place.long().clamp(max=RISES - 1)
    low, high = heights.gather(1, piece), heights.gather(1, piece + 1)
    curve = (low + (place - piece) * (high - low)).view_as(x)
    weight = _uniform(x, 0, largest, generator)
    return x + weight * (curve - x)
