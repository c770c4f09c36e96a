"""What an evaluation keeps beside its maps, so that a report shows its cases: scans and truths as they were measured.

Shapes: S the side of a model's grid.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np

from thorad.evaluation.metrics import Bools, Floats
from thorad.evaluation.sizes import size_group
from thorad.io.atomic import write_atomic
from thorad.io.images import write_png8

INDEX: Final = Path("maps") / "index.json"
"""In an evaluation's folder: a list of cases, each with the file of its map, scan and truth for every result."""


class KeptCase(NamedTuple):
    """One case as one detector saw it."""

    name: str
    scan: Floats  # (S, S) in [0, 1]
    truth: Bools  # (S, S)
    map_file: str


def keep_cases(runs: Sequence[Sequence[KeptCase]], folder: Path) -> None:
    """Write the scans, the truths and the index; the largest lesions first, healthy cases last.

    Args:
        runs: of each detector, the same cases in the same order.
        folder: that of the maps.
    """
    cases = []
    for number, of_case in enumerate(zip(*runs, strict=True)):
        maps = []
        for case in of_case:
            side = len(case.scan)
            stem = f"case-{number:05d}-{side}"
            scan, truth = f"{stem}.png", f"{stem}-truth.png" if case.truth.any() else None
            write_png8(folder / scan, case.scan)
            if truth:
                write_png8(folder / truth, case.truth.astype(np.float64))
            maps.append({"map": case.map_file, "side": side, "scan": scan, "truth": truth})
        first = of_case[0]
        pixels = int(first.truth.sum())
        size = size_group(pixels, len(first.scan))
        cases.append({"name": first.name, "pixels": pixels, "size": size, "maps": maps})
    cases.sort(key=lambda case: -case["pixels"])
    write_atomic(folder / INDEX.name, (json.dumps(cases, indent=1) + "\n").encode())
