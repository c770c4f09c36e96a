"""How well known moves of heads are found again, and how long that takes.

    OMP_NUM_THREADS=1 taskset -c 0 python benchmarks/registration.py head.nii.gz [more heads]

Prints for each head its registration and that of five moved copies: three moved by their headers alone, two resampled
(cubic) on another grid, the last of these stretched and sheared, too. The error is what is left when the known move is
undone: distance over the template's brain, and angle.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from scipy.spatial.transform import Rotation

from thorad.io.registration import Registration, register, template_brain
from thorad.io.volumes import Volume, read_volume

GRID_MM = (1.2, 1.0, 1.1)
GRID_SHAPE = (180, 250, 210)


def move(degrees: tuple[float, float, float], millimetres: tuple[float, float, float]) -> NDArray[np.float64]:
    matrix = np.eye(4)
    matrix[:3, :3] = Rotation.from_euler("xyz", degrees, degrees=True).as_matrix()
    matrix[:3, 3] = millimetres
    return matrix


STRETCH = np.array([[1.08, 0.05, 0, 0], [0, 0.94, -0.04, 0], [0.03, 0, 1.05, 0], [0, 0, 0, 1]])
MOVES = {
    "nod 20, y +30": (move((20, 0, 0), (0, 30, 0)), False),
    "nod -20, z -30": (move((-20, 0, 0), (0, 0, -30)), False),
    "tilt 20, turn 20, 30 each": (move((0, 20, 20), (30, -30, 30)), False),
    "12, -15, -18 degrees, resampled": (move((12, -15, -18), (-20, 10, 25)), True),
    "affine, resampled": (move((-8, 5, 10), (5, -20, -30)) @ STRETCH, True),
}


def resampled(head: Volume, known: NDArray[np.float64]) -> Volume:
    grid = np.diag([*GRID_MM, 1.0])
    centre = known @ head.affine @ [*(np.array(head.voxels.shape) - 1) / 2, 1]
    grid[:3, 3] = centre[:3] - grid[:3, :3] @ (np.array(GRID_SHAPE) - 1) / 2
    voxels = ndimage.affine_transform(
        head.voxels, np.linalg.inv(known @ head.affine) @ grid, output_shape=GRID_SHAPE, order=3
    )
    return replace(head, voxels=voxels, affine=grid, header=None)


def timed(head: Volume) -> tuple[Registration, float]:
    began = time.process_time()
    return register(head), time.process_time() - began


def main() -> None:
    """Register, move, register again, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("heads", type=Path, nargs="+")
    arguments = parser.parse_args()
    brain, affine = template_brain()
    voxels = np.argwhere(brain > 0)[::10]
    points = np.c_[voxels, np.ones(len(voxels))] @ affine.T
    print("head | move | CPU s | overlap | similarity | mean mm | 95 % mm | max mm | degrees | warning")
    for path in arguments.heads:
        head = read_volume(path)
        still, seconds = timed(head)
        found = f"{seconds:.0f} | {still.overlap:.3f} | {still.similarity:.3f}"
        print(f"{head.name} | none | {found} | | | | | {still.warning or ''}", flush=True)
        for name, (known, resample) in MOVES.items():
            moved, seconds = timed(resampled(head, known) if resample else replace(head, affine=known @ head.affine))
            error = moved.to_template @ known @ np.linalg.inv(still.to_template)
            distance = np.linalg.norm((points @ error.T - points)[:, :3], axis=1)
            u, _, v = np.linalg.svd(error[:3, :3])
            figures = [distance.mean(), np.percentile(distance, 95), distance.max()]
            figures.append(np.rad2deg(Rotation.from_matrix(u @ v).magnitude()))
            found = f"{seconds:.0f} | {moved.overlap:.3f} | {moved.similarity:.3f}"
            errors = " | ".join(f"{figure:.2f}" for figure in figures)
            print(f"{head.name} | {name} | {found} | {errors} | {moved.warning or ''}", flush=True)


if __name__ == "__main__":
    main()
