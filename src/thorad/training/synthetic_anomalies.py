"""Anomalies made up in healthy images, for networks that learn what is not healthy without a single lesion label.

Shapes are soft, irregular and of all sizes; what is in them is darker, brighter, replaced, another person's tissue,
blurred, textured or displaced. Nothing is taken from a lesion, its outline or its look.

Shapes: B images on a grid of side S, in [0, 1], on any device; every random number comes from the generator given.
"""

from __future__ import annotations

import math
from typing import Final, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from thorad.maps.anomaly_map import gaussian_blur

AREA: Final = (8.0, 2500.0)
"""px of a grid of 128 x 128, before the outline is made irregular; log-uniform, so every size is as frequent."""
MOST: Final = 3
"""Anomalies in one image, at most."""
HEALTHY_SHARE: Final = 0.15
"""Share of the images that stay as they are."""
VISIBLE: Final = 0.05
"""What doesn't change the image by so much, blurred by a pixel, is nobody's to find: it carries no label."""


class Corrupted(NamedTuple):
    """Images with anomalies, and where those are."""

    image: Tensor
    """(B, 1, S, S) in [0, 1]."""
    mask: Tensor
    """(B, 1, S, S) bool."""
    area: Tensor
    """(B, 1, S, S): in the mask the area in px of the anomaly that the pixel belongs to, elsewhere 0."""


def corrupt(healthy: Tensor, region: Tensor, generator: torch.Generator) -> Corrupted:
    """Put up to `MOST` anomalies into each image.

    Args:
        healthy: (B, 1, S, S) in [0, 1].
        region: (S, S) bool: where anomalies may lie.
        generator: of the CPU.
    """
    image = healthy
    area = torch.zeros_like(healthy)
    count = torch.randint(1, MOST + 1, (len(healthy),), generator=generator)
    count[torch.rand(len(healthy), generator=generator) < HEALTHY_SHARE] = 0
    for number in range(MOST):
        alpha = _shape(image, region, generator) * (number < count).to(image).view(-1, 1, 1, 1)
        changed = image + alpha * (_appearance(image, alpha, generator) - image)
        visible = gaussian_blur((changed - image).abs(), 1.0) > VISIBLE
        mask = (alpha > 0.5) & visible
        size = mask.sum(dim=(2, 3), keepdim=True)
        # A few pixels of a large faint one are no small lesion.
        kept = size > 0.25 * (alpha > 0.5).sum(dim=(2, 3), keepdim=True)
        image = torch.where(kept, changed, image).clamp(0, 1)
        area = torch.where(mask & kept, size.to(area), area)
    return Corrupted(image, area > 0, area)


def _uniform(low: float, high: float, like: Tensor, generator: torch.Generator) -> Tensor:
    """(B, 1, 1, 1): a number for each image."""
    drawn = torch.rand(len(like), 1, 1, 1, generator=generator).to(like)
    return low + (high - low) * drawn


def _field(like: Tensor, knots: int, generator: torch.Generator) -> Tensor:
    """(B, 1, S, S): standard normal numbers at knots x knots places, cubic between them."""
    drawn = torch.randn(len(like), 1, knots, knots, generator=generator).to(like)
    return functional.interpolate(drawn, size=like.shape[-2:], mode="bicubic", align_corners=True)


def _shape(image: Tensor, region: Tensor, generator: torch.Generator) -> Tensor:
    """(B, 1, S, S) in [0, 1]: a soft, irregular spot around a pixel of the region."""
    side = image.shape[-1]
    pixels = region.nonzero()
    centre = pixels[torch.randint(len(pixels), (len(image),), generator=generator)].to(image)  # (B, 2)
    row, column = (centre[:, axis].view(-1, 1, 1, 1) for axis in (0, 1))
    low, high = (math.log(area * (side / 128) ** 2) for area in AREA)
    radius = (_uniform(low, high, image, generator).exp() / math.pi).sqrt()
    stretch = _uniform(-0.5, 0.5, image, generator).exp()
    angle = _uniform(0, math.pi, image, generator)
    y, x = torch.meshgrid(*[torch.arange(side, device=image.device, dtype=image.dtype)] * 2, indexing="ij")
    y, x = y - row, x - column
    along = (x * angle.cos() + y * angle.sin()) / (radius * stretch)
    across = (y * angle.cos() - x * angle.sin()) / (radius / stretch)
    knots = torch.randn(len(image), 1, 12, 12, generator=generator).to(image)
    # The outline's bumps scale with the spot: the knots lie in its own coordinates, some 0.7 radii apart.
    grid = torch.cat([along, across], dim=1).permute(0, 2, 3, 1) / 4
    bumps = functional.grid_sample(knots, grid, mode="bicubic", padding_mode="reflection", align_corners=True)
    distance = (along**2 + across**2).sqrt() * (_uniform(0, 0.45, image, generator) * bumps).exp()
    edge = torch.minimum(_uniform(0.5, 4, image, generator), radius.clamp(min=0.5))  # px from in to out
    alpha = (0.5 + (1 - distance) * radius / edge).clamp(0, 1)
    return alpha * region.to(image)


def _appearance(image: Tensor, alpha: Tensor, generator: torch.Generator) -> Tensor:
    """(B, 1, S, S): what the spot holds, one kind for each image."""
    kind = torch.randint(len(_KINDS), (len(image),), generator=generator)
    partner = torch.randperm(len(image), generator=generator)
    made = torch.empty_like(image)
    for number, make in enumerate(_KINDS):
        chosen = (kind == number).nonzero()[:, 0]
        if len(chosen):
            made[chosen] = make(_Spot(image[chosen], alpha[chosen], image[partner[chosen]]), generator)
    return made.clamp(0, 1)


class _Spot(NamedTuple):
    """What an appearance is made of, (B, 1, S, S) each."""

    image: Tensor
    alpha: Tensor
    other: Tensor
    """Another image of the batch, for each."""


def _texture(image: Tensor, generator: torch.Generator) -> Tensor:
    return 0.5 * _field(image, 24, generator) + 0.5 * _field(image, 64, generator)


def _sign(image: Tensor, generator: torch.Generator) -> Tensor:
    return torch.where(_uniform(0, 1, image, generator) < 0.5, -1.0, 1.0)


def _darker(spot: _Spot, generator: torch.Generator) -> Tensor:
    share = _uniform(0.15, 1, spot.image, generator)
    return spot.image * (1 - share * (1 + 0.2 * _texture(spot.image, generator)).clamp(0, 1.3))


def _brighter(spot: _Spot, generator: torch.Generator) -> Tensor:
    share = _uniform(0.15, 0.6, spot.image, generator)
    return spot.image + share * (1 + 0.2 * _texture(spot.image, generator)).clamp(0, 1.3)


def _shifted(spot: _Spot, generator: torch.Generator) -> Tensor:
    shift = _sign(spot.image, generator) * _uniform(0.08, 0.5, spot.image, generator)
    return spot.image + shift * (1 + 0.2 * _texture(spot.image, generator))


def _replaced(spot: _Spot, generator: torch.Generator) -> Tensor:
    grain = _uniform(0, 0.1, spot.image, generator) * _texture(spot.image, generator)
    return _uniform(0, 1, spot.image, generator) + grain


def _textured(spot: _Spot, generator: torch.Generator) -> Tensor:
    return spot.image * (_uniform(0.2, 0.6, spot.image, generator) * _texture(spot.image, generator)).exp()


def _blurred(spot: _Spot, generator: torch.Generator) -> Tensor:
    little = _uniform(0, 1, spot.image, generator) < 0.5
    blurred = torch.where(little, gaussian_blur(spot.image, 1.5), gaussian_blur(spot.image, 4.0))
    return blurred * (1 + _uniform(-0.2, 0.2, spot.image, generator))


def _faded(spot: _Spot, generator: torch.Generator) -> Tensor:
    """Towards one grey near that of the surroundings, with what was there shining through."""
    grey = gaussian_blur(spot.image, 6.0) * _uniform(0.6, 1.3, spot.image, generator)
    return spot.image + _uniform(0.3, 0.9, spot.image, generator) * (grey - spot.image)


def _foreign(spot: _Spot, generator: torch.Generator) -> Tensor:
    """Another image's tissue, of another place."""
    side = spot.other.shape[-1]
    moved = []
    for other in spot.other:
        shift = torch.randint(-side // 4, side // 4 + 1, (2,), generator=generator).tolist()
        mirrored = torch.rand((), generator=generator) < 0.5
        moved.append(other.roll(shift, dims=(1, 2)).flip(2 if mirrored else 1))
    return torch.stack(moved)


def _displaced(spot: _Spot, generator: torch.Generator) -> Tensor:
    """The image's own tissue: swollen, shrunken or pushed aside."""
    image = spot.image
    warp = torch.cat([_field(image, 8, generator), _field(image, 8, generator)], dim=1) * spot.alpha
    place = torch.linspace(-1, 1, image.shape[-1], device=image.device, dtype=image.dtype)
    y, x = torch.meshgrid(place, place, indexing="ij")
    grid = torch.stack([x, y], dim=-1) + _uniform(0.04, 0.15, image, generator) * warp.permute(0, 2, 3, 1)
    return functional.grid_sample(image, grid, mode="bilinear", padding_mode="border", align_corners=True)


_KINDS: Final = (_darker, _brighter, _shifted, _replaced, _textured, _blurred, _faded, _foreign, _displaced)
