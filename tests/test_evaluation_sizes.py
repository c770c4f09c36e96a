import csv
from pathlib import Path

import numpy as np
import pytest

from thorad.evaluation.sizes import PAPER_MIX, lesion_weighted_average, paper_mix, size_group
from thorad.io.images import read_mask
from thorad.io.preprocess import mask_to_model_grid

# Best Dice in percent on ATLAS v2.0 (average, small, medium, large), as published: DDPM, AutoDDPM, THOR Gaussian,
# AnoDDPM, pDDPM, THOR simplex.
PUBLISHED = np.array(
    [
        [8.05, 1.37, 9.53, 25.65],
        [16.95, 4.55, 22.07, 43.47],
        [20.41, 9.14, 26.34, 41.26],
        [18.07, 4.82, 23.45, 46.65],
        [22.28, 8.02, 30.16, 47.66],
        [29.74, 11.54, 39.20, 63.64],
    ]
)


@pytest.mark.parametrize(
    ("pixels", "group"),
    [
        (0, None),
        (3, None),
        (4, "small"),
        (71, "small"),
        (72, "medium"),
        (570, "medium"),
        (571, "large"),
        (9000, "large"),
    ],
)
def test_size_groups_are_open_below_and_closed_above(pixels: int, group: str | None) -> None:
    assert size_group(pixels) == group


@pytest.mark.parametrize(
    ("pixels", "group"), [(12, None), (13, "small"), (284, "small"), (285, "medium"), (2280, "medium"), (2281, "large")]
)
def test_size_limits_scale_with_the_pixel_area(pixels: int, group: str | None) -> None:
    assert size_group(pixels, grid_size=256) == group


def test_paper_mix_is_the_least_squares_solution_of_the_published_rows() -> None:
    shares, *_ = np.linalg.lstsq(PUBLISHED[:, 1:], PUBLISHED[:, 0], rcond=None)
    np.testing.assert_allclose(shares, PAPER_MIX, atol=5e-5)
    np.testing.assert_allclose(PUBLISHED[:, 1:] @ shares, PUBLISHED[:, 0], atol=4e-3)


def test_normalised_paper_mix_reproduces_the_published_averages() -> None:
    np.testing.assert_allclose(paper_mix(PUBLISHED[:, 1:]), PUBLISHED[:, 0], atol=0.03)
    assert paper_mix(np.array([50.0, 50.0, 50.0])) == pytest.approx(50.0)


def test_average_weights_groups_with_their_lesion_counts() -> None:
    average = lesion_weighted_average(np.array([10.0, 40.0, 60.0]), np.array([5.0, 3.0, 2.0]))
    assert average == pytest.approx(0.5 * 10 + 0.3 * 40 + 0.2 * 60)


def test_absent_group_is_left_out_of_the_average_and_undoes_the_paper_mix() -> None:
    values = np.array([[10.0, 40.0, np.nan], [np.nan, np.nan, np.nan]])
    average = lesion_weighted_average(values, np.array([[1.0, 3.0, 0.0], [0.0, 0.0, 0.0]]))
    assert average[0] == pytest.approx(32.5)
    assert np.isnan(average[1])
    assert np.isnan(paper_mix(values)).all()


def test_real_lesions_fall_into_the_groups_their_table_names(shared_data: Path) -> None:
    bench = shared_data / "stroke-bench"
    with (bench / "cases.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    sizes = np.array([mask_to_model_grid(read_mask(bench / row["mask"]), 128).sum() for row in rows])
    stated = np.array([float(row["pixels_at_128"]) for row in rows])
    # The table counts before the images and masks were warped, so single lesions near a limit change sides.
    assert np.median(sizes / stated) == pytest.approx(1, abs=0.1)
    assert np.mean([size_group(int(size)) == row["size"] for size, row in zip(sizes, rows, strict=True)]) > 0.9
