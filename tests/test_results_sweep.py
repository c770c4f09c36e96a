import io
from typing import Any

import numpy as np
import PIL.Image
import pytest
from matplotlib.figure import Figure

from thorad.results import sweep
from thorad.results.sweep import plot_sweep


def test_plot_without_groups_or_intervals() -> None:
    """Where no lesion of a size is there, the paper's mix has no panel; without resamples there are no bands."""
    point = {"method": "thor", "noise": "simplex", "noise_level": 50}
    figures = {"best_dice": {"average": 20.0, "paper_mix": None}}
    none = {"intervals": {"best_dice": {"average": None, "paper_mix": None}}}
    with PIL.Image.open(io.BytesIO(plot_sweep([{**point, **figures, **none}])["png"])) as picture:
        assert picture.width == 2000


def test_plot_shows_every_point(monkeypatch: pytest.MonkeyPatch) -> None:
    """The panels share an axis, and the second one's curves may reach higher."""
    figures: list[Figure] = []

    def kept(*arguments: Any, **options: Any) -> Figure:
        figures.append(Figure(*arguments, **options))
        return figures[-1]

    monkeypatch.setattr(sweep, "import_matplotlib", lambda: kept)
    points = [
        {
            **{"method": "thor", "noise": "simplex", "noise_level": level},
            "best_dice": {"average": 20.0, "paper_mix": value},
            "intervals": {"best_dice": {"average": [15.0, 25.0], "paper_mix": [value - 5, value + 5]}},
        }
        for level, value in {50: 30.0, 100: 60.0}.items()
    ]
    floor = {"method": "zscore", "noise": None, "noise_level": None}
    plot_sweep([*points, {**points[0], **floor, "best_dice": {"average": 70.0, "paper_mix": 8.0}}])
    average, mix = figures[0].axes
    assert average.get_ylim() == mix.get_ylim()
    assert mix.get_ylim()[0] == 0
    assert mix.get_ylim()[1] > 70
    curve, level_line = mix.get_lines()
    np.testing.assert_array_equal(curve.get_xydata(), [(50, 30), (100, 60)])
    assert set(level_line.get_ydata()) == {8.0}
    assert mix.get_xlabel() == "noise level (timestep)"
    assert average.get_ylabel() == "best Dice (%)"
