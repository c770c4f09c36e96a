"""A folder as a user has it: fifty files of all kinds, good and bad."""

import csv
import gzip
import shutil
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import tifffile

from test_cli import thorad_command
from test_io_dicom import AXIAL, DX, base, blob, save, slices
from thorad.io.volumes import Volume, write_nifti

HOSTILE = "<img src=x onerror=alert(1)>"


def pixels(seed: int) -> np.ndarray:
    noise = np.random.default_rng(seed).random((40, 36)) * 60
    return (np.add.outer(np.hanning(40), np.hanning(36)) * 100 + noise).astype(np.uint8)


def make_good(folder: Path) -> int:
    """25 files; returns how many cases they are."""
    folder.mkdir(parents=True)
    for seed in range(8):
        PIL.Image.fromarray(pixels(seed)).save(folder / f"picture {seed}.png")
    for seed in range(3):
        tifffile.imwrite(folder / f"t{seed}.tif", pixels(seed).astype(np.uint16) * 100)
        np.save(folder / f"n{seed}.npy", pixels(seed).astype(np.float32))
        PIL.Image.fromarray(pixels(seed)).save(folder / f"j{seed}.jpg", quality=95)
    PIL.Image.fromarray(pixels(9)).save(folder / f"{HOSTILE}.png")
    for seed in range(6):
        x_ray = base(DX, "DX", pixels(seed), SeriesInstanceUID=f"1.2.3.{seed}", SOPInstanceUID=f"1.2.3.{seed}.1")
        save(x_ray, folder / f"xr{seed}" if seed % 2 else folder / f"xr{seed}.dcm")
    tifffile.imwrite(folder / "another.tiff", pixels(4))
    return 25


def make_bad(folder: Path) -> int:
    """25 files; returns how many cases they are."""
    folder.mkdir(parents=True)
    png = folder / "template.png"
    PIL.Image.fromarray(pixels(0)).save(png)
    whole = png.read_bytes()
    png.unlink()
    for number, share in enumerate((0, 5, 30, 60, 90)):
        (folder / f"cut{number}.png").write_bytes(whole[: len(whole) * share // 100])
    for suffix in ("png", "jpg", "tif", "npy", "dcm", "nii", "nii.gz"):
        (folder / f"text.{suffix}").write_text("not what it is called")
    np.save(folder / "nan.npy", np.full((20, 20), np.nan))
    np.save(folder / "constant.npy", np.ones((20, 20)))
    np.save(folder / "stack.npy", np.ones((4, 20, 20, 20)))
    np.save(folder / "small.npy", np.arange(9.0).reshape(3, 3))
    PIL.Image.fromarray(np.random.default_rng(0).integers(0, 255, (20, 20, 3), np.uint8)).save(folder / "colour.png")
    voxels = blob((12, 13, 14)).astype(np.float32)
    write_nifti(folder / "whole.nii.gz", voxels, Volume(voxels, np.diag([2.0, 2.0, 2.0, 1.0]), "", ""), "")
    packed = (folder / "whole.nii.gz").read_bytes()
    (folder / "whole.nii.gz").unlink()
    (folder / "cut.nii.gz").write_bytes(packed[: len(packed) // 2])
    content = gzip.decompress(packed)
    (folder / "cut.nii").write_bytes(content[:400])
    (folder / "header.nii").write_bytes(content[:40] + b"\xff" * 16 + content[56:])
    (folder / "empty.nii").write_bytes(b"")
    x_ray = save(base(DX, "DX", pixels(1), SeriesInstanceUID="1.2.4.1", SOPInstanceUID="1.2.4.1.1"), folder / "a.dcm")
    (folder / "cut.dcm").write_bytes(x_ray.read_bytes()[:-700])
    x_ray.unlink()
    save(base(DX, "DX", pixels(2), SOPInstanceUID="1.2.4.2", SeriesInstanceUID=None), folder / "no-series.dcm")
    gap = [dataset for k, dataset in enumerate(slices(blob((20, 20, 5)), AXIAL)) if k != 2]
    save(gap[0], folder / "gap0.dcm")
    save(gap[2], folder / "gap1.dcm")
    return 25 - 1  # the last two are one series


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out"


def test_all_good_results_are_there_and_the_bad_files_are_listed(tiny_model: Path, tmp_path: Path, out: Path) -> None:
    good, bad = make_good(tmp_path / "in" / "good"), make_bad(tmp_path / "in" / "bad")
    assert len([path for path in (tmp_path / "in").rglob("*") if path.is_file()]) == 50
    result = thorad_command(
        *("detect", tmp_path / "in", "--out", out, "--model", volume_model(tiny_model, tmp_path), "--method", "zscore"),
        *("--device", "cpu"),
    )
    assert result.exit_code == 1
    assert f"{good} done (6 of them warned), {bad} failed" in result.stdout, "X-rays are no slices of a head"
    with (out / "cases.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    done = [row["name"] for row in rows if row["status"] in ("ok", "warned")]
    assert len(done) == good
    failed = {row["name"]: row["message"] for row in rows if row["status"] == "failed"}
    assert len(failed) == bad
    assert all(message.count(".") and len(message) > 20 for message in failed.values()), failed
    assert "Traceback" not in result.output
    for row in rows:
        folder = out / "cases" / row["name"]
        assert (folder / "anomaly_map.npy").is_file() == (row["name"] in done)
        assert set(row["name"]).isdisjoint("/\\<>=\n ")
    assert {path.name for path in tmp_path.iterdir()} == {"in", "out", "model"}


def volume_model(tiny_model: Path, tmp_path: Path) -> Path:
    """The tiny model, for volumes: else they would be refused before any file is opened."""
    shutil.copytree(tiny_model, tmp_path / "model")
    recipe = tmp_path / "model" / "recipe.toml"
    recipe.write_text(recipe.read_text().replace('template = ""', 'template = "mni152-2009a"'))
    assert "mni152-2009a" in recipe.read_text()
    return tmp_path / "model"
