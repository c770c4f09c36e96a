from importlib.metadata import EntryPoint
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import thorad
from thorad.diffusion import ENGINES, NOISES
from thorad.errors import ThoradError
from thorad.methods import METHODS
from thorad.recipe import NETWORKS, NetworkSection, Recipe
from thorad.registry import Registry


@pytest.fixture
def registry() -> Registry[str]:
    return Registry("thorad.words", "word", str, {"yes": "thorad:__version__", "broken": "thorad:__all__"})


def test_own_entries_are_loaded_when_asked_for(registry: Registry[str]) -> None:
    assert list(registry) == ["yes", "broken"]
    assert len(registry) == 2
    assert registry["yes"] == thorad.__version__
    with pytest.raises(ThoradError, match=r"word 'broken' \(thorad:__all__\) is a list, expected a str\."):
        registry["broken"]
    with pytest.raises(ThoradError, match=r"unknown word 'no'\. Known: yes, broken"):
        registry["no"]


def test_registered_entries(registry: Registry[str]) -> None:
    registry.register("maybe", "perhaps")
    assert registry["maybe"] == "perhaps"
    assert list(registry)[-1] == "maybe"
    for taken in ("maybe", "yes"):
        with pytest.raises(ThoradError, match=f"word '{taken}' exists already"):
            registry.register(taken, "again")
    with pytest.raises(ThoradError, match="is a int, expected a str"):
        registry.register("number", 3)  # type: ignore[arg-type]
    for name in ("", "two words", "a,b", None):
        with pytest.raises(ThoradError, match="can't name a word"):
            registry.register(name, "x")  # type: ignore[arg-type]
    assert "number" not in registry


def test_installed_entries(registry: Registry[str], monkeypatch: pytest.MonkeyPatch) -> None:
    installed = [
        EntryPoint("theirs", "thorad:__version__", "thorad.words"),
        EntryPoint("absent", "no_such_module:x", "thorad.words"),
    ]
    monkeypatch.setattr("thorad.registry.entry_points", lambda group: installed if group == "thorad.words" else [])
    assert list(registry) == ["yes", "broken", "theirs", "absent"]
    assert registry["theirs"] == thorad.__version__
    with pytest.raises(ThoradError, match=r"word 'absent' of an installed package can't be loaded \(ModuleNotF"):
        registry["absent"]


@pytest.mark.parametrize("registry", [METHODS, NOISES, NETWORKS, ENGINES], ids=lambda registry: registry.group)
def test_every_own_entry_loads(registry: Registry[Any]) -> None:
    for name in registry:
        assert registry[name] is not None
    assert registry.group.startswith("thorad.")


def test_every_method_says_all_of_itself() -> None:
    for name, method in METHODS.items():
        assert method.name == name
        assert method.title
        assert method.blurb == method.blurb.strip()
        assert "\n" not in method.blurb
        assert set(method.default_steps) <= set(method.noises) <= set(NOISES)
        assert method.step_maximum > 0


def test_what_is_registered_must_be_of_its_kind() -> None:
    for wrong in (None, len, thorad.Method):
        with pytest.raises(ThoradError, match="expected a Method"):
            thorad.register_method(wrong)  # type: ignore[arg-type]
    for section in (None, nn.Module, NetworkSection):
        with pytest.raises(ThoradError, match="network"):
            thorad.register_network(section)  # type: ignore[arg-type]
    with pytest.raises(ThoradError, match="expected something to call"):
        thorad.register_noise("pink", 3)  # type: ignore[arg-type]
    assert "pink" not in NOISES


class _Tiny(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(1, width, 3, padding=1), nn.SiLU(), nn.Conv2d(width, 1, 3, padding=1))

    def forward(self, x_t: Tensor, t: Tensor, kind: Tensor) -> Tensor:
        predicted: Tensor = self.layers(x_t)
        return predicted.float()


class _TinySection(NetworkSection):
    kind: str = "tiny-of-the-tests"
    width: int = 4

    @property
    def multiple(self) -> int:
        return 2

    def build(self, noise_kinds: int) -> nn.Module:
        return _Tiny(self.width)


def test_a_network_of_ones_own_has_a_section_in_the_recipe(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(NETWORKS, "_loaded", dict(NETWORKS._loaded))
    thorad.register_network(_TinySection)
    recipe = Recipe.model_validate(
        {"name": "t", "image": {"size": 30}, "network": {"kind": "tiny-of-the-tests", "width": 8}}
    )
    assert recipe.network == _TinySection(width=8)
    assert recipe.network.build(1)(torch.zeros(1, 1, 30, 30), torch.zeros(1), torch.zeros(1)).shape == (1, 1, 30, 30)
    written = recipe.to_toml()
    assert 'kind = "tiny-of-the-tests"' in written
    from thorad.recipe import parse_recipe

    assert parse_recipe(written, "written") == recipe
    for network, message in (
        ({"kind": "steam"}, "unknown kind 'steam'. Known: unet, tiny-of-the-tests"),
        ({"kind": "tiny-of-the-tests", "depth": 3}, "network: .*depth: Extra inputs are not permitted"),
        ({"channels": [32, 48]}, "network: .*channels"),
    ):
        with pytest.raises(ThoradError, match=message):
            parse_recipe(Recipe(name="u").model_copy().to_toml().split("[network]")[0] + toml(network), "given")
    with pytest.raises(ValueError, match=r"image\.size 31 must be a multiple of 2"):
        Recipe.model_validate({"name": "t", "image": {"size": 31}, "network": {"kind": "tiny-of-the-tests"}})


def toml(network: dict[str, object]) -> str:
    import tomli_w

    return tomli_w.dumps({"network": network})
