"""ByteTrack and BoT-SORT: every detection counts, the doubtful ones too.

Zhang et al., "ByteTrack: Multi-Object Tracking by Associating Every Detection Box", ECCV 2022, algorithm 1: detections
with a high score are matched first, with all tracks; those with a low score then only continue tracks that nothing else
continued, which carries a thing through blur and behind others; what is left of the high ones begins tracks. The first
match weighs IoU with the detection's score, as the authors' program does.

Aharon, Orfaig and Bobrovsky, "BoT-SORT: Robust Associations Multi-Pedestrian Tracking", 2022: the same with width and
height as states of their own, and with the camera's motion taken out before boxes are compared. Their part that
compares looks is left out: it needs a network of its own.
"""

from __future__ import annotations

import numpy as np

from labelloop.core.geometry import iou
from labelloop.video import kalman
from labelloop.video.kalman import AspectMotion, Belief, Motion, SizeMotion
from labelloop.video.overlap import Floats
from labelloop.video.tracker import (
    NO_PAIRS,
    NOBODY,
    Detections,
    Indices,
    Matched,
    Options,
    Roster,
    assign,
    without,
)

FIRST_IOU, SECOND_IOU, NEW_IOU = 0.2, 0.5, 0.3
"""What pairs must overlap by: IoU times score in the first match, IoU among the doubtful detections, IoU times score
with tracks that were seen once."""


class ByteTrack:
    """See the head of this file; `motion` is how boxes move."""

    wants_camera = False

    def __init__(self, options: Options, motion: Motion | None = None) -> None:
        self._options = options
        self._motion = motion or AspectMotion()
        self._roster = Roster()
        self._belief = kalman.begin(self._motion, np.zeros((0, 4)))
        self._is_first = True

    def followed(self) -> Indices:
        return self._roster.ids.copy()

    def update(self, found: Detections, *, camera: Floats | None = None) -> Indices:
        self._move(camera)
        numbers = np.full(len(found.scores), NOBODY, np.intp)
        high = np.flatnonzero(found.scores >= self._options.high)
        low = np.flatnonzero((found.scores >= self._options.low) & (found.scores < self._options.high))
        roster = self._roster
        expected = self._motion.boxes(self._belief.mean)
        matched = [NO_PAIRS]

        def match(rows: Indices, columns: Indices, *, at_least: float, weighed: bool) -> tuple[Indices, Indices]:
            if not len(rows) or not len(columns):
                return rows, columns
            alike = iou(expected[rows], found.xyxy[columns])
            pairs = assign(alike * found.scores[columns] if weighed else alike, at_least=at_least)
            matched.append(Matched(rows[pairs.tracks], columns[pairs.found]))
            return without(rows, pairs.tracks), without(columns, pairs.found)

        known, new = np.flatnonzero(roster.confirmed), np.flatnonzero(~roster.confirmed)
        left, high = match(known, high, at_least=FIRST_IOU, weighed=True)
        match(left[roster.missed[left] == 0], low, at_least=SECOND_IOU, weighed=False)
        gone, high = match(new, high, at_least=NEW_IOU, weighed=True)
        rows, columns = (np.concatenate(parts) for parts in zip(*matched, strict=True))
        self._continue(rows, found.xyxy[columns])
        numbers[columns] = roster.ids[rows]
        self._forget(rows, gone)
        beginning = high[found.scores[high] >= self._options.new]
        if len(beginning):
            numbers[beginning] = self._begin(found.xyxy[beginning])
        return numbers

    def _move(self, camera: Floats | None) -> None:
        """One step on. The size of what is out of sight stays: a guess of it would only grow."""
        mean = self._belief.mean.copy()
        mean[self._roster.missed > 0, 6:8] = 0.0
        self._belief = kalman.predict(self._motion, Belief(mean, self._belief.covariance))
        if camera is not None:
            self._belief = moved(self._belief, camera)

    def _continue(self, rows: Indices, xyxy: Floats) -> None:
        if not len(rows):
            return
        mean, covariance = kalman.correct(self._motion, self._belief.at(rows), xyxy)
        self._belief.mean[rows], self._belief.covariance[rows] = mean, covariance
        self._roster.confirmed[rows] = True

    def _forget(self, seen: Indices, gone: Indices) -> None:
        """Those out of sight for too long, and first sights that nothing followed."""
        missed = self._roster.missed + 1
        missed[seen] = 0
        self._roster.missed = missed
        kept = missed <= self._options.lost_steps
        kept[gone] = False
        if kept.all():
            return
        self._roster.keep(kept)
        self._belief = Belief(self._belief.mean[kept], self._belief.covariance[kept])

    def _begin(self, xyxy: Floats) -> Indices:
        new = kalman.begin(self._motion, xyxy)
        self._belief = Belief(
            np.concatenate([self._belief.mean, new.mean]), np.concatenate([self._belief.covariance, new.covariance])
        )
        confirmed, self._is_first = self._is_first, False  # on the first frame everything is there already
        return self._roster.add(len(xyxy), confirmed=confirmed)


class BotSort(ByteTrack):
    """ByteTrack with width and height as states and the camera's motion taken out."""

    wants_camera = True

    def __init__(self, options: Options) -> None:
        super().__init__(options, SizeMotion())


def moved(belief: Belief, camera: Floats) -> Belief:
    """States of SizeMotion after the camera moved: x' = M x + T and P' = M P M^T, with the map's 2 x 2 part on each
    pair of numbers (BoT-SORT, equations 7 and 8) and its shift on the centre."""
    turn = np.kron(np.eye(4), camera[:, :2])
    mean = belief.mean @ turn.T
    mean[:, :2] += camera[:, 2]
    return Belief(mean, turn @ belief.covariance @ turn.T)
