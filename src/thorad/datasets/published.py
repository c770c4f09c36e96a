"""The splits of THOR's published experiments, as thorad carries them: lists of file names (assets/splits/README.md)."""

from collections.abc import Mapping
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Final, NamedTuple

from thorad.io.tables import read_table

FINDINGS: Final = ("boneanomaly", "foreignbody", "fracture", "metal", "periostealreaction", "softtissue")
"""Of the wrist experiment, as GRAZPEDWRI-DX's annotations name them."""

NORMALS: Final = ("train", "validation", "test")
"""Parts of the wrist experiment's healthy images."""

ATLAS_SCANS: Final = 655
"""T1w volumes with a mask in ATLAS v2.0, which the published numbers count."""


class BrainSplit(NamedTuple):
    """Of the brain experiment: subjects of IXI, and numbers of ATLAS scans."""

    ixi_train: frozenset[str]  # `IXI188`
    ixi_validation: frozenset[str]
    atlas_train: frozenset[int]  # of slices without a lesion
    atlas_artefacts: frozenset[int]  # of slices that the published evaluation leaves out


@cache
def wrist_split() -> Mapping[str, Mapping[str, int]]:
    """{part of `NORMALS` or finding: {image, without its suffix: annotations of that finding}}."""
    parts: dict[str, dict[str, int]] = {part: {} for part in (*NORMALS, *FINDINGS)}
    for _, row in read_table(_folder() / "wrist.csv.gz", ["image", "part", "annotations"]):
        parts[row["part"]][row["image"]] = int(row["annotations"])
    return parts


@cache
def brain_split() -> BrainSplit:
    """The parts of the brain experiment."""
    parts: dict[tuple[str, str], set[str]] = {}
    for _, row in read_table(_folder() / "brain.csv", ["source", "name", "part"]):
        parts.setdefault((row["source"], row["part"]), set()).add(row["name"])
    return BrainSplit(
        frozenset(parts["ixi", "train"]),
        frozenset(parts["ixi", "validation"]),
        frozenset(map(int, parts["atlas", "train"])),
        frozenset(map(int, parts["atlas", "artefact"])),
    )


def _folder() -> Path:
    return Path(str(resources.files("thorad"))) / "assets" / "splits"
