"""The stretches of a film on which a thing is seen, and the way from boxes per frame to a Track and back."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import pairwise

import msgspec
import numpy as np

from labelloop.core.regions import Box, KeyFrame, Track
from labelloop.video.interpolate import Rotation, interpolate
from labelloop.video.overlap import Floats


class Lifespan(msgspec.Struct, frozen=True):
    """A box on each frame from `start` on. `open_end`: the thing is there on the last frame of the film too, and no key
    frame takes it away."""

    start: int
    boxes: tuple[Box, ...]
    open_end: bool = False

    @property
    def end(self) -> int:
        """The last frame on which the thing is seen."""
        return self.start + len(self.boxes) - 1


def lifespans(track: Track, *, rotation: Rotation = "linear") -> tuple[Lifespan, ...]:
    """What is seen of a track, in order. Two that touch stay apart where a key frame ends the first."""
    found: list[Lifespan] = []
    run: list[KeyFrame] = []
    for key in interpolate(track, rotation=rotation).keyframes:
        run.append(key)
        if not key.enabled:
            found.append(_lifespan(run, open_end=False))
            run = []
    return (*found, _lifespan(run, open_end=True)) if run else tuple(found)


def _lifespan(run: list[KeyFrame], *, open_end: bool) -> Lifespan:
    return Lifespan(run[0].frame, tuple(key.box for key in run), open_end)


def boxes_by_frame(track: Track, *, rotation: Rotation = "linear") -> dict[int, Box]:
    """Frame -> box, for every frame on which the thing is seen."""
    return {key.frame: key.box for key in interpolate(track, rotation=rotation).keyframes}


def track_iou(first: Track, second: Track) -> float:
    """Intersection over union of two tracks, in [0, 1]: areas of upright boxes, summed over all frames before they are
    divided (Yang, Fan and Xu: Video Instance Segmentation, ICCV 2019). Turned boxes count as if upright."""
    ours, theirs = boxes_by_frame(first), boxes_by_frame(second)
    both = sorted(ours.keys() & theirs.keys())
    a, b = _sides(ours, both), _sides(theirs, both)
    shared = _area(np.concatenate([np.maximum(a[:, :2], b[:, :2]), np.minimum(a[:, 2:], b[:, 2:])], axis=1))
    union = _area(_sides(ours, ours)) + _area(_sides(theirs, theirs)) - shared
    return shared / union if union > 0 else 0.0


def _sides(boxes: Mapping[int, Box], frames: Iterable[int]) -> Floats:
    return np.array([boxes[frame].xyxy for frame in frames], np.float64).reshape(-1, 4)


def _area(xyxy: Floats) -> float:
    width, height = np.maximum(xyxy[:, 2:] - xyxy[:, :2], 0).T
    return float(width @ height)


def track_of(boxes: Mapping[int, Box], *, frames_count: int, duration_s: float = 0.0) -> Track:
    """A dense track: one key frame per box, and an end before each gap. Frames count from 1; times are those of the
    frames, as Label Studio's editor writes them: `frame / fps`."""
    order = sorted(boxes)
    seconds = duration_s / frames_count if frames_count else 0.0
    followed = {frame for frame, then in pairwise(order) if then == frame + 1} | {frames_count}
    keys = (KeyFrame(frame, boxes[frame], frame in followed, frame * seconds) for frame in order)
    return Track(tuple(keys), frames_count, duration_s)
