"""Learn healthy anatomy: fit a recipe's denoiser to healthy images, and resume where an earlier fit stopped."""

from __future__ import annotations

import logging
import pickle
import platform
import time
import warnings
import zipfile
from collections.abc import Iterable, Mapping
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning import LightningModule, Trainer
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import Callback, ModelCheckpoint, RichProgressBar, WeightAveraging
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger
from torch import Tensor

from thorad import __version__
from thorad.diffusion.engine import fast_precision
from thorad.errors import ThoradError
from thorad.io.atomic import write_atomic
from thorad.io.images import write_png8
from thorad.model import CALIBRATION, RECIPE, WEIGHTS, load_model, save_model
from thorad.recipe import Recipe, parse_recipe
from thorad.training.data import Images, Source, TrainingData, mean_and_deviation, open_images
from thorad.training.domain import learn_domain
from thorad.training.module import DiffusionTraining

EXPECTED_WARNINGS = (
    ".*does not have many workers.*",  # reading is quick beside a step, unless the caller asks for workers
    "Experiment logs directory .* exists and is not empty",  # left by a training that was killed before a checkpoint
    "Checkpoint directory .* exists and is not empty",  # that is where resuming starts
    ".*your dataloader is not resumable.*",  # it is: its order goes by the step's number
    ".*LeafSpec.*",  # Lightning's own use of torch
)

BREAKS_RESUMING = {
    *("accumulate_grad_batches", "overfit_batches", "limit_train_batches", "fast_dev_run", "barebones"),
    "enable_checkpointing",
}
"""Options of Lightning's trainer with which a step is not one batch, or nothing is left to resume from."""


def fit(
    recipe: Recipe,
    train: Source,
    out: str | Path,
    *,
    validation: Source | None = None,
    accelerator: str = "auto",
    devices: str | int | list[int] = "auto",
    nodes: int = 1,
    start_from: str | Path | None = None,
    progress_bar: bool = True,
    workers: int = 0,
    callbacks: Iterable[Callback] = (),
    loggers: Iterable[Logger] | None = None,
    trainer_options: Mapping[str, Any] | None = None,
) -> Path:
    """Train, or resume the training that `out` holds; gives the model's folder in `out`.

    Args:
        train: healthy images: a folder, a table with a column `image`, or a torch `Dataset` whose items are images,
            (H, W) or (1, H, W), or have one under `image` or as their first part. All are scaled and resized as
            `Detector.detect` does it.
        out: folder for ``recipe.toml``, ``checkpoints/``, ``logs/``, ``pictures/`` and ``model/``.
        validation: the same of other subjects, for the validation loss and the pictures; `MOST_VALIDATED` are used.
        accelerator: Lightning's: "auto", "cpu", "gpu", "mps".
        devices: Lightning's: "auto", a number or a list of indices; processes where the accelerator is "cpu".
        start_from: a model whose weights are the first ones; its network must have the same shapes.
        progress_bar: a bar on the terminal, or a line at every validation.
        workers: processes that read images ahead, for a data set that is slow to read.
        callbacks: Lightning's, called before thorad's own.
        loggers: Lightning's, instead of CSV and TensorBoard files in ``logs/``, a folder for each start.
        trainer_options: further options of Lightning's `Trainer`, such as `strategy` or `profiler`.

    Raises:
        ThoradError: unusable training images, another training in `out`, an unfit `start_from`, device or option; a
            callback or option ended the training before its last step.
    """
    out = Path(out)
    images, held_out = open_images(train, validation, recipe, leave_out=out)
    _claim(out, recipe)
    model = out / "model"
    if all((model / name).is_file() for name in (WEIGHTS, CALIBRATION)):
        return model
    checkpoint = _newest_checkpoint(out / "checkpoints")
    module = _fresh_module(recipe, start_from if checkpoint is None else None)
    log = f"from-step-{_step_of(checkpoint)}"  # one for each start: a logger empties its folder
    every = timedelta(minutes=recipe.training.checkpoint_minutes)
    own = [
        # Averaging takes the averaged weights away at the end of a validation: what looks at them comes before.
        *([ReconstructionPictures(held_out, out / "pictures")] if len(held_out) else []),
        ModelCheckpoint(out / "checkpoints", filename="{step}", train_time_interval=every, save_top_k=1),
        WeightAveraging(avg_fn=partial(average_weights, decay=recipe.training.ema)),
        RichProgressBar() if progress_bar else ProgressLines(),
    ]
    arguments = {
        **{"accelerator": accelerator, "devices": devices, "num_nodes": nodes, "enable_progress_bar": progress_bar},
        "callbacks": [*callbacks, *own],
        "logger": [CSVLogger(out, "logs", log), TensorBoardLogger(out, "logs", log)] if loggers is None else [*loggers],
    }
    trainer = _trainer(recipe, arguments, trainer_options or {}, validate=len(held_out) > 0)
    began = time.monotonic()
    _run(trainer, module, TrainingData(recipe, images, held_out, workers=workers), checkpoint)
    if trainer.global_step < recipe.training.steps:
        raise ThoradError(
            f"{out}: the training was ended at step {trainer.global_step} of {recipe.training.steps}, so there is no "
            "model yet. Call fit again without what ended it, and it resumes."
        )
    if trainer.is_global_zero:
        # Checkpoints of runs that were killed are unknown to the last run's own tidying.
        for path in {*(out / "checkpoints").glob("*.ckpt")} - {_newest_checkpoint(out / "checkpoints")}:
            path.unlink()
        if not all(bool(weights.isfinite().all()) for weights in module.network.state_dict().values()):
            raise ThoradError(f"{out}: the training diverged, weights are not finite. Lower training.learning_rate.")
        card = _card(recipe, len(images), len(held_out), trainer, time.monotonic() - began)
        statistics = mean_and_deviation(images)
        save_model(
            model, recipe, module.network.state_dict(), *statistics, card, picture_domain=learn_domain(images, recipe)
        )
    return model


def _trainer(recipe: Recipe, arguments: Mapping[str, Any], options: Mapping[str, Any], *, validate: bool) -> Trainer:
    """A trainer whose one pass over its data is the whole training."""
    training = recipe.training
    own = {
        **arguments,
        "precision": _precision(recipe, arguments["accelerator"]),
        "max_steps": training.steps,
        "max_epochs": -1,
        "gradient_clip_val": training.gradient_norm,
        "val_check_interval": min(training.validate_every, training.steps) if validate else None,
        "limit_val_batches": None if validate else 0,
        "num_sanity_val_steps": 0,
        "use_distributed_sampler": False,
    }
    if owned := sorted(options.keys() & (own.keys() | BREAKS_RESUMING)):
        raise ThoradError(
            f"trainer_options: {', '.join(owned)} can't be set here, because thorad sets it. The recipe says how long "
            "to train and how, the arguments of fit say where, and with which callbacks and loggers."
        )
    # Lightning's hints about loggers and accelerators are not the user's concern here.
    for name in ("lightning.pytorch.utilities.rank_zero", "lightning.pytorch.accelerators.cuda"):
        logging.getLogger(name).setLevel(logging.WARNING)
    defaults = {"log_every_n_steps": min(10, training.steps), "enable_model_summary": False}
    try:
        return Trainer(**{**own, **defaults, **options})
    except (RuntimeError, ValueError, TypeError, MisconfigurationException) as error:
        asked = f"accelerator {own['accelerator']!r} with devices {own['devices']!r}"
        further = f" and trainer_options {dict(options)}" if options else ""
        raise ThoradError(f"{asked}{further}: {error}") from error


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


def _precision(recipe: Recipe, accelerator: str) -> Any:
    cuda = accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available()
    fast = "bf16-mixed" if fast_precision(torch.device("cuda" if cuda else "cpu")) == torch.bfloat16 else "32-true"
    return fast if recipe.training.precision == "auto" else recipe.training.precision


def _run(trainer: Trainer, module: DiffusionTraining, data: TrainingData, checkpoint: Path | None) -> None:
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
    if checkpoint and _step_of(checkpoint) == trainer.max_steps:
        # Killed between the last checkpoint and the model: nothing was left to train, so nothing was averaged.
        module.load_state_dict(torch.load(checkpoint, map_location="cpu", weights_only=True)["state_dict"])


def _claim(out: Path, recipe: Recipe) -> None:
    """Make `out`, or check that it holds this recipe's training."""
    path = out / RECIPE
    try:
        (out / "pictures").mkdir(parents=True, exist_ok=True)
        if not path.is_file():
            write_atomic(path, recipe.to_toml().encode())  # other processes may look for it right now
        earlier = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ThoradError(
            f"{out}: can't be written ({error.strerror}). Give a folder that you may write to."
        ) from error
    # What the model is for changes no weight, and older recipes don't say it.
    if parse_recipe(earlier, source=str(path)).model_copy(update={"domain": recipe.domain}) != recipe:
        raise ThoradError(f"{out}: holds a training with another recipe. Use another folder or its recipe.")


def _newest_checkpoint(folder: Path) -> Path | None:
    """The newest whole one: a kill may leave a torn one behind, and a ZIP archive ends with its list of contents."""
    whole = (path for path in folder.glob("*.ckpt") if zipfile.is_zipfile(path))
    return max(whole, key=lambda path: path.stat().st_mtime, default=None)


def _step_of(checkpoint: Path | None) -> int:
    return int(checkpoint.stem.rpartition("=")[2]) if checkpoint else 0


def _fresh_module(recipe: Recipe, start_from: str | Path | None) -> DiffusionTraining:
    torch.manual_seed(recipe.training.seed)  # the one place where fresh weights are drawn
    module = DiffusionTraining(recipe)
    if start_from is not None:
        weights, wanted = load_model(start_from).network.state_dict(), module.network.state_dict()
        if {k: v.shape for k, v in weights.items()} != {k: v.shape for k, v in wanted.items()}:
            raise ThoradError(
                f"{start_from}: its network has other shapes than recipe {recipe.name!r}; can't start from it."
            )
        module.network.load_state_dict(weights)
    return module


def _card(recipe: Recipe, trained_on: int, validated_on: int, trainer: Trainer, seconds: float) -> str:
    noise = recipe.noise
    predicts = {"noise": "the noise", "clean": "the clean image"}[noise.prediction]
    where = f"one cell of {noise.patch_noise} px of an image" if noise.patch_noise else "the whole image"
    timesteps = f"{f'from {noise.train_from} and ' if noise.train_from else ''}below {noise.train_below}"
    learned = f"{predicts}, from {where} under {' or '.join(noise.trained_kinds)} noise, timesteps {timesteps}"
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
| predicts | {learned} |
| figures | not measured: run `thorad evaluate` on labelled cases |

Fill in before you share it: where the images come from, their licence, for whom the model is valid.
"""
