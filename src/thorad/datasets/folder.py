"""Any other folder of images: masks and boxes are recognised by their names and folders."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from thorad.datasets.cases import Case, subject_of
from thorad.datasets.contract import Holdings, Layout
from thorad.datasets.names import is_image, shown, stem_of
from thorad.io.images import case_names

MASK_STEM: Final = re.compile(r"(.+?)[-_.](?:seg|lesions?|gt|(?:lesions?[-_]?)?mask)", re.IGNORECASE)
"""Of a mask beside its image: the image's stem and an ending."""
IMAGE_FOLDERS: Final = {"images", "image", "imgs", "scans"}
MASK_FOLDERS: Final = {"masks", "mask", "labels", "segmentations"}
BOX_FOLDERS: Final = {"boxes", "annotations", "labels", "pascalvoc"}

Key = tuple[str, ...]
"""What an image shares with its masks and boxes: its folders but for those that tell the kind, and its stem."""


def find_in_folder(folder: Path, files: Sequence[Path]) -> Holdings | None:
    """Every image; x_mask.png or masks/x.png is the mask of x.png, boxes/x.xml holds its boxes."""
    images, masks, boxes = _sorted_by_kind(folder, files)
    if not images and not masks:
        return None
    names = case_names([path for path, _ in images], [folder] * len(images))
    cases = [
        Case(path, None, subject_of(path), name, boxes=boxes.get(key)).with_masks(masks.get(key, ()))
        for (path, key), name in zip(images, names, strict=True)
    ]
    keys = {key for _, key in images}
    with_masks = {key[:-1] for key in keys & masks.keys()}
    missing = [
        f"{shown(case.image, folder)}: no mask, others of its folder have one"
        for case, (_, key) in zip(cases, images, strict=True)
        if not case.masks and key[:-1] in with_masks
    ]
    strays = [mask for key, of_key in masks.items() if key not in keys for mask in of_key]
    strays += [
        path
        for key, path in boxes.items()
        if key not in keys and path.parent != folder and path.parent.name.casefold() in BOX_FOLDERS
    ]
    return Holdings(cases, missing + [f"{shown(path, folder)}: no image" for path in strays])


def _sorted_by_kind(
    folder: Path, files: Sequence[Path]
) -> tuple[list[tuple[Path, Key]], dict[Key, list[Path]], dict[Key, Path]]:
    """The images, the masks and the files of boxes."""
    images: list[tuple[Path, Key]] = []
    masks: dict[Key, list[Path]] = {}
    boxes: dict[Key, Path] = {}
    for path in files:
        folders = {part.casefold() for part in path.relative_to(folder).parts[:-1]}
        if path.suffix.lower() in (".txt", ".xml"):
            boxes[_key(path, folder, path.stem)] = path
        elif is_image(path):
            named = MASK_STEM.fullmatch(stem_of(path))
            if folders & MASK_FOLDERS or named:
                masks.setdefault(_key(path, folder, named[1] if named else stem_of(path)), []).append(path)
            else:
                images.append((path, _key(path, folder, stem_of(path))))
    return images, masks, boxes


def _key(path: Path, folder: Path, stem: str) -> Key:
    kinds = IMAGE_FOLDERS | MASK_FOLDERS | BOX_FOLDERS
    return (*(part for part in path.relative_to(folder).parts[:-1] if part.casefold() not in kinds), stem)


LAYOUT: Final = Layout(description="a folder of images or volumes", find=find_in_folder, general=True)
