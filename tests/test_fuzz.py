"""Damaged files and hostile names: something is read or a ThoradError names the file, and nothing else ever happens.

DICOM files are damaged in tests/test_io_dicom.py.
"""

import gzip
import io
import os
import resource
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import nibabel
import numpy as np
import PIL.Image
import pytest
import SimpleITK
import tifffile

from thorad.errors import ThoradError
from thorad.io.images import read_image, read_mask, write_png8
from thorad.io.scans import find_scans
from thorad.io.volumes import read_volume, write_nifti

CASES = 1000
"""Damaged copies of each file."""

SLOWEST = 2.0
"""Processor seconds for one file of a few kB."""

MOST_MEMORY = 256 * 2**20
"""bytes that the process may grow by while it reads them."""


def smooth(shape: tuple[int, ...]) -> np.ndarray:
    """[0, 1], with a gradient and some noise, so that it packs like an image."""
    ramp = np.sum(np.meshgrid(*(np.linspace(0, 1 / len(shape), side) for side in shape), indexing="ij"), axis=0)
    return np.clip(ramp + np.random.default_rng(1).normal(0, 0.02, shape), 0, 1)


def nifti(kind: type = nibabel.Nifti1Image, *, packed: bool = False) -> bytes:
    affine = np.array([[0, 0, 1.5, -9], [-1, 0, 0, 12], [0, 2, 0, 3], [0, 0, 0, 1]])
    content = kind((smooth((10, 12, 9)) * 900).astype(np.int16), affine).to_bytes()
    return gzip.compress(content, mtime=0) if packed else content


def text_volume(ending: str, *, packed: bool) -> bytes:
    image = SimpleITK.GetImageFromArray((smooth((10, 12, 9)) * 900).astype(np.int16))
    with tempfile.TemporaryDirectory() as folder:
        SimpleITK.WriteImage(image, Path(folder, f"a.{ending}"), packed)
        return Path(folder, f"a.{ending}").read_bytes()


def picture(form: str, bits: int = 8, **options: object) -> bytes:
    pixels = smooth((24, 31))
    stored = np.rint(pixels * (2**bits - 1)).astype(np.uint16 if bits == 16 else np.uint8)
    buffer = io.BytesIO()
    PIL.Image.fromarray(stored).save(buffer, form, **options)
    return buffer.getvalue()


def colour_png() -> bytes:
    buffer = io.BytesIO()
    PIL.Image.fromarray(np.stack([np.rint(smooth((24, 31)) * 255).astype(np.uint8)] * 3, -1)).save(buffer, "PNG")
    return buffer.getvalue()


def plain_tiff() -> bytes:
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, np.rint(smooth((24, 31)) * 65535).astype(np.uint16))
    return buffer.getvalue()


def npy() -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, smooth((24, 31)).astype(np.float32))
    return buffer.getvalue()


FILES: dict[str, Callable[[], bytes]] = {
    "a.nii": nifti,
    "a2.nii": lambda: nifti(nibabel.Nifti2Image),
    "a.nii.gz": lambda: nifti(packed=True),
    "a.nrrd": lambda: text_volume("nrrd", packed=True),
    "raw.nrrd": lambda: text_volume("nrrd", packed=False),
    "a.mha": lambda: text_volume("mha", packed=True),
    "raw.mha": lambda: text_volume("mha", packed=False),
    "a.png": lambda: picture("PNG"),
    "a16.png": lambda: picture("PNG", 16),
    "colour.png": colour_png,
    "a.jpg": lambda: picture("JPEG"),
    "a.tif": plain_tiff,
    "lzw.tif": lambda: picture("TIFF", compression="tiff_lzw"),
    "zip.tif": lambda: picture("TIFF", 16, compression="tiff_adobe_deflate"),
    "a.npy": npy,
}


def damaged(content: bytes, rng: np.random.Generator) -> bytes:
    """Cut off, with flipped bits, with odd bytes in the head, spliced with itself, or several of these."""
    result = bytearray(content)
    for _ in range(rng.integers(1, 4)):
        if len(result) < 2:
            break
        # As often in the head as anywhere.
        at = int(rng.integers(min(len(result), 400) if rng.random() < 0.6 else len(result)))
        match int(rng.integers(6)):
            case 0:
                del result[at:]
            case 1:
                result[at] ^= 1 << int(rng.integers(8))
            case 2:
                result[at] = int(rng.choice([0, 1, 10, 32, 45, 57, 127, 128, 255]))
            case 3:
                result[at : at + 4] = rng.bytes(4)
            case 4:
                start = int(rng.integers(len(result)))
                result[at:at] = result[start : start + int(rng.integers(1, 200))]
            case _:
                del result[at : at + int(rng.integers(1, 200))]
    return bytes(result)


def volume_or_refusal(path: Path) -> str | None:
    """None where a sound volume comes back, or the message of the ThoradError."""
    try:
        volume = read_volume(path)
    except ThoradError as error:
        return str(error)
    assert volume.voxels.ndim == 3
    assert volume.voxels.dtype == np.float32
    assert np.isfinite(volume.voxels).all()
    assert volume.voxels.min() < volume.voxels.max()
    assert np.isfinite(volume.affine).all()
    assert abs(np.linalg.det(volume.affine)) > 0
    return None


def image_or_refusal(path: Path) -> str | None:
    """As `volume_or_refusal`."""
    try:
        image = read_image(path)
    except ThoradError as error:
        return str(error)
    assert image.pixels.ndim == 2
    assert np.isfinite(image.pixels).all()
    assert image.pixels.min() < image.pixels.max()
    return None


@pytest.mark.parametrize("name", FILES)
def test_damaged_files(tmp_path: Path, name: str) -> None:
    content = FILES[name]()
    rng = np.random.default_rng(list(name.encode()))
    path = tmp_path / name
    read = volume_or_refusal if name.endswith((".nii", ".nii.gz", ".nrrd", ".mha")) else image_or_refusal
    path.write_bytes(content)
    assert read(path) is None
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    refused = 0
    for _ in range(CASES):
        path.write_bytes(damaged(content, rng))
        began = time.process_time()
        message = read(path)
        assert time.process_time() - began < SLOWEST
        if message is not None:
            assert str(path) in message
            refused += 1
    assert refused > CASES / 5
    unit = 1 if os.uname().sysname == "Darwin" else 1024
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory) * unit < MOST_MEMORY
    assert list(tmp_path.iterdir()) == [path]


def test_every_length_of_a_cut_file(tmp_path: Path) -> None:
    """Small NIfTI, packed NIfTI and PNG files that end after each of their bytes."""
    for name in ("a.nii", "a.nii.gz", "a.png"):
        content = FILES[name]()
        read = read_image if name.endswith(".png") else read_volume
        # Without the checksum of a PNG's last, empty chunk nothing is lost.
        for length in range(0, len(content) - 4 * (name == "a.png"), 3):
            (tmp_path / name).write_bytes(content[:length])
            with pytest.raises(ThoradError, match=name):
                read(tmp_path / name)


def test_noise_behind_every_signature(tmp_path: Path) -> None:
    rng = np.random.default_rng(5)
    signatures = [FILES[name]()[:length] for name in FILES for length in (4, 12, 40)]
    for signature in signatures:
        (tmp_path / "a").write_bytes(signature + rng.bytes(600))
        for read in (read_image, read_volume, read_mask):
            with pytest.raises(ThoradError, match=str(tmp_path / "a")):
                read(tmp_path / "a")


def test_one_kind_inside_another(tmp_path: Path) -> None:
    """The head of one file before the body of another."""
    contents = [make() for make in FILES.values()]
    path = tmp_path / "a"
    for first in contents:
        for second in contents:
            for length in (16, 200, 352):
                path.write_bytes(first[:length] + second[length:])
                for read in (image_or_refusal, volume_or_refusal):
                    message = read(path)
                    assert message is None or str(path) in message


HOSTILE = [
    "..png",
    "...png",
    "..%2f..%2fetc.png",
    "a\nb.png",
    "a\tb\r.png",
    "-rf.png",
    "--out=x.png",
    " .png",
    "con.png",
    "a'b\"c;$(x)`y`.png",
    "<script>.png",
    "\x1b[31mred.png",
    "\u202egnp.png",
    "a\\..\\b.png",
    "é.png",
    "e\u0301.png",
    "É.png",
    "x" * 240 + ".png",
    "ü" * 120 + ".png",
    os.fsdecode(b"\xff\xfe.png"),
    "a.nii.gz.png",
    "*.png",
]


def is_safe(name: str) -> bool:
    """Whether a name, put behind a folder, is one file in just that folder, on every system."""
    return (
        0 < len(name.encode()) <= 200
        and not set(name) & set('/\\\0\n\r\t:*?"<>|$`;\x1b')
        and not name.startswith((".", "-"))
        and name.isprintable()
    )


def test_hostile_names(tmp_path: Path) -> None:
    """Every case name is unique and safe, and what is written under it lies in the folder of the results."""
    data, out = tmp_path / "data", tmp_path / "out"
    (data / "..hidden" / "-x").mkdir(parents=True)
    (data / "deep" / "\n").mkdir(parents=True)
    pixels = np.rint(smooth((9, 9)) * 255).astype(np.uint8)
    files = [data / name for name in HOSTILE]
    files += [data / "deep" / "\n" / "b.png", data / "deep" / "b.png", data / "deep__b.png"]
    write_png8(tmp_path / "one.png", pixels)
    for file in files:
        file.write_bytes((tmp_path / "one.png").read_bytes())
    visible = [file for file in files if not file.name.startswith(".")]
    for found in (find_scans([data]), find_scans(files)):
        cases = {name: scan.path for name, scan in found.items()}
        assert all(is_safe(name) for name in cases), [name for name in cases if not is_safe(name)]
        assert len({name.casefold() for name in cases}) == len(cases)
        for name, path in cases.items():
            image = read_image(path, name)
            assert image.name == name
            write_png8(out / name / "map.png", image.pixels / 255)
    assert sorted(scan.path for scan in find_scans([data]).values()) == sorted(visible)
    assert {path.name for path in tmp_path.iterdir()} == {"data", "one.png", "out"}
    assert all(path.resolve().is_relative_to(out.resolve()) for path in out.rglob("*"))


def test_hostile_volume_names(tmp_path: Path) -> None:
    for name in ("..nii.gz", "a\nb.nii", "x" * 240 + ".nii.gz", "$(x).NII.GZ", os.fsdecode(b"\xff.nii")):
        (tmp_path / name).write_bytes(nifti(packed=name.lower().endswith("gz")))
        volume = read_volume(tmp_path / name)
        assert is_safe(volume.name)
        assert "nii" not in volume.name
        write_nifti(
            tmp_path / "out" / f"{volume.name}.nii.gz", volume.voxels, volume, name.encode("utf-8", "replace").decode()
        )
    assert len(list((tmp_path / "out").iterdir())) == 5


def test_paths_that_point_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`..`, absolute paths and links name cases after what lies below the folder that was given, or after the file."""
    data = tmp_path / "data"
    pixels = np.rint(smooth((9, 9)) * 255).astype(np.uint8)
    write_png8(tmp_path / "outside" / "a.png", pixels)
    write_png8(data / "sub" / "b.png", pixels)
    (data / "link.png").symlink_to(tmp_path / "outside" / "a.png")
    (data / "linked").symlink_to(tmp_path / "outside")
    (data / "loop").symlink_to(data)
    (data / "dangling.png").symlink_to(tmp_path / "nowhere.png")
    monkeypatch.chdir(data / "sub")
    assert list(find_scans([Path("..", "..", "outside", "a.png")])) == ["a"]
    assert list(find_scans([Path("..", "sub")])) == ["b"]
    assert list(find_scans([data / "sub" / ".." / "sub" / "b.png"])) == ["b"]
    (data / "dangling.png").unlink()
    assert list(find_scans([data])) == ["link", "sub__b"]  # folders that are links are not followed
    table = data / "cases.csv"
    table.write_text("image\n../outside/a.png\n" + str(data / "sub" / "b.png") + "\n")
    assert all(is_safe(name) for name in find_scans([table]))
    assert len(find_scans([table])) == 2
    table.write_text("image\n../../../../../../nowhere/a.png\n")
    with pytest.raises(ThoradError, match=r"nowhere"):
        find_scans([table])


def test_a_dangling_link_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.png").symlink_to(tmp_path / "nowhere.png")
    (tmp_path / "a.nii").symlink_to(tmp_path / "a.nii")  # to itself
    for read in (read_image, read_volume):
        for name in ("a.png", "a.nii"):
            with pytest.raises(ThoradError, match=name):
                read(tmp_path / name)


@pytest.mark.parametrize("name", ["a\0b.png", "x" * 5000 + ".png", "/" + "y/" * 3000 + "a.png"])
def test_impossible_paths(name: str) -> None:
    for read in (read_image, read_volume, lambda path: find_scans([path])):
        with pytest.raises(ThoradError):
            read(Path(name))
