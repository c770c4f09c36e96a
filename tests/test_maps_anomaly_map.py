from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import ndimage, stats
from torch import Tensor

from thorad.maps.anomaly_map import (
    AnomalyMap,
    close_and_dilate,
    gaussian_blur,
    guidance_mask,
    harmonic_mean,
    residual,
)


@pytest.fixture
def maps() -> Tensor:
    """Three unlike maps, (3, 1, 40, 56)."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.rand(3, 1, 40, 56, generator=generator)
    return torch.stack([noise[0], 7 * noise[1] ** 8 + 3, (noise[2] > 0.98).float()])


def per_image(maps: Tensor, function: object, **options: object) -> Tensor:
    """What a SciPy function makes of every image by itself."""
    return torch.tensor(np.stack([[function(image[0], **options)] for image in maps.numpy()]))  # type: ignore[operator]


def close_and_dilate_by_scipy(image: np.ndarray, window: int) -> np.ndarray:
    return ndimage.grey_dilation(ndimage.grey_closing(image, size=(window, window)), size=(window, window))


@pytest.mark.parametrize("window", [1, 3, 7, 13, 39])
def test_close_and_dilate_equals_scipy_up_to_the_border(maps: Tensor, window: int) -> None:
    expected = per_image(maps, close_and_dilate_by_scipy, window=window)
    assert torch.equal(close_and_dilate(maps, window), expected)


def test_closing_and_dilation_by_hand() -> None:
    m = torch.zeros(1, 1, 1, 12)
    m[..., 3], m[..., 5] = 1, 1  # closing by 3 fills the gap between them, dilation adds one pixel at each end
    assert close_and_dilate(m, 3).flatten().tolist() == [0, 0, 1, 1, 1, 1, 1, 0, 0, 0, 0, 0]


@pytest.mark.parametrize("window", [0, -3, 12])
def test_even_windows_are_refused(maps: Tensor, window: int) -> None:
    with pytest.raises(ValueError, match="odd"):
        close_and_dilate(maps, window)


@pytest.mark.parametrize("sigma", [0.5, 2.0, 3.3, 20.0])
def test_blur_equals_scipy(maps: Tensor, sigma: float) -> None:
    expected = per_image(maps, ndimage.gaussian_filter, sigma=sigma, mode="reflect")
    torch.testing.assert_close(gaussian_blur(maps, sigma), expected, atol=1e-5, rtol=0)
    assert gaussian_blur(maps, 0) is maps


@pytest.mark.parametrize(
    "function",
    [lambda m: gaussian_blur(m, 2.0), lambda m: close_and_dilate(m, 7), guidance_mask, lambda m: harmonic_mean([m, m])],
    ids=["blur", "close_and_dilate", "guidance_mask", "harmonic_mean"],
)
def test_no_image_leaks_into_its_neighbours(maps: Tensor, function: object) -> None:
    together = function(maps)  # type: ignore[operator]
    for i in range(3):
        torch.testing.assert_close(together[i : i + 1], function(maps[i : i + 1]))  # type: ignore[operator]


def test_guidance_mask_is_the_scaled_map_closed_and_dilated(maps: Tensor) -> None:
    mask = guidance_mask(maps, window=5)
    scaled = per_image(maps, lambda image: (image - image.min()) / (image.max() - image.min()))
    torch.testing.assert_close(mask, per_image(scaled, close_and_dilate_by_scipy, window=5))
    assert float(mask.min()) >= 0
    assert mask.amax(dim=(1, 2, 3)).tolist() == [1, 1, 1]


def test_guidance_mask_of_a_constant_map_is_zero() -> None:
    assert torch.equal(guidance_mask(torch.full((2, 1, 32, 32), 0.3)), torch.zeros(2, 1, 32, 32))


@pytest.mark.parametrize(("height", "window"), [(128, 13), (64, 7), (256, 27), (197, 21), (32, 3), (8, 1)])
def test_window_scales_with_the_map(height: int, window: int) -> None:
    m = torch.zeros(1, 1, height, height)
    m[..., height // 2, height // 2] = 5
    assert int(guidance_mask(m).sum()) == window**2  # one pixel: closing leaves it, dilation makes it the window


def test_harmonic_mean() -> None:
    maps = [torch.tensor([[[[2.0, 1.0, 0.5, 0.0]]]]), torch.tensor([[[[6.0, 1.0, 1e-3, 9.0]]]])]
    by_hand = [2 / (1 / 2 + 1 / 6), 1.0, 2 / (1 / 0.5 + 1 / 1e-3), 0.0]
    torch.testing.assert_close(harmonic_mean(maps).flatten(), torch.tensor(by_hand))
    assert harmonic_mean(maps)[0, 0, 0, 3] == 0


def test_harmonic_mean_equals_scipy() -> None:
    generator = torch.Generator().manual_seed(0)
    maps = [torch.rand(2, 1, 9, 9, generator=generator) ** 4 for _ in range(4)]
    expected = stats.hmean(np.stack([m.numpy().astype(np.float64) for m in maps]), axis=0)
    torch.testing.assert_close(harmonic_mean(maps).double(), torch.tensor(expected), rtol=1e-5, atol=0)


def test_harmonic_mean_is_zero_where_any_map_is_and_finite_at_the_smallest_numbers() -> None:
    tiny = torch.full((1, 1, 2, 2), 1e-42)  # subnormal: its reciprocal overflows
    assert torch.equal(harmonic_mean([tiny, torch.ones(1, 1, 2, 2)]), torch.zeros(1, 1, 2, 2))
    zeros = torch.zeros(1, 1, 2, 2)
    assert torch.equal(harmonic_mean([zeros, zeros]), zeros)


def test_harmonic_mean_of_nothing() -> None:
    with pytest.raises(ValueError, match="no maps"):
        harmonic_mean([])


def test_residual_is_on_the_unit_scale() -> None:
    assert residual(torch.tensor([-1.0, 0.0, 0.5]), torch.tensor([1.0, 0.0, 0.0])).tolist() == [1, 0, 0.25]


def test_anomaly_map_is_residual_times_blurred_distance(maps: Tensor) -> None:
    image, reconstruction = maps.clamp(0, 1) * 2 - 1, maps.flip(-1).clamp(0, 1) * 2 - 1
    distance = maps.flip(-2)
    expected = (image - reconstruction).abs() / 2 * per_image(distance, ndimage.gaussian_filter, sigma=2)
    torch.testing.assert_close(AnomalyMap(lambda a, b: distance)(image, reconstruction), expected, atol=1e-5, rtol=0)
    unblurred = AnomalyMap(lambda a, b: distance, blur_sigma=0)(image, reconstruction)
    torch.testing.assert_close(unblurred, (image - reconstruction).abs() / 2 * distance)


def test_perceptual_distance_gets_the_images_as_they_are() -> None:
    """The published code scales its inputs to [-1, 1] twice."""
    seen = []

    def perceptual(a: Tensor, b: Tensor) -> Tensor:
        seen.extend([a, b])
        return torch.ones_like(a)

    image, reconstruction = torch.full((1, 1, 8, 8), -1.0), torch.full((1, 1, 8, 8), 0.5)
    AnomalyMap(perceptual)(image, reconstruction)
    assert seen[0] is image
    assert seen[1] is reconstruction


def test_autocast_does_not_lower_the_precision(maps: Tensor) -> None:
    compare = AnomalyMap(lambda a, b: maps)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = compare(maps, maps.flip(-1))
    assert inside.dtype == torch.float32
    assert torch.equal(inside, compare(maps, maps.flip(-1)))
