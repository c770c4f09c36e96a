from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from thorad.datasets.cases import Case
from thorad.evaluation.runs import DetectorRun, read_masked, run_detectors


class CountingDetector:
    """Its map is the image; it counts the images that it is given."""

    model_name, method, noise, steps, network_calls, model_size, batch_size = "m", "counting", None, None, 0, 32, 3

    def __init__(self, seed: int = 0) -> None:
        self.seed, self.images = seed, 0
        self.region = np.ones((32, 32), dtype=np.bool_)

    def learned(self, images: Mapping[str, torch.Tensor]) -> list[str]:
        return []

    def model_restorations(self, x: torch.Tensor, names: Sequence[str]) -> tuple[torch.Tensor, torch.Tensor | None]:
        self.images += len(x)
        return x * (1 + self.seed), None

    def scores(self, maps: torch.Tensor) -> torch.Tensor:
        return maps.amax(dim=(1, 2, 3))

    def provenance(self) -> dict[str, object]:
        return {"method": self.method, "seed": self.seed}


@pytest.fixture
def cases(tmp_path: Path, rng: np.random.Generator) -> list[Case]:
    mask = np.zeros((32, 32), np.uint8)
    mask[4:9, 4:9] = 255
    Image.fromarray(mask).save(tmp_path / "mask.png")
    found = []
    for index in range(5):
        Image.fromarray(rng.integers(0, 255, (32, 32), np.uint8)).save(tmp_path / f"{index}.png")
        found.append(Case(tmp_path / f"{index}.png", tmp_path / "mask.png", subject=f"s{index}", name=f"c{index}"))
    return found


def find(cases: list[Case], detector: CountingDetector, keep: Path | None) -> DetectorRun[np.ndarray]:
    return run_detectors(cases, [detector], read_masked, "mask", keep=keep)[0]


def test_kept_maps_are_taken_and_equal(cases: list[Case], tmp_path: Path) -> None:
    keep = tmp_path / "maps"
    first, again, afresh = CountingDetector(), CountingDetector(), CountingDetector()
    one = find(cases, first, keep)
    two = find(cases, again, keep)
    assert (first.images, again.images) == (5, 0)
    np.testing.assert_array_equal(one.maps, two.maps)
    np.testing.assert_array_equal(one.scores, two.scores)
    assert one.cpu_seconds_per_case == two.cpu_seconds_per_case > 0, (
        "what they once cost is told, not what reading costs"
    )
    np.testing.assert_array_equal(find(cases, afresh, None).maps, one.maps)
    assert afresh.images == 5


def test_an_interrupted_evaluation_does_the_rest_only(cases: list[Case], tmp_path: Path) -> None:
    keep, rest = tmp_path / "maps", CountingDetector()
    find(cases[:2], CountingDetector(), keep)
    whole = find(cases, rest, keep)
    assert rest.images == 3
    np.testing.assert_array_equal(whole.maps, find(cases, CountingDetector(), None).maps)


def test_another_detector_or_image_is_not_mistaken_for_a_kept_one(cases: list[Case], tmp_path: Path) -> None:
    keep = tmp_path / "maps"
    find(cases, CountingDetector(), keep)
    other = CountingDetector(seed=1)
    find(cases, other, keep)
    assert other.images == 5
    Image.fromarray(np.tile(np.arange(32, dtype=np.uint8) * 7, (32, 1))).save(cases[1].image)
    changed = CountingDetector()
    find(cases, changed, keep)
    assert changed.images == 1
