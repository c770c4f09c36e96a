"""Result folders as `thorad detect` leaves them, of drawn heads: for tests of what reads such folders."""

import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from thorad.pictures import overlay

MAXIMUM = 0.1
JUDGED_RADIUS = 20
"""px, around the picture's middle."""


def head(shape: tuple[int, int], generator: np.random.Generator) -> NDArray[np.float32]:
    """(H, W) in [0, 1]: an ellipse with a rim and two darker ones, with noise."""
    y, x = np.mgrid[-1 : 1 : shape[0] * 1j, -1 : 1 : shape[1] * 1j]
    inside = (x / 0.75) ** 2 + (y / 0.9) ** 2
    picture = np.where(inside < 1, 0.75, 0.0) + np.where((inside > 0.9) & (inside < 1), 0.2, 0)
    for side in (-0.15, 0.15):
        picture -= np.where(((x - side) / 0.07) ** 2 + (y / 0.3) ** 2 < 1, 0.5, 0)
    picture += np.where(inside < 1, generator.normal(0, 0.04, shape), generator.normal(0, 0.005, shape))
    return np.clip(picture, 0, 1).astype(np.float32)


def disc(shape: tuple[int, int], centre: tuple[float, float], radius: float) -> NDArray[np.bool_]:
    """(H, W), True within `radius` px of the centre (row, column)."""
    y, x = np.ogrid[: shape[0], : shape[1]]
    return np.asarray((y - centre[0]) ** 2 + (x - centre[1]) ** 2 <= radius**2)


def make_results(
    folder: Path,
    count: int = 4,
    *,
    shape: tuple[int, int] = (60, 48),
    names: Sequence[str] = (),
    calibrated: bool = True,
    scans: bool = True,
    steps: int = 0,
    slices: int = 0,
    failed: Sequence[str] = (),
    refused: Sequence[str] = (),
    warned: Sequence[str] = (),
    seed: int = 0,
) -> Path:
    """Write a folder of `count` cases; the map of case i is a disc of 5 px with the value 0.02 (i + 1) at most.

    The lesion is 4 px to the right of the map's disc. Beside the folder lie images/, masks/ and truth.csv, in which
    every third case is healthy.

    Args:
        folder: the result folder.
        count: of cases.
        shape: (H, W) of the images.
        names: of the first cases; the others are case-000, case-001, ...
        calibrated: whether there are thresholds, p-values and masks.
        scans: whether there are a scan.png and a judged.png, as older versions wrote none.
        steps: of each restoration.
        slices: of each case, which is a volume then; 0: it is an image.
        failed: names of more cases, that failed.
        refused: names of more cases, that the model can't judge.
        warned: names of those of the first cases that came with a warning; of forced ones they begin with `forced`.
        seed: of the noise.

    Returns:
        The table of the truth.
    """
    generator = np.random.default_rng(seed)
    names = [*names, *(f"case-{number:03d}" for number in range(len(names), count))]
    threshold = 0.015
    calibration = {"false_positives": 0.01, "threshold": threshold, "scans": 40, "sha256": "0" * 64}
    run: dict[str, Any] = {
        "options": {
            "method": "thor",
            "noise": "simplex",
            "steps": 1,
            "seed": 0,
            "model": "drawn",
            "device": "cpu",
            "precision": "float32",
            "thorad": "0.1.0",
            "calibration": calibration if calibrated else None,
        },
        "versions": {"numpy": np.__version__},
        "overlay_maximum": MAXIMUM,
        "status": "finished",
        "cases": {"ok": count, "failed": len(failed)},
        "seconds": 12.5,
    }
    if calibrated:
        run["healthy_scores"] = sorted(generator.gamma(4, 0.005, 40).tolist())
    folder.mkdir(parents=True)
    (folder / "run.json").write_text(json.dumps(run))
    rows = ["image,mask"]
    for number, name in enumerate(names):
        case = folder / "cases" / name
        row, column = 15 + 23 * generator.random(), 12 + 18 * generator.random()
        spot = disc(shape, (row, column), 5)
        lesion = disc(shape, (row, column + 4), 5) if number % 3 != 2 else np.zeros(shape, np.bool_)
        noise = np.abs(generator.normal(0, 0.002, shape)).astype(np.float32)
        anomaly_map = (noise + 0.02 * (number + 1) * spot).astype(np.float32)
        picture = head(shape, generator)
        for part in [case / "slices" / f"{90 + 5 * k:03d}" for k in range(slices)] or [case]:
            part.mkdir(parents=True)
            drawn = np.where(lesion, 0.3, picture)
            if scans:
                _save(part / "scan.png", drawn)
                _save(part / "judged.png", disc(shape, (shape[0] / 2, shape[1] / 2), JUDGED_RADIUS).astype(np.float32))
            _save(part / "pseudo_healthy.png", picture)
            Image.fromarray(overlay(drawn, anomaly_map, MAXIMUM)).save(part / "overlay.png")
            np.save(part / "anomaly_map.npy", anomaly_map)
            if calibrated:
                _save(part / "mask.png", (anomaly_map > threshold).astype(np.float32))
            if steps:
                np.savez(part / "steps.npz", **_steps(steps, max(shape), generator))
            anomaly_map = anomaly_map / 2
        score = 0.02 * (number + 1)
        content = {
            "name": name,
            "source": str(folder.parent / "images" / f"{number}.png"),
            "score": score,
            "draw_agreement": 0.62 if calibrated else None,
            "p_value": 1 / 41 if score > 0.03 else 0.4,
            "findings": [{"pixels": int(spot.sum()), "peak": float(anomaly_map.max())}],
            "network_calls": 8,
            "seconds": 1.0,
            "status": "ok",
            "message": "",
            "sizes": {},
        }
        if name in warned:
            forced = name.startswith("forced")
            content |= {"status": "warned", "forced": forced, "message": "forced: a hand" if forced else "thick slices"}
        if not calibrated:
            content |= {"p_value": None, "findings": None}
        (case / "case.json").write_text(json.dumps(content))
        for kind, pixels in (("images", picture), ("masks", lesion.astype(np.float32))):
            (folder.parent / kind).mkdir(exist_ok=True)
            _save(folder.parent / kind / f"{number}.png", pixels)
        rows.append(f"images/{number}.png,{f'masks/{number}.png' if lesion.any() else ''}")
    for name in (*failed, *refused):
        case = folder / "cases" / name
        case.mkdir(parents=True)
        content = {
            "name": name,
            "source": f"{name}.png",
            "score": None,
            "status": "failed" if name in failed else "refused",
            "message": f"{name}: broken" if name in failed else "not the model's kind of image",
        }
        if name in refused:
            Image.fromarray(np.full((40, 100, 3), 90, np.uint8)).save(case / "registration.png")
        (case / "case.json").write_text(json.dumps(content))
    table = folder.parent / "truth.csv"
    table.write_text("\n".join(rows) + "\n")
    return table


def _steps(count: int, side: int, generator: np.random.Generator) -> dict[str, NDArray[Any]]:
    """Step i is grey 60 (i + 1), its map 0.03 (i + 1), everywhere."""
    ones = np.ones((count, side, side)) * np.arange(1, count + 1)[:, None, None]
    return {
        "timesteps": np.arange(count)[::-1] * 100 + 100,
        "clean": (60 * ones).astype(np.uint8),
        "maps": (0.03 * ones).astype(np.float16),
    }


def _save(path: Path, pixels: NDArray[Any]) -> None:
    buffer = io.BytesIO()
    Image.fromarray(np.rint(255 * pixels).astype(np.uint8)).save(buffer, "PNG")
    path.write_bytes(buffer.getvalue())
