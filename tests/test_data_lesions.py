from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.ndimage import label

from thorad.data.images import read_image
from thorad.data.lesions import implant
from thorad.data.preprocess import scale
from thorad.errors import ThoradError


@pytest.fixture
def disc() -> np.ndarray:
    """The region: a disc in the middle of 120 x 100 pixels."""
    return np.hypot(np.arange(120)[:, None] - 60, np.arange(100)[None, :] - 50) < 40


def grey(value: float = 0.5) -> np.ndarray:
    return np.full((120, 100), value, np.float32)


@pytest.mark.parametrize("kind", ["dark", "bright"])
@pytest.mark.parametrize("seed", range(20))
def test_what_changes_and_where(disc: np.ndarray, kind: Any, seed: int) -> None:
    image = grey()
    diseased, mask = implant(image, np.random.default_rng(seed), region=disc, kind=kind, radius_px=8, strength=0.3)
    change = diseased - image
    assert diseased.dtype == np.float32
    assert (image == 0.5).all()
    assert (change[~disc] == 0).all()
    assert ((change <= 0) if kind == "dark" else (change >= 0)).all()
    np.testing.assert_array_equal(mask, np.abs(change) > 0.15)
    assert np.abs(change).max() == pytest.approx(0.3, rel=0.02)
    assert 0.4 < mask.sum() / (np.pi * 8**2) < 2  # the ellipse's area is pi r^2
    sizes = np.bincount(label(mask)[0].ravel())[1:]
    assert sizes.max() > 0.9 * mask.sum()  # one lesion, perhaps with a speck beside it
    steps = np.abs(np.diff(change, axis=0))
    assert steps.max() < 0.13  # a smooth edge: a blur of 1.2 px spreads 0.3 to 0.3 * erf(1 / 2.4 / sqrt(2)) = 0.1 a px
    assert not np.array_equal(mask, mask[::-1])


def test_texture_stays(disc: np.ndarray, rng: np.random.Generator) -> None:
    image = grey() + rng.uniform(-0.05, 0.05, (120, 100)).astype(np.float32)
    flat, _ = implant(grey(), np.random.default_rng(3), region=disc, radius_px=8, strength=0.2)
    diseased, _ = implant(image, np.random.default_rng(3), region=disc, radius_px=8, strength=0.2)
    np.testing.assert_allclose(diseased - flat, image - grey(), atol=1e-6)


def test_the_generator_decides_everything(disc: np.ndarray) -> None:
    def place(seed: int) -> np.ndarray:
        return implant(grey(), np.random.default_rng(seed), region=disc, radius_px=5, strength=0.2)[0]

    np.testing.assert_array_equal(place(1), place(1))
    assert not np.array_equal(place(1), place(2))


def test_black_pixels_are_no_part_of_a_dark_lesion(disc: np.ndarray) -> None:
    image = grey()
    image[:, 50:] = 0.1  # fluid: can't lose 0.3
    for seed in range(10):
        diseased, mask = implant(image, np.random.default_rng(seed), region=disc, radius_px=10, strength=0.3)
        assert diseased.min() >= 0
        assert mask.any()
        assert not mask[:, 50:].any()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"radius_px": 60}, "no place for a dark lesion of radius 60 px"),
        ({"region": np.zeros((120, 100), bool)}, "The region of 0 px has no place"),
        ({"image": grey(0.0)}, "no place for a dark lesion"),
        ({"image": grey(1.0), "kind": "bright"}, "no place for a bright lesion"),
        ({"region": np.ones((100, 120), bool)}, r"expected one \(height, width\)"),
        ({"image": grey(255)}, r"lies in 255\.\.\.255; expected \[0, 1\]"),
        ({"image": grey(np.nan)}, "lies in nan"),
        ({"strength": 0}, "strength 0"),
        ({"strength": 1.5}, "strength 1.5"),
        ({"radius_px": 0.5}, "Radius 0.5 px"),
    ],
)
def test_what_is_refused(disc: np.ndarray, change: dict[str, Any], message: str) -> None:
    arguments = {"image": grey(), "region": disc, "radius_px": 8, "strength": 0.3} | change
    with pytest.raises(ThoradError, match=message):
        implant(arguments.pop("image"), np.random.default_rng(0), **arguments)


def test_region_that_fills_the_image() -> None:
    """The image's border is the region's border too."""
    everywhere = np.ones((120, 100), bool)
    for seed in range(10):
        _, mask = implant(grey(), np.random.default_rng(seed), region=everywhere, radius_px=20, strength=0.3)
        assert mask.sum() > 0.4 * np.pi * 20**2


def test_in_a_real_slice(shared_data: Path) -> None:
    image = scale(read_image(shared_data / "ixi" / "val" / "sub-IXI025.png").pixels)
    region = np.zeros(image.shape, bool)
    region[60:180, 50:150] = True
    diseased, mask = implant(image, np.random.default_rng(1), region=region, radius_px=9, strength=0.35)
    assert 100 < mask.sum() < 500
    assert (image - diseased)[mask].min() > 0.175
