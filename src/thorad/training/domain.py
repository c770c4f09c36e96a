"""From healthy images to what a model's pictures look like."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from thorad.domain.likeness import LOWER
from thorad.domain.pictures import FEWEST_IMAGES, MOST_PICTURES, PictureDomain, fit_domain
from thorad.io.preprocess import to_model_input
from thorad.io.template import cut_template
from thorad.model import load_region
from thorad.recipe import Recipe
from thorad.training.augmentation import augment
from thorad.training.data import Images, evenly_spread, generator_at

COPIES = 3
"""Varied copies of each image, where there are few: what other scanners and placements would make of it."""


def learn_domain(images: Images, recipe: Recipe) -> PictureDomain | None:
    """What healthy images, as the model sees them, look like; of more than 1000 evenly spread ones are used.

    Their copies are varied as in the model's training. None where there are fewer than `FEWEST_IMAGES`.
    """
    count = min(len(images), MOST_PICTURES // 2)
    if count < FEWEST_IMAGES:
        return None
    used = torch.stack(evenly_spread(images, count))  # (N, 1, S, S)
    copies = min(COPIES, MOST_PICTURES // count - 1)
    generator = generator_at(recipe.training.seed, -1, -1)
    t1w, lowest = recipe.domain.weighting == "T1w", recipe.volume.axial_slices[0]
    lower: dict[int, NDArray[np.float32]] = {}
    if t1w and recipe.volume.template and lowest >= LOWER[-1]:
        slices = cut_template([lowest - mm for mm in LOWER])
        lower = {
            mm: to_model_input(each, recipe.image.size)[0][0].numpy() for mm, each in zip(LOWER, slices, strict=True)
        }
    varied = torch.stack([augment(used, recipe.augmentation, generator) for _ in range(copies)])
    return fit_domain(
        used[:, 0].numpy(),
        varied[:, :, 0].numpy(),
        load_region(recipe.image.region, recipe.image.size),
        t1w=t1w,
        lower=lower,
    )
