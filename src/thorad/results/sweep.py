"""Figure 4 of the THOR paper, measured: best Dice against the noise level, as a picture and as a table.

A sweep is a list of results of the protocol `brain-lesions`, each with its `noise_level`; None for the z-score.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from thorad.io.tables import write_table
from thorad.results.figure import import_matplotlib, png_and_svg

Result = Mapping[str, Any]

PANELS: Final = {"average": "Average over the lesions", "paper_mix": "The paper's mix of sizes"}

STYLES: Final = {
    ("ddpm", "gaussian"): ("DDPM, Gaussian noise", "#E69F00", "--", "s"),
    ("anoddpm", "simplex"): ("AnoDDPM, simplex noise", "#D55E00", "-", "s"),
    ("thor", "gaussian"): ("THOR, Gaussian noise", "#56B4E9", "--", "o"),
    ("thor", "simplex"): ("THOR, simplex noise", "#0072B2", "-", "o"),
}
"""(method, noise) -> label, colour, line and mark. Okabe and Ito's colours, which colour-blind people can tell apart;
lines and marks differ, too."""

FIGURES: Final = ("average", "small", "medium", "large", "paper_mix")
"""Kinds of best Dice in the table."""


def plot_sweep(results: Sequence[Result]) -> dict[str, bytes]:
    """Plot a sweep, with 95 % intervals as bands; the z-score as a level line.

    Returns:
        {"png": the content of a file of 2000 px width, "svg": of an SVG file}.

    Raises:
        ThoradError: matplotlib is not installed.
    """
    figure = import_matplotlib()(figsize=(10, 5), layout="constrained")
    panels = [panel for panel in PANELS if any(_best_dice(result, panel)[0] is not None for result in results)]
    axes = figure.subplots(1, max(1, len(panels)), sharey=True, squeeze=False)[0]
    for axis, panel in zip(axes, panels, strict=False):
        _plot_panel(axis, panel, results)
    axes[0].set_ylim(bottom=0)  # of both panels, when both hold their curves
    axes[0].set_ylabel("best Dice (%)", fontsize=12)
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, fontsize=11, frameon=False)
    return png_and_svg(figure)


def write_sweep_table(path: Path, results: Sequence[Result]) -> None:
    """Write a sweep as CSV: one row for each result, each best Dice with the ends of its interval."""
    ends = ("", "_low", "_high")
    about = ["method", "noise", "noise_level", "model", "steps", "network_calls"]
    best_dice = [f"best_dice_{figure}{end}" for figure in FIGURES for end in ends]
    rows = []
    for result in results:
        row = {**result, "lesion_cases": result["counts"]["lesion_cases"]}
        for figure in FIGURES:
            value, interval = _best_dice(result, figure)
            row |= dict(zip((f"best_dice_{figure}{end}" for end in ends), (value, *(interval or ())), strict=False))
        rows.append(row)
    write_table(path, [*about, "lesion_cases", *best_dice, "cpu_seconds_per_case"], rows)


def _plot_panel(axis: Any, panel: str, results: Sequence[Result]) -> None:
    for curve, (label, colour, line, mark) in STYLES.items():
        points = sorted(
            (result["noise_level"], *_best_dice(result, panel))
            for result in results
            if (result["method"], result["noise"]) == curve and _best_dice(result, panel)[0] is not None
        )
        if not points:
            continue
        levels, values, _ = zip(*points, strict=True)
        axis.plot(levels, values, line, color=colour, marker=mark, markersize=5, linewidth=2, label=label)
        banded = [(level, *interval) for level, _, interval in points if interval is not None]
        if banded:
            axis.fill_between(*zip(*banded, strict=True), color=colour, alpha=0.15, linewidth=0)
    for result in results:
        value, _ = _best_dice(result, panel)
        if result["noise_level"] is None and value is not None:
            axis.axhline(value, color="#404040", linestyle=":", linewidth=2, label="z-score")
    axis.set_title(PANELS[panel], fontsize=13)
    axis.set_xlabel("noise level (timestep)", fontsize=12)
    axis.set_xticks(sorted({result["noise_level"] for result in results} - {None}))
    axis.tick_params(labelsize=11)
    axis.grid(alpha=0.3)


def _best_dice(result: Result, figure: str) -> tuple[float | None, Sequence[float] | None]:
    """A best Dice in percent, and its interval."""
    return result["best_dice"][figure], result["intervals"]["best_dice"][figure]
