"""Whether a scan is what a model can judge: what the detector found out before it ran, and refusing to go on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal

from thorad.errors import ThoradError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Status = Literal["ok", "warned", "refused"]


@dataclass(frozen=True)
class Check:
    """What speaks against a result; each reason is a text that begins in lower case."""

    refusals: tuple[str, ...] = ()
    """Why a result would look valid and would not be. A detection that has any was forced."""
    warnings: tuple[str, ...] = ()
    """Why a result may mean less than it looks like."""

    def __add__(self, other: Check) -> Check:
        """The reasons of both, each once."""
        refusals, warnings = (*self.refusals, *other.refusals), (*self.warnings, *other.warnings)
        return Check(tuple(dict.fromkeys(refusals)), tuple(dict.fromkeys(warnings)))

    @property
    def status(self) -> Status:
        """The worst that was found."""
        return "refused" if self.refusals else "warned" if self.warnings else "ok"

    @property
    def reasons(self) -> tuple[str, ...]:
        """The refusals, then the warnings."""
        return (*self.refusals, *self.warnings)

    @property
    def message(self) -> str:
        """All reasons in one line; empty where there is none."""
        return "; ".join(self.reasons)


NOTHING_FOUND: Final = Check()

MOST_MARKED: Final = 0.4
"""Share of the pixels that are judged. Of the sick scans at hand the bundled critic marks up to 0.39 (21 gliomas) and
0.19 (116 implants), of healthy ones up to 0.01."""


def check_marked(mask: NDArray[np.bool_] | None, judged: NDArray[np.bool_]) -> Check:
    """A warning where more pixels are marked than in any sick scan at hand: then the scan itself is the likelier cause.

    Args:
        mask: (H, W), what is above the threshold; None without one.
        judged: (H, W), where an anomaly counts.
    """
    if mask is None or mask.sum() <= MOST_MARKED * judged.sum():
        return NOTHING_FOUND
    share = f"{100 * mask.sum() / judged.sum():.0f} % of what was judged is marked"
    return Check(warnings=(f"{share}: a very large lesion, or not the model's kind of scan, height or sequence",))


class RefusedError(ThoradError):
    """A scan that the model can't judge: its result would look valid and would not be."""

    def __init__(self, source: str, check: Check) -> None:
        super().__init__(f"{source}: refused: {'; '.join(check.refusals)}")
        self.check = check
