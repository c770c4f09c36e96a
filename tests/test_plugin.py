"""examples/plugin: a package with a method, a noise and a network of its own, installed and used by the command."""

import json
import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from test_cli import write_mask, write_scan

PLUGIN = Path(__file__).parents[1] / "examples" / "plugin"


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment in which the plugin is installed, by pip and without a network, beside this thorad."""
    folder = tmp_path_factory.mktemp("plugin")
    # A copy, for the build leaves files behind.
    source = shutil.copytree(PLUGIN, folder / "source", ignore=shutil.ignore_patterns("build", "*.egg-info"))
    options = ["--quiet", "--no-deps", "--no-build-isolation", "--no-index", "--disable-pip-version-check"]
    done = subprocess.run(
        [sys.executable, "-m", "pip", "install", *options, "--target", folder / "site", source],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    path = os.pathsep.join([str(folder / "site"), *(path for path in sys.path if path)])
    return {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}


def thorad(environment: dict[str, str], *arguments: object) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "thorad", *map(str, arguments)],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.timeout(280)
def test_train_detect_and_evaluate(installed: dict[str, str], tmp_path: Path) -> None:
    for index in range(4):
        write_scan(tmp_path / "healthy" / f"{index}.png", index)
    for index in (4, 5):
        write_scan(tmp_path / "scans" / f"{index}.png", index, lesion=True)
    write_scan(tmp_path / "other-healthy.png", 6)
    write_mask(tmp_path / "mask.png")
    (tmp_path / "cases.csv").write_text("image,mask\nscans/4.png,mask.png\nscans/5.png,mask.png\nother-healthy.png,\n")
    model = tmp_path / "training" / "model"
    thorad(
        installed,
        *("train", "--recipe", PLUGIN / "recipe.toml", "--train", tmp_path / "healthy", "--steps", 2),
        *("--out", tmp_path / "training", "--accelerator", "cpu"),
    )
    assert "under coarse noise" in (model / "MODEL_CARD.md").read_text()
    assert tomllib.loads((model / "recipe.toml").read_text())["network"] == {"kind": "conv", "width": 32, "layers": 4}
    for_one_step = ("--model", model, "--method", "one-step", "--device", "cpu")
    said = thorad(installed, "detect", tmp_path / "scans", *for_one_step, "--out", tmp_path / "results")
    assert "2 done, 0 failed" in said
    options = json.loads((tmp_path / "results" / "run.json").read_text())["options"]
    assert (options["method"], options["noise"]) == ("one-step", "coarse")
    compared = ("--model", model, "--method", "one-step,zscore", "--noise", "all", "--device", "cpu")
    thorad(installed, "evaluate", tmp_path / "cases.csv", *compared, "--out", tmp_path / "comparison")
    metrics = json.loads((tmp_path / "comparison" / "metrics.json").read_text())
    assert len(metrics) == 2


def test_without_the_package_the_recipe_says_what_is_missing(tmp_path: Path) -> None:
    done = subprocess.run(
        [
            *(sys.executable, "-m", "thorad", "train", "--recipe", PLUGIN / "recipe.toml"),
            *("--train", tmp_path, "--out", tmp_path),
        ],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert "unknown kind 'conv'" in done.stderr
    assert "unknown noise 'coarse'" in done.stderr
