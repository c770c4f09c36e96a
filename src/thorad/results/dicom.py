"""DICOM out: what was found, as objects of the scan's own study that a PACS or 3D Slicer lays over the scan.

All refer to the source's instances, and hold its patient and study, as DICOM needs them to. File names don't.
Instances' UIDs come from the source's UIDs, the content and the run's time: what differs never has the same UID.
"""

import hashlib
import importlib
import logging
import textwrap
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Final

import numpy as np
import PIL.Image
import PIL.ImageDraw
import PIL.ImageFont
from numpy.typing import NDArray

from thorad.errors import ThoradError
from thorad.io.atomic import replacing
from thorad.io.dicom import (
    MANUFACTURER,
    Series,
    as_frames,
    frame_group,
    import_pydicom,
    number_of,
    read_dataset,
    reading,
    rows_and_columns,
    slice_order,
    text_of,
)
from thorad.io.text import printable
from thorad.pictures import annotated, overlay

RESEARCH: Final = "Research use only"
COLOUR: Final = (248, 149, 64)  # RGB recommended to viewers for the segment: that of a high map in the pictures
OPPOSITE: Final = {"L": "R", "R": "L", "P": "A", "A": "P", "S": "I", "I": "S"}
SERIES: Final = {"SEG": 1, "SC": 2, "PM": 3}  # place of each kind behind the source's series in a viewer's list

# highdicom logs a patient's name where its form is unusual.
logging.getLogger("highdicom").setLevel(logging.CRITICAL)


@dataclass(frozen=True)
class DerivationInfo:
    """How the results were derived from the source; goes into each object."""

    algorithm: str
    """Name of method and model."""
    version: str  # of thorad
    time: datetime  # of the run
    reason: str = ""
    """What speaks against the results, beginning `forced: ` or `warning: `; empty where nothing does."""

    @property
    def description(self) -> str:
        """Of the series, as viewers list it: 64 characters at most."""
        text = f"thorad, {RESEARCH.lower()}, {self._reason}" if self.reason else f"thorad map, {RESEARCH.lower()}"
        return text if len(text) <= 64 else f"{text[:61]}..."

    @property
    def comments(self) -> str:
        """In full, where there is room."""
        return f"{RESEARCH}. {self._reason}"[:1024].strip()

    @property
    def _reason(self) -> str:
        """As any character set of DICOM has it, and without what separates DICOM's values."""
        return printable(self.reason).encode("ascii", "replace").decode().replace("\\", "/")


def write_segmentation(path: Path, mask: NDArray[np.bool_], series: Series, derivation: DerivationInfo) -> None:
    """Write a mask as a binary DICOM Segmentation of one segment, `Anomaly`.

    Slices without a pixel of it are left out. A mask that is empty throughout is written too, with all its slices: that
    nothing was found is a result, which a missing object would not tell from a failed run.

    Args:
        path: the file.
        mask: (I, J, K) on the grid of `read_series`; (H, W) of a picture.
        series, derivation: the source, and how the mask was made.

    Raises:
        ThoradError: the source lacks UIDs or was changed, highdicom is not installed, the disk doesn't allow it.
    """
    highdicom = import_highdicom()
    sources = _Sources(series)
    frames = sources.in_stored_order(mask)
    derived = _DerivedSeries(sources, "SEG", derivation, [np.packbits(frames).tobytes(), str(mask.shape).encode()])
    with _writing(series):
        dataset = highdicom.seg.Segmentation(
            source_images=sources.datasets,
            pixel_array=frames,
            segmentation_type=highdicom.seg.SegmentationTypeValues.BINARY,
            segment_descriptions=[_segment_description(derived)],
            omit_empty_frames=bool(mask.any()),
            content_label="ANOMALY",
            content_description=derivation.description,
            **derived.arguments("instance"),
        )
        if not series.is_volume:
            dataset.PatientOrientation = sources.datasets[0].get("PatientOrientation") or ""
        derived.save(path, dataset)


def _segment_description(derived: "_DerivedSeries") -> Any:
    from pydicom.sr.codedict import codes

    highdicom, coded, derivation = import_highdicom(), import_highdicom().sr.CodedConcept, derived.derivation
    segment = highdicom.seg.SegmentDescription(
        segment_number=1,
        segment_label="Anomaly",
        segmented_property_category=coded("49755003", "SCT", "Morphologically Altered Structure"),
        segmented_property_type=coded("52988006", "SCT", "Lesion"),
        algorithm_type=highdicom.seg.SegmentAlgorithmTypeValues.AUTOMATIC,
        algorithm_identification=highdicom.AlgorithmIdentificationSequence(
            name=derivation.algorithm[:64], family=codes.DCM.ArtificialIntelligence, version=derivation.version[:64]
        ),
        tracking_uid=derived.uid("segment"),
        tracking_id=f"thorad {derived.sources.series.name}",
        display_color=highdicom.color.CIELabColor.from_rgb(*COLOUR),
    )
    segment.SegmentDescription = derivation.comments
    return segment


def write_parametric_map(
    path: Path, anomaly_map: NDArray[np.floating[Any]], series: Series, derivation: DerivationInfo
) -> None:
    """Write a map's own numbers as a DICOM Parametric Map of the slices that it covers.

    Args:
        path: the file.
        anomaly_map: (I, J, K) on the grid of `read_series`, >= 0, NaN where nothing is known: slices of NaN only are
            left out, other NaN become 0.
        series, derivation: the source, a volume, and how the map was made.

    Raises:
        ThoradError: no slice is covered; as `write_segmentation`.
    """
    if not series.is_volume:
        raise ValueError("a parametric map needs a volume, whose slices have places")
    highdicom = import_highdicom()
    sources = _Sources(series)
    frames = sources.in_stored_order(anomaly_map)
    covered = np.flatnonzero(np.isfinite(frames).any(axis=(1, 2)))
    if not covered.size:
        raise ThoradError(f"{path}: the map covers no slice of {series.name}, so there is nothing to write.")
    values, datasets = frames, sources.datasets
    if 1 < len(datasets) > covered.size:  # a file of many frames can only be referred to as a whole
        values, datasets = values[covered], [datasets[index] for index in covered]
    del frames
    values = np.nan_to_num(values.astype(np.float32, copy=False), nan=0.0, copy=False)  # in place: it may be large
    highest = float(max(values.max(), np.finfo(np.float32).tiny))
    derived = _DerivedSeries(sources, "PM", derivation, [values.data])
    with _writing(series):
        dataset = highdicom.pm.ParametricMap(
            source_images=datasets,
            pixel_array=values,
            contains_recognizable_visual_features=False,
            content_label="ANOMALY_MAP",
            content_description=derivation.description,
            **_map_values(highest),
            **derived.arguments("instance"),
        )
        _copy_image_elements(dataset, sources.datasets[0])
        dataset.ImageComments = derivation.comments
        derived.save(path, dataset)


def _map_values(highest: float) -> dict[str, Any]:
    """That stored numbers are the map's own, and shown from 0 to `highest`."""
    highdicom = import_highdicom()
    mapping = highdicom.pm.RealWorldValueMapping(
        lut_label="anomaly",
        lut_explanation="Anomaly map of thorad",
        unit=highdicom.sr.CodedConcept("1", "UCUM", "no units"),
        value_range=(0.0, highest),
        slope=1,
        intercept=0,
        quantity_definition=highdicom.sr.CodedConcept("anomaly", "99THORAD", "Anomaly map"),
    )
    window = highdicom.VOILUTTransformation(highest / 2, highest, voi_lut_function="LINEAR_EXACT")
    return {"real_world_value_mappings": [mapping], "voi_lut_transformations": [window]}


def write_secondary_capture(
    folder: Path,
    pictures: Mapping[int, NDArray[np.uint8]],
    series: Series,
    derivation: DerivationInfo,
    *,
    maximum: float,
) -> list[Path]:
    """Write pictures of slices as a series of Secondary Captures, which any viewer shows, at their slices' places.

    Into each are drawn the patient's sides and the slice's place, where the source tells them, and the colours' scale.

    Args:
        folder: gets one file a picture, `0001.dcm` ...
        pictures: {index k of the slice in the volume: (rows, columns, 3) RGB}, as of `overlay_pictures`; {0: ...} for a
            picture.
        series, derivation: the source, and how the pictures were made.
        maximum: the map's value that has the strongest colour.

    Returns:
        The files, in the order of the slices.

    Raises:
        ThoradError: as `write_segmentation`.
    """
    if not pictures:
        raise ValueError("there must be a picture to write")
    sources = _Sources(series)
    content = [pictures[index].tobytes() + str(index).encode() for index in sorted(pictures)]
    derived = _DerivedSeries(sources, "SC", derivation, content)
    paths: list[Path] = []
    for number, index in enumerate(sorted(pictures), start=1):
        with _writing(series):
            picture = annotated(pictures[index], *_sides_and_place(sources, index), maximum)
            dataset = _secondary_capture(picture, derived, index)
            dataset.InstanceNumber = number
            paths.append(folder / f"{number:04d}.dcm")
            derived.save(paths[-1], dataset)
    return paths


def overlay_pictures(
    scan: NDArray[Any], anomaly_map: NDArray[np.floating[Any]], maximum: float
) -> dict[int, NDArray[np.uint8]]:
    """The scan's slices that the map covers, with the map in colours over them; `maximum` has the strongest colour.

    Args:
        scan: (I, J, K) in [0, 1] on the grid of `read_series`, or (H, W) of a picture.
        anomaly_map: of the same shape, >= 0, NaN where nothing is known.

    Returns:
        {index k: (rows, columns, 3)}, for `write_secondary_capture`; {0: ...} for a picture.
    """
    if scan.ndim == 2:
        return {0: overlay(scan, np.nan_to_num(anomaly_map, nan=0.0), maximum)}
    slices, maps = as_frames(scan), as_frames(anomaly_map)
    return {
        index: overlay(slices[index], np.nan_to_num(maps[index], nan=0.0), maximum)
        for index in range(len(slices))
        if np.isfinite(maps[index]).any()
    }


def burned_in(picture: NDArray[np.uint8], text: str) -> NDArray[np.uint8]:
    """A picture (rows, columns, 3) with words over its upper third, cut where there is no more room."""
    rows, columns = picture.shape[:2]
    image = PIL.Image.fromarray(picture)
    draw = PIL.ImageDraw.Draw(image)
    size = max(8, round(columns / 28))
    font, height = PIL.ImageFont.load_default(size), round(1.3 * size)
    width = max(1, int(columns / font.getlength("n")))
    lines = textwrap.wrap(printable(text), width, max_lines=max(1, rows // 3 // height), placeholder="...")
    for number, line in enumerate(lines):
        draw.rectangle((0, number * height, font.getlength(line) + 2, (number + 1) * height), fill=(0, 0, 0))
        draw.text((1, number * height), line, fill=(255, 220, 0), font=font)
    return np.asarray(image)


def _sides_and_place(sources: "_Sources", index: int) -> tuple[tuple[str, str, str, str], str]:
    """The letters for a slice's left, right, upper and lower edge, and where its centre lies: `S 23.4 mm`.

    The place is along the axis that is nearest to its normal. From position and orientation; of a projection the
    letters alone, from PatientOrientation. Empty where the source doesn't tell.
    """
    path, frame = sources.places[index]
    source = sources.headers[path]
    enhanced = "PerFrameFunctionalGroupsSequence" in source
    values = {
        keyword: ((frame_group(source, frame, _PLACE[keyword]) or {}) if enhanced else source).get(keyword)
        for keyword in ("ImageOrientationPatient", "ImagePositionPatient", "PixelSpacing")
    }
    orientation, position, spacing = values.values()
    if orientation is None or len(orientation) != 6:
        told = [str(value)[:1].translate(str.maketrans("HF", "SI")) for value in source.get("PatientOrientation") or ()]
        if len(told) != 2 or not all(letter in OPPOSITE for letter in told):
            return ("", "", "", ""), ""
        return (OPPOSITE[told[0]], told[0], OPPOSITE[told[1]], told[1]), ""
    across, down = np.array(orientation[:3], float), np.array(orientation[3:], float)
    right, bottom = _letter(across), _letter(down)
    axis, place = int(np.abs(np.cross(across, down)).argmax()), ""
    if position is not None and len(position) == 3 and spacing is not None and len(spacing) == 2:
        half = (np.array(sources.shape) - 1) / 2 * np.array(spacing, float)  # of the rows' extent and the columns', mm
        centre = np.array(position, float) + half[0] * down + half[1] * across
        along = centre[axis] * np.eye(3)[axis]
        place = f"{_letter(along)} {np.abs(along).max():.1f} mm"
    return (OPPOSITE[right], right, OPPOSITE[bottom], bottom), place


def _letter(direction: NDArray[np.float64]) -> str:
    """Of the patient's side that a direction in DICOM's axes, to the left, posterior and superior, points to most."""
    axis = int(np.abs(direction).argmax())
    return ("LPS" if direction[axis] >= 0 else "RAI")[axis]


class _Sources:
    """The source's headers, complete enough to refer to."""

    def __init__(self, series: Series) -> None:
        self.series = series
        self.places: Sequence[tuple[Path, int]] = slice_order(series) if series.is_volume else [(series.files[0], 0)]
        """Of each k, its file and the frame in it."""
        files = dict.fromkeys(file for file, _ in self.places)
        self.headers = {file: read_dataset(file, pixels=False) for file in files}
        for path, dataset in self.headers.items():
            with reading(path):
                _complete(dataset, path, needs_frame_of_reference=series.is_volume)
        self.datasets = list(self.headers.values())
        """One for each file, in the order of the slices."""
        self.shape = rows_and_columns(self.datasets[0], self.places[0][0])

    def in_stored_order(self, voxels: NDArray[Any]) -> NDArray[Any]:
        """(n, rows, columns): as the files are ordered here and frames in a file, from (I, J, K) or (H, W)."""
        frames = as_frames(voxels) if self.series.is_volume else voxels[None]
        expected = (len(self.places), *self.shape)
        if frames.shape != expected:
            raise ValueError(f"frames of {frames.shape} for a source of {expected}")
        order = np.argsort([frame for _, frame in self.places]) if len(self.datasets) == 1 else np.arange(len(frames))
        return np.ascontiguousarray(frames[order])


class _DerivedSeries:
    """A series of objects of a kind (of `SERIES`) that are made of one source, and what they have in common.

    The same source, kind, derivation and content (of all objects) have the same UIDs.
    """

    def __init__(
        self, sources: _Sources, kind: str, derivation: DerivationInfo, content: Iterable[bytes | memoryview]
    ) -> None:
        self.sources, self.derivation, self._place = sources, derivation, SERIES[kind]
        digest = hashlib.sha256()
        made = (derivation.reason, derivation.algorithm, derivation.version, derivation.time.isoformat())
        for part in (sources.series.uid, sources.series.name, kind, *made):
            digest.update(part.encode() + b"\0")
        for block in content:
            digest.update(hashlib.sha256(block).digest())
        self._digest = digest.hexdigest()

    def uid(self, name: str) -> str:
        """The UID of something in the series."""
        return str(import_pydicom().uid.generate_uid(entropy_srcs=[self._digest, name]))

    def arguments(self, instance: str) -> dict[str, Any]:
        """What highdicom's constructors share; `instance` names the object in the series."""
        number = number_of(self.sources.datasets[0], "SeriesNumber", 0)
        return {
            "series_instance_uid": self.uid("series"),
            # Behind the source's own number in a viewer's list: 3 -> 301, 302 ...
            "series_number": int(number) * 100 + self._place if 0 <= number < 10_000_000 else self._place,
            "sop_instance_uid": self.uid(instance),
            "instance_number": 1,
            "manufacturer": MANUFACTURER,
            "manufacturer_model_name": self.derivation.algorithm[:64],
            "software_versions": self.derivation.version[:64],
            "device_serial_number": "none",
            "series_description": self.derivation.description,
        }

    def save(self, path: Path, dataset: Any) -> None:
        """Write an object, with the run's time in place of now and derived UIDs in place of random ones."""
        date, time = self.derivation.time.strftime("%Y%m%d"), self.derivation.time.strftime("%H%M%S")
        for kind in ("InstanceCreation", "Content", "Series"):
            setattr(dataset, f"{kind}Date", date)
            setattr(dataset, f"{kind}Time", time)
        if "DateOfSecondaryCapture" in dataset:
            dataset.DateOfSecondaryCapture, dataset.TimeOfSecondaryCapture = date, time
        for keyword in ("DimensionOrganizationSequence", "DimensionIndexSequence"):
            for item in dataset.get(keyword) or []:
                item.DimensionOrganizationUID = self.uid("dimensions")
        for item in dataset.get("ContributingEquipmentSequence") or []:
            item.pop("ContributionDateTime", None)  # that of writing
        dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID
        dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
        with replacing(path) as part:
            dataset.save_as(part, enforce_file_format=True)


_SHARED: Final = (
    *("StudyDescription", "IssuerOfPatientID", "PatientAge"),
    *("BodyPartExamined", "Laterality", "ImageLaterality", "PatientPosition", "PatientOrientation"),
    *("FrameOfReferenceUID", "PositionReferenceIndicator"),
    *("LossyImageCompression", "LossyImageCompressionRatio", "LossyImageCompressionMethod"),
)
"""What a picture shares with the one that it lies over, beside the identity that highdicom copies; no more of the
patient, the institution or the scanner than this."""

_UNPAIRED: Final = {
    *("HEAD", "BRAIN", "SKULL", "HEADNECK", "NECK", "CHEST", "ABDOMEN", "PELVIS", "WHOLEBODY"),
    *("SPINE", "CSPINE", "TSPINE", "LSPINE", "HEART", "LIVER"),
}
"""Body parts that have no side."""

_PLACE: Final = {
    "ImagePositionPatient": "PlanePositionSequence",
    "ImageOrientationPatient": "PlaneOrientationSequence",
    "PixelSpacing": "PixelMeasuresSequence",
    "SliceThickness": "PixelMeasuresSequence",
}
"""What says where a picture lies, and the group that holds it in a file of many frames."""


def _complete(dataset: Any, path: Path, *, needs_frame_of_reference: bool) -> None:
    """Add the elements that DICOM allows to be empty; blank those whose values it doesn't allow."""
    from pydicom.valuerep import DA, TM

    for keyword in ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID", "SOPClassUID", "FrameOfReferenceUID"):
        if not text_of(dataset, keyword) and (keyword != "FrameOfReferenceUID" or needs_frame_of_reference):
            raise ThoradError(
                f"{path}: no {keyword}, by which a result in DICOM would refer to it. Export the series again, with "
                "all its tags, or leave the DICOM results out."
            )
    for keyword, read in (("PatientBirthDate", DA), ("StudyDate", DA), ("StudyTime", TM)):
        try:
            read(text_of(dataset, keyword))
        except ValueError:
            setattr(dataset, keyword, "")
    if text_of(dataset, "PatientSex") not in ("M", "F", "O"):
        dataset.PatientSex = ""
    optional = ("PatientID", "PatientName", "PatientBirthDate", "AccessionNumber", "StudyID", "StudyDate", "StudyTime")
    for keyword in optional:
        dataset.setdefault(keyword, "")


def import_highdicom() -> Any:
    """The module highdicom; a ThoradError where it, or pydicom, is not installed."""
    import_pydicom()
    try:
        highdicom = importlib.import_module("highdicom")
    except ImportError as error:
        raise ThoradError(
            "DICOM results need highdicom, which is not installed. pip install 'thorad[dicom]'"
        ) from error
    importlib.import_module("highdicom.color")
    return highdicom


@contextmanager
def _writing(series: Series) -> Iterator[None]:
    """One ThoradError for what highdicom and pydicom find wrong with the source, without their words: as `reading`."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except ThoradError:
        raise
    except Exception as error:
        raise ThoradError(
            f"{series.files[0]}: no result in DICOM can be made that refers to this series ({type(error).__name__}). "
            "Its header is damaged, or not as the standard has it: leave the DICOM results out."
        ) from error


def _copy_image_elements(dataset: Any, source: Any) -> None:
    """What a picture shares with the one that it lies over; empty where DICOM wants it to be there."""
    for keyword in _SHARED:
        if keyword in source:
            dataset[keyword] = source[keyword]
    if "PatientOrientation" not in dataset:
        dataset.PatientOrientation = ""
    if text_of(dataset, "BodyPartExamined").upper() in _UNPAIRED:
        dataset.pop("Laterality", None)  # must not be there then
    elif "Laterality" not in dataset and "ImageLaterality" not in dataset:
        dataset.Laterality = ""


def _secondary_capture(picture: NDArray[np.uint8], derived: _DerivedSeries, index: int) -> Any:
    """A Secondary Capture of one picture (rows, columns, 3), at the place of its slice."""
    sources = derived.sources
    path, frame = sources.places[index]
    source = sources.headers[path]
    if picture.shape != (*sources.shape, 3) or picture.dtype != np.uint8:
        raise ValueError(f"a picture of {picture.shape} {picture.dtype} for a slice of {sources.shape}")
    dataset = import_highdicom().sc.SCImage.from_ref_dataset(
        source,
        pixel_array=burned_in(picture, derived.derivation.reason) if derived.derivation.reason else picture,
        photometric_interpretation="RGB",
        bits_allocated=8,
        coordinate_system="PATIENT",
        patient_orientation=("L", "P"),  # highdicom demands one; the source's, which may be unknown, follows
        transfer_syntax_uid=import_pydicom().uid.ExplicitVRLittleEndian,
        **derived.arguments(f"instance {index}"),
    )
    del dataset.PatientOrientation
    dataset.pop("ContributingEquipmentSequence", None)  # institution, address and scanner, copied unasked
    _copy_image_elements(dataset, source)
    if "FrameOfReferenceUID" in dataset and "PositionReferenceIndicator" not in dataset:
        dataset.PositionReferenceIndicator = ""
    dataset.ConversionType = "WSD"
    dataset.ImageType = ["DERIVED", "SECONDARY"]
    dataset.BurnedInAnnotation = "NO"
    dataset.DerivationDescription = (
        f"{derived.derivation.algorithm} over the source image. {derived.derivation.comments}"
    )
    if sources.series.is_volume or "ImagePositionPatient" in source:
        enhanced = "PerFrameFunctionalGroupsSequence" in source
        for keyword, group in _PLACE.items():
            setattr(dataset, keyword, (frame_group(source, frame, group) if enhanced else source).get(keyword))
    elif "PixelSpacing" in source:
        dataset.PixelSpacing = source.PixelSpacing
    _refer_to(dataset, source, frame if len(sources.places) > len(sources.datasets) else None)
    return dataset


def _refer_to(dataset: Any, source: Any, frame: int | None) -> None:
    """Name the instance, and the frame in it, that a picture was made from."""
    from pydicom.dataset import Dataset

    reference, in_series, derived_from = Dataset(), Dataset(), Dataset()
    reference.ReferencedSOPClassUID = source.SOPClassUID
    reference.ReferencedSOPInstanceUID = source.SOPInstanceUID
    if frame is not None:
        reference.ReferencedFrameNumber = frame + 1
    in_series.SeriesInstanceUID = source.SeriesInstanceUID
    in_series.ReferencedInstanceSequence = [reference]
    derived_from.update(reference)
    purpose = import_highdicom().sr.CodedConcept("121322", "DCM", "Source image for image processing operation")
    derived_from.PurposeOfReferenceCodeSequence = [purpose]
    dataset.ReferencedSeriesSequence = [in_series]
    dataset.SourceImageSequence = [derived_from]
