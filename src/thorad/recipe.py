"""A recipe: everything that makes a model, read from TOML. An unknown key is an error.

The bundled recipes are in ``assets/recipes``; a trained model's folder carries the recipe that made it.
"""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Mapping
from functools import partial
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal, TypeGuard

import tomli_w
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SerializeAsAny,
    ValidationError,
    model_validator,
)

from thorad.diffusion import FIRST_WAVELENGTH, NOISES
from thorad.errors import ThoradError
from thorad.registry import Registry

if TYPE_CHECKING:
    from torch import Tensor, nn


def _known_noise(kind: str) -> str:
    if kind not in NOISES:
        raise ValueError(f"unknown noise {kind!r}. Known: {', '.join(NOISES)}")
    return kind


NoiseKind = Annotated[str, AfterValidator(_known_noise)]
InputRange = Literal["-1..1", "0..1"]
Positive = Annotated[int, Field(gt=0)]
UpTo16 = Annotated[int, Field(gt=0, le=16)]
Width = Annotated[int, Field(gt=0, le=2048)]
Share = Annotated[float, Field(ge=0, le=1)]
Above0 = Annotated[float, Field(gt=0, allow_inf_nan=False)]
From0 = Annotated[float, Field(ge=0, allow_inf_nan=False)]
From0Integer = Annotated[int, Field(ge=0)]

LARGEST_RECIPE: Final = 2**14
"""characters of its TOML text."""

LARGEST_PICTURE: Final = 2**28
"""Numbers in the widest picture within a network, of one image: 1 GiB."""

LARGEST_ATTENTION: Final = 256
"""px at each side of a level with self-attention: its cost grows with the fourth power."""


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ImageSection(_Section):
    """What the model sees of an image."""

    size: Annotated[int, Field(gt=0, le=4096)] = 128
    """Side of the square that the model works on, px."""
    region: str = ""
    """Where anomalies are looked for: the name of a bundled region, or empty for the whole image."""
    input_range: InputRange = "-1..1"
    """The scale of the images that the network was trained on; other than -1..1 only in imported models."""


class VolumeSection(_Section):
    """Which part of a volume the model knows."""

    template: Literal["", "mni152-2009a"] = ""
    """The space that a volume is registered to before its slices are cut; empty: the model isn't for volumes."""
    skull: bool = True
    """Whether the training images showed the whole head; False: the brain alone."""
    axial_slices: tuple[Annotated[int, Field(ge=0, le=9999)], Annotated[int, Field(ge=0, le=9999)]] = (95, 95)
    """First and last index k, in the template's grid, of the axial slices that it was trained on."""

    @model_validator(mode="after")
    def _slices_ascend(self) -> VolumeSection:
        if self.axial_slices[0] > self.axial_slices[1]:
            raise ValueError(f"axial_slices {self.axial_slices} must be the first and the last index")
        return self


class DomainSection(_Section):
    """What a scan must be for the model to know it; what is empty is not asked for (`thorad.domain`)."""

    modality: str = ""
    """DICOM's term, such as MR or CT; DX stands for all plain X-rays."""
    weighting: Literal["", "T1w"] = ""
    """Of MR."""
    contrast_agent: Literal["any", "none"] = "any"
    """Whether scans may be made with one."""
    body_parts: tuple[str, ...] = ()
    """DICOM's terms; a scan's must contain one of them."""
    picture: str = ""
    """What the pictures show, in words, for messages: "an axial T1w slice, anterior up"."""


class NetworkSection(_Section):
    """What every kind of network says of itself; a kind of its own subclasses this and is named in `NETWORKS`."""

    kind: str

    @property
    def multiple(self) -> int:
        """Number of px that the image's side must be a multiple of."""
        return 1

    def why_too_large(self, size: int) -> str | None:
        """Why no memory would hold the network at work on an image of `size` px; None where one may."""
        return None

    def build(self, noise_kinds: int) -> nn.Module:
        """The network with fresh weights, called as `network(x_t, t, kind)` with x_t (B, 1, S, S), t and kind (B,).

        It gives (B, 1, S, S) float32: the noise in x_t, or the clean image where the recipe says so.

        Args:
            noise_kinds: how many kinds of noise it is told apart.
        """
        raise NotImplementedError


class UNetSection(NetworkSection):
    """`thorad.diffusion.network.Denoiser`."""

    kind: Literal["unet"] = "unet"
    channels: Annotated[tuple[Width, ...], Field(min_length=1, max_length=8)] = (128, 256, 256)
    """Width of each level; multiples of 32."""
    attention: Annotated[tuple[bool, ...], Field(max_length=8)] = (False, True, True)
    """Whether each level has self-attention."""
    residual_blocks: UpTo16 = 1
    """Residual blocks a level."""
    head_channels: Width = 256
    """Channels of an attention head; divides the channels of every level with attention."""
    patch: UpTo16 = 1
    """Side in px of the blocks that the image is folded by (space to depth): about patch² less cost; 1 does not
    fold."""

    @property
    def multiple(self) -> int:
        """Patch * 2^(levels - 1)."""
        return int(self.patch * 2 ** (len(self.channels) - 1))

    def why_too_large(self, size: int) -> str | None:
        """By the widest of its pictures, and by the largest with self-attention."""
        sides = [size // self.patch // 2**level for level in range(len(self.channels))]
        widest = max(width * side**2 for width, side in zip(self.channels, sides, strict=True))
        if widest > LARGEST_PICTURE:
            return f"a level of {widest:.2g} numbers for each image; expected {LARGEST_PICTURE:.2g} at most"
        attending = max((side for side, attends in zip(sides, self.attention, strict=True) if attends), default=0)
        if attending > LARGEST_ATTENTION:
            return f"self-attention over {attending} x {attending} px; expected sides of {LARGEST_ATTENTION} at most"
        return None

    def build(self, noise_kinds: int) -> nn.Module:
        """The denoiser with fresh weights (from torch's global generator: seed it before)."""
        from thorad.diffusion.network import Denoiser

        return Denoiser(**self.model_dump(exclude={"kind"}), noise_kinds=noise_kinds)

    @property
    def attending(self) -> list[int]:
        """Channels of what has self-attention: some levels, and the middle, as wide as the last of them."""
        levels = [width for width, attends in zip(self.channels, self.attention, strict=True) if attends]
        return [*levels, self.channels[-1]]

    @model_validator(mode="after")
    def _levels_agree(self) -> UNetSection:
        if len(self.channels) != len(self.attention):
            raise ValueError(f"{len(self.channels)} channels but {len(self.attention)} attention levels")
        if any(width % 32 for width in self.channels):
            raise ValueError(f"channels {self.channels} must be multiples of 32 (group normalisation)")
        if any(width % self.head_channels for width in self.attending):
            raise ValueError(
                f"head_channels {self.head_channels} must divide the channels of levels with attention, and of the "
                "last one, whose middle has it always"
            )
        if max(self.channels) < 64:
            # With one channel a group, normalisation cancels what tells the network the timestep and the noise.
            raise ValueError("at least one level needs 64 channels, or the network doesn't see the timestep")
        return self


NETWORKS: Final = Registry("thorad.networks", "network", type, {"unet": "thorad.recipe:UNetSection"})
"""Kind -> its `NetworkSection`; other packages add theirs under the entry-point group `thorad.networks`."""


def is_section(section: object) -> TypeGuard[type[NetworkSection]]:
    """Whether it is a kind of network: a `NetworkSection` with a `build` of its own."""
    return (
        isinstance(section, type) and issubclass(section, NetworkSection) and section.build is not NetworkSection.build
    )


def _network_of_kind(content: Any) -> Any:
    """The section of the kind that it names; recipes from before there were kinds are U-Nets."""
    if isinstance(content, NetworkSection):
        return content
    if not isinstance(content, Mapping):
        raise ValueError(f"found {type(content).__name__}, expected a section")
    content = {"kind": "unet", **content}
    kind = content["kind"]
    if not isinstance(kind, str) or kind not in NETWORKS:
        raise ValueError(f"unknown kind {kind!r}. Known: {', '.join(NETWORKS)}")
    section = NETWORKS[kind]
    if not is_section(section):
        raise ValueError(f"kind {kind!r} is {section.__name__}, which is no NetworkSection with a build of its own")
    try:
        return section.model_validate(content)
    except ValidationError as error:
        raise ValueError(_problems(error)) from error


class NoiseSection(_Section):
    """The noise that the network learns to see."""

    kinds: Annotated[tuple[NoiseKind, ...], Field(max_length=16)] = ("simplex",)
    """One network is told which of these kinds an image was noised with."""
    share: tuple[Share, ...] = (1.0,)
    """The share of the training images that gets each kind; sums to 1."""
    loss_weight: tuple[From0, ...] = (1.0,)
    """Weight of each kind's squared error. Simplex noise has a quarter of Gaussian noise's power."""
    timesteps: Annotated[int, Field(gt=0, le=100_000)] = 1000
    beta_start: Annotated[float, Field(gt=0, lt=1)] = 1e-4
    beta_end: Annotated[float, Field(gt=0, lt=1)] = 2e-2
    train_below: Positive = 1000
    """Only timesteps below this one are trained: restoration starts at 250 to 350."""
    train_from: From0Integer = 0
    """Lowest timestep that is trained. Restoration visits none below its last harmonised one."""
    timestep_power: Above0 = 1.0
    """Timesteps are train_from + (train_below - train_from) * u^power with u uniform: above 1, more of the low ones.
    The paper's is 1."""
    min_snr: From0 = 0.0
    """Gamma of min-SNR weighting (Hang et al. 2023, arXiv:2303.09556): the squared error of the noise is weighted by
    min(SNR, gamma) / SNR, so that timesteps with little left to restore count less. 0 weights all alike, as the paper.
    """
    simplex_wavelength: Above0 = 0.5
    """Longest wavelength of simplex noise, share of the image's side: 0.5 is the published 64 px of 128. In models that
    don't say it, it is 64 px (see `parse_recipe`)."""
    prediction: Literal["noise", "clean"] = "noise"
    """What the network predicts: the noise in its input, or the clean image. Squared error either way."""
    patch_noise: From0Integer = 0
    """Side in px of the cells of a grid; one cell, at random, is noised in each training image, the others stay clean
    as context, and the loss is the absolute error in that cell alone (pDDPM). 0 noises the whole image."""

    @property
    def trained_kinds(self) -> list[NoiseKind]:
        """The kinds that any training image gets: the network doesn't know those with a share of 0."""
        return [kind for kind, share in zip(self.kinds, self.share, strict=True) if share > 0]

    @model_validator(mode="after")
    def _kinds_agree(self) -> NoiseSection:
        if not len(self.kinds) == len(self.share) == len(self.loss_weight):
            raise ValueError("kinds, share and loss_weight must have the same length")
        if abs(sum(self.share) - 1) > 1e-6:
            raise ValueError(f"the shares sum to {sum(self.share)}, expected 1")
        if self.train_below > self.timesteps:
            raise ValueError(f"train_below {self.train_below} is above timesteps {self.timesteps}")
        if self.train_from >= self.train_below:
            raise ValueError(f"train_from {self.train_from} must be below train_below {self.train_below}")
        if self.min_snr and self.prediction != "noise":
            raise ValueError('min_snr weights the error of the noise: it goes with prediction = "noise"')
        return self


class AugmentationSection(_Section):
    """How training images are varied. Shape as in the paper; intensity for other scanners."""

    rotation: From0 = 10.0
    """Largest rotation, degrees."""
    shift: Share = 0.1
    """Largest shift, share of the image's side."""
    scale: Share = 0.1
    """Largest relative change of size."""
    flip: Share = 0.5
    """Probability of a left-right flip."""
    warp: From0 = 0.0
    """Standard deviation of a smooth displacement, share of half the image's side (imperfect registration)."""
    intensity: Share = 0.0
    """Probability of an intensity change: gamma, curve, bias field, contrast and noise by the numbers below."""
    gamma: From0 = 0.25
    """Largest absolute logarithm of gamma."""
    curve: Share = 0.0
    """Largest weight of a random rising curve of brightness, against brightness as it is: tissues' contrast in another
    sequence."""
    bias_field: From0 = 0.12
    """Standard deviation of the log of a smooth factor."""
    contrast: Share = 0.1
    """Largest relative change of brightness."""
    noise: From0 = 0.025
    """Largest standard deviation of added Gaussian noise, on the [0, 1] scale."""


class TrainingSection(_Section):
    """How the network is fitted."""

    steps: Positive = 45000
    batch_size: Positive = 16
    learning_rate: Above0 = 1e-4
    warm_up: From0Integer = 0
    """Steps over which the learning rate rises from 0."""
    schedule: Literal["constant", "cosine"] = "constant"
    """What the learning rate does after the warm-up; cosine falls to 2 % at the last step."""
    weight_decay: From0 = 0.0
    ema: Share = 0.999
    """Decay of the exponential moving average of the weights, which is what is kept."""
    gradient_norm: Above0 = 1.0
    precision: Literal["auto", "32-true", "bf16-mixed"] = "auto"
    """auto: bfloat16 where the hardware is fast at it."""
    validate_every: Positive = 500
    """Steps between validations (loss on the validation images and a picture of reconstructions)."""
    keep: Literal["last", "best"] = "last"
    """Which weights the model gets: those of the last step, or those of the validation with the highest average
    precision on made-up anomalies (`thorad.training.average_precision`). Without validation images it's the last. A
    critic gets the last ones."""
    checkpoint_minutes: Above0 = 5.0
    seed: int = 0


class CriticSection(TrainingSection):
    """How the model's critic is fitted, by `thorad train-critic` (`thorad.critic`)."""

    channels: Annotated[tuple[Width, ...], Field(min_length=2, max_length=8)] = (16, 32, 64, 96, 128)
    """Width of each level of its networks."""
    networks: UpTo16 = 3
    """Networks that judge together. The k-th of n is fitted for (k + 1) / (n + 1) of the `steps`: a short training
    finds what is plain in any scanner's images, a long one what is small or bright (docs/attempts.md)."""
    augmentation: AugmentationSection = AugmentationSection(
        **{"rotation": 4, "shift": 0.03, "scale": 0.05, "warp": 0.02},
        **{"intensity": 0.85, "gamma": 0.45, "curve": 0.8, "bias_field": 0.35, "contrast": 0.2, "noise": 0.03},
    )
    steps: Positive = 7200
    """Of the last network."""
    learning_rate: Above0 = 2e-3
    warm_up: From0Integer = 100
    schedule: Literal["constant", "cosine"] = "cosine"
    weight_decay: From0 = 1e-4
    validate_every: Positive = 250

    @property
    def multiple(self) -> int:
        """Number of px that the image's side must be a multiple of."""
        return int(2 ** (len(self.channels) - 1))

    @property
    def steps_of_networks(self) -> tuple[int, ...]:
        """Steps of each network, at least one."""
        return tuple(max(1, self.steps * (number + 2) // (self.networks + 1)) for number in range(self.networks))


class Recipe(_Section):
    """Everything that makes a model."""

    name: str
    description: str = ""
    image: ImageSection = ImageSection()
    volume: VolumeSection = VolumeSection()
    domain: DomainSection = DomainSection()
    network: Annotated[SerializeAsAny[NetworkSection], BeforeValidator(_network_of_kind)] = UNetSection()
    noise: NoiseSection = NoiseSection()
    augmentation: AugmentationSection = AugmentationSection()
    training: TrainingSection = TrainingSection()
    critic: CriticSection = CriticSection()

    @model_validator(mode="after")
    def _size_fits(self) -> Recipe:
        multiple = self.network.multiple
        if self.image.size % multiple:
            raise ValueError(f"image.size {self.image.size} must be a multiple of {multiple}, as the network needs it")
        if why := self.network.why_too_large(self.image.size):
            raise ValueError(f"the network is too large for image.size {self.image.size}: {why}")
        return self

    @model_validator(mode="after")
    def _cells_divide(self) -> Recipe:
        cell = self.noise.patch_noise
        if cell and (self.image.size % cell or cell == self.image.size):
            raise ValueError(f"noise.patch_noise {cell} must divide image.size {self.image.size} into several cells")
        if cell and self.noise.prediction != "clean":
            raise ValueError('noise.patch_noise goes with noise.prediction = "clean", as in the paper (pDDPM)')
        return self

    def draw_noise(self, kind: str) -> Callable[..., Tensor]:
        """The function of `NOISES` that draws this kind of noise, as large as this recipe's images want it."""
        draw = NOISES[kind]
        if kind == "simplex":
            draw = partial(draw, wavelength=self.noise.simplex_wavelength * self.image.size)
        return draw

    def as_trained(self) -> Recipe:
        """Without the kinds of noise that the network has a place for and never saw: to be read."""
        noise = self.noise
        seen = [index for index, share in enumerate(noise.share) if share > 0]
        only = {
            name: tuple(getattr(noise, name)[index] for index in seen) for name in ("kinds", "share", "loss_weight")
        }
        return self.model_copy(update={"noise": noise.model_copy(update=only)})

    def to_toml(self) -> str:
        """The recipe as TOML text, every value written out."""
        return tomli_w.dumps(self.model_dump(mode="json"))


def bundled_recipes() -> list[str]:
    """Names of the recipes that come with thorad."""
    folder = resources.files("thorad") / "assets" / "recipes"
    return sorted(entry.name.removesuffix(".toml") for entry in folder.iterdir() if entry.name.endswith(".toml"))


def load_recipe(name_or_path: str | Path) -> Recipe:
    """Read a recipe by its bundled name or from a TOML file.

    Raises:
        ThoradError: unknown name, unreadable file, not TOML, unknown key or a value out of range.
    """
    path = Path(name_or_path)
    if path.suffix == ".toml":
        try:
            with path.open(encoding="utf-8") as file:
                text = file.read(LARGEST_RECIPE + 1)
        except (OSError, UnicodeDecodeError) as error:
            raise ThoradError(f"{path}: can't read this recipe ({error}). Expected a TOML text file.") from error
    elif str(name_or_path) in bundled_recipes():
        text = (resources.files("thorad") / "assets" / "recipes" / f"{name_or_path}.toml").read_text(encoding="utf-8")
    else:
        raise ThoradError(
            f"unknown recipe {str(name_or_path)!r}. Give a TOML file or one of: {', '.join(bundled_recipes())}."
        )
    return parse_recipe(text, source=str(name_or_path))


def parse_recipe(text: str, source: str, *, written_out: bool = False) -> Recipe:
    """Read a recipe from TOML text; `source` names it in errors.

    `written_out` says that `Recipe.to_toml` wrote it, into a model or training: what such a recipe doesn't say, an
    earlier version couldn't say, and it keeps what it meant then.

    Raises:
        ThoradError: not TOML, an unknown key or a value out of range.
    """
    if len(text) > LARGEST_RECIPE:
        raise ThoradError(f"{source}: not a recipe: more than {LARGEST_RECIPE} characters, expected some hundred.")
    try:
        recipe = Recipe.model_validate(tomllib.loads(text))
    except ValidationError as error:
        raise ThoradError(f"{source}: not a valid recipe. {_problems(error)}.") from error
    except (ValueError, RecursionError) as error:  # numbers of thousands of digits, brackets in brackets
        raise ThoradError(f"{source}: not a TOML file ({error}).") from error
    if written_out and "simplex_wavelength" not in recipe.noise.model_fields_set:
        noise = recipe.noise.model_copy(update={"simplex_wavelength": FIRST_WAVELENGTH / recipe.image.size})
        recipe = recipe.model_copy(update={"noise": noise})
    return recipe


def _problems(error: ValidationError) -> str:
    """What is wrong where: `image.size: Input should be greater than 0; ...`."""
    shown = [f"{'.'.join(map(str, each['loc']))[:80] or 'recipe'}: {each['msg']}" for each in error.errors()]
    return "; ".join([*shown[:5], *([f"and {len(shown) - 5} more"] if len(shown) > 5 else [])])
