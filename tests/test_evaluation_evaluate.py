import csv
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch

from thorad.datasets.cases import Case
from thorad.errors import ThoradError
from thorad.evaluation import metrics
from thorad.evaluation.evaluate import baseline_warning, evaluate
from thorad.evaluation.tables import table_of

SIZE = 64  # px: a quarter of the area of 128x128, so the size limits are 0.75, 17.75 and 142.5 px
LESION_SIDES = {"sub-1_a": 3, "sub-1_b": 8, "sub-2_a": 4, "sub-2_b": 14, "sub-3_a": 10}  # 9, 64, 16, 196, 100 px
GROUPS = {"sub-1_a": "small", "sub-1_b": "medium", "sub-2_a": "small", "sub-2_b": "large", "sub-3_a": "medium"}


@dataclass
class FakeDetector:
    """Looks its maps up by the case's name."""

    maps: Callable[[str], np.ndarray]
    method: str = "thor"
    noise: str | None = "simplex"
    steps: int | str | None = 9
    network_calls: int = 9
    model_name: str = "fake"
    region: np.ndarray = field(default_factory=lambda: np.ones((SIZE, SIZE), bool))
    model_size: int = SIZE
    batch_size: int = 3
    seen: list[str] = field(default_factory=list)

    def learned(self, images: Mapping[str, torch.Tensor]) -> list[str]:
        return []

    def model_restorations(self, x: torch.Tensor, names: Sequence[str]) -> tuple[torch.Tensor, torch.Tensor | None]:
        assert x.shape == (len(names), 1, SIZE, SIZE)
        assert len(names) <= self.batch_size
        assert 0 <= x.min() <= x.max() <= 1
        self.seen += names
        maps = np.stack([self.maps(name) for name in names])[:, None] * self.region
        return torch.tensor(maps, dtype=torch.float32), None

    def scores(self, maps: torch.Tensor) -> torch.Tensor:
        return maps.mean(dim=(1, 2, 3))


@dataclass(frozen=True)
class Bench:
    folder: Path
    cases: list[Case]
    healthy: list[Path]
    truth: dict[str, np.ndarray]

    def perfect(self, name: str) -> np.ndarray:
        return self.truth.get(name, np.zeros((SIZE, SIZE))).astype(np.float64)

    def random(self, name: str) -> np.ndarray:
        return np.random.default_rng(list(name.encode())).random((SIZE, SIZE))

    def blurry(self, name: str) -> np.ndarray:
        """Finds lesions, but not well."""
        return np.maximum(0, self.random(name) + 0.6 * self.perfect(name)) ** 2


def write_image(path: Path, pixels: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    PIL.Image.fromarray(pixels.astype(np.uint8)).save(path)
    return path


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    """Five lesion cases of three subjects, one healthy row and three healthy files, on the model's own grid."""
    generator = np.random.default_rng(0)
    cases, truth = [], {}
    for name, side in LESION_SIDES.items():
        mask = np.zeros((SIZE, SIZE), bool)
        mask[20 : 20 + side, 20 : 20 + side] = True
        truth[name] = mask
        image = write_image(tmp_path / f"images/{name}.png", generator.integers(1, 255, (SIZE, SIZE)))
        cases.append(Case(image, write_image(tmp_path / f"masks/{name}.png", 255 * mask), name[:5], name))
    paths = [
        write_image(tmp_path / f"healthy/sub-{subject}.png", generator.integers(1, 255, (SIZE, SIZE)))
        for subject in (1, 2, 3, 4)
    ]
    cases.append(Case(paths[0], None, "sub-1", "sub-1"))
    return Bench(tmp_path, cases, paths, truth)


def read_rows(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_truth_as_map_is_perfect(bench: Bench) -> None:
    (result,) = evaluate(bench.cases, bench.healthy, [FakeDetector(bench.perfect)], bench.folder / "out", bootstrap=50)
    assert result["best_dice"] == pytest.approx(
        dict.fromkeys(["average", "small", "medium", "large", "pooled", "paper_mix"], 100.0)
    )
    assert result["auprc"] == result["auroc"] == result["image_auroc"] == 1
    assert result["dice_at_fpr"] == result["mean_case_dice_at_fpr"] == {"0.01": 1, "0.05": 1}
    assert result["thresholds"]["dice_at_fpr"] == {"0.01": 0, "0.05": 0}
    assert result["intervals"]["auprc"] == [1, 1]


def test_random_map_has_the_prevalence_as_average_precision(bench: Bench) -> None:
    (result,) = evaluate(bench.cases, bench.healthy, [FakeDetector(bench.random)], bench.folder / "out", bootstrap=50)
    prevalence = sum(side**2 for side in LESION_SIDES.values()) / (len(LESION_SIDES) * SIZE**2)
    assert result["auprc"] == pytest.approx(prevalence, rel=0.25)
    assert result["auroc"] == pytest.approx(0.5, abs=0.05)


def test_metrics_json_is_what_is_promised(bench: Bench) -> None:
    detectors = [
        FakeDetector(bench.blurry),
        FakeDetector(bench.random, method="zscore", noise=None, steps=None, network_calls=0),
        FakeDetector(bench.perfect, method="ddpm", noise="gaussian", steps="all", network_calls=351),
    ]
    out = bench.folder / "new" / "out"
    returned = evaluate(bench.cases, bench.healthy, detectors, out, bootstrap=100)
    results = json.loads((out / "metrics.json").read_text())
    assert results == returned
    assert sorted(path.name for path in out.iterdir()) == ["cases.csv", "metrics.json", "table.md"]
    assert [(r["method"], r["noise"], r["steps"], r["network_calls"]) for r in results] == [
        ("thor", "simplex", 9, 9),
        ("zscore", None, None, 0),
        ("ddpm", "gaussian", "all", 351),
    ]
    for result in results:
        assert {"average", "small", "medium", "large", "pooled"} <= result["best_dice"].keys()
        assert result["dice_at_fpr"].keys() == {"0.01", "0.05"}
        assert {"auprc", "auroc", "image_auroc", "cpu_seconds_per_case", "intervals", "thresholds"} <= result.keys()
        assert result["cpu_seconds_per_case"] >= 0
        assert result["counts"] == {
            "lesion_cases": 5,
            "healthy_cases": 4,  # the healthy row and --healthy name sub-1 both: taken once
            "subjects": 4,
            "small": 2,
            "medium": 2,
            "large": 1,
            "no_size_group": 0,
            "lesion_pixels": 9 + 64 + 16 + 196 + 100,
            "lesion_pixels_outside_region": 0,
            "region_pixels": SIZE**2,
            "bootstrap_resamples": 100,
            "subjects_with_findings": 3,
        }
        intervals = result["intervals"]
        for name, (low, high) in intervals["best_dice"].items():
            assert low <= result["best_dice"][name] + 1e-9, name
            assert high >= result["best_dice"][name] - 1e-9, name
        assert result["best_dice"]["pooled"] <= result["best_dice_exact"]["pooled"] + 1e-9
        for name in ("auprc", "auroc", "image_auroc"):
            low, high = intervals[name]
            assert low - 2e-3 <= result[name] <= high + 2e-3, name
        for key, (low, high) in intervals["dice_at_fpr"].items():
            assert low - 1e-2 <= result["dice_at_fpr"][key] <= high + 1e-2, key


def test_figures_equal_the_metrics_by_hand(bench: Bench) -> None:
    (result,) = evaluate(bench.cases, bench.healthy, [FakeDetector(bench.blurry)], bench.folder / "out", bootstrap=0)
    maps = {name: bench.blurry(name).astype(np.float32) for name in [*LESION_SIDES, "sub-1", "sub-2", "sub-3", "sub-4"]}
    thresholds = metrics.tail_thresholds([maps[name] for name in LESION_SIDES])

    def best(names: Sequence[str]) -> float:
        values, truth = np.stack([maps[name] for name in names]), np.stack([bench.truth[name] for name in names])
        return 100 * max(metrics.dice(values > threshold, truth) for threshold in thresholds)

    groups = {group: best([n for n in LESION_SIDES if GROUPS[n] == group]) for group in ("small", "medium", "large")}
    assert result["best_dice"]["pooled"] == pytest.approx(best(list(LESION_SIDES)))
    assert {group: result["best_dice"][group] for group in groups} == pytest.approx(groups)
    expected = (2 * groups["small"] + 2 * groups["medium"] + groups["large"]) / 5
    assert result["best_dice"]["average"] == pytest.approx(expected)
    healthy = np.stack([maps[f"sub-{subject}"] for subject in (1, 2, 3, 4)])
    for key, rate in (("0.01", 0.01), ("0.05", 0.05)):
        threshold = result["thresholds"]["dice_at_fpr"][key]
        assert (healthy > threshold).mean() <= rate < (healthy > threshold * (1 - 1e-4)).mean() + 2 / healthy.size
        predicted = {name: maps[name] > threshold for name in LESION_SIDES}
        pooled = metrics.dice(np.stack(list(predicted.values())), np.stack(list(bench.truth.values())))
        each = [metrics.dice(predicted[name], bench.truth[name]) for name in LESION_SIDES]
        assert result["dice_at_fpr"][key] == pytest.approx(pooled)
        assert result["mean_case_dice_at_fpr"][key] == pytest.approx(np.mean(each))
    assert result["intervals"]["best_dice"]["average"] is None


def test_cases_csv_has_one_row_for_each_case_and_method(bench: Bench) -> None:
    detectors = [FakeDetector(bench.perfect), FakeDetector(bench.blurry, noise="gaussian")]
    evaluate(bench.cases, bench.healthy, detectors, bench.folder / "out", bootstrap=10)
    rows = read_rows(bench.folder / "out" / "cases.csv")
    assert len(rows) == 2 * 9
    first = {row["name"]: row for row in rows[:9]}
    assert {name: first[name]["size_group"] for name in LESION_SIDES} == GROUPS
    assert first["sub-2_b"]["lesion_pixels"] == "196"
    assert float(first["sub-2_b"]["best_dice_percent"]) == 100
    assert float(first["sub-2_b"]["dice_at_0.05"]) == float(first["sub-2_b"]["average_precision"]) == 1
    assert float(first["sub-2_b"]["score"]) == pytest.approx(196 / SIZE**2)
    healthy = first["sub-4"]
    assert (healthy["kind"], healthy["subject"], healthy["size_group"]) == ("healthy", "sub-4", "")
    assert healthy["dice_at_0.01"] == healthy["best_dice_percent"] == healthy["average_precision"] == ""
    assert all(0 < float(row["best_dice_percent"]) < 100 for row in rows[9:] if row["kind"] == "lesion")


def test_table_states_where_thresholds_come_from(bench: Bench) -> None:
    results = evaluate(bench.cases, bench.healthy, [FakeDetector(bench.blurry)] * 2, bench.folder / "out", bootstrap=10)
    table = (bench.folder / "out" / "table.md").read_text()
    assert table == table_of(results).markdown()
    assert table == table_of(json.loads((bench.folder / "out" / "metrics.json").read_text())).markdown()
    lines = [line for line in table.splitlines() if line.startswith("|")]
    assert len(lines) == 4
    assert len({line.count("|") for line in lines}) == 1
    assert "picks its threshold on the test labels" in table
    assert "4 healthy scans of this evaluation" in table
    assert f"{results[0]['best_dice']['average']:.1f} [" in lines[2]


def test_without_healthy_scans_what_needs_them_is_null(bench: Bench) -> None:
    out = bench.folder / "out"
    evaluate(bench.cases[:5], [], [FakeDetector(bench.blurry)], out, bootstrap=20)
    result = json.loads((out / "metrics.json").read_text())[0]
    assert result["dice_at_fpr"] == result["thresholds"]["dice_at_fpr"] == {"0.01": None, "0.05": None}
    assert result["image_auroc"] is result["intervals"]["image_auroc"] is None
    assert result["best_dice"]["average"] > 0
    assert read_rows(out / "cases.csv")[0]["dice_at_0.01"] == ""


def test_healthy_scans_do_not_change_the_best_dice(bench: Bench) -> None:
    detector = FakeDetector(bench.blurry)
    (with_healthy,) = evaluate(bench.cases, bench.healthy, [detector], bench.folder / "a", bootstrap=0)
    (without,) = evaluate(bench.cases[:5], [], [detector], bench.folder / "b", bootstrap=0)
    assert with_healthy["best_dice"] == without["best_dice"]
    assert with_healthy["auprc"] == without["auprc"]


def test_absent_size_group_is_null_and_left_out(bench: Bench) -> None:
    cases = [case for case in bench.cases if GROUPS.get(case.name) != "large"]
    (result,) = evaluate(cases, [], [FakeDetector(bench.blurry)], bench.folder / "out", bootstrap=20)
    best = result["best_dice"]
    assert best["large"] is best["paper_mix"] is result["intervals"]["best_dice"]["large"] is None
    assert best["average"] == pytest.approx((best["small"] + best["medium"]) / 2)


def test_tiny_lesion_belongs_to_no_group_but_is_pooled(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    cases = []
    for name, side in (("sub-1", 1), ("sub-2", 10)):  # 1 px and 100 px at 128x128
        mask = np.zeros((128, 128))
        mask[50 : 50 + side, 50 : 50 + side] = 255
        image = write_image(tmp_path / f"{name}.png", generator.integers(1, 255, (128, 128)))
        cases.append(Case(image, write_image(tmp_path / f"{name}_mask.png", mask), name, name))
    detector = FakeDetector(lambda name: np.zeros((128, 128)), region=np.ones((128, 128), bool), model_size=128)
    detector.model_restorations = lambda x, names: (torch.ones(len(names), 1, 128, 128), None)  # type: ignore[method-assign]
    (result,) = evaluate(cases, [], [detector], tmp_path / "out", bootstrap=5)
    assert (result["counts"]["medium"], result["counts"]["no_size_group"]) == (1, 1)
    assert result["counts"]["lesion_pixels"] == 101
    assert read_rows(tmp_path / "out" / "cases.csv")[0]["size_group"] == ""


def test_lesion_outside_the_region_counts_as_missed(bench: Bench) -> None:
    region = np.ones((SIZE, SIZE), bool)
    region[:, :24] = False  # the first four of each lesion's columns
    (result,) = evaluate(
        bench.cases, bench.healthy, [FakeDetector(bench.perfect, region=region)], bench.folder / "out", bootstrap=5
    )
    sides = list(LESION_SIDES.values())
    total, inside = sum(side**2 for side in sides), sum(side * max(side - 4, 0) for side in sides)
    assert result["counts"]["lesion_pixels_outside_region"] == total - inside
    assert result["best_dice"]["pooled"] == pytest.approx(100 * 2 * inside / (inside + total))
    assert result["auprc"] == 1


def test_one_bad_case_does_not_stop_the_others(bench: Bench) -> None:
    cases = list(bench.cases)
    (bench.folder / "images/sub-1_a.png").write_bytes(b"")
    write_image(cases[1].mask or Path(), np.pad(255 * bench.truth["sub-1_b"], 1))
    write_image(cases[2].mask or Path(), np.zeros((SIZE, SIZE)))
    write_image(cases[3].mask or Path(), np.arange(SIZE**2).reshape(SIZE, SIZE) % 7)
    (bench.folder / "healthy/sub-4.png").write_text("no image")
    detector = FakeDetector(bench.perfect)
    (result,) = evaluate(cases, bench.healthy, [detector], bench.folder / "out", bootstrap=5)
    reasons = {failure["name"]: failure["reason"] for failure in result["failures"]}
    assert reasons.keys() == {"sub-1_a", "sub-1_b", "sub-2_a", "sub-2_b", "sub-4"}
    assert "empty" in reasons["sub-1_a"]
    assert "66 x 66" in reasons["sub-1_b"]
    assert "no pixel" in reasons["sub-2_a"]
    assert "masks/sub-2_b.png" in reasons["sub-2_b"].replace("\\", "/")
    assert detector.seen == ["sub-3_a", "sub-1", "sub-2", "sub-3"]
    assert result["best_dice"]["pooled"] == 100
    assert "sub-2_b" in (bench.folder / "out" / "table.md").read_text()


def test_an_image_is_not_sick_and_healthy(bench: Bench) -> None:
    with pytest.raises(ThoradError, match=r"1 images are marked as diseased and are among the healthy .*sub-1_a\.png"):
        evaluate(bench.cases, [*bench.healthy, bench.cases[0].image], [FakeDetector(bench.perfect)], bench.folder / "o")


def test_nothing_to_measure_is_an_error(bench: Bench) -> None:
    with pytest.raises(ThoradError, match="nothing to measure"):
        evaluate(bench.cases[5:], bench.healthy, [FakeDetector(bench.perfect)], bench.folder / "out")
    with pytest.raises(ThoradError, match="No method"):
        evaluate(bench.cases, bench.healthy, [], bench.folder / "out")
    assert not (bench.folder / "out" / "metrics.json").exists()


def test_a_map_that_is_not_finite_takes_its_case_from_every_method(bench: Bench) -> None:
    """A case one method fails on, a healthy one another does: the figures are those without the two."""

    def broken(name: str) -> np.ndarray:
        maps = bench.blurry(name)
        maps[5, 5] = np.nan if name == "sub-2_b" else maps[5, 5]
        return maps

    def infinite(name: str) -> np.ndarray:
        return bench.random(name) / (0.0 if name == "sub-4" else 1.0)

    detectors = [
        FakeDetector(broken),
        FakeDetector(bench.blurry, method="ddpm", noise="gaussian"),
        FakeDetector(infinite, method="zscore", noise=None),
    ]
    out = bench.folder / "out"
    with np.errstate(divide="ignore"):
        results = evaluate(bench.cases, bench.healthy, detectors, out, bootstrap=20)
    for result in results:
        first, second = result["failures"]
        assert (first["name"], second["name"]) == ("sub-2_b", "sub-4")
        assert first["image"].endswith("sub-2_b.png")
        assert first["reason"].startswith("thor (simplex) gave a map or score with NaN or infinity")
        assert second["reason"].startswith("zscore gave a map")
        assert (result["counts"]["lesion_cases"], result["counts"]["healthy_cases"]) == (4, 3)
    rows = read_rows(out / "cases.csv")
    assert len(rows) == 3 * 7
    assert not {"sub-2_b", "sub-4"} & {row["name"] for row in rows}
    assert "sub-2_b, sub-4" in (out / "table.md").read_text()

    without = [case for case in bench.cases if case.name != "sub-2_b"]
    twice = [FakeDetector(bench.blurry), FakeDetector(bench.blurry, method="ddpm", noise="gaussian")]
    expected = evaluate(without, bench.healthy[:3], twice, bench.folder / "b", bootstrap=20)
    for result, same in zip(results[:2], expected, strict=True):
        for key in result.keys() - {"failures", "cpu_seconds_per_case", "versus"}:
            assert result[key] == same[key], key
        with_thor = [entry for entry in result["versus"] if entry["reference"]["method"] == "thor"]
        assert with_thor == same["versus"]


def test_a_model_that_fails_on_every_lesion_is_an_error(bench: Bench) -> None:
    def broken(name: str) -> np.ndarray:
        return np.full((SIZE, SIZE), np.nan if name in LESION_SIDES else 1.0)

    with pytest.raises(ThoradError, match=r"^thor \(simplex\) gave .* no lesion case is left .*damaged"):
        evaluate(bench.cases, bench.healthy, [FakeDetector(broken)], bench.folder / "out")
    assert not (bench.folder / "out" / "metrics.json").exists()


def test_unwritable_output_is_an_error_before_any_detection(bench: Bench) -> None:
    (bench.folder / "file").write_text("in the way")
    detector = FakeDetector(bench.perfect)
    with pytest.raises(ThoradError, match="file"):
        evaluate(bench.cases, bench.healthy, [detector], bench.folder / "file" / "out")
    assert detector.seen == []


def test_progress_counts_images_of_all_detectors(bench: Bench) -> None:
    calls: list[tuple[int, int, str]] = []
    detectors = [FakeDetector(bench.perfect, batch_size=4), FakeDetector(bench.random, method="zscore", batch_size=100)]
    evaluate(
        bench.cases,
        bench.healthy,
        detectors,
        bench.folder / "out",
        bootstrap=5,
        on_progress=lambda done, total, method: calls.append((done, total, method)),
    )
    assert calls == [(done, 18, "thor" if done <= 9 else "zscore") for done in range(1, 19)]


def test_seed_decides_the_intervals_and_detectors_share_the_resamples(bench: Bench) -> None:
    first, second = evaluate(bench.cases, [], [FakeDetector(bench.blurry)] * 2, bench.folder / "a", bootstrap=50)
    (other,) = evaluate(bench.cases, [], [FakeDetector(bench.blurry)], bench.folder / "b", bootstrap=50, seed=1)
    assert first["intervals"] == second["intervals"]
    assert first["best_dice"] == other["best_dice"]
    assert first["intervals"] != other["intervals"]


def test_methods_are_compared_with_thor_over_subjects(bench: Bench) -> None:
    detectors = [
        FakeDetector(bench.perfect, method="zscore", noise=None, steps=None, network_calls=0),
        FakeDetector(bench.blurry),
        FakeDetector(bench.random, method="ddpm", noise="gaussian"),
    ]
    results = evaluate(bench.cases, bench.healthy, detectors, bench.folder / "out", bootstrap=50)
    zscore, thor, ddpm = results
    reference = {"method": "thor", "noise": "simplex", "steps": 9, "model": "fake"}
    assert [entry["metric"] for entry in zscore["versus"]] == ["paper_mix", "average", "auprc"]
    assert all(entry["reference"] == reference for entry in zscore["versus"])
    assert [entry["reference"]["method"] for entry in thor["versus"]] == ["zscore"] * 3
    assert [entry["reference"]["method"] for entry in ddpm["versus"]] == ["thor"] * 3 + ["zscore"] * 3
    mix, average, auprc = ddpm["versus"][:3]
    assert mix["difference"] == pytest.approx(ddpm["best_dice"]["paper_mix"] - thor["best_dice"]["paper_mix"])
    assert average["difference"] == pytest.approx(ddpm["best_dice"]["average"] - thor["best_dice"]["average"])
    assert auprc["difference"] == pytest.approx(ddpm["auprc"] - thor["auprc"])
    for entry in (average, auprc):
        assert entry["interval"][0] <= entry["difference"] <= entry["interval"][1] < 0
        assert entry["p_value"] == 0.25  # three subjects: two of eight swaps are as far from zero, none and all
    table = (bench.folder / "out" / "table.md").read_text()
    assert "| Average - thor (simplex) [95 %] | p | Paper mix | Mix - thor (simplex) [95 %] | p |" in table
    assert f"| {mix['difference']:+.1f} [" in table
    assert "| Average - zscore [95 %] | p |" in table
    (alone,) = evaluate(bench.cases, [], [FakeDetector(bench.random)], bench.folder / "one", bootstrap=0)
    assert alone["versus"] == []
    twice = [FakeDetector(bench.random)] * 2
    _, second = evaluate(bench.cases, [], twice, bench.folder / "none", bootstrap=0, permutations=0)
    assert [(entry["interval"], entry["p_value"]) for entry in second["versus"]] == [(None, None)] * 3


def test_models_with_different_grids_are_compared(bench: Bench) -> None:
    """The same maps on a grid twice as fine, each pixel four times: no difference at all."""

    @dataclass
    class Finer(FakeDetector):
        def model_restorations(self, x: torch.Tensor, names: Sequence[str]) -> tuple[torch.Tensor, torch.Tensor | None]:
            assert x.shape == (len(names), 1, 2 * SIZE, 2 * SIZE)
            maps = np.stack([self.maps(name) for name in names])[:, None]
            return torch.tensor(maps, dtype=torch.float32).repeat_interleave(2, dim=2).repeat_interleave(2, dim=3), None

    finer = Finer(bench.blurry, model_name="finer", region=np.ones((2 * SIZE, 2 * SIZE), bool), model_size=2 * SIZE)
    detectors = [FakeDetector(bench.blurry), finer, replace(finer, maps=bench.random)]
    out = bench.folder / "out"
    first, same, worse = evaluate(bench.cases, bench.healthy, detectors, out, bootstrap=50)
    assert [result["model"] for result in (first, same, worse)] == ["fake", "finer", "finer"]
    assert first["best_dice"] == pytest.approx(same["best_dice"])
    for entry in same["versus"]:
        assert entry["difference"] == pytest.approx(0, abs=1e-9)
        assert entry["p_value"] == 1
    assert {entry["p_value"] for entry in worse["versus"]} == {0.25}
    assert "| thor | simplex | finer | 9 | 9 |" in (out / "table.md").read_text()
    assert {row["model"] for row in read_rows(out / "cases.csv")} == {"fake", "finer"}


def result_row(method: str, average: float | None, calls: int, noise: str | None = None) -> dict[str, object]:
    return {
        "protocol": "brain-lesions",
        "method": method,
        "noise": noise,
        "network_calls": calls,
        "best_dice": {"average": average},
    }


def test_user_is_told_when_the_z_score_is_at_or_above_a_network_method() -> None:
    thor, floor = result_row("thor", 45.0, 9, "simplex"), result_row("zscore", 40.0, 0)
    two_sided = result_row("zscore-two-sided", 45.0, 0)
    assert baseline_warning([thor, floor]) is None
    assert baseline_warning([thor]) is None
    assert baseline_warning([floor, two_sided]) is None
    assert baseline_warning([floor, result_row("thor", None, 9)]) is None
    assert "critic-only (39.0 %)" in str(baseline_warning([result_row("critic-only", 39.0, 0), floor]))
    warning = baseline_warning([thor, floor, two_sided, result_row("ddpm", 8.0, 8, "gaussian")])
    assert warning is not None
    assert "zscore-two-sided needs no network and reaches 45.0 %" in warning
    assert "thor (simplex) (45.0 %), ddpm (gaussian) (8.0 %)" in warning


def test_tables_of_results_of_an_earlier_version(bench: Bench) -> None:
    """What an earlier version did not write yet leaves cells empty; what can't be computed is a dash."""
    detectors = [FakeDetector(bench.blurry), FakeDetector(bench.random, method="zscore", noise=None, network_calls=0)]
    evaluate(bench.cases[:5], [], detectors, bench.folder / "out", bootstrap=0)
    results = json.loads((bench.folder / "out" / "metrics.json").read_text())
    table = table_of(results)
    assert dict(zip(table.columns, table.rows[0], strict=True))["Dice @ 1 % FP"] == "-"
    for result in results:
        del result["versus"], result["auroc"], result["intervals"], result["counts"]["no_size_group"]
    table = table_of(results)
    assert dict(zip(table.columns, table.rows[0], strict=True))["AUROC"] == ""
    assert "- too small for a group" in table.notes[0]
    with pytest.raises(ThoradError, match="unknown protocol, 'tarot'"):
        table_of([results[0] | {"protocol": "tarot"}])


def test_brief_table_is_for_a_terminal(bench: Bench) -> None:
    detectors = [FakeDetector(bench.blurry), FakeDetector(bench.random, method="zscore", noise=None, network_calls=0)]
    results = evaluate(bench.cases, bench.healthy, detectors, bench.folder / "out", bootstrap=20)
    table = table_of(results, brief=True)
    assert table.columns[:3] == ["best Dice, %", "calls", "small"]
    assert [row[0] for row in table.rows] == ["thor simplex", "zscore"]
    average = next(entry for entry in results[1]["versus"] if entry["metric"] == "average")
    shown = dict(zip(table.columns, table.rows[1], strict=True))
    assert shown["diff."] == f"{average['difference']:+.1f}"
    assert shown["p"] == f"{average['p_value']:.4f}"
    assert table.notes[1] == "diff. of avg.: to thor simplex; p: permutation test within subjects."
    full = table_of(results)
    in_full = dict(zip(full.columns, full.rows[1], strict=True))["Average - thor (simplex) [95 %]"]
    assert in_full.startswith(f"{shown['diff.']} ["), "the same difference"


@pytest.mark.parametrize("brief", [False, True])
def test_what_a_reader_would_take_for_more_is_told_under_the_table(bench: Bench, brief: bool) -> None:
    floor = FakeDetector(bench.perfect, method="zscore", noise=None, steps=None, network_calls=0)
    costly = FakeDetector(bench.random, method="autoddpm", noise="gaussian", network_calls=24)
    detectors = [FakeDetector(bench.blurry), costly, floor]
    found = evaluate(bench.cases, [], detectors, bench.folder / "a", bootstrap=0, asked_calls=[9])
    table = table_of(found, brief=brief)
    calls = [row[list(map(str.lower, table.columns)).index("calls")] for row in table.rows]
    assert calls == ["9", "24 *", "0"]
    notes = " ".join(table.notes)
    assert "**Not at equal calls** (9 were asked for), marked *: autoddpm gaussian (24), the nearest possible." in notes
    assert "**Few subjects: 3 with findings.**" in notes
    assert "The average is of" not in notes

    small = [case for case in bench.cases if GROUPS.get(case.name) == "small"]
    six = [replace(small[0], name=f"{number}", subject=f"{number}") for number in range(6)]
    found = evaluate(six, [], [replace(floor, maps=bench.random)], bench.folder / "b", bootstrap=0)
    (note,) = [note for note in table_of(found, brief=brief).notes if note.startswith("**")]
    assert note.startswith("**The average is of small lesions alone**: there are no medium or large ones here")


def test_methods_at_an_asked_noise_level_are_compared_too(bench: Bench) -> None:
    @dataclass
    class Asked(FakeDetector):
        noise_level: int = 200

    detectors = [Asked(bench.blurry), Asked(bench.random, method="ddpm", noise="gaussian")]
    results = evaluate(bench.cases, bench.healthy, detectors, bench.folder / "out", bootstrap=20)
    difference = results[1]["versus"][0]["difference"]
    assert f"| {difference:+.1f} [" in (bench.folder / "out" / "table.md").read_text()
