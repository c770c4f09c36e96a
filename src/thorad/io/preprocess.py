"""From an image's own grid to the model's square grid, and back.

Shapes: H, W the image's own grid; S the model's side (`size`); side = max(H, W) of the square in between.
"""

import hashlib
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from thorad.io.intensity import scale


@dataclass(frozen=True)
class Placement:
    """Where an image lies in the square that the model sees; all in px."""

    height: int
    width: int
    side: int
    """Of the square, on the image's own pixel size: max(height, width)."""
    top: int
    left: int
    """Rows and columns of zeros before the image."""
    size: int
    """Side of the model's grid, that the square is resized to."""

    @property
    def inside(self) -> tuple[slice, slice]:
        """The image's rows and columns in the square."""
        return slice(self.top, self.top + self.height), slice(self.left, self.left + self.width)


def place(height: int, width: int, size: int) -> Placement:
    """Centre an image in the smallest square around it; an odd row or column of padding goes behind it."""
    side = max(height, width)
    return Placement(height, width, side, (side - height) // 2, (side - width) // 2, size)


def to_model_input(pixels: NDArray[Any], size: int = 128) -> tuple[torch.Tensor, Placement]:
    """Scale (H, W) finite pixels by their own 98th percentile and bring them `to_model_grid`.

    Raises:
        ThoradError: as `scale`.
    """
    return to_model_grid(scale(pixels), size)


def to_model_grid(scaled: NDArray[np.float32], size: int = 128) -> tuple[torch.Tensor, Placement]:
    """Pad (H, W) pixels in [0, 1] to a square with zeros, and resize it.

    Returns:
        (1, S, S) float32 in [0, 1], and the placement that `to_input_grid` needs to come back.
    """
    placement = place(scaled.shape[0], scaled.shape[1], size)
    square = torch.zeros(1, 1, placement.side, placement.side)
    square[0, 0][placement.inside] = torch.from_numpy(scaled)
    resized = F.interpolate(square, size=(size, size), mode="bilinear", antialias=True, align_corners=False)
    return resized[0].clamp(0, 1), placement


def digest_of(pixels: torch.Tensor) -> str:
    """What tells an image on a model's grid, (1, S, S) in [0, 1], from others: 16 hexadecimal digits of a sha256.

    Of sixteen grey levels: machines resize with other last digits, which hardly ever cross from one level to another.
    """
    return hashlib.sha256((pixels * 15).round().byte().numpy().tobytes()).hexdigest()[:16]


def to_input_grid(map: torch.Tensor | NDArray[Any], placement: Placement) -> NDArray[np.float32]:
    """Bring a map of any range, (S, S), to the image's own grid, (H, W): resize to the square, crop the padding."""
    values = torch.as_tensor(map, dtype=torch.float32).detach().cpu()
    if values.shape != (placement.size, placement.size):
        raise ValueError(f"expected a map of shape {(placement.size, placement.size)}, found {tuple(values.shape)}")
    side = (placement.side, placement.side)
    square = F.interpolate(values[None, None], size=side, mode="bilinear", antialias=True, align_corners=False)
    return np.ascontiguousarray(square[0, 0][placement.inside].numpy())


def mask_to_model_grid(mask: NDArray[np.bool_], size: int) -> NDArray[np.bool_]:
    """Bring a mask, (H, W), to the model's grid, (S, S): a pixel belongs to it if more than half of its area does.

    It may be empty for a lesion thinner than a pixel there. Exact for every size: areas are counted in whole units of
    1 / (side * S), so that a half is a half.
    """
    placement = place(mask.shape[0], mask.shape[1], size)
    side = placement.side
    rows, columns = placement.inside
    # (S, side): length shared by output pixel i and input pixel j, in 1 / (side * S) of the whole.
    outputs, inputs = np.arange(size)[:, None] * side, np.arange(side)[None, :] * size
    shared = np.minimum(outputs + side, inputs + size) - np.maximum(outputs, inputs)
    overlap = np.maximum(shared, 0).astype(np.float64)
    covered = overlap[:, rows] @ mask.astype(np.float64) @ overlap[:, columns].T
    return np.asarray(2 * covered > side**2)
