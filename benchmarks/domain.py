"""How often scans are refused or warned of, of the model's kind and of others: the table of docs/results.md.

    python benchmarks/domain.py DATA OUT.md [--heads FILE_OR_FOLDER ...] [--others FOLDER ...]

DATA holds the development data (docs/data.md): ixi/val, stroke-bench, gliomas, wrist, hand-xray64.zip. Heads, in any
space, are registered; their slices at several heights, and their sagittal and coronal slices, are judged. Other folders
are judged as they are, for all models. Nothing is detected.
"""

from __future__ import annotations

import argparse
import io
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import PIL.Image
from numpy.typing import NDArray
from scipy import ndimage

from thorad.check import Check
from thorad.detector import Detector
from thorad.errors import ThoradError
from thorad.io.images import Image, image_from_array, read_image
from thorad.io.registration import register
from thorad.io.scans import find_scans
from thorad.io.slices import cut_slices
from thorad.io.template import MNI_2009A
from thorad.io.volumes import Volume

MODELS = ("brain-t1-compact", "brain-t1-patched", "hand-xray64")
Pixels = NDArray[np.float32]


def zoomed(pixels: Pixels, factor: float) -> Pixels:
    middle = (np.array(pixels.shape) - 1) / 2
    found: Pixels = ndimage.affine_transform(pixels, np.eye(2) / factor, middle - middle / factor, order=1)
    return found


def turned(degrees: float) -> Callable[[Pixels], Pixels]:
    return lambda pixels: ndimage.rotate(pixels, degrees, reshape=False, order=1)


def like_ct(pixels: Pixels) -> Pixels:
    """Scalp dim, skull white, brain flat: the head's own outline, and bone between two of its shrunken copies."""
    head = ndimage.binary_fill_holes(ndimage.gaussian_filter(pixels, 1) > 0.1 * pixels.max())
    depth = ndimage.distance_transform_edt(head) * 128 / max(pixels.shape)
    brain = np.where(ndimage.gaussian_filter(pixels, 1) > 0.45 * pixels.max(), 0.42, 0.35)
    return np.select([depth == 0, depth < 4, depth < 9], [0, 0.3, 1], brain).astype(np.float32)


def noise(pixels: Pixels) -> Pixels:
    return np.random.default_rng(int(1000 * pixels.sum()) % 2**32).random(pixels.shape).astype(np.float32)


CHANGES: dict[str, Callable[[Pixels], Pixels]] = {
    "mirrored left to right": lambda pixels: pixels[:, ::-1],
    "upside down": lambda pixels: pixels[::-1],
    "turned by 180 degrees": lambda pixels: pixels[::-1, ::-1],
    "turned by 90 degrees": np.rot90,
    "turned by 45 degrees": turned(45),
    "turned by 20 degrees": turned(20),
    "turned by 10 degrees": turned(10),
    "enlarged 1.5 times": lambda pixels: zoomed(pixels, 1.5),
    "enlarged 1.15 times": lambda pixels: zoomed(pixels, 1.15),
    "0.85 times as large": lambda pixels: zoomed(pixels, 0.85),
    "0.6 times as large": lambda pixels: zoomed(pixels, 0.6),
    "0.4 times as large": lambda pixels: zoomed(pixels, 0.4),
    "moved by a fifth of its side": lambda pixels: np.roll(pixels, pixels.shape[0] // 5, 0),
    "negative": lambda pixels: pixels.max() - pixels,
    "gamma 0.5": lambda pixels: pixels.max() * (pixels / pixels.max()) ** 0.5,
    "gamma 2": lambda pixels: pixels**2,
    "blurred (5 px)": lambda pixels: ndimage.gaussian_filter(pixels, 5),
    "like CT": like_ct,
    "noise": noise,
}


def changed(images: list[Image], change: Callable[[Pixels], Pixels]) -> list[Image]:
    return [image_from_array(np.ascontiguousarray(np.clip(change(image.pixels), 0, None))) for image in images]


def hands(archive: Path, split: str) -> list[Image]:
    with zipfile.ZipFile(archive) as zipped:
        names = sorted(name for name in zipped.namelist() if name.startswith(f"{split}/") and name.endswith(".jpeg"))
        pictures = [PIL.Image.open(io.BytesIO(zipped.read(name))).convert("L") for name in names]
    return [image_from_array(np.asarray(picture)) for picture in pictures]


def photographs() -> list[Image]:
    """Those that come with scikit-image and need no download."""
    import skimage.data

    names = ("camera", "coins", "moon", "page", "text", "clock", "brick", "grass", "gravel", "coffee", "astronaut")
    found = [np.asarray(getattr(skimage.data, name)(), np.float32) for name in names]
    return [image_from_array(one if one.ndim == 2 else one.mean(-1)) for one in found]


def slices_of(head: Volume) -> dict[str, list[Image]]:
    """Axial slices of a registered head, and some across."""
    registration = register(head)
    depth, k = MNI_2009A.shape[2], MNI_2009A.axial_slice
    stack = np.clip(cut_slices(registration, range(depth), skull=True), 0, None)  # (z, y downwards, x)
    found = {f"{head.name}, {mm:+d} mm": [stack[k + mm]] for mm in (0, -10, 10, -15, -20, 20, -30, -40, 40)}
    found[f"{head.name}, sagittal"] = [stack[::-1, :, x] for x in (80, 90, 110, 120)]
    found[f"{head.name}, coronal"] = [stack[::-1, y] for y in (70, 90, 110, 130, 150)]
    return {name: [image_from_array(np.ascontiguousarray(each)) for each in group] for name, group in found.items()}


def data_sets(data: Path, heads: list[Path], others: list[Path]) -> Iterator[tuple[str, list[Image]]]:
    """Name and images of each row."""
    val = [read_image(path) for path in sorted((data / "ixi/val").glob("*.png"))]
    yield "ixi/val", val
    for name in ("stroke-bench/healthy", "stroke-bench/images", "gliomas/images", "wrist"):
        yield name, [read_image(path) for path in sorted((data / name).glob("*.png"))]
    for split in ("val", "test"):
        yield f"hand-xray64/{split}", hands(data / "hand-xray64.zip", split)
    yield "photographs", photographs()
    for name, change in CHANGES.items():
        yield f"ixi/val, {name}", changed(val, change)
    some_hands = hands(data / "hand-xray64.zip", "test")
    for name, change in CHANGES.items():
        yield f"hand-xray64/test, {name}", changed(some_hands, change)
    for given in heads:
        for scan in find_scans([given]).values():
            head = scan.read()
            assert isinstance(head, Volume)
            yield from slices_of(Volume(head.voxels, head.affine, head.source, given.name.split(".")[0])).items()
    for given in others:
        images = (scan.read() for scan in find_scans([given]).values())
        yield given.name, [image for image in images if isinstance(image, Image)]


def status(detector: Detector, image: Image) -> str:
    try:
        check: Check = detector.check(image)
    except ThoradError:  # nothing to scale by
        return "refused"
    return check.status


def main() -> None:
    """Judge, count, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--heads", type=Path, nargs="*", default=[])
    parser.add_argument("--others", type=Path, nargs="*", default=[])
    arguments = parser.parse_args()
    detectors = [Detector(model, method="zscore" if "patched" not in model else "pddpm") for model in MODELS]
    lines = [f"| Data | Images | {' | '.join(MODELS)} |", f"|---|---:|{'---:|' * len(MODELS)}"]
    for name, images in data_sets(arguments.data, arguments.heads, arguments.others):
        cells = []
        for detector in detectors:
            found = [status(detector, image) for image in images]
            cells.append(" / ".join(str(found.count(one)) for one in ("refused", "warned", "ok")))
        lines.append(f"| {name} | {len(images)} | {' | '.join(cells)} |")
        print(lines[-1], flush=True)
    arguments.out.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
