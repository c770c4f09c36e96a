from pathlib import Path

import numpy as np
import PIL.Image
import pytest

from thorad.apps.demo import OUTLINE, demo_methods, outlined, run_demo, titled_grid
from thorad.io.images import read_image, read_mask

CASES = ["dark-lesion", "bright-lesion", "healthy"]


def test_the_demonstration(tiny_model: Path, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    found = run_demo(tmp_path, tiny_model, device="cpu", on_progress=lambda *now: seen.append(now))

    assert [(case.method, case.name) for case in found] == [
        (method, name) for method in demo_methods(tiny_model) for name in CASES
    ]
    assert seen == [(done, 6) for done in range(1, 7)]
    for case in found:
        assert case.overlay.is_file()
        assert case.overlay.is_relative_to(tmp_path / "results" / case.method)
        assert (case.peak_in_lesion is None) == (case.name == "healthy")

    scans = {name: read_image(tmp_path / "input" / f"{name}.png").pixels for name in CASES}
    assert not read_mask(tmp_path / "truth" / "healthy.png").any()
    for name, sign in (("dark-lesion", -1), ("bright-lesion", 1)):
        truth = read_mask(tmp_path / "truth" / f"{name}.png")
        assert 50 < truth.sum() < 2000
        change = sign * (scans[name] - scans["healthy"]) / 255
        assert (change[truth] > 0.2).all()
        assert (change[~truth] < 0.3).all()

    with PIL.Image.open(tmp_path / "montage.png") as picture:
        height, width = scans["healthy"].shape
        assert picture.mode == "RGB"
        assert picture.width > 5 * 2 * width
        assert picture.height > 3 * 2 * height


def test_the_demonstration_again(tiny_model: Path, tmp_path: Path) -> None:
    first = run_demo(tmp_path, tiny_model, device="cpu")
    picture = (tmp_path / "montage.png").read_bytes()
    second = run_demo(tmp_path, tiny_model, device="cpu")
    assert [case.score for case in first] == [case.score for case in second]
    assert (tmp_path / "montage.png").read_bytes() == picture


def test_the_zscore_finds_a_dark_lesion_if_the_mean_is_the_head(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The peak that is reported is the map's: with the healthy head itself as the mean, only the lesion stands out."""
    import torch

    import thorad.detector
    from thorad.io.preprocess import to_model_input
    from thorad.model import Model, load_model

    run_demo(tmp_path, tiny_model, device="cpu")
    head, _ = to_model_input(read_image(tmp_path / "input" / "healthy.png").pixels, 32)
    loaded = load_model(tiny_model)
    knowing = Model(
        loaded.recipe, loaded.network, head * 2 - 1, torch.full((1, 32, 32), 0.2), loaded.region, "other", {}
    )
    monkeypatch.setattr(thorad.detector, "load_model", lambda model: knowing)
    found = {(case.method, case.name): case for case in run_demo(tmp_path / "new", tiny_model, device="cpu")}
    assert found["zscore", "dark-lesion"].peak_in_lesion is True
    assert found["zscore", "healthy"].score < found["zscore", "dark-lesion"].score


def test_the_outline_is_just_outside() -> None:
    mask = np.zeros((9, 9), bool)
    mask[3:6, 3:6] = True
    picture = outlined(np.full((9, 9), 0.5), mask)
    marked = (picture == OUTLINE).all(axis=2)
    assert marked.sum() == 12  # the four sides of a 3 x 3 square
    assert not (marked & mask).any()
    assert (picture[~marked] == 128).all()


def test_a_grid_holds_its_pictures() -> None:
    rng = np.random.default_rng(0)
    pictures = [[rng.integers(0, 256, (20, 30, 3), dtype=np.uint8) for _ in range(2)] for _ in range(3)]
    made = titled_grid(pictures, ["a", "b", "c"], ["left", "right"])
    large = np.asarray(PIL.Image.fromarray(pictures[2][1]).resize((60, 40), PIL.Image.Resampling.BICUBIC))
    windows = np.lib.stride_tricks.sliding_window_view(made, (40, 60, 3))[:, :, 0]
    places = [tuple(place) for place in np.argwhere((windows[..., 0, 0, :] == large[0, 0]).all(-1))]
    assert any((windows[place] == large).all() for place in places)


def test_the_bundled_model_finds_the_dark_lesion(tmp_path: Path) -> None:
    """Guards the shipped weights: every method's map peaks in the lesion, and it scores above the healthy head."""
    found = {(case.method, case.name): case for case in run_demo(tmp_path, device="cpu")}
    for method in demo_methods("brain-t1-compact"):
        assert found[method, "dark-lesion"].peak_in_lesion
        assert found[method, "dark-lesion"].score > found[method, "healthy"].score
