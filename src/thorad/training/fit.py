"""Learn healthy anatomy: fit a recipe's denoiser to healthy images, and resume where an earlier fit stopped."""

from __future__ import annotations

import pickle
import time
import warnings
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import Logger
from torch import Tensor

from thorad.errors import ThoradError
from thorad.io.atomic import write_atomic
from thorad.model import CALIBRATION, RECIPE, WEIGHTS, load_model, save_model
from thorad.recipe import Recipe, parse_recipe
from thorad.training.callbacks import ReconstructionPictures
from thorad.training.card import training_card
from thorad.training.data import Source, TrainingData, mean_and_deviation, open_images
from thorad.training.module import DiffusionTraining
from thorad.training.trainer import build_trainer, own_callbacks, own_loggers


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
    """Train, or resume the training that `out` holds.

    Args:
        recipe: what to fit.
        train: healthy images: a folder, a table with a column `image`, or a torch `Dataset` whose items are images,
            (H, W) or (1, H, W), or have one under `image` or as their first part. All are scaled and resized as
            `Detector.detect` does it.
        out: folder for ``recipe.toml``, ``checkpoints/``, ``logs/`` (CSV and TensorBoard, one for each start),
            ``pictures/`` and ``model/``.
        validation: the same of other subjects, for the validation loss and the pictures; `MOST_VALIDATED` are used.
        accelerator: Lightning's: "auto", "cpu", "gpu", "mps".
        devices: Lightning's: "auto", a number or a list of indices; processes where the accelerator is "cpu".
        nodes: machines, as Lightning's launchers know them.
        start_from: a model whose weights are the first ones; its network must have the same shapes.
        progress_bar: a bar on the terminal, or a line at every validation.
        workers: processes that read images ahead, for a data set that is slow to read.
        callbacks: Lightning's, called before thorad's own.
        loggers: Lightning's, instead of the files in ``logs/``.
        trainer_options: further options of Lightning's `Trainer`, such as `strategy` or `profiler`.

    Returns:
        The model folder, `out`/model.

    Raises:
        ThoradError: unusable training images, another training in `out`, an unfit `start_from`, device or option; a
            callback or option ended the training before its last step.
    """
    out = Path(out)
    _refuse_other_training(out, recipe)
    images, held_out = open_images(train, validation, recipe, leave_out=out)
    _make_folder(out, recipe)
    if all((out / "model" / name).is_file() for name in (WEIGHTS, CALIBRATION)):
        return out / "model"
    checkpoint = _latest_checkpoint(out / "checkpoints")
    step = 0 if checkpoint is None else _step_of(checkpoint)
    module = _fresh_module(recipe, start_from if checkpoint is None else None)
    pictures = [ReconstructionPictures(held_out, out / "pictures")] if len(held_out) else []
    trainer = build_trainer(
        recipe,
        {"accelerator": accelerator, "devices": devices, "num_nodes": nodes},
        validate=len(held_out) > 0,
        callbacks=[*callbacks, *pictures, *own_callbacks(recipe, out, progress_bar)],
        loggers=own_loggers(out, step) if loggers is None else list(loggers),
        progress_bar=progress_bar,
        options=trainer_options or {},
    )
    began = time.monotonic()
    data = TrainingData(recipe, images, held_out, workers=workers)
    with _expected_warnings():
        trainer.fit(module, datamodule=data, ckpt_path=checkpoint, weights_only=True if checkpoint else None)
    if trainer.global_step < recipe.training.steps:
        raise ThoradError(
            f"{out}: the training was ended at step {trainer.global_step} of {recipe.training.steps}, so there is no "
            "model yet. Call fit again without what ended it, and it resumes."
        )
    if checkpoint is not None and step == recipe.training.steps:
        # Killed between the last checkpoint and the model: nothing was left to train, so nothing was averaged.
        module.load_state_dict(torch.load(checkpoint, map_location="cpu", weights_only=True)["state_dict"])
    if trainer.is_global_zero:
        _drop_older_checkpoints(out / "checkpoints")
        card = training_card(recipe, len(images), len(held_out), trainer, time.monotonic() - began)
        save_model(out / "model", recipe, module.network.state_dict(), *mean_and_deviation(images), card)
    return out / "model"


def _refuse_other_training(out: Path, recipe: Recipe) -> None:
    path = out / RECIPE
    try:
        earlier = path.read_text(encoding="utf-8") if path.is_file() else None
    except OSError as error:
        raise ThoradError(f"{path}: can't be read ({error.strerror}). Give a folder that is yours.") from error
    if earlier is not None and parse_recipe(earlier, source=str(path)) != recipe:
        raise ThoradError(f"{out}: holds a training with another recipe. Use another folder or its recipe.")


def _make_folder(out: Path, recipe: Recipe) -> None:
    try:
        (out / "pictures").mkdir(parents=True, exist_ok=True)
        if not (out / RECIPE).is_file():
            write_atomic(out / RECIPE, recipe.to_toml().encode())  # other processes may look for it right now
    except OSError as error:
        raise ThoradError(
            f"{out}: can't be written ({error.strerror}). Give a folder that you may write to."
        ) from error


def _latest_checkpoint(folder: Path) -> Path | None:
    """The newest checkpoint that is whole: a kill may leave a torn one behind."""
    for path in sorted(folder.glob("*.ckpt"), key=lambda p: p.stat().st_mtime, reverse=True):
        try:
            torch.load(path, map_location="cpu", weights_only=True)
        except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
            if isinstance(error, pickle.UnpicklingError) and zipfile.is_zipfile(path):  # whole, but not only tensors
                raise ThoradError(
                    f"{path}: holds objects that may run code when they are loaded, so it is not loaded. A callback's "
                    "state_dict must give tensors and plain values. Train in another folder."
                ) from error
            continue
        return path
    return None


def _step_of(checkpoint: Path) -> int:
    return int(checkpoint.stem.rpartition("=")[2])


def _drop_older_checkpoints(folder: Path) -> None:
    """Keep the newest: those of runs that were killed are unknown to the last run's own tidying."""
    for path in sorted(folder.glob("*.ckpt"), key=lambda p: p.stat().st_mtime)[:-1]:
        path.unlink()


def _fresh_module(recipe: Recipe, start_from: str | Path | None) -> DiffusionTraining:
    torch.manual_seed(recipe.training.seed)  # the one place where fresh weights are drawn
    module = DiffusionTraining(recipe)
    if start_from is not None:
        weights: Mapping[str, Tensor] = load_model(start_from).network.state_dict()
        wanted = module.network.state_dict()
        if {k: v.shape for k, v in weights.items()} != {k: v.shape for k, v in wanted.items()}:
            raise ThoradError(
                f"{start_from}: its network has other shapes than recipe {recipe.name!r}; can't start from it."
            )
        module.network.load_state_dict(weights)
    return module


@contextmanager
def _expected_warnings() -> Iterator[None]:
    with warnings.catch_warnings():
        # Reading is quick beside a step, unless the caller asks for workers.
        warnings.filterwarnings("ignore", message=".*does not have many workers.*")
        # A training that was killed before its first checkpoint left a log that is worth nothing.
        warnings.filterwarnings("ignore", message="Experiment logs directory .* exists and is not empty")
        # Resuming a training writes into the folder of its earlier checkpoints.
        warnings.filterwarnings("ignore", message="Checkpoint directory .* exists and is not empty")
        # The order of the images resumes by the step's number, not by a state of the loader.
        warnings.filterwarnings("ignore", message=".*your dataloader is not resumable.*")
        # Lightning's own use of torch.
        warnings.filterwarnings("ignore", message=".*LeafSpec.*", category=FutureWarning)
        yield
