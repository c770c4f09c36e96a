"""The critic's network: a small U-Net that reads a scan against the mean and the spread of healthy anatomy.

This project's own step beyond THOR; docs/method.md has the reasons and what each part gives. It learns from healthy
scans alone, with anomalies made up in them (`thorad.training.synthetic_anomalies`), as DRAEM does for photographs
(Zavrtanik, Kristan, Skočaj 2021, arXiv:2108.07610), but reads the scan as a z-score does.

Shapes: B images on a grid of side S, in [0, 1]; so is the mean.
"""

from __future__ import annotations

import itertools
from typing import Final, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from thorad.maps.zscore import SMALLEST_DEVIATION, match_quantiles

LARGEST_Z: Final = 6.0
READ: Final = 6
"""Channels that the U-Net sees of an image."""


class Verdict(NamedTuple):
    """What a network says of images, (B, 1, S, S) each."""

    logit: Tensor
    """Of a pixel's probability not to be healthy."""
    healthy: Tensor
    """The image as it would be without what is not healthy; about [0, 1]."""


class CriticNetwork(nn.Module):
    """A U-Net with two answers: where it is not healthy, and what would be.

    Args:
        mean: (1, S, S) of the training images.
        standard_deviation: (1, S, S) of them.
        region: (S, S) bool; what is outside is nobody's concern.
        channels: of each level, each half as wide as the one before. S is a multiple of 2 ** (levels - 1).
    """

    def __init__(
        self,
        mean: Tensor,
        standard_deviation: Tensor,
        region: Tensor,
        *,
        channels: tuple[int, ...] = (16, 32, 64, 96, 128),
    ) -> None:
        super().__init__()
        self.mean: Tensor
        self.deviation: Tensor
        self.region: Tensor
        # They lie elsewhere in the model's folder.
        self.register_buffer("mean", mean, persistent=False)
        self.register_buffer("deviation", standard_deviation, persistent=False)
        self.register_buffer("region", region, persistent=False)
        widths = (READ, *channels)
        self.down = nn.ModuleList(_block(before, after) for before, after in itertools.pairwise(widths))
        self.up = nn.ModuleList(_block(low + high, high) for high, low in reversed([*itertools.pairwise(channels)]))
        self.out = nn.Conv2d(channels[0], 2, 1)
        self.out.bias = nn.Parameter(torch.tensor([-3.0, 0.0]))  # most pixels are healthy

    def forward(self, image: Tensor) -> Verdict:
        """Judge images, (B, 1, S, S)."""
        # In this order a processor's convolutions read neighbouring channels at once.
        x = self._reading(image).contiguous(memory_format=torch.channels_last)
        levels: list[Tensor] = []
        for number, block in enumerate(self.down):
            x = block(F.max_pool2d(x, 2) if number else x)
            levels.append(x)
        for block, level in zip(self.up, reversed(levels[:-1]), strict=True):
            x = block(torch.cat([F.interpolate(x, scale_factor=2.0, mode="bilinear"), level], dim=1))
        logit, change = self.out(x).float().split(1, dim=1)
        return Verdict(logit, image + change)

    def _reading(self, image: Tensor) -> Tensor:
        """(B, C, S, S), what the U-Net sees, each of a size near 1."""
        mean, deviation = self.mean.expand_as(image), self.deviation.expand_as(image)
        matched = match_quantiles(image, self.mean, self.region)
        z = ((matched - mean) / (deviation + SMALLEST_DEVIATION)).clamp(-LARGEST_Z, LARGEST_Z) / 3
        read = [2 * image - 1, 2 * matched - 1, 2 * mean - 1, 4 * deviation, z, z - z.flip(3)]
        return torch.cat(read, dim=1)


def _block(before: int, after: int) -> nn.Sequential:
    def convolution(channels: int) -> list[nn.Module]:
        return [nn.Conv2d(channels, after, 3, padding=1, bias=False), nn.BatchNorm2d(after), nn.SiLU()]

    return nn.Sequential(*convolution(before), *convolution(after))
