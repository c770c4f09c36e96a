import itertools
from collections.abc import Callable

import numpy as np
import pytest
from scipy import stats

from thorad.evaluation import metrics, statistics
from thorad.evaluation.statistics import Figures, Sample

ABOUT = {"method": "a", "noise": None, "steps": None, "model": "m"}


def noisy_counts(
    truth: np.ndarray, quality: float, generator: np.random.Generator, unit: Callable[[np.ndarray], np.ndarray] = np.abs
) -> metrics.ThresholdCounts:
    maps = unit(generator.normal(0, 1, truth.shape) + quality * truth)
    return metrics.count_above(maps, truth, metrics.tail_thresholds(maps))


def pair_figures(first: metrics.ThresholdCounts, second: metrics.ThresholdCounts) -> Figures:
    counts = statistics.paired_counts(first, second)
    return lambda weights: {
        "best_dice": metrics.resampled_best_dice(counts, weights),
        "auprc": metrics.resampled_average_precision(counts, weights),
    }


def lesions(generator: np.random.Generator, cases: int = 16, pixels: int = 150) -> np.ndarray:
    truth = generator.random((cases, pixels)) < 0.1
    truth[:, 0] = True
    return truth


def test_p_values_of_equal_methods_are_uniform() -> None:
    """Two methods of one quality but other units: at most the share alpha of the p-values is alpha or less."""
    p_values: dict[str, list[float]] = {"best_dice": [], "auprc": []}
    subjects = [f"sub-{case // 2}" for case in range(16)]  # 8 subjects: 256 swaps are more than 99
    for seed in range(200):
        generator = np.random.default_rng(seed)
        truth = lesions(generator)
        first = noisy_counts(truth, 1.5, generator)
        second = noisy_counts(truth, 1.5, generator, lambda maps: np.exp(2 * np.abs(maps)))
        swaps = statistics.subject_swaps(subjects, 99, generator)
        assert not swaps.exact
        for name, p in statistics.permutation_p_values(pair_figures(first, second), swaps).items():
            p_values[name].append(p)
    for name, found in p_values.items():
        for level in (0.05, 0.2, 0.5):
            low, high = stats.binom.interval(0.999, 200, level)
            assert low <= (np.array(found) <= level).sum() <= high, (name, level)


def test_a_clear_difference_has_a_small_p_value_and_the_same_from_both_sides() -> None:
    generator = np.random.default_rng(0)
    truth = lesions(generator)
    good, bad = noisy_counts(truth, 3.0, generator), noisy_counts(truth, 0.5, generator)
    swaps = statistics.subject_swaps([str(case) for case in range(16)], 500, generator)
    one = statistics.permutation_p_values(pair_figures(good, bad), swaps)
    assert one == statistics.permutation_p_values(pair_figures(bad, good), swaps)
    assert all(p == 1 / 501 for p in one.values())
    assert statistics.permutation_p_values(pair_figures(good, good), swaps) == {"best_dice": 1.0, "auprc": 1.0}


def test_few_subjects_are_enumerated_and_equal_brute_force() -> None:
    """Predictions at equal shares swapped by subject, one by one, and the Dice of pixels counted anew."""
    generator = np.random.default_rng(1)
    subjects = np.array(["c", "a", "b", "a", "d"])
    truth = lesions(generator, cases=5)
    maps = [np.abs(generator.normal(0, 1, truth.shape) + quality * truth) for quality in (2.0, 1.2)]
    thresholds = [metrics.tail_thresholds(values) for values in maps]
    # (method, share, case, pixel)
    predicted = np.stack([values > cut[:, None, None] for values, cut in zip(maps, thresholds, strict=True)])

    def best(predictions: np.ndarray) -> float:
        return max(metrics.dice(prediction, truth) for prediction in predictions)

    differences = []
    for chosen in itertools.product([False, True], repeat=4):
        swapped = np.isin(subjects, np.array(list("abcd"))[list(chosen)])[:, None]
        first = np.where(swapped, predicted[1], predicted[0])
        second = np.where(swapped, predicted[0], predicted[1])
        differences.append(best(first) - best(second))
    expected = np.mean(np.abs(differences) >= abs(differences[0]) - 1e-9)

    counts = [metrics.count_above(values, truth, cut) for values, cut in zip(maps, thresholds, strict=True)]
    swaps = statistics.subject_swaps(list(subjects), 16, generator)
    assert swaps.exact
    assert swaps.swapped.shape == (16, 5)
    found = statistics.permutation_p_values(pair_figures(*counts), swaps)["best_dice"]
    assert 2 / 16 <= found == expected


def test_test_of_means_equals_scipy() -> None:
    generator = np.random.default_rng(2)
    first, second = generator.random(9), generator.random(9) + 0.2
    swaps = statistics.subject_swaps([str(case) for case in range(9)], 512, generator)
    found = statistics.permutation_p_values(statistics.paired_means({"m": first}, {"m": second}), swaps)["m"]
    expected = stats.permutation_test(
        (first, second), lambda a, b: np.mean(a) - np.mean(b), permutation_type="samples", n_resamples=512
    )
    assert found == pytest.approx(expected.pvalue)


def test_drawn_p_values_agree_with_enumerated_ones() -> None:
    generator = np.random.default_rng(3)
    figures = statistics.paired_means({"m": generator.random(12)}, {"m": generator.random(12) + 0.15})
    subjects = [str(case) for case in range(12)]
    exact = statistics.permutation_p_values(figures, statistics.subject_swaps(subjects, 4096, generator))["m"]
    drawn = statistics.permutation_p_values(figures, statistics.subject_swaps(subjects, 4000, generator))["m"]
    assert 0.01 < exact < 0.99
    assert drawn == pytest.approx(exact, abs=4 * np.sqrt(exact * (1 - exact) / 4000))


def test_cases_of_one_subject_change_places_together() -> None:
    swaps = statistics.subject_swaps(["b", "a", "b", *"cdefghijklm"], 300, np.random.default_rng(0))
    np.testing.assert_array_equal(swaps.swapped[:, 0], swaps.swapped[:, 2])
    assert (swaps.swapped[:, 0] != swaps.swapped[:, 1]).any()
    assert swaps.swapped.mean() == pytest.approx(0.5, abs=0.05)
    again = statistics.subject_swaps(["b", "a", "b", *"cdefghijklm"], 300, np.random.default_rng(0))
    np.testing.assert_array_equal(swaps.swapped, again.swapped)


def test_without_permutations_or_figures_there_is_no_p_value() -> None:
    none = statistics.subject_swaps(["a", "b"], 0, np.random.default_rng(0))
    assert np.isnan(statistics.permutation_p_values(statistics.paired_means({"m": [1, 2]}, {"m": [3, 4]}), none)["m"])
    two = statistics.subject_swaps(["a", "b"], 4, np.random.default_rng(0))
    undefined = statistics.permutation_p_values(lambda weights: {"m": np.full(len(weights), np.nan)}, two)
    assert np.isnan(undefined["m"])


def test_counts_on_a_finer_grid_weigh_by_their_area() -> None:
    """A map on a grid of twice the side, each pixel four times, is the same map."""
    generator = np.random.default_rng(4)
    truth = lesions(generator)
    maps = generator.random(truth.shape) + truth
    thresholds = metrics.tail_thresholds(maps)
    coarse = metrics.count_above(maps, truth, thresholds, missed=np.arange(16))
    fine = metrics.count_above(maps.repeat(4, axis=1), truth.repeat(4, axis=1), thresholds, missed=4 * np.arange(16))
    paired = statistics.paired_counts(coarse, fine, area_ratio=0.25)
    for counted in (paired.predicted, paired.true_positive, paired.pixels, paired.lesion, paired.missed):
        np.testing.assert_array_equal(counted[:16], counted[16:])


def sample(method: str, values: np.ndarray, weights: np.ndarray, draws: int = 1) -> Sample:
    about = {**ABOUT, "method": method} | ({"draws": draws} if draws > 1 else {})
    return Sample(about, 8 * draws, {"m": float(values.mean())}, statistics.weighted_means({"m": values}, weights))


def test_every_method_is_compared_with_thor_and_the_floor() -> None:
    generator = np.random.default_rng(5)
    subjects = [str(case) for case in range(30)]
    weights = metrics.subject_resamples(subjects, 400, generator)
    hardness = generator.normal(0, 1, 30)  # of a case, for every method
    of_case = [hardness + generator.normal(mean, 0.1, 30) for mean in (0.0, 0.3)]
    of_case.append(of_case[0] + 0.1 * (-1.0) ** np.arange(30))  # better as often as worse
    samples = [sample(name, values, weights) for name, values in zip(("zscore", "thor", "ddpm"), of_case, strict=True)]
    found = statistics.versus(
        samples,
        lambda first, second: statistics.paired_means({"m": of_case[first]}, {"m": of_case[second]}),
        statistics.subject_swaps(subjects, 200, generator),
    )
    assert [[entry["reference"]["method"] for entry in entries] for entries in found] == [
        ["thor"],
        ["zscore"],
        ["thor", "zscore"],
    ]
    above = found[1][0]
    assert above["difference"] == pytest.approx((of_case[1] - of_case[0]).mean())
    low, high = above["interval"]
    assert 0.2 < low < above["difference"] < high < 0.4  # what is hard for both cancels
    assert above["p_value"] == 1 / 201 == found[0][0]["p_value"]
    assert found[0][0]["difference"] == pytest.approx(-above["difference"])
    assert found[2][1]["difference"] == pytest.approx(0, abs=1e-12)
    assert found[2][1]["p_value"] == 1


def test_each_cost_is_compared_with_the_reference_at_that_cost() -> None:
    subjects = [str(case) for case in range(10)]
    weights = metrics.subject_resamples(subjects, 20, np.random.default_rng(0))
    asked = [("thor", 1), ("thor", 5), ("ddpm", 1), ("ddpm", 5)]
    samples = [sample(name, np.full(10, 10.0 * number), weights, draws) for number, (name, draws) in enumerate(asked)]
    found = statistics.versus(
        samples,
        lambda first, second: statistics.paired_means({"m": np.zeros(10)}, {"m": np.zeros(10)}),
        statistics.subject_swaps(subjects, 20, np.random.default_rng(0)),
    )
    assert found[:2] == [[], []], "the reference isn't compared with itself at another cost"
    assert [entries[0]["difference"] for entries in found[2:]] == [20, 20]
    assert [entries[0]["reference"].get("draws", 1) for entries in found[2:]] == [1, 5]


def test_without_thor_the_first_method_is_the_reference() -> None:
    methods = [{"method": name} for name in ("ddpm", "zscore", "anoddpm")]
    assert statistics.references(methods) == [0, 1]
    assert statistics.references(methods[1:]) == [0]
    assert statistics.references([*methods, {"method": "thor"}, {"method": "thor"}]) == [3, 1]
