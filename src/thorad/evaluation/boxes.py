"""The protocol `boxes`: findings marked by boxes in X-rays, by the rules of THOR's wrist experiment, and FROC beside.

Bercea et al. (THOR, MICCAI 2024), on wrist X-rays: the threshold is the smallest that a mean of at most 5 % of a
healthy image's pixels exceed. A box is found if more than 10 % of its pixels exceed it. Its false positives are how
often the map outside fits into the map inside:

    FP = min(10, int(sum of the map elsewhere / max(sum of the map in the box, 1)))

precision = TP / max(TP + FP, 1) and recall = TP are of one annotation; F1 and recall are then averaged over them. The
sums are over what exceeds the threshold, and in multiples of it, so that the 1 is one pixel at the threshold whatever
the map's units: the quotient is the paper's wherever the box's sum is above 1.

That F1 has no counterpart elsewhere, so the usual free-response ROC stands beside it. Candidates are the connected
components above the same threshold, each with the place and value of its peak. A candidate hits a box if its peak lies
in it (or, as a second rule, if the candidate's own box and that one have an IoU of 0.1 or more); one that hits none is
a false positive. Sensitivity is read at 1/8, 1/4, ... 8 false positives an image, healthy images among them, and
averaged over these seven, as in the LUNA16 challenge (Setio et al., Medical Image Analysis 2017). A candidate tells no
kind, so a kind's sensitivity is over its own boxes at the false positives of all.

Shapes: N images, S the grid's side, A annotated boxes, C candidates, R rows of weights.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike
from scipy import ndimage

from thorad.datasets.boxes import Box, boxes_to_model_grid, read_boxes
from thorad.datasets.cases import Case
from thorad.errors import ThoradError
from thorad.evaluation import metrics, statistics
from thorad.evaluation.metrics import Bools, Floats
from thorad.evaluation.runs import DetectorRun, Measured, Protocol, Resampling, Rows, percent
from thorad.evaluation.statistics import Sample, interval
from thorad.findings import components, peak_pixels
from thorad.io.images import read_mask
from thorad.io.preprocess import mask_to_model_grid, to_model_input
from thorad.io.scans import read_picture

HEALTHY_SHARE: Final = 0.05  # mean share of a healthy image's pixels that may exceed the threshold
FOUND_SHARE: Final = 0.1  # a box is found if more than this share of its pixels exceeds the threshold
MOST_FALSE_POSITIVES: Final = 10  # of one annotation
FALSE_POSITIVES_AN_IMAGE: Final = (0.125, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0)  # where FROC reads the sensitivity
SMALLEST_IOU: Final = 0.1  # of the second hit rule
ALL_KINDS: Final = "all"
COMPARED: Final = ("recall", "f1")  # the figures, over all kinds, in which methods are compared


@dataclass(frozen=True)
class BoxTruth:
    """What is known of one image, on the model's grid."""

    boxes: list[Box]  # none for a healthy image
    elsewhere: Bools | None  # (S, S) where what is found outside the boxes counts as false; None: everywhere


class Candidate(NamedTuple):
    """A connected component above the threshold; px of the model's grid."""

    box: Box  # around the component
    row: float  # of the centre of the pixel with the largest value
    column: float
    peak: float  # the largest value: how sure the method is


HitRule = Callable[[Candidate, Box], bool]


class BoxFigures(NamedTuple):
    """The paper's figures of A annotated boxes, (A,) each."""

    recall: Floats
    precision: Floats
    f1: Floats
    false_positives: Floats


def read_box_case(case: Case, size: int) -> tuple[torch.Tensor, BoxTruth]:
    """Read one image (1, S, S) and what is known of it on the model's grid.

    Raises:
        ThoradError: as `read_picture`, `read_boxes` and `read_mask`.
    """
    pixels = read_picture(case.image).pixels
    image, placement = to_model_input(pixels, size)
    elsewhere = None if case.elsewhere is None else mask_to_model_grid(read_mask(case.elsewhere, pixels.shape), size)
    boxes = [] if case.boxes is None else boxes_to_model_grid(read_boxes(case.boxes, *pixels.shape), placement)
    return image, BoxTruth(boxes, elsewhere)


def pixels_inside(box: Box, size: int) -> Bools:
    """The pixels of an S x S grid whose centre lies in a box; the nearest one for a box that holds none: (S, S)."""
    inside = np.outer(_inside(box.top, box.bottom, size), _inside(box.left, box.right, size))
    return np.asarray(inside, dtype=np.bool_)


def _inside(start: float, stop: float, size: int) -> Bools:
    centres = np.arange(size) + 0.5
    inside = (start <= centres) & (centres < stop)
    if not inside.any():
        inside[min(max(int((start + stop) / 2), 0), size - 1)] = True
    return np.asarray(inside, dtype=np.bool_)


def box_figures(map: ArrayLike, truth: BoxTruth, region: Bools, threshold: float) -> BoxFigures:
    """Figures of each box of one image by the paper's rule.

    Args:
        map: (S, S) anomaly map.
        truth: of the image.
        region: (S, S) outside which nothing counts as false.
        threshold: in map units, >= 0.
    """
    values = np.asarray(map, np.float64)
    # In multiples of the threshold; of a threshold of 0 any positive value is a great many.
    over = np.where(values > threshold, values / max(threshold, 1e-12), 0.0)
    masks = [pixels_inside(box, len(values)) for box in truth.boxes]
    anywhere = np.any(masks, axis=0) if masks else np.zeros_like(region)
    outside = region & ~anywhere if truth.elsewhere is None else region & ~anywhere & truth.elsewhere
    elsewhere = over[outside].sum()
    true_positives = np.asarray([np.mean(over[mask] > 0) > FOUND_SHARE for mask in masks], dtype=np.float64)
    in_box = np.asarray([over[mask].sum() for mask in masks], dtype=np.float64)
    false_positives = np.minimum(MOST_FALSE_POSITIVES, np.floor(elsewhere / np.maximum(in_box, 1)))
    precision = true_positives / np.maximum(true_positives + false_positives, 1)
    # Recall is 0 or 1; without it the precision is 0, too.
    f1 = 2 * precision * true_positives / np.maximum(precision + true_positives, 1)
    return BoxFigures(true_positives, precision, f1, false_positives)


def candidates(map: ArrayLike, region: Bools, threshold: float) -> list[Candidate]:
    """The connected components (8 neighbours) of the region's pixels above the threshold."""
    values = np.asarray(map, np.float64)
    labels, _ = components((values > threshold) & region)
    return [
        Candidate(
            box=Box("", float(columns.start), float(rows.start), float(columns.stop), float(rows.stop)),
            row=float(peak // values.shape[1]) + 0.5,
            column=float(peak % values.shape[1]) + 0.5,
            peak=float(values.flat[peak]),
        )
        for (rows, columns), peak in zip(ndimage.find_objects(labels), peak_pixels(labels, values), strict=True)
    ]


def peak_inside(candidate: Candidate, box: Box) -> bool:
    """The usual hit rule: the candidate's peak lies in the box."""
    return box.left <= candidate.column < box.right and box.top <= candidate.row < box.bottom


def is_counted(candidate: Candidate, truth: BoxTruth, hits: HitRule = peak_inside) -> bool:
    """Whether a candidate is a finding, right or wrong: its peak is elsewhere, or it hits a box by that rule."""
    if truth.elsewhere is None or truth.elsewhere[int(candidate.row), int(candidate.column)]:
        return True
    return any(hits(candidate, box) for box in truth.boxes)


def overlaps(candidate: Candidate, box: Box) -> bool:
    """The other hit rule: the boxes have an intersection over union of `SMALLEST_IOU` or more."""
    return iou(candidate.box, box) >= SMALLEST_IOU


def iou(first: Box, second: Box) -> float:
    """Intersection over union of two boxes' areas, in [0, 1]."""
    width = min(first.right, second.right) - max(first.left, second.left)
    height = min(first.bottom, second.bottom) - max(first.top, second.top)
    intersection = max(width, 0.0) * max(height, 0.0)
    areas = sum((box.right - box.left) * (box.bottom - box.top) for box in (first, second))
    return intersection / (areas - intersection) if areas > intersection else 0.0


class Hits(NamedTuple):
    """What FROC needs of N images."""

    best: Floats  # (A,) the largest peak of a candidate that hits the box; -inf for none
    false: Floats  # peaks of the candidates that hit no box, of all images
    images: int


def match(
    proposed: Sequence[Sequence[Candidate]],
    marked: Sequence[Sequence[Box]],
    hits: HitRule = peak_inside,
) -> Hits:
    """Match candidates with boxes, image by image. Several hits of one box count once; none of them is false."""
    best: list[float] = []
    false: list[float] = []
    for of_image, boxes_of_image in zip(proposed, marked, strict=True):
        hit = np.asarray([[hits(candidate, box) for box in boxes_of_image] for candidate in of_image], np.bool_)
        hit = hit.reshape(len(of_image), len(boxes_of_image))
        peaks = np.asarray([candidate.peak for candidate in of_image], np.float64)
        best += np.where(hit, peaks[:, None], -np.inf).max(axis=0, initial=-np.inf).tolist()
        false += peaks[~hit.any(axis=1)].tolist()
    return Hits(np.asarray(best, np.float64), np.asarray(false, np.float64), len(proposed))


def sensitivities(hits: Hits, rates: ArrayLike = FALSE_POSITIVES_AN_IMAGE) -> Floats:
    """Sensitivity at given false positives an image: the largest that any cut-off on the peaks reaches with no more.

    One value in [0, 1] for each rate; NaN without boxes.
    """
    allowed = np.floor(np.asarray(rates, np.float64) * hits.images + 1e-9).astype(np.int64)
    if not hits.best.size:
        return np.full(allowed.shape, np.nan)
    falling = np.append(np.sort(hits.false)[::-1], -np.inf)
    # With k false ones allowed, the cut-off lies above the next: what reaches no higher than that is not counted.
    cut = falling[np.minimum(allowed, len(falling) - 1)]
    return np.asarray([np.mean(hits.best > value) for value in cut])


class _Found:
    """What one detector found in N images, with A boxes together."""

    def __init__(self, run: DetectorRun[BoxTruth], threshold: float) -> None:
        images = list(zip(run.maps, run.truths, strict=True))
        marked = [truth.boxes for truth in run.truths]
        labels = np.asarray([box.label for boxes in marked for box in boxes])
        self.figures = [box_figures(map, truth, run.region, threshold) for map, truth in images]
        self.of_box = {
            name: np.concatenate([getattr(one, name) for one in self.figures]) for name in BoxFigures._fields
        }
        self.image_of_box = np.repeat(np.arange(len(marked)), [len(boxes) for boxes in marked])  # (A,) indices
        self.kinds = {ALL_KINDS: np.ones(labels.size, dtype=np.bool_)}  # (A,) the boxes of each kind
        for kind in np.unique(labels):  # a box may be labelled `all`
            self.kinds[str(kind) if kind != ALL_KINDS else f"{kind} (label)"] = labels == kind
        proposed = [candidates(map, run.region, threshold) for map, _ in images]
        self.counted = _counted(proposed, run.truths, peak_inside)
        self.by_peak = match(self.counted, marked)
        self.by_overlap = match(_counted(proposed, run.truths, overlaps), marked, overlaps)


def _counted(
    proposed: Sequence[Sequence[Candidate]], truths: Sequence[BoxTruth], hits: HitRule
) -> list[list[Candidate]]:
    return [
        [candidate for candidate in of_image if is_counted(candidate, truth, hits)]
        for of_image, truth in zip(proposed, truths, strict=True)
    ]


def measure(run: DetectorRun[BoxTruth], resampling: Resampling) -> Measured[dict[str, Floats]]:
    """Turn one detector's maps into its result and its rows of `cases.csv`; see the module's head.

    Raises:
        ThoradError: no healthy image that can be used.
    """
    threshold = _threshold(run)
    found = _Found(run, threshold)
    diseased, weights = run.diseased, resampling.weights(run.subjects)
    healthy = int((~diseased).sum())
    source = f"{100 * HEALTHY_SHARE:g} % of the pixels of the {healthy} healthy images of this evaluation"
    compared = {name: found.of_box[name] for name in COMPARED}
    resampled = statistics.weighted_means(compared, weights[:, found.image_of_box])
    result: dict[str, Any] = {
        **run.about,
        "kinds": {kind: _kind(found, members, weights, run.subjects) for kind, members in found.kinds.items()},
        "image_auroc": metrics.auroc(run.scores, diseased),
        "network_calls": run.detector.network_calls,
        "cpu_seconds_per_case": run.cpu_seconds_per_case,
        "intervals": {
            **{name: interval(values) for name, values in resampled.items()},
            "image_auroc": interval(metrics.resampled_image_auroc(run.scores, diseased, weights)),
        },
        "thresholds": {"boxes": threshold, "boxes_source": source},
        "counts": {
            "images_with_boxes": int(diseased.sum()),
            "healthy_images": healthy,
            "boxes": found.image_of_box.size,
            "boxes_not_found": int((found.of_box["recall"] == 0).sum()),
            "candidates": sum(map(len, found.counted)),
            "subjects": len(set(run.subjects)),
            "region_pixels": int(run.region.sum()),
            "bootstrap_resamples": resampling.bootstrap,
        },
        "failures": run.failures,
    }
    figures = {name: float(values.mean()) for name, values in compared.items()}
    sample = Sample(run.about, run.detector.network_calls, figures, resampled)
    subjects = [run.subjects[image] for image in found.image_of_box]
    return Measured(result, _rows(run, found), subjects, sample, kept=compared)


def _threshold(run: DetectorRun[BoxTruth]) -> float:
    if run.diseased.all():
        raise ThoradError(
            "None of the images is healthy and can be used, but the protocol boxes takes its threshold from healthy "
            "ones. Add rows with an empty column boxes, or a folder of healthy images."
        )
    # Every image has the same number of pixels, so the mean of the images' shares is the share of all pixels.
    return metrics.threshold_at_fpr(run.maps[~run.diseased][:, run.region], HEALTHY_SHARE)


def _outline(truth: BoxTruth, side: int) -> Bools:
    marked = np.zeros((side, side), np.bool_)
    for box in truth.boxes:
        marked |= pixels_inside(box, side)
    return marked


BOXES: Final = Protocol[BoxTruth, dict[str, Floats]](
    truth="boxes",
    read_truth=read_box_case,
    measure=measure,
    pair=statistics.paired_means,
    headline=lambda result: percent(result["kinds"][ALL_KINDS]["f1"]),
    headline_name="F1",
    outline=_outline,
)


def _kind(found: _Found, members: Bools, weights: Floats, subjects: Sequence[str]) -> dict[str, Any]:
    """Figures of the boxes of one kind, with intervals over the images' resamples."""
    compared = {name: found.of_box[name][members] for name in COMPARED}
    resampled = statistics.weighted_means(compared, weights[:, found.image_of_box[members]])
    return {
        "boxes": int(members.sum()),
        "subjects": len({subjects[image] for image in found.image_of_box[members]}),
        "intervals": {name: interval(values) for name, values in resampled.items()},
        **{name: float(values[members].mean()) for name, values in found.of_box.items()},
        "froc": _froc(found.by_peak, members),
        "froc_iou": _froc(found.by_overlap, members),
    }


def _froc(hits: Hits, members: Bools) -> dict[str, Any]:
    read = sensitivities(hits._replace(best=hits.best[members]))
    at = {f"{rate:g}": float(value) for rate, value in zip(FALSE_POSITIVES_AN_IMAGE, read, strict=True)}
    return {"mean": float(read.mean()), "sensitivity_at": at}


def _rows(run: DetectorRun[BoxTruth], found: _Found) -> Rows:
    return [
        {
            **run.about,
            "name": case.name,
            "subject": case.subject,
            "kind": "boxes" if case.has_finding else "healthy",
            "score": float(run.scores[index]),
            "boxes": len(figures.recall),
            "boxes_not_found": int((figures.recall == 0).sum()),
            "recall": float(figures.recall.mean()) if case.has_finding else None,
            "f1": float(figures.f1.mean()) if case.has_finding else None,
            "candidates": len(found.counted[index]),
            "boxes_not_hit_by_peak": int(np.isneginf(found.by_peak.best[found.image_of_box == index]).sum()),
        }
        for index, (case, figures) in enumerate(zip(run.cases, found.figures, strict=True))
    ]
