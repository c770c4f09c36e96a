"""Learn healthy anatomy: fit a recipe's denoiser to a folder of healthy images.

Ho, Jain, Abbeel: Denoising Diffusion Probabilistic Models, 2020, algorithm 1: predict the noise, mean squared error.
Behrendt, Bhattacharya, Krüger, Opfer, Schlaefer: Patched Diffusion Models for Unsupervised Anomaly Detection in Brain
MRI, MIDL 2023, arXiv:2303.03758 (pDDPM): noise a part of the image, predict the clean image, absolute error.

Everything random in a training step depends on (seed, step, process) alone, so that a run that was killed and resumed
ends with the weights of an uninterrupted one.
"""

from __future__ import annotations

import logging
import math
import pickle
import platform
import time
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from functools import lru_cache
from pathlib import Path
from typing import Any, Self

import lightning
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint, RichProgressBar, WeightAveraging
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from torch import Tensor
from torch.utils.data import DataLoader

from thorad import __version__
from thorad.datasets.cases import training_images
from thorad.diffusion.network import fast_precision
from thorad.diffusion.noise import NOISES
from thorad.diffusion.schedule import Schedule
from thorad.errors import ThoradError
from thorad.io.atomic import write_atomic
from thorad.io.images import read_image, write_png8
from thorad.io.preprocess import to_model_input
from thorad.model import CALIBRATION, RECIPE, WEIGHTS, build_network, load_model, save_model
from thorad.recipe import Recipe, parse_recipe
from thorad.training.augmentation import augment

PICTURE_NOISE_LEVEL = 0.5
"""Share of the trained timesteps at which the validation picture noises its images."""

MOST_VALIDATED = 64
"""Images of a validation pass, the first ones; each costs five network calls for every kind of noise."""


@dataclass(frozen=True)
class _Images:
    """The images of a training, on the host: (N, 1, S, S) in [0, 1] each."""

    train: Tensor
    validation: Tensor

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        # Averaging the weights deep-copies the module that holds this; the images would take their memory twice.
        return self


class DiffusionTraining(lightning.LightningModule):
    """The denoiser and its loss, for Lightning's trainer.

    Args:
        recipe: what to fit.
        images: (N, 1, S, S) in [0, 1], healthy, on the host.
        validation: (M, 1, S, S) in [0, 1]; M may be 0.
        pictures: folder for the pictures of reconstructions.
    """

    def __init__(self, recipe: Recipe, images: Tensor, validation: Tensor, pictures: Path) -> None:
        super().__init__()
        self.recipe = recipe
        self.network = build_network(recipe)
        self.diffusion = Schedule(recipe.noise.timesteps, recipe.noise.beta_start, recipe.noise.beta_end)
        self.images = _Images(images, validation)
        self.pictures = pictures

    @property
    def cells(self) -> int:
        """How many parts of an image are noised separately."""
        return (self.recipe.image.size // (self.recipe.noise.patch_noise or self.recipe.image.size)) ** 2

    def training_step(self, batch: Tensor, batch_index: int) -> Tensor:
        """The loss of one batch; which images it holds follows from the step's number, not from the loader."""
        noise, size = self.recipe.noise, self.recipe.training.batch_size
        generator = _generator(self.recipe.training.seed, self.global_step, self.global_rank)
        first = (self.global_step * self.trainer.world_size + self.global_rank) * size
        chosen = images_of_batch(first, size, len(self.images.train), self.recipe.training.seed)
        x = augment(self.images.train[chosen], self.recipe.augmentation, generator) * 2 - 1
        kind = torch.multinomial(torch.tensor(noise.share), size, replacement=True, generator=generator)
        trained = noise.train_below - noise.train_from
        t = noise.train_from + (trained * torch.rand(size, generator=generator) ** noise.timestep_power).long()
        t = t.clamp(max=noise.train_below - 1)
        cell = torch.randint(self.cells, (size,), generator=generator) if noise.patch_noise else None
        loss, of_kind = self._losses(x, t, kind, generator, cell)
        for name, value in of_kind.items():
            self.log(f"train/{name}", value, on_step=True, on_epoch=False)
        self.log("train/loss", loss, prog_bar=True)
        return loss

    def validation_step(self, batch: Tensor, batch_index: int) -> None:
        """The loss of one validation image with each kind of noise at a fixed spread of timesteps."""
        index = int(batch)
        generator = _generator(self.recipe.training.seed, -1 - index, 0)
        noise = self.recipe.noise
        spread = torch.linspace(noise.train_from, noise.train_below - 1, 5).long()
        kind = torch.tensor([noise.kinds.index(trained) for trained in noise.trained_kinds for _ in spread])
        t = spread.repeat(len(noise.trained_kinds))
        x = self.images.validation[index].expand(len(t), -1, -1, -1) * 2 - 1
        cell = torch.full_like(t, index % self.cells) if noise.patch_noise else None
        loss, of_kind = self._losses(x, t, kind, generator, cell)
        self.log("validation/loss", loss, on_epoch=True, sync_dist=True, batch_size=1)
        for name, value in of_kind.items():
            self.log(f"validation/{name}", value, on_epoch=True, sync_dist=True, batch_size=1)

    def on_validation_epoch_end(self) -> None:
        """Write the picture of reconstructions: a row each of images, noised images and clean estimates."""
        if self.global_rank == 0 and len(self.images.validation) and not self.trainer.sanity_checking:
            write_png8(self.pictures / f"step-{self.global_step:07d}.png", self._reconstructions().numpy())

    def configure_optimizers(self) -> Any:
        """AdamW (Adam where the weight decay is 0) with warm-up and, where asked, a cosine."""
        training = self.recipe.training
        optimiser = torch.optim.AdamW(
            self.network.parameters(), lr=training.learning_rate, weight_decay=training.weight_decay
        )
        rate = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: learning_rate_factor(step, self.recipe))
        return {"optimizer": optimiser, "lr_scheduler": {"scheduler": rate, "interval": "step"}}

    def train_dataloader(self) -> DataLoader[int]:
        """One pass is the whole training: an item for every step."""
        return DataLoader(range(self.recipe.training.steps * self.trainer.world_size), batch_size=1)  # type: ignore[arg-type]

    def val_dataloader(self) -> DataLoader[int]:
        """The validation images' indices."""
        return DataLoader(range(len(self.images.validation)), batch_size=1)  # type: ignore[arg-type]

    def _losses(
        self, x: Tensor, t: Tensor, kind: Tensor, generator: torch.Generator, cell: Tensor | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Weighted mean error of the prediction, and each kind's own unweighted mean.

        The error is squared; of images that are noised in a cell only it is the absolute error inside that cell.

        Args:
            x: (B, 1, S, S) in [-1, 1].
            t: (B,) timesteps, on the host, as is `kind`: asking an accelerator for them would wait for all its work.
            kind: (B,) indices of the recipe's kinds of noise.
            generator: of the noise.
            cell: (B,) which cell of the recipe's grid is noised, on the host; None noises the whole image.
        """
        x, kinds = x.to(self.device), kind.tolist()
        eps = self._noise_of(kinds, x, generator)
        x_t = self.diffusion.add_noise(x, eps, t)
        box = None if cell is None else self._boxes(cell)
        if box is not None:
            x_t = torch.where(box, x_t, x)
        predicted = self.network(x_t, t.to(self.device), kind.to(self.device))
        difference = predicted - (x if self.recipe.noise.prediction == "clean" else eps)
        if box is None:
            error = difference.square().mean((1, 2, 3))  # (B,)
        else:
            error = (difference.abs() * box).sum((1, 2, 3)) / box.sum((1, 2, 3))  # (B,)
        weight = torch.tensor(self.recipe.noise.loss_weight)[kind].to(self.device)
        if self.recipe.noise.min_snr:
            alpha_bar = self.diffusion.alpha_bar[t].to(weight)
            snr = alpha_bar / (1 - alpha_bar)  # (B,)
            weight = weight * snr.clamp(max=self.recipe.noise.min_snr) / snr
        of_kind = {}
        for k in sorted(set(kinds)):
            places = [i for i, of_image in enumerate(kinds) if of_image == k]
            of_kind[self.recipe.noise.kinds[k]] = error[places].mean().detach()
        return (weight * error).mean(), of_kind

    def _boxes(self, cell: Tensor) -> Tensor:
        """(B, 1, S, S), True in the given cell (B,) of the grid; cells are counted along the rows."""
        size, side = self.recipe.image.size, self.recipe.noise.patch_noise
        along = torch.arange(size) // side  # (S,)
        number = along[:, None] * (size // side) + along  # (S, S)
        return (number == cell.view(-1, 1, 1, 1)).to(self.device)

    def _noise_of(self, kinds: list[int], x: Tensor, generator: torch.Generator) -> Tensor:
        eps = torch.empty_like(x)
        for k in sorted(set(kinds)):
            of_kind = [i for i, kind in enumerate(kinds) if kind == k]
            make = NOISES[self.recipe.noise.kinds[k]]
            eps[of_kind] = make([generator] * len(of_kind), x.shape[-2], x.shape[-1], x.device)
        return eps

    @torch.no_grad()
    def _reconstructions(self) -> Tensor:
        x = (self.images.validation[:8] * 2 - 1).to(self.device)
        t = int(PICTURE_NOISE_LEVEL * self.recipe.noise.train_below)
        # A patched network learns nothing about the clean cells: the image stays there, as in its method.
        box = self._boxes(torch.arange(len(x)) % self.cells) if self.recipe.noise.patch_noise else None
        rows = [x]
        for k in map(self.recipe.noise.kinds.index, self.recipe.noise.trained_kinds):
            eps = self._noise_of([k] * len(x), x, _generator(self.recipe.training.seed, -1, 0))
            x_t = self.diffusion.add_noise(x, eps, t)
            x_t = x_t if box is None else torch.where(box, x_t, x)
            steps = torch.full((len(x),), t, device=self.device)
            predicted = self.network(x_t, steps, torch.full_like(steps, k))
            clean = predicted
            if self.recipe.noise.prediction == "noise":
                clean = self.diffusion.predict_clean(x_t, predicted, t)
            rows += [x_t, clean if box is None else torch.where(box, clean, x)]
        strips = [torch.cat(list(row[:, 0]), dim=1) for row in rows]  # (S, 8 S) each
        return ((torch.cat(strips) + 1) / 2).clamp(0, 1).float().cpu()


class _OneLine(Callback):
    """Where there is no terminal: a line a validation instead of a bar."""

    def __init__(self) -> None:
        self._began, self._first = time.monotonic(), 0

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        self._began, self._first = time.monotonic(), trainer.global_step

    def on_validation_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
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


def fit(
    recipe: Recipe,
    train: Path,
    out: Path,
    *,
    validation: Path | None = None,
    accelerator: str = "auto",
    devices: str = "auto",
    nodes: int = 1,
    start_from: str | Path | None = None,
    progress_bar: bool = True,
) -> Path:
    """Train, or go on with the training that `out` holds.

    Args:
        recipe: what to fit.
        train: folder of healthy images, or a table with a column `image`.
        out: folder for ``recipe.toml``, ``checkpoints/``, ``logs/`` (CSV and TensorBoard, one a start), ``pictures/``
            and ``model/``.
        validation: the same of other subjects, for the validation loss and the pictures; `MOST_VALIDATED` are used.
        accelerator: Lightning's: "auto", "cpu", "gpu", "mps".
        devices: Lightning's: "auto", a number or a list of indices; processes where the accelerator is "cpu".
        nodes: machines, as Lightning's launchers know them.
        start_from: a model whose weights are the first ones; its network must have the same shapes.
        progress_bar: a bar on the terminal, or a line at every validation.

    Returns:
        The model folder, `out`/model.

    Raises:
        ThoradError: unusable training folder or images, another training in `out`, an unfit `start_from` or device.
    """
    train_files, validation_files = training_images(train, validation, leave_out=out)
    images = _load(train_files, recipe.image.size)
    held_out = _load(validation_files[:MOST_VALIDATED], recipe.image.size)
    _claim(out, recipe)
    model_folder = out / "model"
    if all((model_folder / name).is_file() for name in (WEIGHTS, CALIBRATION)):
        return model_folder
    latest = _latest_checkpoint(out / "checkpoints")
    torch.manual_seed(recipe.training.seed)  # the one place where fresh weights are drawn
    module = DiffusionTraining(recipe, images, held_out, out / "pictures")
    if start_from is not None and latest is None:
        _start_from(module, start_from)
    began = time.monotonic()
    # A log of its own for each start: a logger empties the folder that it is given.
    log = f"from-step-{_step_of(latest) if latest else 0}"
    trainer = _trainer(recipe, out, log, accelerator, devices, nodes, bool(len(held_out)), progress_bar)
    with warnings.catch_warnings():
        # The loader only counts steps; more workers would do nothing.
        warnings.filterwarnings("ignore", message=".*does not have many workers.*")
        # A training that was killed before its first checkpoint left a log that is worth nothing.
        warnings.filterwarnings("ignore", message="Experiment logs directory .* exists and is not empty")
        # Lightning's own use of torch.
        warnings.filterwarnings("ignore", message=".*LeafSpec.*", category=FutureWarning)
        trainer.fit(module, ckpt_path=latest, weights_only=True if latest else None)
    if latest is not None and _step_of(latest) == recipe.training.steps:
        # Killed between the last checkpoint and the model: nothing was left to train, so nothing was averaged.
        module.load_state_dict(torch.load(latest, map_location="cpu", weights_only=True)["state_dict"])
    if trainer.is_global_zero and trainer.global_step >= recipe.training.steps:
        _drop_older_checkpoints(out / "checkpoints")
        x = images * 2 - 1
        card = _card(recipe, len(images), len(held_out), trainer, time.monotonic() - began)
        deviation = x.std(0, correction=0)
        save_model(model_folder, recipe, module.network.state_dict(), x.mean(0), deviation, card)
    return model_folder


def learning_rate_factor(step: int, recipe: Recipe) -> float:
    """The learning rate at a step, as a share of the recipe's."""
    training = recipe.training
    warm = min(1.0, (step + 1) / training.warm_up) if training.warm_up else 1.0
    if training.schedule == "constant":
        return warm
    return warm * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * min(step / training.steps, 1))))


def average_weights(averaged: Tensor, current: Tensor, count: Tensor | int, decay: float) -> Tensor:
    """Exponential moving average, whose decay rises to its value as (1 + n) / (10 + n): it soon forgets step 0."""
    now = min(decay, (1 + int(count)) / (10 + int(count)))
    return averaged.lerp(current, 1 - now)


def images_of_batch(first: int, size: int, count: int, seed: int) -> list[int]:
    """Places first ... first + size - 1 in an endless row of shuffles of `count` images."""
    return [_shuffle(place // count, count, seed)[place % count] for place in range(first, first + size)]


@lru_cache(maxsize=4)
def _shuffle(epoch: int, count: int, seed: int) -> list[int]:
    return torch.randperm(count, generator=_generator(seed, epoch, -1)).tolist()


def _generator(seed: int, step: int, process: int) -> torch.Generator:
    # Odd multipliers keep neighbouring (seed, step, process) apart in the lower 32 bits, all that torch's CPU generator
    # takes of a seed.
    mixed = (seed * 0x9E3779B97F4A7C15 + step * 0xC2B2AE3D27D4EB4F + process * 0x165667B19E3779F9) % 2**64
    return torch.Generator().manual_seed(mixed - 2**63)


def _load(files: list[Path], size: int) -> Tensor:
    inputs, problems = [], []
    for path in files:
        try:
            inputs.append(to_model_input(read_image(path).pixels, size)[0])
        except ThoradError as error:
            problems.append(f"{path}: {error}" if str(path) not in str(error) else str(error))
    if problems:
        listed = "\n".join(problems[:5])
        raise ThoradError(f"{len(problems)} of {len(files)} images can't be trained on; mend or remove them:\n{listed}")
    return torch.stack(inputs) if inputs else torch.empty(0, 1, size, size)


def _claim(out: Path, recipe: Recipe) -> None:
    """Make `out`, or check that it holds this recipe's training."""
    path = out / RECIPE
    try:
        out.mkdir(parents=True, exist_ok=True)
        if path.is_file():
            earlier = parse_recipe(path.read_text(encoding="utf-8"), source=str(path))
            if earlier != recipe:
                raise ThoradError(f"{out}: holds a training with another recipe. Use another folder or its recipe.")
        else:
            write_atomic(path, recipe.to_toml().encode())  # other processes may look for it right now
        (out / "pictures").mkdir(exist_ok=True)
    except OSError as error:
        raise ThoradError(
            f"{out}: can't be written ({error.strerror}). Give a folder that you may write to."
        ) from error


def _latest_checkpoint(folder: Path) -> Path | None:
    """The newest checkpoint that is whole: a kill may leave a torn one behind."""
    for path in sorted(folder.glob("*.ckpt"), key=lambda p: p.stat().st_mtime, reverse=True):
        try:
            torch.load(path, map_location="cpu", weights_only=True)
        except (OSError, RuntimeError, EOFError, pickle.UnpicklingError):
            continue
        return path
    return None


def _step_of(checkpoint: Path) -> int:
    return int(checkpoint.stem.rpartition("=")[2])


def _drop_older_checkpoints(folder: Path) -> None:
    """Keep the newest: those of runs that were killed are unknown to the last run's own tidying."""
    for path in sorted(folder.glob("*.ckpt"), key=lambda p: p.stat().st_mtime)[:-1]:
        path.unlink()


def _start_from(module: DiffusionTraining, model: str | Path) -> None:
    weights: Mapping[str, Tensor] = load_model(model).network.state_dict()
    wanted = module.network.state_dict()
    if {k: v.shape for k, v in weights.items()} != {k: v.shape for k, v in wanted.items()}:
        raise ThoradError(
            f"{model}: its network has other shapes than recipe {module.recipe.name!r}; can't start from it."
        )
    module.network.load_state_dict(weights)


def _trainer(
    recipe: Recipe,
    out: Path,
    log: str,
    accelerator: str,
    devices: str,
    nodes: int,
    validate: bool,
    progress_bar: bool,
) -> lightning.Trainer:
    training = recipe.training
    # Lightning's hints about loggers and accelerators are not the user's concern here.
    for name in ("lightning.pytorch.utilities.rank_zero", "lightning.pytorch.accelerators.cuda"):
        logging.getLogger(name).setLevel(logging.WARNING)
    checkpoints = ModelCheckpoint(
        out / "checkpoints",
        filename="{step}",
        train_time_interval=timedelta(minutes=training.checkpoint_minutes),
        save_top_k=1,
    )
    averaging = WeightAveraging(
        avg_fn=lambda averaged, current, count: average_weights(averaged, current, count, training.ema)
    )
    try:
        return lightning.Trainer(
            accelerator=accelerator,
            devices=devices,
            num_nodes=nodes,
            precision=_precision(recipe, accelerator),
            max_steps=training.steps,
            max_epochs=-1,
            gradient_clip_val=training.gradient_norm,
            val_check_interval=min(training.validate_every, training.steps) if validate else None,
            limit_val_batches=None if validate else 0,
            num_sanity_val_steps=0,
            logger=[CSVLogger(out, "logs", log), TensorBoardLogger(out, "logs", log)],
            log_every_n_steps=min(10, training.steps),
            callbacks=[checkpoints, averaging, RichProgressBar() if progress_bar else _OneLine()],
            enable_progress_bar=progress_bar,
            enable_model_summary=False,
            use_distributed_sampler=False,
        )
    except (RuntimeError, ValueError, lightning.fabric.utilities.exceptions.MisconfigurationException) as error:
        raise ThoradError(f"accelerator {accelerator!r} with devices {devices!r}: {error}") from error


def _precision(recipe: Recipe, accelerator: str) -> Any:
    if recipe.training.precision != "auto":
        return recipe.training.precision
    cuda = accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available()
    fast = fast_precision(torch.device("cuda" if cuda else "cpu")) == torch.bfloat16
    return "bf16-mixed" if fast else "32-true"


def _card(recipe: Recipe, trained_on: int, validated_on: int, trainer: lightning.Trainer, seconds: float) -> str:
    noise = recipe.noise
    predicts = {"noise": "the noise", "clean": "the clean image"}[noise.prediction]
    where = f"one cell of {noise.patch_noise} px of an image" if noise.patch_noise else "the whole image"
    kinds = " or ".join(noise.trained_kinds)
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
| predicts | {predicts}, from {where} under {kinds} noise, timesteps below {noise.train_below} |
| figures | not measured: run `thorad evaluate` on labelled cases |

Fill in before you share it: where the images come from, their licence, for whom the model is valid.
"""
