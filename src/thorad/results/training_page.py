"""A training as one HTML page, and its curve as a picture."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np

from thorad.io.atomic import write_atomic
from thorad.results.charts import Axis
from thorad.results.page import render

MOST_STRIPS = 3
"""Pictures of restorations on the page: the first, one of the middle, the last."""

PRECISION = "validation/average_precision"
"""What isn't a loss among `Points`."""

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
    images_per_step: int,
    measured_on: str,
    keeps_best: bool,
    facts: Mapping[str, str],
    settings: str,
    labels: Sequence[str],
) -> None:
    """Write ``training.html`` of the training in a folder, and its curves: of the losses, of the average precision.

    Args:
        out: the folder; ``pictures/step-<step>.png`` in it are shown.
        state: how far it is.
        points: losses, those of the training means over `every` steps; `PRECISION` where it is measured.
        images_per_step: of all processes.
        measured_on: what the average precision is measured on, in words.
        keeps_best: whether the model gets the weights of the highest one.
        facts: what was trained on what, by what is to be told of it.
        labels: what the rows of the pictures show, from the top.
    """
    losses = _losses(points)
    write_atomic(out / "curve.svg", _alone(losses))
    precision = _precision(points.get(PRECISION, ()), images_per_step, keeps_best=keeps_best)
    if precision:
        write_atomic(out / "average_precision.svg", _alone(precision))
    page = render(
        "training/training.html",
        **{"heading": out.resolve().name, "state": state},
        written=f"{datetime.now().astimezone():%Y-%m-%d %H:%M %Z}",
        **{"losses": losses, "every": every, "precision": precision, "measured_on": measured_on},
        restored=[(int(path.stem.removeprefix("step-")), _data_uri(path)) for path in _strips(out / "pictures")],
        **{"labels": labels, "facts": list(facts.items()), "settings": settings},
    )
    write_atomic(out / "training.html", page.encode("utf-8", "replace"))  # a folder's name may hold half a character


def _losses(points: Points) -> dict[str, Any]:
    """The chart of all but the average precision over the steps."""
    lines: list[Line] = [
        (name.replace("/", " "), [step for step, _ in of], [value for _, value in of])
        for name, of in points.items()
        if of and name != PRECISION
    ]
    return {"lines": lines, "label": "Losses", "x_label": "step", **_axes(lines)}


def _precision(points: Sequence[tuple[int, float]], images_per_step: int, *, keeps_best: bool) -> dict[str, Any]:
    """The chart of the average precision over the images seen; empty without any."""
    if not points:
        return {}
    best = max(points, key=lambda point: point[1])
    lines: list[Line] = [("average precision", [images_per_step * at for at, _ in points], [v for _, v in points])]
    chart = {"lines": lines, "label": "Average precision", "x_label": "images seen", **_axes(lines, shown=1.0)}
    return {**chart, "best": (images_per_step * best[0], *best), "keeps_best": keeps_best}


def _alone(chart: Mapping[str, Any]) -> bytes:
    """A chart as a file of its own."""
    return render("training/curve.svg", chart=chart, alone=True).strip().encode()


def _axes(lines: Sequence[Line], shown: float = 0.97) -> dict[str, Axis]:
    """Of lines, for a share of their values: the first losses would press all others to the ground, and are cut."""
    values = np.array([value for _, _, of in lines for value in of])
    finite = values[np.isfinite(values)]
    highest = 1.1 * float(np.quantile(finite, shown)) if finite.size else 0.0
    last = max((steps[-1] for _, steps, _ in lines), default=1)
    return {"x": Axis(0.0, float(last), 84, 690), "y": Axis(0.0, highest or 1.0, 310, 14)}


def _strips(folder: Path) -> list[Path]:
    every = sorted(folder.glob("step-*.png"))
    places = sorted({round(place) for place in np.linspace(0, len(every) - 1, MOST_STRIPS)} if every else ())
    return [every[place] for place in places]


def _data_uri(picture: Path) -> str:
    return f"data:image/png;base64,{base64.b64encode(picture.read_bytes()).decode()}"
