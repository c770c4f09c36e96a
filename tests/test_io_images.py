import csv
import io
import os
import struct
import tempfile
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import tifffile

from thorad.errors import ThoradError
from thorad.io.atomic import write_atomic
from thorad.io.images import (
    case_names,
    image_from_array,
    read_image,
    read_mask,
    write_npy,
    write_png8,
)
from thorad.io.scans import find_scans

NOBODY = 65534


def png_chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def sixteen_bit_png(array: np.ndarray) -> bytes:
    """A PNG of 16-bit grey+alpha, RGB or RGBA, which Pillow can't write; rows filtered by Sub and Up in turn."""
    height, width, channels = array.shape
    rows = array.astype(">u2").reshape(height, -1).view(np.uint8).astype(int)
    step = 2 * channels
    content = b""
    for index, row in enumerate(rows):
        if index % 2:
            content += b"\x02" + ((row - rows[index - 1]) % 256).astype(np.uint8).tobytes()
        else:
            before = np.concatenate([np.zeros(step, int), row[:-step]])
            content += b"\x01" + ((row - before) % 256).astype(np.uint8).tobytes()
    header = struct.pack(">IIBBBBB", width, height, 16, {2: 4, 3: 2, 4: 6}[channels], 0, 0, 0)
    chunks = png_chunk(b"IHDR", header) + png_chunk(b"IDAT", zlib.compress(content)) + png_chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunks


def npy_bytes(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


@pytest.fixture
def grey(rng: np.random.Generator) -> np.ndarray:
    """12-bit values, a width that isn't the height, odd sizes."""
    return rng.integers(0, 4096, (23, 31)).astype(np.uint16)


@pytest.fixture
def grey8(grey: np.ndarray) -> np.ndarray:
    return (grey >> 4).astype(np.uint8)


# --- what can be read -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".png", ".tif", ".npy"])
@pytest.mark.parametrize("bits", [8, 16])
def test_grey_is_read_as_stored(tmp_path: Path, grey: np.ndarray, suffix: str, bits: int) -> None:
    stored = grey if bits == 16 else (grey >> 4).astype(np.uint8)
    path = tmp_path / f"scan{suffix}"
    if suffix == ".npy":
        np.save(path, stored)
    else:
        PIL.Image.fromarray(stored).save(path)
    image = read_image(path)
    np.testing.assert_array_equal(image.pixels, stored)
    assert image.pixels.dtype == np.float32
    assert (image.name, image.source, image.spacing) == ("scan", str(path), None)


def test_jpeg_in_grey_and_in_colours_that_are_grey(tmp_path: Path) -> None:
    ramp = np.tile(np.arange(64, dtype=np.uint8) * 3, (32, 1))
    PIL.Image.fromarray(ramp).save(tmp_path / "l.jpg", quality=95)
    PIL.Image.fromarray(np.stack([ramp] * 3, -1)).save(tmp_path / "rgb.jpg", quality=95)
    for name in ("l.jpg", "rgb.jpg"):
        assert np.abs(read_image(tmp_path / name).pixels - ramp).max() <= 3


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "LA", "P", "PA"])
def test_png_modes_that_are_grey(tmp_path: Path, grey8: np.ndarray, mode: str) -> None:
    picture = PIL.Image.fromarray(grey8)
    picture = picture.quantize(256) if mode == "P" else picture.convert(mode)
    if mode == "PA":
        picture.save(tmp_path / "a.tif")
        np.testing.assert_array_equal(read_image(tmp_path / "a.tif").pixels, grey8)
        return
    picture.save(tmp_path / "a.png")
    with PIL.Image.open(tmp_path / "a.png") as written:
        assert written.mode == mode
    assert np.abs(read_image(tmp_path / "a.png").pixels - grey8).max() <= (8 if mode == "P" else 0)


def test_one_bit_png(tmp_path: Path, grey8: np.ndarray) -> None:
    PIL.Image.fromarray(grey8 > 99).save(tmp_path / "a.png")
    np.testing.assert_array_equal(read_image(tmp_path / "a.png").pixels, np.where(grey8 > 99, 255, 0))


@pytest.mark.parametrize("channels", [2, 3, 4])
def test_sixteen_bit_colours_are_refused_rather_than_shortened(tmp_path: Path, grey: np.ndarray, channels: int) -> None:
    array = np.stack([grey] * channels, -1)
    if channels in (2, 4):
        array[..., -1] = 65535
    (tmp_path / "a.png").write_bytes(sixteen_bit_png(array))
    assert "a PNG of 16 bits with colours or transparency" in refused(tmp_path / "a.png")


@pytest.mark.parametrize("dtype", ["u1", "u2", "u4", "i2", "i4", "f2", "f4", "f8"])
@pytest.mark.parametrize("suffix", [".tif", ".npy"])
def test_number_types(tmp_path: Path, grey8: np.ndarray, dtype: str, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    stored = grey8.astype(dtype)
    np.save(path, stored) if suffix == ".npy" else tifffile.imwrite(path, stored)
    np.testing.assert_array_equal(read_image(path).pixels, grey8)


@pytest.mark.parametrize("byteorder", ["<", ">"])
@pytest.mark.parametrize("planes", ["contig", "separate"])
def test_tiff_in_sixteen_bit_colours_that_are_grey(
    tmp_path: Path, grey: np.ndarray, byteorder: str, planes: str
) -> None:
    array = np.stack([grey] * 3, 0 if planes == "separate" else -1)
    tifffile.imwrite(tmp_path / "a.tif", array, photometric="rgb", planarconfig=planes, byteorder=byteorder)
    np.testing.assert_array_equal(read_image(tmp_path / "a.tif").pixels, grey)


@pytest.mark.parametrize("compression", ["tiff_lzw", "tiff_adobe_deflate", "packbits"])
@pytest.mark.parametrize("bits", [8, 16, 32])
def test_compressed_tiff(tmp_path: Path, grey: np.ndarray, compression: str, bits: int) -> None:
    stored = {8: (grey >> 4).astype(np.uint8), 16: grey, 32: grey.astype(np.float32) / 7}[bits]
    PIL.Image.fromarray(stored).save(tmp_path / "a.tif", compression=compression)
    np.testing.assert_array_equal(read_image(tmp_path / "a.tif").pixels, stored)


@pytest.mark.parametrize("compression", [None, "zlib"])
@pytest.mark.parametrize("bits", [8, 16])
def test_tiff_where_white_is_zero(tmp_path: Path, grey: np.ndarray, compression: str | None, bits: int) -> None:
    stored = grey if bits == 16 else (grey >> 4).astype(np.uint8)
    tifffile.imwrite(tmp_path / "a.tif", stored, photometric="miniswhite", compression=compression)
    np.testing.assert_array_equal(read_image(tmp_path / "a.tif").pixels, 2**bits - 1 - stored.astype(int))


def test_transparent_pixels_are_black_whatever_colour_lies_below(tmp_path: Path, grey8: np.ndarray) -> None:
    array = np.stack([grey8, grey8, grey8, np.full_like(grey8, 255)], -1)
    array[:5] = (200, 10, 10, 0)
    PIL.Image.fromarray(array).save(tmp_path / "a.png")
    pixels = read_image(tmp_path / "a.png").pixels
    assert (pixels[:5] == 0).all()
    np.testing.assert_array_equal(pixels[5:], grey8[5:])


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".tif"])
def test_orientation_tag_is_followed(tmp_path: Path, suffix: str) -> None:
    upright = np.zeros((24, 40), np.uint8)
    upright[:8, :8] = 240
    exif = PIL.Image.Exif()
    exif[0x0112] = 6  # stored turned by 90 degrees
    PIL.Image.fromarray(np.rot90(upright).copy()).save(tmp_path / f"a{suffix}", exif=exif)
    pixels = read_image(tmp_path / f"a{suffix}").pixels
    assert pixels.shape == (24, 40)
    assert np.abs(pixels - upright).max() < 30


def test_content_counts_and_not_the_suffix(tmp_path: Path, grey8: np.ndarray) -> None:
    PIL.Image.fromarray(grey8).save(tmp_path / "a.png")
    (tmp_path / "a.png").rename(tmp_path / "a.jpg")
    np.testing.assert_array_equal(read_image(tmp_path / "a.jpg").pixels, grey8)


def test_real_x_rays(shared_data: Path) -> None:
    paths = files_found(shared_data / "wrist")
    assert len(paths) == 7
    images = {path.stem[:4]: read_image(path) for path in paths}
    assert images["0003"].pixels.shape == (1130, 704)
    assert images["0003"].pixels.max() == 65535  # 16 bits
    assert images["5791"].pixels.max() == 255  # 8 bits, RGB that is grey


# --- what can't -------------------------------------------------------------------------------------------------------


def refused(path: Path) -> str:
    """The message with which reading is refused: it names the file."""
    with pytest.raises(ThoradError) as caught:
        read_image(path)
    assert str(path) in str(caught.value)
    return str(caught.value)


def test_missing_file(tmp_path: Path) -> None:
    assert "no such file" in refused(tmp_path / "nothing.png")
    (tmp_path / "dangling.png").symlink_to(tmp_path / "nothing.png")
    assert "no such file" in refused(tmp_path / "dangling.png")


def test_folder_and_pipe_are_no_files(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    assert "not a file" in refused(tmp_path)
    assert "not a file" in refused(tmp_path / "pipe.png")


def test_link_to_itself(tmp_path: Path) -> None:
    (tmp_path / "a.png").symlink_to(tmp_path / "a.png")
    refused(tmp_path / "a.png")


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".tif", ".npy"])
def test_empty_file(tmp_path: Path, suffix: str) -> None:
    (tmp_path / f"a{suffix}").touch()
    assert "the file is empty" in refused(tmp_path / f"a{suffix}")


@pytest.mark.parametrize("content", [b"image, mask\n", b"GIF89a\x01\x00", b"%PDF-1.7", b"\0" * 500, b"\x89PNG"])
def test_not_an_image(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.png").write_bytes(content)
    assert "not an image" in refused(tmp_path / "a.png")


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".tif", ".npy"])
def test_colours(tmp_path: Path, grey8: np.ndarray, suffix: str) -> None:
    array = np.stack([grey8] * 3, -1)
    array[8:16, 8:16] = (250, 20, 20)  # a red mark
    path = tmp_path / f"a{suffix}"
    np.save(path, array) if suffix == ".npy" else PIL.Image.fromarray(array).save(path)
    assert "a colour image" in refused(path)


def test_three_levels_of_colour_are_too_many(tmp_path: Path, grey8: np.ndarray) -> None:
    array = np.stack([grey8 // 2] * 3, -1)
    array[3, 4, 0] += 2
    PIL.Image.fromarray(array).save(tmp_path / "a.png")
    np.testing.assert_array_equal(read_image(tmp_path / "a.png").pixels, grey8 // 2)
    array[3, 4, 0] += 1
    PIL.Image.fromarray(array).save(tmp_path / "a.png")
    assert "differ by up to 3" in refused(tmp_path / "a.png")


def test_colours_of_floats_have_no_tolerance(tmp_path: Path, rng: np.random.Generator) -> None:
    array = np.repeat(rng.random((10, 12, 1)), 3, axis=2)
    np.save(tmp_path / "a.npy", array)
    np.testing.assert_array_equal(read_image(tmp_path / "a.npy").pixels, array[..., 0].astype(np.float32))
    array[0, 0, 0] += 0.1
    np.save(tmp_path / "a.npy", array)
    assert "a colour image" in refused(tmp_path / "a.npy")


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e300])
@pytest.mark.parametrize("suffix", [".npy", ".tif"])
@pytest.mark.parametrize("colours", [False, True])
def test_values_that_are_not_finite(
    tmp_path: Path, rng: np.random.Generator, value: float, suffix: str, colours: bool
) -> None:
    array = rng.random((20, 20))
    array[3, 3] = value
    stored = np.stack([array] * 3, -1) if colours else array
    path = tmp_path / f"a{suffix}"
    photometric = "rgb" if colours else "minisblack"
    np.save(path, stored) if suffix == ".npy" else tifffile.imwrite(path, stored, photometric=photometric)
    assert "pixels are NaN, infinite or too large" in refused(path)


@pytest.mark.parametrize("value", [0, 7, 255])
def test_constant_image(tmp_path: Path, value: int) -> None:
    PIL.Image.fromarray(np.full((20, 20), value, np.uint8)).save(tmp_path / "a.png")
    assert f"every pixel is {value}" in refused(tmp_path / "a.png")


@pytest.mark.parametrize("size", [(1, 100), (100, 1), (1, 1), (7, 100)])
@pytest.mark.parametrize("suffix", [".png", ".jpg", ".tif", ".npy"])
def test_side_too_short(tmp_path: Path, rng: np.random.Generator, size: tuple[int, int], suffix: str) -> None:
    array = rng.integers(0, 255, size).astype(np.uint8)
    path = tmp_path / f"a{suffix}"
    np.save(path, array) if suffix == ".npy" else PIL.Image.fromarray(array).save(path)
    assert f"the image is {size[1]} x {size[0]} px; expected sides of 8 to 8192 px" in refused(path)


def test_stacks_and_volumes(tmp_path: Path, rng: np.random.Generator) -> None:
    volume = rng.integers(0, 255, (5, 20, 20)).astype(np.uint8)
    np.save(tmp_path / "a.npy", volume)
    assert "shape (5, 20, 20)" in refused(tmp_path / "a.npy")
    np.save(tmp_path / "line.npy", volume.ravel())
    assert "shape (2000,)" in refused(tmp_path / "line.npy")
    tifffile.imwrite(tmp_path / "pages.tif", volume, photometric="minisblack")
    assert "5 pages" in refused(tmp_path / "pages.tif")
    tifffile.imwrite(tmp_path / "imagej.tif", volume, imagej=True)
    assert "5 pages" in refused(tmp_path / "imagej.tif")
    tifffile.imwrite(tmp_path / "planes.tif", volume, photometric="minisblack", planarconfig="separate")
    assert "several planes" in refused(tmp_path / "planes.tif")
    tifffile.imwrite(tmp_path / "depth.tif", volume, photometric="minisblack", volumetric=True, tile=(5, 16, 16))
    refused(tmp_path / "depth.tif")
    first, *others = (PIL.Image.fromarray(page) for page in volume)
    first.save(tmp_path / "a.png", save_all=True, append_images=others)
    assert "5 pictures" in refused(tmp_path / "a.png")


@pytest.mark.parametrize("array", [np.array([[{}] * 9] * 9), np.full((9, 9), "a"), np.ones((9, 9), complex)])
def test_arrays_of_other_things(tmp_path: Path, array: np.ndarray) -> None:
    np.save(tmp_path / "a.npy", array, allow_pickle=True)
    assert "expected bools, integers or floats" in refused(tmp_path / "a.npy")


@pytest.mark.parametrize("colours", [(), (3,), (4,)], ids=["grey", "RGB", "RGBA"])
@pytest.mark.parametrize("compression", [None, "zlib"])
def test_tiff_of_complex_numbers(tmp_path: Path, colours: tuple[int, ...], compression: str | None) -> None:
    """Raw MR data: dropping the imaginary part without a word would show another image."""
    pixels = np.arange(400).reshape(20, 20, *[1] * len(colours)) * np.ones(colours) * np.complex64(1 + 1j)
    tifffile.imwrite(
        tmp_path / "a.tif",
        pixels.astype(np.complex64),
        photometric="rgb" if colours else "minisblack",
        compression=compression,
    )
    assert "pixels of complex64; expected bools, integers or floats" in refused(tmp_path / "a.tif")
    with pytest.raises(ThoradError, match="complex64"):
        read_mask(tmp_path / "a.tif")


def bomb(suffix: str) -> bytes:
    """A small file that says it is 60,000 x 60,000 pixels."""
    side = 60_000
    if suffix == ".png":
        header = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
        rows = zlib.compress(bytes(1000 * (side + 1)))
        return b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", header) + png_chunk(b"IDAT", rows) + png_chunk(b"IEND", b"")
    if suffix == ".npy":
        honest = npy_bytes(np.zeros((60, 60), np.uint8))
        return honest.replace(b"(60, 60), }      ", b"(60000, 60000), }")
    buffer = io.BytesIO()
    if suffix == ".tif":
        tifffile.imwrite(buffer, np.zeros((60, 61), np.uint8), compression="zlib")
        width, height, large = (
            struct.pack("<HHII", *tag) for tag in ((256, 4, 1, 61), (257, 4, 1, 60), (0, 4, 1, side))
        )
        return buffer.getvalue().replace(width, width[:2] + large[2:]).replace(height, height[:2] + large[2:])
    PIL.Image.fromarray(np.zeros((60, 61), np.uint8)).save(buffer, "JPEG")
    return buffer.getvalue().replace(struct.pack(">HH", 60, 61), struct.pack(">HH", side, side))


@pytest.mark.parametrize("suffix", [".png", ".npy", ".tif", ".jpg"])
def test_decompression_bomb_is_refused_by_its_header(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    path.write_bytes(bomb(suffix))
    assert "8192 px" in refused(path)


def test_image_that_pillow_would_warn_of(tmp_path: Path) -> None:
    """Between 89 and 178 megapixels Pillow only warns; the limit here is lower and firm."""
    header = struct.pack(">IIBBBBB", 10_000, 10_000, 8, 0, 0, 0, 0)
    (tmp_path / "a.png").write_bytes(
        b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", header) + png_chunk(b"IDAT", b"") + png_chunk(b"IEND", b"")
    )
    assert "10000 x 10000 px" in refused(tmp_path / "a.png")


def test_file_too_large_to_be_one_image(tmp_path: Path) -> None:
    with (tmp_path / "a.npy").open("wb") as file:
        file.truncate(2**31)  # sparse: takes no space
    assert "2.0 GiB" in refused(tmp_path / "a.npy")


def stored(suffix: str, rng: np.random.Generator) -> bytes:
    picture = PIL.Image.fromarray(rng.integers(0, 255, (40, 33)).astype(np.uint8))
    buffer = io.BytesIO()
    if suffix == ".npy":
        return npy_bytes(np.asarray(picture).astype(np.float32))
    if suffix == ".lzw.tif":
        picture.save(buffer, "TIFF", compression="tiff_lzw")
    elif suffix == ".tiles.tif":
        tifffile.imwrite(buffer, np.asarray(picture), tile=(16, 16))
    else:
        picture.save(buffer, {".png": "PNG", ".jpg": "JPEG", ".tif": "TIFF"}[suffix])
    return buffer.getvalue()


DAMAGED = [".png", ".jpg", ".tif", ".lzw.tif", ".tiles.tif", ".npy"]


@pytest.mark.parametrize("suffix", DAMAGED)
@pytest.mark.filterwarnings("error")
def test_truncated_at_any_length(tmp_path: Path, rng: np.random.Generator, suffix: str) -> None:
    whole = stored(suffix, rng)
    path = tmp_path / f"a{suffix}"
    path.write_bytes(whole)
    pixels = read_image(path).pixels
    read = 0
    lengths = [*range(1, 60), *rng.integers(60, len(whole), 60), *range(len(whole) - 20, len(whole))]
    for length in lengths:
        path.write_bytes(whole[:length])
        try:
            found = read_image(path).pixels
        except ThoradError as error:
            assert str(path) in str(error)  # noqa: PT017 - either outcome is right
        else:
            read += 1
            np.testing.assert_array_equal(found, pixels)
    assert read < 20  # only what is cut behind the pixels can still be read


@pytest.mark.parametrize("suffix", DAMAGED)
@pytest.mark.filterwarnings("error")
def test_flipped_bits(tmp_path: Path, rng: np.random.Generator, suffix: str) -> None:
    """Damaged files are read or refused: no other error, no warning, no hang."""
    whole = stored(suffix, rng)
    path = tmp_path / f"a{suffix}"
    refusals = 0
    for index in range(300):
        damaged = bytearray(whole)
        # Every other time in the header, where it hurts most (in TIFF it may be at the end).
        span = len(whole) if index % 2 else min(len(whole), 200)
        for position in rng.integers(0, span, 1 + index % 3):
            damaged[-1 - position if "tif" in suffix and index % 4 == 0 else position] ^= 1 << rng.integers(8)
        path.write_bytes(damaged)
        try:
            pixels = read_image(path).pixels
        except ThoradError as error:
            refusals += 1
            assert str(path) in str(error)  # noqa: PT017 - either outcome is right
        else:
            assert pixels.ndim == 2
            assert np.isfinite(pixels).all()
    assert refusals > (250 if suffix == ".png" else 20)  # PNG has checksums


# --- arrays and masks -------------------------------------------------------------------------------------------------


def test_arrays_are_checked_as_files_are(grey: np.ndarray) -> None:
    image = image_from_array(grey, "knee")
    np.testing.assert_array_equal(image.pixels, grey)
    assert image.name == "knee"
    with pytest.raises(ThoradError, match="the array 'knee': an array of shape"):
        image_from_array(np.zeros((3, 20, 20)), "knee")
    with pytest.raises(ThoradError, match="every pixel is 0"):
        image_from_array(np.zeros((20, 20)))
    with pytest.raises(ThoradError, match="NaN"):
        image_from_array(np.where(grey > 9, grey, np.nan))


@pytest.mark.parametrize("value", [1, 255])
def test_masks_are_two_values(tmp_path: Path, grey8: np.ndarray, value: int) -> None:
    mask = grey8 > 200
    PIL.Image.fromarray(np.where(mask, value, 0).astype(np.uint8)).save(tmp_path / "m.png")
    np.testing.assert_array_equal(read_mask(tmp_path / "m.png", (23, 31)), mask)


def test_empty_mask_is_a_mask(tmp_path: Path) -> None:
    PIL.Image.fromarray(np.zeros((20, 20), np.uint8)).save(tmp_path / "m.png")
    assert not read_mask(tmp_path / "m.png").any()


def test_mask_of_another_size_and_grey_mask(tmp_path: Path, grey8: np.ndarray) -> None:
    PIL.Image.fromarray(grey8).save(tmp_path / "m.png")
    with pytest.raises(ThoradError, match=r"m\.png: the mask is 31 x 23 px, its image 23 x 31 px"):
        read_mask(tmp_path / "m.png", (31, 23))
    with pytest.raises(ThoradError, match=r"m\.png: found \d+ values beside 0"):
        read_mask(tmp_path / "m.png")
    np.save(tmp_path / "m.npy", np.where(grey8 > 99, np.nan, 0))
    with pytest.raises(ThoradError, match=r"m\.npy: found"):
        read_mask(tmp_path / "m.npy")


# --- finding and naming -----------------------------------------------------------------------------------------------


def named(inputs: list[Path]) -> dict[str, Path]:
    return {name: scan.path for name, scan in find_scans(inputs).items()}


def files_found(folder: Path) -> list[Path]:
    return list(named([folder]).values())


def touch(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


def test_folder_is_searched_below_and_sorted(tmp_path: Path) -> None:
    touch(tmp_path, "b.png", "a/c.TIF", "a/b.png", "notes.txt", ".hidden.png", ".cache/x.png", "z.npy", "q.JPEG")
    found = named([tmp_path])
    assert found == {
        "a__b": tmp_path / "a/b.png",
        "a__c": tmp_path / "a/c.TIF",
        "b": tmp_path / "b.png",
        "q": tmp_path / "q.JPEG",
        "z": tmp_path / "z.npy",
    }


def test_files_tables_and_folders_together_count_each_file_once(tmp_path: Path) -> None:
    touch(tmp_path, "one.png", "set/two.png", "set/three.png", "odd.dat")
    (tmp_path / "table.csv").write_text("subject,image\ns1,set/two.png\ns2,one.png\n")
    inputs = [tmp_path / "odd.dat", tmp_path / "table.csv", tmp_path / "set"]
    assert named(inputs) == {
        "odd": tmp_path / "odd.dat",
        "set__two": tmp_path / "set/two.png",
        "one": tmp_path / "one.png",
        "three": tmp_path / "set/three.png",
    }


def test_names_are_unique_and_do_not_depend_on_the_order(tmp_path: Path) -> None:
    touch(tmp_path, "a/b.png", "a__b.png", "x.png", "X.tif", "x.jpg", "lone.png")
    paths = files_found(tmp_path)
    names = dict(zip(paths, case_names(paths, [tmp_path] * len(paths)), strict=True))
    assert len({name.casefold() for name in names.values()}) == len(paths)
    assert names[tmp_path / "lone.png"] == "lone"
    assert names[tmp_path / "a/b.png"].startswith("a__b-")
    assert names[tmp_path / "a__b.png"].startswith("a__b-")
    backwards = paths[::-1]
    assert dict(zip(backwards, case_names(backwards, [tmp_path] * len(paths)), strict=True)) == names


def test_the_same_name_in_two_folders(tmp_path: Path) -> None:
    touch(tmp_path, "one/scan.png", "two/scan.png")
    names = list(find_scans([tmp_path / "one", tmp_path / "two"]))
    assert len(set(names)) == 2
    assert all(name.startswith("scan-") for name in names)


@pytest.mark.parametrize(
    ("relative", "expected"),
    [
        ("a/b.png", "a__b"),
        ("../other/x.png", "other__x"),
        ("../../x.png", "x"),
        ("..png", "image"),
        ("sub-01_T1w.nii.png", "sub-01_T1w.nii"),
        ("my scan (1).png", "my_scan__1_"),
        ("-rf.png", "rf"),
        ("a\\b:c*.png", "a_b_c_"),
        ("größe.png", "größe"),
        ("gro\u0308ße.png", "größe"),  # as macOS may write it: the same name, so the same random numbers
        ("line\nbreak.png", "line_break"),
        ("colin_z+15.png", "colin_z+15"),
    ],
)
def test_names_are_safe(relative: str, expected: str) -> None:
    assert case_names([Path("data") / relative], [Path("data")]) == [expected]


def test_names_are_short_enough_for_file_systems() -> None:
    long = [Path("data", *["ordner_mit_ä" * 10] * 5, f"{index}.png") for index in range(3)]
    names = case_names(long, [Path("data")] * 3)
    assert len(set(names)) == 3
    assert max(len(name.encode()) for name in names) <= 180


def test_file_outside_the_folder_is_named_by_itself() -> None:
    assert case_names([Path("/elsewhere/deep/x.png")], [Path("/data")]) == ["x"]


def test_nothing_to_find(tmp_path: Path) -> None:
    with pytest.raises(ThoradError, match="no such file or folder"):
        find_scans([tmp_path / "nowhere"])
    touch(tmp_path, "notes.txt")
    with pytest.raises(
        ThoradError, match=r"no image in this folder or below\. Expected DICOM files, or files that end in \.png"
    ):
        find_scans([tmp_path])


def test_table_that_names_missing_files(tmp_path: Path) -> None:
    touch(tmp_path, "there.png")
    with (tmp_path / "t.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["image"], ["there.png"], *[[f"gone{index}.png"] for index in range(7)]])
    with pytest.raises(ThoradError, match=r"t\.csv: 7 of the 8 files .* gone0\.png \(line 3\), .* and 2 more"):
        find_scans([tmp_path / "t.csv"])
    (tmp_path / "t.csv").write_text("image,note\nthere.png,\n,x\n")
    with pytest.raises(ThoradError, match=r"column image is empty in line 3"):
        find_scans([tmp_path / "t.csv"])


@pytest.fixture
def someone_elses(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder that everybody may enter, while this process is not the superuser, who may read anything."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        touch(folder, "locked/a.png", "a.png")
        (folder / "a.png").write_bytes(b"not empty")
        (folder / "locked").chmod(0o000)
        (folder / "a.png").chmod(0o000)
        superuser = os.geteuid() == 0
        if superuser:
            os.seteuid(NOBODY)
        try:
            yield folder
        finally:
            if superuser:
                os.seteuid(0)
            (folder / "locked").chmod(0o755)


def test_unreadable_file_and_folder(someone_elses: Path) -> None:
    assert "can't be read" in refused(someone_elses / "a.png")
    assert "can't be read" in refused(someone_elses / "locked" / "a.png")
    for given in (someone_elses / "locked", someone_elses, someone_elses / "locked" / "a.png"):
        with pytest.raises(ThoradError, match="can't be read"):
            find_scans([given])


def test_unwritable_folder(someone_elses: Path) -> None:
    with pytest.raises(ThoradError, match=r"out\.npy: can't be written \(Permission denied\)"):
        write_npy(someone_elses / "locked" / "out.npy", np.zeros(3))


# --- writing ----------------------------------------------------------------------------------------------------------


def test_written_files_read_back(tmp_path: Path, rng: np.random.Generator) -> None:
    values = rng.random((20, 30)).astype(np.float32)
    write_npy(tmp_path / "new" / "a.npy", values)
    write_png8(tmp_path / "a.png", values * 1.2 - 0.1)
    np.testing.assert_array_equal(read_image(tmp_path / "new" / "a.npy").pixels, values)
    expected = np.clip(values * 1.2 - 0.1, 0, 1) * 255
    assert np.abs(read_image(tmp_path / "a.png").pixels - expected).max() <= 0.5 + 1e-4
    write_png8(tmp_path / "rgb.png", np.full((20, 20, 3), 7, np.uint8))
    with PIL.Image.open(tmp_path / "rgb.png") as written:
        assert written.mode == "RGB"


def test_failed_writing_leaves_the_old_file_and_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.bin"
    write_atomic(path, b"old")

    def full_disk(self: Path, content: bytes) -> int:
        with self.open("wb") as file:
            file.write(content[:2])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full_disk)
    with pytest.raises(ThoradError, match=r"a\.bin: can't be written \(No space left on device\)"):
        write_atomic(path, b"newer")
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["a.bin"]  # noqa: PTH208 - with hidden ones
