"""What each part of THOR+ gives, on labelled cases: one run of its draws, from which every variant's map is made.

    python benchmarks/thor_plus_ablation.py CASES.csv OUT.md [--every 2]

Best Dice is taken over all thresholds, on the labels (an upper bound), pooled by size group; AP pools all pixels of the
region. CASES.csv is a table as `thorad evaluate` takes it.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from thorad.datasets.cases import read_cases
from thorad.detector import Detector
from thorad.evaluation.metrics import average_precision, exact_best_dice
from thorad.evaluation.sizes import paper_mix, size_group
from thorad.io.images import Image, read_image, read_mask
from thorad.io.preprocess import mask_to_model_grid, to_model_input
from thorad.maps.anomaly_map import gaussian_blur, harmonic_mean
from thorad.records import StepPictures

Draws = tuple[list[Tensor], list[Tensor]]
"""Clean estimates and maps at the harmonised timesteps, (1, 1, S, S) each, draw after draw."""


def draws_of(detector: Detector, image: Image) -> Draws:
    """Run THOR+ on one image and keep what its draws gave."""
    estimates: list[Tensor] = []
    maps: list[Tensor] = []

    def keep(name: str, step: StepPictures) -> None:
        if step.anomaly_map is not None:
            estimates.append(torch.from_numpy(step.clean)[None, None] * 2 - 1)
            maps.append(torch.from_numpy(step.anomaly_map)[None, None])

    detector.detect(image, on_step=keep)
    return estimates, maps


def variants(detector: Detector, x: Tensor, draws: Draws) -> dict[str, Tensor]:
    """{what: map (S, S)} of one image (1, 1, S, S) in [0, 1]."""
    options = detector.options
    estimates, maps = draws
    mean, deviation = detector.model.statistics
    each = len(options.harmonise_at)
    image = x * 2 - 1
    spread = (deviation + options.smallest_deviation) / 2

    def residual(clean: Tensor, sigma: float = options.blur_sigma) -> Tensor:
        return (gaussian_blur(image - clean, sigma) if sigma else image - clean).abs() / 2

    def product(size: Tensor, thor: Tensor, share: float = options.thor_share) -> Tensor:
        return size ** (1 - share) * thor**share

    def shipped(count: int) -> Tensor:
        last = torch.stack(estimates[each - 1 : count * each : each]).mean(0)
        return product(residual(last), harmonic_mean(maps[: count * each])) / spread

    last = torch.stack(estimates[each - 1 :: each]).mean(0)
    every = torch.stack(estimates).mean(0)
    of_draws = [harmonic_mean(maps[i : i + each]) for i in range(0, len(maps), each)]
    z = (image - mean).abs() / (deviation + 0.1)
    found = {
        "z-score, two-sided, no network": z,
        "THOR's map, 1 draw": of_draws[0],
        "THOR's map, mean of 8 draws": torch.stack(of_draws).mean(0),
        "residual to the mean of 8 draws": residual(last),
        "... over the healthy spread": residual(last) / spread,
        "... times THOR's map to the 1/4: THOR+": shipped(8),
        "THOR+ with 1 draw": shipped(1),
        "THOR+ with 2 draws": shipped(2),
        "THOR+ with 4 draws": shipped(4),
        "THOR+ without blur": product(residual(last, 0), harmonic_mean(maps)) / spread,
        "THOR+ without the healthy spread": product(residual(last), harmonic_mean(maps)),
        "THOR+ from the estimates of all timesteps": product(residual(every), harmonic_mean(maps)) / spread,
        "THOR+ with THOR's map to the 1/2": product(residual(last), harmonic_mean(maps), 0.5) / spread,
        "THOR+ times the z-score to the 1/4": shipped(8) * z**0.25,
        "THOR's map, mean of 8 draws, over the healthy spread": torch.stack(of_draws).mean(0) / spread,
    }
    return {name: one[0, 0] for name, one in found.items()}


def row(name: str, maps: NDArray[np.float32], truth: NDArray[np.bool_], region: NDArray[np.bool_]) -> str:
    """One line of the table: maps and truth are (N, S, S)."""
    groups = np.asarray([size_group(int(mask.sum()), len(region)) or "" for mask in truth])
    dice = []
    for group in ("small", "medium", "large"):
        of_group = groups == group
        missed = int((truth[of_group] & ~region).sum())
        dice.append(100 * exact_best_dice(maps[of_group][:, region], truth[of_group][:, region], missed).dice)
    ap = average_precision(maps[:, region], truth[:, region])
    cells = [*dice, float(paper_mix(np.asarray(dice)))]
    return f"| {name} | " + " | ".join(f"{cell:.1f}" for cell in cells) + f" | {ap:.3f} |"


def main() -> None:
    """Parse, run, write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--every", type=int, default=1, help="take every N-th case")
    parser.add_argument("--model", default="brain-t1-compact")
    arguments = parser.parse_args()
    detector = Detector(arguments.model, method="thor+")
    found: dict[str, list[NDArray[np.float32]]] = {}
    truth = []
    cases = [case for case in read_cases(arguments.cases) if case.mask is not None][:: arguments.every]
    for case in cases:
        image = read_image(case.image, case.name)
        assert case.mask is not None
        truth.append(mask_to_model_grid(read_mask(case.mask, image.pixels.shape), detector.model_size))
        x = to_model_input(image.pixels, detector.model_size)[0][None]
        for name, one in variants(detector, x, draws_of(detector, image)).items():
            found.setdefault(name, []).append(one.float().numpy())
    lines = ["| Map | Small | Medium | Large | Paper mix | AP |", "|---|---:|---:|---:|---:|---:|"]
    lines += [row(name, np.stack(maps), np.stack(truth), detector.region) for name, maps in found.items()]
    arguments.out.write_text("\n".join([*lines, "", f"{len(cases)} cases.", ""]), encoding="utf-8")


if __name__ == "__main__":
    main()
