"""The nouns that move through labelloop: what one model version, or one person, says about one task.

All coordinates are float pixels of the **upright** picture (EXIF orientation applied), x to the right and
y down. Percent, `from_name` and run-length lists belong to Label Studio and live in `labelstudio/`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import msgspec


class Size(NamedTuple):
    """Width and height of an upright picture in pixels."""

    width: int
    height: int


class MediaKey(NamedTuple):
    """Which picture of a task: the key in `Task.data` and, for a list of pages, the position in it."""

    field: str
    page: int = 0


class Box(msgspec.Struct, frozen=True, gc=False, tag=True):
    """A rectangle: `xyxy` is left, top, right, bottom before it is turned by `angle_deg` clockwise (as seen
    on the screen) about its own centre. `angle_deg` is 0 for an axis-aligned box."""

    xyxy: tuple[float, float, float, float]
    angle_deg: float = 0.0


class Polygon(msgspec.Struct, frozen=True, gc=False, tag=True):
    """A closed outline, `points` in drawing order without repeating the first."""

    points: tuple[tuple[float, float], ...]


Ring = tuple[tuple[float, float], ...]


class Mask(msgspec.Struct, frozen=True, gc=False, tag=True):
    """The pixels that one thing covers: each of its `parts` is an outline and, behind it, those of its holes (GeoJSON's
    MultiPolygon). Points are middles of pixels, those of holes too, and the pixels which they run through are covered.
    Outlines, because a picture may be seen smaller than it is drawn on, and few numbers say what many pixels do.
    """

    parts: tuple[tuple[Ring, ...], ...]


class Point(msgspec.Struct, frozen=True, gc=False, tag=True):
    """A key point."""

    x: float
    y: float


class KeyFrame(msgspec.Struct, frozen=True, gc=False):
    """Where the thing of a `Track` is on one frame. `frame` counts from 1, `time_s` is what the source said (None: it
    said nothing). With `enabled` False the thing is still here on this frame and gone on the next. `auto` marks a frame
    that was computed between two that somebody said."""

    frame: int
    box: Box
    enabled: bool = True
    time_s: float | None = None
    auto: bool = False


class Track(msgspec.Struct, frozen=True, tag=True):
    """One thing followed through a film of `frames_count` frames that lasts `duration_s` (0 where it is not known).

    `keyframes` ascend by frame. Between an enabled one and the next the box moves in a straight line, after the last
    enabled one it stands still to the end of the film, after one that is not enabled, and before the first, there is
    none: `video/interpolate` says it in full.
    """

    keyframes: tuple[KeyFrame, ...]
    frames_count: int
    duration_s: float = 0.0

    @property
    def fps(self) -> float:
        """Frames per second, 0 where the duration is not known."""
        return self.frames_count / self.duration_s if self.duration_s > 0 else 0.0


class Interval(msgspec.Struct, frozen=True, gc=False, tag=True):
    """A stretch of a film, said about all that it shows: frames from `first` up to and with `last`. They count from 1,
    as the label config's frame rate counts them."""

    first: int
    last: int


class Whole(msgspec.Struct, frozen=True, gc=False, tag=True):
    """The item as a whole: a class of a picture, a text about it."""


class Span(msgspec.Struct, frozen=True, gc=False, tag=True):
    """Characters of a text, from `start` up to and without `end`, counted in Unicode code points as Python does."""

    start: int
    end: int


class Raw(msgspec.Struct, frozen=True, tag=True):
    """A Label Studio region that we do not understand; it travels through untouched as `result`."""

    result: dict[str, Any]


Shape = Box | Polygon | Mask | Point | Track | Interval | Whole | Span | Raw

NO_MEDIA = MediaKey("", 0)


class Region(msgspec.Struct, frozen=True):
    """One thing found in, or said about, one item.

    `label` is the model's class name when a model made it, and the project's label after
    `labelstudio/labelmap`. `score` is the confidence in [0, 1], None when a person drew it. `text` is what is
    written there, for a `Span` the characters themselves. `media` says which picture (or text) of the task is
    meant; engines see one and leave it empty.
    """

    shape: Shape
    label: str | None = None
    score: float | None = None
    text: str | None = None
    id: str | None = None
    media: MediaKey = NO_MEDIA


class ItemError(msgspec.Struct, frozen=True):
    """Why one item has no answer. `retry` is true when asking again later may help because the item was
    never tried (a full queue, a passed deadline, no model yet)."""

    code: str
    message: str
    retry: bool = False


class Prediction(msgspec.Struct, frozen=True):
    """Everything that one model version says about one task.

    `sizes` gives the upright size of each picture a region refers to. `model` is "name@version". `score` in
    [0, 1] says how little a person needs to look at this task; ascending order is most uncertain first. `hidden`
    in [0, 1] is the best score that no threshold let through: the model nearly saw something. With an `error` the item
    failed and its neighbours did not; regions found on other pictures of the same task are kept.
    """

    regions: tuple[Region, ...] = ()
    sizes: Mapping[MediaKey, Size] = {}
    model: str = ""
    score: float = 0.0
    hidden: float = 0.0
    error: ItemError | None = None
