"""One way to train any LightningModule: so many steps, seen, saved, and resumed where it stopped."""

from __future__ import annotations

import logging
import pickle
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning import LightningDataModule, LightningModule, Trainer
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import Callback, WeightAveraging
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger
from torch import Tensor

from thorad.diffusion.engine import fast_precision
from thorad.errors import ThoradError
from thorad.training.history import History
from thorad.training.progress import Checkpoints, ThreadChoice, TrainingProgress, newest_checkpoint, step_of

EXPECTED_WARNINGS = (
    ".*does not have many workers.*",  # reading is quick beside a step, unless the caller asks for workers
    "Experiment logs directory .* exists and is not empty",  # left by a training that was killed before a checkpoint
    ".*your dataloader is not resumable.*",  # it is: its order goes by the step's number
    ".*LeafSpec.*",  # Lightning's own use of torch
)

BREAKS_RESUMING = {
    *("accumulate_grad_batches", "overfit_batches", "limit_train_batches", "fast_dev_run", "barebones"),
    "enable_checkpointing",
}
"""Options of Lightning's trainer with which a step is not one batch, or nothing is left to resume from."""


@dataclass(frozen=True)
class Loop:
    """How long to train, on what, and who looks on."""

    steps: int
    checkpoint_minutes: float
    validate_every: int | None = None
    """Steps; None validates never."""
    gradient_norm: float | None = None
    """What the gradient is clipped to."""
    averaging: float | None = None
    """Decay of the weights' moving average, which is what is validated and what the module ends with."""
    precision: str = "auto"
    """Lightning's, or "auto": bfloat16 where the machine has units for it."""
    accelerator: str = "auto"
    devices: str | int | list[int] = "auto"
    nodes: int = 1
    threads: int | None = None
    """Of a CPU; None measures which number is fastest."""
    progress_bar: bool = True
    callbacks: Iterable[Callback] = ()
    """Called before the loop's own."""
    loggers: Iterable[Logger] | None = None
    """Instead of CSV and TensorBoard files in ``logs/``, a folder for each start."""
    trainer_options: Mapping[str, Any] = field(default_factory=dict)
    """Further ones of Lightning's `Trainer`."""


def run_training(module: LightningModule, data: LightningDataModule, loop: Loop, history: History) -> Trainer:
    """Train the module, or resume where the newest checkpoint in ``checkpoints/`` says; gives the trainer.

    Args:
        module: its random numbers must follow from the step alone, for a resumed training to end with the same weights.
        data: batches for every step from `trainer.global_step` on.
        loop: how long and how.
        history: its folder gets ``checkpoints/`` and ``logs/``, the header tells its facts.

    Raises:
        ThoradError: an unfit device or option; a checkpoint that may run code; a callback or option ended the training
            before its last step.
        Interrupted: a signal ended it; its state is saved.
    """
    out = history.out
    checkpoint = newest_checkpoint(out / "checkpoints")
    trainer = _trainer(loop, history, step_of(checkpoint))
    with warnings.catch_warnings():
        for message in EXPECTED_WARNINGS:
            warnings.filterwarnings("ignore", message=message)
        try:
            trainer.fit(module, datamodule=data, ckpt_path=checkpoint, weights_only=True if checkpoint else None)
        except pickle.UnpicklingError as error:
            raise ThoradError(
                f"{checkpoint}: holds objects that may run code when they are loaded, so it is not loaded. A "
                "callback's state_dict must give tensors and plain values. Train in another folder."
            ) from error
    if checkpoint and step_of(checkpoint) == trainer.max_steps:
        # Killed between the last checkpoint and the model: nothing was left to train, so nothing was averaged.
        module.load_state_dict(torch.load(checkpoint, map_location="cpu", weights_only=True)["state_dict"])
    if trainer.global_step < loop.steps:
        raise ThoradError(
            f"{out}: the training was ended at step {trainer.global_step} of {loop.steps}, so there is no "
            "model yet. Call fit again without what ended it, and it resumes."
        )
    return trainer


def _trainer(loop: Loop, history: History, first_step: int) -> Trainer:
    """A trainer whose one pass over its data is the whole training."""
    out = history.out
    every = None if loop.validate_every is None else min(loop.validate_every, loop.steps)
    own = {
        **{"accelerator": loop.accelerator, "devices": loop.devices, "num_nodes": loop.nodes},
        "callbacks": _callbacks(loop, history, every),
        "logger": _loggers(out, first_step) if loop.loggers is None else [*loop.loggers],
        "precision": _precision(loop),
        "max_steps": loop.steps,
        "max_epochs": -1,
        "gradient_clip_val": loop.gradient_norm,
        "val_check_interval": every,
        "limit_val_batches": 0 if every is None else None,
        "num_sanity_val_steps": 0,
        "use_distributed_sampler": False,
        "enable_progress_bar": False,
        "default_root_dir": out,
    }
    if owned := sorted(loop.trainer_options.keys() & (own.keys() | BREAKS_RESUMING)):
        raise ThoradError(
            f"trainer_options: {', '.join(owned)} can't be set here, because thorad sets it. The recipe says how long "
            "to train and how, the arguments of fit say where, and with which callbacks and loggers."
        )
    # Lightning's hints about loggers and accelerators are not the user's concern here.
    for name in ("lightning.pytorch.utilities.rank_zero", "lightning.pytorch.accelerators.cuda"):
        logging.getLogger(name).setLevel(logging.WARNING)
    defaults = {"log_every_n_steps": min(10, loop.steps), "enable_model_summary": False}
    try:
        return Trainer(**{**own, **defaults, **loop.trainer_options})
    except (RuntimeError, ValueError, TypeError, MisconfigurationException) as error:
        asked = f"accelerator {loop.accelerator!r} with devices {loop.devices!r}"
        further = f" and trainer_options {dict(loop.trainer_options)}" if loop.trainer_options else ""
        raise ThoradError(f"{asked}{further}: {error}") from error


def _callbacks(loop: Loop, history: History, validate_every: int | None) -> list[Callback]:
    """In the order in which they see a step: what is saved comes last."""
    averaging = [] if loop.averaging is None else [partial(average_weights, decay=loop.averaging)]
    return [
        ThreadChoice(loop.threads),
        *loop.callbacks,
        *(WeightAveraging(avg_fn=average) for average in averaging),
        TrainingProgress(history.facts, bar=loop.progress_bar),
        history,
        Checkpoints(history.out / "checkpoints", minutes=loop.checkpoint_minutes, validate_every=validate_every),
    ]


def _loggers(out: Path, first_step: int) -> list[Logger]:
    start = f"from-step-{first_step}"  # one for each start: a logger empties its folder
    return [CSVLogger(out, "logs", start), TensorBoardLogger(out, "logs", start)]


def _precision(loop: Loop) -> Any:
    if loop.precision != "auto":
        return loop.precision
    cuda = loop.accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available()
    return "bf16-mixed" if fast_precision(torch.device("cuda" if cuda else "cpu")) == torch.bfloat16 else "32-true"


def average_weights(averaged: Tensor, current: Tensor, count: Tensor | int, decay: float) -> Tensor:
    """Exponential moving average, whose decay rises to its value as (1 + n) / (10 + n): it soon forgets step 0."""
    if not averaged.is_floating_point():  # what batch normalisation counts
        return current
    now = min(decay, (1 + int(count)) / (10 + int(count)))
    return averaged.lerp(current, 1 - now)
