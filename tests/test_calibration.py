import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from scipy.stats import binom

from thorad.calibration import (
    Calibration,
    calibrate_maps,
    conformal_p_value,
    format_options,
    map_options,
    matching_calibration,
    pixel_thresholds,
    read_calibrations,
    same_options,
    scans_needed,
    with_calibration,
)
from thorad.errors import ThoradError

PROVENANCE = {
    "method": "thor",
    "noise": "simplex",
    "steps": 1,
    "finish": False,
    "seed": 0,
    "model": "tiny",
    "model_sha256": "5" * 64,
    "perceptual_weights_sha256": None,
    "device": "cpu",
    "precision": "float32",
    "batch_size": 1,
    "thorad": "0.1.0",
}


def calibration(scores: tuple[float, ...] = (1.0, 2.0, 2.0, 4.0), **provenance: object) -> Calibration:
    maps = np.linspace(0, 1, 4 * 25, dtype=np.float32).reshape(4, 5, 5)
    return calibrate_maps(maps, scores, np.ones((5, 5), bool), {**PROVENANCE, **provenance})


# ---- p-values


@pytest.mark.parametrize(
    ("score", "expected"),
    [(0.5, 1.0), (1.0, 1.0), (1.5, 4 / 5), (2.0, 4 / 5), (3.0, 2 / 5), (4.0, 2 / 5), (4.1, 1 / 5), (np.nan, 1.0)],
)
def test_p_value_by_hand(score: float, expected: float) -> None:
    """Ties count against the finding, and so does a score that is not a number."""
    assert conformal_p_value(score, [2.0, 1.0, 4.0, 2.0]) == pytest.approx(expected)
    assert calibration().p_value(score) == pytest.approx(expected)


def p_values_of_healthy(
    draw: Callable[[np.random.Generator, int], np.ndarray], n: int, trials: int = 6000
) -> np.ndarray:
    """Every trial has a calibration set of its own."""
    generator = np.random.default_rng(n)
    scores = draw(generator, trials * (n + 1)).reshape(trials, n + 1)
    return np.array([conformal_p_value(row[0], row[1:]) for row in scores])


ALPHAS = np.concatenate([np.linspace(0.01, 0.99, 99), [1 / 59, 1 / 20, 2 / 59]])


@pytest.mark.parametrize("n", [19, 58])
def test_p_values_of_healthy_scans_are_uniform(n: int) -> None:
    """Without ties P(p <= a) = floor(a (n + 1)) / (n + 1), whatever the scores' distribution; six standard errors."""
    p_values = p_values_of_healthy(lambda generator, size: generator.lognormal(0, 2, size), n)
    share = (p_values[:, None] <= ALPHAS + 1e-12).mean(0)
    exact = np.floor(ALPHAS * (n + 1) + 1e-9) / (n + 1)
    error = 6 * np.sqrt(exact * (1 - exact) / len(p_values))
    assert (np.abs(share - exact) <= error + 1e-12).all()
    assert p_values.min() == pytest.approx(1 / (n + 1))


@pytest.mark.parametrize("n", [19, 58])
@pytest.mark.parametrize("values", [2, 5, 40])
def test_p_values_are_valid_with_ties(n: int, values: int) -> None:
    p_values = p_values_of_healthy(lambda generator, size: generator.integers(values, size=size), n)
    share = (p_values[:, None] <= ALPHAS + 1e-12).mean(0)
    assert (share <= ALPHAS + 6 * np.sqrt(ALPHAS * (1 - ALPHAS) / len(p_values))).all()
    assert (share > 0).any(), "and not by giving 1 to all"


def test_p_values_are_valid_for_scans_that_depend_on_each_other() -> None:
    """Exchangeable is enough: one scanner's offset, common to all scores of a trial, does not matter."""
    generator = np.random.default_rng(3)
    rows = generator.normal(size=(6000, 20)) + 5 * generator.normal(size=(6000, 1))
    low = sum(conformal_p_value(row[0], row[1:]) <= 0.05 for row in rows)
    assert binom.ppf(1e-4, 6000, 0.05) <= low <= binom.ppf(1 - 1e-4, 6000, 0.05)


@pytest.mark.parametrize(
    ("level", "needed"), [(0.05, 19), (0.01, 99), (0.1, 9), (0.001, 999), (0.5, 1), (0.9, 1), (0.03, 33), (1 / 59, 58)]
)
def test_scans_needed(level: float, needed: int) -> None:
    assert scans_needed(level) == needed
    assert conformal_p_value(1, np.zeros(needed)) <= level + 1e-12
    assert needed == 1 or conformal_p_value(1, np.zeros(needed - 1)) > level


@pytest.mark.parametrize("level", [0, 1, -0.1, 5, float("nan")])
def test_levels_that_are_none(level: float) -> None:
    with pytest.raises(ThoradError, match="expected a number between 0 and 1"):
        scans_needed(level)


# ---- thresholds


@pytest.mark.parametrize("decimals", [1, 8])
def test_thresholds_keep_the_rate_over_the_pooled_pixels_of_the_region(rng: np.random.Generator, decimals: int) -> None:
    maps = rng.gamma(1, size=(7, 20, 20)).round(decimals).astype(np.float32)
    region = np.zeros((20, 20), bool)
    region[3:17, 4:18] = True
    maps[:, ~region] = 1e6
    inside = maps[:, region]
    thresholds = pixel_thresholds(maps, region)
    assert list(thresholds) == [0.01, 0.02, 0.05]
    for rate, threshold in thresholds.items():
        assert (inside > threshold).mean() <= rate
        next_lower = inside[inside < threshold].max()
        assert (inside > next_lower).mean() > rate, "no smaller threshold would do"


def test_thresholds_by_hand() -> None:
    maps = np.arange(1, 101, dtype=np.float32).reshape(1, 10, 10)
    assert pixel_thresholds(maps, np.ones((10, 10), bool), (0.01, 0.05, 0.5)) == {0.01: 99, 0.05: 95, 0.5: 50}


# ---- a calibration


def test_what_a_calibration_holds() -> None:
    found = calibration((4.0, 2.0, 1.0, 2.0), seed=5, device="cuda", precision="bfloat16", batch_size=8, finish=True)
    assert found.scores == (1.0, 2.0, 2.0, 4.0)
    assert found.scans == 4
    assert found.model_sha256 == "5" * 64
    assert found.options == {"method": "thor", "noise": "simplex", "steps": 1, "perceptual_weights_sha256": None}
    assert found == calibration(), "what doesn't change the map is no option"
    assert found.sha256 == calibration().sha256
    assert len({found.sha256, calibration(steps=2).sha256, calibration((1.0, 2.0, 3.0, 4.0)).sha256}) == 3


def test_json_round_trip() -> None:
    found = replace(calibration((0.1, 1 / 3, 1e-7, 2.5)), thresholds={0.01: float(np.float32(0.1)), 0.05: 1e-3})
    assert Calibration.from_json(json.loads(json.dumps(found.to_json()))) == found


@pytest.mark.parametrize(
    "change",
    [
        {"scores": []},
        {"scores": [1.0, 2.0]},
        {"scores": [2.0, 1.0, 3.0, 4.0]},
        {"scores": [1.0, 2.0, 3.0, float("nan")]},
        {"scores": "many"},
        {"thresholds": {}},
        {"thresholds": {"0.01": float("inf")}},
        {"thresholds": {"often": 1}},
        {"thresholds": {"1.5": 1}},
        {"thresholds": [1]},
        {"options": 3},
        {"scans": 5},
    ],
)
def test_damaged_calibrations_are_refused(change: dict[str, Any]) -> None:
    content = {"weights_sha256": "x", "calibrations": [{**calibration().to_json(), **change}]}
    with pytest.raises(ThoradError, match=r"model 'm': damaged calibration .* calibrate anew"):
        read_calibrations(content, "model 'm'")


def test_missing_entries_are_refused() -> None:
    for name in calibration().to_json():
        content = calibration().to_json()
        del content[name]
        with pytest.raises(ThoradError, match="damaged calibration"):
            read_calibrations({"calibrations": [content]}, "model 'm'")
    for content in (3, [3], ["x"]):  # type: ignore[assignment]
        with pytest.raises(ThoradError, match="damaged calibration"):
            read_calibrations({"calibrations": content}, "model 'm'")


def test_a_newer_calibration_replaces_the_one_of_the_same_options() -> None:
    content: dict[str, Any] = {"weights_sha256": "x", "thorad": "0.1.0"}
    assert read_calibrations(content, "m") == []
    for made in (calibration(), calibration(steps=2), calibration((1.0, 2.0, 3.0, 5.0))):
        content = with_calibration(content, made, "m")
    assert content["weights_sha256"] == "x"
    assert read_calibrations(content, "m") == [calibration(steps=2), calibration((1.0, 2.0, 3.0, 5.0))]


def test_the_matching_calibration() -> None:
    made = [calibration(), calibration(method="zscore", noise=None, steps=None)]
    assert matching_calibration(made, {**PROVENANCE, "seed": 9, "device": "cuda"}) == made[0]
    assert matching_calibration(made, {**PROVENANCE, "method": "zscore", "noise": None, "steps": None}) == made[1]
    for other in ({"steps": 2}, {"noise": "gaussian"}, {"perceptual_weights_sha256": "7"}, {"preset": "published"}):
        assert matching_calibration(made, {**PROVENANCE, **other}) is None
    assert matching_calibration(made, {**PROVENANCE, "preset": None}) == made[0], "not set, as before it was known"
    # Scores of one draw scatter more than those of two: thresholds and p-values of one don't hold for the other.
    assert matching_calibration(made, {**PROVENANCE, "draws": 1}) == made[0], "of before there were draws"
    assert matching_calibration(made, {**PROVENANCE, "draws": 2}) is None
    assert matching_calibration([calibration(draws=2)], {**PROVENANCE, "draws": 2}) == calibration(draws=2)
    assert matching_calibration([calibration(draws=2)], PROVENANCE) is None
    assert matching_calibration([], PROVENANCE) is None


def test_the_false_positive_rate() -> None:
    made = [calibration()]
    assert made[0].checked_rate(None) == 0.01
    assert made[0].checked_rate(0.05) == 0.05
    with pytest.raises(ThoradError, match=r"is 0\.03, but the model is calibrated for 0\.01, 0\.02, 0\.05"):
        matching_calibration(made, PROVENANCE, 0.03)


def test_other_options_are_told() -> None:
    made = [calibration(), calibration(method="zscore", noise=None, steps=None)]
    asked = {**PROVENANCE, "steps": "all", "perceptual_weights_sha256": "abcdef0123456789"}
    with pytest.raises(
        ThoradError,
        match=r"calibrated with method thor, noise simplex, steps 1; calibrated with method zscore; asked: "
        r"method thor, noise simplex, steps all, perceptual weights sha256 abcdef012345\.\.\.\.",
    ):
        matching_calibration(made, asked, 0.01)
    with pytest.raises(ThoradError, match=r"not calibrated at all; asked: method thor, .*`thorad calibrate` makes one"):
        matching_calibration([], PROVENANCE, 0.01)


@pytest.mark.parametrize("rate", [None, 0.01])
def test_a_calibration_of_another_model_is_refused(rate: float | None) -> None:
    made = [calibration(), calibration(model_sha256="6" * 64, steps=7)]
    with pytest.raises(ThoradError, match=r"model 'tiny' has a calibration of another model .*666666666666\.\.\."):
        matching_calibration(made, PROVENANCE, rate)


def test_options_in_words() -> None:
    assert format_options(map_options(PROVENANCE)) == "method thor, noise simplex, steps 1"
    assert same_options({"a": 1, "b": None}, {"a": 1})
    assert not same_options({"a": 1, "b": 0}, {"a": 1})


def test_a_preset_of_earlier_versions_is_a_method_now() -> None:
    """Options without a preset stay as they are, so that the digest does, too."""
    made = calibrate_maps(np.ones((3, 4, 4), np.float32), [1, 2, 3], np.ones((4, 4), bool), PROVENANCE)
    content = made.to_json()
    unset = {**content, "options": {**content["options"], "preset": None}}
    assert Calibration.from_json(unset).options == unset["options"]
    preset = {**content, "options": {**content["options"], "preset": "published"}}
    read = Calibration.from_json(preset)
    assert read.options == {**content["options"], "method": f"published-{PROVENANCE['method']}", "draws": 1}
    assert matching_calibration([read], {**PROVENANCE, "method": f"published-{PROVENANCE['method']}"}) == read
