"""Teach a critic's network what is not healthy, with anomalies made up in healthy images, for Lightning's trainer.

Shapes: B images of a batch, S the model's side; images in [0, 1].
"""

from __future__ import annotations

import math
from typing import Any, Final, NamedTuple

import lightning
import torch
import torch.nn.functional as F
from torch import Tensor
from torchmetrics.functional.classification import binary_average_precision

from thorad.critic.network import CriticNetwork, Verdict
from thorad.maps.anomaly_map import gaussian_blur
from thorad.recipe import AugmentationSection, Recipe
from thorad.training.augmentation import vary_intensity, vary_shape
from thorad.training.data import generator_at
from thorad.training.module import optimisation, stop_where_diverged
from thorad.training.synthetic_anomalies import corrupt

SOFTENED: Final = (0.3, 1.4)
"""px: standard deviations of the blur that some images get, as another scanner's resolution would have it."""
SOFTENED_SHARE: Final = 0.5
SURROUNDINGS: Final = (0.6, 2.0)
"""What lies outside the region is so many times as bright, log-uniform: skin and fat, which no critic judges, decide
how what it does judge is scaled (`SCALED_QUANTILE`)."""
RIM: Final = 2.0
"""px: standard deviation of the Gaussian that softens the way from the region to its surroundings."""
USUAL_AREA: Final = 150.0
"""px of a grid of 128 x 128: the pixels of an anomaly of this area weigh as much as healthy ones."""
SIZE_POWER: Final = 0.8
"""An anomaly's pixels weigh (USUAL_AREA / area) ** SIZE_POWER, within WEIGHTS: a spot of 20 px counts almost as one of
2,000 px does."""
WEIGHTS: Final = (0.3, 20.0)
HEADROOM: Final = 0.6
"""Images are so much darker while their intensity is varied, for what is bright must not be cut before it is scaled."""
SCALED_QUANTILE: Final = 0.98
"""Images are scaled so that this quantile becomes 1, as scans are (`thorad.io.intensity`)."""


class Examples(NamedTuple):
    """Images with anomalies made up in them, (B, 1, S, S) each."""

    image: Tensor
    healthy: Tensor
    """The same without anomalies."""
    mask: Tensor
    """Bool: what is not healthy."""
    weight: Tensor
    """Of each pixel in the loss; 0 outside the region."""


def make_examples(
    healthy: Tensor, region: Tensor, augmentation: AugmentationSection, generator: torch.Generator
) -> Examples:
    """Put anomalies into healthy images and vary what comes of it.

    The anomalies come first: in a scan, too, a lesion is resampled, blurred and noised with the tissue around it, and
    a network would learn to see where one has been pasted in.

    Args:
        healthy: (B, 1, S, S).
        region: (S, S) bool, where anomalies may lie.
        augmentation: how the images are varied.
        generator: of the CPU.
    """
    made = corrupt(healthy, region, generator)
    layers = torch.cat([made.image, healthy, made.mask.to(healthy), made.area], dim=1)
    image, healthy, mask, area = vary_shape(layers, augmentation, generator).chunk(4, dim=1)
    anomalous = (mask > 0.5) & region
    pair = HEADROOM * _softened(torch.cat([image, healthy], dim=1), generator)
    pair = _with_other_surroundings(pair, region, generator)
    pair = vary_intensity(pair, augmentation, generator)
    brightest = torch.quantile(pair[:, 0].flatten(1), SCALED_QUANTILE, dim=1).clamp(min=0.1)
    image, healthy = (pair / brightest.view(-1, 1, 1, 1)).clamp(0, 1).chunk(2, dim=1)
    usual = USUAL_AREA * (image.shape[-1] / 128) ** 2
    of_area = (usual * mask / area.clamp(min=1)) ** SIZE_POWER  # mask and area were interpolated alike
    weight = torch.where(anomalous, of_area.clamp(*WEIGHTS), 1.0) * region
    return Examples(image, healthy, anomalous, weight)


def _softened(images: Tensor, generator: torch.Generator) -> Tensor:
    chosen = torch.rand(len(images), generator=generator) < SOFTENED_SHARE
    widths = torch.empty(len(images)).uniform_(*SOFTENED, generator=generator).tolist()
    softened = [
        gaussian_blur(image[None], width)[0] if soft else image
        for image, width, soft in zip(images, widths, chosen.tolist(), strict=True)
    ]
    return torch.stack(softened)


def _with_other_surroundings(images: Tensor, region: Tensor, generator: torch.Generator) -> Tensor:
    low, high = (math.log(times) for times in SURROUNDINGS)
    times = torch.empty(len(images), 1, 1, 1).uniform_(low, high, generator=generator).exp().to(images)
    inside = gaussian_blur(region.to(images)[None, None], RIM)
    return images * (inside + (1 - inside) * times)


class CriticTraining(lightning.LightningModule):
    """One network of a critic and its loss. Batches are healthy images, (B, 1, S, S) in [0, 1].

    Args:
        recipe: `critic` says how it is trained.
        network: with fresh weights.
        number: which of the critic's networks it is: each sees examples of its own.
    """

    def __init__(self, recipe: Recipe, network: CriticNetwork, number: int) -> None:
        super().__init__()
        self.recipe, self.network, self.number = recipe, network, number

    def training_step(self, batch: Tensor, batch_index: int) -> Tensor:
        """The loss of one batch, with anomalies of (seed, network, step, process)."""
        section = self.recipe.critic
        generator = generator_at(section.seed + self.number, self.global_step, self.global_rank)
        region = self.network.region.cpu()
        examples = make_examples(batch.cpu(), region, section.augmentation, generator)
        loss = self._loss(Examples(*(part.to(self.device) for part in examples)))
        self.log("train/loss", loss, prog_bar=True)
        stop_where_diverged(loss, batch_index, self.global_step, "lower critic.learning_rate in the recipe")
        return loss

    def _loss(self, examples: Examples) -> Tensor:
        """Cross-entropy and overlap of the mask, by the pixels' weights, and the error of the healthy image."""
        image, healthy, mask, weight = examples
        verdict: Verdict = self.network(image)
        target, region = mask.float(), self.network.region
        pixels = region.sum() * len(image)
        entropy = F.binary_cross_entropy_with_logits(verdict.logit, target, reduction="none")
        probability = torch.sigmoid(verdict.logit)
        overlap = (2 * (probability * target * weight).sum() + 1) / (((probability + target) * weight).sum() + 1)
        error = (verdict.healthy - healthy).abs() * (1 + 4 * target) * region
        loss: Tensor = 5 * (entropy * weight).sum() / pixels + (1 - overlap) + 3 * error.sum() / pixels
        return loss

    def validation_step(self, batch: Tensor, batch_index: int) -> None:
        """Average precision on anomalies that are made up in one image of other subjects, the same ones each time."""
        region = self.network.region.cpu()
        generator = generator_at(self.recipe.critic.seed, -1 - batch_index, 0)
        several = batch.cpu().expand(VALIDATED, -1, -1, -1)
        examples = make_examples(several, region, self.recipe.critic.augmentation, generator)
        logit = self.network(examples.image.to(self.device)).logit.cpu()
        counted = examples.weight > 0
        self._judged.append((logit[counted], examples.mask[counted].int()))

    def on_validation_epoch_start(self) -> None:
        """Forget the validation before."""
        self._judged: list[tuple[Tensor, Tensor]] = []

    def on_validation_epoch_end(self) -> None:
        """One figure for all pixels of all images."""
        logits, masks = (torch.cat(parts) for parts in zip(*self._judged, strict=True))
        self.log("validation/average_precision", binary_average_precision(torch.sigmoid(logits), masks))

    def configure_optimizers(self) -> Any:
        """AdamW with warm-up and cosine."""
        return optimisation(self.network, self.recipe.model_copy(update={"training": self.recipe.critic}))


VALIDATED: Final = 2
"""Examples that are made of each validation image."""
