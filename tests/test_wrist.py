"""The real wrist X-rays of GRAZPEDWRI-DX that the development data hold: read, scaled, and matched with their boxes."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from thorad.datasets.boxes import Box, boxes_to_model_grid, read_boxes
from thorad.datasets.cases import read_cases
from thorad.datasets.wrist import read_dataset_table
from thorad.io.images import read_image
from thorad.io.intensity import BRIGHTEST, scale
from thorad.io.preprocess import to_input_grid, to_model_input

SIXTEEN_BITS = [
    "0003_0662359226_01_WRI-R1_M011",
    "3799_0949300875_03_WRI-L1_M010",
    "unlabelled_09161cc5",
    "unlabelled_aa769cd2",
    "unlabelled_b3bf74f7",
]
EIGHT_BITS = ["5791_0288377040_02_WRI-R1_F009", "unlabelled_e431d287_8bitRGB"]


@pytest.fixture(scope="module")
def wrist(shared_data: Path) -> Path:
    return shared_data / "wrist"


@pytest.mark.parametrize("name", SIXTEEN_BITS + EIGHT_BITS)
def test_pixels(wrist: Path, name: str) -> None:
    """All bits are read, and the 98th percentile becomes 1, whatever the bits."""
    pixels = read_image(wrist / f"{name}.png").pixels
    assert pixels.max() > 60_000 if name in SIXTEEN_BITS else pixels.max() <= 255
    if name in SIXTEEN_BITS:
        assert (pixels % 256 != 0).mean() > 0.5  # not the high bytes alone
    scaled = scale(pixels)
    assert scaled.shape == pixels.shape
    assert scaled.min() == 0
    assert scaled.max() == 1
    brightest = np.sort(pixels.ravel())[round(BRIGHTEST / 100 * (pixels.size - 1))]
    assert (scaled == 1).mean() == pytest.approx(0.02, abs=0.003)
    np.testing.assert_allclose(scaled, np.clip(pixels / brightest, 0, 1), atol=1e-3)


@pytest.mark.parametrize("name", SIXTEEN_BITS + EIGHT_BITS)
def test_model_input(wrist: Path, name: str) -> None:
    """Orientation stays, the wrist lies between two bands of zeros, and the way back leads to where it came from."""
    pixels = read_image(wrist / f"{name}.png").pixels
    input, placement = to_model_input(pixels, 64)
    height, width = pixels.shape
    assert height > width  # the forearm stands upright in all of them
    assert input.shape == (1, 64, 64)
    assert float(input.min()) >= 0
    assert float(input.max()) <= 1
    band = int(placement.left * 64 / height) - 1  # the resampling reaches a pixel over
    assert float(input[0, :, :band].max()) == float(input[0, :, 64 - band :].max()) == 0
    back, original = to_input_grid(input[0], placement), scale(pixels)
    assert back.shape == pixels.shape
    agreement = [np.corrcoef(turned.ravel(), original.ravel())[0, 1] for turned in (back, back[::-1], back[:, ::-1])]
    assert agreement[0] > 0.85
    assert agreement[0] > max(agreement[1:]) + 0.05


def mean_in(image: np.ndarray, box: Box) -> float:
    return float(image[round(box.top) : round(box.bottom), round(box.left) : round(box.right)].mean())


@pytest.mark.parametrize(
    ("name", "suffix", "labels"),
    [
        ("0003_0662359226_01_WRI-R1_M011", ".xml", ["text", "fracture", "fracture"]),
        ("5791_0288377040_02_WRI-R1_F009", ".txt", ["fracture", "text", "fracture"]),
    ],
)
def test_boxes_lie_on_what_they_name(wrist: Path, name: str, suffix: str, labels: list[str]) -> None:
    """The letter in a text box is the brightest there is, a fracture's box holds bone: brighter than beside it."""
    image = scale(read_image(wrist / f"{name}.png").pixels)
    boxes = read_boxes(wrist / f"{name}{suffix}", *image.shape)
    assert [box.label for box in boxes] == labels
    for box in boxes:
        assert 0 <= box.left < box.right <= image.shape[1]
        assert 0 <= box.top < box.bottom <= image.shape[0]
        inside = image[int(box.top) : int(box.bottom), int(box.left) : int(box.right)]
        if box.label == "text":
            assert (inside == 1).mean() > 0.2
            assert np.median(image) < inside.mean()
        else:
            assert inside.mean() > np.median(image)
            assert inside.std() > 0.05

    # On the model's grid the same places are as bright, to what 64 px blur.
    input, placement = to_model_input(read_image(wrist / f"{name}.png").pixels, 64)
    for box, moved in zip(boxes, boxes_to_model_grid(boxes, placement), strict=True):
        assert moved.label == box.label
        assert 0 <= moved.left < moved.right <= 64
        assert 0 <= moved.top < moved.bottom <= 64
        assert mean_in(input[0].numpy(), moved) == pytest.approx(mean_in(image, box), abs=0.12)


def test_metal_is_the_brightest(wrist: Path) -> None:
    """The wires of the image with metal, boxed by hand, stand out of what surrounds them."""
    image = scale(read_image(wrist / "3799_0949300875_03_WRI-L1_M010.png").pixels)
    wires = Box("metal", 240, 265, 550, 890)
    inside = image[265:890, 240:550]
    assert (inside == 1).sum() > 0.5 * (image == 1).sum()
    assert mean_in(image, wires) > np.median(image)


def test_dataset_table(wrist: Path) -> None:
    """Counts as the data set's paper gives them: 20,327 images of 6,091 patients."""
    images = read_dataset_table(wrist / "dataset.csv.gz")
    assert len(images) == 20_327
    assert len({image.subject for image in images}) == 6_091
    assert sum(image.fracture_visible for image in images) == 13_550
    assert sum(image.metal for image in images) == 708
    by_name = {image.name: image for image in images}
    metal = by_name["3799_0949300875_03_WRI-L1_M010"]
    assert (metal.subject, metal.study) == ("3799", 3)
    assert metal.metal
    assert by_name["5791_0288377040_02_WRI-R1_F009"].fracture_visible


def test_detection_and_box_metrics(wrist: Path, tmp_path: Path) -> None:
    """From the data set's files to recall and F1, by the bundled hand model (wrists are outside its domain)."""
    from thorad.detector import Detector
    from thorad.evaluation.evaluate import evaluate

    table = tmp_path / "cases.csv"
    marked = ["0003_0662359226_01_WRI-R1_M011", "5791_0288377040_02_WRI-R1_F009"]
    rows = [f"{wrist / name}.png,{wrist / name}{suffix}" for name, suffix in zip(marked, (".xml", ".txt"), strict=True)]
    rows += [f"{wrist / name}.png," for name in SIXTEEN_BITS + EIGHT_BITS if name.startswith("unlabelled")]
    table.write_text("\n".join(["image,boxes", *rows]) + "\n")
    detector = Detector("hand-xray64", method="thor", device="cpu")
    for name in marked:
        image = read_image(wrist / f"{name}.png")
        found = detector.detect(image)
        assert found.anomaly_map.shape == found.pseudo_healthy.shape == image.pixels.shape
        assert np.isfinite(found.anomaly_map).all()
        assert 0 <= found.pseudo_healthy.min() <= found.pseudo_healthy.max() <= 1
    (result,) = evaluate(
        read_cases(table, truth="boxes"), [], [detector], tmp_path / "out", protocol="boxes", bootstrap=0
    )
    labels = [
        box.label
        for name, suffix in zip(marked, (".xml", ".txt"), strict=True)
        for box in boxes_of(wrist, name, suffix)
    ]
    kinds = result["kinds"]
    assert {kind: figures["boxes"] for kind, figures in kinds.items() if kind != "all"} == {
        label: labels.count(label) for label in labels
    }
    assert kinds["all"]["boxes"] == len(labels)
    for figures in kinds.values():
        assert 0 <= figures["recall"] <= 1
        assert 0 <= figures["f1"] <= 1
    maps = detector.model_maps(*model_inputs(wrist, [row.split(",")[0] for row in rows if row.endswith(",")]))
    threshold = result["thresholds"]["boxes"]
    assert float((maps > threshold).float().mean()) <= 0.05, "what the threshold promises of the unmarked images"


def boxes_of(wrist: Path, name: str, suffix: str) -> list[Box]:
    height, width = read_image(wrist / f"{name}.png").pixels.shape
    return read_boxes(wrist / f"{name}{suffix}", height, width)


def model_inputs(wrist: Path, files: list[str]) -> tuple[Tensor, list[str]]:
    inputs = [to_model_input(read_image(Path(file)).pixels, 64)[0] for file in files]
    return torch.stack(inputs), [Path(file).stem for file in files]
