"""Key frames -> a box on every frame, as Label Studio does it.

Two programs of Label Studio know how: the server, when it exports with `interpolate_key_frames=true`, and the editor,
when it draws. They agree on the rules below and differ in one: the server turns a box in a straight line of degrees
(from 350 to 10 it goes back through 180), the editor takes the shorter way round.

- Frames count from 1. Before the first key frame there is no box.
- Between an enabled key frame and the next, x and y of the top-left corner (of the box as it lay before it was turned),
  width, height and rotation move in a straight line.
- A key frame that is not enabled is the last frame on which the thing is seen, until the next key frame.
- After the last key frame, if it is enabled, the box stands still to the end of the film.
- A time is interpolated too and rounded to hundredths; where two key frames have the same time, or none follows, it
  runs on to the film's duration.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import zip_longest
from typing import Literal

import msgspec

from labelloop.core.outlines import box_at, corners
from labelloop.core.regions import Box, KeyFrame, Track

Rotation = Literal["linear", "shortest"]
"""How an angle moves: "linear" as Label Studio's export does, "shortest" as its editor shows it."""

TIME_DIGITS = 2


def interpolate(track: Track, *, rotation: Rotation = "linear") -> Track:
    """`track` with a key frame on every frame on which the thing is seen; the new ones are marked `auto`.

    Interpolating twice changes nothing but the times: those of the second pass come from rounded ones.
    """
    frames: list[KeyFrame] = []
    for first, then in zip_longest(track.keyframes, track.keyframes[1:]):
        frames.append(first)
        frames += _between(first, then, track, rotation) if first.enabled else ()
    return msgspec.structs.replace(track, keyframes=tuple(frames))


def _between(first: KeyFrame, then: KeyFrame | None, track: Track, rotation: Rotation) -> Iterator[KeyFrame]:
    last = track.frames_count if then is None else then.frame - 1
    steps = last - first.frame if then is None else then.frame - first.frame
    for frame in range(first.frame + 1, last + 1):
        share = (frame - first.frame) / steps
        box = first.box if then is None else between(first.box, then.box, share, rotation=rotation)
        yield KeyFrame(frame, box, time_s=_time(first, then, share, track.duration_s), auto=True)


def between(first: Box, then: Box, share: float, *, rotation: Rotation = "linear") -> Box:
    """The box at `share` (0 to 1) of the way from `first` to `then`."""
    if not first.angle_deg and not then.angle_deg:
        left, top, right, bottom = (a + (b - a) * share for a, b in zip(first.xyxy, then.xyxy, strict=True))
        return Box((left, top, right, bottom))
    turn = then.angle_deg - first.angle_deg
    if rotation == "shortest":
        turn = (turn + 180) % 360 - 180
    x, y, width, height = (a + (b - a) * share for a, b in zip(pivoted(first), pivoted(then), strict=True))
    return box_at((x, y), (width, height), angle_deg=first.angle_deg + turn * share)


def pivoted(box: Box) -> tuple[float, float, float, float]:
    """x and y of the corner that Label Studio turns about, width, height."""
    left, top, right, bottom = box.xyxy
    x, y = corners(box)[0] if box.angle_deg else (left, top)
    return x, y, right - left, bottom - top


def _time(first: KeyFrame, then: KeyFrame | None, share: float, duration_s: float) -> float | None:
    if first.time_s is None or (then is not None and then.time_s is None):
        return None
    step = 0.0 if then is None or then.time_s is None else (then.time_s - first.time_s) * share
    if step == 0.0 and duration_s > 0:
        step = share * (duration_s - first.time_s)
    return round(first.time_s + step, TIME_DIGITS)
