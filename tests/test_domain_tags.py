"""What DICOM's tags say against a scan, on headers as scanners of four vendors write them."""

import re
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from thorad import volume_detection
from thorad.check import Check, RefusedError
from thorad.detector import Detector
from thorad.domain.tags import check_tags
from thorad.io.scans import find_scans
from thorad.io.tags import ScanTags, scan_tags
from thorad.io.volumes import Volume
from thorad.recipe import DomainSection, Recipe, load_recipe, parse_recipe

pydicom = pytest.importorskip("pydicom")

BRAIN = load_recipe("brain-t1-compact").domain
HAND = load_recipe("hand-xray64").domain


def header(**elements: Any) -> ScanTags:
    dataset = pydicom.Dataset()
    for keyword, value in {"Modality": "MR", "PatientName": "Doe^Jane", **elements}.items():
        setattr(dataset, keyword, value)
    return scan_tags(dataset)


T1W = {
    "nothing but MR": {},
    "no tags at all": {"Modality": ""},
    "Siemens MPRAGE": {"ScanningSequence": ["GR", "IR"], "SequenceName": "*tfl3d1_16ns", "RepetitionTime": 2300}
    | {"EchoTime": 2.98, "InversionTime": 900, "FlipAngle": 9, "ImageType": ["ORIGINAL", "PRIMARY", "M", "NORM"]},
    "Siemens 2D FLASH": {"ScanningSequence": "GR", "SequenceName": "*fl2d1", "RepetitionTime": 300, "EchoTime": 2.46},
    "low-field FLASH": {"ScanningSequence": "GR", "RepetitionTime": 500, "EchoTime": 11, "BodyPartExamined": "HEAD"},
    "United Imaging": {"ScanningSequence": "GR", "ProtocolName": "t1_gre_fsp_3d_sag", "RepetitionTime": 7.2}
    | {"EchoTime": 3.1, "InversionTime": 750, "BodyPartExamined": "HEADNECK"},
    "GE BRAVO": {"ScanningSequence": "GR", "SeriesDescription": "Ax 3D BRAVO", "RepetitionTime": 8.2, "EchoTime": 3.2}
    | {"InversionTime": 450, "ContrastBolusAgent": "NONE"},
    "Philips TFE": {"ScanningSequence": "GR", "ProtocolName": "sT1W_3D_TFE", "RepetitionTime": 9.8, "EchoTime": 4.6}
    | {"BodyPartExamined": "BRAIN", "ImageType": ["ORIGINAL", "PRIMARY", "M_FFE", "M", "FFE"]},
    "spin echo": {"ScanningSequence": "SE", "RepetitionTime": 550, "EchoTime": 14, "SeriesDescription": "T1 SE tra"},
    "turbo spin echo": {"ScanningSequence": "SE", "RepetitionTime": 1100, "EchoTime": 8.9},
    "T1w FLAIR": {"ScanningSequence": ["SE", "IR"], "SeriesDescription": "Ax T1 FLAIR", "RepetitionTime": 2200}
    | {"EchoTime": 24, "InversionTime": 860},
    "MP2RAGE": {"ScanningSequence": ["GR", "IR"], "SeriesDescription": "t1_mp2rage_UNI", "RepetitionTime": 5000}
    | {"EchoTime": 2.9, "InversionTime": 2500, "ImageType": ["DERIVED", "PRIMARY", "M", "UNI"]},
    "reformatted": {"ImageType": ["DERIVED", "SECONDARY", "MPR"], "EchoTime": 3, "ScanningSequence": "GR"},
    "secondary capture": {"Modality": "OT"},
    "times that aren't": {"EchoTime": 0, "RepetitionTime": 0},
}


@pytest.mark.parametrize("elements", T1W.values(), ids=T1W)
def test_t1w_passes(elements: dict[str, Any]) -> None:
    assert check_tags(header(**elements), BRAIN, "m").status == "ok"


REFUSED = {
    "CT": ({"Modality": "CT"}, "modality CT; model 'm' is for MR"),
    "X-ray": ({"Modality": "DX"}, "modality DX"),
    "T2w": ({"ScanningSequence": "SE", "RepetitionTime": 5000, "EchoTime": 98}, r"T2w \(TE 98 ms\); .* is for T1w"),
    "FLAIR": ({"ScanningSequence": ["SE", "IR"], "EchoTime": 120, "InversionTime": 2500}, "FLAIR .*TI 2500"),
    "3D FLAIR": ({"EchoTime": 388, "InversionTime": 1800}, "FLAIR"),
    "short inversion": ({"ScanningSequence": "SE", "EchoTime": 65, "InversionTime": 160}, "T2w"),
    "T2*w": ({"ScanningSequence": "GR", "RepetitionTime": 600, "EchoTime": 20}, "T2[*]w"),
    "diffusion": ({"ScanningSequence": "EP", "EchoTime": 55}, "echo-planar"),
    "enhanced T2w": ({"AcquisitionContrast": "T2"}, "T2w"),
    "ADC": ({"ImageType": ["DERIVED", "PRIMARY", "DIFFUSION", "ADC"]}, "diffusion map"),
    "projection": ({"ImageType": ["DERIVED", "SECONDARY", "PROJECTION IMAGE"]}, "projection"),
    "phase": ({"ImageType": ["ORIGINAL", "PRIMARY", "P", "ND"]}, "phase image"),
}


@pytest.mark.parametrize(("elements", "reason"), REFUSED.values(), ids=REFUSED)
def test_another_kind_of_scan_is_refused(elements: dict[str, Any], reason: str) -> None:
    check = check_tags(header(**elements), BRAIN, "m")
    assert check.status == "refused"
    assert len(check.refusals) == 1
    assert re.search(reason, check.message)


WARNED = {
    "agent": ({"ContrastBolusAgent": "Gadovist"}, "contrast agent"),
    "agent by name": ({"SeriesDescription": "t1_mprage +C", "EchoTime": 3}, "contrast agent"),
    "agent by name, Gd": ({"SeriesDescription": "T1 post Gd"}, "contrast agent"),
    "knee": ({"BodyPartExamined": "KNEE"}, "body part KNEE"),
    "localizer": ({"ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"]}, "localizer"),
    "FLAIR by name": ({"SeriesDescription": "t2_tirm_tra_dark-fluid"}, "FLAIR or T2w by its name"),
    "angiography": ({"ProtocolName": "TOF_3D_multi-slab", "ScanningSequence": "GR", "EchoTime": 3.6}, "angiography"),
    "proton density": ({"ScanningSequence": "SE", "RepetitionTime": 3000, "EchoTime": 12}, "proton density"),
    "fluid nulled": ({"ScanningSequence": ["SE", "IR"], "EchoTime": 12, "InversionTime": 2200}, "darkens fluid"),
}


@pytest.mark.parametrize(("elements", "reason"), WARNED.values(), ids=WARNED)
def test_what_is_doubtful_is_warned(elements: dict[str, Any], reason: str) -> None:
    check = check_tags(header(**elements), BRAIN, "m")
    assert check.status == "warned"
    assert reason in check.message


def test_plain_x_rays_are_one_kind() -> None:
    assert {check_tags(header(Modality=kind), HAND, "m").status for kind in ("DX", "CR", "RG", "")} == {"ok"}
    assert check_tags(header(Modality="MR"), HAND, "m").status == "refused"
    assert check_tags(header(Modality="CR", BodyPartExamined="CHEST"), HAND, "m").status == "warned"


def test_enhanced_files_tell_it_in_their_groups() -> None:
    echo, timing, shared, dataset = (pydicom.Dataset() for _ in range(4))
    echo.EffectiveEchoTime, timing.RepetitionTime = 100.0, 4000.0
    shared.MREchoSequence, shared.MRTimingAndRelatedParametersSequence = [echo], [timing]
    dataset.Modality, dataset.EchoPulseSequence = "MR", "SPIN"
    dataset.SharedFunctionalGroupsSequence = [shared]
    tags = scan_tags(dataset)
    assert (tags.echo_time, tags.repetition_time, tags.scanning_sequence) == (100, 4000, {"SE"})
    assert check_tags(tags, BRAIN, "m").status == "refused"


def test_nothing_of_the_patient_is_kept() -> None:
    tags = header(SeriesDescription="T1 of Jane Doe", BodyPartExamined="JANE DOE", ContrastBolusAgent="for Jane")
    assert "jane" not in str(asdict(tags)).lower()
    assert tags.named == {"T1w"}
    assert tags.contrast_agent


def test_elements_that_mean_nothing_count_as_missing() -> None:
    dataset = pydicom.Dataset()
    with pydicom.config.disable_value_validation():
        dataset.add_new("EchoTime", "LO", "abc")
        dataset.add_new("InversionTime", "DS", None)
        dataset.add_new("SharedFunctionalGroupsSequence", "LO", "no sequence")
        dataset.add_new("PerFrameFunctionalGroupsSequence", "LO", ["neither", "this"])
        dataset.add_new("ImageType", "SQ", [])
    assert scan_tags(dataset) == ScanTags()


def test_older_recipes_ask_for_nothing() -> None:
    old = parse_recipe('name = "old"', "old")
    assert old == Recipe(name="old")
    assert check_tags(header(Modality="CT", BodyPartExamined="KNEE"), old.domain, "old").status == "ok"
    assert check_tags(None, BRAIN, "m").status == "ok"
    assert old.domain == DomainSection()


def test_real_series_carry_their_tags(shared_data: Path) -> None:
    for name in ("siemens-hfs", "siemens-decubitus"):
        (scan,) = find_scans([shared_data / "heads" / "heads" / name]).values()
        tags = scan.read().tags
        assert tags is not None
        assert (tags.modality, tags.echo_time, tags.body_part) == ("MR", 2.46, "BRAIN")
        assert check_tags(tags, BRAIN, "m").status == "ok"


def test_a_volume_is_refused_by_its_header_before_it_is_registered(monkeypatch: pytest.MonkeyPatch) -> None:
    def register(*_: Any, **__: Any) -> None:
        raise AssertionError("registered")

    monkeypatch.setattr(volume_detection, "register", register)
    detector = Detector("brain-t1-compact", method="zscore")
    ct = Volume(np.zeros((8, 8, 8), np.float32), np.eye(4), "ct", "ct", tags=ScanTags(modality="CT"))
    with pytest.raises(RefusedError, match="ct: refused: its header says modality CT"):
        volume_detection.detect_volume(detector, ct)
    with pytest.raises(AssertionError, match="registered"):
        volume_detection.detect_volume(Detector("brain-t1-compact", method="zscore", force=True), ct)


def test_slices_tell_their_reasons_once() -> None:
    none, one, other = Check(), Check(refusals=("far off",)), Check(refusals=("turned",), warnings=("odd",))
    assert volume_detection._check_of_slices([none, none], [90, 91]) == none
    assert volume_detection._check_of_slices([one], [95]).refusals == ("slice 95: far off",)
    found = volume_detection._check_of_slices([none, one, other], [90, 91, 92])
    assert found.refusals == ("slice 91 (and 1 more of the 3 slices): far off",)
    assert found.warnings == ("slice 92: odd",)
