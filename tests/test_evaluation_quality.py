"""MAE, SSIM and LPIPS of pseudo-healthy images, against closed forms, scikit-image, and cases computed by hand."""

from pathlib import Path

import numpy as np
import pytest
import torch

from test_evaluation_evaluate import Bench, FakeDetector, bench, write_image  # noqa: F401  (bench is a fixture)
from thorad.datasets.cases import Case, read_cases
from thorad.evaluation.evaluate import evaluate
from thorad.evaluation.quality import fidelities, fidelity, read_without_lesion, summary
from thorad.evaluation.tables import table_of
from thorad.implant.image_sets import make_lesion_set
from thorad.io.preprocess import to_model_input

SIZE = 64
EVERYWHERE = np.ones((SIZE, SIZE), bool)


def picture(seed: int = 0) -> torch.Tensor:
    return torch.rand(1, SIZE, SIZE, generator=torch.Generator().manual_seed(seed))


def test_equal_images() -> None:
    assert fidelity(picture(), picture(), EVERYWHERE) == pytest.approx((0, 1, 0), abs=1e-6)


def test_mae_is_the_mean_where_it_is_asked() -> None:
    changed = picture().clone()
    changed[0, :8] = 0
    where = np.zeros((SIZE, SIZE), bool)
    where[:16] = True
    expected = float(picture()[0, :8].mean()) / 2
    assert fidelity(changed, picture(), where).mae == pytest.approx(expected, rel=1e-5)
    assert fidelity(changed, picture(), ~where).mae == 0
    assert np.isnan(fidelity(changed, picture(), np.zeros_like(where))).all()


def test_ssim_of_flat_images_is_that_of_their_luminance() -> None:
    one, other = (torch.full((1, SIZE, SIZE), value) for value in (0.2, 0.8))
    luminance = (2 * 0.2 * 0.8 + 1e-4) / (0.2**2 + 0.8**2 + 1e-4)
    assert fidelity(one, other, EVERYWHERE).ssim == pytest.approx(luminance, rel=1e-4)


def test_ssim_is_scikit_images() -> None:
    metrics = pytest.importorskip("skimage.metrics", reason="no other implementation of SSIM without scikit-image")
    one, other = picture(1), (picture(1) + 0.3 * picture(2)).clamp(0, 1)
    _, expected = metrics.structural_similarity(
        one[0].numpy(),
        other[0].numpy(),
        data_range=1.0,
        gaussian_weights=True,
        sigma=1.5,
        use_sample_covariance=False,
        full=True,
    )
    inner = np.zeros_like(EVERYWHERE)
    inner[5:-5, 5:-5] = True
    assert fidelity(one, other, inner).ssim == pytest.approx(float(expected[inner].mean()), abs=1e-5)


def test_lpips_grows_with_the_change_and_needs_17_px() -> None:
    found = [
        fidelity((picture() + share * picture(3)).clamp(0, 1), picture(), EVERYWHERE).lpips for share in (0.1, 0.5)
    ]
    assert 0 < found[0] < found[1]
    small = torch.rand(1, 16, 16)
    assert np.isnan(fidelity(small, small, np.ones((16, 16), bool)).lpips)


def test_inside_a_lesion_it_is_the_image_before_that_counts() -> None:
    before, lesion = picture(), np.zeros((SIZE, SIZE), bool)
    lesion[20:30, 20:30] = True
    scan = before.clone()
    scan[0, lesion] = 0
    assert fidelities(before, before, None, EVERYWHERE, None).keys() == {"healthy"}
    vanished = np.zeros_like(lesion)  # too small for the grid: no healthy scan
    assert fidelities(before, scan, vanished, EVERYWHERE, before).keys() == {"outside"}
    perfect = fidelities(before, scan, lesion, EVERYWHERE, before)
    assert (perfect["inside"].mae, perfect["outside"].mae) == (0, 0)
    unchanged = fidelities(scan, scan, lesion, EVERYWHERE, before)
    assert unchanged["outside"] == pytest.approx((0, 1, 0), abs=1e-6), "perfect outside"
    assert unchanged["inside"].mae == pytest.approx(float(before[0, lesion].mean()), rel=1e-5), "useless inside"
    assert fidelities(scan, scan, lesion, EVERYWHERE, None).keys() == {"outside"}
    region = ~lesion
    assert np.isnan(fidelities(before, scan, lesion, region, before)["inside"].mae), "outside the region nothing counts"


def test_means_and_intervals_over_cases() -> None:
    low, high = fidelity(picture(), picture(), EVERYWHERE), fidelity(picture(), 1 - picture(), EVERYWHERE)
    cases = [{"healthy": low}, {"outside": low}, {"healthy": high}]
    weights = np.array([[2.0, 0.0, 0.0], [0.0, 1.0, 2.0], [1.0, 1.0, 1.0]])
    means, intervals = summary(cases, weights)
    assert means["healthy"] == {
        "images": 2,
        **{name: pytest.approx((getattr(low, name) + getattr(high, name)) / 2) for name in ("mae", "ssim", "lpips")},
    }
    assert means["outside"]["images"] == 1
    low_end, high_end = intervals["healthy"]["mae"]
    values = [0, high.mae, high.mae / 2]
    assert (low_end, high_end) == pytest.approx((np.percentile(values, 2.5), np.percentile(values, 97.5)))
    assert "inside" not in means


class Restorer(FakeDetector):
    """Its pseudo-healthy image is the scan, a tenth brighter."""

    def model_restorations(self, x: torch.Tensor, names: list[str]) -> tuple[torch.Tensor, torch.Tensor]:  # type: ignore[override]
        maps, _ = super().model_restorations(x, names)
        return maps, 0.9 * x + 0.1


def test_evaluate_measures_it(bench: Bench) -> None:  # noqa: F811
    """Of |0.9 x + 0.1 - x| the mean is 0.1 (1 - mean of x)."""
    detectors = [Restorer(bench.blurry), FakeDetector(bench.random, method="zscore", noise=None)]
    first, second = evaluate(bench.cases, bench.healthy, detectors, bench.folder / "out", bootstrap=20)
    assert second["quality"] == {}
    healthy = [to_model_input(np.asarray(_read(path)), SIZE)[0] for path in bench.healthy]
    expected = float(np.mean([0.1 * (1 - image.mean()) for image in healthy]))
    assert first["quality"]["healthy"]["mae"] == pytest.approx(expected, abs=2e-4)
    assert {place: one["images"] for place, one in first["quality"].items()} == {"healthy": 4, "outside": 5}
    low, high = first["intervals"]["quality"]["healthy"]["mae"]
    assert low <= first["quality"]["healthy"]["mae"] <= high
    markdown = table_of([first, second]).markdown()
    assert "| Method | Noise | MAE healthy [95 %] | SSIM healthy | LPIPS healthy | MAE outside [95 %] |" in markdown
    assert markdown.count("| thor | simplex |") == 3, "in both other tables, too"


def _read(path: Path) -> np.ndarray:
    from thorad.io.images import read_image

    return read_image(path).pixels


def test_an_implanted_set_names_the_images_before(tmp_path: Path) -> None:
    """On the scale of the image with the lesion: outside of it they are equal, to the 8 bits."""
    disc = np.hypot(*np.meshgrid(np.arange(-64, 64), np.arange(-64, 64))) < 50
    for seed in range(4):
        noise = np.random.default_rng(seed).normal(0, 3, disc.shape)
        write_image(tmp_path / "in" / f"{seed}.png", np.clip(120 * disc + noise * disc, 0, 255))
    made = make_lesion_set([tmp_path / "in"], tmp_path / "set", seed=0, healthy_share=0.25)
    cases = read_cases(made.table)
    diseased = [case for case in cases if case.has_finding]
    assert len(diseased) == 3
    assert all(read_without_lesion(case, 128) is None for case in cases if not case.has_finding)
    for case in diseased:
        assert case.mask is not None
        before, mask = read_without_lesion(case, 128), _read(case.mask) > 0
        assert before is not None
        scan, _ = to_model_input(_read(case.image), 128)
        difference = (before - scan).abs()[0].numpy()
        assert difference[mask].mean() > 0.08
        assert np.median(difference[~mask]) < 0.01


def test_a_bad_image_before_is_told_and_loses_no_other(bench: Bench) -> None:  # noqa: F811
    from dataclasses import replace

    wrong = write_image(bench.folder / "wrong.png", np.random.default_rng(0).integers(1, 255, (SIZE, 2 * SIZE)))
    first, *others = bench.cases
    cases: list[Case] = [replace(first, healthy_image=wrong), *others]
    (result,) = evaluate(cases, bench.healthy, [Restorer(bench.blurry)], bench.folder / "out", bootstrap=0)
    assert [failure["name"] for failure in result["failures"]] == [first.name]
    assert "128 x 64 px, but its image with the lesion has 64 x 64" in result["failures"][0]["reason"]
