"""A detector that works on the workers of a cluster, and what stands in for it in the process that calls them."""

from __future__ import annotations

import pickle
import socket
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from importlib.metadata import version
from typing import Any

from thorad.apps.run import result_options
from thorad.detector import Detector
from thorad.errors import ThoradError

OF_THE_DEVICE = ("device", "precision", "batch_size")
"""What the workers' devices decide of a detector's provenance."""


class ClusterDetector(Detector):
    """The workers' detector as the calling process knows it: with their device in its provenance, but without one.

    It becomes a `Detector` where it is unpickled, loaded once in a process.

    Args:
        asked: the options that `Detector` takes, pickled; the device is the workers'.
        there: of `describe`.

    Raises:
        ThoradError: as `Detector`; the workers have another model, or another calibration of it.
    """

    def __init__(self, asked: bytes, there: Mapping[str, Any]) -> None:
        self._asked, self._there = asked, {name: there["options"][name] for name in OF_THE_DEVICE}
        super().__init__(**{**pickle.loads(asked), "device": "cpu"})
        self.batch_size = there["images_at_once"]
        refuse_other(there["options"], result_options(self), there["host"])

    def provenance(self) -> dict[str, Any]:
        """As of the workers' detectors."""
        return {**super().provenance(), **self._there}

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return _checked, (self._asked, result_options(self))


def describe(asked: Sequence[bytes]) -> list[dict[str, Any]]:
    """What a detector with each of these options is like in this process."""
    described = []
    for options in asked:
        detector = _loaded(options)
        about: dict[str, Any] = {"options": result_options(detector), "images_at_once": detector.batch_size}
        versions = {name: version(name) for name in ("torch", "monai", "numpy", "scipy")}
        described.append({**about, "versions": versions, "host": socket.gethostname()})
    return described


@lru_cache(maxsize=1)
def _loaded(options: bytes) -> Detector:
    return Detector(**pickle.loads(options))


def _checked(options: bytes, expected: Mapping[str, Any]) -> Detector:
    """The detector of this process; a ThoradError where its results would not be those that are expected."""
    detector = _loaded(options)
    refuse_other(result_options(detector), expected, socket.gethostname())
    return detector


def refuse_other(found: Mapping[str, Any], expected: Mapping[str, Any], host: str) -> None:
    """Refuse a worker whose results would be of other options than those of the run.

    Raises:
        ThoradError: which differ.
    """
    odd = [
        f"{name} {found.get(name)!r} ({expected.get(name)!r} in this run)"
        for name in expected
        if found.get(name) != expected[name]
    ]
    if odd:
        raise ThoradError(
            f"a worker on {host} has another detector than this run: {'; '.join(odd)}. All workers need the same "
            "model, the same version of thorad and the same kind of device (--device cpu or cuda makes it so)."
        )
