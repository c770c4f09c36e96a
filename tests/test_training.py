"""Training: what is learnt, that a kill costs nothing, several processes, and errors that say what to do."""

import csv
import math
import os
import re
import signal
import subprocess
import sys
import time
import types
import xml.etree.ElementTree
from pathlib import Path
from typing import Any, cast

import lightning
import monai
import numpy as np
import PIL.Image
import pytest
import torch
from lightning.pytorch.loggers import Logger
from safetensors.torch import load_file

from thorad.apps.calibrate import calibrate_files, save_calibration
from thorad.datasets.cases import Case
from thorad.detector import Detector
from thorad.errors import Interrupted, ThoradError
from thorad.evaluation.evaluate import evaluate
from thorad.io.scans import find_scans
from thorad.model import load_model
from thorad.recipe import AugmentationSection, Recipe, bundled_recipes, load_recipe, parse_recipe
from thorad.results.training_page import write_training_page
from thorad.training import progress
from thorad.training.augmentation import augment
from thorad.training.average_precision import average_precision
from thorad.training.data import images_of_batch
from thorad.training.fit import fit
from thorad.training.loop import average_weights
from thorad.training.module import DiffusionTraining, learning_rate_factor


def tiny_recipe(**training: object) -> Recipe:
    return Recipe.model_validate(
        {
            "name": "tiny",
            "image": {"size": 16},
            "network": {"channels": (32, 64), "attention": (False, True), "head_channels": 32},
            "noise": {"kinds": ("gaussian", "simplex"), "share": (0.5, 0.5), "loss_weight": (1.0, 3.0)},
            "augmentation": {"warp": 0.01, "intensity": 0.5},
            "training": {
                **{"steps": 6, "batch_size": 2, "learning_rate": 1e-3, "warm_up": 2, "schedule": "cosine"},
                **{"validate_every": 3, "checkpoint_minutes": 1e-6, "precision": "32-true"},
                **training,
            },
        }
    )


@pytest.fixture
def healthy(tmp_path: Path, rng: np.random.Generator) -> tuple[Path, Path]:
    """Folders of a few smooth pictures, for training and validation."""
    return write_healthy(tmp_path, rng)


def write_healthy(folder: Path, rng: np.random.Generator) -> tuple[Path, Path]:
    folders = (folder / "train", folder / "validation")
    for folder, first in zip(folders, (0, 100), strict=True):
        folder.mkdir()
        for i in range(first, first + 5):
            rows, columns = np.mgrid[:20, :24]
            picture = 120 + 60 * np.sin(rows / 4 + rng.normal()) + 40 * np.cos(columns / 5) + rng.normal(0, 3, (20, 24))
            PIL.Image.fromarray(picture.astype(np.uint8)).save(folder / f"sub-{i:03d}.png")
    return folders


def patched_recipe(**training: object) -> Recipe:
    """As brain-t1-patched: cells of 8 px, the clean image predicted, simplex noise alone of two kinds."""
    text = tiny_recipe(**training).model_dump()
    noise = {"share": (0.0, 1.0), "loss_weight": (1.0, 1.0), "train_below": 501, "prediction": "clean"}
    text["noise"].update(noise, patch_noise=8)
    return Recipe.model_validate(text)


def read_card(model: Path) -> str:
    return (model / "MODEL_CARD.md").read_text()


def weights(model: Path) -> dict[str, torch.Tensor]:
    return load_file(model / "weights.safetensors")


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no such names")
def test_the_page_is_written_into_a_folder_of_any_name(tmp_path: Path) -> None:
    out = tmp_path / os.fsdecode(b"tr\xe4ining")
    about = {"state": "done", "every": 1, "images_per_step": 1, "measured_on": "", "keeps_best": False}
    write_training_page(out, points={"training/loss": [(1, 1.0)]}, facts={}, settings="", labels=[], **about)
    assert "tr?ining" in (out / "training.html").read_text()


def test_training_leaves_a_model_pictures_and_logs(healthy: tuple[Path, Path], tmp_path: Path) -> None:
    model = fit(
        tiny_recipe(), healthy[0], tmp_path / "out", validation=healthy[1], accelerator="cpu", progress_bar=False
    )
    loaded = load_model(model)
    assert loaded.recipe == tiny_recipe()
    assert loaded.mean.shape == (1, 16, 16)
    assert sorted(p.name for p in (tmp_path / "out" / "pictures").iterdir()) == [
        "step-0000003.png",
        "step-0000006.png",
    ]
    with PIL.Image.open(tmp_path / "out" / "pictures" / "step-0000006.png") as picture:
        assert picture.size == (5 * 16, 5 * 16)  # five images; image, and noised and clean for two noises
    rows = list(csv.DictReader((tmp_path / "out" / "logs" / "from-step-0" / "metrics.csv").read_text().splitlines()))
    assert any(row.get("validation/loss") for row in rows)
    page = (tmp_path / "out" / "training.html").read_text()
    assert "step 6 of 6, done" in page
    assert [f"<li>{label}</li>" in page for label in ("healthy image", "simplex noise, timestep 500")] == [True, True]
    assert page.count("data:image/png;base64,") == 2
    assert "5 to train on, 5 to validate on" in page
    curve = xml.etree.ElementTree.parse(tmp_path / "out" / "curve.svg").getroot()
    lines = curve.findall("{http://www.w3.org/2000/svg}polyline")
    precision = xml.etree.ElementTree.parse(tmp_path / "out" / "average_precision.svg").getroot()
    assert len(precision.findall("{http://www.w3.org/2000/svg}polyline")) == 1
    assert "the model gets the weights of the last step" in page
    assert re.search(
        r"\| weights \| of step 6: average precision 0\.\d{3} on made-up anomalies \|", card := read_card(model)
    )
    assert "Research use only" in card
    assert len(lines) == 4, "training, validation, and that of each kind of noise"
    assert [len(line.attrib["points"].split()) for line in lines] == [6, 2, 2, 2]
    assert list((tmp_path / "out" / "logs" / "from-step-0").glob("events.out.tfevents.*"))
    with pytest.raises(ThoradError, match="16 px, but 'thor' needs LPIPS"):
        Detector(model, device="cpu")


def test_the_statistics_are_those_of_the_training_images(healthy: tuple[Path, Path], tmp_path: Path) -> None:
    from thorad.io.images import read_image
    from thorad.io.preprocess import to_model_input

    model = load_model(fit(tiny_recipe(steps=1), healthy[0], tmp_path / "out", accelerator="cpu", progress_bar=False))
    stack = np.stack([to_model_input(read_image(p).pixels, 16)[0].numpy() for p in sorted(healthy[0].iterdir())])
    np.testing.assert_allclose(model.mean, (2 * stack - 1).mean(0), atol=1e-6)
    np.testing.assert_allclose(model.standard_deviation, (2 * stack - 1).std(0), atol=1e-6)


def test_no_more_than_some_images_are_validated_on(
    healthy: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first ones: the loss is that of a folder of them alone."""
    losses = {}
    for limit in (3, 5):
        monkeypatch.setattr("thorad.training.data.MOST_VALIDATED", limit)
        out = tmp_path / str(limit)
        fit(tiny_recipe(), healthy[0], out, validation=healthy[1], accelerator="cpu", progress_bar=False)
        assert f"(validated on {limit})" in (out / "model" / "MODEL_CARD.md").read_text()
        losses[limit] = (out / "logs" / "from-step-0" / "metrics.csv").read_text()
    for late in sorted(healthy[1].iterdir())[3:]:
        late.unlink()
    fit(tiny_recipe(), healthy[0], tmp_path / "few", validation=healthy[1], accelerator="cpu", progress_bar=False)
    assert losses[3] == (tmp_path / "few" / "logs" / "from-step-0" / "metrics.csv").read_text()
    assert losses[3] != losses[5]


def test_losses_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    """A network that predicts no noise at all: the loss is the noise's power, three times as much for simplex."""
    module = DiffusionTraining(tiny_recipe())
    eps = torch.tensor([1.0, 2.0, 3.0, 4.0]).reshape(4, 1, 1, 1).expand(4, 1, 16, 16)
    seen = []

    def predict_nothing(x_t: torch.Tensor, t: torch.Tensor, kind: torch.Tensor) -> torch.Tensor:
        seen.append((x_t, t, kind))
        return torch.zeros_like(x_t)

    monkeypatch.setattr(module, "_noise_of", lambda kinds, x, generator: eps)
    monkeypatch.setattr(module.network, "forward", predict_nothing)
    t, kind = torch.tensor([0, 9, 99, 999]), torch.tensor([0, 1, 1, 0])
    loss, of_kind = module._losses(torch.zeros(4, 1, 16, 16), t, kind, torch.Generator())
    assert loss.item() == pytest.approx((1 * 1 + 3 * 4 + 3 * 9 + 1 * 16) / 4)
    assert {name: value.item() for name, value in of_kind.items()} == pytest.approx({"gaussian": 8.5, "simplex": 6.5})
    x_t, at, of = seen[0]
    assert at.tolist() == t.tolist()
    assert of.tolist() == kind.tolist()
    expected = (1 - module.schedule.alpha_bar[t]).sqrt() * torch.arange(1.0, 5.0)
    torch.testing.assert_close(x_t[:, 0, 0, 0], expected.float())


def test_min_snr_weights_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    """alpha_bar 0.9, 0.5, 0.2: SNR 9, 1, 1/4; gamma 3 weights the first by 3/9, the others by 1."""
    text = tiny_recipe().model_dump()
    text["noise"]["min_snr"] = 3.0
    module = DiffusionTraining(Recipe.model_validate(text))
    eps = torch.tensor([1.0, 2.0, 3.0]).reshape(3, 1, 1, 1).expand(3, 1, 16, 16)
    module.schedule.alpha_bar[:3] = torch.tensor([0.9, 0.5, 0.2])
    monkeypatch.setattr(module, "_noise_of", lambda kinds, x, generator: eps)
    monkeypatch.setattr(module.network, "forward", lambda x_t, t, kind: torch.zeros_like(x_t))
    t, kind = torch.tensor([0, 1, 2]), torch.tensor([0, 1, 0])
    loss, of_kind = module._losses(torch.zeros(3, 1, 16, 16), t, kind, torch.Generator())
    assert loss.item() == pytest.approx((1 / 3 * 1 + 3 * 4 + 9) / 3)
    assert of_kind["gaussian"].item() == pytest.approx(5)  # the logged errors are unweighted


def test_only_the_recipes_timesteps_are_trained(monkeypatch: pytest.MonkeyPatch) -> None:
    """From train_from to train_below - 1, all of them; by default from 0."""
    x = torch.rand(256, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    for change, expected in (({"train_from": 3, "train_below": 10}, range(3, 10)), ({"train_below": 4}, range(4))):
        text = tiny_recipe(batch_size=256).model_dump()
        text["noise"].update(change)
        module = DiffusionTraining(Recipe.model_validate(text))
        monkeypatch.setattr(module, "_trainer", types.SimpleNamespace(world_size=1, global_step=7, global_rank=0))
        timesteps: list[torch.Tensor] = []

        def losses(x: torch.Tensor, t: torch.Tensor, *_: object, seen: list[torch.Tensor] = timesteps):  # type: ignore[no-untyped-def]
            seen.append(t)
            return torch.zeros(()), {}

        monkeypatch.setattr(module, "_losses", losses)
        monkeypatch.setattr(module, "log", lambda *_, **__: None)
        module.training_step(x, 0)
        module.validation_step(x[:1], 0)
        trained, validated = timesteps
        assert sorted(set(trained.tolist())) == list(expected)
        assert (validated.min(), validated.max()) == (expected[0], expected[-1])


def test_of_a_patched_image_only_the_cell_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    """By hand: absolute error of the clean image inside the cell; outside the network sees the image itself."""
    generator = torch.Generator().manual_seed(0)
    x, eps = (torch.rand(4, 1, 16, 16, generator=generator) for _ in range(2))
    module = DiffusionTraining(patched_recipe())
    assert module.cells == 4
    error = torch.tensor([0.5, -1.0, 2.0, -4.0]).reshape(4, 1, 1, 1)
    corners = [(slice(0, 8), slice(0, 8)), (slice(0, 8), slice(8, 16)), (slice(8, 16), slice(0, 8))]
    corners.append((slice(8, 16), slice(8, 16)))  # counted along the rows
    seen = []

    def predict(x_t: torch.Tensor, t: torch.Tensor, kind: torch.Tensor) -> torch.Tensor:
        seen.append(x_t)
        wrong = torch.full_like(x_t, 1e6)  # outside the cell: must not matter
        for image, (cell, of_cell) in enumerate(zip((2, 0, 3, 1), error, strict=True)):
            rows, columns = corners[cell]
            wrong[image, 0, rows, columns] = x[image, 0, rows, columns] + of_cell[0]
        return wrong

    monkeypatch.setattr(module, "_noise_of", lambda kinds, x, generator: eps)
    monkeypatch.setattr(module.network, "forward", predict)
    t, kind, cell = torch.tensor([0, 100, 250, 500]), torch.tensor([1, 1, 1, 1]), torch.tensor([2, 0, 3, 1])
    loss, of_kind = module._losses(x, t, kind, torch.Generator(), cell)
    assert loss.item() == pytest.approx((0.5 + 1 + 2 + 4) / 4)
    assert {name: value.item() for name, value in of_kind.items()} == pytest.approx({"simplex": 7.5 / 4})
    noised = module.schedule.add_noise(x, eps, t)
    for image, number in enumerate(cell.tolist()):
        inside = torch.zeros(16, 16, dtype=torch.bool)
        inside[corners[number]] = True
        assert torch.equal(seen[0][image, 0][inside], noised[image, 0][inside])
        assert torch.equal(seen[0][image, 0][~inside], x[image, 0][~inside])


def test_a_network_that_predicts_the_clean_image(monkeypatch: pytest.MonkeyPatch) -> None:
    """By hand: the mean squared error against the image, all of it noised."""
    recipe = tiny_recipe().model_dump()
    recipe["noise"]["prediction"] = "clean"
    x = torch.full((2, 1, 16, 16), 0.5)
    module = DiffusionTraining(Recipe.model_validate(recipe))
    monkeypatch.setattr(module.network, "forward", lambda x_t, t, kind: torch.zeros_like(x_t))
    loss, _ = module._losses(x, torch.tensor([3, 400]), torch.tensor([0, 1]), torch.Generator().manual_seed(0))
    assert loss.item() == pytest.approx((1 * 0.25 + 3 * 0.25) / 2)


def test_a_patched_training(healthy: tuple[Path, Path], tmp_path: Path) -> None:
    """From a model that predicts noise, as brain-t1-patched from brain-t1-compact; the model says what it learned."""
    first = fit(tiny_recipe(steps=2), healthy[0], tmp_path / "first", accelerator="cpu", progress_bar=False)
    recipe = patched_recipe(steps=4, validate_every=2)
    out = tmp_path / "out"
    model = fit(recipe, healthy[0], out, validation=healthy[1], accelerator="cpu", start_from=first, progress_bar=False)
    rows = list(csv.DictReader((out / "logs" / "from-step-0" / "metrics.csv").read_text().splitlines()))
    assert sum(bool(row.get("validation/simplex")) for row in rows) == 2
    assert not any(row.get("validation/gaussian") or row.get("train/gaussian") for row in rows)
    with PIL.Image.open(out / "pictures" / "step-0000004.png") as picture:
        rows_of_images = np.asarray(picture)[:, :80].reshape(3, 16, 5, 16).transpose(0, 2, 1, 3)
    image, noised, restored = rows_of_images  # (5, 16, 16) each
    for i, (rows_of_cell, columns) in enumerate([(0, 0), (0, 8), (8, 0), (8, 8), (0, 0)]):
        inside = np.zeros((16, 16), dtype=bool)
        inside[rows_of_cell : rows_of_cell + 8, columns : columns + 8] = True
        for row in (noised, restored):
            np.testing.assert_array_equal(row[i][~inside], image[i][~inside])
            assert (row[i] != image[i])[inside].mean() > 0.8
    card = (model / "MODEL_CARD.md").read_text()
    assert "the clean image, from one cell of 8 px of an image under simplex noise, timesteps below 501" in card
    assert "the noise, from the whole image under gaussian or simplex noise" in (first / "MODEL_CARD.md").read_text()


def test_a_patched_network_learns_the_cell_from_its_surroundings() -> None:
    """Ramps in four directions, each continued from the clean cells; a fresh network's grey is 0.43 off."""
    ramp = torch.linspace(-0.8, 0.8, 16).expand(1, 1, 16, 16)
    x = torch.cat([ramp, -ramp, ramp.mT, -ramp.mT])
    torch.manual_seed(0)
    module = DiffusionTraining(patched_recipe())
    optimiser = torch.optim.Adam(module.network.parameters(), lr=3e-3)
    generator = torch.Generator().manual_seed(0)
    losses = []
    for _ in range(30):
        t, cell = torch.randint(501, (4,), generator=generator), torch.randint(4, (4,), generator=generator)
        loss, _ = module._losses(x, t, torch.ones(4, dtype=torch.long), generator, cell)
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        losses.append(loss.item())
    assert losses[0] == pytest.approx(x.abs().mean().item())  # a fresh network gives 0
    assert sum(losses[-10:]) / 10 < 0.6 * losses[0]


def test_each_training_step_noises_cells_at_random(monkeypatch: pytest.MonkeyPatch) -> None:
    """All of them, reproducibly, and not in the order of the images; validation has a fixed one for each image."""
    x = torch.rand(8, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    module = DiffusionTraining(patched_recipe(batch_size=8))
    trainer = types.SimpleNamespace(world_size=1, global_step=7, global_rank=0)
    monkeypatch.setattr(module, "_trainer", trainer)
    cells: list[list[int]] = []

    def losses(x: torch.Tensor, t: torch.Tensor, kind: torch.Tensor, generator: torch.Generator, cell: torch.Tensor):  # type: ignore[no-untyped-def]
        cells.append(cell.tolist())
        return torch.zeros(()), {}

    monkeypatch.setattr(module, "_losses", losses)
    monkeypatch.setattr(module, "log", lambda *_, **__: None)
    for _ in range(2):
        module.training_step(x, 0)
    assert cells[0] == cells[1]
    assert set(cells[0]) == {0, 1, 2, 3}
    for index in range(5):
        module.validation_step(x[index : index + 1], index)
    assert [set(of_image) for of_image in cells[2:]] == [{0}, {1}, {2}, {3}, {0}]


def test_average_precision_of_a_known_restoration(monkeypatch: pytest.MonkeyPatch) -> None:
    """A network that knows the healthy images finds what was made up in them; one that sees no noise doesn't."""
    generator = torch.Generator().manual_seed(0)
    smooth = torch.nn.functional.interpolate(torch.rand(20, 1, 5, 5, generator=generator), size=32, mode="bilinear")
    healthy = [0.3 + 0.4 * image for image in smooth]
    text = tiny_recipe().model_dump()
    text["image"]["size"] = 32
    module = DiffusionTraining(Recipe.model_validate(text))
    seen: list[tuple[int, int]] = []

    def knows(x_t: torch.Tensor, t: torch.Tensor, kind: torch.Tensor) -> torch.Tensor:
        first = 0 if len(x_t) == 16 else 16
        seen.append((len(x_t), int(t[0])))
        alpha_bar = module.schedule.alpha_bar[t].view(-1, 1, 1, 1).float()
        clean = 2 * torch.stack(healthy[first : first + len(x_t)]) - 1
        return (x_t - alpha_bar.sqrt() * clean) / (1 - alpha_bar).sqrt()

    monkeypatch.setattr(module.network, "forward", knows)
    found = average_precision(module, healthy)
    assert found > 0.9
    assert seen == [(16, 250), (16, 125), (4, 250), (4, 125)]
    of_seed_1 = module.recipe.training.model_copy(update={"seed": 1})
    module.recipe = module.recipe.model_copy(update={"training": of_seed_1})
    assert average_precision(module, healthy) == found, "trainings with other seeds are compared by it"
    monkeypatch.setattr(module.network, "forward", lambda x_t, t, kind: torch.zeros_like(x_t))
    assert average_precision(module, healthy) < 0.5


@pytest.mark.parametrize(("keep", "kept"), [("best", 4), ("last", 7)])
def test_the_model_gets_the_weights_that_the_recipe_says(
    healthy: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, keep: str, kept: int
) -> None:
    """Seven steps, measured after 2, 4, 6 and the last; the averaged weights of step 4 find most."""
    states: dict[int, dict[str, torch.Tensor]] = {}

    def found(module: DiffusionTraining, images: object) -> float:
        step = module.trainer.global_step
        states[step] = {name: tensor.clone() for name, tensor in module.network.state_dict().items()}
        return {2: 0.3, 4: 0.4, 6: 0.35, 7: math.nan}[step]

    monkeypatch.setattr("thorad.training.average_precision.average_precision", found)
    recipe = tiny_recipe(steps=7, validate_every=2, keep=keep)
    model = fit(
        recipe, healthy[0], tmp_path / "out", validation=healthy[1], accelerator="cpu", devices=1, progress_bar=False
    )
    assert list(states) == [2, 4, 6, 7]
    for name, tensor in states[kept].items():
        assert torch.equal(tensor.to(torch.bfloat16), weights(model)[f"network.{name}"]), name
    assert any(not torch.equal(tensor, states[7][name]) for name, tensor in states[4].items())
    page = (tmp_path / "out" / "training.html").read_text()
    assert "<strong>0.400</strong> after step 4 (8 images seen)" in page
    chosen = (
        "of step 4: average precision 0.400 on made-up anomalies, the highest of 3 measurements, by which they were"
    )
    assert (chosen in read_card(model)) == (keep == "best")


def test_the_loss_falls(healthy: tuple[Path, Path], tmp_path: Path) -> None:
    """A network that predicts nothing has a squared error of 1 (Gaussian); 60 steps already learn some of it."""
    recipe = tiny_recipe(steps=60, validate_every=20, batch_size=8)
    fit(recipe, healthy[0], tmp_path / "out", validation=healthy[1], accelerator="cpu", progress_bar=False)
    rows = list(csv.DictReader((tmp_path / "out" / "logs" / "from-step-0" / "metrics.csv").read_text().splitlines()))
    losses = [float(row["validation/gaussian"]) for row in rows if row.get("validation/gaussian")]
    assert len(losses) == 3
    assert losses[-1] < losses[0] < 1.2
    assert losses[-1] < 0.9


def run_cli(
    train: Path, out: Path, recipe: Path, *more: str, program: tuple[str, ...] = ("-m", "thorad")
) -> subprocess.Popen[str]:
    command = [sys.executable, *program, "train", "--recipe", str(recipe), "--train", str(train)]
    return subprocess.Popen(
        [*command, "--out", str(out), "--accelerator", "cpu", *more],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


class ForeignScans(lightning.LightningDataModule):
    """A data module as others write them: MONAI's data sets of dictionaries, on the scanner's scale."""

    def __init__(self, folders: tuple[Path, Path]) -> None:
        super().__init__()
        self.folders = folders

    def setup(self, stage: str = "fit") -> None:
        read = monai.transforms.Lambda(lambda item: {**item, "image": self.read(item["path"])})  # type: ignore[no-untyped-call]
        self.train_set, self.val_set = (
            monai.data.Dataset([{"path": path, "label": 0} for path in sorted(folder.iterdir())], read)
            for folder in self.folders
        )

    @staticmethod
    def read(path: Path) -> monai.data.MetaTensor:
        return monai.data.MetaTensor(np.asarray(PIL.Image.open(path), dtype=np.float32)[None] * 7)  # type: ignore[no-untyped-call]


class Counter(lightning.Callback):
    """Counts steps, and sees what a callback may see."""

    steps = 0

    def on_train_batch_end(self, trainer: lightning.Trainer, pl_module: object, *_: object) -> None:
        assert isinstance(pl_module, DiffusionTraining)
        self.steps += 1


class Losses(Logger):
    """A logger that keeps what it is given."""

    name, version = "losses", "0"

    def __init__(self) -> None:
        self.of_step: dict[int, dict[str, float]] = {}

    def log_hyperparams(self, *_: object, **__: object) -> None:
        pass

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        self.of_step.setdefault(step or 0, {}).update(metrics)


def test_data_callbacks_loggers_and_options_of_others(healthy: tuple[Path, Path], tmp_path: Path) -> None:
    """The same images from a foreign data module give the same model."""
    scans, counter, losses = ForeignScans(healthy), Counter(), Losses()
    scans.setup()
    model = fit(
        tiny_recipe(),
        scans.train_set,
        tmp_path / "foreign",
        validation=scans.val_set,
        accelerator="cpu",
        progress_bar=False,
        callbacks=[counter],
        loggers=[losses],
        trainer_options={"log_every_n_steps": 1, "enable_model_summary": False},
    )
    assert counter.steps == 6
    assert sum("train/loss" in metrics for metrics in losses.of_step.values()) == 6
    assert sum("validation/loss" in metrics for metrics in losses.of_step.values()) == 2
    assert not (tmp_path / "foreign" / "logs").exists()
    assert len(list((tmp_path / "foreign" / "pictures").iterdir())) == 2
    assert "| trained on | 5 images (validated on 5) |" in (model / "MODEL_CARD.md").read_text()
    ours = fit(
        tiny_recipe(), healthy[0], tmp_path / "ours", validation=healthy[1], accelerator="cpu", progress_bar=False
    )
    for name, tensor in weights(ours).items():
        torch.testing.assert_close(weights(model)[name], tensor, atol=1e-3, rtol=1e-2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_steps": 3, "profiler": None}, r"trainer_options: max_steps can't be set here"),
        ({"accumulate_grad_batches": 2}, "accumulate_grad_batches can't be set here"),
        ({"no_such_option": 1}, r"accelerator 'cpu' .* trainer_options \{'no_such_option': 1\}: .*no_such_option"),
    ],
)
def test_trainer_options_that_are_refused(
    healthy: tuple[Path, Path], tmp_path: Path, options: dict[str, object], message: str
) -> None:
    with pytest.raises(ThoradError, match=message):
        fit(
            tiny_recipe(),
            healthy[0],
            tmp_path / "out",
            accelerator="cpu",
            progress_bar=False,
            trainer_options=options,
        )


def test_a_callback_that_ends_the_training_early(healthy: tuple[Path, Path], tmp_path: Path) -> None:
    class Stop(lightning.Callback):
        def on_train_batch_end(self, trainer: lightning.Trainer, *_: object) -> None:
            trainer.should_stop = trainer.global_step == 2

    options = {"accelerator": "cpu", "progress_bar": False}
    with pytest.raises(ThoradError, match=r"out: the training was ended at step 2 of 6, so there is no model"):
        fit(tiny_recipe(), healthy[0], tmp_path / "out", callbacks=[Stop()], **options)
    load_model(fit(tiny_recipe(), healthy[0], tmp_path / "out", **options))


def test_a_checkpoint_with_a_callbacks_objects_is_not_passed_over(healthy: tuple[Path, Path], tmp_path: Path) -> None:
    class Keeper(lightning.Callback):
        def state_dict(self) -> dict[str, object]:
            return {"where": tmp_path}

    out, options = tmp_path / "out", {"accelerator": "cpu", "progress_bar": False}
    model = fit(tiny_recipe(steps=1), healthy[0], out, callbacks=[Keeper()], **options)
    (model / "calibration.json").unlink()
    with pytest.raises(ThoradError, match=r"\.ckpt: holds objects that may run code"):
        fit(tiny_recipe(steps=1), healthy[0], out, callbacks=[Keeper()], **options)


def test_killed_and_resumed_equals_uninterrupted(healthy: tuple[Path, Path], tmp_path: Path) -> None:
    """A real SIGKILL at an arbitrary moment after the first checkpoint; then the same command again."""
    recipe = tiny_recipe(steps=40)
    path = tmp_path / "tiny.toml"
    path.write_text(recipe.to_toml())
    killed = tmp_path / "killed"
    validation = ("--validation", str(healthy[1]))  # the averaged weights change places with the others for it
    process = run_cli(healthy[0], killed, path, *validation)
    deadline = time.monotonic() + 120
    while not list((killed / "checkpoints").glob("*.ckpt")):
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not (killed / "model").exists(), "finished before it was killed: the test needs more steps"
    for out in (killed, tmp_path / "whole"):
        process = run_cli(healthy[0], out, path, *validation)
        output = process.communicate(timeout=200)[0]
        assert process.returncode == 0, output
    resumed, uninterrupted = weights(killed / "model"), weights(tmp_path / "whole" / "model")
    assert resumed.keys() == uninterrupted.keys()
    for name, tensor in resumed.items():
        assert torch.equal(tensor, uninterrupted[name]), name
    assert len(list((killed / "checkpoints").glob("*.ckpt"))) == 1
    assert len(list((killed / "logs").iterdir())) == 2  # the killed start's log is still there


def test_sigterm_saves_the_step_and_the_same_command_resumes(healthy: tuple[Path, Path], tmp_path: Path) -> None:
    """A real signal to a real process, whose checkpoints are an hour apart."""
    recipe = tiny_recipe(steps=20, validate_every=100, checkpoint_minutes=60.0)
    path, out = tmp_path / "tiny.toml", tmp_path / "out"
    path.write_text(recipe.to_toml())
    process = run_cli(healthy[0], out, path, program=("-c", SLOW_STEPS))
    assert process.stdout is not None
    seen = []
    for line in process.stdout:
        seen.append(line)
        if "first step" in line:
            break
    process.send_signal(signal.SIGTERM)
    output = "".join(seen) + process.communicate(timeout=200)[0]
    assert process.returncode == 128 + signal.SIGTERM, output
    told = re.search(r"stopped by SIGTERM after step (\d+) of 20, which is saved\. The same command", output)
    assert told is not None, output
    assert "Traceback" not in output
    assert re.search(r"\d\d:\d\d:\d\d  images      5 to train on, none to validate on\n", output)
    assert re.search(r"parameters  0\.\d+ million\n", output)
    (checkpoint,) = (out / "checkpoints").iterdir()
    assert checkpoint.name == f"step={told[1]}.ckpt"
    assert 1 <= int(told[1]) < 20
    resumed = weights(fit(recipe, healthy[0], out, accelerator="cpu"))
    expected = weights(fit(recipe, healthy[0], tmp_path / "whole", accelerator="cpu"))
    assert resumed.keys() == expected.keys()
    for name, tensor in resumed.items():
        assert torch.equal(tensor, expected[name]), name


# The command line with one thing more: it tells when a step is done, and then takes its time.
SLOW_STEPS = """
import time
from thorad import cli
from thorad.training.module import DiffusionTraining
def tell(module, *_):
    print("first step" if module.global_step == 1 else "", flush=True)
    time.sleep(0.2)
DiffusionTraining.on_train_batch_end = tell
cli.app()
"""


class Sends(lightning.Callback):
    """Sends a signal to this process, once, in a hook at a step."""

    def __init__(self, signum: signal.Signals, hook: str, step: int) -> None:
        def send(trainer: lightning.Trainer, *_: object) -> None:
            if trainer.global_step == step:
                os.kill(os.getpid(), signum)

        setattr(self, hook, send)


@pytest.mark.parametrize(
    ("signum", "hook", "step", "done"),
    [
        (signal.SIGINT, "on_train_batch_start", 2, 3),  # a step that has begun is finished
        (signal.SIGTERM, "on_validation_batch_start", 3, 3),  # the averaged weights are in the network then
        (signal.SIGUSR1, "on_train_batch_start", 4, 5),
    ],
    ids=["Ctrl-C", "in a validation", "SLURM"],
)
def test_a_training_ended_by_a_signal_resumes_to_the_same_weights(
    healthy: tuple[Path, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    signum: signal.Signals,
    hook: str,
    step: int,
    done: int,
) -> None:
    recipe, handler = tiny_recipe(checkpoint_minutes=60.0, keep="best"), signal.getsignal(signum)
    if signum == signal.SIGUSR1:
        slurm = {"JOB_ID": "71", "NTASKS": "1", "NTASKS_PER_NODE": "1", "PROCID": "0", "LOCALID": "0", "NODEID": "0"}
        for name, value in {**slurm, "JOB_NAME": "train", "NODELIST": "localhost"}.items():
            monkeypatch.setenv(f"SLURM_{name}", value)
        scheduler = tmp_path / "bin" / "scontrol"
        scheduler.parent.mkdir()
        scheduler.write_text(f'#!/bin/sh\necho "$@" > {tmp_path / "asked"}\n')
        scheduler.chmod(0o755)
        monkeypatch.setenv("PATH", f"{scheduler.parent}:{os.environ['PATH']}")
    out = tmp_path / "out"
    options = {"validation": healthy[1], "accelerator": "cpu", "devices": 1, "progress_bar": False}
    with pytest.raises(Interrupted, match=f"stopped by {signum.name} after step {done} of 6, which is saved") as stop:
        fit(recipe, healthy[0], out, callbacks=[Sends(signum, hook, step)], **options)
    assert stop.value.signum == signum
    assert signal.getsignal(signum) == handler
    assert [path.name for path in (out / "checkpoints").iterdir()] == [f"step={done}.ckpt"]
    assert f"step {done} of 6, stopped; the same command resumes" in (out / "training.html").read_text()
    if signum == signal.SIGUSR1:
        assert "SLURM has queued job 71 again." in str(stop.value)
        assert (tmp_path / "asked").read_text() == "requeue 71\n"
    resumed = weights(fit(recipe, healthy[0], out, **options))
    expected = weights(fit(recipe, healthy[0], tmp_path / "whole", **options))
    for name, tensor in expected.items():
        assert torch.equal(tensor, resumed[name]), name
    callbacks = [
        torch.load(next((folder / "checkpoints").iterdir()), weights_only=True)["callbacks"]
        for folder in (out, tmp_path / "whole")
    ]
    curves = [of_training["History"]["points"] for of_training in callbacks]
    # Also that of a validation that the signal cut short.
    assert curves[0]["validation/average_precision"] == curves[1]["validation/average_precision"]
    measured = [of_training["BestWeights"]["measured"] for of_training in callbacks]
    assert measured[0] == measured[1]
    assert [0 < value < 1 for value in measured[0].values()] == [True], "after step 3"
    assert curves[0]["train/loss"] == curves[1]["train/loss"]
    assert [at for at, _ in curves[1]["validation/loss"]] == [3]  # the last one comes after the checkpoint


# The command line with one thing more: each process leaves the weights that it ends with.
KEEP_EVERY_PROCESS_WEIGHTS = """
import pathlib, torch
from thorad import cli
from thorad.training.module import DiffusionTraining
def keep(module):
    torch.save(module.state_dict(), pathlib.Path(__file__).with_name(f"process-{module.global_rank}.pt"))
DiffusionTraining.on_train_end = keep
cli.app()
"""


def test_two_processes(healthy: tuple[Path, Path], tmp_path: Path) -> None:
    """Two processes on the CPU see different images and end with one model, other than one process's."""
    path, script = tmp_path / "tiny.toml", tmp_path / "script.py"
    path.write_text(tiny_recipe(steps=4).to_toml())
    script.write_text(KEEP_EVERY_PROCESS_WEIGHTS)
    process = run_cli(healthy[0], tmp_path / "two", path, "--devices", "2", program=(str(script),))
    output = process.communicate(timeout=280)[0]
    assert process.returncode == 0, output
    assert "MEMBER: 2/2" in output
    assert "| steps | 4 of 4 images |" in (tmp_path / "two" / "model" / "MODEL_CARD.md").read_text()
    one = fit(tiny_recipe(steps=4), healthy[0], tmp_path / "one", accelerator="cpu", devices="1", progress_bar=False)
    first, second = (torch.load(tmp_path / f"process-{rank}.pt", weights_only=True) for rank in (0, 1))
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        assert torch.equal(tensor, second[name]), name
    two = weights(tmp_path / "two" / "model")
    assert any(not torch.equal(tensor, two[name]) for name, tensor in weights(one).items())


@pytest.mark.parametrize(
    ("seconds", "best", "tried"),
    [
        ({4: 1.0, 2: 0.6, 1: 0.9}, 2, [4, 2, 1]),
        ({4: 0.3, 2: 0.5, 1: 0.9}, 4, [4, 2]),
        ({4: 0.5, 2: 0.4, 1: 0.3}, 1, [4, 2, 1]),
    ],
)
def test_the_fastest_number_of_threads(
    monkeypatch: pytest.MonkeyPatch, seconds: dict[int, float], best: int, tried: list[int]
) -> None:
    """By a clock of its own; the first step with a number is as slow as ten."""
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    before, clock = torch.get_num_threads(), 0.0
    monkeypatch.setattr(progress.time, "perf_counter", lambda: clock)
    trainer: Any = types.SimpleNamespace(strategy=types.SimpleNamespace(root_device=torch.device("cpu")), world_size=1)
    module: Any = None
    choice = progress.ThreadChoice()
    torch.set_num_threads(4)
    try:
        choice.on_train_start(trainer, module)
        used: list[int] = []
        for _ in range(20):
            choice.on_train_batch_start(trainer, module)
            threads = torch.get_num_threads()
            clock += seconds[threads] * (1 if threads in used else 10)
            used.append(threads)
            choice.on_train_batch_end(trainer, module)
        assert list(dict.fromkeys(used)) == tried
        assert used[-1] == best == choice.threads
        resumed = progress.ThreadChoice()
        resumed.load_state_dict({"threads": 1})
        resumed.on_train_start(trainer, module)
        assert torch.get_num_threads() == 1
        choice.on_train_end(trainer, module)
        assert torch.get_num_threads() == 4
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("missing", ["weights.safetensors", "calibration.json"])
def test_a_torn_checkpoint_is_passed_over(healthy: tuple[Path, Path], tmp_path: Path, missing: str) -> None:
    recipe, out = tiny_recipe(), tmp_path / "out"
    whole = weights(fit(recipe, healthy[0], out, accelerator="cpu", progress_bar=False))
    torn = out / "checkpoints" / "step=99.ckpt"
    torn.write_bytes(next((out / "checkpoints").iterdir()).read_bytes()[:1000])
    (out / "model" / missing).unlink()  # as if killed before the model was written
    again = weights(fit(recipe, healthy[0], out, accelerator="cpu", progress_bar=False))
    load_model(out / "model")
    for name, tensor in whole.items():
        assert torch.equal(tensor, again[name]), name


def test_start_from_takes_the_weights(healthy: tuple[Path, Path], tmp_path: Path) -> None:
    first = fit(tiny_recipe(), healthy[0], tmp_path / "first", accelerator="cpu", progress_bar=False)
    frozen = tiny_recipe(steps=1, learning_rate=1e-12)
    second = fit(frozen, healthy[0], tmp_path / "second", accelerator="cpu", start_from=first, progress_bar=False)
    for name, tensor in weights(first).items():
        torch.testing.assert_close(weights(second)[name], tensor, atol=1e-2, rtol=1e-2)


def test_start_from_another_shape_is_refused(healthy: tuple[Path, Path], tmp_path: Path, tiny_model: Path) -> None:
    wide = tiny_recipe().model_copy(update={"network": tiny_recipe().network.model_copy(update={"channels": (64, 64)})})
    with pytest.raises(ThoradError, match="other shapes"):
        fit(wide, healthy[0], tmp_path / "out", accelerator="cpu", start_from=tiny_model, progress_bar=False)


def test_start_from_what_means_something_else_is_refused(
    healthy: tuple[Path, Path], tmp_path: Path, tiny_model: Path
) -> None:
    recipe = load_model(tiny_model).recipe
    swapped = recipe.noise.model_copy(update={"kinds": recipe.noise.kinds[::-1], "beta_end": 0.1})
    recipe = recipe.model_copy(update={"noise": swapped})
    with pytest.raises(ThoradError, match="has other kinds, beta_end than recipe 'tiny'"):
        fit(recipe, healthy[0], tmp_path / "out", accelerator="cpu", start_from=tiny_model, progress_bar=False)


def test_nothing_is_measured_on_what_was_trained_on(healthy: tuple[Path, Path], tmp_path: Path) -> None:
    train, other = healthy
    options: dict[str, Any] = {"accelerator": "cpu", "progress_bar": False}
    first = fit(tiny_recipe(steps=1), train, tmp_path / "first", **options)
    with pytest.raises(ThoradError, match="'tiny', to start from, was trained on 5 of these 5 validation images"):
        fit(tiny_recipe(steps=1), other, tmp_path / "out", validation=train, start_from=first, **options)
    second = fit(tiny_recipe(steps=1), other, tmp_path / "second", start_from=first, **options)
    detector = Detector(second, method="zscore", device="cpu")
    for folder in healthy:
        with pytest.raises(ThoradError, match="Model 'tiny' was trained on 5 of these 5 images: sub-"):
            calibrate_files(detector, find_scans([folder]), level=0.3)
    pixels = np.zeros((20, 24), dtype=np.uint8)
    pixels[5:9, 5:9] = 255
    for name in ("lesion", "mask"):
        PIL.Image.fromarray(pixels).save(tmp_path / f"{name}.png")
    case = Case(tmp_path / "lesion.png", tmp_path / "mask.png", "s", "lesion")
    with pytest.raises(ThoradError, match="Model 'tiny' was trained on 5 of these 6 images: sub-000, "):
        evaluate([case], sorted(train.iterdir()), [detector], tmp_path / "evaluation")
    for path in train.iterdir():
        PIL.Image.open(path).transpose(PIL.Image.Transpose.FLIP_LEFT_RIGHT).save(path)
    scans = find_scans([train])
    folder = save_calibration(calibrate_files(detector, scans, level=0.3).calibration, second)
    assert len(load_model(folder).trained_on) == 10


def test_a_training_from_another_start_is_refused(healthy: tuple[Path, Path], tmp_path: Path) -> None:
    options: dict[str, Any] = {"accelerator": "cpu", "progress_bar": False}
    starts = [fit(tiny_recipe(steps=1, seed=seed), healthy[0], tmp_path / f"{seed}", **options) for seed in (1, 2)]
    model = fit(tiny_recipe(steps=1), healthy[0], tmp_path / "out", start_from=starts[0], **options)
    assert f"model tiny, weights of sha256 {load_model(starts[0]).sha256} |" in (model / "MODEL_CARD.md").read_text()
    for other in (starts[1], None):
        with pytest.raises(ThoradError, match="holds a training with other weights to start from"):
            fit(tiny_recipe(steps=1), healthy[0], tmp_path / "out", start_from=other, **options)
    with pytest.raises(ThoradError, match="unknown model"):
        fit(tiny_recipe(steps=1), healthy[0], tmp_path / "out", start_from="no-such-model", **options)


def test_other_images_of_the_same_names_and_sizes_are_others(tmp_path: Path, rng: np.random.Generator) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        for name in ("x.npy", "y.npy"):
            np.save(tmp_path / folder / name, rng.random((20, 20)).astype(np.float32))
    options: dict[str, Any] = {"accelerator": "cpu", "progress_bar": False}
    fit(tiny_recipe(steps=1), tmp_path / "a", tmp_path / "out", **options)
    with pytest.raises(ThoradError, match="other training images"):
        fit(tiny_recipe(steps=1), tmp_path / "b", tmp_path / "out", **options)


def test_a_training_goes_on_in_as_many_processes() -> None:
    checkpoints = progress.Checkpoints(Path("out/checkpoints"), minutes=1)
    checkpoints.load_state_dict({"processes": 2})
    trainer: Any = types.SimpleNamespace(world_size=1)
    with pytest.raises(ThoradError, match="out: its steps until now were of 2 processes, now there are 1"):
        checkpoints.on_train_start(trainer, cast(Any, None))
    assert checkpoints.state_dict() == {"processes": 2}


def test_another_recipe_in_the_folder_is_refused(healthy: tuple[Path, Path], tmp_path: Path) -> None:
    fit(tiny_recipe(steps=1), healthy[0], tmp_path / "out", accelerator="cpu", progress_bar=False)
    with pytest.raises(ThoradError, match="another recipe"):
        fit(tiny_recipe(steps=2), healthy[0], tmp_path / "out", accelerator="cpu", progress_bar=False)


def test_a_damaged_training_image_is_named(healthy: tuple[Path, Path], tmp_path: Path) -> None:
    (healthy[0] / "sub-bad.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    with pytest.raises(ThoradError, match=r"sub-bad\.png"):
        fit(tiny_recipe(), healthy[0], tmp_path / "out", accelerator="cpu", progress_bar=False)


def test_an_impossible_device_is_an_error(healthy: tuple[Path, Path], tmp_path: Path) -> None:
    with pytest.raises(ThoradError, match="accelerator 'nonsense'"):
        fit(tiny_recipe(), healthy[0], tmp_path / "out", accelerator="nonsense", progress_bar=False)


def test_every_image_comes_once_an_epoch_in_a_seeded_order() -> None:
    places = images_of_batch(0, 10, 10, seed=1)
    assert sorted(places) == list(range(10))
    assert images_of_batch(10, 10, 10, seed=1) != places
    assert images_of_batch(0, 10, 10, seed=2) != places
    assert images_of_batch(7, 6, 10, seed=1) == places[7:] + images_of_batch(10, 3, 10, seed=1)


def test_learning_rate_by_hand() -> None:
    cosine = tiny_recipe(steps=100, warm_up=10)
    assert learning_rate_factor(0, cosine) == pytest.approx(0.1)
    assert learning_rate_factor(50, cosine) == pytest.approx(0.02 + 0.98 / 2)
    assert learning_rate_factor(100, cosine) == pytest.approx(0.02)
    constant = tiny_recipe(warm_up=0, schedule="constant")
    assert learning_rate_factor(3, constant) == 1


def test_average_by_hand() -> None:
    assert average_weights(torch.zeros(1), torch.ones(1), 0, 0.999).item() == pytest.approx(0.9)
    assert average_weights(torch.zeros(1), torch.ones(1), 10**9, 0.999).item() == pytest.approx(0.001, abs=1e-6)


def test_augmentation_off_is_the_identity() -> None:
    x = torch.rand(3, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    off = AugmentationSection(rotation=0, shift=0, scale=0, flip=0)
    torch.testing.assert_close(augment(x, off, torch.Generator().manual_seed(1)), x, atol=1e-5, rtol=0)


def test_augmentation_flips_left_and_right() -> None:
    x = torch.rand(3, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    mirror = AugmentationSection(rotation=0, shift=0, scale=0, flip=1)
    torch.testing.assert_close(augment(x, mirror, torch.Generator().manual_seed(1)), x.flip(3), atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("change", "bound"),
    [({"shift": 0.1}, 0.1 * 64), ({"warp": 0.006}, 5 * 0.006 * 32)],
    ids=["shift", "warp"],
)
def test_augmentation_moves_a_point_by_no_more_than_asked(change: dict[str, float], bound: float) -> None:
    """px; a warp of 5 standard deviations is as good as impossible."""
    x = torch.zeros(64, 1, 64, 64)
    x[:, :, 31:33, 31:33] = 1
    none = {"rotation": 0.0, "shift": 0.0, "scale": 0.0, "flip": 0.0}
    moved = augment(x, AugmentationSection(**{**none, **change}), torch.Generator().manual_seed(0))
    rows = torch.arange(64.0)
    mass = moved.sum((1, 2, 3))
    centre = torch.stack([(moved.sum(3)[:, 0] * rows).sum(1), (moved.sum(2)[:, 0] * rows).sum(1)]) / mass
    away = (centre - 31.5).abs().max().item()
    assert 0.1 * bound < away < bound + 0.1


def test_a_curve_of_brightness_rises_from_black_to_white() -> None:
    none = {"rotation": 0, "shift": 0, "scale": 0, "flip": 0, "gamma": 0, "bias_field": 0, "contrast": 0, "noise": 0}
    options = AugmentationSection(**none, intensity=1, curve=1)
    ramp = torch.linspace(0, 1, 33).expand(200, 1, 33, 33)
    bent = augment(ramp, options, torch.Generator().manual_seed(0))[:, 0, 16]
    assert (bent.diff(dim=1)[:, 1:-1] > 0).all()
    torch.testing.assert_close(bent[:, [1, -2]].mean(dim=0), torch.tensor([1 / 32, 31 / 32]), atol=0.01, rtol=0)
    assert (bent - ramp[:, 0, 16]).abs().max() > 0.15
    assert torch.equal(augment(ramp, options, torch.Generator().manual_seed(0))[:, 0, 16], bent)


def test_intensity_changes_some_images_and_stays_in_range() -> None:
    x = torch.full((200, 1, 16, 16), 0.5)
    options = AugmentationSection(rotation=0, shift=0, scale=0, flip=0, intensity=0.7)
    varied = augment(x, options, torch.Generator().manual_seed(0))
    changed = ((varied - x).abs().amax((1, 2, 3)) > 1e-4).float().mean().item()
    assert 0.6 < changed < 0.8
    assert varied.min() >= 0
    assert varied.max() <= 1


def test_bundled_recipes_are_valid_and_survive_a_round_trip() -> None:
    assert bundled_recipes() == ["brain-t1", "brain-t1-compact", "brain-t1-gaussian", "brain-t1-patched", "hand-xray64"]
    for name in bundled_recipes():
        recipe = load_recipe(name)
        assert recipe.name == name
        assert parse_recipe(recipe.to_toml(), "round trip") == recipe


def test_brain_t1_patched_can_start_from_brain_t1_compact() -> None:
    patched, compact = load_recipe("brain-t1-patched"), load_recipe("brain-t1-compact")
    assert (patched.image, patched.network, patched.noise.kinds) == (
        compact.image,
        compact.network,
        compact.noise.kinds,
    )
    assert patched.noise.trained_kinds == ["simplex"]
    assert patched.noise.train_below > 500  # where pDDPM noises to
    assert 2 * patched.noise.patch_noise == patched.image.size


def test_brain_t1_gaussian_goes_on_from_brain_t1_compact_with_gaussian_noise_alone() -> None:
    gaussian, compact = load_recipe("brain-t1-gaussian"), load_recipe("brain-t1-compact")
    same = ("image", "network", "augmentation", "domain")
    assert [getattr(gaussian, part) for part in same] == [getattr(compact, part) for part in same]
    assert gaussian.noise.kinds == compact.noise.kinds
    assert gaussian.noise.trained_kinds == ["gaussian"]


def test_brain_t1_is_the_papers() -> None:
    """THOR paper, section 3, and design of its network: 1500 epochs of 465 slices in batches of 16 at 1e-4."""
    recipe = load_recipe("brain-t1")
    assert recipe.network.channels == (128, 256, 256)
    assert recipe.training.learning_rate == 1e-4
    assert recipe.training.steps * recipe.training.batch_size >= 1500 * 465
    assert recipe.noise.train_below == recipe.noise.timesteps == 1000


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('name = "x"\n[netwerk]\n', "netwerk: Extra inputs"),
        ('name = "x"\n[network]\nchannels = [32, 32]\nattention = [false, true]\nhead_channels = 32\n', "doesn't see"),
        ('name = "x"\n[network]\nchannels = [64]\nattention = [false, true]\n', "1 channels but 2"),
        ('name = "x"\n[network]\nchannels = [64, 96]\nattention = [false, true]\n', "must divide the channels"),
        ('name = "x"\n[network]\nchannels = [64, 96]\nattention = [false, false]\n', "middle has it always"),
        ('name = "x"\n[network]\nchannels = [64, 72]\nattention = [false, true]\n', "multiples of 32"),
        ('name = "x"\n[noise]\nshare = [0.4]\n', "sum to 0.4"),
        ('name = "x"\n[image]\nsize = 30\n', "multiple of 4"),
        ('name = "x"\n[noise]\nprediction = "clean"\npatch_noise = 48\n', "must divide image.size 128"),
        ('name = "x"\n[noise]\nprediction = "clean"\npatch_noise = 128\n', "into several cells"),
        ('name = "x"\n[noise]\npatch_noise = 64\n', "goes with noise.prediction"),
        ('name = "x"\n[noise]\ntrain_from = 500\ntrain_below = 500\n', "must be below train_below 500"),
        ('name = "x"\n[noise]\nprediction = "clean"\nmin_snr = 5.0\n', "goes with prediction"),
        ("name = ", "not a TOML file"),
        ("", "name: Field required"),
    ],
)
def test_a_wrong_recipe_says_what_is_wrong(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "wrong.toml"
    path.write_text(text)
    with pytest.raises(ThoradError, match=message) as error:
        load_recipe(path)
    assert "wrong.toml" in str(error.value)


def test_an_unknown_recipe_lists_the_known() -> None:
    with pytest.raises(ThoradError, match="brain-t1-compact"):
        load_recipe("brain")
