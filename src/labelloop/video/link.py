"""Detections of frame after frame -> Tracks that a person can edit.

A tracker says which detection belongs to whom; here its answers become tracks: the class is voted for, what was hardly
seen is dropped, short gaps are bridged, and the boxes on all frames become a few key frames. Memory does not grow with
the film but with what is followed at a time: a track that has ended is reduced at once.

Label Studio counts frames by the clock, with the rate that the label config names: its frame j is what is shown at
(j - 1/2) / rate. Where that is the film's rate, and the film's frames are evenly spaced, j is the film's own number.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Literal

import msgspec
import numpy as np

from labelloop.core.errors import LabelloopError
from labelloop.core.geometry import iou
from labelloop.core.regions import Box, KeyFrame, Region, Track
from labelloop.video.bytetrack import BotSort, ByteTrack
from labelloop.video.cbiou import CBIoU
from labelloop.video.keyframes import reduce
from labelloop.video.lifespans import track_of
from labelloop.video.ocsort import OcSort
from labelloop.video.overlap import Floats
from labelloop.video.tracker import NOBODY, Detections, Options, Tracker

Name = Literal["bytetrack", "oc-sort", "bot-sort", "c-biou"]

TRACKERS: Mapping[str, Callable[[Options], Tracker]] = {
    "bytetrack": ByteTrack,
    "oc-sort": OcSort,
    "bot-sort": BotSort,
    "c-biou": CBIoU,
}

SAME_THING_IOU = 0.7
"""Two detections on one frame that overlap by more are one thing with two names; the better one stays."""

_SLACK = 1e-3
"""Of a frame: rates are written with few digits, and hours of film must not lose one for that."""

PIECE = 60
"""Sights of one thing that are reduced together, while the film goes on: that keeps memory small, and costs at most one
key frame more for each piece."""


class LinkOptions(msgspec.Struct, frozen=True):
    """How detections become tracks.

    `lost_s`: how long a thing may be out of sight and still be the same. `bridge_s`: gaps up to this are filled; in
    longer ones nothing is drawn. `shortest_s`: what was in sight for less is dropped. `min_iou`: how well key frames
    must say the boxes between them (`video/keyframes`).
    """

    tracker: Name = "bytetrack"
    high: float = 0.4
    new: float = 0.5
    low: float = 0.1
    lost_s: float = 1.0
    bridge_s: float = 0.5
    shortest_s: float = 0.3
    min_iou: float = 0.8


class Clock(msgspec.Struct, frozen=True):
    """How a film's frames are counted where the track is shown. `fps` and `duration_s` are the film's, `frame_rate` is
    the one of the label config."""

    fps: float
    duration_s: float
    frame_rate: float

    @property
    def frames_count(self) -> int:
        """As Label Studio's editor counts them: the duration times the rate, rounded up."""
        return max(1, math.ceil(self.duration_s * self.frame_rate - _SLACK))


class Linker:
    """Takes detections frame by frame. `classes` are their names; `steps_per_s` is how many frames a second are looked
    at. Raises LabelloopError for a tracker that does not exist."""

    def __init__(self, options: LinkOptions, *, classes: tuple[str, ...], clock: Clock, steps_per_s: float) -> None:
        if options.tracker not in TRACKERS:
            raise LabelloopError(f"There is no tracker {options.tracker!r}.", hint=f"There are: {', '.join(TRACKERS)}.")
        self._options = options
        self._classes = classes
        self._clock = clock
        self._step_s = 1 / max(steps_per_s, 1e-3)
        lost_steps = max(1, round(options.lost_s * steps_per_s))
        self._tracker = TRACKERS[options.tracker](Options(options.high, options.new, options.low, lost_steps))
        self._open: dict[int, _Thing] = {}
        self._found: list[Region] = []
        self._last_s = 0.0

    @property
    def wants_camera(self) -> bool:
        """Whether `add` is to be told how the camera moved."""
        return self._tracker.wants_camera

    def add(self, time_s: float, found: Detections, *, camera: Floats | None = None) -> None:
        """What was found on the frame that is shown from `time_s` on; frames come in order."""
        found = distinct(found.at(found.scores >= self._options.low))
        numbers = self._tracker.update(found, camera=camera)
        self._last_s = time_s
        for row in np.flatnonzero(numbers != NOBODY):
            thing = self._open.get(int(numbers[row]))
            if thing is None:
                gap_s = self._options.bridge_s + 1.5 * self._step_s
                drawn = Drawing(self._clock, gap_s=gap_s, min_iou=self._options.min_iou)
                thing = self._open[int(numbers[row])] = _Thing(len(self._classes), drawn)
            thing.add(time_s, found, int(row))
        followed = self._tracker.followed()
        if len(self._open) > len(followed):
            for number in self._open.keys() - set(followed.tolist()):
                self._end(self._open.pop(number))

    def finish(self) -> tuple[Region, ...]:
        """The film is over: all tracks, each a Region with its class and score, by their beginning."""
        for number in sorted(self._open):
            self._end(self._open.pop(number))
        return tuple(sorted(self._found, key=lambda region: _begins(region.shape)))

    def _end(self, thing: _Thing) -> None:
        if thing.sights < 2 or thing.seen_s + self._step_s < self._options.shortest_s:
            return
        kind, score = thing.verdict()
        track = thing.drawing.track(to_the_end=thing.last_s == self._last_s)
        if track.keyframes:
            self._found.append(Region(track, label=self._classes[kind], score=score))


class _Thing:
    """What is known of one track: which classes it was taken for, since when and until when it was seen."""

    def __init__(self, classes: int, drawing: Drawing) -> None:
        self.drawing = drawing
        self.sights = 0
        self.last_s = 0.0
        self._first_s: float | None = None
        self._votes = np.zeros(classes)

    @property
    def seen_s(self) -> float:
        return self.last_s - (self._first_s or 0.0)

    def add(self, time_s: float, found: Detections, row: int) -> None:
        self._first_s = time_s if self._first_s is None else self._first_s
        self.last_s = time_s
        self.sights += 1
        self._votes[found.classes[row]] += found.scores[row]
        self.drawing.add(time_s, found.xyxy[row])

    def verdict(self) -> tuple[int, float]:
        """The class with the largest sum of scores, and its share: that sum over the number of sights."""
        kind = int(self._votes.argmax())
        return kind, float(self._votes[kind]) / self.sights


class Drawing:
    """Sights of one thing, in order, on their way to key frames, PIECE of them at a time. In gaps longer than `gap_s`
    nothing is drawn."""

    def __init__(self, clock: Clock, *, gap_s: float, min_iou: float) -> None:
        self._clock = clock
        self._gap_s = gap_s
        self._min_iou = min_iou
        self._half_s = 0.5 / clock.fps if clock.fps else 0.0
        self._waiting: list[tuple[float, ...]] = []
        """Moments at which frames are half over, and boxes; the first one is drawn already when `_in_life`."""
        self._keys: list[KeyFrame] = []
        self._in_life = False

    def add(self, time_s: float, xyxy: Floats) -> None:
        """The box on the frame that is shown from `time_s` on."""
        moment = time_s + self._half_s
        if self._waiting and moment - self._waiting[-1][0] > self._gap_s:
            self._end_life()
        elif len(self._waiting) > PIECE:
            self._draw(self._frame_at(self._waiting[-1][0]), ends=False)
            self._waiting = self._waiting[-1:]
        self._waiting.append((moment, *xyxy.tolist()))

    def track(self, *, to_the_end: bool) -> Track:
        """All of it. `to_the_end`: the last frame that was looked at shows the thing, so it stays until the end."""
        if self._waiting:
            self._end_life(self._clock.frames_count if to_the_end else None)
        return Track(tuple(self._keys), self._clock.frames_count, self._clock.duration_s)

    def _end_life(self, last: int | None = None) -> None:
        if last is None:
            last = min(self._frame_at(self._waiting[-1][0] + self._half_s), self._clock.frames_count)
        self._draw(last, ends=True)
        self._waiting, self._in_life = [], False

    def _frame_at(self, moment_s: float) -> int:
        """The last frame whose middle has come by then."""
        return math.floor(moment_s * self._clock.frame_rate + 0.5 + _SLACK)

    def _draw(self, last: int, *, ends: bool) -> None:
        """The key frames up to frame `last` of the life that is going on."""
        known = self._keys[-1] if self._keys else None
        if self._in_life and known is not None:
            boxes = {known.frame: known.box} | self._boxes(known.frame + 1, last)
        else:
            start = max(math.ceil((self._waiting[0][0] - self._half_s) * self._clock.frame_rate + 0.5 - _SLACK), 1)
            boxes = self._boxes(start if known is None else max(start, known.frame + 1), last)
        if not boxes:
            return
        frames = track_of(boxes, frames_count=self._clock.frames_count)
        few = list(reduce(frames, min_iou=self._min_iou).keyframes)
        if not ends:
            few[-1] = msgspec.structs.replace(few[-1], enabled=True)
        if self._in_life:
            self._keys.pop()
        self._keys += [msgspec.structs.replace(key, time_s=key.frame / self._clock.frame_rate) for key in few]
        self._in_life = True

    def _boxes(self, first: int, last: int) -> dict[int, Box]:
        """The boxes on these frames; between two sights in a straight line."""
        rows = np.array(self._waiting)
        frames = np.arange(first, last + 1)
        moments = (frames - 0.5) / self._clock.frame_rate
        sides = np.stack([np.interp(moments, rows[:, 0], side) for side in rows[:, 1:].T], axis=1)
        return {
            frame: Box((left, top, right, bottom))
            for frame, (left, top, right, bottom) in zip(frames.tolist(), sides.tolist(), strict=True)
        }


def distinct(found: Detections) -> Detections:
    """Those that are things of their own, best first."""
    if len(found.scores) < 2:
        return found
    found = found.at(np.argsort(-found.scores, kind="stable"))
    same = iou(found.xyxy, found.xyxy) > SAME_THING_IOU
    if np.count_nonzero(same) <= len(same):  # each is like itself alone
        return found
    same = np.triu(same, 1)
    hidden = np.zeros(len(same), bool)
    for place in np.flatnonzero(same.any(axis=1)):
        if not hidden[place]:
            hidden |= same[place]
    return found.at(~hidden)


def _begins(shape: object) -> int:
    return shape.keyframes[0].frame if isinstance(shape, Track) else 0
