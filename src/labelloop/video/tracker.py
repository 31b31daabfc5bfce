"""The seam between detections and tracks, and what all trackers share: who is followed, who is matched with whom."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import msgspec
import numpy as np
from numpy.typing import NDArray

from labelloop.video.overlap import Floats

Indices = NDArray[np.intp]

NOBODY = -1


class Detections(NamedTuple):
    """What a detector found on one frame: boxes [n, 4] in pixels (left, top, right, bottom), scores [n] in [0, 1], and
    classes [n] as numbers."""

    xyxy: Floats
    scores: Floats
    classes: Indices

    def at(self, index: Indices | NDArray[np.bool_]) -> Detections:
        return Detections(self.xyxy[index], self.scores[index], self.classes[index])


class Tracker(Protocol):
    """Follows things from frame to frame. Frames come in order, at even distances in time.

    `wants_camera`: `update` is told how the camera moved since the frame before, as the affine map [2, 3] from that
    frame's pixels to this one's (`video/camera`); None: not known.
    """

    wants_camera: bool

    def update(self, found: Detections, *, camera: Floats | None = None) -> Indices:
        """The track [n] of each detection, numbers from 1 in the order of their beginning; NOBODY for those that
        belong to none. A track that never gets a second detection was no track: whoever collects them drops it."""

    def followed(self) -> Indices:
        """Tracks [m] that may still go on; others never come back."""


class Options(msgspec.Struct, frozen=True):
    """What all trackers know. `high` is the score from which a detection counts as one, `new` that from which it may
    begin a track, `low` that from which it may continue one (ByteTrack, BoT-SORT). `lost_steps` is how many frames a
    thing may be out of sight."""

    high: float = 0.5
    new: float = 0.6
    low: float = 0.1
    lost_steps: int = 30


class Roster:
    """The tracks in work: their numbers, since how many frames each is out of sight, and whether it is more than a
    first sight. Row i of all arrays is the same track."""

    def __init__(self) -> None:
        self.ids: Indices = np.zeros(0, np.intp)
        self.missed: Indices = np.zeros(0, np.intp)
        self.confirmed: NDArray[np.bool_] = np.zeros(0, bool)
        self._begun = 0

    def __len__(self) -> int:
        return len(self.ids)

    def add(self, count: int, *, confirmed: bool) -> Indices:
        """Numbers [count] of new tracks, which are put behind the others."""
        new = np.arange(self._begun + 1, self._begun + count + 1, dtype=np.intp)
        self._begun += count
        self.ids = np.concatenate([self.ids, new])
        self.missed = np.concatenate([self.missed, np.zeros(count, np.intp)])
        self.confirmed = np.concatenate([self.confirmed, np.full(count, confirmed)])
        return new

    def keep(self, rows: NDArray[np.bool_]) -> None:
        self.ids, self.missed, self.confirmed = self.ids[rows], self.missed[rows], self.confirmed[rows]


class Matched(NamedTuple):
    """Pairs: row `tracks[i]` goes with detection `found[i]`."""

    tracks: Indices
    found: Indices


NO_PAIRS = Matched(np.zeros(0, np.intp), np.zeros(0, np.intp))


def assign(likeness: NDArray[np.floating[Any]], *, at_least: float) -> Matched:
    """The pairs (rows, columns) of `likeness` [n, m] whose sum is largest, of those that are alike by `at_least`.

    A pair that is not alike enough counts as no pair while the sum is made, not after it: it must not take a partner
    away from somebody else.
    """
    from scipy.optimize import linear_sum_assignment

    allowed = likeness >= at_least
    if not allowed.any():
        return NO_PAIRS
    worth = np.where(allowed, likeness - at_least + 1e-9, 0.0)
    rows, columns = linear_sum_assignment(worth, maximize=True)
    kept = allowed[rows, columns]
    return Matched(rows[kept], columns[kept])


def without(rows: Indices, taken: Indices) -> Indices:
    """`rows` without the ones at the places `taken`."""
    left = np.ones(len(rows), bool)
    left[taken] = False
    return rows[left]


def as_detections(rows: Sequence[tuple[Sequence[float], float, int]]) -> Detections:
    """Boxes, scores and classes as arrays; also of none."""
    boxes = np.array([box for box, _, _ in rows], np.float64).reshape(-1, 4)
    return Detections(
        boxes, np.array([score for _, score, _ in rows], np.float64), np.array([kind for *_, kind in rows], np.intp)
    )
