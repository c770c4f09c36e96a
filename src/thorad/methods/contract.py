"""What every method takes and gives, and the one entry that holds all facts about it.

A method is one function that reads like its paper:

    restore(denoise, image, schedule, noise, compare, *, options, on_step=None) -> Restoration

- ``denoise(x_t, t)``: the noise in x_t, (B, 1, H, W), t an int; any callable, so that a closed form can stand in.
- ``image``: (B, 1, H, W) in [-1, 1].
- ``schedule``: `thorad.diffusion.schedule.Schedule`.
- ``noise()``: fresh noise (B, 1, H, W), from one generator for each image.
- ``compare(image, reconstruction)``: the map between two images, (B, 1, H, W) >= 0.
- ``options``: the method's own frozen dataclass.
- ``on_step(Step)``: called with every intermediate picture; None is free.

Its entry is a `Method`, beside the function in the same file; `thorad.methods.METHODS` names them all.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, Protocol

from thorad.errors import ThoradError

if TYPE_CHECKING:
    from torch import Tensor

Denoise = Callable[["Tensor", int], "Tensor"]
Noise = Callable[[], "Tensor"]
Compare = Callable[["Tensor", "Tensor"], "Tensor"]


class Judgement(Protocol):
    """What a critic says of images, (B, 1, H, W) each."""

    @property
    def probability(self) -> Tensor:
        """That a pixel is not healthy, in [0, 1]."""

    @property
    def healthy(self) -> Tensor:
        """In [0, 1]: the image without what is not healthy."""


Judge = Callable[["Tensor"], Judgement]
"""A model's critic: of (B, 1, H, W) in [0, 1]."""


@dataclass(frozen=True)
class Restoration:
    """What a method makes of a batch of images."""

    anomaly_map: Tensor
    """(B, 1, H, W) >= 0: how far each pixel is from healthy."""
    pseudo_healthy: Tensor
    """(B, 1, H, W) in [-1, 1]: the image as the healthy anatomy would have it."""
    draw_maps: tuple[Tensor, ...] = ()
    """(B, 1, H, W) each: the maps of several draws of the noise, or of parts of them, where there were several."""


@dataclass(frozen=True)
class Step:
    """One intermediate picture of a restoration."""

    t: int
    """Timestep."""
    clean: Tensor
    """(B, 1, H, W) in [-1, 1]: the clean estimate at t, before harmonisation."""
    anomaly_map: Tensor | None
    """(B, 1, H, W), at a harmonised step only."""


OnStep = Callable[[Step], None]


class Options(Protocol):
    """A method's options: a frozen dataclass of its own, whose values decide the map."""

    def network_calls(self) -> int:
        """Calls of the network for one image."""


@dataclass(frozen=True)
class Request:
    """What a user asked of a method and what the model has to offer: all that the method's options are made of."""

    method: str
    """The method's name, for messages."""
    noise: str | None
    """Kind of noise; None for a method without."""
    noise_level: int | None
    """Timestep T that images are noised to: as asked, else as `Method.noise_levels` says; None: no noise."""
    steps: int | None
    """Timesteps visited, evenly spaced; None: all."""
    finish: bool
    """Whether to go on below the last harmonised timestep, for the sake of the pseudo-healthy image."""
    size: int
    """Side S of the model's grid, px."""
    patch_noise: int
    """Side in px of the cells that the model's training noised; 0: whole images."""
    statistics: tuple[Tensor, Tensor] | None = None
    """Mean and standard deviation of the training images, (1, S, S) each on the [-1, 1] scale; None where the method
    does not need them."""
    region: Tensor | None = None
    """(S, S) bool: where the model looks for anomalies; None where statistics is."""
    judge: Judge | None = None
    """The model's critic; None where the method does not need it."""

    def level_and_harmonise_at(self, level: int, harmonise_at: tuple[int, ...]) -> tuple[int, tuple[int, ...]]:
        """The noise level, and those of a method's harmonised timesteps that are not above it.

        Args:
            level: the method's own noise level.
            harmonise_at: the method's own harmonised timesteps.

        Raises:
            ThoradError: none of them is left.
        """
        if self.noise_level is None:
            return level, harmonise_at
        kept = tuple(t for t in harmonise_at if t <= self.noise_level)
        if not kept:
            raise ThoradError(
                f"the noise level is {self.noise_level}, but {self.method} needs {min(harmonise_at)} or more."
            )
        return self.noise_level, kept


@dataclass(frozen=True)
class Method:
    """All facts about a method; everything that lists, explains, runs or compares methods reads them here."""

    name: str
    """What users ask for."""
    title: str
    """How tables and papers write it."""
    blurb: str
    """One line for people who choose a method."""
    paper: str
    """Authors, venue and year, or where else it comes from; empty where nobody claims it."""
    restore: Callable[..., Restoration]
    """The method itself; see the module's head."""
    options: Callable[[Request], Options]
    """Its options for a request.

    Raises:
        ThoradError: what was asked for is not possible.
    """
    noise_levels: Mapping[str, int] = field(default_factory=dict)
    """{kind of noise: its own noise level T}, the default kind first; empty for a method without a network."""
    default_steps: Mapping[str, int] = field(default_factory=dict)
    """{kind of noise: timesteps visited by default}, few; that so few cost no more than a Dice point was measured
    for THOR with simplex noise alone (docs/results.md). Empty where there are no steps to choose."""
    compare: Literal["residual", "perceptual", "anomaly_map", "published_map"] = "residual"
    """What it compares two images with: their absolute difference, LPIPS, THOR's product of the two, or what the
    published code makes of that product."""
    overlay_maximum: float = 0.5
    """Map value at which an overlay's colours end; one value for all cases, so that pictures compare."""
    own_step_maximum: float | None = None
    """The same for the maps of its steps, where they are on another scale than the result."""
    patched: bool = False
    """Whether its network learned to restore a box of an image that is clean elsewhere (`patch_noise`)."""
    statistics: bool = False
    """Whether it needs the training images' mean and standard deviation, which imported models lack."""
    critic: bool = False
    """Whether it needs the model's critic, which `thorad train-critic` makes."""
    own_threshold: float | None = None
    """Map value above which a mask begins where there is no calibration; None where the map's values mean nothing by
    themselves."""
    draws_itself: bool = False
    """Whether it draws the noise several times within one map, and hands out the maps of its parts
    (`Restoration.draw_maps`)."""
    can_finish: bool = False
    """Whether its chain can go on below the last harmonised timestep."""
    published: bool = False
    """Whether it follows the published implementation, accidents included: in float32, at all timesteps, with the mean
    of the whole map as the score."""
    threshold_from: str = ""
    """The method whose calibration of the model, where there is one, gives its own option `threshold`: what 5 % of the
    healthy pixels exceed."""
    one_draw: bool = False
    """Whether one draw of the noise is what it is about, though it could be run with several."""
    compared: bool = True
    """Whether an evaluation that names no methods compares it."""

    @property
    def noises(self) -> tuple[str, ...]:
        """Kinds of noise that it works with, the default first."""
        return tuple(self.noise_levels)

    @property
    def default_draws(self) -> int:
        """How often a detector runs it, each time with other noise, where nobody asks for a number."""
        return 2 if self.noises and not (self.draws_itself or self.published or self.one_draw) else 1

    @property
    def perceptual(self) -> bool:
        """Whether it needs LPIPS."""
        return self.compare != "residual"

    @property
    def step_maximum(self) -> float:
        """Map value at which the colours of a step's overlay end."""
        return self.overlay_maximum if self.own_step_maximum is None else self.own_step_maximum
