"""Calibration over files, and what detection makes of it."""

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch
from scipy.stats import betabinom, binom

import thorad.model
from test_io_dicom import DX, base, blob, save
from test_io_scans import scans_of
from thorad.apps.calibrate import calibrate_command, calibrate_files, own_folder, save_calibration
from thorad.apps.run import detect_files, open_results, result_options
from thorad.calibration import conformal_p_value, read_calibrations
from thorad.check import NOTHING_FOUND, Check
from thorad.detector import Detector
from thorad.errors import ThoradError
from thorad.io.images import Image, read_image
from thorad.io.preprocess import to_model_input
from thorad.io.scans import Scan, find_scans
from thorad.methods import METHODS
from thorad.model import CALIBRATION, CARD, RECIPE, WEIGHTS, load_model, model_folder


def write_scan(path: Path, seed: int) -> Path:
    """Without background: the z-score of the tiny model's would be the highest, and the same in every scan."""
    pixels = 100 + 100 * np.random.default_rng(seed).random((36, 36))
    path.parent.mkdir(parents=True, exist_ok=True)
    PIL.Image.fromarray(pixels.astype(np.uint8)).save(path)
    return path


def scans(folder: Path, count: int) -> dict[str, Path]:
    return {f"h{index}": write_scan(folder / f"h{index}.png", index) for index in range(count)}


@pytest.fixture
def model(tiny_model: Path, tmp_path: Path) -> Path:
    """A copy that a test may calibrate."""
    return Path(shutil.copytree(tiny_model, tmp_path / "model"))


@pytest.fixture
def detector(model: Path) -> Detector:
    return Detector(model, method="zscore", device="cpu")


def test_thresholds_and_scores_are_those_of_the_healthy_maps(detector: Detector, tmp_path: Path) -> None:
    named = scans(tmp_path / "in", 21)
    detector.batch_size = 4  # the last batch is not full
    seen: list[tuple[int, int]] = []
    found = calibrate_files(detector, scans_of(named), on_progress=lambda *now: seen.append(now))
    x = torch.stack([to_model_input(read_image(path).pixels, 32)[0] for path in named.values()])
    maps = detector.model_maps(x, list(named))
    assert found.calibration.scores == tuple(np.sort(detector.scores(maps).numpy()).tolist())
    for rate, threshold in found.calibration.thresholds.items():
        assert 0.8 * rate < (maps.numpy() > threshold).mean() <= rate
    assert (found.failed, found.warning) == ({}, None)
    assert (seen[0], seen[-1]) == ((0, 21), (21, 21))
    assert seen == sorted(seen)


def test_of_a_volume_that_is_left_out_no_slice_counts(
    detector: Detector, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    named = scans(tmp_path / "in", 20)

    def slices(scan: Scan, **_: object) -> list[Image]:
        return [replace(read_image(scan.path), name=f"{scan.name}-{number}") for number in range(2)]

    monkeypatch.setattr("thorad.apps.calibrate.images_of", slices)
    bad = f"{sorted(named)[0]}-1"
    refusal = Check(refusals=("bad slice",))
    monkeypatch.setattr(detector, "check", lambda image: refusal if image.name == bad else NOTHING_FOUND)
    found = calibrate_files(detector, scans_of(named))
    assert (found.calibration.scans, list(found.failed)) == (38, [sorted(named)[0]])


def test_outside_the_brain_nothing_counts_in_a_calibration_either(
    detector: Detector, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    left_half = np.indices((36, 36))[1] < 18

    def slices(scan: Scan, **_: object) -> list[Image]:
        return [replace(read_image(scan.path, scan.name), brain=left_half)]

    monkeypatch.setattr("thorad.apps.calibrate.images_of", slices)
    named = scans(tmp_path / "in", 19)
    found = calibrate_files(detector, scans_of(named)).calibration
    images = [replace(read_image(path), brain=left_half) for path in named.values()]
    np.testing.assert_allclose(found.scores, sorted(one.score for one in detector.detect_batch(images)), rtol=1e-6)
    whole = [one.score for one in detector.detect_batch([replace(image, brain=None) for image in images])]
    assert sorted(whole) != list(found.scores)


def test_a_detection_with_a_calibration(detector: Detector, model: Path, tmp_path: Path) -> None:
    found = calibrate_files(detector, scans_of(scans(tmp_path / "in", 19))).calibration
    assert save_calibration(found, model) == model
    calibrated = Detector(model, method="zscore", device="cpu", seed=3)
    assert calibrated.calibration == found
    assert calibrated.false_positives == 0.01

    pixels = np.asarray(PIL.Image.open(write_scan(tmp_path / "x.png", 99)), np.float32)
    pixels[8:12, 7:14] = 0  # the map is high where it is dark
    image = Image(pixels, "x.png", "x", spacing=(2.0, 0.5))
    detection = calibrated.detect(image)
    assert detection.mask is not None
    assert detection.findings
    np.testing.assert_array_equal(detection.mask, detection.anomaly_map > found.thresholds[0.01])
    assert detection.mask.shape == (36, 36)
    assert detection.p_value == conformal_p_value(detection.score, found.scores)
    row, column = detection.findings[0].peak_position
    assert detection.anomaly_map[row, column] == detection.anomaly_map.max() == np.float32(detection.findings[0].peak)
    assert sum(finding.pixels for finding in detection.findings) == detection.mask.sum()
    assert detection.findings[0].area_mm2 == detection.findings[0].pixels

    more = Detector(model, method="zscore", device="cpu", false_positives=0.05).detect(image)
    assert more.mask is not None
    assert more.mask.sum() > detection.mask.sum()
    assert (more.mask >= detection.mask).all()
    assert more.p_value == detection.p_value

    plain = detector.detect(image)
    assert (plain.p_value, plain.mask, plain.findings) == (None, None, None)
    assert Detector(model, method="zscore-two-sided", device="cpu").calibration is None
    with pytest.raises(ThoradError, match="calibrated with method zscore; asked: method thor, noise gaussian, steps 4"):
        Detector(model, noise="gaussian", steps=4, device="cpu", false_positives=0.02)


@pytest.mark.parametrize("above", [0.5, 2.0])
def test_a_calibration_makes_a_method_s_own_threshold_stricter_never_laxer(
    detector: Detector, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, above: float
) -> None:
    found = calibrate_files(detector, scans_of(scans(tmp_path / "in", 19))).calibration
    save_calibration(found, model)
    strict = found.thresholds[0.01]
    own = {**METHODS, "zscore": replace(METHODS["zscore"], own_threshold=above * strict)}
    monkeypatch.setattr("thorad.detector.METHODS", own)
    calibrated = Detector(model, method="zscore", device="cpu")
    assert calibrated.calibration == found, "p-values come either way"
    assert calibrated.threshold == max(strict, above * strict)
    assert calibrated.false_positives == (0.01 if above < 1 else None)
    assert result_options(calibrated)["calibration"] == {
        "false_positives": 0.01 if above < 1 else None,
        "threshold": strict if above < 1 else None,
        "scans": 19,
        "sha256": found.sha256,
    }, "p-values are by it either way"
    assert Detector(model, method="zscore", device="cpu", false_positives=0.05).threshold == found.thresholds[0.05]


def test_results_hold_what_the_calibration_says(detector: Detector, model: Path, tmp_path: Path) -> None:
    healthy = scans(tmp_path / "in", 19)
    save_calibration(calibrate_files(detector, scans_of(healthy)).calibration, model)
    calibrated = Detector(model, method="zscore", device="cpu")
    assert calibrated.calibration is not None
    summary = detect_files(calibrated, scans_of(healthy), open_results(calibrated, tmp_path / "out"))
    # The calibration scans among themselves: score k of 19 from above has k of them at or above it.
    assert sorted(each.p_value for each in summary.verdicts.values()) == pytest.approx(
        [(k + 1) / 20 for k in range(1, 20)]
    )
    ranked = [each.p_value for each in summary.verdicts.values()]
    assert [summary.verdicts[name].p_value for name in summary.done] == sorted(ranked)
    run = json.loads((tmp_path / "out" / "run.json").read_text())
    assert run["options"]["calibration"] == {
        "false_positives": 0.01,
        "threshold": calibrated.calibration.thresholds[0.01],
        "scans": 19,
        "sha256": calibrated.calibration.sha256,
    }
    again = detect_files(calibrated, scans_of(healthy), open_results(calibrated, tmp_path / "out"))
    assert (again.already_done, again.verdicts) == (19, summary.verdicts)

    other_rate = Detector(model, method="zscore", device="cpu", false_positives=0.05)
    with pytest.raises(ThoradError, match=r"other options: calibration \(there .*'false_positives': 0\.01"):
        open_results(other_rate, tmp_path / "out")
    del healthy["h3"]
    save_calibration(
        calibrate_files(detector, scans_of({**healthy, "n": write_scan(tmp_path / "n.png", 77)})).calibration, model
    )
    with pytest.raises(ThoradError, match=r"other options: calibration \(there .*Choose another --out"):
        open_results(Detector(model, method="zscore", device="cpu"), tmp_path / "out")
    with pytest.raises(ThoradError, match=r"other options: calibration \(there .*, now None\)"):
        open_results(detector, tmp_path / "out")


def test_bad_scans_are_left_out_and_told(detector: Detector, tmp_path: Path) -> None:
    named = scans(tmp_path / "in", 22)
    named["h4"].write_bytes(b"not an image")
    mask = np.zeros((36, 36), np.uint8)
    mask[5:20, 5:20] = 255
    PIL.Image.fromarray(mask).save(named["h7"])
    named["gone"] = tmp_path / "gone.png"
    found = calibrate_files(detector, scans_of(named))
    assert found.calibration.scans == 20
    assert set(found.failed) == {"h4", "h7", "gone"}
    for name, reason in found.failed.items():
        assert str(named[name]) in reason
    assert "as a mask or segmentation has" in found.failed["h7"]
    del named["h4"], named["h7"], named["gone"]
    assert calibrate_files(detector, scans_of(named)).calibration == found.calibration


def test_too_few_scans_are_refused(detector: Detector, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    named = scans(tmp_path / "in", 19)
    assert calibrate_files(detector, scans_of(named), level=0.05).calibration.scans == 19
    assert calibrate_files(detector, scans_of({"h0": named["h0"]}), level=0.5).calibration.scans == 1
    with pytest.raises(ThoradError, match=r"down to 0\.01 need 99 healthy scans, found 19\. .*give 80 more, or a high"):
        calibrate_files(detector, scans_of(named), level=0.01)
    named["h5"].write_bytes(b"")
    with pytest.raises(ThoradError, match=r"need 19 healthy scans, found 18 \(1 were left out: .*h5\.png: the file is"):
        calibrate_files(detector, scans_of(named))
    write_scan(named["h5"], 5)
    maps_of = Detector.model_maps

    def broken(self: Detector, x: torch.Tensor, names: list[str]) -> torch.Tensor:
        maps = maps_of(self, x, names)
        maps[0, 0, 3, 3] = torch.nan
        return maps

    monkeypatch.setattr(Detector, "model_maps", broken)
    detector.batch_size = 19
    with pytest.raises(ThoradError, match=r"found 18 \(1 were left out: .*h0\.png: the map is not finite"):
        calibrate_files(detector, scans_of(named))
    assert calibrate_files(detector, scans_of(named), level=0.1).calibration.scans == 18


def test_scans_of_one_subject_are_told(detector: Detector, tmp_path: Path) -> None:
    named = scans(tmp_path / "in", 18)
    for session in (1, 2):
        named[f"r{session}"] = write_scan(tmp_path / "in" / f"sub-01_ses-{session}.png", session + 50)
    warning = calibrate_files(detector, scans_of(named)).warning
    assert warning is not None
    assert warning.startswith("20 scans of 19 subjects: scans of one subject are not independent")


def test_dicom_pictures_calibrate_too(detector: Detector, tmp_path: Path) -> None:
    for index in range(2):
        dataset = base(DX, "DX", blob()[:, :, index] + 1)
        save(dataset, tmp_path / "Mustermann" / f"I{index}")
    (tmp_path / "Mustermann" / "bad.dcm").write_bytes(b"no DICOM at all")
    found = calibrate_files(detector, find_scans([tmp_path]), level=0.5)
    assert found.calibration.scans == 2
    assert found.warning is None
    assert len(found.failed) == 1
    assert "Mustermann" not in str(found.failed)


def test_too_little_memory_is_told(detector: Detector, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: Detector, x: torch.Tensor, names: list[str]) -> Iterator[torch.Tensor]:
        raise torch.OutOfMemoryError

    monkeypatch.setattr(Detector, "model_maps", full)
    with pytest.raises(ThoradError, match="smaller --batch-size"):
        calibrate_files(detector, scans_of(scans(tmp_path / "in", 19)))


# ---- where it goes


def test_in_place_and_in_a_copy(detector: Detector, model: Path, tmp_path: Path) -> None:
    before = {file: (model / file).read_bytes() for file in (WEIGHTS, RECIPE, CARD)}
    named = scans(tmp_path / "in", 20)
    first, second = (
        calibrate_files(detector, scans_of(dict(list(named.items())[start:]))).calibration for start in (0, 1)
    )
    two_sided = calibrate_files(Detector(model, method="zscore-two-sided", device="cpu"), scans_of(named)).calibration
    copy = tmp_path / "new" / "copy"
    assert save_calibration(first, model, copy) == copy
    assert json.loads((model / CALIBRATION).read_text())["calibrations"] == []
    for found in (two_sided, second):
        save_calibration(found, model, copy)
        save_calibration(found, model)
    assert read_calibrations(load_model(copy).calibration, "m") == [two_sided, second]
    save_calibration(first, copy)
    assert read_calibrations(load_model(copy).calibration, "m") == [two_sided, first]
    assert read_calibrations(load_model(model).calibration, "m") == [two_sided, second]
    for folder in (model, copy):
        assert {file: (folder / file).read_bytes() for file in before} == before
        assert sorted(path.name for path in folder.iterdir()) == sorted([*before, CALIBRATION])
    assert Detector(copy, method="zscore", device="cpu").calibration == first


def test_a_bundled_model_is_not_written_to(
    detector: Detector, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ThoradError, match=r"'brain-t1-compact' comes with thorad and is not written to\. Give --out"):
        own_folder("brain-t1-compact", None)
    bundled = model_folder("brain-t1-compact")
    with pytest.raises(ThoradError, match="comes with thorad"):
        own_folder(bundled, None)
    assert own_folder("brain-t1-compact", bundled) == bundled, "by those who mean it"
    assert own_folder("brain-t1-compact", tmp_path / "copy") == tmp_path / "copy"

    found = calibrate_files(detector, scans_of(scans(tmp_path / "in", 19))).calibration
    monkeypatch.setattr(thorad.model, "_bundled", lambda: tmp_path)
    with pytest.raises(ThoradError, match="comes with thorad"):
        save_calibration(found, "model")
    assert save_calibration(found, "model", model) == model
    assert Detector("model", method="zscore", device="cpu").calibration == found


def test_a_folder_of_something_else_is_refused(
    detector: Detector, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(ThoradError, match="a file stands where a model folder is needed"):
        own_folder(model, tmp_path / "file")
    write_scan(tmp_path / "pictures" / "a.png", 0)
    with pytest.raises(ThoradError, match="holds something else than model"):
        own_folder(model, tmp_path / "pictures")
    (tmp_path / "empty").mkdir()
    assert own_folder(model, tmp_path / "empty") == tmp_path / "empty"
    other = Path(shutil.copytree(model, tmp_path / "other"))
    (other / RECIPE).write_text((other / RECIPE).read_text() + "\n")
    with pytest.raises(ThoradError, match="holds something else than model"):
        own_folder(model, other)
    found = calibrate_files(detector, scans_of(scans(tmp_path / "in", 19))).calibration
    (model / CALIBRATION).write_text(json.dumps({"weights_sha256": "0" * 64}))
    with pytest.raises(ThoradError, match="is of another model"):
        save_calibration(found, model)
    for damaged in ("[]", "{", "\xff"):
        (model / CALIBRATION).write_text(damaged, encoding="latin-1")
        with pytest.raises(ThoradError, match=r"calibration\.json: "):
            save_calibration(found, model)


def test_a_calibration_copied_from_another_model_is_refused(detector: Detector, model: Path, tmp_path: Path) -> None:
    """The bundled model with the tiny one's numbers: the sha256 of the weights beside them tells."""
    other = Path(shutil.copytree(model_folder("brain-t1-compact"), tmp_path / "other"))
    save_calibration(calibrate_files(detector, scans_of(scans(tmp_path / "in", 19))).calibration, model)
    mine, theirs = (json.loads((folder / CALIBRATION).read_text()) for folder in (model, other))
    (other / CALIBRATION).write_text(json.dumps({**theirs, "calibrations": mine["calibrations"]}))
    for false_positives in (None, 0.01):
        with pytest.raises(ThoradError, match="'brain-t1-compact' has a calibration of another model"):
            Detector(other, method="zscore", device="cpu", false_positives=false_positives)
    shutil.copy(model / CALIBRATION, other / CALIBRATION)
    with pytest.raises(ThoradError, match="the weights changed"):
        Detector(other, method="zscore", device="cpu")


def test_the_command_that_makes_it(model: Path, tmp_path: Path) -> None:
    detector = Detector(model, noise="gaussian", device="cpu", seed=4)
    assert calibrate_command(detector, model) == (
        f"thorad calibrate HEALTHY --model {model} --method thor --noise gaussian --steps 1"
    )
    assert calibrate_command(Detector(method="zscore", device="cpu"), "brain-t1-compact") == (
        "thorad calibrate HEALTHY --model brain-t1-compact --method zscore --out FOLDER"
    )
    weights = tmp_path / "squeeze.pth"
    weights.write_bytes(b"abc")
    detector.perceptual_weights = detector._lpips_weights = weights
    assert calibrate_command(detector, model).endswith(" --steps 1 --perceptual-weights FILE")


# ---- does it hold?


def test_p_values_of_healthy_scans_that_were_not_calibrated_on(shared_data: Path, tmp_path: Path) -> None:
    """58 real healthy scans, a random half calibrates; of the other half, at most one in twenty has p <= 0.05.

    With 29 calibration scans, the number of 29 others with p <= k / 30 is a Beta-binomial variable (29, k, 30 - k).
    """
    named = find_scans([shared_data / "stroke-bench" / "healthy"])
    assert len(named) == 58
    order = np.random.default_rng(0).permutation(sorted(named)).tolist()
    halves = [{name: named[name] for name in order[start::2]} for start in (0, 1)]
    options = {"method": "anoddpm", "steps": 1, "device": "cpu"}
    plain = Detector("brain-t1-compact", **options)  # type: ignore[arg-type]
    found = calibrate_files(plain, halves[0])
    assert found.calibration.scans == 29
    copy = save_calibration(found.calibration, "brain-t1-compact", tmp_path / "model")
    calibrated = Detector(copy, **options)  # type: ignore[arg-type]
    verdicts = detect_files(calibrated, halves[1], open_results(calibrated, tmp_path / "out")).verdicts
    assert verdicts.keys() == halves[1].keys()
    p_values = np.array([each.p_value for each in verdicts.values()])
    assert (p_values <= 0.05).sum() <= binom.ppf(0.975, 29, 0.05)
    for k in range(1, 30):
        low, high = betabinom.ppf([0.005, 0.995], 29, k, 30 - k)
        assert low <= (p_values <= k / 30 + 1e-12).sum() <= high
    # The mask's promise, on scans that it doesn't know: the share of their pixels above the threshold.
    inside = calibrated.region.mean() * 233 * 197
    share = np.mean([np.asarray(PIL.Image.open(path)).astype(bool).sum() for path in tmp_path.glob("out/*/*/mask.png")])
    assert 0.002 * inside < share < 0.02 * inside


def test_p_values_over_many_splits(shared_data: Path) -> None:
    """The z-score's scores of the same scans, split 2000 times: P(p <= a) = floor(30 a) / 30, four standard errors."""
    scans = find_scans([shared_data / "stroke-bench" / "healthy"])
    scores = np.array(calibrate_files(Detector(method="zscore", device="cpu"), scans).calibration.scores)
    assert np.unique(scores).size == 58
    generator = np.random.default_rng(1)
    first = []
    for _ in range(2000):
        drawn = generator.permutation(scores)
        first.append(conformal_p_value(drawn[29], drawn[:29]))
    for alpha in (0.05, 0.1, 0.25, 0.5):
        exact = np.floor(30 * alpha) / 30
        assert abs(np.mean(np.array(first) <= alpha + 1e-12) - exact) <= 4 * np.sqrt(exact * (1 - exact) / 2000)
