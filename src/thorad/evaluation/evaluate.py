"""Run detectors over labelled cases and write what they found: `metrics.json`, `cases.csv` and `table.md`.

Everything is measured on the model's own grid (128x128 in the paper): images and masks take the same way there.

Units: everything under `best_dice` (its intervals, differences of its averages) is in percent; every other metric is a
fraction in [0, 1]; thresholds are in map units. What can't be computed (no healthy scans, no lesion of a size) is null,
never NaN.
"""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np

from thorad.datasets.cases import Case
from thorad.errors import ThoradError
from thorad.evaluation.boxes import BOXES
from thorad.evaluation.lesions import BRAIN_LESIONS
from thorad.evaluation.runs import MapDetector, Progress, Protocol, Resampling
from thorad.evaluation.statistics import FLOOR, PERMUTATIONS, title
from thorad.evaluation.tables import table_of
from thorad.evaluation.volumes import BRAIN_VOLUMES
from thorad.executor import Executor, here
from thorad.io.atomic import write_atomic
from thorad.io.tables import write_table

PROTOCOLS: Final[Mapping[str, Protocol[Any, Any]]] = {
    "brain-lesions": BRAIN_LESIONS,
    "brain-volumes": BRAIN_VOLUMES,
    "boxes": BOXES,
}
DEFAULT_PROTOCOL: Final = "brain-lesions"


def evaluate(
    cases: Sequence[Case],
    healthy: Sequence[Path],
    detectors: Sequence[MapDetector],
    out: Path,
    *,
    protocol: str = DEFAULT_PROTOCOL,
    validation: Sequence[Case] = (),
    bootstrap: int = 1000,
    permutations: int = PERMUTATIONS,
    seed: int = 0,
    asked_calls: Sequence[int] = (),
    on_progress: Progress | None = None,
    keep_maps: bool = False,
    executor: Executor = here,
) -> list[dict[str, Any]]:
    """Measure detectors on labelled cases, write `metrics.json`, `cases.csv` and `table.md`, and return the results.

    A case that can't be used (unreadable, its mask has another size or more than two values, or one of the detectors
    gives it a map that is not finite) is left out for every detector, so that all are compared on the same cases, and
    listed under `failures` of every result. See the module's head for the units.

    Args:
        cases: what `PROTOCOLS[protocol].read` gives: cases with a mask or boxes, and healthy ones without.
        healthy: more healthy images. One that is also among `cases` without a finding is taken once.
        detectors: of one model or several; all see the same cases and the same bootstrap resamples.
        out: folder for the three files, made if absent. Each file is written whole or not at all.
        protocol: one of `PROTOCOLS`.
        validation: labelled cases of other subjects, on which `brain-volumes` chooses its threshold.
        bootstrap: resamples over subjects for the 95 % intervals; 0 for no intervals.
        permutations: of the test between methods; 0 for no p-values.
        seed: of the bootstrap and the permutations.
        asked_calls: the network calls that methods were to have; the tables mark those that have others.
        on_progress: see `runs.Progress`.
        keep_maps: keep maps in `out`/maps, and take those that are there, so that an interrupted evaluation resumes.
        executor: where the maps are made; the figures are the same.

    Raises:
        ThoradError: an unknown protocol, no case with a finding can be used, one is among `healthy`, a model was
            trained on a case, validation cases for a protocol that uses none, or `out` can't be written.
    """
    _check_beforehand(protocol, detectors, validation, out)
    found, rows = PROTOCOLS[protocol].run(
        cases,
        healthy,
        detectors,
        Resampling(bootstrap, permutations, seed),
        validation=validation,
        on_progress=on_progress,
        keep=out / "maps" if keep_maps else None,
        executor=executor,
    )
    asked = {"asked_calls": list(asked_calls)} if asked_calls else {}
    results = [_without_nan({"protocol": protocol, **asked, **result}) for result in found]
    columns = dict.fromkeys(
        key for row in rows for key in row
    )  # a row has draws or settings only where they were asked
    write_table(out / "cases.csv", list(columns), map(_without_nan, rows))
    write_atomic(out / "table.md", table_of(results).markdown().encode())
    write_atomic(out / "metrics.json", (json.dumps(results, indent=2, allow_nan=False) + "\n").encode())
    return results


def baseline_warning(results: Sequence[Mapping[str, Any]]) -> str | None:
    """Say so when a z-score, which needs no network, does as well as another method on the protocol's main figure.

    None when every other method is above every z-score, or when one of the two kinds is missing.
    """
    protocol = PROTOCOLS[results[0]["protocol"]]
    figures = [(result, figure) for result in results if (figure := protocol.headline(result)) is not None]
    baselines = [pair for pair in figures if str(pair[0]["method"]).startswith(FLOOR)]
    others = [pair for pair in figures if pair not in baselines]
    if not baselines:
        return None
    baseline, reached = max(baselines, key=lambda pair: pair[1])
    beaten = [f"{title(result)} ({figure:.1f} %)" for result, figure in others if figure <= reached]
    if not beaten:
        return None
    return (
        f"{title(baseline)} needs no network and reaches {reached:.1f} % {protocol.headline_name} here, at or above "
        f"{', '.join(beaten)}. On images like these such a method has not earned its cost: prefer the z-score, or "
        "train a model on more, or more similar, healthy images."
    )


def _check_beforehand(protocol: str, detectors: Sequence[MapDetector], validation: Sequence[Case], out: Path) -> None:
    """Fail before the work on what would fail after it."""
    if protocol not in PROTOCOLS:
        raise ThoradError(f"Unknown protocol {protocol!r}. Known: {', '.join(PROTOCOLS)}.")
    if not detectors:
        raise ThoradError("No method to evaluate was given; name at least one.")
    if validation and PROTOCOLS[protocol].check_validation is None:
        raise ThoradError(
            f"The protocol {protocol} chooses nothing on validation cases, but some were given. Leave them out."
        )
    write_atomic(out / ".probe", b"")
    (out / ".probe").unlink()


def _without_nan(value: Any) -> Any:
    """Turn NaN into None and arrays of no dimension into numbers, all the way down."""
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_without_nan(item) for item in value]
    if isinstance(value, float | np.ndarray | np.floating):
        number = float(value)
        return number if math.isfinite(number) else None
    return value
