"""Register a T1w head to MNI152NLin2009aSym by its brain, and say how well that went.

Inside this module points are LPS and arrays (z, y, x), as SimpleITK has them; what goes in and comes out is RAS and
(x, y, z), as everywhere in thorad.
"""

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from thorad.errors import ThoradError
from thorad.io.brain import find_brain
from thorad.io.template import template_brain
from thorad.io.volumes import Volume

sitk: Any
try:
    import SimpleITK as sitk  # noqa: N813
except ImportError:
    sitk = None

HEAD_MM: Final = 1.0
"""Grid that the brain is looked for on."""
MOST_MM: Final = 600.0
"""Along an axis of that grid: a head with its neck has 400, and more would fill the memory."""
UPRIGHT_DEG: Final = 25.0
"""A head that turns out to lie so askew on its own grid is set upright, and its brain looked for once more."""
BIAS_MM: Final = 5.0
"""Grid that the bias field is estimated on."""
BIAS_ITERATIONS: Final = (40, 40, 40, 20)
"""From the smoothest field to the finest."""
SEARCH_MM: Final = 6.0
"""Grid that the starts are compared on."""
FINE_MM: Final = ((4.0, 1.0), (2.0, 0.25))
"""Grids of the affine registration, and the largest first step on each."""
MARGIN_MM: Final = 6.0
"""The metric sees the template's brain and so much around it, where both are dark."""

TILTS_DEG: Final = ((-30, -15, 0, 15, 30), (-20, 0, 20), (-20, 0, 20))
"""Starts: about the axes to the left, to the back and upwards; beside these all 24 ways to turn by right angles."""
SCALES: Final = (0.85, 1.15)
"""How much larger or smaller than the template the search takes a brain for at most: it may be cut off."""
STARTS: Final = 3
"""The best of them, so far apart (degrees), are registered by a similarity transform."""
APART_DEG: Final = 40.0

CLOSE_MM: Final = 10.0
"""Furrows and bays of the found brain that are narrower than twice this belong to it: a lesion at its surface does."""

MISFIT_MM: Final = 4.0
"""Grid that the brain's eighths are compared on..."""
MISFIT_REACH: Final = 3
"""...and so many voxels to each side."""

PAD: Final = 3
"""Voxels that the bias field goes on for beyond what it was estimated on."""

FEWEST_EIGHTHS: Final = 4
"""Of those that the scan holds, for a misfit to be told; where there are fewer, the coverage is warned of."""

MIN_SIMILARITY: Final = (0.25, 0.40)
MIN_OVERLAP: Final = (0.80, 0.90)
MAX_MISFIT: Final = (7.0, 3.0)
MIN_COVERAGE: Final = (0.50, 0.95)
"""Beyond the first the registration counts as failed, beyond the second it is warned of; docs/volumes.md says which
heads and failures set them."""
MAX_TURN_DEG: Final = 60.0
"""No head lies so in a scanner whose header is right."""
SKULL_MM: Final = 6.0
MIN_SKULL: Final = 0.05
"""Of the brain's volume: what is bright farther than SKULL_MM from it, where there is skin and fat."""
SKULL_BRIGHT: Final = 0.3
"""In medians of the brain."""

_RAS: Final = np.diag([-1.0, -1.0, 1.0, 1.0])
"""LPS to RAS, and back."""


FEWEST_SLICES: Final = 8
"""The filters need more than 4, a head of 15 cm in slices of a usual thickness has 20."""


@dataclass(frozen=True, eq=False)
class Registration:
    """Where a head lies in the template's space, and how certain that is."""

    to_template: NDArray[np.float64]
    """(4, 4): native RAS mm to the template's RAS mm."""
    overlap: float
    """Dice of the template's brain and the subject's, where the scan reaches, in [0, 1]."""
    similarity: float
    """Correlation of the scan with the template inside both brains, in [-1, 1]."""
    warning: str | None
    """What makes the result doubtful or the image strange to the model; None: nothing found."""
    volume: Volume
    """As it was given."""
    brain: NDArray[np.bool_] | None = None
    """(I, J, K) of the volume: the subject's brain, one piece without holes or bays; None: not looked for."""
    bias: Volume | None = None
    """What the scan is to be divided by, on a coarse grid that reaches beyond the volume; None: it is even."""
    misfit: float = 0.0
    """How far, mm, the brain would move for its eighths, each by itself, to fit better; 0 where too few are there."""
    coverage: float = 1.0
    """Fraction of the template's brain that lies in the scan."""
    doubtful: bool = False
    """Whether it failed by its figures."""


def register(volume: Volume, *, skull: bool = True) -> Registration:
    """Register a head to the template, brain to brain: extraction, bias correction, starts, similarity, affine.

    Deterministic. A registration that fails is `doubtful`, not an error: look at `warning`, or at its picture.

    Args:
        volume: T1w, with or without the skull, in any orientation.
        skull: whether the model looks at heads with their skull; a stripped image is warned of then.

    Raises:
        ThoradError: SimpleITK or deepbet is not installed, or the volume holds nothing that could be registered.
    """
    template = _template()
    if not np.percentile(volume.voxels[::2, ::2, ::2], 99) > 0:
        raise ThoradError(f"{volume.source}: nearly no voxel is above 0. Expected a T1w head on a dark ground.")
    if min(volume.voxels.shape) < FEWEST_SLICES:
        raise ThoradError(
            f"{volume.source}: only {min(volume.voxels.shape)} slices or voxels along an axis. Expected a whole head, "
            f"{FEWEST_SLICES} or more along each."
        )
    try:
        with _one_thread():
            image = to_simple_itk(volume)
            grid = image.GetOrigin(), image.GetSpacing(), image.GetDirection()
            size, image = image.GetSize(), _shrink(image, HEAD_MM)  # a series of 384 files takes 400 MB each time
            found = _attempt(
                image, _rotation(np.reshape(sitk.DICOMOrient(image, "LPS").GetDirection(), (3, 3))), template
            )
            axes = _rotation(np.reshape(found.transform.GetMatrix(), (3, 3)))
            if _degrees(axes @ np.linalg.inv(found.axes)) > UPRIGHT_DEG:
                found = max(found, _attempt(image, axes, template), key=lambda attempt: attempt.quality.similarity)
            brain = sitk.Resample(found.brain, size, sitk.Transform(), sitk.sitkNearestNeighbor, *grid)
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[-1]
        raise ThoradError(f"{volume.source}: can't be registered ({reason}). Expected a T1w head.") from error
    to_native, quality = np.eye(4), found.quality
    to_native[:3, :3] = np.reshape(found.transform.GetMatrix(), (3, 3))
    to_native[:3, 3] = found.transform.TransformPoint((0.0, 0.0, 0.0))
    turn = _degrees(_rotation(to_native[:3, :3]))
    doubtful, warning = _judge(quality, turn, stripped=skull and not found.has_skull)
    return Registration(
        to_template=np.asarray(_RAS @ np.linalg.inv(to_native) @ _RAS, dtype=np.float64),
        overlap=quality.overlap,
        similarity=quality.similarity,
        warning=warning,
        volume=volume,
        brain=sitk.GetArrayViewFromImage(brain).T.astype(np.bool_),
        bias=_padded(found.bias, volume),
        misfit=quality.misfit,
        coverage=quality.coverage,
        doubtful=doubtful,
    )


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
    return sitk.DICOMOrient(to_simple_itk(Volume(*template_brain(), source="", name="")), "LPS")


def _shrink(image: Any, millimetres: float) -> Any:
    """Means over blocks of about so many mm; axes that are coarser already stay."""
    # Halves go down whatever the last digit of the spacing, or a turned header would change the factor.
    factors = [max(1, round(millimetres / spacing - 1e-3)) for spacing in image.GetSpacing()]
    return sitk.Cast(sitk.BinShrink(image, factors), sitk.sitkFloat32)


class _Attempt(NamedTuple):
    axes: NDArray[np.float64]
    """(3, 3): of the grid on which the brain was looked for, LPS."""
    brain: Any
    has_skull: bool
    bias: Any
    transform: Any
    """Template to native."""
    quality: "_Quality"


def _attempt(image: Any, axes: NDArray[np.float64], template: Any) -> _Attempt:
    head, scanned = _resampled(image, axes)
    brain, has_skull = _brain_of(head)
    bias = _bias_field(head, brain)
    stripped = _stripped(head, brain, bias)
    transform = _register_affine(_start(stripped, scanned, template), stripped, scanned, template)
    quality = _measure_quality(stripped, brain, scanned, transform, template)
    return _Attempt(axes, brain, has_skull, bias, transform, quality)


def _resampled(image: Any, axes: NDArray[np.float64]) -> tuple[Any, Any]:
    """The whole image on a grid of HEAD_MM along the axes, and where on that grid the scan reaches."""
    ends = [(0, extent - 1) for extent in image.GetSize()]
    corners = np.array([image.TransformIndexToPhysicalPoint(corner) for corner in itertools.product(*ends)]) @ axes
    first = corners.min(axis=0)
    extents = np.ceil((corners.max(axis=0) - first) / HEAD_MM - 1e-3).astype(int) + 1
    if extents.max() * HEAD_MM > MOST_MM:
        raise RuntimeError(f"it reaches over {extents.max() * HEAD_MM:.0f} mm: is its voxel size right?")
    identity = sitk.Transform(3, sitk.sitkIdentity)
    grid = ((axes @ first).tolist(), [HEAD_MM] * 3, axes.ravel().tolist())
    head = sitk.Resample(image, extents.tolist(), identity, sitk.sitkLinear, *grid)
    everywhere = sitk.Cast(image * 0 + 1, sitk.sitkUInt8)
    return head, sitk.Resample(everywhere, extents.tolist(), identity, sitk.sitkNearestNeighbor, *grid)


def _brain_of(head: Any) -> tuple[Any, bool]:
    """The brain, uint8, and whether there is a skull around it. Of a stripped image the brain is all that is there."""
    values = sitk.GetArrayViewFromImage(head)
    found = find_brain(np.ascontiguousarray(values.T[::-1, ::-1]))[::-1, ::-1].T  # LPS to RAS, and back
    has_skull = True
    if found.any():
        bright = values > SKULL_BRIGHT * np.median(values[found])
        grown = sitk.BinaryDilate(_like(found, head), [round(SKULL_MM / HEAD_MM)] * 3)
        outside = sitk.GetArrayFromImage(grown) == 0
        has_skull = bool((bright & outside).sum() > MIN_SKULL * found.sum())
        found = found if has_skull else found | bright
    else:
        found = values > values.mean()  # so that a pose and a picture come out; no figure passes
    return _without_bays(_like(found, head)), has_skull


def _without_bays(brain: Any) -> Any:
    """The largest piece, its holes and bays filled: a lesion at the surface may look like what lies outside."""
    brain = sitk.RelabelComponent(sitk.ConnectedComponent(brain)) == 1
    rim = [round(CLOSE_MM / 2)] * 3  # closing needs room at the borders
    coarse = sitk.ConstantPad(sitk.BinShrink(sitk.Cast(brain, sitk.sitkFloat32), [2] * 3) > 0.5, rim, rim)
    closed = sitk.BinaryMorphologicalClosing(coarse, rim, sitk.sitkBall)
    identity = sitk.Transform(3, sitk.sitkIdentity)
    closed = sitk.Resample(closed, brain, identity, sitk.sitkNearestNeighbor, 0)
    return sitk.BinaryFillhole(brain | closed)


def _like(array: NDArray[Any], image: Any) -> Any:
    """An array (z, y, x) of bools as an image, uint8, on the grid of another."""
    made = sitk.GetImageFromArray(np.ascontiguousarray(array, dtype=np.uint8))
    made.CopyInformation(image)
    return made


def _bias_field(head: Any, brain: Any) -> Any:
    """N4's field by what the brain shows, on a grid of BIAS_MM."""
    coarse = _shrink(head, BIAS_MM)
    inside = _shrink(sitk.Cast(brain, sitk.sitkFloat32), BIAS_MM) > 0.5
    bright = float(np.percentile(sitk.GetArrayViewFromImage(coarse), 99))
    coarse = sitk.Clamp(coarse, lowerBound=1e-3 * bright)  # N4 takes logarithms
    n4 = sitk.N4BiasFieldCorrectionImageFilter()
    n4.SetMaximumNumberOfIterations(BIAS_ITERATIONS)
    n4.Execute(coarse, inside)
    return sitk.Exp(sitk.Cast(n4.GetLogBiasFieldAsImage(coarse), sitk.sitkFloat32))


def _stripped(head: Any, brain: Any, bias: Any) -> Any:
    """The brain alone, without its bias and its brightest hundredth (vessels, contrast agent)."""
    field = sitk.Resample(bias, head, sitk.Transform(3, sitk.sitkIdentity), sitk.sitkLinear, 1.0)
    even = sitk.Mask(head / field, brain)
    values = sitk.GetArrayViewFromImage(even)[sitk.GetArrayViewFromImage(brain) > 0]
    return sitk.Clamp(even, sitk.sitkFloat32, 0.0, float(np.percentile(values, 99)))


def _padded(bias: Any, volume: Volume) -> Volume:
    """A field as a volume that goes on a little beyond its borders."""
    affine = np.eye(4)
    affine[:3, :3] = np.reshape(bias.GetDirection(), (3, 3)) * bias.GetSpacing()
    affine[:3, 3] = bias.GetOrigin() - PAD * affine[:3, :3].sum(axis=1)
    values = np.pad(sitk.GetArrayViewFromImage(bias).T, PAD, mode="edge")
    return Volume(voxels=values, affine=_RAS @ affine, source=volume.source, name=volume.name)


def _start(stripped: Any, scanned: Any, template: Any) -> Any:
    """The best similarity transform from several starts, all with brain upon brain."""
    fixed, moving = _shrink(template, SEARCH_MM), _shrink(stripped, SEARCH_MM)
    mask = _near_brain(fixed)
    centre, size = _centre_and_size(fixed)
    place, subject_size = _centre_and_size(moving)
    scale = float(np.clip(np.cbrt(subject_size / size), *SCALES))
    axes = Rotation.from_matrix(np.reshape(stripped.GetDirection(), (3, 3)))
    tilts = Rotation.from_euler("XYZ", list(itertools.product(*TILTS_DEG)), degrees=True)
    starts = []
    for rotation in axes * Rotation.concatenate([tilts, Rotation.create_group("O")]):
        transform = sitk.Similarity3DTransform()
        transform.SetCenter(centre.tolist())
        transform.SetMatrix((scale * rotation.as_matrix()).ravel().tolist())
        transform.SetTranslation((place - centre).tolist())
        starts.append((_value(transform, fixed, mask, moving, scanned), rotation, transform))
    fixed, moving = _shrink(template, FINE_MM[0][0]), _shrink(stripped, FINE_MM[0][0])
    tried: list[Rotation] = []
    best, lowest = None, np.inf
    for _, rotation, transform in sorted(starts, key=lambda start: start[0]):
        if len(tried) == STARTS:
            break
        if any(np.rad2deg((rotation.inv() * other).magnitude()) < APART_DEG for other in tried):
            continue
        tried.append(rotation)
        value = _optimise(transform, fixed, _near_brain(fixed), moving, scanned, (2.0, 1e-2), iterations=50)
        if value < lowest:
            best, lowest = transform, value
    return best


def _centre_and_size(brain: Any) -> tuple[NDArray[np.float64], float]:
    """Of what is above 0: the mean place, LPS mm, and the volume, mm³."""
    voxels = np.argwhere(sitk.GetArrayViewFromImage(brain) > 0)
    centre = brain.TransformContinuousIndexToPhysicalPoint(voxels.mean(axis=0)[::-1].tolist())
    return np.array(centre), len(voxels) * float(np.prod(brain.GetSpacing()))


def _register_affine(start: Any, stripped: Any, scanned: Any, template: Any) -> Any:
    transform = sitk.AffineTransform(3)
    transform.SetCenter(start.GetCenter())
    transform.SetMatrix(start.GetMatrix())
    transform.SetTranslation(start.GetTranslation())
    for millimetres, step in FINE_MM:
        fixed, moving = _shrink(template, millimetres), _shrink(stripped, millimetres)
        _optimise(transform, fixed, _near_brain(fixed), moving, scanned, (step, 1e-3), iterations=100)
    return transform


def _near_brain(template: Any) -> Any:
    return sitk.BinaryDilate(template > 0, [round(MARGIN_MM / spacing) for spacing in template.GetSpacing()])


def _method(transform: Any, mask: Any, scanned: Any) -> Any:
    """Correlation over all voxels of a mask that the scan reaches."""
    method = sitk.ImageRegistrationMethod()
    method.SetMetricAsCorrelation()
    method.SetMetricFixedMask(mask)
    method.SetMetricMovingMask(scanned)
    method.SetMetricSamplingStrategy(method.NONE)
    method.SetInterpolator(sitk.sitkLinear)
    method.SetInitialTransform(transform, inPlace=True)
    return method


def _value(transform: Any, fixed: Any, mask: Any, moving: Any, scanned: Any) -> float:
    return float(_method(transform, mask, scanned).MetricEvaluate(fixed, moving))


def _optimise(
    transform: Any, fixed: Any, mask: Any, moving: Any, scanned: Any, steps: tuple[float, float], iterations: int
) -> float:
    """Change the transform (template to native) in place to the best that the optimiser comes by, and return its value:
    the lower, the better.

    `steps` are the first in mm, at most, and the last as a share of it.
    """
    method = _method(transform, mask, scanned)
    method.SetOptimizerAsRegularStepGradientDescent(
        learningRate=1.0,
        minStep=steps[1],
        numberOfIterations=iterations,
        gradientMagnitudeTolerance=1e-8,
        estimateLearningRate=method.Once,
        maximumStepSizeInPhysicalUnits=steps[0],
    )
    method.SetOptimizerScalesFromPhysicalShift()
    seen: list[tuple[float, tuple[float, ...]]] = []
    method.AddCommand(
        sitk.sitkIterationEvent, lambda: seen.append((method.GetMetricValue(), method.GetOptimizerPosition()))
    )
    method.Execute(fixed, moving)
    value, position = min(seen)
    transform.SetParameters(position)
    return value


class _Quality(NamedTuple):
    """As `Registration` has them."""

    overlap: float
    similarity: float
    misfit: float
    coverage: float


def _measure_quality(stripped: Any, brain: Any, scanned: Any, transform: Any, template: Any) -> _Quality:
    def found(image: Any, grid: Any) -> NDArray[np.float32]:
        moved = sitk.Resample(sitk.Cast(image, sitk.sitkFloat32), grid, transform, sitk.sitkLinear, 0.0)
        return np.asarray(sitk.GetArrayFromImage(moved))

    expected: NDArray[np.float32] = sitk.GetArrayFromImage(template)
    everywhere = found(scanned, template) > 0.5
    subject, whole = found(brain, template) > 0.5, expected > 0
    reached = whole & everywhere
    both = reached & subject
    overlap = 2 * np.count_nonzero(both) / (np.count_nonzero(subject) + np.count_nonzero(reached) or 1)
    values = found(_shrink(stripped, template.GetSpacing()[0]), template)[both]
    similarity = np.corrcoef(values, expected[both])[0, 1] if both.any() and values.std() > 0 else 0.0
    coarse = _shrink(template, MISFIT_MM)
    misfit = _misfit(
        found(_shrink(stripped, MISFIT_MM), coarse), sitk.GetArrayFromImage(coarse), found(scanned, coarse) > 0.5
    )
    return _Quality(overlap, float(similarity), misfit, np.count_nonzero(reached) / np.count_nonzero(whole))


def _misfit(found: NDArray[np.float32], expected: NDArray[np.float32], scanned: NDArray[np.bool_]) -> float:
    """How far, mm, the brain's voxels would go (95th percentile) by the rigid move that fits the shifts by which the
    brain's eighths, each by itself, correlate best.

    No optimiser is asked, so it tells of one that went astray as of a transform that was moved.
    """
    reach, brain = MISFIT_REACH, expected > 0
    voxels = np.argwhere(brain)
    middle = np.rint(voxels.mean(axis=0)).astype(int)
    padded = np.pad(found, reach)
    centres, moved = [], []
    for halves in itertools.product((0, 1), repeat=3):
        corner = [slice(0, m) if half == 0 else slice(m, None) for m, half in zip(middle, halves, strict=True)]
        eighth = brain[*corner]
        if scanned[*corner][eighth].mean() < MIN_COVERAGE[1]:
            continue
        start = np.array([part.start or 0 for part in corner])
        around = padded[tuple(slice(i, i + n + 2 * reach) for i, n in zip(start, eighth.shape, strict=True))]
        windows = sliding_window_view(around, eighth.shape)[..., eighth]  # (shifts z, y, x, voxels)
        wanted = expected[*corner][eighth]
        windows = windows - windows.mean(axis=-1, keepdims=True)
        correlation = windows @ (wanted - wanted.mean()) / np.maximum(np.linalg.norm(windows, axis=-1), 1e-6)
        centres.append(start + np.argwhere(eighth).mean(axis=0))
        moved.append(centres[-1] + _peak(correlation) - reach)
    if len(centres) < FEWEST_EIGHTHS:
        return 0.0
    before, after = np.mean(centres, axis=0), np.mean(moved, axis=0)
    rotation, _ = Rotation.align_vectors(moved - after, centres - before)
    way = rotation.apply(voxels - before) + after - voxels
    return float(MISFIT_MM * np.percentile(np.linalg.norm(way, axis=1), 95))


def _peak(values: NDArray[np.float32]) -> NDArray[np.float64]:
    """Where the highest value lies, between voxels: the parabola's top along each axis, but at the borders."""
    index = np.unravel_index(values.argmax(), values.shape)
    place = np.array(index, dtype=np.float64)
    for axis, i in enumerate(index):
        if 0 < i < values.shape[axis] - 1:
            below, at, above = np.moveaxis(values, axis, 0)[(slice(i - 1, i + 2), *np.delete(index, axis))]
            place[axis] += 0.5 * (below - above) / min(below - 2 * at + above, -1e-6)
    return place


def _rotation(matrix: NDArray[np.float64]) -> NDArray[np.float64]:
    """The rotation next to a matrix of positive determinant."""
    u, _, v = np.linalg.svd(matrix)
    return np.asarray(u @ v)


def _degrees(rotation: NDArray[np.float64]) -> float:
    return float(np.rad2deg(Rotation.from_matrix(rotation).magnitude()))


def _judge(quality: _Quality, turn: float, *, stripped: bool) -> tuple[bool, str | None]:
    """Whether the registration failed, and what to tell about it."""
    figures = (
        (-quality.similarity, -np.array(MIN_SIMILARITY)),
        (-quality.overlap, -np.array(MIN_OVERLAP)),
        (quality.misfit, np.array(MAX_MISFIT)),
    )
    failed, doubtful = (any(figure > bounds[i] for figure, bounds in figures) for i in range(2))
    seen = (
        f"similarity {quality.similarity:.2f}, expected at least {MIN_SIMILARITY[1]:.2f}; overlap "
        f"{quality.overlap:.2f}, expected at least {MIN_OVERLAP[1]:.2f}; misfit {quality.misfit:.1f} mm, expected at "
        f"most {MAX_MISFIT[1]:.0f}"
    )
    failed = failed or quality.coverage < MIN_COVERAGE[0]
    warnings = []
    if quality.coverage < MIN_COVERAGE[1]:
        warnings.append(f"only {100 * quality.coverage:.0f} % of the brain lies in the scan")
    if failed:
        warnings.append(f"the registration failed, or this is no T1w head ({seen})")
    elif doubtful:
        warnings.append(f"the registration may be some millimetres off: look at its picture ({seen})")
    if turn > MAX_TURN_DEG:
        warnings.append(
            f"the head lies turned by {turn:.0f} degrees to what its header says: if that is wrong, left may be right"
        )
    if stripped:
        warnings.append("out of the model's domain: the image is skull stripped, the model knows heads with the skull")
    return bool(failed), "; ".join(warnings) or None
