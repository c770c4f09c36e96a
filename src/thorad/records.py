"""What was found in an image or a volume, as everything above the detector reads it.

Shapes: H, W an image's own grid; S the model's; I, J, K a volume's.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from thorad.check import NOTHING_FOUND, Check
from thorad.errors import ThoradError
from thorad.io.intensity import scale
from thorad.io.tables import listing

if TYPE_CHECKING:
    from thorad.io.registration import Registration
    from thorad.io.volumes import Volume


@dataclass(frozen=True)
class Finding:
    """One connected place above the threshold, on the image's or volume's own grid; corners connect."""

    pixels: int
    """Voxels, of a volume."""
    area_mm2: float | None
    """None for a volume, and where the image's spacing isn't known."""
    volume_mm3: float | None
    """Of what was looked at: a voxel counts by how much of it slices, 1 mm thick, take. None for an image."""
    peak: float
    """The map's highest value in it."""
    peak_position: tuple[int, ...]
    """Row and column of that value, or the voxel's three indices; the first in reading order among equals."""
    mean: float
    """Of the map over its pixels."""


@dataclass(frozen=True, eq=False)
class StepPictures:
    """One image at one step of its restoration, on the model's grid."""

    timestep: int
    image: NDArray[np.float32]
    """(S, S) in [0, 1]: the image as the model sees it."""
    clean: NDArray[np.float32]
    """(S, S) in [0, 1]: the estimate of the clean image, before harmonisation."""
    anomaly_map: NDArray[np.float32] | None
    """(S, S) >= 0, 0 outside the model's region; at a harmonised step only."""

    def __repr__(self) -> str:
        """One line: the timestep and what there is."""
        return (
            f"StepPictures(timestep={self.timestep}, {_side(self.clean.shape)} px, map: {self.anomaly_map is not None})"
        )


@dataclass(frozen=True, eq=False)
class Detection:
    """What was found in one image; every picture is (H, W) float32 on the image's own grid."""

    name: str
    source: str
    image: NDArray[np.float32]
    """As the model saw it: scaled by its 98th percentile to [0, 1]."""
    anomaly_map: NDArray[np.float32]
    """>= 0; 0 outside the model's region."""
    pseudo_healthy: NDArray[np.float32]
    """In [0, 1]."""
    score: float
    """`Detector.scores`."""
    network_calls: int
    seconds: float
    """Wall time of this image's share of its batch."""
    p_value: float | None = None
    """Conformal, among the model's healthy calibration scans; None where it isn't calibrated for these options."""
    mask: NDArray[np.bool_] | None = None
    """(H, W): `anomaly_map`, on this grid, above the detector's threshold; None where it has none."""
    findings: tuple[Finding, ...] | None = None
    """The 8-connected components of the mask, the highest peak first; None as above."""
    spread: NDArray[np.float32] | None = None
    """The standard deviation of the map between draws of the noise (divided by their number less one); None where
    there was one draw. The map is their mean, so its own error is smaller by the root of their number."""
    draw_masks: tuple[NDArray[np.bool_], ...] = ()
    """(H, W) each: what is above the threshold in the map of each draw by itself; empty without draws or threshold."""
    steps: tuple[StepPictures, ...] = ()
    """The restoration, step after step, where it was asked for; of several draws the first one's."""
    overlay_maximum: float | None = None
    """Map value at which an overlay's colours end, one for a method, so that detections compare."""
    spacing: tuple[float, float] | None = None
    """Pixel height and width in mm, where known."""
    check: Check = NOTHING_FOUND
    """What speaks against the result; with refusals, it was forced."""
    judged: NDArray[np.bool_] = field(kw_only=True)
    """(H, W): where an anomaly counts, which is the model's region and, of a volume's slice, the subject's brain.
    Elsewhere a map of 0 says nothing. Pixels belong to it that lie in it by half: the map may end just outside."""

    @property
    def draw_agreement(self) -> float | None:
        """Mean Dice of every two draws' masks: 1 where they are the same, or all empty; None without such masks."""
        return _agreement(self.draw_masks)

    def __repr__(self) -> str:
        """One line: name, size, score and what else is known."""
        return f"Detection({self.name!r}, {_side(self.image.shape)} px, {_facts(self)})"

    def _repr_html_(self) -> str:
        """How a notebook shows it."""
        from thorad.notebook import check_html, result_html

        return check_html(self.check) + result_html(self, self.overlay_maximum)


@dataclass(frozen=True, eq=False)
class VolumeDetection:
    """What was found in the slices of one volume."""

    name: str
    source: str
    volume: Volume
    """As it was read."""
    registration: Registration
    indices: tuple[int, ...]
    """Of the axial slices in the template's grid, ascending."""
    slices: tuple[Detection, ...]
    """One for each of them, on the template's plane (H, W)."""
    anomaly_map: NDArray[np.float32]
    """(I, J, K), >= 0; NaN where no slice was looked at."""
    pseudo_healthy: NDArray[np.float32]
    """(I, J, K), in [0, 1]; NaN as above."""
    judged: NDArray[np.bool_]
    """(I, J, K): as of a `Detection`; nothing where no slice was looked at."""
    score: float
    """The highest of the slices' scores."""
    network_calls: int
    seconds: float
    check: Check
    """What speaks against the result: of its registration, of all its slices; with refusals, it was forced."""
    p_value: float | None = None
    """The smallest of the slices', times their number (Bonferroni), 1 at most; None where the detector isn't
    calibrated."""
    mask: NDArray[np.bool_] | None = None
    """(I, J, K): `anomaly_map` above the detector's threshold; None where it has none."""
    findings: tuple[Finding, ...] | None = None
    """The 26-connected components of the mask, the highest peak first; None as above."""

    @property
    def image(self) -> NDArray[np.float32]:
        """(I, J, K) in [0, 1], to look at: scaled by the volume's own 98th percentile; what is below 0 is black."""
        return scale(np.clip(self.volume.voxels, 0, None))

    @property
    def draw_agreement(self) -> float | None:
        """Mean Dice of every two draws' masks, each over all slices; as `Detection.draw_agreement`."""
        return _agreement([np.stack(masks) for masks in zip(*(one.draw_masks for one in self.slices), strict=True)])

    @property
    def where(self) -> str:
        """The slices, short enough for a NIfTI header's 79 characters."""
        return f"slice{'s' * (len(self.indices) > 1)} {format_indices(self.indices)} of MNI152"

    def __repr__(self) -> str:
        """One line: name, size, slices, score and what else is known."""
        slices = f"slices {format_indices(self.indices)}"
        return f"VolumeDetection({self.name!r}, {_side(self.anomaly_map.shape)} voxels, {slices}, {_facts(self)})"

    def _repr_html_(self) -> str:
        """How a notebook shows it."""
        from thorad.notebook import volume_html

        maximum = self.slices[0].overlay_maximum
        return volume_html(self.name, self.indices, self.slices, self.check, maximum)


def format_indices(indices: Sequence[int]) -> str:
    """`95`, or `90 to 100`."""
    if len(indices) < 2:
        return str(indices[0]) if indices else "none"
    return f"{indices[0]} to {indices[-1]}"


def parse_indices(text: str) -> list[int]:
    """Slice indices from `95` or `90-100`, the last one included.

    Raises:
        ThoradError: the text is neither, or the range is empty.
    """
    match = re.fullmatch(r"\s*(\d{1,4})\s*(?:-\s*(\d{1,4})\s*)?", text)
    indices = list(range(int(match[1]), int(match[2] or match[1]) + 1)) if match else []
    if not indices:
        raise ThoradError(f"slices {text[:20]!r}: expected a slice index or a range of them, such as 95 or 90-100.")
    return indices


def _side(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape))


def _facts(detection: Detection | VolumeDetection) -> str:
    facts = [f"score {detection.score:.4g}"]
    facts += [f"p {detection.p_value:.3g}"] if detection.p_value is not None else []
    facts += [f"{len(detection.findings)} findings"] if detection.findings is not None else []
    agreement = detection.draw_agreement
    facts += [f"draws agree {agreement:.2f}"] if agreement is not None else []
    facts += [detection.check.status] if detection.check.message else []
    return ", ".join(facts)


def _agreement(masks: Sequence[NDArray[np.bool_]]) -> float | None:
    if len(masks) < 2:
        return None
    both = [
        (np.count_nonzero(one & other), np.count_nonzero(one) + np.count_nonzero(other))
        for one, other in combinations(masks, 2)
    ]
    return float(np.mean([2 * common / total if total else 1.0 for common, total in both]))


def pixels_sha256(pixels: NDArray[Any]) -> str:
    """Of an image's pixels or a volume's voxels, with their shape: tells the same scan whatever its file is called."""
    return hashlib.sha256(str(pixels.shape).encode() + np.ascontiguousarray(pixels).tobytes()).hexdigest()


def same_pixels(pixels: Mapping[str, str]) -> str:
    """What is to be said of {case: digest of its pixels} where several cases have the same; empty where none have."""
    alike: dict[str, list[str]] = {}
    for name, digest in pixels.items():
        alike.setdefault(digest, []).append(name)
    told = [", ".join(names) for names in alike.values() if len(names) > 1]
    return f"The same pixels under several names: {listing(told)}." if told else ""


def model_title(options: Mapping[str, Any]) -> str:
    """`brain-t1-compact, critic 276e7701f2ed`: the model of a detector's options, and the critic if that made the map.

    Copies of a model go by its name, each with a critic of its own.
    """
    critic = options.get("critic_sha256")
    return f"{options.get('model')}, critic {critic[:12]}" if critic else str(options.get("model"))


def current_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """A detector's options as earlier versions kept them, in today's words.

    Before there were engines, all ran on torch; before there were draws, each map was of one; the methods
    `published-...` were a preset of those without the prefix.
    """
    current = {"engine": "torch", "draws": 1, **options}
    preset = current.pop("preset", None)
    if preset is not None and "method" in current:
        current["method"] = f"{preset}-{current['method']}"
    return current
