"""What was detected on some frames of a film, as bytes: what a job keeps, so that it goes on at the frame where it was.

Trackers are not kept: from the same detections they come to the same tracks again, in a hundredth of the time that it
took to detect. So that this holds to the last digit, detections pass through these types also when nothing is kept.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, Protocol

import msgspec
import numpy as np
from numpy.typing import NDArray

from labelloop.core.regions import Box, Region, Whole
from labelloop.video.overlap import Floats
from labelloop.video.tracker import Detections

NOWHERE = (0.0, 0.0, 0.0, 0.0)
"""The box of what is said of a whole frame."""


class Looked(NamedTuple):
    """One frame that was looked at: its number from 1, its time, what was found, and how the camera moved since the
    one before (see `video/camera`; None: not known, or not asked for)."""

    number: int
    time_s: float
    found: Detections
    camera: Floats | None = None


class Spool(Protocol):
    """Keeps parts of one film beyond the life of this process."""

    def parts(self) -> Iterator[bytes]:
        """What was kept, in order."""

    def add(self, content: bytes, *, frame: int, frames_count: int) -> None:
        """Keep the next part, which ends with the film's frame `frame`."""

    def clear(self) -> None:
        """Forget all parts."""


class _Part(msgspec.Struct, frozen=True, array_like=True):
    film: str
    numbers: bytes
    times_s: bytes
    counts: bytes
    boxes: bytes
    scores: bytes
    classes: bytes
    cameras: bytes


_decoder = msgspec.msgpack.Decoder(_Part)


def detections_of(regions: Sequence[Region], places: dict[str, int], *, at_least: float) -> Detections:
    """The boxes among `regions`, and what is said of the whole frame, with a score of `at_least`; `places` are the
    numbers of the classes."""
    rows = [
        (region.shape.xyxy if isinstance(region.shape, Box) else NOWHERE, region.score, places[region.label])
        for region in regions
        if isinstance(region.shape, Box | Whole)
        and region.score is not None
        and region.score >= at_least
        and region.label in places
    ]
    boxes = np.array([box for box, _, _ in rows], np.float32).reshape(-1, 4)
    scores = np.array([score for _, score, _ in rows], np.float32)
    return _as_detections(boxes, scores, np.array([place for *_, place in rows], np.uint16))


def _as_detections(boxes: NDArray[Any], scores: NDArray[Any], classes: NDArray[Any]) -> Detections:
    return Detections(boxes.astype(np.float64), scores.astype(np.float64), classes.astype(np.intp))


def packed(frames: Sequence[Looked], *, film: str) -> bytes:
    """Frames as bytes; `film` says which film they are of."""
    none = np.full((2, 3), np.nan)
    return msgspec.msgpack.encode(
        _Part(
            film,
            np.array([frame.number for frame in frames], "<i4").tobytes(),
            np.array([frame.time_s for frame in frames], "<f8").tobytes(),
            np.array([len(frame.found.scores) for frame in frames], "<i4").tobytes(),
            np.concatenate([frame.found.xyxy for frame in frames]).astype("<f4").tobytes(),
            np.concatenate([frame.found.scores for frame in frames]).astype("<f4").tobytes(),
            np.concatenate([frame.found.classes for frame in frames]).astype("<u2").tobytes(),
            np.array([none if frame.camera is None else frame.camera for frame in frames], "<f8").tobytes(),
        )
    )


def unpacked(content: bytes, *, film: str) -> list[Looked] | None:
    """The frames of a part; None where it is of another film."""
    part = _decoder.decode(content)
    if part.film != film:
        return None
    counts = np.frombuffer(part.counts, "<i4")
    ends = np.cumsum(counts)[:-1]
    found = zip(
        np.split(np.frombuffer(part.boxes, "<f4").reshape(-1, 4), ends),
        np.split(np.frombuffer(part.scores, "<f4"), ends),
        np.split(np.frombuffer(part.classes, "<u2"), ends),
        strict=True,
    )
    numbers, times_s = np.frombuffer(part.numbers, "<i4").tolist(), np.frombuffer(part.times_s, "<f8").tolist()
    cameras = np.frombuffer(part.cameras, "<f8").reshape(-1, 2, 3)
    return [
        Looked(number, time_s, _as_detections(*arrays), None if np.isnan(camera[0, 0]) else camera)
        for number, time_s, arrays, camera in zip(numbers, times_s, found, cameras, strict=True)
    ]
