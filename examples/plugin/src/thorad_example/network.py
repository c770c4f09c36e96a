"""A plain convolutional network: the timestep and the kind of noise are a vector that is added to its channels."""

from typing import Annotated, Literal

from pydantic import Field
from torch import Tensor, nn

from thorad.recipe import NetworkSection


class ConvSection(NetworkSection):
    """What a recipe says under [network] where kind = "conv"."""

    kind: Literal["conv"] = "conv"
    width: Annotated[int, Field(gt=0)] = 32
    """Channels."""
    layers: Annotated[int, Field(gt=0)] = 4

    def build(self, noise_kinds: int) -> nn.Module:
        """The network with fresh weights."""
        return ConvNet(self.width, self.layers, noise_kinds)


class ConvNet(nn.Module):
    """`network(x_t, t, kind)` -> the noise in x_t, (B, 1, S, S)."""

    def __init__(self, width: int, layers: int, noise_kinds: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, width, 3, padding=1)
        self.time = nn.Sequential(nn.Linear(1, width), nn.SiLU(), nn.Linear(width, width))
        self.kind = nn.Embedding(noise_kinds, width)
        self.layers = nn.ModuleList(nn.Conv2d(width, width, 3, padding=2, dilation=2) for _ in range(layers))
        self.last = nn.Conv2d(width, 1, 3, padding=1)

    def forward(self, x_t: Tensor, t: Tensor, kind: Tensor) -> Tensor:
        """x_t (B, 1, S, S); t and kind (B,)."""
        condition = self.time(t[:, None] / 1000) + self.kind(kind)  # (B, width)
        features = self.first(x_t)
        for layer in self.layers:
            features = features + layer(nn.functional.silu(features + condition[:, :, None, None]))
        predicted: Tensor = self.last(nn.functional.silu(features))
        return predicted.float()
