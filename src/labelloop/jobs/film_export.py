"""Tracks of an export -> CSV and MOTChallenge text."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

import msgspec

from labelloop.core.errors import FilmError
from labelloop.core.outlines import bounding_box, corners
from labelloop.core.regions import Size
from labelloop.formats import mot
from labelloop.jobs.film_tracks import UNLABELLED, FilmTask, Placed, placed
from labelloop.video.interpolate import Rotation

CSV_COLUMNS = (
    "task", "film", "track", "label", "frame", "time_s", "x", "y", "width", "height", "rotation", "auto", "unit"
)  # fmt: skip


class Written(msgspec.Struct, frozen=True):
    """How much was written, remarks for the person who asked, and what cannot be read."""

    boxes: int
    frames: int = 0
    notes: tuple[str, ...] = ()
    problems: tuple[str, ...] = ()


def write_csv(path: Path, tasks: Sequence[FilmTask], *, rotation: Rotation = "linear") -> Written:
    """A row per box. x and y are those of the corner that a box is turned about, as in Label Studio; `unit` says
    whether sides are px of the film or percent of it."""
    boxes = 0
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(CSV_COLUMNS)
        for task in tasks:
            unit = "percent" if task.size is None else "px"
            for one in placed(task, rotation=rotation):
                time_s = "" if one.time_s is None else one.time_s
                start = (task.task_id, task.name, one.id, one.label, one.frame, time_s)
                writer.writerow([*start, *_pivoted(one), "yes" if one.auto else "no", unit])
                boxes += 1
    return Written(boxes)


def _pivoted(one: Placed) -> tuple[float, ...]:
    left, top, right, bottom = one.box.xyxy
    x, y = corners(one.box)[0] if one.box.angle_deg else (left, top)
    return tuple(round(number, 6) for number in (x, y, right - left, bottom - top, one.box.angle_deg))


def write_mot(folder: Path, tasks: Sequence[FilmTask], *, rotation: Rotation = "linear") -> Written:
    """A sequence per film in `folder`. A turned box becomes the upright one around it; of several labels the first
    counts, because a line has room for one."""
    boxes = 0
    for task in tasks:
        labels = labels_of([task])
        seen: dict[tuple[int, int], mot.Row] = {}
        for one in placed(task, rotation=rotation):
            around = bounding_box(one.box)
            if around is not None:
                row = mot.Row(one.frame, one.number, around.xyxy, 1.0, labels.index(one.label) + 1, 1.0)
                seen.setdefault((one.frame, one.number), row)
        fps = task.frames_count / task.duration_s if task.duration_s else 25.0
        about = mot.SequenceInfo(task.name, task.frames_count, fps, size_of(task))
        mot.write_sequence(folder / task.name, about, seen.values(), labels=labels)
        boxes += len(seen)
    return Written(boxes)


def labels_of(tasks: Sequence[FilmTask]) -> list[str]:
    return sorted({region.label or UNLABELLED for task in tasks for region in task.regions})


def size_of(task: FilmTask) -> Size:
    if task.size is None:
        raise FilmError(
            f"How large the film {task.name} is stands nowhere in the export.",
            hint="Name the film, or the folder it is in, with --images, or its size with --size 1280x720.",
        )
    return task.size
