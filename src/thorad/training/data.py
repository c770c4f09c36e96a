"""Healthy images as the model sees them, from files or from any data set, in an order that resumes.

What a training step sees follows from (seed, step, process) alone, so that a training that was killed and resumed ends
with the weights of an uninterrupted one.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol, TypeAlias

import lightning
import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Subset

from thorad.errors import ThoradError
from thorad.io.atomic import write_atomic
from thorad.io.images import Image, looks_like_mask
from thorad.io.inputs import as_image
from thorad.io.preprocess import digest_of, to_model_input
from thorad.io.scans import Scan, find_scans
from thorad.io.slices import images_of
from thorad.io.tables import counted, listing
from thorad.io.text import printable
from thorad.recipe import Recipe, TrainingSection

Source: TypeAlias = "str | Path | Dataset[Any]"
"""A folder, a file, a table with a column `image`, or a data set of images."""

CLAIM = "trained-on.json"
"""What a training's folder was made for: its settings, and which images."""

KEPT_BYTES = 2 * 2**30
"""Of pictures as the model sees them, so much stays in memory: 32,768 of 128 px. The others are read from their files
whenever they come up."""

MOST_VALIDATED = 64
"""Images of a validation pass, the first ones; each costs five network calls for every kind of noise."""


class Images(Protocol):
    """Images as the model sees them: (1, S, S) float32 in [0, 1] each."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Tensor: ...


class FileImages:
    """`Images` of pictures, volumes' slices and DICOM series.

    All are read at once: a training should not stop at a damaged file hours later. Slices stay in memory, since each
    volume has to be registered; of pictures, the first `KEPT_BYTES`.

    Raises:
        ThoradError: images that can't be trained on, or that look like masks; it names them.
    """

    def __init__(self, given: str | Path, scans: Sequence[Scan], recipe: Recipe) -> None:
        self._recipe = recipe
        self._images: list[Tensor | Scan] = []
        self.contents: dict[str, str] = {}
        """{digest of what the model sees: file}: the same image under two names."""
        masks: list[str] = []
        problems: list[str] = []
        for scan in scans:
            try:
                images = self._read(scan)
                inputs = [self._input(image) for image in images]
            except ThoradError as error:
                problems.append(str(error) if str(scan.path) in str(error) else f"{scan.path}: {error}")
                continue
            self.contents |= {digest_of(each): scan.source for each in inputs}
            masks += [scan.path.name] * any(looks_like_mask(image.pixels) for image in images)
            kept = scan.is_volume or len(self._images) < KEPT_BYTES // inputs[0].nbytes
            self._images += inputs if kept else [scan]
        if problems:
            raise ThoradError(
                f"{len(problems)} of {len(scans)} images can't be trained on; mend or remove them: {listing(problems)}"
            )
        if masks:  # a mistake that no loss curve shows
            raise ThoradError(
                f"{given}: {len(masks)} of {len(scans)} images have few values only and look like masks: "
                f"{listing(masks)}. Training takes healthy images only; move masks to another folder."
            )

        files = sorted([scan.path.name, *scan.state[:2], scan.excerpt] for scan in scans)
        self.digest = hashlib.sha256(json.dumps(files).encode()).hexdigest()
        """Of the files' names, sizes and excerpts: other images have another one, wherever they lie."""

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: int) -> Tensor:
        image = self._images[index]
        return image if isinstance(image, Tensor) else self._input(self._read(image)[0])

    def _read(self, scan: Scan) -> list[Image]:
        volume = self._recipe.volume
        first, last = volume.axial_slices
        return images_of(scan, skull=volume.skull, indices=range(first, last + 1) if volume.template else ())

    def _input(self, image: Image) -> Tensor:
        return to_model_input(image.pixels, self._recipe.image.size)[0]


class DatasetImages:
    """`Images` of any data set whose items `as_image` takes, or have an image under `image` or as their first part.

    Each item is asked for whenever it comes up, so what is random in it stays so. `what` names the data set in errors.

    Raises:
        ThoradError: it has no length or is empty, or its first item is no image.
    """

    def __init__(self, what: str, dataset: Dataset[Any], size: int) -> None:
        self._what, self._dataset, self._size = what, dataset, size
        if not hasattr(dataset, "__len__") or not hasattr(dataset, "__getitem__"):
            raise ThoradError(
                f"{what}: found {type(dataset).__name__}, expected a folder, a CSV table, or a torch Dataset with a "
                "length and items by index. A stream can't be resumed where it stopped; list its items in a Dataset."
            )
        if not len(self):
            raise ThoradError(f"{what}: the {type(dataset).__name__} is empty.")
        self[0]

    def __len__(self) -> int:
        return len(self._dataset)  # type: ignore[arg-type]

    def __getitem__(self, index: int) -> Tensor:
        try:
            return to_model_input(as_image(_image_in(self._dataset[index])).pixels, self._size)[0]
        except ThoradError as error:
            raise ThoradError(f"{self._what}, item {index}: {error}") from error


def _image_in(item: Any) -> Any:
    if isinstance(item, Mapping):
        if "image" not in item:
            raise ThoradError(f"has the keys {sorted(map(str, item))}, expected one of them to be 'image'.")
        return _image_in(item["image"])
    return _image_in(item[0]) if isinstance(item, tuple | list) and item else item


def open_images(
    train: Source, validation: Source | None, recipe: Recipe, *, leave_out: Path | None = None
) -> tuple[Images, Images]:
    """The healthy images to train on, and the first `MOST_VALIDATED` of other subjects to validate on.

    `leave_out` is the training's own folder, which may lie in a folder of images.

    Raises:
        ThoradError: nothing there, images that can't be trained on, masks among them, a subject in both.
    """

    def find(source: Source | None) -> list[Scan]:
        if not isinstance(source, str | Path):
            return []
        scans = find_scans([Path(source)], leave_out=leave_out, healthy=True)
        if scans.left_out:
            rank_zero_info(f"{printable(str(source))}: {counted(scans.left_out)}")
        return list(scans.values())

    def opened(what: str, source: Source, scans: Sequence[Scan]) -> Images:
        if isinstance(source, str | Path):
            return FileImages(source, scans, recipe)
        return DatasetImages(what, source, recipe.image.size)

    found, held_out = find(train), find(validation)
    shared = {scan.subject for scan in found} & {scan.subject for scan in held_out}
    if not shared:  # the names of one file differ between a folder and a table
        shared = {str(scan.path.resolve()) for scan in found} & {str(scan.path.resolve()) for scan in held_out}
    if shared:
        raise ThoradError(
            f"{len(shared)} subjects appear in both {train} and {validation}: {listing(sorted(shared))}. What is "
            "measured on a subject that was trained on says nothing; move all images of a subject to one side. "
            "(The subject is the leading sub-XXXX of a file or its folder, else the case's name; of DICOM, the series.)"
        )
    images = opened("train", train, found)
    if validation is None:
        return images, []
    validated = opened("validation", validation, held_out[:MOST_VALIDATED])
    _refuse_same_images(images, validated)
    return images, Subset(validated, range(min(MOST_VALIDATED, len(validated))))  # type: ignore[arg-type]


def _refuse_same_images(train: Images, validation: Images) -> None:
    """Raise where files of both hold one image, under whatever names."""
    if not isinstance(train, FileImages) or not isinstance(validation, FileImages):
        return
    both = sorted(train.contents.keys() & validation.contents.keys())
    if both:
        pairs = listing([f"{train.contents[image]} and {validation.contents[image]}" for image in both])
        raise ThoradError(f"{len(both)} images are among those to train on and those to validate on: {pairs}.")


def claim(out: Path, settings: str, train: Images, validation: Images, start: str = "") -> None:
    """Make a training's folder, or check that what it holds is a training with these settings on these images.

    Of a data set in memory, whose items may be random, the number of images counts. Folders of earlier versions, which
    say nothing, are taken for what is asked for.

    Raises:
        ThoradError: it holds another one, whose weights would pass for this one's; it can't be written.
    """

    def of(images: Images) -> str:
        files = images.dataset if isinstance(images, Subset) else images
        return files.digest if isinstance(files, FileImages) else f"{len(images)} images"

    asked = {"settings": settings, "training images": of(train), "validation images": of(validation)}
    asked |= {"weights to start from": start} if start else {}
    path = out / CLAIM
    try:
        out.mkdir(parents=True, exist_ok=True)
        if not path.is_file():
            write_atomic(path, json.dumps(asked, indent=2).encode())  # other processes may look for it right now
        earlier = json.loads(path.read_bytes())
    except OSError as error:
        raise ThoradError(
            f"{out}: can't be written ({error.strerror}). Give a folder that you may write to."
        ) from error
    except ValueError:
        earlier = {}
    if others := [what for what in {**earlier, **asked} if earlier.get(what) != asked.get(what)]:
        raise ThoradError(
            f"{out}: holds a training with other {listing(others)}. Give the same, or another --out, or delete it to "
            "begin anew."
        )


def evenly_spread(images: Images, most: int) -> list[Tensor]:
    """At most so many of the images, (1, S, S) each."""
    count = min(len(images), most)
    return [images[index * len(images) // count] for index in range(count)]


def mean_and_deviation(images: Images) -> tuple[Tensor, Tensor]:
    """Of each pixel over the images, (1, S, S) on the model's [-1, 1] scale; the deviation is the population's."""
    total = torch.zeros_like(images[0], dtype=torch.float64)
    squares = torch.zeros_like(total)
    for index in range(len(images)):
        x = images[index].double() * 2 - 1
        total += x
        squares += x.square()
    mean = total / len(images)
    return mean.float(), (squares / len(images) - mean.square()).clamp(min=0).sqrt().float()


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


@dataclass(frozen=True)
class StepBatches:
    """Which of `count` images one of the processes sees in each step, from the step where a training resumes."""

    training: TrainingSection
    count: int
    first_step: int = 0
    process: int = 0
    processes: int = 1

    def __len__(self) -> int:
        return self.training.steps  # Lightning counts the steps before the first one itself

    def __iter__(self) -> Iterator[list[int]]:
        size = self.training.batch_size
        for step in range(self.first_step, self.training.steps):
            first = (step * self.processes + self.process) * size
            yield images_of_batch(first, size, self.count, self.training.seed)


class TrainingData(lightning.LightningDataModule):
    """Batches (B, 1, S, S) in [0, 1] for Lightning: one pass is the whole training, a batch for every step.

    `workers` processes read images ahead; 0 reads them where they are used.
    """

    def __init__(self, recipe: Recipe, train: Images, validation: Images = (), *, workers: int = 0) -> None:
        super().__init__()
        self._recipe, self._train, self._validation, self._workers = recipe, train, validation, workers

    def train_dataloader(self) -> DataLoader[Tensor]:
        """From the step on that the trainer has come to, for this process."""
        assert self.trainer is not None
        at = (self.trainer.global_step, self.trainer.global_rank, self.trainer.world_size)
        batches = StepBatches(self._recipe.training, len(self._train), *at)
        return DataLoader(self._train, batch_sampler=batches, num_workers=self._workers)  # type: ignore[arg-type]

    def val_dataloader(self) -> DataLoader[Tensor]:
        """One by one."""
        return DataLoader(self._validation)  # type: ignore[arg-type]
