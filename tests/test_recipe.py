"""Recipes of strangers: whatever they ask for, one line says what is wrong before anything is allocated."""

import shutil
import time
from pathlib import Path

import pytest

from thorad.errors import ThoradError
from thorad.model import build_network, load_model
from thorad.recipe import CriticSection, Recipe, UNetSection, bundled_recipes, load_recipe

HOSTILE = {
    "[network]\nchannels = [65536, 65536, 65536]": "network.channels.0|less than or equal to 2048",
    "[network]\nchannels = [64, 64, 64, 64, 64, 64, 64, 64, 64, 64]": "at most 8 items",
    "[network]\nchannels = []\nattention = []": "at least 1 item",
    "[network]\nresidual_blocks = 100000": "residual_blocks",
    "[network]\npatch = 1048576": "patch",
    "[network]\nkind = []": r"unknown kind \[\]",
    "[network]\nkind = 'os:system'": "unknown kind 'os:system'",
    "network = 5": "found int, expected a section",
    "image = []": "image",
    "[image]\nsize = 1000000000": "image.size",
    "[image]\nsize = 4096\n[network]\nchannels = [2048]\nattention = [false]": "too large.*3.4e.10 numbers",
    "[image]\nsize = 2048\n[network]\nchannels = [64]\nattention = [true]\nhead_channels = 64": "2048 x 2048",
    "[noise]\ntimesteps = 1000000000\ntrain_below = 10": "noise.timesteps",
    "[volume]\naxial_slices = [0, 1000000000]": "axial_slices",
    "[training]\nseed = " + "9" * 5000: "not a TOML file",
    "name2 = " + "[" * 12000: "not a TOML file",
    ".".join("a" * 8000) + " = 1": "a: Extra",
    "\n".join(f"x{number} = 1" for number in range(1500)): "and 1495 more",
    "# " + "x" * 2**20: "more than 16384 characters",
}


@pytest.mark.parametrize("hostile", HOSTILE, ids=range(len(HOSTILE)))
def test_a_hostile_recipe_is_refused_at_once(tmp_path: Path, tiny_model: Path, hostile: str) -> None:
    folder = shutil.copytree(tiny_model, tmp_path / "model")
    text = 'name = "x"\n' + hostile
    for path in (folder / "recipe.toml", tmp_path / "a.toml"):
        path.write_text(text)
    for read in (lambda: load_model(folder), lambda: load_recipe(tmp_path / "a.toml")):
        began = time.process_time()
        with pytest.raises(ThoradError, match=HOSTILE[hostile]) as error:
            read()
        assert ".toml: " in str(error.value)
        assert len(str(error.value)) < 1000
        assert time.process_time() - began < 3  # of a core that other tests share


def test_what_would_take_gigabytes_is_never_allocated(tmp_path: Path, tiny_model: Path) -> None:
    """Within every bound, and 3.6 thousand million parameters together."""
    network = UNetSection(channels=(1024,) * 6, attention=(False,) * 6, residual_blocks=16)
    large = Recipe(name="large", network=network)
    began = time.process_time()
    with pytest.raises(ThoradError, match=r"recipe 'large' would have .*e\+09 parameters; expected 1e\+09 at most"):
        build_network(large)
    folder = shutil.copytree(tiny_model, tmp_path / "model")
    fits = network.model_copy(update={"residual_blocks": 1, "channels": (512,) * 6})
    (folder / "recipe.toml").write_text(large.model_copy(update={"network": fits}).to_toml())
    with pytest.raises(ThoradError, match="the weights don't fit the recipe beside them"):
        load_model(folder)
    assert time.process_time() - began < 2


def test_the_bundled_recipes_are_within_the_bounds() -> None:
    assert all(load_recipe(name).network.why_too_large(128) is None for name in bundled_recipes())


def test_a_critic_s_networks_are_fitted_for_longer_and_longer() -> None:
    assert CriticSection(networks=3, steps=100).steps_of_networks == (50, 75, 100)
    assert CriticSection(networks=3, steps=1).steps_of_networks == (1, 1, 1)
