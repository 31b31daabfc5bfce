"""Scores for an order that has to be written one by one: as few as possible are changed.

Label Studio's bulk import only adds predictions; the score of one that exists is changed by a request of its own, which
takes it about a tenth of a second. Most tasks stand in the right order already, because every prediction was sent with
the score that the same acquisition function gave it. So the longest part of the order that is right stays as it is, and
the others get scores in between.
"""

from __future__ import annotations

from bisect import bisect_right

import numpy as np
from numpy.typing import NDArray

from labelloop.learning.acquisition import AcquisitionError
from labelloop.learning.diversity import Indices
from labelloop.learning.pool import Floats

UNIT = 1_000_000_000
"""Scores are counted in billionths, so that "in between" is exact arithmetic: what was written once is kept next time.
That is far above what Label Studio's averaging of a task's equal scores, in double precision, can move."""

MOST_RANKED = 10_000_000
"""Tasks of one order: a hundred billionths for each, so that later orders find room."""


def placed(order: Indices, current: Floats) -> NDArray[np.float64]:
    """Scores [n] in [0, 1] that increase strictly along `order`, by a billionth at least.

    `order` holds each of 0..n-1 once. `current` [n] are the scores as they stand, NaN where there is none; the most of
    them that can stay are returned as they are. Without any, the scores are spread evenly.
    """
    count = len(order)
    if not np.array_equal(np.sort(order), np.arange(count)):
        raise ValueError("order is not a permutation of its positions")
    if count > MOST_RANKED:
        raise AcquisitionError(f"{count:,} tasks are too many for one order.", hint="Order the project in parts.")
    along = np.asarray(current, np.float64)[order]
    ticks = np.where(np.isfinite(along), np.round(along * UNIT), -1.0).astype(np.int64)
    kept = _kept(ticks)
    # as if a task stood before the first and one behind the last
    places = np.concatenate([[-1], kept, [count]])
    values = np.concatenate([[-1], ticks[kept], [UNIT + 1]])
    left = np.searchsorted(places, np.arange(count), side="right") - 1
    steps, width = np.arange(count) - places[left], np.diff(places)[left]
    between = values[left] + np.diff(values)[left] * steps // width
    scores = np.empty(count, np.float64)
    scores[order] = between / UNIT
    scores[order[kept]] = along[kept]
    return scores


def _kept(ticks: NDArray[np.int64]) -> NDArray[np.int64]:
    """Positions of the longest part of `ticks` [n] that can stay: between any two of them, and towards both ends, is
    room for the others at one tick each. -1 never stays.

    With t = tick - position that is a longest non-decreasing subsequence within fixed bounds: patience sorting
    (Fredman 1975), n log n.
    """
    count = len(ticks)
    rooms = ticks - np.arange(count)
    tails: list[int] = []  # the smallest room that a sequence of each length can end with
    ends: list[int] = []  # and where it ends
    before = np.full(count, -1, np.int64)
    for position in np.flatnonzero((rooms >= 0) & (rooms <= UNIT - (count - 1))).tolist():
        room = int(rooms[position])
        length = bisect_right(tails, room)
        before[position] = ends[length - 1] if length else -1
        tails[length : length + 1] = [room]
        ends[length : length + 1] = [position]
    chain: list[int] = []
    position = ends[-1] if ends else -1
    while position >= 0:
        chain.append(position)
        position = int(before[position])
    return np.asarray(chain[::-1], np.int64)
