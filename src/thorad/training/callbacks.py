"""What happens beside the training: averaged weights, pictures of reconstructions, lines where there is no terminal."""

from __future__ import annotations

import time
from datetime import timedelta
from pathlib import Path

import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from thorad.io.images import write_png8
from thorad.training.data import Images
from thorad.training.module import DiffusionTraining

MOST_PICTURED = 8
"""Validation images in a picture of reconstructions."""


def average_weights(averaged: Tensor, current: Tensor, count: Tensor | int, decay: float) -> Tensor:
    """Exponential moving average, whose decay rises to its value as (1 + n) / (10 + n): it soon forgets step 0."""
    now = min(decay, (1 + int(count)) / (10 + int(count)))
    return averaged.lerp(current, 1 - now)


class ReconstructionPictures(Callback):
    """Writes ``step-<step>.png`` after each validation: see `DiffusionTraining.reconstructions`.

    Args:
        images: the validation images, of which the first `MOST_PICTURED` are shown.
        folder: for the pictures.
    """

    def __init__(self, images: Images, folder: Path) -> None:
        self._images, self._folder = images, folder

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the picture, in the first process."""
        if not trainer.is_global_zero or trainer.sanity_checking:
            return
        assert isinstance(pl_module, DiffusionTraining)
        shown = torch.stack([self._images[index] for index in range(min(MOST_PICTURED, len(self._images)))])
        picture = pl_module.reconstructions(shown)
        write_png8(self._folder / f"step-{trainer.global_step:07d}.png", picture.numpy())


class ProgressLines(Callback):
    """Where there is no terminal: a line at each validation instead of a bar."""

    def __init__(self) -> None:
        self._began, self._first = time.monotonic(), 0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock."""
        self._began, self._first = time.monotonic(), trainer.global_step

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Print steps, speed, time left and losses."""
        if trainer.sanity_checking or not trainer.is_global_zero:
            return
        done, seconds = trainer.global_step - self._first, time.monotonic() - self._began
        left = (int(trainer.max_steps) - trainer.global_step) * seconds / max(done, 1)
        measured = " ".join(f"{k} {float(v):.5f}" for k, v in sorted(trainer.callback_metrics.items()) if "/" in k)
        print(
            f"step {trainer.global_step}/{trainer.max_steps}  {done / seconds:.2f} steps/s  "
            f"{timedelta(seconds=round(left))} left  {measured}",
            flush=True,
        )
