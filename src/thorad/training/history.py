"""What a training leaves to look at: curves, and a page with them."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from thorad.errors import Interrupted
from thorad.results.training_page import write_training_page
from thorad.training.progress import trainer_facts

MOST_POINTS = 400
"""Of a training curve; each is the mean over as many steps as that needs."""

WRITTEN_SECONDS = 60.0
"""Between two writings, besides those after validations."""


class History(Callback):
    """Keeps what is measured in all steps, resumed ones included, and writes curves and ``training.html``.

    Args:
        out: the training's folder.
        facts: what is trained on what, by what is to be told of it.
        settings: all settings, as text.
        batch_size: images of a step, of one process.
        measured_on: what the module's ``validation/average_precision`` is measured on, in words.
        keeps_best: whether the model gets the weights of the highest one.
        labels: what the rows of the pictures in ``out/pictures`` show, from the top.
    """

    def __init__(
        self,
        out: Path,
        facts: Mapping[str, str],
        settings: str,
        *,
        batch_size: int,
        measured_on: str,
        keeps_best: bool = False,
        labels: Sequence[str] = (),
    ) -> None:
        self.out, self.facts, self._settings, self._labels = out, facts, settings, labels
        self._batch_size, self._measured_on, self._keeps_best = batch_size, measured_on, keeps_best
        self.points: dict[str, list[tuple[int, float]]] = {}
        """Steps and values by name: ``train/loss`` and what the module logs as ``validation/...``."""
        self._losses: list[Tensor] = []

    def state_dict(self) -> dict[str, Any]:
        """What a resumed training needs."""
        return {"points": self.points, "losses": [float(loss) for loss in self._losses]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on with the curves."""
        self.points, self._losses = state_dict["points"], [Tensor([loss])[0] for loss in state_dict["losses"]]

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Say on the page that it has begun."""
        self._every = math.ceil(int(trainer.max_steps) / MOST_POINTS)
        self._write(trainer, pl_module)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, *_: Any) -> None:
        """Keep the loss."""
        self._losses.append(outputs["loss"].detach())
        if trainer.global_step % self._every == 0 or trainer.global_step == trainer.max_steps:
            self.note("train/loss", trainer.global_step, sum(map(float, self._losses)) / len(self._losses))
            self._losses = []
        if time.monotonic() - self._written > WRITTEN_SECONDS:
            self._write(trainer, pl_module)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keep what was measured."""
        for name, value in sorted(trainer.callback_metrics.items()):
            if name.startswith("validation/"):
                self.note(name, trainer.global_step, float(value))
        self._write(trainer, pl_module)

    def note(self, name: str, step: int, value: float) -> None:
        """Keep a value that was measured after a step, if there is none."""
        points = self.points.setdefault(name, [])
        if not points or points[-1][0] < step:
            points.append((step, value))

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Say that it is over."""
        self._write(trainer, pl_module, "done" if trainer.global_step == trainer.max_steps else "ended")

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Say how to go on."""
        if isinstance(exception, Interrupted) and hasattr(self, "_every"):
            self._write(trainer, pl_module, "stopped; the same command resumes")

    def _write(self, trainer: Trainer, module: LightningModule, what: str = "running") -> None:
        self._written = time.monotonic()
        if trainer.is_global_zero:
            write_training_page(
                self.out,
                state=f"step {trainer.global_step} of {trainer.max_steps}, {what}",
                points=self.points,
                every=self._every,
                images_per_step=self._batch_size * trainer.world_size,
                measured_on=self._measured_on,
                keeps_best=self._keeps_best,
                facts={**self.facts, **trainer_facts(trainer, module)},
                settings=self._settings,
                labels=self._labels,
            )
