import itertools

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, f1_score, roc_auc_score

from thorad.evaluation import metrics

VALUES = np.array([0.9, 0.8, 0.3, 0.1])
TRUTH = np.array([True, False, True, False])


def brute_force_best_dice(values: np.ndarray, truth: np.ndarray, thresholds: np.ndarray) -> float:
    return max(metrics.dice(values > threshold, truth) for threshold in thresholds)


def best_dice(values: np.ndarray, truth: np.ndarray, thresholds: list[float] | np.ndarray) -> metrics.BestDice:
    """The best over these thresholds, all pixels in one pool."""
    return metrics.best_of_counts(metrics.count_above([values.ravel()], [truth.ravel()], thresholds))


def lesion_maps(seed: int, cases: int = 12, pixels: int = 400) -> tuple[np.ndarray, np.ndarray]:
    """Maps (cases, pixels) with heavy tails and many ties at zero, higher inside about 5 % lesion pixels."""
    generator = np.random.default_rng(seed)
    truth = generator.random((cases, pixels)) < 0.05
    maps = np.maximum(0, generator.normal(0, 1, (cases, pixels)) + 2 * truth) ** 2
    return maps, truth


@pytest.mark.parametrize(
    ("prediction", "expected"),
    [([1, 1, 0, 0], 1 / 2), ([1, 0, 1, 0], 1.0), ([0, 1, 0, 1], 0.0), ([1, 1, 1, 1], 2 / 3), ([0, 0, 0, 0], 0.0)],
)
def test_dice_of_four_pixels(prediction: list[int], expected: float) -> None:
    assert metrics.dice(prediction, TRUTH) == pytest.approx(expected)
    assert f1_score(TRUTH, prediction) == pytest.approx(expected)


def test_dice_of_nothing_is_undefined_and_shapes_must_agree() -> None:
    assert np.isnan(metrics.dice(np.zeros(4), np.zeros(4)))
    with pytest.raises(ValueError, match=r"\(4,\).*\(2, 2\)"):
        metrics.dice(np.zeros(4), np.zeros((2, 2)))


def test_four_pixels_by_hand() -> None:
    # Above 0.1 lie 0.9, 0.8 and 0.3: two of two lesion pixels, one false one, so Dice = 4 / 5.
    assert metrics.exact_best_dice(VALUES, TRUTH) == pytest.approx((0.8, 0.1))
    assert best_dice(VALUES, TRUTH, [0.9, 0.8, 0.3, 0.1]) == pytest.approx((0.8, 0.1))
    # Above 0.8 lies 0.9 alone, Dice = 2 / 3; above 0.3 lie 0.9 and 0.8, Dice = 2 / 4.
    assert best_dice(VALUES, TRUTH, [0.8, 0.3]) == pytest.approx((2 / 3, 0.8))
    # One more lesion pixel outside the region: Dice = 4 / 6.
    assert metrics.exact_best_dice(VALUES, TRUTH, missed=1).dice == pytest.approx(2 / 3)
    # Ranks 1 and 3 are lesions: precision 1 and 2 / 3 at a recall of one half each. Of 4 pairs 3 are in order.
    assert metrics.average_precision(VALUES, TRUTH) == pytest.approx((1 + 2 / 3) / 2)
    assert metrics.auroc(VALUES, TRUTH) == pytest.approx(3 / 4)


def test_metrics_without_lesion_or_without_healthy_are_undefined() -> None:
    nothing = np.zeros(4, bool)
    assert np.isnan(metrics.average_precision(VALUES, nothing))
    assert np.isnan(metrics.auroc(VALUES, nothing))
    assert np.isnan(metrics.auroc(VALUES, ~nothing))
    assert np.isnan(metrics.exact_best_dice(VALUES, nothing).dice)
    assert np.isnan(best_dice(VALUES, nothing, [0.5]).dice)


def test_constant_map_finds_nothing() -> None:
    assert metrics.exact_best_dice(np.full(4, 0.5), TRUTH).dice == 0
    assert best_dice(np.full(4, 0.5), TRUTH, metrics.tail_thresholds(np.full(4, 0.5))).dice == 0


@pytest.mark.parametrize("seed", range(5))
def test_best_dice_equals_brute_force(seed: int) -> None:
    maps, truth = lesion_maps(seed)
    coarse_maps = np.round(maps, 1)  # many ties
    for values in (maps, coarse_maps):
        thresholds = metrics.tail_thresholds(values)
        over_101 = best_dice(values, truth, thresholds)
        exact = metrics.exact_best_dice(values, truth)
        assert over_101.dice == pytest.approx(brute_force_best_dice(values, truth, thresholds))
        assert exact.dice == pytest.approx(brute_force_best_dice(values, truth, np.unique(values)))
        for found in (over_101, exact):
            assert metrics.dice(values > found.threshold, truth) == pytest.approx(found.dice)
        assert exact.dice - 0.01 <= over_101.dice <= exact.dice


def test_best_dice_does_not_depend_on_the_units_of_the_map() -> None:
    maps, truth = lesion_maps(0)
    stretched = np.exp(3 * maps)  # the largest value is now astronomically far from the others
    expected = best_dice(maps, truth, metrics.tail_thresholds(maps)).dice
    assert best_dice(stretched, truth, metrics.tail_thresholds(stretched)).dice == expected
    equal_steps = np.linspace(stretched.max(), 0, metrics.BEST_DICE_THRESHOLDS)
    assert best_dice(stretched, truth, equal_steps).dice < expected - 0.2


def test_tail_thresholds_are_exceeded_by_their_share_of_pixels() -> None:
    values = np.random.default_rng(0).permutation(20_000).astype(np.float64)
    thresholds = metrics.tail_thresholds(values)
    exceeding = [(values > threshold).mean() for threshold in thresholds]
    np.testing.assert_allclose(exceeding, np.geomspace(1e-4, 1, 101), atol=1 / 20_000)
    fine = metrics.tail_thresholds(values, metrics.FINE_THRESHOLDS)
    np.testing.assert_array_equal(fine[::20], thresholds)


@pytest.mark.parametrize(("rate", "expected"), [(0.0, 99), (0.01, 98), (0.05, 94), (0.29, 70), (0.059, 94)])
def test_threshold_at_false_positive_rate_is_the_smallest_allowed(rate: float, expected: float) -> None:
    values = np.arange(100.0)
    threshold = metrics.threshold_at_fpr(values, rate)
    assert threshold == expected
    assert (values > threshold).mean() <= rate
    assert (values > threshold - 1e-6).mean() > rate


def test_threshold_at_false_positive_rate_with_ties() -> None:
    # 3 of 10 pixels share the value 2: a threshold below 2 would let all three pass.
    assert metrics.threshold_at_fpr([0, 0, 0, 0, 1, 1, 1, 2, 2, 2], 0.2) == 2
    assert metrics.threshold_at_fpr(np.zeros(50), 0.01) == 0


def test_random_map_has_the_prevalence_as_average_precision() -> None:
    generator = np.random.default_rng(0)
    truth = generator.random(200_000) < 0.03
    maps = generator.random(200_000)
    assert metrics.average_precision(maps, truth) == pytest.approx(truth.mean(), rel=0.05)
    assert metrics.auroc(maps, truth) == pytest.approx(0.5, abs=0.01)


def test_resampled_metrics_equal_scikit_learn_on_repeated_cases() -> None:
    maps, truth = lesion_maps(1)
    maps = np.round(maps, 1)
    weights = metrics.subject_resamples([f"sub-{case // 2}" for case in range(12)], 4, np.random.default_rng(0))
    thresholds = np.unique(maps)[::-1]
    counts = metrics.count_above(maps, truth, thresholds)
    best = metrics.resampled_best_dice(counts, weights)
    precision = metrics.resampled_average_precision(counts, weights)
    area = metrics.resampled_auroc(counts, weights)
    for index, weight in enumerate(weights):
        rows = np.repeat(np.arange(12), weight.astype(int))
        values, lesions = maps[rows].ravel(), truth[rows].ravel()
        assert best[index] == pytest.approx(brute_force_best_dice(values, lesions, thresholds))
        assert precision[index] == pytest.approx(average_precision_score(lesions, values))
        assert area[index] == pytest.approx(roc_auc_score(lesions, values))


def test_fine_thresholds_are_dense_enough_for_the_intervals() -> None:
    maps, truth = lesion_maps(2, cases=20, pixels=4000)
    counts = metrics.count_above(maps, truth, metrics.tail_thresholds(maps, metrics.FINE_THRESHOLDS))
    once = np.ones((1, 20))
    assert metrics.resampled_average_precision(counts, once)[0] == pytest.approx(
        metrics.average_precision(maps, truth), abs=2e-3
    )
    assert metrics.resampled_auroc(counts, once)[0] == pytest.approx(metrics.auroc(maps, truth), abs=1e-4)


def test_missed_lesion_pixels_lower_the_dice_of_resamples_and_cases() -> None:
    counts = metrics.count_above([VALUES, VALUES], [TRUTH, TRUTH], [0.1], missed=[0, 3])
    # Two of two found, one false: 4 / 5; two of five found, one false: 4 / 8; together 8 / 13.
    assert metrics.case_dice(counts)[:, 0] == pytest.approx([4 / 5, 4 / 8])
    assert metrics.pooled_dice(counts)[0, 0] == pytest.approx(8 / 13)
    assert metrics.resampled_best_dice(counts, [[2, 0], [0, 2]]) == pytest.approx([4 / 5, 4 / 8])


def test_resampled_dice_at_false_positive_rate_equals_brute_force() -> None:
    generator = np.random.default_rng(3)
    maps, truth = lesion_maps(3)
    healthy = np.round(np.abs(generator.normal(0, 1, (5, 400))), 2)
    thresholds = np.unique(np.concatenate([maps.ravel(), healthy.ravel()]))[::-1]
    ill = metrics.count_above(maps, truth, thresholds)
    well = metrics.count_above(healthy, np.zeros_like(healthy, dtype=bool), thresholds)
    weights = metrics.subject_resamples([str(case) for case in range(17)], 6, generator)
    resampled = metrics.resampled_dice_at_fpr(ill, well, 0.05, weights[:, :12], weights[:, 12:])
    for value, weight in zip(resampled, weights.astype(int), strict=True):
        rows = np.repeat(np.arange(12), weight[:12])
        threshold = metrics.threshold_at_fpr(np.repeat(healthy, weight[12:], axis=0), 0.05)
        assert value == pytest.approx(metrics.dice(maps[rows] > threshold, truth[rows]))


def test_resample_without_healthy_scans_has_no_threshold() -> None:
    counts = metrics.count_above([VALUES], [TRUTH], [0.1])
    assert np.isnan(metrics.resampled_dice_at_fpr(counts, counts, 0.05, [[1.0]], [[0.0]])).all()


def test_resampled_image_auroc_equals_scikit_learn() -> None:
    generator = np.random.default_rng(4)
    diseased = np.arange(20) < 12
    scores = np.round(generator.normal(0, 1, 20) + diseased, 0)  # ties
    weights = metrics.subject_resamples([str(case) for case in range(20)], 5, generator)
    resampled = metrics.resampled_image_auroc(scores, diseased, weights)
    for value, weight in zip(resampled, weights, strict=True):
        assert value == pytest.approx(roc_auc_score(diseased, scores, sample_weight=weight))
    assert np.isnan(metrics.resampled_image_auroc(scores, diseased, [diseased.astype(float)])).all()


def test_cases_of_one_subject_are_resampled_together() -> None:
    subjects = ["b", "a", "b", "c", "a"]
    weights = metrics.subject_resamples(subjects, 200, np.random.default_rng(0))
    np.testing.assert_array_equal(weights[:, 0], weights[:, 2])
    np.testing.assert_array_equal(weights[:, 1], weights[:, 4])
    assert (weights[:, [0, 1, 3]].sum(axis=1) == 3).all()
    assert not (weights[:, 0] == weights[:, 1]).all()


def interval_of_mean(values: np.ndarray, subjects: list[str], generator: np.random.Generator) -> tuple[float, float]:
    weights = metrics.subject_resamples(subjects, 400, generator)
    return metrics.percentile_interval(weights @ values / weights.sum(axis=1))


def test_interval_covers_the_known_mean_as_often_as_it_says() -> None:
    generator = np.random.default_rng(0)
    subjects = [str(subject) for subject in range(40)]
    covered = 0
    for _ in range(300):
        low, high = interval_of_mean(generator.normal(7, 1, 40), subjects, generator)
        covered += low <= 7 <= high
    assert 0.90 <= covered / 300 <= 0.98


def test_grouping_by_subject_widens_the_interval_of_correlated_cases() -> None:
    generator = np.random.default_rng(1)
    twice = np.repeat(generator.normal(0, 1, 40), 2)  # two cases of a subject, equal
    grouped = interval_of_mean(twice, [str(case // 2) for case in range(80)], generator)
    ungrouped = interval_of_mean(twice, [str(case) for case in range(80)], generator)
    ratio = (grouped[1] - grouped[0]) / (ungrouped[1] - ungrouped[0])
    assert ratio == pytest.approx(np.sqrt(2), rel=0.15)


def test_percentile_interval_leaves_undefined_resamples_out() -> None:
    values = [*np.linspace(0, 1, 101), np.nan]
    assert metrics.percentile_interval(values) == pytest.approx((0.025, 0.975))
    assert all(np.isnan(metrics.percentile_interval([np.nan])))


def test_thousand_resamples_need_no_thousand_passes_over_the_pixels() -> None:
    # The counts of all subsets of three cases, each by one row of weights, against counting the pixels anew.
    maps, truth = lesion_maps(5, cases=3)
    thresholds = metrics.tail_thresholds(maps)
    counts = metrics.count_above(maps, truth, thresholds)
    subsets = np.array([subset for subset in itertools.product([0, 1], repeat=3) if any(subset)], dtype=float)
    from_counts = metrics.pooled_dice(counts, subsets)
    for row, subset in zip(from_counts, subsets.astype(bool), strict=True):
        direct = [metrics.dice(maps[subset] > threshold, truth[subset]) for threshold in thresholds]
        np.testing.assert_allclose(row, direct)
