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


def average_weights(averaged: Tensor, current: Tensor, count: Tensor | int, decay: float) -> Tensor:
    """Exponential moving average, whose decay rises to its value as (1 + n) / (10 + n): it soon forgets step 0."""
    now = min(decay, (1 + int(count)) / (10 + int(count)))
    return averaged.lerp(current, 1 - now)


class ReconstructionPictures(Callback):
    """Writes ``step-<step>.png`` of the first 8 validation images after each validation."""

    def __init__(self, images: Images, folder: Path) -> None:
        self._images, self._folder = images, folder

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write it, in the first process."""
        if trainer.is_global_zero:
            assert isinstance(pl_module, DiffusionTraining)
            shown = torch.stack([self._images[index] for index in range(min(8, len(self._images)))])
            picture = pl_module.reconstructions(shown)
            write_png8(self._folder / f"step-{trainer.global_step:07d}.png", picture.numpy())


class ProgressLines(Callback):
    """Where there is no terminal: a line at each validation instead of a bar."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock."""
        self._began, self._first = time.monotonic(), trainer.global_step

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Print steps, speed, time left and losses."""
        if trainer.is_global_zero:
            rate = max(trainer.global_step - self._first, 1) / (time.monotonic() - self._began)
            left = timedelta(seconds=round((int(trainer.max_steps) - trainer.global_step) / rate))
            losses = " ".join(f"{k} {float(v):.5f}" for k, v in sorted(trainer.callback_metrics.items()) if "/" in k)
            print(
                f"step {trainer.global_step}/{trainer.max_steps}  {rate:.2f} steps/s  {left} left  {losses}", flush=True
            )
