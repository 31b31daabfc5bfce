"""A box on every frame -> the fewest key frames that still say it, within a tolerance.

A person corrects a track by moving its key frames; one with a key frame on every frame cannot be corrected. Each
lifespan is a line to be simplified: the kept frames are a subset of the dense ones, and on every frame between two of
them the interpolated box must overlap the dense one by at least `min_iou`.

Two frames are joined by an edge where that holds; the fewest key frames are the shortest path over the edges, found by
breadth-first search (Imai and Iri, "Polygonal approximations of a curve", 1988, with their tolerance replaced by IoU).
So the number is the **smallest possible** for key frames that lie on dense boxes with at most `LONGEST` frames from one
to the next, and among the choices of that length the one with the largest mean IoU is taken.

What keeps it quick is a bound on the slopes. In one dimension the overlap of two intervals is at least their boxes' IoU
`t`, so an interpolated side may be off by at most `width (1 - t)` inwards and `width (1/t - 1)` outwards. From one
frame on, each later frame therefore leaves an interval of slopes for each of the four sides; once it is empty no frame
further on can be reached. It is a necessary condition only, so it never takes an edge away that is there. Turned boxes
have no such bound.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import msgspec
import numpy as np
from numpy.typing import NDArray

from labelloop.core.regions import Box, KeyFrame, Track
from labelloop.video.interpolate import Rotation, pivoted
from labelloop.video.lifespans import Lifespan, boxes_by_frame, lifespans
from labelloop.video.overlap import Floats, iou_turned, iou_upright

Frames = NDArray[np.intp]

UNREACHED, START = -2, -1

PROBES = 8

LARGEST_PIECE = 200_000
"""Interpolated boxes looked at together: 8 MB for each array of them."""

LONGEST = 500
"""Frames from one key frame to the next, unless the next one is the last."""

_SLACK = 1e-9
"""A box that overlaps by exactly the tolerance does so up to rounding."""


class Fidelity(msgspec.Struct, frozen=True):
    """How well a reduced track says what a dense one said: IoU over the frames, and the key frames of each."""

    mean_iou: float
    min_iou: float
    frames: int
    keyframes: int


def reduce(track: Track, *, min_iou: float = 0.9, rotation: Rotation = "linear") -> Track:
    """The track with the fewest key frames whose interpolation overlaps that of `track` by at least `min_iou` (0 to 1)
    on every frame; it is seen on exactly the same frames."""
    if not 0 <= min_iou <= 1:
        raise ValueError(f"an IoU lies between 0 and 1, not at {min_iou}")
    said = {key.frame: key.time_s for key in track.keyframes}
    seconds = track.duration_s / track.frames_count if track.frames_count else 0.0
    keys: list[KeyFrame] = []
    for life in lifespans(track, rotation=rotation):
        kept = _kept(life, min_iou, rotation)
        for index in kept:
            frame = life.start + index
            time_s = said.get(frame)
            enabled = life.open_end or frame < life.end
            keys.append(KeyFrame(frame, life.boxes[index], enabled, frame * seconds if time_s is None else time_s))
    return msgspec.structs.replace(track, keyframes=tuple(keys))


def fidelity(dense: Track, reduced: Track, *, rotation: Rotation = "linear") -> Fidelity:
    """Compare two tracks of one film frame by frame; a frame on which only one of them is seen counts as IoU 0."""
    first, second = boxes_by_frame(dense, rotation=rotation), boxes_by_frame(reduced, rotation=rotation)
    both = sorted(first.keys() & second.keys())
    overlaps = _iou(_rows([first[frame] for frame in both]), _rows([second[frame] for frame in both]))
    alone = len(first.keys() ^ second.keys())
    frames = len(both) + alone
    if not frames:
        return Fidelity(1.0, 1.0, 0, len(reduced.keyframes))
    lowest = 0.0 if alone else float(overlaps.min())
    return Fidelity(float(overlaps.sum()) / frames, lowest, frames, len(reduced.keyframes))


# --- the shortest path over one lifespan, by index of the frame in it -------------------------------------------------


def _kept(life: Lifespan, min_iou: float, rotation: Rotation) -> list[int]:
    line = _Line(_rows(life.boxes), min_iou, rotation)
    before = np.full(len(life.boxes), UNREACHED)  # the frame from which each was reached
    loss = np.zeros(len(life.boxes))  # 1 - IoU, summed over the frames up to it
    level = np.array([0])
    before[0] = START
    while True:
        still = loss[level] + line.lost_standing(level, open_end=life.open_end)
        if np.isfinite(still).any():
            return _path(before, int(level[still.argmin()]))
        straight = loss[level] + line.lost_to_last(level)
        if np.isfinite(straight).any():
            return [*_path(before, int(level[straight.argmin()])), len(before) - 1]
        best = np.full(len(before), np.inf)
        open_frames = np.flatnonzero(before == UNREACHED)
        for start in level:
            frames, lost = line.edges(int(start), open_frames)
            better = loss[start] + lost < best[frames]
            best[frames[better]] = loss[start] + lost[better]
            before[frames[better]] = start
        level = np.flatnonzero(np.isfinite(best))
        loss[level] = best[level]


def _path(before: NDArray[np.intp], end: int) -> list[int]:
    path = [end]
    while before[path[-1]] != START:
        path.append(int(before[path[-1]]))
    return path[::-1]


class _Line:
    """The boxes of a lifespan as rows, and what lies within the tolerance of them."""

    def __init__(self, rows: Floats, min_iou: float, rotation: Rotation) -> None:
        self._rows = rows
        self._min_iou = min_iou - _SLACK
        self._shortest = rotation == "shortest"
        self._turned = bool(rows[:, 4].any())

    def lost_standing(self, level: Frames, *, open_end: bool) -> Floats:
        """What is lost [n] when each frame of `level` is the last key frame; infinity where it cannot be. Where a
        lifespan ends with the film, the box stands still from its last key frame on."""
        last = len(self._rows) - 1
        if not open_end:
            return np.where(level == last, 0.0, np.inf)
        return np.array([self._lost_standing(int(start)) for start in level])

    def _lost_standing(self, start: int) -> float:
        later = np.arange(start + 1, len(self._rows))
        still = np.repeat(self._rows[start : start + 1], len(later), axis=0)
        return float(self._lost(self._iou(still, later)[None])[0])

    def lost_to_last(self, level: Frames) -> Floats:
        """What is lost [n] when the frame where the lifespan ends follows each frame of `level` as the last key frame;
        infinity where it cannot. Looked at first, however far it is: most tracks that hardly move end here."""
        last = np.array([len(self._rows) - 1])
        lost = np.full(len(level), np.inf)
        for place, start in enumerate(level):
            _, found = self._passable(int(start), last)
            lost[place] = found[0] if len(found) else np.inf
        return lost

    def edges(self, start: int, frames: Frames) -> tuple[Frames, Floats]:
        """Those of `frames` (ascending) that can follow `start` as a key frame, and what is lost on the way to each."""
        return self._passable(start, frames[(frames > start) & (frames <= self._horizon(start))])

    def _passable(self, start: int, frames: Frames) -> tuple[Frames, Floats]:
        if not len(frames):
            return frames, np.zeros(0)
        frames = frames[np.isfinite(self._lost(self._probe(start, frames)))]
        parts = [self._lost(self._all(start, part)) for part in _parts(frames, start)]
        lost = np.concatenate(parts) if parts else np.zeros(0)
        return frames[np.isfinite(lost)], lost[np.isfinite(lost)]

    def _probe(self, start: int, frames: Frames) -> Floats:
        """IoU [n, PROBES] at a few frames on the way to each of `frames`: most that cannot be reached fail here."""
        on_the_way = start + np.outer(frames - start, np.arange(1, PROBES + 1)) // (PROBES + 1)
        return self._on_the_way(start, frames, np.maximum(on_the_way, start + 1))

    def _all(self, start: int, frames: Frames) -> Floats:
        """IoU [n, m] at each frame on the way to each of `frames`, and 1 at those beyond it."""
        return self._on_the_way(start, frames, np.tile(np.arange(start + 1, frames[-1] + 1), (len(frames), 1)))

    def _on_the_way(self, start: int, frames: Frames, between: Frames) -> Floats:
        before = between < frames[:, None]
        to, at = np.nonzero(before)
        first, step = self._rows[start], self._rows[frames] - self._rows[start]
        if self._shortest:
            step[:, 4] = (step[:, 4] + 180) % 360 - 180
        seen = between[to, at]
        shares = (seen - start) / (frames[to] - start)
        overlaps = np.ones(between.shape)
        overlaps[to, at] = self._iou(first + step[to] * shares[:, None], seen)
        return overlaps

    def _iou(self, boxes: Floats, frames: Frames) -> Floats:
        return _iou(boxes, self._rows[frames], turned=self._turned)

    def _lost(self, overlaps: Floats) -> Floats:
        """1 - IoU summed over the rows [n] of IoUs [n, m]; infinity below the tolerance."""
        lost = (1 - overlaps).sum(axis=1)
        return np.where((overlaps < self._min_iou).any(axis=1), np.inf, lost)

    def _horizon(self, start: int) -> int:
        """No frame beyond this one can be the next key frame after `start`."""
        last = min(len(self._rows) - 1, start + LONGEST)
        if self._turned or self._min_iou <= 0:
            return last
        later = self._rows[start + 1 : last + 1]
        sides, size = _sides(later), later[:, 2:4]
        inwards, outwards = size * (1 - self._min_iou), size * (1 / self._min_iou - 1)
        lowest = np.concatenate([sides[:, :2] - outwards, sides[:, 2:] - inwards], axis=1)
        highest = np.concatenate([sides[:, :2] + inwards, sides[:, 2:] + outwards], axis=1)
        steps = np.arange(1, len(later) + 1)[:, None]
        here = _sides(self._rows[start : start + 1])
        low = np.maximum.accumulate((lowest - here) / steps)
        high = np.minimum.accumulate((highest - here) / steps)
        closed = (low > high).any(axis=1)
        return start + int(closed.argmax()) if closed.any() else last


def _parts(frames: Frames, start: int) -> Iterator[Frames]:
    """`frames` in parts whose ways from `start` fill a bounded piece of memory."""
    rest = frames
    while len(rest):
        size = max(1, LARGEST_PIECE // int(rest[-1] - start))
        yield rest[:size]
        rest = rest[size:]


def _rows(boxes: Sequence[Box]) -> Floats:
    """[n, 5]: x and y of the corner that the box is turned about, width, height, degrees."""
    return np.array([(*pivoted(box), box.angle_deg) for box in boxes], np.float64).reshape(-1, 5)


def _sides(rows: Floats) -> Floats:
    return np.concatenate([rows[:, :2], rows[:, :2] + rows[:, 2:4]], axis=1)


def _iou(first: Floats, second: Floats, *, turned: bool | None = None) -> NDArray[np.float64]:
    if turned is None:
        turned = bool(first[:, 4].any() or second[:, 4].any())
    return iou_turned(first, second) if turned else iou_upright(_sides(first), _sides(second))
