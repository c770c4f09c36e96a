"""Which images belong together, and what is known of them: cases, their tables, data sets and their splits."""

from typing import Final

from thorad.datasets.contract import Layout
from thorad.registry import Registry

OWN: Final = {
    "grazpedwri": "thorad.datasets.wrist:LAYOUT",
    "ixi": "thorad.datasets.brains:IXI",
    "atlas": "thorad.datasets.atlas:LAYOUT",
    "bids": "thorad.datasets.brains:BIDS",
    "brats": "thorad.datasets.brains:BRATS",
    "tables": "thorad.datasets.plain:TABLES",
    "folder": "thorad.datasets.plain:FOLDER",
}
"""Thorad's own layouts, the most specific first."""

DATASETS: Final[Registry[Layout]] = Registry("thorad.datasets", "kind of data set", Layout, OWN)
"""Kind of data set -> its layout."""
