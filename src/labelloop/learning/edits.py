"""Whether a person changed a region, and by how much."""

from __future__ import annotations

from collections.abc import Iterable

from labelloop.core.outlines import rings_of
from labelloop.core.regions import Interval, Raw, Region, Shape, Span, Track
from labelloop.labelstudio.video import PERCENT, ExportError, decode_track, video_results
from labelloop.learning.matching import overlaps
from labelloop.video.lifespans import boxes_by_frame, track_iou

MOVED_PX = 0.5
"""A corner that is off by less was not moved by a person: the editor's percentages come back slightly rounded."""

MOVED_PERCENT = 0.05
"""The same for tracks: two thirds of a pixel in a film 1280 wide."""


def with_tracks(regions: Iterable[Region]) -> list[Region]:
    """With the tracks of films, which travel untouched elsewhere, in percent of their frame: results do not say how
    large a film is."""
    found: list[Region] = []
    for region in regions:
        items = [region.shape.result] if isinstance(region.shape, Raw) else []
        try:
            tracks = [track for item in video_results(items) for track in decode_track(item, size=PERCENT)]
        except ExportError:  # somebody else's, compared as it is written
            tracks = []
        found += tracks or [region]
    return found


def iou_of(ours: Region, theirs: Region) -> float | None:
    """IoU in [0, 1] of the boxes around two regions, of tracks over all frames, of stretches of a film in frames and of
    a text in characters; None where one of them has no extent."""
    first, second = ours.shape, theirs.shape
    if isinstance(first, Track) and isinstance(second, Track):
        return track_iou(first, second)
    mine, other = _stretch(first), _stretch(second)
    if mine and other and type(first) is type(second):
        return len(range(max(mine.start, other.start), min(mine.stop, other.stop))) / (
            max(mine.stop, other.stop) - min(mine.start, other.start)
        )
    return float(overlaps([ours], [theirs])[0, 0]) if _has_area(first) and _has_area(second) else None


def _stretch(shape: Shape) -> range:
    """The frames or characters that a shape covers; none for a shape that is no stretch."""
    if isinstance(shape, Interval):
        return range(shape.first, shape.last + 1)
    return range(shape.start, shape.end) if isinstance(shape, Span) else range(0)


def same_text(ours: Region, theirs: Region) -> bool:
    """Whether a person left what is written there. What a span says is where it is: not everybody who predicts one
    repeats its characters, and the editor writes them again."""
    return isinstance(ours.shape, Span) or ours.text == theirs.text


def same_shape(ours: Shape, theirs: Shape) -> bool:
    """Whether a person left a shape where it was. Frames and characters are whole numbers, which the editor writes as
    it read them, so what has no place in a picture is the same only where it is equal."""
    if isinstance(ours, Raw) and isinstance(theirs, Raw):
        return bool(ours.result.get("value") == theirs.result.get("value"))
    if isinstance(ours, Track) and isinstance(theirs, Track):
        return _same_track(ours, theirs)
    if type(ours) is not type(theirs):
        return False
    first, second = rings_of(ours), rings_of(theirs)
    if not first or not second:
        return ours == theirs
    return [len(ring) for ring in first] == [len(ring) for ring in second] and all(
        abs(a - b) <= MOVED_PX
        for ring, other in zip(first, second, strict=True)
        for p, q in zip(ring, other, strict=True)
        for a, b in zip(p, q, strict=True)
    )


def _same_track(ours: Track, theirs: Track) -> bool:
    """On the same frames, in the same places: key frames that only say the same again are no change. Nor is a film's
    end: a browser counts frames by its sound too, and what is there at the end then stays a frame longer."""
    last = min(ours.frames_count, theirs.frames_count)
    first, second = (
        {frame: box for frame, box in boxes_by_frame(track).items() if frame <= last} for track in (ours, theirs)
    )
    return first.keys() == second.keys() and all(
        abs(a - b) <= MOVED_PERCENT
        for frame, box in first.items()
        for a, b in zip((*box.xyxy, box.angle_deg), (*second[frame].xyxy, second[frame].angle_deg), strict=True)
    )


def _has_area(shape: Shape) -> bool:
    return any(len(ring) > 2 for ring in rings_of(shape))
