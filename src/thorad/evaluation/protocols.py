"""What the field reports: a table of protocols, each a named function; the table that it gives is in `tables`."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

from thorad.datasets.cases import Case, read_cases
from thorad.evaluation.boxes import boxes
from thorad.evaluation.lesions import brain_lesions
from thorad.evaluation.volumes import brain_volumes

Rows = list[dict[str, Any]]


@dataclass(frozen=True)
class Protocol:
    """One way to measure, and what it needs."""

    read: Callable[[Path], list[Case]]
    """Reads the user's table of cases."""
    measure: Callable[..., tuple[Rows, Rows]]
    """Turns (cases, healthy, detectors) into the results and the rows of `cases.csv`."""
    headline: Callable[[Mapping[str, Any]], float | None]
    """The one figure by which a result is judged, in percent."""
    headline_name: str
    validated: bool = False
    """Whether it chooses a threshold on validation cases."""


PROTOCOLS: Final[Mapping[str, Protocol]] = MappingProxyType(
    {
        "brain-lesions": Protocol(
            read=read_cases,
            measure=brain_lesions,
            headline=lambda result: result["best_dice"]["average"],
            headline_name="average best Dice",
        ),
        "brain-volumes": Protocol(
            read=read_cases,
            measure=brain_volumes,
            headline=lambda result: _percent(result["mean_dice"]),
            headline_name="mean Dice",
            validated=True,
        ),
        "boxes": Protocol(
            read=partial(read_cases, truth="boxes"),
            measure=boxes,
            headline=lambda result: _percent(result["kinds"]["all"]["f1"]),
            headline_name="F1",
        ),
    }
)
"""Name -> protocol."""

DEFAULT_PROTOCOL: Final = "brain-lesions"


def _percent(value: float | None) -> float | None:
    return None if value is None else 100 * value
