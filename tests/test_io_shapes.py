"""Shapes by headers alone: those that reading gives, and a ThoradError for whatever is damaged."""

from pathlib import Path

import numpy as np
import PIL.Image
import pytest

from test_fuzz import FILES, damaged
from thorad.errors import ThoradError
from thorad.io.images import read_image
from thorad.io.shapes import shape_of
from thorad.io.volumes import read_volume


@pytest.mark.parametrize("name", FILES)
def test_the_shape_is_what_reading_gives(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(FILES[name]())
    is_volume = name.endswith((".nii", ".nii.gz", ".nrrd", ".mha"))
    assert shape_of(path) == (read_volume(path).voxels if is_volume else read_image(path).pixels).shape
    path.write_bytes(b"")
    with pytest.raises(ThoradError, match="the file is empty"):
        shape_of(path)


def refusal(path: Path) -> str | None:
    """None where there is a shape, or the message of the ThoradError."""
    try:
        shape = shape_of(path)
    except ThoradError as error:
        return str(error)
    assert min(shape) > 0
    return None


@pytest.mark.parametrize("name", FILES)
def test_damaged_headers(tmp_path: Path, name: str) -> None:
    content = FILES[name]()
    rng = np.random.default_rng(list(name.encode()))
    for _ in range(100):
        (tmp_path / name).write_bytes(damaged(content, rng))
        message = refusal(tmp_path / name)
        assert message is None or message.startswith(f"{tmp_path / name}: ")


def test_pictures_that_lie_on_their_side(tmp_path: Path) -> None:
    exif = PIL.Image.Exif()
    exif[0x0112] = 6
    PIL.Image.fromarray(np.arange(600, dtype=np.uint8).reshape(20, 30)).save(tmp_path / "a.jpg", exif=exif)
    assert shape_of(tmp_path / "a.jpg") == read_image(tmp_path / "a.jpg").pixels.shape == (30, 20)


@pytest.mark.parametrize(
    ("name", "keep"), [("a.png", -8), ("a.nii", -9), ("a.nii.gz", -9), ("raw.mha", -1), ("a.npy", -1)]
)
def test_cut_short(tmp_path: Path, name: str, keep: int) -> None:
    (tmp_path / name).write_bytes(FILES[name]()[:keep])
    with pytest.raises(ThoradError, match="cut short"):
        shape_of(tmp_path / name)


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(ThoradError, match=r"gone\.png: can.t be read .No such file"):
        shape_of(tmp_path / "gone.png")
