"""What a DICOM header says of how a scan was made: enough to tell its kind, nothing of whom it shows."""

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

KINDS_IN_NAMES: Final = {
    "T1w": r"t1|mp2?.?rage|bravo|spgr|[_ *-]tfl|tfe|fl[23]d|flash|vibe|mdeft|(?<![a-z])gre_fsp",
    "FLAIR": r"flair|dark.?fluid|tirm",
    "T2*w": r"t2\*|t2.?star|(?<![a-z])swi(?![a-z])|swan|venbold|hemo",
    "T2w": r"(?<![a-z0-9])t2(?!\*|.?star)|(?<![a-z])(?:ciss|fiesta|trufi|drive|haste)",
    "diffusion": r"(?<![a-z])(?:dwi|dti|adc|diff)|ep2d|tracew",
    "angiography": r"(?<![a-z])tof(?![a-z])|angio|(?<![a-z])mr[av](?![a-z])",
    "proton density": r"(?<![a-z])pd(?![a-z])|proton.?dens",
}
"""Kind of MR image -> how names of sequences, protocols and series, in small letters, speak of it."""

AGENT_IN_NAMES: Final = (
    r"(?<![a-z])(?:gd|gad|gado[a-z]*|post.?(?:gd|contrast)|ce)(?![a-z])|\+ ?c(?![a-z])|(?<![a-z])c\+"
)
LONGEST_TIME: Final = 60_000
"""ms; what is above is no repetition, echo or inversion time."""

NO_AGENT: Final = {"", "0", "n", "no", "none", "n/a", "na", "without", "false", "nein", "ohne", "kein"}

BODY_PARTS: Final = {
    *("BRAIN", "HEAD", "SKULL", "HEADNECK", "HEAD NECK", "NECK", "FACE", "ORBIT", "SINUS", "IAC", "PITUITARY", "SELLA"),
    *("SPINE", "CSPINE", "TSPINE", "LSPINE", "TLSPINE", "SSPINE", "WHOLESPINE", "CHEST", "THORAX", "HEART", "LUNG"),
    *("ABDOMEN", "LIVER", "KIDNEY", "PANCREAS", "PELVIS", "PROSTATE", "UTERUS", "BLADDER", "BREAST", "WHOLEBODY"),
    *("SHOULDER", "HUMERUS", "ARM", "ELBOW", "FOREARM", "WRIST", "HAND", "FINGER", "THUMB", "EXTREMITY", "CLAVICLE"),
    *("HIP", "FEMUR", "THIGH", "LEG", "KNEE", "CALF", "ANKLE", "FOOT", "TOE", "CALCANEUS"),
}


@dataclass(frozen=True)
class ScanTags:
    """How a scan was made, as far as its header says; empty or None where it doesn't. Headers are often wrong."""

    modality: str = ""
    """DICOM's term: MR, CT, DX."""
    image_type: tuple[str, ...] = ()
    """DICOM's terms: ORIGINAL or DERIVED, PRIMARY or SECONDARY, then what kind."""
    body_part: str = ""
    """One of `BODY_PARTS`; other words say nothing, and might name somebody."""
    contrast_agent: bool = False
    """Whether the header speaks of one."""
    scanning_sequence: frozenset[str] = frozenset()
    """DICOM's terms: SE, IR, GR, EP, RM."""
    repetition_time: float | None = None
    """ms."""
    echo_time: float | None = None
    """ms."""
    inversion_time: float | None = None
    """ms."""
    acquisition_contrast: str = ""
    """DICOM's term, which only enhanced files have: T1, T2, FLUID_ATTENUATED, DIFFUSION."""
    named: frozenset[str] = frozenset()
    """The `KINDS_IN_NAMES` that the names of sequence, protocol and series speak of. The names themselves, which
    anybody may have typed, are not kept."""


def scan_tags(dataset: Any) -> ScanTags:
    """What a `pydicom.Dataset` says; of an enhanced file also the groups that all its frames, or the first, have.

    An element that can't be understood counts as missing: no scan is lost by it.
    """
    holders = [dataset, *_functional_groups(dataset)]

    def words(*keywords: str) -> list[str]:
        values = [_value(holder, keyword) for keyword in keywords for holder in holders]
        parts = [part for value in values for part in (value if _is_list(value) else [value])]
        return [text for part in parts if part is not None and (text := str(part).strip().strip("\0"))]

    def milliseconds(*keywords: str) -> float | None:
        numbers = (_number(text) for text in words(*keywords))
        return next((number for number in numbers if 0 < number < LONGEST_TIME), None)

    names = " ".join(words("SequenceName", "PulseSequenceName", "ProtocolName", "SeriesDescription")).lower()
    agents = {word.lower() for word in words("ContrastBolusAgent")} - NO_AGENT
    return ScanTags(
        modality=_term(words("Modality")),
        image_type=tuple(_term([word]) for word in words("ImageType")),
        body_part=part if (part := _term(words("BodyPartExamined"))) in BODY_PARTS else "",
        contrast_agent=bool(agents or words("ContrastBolusAgentSequence") or re.search(AGENT_IN_NAMES, names)),
        scanning_sequence=_sequence_of(words),
        repetition_time=milliseconds("RepetitionTime"),
        echo_time=milliseconds("EchoTime", "EffectiveEchoTime"),
        inversion_time=milliseconds("InversionTime", "InversionTimes"),
        acquisition_contrast=_term(words("AcquisitionContrast")),
        named=frozenset(kind for kind, pattern in KINDS_IN_NAMES.items() if re.search(pattern, names)),
    )


def _sequence_of(words: Callable[..., list[str]]) -> frozenset[str]:
    """The scanning sequence; enhanced files tell it in other elements."""
    found = {_term([word]) for word in words("ScanningSequence")}
    enhanced = {"SPIN": {"SE"}, "GRADIENT": {"GR"}, "BOTH": {"SE", "GR"}}
    for word in words("EchoPulseSequence"):
        found |= enhanced.get(word.upper(), set())
    found |= {"EP"} if "YES" in words("EchoPlanarPulseSequence") else set()
    return frozenset(found | ({"IR"} if "YES" in words("InversionRecovery") else set()))


def _functional_groups(dataset: Any) -> list[Any]:
    """The items of an enhanced file's groups: those of all frames, then the first frame's."""
    groups = []
    for keyword in ("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"):
        for holder in _first_item(_value(dataset, keyword)):
            groups += [item for element in holder.dir() for item in _first_item(_value(holder, element))]
    return groups


def _first_item(value: Any) -> list[Any]:
    """The first data set of a sequence; none where the element is something else."""
    return [item for item in list(value)[:1] if hasattr(item, "dir")] if _is_list(value) else []


def _value(holder: Any, keyword: str) -> Any:
    try:
        return holder.get(keyword)
    except Exception:  # pydicom reads values when they are asked for, and raises whatever its readers raise
        return None


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan


def _is_list(value: Any) -> bool:
    return not isinstance(value, str | bytes) and hasattr(value, "__iter__")


def _term(words: list[str]) -> str:
    """DICOM's code strings as they should be: they go into messages, so nothing else may pass."""
    return re.sub(r"[^A-Z0-9 _]", "", words[0].upper())[:16] if words else ""
