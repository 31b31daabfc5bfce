"""C-BIoU: boxes are widened before they are compared, so that things that jump still meet.

Yang et al., "Hard to Track Objects with Irregular Motions and Similar Appearances? Make It Easier by Buffering the
Matching Space", WACV 2023. A box w x h widened by the buffer b is (1 + 2b) w x (1 + 2b) h (section 3.2). Two matches
follow each other, the first with a small buffer for those that move as expected, the second with a larger one for the
rest (section 3.3). Motion is the mean step of the last SIGHTS sights; no filter.
"""

from __future__ import annotations

import numpy as np

from labelloop.core.geometry import iou
from labelloop.video.overlap import Floats
from labelloop.video.tracker import NOBODY, Detections, Indices, Options, Roster, assign, without

BUFFERS = (0.3, 0.5)
"""The first match's and the second's, as in section 4.2."""
SIGHTS = 5
"""Sights whose mean step is the motion; fewer while there are fewer."""
AT_LEAST_IOU = 0.1
"""Of widened boxes."""


class CBIoU:
    """See the head of this file."""

    wants_camera = False

    def __init__(self, options: Options) -> None:
        self._options = options
        self._roster = Roster()
        self._last: Floats = np.zeros((0, 4))
        self._steps: Floats = np.zeros((0, SIGHTS, 4))
        """How each side moved per frame between the last sights, newest first."""
        self._known: Indices = np.zeros(0, np.intp)
        """How many of the steps there are."""

    def followed(self) -> Indices:
        return self._roster.ids.copy()

    def update(self, found: Detections, *, camera: Floats | None = None) -> Indices:  # noqa: ARG002
        numbers = np.full(len(found.scores), NOBODY, np.intp)
        columns = np.flatnonzero(found.scores >= self._options.high)
        rows = np.arange(len(self._roster))
        expected = self._last + self._velocity() * (self._roster.missed + 1)[:, None]
        for buffer in BUFFERS:
            alike = iou(widened(expected[rows], buffer), widened(found.xyxy[columns], buffer))
            pairs = assign(alike, at_least=AT_LEAST_IOU)
            seen, by = rows[pairs.tracks], columns[pairs.found]
            self._continue(seen, found.xyxy[by])
            numbers[by] = self._roster.ids[seen]
            rows, columns = without(rows, pairs.tracks), without(columns, pairs.found)
        self._forget(rows)
        beginning = columns[found.scores[columns] >= self._options.new]
        numbers[beginning] = self._begin(found.xyxy[beginning])
        return numbers

    def _velocity(self) -> Floats:
        return np.asarray(self._steps.sum(axis=1) / np.maximum(self._known, 1)[:, None])

    def _continue(self, rows: Indices, xyxy: Floats) -> None:
        step = (xyxy - self._last[rows]) / (self._roster.missed[rows] + 1)[:, None]
        self._steps[rows] = np.concatenate([step[:, None], self._steps[rows, :-1]], axis=1)
        self._known[rows] = np.minimum(self._known[rows] + 1, SIGHTS)
        self._last[rows] = xyxy
        self._roster.missed[rows] = 0
        self._roster.confirmed[rows] = True

    def _forget(self, missing: Indices) -> None:
        self._roster.missed[missing] += 1
        kept = self._roster.missed <= self._options.lost_steps
        self._roster.keep(kept)
        self._last, self._steps, self._known = self._last[kept], self._steps[kept], self._known[kept]

    def _begin(self, xyxy: Floats) -> Indices:
        self._last = np.concatenate([self._last, xyxy])
        self._steps = np.concatenate([self._steps, np.zeros((len(xyxy), SIGHTS, 4))])
        self._known = np.concatenate([self._known, np.zeros(len(xyxy), np.intp)])
        return self._roster.add(len(xyxy), confirmed=False)


def widened(xyxy: Floats, buffer: float) -> Floats:
    """Boxes [n, 4] with `buffer` times their size on each side."""
    size = xyxy[:, 2:] - xyxy[:, :2]
    return np.concatenate([xyxy[:, :2] - buffer * size, xyxy[:, 2:] + buffer * size], axis=1)
