"""How good choices are: accuracy, F1 per class and their mean, calibration.

With `several` answers an item is right when all its choices are (subset accuracy). F1 = 2tp / (2tp + fp + fn);
macro-F1 is its mean over the classes that people have chosen, so that rare ones count as much as common ones
(Sebastiani, Machine learning in automated text categorization, 2002, section 7.1).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from labelloop.learning.detections import Flags, Floats

ChoiceMetric = Literal["accuracy", "macro-F1"]
BINS = 10


class ChoiceClass(msgspec.Struct, frozen=True):
    """One class. `items` had it chosen by people; None where that leaves nothing to measure: recall and F1 without an
    item, precision where the model never chose it."""

    label: str
    items: int
    precision: float | None
    recall: float | None
    f1: float | None


class ChoiceMeasures(msgspec.Struct, frozen=True):
    """One model version on some items. All shares in [0, 1]. `ece` is the expected calibration error of what it chose
    (ten bins). `failed` items got no answer, and count as wrong."""

    items: int
    accuracy: float | None
    macro_f1: float | None
    ece: float | None
    seconds_per_item: float
    failed: int
    classes: tuple[ChoiceClass, ...]

    def value(self, metric: ChoiceMetric) -> float | None:
        return self.accuracy if metric == "accuracy" else self.macro_f1


class Chosen(NamedTuple):
    """What was chosen for n items of c labels: `flags` [n, c], and the certainty of each choice, `scores` [n, c]."""

    flags: Flags
    scores: Floats


def flags_of(said: Sequence[Sequence[str]], labels: Sequence[str]) -> Flags:
    """Labels of each item as [n, c]."""
    at = {label: number for number, label in enumerate(labels)}
    flags = np.zeros((len(said), len(labels)), bool)
    for row, chosen in zip(flags, said, strict=True):
        row[[at[label] for label in chosen]] = True
    return flags


def measure(
    truth: Flags, found: Chosen, labels: Sequence[str], *, seconds_per_item: float = 0.0, failed: int = 0
) -> ChoiceMeasures:
    """Measure choices against what people chose, `truth` [n, c]."""
    everything = np.ones((1, len(truth)))
    right, chosen, wanted = (truth & found.flags).sum(0), found.flags.sum(0), truth.sum(0)
    classes = tuple(
        ChoiceClass(label, int(n), _share(r, c), _share(r, n), _share(2 * r, c + n) if n else None)
        for label, r, c, n in zip(labels, right.tolist(), chosen.tolist(), wanted.tolist(), strict=True)
    )
    accuracy, macro = (
        _number(sampled(truth, found.flags, metric, everything)[0]) for metric in ("accuracy", "macro-F1")
    )
    return ChoiceMeasures(
        items=len(truth),
        accuracy=accuracy,
        macro_f1=macro,
        ece=_calibration_error(truth, found),
        seconds_per_item=seconds_per_item,
        failed=failed,
        classes=classes,
    )


def sampled(truth: Flags, found: Flags, metric: str, weights: Floats) -> Floats:
    """The metric [samples] of samples of the items: `weights` [samples, n] says how often each item is in each. NaN for
    a sample without anything to choose."""
    if metric == "accuracy":
        right = (truth == found).all(axis=1).astype(np.float64)
        total = weights.sum(axis=1)
        return np.asarray(np.divide(weights @ right, total, out=np.full(len(weights), np.nan), where=total > 0))
    right, chosen, wanted = (weights @ flags.astype(np.float64) for flags in (truth & found, found, truth))
    f1 = np.divide(2 * right, chosen + wanted, out=np.zeros_like(right), where=chosen + wanted > 0)
    there = wanted > 0
    classes = there.sum(axis=1)
    return np.asarray(
        np.divide((f1 * there).sum(axis=1), classes, out=np.full(len(weights), np.nan), where=classes > 0)
    )


def commonest(truth: Flags) -> Flags:
    """What somebody chooses who does not look: for every item the answer that is right most often."""
    answers, counts = np.unique(truth, axis=0, return_counts=True)
    best = answers[counts.argmax()] if len(answers) else np.zeros(truth.shape[1], bool)
    return np.broadcast_to(best, truth.shape)


def _calibration_error(truth: Flags, found: Chosen) -> float | None:
    scores, right = found.scores[found.flags], truth[found.flags].astype(np.float64)
    if not len(scores):
        return None
    bins = np.clip((scores * BINS).astype(int), 0, BINS - 1)
    gap: NDArray[Any] = np.bincount(bins, right, BINS) - np.bincount(bins, scores, BINS)
    return float(np.abs(gap).sum() / len(scores))


def _share(part: float, whole: float) -> float | None:
    return part / whole if whole else None


def _number(value: float) -> float | None:
    return None if np.isnan(value) else float(value)
