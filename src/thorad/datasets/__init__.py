"""Which images belong together, and what is known of them: cases, their tables, data sets and their splits."""

from typing import Final

from thorad.datasets.contract import Layout
from thorad.registry import Registry

OWN: Final = {
    "grazpedwri": "thorad.datasets.grazpedwri:LAYOUT",
    "ixi": "thorad.datasets.ixi:LAYOUT",
    "atlas": "thorad.datasets.atlas:LAYOUT",
    "bids": "thorad.datasets.bids:LAYOUT",
    "brats": "thorad.datasets.brats:LAYOUT",
    "tables": "thorad.datasets.tables:LAYOUT",
    "folder": "thorad.datasets.folder:LAYOUT",
}
"""Thorad's own layouts, the most specific first."""

DATASETS: Final[Registry[Layout]] = Registry("thorad.datasets", "kind of data set", Layout, OWN)
"""Kind of data set -> its layout."""
