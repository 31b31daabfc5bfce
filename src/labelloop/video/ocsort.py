"""OC-SORT: what was seen counts for more than what the filter believes.

Cao et al., "Observation-Centric SORT: Rethinking SORT for Robust Multi-Object Tracking", CVPR 2023. A Kalman filter
that sees nothing drifts, so three things are taken from the last sights instead:

- momentum (section 4.2): a pair is the more alike the better the way from the track's sight of DELTA frames ago to the
  detection agrees with the way the track went before; the weight is INERTIA and both angles are in radians, over pi;
- recovery (section 4.3): what found no partner is compared once more with the last sights of tracks;
- re-update (section 4.1): when a thing is seen again, the filter is taken back to its last sight and led along the
  straight line of sights between the two.
"""

from __future__ import annotations

import numpy as np

from labelloop.core.geometry import iou
from labelloop.video import kalman
from labelloop.video.kalman import AreaMotion, Belief
from labelloop.video.overlap import Floats
from labelloop.video.tracker import NOBODY, Detections, Indices, Options, Roster, assign, without

DELTA = 3
INERTIA = 0.2
AT_LEAST_IOU = 0.3


class OcSort:
    """See the head of this file."""

    wants_camera = False

    def __init__(self, options: Options) -> None:
        self._options = options
        self._motion = AreaMotion()
        self._roster = Roster()
        self._belief = kalman.begin(self._motion, np.zeros((0, 4)))
        self._seen_belief = self._belief
        """The belief at each track's last sight."""
        self._seen: Floats = np.zeros((0, DELTA, 4))
        """The boxes of each track on its last DELTA sights, newest first; the oldest is repeated where there were
        fewer."""
        self._direction: Floats = np.zeros((0, 2))

    def followed(self) -> Indices:
        return self._roster.ids.copy()

    def update(self, found: Detections, *, camera: Floats | None = None) -> Indices:  # noqa: ARG002
        self._belief = kalman.predict(self._motion, _shrinking_stopped(self._belief))
        numbers = np.full(len(found.scores), NOBODY, np.intp)
        columns = np.flatnonzero(found.scores >= self._options.high)
        rows = np.arange(len(self._roster))
        overlap = iou(self._motion.boxes(self._belief.mean), found.xyxy[columns])
        alike = np.where(overlap >= AT_LEAST_IOU, overlap + self._momentum(found, columns), -1.0)
        first = assign(alike, at_least=0.0)
        left, spare = without(rows, first.tracks), without(columns, first.found)
        again = assign(iou(self._seen[left, 0], found.xyxy[spare]), at_least=AT_LEAST_IOU)
        seen = np.concatenate([rows[first.tracks], left[again.tracks]])
        by = np.concatenate([columns[first.found], spare[again.found]])
        self._continue(seen, found.xyxy[by])
        numbers[by] = self._roster.ids[seen]
        self._forget(seen)
        spare = without(spare, again.found)
        beginning = spare[found.scores[spare] >= self._options.new]
        numbers[beginning] = self._begin(found.xyxy[beginning])
        return numbers

    def _momentum(self, found: Detections, columns: Indices) -> Floats:
        """[m, n], INERTIA times how well directions agree, from -1/2 to 1/2, weighed by the detection's score."""
        towards = _unit(_centres(found.xyxy[columns])[None] - _centres(self._seen[:, -1])[:, None])
        cosine = np.clip((towards * self._direction[:, None]).sum(axis=2), -1.0, 1.0)
        agreement = (np.pi / 2 - np.arccos(cosine)) / np.pi
        moves = np.abs(self._direction).sum(axis=1) > 0
        weighed = INERTIA * agreement * found.scores[columns]
        return np.where(moves[:, None], weighed, 0.0)

    def _continue(self, rows: Indices, xyxy: Floats) -> None:
        for row, box in zip(rows, xyxy, strict=True):
            if self._roster.missed[row]:
                self._lead_back(int(row), box)
        mean, covariance = kalman.correct(self._motion, self._belief.at(rows), xyxy)
        self._belief.mean[rows], self._belief.covariance[rows] = mean, covariance
        self._direction[rows] = _unit(_centres(xyxy) - _centres(self._seen[rows, -1]))
        self._seen[rows] = np.concatenate([xyxy[:, None], self._seen[rows, :-1]], axis=1)
        self._seen_belief.mean[rows], self._seen_belief.covariance[rows] = mean, covariance
        self._roster.confirmed[rows] = True

    def _lead_back(self, row: int, box: Floats) -> None:
        """The filter as if the thing had been seen all the time, on a straight line."""
        last, steps = self._seen[row, 0], int(self._roster.missed[row]) + 1
        belief = self._seen_belief.at(slice(row, row + 1))
        for step in range(1, steps):
            between = last + (box - last) * (step / steps)
            belief = kalman.correct(self._motion, kalman.predict(self._motion, belief), between[None])
        belief = kalman.predict(self._motion, belief)
        self._belief.mean[row], self._belief.covariance[row] = belief.mean[0], belief.covariance[0]

    def _forget(self, seen: Indices) -> None:
        missed = self._roster.missed + 1
        missed[seen] = 0
        self._roster.missed = missed
        kept = missed <= self._options.lost_steps
        self._roster.keep(kept)
        self._belief = Belief(self._belief.mean[kept], self._belief.covariance[kept])
        self._seen_belief = Belief(self._seen_belief.mean[kept], self._seen_belief.covariance[kept])
        self._seen, self._direction = self._seen[kept], self._direction[kept]

    def _begin(self, xyxy: Floats) -> Indices:
        new = kalman.begin(self._motion, xyxy)
        self._belief = _joined(self._belief, new)
        self._seen_belief = _joined(self._seen_belief, new)
        self._seen = np.concatenate([self._seen, np.repeat(xyxy[:, None], DELTA, axis=1)])
        self._direction = np.concatenate([self._direction, np.zeros((len(xyxy), 2))])
        return self._roster.add(len(xyxy), confirmed=False)


def _joined(first: Belief, second: Belief) -> Belief:
    return Belief(np.concatenate([first.mean, second.mean]), np.concatenate([first.covariance, second.covariance]))


def _shrinking_stopped(belief: Belief) -> Belief:
    """An area that would not be positive after the step stays as it is (SORT)."""
    mean = belief.mean.copy()
    mean[mean[:, 2] + mean[:, 6] <= 0, 6] = 0.0
    return Belief(mean, belief.covariance)


def _centres(xyxy: Floats) -> Floats:
    return (xyxy[..., :2] + xyxy[..., 2:]) / 2


def _unit(vectors: Floats) -> Floats:
    length = np.linalg.norm(vectors, axis=-1, keepdims=True)
    return np.asarray(np.divide(vectors, length, out=np.zeros_like(vectors), where=length > 0))
