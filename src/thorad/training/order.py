"""What a training step sees follows from (seed, step, process) alone: its random numbers and its images.

So a run that was killed and resumed ends with the weights of an uninterrupted one.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache

import torch
from torch.utils.data import Sampler


def generator_at(seed: int, step: int, process: int) -> torch.Generator:
    """A host generator for one step of one process."""
    # Odd multipliers keep neighbouring (seed, step, process) apart in the lower 32 bits, all that torch's CPU generator
    # takes of a seed.
    mixed = (seed * 0x9E3779B97F4A7C15 + step * 0xC2B2AE3D27D4EB4F + process * 0x165667B19E3779F9) % 2**64
    return torch.Generator().manual_seed(mixed - 2**63)


def images_of_batch(first: int, size: int, count: int, seed: int) -> list[int]:
    """Places first ... first + size - 1 in an endless row of shuffles of `count` images."""
    return [_shuffle(place // count, count, seed)[place % count] for place in range(first, first + size)]


@lru_cache(maxsize=4)
def _shuffle(epoch: int, count: int, seed: int) -> list[int]:
    return torch.randperm(count, generator=generator_at(seed, epoch, -1)).tolist()


class StepBatches(Sampler[list[int]]):
    """The images of each step of a whole training, for one of its processes.

    Args:
        count: images to choose from.
        size: images in a batch.
        seed: of the order.
        steps: of the whole training, also where it resumes: Lightning counts the steps before `first_step` itself.
        first_step: where it resumes.
        process: 0 ... processes - 1.
        processes: they share out each step's images.
    """

    def __init__(
        self,
        count: int,
        size: int,
        seed: int,
        *,
        steps: int,
        first_step: int = 0,
        process: int = 0,
        processes: int = 1,
    ) -> None:
        self._count, self._size, self._seed = count, size, seed
        self._steps, self._first_step = steps, first_step
        self._process, self._processes = process, processes

    def __len__(self) -> int:
        return self._steps

    def __iter__(self) -> Iterator[list[int]]:
        for step in range(self._first_step, self._steps):
            first = (step * self._processes + self._process) * self._size
            yield images_of_batch(first, self._size, self._count, self._seed)
