"""A model is a folder: weights.safetensors, recipe.toml, calibration.json, MODEL_CARD.md. Never a pickle.

``weights.safetensors`` holds the denoiser's averaged weights (``network.*``, bfloat16; float32 in imported models) and
the training images' mean and standard deviation (``statistics.*``, float32, (1, S, S) on the [-1, 1] scale).
``domain.safetensors``, where there is one, holds what healthy pictures look like (`thorad.domain.pictures`), and
``critic.safetensors`` the model's critic (`thorad.critic`).
Imported models have no statistics, and may have LPIPS weights of their own: ``perceptual.safetensors``.
``calibration.json`` is in every folder: the sha256 of the weights, and the calibrations made for them, none at first.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.torch import load, save
from torch import Tensor, nn

from thorad import __version__
from thorad.critic.critic import Critic, critic_from_bytes
from thorad.diffusion.schedule import Schedule
from thorad.domain.pictures import PictureDomain
from thorad.errors import ThoradError
from thorad.io.atomic import write_atomic
from thorad.io.images import read_mask
from thorad.io.preprocess import digest_of, mask_to_model_grid
from thorad.recipe import Recipe, parse_recipe

WEIGHTS, RECIPE, CALIBRATION, CARD = "weights.safetensors", "recipe.toml", "calibration.json", "MODEL_CARD.md"
PERCEPTUAL, DOMAIN, CRITIC = "perceptual.safetensors", "domain.safetensors", "critic.safetensors"
FILES = (RECIPE, CARD, PERCEPTUAL, DOMAIN, CRITIC, WEIGHTS, CALIBRATION)
"""Of a model's folder, all of them; the calibration last, without which a folder doesn't load."""

MOST_PARAMETERS = 10**9
"""Of a network: 4 GB; the published one has 2 * 10^7."""


@dataclass(frozen=True)
class Model:
    """A trained model in memory."""

    recipe: Recipe
    network: nn.Module
    """Called as `network(x_t, t, kind)`."""
    mean: Tensor | None
    """(1, S, S), of the training images on the [-1, 1] scale; None in an imported model."""
    standard_deviation: Tensor | None
    """(1, S, S), on the same scale."""
    region: NDArray[np.bool_]
    """(S, S), where anomalies are looked for."""
    sha256: str
    """Of the weight file."""
    calibration: Mapping[str, Any]
    perceptual_weights: Path | None = None
    """An imported model's own LPIPS weights, for `load_perceptual_distance`."""
    picture_domain: PictureDomain | None = None
    """What its pictures look like; None in models of earlier versions and imported ones, which take any picture."""
    critic: Critic | None = None
    """What `thorad train-critic` made for it, if it did."""
    folder: Path | None = None
    """That it was read from."""

    @property
    def statistics(self) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of the training images.

        Raises:
            ThoradError: the model has none.
        """
        if self.mean is None or self.standard_deviation is None:
            raise ThoradError(
                f"model {self.recipe.name!r} has no statistics of its training images (it was imported), which the "
                "z-score and THOR+ need. Use another method, or a model that `thorad train` made."
            )
        return self.mean, self.standard_deviation

    @property
    def own_critic(self) -> Critic:
        """The model's critic.

        Raises:
            ThoradError: it has none.
        """
        if self.critic is None:
            raise ThoradError(
                f"model {self.recipe.name!r} has no critic. Make one from healthy scans: "
                "thorad train-critic MODEL --train HEALTHY --validation OTHER_HEALTHY -o FOLDER."
            )
        return self.critic

    @property
    def critic_source(self) -> str:
        """Where the critic comes from: `as it comes with thorad`, or `in the folder my-model`."""
        if self.folder is None or is_bundled(self.folder):
            return "as it comes with thorad"
        return f"in the folder {self.folder.resolve().name}"

    @property
    def parameters(self) -> int:
        """How many numbers the network learned."""
        return sum(tensor.numel() for tensor in self.network.parameters())

    @property
    def trained_on(self) -> frozenset[str]:
        """Digests of its training images on its grid, `thorad.io.preprocess.digest_of`; none where nobody knows.

        A copy that was turned, cropped or changed otherwise isn't among them.
        """
        return frozenset(self.calibration.get("trained_on", ()))

    def learned(self, images: Iterable[tuple[str, Tensor]]) -> list[str]:
        """The names of those (1, S, S) images in [0, 1] that it is known to have been trained on."""
        known = self.trained_on
        return [name for name, pixels in images if digest_of(pixels) in known] if known else []

    @property
    def schedule(self) -> Schedule:
        """The schedule it was trained with."""
        noise = self.recipe.noise
        return Schedule(noise.timesteps, noise.beta_start, noise.beta_end)


def build_network(recipe: Recipe) -> nn.Module:
    """The recipe's network with fresh weights (from torch's global generator: seed it before).

    Raises:
        ThoradError: it has more than `MOST_PARAMETERS`; nothing is allocated then.
    """
    _weights_wanted(recipe)
    return recipe.network.build(len(recipe.noise.kinds))


def _weights_wanted(recipe: Recipe) -> dict[str, Tensor]:
    """The network's state without memory behind it, for its names and shapes; errors as `build_network`."""
    try:
        with torch.device("meta"):
            state = recipe.network.build(len(recipe.noise.kinds)).state_dict()
    except RuntimeError:  # another package's network that computes while it is built
        state = recipe.network.build(len(recipe.noise.kinds)).state_dict()
    parameters = sum(tensor.numel() for tensor in state.values())
    if parameters > MOST_PARAMETERS:
        raise ThoradError(
            f"the network of recipe {recipe.name!r} would have {parameters:.2g} parameters; expected "
            f"{MOST_PARAMETERS:.2g} at most. Make it narrower, or give it fewer levels."
        )
    return state


def bundled_models() -> list[str]:
    """Names of the models that come with thorad."""
    return sorted(entry.name for entry in _bundled().iterdir() if (entry / WEIGHTS).is_file())


def model_folder(name_or_path: str | Path) -> Path:
    """The folder of a bundled model's name or of a path.

    Raises:
        ThoradError: neither a bundled model nor a folder.
    """
    if str(name_or_path) in bundled_models():
        return _bundled() / str(name_or_path)
    folder = Path(name_or_path)
    if not folder.is_dir():
        raise ThoradError(
            f"unknown model {str(name_or_path)!r}: neither a folder nor one of the bundled models "
            f"({', '.join(bundled_models())}). `thorad models` lists them; `thorad train` makes one."
        )
    return folder


def is_bundled(folder: Path) -> bool:
    """Whether a model folder is one of those that come with thorad, however it is named."""
    return folder.resolve().parent == _bundled().resolve()


def load_model(name_or_path: str | Path) -> Model:
    """Read a model folder, checking that its weights are the ones it was saved with and fit its recipe.

    Raises:
        ThoradError: unknown model, a file is missing or damaged, weights changed, or of other shapes than the recipe's.
    """
    folder = model_folder(name_or_path)
    recipe = load_recipe_of(name_or_path)
    weights = _read(folder / WEIGHTS)
    sha256 = hashlib.sha256(weights).hexdigest()
    calibration = _calibration_of(folder, sha256)
    try:
        tensors = load(weights)
    except SafetensorError as error:
        raise ThoradError(f"{folder / WEIGHTS}: not a safetensors file ({error}).") from error
    state = _network_state(tensors, _weights_wanted(recipe), folder / WEIGHTS)
    network = build_network(recipe)
    network.load_state_dict(state)
    statistics = _statistics(tensors, recipe.image.size, folder / WEIGHTS)
    region = load_region(recipe.image.region, recipe.image.size)
    return Model(
        recipe,
        network.eval(),
        **statistics,
        region=region,
        sha256=sha256,
        calibration=calibration,
        perceptual_weights=_perceptual_weights(folder, calibration),
        picture_domain=_picture_domain(folder / DOMAIN),
        critic=_critic(folder / CRITIC, **statistics, region=region),
        folder=folder,
    )


def _calibration_of(folder: Path, sha256: str) -> Mapping[str, Any]:
    """A folder's calibration, whose weights must have that sha256."""
    try:
        calibration = json.loads(_read(folder / CALIBRATION))
        expected = calibration["weights_sha256"]
    except (ValueError, KeyError, TypeError) as error:
        raise ThoradError(
            f"{folder / CALIBRATION}: not a model's calibration (expected JSON with weights_sha256). "
            "Take the folder from its source again."
        ) from error
    if sha256 != expected:
        raise ThoradError(
            f"{folder / WEIGHTS}: the weights changed since the model was saved (sha256 {sha256[:12]}..., expected "
            f"{str(expected)[:12]}...). Take the folder from its source again."
        )
    return dict(calibration)


def load_recipe_of(name_or_path: str | Path) -> Recipe:
    """The recipe of a model, without its weights.

    Raises:
        ThoradError: unknown model, or its recipe can't be read.
    """
    path = model_folder(name_or_path) / RECIPE
    return parse_recipe(_read(path).decode("utf-8", errors="replace"), source=str(path), written_out=True)


def has_critic(name_or_path: str | Path) -> bool:
    """Whether a model has a critic, told without loading it.

    Raises:
        ThoradError: unknown model.
    """
    return (model_folder(name_or_path) / CRITIC).is_file()


def has_statistics(name_or_path: str | Path) -> bool:
    """Whether a model knows its training images' statistics, told without loading its weights.

    Raises:
        ThoradError: unknown model, or its weights can't be read.
    """
    path = model_folder(name_or_path) / WEIGHTS
    try:
        with safe_open(path, "pt") as tensors:
            return any(name.startswith("statistics.") for name in tensors.keys())  # noqa: SIM118 (no dictionary)
    except (SafetensorError, OSError) as error:
        raise ThoradError(
            f"{path}: can't be read as weights ({error}). Take the folder from its source again."
        ) from error


def model_card(name_or_path: str | Path) -> str:
    """The text of a model's card.

    Raises:
        ThoradError: unknown model, or no card.
    """
    return _read(model_folder(name_or_path) / CARD).decode("utf-8", errors="replace")


def weight_megabytes(name_or_path: str | Path) -> float:
    """Size of a model's weight file, MB (10^6 bytes)."""
    return len(_read(model_folder(name_or_path) / WEIGHTS)) / 1e6


def save_model(
    folder: Path,
    recipe: Recipe,
    network: Mapping[str, Tensor],
    mean: Tensor | None,
    standard_deviation: Tensor | None,
    card: str,
    *,
    dtype: torch.dtype = torch.bfloat16,
    perceptual: Mapping[str, Tensor] | None = None,
    picture_domain: PictureDomain | None = None,
    trained_on: Iterable[str] = (),
) -> None:
    """Write a model folder; the calibration last, so that a folder that stopped half-way doesn't load.

    Args:
        folder: made if it isn't there; its files are replaced.
        recipe: what made the model.
        network: the denoiser's state.
        mean: of the training images, (1, S, S) on the [-1, 1] scale; None where nobody knows.
        standard_deviation: likewise.
        card: the model card, Markdown.
        dtype: what the network is kept in.
        perceptual: LPIPS weights that belong to the model.
        picture_domain: what its pictures look like; None where nobody knows.
        trained_on: digests of its training images, of `thorad.io.preprocess.digest_of`.
    """
    tensors = {f"network.{name}": tensor.detach().cpu().to(dtype).contiguous() for name, tensor in network.items()}
    if mean is not None and standard_deviation is not None:
        tensors["statistics.mean"] = mean.float().cpu().contiguous()
        tensors["statistics.standard_deviation"] = standard_deviation.float().cpu().contiguous()
    weights = save(tensors)
    calibration: dict[str, Any] = {"weights_sha256": hashlib.sha256(weights).hexdigest(), "thorad": __version__}
    calibration["calibrations"] = []  # of `thorad calibrate`
    calibration["trained_on"] = sorted(trained_on)
    write_atomic(folder / RECIPE, recipe.to_toml().encode())
    write_atomic(folder / CARD, card.encode())
    write_atomic(folder / WEIGHTS, weights)
    if perceptual is not None:
        content = save({name: tensor.contiguous() for name, tensor in perceptual.items()})
        calibration["perceptual_sha256"] = hashlib.sha256(content).hexdigest()
        write_atomic(folder / PERCEPTUAL, content)
    for file in (DOMAIN, CRITIC):
        (folder / file).unlink(missing_ok=True)  # of other pictures
    if picture_domain is not None:
        write_atomic(folder / DOMAIN, picture_domain.to_bytes())
    write_atomic(folder / CALIBRATION, (json.dumps(calibration, indent=2) + "\n").encode())


def own_folder(model: str | Path, out: Path | None) -> Path:
    """Where what is made for a model goes: its own folder, or a copy of it at `out`.

    Raises:
        ThoradError: the model comes with thorad and no `out` is given, or `out` is there and holds something else than
            this model. (The bundled folder itself may be given as `out`, by those who mean it.)
    """
    source = model_folder(model)
    if out is None:
        if is_bundled(source):
            raise ThoradError(
                f"model {str(model)!r} comes with thorad and is not written to. Give --out FOLDER for a copy of it, "
                "and use that: --model FOLDER."
            )
        return source
    if out.exists() and out.resolve() != source.resolve():
        if not out.is_dir():
            raise ThoradError(f"{out}: a file stands where a model folder is needed. Choose another --out.")
        same = all((out / file).is_file() and _read(out / file) == _read(source / file) for file in (WEIGHTS, RECIPE))
        if any(out.iterdir()) and not same:
            raise ThoradError(f"{out}: holds something else than model {str(model)!r}. Choose another --out.")
    return out


def copy_model(source: Path, folder: Path, *, without: str = "") -> None:
    """Copy what a model's folder holds and the other does not yet, `without` one file, the calibration last."""
    for file in FILES:
        if file != without and (source / file).is_file() and not (folder / file).is_file():
            write_atomic(folder / file, _read(source / file))


def load_region(name: str, size: int) -> NDArray[np.bool_]:
    """The bundled region of that name on the model's grid, (S, S); all True where the name is empty.

    Raises:
        ThoradError: no such region.
    """
    if not name:
        return np.ones((size, size), dtype=bool)
    folder = Path(str(resources.files("thorad"))) / "assets" / "regions"
    known = sorted(path.stem for path in folder.glob("*.png"))
    if name not in known:  # never a path: the name comes from a model folder
        raise ThoradError(f"unknown region {name!r}. Known: {', '.join(known)}, or empty for the whole image.")
    return mask_to_model_grid(read_mask(folder / f"{name}.png"), size)


def _bundled() -> Path:
    return Path(str(resources.files("thorad"))) / "assets" / "models"


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ThoradError(
            f"{path}: can't be read ({error.strerror}). A model is a folder of {WEIGHTS}, {RECIPE}, {CALIBRATION} "
            f"and {CARD}."
        ) from error


def _perceptual_weights(folder: Path, calibration: Mapping[str, Any]) -> Path | None:
    """The model's own LPIPS weights, checked to be the ones it was saved with."""
    expected = calibration.get("perceptual_sha256")
    if expected is None:
        return None
    if hashlib.sha256(_read(folder / PERCEPTUAL)).hexdigest() != expected:
        raise ThoradError(
            f"{folder / PERCEPTUAL}: the LPIPS weights changed since the model was saved. Take the folder from its "
            "source again."
        )
    return folder / PERCEPTUAL


def _picture_domain(path: Path) -> PictureDomain | None:
    return PictureDomain.from_bytes(_read(path), str(path)) if path.is_file() else None


def _critic(
    path: Path, mean: Tensor | None, standard_deviation: Tensor | None, region: NDArray[np.bool_]
) -> Critic | None:
    if mean is None or standard_deviation is None or not path.is_file():
        return None
    made_for = read_by_critics(mean, standard_deviation, region)
    unit = (mean + 1) / 2, standard_deviation / 2
    return critic_from_bytes(_read(path), str(path), *unit, torch.from_numpy(region), made_for)


def read_by_critics(mean: Tensor, standard_deviation: Tensor, region: NDArray[np.bool_]) -> str:
    """sha256 of what a critic reads of its model."""
    parts = (mean.float().cpu().numpy(), standard_deviation.float().cpu().numpy(), region)
    return hashlib.sha256(b"".join(part.tobytes() for part in parts)).hexdigest()


def _statistics(tensors: Mapping[str, Tensor], size: int, source: Path) -> dict[str, Tensor | None]:
    """The training images' mean and standard deviation among a model's tensors; None for both where it has neither."""
    statistics: dict[str, Tensor | None] = {"mean": None, "standard_deviation": None}
    for name in statistics if any(name.startswith("statistics.") for name in tensors) else ():
        tensor = tensors.get(f"statistics.{name}")
        if tensor is None or tensor.shape != (1, size, size):
            found = "missing" if tensor is None else f"of shape {tuple(tensor.shape)}"
            raise ThoradError(f"{source}: statistics.{name} is {found}, expected {(1, size, size)}.")
        statistics[name] = tensor.float()
    return statistics


def _network_state(tensors: Mapping[str, Tensor], wanted: Mapping[str, Tensor], source: Path) -> dict[str, Tensor]:
    """The network's weights among a model's tensors, which must be those that are wanted."""
    given = {k.removeprefix("network."): v.float() for k, v in tensors.items() if k.startswith("network.")}
    wrong = [
        f"{name} is {tuple(given[name].shape) if name in given else 'missing'}, expected {tuple(tensor.shape)}"
        for name, tensor in wanted.items()
        if name not in given or given[name].shape != tensor.shape
    ]
    wrong += [f"{name} isn't in the network" for name in given if name not in wanted]
    if wrong:
        raise ThoradError(
            f"{source}: the weights don't fit the recipe beside them in {len(wrong)} places: {'; '.join(wrong[:3])}."
        )
    if not all(bool(torch.isfinite(tensor).all()) for tensor in given.values()):
        raise ThoradError(f"{source}: the weights hold NaN or infinite values. Take the file from its source again.")
    return given
