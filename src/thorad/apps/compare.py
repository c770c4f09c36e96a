"""Methods at several costs and with several seeds: what `thorad evaluate` needs for a comparison on equal terms."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from thorad.detector import Detector
from thorad.evaluation.seeds import over_seeds, seeds_table
from thorad.io.atomic import write_atomic
from thorad.methods import METHODS
from thorad.methods.settings import settable
from thorad.results.cost import plot_cost
from thorad.table import Table

Run = Callable[..., Detector]
"""Makes a detector of one method; `draws` and `settings` replace its own."""


def at_draws(run: Run, draws: int, settings: Mapping[str, Any]) -> Detector:
    """A detector of so many draws; of a method that draws itself, it is its own number of draws that is set."""
    one = run(draws=1)
    if METHODS[one.method].draws_itself and "draws" in settable(one.options):
        return run(draws=1, settings={**settings, "draws": draws})
    return run(draws=draws) if one.noise is not None else one


def at_calls(run: Run, calls: Sequence[int], settings: Mapping[str, Any]) -> list[Detector]:
    """Detectors of as many draws as come nearest to each number of network calls, one at least; each number of draws
    once, and a method without a network once.
    """
    one = at_draws(run, 1, settings)
    if one.network_calls == 0 or one.noise is None:
        return [one]
    draws = dict.fromkeys(max(1, round(number / one.network_calls)) for number in calls)
    return [at_draws(run, number, settings) for number in draws]


def write_seeds(by_seed: Mapping[int, Sequence[Mapping[str, Any]]], out: Path) -> tuple[Table, list[dict[str, Any]]]:
    """Write out/seeds.json and out/seeds.md; gives the table, and the results at their mean, for a figure.

    Raises:
        ThoradError: as `over_seeds`.
    """
    summaries = over_seeds(by_seed)
    table = seeds_table(by_seed, summaries)
    write_atomic(out / "seeds.json", (json.dumps(summaries, indent=2) + "\n").encode())
    write_atomic(out / "seeds.md", table.markdown().encode())
    means: list[dict[str, Any]] = []
    for summary in summaries:
        mean = {key: value for key, value in summary.items() if key not in ("mean", "standard_deviation", "values")}
        for path, value in summary["mean"].items():
            *groups, name = path.split("/")
            place = mean
            for group in groups:
                place = place.setdefault(group, {})
            place[name] = value
        means.append(mean)
    return table, means


def write_cost_figure(results: Sequence[Mapping[str, Any]], out: Path) -> None:
    """Write out/cost.png and out/cost.svg.

    Raises:
        ThoradError: matplotlib is not installed.
    """
    for kind, content in plot_cost(results).items():
        write_atomic(out / f"cost.{kind}", content)
