"""Register a T1w head to MNI152NLin2009aSym, and say how well that went.

Inside this module points are LPS, as SimpleITK has them; what goes in and comes out is RAS, as everywhere in thorad.
"""

import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache
from importlib import resources
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import fft, ndimage
from scipy.spatial.transform import Rotation

from thorad.errors import ThoradError
from thorad.io.volumes import Volume

sitk: Any
try:
    import SimpleITK as sitk  # noqa: N813
except ImportError:
    sitk = None

TEMPLATE: Final = "mni152-2009a-t1-brain-2mm.nii.gz"

BIAS_MM: Final = 5.0
"""Grid that the bias field is estimated on."""
BIAS_ITERATIONS: Final = (40, 40, 40, 20)
"""From the smoothest field to the finest."""
SEARCH_MM: Final = 6.0
"""Grid of the search over all places, and many rotations and sizes."""
FINE_MM: Final = ((4.0, 1.0), (2.0, 0.25))
"""Grids of the affine registration, and the largest first step on each."""
MARGIN_MM: Final = 4.0
"""The metric sees the template's brain and so much around it: fluid and bone, dark as the template is there."""

PITCH_DEG: Final = (-30, -15, 0, 15, 30)
ROLL_DEG: Final = (-20, 0, 20)
YAW_DEG: Final = (-20, 0, 20)
"""Rotations of the search, about the axes to the left, to the back and upwards."""
SIZES: Final = (0.88, 1.0, 1.12)
"""Scale factors of the search."""
MAX_STARTS: Final = 24
"""So many of the search's poses, one after the other, are registered by a similarity transform..."""
SURE_SIMILARITY: Final = 0.5
"""...until one of them gets this correlation; otherwise the best is taken. Heads get 0.54 to 0.75, their wrong poses
0.37 at most."""

MIN_SIMILARITY: Final = 0.45
MIN_OVERLAP: Final = 0.86
MIN_COVERAGE: Final = 0.95
"""Fraction of the template's brain that lies in the image. Below any of the three there is a warning; docs/volumes.md
says which heads and which failures set them."""
MIN_BRIGHT_SHELL: Final = 0.1
"""Fraction of the shell around the template's brain that is bright where there is a skull with its fat and skin: 0.44
to 0.57 of it in heads, 0.00 in a skull-stripped one."""
SHELL_MM: Final = (6.0, 24.0)
"""The shell's distance from the brain: no dura, and not much air."""
SHELL_ABOVE_MM: Final = 10.0
"""The shell is taken above this z of the template, where no neck and no face is."""
SHELL_BRIGHT: Final = 0.3
TISSUE_BRIGHT: Final = 0.45
"""In medians of the image in the template's brain."""
TISSUE_MM: Final = 10.0
"""How far from the template's brain the image's own is looked for: beyond are skin and neck."""

_RAS: Final = np.diag([-1.0, -1.0, 1.0, 1.0])
"""LPS to RAS, and back."""


@dataclass(frozen=True, eq=False)
class Registration:
    """Where a head lies in the template's space, and how certain that is."""

    to_template: NDArray[np.float64]
    """(4, 4): native RAS mm to the template's RAS mm."""
    overlap: float
    """Dice of the template's brain and the brain found by brightness in the registered image, in [0, 1]."""
    similarity: float
    """Correlation of the registered image with the template inside the template's brain, in [-1, 1]."""
    warning: str | None
    """What makes the result doubtful or the image strange to the model; None: nothing found."""
    volume: Volume
    """Bias corrected, on the native grid; without the skull where that was asked for."""
    doubtful: bool = False
    """Whether it failed by its figures, or the image doesn't show the whole brain."""


def register(volume: Volume, *, skull: bool = True) -> Registration:
    """Register a head to the template: bias correction, search over poses, similarity, affine. Deterministic.

    A registration that fails gives a warning, not an error: look at `warning`, or at the picture.

    Args:
        volume: T1w, with or without the skull, in any orientation that its affine gives within some 45 degrees.
        skull: whether the head keeps its skull. False sets what lies outside the template's brain, mapped to
            the native grid, to 0, unless the image has no skull already. That is rough: an affine map follows no
            gyrus, so some millimetres of dura or bone stay and as much of the brain goes.

    Raises:
        ThoradError: SimpleITK is not installed, or the volume holds nothing that could be registered.
    """
    template = _template()
    if not np.percentile(volume.voxels, 99) > 0:
        raise ThoradError(f"{volume.source}: nearly no voxel is above 0. Expected a T1w head on a dark ground.")
    try:
        with _one_thread():
            corrected = _correct_bias(to_simple_itk(volume))
            transform = _register_affine(_start(corrected, template), corrected, template)
            quality = _measure_quality(corrected, transform, template)
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[-1]
        raise ThoradError(f"{volume.source}: can't be registered ({reason}). Expected a T1w head.") from error
    if not skull and quality.has_skull:
        brain = sitk.Cast(template > 0, sitk.sitkFloat32)
        inside = sitk.Resample(brain, corrected, transform.GetInverse(), sitk.sitkLinear, 0.0)
        corrected = sitk.Mask(corrected, inside > 0.5)
    doubtful, warning = _judge(quality, skull)
    to_native = np.eye(4)
    to_native[:3, :3] = np.reshape(transform.GetMatrix(), (3, 3))
    to_native[:3, 3] = transform.TransformPoint((0.0, 0.0, 0.0))
    return Registration(
        to_template=np.asarray(_RAS @ np.linalg.inv(to_native) @ _RAS, dtype=np.float64),
        overlap=quality.overlap,
        similarity=quality.similarity,
        warning=warning,
        doubtful=doubtful,
        volume=replace(volume, voxels=np.ascontiguousarray(sitk.GetArrayViewFromImage(corrected).T)),
    )


def template_brain() -> tuple[NDArray[np.float32], NDArray[np.float64]]:
    """The template's T1w brain: (99, 117, 95) in [0, 255], 0 outside the brain; and its (4, 4) voxel to RAS mm."""
    template = sitk.DICOMOrient(_template(), "RAS")
    affine = np.diag([*template.GetSpacing(), 1.0])
    affine[:3, 3] = (_RAS @ [*template.GetOrigin(), 1.0])[:3]
    return sitk.GetArrayFromImage(template).T, affine


def to_simple_itk(volume: Volume) -> Any:
    """The volume as a float32 SimpleITK image, each voxel where the affine puts it, be that left-handed or sheared."""
    affine = _RAS @ volume.affine
    image = sitk.GetImageFromArray(np.ascontiguousarray(volume.voxels.T, dtype=np.float32))
    image.SetSpacing(volume.spacing)
    image.SetOrigin(affine[:3, 3].tolist())
    image.SetDirection((affine[:3, :3] / volume.spacing).ravel().tolist())
    return image


@contextmanager
def _one_thread() -> Iterator[None]:
    """Sums that several threads share depend on their number; filters inside filters follow the global one alone."""
    before = sitk.ProcessObject.GetGlobalDefaultNumberOfThreads()
    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(1)
    try:
        yield
    finally:
        sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(before)


@cache
def _template() -> Any:
    """The template's brain, 2 mm, axes along LPS."""
    if sitk is None:
        raise ThoradError("registration needs SimpleITK, which is not installed. pip install 'thorad[volumes]'")
    with resources.as_file(resources.files("thorad") / "assets" / "templates" / TEMPLATE) as path:
        return sitk.DICOMOrient(sitk.ReadImage(str(path), sitk.sitkFloat32), "LPS")


def _shrink(image: Any, millimetres: float) -> Any:
    """Means over blocks of about so many mm; axes that are coarser already stay."""
    # Halves go down whatever the last digit of the spacing, or a turned header would change the factor.
    factors = [max(1, round(millimetres / spacing - 1e-3)) for spacing in image.GetSpacing()]
    return sitk.Cast(sitk.BinShrink(image, factors), sitk.sitkFloat32)


def _correct_bias(image: Any) -> Any:
    """N4 with a field that is estimated on a coarse copy, inside what is brighter than Otsu's threshold."""
    coarse = _shrink(image, BIAS_MM)
    bright = float(np.percentile(sitk.GetArrayViewFromImage(coarse), 99))
    coarse = sitk.Clamp(coarse, lowerBound=1e-3 * bright)  # N4 takes logarithms
    n4 = sitk.N4BiasFieldCorrectionImageFilter()
    n4.SetMaximumNumberOfIterations(BIAS_ITERATIONS)
    n4.Execute(coarse, sitk.OtsuThreshold(coarse, 0, 1))
    field = sitk.Exp(sitk.Cast(n4.GetLogBiasFieldAsImage(image), sitk.sitkFloat32))
    return sitk.Cast(image / field, sitk.sitkFloat32)


_Pose = tuple[float, NDArray[np.float64], NDArray[np.float64]]
"""How the template may lie in the image: its correlation there, rotation and size (3, 3), and its centre, LPS mm."""


def _start(image: Any, template: Any) -> Any:
    """The best pose, of a search over all places and some rotations and sizes, after similarity registration."""
    poses, centre = _search(image, template)
    fixed, moving = _shrink(template, FINE_MM[0][0]), _shrink(image, FINE_MM[0][0])
    mask = _near_brain(fixed)
    best, highest = None, -np.inf
    for _, matrix, place in poses[:MAX_STARTS]:
        transform = sitk.Similarity3DTransform()
        transform.SetCenter(centre.tolist())
        transform.SetMatrix(matrix.ravel().tolist())
        transform.SetTranslation((place - centre).tolist())
        similarity = _optimise(transform, fixed, mask, moving, (2.0, 1e-2), iterations=50)
        if similarity > highest:
            best, highest = transform, similarity
        if highest >= SURE_SIMILARITY:
            break
    return best


def _search(image: Any, template: Any) -> tuple[list[_Pose], NDArray[np.float64]]:
    """The poses, the most similar first, and the template's centre, LPS mm.

    Masked correlation of the rotated and scaled template with the image at every place, by Fourier transforms.
    """
    head = _axis_aligned(_shrink(image, SEARCH_MM), SEARCH_MM)
    origin = np.array(head.GetOrigin())
    small = _shrink(template, SEARCH_MM)
    brightness = sitk.GetArrayFromImage(small).T
    brain = brightness > 0
    near = ndimage.binary_dilation(brain).astype(np.float32)
    middle = np.argwhere(brain).mean(axis=0)
    spacing = np.array(small.GetSpacing())
    centre = np.array(small.GetOrigin()) + spacing * middle
    reach = np.linalg.norm((np.argwhere(near > 0) - middle) * spacing, axis=1).max() * max(SIZES) / SEARCH_MM
    side = 2 * int(np.ceil(reach)) + 1  # of a cube that holds the template in any pose
    best_place = _correlator(_tissue(head), side)
    poses = []
    for size, pitch, roll, yaw in itertools.product(SIZES, PITCH_DEG, ROLL_DEG, YAW_DEG):
        matrix = size * Rotation.from_euler("ZXY", [yaw, pitch, roll], degrees=True).as_matrix()
        inverse = np.linalg.inv(matrix) * SEARCH_MM / spacing[:, None]
        offset = middle - inverse @ np.full(3, side // 2)
        mask = ndimage.affine_transform(near, inverse, offset, (side,) * 3, order=1) > 0.5
        posed = ndimage.affine_transform(brightness, inverse, offset, (side,) * 3, order=1)
        correlation, corner = best_place(posed, mask)
        poses.append((correlation, matrix, origin + SEARCH_MM * (corner + side // 2)))
    return sorted(poses, key=lambda pose: -pose[0]), centre


def _tissue(head: Any) -> NDArray[np.float32]:
    """The head's values, clipped: the brightest (fat, vessels, the bias field's peak) don't say where the brain is."""
    values = sitk.GetArrayFromImage(head).T
    bright = sitk.GetArrayFromImage(sitk.OtsuThreshold(head, 0, 1)).T > 0
    return np.asarray(np.clip(values, 0, np.percentile(values[bright], 75)))


def _correlator(
    values: NDArray[np.float32], side: int
) -> Callable[[NDArray[np.float32], NDArray[np.bool_]], tuple[float, NDArray[np.int64]]]:
    """A function of a pattern and its mask, cubes of `side` voxels: the highest correlation with `values` in the mask
    of all places of the cube, and the index of its corner there, which may lie before the values' own.
    """
    shape = [fft.next_fast_len(extent + side, real=True) for extent in values.shape]
    spectrum, spectrum_of_squares = fft.rfftn(values, shape), fft.rfftn(values**2, shape)
    least = 1e-3 * values.var()

    def best_place(pattern: NDArray[np.float32], mask: NDArray[np.bool_]) -> tuple[float, NDArray[np.int64]]:
        count = np.count_nonzero(mask)
        pattern = np.where(mask, pattern - pattern[mask].mean(), 0)
        window = np.conj(fft.rfftn(mask.astype(np.float32), shape))
        product = fft.irfftn(spectrum * np.conj(fft.rfftn(pattern, shape)), shape)
        total, total_of_squares = fft.irfftn(spectrum * window, shape), fft.irfftn(spectrum_of_squares * window, shape)
        variance = np.maximum(total_of_squares / count - (total / count) ** 2, least)
        correlation = product / (count * pattern[mask].std() * np.sqrt(variance))
        peak = np.array(np.unravel_index(correlation.argmax(), correlation.shape))
        # What lies behind the values' end wraps around: the cube begins before them.
        return float(correlation.max()), np.where(peak < values.shape, peak, peak - shape)

    return best_place


def _axis_aligned(image: Any, millimetres: float) -> Any:
    """Resample the whole image on a grid along LPS."""
    ends = [(0, extent - 1) for extent in image.GetSize()]
    corners = np.array([image.TransformIndexToPhysicalPoint(corner) for corner in itertools.product(*ends)])
    first = corners.min(axis=0)
    extents = np.ceil((corners.max(axis=0) - first) / millimetres).astype(int) + 1
    grid = (sitk.Transform(3, sitk.sitkIdentity), sitk.sitkLinear, first.tolist(), [millimetres] * 3)
    return sitk.Resample(image, extents.tolist(), *grid, np.eye(3).ravel().tolist())


def _register_affine(start: Any, image: Any, template: Any) -> Any:
    transform = sitk.AffineTransform(3)
    transform.SetCenter(start.GetCenter())
    transform.SetMatrix(start.GetMatrix())
    transform.SetTranslation(start.GetTranslation())
    for millimetres, step in FINE_MM:
        fixed = _shrink(template, millimetres)
        _optimise(transform, fixed, _near_brain(fixed), _shrink(image, millimetres), (step, 1e-3), iterations=100)
    return transform


def _near_brain(template: Any) -> Any:
    return sitk.BinaryDilate(template > 0, [round(MARGIN_MM / spacing) for spacing in template.GetSpacing()])


def _optimise(transform: Any, fixed: Any, mask: Any, moving: Any, steps: tuple[float, float], iterations: int) -> float:
    """Change the transform (template to native) in place for the highest correlation, and return that.

    `steps` are the first in mm, at most, and the last as a share of it.
    """
    method = sitk.ImageRegistrationMethod()
    method.SetMetricAsCorrelation()
    method.SetMetricFixedMask(mask)
    method.SetMetricSamplingStrategy(method.NONE)
    method.SetInterpolator(sitk.sitkLinear)
    method.SetOptimizerAsRegularStepGradientDescent(
        learningRate=1.0,
        minStep=steps[1],
        numberOfIterations=iterations,
        gradientMagnitudeTolerance=1e-8,
        estimateLearningRate=method.Once,
        maximumStepSizeInPhysicalUnits=steps[0],
    )
    method.SetOptimizerScalesFromPhysicalShift()
    method.SetInitialTransform(transform, inPlace=True)
    method.Execute(fixed, moving)
    return float(-method.GetMetricValue())


class _Quality(NamedTuple):
    """What the registered image shows, as `Registration` has it."""

    overlap: float
    similarity: float
    coverage: float
    """Fraction of the template's brain that lies in the image."""
    has_skull: bool


def _measure_quality(image: Any, transform: Any, template: Any) -> _Quality:
    expected = sitk.GetArrayFromImage(template)
    spacing = template.GetSpacing()[::-1]
    small = _shrink(image, template.GetSpacing()[0])
    found = sitk.GetArrayFromImage(sitk.Resample(small, template, transform, sitk.sitkLinear, 0.0))
    everywhere = sitk.GetArrayFromImage(sitk.Resample(small * 0 + 1, template, transform, sitk.sitkLinear, 0.0)) > 0.5
    brain = expected > 0
    coverage = float(everywhere[brain].mean())
    in_both = brain & everywhere
    if not in_both.any() or found[in_both].std() == 0:
        return _Quality(0.0, 0.0, coverage, False)
    similarity = np.corrcoef(found[in_both], expected[in_both])[0, 1]
    typical = float(np.median(found[in_both]))
    distance = ndimage.distance_transform_edt(~brain, sampling=spacing)
    tissue = _brain_by_brightness((found > TISSUE_BRIGHT * typical) & (distance <= TISSUE_MM))
    overlap = 2 * np.count_nonzero(tissue & brain) / (np.count_nonzero(tissue) + np.count_nonzero(brain))
    z = template.GetOrigin()[2] + spacing[0] * np.arange(len(expected))
    shell = (distance > SHELL_MM[0]) & (distance < SHELL_MM[1]) & (z > SHELL_ABOVE_MM)[:, None, None] & everywhere
    bright = float((found[shell] > SHELL_BRIGHT * typical).mean()) if shell.any() else 0.0
    return _Quality(float(overlap), float(similarity), coverage, bright > MIN_BRIGHT_SHELL)


def _brain_by_brightness(bright: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The largest piece, cut off from thin ones (skin, dura), its furrows and ventricles filled."""
    ball = np.linalg.norm(np.mgrid[-2:3, -2:3, -2:3], axis=0) <= 2.3
    pieces, count = ndimage.label(ndimage.binary_opening(bright, ball))
    if count == 0:
        return np.zeros_like(bright)
    largest = pieces == 1 + np.argmax(np.bincount(pieces.ravel())[1:])
    rim = 4  # closing needs room at the grid's borders
    closed = ndimage.binary_closing(np.pad(largest, rim), ball, iterations=2)[(slice(rim, -rim),) * 3]
    return np.asarray(ndimage.binary_fill_holes(closed), dtype=np.bool_)


def _judge(quality: _Quality, skull: bool) -> tuple[bool, str | None]:
    """Whether the registration is doubtful, and what to tell about it."""
    covered = quality.coverage >= MIN_COVERAGE
    fits = quality.similarity >= MIN_SIMILARITY and quality.overlap >= MIN_OVERLAP
    warnings = []
    if not covered:
        warnings.append(f"only {100 * quality.coverage:.0f} % of the template's brain lies in the image")
    if not fits:
        warnings.append(
            f"the registration failed, or this is no T1w head (similarity {quality.similarity:.2f}, expected at least "
            f"{MIN_SIMILARITY}; overlap {quality.overlap:.2f}, expected at least {MIN_OVERLAP})"
        )
    elif skull and not quality.has_skull:
        warnings.append("out of the model's domain: the image is skull stripped, the model knows heads with the skull")
    elif not skull and quality.has_skull:
        warnings.append("the skull was cut away with the template's brain, which is rough: give a skull-stripped image")
    return not (covered and fits), "; ".join(warnings) or None
