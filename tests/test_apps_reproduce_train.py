"""The paper's training set out of generated trees in the published layouts, on a grid of few voxels."""

import os
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from test_datasets_atlas import GRID, lesion_at, write_volume
from thorad import cli
from thorad.apps.reproduce_train import TrainingSet, build_training_set, paper_recipe, train_paper
from thorad.datasets.atlas import find_atlas, published_numbers
from thorad.datasets.published import ATLAS_SCANS, brain_split
from thorad.errors import ThoradError
from thorad.io.images import write_png16
from thorad.io.tables import read_table
from thorad.model import load_recipe_of

SPLIT = brain_split()


def subject(number: int) -> str:
    return f"sub-r{1 + number // 100:03}s{1 + number % 100:03}"


@pytest.fixture(scope="module")
def atlas_tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All scans that the lists number, those of the training list without a lesion in the slice; one file for many."""
    root = tmp_path_factory.mktemp("atlas")
    image = np.random.default_rng(0).integers(1, 900, GRID.shape).astype(np.int16)
    t1w = write_volume(root / "source" / "t1w.nii.gz", image)
    without = write_volume(root / "source" / "without.nii.gz", lesion_at((1, 1, GRID.axial_slice - 1)))
    lesion = write_volume(root / "source" / "lesion.nii.gz", lesion_at((1, 1, GRID.axial_slice)))
    for number in range(ATLAS_SCANS):
        folder = root / "ATLAS_2" / "Training" / subject(number)[4:8].upper() / subject(number) / "ses-1" / "anat"
        folder.mkdir(parents=True)
        stem = f"{subject(number)}_ses-1_space-MNI152NLin2009aSym"
        os.link(t1w, folder / f"{stem}_T1w.nii.gz")
        mask = without if number in SPLIT.atlas_train else lesion
        os.link(mask, folder / f"{stem}_label-L_desc-T1lesion_mask.nii.gz")
    return root / "ATLAS_2"


@pytest.fixture(scope="module")
def ixi_tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Slices named as the published ones, all but one subject, one of them cropped, too; and a subject of no list."""
    root = tmp_path_factory.mktemp("ixi")
    picture = write_slice(root / "source.png")
    for name in [*sorted(SPLIT.ixi_train)[1:], *SPLIT.ixi_validation, "IXI999"]:
        os.link(picture, root / f"sub-{name}_ses-M00_T1w_space-MNI152NLin2009cSym_res-1x1x1_T1w.png")
    cropped = sorted(SPLIT.ixi_train)[1]
    os.link(picture, root / f"sub-{cropped}_ses-M00_T1w_space-MNI152NLin2009cSym_desc-Crop_res-1x1x1_T1w.png")
    return root


def write_slice(path: Path, seed: int = 1) -> Path:
    write_png16(path, np.random.default_rng(seed).random((32, 32)))
    return path


def test_the_papers_images(atlas_tree: Path, ixi_tree: Path, tmp_path: Path) -> None:
    told: list[tuple[int, int, str]] = []
    made = build_training_set(ixi_tree, atlas_tree, tmp_path, grid=GRID, on_progress=lambda *step: told.append(step))
    assert made.images == 464 + 218
    assert told[-1] == (218, 218, "ATLAS")
    rows = [row for _, row in read_table(made.train, ["image", "subject", "source"])]
    assert len(rows) == 682
    assert {row["subject"] for row in rows if row["source"] == "ATLAS"} == {subject(n) for n in SPLIT.atlas_train}
    assert all("desc-Crop" not in row["image"] for row in rows)
    assert {row["subject"] for row in rows if row["source"] == "IXI"} == set(sorted(SPLIT.ixi_train)[1:])
    validation = [row["subject"] for _, row in read_table(made.validation, ["image", "subject"])]
    assert sorted(validation) == sorted(SPLIT.ixi_validation)
    assert made.found[0].startswith("Training: 464 of the paper's 465 subjects of IXI and 218 of its 218 slices")
    assert made.found[1] == f"Missing of IXI, so this is not the paper's whole set: {min(SPLIT.ixi_train)}."

    fewer = build_training_set(ixi_tree, atlas_tree, tmp_path / "fewer", grid=GRID, skip_artefacts=True)
    assert fewer.images == 682 - len(SPLIT.atlas_train & SPLIT.atlas_artefacts) < 682


def test_a_listed_slice_with_a_lesion_is_refused(atlas_tree: Path, ixi_tree: Path, tmp_path: Path) -> None:
    """The numbers are the published ones only if the scans are in the published order: one more in front moves all."""
    moved = tmp_path / "moved"
    for path in atlas_tree.rglob("*.nii.gz"):
        name = str(path.relative_to(atlas_tree)).replace("sub-r007s055", "sub-r000s000")  # the last becomes the first
        (moved / name).parent.mkdir(parents=True, exist_ok=True)
        os.link(path, moved / name)
    with pytest.raises(ThoradError, match=r"of the 218 slices that the paper's list calls free of lesions have one"):
        build_training_set(ixi_tree, moved, tmp_path / "out", grid=GRID)
    assert not (tmp_path / "out" / "train.csv").exists()


def test_not_the_whole_of_atlas(atlas_tree: Path, ixi_tree: Path, tmp_path: Path) -> None:
    part = atlas_tree / "Training" / "R001"
    with pytest.raises(ThoradError, match="Found 100 T1w volumes of ATLAS with a mask; the paper's lists number 655"):
        published_numbers(find_atlas(part).cases)
    arguments = ["reproduce", "train", "--data", str(part), "--ixi", str(ixi_tree), "--check"]
    result = CliRunner().invoke(cli.app, arguments)
    assert result.exit_code == 1
    assert "464 of 465 subjects for training, 58 of 58 subjects for validation; 522 as slices, 0" in result.stdout
    assert "Unusable: Found 100 T1w volumes" in result.stderr
    arguments[3] = str(atlas_tree)
    result = CliRunner().invoke(cli.app, arguments)
    assert result.exit_code == 0
    assert "ATLAS: all 655 scans that the paper's lists number." in result.stdout


def test_volumes_of_ixi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As published: T1 volumes by their names; others and other contrasts are passed over."""
    from thorad.apps import reproduce_train

    first, second = sorted(SPLIT.ixi_train)[:2]
    for name in (f"{first}-Guys-0828-T1", f"{second}-HH-1234-T1", f"{second}-HH-1234-T2", "IXI999-IOP-0001-T1"):
        write_volume(tmp_path / f"{name}.nii.gz", np.ones((8, 8, 8), np.uint8))
    write_slice(tmp_path / f"sub-{second}.png")
    pictures, volumes = reproduce_train._find_ixi(tmp_path, SPLIT.ixi_train)
    assert {name: path.name for name, path in pictures.items()} == {second: f"sub-{second}.png"}
    assert {name: path.name for name, path in volumes.items()} == {first: f"{first}-Guys-0828-T1.nii.gz"}
    with pytest.raises(ThoradError, match="none of the 58 subjects in the paper's lists"):
        reproduce_train._find_ixi(tmp_path, SPLIT.ixi_validation)


def test_the_papers_recipe() -> None:
    recipe = paper_recipe("brain-t1", "gaussian", 683)
    assert recipe.name == "brain-t1-gaussian"
    assert (recipe.noise.kinds, recipe.noise.share) == (("gaussian",), (1.0,))
    assert recipe.training.steps == 64_032, "1500 epochs of 683 images, 16 at once: 1.02 million images"
    assert recipe.network == paper_recipe("brain-t1", "simplex", 683).network
    compact = paper_recipe("brain-t1-compact", "simplex", 683, steps=7)
    assert (compact.noise.kinds, compact.noise.loss_weight, compact.training.steps) == (("simplex",), (1.0,), 7)
    with pytest.raises(ThoradError, match="unknown noise 'pink'"):
        paper_recipe("brain-t1", "pink", 683)


def test_a_network_for_each_noise(tiny_model: Path, tmp_path: Path) -> None:
    for seed, name in enumerate("ab"):
        write_slice(tmp_path / "in" / f"{name}.png", seed)
    table = tmp_path / "train.csv"
    table.write_text("image\nin/a.png\n")
    (tmp_path / "val.csv").write_text("image\nin/b.png\n")
    made = TrainingSet(table, tmp_path / "val.csv", 1, [])
    recipe = str(tiny_model / "recipe.toml")
    models = train_paper(made, tmp_path, ["gaussian"], recipe=recipe, steps=1, accelerator="cpu", progress_bar=False)
    assert models == {"gaussian": tmp_path / "gaussian" / "model"}
    trained = load_recipe_of(models["gaussian"])
    assert (trained.name, trained.noise.kinds, trained.training.steps) == ("tiny-gaussian", ("gaussian",), 1)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["train"], "--ixi is missing"),
        (["table1", "--ixi", "x"], "are of the target train alone"),
    ],
)
def test_options_of_other_targets(tmp_path: Path, words: list[str], message: str) -> None:
    result = CliRunner().invoke(cli.app, ["reproduce", *words, "--data", str(tmp_path)])
    assert result.exit_code == 2
    assert message in result.stderr
