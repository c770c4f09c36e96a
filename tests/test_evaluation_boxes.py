import csv
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch

from thorad.datasets.boxes import Box
from thorad.datasets.cases import Case, read_cases
from thorad.errors import ThoradError
from thorad.evaluation.boxes import (
    BoxTruth,
    Candidate,
    box_figures,
    candidates,
    iou,
    is_counted,
    match,
    overlaps,
    peak_inside,
    pixels_inside,
    sensitivities,
)
from thorad.evaluation.evaluate import baseline_warning, evaluate
from thorad.evaluation.seeds import over_seeds
from thorad.results.cost import plot_cost

SIZE = 32
EVERYWHERE = np.ones((SIZE, SIZE), bool)
TEN = Box("fracture", 4, 6, 14, 16)  # 100 px


def map_of(*blocks: tuple[Box, float]) -> np.ndarray:
    values = np.zeros((SIZE, SIZE))
    for box, value in blocks:
        values[pixels_inside(box, SIZE)] = value
    return values


def test_pixels_belong_to_a_box_by_their_centres() -> None:
    inside = pixels_inside(Box("", 1.4, 2.6, 4.5, 4.0), 8)
    assert np.argwhere(inside).tolist() == [[3, 1], [3, 2], [3, 3]]
    assert pixels_inside(TEN, SIZE).sum() == 100
    assert np.argwhere(pixels_inside(Box("", 3.6, 2.6, 3.9, 2.9), 8)).tolist() == [[2, 3]]  # smaller than a pixel
    assert np.argwhere(pixels_inside(Box("", 7.8, 0, 8.0, 0.2), 8)).tolist() == [[0, 7]]


@pytest.mark.parametrize(("columns", "found"), [(1, 0.0), (1.9, 1.0)])
def test_a_box_is_found_if_more_than_a_tenth_of_it_exceeds_the_threshold(columns: float, found: float) -> None:
    # One of ten columns is exactly a tenth; two are more.
    values = map_of((Box("", 4, 6, 4 + columns, 16), 0.9))
    figures = box_figures(values, BoxTruth([TEN], None), EVERYWHERE, 0.5)
    assert figures.recall.tolist() == figures.precision.tolist() == figures.f1.tolist() == [found]


def test_false_positives_by_hand() -> None:
    # In the box 20 px of 0.6; elsewhere 50 px of 0.9 and 30 px of 0.5, which don't exceed the threshold of 0.5.
    values = map_of((Box("", 4, 6, 6, 16), 0.6), (Box("", 20, 0, 30, 5), 0.9), (Box("", 20, 10, 30, 13), 0.5))
    figures = box_figures(values, BoxTruth([TEN], None), EVERYWHERE, 0.5)
    assert figures.false_positives.tolist() == [3]  # int(45 / 12)
    assert figures.precision == pytest.approx([1 / 4])
    assert figures.f1 == pytest.approx([2 * 0.25 / 1.25])
    # Other units change nothing.
    scaled = box_figures(1000 * values, BoxTruth([TEN], None), EVERYWHERE, 500)
    assert scaled.f1 == pytest.approx(figures.f1)
    # Outside the model's region nothing counts, nor outside the mask that says where else.
    region = EVERYWHERE.copy()
    region[:, 25:] = False
    assert box_figures(values, BoxTruth([TEN], None), region, 0.5).false_positives.tolist() == [1]  # int(22.5 / 12)
    assert box_figures(values, BoxTruth([TEN], region), EVERYWHERE, 0.5).false_positives.tolist() == [1]
    nowhere = BoxTruth([TEN], np.zeros_like(region))
    assert box_figures(values, nowhere, EVERYWHERE, 0.5).f1.tolist() == [1]


def test_false_positives_end_at_ten_and_a_silent_box_divides_by_one_pixel() -> None:
    values = map_of((Box("", 20, 0, 24, 1), 0.5 * 1.5))  # 4 px of 1.5 thresholds
    figures = box_figures(values, BoxTruth([TEN], None), EVERYWHERE, 0.5)
    assert (figures.false_positives.tolist(), figures.f1.tolist()) == ([6], [0])
    assert box_figures(values + 1, BoxTruth([Box("", 0, 0, 1, 1)], None), EVERYWHERE, 0.5).false_positives == [10]


def test_boxes_of_one_image_are_not_false_for_each_other() -> None:
    other = Box("metal", 20, 20, 30, 30)
    figures = box_figures(map_of((TEN, 1.0), (other, 9.0)), BoxTruth([TEN, other], None), EVERYWHERE, 0.5)
    assert figures.f1.tolist() == [1, 1]
    assert box_figures(map_of((TEN, 1.0)), BoxTruth([], None), EVERYWHERE, 0.5).f1.size == 0


def test_candidates_are_components_with_their_peak() -> None:
    values = map_of((Box("", 2, 3, 5, 6), 1.0), (Box("", 5, 6, 6, 8), 2.0), (Box("", 20, 20, 21, 21), 0.7))
    values[7, 5] = 3.0
    first, second = candidates(values, EVERYWHERE, 0.5)
    assert first == Candidate(Box("", 2, 3, 6, 8), 7.5, 5.5, 3.0)  # joined by a corner
    assert second == Candidate(Box("", 20, 20, 21, 21), 20.5, 20.5, 0.7)
    assert candidates(values, EVERYWHERE, 3.0) == []
    region = EVERYWHERE.copy()
    region[20, 20] = False
    assert candidates(values, region, 0.5) == [first]


def test_intersection_over_union_by_hand() -> None:
    assert iou(Box("", 0, 0, 4, 2), Box("", 2, 1, 6, 3)) == pytest.approx(2 / 14)
    assert iou(TEN, TEN) == 1
    assert iou(TEN, Box("", 14, 6, 20, 16)) == 0


def test_hit_rules() -> None:
    def candidate(row: float, column: float) -> Candidate:
        return Candidate(Box("", 4, 6, 9, 10), row, column, 1.0)  # IoU with TEN 0.2

    assert peak_inside(candidate(6.0, 4.0), TEN)
    assert not peak_inside(candidate(16.0, 5.0), TEN)
    assert overlaps(candidate(0, 0), TEN)
    assert not overlaps(candidate(0, 0), Box("", 8, 6, 40, 40))


def peak(row: float, column: float, value: float) -> Candidate:
    return Candidate(Box("", column - 0.5, row - 0.5, column + 0.5, row + 0.5), row, column, value)


def test_a_candidate_in_the_margin_of_a_box_is_neither_right_nor_wrong() -> None:
    """`elsewhere` leaves out a margin about each box, and where nothing counts, such as letters."""
    elsewhere = np.zeros((SIZE, SIZE), bool)
    elsewhere[24:, :] = True
    truth = BoxTruth([TEN], elsewhere)
    (inside,) = candidates(map_of((Box("", 8, 8, 10, 10), 0.9)), EVERYWHERE, 0.5)
    (margin,) = candidates(map_of((Box("", 16, 8, 18, 10), 0.9)), EVERYWHERE, 0.5)
    (wrong,) = candidates(map_of((Box("", 8, 26, 10, 28), 0.9)), EVERYWHERE, 0.5)
    assert [is_counted(one, truth) for one in (inside, margin, wrong)] == [True, False, True]
    assert is_counted(margin, BoxTruth([TEN], None)), "without a mask everything counts"
    assert not is_counted(inside, BoxTruth([], elsewhere)), "a healthy image's mask counts too"
    (over,) = candidates(map_of((TEN, 0.6), (Box("", 8, 16, 10, 18), 0.9)), EVERYWHERE, 0.5)
    assert overlaps(over, TEN), "its peak is in the margin: nothing by one rule, a hit by the other"
    assert [is_counted(over, truth, rule) for rule in (peak_inside, overlaps)] == [False, True]


def test_froc_by_hand() -> None:
    """Four images, three boxes; false candidates of 9, 5 and 1."""
    other = Box("metal", 20, 20, 30, 30)
    found = [
        [peak(10, 10, 8), peak(11, 11, 6), peak(0, 0, 9)],  # hits twice, counted once, none of the two false
        [peak(10, 10, 4), peak(25, 25, 0.5), peak(1, 1, 5)],
        [],
        [peak(1, 1, 1)],
    ]
    hits = match(found, [[TEN], [TEN, other], [], []])
    assert hits.best.tolist() == [8, 4, 0.5]
    assert sorted(hits.false.tolist()) == [1, 5, 9]
    assert hits.images == 4
    # No false one allowed: cut above 9. One (0.25 an image): down to 5. Two: down to 1. All three: everything.
    np.testing.assert_allclose(sensitivities(hits, [0.125, 0.25, 0.5, 0.75, 8]), [0, 1 / 3, 2 / 3, 1, 1])
    assert np.isnan(sensitivities(match(found, [[], [], [], []]))).all()
    never = match([[], []], [[TEN], []])
    assert sensitivities(never).tolist() == [0] * 7


def test_a_hit_as_sure_as_a_false_one_is_not_free() -> None:
    hits = match([[peak(10, 10, 5), peak(0, 0, 5)]], [[TEN]])
    np.testing.assert_array_equal(sensitivities(hits, [0.5, 1]), [0, 1])


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
    batch_size: int = 4

    def learned(self, images: Mapping[str, torch.Tensor]) -> list[str]:
        return []

    def model_restorations(self, x: torch.Tensor, names: Sequence[str]) -> tuple[torch.Tensor, torch.Tensor | None]:
        return torch.tensor(np.stack([self.maps(name) for name in names])[:, None], dtype=torch.float32), None

    def scores(self, maps: torch.Tensor) -> torch.Tensor:
        return maps.mean(dim=(1, 2, 3))


KINDS = {"x0": [TEN], "x1": [TEN, Box("metal", 20, 20, 30, 30)], "x2": [Box("metal", 20, 20, 30, 30)]}


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """Three X-rays with boxes on a grid twice as fine as the model's, and two healthy ones; two subjects."""
    generator = np.random.default_rng(0)
    lines = ["image,boxes,elsewhere,subject"]
    for number, name in enumerate(["x0", "x1", "x2", "h0", "h1"]):
        pixels = generator.integers(1, 255, (2 * SIZE, 2 * SIZE)).astype(np.uint8)
        PIL.Image.fromarray(pixels).save(tmp_path / f"{name}.png")
        if name in KINDS:
            text = "".join(
                f"{box.label} {2 * box.left:g} {2 * box.top:g} {2 * box.right:g} {2 * box.bottom:g}\n"
                for box in KINDS[name]
            )
            (tmp_path / f"{name}.txt").write_text(text)
        lines.append(f"{name}.png,{name + '.txt' if name in KINDS else ''},,s{number % 2}")
    path = tmp_path / "cases.csv"
    path.write_text("\n".join(lines) + "\n")
    return path


def perfect(name: str) -> np.ndarray:
    return map_of(*((box, 1.0) for box in KINDS.get(name, [])))


def only_fractures(name: str) -> np.ndarray:
    return map_of(*((box, 1.0) for box in KINDS.get(name, []) if box.label == "fracture"))


def test_boxes_are_measured_by_kind(table: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    detectors = [FakeDetector(perfect), FakeDetector(only_fractures, method="zscore", network_calls=0)]
    results = evaluate(read_cases(table, truth="boxes"), [], detectors, out, protocol="boxes", bootstrap=50)
    assert json.loads((out / "metrics.json").read_text()) == results
    assert results[0]["protocol"] == "boxes"
    for kind, count in {"all": 4, "fracture": 2, "metal": 2}.items():
        figures = results[0]["kinds"][kind]
        assert (figures["boxes"], figures["recall"], figures["f1"]) == (count, 1, 1)
        assert figures["froc"]["mean"] == figures["froc_iou"]["mean"] == 1
        share = {"all": 0.5, "fracture": 1, "metal": 0}[kind]
        figures = results[1]["kinds"][kind]
        assert figures["recall"] == figures["f1"] == figures["froc"]["mean"] == share
        assert figures["froc"]["sensitivity_at"]["0.125"] == share
    assert results[0]["intervals"]["recall"] == [1, 1]
    assert results[1]["intervals"]["f1"] == [0.5, 0.5]  # one box of two for each of the two subjects
    assert results[1]["kinds"]["fracture"]["intervals"] == {"recall": [1, 1], "f1": [1, 1]}
    assert results[1]["kinds"]["metal"]["intervals"] == {"recall": [0, 0], "f1": [0, 0]}
    assert results[0]["image_auroc"] == 1
    assert results[0]["thresholds"] == {
        "boxes": 0,
        "boxes_source": "5 % of the pixels of the 2 healthy images of this evaluation",
    }
    recall, f1 = results[1]["versus"]
    assert (recall["metric"], f1["metric"]) == ("recall", "f1")
    assert f1["difference"] == -0.5
    assert f1["p_value"] == 0.5  # two subjects: both or none of the two swaps are as far from zero
    assert results[1]["counts"]["boxes_not_found"] == 2
    with (out / "cases.csv").open(newline="") as file:
        rows = {(row["method"], row["name"]): row for row in csv.DictReader(file)}
    assert len(rows) == 10
    assert rows["zscore", "x1"]["boxes_not_found"] == rows["zscore", "x1"]["boxes_not_hit_by_peak"] == "1"
    assert rows["zscore", "h0"]["recall"] == ""
    lines = [line for line in (out / "table.md").read_text().splitlines() if line.startswith("| zscore")]
    assert len(lines) == 3
    assert "| zscore | - | - | 0 | fracture | 2 | 1.000 [1.000, 1.000] | 1.000 [1.000, 1.000] |" in lines[1]
    assert baseline_warning(results) is None
    assert "100.0 % F1" in str(baseline_warning([results[0] | {"method": "zscore"}, results[0]]))


def test_a_label_that_is_called_all_is_a_kind(table: Path, tmp_path: Path) -> None:
    for name in ("x1", "x2"):
        path = table.parent / f"{name}.txt"
        path.write_text(path.read_text().replace("metal", "all"))
    cases = read_cases(table, truth="boxes")
    (result,) = evaluate(cases, [], [FakeDetector(perfect)], tmp_path / "out", protocol="boxes")
    assert {kind: of_kind["boxes"] for kind, of_kind in result["kinds"].items()} == {
        "all": 4,
        "all (label)": 2,
        "fracture": 2,
    }


def test_seeds_and_costs_are_of_all_kinds(table: Path, tmp_path: Path) -> None:
    cases = read_cases(table, truth="boxes")
    by_seed = {
        seed: evaluate(cases, [], [FakeDetector(maps)], tmp_path / f"{seed}", protocol="boxes")
        for seed, maps in enumerate((perfect, only_fractures))
    }
    (summary,) = over_seeds(by_seed)
    assert summary["values"]["recall"] == summary["values"]["f1"] == summary["values"]["froc/mean"] == [1, 0.5]
    assert b"<!-- thor" in plot_cost(by_seed[0])["svg"]


def test_threshold_is_exceeded_by_a_twentieth_of_healthy_pixels(table: Path, tmp_path: Path) -> None:
    def ramp(name: str) -> np.ndarray:
        return np.random.default_rng(len(name)).permutation(SIZE**2).reshape(SIZE, SIZE) + float(name == "h1") * SIZE**2

    (result,) = evaluate(
        read_cases(table, truth="boxes"), [], [FakeDetector(ramp)], tmp_path / "o", protocol="boxes", bootstrap=0
    )
    # 5 % of both images' pixels are 102: all of them are in the second one, the highest of its values up to 2047.
    assert result["thresholds"]["boxes"] == 2047 - 102


def test_boxes_need_healthy_images_and_readable_boxes(table: Path, tmp_path: Path) -> None:
    cases = read_cases(table, truth="boxes")
    with pytest.raises(ThoradError, match="None of the images is healthy"):
        evaluate(cases[:3], [], [FakeDetector(perfect)], tmp_path / "out", protocol="boxes")
    with pytest.raises(ThoradError, match=r"nothing to measure.*columns image and boxes"):
        evaluate(cases[3:], [], [FakeDetector(perfect)], tmp_path / "out", protocol="boxes")
    with pytest.raises(ThoradError, match=r"marked as diseased.*x0\.png"):
        evaluate(cases, [cases[0].image], [FakeDetector(perfect)], tmp_path / "out", protocol="boxes")
    (tmp_path / "x0.txt").write_text("fracture 0 0 900 900\n")
    (result,) = evaluate(
        cases[:3], [case.image for case in cases[3:]], [FakeDetector(perfect)], tmp_path / "out", protocol="boxes"
    )
    assert [failure["name"] for failure in result["failures"]] == ["x0"]
    assert (result["counts"]["boxes"], result["counts"]["healthy_images"]) == (3, 2)


def test_a_mask_says_what_counts_as_false(table: Path, tmp_path: Path) -> None:
    mask = np.zeros((2 * SIZE, 2 * SIZE), np.uint8)
    mask[:, :40] = 255
    PIL.Image.fromarray(mask).save(tmp_path / "left.png")

    def with_noise(name: str) -> np.ndarray:
        # 16 px of value 25 right of the mask's edge: four times the sum of a box of 100 px.
        return perfect(name) + (map_of((Box("", 20, 0, 24, 4), 25.0)) if name in KINDS else 0)

    cases = read_cases(table, truth="boxes")
    masked = [replace(c, elsewhere=tmp_path / "left.png" if c.boxes else None) for c in cases]
    f1 = []
    for chosen in (cases, masked):
        (result,) = evaluate(chosen, [], [FakeDetector(with_noise)], tmp_path / "o", protocol="boxes", bootstrap=0)
        f1.append(result["kinds"]["all"]["f1"])
    assert f1 == pytest.approx([2 * 0.2 / 1.2, 1.0])


def test_real_wrists_are_measured(shared_data: Path, tmp_path: Path) -> None:
    """Two annotated X-rays; the unlabelled ones stand in for healthy ones. What is bright is taken for a finding."""
    wrist = shared_data / "wrist"
    files = {path.stem: path for path in sorted(wrist.iterdir()) if path.suffix in (".xml", ".txt")}
    cases = [Case(wrist / f"{name}.png", None, name[:4], name, boxes=path) for name, path in files.items()]

    class Brightness(FakeDetector):
        def model_restorations(self, x: torch.Tensor, names: Sequence[str]) -> tuple[torch.Tensor, torch.Tensor | None]:
            return x, None

    detector = Brightness(perfect, model_size=64, region=np.ones((64, 64), bool))
    unlabelled = sorted(wrist.glob("unlabelled_*.png"))
    (result,) = evaluate(cases, unlabelled, [detector], tmp_path / "out", protocol="boxes", bootstrap=20)
    assert result["failures"] == []
    assert result["counts"]["healthy_images"] == 4
    assert {"all", "fracture", "text"} <= result["kinds"].keys()
    assert result["kinds"]["text"]["recall"] == 1  # the letter of lead is as bright as anything
    assert result["kinds"]["all"]["boxes"] == sum(
        figures["boxes"] for kind, figures in result["kinds"].items() if kind != "all"
    )
