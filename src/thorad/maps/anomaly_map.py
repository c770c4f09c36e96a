"""The anomaly map m(x, x_rec) of THOR (Bercea et al., MICCAI 2024, arXiv:2403.08464) and what is made of such maps.

Shapes: every map is (B, 1, H, W); no function mixes two images of a batch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

WINDOW_AT_128 = 13
"""Window of the guidance mask's morphology in px, for a map 128 px high; it scales with the map."""


@dataclass(frozen=True)
class AnomalyMap:
    """m(x, x_rec) = |x - x_rec| * blur(S(x, x_rec)): the residual, kept where the two also look different."""

    perceptual: Callable[[Tensor, Tensor], Tensor]
    """S: two (B, 1, H, W) in [-1, 1] -> (B, 1, H, W) >= 0; normally a `PerceptualDistance`."""

    blur_sigma: float = 2.0
    """Standard deviation in px of the Gaussian that smooths S, for its taps are coarse; 0 leaves S as it is."""

    def __call__(self, image: Tensor, reconstruction: Tensor) -> Tensor:
        """The map of an image against its reconstruction, both (B, 1, H, W) in [-1, 1]: (B, 1, H, W) >= 0.

        The residual is on the [0, 1] scale. Nothing is normalised by the image: maps of different images compare.
        """
        perceptual = self.perceptual(image, reconstruction)
        with torch.autocast(image.device.type, enabled=False):
            perceptual = gaussian_blur(perceptual, self.blur_sigma)
        return residual(image, reconstruction) * perceptual


def residual(image: Tensor, reconstruction: Tensor) -> Tensor:
    """|x - x_rec| on the [0, 1] scale, of two images in [-1, 1]."""
    return (image - reconstruction).abs() / 2


def gaussian_blur(maps: Tensor, sigma: float) -> Tensor:
    """Blur the two image axes, never the batch: SciPy's `gaussian_filter(mode="reflect")`, cut at 4 `sigma` (px).

    A `sigma` of 0 changes nothing.
    """
    if not sigma:
        return maps
    radius = int(4 * sigma + 0.5)
    offsets = torch.arange(-radius, radius + 1, dtype=maps.dtype, device=maps.device)
    kernel = torch.exp(-0.5 * (offsets / sigma) ** 2)
    kernel = kernel / kernel.sum()
    height, width = maps.shape[-2:]
    flat = maps.reshape(-1, 1, height, width)
    flat = F.conv2d(flat[:, :, _mirrored(height, radius, maps.device), :], kernel.view(1, 1, -1, 1))
    flat = F.conv2d(flat[:, :, :, _mirrored(width, radius, maps.device)], kernel.view(1, 1, 1, -1))
    return flat.reshape(maps.shape)


def close_and_dilate(maps: Tensor, window: int) -> Tensor:
    """cd(m): grey closing, then grey dilation, each with a flat square of `window` px (odd).

    Equal to SciPy's `grey_dilation(grey_closing(m))` in its default border mode "reflect", up to the border: beyond
    it a maximum or minimum over a centred flat window finds only pixels which it holds already, so that "reflect" and
    "nothing out there" are the same.

    Raises:
        ValueError: `window` is even or not positive.
    """
    if window < 1 or window % 2 == 0:
        raise ValueError(f"window is {window}, expected a positive odd number of pixels")
    closed = -_dilate(-_dilate(maps, window), window)
    return _dilate(closed, window)


def guidance_mask(maps: Tensor, window: int | None = None) -> Tensor:
    """Where harmonisation keeps the reconstruction (1) and where it takes the image back (0): cd(m scaled to [0, 1]).

    Args:
        maps: (B, 1, H, W). Each image is scaled by its own minimum and maximum; a constant map gives 0.
        window: of the closing and the dilation in px, odd; default: 13 at a height of 128 px, scaled with the height
            to the nearest odd number.

    Returns:
        (B, 1, H, W) in [0, 1].
    """
    if window is None:
        window = 2 * int(WINDOW_AT_128 * maps.shape[-2] / 128 / 2) + 1
    low = maps.amin(dim=(1, 2, 3), keepdim=True)  # (B, 1, 1, 1)
    span = maps.amax(dim=(1, 2, 3), keepdim=True) - low
    scaled = (maps - low) / torch.where(span > 0, span, 1.0)
    return close_and_dilate(scaled, window)


def harmonic_mean(maps: Sequence[Tensor]) -> Tensor:
    """Pixel by pixel n / (1/m_1 + ... + 1/m_n) of n maps >= 0: large only where all are large, 0 where any is 0.

    No epsilon: 1/0 is infinite and n over infinity is 0, which is the harmonic mean's limit.

    Raises:
        ValueError: `maps` is empty.
    """
    if not maps:
        raise ValueError("the harmonic mean of no maps is undefined")
    return len(maps) / torch.stack(list(maps)).reciprocal().sum(dim=0)


def _dilate(maps: Tensor, window: int) -> Tensor:
    """Grey dilation: a square's maximum is the maximum along one side of the maxima along the other."""
    half = window // 2
    maps = F.max_pool2d(maps, (window, 1), stride=1, padding=(half, 0))
    return F.max_pool2d(maps, (1, window), stride=1, padding=(0, half))


def _mirrored(length: int, radius: int, device: torch.device) -> Tensor:
    """Indices of an axis continued by `radius` on both sides as in (c b a | a b c | c b a), however short it is."""
    index = torch.arange(-radius, length + radius, device=device) % (2 * length)
    return torch.minimum(index, 2 * length - 1 - index)
