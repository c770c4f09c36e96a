"""The methods: one paper a file, one function and one entry a method, one contract for all (`thorad.methods.contract`).

Importing this package is cheap: a method's file is loaded when its entry is asked for.
"""

from typing import Final

from thorad.methods.contract import Method, Request, Restoration, Step
from thorad.registry import Registry

__all__ = ["METHODS", "Method", "Request", "Restoration", "Step"]

METHODS: Final = Registry(
    "thorad.methods",
    "method",
    Method,
    {
        "critic-only": "thorad.methods.critic:CRITIC_ONLY",
        "thor": "thorad.methods.thor:THOR",
        "thor+": "thorad.methods.thor_plus:THOR_PLUS",
        "restorer": "thorad.methods.critic:RESTORER",
        "anoddpm": "thorad.methods.ddpm:ANODDPM",
        "pddpm": "thorad.methods.pddpm:PDDPM",
        "autoddpm": "thorad.methods.autoddpm:AUTODDPM",
        "autoddpm-mask": "thorad.methods.autoddpm:AUTODDPM_MASK",
        "ddpm": "thorad.methods.ddpm:DDPM",
        "zscore": "thorad.methods.zscore:ZSCORE",
        "zscore-two-sided": "thorad.methods.zscore:ZSCORE_TWO_SIDED",
        "published-thor": "thorad.methods.published:PUBLISHED_THOR",
        "published-anoddpm": "thorad.methods.published:PUBLISHED_ANODDPM",
        "published-ddpm": "thorad.methods.published:PUBLISHED_DDPM",
    },
)
"""Name -> `Method`; other packages add theirs under the entry-point group `thorad.methods`."""
