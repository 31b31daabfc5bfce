"""A box that a person drew on some frame of a film, followed forwards and backwards until it is lost."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import msgspec
import numpy as np

from labelloop.core.regions import Box, KeyFrame, Track
from labelloop.media.film import Film, Frame, frame_at, read_frames
from labelloop.video.flow import Flow, reduced
from labelloop.video.link import Clock, Drawing

CHUNK = 48
"""Frames that are held at a time on the way back, reduced and grey: 11 MB."""

MIN_IOU = 0.8


class Sight(msgspec.Struct, frozen=True):
    """Where the thing is on a frame of the film, and since when that frame is shown."""

    number: int
    time_s: float
    box: Box


def follow(film: Film, drawn: Track, *, frame_rate: float, until_s: float, go_on: Callable[[], None]) -> Track:
    """`drawn` with key frames before its first and after its last one, as far as the thing in the box can be followed.

    Its own key frames stay as they are. `frame_rate` is what the template counts; `until_s`, on `time.monotonic`, ends
    the search wherever it is. `go_on` is called for each frame, and raises when the work is to end. Raises
    MediaUndecodable where the film breaks off.
    """
    first, last = drawn.keyframes[0], drawn.keyframes[-1]
    clock = Clock(film.fps, film.duration_s, frame_rate)
    middle_s = (time.monotonic() + until_s) / 2

    def extended(key: KeyFrame, frames: Callable[[Film, int], Iterator[Frame]], end_s: float) -> list[Sight]:
        def in_time() -> bool:
            go_on()
            return time.monotonic() < end_s

        number = frame_at(film, (key.frame - 0.5) / frame_rate)
        return _followed(film, key.box, frames(film, number), in_time)

    before = _keys(extended(first, _backwards, middle_s)[::-1], clock, film)
    after = _keys(extended(last, _forwards, until_s), clock, film) if last.enabled else ()
    later = [key for key in after if key.frame > last.frame]
    stays = last.enabled and (bool(later) or after[-1].enabled)  # where it was lost at once, it ends
    own = [*drawn.keyframes[:-1], msgspec.structs.replace(last, enabled=stays)]
    keys = [
        *(msgspec.structs.replace(key, enabled=True) for key in before if key.frame < first.frame),
        *(msgspec.structs.replace(key, time_s=key.frame / frame_rate) for key in own),
        *later,
    ]
    return Track(tuple(keys), clock.frames_count, film.duration_s)


def _keys(sights: list[Sight], clock: Clock, film: Film) -> tuple[KeyFrame, ...]:
    drawing = Drawing(clock, gap_s=film.duration_s + 1.0, min_iou=MIN_IOU)
    for sight in sights:
        drawing.add(sight.time_s, np.array(sight.box.xyxy))
    to_the_end = bool(sights) and sights[-1].number == film.frames_count
    return drawing.track(to_the_end=to_the_end).keyframes


def _followed(film: Film, box: Box, frames: Iterator[Frame], in_time: Callable[[], bool]) -> list[Sight]:
    """The sights in the order of `frames`, the first of which is the one that the box was drawn on."""
    flow: Flow | None = None
    found: list[Sight] = []
    for frame in frames:
        if flow is None:
            flow, here = Flow(frame.rgb, box, width=film.size.width), box
        elif not in_time() or (moved := flow.next(frame.rgb)) is None:
            break
        else:
            here = moved
        found.append(Sight(frame.number, frame.time_s, here))
    return found


def _forwards(film: Film, first: int) -> Iterator[Frame]:
    for frame in read_frames(film.path, first=first):
        yield msgspec.structs.replace(frame, rgb=reduced(frame.rgb))


def _backwards(film: Film, last: int) -> Iterator[Frame]:
    """Frames from `last` back to the first: a film can only be read forwards, so it is read in chunks."""
    while last >= 1:
        first = max(last - CHUNK + 1, 1)
        chunk = read_frames(film.path, first=first, last=last)
        yield from reversed([msgspec.structs.replace(frame, rgb=reduced(frame.rgb)) for frame in chunk])
        last = first - 1
