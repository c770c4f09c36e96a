"""A training as one HTML page, and its curve as a picture."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path

import numpy as np

from thorad.io.atomic import write_atomic
from thorad.results.charts import Axis
from thorad.results.page import render

MOST_STRIPS = 3
"""Pictures of restorations on the page: the first, one of the middle, the last."""

Points = Mapping[str, Sequence[tuple[int, float]]]
"""Steps and what was measured there, by name."""

Line = tuple[str, list[int], list[float]]
"""Name, steps, values."""


def write_training_page(
    out: Path,
    *,
    state: str,
    points: Points,
    every: int,
    facts: Mapping[str, str],
    settings: str,
    labels: Sequence[str],
) -> None:
    """Write ``curve.svg`` and ``training.html`` of the training in a folder.

    Args:
        out: the folder; ``pictures/step-<step>.png`` in it are shown.
        state: how far it is.
        points: losses; those of the training are means over `every` steps.
        facts: what was trained on what, by what is to be told of it.
        labels: what the rows of the pictures show, from the top.
    """
    lines: list[Line] = [
        (name.replace("/", " "), [step for step, _ in of], [value for _, value in of])
        for name, of in points.items()
        if of
    ]
    axes = _axes(lines)
    write_atomic(out / "curve.svg", render("training/curve.svg", lines=lines, alone=True, **axes).strip().encode())
    page = render(
        "training/training.html",
        heading=out.resolve().name,
        state=state,
        written=f"{datetime.now().astimezone():%Y-%m-%d %H:%M %Z}",
        lines=lines,
        every=every,
        restored=[(int(path.stem.removeprefix("step-")), _data_uri(path)) for path in _strips(out / "pictures")],
        labels=labels,
        facts=list(facts.items()),
        settings=settings,
        **axes,
    )
    write_atomic(out / "training.html", page.encode())


def _axes(lines: Sequence[Line]) -> dict[str, Axis]:
    """Of lines (name, steps, values); the first steps' losses would press all others to the ground, and are cut."""
    values = np.array([value for _, _, of in lines for value in of])
    finite = values[np.isfinite(values)]
    highest = 1.1 * float(np.quantile(finite, 0.97)) if finite.size else 0.0
    last = max((steps[-1] for _, steps, _ in lines), default=1)
    return {"x": Axis(0.0, float(last), 60, 690), "y": Axis(0.0, highest or 1.0, 310, 14)}


def _strips(folder: Path) -> list[Path]:
    every = sorted(folder.glob("step-*.png"))
    places = sorted({round(place) for place in np.linspace(0, len(every) - 1, MOST_STRIPS)} if every else ())
    return [every[place] for place in places]


def _data_uri(picture: Path) -> str:
    return f"data:image/png;base64,{base64.b64encode(picture.read_bytes()).decode()}"
