"""How near is a picture to a model's healthy ones? Milliseconds a picture, in NumPy and SciPy alone.

Brightness and contrast of another scanner must not matter, nor a lesion; orientation, size, view and the order of the
tissues' brightness must. So a picture is compared by its contrast with its own surroundings (`_features`), on a coarse
grid, in six ways (`Likeness`), and by how dark its rim is (`Strangeness`).

Shapes: N pictures; S the model's grid; G = 64 the grid of local contrast; F = 32 the grid of features.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import affine_transform

Array = NDArray[np.float64]

GRID, SIDE = 64, 32
COARSE, FINE = 6.0, 3.0
"""Widths (standard deviations), in px of the 64 px grid, of the surroundings that a pixel is compared with."""
LEAST_CONTRAST = 0.05
"""Of a pixel's surroundings, in shares of the picture's range: what is flatter counts as flat."""

COMPONENTS = 120

CONTRASTS: Final = {
    "FLAIR": (0.0, 0.05, 0.1, 0.9, 0.6, 0.8),
    "T2w": (0.0, 0.2, 1.0, 0.65, 0.4, 0.7),
    "CT": (0.0, 0.1, 0.35, 0.4, 0.37, 0.35),
}
"""What air, dark rim, fluid, grey matter, white matter and fat, at `T1W` in a T1w picture, are in others, roughly."""
T1W: Final = (0.0, 0.1, 0.3, 0.6, 0.85, 1.0)

LOWER: Final = range(10, 61, 5)
"""mm below a model's lowest slice that the template is cut at, to see which of these slices a picture resembles most.
The first says nothing: that is as far off as slices at the right height seem to be."""

CLOSE: Final = 0.1
"""Sequences whose shares of the picture differ by less can't be told apart."""

ENLARGED: Final = (1.33, 1.67, 2.5)

TURNS: Final = range(-45, 46, 3)
"""Degrees, clockwise, that a picture is looked for at; beside them, `SIZES` and any shift up to `FARTHEST` px of F."""
SIZES: Final = (0.6, 0.7, 0.8, 0.9, 1, 1.12, 1.25, 1.4, 1.6)
FARTHEST = 8
RECOGNISED = 0.45
"""Correlation with the mean healthy picture, as it would have to lie, from which a picture is known to lie so. Chosen
on pictures at hand: turned heads, sick ones too, have 0.48 or more; 10 mm too high 0.44; wrists and noise 0.31."""
CERTAIN = 0.7
"""From which nothing else is why: of most heads turned, moved or enlarged it is higher; of slices 20 mm too high and of
heads without their skull lower."""
BETTER, TURNED_BETTER = 0.15, 0.08
"""By so much it must rise with turn, size and place for these to be why; with the turn alone for that to be known."""


@dataclass(frozen=True)
class Lying:
    """How a picture lies beside the mean healthy one, found by the correlation of their fine features."""

    turn: float
    """Degrees, clockwise."""
    size: float
    """Times as large."""
    down: float
    """Shares of the frame's side that it is moved by."""
    right: float
    correlation: float
    """With the mean as it would have to lie."""
    unturned: float
    """With the mean as it would have to lie, but for its turn."""
    as_it_is: float
    """With the mean itself."""

    @property
    def turned(self) -> str:
        """In words."""
        return f"turned by {abs(self.turn):.0f} degrees {'clockwise' if self.turn > 0 else 'anticlockwise'}"

    @property
    def known_turn(self) -> float:
        """Degrees either way; 0 where it fits unturned nearly as well, or where it fits nowhere."""
        known = self.correlation >= max(RECOGNISED, self.unturned + TURNED_BETTER)
        return abs(self.turn) if known else 0.0

    def __str__(self) -> str:
        """What is to be seen of it."""
        found = [self.turned] if self.known_turn >= 5 else []
        if self.size != 1:
            end = {SIZES[0]: " or less", SIZES[-1]: " or more"}.get(self.size, "")
            margin = " (as when its margin is cut off)" if self.size > 1 else ""
            found.append(f"{self.size:.1f} times{end} as large in its frame{margin}")
        for moved, words in ((self.down, ("up", "down")), (self.right, ("to the left", "to the right"))):
            if abs(moved) >= 0.03:
                found.append(f"moved {words[moved > 0]} by {100 * abs(moved):.0f} % of the frame")
        return " and ".join(found)


@dataclass(frozen=True)
class Strangeness:
    """How far a picture is from a model's healthy ones; the higher, the stranger."""

    distance: float
    """Mahalanobis distance of its coarse features, under probabilistic PCA, over the square root of their number."""
    misfit: float
    """1 - correlation of its fine features with the mean healthy picture's: in the whole picture or in the model's
    region, whichever fits better."""
    misfit_around: float
    """The same of the whole picture."""
    pose: float
    """Distance as it lies, over that as it would lie turned, flipped or enlarged: above 1, it would fit better so."""
    better: str
    """How it would fit best."""
    contrast: float
    """Share of the picture whose contrasts are nearer to another sequence's than to the healthy pictures'."""
    like: str
    """Which one, or which ones; empty where the model isn't for T1w."""
    moved_back: bool
    """Whether it was clear that it lies elsewhere, so that the contrasts were compared as if it lay well."""
    lower: float
    """Share of the picture that is nearer to a slice farther down in the head."""
    lower_mm: int
    """How far down; 0 where there is no such slice."""
    lower_by: float
    """How much larger that share is than of the slice that says nothing."""
    lying: Lying
    other_slice: str
    """Which one it may be; of heads that are small in their frame a higher one, where the model is for heads."""
    turn: float
    """Degrees that it is turned by either way; 0 where it isn't known how it lies."""
    background: float
    """Median of the frame's second lightest side: of two, because a head may touch one, and pictures are padded."""

    @property
    def displaced(self) -> str:
        """How it lies, in words, where that is why it is strange; empty where it isn't, or isn't known.

        Where the model's region fits better as it is, it lies well, and what is around is missing.
        """
        best = self.lying.correlation
        known = best >= RECOGNISED and best > self.lying.as_it_is + BETTER and best > 1 - self.misfit
        found = str(self.lying) if known else ""
        return found and f"compared with healthy scans it is {found}{self.or_else}"

    @property
    def or_else(self) -> str:
        """What else may be why it lies so."""
        missing = f", or it is {self.other_slice}, or its outer part is missing, as the skull"
        return ": correct that first" if self.lying.correlation >= CERTAIN else missing


@cache
def area_matrix(size: int, to: int) -> Array:
    """(to, size): averages a row of `size` px to `to` px, by the area that each shares."""
    edges = np.arange(to)[:, None] * (size / to)
    shared = np.minimum(edges + size / to, np.arange(size) + 1) - np.maximum(edges, np.arange(size))
    return np.asarray(np.clip(shared, 0, None) * (to / size))


def _background(picture: NDArray[Any]) -> float:
    sides = picture[0], picture[-1], picture[:, 0], picture[:, -1]
    return float(sorted(np.median(side) for side in sides)[-2])


@cache
def _blur(width: float) -> Array:
    """(G, G): Gaussian blur along one axis; at the border the weights inside count."""
    place = np.arange(GRID)
    weights = np.exp(-((place[:, None] - place) ** 2) / (2 * width**2))
    return np.asarray(weights / weights.sum(1, keepdims=True))


@cache
def _enlargement(factor: float) -> Array:
    """(G, G): enlarges along one axis around the middle, linear between px."""
    middle = (GRID - 1) / 2
    position = (np.arange(GRID) - middle) / factor + middle
    return np.asarray(np.clip(1 - np.abs(position[:, None] - np.arange(GRID)), 0, None))


def _features(pictures: Array, width: float) -> Array:
    """(N, F, F): how pixels of (N, G, G) differ from their surroundings, in standard deviations of these."""
    blur, reduce = _blur(width), area_matrix(GRID, SIDE)
    difference = pictures - blur @ pictures @ blur.T
    spread = np.sqrt(np.clip(blur @ difference**2 @ blur.T, 0, None))
    return np.asarray(reduce @ (difference / (spread + LEAST_CONTRAST)) @ reduce.T)


def on_grid(pictures: NDArray[Any]) -> Array:
    """(N, S, S) as (N, G, G)."""
    reduce = area_matrix(pictures.shape[-1], GRID)
    return np.asarray(reduce @ pictures.astype(np.float64) @ reduce.T)


def _poses(picture: Array) -> dict[str, Array]:
    """How a picture, (1, G, G), might have to lie to fit; mirrored is no pose: healthy anatomy is too symmetric."""
    coarse = _features(picture, COARSE)[0]
    on_its_side = [np.rot90(coarse), np.rot90(coarse, 3), coarse.T, np.rot90(coarse, 2).T]
    poses = {
        "as it is": np.stack([coarse, coarse[:, ::-1]]),
        "turned by 180 degrees or flipped top to bottom": np.stack([coarse[::-1], coarse[::-1, ::-1]]),
        "turned by 90 degrees": np.stack(on_its_side),
    }
    for factor in ENLARGED:
        enlarge = _enlargement(factor)
        poses[f"{factor:g} times as large"] = _features(enlarge @ picture @ enlarge.T, COARSE)
    return poses


def _top(values: Array) -> float:
    """Index of the highest value, between the px: of the parabola through it and its neighbours."""
    at = int(values.argmax())
    if at in (0, len(values) - 1):
        return at
    before, peak, after = values[at - 1 : at + 2]
    return at + float((after - before) / (2 * (2 * peak - before - after) + 1e-12))


def _correlation(one: Array, other: Array, inside: NDArray[np.bool_]) -> float:
    a, b = one[inside] - one[inside].mean(), other[inside] - other[inside].mean()
    return float(a @ b / math.sqrt((a @ a) * (b @ b) + 1e-12))


@dataclass(frozen=True, eq=False)
class Likeness:
    """What a model's healthy pictures look like."""

    mean: Array
    """(F * F) of the coarse features."""
    components: Array
    """(K, F * F): their principal components."""
    variances: Array
    """(K + 1): along the components, and along every other direction."""
    fine_mean: Array
    """(F, F)."""
    fine_deviation: Array
    """(F, F)."""
    contrasts: dict[str, Array]
    """(F, F) each: mean fine features of the healthy pictures as another sequence would show them."""
    lower: dict[int, Array]
    """{mm: (F, F)}: mean fine features of slices so much farther down in the head; empty where that isn't known."""
    region: NDArray[np.bool_]
    """(F, F): where the model looks for anomalies."""

    def strangeness(self, picture: NDArray[Any]) -> Strangeness:
        """Of a picture as the model sees it, (S, S) in [0, 1]."""
        gridded = on_grid(picture[None])
        fine = _features(gridded, FINE)[0]
        distances = {pose: float(self._distances(turned).min()) for pose, turned in _poses(gridded).items()}
        as_it_is = distances.pop("as it is")
        lying = self._lying(fine)
        better = min(distances, key=lambda pose: distances[pose])
        around = 1 - _correlation(fine, self.fine_mean, np.ones_like(self.region))
        inside = 1 - _correlation(fine, self.fine_mean, self.region)
        placed = self._moved_back(fine)
        shares = {kind: self._share_like(placed, mean) for kind, mean in self.contrasts.items()}
        contrast = max(shares.values(), default=0.0)
        lower = {mm: self._share_like(fine, mean) for mm, mean in self.lower.items()}
        lower_mm = max(lower, key=lambda mm: lower[mm], default=0)
        far = lower_mm > LOWER[0]
        return Strangeness(
            distance=float(self._distances(_features(gridded, COARSE))[0]),
            misfit=min(around, inside),
            misfit_around=around,
            pose=as_it_is / distances[better],
            better=better,
            contrast=contrast,
            like=" or ".join(kind for kind, share in shares.items() if share > contrast - CLOSE),
            moved_back=placed is not fine,
            lower=lower[lower_mm] if far else 0.0,
            lower_mm=lower_mm if far else 0,
            lower_by=lower[lower_mm] - lower[LOWER[0]] if far else 0.0,
            lying=lying,
            other_slice="a slice higher in the head" if self.lower and lying.size < 1 else "another slice",
            turn=lying.known_turn,
            background=_background(gridded[0]),
        )

    @cached_property
    def _displaced_means(self) -> NDArray[np.complex128]:
        """As `_displaced` gives them, of the mean healthy picture, turned and enlarged."""
        return _displaced([self.fine_mean], TURNS)

    @cached_property
    def _displaced_contrasts(self) -> NDArray[np.complex128]:
        """As `_displaced` gives them, of the mean healthy picture and the other sequences', enlarged."""
        return _displaced([self.fine_mean, *self.contrasts.values()], [0])

    def _moved_back(self, fine: Array) -> Array:
        """Fine features, (F, F), as they would lie on the mean's, where it is clear that they lie elsewhere.

        Of which sequence the picture is isn't known, so all are asked.
        """
        if not self.contrasts:
            return fine
        found = _correlations(fine, self._displaced_contrasts).reshape(-1, len(SIZES), *(2 * FARTHEST + 1,) * 2)
        _, size, down, right = (int(i) for i in np.unravel_index(found.argmax(), found.shape))
        if found.max() < max(RECOGNISED, found[:, SIZES.index(1), FARTHEST, FARTHEST].max() + BETTER):
            return fine
        shift = (1 - SIZES[size]) * (SIDE - 1) / 2 + np.array([down, right]) - FARTHEST
        return np.asarray(affine_transform(fine, np.eye(2) * SIZES[size], shift, order=1))

    def _lying(self, fine: Array) -> Lying:
        """Of fine features, (F, F): where their correlation with the mean's is highest."""
        found = _correlations(fine, self._displaced_means).reshape(len(TURNS), len(SIZES), *(2 * FARTHEST + 1,) * 2)
        turn, size, down, right = (int(i) for i in np.unravel_index(found.argmax(), found.shape))
        return Lying(
            turn=TURNS[0] + TURNS.step * _top(found[:, size, down, right]),
            size=SIZES[size],
            down=(_top(found[turn, size, :, right]) - FARTHEST) / SIDE,
            right=(_top(found[turn, size, down]) - FARTHEST) / SIDE,
            correlation=float(found[turn, size, down, right]),
            unturned=float(found[TURNS.index(0)].max()),
            as_it_is=float(found[TURNS.index(0), SIZES.index(1), FARTHEST, FARTHEST]),
        )

    def _distances(self, coarse: Array) -> Array:
        centred = coarse.reshape(len(coarse), -1) - self.mean
        along = centred @ self.components.T  # (N, K)
        rest = np.clip((centred**2).sum(1) - (along**2).sum(1), 0, None)
        squared = (along**2 / self.variances[:-1]).sum(1) + rest / self.variances[-1]
        return np.asarray(np.sqrt(squared / self.mean.size))

    def _share_like(self, fine: Array, other: Array) -> float:
        """Mean vote of cells of 2 x 2 px: -1 as healthy pictures, 1 as the other kind, by how much they tell."""
        weight = (other - self.fine_mean) / (self.fine_deviation**2 + 0.02)
        expected = _cells((other - self.fine_mean) * weight)
        found = _cells((fine - self.fine_mean) * weight)
        return float(np.clip(found, -expected, expected).sum() / max(expected.sum(), 1e-12))


def _displaced(means: Sequence[Array], turns: Sequence[int]) -> NDArray[np.complex128]:
    """(means * turns * sizes, F, F // 2 + 1): spectra of fine features, turned and enlarged, of norm 1."""
    middle, made = np.full(2, (SIDE - 1) / 2), []
    for mean in means:
        for turn in np.deg2rad(turns):
            for size in SIZES:
                matrix = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]]) / size
                made.append(affine_transform(mean, matrix, middle - matrix @ middle, order=1))
    centred = np.stack(made) - np.mean(made, axis=(1, 2), keepdims=True)
    norms = np.sqrt((centred**2).sum((1, 2), keepdims=True))
    return np.asarray(np.fft.rfft2(centred / (norms + 1e-12)).conj())


def _correlations(fine: Array, displaced: NDArray[np.complex128]) -> Array:
    """Of fine features, (F, F), with N `displaced` ones, moved down and to the right: (N, shifts, shifts)."""
    centred = fine - fine.mean()
    spectrum = np.fft.rfft2(centred / (np.sqrt((centred**2).sum()) + 1e-12))
    shifts = np.arange(-FARTHEST, FARTHEST + 1)
    return np.asarray(np.fft.irfft2(spectrum * displaced, s=(SIDE, SIDE))[:, shifts[:, None], shifts])


def _cells(votes: Array) -> Array:
    return np.asarray(votes.reshape(SIDE // 2, 2, SIDE // 2, 2).sum((1, 3)))


def fit_likeness(grids: Array, region: NDArray[np.bool_], t1w: bool, brains: Mapping[int, Array]) -> Likeness:
    """Learn it from (1 + C, N, G, G): the pictures, then their varied copies.

    Of `brains`, slices so many mm farther down, the brain alone is known: (G, G), 0 around it.
    """
    from sklearn.decomposition import PCA

    everything = grids.reshape(-1, GRID, GRID)
    coarse = _features(everything, COARSE).reshape(len(everything), -1)
    count = min(COMPONENTS, len(everything) // 2)
    pca = PCA(count, svd_solver="covariance_eigh").fit(coarse)
    fine = _features(grids[0], FINE)
    contrasts = {
        kind: _features(np.interp(grids[0], T1W, tones), FINE).mean(0) for kind, tones in CONTRASTS.items() if t1w
    }
    usual, half = fine.mean(0), area_matrix(GRID, SIDE)
    lower = {
        mm: np.where(half @ (brain > 0) @ half.T > 0.5, _features(brain, FINE), usual) for mm, brain in brains.items()
    }
    return Likeness(
        mean=pca.mean_,
        components=pca.components_,
        variances=np.append(pca.explained_variance_, pca.noise_variance_),
        fine_mean=usual,
        fine_deviation=_features(everything, FINE).std(0),
        contrasts=contrasts,
        lower=lower,
        region=region,
    )
