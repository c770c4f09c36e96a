"""The paper's training: its own images out of IXI and ATLAS v2.0, and its recipe, a network for each kind of noise.

Bercea, Wiestler, Rueckert, Schnabel: Diffusion Models with Implicit Guidance for Medical Anomaly Detection, MICCAI
2024, arXiv:2403.08464: 465 subjects of IXI and 218 slices of ATLAS without a lesion, 1500 epochs. Which ones they are,
the published code's lists say (`datasets.published`).
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

from thorad.apps.prepare import prepare_files
from thorad.apps.reproduce_data import LayoutCheck
from thorad.datasets import atlas
from thorad.datasets.brains import find_ixi
from thorad.datasets.published import BrainSplit, brain_split
from thorad.diffusion import NOISES
from thorad.errors import ThoradError
from thorad.io.images import files_below
from thorad.io.scans import find_scans
from thorad.io.tables import listing, write_table
from thorad.io.template import MNI_2009A, Grid
from thorad.recipe import Recipe, load_recipe
from thorad.training.fit import fit

PAPER_RECIPE: Final = "brain-t1"
EPOCHS: Final = 1500

Progress = Callable[[int, int, str], None]
"""Called with (done, total, what of)."""

SUBJECT: Final = re.compile(r"IXI\d+")


@dataclass(frozen=True)
class TrainingSet:
    """Tables of the paper's healthy images, with the columns image, subject and source."""

    train: Path
    validation: Path
    images: int
    """For training."""
    found: list[str]
    """What is in them, and what of the lists is missing."""


def build_training_set(
    ixi: Path,
    atlas_root: Path,
    out: Path,
    *,
    skip_artefacts: bool = False,
    grid: Grid = MNI_2009A,
    on_progress: Progress | None = None,
) -> TrainingSet:
    """Gather the paper's images and write out/train.csv and out/val.csv.

    Args:
        ixi: IXI: the T1 volumes as published (`IXI188-Guys-0828-T1.nii.gz`, unpacked), which are registered and cut
            into out/ixi; or mid-axial slices, PNG files with the subject in their names, which are taken as they are.
        atlas_root: ATLAS v2.0 as published, unpacked; its slices are cut into out/atlas.
        out: the folder. What an earlier call has registered there stays.
        skip_artefacts: leave out slices that the published evaluation leaves out for their artefacts.
        grid: of ATLAS's volumes.
        on_progress: see `Progress`.

    Raises:
        ThoradError: no listed subject of IXI, not the whole of ATLAS, a listed slice that has a lesion after all; IXI's
            archive, which has to be unpacked. Listed subjects of IXI that are missing or can't be registered are told.
    """
    split, report = brain_split(), on_progress or (lambda done, total, what: None)
    numbers = split.atlas_train - (split.atlas_artefacts if skip_artefacts else frozenset())
    cases, named = atlas.find_atlas(atlas_root).cases, partial(_named, report, "ATLAS")
    slices = atlas.cut_training_slices(cases, numbers, out / "atlas", grid=grid, on_progress=named)
    pictures, unusable = _ixi_pictures(ixi, split.ixi_train | split.ixi_validation, out / "ixi", report)
    images = {
        "train": [*_of_ixi(split.ixi_train, pictures), *((path, subject, "ATLAS") for path, subject in slices)],
        "val": _of_ixi(split.ixi_validation, pictures),
    }
    _write_images(images, out)
    counts = (len(images["train"]) - len(slices), len(slices), len(images["val"]))
    found = [*_describe(split, counts, pictures), *(f"{name}: {reason}" for name, reason in unusable.items())]
    return TrainingSet(out / "train.csv", out / "val.csv", len(images["train"]), found)


def _describe(split: BrainSplit, counts: tuple[int, int, int], pictures: Mapping[str, Path]) -> list[str]:
    """What is there of IXI and of ATLAS for training, and of IXI for validation; and who is missing."""
    missing = sorted((split.ixi_train | split.ixi_validation) - pictures.keys())
    return [
        f"Training: {counts[0]} of the paper's {len(split.ixi_train)} subjects of IXI and {counts[1]} of its "
        f"{len(split.atlas_train)} slices of ATLAS without a lesion. Validation: {counts[2]} of "
        f"{len(split.ixi_validation)} subjects of IXI.",
        *([f"Missing of IXI, so this is not the paper's whole set: {listing(missing)}."] if missing else []),
    ]


def _named(report: Progress, name: str, done: int, total: int) -> None:
    report(done, total, name)


def _write_images(images: Mapping[str, list[tuple[Path, str, str]]], out: Path) -> None:
    for part, of_part in images.items():
        rows = [{"image": str(path.resolve()), "subject": subject, "source": of} for path, subject, of in of_part]
        write_table(out / f"{part}.csv", ["image", "subject", "source"], rows)


def _of_ixi(subjects: AbstractSet[str], pictures: Mapping[str, Path]) -> list[tuple[Path, str, str]]:
    """(picture, subject, source) of those subjects that have one."""
    return [(pictures[subject], subject, "IXI") for subject in sorted(subjects & pictures.keys())]


def paper_recipe(recipe: str, noise: str, images: int, steps: int | None = None) -> Recipe:
    """A recipe for one kind of noise alone, as the paper's networks have it, and for its epochs.

    Args:
        recipe: name or TOML file of the recipe.
        noise: the kind.
        images: for training.
        steps: of the training; None: 1500 epochs of the images.

    Raises:
        ThoradError: unknown recipe or noise.
    """
    base = load_recipe(recipe)
    if noise not in NOISES:
        raise ThoradError(f"unknown noise {noise!r}. Known: {', '.join(NOISES)}.")
    alone = {"kinds": (noise,), "share": (1.0,), "loss_weight": (1.0,)}
    epochs = math.ceil(EPOCHS * images / base.training.batch_size)
    return base.model_copy(
        update={
            "name": f"{base.name}-{noise}",
            "noise": base.noise.model_validate({**base.noise.model_dump(), **alone}),
            "training": base.training.model_copy(update={"steps": steps or epochs}),
        }
    )


def train_paper(
    training_set: TrainingSet,
    out: Path,
    noises: Sequence[str],
    *,
    recipe: str = PAPER_RECIPE,
    steps: int | None = None,
    accelerator: str = "auto",
    progress_bar: bool = True,
) -> dict[str, Path]:
    """Train a network for each kind of noise, or resume; gives {noise: model folder}.

    Raises:
        ThoradError: as `fit`.
    """
    models = {}
    for noise in noises:
        asked = paper_recipe(recipe, noise, training_set.images, steps)
        models[noise] = fit(
            asked,
            training_set.train,
            out / noise,
            validation=training_set.validation,
            accelerator=accelerator,
            progress_bar=progress_bar,
        )
    return models


def check_training_data(ixi: Path, atlas_root: Path) -> LayoutCheck:
    """Say what of the paper's training set two folders hold, by the names of their files; nothing is read or written.

    Raises:
        ThoradError: no listed subject of IXI.
    """
    split = brain_split()
    pictures, volumes = _find_ixi(ixi, split.ixi_train | split.ixi_validation)
    counts = [
        f"{len(subjects & (pictures.keys() | volumes.keys()))} of {len(subjects)} subjects for {what}"
        for what, subjects in (("training", split.ixi_train), ("validation", split.ixi_validation))
    ]
    found = [f"IXI: {', '.join(counts)}; {len(pictures)} as slices, {len(volumes)} as volumes to register."]
    problems = []
    cases = atlas.find_atlas(atlas_root).cases
    try:
        atlas.published_numbers(cases)
        found.append(f"ATLAS: all {len(cases)} scans that the paper's lists number.")
    except ThoradError as error:
        problems.append(str(error))
    return LayoutCheck(found, problems)


def _find_ixi(ixi: Path, wanted: AbstractSet[str]) -> tuple[dict[str, Path], dict[str, Path]]:
    """({subject: picture of its slice}, {subject without one: its T1 volume})."""
    if not ixi.is_dir():
        raise ThoradError(f"{ixi}: no such folder. Name the folder of IXI's T1 volumes, or of its slices.")
    files = files_below(ixi)
    pictures: dict[str, Path] = {}
    # Of two pictures of a subject the shorter name: the other one says that it was cropped.
    for path in sorted(files, key=lambda path: (len(path.name), path)):
        named = SUBJECT.search(path.name)
        if named and path.suffix.lower() == ".png" and named[0] in wanted:
            pictures.setdefault(named[0], path)
    data_set = find_ixi(ixi, files)
    cases = [case for case in (data_set.cases if data_set else []) if case.subject in wanted - pictures.keys()]
    packed = sorted({case.archive for case in cases if case.archive is not None})
    if packed:
        raise ThoradError(f"{packed[0]}: its volumes have to be unpacked to be registered: tar -xf {packed[0].name}")
    if not pictures and not cases:
        raise ThoradError(
            f"{ixi}: none of the {len(wanted)} subjects in the paper's lists. Expected IXI's T1 volumes, such as "
            "IXI188-Guys-0828-T1.nii.gz, or PNG slices with IXI188 in their names."
        )
    return pictures, {case.subject: case.image for case in cases}


def _ixi_pictures(
    ixi: Path, wanted: AbstractSet[str], out: Path, on_progress: Progress
) -> tuple[dict[str, Path], dict[str, str]]:
    """({subject: picture of its slice}, {volume: why it gave none}); volumes are registered and cut."""
    pictures, volumes = _find_ixi(ixi, wanted)
    if not volumes:
        return pictures, {}
    scans = find_scans(list(volumes.values()))
    summary = prepare_files(scans, out, on_progress=partial(_named, on_progress, "IXI"))
    for prepared in summary.done.values():
        named = SUBJECT.search(Path(prepared.source).name)
        if named and not prepared.refused:
            pictures[named[0]] = prepared.slices[MNI_2009A.axial_slice]
    return pictures, {**summary.failed, **summary.refused}
