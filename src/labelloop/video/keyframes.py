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
from typing import NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from labelloop.core.regions import Box, KeyFrame, Track
from labelloop.video.interpolate import Rotation, pivoted
from labelloop.video.lifespans import Lifespan, boxes_by_frame, lifespans
from labelloop.video.overlap import Floats, iou_turned, iou_upright

Frames = NDArray[np.intp]

UNREACHED, START = -2, -1

PROBES = 3

LARGEST_PIECE = 200_000
"""Interpolated boxes looked at together: 8 MB for each array of them."""

LONGEST = 500
"""Frames from one key frame to the next, unless the next one is the last."""

NEAR = 80
"""Frames that are so few that looking at all of them costs less than looking for a bound."""

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
        ways, lost = line.edges(level, np.flatnonzero(before == UNREACHED))
        total = loss[ways.starts] + lost
        order = np.lexsort((total, ways.ends))
        level, first = np.unique(ways.ends[order], return_index=True)
        best = order[first]
        before[level], loss[level] = ways.starts[best], total[best]


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
        self._sides = np.ascontiguousarray(_sides(rows).T)
        self._areas = rows[:, 2] * rows[:, 3]

    def lost_standing(self, level: Frames, *, open_end: bool) -> Floats:
        """What is lost [n] when each frame of `level` is the last key frame; infinity where it cannot be. Where a
        lifespan ends with the film, the box stands still from its last key frame on."""
        last = len(self._rows) - 1
        if not open_end:
            return np.where(level == last, 0.0, np.inf)
        return np.array([self._lost_standing(int(start)) for start in level])

    def _lost_standing(self, start: int) -> float:
        later = np.arange(start + 1, len(self._rows))
        still = np.full(len(later), start)
        overlaps = self._overlaps(_Ways(still, still), np.arange(len(later)), later - start)
        return float((1 - overlaps).sum()) if (overlaps >= self._min_iou).all() else np.inf

    def lost_to_last(self, level: Frames) -> Floats:
        """What is lost [n] when the frame where the lifespan ends follows each frame of `level` as the last key frame;
        infinity where it cannot. Looked at first, however far it is: most tracks that hardly move end here."""
        lost = np.full(len(level), np.inf)
        ways, found = self._passable(_Ways(level, np.full(len(level), len(self._rows) - 1)))
        lost[np.searchsorted(level, ways.starts)] = found
        return lost

    def edges(self, level: Frames, frames: Frames) -> tuple[_Ways, Floats]:
        """The ways [n] from the frames of `level` to those of `frames` (ascending) that can be the next key frame, and
        what is lost on each."""
        first = np.searchsorted(frames, level, side="right")
        behind = np.searchsorted(frames, [self._horizon(int(start)) for start in level], side="right")
        of, place = _ragged(np.maximum(behind - first, 0))
        return self._passable(_Ways(level[of], frames[first[of] + place]))

    def _passable(self, ways: _Ways) -> tuple[_Ways, Floats]:
        """Most ways that cannot be gone fail at a few frames, which are looked at first."""
        likely = [part.at(np.isfinite(self._lost(part, *_probes(part)))) for part in _parts(ways, PROBES)]
        gone = [part for some in likely for part in _parts(some)]
        lost = [self._lost(part, *_ragged(part.lengths - 1)) for part in gone]
        if not lost:
            return ways.at(np.zeros(0, np.intp)), np.zeros(0)
        losses = np.concatenate(lost)
        passed = np.isfinite(losses)
        starts, ends = (np.concatenate(parts)[passed] for parts in zip(*gone, strict=True))
        return _Ways(starts, ends), losses[passed]

    def _lost(self, ways: _Ways, of: Frames, place: Frames) -> Floats:
        """1 - IoU summed over the frames on each of the ways [n], infinity where one is below the tolerance. Frame i is
        the `place[i]`-th (from 0) between the ends of the way `of[i]`."""
        overlaps = self._overlaps(ways, of, place + 1)
        lost = np.bincount(of, 1 - overlaps, minlength=len(ways.starts)).astype(np.float64)
        lost[of[overlaps < self._min_iou]] = np.inf
        return lost

    def _overlaps(self, ways: _Ways, of: Frames, step: Frames) -> Floats:
        """IoU [m] of the boxes `step` frames after the start of the ways `of` with what is interpolated there."""
        start, share = ways.starts[of], step / np.maximum(ways.lengths, 1)[of]
        if not self._turned:
            return self._upright(start, self._sides[:, ways.ends[of]], share, start + step)
        moved = self._rows[ways.ends] - self._rows[ways.starts]
        if self._shortest:
            moved[:, 4] = (moved[:, 4] + 180) % 360 - 180
        return iou_turned(self._rows[start] + moved[of] * share[:, None], self._rows[start + step])

    def _upright(self, start: Frames, ends: Floats, share: Floats, frames: Frames) -> Floats:
        """The same for boxes that do not turn, as most: their sides are rows of their own [4, m]."""
        begun, dense = self._sides[:, start], self._sides[:, frames]
        boxes = begun + (ends - begun) * share
        width, height = boxes[2:] - boxes[:2]
        inside = np.minimum(boxes[2:], dense[2:]) - np.maximum(boxes[:2], dense[:2])
        np.maximum(inside, 0, out=inside)
        shared = inside[0] * inside[1]
        union = width * height + self._areas[frames] - shared
        return np.asarray(shared / np.where(union > 0, union, 1))

    def _horizon(self, start: int) -> int:
        """No frame beyond this one can be the next key frame after `start`."""
        last = min(len(self._rows) - 1, start + LONGEST)
        if self._turned or self._min_iou <= 0 or last - start < NEAR:
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


class _Ways(NamedTuple):
    """From key frames to others [n], in order of `starts`."""

    starts: Frames
    ends: Frames

    @property
    def lengths(self) -> Frames:
        return self.ends - self.starts

    def at(self, index: Frames | slice | NDArray[np.bool_]) -> _Ways:
        return _Ways(self.starts[index], self.ends[index])


def _ragged(counts: Frames) -> tuple[Frames, Frames]:
    """For rows of so many places each: the row and the place of each of them, one row after the other."""
    of = np.repeat(np.arange(len(counts)), counts)
    return of, np.arange(len(of)) - np.repeat(np.cumsum(counts) - counts, counts)


def _probes(ways: _Ways) -> tuple[Frames, Frames]:
    """The way and the place of a few frames on each; none on a way to the next frame."""
    there = np.flatnonzero(ways.lengths > 1)
    places = np.outer(ways.lengths[there], np.arange(1, PROBES + 1)) // (PROBES + 1)
    return np.repeat(there, PROBES), np.maximum(places.ravel() - 1, 0)


def _parts(ways: _Ways, each: int | None = None) -> Iterator[_Ways]:
    """`ways` in parts on which a bounded number of frames is looked at: `each` on every way, or all."""
    ends = np.cumsum(ways.lengths if each is None else np.full(len(ways.starts), each))
    begun = 0
    while begun < len(ends):
        before = ends[begun - 1] if begun else 0
        until = max(int(np.searchsorted(ends, before + LARGEST_PIECE, side="right")), begun + 1)
        yield ways.at(slice(begun, until))
        begun = until


def _rows(boxes: Sequence[Box]) -> Floats:
    """[n, 5]: x and y of the corner that the box is turned about, width, height, degrees."""
    return np.array([(*pivoted(box), box.angle_deg) for box in boxes], np.float64).reshape(-1, 5)


def _sides(rows: Floats) -> Floats:
    return np.concatenate([rows[:, :2], rows[:, :2] + rows[:, 2:4]], axis=1)


def _iou(first: Floats, second: Floats) -> NDArray[np.float64]:
    turned = bool(first[:, 4].any() or second[:, 4].any())
    return iou_turned(first, second) if turned else iou_upright(_sides(first), _sides(second))
