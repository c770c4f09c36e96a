"""The model card that a training writes beside its weights."""

from __future__ import annotations

import platform

import lightning
import torch

from thorad import __version__
from thorad.recipe import Recipe


def training_card(
    recipe: Recipe, trained_on: int, validated_on: int, trainer: lightning.Trainer, seconds: float
) -> str:
    """Markdown.

    Args:
        recipe: what was fitted.
        trained_on: training images.
        validated_on: validation images.
        trainer: after the training.
        seconds: since its last start.
    """
    noise = recipe.noise
    predicts = {"noise": "the noise", "clean": "the clean image"}[noise.prediction]
    where = f"one cell of {noise.patch_noise} px of an image" if noise.patch_noise else "the whole image"
    kinds = " or ".join(noise.trained_kinds)
    timesteps = f"from {noise.train_from} and below" if noise.train_from else "below"
    return f"""# {recipe.name}

{recipe.description}

Research use only; not a medical device.

| | |
|---|---|
| made by | thorad {__version__}, torch {torch.__version__} |
| trained on | {trained_on} images (validated on {validated_on}) |
| steps | {trainer.global_step} of {recipe.training.batch_size * trainer.world_size} images |
| time | {seconds / 3600:.2f} h since the last start, {trainer.world_size} process(es), {platform.machine()} |
| precision | {trainer.precision} |
| predicts | {predicts}, from {where} under {kinds} noise, timesteps {timesteps} {noise.train_below} |
| figures | not measured: run `thorad evaluate` on labelled cases |

Fill in before you share it: where the images come from, their licence, for whom the model is valid.
"""
