"""How good detections are: average precision, precision and recall as drawn, calibration.

AP of a class: precision, made monotone, at the 101 recalls 0, 0.01, … 1, averaged (Lin et al., Microsoft COCO, 2014).
AP50 takes matches at IoU 0.5; AP the mean over IoU 0.50, 0.55, … 0.95. Both are means over the classes that people have
drawn. The figures that are reported come from faster-coco-eval. `average_precisions` computes the same for weighted
pictures, all samples at once, for `promote`; a test holds the two together.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Literal

import msgspec
import numpy as np

from labelloop.learning.coco_figures import RECALLS, precisions
from labelloop.learning.detections import Flags, Floats, Found, Indices, Matches, Truth, match

Metric = Literal["AP50", "AP"]

IOU_THRESHOLDS: Mapping[Metric, tuple[float, ...]] = {
    "AP50": (0.5,),
    "AP": tuple(np.linspace(0.5, 0.95, 10).tolist()),
}
BINS = 10

_CELLS = 2_000_000
"""Numbers in one array of `average_precisions`: 16 MB."""


class ClassMeasures(msgspec.Struct, frozen=True):
    """One class. `boxes` were to be found, on `pictures` of them; None where that leaves nothing to measure: AP and
    recall without a box, precision without a detection."""

    label: str
    boxes: int
    pictures: int
    ap: float | None
    ap50: float | None
    precision: float | None
    recall: float | None


class Measures(msgspec.Struct, frozen=True):
    """One model version on some pictures. All shares in [0, 1].

    `precision` and `recall` are of what people would see drawn, at IoU 0.5, over all classes together. `ece` is the
    expected calibration error of what is drawn (`calibration_error`). `failed` pictures got no answer, and count as
    if nothing had been found on them.
    """

    pictures: int
    boxes: int
    ap: float | None
    ap50: float | None
    precision: float | None
    recall: float | None
    ece: float | None
    seconds_per_picture: float
    failed: int
    classes: tuple[ClassMeasures, ...]

    def value(self, metric: Metric) -> float | None:
        return self.ap50 if metric == "AP50" else self.ap


def measure(truth: Truth, found: Found, *, seconds_per_picture: float = 0.0, failed: int = 0) -> Measures:
    """Measure detections against what people drew. Raises ModelError where faster-coco-eval is not installed."""
    matches = match(truth, found, iou_thresholds=IOU_THRESHOLDS["AP50"])
    classes = tuple(
        _class_measures(label, rows, curves)
        for label, rows, curves in zip(truth.labels, matches, precisions(truth, found), strict=True)
    )
    right, drawn = (sum(numbers) for numbers in zip(*map(_drawn, matches), strict=True)) if matches else (0, 0)
    return Measures(
        pictures=truth.pictures,
        boxes=truth.boxes,
        ap=_mean([one.ap for one in classes]),
        ap50=_mean([one.ap50 for one in classes]),
        precision=_share(right, drawn),
        recall=_share(right, truth.boxes),
        ece=calibration_error(matches),
        seconds_per_picture=seconds_per_picture,
        failed=failed,
        classes=classes,
    )


def calibration_error(matches: Sequence[Matches]) -> float | None:
    """Expected calibration error of drawn detections in [0, 1]; None without any.

    ECE = sum over bins b of |b|/n * |share right in b - mean score in b|, ten bins of equal width over the score
    (Naeini et al., Obtaining well calibrated probabilities using Bayesian binning, 2015); right means matched at
    IoU 0.5 (the box-agnostic case of Küppers et al., Multivariate confidence calibration for object detection, 2020).
    """
    counted = [(rows, rows.drawn & ~rows.ignored[0]) for rows in matches]
    score = np.concatenate([rows.score[kept] for rows, kept in counted]) if counted else np.empty(0)
    right = np.concatenate([rows.right[0, kept] for rows, kept in counted]) if counted else np.empty(0)
    if not len(score):
        return None
    bins = np.clip((score * BINS).astype(int), 0, BINS - 1)
    gap = np.bincount(bins, right, BINS) - np.bincount(bins, score, BINS)
    return float(np.abs(gap).sum() / len(score))


def average_precisions(matches: Sequence[Matches], weights: Floats) -> Floats:
    """AP [samples] of samples of the pictures: `weights` [samples, pictures] says how often each picture is in each.

    The mean over the IoU thresholds of `matches` and over the classes that a sample has boxes of; NaN for a sample
    without any. As COCO's code would say it for the sample, equal scores apart, whose order is nobody's.
    """
    total, classes = np.zeros(len(weights)), np.zeros(len(weights))
    for rows in matches:
        step = max(1, _CELLS // max(1, int(rows.positives.sum())))
        for start in range(0, len(weights), step):
            part = slice(start, start + step)
            positives = weights[part] @ rows.positives
            areas = [_area(rows.picture, *flags, weights[part], positives) for flags in _thresholds(rows)]
            total[part] += np.mean(areas, axis=0) * (positives > 0)
            classes[part] += positives > 0
    return np.asarray(np.divide(total, classes, out=np.full(len(weights), np.nan), where=classes > 0))


def _thresholds(rows: Matches) -> Iterator[tuple[Flags, Flags]]:
    """At each IoU threshold which detections are right, and which are wrong."""
    for right, ignored in zip(rows.right, rows.ignored, strict=True):
        yield right, ~(right | ignored)


def _area(picture: Indices, right: Flags, wrong: Flags, weights: Floats, positives: Floats) -> Floats:
    """Mean over RECALLS of the monotone precision, for each sample.

    Precision has its peaks where something right comes, so only there anything is reckoned: `hits` and `misses`
    [samples, right ones] up to and with each. What is wrong between two of them is a sum over pictures, and so a
    product of matrices. A right one gives its precision to the recalls that it is the first to reach.
    """
    at = np.flatnonzero(right)
    if not len(at):
        return np.zeros(len(weights))
    hits = np.cumsum(weights[:, picture[at]], axis=1)
    before = np.flatnonzero(wrong[: at[-1]])
    cells = picture[before] * len(at) + np.searchsorted(at, before)
    between = np.bincount(cells, minlength=weights.shape[1] * len(at)).reshape(-1, len(at))
    misses = np.cumsum(weights @ between, axis=1)
    precision = hits / np.maximum(hits + misses, 1)
    envelope = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
    reached = np.searchsorted(RECALLS, hits / np.maximum(positives, 1)[:, None], side="right")
    return np.asarray((envelope * np.diff(reached, axis=1, prepend=0)).sum(1) / len(RECALLS))


def _class_measures(label: str, rows: Matches, curves: Floats) -> ClassMeasures:
    """`curves` [IoU thresholds, recalls] are its precisions."""
    boxes, (right, drawn) = int(rows.positives.sum()), _drawn(rows)
    return ClassMeasures(
        label=label,
        boxes=boxes,
        pictures=int((rows.positives > 0).sum()),
        ap=float(curves.mean()) if boxes else None,
        ap50=float(curves[0].mean()) if boxes else None,
        precision=_share(right, drawn),
        recall=_share(right, boxes),
    )


def _drawn(rows: Matches) -> tuple[int, int]:
    """How many of the drawn detections are right, and how many count."""
    counted = rows.drawn & ~rows.ignored[0]
    return int((rows.right[0] & counted).sum()), int(counted.sum())


def _share(part: int, whole: int) -> float | None:
    return part / whole if whole else None


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None
