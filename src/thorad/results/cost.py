"""Quality against cost: what each method reaches with how many network calls and CPU-seconds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from thorad.evaluation.statistics import title
from thorad.evaluation.tables import figure_of
from thorad.results.figure import import_matplotlib, png_and_svg

Result = Mapping[str, Any]

QUALITIES: Final[Mapping[str, Mapping[str, str]]] = {
    "brain-lesions": {"best_dice/average": "average best Dice (%)", "auprc": "AP"},
    "brain-volumes": {"mean_dice": "mean Dice", "mean_auprc": "mean AUPRC"},
    "boxes": {"recall": "recall", "f1": "F1"},
}
"""Protocol -> {figure: what its axis says}, one row of panels each."""

COSTS: Final = {"network_calls": "network calls an image", "cpu_seconds_per_case": "CPU-seconds an image"}

TICKS: Final = [step * 10.0**power for power in range(-3, 6) for step in (1, 2, 5)]
MARKS: Final = "osD^vPX*<>"


def plot_cost(results: Sequence[Result]) -> dict[str, bytes]:
    """Plot each method's figures against its costs, both on a logarithmic axis; bars are 95 % intervals.

    Points of one method that differ in the number of draws make a line. A method without a network is a level line.

    Returns:
        {"png": the content of a file of 2000 px width, "svg": of an SVG file}.

    Raises:
        ThoradError: matplotlib is not installed.
    """
    qualities = QUALITIES[results[0]["protocol"]]
    figure = import_matplotlib()(figsize=(10, 4.2 * len(qualities)), layout="constrained")
    axes = figure.subplots(len(qualities), len(COSTS), sharey="row", sharex="col", squeeze=False)
    lines: dict[str, list[Result]] = {}
    for result in results:
        lines.setdefault(title({**result, "draws": 1}), []).append(result)
    for row, (path, name) in zip(axes, qualities.items(), strict=True):
        for axis, cost in zip(row, COSTS, strict=True):
            for number, (label, points) in enumerate(lines.items()):
                _plot_line(axis, label, number, points, path, cost)
            axis.grid(alpha=0.3)
        row[0].set_ylabel(name, fontsize=12)
        row[0].set_ylim(bottom=0)
    for axis, (cost, what) in zip(axes[-1], COSTS.items(), strict=True):
        known = [float(result[cost]) for result in results if result["network_calls"] > 0] or [1.0]
        axis.set_xscale("log")
        axis.minorticks_off()
        axis.set_xticks([tick for tick in TICKS if min(known) / 1.5 <= tick <= 1.5 * max(known)])
        axis.xaxis.set_major_formatter("{x:g}")
        axis.set_xlabel(what, fontsize=12)
    handles, labels = axes[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, fontsize=11, frameon=False)
    return png_and_svg(figure)


def _plot_line(axis: Any, label: str, number: int, points: Sequence[Result], path: str, cost: str) -> None:
    """One method; `number` decides its colour and mark."""
    known = sorted(
        (float(point[cost]), float(value), figure_of(point.get("intervals", {}), path) or (value, value))
        for point in points
        if (value := figure_of(point, path)) is not None
    )
    if not known:
        return
    colour = f"C{number % 10}"
    if points[0]["network_calls"] == 0:
        axis.axhline(known[0][1], color=colour, linestyle=":", linewidth=2, label=label)
        return
    costs, values, intervals = zip(*known, strict=True)
    bars = [
        [max(0.0, value - low) for value, (low, _) in zip(values, intervals, strict=True)],
        [max(0.0, high - value) for value, (_, high) in zip(values, intervals, strict=True)],
    ]
    mark = MARKS[number % len(MARKS)]
    axis.errorbar(costs, values, bars, color=colour, marker=mark, markersize=6, linewidth=2, elinewidth=1, label=label)
