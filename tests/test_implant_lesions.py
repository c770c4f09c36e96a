from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.ndimage import label

from thorad.errors import ThoradError
from thorad.implant.lesions import implant_lesion
from thorad.implant.xray import (
    implant_foreign_body,
    implant_fracture,
    implant_pins,
    implant_plate,
    implant_swelling,
)
from thorad.io.images import read_image
from thorad.io.intensity import scale


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
    diseased, mask = implant_lesion(
        image, np.random.default_rng(seed), region=disc, kind=kind, radius_px=8, strength=0.3
    )
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
    flat, _ = implant_lesion(grey(), np.random.default_rng(3), region=disc, radius_px=8, strength=0.2)
    diseased, _ = implant_lesion(image, np.random.default_rng(3), region=disc, radius_px=8, strength=0.2)
    np.testing.assert_allclose(diseased - flat, image - grey(), atol=1e-6)


def test_the_generator_decides_everything(disc: np.ndarray) -> None:
    def place(seed: int) -> np.ndarray:
        return implant_lesion(grey(), np.random.default_rng(seed), region=disc, radius_px=5, strength=0.2)[0]

    np.testing.assert_array_equal(place(1), place(1))
    assert not np.array_equal(place(1), place(2))


def test_black_pixels_are_no_part_of_a_dark_lesion(disc: np.ndarray) -> None:
    image = grey()
    image[:, 50:] = 0.1  # fluid: can't lose 0.3
    for seed in range(10):
        diseased, mask = implant_lesion(image, np.random.default_rng(seed), region=disc, radius_px=10, strength=0.3)
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
        implant_lesion(arguments.pop("image"), np.random.default_rng(0), **arguments)


def test_region_that_fills_the_image() -> None:
    """The image's border is the region's border too."""
    everywhere = np.ones((120, 100), bool)
    for seed in range(10):
        _, mask = implant_lesion(grey(), np.random.default_rng(seed), region=everywhere, radius_px=20, strength=0.3)
        assert mask.sum() > 0.4 * np.pi * 20**2


def test_in_a_real_slice(shared_data: Path) -> None:
    image = scale(read_image(shared_data / "ixi" / "val" / "sub-IXI025.png").pixels)
    region = np.zeros(image.shape, bool)
    region[60:180, 50:150] = True
    diseased, mask = implant_lesion(image, np.random.default_rng(1), region=region, radius_px=9, strength=0.35)
    assert 100 < mask.sum() < 500
    assert (image - diseased)[mask].min() > 0.175


# One long bone, 16 px wide and 90 px long, along the columns, in a limb of 40 px on a black ground.
BODY = np.zeros((120, 100), bool)
BODY[10:110, 30:70] = True
BONE = np.zeros((120, 100), bool)
BONE[15:105, 42:58] = True


def limb() -> np.ndarray:
    return np.where(BONE, 0.6, np.where(BODY, 0.3, 0)).astype(np.float32)


FINDINGS: dict[str, Callable[..., tuple[np.ndarray, np.ndarray]]] = {
    "pins": lambda image, generator: implant_pins(image, generator, bone=BONE, length_px=24, width_px=2),
    "plate": lambda image, generator: implant_plate(image, generator, bone=BONE, length_px=30, width_px=3),
    "fracture": lambda image, generator: implant_fracture(
        image, generator, bone=BONE, length_px=30, width_px=1.5, strength=0.6
    ),
    "foreign body": lambda image, generator: implant_foreign_body(image, generator, region=BODY, radius_px=3),
    "swelling": lambda image, generator: implant_swelling(
        image, generator, body=BODY, bone=BONE, radius_px=9, strength=0.4
    ),
}


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("kind", FINDINGS)
def test_finding(kind: str, seed: int) -> None:
    image = limb()
    diseased, mask = FINDINGS[kind](image, np.random.default_rng(seed))
    change = diseased - image
    np.testing.assert_array_equal(image, limb())
    assert diseased.dtype == np.float32
    assert diseased.min() >= 0
    assert diseased.max() <= 1
    assert mask.any()
    assert np.abs(change)[mask].mean() > 0.05
    # What changed lies in the mask, but for faint edges (a swelling's are broad).
    assert np.abs(change)[mask].sum() > (0.5 if kind == "swelling" else 0.9) * np.abs(change).sum()
    assert (change.min() >= 0) if kind in ("pins", "plate", "foreign body") else True
    assert (change.max() <= 0) if kind == "fracture" else True
    np.testing.assert_array_equal(FINDINGS[kind](image, np.random.default_rng(seed))[0], diseased)
    assert not np.array_equal(FINDINGS[kind](image, np.random.default_rng(seed + 100))[0], diseased)


def long_axis(mask: np.ndarray) -> tuple[float, float, float]:
    """Length and width of a mask from its second moments (of a bar: 12 var = length^2), and its angle to the bone."""
    variances, axes = np.linalg.eigh(np.cov(np.argwhere(mask), rowvar=False))
    return float(np.sqrt(12 * variances[1])), float(np.sqrt(12 * variances[0])), float(np.arccos(abs(axes[0, 1])))


@pytest.mark.parametrize("seed", range(5))
def test_a_pin_is_straight_white_and_along_the_bone(seed: int) -> None:
    diseased, mask = FINDINGS["pins"](limb(), np.random.default_rng(seed))
    white = diseased > 0.95
    length, width, angle = long_axis(white)
    assert length == pytest.approx(24, rel=0.25)  # two crossing wires spread less along, more across
    assert width < 12
    assert angle < 1.0  # 0.2 to 0.7, and up to 0.5 more for the second wire
    assert (BONE & mask).sum() >= 0.5 * mask.sum()


@pytest.mark.parametrize("seed", range(5))
def test_a_plate_lies_along_the_bone_and_its_screws_cross_it(seed: int) -> None:
    diseased, mask = FINDINGS["plate"](limb(), np.random.default_rng(seed))
    rows, columns = np.nonzero(mask)
    assert rows.max() - rows.min() + 1 == pytest.approx(30, abs=1.5)  # the bone runs along the rows
    assert 10 < columns.max() - columns.min() + 1 < 24
    lengths = mask.sum(axis=0)  # of each column: the plate's three full ones, else screws of 1.5 px
    assert 2 <= (lengths > 25).sum() <= 4
    assert 3 <= label(mask[:, np.flatnonzero(lengths < 15)[len(np.flatnonzero(lengths < 15)) // 2]])[1] <= 5
    assert (diseased[mask] > 0.95).mean() > 0.4


@pytest.mark.parametrize("seed", range(5))
def test_a_fracture_crosses_the_bone_from_side_to_side(seed: int) -> None:
    diseased, mask = FINDINGS["fracture"](limb(), np.random.default_rng(seed))
    assert mask[:, 42:58].any(axis=0).all()  # every column of the bone is broken
    assert not mask[:, :40].any()
    assert not mask[:, 60:].any()
    assert label(mask, np.ones((3, 3)))[1] == 1
    assert mask.sum() < 16 * 1.5 * 3  # thin
    assert diseased[mask & BONE].min() == pytest.approx(0.6 * 0.4, abs=0.05)
    _, _, angle = long_axis(mask)
    assert angle > np.pi / 2 - 0.8


@pytest.mark.parametrize("seed", range(5))
def test_a_foreign_body_is_compact_and_white(seed: int) -> None:
    diseased, mask = FINDINGS["foreign body"](limb(), np.random.default_rng(seed))
    length, width, _ = long_axis(mask)
    assert BODY[mask].all()
    assert 1 <= length / width < 3.5
    assert 0.7 < mask.sum() / (np.pi * 3**2) < 2.5  # between the circle within and a pentagon around it
    assert diseased[mask].max() == 1


@pytest.mark.parametrize("seed", range(5))
def test_a_swelling_bulges_out_of_the_skin_and_leaves_the_bone(seed: int) -> None:
    image = limb()
    diseased, mask = FINDINGS["swelling"](image, np.random.default_rng(seed))
    outside = ~BODY & mask
    assert outside.sum() >= 5  # air became tissue
    assert diseased[outside].mean() > 0.2
    brighter = (diseased - image)[mask & BODY & ~BONE]
    assert brighter.mean() > 0.05
    assert diseased.max() <= 0.6 + 0.4 * (1 - 0.6) + 1e-6  # 0.4 of the way from bone to white, at most
    core = np.zeros(BONE.shape, bool)
    core[25:95, 45:55] = True
    assert np.abs(diseased - image)[core & BONE].max() < 0.04
    # Broad and smooth: well within the soft tissue, neighbours along the bone change alike.
    steps = np.abs(np.diff(diseased - image, axis=0))[15:105]
    assert max(steps[:, 36:41].max(), steps[:, 59:64].max()) < 0.05


@pytest.mark.parametrize("kind", FINDINGS)
def test_no_place_for_a_finding(kind: str) -> None:
    """Where everything is white, or black, nothing would show."""
    black_or_white = np.full((120, 100), 0.0 if kind == "fracture" else 1.0, np.float32)
    with pytest.raises(ThoradError, match=r"has no place where .* would show"):
        FINDINGS[kind](black_or_white, np.random.default_rng(0))


@pytest.mark.parametrize("kind", FINDINGS)
@pytest.mark.parametrize(
    ("image", "message"),
    [(np.full((120, 100), 2.0), r"lies in 2\.\.\.2; expected \[0, 1\]"), (np.zeros((9, 9)), "expected one")],
)
def test_images_that_get_no_finding(kind: str, image: np.ndarray, message: str) -> None:
    with pytest.raises(ThoradError, match=message):
        FINDINGS[kind](image, np.random.default_rng(0))


def test_strengths_out_of_bounds() -> None:
    generator = np.random.default_rng(0)
    with pytest.raises(ThoradError, match="Strength 0; expected above 0"):
        implant_fracture(limb(), generator, bone=BONE, length_px=9, width_px=1, strength=0)
    with pytest.raises(ThoradError, match=r"strength 1\.5; expected"):
        implant_swelling(limb(), generator, body=BODY, bone=BONE, radius_px=9, strength=1.5)
    for radius in (0.5, 70):
        with pytest.raises(ThoradError):
            implant_swelling(limb(), generator, body=BODY, bone=BONE, radius_px=radius, strength=0.4)
