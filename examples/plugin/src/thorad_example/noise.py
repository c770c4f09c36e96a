"""Coarse noise.

Kascenas, Pugeault, O'Neil: Denoising Autoencoders for Unsupervised Anomaly Detection in Brain MRI, MIDL 2022.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

CELL = 8
"""px; the paper draws 16 x 16 numbers for 128 x 128 px."""


def coarse_noise(generators: Sequence[torch.Generator], height: int, width: int, device: torch.device) -> Tensor:
    """Normal numbers on a grid of `CELL` px, bilinear between them: (B, 1, height, width) for B generators."""
    grid = (max(2, height // CELL), max(2, width // CELL))
    drawn = torch.stack([torch.randn(1, *grid, generator=generator) for generator in generators])
    return functional.interpolate(drawn, (height, width), mode="bilinear", align_corners=False).to(device)
