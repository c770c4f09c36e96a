"""Noise for training and restoration, each image from its own generator.

Gaussian noise is DDPM's. Simplex noise is AnoDDPM's (Wyatt et al. 2022): smooth noise of several octaves,
which hides structures of the size of a lesion where Gaussian noise of the same power does not.

Drawing happens on the host, image by image, and from what the image shows, so that one image gets the same noise under
any name, in any batch and (up to float rounding) on any device.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from thorad.diffusion import FIRST_WAVELENGTH

OCTAVES = 6
PERSISTENCE = 0.8
"""Each octave halves the wavelength (AnoDDPM: frequency 64, 6 octaves, persistence 0.8)."""

# The published noise is OpenSimplex (a face-centred lattice), this one is Perlin's simplex noise on the
# body-centred lattice: a quarter of the lattice points. Scaling place and amplitude by these two numbers gives the
# published noise's root mean square (0.507) and radial spectrum; tests/test_diffusion_noise.py compares them.
_LATTICE_SCALE = 0.55
_AMPLITUDE = 0.741 * 32

# A shear takes the lattice of unit cubes to the simplex lattice and back: x + sum(x) / 3, x - sum(x) / 6.
_SKEW, _UNSKEW = 1 / 3, 1 / 6
_RADIUS_SQUARED = 0.6
# Perlin 2002, "Improving Noise": the twelve edge directions of a cube.
_GRADIENTS = torch.tensor(
    [[x, y, 0] for x in (1, -1) for y in (1, -1)]
    + [[x, 0, z] for x in (1, -1) for z in (1, -1)]
    + [[0, y, z] for y in (1, -1) for z in (1, -1)],
    dtype=torch.float32,
)


def case_generator(seed: int, content: Tensor, draw: int = 0) -> torch.Generator:
    """The generator of one draw for one case: depends on the run's seed and what the picture shows, on nothing else.

    Of the picture (1, S, S) in [0, 1] the means of 8 x 8 blocks count, rounded to 1/256: what another processor's
    arithmetic changes about it, in a float's last digits, leaves the noise as it is but for one image in thousands.
    """
    means = F.adaptive_avg_pool2d(content.cpu().double(), 8)
    coarse = (256 * means).round().int().flatten().tolist()
    digest = hashlib.sha256(f"{seed}/{draw}/{coarse}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big", signed=True))


def gaussian_noise(generators: Sequence[torch.Generator], height: int, width: int, device: torch.device) -> Tensor:
    """Independent standard normal pixels, (B, 1, height, width) for B generators."""
    return torch.stack([torch.randn(1, height, width, generator=generator) for generator in generators]).to(device)


def simplex_noise(
    generators: Sequence[torch.Generator],
    height: int,
    width: int,
    device: torch.device,
    wavelength: float = FIRST_WAVELENGTH,
) -> Tensor:
    """Slices of fractal 3-D simplex noise, (B, 1, height, width) for B generators: a map of its own for each image.

    The lattice's seed and the slice's third coordinate come from the image's generator. Root mean square 0.51
    (design of the published noise), not 1. `wavelength`: of the first octave, px (`Recipe.draw_noise`).
    """
    seeds = [int(torch.randint(-(2**31), 2**31, (), generator=generator)) for generator in generators]
    deepest = 1000 * wavelength / FIRST_WAVELENGTH  # px
    depths = [float(torch.rand((), generator=generator)) * deepest for generator in generators]
    # One by one on a CPU, so that the arrays stay in its cache; all at once on an accelerator.
    together = 1 if device.type == "cpu" else len(seeds)
    maps = [
        _fractal_slices(seeds[i : i + together], depths[i : i + together], height, width, device, wavelength)
        for i in range(0, len(seeds), together)
    ]
    return torch.cat(maps)[:, None]


def _fractal_slices(
    seeds: Sequence[int], depths: Sequence[float], height: int, width: int, device: torch.device, wavelength: float
) -> Tensor:
    seed = torch.tensor(seeds, dtype=torch.int32, device=device).view(-1, 1, 1)
    depth = torch.tensor(depths, dtype=torch.float32, device=device).view(-1, 1, 1)
    row = torch.arange(height, dtype=torch.float32, device=device).view(1, -1, 1)
    column = torch.arange(width, dtype=torch.float32, device=device).view(1, 1, -1)
    shape = (len(seeds), height, width)
    x, y, z = column.expand(shape), row.expand(shape), depth.expand(shape)  # px
    total = torch.zeros(shape, device=device)
    for octave in range(OCTAVES):
        per_px = _LATTICE_SCALE * 2**octave / wavelength
        total.add_(_simplex(x * per_px, y * per_px, z * per_px, seed), alpha=_AMPLITUDE * PERSISTENCE**octave)
    return total


def _simplex(x: Tensor, y: Tensor, z: Tensor, seed: Tensor) -> Tensor:
    """Simplex noise at the places (x, y, z): a sum over the four corners of the simplex that holds the place."""
    skew = (x + y + z) * _SKEW
    cell_x, cell_y, cell_z = torch.floor(x + skew), torch.floor(y + skew), torch.floor(z + skew)
    unskew = (cell_x + cell_y + cell_z) * _UNSKEW
    x, y, z = x - cell_x + unskew, y - cell_y + unskew, z - cell_z + unskew  # from the cell's corner
    # The simplex within the cell: walk from its corner along the largest coordinate first.
    x_over_y, x_over_z, y_over_z = (x >= y).float(), (x >= z).float(), (y >= z).float()
    rank_x, rank_y, rank_z = x_over_y + x_over_z, 1 - x_over_y + y_over_z, 2 - x_over_z - y_over_z
    gradient_x, gradient_y, gradient_z = _GRADIENTS.to(x.device).unbind(1)
    total = torch.zeros_like(x)
    for step in range(4):
        i, j, k = (rank_x >= 3 - step).float(), (rank_y >= 3 - step).float(), (rank_z >= 3 - step).float()
        dx, dy, dz = x - i + step * _UNSKEW, y - j + step * _UNSKEW, z - k + step * _UNSKEW
        falloff = (_RADIUS_SQUARED - dx * dx - dy * dy - dz * dz).clamp_(min=0).square_().square_()
        edge = _hash((cell_x + i).int(), (cell_y + j).int(), (cell_z + k).int(), seed) % len(_GRADIENTS)
        total += falloff * (gradient_x[edge] * dx + gradient_y[edge] * dy + gradient_z[edge] * dz)
    return total


def _hash(column: Tensor, row: Tensor, slab: Tensor, seed: Tensor) -> Tensor:
    """A corner of the lattice (int32) to an integer >= 0: multiply and shift, wrapping at 32 bits."""
    h = column * 0x1E3779B1 + row * 0x05EBCA77 + slab * 0x42B2AE3D + seed
    for multiplier, shift in ((0x7FEB352D, 15), (0x046CA68B, 13)):
        h = (h ^ (h >> shift)) * multiplier
    return (h ^ (h >> 16)) & 0x7FFFFFFF
