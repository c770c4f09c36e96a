"""What healthy scans say about a map and a score: thresholds by false-positive pixels, and conformal p-values.

A calibration holds for one model and for the options that decide the map, so it knows both. It needs no labels: only
healthy scans that the model was not trained on, from the same source as the scans that are to be judged.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import ArrayLike, NDArray

from thorad.errors import ThoradError
from thorad.evaluation.metrics import threshold_at_fpr
from thorad.io.tables import listing
from thorad.records import current_options

FALSE_POSITIVE_RATES: Final = (0.01, 0.02, 0.05)
"""Shares of the healthy pixels that may exceed the thresholds."""

WITHOUT_EFFECT: Final = {
    *("seed", "device", "engine", "precision", "batch_size", "finish"),
    *("model", "model_sha256", "thorad"),
}
"""Entries of a detector's provenance that are no options of the map: they leave its distribution as it is, or stand
elsewhere in a calibration."""


def pixel_thresholds(
    maps: ArrayLike, region: NDArray[np.bool_], rates: Sequence[float] = FALSE_POSITIVE_RATES
) -> dict[float, float]:
    """The thresholds, in map units, that at most these shares, in [0, 1), of the healthy scans' pixels exceed.

    The pixels of the maps (N, S, S) in the model's region (S, S) are pooled over the scans. A pixel is predicted when
    it is above the threshold.
    """
    inside = np.asarray(maps)[:, region]
    return {rate: threshold_at_fpr(inside, rate) for rate in rates}


def conformal_p_value(score: float, healthy_scores: ArrayLike) -> float:
    """Rank a score among those of n healthy scans (one or more): p = (1 + number of healthy scores >= it) / (n + 1).

    The higher the score, the less healthy the scan; NaN gives 1. Where the scan is healthy, and exchangeable with the
    n, p <= a with a probability of at most a, for every a and every distribution of the scores; ties only make it
    smaller. This holds on average over calibration sets: for one set the rate is spread around a as a Beta variable of
    n draws is.

    Sources: V. Vovk, A. Gammerman and G. Shafer, Algorithmic Learning in a Random World, 2005 (chapter 2); S. Bates,
    E. Candès, L. Lei, Y. Romano and M. Sesia, Testing for outliers with conformal p-values, Annals of Statistics 51,
    2023 (equation 1).
    """
    healthy = np.asarray(healthy_scores, np.float64)
    return (1 + int(np.count_nonzero(~(healthy < score)))) / (healthy.size + 1)


def scans_needed(level: float) -> int:
    """How many healthy scans make a p-value of at most `level` possible: the smallest n with 1 / (n + 1) <= level.

    Raises:
        ThoradError: the level isn't between 0 and 1.
    """
    if not 0 < level < 1:
        raise ThoradError(f"the level is {level:g}, expected a number between 0 and 1, such as 0.05.")
    # The tiny subtrahend keeps 1 / 0.05 from becoming 21 for the sake of a rounding error.
    return max(1, math.ceil(1 / level - 1e-9) - 1)


@dataclass(frozen=True)
class Calibration:
    """What one set of healthy scans said about one model with one set of options."""

    options: Mapping[str, Any]  # all that decides the map, as `map_options` takes it from a detector's provenance
    model_sha256: str  # of the model's weights
    thresholds: Mapping[float, float]  # {share of false-positive pixels: threshold in map units}
    scores: tuple[float, ...]  # of the healthy scans, rising
    thorad: str  # the version that made it

    @property
    def scans(self) -> int:
        """How many healthy scans it comes from."""
        return len(self.scores)

    @property
    def sha256(self) -> str:
        """Of all that it says: two calibrations with one digest give the same results."""
        return hashlib.sha256(json.dumps(self.to_json(), sort_keys=True).encode()).hexdigest()

    def p_value(self, score: float) -> float:
        """`conformal_p_value` among its scores."""
        return conformal_p_value(score, self.scores)

    def checked_rate(self, asked: float | None) -> float:
        """The asked share of false-positive pixels, for which there must be a threshold; for None the smallest."""
        if asked is None:
            return min(self.thresholds)
        if asked not in self.thresholds:
            known = ", ".join(f"{rate:g}" for rate in sorted(self.thresholds))
            raise ThoradError(
                f"the share of false-positive pixels is {asked:g}, but the model is calibrated for {known}. "
                "Choose one of these."
            )
        return asked

    def to_json(self) -> dict[str, Any]:
        """As calibration.json keeps it."""
        return {
            "options": dict(self.options),
            "model_sha256": self.model_sha256,
            "scans": self.scans,
            "thresholds": {f"{rate:g}": threshold for rate, threshold in sorted(self.thresholds.items())},
            "scores": list(self.scores),
            "thorad": self.thorad,
        }

    @classmethod
    def from_json(cls, content: Any) -> Calibration:
        """Read what `to_json` gave, now or in an earlier version.

        Raises:
            ValueError: something is missing, of another kind, or contradicts the rest.
        """
        try:
            thresholds = {float(rate): float(threshold) for rate, threshold in content["thresholds"].items()}
            options = dict(content["options"])
            found = cls(
                options=map_options(current_options(options)) if options.get("preset") else options,
                model_sha256=str(content["model_sha256"]),
                thresholds=thresholds,
                scores=tuple(float(score) for score in content["scores"]),
                thorad=str(content["thorad"]),
            )
            scans = content["scans"]
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"not a calibration: {error!r}") from error
        if not found.scores or scans != found.scans:
            raise ValueError(f"{found.scans} scores of {scans!r} scans")
        if not np.isfinite([*found.scores, *thresholds.values()]).all() or list(found.scores) != sorted(found.scores):
            raise ValueError("scores and thresholds must be finite, and the scores rising")
        if not thresholds or not all(0 <= rate < 1 for rate in thresholds):
            raise ValueError(f"thresholds for the shares {listing([f'{rate:g}' for rate in thresholds])}")
        return found


def calibrate_maps(
    maps: NDArray[np.float32], scores: ArrayLike, region: NDArray[np.bool_], provenance: Mapping[str, Any]
) -> Calibration:
    """Make a calibration from the maps (N, S, S) and scores (N,) of healthy scans, in the model's region (S, S).

    `provenance` is that of the detector that made them (`Detector.provenance`).
    """
    return Calibration(
        options=map_options(provenance),
        model_sha256=str(provenance["model_sha256"]),
        thresholds=pixel_thresholds(maps, region),
        scores=tuple(np.sort(np.asarray(scores, np.float64)).tolist()),
        thorad=str(provenance["thorad"]),
    )


def map_options(provenance: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a detector's provenance that decides the map: method, noise, steps and whatever else it has."""
    return {name: value for name, value in provenance.items() if name not in WITHOUT_EFFECT}


def same_options(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether two sets of options are one; an option that one of them doesn't know is None there, `draws` is 1."""
    one, other = {"draws": 1, **one}, {"draws": 1, **other}
    return all(one.get(name) == other.get(name) for name in one.keys() | other.keys())


def format_options(options: Mapping[str, Any]) -> str:
    """Options in words, without those that are not set, and one draw: `method thor, noise simplex, steps 1`."""
    options = {**options, **(options.get("settings") or {}), "settings": None}
    return ", ".join(
        f"{name.replace('_', ' ')} {f'{value[:12]}...' if name.endswith('sha256') else value}"
        for name, value in options.items()
        if value not in (None, False) and name != "settings_sha256" and (name, value) != ("draws", 1)
    )


def read_calibrations(content: Mapping[str, Any], source: str) -> list[Calibration]:
    """The calibrations, if any, in the content of a model's calibration.json.

    Raises:
        ThoradError: one of them is damaged; `source` says whose.
    """
    try:
        return [Calibration.from_json(entry) for entry in content.get("calibrations", [])]
    except (ValueError, TypeError) as error:
        raise ThoradError(
            f"{source}: damaged calibration ({error}). "
            'Remove the entry "calibrations" from the model\'s calibration.json, and calibrate anew.'
        ) from error


def with_calibration(content: Mapping[str, Any], calibration: Calibration, source: str) -> dict[str, Any]:
    """The content of a model's calibration.json with one more; an older calibration of the same options goes.

    Raises:
        ThoradError: as `read_calibrations`.
    """
    known = read_calibrations(content, source)
    others = [other for other in known if not same_options(other.options, calibration.options)]
    return {**content, "calibrations": [kept.to_json() for kept in (*others, calibration)]}


def matching_calibration(
    calibrations: Sequence[Calibration], provenance: Mapping[str, Any], asked_rate: float | None = None
) -> Calibration | None:
    """Find the calibration of a detector, by its provenance, among its model's.

    Raises:
        ThoradError: one of them is another model's; a user asked for a share of false-positive pixels (`asked_rate`),
            and none of them was made with the detector's options, or has that share.
    """
    model, sha256 = provenance["model"], str(provenance["model_sha256"])
    foreign = [calibration.model_sha256 for calibration in calibrations if calibration.model_sha256 != sha256]
    if foreign:
        raise ThoradError(
            f"model {model!r} has a calibration of another model (made with weights of sha256 {foreign[0][:12]}..., "
            f"the model's is {sha256[:12]}...): its thresholds and p-values would be wrong. "
            'Remove the entry "calibrations" from the model\'s calibration.json, and calibrate anew.'
        )
    wanted = map_options(provenance)
    for calibration in calibrations:
        if same_options(calibration.options, wanted):
            calibration.checked_rate(asked_rate)
            return calibration
    if asked_rate is not None:
        made = "; ".join(f"calibrated with {format_options(calibration.options)}" for calibration in calibrations)
        raise ThoradError(
            f"model {model!r} has no calibration for these options, so no threshold for {asked_rate:g} false-positive "
            f"pixels: {made or 'not calibrated at all'}; asked: {format_options(wanted)}. "
            "`thorad calibrate` makes one from healthy scans."
        )
    return None
