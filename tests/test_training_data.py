"""The images of a training: what may be trained on, from files of every kind and from data sets of any kind."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning
import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from torch.utils.data import Dataset, IterableDataset

from test_datasets_cases import mask, scan
from test_io_dicom import DX, base, blob, save
from test_volume_detection import head, in_place
from thorad.errors import ThoradError
from thorad.io import slices
from thorad.io.images import read_image
from thorad.io.preprocess import to_model_input
from thorad.io.scans import read_picture
from thorad.io.template import cut_axial
from thorad.io.volumes import Volume, write_nifti
from thorad.recipe import ImageSection, Recipe, TrainingSection, VolumeSection
from thorad.training import data
from thorad.training.data import StepBatches, TrainingData, mean_and_deviation, open_images

RECIPE = Recipe(name="any", image=ImageSection(size=16))


def picture(seed: int, height: int = 20, width: int = 24) -> np.ndarray[Any, Any]:
    """uint16, on a scale of its own."""
    return np.random.default_rng(seed).integers(0, 1000, (height, width)).astype(np.uint16)


class Items(Dataset[Any]):
    """A data set of the items given."""

    def __init__(self, *items: object) -> None:
        self.items = items

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> object:
        return self.items[index]


def test_training_images(tmp_path: Path) -> None:
    for index in range(3):
        scan(tmp_path / "train" / f"sub-{index}.png", index)
    scan(tmp_path / "val" / "sub-9.png", 9)
    training, validating = open_images(tmp_path / "train", tmp_path / "val", RECIPE)
    for images, names in ((training, ["sub-0", "sub-1", "sub-2"]), (validating, ["sub-9"])):
        assert len(images) == len(names)
        for index, name in enumerate(names):
            folder = "train" if images is training else "val"
            pixels = read_image(tmp_path / folder / f"{name}.png").pixels
            assert torch.equal(images[index], to_model_input(pixels, 16)[0])
    again, nothing = open_images(tmp_path / "train", None, RECIPE)
    assert (len(again), len(nothing)) == (3, 0)


def test_a_trainings_own_pictures_are_no_training_images(tmp_path: Path) -> None:
    scan(tmp_path / "train" / "a.png")
    scan(tmp_path / "train" / "run" / "pictures" / "step-1.png")
    training, _ = open_images(tmp_path / "train", None, RECIPE, leave_out=tmp_path / "train" / "run")
    assert len(training) == 1


def test_training_on_nothing(tmp_path: Path) -> None:
    with pytest.raises(ThoradError, match="no image in this folder"):
        open_images(tmp_path, None, RECIPE)
    with pytest.raises(ThoradError, match="no such file or folder"):
        open_images(tmp_path / "nowhere", None, RECIPE)
    scan(tmp_path / "train" / "a.png")
    (tmp_path / "val").mkdir()
    with pytest.raises(ThoradError, match="val: no image in this folder"):
        open_images(tmp_path / "train", tmp_path / "val", RECIPE)


def test_training_on_masks(tmp_path: Path) -> None:
    scan(tmp_path / "train" / "a.png")
    mask(tmp_path / "train" / "a_mask.png")
    with pytest.raises(
        ThoradError, match=r"train: 1 of 2 images have few values only and look like masks: a_mask\.png"
    ):
        open_images(tmp_path / "train", None, RECIPE)


def test_training_on_a_damaged_file(tmp_path: Path) -> None:
    scan(tmp_path / "train" / "a.png")
    (tmp_path / "train" / "b.png").write_bytes(b"")
    with pytest.raises(ThoradError, match=r"b\.png: the file is empty"):
        open_images(tmp_path / "train", None, RECIPE)


def test_one_subject_in_two_splits(tmp_path: Path) -> None:
    scan(tmp_path / "train" / "sub-1_slice-90.png")
    scan(tmp_path / "train" / "sub-2.png")
    scan(tmp_path / "val" / "sub-1_slice-95.png")
    with pytest.raises(ThoradError, match=r"1 subjects appear in both .*train and .*val: sub-1\."):
        open_images(tmp_path / "train", tmp_path / "val", RECIPE)
    with pytest.raises(ThoradError, match="2 subjects appear in both"):
        open_images(tmp_path / "train", tmp_path / "train", RECIPE)
    for seed, patient in enumerate("ab"):
        scan(tmp_path / patient / patient / "T1.png", seed)
    training, validating = open_images(tmp_path / "a", tmp_path / "b", RECIPE)
    assert (len(training), len(validating)) == (1, 1), "many patients' files are called T1"
    (tmp_path / "val.csv").write_text("image\na/a/T1.png\n")
    with pytest.raises(ThoradError, match=r"1 subjects appear in both .*T1\.png"):
        open_images(tmp_path / "a", tmp_path / "val.csv", RECIPE)


def test_one_image_under_two_names_in_two_splits(tmp_path: Path) -> None:
    scan(tmp_path / "train" / "a.png", seed=1)
    scan(tmp_path / "train" / "b.png", seed=2)
    scan(tmp_path / "val" / "c.png", seed=2)
    with pytest.raises(
        ThoradError, match=r"1 images are among those to train on .* to validate on: .*/b\.png and .*/c\.png"
    ):
        open_images(tmp_path / "train", tmp_path / "val", RECIPE)


def test_the_real_splits_share_no_subject(shared_data: Path) -> None:
    training, validating = open_images(shared_data / "ixi" / "train", shared_data / "ixi" / "val", RECIPE)
    assert (len(training), len(validating)) == (465, 58)


class Stream(IterableDataset[Any]):
    """A data set without a length."""

    def __iter__(self) -> Iterator[object]:
        yield picture(0)


def test_pictures_that_do_not_fit_in_memory_are_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for index in range(3):
        scan(tmp_path / "train" / f"{index}.png", index)
    whole, _ = open_images(tmp_path / "train", None, RECIPE)
    monkeypatch.setattr(data, "KEPT_BYTES", 2 * 16 * 16 * 4)
    images, _ = open_images(tmp_path / "train", None, RECIPE)
    for index in range(3):
        assert torch.equal(images[index], whole[index])
    assert images[1] is images[1]
    assert images[2] is not images[2]


def test_volumes_and_dicom_pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Slices of the recipe's range, which stay in memory; a picture in DICOM as any other."""
    volume = head()
    registered: list[Volume] = []
    monkeypatch.setattr(slices, "register", lambda volume, *, skull: registered.append(volume) or in_place(volume))
    monkeypatch.setattr(data, "KEPT_BYTES", 0)
    write_nifti(tmp_path / "in" / "sub-1.nii.gz", volume.voxels, volume, "")
    save(base(DX, "DX", blob()[:, :, 0]), tmp_path / "in" / "hand.dcm")
    region = VolumeSection(template="mni152-2009a", axial_slices=(94, 96))
    images, _ = open_images(tmp_path / "in", None, Recipe(name="any", image=ImageSection(size=16), volume=region))
    assert len(images) == 4
    cut = cut_axial(volume, in_place(volume).to_template, [94, 95, 96])
    for _ in range(2):
        for index, pixels in enumerate(cut):
            torch.testing.assert_close(images[index], to_model_input(pixels, 16)[0])
        assert torch.equal(images[3], to_model_input(read_picture(tmp_path / "in" / "hand.dcm").pixels, 16)[0])
    assert len(registered) == 1
    with pytest.raises(ThoradError, match=r"sub-1\.nii\.gz: a volume, but the model is for pictures"):
        open_images(tmp_path / "in", None, RECIPE)


def test_one_series_in_two_splits(tmp_path: Path) -> None:
    for part in ("train", "val"):
        save(base(DX, "DX", blob()[:, :, 0]), tmp_path / part / f"{part}.dcm")
    with pytest.raises(ThoradError, match="1 subjects appear in both"):
        open_images(tmp_path / "train", tmp_path / "val", RECIPE)


@pytest.mark.parametrize(
    "item",
    [
        picture(0),
        picture(0)[None],
        torch.from_numpy(picture(0).astype(np.float32)),
        MetaTensor(picture(0).astype(np.float32)[None]),  # type: ignore[no-untyped-call]
        {"image": torch.from_numpy(picture(0).astype(np.float32))[None], "label": 0},
        (picture(0), 0),
        ({"image": picture(0)}, "path.png"),
        [torch.from_numpy(picture(0).astype(np.float32))],
    ],
    ids=["array", "with channel", "tensor", "MetaTensor", "mapping", "tuple", "mapping in a tuple", "list"],
)
def test_items_of_a_data_set(item: object) -> None:
    """Scaled and resized as files are."""
    images, _ = open_images(Items(item), None, RECIPE)
    torch.testing.assert_close(images[0], to_model_input(picture(0), 16)[0])


@pytest.mark.parametrize(
    ("dataset", "message"),
    [
        (Items(), "train: the Items is empty"),
        (Items({"scan": picture(0)}), r"train, item 0: has the keys \['scan'\], expected one of them to be 'image'"),
        (Items(np.zeros((3, 20, 20))), "train, item 0.*shape"),
        (Items(np.zeros((20, 20))), "train, item 0.*constant"),
        (Items("sub-1.png"), "train, item 0"),
        (Items(None), "train, item 0"),
        (Stream(), "train: found Stream, expected a folder, .* a torch Dataset with a length"),
        (3, "found int, expected"),
    ],
)
def test_a_data_set_that_is_none(dataset: Any, message: str) -> None:
    with pytest.raises(ThoradError, match=message):
        open_images(dataset, None, RECIPE)


def test_a_later_item_that_is_no_image_is_named() -> None:
    images, _ = open_images(Items(picture(0), np.full((20, 20), np.nan)), None, RECIPE)
    with pytest.raises(ThoradError, match=r"train, item 1.*NaN"):
        images[1]


def test_only_some_of_a_data_set_are_validated_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data, "MOST_VALIDATED", 2)
    images, validating = open_images(Items(picture(0)), Items(*map(picture, range(3))), RECIPE)
    assert (len(images), len(validating)) == (1, 2)
    torch.testing.assert_close(validating[1], to_model_input(picture(1), 16)[0])


def test_mean_and_deviation() -> None:
    images = torch.rand(7, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    images[:, :, 0, 0] = 0.3  # the same everywhere: no deviation
    mean, deviation = mean_and_deviation(images)
    torch.testing.assert_close(mean, (images * 2 - 1).mean(0))
    torch.testing.assert_close(deviation, (images * 2 - 1).std(0, correction=0), atol=1e-6, rtol=1e-5)


def test_processes_share_out_each_step_and_a_resumed_training_goes_on() -> None:
    training = TrainingSection(batch_size=4, seed=1, steps=6)
    whole = list(StepBatches(training, 10))
    assert len(whole) == 6
    assert sorted([index for batch in whole for index in batch][:10]) == list(range(10))  # each once
    half = training.model_copy(update={"batch_size": 2})
    halves = [list(StepBatches(half, 10, process=process, processes=2)) for process in (0, 1)]
    assert [first + second for first, second in zip(*halves, strict=True)] == whole
    resumed = StepBatches(training, 10, first_step=2)
    assert list(resumed) == whole[2:]
    assert len(resumed) == 6  # Lightning counts the steps before


def test_workers_read_the_same_images(tmp_path: Path) -> None:
    images = torch.rand(5, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    trainer = lightning.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    batches: list[list[torch.Tensor]] = []
    recipe = RECIPE.model_copy(update={"training": RECIPE.training.model_copy(update={"steps": 3, "batch_size": 2})})
    for workers in (0, 1):
        module = TrainingData(recipe, images, workers=workers)
        module.trainer = trainer
        batches.append(list(module.train_dataloader()))
    assert [batch.shape for batch in batches[0]] == [(2, 1, 16, 16)] * 3
    for own, ahead in zip(*batches, strict=True):
        assert torch.equal(own, ahead)
