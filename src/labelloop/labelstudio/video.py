"""VideoRectangle results <-> Tracks. Percent of the film's upright frame on that side, pixels on this one.

Unlike every other region, one of a film does not say how large its film is: whoever reads it must know. Where nothing
but the export is at hand, `PERCENT` makes pixels and percent the same number, which is exact for everything that moves
in straight lines, and wrong for the outline of a turned box.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import msgspec

from labelloop.core.errors import LabelloopError
from labelloop.core.regions import Box, KeyFrame, Region, Size, Track
from labelloop.labelstudio.config import ObjectTag
from labelloop.labelstudio.percent import Canvas, decode_box, encoder, exact_box, number

KIND = "videorectangle"
PERCENT = Size(100, 100)
"""The size of a film whose size is not known."""

MOST_FRAMES = 3_000_000
"""More than a day at 30 frames a second; a larger number in a result would only fill the memory."""

TIME_DIGITS = 6

DEFAULT_FRAME_RATE = 24.0
"""What the editor counts where the label config names no rate, or none that is a number."""


class ExportError(LabelloopError):
    """A file is no export of Label Studio, or holds nothing that was asked for."""

    code = "export"


def frame_rate_of(tag: ObjectTag, data: Mapping[str, Any]) -> float:
    """The frames a second that the editor counts on this film of a task, read as the editor reads it: a number, or a
    field of the task's data; one below 1 is the time from frame to frame."""
    said: Any = tag.frame_rate
    if tag.frame_rate.startswith("$"):
        said = data.get(tag.frame_rate[1:])
    try:
        rate = float(said) if isinstance(said, str | int | float) else 0.0
    except ValueError:
        rate = 0.0
    if not math.isfinite(rate) or rate <= 0:
        return DEFAULT_FRAME_RATE
    return rate if rate >= 1 else 1 / rate


def read_export(data: bytes) -> list[dict[str, Any]]:
    """The tasks of an export in the format JSON. Raises ExportError for anything else."""
    hint = "In Label Studio: Export, format JSON (not JSON-MIN, whose tasks have no annotations)."
    try:
        tasks = msgspec.json.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ExportError(f"The export is no JSON: {error}.", hint=hint) from error
    if not isinstance(tasks, list) or not all(isinstance(task, dict) for task in tasks):
        raise ExportError("The export is no list of tasks.", hint=hint)
    if tasks and not any("annotations" in task or "predictions" in task for task in tasks):
        raise ExportError("No task of the export has annotations.", hint=hint)
    return tasks


def video_results(result: Any) -> Iterator[dict[str, Any]]:
    """The VideoRectangle items of a `result`; whatever else is in it is passed over."""
    for item in result if isinstance(result, list) else ():
        if isinstance(item, dict) and isinstance(kind := item.get("type"), str) and kind.lower() == KIND:
            yield item


def decode_track(item: Mapping[str, Any], *, size: Size) -> tuple[Region, ...]:
    """The track of one VideoRectangle result as a Region, several with the same id where it has several labels.

    Key frames are put in order; of two on one frame the later one counts. What Label Studio's own export insists on and
    other writers leave out is forgiven: rotation (0), time, duration and `framesCount` (the last key frame). Raises
    ExportError.
    """
    try:
        track = _track(item["value"], size)
        labels = _labels(item["value"])
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        what = f"{error} is missing" if isinstance(error, KeyError) else str(error)
        raise ExportError(f"The track {item.get('id')!r} cannot be read: {what}.") from error
    name, score = item.get("id"), item.get("score")
    said = Region(
        track,
        score=float(score) if isinstance(score, int | float) and not isinstance(score, bool) else None,
        id=name if isinstance(name, str) else None,
    )
    return tuple(msgspec.structs.replace(said, label=label) for label in labels or (None,))


def encode_track(track: Track, *, size: Size) -> dict[str, Any]:
    """The `value` of a VideoRectangle result, without labels. Percentages have ten digits and stay beyond
    the border where the track does; times are `frame / fps` where the track has none."""
    return {
        "framesCount": track.frames_count,
        "duration": track.duration_s,
        "sequence": [_encode_key(key, track, size) for key in track.keyframes],
    }


def draw_track(track: Track, canvas: Canvas) -> dict[str, Any] | None:
    """The `value` of a VideoRectangle that a model fills, without labels: four digits, nothing beyond the border. None
    where nothing of it is left in the picture."""
    draw = encoder(Box, "Rectangle")
    assert draw is not None
    sequence: list[dict[str, Any]] = []
    for key in track.keyframes:
        inside = draw(key.box, canvas)
        if inside is not None:
            time_s = key.time_s if key.time_s is not None else (key.frame / track.fps if track.fps else 0.0)
            sequence.append({"frame": key.frame, "enabled": key.enabled, **inside, "time": round(time_s, TIME_DIGITS)})
        elif sequence:
            sequence[-1]["enabled"] = False
    if not sequence:
        return None
    return {"framesCount": track.frames_count, "duration": track.duration_s, "sequence": sequence}


def with_track(item: Mapping[str, Any], track: Track, *, size: Size) -> dict[str, Any]:
    """A copy of a VideoRectangle result that says `track`. Key frames that were there stay as they were written, to the
    digit; new ones are like the one before them in whatever else it says."""
    written = {key["frame"]: key for key in item["value"]["sequence"]}
    sequence: list[dict[str, Any]] = []
    like: dict[str, Any] = {}
    for key in track.keyframes:
        here = written.get(key.frame)
        like = here if here is not None else like
        row = like | (_encode_key(key, track, size) if here is None else {"enabled": key.enabled})
        sequence.append(row if key.auto else {name: said for name, said in row.items() if name != "auto"})
    return {**item, "value": {**item["value"], "sequence": sequence}}


def _encode_key(key: KeyFrame, track: Track, size: Size) -> dict[str, Any]:
    row: dict[str, Any] = {"frame": key.frame, "enabled": key.enabled, **exact_box(key.box, size)}
    time_s = key.time_s
    if time_s is None:
        time_s = round(key.frame / track.fps, TIME_DIGITS) if track.fps else 0.0
    row["time"] = time_s
    if key.auto:
        row["auto"] = True
    return row


def _track(value: Mapping[str, Any], size: Size) -> Track:
    keys: dict[int, KeyFrame] = {}
    for row in value["sequence"]:
        frame = _frame(row["frame"])
        time_s = row.get("time")
        keys[frame] = KeyFrame(
            frame=frame,
            box=decode_box(row, size),
            enabled=row.get("enabled", True) is not False,
            time_s=None if time_s is None else number(time_s),
            auto=row.get("auto") is True,
        )
    last = max(keys, default=0)
    count = value.get("framesCount")
    frames_count = int(number(count)) if count else last
    if frames_count > MOST_FRAMES:
        raise ValueError(f"a film has no {frames_count:,} frames")
    return Track(
        tuple(keys[frame] for frame in sorted(keys)), frames_count, max(number(value.get("duration") or 0), 0.0)
    )


def _frame(value: Any) -> int:
    frame = number(value)
    if frame != int(frame) or not 1 <= frame <= MOST_FRAMES:
        raise ValueError(f"{value!r} is no number of a frame; they count from 1")
    return int(frame)


def _labels(value: Mapping[str, Any]) -> tuple[str, ...]:
    """The labels beside the sequence. Several have the order in which they were given, each once."""
    labels = value.get("labels") or ()
    if not isinstance(labels, list | tuple) or not all(isinstance(label, str) for label in labels):
        raise TypeError("its labels are no list of texts")
    return tuple(dict.fromkeys(labels))
