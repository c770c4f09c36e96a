from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import numpy as np
import pytest
import skimage
import torch
import torchmetrics.functional.image.lpips as torchmetrics_lpips
from safetensors.torch import load_file, save_file
from scipy import ndimage
from torch import Tensor

from thorad.errors import ThoradError
from thorad.maps.perceptual import (
    BUNDLED_WEIGHTS,
    PerceptualDistance,
    load_perceptual_distance,
    squeezenet_features,
)

ASSETS = BUNDLED_WEIGHTS.parents[1]


@pytest.fixture(scope="module")
def perceptual() -> PerceptualDistance:
    return load_perceptual_distance()


@pytest.fixture(scope="module")
def picture() -> np.ndarray:
    """skimage's cameraman, 128 x 128 in [-1, 1]."""
    return skimage.data.camera()[::4, ::4].astype(np.float32) / 127.5 - 1


def batch(*images: np.ndarray) -> Tensor:
    return torch.tensor(np.stack(images)[:, None], dtype=torch.float32)


def blurred(picture: np.ndarray, sigma: float) -> np.ndarray:
    return ndimage.gaussian_filter(picture, sigma)


def synthetic_squeezenet(seed: int = 0) -> dict[str, Tensor]:
    """A state dict with the names and shapes of torchvision's squeezenet1_1, random values, classifier included."""
    generator = torch.Generator().manual_seed(seed)
    shapes = {f"features.{name}": tensor.shape for name, tensor in squeezenet_features().state_dict().items()}
    shapes |= {"classifier.1.weight": torch.Size((1000, 512, 1, 1)), "classifier.1.bias": torch.Size((1000,))}
    return {name: 0.1 * torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def torchmetrics_module(monkeypatch: pytest.MonkeyPatch, weights: Path) -> torch.nn.Module:
    """torchmetrics' LPIPS around our backbone's layers: it has its own taps, scaling, heads and upsampling."""

    def features(name: str, pretrained: bool) -> torch.nn.Sequential:
        assert name == "squeezenet1_1"
        network = squeezenet_features()
        state = load_file(weights)
        network.load_state_dict({k.removeprefix("features."): v for k, v in state.items() if k.startswith("features.")})
        return network

    monkeypatch.setattr(torchmetrics_lpips, "_get_tv_model_features", features)
    return torchmetrics_lpips._LPIPS(net="squeeze", spatial=True)


@pytest.mark.parametrize("shape", [(128, 128), (101, 75), (64, 96)])
@pytest.mark.parametrize("channels", [1, 3])
def test_equals_torchmetrics(
    perceptual: PerceptualDistance, monkeypatch: pytest.MonkeyPatch, shape: tuple[int, int], channels: int
) -> None:
    generator = torch.Generator().manual_seed(1)
    a, b = (torch.rand(2, channels, *shape, generator=generator) * 2 - 1 for _ in range(2))
    reference = torchmetrics_module(monkeypatch, BUNDLED_WEIGHTS)(a.expand(-1, 3, -1, -1), b.expand(-1, 3, -1, -1))
    ours = perceptual(a, b)
    assert ours.shape == (2, 1, *shape)
    torch.testing.assert_close(ours, reference, atol=2e-5, rtol=1e-4)


@pytest.mark.skipif(
    "THORAD_TORCHVISION_SQUEEZENET" not in os.environ,
    reason="THORAD_TORCHVISION_SQUEEZENET does not name torchvision's squeezenet1_1-*.pth",
)
def test_torchmetrics_docstring_example() -> None:
    """torchmetrics 1.9 prints tensor([0.1024, 0.0938]) in the docstring of LearnedPerceptualImagePatchSimilarity."""
    module = load_perceptual_distance(Path(os.environ["THORAD_TORCHVISION_SQUEEZENET"]))
    generator = torch.Generator().manual_seed(42)
    a, b = (torch.rand(2, 3, 100, 100, generator=generator) * 2 - 1 for _ in range(2))
    taps = zip(module.heads, module.features(a), module.features(b), strict=True)
    number = sum(head((tap_a - tap_b).square()).mean(dim=(1, 2, 3)) for head, tap_a, tap_b in taps)
    torch.testing.assert_close(number, torch.tensor([0.1024, 0.0938]), atol=5e-5, rtol=0)


def test_identical_images_are_at_exactly_zero(perceptual: PerceptualDistance, picture: np.ndarray) -> None:
    image = batch(picture, np.zeros_like(picture), -np.ones_like(picture))
    assert torch.equal(perceptual(image, image.clone()), torch.zeros_like(image))


def test_symmetric_and_not_negative(perceptual: PerceptualDistance, picture: np.ndarray) -> None:
    a, b = batch(picture), batch(blurred(picture, 3))
    assert torch.equal(perceptual(a, b), perceptual(b, a))
    assert float(perceptual(a, b).min()) >= 0


def test_grows_with_noise(perceptual: PerceptualDistance, picture: np.ndarray) -> None:
    noise = np.random.default_rng(0).standard_normal(picture.shape)
    strengths = (0, 0.02, 0.05, 0.1, 0.2, 0.4, 0.8)
    means = perceptual(batch(*[picture] * 7), batch(*(picture + s * noise for s in strengths))).mean(dim=(1, 2, 3))
    assert torch.all(means.diff() > 0), means


def test_grows_with_blur(perceptual: PerceptualDistance, picture: np.ndarray) -> None:
    sigmas = (0.5, 1, 1.5, 2, 3, 5, 8)
    means = perceptual(batch(*[picture] * 7), batch(*(blurred(picture, s) for s in sigmas))).mean(dim=(1, 2, 3))
    assert torch.all(means.diff() > 0), means


def test_structure_counts_more_than_brightness(perceptual: PerceptualDistance, picture: np.ndarray) -> None:
    """What the metric is for: the trained features forgive a brightness shift, and mind a blur of the same error."""
    picture = 0.7 * picture
    soft = blurred(picture, 2)
    brighter = picture + np.sqrt(np.mean((soft - picture) ** 2))
    distances = perceptual(batch(picture, picture), batch(soft, brighter)).mean(dim=(1, 2, 3))
    assert distances[0] > 2 * distances[1], distances


def test_a_local_change_is_found_where_it_is(perceptual: PerceptualDistance, picture: np.ndarray) -> None:
    changed = picture.copy()
    changed[20:36, 84:100] = np.random.default_rng(0).uniform(-1, 1, (16, 16))
    distance = perceptual(batch(picture), batch(changed))[0, 0].numpy()
    assert distance[20:36, 84:100].mean() > 5 * np.delete(distance, np.s_[8:48], axis=0).mean()
    row, column = np.unravel_index(distance.argmax(), distance.shape)
    assert 20 <= row < 36
    assert 84 <= column < 100


def test_one_image_does_not_depend_on_its_batch(perceptual: PerceptualDistance, picture: np.ndarray) -> None:
    images = batch(picture, blurred(picture, 1), picture[::-1], -picture)
    others = batch(blurred(picture, 2), picture, picture, picture[:, ::-1])
    together = perceptual(images, others)
    for i in range(4):
        alone = perceptual(images[i : i + 1], others[i : i + 1])
        torch.testing.assert_close(alone, together[i : i + 1], atol=1e-5, rtol=1e-4)


def test_features_can_be_used_again(perceptual: PerceptualDistance, picture: np.ndarray) -> None:
    a, b = batch(picture), batch(blurred(picture, 2))
    features = perceptual.features(a)
    assert [tuple(tap.shape[1:]) for tap in features] == [
        (64, 63, 63),
        (128, 31, 31),
        (256, 15, 15),
        (384, 7, 7),
        (384, 7, 7),
        (512, 7, 7),
        (512, 7, 7),
    ]
    for tap in features:
        length = tap.square().sum(dim=1).sqrt()
        torch.testing.assert_close(length, torch.ones_like(length), atol=1e-4, rtol=0)
    assert torch.equal(perceptual.distance(features, perceptual.features(b), (128, 128)), perceptual(a, b))


def test_autocast_does_not_lower_the_precision(perceptual: PerceptualDistance, picture: np.ndarray) -> None:
    a, b = batch(picture), batch(blurred(picture, 1))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = perceptual(a, b)
    assert inside.dtype == torch.float32
    assert torch.equal(inside, perceptual(a, b))


def test_bundled_weights_are_frozen_and_trained(perceptual: PerceptualDistance) -> None:
    assert not perceptual.training
    assert not any(parameter.requires_grad for parameter in perceptual.parameters())
    assert all(float(head.weight.min()) >= 0 for head in perceptual.heads)  # LPIPS trains them so
    # Trained first-layer filters respond to edges, so that many of them sum to about nothing; random ones don't.
    kernels = perceptual.features_network[0].weight.sum(dim=1)  # (64, 3, 3), for a grey image
    balance = kernels.sum(dim=(1, 2)).abs() / kernels.abs().sum(dim=(1, 2))
    assert float((balance < 0.1).float().mean()) > 0.3


def test_loading_leaves_the_global_generator_alone() -> None:
    before = torch.get_rng_state()
    load_perceptual_distance()
    assert torch.equal(torch.get_rng_state(), before)


def test_smallest_image(perceptual: PerceptualDistance) -> None:
    image = torch.zeros(1, 1, 17, 17)
    assert perceptual(image, image + 0.5).shape == (1, 1, 17, 17)
    with pytest.raises(RuntimeError, match="too small"):
        perceptual(image[..., :16], image[..., :16])


def test_user_weights(tmp_path: Path, picture: np.ndarray, perceptual: PerceptualDistance) -> None:
    state = synthetic_squeezenet()
    torch.save(state, tmp_path / "squeezenet1_1.pth")
    save_file(state, tmp_path / "squeezenet1_1.safetensors")
    a, b = batch(picture), batch(blurred(picture, 2))
    pickled = load_perceptual_distance(tmp_path / "squeezenet1_1.pth")
    assert torch.equal(pickled.features_network[3].squeeze.weight, state["features.3.squeeze.weight"])
    assert torch.equal(pickled.heads[2].weight, perceptual.heads[2].weight)
    assert torch.equal(pickled(a, b), load_perceptual_distance(tmp_path / "squeezenet1_1.safetensors")(a, b))
    assert not torch.allclose(pickled(a, b), perceptual(a, b))


def test_user_weights_equal_torchmetrics(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, picture: np.ndarray) -> None:
    """Torchvision's layout and input convention: torchmetrics with the same file finds the same."""
    file = tmp_path / "squeezenet1_1.safetensors"
    save_file(synthetic_squeezenet(), file)
    a, b = batch(picture), batch(blurred(picture, 2))
    reference = torchmetrics_module(monkeypatch, file)(a.expand(-1, 3, -1, -1), b.expand(-1, 3, -1, -1))
    torch.testing.assert_close(load_perceptual_distance(file)(a, b), reference, atol=2e-5, rtol=1e-3)


class Executes:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, ("executed",)


def test_user_weights_that_do_not_fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "weights.pth"
    with pytest.raises(ThoradError, match="no such file"):
        load_perceptual_distance(file)

    file.write_bytes(b"not weights")
    with pytest.raises(ThoradError, match=r"weights\.pth: can't be read"):
        load_perceptual_distance(file)
    file.with_suffix(".safetensors").write_bytes(b"not weights")
    with pytest.raises(ThoradError, match=r"weights\.safetensors: can't be read"):
        load_perceptual_distance(file.with_suffix(".safetensors"))

    torch.save({"features.0.weight": Executes()}, file)
    with pytest.raises(ThoradError, match="can't be read"):
        load_perceptual_distance(file)
    assert not (tmp_path / "executed").exists()

    torch.save([torch.zeros(1)], file)
    with pytest.raises(ThoradError, match="holds a list, expected a state dict"):
        load_perceptual_distance(file)

    state = synthetic_squeezenet()
    del state["features.12.expand3x3.bias"]
    torch.save(state, file)
    with pytest.raises(ThoradError, match=r"1 of 50 tensors.*features\.12\.expand3x3\.bias, which is missing"):
        load_perceptual_distance(file)

    state = synthetic_squeezenet() | {"features.0.weight": torch.zeros(96, 3, 7, 7)}  # squeezenet1_0's
    torch.save(state, file)
    with pytest.raises(ThoradError, match=r"shape \(96, 3, 7, 7\), expected \(64, 3, 3, 3\)"):
        load_perceptual_distance(file)


@pytest.mark.parametrize("folder", ["perceptual", "regions", "samples"])
def test_assets_are_what_their_provenance_says(folder: str) -> None:
    provenance = json.loads((ASSETS / folder / "provenance.json").read_text(encoding="utf-8"))
    asset = ASSETS / folder / provenance["asset"]["file"]
    assert hashlib.sha256(asset.read_bytes()).hexdigest() == provenance["asset"]["sha256"]
    assert asset.stat().st_size < 3_000_000
    for source in provenance["sources"]:
        assert source["licence"]
        assert len(source["file_sha256"]) == len(source["wheel_sha256"]) == 64
