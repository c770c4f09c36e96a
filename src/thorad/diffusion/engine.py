"""What runs a network: the seam between a method's calls and the library that computes them.

An engine is a callable `engine(x_t, t, kind) -> eps`:

- ``x_t``: (B, 1, S, S) float32, on the engine's device.
- ``t``: (B,) timesteps, integer; ``kind``: (B,) indices of the recipe's kinds of noise, integer; on the same device.
- ``eps``: what the network predicts, (B, 1, S, S) float32, there too.

It is made by `make(network, *, size, device, full_precision) -> Engine` (`thorad.diffusion.ENGINES`), and may be called
by several threads at once.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn


class Engine(Protocol):
    """A network that is ready to be called; see the module's head."""

    @property
    def precision(self) -> str:
        """What it computes in: "bfloat16" or "float32"."""

    def __call__(self, x_t: Tensor, t: Tensor, kind: Tensor) -> Tensor:
        """What the network predicts."""


@dataclass(frozen=True)
class TorchEngine:
    """PyTorch itself, under autocast where the device is fast at a lower precision."""

    network: nn.Module
    device: torch.device
    dtype: torch.dtype

    @property
    def precision(self) -> str:
        """What it computes in."""
        return str(self.dtype).removeprefix("torch.")

    def __call__(self, x_t: Tensor, t: Tensor, kind: Tensor) -> Tensor:
        """What the network predicts."""
        with torch.autocast(self.device.type, dtype=self.dtype, enabled=self.dtype != torch.float32):
            predicted: Tensor = self.network(x_t, t, kind)
        return predicted


def torch_engine(network: nn.Module, *, size: int, device: torch.device, full_precision: bool) -> TorchEngine:
    """Run a network with PyTorch.

    Args:
        network: called as `network(x_t, t, kind)`.
        size: side S of its images, px; any here.
        device: where it runs.
        full_precision: float32 even where the device is faster at bfloat16.
    """
    dtype = torch.float32 if full_precision else fast_precision(device)
    return TorchEngine(network.to(device).requires_grad_(False), device, dtype)


def fast_precision(device: torch.device) -> torch.dtype:
    """bfloat16 where the hardware multiplies it faster than float32, else float32.

    On processors without bfloat16 instructions autocast is several times slower than float32.
    """
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float32
    if device.type == "cpu":
        capability = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
        return torch.bfloat16 if capability else torch.float32
    return torch.float32
