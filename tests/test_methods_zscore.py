from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from thorad.detector import Detector
from thorad.maps.zscore import detail_share, match_quantiles, tolerant_zscores
from thorad.methods.zscore import ZScoreOptions, zscore

SIDE = 24
USUAL: dict[str, Any] = {"tolerance": 1, "blur_sigma": 1.0}
EVERYWHERE = torch.ones(SIDE, SIDE, dtype=torch.bool)


def smooth_mean() -> torch.Tensor:
    """(1, S, S) in [0, 1], of many values."""
    row, column = torch.meshgrid(torch.linspace(0, 1, SIDE), torch.linspace(0, 1, SIDE), indexing="ij")
    return (0.2 + 0.3 * row + 0.4 * column)[None]


def options(mean: torch.Tensor, deviation: torch.Tensor, *, two_sided: bool = False) -> ZScoreOptions:
    """Of a mean and deviation in [0, 1]."""
    return ZScoreOptions(2 * mean - 1, 2 * deviation, EVERYWHERE, two_sided)


def test_zscores_by_hand() -> None:
    """0.3 darker than the mean with a deviation of 0.1, to which 0.05 are added, is 2 deviations; likewise brighter."""
    mean, deviation = torch.full((1, SIDE, SIDE), 0.5), torch.full((1, SIDE, SIDE), 0.1)
    darker, brighter = tolerant_zscores(torch.full((1, 1, SIDE, SIDE), 0.2), mean, deviation, **USUAL)
    torch.testing.assert_close(darker, torch.full_like(darker, 2.0))
    assert not brighter.any()
    darker, brighter = tolerant_zscores(torch.full((1, 1, SIDE, SIDE), 0.65), mean, deviation, **USUAL)
    torch.testing.assert_close(brighter, torch.full_like(brighter, 1.0))
    assert not darker.any()


def test_a_pixel_that_lies_beside_its_place_is_no_finding_and_two_pixels_are_one() -> None:
    mean = torch.zeros(1, SIDE, SIDE)
    mean[:, :, SIDE // 2 :] = 1.0
    deviation = torch.full_like(mean, 0.05)
    beside, far = (mean.roll(shift, 2)[None] for shift in (1, 3))
    inner = (..., slice(None), slice(6, -6))  # rolling wraps around
    assert not any(side[inner].any() for side in tolerant_zscores(beside, mean, deviation, **USUAL))
    assert tolerant_zscores(far, mean, deviation, **USUAL)[0][inner].max() > 5  # 3 px, less 1 on either side, are dark


def test_another_scanners_contrast_is_matched_to_the_mean() -> None:
    mean = smooth_mean()
    other = 0.1 + 0.6 * mean[None]
    torch.testing.assert_close(match_quantiles(other, mean, EVERYWHERE), mean[None], atol=2e-3, rtol=0)
    bent = mean[None] ** 1.5
    assert (match_quantiles(bent, mean, EVERYWHERE) - mean).abs().max() < 0.1 * (bent - mean).abs().max()


def test_a_flat_image_is_not_stretched_without_end() -> None:
    matched = match_quantiles(torch.full((1, 1, SIDE, SIDE), 0.4), smooth_mean(), EVERYWHERE)
    assert matched.isfinite().all()
    assert -0.5 <= float(matched.min()) <= float(matched.max()) <= 1.5


def test_a_dark_spot_is_found_by_both_and_a_bright_one_by_the_two_sided() -> None:
    mean, deviation = smooth_mean(), torch.full((1, SIDE, SIDE), 0.05)
    dark, bright = mean[None].clone(), mean[None].clone()
    dark[..., 8:14, 8:14] -= 0.2
    bright[..., 8:14, 8:14] += 0.2
    inside = (..., slice(9, 13), slice(9, 13))
    for image, two_sided, found in (
        (dark, False, True),
        (dark, True, True),
        (bright, False, False),
        (bright, True, True),
    ):
        made = zscore(None, 2 * image - 1, None, None, None, options=options(mean, deviation, two_sided=two_sided))
        assert bool((made.anomaly_map[inside] > 1).all()) == found
        assert made.anomaly_map.min() >= 0


def test_the_pseudo_healthy_image_is_the_mean_and_no_network_is_asked() -> None:
    def never(*_: object) -> torch.Tensor:
        raise AssertionError("the z-score needs none of these")

    mean = smooth_mean()
    chosen = options(mean, torch.full_like(mean, 0.1))
    assert chosen.network_calls() == 0
    made = zscore(never, torch.rand(2, 1, SIDE, SIDE), None, never, never, options=chosen)
    torch.testing.assert_close(made.pseudo_healthy, (2 * mean - 1).expand(2, 1, SIDE, SIDE))


def test_where_all_training_images_agree_the_map_stays_finite() -> None:
    mean = smooth_mean()
    made = zscore(None, -torch.ones(1, 1, SIDE, SIDE), None, None, None, options=options(mean, torch.zeros_like(mean)))
    assert made.anomaly_map.isfinite().all()


@pytest.mark.parametrize(("detail", "varies", "share"), [(0.3, 0.0, 1.0), (0.3, 0.3, 0.5), (0.1, 0.3, 0.1)])
def test_the_share_of_detail_that_training_images_have_in_common(detail: float, varies: float, share: float) -> None:
    checkerboard = detail * (2.0 * (torch.arange(64)[:, None] + torch.arange(64)[None]).remainder(2) - 1)
    found = detail_share(0.5 + checkerboard[None], torch.full((1, 64, 64), varies))
    assert found == pytest.approx(share, abs=1e-3)  # a blur of 4 px leaves nothing of a checkerboard


def test_a_smooth_mean_has_no_detail() -> None:
    slope = torch.linspace(0, 1, 64).expand(1, 64, 64)
    assert detail_share(slope, torch.full((1, 64, 64), 0.2)) < 0.02


@pytest.mark.parametrize(
    ("model", "method", "warned"),
    [
        ("hand-xray64", "thor+", True),
        ("hand-xray64", "zscore", True),
        ("hand-xray64", "thor", False),
        ("brain-t1-compact", "thor+", False),
        ("hand-xray64", "critic-only", False),
        ("brain-t1-compact", "critic-only", False),
    ],
)
def test_what_goes_by_places_warns_once_where_images_are_not_aligned(model: str, method: str, warned: bool) -> None:
    detector = Detector(model, method=method, device="cpu", force=True)
    picture = np.random.default_rng(0).random((detector.model_size, detector.model_size), dtype=np.float32)
    assert not any("don't lie on one another" in text for text in detector.check(picture).reasons)
    assert len(detector.warnings) == warned
    assert all(f"{model!r} don't lie on one another" in text and text.endswith("thor") for text in detector.warnings)
