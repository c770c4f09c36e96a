from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from thorad.diffusion import NOISES
from thorad.diffusion.engine import fast_precision
from thorad.diffusion.network import Denoiser
from thorad.diffusion.noise import case_generator
from thorad.diffusion.schedule import Schedule
from thorad.io.images import read_image
from thorad.io.preprocess import to_model_input
from thorad.model import build_network
from thorad.recipe import load_recipe

CPU = torch.device("cpu")


def tiny(patch: int = 1, noise_kinds: int = 1) -> Denoiser:
    """The bundled recipes' network in small, with weights that do something: MONAI's last layer starts at zero.

    64 channels are the fewest: with 32, each is a group of MONAI's 32-group normalisation by itself, which takes away
    again what the timestep added.
    """
    network = Denoiser((64, 64, 64), (False, True, True), 1, 64, patch=patch, noise_kinds=noise_kinds)
    generator = torch.Generator().manual_seed(0)
    for weight in network.parameters():
        weight.data = 0.1 * torch.randn(weight.shape, generator=generator)
    return network.eval().requires_grad_(False)


def inputs(size: int = 16) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(2, 1, size, size, generator=generator), torch.tensor([3, 250]), torch.tensor([0, 1])


@pytest.mark.parametrize(
    ("recipe", "million_parameters", "gflop"),
    [
        # The paper's network: 18.5 M parameters, which the published checkpoints have, and 188 GFLOP at 128 x 128.
        ("brain-t1", 18.501, 188.25),
        # Half its channels on a quarter of its pixels, and two noise embeddings of 256: 19 times cheaper.
        ("brain-t1-compact", 4.638, 10.05),
        # The same network on a quarter of the pixels; attention is cheaper still.
        ("hand-xray64", 4.638, 2.19),
        ("brain-t1-gaussian", 4.638, 10.05),
        ("brain-t1-patched", 4.638, 10.05),
    ],
)
def test_bundled_recipes_in_full(recipe: str, million_parameters: float, gflop: float) -> None:
    """On torch's `meta` device, which knows shapes and costs but has no values."""
    settings = load_recipe(recipe)
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        network = build_network(settings)
        x_t = torch.zeros(1, 1, settings.image.size, settings.image.size)
        eps = network(x_t, torch.zeros(1, dtype=torch.long), torch.zeros(1, dtype=torch.long))
    assert (eps.shape, eps.dtype) == (x_t.shape, torch.float32)
    assert sum(weight.numel() for weight in network.parameters()) / 1e6 == pytest.approx(million_parameters, abs=1e-3)
    assert counter.get_total_flops() / 1e9 == pytest.approx(gflop, abs=0.01)


@pytest.mark.parametrize(("patch", "noise_kinds"), [(1, 1), (2, 2), (1, 2), (4, 1)])
def test_the_noise_has_the_images_shape(patch: int, noise_kinds: int) -> None:
    eps = tiny(patch, noise_kinds)(*inputs())
    assert (eps.shape, eps.dtype) == ((2, 1, 16, 16), torch.float32)
    assert eps.std() > 0.01


@pytest.mark.parametrize("patch", [1, 2, 4])
def test_folding_and_unfolding_undo_each_other(patch: int) -> None:
    class Identity(nn.Module):
        folded: torch.Size

        def forward(self, x: Tensor, t: Tensor, class_labels: Tensor | None) -> Tensor:
            self.folded = x.shape
            return x

    network = tiny(patch)
    network.unet = Identity()
    x_t, t, kind = inputs()
    assert torch.equal(network(x_t, t, kind), x_t)
    assert network.unet.folded == (2, patch**2, 16 // patch, 16 // patch)


def test_the_timestep_matters() -> None:
    network, (x_t, t, kind) = tiny(), inputs()
    assert (network(x_t, t, kind) - network(x_t, t.flip(0), kind)).abs().amax(dim=(1, 2, 3)).min() > 1e-3


def test_the_kind_of_noise_matters_where_the_network_knows_several() -> None:
    x_t, t, kind = inputs()
    told, not_told = tiny(noise_kinds=2), tiny(noise_kinds=1)
    assert (told(x_t, t, kind) - told(x_t, t, 1 - kind)).abs().amax(dim=(1, 2, 3)).min() > 1e-3
    assert torch.equal(not_told(x_t, t, kind), not_told(x_t, t, 1 - kind))
    assert not [name for name in not_told.state_dict() if "class_embedding" in name]


def test_an_images_noise_does_not_depend_on_its_batch() -> None:
    network, (x_t, t, kind) = tiny(2, 2), inputs()
    alone = torch.cat([network(x_t[i : i + 1], t[i : i + 1], kind[i : i + 1]) for i in range(2)])
    torch.testing.assert_close(network(x_t, t, kind), alone, atol=1e-5, rtol=0)


def test_the_output_is_float32_under_autocast() -> None:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert tiny(2)(*inputs()).dtype == torch.float32


def test_trained_weights_fit_and_know_their_noise(shared_data: Path) -> None:
    """Weights that another program trained (README beside them): class 0 Gaussian, class 1 simplex noise."""
    weights = shared_data.parent / "start" / "brain-t1-feasibility.safetensors"
    if not weights.is_file():
        pytest.skip(f"no trained weights at {weights}")
    recipe = load_recipe("brain-t1-compact")
    assert recipe.noise.kinds == ("gaussian", "simplex")
    network = build_network(recipe)
    network.load_state_dict({f"unet.{name}": tensor for name, tensor in load_file(weights).items()}, strict=True)
    network.eval().requires_grad_(False)

    x, _ = to_model_input(read_image(min((shared_data / "ixi" / "val").glob("*.png"))).pixels)
    image = 2 * x[None] - 1  # (1, 1, 128, 128) in [-1, 1]
    t = torch.tensor([200])
    for kind, name in enumerate(recipe.noise.kinds):
        noise = NOISES[name]([case_generator(kind, x)], 128, 128, CPU)
        x_t = Schedule().add_noise(image, noise, t)
        error = [float((network(x_t, t, torch.tensor([told])) - noise).square().mean()) for told in (0, 1)]
        # Folding in another order, or the classes exchanged, leaves the network blind.
        assert error[kind] < 0.1 * float(noise.square().mean())
        assert error[kind] < 0.5 * error[1 - kind]


@pytest.mark.parametrize(
    ("avx512_bf16", "amx", "expected"),
    [
        (False, False, torch.float32),
        (True, False, torch.bfloat16),
        (False, True, torch.bfloat16),
    ],
)
def test_fast_precision_of_a_processor(
    monkeypatch: pytest.MonkeyPatch, avx512_bf16: bool, amx: bool, expected: torch.dtype
) -> None:
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: avx512_bf16)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    assert fast_precision(CPU) == expected


@pytest.mark.parametrize(("supported", "expected"), [(False, torch.float32), (True, torch.bfloat16)])
def test_fast_precision_of_a_graphics_card(
    monkeypatch: pytest.MonkeyPatch, supported: bool, expected: torch.dtype
) -> None:
    """Emulated bfloat16 does not count: it's slower than float32."""
    monkeypatch.setattr(
        torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation or supported
    )
    assert fast_precision(torch.device("cuda")) == expected


def test_fast_precision_elsewhere_is_float32() -> None:
    assert fast_precision(torch.device("mps")) == torch.float32


def test_fast_precision_asks_functions_that_torch_has() -> None:
    """Two of them are torch's private ones; this is where a new torch without them shows."""
    assert fast_precision(CPU) in (torch.float32, torch.bfloat16)
