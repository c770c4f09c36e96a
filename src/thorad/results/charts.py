"""Panels of a report: tables, and charts as SVG text that takes its colours from the page's style sheet.

Series are told apart by line style and by their label at the line, not by colour alone.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

import numpy as np

from thorad.table import Table

WIDTH, LEFT, RIGHT, BOTTOM, TOP = 440, 50, 14, 40, 12  # px of the chart, and of the margins around its axes
SERIES = 8
"""Line styles that the style sheet has."""


@dataclass(frozen=True)
class Line:
    """One curve of a chart; points that are not finite are left out."""

    label: str
    x: Sequence[float]
    y: Sequence[float]


@dataclass(frozen=True)
class Interval:
    """A value with the ends of its interval, where it has one."""

    value: float | None
    ends: tuple[float, float] | None

    @property
    def text(self) -> str:
        """`0.512 [0.401, 0.633]`; a dash where there is no value."""
        if self.value is None:
            return "–"
        return f"{self.value:.3f}" + ("" if self.ends is None else f" [{self.ends[0]:.3f}, {self.ends[1]:.3f}]")


@dataclass(frozen=True)
class Panel:
    """A chart or a table of a report, and what there is to know about it."""

    title: str
    words: str
    """Below it."""
    chart: str = ""
    """As the functions here draw it."""
    table: Table | None = None


def ticks(low: float, high: float, about: int = 5) -> list[float]:
    """Round numbers from low to high, as steps of 1, 2 or 5 times a power of ten."""
    if not high > low:
        return [low]
    rough = (high - low) / about
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough * (1 - 1e-9))
    first = math.ceil(low / step - 1e-9)
    return [number * step for number in range(first, math.floor(high / step + 1e-9) + 1)]


def curves(
    lines: Sequence[Line],
    *,
    title: str,
    x_label: str,
    y_label: str,
    x_range: tuple[float, float],
    y_range: tuple[float, float] = (0.0, 1.0),
    square_root: bool = False,
    marker: str = "",
) -> str:
    """Curves over one pair of axes.

    Args:
        lines: at most `SERIES`; each is labelled in a legend under the chart.
        title: what the chart shows, for readers who don't see it.
        x_label: of the horizontal axis.
        y_label: of the vertical one.
        x_range: of the horizontal axis.
        y_range: of the vertical one.
        square_root: whether the horizontal axis is spaced by square roots, so that small values spread; it begins at 0.
        marker: id of a vertical line that the page moves with its threshold; none where empty.
    """
    height = 270
    x_ticks = _square_root_ticks(x_range[1]) if square_root else ticks(*x_range)
    x = _axis(x_range, (LEFT, WIDTH - RIGHT), square_root)
    y = _axis(y_range, (height - BOTTOM, TOP), False)
    parts = [_frame(height, x, y, x_ticks, ticks(*y_range), x_label, y_label)]
    parts += [_polyline(line, number, x, y) for number, line in enumerate(lines[:SERIES])]
    if marker:
        parts.append(
            f'<line id="{marker}" class="marker" x1="{LEFT}" x2="{LEFT}" y1="{TOP}" y2="{height - BOTTOM}" '
            f'data-left="{LEFT}" data-right="{WIDTH - RIGHT}" data-maximum="{x_range[1]:g}"/>'
        )
    return _figure(title, height, parts) + _legend(lines[:SERIES])


def histograms(rows: Sequence[tuple[str, Sequence[float], bool]], *, title: str, x_label: str) -> str:
    """One histogram over the other, on one horizontal axis: each row's shares of its own values.

    Args:
        rows: label and values of each, and whether they are healthy; rows without values are left out.
        title: what the chart shows, for readers who don't see it.
        x_label: of the horizontal axis.
    """
    rows = [row for row in rows if len(row[1])]
    everything = np.concatenate([np.asarray(values, np.float64) for _, values, _ in rows])
    low, high = float(everything.min()), float(everything.max())
    if high <= low:
        low, high = low - 0.5 * abs(low) - 1e-9, high + 0.5 * abs(high) + 1e-9
    edges = np.linspace(low, high, 33)
    each = 84
    height = TOP + each * len(rows) + BOTTOM
    x = _axis((low, high), (LEFT, WIDTH - RIGHT), False)
    parts = []
    for number, (label, values, healthy) in enumerate(rows):
        base = TOP + each * (number + 1)
        shares = np.histogram(values, edges)[0] / len(values)
        parts.append(f'<line class="axis" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{base}" y2="{base}"/>')
        parts.append(f'<text class="row" x="{LEFT}" y="{base - each + 16}">{escape(label)} (n = {len(values)})</text>')
        for left, right, share in zip(edges[:-1], edges[1:], shares, strict=True):
            if share:
                tall = (each - 26) * share / shares.max()
                parts.append(
                    f'<rect class="bar{"" if healthy else " found"}" x="{x(left):.1f}" y="{base - tall:.1f}" '
                    f'width="{x(right) - x(left) - 0.8:.1f}" height="{tall:.1f}"/>'
                )
        middle = x(float(np.median(values)))
        parts.append(f'<line class="median" x1="{middle:.1f}" x2="{middle:.1f}" y1="{base - each + 24}" y2="{base}"/>')
    parts += _x_ticks(height, x, ticks(low, high), x_label)
    return _figure(title, height, parts)


def intervals(
    groups: Sequence[tuple[str, Sequence[tuple[str, Interval]]]], *, title: str, x_label: str, high: float
) -> str:
    """Values with their intervals, one line each, in groups.

    Args:
        groups: heading and lines (label, value) of each.
        title: what the chart shows, for readers who don't see it.
        x_label: of the horizontal axis.
        high: where the horizontal axis, which begins at 0, ends.
    """
    left, each = 130, 19
    height = TOP + each * sum(len(lines) + 1 for _, lines in groups) + BOTTOM
    x = _axis((0.0, high), (left, WIDTH - RIGHT), False)
    parts = [
        f'<line class="grid" x1="{x(t):.1f}" x2="{x(t):.1f}" y1="{TOP}" y2="{height - BOTTOM}"/>'
        for t in ticks(0, high)
    ]
    at = TOP
    for heading, lines in groups:
        at += each
        parts.append(f'<text class="row" x="4" y="{at - 5}">{escape(heading)}</text>')
        for label, one in lines:
            at += each
            parts.append(f'<text x="{left - 8}" y="{at - 4}" text-anchor="end">{escape(label)}</text>')
            if one.ends is not None:
                low, top = (x(end) for end in one.ends)
                parts.append(f'<line class="whisker" x1="{low:.1f}" x2="{top:.1f}" y1="{at - 8}" y2="{at - 8}"/>')
            if one.value is not None:
                parts.append(f'<circle class="dot" cx="{x(one.value):.1f}" cy="{at - 8}" r="4"/>')
    parts += _x_ticks(height, x, ticks(0, high), x_label)
    return _figure(title, height, parts)


def _square_root_ticks(high: float) -> list[float]:
    """Round numbers from 0 to high that are well apart when spaced by their square roots."""
    power = 10.0 ** math.floor(math.log10(high))
    found: list[float] = []
    for number in (power * factor * scale for scale in (1, 0.1, 0.01) for factor in (5, 2, 1)):
        place = math.sqrt(number / high)
        if 0.12 < place <= 1 and (not found or math.sqrt(found[-1] / high) - place > 0.12):
            found.append(number)
    return [0.0, *reversed(found)]


def _polyline(line: Line, number: int, x: Callable[[float], float], y: Callable[[float], float]) -> str:
    points = [
        f"{x(across):.1f},{y(up):.1f}"
        for across, up in zip(line.x, line.y, strict=True)
        if math.isfinite(across) and math.isfinite(up)
    ]
    return f'<polyline class="line s{number}" points="{" ".join(points)}"/>'


def _legend(lines: Sequence[Line]) -> str:
    """Under the chart; none for a single line."""
    if len(lines) < 2:
        return ""
    entries = "".join(
        f'<li><svg class="key" viewBox="0 0 30 8" aria-hidden="true"><line class="line s{number}" x1="0" x2="30" '
        f'y1="4" y2="4"/></svg>{escape(line.label)}</li>'
        for number, line in enumerate(lines)
    )
    return f'<ul class="legend">{entries}</ul>'


def _axis(values: tuple[float, float], places: tuple[float, float], square_root: bool) -> Callable[[float], float]:
    low, high = values
    span = high - low or 1.0

    def at(value: float) -> float:
        share = min(1.0, max(0.0, (value - low) / span))
        return places[0] + (places[1] - places[0]) * (math.sqrt(share) if square_root else share)

    return at


def _frame(
    height: int,
    x: Callable[[float], float],
    y: Callable[[float], float],
    x_ticks: Sequence[float],
    y_ticks: Sequence[float],
    x_label: str,
    y_label: str,
) -> str:
    lines = [f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y(t):.1f}" y2="{y(t):.1f}"/>' for t in y_ticks]
    numbers = [f'<text x="{LEFT - 7}" y="{y(t) + 4:.1f}" text-anchor="end">{t:.3g}</text>' for t in y_ticks]
    middle = (TOP + height - BOTTOM) / 2
    name = f'<text transform="translate(14 {middle:.0f}) rotate(-90)" text-anchor="middle">{escape(y_label)}</text>'
    return "".join([*lines, *numbers, name, *_x_ticks(height, x, x_ticks, x_label)])


def _x_ticks(height: int, x: Callable[[float], float], at: Sequence[float], label: str) -> list[str]:
    base = height - BOTTOM
    marks = [
        f'<line class="axis" x1="{x(t):.1f}" x2="{x(t):.1f}" y1="{base}" y2="{base + 4}"/>'
        f'<text x="{x(t):.1f}" y="{base + 16}" text-anchor="middle">{t:.3g}</text>'
        for t in at
    ]
    return [*marks, f'<text x="{WIDTH - RIGHT}" y="{height - 6}" text-anchor="end">{escape(label)}</text>']


def _figure(title: str, height: int, parts: Sequence[str]) -> str:
    head = f'<svg class="chart" viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{escape(title)}">'
    return head + "".join(parts) + "</svg>"
