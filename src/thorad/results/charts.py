"""Panels of a report: tables and charts. thorad/assets/report/charts.html draws a chart; here is what is where in it.

Lengths and places are in px of the drawing.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from thorad.table import Table

WIDTH, LEFT, RIGHT, BOTTOM, TOP = 440, 50, 14, 40, 12
"""Of the chart, and of the margins around its axes."""

SERIES = 8
"""Line styles that the style sheet has."""

BINS = 32
"""Of a histogram."""


@dataclass(frozen=True)
class Axis:
    """Values from `low` to `high` along a line from `start` to `end`; what lies outside is put at its end."""

    low: float
    high: float
    start: float
    end: float
    square_root: bool = False
    """Whether values are spaced by their square roots, so that small ones spread; `low` is 0 then."""

    def __call__(self, value: float) -> float:
        """The place of a value."""
        share = min(1.0, max(0.0, (value - self.low) / (self.high - self.low or 1.0)))
        return self.start + (self.end - self.start) * (math.sqrt(share) if self.square_root else share)

    @property
    def ticks(self) -> list[float]:
        """Round numbers to write along it."""
        return square_root_ticks(self.high) if self.square_root else ticks(self.low, self.high)


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
class Line:
    """One curve of a chart; points that are not finite are left out."""

    label: str
    x: Sequence[float]
    y: Sequence[float]

    @property
    def points(self) -> list[tuple[float, float]]:
        """The points that are finite."""
        return [(x, y) for x, y in zip(self.x, self.y, strict=True) if math.isfinite(x) and math.isfinite(y)]


@dataclass(frozen=True)
class Chart:
    """What the charts have in common: a horizontal axis under all the rest."""

    title: str
    """What the chart shows, for readers who don't see it."""
    x_label: str

    width: ClassVar = WIDTH
    top: ClassVar = TOP

    @property
    def base(self) -> int:
        """Where the horizontal axis lies."""
        raise NotImplementedError

    @property
    def height(self) -> int:
        """Of the chart."""
        return self.base + BOTTOM


@dataclass(frozen=True)
class Curves(Chart):
    """Curves over one pair of axes, with a legend under the chart where there are several."""

    y_label: str
    lines: Sequence[Line]
    """At most `SERIES`."""
    x_maximum: float
    """Both axes begin at 0; the vertical one ends at 1."""
    square_root: bool = False
    """See `Axis`; of the horizontal one."""
    marker: str = ""
    """Id of a vertical line that the page moves with its threshold; none where empty."""

    kind: ClassVar = "curves"
    base: ClassVar = 230
    y: ClassVar = Axis(0.0, 1.0, base, TOP)

    @property
    def x(self) -> Axis:
        """The horizontal axis."""
        return Axis(0.0, self.x_maximum, LEFT, WIDTH - RIGHT, self.square_root)


@dataclass(frozen=True)
class Sample:
    """Values of one kind, at least one."""

    label: str
    values: Sequence[float]
    healthy: bool

    @property
    def median(self) -> float:
        """Of the values."""
        return float(np.median(self.values))


@dataclass(frozen=True)
class Histograms(Chart):
    """One histogram over the other, on one horizontal axis: each row's shares of its own values."""

    rows: Sequence[Sample]

    kind: ClassVar = "histograms"
    row_height: ClassVar = 84
    bar_height: ClassVar = row_height - 26
    """Of the highest bar."""

    @property
    def base(self) -> int:
        """Where the horizontal axis lies."""
        return self.base_of(len(self.rows) - 1)

    def base_of(self, row: int) -> int:
        """Where the bars of a row stand."""
        return TOP + self.row_height * (row + 1)

    @property
    def x(self) -> Axis:
        """The horizontal axis, which all values fit on."""
        low, high = min(min(row.values) for row in self.rows), max(max(row.values) for row in self.rows)
        if high <= low:
            low, high = low - 0.5 * abs(low) - 1e-9, high + 0.5 * abs(high) + 1e-9
        return Axis(low, high, LEFT, WIDTH - RIGHT)

    def bars(self, row: Sample) -> Iterator[tuple[float, float, float]]:
        """Left and right end and height of each bar of a row."""
        x = self.x
        edges = np.linspace(x.low, x.high, BINS + 1)
        counts = np.histogram(row.values, edges)[0]
        for left, right, count in zip(edges[:-1], edges[1:], counts, strict=True):
            if count:
                yield x(left), x(right), self.bar_height * count / counts.max()


@dataclass(frozen=True)
class Intervals(Chart):
    """Values with their intervals, one line each; headings group them. The axis begins at 0."""

    lines: Sequence[tuple[str, Interval | None]]
    """Label and value; a heading has None."""
    x_maximum: float

    kind: ClassVar = "intervals"
    line_height: ClassVar = 19

    @property
    def base(self) -> int:
        """Where the horizontal axis lies."""
        return TOP + self.line_height * len(self.lines)

    @property
    def x(self) -> Axis:
        """The horizontal axis; the labels stand to its left."""
        return Axis(0.0, self.x_maximum, 130, WIDTH - RIGHT)


@dataclass(frozen=True)
class Panel:
    """A chart or a table of a report, and what there is to know about it."""

    title: str
    content: Chart | Table
    words: str
    """Below it."""


def ticks(low: float, high: float, about: int = 5) -> list[float]:
    """Round numbers from low to high, as steps of 1, 2 or 5 times a power of ten."""
    if not high > low:
        return [low]
    rough = (high - low) / about
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough * (1 - 1e-9))
    first = math.ceil(low / step - 1e-9)
    return [number * step for number in range(first, math.floor(high / step + 1e-9) + 1)]


def square_root_ticks(high: float) -> list[float]:
    """Round numbers from 0 to high that are well apart when spaced by their square roots."""
    power = 10.0 ** math.floor(math.log10(high))
    chosen: list[float] = []
    for number in (power * factor * scale for scale in (1, 0.1, 0.01) for factor in (5, 2, 1)):
        place = math.sqrt(number / high)
        if 0.12 < place <= 1 and (not chosen or math.sqrt(chosen[-1] / high) - place > 0.12):
            chosen.append(number)
    return [0.0, *reversed(chosen)]
