"""Whether a picture is of the model's kind: the arithmetic on known distributions, the rates on real images."""

import io
import json
import logging
import math
import re
import shutil
import time
import zipfile
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from pathlib import Path

import nibabel
import numpy as np
import PIL.Image
import pytest
import torch
from numpy.typing import NDArray
from scipy import ndimage

from thorad.apps.calibrate import calibrate_files, save_calibration
from thorad.check import RefusedError
from thorad.detector import Detector
from thorad.domain.likeness import SIDE, Likeness, _top, area_matrix
from thorad.domain.pictures import FEWEST_IMAGES, PictureDomain, conformal_threshold, fit_domain
from thorad.errors import ThoradError
from thorad.io.images import Image, image_from_array, read_image, write_png8
from thorad.io.intensity import scale
from thorad.io.preprocess import to_model_input
from thorad.io.scans import find_scans
from thorad.io.tags import ScanTags
from thorad.io.template import cut_axial, cut_template
from thorad.io.volumes import read_volume
from thorad.model import CALIBRATION, DOMAIN, bundled_models, load_model, load_recipe_of, model_folder
from thorad.recipe import DomainSection, Recipe, TrainingSection
from thorad.training.domain import learn_domain
from thorad.training.fit import fit

Pixels = NDArray[np.float32]
EVERYWHERE = np.ones((SIDE, SIDE), np.bool_)


@pytest.fixture(scope="module")
def brain() -> Detector:
    return Detector("brain-t1-compact", method="zscore")


@pytest.fixture(scope="module")
def hand() -> Detector:
    return Detector("hand-xray64", method="thor")  # the z-score warns of images that aren't aligned


def likeness(mean: float = 0.0) -> Likeness:
    """Variances 4 and 9 along the first two features, 0.25 along all others."""
    flat = np.zeros((SIDE, SIDE))
    components = np.eye(SIDE * SIDE)[:2]
    return Likeness(np.full(SIDE * SIDE, mean), components, np.array([4, 9, 0.25]), flat, flat, {}, {}, EVERYWHERE)


def test_distance_is_mahalanobis_of_a_known_gaussian() -> None:
    x = np.zeros((3, SIDE * SIDE))
    x[0, :4] = 2, 3, 0.5, -1
    x[2] = 0.5
    expected = [math.sqrt((1 + 1 + 1 + 4) / SIDE**2), 0, math.sqrt((1 / 16 + 1 / 36 + (SIDE**2 - 2)) / SIDE**2)]
    np.testing.assert_allclose(likeness()._distances(x.reshape(3, SIDE, SIDE)), expected, rtol=1e-12)
    np.testing.assert_allclose(likeness(5.0)._distances(x.reshape(3, SIDE, SIDE) + 5), expected, rtol=1e-12)


def test_distances_of_a_gaussian_s_own_samples_are_one_on_average(rng: np.random.Generator) -> None:
    scales = np.full(SIDE * SIDE, 0.5)
    scales[:2] = 2, 3
    samples = (rng.standard_normal((200, SIDE * SIDE)) * scales).reshape(200, SIDE, SIDE)
    assert np.mean(likeness()._distances(samples) ** 2) == pytest.approx(1, abs=0.02)


def test_conformal_threshold_is_the_right_rank() -> None:
    scores = list(range(1, 100))  # 99 of them
    assert conformal_threshold(scores, 0.05) == 95
    assert conformal_threshold(scores[::-1], 0.01) == 99
    assert conformal_threshold(scores, 0.009) == math.inf


@pytest.mark.parametrize("n", [99, 150])
def test_conformal_threshold_covers(n: int, rng: np.random.Generator) -> None:
    """Exchangeable scores of any distribution are above it at most as often as was said, and hardly less often."""
    level, repeats = 0.05, 4000
    scores = rng.lognormal(size=(repeats, n + 1))
    above = np.mean([row[-1] > conformal_threshold(row[:-1], level) for row in scores])
    deviation = math.sqrt(level * (1 - level) / repeats)
    assert level - 1 / (n + 1) - 3 * deviation < above < level + 3 * deviation


@pytest.mark.parametrize(("size", "to"), [(128, 64), (64, 64), (96, 64), (32, 64), (17, 32)])
def testarea_matrix_keeps_the_mean(size: int, to: int, rng: np.random.Generator) -> None:
    matrix = area_matrix(size, to)
    np.testing.assert_allclose(matrix.sum(1), 1)
    row = rng.random(size)
    assert (matrix @ row).mean() == pytest.approx(row.mean())
    if size % to == 0:
        np.testing.assert_allclose(matrix @ row, row.reshape(to, -1).mean(1))


def blobs(count: int, seed: int, size: int = 32) -> Pixels:
    """A disc with a bright spot above its middle, each a little elsewhere."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[-1 : 1 : size * 1j, -1 : 1 : size * 1j]
    made = []
    for shift in rng.normal(0, 0.03, (count, 2)):
        disc = np.hypot(x - shift[0], y - shift[1]) < 0.7
        spot = np.exp(-((x - shift[0]) ** 2 + (y + 0.35 - shift[1]) ** 2) / 0.02)
        made.append(0.5 * disc + 0.5 * spot + 0.02 * rng.random((size, size)))
    return np.stack(made).astype(np.float32).clip(0, 1)


@pytest.fixture(scope="module")
def learned() -> PictureDomain:
    pictures = blobs(60, 0)
    lower = {10: pictures[0].T, 20: pictures[0, ::-1], 30: pictures[0].T[:, ::-1]}
    found = fit_domain(pictures, blobs(60, 1)[None], np.ones((32, 32), bool), t1w=False, lower=lower)
    assert found is not None
    return found


def test_what_was_learned_is_kept_to_the_last_digits(learned: PictureDomain) -> None:
    again = PictureDomain.from_bytes(learned.to_bytes(), "again")
    for picture in (*blobs(2, 2), blobs(1, 3)[0, ::-1]):
        founds = [domain.likeness.strangeness(picture) for domain in (learned, again)]
        one, other = ({**vars(found), **vars(found.lying)} for found in founds)
        del one["lying"]
        assert {key: value for key, value in one.items() if isinstance(value, str)}.items() <= other.items()
        for key, value in one.items():
            if not isinstance(value, str):
                assert other[key] == pytest.approx(value, rel=0.01, abs=0.01), key
    assert {test: learned.thresholds(test) for test in learned.healthy} == {
        test: again.thresholds(test) for test in again.healthy
    }


def test_the_slice_that_a_picture_resembles_most_is_told(learned: PictureDomain) -> None:
    new = blobs(1, 7)[0]
    found = {"top": new, "left": new.T, "bottom": new[::-1], "right": new.T[:, ::-1]}
    strange = {name: learned.likeness.strangeness(picture) for name, picture in found.items()}
    assert {name: found.lower_mm for name, found in strange.items()} | {"top": 0} == {
        **{"top": 0, "left": 0, "bottom": 20, "right": 30}
    }, "the nearest one says nothing"
    assert strange["left"].lower == 0
    assert strange["top"].lower < 0.2
    assert min(strange["bottom"].lower, strange["right"].lower) > 0.7


def test_its_own_kind_passes_and_others_do_not(learned: PictureDomain) -> None:
    section = DomainSection(picture="a disc with a spot at its top")
    new = blobs(100, 7)
    assert sum(learned.check(each, section, "m").status == "ok" for each in new) >= 95
    for name, other in {"flipped": new[0, ::-1], "turned": new[0].T, "noise": np.random.rand(32, 32)}.items():
        check = learned.check(other, section, "m")
        assert check.status == "refused", name
        assert "model 'm'" in check.message
        assert check.message.endswith("expected a disc with a spot at its top")


def test_too_few_images_teach_nothing() -> None:
    recipe = Recipe.model_validate({"name": "x", "image": {"size": 32}})
    images = [torch.from_numpy(each)[None] for each in blobs(FEWEST_IMAGES, 0)]
    assert learn_domain(images[:-1], recipe) is None
    found = learn_domain(images, recipe)
    assert found is not None
    assert found.to_bytes() == learn_domain(images, recipe).to_bytes()  # type: ignore[union-attr]  # same on every run
    assert len(found.healthy["distance"]) == FEWEST_IMAGES * 4


def test_training_and_calibration_write_it(
    tmp_path: Path, tiny_model: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    lightning = logging.getLogger("lightning.pytorch")
    monkeypatch.setattr(lightning, "handlers", [caplog.handler])
    healthy = tmp_path / "healthy"
    healthy.mkdir()
    for number, picture in enumerate(blobs(FEWEST_IMAGES, 0)):
        write_png8(healthy / f"{number:02d}.png", picture)
    recipe = load_recipe_of(tiny_model).model_copy(update={"training": TrainingSection(steps=1, batch_size=2)})
    trained = fit(recipe, healthy, tmp_path / "training", accelerator="cpu", devices=1, progress_bar=False)
    content = (trained / DOMAIN).read_bytes()
    assert lightning.isEnabledFor(logging.INFO)
    assert "weights_only" not in caplog.text  # Lightning's notice where a caller leaves it open
    assert Detector(trained, method="zscore").check(blobs(1, 0)[0]).status == "ok"

    calibration = json.loads((trained / CALIBRATION).read_text())
    assert len(calibration.pop("trained_on")) == FEWEST_IMAGES  # or it would not be calibrated on them
    (trained / CALIBRATION).write_text(json.dumps(calibration))
    old = Path(shutil.copytree(trained, tmp_path / "old"))
    (old / DOMAIN).unlink()
    scans = find_scans([healthy])
    summary = calibrate_files(Detector(old, method="zscore"), scans)
    save_calibration(summary.calibration, old, tmp_path / "calibrated", picture_domain=summary.picture_domain)
    assert (tmp_path / "calibrated" / DOMAIN).read_bytes() == content  # of the same images
    assert not (old / DOMAIN).exists()

    summary = calibrate_files(Detector(trained, method="zscore"), scans)
    assert summary.picture_domain is None  # what the training saw counts
    save_calibration(summary.calibration, trained, tmp_path / "copied", picture_domain=summary.picture_domain)
    assert (tmp_path / "copied" / DOMAIN).read_bytes() == content


def test_a_damaged_file_is_named(tmp_path: Path, learned: PictureDomain) -> None:
    folder = Path(shutil.copytree(model_folder("brain-t1-compact"), tmp_path / "model"))
    flat = PictureDomain(replace(learned.likeness, mean=np.zeros(7)), learned.healthy).to_bytes()
    for content in (b"", b"no tensors", (folder / DOMAIN).read_bytes()[:-100], flat):
        (folder / DOMAIN).write_bytes(content)
        with pytest.raises(ThoradError, match=r"domain\.safetensors: damaged"):
            load_model(folder)


def test_models_without_the_file_judge_tags_alone(tmp_path: Path, brain: Detector) -> None:
    folder = Path(shutil.copytree(model_folder("brain-t1-compact"), tmp_path / "model"))
    (folder / DOMAIN).unlink()
    old = Detector(folder, method="zscore")
    assert old.model.picture_domain is None
    picture = image_from_array(np.random.default_rng(0).random((128, 128)))
    assert old.check(picture).status == "ok"
    assert brain.check(picture).status == "refused"
    assert old.check(replace(picture, tags=ScanTags(modality="CT"))).status == "refused"
    assert old.provenance() == brain.provenance()  # so calibrations of one hold for the other


def test_what_is_refused_is_not_detected_unless_forced(brain: Detector) -> None:
    picture = np.random.default_rng(0).random((128, 128)).astype(np.float32)
    with pytest.raises(RefusedError, match=r"refused: this does not look like .* expected an axial T1w slice"):
        brain.detect(picture)
    forced = Detector("brain-t1-compact", method="zscore", force=True).detect(picture)
    assert forced.check.status == "refused"


def test_both_kinds_of_reasons_are_given(brain: Detector) -> None:
    picture = image_from_array(np.random.default_rng(0).random((128, 128)))
    check = brain.check(replace(picture, tags=ScanTags(modality="CT", contrast_agent=True)))
    assert len(check.refusals) == 2
    assert "modality CT" in check.message
    assert "contrast agent" in check.message


@pytest.mark.parametrize("name", bundled_models())
def test_bundled_models_know_their_pictures(name: str) -> None:
    folder = model_folder(name)
    assert (folder / DOMAIN).stat().st_size < 340_000
    assert load_model(name).picture_domain is not None


def test_a_check_takes_milliseconds(brain: Detector) -> None:
    image = image_from_array(np.random.default_rng(0).random((233, 197)))
    brain.check(image)
    began = time.process_time()
    for _ in range(20):
        brain.check(image)
    assert (time.process_time() - began) / 20 < 0.02  # 3 ms on an idle core


def rates(detector: Detector, images: Sequence[Image]) -> Counter[str]:
    return Counter(detector.check(image).status for image in images)


def pictures(folder: Path, every: int = 1) -> list[Image]:
    return [read_image(path) for path in sorted(folder.glob("*.png"))[::every]]


def changed(images: Sequence[Image], change: Callable[[Pixels], Pixels]) -> list[Image]:
    return [image_from_array(np.ascontiguousarray(change(image.pixels))) for image in images]


def test_healthy_and_sick_heads_of_other_scanners_pass(brain: Detector, shared_data: Path) -> None:
    for name, most in (("ixi/val", 0), ("stroke-bench/healthy", 1), ("stroke-bench/images", 3), ("gliomas/images", 2)):
        images = pictures(shared_data / name)
        found = rates(brain, images)
        assert found["refused"] == 0, name
        assert found["warned"] <= most, name


def test_brightness_contrast_and_sharpness_do_not_matter(brain: Detector, shared_data: Path) -> None:
    val = pictures(shared_data / "ixi/val", every=4)
    changes: tuple[Callable[[Pixels], Pixels], ...] = (
        np.sqrt,
        np.square,
        lambda x: 0.1 * x,
        lambda x: x + 0.1 * x.max(),
    )
    for change in changes:
        assert rates(brain, changed(val, change))["ok"] == len(val)


def test_the_bundled_head_passes(brain: Detector) -> None:
    sample = Path(str(model_folder("brain-t1-compact"))).parents[1] / "samples" / "head.png"
    assert brain.check(read_image(sample)).status == "ok"


def test_other_images_are_refused(brain: Detector, shared_data: Path) -> None:
    val = pictures(shared_data / "ixi/val", every=4)
    changes: dict[str, Callable[[Pixels], Pixels]] = {
        "upside down": lambda x: x[::-1],
        "turned by 180 degrees": lambda x: x[::-1, ::-1],
        "on its side": np.rot90,
        "tiny": lambda x: np.pad(x, 300),
        "enlarged": lambda x: x[40:-40, 35:-35],
        "negative": lambda x: x.max() - x,
        "noise": lambda x: np.random.default_rng(0).random(x.shape).astype(np.float32),
    }
    for name, change in changes.items():
        assert rates(brain, changed(val, change))["refused"] == len(val), name
    assert "turned by 180 degrees" in brain.check(changed(val[:1], lambda x: x[::-1])[0]).message
    wrists = pictures(shared_data / "wrist")
    assert rates(brain, wrists)["refused"] == len(wrists)
    assert all("as of another view, slice or body part" in brain.check(wrist).message for wrist in wrists)


def moved(turn: float = 0, size: float = 1, down: float = 0, right: float = 0) -> Callable[[Pixels], Pixels]:
    """Turned clockwise by degrees, enlarged, moved by px, in a square frame."""

    def change(pixels: Pixels) -> Pixels:
        side, (cosine, sine) = max(pixels.shape), (np.cos(np.deg2rad(turn)), np.sin(np.deg2rad(turn)))
        square = np.pad(pixels, [((side - each) // 2, side - each - (side - each) // 2) for each in pixels.shape])
        middle, matrix = (side - 1) / 2, np.array([[cosine, -sine], [sine, cosine]]) / size
        found = ndimage.affine_transform(square, matrix, middle - matrix @ [middle + down, middle + right], order=1)
        return np.asarray(found, np.float32)

    return change


def test_moved_turns_clockwise() -> None:
    dot = np.zeros((33, 33), np.float32)
    dot[4, 16] = 1
    assert np.unravel_index(moved(turn=90)(dot).argmax(), dot.shape) == (16, 28), "from the top to the right"


def test_the_top_lies_between_px() -> None:
    x = np.arange(9.0)
    assert _top(5 - (x - 3.3) ** 2) == pytest.approx(3.3)
    assert _top(x) == 8
    assert _top(-x) == 0


@pytest.mark.parametrize("degrees", [20, 25, -20, -40])
def test_turned_heads_are_refused_and_told_by_how_much(brain: Detector, shared_data: Path, degrees: int) -> None:
    """On them the critic has findings in nearly all; upright in one in five."""
    heads = pictures(shared_data / "ixi/val", every=6)
    if abs(degrees) >= 25:  # the bench's heads are themselves turned a little
        heads += pictures(shared_data / "stroke-bench/healthy", every=6)
    for check in map(brain.check, changed(heads, moved(turn=degrees))):
        assert check.status == "refused"
        found = re.search(r"turned by (\d+) degrees (\w+).*(: correct that first|, or it is a)", check.message)
        assert found is not None, check.message
        assert abs(int(found[1]) - abs(degrees)) <= 7
        assert found[2] == ("clockwise" if degrees > 0 else "anticlockwise")


@pytest.mark.parametrize("degrees", [6, -6])
def test_heads_turned_a_little_pass(brain: Detector, shared_data: Path, degrees: int) -> None:
    heads = pictures(shared_data / "ixi/val", every=6) + pictures(shared_data / "stroke-bench/healthy", every=6)
    assert rates(brain, changed(heads, moved(turn=degrees)))["ok"] == len(heads)


def head_of(pixels: Pixels) -> NDArray[np.bool_]:
    found = ndimage.binary_fill_holes(ndimage.gaussian_filter(pixels, 1) > 0.08 * np.percentile(pixels, 98))
    return np.asarray(found)


def on_grey(pixels: Pixels) -> Pixels:
    return np.where(head_of(pixels), pixels, 0.4 * np.percentile(pixels, 98)).astype(np.float32)


def to_its_box(pixels: Pixels) -> Pixels:
    labels, _ = ndimage.label(head_of(pixels))
    head = int(np.argmax(np.bincount(labels.ravel())[1:])) + 1
    return pixels[ndimage.find_objects(labels)[head - 1]]


def stripped(pixels: Pixels) -> Pixels:
    return pixels * ndimage.binary_erosion(head_of(pixels), iterations=12).astype(np.float32)


@pytest.mark.parametrize(
    ("change", "statuses", "reason"),
    [
        (on_grey, {"refused"}, "it has no dark background: it is grey"),
        (lambda x: x.max() - x, {"refused"}, "grey, a negative"),
        (to_its_box, {"warned"}, r"1\.1 times as large in its frame \(as when its margin is cut off|larger or smaller"),
        (moved(size=0.7), {"refused"}, r"it is .*0\.7 times as large in its frame"),
        (moved(size=1.4), {"refused"}, r"it is .*1\.[46] times.* as large in its frame"),
        (moved(right=20), {"refused", "warned"}, r"moved to the right by ([789]|10) % of the frame"),
        (moved(down=-20), {"refused", "warned"}, r"moved up by ([789]|10) % of the frame"),
        (stripped, {"warned", "ok"}, "the skull missing|as the skull|without the skull"),
    ],
)
def test_the_reason_is_the_cause(
    brain: Detector, shared_data: Path, change: Callable[[Pixels], Pixels], statuses: set[str], reason: str
) -> None:
    checks = [brain.check(each) for each in changed(pictures(shared_data / "ixi/val", every=6), change)]
    assert {check.status for check in checks} <= statuses
    told = [check.message for check in checks if check.reasons]
    assert len(told) >= 0.9 * len(checks)
    assert all(re.search(reason, message) for message in told), told


@pytest.mark.parametrize(("side", "status"), [(8, "refused"), (47, "refused"), (48, "ok")])
def test_small_pictures_are_refused(brain: Detector, side: int, status: str) -> None:
    sample = Path(str(model_folder("brain-t1-compact"))).parents[1] / "samples" / "head.png"
    square = moved()(read_image(sample).pixels)
    small = np.asarray(PIL.Image.fromarray(square).resize((side, side), PIL.Image.Resampling.BOX))
    check = brain.check(image_from_array(small))
    assert check.status == status
    if status == "refused":
        assert check.message.startswith(f"it is too small, {side} x {side} px")
        assert "expected 48 px or more along the longer side" in check.message


def test_models_of_earlier_versions_go_without_the_newer_tests(brain: Detector) -> None:
    domain = brain.model.picture_domain
    assert domain is not None
    kept = {"distance", "misfit", "pose", "contrast"}
    older = replace(domain, healthy={test: domain.healthy[test] for test in kept})
    again = PictureDomain.from_bytes(older.to_bytes(), "older")
    assert again.healthy.keys() == kept < domain.healthy.keys()
    noise = np.random.default_rng(0).random((128, 128))
    assert again.check(noise, DomainSection(), "m").status == "refused"


def seen(pixels: Pixels) -> Pixels:
    picture: Pixels = to_model_input(pixels, 128)[0][0].numpy()
    return picture


def test_the_template_s_own_slices_say_how_low_they_are(brain: Detector) -> None:
    domain = brain.model.picture_domain
    assert domain is not None
    low = (15, 30, 45, 60)
    found = [domain.likeness.strangeness(seen(one)) for one in cut_template([95 - mm for mm in (*low, -5, 0, 5, 10)])]
    assert tuple(each.lower_mm for each in found[:4]) == low
    assert min(each.lower for each in found[:4]) > 2 * max(each.lower for each in found[4:])


def test_slices_too_low_are_refused_and_told_by_how_much(brain: Detector, shared_data: Path) -> None:
    """On them half of the region may be marked, as if it were a finding. Colin27's space is nearly the template's."""
    head = read_volume(shared_data / "volumes/colin27_t1_1mm.nii.gz")
    for mm in (15, 20, 30, 40):
        check = brain.check(cut_axial(head, np.eye(4), [95 - mm])[0])
        assert check.status == "refused", mm
        found = re.search(r"most like one about (\d+) mm lower in the head: take the right one", check.message)
        assert found is not None, check.message
        assert abs(int(found[1]) - mm) <= 5
    for mm in (-5, 0, 5):
        assert brain.check(cut_axial(head, np.eye(4), [95 - mm])[0]).status == "ok", mm


def test_a_sick_slice_on_the_edge_is_warned_of_not_refused(brain: Detector, shared_data: Path) -> None:
    """It lies some 12 mm too low; with one more lesion it resembles the slice 15 mm lower as much as that at 10 mm."""
    pixels = read_image(shared_data / "gliomas/images/TCGA_CS_6290_20000917_11.png").pixels
    y, x = np.mgrid[0 : 1 : pixels.shape[0] * 1j, 0 : 1 : pixels.shape[1] * 1j]
    inside = (np.hypot((y - 0.52) / 0.14, (x - 0.32) / 0.1) < 1).astype(np.float32)
    share = ndimage.gaussian_filter(inside, 2) * (pixels > 15)
    check = brain.check(image_from_array(pixels * (1 - share) + 90 * share))
    assert check.status == "warned"
    assert "about 15 mm lower in the head" in check.message


def test_slices_too_high_are_refused_and_told_that_they_may_be(brain: Detector, shared_data: Path) -> None:
    head = read_volume(shared_data / "volumes/colin27_t1_1mm.nii.gz")
    for mm in (20, 25, 40, 45, 50):
        check = brain.check(cut_axial(head, np.eye(4), [95 + mm])[0])
        assert check.status == "refused", mm
        assert "a slice higher in the head" in check.message, check.message


@pytest.mark.parametrize("change", [{}, {"size": 0.85}, {"size": 1.15}, {"right": 12, "down": -8}])
def test_flair_is_refused_by_its_name_wherever_it_lies(
    brain: Detector, shared_data: Path, change: dict[str, float]
) -> None:
    volume = read_volume(shared_data / "heads/not_heads/flair20.nii.gz")
    voxels = nibabel.as_closest_canonical(nibabel.Nifti1Image(volume.voxels, volume.affine)).get_fdata()
    for height in (0.62, 0.65):
        pixels = voxels[:, :, int(height * voxels.shape[2])].T[::-1].astype(np.float32)
        rows, columns = (np.flatnonzero(head_of(pixels).any(axis)) for axis in (1, 0))
        middle = (rows[0] + rows[-1]) // 2 + 150, (columns[0] + columns[-1]) // 2 + 150
        framed = np.pad(pixels, 150)[middle[0] - 116 : middle[0] + 117, middle[1] - 98 : middle[1] + 99]
        check = brain.check(moved(**change)(framed))
        assert check.status == "refused", height
        assert re.search("its contrasts are nearer to (CT or )?FLAIR", check.message), check.message


def test_masks_and_blank_ellipses_are_refused(brain: Detector, hand: Detector) -> None:
    y, x = np.mgrid[:233, :197]
    ellipse = np.hypot((y - 80) / 30, (x - 60) / 20) < 1
    for detector in (brain, hand):
        for mask in (ellipse, 255 * ellipse.astype(np.uint8), ellipse + 0.5):
            assert detector.check(mask.astype(np.float32)).message.startswith("it has 2 values only, as a mask or segm")
    grey = ellipse * (0.6 + 0.1 * np.random.default_rng(0).standard_normal(ellipse.shape))
    assert brain.check(grey.clip(0)).status == "refused"
    small = (np.hypot(y - 80, x - 60) < 5).astype(np.float32)
    assert brain.check(small).message.startswith("it has 2 values only")
    with pytest.raises(ThoradError, match=r"nearly empty: .* Is it a mask\?"):
        scale(small)


@pytest.mark.parametrize(
    ("levels", "status"), [(3, "refused"), (10, "refused"), (15, "refused"), (16, "ok"), (64, "ok")]
)
def test_segmentations_are_told_from_scans_of_few_grey_levels(brain: Detector, levels: int, status: str) -> None:
    head = read_image(Path(str(model_folder("brain-t1-compact"))).parents[1] / "samples" / "head.png")
    check = brain.check(image_from_array(np.floor(head.scaled * (levels - 0.01)) * 17))
    assert check.status == status
    assert check.message == (
        f"it has {levels} values only, as a mask or segmentation has: expected a scan" if status == "refused" else ""
    )


def test_mirrored_heads_cannot_be_told(brain: Detector, shared_data: Path) -> None:
    val = pictures(shared_data / "ixi/val", every=4)
    assert rates(brain, changed(val, lambda x: x[:, ::-1]))["ok"] == len(val)


def test_hands_and_heads_are_told_apart(brain: Detector, hand: Detector, shared_data: Path) -> None:
    with zipfile.ZipFile(shared_data / "hand-xray64.zip") as archive:
        names = sorted(name for name in archive.namelist() if name.startswith("test/") and name.endswith(".jpeg"))
        hands = [image_from_array(np.asarray(PIL.Image.open(io.BytesIO(archive.read(name))))) for name in names]
    assert rates(hand, hands)["ok"] >= 0.97 * len(hands)
    assert rates(brain, hands)["refused"] == len(hands)
    assert rates(hand, changed(hands, lambda x: x[::-1]))["ok"] <= 0.06 * len(hands)
    heads = pictures(shared_data / "ixi/val")
    assert rates(hand, heads)["ok"] <= 0.1 * len(heads)


def test_strangeness_has_a_field_for_every_test(learned: PictureDomain) -> None:
    found = learned.likeness.strangeness(blobs(1, 0)[0])
    assert learned.healthy.keys() <= {field.name for field in fields(found)}
