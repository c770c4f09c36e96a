"""From a volume to what is not healthy in its slices, on the volume's own grid.

Shapes: I, J, K the volume's grid; n the slices looked at; H, W the template's axial plane.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from os import PathLike
from typing import Any

import numpy as np
from numpy.typing import NDArray

from thorad.check import Check, RefusedError, check_marked
from thorad.detector import Detector, OnStep
from thorad.domain.tags import check_tags
from thorad.errors import ThoradError
from thorad.findings import findings_in
from thorad.io.inputs import as_volume
from thorad.io.registration import Registration, register
from thorad.io.slices import axial_images
from thorad.io.template import MNI_2009A, looked_at_share, paste_axial
from thorad.io.volumes import Volume
from thorad.recipe import VolumeSection
from thorad.records import Finding, VolumeDetection, format_indices

LARGEST_NEGATIVE = 0.1
"""Of the 99th percentile: what resampling overshoots is smaller."""


class RefusedVolumeError(RefusedError):
    """A volume that the model can't judge, with the registration that says why, or comes before the reason."""

    def __init__(self, source: str, check: Check, registration: Registration, indices: Sequence[int] = ()) -> None:
        super().__init__(source, check)
        self.registration, self.indices = registration, tuple(indices)


def detect_volume(
    detector: Detector,
    volume: Volume | str | PathLike[str],
    *,
    indices: Sequence[int] | None = None,
    registration: Registration | None = None,
    keep_steps: bool = False,
    on_step: OnStep | None = None,
) -> VolumeDetection:
    """Find what is not healthy in axial slices of a volume.

    The volume is registered to the template that the model was trained in, its slices are cut there and go through
    the detector one by one, and their maps come back to the volume's own grid.

    Args:
        detector: of a model for volumes.
        volume: one head, any grid; or its path (NIfTI, NRRD, MetaImage, or the folder of one DICOM series).
        indices: of the slices, in the template's grid; None: those that the model was trained on.
        registration: of this volume, from an earlier `register`; None: it is made here.
        keep_steps: keep the pictures of every step of the slices' restorations.
        on_step: as `Detector.detect_batch` takes it; called with the slices' names.

    Raises:
        RefusedError: by its header, this is no scan for the model, and the detector isn't forced.
        RefusedVolumeError: the registration failed, or a slice is no picture for the model, likewise.
        ThoradError: the model isn't for volumes, an index outside the template, a slice that shows nothing.
    """
    began = time.perf_counter()
    volume = as_volume(volume)
    section = detector.model.recipe.volume
    chosen = checked_indices(section, indices, detector.model_name)
    check = check_tags(volume.tags, detector.model.recipe.domain, detector.model_name) + _check_scale(volume)
    if check.refusals and not detector.force:  # before the half minute that registering takes
        raise RefusedError(volume.source, check)
    registration = registration or register(volume, skull=section.skull)
    slices = axial_images(registration, chosen, skull=section.skull)
    check += _check(section, chosen, registration, detector.model_name)
    check += _check_of_slices([detector.check_picture(one) for one in slices], chosen)
    empty = [index for index, one in zip(chosen, slices, strict=True) if one.brain is not None and not one.brain.any()]
    if empty:
        check += Check(warnings=(f"the brain doesn't reach slice{'s' * (len(empty) > 1)} {format_indices(empty)}",))
    if check.refusals and not detector.force:
        raise RefusedVolumeError(volume.source, check, registration, chosen)
    detections = tuple(detector.detect_batch(slices, on_step, keep_steps=keep_steps))
    check += _check_of_slices([check_marked(one.mask, one.judged) for one in detections], chosen)
    anomaly_map = _pasted([one.anomaly_map for one in detections], chosen, volume, registration)
    mask = None if detector.threshold is None else np.nan_to_num(anomaly_map, nan=0.0) > detector.threshold
    findings = None if mask is None else _findings(anomaly_map, mask, chosen, volume, registration)
    return VolumeDetection(
        name=volume.name,
        source=volume.source,
        volume=volume,
        registration=registration,
        indices=tuple(chosen),
        slices=detections,
        anomaly_map=anomaly_map,
        pseudo_healthy=_pasted([one.pseudo_healthy for one in detections], chosen, volume, registration),
        judged=_pasted([one.judged for one in detections], chosen, volume, registration) >= 0.5,
        score=max(one.score for one in detections),
        network_calls=sum(one.network_calls for one in detections),
        seconds=time.perf_counter() - began,
        check=check,
        p_value=_bonferroni([one.p_value for one in detections]) if mask is not None else None,
        mask=mask,
        findings=findings,
    )


def _findings(
    anomaly_map: NDArray[Any],
    mask: NDArray[np.bool_],
    indices: Sequence[int],
    volume: Volume,
    registration: Registration,
) -> tuple[Finding, ...]:
    share = looked_at_share(np.argwhere(mask), indices, volume, registration.to_template)
    return findings_in(anomaly_map, mask, volume.voxel_mm3, share)


def checked_indices(section: VolumeSection, indices: Sequence[int] | None, model: str) -> list[int]:
    """The slices to look at, ascending and each once.

    Raises:
        ThoradError: the model isn't for volumes, or an index outside the template.
    """
    if not section.template:
        raise ThoradError(
            f"model {model!r} is for pictures, not for volumes: its recipe names no template. Choose a model for "
            "volumes (`thorad models` lists them), or give slices as pictures."
        )
    first, last = section.axial_slices
    chosen = sorted(set(range(first, last + 1) if indices is None else indices))
    depth = MNI_2009A.shape[2]
    if not chosen or chosen[0] < 0 or chosen[-1] >= depth:
        raise ThoradError(
            f"slices {format_indices(chosen)}: expected indices from 0 to {depth - 1} of the template's grid."
        )
    return chosen


def _bonferroni(p_values: Sequence[float | None]) -> float | None:
    """The smallest p-value times their number, 1 at most; None without any."""
    known = [p_value for p_value in p_values if p_value is not None]
    return min(1.0, len(known) * min(known)) if known else None


def _check_scale(volume: Volume) -> Check:
    """Whether 0 is nothing, as in MR: a thinned volume tells."""
    low, high = np.percentile(volume.voxels[::3, ::3, ::3], [1, 99])
    if low >= -LARGEST_NEGATIVE * high:
        return Check()
    found = f"its values go from {low:.4g} to {high:.4g} (1st and 99th percentile)"
    return Check(
        (f"{found}, as a CT's Hounsfield units or z-scores do; expected MR, whose values are 0 or more: rescale it",)
    )


def _check(section: VolumeSection, chosen: Sequence[int], registration: Registration, model: str) -> Check:
    reasons = (registration.warning,) if registration.warning else ()
    registered = Check(refusals=reasons) if registration.doubtful else Check(warnings=reasons)
    first, last = section.axial_slices
    outside = [index for index in chosen if not first <= index <= last]
    if not outside:
        return registered
    known = f"slice {first}" if first == last else f"slices {first} to {last}"
    return registered + Check(
        warnings=(
            f"{len(outside)} of the {len(chosen)} slices are outside what model {model!r} was trained on ({known}): "
            "what is normal there may light up",
        )
    )


def _check_of_slices(checks: Sequence[Check], indices: Sequence[int]) -> Check:
    """The first refusal and the first warning of the slices, and of how many there is one."""

    def told(reasons: Sequence[tuple[str, ...]]) -> tuple[str, ...]:
        found = [(index, each[0]) for index, each in zip(indices, reasons, strict=True) if each]
        if not found:
            return ()
        others = f" (and {len(found) - 1} more of the {len(indices)} slices)" if len(found) > 1 else ""
        return (f"slice {found[0][0]}{others}: {found[0][1]}",)

    return Check(told([check.refusals for check in checks]), told([check.warnings for check in checks]))


def _pasted(
    pictures: Sequence[NDArray[Any]], indices: Sequence[int], volume: Volume, registration: Registration
) -> NDArray[np.float32]:
    return paste_axial(np.stack(pictures), indices, volume, registration.to_template)
