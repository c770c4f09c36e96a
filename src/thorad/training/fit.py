"""Learn healthy anatomy: fit a recipe's denoiser to healthy images, and resume where an earlier fit stopped."""

from __future__ import annotations

import platform
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final

import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import Logger

from thorad import __version__
from thorad.errors import ThoradError
from thorad.io.atomic import write_atomic
from thorad.io.images import write_png8
from thorad.io.tables import listing
from thorad.model import CALIBRATION, RECIPE, WEIGHTS, Model, load_model, save_model
from thorad.recipe import Recipe, parse_recipe
from thorad.training.average_precision import MEASURED_ON, BestWeights
from thorad.training.data import FileImages, Images, Source, TrainingData, claim, mean_and_deviation, open_images
from thorad.training.domain import learn_domain
from thorad.training.history import History
from thorad.training.loop import Loop, run_training
from thorad.training.module import DiffusionTraining
from thorad.training.progress import newest_checkpoint

STAYS: Final = ("kinds", "timesteps", "beta_start", "beta_end")
"""Of a recipe's noise, what weights to start from must have been trained with."""


def fit(
    recipe: Recipe,
    train: Source,
    out: str | Path,
    *,
    validation: Source | None = None,
    accelerator: str = "auto",
    devices: str | int | list[int] = "auto",
    nodes: int = 1,
    threads: int | None = None,
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
        out: folder for ``training.html`` to look at, ``curve.svg``, ``average_precision.svg``, ``recipe.toml``,
            ``checkpoints/``, ``logs/``, ``pictures/`` and ``model/``.
        validation: the same of other subjects, for the validation loss, the pictures and the average precision on
            anomalies made up in them, by which `training.keep` may choose the weights; `MOST_VALIDATED` are used.
        accelerator: Lightning's: "auto", "cpu", "gpu", "mps".
        devices: Lightning's: "auto", a number or a list of indices; processes where the accelerator is "cpu".
        threads: of a CPU; None measures in the first steps which number is fastest, unless OMP_NUM_THREADS is set. The
            weights' last digits depend on it; a resumed training keeps it.
        start_from: a model whose weights are the first ones; its network must have the same shapes, its recipe the same
            kinds of noise, schedule and input range. A resumed training asks for it again.
        progress_bar: a bar, if stderr is a terminal; otherwise a line each minute and validation, of level INFO of the
            logger ``thorad.training``.
        workers: processes that read images ahead, for a data set that is slow to read.
        callbacks: Lightning's, called before thorad's own.
        loggers: Lightning's, instead of CSV and TensorBoard files in ``logs/``, a folder for each start.
        trainer_options: further options of Lightning's `Trainer`, such as `strategy` or `profiler`.

    Raises:
        ThoradError: unusable training images, another training in `out`, an unfit `start_from`, device or option; a
            callback or option ended the training before its last step.
        Interrupted: SIGINT, SIGTERM or SIGUSR1 ended it; its state is saved.
    """
    out = Path(out)
    images, held_out = open_images(train, validation, recipe, leave_out=out)
    _claim(out, recipe)
    start = None if start_from is None else load_model(start_from)
    _refuse_trained_on(start, held_out)
    claim(out, "recipe.toml", images, held_out, "" if start is None else start.sha256)
    model = out / "model"
    if all((model / name).is_file() for name in (WEIGHTS, CALIBRATION)):
        return model
    resumes = newest_checkpoint(out / "checkpoints") is not None
    module = _fresh_module(recipe, None if resumes else start)
    # Averaging takes the averaged weights away at the end of a validation: what looks at them comes before.
    history = _history(out, recipe, len(images), len(held_out))
    best = BestWeights(held_out, history, keep=recipe.training.keep == "best")
    validated = [ReconstructionPictures(held_out, out / "pictures"), best] if len(held_out) else []
    loop = Loop(
        **_recipe_options(recipe, validates=len(held_out) > 0),
        accelerator=accelerator,
        devices=devices,
        nodes=nodes,
        threads=threads,
        progress_bar=progress_bar,
        callbacks=[*callbacks, *validated],
        loggers=loggers,
        trainer_options=trainer_options or {},
    )
    began = time.monotonic()
    data = TrainingData(recipe, images, held_out, workers=workers)
    trainer = run_training(module, data, loop, history)
    if trainer.is_global_zero:
        told = best.choose(trainer, module)
        card = _card(recipe, len(images), len(held_out), trainer, time.monotonic() - began, told, start)
        _save(model, module, images, card, frozenset() if start is None else start.trained_on)
    return model


def _save(model: Path, module: DiffusionTraining, images: Images, card: str, before: frozenset[str]) -> None:
    recipe, state = module.recipe, module.network.state_dict()
    if not all(bool(weights.isfinite().all()) for weights in state.values()):
        raise ThoradError(
            f"{model.parent}: the training diverged, weights are not finite. Lower training.learning_rate."
        )
    domain = learn_domain(images, recipe)
    trained_on = before | images.contents.keys() if isinstance(images, FileImages) else before
    statistics = mean_and_deviation(images)
    save_model(model, recipe, state, *statistics, card, picture_domain=domain, trained_on=trained_on)


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


def _recipe_options(recipe: Recipe, *, validates: bool) -> dict[str, Any]:
    """What a recipe says of its training's `Loop`."""
    training = recipe.training
    return {
        "steps": training.steps,
        "checkpoint_minutes": training.checkpoint_minutes,
        "validate_every": training.validate_every if validates else None,
        "gradient_norm": training.gradient_norm,
        "averaging": training.ema,
        "precision": training.precision,
    }


def _history(out: Path, recipe: Recipe, trained_on: int, validated_on: int) -> History:
    facts = {
        "training": f"{recipe.name} in {out}",
        "images": f"{trained_on} to train on, {validated_on or 'none'} to validate on",
        "a step": f"{recipe.training.batch_size} images of {recipe.image.size} px",
    }
    middle = recipe.noise.train_below // 2
    labels = ["healthy image"]
    for kind in recipe.noise.trained_kinds:
        labels += [f"{kind} noise, timestep {middle}", "restored from it"]
    return History(
        out,
        facts,
        recipe.to_toml(),
        batch_size=recipe.training.batch_size,
        measured_on=MEASURED_ON,
        keeps_best=recipe.training.keep == "best",
        labels=labels,
    )


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
    if parse_recipe(earlier, source=str(path), written_out=True).model_copy(update={"domain": recipe.domain}) != recipe:
        raise ThoradError(f"{out}: holds a training with another recipe. Use another folder or its recipe.")


def _refuse_trained_on(start: Model | None, validation: Images) -> None:
    """Raise where weights to start from have learned what they would be validated on."""
    if start is None:
        return
    if seen := start.learned((str(index), validation[index]) for index in range(len(validation))):
        raise ThoradError(
            f"Model {start.recipe.name!r}, to start from, was trained on {len(seen)} of these {len(validation)} "
            "validation images. What is measured on them says nothing; give others."
        )


def _fresh_module(recipe: Recipe, start: Model | None) -> DiffusionTraining:
    torch.manual_seed(recipe.training.seed)  # the one place where fresh weights are drawn
    module = DiffusionTraining(recipe)
    if start is not None:
        weights, wanted = start.network.state_dict(), module.network.state_dict()
        given = start.recipe
        others = [name for name in STAYS if getattr(given.noise, name) != getattr(recipe.noise, name)]
        if given.image.input_range != recipe.image.input_range:
            others.append("input_range")
        if {k: v.shape for k, v in weights.items()} != {k: v.shape for k, v in wanted.items()}:
            others.append("shapes of the network")
        if others:
            raise ThoradError(
                f"model {given.name!r}, to start from, has other {listing(others)} than recipe {recipe.name!r}: its "
                "weights would mean something else. Give the recipe the same, or train from the beginning."
            )
        module.network.load_state_dict(weights)
    return module


def _card(
    recipe: Recipe,
    trained_on: int,
    validated_on: int,
    trainer: Trainer,
    seconds: float,
    weights: str,
    start: Model | None,
) -> str:
    noise = recipe.noise
    predicts = {"noise": "the noise", "clean": "the clean image"}[noise.prediction]
    where = f"one cell of {noise.patch_noise} px of an image" if noise.patch_noise else "the whole image"
    timesteps = f"{f'from {noise.train_from} and ' if noise.train_from else ''}below {noise.train_below}"
    began_with = "fresh weights" if start is None else f"model {start.recipe.name}, weights of sha256 {start.sha256}"
    learned = f"{predicts}, from {where} under {' or '.join(noise.trained_kinds)} noise, timesteps {timesteps}"
    return f"""# {recipe.name}

{recipe.description}

Research use only; not a medical device.

| | |
|---|---|
| made by | thorad {__version__}, torch {torch.__version__} |
| trained on | {trained_on} images (validated on {validated_on}) |
| steps | {trainer.global_step} of {recipe.training.batch_size * trainer.world_size} images |
| weights | {weights} |
| started from | {began_with} |
| time | {seconds / 3600:.2f} h since the last start, {trainer.world_size} process(es), {platform.machine()} |
| precision | {trainer.precision} |
| predicts | {learned} |
| figures | not measured: run `thorad evaluate` on labelled cases |

Fill in before you share it: where the images come from, their licence, for whom the model is valid.
"""
