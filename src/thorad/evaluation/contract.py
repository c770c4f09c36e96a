"""What a protocol is, and what all protocols share: run the detectors, measure each, compare them over subjects."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, NamedTuple, TypeVar

import numpy as np

from thorad.datasets.cases import Case, Truth, read_cases
from thorad.evaluation.metrics import Floats, subject_resamples
from thorad.evaluation.runs import DetectorRun, MapDetector, Progress, Read, TruthType, healthy_cases, run_detectors
from thorad.evaluation.statistics import Figures, Sample, Swaps, subject_swaps, versus

Rows = list[dict[str, Any]]
KeptType = TypeVar("KeptType")


class Resampling(NamedTuple):
    """How uncertainty is estimated; the same resamples and permutations for all detectors."""

    bootstrap: int  # resamples over subjects for the intervals; 0 for none
    permutations: int  # of the test between methods; 0 for none
    seed: int

    def weights(self, subjects: Sequence[str]) -> Floats:
        """(R, N) how often each of N cases counts in each resample, given their subjects."""
        return subject_resamples(subjects, self.bootstrap, np.random.default_rng(self.seed))

    def swaps(self, subjects: Sequence[str]) -> Swaps:
        """Which of N cases change places in each permutation, given their subjects."""
        return subject_swaps(subjects, self.permutations, np.random.default_rng([self.seed, 1]))


@dataclass(frozen=True)
class Measured(Generic[KeptType]):
    """One detector's figures, and what is needed to compare them with another's."""

    result: dict[str, Any]  # as in metrics.json, without `versus`
    rows: Rows  # of cases.csv
    subjects: list[str]  # of the N cases (boxes, volumes) that the compared figures are over
    sample: Sample  # the figures in which methods are compared
    kept: KeptType  # what `Protocol.pair` makes these figures of


@dataclass(frozen=True)
class Protocol(Generic[TruthType, KeptType]):
    """One way to measure."""

    truth: Truth  # the column of the user's table that says what is to be found
    read_truth: Read[TruthType]
    measure: Callable[[DetectorRun[TruthType], Resampling], Measured[KeptType]]  # one detector's figures
    pair: Callable[[KeptType, KeptType], Figures]  # the compared figures of two detectors
    headline: Callable[[Mapping[str, Any]], float | None]  # the one by which a result is judged, in percent
    headline_name: str
    check_validation: Callable[[Sequence[Case], Sequence[Case]], None] | None = None
    """Refuses (cases, validation cases) that don't go together; None: the protocol takes no validation cases."""

    def read(self, table: Path) -> list[Case]:
        """Read the user's table of cases."""
        return read_cases(table, truth=self.truth)

    def run(
        self,
        cases: Sequence[Case],
        healthy: Sequence[Path],
        detectors: Sequence[MapDetector],
        resampling: Resampling,
        *,
        validation: Sequence[Case] = (),
        on_progress: Progress | None = None,
        keep: Path | None = None,
    ) -> tuple[Rows, Rows]:
        """The results and the rows of cases.csv; see `evaluate` for the arguments."""
        named = [*cases, *healthy_cases(cases, healthy)]
        if self.check_validation is not None:
            self.check_validation(named, validation)
        runs = run_detectors(
            named, detectors, self.read_truth, self.truth, validation=validation, on_progress=on_progress, keep=keep
        )
        measured = [self.measure(run, resampling) for run in runs]

        def pair(first: int, second: int) -> Figures:
            return self.pair(measured[first].kept, measured[second].kept)

        compared = versus([one.sample for one in measured], pair, resampling.swaps(measured[0].subjects))
        results = [one.result | {"versus": entries} for one, entries in zip(measured, compared, strict=True)]
        return results, [row for one in measured for row in one.rows]


def percent(fraction: float | None) -> float | None:
    """A headline that is kept as a fraction."""
    return None if fraction is None else 100 * fraction
