"""Volumes to slices in the template: registered, cut, written for `thorad detect`, `train` and `calibrate`.

    slices.csv                 columns image, subject, volume, slice: what the other verbs read
    <name>/slice_095.png       16 bit, 197 x 233 px of 1 mm, anterior up, x ascending to the right
    <name>/overlay.png         three planes of the registered head, the template's brain outlined
    <name>/prepared.json       the transform and how well it fits; written last, so a volume that has it is complete

Every file is there whole or not at all, so a run that was killed resumes where it stopped.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from thorad import __version__
from thorad.errors import ThoradError
from thorad.executor import Executor, here, wait_for
from thorad.io.atomic import write_atomic
from thorad.io.images import write_png8, write_png16
from thorad.io.registration import register
from thorad.io.registration_picture import registration_picture
from thorad.io.scans import Scan
from thorad.io.slices import cut_slices, slice_name
from thorad.io.tables import write_table
from thorad.io.template import MNI_2009A
from thorad.io.volumes import Volume
from thorad.pictures import three_planes
from thorad.recipe import VolumeSection, load_recipe


@dataclass(frozen=True, eq=False)
class Prepared:
    """A volume whose slices have been cut, as its prepared.json keeps it; the matrices lead to RAS mm."""

    name: str
    source: str
    subject: str
    to_template: NDArray[np.float64]
    """(4, 4), of native RAS mm."""
    shape: tuple[int, int, int]
    """(I, J, K) of the native grid."""
    affine: NDArray[np.float64]
    """(4, 4), of native voxel indices."""
    overlap: float
    similarity: float
    warning: str | None
    """As `thorad.io.registration.Registration` has them."""
    refused: bool
    """Whether the registration failed, for the reason of the warning: the slices are to look at, and in no table."""
    slices: Mapping[int, Path]
    """{index in the template's grid: file}."""
    options: Mapping[str, Any]
    """Which slices were wanted, and whether with the skull."""
    files: tuple[int, int, int] | None
    """`thorad.io.scans.Scan.state` of the volume when they were cut; None in folders of earlier versions."""


@dataclass(frozen=True)
class PrepareSummary:
    """What became of the volumes."""

    done: Mapping[str, Prepared]
    """{name: volume}, with those that an earlier run has done."""
    failed: Mapping[str, str]
    """{name: why}."""
    already_done: int
    seconds: float
    """Wall time of this run."""

    @property
    def warned(self) -> dict[str, str]:
        """{name: warning} of those that are done."""
        return {name: each.warning for name, each in self.done.items() if each.warning and not each.refused}

    @property
    def refused(self) -> dict[str, str]:
        """{name: why its registration failed}: its slices are in no table."""
        return {name: str(each.warning) for name, each in self.done.items() if each.refused}


def volume_section(model: str) -> VolumeSection:
    """What a model is shown of a volume: a bundled model's or recipe's name, a model folder, or a recipe file.

    Raises:
        ThoradError: no such model, or it isn't for volumes.
    """
    folder = Path(model)
    section = load_recipe(folder / "recipe.toml" if folder.is_dir() else model).volume
    if not section.template:
        raise ThoradError(f"model {model!r} is for pictures, not for volumes: its recipe's [volume] names no template.")
    return section


def prepare_files(
    scans: Mapping[str, Scan],
    out: Path,
    *,
    skull: bool = True,
    indices: Sequence[int] = (MNI_2009A.axial_slice,),
    executor: Executor = here,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> PrepareSummary:
    """Register volumes, cut their slices and write them; last `out`/slices.csv, which lists all that may be used.

    Args:
        scans: {name: scan}, of `find_scans`; pictures among them are passed over.
        out: the folder. What was cut there with the same options, from a file that has not changed since, stays.
        skull: whether the slices show the head or the brain alone; see `register`.
        indices: of the axial slices, in the template's grid.
        executor: where it is done, with the same results.
        on_progress: called with (volumes done or failed, volumes in all).

    Raises:
        ThoradError: no volume, an index outside the template, `out` can't be written; never for one bad volume.
    """
    began = time.perf_counter()
    volumes = _volumes_of(scans, indices)
    options = {"skull": skull, "slices": sorted(set(indices))}
    _make_folder(out)
    todo = [scan for name, scan in volumes.items() if not _is_done(scan, out / name, options)]
    already_done = len(volumes) - len(todo)
    on_progress(already_done, len(volumes))
    reasons: dict[str, str | None] = {}
    prepare = partial(_try_to_prepare, out=out, options=options)
    for name, reason in executor(prepare, [[scan] for scan in todo], lambda scan, why: (scan.name, why)):
        reasons[name] = reason
        on_progress(already_done + len(reasons), len(volumes))
    failed = {scan.name: reason for scan in todo if (reason := reasons[scan.name]) is not None}
    wait_for(out / name / "prepared.json" for name in volumes if name not in failed)
    done = {name: load_prepared(out / name) for name in volumes if name not in failed}
    _write_table(out)
    return PrepareSummary(done, failed, already_done, time.perf_counter() - began)


def _make_folder(out: Path) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ThoradError(f"{out}: can't be made ({error.strerror}). Choose another --out.") from error


def _volumes_of(scans: Mapping[str, Scan], indices: Sequence[int]) -> dict[str, Scan]:
    volumes = {name: scan for name, scan in scans.items() if scan.is_volume or scan.problem is not None}
    if not volumes:
        raise ThoradError("no volume among the inputs. Expected NIfTI, NRRD or MetaImage files, or DICOM series.")
    depth = MNI_2009A.shape[2]
    if not indices or min(indices) < 0 or max(indices) >= depth:
        raise ThoradError(f"slices {list(indices)}: expected indices from 0 to {depth - 1} of the template's grid.")
    return volumes


def load_prepared(folder: Path) -> Prepared:
    """Read what `prepare_files` has written of one volume; a ThoradError where it is missing or damaged."""
    path = folder / "prepared.json"
    try:
        content = json.loads(path.read_bytes())
        return Prepared(
            **{key: content[key] for key in ("name", "source", "subject", "warning", "overlap", "similarity")},
            to_template=np.array(content["to_template"], dtype=np.float64).reshape(4, 4),
            affine=np.array(content["affine"], dtype=np.float64).reshape(4, 4),
            shape=tuple(content["shape"]),
            refused=bool(content.get("refused", False)),
            files=tuple(content["files"]) if content.get("files") else None,
            slices={int(index): folder / file for index, file in content["slices"].items()},
            options=content["options"],
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ThoradError(f"{path}: missing or damaged ({error}). Delete it, and `thorad prepare` makes it.") from error


def _try_to_prepare(scans: Sequence[Scan], out: Path, options: dict[str, Any]) -> list[tuple[str, str | None]]:
    """The name of each scan, and why it failed, or None."""
    tried: list[tuple[str, str | None]] = []
    for scan in scans:
        try:
            _prepare(scan, out / scan.name, options)
            tried.append((scan.name, None))
        except ThoradError as error:
            tried.append((scan.name, scan.redacted(str(error))))
    return tried


def _prepare(scan: Scan, folder: Path, options: dict[str, Any]) -> None:
    _clear(folder, scan)  # before it is read: where it can't be, what another file left would pass for its slices
    state, volume = scan.state, scan.read()
    assert isinstance(volume, Volume)
    registration = register(volume, skull=options["skull"])
    indices: list[int] = options["slices"]
    slices = np.clip(cut_slices(registration, indices, skull=options["skull"]), 0, None)
    if not slices.max() > 0:
        raise ThoradError(f"{scan.path}: the slices {indices} are empty. Is this a head, and does it reach so far?")
    files = {}
    for index, pixels in zip(indices, slices, strict=True):
        files[index] = f"{slice_name(index)}.png"
        # One scale for the volume, so that its slices compare.
        write_png16(folder / files[index], pixels / slices.max())
    middle = indices[len(indices) // 2]
    write_png8(folder / "overlay.png", three_planes(registration_picture(registration, middle), MNI_2009A.shape))
    content = {
        "name": scan.name,
        "source": scan.source,
        "files": state,
        "subject": scan.subject,
        "to_template": registration.to_template.tolist(),
        "shape": volume.voxels.shape,
        "affine": volume.affine.tolist(),
        "overlap": registration.overlap,
        "similarity": registration.similarity,
        "warning": registration.warning,
        "refused": registration.doubtful,
        "slices": files,
        "options": options,
        "versions": {"thorad": __version__, **{name: version(name) for name in ("simpleitk", "numpy", "scipy")}},
    }
    write_atomic(folder / "prepared.json", (json.dumps(content, indent=2) + "\n").encode())


def _clear(folder: Path, scan: Scan) -> None:
    """Take away what other options or an interrupted try have left of this scan; prepared.json goes first."""
    try:
        source = load_prepared(folder).source
    except ThoradError:
        source = scan.source
    if not scan.comes_from(source):
        raise ThoradError(f"{scan.path}: {folder} holds slices of another file, {source}. Choose another --out.")
    try:
        for file in (folder / "prepared.json", folder / "overlay.png", *folder.glob("slice_*.png")):
            file.unlink(missing_ok=True)
    except OSError as error:
        raise ThoradError(f"{folder}: can't be written ({error.strerror}). Choose another --out.") from error


def _is_done(scan: Scan, folder: Path, options: dict[str, Any]) -> bool:
    try:
        prepared = load_prepared(folder)
        return (
            prepared.options == options
            and scan.comes_from(prepared.source)
            and scan.is_as_it_was(prepared.files, folder / "prepared.json")
            and all(file.is_file() for file in prepared.slices.values())
        )
    except (OSError, ThoradError):
        return False


def _write_table(out: Path) -> None:
    """Of all volumes in the folder that were not refused, those of other calls too."""
    volumes = [load_prepared(record.parent) for record in sorted(out.glob("*/prepared.json"))]
    rows = [
        {"image": file.relative_to(out).as_posix(), "subject": each.subject, "volume": each.name, "slice": index}
        for each in volumes
        if not each.refused
        for index, file in each.slices.items()
    ]
    write_table(out / "slices.csv", ["image", "subject", "volume", "slice"], rows)
