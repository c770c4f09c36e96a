"""How well a denoiser finds anomalies while it is trained, without a label: to watch, and to choose weights by.

Anomalies are made up in healthy images that it isn't trained on (`thorad.training.synthetic_anomalies`), the same ones
each time, and restored in two network calls, as AnoDDPM does it (or in one call a patch, as pDDPM). What differs is
compared with what was made up: average precision over all pixels of the region of all images.
"""

from __future__ import annotations

import math
from typing import Any, Final

import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback, WeightAveraging
from torch import Tensor
from torchmetrics.functional.classification import binary_average_precision

from thorad.diffusion.engine import TorchEngine, fast_precision
from thorad.diffusion.noise import case_generator
from thorad.maps.anomaly_map import residual
from thorad.methods.ddpm import ANODDPM, DdpmOptions, ddpm
from thorad.methods.pddpm import PddpmOptions, pddpm
from thorad.model import load_region
from thorad.results.training_page import PRECISION
from thorad.training.data import Images, generator_at
from thorad.training.history import History
from thorad.training.module import DiffusionTraining
from thorad.training.synthetic_anomalies import corrupt

TOGETHER: Final = 16
"""Images that are restored at once; anomalies are made of each other's tissue."""

SEED: Final = 0
"""Of the anomalies and the noise, whatever the recipe's is: trainings with other seeds are compared by this figure."""

MADE_UP: Final = "made-up anomalies"

MEASURED_ON: Final = (
    "anomalies made up in healthy validation images, the same ones each time: what a restoration of few network calls "
    "changes, over all pixels where the model looks for anomalies"
)


def average_precision(module: DiffusionTraining, images: Images) -> float:
    """Of the network's restorations of images with made-up anomalies; NaN where none is visible.

    Args:
        module: whose network restores; it needs no trainer.
        images: healthy ones, (1, S, S) in [0, 1] each.
    """
    size = module.recipe.image.size
    region = torch.from_numpy(load_region(module.recipe.image.region, size))  # (S, S)
    maps, masks = [], []
    for first in range(0, len(images), TOGETHER):
        healthy = torch.stack([images[i] for i in range(first, min(first + TOGETHER, len(images)))])
        made = corrupt(healthy, region, generator_at(SEED, -1 - first, 2))
        maps.append(_anomaly_map(module, made.image)[..., region].flatten())
        masks.append(made.mask[..., region].flatten())
    mask = torch.cat(masks)
    return float(binary_average_precision(torch.cat(maps), mask.int())) if bool(mask.any()) else math.nan


@torch.no_grad()
def _anomaly_map(module: DiffusionTraining, images: Tensor) -> Tensor:
    """|image - restoration|, (B, 1, S, S) on the host, by the kind of noise that the network saw most."""
    noise = module.recipe.noise
    kind = max(noise.trained_kinds, key=lambda trained: noise.share[noise.kinds.index(trained)])
    generators = [case_generator(SEED, image) for image in images]
    make_noise = module.recipe.draw_noise(kind)
    engine = TorchEngine(module.network, module.device, fast_precision(module.device))
    x = images.to(module.device) * 2 - 1

    def draw() -> Tensor:
        return make_noise(generators, *x.shape[-2:], module.device)

    def denoise(x_t: Tensor, t: int) -> Tensor:
        of_image = torch.full((len(x_t),), t, device=module.device)
        return engine(x_t, of_image, torch.full_like(of_image, noise.kinds.index(kind)))

    if noise.prediction == "clean":
        size = x.shape[-1]
        level = min(PddpmOptions.noise_level, noise.train_below - 1)
        patches = PddpmOptions(level, size=size, patch=noise.patch_noise or size)
        return pddpm(denoise, x, module.schedule, draw, residual, options=patches).anomaly_map.cpu()
    level = min(ANODDPM.noise_levels["simplex"], noise.train_below - 1)
    two_calls = DdpmOptions(level, steps=2 if level // 2 >= noise.train_from else 1)
    return ddpm(denoise, x, module.schedule, draw, residual, options=two_calls).anomaly_map.cpu()


class BestWeights(Callback):
    """Measures `average_precision` in each validation, and keeps the weights with the highest; in the first process.

    Args:
        images: healthy ones of other subjects.
        history: gets the figures.
        keep: whether to keep weights, or to measure alone.
    """

    def __init__(self, images: Images, history: History, *, keep: bool) -> None:
        self._images, self._history, self._keep = images, history, keep
        self.measured: dict[int, float] = {}
        """Average precision after so many steps."""
        self.weights: dict[str, Tensor] = {}
        """The network's state at the highest of them, on the host; empty where none is kept."""

    def state_dict(self) -> dict[str, Any]:
        """What a resumed training needs."""
        return {"measured": self.measured, "weights": self.weights}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on with them."""
        self.measured, self.weights = state_dict["measured"], state_dict["weights"]

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Make up for a validation that a signal cut short: the training resumes after it."""
        step, every = trainer.global_step, trainer.val_check_interval
        if step and isinstance(every, int) and step % every == 0 and step not in self.measured:
            averages = [each for each in trainer.callbacks if isinstance(each, WeightAveraging)]  # type: ignore[attr-defined]
            for average in averages:
                average.on_validation_epoch_start(trainer, pl_module)
            self.measure(trainer, pl_module)
            for average in averages:
                average.on_validation_epoch_end(trainer, pl_module)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Measure, with the averaged weights."""
        self.measure(trainer, pl_module)
        if trainer.is_global_zero and math.isfinite(self.measured[trainer.global_step]):
            pl_module.log(PRECISION, self.measured[trainer.global_step], rank_zero_only=True)

    def measure(self, trainer: Trainer, module: LightningModule) -> None:
        """Measure the weights that the module has now, after the trainer's step."""
        if not trainer.is_global_zero:
            return
        assert isinstance(module, DiffusionTraining)
        training = module.training
        value = average_precision(module.eval(), self._images)
        module.train(training)
        higher = all(value > other for other in self.measured.values() if math.isfinite(other))
        if self._keep and math.isfinite(value) and higher:
            self.weights = {
                name: weights.detach().cpu().clone() for name, weights in module.network.state_dict().items()
            }
        self.measured[trainer.global_step] = value
        if math.isfinite(value):
            self._history.note(PRECISION, trainer.global_step, value)

    def choose(self, trainer: Trainer, module: DiffusionTraining) -> str:
        """Give the module the weights that are kept, after the training; says which, for the model's card."""
        last = trainer.global_step
        if len(self._images) and last not in self.measured:  # no validation came after the last step
            self.measure(trainer, module)
            self._history.on_train_end(trainer, module)
        known = {step: value for step, value in self.measured.items() if math.isfinite(value)}
        if not self.weights:
            return f"of step {last}" + (f": average precision {known[last]:.3f} on {MADE_UP}" if last in known else "")
        module.network.load_state_dict(self.weights)
        step = max(known, key=lambda step: known[step])
        chosen = f"the highest of {len(known)} measurements, by which they were chosen"
        return f"of step {step}: average precision {known[step]:.3f} on {MADE_UP}, {chosen}"
