import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from thorad.cli.options import DEFAULT_MODEL
from thorad.errors import ThoradError
from thorad.io.preprocess import digest_of, to_model_input
from thorad.io.scans import read_picture
from thorad.model import (
    CALIBRATION,
    CARD,
    RECIPE,
    WEIGHTS,
    build_network,
    bundled_models,
    load_model,
    load_region,
    model_card,
    model_folder,
    save_model,
    weight_megabytes,
)
from thorad.recipe import Recipe, load_recipe


@pytest.fixture
def folder(tiny_model: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return Path(shutil.copytree(tiny_model, tmp_path / "model"))


def sign(folder: Path) -> None:
    """Make the calibration say that the weights are as they were saved."""
    import hashlib

    digest = hashlib.sha256((folder / WEIGHTS).read_bytes()).hexdigest()
    (folder / CALIBRATION).write_text(json.dumps({"weights_sha256": digest}))


def change_tensors(folder: Path, **changes: torch.Tensor | None) -> None:
    tensors = load_file(folder / WEIGHTS)
    for name, tensor in changes.items():
        del tensors[name]
        if tensor is not None:
            tensors[name] = tensor
    save_file(tensors, folder / WEIGHTS)
    sign(folder)


def test_what_is_saved_is_what_is_loaded(tmp_path: Path) -> None:
    recipe = Recipe.model_validate(
        {"name": "x", "image": {"size": 16}, "network": {"channels": (64,), "attention": (False,), "head_channels": 64}}
    )
    torch.manual_seed(1)
    network = build_network(recipe)
    mean, deviation = torch.rand(1, 16, 16) * 2 - 1, torch.rand(1, 16, 16)
    save_model(tmp_path / "m", recipe, network.state_dict(), mean, deviation, "# a card")

    model = load_model(tmp_path / "m")
    assert model.recipe == recipe
    torch.testing.assert_close(model.mean, mean, rtol=0, atol=0)
    torch.testing.assert_close(model.standard_deviation, deviation, rtol=0, atol=0)
    for name, tensor in network.state_dict().items():
        torch.testing.assert_close(model.network.state_dict()[name], tensor.bfloat16().float(), rtol=0, atol=0)
    assert not model.network.training
    assert model.parameters == sum(p.numel() for p in network.parameters())
    assert model_card(tmp_path / "m") == "# a card"
    assert weight_megabytes(tmp_path / "m") == pytest.approx(model.parameters * 2 / 1e6, rel=0.1)
    assert sorted(path.name for path in (tmp_path / "m").iterdir()) == sorted([WEIGHTS, RECIPE, CALIBRATION, CARD])


def test_saving_again_replaces(folder: Path) -> None:
    before = load_model(folder)
    state = {name: tensor + 1 for name, tensor in before.network.state_dict().items()}
    save_model(folder, before.recipe, state, before.mean, before.standard_deviation, "# new")
    after = load_model(folder)
    assert after.sha256 != before.sha256
    assert model_card(folder) == "# new"


@pytest.mark.parametrize("file", [WEIGHTS, RECIPE, CALIBRATION])
def test_a_missing_file_is_named(folder: Path, file: str) -> None:
    (folder / file).unlink()
    with pytest.raises(ThoradError, match=file):
        load_model(folder)


def test_a_missing_card_does_not_keep_a_model_from_working(folder: Path) -> None:
    (folder / CARD).unlink()
    load_model(folder)
    with pytest.raises(ThoradError, match=CARD):
        model_card(folder)


def test_one_changed_byte_is_noticed(folder: Path) -> None:
    content = bytearray((folder / WEIGHTS).read_bytes())
    content[-1] ^= 1
    (folder / WEIGHTS).write_bytes(content)
    with pytest.raises(ThoradError, match=r"weights\.safetensors: the weights changed since"):
        load_model(folder)


def test_weights_of_another_network_are_refused(folder: Path) -> None:
    text = (folder / RECIPE).read_text().replace("channels = [\n    32,\n", "channels = [\n    64,\n")
    (folder / RECIPE).write_text(text)
    with pytest.raises(ThoradError, match=r"don't fit the recipe beside them in \d+ places: unet.*, expected"):
        load_model(folder)


def test_statistics_of_another_size_are_refused(folder: Path) -> None:
    change_tensors(folder, **{"statistics.mean": torch.zeros(1, 16, 16)})
    with pytest.raises(ThoradError, match=r"statistics\.mean is of shape \(1, 16, 16\), expected \(1, 32, 32\)"):
        load_model(folder)


def test_missing_statistics_are_refused(folder: Path) -> None:
    change_tensors(folder, **{"statistics.standard_deviation": None})
    with pytest.raises(ThoradError, match=r"statistics\.standard_deviation is missing"):
        load_model(folder)


def test_nan_weights_are_refused(folder: Path) -> None:
    name = "network.unet.conv_in.conv.bias"
    change_tensors(folder, **{name: torch.full((32,), float("nan"))})
    with pytest.raises(ThoradError, match="NaN"):
        load_model(folder)


@pytest.mark.parametrize("text", ["", "[]", "{}", "null", "no json"])
def test_a_damaged_calibration_is_refused(folder: Path, text: str) -> None:
    (folder / CALIBRATION).write_text(text)
    with pytest.raises(ThoradError, match=CALIBRATION):
        load_model(folder)


def test_weights_that_are_no_safetensors_are_refused(folder: Path) -> None:
    (folder / WEIGHTS).write_bytes(b"not a tensor in it")
    sign(folder)
    with pytest.raises(ThoradError, match="not a safetensors file"):
        load_model(folder)


def test_a_recipe_with_an_unknown_key_is_refused(folder: Path) -> None:
    (folder / RECIPE).write_text("colour = 3\n" + (folder / RECIPE).read_text())
    with pytest.raises(ThoradError, match="colour"):
        load_model(folder)


def test_an_unknown_model_is_told_with_the_known_ones() -> None:
    with pytest.raises(ThoradError, match="unknown model 'nothing-here'"):
        model_folder("nothing-here")


def test_the_default_model_is_bundled_and_all_are_small() -> None:
    assert DEFAULT_MODEL in bundled_models()
    assert sum(map(weight_megabytes, bundled_models())) < 40


@pytest.mark.parametrize("name", [name for name in bundled_models() if name.startswith("brain-t1")])
def test_bundled_models_know_their_training_images(name: str, shared_data: Path) -> None:
    model, known = load_model(name), []
    for split in ("train", "val"):
        files = sorted((shared_data / "ixi" / split).glob("*.png"))[::10]
        images = [to_model_input(read_picture(file).pixels, model.recipe.image.size)[0] for file in files]
        known.append([digest_of(image) in model.trained_on for image in images])
    assert len(model.trained_on) == 465
    assert all(known[0])
    assert not any(known[1])


@pytest.mark.parametrize("name", bundled_models())
def test_bundled_models_load(name: str) -> None:
    model = load_model(name)
    assert model.recipe.name == name
    assert model.region.any()
    assert "not a medical device" in model_card(name)


def test_regions() -> None:
    assert load_region("", 20).all()
    brain = load_region("mni-brain-k95", 128)
    assert brain.shape == (128, 128)
    assert 0.2 < brain.mean() < 0.6
    # The same place on every grid.
    assert np.abs(load_region("mni-brain-k95", 64).mean() - brain.mean()) < 0.01
    for name in ("knee", "../samples/head", "../regions/mni-brain-k95"):
        with pytest.raises(ThoradError, match=r"unknown region .*Known: mni-brain-k95"):
            load_region(name, 128)


def test_recipes_of_the_three_settings_build() -> None:
    """The paper's network has 18.5 million parameters, the compact one 4.6 (design of this package)."""
    paper = build_network(load_recipe("brain-t1"))
    assert sum(p.numel() for p in paper.parameters()) == pytest.approx(18.5e6, rel=0.005)
    compact = build_network(load_recipe("brain-t1-compact"))
    assert sum(p.numel() for p in compact.parameters()) == pytest.approx(4.64e6, rel=0.005)
