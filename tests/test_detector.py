import hashlib
import importlib
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch
from torch import Tensor

from thorad.detector import Detector
from thorad.diffusion.noise import case_generator
from thorad.errors import ThoradError
from thorad.io.images import Image
from thorad.io.intensity import scale
from thorad.io.preprocess import to_model_input
from thorad.maps.anomaly_map import residual
from thorad.maps.perceptual import BUNDLED_WEIGHTS, load_perceptual_distance
from thorad.maps.zscore import match_quantiles, tolerant_zscores
from thorad.methods import METHODS, Restoration
from thorad.methods.published import (
    PublishedDdpmOptions,
    PublishedMap,
    PublishedThorOptions,
    published_ddpm,
    published_thor,
)
from thorad.model import PERCEPTUAL, build_network, load_model, save_model
from thorad.recipe import Recipe, load_recipe
from thorad.records import Detection, StepPictures
from thorad.selection import comparison, possible_noises


def picture(name: str = "a", height: int = 40, width: int = 30) -> Image:
    generator = np.random.default_rng(list(name.encode()))
    smooth = np.add.outer(np.hanning(height), np.hanning(width)) * 100
    pixels = smooth + generator.random((height, width)) * 20
    return Image(pixels.astype(np.float32), source=f"{name}.png", name=name)


def assert_same(one: Detection, other: Detection, tolerance: float = 1e-5) -> None:
    for field in ("image", "anomaly_map", "pseudo_healthy"):
        np.testing.assert_allclose(getattr(one, field), getattr(other, field), rtol=0, atol=tolerance)
    assert one.score == pytest.approx(other.score, abs=tolerance)


@pytest.fixture
def float32(monkeypatch: pytest.MonkeyPatch) -> None:
    """In bfloat16 a batch may round differently from an image alone, as on a graphics card."""
    monkeypatch.setattr("thorad.diffusion.engine.fast_precision", lambda device: torch.float32)


@pytest.mark.parametrize(
    ("method", "noise"),
    [("thor", "simplex"), ("thor", "gaussian"), ("anoddpm", "simplex"), ("ddpm", "gaussian"), ("zscore", None)],
)
@pytest.mark.parametrize("together", [1, 3])
@pytest.mark.usefixtures("float32")
def test_one_image_is_the_same_in_any_batch_and_order(
    tiny_model: Path, method: str, noise: str | None, together: int
) -> None:
    detector = Detector(tiny_model, method=method, noise=noise, device="cpu")
    detector._together = together  # what an accelerator does
    images = [picture(name) for name in "abcd"]
    forth = {found.name: found for found in detector.detect_batch(images)}
    back = {found.name: found for found in detector.detect_batch(images[::-1])}
    assert list(forth) == ["a", "b", "c", "d"]
    assert list(back) == ["d", "c", "b", "a"]
    for image in images:
        alone = detector.detect(image)
        assert_same(alone, forth[image.name])
        assert_same(alone, back[image.name])
    if noise:
        assert np.abs(forth["a"].anomaly_map - forth["b"].anomaly_map).max() > 1e-3


def test_on_a_cpu_the_number_of_threads_does_not_change_a_bit(tiny_model: Path) -> None:
    images = [picture(name) for name in "abc"]
    before = torch.get_num_threads()
    found = []
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            found.append(list(Detector(tiny_model, device="cpu").detect_batch(images)))
            assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    for one, other in zip(*found, strict=True):
        assert_same(one, other, tolerance=0)


def test_on_a_cpu_the_batch_size_does_not_change_a_bit(tiny_model: Path) -> None:
    images = [picture(name) for name in "ab"]
    first, second = (list(Detector(tiny_model, device="cpu", batch_size=size).detect_batch(images)) for size in (1, 16))
    for one, other in zip(first, second, strict=True):
        assert_same(one, other, tolerance=0)


@pytest.mark.parametrize(("height", "width"), [(32, 32), (40, 30), (31, 77), (9, 50), (200, 11)])
def test_everything_lies_on_the_images_own_grid(tiny_model: Path, height: int, width: int) -> None:
    image = picture("x", height, width)
    found = Detector(tiny_model, method="anoddpm", device="cpu", steps=2).detect(image)
    for pixels in (found.image, found.anomaly_map, found.pseudo_healthy):
        assert pixels.shape == (height, width)
        assert pixels.dtype == np.float32
        assert np.isfinite(pixels).all()
    np.testing.assert_array_equal(found.image, scale(image.pixels))
    assert found.anomaly_map.min() >= 0
    assert 0 <= found.pseudo_healthy.min() <= found.pseudo_healthy.max() <= 1
    assert (found.name, found.source, found.network_calls) == ("x", "x.png", 2 * 2)


def test_the_zscore_is_the_one_of_the_models_statistics(tiny_model: Path) -> None:
    """The fixture's deviation is 0.2 on the [-1, 1] scale, everywhere."""
    image = picture("x", 32, 32)
    model = load_model(tiny_model)
    assert model.mean is not None
    mean, region = (model.mean + 1) / 2, torch.ones(32, 32, dtype=torch.bool)
    matched = match_quantiles(to_model_input(image.pixels, 32)[0][None], mean, region)
    darker, brighter = tolerant_zscores(matched, mean, torch.full_like(mean, 0.1), tolerance=1, blur_sigma=1.0)
    one = Detector(tiny_model, method="zscore", device="cpu").detect(image)
    two = Detector(tiny_model, method="zscore-two-sided", device="cpu").detect(image)
    np.testing.assert_allclose(one.anomaly_map, darker[0, 0], atol=1e-5)
    np.testing.assert_allclose(two.anomaly_map, (darker + brighter)[0, 0], atol=1e-5)
    highest = np.sort(one.anomaly_map, axis=None)[-10:]  # 1 % of 1024 pixels
    assert one.score == pytest.approx(highest.mean(), rel=1e-5)
    assert one.network_calls == 0
    np.testing.assert_allclose(one.pseudo_healthy, (model.mean.numpy()[0] + 1) / 2, atol=1e-6)


def test_the_map_is_zero_outside_the_region_and_the_score_is_the_mean_of_its_highest_inside(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    region = np.zeros((32, 32), bool)
    region[8:20, 5:25] = True
    monkeypatch.setattr("thorad.model.load_region", lambda name, size: region)
    detector = Detector(tiny_model, method="zscore-two-sided", device="cpu")
    x, _ = to_model_input(picture("x", 32, 32).pixels, 32)
    maps = detector.model_maps(x[None], ["x"])
    assert maps.shape == (1, 1, 32, 32)
    assert (maps[0, 0].numpy()[~region] == 0).all()
    assert (maps[0, 0].numpy()[region] > 0).mean() > 0.5
    highest = np.sort(maps[0, 0].numpy()[region])[-2:]  # 1 % of 240 pixels
    assert float(detector.scores(maps)) == pytest.approx(highest.mean(), rel=1e-5)
    np.testing.assert_array_equal(detector.detect(picture("x", 32, 32)).judged, region)
    twice = detector.detect(picture("x", 64, 50)).judged  # 7 columns on either side lie outside the picture
    np.testing.assert_array_equal(twice, region.repeat(2, 0).repeat(2, 1)[:, 7:57])
    # What lies outside never counts, however high.
    assert float(detector.scores(maps + 100 * torch.from_numpy(~region))) == float(detector.scores(maps))


def test_noise_comes_from_the_seed_and_the_content(tiny_model: Path) -> None:
    """tests/test_same_image.py has the ways that one content may take."""
    image = picture("x")
    found = Detector(tiny_model, device="cpu", seed=0).detect(image)
    assert_same(found, Detector(tiny_model, device="cpu", seed=0).detect(replace(image, name="y")), tolerance=0)
    other = Detector(tiny_model, device="cpu", seed=1).detect(image)
    assert np.abs(found.anomaly_map - other.anomaly_map).max() > 1e-4


def test_several_draws_are_averaged_and_the_first_is_the_single_one(tiny_model: Path) -> None:
    image = picture("x", 32, 32)
    single, three = (Detector(tiny_model, device="cpu", draws=draws, threshold=0.02) for draws in (1, 3))
    made: list[Restoration] = []
    restore = three._method.restore

    def recorded(*arguments: Any, **options: Any) -> Restoration:
        made.append(restore(*arguments, **options))
        return made[-1]

    three._method = replace(three._method, restore=recorded)
    one, found = single.detect(image), three.detect(image)
    maps = np.stack([each.anomaly_map[0, 0].numpy() for each in made])
    assert len(maps) == 3
    np.testing.assert_array_equal(maps[0], one.anomaly_map)
    assert all(np.abs(maps[i] - maps[j]).max() > 1e-4 for i, j in ((0, 1), (0, 2), (1, 2)))
    np.testing.assert_allclose(found.anomaly_map, maps.mean(0), rtol=1e-5)
    np.testing.assert_allclose(found.spread, maps.std(0, ddof=1), rtol=1e-4, atol=1e-7)
    healthy = np.mean([(each.pseudo_healthy[0, 0].numpy() + 1) / 2 for each in made], axis=0)
    np.testing.assert_allclose(found.pseudo_healthy, healthy, atol=1e-5)
    assert found.network_calls == three.network_calls == 3 * one.network_calls
    masks = maps > 0.02
    np.testing.assert_array_equal(found.draw_masks, masks)
    dice = [2 * (masks[i] & masks[j]).sum() / (masks[i].sum() + masks[j].sum()) for i, j in ((0, 1), (0, 2), (1, 2))]
    assert 0 < np.mean(dice) < 1
    assert found.draw_agreement == pytest.approx(np.mean(dice))
    assert f"draws agree {np.mean(dice):.2f}" in repr(found)
    assert (one.spread, one.draw_masks, one.draw_agreement) == (None, (), None)


def test_a_finer_picture_changes_no_later_draw(tiny_model: Path) -> None:
    """Finishing a chain draws more noise; the next draw's is its own."""
    image = picture("x")
    short, whole = (Detector(tiny_model, device="cpu", finish=finish, steps=10, draws=2) for finish in (False, True))
    np.testing.assert_array_equal(short.detect(image).anomaly_map, whole.detect(image).anomaly_map)


def test_steps_are_those_of_the_first_draw(tiny_model: Path) -> None:
    (one,), (two,) = (
        list(Detector(tiny_model, device="cpu", draws=draws).detect_batch([picture("x")], keep_steps=True))
        for draws in (1, 2)
    )
    assert [step.timestep for step in one.steps] == [step.timestep for step in two.steps]
    for single, first in zip(one.steps, two.steps, strict=True):
        np.testing.assert_array_equal(single.clean, first.clean)


@pytest.mark.parametrize(
    ("method", "draws"),
    [("thor", 2), ("anoddpm", 2), ("ddpm", 2), ("autoddpm", 2), ("thor+", 1), ("zscore", 1), ("published-thor", 1)],
)
def test_draws_by_default(tiny_model: Path, method: str, draws: int) -> None:
    detector = Detector(tiny_model, method=method, device="cpu")
    assert detector.draws == detector.provenance()["draws"] == draws
    assert detector.network_calls == draws * detector.options.network_calls()


def test_thor_plus_tells_the_spread_of_its_own_draws(tiny_model: Path) -> None:
    detector = Detector(tiny_model, method="thor+", device="cpu", threshold=0.3)
    found = detector.detect(picture("x"))
    assert found.spread is not None
    assert found.spread.max() > 0
    assert len(found.draw_masks) == 2, "of either half"
    assert found.draw_agreement is not None


def test_impossible_draws_are_refused(tiny_model: Path) -> None:
    with pytest.raises(ThoradError, match="draws is 0, expected 1 or more"):
        Detector(tiny_model, draws=0)
    with pytest.raises(ThoradError, match=r"draws is 2, expected 1, for the method draws no noise \(method 'zscore'\)"):
        Detector(tiny_model, method="zscore", draws=2)
    assert Detector(tiny_model, method="zscore", draws=1).draws == 1


def test_without_a_threshold_there_is_a_spread_and_no_agreement(tiny_model: Path) -> None:
    found = Detector(tiny_model, device="cpu").detect(picture("x"))
    assert found.spread is not None
    assert found.spread.shape == found.anomaly_map.shape
    assert found.draw_agreement is None


def test_empty_masks_agree(tiny_model: Path) -> None:
    assert Detector(tiny_model, device="cpu", threshold=1e6).detect(picture("x")).draw_agreement == 1.0


def test_finish_changes_the_picture_and_not_the_map(tiny_model: Path) -> None:
    image = picture("x")
    short, whole = (Detector(tiny_model, device="cpu", finish=finish, steps=10) for finish in (False, True))
    assert whole.network_calls > short.network_calls
    one, other = short.detect(image), whole.detect(image)
    np.testing.assert_array_equal(one.anomaly_map, other.anomaly_map)
    assert one.score == other.score
    assert np.abs(one.pseudo_healthy - other.pseudo_healthy).max() > 1e-3


@pytest.mark.parametrize(
    ("method", "noise", "steps", "finish"),
    [("thor", None, None, False), ("thor", "gaussian", 7, True), ("anoddpm", None, 3, False), ("ddpm", None, 5, False)],
)
def test_network_calls_are_what_is_called(
    tiny_model: Path, method: str, noise: str | None, steps: int | None, finish: bool
) -> None:
    detector = Detector(tiny_model, method=method, noise=noise, steps=steps, finish=finish, device="cpu")
    calls = 0

    def count(*_: object) -> None:
        nonlocal calls
        calls += 1

    detector.model.network.register_forward_hook(count)
    assert detector.detect(picture("x")).network_calls == calls == detector.network_calls


def test_all_steps_and_few_steps(tiny_model: Path) -> None:
    """THOR with simplex noise visits 250 ... 50 and calls twice at 200, 150 and 100 (the map needs no more)."""
    assert Detector(tiny_model, device="cpu", steps="all", draws=1).network_calls == 201 + 3
    assert Detector(tiny_model, device="cpu", steps="all", draws=1, finish=True).network_calls == 251 + 4
    assert Detector(tiny_model, device="cpu", steps="all", draws=1, method="ddpm").network_calls == 351
    assert Detector(tiny_model, device="cpu", steps=1, draws=1, method="anoddpm").network_calls == 1


def test_steps_can_be_watched(tiny_model: Path) -> None:
    seen: list[tuple[str, StepPictures]] = []
    detector = Detector(tiny_model, device="cpu", steps=5)
    detector.detect(picture("x"), on_step=lambda name, step: seen.append((name, step)))
    assert [(name, step.timestep) for name, step in seen] == [("x", t) for t in (250, 200, 150, 100, 50)]
    assert [step.anomaly_map is not None for _, step in seen] == [False, True, True, True, True]
    for _, step in seen:
        assert step.image.shape == step.clean.shape == (32, 32)
        np.testing.assert_allclose(step.image, to_model_input(picture("x").pixels, 32)[0][0], atol=1e-6)
    kept = next(iter(detector.detect_batch([picture("x")], keep_steps=True))).steps
    for (_, step), same in zip(seen, kept, strict=True):
        np.testing.assert_array_equal(step.clean, same.clean)


def test_an_array_is_an_image(tiny_model: Path) -> None:
    detector = Detector(tiny_model, method="zscore", device="cpu")
    image = picture("x")
    assert_same(detector.detect(image.pixels), detector.detect(image), tolerance=0)
    # Scale does not matter: the 98th percentile becomes 1.
    assert_same(detector.detect(image.pixels * 7), detector.detect(image), tolerance=1e-5)
    with pytest.raises(ThoradError, match="NaN"):
        detector.detect(np.full((20, 20), np.nan))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "telepathy"}, "unknown method 'telepathy'. Known: critic-only, thor"),
        ({"noise": "pink"}, "unknown noise 'pink'. Known: gaussian, simplex"),
        ({"method": "ddpm", "noise": "simplex"}, "works with gaussian"),
        ({"method": "zscore", "noise": "gaussian"}, "uses no noise"),
        ({"steps": 0}, "steps is 0, expected 'all' or a number from 1 to 250"),
        ({"steps": 251}, "from 1 to 250"),
        ({"noise": "gaussian", "steps": 351}, "from 1 to 350"),
        ({"steps": "some"}, "steps is 'some'"),
        ({"noise_level": 40}, "the noise level is 40, but thor needs 50 or more"),
        ({"method": "ddpm", "noise_level": 0}, "the noise level is 0, expected a timestep of 1 or more"),
        ({"method": "zscore", "settings": {"tolerance": -1}}, "tolerance is -1, expected 0 to 50 px"),
        ({"method": "zscore", "settings": {"blur_sigma": float("nan")}}, "blur_sigma is nan, expected 0 to 50 px"),
        ({"method": "thor+", "settings": {"draws": 0}}, "found draws 0,"),
        ({"method": "zscore", "noise_level": 40}, "uses no noise, but the noise level 40 was given"),
        ({"method": "published-thor", "steps": 10}, "steps is 10, but method 'published-thor' visits all timesteps"),
        ({"engine": "steam"}, "unknown engine 'steam'. Known: torch, openvino"),
        ({"batch_size": 0}, "batch size is 0"),
        ({"device": "abacus"}, "device 'abacus' can't be used"),
        ({"device": "meta:x"}, "device 'meta:x' can't be used"),
        ({"method": "ddpm", "perceptual_weights": Path("x.pth")}, "'ddpm' uses no LPIPS"),
    ],
)
def test_wrong_arguments(tiny_model: Path, options: dict[str, object], message: str) -> None:
    with pytest.raises(ThoradError, match=message):
        Detector(tiny_model, **{"device": "cpu", **options})  # type: ignore[arg-type]


def test_a_model_trained_on_less_noise_is_refused(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = load_model(tiny_model).recipe
    below = recipe.model_copy(update={"noise": recipe.noise.model_copy(update={"train_below": 200})})
    monkeypatch.setattr("thorad.model.parse_recipe", lambda text, source, written_out: below)
    with pytest.raises(ThoradError, match="was trained below timestep 200; thor starts at 250"):
        Detector(tiny_model, device="cpu")


@pytest.mark.parametrize(
    ("options", "trained", "told"),
    [
        ({"method": "autoddpm", "settings": {"restart_at": 300}}, (0, 250), "timestep 300.*from 0 to 249"),
        ({"method": "thor", "steps": "all", "finish": True}, (50, 500), "timestep 49.*from 50 to 499"),
    ],
)
def test_timesteps_that_were_not_trained_are_refused(
    tiny_model: Path,
    monkeypatch: pytest.MonkeyPatch,
    options: dict[str, Any],
    trained: tuple[int, int],
    told: str,
) -> None:
    recipe = load_model(tiny_model).recipe
    noise = recipe.noise.model_copy(update=dict(zip(("train_from", "train_below"), trained, strict=True)))
    changed = recipe.model_copy(update={"noise": noise})
    monkeypatch.setattr("thorad.model.parse_recipe", lambda text, source, written_out: changed)
    with pytest.raises(ThoradError, match=told):
        Detector(tiny_model, device="cpu", **options).detect(np.random.default_rng(0).random((32, 32)))


def test_possible_noises(tiny_model: Path) -> None:
    both, simplex = load_recipe("brain-t1-compact"), load_recipe("brain-t1")
    assert possible_noises("thor", both) == ["simplex", "gaussian"]
    assert possible_noises("thor", both, ["gaussian"]) == ["gaussian"]
    assert possible_noises("thor", simplex) == ["simplex"]
    assert possible_noises("ddpm", both) == ["gaussian"]
    assert possible_noises("anoddpm", both, ["gaussian", "simplex"]) == ["simplex"]
    assert possible_noises("zscore", both, ["gaussian"]) == [None]
    with pytest.raises(ThoradError, match="'brain-t1' was trained with simplex"):
        possible_noises("ddpm", simplex)
    with pytest.raises(ThoradError, match="method 'anoddpm' with noise gaussian is not possible"):
        possible_noises("anoddpm", both, ["gaussian"])


def test_what_is_compared_is_what_the_models_can_do(tiny_model: Path) -> None:
    methods = [(method, noise) for _, method, noise in comparison([tiny_model])]
    assert methods[:3] == [("thor", "simplex"), ("thor", "gaussian"), ("thor+", "simplex")]
    assert ("pddpm", "simplex") not in methods, "the model was not trained for it"
    assert methods[-1] == ("zscore", None)
    gaussian = [method for _, method, _ in comparison([tiny_model], asked=["gaussian"])]
    assert "ddpm" in gaussian
    assert "anoddpm" not in gaussian
    assert comparison([tiny_model, "brain-t1-compact"], ["zscore", "ddpm"]) == [
        (tiny_model, "zscore", None),
        (tiny_model, "ddpm", "gaussian"),
    ]
    with pytest.raises(ThoradError, match="method 'anoddpm' with noise gaussian is not possible"):
        comparison([tiny_model], ["anoddpm"], ["gaussian"])


def test_every_method_has_default_steps_for_every_noise(tiny_model: Path) -> None:
    recipe: Recipe = load_model(tiny_model).recipe
    for method in METHODS:
        if METHODS[method].patched or METHODS[method].critic:
            continue  # the model knows whole images, and has no critic
        for noise in possible_noises(method, recipe):
            assert Detector(tiny_model, method=method, noise=noise, device="cpu").overlay_maximum > 0


@pytest.mark.parametrize("method", ["anoddpm", "ddpm", "thor"])
def test_the_default_steps_fit_a_low_noise_level(tiny_model: Path, method: str) -> None:
    level = 50 if method == "thor" else 1
    detector = Detector(tiny_model, method=method, noise_level=level, device="cpu")
    assert detector.options.noise_level == detector.provenance()["noise_level"] == level
    assert np.isfinite(detector.detect(picture("x")).anomaly_map).all()


# ---- the published methods, and imported models


def import_like(tiny_model: Path, folder: Path, input_range: str = "-1..1", perceptual: bool = True) -> Path:
    """What `thorad models import` leaves: float32, LPIPS weights of its own, no statistics."""
    content = load_model(tiny_model).recipe.model_dump()
    content["image"]["input_range"] = input_range
    recipe = Recipe.model_validate(content)
    generator = torch.Generator().manual_seed(1)
    state = {
        name: 0.1 * torch.randn(tensor.shape, generator=generator)
        for name, tensor in build_network(recipe).state_dict().items()
    }
    own = {name: 0.9 * tensor for name, tensor in load_perceptual_distance().weights().items()}
    weights = own if perceptual else None
    save_model(folder, recipe, state, None, None, "# imported\n", dtype=torch.float32, perceptual=weights)
    return folder


@pytest.fixture(scope="module")
def imported(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return import_like(tiny_model, tmp_path_factory.mktemp("models") / "imported")


@pytest.mark.parametrize(("method", "noise"), [("thor", "simplex"), ("thor", "gaussian"), ("anoddpm", None)])
@torch.inference_mode()
def test_a_published_method_is_the_published_function(
    imported: Path, monkeypatch: pytest.MonkeyPatch, method: str, noise: str | None
) -> None:
    """By hand with the same noise, in float32 where bfloat16 would be the choice; the score is the map's mean."""
    monkeypatch.setattr("thorad.diffusion.engine.fast_precision", lambda device: torch.bfloat16)
    level = 51 if method == "thor" else 9
    options: dict[str, Any] = {"method": method, "noise": noise, "noise_level": level, "seed": 3, "device": "cpu"}
    detector = Detector(imported, **{**options, "method": f"published-{method}"})
    assert detector.precision == detector.provenance()["precision"] == "float32"
    assert (detector.steps, detector.network_calls) == ("all", level + 1)
    inputs = to_model_input(picture("x", 32, 32).pixels, 32)[0][None]
    maps = detector.model_maps(inputs, ["x"])

    model = load_model(imported)
    kind = str(detector.noise)
    generators = [case_generator(3, inputs[0])]
    number = torch.tensor([model.recipe.noise.kinds.index(detector.noise)])

    def denoise(x_t: Tensor, t: int) -> Tensor:
        eps: Tensor = model.network(x_t, torch.tensor([t]), number)
        return eps

    def drawn() -> Tensor:
        return model.recipe.draw_noise(kind)(generators, 32, 32, torch.device("cpu"))

    by_hand: Restoration
    x, schedule = inputs * 2 - 1, model.schedule
    if method == "thor":
        compare = PublishedMap(load_perceptual_distance(imported / PERCEPTUAL))
        harmonise_at = PublishedThorOptions(noise_level=level, harmonise_at=(50,))
        by_hand = published_thor(denoise, x, schedule, drawn, compare, options=harmonise_at)
    else:
        by_hand = published_ddpm(denoise, x, schedule, drawn, residual, options=PublishedDdpmOptions(level))
    torch.testing.assert_close(maps, by_hand.anomaly_map, rtol=0, atol=1e-6)
    assert maps.max() > 0.01
    assert float(detector.scores(maps)) == pytest.approx(float(maps.mean()), rel=1e-6)
    assert detector.detect(picture("x", 32, 32)).score == pytest.approx(float(maps.mean()), rel=1e-4)
    if noise == "simplex":
        others = Detector(imported, **options).model_maps(inputs, ["x"])
        assert (others - maps).abs().max() > 0.01, "without the accidents the map is another"


def test_the_published_methods_have_the_published_options(tiny_model: Path) -> None:
    for name in ("thor", "anoddpm", "ddpm"):
        published = METHODS[f"published-{name}"]
        assert published.noise_levels == METHODS[name].noise_levels
        for noise in published.noises:
            detector = Detector(tiny_model, method=published.name, noise=noise, steps="all", device="cpu")
            assert detector.network_calls == {"simplex": 251, "gaussian": 351}[noise]
    assert Detector(tiny_model, method="published-thor", noise="gaussian").options == PublishedThorOptions(
        noise_level=350, harmonise_at=(300, 150, 50)
    )


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_a_models_own_perceptual_weights_are_used(imported: Path, tiny_model: Path, tmp_path: Path) -> None:
    x = to_model_input(picture("x", 32, 32).pixels, 32)[0][None]
    own = Detector(imported, device="cpu")
    assert own.provenance()["perceptual_weights_sha256"] == sha256(imported / PERCEPTUAL)
    given = Detector(imported, perceptual_weights=BUNDLED_WEIGHTS, device="cpu")
    assert given.provenance()["perceptual_weights_sha256"] == sha256(BUNDLED_WEIGHTS)
    without = Detector(import_like(tiny_model, tmp_path / "plain", perceptual=False), device="cpu")
    assert without.provenance()["perceptual_weights_sha256"] is None
    torch.testing.assert_close(given.model_maps(x, ["x"]), without.model_maps(x, ["x"]), rtol=0, atol=0)
    assert not torch.allclose(own.model_maps(x, ["x"]), given.model_maps(x, ["x"]), rtol=0.01)
    assert Detector(imported, method="ddpm", device="cpu").provenance()["perceptual_weights_sha256"] is None
    published = Detector(tiny_model, method="published-thor", device="cpu").provenance()
    assert (published["method"], published["perceptual_weights_sha256"]) == ("published-thor", sha256(BUNDLED_WEIGHTS))


def test_a_model_for_another_range_of_pixels_is_refused(tiny_model: Path, tmp_path: Path) -> None:
    model = import_like(tiny_model, tmp_path / "model", input_range="0..1", perceptual=False)
    for method in ("thor", "published-thor"):
        with pytest.raises(ThoradError, match=r"'tiny' is for images in 0\.\.1, but all methods work in -1\.\.1"):
            Detector(model, method=method, device="cpu")


def test_the_zscore_is_compared_where_a_model_has_statistics(imported: Path, tiny_model: Path) -> None:
    assert "zscore" not in [method for _, method, _ in comparison([imported])]
    assert comparison([imported, tiny_model])[-1] == (tiny_model, "zscore", None)
    with pytest.raises(ThoradError, match="has no statistics, which method 'zscore' needs"):
        comparison([imported], ["zscore"])
    assert not any(METHODS[method].published for _, method, _ in comparison([tiny_model])), "only where they are named"


def test_the_settings_tell_networks_and_method_values_apart(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The weights' digest sees neither the recipe nor the numbers in the code: kept maps must not match over them."""

    def settings(model: Path, method: str = "thor+", **options: Any) -> str:
        return str(Detector(model, method=method, device="cpu", **options).provenance()["settings_sha256"])

    assert settings(tiny_model) == settings(tiny_model)
    assert settings(tiny_model, "thor") == settings(tiny_model, "thor", finish=True)
    other = tmp_path / "other"
    shutil.copytree(tiny_model, other)
    recipe = (other / "recipe.toml").read_text()
    (other / "recipe.toml").write_text(recipe.replace("beta_end = 0.02", "beta_end = 0.03"))
    assert settings(other) != settings(tiny_model)
    thor_plus = METHODS["thor+"]
    fewer = replace(thor_plus, options=lambda request: replace(thor_plus.options(request), draws=2))
    before = settings(tiny_model)
    monkeypatch.setattr("thorad.detector.METHODS", {**METHODS, "thor+": fewer})
    assert settings(tiny_model) != before


def test_the_settings_are_those_of_earlier_calibrations() -> None:
    """Digests by the version before methods and networks had kinds: its calibrations still match.

    Not AutoDDPM's, whose chain has changed since.
    """
    earlier = {
        "thor": "e3210e7bc2eb",
        "thor+": "4d45b8d841d6",
        "published-thor": "bea998bbc969",
    }
    for method, digest in earlier.items():
        found = Detector("brain-t1-compact", method=method, device="cpu").provenance()["settings_sha256"]
        assert found.startswith(digest), method


# ---- engines, and images as Python's users have them


def test_openvino_computes_what_torch_computes(tiny_model: Path) -> None:
    pytest.importorskip("openvino", reason="no engine openvino without the extra openvino")
    ours = Detector(tiny_model, device="cpu", method="published-ddpm", noise_level=5)  # float32
    theirs = Detector(tiny_model, device="cpu", method="published-ddpm", noise_level=5, engine="openvino")
    assert theirs.provenance() == {**ours.provenance(), "engine": "openvino"}
    assert theirs.precision == "float32"
    images = [picture(name) for name in "abc"]
    for one, other in zip(ours.detect_batch(images), theirs.detect_batch(images), strict=True):
        assert_same(one, other, tolerance=1e-4)
    with pytest.raises(ThoradError, match="engine 'openvino' runs on the CPU, but the device is 'meta'"):
        Detector(tiny_model, device="meta", engine="openvino")


def test_an_engine_of_ones_own(tiny_model: Path) -> None:
    class Nothing:
        """Sees no noise anywhere."""

        precision = "float32"
        calls = 0

        def __call__(self, x_t: Tensor, t: Tensor, kind: Tensor) -> Tensor:
            self.calls += 1
            assert (x_t.shape, t.shape, kind.shape) == ((1, 1, 32, 32), (1,), (1,))
            return torch.zeros_like(x_t)

    engine = Nothing()
    detector = Detector(tiny_model, device="cpu", engine=engine)
    detector.detect(picture())
    assert engine.calls == detector.network_calls == 2 * 8
    assert detector.provenance()["engine"] == "Nothing"
    assert "engine='Nothing'" in repr(detector)


def test_images_as_pythons_users_have_them(tiny_model: Path, tmp_path: Path) -> None:
    from monai.data import MetaTensor

    pixels = picture("image").pixels.round().astype(np.uint8)
    path = tmp_path / "image.png"
    PIL.Image.fromarray(pixels).save(path)
    detector = Detector(tiny_model, device="cpu")
    expected = detector.detect(pixels)
    assert expected.name == "image"
    tensor = torch.from_numpy(pixels)
    opened = PIL.Image.open(path)
    same = [
        path,
        str(path),
        tensor,
        tensor[None],
        tensor.float(),
        MetaTensor(tensor),
        opened,
        opened.convert("P"),
        opened.convert("CMYK"),
    ]
    for given, found in zip(same, detector.detect_batch(same), strict=True):
        assert_same(found, expected, tolerance=0)
        assert found.name == "image", type(given)
    named = MetaTensor(tensor, meta={"filename_or_obj": "folder/head.nii.gz"})
    assert detector.detect(named).name == "head"
    for wrong in (None, 3, [[1, 2]], {"image": pixels}):
        with pytest.raises(ThoradError, match=f"an image is a {type(wrong).__name__}; expected a path, a NumPy array"):
            detector.detect(wrong)  # type: ignore[arg-type]
    with pytest.raises(ThoradError, match="no such file"):
        detector.detect(tmp_path / "missing.png")


@pytest.mark.filterwarnings("ignore:NvImgCodec")  # MONAI's readers look for a decoder on graphics cards
def test_a_picture_of_monai_is_turned(tiny_model: Path, tmp_path: Path) -> None:
    from monai.transforms import LoadImage

    path = tmp_path / "image.png"
    PIL.Image.fromarray(picture("image").pixels.round().astype(np.uint8)).save(path)
    detector = Detector(tiny_model, method="zscore", device="cpu")
    for options in ({}, {"reverse_indexing": False}):
        loaded = LoadImage("pilreader", image_only=True, ensure_channel_first=True, **options)(path)
        assert_same(detector.detect(loaded), detector.detect(path), tolerance=0)


def test_other_code_of_a_method_of_ones_own_is_another_method(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Maps that were kept by its name would pass for those of its new code."""
    monkeypatch.syspath_prepend(tmp_path)
    found = []
    for number in (1, 2):
        (tmp_path / f"own{number}.py").write_text(f"def restore(*given, **options):\n    return {number}\n")
        restore = importlib.import_module(f"own{number}").restore
        entries = {**METHODS._loaded, "own": replace(METHODS["zscore"], name="own", restore=restore)}
        monkeypatch.setattr(METHODS, "_loaded", entries)
        found.append(Detector(tiny_model, method="own", device="cpu").provenance()["settings_sha256"])
    assert found[0] != found[1]


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (
            lambda image: image[:, 0],
            r"method 'odd' made .* of \(1, 32, 32\), expected \(1, 1, 32, 32\)",
        ),
        (lambda image: None, "method 'odd' failed on image: AttributeError"),
    ],
)
def test_what_a_method_makes_is_checked(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch, made: Any, message: str
) -> None:
    def restore(denoise: object, image: Tensor, *rest: object, **options: object) -> Restoration:
        return Restoration(made(image), made(image))

    monkeypatch.setattr(
        METHODS, "_loaded", {**METHODS._loaded, "odd": replace(METHODS["zscore"], name="odd", restore=restore)}
    )
    with pytest.raises(ThoradError, match=message):
        Detector(tiny_model, method="odd", device="cpu").detect(picture("image"))


def test_a_batch_is_not_a_path(tiny_model: Path) -> None:
    with pytest.raises(ThoradError, match=r"found '/x\.png'\. Put it in a list"):
        list(Detector(tiny_model, method="zscore", device="cpu").detect_batch("/x.png"))  # type: ignore[arg-type]


def test_what_is_found_is_one_line(tiny_model: Path) -> None:
    found = Detector(tiny_model, method="zscore", device="cpu", threshold=0.5).detect(picture("x"))
    assert repr(found) == f"Detection('x', 40x30 px, score {found.score:.4g}, {len(found.findings or ())} findings)"


@pytest.mark.parametrize(
    ("method", "options", "message"),
    [
        ("zscore", {"steps": 3}, "method 'zscore' has no steps to choose"),
        ("ddpm", {"finish": True}, "method 'ddpm' has no chain to finish"),
        ("thor+", {"steps": 201}, r"from 1 to 200 \(the noise level of thor\+\)"),
        ("pddpm", {}, "bundled: brain-t1-patched"),
    ],
)
def test_options_that_a_method_lacks_are_refused(
    tiny_model: Path, method: str, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ThoradError, match=message):
        Detector(tiny_model, method=method, device="cpu", **options)


def test_an_imported_model_is_compared_by_what_it_can_do(imported: Path, tiny_model: Path) -> None:
    assert {method for _, method, _ in comparison([imported])}.isdisjoint({"thor+", "zscore"})
    of_method = {method: model for model, method, _ in comparison([imported, tiny_model])}
    assert of_method["thor+"] == of_method["zscore"] == tiny_model
    with pytest.raises(ThoradError, match=r"has no statistics.*THOR\+"):
        Detector(imported, method="thor+", device="cpu")


def test_steps_are_kept_on_request(tiny_model: Path) -> None:
    detector = Detector(tiny_model, method="thor", noise="gaussian", steps=3, device="cpu")
    images = [picture("a"), picture("b")]
    plain, kept = list(detector.detect_batch(images)), list(detector.detect_batch(images, keep_steps=True))
    assert not plain[0].steps
    harmonised = [step for step in kept[0].steps if step.anomaly_map is not None]
    assert [step.timestep for step in harmonised] == [300, 150, 50]
    assert all(step.clean.shape == (32, 32) for step in kept[0].steps)
    assert all(0 <= step.clean.min() <= step.clean.max() <= 1 for step in kept[0].steps)
    assert not np.array_equal(kept[0].steps[0].clean, kept[1].steps[0].clean)
    np.testing.assert_array_equal(kept[1].anomaly_map, plain[1].anomaly_map)


def test_a_threshold_makes_masks_without_a_calibration(tiny_model: Path) -> None:
    found = Detector(tiny_model, method="zscore", device="cpu", threshold=0.1).detect(picture())
    assert found.mask is not None
    assert found.findings is not None
    np.testing.assert_array_equal(found.mask, found.anomaly_map > 0.1)
    assert sum(finding.pixels for finding in found.findings) == found.mask.sum() > 0
    assert found.p_value is None
    with pytest.raises(ThoradError, match=r"the threshold is -1, expected a value of the map, 0 or above"):
        Detector(tiny_model, method="zscore", device="cpu", threshold=-1)
    with pytest.raises(ThoradError, match="choose one of them"):
        Detector(tiny_model, method="zscore", device="cpu", threshold=1, false_positives=0.01)
