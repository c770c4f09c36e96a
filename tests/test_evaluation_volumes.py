import csv
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch
from scipy import ndimage
from sklearn.metrics import average_precision_score

from thorad.datasets.cases import Case, read_cases
from thorad.errors import ThoradError
from thorad.evaluation import metrics
from thorad.evaluation.evaluate import baseline_warning, evaluate
from thorad.evaluation.volumes import (
    Volume,
    best_threshold,
    drop_small,
    erode,
    post_process,
    volume_auprc,
    volume_dice,
)

SIZE = 32
EVERYWHERE = np.ones((SIZE, SIZE), bool)


def test_median_filter_is_the_median_of_125_neighbours_or_of_25_in_a_single_slice() -> None:
    maps = np.random.default_rng(0).random((6, SIZE, SIZE)).astype(np.float32)
    smooth = post_process(maps, EVERYWHERE)
    assert smooth[3, 10, 12] == np.median(maps[1:6, 8:13, 10:15])
    single = post_process(maps[:1], EVERYWHERE)
    assert single[0, 10, 12] == np.median(maps[0, 8:13, 10:15])
    np.testing.assert_array_equal(
        single, np.where(erode(EVERYWHERE), ndimage.median_filter(maps[:1], size=(5, 5, 5)), 0)
    )


def test_brain_mask_is_eroded_by_three_pixels() -> None:
    disc = np.hypot(*np.mgrid[-15.5:16, -15.5:16]) < 14
    eroded = erode(disc)
    steps = ndimage.distance_transform_cdt(np.pad(disc, 1), metric="taxicab")[1:-1, 1:-1]
    np.testing.assert_array_equal(eroded, steps > 3)
    assert erode(EVERYWHERE).sum() == (SIZE - 6) ** 2
    assert (post_process(np.ones((2, SIZE, SIZE), np.float32), disc) == eroded).all()


def test_components_under_seven_voxels_are_dropped() -> None:
    predicted = np.zeros((3, 8, 8), bool)
    predicted[0, 0, :6] = True  # six
    predicted[0, 4, :6] = True  # six, and one of the next slice that touches them by a corner
    predicted[1, 5, 6] = True
    kept = drop_small(predicted)
    assert kept.sum() == 7
    assert not kept[0, 0].any()
    assert not drop_small(np.zeros((1, 4, 4), bool)).any()


def blob(value: float, noise: float, seed: int, lesion: slice = slice(10, 18)) -> Volume:
    truth = np.zeros((1, SIZE, SIZE), bool)
    truth[0, lesion, lesion] = True
    values = noise * np.random.default_rng(seed).random((1, SIZE, SIZE)) + value * truth
    return Volume(f"v{seed}", f"s{seed}", True, values.astype(np.float32), truth)


def test_best_threshold_has_the_best_mean_dice() -> None:
    volumes = [blob(0.3, 1.0, seed) for seed in range(4)]
    healthy = replace(volumes[0], diseased=False, lesion=np.zeros((1, SIZE, SIZE), bool))
    threshold = best_threshold([*volumes, healthy])

    def mean(cut: float) -> float:
        return float(np.mean([metrics.dice(drop_small(v.values > cut), v.lesion) for v in volumes]))

    tried = metrics.tail_thresholds(np.concatenate([volume.values for volume in volumes]))
    assert mean(threshold) == pytest.approx(max(map(mean, tried)))
    assert mean(threshold) > mean(float(np.median(volumes[0].values))) + 0.1


def test_a_lesion_too_small_for_the_grid_is_not_found() -> None:
    lost = replace(blob(1, 0, 0), lesion=np.zeros((1, SIZE, SIZE), bool))
    assert volume_dice(lost, 0.5) == volume_dice(lost, 2.0) == volume_auprc(lost) == 0


# ---- over files


@dataclass
class FakeDetector:
    """Looks its maps up by the case's name."""

    maps: Callable[[str], np.ndarray]
    method: str = "thor"
    noise: str | None = None
    steps: int | str | None = None
    network_calls: int = 1
    model_name: str = "fake"
    region: np.ndarray = field(default_factory=lambda: EVERYWHERE)
    model_size: int = SIZE
    batch_size: int = 5

    def learned(self, images: Mapping[str, torch.Tensor]) -> list[str]:
        return []

    def model_restorations(self, x: torch.Tensor, names: Sequence[str]) -> tuple[torch.Tensor, torch.Tensor | None]:
        return torch.tensor(np.stack([self.maps(name) for name in names])[:, None], dtype=torch.float32), None

    def scores(self, maps: torch.Tensor) -> torch.Tensor:
        return maps.mean(dim=(1, 2, 3))


def lesion_of(name: str) -> np.ndarray:
    """Slices 1 to 5 of seven have a lesion; a healthy volume's have none."""
    volume, number = name.split("_")
    mask = np.zeros((SIZE, SIZE), bool)
    mask[10:20, 8:22] = volume.startswith(("ill", "val")) and 1 <= int(number) <= 5
    return mask


def write_volume(folder: Path, volume: str, generator: np.random.Generator) -> list[str]:
    """Rows of a table, the slices out of order."""
    rows = []
    for number in (3, 0, 6, 1, 5, 2, 4):
        name = f"{volume}_{number}"
        PIL.Image.fromarray(generator.integers(1, 255, (SIZE, SIZE)).astype(np.uint8)).save(folder / f"{name}.png")
        mask = lesion_of(name)
        if mask.any():
            PIL.Image.fromarray(255 * mask.astype(np.uint8)).save(folder / f"{name}-mask.png")
        rows.append(f"{name}.png,{name + '-mask.png' if mask.any() else ''},s-{volume},{volume},{number}")
    return rows


@pytest.fixture
def tables(tmp_path: Path) -> dict[str, list[Case]]:
    """Three volumes with lesions and a healthy one to test, one to validate; seven slices each."""
    generator = np.random.default_rng(0)
    found = {}
    for table, volumes in {"test": ["ill1", "ill2", "ill3", "well"], "validation": ["val"]}.items():
        rows = [row for volume in volumes for row in write_volume(tmp_path, volume, generator)]
        (tmp_path / f"{table}.csv").write_text("image,mask,subject,volume,slice\n" + "\n".join(rows) + "\n")
        found[table] = read_cases(tmp_path / f"{table}.csv")
    return found


def perfect(name: str) -> np.ndarray:
    return lesion_of(name).astype(float)


def faint(name: str) -> np.ndarray:
    return 0.4 * lesion_of(name) + np.random.default_rng(list(name.encode())).random((SIZE, SIZE))


def test_volumes_are_put_together_from_their_slices(tables: dict[str, list[Case]], tmp_path: Path) -> None:
    out = tmp_path / "out"
    detectors = [FakeDetector(perfect), FakeDetector(faint, method="zscore", network_calls=0)]
    results = evaluate(
        tables["test"], [], detectors, out, protocol="brain-volumes", validation=tables["validation"], bootstrap=50
    )
    assert json.loads((out / "metrics.json").read_text()) == results
    result = results[0]
    # Each lesion is 5 x 10 x 14 voxels; the filter wears off its corners, in the volume's true order.
    truth = np.stack([lesion_of(f"ill1_{number}") for number in range(7)])
    filtered = post_process(truth.astype(np.float32), EVERYWHERE) > 0
    assert result["mean_dice"] == pytest.approx(metrics.dice(filtered, truth))
    as_in_table = truth[[3, 0, 6, 1, 5, 2, 4]]
    unordered = post_process(as_in_table.astype(np.float32), EVERYWHERE) > 0
    assert metrics.dice(unordered, as_in_table) < result["mean_dice"] - 0.02
    assert result["standard_deviation"]["mean_dice"] == pytest.approx(0, abs=1e-12)
    assert result["intervals"]["mean_dice"] == pytest.approx([result["mean_dice"]] * 2)
    assert result["counts"] == {
        "lesion_volumes": 3,
        "healthy_volumes": 1,
        "validation_volumes": 1,
        "slices": 28,
        "subjects": 4,
        "mean_false_voxels_in_healthy": 0,
        "bootstrap_resamples": 50,
        "subjects_with_findings": 3,
    }
    assert result["thresholds"]["mean_dice_source"] == "best mean Dice on 1 labelled validation volumes"
    auprcs = []
    for volume in ("ill1", "ill2", "ill3"):
        maps = np.stack([faint(f"{volume}_{number}") for number in range(7)]).astype(np.float32)
        auprcs.append(average_precision_score(truth.ravel(), post_process(maps, EVERYWHERE).ravel()))
    assert results[1]["mean_auprc"] == pytest.approx(np.mean(auprcs))
    dice, auprc = results[1]["versus"]
    assert dice["reference"]["method"] == "thor"
    assert dice["difference"] == pytest.approx(results[1]["mean_dice"] - result["mean_dice"])
    assert auprc["p_value"] == 0.25  # three subjects, eight swaps, two of them as far from zero
    with (out / "cases.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["name"], row["kind"], row["slices"]) for row in rows[:4]] == [
        ("ill1", "lesion", "7"),
        ("ill2", "lesion", "7"),
        ("ill3", "lesion", "7"),
        ("well", "healthy", "7"),
    ]
    assert (rows[0]["lesion_voxels"], rows[0]["predicted_voxels"]) == ("700", str(filtered.sum()))
    assert float(rows[0]["dice"]) == pytest.approx(result["mean_dice"])
    assert rows[3]["dice"] == rows[3]["auprc"] == ""
    assert "Dice - thor [95 %]" in (out / "table.md").read_text()
    warning = str(baseline_warning(results))
    assert f"zscore needs no network and reaches {100 * results[1]['mean_dice']:.1f} % mean Dice" in warning
    assert baseline_warning([results[1], result | {"mean_dice": 0.99}]) is None


def test_test_labels_never_choose_the_threshold(tables: dict[str, list[Case]], tmp_path: Path) -> None:
    """The test lesions shrink to a pixel or grow to half of the picture: the threshold stays."""
    thresholds = []
    for fill in (0, 1):
        for case in tables["test"]:
            if case.mask is not None:
                mask = np.zeros((SIZE, SIZE), np.uint8)
                mask[: SIZE // 2 if fill else 1, : None if fill else 1] = 255
                PIL.Image.fromarray(mask).save(case.mask)
        for validation in (tables["validation"], []):
            (result,) = evaluate(
                tables["test"],
                [],
                [FakeDetector(faint)],
                tmp_path / "out",
                protocol="brain-volumes",
                validation=validation,
                bootstrap=0,
            )
            thresholds.append(result["thresholds"]["mean_dice"])
    assert thresholds[:2] == thresholds[2:]
    assert thresholds[0] != thresholds[1]


def test_without_validation_healthy_volumes_give_the_threshold(tables: dict[str, list[Case]], tmp_path: Path) -> None:
    detector = FakeDetector(faint)
    (result,) = evaluate(tables["test"], [], [detector], tmp_path / "o", protocol="brain-volumes", bootstrap=0)
    source = result["thresholds"]["mean_dice_source"]
    assert source == "1 % of the voxels of 1 healthy volumes (no validation labels available)"
    maps = np.stack([faint(f"well_{number}") for number in range(7)]).astype(np.float32)
    values = post_process(maps, EVERYWHERE)[:, erode(EVERYWHERE)]
    assert result["thresholds"]["mean_dice"] == pytest.approx(metrics.threshold_at_fpr(values, 0.01))


def test_single_slices_are_volumes_of_their_own(tables: dict[str, list[Case]], tmp_path: Path) -> None:
    cases = [replace(case, volume=None) for case in tables["test"]]
    (result,) = evaluate(cases, [], [FakeDetector(perfect)], tmp_path / "o", protocol="brain-volumes", bootstrap=0)
    assert (result["counts"]["lesion_volumes"], result["counts"]["healthy_volumes"]) == (15, 13)


def test_volumes_refuse_what_would_not_be_honest(tables: dict[str, list[Case]], tmp_path: Path) -> None:
    test, validation = tables["test"], tables["validation"]

    def run(cases: list[Case], validating: list[Case], protocol: str = "brain-volumes") -> None:
        evaluate(cases, [], [FakeDetector(perfect)], tmp_path / "out", protocol=protocol, validation=validating)

    with pytest.raises(ThoradError, match="needs a threshold that the test labels don't choose"):
        run(test[:21], [])  # healthy slices of diseased volumes are no healthy volumes
    with pytest.raises(ThoradError, match="1 subjects appear in both the test and the validation cases: s-ill1"):
        run(test, test[:7])
    renamed = [replace(case, subject=f"v-{case.name}", volume=f"v-{case.name}") for case in test[:7]]
    with pytest.raises(ThoradError, match="5 images are among both the test and the validation cases"):
        run(test, renamed)
    with pytest.raises(ThoradError, match="1 volumes have slices of several subjects: ill1"):
        run([replace(test[0], subject="someone"), *test[1:]], validation)
    for index in (0, 1):  # with a mask and without
        with pytest.raises(ThoradError, match="1 images have no volume, others of their subject or with a mask have: "):
            run([replace(case, volume=case.volume if n != index else None) for n, case in enumerate(test)], validation)
    with pytest.raises(ThoradError, match="1 slices are in the table twice: slice 3 of ill1"):
        run([test[0], replace(test[1], slice_number=3), *test[2:]], validation)
    with pytest.raises(ThoradError, match="a threshold of one doesn't fit the other"):
        run(test, [replace(case, volume=None, slice_number=None) for case in validation])
    with pytest.raises(ThoradError, match="chooses nothing on validation cases"):
        run(test, validation, "brain-lesions")
    with pytest.raises(ThoradError, match=r"Unknown protocol 'brains'\. Known: brain-lesions, brain-volumes, boxes"):
        run(test, validation, "brains")
    assert not (tmp_path / "out" / "metrics.json").exists()


def test_a_volume_is_measured_whole_or_not_at_all(tables: dict[str, list[Case]], tmp_path: Path) -> None:
    """Without its slice with the lesion it would pass for a healthy one, without the others for an easy one."""
    test, nothing = tables["test"], tmp_path / "nothing.png"
    PIL.Image.fromarray(np.zeros((SIZE, SIZE), np.uint8)).save(nothing)
    test = [replace(case, mask=case.mask or nothing) for case in test]  # a mask for every slice
    PIL.Image.fromarray(np.full((9, 9), 255, np.uint8)).save(tmp_path / "small.png")
    test[3] = replace(test[3], mask=tmp_path / "small.png")  # of ill1
    (result,) = evaluate(
        test, [], [FakeDetector(perfect)], tmp_path / "out", protocol="brain-volumes", validation=tables["validation"]
    )
    counts = result["counts"]
    assert (counts["lesion_volumes"], counts["healthy_volumes"], counts["slices"]) == (2, 1, 21)
    assert len(result["failures"]) == 7
    assert sum("of the same volume as: " in failure["reason"] for failure in result["failures"]) == 6


def test_slice_must_be_a_whole_number(tmp_path: Path, tables: dict[str, list[Case]]) -> None:
    assert [case.slice_number for case in tables["validation"]] == [3, 0, 6, 1, 5, 2, 4]
    (tmp_path / "bad.csv").write_text("image,mask,volume,slice\nval_0.png,,val,first\n")
    with pytest.raises(ThoradError, match=r"bad\.csv, line 2: the slice is 'first', expected a whole number"):
        read_cases(tmp_path / "bad.csv")
