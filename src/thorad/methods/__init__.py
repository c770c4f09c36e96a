"""The methods: one paper a file, one function a method, one network for all (`thorad.methods.contract`)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal

from thorad.methods.autoddpm import AutoDdpmOptions, autoddpm
from thorad.methods.contract import Restoration, Step
from thorad.methods.ddpm import DdpmOptions, ddpm
from thorad.methods.pddpm import PddpmOptions, pddpm
from thorad.methods.published import (
    PUBLISHED_THOR_GAUSSIAN,
    PublishedDdpmOptions,
    PublishedThorOptions,
    published_ddpm,
    published_thor,
)
from thorad.methods.thor import THOR_GAUSSIAN, ThorOptions, thor
from thorad.methods.thor_plus import ThorPlusOptions, thor_plus
from thorad.methods.zscore import ZScoreOptions, zscore

__all__ = ["METHODS", "PUBLISHED", "Method", "Restoration", "Step", "ZScoreOptions"]


@dataclass(frozen=True)
class Method:
    """A method as users ask for it by name."""

    restore: Callable[..., Restoration]
    options: Mapping[str, Any]
    """Its options for each kind of noise, the default kind first; empty for a method without a network."""
    compare: Literal["residual", "perceptual", "anomaly_map", "published_map"]
    """What it compares two images with: |x - x_rec|, LPIPS, THOR's product of the two, or what the published code makes
    of that product."""
    overlay_maximum: float
    """Map value at which an overlay's colours end; one value for all cases, so that pictures compare."""
    patched: bool = False
    """Whether its network learned to restore a box of an image that is clean elsewhere (`patch_noise`)."""
    two_sided: bool = False
    """Of the z-score: whether brighter than healthy counts as well."""

    statistics: bool = False
    """Whether it needs the training images' mean and standard deviation, which imported models lack."""

    @property
    def perceptual(self) -> bool:
        """Whether it needs LPIPS."""
        return self.compare != "residual"


METHODS: Mapping[str, Method] = MappingProxyType(
    {
        "thor": Method(thor, {"simplex": ThorOptions(), "gaussian": THOR_GAUSSIAN}, "anomaly_map", 0.1),
        "thor+": Method(thor_plus, {"simplex": ThorPlusOptions()}, "anomaly_map", 3.0, statistics=True),
        "anoddpm": Method(ddpm, {"simplex": DdpmOptions(noise_level=250)}, "residual", 0.5),
        "pddpm": Method(pddpm, {"simplex": PddpmOptions()}, "residual", 0.5, patched=True),
        "autoddpm": Method(autoddpm, {"gaussian": AutoDdpmOptions()}, "perceptual", 0.05),
        "ddpm": Method(ddpm, {"gaussian": DdpmOptions(noise_level=350)}, "residual", 0.5),
        "zscore": Method(zscore, {}, "residual", 5.0, statistics=True),
        "zscore-two-sided": Method(zscore, {}, "residual", 5.0, two_sided=True, statistics=True),
    }
)

PUBLISHED: Mapping[str, Method] = MappingProxyType(
    {
        "thor": Method(
            published_thor,
            {"simplex": PublishedThorOptions(), "gaussian": PUBLISHED_THOR_GAUSSIAN},
            "published_map",
            1.0,
        ),
        "anoddpm": Method(published_ddpm, {"simplex": PublishedDdpmOptions(noise_level=250)}, "residual", 0.5),
        "ddpm": Method(published_ddpm, {"gaussian": PublishedDdpmOptions()}, "residual", 0.5),
    }
)
"""The methods of the preset `published`, with the kinds of noise that they have in `METHODS`."""
