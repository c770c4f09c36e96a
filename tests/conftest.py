"""Fixtures that several test modules share."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

SHARED_DATA = Path(__file__).resolve().parents[1] / ".." / "shared" / "data"


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The development data (docs/data.md says what they are), which are not part of the project."""
    if not SHARED_DATA.is_dir():
        pytest.skip(f"no development data at {SHARED_DATA}: this test compares with real images")
    return SHARED_DATA.resolve()


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder of a random network of 32 x 32 px that knows both kinds of noise: fast, and as good as none."""
    import torch

    from thorad.model import build_network, save_model
    from thorad.recipe import Recipe

    recipe = Recipe.model_validate(
        {
            "name": "tiny",
            "image": {"size": 32},
            "network": {"channels": (32, 64), "attention": (False, True), "head_channels": 32},
            "noise": {"kinds": ("gaussian", "simplex"), "share": (0.5, 0.5), "loss_weight": (1.0, 1.0)},
        }
    )
    generator = torch.Generator().manual_seed(0)
    weights = {
        name: 0.1 * torch.randn(tensor.shape, generator=generator)
        for name, tensor in build_network(recipe).state_dict().items()
    }
    mean = torch.rand(1, 32, 32, generator=generator) * 2 - 1
    folder = tmp_path_factory.mktemp("models") / "tiny"
    save_model(folder, recipe, weights, mean, torch.full((1, 32, 32), 0.2), "# tiny\n\nRandom weights, for tests.\n")
    return folder


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    """A headless Chromium, the machine's own, that draws WebGL without a graphics card."""
    playwright = pytest.importorskip("playwright.sync_api", reason="no browser test without the package playwright")
    path = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if path is None:
        pytest.skip("no browser test without Chromium on this machine (Debian's package chromium)")
    options = ["--no-sandbox", "--use-angle=swiftshader", "--enable-unsafe-swiftshader"]
    with playwright.sync_playwright() as running:
        browser = running.chromium.launch(executable_path=path, args=options)
        yield browser
        browser.close()
