import csv
import io
import json
import re
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import PIL.Image
import pytest
import torch
from typer.testing import CliRunner, Result

from thorad import cli
from thorad.apps import reproduce
from thorad.apps.reproduce import PUBLISHED_TABLE_1, Settings, every_nth
from thorad.apps.reproduce import reproduce as run
from thorad.apps.reproduce_data import check_layout
from thorad.datasets.atlas import MNI_2009A
from thorad.datasets.boxes import Box, voc_xml
from thorad.datasets.cases import Case, read_cases
from thorad.datasets.published import wrist_split
from thorad.detector import Detector
from thorad.errors import ThoradError
from thorad.evaluation.evaluate import evaluate
from thorad.evaluation.statistics import title
from thorad.selection import comparison

QUICK = Settings(device="cpu", bootstrap=20)
SIDES = {"sub-1_a": 2, "sub-1_b": 4, "sub-2_a": 2, "sub-2_b": 8, "sub-3_a": 4, "sub-3_b": 7}  # px of 32, lesions' sides


def thorad_command(*arguments: object) -> Result:
    result = CliRunner().invoke(cli.app, [str(argument) for argument in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def write_image(path: Path, seed: int, side: int = 32, dark: tuple[slice, slice] | None = None) -> None:
    pixels = np.add.outer(np.hanning(side), np.hanning(side)) * 100
    pixels += np.random.default_rng(seed).random((side, side)) * 40
    if dark is not None:
        pixels[dark] = 0
    path.parent.mkdir(parents=True, exist_ok=True)
    PIL.Image.fromarray(pixels.astype(np.uint8)).save(path)


def write_table(path: Path, rows: list[dict[str, str]]) -> None:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]))
    writer.writeheader()
    writer.writerows(rows)
    path.write_text(text.getvalue())


@pytest.fixture(scope="module")
def brain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A prepared bench: two lesions of each size in three subjects, and two healthy scans."""
    folder = tmp_path_factory.mktemp("brain")
    rows = []
    for seed, (name, side) in enumerate(SIDES.items()):
        where = (slice(10, 10 + side), slice(12, 12 + side))
        write_image(folder / "images" / f"{name}.png", seed, dark=where)
        mask = np.zeros((32, 32), np.uint8)
        mask[where] = 255
        (folder / "masks").mkdir(exist_ok=True)
        PIL.Image.fromarray(mask).save(folder / "masks" / f"{name}.png")
        rows.append({"image": f"images/{name}.png", "mask": f"masks/{name}.png", "subject": name[:5]})
    write_table(folder / "cases.csv", rows)
    for seed in (7, 8):
        write_image(folder / "healthy" / f"sub-{seed}.png", seed)
    return folder


@pytest.fixture(scope="module")
def wrist_bench(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A prepared bench: three images with a box each, of two kinds, and two healthy ones, also in the table."""
    folder = tmp_path_factory.mktemp("wrist")
    rows = []
    for seed, kind in enumerate(["metal", "fracture", "metal"]):
        write_image(folder / "images" / f"{seed}.png", seed, dark=(slice(8, 14), slice(10, 18)))
        (folder / "boxes").mkdir(exist_ok=True)
        (folder / "boxes" / f"{seed}.xml").write_bytes(voc_xml([Box(kind, 10, 8, 18, 14)], 32, 32))
        rows.append(
            {"image": f"images/{seed}.png", "boxes": f"boxes/{seed}.xml", "elsewhere": "", "subject": f"s{seed}"}
        )
    for seed in (7, 8):
        write_image(folder / "healthy" / f"{seed}.png", seed)
        rows.append({"image": f"healthy/{seed}.png", "boxes": "", "elsewhere": "", "subject": f"s{seed}"})
    write_table(folder / "cases.csv", rows)
    return folder


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Maps of another brightness for each method, noise and level: the network's cost half a second each."""

    def maps(self: Detector, x: torch.Tensor, names: Sequence[str]) -> tuple[torch.Tensor, torch.Tensor]:
        healthy = ((self.noise_level or 0) + 10 * len(self.method) + len(self.noise or "")) / 1000
        return (x - healthy).abs() * torch.from_numpy(self.region), torch.full_like(x, healthy)

    monkeypatch.setattr(Detector, "model_restorations", maps)


def without_time(results: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{key: value for key, value in result.items() if key != "cpu_seconds_per_case"} for result in results]


# ---- table 1


@pytest.mark.usefixtures("no_network")
def test_table_1_on_a_bench(tiny_model: Path, brain: Path, tmp_path: Path) -> None:
    """The same figures as `evaluate` gives for the same detectors, and the published ones beside them."""
    out = tmp_path / "out"
    found = run("table1", brain, [tiny_model], out, QUICK)
    assert {path.name for path in out.iterdir()} == {
        *("metrics.json", "cases.csv", "table.md", "run.json", "report.md", "maps")
    }
    keys = [(result["method"], result["noise"]) for result in found.results]
    assert {("thor", "simplex"), ("thor", "gaussian"), ("anoddpm", "simplex"), ("zscore", None)} <= set(keys)
    assert len(keys) == len(set(keys))
    detectors = [Detector(tiny_model, method=method, noise=noise, device="cpu", draws=1) for method, noise in keys]
    healthy = sorted((brain / "healthy").iterdir())
    expected = evaluate(read_cases(brain / "cases.csv"), healthy, detectors, tmp_path / "same", bootstrap=20)
    assert without_time(found.results) == without_time(expected)
    assert json.loads((out / "metrics.json").read_text()) == found.results

    report = (out / "report.md").read_text()
    assert "These are not the paper's data" in report
    assert "6 images with a finding and 0 without of 3 subjects, and 2 images in healthy/" in report
    best = found.results[keys.index(("thor", "simplex"))]["best_dice"]
    measured = " | ".join(f"{best[group]:.1f}" for group in ("average", "paper_mix", "small", "medium", "large"))
    assert f"| thor (simplex) | {measured} | 29.74/11.54/39.20/63.64 |" in report
    assert "| pddpm (simplex) | - | - | - | - | - | 22.28/8.02/30.16/47.66 |" in report
    assert "Models: tiny for thor (simplex), thor (gaussian), " in report


def test_published_averages_are_the_groups_in_one_mix() -> None:
    """Six published rows of four figures: a misprint in any would show."""
    rows = np.array(list(PUBLISHED_TABLE_1.values()))
    mix, *_ = np.linalg.lstsq(rows[:, 1:], rows[:, 0])
    np.testing.assert_allclose(rows[:, 1:] @ mix, rows[:, 0], atol=0.01)
    assert mix.sum() == pytest.approx(1, abs=0.01)


@pytest.mark.usefixtures("no_network")
def test_table_1_on_atlas(tiny_model: Path, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    affine = np.eye(4)
    affine[:3, 3] = MNI_2009A.origin_mm
    for subject, lesion_slice in {"sub-r001s001": 95, "sub-r001s002": 95, "sub-r001s003": 40}.items():
        folder = tmp_path / "atlas" / "Training" / "R001" / subject / "ses-1" / "anat"
        folder.mkdir(parents=True)
        stem = folder / f"{subject}_ses-1_space-MNI152NLin2009aSym"
        for ending, values in {
            "T1w": rng.integers(1, 255, (197, 233)),
            "label-L_desc-T1lesion_mask": np.pad(np.ones((60, 60)), ((60, 77), (80, 93))),
        }.items():
            voxels = np.zeros(MNI_2009A.shape, np.uint8)
            voxels[:, :, lesion_slice] = values
            nibabel.save(nibabel.Nifti1Image(voxels, affine), f"{stem}_{ending}.nii.gz")
    checked = check_layout("table1", tmp_path / "atlas")
    assert checked.problems == []
    assert "3 of 3 scans lie on the grid of MNI152NLin2009aSym." in checked.found
    found = run("table1", tmp_path / "atlas", [tiny_model], tmp_path / "out", QUICK)
    assert found.results[0]["counts"]["lesion_cases"] == found.results[0]["counts"]["large"] == 2
    report = (tmp_path / "out" / "report.md").read_text()
    assert "The data are the paper's, ATLAS v2.0: every slice k = 95 with a lesion counts" in report
    assert "These are not the paper's" not in report
    assert "2 slices k = 95 with a lesion, 1 without (left out), 0 unusable scans." in report
    (cases,) = (tmp_path / "out" / "slices").glob("cases.csv")
    assert len(read_cases(cases)) == 2


def test_each_noise_takes_the_first_model_that_knows_it(tiny_model: Path, tmp_path: Path) -> None:
    """The paper has a network for each kind of noise."""
    folders = {}
    for kind in ("gaussian", "simplex"):
        folders[kind] = tmp_path / kind
        shutil.copytree(tiny_model, folders[kind])
        recipe = folders[kind] / "recipe.toml"
        lines = recipe.read_text().replace('    "gaussian",\n    "simplex",\n', f'    "{kind}",\n')
        lines = lines.replace("    0.5,\n    0.5,\n", "    1.0,\n").replace("    1.0,\n    1.0,\n", "    1.0,\n")
        recipe.write_text(lines)
    asked = comparison([folders["gaussian"], folders["simplex"], tiny_model])
    models = {(method, noise): model for model, method, noise in asked}
    assert models["thor", "gaussian"] == models["ddpm", "gaussian"] == models["zscore", None] == folders["gaussian"]
    assert models["thor", "simplex"] == models["anoddpm", "simplex"] == folders["simplex"]
    noises = [noise for _, method, noise in asked if method == "thor"]
    assert noises == ["simplex", "gaussian"], "the first THOR is what others are compared with, whatever the models"


# ---- table 2


@pytest.mark.usefixtures("no_network")
def test_table_2_on_a_bench(tiny_model: Path, wrist_bench: Path, tmp_path: Path) -> None:
    found = run("table2", wrist_bench, [tiny_model], tmp_path / "out", QUICK)
    first = found.results[0]
    assert first["counts"]["boxes"] == 3
    assert first["counts"]["healthy_images"] == 2, "an image of healthy/ that stands in the table counts once"
    report = (tmp_path / "out" / "report.md").read_text()
    assert "The figures of the paper's table 2 are not at hand" in report
    assert "These are not the paper's data (GRAZPEDWRI-DX)." in report
    for result in found.results:
        for kind, boxes in {"all": 3, "fracture": 1, "metal": 2}.items():
            figures = result["kinds"][kind]
            (lowest, highest), shown = figures["intervals"]["f1"], f"{figures['recall']:.3f} ["
            assert f"| {title(result)} | {kind} | {boxes} | {shown}" in report
            assert f"| {figures['f1']:.3f} [{lowest:.3f}, {highest:.3f}] |" in report


@pytest.mark.usefixtures("no_network")
def test_table_2_on_grazpedwri(tiny_model: Path, tmp_path: Path) -> None:
    """The published layout, images in parts and VOC files, with names of the published lists."""
    data, split = tmp_path / "data", wrist_split()
    broken = next(name for name, count in split["fracture"].items() if count == 1 and name not in split["metal"])
    for name, boxes in {
        broken: [Box("fracture", 10, 8, 18, 14), Box("text", 0, 0, 4, 4)],
        **{name: [] for name in list(split["test"])[:2]},
        next(iter(split["train"])): [],
    }.items():
        write_image(data / "images_part1" / f"{name}.png", len(boxes))
        (data / "folder_structure" / "pascalvoc").mkdir(parents=True, exist_ok=True)
        (data / "folder_structure" / "pascalvoc" / f"{name}.xml").write_bytes(voc_xml(boxes, 32, 32))
    result = thorad_command("reproduce", "table2", "--data", data, "--check")
    assert result.exit_code == 0, result.output
    assert "1 images with findings of 1 patients; healthy 1 for train, 0 for validation, 2 for test" in result.stdout
    assert "1599 of train, 201 of validation, 1037 of test, 122 of boneanomaly" in result.stdout
    found = run("table2", data, [tiny_model], tmp_path / "out", QUICK)
    assert found.results[0]["kinds"].keys() == {"all", "fracture"}
    assert found.results[0]["counts"]["healthy_images"] == 2
    report = (tmp_path / "out" / "report.md").read_text()
    assert "The data are the paper's, GRAZPEDWRI-DX, and so is the split" in report
    assert "135 patients have images for training and for the test, 31 images for training are listed for a" in report
    assert "The figures of the paper's table 2 are not at hand" in report


# ---- figure 4


@pytest.fixture
def two_levels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reproduce, "NOISE_LEVELS", (50, 400))


@pytest.mark.usefixtures("no_network")
def test_figure_4(
    tiny_model: Path, brain: Path, tmp_path: Path, two_levels: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    told: list[tuple[int, int, str]] = []
    floors: list[Any] = []
    monkeypatch.setattr(reproduce, "baseline_warning", lambda best: floors.append(best) or "the floor wins")
    found = run("fig4", brain, [tiny_model], out, QUICK, on_progress=lambda *step: told.append(step))
    report = (out / "report.md").read_text()
    assert "Each at its best noise level: the floor wins" in report
    best = max(found.results[6:8], key=lambda result: result["best_dice"]["average"])
    assert len(floors[0]) == 5
    assert best in floors[0]
    assert "**Few subjects: " in report
    curves = [(result["method"], result["noise"], result["noise_level"]) for result in found.results]
    assert curves == [
        *(("ddpm", "gaussian", level) for level in (50, 400)),
        *(("anoddpm", "simplex", level) for level in (50, 400)),
        *(("thor", "gaussian", level) for level in (50, 400)),
        *(("thor", "simplex", level) for level in (50, 400)),
        ("zscore", None, None),
    ]
    assert told[-1] == (9 * 6, 9 * 6, "zscore")
    assert [done for done, _, _ in told] == sorted(done for done, _, _ in told)

    # A point is what the protocol says of a detector that starts at that level.
    thor = Detector(tiny_model, method="thor", noise="gaussian", noise_level=50, device="cpu", draws=1)
    assert thor.options.harmonise_at == (50,)
    cases = read_cases(brain / "cases.csv")
    (expected,) = evaluate(cases, [], [thor], tmp_path / "same", bootstrap=20, permutations=0)
    point = found.results[4]
    assert point["best_dice"] == expected["best_dice"]
    assert point["intervals"]["best_dice"] == expected["intervals"]["best_dice"]

    with (out / "sweep.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["noise_level"] for row in rows] == ["50", "400"] * 4 + [""]
    assert float(rows[4]["best_dice_average"]) == expected["best_dice"]["average"]
    low, high = expected["intervals"]["best_dice"]["paper_mix"]
    assert (float(rows[4]["best_dice_paper_mix_low"]), float(rows[4]["best_dice_paper_mix_high"])) == (low, high)
    assert json.loads((out / "metrics.json").read_text()) == found.results
    with PIL.Image.open(out / "figure4.png") as picture:
        assert picture.width == 2000
    assert b"THOR, simplex noise" in (out / "figure4.svg").read_bytes()
    assert "![best Dice against the noise level](figure4.png)" in (out / "report.md").read_text()

    # An interrupted sweep resumes: only the maps that are gone are made again, and the results are the same.
    shutil.rmtree(out / "levels" / "thor-simplex-400" / "maps")
    (out / "metrics.json").unlink()
    measured: list[str] = []
    maps = Detector.model_restorations

    def counted(self: Detector, x: torch.Tensor, names: Sequence[str]) -> tuple[torch.Tensor, torch.Tensor]:
        measured.extend(f"{self.method}-{self.noise_level}-{name}" for name in names)
        return maps(self, x, names)

    monkeypatch.setattr(Detector, "model_restorations", counted)
    again = run("fig4", brain, [tiny_model], out, QUICK)
    assert measured == [f"thor-400-images__{name}" for name in SIDES]
    assert without_time(again.results) == without_time(found.results)

    # Maps of other options are not taken for these.
    other = run("fig4", brain, [tiny_model], out, Settings(device="cpu", bootstrap=20, seed=1))
    assert len(measured) == len(SIDES) * (1 + len(curves))
    assert other.results[4]["intervals"] != point["intervals"]
    half = run("fig4", brain, [tiny_model], out, Settings(device="cpu", bootstrap=20, every=2))
    assert half.results[4]["counts"]["lesion_cases"] == 3
    assert len(measured) == len(SIDES) * (1 + len(curves)), "the maps of these cases were there"


def test_levels_that_the_model_does_not_know_are_told(
    tiny_model: Path, brain: Path, tmp_path: Path, two_levels: None
) -> None:
    model = tmp_path / "model"
    shutil.copytree(tiny_model, model)
    recipe = (model / "recipe.toml").read_text()
    assert "train_below = 1000" in recipe
    (model / "recipe.toml").write_text(recipe.replace("train_below = 1000", "train_below = 400"))
    result = thorad_command(
        *("reproduce", "fig4", "--data", brain, "--models", model, "--out", tmp_path / "out"),
        *("--device", "cpu", "--bootstrap", 0, "--every", 2),
    )
    assert result.exit_code == 0, result.output
    assert "Left out: ddpm (gaussian) at 400: its model was trained below timestep 400;" in result.stdout
    assert "Every 2-th case only." in result.stdout
    found = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert [one["noise_level"] for one in found] == [50] * 4 + [None]
    assert all(one["counts"]["lesion_cases"] == 3 for one in found)


def test_without_matplotlib(tiny_model: Path, brain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ThoradError, match=r"pip install 'thorad\[plots\]'"):
        run("fig4", brain, [tiny_model], tmp_path / "out", QUICK)
    assert not (tmp_path / "out").exists(), "told before the work"


# ---- ablation


def test_ablation(tiny_model: Path, brain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two parts changed, with the network: each row is what `evaluate` says of a detector with that setting."""
    chosen = ({}, {"harmonise": "renoised"}, {"harmonise_at": (200, 50)})
    monkeypatch.setattr(reproduce, "ABLATIONS", chosen)
    found = run("ablation", brain, [tiny_model], tmp_path / "out", QUICK)
    assert [one.get("settings") for one in found.results] == [None, "harmonise renoised", "harmonise_at 200/50"]
    assert [one["network_calls"] for one in found.results] == [8, 8, 4]
    renoised = Detector(tiny_model, device="cpu", draws=1, settings={"harmonise": "renoised"})
    healthy = sorted((brain / "healthy").iterdir())
    (alone,) = evaluate(read_cases(brain / "cases.csv"), healthy, [renoised], tmp_path / "same", bootstrap=20)
    assert found.results[1]["best_dice"] == alone["best_dice"]
    assert found.results[1]["best_dice"] != found.results[0]["best_dice"]
    (entry,) = (one for one in found.results[1]["versus"] if one["metric"] == "average")
    low, high = entry["interval"]
    report = (tmp_path / "out" / "report.md").read_text()
    assert f"| {entry['difference']:+.1f} [{low:+.1f}, {high:+.1f}] | {entry['p_value']:.4f} |" in report
    assert "| as published | 8 |" in report
    assert "| harmonise_at 200/50 | 4 |" in report


def test_every_ablation_is_a_way_to_run_thor(tiny_model: Path) -> None:
    made = [Detector(tiny_model, device="cpu", draws=1, settings=settings) for settings in reproduce.ABLATIONS]
    assert len({str(one.settings) for one in made}) == len(reproduce.ABLATIONS), "no two are the same"
    calls = {str(one.settings): one.network_calls for one in made}
    assert calls["{}"] == calls["{'harmonise': 'renoised'}"] == 8
    assert calls["{'harmonise': 'none'}"] == 5


# ---- what holds for all


def test_every_nth_spreads_over_the_subjects() -> None:
    cases = [Case(Path(f"{i}.png"), None, f"sub-{i % 5}", str(i)) for i in range(20)]
    assert every_nth(cases, 1) == sorted(cases, key=lambda case: case.subject)
    assert {case.subject for case in every_nth(cases, 4)} == {f"sub-{number}" for number in range(5)}
    with pytest.raises(ThoradError, match="every is 0, expected 1"):
        Settings(every=0)


@pytest.mark.usefixtures("no_network")
def test_command(tiny_model: Path, brain: Path, tmp_path: Path) -> None:
    result = thorad_command("reproduce", "table1", "--data", brain, "--check")
    assert result.exit_code == 0, result.output
    assert "6 images with a finding" in result.stdout
    assert not (tmp_path / "out").exists()
    result = thorad_command("reproduce", "table1", "--data", brain)
    assert result.exit_code == 2
    assert "--out is missing" in result.stderr
    (tmp_path / "broken").mkdir()
    shutil.copytree(brain, tmp_path / "broken", dirs_exist_ok=True)
    (tmp_path / "broken" / "images" / "sub-1_a.png").write_bytes(b"not a PNG")
    result = thorad_command(
        *("reproduce", "table1", "--data", tmp_path / "broken", "--models", tiny_model, "--out", tmp_path / "out"),
        *("--device", "cpu", "--bootstrap", 0),
    )
    assert result.exit_code == 1, "one file failed, the others are measured"
    assert "sub-1_a" in result.stderr
    assert re.search(r"^thor \(simplex\) .* 29\.74/11\.54/39\.20/63\.64$", result.stdout, flags=re.MULTILINE)
    assert max(map(len, result.stdout.splitlines()[:8])) <= 80, "fits a plain terminal"
    assert "Left out: images__sub-1_a" in (tmp_path / "out" / "report.md").read_text()


@pytest.mark.parametrize(
    ("target", "layouts"),
    [("table1", "ATLAS v2.0 as published"), ("fig4", "ATLAS v2.0"), ("table2", "GRAZPEDWRI-DX as published")],
)
def test_neither_layout(target: Any, layouts: str, tiny_model: Path, tmp_path: Path) -> None:
    (tmp_path / "holiday.jpg").touch()
    for act in (
        lambda: check_layout(target, tmp_path),
        lambda: run(target, tmp_path, [tiny_model], tmp_path / "out"),
    ):
        with pytest.raises(ThoradError, match=rf"at the top holiday\.jpg\. Expected a prepared bench.*{layouts}"):
            act()
    with pytest.raises(ThoradError, match="no such folder"):
        check_layout(target, tmp_path / "gone")


def test_check_tells_bad_volumes(tmp_path: Path) -> None:
    folder = tmp_path / "sub-r001s001" / "ses-1" / "anat"
    folder.mkdir(parents=True)
    for ending in ("T1w", "mask"):
        nibabel.save(
            nibabel.Nifti1Image(np.zeros((4, 4, 4), np.uint8), np.eye(4)),
            folder / f"sub-r001s001_ses-1_{ending}.nii.gz",
        )
    result = thorad_command("reproduce", "table1", "--data", tmp_path, "--check")
    assert result.exit_code == 1
    assert "0 of 1 scans lie on the grid" in result.stdout
    assert "a grid of 4 x 4 x 4 voxels" in result.stderr
