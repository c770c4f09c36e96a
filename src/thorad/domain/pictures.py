"""Does a picture look like those that a model was trained on?

What is strange about it (`thorad.domain.likeness`) is judged by one table, `TESTS`. Each test has thresholds from
healthy pictures that were held out, and from a floor below which no picture is strange, whatever the healthy ones are.

Shapes: N pictures; S the model's grid; G = 64 the grid of local contrast.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load, save

from thorad.check import NOTHING_FOUND, Check
from thorad.domain.likeness import SIDE, Likeness, Strangeness, area_matrix, fit_likeness, on_grid
from thorad.errors import ThoradError
from thorad.recipe import DomainSection

FEWEST_IMAGES = 20
"""From fewer healthy pictures nobody can tell what is usual."""
MOST_PICTURES = 2000
"""Healthy pictures and varied copies of them that are used."""
SMALLEST = 0.375
"""Share of the model's side that the longer side of a picture must have."""
FOLDS = 5

LEVEL = 0.01
"""Share of healthy scans that may be beyond each threshold for warnings (conformal), where it is above the floor."""

CLEARLY_LOWER = 0.015
"""By so much it must resemble another one more than the first to be refused: of slices 15 mm too low one in eight does
not, of those 20 mm too low all do. A sick brain 12 mm too low is on the edge, and any change would tip it over."""


@dataclass(frozen=True)
class Test:
    """One way in which a picture may be strange: what is done with a field of `Strangeness`."""

    warn: float
    refuse: float
    """No picture is warned of, or refused, below these values, whatever the model."""
    far: float
    """Refused is what is so many times beyond the healthy scans' threshold for warnings."""
    reason: str
    """What is strange, in words; {0} is the `Strangeness`."""
    by_place: bool = True
    """Whether how the picture lies is the reason instead, where that is known."""
    first: Callable[[Strangeness, float], bool] = lambda _found, _usual: False
    """Whether it tells more than those before it in the table, by the distance that warnings begin at."""
    certain: Callable[[Strangeness], bool] = lambda _found: True
    """Whether it may refuse by itself."""
    refuses_with: str = ""
    """The test with which it refuses where each by itself warns of the picture."""
    varied: bool = True
    """Whether its thresholds also come from copies of the healthy pictures that lie elsewhere in the frame."""
    scores: str = ""
    """The test whose healthy scores it is judged by; empty: its own."""


OTHER_SHAPES: Final = (
    "its shapes are others, as of another view, slice or body part, cropped, enlarged, without the skull, or with "
    "large changes"
)
TESTS: Final = {
    "background": Test(0.15, 0.25, 1.5, "it has no dark background: it is grey, a negative, or shows a part only"),
    "turn": Test(12, 15, 1.2, "compared with healthy scans it is {0.lying.turned}{0.or_else}"),
    "lower": Test(
        *(0.33, 0.42, 1.2),
        "it looks like a slice at another height, most like one about {0.lower_mm} mm lower in the head: take the "
        "right one, or give the whole volume, which is registered",
        by_place=False,
        certain=lambda found: found.lower_by >= CLEARLY_LOWER,
        varied=False,
    ),
    "distance": Test(0, 0, 1.1, OTHER_SHAPES),
    "contrast": Test(
        *(0.59, 0.65, 1.2),
        "its contrasts are nearer to {0.like}: another sequence or modality, {0.other_slice}, or changed grey",
        by_place=False,
        first=lambda found, _usual: found.moved_back,
        refuses_with="misfit",
    ),
    "misfit": Test(0.7, 0.9, 1, OTHER_SHAPES, varied=False),
    "pose": Test(
        *(1.05, 1.15, 1.1),
        "it would fit better {0.better}, unless it is {0.other_slice} or another view",
        first=lambda found, usual: found.distance / found.pose <= usual,  # as it would lie
    ),
    "misfit_around": Test(
        *(0.7, math.inf, 1),
        "what is around the region that the model looks at is strange: the skull missing or cut off, or the picture "
        "larger or smaller in its frame",
        scores="misfit",
    ),
}
"""What a picture is judged by, the most telling first. Turned by more than 15 degrees, or on a background above 0.25,
three in four healthy heads have findings; of those upright and on black, one in five."""


@dataclass(frozen=True, eq=False)
class PictureDomain:
    """What a model's pictures look like, and how strange healthy ones are that it was not made from."""

    likeness: Likeness
    healthy: dict[str, NDArray[np.float32]]
    """{test: rising} of held-out healthy pictures; models of earlier versions lack some tests, and go without."""

    def thresholds(self, test: str) -> tuple[float, float]:
        """Where warnings begin, and refusals."""
        how = TESTS[test]
        usual = conformal_threshold(self.healthy[how.scores or test], LEVEL)
        return max(usual, how.warn), max(usual * how.far, how.refuse)

    def check(self, picture: NDArray[Any], section: DomainSection, model: str) -> Check:
        """What speaks against a picture as the model sees it, (S, S) in [0, 1].

        Args:
            picture: the model's input.
            section: what the model is for, in words.
            model: its name, for the reasons.
        """
        found = self.likeness.strangeness(picture)
        bounds = {test: self.thresholds(test) for test, how in TESTS.items() if (how.scores or test) in self.healthy}
        values = {test: getattr(found, test) for test in bounds}
        warned = [test for test, (warn, _) in bounds.items() if values[test] > warn]
        beyond = [test for test in warned if values[test] > bounds[test][1]]
        together = [test for test in warned if TESTS[test].refuses_with in warned]
        refused = together or [test for test in beyond if TESTS[test].certain(found)]
        if not warned:
            return NOTHING_FOUND
        test = min(beyond or together or warned, key=lambda test: not TESTS[test].first(found, bounds["distance"][0]))
        told = (TESTS[test].by_place and found.displaced) or TESTS[test].reason.format(found)
        value = f"{test} {values[test]:.2f}, of healthy scans below {bounds[test][0]:.2f}"
        expected = f"; expected {section.picture}" if section.picture else ""
        reason = f"this does not look like what model {model!r} was trained on: {told} ({value}){expected}"
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
            **{f"lower.{mm}": mean.astype(np.float16) for mm, mean in like.lower.items()},
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
            contrasts, lower, healthy = (
                {
                    name.removeprefix(kind): mean.astype(np.float64)
                    for name, mean in sorted(tensors.items())
                    if name.startswith(kind)
                }
                for kind in ("contrast.", "lower.", "healthy.")
            )
            likeness = Likeness(
                mean=tensors["coarse.mean"].astype(np.float64),
                components=tensors["coarse.components"].astype(np.float64),
                variances=tensors["coarse.variances"].astype(np.float64),
                fine_mean=tensors["fine.mean"].astype(np.float64),
                fine_deviation=tensors["fine.deviation"].astype(np.float64),
                contrasts=contrasts,
                lower={int(mm): mean for mm, mean in lower.items()},
                region=tensors["region"].astype(np.bool_),
            )
            domain = cls(likeness, {test: tensors[f"healthy.{test}"] for test in ("distance", *healthy)})
            if not math.isfinite(likeness.strangeness(np.eye(SIDE)).distance):  # shapes that don't fit raise here
                raise ValueError("values that are not finite")
        except (SafetensorError, KeyError, ValueError) as error:
            raise ThoradError(f"{source}: damaged ({error}). Take it from its source again.") from error
        return domain


def check_size(shape: tuple[int, ...], size: int, model: str) -> Check:
    """Refuse a picture of (height, width) px that is far smaller than the grid of `size` px that a model sees it on.

    Below `SMALLEST` of its side, healthy heads have findings that they don't have in full size.
    """
    smallest = math.ceil(SMALLEST * size)
    height, width = shape
    if max(shape) >= smallest:
        return NOTHING_FOUND
    reason = (
        f"it is too small, {width} x {height} px, for model {model!r}, which sees {size} x {size} px; expected "
        f"{smallest} px or more along the longer side, and not enlarged from less"
    )
    return Check(refusals=(reason,))


def conformal_threshold(healthy: Sequence[float] | NDArray[Any], level: float) -> float:
    """The value that a healthy scan, exchangeable with the n given ones, exceeds with a probability of at most `level`.

    The ceil((1 - level) (n + 1))-th smallest score; infinite where there are too few for that level.
    Source: V. Vovk, A. Gammerman and G. Shafer, Algorithmic Learning in a Random World, 2005.
    """
    rank = math.ceil((1 - level) * (len(healthy) + 1) - 1e-9)
    return float(np.sort(healthy)[rank - 1]) if rank <= len(healthy) else math.inf


def fit_domain(
    pictures: NDArray[Any],
    varied: NDArray[Any],
    region: NDArray[np.bool_],
    *,
    t1w: bool,
    lower: Mapping[int, NDArray[Any]] = MappingProxyType({}),
) -> PictureDomain | None:
    """Learn what healthy pictures look like; each is judged by what was learned from the other folds.

    Args:
        pictures: (N, S, S) in [0, 1], of one subject each.
        varied: (C, N, S, S), as other scanners and other placements might show them, in the same order.
        region: (S, S) of the model.
        t1w: whether they are T1w, so that it is known what other sequences look like.
        lower: {mm: (S, S) in [0, 1]}: slices of a brain alone, so much farther down in the head.

    Returns:
        None where there are fewer than `FEWEST_IMAGES`.
    """
    if len(pictures) < FEWEST_IMAGES:
        return None
    grids = np.stack([on_grid(each) for each in (pictures, *varied)])  # (1 + C, N, G, G)
    on_side = area_matrix(region.shape[0], SIDE)
    inside = on_side @ region.astype(np.float64) @ on_side.T > 0.5
    fold = np.arange(len(pictures)) % FOLDS
    brains = {mm: on_grid(brain[None])[0] for mm, brain in lower.items()}
    scores: dict[str, list[float]] = {
        test: [] for test, how in TESTS.items() if not how.scores and (test != "lower" or lower)
    }
    for held_out in range(FOLDS):
        likeness = fit_likeness(grids[:, fold != held_out], inside, t1w, brains)
        for copy, of_copy in enumerate(grids[:, fold == held_out]):
            for found in map(likeness.strangeness, of_copy):
                for test in scores:
                    if copy == 0 or TESTS[test].varied:
                        scores[test].append(getattr(found, test))
    healthy = {test: np.sort(values).astype(np.float32) for test, values in scores.items()}
    return PictureDomain(fit_likeness(grids, inside, t1w, brains), healthy)
