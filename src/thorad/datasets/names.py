"""What the names of files say, and how reports name files."""

from collections.abc import Iterable, Sequence
from pathlib import Path, PurePath

from thorad.datasets.cases import Case
from thorad.io.images import SUFFIXES
from thorad.io.volumes import VOLUME_SUFFIXES

IMAGE_SUFFIXES = tuple(sorted((*SUFFIXES, *VOLUME_SUFFIXES), key=len, reverse=True))
"""Of pictures and volumes, `.nii.gz` before `.gz` would be."""


def is_image(path: PurePath) -> bool:
    """Whether a name ends as those of pictures and volumes do."""
    return path.name.lower().endswith(IMAGE_SUFFIXES)


def is_volume(path: PurePath) -> bool:
    """Whether a name ends as those of volumes do."""
    return path.name.lower().endswith(VOLUME_SUFFIXES)


def stem_of(path: PurePath) -> str:
    """The name without an image's or a volume's suffix, .nii.gz as a whole."""
    lower = path.name.lower()
    return path.name[: len(path.name) - len(next(filter(lower.endswith, IMAGE_SUFFIXES), ""))]


def shown(path: Path, folder: Path) -> str:
    """A file as reports name it: relative to the data set's folder where it lies there."""
    return str(path.relative_to(folder) if path.is_relative_to(folder) else path)


def without_t1(subjects: Iterable[str], cases: Sequence[Case]) -> list[str]:
    """One line for each subject that has no case."""
    return [f"{subject}: no T1 volume" for subject in sorted(set(subjects) - {case.subject for case in cases})]


def without_mask(cases: Sequence[Case], folder: Path) -> list[str]:
    """One line for each case without a mask, if any case has one."""
    if not any(case.masks for case in cases):
        return []
    return [f"{shown(case.image, folder)}: no lesion mask, others have one" for case in cases if not case.masks]
