"""What the server asks the worker process to do."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from thorad.io.scans import Scan


@dataclass(frozen=True)
class Settings:
    """What a user chooses for an upload."""

    model: str
    method: str
    noise: str | None
    indices: Sequence[int] | None
    """Of the slices of volumes to detect in; None: the model's own."""
    force: bool = False
    """Detect also in what the model can't judge."""


@dataclass(frozen=True)
class Order:
    """Scans to detect in."""

    scans: Mapping[str, Scan]
    settings: Settings
    out: Path
    """The result folder."""
    left_out: Mapping[str, int]
    """{why: how many} files came that are no scans."""
