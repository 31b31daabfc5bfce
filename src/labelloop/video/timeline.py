"""What a classifier says about frame after frame -> from when to when a film shows each class.

Hysteresis (Canny, "A computational approach to edge detection", 1986, section on thresholds): a stretch needs one frame
of which the model is sure, and goes on for as long as it still finds it likely. A single threshold would cut a stretch
in two at each frame that falls just below it. Classes do not exclude each other: stretches of several may overlap.
Memory grows with the stretches that were found, not with the film.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import msgspec
import numpy as np

from labelloop.core.regions import Interval, Region
from labelloop.video.link import Clock
from labelloop.video.overlap import Floats
from labelloop.video.tracker import Detections
from labelloop.video.votes import Votes

_SLACK = 1e-3
"""Of a frame, see `video/link`."""


class Sayings:
    """All that a classifier says of a film: of the whole of it, and of stretches of it. Arguments as for `Timeline`."""

    wants_camera = False

    def __init__(
        self, classes: tuple[str, ...], *, sure: Mapping[str, float], clock: Clock, steps_per_s: float
    ) -> None:
        self._votes = Votes(classes)
        self._timeline = Timeline(TimelineOptions(), classes, sure=sure, clock=clock, steps_per_s=steps_per_s)

    def add(self, time_s: float, found: Detections, *, camera: Floats | None = None) -> None:  # noqa: ARG002
        """What was said of the frame that is shown from `time_s` on; frames come in order."""
        self._votes.add(found)
        self._timeline.add(time_s, found)

    def finish(self) -> tuple[Region, ...]:
        return self._votes.finish() + self._timeline.finish()


class TimelineOptions(msgspec.Struct, frozen=True):
    """How scores become stretches. `still`: the share of a class's threshold that carries a stretch on; `bridge_s`:
    gaps up to this are filled; `shortest_s`: what lasts less is dropped."""

    still: float = 0.6
    bridge_s: float = 0.5
    shortest_s: float = 0.5


class Timeline:
    """Takes the classes of each frame, as detections whose boxes say nothing. `sure` are the scores from which the
    model is sure of a class; classes without one are not looked at. `steps_per_s` is how many frames a second are
    looked at: each stands for those up to the next one."""

    def __init__(
        self,
        options: TimelineOptions,
        classes: tuple[str, ...],
        *,
        sure: Mapping[str, float],
        clock: Clock,
        steps_per_s: float,
    ) -> None:
        self._options = options
        self._classes = classes
        self._clock = clock
        self._step_s = 1 / max(steps_per_s, 1e-3)
        self._sure = np.array([sure.get(name, math.inf) for name in classes])
        self._open: dict[int, _Stretch] = {}
        self._found: list[Region] = []

    def add(self, time_s: float, found: Detections) -> None:
        """What was said of the frame that is shown from `time_s` on; frames come in order."""
        for place in [p for p, stretch in self._open.items() if self._is_over(stretch, time_s)]:
            self._end(place)
        likely = found.scores >= self._options.still * self._sure[found.classes]
        for place, score in zip(found.classes[likely].tolist(), found.scores[likely].tolist(), strict=True):
            stretch = self._open.get(place) or self._open.setdefault(place, _Stretch(time_s))
            stretch.add(time_s, score, sure=score >= self._sure[place])

    def finish(self) -> tuple[Region, ...]:
        """The film is over: all stretches, each a Region with its class, by their beginning. Its score is the mean over
        the frames of which the model was sure."""
        for place in list(self._open):
            self._end(place)
        return tuple(sorted(self._found, key=_begins))

    def _is_over(self, stretch: _Stretch, time_s: float) -> bool:
        return time_s - stretch.last_s > self._options.bridge_s + 1.5 * self._step_s

    def _end(self, place: int) -> None:
        stretch = self._open.pop(place)
        seconds = stretch.last_s + self._step_s - stretch.first_s
        if not stretch.sure or seconds < self._options.shortest_s - _SLACK * self._step_s:
            return
        rate = self._clock.frame_rate
        # frame j of the label config is what is shown at (j - 1/2) / rate
        first = max(math.ceil(stretch.first_s * rate + 0.5 - _SLACK), 1)
        last = math.floor((stretch.last_s + self._step_s) * rate + 0.5 - _SLACK)
        shape = Interval(first, min(max(last, first), self._clock.frames_count))
        if first <= self._clock.frames_count:
            self._found.append(Region(shape, label=self._classes[place], score=stretch.score))


class _Stretch:
    """Since when and until when a class was likely, and how sure the model was at its surest frames."""

    def __init__(self, first_s: float) -> None:
        self.first_s = self.last_s = first_s
        self.sure = 0
        self._sum = 0.0

    @property
    def score(self) -> float:
        return self._sum / self.sure

    def add(self, time_s: float, score: float, *, sure: bool) -> None:
        self.last_s = time_s
        self.sure += sure
        self._sum += score * sure


def _begins(region: Region) -> int:
    return region.shape.first if isinstance(region.shape, Interval) else 0
