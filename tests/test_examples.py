"""Every script of examples/ does what its head says."""

import json
import os
import subprocess
import sys
from pathlib import Path

import nibabel
import numpy as np
import pytest

from test_cli import thorad_command, write_mask, write_scan

EXAMPLES = Path(__file__).parents[1] / "examples"


def run(script: str, *arguments: object) -> str:
    done = subprocess.run(
        [sys.executable, EXAMPLES / script, *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_every_example_is_tested() -> None:
    tests = Path(__file__).read_text(encoding="utf-8")
    for script in EXAMPLES.iterdir():
        if script.is_file():
            assert f'"{script.name}",' in tests, script
            assert f"python examples/{script.name} " in script.read_text(encoding="utf-8"), "its head is the command"


def test_detect_one(tiny_model: Path, tmp_path: Path) -> None:
    said = run("detect_one.py", write_scan(tmp_path / "a.png"), "--out", tmp_path / "map.npy", "--model", tiny_model)
    found = np.load(tmp_path / "map.npy")
    assert found.shape == (32, 32)
    row, column = np.unravel_index(found.argmax(), found.shape)
    assert f"highest at row {row}, column {column}," in said


def test_detect_volume(shared_data: Path, tmp_path: Path) -> None:
    head = shared_data / "volumes" / "colin27_t1_1mm.nii.gz"
    said = run("detect_volume.py", head, "--out", tmp_path / "map.nii.gz")
    found = nibabel.load(tmp_path / "map.nii.gz")
    voxel = np.unravel_index(np.nanargmax(found.get_fdata()), found.shape)
    x, y, z = (found.affine @ [*voxel, 1])[:3]
    assert f"highest at ({x:.0f}, {y:.0f}, {z:.0f}) mm" in said


def test_evaluate_csv(tiny_model: Path, tmp_path: Path) -> None:
    for index in range(3):
        write_scan(tmp_path / f"i{index}.png", index, lesion=True)
    write_mask(tmp_path / "m.png")
    (tmp_path / "cases.csv").write_text("image,mask\ni0.png,m.png\ni1.png,m.png\ni2.png,\n")
    said = run("evaluate_csv.py", tmp_path / "cases.csv", "--out", tmp_path / "out", "--model", tiny_model)
    assert "| thor | simplex |" in said
    assert "| zscore | - |" in said
    assert len(json.loads((tmp_path / "out" / "metrics.json").read_text())) == 2


@pytest.mark.timeout(120)
def test_train_on_your_scans(tmp_path: Path) -> None:
    for index in range(4):
        write_scan(tmp_path / "in" / f"s{index}.png", index)
    out = tmp_path / "training"
    said = run(
        "train_on_your_scans.py",
        *(tmp_path / "in", "--out", out, "--size", 32, "--width", 32, "--steps", 2),
        *("--accelerator", "cpu"),
    )
    assert said.rstrip().endswith(f"The model is in {out / 'model'}")
    result = thorad_command(
        *("detect", tmp_path / "in", "--model", out / "model", "--out", tmp_path / "results", "--device", "cpu")
    )
    assert result.exit_code == 0
    assert "4 done, 0 failed" in result.stdout
