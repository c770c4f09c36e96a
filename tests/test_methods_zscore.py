from __future__ import annotations

import pytest
import torch

from thorad.maps.anomaly_map import residual
from thorad.methods.zscore import SMALLEST_DEVIATION, ZScoreOptions, zscore

MEAN = torch.tensor([[[0.5, 0.5, 0.0, -1.0]]])  # (1, H=1, W=4)
DEVIATION = torch.tensor([[[0.1, 0.4, 0.3, 0.0]]])
IMAGES = torch.tensor([[[[0.1, 1.0, 0.0, -1.0]]], [[[0.9, -0.5, -0.8, -0.9]]]])  # (B=2, 1, 1, 4)


@pytest.mark.parametrize(
    ("two_sided", "expected"),
    [
        (False, [[0.4 / 0.2, 0.0, 0.0, 0.0], [0.0, 1.0 / 0.5, 0.8 / 0.4, 0.0]]),
        (True, [[0.4 / 0.2, 0.5 / 0.5, 0.0, 0.0], [0.4 / 0.2, 1.0 / 0.5, 0.8 / 0.4, 0.1 / 0.1]]),
    ],
)
def test_by_hand(two_sided: bool, expected: list[list[float]]) -> None:
    """Darker than the mean counts; brighter only if two-sided; each deviation has 0.1 added."""
    options = ZScoreOptions(MEAN, DEVIATION, two_sided)
    restoration = zscore(None, IMAGES, None, None, None, options=options)
    assert restoration.anomaly_map.shape == IMAGES.shape
    torch.testing.assert_close(restoration.anomaly_map.squeeze(), torch.tensor(expected))


def test_the_pseudo_healthy_image_is_the_mean() -> None:
    restoration = zscore(None, IMAGES, None, None, None, options=ZScoreOptions(MEAN, DEVIATION))
    assert torch.equal(restoration.pseudo_healthy, torch.stack([MEAN, MEAN]))


def test_where_all_training_images_agree_the_floor_keeps_the_map_finite() -> None:
    options = ZScoreOptions(mean=torch.full((1, 2, 2), -1.0), standard_deviation=torch.zeros(1, 2, 2), two_sided=True)
    restoration = zscore(None, torch.full((1, 1, 2, 2), -0.95), None, None, None, options=options)
    torch.testing.assert_close(restoration.anomaly_map, torch.full((1, 1, 2, 2), 0.05 / SMALLEST_DEVIATION))


def test_the_network_the_noise_and_the_map_are_never_asked() -> None:
    def never(*_: object) -> torch.Tensor:
        raise AssertionError("the z-score needs none of these")

    options = ZScoreOptions(MEAN, DEVIATION)
    assert options.network_calls() == 0
    asked = zscore(never, IMAGES, None, never, never, options=options)
    not_asked = zscore(None, IMAGES, None, None, residual, options=options)
    assert torch.equal(asked.anomaly_map, not_asked.anomaly_map)


def test_statistics_follow_the_images_type() -> None:
    restoration = zscore(None, IMAGES.double(), None, None, None, options=ZScoreOptions(MEAN, DEVIATION))
    assert restoration.anomaly_map.dtype == torch.float64
