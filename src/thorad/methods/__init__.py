"""The methods: one paper a file, one function a method, one network for all (`thorad.methods.contract`)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from thorad.methods.contract import Restoration, Step
from thorad.methods.ddpm import DdpmOptions, ddpm
from thorad.methods.thor import THOR_GAUSSIAN, ThorOptions, thor
from thorad.methods.zscore import ZScoreOptions, zscore

__all__ = ["METHODS", "Method", "Restoration", "Step", "ZScoreOptions"]


@dataclass(frozen=True)
class Method:
    """A method as users ask for it by name."""

    restore: Callable[..., Restoration]
    options: Mapping[str, DdpmOptions | ThorOptions]
    """Its options for each kind of noise, the default kind first; empty for a method without a network."""
    perceptual: bool
    """Whether its map is |x - x_rec| * LPIPS (THOR) or |x - x_rec| alone."""
    overlay_maximum: float
    """Map value at which an overlay's colours end; one value for all cases, so that pictures compare."""
    two_sided: bool = False
    """Of the z-score: whether brighter than healthy counts as well."""


METHODS: Mapping[str, Method] = MappingProxyType(
    {
        "thor": Method(thor, {"simplex": ThorOptions(), "gaussian": THOR_GAUSSIAN}, True, 0.1),
        "anoddpm": Method(ddpm, {"simplex": DdpmOptions(noise_level=250)}, False, 0.5),
        "ddpm": Method(ddpm, {"gaussian": DdpmOptions(noise_level=350)}, False, 0.5),
        "zscore": Method(zscore, {}, False, 5.0),
        "zscore-two-sided": Method(zscore, {}, False, 5.0, two_sided=True),
    }
)
