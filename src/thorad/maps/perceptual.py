"""LPIPS, the learned perceptual distance of Zhang et al., CVPR 2018 (arXiv:1801.03924), as a map.

Shapes: B images, C channels (1 grey or 3 RGB), (H, W) the image, (h_k, w_k) and c_k the size and channels of tap k.

    d(a, b) = sum over taps k of  upsample( sum_c  w_kc * (a_kc / |a_k| - b_kc / |b_k|)^2 )

`a_k`, `b_k` are the activations of SqueezeNet 1.1 (arXiv:1602.07360) at its seven taps, `w_k` the learned heads (v0.1).
"""

from __future__ import annotations

import pickle
from itertools import pairwise
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

from thorad.errors import ThoradError

BUNDLED_WEIGHTS = Path(__file__).parents[1] / "assets" / "perceptual" / "squeezenet-lpips.safetensors"

Features = tuple[Tensor, ...]
"""One (B, c_k, h_k, w_k) tensor a tap, each pixel's channels scaled to unit length."""

_CHANNELS = (64, 128, 256, 384, 384, 512, 512)
_TAP_ENDS = (2, 5, 8, 10, 11, 12, 13)


class Fire(nn.Module):
    """SqueezeNet's block: a 1x1 squeeze, then 1x1 and 3x3 expansions side by side."""

    def __init__(self, inputs: int, squeezed: int, expanded: int) -> None:
        """Make the block: `inputs` channels -> `squeezed` -> 2 * `expanded`."""
        super().__init__()
        self.squeeze = nn.Conv2d(inputs, squeezed, kernel_size=1)
        self.expand1x1 = nn.Conv2d(squeezed, expanded, kernel_size=1)
        self.expand3x3 = nn.Conv2d(squeezed, expanded, kernel_size=3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, inputs, h, w) -> (B, 2 * expanded, h, w)."""
        x = F.relu(self.squeeze(x), inplace=True)
        return torch.cat([F.relu(self.expand1x1(x)), F.relu(self.expand3x3(x))], dim=1)


def squeezenet_features() -> nn.Sequential:
    """SqueezeNet 1.1 without its classifier; layer numbers and parameter names are torchvision's `features`."""

    def pool() -> nn.MaxPool2d:
        return nn.MaxPool2d(kernel_size=3, stride=2, ceil_mode=True)

    return nn.Sequential(
        nn.Conv2d(3, 64, kernel_size=3, stride=2),
        nn.ReLU(),
        pool(),
        Fire(64, 16, 64),
        Fire(128, 16, 64),
        pool(),
        Fire(128, 32, 128),
        Fire(256, 32, 128),
        pool(),
        Fire(256, 48, 192),
        Fire(384, 48, 192),
        Fire(384, 64, 256),
        Fire(512, 64, 256),
    )


class PerceptualDistance(nn.Module):
    """Spatial LPIPS on SqueezeNet 1.1.

    It always computes in float32, also inside autocast: the distance of two near images is a small difference of large
    numbers.
    """

    shift: Tensor
    scale: Tensor

    def __init__(self) -> None:
        """Make the module with random weights; `load_perceptual_distance` gives the trained one."""
        super().__init__()
        self.features_network = squeezenet_features()
        self.heads = nn.ModuleList(nn.Conv2d(channels, 1, kernel_size=1, bias=False) for channels in _CHANNELS)
        # LPIPS's "scaling layer": from [-1, 1] to ImageNet's mean and standard deviation, R G B.
        self.register_buffer("shift", torch.tensor([-0.030, -0.088, -0.188]).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("scale", torch.tensor([0.458, 0.448, 0.450]).view(1, 3, 1, 1), persistent=False)

    def weights(self) -> dict[str, Tensor]:
        """All that was learned, under the names of a weight file: `features.*` and `heads.*`."""
        features = {f"features.{name}": tensor for name, tensor in self.features_network.state_dict().items()}
        return features | {f"heads.{name}": tensor for name, tensor in self.heads.state_dict().items()}

    def features(self, image: Tensor) -> Features:
        """The seven unit-length feature maps of `image`, (B, 1, H, W) or (B, 3, H, W) in [-1, 1], H and W >= 17 px."""
        with torch.autocast(image.device.type, enabled=False):
            x = (image.float() - self.shift) / self.scale  # (B, 3, H, W), also of a grey image
            taps = []
            for start, end in pairwise((0, *_TAP_ENDS)):
                x = self.features_network[start:end](x)
                taps.append(x / (torch.linalg.vector_norm(x, dim=1, keepdim=True) + 1e-10))
        return tuple(taps)

    def distance(self, a: Features, b: Features, size: tuple[int, int]) -> Tensor:
        """Compare what `features` made of two images of `size` (H, W): (B, 1, H, W) >= 0."""
        with torch.autocast(a[0].device.type, enabled=False):
            maps = [
                F.interpolate(head((tap_a - tap_b).square()), size=size, mode="bilinear", align_corners=False)
                for head, tap_a, tap_b in zip(self.heads, a, b, strict=True)
            ]
        return torch.stack(maps).sum(dim=0)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """Compare two images pixel by pixel.

        Args:
            a: (B, 1, H, W) or (B, 3, H, W) in [-1, 1]; H and W at least 17 px.
            b: the same shape and range. The order does not matter.

        Returns:
            (B, 1, H, W), >= 0, exactly 0 where all features agree. Its mean over H and W is the usual LPIPS number up
            to the interpolation of the taps.
        """
        return self.distance(self.features(a), self.features(b), (a.shape[-2], a.shape[-1]))


def load_perceptual_distance(weights: Path | None = None) -> PerceptualDistance:
    """The trained LPIPS, frozen, on the CPU, in float32.

    Args:
        weights: a SqueezeNet 1.1 ImageNet state dict in torchvision's names (`squeezenet1_1-*.pth`, or .safetensors),
            to compute with the weights that torchmetrics and lpips use. Default: the bundled ones. The heads are
            the bundled ones, which are lpips' v0.1, unless the file has its own (`heads.*`: an imported model's).

    Raises:
        ThoradError: the file is missing, unreadable, or not SqueezeNet 1.1's.
    """
    with torch.random.fork_rng(devices=[]):  # the first, random weights must not move the caller's generator
        module = PerceptualDistance()
    bundled = load_file(BUNDLED_WEIGHTS)
    given = bundled if weights is None else _read(weights)
    state = {name: tensor for name, tensor in bundled.items() if name.startswith("heads.")} | given
    expected = {name: tensor for name, tensor in module.weights().items() if "features." in name or name in given}
    unfit = [name for name, tensor in expected.items() if name not in state or state[name].shape != tensor.shape]
    if unfit:
        found = f"has shape {tuple(state[unfit[0]].shape)}" if unfit[0] in state else "is missing"
        raise ThoradError(
            f"{weights}: not the weights of torchvision's squeezenet1_1: {len(unfit)} of {len(expected)} tensors don't "
            f"fit, first {unfit[0]}, which {found}, expected {tuple(expected[unfit[0]].shape)}. "
            "Give a state dict of squeezenet1_1, or leave the option out to use the bundled weights."
        )
    module.features_network.load_state_dict(_part({name: state[name] for name in expected}, "features."))
    module.heads.load_state_dict(_part(state, "heads."))
    # Channels last is 2 to 3 times faster on the CPU, most of all in the pooling. torch's types don't know the option.
    module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return module.eval().requires_grad_(False)


def _part(state: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}


def _read(path: Path) -> dict[str, Tensor]:
    """A state dict from the user's file; nothing in the file is ever executed."""
    advice = "Give a state dict of torchvision's squeezenet1_1 (.pth or .safetensors)."
    if not path.is_file():
        raise ThoradError(f"{path}: no such file. {advice}")
    try:
        state = load_file(path) if path.suffix == ".safetensors" else torch.load(path, "cpu", weights_only=True)
    except (SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError) as error:
        raise ThoradError(f"{path}: can't be read as weights ({str(error).splitlines()[0]}). {advice}") from error
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise ThoradError(f"{path}: holds a {type(state).__name__}, expected a state dict of tensors by name. {advice}")
    return state
