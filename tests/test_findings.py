import numpy as np
import pytest

from thorad.findings import findings_in
from thorad.records import Finding

MAP = np.array(
    [
        [0, 5, 0, 0, 0, 0],
        [0, 0, 7, 0, 0, 0],
        [0, 0, 0, 0, 0, 9],
        [3, 0, 0, 0, 0, 9],
    ],
    np.float32,
)


def test_by_hand() -> None:
    """Corners touch (8-connected); the highest peak comes first; a single pixel is a finding."""
    assert findings_in(MAP, MAP > 2) == (
        Finding(pixels=2, area_mm2=None, volume_mm3=None, peak=9.0, peak_position=(2, 5), mean=9.0),
        Finding(pixels=2, area_mm2=None, volume_mm3=None, peak=7.0, peak_position=(1, 2), mean=6.0),
        Finding(pixels=1, area_mm2=None, volume_mm3=None, peak=3.0, peak_position=(3, 0), mean=3.0),
    )
    assert [finding.pixels for finding in findings_in(MAP, MAP > 6)] == [2, 1]


def test_area() -> None:
    areas = [finding.area_mm2 for finding in findings_in(MAP, MAP > 2, each_mm=1.5)]
    assert areas == pytest.approx([3.0, 3.0, 1.5])


def test_a_volume() -> None:
    """Two voxels that touch by a corner are one finding; sizes are mm³, places three indices."""
    values = np.zeros((4, 5, 6), np.float32)
    values[1, 1, 1], values[2, 2, 2], values[3, 4, 5] = 3, 5, 4
    first, second = findings_in(values, values > 1, each_mm=1.0)
    assert (first.pixels, first.peak_position, first.volume_mm3, first.area_mm2) == (2, (2, 2, 2), 2.0, None)
    assert (second.pixels, second.peak_position, second.volume_mm3) == (1, (3, 4, 5), 1.0)


def test_a_volume_counts_what_was_looked_at() -> None:
    values = np.zeros((3, 4, 5), np.float32)
    values[0, 0, 4], values[1, 1, 1], values[1, 1, 2] = 2, 3, 5
    first, second = findings_in(values, values > 1, 3.0, share=np.array([1, 0.5, 0.25]))
    assert (first.pixels, first.volume_mm3, second.volume_mm3) == (2, 0.75 * 3, 3.0)


def test_nothing_above() -> None:
    assert findings_in(MAP, MAP > 9) == ()


def test_all_of_it() -> None:
    (finding,) = findings_in(MAP, MAP >= 0)
    assert (finding.pixels, finding.mean) == (24, pytest.approx(33 / 24))


def test_every_pixel_of_the_mask_is_in_one_finding(rng: np.random.Generator) -> None:
    anomaly_map = rng.random((40, 50), dtype=np.float32)
    mask = anomaly_map > 0.8
    found = findings_in(anomaly_map, mask)
    assert sum(finding.pixels for finding in found) == mask.sum()
    assert sum(finding.pixels * finding.mean for finding in found) == pytest.approx(anomaly_map[mask].sum(), rel=1e-5)
    assert [finding.peak for finding in found] == sorted((finding.peak for finding in found), reverse=True)
    assert all(anomaly_map[finding.peak_position] == np.float32(finding.peak) for finding in found)
