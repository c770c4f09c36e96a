"""The denoiser and its loss, for Lightning's trainer.

Ho, Jain, Abbeel: Denoising Diffusion Probabilistic Models, 2020, algorithm 1: predict the noise, mean squared error.
Behrendt, Bhattacharya, Krüger, Opfer, Schlaefer: Patched Diffusion Models for Unsupervised Anomaly Detection in Brain
MRI, MIDL 2023, arXiv:2303.03758 (pDDPM): noise a part of the image, predict the clean image, absolute error.
Hang et al.: Efficient Diffusion Training via Min-SNR Weighting Strategy, ICCV 2023, arXiv:2303.09556.

Shapes: B images of a batch, S the model's side.
"""

from __future__ import annotations

import math
from typing import Any

import lightning
import torch
from torch import Tensor, nn

from thorad.diffusion.schedule import Schedule
from thorad.errors import ThoradError
from thorad.model import build_network
from thorad.recipe import Recipe
from thorad.training.augmentation import augment
from thorad.training.data import generator_at


class DiffusionTraining(lightning.LightningModule):
    """The denoiser of a recipe and its loss. Batches are healthy images, (B, 1, S, S) in [0, 1]."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        self.recipe = recipe
        self.network = build_network(recipe)
        self.schedule = Schedule(recipe.noise.timesteps, recipe.noise.beta_start, recipe.noise.beta_end)
        # Parts of an image that are noised separately.
        self.cells = (recipe.image.size // (recipe.noise.patch_noise or recipe.image.size)) ** 2

    def training_step(self, batch: Tensor, batch_index: int) -> Tensor:
        """The loss of one batch, varied and noised by random numbers of (seed, step, process)."""
        noise = self.recipe.noise
        generator = generator_at(self.recipe.training.seed, self.global_step, self.global_rank)
        x = augment(batch, self.recipe.augmentation, generator) * 2 - 1
        kind = torch.multinomial(torch.tensor(noise.share), len(x), replacement=True, generator=generator)
        trained = noise.train_below - noise.train_from
        t = noise.train_from + (trained * torch.rand(len(x), generator=generator) ** noise.timestep_power).long()
        t = t.clamp(max=noise.train_below - 1)
        cell = torch.randint(self.cells, (len(x),), generator=generator) if noise.patch_noise else None
        loss, of_kind = self._losses(x, t, kind, generator, cell)
        self.log_dict({f"train/{name}": value for name, value in of_kind.items()}, on_step=True, on_epoch=False)
        self.log("train/loss", loss, prog_bar=True)
        remedy = "lower training.learning_rate in the recipe, or check a noise or network of your own"
        stop_where_diverged(loss, batch_index, self.global_step, remedy)
        return loss

    def validation_step(self, batch: Tensor, batch_index: int) -> None:
        """The loss of one image, (1, 1, S, S), with each trained kind of noise at a fixed spread of timesteps."""
        generator = generator_at(self.recipe.training.seed, -1 - batch_index, 0)
        noise = self.recipe.noise
        spread = torch.linspace(noise.train_from, noise.train_below - 1, 5).long()
        kind = torch.tensor([noise.kinds.index(trained) for trained in noise.trained_kinds for _ in spread])
        t = spread.repeat(len(noise.trained_kinds))
        x = batch.expand(len(t), -1, -1, -1) * 2 - 1
        cell = torch.full_like(t, batch_index % self.cells) if noise.patch_noise else None
        loss, of_kind = self._losses(x, t, kind, generator, cell)
        losses = {f"validation/{name}": value for name, value in {"loss": loss, **of_kind}.items()}
        self.log_dict(losses, on_epoch=True, sync_dist=True, batch_size=1)

    def configure_optimizers(self) -> Any:
        """AdamW (Adam where the weight decay is 0) with warm-up and, where asked, a cosine."""
        return optimisation(self.network, self.recipe)

    @torch.no_grad()
    def reconstructions(self, images: Tensor) -> Tensor:
        """What the network restores: a row of the images, and of noised images and clean estimates for each noise.

        Of (B, 1, S, S) in [0, 1] it makes ((1 + 2 K) S, B S) in [0, 1], on the host, for K trained kinds of noise.
        """
        noise = self.recipe.noise
        x = images.to(self.device) * 2 - 1
        t = noise.train_below // 2
        # A patched network learns nothing about the clean cells: the image stays there, as in its method.
        box = self._boxes(torch.arange(len(x)) % self.cells) if noise.patch_noise else None
        rows = [x]
        for k in map(noise.kinds.index, noise.trained_kinds):
            eps = self._noise_of([k] * len(x), x, generator_at(self.recipe.training.seed, -1, 0))
            x_t = _inside(box, self.schedule.add_noise(x, eps, t), x)
            steps = torch.full((len(x),), t, device=self.device)
            predicted = self.network(x_t, steps, torch.full_like(steps, k))
            clean = predicted if noise.prediction == "clean" else self.schedule.predict_clean(x_t, predicted, t)
            rows += [x_t, _inside(box, clean, x)]
        strips = [torch.cat(list(row[:, 0]), dim=1) for row in rows]  # (S, B S) each
        return ((torch.cat(strips) + 1) / 2).clamp(0, 1).float().cpu()

    def _losses(
        self, x: Tensor, t: Tensor, kind: Tensor, generator: torch.Generator, cell: Tensor | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Weighted mean error of the prediction, and each kind's own unweighted mean.

        The error is squared; of images that are noised in a cell only it is the absolute error inside that cell.

        Args:
            x: (B, 1, S, S) in [-1, 1].
            t: (B,) timesteps, as `kind` and `cell` on the host: asking an accelerator for them waits for all its work.
            kind: (B,) indices of the recipe's kinds of noise.
            generator: of the noise.
            cell: (B,) which cell of the recipe's grid is noised; None noises the whole image.
        """
        x, kinds = x.to(self.device), kind.tolist()
        box = None if cell is None else self._boxes(cell)
        eps = self._noise_of(kinds, x, generator)
        x_t = _inside(box, self.schedule.add_noise(x, eps, t), x)
        predicted = self.network(x_t, t.to(self.device), kind.to(self.device))
        difference = predicted - (x if self.recipe.noise.prediction == "clean" else eps)
        if box is None:
            error = difference.square().mean((1, 2, 3))  # (B,)
        else:
            error = (difference.abs() * box).sum((1, 2, 3)) / box.sum((1, 2, 3))  # (B,)
        of_kind = {}
        for k in sorted(set(kinds)):
            places = [i for i, of_image in enumerate(kinds) if of_image == k]
            of_kind[self.recipe.noise.kinds[k]] = error[places].mean().detach()
        return (self._weights(t, kind) * error).mean(), of_kind

    def _weights(self, t: Tensor, kind: Tensor) -> Tensor:
        """(B,) of each image's error: its kind's, times min(SNR, gamma) / SNR where the recipe gives a gamma."""
        weight = torch.tensor(self.recipe.noise.loss_weight)[kind].to(self.device)
        if not self.recipe.noise.min_snr:
            return weight
        alpha_bar = self.schedule.alpha_bar[t].to(weight)
        snr = alpha_bar / (1 - alpha_bar)
        return weight * snr.clamp(max=self.recipe.noise.min_snr) / snr

    def _boxes(self, cell: Tensor) -> Tensor:
        """(B, 1, S, S), True in the given cell (B,) of the grid; cells are counted along the rows."""
        size, side = self.recipe.image.size, self.recipe.noise.patch_noise
        along = torch.arange(size) // side  # (S,)
        number = along[:, None] * (size // side) + along  # (S, S)
        return (number == cell.view(-1, 1, 1, 1)).to(self.device)

    def _noise_of(self, kinds: list[int], x: Tensor, generator: torch.Generator) -> Tensor:
        """(B, 1, S, S) noise, each image's of its own kind."""
        eps = torch.empty_like(x)
        for k in sorted(set(kinds)):
            of_kind = [i for i, kind in enumerate(kinds) if kind == k]
            make = self.recipe.draw_noise(self.recipe.noise.kinds[k])
            eps[of_kind] = make([generator] * len(of_kind), x.shape[-2], x.shape[-1], x.device)
        return eps


def stop_where_diverged(loss: Tensor, batch_index: int, step: int, remedy: str) -> None:
    """Look at every tenth batch's loss only: an accelerator waits for that.

    Args:
        loss: of the batch.
        batch_index: of the epoch.
        step: the trainer's.
        remedy: what to start anew with, in words.

    Raises:
        ThoradError: the loss is not finite.
    """
    if batch_index % 10 == 0 and not bool(loss.isfinite()):
        raise ThoradError(
            f"the loss is {float(loss):g} at step {step}: the training diverged. Start anew with a {remedy}."
        )


def optimisation(network: nn.Module, recipe: Recipe) -> dict[str, Any]:
    """What `configure_optimizers` gives Lightning for a network that is trained as `recipe.training` says."""
    training = recipe.training
    weights = network.parameters()
    optimiser = torch.optim.AdamW(weights, lr=training.learning_rate, weight_decay=training.weight_decay)
    rate = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: learning_rate_factor(step, recipe))
    return {"optimizer": optimiser, "lr_scheduler": {"scheduler": rate, "interval": "step"}}


def learning_rate_factor(step: int, recipe: Recipe) -> float:
    """The learning rate at a step, as a share of the recipe's."""
    training = recipe.training
    warm = min(1.0, (step + 1) / training.warm_up) if training.warm_up else 1.0
    if training.schedule == "constant":
        return warm
    return warm * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * min(step / training.steps, 1))))


def _inside(box: Tensor | None, inside: Tensor, outside: Tensor) -> Tensor:
    """One image in the box, another around it; without a box the first alone."""
    return inside if box is None else torch.where(box, inside, outside)
