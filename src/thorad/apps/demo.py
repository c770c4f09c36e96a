"""The demonstration: one real head as it is and with two implanted lesions, through THOR and the z-score.

What lies in the folder afterwards:

    input/<case>.png    the head, and the head with a dark and with a bright lesion
    truth/<case>.png    where the lesion is
    results/<method>/   what `thorad detect` leaves
    montage.png         all of it at a glance
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, Literal

import numpy as np
import PIL.Image
import PIL.ImageDraw
import PIL.ImageFont
from numpy.typing import NDArray
from scipy.ndimage import binary_dilation

from thorad.apps.run import Progress, open_results
from thorad.detector import Detector
from thorad.implant.lesions import implant_lesion
from thorad.io.images import Image, read_image, write_png8
from thorad.io.preprocess import place, to_input_grid
from thorad.methods import METHODS
from thorad.pictures import overlay
from thorad.records import Detection
from thorad.results.folder import OVERLAY
from thorad.selection import default_method

TITLES = {"healthy": "as it is", "dark-lesion": "dark\nlesion", "bright-lesion": "bright\nlesion"}
LESIONS: tuple[tuple[str, Literal["dark", "bright"], float, float, int], ...] = (
    ("dark-lesion", "dark", 12.0, 0.5, 1),
    ("bright-lesion", "bright", 10.0, 0.45, 3),
)
"""Case, kind, radius in px (mm), strength on the [0, 1] scale, seed of place and shape."""

OUTLINE = (80, 220, 120)
ZOOM = 2  # px of the montage a side for one of a scan
MARGIN, ROW_TITLE, COLUMN_TITLE = 12, 120, 34  # px of the montage: between its pictures, and for the titles


@dataclass(frozen=True)
class DemoCase:
    """What one method found in one case of the demonstration."""

    name: str
    method: str
    score: float
    peak_in_lesion: bool | None
    """Whether the map is highest within the implanted lesion; None where there is no lesion."""
    overlay: Path
    seconds: float


def run_demo(
    out: Path, model: str | Path = "brain-t1-compact", *, device: str = "auto", on_progress: Progress | None = None
) -> list[DemoCase]:
    """Make the demonstration's folder; `on_progress` gets (detections done, detections in all).

    Raises:
        ThoradError: the model (bundled name or folder) can't be used, or the folder can't be written.
    """
    detectors = [Detector(model, method=method, device=device) for method in demo_methods(model)]
    truths = _make_inputs(out, detectors[0])
    images = [read_image(out / "input" / f"{name}.png", name) for name in truths]
    cases: list[DemoCase] = []
    restored: dict[str, Detection] = {}  # by the model's own method
    for detector in detectors:
        for detection, folder in _detect(detector, images, out / "results" / detector.method):
            restored.setdefault(detection.name, detection)
            truth = truths[detection.name]
            peak_in_lesion = bool(truth.flat[detection.anomaly_map.argmax()]) if truth.any() else None
            found = (detection.name, detector.method, detection.score, peak_in_lesion)
            cases.append(DemoCase(*found, overlay=folder / OVERLAY, seconds=detection.seconds))
            if on_progress:
                on_progress(len(cases), len(detectors) * len(images))
    rows = []
    for name, truth in truths.items():
        overlays = [np.asarray(PIL.Image.open(case.overlay)) for case in cases if case.name == name]
        scan = restored[name].image
        rows.append([grey(scan), grey(restored[name].pseudo_healthy), *overlays, outlined(scan, truth)])
    columns = ("scan", "pseudo-healthy", *(METHODS[detector.method].title for detector in detectors), "truth")
    write_png8(out / "montage.png", titled_grid(rows, [TITLES[name] for name in truths], columns))
    return cases


def demo_methods(model: str | Path) -> list[str]:
    """The methods that the demonstration compares: the model's own, THOR, and the z-score."""
    return list(dict.fromkeys((default_method(model), "thor", "zscore")))


def _detect(detector: Detector, images: Sequence[Image], out: Path) -> Iterator[tuple[Detection, Path]]:
    """Each image's detection and the folder where its files were written."""
    began = time.perf_counter()
    if (out / "run.json").is_file():
        shutil.rmtree(out)  # of an earlier demonstration, maybe with an earlier model
    results = open_results(detector, out)
    for detection in detector.detect_batch(images):
        results.write(detection)
        yield detection, results.case_folder(detection.name)
    results.close(time.perf_counter() - began)


def _make_inputs(out: Path, detector: Detector) -> dict[str, NDArray[np.bool_]]:
    """Write the scans and their truth; returns {case name: lesion (H, W)}, none in the healthy one."""
    head = read_image(Path(str(resources.files("thorad"))) / "assets" / "samples" / "head.png")
    healthy = head.scaled  # (H, W) in [0, 1]
    placement = place(healthy.shape[0], healthy.shape[1], detector.model_size)
    region = to_input_grid(detector.region.astype(np.float32), placement) > 0.5
    scans: dict[str, tuple[NDArray[np.float32], NDArray[np.bool_]]] = {}
    for name, kind, radius, strength, seed in LESIONS:
        scans[name] = implant_lesion(
            healthy, np.random.default_rng(seed), region=region, kind=kind, radius_px=radius, strength=strength
        )
    scans["healthy"] = healthy, np.zeros(healthy.shape, dtype=np.bool_)
    for name, (pixels, truth) in scans.items():
        write_png8(out / "input" / f"{name}.png", pixels)
        write_png8(out / "truth" / f"{name}.png", truth.astype(np.float32))
    return {name: truth for name, (_, truth) in scans.items()}


def grey(pixels: NDArray[Any]) -> NDArray[np.uint8]:
    """(H, W) in [0, 1] to (H, W, 3) uint8."""
    return overlay(pixels, np.zeros_like(pixels), maximum=1.0)


def outlined(pixels: NDArray[Any], mask: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """The image (H, W) in [0, 1] with the mask's outline just around it: (H, W, 3) uint8."""
    picture = grey(pixels)
    picture[binary_dilation(mask) & ~mask] = OUTLINE
    return picture


def titled_grid(
    rows: Sequence[Sequence[NDArray[np.uint8]]], row_titles: Sequence[str], column_titles: Sequence[str]
) -> NDArray[np.uint8]:
    """Pictures of one size (H, W, 3), in a grid with titles, as one (H', W', 3) picture."""
    height, width = (ZOOM * side for side in rows[0][0].shape[:2])
    size = (ROW_TITLE + len(column_titles) * (width + MARGIN), COLUMN_TITLE + len(rows) * (height + MARGIN))
    canvas = PIL.Image.new("RGB", size, "white")
    draw = PIL.ImageDraw.Draw(canvas)
    font = PIL.ImageFont.load_default(size=20)
    lefts = [ROW_TITLE + column * (width + MARGIN) for column in range(len(column_titles))]
    for left, title in zip(lefts, column_titles, strict=True):
        draw.text((left + width / 2, COLUMN_TITLE / 2), title, "black", font, anchor="mm")
    for row, (pictures, title) in enumerate(zip(rows, row_titles, strict=True)):
        top = COLUMN_TITLE + row * (height + MARGIN)
        draw.text((MARGIN, top + height / 2), title, "black", font, anchor="lm")
        for left, pixels in zip(lefts, pictures, strict=True):
            picture = PIL.Image.fromarray(pixels).resize((width, height), PIL.Image.Resampling.BICUBIC)
            canvas.paste(picture, (left, top))
    return np.asarray(canvas)
