"""Whether a scan is what a model can judge: what the detector found out before it ran, and refusing to go on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

from thorad.errors import ThoradError

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


class RefusedError(ThoradError):
    """A scan that the model can't judge: its result would look valid and would not be."""

    def __init__(self, source: str, check: Check) -> None:
        super().__init__(f"{source}: refused: {'; '.join(check.refusals)}")
        self.check = check
