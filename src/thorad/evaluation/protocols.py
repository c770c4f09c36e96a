"""The protocols by name; the tables of their results are in `tables`."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Final

from thorad.evaluation.boxes import BOXES
from thorad.evaluation.contract import Protocol
from thorad.evaluation.lesions import BRAIN_LESIONS
from thorad.evaluation.volumes import BRAIN_VOLUMES

PROTOCOLS: Final[Mapping[str, Protocol[Any, Any]]] = MappingProxyType(
    {"brain-lesions": BRAIN_LESIONS, "brain-volumes": BRAIN_VOLUMES, "boxes": BOXES}
)

DEFAULT_PROTOCOL: Final = "brain-lesions"
