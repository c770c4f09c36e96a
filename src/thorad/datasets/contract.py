"""What a layout of data sets is: the type of the entries of `thorad.datasets.DATASETS`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from thorad.datasets.cases import Case


@dataclass(frozen=True)
class DataSet:
    """What a folder holds, by the names of its files."""

    cases: list[Case]
    """Each with an image that is there. Two cases of one name are the same scan twice."""
    missing: list[str] = field(default_factory=list)
    """What the names of other files say should be there, one entry a thing: `sub-03: no T1 volume`."""
    odd: list[str] = field(default_factory=list)
    """What fits nowhere: broken links, damaged archives, a second layout."""
    kind: str = ""
    """Its layout's name in `thorad.datasets.DATASETS`; `find_data_set` fills it in."""
    missing_beside: list[str] = field(default_factory=list)
    """Those of `missing` that a table names for an image which is there, as its mask: the image's case lacks it and
    looks healthy, so `thorad data split` refuses."""
    named_twice: list[str] = field(default_factory=list)
    """Images that a table names in several rows: the first is the case, so `thorad data split` refuses."""


@dataclass(frozen=True)
class Layout:
    """One way in which data sets lie on the disk.

    Another package adds one by an entry point in the group `thorad.datasets`, whose name is the kind of data set
    (`thorad data check --kind NAME`) and whose value is a `Layout`; a script adds one by
    `thorad.datasets.DATASETS.register(NAME, Layout(...))`. Where no kind is named, the first layout that finds
    something is taken: those of other packages first, then thorad's own, then the general ones.

    A data set that is listed in a CSV file with the columns image, mask or boxes, and subject needs no layout.
    """

    description: str
    """What it looks like, for people: `BIDS: sub-*/[ses-*/]anat/*_T1w.nii.gz`."""

    find: Callable[[Path, Sequence[Path]], DataSet | None]
    """`find(folder, files)`: the cases, or None where the files are named otherwise.

    `files` are all files below the folder, sorted, without hidden ones, broken links and those below linked folders.
    Names alone decide: no image is opened, only tables that the data set comes with, and of an archive the list of its
    members. A `Case` names its image, all its masks of lesions (`Case.with_masks`), its file of boxes and its subject:
    splits go by subjects. A table that can't be read is a `ThoradError`.
    """

    recognises: Callable[[PurePath], bool] | None = None
    """Whether a file, relative to the folder, has a name of this layout, be it a case's or not.

    `thorad data check` tells of volumes that no layout recognises, as they would be lost without a word. None: the
    layout does not go by the names of volumes.
    """

    general: bool = False
    """Whether it fits nearly any folder. Such a layout is tried last, and never as a second one beside another."""

    patients_only: bool = False
    """Whether an image without a mask, where others have one, is a patient's whose lesions are unknown.

    `thorad data split` leaves such images out instead of calling them healthy.
    """

    annotations_are_findings: bool = True
    """Whether masks and boxes mark findings and nothing else, so that `thorad data split` may write them down."""
