from __future__ import annotations

import torch

from thorad.training.synthetic_anomalies import AREA, HEALTHY_SHARE, corrupt

SIDE = 64


def heads(count: int) -> torch.Tensor:
    """(B, 1, S, S): smooth pictures of their own."""
    coarse = torch.rand(count, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    return 0.2 + 0.6 * torch.nn.functional.interpolate(coarse, size=SIDE, mode="bilinear")


def disc() -> torch.Tensor:
    place = torch.arange(SIDE) - SIDE / 2
    return place[:, None] ** 2 + place**2 < (SIDE / 2.5) ** 2


def test_the_same_generator_makes_the_same_anomalies() -> None:
    healthy = heads(6)
    once, again, other = (corrupt(healthy, disc(), torch.Generator().manual_seed(seed)) for seed in (3, 3, 4))
    assert torch.equal(once.image, again.image)
    assert torch.equal(once.area, again.area)
    assert not torch.equal(once.image, other.image)


def test_what_is_marked_has_changed_and_lies_in_the_region() -> None:
    healthy = heads(64)
    made = corrupt(healthy, disc(), torch.Generator().manual_seed(0))
    changed = made.image != healthy
    assert not changed[..., ~disc()].any()
    assert not made.mask[..., ~disc()].any()
    assert made.image.min() >= 0
    assert made.image.max() <= 1
    assert changed[made.mask].float().mean() > 0.98  # two anomalies may meet, and textures pass through zero
    assert torch.equal(made.mask, made.area > 0)


def test_small_and_large_dark_and_bright_and_none_at_all() -> None:
    healthy = heads(512)
    made = corrupt(healthy, disc(), torch.Generator().manual_seed(0))
    areas = made.area.amax(dim=(1, 2, 3)) * (128 / SIDE) ** 2  # px of a grid of 128 x 128
    anomalous = areas > 0
    assert abs(float((~anomalous).float().mean()) - HEALTHY_SHARE) < 0.12  # some are too faint to be marked
    assert areas[anomalous].min() < 3 * AREA[0]
    assert areas.max() > 1000
    difference = (made.image - healthy)[made.mask]
    assert 0.25 < float((difference < 0).float().mean()) < 0.9


def test_the_area_is_that_of_the_anomaly() -> None:
    """Where an image has one anomaly alone, each of its pixels says how many there are."""
    healthy = heads(64)
    made = corrupt(healthy, disc(), torch.Generator().manual_seed(5))
    checked = 0
    for mask, area in zip(made.mask, made.area, strict=True):
        if len(area[mask].unique()) == 1:
            assert int(area[mask][0]) == int(mask.sum())
            checked += 1
    assert checked > 5
