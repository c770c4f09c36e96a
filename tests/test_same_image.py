"""One image is one map, to the last bit: whatever its name, and whichever way it comes to the detector."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch

from test_volume_detection import head, in_place, volume_model  # noqa: F401  (volume_model is a fixture)
from thorad.apps.calibrate import calibrate_files
from thorad.apps.run import detect_files, open_results
from thorad.datasets.cases import Case
from thorad.detector import Detector
from thorad.evaluation.runs import read_masked, run_detectors
from thorad.io.scans import Scan, find_scans
from thorad.viewer.order import Order, Settings
from thorad.viewer.worker import _detect
from thorad.volume_detection import detect_volume

SIDE = 32
"""px, of the tiny model's grid, where an image's own grid and the model's are one."""


def pixels(seed: int) -> np.ndarray:
    drawn = np.add.outer(np.hanning(SIDE), np.hanning(SIDE)) * 100
    return np.asarray(drawn + np.random.default_rng(seed).random((SIDE, SIDE)) * 50, np.uint8)


@pytest.fixture
def copies(tmp_path: Path) -> list[Path]:
    """Six files of one image, each with a name of its own."""
    paths = [tmp_path / "in" / folder / f"{name}.png" for folder in "ab" for name in ("x", "y", "sub-01")]
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        PIL.Image.fromarray(pixels(0)).save(path)
    return paths


@pytest.fixture(scope="module")
def detector(tiny_model: Path) -> Detector:
    return Detector(tiny_model, method="anoddpm")


@pytest.fixture(scope="module")
def expected(detector: Detector) -> np.ndarray:
    """The map of the image as an array without a name of its own."""
    anomaly_map = detector.detect(pixels(0)).anomaly_map
    assert np.ptp(anomaly_map) > 1e-3
    return anomaly_map


def assert_maps(out: Path, expected: np.ndarray, count: int) -> None:
    files = sorted(out.glob("cases/*/anomaly_map.npy"))
    assert len(files) == count
    for file in files:
        np.testing.assert_array_equal(np.load(file), expected)


def test_in_python(detector: Detector, copies: list[Path], expected: np.ndarray) -> None:
    as_floats = pixels(0).astype(np.float32)
    same = [*copies, as_floats, 2 * as_floats, torch.from_numpy(pixels(0)), PIL.Image.fromarray(pixels(0))]
    for found in detector.detect_batch(same):
        np.testing.assert_array_equal(found.anomaly_map, expected)


def test_on_the_command_line_and_in_the_viewer(
    detector: Detector, tiny_model: Path, copies: list[Path], expected: np.ndarray, tmp_path: Path
) -> None:
    table = tmp_path / "table.csv"
    table.write_text("image\n" + "".join(f"{path}\n" for path in copies))
    for number, given in enumerate((copies[0].parents[1], table)):
        out = tmp_path / f"out-{number}"
        detect_files(detector, find_scans([given]), open_results(detector, out))
        assert_maps(out, expected, len(copies))
    scans = {f"scan-{n}": Scan(f"scan-{n}", path, str(path)) for n, path in enumerate(copies)}
    settings = Settings(str(tiny_model), "anoddpm", None, None)
    _detect(Order(scans, settings, tmp_path / "view", {}), lambda message: None)
    assert_maps(tmp_path / "view", expected, len(copies))


def test_in_an_evaluation_and_a_calibration(
    detector: Detector, copies: list[Path], expected: np.ndarray, tmp_path: Path
) -> None:
    mask = np.zeros((SIDE, SIDE), np.uint8)
    mask[9:14, 9:14] = 1
    PIL.Image.fromarray(mask).save(tmp_path / "mask.png")
    cases = [Case(path, tmp_path / "mask.png", subject=f"s{n}", name=f"case {n}") for n, path in enumerate(copies)]
    (run,) = run_detectors(cases, [detector], read_masked, "mask")
    for anomaly_map in run.maps:
        np.testing.assert_array_equal(anomaly_map, expected)
    calibration = calibrate_files(detector, find_scans([copies[0].parents[1]]), level=0.5).calibration
    assert calibration.scores == (detector.detect(copies[0]).score,) * len(copies)


def test_a_volume_under_two_names(volume_model: Path) -> None:  # noqa: F811
    detector = Detector(volume_model, method="anoddpm")
    volume = head()
    named = [replace(volume, name=name, source=f"{name}.nii") for name in ("a", "another")]
    one, other = (detect_volume(detector, each, registration=in_place(each)) for each in named)
    np.testing.assert_array_equal(one.anomaly_map, other.anomaly_map)
    np.testing.assert_array_equal(
        [each.anomaly_map for each in one.slices], [each.anomaly_map for each in other.slices]
    )
