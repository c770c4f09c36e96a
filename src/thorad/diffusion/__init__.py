"""The diffusion process: schedule, noise, network and the engine that runs it. Tensors in, tensors out: no files.

Shapes: B images, one grey channel, height H and width W: ``(B, 1, H, W)``. Values: images in [-1, 1].

Importing this package is cheap: noises and engines are loaded when they are asked for.
"""

from collections.abc import Callable
from typing import Any, Final

from thorad.registry import Registry

FIRST_WAVELENGTH: Final = 64.0
"""px of the published 128, of simplex noise; a recipe's `simplex_wavelength` scales it with the image."""

NOISES: Final[Registry[Callable[..., Any]]] = Registry(
    "thorad.noises",
    "noise",
    None,
    {"gaussian": "thorad.diffusion.noise:gaussian_noise", "simplex": "thorad.diffusion.noise:simplex_noise"},
)
"""Kind of noise -> its function, `(generators, height, width, device) -> (B, 1, height, width)`: one generator and one
map for each image, and every random number from that generator. Entry-point group `thorad.noises`."""

ENGINES: Final[Registry[Callable[..., Any]]] = Registry(
    "thorad.engines",
    "engine",
    None,
    {"torch": "thorad.diffusion.engine:torch_engine", "openvino": "thorad.diffusion.openvino:openvino_engine"},
)
"""Name -> what makes an engine of a network, see `thorad.diffusion.engine`. Entry-point group `thorad.engines`."""
