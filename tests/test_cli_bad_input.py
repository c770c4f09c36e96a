"""Every kind of bad input through the command line: an error that names the file, and the others' results are kept."""

import csv
import os
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import numpy as np
import PIL.Image
import pytest

from test_cli import detect, thorad_command, write_scan
from thorad.model import RECIPE, WEIGHTS


def scan(dtype: type = np.uint8, scale: float = 1) -> np.ndarray:
    pixels = np.add.outer(np.hanning(32), np.hanning(32)) * 100 + np.random.default_rng(0).random((32, 32)) * 40
    return (np.floor(pixels) * scale).astype(dtype)


def png_of(pixels: np.ndarray) -> Callable[[Path], None]:
    return lambda path: PIL.Image.fromarray(pixels).save(path, format="PNG")


def npy_of(array: np.ndarray) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        with path.open("wb") as file:
            np.save(file, array)

    return write


def bomb(path: Path) -> None:
    """A PNG of a few bytes whose header says 60000 x 60000 px."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", 60000, 60000, 8, 0, 0, 0, 0)
    data = chunk(b"IDAT", zlib.compress(b"\0" * 1000))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + data + chunk(b"IEND", b""))


def truncated(path: Path) -> None:
    png_of(scan())(path)
    path.write_bytes(path.read_bytes()[:300])


def with_value(value: float) -> np.ndarray:
    pixels = scan(np.float32)
    pixels[5, 6] = value
    return pixels


def nearly_empty() -> np.ndarray:
    pixels = np.zeros((32, 32), np.uint8)
    pixels[5, 6] = 255
    return pixels


COLOURS = np.stack([scan(), 255 - scan(), scan()], axis=-1)

BAD: dict[str, tuple[Callable[[Path], object], str]] = {
    "empty": (lambda path: path.write_bytes(b""), "the file is empty"),
    "truncated": (truncated, "damaged or incomplete PNG"),
    "text": (lambda path: path.write_text("Dear reader"), "not an image"),
    "colours": (png_of(COLOURS), "a colour image"),
    "nan": (npy_of(with_value(np.nan)), "1 pixels are NaN, infinite"),
    "infinite": (npy_of(with_value(np.inf)), "1 pixels are NaN, infinite"),
    "constant": (png_of(np.full((32, 32), 7, np.uint8)), "every pixel is 7"),
    "one-pixel-side": (png_of(scan()[:1]), "32 x 1 px"),
    "bomb": (bomb, "60000"),
    "z-scored": (npy_of(scan(np.float32) - np.median(scan())), "% of the image's pixels are negative"),
    "complex": (npy_of(scan(np.complex64)), "pixels of complex64"),
    "nearly-empty": (png_of(nearly_empty()), "nearly empty"),
    "volume": (npy_of(np.zeros((32, 32, 32), np.float32)), "an array of shape (32, 32, 32)"),
}
GOOD: dict[str, Callable[[Path], object]] = {
    "eight-bit": png_of(scan()),
    "sixteen-bit": png_of(scan(np.uint16, 257)),
    "grey-in-colours": png_of(np.stack([scan()] * 3, axis=-1)),
    "floats": npy_of(scan(np.float32, 1e-3)),
}


@pytest.mark.parametrize("kind", BAD)
def test_one_bad_file_alone(tiny_model: Path, tmp_path: Path, kind: str) -> None:
    make, message = BAD[kind]
    path = tmp_path / f"{kind}.png"
    make(path)
    result = detect(tiny_model, path, "--out", tmp_path / "out", "--method", "zscore")
    assert result.exit_code == 1
    assert result.stderr.startswith(f"{kind} failed: {path}: ")
    assert message in result.stderr
    assert result.stderr.count("\n") == 1
    assert "0 done, 1 failed" in result.stdout


def test_all_bad_files_among_good_ones(tiny_model: Path, tmp_path: Path) -> None:
    (tmp_path / "in" / "folder.png").mkdir(parents=True)
    for name, (make_bad, _) in BAD.items():
        make_bad(tmp_path / "in" / f"{name}.png")
    for name, make_good in GOOD.items():
        make_good(tmp_path / "in" / f"{name}.png")
    result = detect(tiny_model, tmp_path / "in", "--out", tmp_path / "out", "--method", "zscore")
    assert result.exit_code == 1
    assert f"{len(GOOD)} done, {len(BAD)} failed" in result.stdout
    with (tmp_path / "out" / "cases.csv").open(newline="") as file:
        told = {row["name"]: row["message"] for row in csv.DictReader(file)}
    for name, (_, message) in BAD.items():
        assert told[name].startswith(f"{tmp_path / 'in' / name}.png: ")
        assert message in told[name]
        assert message in result.stderr
        assert not (tmp_path / "out" / "cases" / name / "anomaly_map.npy").exists()
    maps = {name: np.load(tmp_path / "out" / "cases" / name / "anomaly_map.npy") for name in GOOD}
    for name in GOOD:
        # 16 bits are 257 times 8 bits; the scale doesn't matter.
        np.testing.assert_allclose(maps[name], maps["eight-bit"], atol=1e-4)
    table = (tmp_path / "out" / "cases.csv").read_text()
    assert table.count(",failed,") == len(BAD)
    assert table.count(",ok,") == len(GOOD)


def test_a_missing_input_ends_with_2(tiny_model: Path, tmp_path: Path) -> None:
    result = detect(tiny_model, write_scan(tmp_path / "a.png"), tmp_path / "gone", "--out", tmp_path / "out")
    assert result.exit_code == 2
    assert f"{tmp_path / 'gone'}: no such file or folder" in result.stderr


def test_a_folder_without_images_ends_with_2(tiny_model: Path, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    result = detect(tiny_model, tmp_path / "in", "--out", tmp_path / "out")
    assert result.exit_code == 2
    assert "no image in this folder" in result.stderr


def test_an_unreadable_folder_ends_with_2(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By a stand-in: the superuser, whom tests may run as, can read every folder."""
    write_scan(tmp_path / "in" / "a.png")

    def refuse(path: object) -> NoReturn:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(os, "scandir", refuse)
    result = detect(tiny_model, tmp_path / "in", "--out", tmp_path / "out")
    assert result.exit_code == 2
    assert f"{tmp_path / 'in'}: the folder can't be read (Permission denied)" in result.stderr


def test_an_unreadable_file_is_a_failure(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("a", "b"):
        write_scan(tmp_path / "in" / f"{name}.png")
    read_bytes = Path.read_bytes

    def refuse_b(path: Path) -> bytes:
        if path.name == "b.png":
            raise PermissionError(13, "Permission denied")
        return read_bytes(path)

    monkeypatch.setattr(Path, "read_bytes", refuse_b)
    result = detect(tiny_model, tmp_path / "in", "--out", tmp_path / "out", "--method", "zscore")
    assert result.exit_code == 1
    assert "1 done, 1 failed" in result.stdout
    assert f"{tmp_path / 'in' / 'b.png'}: can't be read" in result.stderr


def test_a_table_that_names_a_missing_file_ends_with_2(tiny_model: Path, tmp_path: Path) -> None:
    write_scan(tmp_path / "a.png")
    (tmp_path / "list.csv").write_text("image\na.png\nb.png\n")
    result = detect(tiny_model, tmp_path / "list.csv", "--out", tmp_path / "out")
    assert result.exit_code == 2
    assert "b.png (line 3)" in result.stderr


@pytest.mark.parametrize("where", ["a file", "below a file", "a full disk"])
def test_an_unwritable_output_ends_with_2(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    source = write_scan(tmp_path / "a.png")
    out = tmp_path / "out"
    if where == "a full disk":

        def full(path: Path, content: bytes) -> NoReturn:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(Path, "write_bytes", full)
    else:
        out.write_text("in the way")
        out = out / "deeper" if where == "below a file" else out
    result = detect(tiny_model, source, "--out", out)
    assert result.exit_code == 2
    assert str(out) in result.stderr
    assert "Traceback" not in result.output


def test_a_folder_of_other_options_ends_with_2(tiny_model: Path, tmp_path: Path) -> None:
    source = write_scan(tmp_path / "a.png")
    assert detect(tiny_model, source, "--out", tmp_path / "out", "--method", "zscore").exit_code == 0
    before = {path: path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()}
    result = detect(tiny_model, source, "--out", tmp_path / "out", "--method", "zscore", "--seed", "1")
    assert result.exit_code == 2
    assert "seed (there 0, now 1)" in result.stderr
    assert {path: path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("damage", ["shape", "changed weights", "no recipe", "not a model"])
def test_a_damaged_model_ends_with_2(tiny_model: Path, tmp_path: Path, damage: str) -> None:
    model = tmp_path / "model"
    model.mkdir()
    for path in tiny_model.iterdir():
        (model / path.name).write_bytes(path.read_bytes())
    expected = {"shape": "don't fit the recipe", "changed weights": "the weights changed"}.get(damage, RECIPE)
    if damage == "shape":
        text = (model / RECIPE).read_text()
        (model / RECIPE).write_text(text.replace("residual_blocks = 1", "residual_blocks = 2"))
    elif damage == "changed weights":
        content = bytearray((model / WEIGHTS).read_bytes())
        content[len(content) // 2] ^= 255
        (model / WEIGHTS).write_bytes(content)
    else:
        for path in model.iterdir():
            if damage == "not a model" or path.name == RECIPE:
                path.unlink()
    result = thorad_command(
        "detect", write_scan(tmp_path / "a.png"), "--out", tmp_path / "out", "--model", model, "--device", "cpu"
    )
    assert result.exit_code == 2
    assert expected in result.stderr
    assert str(model) in result.stderr
