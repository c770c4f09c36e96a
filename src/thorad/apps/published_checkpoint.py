"""From a checkpoint of the published implementation (github ci-ber/THOR_DDPM) to a model folder.

Such a checkpoint is ``{'model_weights': state dict, 'epoch': n, ...}``: the U-Net of MONAI Generative under ``unet.``
and the LPIPS network that its maps used under ``l_pips_sq.``. Nothing in the file is ever executed.
"""

from __future__ import annotations

import hashlib
import pickle
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from torch import Tensor

from thorad.diffusion import FIRST_WAVELENGTH
from thorad.errors import ThoradError
from thorad.maps.perceptual import PerceptualDistance
from thorad.model import build_network, load_region, save_model
from thorad.recipe import InputRange, NoiseKind, Recipe, UNetSection

PUBLISHED_HEAD_CHANNELS = 256
SMALLEST_HEAD_CHANNELS = 32
ADVICE = "Expected the published layout: {'model_weights': {'unet.conv_in.conv.weight': ..., ...}}."


@dataclass(frozen=True)
class ImportReport:
    """What became of a checkpoint."""

    folder: Path
    recipe: Recipe
    parameters: int  # how many numbers of the network were taken over
    network: UNetSection  # the recipe's
    perceptual: bool  # whether the checkpoint's own LPIPS weights were kept
    dropped: tuple[str, ...]  # names of the checkpoint's tensors that the model folder doesn't hold
    head_channels_assumed: bool  # whether the width of the attention heads was not given: no checkpoint says it


def import_checkpoint(
    checkpoint: Path,
    out: Path,
    *,
    name: str,
    noise: NoiseKind,
    input_range: InputRange = "-1..1",
    size: int = 128,
    head_channels: int | None = None,
    region: str = "",
) -> ImportReport:
    """Turn a published checkpoint into a model folder of this name, with its weights in float32 as they are.

    Channels, levels, attention and residual blocks are read from the tensors' shapes.

    Args:
        checkpoint: `latest_model.pt` or `best_model.pt` of a published training.
        out: the model folder; must not exist or be empty.
        noise: the kind it was trained with.
        input_range, size: scale, and side in px, of the images it was trained on.
        head_channels: channels of an attention head. None: the published 256 where that divides the channels, else 32.
        region: name of a bundled region where anomalies are looked for; empty for the whole image.

    Raises:
        ThoradError: `out` is in use; the file is missing, no checkpoint, holds Python objects or another network.
    """
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise ThoradError(f"{out}: exists already. Name a folder that doesn't, so that no model is overwritten.")
    load_region(region, size)
    content, state, epoch = _read(checkpoint)
    taken = {key: tensor for key, tensor in state.items() if key.startswith("unet.") and ".proj_attn." not in key}
    image = {"size": size, "region": region, "input_range": input_range}
    recipe, network = _recipe(taken, checkpoint, name, noise, image, head_channels, epoch)
    weights, perceptual = _weights(taken, recipe, checkpoint), _perceptual(state, checkpoint)
    card = _card(recipe, network.head_channels, checkpoint.name, hashlib.sha256(content).hexdigest())
    save_model(out, recipe, weights, None, None, card, dtype=torch.float32, perceptual=perceptual)
    dropped = tuple(key for key in state if key not in taken and not perceptual_name(key))
    parameters = sum(tensor.numel() for tensor in taken.values())
    return ImportReport(out, recipe, parameters, network, perceptual is not None, dropped, head_channels is None)


def _weights(taken: Mapping[str, Tensor], recipe: Recipe, source: Path) -> dict[str, Tensor]:
    """All weights of the network, under MONAI's names."""
    weights = {monai_name(key): tensor for key, tensor in taken.items()}
    wanted = build_network(recipe).state_dict()
    for name, tensor in wanted.items():
        # The published attention has a last layer, proj_attn, which it never calls; MONAI's calls it: so, the identity.
        if ".attn.out_proj." in name:
            weights[name] = torch.eye(len(tensor)) if tensor.ndim == 2 else torch.zeros_like(tensor)
    _check_fit(weights, wanted, source)
    return weights


def monai_name(name: str) -> str:
    """The name in MONAI 1.6 of a tensor of MONAI Generative's U-Net."""
    name = re.sub(r"\.(to_[qkv])\.", r".attn.\1.", name)
    return name.replace(".upsampler.conv.", ".upsampler.postconv.")


def perceptual_name(name: str) -> str | None:
    """The name in thorad's perceptual weights of a tensor of the published LPIPS; None if it isn't needed there."""
    if match := re.fullmatch(r"l_pips_sq\.net\.slice\d\.(.+)", name):  # torchvision's layers, cut into slices
        return f"features.{match[1]}"
    if match := re.fullmatch(r"l_pips_sq\.lin(\d)\.model\.1\.weight", name):
        return f"heads.{match[1]}.weight"
    return None


def _read(path: Path) -> tuple[bytes, dict[str, Tensor], int | None]:
    """The file's content, the tensors in it and the epoch."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ThoradError(
            f"{path}: can't be read ({error.strerror}). Name a published checkpoint, a .pt file."
        ) from error
    try:
        loaded: Any = torch.load(path, "cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError, LookupError, AttributeError) as error:
        if "Unsupported global" in str(error):  # a name in a module: neither tensor nor plain data
            raise ThoradError(
                f"{path}: holds Python objects beside tensors, which could run code when loaded; thorad never does. "
                "Where you trust the file, save {'model_weights': model.state_dict()} anew with torch.save."
            ) from error
        raise ThoradError(f"{path}: not a checkpoint that torch can read, or damaged. {ADVICE}") from error
    weights = loaded.get("model_weights") if isinstance(loaded, dict) else None
    if not isinstance(weights, Mapping) or not weights:
        found = (
            f"the keys {', '.join(map(str, list(loaded)[:5]))}" if isinstance(loaded, dict) else type(loaded).__name__
        )
        raise ThoradError(f"{path}: no model_weights in this file, found {found}. {ADVICE}")
    strange = [str(key) for key, value in weights.items() if not (isinstance(key, str) and isinstance(value, Tensor))]
    if strange:
        raise ThoradError(f"{path}: model_weights holds {strange[0]!r}, which isn't a tensor. {ADVICE}")
    epoch = loaded.get("epoch")
    return content, {key: value.float() for key, value in weights.items()}, epoch if isinstance(epoch, int) else None


def _recipe(
    unet: Mapping[str, Tensor],
    source: Path,
    name: str,
    noise: NoiseKind,
    image: Mapping[str, Any],
    head_channels: int | None,
    epoch: int | None,
) -> tuple[Recipe, UNetSection]:
    """The recipe of a network with tensors of these shapes, and its network."""
    channels, attention, residual_blocks = _shape(unet, source)
    if head_channels is None:
        levels = [width for width, attends in zip(channels, attention, strict=True) if attends]
        divides = all(width % PUBLISHED_HEAD_CHANNELS == 0 for width in (*levels, channels[-1]))
        head_channels = PUBLISHED_HEAD_CHANNELS if divides else SMALLEST_HEAD_CHANNELS
    trained = f", {epoch} epochs" if epoch is not None else ""
    description = f"Imported from {source.name}, a checkpoint of the published implementation{trained}."
    try:
        network = UNetSection(
            channels=channels, attention=attention, residual_blocks=residual_blocks, head_channels=head_channels
        )
        section = {"kinds": (noise,), "simplex_wavelength": FIRST_WAVELENGTH / image["size"]}
        content = {"name": name, "description": description, "image": image, "noise": section}
        return Recipe.model_validate({**content, "network": network}), network
    except ValidationError as error:
        problems = "; ".join(str(problem["msg"]) for problem in error.errors())
        raise ThoradError(
            f"{source}: no model can be made of a U-Net with channels {channels} at {image['size']} px: {problems}."
        ) from error


def _shape(unet: Mapping[str, Tensor], source: Path) -> tuple[tuple[int, ...], tuple[bool, ...], int]:
    """Channels and attention of each level, and the number of residual blocks on each."""
    first = [re.fullmatch(r"unet\.down_blocks\.(\d+)\.resnets\.(\d+)\.conv1\.conv\.weight", key) for key in unet]
    blocks = sorted((int(match[1]), int(match[2])) for match in first if match)  # (level, number on it)
    levels = range(len({level for level, _ in blocks}))
    count = max((block + 1 for _, block in blocks), default=0)
    if not blocks or blocks != [(level, block) for level in levels for block in range(count)]:
        raise ThoradError(
            f"{source}: no U-Net with the same number of residual blocks on each level in it: found {len(unet)} "
            f"tensors under unet., {len(blocks)} residual blocks on the way down. {ADVICE}"
        )
    channels = tuple(len(unet[f"unet.down_blocks.{level}.resnets.0.conv1.conv.weight"]) for level in levels)
    return channels, tuple(f"unet.down_blocks.{level}.attentions.0.to_q.weight" in unet for level in levels), count


def _check_fit(given: Mapping[str, Tensor], wanted: Mapping[str, Tensor], source: Path) -> None:
    wrong = [
        f"{name} is {tuple(given[name].shape) if name in given else 'missing'}, expected {tuple(tensor.shape)}"
        for name, tensor in wanted.items()
        if name not in given or given[name].shape != tensor.shape
    ]
    wrong += [f"{name} has no place in it" for name in given if name not in wanted]
    wrong += [f"{name} holds NaN or infinite values" for name, tensor in given.items() if not tensor.isfinite().all()]
    if wrong:
        raise ThoradError(
            f"{source}: not the weights of the published network in {len(wrong)} places: {'; '.join(wrong[:3])}. "
            "Only its plain U-Net of one grey channel can be imported."
        )


def _perceptual(state: Mapping[str, Tensor], source: Path) -> dict[str, Tensor] | None:
    """The checkpoint's LPIPS weights under thorad's names; None if it has none."""
    given = {name: tensor for key, tensor in state.items() if (name := perceptual_name(key))}
    if given:
        _check_fit(given, PerceptualDistance().weights(), source)
    return given or None


def _card(recipe: Recipe, head_channels: int, file: str, digest: str) -> str:
    return f"""# {recipe.name}

{recipe.description} Research use; not a medical device.

- Source: `{file}`, sha256 {digest}. `thorad models import` took its weights over as they are, in float32.
- The import was told or assumed, for a checkpoint doesn't say: trained with {recipe.noise.kinds[0]} noise on images of
  {recipe.image.size} px in {recipe.image.input_range}; attention heads have {head_channels} channels.
- It comes without statistics of its training images: the z-score methods need another model.
- On what it was trained, under which licence, and how well it works, its source must say.
"""
