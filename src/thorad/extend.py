"""What other packages and scripts add for this process; an installed package has entry points (docs/extend.md).

Each raises a ThoradError where the name is taken or the entry is of another type.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from thorad.datasets import DATASETS
from thorad.datasets.contract import Layout
from thorad.diffusion import ENGINES, NOISES
from thorad.methods import METHODS, Method
from thorad.recipe import NETWORKS, NetworkSection, is_section


def register_method(method: Method) -> None:
    """Add a method under its own name (`thorad.methods.contract.Method`)."""
    METHODS.register(getattr(method, "name", ""), method)


def register_noise(name: str, draw: Callable[..., Any]) -> None:
    """Add a kind of noise: `draw(generators, height, width, device) -> (B, 1, height, width)`.

    Args:
        name: what recipes and `--noise` call it.
        draw: draws one map for each generator, from that generator alone.
    """
    NOISES.register(name, draw)


def register_network(section: type[NetworkSection]) -> None:
    """Add a kind of network by the section that describes and builds it; its name is the default of its `kind`."""
    kind = section.model_fields["kind"].default if is_section(section) else ""
    NETWORKS.register(kind, section)


def register_engine(name: str, make: Callable[..., Any]) -> None:
    """Add an engine: `make(network, *, size, device, full_precision)` (`thorad.diffusion.engine`)."""
    ENGINES.register(name, make)


def register_dataset(name: str, layout: Layout) -> None:
    """Add the layout of a data set (`thorad.datasets.contract.Layout`)."""
    DATASETS.register(name, layout)
