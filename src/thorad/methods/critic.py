"""Methods that ask the model's critic, a network that learned from healthy scans with anomalies made up in them.

This project's own; docs/method.md has the reasons and what each part gives. Literature: DRAEM (Zavrtanik, Kristan,
Skočaj 2021, arXiv:2108.07610), whose network reads an image and its restoration; DAE (Kascenas, Pugeault, O'Neil,
MIDL 2022), which restores in one call.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

from torch import Tensor

from thorad.diffusion.schedule import Schedule
from thorad.methods.contract import Compare, Denoise, Judge, Method, Noise, OnStep, Request, Restoration

THRESHOLD: Final = 0.5
"""Of a probability: where a pixel is more likely not healthy than healthy."""


@dataclass(frozen=True)
class CriticOptions:
    """The model's critic."""

    judge: Judge

    def network_calls(self) -> int:
        """None of the diffusion model."""
        return 0


def critic_only(
    denoise: Denoise | None,
    image: Tensor,
    schedule: Schedule | None,
    noise: Noise | None,
    compare: Compare | None,
    *,
    options: CriticOptions,
    on_step: OnStep | None = None,
) -> Restoration:
    """The probability of each pixel not to be healthy, as the critic reads the scan itself."""
    judgement = options.judge((image + 1) / 2)
    return Restoration(judgement.probability, pseudo_healthy=2 * judgement.healthy - 1)


def restorer(
    denoise: Denoise | None,
    image: Tensor,
    schedule: Schedule | None,
    noise: Noise | None,
    compare: Compare,
    *,
    options: CriticOptions,
    on_step: OnStep | None = None,
) -> Restoration:
    """How far the image is from the healthy one that the critic's other answer is."""
    healthy = 2 * options.judge((image + 1) / 2).healthy - 1
    return Restoration(compare(image, healthy), healthy)


def _options(request: Request) -> CriticOptions:
    assert request.judge is not None, "a method with a critic always gets it"
    return CriticOptions(request.judge)


CRITIC_ONLY = Method(
    name="critic-only",
    title="Critic",
    blurb="a network that learned from made-up anomalies in healthy scans: how likely a pixel is not healthy; no noise",
    paper="this project",
    restore=critic_only,
    options=_options,
    overlay_maximum=1.0,
    critic=True,
    own_threshold=THRESHOLD,
)

RESTORER = replace(
    CRITIC_ONLY,
    name="restorer",
    title="Restorer",
    blurb="the same network's healthy image, in one call, against the scan",
    restore=restorer,
    overlay_maximum=0.5,
    own_threshold=None,
)
