"""Where what is in the charts of a report, which thorad/assets/report/charts.html draws. Places are in px."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

BINS = 32
"""Of a histogram."""


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
        return _square_root_ticks(self.high) if self.square_root else ticks(self.low, self.high)


def finite_points(line: tuple[str, Sequence[float | None], Sequence[float | None]]) -> list[tuple[float, float]]:
    """The points of a line (label, x, y) that are known: neither None nor NaN."""
    _, xs, ys = line
    points = [(math.nan if x is None else x, math.nan if y is None else y) for x, y in zip(xs, ys, strict=True)]
    return [point for point in points if all(map(math.isfinite, point))]


def bars(values: Sequence[float], x: Axis) -> Iterator[tuple[float, float, float]]:
    """Left and right end of each bar of a histogram, and its height as a share of the highest one's."""
    edges = np.linspace(x.low, x.high, BINS + 1)
    counts = np.histogram(values, edges)[0]
    for left, right, count in zip(edges[:-1], edges[1:], counts, strict=True):
        if count:
            yield x(left), x(right), count / counts.max()


def ticks(low: float, high: float, about: int = 5) -> list[float]:
    """Round numbers from low to high, as steps of 1, 2 or 5 times a power of ten."""
    if not high > low:
        return [low]
    rough = (high - low) / about
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough * (1 - 1e-9))
    first = math.ceil(low / step - 1e-9)
    return [number * step for number in range(first, math.floor(high / step + 1e-9) + 1)]


def _square_root_ticks(high: float) -> list[float]:
    """Round numbers from 0 to high that are well apart when spaced by their square roots."""
    power = 10.0 ** math.floor(math.log10(high))
    chosen: list[float] = []
    for number in (power * factor * scale for scale in (1, 0.1, 0.01) for factor in (5, 2, 1)):
        place = math.sqrt(number / high)
        if 0.12 < place <= 1 and (not chosen or math.sqrt(chosen[-1] / high) - place > 0.12):
            chosen.append(number)
    return [0.0, *reversed(chosen)]
