"""The verbs, through the command line: what they print, what they leave, and with which code they end."""

import csv
import json
import re
import subprocess
import sys
from inspect import signature
from io import StringIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any, get_args, get_type_hints

import numpy as np
import PIL.Image
import pytest
from rich.console import Console
from typer.testing import CliRunner, Result

import thorad
from test_implant_image_sets import hand, save
from thorad import cli
from thorad.cli import measure, render
from thorad.evaluation import evaluate as evaluation
from thorad.evaluation.evaluate import DEFAULT_PROTOCOL, PROTOCOLS
from thorad.evaluation.statistics import PERMUTATIONS
from thorad.implant.image_sets import XRAY_KINDS
from thorad.model import load_model
from thorad.recipe import Recipe, bundled_recipes

CONTROL = re.compile(r"\x1b|\r")


def thorad_command(*arguments: object) -> Result:
    result = CliRunner().invoke(cli.app, [str(argument) for argument in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert not CONTROL.search(result.output), "no control codes where nobody watches"
    return result


def detect(tiny_model: Path, *arguments: object) -> Result:
    steps = () if "zscore" in arguments else ("--steps", 5)
    return thorad_command("detect", *arguments, "--model", tiny_model, *steps, "--device", "cpu")


def write_scan(path: Path, seed: int = 0, lesion: bool = False) -> Path:
    pixels = np.add.outer(np.hanning(32), np.hanning(32)) * 100 + np.random.default_rng(seed).random((32, 32)) * 40
    if lesion:
        pixels[10:16, 12:18] = 0
    path.parent.mkdir(parents=True, exist_ok=True)
    PIL.Image.fromarray(pixels.astype(np.uint8)).save(path)
    return path


def write_mask(path: Path, size: int = 32) -> Path:
    mask = np.zeros((size, size), np.uint8)
    mask[10:16, 12:18] = 255
    path.parent.mkdir(parents=True, exist_ok=True)
    PIL.Image.fromarray(mask).save(path)
    return path


@pytest.fixture
def bench(tmp_path: Path) -> Path:
    """Four lesion cases and two healthy ones."""
    rows = ["image,mask,subject"]
    for index in range(6):
        write_scan(tmp_path / "bench" / f"i{index}.png", index, lesion=index < 4)
        mask = write_mask(tmp_path / "bench" / "masks" / f"i{index}.png").relative_to(tmp_path / "bench")
        rows.append(f"i{index}.png,{mask if index < 4 else ''},sub-{index}")
    (tmp_path / "bench" / "cases.csv").write_text("\n".join(rows) + "\n")
    return tmp_path / "bench" / "cases.csv"


# ---- detect


def test_detect(tiny_model: Path, tmp_path: Path) -> None:
    for index in range(7):
        write_scan(tmp_path / "in" / "deep" / f"s{index}.png", index)
    result = detect(tiny_model, tmp_path / "in", "--out", tmp_path / "out")
    assert result.exit_code == 0
    assert "7 done, 0 failed" in result.stdout
    assert f"Results: {tmp_path / 'out'}\n" in result.stdout
    assert result.stderr == ""
    with (tmp_path / "out" / "cases.csv").open(newline="") as file:
        rows = sorted(csv.DictReader(file), key=lambda row: -float(row["score"]))
    shown = re.findall(r"^(deep__s\d) +(\S+)$", result.stdout, flags=re.MULTILINE)
    assert [name for name, _ in shown] == [row["name"] for row in rows[:5]], "the five highest scores"
    assert [float(score) for _, score in shown] == pytest.approx([float(row["score"]) for row in rows[:5]], rel=1e-4)

    again = detect(tiny_model, tmp_path / "in", "--out", tmp_path / "out")
    assert again.exit_code == 0
    assert "7 done (7 of them before), 0 failed" in again.stdout


def test_what_speaks_against_the_model_is_said_once(tmp_path: Path) -> None:
    for index in range(3):
        write_scan(tmp_path / "in" / f"{index}.png", index)
    options = ("--model", "hand-xray64", "--method", "zscore", "--device", "cpu", "--report", "--force")
    result = thorad_command("detect", tmp_path / "in", "-o", tmp_path / "out", *options)
    assert result.exit_code == 0
    assert re.search(r"3 done \(\d of them warned\), 0 failed", result.stdout)
    assert result.stderr.count("don't lie on one another") == 1
    run = json.loads((tmp_path / "out" / "run.json").read_text())
    assert ["don't lie on one another" in text for text in run["warnings"]] == [True]
    assert "lie on one another" not in (tmp_path / "out" / "cases.csv").read_text()
    assert (tmp_path / "out" / "report.html").read_text().count("All results: the training images of model") == 1


def test_a_summary_says_like_reasons_once_and_what_is_there_twice(tiny_model: Path, tmp_path: Path) -> None:
    for name in ("colin_z+15", "colin_z_15", "colin_z=15"):  # '=' becomes '_', so the last two get a hash each
        write_scan(tmp_path / "in" / f"{name}.png")
    write_scan(tmp_path / "in" / "other.png", 1)
    for name in "abc":
        (tmp_path / "in" / f"{name}.png").write_bytes(b"")
    options = ("--out", tmp_path / "out", "--method", "zscore", "--report")
    for _ in range(2):
        result = detect(tiny_model, tmp_path / "in", *options)
        assert re.search(
            r"^a and 2 more \(cases\.csv\) failed: .*a\.png: the file is empty", result.stderr, re.MULTILINE
        )
        assert len(result.stderr.splitlines()) == 2
        told = r"The same pixels under several names: colin_z\+15, colin_z_15-\w{8}, colin_z_15-\w{8}\.\n"
        assert re.search(told, result.stderr)
    assert "The same pixels under several names: colin_z+15, " in (tmp_path / "out" / "report.html").read_text()
    table = (tmp_path / "out" / "cases.csv").read_text()
    assert all(f"{name}.png: the file is empty" in table for name in "abc")


def test_reasons_on_a_terminal_are_short_and_of_all_that_they_name() -> None:
    refused = {
        "a": "it is turned by 23 degrees: correct that (turn 23.00, of healthy scans below 12.00); expected a slice",
        "b": "it is turned by 9 degrees: correct that (turn 9.00, of healthy scans below 12.00); expected a slice",
        "c": "in/c.png: another (see below)",
        "d": "in/d.png: another (see below)",
    }
    assert render.by_reason(render.in_short(refused)) == {
        "a and 1 more (cases.csv)": "it is turned by 9 to 23 degrees: correct that ...",
        "c and 1 more (cases.csv)": "in/c.png: another (see below)",
    }


def test_results_among_the_images_are_no_images(tiny_model: Path, tmp_path: Path) -> None:
    write_scan(tmp_path / "in" / "a.png")
    for earlier in ("", " (1 of them before)"):
        result = detect(tiny_model, tmp_path / "in", "--out", tmp_path / "in" / "results", "--method", "zscore")
        assert result.exit_code == 0
        assert f"1 done{earlier}, 0 failed" in result.stdout
    result = detect(tiny_model, tmp_path / "in", "--out", tmp_path / "in", "--method", "zscore")
    assert result.exit_code == 2
    assert "can't go into the images' own folder" in result.stderr


def test_detect_takes_every_option(tiny_model: Path, tmp_path: Path) -> None:
    scan = write_scan(tmp_path / "a.png")
    result = thorad_command(
        *("detect", scan, "--out", tmp_path / "out", "--model", tiny_model, "--method", "thor", "--noise", "gaussian"),
        *("--steps", "3", "--device", "cpu", "--seed", "5", "--batch-size", "2", "--draws", "3", "--finish", "--quiet"),
    )
    assert (result.exit_code, result.output) == (0, "")
    run = json.loads((tmp_path / "out" / "run.json").read_text())
    options = run["options"]
    assert run["command"] == (
        f"thorad detect {scan} --out {tmp_path / 'out'} --finish --method thor --noise gaussian --model {tiny_model} "
        "--draws 3 --steps 3 --device cpu --seed 5 --batch-size 2 --quiet"
    )
    assert {key: options[key] for key in ("method", "noise", "steps", "seed", "draws", "finish")} == {
        "method": "thor",
        "noise": "gaussian",
        "steps": 3,
        "seed": 5,
        "draws": 3,
        "finish": True,
    }
    result = thorad_command(
        *("detect", scan, "--out", tmp_path / "published", "--model", tiny_model, "--preset", "published"),
        *("--noise-level", "50", "--device", "cpu"),
    )
    assert result.exit_code == 0, result.output
    options = json.loads((tmp_path / "published" / "run.json").read_text())["options"]
    assert (options["method"], options["noise_level"], options["steps"]) == ("published-thor", 50, "all")
    assert "--steps all --noise-level 50" in result.stdout
    assert "--method published-thor" in result.stdout, "of the command that calibrates"
    assert "--perceptual-weights" not in result.stdout
    result = thorad_command(
        *("detect", scan, "--out", tmp_path / "all", "--model", tiny_model, "--method", "ddpm", "--steps", "all"),
        *("--device", "cpu", "--draws", "1"),
    )
    assert result.exit_code == 0
    with (tmp_path / "all" / "cases.csv").open(newline="") as file:
        assert [row["network_calls"] for row in csv.DictReader(file)] == ["351"]


def test_reports_beside_the_results(tiny_model: Path, tmp_path: Path) -> None:
    write_scan(tmp_path / "in" / "a.png")
    write_mask(tmp_path / "in" / "mask.png")
    (tmp_path / "cases.csv").write_text("image,mask\nin/a.png,in/mask.png\n")
    options = ("--method", "zscore", "--model", tiny_model, "--report")
    detected = thorad_command("detect", tmp_path / "in" / "a.png", "--out", tmp_path / "out", *options)
    evaluated = thorad_command("evaluate", tmp_path / "cases.csv", "--out", tmp_path / "table", *options)
    for result, folder in ((detected, "out"), (evaluated, "table")):
        assert result.exit_code == 0, result.output
        page = (tmp_path / folder / "report.html").read_text()
        assert "zscore" in page
        assert f"{tmp_path / folder / 'report.html'} (" in result.stdout
    thorad_command("evaluate", tmp_path / "cases.csv", "--out", tmp_path / "table", *options[:-1])
    assert not (tmp_path / "table" / "report.html").exists(), "of an evaluation whose figures are gone"


def test_a_table_names_the_images(tiny_model: Path, tmp_path: Path) -> None:
    write_scan(tmp_path / "x" / "a.png")
    (tmp_path / "list.csv").write_text("image\nx/a.png\n")
    result = detect(tiny_model, tmp_path / "list.csv", "--out", tmp_path / "out", "--method", "zscore")
    assert result.exit_code == 0
    assert (tmp_path / "out" / "cases" / "x__a" / "anomaly_map.npy").is_file()


def test_failures_keep_the_others_and_end_with_1(tiny_model: Path, tmp_path: Path) -> None:
    write_scan(tmp_path / "in" / "good.png")
    (tmp_path / "in" / "bad.png").write_bytes(b"")
    result = detect(tiny_model, tmp_path / "in", "--out", tmp_path / "out")
    assert result.exit_code == 1
    assert "1 done, 1 failed" in result.stdout
    assert re.fullmatch(r"bad failed: .*bad\.png: the file is empty.*\n", result.stderr), "one line, unbroken"
    assert (tmp_path / "out" / "cases" / "good" / "anomaly_map.npy").is_file()
    (tmp_path / "in" / "good.png").unlink()
    assert detect(tiny_model, tmp_path / "in", "--out", tmp_path / "none").exit_code == 1, "all of them failed"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model", "no-such-model"], "unknown model 'no-such-model'"),
        (["--method", "telepathy"], "unknown method 'telepathy'"),
        (["--noise", "pink"], "unknown noise 'pink'"),
        (["--method", "ddpm", "--noise", "simplex"], "is not possible"),
        (["--steps", "few"], "--steps is 'few', expected a number or all"),
        (["--steps", "0"], "steps is 0"),
        (["--device", "abacus"], "device 'abacus'"),
        (["--perceptual-weights", "nothing.pth"], "nothing.pth: no such file"),
        (["--batch-size", "0"], "--batch-size"),
        (["--seed", "x"], "--seed"),
        (["--colour", "red"], "No such option"),
    ],
)
def test_wrong_arguments_end_with_2(tiny_model: Path, tmp_path: Path, arguments: list[str], message: str) -> None:
    scan = write_scan(tmp_path / "a.png")
    result = thorad_command(
        "detect", scan, "--out", tmp_path / "out", "--model", tiny_model, "--device", "cpu", *arguments
    )
    assert result.exit_code == 2
    assert message in " ".join(result.stderr.split())
    assert "Traceback" not in result.output
    assert not (tmp_path / "out").exists(), "nothing was begun"


def test_missing_arguments_end_with_2(tmp_path: Path) -> None:
    assert thorad_command("detect", tmp_path).exit_code == 2
    assert thorad_command("evaluate").exit_code == 2
    assert thorad_command("nonsense").exit_code == 2


def test_an_error_is_one_red_line_on_a_terminal(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    screen = Console(file=StringIO(), force_terminal=True, color_system="standard", width=40, soft_wrap=True)
    monkeypatch.setattr(render, "error_console", screen)
    result = thorad_command("detect", tmp_path / "[bold]gone", "--out", tmp_path / "out")
    assert result.exit_code == 2
    assert isinstance(screen.file, StringIO)
    said = screen.file.getvalue()
    assert said.startswith("\x1b[31mError: ")
    assert "[bold]gone: no such file or folder" in said, "a file's name is no markup"
    assert said.count("\n") == 1


def test_the_bar_shows_what_remains_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = StringIO()
    monkeypatch.setattr(render, "error_console", Console(file=screen, force_terminal=True, width=100))
    with render.progress_bar("detect") as report:
        report(1, 3)
        report(2, 3, "another")
    shown = screen.getvalue()
    assert "1/3" in shown or "2/3" in shown
    assert "remaining" in shown
    assert "another" in shown
    screen.truncate(0)
    with render.progress_bar("detect", quiet=True) as report:
        report(1, 1)
    assert "1/1" not in screen.getvalue()


@pytest.mark.parametrize("how", ["interrupt", "as Lightning does"])
def test_ctrl_c_ends_with_130(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    def interrupted(*_: object, **__: object) -> None:
        if how == "interrupt":
            raise KeyboardInterrupt
        try:
            raise KeyboardInterrupt
        except KeyboardInterrupt:
            sys.exit(1)

    monkeypatch.setattr("thorad.apps.run.detect_files", interrupted)
    result = detect(tiny_model, write_scan(tmp_path / "a.png"), "--out", tmp_path / "out")
    assert result.exit_code == 130
    assert result.stderr == "Interrupted. Run the same command again to resume.\n"


# ---- calibrate


def calibrate(model: Path, healthy: Path, *arguments: object) -> Result:
    return thorad_command(
        "calibrate", healthy, "--model", model, "--method", "zscore-two-sided", "--device", "cpu", *arguments
    )


@pytest.fixture
def healthy(tmp_path: Path) -> Path:
    """20 scans with anatomy everywhere: the tiny model's z-score is highest where nothing is."""
    for index in range(20):
        generator = np.random.default_rng(index)
        picture = PIL.Image.fromarray((100 + 100 * generator.random((32, 32))).astype(np.uint8))
        (tmp_path / "healthy").mkdir(exist_ok=True)
        picture.save(tmp_path / "healthy" / f"h{index:02d}.png")
    return tmp_path / "healthy"


def test_calibrate_and_detect(tiny_model: Path, healthy: Path, tmp_path: Path) -> None:
    model = tmp_path / "model"
    result = calibrate(tiny_model, healthy, "--out", model)
    assert (result.exit_code, result.stderr) == (0, "")
    assert "Calibrated with method zscore-two-sided on 20 scans" in result.stdout
    assert re.search(r"^1 % +\d\S+$", result.stdout, flags=re.MULTILINE)
    assert "The smallest p-value is 1 / 21 = 0.0476.\n" in result.stdout
    assert f"Calibrated model: {model}\n" in result.stdout
    again = calibrate(model, healthy, "--quiet")
    assert (again.exit_code, again.output) == (0, "")
    made = json.loads((model / "calibration.json").read_text())["calibrations"]
    assert len(made) == 1, "the newer one replaces the older"
    described = thorad_command("models", model)
    assert '"scans": 20' in described.stdout
    assert '"scores"' not in described.stdout

    options = ("--model", model, "--method", "zscore-two-sided", "--device", "cpu")
    result = thorad_command("detect", healthy, "--out", tmp_path / "out", *options, "--false-positives", "0.05")
    assert result.exit_code == 0
    shown = re.findall(r"^(h\d\d) +(\S+) +(\S+) +(\d+)$", result.stdout, flags=re.MULTILINE)
    assert [p for _, _, p, _ in shown] == ["0.0952", "0.143", "0.19", "0.238", "0.286"], "2/21, 3/21, ..."
    assert "p: rank among 20 healthy scans." in result.stdout
    with (tmp_path / "out" / "cases.csv").open(newline="") as file:
        rows = {row["name"]: row for row in csv.DictReader(file)}
    for name, _, p_value, findings in shown:
        assert f"{float(rows[name]['p_value']):.3g}" == p_value
        assert rows[name]["findings"] == findings
        case = json.loads((tmp_path / "out" / "cases" / name / "case.json").read_text())
        assert len(case["findings"]) == int(findings)
        with PIL.Image.open(tmp_path / "out" / "cases" / name / "mask.png") as mask:
            assert (np.asarray(mask) > 0).sum() == sum(finding["pixels"] for finding in case["findings"]) > 0
    other_rate = thorad_command("detect", healthy, "--out", tmp_path / "out", *options)
    assert other_rate.exit_code == 2
    assert "holds results of other options: calibration" in other_rate.stderr


def test_detect_without_a_calibration_says_how_to_get_one(tiny_model: Path, tmp_path: Path) -> None:
    scan = write_scan(tmp_path / "a.png")
    result = detect(tiny_model, scan, "--out", tmp_path / "out", "--noise", "gaussian")
    assert result.exit_code == 0
    command = f"thorad calibrate HEALTHY --model {tiny_model} --method thor --noise gaussian --steps 5"
    assert f"No p-values and masks without a calibration: `{command}` makes it.\n" in result.stdout
    assert not (tmp_path / "out" / "cases" / "a" / "mask.png").exists()


@pytest.mark.parametrize(("method", "words"), [("zscore", "keeps nothing of zscore, which has no steps"), ("thor", "")])
def test_steps_of_a_method_without_steps_are_not_kept_in_silence(
    tiny_model: Path, tmp_path: Path, method: str, words: str
) -> None:
    scan = write_scan(tmp_path / "a.png")
    result = detect(tiny_model, scan, "--out", tmp_path / "out", "--method", method, "--keep-steps")
    assert result.exit_code == 0
    assert words in result.stderr if words else result.stderr == ""


def test_asking_for_a_mask_without_a_calibration_ends_with_2(tiny_model: Path, healthy: Path, tmp_path: Path) -> None:
    scan = write_scan(tmp_path / "a.png")
    result = detect(tiny_model, scan, "--out", tmp_path / "out", "--false-positives", "0.01")
    assert result.exit_code == 2
    assert "not calibrated at all; asked: method thor, noise simplex, steps 5" in result.stderr
    calibrate(tiny_model, healthy, "--out", tmp_path / "model")
    result = detect(tmp_path / "model", scan, "--out", tmp_path / "out", "--false-positives", "0.01")
    assert result.exit_code == 2
    told = "calibrated with method zscore-two-sided; asked: method thor, noise simplex, steps 5, draws 2"
    assert told in result.stderr
    options = ("--model", tmp_path / "model", "--method", "zscore-two-sided", "--device", "cpu")
    result = thorad_command("detect", scan, "--out", tmp_path / "out", *options, "--false-positives", "0.03")
    assert result.exit_code == 2
    assert "is 0.03, but the model is calibrated for 0.01, 0.02, 0.05" in result.stderr
    assert not (tmp_path / "out").exists()


def test_calibrate_for_the_preset(tiny_model: Path, healthy: Path, tmp_path: Path) -> None:
    options = ("--method", "anoddpm", "--preset", "published", "--noise-level", "5")
    result = calibrate(tiny_model, healthy, "--out", tmp_path / "model", *options)
    assert result.exit_code == 0, result.output
    assert "method published-anoddpm" in result.stdout
    scan = healthy / "h00.png"
    command = ("detect", scan, "--model", tmp_path / "model", "--device", "cpu", *options)
    assert "p: rank among 20 healthy" in thorad_command(*command, "--out", tmp_path / "out").stdout
    result = thorad_command(*command[:-2], "--out", tmp_path / "other", "--noise-level", "6")
    assert "No p-values and masks" in result.stdout


def test_calibrate_lists_what_it_left_out_and_ends_with_1(tiny_model: Path, healthy: Path, tmp_path: Path) -> None:
    (healthy / "bad.png").write_bytes(b"")
    write_mask(healthy / "mask.png")
    write_scan(healthy / "sub-1_ses-1.png", 1)
    write_scan(healthy / "sub-1_ses-2.png", 2)
    result = calibrate(tiny_model, healthy, "--out", tmp_path / "model")
    assert result.exit_code == 1
    lines = result.stderr.splitlines()
    assert lines[0].startswith("Warning: 22 scans of 21 subjects: scans of one subject are not independent")
    assert re.match(r"bad left out: .*bad\.png: the file is empty", lines[1])
    assert re.match(
        r"mask left out: .*mask\.png: refused: it has 2 values only, as a mask or segmentation has", lines[2]
    )
    assert len(lines) == 3
    assert "on 22 scans" in result.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--level", "0.01"], "p-values down to 0.01 need 99 healthy scans, found 20. The smallest p-value of n scans"),
        (["--level", "5"], "the level is 5, expected a number between 0 and 1"),
        (["--method", "telepathy"], "unknown method 'telepathy'"),
        (["--steps", "few"], "--steps is 'few'"),
        (["--model", "brain-t1-compact"], "comes with thorad and is not written to. Give --out FOLDER"),
    ],
)
def test_calibrate_with_wrong_arguments_ends_with_2(
    tiny_model: Path, healthy: Path, tmp_path: Path, arguments: list[str], message: str
) -> None:
    out = [] if "--model" in arguments else ["--out", tmp_path / "model"]
    result = calibrate(tiny_model, healthy, *out, *arguments)
    assert result.exit_code == 2
    assert message in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert not (tmp_path / "model").exists()


# ---- evaluate


def test_evaluate(tiny_model: Path, bench: Path, tmp_path: Path) -> None:
    write_scan(tmp_path / "healthy" / "h.png", 9)
    result = thorad_command(
        *("evaluate", bench, "--model", tiny_model, "--method", "thor,anoddpm, ddpm,zscore", "--steps", "3"),
        *("--out", tmp_path / "out", "--device", "cpu", "--bootstrap", "20", "--healthy", tmp_path / "healthy"),
    )
    assert result.exit_code == 0, result.output
    found = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert [(one["method"], one["noise"], one["steps"]) for one in found] == [
        ("thor", "simplex", 3),
        ("thor", "gaussian", 3),
        ("anoddpm", "simplex", 3),
        ("ddpm", "gaussian", 3),
        ("zscore", None, None),
    ]
    assert all(one["counts"]["healthy_cases"] == 3 for one in found)
    assert {"small", "medium", "large", "average", "pooled"} <= found[0]["best_dice"].keys()
    for title in ("thor simplex", "thor gaussian", "anoddpm simplex", "ddpm gaussian", "zscore"):
        assert re.search(rf"^{title} +\d", result.stdout, flags=re.MULTILINE), title
    lines = result.stdout.splitlines()
    assert max(map(len, lines[:7])) <= 100, "fits a terminal"
    assert lines[0].split()[7:11] == ["avg.", "diff.", "p", "AP"]
    zscore = next(line.split() for line in lines if line.startswith("zscore "))
    entries = [entry for entry in found[4]["versus"] if entry["metric"] == "average"]
    assert entries[0]["reference"]["method"] == "thor"
    assert zscore[6] == f"{entries[0]['difference']:+.1f}"
    assert zscore[7] == f"{entries[0]['p_value']:.4f}"
    assert "diff. of avg.: to thor simplex; p: permutation test within subjects." in lines
    assert f"Results: {tmp_path / 'out'}" in result.stdout
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        *("metrics.json", "cases.csv", "table.md", "run.json", "maps")
    }


@pytest.mark.parametrize(("network", "told"), [(39.0, True), (41.0, False)])
def test_evaluate_tells_when_the_floor_wins(
    tiny_model: Path, bench: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, network: float, told: bool
) -> None:
    """Real results but for the two averages: an untrained network's would say which branch only by chance."""
    evaluate = evaluation.evaluate

    def crafted(*arguments: Any, **options: Any) -> list[dict[str, Any]]:
        results = evaluate(*arguments, **options)
        for result, average in zip(results, (network, 40.0), strict=True):
            result["best_dice"]["average"] = average
        return results

    monkeypatch.setattr(evaluation, "evaluate", crafted)
    result = thorad_command(
        *("evaluate", bench, "--model", tiny_model, "--method", "anoddpm,zscore", "--steps", "1"),
        *("--out", tmp_path / "out", "--device", "cpu", "--bootstrap", "0"),
    )
    assert result.exit_code == 0, result.output
    said = " ".join(result.stderr.split())
    assert ("zscore needs no network and reaches 40.0 %" in said) == told
    warnings = json.loads((tmp_path / "out" / "run.json").read_text())["warnings"]
    assert any("zscore needs no network" in text for text in warnings) == told
    assert ("anoddpm (simplex) (39.0 %)" in said) == told


def test_evaluate_with_one_noise(tiny_model: Path, bench: Path, tmp_path: Path) -> None:
    command = ("evaluate", bench, "--model", tiny_model, "--steps", "1", "--device", "cpu", "--bootstrap", "0")
    result = thorad_command(*command, "--method", "thor,zscore", "--noise", "gaussian", "--out", tmp_path / "out")
    assert result.exit_code == 0
    found = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert [(one["method"], one["noise"]) for one in found] == [("thor", "gaussian"), ("zscore", None)]

    result = thorad_command(*command, "--noise", "gaussian", "--out", tmp_path / "default")
    assert result.exit_code == 0
    found = json.loads((tmp_path / "default" / "metrics.json").read_text())
    assert [one["method"] for one in found] == ["thor", "autoddpm", "ddpm", "zscore"]

    result = thorad_command(*command, "--method", "anoddpm", "--noise", "gaussian", "--out", tmp_path / "two")
    assert result.exit_code == 2
    assert "'anoddpm' with noise gaussian is not possible" in result.stderr


def test_evaluate_takes_the_options_of_one_method(tiny_model: Path, bench: Path, tmp_path: Path) -> None:
    command = ("evaluate", bench, "--model", tiny_model, "--device", "cpu", "--bootstrap", "0", "--permutations", "0")
    result = thorad_command(
        *command, "--method", "anoddpm,zscore", "--steps", "1", "--noise-level", "60", "--out", tmp_path / "level"
    )
    assert result.exit_code == 0, result.output
    made = json.loads((tmp_path / "level" / "run.json").read_text())["detectors"]
    assert [one["noise_level"] for one in made] == [60, None], "the z-score has none"
    found = json.loads((tmp_path / "level" / "metrics.json").read_text())
    assert {entry["p_value"] for entry in found[1]["versus"]} == {None}

    command = (*command, "--preset", "published", "--noise-level", "3")
    result = thorad_command(*command, "--method", "anoddpm,ddpm", "--out", tmp_path / "published")
    assert result.exit_code == 0, result.output
    made = json.loads((tmp_path / "published" / "run.json").read_text())["detectors"]
    assert [(one["method"], one["steps"]) for one in made] == [("published-anoddpm", "all"), ("published-ddpm", "all")]
    result = thorad_command(*command, "--method", "zscore", "--out", tmp_path / "none")
    assert result.exit_code == 2
    assert "the preset 'published' has no method 'zscore'. It has thor, anoddpm, ddpm" in result.stderr


def test_evaluate_brain_volumes(tiny_model: Path, bench: Path, tmp_path: Path) -> None:
    rows = ["image,mask,subject"]
    for index in range(20, 23):
        write_scan(bench.parent / f"i{index}.png", index, lesion=True)
        rows.append(f"i{index}.png,masks/i0.png,sub-{index}")
    validation = bench.parent / "validation.csv"
    validation.write_text("\n".join(rows) + "\n")
    command = ("evaluate", bench, "--model", tiny_model, "--device", "cpu", "--bootstrap", "20", "--steps", "1")
    command = (*command, "--method", "anoddpm,zscore", "--validation", validation)
    result = thorad_command(*command, "--protocol", "brain-volumes", "--out", tmp_path / "out")
    assert result.exit_code == 0, result.output
    found = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert [one["protocol"] for one in found] == ["brain-volumes"] * 2
    shown = re.search(r"^anoddpm simplex +1 +(\S+)", result.stdout, flags=re.MULTILINE)
    assert shown is not None
    assert shown[1] == f"{found[0]['mean_dice']:.3f}"
    assert "Threshold: best mean Dice on 3 labelled validation volumes.\n" in result.stdout
    assert max(map(len, result.stdout.splitlines()[:4])) <= 100

    result = thorad_command(*command, "--out", tmp_path / "lesions")
    assert result.exit_code == 2
    assert "The protocol brain-lesions chooses nothing on validation cases" in result.stderr


def test_an_unknown_protocol_ends_with_2(tiny_model: Path, bench: Path, tmp_path: Path) -> None:
    result = thorad_command("evaluate", bench, "--model", tiny_model, "--out", tmp_path / "o", "--protocol", "tarot")
    assert result.exit_code == 2
    said = " ".join(re.sub(r"[│╭╮╰╯─]", " ", result.stderr).split())
    for name in PROTOCOLS:
        assert name in said


def test_the_commands_defaults_are_the_packages() -> None:
    """They are repeated in measure.py, so that `--help` needs no import of the evaluation."""
    assert list(get_args(get_type_hints(measure.evaluate)["protocol"])) == list(PROTOCOLS)
    defaults = {name: option.default for name, option in signature(measure.evaluate).parameters.items()}
    assert (defaults["protocol"], defaults["permutations"]) == (DEFAULT_PROTOCOL, PERMUTATIONS)
    assert signature(measure.implant).parameters["findings"].default == ",".join(XRAY_KINDS)


# ---- implant


def test_implant_in_x_rays_and_evaluate(tiny_model: Path, tmp_path: Path) -> None:
    for index in range(8):
        save(tmp_path / "in" / f"h{index}.png", hand(index))
    out = tmp_path / "bench"
    result = thorad_command("implant", tmp_path / "in", "--out", out, "--findings", "foreign-body, pins")
    assert (result.exit_code, result.stderr) == (0, "")
    assert "8 cases: 3 foreign-body, 3 pins, 2 healthy; 0 images left out.\n" in result.stdout
    told = re.search(r"thorad (evaluate \S+ --protocol boxes) --model MODEL -o DIR", result.stdout)
    assert told is not None
    result = thorad_command(
        *told[1].split(), "--model", tiny_model, "--out", tmp_path / "out", "--steps", "1", "--device", "cpu",
        *("--method", "anoddpm,zscore-two-sided", "--bootstrap", "20"),
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    found = json.loads((tmp_path / "out" / "metrics.json").read_text())
    kinds = found[0]["kinds"]
    assert {kind: figures["boxes"] for kind, figures in kinds.items()} == {"all": 6, "foreignbody": 3, "metal": 3}
    shown = re.search(r"^anoddpm simplex +1 +all +6 +(\S+) +(\S+)", result.stdout, flags=re.MULTILINE)
    assert shown is not None
    assert shown.groups() == (f"{kinds['all']['recall']:.3f}", f"{kinds['all']['f1']:.3f}")
    assert max(map(len, result.stdout.splitlines()[:8])) <= 100

    again = thorad_command("implant", tmp_path / "in", "--out", out)
    assert again.exit_code == 2
    assert f"{out}: already there" in again.stderr


def test_implant_lesions_and_left_out_images(tmp_path: Path) -> None:
    for index in range(4):
        save(tmp_path / "in" / f"s{index}.png", hand(index))
    (tmp_path / "in" / "bad.png").write_bytes(b"")
    command = ("implant", tmp_path / "in", "--findings", "dark,bright", "--healthy-share", "0", "--seed", "2")
    result = thorad_command(*command, "--out", tmp_path / "bench")
    assert result.exit_code == 1
    assert re.match(r"bad\.png left out: .*the file is empty", result.stderr)
    assert "4 cases: 2 dark, 2 bright, 0 healthy; 1 images left out." in result.stdout
    assert "--protocol brain-lesions" in result.stdout
    result = thorad_command("implant", tmp_path / "in", "--findings", "dark,pins", "--out", tmp_path / "other")
    assert result.exit_code == 2
    assert "Findings dark; expected some of pins, plate" in result.stderr


def test_evaluate_with_a_bad_case_ends_with_1(tiny_model: Path, bench: Path, tmp_path: Path) -> None:
    write_mask(bench.parent / "masks" / "i1.png", size=31)
    result = thorad_command(
        *("evaluate", bench, "--model", tiny_model, "--method", "zscore", "--out", tmp_path / "out"),
        *("--device", "cpu", "--bootstrap", "0"),
    )
    assert result.exit_code == 1
    assert re.search(r"^i1 failed: .*i1\.png: the mask is 31 x 31 px, its image 32 x 32 px", result.stderr)
    assert json.loads((tmp_path / "out" / "metrics.json").read_text())[0]["counts"]["lesion_cases"] == 3


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("image,mask\ni0.png,masks/i0.png\ngone.png,\n", "gone.png (line 3)"),
        ("image,mask\ni0.png,masks/gone.png\n", "masks/gone.png (line 2)"),
        ("image\ni0.png\n", "no column mask"),
        ("", "no column image, mask"),
        ("image,mask\ni0.png,\n", "nothing to measure"),
    ],
)
def test_evaluate_with_a_wrong_table_ends_with_2(
    tiny_model: Path, bench: Path, tmp_path: Path, text: str, message: str
) -> None:
    bench.write_text(text)
    result = thorad_command(
        *("evaluate", bench, "--model", tiny_model, "--method", "zscore", "--out", tmp_path / "out"),
        *("--device", "cpu"),
    )
    assert result.exit_code == 2
    assert message in result.stderr
    assert not (tmp_path / "out" / "metrics.json").exists()


def test_an_interrupted_evaluation_says_how_to_resume(
    tiny_model: Path, bench: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("thorad.evaluation.evaluate.evaluate", interrupted)
    result = thorad_command(
        "evaluate", bench, "--model", tiny_model, "--method", "zscore", "--out", tmp_path / "out", "--device", "cpu"
    )
    assert result.exit_code == 130
    assert "Run the same command again to resume." in result.stderr


# ---- train


@pytest.fixture
def fitted(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What the verb asks of `thorad.training.fit.fit`."""
    asked: dict[str, Any] = {}

    def fit(recipe: Recipe, train: Path, out: Path, **options: Any) -> Path:
        asked.update(recipe=recipe, train=train, out=out, **options)
        return out / "model"

    monkeypatch.setitem(sys.modules, "thorad.training.fit", SimpleNamespace(fit=fit))
    return asked


def test_train(fitted: dict[str, Any], tmp_path: Path) -> None:
    result = thorad_command("train", "--recipe", "hand-xray64", "--train", tmp_path / "in", "--out", tmp_path / "out")
    assert result.exit_code == 0
    recipe = fitted.pop("recipe")
    assert (recipe.name, recipe.training.steps) == ("hand-xray64", 3600)
    assert fitted == {
        "train": tmp_path / "in",
        "out": tmp_path / "out",
        "validation": None,
        "accelerator": "auto",
        "devices": "auto",
        "nodes": 1,
        "threads": None,
        "start_from": None,
    }
    assert f"Model: {tmp_path / 'out' / 'model'}\n" in result.stdout


def test_train_takes_every_option(fitted: dict[str, Any], tmp_path: Path) -> None:
    result = thorad_command(
        *("train", "--recipe", "brain-t1-compact", "--train", "t", "--validation", "v", "--out", "o", "--devices", "4"),
        *("--nodes", "2", "--accelerator", "gpu", "--steps", "7", "--start-from", "brain-t1-compact"),
    )
    assert result.exit_code == 0
    assert fitted["recipe"].training.steps == 7
    assert fitted["validation"] == Path("v")
    assert (fitted["devices"], fitted["nodes"], fitted["accelerator"]) == ("4", 2, "gpu")
    assert fitted["start_from"] == "brain-t1-compact"


@pytest.mark.parametrize(
    ("recipe", "message"),
    [("no-such", "unknown recipe 'no-such'"), ("gone.toml", "gone.toml: can't read"), ("x.toml", "colour")],
)
def test_train_with_a_wrong_recipe_ends_with_2(
    fitted: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recipe: str, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("x.toml").write_text('name = "x"\ncolour = 3\n')
    result = thorad_command("train", "--recipe", recipe, "--train", "t", "--out", "o")
    assert result.exit_code == 2
    assert message in result.stderr
    assert not fitted


# ---- models


def test_models_lists_recipes_and_models(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(render.out_console, "width", 120)
    result = thorad_command("models")
    assert result.exit_code == 0
    for name in bundled_recipes():
        assert name in result.stdout
    for name, noise, critic, method in (
        ("brain-t1-compact", "gaussian, simplex", "yes", "critic-only"),
        ("brain-t1-gaussian", "gaussian", "no", "thor"),
        ("brain-t1-patched", "simplex", "no", "pddpm"),
        ("hand-xray64", "gaussian, simplex", "yes", "critic-only"),
    ):
        assert re.search(rf"^{name} +{noise} +{critic} +{method} +\d", result.stdout, flags=re.MULTILINE), name
    shown = thorad_command("models", "brain-t1-gaussian").stdout
    assert "method      thor, if none is asked for" in shown
    assert re.search(r'kinds = \[\s+"gaussian",\s+\]\s+share = \[\s+1\.0,\s+\]', shown)


def test_models_describes_one(tiny_model: Path) -> None:
    result = thorad_command("models", tiny_model)
    assert result.exit_code == 0
    model = load_model(tiny_model)
    assert model.sha256 in result.stdout
    assert "noise       gaussian, simplex" in result.stdout
    assert f"{model.parameters / 1e6:.2f} million" in result.stdout
    assert "Random weights, for tests." in result.stdout
    assert "timestep_power = 1.0" in result.stdout


def test_models_refuses_a_changed_one(tiny_model: Path, tmp_path: Path) -> None:
    for path in tiny_model.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes() + (b"x" if path.suffix == ".safetensors" else b""))
    result = thorad_command("models", tmp_path)
    assert result.exit_code == 2
    assert "the weights changed" in result.stderr


# ---- demo, bench, the program


def test_demo(tiny_model: Path, tmp_path: Path) -> None:
    result = thorad_command("demo", "--out", tmp_path / "demo", "--model", tiny_model, "--device", "cpu")
    assert result.exit_code == 0
    assert f"Look at {tmp_path / 'demo' / 'montage.png'} first" in result.stdout
    paths = [Path(line.strip()) for line in result.stdout.splitlines() if line.strip().endswith("overlay.png")]
    assert len(paths) == 6
    assert all(path.is_file() for path in paths)
    assert re.search(r"^healthy +thor +\S+ +no lesion here", result.stdout, flags=re.MULTILINE)


def test_bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from thorad.apps import speed

    measured = speed.Speed(
        "a machine", "cpu", 2, "float32", {"float32": 100.0},
        [speed.NetworkSpeed("compact", 4_640_000, 10.1, 0.1, 101, 0.9)],
        [speed.DetectionSpeed("compact", "default", 9, 0.8, 1.404, None)], (1.0, 2.0), 6.0, 1.5,
    )  # fmt: skip
    monkeypatch.setattr(speed, "measure_speed", lambda model, device, on_progress: measured)
    result = thorad_command("bench", "--json", tmp_path / "b.json")
    assert result.exit_code == 0
    assert re.search(r"^compact, default +9 +0\.80 +1\.40 +500\.0 +39\.0 +12\.8", result.stdout, flags=re.MULTILINE)
    assert json.loads((tmp_path / "b.json").read_text())["threads"] == 2


def test_version() -> None:
    result = thorad_command("--version")
    assert (result.exit_code, result.stdout) == (0, f"thorad {thorad.__version__}\n")


def test_as_a_program() -> None:
    """Without typer's test runner: a real process, its exit code and its two streams."""
    done = subprocess.run(
        [sys.executable, "-m", "thorad", "detect", "no-such-folder", "--out", "out"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "Error: no-such-folder: no such file or folder. Check the path.\n"
