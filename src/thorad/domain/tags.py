"""What a DICOM header says against a scan. A missing tag says nothing; free text, which anybody types, only warns."""

from __future__ import annotations

from typing import Final

from thorad.check import NOTHING_FOUND, Check
from thorad.io.tags import ScanTags
from thorad.recipe import DomainSection

RADIOGRAPHS: Final = {"DX", "CR", "RG", "DR"}
"""Modalities of plain X-rays, which are one kind."""

NO_MODALITY: Final = {"", "OT", "SC"}
"""Modalities that say nothing of how a scan was made."""

NOT_A_SCAN: Final = {
    **dict.fromkeys(("PROJECTION IMAGE", "MIP", "MNIP", "MIN_IP"), "a projection through many slices"),
    **dict.fromkeys(("P", "PHASE", "PHASE MAP", "VELOCITY"), "a phase image"),
    **dict.fromkeys(("ADC", "FA", "TRACEW", "DIFFUSION", "TENSOR"), "a diffusion map"),
    **dict.fromkeys(("CBF", "CBV", "MTT", "TTP", "PERFUSION", "T1 MAP", "T2 MAP", "T2STAR MAP"), "a computed map"),
}
"""Values of Image Type, after the first two, of what is computed from scans."""

ACQUISITION_CONTRASTS: Final = {
    **{"T1": "T1w", "T2": "T2w", "T2_STAR": "T2*w", "FLUID_ATTENUATED": "FLAIR", "PROTON_DENSITY": "proton density"},
    **{"DIFFUSION": "diffusion", "PERFUSION": "perfusion", "TIME_OF_FLIGHT": "angiography", "STIR": "STIR"},
}

LONGEST_ECHO: Final = 60.0
"""ms. T1w sequences end at some 40; T2w ones and FLAIR begin at some 70."""
LONGEST_GRADIENT_ECHO: Final = 15.0
"""ms, of gradient echoes and echo-planar readouts: T1w ones end at some 11, T2*w ones begin at some 20."""
FLUID_NULLED: Final = 1500.0
"""ms. Inversion times that darken fluid are above; those of MPRAGE and T1w FLAIR below."""
LONGEST_REPETITION: Final = 2000.0
"""ms, of spin echoes without inversion. Above is proton density."""


def check_tags(tags: ScanTags | None, section: DomainSection, model: str) -> Check:
    """What the header says against giving a scan to a model.

    Another modality, what is computed from scans, and timing that T1w can't have are refusals. A contrast agent,
    another body part, a localizer, a name that speaks of another sequence, and timing that T1w seldom has are warnings.

    Args:
        tags: None where there is no header.
        section: what the model is for.
        model: its name, for the reasons.
    """
    if tags is None:
        return NOTHING_FOUND
    refusals, warnings = [], []
    found, wanted = tags.modality, section.modality
    if wanted and found not in NO_MODALITY and found != wanted and not {found, wanted} <= RADIOGRAPHS:
        refusals.append(f"its header says modality {found}; model {model!r} is for {wanted}")
    elif section.weighting and (sequence := _sequence(tags)) is not None and sequence[0] != section.weighting:
        refusals.append(f"its header says {sequence[0]} ({sequence[1]}); model {model!r} is for {section.weighting}")
    elif section.weighting and (doubt := _doubtful_sequence(tags, section.weighting)):
        warnings.append(f"its header says {doubt}; model {model!r} is for {section.weighting}")
    if wanted and (computed := next((NOT_A_SCAN[word] for word in tags.image_type[2:] if word in NOT_A_SCAN), None)):
        refusals.append(f"its header says that it is {computed}; model {model!r} is for scans as they were made")
    if wanted and "LOCALIZER" in tags.image_type[2:]:
        warnings.append("its header says that it is a localizer, which is made to plan other scans")
    if section.contrast_agent == "none" and tags.contrast_agent:
        warnings.append(f"its header speaks of a contrast agent, which model {model!r} never saw: vessels may light up")
    parts = section.body_parts
    if parts and tags.body_part and not any(part in tags.body_part for part in parts):
        warnings.append(f"its header says body part {tags.body_part}; model {model!r} is for {' or '.join(parts)}")
    return Check(tuple(refusals), tuple(warnings))


def _sequence(tags: ScanTags) -> tuple[str, str] | None:
    """The kind of MR sequence and what tells it, where that is certain."""
    if tags.acquisition_contrast in ACQUISITION_CONTRASTS:
        return ACQUISITION_CONTRASTS[tags.acquisition_contrast], f"acquisition contrast {tags.acquisition_contrast}"
    echo, inversion, sequence = tags.echo_time, tags.inversion_time, tags.scanning_sequence
    if echo is None:
        return None
    if echo >= LONGEST_GRADIENT_ECHO and "EP" in sequence:
        return "an echo-planar scan, as for diffusion", f"TE {echo:g} ms"
    if echo >= LONGEST_ECHO:
        if inversion is not None and inversion >= FLUID_NULLED:
            return "FLAIR", f"TE {echo:g} ms, TI {inversion:g} ms"
        return "T2w", f"TE {echo:g} ms"
    if echo >= LONGEST_GRADIENT_ECHO and "GR" in sequence and "SE" not in sequence:
        return "T2*w", f"gradient echo, TE {echo:g} ms"
    return None


def _doubtful_sequence(tags: ScanTags, wanted: str) -> str | None:
    """What makes the sequence doubtful; None: nothing does."""
    if tags.acquisition_contrast == "T1":
        return None
    if tags.named and wanted not in tags.named:
        return f"{' or '.join(sorted(tags.named))} by its name"
    repetition, inversion = tags.repetition_time, tags.inversion_time
    spin_echo = "SE" in tags.scanning_sequence and "GR" not in tags.scanning_sequence
    if spin_echo and inversion is not None and inversion >= FLUID_NULLED:
        return f"an inversion that darkens fluid (TI {inversion:g} ms)"
    if spin_echo and inversion is None and repetition is not None and repetition > LONGEST_REPETITION:
        return f"a spin echo with TR {repetition:g} ms, which is proton density rather than T1w"
    return None
