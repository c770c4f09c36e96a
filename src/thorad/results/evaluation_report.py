"""The page of a folder of `thorad evaluate` or `thorad reproduce`: its table, and charts of its figures."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from thorad.errors import ThoradError
from thorad.evaluation.sizes import SIZE_GROUPS
from thorad.evaluation.tables import table_of
from thorad.results import charts
from thorad.results.charts import Panel
from thorad.results.layout import RUN
from thorad.results.page import counted, json_text, render_page
from thorad.results.reader import method_title
from thorad.table import Table

Result = Mapping[str, Any]


def evaluation_page(folder: Path) -> bytes:
    """The file of the page.

    Raises:
        ThoradError: a file is missing or damaged.
    """
    try:
        results = json.loads((folder / "metrics.json").read_bytes())
        run_file = folder / RUN
        run = json.loads(run_file.read_bytes()) if run_file.is_file() else {}  # `thorad reproduce` writes none
        failures = [(failure["name"], failure["reason"]) for failure in results[0].get("failures", [])]
        return render_page(
            "report/evaluation.html",
            heading=f"Evaluation of {counted(len(results), 'method')}",
            subtitle=f"protocol {results[0]['protocol']} · {folder.resolve().name}",
            navigation={"run": "Run", "summary": "Results"},
            warning=f"{counted(len(failures), 'case')} could not be used and are left out for every method.",
            failures=Table(("case", "reason"), failures, text_columns=frozenset({"reason"})) if failures else None,
            facts=_facts(results, run),
            options=json.dumps(run, indent=2, default=str),
            table=table_of(results),
            panels=[*_size_panel(results), *_curve_panels(results)],
            index=json_text({}),
            blocks=[],
        )
    except (OSError, ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
        raise ThoradError(f"{folder}: not a whole folder of `thorad evaluate` ({error!r}). Evaluate again.") from error


def _facts(results: Sequence[Result], run: Mapping[str, Any]) -> dict[str, str]:
    first = results[0]
    return {
        "protocol": first["protocol"],
        "methods": ", ".join(method_title(result) for result in results),
        "models": ", ".join(dict.fromkeys(str(result.get("model")) for result in results)),
        **{name.replace("_", " "): str(value) for name, value in first["counts"].items()},
        **({"time": f"{run['seconds']:.0f} s"} if "seconds" in run else {}),
    }


def _size_panel(results: Sequence[Result]) -> list[Panel]:
    """Best Dice by lesion size, where the protocol has such."""
    if "best_dice" not in results[0]:
        return []
    lines: list[tuple[str, charts.Interval | None]] = []
    for size in SIZE_GROUPS:
        lines.append((f"{size} ({results[0]['counts'][size]} cases)", None))
        for result in results:
            interval = charts.Interval(result["best_dice"][size], result["intervals"]["best_dice"][size])
            lines.append((method_title(result), interval))
    chart = charts.Intervals("Best Dice by lesion size and method", "best Dice, %", lines, x_maximum=100)
    words = "Each threshold is chosen on the test labels: an upper bound. 95 % intervals."
    return [Panel("By lesion size", chart, words)]


def _curve_panels(results: Sequence[Result]) -> list[Panel]:
    """The two charts over thresholds, where metrics.json holds their points."""
    curves = {method_title(result): result["curves"] for result in results if result.get("curves")}
    curves = dict(list(curves.items())[: charts.SERIES])
    if not curves:
        return []
    dice = charts.Curves(
        title="Dice against the share of pixels above the threshold, by method",
        x_label="share of pixels above the threshold (spaced by square roots)",
        y_label="Dice",
        lines=[_line(name, each["predicted_share"], each["dice"]) for name, each in curves.items()],
        x_maximum=1.0,
        square_root=True,
    )
    precision = charts.Curves(
        title="Precision against recall, by method",
        x_label="recall",
        y_label="precision",
        lines=[_line(name, each["recall"], each["precision"]) for name, each in curves.items()],
        x_maximum=1.0,
    )
    shares = "Thresholds as shares of pixels, for methods differ in their units."
    return [
        Panel("Dice against the threshold", dice, shares),
        Panel("Precision and recall", precision, "Of pixels, pooled over the cases with a lesion."),
    ]


def _line(name: str, x: Sequence[float | None], y: Sequence[float | None]) -> charts.Line:
    """What can't be computed is null in metrics.json."""
    return charts.Line(name, *([np.nan if value is None else value for value in values] for values in (x, y)))
