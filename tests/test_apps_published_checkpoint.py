"""Checkpoints of the published implementation: imported, and run with its own noise against its own outputs."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from monai.networks.nets import DiffusionModelUNet
from numpy.typing import NDArray
from safetensors.torch import load_file
from torch import Tensor
from typer.testing import CliRunner

from thorad.apps.published_checkpoint import import_checkpoint, monai_name, perceptual_name
from thorad.cli import app
from thorad.errors import ThoradError
from thorad.maps.anomaly_map import residual
from thorad.maps.perceptual import load_perceptual_distance
from thorad.methods.contract import Restoration, Step
from thorad.methods.published import (
    PublishedDdpmOptions,
    PublishedMap,
    PublishedThorOptions,
    published_ddpm,
    published_thor,
)
from thorad.model import CALIBRATION, PERCEPTUAL, WEIGHTS, Model, load_model

Change = Callable[[dict[str, Any]], object]


def thorad_command(*arguments: object) -> Any:
    return CliRunner().invoke(app, [str(argument) for argument in arguments], catch_exceptions=False)


# ---- the published implementation's own outputs

GOLDEN = Path(__file__).resolve().parents[1] / ".." / "shared" / "golden" / "published"


@pytest.fixture(scope="module")
def golden() -> Path:
    if not GOLDEN.is_dir():
        pytest.skip(f"no outputs of the published implementation at {GOLDEN}: this test compares with them")
    return GOLDEN.resolve()


@pytest.fixture(scope="module")
def golden_model(golden: Path, tmp_path_factory: pytest.TempPathFactory) -> Model:
    """Its small network, through the command."""
    folder = tmp_path_factory.mktemp("published") / "model"
    result = thorad_command("models", "import", golden / "latest_model.pt", folder, "--head-channels", 32)
    assert result.exit_code == 0, result.output
    assert result.stdout.count("proj_attn") == 8
    return load_model(folder)


def test_the_golden_network_is_recognised(golden_model: Model) -> None:
    network = golden_model.recipe.network
    assert (network.channels, network.attention) == ((32, 64, 64), (False, False, True))
    assert (network.residual_blocks, network.head_channels) == (1, 32)
    assert golden_model.recipe.image.input_range == "-1..1"
    assert golden_model.perceptual_weights is not None


@pytest.mark.parametrize(
    ("file", "image"),
    [("gaussian_thor", 0), ("gaussian_thor", 1), ("simplex_thor", 0), ("gaussian_ddpm", 0), ("simplex_ddpm", 0)],
)
@torch.inference_mode()
def test_the_published_outputs_are_met(golden: Path, golden_model: Model, file: str, image: int) -> None:
    """Every number it gives, to 1e-4 or better: with its weights, its noise and its options (its README)."""
    with np.load(golden / f"{file}.npz") as arrays:
        kept = {key.removeprefix(f"{image}_"): arrays[key] for key in arrays.files if key.startswith(f"{image}_")}
    noises = iter(torch.from_numpy(kept["noise"]))
    visited: dict[int, tuple[Tensor, Tensor]] = {}
    steps: list[Step] = []

    def denoise(x_t: Tensor, t: int) -> Tensor:
        eps: Tensor = golden_model.network(x_t, torch.tensor([t]), torch.zeros(1, dtype=torch.long))
        visited[t] = (x_t, eps)
        return eps

    def noise() -> Tensor:
        return next(noises)[None]

    x, schedule = torch.from_numpy(kept["input"]) * 2 - 1, golden_model.schedule
    restored: Restoration
    if file.endswith("thor"):
        compare = PublishedMap(load_perceptual_distance(golden_model.perceptual_weights))
        options = PublishedThorOptions(noise_level=60, harmonise_at=(40, 20))
        restored = published_thor(denoise, x, schedule, noise, compare, options=options, on_step=steps.append)
    else:
        restored = published_ddpm(denoise, x, schedule, noise, residual, options=PublishedDdpmOptions(60))

    def check(found: Tensor, expected: NDArray[np.float32], tolerance: float) -> None:
        np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance)

    assert next(noises, None) is None  # every noise was drawn
    assert len(visited) == 61
    for i, t in enumerate(kept["visited_t"]):
        check(visited[t][0], kept["x_t"][i : i + 1], 1e-5)
        check(visited[t][1], kept["unet_out"][i : i + 1], 1e-4)
    check(restored.anomaly_map, kept["anomaly_map"], 2e-5)
    check((restored.pseudo_healthy + 1) / 2, kept["pseudo_healthy"], 1e-5)
    check(restored.anomaly_map.mean((1, 2, 3)), kept["score"].reshape(1), 1e-6)
    if steps:
        with_map = [step for step in steps if step.anomaly_map is not None]
        assert [step.t for step in with_map] == [50, 40, 20, 0]
        for step, expected in zip(with_map, kept["step_maps"][:-1], strict=True):
            assert step.anomaly_map is not None
            check(step.anomaly_map, expected[None], 2e-5)


# ---- a small checkpoint, made here


def published_name(name: str) -> str:
    """MONAI's name as MONAI Generative had it."""
    return name.replace(".attn.", ".").replace("postconv", "conv")


@pytest.fixture(scope="module")
def network() -> DiffusionModelUNet:
    """MONAI's own U-Net without the attention's last layer, which is what the published one computes."""
    torch.manual_seed(0)
    unet = DiffusionModelUNet(
        spatial_dims=2,
        in_channels=1,
        out_channels=1,
        channels=(32, 64),
        attention_levels=(False, True),
        num_res_blocks=2,
        num_head_channels=32,
        include_fc=False,
    )
    for parameter in unet.parameters():  # some start at zero
        torch.nn.init.normal_(parameter, std=0.1)
    return unet.eval()


@pytest.fixture
def checkpoint(network: DiffusionModelUNet) -> dict[str, Any]:
    weights = {f"unet.{published_name(name)}": tensor.clone() for name, tensor in network.state_dict().items()}
    for name in [name for name in weights if ".to_q." in name]:
        weights[name.replace("to_q", "proj_attn")] = torch.randn_like(weights[name])
    return {"model_weights": weights, "optimizer_weights": {}, "epoch": 12}


def with_perceptual(checkpoint: dict[str, Any]) -> dict[str, Any]:
    """Add LPIPS weights in the published layout: torchvision's layers in seven slices, the heads twice."""
    ends = (1, 4, 7, 9, 10, 11, 12)
    for name, tensor in load_perceptual_distance().weights().items():
        part, number, rest = name.split(".", 2)
        if part == "heads":
            for where in ("lin", "lins."):
                checkpoint["model_weights"][f"l_pips_sq.{where}{number}.model.1.weight"] = tensor + 1
        else:
            place = next(i for i, end in enumerate(ends, start=1) if int(number) <= end)
            checkpoint["model_weights"][f"l_pips_sq.net.slice{place}.{number}.{rest}"] = tensor + 1
    checkpoint["model_weights"]["l_pips_sq.scaling_layer.shift"] = torch.zeros(1, 3, 1, 1)
    return checkpoint


def imported(content: object, folder: Path, **options: Any) -> Any:
    torch.save(content, folder / "latest_model.pt")
    return import_checkpoint(folder / "latest_model.pt", folder / "out", name="x", noise="gaussian", **options)


@torch.inference_mode()
def test_an_imported_network_computes_what_it_did(
    network: DiffusionModelUNet, checkpoint: dict[str, Any], tmp_path: Path
) -> None:
    report = imported(checkpoint, tmp_path, size=32)
    model = load_model(tmp_path / "out")
    assert model.recipe == report.recipe
    assert (model.recipe.network.channels, model.recipe.network.attention) == ((32, 64), (False, True))
    assert (model.recipe.network.residual_blocks, model.recipe.network.head_channels) == (2, 32)
    assert report.head_channels_assumed
    assert report.parameters == sum(parameter.numel() for parameter in network.parameters())
    assert sorted(report.dropped) == sorted(name for name in checkpoint["model_weights"] if "proj_attn" in name)
    assert len(report.dropped) == 2 * 6  # two attentions on the way down, one below, three on the way up
    assert not report.perceptual
    assert model.perceptual_weights is None
    x_t = torch.randn(2, 1, 32, 32, generator=torch.Generator().manual_seed(1))
    t = torch.tensor([3, 700])
    found = model.network(x_t, t, torch.zeros(2, dtype=torch.long))
    torch.testing.assert_close(found, network(x_t, t), rtol=1e-4, atol=1e-4)
    kept = load_file(tmp_path / "out" / WEIGHTS)
    original = checkpoint["model_weights"]["unet.conv_in.conv.weight"]
    assert torch.equal(kept["network.unet.conv_in.conv.weight"], original)  # to the last bit, not bfloat16


def test_what_a_checkpoint_does_not_say_is_recorded_as_told(checkpoint: dict[str, Any], tmp_path: Path) -> None:
    report = imported(checkpoint, tmp_path, size=64, input_range="0..1", head_channels=64, region="mni-brain-k95")
    recipe = load_model(tmp_path / "out").recipe
    assert recipe.image.model_dump() == {"size": 64, "region": "mni-brain-k95", "input_range": "0..1"}
    assert recipe.network.head_channels == 64
    assert not report.head_channels_assumed
    assert recipe.noise.kinds == ("gaussian",)
    assert "12 epochs" in recipe.description


def test_a_model_without_statistics_says_so(checkpoint: dict[str, Any], tmp_path: Path) -> None:
    imported(checkpoint, tmp_path, size=32)
    model = load_model(tmp_path / "out")
    with pytest.raises(ThoradError, match=r"model 'x' has no statistics .*z-score"):
        _ = model.statistics


def test_its_own_perceptual_weights_are_kept(checkpoint: dict[str, Any], tmp_path: Path) -> None:
    report = imported(with_perceptual(checkpoint), tmp_path, size=32)
    assert report.perceptual
    lpips = {name for name in report.dropped if name.startswith("l_pips_sq")}
    assert lpips == {"l_pips_sq.scaling_layer.shift", *(f"l_pips_sq.lins.{i}.model.1.weight" for i in range(7))}
    path = load_model(tmp_path / "out").perceptual_weights
    assert path == tmp_path / "out" / PERCEPTUAL
    found, bundled = load_perceptual_distance(path).weights(), load_perceptual_distance().weights()
    for name, tensor in bundled.items():
        assert torch.equal(found[name], tensor + 1), name


def test_changed_perceptual_weights_are_noticed(checkpoint: dict[str, Any], tmp_path: Path) -> None:
    imported(with_perceptual(checkpoint), tmp_path, size=32)
    assert "perceptual_sha256" in json.loads((tmp_path / "out" / CALIBRATION).read_text())
    path = tmp_path / "out" / PERCEPTUAL
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(ThoradError, match=r"perceptual\.safetensors: the LPIPS weights changed"):
        load_model(tmp_path / "out")
    path.unlink()
    with pytest.raises(ThoradError, match=r"perceptual\.safetensors: can't be read"):
        load_model(tmp_path / "out")


def test_names() -> None:
    assert monai_name("middle_block.attention.to_q.bias") == "middle_block.attention.attn.to_q.bias"
    assert monai_name("up_blocks.0.upsampler.conv.conv.bias") == "up_blocks.0.upsampler.postconv.conv.bias"
    assert monai_name("out.2.conv.weight") == "out.2.conv.weight"
    assert perceptual_name("l_pips_sq.net.slice5.10.squeeze.bias") == "features.10.squeeze.bias"
    assert perceptual_name("l_pips_sq.lin6.model.1.weight") == "heads.6.weight"
    assert perceptual_name("l_pips_sq.lins.6.model.1.weight") is None
    assert perceptual_name("unet.out.2.conv.weight") is None


# ---- the command


def test_the_command(checkpoint: dict[str, Any], tmp_path: Path) -> None:
    torch.save(checkpoint, tmp_path / "latest_model.pt")
    folder = tmp_path / "wrist"
    result = thorad_command(
        "models", "import", tmp_path / "latest_model.pt", folder, "--noise", "simplex", "--size", 32
    )
    assert result.exit_code == 0, result.output
    for text in (
        "channels (32, 64), simplex noise",
        "proj_attn",
        "Assumed attention heads of 32 channels",
        str(folder),
    ):
        assert text in result.stdout
    shown = thorad_command("models", folder)
    assert shown.exit_code == 0
    assert "wrist: Imported from latest_model.pt" in shown.stdout
    assert "not a medical device" in shown.stdout


def test_help_shows_the_command() -> None:
    text = thorad_command("models", "--help").stdout
    assert "import" in text
    assert "show" in text


def test_the_command_refuses_in_one_line(tmp_path: Path) -> None:
    result = thorad_command("models", "import", tmp_path / "none.pt", tmp_path / "out")
    assert result.exit_code == 2
    assert "none.pt: can't be read" in result.stderr
    assert not (tmp_path / "out").exists()


# ---- what can't be imported


class Code:
    def __reduce__(self) -> tuple[Any, ...]:
        return print, ("this ran",)


def test_code_is_never_run(checkpoint: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ThoradError, match=r"latest_model\.pt: holds Python objects .* thorad never does"):
        imported(checkpoint | {"optimizer_weights": Code()}, tmp_path)
    assert "this ran" not in capsys.readouterr().out
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("content", [b"", b"no checkpoint at all", b"PK\x03\x04 cut off", b"\x80\x02"])
def test_what_torch_cannot_read_is_refused(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "latest_model.pt"
    path.write_bytes(content)
    with pytest.raises(ThoradError, match="not a checkpoint that torch can read"):
        import_checkpoint(path, tmp_path / "out", name="x", noise="gaussian")


def test_a_folder_is_no_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(ThoradError, match="can't be read"):
        import_checkpoint(tmp_path, tmp_path / "out", name="x", noise="gaussian")


def test_a_cut_off_checkpoint_is_refused(checkpoint: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "latest_model.pt"
    torch.save(checkpoint, path)
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(ThoradError, match="or damaged"):
        import_checkpoint(path, tmp_path / "out", name="x", noise="gaussian")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"state_dict": {}, "epoch": 3}, r"no model_weights in this file, found the keys state_dict, epoch"),
        ({"model_weights": {}}, "no model_weights"),
        ({"model_weights": {"unet.x": 3}}, r"holds 'unet\.x', which isn't a tensor"),
        ({"model_weights": {"encoder.x": torch.zeros(1)}}, "found 0 tensors under unet"),
        (torch.zeros(3), "found Tensor"),
        ([1, 2], "found list"),
    ],
)
def test_other_layouts_are_refused(content: object, message: str, tmp_path: Path) -> None:
    with pytest.raises(ThoradError, match=message):
        imported(content, tmp_path)


def without(name: str) -> Change:
    return lambda weights: weights.pop(name)


def put(name: str, *shape: int, value: float = 0.0) -> Change:
    return lambda weights: weights.update({name: torch.full(shape, value)})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without("unet.conv_in.conv.bias"), r"1 places: unet\.conv_in\.conv\.bias is missing, expected \(32,\)"),
        (put("unet.conv_in.conv.weight", 32, 3, 3, 3), r"is \(32, 3, 3, 3\), expected \(32, 1, 3, 3\)"),
        (put("unet.class_embedding.weight", 2, 128), r"unet\.class_embedding\.weight has no place"),
        (put("unet.out.2.conv.bias", 1, value=float("nan")), r"unet\.out\.2\.conv\.bias holds NaN"),
        (without("unet.down_blocks.1.resnets.1.conv1.conv.weight"), "same number of residual blocks"),
        (put("unet.down_blocks.0.resnets.0.conv1.conv.weight", 40, 32, 3, 3), r"channels \(40, 64\).*multiples of 32"),
        (put("l_pips_sq.lin0.model.1.weight", 1, 64, 1, 1), r"features\.0\.weight is missing"),
    ],
)
def test_other_networks_are_refused(change: Change, message: str, checkpoint: dict[str, Any], tmp_path: Path) -> None:
    changed = copy.copy(checkpoint)
    change(changed["model_weights"])
    with pytest.raises(ThoradError, match=message):
        imported(changed, tmp_path, size=32)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "message"), [({"size": 33}, "multiple of 2"), ({"head_channels": 48}, "48 must divide")]
)
def test_options_that_do_not_fit_are_refused(
    options: dict[str, int], message: str, checkpoint: dict[str, Any], tmp_path: Path
) -> None:
    with pytest.raises(ThoradError, match=message):
        imported(checkpoint, tmp_path, **{"size": 32, **options})


def test_no_folder_in_use_is_written_over(checkpoint: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "notes.txt").write_text("mine")
    with pytest.raises(ThoradError, match="out: exists already"):
        imported(checkpoint, tmp_path)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["notes.txt"]
