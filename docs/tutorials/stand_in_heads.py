"""Stand-ins for a cohort of your own: the bundled head, turned, bent and relit as if it were other people's.

They make the tutorials run in seconds on files that come with thorad. They are one person: no figure that a tutorial
prints says anything about patients.
"""

from importlib import resources
from pathlib import Path

import numpy as np
import torch
from monai.transforms import Compose, Rand2DElastic, RandAdjustContrast, RandBiasField, RandGaussianNoise
from numpy.typing import NDArray

from thorad.implant.lesions import implant_lesion
from thorad.io.images import read_image, write_png8
from thorad.io.preprocess import place, to_input_grid
from thorad.model import load_model


def bundled_head() -> NDArray[np.float32]:
    """(233, 197) in [0, 1]: the mid-axial T1w slice of one person (its origin and licence lie beside it)."""
    return read_image(Path(str(resources.files("thorad"))) / "assets" / "samples" / "head.png").scaled


def write_heads(folder: str | Path, count: int, seed: int) -> None:
    """Write head-SEED00.png, head-SEED01.png ... of 197 x 233 px into the folder: another seed, other heads."""
    head = bundled_head()
    another = Compose(
        [
            Rand2DElastic(
                spacing=(40, 40),
                magnitude_range=(0.5, 1.5),
                prob=1,
                rotate_range=0.05,
                scale_range=(0.04, 0.04),
                translate_range=(2, 2),
                padding_mode="zeros",
            ),
            RandBiasField(degree=2, coeff_range=(0, 0.06), prob=1),
            RandAdjustContrast(prob=1, gamma=(0.9, 1.1)),
            RandGaussianNoise(prob=1, std=0.015),
        ]
    ).set_random_state(seed)
    for index in range(count):
        pixels = np.asarray(another(torch.from_numpy(head.copy())[None]))[0]
        write_png8(Path(folder) / f"head-{seed}{index:02d}.png", np.clip(pixels / np.quantile(pixels, 0.98), 0, 1))


def write_patient(path: str | Path) -> NDArray[np.bool_]:
    """Write the bundled head with a dark lesion implanted in its brain; returns where the lesion is, (233, 197)."""
    head = bundled_head()
    placement = place(*head.shape, 128)
    brain = to_input_grid(load_model("brain-t1-compact").region.astype(np.float32), placement) > 0.5
    patient, lesion = implant_lesion(
        head, np.random.default_rng(1), region=brain, kind="dark", radius_px=12, strength=0.5
    )
    write_png8(Path(path), patient)
    return lesion
