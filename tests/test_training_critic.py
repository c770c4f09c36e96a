from __future__ import annotations

import hashlib
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from test_cli import thorad_command
from thorad.apps.train_critic import train_critic_of
from thorad.critic.critic import WARNING, Critic
from thorad.detector import Detector
from thorad.errors import ThoradError
from thorad.evaluation.metrics import average_precision
from thorad.io.images import write_png8
from thorad.model import CRITIC, copy_model, has_critic, load_model, model_folder, read_by_critics, save_model
from thorad.recipe import AugmentationSection, CriticSection, Recipe
from thorad.results.folder import read_folder
from thorad.results.methods_text import detection_text
from thorad.training.critic import SURROUNDINGS, WEIGHTS, make_examples
from thorad.training.fit_critic import MadeUp, how_good

SIDE = 32
SECTION = CriticSection(channels=(4, 8), networks=1, steps=4, batch_size=4, validate_every=4, warm_up=0)


def heads(count: int, seed: int = 0) -> Tensor:
    """(B, 1, S, S): a bright disc with some inner life."""
    generator = torch.Generator().manual_seed(seed)
    place = torch.arange(SIDE) - SIDE / 2
    disc = (place[:, None] ** 2 + place**2 < (SIDE / 2.5) ** 2).float()
    life = torch.nn.functional.interpolate(torch.rand(count, 1, 6, 6, generator=generator), size=SIDE, mode="bilinear")
    return disc * (0.5 + 0.3 * life)


def write_heads(folder: Path, count: int, seed: int) -> Path:
    folder.mkdir()
    for number, image in enumerate(heads(count, seed)):
        write_png8(folder / f"{seed}-{number}.png", image[0].numpy())
    return folder


def test_examples_keep_the_healthy_image_beside_the_anomalous_one() -> None:
    """As they are varied alike, they differ where an anomaly is marked, and hardly anywhere else."""
    region = torch.ones(SIDE, SIDE, dtype=torch.bool)
    options = AugmentationSection(rotation=5, shift=0.05, scale=0.05, warp=0.02, intensity=0.8)
    examples = make_examples(heads(64), region, options, torch.Generator().manual_seed(0))
    again = make_examples(heads(64), region, options, torch.Generator().manual_seed(0))
    assert all(torch.equal(one, other) for one, other in zip(examples, again, strict=True))
    difference = (examples.image - examples.healthy).abs()
    assert difference[examples.mask].mean() > 10 * difference[~examples.mask].mean()
    assert 0 <= examples.image.min() <= examples.image.max() <= 1


def test_a_pixel_of_a_small_anomaly_weighs_more() -> None:
    region = torch.ones(SIDE, SIDE, dtype=torch.bool)
    still = AugmentationSection(rotation=0, shift=0, scale=0, warp=0, flip=0, intensity=0)
    examples = make_examples(heads(256), region, still, torch.Generator().manual_seed(0))
    assert (examples.weight[~examples.mask] == 1).all()
    weights = [
        float(weight[mask].mean()) for weight, mask in zip(examples.weight, examples.mask, strict=True) if mask.any()
    ]
    sizes = [int(mask.sum()) for mask in examples.mask if mask.any()]
    assert np.corrcoef(np.log(sizes), np.log(weights))[0, 1] < -0.8
    assert WEIGHTS[0] <= examples.weight.min()
    assert examples.weight.max() <= WEIGHTS[1]


def test_other_surroundings_leave_the_region_as_it_is() -> None:
    region = torch.zeros(SIDE, SIDE, dtype=torch.bool)
    region[8:24, 8:24] = True
    still = AugmentationSection(rotation=0, shift=0, scale=0, warp=0, flip=0, intensity=0)
    examples = make_examples(torch.full((64, 1, SIDE, SIDE), 0.5), region, still, torch.Generator().manual_seed(0))
    inside, outside = examples.healthy[..., 16, 16], examples.healthy[..., 0, 0]
    ratio = outside / inside
    assert ratio.min() < 0.8  # above 1 the surroundings are what becomes 1, and the region darker
    assert ratio.max() > 1.5
    assert SURROUNDINGS[0] - 0.05 <= ratio.min() <= ratio.max() <= SURROUNDINGS[1] + 0.05


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Healthy pictures to train on, and others."""
    root = tmp_path_factory.mktemp("heads")
    return write_heads(root / "train", 8, seed=1), write_heads(root / "validation", 4, seed=2)


def test_a_critic_becomes_part_of_a_copy_of_the_model(
    tiny_model: Path, folders: tuple[Path, Path], tmp_path: Path
) -> None:
    """Twice the same, and then the method that nobody has to ask for."""
    made = [train_critic_of(tiny_model, SECTION, *folders, tmp_path / name, accelerator="cpu")[0] for name in "ab"]
    first, second = (load_model(folder).own_critic for folder in made)
    images = heads(2, seed=3)
    assert torch.equal(first(images).probability, second(images).probability)
    assert load_model(tiny_model).critic is None
    detector = Detector(made[0], device="cpu")
    assert (detector.method, detector.threshold, detector.network_calls) == ("critic-only", 0.5, 0)
    assert detector.provenance()["critic_sha256"] == first.sha256
    detection = detector.detect(images[0, 0].numpy())
    assert detection.mask is not None
    assert 0 <= detection.anomaly_map.min() <= detection.anomaly_map.max() <= 1
    restored = Detector(made[0], method="restorer", device="cpu").detect(images[0, 0].numpy())
    np.testing.assert_array_equal(restored.pseudo_healthy, detection.pseudo_healthy)
    assert Detector(made[0], noise="simplex", device="cpu").method == "thor"
    assert Detector(tiny_model, device="cpu").method == "thor"


def test_what_made_a_map_names_the_critic_not_the_model_alone(
    tiny_model: Path, folders: tuple[Path, Path], tmp_path: Path
) -> None:
    """Two copies of a model, each with a critic of its own."""
    scan = write_heads(tmp_path / "scans", 1, seed=7)
    told = []
    for name in "ab":
        section = SECTION.model_copy(update={"seed": ord(name)})
        folder, _ = train_critic_of(tiny_model, section, *folders, tmp_path / name, accelerator="cpu")
        out = tmp_path / f"results-{name}"
        result = thorad_command("detect", scan, "--model", folder, "-o", out, "--device", "cpu", "--report")
        assert result.exit_code == 0, result.output
        sha256 = load_model(folder).own_critic.sha256[:12]
        results = read_folder(out)
        assert f"model tiny, critic {sha256}" in results.subtitle
        said = f"(SHA-256 {sha256}; in the folder {name}; trained on 8 healthy images, 4 steps of 4; validated on 4 "
        assert said in detection_text(results).paragraph
        assert f"{sha256}; in the folder {name}; trained on" in (out / "report.html").read_text()
        assert repr(Detector(folder, device="cpu")).startswith(f"Detector('tiny, critic {sha256}', method='critic")
        assert f"critic      sha256 {sha256}" in thorad_command("models", folder).stdout
        told.append(sha256)
    assert told[0] != told[1]
    assert repr(Detector(folder, method="thor", device="cpu")).startswith("Detector('tiny', method='thor'")


def test_a_critic_learns_to_tell_what_is_not_healthy(
    tiny_model: Path, folders: tuple[Path, Path], tmp_path: Path
) -> None:
    loaded, known = load_model(tiny_model), 2 * heads(64, seed=4) - 1
    model, weights = tmp_path / "of-heads", loaded.network.state_dict()
    save_model(model, loaded.recipe, weights, known.mean(0), known.std(0), "# heads\n")
    still = AugmentationSection(rotation=0, shift=0, scale=0, warp=0)
    longer = SECTION.model_copy(
        update={"channels": (8, 16), "steps": 100, "batch_size": 16, "learning_rate": 1e-2, "augmentation": still}
    )
    folder, critic = train_critic_of(model, longer, *folders, accelerator="cpu")
    assert critic.facts["trained on"] == "8 healthy images, 100 steps of 16"
    said = r"\d+ % of their pixels found; average precision 0\.\d{3}, that of the z-score 0\.\d{3}"
    assert re.fullmatch(said, critic.facts["made-up anomalies"])
    region = torch.ones(SIDE, SIDE, dtype=torch.bool)
    examples = make_examples(heads(32, seed=2), region, longer.augmentation, torch.Generator().manual_seed(9))
    probability = load_model(folder).own_critic(examples.image).probability
    found = average_precision(probability.flatten().numpy(), examples.mask.flatten().numpy())
    assert found > 3 * float(examples.mask.float().mean())


def test_a_critic_that_sees_less_than_no_network_says_so() -> None:
    """Four pixels, two of them not healthy; the critic puts one of these first, or neither."""
    critic, masks = Critic([]), np.array([True, True, False, False])
    zscores = np.array([3, 1, 2, 0], np.float32)  # average precision (1 + 2 / 3) / 2
    better = how_good(critic, MadeUp(np.array([2.0, 1.0, -1.0, -2.0]), zscores, masks))
    assert better == {
        "made-up anomalies": "100 % of their pixels found; average precision 1.000, that of the z-score 0.833"
    }
    worse = how_good(critic, MadeUp(np.array([-2.0, 0.5, 1.0, 2.0]), zscores, masks))
    assert worse["made-up anomalies"].startswith("50 % of their pixels found; average precision 0.417")
    assert worse["warning"].startswith("it finds made-up anomalies no better than the z-score")
    blind = how_good(Critic([], offset=-9), MadeUp(np.array([2.0, 1.0, -1.0, -2.0]), zscores, masks))
    assert blind["warning"] == "it finds 0 % of the pixels of made-up anomalies: train it longer"


def test_a_critic_that_warns_of_itself_is_warned_of_in_every_run(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    copy_model(model_folder("brain-t1-compact"), tmp_path, without=CRITIC)
    model = load_model("brain-t1-compact")
    content = model.own_critic.to_bytes(
        {WARNING: "it finds less than the z-score"}, read_by_critics(*model.statistics, model.region)
    )
    (tmp_path / CRITIC).write_bytes(content)
    warnings = Detector(tmp_path, device="cpu").warnings
    assert [*warnings] == caplog.messages
    (warning,) = warnings
    assert warning == (
        f"the critic {hashlib.sha256(content).hexdigest()[:12]} of model 'brain-t1-compact', in the folder "
        f"{tmp_path.name}, is not to be relied on: it finds less than the z-score"
    )
    assert Detector(tmp_path, method="thor", device="cpu").warnings == ()
    assert Detector("brain-t1-compact", device="cpu").warnings == ()


def test_what_trains_a_critic_doesn_t_leave_another_one_where_it_stops(tmp_path: Path) -> None:
    copy_model(model_folder("brain-t1-compact"), tmp_path, without=CRITIC)
    assert has_critic("brain-t1-compact")
    assert not has_critic(tmp_path)
    assert Detector(tmp_path, device="cpu").method == "thor"


def test_what_a_critic_can_not_be_made_of(tiny_model: Path, folders: tuple[Path, Path], tmp_path: Path) -> None:
    deep = SECTION.model_copy(update={"channels": (2,) * 7})
    with pytest.raises(ThoradError, match=r"7 levels needs an image side that is a multiple of 64, found 32"):
        train_critic_of(tiny_model, deep, *folders, tmp_path / "deep")
    with pytest.raises(ThoradError, match=r"appear in both"):
        train_critic_of(tiny_model, SECTION, folders[0], folders[0], tmp_path / "same")
    with pytest.raises(ThoradError, match=r"comes with thorad.*--out"):
        train_critic_of("brain-t1-compact", SECTION, *folders)
    with pytest.raises(ThoradError, match=r"8 of 8 training images are not what model 'brain-t1-compact' judges"):
        train_critic_of("brain-t1-compact", SECTION, *folders, tmp_path / "of-another-kind")
    assert not (tmp_path / "of-another-kind").exists()
    with pytest.raises(ThoradError, match=r"'tiny' has no critic.*thorad train-critic"):
        Detector(tiny_model, method="critic-only", device="cpu")


def test_from_the_command_line(tiny_model: Path, folders: tuple[Path, Path], tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(Recipe(name="small", critic=SECTION).to_toml())
    train, validation = map(str, folders)
    given = ["--recipe", str(recipe), "--accelerator", "cpu", "-o", str(tmp_path / "model")]
    result = thorad_command("train-critic", str(tiny_model), "--train", train, "--validation", validation, *given)
    assert "trained on: 8 healthy images, 4 steps of 4" in result.stdout
    assert (tmp_path / "model" / "critic.safetensors").is_file()


def test_a_critic_that_takes_another_s_place_voids_its_calibration(
    tiny_model: Path, folders: tuple[Path, Path], tmp_path: Path
) -> None:
    recipe, model, verb = tmp_path / "recipe.toml", str(tmp_path / "model"), "train-critic"
    parts = ["--train", str(folders[0]), "--validation", str(folders[1]), "--recipe", str(recipe)]
    said = []
    for seed, given in ((0, [str(tiny_model), "-o", model]), (1, [model])):
        recipe.write_text(Recipe(name="small", critic=SECTION.model_copy(update={"seed": seed})).to_toml())
        if seed:  # what was trained with other settings must not pass for it
            refused = thorad_command(verb, *given, *parts, "--accelerator", "cpu")
            assert refused.exit_code == 2
            assert "holds a training with other settings" in " ".join(refused.output.split())
            shutil.rmtree(tmp_path / "model" / "critic-training")
        said.append(thorad_command(verb, *given, *parts, "--accelerator", "cpu").output)
        calibrated = thorad_command("calibrate", str(folders[1]), "--model", model, "--level", "0.2", "--device", "cpu")
        assert calibrated.exit_code == 0, calibrated.output
    assert "Calibrate anew" not in said[0]
    assert f"Calibrate anew: thorad calibrate HEALTHY --model {model}" in " ".join(said[1].split())


def test_a_useless_critic_doesn_t_take_a_better_one_s_place(
    tiny_model: Path, folders: tuple[Path, Path], tmp_path: Path
) -> None:
    """The better one is the same that doesn't warn of itself."""
    folder, critic = train_critic_of(tiny_model, SECTION, *folders, tmp_path / "model", accelerator="cpu")
    assert critic.warning
    model = load_model(folder)
    better = critic.to_bytes({}, read_by_critics(*model.statistics, model.region))
    (folder / CRITIC).write_bytes(better)
    with pytest.raises(ThoradError, match=r"not to be relied on \(it finds.*the one that was there stays"):
        train_critic_of(folder, SECTION, *folders, accelerator="cpu")
    assert (folder / CRITIC).read_bytes() == better
    assert (folder / "critic-training" / CRITIC).is_file()
