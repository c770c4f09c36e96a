import numpy as np
import pytest
import torch
import torch.nn.functional as F

from thorad.errors import ThoradError
from thorad.io.images import read_image
from thorad.io.intensity import scale
from thorad.io.preprocess import digest_of, mask_to_model_grid, place, to_input_grid, to_model_input

SHAPES = [
    (233, 197),
    (197, 233),
    (128, 128),
    (127, 128),
    (128, 127),
    (64, 64),
    (63, 41),
    (301, 300),
    (400, 100),
    (100, 400),
    (33, 129),
    (512, 511),
    (8, 8),
]


def spot(shape: tuple[int, int], row: float, column: float, sigma: float) -> np.ndarray:
    """A bell centred on (row, column) in pixel coordinates."""
    rows, columns = np.arange(shape[0])[:, None], np.arange(shape[1])[None, :]
    return np.exp(-((rows - row) ** 2 + (columns - column) ** 2) / (2 * sigma**2))


def centre_of_mass(image: np.ndarray) -> tuple[float, float]:
    weight = image.sum()
    rows, columns = np.arange(image.shape[0])[:, None], np.arange(image.shape[1])[None, :]
    return float((image * rows).sum() / weight), float((image * columns).sum() / weight)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("where", [(0.5, 0.5), (0.3, 0.6), (0.7, 0.35)])
def test_a_point_comes_back_to_its_place_within_half_a_pixel(
    shape: tuple[int, int], where: tuple[float, float]
) -> None:
    height, width = shape
    row, column = where[0] * (height - 1), where[1] * (width - 1)
    # Narrow enough to lie inside the image, wide enough to be seen on the model's grid.
    image = spot(shape, row, column, sigma=max(0.06 * min(shape), 0.5 * max(shape) / 64))
    expected = centre_of_mass(scale(image))
    back = to_input_grid(to_model_input(image)[0][0], place(height, width, 128))
    assert back.shape == shape
    assert back.dtype == np.float32
    assert np.abs(np.subtract(centre_of_mass(back), expected)).max() < 0.5


@pytest.mark.parametrize("shape", SHAPES)
def test_padding_is_centred_and_the_odd_pixel_goes_behind(shape: tuple[int, int]) -> None:
    height, width = shape
    placement = place(height, width, 128)
    assert placement.side == max(shape)
    below, right = placement.side - height - placement.top, placement.side - width - placement.left
    assert below - placement.top in (0, 1)
    assert right - placement.left in (0, 1)


@pytest.mark.parametrize("shape", SHAPES)
def test_the_inverse_of_a_constant_is_exact(shape: tuple[int, int]) -> None:
    back = to_input_grid(torch.full((128, 128), 0.375), place(*shape, 128))
    np.testing.assert_allclose(back, np.full(shape, 0.375), atol=1e-6)


def test_same_size_is_the_identity(rng: np.random.Generator) -> None:
    image = rng.random((128, 128)).astype(np.float32)
    given, placement = to_model_input(image)
    np.testing.assert_allclose(given[0].numpy(), scale(image), atol=1e-6)
    np.testing.assert_allclose(to_input_grid(given[0], placement), scale(image), atol=1e-6)


def test_scale_divides_by_the_98th_percentile_and_clips() -> None:
    pixels = np.arange(101, dtype=np.float32).reshape(1, 101) - 1  # percentiles of 0...100 less 1
    scaled = scale(pixels)
    assert scaled.dtype == np.float32
    assert scaled[0, 0] == 0  # -1 is clipped
    assert scaled[0, 50] == pytest.approx(49 / 97)
    assert (scaled[0, 98:] == 1).all()


def test_scale_makes_bit_depth_disappear(rng: np.random.Generator) -> None:
    eight = rng.integers(0, 256, (40, 30)).astype(np.float32)
    np.testing.assert_allclose(scale(eight * 16), scale(eight), atol=1e-6)  # the same in 12 bits of a 16-bit file


def test_tiny_values_neither_warn_nor_overflow() -> None:
    pixels = np.full((10, 10), 1e-44, np.float32)
    pixels[0, 0] = 3e38
    assert scale(pixels).max() == 1


def test_nearly_empty_image_is_refused() -> None:
    pixels = np.zeros((100, 100), np.float32)
    pixels[0, :50] = 200
    with pytest.raises(ThoradError, match=r"nearly empty: only 0\.5 %.*98th percentile"):
        to_model_input(pixels)


def test_a_few_negative_pixels_count_as_0(rng: np.random.Generator) -> None:
    """As many as 5 %, whatever their depth: what a cubic resampling leaves at edges."""
    pixels = rng.random((100, 100)).astype(np.float32)
    cut = pixels.copy()
    pixels[:5], cut[:5] = -50, 0
    np.testing.assert_array_equal(scale(pixels), scale(cut))
    assert scale(pixels).min() == 0


def test_an_image_on_a_scale_with_negative_values_is_refused(rng: np.random.Generator) -> None:
    pixels = rng.random((100, 100)).astype(np.float32)
    pixels[:5] = pixels[5, 0] = -1e-3
    with pytest.raises(
        ThoradError, match=r"5\.01 % .* negative; expected pixels >= 0, where 0 is nothing.*[Ss]hift or"
    ):
        scale(pixels)
    z_scored = (pixels - np.median(pixels)) / pixels.std()
    with pytest.raises(ThoradError, match="50 % of"):
        to_model_input(z_scored)
    with pytest.raises(ThoradError, match="100 % of"):  # air on the Hounsfield scale
        to_model_input(np.full((100, 100), -1000.0))


def test_map_of_another_size_is_a_mistake() -> None:
    with pytest.raises(ValueError, match=r"expected a map of shape \(128, 128\)"):
        to_input_grid(np.zeros((64, 64)), place(100, 100, 128))


def test_real_slices_equal_the_reference(shared_data) -> None:
    """Written out anew: divide, np.pad, torch's antialiased resize."""
    paths = sorted((shared_data / "ixi" / "val").glob("*.png"))[:5]
    assert len(paths) == 5
    for path in paths:
        pixels = read_image(path).pixels
        assert pixels.shape == (233, 197)
        reference = np.clip(pixels / np.percentile(pixels, 98), 0, 1)
        reference = np.pad(reference, ((0, 0), (18, 18)))
        resized = F.interpolate(
            torch.tensor(reference)[None, None], (128, 128), mode="bilinear", antialias=True, align_corners=False
        )
        given, placement = to_model_input(pixels)
        assert given.shape == (1, 128, 128)
        assert given.dtype == torch.float32
        assert given.min() >= 0
        assert given.max() <= 1
        torch.testing.assert_close(given, resized[0], atol=1e-6, rtol=0)
        assert np.abs(to_input_grid(given[0], placement) - scale(pixels)).mean() < 0.03


def test_scaling_twice_changes_nothing_on_slices_scaled_before(shared_data) -> None:
    for path in sorted((shared_data / "ixi" / "train").glob("*.png"))[:20]:
        pixels = read_image(path).pixels
        np.testing.assert_allclose(scale(scale(pixels)), scale(pixels), atol=1e-6)
        # They were scaled by the 98th percentile before they were cut to 8 bits; theirs is now 248...255.
        np.testing.assert_allclose(scale(pixels), pixels / 255, atol=8 / 255)


def test_mask_area_rule_by_hand() -> None:
    mask = np.zeros((8, 8), bool)
    mask[0:2, 0:1] = True  # half of the first 2 x 2 block: not more than half
    mask[0:2, 2:4] = True  # all of the next
    mask[2, 0:2] = mask[3, 0] = True  # three of four
    mask[7, 7] = True  # a quarter
    expected = np.zeros((4, 4), bool)
    expected[0, 1] = expected[1, 0] = True
    np.testing.assert_array_equal(mask_to_model_grid(mask, 4), expected)


def test_mask_area_rule_with_fractions_of_pixels() -> None:
    # Side 3 on a grid of 2: an output pixel covers 1.5 x 1.5 input pixels.
    mask = np.zeros((3, 3), bool)
    mask[0, :] = True  # 1 of 1.5 rows: 2/3 of the upper two
    np.testing.assert_array_equal(mask_to_model_grid(mask, 2), [[True, True], [False, False]])
    mask = np.zeros((3, 3), bool)
    mask[0, 0] = True  # 1 / 2.25 = 0.44
    assert not mask_to_model_grid(mask, 2).any()
    mask[0, 1] = True  # with half of its neighbour: 1.5 / 2.25 = 0.67, and 0.5 / 2.25 to the right
    np.testing.assert_array_equal(mask_to_model_grid(mask, 2), [[True, False], [False, False]])


def test_mask_is_padded_as_its_image_is() -> None:
    mask = np.ones((8, 4), bool)
    expected = np.zeros((4, 4), bool)
    expected[:, 1:3] = True
    np.testing.assert_array_equal(mask_to_model_grid(mask, 4), expected)
    np.testing.assert_array_equal(mask_to_model_grid(mask.T, 4), expected.T)


def test_full_and_empty_masks_at_any_size() -> None:
    for size in (16, 64, 128, 129):
        for side in (8, 17, 128, 233, 301):
            assert mask_to_model_grid(np.ones((side, side), bool), size).all()
            assert not mask_to_model_grid(np.zeros((side, side), bool), size).any()


def test_real_masks_keep_their_area_and_place(shared_data) -> None:
    for path in sorted((shared_data / "stroke-bench" / "masks").glob("*.png"))[:10]:
        mask = read_image(path).pixels > 0
        small = mask_to_model_grid(mask, 128)
        assert small.sum() == pytest.approx(mask.sum() * (128 / 233) ** 2, rel=0.15)
        rows, columns = centre_of_mass(mask)
        expected = (rows + 0.5) * 128 / 233 - 0.5, (columns + 18 + 0.5) * 128 / 233 - 0.5
        assert np.abs(np.subtract(centre_of_mass(small), expected)).max() < 0.5


def test_last_digits_change_no_digest(rng: np.random.Generator) -> None:
    """Other machines resize with other last digits; another picture has another digest."""
    pixels = torch.from_numpy(rng.random((40, 1, 64, 64), dtype=np.float32))
    digests = [digest_of(each) for each in pixels]
    noise = torch.from_numpy(rng.uniform(-1e-7, 1e-7, pixels.shape).astype(np.float32))
    assert [digest_of(each) for each in pixels + noise] == digests
    assert len(set(digests)) == 40
    changed = pixels.clone()
    changed[:, 0, 30:32, 30:32] = 1 - changed[:, 0, 30:32, 30:32]
    assert not set(digests) & {digest_of(each) for each in changed}
