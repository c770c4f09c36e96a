"""Methods at equal cost and with several seeds."""

import json
import re
import statistics
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import PIL.Image
import pytest

from test_apps_reproduce import brain, thorad_command  # noqa: F401  (brain is a fixture)
from thorad.apps.compare import at_calls, at_draws, write_cost_figure, write_seeds
from thorad.detector import Detector
from thorad.errors import ThoradError
from thorad.evaluation.seeds import over_seeds

OPTIONS: dict[str, Any] = {"device": "cpu"}


@pytest.fixture
def run(tiny_model: Path) -> Callable[..., Callable[..., Detector]]:
    return lambda method: partial(Detector, tiny_model, method=method, **OPTIONS)


@pytest.mark.parametrize(
    ("method", "expected"),
    [
        ("thor", [8, 40]),  # 8 a draw
        ("thor+", [10, 40]),  # 5 a draw of its own
        ("anoddpm", [8, 40]),  # 2
        ("autoddpm", [24, 48]),  # 24
        ("zscore", [0]),
    ],
)
def test_as_many_draws_as_come_nearest(run: Any, method: str, expected: list[int]) -> None:
    made = at_calls(run(method), [8, 40], {})
    assert [one.network_calls for one in made] == expected


def test_each_number_of_draws_once(run: Any) -> None:
    assert [one.draws for one in at_calls(run("anoddpm"), [1, 2, 3, 8], {})] == [1, 2, 4]


def test_draws_of_a_method_that_draws_itself_are_its_own(run: Any) -> None:
    plus = at_draws(run("thor+"), 2, {"blur_sigma": "1.5"})
    assert (plus.draws, plus.options.draws, plus.options.blur_sigma) == (1, 2, 1.5)
    assert at_draws(run("thor"), 3, {}).draws == 3
    assert at_draws(run("zscore"), 3, {}).network_calls == 0


def result(average: float, calls: int = 8, **others: Any) -> dict[str, Any]:
    about = {"protocol": "brain-lesions", "method": "thor", "noise": "simplex", "steps": 1, "model": "m"}
    figures = {"best_dice": {"average": average}, "auprc": average / 100, "image_auroc": None}
    intervals = {"best_dice": {"average": [average - 2, average + 3]}, "auprc": None}
    return {
        **about,
        **figures,
        "intervals": intervals,
        "network_calls": calls,
        "cpu_seconds_per_case": 0.1 * calls,
    } | others


def test_mean_and_spread_by_hand(tmp_path: Path) -> None:
    values = [40.0, 43.0, 49.0]
    floor = result(30.0, 0, method="zscore", noise=None)
    by_seed = {seed: [result(value), floor] for seed, value in enumerate(values)}
    first, second = over_seeds(by_seed)
    assert first["seeds"] == [0, 1, 2]
    assert first["values"]["best_dice/average"] == values
    assert first["mean"]["best_dice/average"] == 44
    assert first["standard_deviation"]["best_dice/average"] == pytest.approx(statistics.stdev(values))
    assert "image_auroc" not in first["mean"]
    assert second["standard_deviation"]["best_dice/average"] == 0
    table, means = write_seeds(by_seed, tmp_path)
    markdown = (tmp_path / "seeds.md").read_text()
    assert f"44.0 ± {statistics.stdev(values):.1f}" in markdown
    row = next(line for line in markdown.splitlines() if line.startswith("| zscore |"))
    assert "| 30.0 |" in row, "without noise there is no spread to tell"
    assert table.rows[0][0] == "thor (simplex)"
    assert (means[0]["best_dice"]["average"], means[0]["auprc"]) == (44, pytest.approx(0.44))
    assert json.loads((tmp_path / "seeds.json").read_text())[0]["mean"] == first["mean"]
    write_cost_figure(means, tmp_path)
    with pytest.raises(ThoradError, match="two or more evaluations of the same methods"):
        over_seeds({0: [result(1)], 1: [floor]})
    with pytest.raises(ThoradError, match="two or more"):
        over_seeds({0: [result(1)]})


def test_the_figure_has_a_line_for_each_method(tmp_path: Path) -> None:
    plus = {"method": "thor+", "settings": "blur_sigma 1.5"}
    results = [result(40), result(45, 40, draws=5), result(50, 40, **plus), result(30, 0, method="zscore", noise=None)]
    write_cost_figure(results, tmp_path)
    with PIL.Image.open(tmp_path / "cost.png") as picture:
        assert picture.width == 2000
    drawn = (tmp_path / "cost.svg").read_bytes()
    for label in (b"thor (simplex)", b"thor+ (simplex), blur_sigma 1.5", b"zscore", b"network calls an image"):
        assert b"<!-- " + label + b" -->" in drawn
    assert b"5 draws" not in drawn, "draws of one method are points of one line"


def test_evaluate_at_equal_calls_with_seeds(tiny_model: Path, brain: Path, tmp_path: Path) -> None:  # noqa: F811
    done = thorad_command(
        *("evaluate", brain / "cases.csv", "--healthy", brain / "healthy", "--model", tiny_model, "--device", "cpu"),
        *("--method", "anoddpm,zscore", "--calls", "2,5", "--seeds", "0,1", "--bootstrap", 0, "--permutations", 0),
        *("--out", tmp_path / "out"),
    )
    assert done.exit_code == 0, done.output
    summaries = json.loads((tmp_path / "out" / "seeds.json").read_text())
    rows = [(one["method"], one.get("draws", 1), one["network_calls"]) for one in summaries]
    assert rows == [("anoddpm", 1, 2), ("anoddpm", 2, 4), ("zscore", 1, 0)]
    both = [json.loads((tmp_path / "out" / f"seed-{seed}" / "metrics.json").read_text()) for seed in (0, 1)]
    assert both[0][0]["auprc"] != both[1][0]["auprc"], "another seed is other noise"
    assert summaries[0]["values"]["auprc"] == [results[0]["auprc"] for results in both]
    assert both[0][2]["auprc"] == both[1][2]["auprc"]
    assert "anoddpm (simplex), 2 draws" in (tmp_path / "out" / "seeds.md").read_text()
    assert "| anoddpm | simplex | 2 |" in (tmp_path / "out" / "seed-0" / "table.md").read_text()
    assert (tmp_path / "out" / "cost.png").is_file()
    assert "anoddpm (simplex), 2 draws" in done.stdout
    assert "**Not at equal calls** (2 or 5 were asked for)" in (tmp_path / "out" / "seeds.md").read_text()
    assert re.search(r"^anoddpm \(simplex\), 2 draws +4 \*", done.stdout, flags=re.MULTILINE)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--draws", "0"), "--draws is '0', expected whole numbers from 1 on"),
        (("--calls", "many"), "--calls is 'many'"),
        (("--draws", "1", "--calls", "8"), "choose one of them"),
        (("--set", "autoddpm.threshold=1"), "--set autoddpm.threshold=1 is for a method that is not run here"),
        (("--set", "threshold"), "expected OPTION=VALUE"),
    ],
)
def test_options_that_say_nothing(
    tiny_model: Path,
    brain: Path,  # noqa: F811
    tmp_path: Path,
    options: tuple[str, ...],
    message: str,
) -> None:
    done = thorad_command(
        *("evaluate", brain / "cases.csv", "--model", tiny_model, "--method", "anoddpm", "--out", tmp_path), *options
    )
    assert done.exit_code == 2
    assert message in done.stderr
