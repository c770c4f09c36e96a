"""The layout of a result folder, which no other room knows.

    run.json                      what was run: options, versions, seconds, how many cases are done and failed; its
                                  status is "running" until every case that was asked for is done or failed
    cases.csv                     one line a case
    shards/<i>-of-<n>.json        seconds that each part of the run took; 1-of-1 where it was not split
    cases/<name>/case.json        what cases.csv is made of, and the score of each slice of a volume; written last, so a
                                  case that has it is complete
    cases/<name>/scan.png         8-bit: the image as the model saw it, on the input's own grid
    cases/<name>/anomaly_map.npy  (H, W) float32 on that grid, raw
    cases/<name>/pseudo_healthy.png  8-bit
    cases/<name>/overlay.png      the image with the map over it, one colour scale for the whole run
    cases/<name>/mask.png         255 where that map is above the threshold; where the run has one
    cases/<name>/steps.npz        where asked for: timesteps (n,), clean (n, S, S) uint8, maps (n, S, S) float16 of the
                                  harmonised steps, on the model's grid; without such steps of all, and maps of NaN

A volume has the same pictures for each slice k, in the template's plane, and beside them, on its own grid:

    cases/<name>/slices/<k>/      the pictures above
    cases/<name>/overlay.png      those of all slices
    cases/<name>/anomaly_map.nii.gz, pseudo_healthy.nii.gz  float32, NaN where no slice was looked at; mask.nii.gz
    cases/<name>/registration.json  the matrix from the volume's mm to the template's, and how well it fits

DICOM has objects of its own study beside all this, which do hold the patient's name, as a PACS needs it:

    cases/<name>/dicom/segmentation.dcm  the mask; where the run has a threshold
    cases/<name>/dicom/parametric_map.dcm  the map's numbers, of a volume
    cases/<name>/dicom/overlay/   the map over the scan, as Secondary Capture

Every file is there whole or not at all, so a run that was killed resumes where it stopped. Several processes may write
into one folder at the same time, each the cases of its own shard.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Final

from thorad.errors import ThoradError

RUN, TABLE, CASE = "run.json", "cases.csv", "case.json"
SCAN, MAP, PSEUDO_HEALTHY = "scan.png", "anomaly_map.npy", "pseudo_healthy.png"
OVERLAY, MASK, STEPS = "overlay.png", "mask.png", "steps.npz"
VOLUME_MAP, VOLUME_PSEUDO_HEALTHY, VOLUME_MASK = "anomaly_map.nii.gz", "pseudo_healthy.nii.gz", "mask.nii.gz"
REGISTRATION: Final = "registration.json"
FILES_OF_A_CASE: Final = (
    *(SCAN, MAP, PSEUDO_HEALTHY, OVERLAY, MASK, STEPS, "*.nii.gz", REGISTRATION),
    *("slices/*/*", "dicom/*.dcm", "dicom/overlay/*.dcm"),
)
"""Patterns of all files that a case may have, beside case.json."""


@dataclass(frozen=True)
class CaseRecord:
    """What case.json says; of a case that failed only name, source and message."""

    name: str
    source: str
    """The file it came from."""
    folder: Path
    status: str
    """ok or failed."""
    message: str
    """Why it failed, or why the result may mean less than it looks like; mostly empty."""
    score: float | None
    p_value: float | None = None
    findings: Sequence[Mapping[str, Any]] | None = None
    """Each as `thorad.records.Finding` has it; None where the run has no threshold."""
    network_calls: int | None = None
    seconds: float | None = None
    sizes: Mapping[str, int] = field(default_factory=dict)
    """{file: bytes}."""

    @property
    def done(self) -> bool:
        """Whether it did not fail."""
        return self.status == "ok"

    @property
    def finding_count(self) -> int | None:
        """Number of findings; None where the run has no threshold."""
        return None if self.findings is None else len(self.findings)

    @property
    def picture_folders(self) -> list[tuple[int | None, Path]]:
        """Index and folder of each slice of a volume, ascending; (None, the case's own folder) for an image."""
        slices = self.folder / "slices"
        if slices.is_dir():
            return [(int(folder.name), folder) for folder in sorted(slices.iterdir())]
        return [(None, self.folder)]


def read_case(folder: Path) -> CaseRecord | None:
    """Read a case's record; None where there is none, or no longer: another shard may just be trying the case again.

    Raises:
        ThoradError: a damaged file.
    """
    path = folder / CASE
    try:
        content = json.loads(path.read_bytes())
        known = {each.name for each in fields(CaseRecord)}
        return CaseRecord(**{key: value for key, value in content.items() if key in known}, folder=folder)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise ThoradError(f"{path}: damaged ({error!r}). Delete it, and detect again.") from error
