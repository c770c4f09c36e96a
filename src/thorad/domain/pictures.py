"""Does a picture look like those that a model was trained on? Milliseconds a picture, in NumPy alone.

Brightness and contrast of another scanner must not matter, nor a lesion; orientation, size, view and the order of the
tissues' brightness must. So a picture is compared by its contrast with its own surroundings (`_features`), on a coarse
grid, in four ways (`Likeness`). Each has thresholds from healthy pictures that were held out, and from a floor below
which no picture is strange, whatever the healthy ones are.

Shapes: N pictures; S the model's grid; G = 64 the grid of local contrast; F = 32 the grid of features.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load, save

from thorad.check import NOTHING_FOUND, Check
from thorad.errors import ThoradError
from thorad.recipe import DomainSection

Array = NDArray[np.float64]

GRID, SIDE = 64, 32
COARSE, FINE = 6.0, 3.0
"""Widths (standard deviations), in px of the 64 px grid, of the surroundings that a pixel is compared with."""
LEAST_CONTRAST = 0.05
"""Of a pixel's surroundings, in shares of the picture's range: what is flatter counts as flat."""

FEWEST_IMAGES = 20
"""From fewer healthy pictures nobody can tell what is usual."""
MOST_PICTURES = 2000
"""Healthy pictures and varied copies of them that are used."""
COMPONENTS = 120
FOLDS = 5

LEVEL = 0.01
"""Share of healthy scans that may be beyond each threshold for warnings (conformal), where it is above the floor."""
FLOORS: Final = {
    "distance": (0.0, 0.0),
    "misfit": (0.7, 0.9),
    "pose": (1.05, 1.15),
    "contrast": (0.5, 0.6),
}
"""No picture is warned of, or refused, below these values, whatever the model."""
FAR: Final = {"distance": 1.1, "misfit": 1.0, "pose": 1.1, "contrast": 1.2}
"""Refused is what is so many times beyond the healthy scans' threshold for warnings, and beyond the floor."""

PLACED: Final = {"misfit"}
"""Tests whose thresholds come from the pictures as they are, not from copies that lie elsewhere in the frame."""

CONTRASTS: Final = {
    "FLAIR": (0.0, 0.05, 0.1, 0.9, 0.6, 0.8),
    "T2w": (0.0, 0.2, 1.0, 0.65, 0.4, 0.7),
    "CT": (0.0, 0.1, 0.35, 0.4, 0.37, 0.35),
}
"""What air, dark rim, fluid, grey matter, white matter and fat, at `T1W` in a T1w picture, are in others, roughly."""
T1W: Final = (0.0, 0.1, 0.3, 0.6, 0.85, 1.0)

ENLARGED: Final = (1.33, 1.67, 2.5)


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
    """Which one; empty where the model isn't for T1w."""


@cache
def _area_matrix(size: int, to: int) -> Array:
    """(to, size): averages a row of `size` px to `to` px, by the area that each shares."""
    edges = np.arange(to)[:, None] * (size / to)
    shared = np.minimum(edges + size / to, np.arange(size) + 1) - np.maximum(edges, np.arange(size))
    return np.asarray(np.clip(shared, 0, None) * (to / size))


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
    blur, reduce = _blur(width), _area_matrix(GRID, SIDE)
    difference = pictures - blur @ pictures @ blur.T
    spread = np.sqrt(np.clip(blur @ difference**2 @ blur.T, 0, None))
    return np.asarray(reduce @ (difference / (spread + LEAST_CONTRAST)) @ reduce.T)


def _on_grid(pictures: NDArray[Any]) -> Array:
    """(N, S, S) as (N, G, G)."""
    reduce = _area_matrix(pictures.shape[-1], GRID)
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
    region: NDArray[np.bool_]
    """(F, F): where the model looks for anomalies."""

    def strangeness(self, picture: NDArray[Any]) -> Strangeness:
        """Of a picture as the model sees it, (S, S) in [0, 1]."""
        on_grid = _on_grid(picture[None])
        fine = _features(on_grid, FINE)[0]
        distances = {pose: float(self._distances(turned).min()) for pose, turned in _poses(on_grid).items()}
        as_it_is = distances.pop("as it is")
        better = min(distances, key=lambda pose: distances[pose])
        around = 1 - _correlation(fine, self.fine_mean, np.ones_like(self.region))
        inside = 1 - _correlation(fine, self.fine_mean, self.region)
        shares = {kind: self._share_like(fine, mean) for kind, mean in self.contrasts.items()}
        like = max(shares, key=lambda kind: shares[kind], default="")
        return Strangeness(
            distance=float(self._distances(_features(on_grid, COARSE))[0]),
            misfit=min(around, inside),
            misfit_around=around,
            pose=as_it_is / distances[better],
            better=better,
            contrast=shares.get(like, 0.0),
            like=like,
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


def _cells(votes: Array) -> Array:
    return np.asarray(votes.reshape(SIDE // 2, 2, SIDE // 2, 2).sum((1, 3)))


def _reasons(found: Strangeness, usual_distance: float) -> dict[str, str]:
    """What each test finds, in words, the most telling first; how it lies only where turned it would be as usual."""
    reasons = {
        "distance": "its shapes are strange",
        "contrast": f"its contrasts are like those of {found.like}",
        "misfit": "it has little in common with the mean healthy picture",
    }
    pose = {"pose": f"it would fit better {found.better}"}
    return {**pose, **reasons} if found.distance / found.pose <= usual_distance else {**reasons, **pose}


@dataclass(frozen=True, eq=False)
class PictureDomain:
    """What a model's pictures look like, and how strange healthy ones are that it was not made from."""

    likeness: Likeness
    healthy: dict[str, NDArray[np.float32]]
    """{distance, misfit, pose, contrast: rising} of held-out healthy pictures."""

    def thresholds(self, test: str) -> tuple[float, float]:
        """Where warnings begin, and refusals."""
        usual = conformal_threshold(self.healthy[test], LEVEL)
        warn, refuse = FLOORS[test]
        return max(usual, warn), max(usual * FAR[test], refuse)

    def check(self, picture: NDArray[Any], section: DomainSection, model: str) -> Check:
        """What speaks against a picture as the model sees it, (S, S) in [0, 1].

        Args:
            picture: the model's input.
            section: what the model is for, in words.
            model: its name, for the reasons.
        """
        found = self.likeness.strangeness(picture)
        refused: list[str] = []
        warned: list[str] = []
        for test, reason in _reasons(found, self.thresholds("distance")[0]).items():
            value, (warn, refuse) = getattr(found, test), self.thresholds(test)
            if value > warn:
                detail = f"{reason} ({test} {value:.2f}, of healthy scans below {warn:.2f})"
                (refused if value > refuse else warned).append(detail)
        if not refused and not warned and found.misfit_around > self.thresholds("misfit")[0]:
            warned.append("what lies around the region that the model looks at is strange, as without the skull")
        if not refused and not warned:
            return NOTHING_FOUND
        expected = f"; expected {section.picture}" if section.picture else ""
        reason = f"this does not look like what model {model!r} was trained on: {(refused or warned)[0]}{expected}"
        return Check(refusals=(reason,)) if refused else Check(warnings=(reason,))

    def to_bytes(self) -> bytes:
        """As a safetensors file."""
        like = self.likeness
        tensors: dict[str, NDArray[Any]] = {
            "coarse.mean": like.mean.astype(np.float32),
            "coarse.components": like.components.astype(np.float16),
            "coarse.variances": like.variances.astype(np.float32),
            "fine.mean": like.fine_mean.astype(np.float32),
            "fine.deviation": like.fine_deviation.astype(np.float32),
            "region": like.region,
            **{f"contrast.{kind}": mean.astype(np.float32) for kind, mean in like.contrasts.items()},
            **{f"healthy.{test}": scores for test, scores in self.healthy.items()},
        }
        return save({name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()})

    @classmethod
    def from_bytes(cls, content: bytes, source: str) -> PictureDomain:
        """Read what `to_bytes` gave.

        Raises:
            ThoradError: damaged.
        """
        try:
            tensors = load(content)
            contrasts = {
                name.removeprefix("contrast."): mean.astype(np.float64)
                for name, mean in sorted(tensors.items())
                if name.startswith("contrast.")
            }
            likeness = Likeness(
                mean=tensors["coarse.mean"].astype(np.float64),
                components=tensors["coarse.components"].astype(np.float64),
                variances=tensors["coarse.variances"].astype(np.float64),
                fine_mean=tensors["fine.mean"].astype(np.float64),
                fine_deviation=tensors["fine.deviation"].astype(np.float64),
                contrasts=contrasts,
                region=tensors["region"].astype(np.bool_),
            )
            domain = cls(likeness, {test: tensors[f"healthy.{test}"] for test in FLOORS})
            if not math.isfinite(likeness.strangeness(np.eye(SIDE)).distance):  # shapes that don't fit raise here
                raise ValueError("values that are not finite")
        except (SafetensorError, KeyError, ValueError) as error:
            raise ThoradError(f"{source}: damaged ({error}). Take it from its source again.") from error
        return domain


def conformal_threshold(healthy: Sequence[float] | NDArray[Any], level: float) -> float:
    """The value that a healthy scan, exchangeable with the n given ones, exceeds with a probability of at most `level`.

    The ceil((1 - level) (n + 1))-th smallest score; infinite where there are too few for that level.
    Source: V. Vovk, A. Gammerman and G. Shafer, Algorithmic Learning in a Random World, 2005.
    """
    rank = math.ceil((1 - level) * (len(healthy) + 1) - 1e-9)
    return float(np.sort(healthy)[rank - 1]) if rank <= len(healthy) else math.inf


def fit_domain(
    pictures: NDArray[Any], varied: NDArray[Any], region: NDArray[np.bool_], *, t1w: bool
) -> PictureDomain | None:
    """Learn what healthy pictures look like; each is judged by what was learned from the other folds.

    Args:
        pictures: (N, S, S) in [0, 1], of one subject each.
        varied: (C, N, S, S), as other scanners and other placements might show them, in the same order.
        region: (S, S) of the model.
        t1w: whether they are T1w, so that it is known what other sequences look like.

    Returns:
        None where there are fewer than `FEWEST_IMAGES`.
    """
    if len(pictures) < FEWEST_IMAGES:
        return None
    grids = np.stack([_on_grid(each) for each in (pictures, *varied)])  # (1 + C, N, G, G)
    on_side = _area_matrix(region.shape[0], SIDE)
    inside = on_side @ region.astype(np.float64) @ on_side.T > 0.5
    fold = np.arange(len(pictures)) % FOLDS
    scores: dict[str, list[float]] = {test: [] for test in FLOORS}
    for held_out in range(FOLDS):
        likeness = _fit(grids[:, fold != held_out], inside, t1w)
        for copy, of_copy in enumerate(grids[:, fold == held_out]):
            for found in map(likeness.strangeness, of_copy):
                for test in scores if copy == 0 else scores.keys() - PLACED:
                    scores[test].append(getattr(found, test))
    healthy = {test: np.sort(values).astype(np.float32) for test, values in scores.items()}
    return PictureDomain(_fit(grids, inside, t1w), healthy)


def _fit(grids: Array, region: NDArray[np.bool_], t1w: bool) -> Likeness:
    """Of (1 + C, N, G, G): the pictures, then their varied copies."""
    from sklearn.decomposition import PCA

    everything = grids.reshape(-1, GRID, GRID)
    coarse = _features(everything, COARSE).reshape(len(everything), -1)
    count = min(COMPONENTS, len(everything) // 2)
    pca = PCA(count, svd_solver="covariance_eigh").fit(coarse)
    fine = _features(grids[0], FINE)
    contrasts = {
        kind: _features(np.interp(grids[0], T1W, tones), FINE).mean(0) for kind, tones in CONTRASTS.items() if t1w
    }
    return Likeness(
        mean=pca.mean_,
        components=pca.components_,
        variances=np.append(pca.explained_variance_, pca.noise_variance_),
        fine_mean=fine.mean(0),
        fine_deviation=_features(everything, FINE).std(0),
        contrasts=contrasts,
        region=region,
    )
