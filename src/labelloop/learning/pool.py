"""What selection remembers of predictions: small rows on the way in, columns to reckon with."""

from __future__ import annotations

import math
from array import array
from collections.abc import Iterable
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from labelloop.core.regions import Region

Floats = NDArray[np.floating[Any]]


class Observation(msgspec.Struct, frozen=True):
    """What one prediction says about how much a person is needed; small enough to be kept as a row per task.

    `scores` in [0, 1] and `labels` belong to the regions that are drawn. `hidden` in [0, 1] is the best score that was
    not drawn. `inconsistency` in [0, 1] is what `learning/consistency` found, 0 where nobody looked twice.
    """

    task_id: int
    scores: tuple[float, ...] = ()
    labels: tuple[str, ...] = ()
    hidden: float = 0.0
    inconsistency: float = 0.0


class Pool(msgspec.Struct, frozen=True, eq=False):
    """`n` observations as columns; the regions of picture `i` are rows `starts[i]:starts[i + 1]` of the `r` regions.

    12 bytes a region and 24 a picture: a million pictures with seven regions each take about 110 MB.
    """

    task_ids: NDArray[np.int64]
    """[n]"""
    starts: NDArray[np.int64]
    """[n + 1]"""
    scores: NDArray[np.float64]
    """[r], in [0, 1]"""
    labels: NDArray[np.int32]
    """[r], positions in `classes`"""
    classes: tuple[str, ...]
    hidden: NDArray[np.float32]
    """[n], in [0, 1]"""
    inconsistency: NDArray[np.float32]
    """[n], in [0, 1]"""

    def __len__(self) -> int:
        return len(self.task_ids)

    @property
    def counts(self) -> NDArray[np.int64]:
        """Drawn regions of each picture [n]."""
        return np.diff(self.starts)

    @property
    def class_counts(self) -> NDArray[np.int64]:
        """Drawn regions of each class [c] over the whole pool."""
        return np.bincount(self.labels, minlength=len(self.classes))


def pool_of(observations: Iterable[Observation]) -> Pool:
    """Columns of `observations`, which are read once and not kept."""
    task_ids, starts, labels = array("q"), array("q", [0]), array("i")
    scores, hidden, inconsistency = array("d"), array("f"), array("f")
    classes: dict[str, int] = {}
    for seen in observations:
        task_ids.append(seen.task_id)
        scores.extend(seen.scores)
        labels.extend(classes.setdefault(label, len(classes)) for label in seen.labels)
        starts.append(len(scores))
        hidden.append(seen.hidden)
        inconsistency.append(seen.inconsistency)
    return Pool(
        task_ids=np.asarray(task_ids, np.int64),
        starts=np.asarray(starts, np.int64),
        scores=np.asarray(scores, np.float64),
        labels=np.asarray(labels, np.int32),
        classes=tuple(classes),
        hidden=np.asarray(hidden, np.float32),
        inconsistency=np.asarray(inconsistency, np.float32),
    )


def score_of(region: Region) -> float:
    """The score in [0, 1]. A region without one was not doubted by its model: 1. What is no number counts as 0, as in
    `labelstudio/wire`."""
    if region.score is None:
        return 1.0
    return min(max(float(region.score), 0.0), 1.0) if math.isfinite(region.score) else 0.0
