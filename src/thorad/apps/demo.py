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
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image as Picture
from PIL import ImageDraw, ImageFont
from scipy.ndimage import binary_dilation

from thorad.apps.run import open_results
from thorad.detector import Detector
from thorad.implant.lesions import implant
from thorad.io.images import read_image, write_png8
from thorad.io.intensity import scale
from thorad.io.preprocess import place, to_input_grid
from thorad.pictures import overlay
from thorad.records import Detection
from thorad.results.writer import OVERLAY

METHODS = ("thor", "zscore")
COLUMNS = ("scan", "pseudo-healthy", "THOR", "z-score", "truth")
TITLES = {"healthy": "as it is", "dark-lesion": "dark\nlesion", "bright-lesion": "bright\nlesion"}
LESIONS: tuple[tuple[str, Literal["dark", "bright"], float, float, int], ...] = (
    ("dark-lesion", "dark", 12.0, 0.5, 1),
    ("bright-lesion", "bright", 10.0, 0.45, 3),
)
"""Case, kind, radius in px (mm), strength on the [0, 1] scale, seed of place and shape."""

OUTLINE = (80, 220, 120)
ZOOM, MARGIN, TITLE = 2, 12, 34  # of the montage: a scan's pixels a side, px between the pictures, px for a title


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
    out: Path,
    model: str | Path = "brain-t1-compact",
    *,
    device: str = "auto",
    on_progress: Callable[[int, int], None] | None = None,
) -> list[DemoCase]:
    """Make the demonstration's folder.

    Args:
        out: the folder, made if need be.
        model: name of a bundled model, or a model folder.
        device: as `Detector` takes it.
        on_progress: called with (detections done, detections in all).

    Raises:
        ThoradError: the model can't be used, or the folder can't be written.
    """
    detectors = [Detector(model, method=method, device=device) for method in METHODS]
    truths = _make_inputs(out, detectors[0])
    images = [read_image(out / "input" / f"{name}.png", name) for name in truths]
    found: list[DemoCase] = []
    pictures: dict[str, list[Detection]] = {}
    for detector in detectors:
        began = time.perf_counter()
        folder = out / "results" / detector.method
        if (folder / "run.json").is_file():
            shutil.rmtree(folder)  # of an earlier demonstration, maybe with an earlier model
        results = open_results(detector, folder)
        pictures[detector.method] = []
        for detection in detector.detect_batch(images):
            results.write(detection)
            pictures[detector.method].append(detection)
            truth = truths[detection.name]
            found.append(
                DemoCase(
                    name=detection.name,
                    method=detector.method,
                    score=detection.score,
                    peak_in_lesion=bool(truth.flat[detection.anomaly_map.argmax()]) if truth.any() else None,
                    overlay=results.case_folder(detection.name) / OVERLAY,
                    seconds=detection.seconds,
                )
            )
            if on_progress:
                on_progress(len(found), len(METHODS) * len(images))
        results.close(time.perf_counter() - began)
    rows = [
        [
            grey(thor.image),
            grey(thor.pseudo_healthy),
            overlay(thor.image, thor.anomaly_map, detectors[0].overlay_maximum),
            overlay(zscore.image, zscore.anomaly_map, detectors[1].overlay_maximum),
            outlined(thor.image, truths[thor.name]),
        ]
        for thor, zscore in zip(pictures["thor"], pictures["zscore"], strict=True)
    ]
    write_png8(out / "montage.png", montage(rows, [TITLES[name] for name in truths], COLUMNS))
    return found


def _make_inputs(out: Path, detector: Detector) -> dict[str, NDArray[np.bool_]]:
    """Write the scans and their truth; returns {case name: lesion (H, W)}, none in the healthy one."""
    head = read_image(Path(str(resources.files("thorad"))) / "assets" / "samples" / "head.png")
    healthy = scale(head.pixels)  # (H, W) in [0, 1]
    placement = place(healthy.shape[0], healthy.shape[1], detector.model_size)
    region = to_input_grid(detector.region.astype(np.float32), placement) > 0.5
    scans = {"healthy": (healthy, np.zeros(healthy.shape, dtype=np.bool_))}
    for name, kind, radius, strength, seed in LESIONS:
        scans[name] = implant(
            healthy, np.random.default_rng(seed), region=region, kind=kind, radius_px=radius, strength=strength
        )
    for name, (pixels, truth) in scans.items():
        write_png8(out / "input" / f"{name}.png", pixels)
        write_png8(out / "truth" / f"{name}.png", truth.astype(np.float32))
    return {name: truth for name, (_, truth) in scans.items()}


def grey(pixels: NDArray[Any]) -> NDArray[np.uint8]:
    """(H, W) in [0, 1] to (H, W, 3) uint8."""
    levels = np.rint(np.clip(pixels, 0, 1) * 255).astype(np.uint8)
    return np.repeat(levels[..., None], 3, axis=2)


def outlined(pixels: NDArray[Any], mask: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """The image (H, W) in [0, 1] with the mask's outline just around it: (H, W, 3) uint8."""
    picture = grey(pixels)
    picture[binary_dilation(mask) & ~mask] = OUTLINE
    return picture


def montage(
    rows: Sequence[Sequence[NDArray[np.uint8]]], row_titles: Sequence[str], column_titles: Sequence[str]
) -> NDArray[np.uint8]:
    """Pictures of one size (H, W, 3), in a grid with titles, as one (H', W', 3) picture."""
    height, width = (ZOOM * side for side in rows[0][0].shape[:2])
    left = 120
    canvas = Picture.new(
        "RGB",
        (left + len(column_titles) * (width + MARGIN), TITLE + len(rows) * (height + MARGIN)),
        (255, 255, 255),
    )
    draw = ImageDraw.Draw(canvas)
    font = ImageFont.load_default(size=20)
    for column, title in enumerate(column_titles):
        draw.text((left + column * (width + MARGIN) + width / 2, TITLE / 2), title, (0, 0, 0), font, anchor="mm")
    for row, (pictures, title) in enumerate(zip(rows, row_titles, strict=True)):
        top = TITLE + row * (height + MARGIN)
        draw.text((MARGIN, top + height / 2), title, (0, 0, 0), font, anchor="lm")
        for column, pixels in enumerate(pictures):
            picture = Picture.fromarray(pixels).resize((width, height), Picture.Resampling.BICUBIC)
            canvas.paste(picture, (left + column * (width + MARGIN), top))
    return np.asarray(canvas)
