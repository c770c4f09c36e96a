"""Lightning's trainer as a recipe asks for it; what else the caller wants goes through to it."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import Callback, ModelCheckpoint, RichProgressBar, WeightAveraging
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger

from thorad.diffusion.engine import fast_precision
from thorad.errors import ThoradError
from thorad.recipe import Recipe
from thorad.training.callbacks import ProgressLines, average_weights

OWN_TRAINER_OPTIONS = frozenset(
    {
        *("accelerator", "devices", "num_nodes", "callbacks", "logger", "enable_progress_bar"),  # arguments of `fit`
        *("precision", "max_steps", "gradient_clip_val", "val_check_interval"),  # the recipe's
        # What would break that a step is one batch, and that a training resumes where it stopped.
        *("max_epochs", "min_epochs", "min_steps", "accumulate_grad_batches", "overfit_batches", "fast_dev_run"),
        *("limit_train_batches", "limit_val_batches", "num_sanity_val_steps", "check_val_every_n_epoch"),
        *("use_distributed_sampler", "enable_checkpointing", "reload_dataloaders_every_n_epochs", "barebones"),
        *("gradient_clip_algorithm", "inference_mode", "default_root_dir"),
    }
)
"""Options of Lightning's trainer that are not the caller's to set."""


def build_trainer(
    recipe: Recipe,
    hardware: Mapping[str, Any],
    *,
    validate: bool,
    callbacks: list[Callback],
    loggers: list[Logger],
    progress_bar: bool,
    options: Mapping[str, Any],
) -> lightning.Trainer:
    """A trainer whose one pass over its data is the whole training.

    Args:
        recipe: how long to train, and how often to validate.
        hardware: `accelerator`, `devices` and `num_nodes` of Lightning's trainer.
        validate: whether there are images to validate on.
        callbacks: all of them.
        loggers: all of them.
        progress_bar: on the terminal.
        options: further options of Lightning's trainer.

    Raises:
        ThoradError: an option of `OWN_TRAINER_OPTIONS`, or one that Lightning refuses.
    """
    if owned := sorted(options.keys() & OWN_TRAINER_OPTIONS):
        raise ThoradError(
            f"trainer_options: {', '.join(owned)} can't be set here, because thorad sets it. The recipe says how long "
            "to train and how, the arguments of fit say where, and with which callbacks and loggers."
        )
    # Lightning's hints about loggers and accelerators are not the user's concern here.
    for name in ("lightning.pytorch.utilities.rank_zero", "lightning.pytorch.accelerators.cuda"):
        logging.getLogger(name).setLevel(logging.WARNING)
    training = recipe.training
    own = {
        **hardware,
        "precision": _precision(recipe, hardware["accelerator"]),
        "max_steps": training.steps,
        "max_epochs": -1,
        "gradient_clip_val": training.gradient_norm,
        "val_check_interval": min(training.validate_every, training.steps) if validate else None,
        "limit_val_batches": None if validate else 0,
        "num_sanity_val_steps": 0,
        "log_every_n_steps": min(10, training.steps),
        "logger": loggers,
        "callbacks": callbacks,
        "enable_progress_bar": progress_bar,
        "enable_model_summary": False,
        "use_distributed_sampler": False,
    }
    try:
        return lightning.Trainer(**{**own, **options})
    except (RuntimeError, ValueError, TypeError, MisconfigurationException) as error:
        further = f" and trainer_options {dict(options)}" if options else ""
        asked = f"accelerator {hardware['accelerator']!r} with devices {hardware['devices']!r}{further}"
        raise ThoradError(f"{asked}: {error}") from error


def own_callbacks(recipe: Recipe, out: Path, progress_bar: bool) -> list[Callback]:
    """Checkpoints, averaged weights and progress.

    A callback that looks at the averaged weights after a validation must come before these.
    """
    training = recipe.training
    checkpoints = ModelCheckpoint(
        out / "checkpoints",
        filename="{step}",
        train_time_interval=timedelta(minutes=training.checkpoint_minutes),
        save_top_k=1,
    )
    averaging = WeightAveraging(
        avg_fn=lambda averaged, current, count: average_weights(averaged, current, count, training.ema)
    )
    return [checkpoints, averaging, RichProgressBar() if progress_bar else ProgressLines()]


def own_loggers(out: Path, step: int) -> list[Logger]:
    """CSV and TensorBoard in ``logs/from-step-<step>``: each start has its own, a logger empties its folder."""
    log = f"from-step-{step}"
    return [CSVLogger(out, "logs", log), TensorBoardLogger(out, "logs", log)]


def _precision(recipe: Recipe, accelerator: str) -> Any:
    if recipe.training.precision != "auto":
        return recipe.training.precision
    cuda = accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available()
    fast = fast_precision(torch.device("cuda" if cuda else "cpu")) == torch.bfloat16
    return "bf16-mixed" if fast else "32-true"
