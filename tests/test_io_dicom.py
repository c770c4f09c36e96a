import hashlib
import io
import struct
import time
import tracemalloc
import warnings
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pydicom
import pytest
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import (
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    JPEGLosslessSV1,
    JPEGLSLossless,
    RLELossless,
    generate_uid,
)

from thorad.errors import ThoradError
from thorad.io import dicom
from thorad.io.dicom import (
    Series,
    as_frames,
    find_series,
    is_dicom,
    read_radiograph,
    read_series,
    slice_order,
    without_identity,
)

IDENTITY = {"PatientName": "Mustermann^Erika", "PatientID": "PAT-4711", "PatientBirthDate": "19700102"}
MR, DX, ENHANCED_MR = "1.2.840.10008.5.1.4.1.1.4", "1.2.840.10008.5.1.4.1.1.1.1", "1.2.840.10008.5.1.4.1.1.4.1"
AXIAL = np.diag([-0.9, -1.1, 2.0, 1.0]) @ np.array(
    [[1, 0, 0, -50.0], [0, 1, 0, -40.0], [0, 0, 1, 10.0], [0, 0, 0, 1.0]]
)
"""A scan without tilt: columns to the left, rows to the back, slices to the top."""


def turned(affine: np.ndarray) -> np.ndarray:
    """An oblique head: 20 degrees about x, then -13 about z."""
    a, b = np.deg2rad(20), np.deg2rad(-13)
    about_x = np.array([[1, 0, 0], [0, np.cos(a), -np.sin(a)], [0, np.sin(a), np.cos(a)]])
    about_z = np.array([[np.cos(b), -np.sin(b), 0], [np.sin(b), np.cos(b), 0], [0, 0, 1]])
    oblique = affine.copy()
    oblique[:3] = about_z @ about_x @ affine[:3]
    return oblique


def blob(shape: tuple[int, int, int] = (34, 36, 6)) -> np.ndarray:
    """(I, J, K) integers without any symmetry."""
    i, j, k = np.indices(shape)
    return (100 + 7 * i + 13 * j * (i % 3) + 31 * k + (i * j * k) % 17).astype(np.uint16)


def base(sop_class: str, modality: str, pixels: np.ndarray, **elements: Any) -> FileDataset:
    """A picture with a patient; `elements` replace what is there, None takes away."""
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
    dataset.SOPClassUID = sop_class
    dataset.SOPInstanceUID = generate_uid(entropy_srcs=["instance", modality, pixels.tobytes().hex()[:400]])
    dataset.StudyInstanceUID = generate_uid(entropy_srcs=["study"])
    dataset.SeriesInstanceUID = generate_uid(entropy_srcs=["series", modality])
    for keyword, value in IDENTITY.items():
        setattr(dataset, keyword, value)
    dataset.PatientSex = "F"
    dataset.StudyDate, dataset.StudyTime, dataset.StudyID = "20240305", "101112", "7"
    dataset.AccessionNumber = "A-99"
    dataset.ReferringPhysicianName = "Doktor^Hans"
    dataset.Modality = modality
    dataset.Manufacturer = "Acme"
    dataset.SeriesNumber = 3
    dataset.InstanceNumber = 1
    dataset.SeriesDescription = "t1 of Mustermann"
    bits = 8 * pixels.dtype.itemsize
    dataset.SamplesPerPixel = 3 if pixels.ndim == 3 and pixels.shape[-1] == 3 else 1
    dataset.PhotometricInterpretation = "RGB" if dataset.SamplesPerPixel == 3 else "MONOCHROME2"
    if dataset.SamplesPerPixel == 3:
        dataset.PlanarConfiguration = 0
    elif pixels.ndim == 3:
        dataset.NumberOfFrames = len(pixels)
    dataset.Rows, dataset.Columns = pixels.shape[-2:] if dataset.SamplesPerPixel == 1 else pixels.shape[:2]
    dataset.BitsAllocated = dataset.BitsStored = bits
    dataset.HighBit = bits - 1
    dataset.PixelRepresentation = int(pixels.dtype.kind == "i")
    dataset.PixelData = pixels.tobytes() + b"\0" * (pixels.nbytes % 2)
    change(dataset, **elements)
    return dataset


def change(dataset: Dataset, **elements: Any) -> None:
    """Set elements, also to what DICOM doesn't allow; None takes one away."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for keyword, value in elements.items():
            if value is None:
                dataset.pop(keyword, None)
            else:
                setattr(dataset, keyword, value)


def save(dataset: FileDataset, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    dataset.file_meta.MediaStorageSOPClassUID = dataset.get("SOPClassUID", MR)
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.get("SOPInstanceUID", "1.2.3")
    dataset.save_as(path, enforce_file_format=True)
    return path


def geometry(affine: np.ndarray, k: int) -> dict[str, list[float]]:
    """The tags of slice k of a grid given in RAS, to 9 decimals, as many as an element holds."""
    lps = np.diag([-1, -1, 1, 1]) @ affine
    spacing = np.linalg.norm(lps[:3, :2], axis=0)
    numbers = {
        "ImagePositionPatient": lps[:3, 3] + k * lps[:3, 2],
        "ImageOrientationPatient": (lps[:3, :2] / spacing).T.ravel(),
        "PixelSpacing": spacing[::-1],
    }
    return {keyword: [float(f"{number:.9f}") for number in values] for keyword, values in numbers.items()}


def slices(voxels: np.ndarray, affine: np.ndarray, **elements: Any) -> list[FileDataset]:
    """One data set for each k of an (I, J, K) volume."""
    datasets = []
    for k in range(voxels.shape[2]):
        dataset = base(MR, "MR", np.ascontiguousarray(voxels[:, :, k].T), **geometry(affine, k))
        dataset.SOPInstanceUID = generate_uid(entropy_srcs=["slice", str(k), *map(str, elements.items())])
        dataset.InstanceNumber = k + 1
        dataset.FrameOfReferenceUID = generate_uid(entropy_srcs=["space"])
        dataset.PatientPosition = "HFS"
        dataset.ScanningSequence, dataset.SequenceVariant, dataset.ScanOptions = "GR", "SP", ""
        dataset.MRAcquisitionType, dataset.EchoTime, dataset.EchoTrainLength = "3D", 3.0, 1
        dataset.SliceThickness, dataset.RepetitionTime = 2.0, 2000
        dataset.ImageType = ["ORIGINAL", "PRIMARY"]
        dataset.PositionReferenceIndicator = ""
        change(dataset, **elements)
        datasets.append(dataset)
    return datasets


def save_shuffled(datasets: list[FileDataset], folder: Path, seed: int = 0) -> list[Path]:
    """Files whose names say nothing of their order."""
    order = np.random.default_rng(seed).permutation(len(datasets))
    return [save(dataset, folder / f"{seed}{number:04d}") for number, dataset in zip(order, datasets, strict=True)]


def only(paths: list[Path]) -> Series:
    found = find_series(paths)
    assert not found.problems
    (series,) = found.series
    return series


def enhanced(voxels: np.ndarray, affine: np.ndarray, order: list[int]) -> FileDataset:
    """The slices of a volume as one file, its frames in another order."""
    dataset = base(ENHANCED_MR, "MR", np.ascontiguousarray(voxels.transpose(2, 1, 0)[order]))
    dataset.FrameOfReferenceUID = generate_uid(entropy_srcs=["space"])
    shared = Dataset()
    measures, turn = Dataset(), Dataset()
    measures.PixelSpacing = geometry(affine, 0)["PixelSpacing"]
    measures.SliceThickness = 2.0
    turn.ImageOrientationPatient = geometry(affine, 0)["ImageOrientationPatient"]
    shared.PixelMeasuresSequence, shared.PlaneOrientationSequence = [measures], [turn]
    dataset.SharedFunctionalGroupsSequence = [shared]
    items = []
    for k in order:
        item, place, values = Dataset(), Dataset(), Dataset()
        place.ImagePositionPatient = geometry(affine, k)["ImagePositionPatient"]
        values.RescaleSlope, values.RescaleIntercept, values.RescaleType = 1 + k, 5, "US"
        item.PlanePositionSequence, item.PixelValueTransformationSequence = [place], [values]
        items.append(item)
    dataset.PerFrameFunctionalGroupsSequence = items
    return dataset


@pytest.mark.parametrize("affine", [AXIAL, turned(AXIAL)], ids=["axial", "oblique"])
def test_series_comes_back_with_its_affine_whatever_the_names_of_its_files(tmp_path: Path, affine: np.ndarray) -> None:
    voxels = blob()
    paths = save_shuffled(slices(voxels, affine), tmp_path)
    series = only(paths)
    assert (series.slices, series.is_volume, series.modality, len(series.files)) == (6, True, "MR", 6)
    volume = read_series(series)
    np.testing.assert_array_equal(volume.voxels, voxels)
    np.testing.assert_allclose(volume.affine, affine, rtol=0, atol=1e-6)
    assert volume.voxels.dtype == np.float32
    assert volume.spacing == pytest.approx((0.9, 1.1, 2.0), abs=1e-6)
    assert np.linalg.det(volume.affine) > 0


def test_a_marker_lies_where_the_tags_say(tmp_path: Path) -> None:
    """By hand from PS3.3 C.7.6.2.1.1: position + column index x spacing along the row + row index x spacing down."""
    voxels = np.ones((20, 24, 6), np.uint16)
    datasets = slices(voxels, turned(AXIAL))
    row, column = 17, 4
    pixels = datasets[2].pixel_array.copy()
    pixels[row, column] = 999
    datasets[2].PixelData = pixels.tobytes()
    volume = read_series(only(save_shuffled(datasets, tmp_path)))
    orientation = np.array(datasets[2].ImageOrientationPatient, float)
    row_distance, column_distance = map(float, datasets[2].PixelSpacing)
    lps = np.array(datasets[2].ImagePositionPatient, float)
    lps = lps + column * column_distance * orientation[:3] + row * row_distance * orientation[3:]
    (at,) = np.argwhere(volume.voxels == 999)
    assert tuple(at) == (column, row, 2)
    np.testing.assert_allclose((volume.affine @ [*at, 1])[:3], lps * [-1, -1, 1], atol=1e-6)


def test_geometry_is_that_of_another_reader(tmp_path: Path) -> None:
    """SimpleITK's GDCM, which is Slicer's: every voxel has the same value at the same place."""
    itk = pytest.importorskip("SimpleITK")
    volume = read_series(only(save_shuffled(slices(blob(), turned(AXIAL)), tmp_path)))
    reader = itk.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(tmp_path)))
    image = reader.Execute()
    for index in ((0, 0, 0), (33, 0, 0), (0, 35, 0), (0, 0, 5), (7, 30, 3)):
        at = image.TransformPhysicalPointToIndex([float(x) for x in (volume.affine @ [*index, 1])[:3] * [-1, -1, 1]])
        assert image.GetPixel(*at) == volume.voxels[index]


def test_slices_go_along_their_normal_even_if_the_scanner_went_down(tmp_path: Path) -> None:
    """Instance numbers run from the top to the bottom: k still ascends along the normal, and the affine says so."""
    down = AXIAL.copy()
    down[:3, 3] += 5 * down[:3, 2]
    down[:3, 2] *= -1
    volume = read_series(only(save_shuffled(slices(blob(), down), tmp_path)))
    np.testing.assert_array_equal(volume.voxels, blob()[:, :, ::-1])
    np.testing.assert_allclose(volume.affine, AXIAL, atol=1e-6)


def test_sagittal_head_of_real_anatomy(tmp_path: Path, shared_data: Path) -> None:
    """A real head, cut sagittally and turned: the brightest corner of its affine is where nibabel's affine has it."""
    nibabel = pytest.importorskip("nibabel")
    image = nibabel.load(shared_data / "volumes" / "colin27_t1_1mm.nii.gz")
    grid = np.asarray(image.dataobj)[::6, ::5, ::5]
    affine = image.affine @ np.diag([6, 5, 5, 1])
    # Sagittal: columns to the back (-j), rows down (-k), slices to the right (i).
    sagittal = np.zeros((4, 4))
    sagittal[:, 0], sagittal[:, 1], sagittal[:, 2] = -affine[:, 1], -affine[:, 2], affine[:, 0]
    sagittal[:, 3] = affine @ [0, grid.shape[1] - 1, grid.shape[2] - 1, 1]
    sagittal = turned(sagittal)
    voxels = grid[:, ::-1, ::-1].transpose(1, 2, 0)
    scaled = np.rint(voxels / voxels.max() * 4000).astype(np.uint16)
    if np.linalg.det(sagittal) < 0:
        sagittal[:, 3] += (scaled.shape[2] - 1) * sagittal[:, 2]
        sagittal[:, 2] *= -1
        scaled = scaled[:, :, ::-1]
    volume = read_series(only(save_shuffled(slices(scaled, sagittal), tmp_path)))
    np.testing.assert_array_equal(volume.voxels, scaled)
    np.testing.assert_allclose(volume.affine, sagittal, atol=1e-5)
    head = volume.voxels > 1000
    assert 0.1 < head.mean() < 0.9
    # The head's middle, by its voxels, is within 1 mm of that in the NIfTI's own space, turned.
    middle = (volume.affine @ [*np.argwhere(head).mean(0), 1])[:3]
    own = affine @ [*np.argwhere(np.rint(grid / grid.max() * 4000) > 1000).mean(0), 1]
    np.testing.assert_allclose(middle, (turned(np.eye(4)) @ own)[:3], atol=1e-3)


def test_enhanced_file_is_sorted_by_its_frames_positions_and_rescaled_frame_by_frame(tmp_path: Path) -> None:
    order = [3, 0, 5, 1, 4, 2]
    path = save(enhanced(blob(), turned(AXIAL), order), tmp_path / "enhanced")
    series = only([path])
    assert (series.slices, series.is_volume) == (6, True)
    volume = read_series(series)
    np.testing.assert_array_equal(volume.voxels, blob() * (1 + np.arange(6)) + 5)
    np.testing.assert_allclose(volume.affine, turned(AXIAL), atol=1e-6)
    assert slice_order(series) == [(path, order.index(k)) for k in range(6)]


def test_slice_order_and_frames_lead_back_to_the_files(tmp_path: Path) -> None:
    series = only(save_shuffled(slices(blob(), turned(AXIAL)), tmp_path))
    frames = as_frames(read_series(series).voxels)
    for frame, (path, number) in zip(frames, slice_order(series), strict=True):
        assert number == 0
        np.testing.assert_array_equal(frame, pydicom.dcmread(path).pixel_array)


def test_rescaling_and_padding_of_each_slice(tmp_path: Path) -> None:
    voxels = blob().astype(np.int16)
    voxels[:3] = -2000
    datasets = slices(voxels, AXIAL, PixelPaddingValue=-2000, RescaleSlope=2, RescaleIntercept=-1024)
    change(datasets[1], RescaleSlope=0.5)
    volume = read_series(only(save_shuffled(datasets, tmp_path)))
    expected = voxels * np.array([2, 0.5, 2, 2, 2, 2]) - 1024
    np.testing.assert_array_equal(volume.voxels[3:], expected[3:].astype(np.float32))
    np.testing.assert_array_equal(volume.voxels[:3], expected[3:].min())


def test_mixed_folder_is_sorted_into_its_series(tmp_path: Path) -> None:
    head = save_shuffled(slices(blob(), turned(AXIAL)), tmp_path / "a")
    other_uid = generate_uid(entropy_srcs=["second"])
    second = save_shuffled(slices(blob()[:10], AXIAL, SeriesInstanceUID=other_uid, SeriesNumber=1), tmp_path / "b", 1)
    sagittal = AXIAL[:, [1, 2, 0, 3]] @ np.diag([1, -1, -1, 1])
    scout_uid = generate_uid(entropy_srcs=["scout"])
    scout = []
    for seed, affine in enumerate((AXIAL, turned(AXIAL), sagittal), start=2):
        datasets = slices(blob((20, 24, 2)), affine, SeriesInstanceUID=scout_uid, SeriesNumber=2)
        for dataset in datasets:
            dataset.SOPInstanceUID = generate_uid(entropy_srcs=[str(seed), str(dataset.InstanceNumber)])
        scout += save_shuffled(datasets, tmp_path / "c", seed)
    copy = tmp_path / "copy"
    copy.write_bytes(head[2].read_bytes())
    report = base("1.2.840.10008.5.1.4.1.1.88.11", "SR", np.zeros((8, 8), np.uint8), Rows=None, PixelData=None)
    own = base("1.2.840.10008.5.1.4.1.1.7", "OT", np.zeros((8, 8, 3), np.uint8), Manufacturer="thorad")
    segmentation = base("1.2.840.10008.5.1.4.1.1.66.4", "SEG", np.zeros((8, 8), np.uint8))
    directory = base("1.2.840.10008.1.3.10", "", np.zeros((8, 8), np.uint8), Rows=None, PixelData=None)
    skipped = [save(d, tmp_path / f"skip{n}") for n, d in enumerate((report, own, segmentation, directory))]
    note = tmp_path / "readme.txt"
    note.write_text("no DICOM " * 40)
    lost = save(base(DX, "DX", np.eye(16, dtype=np.uint16), SeriesInstanceUID=None), tmp_path / "lost")

    files = [*head, *second, *scout, copy, *skipped, note, lost]
    found = find_series([files[index] for index in np.random.default_rng(3).permutation(len(files))])
    assert [series.slices for series in found.series] == [6, 2, 2, 2, 6]
    assert set(found.series[0].files) == set(second)
    assert len({series.name for series in found.series}) == 5
    assert all(series.is_volume for series in found.series)
    assert {path for series in found.series[1:4] for path in series.files} == set(scout)
    assert found.problems.keys() == {note, lost}
    assert "0020,000E" in found.problems[lost]
    assert found.skipped.keys() == {*skipped, max(copy, head[2])}
    volume = read_series(found.series[-1])
    np.testing.assert_array_equal(volume.voxels, blob())
    assert found == find_series(files)


def test_names_are_hashes_that_hold_no_identity(tmp_path: Path) -> None:
    series = only(save_shuffled(slices(blob(), AXIAL, Modality="MR"), tmp_path / "Mustermann_Erika"))
    assert series.name == "mr-" + hashlib.sha256(series.uid.encode()).hexdigest()[:8]
    volume = read_series(series)
    assert (volume.name, volume.source) == (series.name, f"DICOM series {series.name}")
    assert read_series(series, "x").name == "x"
    message = f"{series.files[0]}: broken at 00002"
    cleaned = without_identity(message, series)
    assert cleaned == f"{series.name}: broken at 00002", "a bare number stays: messages are full of them"
    named = replace(series, files=tuple(file.with_name(f"Mustermann{file.name}.dcm") for file in series.files))
    cleaned = without_identity(f"{named.files[0]}: broken, next to {named.files[1].name}", named)
    assert cleaned == f"{series.name}: broken, next to {series.name}"
    odd = only([save(base(DX, "DX", np.eye(16, dtype=np.uint16), Modality="../DX Ä"), tmp_path / "odd")])
    assert set(odd.name) <= set("abcdefghijklmnopqrstuvwxyz0123456789-")


def test_x_rays_of_one_series_are_pictures_of_their_own(tmp_path: Path) -> None:
    pictures = [np.full((16, 20), 5, np.uint16), np.full((16, 20), 7, np.uint16)]
    paths = [save(base(DX, "DX", p, InstanceNumber=n), tmp_path / f"{n}") for n, p in enumerate(pictures)]
    found = find_series(paths)
    assert {series.files for series in found.series} == {(path,) for path in paths}
    assert not any(series.is_volume for series in found.series)
    assert len({series.name for series in found.series}) == 2
    with pytest.raises(ThoradError, match="one picture"):
        read_series(found.series[0])


@pytest.mark.parametrize(
    ("elements", "of", "words"),
    [
        ({"PixelSpacing": None}, 2, "Pixel Spacing"),
        ({"PixelSpacing": [1.0, 2.0]}, 2, "pixel spacing is another"),
        ({"PixelSpacing": [0.0, 0.0]}, None, "above 0"),
        ({"ImageOrientationPatient": [1, 0, 0, 1, 0, 0]}, None, "orthogonal"),
        ({"PixelData": None}, 3, "7FE0,0010"),
        ({"Rows": 4}, None, "34 x 4 px"),
        ({"RescaleIntercept": 0, "RescaleSlope": 0}, None, "every voxel"),
        ({"BitsAllocated": None}, 3, "0 bits"),
        ({"SamplesPerPixel": 7}, 3, "7 samples"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_what_is_wrong_with_a_series_is_said(
    tmp_path: Path, elements: dict[str, Any], of: int | None, words: str
) -> None:
    datasets = slices(blob(), AXIAL)
    for dataset in datasets if of is None else [datasets[of]]:
        change(dataset, **elements)
    found = find_series(save_shuffled(datasets, tmp_path))
    with pytest.raises(ThoradError, match=words) as caught:
        raise_problem(found) or read_series(found.series[0])
    assert str(tmp_path) in str(caught.value)


def raise_problem(found: Any) -> None:
    for message in found.problems.values():
        raise ThoradError(message)


def test_slice_without_position_is_a_problem_that_names_the_tag(tmp_path: Path) -> None:
    datasets = slices(blob(), AXIAL)
    change(datasets[4], ImagePositionPatient=None)
    found = find_series(save_shuffled(datasets, tmp_path))
    (message,) = found.problems.values()
    assert "0020,0032" in message
    assert found.series[0].slices == 5  # which then lacks a slice
    with pytest.raises(ThoradError, match="1 of 6 slices"):
        read_series(found.series[0])


def test_missing_slices_are_counted_and_placed(tmp_path: Path) -> None:
    datasets = slices(blob((20, 24, 12)), turned(AXIAL))
    kept = [dataset for k, dataset in enumerate(datasets) if k not in (3, 4, 9)]
    paths = save_shuffled(kept, tmp_path)
    with pytest.raises(ThoradError, match="3 of 12 slices") as caught:
        read_series(only(paths))
    assert paths[2].name in str(caught.value)
    assert paths[3].name in str(caught.value)


def test_uneven_tilted_and_doubled_slices_are_refused(tmp_path: Path) -> None:
    uneven = slices(blob(), AXIAL)
    uneven[3].ImagePositionPatient[2] += 0.3
    with pytest.raises(ThoradError, match="regular grid"):
        read_series(only(save_shuffled(uneven, tmp_path / "uneven")))
    tilted = AXIAL.copy()
    tilted[1, 2] = 0.4
    with pytest.raises(ThoradError, match="tilted gantry"):
        read_series(only(save_shuffled(slices(blob(), tilted), tmp_path / "tilted")))
    echoes = slices(blob(), AXIAL) + slices(blob() + np.uint16(9), AXIAL, EchoTime=7.5)
    with pytest.raises(ThoradError, match=r"12 images at 6 positions .*Echo Time \(0018,0081\): 3.0, 7.5"):
        read_series(only(save_shuffled(echoes, tmp_path / "echoes")))


def encapsulated(dataset: FileDataset, syntax: UID) -> FileDataset:
    dataset.compress(syntax, generate_instance_uid=False)
    return dataset


@pytest.mark.parametrize("syntax", [RLELossless, JPEG2000Lossless, JPEGLSLossless, DeflatedExplicitVRLittleEndian])
def test_compressed_without_loss_reads_the_same(tmp_path: Path, syntax: UID) -> None:
    datasets = slices(blob(), AXIAL, BitsStored=12, HighBit=11)
    for dataset in datasets:
        if syntax == DeflatedExplicitVRLittleEndian:
            dataset.file_meta.TransferSyntaxUID = syntax
        else:
            encapsulated(dataset, syntax)
    volume = read_series(only(save_shuffled(datasets, tmp_path)))
    np.testing.assert_array_equal(volume.voxels, blob())


def test_baseline_jpeg_of_eight_bits(tmp_path: Path) -> None:
    pixels = np.add.outer(np.arange(48), 2 * np.arange(64)).astype(np.uint8)
    buffer = io.BytesIO()
    PIL.Image.fromarray(pixels).save(buffer, "JPEG", quality=95)
    dataset = base(DX, "DX", pixels)
    dataset.file_meta.TransferSyntaxUID = JPEGBaseline8Bit
    dataset.PixelData = encapsulate([buffer.getvalue()])
    image = read_radiograph(save(dataset, tmp_path / "x"))
    assert np.abs(image.pixels - pixels).max() <= 3


def test_lossless_jpeg_says_what_to_do(tmp_path: Path) -> None:
    dataset = base(DX, "DX", np.eye(16, dtype=np.uint16))
    dataset.file_meta.TransferSyntaxUID = JPEGLosslessSV1
    dataset.PixelData = encapsulate([b"\xff\xd8\xff\xc3" + b"\0" * 60])
    with pytest.raises(ThoradError, match=r"JPEG Lossless.*1\.2\.840\.10008\.1\.2\.4\.70.*gdcmconv"):
        read_radiograph(save(dataset, tmp_path / "x"))


def test_files_without_preamble_or_meta_are_dicom(tmp_path: Path) -> None:
    dataset = base(DX, "DX", blob()[:, :, 0].T.copy())
    whole = save(dataset, tmp_path / "whole").read_bytes()
    (tmp_path / "bare").write_bytes(whole[132:])
    raw = tmp_path / "raw"
    dataset.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian
    content = save(dataset, raw).read_bytes()
    raw.write_bytes(content[144 + struct.unpack("<I", content[140:144])[0] :])
    for path in (tmp_path / "whole", tmp_path / "bare", raw):
        assert is_dicom(path), path
        np.testing.assert_array_equal(read_radiograph(path).pixels, blob()[:, :, 0].T)


@pytest.mark.parametrize(
    "content",
    [b"", b"DICM", b"\x89PNG\r\n\x1a\n" + b"\0" * 200, b"\x08\0" * 100, b"plain text " * 30, b"\0" * 400],
)
def test_other_files_are_not_dicom(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "x"
    path.write_bytes(content)
    assert not is_dicom(path)
    with pytest.raises(ThoradError, match=r"not a DICOM file|the file is empty"):
        read_radiograph(path)


def test_odd_paths_are_not_dicom(tmp_path: Path) -> None:
    assert not is_dicom(tmp_path)
    assert not is_dicom(tmp_path / "missing")
    assert not is_dicom(Path("a\0b"))
    with pytest.raises(ThoradError, match="no such file"):
        read_radiograph(tmp_path / "missing")


def ramp() -> np.ndarray:
    """(16, 20), 0 ... 4085."""
    return (np.arange(320).reshape(16, 20) * 12.806).astype(np.uint16)


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        # PS3.3 C.11.2.1.2.1 with c = 2048, w = 1000.
        ("LINEAR", lambda x: np.clip((x - 2047.5) / 999 + 0.5, 0, 1)),
        ("LINEAR_EXACT", lambda x: np.clip((x - 2048) / 1000 + 0.5, 0, 1)),
        ("SIGMOID", lambda x: 1 / (1 + np.exp(-4 * (x - 2048) / 1000))),
    ],
)
def test_window_functions(tmp_path: Path, function: str, expected: Callable[[np.ndarray], np.ndarray]) -> None:
    dataset = base(DX, "DX", ramp(), WindowCenter=[2048, 1], WindowWidth=[1000, 2], VOILUTFunction=function)
    image = read_radiograph(save(dataset, tmp_path / "x"))
    np.testing.assert_allclose(image.pixels, 65535 * expected(ramp().astype(float)), rtol=1e-6, atol=1e-3)


def test_monochrome1_is_inverted_within_what_was_measured(tmp_path: Path) -> None:
    pixels = ramp() + 100
    pixels[:2] = 60000
    dataset = base(DX, "CR", pixels, PhotometricInterpretation="MONOCHROME1", PixelPaddingValue=60000)
    image = read_radiograph(save(dataset, tmp_path / "x"))
    np.testing.assert_array_equal(image.pixels[2:], pixels[2:].max() - pixels[2:].astype(float))
    np.testing.assert_array_equal(image.pixels[:2], 0)
    change(dataset, WindowCenter=2048, WindowWidth=1000)
    image = read_radiograph(save(dataset, tmp_path / "y"))
    inside = (pixels > 1600) & (pixels < 2500)
    expected = 65535 * (1 - ((pixels - 2047.5) / 999 + 0.5))
    np.testing.assert_allclose(image.pixels[inside], expected[inside], rtol=1e-6)
    assert image.pixels[2:].max() == 65535


def test_modality_lut_then_voi_lut(tmp_path: Path) -> None:
    """4096 entries of 8 bits, more than 8 bits can index; the first value that it maps isn't 0."""
    modality, voi = Dataset(), Dataset()
    modality.LUTDescriptor, modality.ModalityLUTType = [4086, 0, 16], "US"
    modality.LUTData = np.arange(4086)[::-1].astype("<u2").tobytes()
    modality["LUTData"].VR = "OW"
    voi.LUTDescriptor = [4000, 50, 8]
    voi.LUTData = [entry * 255 // 3999 for entry in range(4000)]
    voi["LUTDescriptor"].VR, voi["LUTData"].VR = "US", "US"
    modality["LUTDescriptor"].VR = "US"
    dataset = base(
        DX, "DX", ramp(), ModalityLUTSequence=[modality], VOILUTSequence=[voi], WindowCenter=1, WindowWidth=2
    )
    image = read_radiograph(save(dataset, tmp_path / "x"))
    entry = np.clip(4085 - ramp().astype(int) - 50, 0, 3999)
    np.testing.assert_allclose(image.pixels, entry * 255 // 3999 * 65535 / 255, rtol=1e-6)


def test_negative_values_are_shifted_and_mr_keeps_its_brightness(tmp_path: Path) -> None:
    dataset = base(DX, "DX", ramp(), RescaleSlope=1, RescaleIntercept=-1000, RescaleType="US")
    np.testing.assert_array_equal(read_radiograph(save(dataset, tmp_path / "x")).pixels, ramp())
    (one,) = slices(blob((20, 24, 1)), AXIAL, WindowCenter=150, WindowWidth=10)
    image = read_radiograph(save(one, tmp_path / "mr"))
    np.testing.assert_array_equal(image.pixels, blob((20, 24, 1))[:, :, 0].T)
    assert image.spacing == pytest.approx((1.1, 0.9))
    assert image.name.startswith("mr-")


def test_spacing_of_x_rays(tmp_path: Path) -> None:
    both = base(DX, "DX", ramp(), PixelSpacing=[0.2, 0.1], ImagerPixelSpacing=[0.4, 0.3])
    assert read_radiograph(save(both, tmp_path / "both")).spacing == (0.2, 0.1)
    detector = base(DX, "DX", ramp(), ImagerPixelSpacing=[0.4, 0.3])
    assert read_radiograph(save(detector, tmp_path / "detector")).spacing == (0.4, 0.3)
    none = base(DX, "DX", ramp(), PixelSpacing=[0, 0.1])
    assert read_radiograph(save(none, tmp_path / "none")).spacing is None


def jpeg_of_twelve_bits() -> FileDataset:
    """A head that says so is enough: no decoder here takes them."""
    dataset = base(DX, "DX", ramp(), BitsStored=12, HighBit=11)
    dataset.file_meta.TransferSyntaxUID = JPEGExtended12Bit
    frame = b"\xff\xd8\xff\xc1" + struct.pack(">HBHHB", 11, 12, 16, 20, 1) + b"\x01\x11\0" + b"\0" * 20
    dataset.PixelData = encapsulate([frame])
    return dataset


def test_pictures_that_are_none_are_refused(tmp_path: Path) -> None:
    grey = np.repeat(ramp()[..., None] // 16, 3, axis=2).astype(np.uint8)
    image = read_radiograph(save(base(DX, "DX", grey), tmp_path / "grey"))
    np.testing.assert_array_equal(image.pixels, grey[..., 0])
    coloured = grey.copy()
    coloured[3, 4, 0] ^= 64
    cases = {
        "colour image": base(DX, "DX", coloured),
        "3 frames": base(DX, "XA", np.stack([ramp()] * 3)),
        "a segmentation": base("1.2.840.10008.5.1.4.1.1.66.4", "SEG", ramp()),
        "a result of thorad": base(DX, "DX", ramp(), Manufacturer="thorad"),
        "constant": base(DX, "DX", ramp(), WindowCenter=-9999, WindowWidth=5),
        "JPEG Extended": jpeg_of_twelve_bits(),
        "palette": base(DX, "DX", ramp(), PhotometricInterpretation="PALETTE COLOR"),
    }
    for number, (words, dataset) in enumerate(cases.items()):
        with pytest.raises(ThoradError, match=words):
            read_radiograph(save(dataset, tmp_path / f"{number}"))


def test_lies_about_size_take_no_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Announced sizes far beyond the file's: refused from the header. (A length alone is cut to the file.)"""
    frames = base(DX, "DX", ramp(), NumberOfFrames=2_000_000_000)
    sides = base(DX, "DX", ramp(), Rows=65535, Columns=65535)
    stream = encapsulated(base(DX, "DX", blob()[:, :, 0].T.copy()), JPEG2000Lossless)
    lying = bytearray(stream.PixelData)
    at = lying.index(b"\xff\x4f\xff\x51") + 8
    lying[at : at + 8] = struct.pack(">II", 60000, 60000)
    stream.PixelData = bytes(lying)
    bomb, length = tmp_path / "bomb", tmp_path / "length"
    deflated = base(DX, "DX", ramp())
    deflated.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    content = save(deflated, bomb).read_bytes()
    squeezing = zlib.compressobj(9, zlib.DEFLATED, -15)
    pages = b"".join(squeezing.compress(b"\x10\x00\x10\x00LO\0\0" * 2**17) for _ in range(64)) + squeezing.flush()
    bomb.write_bytes(content[: 144 + struct.unpack("<I", content[140:144])[0]] + pages)
    content = save(base(DX, "DX", ramp()), length).read_bytes()
    at = content.index(b"\xe0\x7f\x10\x00OW") + 8
    length.write_bytes(content[:at] + struct.pack("<I", 0xFFFFFFF0) + content[at + 4 :])
    refused = [
        save(frames, tmp_path / "frames"),
        save(sides, tmp_path / "sides"),
        save(stream, tmp_path / "stream"),
        bomb,
    ]
    monkeypatch.setattr(dicom, "LARGEST_FILE", 2**25)
    before = time.process_time()
    tracemalloc.start()
    try:
        assert read_radiograph(length).pixels.shape == (16, 20)
        for path, words in zip(refused, ("frames", "65535", "compressed picture", "inflated"), strict=True):
            with pytest.raises(ThoradError, match=words):
                read_radiograph(path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 2**27
    assert time.process_time() - before < 5


def damaged_sources(folder: Path) -> list[bytes]:
    """Small whole files of every way that pixels are stored."""
    (mr,) = slices(blob((34, 33, 1)), AXIAL)
    picture = blob((34, 33, 1))[:, :, 0].T.copy()
    item = Dataset()
    item.LUTDescriptor, item.LUTData = [300, 100, 12], list(range(0, 3000, 10))
    item["LUTDescriptor"].VR = item["LUTData"].VR = "US"
    made = [
        mr,
        base(DX, "DX", picture, WindowCenter=200, WindowWidth=300, PixelPaddingValue=0),
        base(DX, "DX", picture, VOILUTSequence=[item], PhotometricInterpretation="MONOCHROME1"),
        enhanced(blob((16, 12, 3)), AXIAL, [2, 0, 1]),
        *(encapsulated(base(DX, "DX", picture), kind) for kind in (RLELossless, JPEG2000Lossless, JPEGLSLossless)),
    ]
    deflated = base(DX, "DX", picture)
    deflated.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    implicit = base(DX, "DX", picture)
    implicit.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian
    return [save(dataset, folder / f"{n}").read_bytes() for n, dataset in enumerate([*made, deflated, implicit])]


def test_damaged_files_are_read_or_refused(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """1,500 truncated, bit-flipped, cut and spliced files: a result or a ThoradError, without a warning or a word."""
    rng = np.random.default_rng(11)
    sources = damaged_sources(tmp_path)
    path = tmp_path / "damaged"
    read, messages = 0, list[str]()
    for number in range(1500):
        content = bytearray(sources[number % len(sources)])
        kind = rng.integers(4)
        if kind == 0:
            content = content[: rng.integers(len(content))]
        elif kind == 1:
            for at in rng.integers(128, len(content), rng.integers(1, 8)):
                content[at] ^= 1 << rng.integers(8)
        elif kind == 2:
            at = int(rng.integers(128, len(content)))
            del content[at : at + int(rng.integers(1, 40))]
        else:
            at = int(rng.integers(128, len(content)))
            content[at : at + 8] = rng.integers(0, 256, 8, dtype=np.uint8).tobytes()
        path.write_bytes(bytes(content))
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            found = find_series([path])
            assert len(found.series) + len(found.problems) + len(found.skipped) == 1
            try:
                if found.series and found.series[0].is_volume:
                    assert np.isfinite(read_series(found.series[0]).voxels).all()
                else:
                    pixels = read_radiograph(path).pixels
                    assert np.isfinite(pixels).all()
                    assert pixels.min() >= 0
                read += 1
            except ThoradError as error:
                messages.append(str(error))
    assert read > 200
    assert len(messages) > 200
    assert all(str(path) in message and "Mustermann" not in message for message in messages)
    # What is damaged, not which of pydicom's exceptions says so.
    assert sum("can't be read" in message for message in messages) > 50
    assert not [message for message in messages if "TypeError" in message]
    assert capfd.readouterr() == ("", "")
