"""Healthy images as the model sees them, from files or from any data set, for Lightning's trainer."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol, TypeAlias

import lightning
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Subset

from thorad.datasets.cases import subject_of
from thorad.errors import ThoradError
from thorad.io.images import Image, looks_like_mask
from thorad.io.inputs import as_image
from thorad.io.preprocess import to_model_input
from thorad.io.scans import Scan, find_scans
from thorad.io.slices import images_of
from thorad.io.tables import listing
from thorad.recipe import Recipe
from thorad.training.order import StepBatches

Source: TypeAlias = "str | Path | Dataset[Any]"
"""A folder, a file, a table with a column `image`, or a data set of images."""

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
    """`Images` of files: pictures, slices of volumes, DICOM series.

    All are read at once: a training should not stop at a damaged file hours later. The slices of volumes stay in
    memory, since each volume has to be registered; of pictures, the first `KEPT_BYTES`.

    Args:
        given: the folder or table that the scans are of, for errors.
        scans: healthy images.
        recipe: what a model sees of them.
        most: only so many images, the first ones; None for all.

    Raises:
        ThoradError: images that can't be trained on, or that look like masks; it names them.
    """

    def __init__(self, given: Path, scans: Iterable[Scan], recipe: Recipe, most: int | None = None) -> None:
        self._recipe = recipe
        self._images: list[Tensor | Scan] = []
        masks: list[str] = []
        problems: list[str] = []
        count = 0
        for scan in scans:
            if most is not None and len(self._images) >= most:
                break
            count += 1
            try:
                images = self._read(scan)
                inputs = [to_model_input(image.pixels, recipe.image.size)[0] for image in images]
            except ThoradError as error:
                problems.append(str(error) if str(scan.path) in str(error) else f"{scan.path}: {error}")
                continue
            masks += [scan.path.name] * any(looks_like_mask(image.pixels) for image in images)
            kept = scan.is_volume or len(self._images) < KEPT_BYTES // inputs[0].nbytes
            self._images += inputs if kept else [scan]
        self._images = self._images[:most]
        _refuse(given, count, masks, problems)

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: int) -> Tensor:
        image = self._images[index]
        if isinstance(image, Tensor):
            return image
        return to_model_input(self._read(image)[0].pixels, self._recipe.image.size)[0]

    def _read(self, scan: Scan) -> list[Image]:
        volume = self._recipe.volume
        first, last = volume.axial_slices
        return images_of(scan, skull=volume.skull, indices=range(first, last + 1) if volume.template else ())


class DatasetImages:
    """`Images` of any data set, which is asked for each item whenever it comes up: what is random in it stays so.

    Args:
        dataset: its items are images on their own grid and scale, as `as_image` takes them, or have one under the key
            `image` or as their first part.
        size: S, side of the model's grid, px.
        what: names the data set in errors.

    Raises:
        ThoradError: it has no length or is empty, or its first item is no image.
    """

    def __init__(self, dataset: Dataset[Any], size: int, what: str) -> None:
        self._dataset, self._size, self._what = dataset, size, what
        if not hasattr(dataset, "__len__") or not hasattr(dataset, "__getitem__"):
            raise ThoradError(
                f"{what}: found {type(dataset).__name__}, expected a folder, a CSV table, or a torch Dataset with a "
                "length and items by index. A stream can't be resumed where it stopped; list its items in a Dataset."
            )
        if len(self) == 0:
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
    """What an item holds under `image`, or as its first part; else the item itself."""
    if isinstance(item, Mapping):
        if "image" not in item:
            raise ThoradError(f"has the keys {sorted(map(str, item))}, expected one of them to be 'image'.")
        return _image_in(item["image"])
    return _image_in(item[0]) if isinstance(item, tuple | list) and item else item


def open_images(
    train: Source, validation: Source | None, recipe: Recipe, *, leave_out: Path | None = None
) -> tuple[Images, Images]:
    """The images to train on, and those to validate on, of which `MOST_VALIDATED` are taken.

    Args:
        train: healthy images.
        validation: healthy images of other subjects; None for none.
        recipe: what a model sees of them.
        leave_out: a folder in a folder of images that is passed over: the training's own.

    Raises:
        ThoradError: nothing there, images that can't be trained on, masks among them, a subject in both.
    """
    found = [
        find_scans([Path(source)], leave_out=leave_out).values() if isinstance(source, str | Path) else []
        for source in (train, validation)
    ]
    _refuse_shared_subjects(train, found[0], validation, found[1])
    images: Images = (
        FileImages(Path(train), found[0], recipe)
        if isinstance(train, str | Path)
        else DatasetImages(train, recipe.image.size, "train")
    )
    if validation is None:
        return images, []
    if isinstance(validation, str | Path):
        return images, FileImages(Path(validation), found[1], recipe, MOST_VALIDATED)
    held_out = DatasetImages(validation, recipe.image.size, "validation")
    return images, Subset(held_out, range(min(MOST_VALIDATED, len(held_out))))  # type: ignore[arg-type]


def mean_and_deviation(images: Images) -> tuple[Tensor, Tensor]:
    """Of each pixel over the images, on the model's [-1, 1] scale.

    Returns:
        Mean and standard deviation (of the population), (1, S, S) float32.
    """
    total = torch.zeros_like(images[0], dtype=torch.float64)
    squares = torch.zeros_like(total)
    for index in range(len(images)):
        x = images[index].double() * 2 - 1
        total += x
        squares += x.square()
    mean = total / len(images)
    return mean.float(), (squares / len(images) - mean.square()).clamp(min=0).sqrt().float()


class TrainingData(lightning.LightningDataModule):
    """The images of a training for Lightning: one pass is the whole training, a batch for every step.

    Args:
        recipe: its batch size, steps and seed say which images come when.
        train: to train on.
        validation: to validate on; None for none.
        workers: processes that read images ahead; 0 reads them where they are used.
    """

    def __init__(self, recipe: Recipe, train: Images, validation: Images | None = None, *, workers: int = 0) -> None:
        super().__init__()
        self._training, self._workers = recipe.training, workers
        self.train, self.validation = train, validation

    def train_dataloader(self) -> DataLoader[Tensor]:
        """Batches (B, 1, S, S) in [0, 1] for this process, from the step on that the trainer has come to."""
        assert self.trainer is not None
        batches = StepBatches(
            len(self.train),
            self._training.batch_size,
            self._training.seed,
            steps=self._training.steps,
            first_step=self.trainer.global_step,
            process=self.trainer.global_rank,
            processes=self.trainer.world_size,
        )
        return DataLoader(self.train, batch_sampler=batches, num_workers=self._workers)  # type: ignore[arg-type]

    def val_dataloader(self) -> DataLoader[Tensor]:
        """Batches of one image, (1, 1, S, S) in [0, 1]."""
        return DataLoader(self.validation or [], batch_size=1)  # type: ignore[arg-type]


def _refuse(given: Path, count: int, masks: list[str], problems: list[str]) -> None:
    if problems:
        listed = "\n".join(problems[:5])
        raise ThoradError(f"{len(problems)} of {count} images can't be trained on; mend or remove them:\n{listed}")
    if masks:  # a mistake that no loss curve shows
        raise ThoradError(
            f"{given}: {len(masks)} of {count} images have only two values and look like masks: {listing(masks)}. "
            "Training takes healthy images only; move masks to another folder."
        )


def _refuse_shared_subjects(
    train: Source, trained: Iterable[Scan], validation: Source | None, validated: Iterable[Scan]
) -> None:
    shared = sorted({_subject(scan) for scan in trained} & {_subject(scan) for scan in validated})
    if shared:
        raise ThoradError(
            f"{len(shared)} subjects appear in both {train} and {validation}: {listing(shared)}. What is measured on a "
            "subject that was trained on says nothing; move all images of a subject to one side. "
            "(The subject is the file name's leading sub-XXXX, else the whole name; of DICOM, it is the series.)"
        )


def _subject(scan: Scan) -> str:
    return scan.name if scan.series is not None else subject_of(scan.path)
