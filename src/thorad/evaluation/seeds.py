"""The same methods with several seeds of the noise: mean and standard deviation of every figure.

How much of a figure is chance of the noise, beside the interval over subjects, which says how much is chance of the
sample. Data and networks are the same for all seeds.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np

from thorad.errors import ThoradError
from thorad.evaluation.statistics import ABOUT, title
from thorad.evaluation.tables import LAYOUTS, Figure, Result, calls_cell, cautions, figure_of
from thorad.table import Table

ASKED: Final = ("draws", "settings", "asked_calls")
"""What a result may say beside `ABOUT`."""


def over_seeds(by_seed: Mapping[int, Sequence[Result]]) -> list[dict[str, Any]]:
    """Summarise evaluations that differ in their seed alone.

    Args:
        by_seed: {seed: results of `evaluate`}, the same detectors in the same order.

    Returns:
        For each detector its `ABOUT`, draws and settings, `network_calls`, the `seeds`, and {path of a figure: value}
        as `mean` and `standard_deviation` (n - 1 in the denominator) over the seeds, and the `values` themselves.

    Raises:
        ThoradError: fewer than two seeds, or other detectors.
    """
    first, *others = by_seed.values()
    if not others or any(list(map(title, results)) != list(map(title, first)) for results in others):
        raise ThoradError("a spread over seeds needs two or more evaluations of the same methods.")
    figures = [one for one in LAYOUTS[first[0]["protocol"]].columns if isinstance(one, Figure) and one.form]
    summaries = []
    for index, result in enumerate(first):
        values = {
            figure.path: [figure_of(results[index], figure.path) for results in by_seed.values()]
            for figure in figures
            if isinstance(figure_of(result, figure.path), int | float)
        }
        known = {path: of_seeds for path, of_seeds in values.items() if None not in of_seeds}
        summaries.append(
            {
                **{key: result[key] for key in (*ABOUT, *ASKED, "protocol") if key in result},
                "network_calls": result["network_calls"],
                "seeds": list(by_seed),
                "mean": {path: float(np.mean(of_seeds)) for path, of_seeds in known.items()},
                "standard_deviation": {path: float(np.std(of_seeds, ddof=1)) for path, of_seeds in known.items()},
                "values": known,
            }
        )
    return summaries


def seeds_table(by_seed: Mapping[int, Sequence[Result]], summaries: Sequence[Mapping[str, Any]]) -> Table:
    """Each figure as mean ± standard deviation; a method without noise has no spread. Arguments as of `over_seeds`."""
    columns = [one for one in LAYOUTS[summaries[0]["protocol"]].columns if isinstance(one, Figure) and one.form]

    def cell(summary: Mapping[str, Any], figure: Figure) -> str:
        if figure.path not in summary["mean"]:
            return "-"
        mean = format(summary["mean"][figure.path], figure.form)
        spread = f" ± {summary['standard_deviation'][figure.path]:{figure.form}}"
        return mean if summary["noise"] is None and not figure.path.startswith("cpu") else mean + spread

    rows = [
        [title(summary), calls_cell(summary), *(cell(summary, figure) for figure in columns)] for summary in summaries
    ]
    headings = [figure.heading.replace(" [95 %]", "") for figure in columns]
    seeds = ", ".join(map(str, summaries[0]["seeds"]))
    note = f"Mean ± standard deviation over the seeds {seeds} of the noise; the data and the networks are the same."
    return Table(["Method", "Calls", *headings], rows, notes=[note, *cautions(next(iter(by_seed.values())))])
