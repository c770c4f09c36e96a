"""Values of a method's own options, given by name."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from thorad.apps.calibrate import calibrate_files, save_calibration
from thorad.detector import Detector
from thorad.errors import ThoradError
from thorad.io.images import write_png16
from thorad.io.scans import find_scans
from thorad.methods.autoddpm import PUBLISHED_THRESHOLD, AutoDdpmOptions
from thorad.methods.settings import with_settings
from thorad.methods.thor import ThorOptions
from thorad.methods.zscore import ZScoreOptions


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ({"threshold": "0.13"}, {"threshold": PUBLISHED_THRESHOLD}),
        ({"resamplings": "2", "threshold": 0.5}, {"resamplings": 2, "threshold": 0.5}),
    ],
)
def test_text_is_read_as_the_option_has_it(text: dict[str, Any], value: dict[str, Any]) -> None:
    assert with_settings("autoddpm", AutoDdpmOptions(), text) == AutoDdpmOptions(**value)


def test_options_of_thor() -> None:
    given = {"harmonise_at": "200,50", "perceptual": "false", "window": "7", "mean": "last", "harmonise": "none"}
    options = with_settings("thor", ThorOptions(), given)
    assert options == ThorOptions(harmonise_at=(200, 50), perceptual=False, window=7, mean="last", harmonise="none")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"level": 3}, "method 'thor' has no option 'level' to set. It has harmonise_at, harmonise, window"),
        ({"steps": 3}, "has no option 'steps'"),  # the detector's own argument
        ({"window": "8"}, "window is 8, expected a positive odd number"),
        ({"window": "wide"}, "option 'window' of method 'thor' can't be 'wide'"),
        ({"mean": "geometric"}, "can't be 'geometric': Input should be 'harmonic', 'arithmetic' or 'last'"),
        ({"harmonise_at": "300"}, "method 'thor' can't run so: harmonise_at .300,. must lie in 0 ... 250"),
    ],
)
def test_what_is_no_option_is_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ThoradError, match=message):
        with_settings("thor", ThorOptions(), given)


def test_what_the_model_decides_can_not_be_set() -> None:
    options = ZScoreOptions(torch.zeros(1, 2, 2), torch.ones(1, 2, 2), torch.ones(2, 2, dtype=torch.bool))
    with pytest.raises(ThoradError, match=r"'zscore' has no option 'mean' to set\. It has two_sided, tolerance"):
        with_settings("zscore", options, {"mean": 1})


def test_a_detector_says_what_was_set(tiny_model: Path) -> None:
    plain = Detector(tiny_model, device="cpu")
    assert plain.provenance()["settings"] is None
    set_to = Detector(tiny_model, device="cpu", settings={"harmonise_at": "200,100", "window": "13"})
    assert set_to.provenance()["settings"] == {"harmonise_at": [200, 100], "window": 13}
    assert set_to.network_calls == 2 * (3 + 1), "two draws: 250, 200, 100 and one anew"
    assert set_to.provenance()["settings_sha256"] != plain.provenance()["settings_sha256"]
    same = Detector(tiny_model, device="cpu", settings={"window": None, "harmonise": "guided"})
    assert same.provenance() == plain.provenance(), "the paper's values are no settings"


def test_autoddpm_takes_its_threshold_from_healthy_scans(tiny_model: Path, tmp_path: Path) -> None:
    """`thorad calibrate --method autoddpm-mask` measures it; 5 % of those scans' pixels exceed it."""
    rng = np.random.default_rng(0)
    for name in "abcdefghij":
        write_png16(tmp_path / "healthy" / f"{name}.png", rng.random((32, 32)))
    options: dict[str, Any] = {"noise": "gaussian", "steps": 1, "device": "cpu"}
    mask = Detector(tiny_model, method="autoddpm-mask", **options)
    assert (mask.network_calls, mask.draws) == (1, 1)
    summary = calibrate_files(mask, find_scans([tmp_path / "healthy"]), level=0.1)
    folder = save_calibration(summary.calibration, tiny_model, tmp_path / "model")
    auto = Detector(folder, method="autoddpm", **options)
    threshold = summary.calibration.thresholds[0.05]
    assert threshold > 0
    assert auto.options.threshold == threshold
    assert auto.provenance()["settings"] == {"threshold": threshold}
    images = torch.stack([image for image in _model_inputs(tmp_path / "healthy")])
    maps = mask.model_maps(images, list("abcdefghij"))
    assert float((maps > threshold).float().mean()) == pytest.approx(0.05, abs=0.001)
    assert Detector(folder, method="autoddpm", settings={"threshold": 0.13}, **options).options.threshold == 0.13
    others = {**options, "steps": 2}
    assert Detector(folder, method="autoddpm", **others).options.threshold is None, "a mask of other steps is another"
    assert Detector(tiny_model, method="autoddpm", **options).options.threshold is None


def _model_inputs(folder: Path) -> list[torch.Tensor]:
    from thorad.io.images import read_image
    from thorad.io.preprocess import to_model_input

    return [to_model_input(read_image(path).pixels, 32)[0] for path in sorted(folder.iterdir())]
